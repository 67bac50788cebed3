r"""The cross-entropy with a z-loss and capped logits, and its first and second derivatives.

With the logits a, the cap c and the factor r of the z-loss, the loss of a row is

    L = sum_j q_j (lse - z_j) + r lse**2,  where  z = c tanh(a/c)  and  lse = log(sum_j exp(z_j)).

q are the shares of the classes (`losses`), p = softmax(z), t = tanh(a/c), and s = 1 - t**2 = dz/da. Then, with
C = sum(q) + 2 r lse:

    dL/dz_k      = C p_k - q_k                                                  = g_k
    d2L/dz_i dz_j = C (delta_ij p_i - p_i p_j) + 2 r p_i p_j                    = h_ij
    dL/da_k      = s_k g_k
    d2L/da_i da_j = s_i s_j h_ij + delta_ij g_i d2z_i/da_i**2,  where  d2z/da**2 = -2 t s/c

s is computed from a, not as 1 - t**2, which cancels. All of this is multiplied by the weight of the row, and by
the inverse of the divisor of a mean.

The rows are capped into working memory, some at a time. The ordinary building blocks run there, and a last loop
multiplies by s. The classes must come last. The working memory has to hold as many rows as a function has parts of
it: one for the loss, `CURVE_PARTS` for second derivatives.
"""

from typing import Any, NamedTuple

from fastsoftmax._vectors import CURVE_PARTS
from fastsoftmax.kernels.activations import ActivationOptions, softmax_block
from fastsoftmax.kernels.derivatives import centred_direction, in_steps, product_of_logits
from fastsoftmax.kernels.elementary import lift_of
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.losses import Shares, SoftOptions, soft_cross_entropy_block
from fastsoftmax.kernels.scalar import sech_squared, tanh_of
from fastsoftmax.kernels.simd.memory import (
    after,
    lane_count,
    load,
    load_part,
    load_scalar,
    memory,
    size,
    store,
    store_part,
    store_scalar,
)
from fastsoftmax.kernels.simd.rows import row_value
from fastsoftmax.kernels.simd.values import (
    absolute,
    broadcast,
    fma,
    number,
    select_less,
    select_negative,
    unless_none,
)
from fastsoftmax.kernels.traversal import (
    behind,
    complement,
    log_of_sum,
    probability,
    probability_of,
    reciprocal,
    spared,
    traverse,
    weighted,
)
from fastsoftmax.machine.entry import Block, Count, Floats, MaybeBlock, MaybeIntegers, Number, Room

INF = float("inf")


class CurveOptions(NamedTuple):
    """Numbers of the rows: the factor sum(q) of the Hessian, the weights; the factor of weights for r."""

    factors: Any
    weights: Any
    z_loss: Any


# --- the cap --------------------------------------------------------------------------------------------------


@inline
def _ratio(value: Any, cap: Any) -> Any:
    """value/cap as a pair; the second number is 0 where the first is so large that tanh is 1 (or NaN)."""
    ratio = value / cap
    rest = fma(-ratio, cap, value) / cap
    return ratio, select_less(absolute(ratio), number(value, 1024.0), rest, number(value, 0.0))


@inline
def _capped(value: Any, cap: Any) -> Any:
    """cap tanh(value/cap), within 3 ulp."""
    ratio, rest = _ratio(value, cap)
    return cap * tanh_of(ratio, rest)


@inline
def _falling(value: Any, cap: Any) -> Any:
    """1 - tanh(value/cap)**2."""
    ratio, rest = _ratio(value, cap)
    return sech_squared(ratio, rest)


@inline
def _bend(value: Any, cap: Any) -> Any:
    """-2 tanh(value/cap)/cap: the second derivative of the capped logit is this times the first."""
    ratio, rest = _ratio(value, cap)
    t = tanh_of(ratio, rest)
    return -(t + t) / cap


@inline
def _copy_rows(x: Any, at: int, count: int, y: Any, to: int) -> None:
    """Copy `count` numbers of x from `at` on to y from `to` on."""
    step = lane_count(x)
    full = count // step * step
    for k in range(0, full, step):
        store(y, to + k, load(x, at + k))
    if full < count:
        store_part(y, to + full, count - full, load_part(x, at + full, count - full, number(x, 0.0)))


