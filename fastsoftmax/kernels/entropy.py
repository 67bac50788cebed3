r"""Entropy of the softmax of the rows of a block, with its gradient.

With p = softmax(x/T), m the greatest logit, s' as in `traversal.others`, and the depth d_k = (m - x_k)/T of an
entry below the greatest:

    log p_k = -d_k - log(1 + s'),  so that  H = -sum_k p_k log p_k = log(1 + s') + E  with  E = sum_k p_k d_k

No term is negative, so nothing cancels, and the entropy is accurate even if the probability of one class is close
to 1. The gradient is -p_k (log p_k + H)/T = p_k (d_k - E)/T, where log(1 + s') has been cancelled symbolically. An
entry of probability 0 adds 0, even if its depth is infinite.
"""

from typing import Any, NamedTuple

from fastsoftmax.kernels.elementary import below, centred, exp_scaled, most_power, quotient, two_product, two_sum
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.simd.memory import lane_count, load, load_part, memory, size, store, store_part
from fastsoftmax.kernels.simd.reduce import fold_two_sum
from fastsoftmax.kernels.simd.values import broadcast, maximum, muladd, number
from fastsoftmax.kernels.traversal import (
    log_of_others,
    probability,
    reciprocal,
    spared,
    total,
    traverse,
    two_to_the,
    weighted,
)
from fastsoftmax.machine.entry import Block, Count, Floats, MaybeBlock, Room, Temperature

INF = float("inf")
HEADROOM = 12.0
"""2**HEADROOM exceeds every |d - E| where p (d - E) is a normal number, so no p with such a product is flushed."""


class EntropyOptions(NamedTuple):
    """1/T or None, and the result of `parted`; it is None without a gradient."""

    beta: Any
    power: Any
    inner: Any


@inline
def _add_depth(value: Any, beta: Any, stats: Any, depth: Any, sums: Any) -> Any:
    """Add one entry to the sum of e_k d_k, a pair."""
    t, tail = centred(value, stats.shift, beta)
    e = exp_scaled(t, tail, stats.bias)
    product, product_low = two_product(e, depth)
    high, error = two_sum(sums[0], spared(e, product))
    return high, sums[1] + (error + spared(e, product_low))


@inline
def sloped(depth: Any, mean: Any, mean_low: Any, p: Any, inner: Any) -> Any:
    """p (d - E)/T; one part of 1/T is in p, the other is `inner`."""
    above = (depth - mean) - mean_low
    return spared(p, p * muladd(above, inner[0], above * inner[1]))


@inline
def parted(x: Any, beta: Any) -> Any:
    """1/T 2**HEADROOM as a power of two for p, bounded so that p stays finite, and a pair for d - E."""
    room, zero = number(x, HEADROOM), number(x, 0.0)
    if beta is None:
        return room, (two_to_the(-room), zero)
    wanted = beta[4] + room
    power = -maximum(-wanted, -most_power(room))
    left = two_to_the(-maximum(power - beta[4], zero))  # a larger 1/T has only gradients of 0
    return power, (beta[2] * left, beta[3] * left)


@inline
def entropy_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """rows = H; y, unless it is None or has size 0, = its gradient.

    Error of H: a term e 1.1 ulp, which is up to 2.2 u, its depth 1 u, their product and all sums are pairs; the
    log 4.6 u at most, and 0.5 ulp for the last rounding: at most 4 ulp, one more with a temperature. Error of the
    gradient, in eps = 2 u of p (d + E): p 3.5 u, the depth 1 u, E 3.2 u, three roundings: less than 4.
    """
    offset, length, folded, row, count = place
    beta, power, inner = options
    m = stats.m
    step = lane_count(x)
    full = length // step * step
    zero = broadcast(number(x, 0.0))
    sums = (zero, zero)
    for k in range(0, full, step):
        value = load(x, offset + k)
        depth = -below(value, m, beta)
        sums = _add_depth(value, beta, stats, depth, sums)
    if full < length:
        last = load_part(x, offset + full, length - full, number(x, -INF))
        depth = -below(last, m, beta)
        sums = _add_depth(last, beta, stats, depth, sums)
    dot, dot_low = fold_two_sum(folded, sums[0], sums[1])
    whole, whole_low = total(stats)
    mean, mean_low = quotient(dot, dot_low, whole, whole_low)
    high, low = log_of_others(stats)
    value, error = two_sum(high, mean)
    store_part(rows, row, count, broadcast(value + (error + (low + mean_low))))
    if y is not None:
        if size(y) == 0:
            return
        one, nothing = number(x, 1.0), number(x, 0.0)
        inverse = weighted(reciprocal(stats), one, nothing, power)
        for k in range(0, full, step):
            value = load(x, offset + k)
            p = probability(value, beta, stats, inverse)
            depth = -below(value, m, beta)
            store(y, offset + k, sloped(depth, mean, mean_low, p, inner))
        if full < length:
            last = load_part(x, offset + full, length - full, number(x, -INF))
            p = probability(last, beta, stats, inverse)
            depth = -below(last, m, beta)
            store_part(y, offset + full, length - full, sloped(depth, mean, mean_low, p, inner))


@kernel
def entropy(
    start: Count, stop: Count, room: Room, x: Block, y: MaybeBlock, rows: Floats, beta: Temperature
) -> None:
    """rows = -sum_k p_k log p_k of p = softmax(x/T); y, unless None, = -p_k (log p_k + H)/T."""
    data, results = memory(x), memory(rows)
    power, inner = parted(data, beta)
    options = EntropyOptions(beta, power, inner)
    shape, tile, grad = x.shape, memory(room), memory(y)
    block = entropy_block
    traverse(
        block,
        start,
        stop,
        shape,
        tile,
        data,
        None,
        grad,
        results,
        options,
        beta,
        inverse=grad,
        log=True,
        apart=True,
    )
