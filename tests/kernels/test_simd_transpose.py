"""Rows into columns and back: tiles of every number of classes, partial ones included."""

import numpy as np
import pytest
import simd_bodies

from fastsoftmax.kernels.simd.memory import lane_count, load, memory, scratch, store
from fastsoftmax.kernels.simd.transpose import load_dense, load_turned, store_dense, store_turned


def drive_load_turned(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    for count in (1, 2, step // 2 + 1, step):
        load_turned(a, 2 * step, step + 5, count, y, 0)
        for i in range(step):
            store(y, (count % 5) * step * step + i * step, load(y, i * step))


def drive_store_turned(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    tile = scratch(a, 16)
    for i in range(step):
        store(tile, i * step, load(a, (i + 2) * step))
    for count in (1, step // 2, step):
        store_turned(y, count * 20, step + count, count, tile, 0)


def drive_load_dense(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    at = 0
    for classes in range(2, step // 2 + 1):
        load_dense(a, 2 * step + classes, classes, y, at)
        at += classes * step


def drive_store_dense(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    at = 3
    for classes in range(2, step // 2 + 1):
        store_dense(y, at, classes, a, 2 * step)
        at += classes * step


DRIVERS = {name.removeprefix("drive_"): f for name, f in list(globals().items()) if name.startswith("drive_")}


@pytest.mark.parametrize("name", DRIVERS)
def test_the_body_is_the_meaning(name):
    simd_bodies.check(__name__, name)


def test_every_operation_is_called():
    simd_bodies.check_complete(__name__, "transpose")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_turning_twice_gives_the_rows(dtype):
    """By the compiled operations alone: each is the inverse of the other."""
    from numba import njit

    @njit
    def there_and_back(x, y, classes):
        a, b = memory(x), memory(y)
        tile = scratch(a, 16)
        load_turned(a, 0, classes, classes, tile, 0)
        store_turned(b, 0, classes, classes, tile, 0)

    lanes = 64 // np.dtype(dtype).itemsize
    for classes in range(1, lanes + 1):
        x = np.arange(lanes * classes, dtype=dtype)
        y = np.zeros(x.size + lanes, dtype)
        there_and_back(x, y, classes)
        np.testing.assert_array_equal(x, y[: x.size])
        assert not y[max(x.size, (lanes - 2) * classes + lanes) :].any()
