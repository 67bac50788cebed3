"""One run: the chosen cases measured one after the other, with all threads and with one."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from types import MappingProxyType
from typing import Any

import fastsoftmax as fs
from fastsoftmax.tools.bench import cases
from fastsoftmax.tools.bench.inputs import CLASS_AXIS, Inputs, Shape, prepare
from fastsoftmax.tools.bench.libraries import ALL, OURS
from fastsoftmax.tools.bench.measure import Timing, measure

Cell = tuple[Shape, str, str]
"""(shape, dtype, function)."""
YARDSTICK = "yardstick"
WAITING_SECONDS = 1e-3
"""Threads cost a call some hundred microseconds at most; if they add more, it has waited for a processor."""


@dataclass
class Row:
    """A function on one shape and dtype: the timings by library, with all threads and with one, and a yardstick.

    `single` is empty if only one number of threads was measured.
    """

    function: str
    shape: Shape
    dtype: str
    yardstick: Timing
    timings: dict[str, Timing]
    single: dict[str, Timing] = field(default_factory=dict)

    @property
    def place(self) -> tuple[int, int, str, Shape]:
        """The key by which rows are sorted: function, size, dtype, shape."""
        return list(cases.FUNCTIONS).index(self.function), math.prod(self.shape), self.dtype, self.shape

    @property
    def cell(self) -> Cell:
        """What was measured."""
        return self.shape, self.dtype, self.function

    @property
    def ours(self) -> Timing:
        """The timing of our library."""
        return self.timings[OURS]

    def times(self, single: bool) -> dict[str, Timing]:
        """The timings with one thread, or with all."""
        return self.single if single else self.timings

    def ratio(self, library: str, single: bool = False) -> float:
        """How many times as long as ours a peer takes."""
        times = self.times(single)
        return times[library].median / times[OURS].median

    def has_waited(self, library: str, single: bool = False) -> bool:
        """Whether threads have waited for a processor, so that the time can be any number of times too long."""
        timing = self.times(single)[library]
        return timing.has_waited or (not single and _waited(timing, self.single.get(library)))

    def is_doubtful(self, library: str, single: bool = False) -> bool:
        """Whether a time says little: threads have waited, or the samples differ too much."""
        return self.has_waited(library, single) or not self.times(single)[library].is_steady

    def best_peer(self, single: bool = False) -> str | None:
        """The fastest peer; None if there is none, or if it cannot be told.

        It cannot if our time or the fastest peer's is doubtful, or if another peer, which may be the fastest in
        truth, has waited.
        """
        times = self.times(single)
        peers = [name for name in times if name != OURS]
        best = min(peers, key=lambda name: times[name].median, default=None)
        if best is None or OURS not in times or any(self.has_waited(name, single) for name in peers):
            return None
        return None if self.is_doubtful(OURS, single) or self.is_doubtful(best, single) else best

    def to_best(self, single: bool = False) -> float | None:
        """How many times as long as the best peer ours takes; below 1, ours is ahead."""
        best = self.best_peer(single)
        return None if best is None else 1 / self.ratio(best, single)

    @property
    def to_yardstick(self) -> float:
        """How many times as long as the yardstick ours takes."""
        return self.ours.median / self.yardstick.median


def _waited(timing: Timing, alone: Timing | None) -> bool:
    """Whether a call with all threads takes more than twice as long as with one, and `WAITING_SECONDS` longer."""
    if alone is None:
        return False
    return timing.median > max(2 * alone.median, alone.median + WAITING_SECONDS)


@dataclass(frozen=True)
class Choice:
    """What to measure. Shapes given by name replace those of the functions."""

    functions: tuple[str, ...] = tuple(cases.FUNCTIONS)
    shapes: tuple[Shape, ...] | None = None
    dtypes: tuple[str, ...] = cases.DTYPES
    libraries: tuple[str, ...] = tuple(ALL)

    def cells(self) -> list[Cell]:
        """What there is to measure, large shapes first, and those with the same arrays one after the other.

        Large arrays need the least number of samples, whatever time that takes. Small ones share the time that is
        left.
        """
        wanted = self.shapes
        if wanted is None:
            wanted = tuple(dict.fromkeys(s for f in self.functions for s in cases.FUNCTIONS[f].shapes))
        return [
            (shape, dtype, function)
            for shape in sorted(wanted, key=math.prod, reverse=True)
            for dtype in self.dtypes
            for function in self.functions
            if (self.shapes is None and shape in cases.FUNCTIONS[function].shapes)
            or (self.shapes is not None and ("jacobian" not in function or len(shape) == 2))
        ]


@dataclass
class Complaints:
    """Errors of peers, and a list of those that are wrong results."""

    tell: Callable[[str], None]
    disagreements: list[str] = field(default_factory=list)

    def note(self, row: str, library: str, error: Exception) -> None:
        """Report that a library is left out of a row."""
        text = f"{row}: {library} is left out: {type(error).__name__}: {error}".splitlines()[0]
        if isinstance(error, cases.DisagreementError):
            self.disagreements.append(text)
        self.tell(text)


def describe(shape: Shape) -> str:
    """A shape as the tables write it."""
    return " x ".join(f"{n:,}" for n in shape)


def _measure(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Timing]:
    """As `measure`. Calls that are unsteady are measured once more, and the steadier timing counts."""
    timings = measure(calls, seconds)
    unsteady = {name: call for name, call in calls.items() if not timings[name].is_steady}
    for name, again in measure(unsteady, seconds).items():
        timings[name] = min(again, timings[name], key=lambda timing: timing.spread)
    return timings


def _contenders(
    function: str, inputs: Inputs, libraries: tuple[str, ...], complaints: Complaints, *, compared: bool = True
) -> dict[str, Callable[[], Any]]:
    """The yardstick, and the calls of all libraries that have the function.

    Those whose results do not agree with ours are left out, unless nothing is to be compared.
    """
    title = f"{function}, {describe(inputs.shape)}, {inputs.dtype}"
    found = {YARDSTICK: cases.FUNCTIONS[function].setup(inputs)}
    for library, call in cases.calls(function, inputs, libraries, compared=compared):
        if isinstance(call, Exception):
            complaints.note(title, library, call)
        else:
            found[library] = call
    return found


_inputs = lru_cache(maxsize=1)(Inputs)
"""The arrays of the latest shape and dtype; no others are kept, because they are large."""


_prepared: dict[str, Callable[[], Any]] = {}
"""In the other process: the calls of the latest row."""


def _prepare(function: str, shape: Shape, dtype: str, libraries: tuple[str, ...]) -> list[str]:
    """In the other process: make all calls of a row once; everything to tell."""
    told: list[str] = []
    _prepared.clear()
    with fs.threads(1):
        _prepared.update(
            _contenders(function, _inputs(shape, dtype), libraries, Complaints(told.append), compared=False)
        )
    return told


def _single(libraries: tuple[str, ...], seconds: float) -> dict[str, Timing]:
    """In the other process: the timings of those libraries whose calls were made."""
    with fs.threads(1):
        return _measure({name: _prepared[name] for name in libraries if name in _prepared}, seconds)


class OneThread:
    """Another process, in which every library has one thread: JAX takes its number when it starts, for ever.

    It makes its arrays and its first calls, for which JAX compiles, while this process does the same, and measures
    while this process waits.
    """

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=prepare, initargs=(1,))

    def __enter__(self) -> "OneThread":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def prepare(self, function: str, inputs: Inputs, libraries: tuple[str, ...]) -> "Future[list[str]]":
        """Begin with a row. The result is what there is to tell."""
        threaded = tuple(name for name in libraries if ALL[name].has_threads)
        return self._pool.submit(_prepare, function, inputs.shape, inputs.dtype.name, threaded)

    def timings(self, libraries: tuple[str, ...], seconds: float) -> dict[str, Timing]:
        """The timings of the row that was prepared, for which this process waits."""
        return self._pool.submit(_single, libraries, seconds).result()


def row(
    function: str,
    inputs: Inputs,
    libraries: tuple[str, ...],
    seconds: float,
    complaints: Complaints,
    one_thread: OneThread | None = None,
) -> Row:
    """Measure one row, for so many seconds with all threads and as long with one, if there is a process for that.

    Calls whose threads have waited for a processor are measured once more.
    """
    preparing = one_thread.prepare(function, inputs, libraries) if one_thread is not None else None
    contenders = _contenders(function, inputs, libraries, complaints)
    for text in preparing.result() if preparing is not None else ():
        complaints.tell(f"one thread: {text}")
    timings = _measure(contenders, seconds)
    single: dict[str, Timing] = {}
    if one_thread is not None:
        present = [name for name in contenders if name != YARDSTICK]
        threaded = tuple(name for name in present if ALL[name].has_threads)
        found = {name: timings[name] for name in present if name not in threaded}
        found |= one_thread.timings(threaded, seconds)
        single = {name: found[name] for name in present if name in found}
        late = {name: contenders[name] for name in single if _waited(timings[name], single[name])}
        timings |= measure(late, seconds)
    return Row(function, inputs.shape, inputs.dtype.name, timings.pop(YARDSTICK), timings, single)


def rows(
    choice: Choice,
    seconds: float,
    limit: float,
    complaints: Complaints,
    one_thread: OneThread | None = None,
    stored: Mapping[Cell, Row] = MappingProxyType({}),
) -> Iterator[Row]:
    """All rows, each measured for so many seconds, or for less if all would take more than `limit` seconds.

    The least number of samples is taken in any case, even if that takes longer. Rows that are stored are not
    measured, and the others have their part of the limit.
    """
    cells = choice.cells()
    missing = sum(cell not in stored for cell in cells)
    stop = time.perf_counter() + limit * missing / max(len(cells), 1)
    for cell in cells:
        if cell in stored:
            yield stored[cell]
            continue
        shape, dtype, function = cell
        left = max(stop - time.perf_counter(), 0.0) / missing
        missing -= 1
        share = min(seconds, left if one_thread is None else left / 2)
        yield row(function, _inputs(shape, dtype), choice.libraries, share, complaints, one_thread)


SWEEP_CLASSES = tuple(4**k for k in range(1, 11))
SWEEP_ELEMENTS = 1 << 22
SWEEP_ROWS = tuple(10**k for k in range(6))
SWEEP_ROW_CLASSES = 100


def sweep_shapes() -> tuple[list[Shape], list[Shape]]:
    """Shapes of about equal size and growing numbers of classes; of growing numbers of rows."""
    by_classes: list[Shape] = [(SWEEP_ELEMENTS // k, k) for k in SWEEP_CLASSES]
    by_rows: list[Shape] = [(n, SWEEP_ROW_CLASSES) for n in SWEEP_ROWS]
    return by_classes, by_rows


def sweeps(shapes: list[Shape], libraries: tuple[str, ...]) -> list[Choice]:
    """The measurements for the lines of a picture: softmax of all libraries, and ours with ``out=``."""
    return [
        Choice(("softmax",), tuple(shapes), ("float32",), libraries),
        Choice(("softmax, out=",), tuple(shapes), ("float32",), (OURS,)),
    ]


def classes_of(shape: Shape) -> int:
    """K."""
    return shape[CLASS_AXIS]
