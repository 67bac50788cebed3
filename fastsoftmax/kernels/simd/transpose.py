"""Rows into columns, and back.

A gather costs one memory access for each lane. Here whole vectors are loaded and stored, and transposed by
shuffles: log2(lanes) shuffles a vector for rows of many classes, one for each class for rows of a few.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastsoftmax._vectors import VECTOR_BYTES
from fastsoftmax.kernels.simd.memory import load_part, store, store_part
from fastsoftmax.machine.lowering import Floats, Same, lowered


def _transposed(build: Any, rows: Sequence[Any]) -> Sequence[Any]:
    """The columns of the square matrix with these rows.

    First the four 16-byte quarters of the vectors are transposed by interleaving neighbouring rows, which every
    SIMD machine does in one instruction; then whole quarters are moved, the even or the odd ones of two vectors.
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
                turned[i + 2 * j] = build.shuffle(*pair, low)
                turned[i + 2 * j + 1] = build.shuffle(*pair, [pick + half for pick in low])
        vectors = turned
        run *= 2
    even = [base + i for base in (0, 2 * piece, lanes, lanes + 2 * piece) for i in range(piece)]
    odd = [pick + piece for pick in even]
    columns = list(vectors)
    for j in range(piece):
        a, b, c, d = vectors[j::piece]
        for parity, picks in enumerate((even, odd)):
            front, back = build.shuffle(a, b, picks), build.shuffle(c, d, picks)
            columns[parity * piece + j] = build.shuffle(front, back, even)
            columns[(2 + parity) * piece + j] = build.shuffle(front, back, odd)
    return columns


def _collected(build: Any, vectors: Sequence[Any], places: Sequence[tuple[int, int]]) -> Any:
    """The vector whose lane i is lane ``places[i][1]`` of vector ``places[i][0]``."""
    lanes = len(places)
    result = vectors[0]
    picks = [place for _, place in places]  # right for vector 0; the picks from other vectors are replaced below
    for number in range(1, len(vectors)):
        picks = [
            lanes + at if source == number else pick for pick, (source, at) in zip(picks, places, strict=True)
        ]
        result = build.shuffle(result, vectors[number], picks)
        picks = list(range(lanes))
    return result


def _vectors(build: Any, array: Any, start: Any, numbers: int) -> Sequence[Any]:
    """The addresses of `numbers` consecutive vectors."""
    first = array.vectors(start, start.type(numbers * array.lanes), array.vector)
    return [build.gep(first, [start.type(i)]) for i in range(numbers)]


def _read(build: Any, array: Any, start: Any, numbers: int) -> Sequence[Any]:
    return [build.load(at, align=array.item_bytes) for at in _vectors(build, array, start, numbers)]


def _write(build: Any, array: Any, start: Any, values: Sequence[Any]) -> None:
    for value, pointer in zip(values, _vectors(build, array, start, len(values)), strict=True):
        build.store(value, pointer, align=array.item_bytes)


def _parts(build: Any, array: Any, offset: Any, stride: Any, count: Any) -> tuple[Sequence[Any], Any]:
    """The addresses of `count` classes of as many rows as a vector has lanes, and the mask of these classes."""
    starts = [build.add(offset, build.mul(stride, stride.type(i))) for i in range(array.lanes)]
    return [array.vectors(start, count, array.vector) for start in starts], build.first_lanes(count, array.lanes)


def _load_turned(build: Any, array: Any, offset: Any, stride: Any, count: Any, tile: Any, target: Any) -> None:
    pointers, mask = _parts(build, array, offset, stride, count)
    zero = array.vector(None)
    rows = [build.masked("load", pointer, mask, zero) for pointer in pointers]
    _write(build, tile, target, _transposed(build, rows))


