r"""Kullback-Leibler and Jensen-Shannon divergences of the rows of two blocks of logits, with their gradients.

Let a = softmax(u/T) be the distribution that weighs, b = softmax(w/T) the other one, d the depth of an entry below
the greatest of its row, over T, and s' as in `traversal.others`:

    log a_j = -da_j - log(1 + s'_a),  so that
    KL(a || b) = sum_j a_j (log a_j - log b_j) = sum_j a_j (db_j - da_j) + log(1 + s'_b) - log(1 + s'_a)

The distances db_j - da_j are measured from that at the greatest entry of a, so that nothing cancels in the sum
if one class of a is almost certain. An a_j of 0 adds 0, even if the distance is infinite or NaN. Gradients:

    with respect to w:  (b - a)/T
    with respect to u:  a_j ((db_j - da_j) - sum_k a_k (db_k - da_k))/T

The first is computed as (1 - a) - (1 - b) where both are above 1/2. KL(target || predicted) has a = target and
the first gradient, the reverse has a = predicted and the second.

The Jensen-Shannon divergence is a sum of terms that are not negative: with the greater of p_j and q_j, l, the
share c of the smaller one in m = share q + (1 - share) p, and h = exp(-|log p_j - log q_j|) - 1,

    share q log(q/m) + (1 - share) p log(p/m) = l (-(1 + c h) log(1 + c h) - c (1 + h) |log p_j - log q_j|)

Its gradient with respect to the logits of p is (1 - share) p_j (log(p_j/m_j) - sum_k p_k log(p_k/m_k))/T.

For the Kullback-Leibler divergence, both sums of a row, and that over the distances, are taken in one loop over u
and w, after their maxima; for the other one, the sums come from `traversal.statistics`. Longer rows are walked in
groups, as by `traversal.measure`, and what a row needs once is computed with a row in each lane; rows of more than
`PAIR_LIMIT` classes are walked one by one. Keeping the terms of a group saves two of five exponentials.
"""

from typing import Any, NamedTuple

from fastsoftmax._vectors import COLUMN_LIMIT, PAIR_LIMIT
from fastsoftmax.kernels.elementary import (
    biased,
    exp_parts,
    quick_log,
    quotient,
    reference,
    smallest_power,
    two_product,
    two_sum,
)
from fastsoftmax.kernels.entropy import HEADROOM, parted, sloped
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.reductions import sum_of
from fastsoftmax.kernels.simd.memory import (
    after,
    lane_count,
    load,
    load_part,
    load_scalar,
    memory,
    scratch,
    size,
    store,
    store_part,
)
from fastsoftmax.kernels.simd.reduce import fold_sum, fold_two_sum
from fastsoftmax.kernels.simd.rows import row_value
from fastsoftmax.kernels.simd.values import (
    absolute,
    broadcast,
    count_equal,
    counted,
    filled,
    is_single,
    maximum,
    muladd,
    number,
    select_equal,
    select_less,
    shift_to_exponent,
)
from fastsoftmax.kernels.traversal import (
    STATISTICS,
    TABLE,
    TWO_TILES,
    Place,
    RowStatistics,
    add,
    ahead_at,
    complement,
    highest,
    log_of_others,
    maxima,
    measure,
    measured,
    plan_for,
    prefetch_tile,
    prepare,
    prepared,
    probability,
    probability_of,
    read_tile,
    reciprocal,
    row_at,
    spared,
    statistics,
    store_statistics,
    store_tile,
    term,
    tile_memory,
    top_term,
    total,
    turned_pair,
    turned_sum,
    weighted,
)
from fastsoftmax.machine.entry import Block, Count, Flag, Floats, Number, Room, Temperature

INF = float("inf")
NAN = float("nan")
TINY_32, TINY_64 = 2.0**-126, 2.0**-1022
UNIT_32 = 2.0**-64
"""The unit of the distances in float32: terms are lifted by 2**96, and their products with distances of up to
2**64 stay finite."""
KEPT = 512
"""Vectors of memory for the terms of both blocks: of a group of rows of 256 classes, or of fewer longer rows."""
PARTS = 8
"""The numbers of the statistics of one block in a table; see `traversal.measured`."""
SQUARES = 9
PAIR_TABLE = 2 * PARTS + 3 + 16 * SQUARES + 16
"""Vectors of memory for a group of rows: two sets of statistics, the `Pair`'s other numbers, partial sums for each
row, and room to transpose them."""


class Mark(NamedTuple):
    """The greatest entry of a row, its `elementary.reference`, and m in the units of distances."""

    m: Any
    shift: Any
    bias: Any
    low: Any


