"""Sums over many rows in twice the precision, for means and their divisors.

NumPy's order of summation depends on layout and version. These sums give the same bits wherever they are called,
and no row is lost to rounding in the sum of a million others.
"""

from typing import Any, NamedTuple

import numpy as np

from fastsoftmax.kernels.elementary import two_sum
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.simd.memory import (
    lane_count,
    load_double,
    load_part,
    load_scalar,
    memory,
    size,
    store_part,
)
from fastsoftmax.kernels.simd.reduce import fold_two_sum
from fastsoftmax.kernels.simd.rows import class_value
from fastsoftmax.kernels.simd.values import broadcast, muladd, number
from fastsoftmax.kernels.traversal import add, traverse
from fastsoftmax.machine.entry import Block, Count, Floats, Number, Room


@inline
def sum_of(data: Any, count: int) -> Any:
    """The sum of `count` numbers in float64, compensated: its error is that of the last rounding."""
    high, low = pair_sum_of(data, count)
    return high + low if low == low else high  # the error of inf is nan


@inline
def pair_sum_of(data: Any, count: int) -> Any:
    """The sum of `count` numbers as a pair of float64."""
    full = count // 8 * 8
    zero = broadcast(np.float64(0.0))
    sums = (zero, zero)
    for k in range(0, full, 8):
        sums = add(sums, load_double(data, k))
    high, low = fold_two_sum(True, sums[0], sums[1])
    for k in range(full, count):
        high, error = two_sum(high, np.float64(load_scalar(data, k)))
        low += error
    return high, low


@kernel
def total(values: Floats) -> float:
    """sum(values) in float64."""
    data = memory(values)
    result: float = sum_of(data, size(data))
    return result


class ShareOptions(NamedTuple):
    """The class weights, base and gain of the shares (see `losses`), and the output for the low parts."""

    class_weights: Any
    base: Any
    gain: Any
    rows_low: Any


@inline
def share_total_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """sum_j w_j (base + gain y_j) as a pair."""
    offset, length, folded, row, count = place
    weights, base, gain, rows_low = options
    step = lane_count(x)
    zero = broadcast(number(x, 0.0))
    sums = (zero, zero)
    for k in range(0, length, step):
        lanes = min(step, length - k)
        y_part = load_part(x, offset + k, lanes, number(x, 0.0))
        sums = add(sums, class_value(x, folded, weights, k, lanes) * muladd(y_part, gain, base))
    high, low = fold_two_sum(folded, sums[0], sums[1])
    high, low = two_sum(high, low)
    store_part(rows, row, count, broadcast(high))
    store_part(rows_low, row, count, broadcast(low))


@kernel
def share_totals(
    start: Count,
    stop: Count,
    room: Room,
    targets: Block,
    class_weights: Floats,
    base: Number,
    gain: Number,
    rows: Floats,
    rows_low: Floats,
) -> None:
    """rows + rows_low = sum_j class_weights_j (base + gain targets_j): the sum of shares, see `losses`."""
    options = ShareOptions(memory(class_weights), base, gain, memory(rows_low))
    shape, data, results, tile = targets.shape, memory(targets), memory(rows), memory(room)
    traverse(share_total_block, start, stop, shape, tile, data, None, None, results, options, given=True)
