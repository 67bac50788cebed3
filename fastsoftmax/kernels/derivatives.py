r"""Jacobians of softmax and log-softmax, and their products with a vector, for the rows of a block.

With p = softmax(x/T) and beta = 1/T:

=================== =============================== ==========================================
softmax             J = beta (diag(p) - p p^T)      J v = J^T v = beta p (v - p.v)
log-softmax         J = beta (I - 1 p^T)            J v = beta (v - p.v), J^T g = beta (g - p sum(g))
=================== =============================== ==========================================
"""

from typing import Any, NamedTuple

from fastsoftmax._vectors import COLUMN_LIMIT
from fastsoftmax.kernels.activations import ActivationOptions
from fastsoftmax.kernels.elementary import lift_of, most_power, two_product, two_sum
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.simd.memory import (
    lane_count,
    load,
    load_part,
    load_scalar,
    memory,
    scratch,
    size,
    store,
    store_part,
    store_scalar,
)
from fastsoftmax.kernels.simd.reduce import fold_maximum, fold_two_sum
from fastsoftmax.kernels.simd.rows import row_value
from fastsoftmax.kernels.simd.transpose import store_turned
from fastsoftmax.kernels.simd.values import (
    absolute,
    any_above,
    broadcast,
    filled,
    fma,
    if_none,
    is_single,
    maximum,
    minimum,
    muladd,
    number,
    select_equal,
    select_less,
    select_negative,
    truncate,
)
from fastsoftmax.kernels.traversal import (
    TABLE,
    Reciprocal,
    RowStatistics,
    add,
    bounded,
    certain,
    clear,
    complement,
    crest_of,
    entries,
    exponent_of,
    filler,
    greatest_of,
    lifted_complement,
    load_tile,
    measure,
    measured,
    probability_by,
    probability_of,
    reciprocal,
    spared,
    term,
    tile_memory,
    tile_statistics,
    traverse,
    two_to_the,
    weighted,
)
from fastsoftmax.machine.entry import Block, Count, Flag, Floats, MaybeFlag, Room, Temperature

INF = float("inf")
NAN = float("nan")
USUAL = 20.0
MOST_USUAL = 2.0**18
"""Sums of e v are taken in units of 2**USUAL. Rows with a |v| above `MOST_USUAL` are summed again in others."""


class ProductOptions(NamedTuple):
    """1/T or None, whether x holds probabilities (else None), `keep` of `traverse`, and the row weights."""

    beta: Any
    from_probs: Any
    keep: Any
    weights: Any


class Errors(NamedTuple):
    """The numbers of a row for p - t: its statistics and `reciprocal`, the mark of a certain class, its 1 - p."""

    stats: Any
    inverse: Any
    crest: Any
    lacking: Any


class Centre(NamedTuple):
    """c, from which v is measured; 2**LIFT times the mean of v - c in units of 2**power, a pair; `shares_of`."""

    c: Any
    power: Any
    mean: Any
    mean_low: Any
    shares: Any


class Tops(NamedTuple):
    """The numbers of a row for `_jacobian_rows`: its highest probability, the diagonal there, and `_powers`."""

    highest: Any
    at_highest: Any
    raised: Any
    power: Any


@inline
def times(value: Any, beta: Any) -> Any:
    """``value / T`` for beta as in `elementary.centred`; infinite values stay infinite."""
    if beta is None:
        return value
    scaled = value * beta[0] * beta[1]
    product = scaled * beta[2]
    error = muladd(scaled, beta[3], fma(scaled, beta[2], -product))
    return select_less(absolute(product), number(value, INF), product + error, product)


@inline
def over_temperature(high: Any, low: Any, beta: Any) -> Any:
    """(high + low)/T as a pair and a power of two, as `traversal.weighted` takes them."""
    if beta is None:
        return high, filled(high, 0.0) + low, number(low, 0.0)
    product, error = two_product(high, beta[2])
    return product, muladd(high, beta[3], muladd(low, beta[2], error)), beta[4]


# --- probabilities as input -----------------------------------------------------------------------------------


@inline
def _two_products(x: Any, v: Any, at: int) -> Any:
    """The sum of the products of two vectors of x and v."""
    other = at + lane_count(x)
    return fma(load(x, other), load(v, other), load(x, at) * load(v, at))


