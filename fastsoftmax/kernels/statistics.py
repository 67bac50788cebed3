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
    unless_none,
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
from fastsoftmax.machine.entry import Block, Count, Floats, Integers, Nothing, Room, Temperature

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


class Row(NamedTuple):
    """What an entry of a row is added with: m, the entry at the label, 1/T or None, and the reference of m."""

    m: Any
    target: Any
    beta: Any
    shift: Any
    bias: Any


class Sums(NamedTuple):
    """For each lane: entries equal to m, the other terms as a pair, the entries above the label's."""

    ties: Any
    high: Any
    low: Any
    above: Any


@inline
def term_of(value: Any, row: Row) -> Any:
    """The `traversal.term` of an entry."""
    return term(value, row.m, row.beta, row.shift, row.bias)


@inline
def with_entry(value: Any, e: Any, row: Row, sums: Sums) -> Sums:
    """The sums with one entry more, whose term is e."""
    one = number(value, 1.0)
    high, error = two_sum(sums.high, e)
    ties = select_equal(value, row.m, sums.ties + one, sums.ties)
    above = select_less(row.target, value, sums.above + one, sums.above)
    return Sums(ties, high, sums.low + error, above)


@inline
def add_depth(value: Any, row: Row, sums: Sums, first: Any, second: Any) -> Any:
    """One entry more for `row_sums`: the first product is e (m - x). There is no second."""
    e = term_of(value, row)
    return with_entry(value, e, row, sums), muladd(e, spared(e, row.m - value), first), second


@inline
def _join(pair: Any, part: Any) -> Any:
    """A pair plus a number; None if both are."""
    if part is None:
        return pair
    high, error = two_sum(pair[0], part)
    return high, pair[1] + error


@inline
def row_sums(x: Any, offset: int, length: int, row: Row, entry: Any, second: Any) -> Any:
    """The `Sums` of each lane, and one or two sums of products, each as a pair.

    ``entry(value, row, sums, first, second)`` adds an entry. The second sum of products is None if `second` is.
    """
    step = lane_count(x)
    full, wide = length // step * step, length // (TOGETHER * step) * (TOGETHER * step)
    zero = broadcast(number(x, 0.0))
    nothing = unless_none(second, zero)
    sums, first_pair, second_pair = Sums(zero, zero, zero, zero), (zero, zero), unless_none(second, (zero, zero))
    for k in range(0, wide, TOGETHER * step):
        first, other = zero, nothing
        for j in range(TOGETHER):
            value = load(x, offset + k + j * step)
            sums, first, other = entry(value, row, sums, first, other)
        first_pair, second_pair = _join(first_pair, first), _join(second_pair, other)
    for k in range(wide, full, step):
        sums, first, other = entry(load(x, offset + k), row, sums, zero, nothing)
        first_pair, second_pair = _join(first_pair, first), _join(second_pair, other)
    if full < length:
        last = load_part(x, offset + full, length - full, number(x, -INF))
        sums, first, other = entry(last, row, sums, zero, nothing)
        first_pair, second_pair = _join(first_pair, first), _join(second_pair, other)
    return sums, first_pair, second_pair


@inline
def statistics_of(row: Row, lanes: Sums, folded: Any) -> RowStatistics:
    """The statistics of a row, from the sums in the lanes."""
    high, low = fold_two_sum(folded, lanes.high, lanes.low)
    rest, rest_low = two_sum(high, low)
    ties, top = fold_sum(folded, lanes.ties), top_term(row.m, row.shift, row.bias, row.beta)
    return RowStatistics(row.m, row.shift, row.bias, top, ties, rest, rest_low, None, None)


@inline
def mean_of(pair: Any, known: RowStatistics, folded: Any) -> Any:
    """The mean of what was multiplied by the terms in a sum of products."""
    high, low = fold_two_sum(folded, pair[0], pair[1])
    whole, whole_low = total(known)
    mean, mean_low = quotient(high, low, whole, whole_low)
    return mean + mean_low


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
def store_place(x: Any, place: Any, folded: Any, m: Any, places: Any) -> None:
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
    one = Row(m, target, beta, shift, bias)
    lanes, dots, _ = row_sums(x, offset, length, one, add_depth, None)
    known = statistics_of(one, lanes, folded)
    log_high, log_low = log_of_others(known)
    store_part(rows, row, count, broadcast(below(target, m, beta) - (log_high + log_low)))
    store_part(ranks, row, count, broadcast(fold_sum(folded, lanes.above)))
    store_place(x, place, folded, m, places)
    value, error = two_sum(log_high, times(mean_of(dots, known, folded), beta))
    store_part(entropies, row, count, broadcast(value + (error + log_low)))
    lifted = RowStatistics(
        times(m, beta), shift, bias, known.top, known.ties, known.rest, known.rest_low, None, None
    )
    store_part(sums_out, row, count, broadcast(log_of_sum(lifted)))


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


@kernel
def correct(
    start: Count,
    stop: Count,
    room: Nothing,
    x: Block,
    labels: Integers,
    rows: Floats,
    ranks: Floats,
    places: Floats,
    sums: Floats,
) -> None:
    """What `label_statistics` leaves to its callers: rows with NaN, and those with a negative label, are ignored.

    In a row with NaN, the place is that of the first one, as NumPy has it, and the rank is behind all classes. An
    ignored row has log p = 0 and the rank -1.
    """
    data, targets, results, above = memory(x), memory(labels), memory(rows), memory(ranks)
    firsts, lse = memory(places), memory(sums)
    _, classes, inner = x.shape
    zero = number(data, 0.0)
    for row in range(start, stop):
        value = load_scalar(lse, row)
        if value != value:
            store_scalar(above, row, number(data, float(classes)))
            offset = (row // inner * classes) * inner + row % inner
            for k in range(classes - 1, -1, -1):
                entry = load_scalar(data, offset + k * inner)
                if entry != entry:
                    store_scalar(firsts, row, number(data, float(k)))
        if load_scalar(targets, row) < 0:
            store_scalar(results, row, zero)
            store_scalar(above, row, number(data, -1.0))
