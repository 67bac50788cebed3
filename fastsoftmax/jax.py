r"""Functions of ``jax.nn`` on arrays in the memory of the processor, inside of what JAX transforms and compiles.

``jit``, ``grad``, ``jvp`` and ``vmap`` take them, in any order. They have the kernels of this library, and can be
differentiated twice, in both modes, by the products with Jacobians and Hessians, which keep their digits;
``softmax``, ``log_softmax``, ``logsumexp`` and ``segment_softmax`` any number of times. Derivatives that there are
none of are errors. They need the extra ``jax``.

XLA calls this library where it is, by its foreign function interface (``jax.ffi``): arrays are read and written in
XLA's own memory. Errors that only the numbers tell, as a label out of range, become a ``JaxRuntimeError`` with the
message of this library. Other platforms than the processor are an error of JAX when a function is compiled.
"""

import ctypes
import json
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np

from fastsoftmax.api import activations, derivatives, divergences, linear, losses, segments
from fastsoftmax.arrays.blocks import any_axes, inverse_temperature, one_axis
from fastsoftmax.arrays.linear import WRT, LinearGradients, check_targets, logits_of
from fastsoftmax.arrays.linear_hessian import joint_product, row_products
from fastsoftmax.arrays.options import LossOptions, reversal
from fastsoftmax.runtime.lifetime import keep

try:
    import jax
    import jax.numpy as jnp
    import ml_dtypes
    from jax import Array
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir
except ImportError as error:
    raise ImportError("fastsoftmax.jax needs JAX, which pip install 'fastsoftmax[jax]' installs") from error

__all__ = [
    "cross_entropy",
    "kl_divergence",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "segment_softmax",
    "softmax",
]


# --- the foreign function interface -------------------------------------------------------------------------

# The structures of jaxlib/include/xla/ffi/api/c_api.h, as far as they are read. New fields come at their ends.


class _Extension(ctypes.Structure):
    """What a call asks for instead of the function: the version of the interface that it is made for."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("metadata", ctypes.c_void_p),
    )


class _Part(ctypes.Structure):
    """What most of them begin with."""

    _fields_: ClassVar[Sequence[Any]] = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.POINTER(_Extension)),
    )


class _Version(_Part):
    _fields_ = (
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    )


class _Metadata(ctypes.Structure):
    _fields_ = (("struct_size", ctypes.c_size_t), ("version", _Version))


class _Failure(_Part):
    _fields_ = (
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    )


class _Interface(_Part):
    _fields_ = (
        ("version", _Version),
        ("internal", ctypes.c_void_p),
        ("create_error", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Failure))),
    )


class _Buffer(_Part):
    _fields_ = (
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    )


class _Buffers(_Part):
    """Arguments or results."""

    _fields_ = (
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("items", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    )


class _Text(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Attributes(_Part):
    _fields_ = (
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("names", ctypes.c_void_p),
        ("items", ctypes.POINTER(ctypes.POINTER(_Text))),
    )


class _Frame(_Part):
    """One call."""

    _fields_ = (
        ("interface", ctypes.POINTER(_Interface)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("operands", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    )


_METADATA = 1  # the type of that extension
_MAJOR = 0  # the version of these structures
_INVALID_ARGUMENT, _OUT_OF_RANGE = 3, 11
_DTYPES = {
    number: np.dtype(kind)
    for number, kind in (
        *enumerate(
            (np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64), 1
        ),
        *enumerate((np.float16, np.float32, np.float64), 10),
        (16, ml_dtypes.bfloat16),
    )
}


def _arrays(buffers: _Buffers) -> list[Any]:
    """NumPy's arrays of the memory of the buffers."""
    found = []
    for item in buffers.items[: buffers.size]:
        one = item.contents
        dtype, shape = _DTYPES[one.dtype], tuple(one.dims[: one.rank])
        size = dtype.itemsize * math.prod(shape)
        memory = (ctypes.c_char * size).from_address(one.data) if size else bytearray()
        found.append(np.ndarray(shape, dtype, memory))
    return found


@cache
def _call_of(text: bytes) -> Callable[..., Any]:
    """The function that an attribute describes."""
    name, options = json.loads(text)
    return partial(_OPERATORS[name].compute, **options)


def _handle(address: int) -> int | None:
    """Compute the call at this address for XLA, which owns all memory; returns the address of an error or None."""
    frame = _Frame.from_address(address)
    version = frame.interface.contents.version
    if frame.extension and frame.extension.contents.type == _METADATA:
        metadata = _Metadata.from_address(frame.extension.contents.metadata)
        metadata.version.major, metadata.version.minor = _MAJOR, version.minor
        return None
    try:
        if version.major != _MAJOR:
            raise RuntimeError(f"fastsoftmax.jax: XLA's interface has version {version.major}, expected {_MAJOR}")
        text = frame.attributes.items[0].contents
        compute = _call_of(ctypes.string_at(text.data, text.size))
        results = _arrays(frame.results)
        found = compute(*_arrays(frame.operands), out=results[-1])
        for target, one in zip(results, found if isinstance(found, tuple) else (found,), strict=True):
            if one is not target:
                np.copyto(target, one)
    except BaseException as error:  # nothing may leave a callback from C
        code = _OUT_OF_RANGE if isinstance(error, IndexError) else _INVALID_ARGUMENT
        message = f"{type(error).__name__}: {error}".encode()
        failure = _Failure(ctypes.sizeof(_Failure), None, message, code)
        created: int | None = frame.interface.contents.create_error(ctypes.byref(failure))
        return created
    return None


