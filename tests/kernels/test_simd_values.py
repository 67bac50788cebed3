"""Operations on vectors that treat every lane alike, and take floats too."""

import numpy as np
import pytest
import simd_bodies
from numba import njit
from numba.core.errors import TypingError

from fastsoftmax.kernels.simd import values
from fastsoftmax.kernels.simd.memory import lane_count, load, load_scalar, memory, store, store_scalar
from fastsoftmax.kernels.simd.values import (
    absolute,
    any_above,
    broadcast,
    filled,
    if_none,
    is_single,
    lane,
    lanes_above,
    last_lanes,
    lowest_bit,
    number,
    shift_to_exponent,
    split_exponent,
    unless_none,
)


def one(operation):
    """Of a vector with infinities and NaN, and of a float."""

    def drive(x, table, out, counts):
        a, y = memory(x), memory(out)
        step = lane_count(a)
        store(y, 0, operation(load(a, step)))
        store_scalar(y, step, operation(load_scalar(a, 0)))

    return drive


def two(operation):
    """Of vectors, of a vector and a float on either side, and of floats."""

    def drive(x, table, out, counts):
        a, y = memory(x), memory(out)
        step = lane_count(a)
        first, second, single = load(a, 0), load(a, step), load_scalar(a, 0)
        store(y, 0, operation(first, second))
        store(y, step, operation(second, single))
        store(y, 2 * step, operation(single, second))
        store_scalar(y, 3 * step, operation(single, load_scalar(a, 1)))

    return drive


def three(operation):
    """Of vectors, of a vector and floats, and of floats."""

    def drive(x, table, out, counts):
        a, y = memory(x), memory(out)
        step = lane_count(a)
        first, second, third, single = load(a, 0), load(a, step), load(a, 2 * step), load_scalar(a, 0)
        store(y, 0, operation(first, second, third))
        store(y, step, operation(first, single, single))
        store_scalar(y, 2 * step, operation(single, load_scalar(a, 1), load_scalar(a, 2)))

    return drive


def four(operation):
    """A choice by vectors, and by floats; a vector is compared with itself too, and with NaN."""

    def drive(x, table, out, counts):
        a, y = memory(x), memory(out)
        step = lane_count(a)
        first, second, third, single = load(a, 0), load(a, step), load(a, 2 * step), load_scalar(a, 0)
        store(y, 0, operation(first, second, first, third))
        store(y, step, operation(second, second, first, third))
        store(y, 2 * step, operation(second, single, first, single))
        store_scalar(y, 3 * step, operation(single, load_scalar(a, 1), single, load_scalar(a, 2)))

    return drive


def drive_shift_to_exponent(x, table, out, counts):
    y = memory(out)
    magic = number(y, 2.0**23 + 127.0) if is_single(load_scalar(y, 0)) else number(y, 2.0**52 + 1023.0)
    for k in range(-3, 4):
        store_scalar(y, k + 3, shift_to_exponent(magic + number(y, float(k))))
    store(y, lane_count(y), shift_to_exponent(broadcast(magic + number(y, 5.0))))


