r"""Cross-entropy and squared error of the rows of a block, with their gradients.

With p = softmax(x), m the greatest logit and s' as in `traversal.others`:

- cross-entropy of label t: L = (m - x_t) + log(1 + s'), two terms of one sign; gradient p - onehot(t), at a
  greatest entry -s'/(1 + s') instead of p - 1;
- of a distribution y: L = sum_j y_j ((m - x_j) + log(1 + s')), where y_j = 0 counts for nothing even against
  an infinite logit; gradient p sum(y) - y, at a greatest entry (sum(y) - y) - sum(y) s'/(1 + s');
- squared error to t: L = 1/2 sum_j (p_j - t_j)^2; gradient p (d - p.d) with d = p - t.

Gradients are multiplied by a weight, given as a pair so that a mean over n rows rounds once.
"""

from typing import Any

from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.traversal import (
    add,
    log_of_others,
    probability,
    reciprocal,
    remainder,
    statistics,
    traverse,
    weighted,
)
from fastsoftmax.kernels.vector import (
    broadcast,
    fold_two_sum,
    lane_count,
    load,
    load_part,
    load_scalar,
    memory,
    muladd,
    number,
    scratch,
    select_equal,
    store,
    store_part,
    store_scalar,
)

INF = float("inf")


@inline
def _label(labels: Any, row: int, classes: int) -> Any:
    """A label that is surely inside its row: read once, and 0 if it is not (the caller has checked it)."""
    label = load_scalar(labels, row)
    return label if 0 <= label < classes else 0


@inline
def cross_entropy_block(
    x: Any,
    v: Any,
    y: Any,
    offset: int,
    length: int,
    folded: Any,
    rows: Any,
    row: int,
    count: int,
    options: Any,
) -> None:
    """Loss and gradient for labels."""
    labels, weight, weight_low = options
    m, shift, bias, top, ties, rest, rest_low = statistics(x, offset, length, folded, None)
    step = lane_count(x)
    stride = 1 if folded is not None else step
    classes = length // stride
    chosen = scratch(x, 1)
    store(chosen, 0, broadcast(number(x, 0.0)))
    for lane in range(count):
        at = _label(labels, row + lane, classes) * stride + lane
        store_scalar(chosen, lane, load_scalar(x, offset + at))
    target = load(chosen, 0)
    store_part(rows, row, count, (m - target) + log_of_others(top, ties, rest, rest_low))
    if y is not None:
        inverse = weighted(reciprocal(top, ties, rest, rest_low), weight, weight_low)
        lacking = remainder(top, ties, rest, rest_low)
        inside = probability(target, None, shift, bias, reciprocal(top, ties, rest, rest_low))
        slope = select_equal(target, m, -lacking, inside - number(x, 1.0))
        store(chosen, 0, muladd(slope, weight, slope * weight_low))
        full = length // step * step
        for k in range(0, full, step):
            store(y, offset + k, probability(load(x, offset + k), None, shift, bias, inverse))
        if full < length:
            last = load_part(x, offset + full, length - full, number(x, -INF))
            store_part(y, offset + full, length - full, probability(last, None, shift, bias, inverse))
        for lane in range(count):
            at = _label(labels, row + lane, classes) * stride + lane
            store_scalar(y, offset + at, load_scalar(chosen, lane))


@kernel
def cross_entropy(
    start: int, stop: int, room: Any, x: Any, labels: Any, y: Any, rows: Any, weight: Any, weight_low: Any
) -> None:
    """rows = -log p[label]; y, unless None, = weight (p - onehot(label))."""
    options = (memory(labels), weight, weight_low)
    traverse(
        cross_entropy_block,
        start,
        stop,
        x.shape,
        memory(room),
        memory(x),
        None,
        memory(y),
        memory(rows),
        options,
    )


@inline
def _surprise(value: Any, share: Any, m: Any, log_rest: Any) -> Any:
    """-y_j log p_j, with 0 for y_j = 0."""
    zero = number(value, 0.0)
    return select_equal(share, zero, zero, share * ((m - value) + log_rest))


@inline
def _soft_gradient(value: Any, share: Any, m: Any, lacking: Any, whole: Any, p: Any) -> Any:
    """p sum(y) - y, with 1 - p in place of p at a greatest entry."""
    total, total_low = whole
    inside = muladd(p, total, -share) + p * total_low
    at_top = muladd(-lacking, total, (total - share) + total_low)
    return select_equal(value, m, at_top, inside)