_TARGET = "fastsoftmax"
_handler = keep(ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(_handle))
jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(_handler), platform="cpu")


# --- operators ----------------------------------------------------------------------------------------------


class _Operator:
    """An operator of JAX: a function of this library for rows, each for itself, with derivatives and batches.

    Parameters
    ----------
    name : str
        Its name.
    compute
        Called with NumPy arrays, `out` for the last result, and the options: numbers, strings and None.
    rows : int
        How many results before the last one have one number for each row. The last one is like the first operand.
    only_rows : bool
        Whether it has one number for each row instead.
    """

    def __init__(self, name: str, compute: Callable[..., Any], rows: int = 0, only_rows: bool = False) -> None:
        self.name, self.compute, self.rows, self.only_rows = name, compute, rows, only_rows
        self.primitive = Primitive(f"{_TARGET}_{name}")
        self.primitive.multiple_results = True
        compiled = cache(lambda options: jax.jit(partial(self.primitive.bind, **dict(options))))
        self.primitive.def_impl(lambda *args, **options: compiled(tuple(options.items()))(*args))
        self.primitive.def_abstract_eval(self._results)
        mlir.register_lowering(self.primitive, self._lower, platform="cpu")
        batching.primitive_batchers[self.primitive] = self._batched

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The result, or the tuple of several."""
        found = self.primitive.bind(*args, **options)
        return found[0] if len(found) == 1 else tuple(found)

    def _results(self, x: Any, *others: Any, axis: int, **options: Any) -> list[Any]:
        """Shapes and dtypes of the results."""
        shape = list(x.shape)
        del shape[axis]
        kinds = (shape,) * self.rows + (shape if self.only_rows else x.shape,)
        return [jax.core.ShapedArray(tuple(kind), x.dtype) for kind in kinds]

    def _lower(self, ctx: Any, *operands: Any, **options: Any) -> Any:
        # Without those that change nothing, because small calls are shorter then.
        defaults = {"axis": -1, **LossOptions._field_defaults}
        given = {key: value for key, value in options.items() if key not in defaults or value != defaults[key]}
        return jax.ffi.ffi_lowering(_TARGET)(ctx, *operands, call=json.dumps([self.name, given]))

    def _batched(self, args: Sequence[Any], dims: Sequence[Any], **options: Any) -> Any:
        """The call for all elements at once: axes are counted from the end, and those of batches come first."""
        size = next(one.shape[dim] for one, dim in zip(args, dims, strict=True) if dim is not None)
        moved = [
            jnp.broadcast_to(one, (size, *one.shape)) if dim is None else jnp.moveaxis(one, dim, 0)
            for one, dim in zip(args, dims, strict=True)
        ]
        found = self.primitive.bind(*moved, **options)
        return found, (0,) * len(found)

    def differentiable(self, rule: Callable[..., Any]) -> None:
        """Set the derivative: ``rule(args, tangents, **options)``, with None for tangents that are zero.

        It returns the results and their tangents, which are linear in those of the arguments. They consist of what
        JAX transposes: its own functions, and operators that are `linear`.
        """

        def jvp(primals: Any, tangents: Any, **options: Any) -> Any:
            given = [
                None if isinstance(one, ad.Zero) or one.dtype == jax.dtypes.float0 else one for one in tangents
            ]
            results, along = rule(primals, given, **options)
            return (list(results), list(along)) if isinstance(results, tuple) else ([results], [along])

        ad.primitive_jvps[self.primitive] = jvp

    def linear(self, transposed: "_Operator", rule: Callable[..., Any]) -> None:
        """Set the derivative of an operator with one result, which is linear in its last operand.

        `transposed` is the operator that is transposed to it. ``rule(args, tangents, **options)`` is the part of
        the derivative that comes from the other operands, None if all tangents are.
        """

        def derivative(args: Any, tangents: Any, **options: Any) -> Any:
            found = None if all(one is None for one in tangents[:-1]) else rule(args, tangents[:-1], **options)
            if tangents[-1] is not None:
                straight = self(*args[:-1], tangents[-1], **options)
                found = straight if found is None else straight + found
            return self(*args, **options), found

        def transpose(cotangents: Any, *args: Any, **options: Any) -> Any:
            (cotangent,) = cotangents
            if isinstance(cotangent, ad.Zero):
                return [None] * len(args)
            return [*[None] * (len(args) - 1), transposed(*args[:-1], cotangent, **options)]

        self.differentiable(derivative)
        ad.primitive_transposes[self.primitive] = transpose


class _Whole(_Operator):
    """An operator whose results depend on all numbers of its operands: batches call it once for each element.

    ``like(*operands, **options)`` are the shapes and dtypes of the results.
    """

    def __init__(self, name: str, compute: Callable[..., Any], like: Callable[..., Any]) -> None:
        super().__init__(name, compute)
        self.like = like

    def _results(self, *operands: Any, **options: Any) -> list[Any]:
        return [jax.core.ShapedArray(shape, dtype) for shape, dtype in self.like(*operands, **options)]

    def _batched(self, args: Sequence[Any], dims: Sequence[Any], **options: Any) -> Any:
        several = [jnp.moveaxis(one, dim, 0) for one, dim in zip(args, dims, strict=True) if dim is not None]

        def one_call(elements: Sequence[Any]) -> Any:
            rest = iter(elements)
            given = [one if dim is None else next(rest) for one, dim in zip(args, dims, strict=True)]
            return self.primitive.bind(*given, **options)

        found = jax.lax.map(one_call, several)
        return found, (0,) * len(found)


_OPERATORS: dict[str, _Operator] = {}


def _operator(name: str, compute: Callable[..., Any], **kinds: Any) -> _Operator:
    _OPERATORS[name] = operator = (_Whole if "like" in kinds else _Operator)(name, compute, **kinds)
    return operator


def _twice_only(args: Any, tangents: Any, **options: Any) -> Any:
    """The derivative of a second derivative: an error."""
    raise NotImplementedError("fastsoftmax.jax: losses can be differentiated twice, not three times")


def _no_targets(tangents: Sequence[Any]) -> None:
    """An error if targets have a tangent: there is no derivative with respect to them."""
    if any(one is not None for one in tangents):
        raise NotImplementedError("fastsoftmax.jax: cross_entropy has no derivative with respect to its targets")


def _sums(values: Any, axis: int) -> Any:
    """The sum of each row, with the axis."""
    return jnp.sum(values, axis, keepdims=True)


# --- softmax, log_softmax, logsumexp ------------------------------------------------------------------------

_softmax = _operator("softmax", activations.softmax)
_product = _operator("softmax_product", partial(derivatives.softmax_jvp, from_probs=True))
_log_softmax = _operator("log_softmax", activations.log_softmax)
_log_jvp = _operator("log_softmax_jvp", derivatives.log_softmax_jvp)
_log_vjp = _operator("log_softmax_vjp", derivatives.log_softmax_vjp)
_logsumexp = _operator("logsumexp", activations.logsumexp, only_rows=True)


def _with_probs(args: Any, tangents: Any, *, axis: int, temperature: float) -> Any:
    # y_k = p_k (v_k - s)/T with s = sum_j p_j v_j
    (probs, vector), (along,) = args, tangents
    with_factor = along * (vector - _sums(probs * vector, axis))
    return (with_factor - probs * _sums(along * vector, axis)) / temperature


def _log_jvp_with_x(args: Any, tangents: Any, *, axis: int, temperature: float) -> Any:
    # y_k = (v_k - sum_j p_j v_j)/T
    (x, vector), (along,) = args, tangents
    options = {"axis": axis, "temperature": temperature}
    moved = _product(_softmax(x, **options), along, **options)
    return jnp.broadcast_to(-_sums(moved * vector, axis) / temperature, x.shape)


def _log_vjp_with_x(args: Any, tangents: Any, *, axis: int, temperature: float) -> Any:
    # y_k = (g_k - p_k sum_j g_j)/T
    (x, cotangent), (along,) = args, tangents
    options = {"axis": axis, "temperature": temperature}
    return -_product(_softmax(x, **options), along, **options) * _sums(cotangent, axis) / temperature


def _softmax_tangent(args: Any, tangents: Any, **options: Any) -> Any:
    probs = _softmax(*args, **options)
    return probs, _product(probs, *tangents, **options)


def _log_softmax_tangent(args: Any, tangents: Any, **options: Any) -> Any:
    return _log_softmax(*args, **options), _log_jvp(*args, *tangents, **options)


def _logsumexp_tangent(args: Any, tangents: Any, *, axis: int) -> Any:
    probs = _softmax(*args, axis=axis, temperature=1.0)
    return _logsumexp(*args, axis=axis), jnp.sum(probs * tangents[0], axis)


_softmax.differentiable(_softmax_tangent)
_product.linear(_product, _with_probs)
_log_softmax.differentiable(_log_softmax_tangent)
_log_jvp.linear(_log_vjp, _log_jvp_with_x)
_log_vjp.linear(_log_jvp, _log_vjp_with_x)
_logsumexp.differentiable(_logsumexp_tangent)


# --- cross_entropy ------------------------------------------------------------------------------------------


def _compute_rows(function: Callable[..., Any], *arrays: Any, out: Any, **options: Any) -> Any:
    """The losses of rows, of functions without `out`."""
    return function(*arrays, reduction="none", **options)


_loss = _operator("cross_entropy", partial(_compute_rows, losses.cross_entropy), only_rows=True)
_slope = _operator("cross_entropy_with_grad", partial(losses.cross_entropy_with_grad, reduction="none"), rows=1)
_hvp = _operator("cross_entropy_hvp", partial(losses.cross_entropy_hvp, reduction="sum"))


def _loss_tangent(args: Any, tangents: Any, *, axis: int, **options: Any) -> Any:
    _no_targets(tangents[1:])
    rows, slope = _slope(*args, axis=axis, **options)
    return rows, jnp.sum(slope * tangents[0], axis)


def _slope_tangent(args: Any, tangents: Any, *, axis: int, **options: Any) -> Any:
    results, along = _slope(*args, axis=axis, **options), tangents[0]
    _no_targets(tangents[1:])
    return results, (jnp.sum(results[1] * along, axis), _hvp(*args, along, axis=axis, **options))


_loss.differentiable(_loss_tangent)
_slope.differentiable(_slope_tangent)
_hvp.linear(_hvp, _twice_only)


# --- kl_divergence ------------------------------------------------------------------------------------------

_kl = _operator("kl_divergence", partial(_compute_rows, divergences.kl_divergence), only_rows=True)
_kl_slope = _operator(
    "kl_divergence_with_grad", partial(divergences.kl_divergence_with_grad, reduction="none"), rows=1
)


def _kl_tangent(args: Any, tangents: Any, *, axis: int, reverse: bool, **options: Any) -> Any:
    """The arrays change their parts if `reverse` does."""
    found: Any = 0
    for (first, second), along, kind in ((args, tangents[0], reverse), (args[::-1], tangents[1], not reverse)):
        if along is not None:
            rows, slope = _kl_slope(first, second, axis=axis, reverse=kind, **options)
            found = found + jnp.sum(slope * along, axis)
    return rows, found


def _kl_slope_tangent(args: Any, tangents: Any, *, axis: int, temperature: float, reverse: bool) -> Any:
    options: dict[str, Any] = {"axis": axis, "temperature": temperature}

    def slope(x: Any, y: Any) -> Any:
        probs = _softmax(x, **options)
        if reverse:
            gap = jnp.where(probs == 0, 0, (x - y) / temperature)
            return _product(probs, gap, **options)
        return (probs - _softmax(y, **options)) / temperature

    along = [
        jnp.zeros_like(one) if tangent is None else tangent for one, tangent in zip(args, tangents, strict=True)
    ]
    results = _kl_slope(*args, reverse=reverse, **options)
    straight = jnp.sum(results[1] * along[0], axis)
    if tangents[1] is not None:
        straight = straight + _kl_tangent(args, (None, tangents[1]), reverse=reverse, **options)[1]
    return results, (straight, jax.jvp(slope, tuple(args), tuple(along))[1])


_kl.differentiable(_kl_tangent)
_kl_slope.differentiable(_kl_slope_tangent)


# --- segment_softmax ----------------------------------------------------------------------------------------


def _like_first(x: Any, *others: Any) -> list[Any]:
    return [(x.shape, x.dtype)]


_segments = _operator("segment_softmax", segments.segment_softmax, like=_like_first)
_segment_product = _operator("segment_softmax_vjp", segments.segment_softmax_vjp, like=_like_first)


def _segment_sums(values: Any, indptr: Any) -> Any:
    """The sum of each segment, as often as the segment is long."""
    index = jnp.searchsorted(indptr, jnp.arange(len(values)), side="right") - 1
    return jax.ops.segment_sum(values, index, len(indptr) - 1, indices_are_sorted=True)[index]


def _segments_tangent(args: Any, tangents: Any) -> Any:
    x, indptr = args
    return _segments(x, indptr), _segment_product(x, indptr, tangents[0])


def _segment_product_with_x(args: Any, tangents: Any) -> Any:
    # y_k = p_k (v_k - sum_j p_j v_j)
    x, indptr, vector = args
    probs, moved = _segments(x, indptr), _segment_product(x, indptr, tangents[0])
    straight = moved * (vector - _segment_sums(probs * vector, indptr))
    return straight - probs * _segment_sums(moved * vector, indptr)


_segments.differentiable(_segments_tangent)
_segment_product.linear(_segment_product, _segment_product_with_x)


# --- linear_cross_entropy -----------------------------------------------------------------------------------

# The operands are features, weight, targets, the bias if `biased`, and then what the operator has beside them:
# tangents of the arrays that `along` names, or numbers of the rows. There are gradients of what `wrt` names.


def _names(biased: bool) -> tuple[str, ...]:
    return WRT if biased else WRT[:2]


def _arrays_of(args: Sequence[Any], biased: bool) -> tuple[dict[str, Any], Any, Sequence[Any]]:
    """Features, weight and bias by their names, the targets, and the other operands."""
    x, w, targets, *rest = args
    named = {"features": x, "weight": w, **({"bias": rest[0]} if biased else {})}
    return named, targets, rest[biased:]


def _in_memory(named: dict[str, Any], targets: Any) -> tuple[Any, Any, Any, Any]:
    """The operands in the order of this library's functions."""
    return named["features"], named["weight"], targets, named.get("bias")


