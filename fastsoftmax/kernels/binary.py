r"""Cross-entropy and focal loss of single logits, with their first and second derivatives.

With p = 1/(1 + exp(-z)), weights a of the class 1 and b of the class 0, and e = exp(-abs(z)), the class that
the logit favours has probability 1/(1 + e), the other e/(1 + e). Call their weights `likely` and `unlikely` (a and
b if z > 0, else b and a), and s the sign of z. Then the cross-entropy and its derivatives are

    L  = -a log p - b log(1 - p) = (a + b) log(1 + e) + unlikely abs(z)
    L' = s (unlikely - likely e)/(1 + e)
    L'' = (a + b) e/(1 + e)**2

No digits cancel but those of targets between 0 and 1, whose gradient is 0 somewhere.

The focal loss is L_f = u**gamma L, where a = t, b = 1 - t and u = t (1 - p) + (1 - t) p is the probability of the
wrong class, u = (likely e + unlikely)/(1 + e). With

    R = (1 - 2 t) s p (1 - p)/u = (unlikely - likely) e/((1 + e) (likely e + unlikely))
    D = (unlikely - likely e)/(1 + e)
    M = (1 - e)/(1 + e)

the derivatives have no power of u but u**gamma, and so are finite for every gamma >= 0:

    L_f'  = s u**gamma (gamma R L + D)
    L_f'' = u**gamma (gamma (gamma - 1) R**2 L - gamma R M L + 2 gamma R D + e/(1 + e)**2)

For a target that is 0 or 1, and favoured by the logit, u is e/(1 + e) and R is -1/(1 + e), also where e is 0.

Where e is below 2**FAR, it is a power of two and a factor (`scalar.Logistic`), to which weights are applied before
the power of two, so that no product is flushed that is a normal number.
"""

from typing import Any, NamedTuple

import numpy as np

from fastsoftmax._vectors import CHUNK, CURVATURE, GRADIENT, LOSS
from fastsoftmax.kernels.elementary import two_product, two_sum
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.reductions import pair_sum_of
from fastsoftmax.kernels.scalar import FAR, log_as_pair, logistic, power_scaled_down, quick_logistic, times_power
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
    store_scalar,
)
from fastsoftmax.kernels.simd.reduce import fold_maximum
from fastsoftmax.kernels.simd.values import (
    absolute,
    any_above,
    broadcast,
    muladd,
    number,
    select_equal,
    select_less,
)
from fastsoftmax.kernels.traversal import spared
from fastsoftmax.machine.entry import Count, Doubles, Entries, Flag, Floats, Number, Room

VECTORS = 64
"""Vectors that hold a chunk of float64."""


class EntropyOptions(NamedTuple):
    """The share of smoothing and of the targets (`losses.Shares`), and the factor of derivatives as a pair."""

    base: Any
    gain: Any
    scale: Any
    scale_low: Any


class FocalOptions(NamedTuple):
    """gamma, the weights of the classes 1 and 0, and the factor of derivatives as a pair."""

    gamma: Any
    alpha: Any
    beta: Any
    scale: Any
    scale_low: Any


class Sides(NamedTuple):
    """The weights of the class that the logit favours and of the other, and the sign of the logit."""

    likely: Any
    unlikely: Any
    sign: Any


@inline
def _sides(z: Any, a: Any, b: Any) -> Sides:
    zero, one = number(z, 0.0), number(z, 1.0)
    likely, unlikely = select_less(zero, z, a, b), select_less(zero, z, b, a)
    return Sides(likely, unlikely, select_less(zero, z, one, -one))


@inline
def _is_far(n: Any) -> bool:
    """Whether any lane has a small e: this is rare in a row of logits, so that a branch is worth its while."""
    far: bool = any_above(-n, number(n, -FAR))
    return far


@inline
def _scaled(value: Any, factor: Any, factor_low: Any) -> Any:
    """A derivative times the weight and the inverse of a divisor, which are a pair."""
    return muladd(value, factor, value * factor_low)


# --- cross-entropy --------------------------------------------------------------------------------------------


@inline
def _weights(t: Any, positive: Any, options: Any) -> Any:
    """The weights a and b."""
    base, gain, _, _ = options
    return positive * muladd(t, gain, base), muladd(number(t, 1.0) - t, gain, base)


