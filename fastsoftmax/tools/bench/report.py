"""Tables as Markdown, and JSON."""

import json
import os
import platform
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

from fastsoftmax import _spec
from fastsoftmax.arrays.threads import max_threads
from fastsoftmax.tools import info
from fastsoftmax.tools.bench.cases import FUNCTIONS
from fastsoftmax.tools.bench.libraries import ALL, CASES, OURS
from fastsoftmax.tools.bench.measure import Timing
from fastsoftmax.tools.bench.session import Row, describe
from fastsoftmax.tools.bench.startup import Startup

PACKAGES = ("fastsoftmax", "numpy", "numba", "scipy", "scikit-learn", "torch", "jax", "optax")


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
        "model": info.model(),
        "simd": info.simd(),
        "system": platform.system(),
        "threads": max_threads(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := info.version(name))},
    }
    if hasattr(os, "getloadavg"):
        facts["load"] = round(os.getloadavg()[0], 1)
    return facts


def processor(facts: dict[str, Any]) -> str:
    """The processor's name, the model (a maker's name may stand for many), and the vector registers in use."""
    more = ", ".join(filter(None, (facts.get("model"), facts.get("simd"))))
    return f"{facts['processor']} ({more})" if more else str(facts["processor"])


def threads(facts: dict[str, Any]) -> str:
    """How many threads every library may use."""
    return f"{facts['threads']} thread{'s' * (facts['threads'] != 1)}"


def caption(facts: dict[str, Any]) -> str:
    """The machine in one sentence. It mentions the load of other programs, because that affects the numbers."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    busy = f", busy with other work (load {facts['load']})" if facts.get("load", 0) > 0.5 else ""
    return (
        f"{facts['date']}, {processor(facts)}, {facts['system']}{busy}, up to {threads(facts)} for each library, "
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


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    parts = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join(parts + ["| " + " | ".join(line) + " |" for line in lines])


DOUBT = "~"
"""Before a time that says little (see `Row.is_doubtful`)."""


def _doubt(row: Row, library: str, single: bool) -> str:
    return DOUBT if row.is_doubtful(library, single) else ""


def behind(rows: Sequence[Row], single: bool = False) -> list[Row]:
    """The rows in which the best peer is ahead."""
    return [row for row in rows if (row.to_best(single) or 0) > 1]


def typical(rows: Sequence[Row], single: bool = False) -> float | None:
    """The median of our time relative to the best peer's; None if there is none."""
    found = [ratio for row in rows if (ratio := row.to_best(single)) is not None]
    return statistics.median(found) if found else None


def _place(row: Row) -> str:
    return f"{row.function} {describe(row.shape)} {row.dtype}"


def median(rows: Sequence[Row]) -> str:
    """Our time relative to the best peer's in the median row, with all threads and with one."""
    parts = [
        f"{found:.2f}{text}"
        for single, text in ((False, ""), (True, " with one thread each"))
        if (found := typical(rows, single)) is not None
    ]
    return (
        f"our time is {' ('.join(parts)}{')' * (len(parts) - 1)} of the best peer's"
        if parts
        else "there is no peer to compare with"
    )


def verdict(rows: Sequence[Row]) -> str:
    """The median of our time relative to the best peer's, and lists of rows that are behind or doubtful."""
    text = f"In the median of {len(rows)} rows, {median(rows)}."
    places = []
    for row in behind(rows):
        peers = [n for n in row.timings if n != OURS and row.ratio(n) < 1 and not row.is_doubtful(n)]
        places.append(f"{_place(row)} ({', '.join(f'{name} {row.ratio(name):.2f} x' for name in peers)})")
    if places:
        text += f" Behind in {len(places)}: {'; '.join(places)}."
    doubtful = []
    for row in rows:
        if names := [name for name in row.timings if row.is_doubtful(name)]:
            doubtful.append(f"{_place(row)} ({', '.join(names)})")
    if doubtful:
        text += f" Doubtful, because times vary too much or threads waited: {'; '.join(doubtful)}."
    return text


def _time(row: Row, library: str, single: bool = False) -> str:
    """A cell of the tables: a time, and for peers how many times as long as ours it is."""
    times = row.times(single)
    if library not in times:
        return ""
    text = f"{_doubt(row, library, single)}{duration(times[library].median)}"
    if library == OURS:
        return f"{text} ± {spread(times[library])}" if single else f"**{text}** ± {spread(times[library])}"
    if OURS not in times:
        return text
    ratio = row.ratio(library, single)
    text = f"{text} ({ratio:.2f} x)"
    return text if ratio >= 1 else f"*{text}*"


def _columns(rows: Sequence[Row]) -> list[tuple[str, bool]]:
    """(library, whether with one thread) of all columns of times: ours, then the peers."""
    names = [name for name in ALL if any(name in row.timings for row in rows)]
    alone = {name for name in names if ALL[name].has_threads and any(name in row.single for row in rows)}
    return [(name, single) for name in names for single in (False, True) if not single or name in alone]


def _table(rows: Sequence[Row], places: Sequence[str], yardstick: str, labels: Sequence[Sequence[str]]) -> str:
    """The rows with their labels; the yardstick comes after ours."""
    columns = _columns(rows)
    ours = sum(name == OURS for name, _ in columns)
    header = ["1 thread" if single else name for name, single in columns]
    lines = []
    for row, label in zip(rows, labels, strict=True):
        cells = [_time(row, name, single) for name, single in columns]
        limit = f"{duration(row.yardstick.median)} ({row.to_yardstick:.2f})"
        lines.append([*label, *cells[:ours], limit, *cells[ours:]])
    return markdown([*places, *header[:ours], yardstick, *header[ours:]], lines)