def _gradients(found: LinearGradients) -> tuple[Any, ...]:
    """Those that there are."""
    return tuple(one for one in found if one is not None)


def _compute_linear(*args: Any, out: Any, biased: bool, **options: Any) -> Any:
    named, targets, _ = _arrays_of(args, biased)
    return linear.linear_cross_entropy(*_in_memory(named, targets), **options)


def _compute_linear_with_grad(*args: Any, out: Any, biased: bool, wrt: Any, **options: Any) -> Any:
    named, targets, _ = _arrays_of(args, biased)
    loss, found = linear.linear_cross_entropy_with_grad(*_in_memory(named, targets), wrt=wrt, **options)
    return loss, *_gradients(found)


def _compute_linear_vjp(*args: Any, out: Any, biased: bool, wrt: Any, **options: Any) -> Any:
    """The sum of the gradients of the rows times their cotangents."""
    named, targets, (cotangent,) = _arrays_of(args, biased)
    options = {**options, "sample_weight": cotangent, "reduction": "sum"}
    _, found = linear.linear_cross_entropy_with_grad(*_in_memory(named, targets), wrt=wrt, **options)
    return _gradients(found)


def _tangents(along: Sequence[str], given: Sequence[Any]) -> LinearGradients:
    """The tangents by their names, None for the others."""
    found = dict(zip(along, given, strict=True))
    return LinearGradients(*[found.get(name) for name in WRT])


