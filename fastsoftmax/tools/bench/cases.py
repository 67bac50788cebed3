"""What is compared: {function: {library: setup}}, where ``setup(inputs)`` gives the call that is timed.

Functions with ``out=`` in their name write into existing memory; the others return fresh memory, as they usually
do for their users. Every function has a yardstick: NumPy's own pass over the same memory. No function that reads
and writes all of this memory can be much faster.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastsoftmax import _spec
from fastsoftmax.tools.bench.inputs import Inputs, Shape
from fastsoftmax.tools.bench.libraries import ALL, CASES, OURS, NotOfferedError, Setup

SHAPES: tuple[Shape, ...] = (
    (1, 10),
    (32, 10),
    (32, 1000),
    (1000, 10),
    (1_000_000, 3),
    (1_000_000, 10),
    (100_000, 100),
    (10_000, 1000),
    (300, 50_257),
    (1, 10_000_000),
    (8, 21, 512, 512),
)
"""From one small row to the vocabulary of GPT-2, one huge row, and the pixels of a segmentation, over axis 1."""

FEW_SHAPES: tuple[Shape, ...] = ((1, 10), (32, 10), (1000, 10), (32, 1000), (1_000_000, 10), (10_000, 1000))
"""The shapes of the functions that are not in `MAIN_GROUPS`: on all, they would take longer than all others."""

MAIN_GROUPS = ("activations", "derivatives", "entropy", "cross-entropy")
"""The groups of the table of functions that are measured on all shapes."""

MAP_SHAPES: tuple[Shape, ...] = (
    (1, 3),
    (1, 10),
    (32, 10),
    (1, 1000),
    (1000, 3),
    (60, 100),
    (1000, 10),
    (300, 100),
    (32, 1000),
    (1, 50_257),
    (1000, 64),
    (1000, 100),
    (5000, 33),
    (2000, 100),
    (20_000, 10),
    (200, 2000),
    (200_000, 3),
    (40, 50_257),
)
"""The shapes of a map, by size. Most are of middle size, where threads begin to pay."""

JACOBIAN_SHAPES: tuple[Shape, ...] = ((1, 10), (32, 10), (1000, 10), (100_000, 10), (10_000, 100))
"""Shapes whose Jacobians fit into memory; those of the last one have ten times the entries of the one before."""

DTYPES = ("float32", "float64")


YARDSTICKS: dict[str, Setup] = {
    "np.copyto(out, x)": lambda inputs: lambda: np.copyto(inputs.out, inputs.logits),
    "x.copy()": lambda inputs: lambda: inputs.logits.copy(),
    "np.sum(x)": lambda inputs: lambda: np.sum(inputs.logits),
    "x + v": lambda inputs: lambda: inputs.logits + inputs.tangent,
    "np.add(p, v, out)": lambda inputs: lambda: np.add(inputs.probs, inputs.tangent, out=inputs.out),
    "np.full(shape, 1)": lambda inputs: partial(np.full, (inputs.rows, *[inputs.classes] * 2), 1, inputs.dtype),
    "out.fill(1)": lambda inputs: lambda: inputs.jacobian.fill(1),
}
"""{NumPy's pass over some arrays: its setup}"""


@dataclass(frozen=True)
class Function:
    """One function: the name of its yardstick, and the shapes on which it is measured."""

    yardstick: str
    shapes: tuple[Shape, ...]

    @property
    def setup(self) -> Setup:
        """The setup of the yardstick."""
        return YARDSTICKS[self.yardstick]


def _function(entry: _spec.Function, variant: str) -> Function:
    """The yardstick is NumPy's pass over as many arrays as the function reads and writes."""
    out = variant.endswith("out=")
    shapes = SHAPES if entry.group in MAIN_GROUPS else FEW_SHAPES
    if _spec.SQUARE in entry.result:
        return Function("out.fill(1)" if out else "np.full(shape, 1)", JACOBIAN_SHAPES)
    if {_spec.TANGENT, _spec.COTANGENT} & set(entry.operands):
        return Function("np.add(p, v, out)" if out else "x + v", shapes)
    if _spec.LIKE in entry.result:
        return Function("np.copyto(out, x)" if out else "x.copy()", shapes)
    return Function("np.sum(x)", shapes)


FUNCTIONS = {name: _function(*case) for name, case in CASES.items()}


def cases(libraries: tuple[str, ...] = tuple(ALL)) -> dict[str, dict[str, Setup]]:
    """{function: {library: setup}} of the libraries that are installed; ours is always there."""
    chosen = [ALL[name] for name in ALL if name == OURS or name in libraries]
    present = [library for library in chosen if library.installed()]
    table: dict[str, dict[str, Setup]] = {}
    for function in FUNCTIONS:
        setups = {library.name: library.setup(function) for library in present}
        table[function] = {name: setup for name, setup in setups.items() if setup is not None}
    return table


class DisagreementError(AssertionError):
    """A library's result differs from ours."""


TOLERANCE = 1e3
"""How far results may differ, in units of epsilon times the greatest entry. Peers lose that much in long sums."""

_PIECE = 1 << 18


def _pieces(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    """Corresponding pieces of two arrays that fit into the cache."""
    a, b = np.asarray(a).reshape(-1), np.asarray(b).reshape(-1)
    for start in range(0, a.size, _PIECE):
        yield a[start : start + _PIECE], b[start : start + _PIECE]


def check(function: str, library: str, ours: Any, theirs: Any, dtype: Any) -> None:
    """`DisagreementError` unless two results (or tuples of them) are the same but for rounding.

    Integers are random classes, which have to have the same mean.
    """
    if isinstance(ours, tuple):
        for a, b in zip(ours, theirs, strict=True):
            check(function, library, a, b, dtype)
        return
    if np.shape(ours) != np.shape(theirs):
        raise DisagreementError(f"{function} of {library} has shape {np.shape(theirs)}, ours {np.shape(ours)}")
    if np.asarray(ours).dtype.kind == "i":
        _check_draws(function, library, np.asarray(ours), np.asarray(theirs))
        return
    scale = max(float(np.max(np.abs(a))) for a, _ in _pieces(ours, ours))
    worst = max(float(np.max(np.abs(a - b))) for a, b in _pieces(ours, theirs))
    allowed = TOLERANCE * float(np.finfo(dtype).eps) * scale
    if not worst <= allowed:
        raise DisagreementError(f"{function} of {library} differs from ours by {worst:.1e}, allowed {allowed:.1e}")


CHANCE = 8.0
"""How far the mean of a difference of random classes may be from 0, in units of its standard error."""


def _check_draws(function: str, library: str, ours: Any, theirs: Any) -> None:
    difference = (ours - theirs).astype(np.float64)
    allowed = CHANCE * float(difference.std()) / math.sqrt(difference.size)
    if difference.size > 30 and not abs(difference.mean()) <= allowed:
        found = abs(float(difference.mean()))
        raise DisagreementError(f"{function} of {library} has another mean: by {found:.1e}, allowed {allowed:.1e}")


def calls(
    function: str, inputs: Inputs, libraries: tuple[str, ...] = tuple(ALL), *, compared: bool = True
) -> Iterator[tuple[str, Any]]:
    """(library, call) for each library that has the function, ours first; (library, exception) where it failed.

    Every call has been made once, and its result was compared with ours unless that is not wanted.
    """
    expected: Any = None
    for name, setup in cases(libraries)[function].items():
        try:
            call = setup(inputs)
            found = call()
            if compared and name == OURS:
                expected = found
                if ", out=" in function:  # the next library writes to the same memory
                    expected = tuple(map(np.copy, found)) if isinstance(found, tuple) else np.copy(found)
            elif compared:
                check(function, name, expected, found, inputs.dtype)
        except NotOfferedError:
            continue
        except Exception as error:
            if name == OURS:
                raise
            yield name, error
        else:
            yield name, call