class Sums(NamedTuple):
    """For each lane: entries equal to the greatest and the sum of the other terms, as a pair, of both blocks.

    `dot` is the sum of the products of the terms of the first with the distances, without those of its greatest
    entries, and `tops` the sum of the distances there.
    """

    ties: Any
    rest: Any
    rest_low: Any
    other_ties: Any
    other: Any
    other_low: Any
    dot: Any
    dot_low: Any
    tops: Any


class Pair(NamedTuple):
    """What determines the divergence of a row: the statistics of both blocks, and two numbers of the distances.

    `pivot` is the distance at the greatest entry of the first, `mean` and `mean_low` the mean of the distances
    from it, all in units of `distance`. `infinite` is inf if an entry of a that is not 0 meets a b of 0; then
    `mean` is NaN. Else it is 0.
    """

    a: Any
    b: Any
    pivot: Any
    mean: Any
    mean_low: Any
    infinite: Any


class DivergenceOptions(NamedTuple):
    """1/T or None, the weights of the rows, the factor of the gradients as a pair, and which gradient.

    `share` is the share of the targets in the mixture of the Jensen-Shannon divergence, and its complement; None
    for the Kullback-Leibler divergence. Then `first` says whether the gradient is that with respect to the first
    block, which weighs.
    """

    beta: Any
    weights: Any
    scale: Any
    scale_low: Any
    first: Any
    share: Any


@inline
def mark(m: Any, beta: Any) -> Mark:
    """The `Mark` of a row with maximum m."""
    shift, bias = reference(m, beta)
    if beta is None:
        return Mark(m, shift, bias, m)
    return Mark(m, shift, bias, m * beta[0])


@inline
def distance(value: Any, other: Any, a: Any, b: Any, beta: Any) -> Any:
    """log a_j - log b_j, but for a constant of the row; in units of (high + low) of the temperature."""
    if beta is None:
        return (value - a.low) - (other - b.low)
    return (muladd(value, beta[0], -a.low) - muladd(other, beta[0], -b.low)) * beta[1]


@inline
def over_temperature(value: Any, low: Any, beta: Any) -> Any:
    """Distances as a pair, from their units to those of logarithms."""
    if beta is None:
        return value, low
    product, error = two_product(value, beta[2])
    return product, error + muladd(value, beta[3], low * beta[2])


@inline
def _unit(like: Any) -> Any:
    return number(like, UNIT_32) if is_single(like) else number(like, 1.0)


@inline
def _inverse_unit(like: Any) -> Any:
    return number(like, 1.0 / UNIT_32) if is_single(like) else number(like, 1.0)


@inline
def lane_pairs(u: Any, w: Any, offset: int, length: int, a: Any, b: Any, beta: Any) -> Sums:
    """The `Sums` of each lane. Two terms, or two products, are added, and their sum to the pair with TwoSum."""
    step = lane_count(u)
    paired = length // (2 * step) * (2 * step)
    zero, unit = broadcast(number(u, 0.0)), _unit(a.m)
    ties, other_ties, tops = zero, zero, zero
    rest, other, dot = (zero, zero), (zero, zero), (zero, zero)
    for k in range(0, paired, 2 * step):
        value, next_value = load(u, offset + k), load(u, offset + k + step)
        beside, next_beside = load(w, offset + k), load(w, offset + k + step)
        e = term(value, a.m, beta, a.shift, a.bias)
        f = term(next_value, a.m, beta, a.shift, a.bias)
        d, c = distance(value, beside, a, b, beta) * unit, distance(next_value, next_beside, a, b, beta) * unit
        ties = count_equal(next_value, a.m, count_equal(value, a.m, ties))
        tops = select_equal(value, a.m, tops + d, tops)
        tops = select_equal(next_value, a.m, tops + c, tops)
        rest = add(rest, e + f)
        dot = add(dot, muladd(e, spared(e, d), f * spared(f, c)))
        e = term(beside, b.m, beta, b.shift, b.bias)
        f = term(next_beside, b.m, beta, b.shift, b.bias)
        other_ties = count_equal(next_beside, b.m, count_equal(beside, b.m, other_ties))
        other = add(other, e + f)
    for k in range(paired, length, step):
        value = load_part(u, offset + k, min(step, length - k), number(u, -INF))
        beside = load_part(w, offset + k, min(step, length - k), number(w, -INF))
        e = term(value, a.m, beta, a.shift, a.bias)
        d = distance(value, beside, a, b, beta) * unit
        ties = count_equal(value, a.m, ties)
        tops = select_equal(value, a.m, tops + d, tops)
        rest, dot = add(rest, e), add(dot, e * spared(e, d))
        other_ties = count_equal(beside, b.m, other_ties)
        other = add(other, term(beside, b.m, beta, b.shift, b.bias))
    return Sums(counted(ties), *rest, counted(other_ties), *other, *dot, tops)


