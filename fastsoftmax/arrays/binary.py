"""The driver of the losses of single logits: elementwise functions, whose arrays have one shape.

The entries are numbered in the order of the logits in memory, and a kernel computes chunks of them, at fixed
places: so a sum has the same bits for any number of threads. Arrays that are not contiguous, or have another
dtype, are converted some chunks at a time, and never whole.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax._spec import ENTRIES, FUNCTIONS, Function
from fastsoftmax._vectors import CHUNK, CURVATURE, DERIVED, GRADIENT, LOSS
from fastsoftmax.arrays.blocks import (
    NO_ROOM,
    SHORT_WAY,
    Array,
    Box,
    Parted,
    check_out,
    computed_in,
    copy_to,
    is_plain,
    lie_apart,
    memory_order,
    named,
    number,
    real_array,
    same_place,
)
from fastsoftmax.arrays.lazy import backend_for
from fastsoftmax.arrays.options import MEAN, UNSMOOTHED, LossOptions
from fastsoftmax.arrays.parts import Piece, run_parts
from fastsoftmax.arrays.threads import run, run_code
from fastsoftmax.arrays.weights import (
    SUM,
    Divisor,
    converted,
    count_divisor,
    inverse_of,
    joined,
    joined_weights,
    part_of_weight,
    quotient,
    repeated_divisor,
    scaled,
    total,
)
from fastsoftmax.machine.entry import Codes, entry

WORK = {"binary entropy": 4, "binary focal": 8}
"""The work of an entry, in units of `threads`."""

TOGETHER = 64
"""So many chunks are converted at a time."""


class BinaryOptions(NamedTuple):
    """The options of a loss as the user passed them; an option that a loss does not have keeps its default."""

    pos_weight: Any = None
    sample_weight: Any = None
    label_smoothing: float = UNSMOOTHED
    gamma: float = 0.0
    alpha: Any = None
    reduction: str = MEAN


def derivative_order(function: Function) -> int:
    """What the kernel computes for a public function: `LOSS`, `GRADIENT` or `CURVATURE`."""
    if function.name.endswith("_hessian_diag"):
        return CURVATURE
    return LOSS if function.result == (ENTRIES,) else GRADIENT


class _Converted(Parted):
    """The entries of an array in C order, times 2**exponent, as a `Parted` of one axis."""

    __slots__ = ("exponent",)

    def __init__(self, array: Array, dtype: np.dtype[Any], exponent: int, output: bool) -> None:
        super().__init__(array, array.ndim, (array.size,), dtype, output=output)
        self.exponent = exponent

    def read(self, box: Box, room: Array | None = None) -> Array:
        return scaled(super().read(box, room), self.exponent)


class _Operand:
    """An input, or an output, as kernels take it (`flat`): contiguous as it is, or converted piece by piece.

    Weights are multiplied by 2**exponent. None stands for weights of 1, or for no output, and a single number is
    not repeated.
    """

    __slots__ = ("array", "flat")

    def __init__(self, array: Array | None, dtype: np.dtype[Any], exponent: int = 0, output: bool = False) -> None:
        self.array = array
        if array is None:
            self.flat: Array | Parted = NO_ROOM[dtype]
        elif array.dtype == dtype and array.flags.c_contiguous and array.flags.aligned and exponent == 0:
            self.flat = array.reshape(-1)
        else:
            self.flat = _Converted(array, dtype, exponent, output)

    def part(self, start: int, stop: int) -> Array | Piece:
        """Entries start .. stop."""
        if isinstance(self.flat, Parted):
            return Piece(self.flat, Box(start, stop))
        return self.flat if self.flat.size <= 1 else self.flat[start:stop]

    def read(self, start: int, stop: int, room: Array) -> Array:
        """Entries start .. stop, in `room` if they have to be converted."""
        part = self.part(start, stop)
        return part.block.read(part.box, room) if isinstance(part, Piece) else part


def _run_converting(
    kernel: Any, work: int, entries: int, operands: list[_Operand], room: Any, sums: Array, *options: Any
) -> None:
    """Run a kernel with arrays that are converted, some chunks at a time; an entry costs `work`."""
    step = TOGETHER * CHUNK

    def cut(part: int) -> tuple[int, list[Any]]:
        begin, end = part * step, min((part + 1) * step, entries)
        first, chunks = begin // CHUNK, -(-(end - begin) // CHUNK)
        flats = [one.part(begin, end) for one in operands]
        return chunks, [*flats, sums[3 * first : 3 * (first + chunks)], *options]

    run_parts(kernel, -(-entries // step), work * entries, room, cut, (0,))


def sum_of_weights(weights: Array, dtype: np.dtype[Any]) -> Array:
    """The sum of weights in the dtype of the computation, as a `SUM`."""
    step, parts, source = TOGETHER * CHUNK, [], _Operand(weights, dtype)
    room = np.empty(step, dtype)
    with np.errstate(all="ignore"):
        for start in range(0, weights.size, step):
            part = source.read(start, min(start + step, weights.size), room)
            parts.append(part_of_weight(part, 0))
    return joined_weights(np.array(parts, SUM))


class Entries:
    """The arrays of one call, checked, with their axes in the order of the logits in memory.

    `divisor` is that of the mean; by default it follows from the options. `origin` is the place of the first entry
    among those of the user, for messages.
    """

    def __init__(
        self,
        function: str,
        logits: Any,
        targets: Any,
        options: BinaryOptions,
        divisor: Divisor | None = None,
        origin: tuple[int, ...] = (),
    ) -> None:
        x = real_array(function, "logits", logits)
        t = real_array(function, "targets", targets)
        self.function, self.shape, self.size, self.origin = function, x.shape, x.size, origin
        if t.shape != x.shape:
            raise ValueError(
                f"{named(function, 'targets')} has shape {t.shape}, expected that of logits, {x.shape}"
            )
        LossOptions(reduction=options.reduction).check_reduction(function)
        self.mean = options.reduction == "mean"
        self.result_dtype, self.dtype = computed_in(x.dtype)
        self.order = memory_order(x)
        self.x, self.targets = self._in_order(x), self._in_order(t)
        weights = self._weights("sample_weight", options.sample_weight)
        positive = self._weights("pos_weight", options.pos_weight)
        self.divisor = self._divisor(weights) if divisor is None else divisor
        self.positive = self._spread(positive, 0)
        self.weights = self._spread(weights, -self.divisor.exponent if self.mean else 0)

    def _in_order(self, array: Array) -> Array:
        return array.transpose(self.order)

    def _weights(self, name: str, value: Any) -> Array | None:
        """An array of weights that broadcasts to the shape of the logits."""
        if value is None:
            return None
        array = real_array(self.function, name, value)
        try:
            np.broadcast_to(array, self.shape)
        except ValueError:
            raise ValueError(
                f"{named(self.function, name)} of shape {array.shape} does not broadcast to logits of shape "
                f"{self.shape}"
            ) from None
        return array

    def _spread(self, weights: Array | None, exponent: int) -> _Operand:
        """Weights times 2**exponent with the shape of the logits; a single one is not repeated."""
        if weights is None:
            return _Operand(None, self.dtype)
        if weights.size == 1:
            return _Operand(scaled(converted(weights.reshape(1), self.dtype), exponent), self.dtype)
        return _Operand(self._in_order(np.broadcast_to(weights, self.shape)), self.dtype, exponent)

    def _divisor(self, weights: Array | None) -> Divisor:
        """The divisor of the mean: the sum of the weights of all entries, each repeated as often as it is used."""
        if not self.mean or weights is None:
            return count_divisor(self.size)
        return repeated_divisor(sum_of_weights(weights, self.dtype), weights.size, self.size)

    def result(self, out: Any, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """What the user gets, and the array that is written, which is another one if `out` overlaps an input."""
        if out is None:
            memory = np.empty([self.shape[a] for a in self.order], dtype)
            return memory.transpose(np.argsort(self.order)), memory
        check_out(self.function, out, self.shape, self.result_dtype)
        target = self._in_order(out)
        used = [self.x, self.targets]
        used += [one.array for one in (self.positive, self.weights) if one.array is not None]
        if not all(same_place(source, target) for source in used):
            target = np.empty(target.shape, dtype)
        return out, target

    def check_targets(self) -> None:
        """ValueError for a target that is not from 0 to 1, unless its entry has weight 0."""
        if self.targets.dtype == np.bool_:
            return
        step = TOGETHER * CHUNK
        values, factors = np.empty(step, self.dtype), np.empty(step, self.dtype)
        source = _Operand(self.targets, self.dtype)
        with np.errstate(all="ignore"):
            for start in range(0, self.size, step):
                stop = min(start + step, self.size)
                t = source.read(start, stop, values)
                if _are_probabilities(t):
                    continue
                wrong = ~((t >= 0) & (t <= 1))
                if self.weights.array is not None:
                    wrong &= self.weights.read(start, stop, factors) != 0
                if wrong.any():
                    self._refuse(start + int(np.argmax(wrong)))

    def _refuse(self, entry_number: int) -> None:
        place = np.unravel_index(entry_number, self.targets.shape)
        origin = self.origin or (0,) * len(self.shape)
        where = ", ".join(str(int(place[self.order.index(a)]) + first) for a, first in enumerate(origin))
        prefix = named(self.function, "targets")
        raise ValueError(f"{prefix}[{where}] is {self.targets[place]}, expected a number from 0 to 1")


def constants(entries: Entries, options: BinaryOptions) -> tuple[str, tuple[Any, ...], int]:
    """The kernel, its options and the work of an entry; the errors of options that are numbers."""
    function, kind = entries.function, entries.dtype.type
    family, work = FUNCTIONS[function].family, WORK["binary entropy"]
    smoothing = LossOptions(label_smoothing=options.label_smoothing).smoothing(function)
    gamma = kind(LossOptions(gamma=options.gamma).focus(function))
    alpha, beta = 1.0, 1.0
    if options.alpha is not None:
        alpha = number(function, "alpha", options.alpha, 0.0, inclusive=True)
        if alpha > 1:
            raise ValueError(f"{named(function, 'alpha')} must be at most 1, got {alpha!r}")
        beta = 1.0 - alpha
    if family == "binary entropy" or (gamma == 0 and options.alpha is None):
        return "binary.cross_entropy", (kind(smoothing / 2), kind(1.0 - smoothing)), work
    return "binary.focal", (gamma, kind(alpha), kind(beta)), WORK["binary focal"]


_SMALL: dict[tuple[str, np.dtype[Any]], Codes] = {}
"""The machine code of kernels that have been used; for small calls, checks cost more than the computation."""
_UNSCALED = (1.0, 0.0)
_NO_SUMS = np.empty(0)


def _small(order: int, logits: Any, targets: Any, options: BinaryOptions, out: Any) -> tuple[Any, Any] | None:
    """The mean loss of a small array, and a derivative; None for options, and for arrays to convert or refuse."""
    gamma = options.gamma
    if not (
        options.reduction is MEAN
        and options.label_smoothing is UNSMOOTHED
        and options.pos_weight is None
        and options.sample_weight is None
        and options.alpha is None
        and type(gamma) is float
        and 0 <= gamma < math.inf
        and type(logits) is np.ndarray
    ):
        return None
    dtype, count = logits.dtype, logits.size
    codes = _SMALL.get(("binary.focal" if gamma else "binary.cross_entropy", dtype))
    if codes is None or not 0 < count <= SHORT_WAY:
        return None
    kind, nothing = dtype.type, NO_ROOM[dtype]
    constants = (kind(gamma), 1.0, 1.0) if gamma else (0.0, 1.0)
    if gamma and constants[0] == 0:
        return None
    scale, slope = _UNSCALED, None
    if order != LOSS:
        scale, slope = inverse_of(count, dtype), np.empty_like(logits) if out is None else out
    if count <= CHUNK:
        numbers = order, *constants, *scale, True
        whole = codes.small(logits, targets, nothing, nothing, nothing, slope, _NO_SUMS, *numbers)
        if not whole < 0:
            return quotient(whole, Divisor(float(count)), dtype), slope
    if not logits.flags.carray or not is_plain(targets, logits.shape, dtype):
        return None
    if out is not None and not (
        is_plain(out, logits.shape, dtype)
        and (out is logits or lie_apart(out, logits))
        and lie_apart(out, targets)
        and _are_probabilities(targets)
    ):
        return None
    chunks = -(-count // CHUNK)
    sums = np.empty(3 * chunks)
    written = nothing if slope is None else slope
    flats = logits.reshape(-1), targets.reshape(-1), nothing, nothing, nothing, written.reshape(-1)
    work = WORK["binary focal" if gamma else "binary entropy"] * logits.nbytes // 4
    arguments = (*flats, sums, order, *map(kind, (*constants, *scale)), False)
    run_code(codes.code, chunks, work, nothing, None, arguments)
    if chunks == 1:
        wrong, whole = sums[2], float(sums[0] + sums[1])
    else:
        table = sums.reshape(chunks, 3)
        wrong, whole = table[:, 2].any(), total(np.ascontiguousarray(table[:, :2]))
    if wrong:
        return None
    return quotient(whole, Divisor(float(count)), dtype), _scalar(slope)


def _are_probabilities(targets: Array) -> bool:
    """Whether all targets are from 0 to 1."""
    with np.errstate(all="ignore"):
        return bool(targets.min() >= 0 and targets.max() <= 1)  # false for NaN


class Found(NamedTuple):
    """What a kernel found: the losses of the entries if they are wanted, a derivative, and the sums of chunks.

    With `DERIVED`, the second derivatives are in the place of the losses.
    """

    beside: Any
    slope: Any
    sums: Array

    def sum(self) -> Array:
        """The sum of all losses, as a `SUM`."""
        parts = np.zeros(len(self.sums), SUM)
        parts["high"], parts["low"] = self.sums[:, 0], self.sums[:, 1]
        return joined(parts)


def compute(entries: Entries, order: int, options: BinaryOptions, out: Any = None) -> Found:
    """The losses of all entries, and a derivative."""
    name, numbers, work = constants(entries, options)
    two = order == DERIVED or (options.reduction == "none" and order != CURVATURE)
    if out is not None and order != LOSS:
        check_out(entries.function, out, entries.shape, entries.result_dtype)
        entries.check_targets()
    scale = LossOptions(reduction=options.reduction).scale(entries.divisor, entries.dtype)
    beside, memory_beside = entries.result(None, entries.result_dtype) if two else (None, None)
    slope, memory = entries.result(out, entries.result_dtype) if order != LOSS else (None, None)
    chunks = -(-entries.size // CHUNK)
    sums = np.zeros((chunks, 3))
    operands = [_Operand(entries.x, entries.dtype), _Operand(entries.targets, entries.dtype)]
    operands += [entries.positive, entries.weights]
    operands += [_Operand(one, entries.dtype, output=True) for one in (memory_beside, memory)]
    kernel, arguments = entry(name), (sums.reshape(-1), order, *numbers, *scale, False)
    room = partial(NO_ROOM.get, entries.dtype)
    if any(isinstance(one.flat, Parted) for one in operands):
        _run_converting(kernel, work, entries.size, operands, room, *arguments)
    else:
        flats = [one.flat for one in operands]
        run(kernel, chunks, work * entries.size, room, *flats, *arguments)
        if (name, entries.dtype) not in _SMALL:
            codes = kernel.codes(entries.dtype, 0, 0, NO_ROOM[entries.dtype], *flats, *arguments)
            _SMALL[name, entries.dtype] = codes
    if sums[:, 2].any():
        entries.check_targets()
    if slope is not None and memory is not None and out is not None and not np.may_share_memory(memory, out):
        copy_to(entries._in_order(out), memory)
    return Found(beside, slope, sums)


def binary_loss(function: str, order: int, logits: Any, targets: Any, options: BinaryOptions, out: Any) -> Any:
    """The losses and derivatives of a public function: (loss, gradient or second derivative or None)."""
    if (small := _small(order, logits, targets, options, out)) is not None:
        return small
    if backend := backend_for(logits, targets, *options):
        found = backend(function, logits, targets, axis=None, out=out, options=options)
        return found if type(found) is tuple else (found, found)
    entries = Entries(function, logits, targets, options)
    losses, slope, sums = compute(entries, order, options, out)
    return _reduced(entries, losses, sums, options), _scalar(slope)


def binary_derivatives(function: str, logits: Any, targets: Any, options: BinaryOptions) -> tuple[Any, Any]:
    """The gradient and the second derivatives in one pass, for arrays in memory.

    `function` is the function for the gradient, which messages name.
    """
    found = compute(Entries(function, logits, targets, options), DERIVED, options)
    return found.slope, found.beside


def _scalar(array: Any) -> Any:
    return array[()] if array is not None and array.ndim == 0 else array


def _reduced(entries: Entries, losses: Any, sums: Array, options: BinaryOptions) -> Any:
    """The loss after the reduction."""
    if options.reduction == "none":
        return _scalar(losses)
    divisor = entries.divisor if entries.mean else None
    return quotient(total(np.ascontiguousarray(sums[:, :2])), divisor, entries.result_dtype)
