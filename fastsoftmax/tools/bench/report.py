"""Tables as Markdown, and JSON."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

from fastsoftmax.arrays.threads import max_threads
from fastsoftmax.tools import info
from fastsoftmax.tools.bench.cases import FUNCTIONS
from fastsoftmax.tools.bench.libraries import ALL, OURS, PEERS
from fastsoftmax.tools.bench.measure import Timing
from fastsoftmax.tools.bench.session import Row, describe
from fastsoftmax.tools.bench.startup import Startup

PACKAGES = ("fastsoftmax", "numpy", "numba", "scipy", "scikit-learn", "torch", "jax")


@dataclass
class Results:
    """All that one run has found."""

    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    by_classes: list[Row] = field(default_factory=list)
    by_rows: list[Row] = field(default_factory=list)
    startups: list[Startup] = field(default_factory=list)


def machine() -> dict[str, Any]:
    """Facts about the machine. They include its load, so that this is to be called before measuring."""
    facts: dict[str, Any] = {
        "date": date.today().isoformat(),
        "processor": info.processor(),
        "system": platform.system(),
        "threads": max_threads(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := info.version(name))},
    }
    if hasattr(os, "getloadavg"):
        facts["load"] = round(os.getloadavg()[0], 1)
    return facts


def caption(facts: dict[str, Any]) -> str:
    """The machine in one sentence. It mentions the load of other programs, because that affects the numbers."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] != 1)}"
    busy = f", busy with other work (load {facts['load']})" if facts.get("load", 0) > 0.5 else ""
    return (
        f"{facts['date']}, {facts['processor']}, {facts['system']}{busy}, {threads} for each library, "
        f"Python {facts['python']}, {versions}"
    )


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms"), (1.0, "s")):
        value = seconds * factor
        if value < 999.5 or unit == "s":
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    raise AssertionError


def spread(timing: Timing) -> str:
    """Half the distance of the quartiles in percent of the median."""
    return f"{100 * timing.spread:.0f} %"


def _peer(row: Row, library: str) -> str:
    if library not in row.timings:
        return ""
    ratio = row.ratio(library)
    text = f"{duration(row.timings[library].median)} ({ratio:.2f} x)"
    return text if ratio >= 1 else f"*{text}*"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    parts = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join(parts + ["| " + " | ".join(line) + " |" for line in lines])


def slower_than_peers(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """The cells in which a peer is ahead."""
    return [(row, name) for row in rows for name in row.timings if name != OURS and row.ratio(name) < 1]


def verdict(rows: Sequence[Row]) -> str:
    """In how many cells ours is ahead, and a list of the others."""
    cells = sum(len(row.timings) - 1 for row in rows)
    lost = slower_than_peers(rows)
    text = f"fastsoftmax is ahead in {cells - len(lost)} of {cells} comparisons"
    if not lost:
        return text + "."
    places: dict[str, list[str]] = {}
    for row, name in lost:
        place = f"{row.function} {describe(row.shape)} {row.dtype}"
        places.setdefault(place, []).append(f"{name} {row.ratio(name):.2f} x")
    names = "; ".join(f"{place} ({', '.join(peers)})" for place, peers in places.items())
    return f"{text}. Behind in: {names}."


def _cells(row: Row, libraries: Sequence[str]) -> list[str]:
    ours = f"**{duration(row.ours.median)}** ± {spread(row.ours)}"
    yardstick = f"{duration(row.yardstick.median)} ({row.to_yardstick:.2f})"
    return [ours, yardstick, *(_peer(row, name) for name in libraries)]


def _peers_of(rows: Sequence[Row]) -> list[str]:
    return [name for name in PEERS if any(name in row.timings for row in rows)]


LEGEND = (
    "Medians, ± half the distance of the quartiles; in brackets: ours relative to the yardstick, peers relative "
    "to ours (*where they are ahead*). Yardstick: NumPy's own pass over the same memory."
)

SUMMARY_SHAPES = ((32, 10), (1_000_000, 10), (10_000, 1000), (8, 21, 512, 512))
SUMMARY_FUNCTIONS = (
    "softmax",
    "softmax, out=",
    "logsumexp",
    "softmax_vjp",
    "softmax_jacobian",
    "cross_entropy",
    "cross_entropy_with_grad",
)


def summary(results: Results, made_by: str, more: str, picture: str) -> str:
    """The part of the results that docs/guide/speed.md shows: float32, some functions and shapes."""
    rows = [
        row
        for function in SUMMARY_FUNCTIONS
        for row in results.rows
        if row.function == function
        and row.dtype == "float32"
        and (row.shape in SUMMARY_SHAPES or (row.shape == (10_000, 100) and "jacobian" in function))
    ]
    libraries = _peers_of(rows)
    header = ["float32", "shape", OURS, "yardstick", *libraries]
    lines = [[row.function, describe(row.shape), *_cells(row, libraries)] for row in rows]
    lost = len(slower_than_peers(results.rows))
    cells = sum(len(row.timings) - 1 for row in results.rows)
    name = more.rpartition("/")[2]
    return (
        f"{LEGEND} {caption(results.machine)}; made by `{made_by}`.\n\n{_markdown(header, lines)}\n\n"
        f"All functions and shapes, float64 too, are in [{name}]({more}): of its {cells} comparisons, fastsoftmax "
        f"is ahead in {cells - lost}.\n\n![Time against classes, rows and peers]({picture})"
    )


def complete(results: Results, made_by: str, picture: str | None = None) -> str:
    """Everything as one Markdown document."""
    parts = [f"# Speed\n\n{caption(results.machine)}; made by `{made_by}`.\n\n{LEGEND}\n\n{verdict(results.rows)}"]
    if picture is not None:
        parts.append(f"![Time against classes, rows and peers]({picture})")
    for function in FUNCTIONS:
        for dtype in dict.fromkeys(row.dtype for row in results.rows):
            rows = [row for row in results.rows if (row.function, row.dtype) == (function, dtype)]
            if not rows:
                continue
            libraries = _peers_of(rows)
            header = ["shape", OURS, FUNCTIONS[function].yardstick, *libraries]
            lines = [[describe(row.shape), *_cells(row, libraries)] for row in rows]
            parts.append(f"## {function}, {dtype}\n\n{_markdown(header, lines)}")
    if results.startups:
        lines = [
            [s.name, duration(s.imported), duration(s.called), duration(s.imported + s.called)]
            for s in results.startups
        ]
        parts.append(
            "## Start of a process\n\nUntil the first softmax of 32 x 10 float32, compilation included; no other "
            f"table holds any.\n\n{_markdown(['', 'imports', 'first call', 'both'], lines)}"
        )
    return "\n\n".join(parts) + "\n"


def _plain(row: Row) -> dict[str, Any]:
    found = asdict(row) | {"shape": list(row.shape), "yardstick_name": FUNCTIONS[row.function].yardstick}
    return found | {
        "to_yardstick": row.to_yardstick,
        "ratios": {n: row.ratio(n) for n in row.timings if n != OURS},
    }


def as_json(results: Results) -> str:
    """Everything, with unrounded seconds."""
    content = {
        "machine": results.machine,
        "libraries": list(ALL),
        "rows": [_plain(row) for row in results.rows],
        "by_classes": [_plain(row) for row in results.by_classes],
        "by_rows": [_plain(row) for row in results.by_rows],
        "startups": [asdict(startup) for startup in results.startups],
    }
    return json.dumps(content, indent=1) + "\n"