@lowered(_load_turned)
def load_turned(array: Floats, offset: int, stride: int, count: int, tile: Same, target: int) -> None:
    """Read `count` classes (at most a vector's lanes) of as many rows as a vector has lanes, transposed.

    Row i begins at ``offset + i * stride``. Vectors of one class each are stored in `tile` from `target` on: as
    many as there are lanes, with zeros from vector `count` on.
    """
    lanes = VECTOR_BYTES // array.itemsize
    rows = np.zeros((lanes, lanes), array.dtype)
    for i in range(lanes):
        rows[i] = load_part(array, offset + i * stride, count, 0)
    assert target + lanes * lanes <= tile.size
    tile[target : target + lanes * lanes] = rows.T.reshape(-1)


def _store_turned(build: Any, array: Any, offset: Any, stride: Any, count: Any, tile: Any, source: Any) -> None:
    *rows, last = _transposed(build, _read(build, tile, source, array.lanes))
    for i, row in enumerate(rows):
        array.store(build.add(offset, build.mul(stride, stride.type(i))), row)
    array.store_part(build.add(offset, build.mul(stride, stride.type(len(rows)))), count, last)


@lowered(_store_turned)
def store_turned(array: Floats, offset: int, stride: int, count: int, tile: Same, source: int) -> None:
    """The inverse of `load_turned`, for a caller that writes what is behind `count` classes of each row later.

    Whole vectors are written, one row after the other; only for the last row they end after `count` classes. A
    masked store takes 12 times as long as a whole one on AMD's processors without AVX-512.
    """
    lanes = VECTOR_BYTES // array.itemsize
    *rows, last = tile[source : source + lanes * lanes].reshape(lanes, lanes).T
    for i, row in enumerate(rows):
        store(array, offset + i * stride, row)
    store_part(array, offset + (lanes - 1) * stride, count, last)


def _moves(build: Any, classes: Any, lanes: int, code: Callable[[int], None]) -> None:
    """A switch at run time: ``code(classes)`` for a number of classes from 2 to half a vector's lanes."""
    after = build.append_basic_block("moved")
    switch = build.switch(classes, after)
    for number in range(2, lanes // 2 + 1):
        block = build.append_basic_block(f"classes_{number}")
        switch.add_case(classes.type(number), block)
        build.position_at_end(block)
        code(number)
        build.branch(after)
    build.position_at_end(after)


def _load_dense(build: Any, array: Any, offset: Any, classes: Any, tile: Any, target: Any) -> None:
    lanes = array.lanes

    def move(number: int) -> None:
        flat = _read(build, array, offset, number)
        places = [[divmod(i * number + k, lanes) for i in range(lanes)] for k in range(number)]
        _write(build, tile, target, [_collected(build, flat, column) for column in places])

    _moves(build, classes, lanes, move)


@lowered(_load_dense)
def load_dense(array: Floats, offset: int, classes: int, tile: Same, target: int) -> None:
    """`load_turned` of consecutive rows of 2 to half a vector's lanes of classes: one vector for each class."""
    lanes = VECTOR_BYTES // array.itemsize
    rows = array[offset : offset + lanes * classes].reshape(lanes, classes)
    tile[target : target + lanes * classes] = rows.T.reshape(-1)


def _store_dense(build: Any, array: Any, offset: Any, classes: Any, tile: Any, source: Any) -> None:
    lanes = array.lanes

    def move(number: int) -> None:
        columns = _read(build, tile, source, number)
        places = [[divmod(q * lanes + j, number)[::-1] for j in range(lanes)] for q in range(number)]
        _write(build, array, offset, [_collected(build, columns, flat) for flat in places])

    _moves(build, classes, lanes, move)


@lowered(_store_dense)
def store_dense(array: Floats, offset: int, classes: int, tile: Same, source: int) -> None:
    """The inverse of `load_dense`."""
    lanes = VECTOR_BYTES // array.itemsize
    columns = tile[source : source + lanes * classes].reshape(classes, lanes)
    array[offset : offset + lanes * classes] = columns.T.reshape(-1)
