"""float16 and bfloat16 as float32, and back, by kernels: NumPy's casts are up to a hundred times slower.

The kernels take native, contiguous numbers. NumPy moves halves in another order of bytes or axes, as integers, in
the memory of the float32 where that is possible.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastsoftmax.machine.entry import entry

Array = NDArray[Any]

LEAST = 512
"""Arrays with fewer items are cast by NumPy, which takes less time than to call a kernel."""

_KINDS = {"e": "float16", "E": "bfloat16"}
_SINGLE: np.dtype[Any] = np.dtype(np.float32)
_BITS: np.dtype[Any] = np.dtype(np.uint16)
_SWAPPED = _BITS.newbyteorder()


def have(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    """Whether one dtype is a half and the other one is float32."""
    return (one.char in _KINDS and other == _SINGLE) or (other.char in _KINDS and one == _SINGLE)


def are_direct(array: Array) -> bool:
    """Whether a kernel can take numbers as they are."""
    flags = array.flags
    return flags.c_contiguous and flags.aligned and array.dtype.isnative


def bits_of(array: Array) -> Array:
    """Halves as integers of their bits."""
    return array.view(_BITS if array.dtype.isnative else _SWAPPED)


def bits_within(block: Array, last: bool) -> Array:
    """The first or the last half of the memory of contiguous float32, as the bits of as many halves.

    The last half can be widened into all of the memory; float32 can be narrowed to the first half.
    """
    bits = block.reshape(-1).view(_BITS)
    return (bits[block.size :] if last else bits[: block.size]).reshape(block.shape)


@cache
def code(char: str, widens: bool) -> Callable[..., Any]:
    """The kernel's code that widens halves with this character, or rounds to them."""
    bits, block = np.empty(0, _BITS), np.empty(0, _SINGLE)
    kernel = entry(f"halves.{'widen' if widens else 'narrow'}_{_KINDS[char]}")
    return cast(Callable[..., Any], kernel.code((0, 0, None, *((bits, block) if widens else (block, bits)))))


def widen(bits: Array, half: np.dtype[Any], block: Array) -> None:
    """Write halves, given by native and contiguous bits, to contiguous float32."""
    code(half.char, True)(0, block.size, None, bits.reshape(-1), block.reshape(-1))


def narrow(block: Array, half: np.dtype[Any], bits: Array) -> None:
    """Round contiguous float32 to halves, as native and contiguous bits."""
    code(half.char, False)(0, block.size, None, block.reshape(-1), bits.reshape(-1))


def copy(target: Array, source: Array) -> None:
    """``numpy.copyto`` with any casting, without a warning."""
    if source.size < LEAST or not have(source.dtype, target.dtype):
        with np.errstate(all="ignore"):
            np.copyto(target, source, casting="unsafe")
        return
    if not are_direct(target):
        order = sorted(range(target.ndim), key=lambda axis: -abs(target.strides[axis]))
        target, source = target.transpose(order), source.transpose(order)
    if target.dtype == _SINGLE:
        _copy_widened(target, source)
    else:
        _copy_narrowed(target, source)


def _copy_widened(target: Array, source: Array) -> None:
    block = target if are_direct(target) else np.empty(target.shape, _SINGLE)
    bits = bits_of(source)
    if not are_direct(source):
        moved = bits_within(block, last=True)
        np.copyto(moved, bits)
        bits = moved
    widen(bits, source.dtype, block)
    if block is not target:
        np.copyto(target, block)


def _copy_narrowed(target: Array, source: Array) -> None:
    block = source if are_direct(source) else np.require(source, _SINGLE, ["C", "A"])
    bits = bits_of(target)
    if are_direct(target):
        narrow(block, target.dtype, bits)
    else:
        moved = np.empty(target.shape, _BITS)
        narrow(block, target.dtype, moved)
        np.copyto(bits, moved)


def converted(array: Array, dtype: Any) -> Array:
    """``array.astype(dtype, copy=False)``, without a warning."""
    if array.size < LEAST or not have(array.dtype, np.dtype(dtype)):
        with np.errstate(all="ignore"):
            return array.astype(dtype, copy=False)
    result = np.empty_like(array, dtype, subok=False)
    copy(result, array)
    return result


def contiguous(array: Array, dtype: Any) -> Array:
    """``numpy.ascontiguousarray(array, dtype)``."""
    if array.size < LEAST or not have(array.dtype, np.dtype(dtype)):
        return np.ascontiguousarray(array, dtype)
    result = np.empty(array.shape, dtype)
    copy(result, array)
    return result
