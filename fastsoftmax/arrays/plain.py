"""Calls with contiguous rows of a native dtype and default options, which need neither conversion nor layout.

For small arrays, checks cost more than the computation: only those that a kernel relies on are left.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fastsoftmax.arrays.blocks import NO_ROOM
from fastsoftmax.arrays.threads import SHARED_WORK, run_code


def run_plain(code: Callable[..., Any], rows: int, work: int, dtype: np.dtype[Any], args: tuple[Any, ...]) -> None:
    """Run a kernel's code on contiguous rows; `work` as for `threads.run_code`."""
    room = NO_ROOM[dtype]
    if work < SHARED_WORK:
        code(0, rows, room, *args)
    else:
        run_code(code, rows, work, room, partial(NO_ROOM.get, dtype), args)


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
    if kernel is None or not x.size or x.ndim < 2 or x.shape[-1] > longest or not x.flags.carray:
        return None
    rows = np.empty(x.shape[:-1], dtype)
    block, numbers = (x, rows) if x.ndim == 2 else (x.reshape(-1, x.shape[-1]), rows.reshape(-1))
    run_plain(kernel, rows.size, x.nbytes // 4, dtype, (block, *before, numbers, *after))
    return rows
