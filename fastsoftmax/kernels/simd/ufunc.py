"""Operations for the inner loops of ufuncs, which C calls: strided numbers, float16, floating-point exceptions.

Such a loop gets ``char **args, intp *dimensions, intp *steps, void *data``. The type of `args` is that of the
numbers. Most of these operations have no meaning in Python: under NUMBA_DISABLE_JIT there are no such loops.
"""

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastsoftmax._vectors import VECTOR_BYTES
from fastsoftmax.machine import halves, status
from fastsoftmax.machine.lowering import (
    BYTES,
    INT32,
    INT64,
    Address,
    Halves,
    Item,
    Memory,
    Numbers,
    Pointer,
    Shorts,
    Vector,
    lowered,
    vector_of,
)


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


def _from_half(build: Any, bits: Any, vector: Any) -> Any:
    """float16 as float32."""
    return build.call(halves.called(build.builder.module, halves.FROM), [bits])


def _to_half(build: Any, value: Any) -> Any:
    """float32 rounded to float16."""
    return build.call(halves.called(build.builder.module, halves.TO), [value])


def _from_bfloat16(build: Any, bits: Any, vector: Any) -> Any:
    """bfloat16 as float32: its upper half."""
    wide = build.zext(bits, vector_of(INT32, vector.count))
    return build.bitcast(build.shl(wide, build.constant(wide.type, 16)), vector)


def _to_bfloat16(build: Any, value: Any) -> Any:
    """float32 rounded to bfloat16: to nearest, halves to even; of NaN only the sign is kept."""
    bits = build.integer(value)

    def of(value: int) -> Any:
        return build.constant(bits.type, value)

    upper = build.lshr(bits, of(16))
    odd = build.and_(upper, of(1))
    rounded = build.lshr(build.add(build.add(bits, of(0x7FFF)), odd), of(16))
    invalid = build.icmp_unsigned(">", build.and_(bits, of(0x7FFFFFFF)), of(0x7F800000))
    result = build.select(invalid, build.or_(build.and_(upper, of(0x8000)), of(0x7FC0)), rounded)
    return build.trunc(result, vector_of(ir.IntType(16), value.type.count))


def _is_whole(build: Any, array: Any, stride: Any, count: Any) -> Any:
    """Whether numbers are contiguous and fill a vector."""
    return build.and_(
        build.icmp_signed("==", stride, stride.type(1)), build.icmp_signed("==", count, count.type(array.lanes))
    )


def _read(build: Any, array: Any, stride: Any, count: Any, widened: Any = _from_half) -> Any:
    is_short = array.kind.dtype == types.uint16
    zero = stride.type(0)
    with build.if_else(_is_whole(build, array, stride, count), likely=True) as (whole, other):
        with whole:
            loaded = array.load(zero)
            loaded_in = build.block
        with other:
            ones = build.constant(array.vector, 0x3C00 if is_short else 1.0)
            gathered = build.masked("gather", *array.strided(zero, stride, count), ones)
            gathered_in = build.block
    value = build.phi(array.vector)
    value.add_incoming(loaded, loaded_in)
    value.add_incoming(gathered, gathered_in)
    return widened(build, value, build.result) if is_short else value


def _write(build: Any, array: Any, stride: Any, count: Any, value: Any, narrowed: Any = _to_half) -> None:
    if array.kind.dtype == types.uint16:
        value = narrowed(build, value)
    zero = stride.type(0)
    with build.if_else(_is_whole(build, array, stride, count), likely=True) as (whole, other):
        with whole:
            array.store(zero, value)
        with other:
            build.masked("scatter", *array.strided(zero, stride, count), value)


@lowered(_read)
def read(array: Halves, stride: int, count: int) -> Vector:
    """The first `count` numbers that lie `stride` apart, and 1 in the other lanes; float16 becomes float32."""
    lanes = np.ones(VECTOR_BYTES // max(array.itemsize, 4), np.float16 if array.itemsize == 2 else array.dtype)
    lanes[:count] = array[np.arange(count) * stride].view(lanes.dtype)
    return lanes.astype(np.float32) if array.itemsize == 2 else lanes


@lowered(_write)
def write(array: Halves, stride: int, count: int, value: Vector) -> None:
    """Write the first `count` lanes to memory, `stride` apart; to float16 they are rounded."""
    numbers = value[:count].astype(np.float16).view(np.uint16) if array.itemsize == 2 else value[:count]
    array[np.arange(count) * stride] = numbers


@lowered(partial(_read, widened=_from_bfloat16))
def read_bfloat16(array: Shorts, stride: int, count: int) -> Vector:
    """`read` from memory of bfloat16 instead of float16."""
    lanes = np.full(VECTOR_BYTES // 4, 0x3C00 << 16, np.uint32)
    lanes[:count] = array[np.arange(count) * stride].astype(np.uint32) << 16
    return lanes.view(np.float32)


@lowered(partial(_write, narrowed=_to_bfloat16))
def write_bfloat16(array: Shorts, stride: int, count: int, value: Vector) -> None:
    """`write` to memory of bfloat16 instead of float16."""
    bits = value[:count].view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    array[np.arange(count) * stride] = np.where(np.isnan(value[:count]), bits >> 16 & 0x8000 | 0x7FC0, rounded)


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
