"""Sums over many rows, in twice the precision: what a mean adds up and divides by.

They are not NumPy's, whose order of summation depends on layout and version: these give the same bits wherever
they are called from, and no row is lost in the sum of a million others.
"""

from typing import Any

import numpy as np

from fastsoftmax.kernels.elementary import two_sum
from fastsoftmax.kernels.jit import kernel
from fastsoftmax.kernels.traversal import add
from fastsoftmax.kernels.vector import (
    broadcast,
    fold_two_sum,
    load_double,
    load_scalar,
    memory,
    size,
)


@kernel
def total(values: Any) -> Any:
    """sum(values) in float64: the error of a compensated sum is that of its last rounding."""
    data = memory(values)
    count = size(data)
    full = count // 8 * 8
    zero = broadcast(np.float64(0.0))
    sums = (zero, zero)
    for k in range(0, full, 8):
        sums = add(sums, load_double(data, k))
    high, low = fold_two_sum(True, sums[0], sums[1])
    for k in range(full, count):
        high, error = two_sum(high, np.float64(load_scalar(data, k)))
        low += error
    return high + low if low == low else high  # inf stays inf, though its error is nan
