r"""Rows that lie in several pieces: what a piece contributes to its row, and its results once the row is known.

A piece is summed up by the numbers of `traversal.statistics`. Those of all pieces of a row merge into those of the
row (`fastsoftmax.arrays.long_rows.merge`), from which every piece finishes its own entries in the way, and to the
accuracy, of the kernels in `activations`.
"""

from typing import Any

from fastsoftmax.kernels.activations import log_softmax_block, logsumexp_block, softmax_block
from fastsoftmax.kernels.derivatives import (
    centre_of,
    dot,
    excess_sum,
    extent,
    mean_excess,
    power_for,
    product_of_logits,
    product_of_probs,
    shares_of,
)
from fastsoftmax.kernels.elementary import reference
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.losses import loss_at, scaled_probs, scaled_reciprocal, slope_at
from fastsoftmax.kernels.simd.memory import load, memory, store_part
from fastsoftmax.kernels.simd.rows import row_value
from fastsoftmax.kernels.simd.values import broadcast, filled
from fastsoftmax.kernels.traversal import complement, reciprocal, top_term, traverse, two_to_the


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
    shift, bias = reference(m, beta)
    return m, shift, bias, top_term(m, shift, bias, beta), ties, rest, rest_low


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
    lacking = complement(known, reciprocal(known[0], top, ties, rest, rest_low))
    store_part(rows, row + step, count, broadcast(lacking))


@kernel
def totals(start: int, stop: int, room: Any, x: Any, rows: Any, given: Any) -> None:
    """rows (2, N) = log(sum_j exp(x_j)), 1 - p of a greatest entry; x (N, 1, 1) is m, given as for `softmax`."""
    options = memory(given), given.shape[1]
    data, results, tile = memory(x), memory(rows), memory(room)
    shape = x.shape
    traverse(totals_block, start, stop, shape, tile, data, None, None, results, options, given=True)


@inline
def labelled_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """What `losses.cross_entropy_block` gives for the entry at the label: the loss, and the gradient there."""
    offset, _, folded, row, count = place
    given, step, scale, scale_low = options
    known = _known(x, folded, row, count, None, given, step)
    weight = row_value(x, folded, given, row + 4 * step, count)
    target = load(x, offset)
    slope = slope_at(x, target, known, weight, scale, scale_low)
    store_part(rows, row, count, broadcast(loss_at(target, known, weight, given)))
    store_part(rows, row + step, count, broadcast(slope))


@kernel
def labelled(start: int, stop: int, room: Any, x: Any, rows: Any, given: Any, scale: Any, scale_low: Any) -> None:
    """rows (2, N) = -weight log p, scale weight (p - 1) of the entries x (N, 1, 1).

    given (5, N): as for `softmax`, and the weight.
    """
    options = memory(given), given.shape[1], scale, scale_low
    data, results, tile = memory(x), memory(rows), memory(room)
    traverse(labelled_block, start, stop, x.shape, tile, data, None, None, results, options, given=True)


@inline
def gradient_part(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """y = scale weight p; errors as in `losses.cross_entropy_block`."""
    offset, length, folded, row, count = place
    given, step, scale, scale_low = options
    known = _known(x, folded, row, count, None, given, step)
    weight = row_value(x, folded, given, row + 4 * step, count)
    inverse = scaled_reciprocal(known, weight, scale, scale_low)
    scaled_probs(x, y, offset, length, known, inverse, weight, None)


@kernel
def gradient(start: int, stop: int, room: Any, x: Any, y: Any, given: Any, scale: Any, scale_low: Any) -> None:
    """y = scale weight p: the gradient of the cross-entropy but at the label; given as for `labelled`."""
    options = memory(given), given.shape[1], scale, scale_low
    data, result, tile = memory(x), memory(y), memory(room)
    traverse(gradient_part, start, stop, x.shape, tile, data, None, result, None, options, given=True)


@inline
def extent_part(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """max |v|, and the greatest v at an entry that is the greatest of its row: -inf if the piece has none."""
    offset, length, folded, row, count = place
    given, step = options
    m = row_value(x, folded, given, row, count)
    bound, pivot = extent(x, v, (offset, length, folded), m, None)
    store_part(rows, row, count, broadcast(bound))
    store_part(rows, row + step, count, broadcast(pivot))


@kernel
def extents(start: int, stop: int, room: Any, x: Any, v: Any, rows: Any, given: Any) -> None:
    """rows (2, N) = max |v|, v at a greatest entry; given as for `softmax`."""
    options = memory(given), given.shape[1]
    data, vector, results, tile = memory(x), memory(v), memory(rows), memory(room)
    traverse(extent_part, start, stop, x.shape, tile, data, vector, None, results, options, given=True)


@inline
def dot_part(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """What the piece adds to p.v of given probabilities, or to `derivatives.excess_sum` of logits, as a pair."""
    offset, length, folded, row, count = place
    given, step, beta, from_probs = options
    if from_probs is None:
        known = _known(x, folded, row, count, beta, given, step)
        bound = row_value(x, folded, given, row + 4 * step, count)
        unit, span = two_to_the(-power_for(bound)), (offset, length, folded)
        (high, low), _, _, _ = excess_sum(x, v, span, known, beta, None, None, None, unit)
    else:
        high, low = dot(x, v, offset, length, folded)
    store_part(rows, row, count, broadcast(high))
    store_part(rows, row + step, count, broadcast(low))


@kernel
def dots(
    start: int, stop: int, room: Any, x: Any, v: Any, rows: Any, given: Any, beta: Any, from_probs: Any
) -> None:
    """rows (2, N) = the parts of the mean of v, as pairs; given (6, N): as for `softmax`, and those of `extents`.

    Where x holds probabilities, `given` is of no use.
    """
    options = memory(given), given.shape[1], beta, from_probs
    data, vector, results, tile = memory(x), memory(v), memory(rows), memory(room)
    traverse(dot_part, start, stop, x.shape, tile, data, vector, None, results, options, given=True)


@inline
def product_part(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """`derivatives.softmax_product_block` with the sums of the whole row."""
    offset, length, folded, row, count = place
    given, step, beta, from_probs = options
    sums = (
        row_value(x, folded, given, row + 6 * step, count),
        row_value(x, folded, given, row + 7 * step, count),
    )
    one = filled(sums[0], 1.0)
    if from_probs is None:
        known = _known(x, folded, row, count, beta, given, step)
        bound = row_value(x, folded, given, row + 4 * step, count)
        pivot = row_value(x, folded, given, row + 5 * step, count)
        c, power, shares = centre_of(pivot, known), power_for(bound), shares_of(known)
        mean, mean_low = mean_excess(sums, -(c * two_to_the(-power)), known, shares)
        span, factor = (offset, length, folded), (one, filled(one, 0.0))
        centre = c, power, mean, mean_low, shares
        product_of_logits(x, v, y, span, known, beta, None, None, centre, one, factor)
    else:
        product_of_probs(x, v, y, offset, length, sums, one, beta)


@kernel
def softmax_product(
    start: int, stop: int, room: Any, x: Any, v: Any, y: Any, given: Any, beta: Any, from_probs: Any
) -> None:
    """y = J v for the Jacobian of softmax; given (8, N): as for `dots`, and the sum of these as a pair."""
    options = memory(given), given.shape[1], beta, from_probs
    data, vector, result, tile = memory(x), memory(v), memory(y), memory(room)
    traverse(product_part, start, stop, x.shape, tile, data, vector, result, None, options, given=True)
