r"""Rows that are cut into pieces: the sums over a piece, and its results from the merged sums of the row.

The sums of a piece are its `traversal.statistics`. `fastsoftmax.arrays.long_rows.merge` turns those of all pieces
of a row into those of the row. From these the results of every piece are computed, by the building blocks of
whole rows and with their accuracy.
"""

from typing import Any, NamedTuple

from fastsoftmax.kernels.activations import ActivationOptions, log_softmax_block, logsumexp_block, softmax_block
from fastsoftmax.kernels.derivatives import (
    dot,
    excess_sum,
    extent,
    power_for,
    product_of_logits,
    product_of_probs,
    row_centre,
)
from fastsoftmax.kernels.elementary import reference
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.losses import loss_at, scaled_probs, scaled_reciprocal, slope_at
from fastsoftmax.kernels.simd.memory import load, memory, store_part
from fastsoftmax.kernels.simd.rows import row_value
from fastsoftmax.kernels.simd.values import broadcast, filled
from fastsoftmax.kernels.traversal import RowStatistics, complement, reciprocal, top_term, traverse, two_to_the
from fastsoftmax.machine.entry import Block, Count, MaybeFlag, Number, Room, Table, Temperature


class PieceOptions(NamedTuple):
    """The sums of the whole rows: each is a row of `given`, and these are `step` apart. beta is 1/T or None."""

    given: Any
    step: Any
    beta: Any


class LossPieceOptions(NamedTuple):
    """As `PieceOptions` without a temperature, and the factor of the gradient as a pair."""

    given: Any
    step: Any
    scale: Any
    scale_low: Any


class ProductPieceOptions(NamedTuple):
    """As `PieceOptions`, and whether x holds probabilities (else None)."""

    given: Any
    step: Any
    beta: Any
    from_probs: Any


@inline
def summary_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """The numbers of `statistics`, each in a row of `rows`."""
    row, count, step = place.row, place.count, options
    store_part(rows, row, count, broadcast(stats.m))
    store_part(rows, row + step, count, broadcast(stats.shift))
    store_part(rows, row + 2 * step, count, broadcast(stats.bias))
    store_part(rows, row + 3 * step, count, broadcast(stats.top[0]))
    store_part(rows, row + 4 * step, count, broadcast(stats.top[1]))
    store_part(rows, row + 5 * step, count, broadcast(stats.ties))
    store_part(rows, row + 6 * step, count, broadcast(stats.rest))
    store_part(rows, row + 7 * step, count, broadcast(stats.rest_low))


@kernel
def summary(start: Count, stop: Count, room: Room, x: Block, rows: Table, beta: Temperature) -> None:
    """rows (8, N) = m, shift, bias, top (a pair), ties, rest (a pair); beta is 1/T as a pair, or None."""
    data, results, tile = memory(x), memory(rows), memory(room)
    shape, step = x.shape, rows.shape[1]
    traverse(summary_block, start, stop, shape, tile, data, None, None, results, step, beta, exact=True)


@inline
def _given(x: Any, place: Any, options: Any, number: int) -> Any:
    """Row `number` of the sums of whole rows, for the rows of a block."""
    return row_value(x, place.folded, options.given, place.row + number * options.step, place.count)


@inline
def _known(x: Any, place: Any, options: Any, beta: Any) -> RowStatistics:
    """The statistics of the whole rows, from their m, ties and rest."""
    m = _given(x, place, options, 0)
    ties = _given(x, place, options, 1)
    rest, rest_low = _given(x, place, options, 2), _given(x, place, options, 3)
    shift, bias = reference(m, beta)
    return RowStatistics(m, shift, bias, top_term(m, shift, bias, beta), ties, rest, rest_low, None, None)