@inline
def dot(x: Any, v: Any, place: Any, exact: Any = None) -> Any:
    """sum_j x_j v_j of each row as a pair.

    Four products are added, and their sum to the pair with TwoSum. Error: three roundings of each product, which
    is 3/2 eps times sum_j |x_j v_j|. If `exact` is not None, each product is added with TwoSum, and only that
    itself is rounded: for sums from which others are subtracted.
    """
    offset, length, folded, _, _ = place
    step = lane_count(x)
    full = length // step * step
    fours = 0
    zero = broadcast(number(x, 0.0))
    sums = (zero, zero)
    if exact is None:
        fours = length // (4 * step) * (4 * step)
        for k in range(0, fours, 4 * step):
            sums = add(sums, _two_products(x, v, offset + k) + _two_products(x, v, offset + k + 2 * step))
    for k in range(fours, full, step):
        sums = add(sums, load(x, offset + k) * load(v, offset + k))
    if full < length:
        p = load_part(x, offset + full, length - full, number(x, 0.0))
        sums = add(sums, p * load_part(v, offset + full, length - full, number(x, 0.0)))
    return fold_two_sum(folded, sums[0], sums[1])


@inline
def product_of_probs(x: Any, v: Any, y: Any, place: Any, mean: Any, weight: Any, beta: Any) -> None:
    """y = beta weight p (v - mean), 0 where the weight is 0; x holds probabilities, the mean is a pair."""
    offset, length, _, _, _ = place
    step = lane_count(x)
    full = length // step * step
    for k in range(0, full, step):
        above = (load(v, offset + k) - mean[0]) - mean[1]
        store(y, offset + k, spared(weight, load(x, offset + k) * weight * times(above, beta)))
    if full < length:
        rest = length - full
        p = load_part(x, offset + full, rest, number(x, 0.0))
        above = (load_part(v, offset + full, rest, number(x, 0.0)) - mean[0]) - mean[1]
        store_part(y, offset + full, rest, spared(weight, p * weight * times(above, beta)))


# --- logits ---------------------------------------------------------------------------------------------------
#
# v_k - sum_j p_j v_j is sum_j p_j (v_k - v_j). If the probability of one class is close to 1, its v and the mean
# agree in nearly all digits. So if a class is certain (p above 1/2), v is measured from c, the v of that class,
# and the mean of v_j - c is subtracted, to which that class adds 0. Else c is 0. The mean is the quotient of two
# sums, both pairs, over the same terms: its weights have errors but add up to 1, so that errors cancel as it does.
#
# All of this is done in units of 2**power, at least the greatest |v|. They are multiplied in together with 1/T and
# the weight: a large v, a small T or a large weight may lift a probability that is no normal number.


@inline
def direction(value: Any, entry: Any, errors: Any, keep: Any) -> Any:
    """An entry of v, or with `errors` of the squared error's p - t, which is (1 - t) - (1 - p) at a certain class.

    `errors` are `Errors` for the squared error, else None.
    """
    if errors is None:
        return entry
    p = probability_by(value, None, errors.stats, errors.inverse, keep)
    return select_equal(value, errors.crest, (number(p, 1.0) - entry) - errors.lacking, p - entry)


@inline
def _reach(value: Any, entry: Any, greatest: Any, bound: Any, pivot: Any) -> Any:
    """Update max |v| (`bound`), and the greatest v at a greatest entry (`pivot`)."""
    nowhere = number(bound, -INF)
    return maximum(absolute(entry), bound), maximum(select_equal(value, greatest, entry, nowhere), pivot)


@inline
def extent(x: Any, v: Any, place: Any, greatest: Any, keep: Any) -> Any:
    """max |v|, and v at a greatest entry, of each row; NaN is ignored."""
    offset, length, folded, _, _ = place
    step = lane_count(x)
    full = length // step * step
    bound, pivot = broadcast(number(x, 0.0)), broadcast(number(x, -INF))
    for k in range(0, full, step):
        bound, pivot = _reach(entries(x, offset + k, None, keep), load(v, offset + k), greatest, bound, pivot)
    if full < length:
        last = entries(x, offset + full, length - full, keep)
        entry = load_part(v, offset + full, length - full, number(x, 0.0))
        bound, pivot = _reach(last, entry, greatest, bound, pivot)
    return fold_maximum(folded, bound), fold_maximum(folded, pivot)


@inline
def has_certain(stats: Any) -> bool:
    """Whether any row has a `certain` class. Few have one in most data, and its extra work costs 50 classes."""
    top = stats.top[0]
    one, zero = filled(top, 1.0), filled(top, 0.0)
    found: bool = any_above(select_equal(certain(stats), top, one, zero), number(top, 0.5))
    return found


