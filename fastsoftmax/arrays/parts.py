"""Kernels run over blocks of which some are not in memory, but in another layout or dtype: `blocks.Parted`.

Rows are cut into parts of some 100 KB to 1 MB. The threads of the call take parts in turns: each converts what the
kernel reads into memory of its own, runs the kernel there, and delivers what it wrote. Kernels convert float16 and
bfloat16 (`halves`), NumPy the rest, both without the GIL. So a call needs little memory and hears Ctrl-C soon,
whatever the layout of its arrays.

An inner axis that is too long for a part is cut as well. Every part of it has several rows, so that kernels walk
it as they walk the whole block: the bits of a row do not depend on the parts.

Smaller parts cost more (threads wait for the GIL between them) and larger ones leave the cache. Rows that are
contiguous, and only lie apart, need no part: `arrays.apart`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax.arrays import apart, threads
from fastsoftmax.arrays.blocks import INNER_LIMIT, PART_BYTES, Array, Box, Parted, on_lines

LANES = 16
"""An inner axis is cut at multiples of so many, so that vectors of rows are full."""


def boxes(outer: int, classes: int, inner: int, items: int) -> list[Box]:
    """Parts of a block with about so many items each, and at least one row."""
    if classes * inner <= items or inner == 1:
        step = max(1, items // max(classes * inner, 1))
        return [Box(first, min(first + step, outer)) for first in range(0, outer, step)]
    width = max(INNER_LIMIT, items // classes)
    width -= width % LANES if width > LANES else 0
    count = max(1, inner // width)
    cuts = [k * width for k in range(count)] + [inner]
    return [Box(o, o + 1, *cuts[k : k + 2]) for o in range(outer) for k in range(count)]


def parts(block: Any) -> Iterator[Array]:
    """All of a block, array by array."""
    items = PART_BYTES // block.dtype.itemsize
    outer, classes, inner = block.shape
    for box in boxes(outer, classes, inner, items):
        if isinstance(block, Parted):
            yield block.read(box)
        else:
            inner = slice(box.begin, box.end) if box.end else slice(None)
            yield block[box.first : box.last, :, inner]


class Piece(NamedTuple):
    """A part of an argument that is converted where the kernel runs."""

    block: Parted
    box: Box


Cut = Callable[[int], tuple[int, list[Any]]]
"""By the number of a part: how many rows it has, and the kernel's arguments. A `Piece` stands for its memory."""


def run_parts(
    kernel: Any, count: int, work: int, room: Callable[[], Any], cut: Cut, largest: Sequence[int]
) -> None:
    """Call ``kernel(0, rows, room, *arguments)`` for so many parts, on as many threads as pay off.

    All parts have pieces at the same places. `largest` are the numbers of some parts, among them those whose
    pieces are the largest.
    """
    samples = [cut(part)[1] for part in largest]
    given = samples[0].copy()
    places = [place for place, one in enumerate(given) if isinstance(one, Piece)]
    dtypes = [given[place].block.dtype for place in places]
    some = [[sample[place] for place in places] for sample in samples]
    sizes = [max(block.count(box) for block, box in pieces) for pieces in zip(*some, strict=True)]
    for place, dtype in zip(places, dtypes, strict=True):
        given[place] = np.empty(0, dtype)
    for place in places:
        samples[0][place].block.prepare()
    code = kernel.code((0, 0, room(), *given))

    def seat() -> tuple[Any, list[Array]]:
        """The working memory of one thread: that of the kernel, and memory for pieces."""
        return room(), [on_lines(size, dtype) for size, dtype in zip(sizes, dtypes, strict=True)]

    def task(part: int, seat: tuple[Any, list[Array]]) -> None:
        memory, rooms = seat
        rows, arguments = cut(part)
        pieces = [arguments[place] for place in places]
        for place, (block, box), own in zip(places, pieces, rooms, strict=True):
            arguments[place] = block.memory(box, own) if block.output else block.read(box, own)
        code(0, rows, memory, *arguments)
        for place, (block, box) in zip(places, pieces, strict=True):
            if block.output:
                block.write(box, arguments[place])

    threads.share(count, work * threads.unit(tuple(given)), seat, task)


def run(kernel: Any, rows: int, work: int, room: Callable[[], Any], *args: Any, whole: Sequence[Any] = ()) -> None:
    """`threads.run` for a kernel whose arguments may be `Parted`. The first is a block, which has the rows.

    Of the others, those with three axes have the outer axis first, those with two the rows last, and those with
    one axis are numbers of rows, unless they are in `whole`.
    """
    if Parted not in map(type, args):
        threads.run(kernel, rows, work, room, *args)
        return
    outer, _, inner = args[0].shape
    if inner == 1 and apart.run(kernel, rows, work, room, args):
        return
    most = max(one.size // rows for one in args if isinstance(one, (np.ndarray, Parted)))
    converted = sum(isinstance(one, Parted) for one in args)
    some = boxes(outer, most, inner, PART_BYTES // (converted * args[0].dtype.itemsize))
    inside = some[0].end > 0
    uncut = [_is_uncut(one, whole) for one in args]
    given = [one if is_uncut else _cuttable(one, inside) for one, is_uncut in zip(args, uncut, strict=True)]

    def cut(part: int) -> tuple[int, list[Any]]:
        box = some[part]
        first = box.first * inner + box.begin
        last = box.first * inner + box.end if box.end else box.last * inner
        pairs = zip(given, uncut, strict=True)
        return last - first, [one if is_uncut else _cut(one, box, first, last) for one, is_uncut in pairs]

    run_parts(kernel, len(some), work, room, cut, (0, len(some) - 1))


def _is_uncut(one: Any, whole: Sequence[Any]) -> bool:
    """Whether every part of the rows gets the whole of an argument."""
    if isinstance(one, Parted):
        return False
    return not isinstance(one, np.ndarray) or not one.size or any(one is other for other in whole)


def _cuttable(one: Any, inside: bool) -> Any:
    """An argument as a `Parted` if its parts are not contiguous; `inside`: whether blocks are cut inside rows."""
    if isinstance(one, Parted) or one.ndim == 1 or (one.ndim == 3 and not inside):
        return one
    return Parted(one, one.ndim - 2, one.shape, one.dtype, output=one.flags.writeable)


def _cut(one: Any, box: Box, first: int, last: int) -> Any:
    """What belongs to a part of the rows, which have the numbers first .. last - 1."""
    if not isinstance(one, Parted):
        return one[first:last] if one.ndim == 1 else one[box.first : box.last]
    by_rows = {1: Box(first, last), 2: Box(0, 1, first, last)}
    return Piece(one, by_rows.get(len(one.shape), box))
