"""Kernels over blocks whose rows are contiguous, but lie apart: parts of longer rows, every other row.

Nothing is converted. Some kernels take the distance of the rows of the logits, and read them where they are. For
the others, long rows are computed where they are: the kernel is called for one after the other. Shorter rows, for
which that takes too long, are copied, some of them at a time, into memory that stays in the cache. Both are done
in machine code (`machine.apart`), by threads that share blocks of rows as in any other call.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from types import BuiltinFunctionType
from typing import Any

import numpy as np

from fastsoftmax._vectors import APART, GROUP_LIMIT, VECTOR_BYTES
from fastsoftmax.arrays import threads
from fastsoftmax.arrays.blocks import NO_ROOM, Apart, Parted
from fastsoftmax.runtime import teams

COPIED_BYTES = 1 << 12
"""About so many bytes of a block are copied at a time; memory rests while they are computed, so it is not more."""


TAKE_DISTANCES = {
    "activations.softmax",
    "activations.log_softmax",
    "activations.logsumexp",
    "entropy.entropy",
    "losses.cross_entropy",
}
"""The kernels that take the distance of the rows of their first block: the option `apart` of `traverse`."""
IN_CACHE = 1 << 23
"""Blocks with so many bytes at most, and what lies between their rows, are always read where they are."""
SPARSE = 2 * VECTOR_BYTES
"""Beyond that, shorter rows far apart are copied: kernels read whole vectors, and so lines between the rows."""


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
            given[k] = _stand_in(one.shape, apart.row)
            blocks.append((argument, apart))
        argument += _words(given[k])
    memory = room()
    code = kernel.code((0, 0, memory, *given))
    if len(blocks) > teams.MOST_APART or not isinstance(code, BuiltinFunctionType):  # or NUMBA_DISABLE_JIT
        return False
    if memory.size and _are_copied(blocks):  # the kernel needs it, and may leave results there
        return False
    _run(code, rows, work * threads.unit(args), memory, room, tuple(given), blocks)
    return True


def run_matrix(code: Any, work: int, args: tuple[Any, ...]) -> None:
    """`threads.run_code` for a kernel that needs no working memory; the rows of its first argument lie apart.

    That is a matrix, which the kernel reads; the other arguments are contiguous.
    """
    x, *others = args
    block = Apart(x[0], [(len(x), x.strides[0])], False)
    given = _stand_in((*x.shape, 1), block.row), *[_as_block(one) for one in others]
    _run(code, len(x), work, NO_ROOM[x.dtype], None, given, [(0, block)])


def _as_block(one: Any) -> Any:
    """An argument of a kernel, with the axis that a matrix lacks."""
    return one[:, :, None] if isinstance(one, np.ndarray) and one.ndim == 2 else one


def _stand_in(shape: tuple[int, ...], row: Any) -> Any:
    """An array in the place of one whose rows lie apart: only its address and its shape are read."""
    return np.ndarray(shape, row.dtype, row, strides=(0,) * len(shape))  # `broadcast_to` takes 5 us


def _are_copied(blocks: Sequence[tuple[int, Apart]]) -> bool:
    """Whether some rows at a time are copied; else each is computed where it is."""
    return max(apart.row.size for _, apart in blocks) <= GROUP_LIMIT


def _takes_distance(code: Any, args: tuple[Any, ...], blocks: Sequence[tuple[int, Apart]]) -> bool:
    """Whether a kernel finds the rows of `blocks` by their distance, and they are not better copied."""
    (argument, apart), *others = blocks
    ((rows, stride), *levels), row = apart.levels, apart.row
    if argument or others or levels or not 0 < row.size <= GROUP_LIMIT or stride <= 0 or stride % row.itemsize:
        return False
    if code.__name__.rsplit(".", 2)[0] not in TAKE_DISTANCES:
        return False
    if rows * stride <= IN_CACHE:
        return True
    return row.nbytes >= SPARSE or stride <= 3 * row.nbytes


def _run(
    code: Any,
    rows: int,
    work: int,
    memory: Any,
    room: Callable[[], Any] | None,
    args: tuple[Any, ...],
    blocks: Sequence[tuple[int, Apart]],
) -> None:
    """`threads.run_code` for a kernel's code; blocks come with the numbers of their words among the arguments."""
    at_once, item = 1, memory.itemsize
    if _takes_distance(code, args, blocks):
        ((_, apart),) = blocks
        distance = apart.levels[0][1] // item
        block = _stand_in((APART + distance, apart.row.size, 1), apart.row)
        threads.run_code(code, rows, work, memory, None, (block, *args[1:]))
        return
    if _are_copied(blocks):
        # Kernels take so many rows at once, one in each lane, and as long for fewer.
        lanes, longest = VECTOR_BYTES // item, max(apart.row.nbytes for _, apart in blocks)
        at_once = max(1, COPIED_BYTES // (lanes * longest)) * lanes
    described = tuple((word, apart.row.nbytes, tuple(apart.levels), apart.output) for word, apart in blocks)
    words, size = _described(described, at_once, sum(map(_words, args)))
    if at_once > 1:
        room = partial(np.empty, size // item, memory.dtype)
        memory = room()
    threads.run_code(code, rows, work, memory, room, args, words)


@lru_cache(maxsize=64)
def _described(
    blocks: tuple[tuple[int, int, tuple[tuple[int, int], ...], bool], ...], at_once: int, arguments: int
) -> tuple["memoryview[int]", int]:
    """The words of `runtime.teams` from `AT_ONCE` on, and the memory for copies of the rows, in bytes.

    Of each block `blocks` has the number of its word among so many words of arguments, the bytes of a row, its
    levels, and whether it is written.
    """
    words, size = [at_once, arguments, len(blocks)], 0
    for argument, length, levels, output in blocks:
        kind = (teams.WRITTEN if output else teams.READ) if at_once > 1 else teams.IN_PLACE
        sizes, strides = zip(*levels, strict=True)
        unused = teams.MOST_LEVELS - len(levels)
        words += [argument, kind, length, size]
        words += [*sizes[:-1], *[teams.ENDLESS] * (unused + 1), *strides, *[0] * unused]
        size += (at_once * length // VECTOR_BYTES + 2) * VECTOR_BYTES  # whole lines, and one between copies
    return np.array(words, np.int64).data.cast("B").cast("q"), size + VECTOR_BYTES