@inline
def _statistics(a: Any, beta: Any, ties: Any, rest: Any, rest_low: Any) -> RowStatistics:
    high, low = two_sum(rest, rest_low)
    return RowStatistics(a.m, a.shift, a.bias, top_term(a.m, a.shift, a.bias, beta), ties, high, low, None, None)


@inline
def pair_of(sums: Any, a: Any, b: Any, beta: Any) -> Pair:
    """The `Pair` of rows whose lanes have been folded."""
    first = _statistics(a, beta, sums.ties, sums.rest, sums.rest_low)
    second = _statistics(b, beta, sums.other_ties, sums.other, sums.other_low)
    pivot = sums.tops / sums.ties
    product, product_low = two_product(pivot, first.rest)
    dot, error = two_sum(sums.dot, -product)
    dot_low = (sums.dot_low - product_low) + muladd(-pivot, first.rest_low, error)
    whole, whole_low = total(first)
    unit, zero, inf = _unit(pivot), number(pivot, 0.0), number(pivot, INF)
    mean, mean_low = quotient(dot, dot_low, whole * unit, whole_low * unit)
    infinite = select_equal(sums.dot + sums.tops, inf, inf, zero)
    mean = select_equal(infinite, inf, number(pivot, NAN), mean)
    return Pair(first, second, pivot * _inverse_unit(pivot), mean, mean_low, infinite)


@inline
def pair_of_row(u: Any, w: Any, offset: int, length: int, folded: Any, beta: Any) -> Pair:
    """The `Pair` of a single row (`folded`), or of the rows in the lanes of a tile."""
    a, b = mark(highest(u, offset, length, folded), beta), mark(highest(w, offset, length, folded), beta)
    lanes = lane_pairs(u, w, offset, length, a, b, beta)
    rest, rest_low = fold_two_sum(folded, lanes.rest, lanes.rest_low)
    other, other_low = fold_two_sum(folded, lanes.other, lanes.other_low)
    dot, dot_low = fold_two_sum(folded, lanes.dot, lanes.dot_low)
    ties, other_ties = fold_sum(folded, lanes.ties), fold_sum(folded, lanes.other_ties)
    tops = fold_sum(folded, lanes.tops)
    return pair_of(Sums(ties, rest, rest_low, other_ties, other, other_low, dot, dot_low, tops), a, b, beta)


# --- groups of rows -------------------------------------------------------------------------------------------


@inline
def _store_mark(table: Any, a: Any) -> None:
    step = lane_count(table)
    store(table, 0, a.m)
    store(table, step, a.shift)
    store(table, 2 * step, a.bias)
    store(table, 3 * step, a.low)


@inline
def _mark_at(table: Any, i: int) -> Mark:
    step = lane_count(table)
    return Mark(
        load_scalar(table, i),
        load_scalar(table, step + i),
        load_scalar(table, 2 * step + i),
        load_scalar(table, 3 * step + i),
    )


@inline
def measure_pairs(u: Any, w: Any, first: int, length: int, count: int, beta: Any, table: Any) -> Pair:
    """The `Pair` of `count` consecutive rows, one in each lane. It is also stored in `table`, for `pair_at`."""
    step = lane_count(u)
    square = step * step
    second = after(table, PARTS * step)
    squares = after(table, (2 * PARTS + 3) * step)
    turned = after(squares, SQUARES * square)
    a = mark(maxima(u, first, length, count, squares, turned), beta)
    b = mark(maxima(w, first, length, count, squares, turned), beta)
    _store_mark(table, a)
    _store_mark(second, b)
    for i in range(count):
        sums = lane_pairs(u, w, first + i * length, length, _mark_at(table, i), _mark_at(second, i), beta)
        at = i * step
        store(squares, at, sums.ties)
        store(squares, square + at, sums.rest)
        store(squares, 2 * square + at, sums.rest_low)
        store(squares, 3 * square + at, sums.other_ties)
        store(squares, 4 * square + at, sums.other)
        store(squares, 5 * square + at, sums.other_low)
        store(squares, 6 * square + at, sums.dot)
        store(squares, 7 * square + at, sums.dot_low)
        store(squares, 8 * square + at, sums.tops)
    ties, other_ties = turned_sum(squares, turned), turned_sum(after(squares, 3 * square), turned)
    rest, rest_low = turned_pair(after(squares, square), after(squares, 2 * square), turned)
    other, other_low = turned_pair(after(squares, 4 * square), after(squares, 5 * square), turned)
    dot, dot_low = turned_pair(after(squares, 6 * square), after(squares, 7 * square), turned)
    tops = turned_sum(after(squares, 8 * square), turned)
    pair = pair_of(Sums(ties, rest, rest_low, other_ties, other, other_low, dot, dot_low, tops), a, b, beta)
    store_statistics(table, pair.a)
    store_statistics(second, pair.b)
    store(table, 2 * PARTS * step, pair.pivot)
    store(table, (2 * PARTS + 1) * step, pair.mean)
    store(table, (2 * PARTS + 2) * step, pair.mean_low)
    return pair


