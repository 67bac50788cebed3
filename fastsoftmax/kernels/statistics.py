r"""What is asked of rows with labels: log-probability, rank, greatest class, entropy, log-sum-exp, in one pass.

With d_k = (m - x_k)/T, the terms e_k = exp(-d_k) and s' as in `traversal.others`:

    log p_y = -d_y - log(1 + s'),  H = log(1 + s') + (sum_k e_k d_k)/(sum_k e_k),  lse = m/T + log(1 + s')

The sums are those of `traversal.statistics` and one more, in the same loop: computing the exponentials again for
the entropy, as `entropy` does, would take as long as all the rest. The rank is the number of classes whose logit
is greater than that of the label.

Rows of more than `COLUMN_LIMIT` classes are walked in groups: the sums of each row's lanes are kept and
transposed, so that logarithms, quotients and results are computed with a row in each lane, as for short rows.
Finishing such a row by itself takes as long as 50 of its classes.
"""

from typing import Any, NamedTuple

from fastsoftmax._vectors import COLUMN_LIMIT, GROUP_LIMIT
from fastsoftmax.kernels.derivatives import times
from fastsoftmax.kernels.elementary import below, quotient, reference, smallest_power, two_sum
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.simd.memory import (
    after,
    lane_count,
    load,
    load_scalar,
    memory,
    scratch,
    size,
    store,
    store_part,
    store_scalar,
    store_whole,
)
from fastsoftmax.kernels.simd.values import (
    any_above,
    broadcast,
    lanes_above,
    last_lanes,
    lowest_bit,
    muladd,
    number,
    select_equal,
    select_less,
    unless_none,
    zero_if_less,
)
from fastsoftmax.kernels.traversal import (
    Picks,
    Place,
    RowStatistics,
    add,
    highest,
    load_last,
    log_of_others,
    log_of_sum,
    maxima,
    prefetch_row,
    term_and_power,
    top_term,
    total,
    traverse,
    turned_pair,
    turned_sum,
)
from fastsoftmax.machine.entry import Block, Count, Floats, Integers, Room, Temperature

INF = float("inf")
TOGETHER = 4
"""So many products are added before they are added to the pair of their sum: within 4 u, all are positive."""
GROUP_TABLE = 160
"""Vectors of memory for a group of rows: partial sums for each row, its numbers, and room to transpose them."""


class StatisticsOptions(NamedTuple):
    """1/T or None, the entries at the labels, memory for `group_sums`, and outputs for the other numbers."""

    beta: Any
    picks: Any
    table: Any
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


class Found(NamedTuple):
    """What was added for a row in each lane: `above` as in `Sums`, and one or two sums of products, as pairs."""

    row: Row
    stats: RowStatistics
    above: Any
    first: Any
    second: Any


@inline
def depth_of(value: Any, q: Any, row: Row) -> Any:
    """(m - x)/T; 0 if the term, whose power is q, is 0, so that their product is 0 too."""
    depth = row.m - value if row.beta is None else -below(value, row.m, row.beta)
    return zero_if_less(q, smallest_power(q), depth)


@inline
def add_depth(value: Any, e: Any, q: Any, row: Row, first: Any, second: Any) -> Any:
    """One entry more for `row_sums`: the first product is e d. There is no second."""
    return muladd(e, depth_of(value, q, row), first), second


@inline
def _join(pair: Any, part: Any) -> Any:
    """A pair plus a number; None if both are."""
    if part is None:
        return pair
    return add(pair, part)


@inline
def _with_entry(value: Any, row: Row, sums: Sums) -> Sums:
    """Both counts with one entry more; the sum of terms stays as it is."""
    one = number(value, 1.0)
    ties = select_equal(value, row.m, sums.ties + one, sums.ties)
    above = select_less(row.target, value, sums.above + one, sums.above)
    return Sums(ties, sums.high, sums.low, above)


@inline
def _add_one(value: Any, row: Row, sums: Sums, entry: Any, first: Any, second: Any) -> Any:
    e, q = term_and_power(value, row.m, row.beta, row.shift, row.bias)
    ties, high, low, above = _with_entry(value, row, sums)
    high, low = add((high, low), e)
    first, second = entry(value, e, q, row, first, second)
    return Sums(ties, high, low, above), first, second