@inline
def _cap_rows(x: Any, at: int, count: int, cap: Any, z: Any) -> None:
    """Store `count` logits of x from `at` on, capped, in z."""
    step = lane_count(x)
    full = count // step * step
    if cap == INF:
        _copy_rows(x, at, count, z, 0)
        return
    for k in range(0, full, step):
        store(z, k, _capped(load(x, at + k), cap))
    if full < count:
        store_part(z, full, count - full, _capped(load_part(x, at + full, count - full, number(x, 0.0)), cap))


@inline
def _through(value: Any, slope: Any, cap: Any) -> Any:
    """A derivative with respect to z times dz/da; 0 if the former is 0, even if the logit is NaN."""
    return spared(slope, slope * _falling(value, cap))


@inline
def _slope_rows(x: Any, at: int, slope: Any, y: Any, to: int, count: int, cap: Any) -> None:
    """Store derivatives with respect to the capped logits (those of x from `at` on), times s, in y from `to` on.

    y may be x, or `slope`.
    """
    step = lane_count(x)
    full = count // step * step
    if cap == INF:
        _copy_rows(slope, 0, count, y, to)
        return
    for k in range(0, full, step):
        store(y, to + k, _through(load(x, at + k), load(slope, k), cap))
    if full < count:
        value = load_part(x, at + full, count - full, number(x, 0.0))
        last = load_part(slope, full, count - full, number(x, 0.0))
        store_part(y, to + full, count - full, _through(value, last, cap))


@inline
def _rows_from(numbers: Any, row: int) -> Any:
    """The numbers of the rows from `row` on. Weights of size 0 keep their address, that of a vector of ones."""
    if size(numbers) == 0:
        return numbers
    return after(numbers, row)


@inline
def _clear_rows(z: Any, factors: Any, count: int, classes: int, z_loss: Any) -> None:
    """Replace the capped logits of rows whose factor C is 0 by 0, so that p is finite; without a z-loss.

    Their second derivatives do not depend on p, and are 0 if all shares are 0, also if a logit is NaN.
    """
    if z_loss > 0 or size(factors) == 0:
        return
    step = lane_count(z)
    full, zero = classes // step * step, broadcast(number(z, 0.0))
    for row in range(count):
        if load_scalar(factors, row) == 0:
            for k in range(0, full, step):
                store(z, row * classes + k, zero)
            if full < classes:
                store_part(z, row * classes + full, classes - full, zero)


@inline
def _rows_at_a_time(part: int, x: Any, classes: int) -> int:
    """How many rows fit into a part of the working memory; whole vectors of rows if that is more than one."""
    step, rows = lane_count(x), part // max(classes, 1)
    return rows // step * step if rows > step else max(rows, 1)


@kernel
def cap(start: Count, stop: Count, room: Room, x: Block, y: Block, softcap: Number) -> None:
    """y = softcap tanh(x/softcap); y may be x."""
    classes = x.shape[1]
    at, count = start * classes, (stop - start) * classes
    _cap_rows(memory(x), at, count, softcap, behind(memory(y), at))


@kernel
def uncapped_slope(start: Count, stop: Count, room: Room, x: Block, y: Block, softcap: Number) -> None:
    """Replace y, derivatives with respect to the capped logits, by those with respect to the logits x."""
    classes = x.shape[1]
    at, count = start * classes, (stop - start) * classes
    slope = memory(y)
    _slope_rows(memory(x), at, behind(slope, at), slope, at, count, softcap)


# --- the loss -------------------------------------------------------------------------------------------------


@inline
def _loss_of_rows(
    z: Any, v: Any, g: Any, losses: Any, first: int, count: int, classes: int, nothing: Any, options: Any
) -> None:
    """The losses of capped rows z, and g = dL/dz unless it is None; row `first` of v and the options is theirs."""
    (labels, class_weights, base, gain, _), weights, scale, scale_low, z_loss = options
    shares = Shares(behind(labels, first), class_weights, base, gain, None)
    here = SoftOptions(shares, _rows_from(weights, first), scale, scale_low, z_loss)
    part, shape = behind(v, first * classes), (count, classes, 1)
    traverse(soft_cross_entropy_block, 0, count, shape, nothing, z, part, g, losses, here)


