"""Huge segments: kernels over their pieces, or kernels of rows over each whole one.

``Run`` runs a kernel, as `threads.run` does. Calls of NumPy arrays use that, so that threads share a huge segment;
compiled code, which may already run in many threads, uses `alone`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from fastsoftmax._vectors import COLUMNS, HUGE, PIECE
from fastsoftmax.arrays.blocks import NO_ROOM, UNWEIGHTED, Array
from fastsoftmax.arrays.options import smoothed_shares
from fastsoftmax.machine.entry import entry

Run = Callable[..., None]


def alone(kernel: Any, rows: int, work: int, room: Callable[[], Any], *args: Any) -> None:
    """`threads.run` in the calling thread."""
    kernel(0, rows, room(), *args)


def no_room() -> None:
    """Kernels of segments need no working memory: their tiles are small and are on the stack."""


# --- in pieces ----------------------------------------------------------------------------------------------


def pieces_of(indptr: Array) -> Array | None:
    """The table of pieces of huge segments (see `kernels.segments`), None if there is no such segment."""
    if indptr[-1] <= HUGE:
        return None
    list_pieces = entry("segments.list_pieces")
    table = np.empty(int(list_pieces(indptr, np.empty(0, np.int64))) * COLUMNS, np.int64)
    list_pieces(indptr, table)
    return table if table.size else None


def _over(run: Run, table: Array) -> tuple[int, Run]:
    """The number of pieces in a table, and ``kernel, arguments...``, which runs a kernel over them."""
    count = len(table) // COLUMNS
    return count, lambda kernel, *args: run(kernel, count, 2 * count * PIECE, no_room, table, *args)


def _sums(over: Run, count: int, x: Any) -> tuple[Array, Array]:
    """The statistics over the pieces."""
    maxima, sums = np.empty(count, x.dtype), np.empty(3 * count, x.dtype)
    over(entry("segments.piece_maxima"), x, maxima)
    over(entry("segments.piece_sums"), maxima, x, sums)
    return maxima, sums


def pieces(run: Run, kernel: Any, indptr: Array, x: Any, *operands: Any) -> None:
    """A kernel over the pieces of the huge segments of x, if there are any."""
    table = pieces_of(indptr)
    if table is not None:
        count, over = _over(run, table)
        over(kernel, *_sums(over, count, x), *operands)


def product(run: Run, kernel: Any, indptr: Array, x: Any, v: Any, y: Any) -> None:
    """The product with the Jacobian."""
    table = pieces_of(indptr)
    if table is not None:
        count, over = _over(run, table)
        maxima, sums = _sums(over, count, x)
        extents, dots = np.empty(2 * count, x.dtype), np.empty(2 * count, x.dtype)
        over(entry("segments.piece_extents"), maxima, x, v, extents)
        over(entry("segments.piece_dots"), maxima, sums, extents, x, v, dots)
        over(kernel, maxima, sums, extents, x, v, dots, y)


# --- as rows ------------------------------------------------------------------------------------------------


def _each(
    run: Run, kernel: Any, indptr: Array, dtype: Any
) -> Iterator[tuple[Run, Callable[[Any], Any], Callable[[Any], Any]]]:
    """For each huge segment, ``arguments... -> None``, which runs a kernel, and its parts of vectors.

    The second function makes a block of one row of a vector of elements, and the third returns its number of one
    with a number for each segment. A vector of size 0 stays empty.
    """
    for n in np.flatnonzero(np.diff(indptr) > HUGE):
        begin, end = int(indptr[n]), int(indptr[n + 1])

        def block(vector: Array, part: slice = slice(begin, end)) -> Array:
            return vector[part].reshape(1, -1, 1) if vector.size else vector.reshape(0, 0, 0)

        def one(vector: Array, part: slice = slice(n, n + 1)) -> Array:
            return vector[part]

        yield partial(run, kernel, 1, end - begin, partial(NO_ROOM.get, dtype)), block, one


def smoothed(
    run: Run,
    kernel: Any,
    indptr: Array,
    smoothing: float,
    x: Any,
    labels: Array,
    weights: Array,
    y: Any,
    rows: Array,
    *scale: Any,
) -> None:
    """The cross-entropy with label smoothing, and the gradient unless y is None."""
    number, unweighted = x.dtype.type, UNWEIGHTED[x.dtype]
    for compute, block, one in _each(run, kernel, indptr, x.dtype):
        source = block(x)
        shares = [number(share) for share in smoothed_shares(smoothing, source.size)]
        slope = None if y is None else block(y)
        compute(source, None, one(labels), unweighted, *shares, one(weights), slope, one(rows), *scale)


def entropy(run: Run, kernel: Any, indptr: Array, x: Any, y: Any, rows: Array) -> None:
    """The entropy, and the gradient unless y is None."""
    for compute, block, one in _each(run, kernel, indptr, x.dtype):
        compute(block(x), None if y is None else block(y), one(rows), None)


def divergence(
    run: Run,
    kernel: Any,
    indptr: Array,
    u: Any,
    w: Any,
    weights: Array,
    y: Any,
    rows: Array,
    reverse: Any,
    *scale: Any,
) -> None:
    """The divergence, and the gradient unless y has size 0."""
    for compute, block, one in _each(run, kernel, indptr, u.dtype):
        compute(block(u), block(w), one(weights), block(y), one(rows), bool(reverse), *scale, None, False)