def _compute_linear_jvp(*args: Any, out: Any, biased: bool, along: Any, **options: Any) -> Any:
    """The derivative of the loss of each row along the tangents."""
    named, targets, given = _arrays_of(args, biased)
    found = LossOptions(**{**options, "reduction": "none"})
    return row_products("linear_cross_entropy", *_in_memory(named, targets), _tangents(along, given), found)


def _compute_linear_hvp(
    *args: Any, out: Any, biased: bool, along: Any, wrt: Any, weighted: bool, **options: Any
) -> Any:
    """The product of the Hessian with the tangents; the rows are `weighted` by what comes before these."""
    named, targets, given = _arrays_of(args, biased)
    if weighted:
        options, given = {**options, "sample_weight": given[0]}, given[1:]
    arrays, found = _in_memory(named, targets), LossOptions(**options)
    return _gradients(joint_product("linear_cross_entropy_hvp", *arrays, _tangents(along, given), found, wrt))


def _like_linear_loss(x: Any, *others: Any, reduction: str = "none", **options: Any) -> list[Any]:
    return [(x.shape[:-1] if reduction == "none" else (), x.dtype)]


def _like_gradients(*args: Any, biased: bool, wrt: Any, **options: Any) -> list[Any]:
    named, _, _ = _arrays_of(args, biased)
    return [(named[name].shape, named[name].dtype) for name in wrt]