@inline
def _entropy_of(z: Any, a: Any, b: Any, sides: Any, parts: Any, weight: Any) -> Any:
    """The loss, within 3 ulp for a target 0 or 1 of weight 1: 2.7 ulp of the logarithm, or less and a sum."""
    both, far = a + b, number(z, FAR)
    small = weight * (both * (parts.log + parts.log_low))
    if _is_far(parts.n):
        small = select_less(parts.n, far, times_power(weight * both * parts.factor, parts.n), small)
    return spared(both, small) + spared(sides.unlikely, (weight * sides.unlikely) * absolute(z))


@inline
def _entropy_slope_of(z: Any, sides: Any, parts: Any, factor: Any, factor_low: Any) -> Any:
    """The gradient: 1.1 ulp of e, 0.5 each for 1 + e, the difference, the quotient and the product."""
    likely, unlikely, sign = sides
    value = _scaled(muladd(-likely, parts.e, unlikely) / parts.total, factor, factor_low)
    if _is_far(parts.n):
        small = times_power(-likely * factor * parts.factor, parts.n)
        value = select_less(parts.n, number(z, FAR), _scaled(unlikely, factor, factor_low) + small, value)
    return sign * value


@inline
def _entropy_curve_of(z: Any, both: Any, parts: Any, factor: Any, factor_low: Any) -> Any:
    """The second derivative."""
    value = _scaled(both * (parts.e / parts.total / parts.total), factor, factor_low)
    if _is_far(parts.n):
        small = times_power(both * factor * parts.factor, parts.n)
        value = select_less(parts.n, number(z, FAR), small, value)
    return value


@inline
def _live(a: Any, b: Any, weight: Any) -> Any:
    """The weight of an entry; 0 if both classes have weight 0 there."""
    return spared(absolute(a) + absolute(b), weight)


@inline
def entropy_loss(z: Any, t: Any, positive: Any, weight: Any, options: Any) -> Any:
    """The cross-entropy."""
    a, b = _weights(t, positive, options)
    loss = _entropy_of(z, a, b, _sides(z, a, b), quick_logistic(z), weight)
    return spared(_live(a, b, weight), loss)


@inline
def entropy_both(z: Any, t: Any, positive: Any, weight: Any, options: Any) -> Any:
    """The cross-entropy and its gradient."""
    a, b = _weights(t, positive, options)
    sides, parts, live = _sides(z, a, b), quick_logistic(z), _live(a, b, weight)
    factor, factor_low = weight * options.scale, weight * options.scale_low
    loss = _entropy_of(z, a, b, sides, parts, weight)
    slope = _entropy_slope_of(z, sides, parts, factor, factor_low)
    return spared(live, loss), spared(live, slope)


@inline
def entropy_curve(z: Any, t: Any, positive: Any, weight: Any, options: Any) -> Any:
    """The second derivative of the cross-entropy."""
    a, b = _weights(t, positive, options)
    factor, factor_low = weight * options.scale, weight * options.scale_low
    return spared(_live(a, b, weight), _entropy_curve_of(z, a + b, logistic(z), factor, factor_low))


@inline
def entropy_derivatives(z: Any, t: Any, positive: Any, weight: Any, options: Any) -> Any:
    """The gradient and the second derivative of the cross-entropy, with the bits of the functions above."""
    _, slope = entropy_both(z, t, positive, weight, options)
    return slope, entropy_curve(z, t, positive, weight, options)


# --- focal loss -----------------------------------------------------------------------------------------------


class Focus(NamedTuple):
    """What the focal loss and its derivatives have in common."""

    parts: Any
    sides: Any
    e: Any
    total: Any
    loss: Any
    """The cross-entropy, in units of `unit`."""
    unit: Any
    """e, as a number in the same units: e itself, but its factor where `power` holds its power of two."""
    tilt: Any
    """`unlikely` - `likely`, which is 1 - 2 t or 2 t - 1, and exact."""
    certain: Any
    """0 where the target is 0 or 1 and favoured by the logit."""
    factor: Any
    power: Any
    """u**gamma times the units: 2**power factor."""


