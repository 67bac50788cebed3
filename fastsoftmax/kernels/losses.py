r"""Cross-entropy and squared error of the rows of a block, with their gradients.

With p = softmax(x), m the greatest logit and s' as in `traversal.others`:

- cross-entropy with label t: L = (m - x_t) + log(1 + s'), two terms of one sign; gradient p - onehot(t), at a
  greatest entry -s'/(1 + s') instead of p - 1;
- cross-entropy with a distribution y: L = sum_j y_j (m - x_j) + sum(y) log(1 + s'), where y_j = 0 adds 0 even if
  the logit is infinite; gradient p sum(y) - y, at a greatest entry (sum(y) - y) - sum(y) s'/(1 + s');
- squared error to t: L = 1/2 sum_j (p_j - t_j)^2; gradient p (d - p.d) with d = p - t.

A weight for each row multiplies loss and gradient; both are 0 where the weight is 0, even if the row holds NaN.
The gradients of a mean are multiplied by 1/divisor as a pair, so that they are rounded once.
"""

from typing import Any, NamedTuple

from fastsoftmax.kernels.derivatives import (
    Errors,
    centred_direction,
    direction,
    product_of_logits,
    softmax_variance_block,
)
from fastsoftmax.kernels.elementary import two_sum
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
    store_scalar,
)
from fastsoftmax.kernels.simd.reduce import fold_two_sum
from fastsoftmax.kernels.simd.rows import class_value, lane_labels, one_hot, row_value
from fastsoftmax.kernels.simd.values import (
    absolute,
    broadcast,
    filled,
    if_none,
    muladd,
    number,
    select_equal,
    select_less,
    truncate,
    unless_none,
)
from fastsoftmax.kernels.traversal import (
    ONE_HOT_LIMIT,
    Picks,
    add,
    complement,
    entries,
    exponent_of,
    filler,
    greatest_of,
    label_of,
    load_last,
    log_of_others,
    log_of_sum,
    probability,
    probability_by,
    probability_of,
    reciprocal,
    spared,
    store_last,
    traverse,
    two_to_the,
    weighted,
)
from fastsoftmax.machine.entry import Block, Count, Flag, Floats, Integers, MaybeBlock, MaybeIntegers, Number, Room

INF = float("inf")
NAN = float("nan")
TINY = 2.0**-60
"""For s below TINY, log(1 + s) and s/(1 + s) are the same number."""


class CrossEntropyOptions(NamedTuple):
    """Labels and the entries there, the row weights, and the factor of the gradients as a pair.

    `factors` is None, or a function ``factors(target, stats, weight, gamma)`` that returns the weight of the loss
    and that of the gradient of each row (`focal`).
    """

    picks: Any
    weights: Any
    scale: Any
    scale_low: Any
    factors: Any
    gamma: Any


class Shares(NamedTuple):
    """The numbers from which `_share` computes the shares of the classes."""

    labels: Any
    class_weights: Any
    base: Any
    gain: Any
    lengths: Any
    """For segments, how many classes they have; None if all rows of a block have equally many."""


class SoftOptions(NamedTuple):
    """The shares, and the factor of the square of the log-sum-exp; the other fields as in `CrossEntropyOptions`.

    `z_loss` is None if there is no such term.
    """

    shares: Any
    weights: Any
    scale: Any
    scale_low: Any
    z_loss: Any


class SquaredErrorOptions(NamedTuple):
    """As in `CrossEntropyOptions`; `keep` is that of `traverse`."""

    weights: Any
    scale: Any
    scale_low: Any
    keep: Any


@inline
def scatter_targets(
    y: Any, offset: int, labels: Any, row: int, count: int, stride: int, classes: int, room: Any, value: Any
) -> None:
    """Store `value`, which has a lane for each row, in y at the labels of the rows."""
    store(room, 0, broadcast(value))
    for lane in range(count):
        at = label_of(labels, row + lane, classes) * stride + lane
        store_scalar(y, offset + at, load_scalar(room, lane))