_linear = _operator("linear_cross_entropy", _compute_linear, like=_like_linear_loss)
_linear_with_grad = _operator(
    "linear_cross_entropy_with_grad",
    _compute_linear_with_grad,
    like=lambda *args, **options: _like_linear_loss(*args, **options) + _like_gradients(*args, **options),
)
_linear_vjp = _operator("linear_cross_entropy_vjp", _compute_linear_vjp, like=_like_gradients)
_linear_jvp = _operator("linear_cross_entropy_jvp", _compute_linear_jvp, like=_like_linear_loss)
_linear_hvp = _operator("linear_cross_entropy_hvp", _compute_linear_hvp, like=_like_gradients)


def _moving(tangents: Sequence[Any], biased: bool) -> dict[str, Any]:
    """The tangents of features, weight and bias that are not zero, by their names."""
    named, _, _ = _arrays_of(tangents, biased)
    return {name: one for name, one in named.items() if one is not None}


def _along(gradients: dict[str, Any], moving: dict[str, Any]) -> Any:
    """The derivative of the loss along the tangents."""
    return sum(jnp.vdot(gradients[name], one) for name, one in moving.items())


def _linear_tangent(args: Any, tangents: Any, *, biased: bool, reduction: str, **options: Any) -> Any:
    moving = _moving(tangents, biased)
    along = tuple(moving)
    if reduction == "none":
        rows = _linear(*args, biased=biased, reduction=reduction, **options)
        return rows, _linear_jvp(*args, *moving.values(), biased=biased, along=along, **options)
    loss, *gradients = _linear_with_grad(*args, biased=biased, reduction=reduction, wrt=along, **options)
    return loss, _along(dict(zip(along, gradients, strict=True)), moving)


def _linear_with_grad_tangent(
    args: Any, tangents: Any, *, biased: bool, wrt: tuple[str, ...], **options: Any
) -> Any:
    moving = _moving(tangents, biased)
    every = tuple(name for name in _names(biased) if name in wrt or name in moving)
    loss, *found = _linear_with_grad(*args, biased=biased, wrt=every, **options)
    gradients = dict(zip(every, found, strict=True))
    more = {"biased": biased, "along": tuple(moving), "wrt": wrt, "weighted": False}
    curved = _several(_linear_hvp(*args, *moving.values(), **more, **options))
    return (loss, *[gradients[name] for name in wrt]), (_along(gradients, moving), *curved)


def _several(found: Any) -> tuple[Any, ...]:
    """The results of an operator, however many they are."""
    return found if isinstance(found, tuple) else (found,)


def _linear_vjp_tangent(args: Any, tangents: Any, *, biased: bool, wrt: tuple[str, ...], **options: Any) -> Any:
    *arrays, cotangent = args
    moving, options = _moving(tangents[:-1], biased), {"biased": biased, "wrt": wrt, **options}
    found = _several(_linear_vjp(*args, **options))
    along = [jnp.zeros_like(one) for one in found]
    if moving:
        more = {"along": tuple(moving), "weighted": True, "reduction": "sum"}
        along = list(_several(_linear_hvp(*arrays, cotangent, *moving.values(), **more, **options)))
    if tangents[-1] is not None:
        straight = _several(_linear_vjp(*arrays, tangents[-1], **options))
        along = [one + other for one, other in zip(straight, along, strict=True)]
    return found, tuple(along)


def _linear_in(operator: _Operator, error: Callable[..., Any]) -> Callable[..., Any]:
    """The derivative of an operator that is linear in its tangents: `error` if the other operands move."""

    def rule(args: Any, tangents: Any, *, along: tuple[str, ...], **options: Any) -> Any:
        start = len(args) - len(along)
        if any(one is not None for one in tangents[:start]):
            error()
        moved = [
            jnp.zeros_like(one) if tangent is None else tangent
            for one, tangent in zip(args[start:], tangents[start:], strict=True)
        ]
        options = {"along": along, **options}
        return operator(*args, **options), operator(*args[:start], *moved, **options)

    return rule