@inline
def _add_two(value: Any, other: Any, row: Row, sums: Sums, entry: Any, first: Any, second: Any) -> Any:
    """Both terms are added, and their sum to the pair, as in `traversal.lane_sums`."""
    e, q = term_and_power(value, row.m, row.beta, row.shift, row.bias)
    f, p = term_and_power(other, row.m, row.beta, row.shift, row.bias)
    ties, high, low, above = _with_entry(other, row, _with_entry(value, row, sums))
    high, low = add((high, low), e + f)
    first, second = entry(value, e, q, row, first, second)
    first, second = entry(other, f, p, row, first, second)
    return Sums(ties, high, low, above), first, second


@inline
def row_sums(x: Any, offset: int, length: int, row: Row, entry: Any, second: Any) -> Any:
    """The `Sums` of each lane, and one or two sums of products, each as a pair.

    ``entry(value, e, q, row, first, second)`` adds an entry to the products; e and q are those of
    `traversal.term_and_power`. The second sum of products is None if `second` is.
    """
    step = lane_count(x)
    full, wide = length // step * step, length // (TOGETHER * step) * (TOGETHER * step)
    paired = length // (2 * step) * (2 * step)
    zero = broadcast(number(x, 0.0))
    nothing = unless_none(second, zero)
    sums, first_pair, second_pair = Sums(zero, zero, zero, zero), (zero, zero), unless_none(second, (zero, zero))
    for k in range(offset, offset + wide, TOGETHER * step):
        first, other = zero, nothing
        for j in range(k, k + TOGETHER * step, 2 * step):
            sums, first, other = _add_two(load(x, j), load(x, j + step), row, sums, entry, first, other)
        first_pair, second_pair = _join(first_pair, first), _join(second_pair, other)
    first, other = zero, nothing
    if wide < paired:
        k = offset + wide
        sums, first, other = _add_two(load(x, k), load(x, k + step), row, sums, entry, first, other)
    if paired < full:
        sums, first, other = _add_one(load(x, offset + paired), row, sums, entry, first, other)
    if full < length:
        last = load_last(x, offset, length, number(x, -INF))
        if full > 0:
            last = last_lanes(last, length - full, number(x, -INF))
        sums, first, other = _add_one(last, row, sums, entry, first, other)
    first_pair, second_pair = _join(first_pair, first), _join(second_pair, other)
    return sums, first_pair, second_pair


@inline
def _found(row: Row, sums: Sums, first: Any, second: Any) -> Found:
    """The `Found` of rows whose lanes have been folded."""
    rest, rest_low = two_sum(sums.high, sums.low)
    top = top_term(row.m, row.shift, row.bias, row.beta)
    stats = RowStatistics(row.m, row.shift, row.bias, top, sums.ties, rest, rest_low, None, None)
    return Found(row, stats, sums.above, first, second)


@inline
def tile_sums(x: Any, place: Place, beta: Any, picks: Picks, entry: Any, second: Any) -> Found:
    """The `Found` of a tile, with a row in each lane."""
    m = highest(x, place.offset, place.length, None)
    shift, bias = reference(m, beta)
    row = Row(m, load(picks.targets, 0), beta, shift, bias)
    return _found(row, *row_sums(x, place.offset, place.length, row, entry, second))


@inline
def clear_group(table: Any, classes: int) -> None:
    """Clear the memory for `group_sums`, whose lanes without a row keep what they have."""
    if classes > COLUMN_LIMIT:
        for k in range(0, size(table), lane_count(table)):
            store(table, k, broadcast(number(table, 0.0)))


@inline
def _store_pair(table: Any, at: int, pair: Any) -> None:
    if pair is not None:
        store(table, at, pair[0])
        store(table, at + lane_count(table) * lane_count(table), pair[1])


@inline
def _load_pair(pair: Any, table: Any, turned: Any) -> Any:
    if pair is None:
        return pair
    return turned_pair(table, after(table, lane_count(table) * lane_count(table)), turned)