@inline
def pair_at(table: Any, i: int) -> Pair:
    """The `Pair` of row i of the last group of `measure_pairs`, for its gradient."""
    step = lane_count(table)
    numbers = after(table, 2 * PARTS * step)
    return Pair(
        measured(table, i),
        measured(after(table, PARTS * step), i),
        load_scalar(numbers, i),
        load_scalar(numbers, step + i),
        load_scalar(numbers, 2 * step + i),
        number(table, 0.0),
    )


# --- Kullback-Leibler -----------------------------------------------------------------------------------------


@inline
def divergence(pair: Any, beta: Any) -> Any:
    """KL(a || b) of a row. The exact value is not negative, so a rounded one that is becomes 0.

    Error: a term e 1.1 ulp, which is up to 2.2 u, its distance 1 u of da + db, the sum of two products 2 u, the
    sum of all terms 3.2 u; the logarithms 4.6 u; in all at most 4 eps of a.da + a.db and both logarithms.
    """
    log_a, low_a = log_of_others(pair.a)
    log_b, low_b = log_of_others(pair.b)
    centre, error = two_sum(pair.pivot, pair.mean)
    value, value_low = over_temperature(centre, error + pair.mean_low, beta)
    logs, logs_low = two_sum(log_b, -log_a)
    high, low = two_sum(value, logs)
    finite = high + (low + (value_low + (logs_low + (low_b - low_a))))
    zero = number(finite, 0.0)
    return select_equal(pair.infinite, zero, maximum(zero, finite), pair.infinite + logs)


@inline
def store_divergence(like: Any, place: Any, pair: Any, rows: Any, options: Any) -> None:
    """Store the divergences of rows times their weights."""
    weight = row_value(like, place.folded, options.weights, place.row, place.count)
    store_part(rows, place.row, place.count, broadcast(spared(weight, weight * divergence(pair, options.beta))))


@inline
def _heavy(stats: Any, weight: Any, scale: Any, scale_low: Any, beta: Any) -> Any:
    """The `reciprocal` times the weight and 1/T."""
    factor, factor_low = weight * scale, weight * scale_low
    plain = reciprocal(stats)
    if beta is None:
        return weighted(plain, factor, factor_low, number(factor, 0.0))
    return weighted(plain, factor * beta[2], muladd(factor, beta[3], factor_low * beta[2]), beta[4])


@inline
def _crest(stats: Any) -> Any:
    """The greatest entry if its probability is above 1/2; else NaN."""
    lacking = complement(stats, reciprocal(stats))
    return select_less(lacking, number(lacking, 0.5), stats.m, number(lacking, NAN))


@inline
def _difference(value: Any, beside: Any, pair: Any, marks: Any, heavy: Any, both: Any, beta: Any) -> Any:
    """b - a, both times a weight; `both` is (1 - a) - (1 - b), for the class where both are above 1/2."""
    minus = probability(beside, beta, pair.b, heavy[1]) - probability(value, beta, pair.a, heavy[0])
    return select_equal(value, marks[0], select_equal(beside, marks[1], both, minus), minus)


@inline
def second_gradient(u: Any, w: Any, y: Any, place: Any, pair: Any, options: Any) -> None:
    """y = scale weight (b - a)/T."""
    offset, length, folded, row, count = place
    beta, step = options.beta, lane_count(u)
    weight = row_value(u, folded, options.weights, row, count)
    scale, scale_low = options.scale, options.scale_low
    heavy_a, heavy_b = (
        _heavy(pair.a, weight, scale, scale_low, beta),
        _heavy(pair.b, weight, scale, scale_low, beta),
    )
    heavy = heavy_a, heavy_b
    both = complement(pair.a, heavy[0]) - complement(pair.b, heavy[1])
    marks = _crest(pair.a), _crest(pair.b)
    full = length // step * step
    for k in range(0, full, step):
        value, beside = load(u, offset + k), load(w, offset + k)
        store(y, offset + k, spared(weight, _difference(value, beside, pair, marks, heavy, both, beta)))
    if full < length:
        value = load_part(u, offset + full, length - full, number(u, -INF))
        beside = load_part(w, offset + full, length - full, number(w, -INF))
        slope = _difference(value, beside, pair, marks, heavy, both, beta)
        store_part(y, offset + full, length - full, spared(weight, slope))