@inline
def centre_of(pivot: Any, stats: Any) -> Any:
    """c: v at a greatest entry if its class is certain and v is finite, else 0."""
    there = select_equal(certain(stats), stats.top[0], pivot, number(pivot, 0.0))
    return select_less(absolute(there), number(pivot, INF), there, number(pivot, 0.0))


@inline
def _least_usual(like: Any) -> Any:
    return number(like, 2.0**-100) if is_single(like) else number(like, 2.0**-990)


@inline
def power_for(bound: Any) -> Any:
    """The power of the units of the sums, from max |v|: `USUAL` unless max |v| is large or tiny."""
    usual = number(bound, USUAL)
    power = -maximum(-(exponent_of(bound) + number(bound, 2.0)), -most_power(bound))
    power = select_less(
        number(bound, MOST_USUAL), bound, power, select_less(bound, _least_usual(bound), power, usual)
    )
    return select_equal(bound, number(bound, 0.0), usual, power)


@inline
def _is_usual(bound: Any, folded: Any) -> bool:
    """Whether `power_for` is `USUAL` for all rows: for the single row (`folded`), or for the row in each lane."""
    most, least, zero = number(bound, MOST_USUAL), _least_usual(bound), number(bound, 0.0)
    if any_above(bound, most):
        return False
    if folded is not None:
        usual: bool = any_above(bound, least)
        return usual
    return not any_above(select_less(bound, least, bound, filled(bound, 0.0)), zero)


@inline
def excess_sum(
    x: Any, v: Any, place: Any, stats: Any, beta: Any, keep: Any, errors: Any, lift: Any, unit: Any
) -> Any:
    """sum_j e_j v_j ``unit`` as a pair, over the entries of a row, or of a part of it, except a certain class.

    Then v at a greatest entry (-inf if there is none here), max |v|, and with `errors` the sum of (v_j lift)**2.
    """
    offset, length, folded, _, _ = place
    m, top = stats.m, stats.top[0]
    marks = greatest_of(m, keep), select_equal(certain(stats), top, number(m, 0.0), top)
    step = lane_count(x)
    full = length // step * step
    zero = broadcast(number(x, 0.0))
    sums, squares, reach = (zero, zero), (zero, zero), (zero, broadcast(number(x, -INF)))
    for k in range(0, full, step):
        value = entries(x, offset + k, None, keep)
        entry = direction(value, load(v, offset + k), errors, keep)
        sums, reach = _add_excess(value, entry, stats, beta, keep, marks, unit, sums, reach)
        squares = _add_square(entry, lift, errors, squares)
    if full < length:
        value = entries(x, offset + full, length - full, keep)
        entry = direction(value, load_part(v, offset + full, length - full, number(x, 0.0)), errors, keep)
        sums, reach = _add_excess(value, entry, stats, beta, keep, marks, unit, sums, reach)
        squares = _add_square(entry, lift, errors, squares)
    whole_squares = fold_two_sum(folded, squares[0], squares[1])
    return fold_two_sum(folded, sums[0], sums[1]), fold_maximum(folded, reach[1]), reach[0], whole_squares


@inline
def _add_excess(
    value: Any, entry: Any, stats: Any, beta: Any, keep: Any, marks: Any, unit: Any, sums: Any, reach: Any
) -> Any:
    """Add one vector of entries to the running sum of e v and to the `_reach`."""
    greatest, e_of_greatest = marks
    e = value
    if keep is None:
        e = term(value, stats.m, beta, stats.shift, stats.bias)
    e = select_equal(value, greatest, e_of_greatest, e)
    product, low = two_product(e, entry * unit)
    high, error = two_sum(sums[0], product)
    return (high, sums[1] + (error + low)), _reach(value, entry, greatest, reach[0], reach[1])


@inline
def _add_square(d: Any, lift: Any, errors: Any, squares: Any) -> Any:
    if errors is None:
        return squares
    return add(squares, (d * lift) * (d * lift))


@inline
def shares_of(stats: Any) -> Any:
    """`reciprocal` with the greatest term rounded, as `excess_sum` uses it, so that the weights add up to 1."""
    m, shift, bias, top, ties, rest, rest_low, _, _ = stats
    top = (top[0], number(rest, 0.0))
    return reciprocal(RowStatistics(m, shift, bias, top, ties, rest, rest_low, None, None))


