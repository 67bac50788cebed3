r"""Jacobians of softmax and log-softmax, and their products with a vector, for the rows of a block.

With p = softmax(x/T) and beta = 1/T:

=================== =============================== ==========================================
softmax             J = beta (diag(p) - p p^T)      J v = J^T v = beta p (v - p.v)
log-softmax         J = beta (I - 1 p^T)            J v = beta (v - p.v), J^T g = beta (g - p sum(g))
=================== =============================== ==========================================
"""

from typing import Any

from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.traversal import (
    COLUMN_LIMIT,
    GREATEST,
    TABLE,
    add,
    clear,
    filler,
    load_tile,
    measure,
    measured,
    probability,
    probability_by,
    probability_of,
    reciprocal,
    remainder,
    spared,
    tile_statistics,
    traverse,
    weighted,
)
from fastsoftmax.kernels.vector import (
    broadcast,
    filled,
    fold_two_sum,
    if_none,
    lane_count,
    load,
    load_part,
    load_scalar,
    memory,
    muladd,
    number,
    row_value,
    scatter,
    scratch,
    select_equal,
    store,
    store_part,
    store_scalar,
    store_turned,
)

TWO_TILES = 2 * COLUMN_LIMIT


@inline
def times(value: Any, beta: Any) -> Any:
    """``value / T`` for beta = 1/T as a pair or None for T = 1."""
    if beta is None:
        return value
    return muladd(value, beta[0], value * beta[1])


@inline
def probs_state(stats: Any, from_probs: Any) -> Any:
    """What `_prob` needs to turn an entry into a probability: nothing (anything) if it is one."""
    m, shift, bias, top, ties, rest, rest_low = stats
    if from_probs is None:
        return shift, bias, reciprocal(m, top, ties, rest, rest_low)
    return m, m, (m, m, m, m, m, m, m)


@inline
def _prob(value: Any, beta: Any, state: Any, from_probs: Any, keep: Any) -> Any:
    if from_probs is None:
        return probability_by(value, beta, state[0], state[1], state[2], keep)
    return value


@inline
def _filler(x: Any, from_probs: Any, keep: Any) -> Any:
    if from_probs is None:
        return filler(x, keep)
    return number(x, 0.0)


@inline
def dot(
    x: Any, v: Any, offset: int, length: int, folded: Any, beta: Any, from_probs: Any, keep: Any, state: Any
) -> Any:
    """sum_j p_j v_j of each row as a pair."""
    step = lane_count(x)
    full = length // step * step
    zero = broadcast(number(x, 0.0))
    sums = (zero, zero)
    for k in range(0, full, step):
        sums = add(sums, _prob(load(x, offset + k), beta, state, from_probs, keep) * load(v, offset + k))
    if full < length:
        last = load_part(x, offset + full, length - full, _filler(x, from_probs, keep))
        p = _prob(last, beta, state, from_probs, keep)
        sums = add(sums, p * load_part(v, offset + full, length - full, number(x, 0.0)))
    return fold_two_sum(folded, sums[0], sums[1])


@inline
def _weight_of_given(weight: Any, from_probs: Any) -> Any:
    """What given probabilities have yet to be multiplied by; those of logits have it in their `reciprocal`."""
    if from_probs is None:
        return filled(weight, 1.0)
    return weight


@inline
def product_of_mean(
    x: Any,
    v: Any,
    y: Any,
    offset: int,
    length: int,
    state: Any,
    mean: Any,
    weight: Any,
    given: Any,
    options: Any,
) -> None:
    """y = beta given p (v - mean), 0 where the weight is; the mean is a pair."""
    beta, from_probs, keep = options
    step = lane_count(x)
    full = length // step * step
    for k in range(0, full, step):
        p = _prob(load(x, offset + k), beta, state, from_probs, keep) * given
        store(y, offset + k, spared(weight, times(p * ((load(v, offset + k) - mean[0]) - mean[1]), beta)))
    if full < length:
        rest = length - full
        last = load_part(x, offset + full, rest, _filler(x, from_probs, keep))
        p = _prob(last, beta, state, from_probs, keep) * given
        value = (load_part(v, offset + full, rest, number(x, 0.0)) - mean[0]) - mean[1]
        store_part(y, offset + full, rest, spared(weight, times(p * value, beta)))


