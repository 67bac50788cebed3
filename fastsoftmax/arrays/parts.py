"""Kernels run over blocks of which some are not in memory, but in another layout or dtype: `blocks.Parted`.

Rows are cut into parts of some 100 KB to 1 MB. The threads of the call take parts in turns: each converts what the
kernel reads into memory of its own, runs the kernel there, and delivers what it wrote. NumPy converts without the
GIL. So a call needs little memory and hears Ctrl-C soon, whatever the layout of its arrays.

An inner axis that is too long for a part is cut as well. Every part of it has several rows, so that kernels walk
it as they walk the whole block: the bits of a row do not depend on the parts.

Smaller parts cost more (threads wait for the GIL between them) and larger ones leave the cache. A kernel that took
the strides of rows would save the copy, which costs as much as a softmax where the memory is slow.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fastsoftmax.arrays import threads
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


def run(kernel: Any, rows: int, work: int, room: Callable[[], Any], *args: Any, whole: Sequence[Any] = ()) -> None:
    """`threads.run` for a kernel whose arguments may be `Parted`. The first is a block, which has the rows.

    Of the others, those with three axes have the outer axis first, those with two the rows last, and those with
    one axis are numbers of rows, unless they are in `whole`.
    """
    if Parted in map(type, args):
        _Call(kernel, rows, work, room, args, whole).run()
    else:
        threads.run(kernel, rows, work, room, *args)


class _Call:
    """A kernel and its arguments, sorted by how they are cut."""

    def __init__(
        self,
        kernel: Any,
        rows: int,
        work: int,
        room: Callable[[], Any],
        args: tuple[Any, ...],
        whole: Sequence[Any],
    ) -> None:
        outer, _, self.inner = args[0].shape
        self.args, self.room = args, room
        dtype = args[0].dtype
        self.work = work * dtype.itemsize // 4
        most = max(one.size // rows for one in args if isinstance(one, (np.ndarray, Parted)))
        converted = sum(isinstance(one, Parted) for one in args)
        self.boxes = boxes(outer, most, self.inner, PART_BYTES // (converted * dtype.itemsize))
        inside = self.boxes[0].end > 0
        self.sliced: list[tuple[int, bool]] = []
        """The places of arrays whose parts are contiguous, and whether they have one axis, of the rows."""
        self.parted: list[tuple[int, Parted]] = []
        for place, one in enumerate(args):
            if isinstance(one, Parted):
                self.parted.append((place, one))
            elif not isinstance(one, np.ndarray) or not one.size or any(one is other for other in whole):
                continue
            elif one.ndim == 1:
                self.sliced.append((place, True))
            elif one.ndim == 2:
                block = one.reshape(1, *one.shape)
                self.parted.append((place, Parted(block, 1, block.shape, one.dtype, output=one.flags.writeable)))
            elif inside:
                self.parted.append((place, Parted(one, 1, one.shape, one.dtype, output=one.flags.writeable)))
            else:
                self.sliced.append((place, False))
        memory, rooms = self._seat()
        given = list(args)
        for (place, _), one in zip(self.parted, rooms, strict=True):
            given[place] = one
        self.code = kernel.code((0, 0, memory, *given))

    def _places(self, box: Box) -> tuple[int, int]:
        """The numbers of the rows of a part."""
        if box.end:
            return box.first * self.inner + box.begin, box.first * self.inner + box.end
        return box.first * self.inner, box.last * self.inner

    def _part_of(self, place: int, block: Parted, box: Box) -> Box:
        """The part of an argument that belongs to a part of the rows."""
        if len(block.shape) == 1:
            return Box(*self._places(box))
        return Box(0, 1, *self._places(box)) if getattr(self.args[place], "ndim", 3) == 2 else box

    def _seat(self) -> tuple[Any, list[Array]]:
        """The working memory of one thread: that of the kernel, and memory for parts."""
        rooms = []
        for place, block in self.parted:
            largest = (self._part_of(place, block, self.boxes[k]) for k in (0, -1))
            rooms.append(on_lines(max(map(block.count, largest)), block.dtype))
        return self.room(), rooms

    def _task(self, part: int, seat: tuple[Any, list[Array]]) -> None:
        memory, rooms = seat
        box, values = self.boxes[part], list(self.args)
        first, last = self._places(box)
        for place, by_rows in self.sliced:
            one = values[place]
            values[place] = one[first:last] if by_rows else one[box.first : box.last]
        written = []
        for (place, block), room in zip(self.parted, rooms, strict=True):
            own = self._part_of(place, block, box)
            value = block.memory(own, room) if block.output else block.read(own, room)
            if block.output:
                written.append((block, own, value))
            values[place] = value[0] if getattr(self.args[place], "ndim", 3) == 2 else value
        self.code(0, last - first, memory, *values)
        for block, own, value in written:
            block.write(own, value)

    def run(self) -> None:
        """Run the kernel over all parts."""
        threads.share(len(self.boxes), self.work, self._seat, self._task)