@inline
def tiny_loss(stats: Any, weight: Any, log_rest: Any, value: Any) -> Any:
    """weight log(1 + s'): `value`, but from `complement` if |weight| > 1 and s' may be no normal number."""
    zero, one = number(log_rest, 0.0), number(log_rest, 1.0)
    heavy = weighted(reciprocal(stats), weight, zero, zero)
    lifted = select_less(one, absolute(weight), complement(stats, heavy), value)
    return select_less(log_rest, number(log_rest, TINY), lifted, value)


@inline
def loss_at(target: Any, stats: Any, weight: Any, weights: Any) -> Any:
    """-weight log p of the entry at the label; `weights` has size 0 if all weights are 1."""
    m = stats.m
    high, low = log_of_others(stats)
    value = weight * ((m - target) + (high + low))
    if size(weights) > 0:  # else `tiny_loss` returns `value`
        value = select_equal(target, m, tiny_loss(stats, weight, high, value), value)
    return spared(weight, value)


@inline
def slope_at(like: Any, target: Any, stats: Any, weight: Any, scale: Any, scale_low: Any) -> Any:
    """scale weight (p - 1): the gradient at the label."""
    plain = reciprocal(stats)
    factor, factor_low = weight * scale, weight * scale_low
    slope = probability(target, None, stats, plain) - number(like, 1.0)
    inside = muladd(slope, factor, slope * factor_low)
    heavy = weighted(plain, factor, factor_low, number(like, 0.0))
    return spared(weight, select_equal(target, stats.m, -complement(stats, heavy), inside))


@inline
def scaled_reciprocal(stats: Any, weight: Any, scale: Any, scale_low: Any) -> Any:
    """`reciprocal` times scale weight, for scale weight p: the gradient at entries other than the label."""
    plain = reciprocal(stats)
    return weighted(plain, weight * scale, weight * scale_low, number(weight, 0.0))


@inline
def scaled_probs(
    x: Any, y: Any, offset: int, length: int, stats: Any, inverse: Any, weight: Any, keep: Any
) -> None:
    """y = the probabilities times the weight in `inverse`, 0 where `weight` is 0; `keep` as in `filler`."""
    step = lane_count(x)
    full = length // step * step
    last = load_last(x, offset, length, filler(x, keep))  # before a result is stored there
    for k in range(0, full, step):
        p = probability_by(load(x, offset + k), None, stats, inverse, keep)
        store(y, offset + k, spared(weight, p))
    if full < length:
        p = probability_by(last, None, stats, inverse, keep)
        store_last(y, offset, length, spared(weight, p))


@inline
def cross_entropy_head(x: Any, stats: Any, first: int, count: int, rows: Any, options: Any) -> Any:
    """Store the losses of a group of rows, and the gradients at their labels in place of the entries there."""
    target = load(options.picks.targets, lane_count(x))
    weight = row_value(x, None, options.weights, first, count)
    weight, steep = row_factors(options.factors, options.gamma, target, stats, weight)
    store_part(rows, first, count, broadcast(loss_at(target, stats, weight, options.weights)))
    return _gradient_head(stats.inverse, x, target, stats, steep, options)


@inline
def row_factors(factors: Any, gamma: Any, target: Any, stats: Any, weight: Any) -> Any:
    """The weights of a row's loss and of its gradient."""
    if factors is None:
        return weight, weight
    return factors(target, stats, weight, gamma)


@inline
def _gradient_head(inverse: Any, x: Any, target: Any, stats: Any, weight: Any, options: Any) -> Any:
    if inverse is None:
        return inverse
    ready, slope = _gradient_numbers(x, target, stats, weight, options)
    store(options.picks.targets, lane_count(x), slope)
    return ready


@inline
def _gradient_numbers(x: Any, target: Any, stats: Any, steep: Any, options: Any) -> Any:
    """The `Reciprocal` times the weight of the gradient, and the gradient at the label."""
    scale, scale_low = options.scale, options.scale_low
    inverse = scaled_reciprocal(stats, steep, scale, scale_low)
    return inverse, slope_at(x, target, stats, steep, scale, scale_low)


