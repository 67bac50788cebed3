"""One run: the chosen cases measured one after the other."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fastsoftmax.tools.bench import cases
from fastsoftmax.tools.bench.inputs import CLASS_AXIS, Inputs, Shape
from fastsoftmax.tools.bench.libraries import ALL, OURS
from fastsoftmax.tools.bench.measure import Timing, measure

YARDSTICK = "yardstick"
UNSTEADY = 0.5
"""A row is measured again if the spread of one of its calls is larger than this (see `Timing`)."""


@dataclass
class Row:
    """A function on one shape and dtype: the timings by library and that of the yardstick."""

    function: str
    shape: Shape
    dtype: str
    yardstick: Timing
    timings: dict[str, Timing]

    @property
    def place(self) -> tuple[int, int, str, Shape]:
        """The key by which rows are sorted: function, size, dtype, shape."""
        return list(cases.FUNCTIONS).index(self.function), math.prod(self.shape), self.dtype, self.shape

    @property
    def ours(self) -> Timing:
        """The timing of our library."""
        return self.timings[OURS]

    def ratio(self, library: str) -> float:
        """How many times as long as ours a peer takes."""
        return self.timings[library].median / self.ours.median

    @property
    def to_yardstick(self) -> float:
        """How many times as long as the yardstick ours takes."""
        return self.ours.median / self.yardstick.median


@dataclass(frozen=True)
class Choice:
    """What to measure. Shapes given by name replace those of the functions."""

    functions: tuple[str, ...] = tuple(cases.FUNCTIONS)
    shapes: tuple[Shape, ...] | None = None
    dtypes: tuple[str, ...] = cases.DTYPES
    libraries: tuple[str, ...] = tuple(ALL)

    def cells(self) -> list[tuple[Shape, str, str]]:
        """(shape, dtype, function), large shapes first, and those with the same arrays one after the other.

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


def row(function: str, inputs: Inputs, libraries: tuple[str, ...], seconds: float, complaints: Complaints) -> Row:
    """Measure one row: all libraries that have the function and whose results agree with ours."""
    title = f"{function}, {describe(inputs.shape)}, {inputs.dtype}"
    contenders = {YARDSTICK: cases.FUNCTIONS[function].setup(inputs)}
    for library, call in cases.calls(function, inputs, libraries):
        if isinstance(call, Exception):
            complaints.note(title, library, call)
        else:
            contenders[library] = call
    timings = measure(contenders, seconds)
    if max(timing.spread for timing in timings.values()) > UNSTEADY:
        timings = measure(contenders, seconds)
    return Row(function, inputs.shape, inputs.dtype.name, timings.pop(YARDSTICK), timings)


def rows(choice: Choice, seconds: float, limit: float, complaints: Complaints) -> Iterator[Row]:
    """All rows, each measured for so many seconds, or for less if all would take more than `limit` seconds.

    The least number of samples is taken in any case, even if that takes longer.
    """
    cells = choice.cells()
    stop = time.perf_counter() + limit
    inputs = None
    for position, (shape, dtype, function) in enumerate(cells):
        if inputs is None or (inputs.shape, inputs.dtype.name) != (shape, dtype):
            inputs = Inputs(shape, dtype)
        left = max(stop - time.perf_counter(), 0.0) / (len(cells) - position)
        yield row(function, inputs, choice.libraries, min(seconds, left), complaints)


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
