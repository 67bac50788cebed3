r"""The focal loss of rows with labels, and its first and second derivatives.

With p the probability of the label, q = 1 - p and L = -log p, the loss is q**gamma L. Let rho = L/q, which is 1
for q = 0. Then

    dL_f/dz_k     = F (p_k - [k = label]),   F = q**gamma (1 + gamma p rho)
    d2L_f/dz_k**2 = F p_k (1 - p_k) + G p_k**2       for k != label
                  = q**gamma p ((1 + 2 gamma) q + gamma L (gamma p - q))   at the label
    G             = gamma q**(gamma - 1) p (2 - L + (gamma - 1) p rho)

So loss and gradient are those of the cross-entropy with another weight for each row. q is the sum of the other
terms where the label is a greatest entry (`traversal.complement`), and log q the difference of two logarithms in
the same units, so that neither cancels. At the label, no power of q but q**gamma is left, and p_k <= q elsewhere:
the derivatives are finite for every gamma >= 0, also for p = 1.
"""

from typing import Any, NamedTuple

from fastsoftmax.kernels.capped import variance_of_terms
from fastsoftmax.kernels.elementary import two_sum
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.losses import (
    CrossEntropyOptions,
    labelled_derivatives,
    labelled_loss,
    scatter_targets,
    store_gradient,
)
from fastsoftmax.kernels.scalar import log_as_pair, power_scaled_down, times_power
from fastsoftmax.kernels.simd.memory import lane_count, memory, scratch
from fastsoftmax.kernels.simd.rows import row_value
from fastsoftmax.kernels.simd.values import muladd, number, select_equal, select_less
from fastsoftmax.kernels.traversal import (
    Picks,
    complement,
    log_of_others,
    probability,
    reciprocal,
    spared,
    terms_of_others,
    total,
    traverse,
)
from fastsoftmax.machine.entry import Block, Count, Flag, Floats, Integers, MaybeBlock, Number, Room

TINY = 2.0**-60
"""For s' below TINY, L and q are the same number."""


class FocalCurveOptions(NamedTuple):
    """Labels and the entries there, the factors of the rows, and gamma."""

    picks: Any
    weights: Any
    gamma: Any


class Focus(NamedTuple):
    """p, q and L of the labels, L/q, and q**gamma as a factor and a power of two."""

    p: Any
    q: Any
    loss: Any
    ratio: Any
    power: Any
    factor: Any


@inline
def _focus(target: Any, stats: Any, gamma: Any) -> Focus:
    zero, one = number(target, 0.0), number(target, 1.0)
    inverse = reciprocal(stats)
    p = probability(target, None, stats, inverse)
    others, others_low = terms_of_others(stats)
    whole, whole_low = total(stats)
    rest, rest_low = two_sum(one, -p)
    q = select_equal(target, stats.m, complement(stats, inverse), rest)
    # log q: the logarithm of 0 is replaced by that of its units, which makes a power of 0 below
    above, above_low = (
        select_equal(target, stats.m, others, rest),
        select_equal(target, stats.m, others_low, rest_low),
    )
    below, below_low = select_equal(target, stats.m, whole, one), select_equal(target, stats.m, whole_low, zero)
    high, low = log_as_pair(select_equal(above, zero, one, above), above_low)
    base, base_low = log_as_pair(below, below_low)
    high, error = two_sum(high, -base)
    power, factor = power_scaled_down(high, error + (low - base_low), gamma)
    factor = select_equal(above, zero, select_equal(gamma + zero, zero, one, zero), factor)
    log_high, log_low = log_of_others(stats)
    loss = (stats.m - target) + (log_high + log_low)
    tiny = select_equal(target, stats.m, log_high, one)
    ratio = select_less(tiny, number(target, TINY), one, loss / select_equal(q, zero, one, q))
    return Focus(p, q, loss, ratio, power, factor)