@inline
def _marks(table: Any) -> Any:
    """The place in `table` of m and its reference, for each row of a group."""
    return after(table, 8 * lane_count(table) * lane_count(table))


@inline
def group_sums(
    x: Any, classes: int, count: int, beta: Any, picks: Picks, entry: Any, second: Any, table: Any
) -> Found:
    """The `Found` of `count` consecutive rows at the beginning of x, one in each lane.

    `table` is memory for `GROUP_TABLE` vectors.
    """
    step = lane_count(x)
    square = step * step
    marks, turned = _marks(table), after(table, 9 * square)
    targets = load(picks.targets, step)
    if classes <= GROUP_LIMIT:
        m = maxima(x, 0, classes, count, table, turned)
    else:
        for i in range(count):
            store_scalar(marks, i, highest(x, i * classes, classes, True))
        m = load(marks, 0)
    shift, bias = reference(m, beta)
    store(marks, 0, m)
    store(marks, step, shift)
    store(marks, 2 * step, bias)
    nothing = broadcast(number(x, 0.0))
    pair = (nothing, nothing)
    for i in range(count):
        prefetch_row(x, (step + i) * classes, classes)
        shift_of_row, bias_of_row = load_scalar(marks, step + i), load_scalar(marks, 2 * step + i)
        row = Row(load_scalar(marks, i), load_scalar(picks.targets, step + i), beta, shift_of_row, bias_of_row)
        sums, products, others = row_sums(x, i * classes, classes, row, entry, second)
        at = i * step
        store(table, at, sums.ties)
        store(table, square + at, sums.above)
        _store_pair(table, 2 * square + at, (sums.high, sums.low))
        _store_pair(table, 4 * square + at, products)
        _store_pair(table, 6 * square + at, others)
    ties, above = turned_sum(table, turned), turned_sum(after(table, square), turned)
    high, low = turned_pair(after(table, 2 * square), after(table, 3 * square), turned)
    products = _load_pair(pair, after(table, 4 * square), turned)
    others = _load_pair(unless_none(second, pair), after(table, 6 * square), turned)
    return _found(Row(m, targets, beta, shift, bias), Sums(ties, high, low, above), products, others)


@inline
def mean_of(pair: Any, stats: RowStatistics) -> Any:
    """The mean of what was multiplied by the terms in a sum of products."""
    whole, whole_low = total(stats)
    mean, mean_low = quotient(pair[0], pair[1], whole, whole_low)
    return mean + mean_low


@inline
def _first_nan(x: Any, offset: int, stride: int, classes: int) -> int:
    """The class of the first NaN of a row whose entries are `stride` apart; 0 if there is none."""
    for k in range(classes):
        value = load_scalar(x, offset + k * stride)
        if value != value:
            return k
    return 0


@inline
def _mark_nan(
    x: Any, row_stride: int, stride: int, classes: int, row: int, count: int, lse: Any, options: Any
) -> None:
    """Give rows with NaN, which `lse` shows, the rank behind all classes and the place of the first NaN."""
    one, zero = broadcast(number(x, 1.0)), broadcast(number(x, 0.0))
    if any_above(select_equal(lse, lse, zero, one), number(x, 0.5)):
        store(options.picks.targets, 0, lse)
        for i in range(count):
            value = load_scalar(options.picks.targets, i)
            if value != value:
                store_scalar(options.ranks, row + i, classes)
                store_scalar(options.places, row + i, _first_nan(x, i * row_stride, stride, classes))


