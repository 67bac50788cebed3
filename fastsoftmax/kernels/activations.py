"""softmax, log-softmax and log-sum-exp of the rows of a block (outer, classes, inner)."""

from typing import Any, NamedTuple

from fastsoftmax.kernels.elementary import below
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.simd.memory import lane_count, load, memory, store, store_part
from fastsoftmax.kernels.simd.values import broadcast, number
from fastsoftmax.kernels.traversal import (
    filler,
    load_last,
    log_of_others,
    log_of_sum,
    probability_by,
    reciprocal,
    store_last,
    traverse,
)
from fastsoftmax.machine.entry import Block, Count, Floats, Room, Temperature

INF = float("inf")


class ActivationOptions(NamedTuple):
    """1/T or None, and `keep` of `traverse`: whether x holds terms."""

    beta: Any
    keep: Any


@inline
def softmax_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """p_k = e_k / sum(e). If `keep` is not None, x holds the terms e.

    Error: the term 1.1 ulp, which is up to 2.2 after a division that crosses a power of two; the product with the
    reciprocal, a pair, 0.5. In the sum, the greatest term is exact to 0.2 u. The other terms, and the sums of two
    of them, have errors of either sign, of less than 1.1 ulp and 1/2 ulp, which hardly add up: 0.3 u is left for
    them, and the promise is 3 ulp. Of 500 million random results, the worst had 2.51, for eight logits that were
    almost equal.
    """
    offset, length, _, _, _ = place
    beta, keep = options
    inverse = reciprocal(stats)
    step = lane_count(x)
    full = length // step * step
    last = load_last(x, offset, length, filler(x, keep))  # before a result is stored there
    for k in range(0, full, step):
        store(y, offset + k, probability_by(load(x, offset + k), beta, stats, inverse, keep))
    if full < length:
        store_last(y, offset, length, probability_by(last, beta, stats, inverse, keep))


@kernel(small=True)
def softmax(start: Count, stop: Count, room: Room, x: Block, y: Block, beta: Temperature) -> None:
    """y_k = exp(x_k/T) / sum_j exp(x_j/T); beta is 1/T as a pair, or None."""
    data, probs, tile = memory(x), memory(y), memory(room)
    options = ActivationOptions(beta, True)
    traverse(
        softmax_block,
        start,
        stop,
        x.shape,
        tile,
        data,
        None,
        probs,
        None,
        options,
        beta=beta,
        keep=True,
        few=True,
        inverse=True,
        apart=True,
    )


@inline
def log_softmax_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """log p_k = (x_k - m) - log(1 + s'). Neither term is positive, so the difference is as accurate as they are.

    Error: log(1 + s') within 2.3 ulp (s' 1.2, damped by the logarithm; log_pair 1.1), x_k - m within 0.5, with a
    temperature within 1, the last subtraction 0.5: at most 4 ulp, measured 1.95.
    """
    offset, length, _, _, _ = place
    beta, m = options.beta, stats.m
    high, low = log_of_others(stats)
    log_rest = high + low
    step = lane_count(x)
    full = length // step * step
    last = load_last(x, offset, length, number(x, -INF))  # before a result is stored there
    for k in range(0, full, step):
        store(y, offset + k, below(load(x, offset + k), m, beta) - log_rest)
    if full < length:
        store_last(y, offset, length, below(last, m, beta) - log_rest)


@kernel(small=True)
def log_softmax(start: Count, stop: Count, room: Room, x: Block, y: Block, beta: Temperature) -> None:
    """y_k = x_k/T - log(sum_j exp(x_j/T)); beta is 1/T as a pair, or None."""
    data, result, tile = memory(x), memory(y), memory(room)
    options = ActivationOptions(beta, None)
    block, shape = log_softmax_block, x.shape
    traverse(
        block, start, stop, shape, tile, data, None, result, None, options, beta, few=True, log=True, apart=True
    )


@inline
def logsumexp_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """lse = m + log(1 + s'); m if m is infinite; NaN if the row holds a NaN."""
    store_part(rows, place.row, place.count, broadcast(log_of_sum(stats)))


@kernel
def logsumexp(start: Count, stop: Count, room: Room, x: Block, rows: Floats) -> None:
    """rows = log(sum_j exp(x_j))."""
    data, results, tile = memory(x), memory(rows), memory(room)
    block, shape = logsumexp_block, x.shape
    traverse(block, start, stop, shape, tile, data, None, None, results, None, few=True, log=True, apart=True)