def _no_second_along_rows() -> None:
    raise NotImplementedError(
        "fastsoftmax.jax: linear_cross_entropy has no derivatives in forward mode of derivatives in forward mode "
        'through the losses of rows (reduction="none"); use reduction "mean" or "sum"'
    )


def _transpose_linear_jvp(cotangents: Any, *args: Any, along: tuple[str, ...], **options: Any) -> Any:
    (cotangent,) = cotangents
    arrays = args[: len(args) - len(along)]
    found: Any = [None] * len(along)
    if not isinstance(cotangent, ad.Zero):
        found = _several(_linear_vjp(*arrays, cotangent, wrt=along, **options))
    return [*[None] * len(arrays), *found]


def _transpose_linear_vjp(cotangents: Any, *args: Any, wrt: tuple[str, ...], **options: Any) -> Any:
    *arrays, _ = args
    moving = {n: one for n, one in zip(wrt, cotangents, strict=True) if not isinstance(one, ad.Zero)}
    found = _linear_jvp(*arrays, *moving.values(), along=tuple(moving), **options) if moving else None
    return [None] * len(arrays) + [found]


def _transpose_linear_hvp(
    cotangents: Any, *args: Any, along: tuple[str, ...], wrt: tuple[str, ...], **options: Any
) -> Any:
    """The Hessian is symmetric."""
    arrays = args[: len(args) - len(along)]
    moving = {n: one for n, one in zip(wrt, cotangents, strict=True) if not isinstance(one, ad.Zero)}
    found: Any = [None] * len(along)
    if moving:
        found = _several(_linear_hvp(*arrays, *moving.values(), along=tuple(moving), wrt=along, **options))
    return [*[None] * len(arrays), *found]


_linear.differentiable(_linear_tangent)
_linear_with_grad.differentiable(_linear_with_grad_tangent)
_linear_vjp.differentiable(_linear_vjp_tangent)
_linear_jvp.differentiable(_linear_in(_linear_jvp, _no_second_along_rows))
_linear_hvp.differentiable(_linear_in(_linear_hvp, lambda: _twice_only(None, None)))
ad.primitive_transposes[_linear_jvp.primitive] = _transpose_linear_jvp
ad.primitive_transposes[_linear_vjp.primitive] = _transpose_linear_vjp
ad.primitive_transposes[_linear_hvp.primitive] = _transpose_linear_hvp


# --- the functions ------------------------------------------------------------------------------------------


def _floats(function: str, name: str, x: Any) -> Array:
    """An array of floats; integers become those of JAX's default dtype."""
    array = jnp.asarray(x)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{function}: {name} has dtype {array.dtype}, expected a dtype of real numbers")
    return array.astype(jnp.result_type(array, float))


def _axis(function: str, axis: int, ndim: int) -> int:
    """The axis, counted from the end."""
    return one_axis(function, axis, ndim) - ndim


def _tempered(function: str, x: Array, axis: int, temperature: float) -> dict[str, Any]:
    """The axis and T, which has to be a number: it is compiled into the call."""
    inverse_temperature(function, temperature, np.dtype(np.float32 if x.dtype.itemsize < 8 else np.float64))
    return {"axis": _axis(function, axis, x.ndim), "temperature": float(temperature)}


def _checked(
    function: str, reduction: str, ignore_index: Any, label_smoothing: float, z_loss: float, softcap: float | None
) -> dict[str, Any]:
    """The options of a cross-entropy as its operators take them; an error for wrong ones."""
    options = LossOptions(None, None, ignore_index, label_smoothing, reduction, z_loss, softcap)
    options.check_reduction(function)
    options.smoothing(function)
    options.regularization(function)
    return {
        "ignore_index": options.ignored_index(function),
        "label_smoothing": float(label_smoothing),
        "z_loss": float(z_loss),
        "softcap": None if softcap is None else float(softcap),
    }


def _reduced(rows: Array, reduction: str, count: Any) -> Array:
    """The losses of rows, their sum, or their mean over so many rows that count."""
    if reduction == "none":
        return rows
    total = jnp.sum(rows)
    return total if reduction == "sum" else total / count


def softmax(x: Any, axis: int = -1, *, temperature: float = 1.0) -> Array:
    r"""Softmax of each row, as ``jax.nn.softmax``.

    .. math:: p_i = \frac{\exp(x_i / T)}{\sum_k \exp(x_k / T)}

    Parameters
    ----------
    x : array_like
        Logits. Integers become floats of JAX's default dtype.
    axis : int, default -1
        The axis of the classes.
    temperature : float, default 1.0
        T > 0, a number that is not traced.

    Returns
    -------
    Array
        The probabilities, of the shape and dtype of `x`.

    See Also
    --------
    fastsoftmax.softmax : its errors, error bounds and edge cases.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from fastsoftmax.jax import softmax
    >>> jax.grad(lambda x: softmax(x)[0])(jnp.zeros(2)).tolist()
    [0.25, -0.25]
    """
    x = _floats("softmax", "x", x)
    return _softmax(x, **_tempered("softmax", x, axis, temperature))