@kernel(unless=lambda targets, labels, **_: targets == labels)
def cross_entropy(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    targets: MaybeBlock,
    labels: MaybeIntegers,
    class_weights: Floats,
    base: Number,
    gain: Number,
    weights: Floats,
    y: MaybeBlock,
    rows: Floats,
    scale: Number,
    scale_low: Number,
    z_loss: Number,
    cap: Number,
) -> None:
    """`losses.soft_cross_entropy` of capped logits, with a z-loss."""
    classes = x.shape[1]
    data, v, grad, results, z = memory(x), memory(targets), memory(y), memory(rows), memory(room)
    nothing = after(z, size(z))
    shares = Shares(memory(labels), memory(class_weights), base, gain, None)
    options = SoftOptions(shares, memory(weights), scale, scale_low, z_loss)
    step = _rows_at_a_time(size(z), data, classes)
    for first in range(start, stop, step):
        count = min(step, stop - first)
        _cap_rows(data, first * classes, count * classes, cap, z)
        slope = unless_none(grad, z)
        _loss_of_rows(z, v, slope, after(results, first), first, count, classes, nothing, options)
        if y is not None:
            _slope_rows(data, first * classes, z, grad, first * classes, count * classes, cap)


# --- second derivatives ---------------------------------------------------------------------------------------


@inline
def _curve(x: Any, place: Any, stats: Any, options: Any) -> Any:
    """The weight of the rows, C and 2 r times it, see above; all 0 if the weight is 0."""
    _, _, folded, row, count = place
    weight = row_value(x, folded, options.weights, row, count)
    twice = spared(weight, weight * options.z_loss)
    lse = spared(twice, log_of_sum(stats))
    return weight, spared(weight, row_value(x, folded, options.factors, row, count) + twice * lse), twice


@inline
def product_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """y = C p (v - p.v), with the error of `softmax_product_block`."""
    _, factor, _ = _curve(x, place, stats, options)
    centre, _ = centred_direction(x, v, place, stats, None, None, None, None)
    product_of_logits(x, v, y, place, stats, None, None, None, centre, factor, (factor, number(x, 0.0)))


@inline
def mean_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """y = 2 r p (p.v): within 4 eps of p sum_j p_j abs(v_j)."""
    offset, length, _, _, _ = place
    _, _, twice = _curve(x, place, stats, options)
    centre, _ = centred_direction(x, v, place, stats, None, None, None, None)
    back, rest, last = in_steps(centre.power - lift_of(centre.power))
    dot = centre.c + (centre.mean + centre.mean_low) * back * rest * last
    nothing = number(x, 0.0)
    heavy = weighted(reciprocal(stats), spared(twice, twice * dot), nothing, nothing)
    step = lane_count(x)
    full = length // step * step
    for k in range(0, full, step):
        store(y, offset + k, spared(twice, probability(load(x, offset + k), None, stats, heavy)))
    if full < length:
        last_part = load_part(x, offset + full, length - full, number(x, -INF))
        store_part(y, offset + full, length - full, spared(twice, probability(last_part, None, stats, heavy)))


@inline
def _variance(e: Any, inverse: Any, heavy: Any, square: Any, at_top: Any) -> Any:
    """C p (1 - p) + 2 r p**2 of an entry, from its kept term e."""
    p = probability_of(e, inverse)
    inside = probability_of(e, heavy) * (number(e, 1.0) - p) + probability_of(e, square) * p
    return select_negative(e, at_top, inside)


@inline
def variance_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """y = C p (1 - p) + 2 r p**2, and rows = 2 r - C unless it is None; x holds the terms of the rows."""
    weight, factor, twice = _curve(x, place, stats, options)
    variance_of_terms(x, y, place, stats, weight, factor, twice)
    if rows is not None:
        store_part(rows, place.row, place.count, broadcast(twice - factor))


@inline
def variance_of_terms(x: Any, y: Any, place: Any, stats: Any, weight: Any, factor: Any, twice: Any) -> None:
    """y = factor p (1 - p) + twice p**2, and 0 where the weight is 0; x holds the terms of the rows."""
    offset, length, _, _, _ = place
    nothing = number(x, 0.0)
    inverse = reciprocal(stats)
    heavy, square = weighted(inverse, factor, nothing, nothing), weighted(inverse, twice, nothing, nothing)
    at_top = inverse.highest * complement(stats, heavy) + square.highest * inverse.highest
    step = lane_count(x)
    full = length // step * step
    for k in range(0, full, step):
        value = _variance(load(x, offset + k), inverse, heavy, square, at_top)
        store(y, offset + k, spared(weight, value))
    if full < length:
        value = _variance(load_part(x, offset + full, length - full, nothing), inverse, heavy, square, at_top)
        store_part(y, offset + full, length - full, spared(weight, value))


