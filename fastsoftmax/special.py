r"""Functions of ``scipy.special``, with SciPy's names, arguments and defaults.

To use them, replace ``from scipy.special import ...`` by ``from fastsoftmax.special import ...``. `softmax`,
`log_softmax` and `logsumexp` have the default ``axis=None``: all axes. The others are ufuncs with SciPy's dtypes.
SciPy's own tests of these functions pass with ours in their place.

Real float16, float32, float64, integers and bools are computed by the kernels. Weights, complex numbers and
longdouble are computed by NumPy, as SciPy does it. Masked arrays are a TypeError. SciPy is not imported.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np

from fastsoftmax.api import activations, ufuncs
from fastsoftmax.arrays.blocks import Axis, is_masked
from fastsoftmax.arrays.lazy import backend_for, exchange_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsoftmax._types import ArrayT, Axes, Dims, FloatT, Numbers, Other

__all__ = ["entr", "expit", "log_expit", "log_softmax", "logit", "logsumexp", "rel_entr", "softmax", "xlogy"]

# Ufuncs, made on first use.
entr: np.ufunc
expit: np.ufunc
log_expit: np.ufunc
logit: np.ufunc
rel_entr: np.ufunc
xlogy: np.ufunc


# --- ufuncs --------------------------------------------------------------------------------------------------


def _log_expit(x: Any) -> Any:
    return np.where(x < 0, x - np.log1p(np.exp(-np.abs(x))), -np.log1p(np.exp(-np.abs(x))))


def _xlogy(x: Any, y: Any) -> Any:
    return np.where((x == 0) & ~np.isnan(y), 0, x * np.log(y))


# For each ufunc: SciPy's dtypes that our loops compute, in SciPy's order, which decides the dtype for float16 and
# integers; the dtypes for which NumPy computes; and the formula by which it does.
_KINDS: dict[str, tuple[str, str, Callable[..., Any] | None]] = {
    "expit": ("df", "g", lambda x: 1 / (1 + np.exp(-x))),
    "logit": ("df", "g", lambda p: np.log(p / (1 - p))),
    "log_expit": ("df", "g", _log_expit),
    "xlogy": ("df", "DF", _xlogy),
    "entr": ("fd", "", None),
    "rel_entr": ("fd", "", None),
}


def _make(name: str) -> Any:
    """A ufunc of this module."""
    kinds, others, function = _KINDS[name]
    operands = 3 if name in ("xlogy", "rel_entr") else 2
    more = [ufuncs.numpy_loop(function, operands, np.dtype(kind)) for kind in others] if function else []
    return ufuncs.make(name, kinds, __name__, more)


if not TYPE_CHECKING:  # else a type checker would take every name for one of ours

    def __getattr__(name: str) -> Any:
        if name in _KINDS:
            return globals().setdefault(name, _make(name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_KINDS})


# --- along axes ----------------------------------------------------------------------------------------------


def _by_kernel(x: Any) -> bool:
    """Whether the kernels compute arrays of this dtype, or raise the error for it."""
    return is_masked(x) or (x if backend_for(x) else np.asarray(x)).dtype.char not in "gFDG"


if TYPE_CHECKING:

    @overload
    def softmax(x: NDArray[FloatT], axis: Axes = None) -> NDArray[FloatT]: ...

    @overload
    def softmax(x: ArrayT, axis: Dims = None) -> ArrayT: ...

    @overload
    def softmax(x: Numbers, axis: Axes = None) -> NDArray[np.float64]: ...

    @overload
    def softmax(x: NDArray[np.complexfloating[Any]] | Other, axis: Axes = None) -> Any: ...


def softmax(x: Any, axis: Axis = None) -> Any:
    r"""Softmax along axes, as `scipy.special.softmax`.

    .. math:: p_i = \frac{\exp(x_i)}{\sum_k \exp(x_k)}

    Parameters
    ----------
    x : array_like
        Of any shape and numeric dtype.
    axis : int, tuple of ints or None, default None
        The axes along which the results sum to 1; None for all.

    Returns
    -------
    ndarray or scalar
        Of the shape of `x`.

    See Also
    --------
    fastsoftmax.softmax : with `where`, `temperature` and `out`; the default axis is the last one.

    Examples
    --------
    >>> from fastsoftmax.special import softmax
    >>> softmax([[0.0, 0.0], [0.0, 0.0]])
    array([[0.25, 0.25],
           [0.25, 0.25]])
    """
    if backend := exchange_for(x):
        return backend("special.softmax", x, axis=axis)
    if _by_kernel(x):
        return activations.softmax(x, axis)
    x, axes = np.asarray(x), cast(Any, axis)  # NumPy has messages for names
    terms = np.exp(x - np.max(x, axis=axes, keepdims=True))
    return terms / np.sum(terms, axis=axes, keepdims=True)


if TYPE_CHECKING:

    @overload
    def log_softmax(x: NDArray[FloatT], axis: Axes = None) -> NDArray[FloatT]: ...

    @overload
    def log_softmax(x: ArrayT, axis: Dims = None) -> ArrayT: ...

    @overload
    def log_softmax(x: Numbers, axis: Axes = None) -> NDArray[np.float64]: ...

    @overload
    def log_softmax(x: NDArray[np.complexfloating[Any]] | Other, axis: Axes = None) -> Any: ...


def log_softmax(x: Any, axis: Axis = None) -> Any:
    r"""Logarithm of the softmax, as `scipy.special.log_softmax`.

    .. math:: \log p_i = x_i - \log \sum_k \exp(x_k)

    Parameters
    ----------
    x : array_like
        Of any shape and numeric dtype.
    axis : int, tuple of ints or None, default None
        The axes of the classes; None for all.

    Returns
    -------
    ndarray or scalar
        Of the shape of `x`.

    See Also
    --------
    fastsoftmax.log_softmax : with `where`, `temperature` and `out`; the default axis is the last one.

    Examples
    --------
    >>> from fastsoftmax.special import log_softmax
    >>> log_softmax([1000.0, 1.0])
    array([   0., -999.])
    """
    if backend := exchange_for(x):
        return backend("special.log_softmax", x, axis=axis)
    if _by_kernel(x):
        return activations.log_softmax(x, axis)
    x, axes = np.asarray(x), cast(Any, axis)  # NumPy has messages for names
    greatest = np.max(x, axis=axes, keepdims=True)
    shifted = x - np.where(np.isfinite(greatest), greatest, 0)
    with np.errstate(divide="ignore"):
        return shifted - np.log(np.sum(np.exp(shifted), axis=axes, keepdims=True))


def logsumexp(a: Any, axis: Axis = None, b: Any = None, keepdims: bool = False, return_sign: bool = False) -> Any:
    r"""Logarithm of a sum of exponentials, as `scipy.special.logsumexp`.

    .. math:: \log \sum_k b_k \exp(a_k)

    Parameters
    ----------
    a : array_like
        Of any shape and numeric dtype.
    axis : int, tuple of ints or None, default None
        The axes that are summed over; None for all.
    b : array_like, optional
        Weights, broadcast with `a`. They may be negative. Where a weight is 0, the value of `a` has no influence.
    keepdims : bool, default False
        Whether the axes that are summed over stay, with length 1.
    return_sign : bool, default False
        Whether to return the logarithm of the absolute value of the sum, and the sign of the sum.

    Returns
    -------
    result : ndarray or scalar
        The logarithm. Without `return_sign`, that of a negative sum of real numbers is nan.
    sign : ndarray or scalar
        With `return_sign`: 1, 0 or -1, or the phase of a complex sum.

    See Also
    --------
    fastsoftmax.logsumexp : with `where` and `out`; the default axis is the last one.

    Notes
    -----
    The kernels compute calls without weights, signs and complex numbers. NumPy computes the others by SciPy's
    algorithm: it separates the greatest terms from the others, and takes log1p of the sum of the others.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, Accurately computing the log-sum-exp and softmax functions,
    IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> from fastsoftmax.special import logsumexp
    >>> float(logsumexp([[1000.0, 1000.0]]))
    1000.6931471805599
    >>> value, sign = logsumexp([1.0, 2.0], b=[1, -1], return_sign=True)
    >>> round(float(value), 12), float(sign)
    (1.541324854613, -1.0)
    """
    if backend := exchange_for(a, b):
        options = {"axis": axis, "b": b, "keepdims": keepdims, "return_sign": return_sign}
        return backend("special.logsumexp", a, **options)
    if b is None and not return_sign and _by_kernel(a):
        return activations.logsumexp(a, axis, keepdims=bool(keepdims))
    for name, value in (("a", a), ("b", b)):
        if is_masked(value):
            raise TypeError(
                f"logsumexp: {name} is a masked array; pass its data, and zero weights where it is masked"
            )
    dtype = np.result_type(
        *(value if np.isscalar(value) else np.asarray(value) for value in (a, b) if value is not None)
    )
    if dtype.kind not in "fc":
        dtype = np.result_type(dtype, np.float64)
    terms = np.atleast_1d(np.asarray(a, dtype))
    weights = None if b is None else np.asarray(b, dtype)
    if weights is not None:
        terms, weights = np.broadcast_arrays(terms, np.atleast_1d(weights))
    axes = tuple(range(terms.ndim)) if axis is None else cast(Any, axis)
    with np.errstate(all="ignore"):
        if terms.size:
            value, sign = _weighted(terms, weights, axes, return_sign)
        else:
            value = np.sum(terms, axis=axes, keepdims=True) - np.inf
            sign = _sign(value)
    if dtype.kind == "c":
        if return_sign:
            sign = sign.real + 1j * _wrapped(sign.imag)
        else:
            value = value.real + 1j * _wrapped(value.imag)
    if not keepdims:
        value, sign = np.squeeze(value, axis=axes), np.squeeze(sign, axis=axes)
    return (value[()], sign[()]) if return_sign else value[()]


def _weighted(a: Any, b: Any, axes: Any, return_sign: bool) -> tuple[Any, Any]:
    """SciPy's algorithm (scipy/special/_logsumexp.py): logarithm and sign of the sum, with all dimensions."""
    # Where the result is infinite or nan, it is that of the textbook formula.
    plain = np.sum(np.exp(a) if b is None else b * np.exp(a), axis=axes, keepdims=True)
    plain_sign = _sign(plain)
    plain = np.log(np.abs(plain) if return_sign else plain)
    if b is not None:
        a = np.where(b == 0, -np.inf, a)
    greatest = np.max(a.real, axis=axes, keepdims=True)
    chosen = a.real == greatest
    if a.dtype.kind == "c":  # any one of the terms with the greatest real part
        place = np.where(chosen, np.arange(a.size).reshape(a.shape), -1)
        chosen = place == np.max(place, axis=axes, keepdims=True)
        greatest = np.sum(np.where(chosen, a, 0), axis=axes, keepdims=True, dtype=a.dtype)
    weight = chosen.astype(a.dtype) if b is None else b * chosen
    top = np.sum(weight, axis=axes, keepdims=True, dtype=a.dtype)
    terms = np.exp(np.where(chosen, -np.inf, a) - greatest)
    others = np.sum(terms if b is None else b * terms, axis=axes, keepdims=True, dtype=a.dtype)
    others = np.where(others == 0, others, others / top)
    sign = _sign(others + 1) * _sign(top)
    if a.dtype.kind == "f":  # the logarithms need positive arguments
        others, top = np.where(others < -1, -others - 2, others), np.abs(top)
    else:
        sign = sign * np.exp(1j * greatest.imag)
    value = np.log1p(others) + np.log(top) + greatest
    if return_sign:
        value = value.real
    elif a.dtype.kind == "f":
        value = np.where(sign < 0, np.nan, value)
    finite = np.isfinite(value)
    return np.where(finite, value, plain).astype(value.dtype), np.where(finite, sign, plain_sign).astype(
        sign.dtype
    )


def _sign(x: Any) -> Any:
    """x / abs(x), and 0 for 0. `np.sign` of complex numbers was different before NumPy 2."""
    return np.sign(x) if x.dtype.kind == "f" else np.where(x == 0, 0, x / np.abs(x))


def _wrapped(angle: Any) -> Any:
    """The equal angle in (-pi, pi]; an angle inside (-pi, pi) is returned unchanged."""
    return np.where(np.abs(angle) < np.pi, angle, -((-angle + np.pi) % (2 * np.pi) - np.pi))
