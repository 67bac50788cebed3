"""Vectors as values: the few SIMD operations that the kernels are written in.

Numba has no vector type, and LLVM's loop vectoriser gives up on the loops that matter here: a maximum,
a compensated sum, an in-place pass, a row of ten. `Lanes` closes the gap. It is a Numba type that *is* an
LLVM vector of 64 bytes (16 float32 or 8 float64: one cache line, one AVX-512 register, two AVX2 registers or
four NEON ones), with ``+ - * /`` and the functions below. A kernel written with it is vectorised as it
stands, on every machine, with nothing left to a heuristic, and its tails are masked instead of scalar.

Every operation also takes plain floats, so that one body in `elementary` serves a vector in our kernels and
a scalar in somebody else's loop.

Each function's Python body is its meaning on NumPy arrays. It is what runs under ``NUMBA_DISABLE_JIT=1``,
where a `Lanes` is an array of 16 or 8 numbers that a debugger can show; ``@lowered`` attaches the LLVM code
that runs otherwise.

Arrays enter as `memory` and are read and written by flat offset from their first element.
"""

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils, errors
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

from fastsoftmax.runtime.numba_private import index_error

LANE_BYTES = 64


class Lanes(types.Type):  # type: ignore[misc]
    """A SIMD vector of `dtype`, `LANE_BYTES` long."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        self.count = LANE_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        element = ir.FloatType() if fe_type.dtype.bitwidth == 32 else ir.DoubleType()
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.count))


class Memory(types.Type):  # type: ignore[misc]
    """The numbers of a C-contiguous array: an address and how many there are, without a reference to them.

    Numba counts references to the arrays that functions hand on: in a loop over rows, calls of its runtime that
    spill every vector register. The kernel's caller holds the arrays for as long as it runs.
    """

    def __init__(self, dtype: types.Number) -> None:
        self.dtype = dtype
        super().__init__(name=f"Memory({dtype})")


@register_model(Memory)
class _MemoryModel(models.StructModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Memory) -> None:
        super().__init__(dmm, fe_type, [("data", types.CPointer(fe_type.dtype)), ("size", types.intp)])


def _splat(builder: ir.IRBuilder, scalar: Any, count: int) -> Any:
    """The vector with `scalar` in each of `count` lanes."""
    if isinstance(scalar, ir.Constant):
        return ir.Constant(ir.VectorType(scalar.type, count), [scalar.constant] * count)
    vector = ir.VectorType(scalar.type, count)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def _constant(like: Any, value: float) -> Any:
    """`value` as an LLVM constant of the type of `like`, a vector or a scalar."""
    if isinstance(like.type, ir.VectorType):
        return ir.Constant(like.type, [value] * like.type.count)
    return ir.Constant(like.type, value)


def _integer(builder: ir.IRBuilder, value: Any) -> Any:
    """The bits of a float, or of a vector of floats, as integers of the same width."""
    element = value.type.element if isinstance(value.type, ir.VectorType) else value.type
    bits = ir.IntType(32 if isinstance(element, ir.FloatType) else 64)
    vector = isinstance(value.type, ir.VectorType)
    return builder.bitcast(value, ir.VectorType(bits, value.type.count) if vector else bits)


def _mantissa_bits(value: Any) -> int:
    element = value.type.element if isinstance(value.type, ir.VectorType) else value.type
    return 23 if isinstance(element, ir.FloatType) else 52


def _suffix(value_type: Any) -> str:
    if isinstance(value_type, ir.VectorType):
        return f"v{value_type.count}{_suffix(value_type.element)}"
    return "f32" if isinstance(value_type, ir.FloatType) else "f64"


def _call(builder: ir.IRBuilder, name: str, operands: Sequence[Any]) -> Any:
    """A call of the LLVM intrinsic `name`, overloaded on the type of its first operand."""
    result = operands[0].type
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(result, [operand.type for operand in operands]),
        f"llvm.{name}.{_suffix(result)}",
    )
    return builder.call(function, operands)


def _common(args: Sequence[Any]) -> Any:
    """The type of an elementwise result: `Lanes` if any operand is, else the float type; None if neither."""
    floats = [a for a in args if isinstance(a, (Lanes, types.Float))]
    if len(floats) != len(args) or len({getattr(a, "dtype", a) for a in floats}) != 1:
        return None
    return next((a for a in floats if isinstance(a, Lanes)), floats[0])


def _elementwise(code: Callable[..., Any]) -> Callable[..., Any]:
    """Typing and broadcasting for an operation that treats every lane alike."""

    def typer(typingctx: Any, *args: Any) -> Any:
        result = _common(args)
        if result is None:
            return None

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            if isinstance(result, Lanes):
                values = [
                    v if isinstance(a, Lanes) else _splat(builder, v, result.count)
                    for a, v in zip(signature.args, values, strict=True)
                ]
            return code(builder, *values)

        return result(*args), codegen

    return typer


def lowered(typer: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Compile the decorated function as `typer` says; its Python body is what it means."""

    def decorate(function: Callable[..., Any]) -> Any:
        if config.DISABLE_JIT:
            return function

        def typed(typingctx: Any, *args: Any) -> Any:
            result = typer(typingctx, *args)
            if result is None:
                raise errors.TypingError(f"{function.__name__} does not take ({', '.join(map(str, args))})")
            return result

        context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(function).parameters.values()
        typed.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
        typed.__name__ = function.__name__
        typed.__doc__ = function.__doc__
        return intrinsic(prefer_literal=True)(typed)

    return decorate


def _arithmetic(operation: Any, code: Callable[..., Any]) -> None:
    """Teach Numba an infix operator on `Lanes`, with a float on either side too."""

    @type_callable(operation)
    def _type(context: Any) -> Callable[[Any, Any], Any]:
        def typer(a: Any, b: Any) -> Any:
            return _common((a, b)) if Lanes in (type(a), type(b)) else None

        return typer

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        count = signature.return_type.count
        a, b = (
            v if isinstance(t, Lanes) else _splat(builder, v, count)
            for t, v in zip(signature.args, values, strict=True)
        )
        return code(builder, a, b)

    for pair in ((Lanes, Lanes), (Lanes, types.Float), (types.Float, Lanes)):
        lower_builtin(operation, *pair)(lower)


_arithmetic(operator.add, lambda builder, a, b: builder.fadd(a, b))
_arithmetic(operator.sub, lambda builder, a, b: builder.fsub(a, b))
_arithmetic(operator.mul, lambda builder, a, b: builder.fmul(a, b))
_arithmetic(operator.truediv, lambda builder, a, b: builder.fdiv(a, b))


@type_callable(operator.neg)
def _type_negation(context: Any) -> Callable[[Any], Any]:
    def typer(a: Any) -> Any:
        return a if isinstance(a, Lanes) else None

    return typer


@lower_builtin(operator.neg, Lanes)
def _lower_negation(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    return builder.fneg(values[0])


# --- elementwise: vectors or floats -------------------------------------------------------------------------


@lowered(_elementwise(lambda builder, a, b, c: _call(builder, "fmuladd", (a, b, c))))
def muladd(a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, fused where the machine fuses, rounded twice where it does not."""
    return a * b + c


@lowered(_elementwise(lambda builder, a, b, c: _call(builder, "fma", (a, b, c))))
def fma(a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` rounded once, on every machine: for errors of products, which need it."""
    wide = np.longdouble
    return (wide(a) * wide(b) + wide(c)).astype(np.result_type(a, b, c))


@lowered(_elementwise(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b)))
def maximum(a: Any, b: Any) -> Any:
    """The greater of the two, and `b` where `a` is NaN: one instruction, with NaN left for the sums to find."""
    return np.where(a > b, a, b)


@lowered(_elementwise(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b)))
def minimum(a: Any, b: Any) -> Any:
    """The lesser of the two, and `b` where `a` is NaN."""
    return np.where(a < b, a, b)


@lowered(
    _elementwise(
        lambda builder, a, b, x, y: builder.select(builder.fcmp_ordered("<", a, b), x, y),
    )
)
def select_less(a: Any, b: Any, x: Any, y: Any) -> Any:
    """``x if a < b else y``; a NaN compares false."""
    return np.where(a < b, x, y)


@lowered(
    _elementwise(
        lambda builder, a, b, x, y: builder.select(builder.fcmp_ordered("==", a, b), x, y),
    )
)
def select_equal(a: Any, b: Any, x: Any, y: Any) -> Any:
    """``x if a == b else y``; a NaN compares false."""
    return np.where(a == b, x, y)


@lowered(
    _elementwise(
        lambda builder, a, b, c, d, x, y: builder.select(
            builder.and_(builder.fcmp_unordered(">=", a, b), builder.fcmp_unordered("!=", c, d)), x, y
        ),
    )
)
def select_other(a: Any, b: Any, c: Any, d: Any, x: Any, y: Any) -> Any:
    """``y if a < b or c == d else x``: the form that costs two comparisons and nothing else."""
    return np.where((a < b) | (c == d), y, x)