@inline
def mean_excess(sums: Any, from_c: Any, stats: Any, shares: Any) -> Any:
    """2**LIFT sum_j p_j (v_j - c) as a pair, from the sum of e_j v_j and -c, both in units of 2**power.

    sum_(j != m) e_j (v_j - c) cancels where all v_j are close to c, but not below the last places of the v_j.
    """
    others, error = two_product(stats.rest, from_c)
    high, low = two_sum(sums[0], others)
    low = low + (sums[1] + muladd(stats.rest_low, from_c, error))
    high, low = two_sum(high, low)
    product, error = two_product(high, shares.scale)
    return two_sum(product, error + muladd(high, shares.scale_low, low * shares.scale))


@inline
def centred_direction(x: Any, v: Any, place: Any, stats: Any, beta: Any, keep: Any, errors: Any, lift: Any) -> Any:
    """The `Centre` of a row, and the sum of squares of `excess_sum`."""
    folded = place.folded
    power = filled(stats.m, USUAL)
    sums, pivot, bound, squares = excess_sum(x, v, place, stats, beta, keep, errors, lift, two_to_the(-power))
    if not _is_usual(bound, folded):
        power = power_for(fold_maximum(folded, bound))
        sums, pivot, bound, squares = excess_sum(x, v, place, stats, beta, keep, errors, lift, two_to_the(-power))
    return row_centre(pivot, power, sums, stats), squares


@inline
def row_centre(pivot: Any, power: Any, sums: Any, stats: Any) -> Centre:
    """The `Centre` of a row, from the results of `excess_sum` for the whole row."""
    c, shares = centre_of(pivot, stats), shares_of(stats)
    mean, mean_low = mean_excess(sums, -(c * two_to_the(-power)), stats, shares)
    return Centre(c, power, mean, mean_low, shares)


@inline
def in_steps(power: Any) -> Any:
    """2**power as three factors that are normal numbers, the largest part first."""
    most = most_power(power)
    first = bounded(power, -most, most)
    second = bounded(power - first, -most, most)
    return two_to_the(first), two_to_the(second), two_to_the(power - first - second)


@inline
def times_power(value: Any, high: Any, low: Any, power: Any) -> Any:
    """``value * (high + low) * 2**power``, where only the result may underflow or overflow."""
    exponent = exponent_of(high)
    less = two_to_the(-exponent)
    left = exponent + power
    product = muladd(value, high * less, value * (low * less))
    first, second, third = in_steps(left)
    return product * first * second * third


@inline
def product_of_logits(
    x: Any,
    v: Any,
    y: Any,
    place: Any,
    stats: Any,
    beta: Any,
    keep: Any,
    errors: Any,
    centre: Any,
    weight: Any,
    factor: Any,
) -> None:
    """y = beta factor p (v - p.v), 0 where the weight is 0; `factor` is a pair."""
    offset, length, _, _, _ = place
    c, power, mean, mean_low, plain = centre
    high, low, power_of_t = over_temperature(factor[0], factor[1], beta)
    # The part of the power that could make the weighted probabilities overflow is multiplied in last.
    most = most_power(high) - number(x, 1.0)
    wanted = power + power_of_t
    lifted = -maximum(-wanted, -(most - maximum(exponent_of(high), number(x, 0.0))))
    inverse = weighted(plain, high, low, lifted)
    late, lower = two_to_the(wanted - lifted), two_to_the(-lift_of(power))
    unit = two_to_the(-power) * late
    from_c = -(c * unit)
    # For a certain class v - c is 0, and the mean may be no normal number before all factors are in.
    crest = crest_of(stats, keep)
    at_crest = filled(mean, 0.0)
    if has_certain(stats):
        product = muladd(plain.highest, mean, plain.highest * mean_low)
        at_crest = number(x, 0.0) - times_power(product, high, low, wanted - lift_of(power))
    mean, mean_low = mean * lower * late, mean_low * lower * late
    step = lane_count(x)
    full = length // step * step
    for k in range(0, full, step):
        value = entries(x, offset + k, None, keep)
        above = (muladd(direction(value, load(v, offset + k), errors, keep), unit, from_c) - mean) - mean_low
        p = probability_by(value, beta, stats, inverse, keep)
        store(y, offset + k, spared(weight, select_equal(value, crest, at_crest, p * above)))
    if full < length:
        value = entries(x, offset + full, length - full, keep)
        entry = load_part(v, offset + full, length - full, number(x, 0.0))
        above = (muladd(direction(value, entry, errors, keep), unit, from_c) - mean) - mean_low
        p = probability_by(value, beta, stats, inverse, keep)
        slope = select_equal(value, crest, at_crest, p * above)
        store_part(y, offset + full, length - full, spared(weight, slope))


