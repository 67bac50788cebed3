"""softmax, log-softmax and log-sum-exp of the rows of a block (outer, classes, inner)."""

from typing import Any, NamedTuple

from fastsoftmax._vectors import COLUMN_LIMIT, FEW
from fastsoftmax.kernels.elementary import below, two_sum
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.simd.memory import lane_count, load, load_part, memory, scratch, store, store_part
from fastsoftmax.kernels.simd.values import broadcast, number, select_equal
from fastsoftmax.kernels.traversal import (
    filler,
    log_of_others,
    probability_by,
    reciprocal,
    row_at,
    short_statistics,
    traverse,
)
from fastsoftmax.machine.entry import Block, Count, Floats, Room, Table, Temperature

INF = float("inf")


class ActivationOptions(NamedTuple):
    """1/T or None, and `keep` of `traverse`: whether x holds terms."""

    beta: Any
    keep: Any


@inline
def softmax_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """p_k = e_k / sum(e). If `keep` is not None, x holds the terms e.

    Error: the term 1.1 ulp, which is up to 2.2 after a division that crosses a power of two; the product with the
    reciprocal, a pair, 0.5; the sum errs by less than 0.3 u, since its greatest term is exact to 0.2 u and the
    others' errors do not add up: at most 3 ulp, measured 2.03.
    """
    offset, length, _, _, _ = place
    beta, keep = options
    inverse = reciprocal(stats)
    step = lane_count(x)
    full = length // step * step
    for k in range(0, full, step):
        store(y, offset + k, probability_by(load(x, offset + k), beta, stats, inverse, keep))
    if full < length:
        last = load_part(x, offset + full, length - full, filler(x, keep))
        store_part(y, offset + full, length - full, probability_by(last, beta, stats, inverse, keep))


@kernel
def softmax(start: Count, stop: Count, room: Room, x: Block, y: Block, beta: Temperature) -> None:
    """y_k = exp(x_k/T) / sum_j exp(x_j/T); beta is 1/T as a pair, or None."""
    data, probs, tile = memory(x), memory(y), memory(room)
    options = ActivationOptions(beta, True)
    traverse(softmax_block, start, stop, x.shape, tile, data, None, probs, None, options, beta=beta, keep=True)


@inline
def few_softmax(rows: int, classes: int, x: Any, y: Any, beta: Any) -> None:
    """`softmax` of `rows` short rows, one by one."""
    options = ActivationOptions(beta, True)
    for row in range(rows):
        at = row * classes
        stats = short_statistics(x, at, classes, beta, y)
        softmax_block(y, None, y, row_at(at, classes, row), stats, None, options)


@kernel
def softmax_small(x: Table, y: Table) -> None:
    """`softmax` of the rows of a matrix. It has few arguments, so that small calls are fast."""
    data, probs = memory(x), memory(y)
    rows, classes = x.shape
    if rows <= FEW and classes <= COLUMN_LIMIT:
        few_softmax(rows, classes, data, probs, None)
        return
    tile, shape, options = scratch(data, COLUMN_LIMIT), (rows, classes, 1), ActivationOptions(None, True)
    traverse(softmax_block, 0, rows, shape, tile, data, None, probs, None, options, keep=True)


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
    for k in range(0, full, step):
        store(y, offset + k, below(load(x, offset + k), m, beta) - log_rest)
    if full < length:
        last = load_part(x, offset + full, length - full, number(x, -INF))
        store_part(y, offset + full, length - full, below(last, m, beta) - log_rest)


@kernel
def log_softmax(start: Count, stop: Count, room: Room, x: Block, y: Block, beta: Temperature) -> None:
    """y_k = x_k/T - log(sum_j exp(x_j/T)); beta is 1/T as a pair, or None."""
    data, result, tile = memory(x), memory(y), memory(room)
    options = ActivationOptions(beta, None)
    traverse(log_softmax_block, start, stop, x.shape, tile, data, None, result, None, options, beta)


@inline
def few_log_softmax(rows: int, classes: int, x: Any, y: Any, beta: Any) -> None:
    """`log_softmax` of `rows` short rows, one by one."""
    options = ActivationOptions(beta, None)
    for row in range(rows):
        at = row * classes
        stats = short_statistics(x, at, classes, beta, None)
        log_softmax_block(x, None, y, row_at(at, classes, row), stats, None, options)


@kernel
def log_softmax_small(x: Table, y: Table) -> None:
    """`log_softmax` of the rows of a matrix."""
    data, result = memory(x), memory(y)
    rows, classes = x.shape
    if rows <= FEW and classes <= COLUMN_LIMIT:
        few_log_softmax(rows, classes, data, result, None)
        return
    tile, shape, options = scratch(data, COLUMN_LIMIT), (rows, classes, 1), ActivationOptions(None, None)
    traverse(log_softmax_block, 0, rows, shape, tile, data, None, result, None, options)


@inline
def logsumexp_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """lse = m + log(1 + s'); m if m is infinite; NaN if the row holds a NaN."""
    m, rest = stats.m, stats.rest
    high, low = log_of_others(stats)
    total, error = two_sum(m, high)
    value = total + (error + low)
    infinite = select_equal(rest, rest, m, rest)
    unbounded = select_equal(m - m, number(x, 0.0), number(x, 0.0), number(x, 1.0))
    store_part(rows, place.row, place.count, broadcast(select_equal(unbounded, number(x, 1.0), infinite, value)))


@kernel
def logsumexp(start: Count, stop: Count, room: Room, x: Block, rows: Floats) -> None:
    """rows = log(sum_j exp(x_j))."""
    data, results, tile = memory(x), memory(rows), memory(room)
    traverse(logsumexp_block, start, stop, x.shape, tile, data, None, None, results, None)


@inline
def few_logsumexp(rows: int, classes: int, x: Any, sums: Any) -> None:
    """`logsumexp` of `rows` short rows, one by one."""
    for row in range(rows):
        at = row * classes
        stats = short_statistics(x, at, classes, None, None)
        logsumexp_block(x, None, None, row_at(at, classes, row), stats, sums, None)


@kernel
def logsumexp_small(x: Table, rows: Floats) -> None:
    """`logsumexp` of the rows of a matrix. It has few arguments, so that small calls are fast."""
    data, results = memory(x), memory(rows)
    count, classes = x.shape
    if count <= FEW and classes <= COLUMN_LIMIT:
        few_logsumexp(count, classes, data, results)
        return
    tile = scratch(data, COLUMN_LIMIT)
    shape = (count, classes, 1)
    traverse(logsumexp_block, 0, count, shape, tile, data, None, None, results, None)