def _any_above_typer(typingctx: Any, a: Any, limit: Any) -> Any:
    if _common((a, limit)) is None or isinstance(limit, Lanes):
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        value, least = values
        if not isinstance(a, Lanes):
            return builder.fcmp_ordered(">", value, least)
        above = builder.fcmp_ordered(">", value, _splat(builder, least, a.count))
        bits = builder.bitcast(above, ir.IntType(a.count))
        return builder.icmp_unsigned("!=", bits, bits.type(0))

    return types.boolean(a, limit), codegen


@lowered(_any_above_typer)
def any_above(a: Any, limit: Any) -> bool:
    """Whether any lane is greater than a float: for a branch that is rarely taken."""
    return bool(np.any(a > limit))


@lowered(_elementwise(lambda builder, a: _call(builder, "fabs", (a,))))
def absolute(a: Any) -> Any:
    """`a` without its sign."""
    return np.abs(a)


@lowered(_elementwise(lambda builder, a: _call(builder, "trunc", (a,))))
def truncate(a: Any) -> Any:
    """`a` without its fraction."""
    return np.trunc(a)


@lowered(_elementwise(lambda builder, a: _call(builder, "rint", (a,))))
def nearest(a: Any) -> Any:
    """The nearest whole number, halves to even."""
    return np.rint(a)


def _shift_to_exponent(builder: Any, a: Any) -> Any:
    bits = _integer(builder, a)
    return builder.bitcast(builder.shl(bits, _constant(bits, _mantissa_bits(a))), a.type)


@lowered(_elementwise(_shift_to_exponent))
def shift_to_exponent(a: Any) -> Any:
    """The number whose exponent field is the low bits of `a`: ``2**(k - bias)`` for `a` holding ``magic + k``."""
    bits: Any = np.asarray(a)
    shift: Any = np.int32(23) if bits.dtype == np.float32 else np.int64(52)
    return np.left_shift(bits.view(shift.dtype), shift).view(bits.dtype)


def _split_exponent(builder: Any, a: Any) -> Any:
    bits = _integer(builder, a)
    mantissa = _mantissa_bits(a)
    half = _constant(bits, _SQRT_HALF_BITS[mantissa])
    shift = _constant(bits, mantissa)
    exponent = builder.ashr(builder.sub(bits, half), shift)
    fraction = builder.sub(bits, builder.shl(exponent, shift))
    return builder.sitofp(exponent, a.type), builder.bitcast(fraction, a.type)


_SQRT_HALF_BITS = {
    23: int(np.float32(np.sqrt(0.5)).view(np.int32)),
    52: int(np.float64(np.sqrt(0.5)).view(np.int64)),
}


def _split_exponent_typer(typingctx: Any, a: Any) -> Any:
    if _common((a,)) is None:
        return None
    result = types.UniTuple(a, 2)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return context.make_tuple(builder, result, _split_exponent(builder, values[0]))

    return result(a), codegen


@lowered(_split_exponent_typer)
def split_exponent(a: Any) -> Any:
    """k and m with ``a = 2**k * m``, sqrt(1/2) <= m < sqrt(2), for a normal a > 0."""
    m, k = np.frexp(a)
    small = m < np.sqrt(np.asarray(0.5, np.asarray(a).dtype))
    kind: Any = np.asarray(a).dtype.type
    return kind(k - small), np.where(small, kind(2) * m, m)


def _is_single_typer(typingctx: Any, a: Any) -> Any:
    if _common((a,)) is None:
        return None
    single = getattr(a, "dtype", a).bitwidth == 32

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return context.get_constant(types.boolean, single)

    return types.boolean(a), codegen


@lowered(_is_single_typer)
def is_single(a: Any) -> bool:
    """Whether `a` is float32: known when compiling, so that only one branch of an ``if`` remains."""
    return bool(np.asarray(a).dtype == np.float32)


def _number_typer(typingctx: Any, like: Any, value: Any) -> Any:
    if not isinstance(like, (Lanes, types.Float, Memory)):
        return None
    scalar: Any = getattr(like, "dtype", like)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return context.cast(builder, values[1], types.float64, scalar)

    return scalar(like, types.float64), codegen


@lowered(_number_typer)
def number(like: Any, value: float) -> Any:
    """`value` rounded to the dtype of `like`, which is a float, a vector or an array."""
    return like.dtype.type(value)


def _filled_typer(typingctx: Any, like: Any, value: Any) -> Any:
    if _common((like,)) is None:
        return None
    scalar: Any = getattr(like, "dtype", like)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        item = context.cast(builder, values[1], types.float64, scalar)
        return _splat(builder, item, like.count) if isinstance(like, Lanes) else item

    return like(like, types.float64), codegen


@lowered(_filled_typer)
def filled(like: Any, value: float) -> Any:
    """`value` in the form of `like`: in every lane of a vector, or as a float."""
    return np.full_like(like, value)


# --- memory -------------------------------------------------------------------------------------------------


def _memory_typer(typingctx: Any, array: Any) -> Any:
    if isinstance(array, types.NoneType):
        return array(array), lambda context, builder, signature, values: context.get_dummy_value()
    if isinstance(array, Memory):
        return array(array), lambda context, builder, signature, values: values[0]
    if not isinstance(array, types.Array) or array.layout != "C":
        return None
    result = Memory(array.dtype)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        struct = context.make_array(array)(context, builder, values[0])
        memory = cgutils.create_struct_proxy(result)(context, builder)
        memory.data = struct.data
        memory.size = struct.nitems
        return memory._getvalue()

    return result(array), codegen


@lowered(_memory_typer)
def memory(array: Any) -> Any:
    """What a building block gets of an array (or of this already), by flat offset; None of None."""
    return None if array is None else array.reshape(-1)


def _after_typer(typingctx: Any, array: Any, offset: Any) -> Any:
    if not isinstance(array, Memory):
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        struct = cgutils.create_struct_proxy(array)(context, builder, values[0])
        struct.data = builder.gep(struct.data, [values[1]])
        struct.size = builder.sub(struct.size, values[1])
        return struct._getvalue()

    return array(array, types.intp), codegen


@lowered(_after_typer)
def after(array: Any, offset: int) -> Any:
    """The memory from `offset` on."""
    return array[offset:]


def _size_typer(typingctx: Any, array: Any) -> Any:
    if not isinstance(array, Memory):
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return cgutils.create_struct_proxy(array)(context, builder, values[0]).size

    return types.intp(array), codegen


@lowered(_size_typer)
def size(array: Any) -> int:
    """How many numbers the memory holds."""
    return int(array.size)


def _pointer(context: Any, builder: Any, memory_type: Any, value: Any, offset: Any, count: Any) -> Any:
    """The address of element `offset`; with bounds checking on, offset .. offset + count must be inside."""
    struct = cgutils.create_struct_proxy(memory_type)(context, builder, value)
    raises = index_error(context)
    if raises is not None:
        outside = builder.or_(
            builder.icmp_signed("<", offset, offset.type(0)),
            builder.icmp_signed(">", builder.add(offset, count), struct.size),
        )
        with builder.if_then(outside, likely=False):
            raises(builder, "kernel access outside its array")
    return builder.gep(struct.data, [offset])


def _is_floats(value: Any) -> bool:
    return isinstance(value, Memory) and isinstance(value.dtype, types.Float)


def _vector_pointer(builder: Any, pointer: Any, vector: Any) -> Any:
    return builder.bitcast(pointer, vector.as_pointer())


def _first_lanes(builder: Any, count: Any, lanes: int) -> Any:
    """The mask of the first `count` lanes."""
    iota = ir.Constant(ir.VectorType(count.type, lanes), list(range(lanes)))
    return builder.icmp_signed("<", iota, _splat(builder, count, lanes))