def log_softmax(x: Any, axis: int = -1, *, temperature: float = 1.0) -> Array:
    r"""Logarithm of the softmax of each row, as ``jax.nn.log_softmax``.

    .. math:: \log p_i = \frac{x_i}{T} - \log \sum_k \exp(x_k / T)

    Parameters
    ----------
    x : array_like
        Logits. Integers become floats of JAX's default dtype.
    axis : int, default -1
        The axis of the classes.
    temperature : float, default 1.0
        T > 0, a number that is not traced.

    Returns
    -------
    Array
        The log-probabilities, of the shape and dtype of `x`.

    See Also
    --------
    fastsoftmax.log_softmax : its errors, error bounds and edge cases.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from fastsoftmax.jax import log_softmax
    >>> jax.jit(log_softmax)(jnp.array([0.0, -50.0])).tolist()
    [-1.9287498933537385e-22, -50.0]
    """
    x = _floats("log_softmax", "x", x)
    return _log_softmax(x, **_tempered("log_softmax", x, axis, temperature))


def logsumexp(x: Any, axis: int | Sequence[int] | None = -1, *, keepdims: bool = False) -> Array:
    r"""Logarithm of the sum of exponentials, as ``jax.nn.logsumexp``.

    .. math:: \mathrm{lse}(x) = \log \sum_k \exp(x_k)

    Parameters
    ----------
    x : array_like
        Numbers. Integers become floats of JAX's default dtype.
    axis : int, sequence of int or None, default -1
        The axes that are summed over; None for all.
    keepdims : bool, default False
        Whether these axes stay, with size 1.

    Returns
    -------
    Array
        One number for each row.

    See Also
    --------
    fastsoftmax.logsumexp : its errors, error bounds and edge cases.

    Notes
    -----
    JAX's default is all axes.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fastsoftmax.jax import logsumexp
    >>> float(logsumexp(jnp.array([[0.0, -1000.0]]), axis=None))
    0.0
    """
    x = _floats("logsumexp", "x", x)
    axes = any_axes("logsumexp", tuple(axis) if isinstance(axis, Sequence) else axis, x.ndim)
    if len(axes) == 1:
        found = _logsumexp(x, axis=axes[0] - x.ndim)
    else:
        rest = [one for one in range(x.ndim) if one not in axes]
        rows = jnp.transpose(x, (*rest, *axes))
        shape = rows.shape[: len(rest)]
        found = _logsumexp(rows.reshape(*shape, math.prod(rows.shape[len(rest) :])), axis=-1)
    return jnp.expand_dims(found, axes) if keepdims else found


def cross_entropy(
    logits: Any,
    targets: Any,
    axis: int = -1,
    *,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: str = "mean",
) -> Array:
    r"""Cross-entropy of logits against class indices or distributions.

    .. math:: L_n = -\sum_j y_{nj} \log p_{nj}, \qquad p_n = \mathrm{softmax}(z_n)

    Parameters
    ----------
    logits : array_like
        Logits. Integers become floats of JAX's default dtype.
    targets : array_like
        Class indices, of the shape of `logits` without `axis`; or distributions, of the shape of `logits`.
    axis : int, default -1
        The axis of the classes.
    ignore_index : int, optional
        The class index of rows that do not count.
    label_smoothing : float, default 0.0
        The share of the uniform distribution that is mixed into every target.
    z_loss : float, default 0.0
        The multiple of the squared log-sum-exp that is added to the loss of each row.
    softcap : float, optional
        c > 0: the logits are c tanh(logits / c).
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all rows that count, their sum, or the loss of each row, as ``optax`` has it.

    Returns
    -------
    Array
        The loss, of the dtype of `logits`.

    See Also
    --------
    fastsoftmax.cross_entropy : its errors, error bounds and edge cases.

    Notes
    -----
    There are derivatives with respect to `logits`. Weights of rows are factors of the losses of rows.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from fastsoftmax.jax import cross_entropy
    >>> jax.grad(cross_entropy)(jnp.zeros((1, 2)), jnp.array([1])).tolist()
    [[0.5, -0.5]]
    """
    function = "cross_entropy"
    logits, targets = _floats(function, "logits", logits), jnp.asarray(targets)
    options = _checked(function, reduction, ignore_index, label_smoothing, z_loss, softcap)
    axis = _axis(function, axis, logits.ndim)
    rows = [length for place, length in enumerate(logits.shape, -logits.ndim) if place != axis]
    if targets.shape not in (tuple(rows), logits.shape):
        raise ValueError(
            f"{function}: targets has shape {targets.shape}, expected {tuple(rows)} (class indices) or "
            f"{logits.shape} (distributions)"
        )
    found = _loss(logits, targets, axis=axis, **options)
    counted = found.size if ignore_index is None else jnp.sum(targets != ignore_index)
    return _reduced(found, reduction, counted)


