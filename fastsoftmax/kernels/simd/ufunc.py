"""Operations for the inner loops of ufuncs, which C calls: strided numbers, float16, floating-point exceptions.

Such a loop gets ``char **args, intp *dimensions, intp *steps, void *data``. The type of `args` is that of the
numbers. Most of these operations have no meaning in Python: under NUMBA_DISABLE_JIT there are no such loops.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastsoftmax._vectors import VECTOR_BYTES
from fastsoftmax.kernels.simd.lowering import (
    BYTES,
    INT32,
    INT64,
    Address,
    Halves,
    Item,
    Memory,
    Numbers,
    Pointer,
    Vector,
    lowered,
    vector_of,
)
from fastsoftmax.machine import status


@lowered(lambda build, pointer, index: build.load(build.gep(pointer, [index])))
def item(pointer: Pointer, index: int) -> Item:
    """``pointer[index]``, as in C."""
    raise NotImplementedError


@lowered(
    lambda build, pointer: build.memory(build.signature.args[0].dtype, pointer, INT64(types.intp.maxval)),
    lambda pointer: Memory(pointer.dtype),
)
def memory_at(pointer: Pointer) -> Any:
    """The memory from an address on, of unknown size."""
    raise NotImplementedError


@lowered(lambda build, array: build.result(None), lambda array: Memory(types.float32))
def singles(array: Numbers) -> Any:
    """Empty memory of float32, for `scratch`."""
    raise NotImplementedError


def _from_half(build: Any, short: Any, vector: Any) -> Any:
    """float16 as float32: after the shift the exponent is 112 too small, which a product corrects."""
    bits = build.zext(short, vector_of(INT32, vector.count))

    def of(value: int) -> Any:
        return build.constant(bits.type, value)

    magnitude = build.shl(build.and_(bits, of(0x7FFF)), of(13))
    value = build.bitcast(magnitude, vector)
    pattern = build.bitcast(build.fmul(value, build.constant(vector, 2.0**112)), bits.type)
    special = build.icmp_unsigned(">=", magnitude, of(0x7C00 << 13))
    pattern = build.select(special, build.or_(pattern, of(0x7F800000)), pattern)
    sign = build.shl(build.and_(bits, of(0x8000)), of(16))
    return build.bitcast(build.or_(pattern, sign), vector)


def _to_half(build: Any, value: Any) -> Any:
    """float32 rounded to float16: to nearest, halves to even."""
    bits = build.integer(value)

    def of(value: int) -> Any:
        return build.constant(bits.type, value)

    sign = build.lshr(build.and_(bits, of(0x80000000)), of(16))
    magnitude = build.and_(bits, of(0x7FFFFFFF))
    # Normal: change the bias, and round, which may carry into the exponent, up to inf.
    odd = build.and_(build.lshr(magnitude, of(13)), of(1))
    normal = build.lshr(build.add(build.add(magnitude, of(0xC8000FFF)), odd), of(13))
    # Denormal: adding 1/2 rounds at the last place of float16.
    positive = build.bitcast(magnitude, value.type)
    small = build.bitcast(build.fadd(positive, build.constant(value.type, 0.5)), bits.type)
    small = build.sub(small, of(0x3F000000))
    result = build.select(build.icmp_unsigned("<", magnitude, of(0x38800000)), small, normal)
    result = build.select(build.icmp_unsigned(">=", magnitude, of(0x47800000)), of(0x7C00), result)
    invalid = build.icmp_unsigned(">", magnitude, of(0x7F800000))
    result = build.or_(build.select(invalid, of(0x7E00), result), sign)
    return build.trunc(result, vector_of(ir.IntType(16), value.type.count))


def _is_whole(build: Any, array: Any, stride: Any, count: Any) -> Any:
    """Whether numbers are contiguous and fill a vector."""
    return build.and_(
        build.icmp_signed("==", stride, stride.type(1)), build.icmp_signed("==", count, count.type(array.lanes))
    )


def _read(build: Any, array: Any, stride: Any, count: Any) -> Any:
    half = array.kind.dtype == types.uint16
    zero = stride.type(0)
    with build.if_else(_is_whole(build, array, stride, count), likely=True) as (whole, other):
        with whole:
            loaded = array.load(zero)
            loaded_in = build.block
        with other:
            ones = build.constant(array.vector, 0x3C00 if half else 1.0)
            gathered = build.masked("gather", *array.strided(zero, stride, count), ones)
            gathered_in = build.block
    value = build.phi(array.vector)
    value.add_incoming(loaded, loaded_in)
    value.add_incoming(gathered, gathered_in)
    return _from_half(build, value, build.result) if half else value


@lowered(_read)
def read(array: Halves, stride: int, count: int) -> Vector:
    """The first `count` numbers that lie `stride` apart, and 1 in the other lanes; float16 becomes float32."""
    lanes = np.ones(VECTOR_BYTES // array.itemsize, array.dtype)
    lanes[:count] = array[np.arange(count) * stride]
    return lanes


def _write(build: Any, array: Any, stride: Any, count: Any, value: Any) -> None:
    if array.kind.dtype == types.uint16:
        value = _to_half(build, value)
    zero = stride.type(0)
    with build.if_else(_is_whole(build, array, stride, count), likely=True) as (whole, other):
        with whole:
            array.store(zero, value)
        with other:
            build.masked("scatter", *array.strided(zero, stride, count), value)


@lowered(_write)
def write(array: Halves, stride: int, count: int, value: Vector) -> None:
    """Write the first `count` lanes to memory, `stride` apart."""
    array[np.arange(count) * stride] = value[:count]


def _call_loop(build: Any, code: Any, count: Any, *rows: Any) -> None:
    there = [(array, stride) for array, stride in zip(rows[::2], rows[1::2], strict=True) if array is not None]

    def block(values: Any) -> Any:
        room = cgutils.alloca_once(build.builder, ir.ArrayType(values[0].type, len(values)))
        for k, value in enumerate(values):
            build.store(value, cgutils.gep_inbounds(build.builder, room, 0, k))
        return cgutils.gep_inbounds(build.builder, room, 0, 0)

    operands = [
        block([build.bitcast(array.data, BYTES) for array, _ in there]),
        block([count]),
        block([build.mul(stride, count.type(array.item_bytes)) for array, stride in there]),
        BYTES(None),
    ]
    kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
    build.call(build.bitcast(code, kind.as_pointer()), operands)


@lowered(_call_loop)
def call_loop(
    function: Address, count: int, x: Any, x_stride: int, v: Any, v_stride: int, y: Any, y_stride: int
) -> None:
    """Call a ufunc's loop at an address: y = function(x, v), or y = function(x) where v is None."""
    raise NotImplementedError


def _status(build: Any, name: str, *operands: Any) -> Any:
    return build.call(status.called(build.builder.module, name), operands)


@lowered(lambda build: _status(build, status.READ), lambda: types.uint32)
def float_status() -> int:
    """The floating-point exceptions raised so far, in the form that `set_float_status` takes."""
    raise NotImplementedError


@lowered(lambda build, before, *raised: _status(build, status.WRITE, build.trunc(before, INT32), *raised))
def set_float_status(before: int, invalid: bool, divide: bool, overflow: bool) -> None:
    """Set the raised floating-point exceptions to `before` and these.

    Vector code also computes numbers that it discards, so its own exceptions mean nothing. On processors that
    `machine.status` does not know, they stay.
    """
    raise NotImplementedError
