"""Kernels over blocks whose rows are contiguous, but lie apart: parts of longer rows, every other row.

Nothing is converted. Long rows are computed where they are: the kernel is called for one after the other. Shorter
rows, for which that takes too long, are copied, some of them at a time, into memory that stays in the cache. Both
are done in machine code (`machine.apart`), by threads that share blocks of rows as in any other call.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import BuiltinFunctionType
from typing import Any

import numpy as np

from fastsoftmax._vectors import GROUP_LIMIT, VECTOR_BYTES
from fastsoftmax.arrays import threads
from fastsoftmax.arrays.blocks import Apart, Parted, on_lines
from fastsoftmax.arrays.threads import ROW_MULTIPLE
from fastsoftmax.runtime import teams

COPIED_BYTES = 1 << 12
"""About so many bytes of a block are copied at a time; memory rests while they are computed, so it is not more."""


def _words(one: Any) -> int:
    """How many words an argument of a kernel takes."""
    if isinstance(one, np.ndarray):
        return 1 + one.ndim
    return len(one) if isinstance(one, tuple) else int(one is not None)


def run(kernel: Any, rows: int, work: int, room: Callable[[], Any], args: tuple[Any, ...]) -> bool:
    """`threads.run` for a kernel with arguments that are `Parted`, whose first axis is that of the rows.

    It returns False, and does nothing, if the rows of one of them are not contiguous.
    """
    given, blocks, argument = list(args), list[tuple[int, Apart]](), 0
    for k, one in enumerate(args):
        if isinstance(one, Parted):
            apart = one.apart
            if apart is None or len(apart.levels) > teams.MOST_LEVELS:
                return False
            # Of an array, only its address and its shape are read. (`broadcast_to` takes 5 us.)
            given[k] = np.ndarray(one.shape, one.dtype, apart.row, strides=(0,) * len(one.shape))
            blocks.append((argument, apart))
        argument += _words(given[k])
    memory = room()
    code = kernel.code((0, 0, memory, *given))
    if len(blocks) > teams.MOST_APART or not isinstance(code, BuiltinFunctionType):  # or NUMBA_DISABLE_JIT
        return False
    longest = max((apart.row for _, apart in blocks), key=lambda row: row.size)
    at_once = 1
    if longest.size <= GROUP_LIMIT:
        if memory.size:  # the kernel needs it, and may leave results there
            return False
        # Kernels take so many rows at once, one in each lane, and as long for fewer.
        at_once = max(1, COPIED_BYTES // (ROW_MULTIPLE * longest.nbytes)) * ROW_MULTIPLE
    described, size = _described(blocks, at_once)
    if at_once > 1:
        room = partial(on_lines, size // memory.itemsize, memory.dtype)
        memory = room()
    words = np.array([at_once, argument, len(blocks), *described], np.int64).data.cast("B").cast("q")
    threads.run_code(code, rows, work * threads.unit(args), memory, room, tuple(given), words)
    return True


def _described(blocks: Sequence[tuple[int, Apart]], at_once: int) -> tuple[list[int], int]:
    """Blocks as `runtime.teams` describes them, and the memory for copies of their rows, in bytes.

    Each comes with the number of its word among the arguments.
    """
    words, size = list[int](), 0
    for argument, (row, levels, output) in blocks:
        kind = (teams.WRITTEN if output else teams.READ) if at_once > 1 else teams.IN_PLACE
        sizes, strides = zip(*levels, strict=True)
        unused = teams.MOST_LEVELS - len(levels)
        words += [argument, kind, row.ctypes.data, row.nbytes, size]
        words += [*sizes[:-1], *[teams.ENDLESS] * (unused + 1), *strides, *[0] * unused]
        size += (at_once * row.nbytes // VECTOR_BYTES + 2) * VECTOR_BYTES  # whole lines, and one between copies
    return words, size
