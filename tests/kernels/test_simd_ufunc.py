"""What loops need that C calls: strided numbers, float16, calls of other loops, floating-point exceptions."""

import ctypes
import platform

import numpy as np
import pytest
import simd_bodies
from numba import cfunc, njit, types

from fastsoftmax.kernels.simd.memory import lane_count, load, memory, size, store
from fastsoftmax.kernels.simd.ufunc import (
    call_loop,
    float_status,
    item,
    memory_at,
    read,
    read_bfloat16,
    set_float_status,
    singles,
    write,
    write_bfloat16,
)
from fastsoftmax.machine.frontend import OPTIONS


def drive_read(x, table, out, counts):
    a, y = memory(x), memory(out)
    step = lane_count(a)
    for count in range(step + 1):
        for stride in range(3):
            store(y, (3 * count + stride) * step, read(a, stride, count))


def drive_write(x, table, out, counts):
    a = memory(x)
    step = lane_count(a)
    write(memory(out), 3, step - 1, load(a, 0))
    write(memory(out[1024:]), 1, step, load(a, step))
    write(memory(out[1200:]), 1, step // 2, load(a, step))
    write(memory(out[1300:]), 2, step, load(a, step))


DRIVERS = {name.removeprefix("drive_"): f for name, f in list(globals().items()) if name.startswith("drive_")}


@pytest.mark.parametrize("name", DRIVERS)
def test_the_body_is_the_meaning(name):
    simd_bodies.check(__name__, name)


def test_every_operation_is_called():
    others = ("item", "memory_at", "singles", "call_loop", "float_status", "set_float_status")
    others = (*others, "read_bfloat16", "write_bfloat16")
    simd_bodies.check_complete(__name__, "ufunc", others)


def test_every_float16_is_read():
    @njit
    def widen(x, y):
        for first in range(0, x.size, 16):
            store(memory(y), first, read(memory(x[first : first + 16]), 1, 16))

    x = np.arange(2**16, dtype=np.uint16)
    y = np.zeros(x.size, np.float32)
    widen(x, y)
    np.testing.assert_array_equal(y, x.view(np.float16).astype(np.float32))


def test_float16_is_rounded_to_nearest_when_written():
    """Halfway cases and their neighbours between all pairs of adjacent numbers, and what is too large."""

    @njit
    def narrow(x, y):
        for first in range(0, x.size, 16):
            write(memory(y[first : first + 16]), 1, 16, load(memory(x), first))

    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = np.append(halves[:-1] / 2 + halves[1:] / 2, np.float32(65520))
    numbers = [halves, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))]
    x = np.concatenate([*numbers, np.array([np.inf, np.nan, 1e30, 65519, 1e-30, 0, 1, 2], np.float32)])
    x = np.concatenate([x, -x])
    assert x.size % 16 == 0
    y = np.zeros(x.size, np.uint16)
    narrow(x, y)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y.view(np.float16), x.astype(np.float16))


def test_bfloat16_is_the_upper_half_of_float32():
    """Read and written with strides, and rounded to nearest, halves to even."""

    @njit
    def copy(x, y):
        write_bfloat16(memory(y), 2, 5, read_bfloat16(memory(x), 3, 5))

    @njit
    def narrow(x, y):
        write_bfloat16(memory(y), 1, 16, load(memory(x), 0))

    x, y = np.arange(0x3F80, 0x3F90, dtype=np.uint16), np.zeros(16, np.uint16)
    copy(x, y)
    np.testing.assert_array_equal(y[:10:2], x[:15:3])
    assert not y[1::2].any()
    assert not y[10:].any()
    halfway = (np.uint32(0x3F808000) + (np.arange(16, dtype=np.uint32) << 16)).view(np.float32)
    narrow(halfway, y)
    np.testing.assert_array_equal(y, 0x3F80 + (np.arange(16) + 1) // 2 * 2)


def compiled(function, *kinds):
    """A function as C calls it, with addresses."""
    return cfunc(types.void(*kinds), **OPTIONS)(function)


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def test_items_and_memory_behind_a_pointer():
    def copy(x, y, indices):
        store(memory_at(y), 0, load(memory_at(x), item(indices, 1)))

    kind = types.CPointer(types.float64)
    code = compiled(copy, kind, kind, types.CPointer(types.intp))
    x, y = np.arange(20.0), np.zeros(8)
    ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(code.address)(pointer(x), pointer(y), pointer(np.array([5, 9])))
    np.testing.assert_array_equal(y, np.arange(9.0, 17.0))


def test_singles_hold_nothing():
    @njit
    def count(x):
        return size(singles(memory(x))), lane_count(singles(memory(x)))

    assert count(np.zeros(3, np.uint16)) == (0, 16)


@pytest.mark.parametrize("operands", [1, 2])
def test_another_loop_is_called(operands):
    """With the addresses, the count and the steps in bytes that it takes."""
    called = []

    @ctypes.CFUNCTYPE(None, *[ctypes.POINTER(ctypes.c_ssize_t)] * 3, ctypes.c_void_p)
    def noted(args, dimensions, steps, data):
        called.append((args[: operands + 1], dimensions[0], steps[: operands + 1], data))

    def outer(function, x, v, y):
        if operands == 1:
            call_loop(function, 5, memory_at(x), 1, None, 0, memory_at(y), 2)
        else:
            call_loop(function, 5, memory_at(x), 1, memory_at(v), 0, memory_at(y), 2)

    kind = types.CPointer(types.float32)
    code = compiled(outer, types.voidptr, kind, kind, kind)
    arrays = [np.zeros(10, np.float32) for _ in range(3)]
    ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(code.address)(noted, *map(pointer, arrays))
    used = arrays if operands == 2 else arrays[::2]
    steps = [4, 0, 8] if operands == 2 else [4, 8]
    assert called == [([array.ctypes.data for array in used], 5, steps, None)]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64", "aarch64", "arm64"), reason="exceptions stay")
def test_exceptions_are_set():
    """Those that are asked for, beside those that were there; a division in between leaves no trace."""

    @njit(error_model="numpy")
    def raised(x, y, invalid, divide, overflow):
        before = float_status()
        y[0] = x[0] / x[1]
        set_float_status(before, invalid, divide, overflow)
        after = float_status()
        set_float_status(before, False, False, False)
        return before, after, float_status()

    x, y, bits = np.array([1.0, 0.0]), np.zeros(1), set()
    for flags in ((False,) * 3, (True, False, False), (False, True, False), (False, False, True)):
        before, after, restored = raised(x, y, *flags)
        assert before == restored
        assert (after != before) == any(flags)
        bits.add(after ^ before)
    assert len(bits) == 4