@inline
def softmax_product_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """y = weight beta p (v - p.v).

    Error: relative to p_k sum_j p_j |v_k - v_j| at most 4 eps (`centred_direction`): the terms e_j 1.1 ulp each,
    p_k 2.2, a difference, a product and a subtraction half an ulp each; measured 1.7. If x holds probabilities,
    the error is relative to p_k (|v_k| + sum_j p_j |v_j|).
    """
    beta, from_probs, keep, weights = options
    weight = row_value(x, place.folded, weights, place.row, place.count)
    _product(x, v, y, place, stats, beta, from_probs, keep, weight)


@inline
def _product(
    x: Any, v: Any, y: Any, place: Any, stats: Any, beta: Any, from_probs: Any, keep: Any, weight: Any
) -> None:
    if from_probs is None:
        centre, _ = centred_direction(x, v, place, stats, beta, keep, None, None)
        factor = weight, number(x, 0.0)
        product_of_logits(x, v, y, place, stats, beta, keep, None, centre, weight, factor)
    else:
        product_of_probs(x, v, y, place, dot(x, v, place), weight, beta)


@kernel(small=True)
def softmax_product(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    v: Block,
    y: Block,
    over: Flag,
    beta: Temperature,
    from_probs: MaybeFlag,
    weights: Floats,
) -> None:
    """y = weights J v = weights J^T v for the Jacobian of softmax at x, logits or (`from_probs`) probabilities.

    `over` is that of `traverse`.
    """
    keep = if_none(from_probs, True)
    shape, tile, data, vector, result = x.shape, memory(room), memory(x), memory(v), memory(y)
    options = ProductOptions(beta, from_probs, keep, memory(weights))
    traverse(
        softmax_product_block,
        start,
        stop,
        shape,
        tile,
        data,
        vector,
        result,
        None,
        options,
        beta=beta,
        given=from_probs,
        keep=keep,
        over=over,
    )


@inline
def softmax_variance_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, weights: Any) -> None:
    """y = weight p (1 - p); x holds the terms of the rows."""
    offset, length, folded, row, count = place
    inverse = reciprocal(stats)
    weight = row_value(x, folded, weights, row, count)
    heavy = weighted(inverse, weight, number(x, 0.0), number(x, 0.0))
    at_top = inverse.highest * complement(stats, heavy)
    one = number(x, 1.0)
    step = lane_count(x)
    full = length // step * step
    for k in range(0, full, step):
        e = load(x, offset + k)
        inside = probability_of(e, heavy) * (one - probability_of(e, inverse))
        store(y, offset + k, spared(weight, select_negative(e, at_top, inside)))
    if full < length:
        e = load_part(x, offset + full, length - full, number(x, 0.0))
        inside = probability_of(e, heavy) * (one - probability_of(e, inverse))
        store_part(y, offset + full, length - full, spared(weight, select_negative(e, at_top, inside)))


@kernel
def softmax_variance(start: Count, stop: Count, room: Room, x: Block, y: Block, weights: Floats) -> None:
    """y = weights p (1 - p), the diagonal of the Jacobian of softmax at x."""
    data, factors = memory(x), memory(weights)
    shape, tile, result = x.shape, memory(room), memory(y)
    block = softmax_variance_block
    traverse(block, start, stop, shape, tile, data, None, result, None, factors, keep=True, inverse=True)


@inline
def log_softmax_jvp_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """y = beta (v - p.v): within 4 eps of beta sum_j p_j |v_k - v_j|, as in `softmax_product_block`."""
    offset, length, _, _, _ = place
    beta, keep = options
    centre, _ = centred_direction(x, v, place, stats, beta, keep, None, None)
    c, power, mean, mean_low, _ = centre
    lift = lift_of(power)
    unit, lifted = two_to_the(-power), two_to_the(lift)
    back, rest, _ = in_steps(power - lift)
    from_c = -(c * unit)
    step = lane_count(x)
    full = length // step * step
    for k in range(0, full, step):
        above = (muladd(load(v, offset + k), unit, from_c) * lifted - mean) - mean_low
        store(y, offset + k, times(above * back * rest, beta))
    if full < length:
        last = load_part(v, offset + full, length - full, number(x, 0.0))
        above = (muladd(last, unit, from_c) * lifted - mean) - mean_low
        store_part(y, offset + full, length - full, times(above * back * rest, beta))