@inline
def _bent(value: Any, h: Any, g: Any, vector: Any, cap: Any) -> Any:
    """s (h + g v (d2z/da**2)/s): the product with the Hessian, from that with respect to z."""
    return _through(value, h + spared(g, g * vector * _bend(value, cap)), cap)


@inline
def _bent_diagonal(value: Any, h: Any, g: Any, cap: Any) -> Any:
    """s (s h + g (d2z/da**2)/s)."""
    return _through(value, _through(value, h, cap) + spared(g, g * _bend(value, cap)), cap)


@inline
def _tangent_rows(x: Any, v: Any, at: int, count: int, cap: Any, w: Any) -> None:
    """Store the tangents of the capped logits, s v, in w."""
    step = lane_count(x)
    full = count // step * step
    if cap == INF:
        _copy_rows(v, at, count, w, 0)
        return
    for k in range(0, full, step):
        slope = _falling(load(x, at + k), cap)
        store(w, k, spared(slope, slope * load(v, at + k)))
    if full < count:
        slope = _falling(load_part(x, at + full, count - full, number(x, 0.0)), cap)
        last = load_part(v, at + full, count - full, number(x, 0.0))
        store_part(w, full, count - full, spared(slope, slope * last))


@inline
def _add_rows(h: Any, g: Any, count: int) -> None:
    """h += g."""
    step = lane_count(h)
    full = count // step * step
    for k in range(0, full, step):
        store(h, k, load(h, k) + load(g, k))
    if full < count:
        more = load_part(g, full, count - full, number(h, 0.0))
        store_part(h, full, count - full, load_part(h, full, count - full, number(h, 0.0)) + more)


@inline
def _bent_rows(x: Any, v: Any, h: Any, g: Any, at: int, count: int, cap: Any, y: Any) -> None:
    """Store the `_bent` products in y from `at` on, which may be x or v."""
    step = lane_count(x)
    full = count // step * step
    for k in range(0, full, step):
        store(y, at + k, _bent(load(x, at + k), load(h, k), load(g, k), load(v, at + k), cap))
    if full < count:
        rest, zero = count - full, number(x, 0.0)
        value, vector = load_part(x, at + full, rest, zero), load_part(v, at + full, rest, zero)
        bent = _bent(value, load_part(h, full, rest, zero), load_part(g, full, rest, zero), vector, cap)
        store_part(y, at + full, rest, bent)


@inline
def _bent_diagonals(x: Any, h: Any, g: Any, at: int, count: int, cap: Any) -> None:
    """Replace the diagonals with respect to z in h by those with respect to the logits, x from `at` on."""
    step = lane_count(x)
    full = count // step * step
    for k in range(0, full, step):
        store(h, k, _bent_diagonal(load(x, at + k), load(h, k), load(g, k), cap))
    if full < count:
        rest, zero = count - full, number(x, 0.0)
        value, slope = load_part(x, at + full, rest, zero), load_part(g, full, rest, zero)
        store_part(h, full, rest, _bent_diagonal(value, load_part(h, full, rest, zero), slope, cap))