@inline
def _first_in_lanes(x: Any, offset: int, length: int, m: Any) -> Any:
    """For a tile: the number of the first entry of each row that is equal to m; -1 if there is none."""
    step = lane_count(x)
    one = number(x, 1.0)
    place = broadcast(number(x, -1.0))
    index = broadcast(number(x, float(length // step)))
    for k in range(offset + length - step, offset - 1, -step):  # the last one found is the first of the row
        index = index - one
        place = select_equal(load(x, k), m, index, place)
    return place


@inline
def _first_in_row(x: Any, offset: int, length: int, m: Any) -> int:
    """For a single row: the number of the first entry that is equal to m; -1 if there is none."""
    step = lane_count(x)
    one, zero = broadcast(number(x, 1.0)), broadcast(number(x, 0.0))
    full = length // step * step
    for k in range(0, full, step):
        found = lanes_above(select_equal(load(x, offset + k), m, one, zero), number(x, 0.5))
        if found != 0:
            place: int = k + lowest_bit(found)
            return place
    for k in range(full, length):
        if load_scalar(x, offset + k) == m:
            return k
    return -1


@inline
def place_in_row(x: Any, i: int, classes: int, table: Any) -> int:
    """The number of the first greatest entry of row i of the last group; -1 if there is only NaN."""
    return _first_in_row(x, i * classes, classes, load_scalar(_marks(table), i))


@inline
def places_in_tile(x: Any, place: Place, found: Found) -> Any:
    """The same for all rows of a tile."""
    return _first_in_lanes(x, place.offset, place.length, found.row.m)


@inline
def store_statistics(found: Found, row: int, count: int, rows: Any, options: Any) -> Any:
    """Store all statistics of rows but the place; returns lse.

    Errors: log p as in `log_softmax_block`, lse as in `logsumexp_block`. In the entropy the sum of e d has 4 u for
    `TOGETHER`, 2.2 for the term and 1 for d; with the logarithm and the last roundings at most 6 ulp.
    """
    one, stats = found.row, found.stats
    log_high, log_low = log_of_others(stats)
    store_part(rows, row, count, below(one.target, one.m, one.beta) - (log_high + log_low))
    store_whole(options.ranks, row, count, found.above)
    value, error = two_sum(log_high, mean_of(found.first, stats))
    store_part(options.entropies, row, count, value + (error + log_low))
    _, shift, bias, top, ties, rest, rest_low, _, _ = stats
    lifted = RowStatistics(times(one.m, one.beta), shift, bias, top, ties, rest, rest_low, None, None)
    lse = log_of_sum(lifted)
    store_part(options.sums, row, count, lse)
    return lse


@inline
def statistics_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """All statistics of the rows of a tile. The statistics of `traverse` are not used."""
    offset, length, _, row, count = place
    found = tile_sums(x, place, options.beta, options.picks, add_depth, None)
    lse = store_statistics(found, row, count, rows, options)
    store_whole(options.places, row, count, places_in_tile(x, place, found))
    step = lane_count(x)
    _mark_nan(after(x, offset), 1, step, length // step, row, count, lse, options)


@inline
def statistics_group(x: Any, first: int, count: int, classes: int, rows: Any, options: Any) -> None:
    """All statistics of a group of longer rows."""
    table = options.table
    found = group_sums(x, classes, count, options.beta, options.picks, add_depth, None, table)
    lse = store_statistics(found, first, count, rows, options)
    for i in range(count):
        store_scalar(options.places, first + i, place_in_row(x, i, classes, table))
    _mark_nan(x, classes, 1, classes, first, count, lse, options)


@kernel
def label_statistics(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    labels: Integers,
    rows: Floats,
    ranks: Integers,
    places: Integers,
    entropies: Floats,
    sums: Floats,
    beta: Temperature,
) -> None:
    """rows = log p[label], ranks, the places of the greatest classes, entropies, and lse, of softmax(x/T).

    Ranks and places are exact up to 2**24 classes in float32. A row with NaN has the rank `classes` and the place
    of its first NaN.
    """
    data = memory(x)
    picks, table = Picks(memory(labels), scratch(data, 2)), scratch(data, GROUP_TABLE)
    clear_group(table, x.shape[1])
    outputs = memory(ranks), memory(places), memory(entropies), memory(sums)
    options = StatisticsOptions(beta, picks, table, *outputs)
    shape, tile, results = x.shape, memory(room), memory(rows)
    block, group = statistics_block, statistics_group
    traverse(
        block,
        start,
        stop,
        shape,
        tile,
        data,
        None,
        None,
        results,
        options,
        given=True,
        picks=picks,
        together=group,
    )