@kernel
def log_softmax_jvp(
    start: Count, stop: Count, room: Room, x: Block, v: Block, y: Block, over: Flag, beta: Temperature
) -> None:
    """y = J v for the Jacobian of log-softmax at x. `over` is that of `traverse`."""
    shape, tile, data, vector, result = x.shape, memory(room), memory(x), memory(v), memory(y)
    options = ActivationOptions(beta, True)
    block = log_softmax_jvp_block
    traverse(block, start, stop, shape, tile, data, vector, result, None, options, beta, keep=True, over=over)


@inline
def log_softmax_vjp_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """y = beta (v - p sum(v)): within 4 eps of beta ((1 - p_k) |v_k| + p_k sum_(j != k) |v_j|).

    At a certain class it is computed as (1 - p) v - p (the sum of the other v), with the accurate 1 - p.
    """
    offset, length, folded, _, _ = place
    beta, keep = options
    zero, nowhere = number(x, 0.0), number(x, -INF)
    crest = crest_of(stats, keep)
    step = lane_count(x)
    full = length // step * step
    sums = (broadcast(zero), broadcast(zero))
    there = broadcast(nowhere)
    for k in range(0, full, step):
        value, entry = entries(x, offset + k, None, keep), load(v, offset + k)
        there = maximum(select_equal(value, crest, entry, nowhere), there)
        sums = add(sums, select_equal(value, crest, zero, entry))
    if full < length:
        value = entries(x, offset + full, length - full, keep)
        entry = load_part(v, offset + full, length - full, zero)
        there = maximum(select_equal(value, crest, entry, nowhere), there)
        sums = add(sums, select_equal(value, crest, zero, entry))
    others, others_low = fold_two_sum(folded, sums[0], sums[1])
    there = fold_maximum(folded, there)
    there = select_equal(there, nowhere, zero, there)
    others, others_low = two_sum(others, others_low)
    whole, error = two_sum(others, there)
    plain = reciprocal(stats)
    high, low, power = over_temperature(whole, error + others_low, beta)
    lacking, lacking_low, _ = over_temperature(there, zero, beta)
    inverse = weighted(plain, high, low, power)
    at_top = whole
    if has_certain(stats):
        lack = times_power(lifted_complement(stats, plain), lacking, lacking_low, power - lift_of(power))
        at_top = lack - plain.highest * times(others, beta)
    for k in range(0, full, step):
        value = entries(x, offset + k, None, keep)
        p = probability_by(value, beta, stats, inverse, keep)
        inside = times(load(v, offset + k), beta) - p
        store(y, offset + k, select_equal(value, crest, at_top, inside))
    if full < length:
        value = entries(x, offset + full, length - full, keep)
        p = probability_by(value, beta, stats, inverse, keep)
        inside = times(load_part(v, offset + full, length - full, zero), beta) - p
        store_part(y, offset + full, length - full, select_equal(value, crest, at_top, inside))


@kernel
def log_softmax_vjp(
    start: Count, stop: Count, room: Room, x: Block, v: Block, y: Block, over: Flag, beta: Temperature
) -> None:
    """y = J^T v for the Jacobian of log-softmax at x. `over` is that of `traverse`."""
    shape, tile, data, vector, result = x.shape, memory(room), memory(x), memory(v), memory(y)
    options = ActivationOptions(beta, True)
    traverse(
        log_softmax_vjp_block,
        start,
        stop,
        shape,
        tile,
        data,
        vector,
        result,
        None,
        options,
        beta,
        keep=True,
        over=over,
        inverse=True,
    )


# --- Jacobians ----------------------------------------------------------------------------------------------
#
# Rows are written from the first to the last, as caches expect it. Meanwhile the probabilities are kept in the
# last row, which is overwritten last; those of a few classes, which come from a tile, in memory of their own.


# With a weight or a temperature, the probabilities are lifted by 2**raised, about the root of the factor of the
# Jacobian, so that no p_i with a normal product is flushed to 0. An entry is the greater p times `drop`, times the
# lesser one, times `rest`, so that the matrix is symmetric to the last bit.


@inline
def _factors(weight: Any, beta: Any, raised: Any, power: Any) -> Any:
    """The factors of an entry (three) and of the diagonal (three) for weight/T = rest 2**power and p 2**raised."""
    rest, rest_low, _ = over_temperature(weight, number(weight, 0.0), beta)
    less = two_to_the(-exponent_of(rest))
    rest, rest_low = rest * less, rest_low * less
    most = most_power(weight)
    wanted = power - raised - raised
    drop = bounded(wanted, -most, most - raised)
    left = two_to_the(wanted - drop)
    return two_to_the(drop), rest * left, rest_low * left, two_to_the(power - raised), rest, rest_low


