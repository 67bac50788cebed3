r"""What is asked of rows with labels: log-probability, rank, greatest class, entropy, log-sum-exp, in one pass.

With d_k = (m - x_k)/T, the terms e_k = exp(-d_k) and s' as in `traversal.others`:

    log p_y = -d_y - log(1 + s'),  H = log(1 + s') + (sum_k e_k d_k)/(sum_k e_k),  lse = m/T + log(1 + s')

The sums are those of `traversal.statistics` and one more, in the same loop: computing the exponentials again for
the entropy, as `entropy` does, would take as long as all the rest. The rank is the number of classes whose logit
is greater than that of the label.
"""

from typing import Any, NamedTuple

from fastsoftmax.kernels.derivatives import times
from fastsoftmax.kernels.elementary import below, quotient, reference, two_sum
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.simd.memory import (
    lane_count,
    load,
    load_part,
    load_scalar,
    memory,
    scratch,
    store_part,
    store_scalar,
)
from fastsoftmax.kernels.simd.reduce import fold_sum, fold_two_sum
from fastsoftmax.kernels.simd.rows import row_value
from fastsoftmax.kernels.simd.values import (
    any_above,
    broadcast,
    muladd,
    number,
    select_equal,
    select_less,
)
from fastsoftmax.kernels.traversal import (
    Picks,
    RowStatistics,
    highest,
    log_of_others,
    log_of_sum,
    spared,
    term,
    top_term,
    total,
    traverse,
)
from fastsoftmax.machine.entry import Block, Count, Floats, Integers, Room, Temperature

INF = float("inf")
TOGETHER = 4
"""So many products are added before they are added to the pair of their sum: within 4 u, all are positive."""


class StatisticsOptions(NamedTuple):
    """1/T or None, the entries at the labels, and one output for each number of a row but the first."""

    beta: Any
    picks: Any
    ranks: Any
    places: Any
    entropies: Any
    sums: Any


class Sums(NamedTuple):
    """For each lane: entries equal to m, the other terms as a pair, the entries above the label's."""

    ties: Any
    high: Any
    low: Any
    above: Any


@inline
def _add(value: Any, m: Any, target: Any, beta: Any, shift: Any, bias: Any, sums: Any, dots: Any) -> Any:
    """The sums, and the sum of e d, with one entry more."""
    one = number(value, 1.0)
    e = term(value, m, beta, shift, bias)
    high, error = two_sum(sums.high, e)
    ties = select_equal(value, m, sums.ties + one, sums.ties)
    above = select_less(target, value, sums.above + one, sums.above)
    return Sums(ties, high, sums.low + error, above), muladd(e, spared(e, m - value), dots)


@inline
def _sums(x: Any, offset: int, length: int, m: Any, target: Any, beta: Any, shift: Any, bias: Any) -> Any:
    """The `Sums` of each lane, and the sum of e_k (m - x_k) as a pair."""
    step = lane_count(x)
    full, wide = length // step * step, length // (TOGETHER * step) * (TOGETHER * step)
    zero = broadcast(number(x, 0.0))
    sums, dot, dot_low = Sums(zero, zero, zero, zero), zero, zero
    for k in range(0, wide, TOGETHER * step):
        part = zero
        for j in range(TOGETHER):
            value = load(x, offset + k + j * step)
            sums, part = _add(value, m, target, beta, shift, bias, sums, part)
        dot, error = two_sum(dot, part)
        dot_low = dot_low + error
    for k in range(wide, full, step):
        sums, part = _add(load(x, offset + k), m, target, beta, shift, bias, sums, zero)
        dot, error = two_sum(dot, part)
        dot_low = dot_low + error
    if full < length:
        last = load_part(x, offset + full, length - full, number(x, -INF))
        sums, part = _add(last, m, target, beta, shift, bias, sums, zero)
        dot, error = two_sum(dot, part)
        dot_low = dot_low + error
    return sums, (dot, dot_low)


