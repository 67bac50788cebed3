"""Arrays by flat offset: whole vectors, parts of them, single numbers, room on the stack."""

import numpy as np
import pytest
import simd_bodies
from numba import njit
from numba.core.errors import TypingError

from fastsoftmax.kernels.simd.memory import (
    address,
    after,
    as_doubles,
    as_integers,
    fence,
    gather,
    integers,
    item_size,
    lane_count,
    lanes_to_line,
    load,
    load_double,
    load_part,
    load_scalar,
    memory,
    prefetch,
    prefetch_second,
    prefetch_written,
    scatter,
    scratch,
    size,
    store,
    store_part,
    store_past,
    store_scalar,
    store_whole,
)
from fastsoftmax.kernels.simd.values import number, truncate


def drive_memory(x, table, out, counts):
    a, y = memory(x.reshape(2, -1)), memory(memory(out))
    counts[0] = memory(None) is None
    counts[1] = load_scalar(memory(table), 3)
    store(y, 0, load(a, 0))


def drive_after(x, table, out, counts):
    a = after(memory(x), 5)
    counts[0] = size(a)
    store(after(memory(out), 3), 0, load(a, 0))
    counts[1] = load_scalar(after(memory(table), 7), 1)


def drive_size(x, table, out, counts):
    counts[0] = size(memory(x))
    counts[1] = size(memory(table))


def drive_lane_count(x, table, out, counts):
    counts[0] = lane_count(memory(x))


def drive_item_size(x, table, out, counts):
    counts[0] = item_size(memory(x))
    counts[1] = item_size(memory(table))


def drive_address(x, table, out, counts):
    a = memory(x)
    counts[0] = address(after(a, 3)) - address(a)
    counts[1] = address(a) % 64


def drive_load(x, table, out, counts):
    a, y = memory(x), memory(out)
    for i in range(4):
        store(y, i * lane_count(a), load(a, 3 * i))


def drive_store(x, table, out, counts):
    a, y = memory(x), memory(out)
    for i in range(4):
        store(y, i * (lane_count(a) + 1), load(a, 0))


def drive_store_past(x, table, out, counts):
    a, y = memory(x), memory(out)
    for i in range(4):
        store_past(y, i * 2 * lane_count(a), load(a, i))


def drive_fence(x, table, out, counts):
    store_past(memory(out), 0, load(memory(x), 0))
    fence()


def drive_lanes_to_line(x, table, out, counts):
    a = memory(x)
    for i in range(20):
        counts[i] = lanes_to_line(a, i)


def drive_prefetch(x, table, out, counts):
    a = memory(x)
    prefetch(a, 0)
    prefetch(a, 100 * size(a))
    counts[0] = 1


def drive_prefetch_second(x, table, out, counts):
    a = memory(x)
    prefetch_second(a, 0)
    prefetch_second(a, 100 * size(a))
    counts[0] = 1


def drive_prefetch_written(x, table, out, counts):
    y = memory(out)
    prefetch_written(y, 0)
    prefetch_written(y, 100 * size(y))
    store(y, 0, load(memory(x), 0))


def drive_load_scalar(x, table, out, counts):
    for i in range(20):
        store_scalar(memory(out), i, load_scalar(memory(x), 2 * i))
        counts[i] = load_scalar(memory(table), i)


def drive_store_scalar(x, table, out, counts):
    for i in range(20):
        store_scalar(memory(out), 3 * i, number(memory(out), 0.1))
        store_scalar(memory(counts), 2 * i, i)


def drive_load_part(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    for count in range(step + 1):
        store(y, count * step, load_part(a, size(a) - count, count, number(a, 0.5)))


def drive_store_part(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    for count in range(step + 1):
        store_part(y, count * step, count, load(a, 2 * step))
    store_part(y, size(y) - 3, 3, load(a, 0))


def drive_store_whole(x, table, out, counts):
    a, whole = memory(x), memory(counts)
    for count in range(lane_count(a) + 1):
        store_whole(whole, 2 * count, count, truncate(load(a, 0) * number(a, 100.0)))


def drive_gather(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    for count in range(1, step + 1):
        store(y, count * step, gather(a, count, 1 + count % 5, count, number(a, 0.5)))


def drive_scatter(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    for count in range(1, step + 1):
        scatter(y, 100 * count, 1 + count % 5, count, load(a, 2 * step))


def drive_load_double(x, table, out, counts):
    wide = memory(np.empty(8, np.float64))
    store(wide, 0, load_double(memory(x), 100))
    for i in range(8):
        counts[i] = int(load_scalar(wide, i) * 1e9)


def drive_scratch(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    room = scratch(a, 3)
    counts[0] = size(room)
    for i in range(3):
        store(room, i * step, load(a, i))
    for i in range(3):
        store(y, i * step, load(room, i * step))


def drive_integers(x, table, out, counts):
    room = integers(9)
    counts[0] = size(room)
    for i in range(9):
        store_scalar(room, i, i * i)
    for i in range(9):
        counts[i + 1] = load_scalar(room, i)


def drive_as_integers(x, table, out, counts):
    a = memory(x)
    bits = as_integers(a)
    counts[0] = size(bits)
    counts[1] = load_scalar(bits, 3)
    y = memory(out)
    store_scalar(as_integers(y), 2, 4_600_000_000_123_456_789)


def drive_as_doubles(x, table, out, counts):
    y = as_doubles(memory(out))
    counts[0] = size(y)
    store_scalar(y, 5, np.pi)
    counts[1] = int(load_scalar(y, 5) * 1e15)


DRIVERS = {name.removeprefix("drive_"): f for name, f in list(globals().items()) if name.startswith("drive_")}


@pytest.mark.parametrize("name", DRIVERS)
def test_the_body_is_the_meaning(name):
    simd_bodies.check(__name__, name)


def test_every_operation_is_called():
    simd_bodies.check_complete(__name__, "memory")


def test_room_lies_on_a_cache_line():
    @njit
    def begins(x):
        return address(scratch(memory(x), 2)) % 64, address(integers(5)) % 64

    assert begins(np.zeros(3, np.float32)) == (0, 0)


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.float32, 1.0), (np.float64, np.float32(1)), (np.int64, 1.0), (np.float64, 1)]
)
def test_only_numbers_of_the_dtype_are_stored(dtype, value):
    @njit
    def write(x, value):
        store_scalar(memory(x), 0, value)

    with pytest.raises(TypingError, match="store_scalar does not take"):
        write(np.zeros(16, dtype), value)


def test_arrays_are_contiguous():
    @njit
    def count(x):
        return size(memory(x))

    assert count(np.zeros((3, 4))) == 12
    with pytest.raises(TypingError, match="memory does not take"):
        count(np.zeros((3, 4))[:, ::2])


def test_what_is_no_memory_is_refused():
    """Without an error from within: the first operand does not fit, and the types of others follow from it."""

    @njit
    def write(x):
        store_part(x, 0, 1, load(memory(x), 0))

    with pytest.raises(TypingError, match="store_part does not take"):
        write(np.zeros(16))