@inline
def _focus(z: Any, t: Any, options: Any) -> Focus:
    parts, one, zero = logistic(z), number(z, 1.0), number(z, 0.0)
    sides, size_, far = _sides(z, t, one - t), absolute(z), number(z, FAR)
    likely, certain, _ = sides.likely, sides.unlikely, sides.sign
    e = parts.e
    if _is_far(parts.n):
        e = select_less(parts.n, far, times_power(parts.factor, parts.n), e)
    # log u = log(likely e + unlikely) - log(1 + e)
    product, error = two_product(likely, e)
    whole, rest = two_sum(product, certain)
    high, low = log_as_pair(select_equal(certain, zero, one, whole), error + rest)
    high, low = select_equal(certain, zero, -size_, high), select_equal(certain, zero, zero, low)
    high, rest = two_sum(high, -parts.log)
    log_low = select_less(parts.n, far, zero, parts.log_low)
    power, factor = power_scaled_down(high, (rest - log_low) + low, options.gamma)
    # The loss and e: small numbers keep their power of two apart if all terms have it.
    value = spared(certain, certain * size_) + (parts.log + parts.log_low)
    unit = e
    if _is_far(parts.n):
        value = select_less(parts.n, far, spared(certain, certain * size_) + e, value)
        alone = select_equal(certain, zero, parts.n, zero)
        apart = select_less(alone, far, alone, zero)
        value = select_less(apart, zero, parts.factor, value)
        unit = select_less(apart, zero, parts.factor, unit)
        power = power + apart
    tilt = sides.sign * (one - (t + t))
    return Focus(parts, sides, e, parts.total, value, unit, tilt, certain, factor, power)


@inline
def _alpha(t: Any, weight: Any, options: Any) -> Any:
    """The weight of an entry: alpha t + beta (1 - t), which is exact for a target 0 or 1, times its own."""
    factor = muladd(t, options.alpha, options.beta * (number(t, 1.0) - t))
    return spared(weight, weight * factor)


@inline
def _bent(focus: Any) -> Any:
    """R and D of the derivatives, D in the units of the loss."""
    likely, unlikely, _ = focus.sides
    one, total = number(focus.e, 1.0), focus.total
    share = select_equal(focus.certain, number(focus.e, 0.0), one, focus.e / muladd(likely, focus.e, unlikely))
    return focus.tilt * share / total, muladd(-likely, focus.unit, unlikely) / total


@inline
def _focal_slope_of(focus: Any, bent: Any, weight: Any, options: Any) -> Any:
    ratio, difference = bent
    value = muladd(options.gamma * ratio, focus.loss, difference) * focus.factor
    scaled = _scaled(value, weight * options.scale, weight * options.scale_low)
    return spared(weight, focus.sides.sign * times_power(scaled, focus.power))


@inline
def focal_loss(z: Any, t: Any, positive: Any, weight: Any, options: Any) -> Any:
    """The focal loss."""
    focus, weight = _focus(z, t, options), _alpha(t, weight, options)
    return spared(weight, times_power(weight * (focus.factor * focus.loss), focus.power))


@inline
def focal_both(z: Any, t: Any, positive: Any, weight: Any, options: Any) -> Any:
    """The focal loss and its gradient."""
    focus, weight = _focus(z, t, options), _alpha(t, weight, options)
    loss = times_power(weight * (focus.factor * focus.loss), focus.power)
    return spared(weight, loss), _focal_slope_of(focus, _bent(focus), weight, options)


@inline
def focal_curve(z: Any, t: Any, positive: Any, weight: Any, options: Any) -> Any:
    """The second derivative of the focal loss."""
    focus, weight = _focus(z, t, options), _alpha(t, weight, options)
    return _focal_curve_of(z, focus, _bent(focus), weight, options)


@inline
def focal_derivatives(z: Any, t: Any, positive: Any, weight: Any, options: Any) -> Any:
    """The gradient and the second derivative of the focal loss."""
    focus, weight = _focus(z, t, options), _alpha(t, weight, options)
    bent = _bent(focus)
    slope = _focal_slope_of(focus, bent, weight, options)
    return slope, _focal_curve_of(z, focus, bent, weight, options)


