"""From the arrays of a call to blocks for kernels, and back: dtype, axes, memory layout and overlap.

Every kernel works on C-contiguous blocks of shape (outer, classes, inner). A `Problem` turns the user's arrays
into such blocks, without a copy where their memory allows it, and the blocks back into what the user expects.
This file depends on NumPy, `_vectors` and `halves` only.
"""

import math
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsoftmax._vectors import COLUMN_LIMIT, GROUP_LIMIT, VECTOR_BYTES
from fastsoftmax.arrays import halves

Array = NDArray[Any]
Axis = int | str | Sequence[int] | Sequence[str] | None

# Classes are moved last if the inner axis is shorter (vectors not full) or there are more of them (large tiles).
INNER_LIMIT = 8
TILE_CLASSES = 8192
# Tiles of rows that lie side by side are made up to this large, so that memory is read in long stretches.
TILE_BYTES = 1 << 18
# For small arrays, checks cost more than the computation, so there is a shorter path for the usual arguments.
# Defaults are recognised by identity: == may return an array, or be true for a type that has to be refused.
SHORT_WAY = 1 << 16
"""Arrays with so many items at most have it in functions whose short path is not for arrays of any size."""
WHOLE = 1 << 17
"""Arrays with more items are not converted as a whole, but in parts."""
PART_BYTES = 1 << 20
"""The memory in which a thread converts parts, of one row at least; it stays in a cache until kernels read it."""
LAST = -1
UNTEMPERED = 1.0
# How far the binary exponent of a temperature may lie below and above the exponents of the dtype. Others are
# clipped: every difference of logits, divided by T, is infinite, or 0, for the clipped T as well.
BEYOND = (-126, 120)

_COMPUTED_IN: dict[str, np.dtype[Any]] = {
    "e": np.dtype(np.float32),
    "f": np.dtype(np.float32),
    "d": np.dtype(np.float64),
    "E": np.dtype(np.float32),  # `ml_dtypes.bfloat16`, which NumPy counts among the voids
}
_DOUBLE: np.dtype[Any] = np.dtype(np.float64)
NO_ROOM = {dtype: np.empty(0, dtype) for dtype in _COMPUTED_IN.values()}
"""Working memory of size 0, which is enough for contiguous rows."""
NO_BLOCK = {dtype: np.empty((0, 0, 0), dtype) for dtype in NO_ROOM}
"""What some kernels take if no gradient is wanted."""


def named(function: str, name: str) -> str:
    """How an error message begins."""
    return f"{function}: {name}"


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether it is a dtype of floating-point numbers that the functions take and return."""
    return dtype.char in "efd" or (dtype.kind == "V" and dtype.name == "bfloat16")


def real_array(function: str, name: str, value: Any) -> Array:
    """`value` as an array of real numbers; TypeError for masked arrays and for dtypes without a kernel."""
    if is_masked(value):
        raise TypeError(
            f"{named(function, name)} is a masked array; pass its data, and where=~mask where the function has it"
        )
    array = np.asarray(value)
    if array.dtype.char not in "efd" and array.dtype.kind not in "biu" and not is_float(array.dtype):
        raise TypeError(
            f"{named(function, name)} has dtype {array.dtype}, expected float16, float32, float64, "
            f"integers or bools{_advice(name, value, array)}"
        )
    return array


def _advice(name: str, value: Any, array: Array) -> str:
    """What a user can do about an argument whose dtype is not numeric, as the end of a message."""
    if hasattr(value, "tocsr"):
        return (
            "; for the rows of a sparse matrix A in CSR form there are segment_softmax(A.data, A.indptr) and the "
            "other functions of segments"
        )
    if name in ("targets", "labels") and (
        array.dtype.kind in "UST" or (array.size and isinstance(array.flat[0], str))
    ):
        return "; numpy.unique(labels, return_inverse=True) gives the class index of each label"
    if hasattr(value, "to_numpy"):
        return f"; {name}.to_numpy(dtype=float, na_value=float('nan')) makes an array of numbers of it"
    return ""


def stand_in(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of this shape and dtype that takes no memory; it is used for checks."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def number(function: str, name: str, value: Any, least: float, inclusive: bool) -> float:
    """`value` as a finite float above `least` (or equal, if `inclusive`); else TypeError or ValueError."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{named(function, name)} must be a number, got {value!r}") from None
    if not math.isfinite(result) or result < least or (result == least and not inclusive):
        bound = f">= {least:g}" if inclusive else f"> {least:g}"
        raise ValueError(f"{named(function, name)} must be finite and {bound}, got {value!r}")
    return result


