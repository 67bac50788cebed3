"""Operations on each lane of vectors. They also take floats, with the same body."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import lower_builtin, type_callable

from fastsoftmax._vectors import VECTOR_BYTES
from fastsoftmax.machine.lowering import (
    AnyVector,
    Build,
    Item,
    Lanes,
    Memory,
    Same,
    Value,
    common,
    element_bits,
    elementwise,
    is_none,
    item_of,
    lowered,
)

_MANTISSA = {32: 23, 64: 52}
_SQRT_HALF_BITS = {
    32: int(np.float32(np.sqrt(0.5)).view(np.int32)),
    64: int(np.float64(np.sqrt(0.5)).view(np.int64)),
}


def _arithmetic(operation: Any, instruction: str) -> None:
    """Register an infix operator on `Lanes`, or on `Lanes` and a float, with Numba."""

    @type_callable(operation)
    def _type(context: Any) -> Callable[[Any, Any], Any]:
        return lambda a, b: common(a, b) if Lanes in (type(a), type(b)) else None

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return Build(context, builder, signature).run(
            lambda build, *operands: getattr(build, instruction)(*build.alike(operands)), values
        )

    for pair in ((Lanes, Lanes), (Lanes, types.Float), (types.Float, Lanes)):
        lower_builtin(operation, *pair)(lower)


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


@type_callable(operator.neg)
def _type_negation(context: Any) -> Callable[[Any], Any]:
    return lambda a: a if isinstance(a, Lanes) else None


@lower_builtin(operator.neg, Lanes)
def _lower_negation(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    return builder.fneg(values[0])


@elementwise(lambda build, a, b, c: build.call_on("fmuladd", a, b, c))
def muladd(a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, fused where the machine fuses, rounded twice where it does not."""
    return a * b + c


