"""Weights and labels of the rows and classes of a block, and the places of rows of unequal length.

A block is either a single row (`folded`), and its vectors run along the row; or it has a row for each lane, and
each vector holds one class.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from fastsoftmax._vectors import VECTOR_BYTES
from fastsoftmax.kernels.simd.memory import load_part
from fastsoftmax.machine.lowering import (
    INT64,
    Floats,
    Integers,
    Item,
    Vector,
    is_none,
    lanes_of,
    lowered,
    vector_of,
)


def _or_ones(build: Any, array: Any, offset: Any) -> tuple[Any, Any]:
    """`array` and `offset`; the vector of ones at its address and offset 0 if it has size 0."""
    empty = build.icmp_signed("==", array.size, INT64(0))
    size = build.select(empty, INT64(array.lanes), array.size)
    return build.memory(array.kind.dtype, array.data, size), build.select(empty, offset.type(0), offset)


def _row_value(build: Any, like: Any, folded: Any, array: Any, row: Any, count: Any) -> Any:
    if array is None:
        return build.constant(build.result, 1.0)
    array, row = _or_ones(build, array, row)
    if build.result == like.vector:
        return array.load_part(row, count, like.vector(None))
    return build.load(array.pointer(row, count))


def _row_value_type(like: Any, folded: Any, array: Any, row: Any, count: Any) -> Any:
    return lanes_of(like) if is_none(folded) and not is_none(array) else like.dtype


def _ones_if_empty(array: Any, offset: int) -> tuple[Any, int]:
    """`_or_ones` for NumPy arrays."""
    return (array, offset) if array.size else (np.ones(VECTOR_BYTES // array.itemsize, array.dtype), 0)


@lowered(_row_value, _row_value_type)
def row_value(like: Floats, folded: Any, array: Any, row: int, count: int) -> Any:
    """The numbers of the rows of a block in an array with one number for each row; 1 if the array is None.

    They are also 1 if the array has size 0. Its address must then be that of a vector of ones.
    It is a float if the block is a single row (`folded`), else a vector with 0 in the lanes from `count` on.
    """
    if array is None:
        return like.dtype.type(1)
    array, row = _ones_if_empty(array, row)
    return load_part(array, row, count, 0) if folded is None else array[row]


def _class_value(build: Any, like: Any, folded: Any, array: Any, k: Any, count: Any) -> Any:
    lanes, zero = like.lanes, like.vector(None)
    one = build.constant(build.result, 1.0)
    if build.result == like.vector:
        if array is None:
            return build.select(build.first_lanes(count, lanes), one, zero)
        array, place = _or_ones(build, array, k)
        return array.load_part(place, count, zero)
    if array is None:
        return one
    array, place = _or_ones(build, array, build.sdiv(k, k.type(lanes)))
    return build.load(array.number(place))


@lowered(_class_value, lambda like, folded, *_: like.dtype if is_none(folded) else lanes_of(like))
def class_value(like: Floats, folded: Any, array: Any, k: int, count: int) -> Any:
    """The numbers of an array with one number for each class at vector k of a block; 1 if the array is None.

    They are also 1 if the array has size 0. Its address must then be that of a vector of ones.

    Along a row (`folded`) these are the numbers of `count` classes, and 0 in the other lanes; else it is the
    number of the one class of the vector.
    """
    width = VECTOR_BYTES // like.itemsize
    if folded is None:
        if array is None:
            return like.dtype.type(1)
        array, k = _ones_if_empty(array, k // width)
        return array[k]
    if array is None:
        return (np.arange(width) < count).astype(like.dtype)
    array, k = _ones_if_empty(array, k)
    return load_part(array, k, count, 0)


def _labels(build: Any, labels: Any, row: Any, count: Any, lanes: int) -> Any:
    """The labels of `count` rows, -1 in the other lanes."""
    return labels.load_part(row, count, build.constant(vector_of(INT64, lanes), -1))


def _one_hot(build: Any, like: Any, folded: Any, labels: Any, row: Any, count: Any, k: Any) -> Any:
    lanes, zero = like.lanes, like.vector(None)
    if labels is None:
        return zero
    if is_none(build.signature.args[1]):
        chosen = _labels(build, labels, row, count, lanes)
        here = build.splat(build.sdiv(k, k.type(lanes)), lanes)
    else:
        chosen = build.splat(build.sub(build.load(labels.number(row)), k), lanes)
        here = build.iota(INT64, lanes)
    return build.select(build.icmp_signed("==", chosen, here), build.constant(like.vector, 1.0), zero)


@lowered(_one_hot)
def one_hot(like: Floats, folded: Any, labels: Any, row: int, count: int, k: int) -> Vector:
    """1 where the class in the vector at place k is the label of its row, else 0; 0 if `labels` is None."""
    width = VECTOR_BYTES // like.itemsize
    hit = np.zeros(width, like.dtype)
    if labels is None:
        return hit
    if folded is None:
        hit[:count] = labels[row : row + count] == k // width
    elif 0 <= labels[row] - k < width:
        hit[labels[row] - k] = 1
    return hit


@lowered(
    lambda build, like, labels, row, count: build.sitofp(
        _labels(build, labels, row, count, like.lanes), like.vector
    )
)
def lane_labels(like: Floats, labels: Integers, row: int, count: int) -> Vector:
    """The labels of `count` rows as floats, one in each lane, to compare with small numbers; -1 in other lanes."""
    lanes = np.full(VECTOR_BYTES // like.itemsize, -1, like.dtype)
    lanes[:count] = labels[row : row + count]
    return lanes


# --- ragged rows: each lane has its own start and length -------------------------------------------------------


def _ragged(build: Any, array: Any, starts: Any, lengths: Any, at: Any, k: Any) -> tuple[Any, Any]:
    """The address of element k of the row of each lane, and the mask of the lanes whose row is longer than k."""
    lanes = array.lanes
    wide = vector_of(INT64, lanes)
    place = build.splat(k, lanes)
    index = build.add(starts.load(at, wide), place)
    mask = build.icmp_signed("<", place, lengths.load(at, wide))

    def outside() -> Any:
        negative = build.icmp_signed("<", index, wide(None))
        beyond = build.icmp_signed(">=", index, build.splat(array.size, lanes))
        bits = build.bitcast(build.and_(mask, build.or_(negative, beyond)), ir.IntType(lanes))
        return build.icmp_signed("!=", bits, bits.type(0))

    build.check(outside)
    steps = build.mul(index, build.splat(INT64(array.item_bytes), lanes))
    address = build.add(build.splat(build.ptrtoint(array.data, INT64), lanes), steps)
    return build.inttoptr(address, vector_of(array.data.type, lanes)), mask


@lowered(
    lambda build, array, starts, lengths, at, k, filler: build.masked(
        "gather", *_ragged(build, array, starts, lengths, at, k), build.splat(filler, array.lanes)
    )
)
def gather_rows(array: Floats, starts: Integers, lengths: Integers, at: int, k: int, filler: Item) -> Vector:
    """Element k of the row of each lane, `filler` where that row is not longer than k.

    The row of lane l begins at ``starts[at + l]`` and has ``lengths[at + l]`` elements.
    """
    count = VECTOR_BYTES // array.itemsize
    lanes = np.full(count, filler, array.dtype)
    for lane in range(count):
        if k < lengths[at + lane]:
            assert 0 <= starts[at + lane] + k < array.size
            lanes[lane] = array[starts[at + lane] + k]
    return lanes


@lowered(
    lambda build, array, starts, lengths, at, k, value: build.masked(
        "scatter", *_ragged(build, array, starts, lengths, at, k), value
    )
)
def scatter_rows(array: Floats, starts: Integers, lengths: Integers, at: int, k: int, value: Vector) -> None:
    """The inverse of `gather_rows`; nothing is written for rows that are not longer than k."""
    for lane in range(len(value)):
        if k < lengths[at + lane]:
            assert 0 <= starts[at + lane] + k < array.size
            array[starts[at + lane] + k] = value[lane]


def _neighbours(
    build: Any, like: Any, indptr: Any, n: Any, entries: Any, starts: Any, lengths: Any, at: Any
) -> Any:
    lanes = like.lanes
    wide = vector_of(INT64, lanes)

    def bounded(value: Any, least: Any) -> Any:
        value = build.select(build.icmp_signed("<", value, least), least, value)
        most = build.splat(entries, lanes)
        return build.select(build.icmp_signed(">", value, most), most, value)

    begin = bounded(indptr.load(n, wide), wide(None))
    length = build.sub(bounded(indptr.load(build.add(n, n.type(1)), wide), begin), begin)
    starts.store(at, begin)
    lengths.store(at, length)
    return tuple(
        build.call_named(f"vector.reduce.{name}.v{lanes}i64", INT64, [length]) for name in ("smin", "smax")
    )


@lowered(_neighbours, lambda *_: types.UniTuple(types.int64, 2))
def neighbours(
    like: Floats, indptr: Integers, n: int, entries: int, starts: Integers, lengths: Integers, at: int
) -> tuple[int, int]:
    """Store starts and lengths of the segments from n on, one for each lane of `like`, clipped to 0 .. `entries`.

    They are stored from `at` on. Returns the least and the greatest length.
    """
    count = VECTOR_BYTES // like.itemsize
    begin = np.clip(indptr[n : n + count], 0, entries)
    length = np.clip(indptr[n + 1 : n + 1 + count], begin, entries) - begin
    starts[at : at + count] = begin
    lengths[at : at + count] = length
    return int(length.min()), int(length.max())