@inline
def _focal_curve_of(z: Any, focus: Any, bent: Any, weight: Any, options: Any) -> Any:
    """If the logit favours the wrong class, all terms have a factor e, with which the sum is multiplied last."""
    gamma, (ratio, difference) = options.gamma, bent
    zero, one, total = number(z, 0.0), number(z, 1.0), focus.total
    bend = muladd(gamma - one, ratio, (focus.e - one) / total)
    steep, lead, factor, power = gamma * ratio, focus.unit, focus.factor, focus.power
    if _is_far(focus.parts.n):
        unlikely = focus.sides.unlikely
        wrong = select_less(number(z, 0.0009765625), unlikely, focus.parts.n, zero)
        apart = select_less(wrong, number(z, FAR), wrong, zero)
        steep = select_less(apart, zero, gamma * focus.tilt / unlikely, steep)
        lead = select_less(apart, zero, one, lead)
        factor = select_less(apart, zero, factor * focus.parts.factor, factor)
        power = power + apart
    # The factor first: it is 0 where the loss may be so large that its products overflow.
    inner = muladd(bend, focus.loss, difference + difference)
    value = muladd(steep * factor, inner, lead * factor / total / total)
    scaled = _scaled(value, weight * options.scale, weight * options.scale_low)
    return spared(weight, times_power(scaled, power))


# --- the walk -------------------------------------------------------------------------------------------------


@inline
def _filled(room: Any, source: Any) -> None:
    """Fill a chunk with the only number of `source`, or with 1 if it has none."""
    value = number(room, 1.0)
    if size(source) == 1:
        value = load_scalar(source, 0)
    if size(source) <= 1:
        for k in range(0, CHUNK, lane_count(room)):
            store(room, k, broadcast(value))


@inline
def _chunk_of(source: Any, first: int, count: int, room: Any) -> Any:
    """Whole vectors with the entries of a chunk: those of `source`, or a copy with zeros behind the last one."""
    if count == CHUNK:
        return after(source, first)
    step = lane_count(source)
    for k in range(0, count, step):
        store(room, k, load_part(source, first + k, min(step, count - k), number(source, 0.0)))
    return room


@inline
def _weights_of(source: Any, first: int, count: int, room: Any) -> Any:
    """`_chunk_of` for weights; `room` is `_filled`."""
    if size(source) <= 1:
        return room
    return _chunk_of(source, first, count, room)


@inline
def _put(values: Any, target: Any, first: int, count: int) -> None:
    """Store a part of a chunk."""
    step = lane_count(values)
    for k in range(0, count, step):
        store_part(target, first + k, min(step, count - k), load(values, k))


@inline
def _outside(t: Any, weight: Any, found: Any) -> Any:
    """`found`, or 1 where a target that counts is not from 0 to 1."""
    zero, one = number(t, 0.0), number(t, 1.0)
    inside = select_less(t, zero, one, select_less(one, t, one, select_equal(t, t, zero, one)))
    return select_equal(inside, one, spared(weight, one), found)


@inline
def _is_any_outside(t: Any, weights: Any, count: int) -> bool:
    """Whether a target of a chunk that counts is not from 0 to 1."""
    wrong = broadcast(number(t, 0.0))
    for k in range(0, count, lane_count(t)):
        wrong = _outside(load(t, k), load(weights, k), wrong)
    outside: bool = fold_maximum(True, wrong) > 0.0
    return outside