def drive_split_exponent(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    k, m = split_exponent(absolute(load(a, 0)))
    store(y, 0, k)
    store(y, step, m)
    k, m = split_exponent(number(a, 0.1875))
    store_scalar(y, 2 * step, k)
    store_scalar(y, 2 * step + 1, m)


def drive_is_single(x, table, out, counts):
    counts[0] = is_single(load(memory(x), 0))
    counts[1] = is_single(load_scalar(memory(x), 0))


def drive_any_above(x, table, out, counts):
    a = memory(x)
    vectors = load(a, 0), load(a, lane_count(a))
    for i in range(8):
        limit = number(a, float(i - 4))
        counts[2 * i] = any_above(vectors[0], limit)
        counts[2 * i + 1] = any_above(load_scalar(a, i), limit)
    counts[16] = any_above(vectors[1], number(a, 1e30))
    counts[17] = any_above(vectors[0], number(a, np.nan))


def drive_lanes_above(x, table, out, counts):
    a = memory(x)
    for i in range(8):
        counts[i] = lanes_above(load(a, i * lane_count(a)), number(a, float(i - 4)))
    counts[8] = lanes_above(load(a, 0), number(a, np.nan))


def drive_lowest_bit(x, table, out, counts):
    for i in range(40):
        counts[i] = lowest_bit(5 << i)


def drive_number(x, table, out, counts):
    a, y = memory(x), memory(out)
    store_scalar(y, 0, number(a, 0.1))
    store_scalar(y, 1, number(load(a, 0), 0.2))
    store_scalar(y, 2, number(load_scalar(a, 0), 0.3))


def drive_filled(x, table, out, counts):
    a, y = memory(x), memory(out)
    store(y, 0, filled(load(a, 0), 0.1))
    store_scalar(y, lane_count(a), filled(load_scalar(a, 0), 0.2))


def drive_broadcast(x, table, out, counts):
    a, y = memory(x), memory(out)
    store(y, 0, broadcast(load_scalar(a, 0)))
    store(y, lane_count(a), broadcast(load(a, 0)))


def drive_lane(x, table, out, counts):
    a, y = memory(x), memory(out)
    for i in range(lane_count(a)):
        store_scalar(y, i, lane(load(a, 0), i))


def drive_last_lanes(x, table, out, counts):
    a, y = memory(x), memory(out)
    for count in range(lane_count(a) + 1):
        store(y, count * lane_count(a), last_lanes(load(a, 0), count, load_scalar(a, 3)))


def drive_unless_none(x, table, out, counts):
    a = memory(x)
    counts[0] = unless_none(None, a) is None
    store(memory(out), 0, load(unless_none(1, a), 0))
    store_scalar(memory(out), 100, unless_none(1, load_scalar(a, 0)))


def drive_if_none(x, table, out, counts):
    a = memory(x)
    counts[0] = if_none(1, a) is None
    store(memory(out), 0, load(if_none(None, a), 0))
    store_scalar(memory(out), 100, if_none(None, load_scalar(a, 0)))


FORMS = {
    one: ("absolute", "truncate", "nearest", "counted"),
    two: ("maximum", "minimum"),
    three: ("muladd", "fma", "select_negative", "count_equal", "zero_if_less"),
    four: ("select_less", "select_equal"),
}
DRIVERS = {name: form(getattr(values, name)) for form, names in FORMS.items() for name in names}
DRIVERS |= {name.removeprefix("drive_"): f for name, f in list(globals().items()) if name.startswith("drive_")}
UNITS = {"muladd": 8, "fma": 1}
"""Where Python rounds twice, of numbers up to 16."""


@pytest.mark.parametrize("name", DRIVERS)
def test_the_body_is_the_meaning(name):
    simd_bodies.check(__name__, name, UNITS.get(name, 0))


def test_every_operation_is_called():
    simd_bodies.check_complete(__name__, "values")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infix_operators(dtype):
    """They are NumPy's, on vectors and on a vector beside a float."""

    @njit
    def compiled(x, table, out, counts):
        a, y = memory(x), memory(out)
        step = lane_count(a)
        first, second, single = load(a, 0), load(a, step), load_scalar(a, 0)
        store(y, 0, first + second)
        store(y, step, first - single)
        store(y, 2 * step, single * second)
        store(y, 3 * step, first / second)
        store(y, 4 * step, -second)

    def plain(x, table, out, counts):
        step = 64 // x.itemsize
        first, second, single = x[:step], x[step : 2 * step], x[0]
        out[: 5 * step] = np.concatenate(
            [first + second, first - single, single * second, first / second, -second]
        )

    expected = simd_bodies.called(plain, dtype)
    np.testing.assert_array_equal(simd_bodies.called(compiled, dtype)[0], expected[0])


def test_fma_rounds_once():
    @njit
    def error_of_square(x):
        return values.fma(x, x, -(x * x))

    x = np.float64(1 + 2**-30)
    assert error_of_square(x) == 2.0**-60


@pytest.mark.parametrize(("a", "b"), [(np.float32(1), np.float64(1)), (1, np.float64(1))])
def test_dtypes_are_not_mixed(a, b):
    @njit
    def greater(a, b):
        return values.maximum(a, b)

    with pytest.raises(TypingError, match=r"maximum does not take \((float32|int64), float64\)"):
        greater(a, b)
