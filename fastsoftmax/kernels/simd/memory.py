"""Arrays as `memory`, which is read and written by flat offset from its first number."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from fastsoftmax._vectors import VECTOR_BYTES
from fastsoftmax.machine.lowering import (
    BYTES,
    INT32,
    INT64,
    AnyVector,
    Floats,
    Halves,
    Integers,
    Item,
    Lanes,
    Literal,
    Memory,
    Numbers,
    Same,
    Vector,
    lowered,
    vector_of,
)


def _memory_of(array: Any) -> Any:
    if isinstance(array, (types.NoneType, Memory)):
        return array
    return Memory(array.dtype) if isinstance(array, types.Array) and array.layout == "C" else None


def _memory(build: Any, array: Any) -> Any:
    (kind,) = build.signature.args
    if not isinstance(kind, types.Array):
        return array
    struct = build.context.make_array(kind)(build.context, build.builder, array)
    return build.memory(kind.dtype, struct.data, struct.nitems)


@lowered(_memory, _memory_of)
def memory(array: Any) -> Any:
    """An array as building blocks take it, by flat offset; memory and None stay as they are."""
    return None if array is None else array.reshape(-1)


@lowered(
    lambda build, array, offset: build.memory(
        array.kind.dtype, array.unchecked(offset), build.sub(array.size, offset)
    )
)
def after(array: Numbers, offset: int) -> Same:
    """The memory from `offset` on."""
    return array[offset:]


@lowered(lambda build, array: array.size)
def size(array: Numbers) -> int:
    """How many numbers the memory holds."""
    return int(array.size)


@lowered(lambda build, array: build.result(array.lanes))
def lane_count(array: Halves) -> int:
    """How many numbers of the array a vector holds, of halves as float32."""
    return int(VECTOR_BYTES // max(array.itemsize, 4))


@lowered(lambda build, array: build.result(array.item_bytes))
def item_size(array: Numbers) -> int:
    """The number of bytes of an item."""
    return int(array.itemsize)


@lowered(lambda build, array: build.ptrtoint(array.data, build.result))
def address(array: Numbers) -> int:
    """The address of the first number."""
    return int(array.ctypes.data)


@lowered(lambda build, array, offset: array.load(offset))
def load(array: Floats, offset: int) -> Vector:
    """A full vector from `offset` on."""
    count = VECTOR_BYTES // array.itemsize
    assert 0 <= offset <= array.size - count
    return array[offset : offset + count].copy()


@lowered(lambda build, array, offset, value: array.store(offset, value))
def store(array: Floats, offset: int, value: Vector) -> None:
    """Write a full vector from `offset` on."""
    assert 0 <= offset <= array.size - len(value)
    array[offset : offset + len(value)] = value


def _store_past(build: Any, array: Any, offset: Any, value: Any) -> None:
    written = array.store(offset, value, align=VECTOR_BYTES)
    written.set_metadata("nontemporal", build.module.add_metadata([INT32(1)]))


@lowered(_store_past)
def store_past(array: Floats, offset: int, value: Vector) -> None:
    """`store` to an address that is a multiple of 64, past the caches; see `fence`."""
    store(array, offset, value)


@lowered(lambda build: build.fence("seq_cst"))
def fence() -> None:
    """Make what `store_past` wrote visible to other threads."""


def _lanes_to_line(build: Any, array: Any, offset: Any) -> Any:
    address = build.ptrtoint(array.unchecked(offset), offset.type)
    over = build.and_(build.neg(address), offset.type(VECTOR_BYTES - 1))
    return build.udiv(over, offset.type(array.item_bytes))


@lowered(_lanes_to_line)
def lanes_to_line(array: Numbers, offset: int) -> int:
    """The number of items from `offset` to the beginning of the next cache line."""
    return int(-(array.ctypes.data // array.itemsize + offset) % (VECTOR_BYTES // array.itemsize))


def _prefetch(build: Any, array: Any, offset: Any, written: int, locality: int = 3) -> None:
    pointer = build.bitcast(array.unchecked(offset), BYTES)
    build.call_named("prefetch.p0", ir.VoidType(), (pointer, INT32(written), INT32(locality), INT32(1)))


@lowered(lambda build, array, offset: _prefetch(build, array, offset, 0))
def prefetch(array: Numbers, offset: int) -> None:
    """Prefetch the cache line of an element that will be read; it may lie outside of the array."""


@lowered(lambda build, array, offset: _prefetch(build, array, offset, 0, locality=2))
def prefetch_second(array: Numbers, offset: int) -> None:
    """`prefetch` into the second cache, not the first."""


@lowered(lambda build, array, offset: _prefetch(build, array, offset, 1))
def prefetch_written(array: Numbers, offset: int) -> None:
    """Prefetch the cache line of an element that will be written; it may lie outside of the array."""


@lowered(lambda build, array, offset: build.load(array.number(offset)))
def load_scalar(array: Numbers, offset: int) -> Item:
    """The element at `offset`."""
    assert 0 <= offset < array.size
    return array[offset]


@lowered(lambda build, array, offset, value: build.store(value, array.number(offset)))
def store_scalar(array: Numbers, offset: int, value: Item) -> None:
    """Write the element at `offset`."""
    assert 0 <= offset < array.size
    array[offset] = value


@lowered(
    lambda build, array, offset, count, filler: array.load_part(offset, count, build.splat(filler, array.lanes))
)
def load_part(array: Floats, offset: int, count: int, filler: Item) -> Vector:
    """The first `count` lanes from `offset` on, and `filler` in the others, whose memory is not touched."""
    assert 0 <= offset <= array.size - count
    lanes = np.full(VECTOR_BYTES // array.itemsize, filler, array.dtype)
    lanes[:count] = array[offset : offset + count]
    return lanes


@lowered(lambda build, array, offset, count, value: array.store_part(offset, count, value))
def store_part(array: Floats, offset: int, count: int, value: Vector) -> None:
    """Write the first `count` lanes from `offset` on; the memory behind is not touched."""
    assert 0 <= offset <= array.size - count
    array[offset : offset + count] = value[:count]


@lowered(
    lambda build, array, offset, count, value: array.store_part(
        offset, count, build.fptosi(value, vector_of(INT64, value.type.count))
    )
)
def store_whole(array: Integers, offset: int, count: int, value: AnyVector) -> None:
    """`store_part` of whole numbers, given as floats."""
    assert 0 <= offset <= array.size - count
    array[offset : offset + count] = value[:count].astype(np.int64)


def _gather(build: Any, array: Any, offset: Any, stride: Any, count: Any, filler: Any) -> Any:
    return build.masked("gather", *array.strided(offset, stride, count), build.splat(filler, array.lanes))


@lowered(_gather)
def gather(array: Floats, offset: int, stride: int, count: int, filler: Item) -> Vector:
    """Elements ``offset + lane * stride`` in the first `count` lanes, `filler` in the others."""
    assert offset >= 0 and offset + (count - 1) * stride < array.size
    lanes = np.full(VECTOR_BYTES // array.itemsize, filler, array.dtype)
    lanes[:count] = array[offset:][::stride][:count]
    return lanes


@lowered(
    lambda build, array, offset, stride, count, value: build.masked(
        "scatter", *array.strided(offset, stride, count), value
    )
)
def scatter(array: Floats, offset: int, stride: int, count: int, value: Vector) -> None:
    """Write the first `count` lanes to elements ``offset + lane * stride``."""
    assert offset >= 0 and offset + (count - 1) * stride < array.size
    array[offset:][::stride][:count] = value[:count]


def _load_double(build: Any, array: Any, offset: Any) -> Any:
    loaded = array.load(offset, vector_of(array.element, build.result.count))
    return loaded if loaded.type == build.result else build.fpext(loaded, build.result)


@lowered(_load_double, lambda array, offset: Lanes(types.float64))
def load_double(array: Floats, offset: int) -> Any:
    """The eight numbers from `offset` on, as a vector of float64."""
    assert 0 <= offset <= array.size - 8
    return array[offset : offset + 8].astype(np.float64)


def _scratch(build: Any, array: Any, vectors: Any) -> Any:
    return build.room(array.kind.dtype, build.signature.args[1].literal_value * array.lanes)


@lowered(_scratch)
def scratch(array: Floats, vectors: Literal) -> Same:
    """Memory for `vectors` vectors on the stack, of the dtype of `array`, uninitialised.

    It lives as long as the function that asks for it, even if that is inlined, and must not be returned.
    """
    return np.empty(vectors * (VECTOR_BYTES // array.itemsize), array.dtype)


@lowered(
    lambda build, count: build.room(types.int64, build.signature.args[0].literal_value),
    lambda count: Memory(types.int64),
)
def integers(count: Literal) -> Any:
    """Memory for `count` 64-bit integers on the stack, uninitialised."""
    return np.empty(count, np.int64)


def _as_wide(build: Any, array: Any, kind: Any) -> Any:
    """The same memory as numbers of 8 bytes."""
    count = build.udiv(build.mul(array.size, INT64(array.item_bytes)), INT64(8))
    element = build.context.get_value_type(kind)
    return build.memory(kind, build.bitcast(array.data, element.as_pointer()), count)


def _wide(array: Any, kind: Any) -> Any:
    return array[: array.size * array.itemsize // 8 * 8 // array.itemsize].view(kind)


@lowered(lambda build, array: _as_wide(build, array, types.int64), lambda array: Memory(types.int64))
def as_integers(array: Floats) -> Any:
    """The same memory as 64-bit integers; it must begin at a multiple of 8 bytes."""
    return _wide(array, np.int64)


@lowered(lambda build, array: _as_wide(build, array, types.float64), lambda array: Memory(types.float64))
def as_doubles(array: Floats) -> Any:
    """The same memory as float64; it must begin at a multiple of 8 bytes."""
    return _wide(array, np.float64)