@inline
def _powers(weight: Any, beta: Any) -> Any:
    """`raised` and `power` of `_factors`, which are whole numbers."""
    rest, _, power = over_temperature(weight, number(weight, 0.0), beta)
    power = power + exponent_of(rest)
    raised = truncate((most_power(weight) + power) * number(weight, 0.5))
    return bounded(raised, number(weight, 0.0), lift_of(weight)), power


@inline
def _jacobian_rows(
    probs: Any,
    at: int,
    y: Any,
    offset: int,
    classes: int,
    tops: Any,
    beta: Any,
    logarithmic: Any,
    weight: Any,
    plain: Any,
) -> None:
    """One Jacobian from its probabilities, which may be its last row; `tops` are the `Tops` of that row."""
    step = lane_count(y)
    numbers = _factors(weight, beta, tops.raised, tops.power)
    if classes < step:
        for i in range(classes):
            p, here = load_scalar(probs, at + i), offset + i * classes
            entry = spared(weight, _entry(load(probs, at), p, numbers, logarithmic, plain))
            if i * classes + step <= classes * classes:  # the next row overwrites what is written too much
                store(y, here, entry)
            else:
                store_part(y, here, classes, entry)
            store_scalar(y, here + i, spared(weight, _diagonal(p, tops, numbers, beta, logarithmic, plain)))
        return
    full = classes // step * step
    last = load(probs, at + classes - step)
    for i in range(classes):
        p, here = load_scalar(probs, at + i), offset + i * classes
        for k in range(0, full, step):
            entry = _entry(load(probs, at + k), p, numbers, logarithmic, plain)
            store(y, here + k, spared(weight, entry))
        if full < classes:
            entry = _entry(last, p, numbers, logarithmic, plain)
            store(y, here + classes - step, spared(weight, entry))
        store_scalar(y, here + i, spared(weight, _diagonal(p, tops, numbers, beta, logarithmic, plain)))


@inline
def _diagonal(p: Any, tops: Any, numbers: Any, beta: Any, logarithmic: Any, plain: Any) -> Any:
    """The entry on the diagonal."""
    one = number(p, 1.0)
    _, _, _, back, ratio, ratio_low = numbers
    if logarithmic is not None:
        diagonal = times(one, beta) - p
    elif plain is not None:
        diagonal = p * (one - p)
    else:
        varied = p * (one - p * two_to_the(-tops.raised))
        diagonal = muladd(varied, ratio, varied * ratio_low) * back
    return select_equal(p, tops.highest, tops.at_highest, diagonal)


@inline
def _entry(p_j: Any, p_i: Any, numbers: Any, logarithmic: Any, plain: Any) -> Any:
    """The entries beside the diagonal."""
    drop, rest, rest_low, _, _, _ = numbers
    if logarithmic is not None:
        return -p_j
    if plain is not None:
        return p_j * -p_i
    product = (maximum(p_j, broadcast(p_i)) * drop) * -minimum(p_j, broadcast(p_i))
    return muladd(product, rest, product * rest_low)


@inline
def _fill_probs(
    x: Any,
    offset: int,
    y: Any,
    y_offset: int,
    length: int,
    stats: Any,
    beta: Any,
    from_probs: Any,
    keep: Any,
    inverse: Any,
    lift: Any,
) -> None:
    """Store the probabilities of x in y: from logits by `inverse`, or times `lift` if x holds probabilities."""
    step = lane_count(x)
    full = length // step * step
    for k in range(0, full, step):
        p = _prob(load(x, offset + k), beta, stats, inverse, lift, from_probs, keep)
        store(y, y_offset + k, p)
    if full < length:
        last = load_part(x, offset + full, length - full, _filler(x, from_probs, keep))
        p = _prob(last, beta, stats, inverse, lift, from_probs, keep)
        store_part(y, y_offset + full, length - full, p)


@inline
def _prob(value: Any, beta: Any, stats: Any, inverse: Any, lift: Any, from_probs: Any, keep: Any) -> Any:
    if from_probs is None:
        return probability_by(value, beta, stats, inverse, keep)
    return value * lift


@inline
def _filler(x: Any, from_probs: Any, keep: Any) -> Any:
    if from_probs is None:
        return filler(x, keep)
    return number(x, 0.0)