def kl_divergence(
    logits: Any,
    target_logits: Any,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    reverse: bool = False,
    reduction: str = "mean",
) -> Array:
    r"""Kullback-Leibler divergence of two arrays of logits, the loss of distillation.

    .. math:: L_n = \sum_j q_{nj} (\log q_{nj} - \log p_{nj}), \qquad p_n = \mathrm{softmax}(z_n / T),
        \quad q_n = \mathrm{softmax}(t_n / T)

    Parameters
    ----------
    logits : array_like
        Logits z. Integers become floats of JAX's default dtype.
    target_logits : array_like
        Logits t of the target, of the shape of `logits`.
    axis : int, default -1
        The axis of the classes.
    temperature : float, default 1.0
        T > 0, a number that is not traced.
    reverse : bool, default False
        KL(p || q) instead of KL(q || p).
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all rows, their sum, or the divergence of each row.

    Returns
    -------
    Array
        The divergence, of the dtype of both arrays, which may both be differentiated.

    See Also
    --------
    fastsoftmax.kl_divergence : its errors, error bounds and edge cases.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from fastsoftmax.jax import kl_divergence
    >>> jax.grad(kl_divergence)(jnp.zeros((1, 2)), jnp.array([[0.0, -jnp.inf]])).tolist()
    [[-0.5, 0.5]]
    """
    function = "kl_divergence"
    logits, target_logits = _floats(function, "logits", logits), _floats(function, "target_logits", target_logits)
    LossOptions(reduction=reduction).check_reduction(function)
    if target_logits.shape != logits.shape:
        raise ValueError(f"{function}: target_logits has shape {target_logits.shape}, expected {logits.shape}")
    dtype = jnp.promote_types(logits.dtype, target_logits.dtype)
    logits, target_logits = logits.astype(dtype), target_logits.astype(dtype)
    options = _tempered(function, logits, axis, temperature)
    found = _kl(logits, target_logits, reverse=reversal(function, reverse), **options)
    return _reduced(found, reduction, found.size)


def linear_cross_entropy(
    features: Any,
    weight: Any,
    targets: Any,
    bias: Any = None,
    *,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: str = "mean",
) -> Array:
    r"""Cross-entropy of the logits features @ weight.T + bias, which are never held all at once.

    .. math:: L_n = -\log p_{n y_n}, \qquad p_n = \mathrm{softmax}(W x_n + b)

    Parameters
    ----------
    features : array_like
        x, of shape (..., D). Integers become floats of JAX's default dtype.
    weight : array_like
        W, of shape (K, D).
    targets : array_like
        Class indices, of the shape of `features` without D.
    bias : array_like, optional
        b, of shape (K,).
    ignore_index : int, optional
        The class index of rows that do not count.
    label_smoothing : float, default 0.0
        The share of the uniform distribution that is mixed into every target.
    z_loss : float, default 0.0
        The multiple of the squared log-sum-exp that is added to the loss of each row.
    softcap : float, optional
        c > 0: the logits are c tanh(logits / c).
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all rows that count, their sum, or the loss of each row.

    Returns
    -------
    Array
        The loss, of the dtype that JAX promotes those of features, weight and bias to. If it is differentiated,
        loss and gradients are computed together; with ``reduction="none"``, which needs the cotangents of the
        losses first, one after the other.

    See Also
    --------
    fastsoftmax.linear_cross_entropy : its errors, error bounds and edge cases.

    Notes
    -----
    There are derivatives with respect to features, weight and bias. Weights of rows are factors of the losses of
    rows, of which there are no derivatives in forward mode of derivatives in forward mode. ``vmap`` calls the
    function once for each element of a batch, one after the other; `features` may have any number of axes instead.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from fastsoftmax.jax import linear_cross_entropy
    >>> slope = jax.grad(linear_cross_entropy, 1)(jnp.ones((4, 2)), jnp.zeros((4, 2)), jnp.array([0, 1, 2, 3]))
    >>> slope.shape
    (4, 2)
    """
    function = "linear_cross_entropy"
    given = {"features": _floats(function, "features", features), "weight": _floats(function, "weight", weight)}
    if bias is not None:
        given["bias"] = _floats(function, "bias", bias)
    targets = jnp.asarray(targets)
    options = _checked(function, reduction, ignore_index, label_smoothing, z_loss, softcap)
    logits_of(function, *given.values())
    check_targets(function, targets, given["features"].shape)
    dtype = jnp.result_type(*given.values())
    x, w, *rest = [one.astype(dtype) for one in given.values()]
    return _linear(x, w, targets, *rest, biased=bool(rest), reduction=reduction, **options)


def segment_softmax(x: Any, indptr: Any) -> Array:
    r"""Softmax of each segment of a vector, for rows of unequal length in CSR form.

    .. math:: p_i = \frac{\exp(x_i)}{\sum_{k=r_n}^{r_{n+1}-1} \exp(x_k)}, \qquad r_n \le i < r_{n+1}

    Parameters
    ----------
    x : array_like
        Logits, a vector: the rows one after the other. Integers become floats of JAX's default dtype.
    indptr : array_like
        r, the integers at which the segments begin, and the length of `x` at the end.

    Returns
    -------
    Array
        The probabilities, of the shape and dtype of `x`.

    See Also
    --------
    fastsoftmax.segment_softmax : its errors, error bounds and edge cases.

    Notes
    -----
    ``vmap`` calls the function once for each element of a batch, one after the other.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fastsoftmax.jax import segment_softmax
    >>> segment_softmax(jnp.zeros(6), jnp.array([0, 4, 6])).tolist()
    [0.25, 0.25, 0.25, 0.25, 0.5, 0.5]
    """
    function = "segment_softmax"
    x, indptr = _floats(function, "x", x), jnp.asarray(indptr)
    for name, one in (("x", x), ("indptr", indptr)):
        if one.ndim != 1:
            raise ValueError(f"{function}: {name} has shape {one.shape}, expected one dimension")
    if not jnp.issubdtype(indptr.dtype, jnp.integer):
        raise TypeError(f"{function}: indptr has dtype {indptr.dtype}, expected integers")
    return _segments(x, indptr)