LEGEND = (
    "Medians, ± half the distance of the quartiles; in brackets: ours relative to the yardstick, peers relative "
    'to ours (*where they are ahead*). Yardstick: NumPy\'s own pass over the same memory. Columns "1 thread": '
    "the library to their left with one thread, relative to ours with one; others use one thread anyway. "
    f"{DOUBT}: samples that vary too much, or threads that waited for a processor."
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
    labels = [[row.function, describe(row.shape)] for row in rows]
    table = _table(rows, ["float32", "shape"], "yardstick", labels)
    name = more.rpartition("/")[2]
    return (
        f"{LEGEND} {caption(results.machine)}; made by `{made_by}`.\n\n{table}\n\n"
        f"All functions and shapes, float64 too, are in [{name}]({more}). In the median of its "
        f"{len(results.rows)} rows, {median(results.rows)}; "
        f"rows behind the best peer: {len(behind(results.rows))}."
        f"\n\n![Time against classes, rows and peers]({picture})"
    )


def complete(results: Results, made_by: str, picture: str | None = None) -> str:
    """Everything as one Markdown document."""
    parts = [f"# Speed\n\n{caption(results.machine)}; made by `{made_by}`.\n\n{LEGEND}\n\n{verdict(results.rows)}"]
    if picture is not None:
        parts.append(f"![Time against classes, rows and peers]({picture})")
    parts += _tables(results, "##")
    if results.startups:
        lines = [
            [s.name, duration(s.imported), duration(s.called), duration(s.imported + s.called)]
            for s in results.startups
        ]
        parts.append(
            "## Start of a process\n\nUntil the first softmax of 32 x 10 float32, compilation included; no other "
            f"table holds any.\n\n{markdown(['', 'imports', 'first call', 'both'], lines)}"
        )
    return "\n\n".join(parts) + "\n"


def _tables(results: Results, heading: str) -> list[str]:
    """A table of each function and dtype, with a heading."""
    parts = []
    for function in FUNCTIONS:
        for dtype in dict.fromkeys(row.dtype for row in results.rows):
            rows = [row for row in results.rows if (row.function, row.dtype) == (function, dtype)]
            if not rows:
                continue
            labels = [[describe(row.shape)] for row in rows]
            table = _table(rows, ["shape"], FUNCTIONS[function].yardstick, labels)
            parts.append(f"{heading} {function}, {dtype}\n\n{table}")
    return parts


def families() -> dict[str, tuple[str, ...]]:
    """{group of the table of functions: its timed functions}."""
    found: dict[str, tuple[str, ...]] = {}
    for name, (entry, _) in CASES.items():
        found[entry.group] = (*found.get(entry.group, ()), name)
    return found


def family_of(results: Results) -> str:
    """The family whose functions were measured, apart from the others."""
    return CASES[results.rows[0].function][0].group


def family(results: Results, heading: str) -> tuple[str, str]:
    """Title and text of the tables of a family that was measured apart; `heading` begins the title of a table."""
    name = family_of(results)
    made_by = f"python benchmarks/report.py --family {shlex.quote(name)} --write"
    text = f"{caption(results.machine)}; made by `{made_by}`.\n\n{verdict(results.rows)}"
    return _spec.GROUPS[name].title, "\n\n".join([text, *_tables(results, heading)])


def row_facts(row: Row) -> dict[str, Any]:
    """A row in types of JSON, in seconds, with ratios; `row_from` reads it."""
    found = asdict(row) | {"shape": list(row.shape), "yardstick_name": FUNCTIONS[row.function].yardstick}
    found |= {
        "to_yardstick": row.to_yardstick,
        "ratios": {n: row.ratio(n) for n in row.timings if n != OURS},
    }
    return {name: _rounded(fact) for name, fact in found.items()}


def _rounded(value: Any) -> Any:
    """Five digits of every float: more than any measurement has."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def as_json(results: Results) -> str:
    """Everything, in seconds; a row on each line."""
    lists: dict[str, list[dict[str, Any]]] = {
        "rows": [row_facts(row) for row in results.rows],
        "by_classes": [row_facts(row) for row in results.by_classes],
        "by_rows": [row_facts(row) for row in results.by_rows],
        "startups": [_rounded(asdict(startup)) for startup in results.startups],
    }
    parts = {"machine": json.dumps(results.machine, indent=1), "libraries": json.dumps(list(ALL))}
    for name, items in lists.items():
        parts[name] = "[\n" + ",\n".join(json.dumps(item) for item in items) + "\n]"
    return "{\n" + ",\n".join(f'"{name}": {text}' for name, text in parts.items()) + "\n}\n"


def row_from(content: dict[str, Any]) -> Row:
    """The row of `row_facts`."""

    def timings(name: str) -> dict[str, Timing]:
        return {library: Timing(**found) for library, found in content.get(name, {}).items()}

    place = (content["function"], tuple(content["shape"]), content["dtype"])
    return Row(*place, Timing(**content["yardstick"]), timings("timings"), timings("single"))


def from_json(text: str) -> Results:
    """What `as_json` has written."""
    content = json.loads(text)
    names = ("rows", "by_classes", "by_rows")
    rows, by_classes, by_rows = ([row_from(row) for row in content[name]] for name in names)
    startups = [Startup(**startup) for startup in content["startups"]]
    return Results(content["machine"], rows, by_classes, by_rows, startups)
