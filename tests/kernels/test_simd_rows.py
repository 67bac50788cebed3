"""Weights and labels of the rows and classes of a block, and rows of unequal length."""

import numpy as np
import pytest
import simd_bodies

from fastsoftmax.kernels.simd.memory import after, lane_count, memory, store, store_scalar
from fastsoftmax.kernels.simd.rows import (
    class_value,
    gather_rows,
    lane_labels,
    neighbours,
    one_hot,
    row_value,
    scatter_rows,
)
from fastsoftmax.kernels.simd.values import broadcast, number


def drive_row_value(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    store_scalar(y, 0, row_value(a, None, None, 3, 2))
    store_scalar(y, 1, row_value(a, True, None, 3, 1))
    store_scalar(y, 2, row_value(a, True, a, 3, 1))
    ones = np.ones(16, x.dtype)
    empty = memory(ones[:0])
    store_scalar(y, 3, row_value(a, True, empty, 3, 1))
    for count in range(step + 1):
        store(y, (2 * count + 1) * step, row_value(a, None, a, 2 * step, count))
        store(y, (2 * count + 2) * step, row_value(a, None, empty, 2 * step, count))
    counts[0] = ones.size  # used here, so that it lives until now


def drive_class_value(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    ones = np.ones(16, x.dtype)
    empty = memory(ones[:0])
    store_scalar(y, 0, class_value(a, None, None, 3 * step, 2))
    store_scalar(y, 1, class_value(a, None, a, 3 * step, 2))
    store_scalar(y, 2, class_value(a, None, empty, 3 * step, 2))
    for count in range(step + 1):
        store(y, (3 * count + 1) * step, class_value(a, True, None, 2 * step, count))
        store(y, (3 * count + 2) * step, class_value(a, True, a, 2 * step, count))
        store(y, (3 * count + 3) * step, class_value(a, True, empty, 2 * step, count))
    counts[0] = ones.size  # used here, so that it lives until now


def drive_one_hot(x, table, out, counts):
    a, y, labels = memory(x), memory(out), memory(table)
    step = lane_count(a)
    store(y, 0, one_hot(a, True, None, 0, 1, 0))
    for row in range(12):
        store(y, (2 * row + 1) * step, one_hot(a, True, labels, row, 1, 0))
        store(y, (2 * row + 2) * step, one_hot(a, None, labels, 5, step - 1, row * step))
    store(y, 30 * step, one_hot(a, True, labels, 0, 1, step))


def drive_lane_labels(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    for count in range(step + 1):
        store(y, count * step, lane_labels(a, memory(table), 3, count))


def drive_gather_rows(x, table, out, counts):
    a, y, starts = memory(x), memory(out), memory(table)
    step = lane_count(a)
    for k in range(10):
        store(y, k * step, gather_rows(a, starts, after(starts, 20), 2, k, number(a, 0.5)))


def drive_scatter_rows(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    starts = np.arange(0, 40 * step, 20)
    for k in range(10):
        scatter_rows(y, memory(starts), memory(table), 1, k, broadcast(number(a, float(k))))


def drive_neighbours(x, table, out, counts):
    a, found = memory(x), memory(counts)
    step = lane_count(a)
    indptr = np.cumsum(table)
    starts, lengths = after(found, 2), after(found, 20)
    counts[0], counts[1] = neighbours(a, memory(indptr), 3, 1000, starts, lengths, 0)
    starts, lengths = after(found, 44), after(found, 44 - step)
    counts[60], counts[61] = neighbours(a, memory(indptr - 30), 3, 25, starts, lengths, 0)


DRIVERS = {name.removeprefix("drive_"): f for name, f in list(globals().items()) if name.startswith("drive_")}


@pytest.mark.parametrize("name", DRIVERS)
def test_the_body_is_the_meaning(name):
    simd_bodies.check(__name__, name)


def test_every_operation_is_called():
    simd_bodies.check_complete(__name__, "rows")
