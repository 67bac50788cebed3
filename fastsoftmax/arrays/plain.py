"""Calls with contiguous rows of a native dtype and default options, which need neither conversion nor layout.

The rows may lie apart in a matrix: parts of longer rows, or every other row.

For small arrays, checks cost more than the computation: only those that a kernel relies on are left.
"""

from collections.abc import Callable
from types import BuiltinFunctionType
from typing import Any

import numpy as np

from fastsoftmax._vectors import SMALL
from fastsoftmax.arrays import apart
from fastsoftmax.arrays.blocks import NO_ROOM
from fastsoftmax.arrays.threads import run_code


def has_rows(x: Any) -> bool:
    """Whether `run_plain` takes an array of a native dtype.

    It is contiguous, or a matrix of contiguous rows in the order of memory, so that `np.empty_like` is contiguous.
    """
    flags = x.flags
    if flags.carray:
        return True
    if flags.c_contiguous or x.ndim != 2:
        return False
    row, item = x.strides
    return bool(row > item == x.itemsize and flags.aligned)


def run_plain(
    code: Callable[..., Any], rows: int, dtype: np.dtype[Any], factor: int, args: tuple[Any, ...]
) -> None:
    """Run a kernel's code on the rows of the first of `args`; they take `factor` times a softmax."""
    x = args[0]
    work = factor * x.nbytes // 4
    if not x.flags.c_contiguous:
        if x.size > SMALL and isinstance(code, BuiltinFunctionType):
            apart.run_matrix(code, work, args)
            return
        args = (x.copy(), *args[1:])
    run_code(code, rows, work, NO_ROOM[dtype], None, args)


def plain_rows(
    known: dict[np.dtype[Any], Any], x: Any, before: tuple[Any, ...], after: tuple[Any, ...], longest: int
) -> Any:
    """One number for each row of a plain array, by the kernel for its dtype; None if the array does not fit it.

    `before` and `after` are the kernel's arguments before and after its output, `longest` is its longest row.
    """
    if type(x) is not np.ndarray:
        return None
    dtype = x.dtype
    kernel = known.get(dtype)
    contiguous = x.flags.carray
    if kernel is None or not x.size or x.ndim < 2 or not (contiguous or has_rows(x)):
        return None
    rows = np.empty(x.shape[:-1], dtype)
    block, numbers = (x, rows) if x.ndim == 2 else (x.reshape(-1, x.shape[-1]), rows.reshape(-1))
    if contiguous and x.size <= SMALL:
        kernel(0, rows.size, NO_ROOM[dtype], block, *before, numbers, *after)
        return rows
    if x.shape[-1] > longest:
        return None
    run_plain(kernel, rows.size, dtype, 1, (block, *before, numbers, *after))
    return rows