@inline
def _tilt(value: Any, beside: Any, pair: Any, marks: Any, heavy: Any, inner: Any, beta: Any) -> Any:
    """a_j (distance - mean)/T, where a part of 1/T is in `heavy` and the other is `inner`."""
    p = probability(value, beta, pair.a, heavy)
    above = ((distance(value, beside, marks[0], marks[1], beta) - pair.pivot) - pair.mean) - pair.mean_low
    depth, low = over_temperature(above, filled(above, 0.0), beta)
    return sloped(depth, number(above, 0.0), -low, p, inner)


@inline
def first_gradient(u: Any, w: Any, y: Any, place: Any, pair: Any, options: Any) -> None:
    """y = scale weight a_j (log(a_j/b_j) - KL(a || b))/T."""
    offset, length, folded, row, count = place
    beta, step = options.beta, lane_count(u)
    weight = row_value(u, folded, options.weights, row, count)
    power, inner = parted(u, beta)
    heavy = weighted(reciprocal(pair.a), weight * options.scale, weight * options.scale_low, power)
    marks = mark(pair.a.m, beta), mark(pair.b.m, beta)
    full = length // step * step
    for k in range(0, full, step):
        value, beside = load(u, offset + k), load(w, offset + k)
        store(y, offset + k, spared(weight, _tilt(value, beside, pair, marks, heavy, inner, beta)))
    if full < length:
        value = load_part(u, offset + full, length - full, number(u, -INF))
        beside = load_part(w, offset + full, length - full, number(w, -INF))
        slope = _tilt(value, beside, pair, marks, heavy, inner, beta)
        store_part(y, offset + full, length - full, spared(weight, slope))


@inline
def store_gradient(u: Any, w: Any, y: Any, place: Any, pair: Any, options: Any) -> None:
    """The gradient with respect to the block that `first` says, if there is memory for it."""
    if size(y) > 0:
        if options.first:
            first_gradient(u, w, y, place, pair, options)
        else:
            second_gradient(u, w, y, place, pair, options)


@inline
def divergence_block(u: Any, w: Any, y: Any, place: Any, rows: Any, options: Any) -> None:
    """Divergence and gradient of the rows in the lanes of a tile, or of one row of more than `PAIR_LIMIT`."""
    pair = pair_of_row(u, w, place.offset, place.length, place.folded, options.beta)
    store_divergence(u, place, pair, rows, options)
    store_gradient(u, w, y, place, pair, options)


@inline
def divergence_group(
    u: Any, w: Any, y: Any, offset: int, classes: int, first: int, count: int, rows: Any, table: Any, options: Any
) -> None:
    """Divergences and gradients of `count` consecutive rows from `offset` on, the first of them row `first`."""
    pair = measure_pairs(u, w, offset, classes, count, options.beta, table)
    store_divergence(u, Place(0, 0, None, first, count), pair, rows, options)
    if size(y) > 0:
        for i in range(count):
            place = row_at(offset + i * classes, classes, first + i)
            store_gradient(u, w, y, place, pair_at(table, i), options)


@inline
def walk_pairs(
    block: Any,
    group: Any,
    start: int,
    stop: int,
    shape: Any,
    room: Any,
    u: Any,
    w: Any,
    y: Any,
    rows: Any,
    options: Any,
) -> None:
    """Run `block` over rows start .. stop of two blocks of this shape, or `group` over groups of longer rows.

    It walks as `traversal.traverse` does. y has size 0 if there is no gradient.
    """
    _, classes, inner = shape
    step = lane_count(u)
    if inner == 1 and classes > COLUMN_LIMIT:
        table = scratch(u, PAIR_TABLE)
        for k in range(0, size(table), step):
            store(table, k, broadcast(number(table, 0.0)))
        if classes <= PAIR_LIMIT:
            for first in range(start, stop, step):
                group(u, w, y, first * classes, classes, first, min(step, stop - first), rows, table, options)
        else:
            for row in range(start, stop):
                block(u, w, y, row_at(row * classes, classes, row), rows, options)
        return
    tile = tile_memory(room, scratch(u, TWO_TILES))
    plan = plan_for(tile, w, None, classes, inner)
    other, out = after(tile, plan.half), after(tile, 0 if size(y) > 0 else size(tile))  # over u
    row = start
    while row < stop:
        first, count, following = read_tile(u, w, None, tile, other, row, stop, classes, inner, plan)
        for done in range(0, count, step):
            prefetch_tile(ahead_at(u, w, following + done, inner), classes)
            place = Place(done * classes, classes * step, None, row + done, min(step, count - done))
            block(tile, other, out, place, rows, options)
        if size(y) > 0:
            store_tile(tile, y, first, classes, inner, count, False)
        row += count