@inline
def _first_in_lanes(x: Any, offset: int, length: int, m: Any) -> Any:
    """For a tile: the number of the first entry of each row that is equal to m; -1 if there is none."""
    step = lane_count(x)
    nowhere, index = broadcast(number(x, -1.0)), broadcast(number(x, 0.0))
    place = nowhere
    for k in range(offset, offset + length, step):
        found = select_equal(load(x, k), m, index, nowhere)
        place = select_equal(place, nowhere, found, place)
        index = index + number(x, 1.0)
    return place


@inline
def _first_in_row(x: Any, offset: int, length: int, m: Any) -> int:
    """For a single row: the number of the first entry that is equal to m; -1 if there is none."""
    step = lane_count(x)
    one, zero = broadcast(number(x, 1.0)), broadcast(number(x, 0.0))
    full = length // step * step
    begin = full
    for k in range(0, full, step):
        if any_above(select_equal(load(x, offset + k), m, one, zero), number(x, 0.5)):
            begin = k
            break
    for k in range(begin, length):
        if load_scalar(x, offset + k) == m:
            return k
    return -1


@inline
def _store_place(x: Any, place: Any, folded: Any, m: Any, places: Any) -> None:
    """Store the number of the first entry that is equal to m, for each row."""
    if folded is None:
        store_part(places, place.row, place.count, _first_in_lanes(x, place.offset, place.length, m))
    else:
        store_scalar(places, place.row, number(x, float(_first_in_row(x, place.offset, place.length, m))))


@inline
def statistics_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """All statistics of a row. The statistics of `traverse` are not used.

    Errors: log p as in `log_softmax_block`, lse as in `logsumexp_block`. In the entropy the sum of e d has 4 u for
    `TOGETHER`, 2.2 for the term and 1 for d; with the logarithm and the last roundings at most 6 ulp.
    """
    offset, length, folded, row, count = place
    beta, picks, ranks, places, entropies, sums_out = options
    m = highest(x, offset, length, folded)
    shift, bias = reference(m, beta)
    target = row_value(x, folded, picks.targets, 0, count)
    lanes, dots = _sums(x, offset, length, m, target, beta, shift, bias)
    high, low = fold_two_sum(folded, lanes.high, lanes.low)
    rest, rest_low = two_sum(high, low)
    ties = fold_sum(folded, lanes.ties)
    known = RowStatistics(m, shift, bias, top_term(m, shift, bias, beta), ties, rest, rest_low, None, None)
    log_high, log_low = log_of_others(known)
    store_part(rows, row, count, broadcast(below(target, m, beta) - (log_high + log_low)))
    store_part(ranks, row, count, broadcast(fold_sum(folded, lanes.above)))
    _store_place(x, place, folded, m, places)
    dot, dot_low = fold_two_sum(folded, dots[0], dots[1])
    whole, whole_low = total(known)
    mean, mean_low = quotient(dot, dot_low, whole, whole_low)
    depth = times(mean + mean_low, beta)
    value, error = two_sum(log_high, depth)
    store_part(entropies, row, count, broadcast(value + (error + log_low)))
    store_part(
        sums_out,
        row,
        count,
        broadcast(
            log_of_sum(RowStatistics(times(m, beta), shift, bias, known.top, ties, rest, rest_low, None, None))
        ),
    )


@kernel
def label_statistics(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    labels: Integers,
    rows: Floats,
    ranks: Floats,
    places: Floats,
    entropies: Floats,
    sums: Floats,
    beta: Temperature,
) -> None:
    """rows = log p[label], ranks, the places of the greatest classes, entropies, and lse, of softmax(x/T).

    Ranks and places are whole numbers, which are exact up to 2**24 classes in float32.
    """
    data = memory(x)
    picks = Picks(memory(labels), scratch(data, 2))
    options = StatisticsOptions(beta, picks, memory(ranks), memory(places), memory(entropies), memory(sums))
    tile, results = memory(room), memory(rows)
    traverse(
        statistics_block, start, stop, x.shape, tile, data, None, None, results, options, given=True, picks=picks
    )
