"""Jacobians of softmax and log_softmax, and their products with tangents and cotangents."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fastsoftmax._vectors import SMALL
from fastsoftmax.arrays import long_rows
from fastsoftmax.arrays.blocks import (
    LAST,
    NO_ROOM,
    UNTEMPERED,
    UNWEIGHTED,
    Problem,
    inverse_temperature,
    is_plain,
    lie_apart,
)
from fastsoftmax.arrays.lazy import backend_for
from fastsoftmax.arrays.parts import run
from fastsoftmax.arrays.plain import run_plain
from fastsoftmax.machine.entry import Codes, entry, remember

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsoftmax._types import Arrays, ArrayT, FloatT, Numbers, Other

# Kernels for the most frequent arguments, as in `activations`: by dtype, and whether probabilities are given.
_PRODUCTS: dict[tuple[np.dtype[Any], bool], Codes] = {}
_JACOBIANS: dict[tuple[np.dtype[Any], bool], Callable[..., None]] = {}


def _plain_product(x: Any, vector: Any, from_probs: Any, out: Any) -> Any:
    """The result of a call with plain arrays, or None if an argument has to be converted or refused."""
    codes = _PRODUCTS.get((x.dtype, from_probs is True)) if type(x) is np.ndarray else None
    if codes is None or (from_probs is not True and from_probs is not False):
        return None
    dtype, shape = x.dtype, x.shape
    result = np.empty(shape, dtype) if out is None else out
    options = False, None, True if from_probs else None, UNWEIGHTED[dtype]
    if codes.small(x, vector, result, *options):
        return result
    if len(shape) != 2 or x.size <= SMALL or shape[1] > long_rows.LONG_ROW:
        return None
    if not (is_plain(x, shape, dtype) and is_plain(vector, shape, dtype) and is_plain(result, shape, dtype)):
        return None
    if out is not None and not (lie_apart(out, x) and lie_apart(out, vector)):
        return None
    run_plain(codes.code, shape[0], dtype, 2, (x, vector, result, *options))
    return result


def _plain_jacobian(x: Any, from_probs: Any, out: Any) -> Any:
    """As `_plain_product`, for a Jacobian of each row of a matrix."""
    kernel = _JACOBIANS.get((x.dtype, from_probs is True)) if type(x) is np.ndarray else None
    if kernel is None or (from_probs is not True and from_probs is not False):
        return None
    if x.ndim != 2 or not x.size or not x.flags.carray:
        return None
    rows, classes = x.shape
    shape, size = (rows, classes, classes), x.size * classes
    if size > SMALL and classes > long_rows.LONG_ROW:
        return None
    if out is None:
        out = np.empty(shape, x.dtype)
    elif not (is_plain(out, shape, x.dtype) and lie_apart(out, x)):
        return None
    args = x, out, None, True if from_probs else None, UNWEIGHTED[x.dtype]
    if size <= SMALL:
        kernel(0, rows, NO_ROOM[x.dtype], *args)
    else:
        run_plain(kernel, rows, x.dtype, max(1, classes // 4), args)
    return out


def _jacobian(
    function: str, x: Any, axis: Any, temperature: float, from_probs: bool, out: Any, logarithmic: bool
) -> Any:
    if backend := backend_for(x):
        return backend(function, x, axis=axis, out=out, temperature=temperature, from_probs=from_probs)
    problem = Problem(function, x, axis, last=True)
    beta = inverse_temperature(function, temperature, problem.dtype)
    source = problem.block()
    output = problem.output(out, (*problem.row_shape, problem.classes, problem.classes))
    work = source.size * max(1, problem.classes // 4)
    arguments: tuple[Any, ...] = (source, output.block, beta)
    kernel = entry("derivatives.log_softmax_jacobian")
    if not logarithmic:
        kernel = entry("derivatives.softmax_jacobian")
        from_probs = bool(from_probs)
        arguments += (True if from_probs else None, UNWEIGHTED[problem.dtype])
    run(kernel, problem.rows, work, problem.room(1), *arguments)
    if not logarithmic and problem.direct and beta is None:
        key = problem.dtype, from_probs
        remember(_JACOBIANS, key, kernel, 0, 0, NO_ROOM[problem.dtype], *arguments)
    return output.finish()


def _product(
    function: str,
    x: Any,
    name: str,
    vector: Any,
    axis: Any,
    temperature: float,
    out: Any,
    kernel: str,
    *options: Any,
) -> Any:
    if backend := backend_for(x, vector):
        probs = bool(options and options[0])
        return backend(function, x, vector, axis=axis, out=out, temperature=temperature, from_probs=probs)
    problem = Problem(function, x, axis)
    operand = problem.operand(name, vector)
    beta = inverse_temperature(function, temperature, problem.dtype)
    source = problem.block()
    second = problem.convert(operand)
    output = problem.output(out)
    compiled = entry(f"derivatives.{kernel}")
    if kernel == "softmax_product" and long_rows.is_long(problem):
        long_rows.long_product(source, second, output.block, beta, options[0])
        return output.finish()
    over = output.over(second)
    arguments: tuple[Any, ...] = (source, second, output.block, over, beta, *options)
    if options:
        arguments += (UNWEIGHTED[problem.dtype],)
    run(compiled, problem.rows, 2 * source.size, problem.room(2, over), *arguments)
    if options and problem.direct and beta is None:
        key = problem.dtype, bool(options[0])
        if key not in _PRODUCTS:
            _PRODUCTS[key] = compiled.codes(problem.dtype, 0, 0, NO_ROOM[problem.dtype], *arguments)
    return output.finish()


if TYPE_CHECKING:

    @overload
    def softmax_jacobian(
        x: NDArray[FloatT],
        axis: int = -1,
        *,
        temperature: float = 1.0,
        from_probs: bool = False,
        out: NDArray[FloatT] | None = None,
    ) -> NDArray[FloatT]: ...

    @overload
    def softmax_jacobian(
        x: ArrayT,
        axis: int | str = -1,
        *,
        temperature: float = 1.0,
        from_probs: bool = False,
        out: ArrayT | None = None,
    ) -> ArrayT: ...

    @overload
    def softmax_jacobian(
        x: Numbers,
        axis: int = -1,
        *,
        temperature: float = 1.0,
        from_probs: bool = False,
        out: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]: ...

    @overload
    def softmax_jacobian(
        x: Other, axis: int = -1, *, temperature: float = 1.0, from_probs: bool = False, out: Any = None
    ) -> Any: ...


def softmax_jacobian(
    x: Any, axis: int | str = LAST, *, temperature: float = UNTEMPERED, from_probs: bool = False, out: Any = None
) -> Any:
    r"""Jacobian of softmax at each row.

    .. math:: J_{ij} = \frac{\partial p_i}{\partial x_j} = \frac{1}{T} p_i (\delta_{ij} - p_j), \qquad
        J = \frac{1}{T} \bigl(\mathrm{diag}(p) - p p^\top\bigr)

    Parameters
    ----------
    x : array_like
        Logits, or probabilities if `from_probs`; at least one axis. Dtypes as for `softmax`.
    axis : int, default -1
        The axis of the classes.
    temperature : float, default 1.0
        T > 0.
    from_probs : bool, default False
        Whether `x` already holds probabilities, softmax(logits/T). They are used as they are.
    out : ndarray, optional
        Where to put the result: of its shape and dtype.

    Returns
    -------
    ndarray
        Shape of `x` without `axis`, followed by (K, K). Symmetric.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    See Also
    --------
    softmax_jvp, softmax_vjp : products with it in O(K).

    Notes
    -----
    The relative error of every entry is within 4 eps if the entry is a normal number, and the matrix is symmetric
    to the last bit. An entry of the diagonal is p times the sum of the other probabilities, which is accurate
    where p is close to 1. If probabilities are given, it is p (1 - p). A row whose softmax is NaN has a Jacobian
    of NaN.

    References
    ----------
    J. S. Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990,
    doi:10.1007/978-3-642-76153-9_28.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.softmax_jacobian(np.array([0.0, 0.0]))
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    """
    if axis is LAST and temperature is UNTEMPERED:
        small = _plain_jacobian(x, from_probs, out)
        if small is not None:
            return small
    return _jacobian("softmax_jacobian", x, axis, temperature, from_probs, out, logarithmic=False)


if TYPE_CHECKING:

    @overload
    def log_softmax_jacobian(
        x: NDArray[FloatT], axis: int = -1, *, temperature: float = 1.0, out: NDArray[FloatT] | None = None
    ) -> NDArray[FloatT]: ...

    @overload
    def log_softmax_jacobian(
        x: ArrayT, axis: int | str = -1, *, temperature: float = 1.0, out: ArrayT | None = None
    ) -> ArrayT: ...

    @overload
    def log_softmax_jacobian(
        x: Numbers, axis: int = -1, *, temperature: float = 1.0, out: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]: ...

    @overload
    def log_softmax_jacobian(x: Other, axis: int = -1, *, temperature: float = 1.0, out: Any = None) -> Any: ...


def log_softmax_jacobian(x: Any, axis: int | str = -1, *, temperature: float = 1.0, out: Any = None) -> Any:
    r"""Jacobian of log_softmax at each row.

    .. math:: J_{ij} = \frac{\partial \log p_i}{\partial x_j} = \frac{1}{T} (\delta_{ij} - p_j), \qquad
        J = \frac{1}{T} \bigl(I - 1 p^\top\bigr)

    Parameters
    ----------
    x : array_like
        Logits; at least one axis. Dtypes as for `softmax`.
    axis : int, default -1
        The axis of the classes.
    temperature : float, default 1.0
        T > 0.
    out : ndarray, optional
        Where to put the result: of its shape and dtype.

    Returns
    -------
    ndarray
        Shape of `x` without `axis`, followed by (K, K). Not symmetric: row i belongs to output i.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    See Also
    --------
    log_softmax_jvp, log_softmax_vjp : products with it in O(K).

    Notes
    -----
    The relative error of every entry is within 4 eps if the entry is a normal number, also that of 1 - p where p
    is close to 1.

    References
    ----------
    J. S. Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990,
    doi:10.1007/978-3-642-76153-9_28.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.log_softmax_jacobian(np.log(np.array([1.0, 3.0])))
    array([[ 0.75, -0.75],
           [-0.25,  0.25]])
    """
    return _jacobian("log_softmax_jacobian", x, axis, temperature, False, out, logarithmic=True)


if TYPE_CHECKING:

    @overload
    def softmax_jvp(
        x: NDArray[FloatT],
        tangent: NDArray[FloatT],
        axis: int = -1,
        *,
        temperature: float = 1.0,
        from_probs: bool = False,
        out: NDArray[FloatT] | None = None,
    ) -> NDArray[FloatT]: ...

    @overload
    def softmax_jvp(
        x: ArrayT,
        tangent: Arrays,
        axis: int | str = -1,
        *,
        temperature: float = 1.0,
        from_probs: bool = False,
        out: ArrayT | None = None,
    ) -> ArrayT: ...

    @overload
    def softmax_jvp(
        x: Arrays,
        tangent: Arrays,
        axis: int = -1,
        *,
        temperature: float = 1.0,
        from_probs: bool = False,
        out: Any = None,
    ) -> Any: ...


def softmax_jvp(
    x: Any,
    tangent: Any,
    axis: int | str = LAST,
    *,
    temperature: float = UNTEMPERED,
    from_probs: bool = False,
    out: Any = None,
) -> Any:
    r"""Jacobian-vector product of softmax: its derivative at each row in direction `tangent`.

    .. math:: (J v)_k = \frac{1}{T} p_k \Bigl(v_k - \sum_j p_j v_j\Bigr)

    Parameters
    ----------
    x : array_like
        Logits, or probabilities if `from_probs`; at least one axis. Dtypes as for `softmax`.
    tangent : array_like
        v, of the shape of `x`. A wider float dtype than that of `x` widens the result.
    axis : int, default -1
        The axis of the classes.
    temperature : float, default 1.0
        T > 0.
    from_probs : bool, default False
        Whether `x` already holds probabilities, softmax(logits/T), which saves one pass.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `x` or `tangent` itself.

    Returns
    -------
    ndarray
        J v, of the shape of `x`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`; ValueError if the shapes differ.

    See Also
    --------
    softmax_vjp, softmax_jacobian

    Notes
    -----
    Entry k is the sum of the terms p_k p_j (v_k - v_j)/T over j. Its error is within 4 eps times the sum of the
    absolute values of these terms, which is 4 ulp if they have one sign. This holds also if one class has almost
    all of the probability. If probabilities are given, the error is within 4 eps times p_k (\|v_k\| + sum_j p_j
    \|v_j\|)/T, because a p close to 1 does not determine 1 - p accurately.

    References
    ----------
    J. S. Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990,
    doi:10.1007/978-3-642-76153-9_28.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.softmax_jvp(np.array([0.0, 0.0]), np.array([1.0, 0.0]))
    array([ 0.25, -0.25])
    """
    if axis is LAST and temperature is UNTEMPERED:
        small = _plain_product(x, tangent, from_probs, out)
        if small is not None:
            return small
    flag = True if from_probs else None
    return _product("softmax_jvp", x, "tangent", tangent, axis, temperature, out, "softmax_product", flag)


if TYPE_CHECKING:

    @overload
    def softmax_vjp(
        x: NDArray[FloatT],
        cotangent: NDArray[FloatT],
        axis: int = -1,
        *,
        temperature: float = 1.0,
        from_probs: bool = False,
        out: NDArray[FloatT] | None = None,
    ) -> NDArray[FloatT]: ...

    @overload
    def softmax_vjp(
        x: ArrayT,
        cotangent: Arrays,
        axis: int | str = -1,
        *,
        temperature: float = 1.0,
        from_probs: bool = False,
        out: ArrayT | None = None,
    ) -> ArrayT: ...

    @overload
    def softmax_vjp(
        x: Arrays,
        cotangent: Arrays,
        axis: int = -1,
        *,
        temperature: float = 1.0,
        from_probs: bool = False,
        out: Any = None,
    ) -> Any: ...


def softmax_vjp(
    x: Any,
    cotangent: Any,
    axis: int | str = LAST,
    *,
    temperature: float = UNTEMPERED,
    from_probs: bool = False,
    out: Any = None,
) -> Any:
    r"""Vector-Jacobian product of softmax: backpropagation through it in O(K) per row.

    .. math:: \frac{\partial L}{\partial x_k} = \frac{1}{T} p_k \Bigl(g_k - \sum_j g_j p_j\Bigr),
        \qquad g_j = \frac{\partial L}{\partial p_j}

    The same map as `softmax_jvp`, because the Jacobian is symmetric.

    Parameters
    ----------
    x : array_like
        Logits, or probabilities if `from_probs`; at least one axis. Dtypes as for `softmax`.
    cotangent : array_like
        g, of the shape of `x`. A wider float dtype than that of `x` widens the result.
    axis : int, default -1
        The axis of the classes.
    temperature : float, default 1.0
        T > 0.
    from_probs : bool, default False
        Whether `x` already holds probabilities, softmax(logits/T), as after a forward pass. This saves one pass.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `x` or `cotangent` itself.

    Returns
    -------
    ndarray
        g^T J, of the shape of `x`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`; ValueError if the shapes differ.

    See Also
    --------
    softmax_jvp, softmax_jacobian

    Notes
    -----
    As accurate as `softmax_jvp`.

    References
    ----------
    J. S. Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990,
    doi:10.1007/978-3-642-76153-9_28.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> probs = fs.softmax(np.array([0.0, 0.0]))
    >>> fs.softmax_vjp(probs, np.array([1.0, 0.0]), from_probs=True)
    array([ 0.25, -0.25])
    """
    if axis is LAST and temperature is UNTEMPERED:
        small = _plain_product(x, cotangent, from_probs, out)
        if small is not None:
            return small
    flag = True if from_probs else None
    return _product("softmax_vjp", x, "cotangent", cotangent, axis, temperature, out, "softmax_product", flag)


if TYPE_CHECKING:

    @overload
    def log_softmax_jvp(
        x: NDArray[FloatT],
        tangent: NDArray[FloatT],
        axis: int = -1,
        *,
        temperature: float = 1.0,
        out: NDArray[FloatT] | None = None,
    ) -> NDArray[FloatT]: ...

    @overload
    def log_softmax_jvp(
        x: ArrayT, tangent: Arrays, axis: int | str = -1, *, temperature: float = 1.0, out: ArrayT | None = None
    ) -> ArrayT: ...

    @overload
    def log_softmax_jvp(
        x: Arrays, tangent: Arrays, axis: int = -1, *, temperature: float = 1.0, out: Any = None
    ) -> Any: ...


def log_softmax_jvp(
    x: Any, tangent: Any, axis: int | str = -1, *, temperature: float = 1.0, out: Any = None
) -> Any:
    r"""Jacobian-vector product of log_softmax.

    .. math:: (J v)_k = \frac{1}{T} \Bigl(v_k - \sum_j p_j v_j\Bigr)

    Parameters
    ----------
    x : array_like
        Logits; at least one axis. Dtypes as for `softmax`.
    tangent : array_like
        v, of the shape of `x`. A wider float dtype than that of `x` widens the result.
    axis : int, default -1
        The axis of the classes.
    temperature : float, default 1.0
        T > 0.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `x` or `tangent` itself.

    Returns
    -------
    ndarray
        J v, of the shape of `x`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`; ValueError if the shapes differ.

    See Also
    --------
    log_softmax_vjp, log_softmax_jacobian

    Notes
    -----
    Entry k is the sum of the terms p_j (v_k - v_j)/T over j. Its error is within 4 eps times the sum of the
    absolute values of these terms.

    References
    ----------
    J. S. Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990,
    doi:10.1007/978-3-642-76153-9_28.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.log_softmax_jvp(np.array([0.0, 0.0]), np.array([1.0, 0.0]))
    array([ 0.5, -0.5])
    """
    return _product("log_softmax_jvp", x, "tangent", tangent, axis, temperature, out, "log_softmax_jvp")


if TYPE_CHECKING:

    @overload
    def log_softmax_vjp(
        x: NDArray[FloatT],
        cotangent: NDArray[FloatT],
        axis: int = -1,
        *,
        temperature: float = 1.0,
        out: NDArray[FloatT] | None = None,
    ) -> NDArray[FloatT]: ...

    @overload
    def log_softmax_vjp(
        x: ArrayT, cotangent: Arrays, axis: int | str = -1, *, temperature: float = 1.0, out: ArrayT | None = None
    ) -> ArrayT: ...

    @overload
    def log_softmax_vjp(
        x: Arrays, cotangent: Arrays, axis: int = -1, *, temperature: float = 1.0, out: Any = None
    ) -> Any: ...


def log_softmax_vjp(
    x: Any, cotangent: Any, axis: int | str = -1, *, temperature: float = 1.0, out: Any = None
) -> Any:
    r"""Vector-Jacobian product of log_softmax.

    .. math:: \frac{\partial L}{\partial x_k} = \frac{1}{T} \Bigl(g_k - p_k \sum_j g_j\Bigr),
        \qquad g_j = \frac{\partial L}{\partial \log p_j}

    Parameters
    ----------
    x : array_like
        Logits; at least one axis. Dtypes as for `softmax`.
    cotangent : array_like
        g, of the shape of `x`. A wider float dtype than that of `x` widens the result.
    axis : int, default -1
        The axis of the classes.
    temperature : float, default 1.0
        T > 0.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `x` or `cotangent` itself.

    Returns
    -------
    ndarray
        g^T J, of the shape of `x`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`; ValueError if the shapes differ.

    See Also
    --------
    log_softmax_jvp, log_softmax_jacobian

    Notes
    -----
    Entry k is the sum of the terms (1 - p_k) g_k/T and -p_k g_j/T over j != k. Its error is within 4 eps times the
    sum of the absolute values of these terms, also where p_k is close to 1.

    References
    ----------
    J. S. Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990,
    doi:10.1007/978-3-642-76153-9_28.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.log_softmax_vjp(np.array([0.0, 0.0]), np.array([1.0, 0.0]))
    array([ 0.5, -0.5])
    """
    return _product("log_softmax_vjp", x, "cotangent", cotangent, axis, temperature, out, "log_softmax_vjp")
