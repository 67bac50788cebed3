r"""Rows that lie in several pieces: what a piece contributes to its row, and its results once the row is known.

A piece is summed up by the numbers of `traversal.statistics`. Those of all pieces of a row merge into those of the
row (`fastsoftmax._pieces.merge`), from which every piece finishes its own entries in the way, and to the accuracy,
of the kernels in `activations`.
"""

from typing import Any

from fastsoftmax.kernels.activations import _log_term
from fastsoftmax.kernels.elementary import exp_pair, reference, two_sum
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.traversal import (
    log_of_others,
    probability,
    reciprocal,
    remainder,
    statistics,
    tempered,
    traverse,
)
from fastsoftmax.kernels.vector import (
    broadcast,
    lane_count,
    load,
    load_part,
    memory,
    number,
    row_value,
    select_equal,
    store,
    store_part,
)

INF = float("inf")


@inline
def summary_block(
    x: Any, v: Any, y: Any, offset: int, length: int, folded: Any, rows: Any, row: int, count: int, options: Any
) -> None:
    """The numbers of `statistics`, one row of `rows` for each of them."""
    beta, step = options
    m, shift, bias, top, ties, rest, rest_low = statistics(x, offset, length, folded, beta)
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
    options = beta, rows.shape[1]
    traverse(summary_block, start, stop, x.shape, memory(room), memory(x), None, None, memory(rows), options)


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
def softmax_block(
    x: Any, v: Any, y: Any, offset: int, length: int, folded: Any, rows: Any, row: int, count: int, options: Any
) -> None:
    """p_k = e_k / (the sum of the whole row): error as in `activations.softmax_block`."""
    beta, given, stretch = options
    m, shift, bias, top, ties, rest, rest_low = _known(x, folded, row, count, beta, given, stretch)
    inverse = reciprocal(m, top, ties, rest, rest_low)
    step = lane_count(x)
    full = length // step * step
    for k in range(0, full, step):
        store(y, offset + k, probability(load(x, offset + k), beta, shift, bias, inverse))
    if full < length:
        last = load_part(x, offset + full, length - full, number(x, -INF))
        store_part(y, offset + full, length - full, probability(last, beta, shift, bias, inverse))


@kernel
def softmax(start: int, stop: int, room: Any, x: Any, y: Any, given: Any, beta: Any) -> None:
    """y_k = exp(x_k/T) / sum_j exp(x_j/T), the sum over the whole row; given (4, N) = m, ties, rest (a pair)."""
    options = beta, memory(given), given.shape[1]
    traverse(softmax_block, start, stop, x.shape, memory(room), memory(x), None, memory(y), None, options)


@inline
def log_softmax_block(
    x: Any, v: Any, y: Any, offset: int, length: int, folded: Any, rows: Any, row: int, count: int, options: Any
) -> None:
    """log p_k = (x_k - m) - log(1 + s'): error as in `activations.log_softmax_block`."""
    beta, given, stretch = options
    m, _, _, top, ties, rest, rest_low = _known(x, folded, row, count, beta, given, stretch)
    high, low = log_of_others(top, ties, rest, rest_low)
    log_rest = high + low
    top_scaled, top_tail = tempered(m, beta)
    step = lane_count(x)
    full = length // step * step
    for k in range(0, full, step):
        store(y, offset + k, _log_term(load(x, offset + k), beta, top_scaled, top_tail, log_rest))
    if full < length:
        last = load_part(x, offset + full, length - full, number(x, -INF))
        store_part(y, offset + full, length - full, _log_term(last, beta, top_scaled, top_tail, log_rest))


@kernel
def log_softmax(start: int, stop: int, room: Any, x: Any, y: Any, given: Any, beta: Any) -> None:
    """y_k = x_k/T - log(sum_j exp(x_j/T)), the sum over the whole row; given as for `softmax`."""
    options = beta, memory(given), given.shape[1]
    traverse(log_softmax_block, start, stop, x.shape, memory(room), memory(x), None, memory(y), None, options)


@inline
def totals_block(
    x: Any, v: Any, y: Any, offset: int, length: int, folded: Any, rows: Any, row: int, count: int, options: Any
) -> None:
    """Log-sum-exp as `activations.logsumexp_block` has it, and 1 - p of a greatest entry."""
    given, step = options
    m, _, _, top, ties, rest, rest_low = _known(x, folded, row, count, None, given, step)
    high, low = log_of_others(top, ties, rest, rest_low)
    total, error = two_sum(m, high)
    infinite = select_equal(rest, rest, m, rest)
    unbounded = select_equal(m - m, number(x, 0.0), number(x, 0.0), number(x, 1.0))
    value = select_equal(unbounded, number(x, 1.0), infinite, total + (error + low))
    store_part(rows, row, count, broadcast(value))
    store_part(rows, row + step, count, broadcast(remainder(top, ties, rest, rest_low)))


@kernel
def totals(start: int, stop: int, room: Any, x: Any, rows: Any, given: Any) -> None:
    """rows (2, N) = log(sum_j exp(x_j)), 1 - p of a greatest entry; x (N, 1, 1) is m, given as for `softmax`."""
    options = memory(given), given.shape[1]
    traverse(totals_block, start, stop, x.shape, memory(room), memory(x), None, None, memory(rows), options)