def _load_typer(typingctx: Any, array: Any, offset: Any) -> Any:
    if not _is_floats(array):
        return None
    result = Lanes(array.dtype)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data, index = values
        pointer = _pointer(context, builder, array, data, index, index.type(result.count))
        vector = context.get_value_type(result)
        return builder.load(_vector_pointer(builder, pointer, vector), align=array.dtype.bitwidth // 8)

    return result(array, types.intp), codegen


@lowered(_load_typer)
def load(array: Any, offset: int) -> Any:
    """A full vector from `offset` on."""
    count = LANE_BYTES // array.itemsize
    assert 0 <= offset <= array.size - count
    return array[offset : offset + count].copy()


def _store_typer(past: bool) -> Callable[..., Any]:
    def typer(typingctx: Any, array: Any, offset: Any, value: Any) -> Any:
        if not _is_floats(array) or not isinstance(value, Lanes):
            return None

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            data, index, vector = values
            pointer = _pointer(context, builder, array, data, index, index.type(value.count))
            target = _vector_pointer(builder, pointer, vector.type)
            written = builder.store(vector, target, align=LANE_BYTES if past else array.dtype.bitwidth // 8)
            if past:
                written.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
            return context.get_dummy_value()

        return types.void(array, types.intp, value), codegen

    return typer


@lowered(_store_typer(past=False))
def store(array: Any, offset: int, value: Any) -> None:
    """Write a full vector from `offset` on."""
    assert 0 <= offset <= array.size - len(value)
    array[offset : offset + len(value)] = value


@lowered(_store_typer(past=True))
def store_past(array: Any, offset: int, value: Any) -> None:
    """`store` to an address that is a multiple of 64, past the caches; see `fence`."""
    store(array, offset, value)


def _fence_typer(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@lowered(_fence_typer)
def fence() -> None:
    """Make what `store_past` wrote visible to other threads."""


def _lanes_to_line_typer(typingctx: Any, array: Any, offset: Any) -> Any:
    if not isinstance(array, Memory):
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        struct = cgutils.create_struct_proxy(array)(context, builder, values[0])
        at = values[1]
        item = array.dtype.bitwidth // 8
        address = builder.ptrtoint(builder.gep(struct.data, [at]), at.type)
        over = builder.and_(builder.neg(address), at.type(LANE_BYTES - 1))
        return builder.udiv(over, at.type(item))

    return types.intp(array, types.intp), codegen


@lowered(_lanes_to_line_typer)
def lanes_to_line(array: Any, offset: int) -> int:
    """How many numbers after `offset` the next cache line begins."""
    return 0


def _prefetch_typer(written: int) -> Callable[..., Any]:
    def typer(typingctx: Any, array: Any, offset: Any) -> Any:
        if not isinstance(array, Memory):
            return None

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            byte_pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
            function = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(ir.VoidType(), [byte_pointer, number, number, number]),
                "llvm.prefetch.p0",
            )
            struct = cgutils.create_struct_proxy(array)(context, builder, values[0])
            pointer = builder.bitcast(builder.gep(struct.data, [values[1]]), byte_pointer)
            builder.call(function, [pointer, number(written), number(3), number(1)])
            return context.get_dummy_value()

        return types.void(array, types.intp), codegen

    return typer


@lowered(_prefetch_typer(0))
def prefetch(array: Any, offset: int) -> None:
    """Ask for the cache line of an element that will be read; it may lie outside."""


@lowered(_prefetch_typer(1))
def prefetch_written(array: Any, offset: int) -> None:
    """The same of an element that will be written."""


def _load_scalar_typer(typingctx: Any, array: Any, offset: Any) -> Any:
    if not isinstance(array, Memory):
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(_pointer(context, builder, array, values[0], values[1], values[1].type(1)))

    return array.dtype(array, types.intp), codegen


@lowered(_load_scalar_typer)
def load_scalar(array: Any, offset: int) -> Any:
    """The element at `offset`."""
    assert 0 <= offset < array.size
    return array[offset]


def _store_scalar_typer(typingctx: Any, array: Any, offset: Any, value: Any) -> Any:
    if not _is_floats(array) or value != array.dtype:
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data, index, scalar = values
        builder.store(scalar, _pointer(context, builder, array, data, index, index.type(1)))
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@lowered(_store_scalar_typer)
def store_scalar(array: Any, offset: int, value: Any) -> None:
    """Write the element at `offset`."""
    assert 0 <= offset < array.size
    array[offset] = value


def _masked(builder: Any, name: str, result: Any, operands: Sequence[Any], vector: Any) -> Any:
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(result, [operand.type for operand in operands]),
        f"llvm.masked.{name}.{_suffix(vector)}.p0",
    )
    return builder.call(function, operands)


def _load_part_typer(typingctx: Any, array: Any, offset: Any, count: Any, filler: Any) -> Any:
    if not _is_floats(array):
        return None
    result = Lanes(array.dtype)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data, index, active, fill = values
        vector = context.get_value_type(result)
        pointer = _vector_pointer(builder, _pointer(context, builder, array, data, index, active), vector)
        align = ir.IntType(32)(array.dtype.bitwidth // 8)
        mask = _first_lanes(builder, active, result.count)
        operands = (pointer, align, mask, _splat(builder, fill, result.count))
        return _masked(builder, "load", vector, operands, vector)

    return result(array, types.intp, types.intp, array.dtype), codegen


@lowered(_load_part_typer)
def load_part(array: Any, offset: int, count: int, filler: Any) -> Any:
    """The first `count` lanes from `offset` on, and `filler` in the others; no memory behind is touched."""
    assert 0 <= offset <= array.size - count
    lanes = np.full(LANE_BYTES // array.itemsize, filler, array.dtype)
    lanes[:count] = array[offset : offset + count]
    return lanes


def _store_part_typer(typingctx: Any, array: Any, offset: Any, count: Any, value: Any) -> Any:
    if not _is_floats(array) or not isinstance(value, Lanes):
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data, index, active, vector = values
        pointer = _vector_pointer(builder, _pointer(context, builder, array, data, index, active), vector.type)
        align = ir.IntType(32)(array.dtype.bitwidth // 8)
        mask = _first_lanes(builder, active, value.count)
        _masked(builder, "store", ir.VoidType(), (vector, pointer, align, mask), vector.type)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, value), codegen


@lowered(_store_part_typer)
def store_part(array: Any, offset: int, count: int, value: Any) -> None:
    """Write the first `count` lanes from `offset` on; no memory behind is touched."""
    assert 0 <= offset <= array.size - count
    array[offset : offset + count] = value[:count]


def _strided_pointers(
    context: Any, builder: Any, array: Any, values: Sequence[Any], lanes: int
) -> tuple[Any, Any]:
    """Addresses ``offset + lane * stride`` of the first `count` lanes, and the mask of these lanes."""
    data, offset, stride, count = values
    last = builder.add(builder.mul(builder.sub(count, count.type(1)), stride), count.type(1))
    base = _pointer(context, builder, array, data, offset, last)
    size = array.dtype.bitwidth // 8
    iota = ir.Constant(ir.VectorType(stride.type, lanes), [size * lane for lane in range(lanes)])
    steps = builder.mul(iota, _splat(builder, stride, lanes))
    address = _splat(builder, builder.ptrtoint(base, stride.type), lanes)
    pointers = builder.inttoptr(builder.add(address, steps), ir.VectorType(base.type, lanes))
    return pointers, _first_lanes(builder, count, lanes)


def _gather_typer(typingctx: Any, array: Any, offset: Any, stride: Any, count: Any, filler: Any) -> Any:
    if not _is_floats(array):
        return None
    result = Lanes(array.dtype)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = context.get_value_type(result)
        pointers, mask = _strided_pointers(context, builder, array, (values[0], *values[1:4]), result.count)
        align = ir.IntType(32)(array.dtype.bitwidth // 8)
        operands = (pointers, align, mask, _splat(builder, values[4], result.count))
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [operand.type for operand in operands]),
            f"llvm.masked.gather.{_suffix(vector)}.v{result.count}p0",
        )
        return builder.call(function, operands)

    return result(array, types.intp, types.intp, types.intp, array.dtype), codegen


@lowered(_gather_typer)
def gather(array: Any, offset: int, stride: int, count: int, filler: Any) -> Any:
    """Elements ``offset + lane * stride`` in the first `count` lanes, `filler` in the others."""
    assert offset >= 0 and offset + (count - 1) * stride < array.size
    lanes = np.full(LANE_BYTES // array.itemsize, filler, array.dtype)
    lanes[:count] = array[offset:][::stride][:count]
    return lanes


def _scatter_typer(typingctx: Any, array: Any, offset: Any, stride: Any, count: Any, value: Any) -> Any:
    if not _is_floats(array) or not isinstance(value, Lanes):
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointers, mask = _strided_pointers(context, builder, array, values[:4], value.count)
        align = ir.IntType(32)(array.dtype.bitwidth // 8)
        operands = (values[4], pointers, align, mask)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [operand.type for operand in operands]),
            f"llvm.masked.scatter.{_suffix(values[4].type)}.v{value.count}p0",
        )
        builder.call(function, operands)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.intp, value), codegen


@lowered(_scatter_typer)
def scatter(array: Any, offset: int, stride: int, count: int, value: Any) -> None:
    """Write the first `count` lanes to elements ``offset + lane * stride``."""
    assert offset >= 0 and offset + (count - 1) * stride < array.size
    array[offset:][::stride][:count] = value[:count]


# --- rows into columns ---------------------------------------------------------------------------------------
#
# A gather costs as many memory accesses as it has lanes. Here whole vectors are loaded and stored, and turned by
# shuffles: for rows of many classes log2(lanes) shuffles a vector, for rows of a few one for each class.


def _shuffled(builder: Any, a: Any, b: Any, picks: Sequence[int]) -> Any:
    """The vector of these lanes of a (0 to n - 1) and b (n to 2 n - 1)."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(picks)), list(picks))
    return builder.shuffle_vector(a, b, mask)


def _transposed(builder: Any, rows: Sequence[Any]) -> Sequence[Any]:
    """The columns of the square matrix with these rows.

    First inside the four 16-byte pieces of the vectors, by interleaving neighbouring rows, which every SIMD
    machine does in one instruction; then whole pieces, by taking the even or the odd ones of two vectors.
    """
    lanes = len(rows)
    piece = lanes // 4
    half = piece // 2
    vectors = list(rows)
    run = 1
    while run < piece:
        low = [
            base + block + side + i
            for base in range(0, lanes, piece)
            for block in range(0, half, run)
            for side in (0, lanes)
            for i in range(run)
        ]
        turned = list(vectors)
        for i in range(0, lanes, 2 * run):
            for j in range(run):
                pair = vectors[i + j], vectors[i + j + run]
                turned[i + 2 * j] = _shuffled(builder, *pair, low)
                turned[i + 2 * j + 1] = _shuffled(builder, *pair, [pick + half for pick in low])
        vectors = turned
        run *= 2
    even = [base + i for base in (0, 2 * piece, lanes, lanes + 2 * piece) for i in range(piece)]
    odd = [pick + piece for pick in even]
    columns = list(vectors)
    for j in range(piece):
        a, b, c, d = vectors[j::piece]
        for parity, picks in enumerate((even, odd)):
            front, back = _shuffled(builder, a, b, picks), _shuffled(builder, c, d, picks)
            columns[parity * piece + j] = _shuffled(builder, front, back, even)
            columns[(2 + parity) * piece + j] = _shuffled(builder, front, back, odd)
    return columns


def _collected(builder: Any, vectors: Sequence[Any], places: Sequence[tuple[int, int]]) -> Any:
    """The vector whose lane i is lane ``places[i][1]`` of vector ``places[i][0]``."""
    lanes = len(places)
    result = vectors[0]
    picks = [place for _, place in places]  # right for vector 0; the lanes of others are replaced below
    for number in range(1, len(vectors)):
        picks = [
            lanes + at if source == number else pick for pick, (source, at) in zip(picks, places, strict=True)
        ]
        result = _shuffled(builder, result, vectors[number], picks)
        picks = list(range(lanes))
    return result


def _moves(builder: Any, classes: Any, lanes: int, code: Callable[[int], None]) -> None:
    """``code(classes)`` for the number of classes at run time, from 2 to half a vector."""
    after = builder.append_basic_block("moved")
    switch = builder.switch(classes, after)
    for number in range(2, lanes // 2 + 1):
        block = builder.append_basic_block(f"classes_{number}")
        switch.add_case(classes.type(number), block)
        builder.position_at_end(block)
        code(number)
        builder.branch(after)
    builder.position_at_end(after)


def _rows_typer(code: Callable[..., Any]) -> Callable[..., Any]:
    """Typing for the four operations below, between `array` and `tile`."""

    def typer(typingctx: Any, array: Any, offset: Any, *rest: Any) -> Any:
        tile = rest[-2]
        if not _is_floats(array) or tile != array:
            return None
        integers = [types.intp] * (len(rest) - 2)

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            code(context, builder, array, Lanes(array.dtype).count, values)
            return context.get_dummy_value()

        return types.void(array, types.intp, *integers, tile, types.intp), codegen

    return typer


def _vectors(context: Any, builder: Any, array: Any, data: Any, start: Any, numbers: int) -> Sequence[Any]:
    """The addresses of so many vectors that follow each other in memory."""
    lanes = Lanes(array.dtype).count
    vector = context.get_value_type(Lanes(array.dtype))
    pointer = _pointer(context, builder, array, data, start, start.type(numbers * lanes))
    first = _vector_pointer(builder, pointer, vector)
    return [builder.gep(first, [start.type(i)]) for i in range(numbers)]


def _parts(
    context: Any, builder: Any, array: Any, data: Any, offset: Any, stride: Any, count: Any
) -> tuple[Sequence[Any], Any, Any]:
    """The addresses of the parts of as many rows as a vector has lanes, the alignment and the mask of a part."""
    lanes = Lanes(array.dtype).count
    vector = context.get_value_type(Lanes(array.dtype))
    pointers = []
    for i in range(lanes):
        place = builder.add(offset, builder.mul(stride, stride.type(i)))
        pointers.append(_vector_pointer(builder, _pointer(context, builder, array, data, place, count), vector))
    return pointers, ir.IntType(32)(array.dtype.bitwidth // 8), _first_lanes(builder, count, lanes)


def _load_turned_code(context: Any, builder: Any, array: Any, lanes: int, values: Any) -> None:
    data, offset, stride, count, tile, target = values
    vector = context.get_value_type(Lanes(array.dtype))
    pointers, align, mask = _parts(context, builder, array, data, offset, stride, count)
    zero = ir.Constant(vector, None)
    rows = [_masked(builder, "load", vector, (pointer, align, mask, zero), vector) for pointer in pointers]
    columns = _transposed(builder, rows)
    for column, pointer in zip(columns, _vectors(context, builder, array, tile, target, lanes), strict=True):
        builder.store(column, pointer, align=array.dtype.bitwidth // 8)


@lowered(_rows_typer(_load_turned_code))
def load_turned(array: Any, offset: int, stride: int, count: int, tile: Any, target: int) -> None:
    """`count` classes, a vector's lanes at most, of as many rows as it has lanes, as vectors of one class each.

    Row i begins at ``offset + i * stride``; the vectors go to `tile` from `target` on. As many are written as
    there are lanes, those from `count` on with zeros.
    """
    lanes = LANE_BYTES // array.itemsize
    rows = np.zeros((lanes, lanes), array.dtype)
    for i in range(lanes):
        rows[i] = load_part(array, offset + i * stride, count, 0)
    assert target + lanes * lanes <= tile.size
    tile[target : target + lanes * lanes] = rows.T.reshape(-1)


def _store_turned_code(context: Any, builder: Any, array: Any, lanes: int, values: Any) -> None:
    data, offset, stride, count, tile, source = values
    vector = context.get_value_type(Lanes(array.dtype))
    sources = _vectors(context, builder, array, tile, source, lanes)
    rows = _transposed(builder, [builder.load(pointer, align=array.dtype.bitwidth // 8) for pointer in sources])
    pointers, align, mask = _parts(context, builder, array, data, offset, stride, count)
    for row, pointer in zip(rows, pointers, strict=True):
        _masked(builder, "store", ir.VoidType(), (row, pointer, align, mask), vector)


@lowered(_rows_typer(_store_turned_code))
def store_turned(array: Any, offset: int, stride: int, count: int, tile: Any, source: int) -> None:
    """The way back of `load_turned`."""
    lanes = LANE_BYTES // array.itemsize
    rows = tile[source : source + lanes * lanes].reshape(lanes, lanes).T
    for i in range(lanes):
        store_part(array, offset + i * stride, count, rows[i])


def _load_dense_code(context: Any, builder: Any, array: Any, lanes: int, values: Any) -> None:
    data, offset, classes, tile, target = values
    align = array.dtype.bitwidth // 8

    def move(number: int) -> None:
        sources = _vectors(context, builder, array, data, offset, number)
        flat = [builder.load(pointer, align=align) for pointer in sources]
        for k, pointer in enumerate(_vectors(context, builder, array, tile, target, number)):
            places = [divmod(i * number + k, lanes) for i in range(lanes)]
            builder.store(_collected(builder, flat, places), pointer, align=align)

    _moves(builder, classes, lanes, move)


@lowered(_rows_typer(_load_dense_code))
def load_dense(array: Any, offset: int, classes: int, tile: Any, target: int) -> None:
    """`load_turned` of rows of 2 to half a vector's classes that follow each other: one vector for each class."""
    lanes = LANE_BYTES // array.itemsize
    rows = array[offset : offset + lanes * classes].reshape(lanes, classes)
    tile[target : target + lanes * classes] = rows.T.reshape(-1)


def _store_dense_code(context: Any, builder: Any, array: Any, lanes: int, values: Any) -> None:
    data, offset, classes, tile, source = values
    align = array.dtype.bitwidth // 8

    def move(number: int) -> None:
        sources = _vectors(context, builder, array, tile, source, number)
        columns = [builder.load(pointer, align=align) for pointer in sources]
        for q, pointer in enumerate(_vectors(context, builder, array, data, offset, number)):
            places = [divmod(q * lanes + j, number)[::-1] for j in range(lanes)]
            builder.store(_collected(builder, columns, places), pointer, align=align)

    _moves(builder, classes, lanes, move)


@lowered(_rows_typer(_store_dense_code))
def store_dense(array: Any, offset: int, classes: int, tile: Any, source: int) -> None:
    """The way back of `load_dense`."""
    lanes = LANE_BYTES // array.itemsize
    columns = tile[source : source + lanes * classes].reshape(classes, lanes)
    array[offset : offset + lanes * classes] = columns.T.reshape(-1)


# --- making and folding vectors -----------------------------------------------------------------------------


def _lane_count_typer(typingctx: Any, array: Any) -> Any:
    if not _is_floats(array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return context.get_constant(types.intp, Lanes(array.dtype).count)

    return types.intp(array), codegen


@lowered(_lane_count_typer)
def lane_count(array: Any) -> int:
    """How many elements of the array a vector holds."""
    return int(LANE_BYTES // array.itemsize)


def _broadcast_typer(typingctx: Any, value: Any) -> Any:
    if _common((value,)) is None:
        return None
    result = value if isinstance(value, Lanes) else Lanes(value)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return values[0] if value is result else _splat(builder, values[0], result.count)

    return result(value), codegen


@lowered(_broadcast_typer)
def broadcast(value: Any) -> Any:
    """The vector with a float in every lane; a vector stays as it is."""
    return value if np.ndim(value) else np.full(LANE_BYTES // value.itemsize, value)


def _rotated(builder: Any, value: Any, step: int) -> Any:
    lanes = value.type.count
    index = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [(i + step) % lanes for i in range(lanes)])
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), index)


def _fold(builder: Any, code: Callable[..., Any], *vectors: Any) -> Any:
    """Combine all lanes by `code`, halving: lane 0 of each vector, as scalars."""
    step = vectors[0].type.count // 2
    while step:
        vectors = code(builder, vectors, tuple(_rotated(builder, v, step) for v in vectors))
        step //= 2
    return tuple(builder.extract_element(v, ir.IntType(32)(0)) for v in vectors)


def _fold_typer(code: Callable[..., Any]) -> Callable[..., Any]:
    def typer(typingctx: Any, folded: Any, *args: Any) -> Any:
        if _common(args) is None or not isinstance(args[0], Lanes):
            return None
        kept = isinstance(folded, types.NoneType)
        item = args[0] if kept else args[0].dtype
        result = item if len(args) == 1 else types.UniTuple(item, len(args))

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            items = values[1:] if kept else _fold(builder, code, *values[1:])
            return items[0] if len(args) == 1 else context.make_tuple(builder, result, items)

        return result(folded, *args), codegen

    return typer


def _two_sum_code(builder: Any, a: Any, b: Any) -> Any:
    (a_high, a_low), (b_high, b_low) = a, b
    total = builder.fadd(a_high, b_high)
    b_part = builder.fsub(total, a_high)
    a_error = builder.fsub(a_high, builder.fsub(total, b_part))
    error = builder.fadd(a_error, builder.fsub(b_high, b_part))
    return total, builder.fadd(builder.fadd(a_low, b_low), error)


@lowered(_fold_typer(lambda builder, a, b: (builder.select(builder.fcmp_ordered(">", a[0], b[0]), a[0], b[0]),)))
def fold_maximum(folded: Any, vector: Any) -> Any:
    """The greatest lane, as a float. This and the next two: the vector as it is, where `folded` is None."""
    return vector if folded is None else np.fmax.reduce(vector)


@lowered(_fold_typer(lambda builder, a, b: (builder.fadd(a[0], b[0]),)))
def fold_sum(folded: Any, vector: Any) -> Any:
    """The sum of all lanes."""
    return vector if folded is None else vector.sum()


@lowered(_fold_typer(_two_sum_code))
def fold_two_sum(folded: Any, high: Any, low: Any) -> Any:
    """The sum of all lanes of ``high + low``, in double-word arithmetic: a pair again."""
    if folded is None:
        return high, low
    exact = high.astype(np.longdouble).sum() + low.astype(np.longdouble).sum()
    total = high.dtype.type(exact)
    return total, high.dtype.type(exact - total)


def _scratch_typer(typingctx: Any, array: Any, vectors: Any) -> Any:
    if not _is_floats(array) or not isinstance(vectors, types.IntegerLiteral):
        return None
    size = vectors.literal_value * Lanes(array.dtype).count

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        element = context.get_value_type(array.dtype)
        with builder.goto_entry_block():  # not cgutils.alloca_once, which fills the room with zeros
            block = builder.alloca(ir.ArrayType(element, size))
        block.align = LANE_BYTES
        struct = cgutils.create_struct_proxy(array)(context, builder)
        struct.data = builder.bitcast(block, element.as_pointer())
        struct.size = context.get_constant(types.intp, size)
        return struct._getvalue()

    return array(array, vectors), codegen


@lowered(_scratch_typer)
def scratch(array: Any, vectors: int) -> Any:
    """Room for so many vectors on the stack, of the dtype of `array`, uninitialised.

    It lasts as long as the building block that asks for it, also when that is inlined: a block must not return it.
    """
    return np.empty(vectors * (LANE_BYTES // array.itemsize), array.dtype)


def _by_type(option: Any, value: Any, wanted: bool) -> Any:

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return values[1] if wanted else context.get_dummy_value()

    return (value if wanted else types.none)(option, value), codegen


def _unless_none_typer(typingctx: Any, option: Any, value: Any) -> Any:
    return _by_type(option, value, not isinstance(option, types.NoneType))


def _if_none_typer(typingctx: Any, option: Any, value: Any) -> Any:
    return _by_type(option, value, isinstance(option, types.NoneType))


@lowered(_unless_none_typer)
def unless_none(option: Any, value: Any) -> Any:
    """`value`, or None if `option` is None: decided by the type, where an ``if`` would need one type for both."""
    return None if option is None else value


@lowered(_if_none_typer)
def if_none(option: Any, value: Any) -> Any:
    """`value`, or None if `option` is not None."""
    return value if option is None else None


def _one(like: Any, context: Any) -> Any:
    return context.get_constant(like.dtype, 1.0)


def _row_value_typer(typingctx: Any, like: Any, folded: Any, array: Any, row: Any, count: Any) -> Any:
    if not _is_floats(like):
        return None
    absent = isinstance(array, types.NoneType)
    lanes = isinstance(folded, types.NoneType) and not absent
    result = Lanes(like.dtype) if lanes else like.dtype

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if absent:
            return _one(like, context)
        vector = context.get_value_type(result)
        pointer = _pointer(context, builder, array, values[2], values[3], values[4])
        if not lanes:
            return builder.load(pointer)
        mask = _first_lanes(builder, values[4], result.count)
        align = ir.IntType(32)(like.dtype.bitwidth // 8)
        operands = (_vector_pointer(builder, pointer, vector), align, mask, ir.Constant(vector, None))
        return _masked(builder, "load", vector, operands, vector)

    return result(like, folded, array, types.intp, types.intp), codegen


@lowered(_row_value_typer)
def row_value(like: Any, folded: Any, array: Any, row: int, count: int) -> Any:
    """What an array with one number for each row holds for the rows of a block: 1 if it is None.

    A float if the block is a single row (`folded`), else a vector with 0 in the lanes from `count` on.
    """
    if array is None:
        return like.dtype.type(1)
    return load_part(array, row, count, 0) if folded is None else array[row]


def _class_value_typer(typingctx: Any, like: Any, folded: Any, array: Any, k: Any, count: Any) -> Any:
    if not _is_floats(like):
        return None
    absent = isinstance(array, types.NoneType)
    lanes = not isinstance(folded, types.NoneType)
    result = Lanes(like.dtype) if lanes else like.dtype
    width = Lanes(like.dtype).count

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        index, active = values[3], values[4]
        if not lanes:
            if absent:
                return _one(like, context)
            place = builder.sdiv(index, index.type(width))
            return builder.load(_pointer(context, builder, array, values[2], place, index.type(1)))
        vector = context.get_value_type(result)
        mask = _first_lanes(builder, active, width)
        if absent:
            ones = ir.Constant(vector, [1.0] * width)
            return builder.select(mask, ones, ir.Constant(vector, None))
        pointer = _pointer(context, builder, array, values[2], index, active)
        align = ir.IntType(32)(like.dtype.bitwidth // 8)
        operands = (_vector_pointer(builder, pointer, vector), align, mask, ir.Constant(vector, None))
        return _masked(builder, "load", vector, operands, vector)

    return result(like, folded, array, types.intp, types.intp), codegen


@lowered(_class_value_typer)
def class_value(like: Any, folded: Any, array: Any, k: int, count: int) -> Any:
    """What an array with one number for each class holds for the vector at place k of a block: 1 if it is None.

    Along a row (`folded`) the numbers of `count` classes, and 0 in the lanes from `count` on; else the number of
    the one class that the vector holds.
    """
    width = LANE_BYTES // like.itemsize
    if folded is None:
        return like.dtype.type(1) if array is None else array[k // width]
    if array is None:
        return (np.arange(width) < count).astype(like.dtype)
    return load_part(array, k, count, 0)


def _masked_labels(builder: Any, pointer: Any, count: Any, lanes: int) -> Any:
    """The first `count` labels behind `pointer`, -1 in the other lanes."""
    wide = ir.VectorType(ir.IntType(64), lanes)
    nowhere = ir.Constant(wide, [-1] * lanes)
    mask = _first_lanes(builder, count, lanes)
    operands = (_vector_pointer(builder, pointer, wide), ir.IntType(32)(8), mask, nowhere)
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(wide, [operand.type for operand in operands]),
        f"llvm.masked.load.v{lanes}i64.p0",
    )
    return builder.call(function, operands)


def _one_hot_typer(typingctx: Any, like: Any, folded: Any, labels: Any, row: Any, count: Any, k: Any) -> Any:
    if not _is_floats(like):
        return None
    result = Lanes(like.dtype)
    if not isinstance(labels, Memory):
        signature = result(like, folded, labels, types.intp, types.intp, types.intp)
        return signature, lambda context, *_: ir.Constant(context.get_value_type(result), None)
    along = not isinstance(folded, types.NoneType)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        index, active, place = values[3], values[4], values[5]
        vector = context.get_value_type(result)
        wide = ir.VectorType(ir.IntType(64), result.count)
        if along:
            label = builder.load(_pointer(context, builder, labels, values[2], index, index.type(1)))
            chosen = _splat(builder, builder.sub(label, place), result.count)
            here = ir.Constant(wide, list(range(result.count)))
        else:
            pointer = _pointer(context, builder, labels, values[2], index, active)
            chosen = _masked_labels(builder, pointer, active, result.count)
            here = _splat(builder, builder.sdiv(place, place.type(result.count)), result.count)
        hit = builder.icmp_signed("==", chosen, here)
        return builder.select(hit, _constant(ir.Constant(vector, None), 1.0), ir.Constant(vector, None))

    return result(like, folded, labels, types.intp, types.intp, types.intp), codegen


@lowered(_one_hot_typer)
def one_hot(like: Any, folded: Any, labels: Any, row: int, count: int, k: int) -> Any:
    """1 where the class of a vector at place k of a block is the label of its row, else 0; 0 without labels."""
    width = LANE_BYTES // like.itemsize
    hit = np.zeros(width, like.dtype)
    if labels is None:
        return hit
    if folded is None:
        hit[:count] = labels[row : row + count] == k // width
    elif 0 <= labels[row] - k < width:
        hit[labels[row] - k] = 1
    return hit


def _lane_labels_typer(typingctx: Any, like: Any, labels: Any, row: Any, count: Any) -> Any:
    if not _is_floats(like) or not isinstance(labels, Memory):
        return None
    result = Lanes(like.dtype)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = _pointer(context, builder, labels, values[1], values[2], values[3])
        return builder.sitofp(
            _masked_labels(builder, pointer, values[3], result.count), context.get_value_type(result)
        )

    return result(like, labels, types.intp, types.intp), codegen


@lowered(_lane_labels_typer)
def lane_labels(like: Any, labels: Any, row: int, count: int) -> Any:
    """The labels of so many rows as floats, one in each lane, to compare with small numbers; -1 in other lanes."""
    lanes = np.full(LANE_BYTES // like.itemsize, -1, like.dtype)
    lanes[:count] = labels[row : row + count]
    return lanes


def _load_double_typer(typingctx: Any, array: Any, offset: Any) -> Any:
    if not _is_floats(array):
        return None
    result = Lanes(types.float64)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data, index = values
        pointer = _pointer(context, builder, array, data, index, index.type(result.count))
        vector = ir.VectorType(context.get_value_type(array.dtype), result.count)
        loaded = builder.load(_vector_pointer(builder, pointer, vector), align=array.dtype.bitwidth // 8)
        return loaded if array.dtype == types.float64 else builder.fpext(loaded, context.get_value_type(result))

    return result(array, types.intp), codegen


@lowered(_load_double_typer)
def load_double(array: Any, offset: int) -> Any:
    """The eight numbers from `offset` on, as a vector of float64."""
    assert 0 <= offset <= array.size - 8
    return array[offset : offset + 8].astype(np.float64)


# --- ragged rows: a start and a length of its own for every lane -----------------------------------------------


def _integers_typer(typingctx: Any, count: Any) -> Any:
    if not isinstance(count, types.IntegerLiteral):
        return None
    result = Memory(types.int64)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        element = ir.IntType(64)
        with builder.goto_entry_block():
            block = builder.alloca(ir.ArrayType(element, count.literal_value))
        block.align = LANE_BYTES
        struct = cgutils.create_struct_proxy(result)(context, builder)
        struct.data = builder.bitcast(block, element.as_pointer())
        struct.size = context.get_constant(types.intp, count.literal_value)
        return struct._getvalue()

    return result(count), codegen


@lowered(_integers_typer)
def integers(count: int) -> Any:
    """Room for so many 64-bit integers on the stack, uninitialised."""
    return np.empty(count, np.int64)


def _store_integer_typer(typingctx: Any, array: Any, offset: Any, value: Any) -> Any:
    if not isinstance(array, Memory) or array.dtype != types.int64 or not isinstance(value, types.Integer):
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data, index, scalar = values
        builder.store(scalar, _pointer(context, builder, array, data, index, index.type(1)))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), codegen


@lowered(_store_integer_typer)
def store_integer(array: Any, offset: int, value: int) -> None:
    """Write the 64-bit integer at `offset`."""
    assert 0 <= offset < array.size
    array[offset] = value


def _ragged_pointers(
    context: Any, builder: Any, types_of: Sequence[Any], values: Sequence[Any], lanes: int
) -> tuple[Any, Any]:
    """Addresses of element k of the row of each lane, and the mask of the lanes whose row is longer than k."""
    (array, table, _, _, _), (data, starts, lengths, at, k) = types_of, values
    wide = ir.VectorType(ir.IntType(64), lanes)

    def lane_values(memory_value: Any) -> Any:
        pointer = _pointer(context, builder, table, memory_value, at, at.type(lanes))
        return builder.load(_vector_pointer(builder, pointer, wide), align=8)

    place = _splat(builder, k, lanes)
    index = builder.add(lane_values(starts), place)
    mask = builder.icmp_signed("<", place, lane_values(lengths))
    struct = cgutils.create_struct_proxy(array)(context, builder, data)
    raises = index_error(context)
    if raises is not None:
        negative = builder.icmp_signed("<", index, ir.Constant(wide, None))
        beyond = builder.icmp_signed(">=", index, _splat(builder, struct.size, lanes))
        outside = builder.bitcast(builder.and_(mask, builder.or_(negative, beyond)), ir.IntType(lanes))
        with builder.if_then(builder.icmp_signed("!=", outside, outside.type(0)), likely=False):
            raises(builder, "kernel access outside its array")
    size = _splat(builder, ir.IntType(64)(array.dtype.bitwidth // 8), lanes)
    address = _splat(builder, builder.ptrtoint(struct.data, ir.IntType(64)), lanes)
    address = builder.add(address, builder.mul(index, size))
    return builder.inttoptr(address, ir.VectorType(struct.data.type, lanes)), mask


def _is_table(value: Any) -> bool:
    return isinstance(value, Memory) and value.dtype == types.int64


def _gather_rows_typer(typingctx: Any, array: Any, starts: Any, lengths: Any, at: Any, k: Any, filler: Any) -> Any:
    if not _is_floats(array) or not _is_table(starts) or not _is_table(lengths):
        return None
    result = Lanes(array.dtype)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = context.get_value_type(result)
        kinds = (array, starts, lengths, at, k)
        pointers, mask = _ragged_pointers(context, builder, kinds, values[:5], result.count)
        align = ir.IntType(32)(array.dtype.bitwidth // 8)
        operands = (pointers, align, mask, _splat(builder, values[5], result.count))
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [operand.type for operand in operands]),
            f"llvm.masked.gather.{_suffix(vector)}.v{result.count}p0",
        )
        return builder.call(function, operands)

    return result(array, starts, lengths, types.intp, types.intp, array.dtype), codegen


@lowered(_gather_rows_typer)
def gather_rows(array: Any, starts: Any, lengths: Any, at: int, k: int, filler: Any) -> Any:
    """Element k of the row of each lane, `filler` where that row is not longer than k.

    The row of lane l begins at ``starts[at + l]`` and has ``lengths[at + l]`` elements.
    """
    count = LANE_BYTES // array.itemsize
    lanes = np.full(count, filler, array.dtype)
    for lane in range(count):
        if k < lengths[at + lane]:
            assert 0 <= starts[at + lane] + k < array.size
            lanes[lane] = array[starts[at + lane] + k]
    return lanes


def _scatter_rows_typer(typingctx: Any, array: Any, starts: Any, lengths: Any, at: Any, k: Any, value: Any) -> Any:
    if not _is_floats(array) or not isinstance(value, Lanes) or not _is_table(starts) or not _is_table(lengths):
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kinds = (array, starts, lengths, at, k)
        pointers, mask = _ragged_pointers(context, builder, kinds, values[:5], value.count)
        align = ir.IntType(32)(array.dtype.bitwidth // 8)
        operands = (values[5], pointers, align, mask)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [operand.type for operand in operands]),
            f"llvm.masked.scatter.{_suffix(values[5].type)}.v{value.count}p0",
        )
        builder.call(function, operands)
        return context.get_dummy_value()

    return types.void(array, starts, lengths, types.intp, types.intp, value), codegen


@lowered(_scatter_rows_typer)
def scatter_rows(array: Any, starts: Any, lengths: Any, at: int, k: int, value: Any) -> None:
    """The way back of `gather_rows`: nothing is written where the row is not longer than k."""
    for lane in range(len(value)):
        if k < lengths[at + lane]:
            assert 0 <= starts[at + lane] + k < array.size
            array[starts[at + lane] + k] = value[lane]


def _neighbours_typer(
    typingctx: Any, like: Any, indptr: Any, n: Any, entries: Any, starts: Any, lengths: Any, at: Any
) -> Any:
    if not _is_floats(like) or not (_is_table(indptr) and _is_table(starts) and _is_table(lengths)):
        return None
    lanes = Lanes(like.dtype).count
    result = types.UniTuple(types.int64, 2)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        wide = ir.VectorType(ir.IntType(64), lanes)
        index, place = values[2], values[6]

        def at_vector(kind: Any, value: Any, offset: Any) -> Any:
            pointer = _pointer(context, builder, kind, value, offset, offset.type(lanes))
            return _vector_pointer(builder, pointer, wide)

        def bounded(value: Any, least: Any) -> Any:
            value = builder.select(builder.icmp_signed("<", value, least), least, value)
            most = _splat(builder, values[3], lanes)
            return builder.select(builder.icmp_signed(">", value, most), most, value)

        def reduced(name: str, value: Any) -> Any:
            kind = ir.FunctionType(ir.IntType(64), [wide])
            name = f"llvm.vector.reduce.{name}.v{lanes}i64"
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [value])

        behind = builder.add(index, index.type(1))
        begin = builder.load(at_vector(indptr, values[1], index), align=8)
        end = builder.load(at_vector(indptr, values[1], behind), align=8)
        begin = bounded(begin, ir.Constant(wide, None))
        length = builder.sub(bounded(end, begin), begin)
        builder.store(begin, at_vector(starts, values[4], place), align=8)
        builder.store(length, at_vector(lengths, values[5], place), align=8)
        return context.make_tuple(builder, result, [reduced("smin", length), reduced("smax", length)])

    return result(like, indptr, types.intp, types.int64, starts, lengths, types.intp), codegen


@lowered(_neighbours_typer)
def neighbours(
    like: Any, indptr: Any, n: int, entries: int, starts: Any, lengths: Any, at: int
) -> tuple[int, int]:
    """Starts and lengths of the segments from n on, one for each lane of `like`, kept inside of 0 .. `entries`.

    They are written from `at` on; the result is the least and the greatest length.
    """
    count = LANE_BYTES // like.itemsize
    begin = np.clip(indptr[n : n + count], 0, entries)
    length = np.clip(indptr[n + 1 : n + 1 + count], begin, entries) - begin
    starts[at : at + count] = begin
    lengths[at : at + count] = length
    return int(length.min()), int(length.max())


# --- loops that C calls --------------------------------------------------------------------------------------
# A ufunc's loop gets ``char **args, intp *dimensions, intp *steps, void *data``. The type of `args` says what the
# numbers are. These functions have no meaning in Python: under NUMBA_DISABLE_JIT there are no such loops.


def _item_typer(typingctx: Any, pointer: Any, index: Any) -> Any:
    if not isinstance(pointer, types.CPointer):
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(builder.gep(values[0], [values[1]]))

    return pointer.dtype(pointer, types.intp), codegen


@lowered(_item_typer)
def item(pointer: Any, index: int) -> Any:
    """``pointer[index]``, as in C."""
    raise NotImplementedError


def _memory_at_typer(typingctx: Any, pointer: Any) -> Any:
    if not isinstance(pointer, types.CPointer):
        return None
    result = Memory(pointer.dtype)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        struct = cgutils.create_struct_proxy(result)(context, builder)
        struct.data = values[0]
        struct.size = context.get_constant(types.intp, types.intp.maxval)
        return struct._getvalue()

    return result(pointer), codegen


@lowered(_memory_at_typer)
def memory_at(pointer: Any) -> Any:
    """The memory from an address on, however much there is."""
    raise NotImplementedError


def _address_typer(typingctx: Any, array: Any) -> Any:
    if not isinstance(array, Memory):
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        struct = cgutils.create_struct_proxy(array)(context, builder, values[0])
        return builder.ptrtoint(struct.data, context.get_value_type(types.intp))

    return types.intp(array), codegen


@lowered(_address_typer)
def address(array: Any) -> int:
    """Where the first number lies."""
    return int(array.ctypes.data)


def _lanes_of(array: Any) -> Any:
    """The vector that numbers of this memory are computed in; None if they are no floats."""
    if not isinstance(array, Memory):
        return None
    if array.dtype == types.uint16:  # float16, which Numba has no type for on a CPU
        return Lanes(types.float32)
    return Lanes(array.dtype) if isinstance(array.dtype, types.Float) else None


def _width_typer(typingctx: Any, array: Any) -> Any:
    lanes = _lanes_of(array)
    if lanes is None:
        return None
    return types.intp(array), lambda context, *_: context.get_constant(types.intp, lanes.count)


@lowered(_width_typer)
def width(array: Any) -> int:
    """How many numbers `read` and `write` take at once."""
    return int(LANE_BYTES // array.itemsize)


def _item_size_typer(typingctx: Any, array: Any) -> Any:
    if not isinstance(array, Memory):
        return None
    size = array.dtype.bitwidth // 8
    return types.intp(array), lambda context, *_: context.get_constant(types.intp, size)


@lowered(_item_size_typer)
def item_size(array: Any) -> int:
    """How many bytes a number takes."""
    return int(array.itemsize)


def _lane_typer(typingctx: Any, vector: Any, index: Any) -> Any:
    if not isinstance(vector, Lanes):
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.extract_element(values[0], values[1])

    return vector.dtype(vector, types.intp), codegen


@lowered(_lane_typer)
def lane(vector: Any, index: int) -> Any:
    """One lane of a vector, as a float."""
    return vector[index]


def _scattered(builder: Any, name: str, result: Any, operands: Sequence[Any], vector: Any) -> Any:
    """A masked gather or scatter of vectors of this type."""
    element = vector.element
    suffix = f"i{element.width}" if isinstance(element, ir.IntType) else _suffix(element)
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(result, [operand.type for operand in operands]),
        f"llvm.masked.{name}.v{vector.count}{suffix}.v{vector.count}p0",
    )
    return builder.call(function, operands)


def _is_whole(builder: Any, stride: Any, count: Any, lanes: int) -> Any:
    """Whether numbers lie side by side and fill a vector."""
    return builder.and_(
        builder.icmp_signed("==", stride, stride.type(1)), builder.icmp_signed("==", count, count.type(lanes))
    )


def _from_half(builder: Any, short: Any, vector: Any) -> Any:
    """float16 as float32: the exponent is 112 too small after the shift, which a product puts right."""
    bits = builder.zext(short, ir.VectorType(ir.IntType(32), vector.count))
    magnitude = builder.shl(builder.and_(bits, _constant(bits, 0x7FFF)), _constant(bits, 13))
    value = builder.bitcast(magnitude, vector)
    pattern = builder.bitcast(builder.fmul(value, _constant(value, 2.0**112)), bits.type)
    special = builder.icmp_unsigned(">=", magnitude, _constant(bits, 0x7C00 << 13))
    pattern = builder.select(special, builder.or_(pattern, _constant(bits, 0x7F800000)), pattern)
    sign = builder.shl(builder.and_(bits, _constant(bits, 0x8000)), _constant(bits, 16))
    return builder.bitcast(builder.or_(pattern, sign), vector)


def _to_half(builder: Any, value: Any) -> Any:
    """float32 rounded to float16: to nearest, halves to even."""
    bits = _integer(builder, value)
    sign = builder.lshr(builder.and_(bits, _constant(bits, 0x80000000)), _constant(bits, 16))
    magnitude = builder.and_(bits, _constant(bits, 0x7FFFFFFF))
    # Normal: another bias, and a rounding that may carry into the exponent, up to inf.
    odd = builder.and_(builder.lshr(magnitude, _constant(bits, 13)), _constant(bits, 1))
    normal = builder.add(builder.add(magnitude, _constant(bits, 0xC8000FFF)), odd)
    normal = builder.lshr(normal, _constant(bits, 13))
    # Denormal: adding 1/2 rounds at the right place.
    positive = builder.bitcast(magnitude, value.type)
    small = builder.bitcast(builder.fadd(positive, _constant(positive, 0.5)), bits.type)
    small = builder.sub(small, _constant(bits, 0x3F000000))
    result = builder.select(builder.icmp_unsigned("<", magnitude, _constant(bits, 0x38800000)), small, normal)
    infinite = builder.icmp_unsigned(">=", magnitude, _constant(bits, 0x47800000))
    result = builder.select(infinite, _constant(bits, 0x7C00), result)
    invalid = builder.icmp_unsigned(">", magnitude, _constant(bits, 0x7F800000))
    result = builder.or_(builder.select(invalid, _constant(bits, 0x7E00), result), sign)
    return builder.trunc(result, ir.VectorType(ir.IntType(16), value.type.count))


def _read_typer(typingctx: Any, array: Any, stride: Any, count: Any) -> Any:
    result = _lanes_of(array)
    if result is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data, stride, count = values
        element = context.get_value_type(array.dtype)
        vector = ir.VectorType(element, result.count)
        align = array.dtype.bitwidth // 8
        one = 0x3C00 if isinstance(element, ir.IntType) else 1.0
        zero = stride.type(0)
        with builder.if_else(_is_whole(builder, stride, count, result.count), likely=True) as (whole, other):
            with whole:
                pointer = _pointer(context, builder, array, data, zero, count)
                loaded = builder.load(_vector_pointer(builder, pointer, vector), align=align)
                loaded_in = builder.block
            with other:
                pointers, mask = _strided_pointers(
                    context, builder, array, (data, zero, stride, count), result.count
                )
                ones = ir.Constant(vector, [one] * result.count)
                operands = (pointers, ir.IntType(32)(align), mask, ones)
                gathered = _scattered(builder, "gather", vector, operands, vector)
                gathered_in = builder.block
        value = builder.phi(vector)
        value.add_incoming(loaded, loaded_in)
        value.add_incoming(gathered, gathered_in)
        if array.dtype == types.uint16:
            return _from_half(builder, value, context.get_value_type(result))
        return value

    return result(array, types.intp, types.intp), codegen


@lowered(_read_typer)
def read(array: Any, stride: int, count: int) -> Any:
    """The first `count` numbers that lie `stride` apart, and 1 in the other lanes; float16 becomes float32."""
    lanes = np.ones(width(array), array.dtype)
    lanes[:count] = array[np.arange(count) * stride]
    return lanes


def _write_typer(typingctx: Any, array: Any, stride: Any, count: Any, value: Any) -> Any:
    if _lanes_of(array) is None or value != _lanes_of(array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data, stride, count, lanes = values
        if array.dtype == types.uint16:
            lanes = _to_half(builder, lanes)
        align = array.dtype.bitwidth // 8
        zero = stride.type(0)
        with builder.if_else(_is_whole(builder, stride, count, value.count), likely=True) as (whole, other):
            with whole:
                pointer = _pointer(context, builder, array, data, zero, count)
                builder.store(lanes, _vector_pointer(builder, pointer, lanes.type), align=align)
            with other:
                pointers, mask = _strided_pointers(
                    context, builder, array, (data, zero, stride, count), value.count
                )
                operands = (lanes, pointers, ir.IntType(32)(align), mask)
                _scattered(builder, "scatter", ir.VoidType(), operands, lanes.type)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, value), codegen


@lowered(_write_typer)
def write(array: Any, stride: int, count: int, value: Any) -> None:
    """Write the first `count` lanes to memory, `stride` apart."""
    array[np.arange(count) * stride] = value[:count]


def _singles_typer(typingctx: Any, array: Any) -> Any:
    if not isinstance(array, Memory):
        return None
    result = Memory(types.float32)
    codegen = lambda context, *_: cgutils.get_null_value(context.get_value_type(result))  # noqa: E731
    return result(array), codegen


@lowered(_singles_typer)
def singles(array: Any) -> Any:
    """No memory, of float32: for `scratch`."""
    raise NotImplementedError


def _call_loop_typer(
    typingctx: Any, function: Any, count: Any, x: Any, x_stride: Any, v: Any, v_stride: Any, y: Any, y_stride: Any
) -> Any:
    if function != types.voidptr:
        return None

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        code, count, *operands = values
        byte_pointer, size = ir.IntType(8).as_pointer(), count.type
        rows = [(x, *operands[0:2]), (v, *operands[2:4]), (y, *operands[4:6])]
        rows = [row for row in rows if isinstance(row[0], Memory)]
        args = cgutils.alloca_once(builder, ir.ArrayType(byte_pointer, len(rows)))
        steps = cgutils.alloca_once(builder, ir.ArrayType(size, len(rows)))
        dimensions = cgutils.alloca_once(builder, ir.ArrayType(size, 1))
        builder.store(count, cgutils.gep_inbounds(builder, dimensions, 0, 0))
        for k, (kind, array, stride) in enumerate(rows):
            data = cgutils.create_struct_proxy(kind)(context, builder, array).data
            builder.store(builder.bitcast(data, byte_pointer), cgutils.gep_inbounds(builder, args, 0, k))
            step = builder.mul(stride, size(kind.dtype.bitwidth // 8))
            builder.store(step, cgutils.gep_inbounds(builder, steps, 0, k))
        operands = [cgutils.gep_inbounds(builder, block, 0, 0) for block in (args, dimensions, steps)]
        operands.append(ir.Constant(byte_pointer, None))
        kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
        builder.call(builder.bitcast(code, kind.as_pointer()), operands)
        return context.get_dummy_value()

    return types.void(function, types.intp, x, types.intp, v, types.intp, y, types.intp), codegen


@lowered(_call_loop_typer)
def call_loop(
    function: Any, count: int, x: Any, x_stride: int, v: Any, v_stride: int, y: Any, y_stride: int
) -> None:
    """Call a ufunc's loop at an address: y = function(x, v), or y = function(x) where v is None."""
    raise NotImplementedError


# The bits of the floating-point status for invalid, division by zero and overflow.
_STATUS_BITS = {"x86_64": (1, 4, 8), "aarch64": (1, 2, 4)}


def _machine(builder: Any) -> str:
    name = str(builder.module.triple).partition("-")[0]
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def _status_register(builder: Any, machine: str, write: Any = None) -> Any:
    """Write the floating-point status if given, else read it: as a 32-bit integer."""
    word = ir.IntType(32)
    if machine == "x86_64":
        room = cgutils.alloca_once(builder, word)
        if write is not None:
            builder.store(write, room)
        pointer = builder.bitcast(room, ir.IntType(8).as_pointer())
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [pointer.type]),
            "llvm.x86.sse.stmxcsr" if write is None else "llvm.x86.sse.ldmxcsr",
        )
        builder.call(function, [pointer])
        return builder.load(room)
    binding.initialize_native_asmparser()
    long = ir.IntType(64)
    if write is None:
        code = ir.InlineAsm(ir.FunctionType(long, []), "mrs $0, fpsr", "=r,~{memory}", side_effect=True)
        return builder.trunc(builder.call(code, []), word)
    code = ir.InlineAsm(ir.FunctionType(ir.VoidType(), [long]), "msr fpsr, $0", "r,~{memory}", side_effect=True)
    builder.call(code, [builder.zext(write, long)])
    return write


def _float_status_typer(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        machine = _machine(builder)
        return _status_register(builder, machine) if machine in _STATUS_BITS else ir.IntType(32)(0)

    return types.uint32(), codegen


@lowered(_float_status_typer)
def float_status() -> int:
    """The floating-point exceptions that were raised so far, in the form that `set_float_status` takes."""
    raise NotImplementedError


def _set_float_status_typer(typingctx: Any, status: Any, invalid: Any, divide: Any, overflow: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        machine = _machine(builder)
        if machine in _STATUS_BITS:
            status = values[0]
            for raised, bit in zip(values[1:], _STATUS_BITS[machine], strict=True):
                added = builder.select(raised, status.type(bit), status.type(0))
                status = builder.or_(status, added)
            _status_register(builder, machine, write=status)
        return context.get_dummy_value()

    return types.void(types.uint32, types.boolean, types.boolean, types.boolean), codegen


@lowered(_set_float_status_typer)
def set_float_status(status: int, invalid: bool, divide: bool, overflow: bool) -> None:
    """Make `status` and these the floating-point exceptions that were raised.

    Vector code computes what it then discards: its own exceptions mean nothing. On processors that are not listed
    above, they stay.
    """
    raise NotImplementedError
