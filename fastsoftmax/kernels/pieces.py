r"""Rows that lie in several pieces: what a piece contributes to its row, and its results once the row is known.

A piece is summed up by the numbers of `traversal.statistics`. Those of all pieces of a row merge into those of the
row (`fastsoftmax._pieces.merge`), from which every piece finishes its own entries in the way, and to the accuracy,
of the kernels in `activations`.
"""

from typing import Any

from fastsoftmax.kernels.activations import log_softmax_block, logsumexp_block, softmax_block
from fastsoftmax.kernels.elementary import exp_pair, reference
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.traversal import (
    remainder,
    tempered,
    traverse,
)
from fastsoftmax.kernels.vector import (
    broadcast,
    memory,
    row_value,
    store_part,
)


@inline
def summary_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """The numbers of `statistics`, one row of `rows` for each of them."""
    _, _, _, row, count = place
    step = options
    m, shift, bias, top, ties, rest, rest_low = stats
    store_part(rows, row, count, broadcast(m))
    store_part(rows, row + step, count, broadcast(shift))
    store_part(rows, row + 2 * step, count, broadcast(bias))
    store_part(rows, row + 3 * step, count, broadcast(top[0]))
    store_part(rows, row + 4 * step, count, broadcast(top[1]))
    store_part(rows, row + 5 * step, count, broadcast(ties))
    store_part(rows, row + 6 * step, count, broadcast(rest))
    store_part(rows, row + 7 * step, count, broadcast(rest_low))


@kernel
def summary(start: int, stop: int, room: Any, x: Any, rows: Any, beta: Any) -> None:
    """rows (8, N) = m, shift, bias, top (a pair), ties, rest (a pair); beta is 1/T as a pair, or None."""
    data, results, tile = memory(x), memory(rows), memory(room)
    shape, step = x.shape, rows.shape[1]
    traverse(summary_block, start, stop, shape, tile, data, None, None, results, step, beta=beta)


@inline
def _known(x: Any, folded: Any, row: int, count: int, beta: Any, given: Any, step: int) -> Any:
    """What `statistics` returns, from m, ties and rest of the whole row."""
    m = row_value(x, folded, given, row, count)
    ties = row_value(x, folded, given, row + step, count)
    rest = row_value(x, folded, given, row + 2 * step, count)
    rest_low = row_value(x, folded, given, row + 3 * step, count)
    top_scaled, top_tail = tempered(m, beta)
    shift, bias = reference(top_scaled)
    top = exp_pair(top_scaled - shift, top_tail, bias)
    return m, shift, bias, top, ties, rest, rest_low


@inline
def softmax_part(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """`activations.softmax_block` with the sum of the whole row."""
    _, _, folded, row, count = place
    beta, given, step = options
    known = _known(x, folded, row, count, beta, given, step)
    softmax_block(x, v, y, place, known, rows, (beta, None))


@kernel
def softmax(start: int, stop: int, room: Any, x: Any, y: Any, given: Any, beta: Any) -> None:
    """y_k = exp(x_k/T) / sum_j exp(x_j/T), the sum over the whole row; given (4, N) = m, ties, rest (a pair)."""
    options = beta, memory(given), given.shape[1]
    data, result, tile = memory(x), memory(y), memory(room)
    shape = x.shape
    traverse(softmax_part, start, stop, shape, tile, data, None, result, None, options, given=True)


@inline
def log_softmax_part(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """`activations.log_softmax_block` with the sum of the whole row."""
    _, _, folded, row, count = place
    beta, given, step = options
    known = _known(x, folded, row, count, beta, given, step)
    log_softmax_block(x, v, y, place, known, rows, beta)


@kernel
def log_softmax(start: int, stop: int, room: Any, x: Any, y: Any, given: Any, beta: Any) -> None:
    """y_k = x_k/T - log(sum_j exp(x_j/T)), the sum over the whole row; given as for `softmax`."""
    options = beta, memory(given), given.shape[1]
    data, result, tile = memory(x), memory(y), memory(room)
    shape = x.shape
    traverse(log_softmax_part, start, stop, shape, tile, data, None, result, None, options, given=True)


@inline
def totals_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """`activations.logsumexp_block` with the sum of the whole row, and 1 - p of a greatest entry."""
    _, _, folded, row, count = place
    given, step = options
    known = _known(x, folded, row, count, None, given, step)
    logsumexp_block(x, v, y, place, known, rows, None)
    _, _, _, top, ties, rest, rest_low = known
    store_part(rows, row + step, count, broadcast(remainder(top, ties, rest, rest_low)))


@kernel
def totals(start: int, stop: int, room: Any, x: Any, rows: Any, given: Any) -> None:
    """rows (2, N) = log(sum_j exp(x_j)), 1 - p of a greatest entry; x (N, 1, 1) is m, given as for `softmax`."""
    options = memory(given), given.shape[1]
    data, results, tile = memory(x), memory(rows), memory(room)
    shape = x.shape
    traverse(totals_block, start, stop, shape, tile, data, None, None, results, options, given=True)
