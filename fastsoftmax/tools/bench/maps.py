"""Maps: our time relative to the best peer's, for each shape and function, as tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastsoftmax.tools.bench import report
from fastsoftmax.tools.bench.inputs import Shape
from fastsoftmax.tools.bench.session import Row, describe

LETTERS = {
    "NumPy": "N",
    "SciPy": "S",
    "scikit-learn": "K",
    "PyTorch": "P",
    "JAX": "J",
    "Optax": "O",
    "Numba loop": "L",
}
"""How the cells of a map name the best peer."""

LEGEND = (
    "Our time relative to the best peer's, and a letter for that peer (SciPy, sciKit-learn, PyTorch, JAX, NumPy, "
    f"Numba Loop). Below 1, fastsoftmax is ahead. {report.DOUBT}: measured too unsteadily to tell."
)


def cell(row: Row, single: bool = False) -> str:
    """Our time relative to the best peer's, with the peer's letter; a mark or nothing where there is none."""
    best, ratio = row.best_peer(single), row.to_best(single)
    if best is not None and ratio is not None:
        return f"{ratio:.{2 if ratio < 9.995 else 0}f} {LETTERS[best]}"
    return report.DOUBT if len(row.times(single)) > 1 else ""


@dataclass(frozen=True)
class Table:
    """The rows of one dtype as a table: shapes by functions."""

    dtype: str
    functions: list[str]
    shapes: list[Shape]
    rows: dict[tuple[Shape, str], Row]

    @property
    def singles(self) -> tuple[bool, ...]:
        """(False, True) if one thread was measured, too."""
        return (False, True) if any(row.single for row in self.rows.values()) else (False,)


def tables(rows: Sequence[Row]) -> list[Table]:
    """A table for each dtype, its functions and shapes in the order of the rows' places."""
    found = []
    for dtype in sorted({row.dtype for row in rows}):
        chosen = sorted((row for row in rows if row.dtype == dtype), key=lambda row: row.place)
        shapes = sorted({row.shape for row in chosen}, key=lambda shape: (math.prod(shape), shape))
        functions = list(dict.fromkeys(row.function for row in chosen))
        found.append(Table(dtype, functions, shapes, {(row.shape, row.function): row for row in chosen}))
    return found


def name(results: report.Results) -> str:
    """The machine of a map, as its title names it."""
    return f"{report.processor(results.machine)}, {report.threads(results.machine)}"


def summary(results: report.Results) -> str:
    """The medians of a map, and how many of its cells are behind or without a number, in one sentence."""
    rows = results.rows
    unknown = sum(row.to_best() is None for row in rows)
    text = f"In the median cell {report.median(rows)}; behind in {len(report.behind(rows))} of {len(rows)}"
    return f"{text}, not counting {unknown} that cannot be told." if unknown else f"{text}."


def markdown(results: report.Results, made_by: str) -> str:
    """A map as Markdown, without a title."""
    parts = [f"{report.caption(results.machine)}; made by `{made_by}`. {summary(results)}\n\n{LEGEND}"]
    for one in tables(results.rows):
        columns = [(function, single) for function in one.functions for single in one.singles]
        header = [one.dtype, *("1 thread" if single else function for function, single in columns)]
        lines = []
        for shape in one.shapes:
            line = [describe(shape)]
            for function, single in columns:
                row = one.rows.get((shape, function))
                text = cell(row, single) if row else ""
                line.append(f"**{text}**" if row and (row.to_best(single) or 0) > 1 else text)
            lines.append(line)
        parts.append(report.markdown(header, lines))
    return "\n\n".join(parts)