@kernel
def kl_divergence(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    targets: Block,
    weights: Floats,
    y: Block,
    rows: Floats,
    reverse: Flag,
    scale: Number,
    scale_low: Number,
    beta: Temperature,
    summed: Flag,
) -> float:
    """rows = weights KL(q || p) of p = softmax(x/T) and q = softmax(targets/T); y = its gradient in x.

    If `reverse` is true, it is KL(p || q). y has size 0 if no gradient is wanted. `summed` is for small calls:
    then the kernel returns the sum of `rows`.
    """
    u, w = memory(targets), memory(x)
    if reverse:
        u, w = w, u
    options = DivergenceOptions(beta, memory(weights), scale, scale_low, reverse, None)
    block, group, results = divergence_block, divergence_group, memory(rows)
    walk_pairs(block, group, start, stop, x.shape, memory(room), u, w, memory(y), results, options)
    return sum_of(after(results, start), stop - start) if summed else 0.0


# --- Jensen-Shannon -------------------------------------------------------------------------------------------


class Mixed(NamedTuple):
    """One entry of both distributions: its part of the divergence and p, both times 2**HEADROOM, and log(p/m)."""

    part: Any
    p: Any
    log_ratio: Any


class Mixture(NamedTuple):
    """What `mixed` needs of a row: of both blocks the statistics, the `reciprocal` times 2**HEADROOM, the `Mark`.

    `logs` and `logs_low` are log(1 + s'_p) - log(1 + s'_q).
    """

    q: Any
    p: Any
    inverse_q: Any
    inverse_p: Any
    mark_q: Any
    mark_p: Any
    logs: Any
    logs_low: Any


@inline
def lifted(x: Any, stats: Any, first: int, count: int, rows: Any, options: Any) -> Any:
    """The `reciprocal` times 2**HEADROOM; a ``head`` of `traversal.prepare`."""
    one, zero = filled(stats.m, 1.0), filled(stats.m, 0.0)
    return weighted(reciprocal(stats), one, zero, filled(stats.m, HEADROOM))


@inline
def mixture_of(q: Any, p: Any, inverse_q: Any, inverse_p: Any, beta: Any) -> Mixture:
    """The `Mixture` of rows with these statistics."""
    log_q, low_q = log_of_others(q)
    log_p, low_p = log_of_others(p)
    logs, error = two_sum(log_p, -log_q)
    return Mixture(q, p, inverse_q, inverse_p, mark(q.m, beta), mark(p.m, beta), logs, error + (low_p - low_q))


@inline
def mixture_at(targets: Any, logits: Any, i: int, beta: Any) -> Mixture:
    """The `Mixture` of row i of a group, from the tables of both blocks."""
    q, p = prepared(targets, i, True, True), prepared(logits, i, True, True)
    return mixture_of(q, p, q.inverse, p.inverse, beta)


@inline
def _tiny(like: Any) -> Any:
    """The smallest normal number."""
    return number(like, TINY_32) if is_single(like) else number(like, TINY_64)


@inline
def mixed(value: Any, beside: Any, q: Any, p: Any, mixture: Any, share: Any, beta: Any) -> Mixed:
    """The `Mixed` of an entry of the targets and the one of the logits beside it, and of their probabilities.

    1 + h = exp(-|log q - log p|) is taken apart as in `exp_parts`, so that h has a small relative error near 0.
    The rounding error of 1 + c h is divided by it with one term of a series, which loses less than u (c h)**2.
    """
    apart = distance(value, beside, mixture.mark_q, mixture.mark_p, beta)
    apart, apart_low = over_temperature(apart, filled(apart, 0.0), beta)
    zero, one = number(apart, 0.0), number(apart, 1.0)
    apart_low = select_equal(apart_low, apart_low, apart_low, zero)  # the error of inf is nan
    gap = (apart + mixture.logs) + (apart_low + mixture.logs_low)
    size_of_gap = absolute(gap)
    bracket, power = exp_parts(-size_of_gap, number(gap, -0.0), biased(gap, zero))
    scale = shift_to_exponent(power)
    ratio = select_less(power, smallest_power(gap), zero, muladd(bracket, scale, scale))
    h = select_less(power, smallest_power(gap), -one, muladd(bracket, scale, scale - one))
    c = select_less(zero, gap, share[1], share[0])
    inside, error = two_sum(one, c * h)
    log = quick_log(maximum(inside, _tiny(gap)), muladd(error, one - inside, error))
    g = muladd(-inside, log, -(c * spared(ratio, ratio * size_of_gap)))
    larger = maximum(q, p)
    below_m = select_less(zero, gap, -size_of_gap, zero)
    return Mixed(spared(larger, larger * g), p, below_m - log)