@inline
def softmax_product_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """y = weight beta p (v - p.v)."""
    offset, length, folded, row, count = place
    beta, from_probs, keep, weights = options
    weight = row_value(x, folded, weights, row, count)
    state = probs_state(stats, from_probs)
    mean, mean_low = dot(x, v, offset, length, folded, beta, from_probs, keep, state)
    state = state[0], state[1], weighted(state[2], weight, number(x, 0.0))
    given = _weight_of_given(weight, from_probs)
    product_of_mean(x, v, y, offset, length, state, (mean, mean_low), weight, given, (beta, from_probs, keep))


@kernel
def softmax_product(
    start: int, stop: int, room: Any, x: Any, v: Any, y: Any, keep: Any, beta: Any, from_probs: Any, weights: Any
) -> None:
    """y = weights J v = weights J^T v for the Jacobian of softmax at x, logits or (`from_probs`) probabilities.

    `keep` is that of `traverse`: None for probabilities, and where y lies over v.
    """
    shape, tile, data, vector, result = x.shape, memory(room), memory(x), memory(v), memory(y)
    options = beta, from_probs, keep, memory(weights)
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
    )


@kernel
def softmax_product_small(x: Any, v: Any, y: Any, from_probs: Any) -> None:
    """`softmax_product` for the rows of matrices: few arguments, because small calls are made of them."""
    keep = if_none(from_probs, True)
    data, options = memory(x), (None, from_probs, keep, None)
    rows, classes = x.shape
    tile, shape = scratch(data, TWO_TILES), (rows, classes, 1)
    vector, result = memory(v), memory(y)
    block = softmax_product_block
    traverse(block, 0, rows, shape, tile, data, vector, result, None, options, given=from_probs, keep=keep)


@inline
def softmax_variance_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, weights: Any) -> None:
    """y = weight p (1 - p), from the terms of the rows."""
    offset, length, folded, row, count = place
    m, _, _, top, ties, rest, rest_low = stats
    inverse = reciprocal(m, top, ties, rest, rest_low)
    lacking = remainder(top, ties, rest, rest_low)
    weight = row_value(x, folded, weights, row, count)
    heavy = weighted(inverse, weight, number(x, 0.0))  # a weight may lift a result above the smallest number
    greatest, one = number(x, GREATEST), number(x, 1.0)
    step = lane_count(x)
    full = length // step * step
    for k in range(0, full, step):
        e = load(x, offset + k)
        rest_of_one = select_equal(e, greatest, lacking, one - probability_of(e, inverse))
        store(y, offset + k, spared(weight, probability_of(e, heavy) * rest_of_one))
    if full < length:
        e = load_part(x, offset + full, length - full, number(x, 0.0))
        rest_of_one = select_equal(e, greatest, lacking, one - probability_of(e, inverse))
        store_part(y, offset + full, length - full, spared(weight, probability_of(e, heavy) * rest_of_one))


@kernel
def softmax_variance(start: int, stop: int, room: Any, x: Any, y: Any, weights: Any) -> None:
    """y = weights p (1 - p), the diagonal of the Jacobian of softmax at x."""
    data, factors = memory(x), memory(weights)
    shape, tile, result = x.shape, memory(room), memory(y)
    traverse(softmax_variance_block, start, stop, shape, tile, data, None, result, None, factors, keep=True)