@elementwise(lambda build, a, b, c: build.call_on("fma", a, b, c))
def fma(a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` rounded once on every machine, for the exact errors of products."""
    wide = np.longdouble
    return (wide(a) * wide(b) + wide(c)).astype(np.result_type(a, b, c))


@elementwise(lambda build, a, b: build.choose(">", a, b, a, b))
def maximum(a: Any, b: Any) -> Any:
    """The greater of the two, and `b` where `a` is NaN. It is one instruction, because it need not keep NaN."""
    return np.where(a > b, a, b)


@elementwise(lambda build, a, b: build.choose("<", a, b, a, b))
def minimum(a: Any, b: Any) -> Any:
    """The lesser of the two, and `b` where `a` is NaN."""
    return np.where(a < b, a, b)


@elementwise(lambda build, a, b, x, y: build.choose("<", a, b, x, y))
def select_less(a: Any, b: Any, x: Any, y: Any) -> Any:
    """``x if a < b else y``; a NaN compares false."""
    return np.where(a < b, x, y)


@elementwise(lambda build, a, b, x: build.select(build.fcmp_unordered(">=", a, b), x, build.constant(x.type, 0.0)))
def zero_if_less(a: Any, b: Any, x: Any) -> Any:
    """``0 if a < b else x``; a NaN compares false. With AVX-512 it is part of the instruction that computes x."""
    return np.where(a < b, np.zeros_like(x), x)


@elementwise(lambda build, a, b, x, y: build.choose("==", a, b, x, y))
def select_equal(a: Any, b: Any, x: Any, y: Any) -> Any:
    """``x if a == b else y``; a NaN compares false."""
    return np.where(a == b, x, y)


def _select_negative(build: Any, a: Any, x: Any, y: Any) -> Any:
    bits = build.integer(a)
    return build.select(build.icmp_signed("<", bits, bits.type(None)), x, y)


@elementwise(_select_negative)
def select_negative(a: Any, x: Any, y: Any) -> Any:
    """``x`` if the sign of `a` is negative, as that of -0.0 is, else ``y``."""
    return np.where(np.signbit(a), x, y)


def _count_equal(build: Any, a: Any, b: Any, count: Any) -> Any:
    bits = build.integer(count)
    return build.bitcast(build.sub(bits, build.sext(build.fcmp_ordered("==", a, b), bits.type)), count.type)


@elementwise(_count_equal)
def count_equal(a: Any, b: Any, count: Any) -> Any:
    """`count`, whose bits are a whole number, plus 1 where ``a == b``; see `counted`."""
    bits: Any = np.asarray(count)
    whole: Any = np.int32 if bits.dtype == np.float32 else np.int64
    return (bits.view(whole) + (a == b).astype(whole)).view(bits.dtype)


@elementwise(lambda build, count: build.sitofp(build.integer(count), count.type))
def counted(count: Any) -> Any:
    """The whole number that the bits of `count` are, as a float."""
    bits: Any = np.asarray(count)
    return bits.view(np.int32 if bits.dtype == np.float32 else np.int64).astype(bits.dtype)


def _any_above(build: Any, a: Any, limit: Any) -> Any:
    value, least = build.alike((a, limit))
    above = build.fcmp_ordered(">", value, least)
    if not isinstance(above.type, ir.VectorType):
        return above
    bits = build.bitcast(above, ir.IntType(above.type.count))
    return build.icmp_unsigned("!=", bits, bits.type(0))


@lowered(_any_above)
def any_above(a: Value, limit: Item) -> bool:
    """Whether any lane is greater than a float, for branches that are rarely taken."""
    return bool(np.any(a > limit))


def _lanes_above(build: Any, a: Any, limit: Any) -> Any:
    above = build.fcmp_ordered(">", *build.alike((a, limit)))
    return build.zext(build.bitcast(above, ir.IntType(above.type.count)), build.result)


@lowered(_lanes_above)
def lanes_above(a: AnyVector, limit: Item) -> int:
    """The lanes that are greater than a float, as the bits of a number: lane 0 is bit 0."""
    return int(sum(1 << int(i) for i in np.flatnonzero(a > limit)))


@lowered(lambda build, bits: build.cttz(bits, ir.IntType(1)(True)))
def lowest_bit(bits: int) -> int:
    """The place of the lowest bit of a number that is not 0."""
    return (bits & -bits).bit_length() - 1


@elementwise(lambda build, a: build.call_on("fabs", a))
def absolute(a: Any) -> Any:
    """`a` without its sign."""
    return np.abs(a)


@elementwise(lambda build, a: build.call_on("trunc", a))
def truncate(a: Any) -> Any:
    """`a` without its fraction."""
    return np.trunc(a)


@elementwise(lambda build, a: build.call_on("rint", a))
def nearest(a: Any) -> Any:
    """The nearest whole number, halves to even."""
    return np.rint(a)


def _shift_to_exponent(build: Any, a: Any) -> Any:
    bits = build.integer(a)
    return build.bitcast(build.shl(bits, build.constant(bits.type, _MANTISSA[element_bits(a.type)])), a.type)


@elementwise(_shift_to_exponent)
def shift_to_exponent(a: Any) -> Any:
    """The number whose exponent field is the low bits of `a`: ``2**(k - bias)`` for ``a = magic + k``."""
    bits: Any = np.asarray(a)
    shift: Any = np.int32(23) if bits.dtype == np.float32 else np.int64(52)
    return np.left_shift(bits.view(shift.dtype), shift).view(bits.dtype)


def _split_exponent(build: Any, a: Any) -> Any:
    bits, width = build.integer(a), element_bits(a.type)
    half = build.constant(bits.type, _SQRT_HALF_BITS[width])
    shift = build.constant(bits.type, _MANTISSA[width])
    exponent = build.ashr(build.sub(bits, half), shift)
    fraction = build.sub(bits, build.shl(exponent, shift))
    return build.sitofp(exponent, a.type), build.bitcast(fraction, a.type)


@lowered(_split_exponent, lambda a: types.UniTuple(a, 2))
def split_exponent(a: Value) -> Any:
    """k and m with ``a = 2**k * m``, sqrt(1/2) <= m < sqrt(2), for a normal a > 0."""
    m, k = np.frexp(a)
    small = m < np.sqrt(np.asarray(0.5, np.asarray(a).dtype))
    kind: Any = np.asarray(a).dtype.type
    return kind(k - small), np.where(small, kind(2) * m, m)


@lowered(lambda build, a: build.constant(build.result, item_of(build.signature.args[0]).bitwidth == 32))
def is_single(a: Value) -> bool:
    """Whether `a` is float32. It is known when compiling, so that only one branch of an ``if`` remains."""
    return bool(np.asarray(a).dtype == np.float32)


def _number(build: Any, like: Any, value: Any) -> Any:
    return build.context.cast(build.builder, value, types.float64, item_of(build.signature.args[0]))


@lowered(_number, lambda like, _: item_of(like) if isinstance(like, (Lanes, types.Float, Memory)) else None)
def number(like: Any, value: float) -> Any:
    """`value` rounded to the dtype of `like`, which is a float, a vector or an array."""
    return like.dtype.type(value)


@lowered(lambda build, like, value: build.alike((_number(build, like, value), like))[0])
def filled(like: Value, value: float) -> Same:
    """`value` in every lane if `like` is a vector, or as a float if it is one."""
    return np.full_like(like, value)


def _broadcast(build: Any, value: Any) -> Any:
    return value if value.type == build.result else build.splat(value, build.result.count)


@lowered(_broadcast, lambda value: Lanes(item_of(value)))
def broadcast(value: Value) -> Any:
    """The vector with a float in every lane; a vector stays as it is."""
    return value if np.ndim(value) else np.full(VECTOR_BYTES // value.itemsize, value)


@lowered(
    lambda build, vector, count, filler: build.select(
        build.first_lanes(build.sub(count.type(vector.type.count), count), vector.type.count),
        build.splat(filler, vector.type.count),
        vector,
    )
)
def last_lanes(vector: AnyVector, count: int, filler: Item) -> Same:
    """The last `count` lanes of a vector, and `filler` in the others."""
    lanes = vector.copy()
    lanes[: len(lanes) - count] = filler
    return lanes


@lowered(lambda build, vector, index: build.extract_element(vector, index))
def lane(vector: AnyVector, index: int) -> Item:
    """One lane of a vector, as a float."""
    return vector[index]


@lowered(lambda build, option, value: value, lambda option, value: types.none if is_none(option) else value)
def unless_none(option: Any, value: Any) -> Any:
    """`value`, or None if `option` is None. The type decides; both branches of an ``if`` would need one type."""
    return None if option is None else value


@lowered(lambda build, option, value: value, lambda option, value: value if is_none(option) else types.none)
def if_none(option: Any, value: Any) -> Any:
    """`value`, or None if `option` is not None."""
    return value if option is None else None