@inline
def _probabilities(value: Any, beside: Any, terms: Any, at: int, lanes: int, mixture: Any, beta: Any) -> Any:
    """q and p times 2**HEADROOM of a vector of entries, from their terms unless these are None."""
    if terms is None:
        q = probability(value, beta, mixture.q, mixture.inverse_q)
        return q, probability(beside, beta, mixture.p, mixture.inverse_p)
    zero, half = number(value, 0.0), size(terms) // 2
    q = probability_of(load_part(terms, at, lanes, zero), mixture.inverse_q)
    return q, probability_of(load_part(terms, half + at, lanes, zero), mixture.inverse_p)


@inline
def mixed_at(u: Any, w: Any, k: int, lanes: int, terms: Any, at: int, mixture: Any, share: Any, beta: Any) -> Any:
    """The `Mixed` of the entries at offset k of both blocks, and those of the logits."""
    value = load_part(u, k, lanes, number(u, -INF))
    beside = load_part(w, k, lanes, number(w, -INF))
    q, p = _probabilities(value, beside, terms, at, lanes, mixture, beta)
    return mixed(value, beside, q, p, mixture, share, beta), beside


@inline
def mixture_parts(
    u: Any, w: Any, offset: int, length: int, terms: Any, at: int, mixture: Any, options: Any
) -> Any:
    """The sums of the parts in each lane, as pairs."""
    step = lane_count(u)
    zero = broadcast(number(u, 0.0))
    parts = (zero, zero)
    for k in range(0, length, step):
        lanes = min(step, length - k)
        entry, _ = mixed_at(u, w, offset + k, lanes, terms, at + k, mixture, options.share, options.beta)
        parts = add(parts, entry.part)
    return parts


@inline
def mixture_loss(parts: Any, logs: Any, weight: Any) -> Any:
    """The divergence, from the folded parts; NaN if one of the distributions is, as `logs` are then."""
    value = muladd(logs, number(logs, 0.0), (parts[0] + parts[1]) * number(logs, 2.0**-HEADROOM))
    return spared(weight, weight * maximum(number(logs, 0.0), value))


@inline
def mixture_row(
    u: Any, w: Any, y: Any, place: Any, terms: Any, at: int, mixture: Any, plain: Any, options: Any
) -> Any:
    """y = the gradient of the rows in the lanes of a tile, or of one row; returns what `mixture_parts` does.

    `plain` is the `reciprocal` of the logits.
    """
    offset, length, folded, row, count = place
    beta, share, step = options.beta, options.share, lane_count(u)
    zero = broadcast(number(u, 0.0))
    parts, dots, rests, tops = (zero, zero), (zero, zero), (zero, zero), zero
    for k in range(0, length, step):
        lanes = min(step, length - k)
        entry, beside = mixed_at(u, w, offset + k, lanes, terms, at + k, mixture, share, beta)
        parts = add(parts, entry.part)
        others = select_equal(beside, mixture.p.m, number(u, 0.0), entry.p)
        dots, rests = add(dots, spared(others, others * entry.log_ratio)), add(rests, others)
        tops = select_equal(beside, mixture.p.m, tops + entry.log_ratio, tops)
    weight = row_value(u, folded, options.weights, row, count)
    lift, unlift = number(u, 2.0**HEADROOM), number(u, 2.0**-HEADROOM)
    pivot = fold_sum(folded, tops) / mixture.p.ties
    dot, dot_low = fold_two_sum(folded, dots[0], dots[1])
    rest, rest_low = fold_two_sum(folded, rests[0], rests[1])
    mean = (dot - pivot * rest) + muladd(-pivot, rest_low, dot_low)
    power, inner = parted(u, beta)
    inner = inner[0] * unlift, inner[1] * unlift
    factor = weight * share[1]
    heavy = weighted(plain, factor * options.scale, factor * options.scale_low, power)
    for k in range(0, length, step):
        lanes = min(step, length - k)
        entry, beside = mixed_at(u, w, offset + k, lanes, terms, at + k, mixture, share, beta)
        p = probability(beside, beta, mixture.p, heavy)
        slope = sloped((entry.log_ratio - pivot) * lift, mean, number(u, 0.0), p, inner)
        store_part(y, offset + k, lanes, spared(weight, slope))
    return parts