@inline
def log_softmax_jvp_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """y = beta (v - p.v)."""
    offset, length, folded, _, _ = place
    beta, keep = options
    state = probs_state(stats, None)
    mean, mean_low = dot(x, v, offset, length, folded, beta, None, keep, state)
    step = lane_count(x)
    full = length // step * step
    for k in range(0, full, step):
        store(y, offset + k, times((load(v, offset + k) - mean) - mean_low, beta))
    if full < length:
        last = load_part(v, offset + full, length - full, number(x, 0.0))
        store_part(y, offset + full, length - full, times((last - mean) - mean_low, beta))


@kernel
def log_softmax_jvp(start: int, stop: int, room: Any, x: Any, v: Any, y: Any, keep: Any, beta: Any) -> None:
    """y = J v for the Jacobian of log-softmax at x. `keep` as for `softmax_product`."""
    shape, tile, data, vector, result = x.shape, memory(room), memory(x), memory(v), memory(y)
    options = beta, keep
    traverse(log_softmax_jvp_block, start, stop, shape, tile, data, vector, result, None, options, beta, keep=keep)


@inline
def log_softmax_vjp_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """y = beta (v - p sum(v))."""
    offset, length, folded, _, _ = place
    beta, keep = options
    state = probs_state(stats, None)
    step = lane_count(x)
    full = length // step * step
    zero = broadcast(number(x, 0.0))
    sums = (zero, zero)
    for k in range(0, full, step):
        sums = add(sums, load(v, offset + k))
    if full < length:
        sums = add(sums, load_part(v, offset + full, length - full, number(x, 0.0)))
    total, total_low = fold_two_sum(folded, sums[0], sums[1])
    for k in range(0, full, step):
        p = _prob(load(x, offset + k), beta, state, None, keep)
        value = muladd(-p, total, load(v, offset + k)) - p * total_low
        store(y, offset + k, times(value, beta))
    if full < length:
        p = _prob(load_part(x, offset + full, length - full, filler(x, keep)), beta, state, None, keep)
        value = muladd(-p, total, load_part(v, offset + full, length - full, number(x, 0.0))) - p * total_low
        store_part(y, offset + full, length - full, times(value, beta))


@kernel
def log_softmax_vjp(start: int, stop: int, room: Any, x: Any, v: Any, y: Any, keep: Any, beta: Any) -> None:
    """y = J^T v for the Jacobian of log-softmax at x. `keep` as for `softmax_product`."""
    shape, tile, data, vector, result = x.shape, memory(room), memory(x), memory(v), memory(y)
    options = beta, keep
    traverse(log_softmax_vjp_block, start, stop, shape, tile, data, vector, result, None, options, beta, keep=keep)


# --- Jacobians ----------------------------------------------------------------------------------------------
#
# The probabilities of row n go where the first row of its Jacobian will be. Its rows are then built from the
# last to the first, so that they are overwritten when nobody needs them any more.


@inline
def _jacobian_rows(
    y: Any, offset: int, classes: int, highest: Any, lacking: Any, beta: Any, logarithmic: Any, weight: Any
) -> None:
    """One Jacobian, times `weight`, from the probabilities in its first row; `lacking` is 1 - p of `highest`."""
    step = lane_count(y)
    full = classes // step * step
    one = number(y, 1.0)
    for i in range(classes - 1, -1, -1):
        p = load_scalar(y, offset + i)
        complement = select_equal(p, highest, lacking, one - p)
        if logarithmic is None:
            factor = weight * times(-p, beta)
            diagonal = weight * times(p * complement, beta)
        else:
            factor = weight * times(-one, beta)
            diagonal = weight * times(complement, beta)
        here = offset + i * classes
        for k in range(0, full, step):
            store(y, here + k, spared(weight, load(y, offset + k) * factor))
        if full < classes:
            last = load_part(y, offset + full, classes - full, number(y, 0.0))
            store_part(y, here + full, classes - full, spared(weight, last * factor))
        store_scalar(y, here + i, spared(weight, diagonal))