@inline
def softmax_part(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """`activations.softmax_block` with the sums of the whole row."""
    known = _known(x, place, options, options.beta)
    softmax_block(x, v, y, place, known, rows, ActivationOptions(options.beta, None))


@kernel
def softmax(start: Count, stop: Count, room: Room, x: Block, y: Block, given: Table, beta: Temperature) -> None:
    """y_k = exp(x_k/T) / sum_j exp(x_j/T), the sum over the whole row; given (4, N) = m, ties, rest (a pair)."""
    options = PieceOptions(memory(given), given.shape[1], beta)
    data, result, tile = memory(x), memory(y), memory(room)
    shape = x.shape
    traverse(softmax_part, start, stop, shape, tile, data, None, result, None, options, given=True)


@inline
def log_softmax_part(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """`activations.log_softmax_block` with the sums of the whole row."""
    known = _known(x, place, options, options.beta)
    log_softmax_block(x, v, y, place, known, rows, ActivationOptions(options.beta, None))


@kernel
def log_softmax(
    start: Count, stop: Count, room: Room, x: Block, y: Block, given: Table, beta: Temperature
) -> None:
    """y_k = x_k/T - log(sum_j exp(x_j/T)), the sum over the whole row; given as for `softmax`."""
    options = PieceOptions(memory(given), given.shape[1], beta)
    data, result, tile = memory(x), memory(y), memory(room)
    shape = x.shape
    traverse(log_softmax_part, start, stop, shape, tile, data, None, result, None, options, given=True)


@inline
def totals_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """`activations.logsumexp_block` with the sums of the whole row, and 1 - p of a greatest entry."""
    known = _known(x, place, options, None)
    logsumexp_block(x, v, y, place, known, rows, None)
    lacking = complement(known, reciprocal(known))
    store_part(rows, place.row + options.step, place.count, broadcast(lacking))


@kernel
def totals(start: Count, stop: Count, room: Room, x: Block, rows: Table, given: Table) -> None:
    """rows (2, N) = log(sum_j exp(x_j)), 1 - p of a greatest entry; x (N, 1, 1) is m, given as for `softmax`."""
    options = PieceOptions(memory(given), given.shape[1], None)
    data, results, tile = memory(x), memory(rows), memory(room)
    shape = x.shape
    traverse(totals_block, start, stop, shape, tile, data, None, None, results, options, given=True)


@inline
def labelled_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """The loss and the gradient at the label, as in `losses.cross_entropy_block`."""
    row, count = place.row, place.count
    known, weight = _known(x, place, options, None), _given(x, place, options, 4)
    target = load(x, place.offset)
    slope = slope_at(x, target, known, weight, options.scale, options.scale_low)
    store_part(rows, row, count, broadcast(loss_at(target, known, weight, options.given)))
    store_part(rows, row + options.step, count, broadcast(slope))


@kernel
def labelled(
    start: Count, stop: Count, room: Room, x: Block, rows: Table, given: Table, scale: Number, scale_low: Number
) -> None:
    """rows (2, N) = -weight log p, scale weight (p - 1) of the entries x (N, 1, 1).

    given (5, N): as for `softmax`, and the weight.
    """
    options = LossPieceOptions(memory(given), given.shape[1], scale, scale_low)
    data, results, tile = memory(x), memory(rows), memory(room)
    traverse(labelled_block, start, stop, x.shape, tile, data, None, None, results, options, given=True)


@inline
def gradient_part(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """y = scale weight p; errors as in `losses.cross_entropy_block`."""
    known, weight = _known(x, place, options, None), _given(x, place, options, 4)
    inverse = scaled_reciprocal(known, weight, options.scale, options.scale_low)
    scaled_probs(x, y, place.offset, place.length, known, inverse, weight, None)


@kernel
def gradient(
    start: Count, stop: Count, room: Room, x: Block, y: Block, given: Table, scale: Number, scale_low: Number
) -> None:
    """y = scale weight p: the gradient of the cross-entropy beside the label; given as for `labelled`."""
    options = LossPieceOptions(memory(given), given.shape[1], scale, scale_low)
    data, result, tile = memory(x), memory(y), memory(room)
    traverse(gradient_part, start, stop, x.shape, tile, data, None, result, None, options, given=True)


@inline
def extent_part(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """max |v|, and the greatest v at a greatest entry of the row: -inf if the piece has no such entry."""
    row, count = place.row, place.count
    bound, pivot = extent(x, v, place, _given(x, place, options, 0), None)
    store_part(rows, row, count, broadcast(bound))
    store_part(rows, row + options.step, count, broadcast(pivot))


@kernel
def extents(start: Count, stop: Count, room: Room, x: Block, v: Block, rows: Table, given: Table) -> None:
    """rows (2, N) = max |v|, v at a greatest entry; given as for `softmax`."""
    options = PieceOptions(memory(given), given.shape[1], None)
    data, vector, results, tile = memory(x), memory(v), memory(rows), memory(room)
    traverse(extent_part, start, stop, x.shape, tile, data, vector, None, results, options, given=True)


@inline
def dot_part(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """The piece's part of p.v if x holds probabilities, else of `derivatives.excess_sum`, as a pair."""
    row, count, beta = place.row, place.count, options.beta
    if options.from_probs is None:
        known = _known(x, place, options, beta)
        unit = two_to_the(-power_for(_given(x, place, options, 4)))
        (high, low), _, _, _ = excess_sum(x, v, place, known, beta, None, None, None, unit)
    else:
        high, low = dot(x, v, place, True)
    store_part(rows, row, count, broadcast(high))
    store_part(rows, row + options.step, count, broadcast(low))


@kernel(unless=lambda beta, from_probs, **_: beta and from_probs)
def dots(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    v: Block,
    rows: Table,
    given: Table,
    beta: Temperature,
    from_probs: MaybeFlag,
) -> None:
    """rows (2, N) = the parts of the mean of v, as pairs; given (6, N): as for `softmax`, and those of `extents`.

    If x holds probabilities, `given` is not used.
    """
    options = ProductPieceOptions(memory(given), given.shape[1], beta, from_probs)
    data, vector, results, tile = memory(x), memory(v), memory(rows), memory(room)
    traverse(dot_part, start, stop, x.shape, tile, data, vector, None, results, options, given=True)


@inline
def product_part(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """`derivatives.softmax_product_block` with the sums of the whole row."""
    sums, beta = (_given(x, place, options, 6), _given(x, place, options, 7)), options.beta
    one = filled(sums[0], 1.0)
    if options.from_probs is None:
        known = _known(x, place, options, beta)
        bound, pivot = _given(x, place, options, 4), _given(x, place, options, 5)
        centre = row_centre(pivot, power_for(bound), sums, known)
        product_of_logits(x, v, y, place, known, beta, None, None, centre, one, (one, filled(one, 0.0)))
    else:
        product_of_probs(x, v, y, place, sums, one, beta)


@kernel
def softmax_product(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    v: Block,
    y: Block,
    given: Table,
    beta: Temperature,
    from_probs: MaybeFlag,
) -> None:
    """y = J v for the Jacobian of softmax; given (8, N): as for `dots`, and the sum of all `dots` of the row."""
    options = ProductPieceOptions(memory(given), given.shape[1], beta, from_probs)
    data, vector, result, tile = memory(x), memory(v), memory(y), memory(room)
    traverse(product_part, start, stop, x.shape, tile, data, vector, result, None, options, given=True)
