"""The lanes of a vector folded into one."""

from fractions import Fraction

import numpy as np
import pytest
import simd_bodies
from numba import njit

from fastsoftmax.kernels.simd.memory import as_doubles, lane_count, load, memory, store, store_scalar
from fastsoftmax.kernels.simd.reduce import doubled, fold_maximum, fold_sum, fold_two_sum
from fastsoftmax.kernels.simd.values import number


def drive_fold_maximum(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    for i in range(8):
        store_scalar(y, i, fold_maximum(True, load(a, (i + 2) * step)))
    store(y, step, fold_maximum(None, load(a, step)))


def drive_fold_sum(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    for i in range(8):
        store_scalar(y, i, fold_sum(True, load(a, (i + 2) * step)))
    store(y, step, fold_sum(None, load(a, step)))


def drive_fold_two_sum(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    tiny = number(a, 2.0**-30)
    for i in range(8):
        high, low = fold_two_sum(True, load(a, (i + 2) * step), load(a, (i + 3) * step) * tiny)
        store_scalar(y, i, high + low)
    high, low = fold_two_sum(None, load(a, 0), load(a, step))
    store(y, step, high)
    store(y, 2 * step, low)


def drive_doubled(x, table, out, counts):
    store(as_doubles(memory(out)), 0, doubled(load(memory(x), 0)))


DRIVERS = {name.removeprefix("drive_"): f for name, f in list(globals().items()) if name.startswith("drive_")}
UNITS = {"fold_sum": 32, "fold_two_sum": 1}
"""Sums of 16 numbers up to 4 in another order; the pair is rounded once in each."""


@pytest.mark.parametrize("name", DRIVERS)
def test_the_body_is_the_meaning(name):
    simd_bodies.check(__name__, name, UNITS.get(name, 0))


def test_every_operation_is_called():
    simd_bodies.check_complete(__name__, "reduce")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_of_pairs_lose_nothing(dtype):
    """Large numbers that cancel leave the small ones, to twice the digits of the dtype."""

    @njit
    def total(x):
        a = memory(x)
        return fold_two_sum(True, load(a, 0), load(a, lane_count(a)))

    lanes = 64 // np.dtype(dtype).itemsize
    rng = np.random.default_rng(0)
    unit = Fraction(float(np.finfo(dtype).eps)) / 2
    for _ in range(100):
        x = rng.normal(size=2 * lanes).astype(dtype)
        x[:2] = 1000, -1000
        x[lanes:] *= float(unit)
        high, low = total(x)
        exact = sum((Fraction(float(value)) for value in x), Fraction(0))
        assert abs(Fraction(float(high)) + Fraction(float(low)) - exact) <= 64 * 1000 * unit**2