@inline
def _fill_probs(
    x: Any, offset: int, y: Any, y_offset: int, length: int, stats: Any, beta: Any, from_probs: Any, keep: Any
) -> None:
    """Probabilities of x into y."""
    step = lane_count(x)
    full = length // step * step
    state = probs_state(stats, from_probs)
    for k in range(0, full, step):
        store(y, y_offset + k, _prob(load(x, offset + k), beta, state, from_probs, keep))
    if full < length:
        last = load_part(x, offset + full, length - full, _filler(x, from_probs, keep))
        store_part(y, y_offset + full, length - full, _prob(last, beta, state, from_probs, keep))


@inline
def _extremes(stats: Any, beta: Any, from_probs: Any) -> Any:
    """The highest probability of each row and what it lacks of 1; given probabilities lack 1 - p, no more."""
    m, shift, bias, top, ties, rest, rest_low = stats
    if from_probs is None:
        inverse = reciprocal(m, top, ties, rest, rest_low)
        return probability(m, beta, shift, bias, inverse), remainder(top, ties, rest, rest_low)
    return filled(m, -1.0), filled(m, 2.0)


@inline
def _jacobian(
    start: int,
    stop: int,
    classes: int,
    tile: Any,
    x: Any,
    y: Any,
    beta: Any,
    from_probs: Any,
    logarithmic: Any,
    weights: Any,
) -> None:
    square = classes * classes
    step = lane_count(x)
    if classes > COLUMN_LIMIT:
        table = scratch(x, TABLE)
        clear(table)
        for n in range(start, stop):
            at = n * classes
            if from_probs is None:
                measure(x, at, classes, 1, beta, table, None)
            stats = measured(table, 0)
            highest, lacking = _extremes(stats, beta, from_probs)
            _fill_probs(x, at, y, n * square, classes, stats, beta, from_probs, None)
            weight = row_value(x, True, weights, n, 1)
            _jacobian_rows(y, n * square, classes, highest, lacking, beta, logarithmic, weight)
        return
    tops = scratch(x, 2)
    for first in range(start, stop, step):
        count = min(step, stop - first)
        load_tile(x, tile, first * classes, classes, 1, count)
        stats = tile_statistics(tile, 0, classes * step, beta, from_probs, True)
        highest, lacking = _extremes(stats, beta, from_probs)
        store(tops, 0, highest)
        store(tops, step, lacking)
        _fill_probs(tile, 0, tile, 0, classes * step, stats, beta, from_probs, True)
        for k in range(0, classes, step):
            if count == step:
                store_turned(y, first * square + k, square, min(step, classes - k), tile, k * step)
            else:
                for j in range(k, min(k + step, classes)):
                    scatter(y, first * square + j, square, count, load(tile, j * step))
        for lane in range(count):
            at = (first + lane) * square
            top, lacks = load_scalar(tops, lane), load_scalar(tops, step + lane)
            weight = row_value(x, True, weights, first + lane, 1)
            _jacobian_rows(y, at, classes, top, lacks, beta, logarithmic, weight)


@kernel
def softmax_jacobian(
    start: int, stop: int, room: Any, x: Any, y: Any, beta: Any, from_probs: Any, weights: Any
) -> None:
    """y[n] = weights[n] beta (diag(p) - p p^T) for the rows of x, logits or probabilities."""
    data, factors = memory(x), memory(weights)
    _jacobian(start, stop, x.shape[1], memory(room), data, memory(y), beta, from_probs, None, factors)


@kernel
def softmax_jacobian_small(x: Any, y: Any, from_probs: Any) -> None:
    """`softmax_jacobian` for the rows of a matrix."""
    data = memory(x)
    rows, classes = x.shape
    _jacobian(0, rows, classes, scratch(data, COLUMN_LIMIT), data, memory(y), None, from_probs, None, None)


@kernel
def log_softmax_jacobian(start: int, stop: int, room: Any, x: Any, y: Any, beta: Any) -> None:
    """y[n] = beta (I - 1 p^T) for the rows of x."""
    _jacobian(start, stop, x.shape[1], memory(room), memory(x), memory(y), beta, None, True, None)