@inline
def _extremes(stats: Any, beta: Any, from_probs: Any, logarithmic: Any, weight: Any, plain: Any) -> Any:
    """The `reciprocal` for the kept probabilities, the factor of probabilities in x, and the `Tops` of each row.

    If x holds probabilities, 1 - p is a plain subtraction everywhere.
    """
    m = stats.m
    zero = filled(m, 0.0)
    raised, power = zero, zero
    if plain is None:
        raised, power = _powers(weight, beta)
        raised, power = zero + raised, zero + power
    if logarithmic is not None:
        raised = zero
    lift = two_to_the(raised)
    if from_probs is not None:
        return Reciprocal(m, m, m, m, m, m, m), lift, Tops(filled(m, -1.0), zero, raised, power)
    inverse = reciprocal(stats)
    high, low, of_t = over_temperature(weight, number(m, 0.0), beta)
    heavy = inverse
    if plain is None:
        heavy = weighted(inverse, zero + high, zero + low, of_t)
    if logarithmic is not None:
        return heavy, lift, Tops(heavy.highest, complement(stats, heavy), raised, power)
    at_highest = inverse.highest * complement(stats, heavy)
    kept = inverse
    if plain is None:
        kept = weighted(inverse, zero + number(m, 1.0), zero, raised)
    return kept, lift, Tops(kept.highest, at_highest, raised, power)


@inline
def _jacobian(
    start: int,
    stop: int,
    classes: int,
    room: Any,
    x: Any,
    y: Any,
    beta: Any,
    from_probs: Any,
    logarithmic: Any,
    weights: Any,
    plain: Any,
) -> None:
    """The Jacobians of rows start .. stop; if `plain` is not None, there are no weights and no temperature."""
    square = classes * classes
    step = lane_count(x)
    if classes > COLUMN_LIMIT:
        table = scratch(x, TABLE)
        clear(table)
        for n in range(start, stop):
            at = n * classes
            if from_probs is None:
                measure(x, at, classes, 1, beta, table, None, None)
            stats = measured(table, 0)
            weight = row_value(x, True, weights, n, 1)
            inverse, lift, tops = _extremes(stats, beta, from_probs, logarithmic, weight, plain)
            last = n * square + square - classes
            _fill_probs(x, at, y, last, classes, stats, beta, from_probs, None, inverse, lift)
            _jacobian_rows(y, last, y, n * square, classes, tops, beta, logarithmic, weight, plain)
        return
    tile, numbers = tile_memory(room, scratch(x, COLUMN_LIMIT)), scratch(x, 4)
    turned, width = scratch(x, COLUMN_LIMIT), -(-classes // step) * step
    for first in range(start, stop, step):
        count = min(step, stop - first)
        load_tile(x, tile, first * classes, classes, 1, count)
        stats = tile_statistics(tile, 0, classes * step, beta, from_probs, True, None)
        weight_of_rows = row_value(x, None, weights, first, count)
        inverse, lift, tops = _extremes(stats, beta, from_probs, logarithmic, weight_of_rows, plain)
        for i in range(4):
            store(numbers, i * step, tops[i])
        _fill_probs(tile, 0, tile, 0, classes * step, stats, beta, from_probs, True, inverse, lift)
        for k in range(0, classes, step):
            store_turned(turned, k, width, min(step, classes - k), tile, k * step)
        for lane in range(count):
            row = Tops(
                load_scalar(numbers, lane),
                load_scalar(numbers, step + lane),
                load_scalar(numbers, 2 * step + lane),
                load_scalar(numbers, 3 * step + lane),
            )
            weight = row_value(x, True, weights, first + lane, 1)
            at = (first + lane) * square
            _jacobian_rows(turned, lane * width, y, at, classes, row, beta, logarithmic, weight, plain)


@kernel
def softmax_jacobian(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    y: Block,
    beta: Temperature,
    from_probs: MaybeFlag,
    weights: Floats,
) -> None:
    """y[n] = weights[n] beta (diag(p) - p p^T) for the rows of x, logits or probabilities."""
    tile, data, result, factors = memory(room), memory(x), memory(y), memory(weights)
    if beta is None and size(factors) == 0:
        _jacobian(start, stop, x.shape[1], tile, data, result, None, from_probs, None, None, True)
        return
    _jacobian(start, stop, x.shape[1], tile, data, result, beta, from_probs, None, factors, None)


@kernel
def log_softmax_jacobian(start: Count, stop: Count, room: Room, x: Block, y: Block, beta: Temperature) -> None:
    """y[n] = beta (I - 1 p^T) for the rows of x."""
    plain = if_none(beta, True)
    _jacobian(start, stop, x.shape[1], memory(room), memory(x), memory(y), beta, None, True, None, plain)