@inline
def _factors_of(focus: Any, weight: Any, gamma: Any) -> Any:
    """The weights of the cross-entropy and of its gradient that make the focal loss and its gradient of them."""
    of_loss = spared(weight, times_power(weight * focus.factor, focus.power))
    share = spared(focus.p, focus.p * focus.ratio)
    return of_loss, spared(weight, of_loss * muladd(gamma, share, number(focus.p, 1.0)))


@inline
def focal_factors(target: Any, stats: Any, weight: Any, gamma: Any) -> Any:
    """`_factors_of` rows with these entries at the labels."""
    return _factors_of(_focus(target, stats, gamma), weight, gamma)


@kernel(small=True)
def focal_loss(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    labels: Integers,
    weights: Floats,
    y: MaybeBlock,
    rows: Floats,
    scale: Number,
    scale_low: Number,
    gamma: Number,
    summed: Flag,
) -> float:
    """rows = -weights (1 - p)**gamma log p of the labels; y, unless None, = scale times its gradient.

    `summed` is that of `losses.cross_entropy`.
    """
    data, grad, results = memory(x), memory(y), memory(rows)
    picks = Picks(memory(labels), scratch(data, 2))
    options = CrossEntropyOptions(picks, memory(weights), scale, scale_low, focal_factors, gamma)
    loss: float = labelled_loss(start, stop, x.shape, memory(room), data, grad, results, options, summed)
    return loss


@inline
def _store_curve(x: Any, y: Any, place: Any, stats: Any, picks: Any, weights: Any, gamma: Any) -> Any:
    """y = the diagonal of the Hessian; x holds the terms of the rows.

    Returns the entries at the labels, and the weights of the rows and of their gradients.
    """
    offset, length, folded, row, count = place
    zero, one = number(x, 0.0), number(x, 1.0)
    target = row_value(x, folded, picks.targets, 0, count)
    weight = row_value(x, folded, weights, row, count)
    focus = _focus(target, stats, gamma)
    p, q, loss, ratio, _, _ = focus
    heavy, first = _factors_of(focus, weight, gamma)
    share, entropy = spared(p, p * ratio), spared(p, p * loss)
    bend = spared(p, p * (number(x, 2.0) - loss)) + (gamma - one) * (p * share)
    second = select_equal(q, zero, zero, gamma * bend * (heavy / q))
    variance_of_terms(x, y, place, stats, weight, first, second)
    inner = muladd((gamma + gamma + one) * q, p, gamma * entropy * muladd(gamma, p, -q))
    at_label = spared(weight, heavy * inner)
    stride = 1 if folded is not None else lane_count(x)
    scatter_targets(y, offset, picks.labels, row, count, stride, length // stride, scratch(x, 1), at_label)
    return target, weight, first


@inline
def focal_variance_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """The diagonal of the Hessian; x holds the terms of the rows."""
    _store_curve(x, y, place, stats, options.picks, options.weights, options.gamma)


@kernel
def focal_variance(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    labels: Integers,
    weights: Floats,
    y: Block,
    gamma: Number,
) -> None:
    """y = weights times the diagonal of the Hessian of the focal loss."""
    data, result = memory(x), memory(y)
    picks = Picks(memory(labels), scratch(data, 2))
    options = FocalCurveOptions(picks, memory(weights), gamma)
    shape, tile = x.shape, memory(room)
    traverse(
        focal_variance_block, start, stop, shape, tile, data, None, result, None, options, picks=picks, keep=True
    )


@inline
def focal_derivatives_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """v = the diagonal of the Hessian, y = the gradient; x holds the terms of the rows."""
    target, weight, steep = _store_curve(x, v, place, stats, options.picks, options.weights, options.gamma)
    store_gradient(x, y, place, stats, target, weight, steep, options)


@kernel
def focal_derivatives(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    labels: Integers,
    weights: Floats,
    y: Block,
    diagonal: Block,
    gamma: Number,
) -> None:
    """y and diagonal = the gradient and the diagonal of the Hessian of the sum of the losses."""
    labelled_derivatives(focal_derivatives_block, start, stop, room, x, labels, weights, y, diagonal, gamma)