def _nearest_pair(numerator: int, denominator: int, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The two numbers of `dtype` whose sum is closest to a fraction; OverflowError if it is too large for float64.

    Python divides integers exactly and rounds once.
    """
    with np.errstate(all="ignore"):
        high = dtype.type(numerator / denominator)
    if not np.isfinite(high):
        return high, dtype.type(0)
    above, below = float(high).as_integer_ratio()
    return high, dtype.type((numerator * below - above * denominator) / (denominator * below))


def exact_pair(value: float, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The number as a pair."""
    return _nearest_pair(*value.as_integer_ratio(), dtype)


def inverse_pair(value: float, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """1/value, for a positive value, as a pair; OverflowError if it is too large for float64."""
    numerator, denominator = value.as_integer_ratio()
    return _nearest_pair(denominator, numerator, dtype)


def is_masked(value: Any) -> bool:
    """Whether it is a masked array; no array is one unless somebody has imported ``numpy.ma``."""
    return isinstance(value, getattr(sys.modules.get("numpy.ma"), "MaskedArray", ()))


def is_plain(x: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether it is an array of this shape and dtype that a kernel can take without a copy."""
    return type(x) is np.ndarray and x.shape == shape and x.dtype == dtype and x.flags.carray


def on_lines(size: int, dtype: np.dtype[Any]) -> Array:
    """Memory that begins at the start of a cache line, so that no vector of a tile lies in two of them."""
    room = np.empty(size * dtype.itemsize + VECTOR_BYTES, np.uint8)
    start = -room.ctypes.data % VECTOR_BYTES
    return room[start : start + size * dtype.itemsize].view(dtype)


def lie_apart(a: Array, b: Array) -> bool:
    """Whether two arrays cannot share memory; the cheaper check comes first."""
    return (a is not b and a.flags.owndata and b.flags.owndata) or not np.may_share_memory(a, b)


def split_temperature(value: float, least: int, most: int) -> tuple[float, int, int]:
    """T as fraction * 2**(exponent + left), a fraction in (1/2, 1] and an exponent from `least` to `most`.

    Compiled code uses this function, too.
    """
    fraction, exponent = math.frexp(value)
    if fraction == 0.5:
        fraction, exponent = 1.0, exponent - 1
    within = min(max(exponent, least), most)
    return fraction, within, min(max(exponent - within, BEYOND[0]), BEYOND[1])


def inverse_temperature(function: str, temperature: Any, dtype: np.dtype[Any]) -> tuple[Any, ...] | None:
    """1/T as kernels take it (`kernels.elementary.centred`), None for T = 1.

    (pre, gain, high, low, power): 1/T = pre gain (high + low), where pre <= 1 and gain >= 1 are powers of two and
    their product is 2**power; high is in [1, 2) unless 2**power would be more than the dtype can hold.
    """
    if type(temperature) is float and temperature == 1.0:
        return None
    value = number(function, "temperature", temperature, 0.0, inclusive=False)
    return None if value == 1.0 else inverse_parts(value, dtype)


@lru_cache(maxsize=64)
def inverse_parts(value: float, dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """`inverse_temperature` of a T that has been checked, and may be 1."""
    info = np.finfo(dtype)
    fraction, exponent, left = split_temperature(value, 1 - info.maxexp, info.nmant - info.minexp)
    high, low = inverse_pair(fraction, dtype)
    scale = dtype.type(math.ldexp(1.0, -left))
    pre, gain = math.ldexp(1.0, -max(exponent, 0)), math.ldexp(1.0, max(-exponent, 0))
    return dtype.type(pre), dtype.type(gain), high * scale, low * scale, dtype.type(-exponent)


def one_axis(function: str, axis: Any, ndim: int) -> int:
    """`axis` as a position, with NumPy's errors."""
    try:
        position = operator.index(axis)
    except TypeError:
        raise TypeError(f"{named(function, 'axis')} must be an integer, got {axis!r}") from None
    if not -ndim <= position < ndim:
        raise np.exceptions.AxisError(position, ndim, function)
    return position % ndim


def any_axes(function: str, axis: Any, ndim: int) -> tuple[int, ...]:
    """`axis` as a tuple of positions: an integer, several of them, or None for all."""
    if axis is None:
        return tuple(range(ndim))
    if ndim == 0 and isinstance(axis, int) and axis in (-1, 0):  # as in NumPy's reductions
        return ()
    if not isinstance(axis, (tuple, list)):
        return (one_axis(function, axis, ndim),)
    axes = tuple(one_axis(function, item, ndim) for item in axis)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{named(function, 'axis')} {tuple(axis)} names an axis twice")
    return axes


def read_only(block: Array) -> Array:
    """The same array, which cannot be written through from now on."""
    block.flags.writeable = False
    return block


UNWEIGHTED = {d: read_only(np.ones(VECTOR_BYTES // d.itemsize, d)[:0]) for d in NO_ROOM}
"""What kernels take if there are no weights: size 0, and the address of a vector of ones."""


def kernel_weights(weights: Array | None, dtype: np.dtype[Any]) -> Array:
    """Weights as kernels take them."""
    return UNWEIGHTED[dtype] if weights is None else read_only(weights.view())


def memory_order(x: Array) -> tuple[int, ...]:
    """The order of the axes in which x is contiguous; the natural order if there is none."""
    natural = tuple(range(x.ndim))
    if not x.flags.c_contiguous and x.size:
        by_stride = tuple(sorted(natural, key=lambda i: -x.strides[i]))
        if x.transpose(by_stride).flags.c_contiguous:
            return by_stride
    return natural


def computed_in(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """The dtype of the result for an argument of this dtype, and that of the computation."""
    result = (dtype if dtype.isnative else dtype.newbyteorder("=")) if is_float(dtype) else _DOUBLE
    return result, _COMPUTED_IN[result.char]


def same_place(source: Array, target: Array) -> bool:
    """Whether an input lies apart from an output, or exactly at its place: then it may be read as that is written.

    Both have the same order of axes.
    """
    return not np.may_share_memory(source, target) or (
        source.shape == target.shape
        and source.strides == target.strides
        and source.__array_interface__["data"][0] == target.__array_interface__["data"][0]
    )


def check_out(function: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """An error unless `out` is a writable array of this shape and dtype."""
    prefix = named(function, "out")
    if not isinstance(out, np.ndarray) or is_masked(out):
        raise TypeError(f"{prefix} must be a numpy.ndarray, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"{prefix} has shape {out.shape}, expected {shape}")
    if out.dtype != dtype:
        raise TypeError(f"{prefix} has dtype {out.dtype}, expected {dtype}")
    if not out.flags.writeable:
        raise ValueError(f"{prefix} is read-only")


class Box(NamedTuple):
    """A part of a block (outer, classes, inner): all of some outer indices, or some inner indices of one."""

    first: int
    last: int
    """The outer indices, from `first` to `last` - 1."""
    begin: int = 0
    end: int = 0
    """The inner indices, from `begin` to `end` - 1; all of them, and every axis behind them, if `end` is 0."""


def pieces(array: Array, axes: int, start: int, stop: int, at: int = 0) -> Iterator[tuple[Array, int, int]]:
    """Some of the places along the first `axes` axes of an array, which are numbered in C order, as views.

    Each view comes with the number of places before it in `start` .. `stop`, and with the number of its own.
    """
    if axes == 0:
        yield array, at, 1
    elif axes == 1:
        yield array[start:stop], at, stop - start
    else:
        inner = math.prod(array.shape[1:axes])
        while start < stop:
            row, within = divmod(start, inner)
            if within or stop - start < inner:
                count = min(inner - within, stop - start)
                yield from pieces(array[row], axes - 1, within, within + count, at)
            else:
                rows = (stop - start) // inner
                count = rows * inner
                yield array[row : row + rows], at, count
            start, at = start + count, at + count


def copy_to(target: Array, source: Array) -> None:
    """Copy an array into another one of the same shape, without a warning; Ctrl-C is heard meanwhile."""
    if source.size <= WHOLE:
        halves.copy(target, source)
        return
    for start in range(0, source.size, WHOLE):
        some = start, min(start + WHOLE, source.size)
        views = (pieces(array, array.ndim, *some) for array in (target, source))
        for (to, *_), (part, *_) in zip(*views, strict=True):
            halves.copy(to, part)


class Apart(NamedTuple):
    """A block whose rows are contiguous and lie apart in memory."""

    row: Array
    """The first row."""
    levels: list[tuple[int, int]]
    """The sizes and strides of the axes along which they lie, the last one first."""
    output: bool
    """Whether a kernel writes it; else it is read."""


class Parted:
    """A block that is not in memory: its parts are converted from an array, or to one, where a kernel runs.

    Parameters
    ----------
    array
        The user's array, with its axes in the order of the block.
    lead
        So many of its axes, in C order, are the first axis of the block.
    shape
        The shape of the block. With two axes, it is one outer index of a block, and is cut along the last one.
    dtype
        The dtype of the block.
    kept, hidden
        The entries that count, as an array of bools like `array`, or None for all; and what the others are.
    unit, start
        Each index of the block's first axis stands for `unit` places along those axes, from `start` on.
    output
        Whether a kernel writes it; else it is read.
    """

    __slots__ = ("array", "dtype", "hidden", "kept", "lead", "output", "shape", "size", "start", "unit")

    def __init__(
        self,
        array: Array,
        lead: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        kept: Array | None = None,
        hidden: float = -np.inf,
        unit: int = 1,
        start: int = 0,
        output: bool = False,
    ) -> None:
        self.array, self.lead, self.shape, self.dtype, self.kept = array, lead, shape, dtype, kept
        self.hidden, self.unit, self.start, self.size = hidden, unit, start, math.prod(shape)
        self.output = output

    def __len__(self) -> int:
        return self.shape[0]

    def _shape(self, box: Box) -> tuple[int, ...]:
        if not box.end:
            return (box.last - box.first, *self.shape[1:])
        return (*[1] * (len(self.shape) - 2), self.shape[-2], box.end - box.begin)

    def prepare(self) -> None:
        """Have the code that converts parts at hand, which may have to be compiled."""
        if halves.have(self.array.dtype, self.dtype):
            halves.code(self.array.dtype.char, not self.output)

    def count(self, box: Box) -> int:
        """How many items a part has."""
        return math.prod(self._shape(box))

    def memory(self, box: Box, room: Array | None = None) -> Array:
        """Memory for a part, in `room` if there is some."""
        count = self.count(box)
        room = np.empty(count, self.dtype) if room is None else room[:count]
        return room.reshape(self._shape(box))

    def _views(self, array: Array, box: Box, block: Array) -> Iterator[tuple[Array, Array]]:
        """Parts of `array` and the parts of `block` that belong to them."""
        if not box.end:
            first, last = (self.start + self.unit * k for k in (box.first, box.last))
            flat = block.reshape(max(last - first, 1), -1)
            for part, at, count in pieces(array, self.lead, first, last):
                yield part, flat[at : at + count].reshape(part.shape)
            return
        one = array[np.unravel_index(box.first, array.shape[: self.lead])]
        moved, matrix = np.moveaxis(one, 0, -1), block.reshape(block.shape[-2:])
        for part, at, count in pieces(moved, moved.ndim - 1, box.begin, box.end):
            values = matrix[:, at : at + count].reshape(-1, *part.shape[:-1])
            yield part, np.moveaxis(values, 0, -1)

    def read(self, box: Box, room: Array | None = None) -> Array:
        """A part as kernels take it, in `room` if there is some; without a warning of numbers out of range."""
        block = self.memory(box, room)
        if self._has_halves(block):
            self._widen(box, block)
        else:
            with np.errstate(all="ignore"):
                for part, values in self._views(self.array, box, block):
                    np.copyto(values, part, casting="unsafe")
        if self.kept is not None:
            for part, values in self._views(self.kept, box, block):
                np.copyto(values, self.hidden, where=~part)
        return block

    def write(self, box: Box, block: Array) -> None:
        """Put what a kernel has written where it belongs. The block may be used up."""
        if self.kept is not None:
            for part, values in self._views(self.kept, box, block):
                np.copyto(values, self.hidden, where=~part)
        if self._has_halves(block):
            self._narrow(box, block)
            return
        with np.errstate(all="ignore"):
            for part, values in self._views(self.array, box, block):
                np.copyto(part, values, casting="unsafe")

    def _has_halves(self, block: Array) -> bool:
        """Whether a part is converted by kernels."""
        return block.size >= halves.LEAST and halves.have(self.array.dtype, self.dtype)

    def _bits(self, box: Box) -> Array | None:
        """The array's halves as bits, if parts of it are native and contiguous."""
        return halves.bits_of(self.array) if not box.end and halves.are_direct(self.array) else None

    def _widen(self, box: Box, block: Array) -> None:
        """`read` for halves."""
        half, direct = self.array.dtype, self._bits(box)
        if direct is not None:
            for part, values in self._views(direct, box, block):
                halves.widen(part, half, values)
            return
        bits = halves.bits_within(block, last=True)
        for part, values in self._views(halves.bits_of(self.array), box, bits):
            np.copyto(values, part)
        halves.widen(bits, half, block)

    def _narrow(self, box: Box, block: Array) -> None:
        """`write` for halves."""
        half, direct = self.array.dtype, self._bits(box)
        if direct is not None:
            for part, values in self._views(direct, box, block):
                halves.narrow(values, half, part)
            return
        bits = halves.bits_within(block, last=False)
        halves.narrow(block, half, bits)
        for part, values in self._views(halves.bits_of(self.array), box, bits):
            np.copyto(part, values)

    def whole(self) -> Array:
        """All of it; Ctrl-C is heard meanwhile."""
        flat, step = np.empty(self.shape, self.dtype), max(1, WHOLE * len(self) // self.size)
        for first in range(0, len(self), step):
            box = Box(first, min(first + step, len(self)))
            self.read(box, flat[box.first : box.last].reshape(-1))
        return flat

    @property
    def apart(self) -> "Apart | None":
        """The rows where they are, if kernels can take each of them there, or a copy of its bytes; else None."""
        array, lead = self.array, self.lead
        shape, strides = array.shape, array.strides
        if self.kept is not None or self.unit != 1 or array.dtype != self.dtype or not array.flags.aligned:
            return None
        row = array[(0,) * lead + (...,)]
        if not row.flags.c_contiguous:
            return None
        levels: list[tuple[int, int]] = []
        for size, stride in zip(reversed(shape[:lead]), reversed(strides[:lead]), strict=True):
            if levels and stride == levels[-1][0] * levels[-1][1]:
                levels[-1] = levels[-1][0] * size, levels[-1][1]
            elif size > 1:
                levels.append((size, stride))
        return Apart(row.reshape(self.shape[1:]), levels or [(1, 0)], self.output)

    def row(self, number: int) -> Array:
        """One of the rows that lie `apart`, where it is."""
        row: Array = self.array[np.unravel_index(number, self.array.shape[: self.lead])]
        return row.reshape(-1)

    def cut(self, start: int, count: int, unit: int) -> "Parted":
        """Entries of the block in C order as another one, of shape (count, unit, 1), from entry `start` on.

        The block must have the inner size 1, and the classes behind the rows in its array.
        """
        lead, shape, marks = self.array.ndim, (count, unit, 1), (self.kept, self.hidden)
        return Parted(self.array, lead, shape, self.dtype, *marks, unit, start, self.output)


class Problem:
    """One call: the layout that its arrays share, and the conversions to blocks and back.

    Parameters
    ----------
    function
        The public function, for error messages.
    x
        The argument that determines shape, dtype and layout.
    axis
        The axis or axes of the classes.
    name
        The name of `x` in that function.
    several
        Whether `axis` may be a tuple or None.
    last
        Whether the classes must come last in the block (inner = 1).
    parts
        Whether a kernel may get `Parted` blocks.
    """

    __slots__ = (
        "axes",
        "classes",
        "dtype",
        "function",
        "inner",
        "inputs",
        "kept",
        "name",
        "natural",
        "order",
        "outer",
        "parted",
        "parts",
        "result_dtype",
        "row_shape",
        "rows",
        "shape",
        "x",
    )

    def __init__(
        self,
        function: str,
        x: Any,
        axis: Any,
        *,
        name: str = "x",
        several: bool = False,
        last: bool = False,
        parts: bool = True,
    ) -> None:
        array = real_array(function, name, x)
        self.function = function
        self.name = name
        self.x = array
        self.shape = array.shape
        self.result_dtype, self.dtype = computed_in(array.dtype)
        self.inputs: list[Array] = []
        self.kept: Array | None = None
        self.parted = False
        self.parts = parts
        if several:
            self.axes = any_axes(function, axis, array.ndim)
        else:
            if array.ndim == 0:
                raise ValueError(f"{named(function, name)} is 0-d, expected at least one axis of classes")
            self.axes = (one_axis(function, axis, array.ndim),)
        self._lay_out(last)

    def _lay_out(self, last: bool) -> None:
        """Choose the order of the axes in the block: their order in memory, if a kernel can use it."""
        x, axes = self.x, self.axes
        natural = tuple(range(x.ndim))
        order = memory_order(x)
        self.row_shape = tuple([n for a, n in enumerate(self.shape) if a not in axes])
        self.rows = math.prod(self.row_shape)
        if len(axes) == 1:
            self.classes = self.shape[axes[0]]
            following = order[order.index(axes[0]) + 1 :]
            self.inner = 0 if last else math.prod([self.shape[a] for a in following])
        else:
            self.classes = math.prod([self.shape[a] for a in axes])
            self.inner = 0
        if self.inner != 1 and (self.inner < INNER_LIMIT or self.classes > TILE_CLASSES):
            order = tuple(a for a in natural if a not in axes) + axes
            self.inner = 1
        self.order = order
        self.natural = order == natural
        self.outer = self.rows // self.inner

    def convert(self, array: Array, kept: Array | None = None) -> Any:
        """`array`, of the shape of x, as a read-only block of the dtype of the computation.

        It is an array, or a `Parted` if it is large and a kernel cannot take it as it is. `kept` are the entries
        that count, or None for all; the others are -inf.
        """
        moved = array if self.natural else array.transpose(self.order)
        shape = (self.outer, self.classes, self.inner)
        if array.size > WHOLE and (kept is not None or not self.fits(moved)):
            marks = None if kept is None else kept.transpose(self.order)
            block = Parted(moved, self.lead, shape, self.dtype, marks)
            if self.parts:
                self.inputs.append(moved)
                self.parted = True
                return block
            moved = block.whole()
        native = halves.contiguous(moved, self.dtype)
        if kept is not None:
            native = native.copy() if np.may_share_memory(native, array) else native
            np.copyto(native, -np.inf, where=~kept.transpose(self.order))
        if not native.flags.aligned:
            native = native.copy()
        self.inputs.append(native)
        return read_only(native.reshape(shape))

    def fits(self, array: Array) -> bool:
        """Whether a kernel can take an array, whose axes are in the order of the block, as it is."""
        return array.dtype == self.dtype and array.flags.c_contiguous and array.flags.aligned

    @property
    def lead(self) -> int:
        """How many axes come before those of the classes, in the order of the block."""
        return min(map(self.order.index, self.axes), default=len(self.order))

    @property
    def direct(self) -> bool:
        """Whether kernels get arrays only, and x in its own dtype."""
        return self.x.dtype == self.dtype and not self.parted

    def room(self, operands: int, over: bool = False) -> Callable[[], Any]:
        """A function that allocates the working memory of one thread, for a kernel with so many operands.

        `over`: whether the output lies over the second operand; see `kernels.traversal.traverse`.
        """
        vector = VECTOR_BYTES // self.dtype.itemsize
        if self.inner == 1:
            if not over or self.classes <= COLUMN_LIMIT:
                return partial(NO_ROOM.get, self.dtype)
            rows = vector if self.classes <= GROUP_LIMIT else 1
            return partial(on_lines, rows * self.classes, self.dtype)
        column = max(self.classes, 1) * vector
        wide = min(TILE_BYTES // (column * self.dtype.itemsize), -(-self.inner // vector))
        return partial(on_lines, operands * max(wide, 1) * column, self.dtype)

    def block(self) -> Any:
        """x as a block; see `convert`."""
        return self.convert(self.x, self.kept)

    def mask(self, where: Any) -> None:
        """Let the entries that `where` excludes be -inf; ValueError or TypeError for a wrong one."""
        if where is None or where is True:
            return
        array = np.asarray(where)
        if array.dtype != np.bool_:
            raise TypeError(f"{named(self.function, 'where')} has dtype {array.dtype}, expected bool")
        try:
            self.kept = np.broadcast_to(array, self.shape)
        except ValueError:
            raise ValueError(
                f"{named(self.function, 'where')} of shape {array.shape} does not broadcast to {self.name} "
                f"of shape {self.shape}"
            ) from None

    def target_like(self, name: str, value: Any) -> Array:
        """A second argument of the shape of x, which has no influence on the dtype."""
        array = real_array(self.function, name, value)
        self.check_shape(name, array)
        return array

    def check_shape(self, name: str, array: Any) -> None:
        """ValueError unless `array` has the shape of x."""
        if array.shape != self.shape:
            raise ValueError(
                f"{named(self.function, name)} has shape {array.shape}, expected that of {self.name}, {self.shape}"
            )

    def operand(self, name: str, value: Any) -> Array:
        """A second argument of the shape of x. A wider float widens the result."""
        array = self.target_like(name, value)
        if is_float(array.dtype):
            kinds = self.result_dtype, array.dtype.newbyteorder("=")
            # NumPy has no common dtype of float16 and bfloat16, which is float32 as in PyTorch and JAX.
            self.result_dtype = self.dtype if {k.char for k in kinds} == {"e", "E"} else np.result_type(*kinds)
            self.dtype = _COMPUTED_IN[self.result_dtype.char]
        return array

    def row_order(self) -> tuple[int, ...]:
        """The order of the axes of `row_shape` in the block."""
        rest = [a for a in self.order if a not in self.axes]
        ranked = sorted(rest)
        return tuple([ranked.index(a) for a in rest])

    def per_row(self, array: Array, dtype: Any) -> Array:
        """`array`, with one item for each row, in the order of the block's rows."""
        moved = halves.contiguous(array.transpose(self.row_order()), dtype)
        self.inputs.append(moved)
        return read_only(moved.reshape(-1) if moved.flags.aligned else moved.copy().reshape(-1))

    def output(self, out: Any, shape: tuple[int, ...] | None = None, hidden: float = 0.0) -> "Output":
        """Where the result is written: `out` if nothing is lost there, else new memory.

        `hidden` is the result of entries that are masked.
        """
        return Output(self, out, self.shape if shape is None else shape, hidden=hidden)

    def row_output(self, out: Any, keepdims: bool = False) -> "Output":
        """Where one number for each row is written."""
        kept = tuple(1 if a in self.axes else n for a, n in enumerate(self.shape))
        return Output(self, out, kept if keepdims else self.row_shape, rows=True)


class Output:
    """The result of a call: the kernel writes to `block`, and `finish` returns what the user gets.

    `block` is an array, or a `Parted` if it is large and a kernel cannot write to the memory of the result.
    """

    __slots__ = ("block", "hidden", "kept", "out", "problem", "result", "shape")

    def __init__(
        self, problem: Problem, out: Any, shape: tuple[int, ...], rows: bool = False, hidden: float = 0.0
    ) -> None:
        self.problem = problem
        self.out = out
        self.shape = shape
        self.hidden = hidden
        whole = not rows and shape == problem.shape
        if whole:
            order: tuple[int, ...] = problem.order
            block_shape: tuple[int, ...] = (problem.outer, problem.classes, problem.inner)
        elif rows:
            kept = len(shape) == len(problem.shape)
            rest = tuple([a for a in problem.order if a not in problem.axes])
            order = rest + problem.axes if kept else problem.row_order()
            block_shape = (problem.rows,)
        else:
            order = tuple(range(len(shape)))
            block_shape = (problem.outer, *shape[-2:])
        self.kept = problem.kept if whole else None
        marks = None if self.kept is None else self.kept.transpose(order)
        large = problem.parts and math.prod(shape) > WHOLE
        if out is not None:
            check_out(problem.function, out, shape, problem.result_dtype)
            target = out.transpose(order)
            if self._safe(target):
                if problem.fits(target) and not (large and marks is not None):
                    self.result = out
                    self.block: Any = target.reshape(block_shape)
                    return
                if large:
                    self.result = out
                    self.block = self._parted(target, block_shape, marks)
                    return
        in_parts = large and not rows and (marks is not None or problem.result_dtype != problem.dtype)
        dtype = problem.result_dtype if in_parts else problem.dtype
        memory = np.empty([shape[a] for a in order], dtype)
        in_order = order == tuple(range(len(order)))
        self.result = memory if in_order else memory.transpose(np.argsort(order))
        self.block = self._parted(memory, block_shape, marks) if in_parts else memory.reshape(block_shape)

    def _parted(self, array: Array, shape: tuple[int, ...], marks: Array | None) -> Parted:
        """The block of a result in this memory, with axes in the order of the block."""
        problem = self.problem
        problem.parted = True
        lead = len(self.shape) if len(shape) == 1 else problem.lead
        return Parted(array, lead, shape, problem.dtype, marks, self.hidden, output=True)

    def _safe(self, target: Array) -> bool:
        """Whether no input is overwritten before it is read: each lies elsewhere, or exactly at `target`."""
        problem = self.problem
        sources = [problem.x.transpose(problem.order), *problem.inputs]
        if problem.kept is not None:
            sources.append(problem.kept)
        return all(same_place(source, target) for source in sources)

    def over(self, operand: Any) -> bool:
        """Whether a kernel's output may lie over an operand."""
        both = self.block, operand
        if any(isinstance(one, Parted) and one.apart is None for one in both):
            return False
        block, other = (one.array if isinstance(one, Parted) else one for one in both)
        return np.may_share_memory(block, other)

    def finish(self) -> Any:
        """The user's result: `out`, an array, or a scalar for 0-d."""
        result = self.result
        if self.kept is not None and not isinstance(self.block, Parted):
            np.copyto(result, self.hidden, where=~self.kept)
        if self.out is not None:
            if result is not self.out:
                copy_to(self.out, result)
            return self.out
        if result.dtype != self.problem.result_dtype:
            result = halves.converted(result, self.problem.result_dtype)
        return result[()] if result.ndim == 0 else result