@inline
def _loss_and_slope(log: Any, x: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> Any:
    """The `Reciprocal` and the gradient at the label, after the loss has been stored.

    If `log` is not None, `cross_entropy_head` has done all that.
    """
    weights = options.weights
    target = row_value(x, place.folded, options.picks.targets, 0, place.count)
    if log is not None:
        return stats.inverse, target
    weight = row_value(x, place.folded, weights, place.row, place.count)
    weight, steep = row_factors(options.factors, options.gamma, target, stats, weight)
    store_part(rows, place.row, place.count, broadcast(loss_at(target, stats, weight, weights)))
    if y is None:
        return stats.inverse, target
    return _gradient_numbers(x, target, stats, steep, options)


@inline
def _store_slopes(
    x: Any, y: Any, place: Any, stats: Any, labels: Any, inverse: Any, slope: Any, weight: Any
) -> None:
    """y = the probabilities times the weight in `inverse`, and `slope` at the labels; x holds the terms."""
    offset, length, folded, row, count = place
    step = lane_count(x)
    stride = 1 if folded is not None else step
    classes = length // stride
    if folded is None and classes <= ONE_HOT_LIMIT:
        label = lane_labels(x, labels, row, count)
        index = broadcast(number(x, 0.0))
        for k in range(0, length, step):
            p = spared(weight, probability_of(load(x, offset + k), inverse))
            store(y, offset + k, select_equal(label, index, slope, p))
            index = index + number(x, 1.0)
        return
    scaled_probs(x, y, offset, length, stats, inverse, weight, True)
    scatter_targets(y, offset, labels, row, count, stride, classes, scratch(x, 1), slope)


@inline
def store_gradient(
    x: Any, y: Any, place: Any, stats: Any, target: Any, weight: Any, steep: Any, options: Any
) -> None:
    """y = the gradient of rows with the entries `target` at the labels; x holds the terms.

    `weight` and `steep` are the weights of the rows and of their gradients.
    """
    inverse, slope = _gradient_numbers(x, target, stats, steep, options)
    _store_slopes(x, y, place, stats, options.picks.labels, inverse, slope, weight)


@inline
def cross_entropy_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """Loss and gradient for labels. If there is a gradient, x holds the terms of the rows."""
    inverse, slope = _loss_and_slope(stats.log, x, y, place, stats, rows, options)
    if y is not None:
        weight = row_value(x, place.folded, options.weights, place.row, place.count)
        _store_slopes(x, y, place, stats, options.picks.labels, inverse, slope, weight)


@inline
def labelled_loss(
    start: int, stop: int, shape: Any, room: Any, x: Any, y: Any, rows: Any, options: Any, summed: Any
) -> Any:
    """The walk of `cross_entropy_block`; y is None without a gradient. `summed` is that of `cross_entropy`."""
    if summed and _first_outside(options.picks.labels, start, stop, shape[1]) >= 0:
        return -1.0
    traverse(
        cross_entropy_block,
        start,
        stop,
        shape,
        room,
        x,
        None,
        y,
        rows,
        options,
        picks=options.picks,
        keep=y,
        few=True,
        inverse=y,
        log=True,
        head=cross_entropy_head,
        apart=True,
    )
    return sum_of(after(rows, start), stop - start) if summed else 0.0


@inline
def _first_outside(labels: Any, start: int, stop: int, classes: int) -> int:
    """The first of rows start .. stop whose label is not from 0 to classes - 1; -1 if there is none."""
    for row in range(start, stop):
        label = load_scalar(labels, row)
        if label < 0 or label >= classes:
            return row
    return -1


@kernel
def first_outside(labels: Integers, classes: Count) -> float:
    """The number of the first label that is out of range; -1 if there is none."""
    targets = memory(labels)
    return float(_first_outside(targets, 0, size(targets), classes))


@kernel(small=True)
def cross_entropy(
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
    summed: Flag,
) -> float:
    """rows = -weights log p[label]; y, unless None, = scale weights (p - onehot(label)).

    `summed` is for small calls: then the kernel returns the sum of `rows`; but if a label is out of range, it
    returns -1 and writes nothing. For rows of ten classes this takes 6 % of the time.
    """
    data, targets, factors, grad, results = memory(x), memory(labels), memory(weights), memory(y), memory(rows)
    picks = Picks(targets, scratch(data, 2))
    options = CrossEntropyOptions(picks, factors, scale, scale_low, None, None)
    loss: float = labelled_loss(start, stop, x.shape, memory(room), data, grad, results, options, summed)
    return loss


@inline
def derivatives_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """v = the diagonal of the Hessian, y = the gradient for labels; x holds the terms of the rows."""
    softmax_variance_block(x, None, v, place, stats, None, options.weights)
    target = row_value(x, place.folded, options.picks.targets, 0, place.count)
    weight = row_value(x, place.folded, options.weights, place.row, place.count)
    store_gradient(x, y, place, stats, target, weight, weight, options)


@inline
def labelled_derivatives(
    block: Any,
    start: int,
    stop: int,
    room: Any,
    x: Any,
    labels: Any,
    weights: Any,
    y: Any,
    diagonal: Any,
    gamma: Any,
) -> None:
    """The walk of `block`, which writes gradient and diagonal of the Hessian. A focal loss has `gamma`."""
    data, grad, second = memory(x), memory(y), memory(diagonal)
    picks, shape, tile = Picks(memory(labels), scratch(data, 2)), x.shape, memory(room)
    options = CrossEntropyOptions(picks, memory(weights), number(data, 1.0), number(data, 0.0), None, gamma)
    traverse(
        block,
        start,
        stop,
        shape,
        tile,
        data,
        second,
        grad,
        None,
        options,
        picks=picks,
        keep=True,
        inverse=True,
        log=unless_none(gamma, True),
        second=True,
    )


@kernel
def cross_entropy_derivatives(
    start: Count, stop: Count, room: Room, x: Block, labels: Integers, weights: Floats, y: Block, diagonal: Block
) -> None:
    """y = weights (p - onehot(label)), diagonal = weights p (1 - p): derivatives of the sum of the losses."""
    labelled_derivatives(derivatives_block, start, stop, room, x, labels, weights, y, diagonal, None)


# --- distributions ------------------------------------------------------------------------------------------
#
# All other targets are a share for each class, share_j = w_j (base + gain y_j): w are the class weights, base and
# gain come from label smoothing, and y is the distribution or the one-hot form of the label.


@inline
def _class_weight(lengths: Any, folded: Any, x: Any, weights: Any, k: int, lanes: int) -> Any:
    """The class weights of a vector. In a tile of segments they are 1, and 0 behind the end of shorter ones."""
    if lengths is None:
        return broadcast(class_value(x, folded, weights, k, lanes))
    return select_less(number(x, float(k // lane_count(x))), lengths, broadcast(number(x, 1.0)), number(x, 0.0))


@inline
def _share(x: Any, v: Any, offset: int, k: int, lanes: int, folded: Any, row: int, count: int, mix: Any) -> Any:
    """The shares of the vector at place k of a block; 0 in the lanes from `lanes` on."""
    labels, weights, base, gain, lengths = mix
    weight = _class_weight(if_none(folded, lengths), folded, x, weights, k, lanes)
    if v is None:
        return weight * muladd(one_hot(x, folded, labels, row, count, k), gain, base)
    return weight * muladd(load_part(v, offset + k, lanes, number(x, 0.0)), gain, base)


@inline
def _crest(m: Any, lacking: Any) -> Any:
    """The greatest entry if its probability is above 1/2, where 1 - p has a smaller error than p; else NaN."""
    return select_less(lacking, number(m, 0.5), m, number(m, NAN))


@inline
def _soft_slope(
    value: Any, share: Any, p: Any, crest: Any, lacking: Any, whole: Any, whole_low: Any, unit: Any
) -> Any:
    """p sum(shares) - share, and (sum(shares) - share) - (1 - p) sum(shares) at the crest, both times `unit`.

    p and `lacking` (1 - p) are already multiplied by the sum and by `unit`.
    """
    above = (whole - share) + whole_low
    return select_equal(value, crest, muladd(above, unit, -lacking), muladd(-share, unit, p))


@inline
def soft_cross_entropy_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """`soft_cross_entropy_rows`, without weights in its loops if there are none, which saves 6 %."""
    (labels, class_weights, base, gain, _), weights, scale, scale_low, z_loss = options
    if size(class_weights) == 0 and size(weights) == 0:
        plain = SoftOptions(Shares(labels, None, base, gain, None), None, scale, scale_low, z_loss)
        soft_cross_entropy_rows(x, v, y, place, stats, rows, plain)
    else:
        soft_cross_entropy_rows(x, v, y, place, stats, rows, options)


@inline
def _add_z_loss(z_loss: Any, stats: Any, weight: Any, loss: Any, whole: Any, whole_low: Any) -> Any:
    """The loss plus weight z lse**2, and the sum of the shares plus 2 z lse, a pair; unchanged if z is None.

    They are also unchanged if z is 0, whatever the log-sum-exp: it may be -inf or NaN.
    """
    if z_loss is None or z_loss == 0:
        return loss, whole, whole_low
    lse = log_of_sum(stats)
    product = z_loss * lse
    more, error = two_sum(whole, product + product)
    return muladd(weight, product * lse, loss), more, whole_low + error


@inline
def _weight_with_label(v: Any, z_loss: Any, mix: Any, scale: Any, whole: Any, weight: Any) -> Any:
    """The weight of a row; 0 if its label has class weight 0 and nothing else a share, as in `cross_entropy`.

    A z-loss counts in such a row, and a mean that is 0/0 is NaN there.
    """
    counted = filled(whole, 1.0)
    labelled = v is None and mix.class_weights is not None
    if z_loss is not None and labelled and mix.base == 0.0 and z_loss == 0.0 and scale == scale:
        counted = whole
    return spared(counted, weight)


@inline
def soft_cross_entropy_rows(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """Loss and gradient for shares: sum_j share_j (m - x_j) + sum(share) log(1 + s'), p sum(share) - share.

    There is no gradient if y is None or has size 0. With a z-loss, z lse**2 is added to the loss and 2 z lse p to
    the gradient: as if sum(share) were larger there.
    """
    offset, length, folded, row, count = place
    mix, row_weights, scale, scale_low, z_loss = options
    m = stats.m
    high, low = log_of_others(stats)
    log_rest = high + low
    greatest = muladd(log_rest, number(x, 0.0), m)  # NaN if the row has one, for all shares
    step = lane_count(x)
    full = length // step * step
    zero = broadcast(number(x, 0.0))
    losses = (zero, zero)
    shares = (zero, zero)
    for k in range(0, full, step):
        share = _share(x, v, offset, k, step, folded, row, count, mix)
        shares = add(shares, share)
        losses = add(losses, spared(share, share * (greatest - load(x, offset + k))))
    if full < length:
        share = _share(x, v, offset, full, length - full, folded, row, count, mix)
        last = load_part(x, offset + full, length - full, number(x, -INF))
        shares = add(shares, share)
        losses = add(losses, spared(share, share * (greatest - last)))
    loss, loss_low = fold_two_sum(folded, losses[0], losses[1])
    loss = select_equal(loss_low, loss_low, loss + loss_low, loss)  # the error of inf is nan
    high, low = fold_two_sum(folded, shares[0], shares[1])
    whole, whole_low = two_sum(high, low)
    weight = row_value(x, folded, row_weights, row, count)
    weight = _weight_with_label(v, z_loss, mix, scale, whole, weight)
    heavy_share = weight * whole
    common = tiny_loss(stats, heavy_share, log_rest, heavy_share * log_rest)
    loss = muladd(weight, loss, spared(whole, common))
    loss, whole, whole_low = _add_z_loss(z_loss, stats, weight, loss, whole, whole_low)
    store_part(rows, row, count, broadcast(spared(weight, loss)))
    if y is not None:
        if size(y) == 0:
            return
        inverse = reciprocal(stats)
        crest = _crest(m, complement(stats, inverse))
        factor, factor_low = weight * scale, weight * scale_low
        power = exponent_of(factor)  # this part first, so that no p is flushed
        unit, less = two_to_the(power), two_to_the(-power)
        factor, factor_low = factor * less, factor_low * less
        heavy = weighted(inverse, whole, whole_low, power)
        lacking = complement(stats, heavy)
        for k in range(0, full, step):
            value = load(x, offset + k)
            share = _share(x, v, offset, k, step, folded, row, count, mix)
            p = probability(value, None, stats, heavy)
            slope = _soft_slope(value, share, p, crest, lacking, whole, whole_low, unit)
            store(y, offset + k, spared(weight, muladd(slope, factor, slope * factor_low)))
        if full < length:
            last = load_part(x, offset + full, length - full, number(x, -INF))
            share = _share(x, v, offset, full, length - full, folded, row, count, mix)
            p = probability(last, None, stats, heavy)
            slope = _soft_slope(last, share, p, crest, lacking, whole, whole_low, unit)
            slope = spared(weight, muladd(slope, factor, slope * factor_low))
            store_part(y, offset + full, length - full, slope)


@kernel(unless=lambda targets, labels, **_: targets == labels)
def soft_cross_entropy(
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
) -> None:
    """rows = -weights sum_j share_j log p_j; y, unless None, = scale weights (p sum(share) - share).

    share_j = class_weights_j (base + gain y_j), where y is `targets`, or the one-hot labels if `targets` is None.
    """
    shares = Shares(memory(labels), memory(class_weights), base, gain, None)
    options = SoftOptions(shares, memory(weights), scale, scale_low, None)
    shape, tile = x.shape, memory(room)
    data, v, grad, results = memory(x), memory(targets), memory(y), memory(rows)
    block = soft_cross_entropy_block
    traverse(block, start, stop, shape, tile, data, v, grad, results, options, inverse=grad, log=True)


@inline
def squared_error_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """Loss and gradient of the squared error: 1/2 sum d**2, and the product of `derivatives` with d = p - t.

    d is multiplied by about the root of the weight before it is squared, so that no square underflows too soon.
    Error, in units of the last place of the loss: d is within 2 eps of p + |t|, its square within twice that.
    """
    _, _, folded, row, count = place
    weights, scale, scale_low, keep = options
    inverse = reciprocal(stats)
    lacking = complement(stats, inverse)
    crest = select_less(lacking, number(x, 0.25), greatest_of(stats.m, keep), number(x, NAN))
    errors = Errors(stats, inverse, crest, lacking)
    weight = row_value(x, folded, weights, row, count)
    power = truncate(exponent_of(weight) * number(x, 0.5))
    unit = two_to_the(power)
    if y is None:
        squares = error_squares(x, v, place, keep, errors, unit)
    else:
        centre, squares = centred_direction(x, v, place, stats, None, keep, errors, unit)
        factor = weight * scale, weight * scale_low
        product_of_logits(x, v, y, place, stats, None, keep, errors, centre, weight, factor)
    loss = number(x, 0.5) * (squares[0] + squares[1])
    loss = loss * ((weight * two_to_the(-power)) * two_to_the(-power))
    store_part(rows, row, count, broadcast(spared(weight, loss)))


@inline
def error_squares(x: Any, v: Any, place: Any, keep: Any, errors: Any, unit: Any) -> Any:
    """sum_j (d_j unit)**2 as a pair."""
    offset, length, folded, _, _ = place
    step = lane_count(x)
    full = length // step * step
    zero = broadcast(number(x, 0.0))
    squares = (zero, zero)
    for k in range(0, full, step):
        d = direction(entries(x, offset + k, None, keep), load(v, offset + k), errors, keep) * unit
        squares = add(squares, d * d)
    if full < length:
        last = entries(x, offset + full, length - full, keep)
        d = direction(last, load_part(v, offset + full, length - full, number(x, 0.0)), errors, keep) * unit
        squares = add(squares, d * d)
    return fold_two_sum(folded, squares[0], squares[1])


@kernel
def squared_error(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    targets: Block,
    weights: Floats,
    y: MaybeBlock,
    rows: Floats,
    over: Flag,
    scale: Number,
    scale_low: Number,
) -> None:
    """rows = weights/2 |p - targets|^2; y, unless None, = scale times its gradient.

    `over` is that of `traverse`: whether y lies over the targets.
    """
    data, v, grad, results, tile = memory(x), memory(targets), memory(y), memory(rows), memory(room)
    keep, block = unless_none(grad, True), squared_error_block
    options = SquaredErrorOptions(memory(weights), scale, scale_low, keep)
    shape = x.shape
    traverse(block, start, stop, shape, tile, data, v, grad, results, options, keep=keep, over=over, inverse=True)