@inline
def _walk(
    loss_of: Any,
    both_of: Any,
    curve_of: Any,
    derivatives_of: Any,
    start: int,
    stop: int,
    x: Any,
    targets: Any,
    positive: Any,
    weights: Any,
    beside: Any,
    y: Any,
    sums: Any,
    order: int,
    options: Any,
    summed: Any,
) -> Any:
    """Chunks start .. stop of the entries; the functions ending in ``_of`` compute a vector for an `order` each.

    `positive` and `weights` may have one number, or none for 1. The losses are stored in `beside` unless it has
    size 0; with `DERIVED`, the second derivatives. `y` lies at x, or apart from all inputs. The three numbers of
    each chunk in `sums` are the sum of its losses as a pair, and whether a target is not from 0 to 1.

    `summed` is for small calls of one chunk: then the result is the sum of its losses, and nothing is written to
    `sums`; but if a target is not from 0 to 1, the result is -1, and nothing is written at all.
    """
    step, entries = lane_count(x), size(x)
    z_room, t_room, v_room = scratch(x, VECTORS), scratch(x, VECTORS), scratch(x, VECTORS)
    w_room, near_room, y_room = scratch(x, VECTORS), scratch(x, VECTORS), scratch(x, VECTORS)
    _filled(v_room, positive)
    _filled(w_room, weights)
    for chunk in range(start, stop):
        first = chunk * CHUNK
        count = min(CHUNK, entries - first)
        z, t = _chunk_of(x, first, count, z_room), _chunk_of(targets, first, count, t_room)
        v, w = _weights_of(positive, first, count, v_room), _weights_of(weights, first, count, w_room)
        out, near = y_room, near_room
        if count == CHUNK:
            if order != LOSS:
                out = after(y, first)
            if size(beside) > 0:
                near = after(beside, first)
        if summed and _is_any_outside(t, w, count):
            return -1.0
        wrong = broadcast(number(x, 0.0))
        if order == LOSS:
            for k in range(0, count, step):
                target, weight = load(t, k), load(w, k)
                wrong = _outside(target, weight, wrong)
                store(near, k, loss_of(load(z, k), target, load(v, k), weight, options))
        elif order == GRADIENT:
            for k in range(0, count, step):
                target, weight = load(t, k), load(w, k)
                wrong = _outside(target, weight, wrong)
                loss, slope = both_of(load(z, k), target, load(v, k), weight, options)
                store(near, k, loss)
                store(out, k, slope)
        elif order == CURVATURE:
            for k in range(0, count, step):
                target, weight = load(t, k), load(w, k)
                wrong = _outside(target, weight, wrong)
                store(out, k, curve_of(load(z, k), target, load(v, k), weight, options))
        else:
            for k in range(0, count, step):
                target, weight = load(t, k), load(w, k)
                wrong = _outside(target, weight, wrong)
                slope, curve = derivatives_of(load(z, k), target, load(v, k), weight, options)
                store(near, k, curve)
                store(out, k, slope)
        high, low = 0.0, 0.0
        if order <= GRADIENT:  # `near` has losses
            high, low = pair_sum_of(near, count)
            low = low if low == low else 0.0  # the error of inf is nan
        if count < CHUNK:
            if order != LOSS:
                _put(out, y, first, count)
            if size(beside) > 0:
                _put(near, beside, first, count)
        if summed:
            return high + low
        store_scalar(sums, 3 * chunk, high)
        store_scalar(sums, 3 * chunk + 1, low)
        store_scalar(sums, 3 * chunk + 2, np.float64(fold_maximum(True, wrong)))
    return 0.0


@kernel(small=True)
def cross_entropy(
    start: Count,
    stop: Count,
    room: Room,
    x: Entries,
    targets: Entries,
    positive: Floats,
    weights: Floats,
    beside: Floats,
    y: Entries,
    sums: Doubles,
    order: Count,
    base: Number,
    gain: Number,
    scale: Number,
    scale_low: Number,
    summed: Flag,
) -> float:
    """The binary cross-entropy: `_walk`, with base + gain t for t, and base + gain (1 - t) for 1 - t."""
    data, to, plus, factors = memory(x), memory(targets), memory(positive), memory(weights)
    options = EntropyOptions(base, gain, scale, scale_low)
    loss: float = _walk(
        entropy_loss,
        entropy_both,
        entropy_curve,
        entropy_derivatives,
        start,
        stop,
        data,
        to,
        plus,
        factors,
        memory(beside),
        memory(y),
        memory(sums),
        order,
        options,
        summed,
    )
    return loss


@kernel(small=True)
def focal(
    start: Count,
    stop: Count,
    room: Room,
    x: Entries,
    targets: Entries,
    positive: Floats,
    weights: Floats,
    beside: Floats,
    y: Entries,
    sums: Doubles,
    order: Count,
    gamma: Number,
    alpha: Number,
    beta: Number,
    scale: Number,
    scale_low: Number,
    summed: Flag,
) -> float:
    """The binary focal loss: `_walk`. alpha and beta are the weights of the classes 1 and 0; no `positive`."""
    data, to, plus, factors = memory(x), memory(targets), memory(positive), memory(weights)
    options = FocalOptions(gamma, alpha, beta, scale, scale_low)
    loss: float = _walk(
        focal_loss,
        focal_both,
        focal_curve,
        focal_derivatives,
        start,
        stop,
        data,
        to,
        plus,
        factors,
        memory(beside),
        memory(y),
        memory(sums),
        order,
        options,
        summed,
    )
    return loss
