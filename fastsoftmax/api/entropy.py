"""softmax_entropy, with its gradient."""

import sys
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fastsoftmax.arrays.blocks import LAST, NO_ROOM, UNTEMPERED, Problem, inverse_temperature
from fastsoftmax.arrays.lazy import backend_for
from fastsoftmax.arrays.parts import run
from fastsoftmax.arrays.plain import plain_rows
from fastsoftmax.machine.entry import entry, remember

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsoftmax._types import ArrayT, FloatT, Numbers, Other, Vector

# Small calls, as in `activations`.
_SMALL: dict[np.dtype[Any], Any] = {}


if TYPE_CHECKING:

    @overload
    def softmax_entropy(
        x: Vector[FloatT], axis: int = -1, *, temperature: float = 1.0, out: None = None
    ) -> FloatT: ...

    @overload
    def softmax_entropy(
        x: NDArray[FloatT], axis: int = -1, *, temperature: float = 1.0, out: NDArray[FloatT] | None = None
    ) -> NDArray[FloatT]: ...

    @overload
    def softmax_entropy(
        x: ArrayT, axis: int | str = -1, *, temperature: float = 1.0, out: ArrayT | None = None
    ) -> ArrayT: ...

    @overload
    def softmax_entropy(
        x: Numbers | Other, axis: int = -1, *, temperature: float = 1.0, out: Any = None
    ) -> Any: ...


def softmax_entropy(x: Any, axis: int | str = LAST, *, temperature: float = UNTEMPERED, out: Any = None) -> Any:
    r"""Entropy of the softmax of each row, in nats.

    .. math:: H = -\sum_k p_k \log p_k, \qquad p = \mathrm{softmax}(x / T)

    Parameters
    ----------
    x : array_like
        Logits, of any shape with at least one axis. float32 and float64 are kept; float16 and
        ``ml_dtypes.bfloat16`` are computed in float32 and returned in their dtype; integers and bools become
        float64.
    axis : int, default -1
        The axis of the classes.
    temperature : float, default 1.0
        T > 0.
    out : ndarray, optional
        Where to put the result: of its shape and dtype.

    Returns
    -------
    ndarray or scalar
        One number for each row, from 0 (one class is certain) to log K (all are equal).

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    See Also
    --------
    softmax_entropy_with_grad : the entropy and its gradient.
    cross_entropy : the entropy of one distribution relative to another.

    Notes
    -----
    The error is within 4 ulp (5 with a temperature), also if one class has almost all of the probability: the
    entropy is computed as the log-sum-exp minus the mean of the logits, both relative to the greatest logit, which
    is a sum without cancellation. Entries of -inf have probability 0 and add 0. The entropy is NaN if a row holds
    NaN or +inf, holds nothing but -inf, or has no classes.

    References
    ----------
    T. M. Cover, J. A. Thomas, Elements of Information Theory, 2nd edition, 2006, section 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.softmax_entropy(np.array([[0.0, 0.0], [0.0, -np.inf], [0.0, -50.0]]))
    array([6.93147181e-01, 0.00000000e+00, 9.83662422e-21])
    """
    if axis is LAST and temperature is UNTEMPERED and out is None:
        rows = plain_rows(_SMALL, x, (None,), (None,), sys.maxsize)
        if rows is not None:
            return rows
    if backend := backend_for(x):
        return backend("softmax_entropy", x, axis=axis, out=out, temperature=temperature)
    problem = Problem("softmax_entropy", x, axis)
    beta = inverse_temperature("softmax_entropy", temperature, problem.dtype)
    source = problem.block()
    rows = problem.row_output(out)
    kernel, arguments = entry("entropy.entropy"), (source, None, rows.block, beta)
    run(kernel, problem.rows, 2 * source.size, problem.room(1), *arguments)
    if problem.direct and beta is None:
        remember(_SMALL, problem.dtype, kernel, 0, 0, NO_ROOM[problem.dtype], *arguments)
    return rows.finish()


if TYPE_CHECKING:

    @overload
    def softmax_entropy_with_grad(
        x: Vector[FloatT], axis: int = -1, *, temperature: float = 1.0, out: NDArray[FloatT] | None = None
    ) -> tuple[FloatT, NDArray[FloatT]]: ...

    @overload
    def softmax_entropy_with_grad(
        x: NDArray[FloatT], axis: int = -1, *, temperature: float = 1.0, out: NDArray[FloatT] | None = None
    ) -> tuple[NDArray[FloatT], NDArray[FloatT]]: ...

    @overload
    def softmax_entropy_with_grad(
        x: ArrayT, axis: int | str = -1, *, temperature: float = 1.0, out: ArrayT | None = None
    ) -> tuple[ArrayT, ArrayT]: ...

    @overload
    def softmax_entropy_with_grad(
        x: Numbers | Other, axis: int = -1, *, temperature: float = 1.0, out: Any = None
    ) -> tuple[Any, Any]: ...


def softmax_entropy_with_grad(
    x: Any, axis: int | str = -1, *, temperature: float = 1.0, out: Any = None
) -> tuple[Any, Any]:
    r"""`softmax_entropy` and its gradient with respect to the logits, in one pass over them.

    .. math:: \frac{\partial H}{\partial x_k} = -\frac{1}{T}\, p_k \, (\log p_k + H)

    Parameters
    ----------
    x, axis, temperature
        As for `softmax_entropy`.
    out : ndarray, optional
        Where to put the gradient: of its shape and dtype. May be `x` itself.

    Returns
    -------
    entropy : scalar or ndarray
        As `softmax_entropy`.
    grad : ndarray
        The gradient, of the shape of `x`: for each row that of its own entropy.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`; nothing is written to `out` then.

    See Also
    --------
    softmax_entropy
    softmax_jvp : with x/T as the tangent, its result is minus this gradient, less accurate.

    Notes
    -----
    Where log p_k is close to -H, the two terms of the gradient cancel. The error is within 4 eps (5 with a
    temperature) times p_k (d_k + E)/T, where d_k is the distance of logit k from the greatest one, over T, and E
    the mean of d. The gradient at an entry of -inf is 0. Where the entropy is NaN, the whole gradient is NaN.

    References
    ----------
    R. J. Williams, J. Peng, Function optimization using connectionist reinforcement learning algorithms,
    Connection Science 3(3), 1991, doi:10.1080/09540099108946587 (entropy as a regularizer of policies).

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> entropy, grad = fs.softmax_entropy_with_grad(np.log(np.array([[1.0, 3.0]])))
    >>> entropy
    array([0.56233514])
    >>> grad
    array([[ 0.2059898, -0.2059898]])
    """
    function = "softmax_entropy_with_grad"
    if backend := backend_for(x):
        lazy: tuple[Any, Any] = backend(function, x, axis=axis, out=out, temperature=temperature)
        return lazy
    problem = Problem(function, x, axis)
    beta = inverse_temperature(function, temperature, problem.dtype)
    source = problem.block()
    output = problem.output(out)
    rows = problem.row_output(None)
    arguments = source, output.block, rows.block, beta
    run(entry("entropy.entropy"), problem.rows, 3 * source.size, problem.room(1), *arguments)
    return rows.finish(), output.finish()
