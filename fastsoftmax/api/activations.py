"""softmax, log_softmax and logsumexp."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from fastsoftmax._vectors import COLUMN_LIMIT, SMALL
from fastsoftmax.arrays import long_rows
from fastsoftmax.arrays.blocks import (
    LAST,
    NO_ROOM,
    UNTEMPERED,
    Axis,
    Problem,
    inverse_temperature,
    is_plain,
    lie_apart,
)
from fastsoftmax.arrays.lazy import backend_for
from fastsoftmax.arrays.parts import run
from fastsoftmax.arrays.plain import has_rows, plain_rows, run_plain
from fastsoftmax.machine.entry import Codes, entry, remember

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsoftmax._types import Arrays, ArrayT, Axes, Dims, FloatT, Numbers, Other, Vector

# For small arrays, checks cost more than the computation: a native dtype that has been used before has a kernel
# that checks its arrays itself.

Small = dict[np.dtype[Any], Codes]
_SOFTMAX: Small = {}
_LOG_SOFTMAX: Small = {}
_LOGSUMEXP: dict[np.dtype[Any], Callable[..., None]] = {}


def _plain(codes: Codes, x: Any, out: Any) -> Any:
    """The result of a call with default options, or None if an argument has to be converted or refused."""
    result = np.empty_like(x) if out is None else out
    if codes.small(x, result, None):
        return result
    size = x.size
    if not size or not x.ndim:
        return None
    shape = x.shape
    classes = shape[-1]
    if size <= SMALL:
        # The bits of a longer row depend on its layout, which decides how it is walked.
        if out is x or (classes > COLUMN_LIMIT and not x.flags.c_contiguous):
            return None
        result = np.empty(shape, x.dtype) if out is None else out
        return result if codes.small(x.copy(), result, None) else None
    if classes > long_rows.LONG_ROW or not has_rows(x):
        return None
    if out is not None and not (is_plain(out, shape, x.dtype) and (out is x or lie_apart(x, out))):
        return None
    rows = size // classes
    block, target = (x, result) if len(shape) == 2 else (x.reshape(rows, classes), result.reshape(rows, classes))
    run_plain(codes.code, rows, x.dtype, 1, (block, target, None))
    return result


def _forward(
    function: str, x: Any, axis: Axis, where: Any, temperature: float, out: Any, hidden: float, small: Small
) -> Any:
    """softmax or log_softmax for any arguments; `hidden` is the result of masked entries."""
    if backend := backend_for(x, where):
        return backend(function, x, axis=axis, out=out, where=where, temperature=temperature)
    problem = Problem(function, x, axis, several=True)
    problem.mask(where)
    beta = inverse_temperature(function, temperature, problem.dtype)
    output = problem.output(out, hidden=hidden)
    source = problem.block()
    if long_rows.is_long(problem):
        long_rows.long_forward(function, source, output.block, beta)
    else:
        kernel, arguments = entry(f"activations.{function}"), (source, output.block, beta)
        run(kernel, problem.rows, source.size, problem.room(1), *arguments)
        if problem.direct and beta is None and problem.dtype not in small:
            small[problem.dtype] = kernel.codes(problem.dtype, 0, 0, NO_ROOM[problem.dtype], *arguments)
    return output.finish()


if TYPE_CHECKING:

    @overload
    def softmax(
        x: NDArray[FloatT],
        axis: Axes = -1,
        *,
        where: Arrays | None = None,
        temperature: float = 1.0,
        out: NDArray[FloatT] | None = None,
    ) -> NDArray[FloatT]: ...

    @overload
    def softmax(
        x: ArrayT,
        axis: Dims = -1,
        *,
        where: Arrays | None = None,
        temperature: float = 1.0,
        out: ArrayT | None = None,
    ) -> ArrayT: ...

    @overload
    def softmax(
        x: Numbers,
        axis: Axes = -1,
        *,
        where: Arrays | None = None,
        temperature: float = 1.0,
        out: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]: ...

    @overload
    def softmax(
        x: Other, axis: Axes = -1, *, where: Arrays | None = None, temperature: float = 1.0, out: Any = None
    ) -> Any: ...


def softmax(
    x: Any, axis: Axis = LAST, *, where: Any = None, temperature: float = UNTEMPERED, out: Any = None
) -> Any:
    r"""Softmax of each row.

    .. math:: p_i = \frac{\exp(x_i / T)}{\sum_k \exp(x_k / T)}

    Parameters
    ----------
    x : array_like
        Logits, of any shape. float32 and float64 are kept; float16 and ``ml_dtypes.bfloat16`` are computed
        in float32 and returned in their dtype; integers and bools become float64.
    axis : int, tuple of ints or None, default -1
        The axis or axes along which the probabilities sum to 1; None for all. (SciPy's default is None.) For an
        ``xarray.DataArray`` also names of dimensions.
    where : array_like of bool, optional
        Entries that take part, broadcast to `x`. The others get probability 0 and have no influence, whatever
        they hold. If no entry of a row takes part, its probabilities are 0.
    temperature : float, default 1.0
        T > 0, of any size: differences of logits are divided by it, not logits. A T below 1 sharpens the
        distribution, a T above 1 flattens it.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `x` itself.

    Returns
    -------
    ndarray or scalar
        The probabilities, of the shape of `x`: an array of the kind of `x` where that is one of PyTorch, JAX,
        xarray or Dask, a NumPy array for all else, such as pandas objects.

    Raises
    ------
    TypeError
        For dtypes other than those above (complex, longdouble, object, strings), masked arrays, and an `out`
        of another dtype.
    ValueError
        For an `out` of another shape, a `where` that does not broadcast, a temperature that is not positive
        and finite.
    numpy.exceptions.AxisError
        For an axis that `x` does not have.

    See Also
    --------
    log_softmax : its logarithm, accurate also where a probability is close to 1.
    softmax_jvp, softmax_vjp, softmax_jacobian : its derivatives.

    Notes
    -----
    The error is within 3 ulp (4 with a temperature) for rows of any length and logits of any size; see
    ``fastsoftmax/kernels/elementary.py`` for the analysis. Results below the smallest normal number may be 0. The
    result of a row that holds NaN or +inf, or nothing but -inf, is NaN; other rows are not affected. No
    floating-point warning is raised.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, Accurately computing the log-sum-exp and softmax functions,
    IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.softmax(np.array([1.0, 2.0, 3.0]))
    array([0.09003057, 0.24472847, 0.66524096])
    >>> fs.softmax(np.array([[0.0, 0.0], [0.0, -np.inf]]))
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    if type(x) is np.ndarray and axis is LAST and where is None and temperature is UNTEMPERED:
        codes = _SOFTMAX.get(x.dtype)
        if codes is not None:
            result = _plain(codes, x, out)
            if result is not None:
                return result
    return _forward("softmax", x, axis, where, temperature, out, 0.0, _SOFTMAX)


if TYPE_CHECKING:

    @overload
    def log_softmax(
        x: NDArray[FloatT],
        axis: Axes = -1,
        *,
        where: Arrays | None = None,
        temperature: float = 1.0,
        out: NDArray[FloatT] | None = None,
    ) -> NDArray[FloatT]: ...

    @overload
    def log_softmax(
        x: ArrayT,
        axis: Dims = -1,
        *,
        where: Arrays | None = None,
        temperature: float = 1.0,
        out: ArrayT | None = None,
    ) -> ArrayT: ...

    @overload
    def log_softmax(
        x: Numbers,
        axis: Axes = -1,
        *,
        where: Arrays | None = None,
        temperature: float = 1.0,
        out: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]: ...

    @overload
    def log_softmax(
        x: Other, axis: Axes = -1, *, where: Arrays | None = None, temperature: float = 1.0, out: Any = None
    ) -> Any: ...


def log_softmax(
    x: Any, axis: Axis = LAST, *, where: Any = None, temperature: float = UNTEMPERED, out: Any = None
) -> Any:
    r"""Logarithm of the softmax of each row.

    .. math:: \log p_i = \frac{x_i}{T} - \log \sum_k \exp(x_k / T)

    Parameters
    ----------
    x : array_like
        Logits, of any shape. float32 and float64 are kept; float16 and ``ml_dtypes.bfloat16`` are computed
        in float32 and returned in their dtype; integers and bools become float64.
    axis : int, tuple of ints or None, default -1
        The axis or axes of the classes; None for all. (SciPy's default is None.)
    where : array_like of bool, optional
        Entries that take part, broadcast to `x`. The others get -inf and have no influence.
    temperature : float, default 1.0
        T > 0.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `x` itself.

    Returns
    -------
    ndarray or scalar
        The log-probabilities, of the shape of `x`; the kind of array as for `softmax`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    See Also
    --------
    softmax, logsumexp

    Notes
    -----
    The error is within 4 ulp (5 with a temperature), also where the probability is close to 1 and its logarithm
    close to 0: the terms other than the greatest have a sum of their own, of which log1p is taken. As for
    `softmax`, the result of a row that holds NaN or +inf, or nothing but -inf, is NaN.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, Accurately computing the log-sum-exp and softmax functions,
    IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.log_softmax(np.array([0.0, -50.0]))
    array([-1.92874985e-22, -5.00000000e+01])
    """
    if type(x) is np.ndarray and axis is LAST and where is None and temperature is UNTEMPERED:
        codes = _LOG_SOFTMAX.get(x.dtype)
        if codes is not None:
            result = _plain(codes, x, out)
            if result is not None:
                return result
    return _forward("log_softmax", x, axis, where, temperature, out, -np.inf, _LOG_SOFTMAX)


if TYPE_CHECKING:

    @overload
    def logsumexp(
        x: Vector[FloatT],
        axis: int | Sequence[int] = -1,
        *,
        where: Arrays | None = None,
        keepdims: Literal[False] = False,
        out: None = None,
    ) -> FloatT: ...

    @overload
    def logsumexp(
        x: NDArray[FloatT],
        axis: None,
        *,
        where: Arrays | None = None,
        keepdims: Literal[False] = False,
        out: None = None,
    ) -> FloatT: ...

    @overload
    def logsumexp(
        x: NDArray[FloatT],
        axis: int | Sequence[int] = -1,
        *,
        where: Arrays | None = None,
        keepdims: bool = False,
        out: NDArray[FloatT] | None = None,
    ) -> NDArray[FloatT]: ...

    @overload
    def logsumexp(
        x: ArrayT,
        axis: Dims = -1,
        *,
        where: Arrays | None = None,
        keepdims: bool = False,
        out: ArrayT | None = None,
    ) -> ArrayT: ...

    @overload
    def logsumexp(
        x: NDArray[FloatT] | Numbers | Other,
        axis: Axes = -1,
        *,
        where: Arrays | None = None,
        keepdims: bool = False,
        out: Any = None,
    ) -> Any: ...


def logsumexp(x: Any, axis: Axis = LAST, *, where: Any = None, keepdims: bool = False, out: Any = None) -> Any:
    r"""Logarithm of the sum of exponentials of each row.

    .. math:: \mathrm{lse}(x) = \log \sum_k \exp(x_k)

    Parameters
    ----------
    x : array_like
        Any shape. float32 and float64 are kept; float16 and ``ml_dtypes.bfloat16`` are computed in float32
        and returned in their dtype; integers and bools become float64.
    axis : int, tuple of ints or None, default -1
        The axis or axes that are summed over; None for all. (SciPy's default is None.)
    where : array_like of bool, optional
        Entries that take part, broadcast to `x`. If no entry of a row takes part, its result is -inf.
    keepdims : bool, default False
        Whether the axes that are summed over stay, with length 1.
    out : ndarray, optional
        Where to put the result: of its shape and dtype.

    Returns
    -------
    ndarray or scalar
        One number for each row; the kind of array as for `softmax`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    See Also
    --------
    log_softmax

    Notes
    -----
    The error is within 2 ulp where the greatest entry and the logarithm of the remaining sum do not cancel, and
    within ``2 eps max(abs(x))`` where they do. The result of an empty row and of a row of nothing but -inf is
    -inf. The result of a row with +inf is inf, that of a row with NaN is NaN. The input is read once.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, Accurately computing the log-sum-exp and softmax functions,
    IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.logsumexp(np.log(np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 4.0]])))
    array([1.79175947, 2.07944154])
    """
    if axis is LAST and where is None and out is None and keepdims is False:
        rows = plain_rows(_LOGSUMEXP, x, (), (), long_rows.LONG_ROW)
        if rows is not None:
            return rows
    if backend := backend_for(x, where):
        return backend("logsumexp", x, axis=axis, out=out, where=where, keepdims=keepdims)
    problem = Problem("logsumexp", x, axis, several=True)
    problem.mask(where)
    source = problem.block()
    output = problem.row_output(out, keepdims)
    if long_rows.is_long(problem):
        long_rows.long_logsumexp(source, output.block)
    else:
        kernel, arguments = entry("activations.logsumexp"), (source, output.block)
        run(kernel, problem.rows, source.size, problem.room(1), *arguments)
        if problem.direct:
            remember(_LOGSUMEXP, problem.dtype, kernel, 0, 0, NO_ROOM[problem.dtype], *arguments)
    return output.finish()