@inline
def soft_cross_entropy_block(
    x: Any,
    v: Any,
    y: Any,
    offset: int,
    length: int,
    folded: Any,
    rows: Any,
    row: int,
    count: int,
    options: Any,
) -> None:
    """Loss and gradient for distributions."""
    weight, weight_low = options
    m, shift, bias, top, ties, rest, rest_low = statistics(x, offset, length, folded, None)
    log_rest = log_of_others(top, ties, rest, rest_low)
    step = lane_count(x)
    full = length // step * step
    zero = broadcast(number(x, 0.0))
    losses = (zero, zero)
    shares = (zero, zero)
    for k in range(0, full, step):
        share = load(v, offset + k)
        shares = add(shares, share)
        losses = add(losses, _surprise(load(x, offset + k), share, m, log_rest))
    if full < length:
        share = load_part(v, offset + full, length - full, number(x, 0.0))
        last = load_part(x, offset + full, length - full, number(x, -INF))
        shares = add(shares, share)
        losses = add(losses, _surprise(last, share, m, log_rest))
    loss, loss_low = fold_two_sum(folded, losses[0], losses[1])
    store_part(rows, row, count, broadcast(select_equal(loss_low, loss_low, loss + loss_low, loss)))
    if y is not None:
        inverse = reciprocal(top, ties, rest, rest_low)
        lacking = remainder(top, ties, rest, rest_low)
        whole = fold_two_sum(folded, shares[0], shares[1])
        for k in range(0, full, step):
            value = load(x, offset + k)
            p = probability(value, None, shift, bias, inverse)
            slope = _soft_gradient(value, load(v, offset + k), m, lacking, whole, p)
            store(y, offset + k, muladd(slope, weight, slope * weight_low))
        if full < length:
            last = load_part(x, offset + full, length - full, number(x, -INF))
            share = load_part(v, offset + full, length - full, number(x, 0.0))
            p = probability(last, None, shift, bias, inverse)
            slope = _soft_gradient(last, share, m, lacking, whole, p)
            store_part(y, offset + full, length - full, muladd(slope, weight, slope * weight_low))


@kernel
def soft_cross_entropy(
    start: int, stop: int, room: Any, x: Any, targets: Any, y: Any, rows: Any, weight: Any, weight_low: Any
) -> None:
    """rows = -sum_j targets_j log p_j; y, unless None, = weight (p sum(targets) - targets)."""
    traverse(
        soft_cross_entropy_block,
        start,
        stop,
        x.shape,
        memory(room),
        memory(x),
        memory(targets),
        memory(y),
        memory(rows),
        (weight, weight_low),
    )


@inline
def squared_error_block(
    x: Any,
    v: Any,
    y: Any,
    offset: int,
    length: int,
    folded: Any,
    rows: Any,
    row: int,
    count: int,
    options: Any,
) -> None:
    """Loss and gradient of the squared error."""
    weight, weight_low = options
    _, shift, bias, top, ties, rest, rest_low = statistics(x, offset, length, folded, None)
    inverse = reciprocal(top, ties, rest, rest_low)
    step = lane_count(x)
    full = length // step * step
    zero = broadcast(number(x, 0.0))
    squares = (zero, zero)
    dots = (zero, zero)
    for k in range(0, full, step):
        p = probability(load(x, offset + k), None, shift, bias, inverse)
        difference = p - load(v, offset + k)
        squares = add(squares, difference * difference)
        dots = add(dots, p * difference)
    if full < length:
        last = load_part(x, offset + full, length - full, number(x, -INF))
        p = probability(last, None, shift, bias, inverse)
        difference = p - load_part(v, offset + full, length - full, number(x, 0.0))
        squares = add(squares, difference * difference)
        dots = add(dots, p * difference)
    square, square_low = fold_two_sum(folded, squares[0], squares[1])
    store_part(rows, row, count, broadcast(number(x, 0.5) * (square + square_low)))
    if y is not None:
        dot, dot_low = fold_two_sum(folded, dots[0], dots[1])
        for k in range(0, full, step):
            p = probability(load(x, offset + k), None, shift, bias, inverse)
            slope = p * (((p - load(v, offset + k)) - dot) - dot_low)
            store(y, offset + k, muladd(slope, weight, slope * weight_low))
        if full < length:
            last = load_part(x, offset + full, length - full, number(x, -INF))
            p = probability(last, None, shift, bias, inverse)
            share = load_part(v, offset + full, length - full, number(x, 0.0))
            slope = p * (((p - share) - dot) - dot_low)
            store_part(y, offset + full, length - full, muladd(slope, weight, slope * weight_low))


@kernel
def squared_error(
    start: int, stop: int, room: Any, x: Any, targets: Any, y: Any, rows: Any, weight: Any, weight_low: Any
) -> None:
    """rows = 1/2 |p - targets|^2; y, unless None, its gradient times weight."""
    traverse(
        squared_error_block,
        start,
        stop,
        x.shape,
        memory(room),
        memory(x),
        memory(targets),
        memory(y),
        memory(rows),
        (weight, weight_low),
    )