@kernel(unless=lambda targets, labels, **_: targets == labels)
def product(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    tangent: Block,
    targets: MaybeBlock,
    labels: MaybeIntegers,
    class_weights: Floats,
    base: Number,
    gain: Number,
    weights: Floats,
    factors: Floats,
    y: Block,
    scale: Number,
    scale_low: Number,
    z_loss: Number,
    cap: Number,
) -> None:
    """y = the product of the Hessian of the loss with `tangent`; y may lie at x or at the tangent.

    `factors` are the weights of the rows times sum(q) and `scale`, which also includes the divisor of a mean.
    """
    classes = x.shape[1]
    data, direction, v, result, tile = memory(x), memory(tangent), memory(targets), memory(y), memory(room)
    part = size(tile) // CURVE_PARTS
    z, w, h, g = tile, after(tile, part), after(tile, 2 * part), after(tile, 3 * part)
    losses, nothing = after(tile, 4 * part), after(tile, size(tile))
    heavy, shares = memory(weights), Shares(memory(labels), memory(class_weights), base, gain, None)
    options, twice = SoftOptions(shares, heavy, scale, scale_low, z_loss), (z_loss + z_loss) * scale
    step = _rows_at_a_time(part, data, classes)
    for first in range(start, stop, step):
        count, at = min(step, stop - first), first * classes
        length, shape = count * classes, (count, classes, 1)
        curve = CurveOptions(_rows_from(memory(factors), first), _rows_from(heavy, first), twice)
        _cap_rows(data, at, length, cap, z)
        _clear_rows(z, curve.factors, count, classes, z_loss)
        _tangent_rows(data, direction, at, length, cap, w)
        traverse(product_block, 0, count, shape, nothing, z, w, h, None, curve)
        if z_loss > 0:
            traverse(mean_block, 0, count, shape, nothing, z, w, g, None, curve)
            _add_rows(h, g, length)
        if cap < INF:
            _loss_of_rows(z, v, g, losses, first, count, classes, nothing, options)
            _bent_rows(data, direction, h, g, at, length, cap, result)
        else:
            _slope_rows(data, at, h, result, at, length, cap)


@inline
def _outer_row(y: Any, at: int, p: Any, diagonal: Any, begin: int, classes: int, factor: Any) -> None:
    """Store the matrix factor p p^T with this diagonal in y from `at` on; p and the diagonal begin at `begin`."""
    step = lane_count(y)
    full = classes // step * step
    for i in range(classes):
        here, one = at + i * classes, load_scalar(p, begin + i)
        for j in range(0, full, step):
            store(y, here + j, spared(factor, factor * (one * load(p, begin + j))))
        if full < classes:
            last = load_part(p, begin + full, classes - full, number(y, 0.0))
            store_part(y, here + full, classes - full, spared(factor, factor * (one * last)))
        store_scalar(y, here + i, load_scalar(diagonal, begin + i))


@kernel(unless=lambda targets, labels, **_: targets == labels)
def variance(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    targets: MaybeBlock,
    labels: MaybeIntegers,
    class_weights: Floats,
    base: Number,
    gain: Number,
    weights: Floats,
    factors: Floats,
    y: Block,
    scale: Number,
    scale_low: Number,
    z_loss: Number,
    cap: Number,
) -> None:
    """y = the diagonal of the Hessian of each row, or with a y of shape (rows, classes, classes) all of it.

    Other arguments as for `product`; y may lie at x if it has its shape.
    """
    classes = x.shape[1]
    whole = y.shape[2] > 1
    data, v, result, tile = memory(x), memory(targets), memory(y), memory(room)
    part = size(tile) // CURVE_PARTS
    z, h, g, p = tile, after(tile, part), after(tile, 2 * part), after(tile, 3 * part)
    sums, nothing = after(tile, 4 * part), after(tile, size(tile))
    heavy, shares = memory(weights), Shares(memory(labels), memory(class_weights), base, gain, None)
    options, twice = SoftOptions(shares, heavy, scale, scale_low, z_loss), (z_loss + z_loss) * scale
    step = _rows_at_a_time(part, data, classes)
    for first in range(start, stop, step):
        count, at = min(step, stop - first), first * classes
        length, shape = count * classes, (count, classes, 1)
        curve = CurveOptions(_rows_from(memory(factors), first), _rows_from(heavy, first), twice)
        _cap_rows(data, at, length, cap, z)
        _clear_rows(z, curve.factors, count, classes, z_loss)
        if cap < INF:
            _loss_of_rows(z, v, g, sums, first, count, classes, nothing, options)
        if whole:
            plain = ActivationOptions(None, None)
            traverse(softmax_block, 0, count, shape, nothing, z, None, p, None, plain)
        traverse(variance_block, 0, count, shape, nothing, z, None, h, sums, curve, keep=True)
        if cap < INF:
            _bent_diagonals(data, h, g, at, length, cap)
            if whole:
                _slope_rows(data, at, p, p, 0, length, cap)
        if whole:
            for row in range(count):
                place, factor = (at + row * classes) * classes, load_scalar(sums, row)
                _outer_row(result, place, p, h, row * classes, classes, factor)
        else:
            _copy_rows(h, 0, length, result, at)