@inline
def mixture_block(u: Any, w: Any, y: Any, place: Any, rows: Any, options: Any) -> None:
    """Jensen-Shannon divergence and gradient of the rows in the lanes of a tile, or of one row.

    rows = weight (share KL(q || m) + (1 - share) KL(p || m)); y, if it has a size, its gradient.
    """
    offset, length, folded, row, count = place
    beta = options.beta
    q = statistics(u, offset, length, folded, beta, None, None)
    p = statistics(w, offset, length, folded, beta, None, None)
    inverse_q, inverse_p = lifted(u, q, row, count, rows, options), lifted(w, p, row, count, rows, options)
    mixture = mixture_of(q, p, inverse_q, inverse_p, beta)
    if size(y) > 0:
        parts = mixture_row(u, w, y, place, None, 0, mixture, reciprocal(p), options)
    else:
        parts = mixture_parts(u, w, offset, length, None, 0, mixture, options)
    weight = row_value(u, folded, options.weights, row, count)
    value = mixture_loss(fold_two_sum(folded, parts[0], parts[1]), mixture.logs, weight)
    store_part(rows, row, count, broadcast(value))


@inline
def mixture_group(
    u: Any, w: Any, y: Any, offset: int, classes: int, first: int, count: int, rows: Any, table: Any, options: Any
) -> None:
    """The same for `count` consecutive rows, as in `divergence_group`; for fewer at a time if they are long."""
    terms = scratch(u, KEPT)
    most = size(terms) // (2 * classes)
    for i in range(0, count, most):
        part = min(most, count - i)
        mixtures(u, w, y, offset + i * classes, classes, first + i, part, rows, table, terms, options)


@inline
def mixtures(
    u: Any,
    w: Any,
    y: Any,
    offset: int,
    classes: int,
    first: int,
    count: int,
    rows: Any,
    table: Any,
    terms: Any,
    options: Any,
) -> None:
    """`mixture_group` for rows whose terms find room in the halves of `terms`."""
    step, beta = lane_count(u), options.beta
    square = step * step
    logits = after(table, TABLE * step)
    here, beside = after(u, offset), after(w, offset)
    measure(here, 0, classes, count, beta, table, terms, None)
    measure(beside, 0, classes, count, beta, logits, after(terms, size(terms) // 2), None)
    prepare(u, table, first, count, rows, options, True, True, lifted)
    prepare(w, logits, first, count, rows, options, True, True, lifted)
    high = after(table, (STATISTICS + step) * step)  # behind what `prepare` has stored
    low, turned = after(high, square), after(high, 2 * square)
    for i in range(count):
        mixture, at = mixture_at(table, logits, i, beta), i * classes
        if size(y) > 0:
            place, plain = row_at(offset + at, classes, first + i), reciprocal(measured(logits, i))
            parts = mixture_row(u, w, y, place, terms, at, mixture, plain, options)
        else:
            parts = mixture_parts(u, w, offset + at, classes, terms, at, mixture, options)
        store(high, i * step, parts[0])
        store(low, i * step, parts[1])
    parts = turned_pair(high, low, turned)
    logs = load(logits, 8 * step) - load(table, 8 * step)
    weight = row_value(u, None, options.weights, first, count)
    store_part(rows, first, count, broadcast(mixture_loss(parts, logs, weight)))


@kernel
def js_divergence(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    targets: Block,
    weights: Floats,
    y: Block,
    rows: Floats,
    share: Number,
    complement_of_share: Number,
    scale: Number,
    scale_low: Number,
    beta: Temperature,
    summed: Flag,
) -> float:
    """rows = weights (share KL(q || m) + (1 - share) KL(p || m)), m = share q + (1 - share) p; y = its gradient.

    p, q, y and its size, and `summed` are those of `kl_divergence`.
    """
    options = DivergenceOptions(beta, memory(weights), scale, scale_low, False, (share, complement_of_share))
    u, w, grad, results, tile = memory(targets), memory(x), memory(y), memory(rows), memory(room)
    walk_pairs(mixture_block, mixture_group, start, stop, x.shape, tile, u, w, grad, results, options)
    return sum_of(after(results, start), stop - start) if summed else 0.0
