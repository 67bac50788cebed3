"""The command: progress, tables on the terminal, files. Pictures alone need Matplotlib."""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import fastsoftmax as fs
from fastsoftmax.arrays.threads import max_threads
from fastsoftmax.tools.bench import inputs, maps, report, session, startup
from fastsoftmax.tools.bench.cases import FUNCTIONS, MAP_SHAPES
from fastsoftmax.tools.bench.journal import Journal
from fastsoftmax.tools.bench.libraries import ALL, OURS, PEERS
from fastsoftmax.tools.bench.session import Choice, Complaints, OneThread, Row

QUICK = Choice(
    ("softmax", "softmax, out=", "logsumexp", "cross_entropy_with_grad"),
    ((32, 10), (100_000, 10), (10_000, 100)),
    ("float32",),
)
QUICK_SECONDS, QUICK_LIMIT = 0.5, 10.0
SECONDS, LIMIT = 2.0, 360.0
MAP = Choice(
    ("softmax", "softmax, out=", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_with_grad"),
    MAP_SHAPES,
    libraries=(OURS, "SciPy", "scikit-learn", "PyTorch", "JAX"),
)
QUICK_MAP = replace(MAP, shapes=MAP_SHAPES[1::5], dtypes=("float32",))
MAP_SECONDS = 0.8
SWEEP_SECONDS = 0.6
STARTUP_REPEATS = 3
UNFINISHED = "unfinished.jsonl"
"""The file with the rows of a run until it is finished."""


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


SHORT = {"scikit-learn": "sklearn", "Numba loop": "Numba"}


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{'[red]' if value < 1 else ''}{value:.{digits}f}"


def table(rows: Sequence[Row]) -> Table:
    """The rows of one function and dtype: our median with its spread, and ratios; a second line for one thread."""
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, title_justify="left")
    shown.title = f"[bold]{rows[0].function}, {rows[0].dtype}[/]; limit: {FUNCTIONS[rows[0].function].yardstick}"
    shown.add_column("shape", no_wrap=True)
    shown.add_column("ours", justify="right", style="bold", no_wrap=True)
    shown.add_column("±", justify="right", no_wrap=True)
    libraries = [name for name in PEERS if any(name in row.timings for row in rows)]
    for name in ("limit", *libraries):
        shown.add_column(SHORT.get(name, name), justify="right")

    def mark(row: Row, name: str, single: bool) -> str:
        return report.DOUBT if row.is_doubtful(name, single) else ""

    for row in rows:
        for single in (False, True):
            times = row.times(single)
            if OURS not in times:
                continue
            ours = times[OURS]
            peers = [
                f"{mark(row, name, single)}{_ratio(row.ratio(name, single))}" if name in times else ""
                for name in libraries
            ]
            shown.add_row(
                " 1 thread" if single else "x".join(map(str, row.shape)),
                f"{mark(row, OURS, single)}{report.duration(ours.median)}",
                report.spread(ours),
                "" if single else f"{row.to_yardstick:.2f}",
                *peers,
            )
    return shown


def map_table(one: maps.Table, single: bool) -> Table:
    """A map of one dtype and number of threads; red where the best peer is ahead."""
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, title_justify="left")
    shown.title = f"[bold]{one.dtype}{', one thread each' if single else ''}[/]"
    shown.add_column("shape", no_wrap=True)
    for function in one.functions:
        shown.add_column(function, justify="right", max_width=10, overflow="fold")
    for shape in one.shapes:
        line = ["x".join(map(str, shape))]
        for function in one.functions:
            row = one.rows.get((shape, function))
            text = maps.cell(row, single) if row else ""
            line.append(f"[red]{text}" if row and (row.to_best(single) or 0) > 1 else text)
        shown.add_row(*line)
    return shown


@dataclass(frozen=True)
class _Run:
    """What every kind of measurement needs: where to print, the results, and another process or None."""

    console: Console
    complaints: Complaints
    results: report.Results
    one_thread: OneThread | None
    journal: Journal

    def rows(
        self, name: str, choice: Choice, seconds: float, limit: float, one_thread: OneThread | None
    ) -> Iterator[Row]:
        """The rows of one list. Those that were measured are stored, unless a result was wrong.

        A run that is continued measures the wrong ones again, and complains again.
        """
        stored, wrong = self.journal.rows[name], len(self.complaints.disagreements)
        for row in session.rows(choice, seconds, limit, self.complaints, one_thread, stored):
            if row.cell not in stored and len(self.complaints.disagreements) == wrong:
                self.journal.add(name, row)
            wrong = len(self.complaints.disagreements)
            yield row


@contextmanager
def _begun(
    choice: Choice, threads: int | None, seconds: float, single: bool, unfinished: Path | None
) -> Iterator[_Run]:
    """Set the threads, print what the machine is, and start the process with one thread if it is wanted."""
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    complaints = Complaints(lambda text: errors.print(text, markup=False))
    with fs.threads(max_threads() if threads is None else threads):
        inputs.prepare(max_threads())
        results = report.Results(report.machine())
        settings = {"seconds": seconds, "single": single, "libraries": [*choice.libraries]}
        journal = Journal(unfinished, results.machine, settings)
        console.print(report.caption(results.machine), markup=False)
        if journal.taken:
            console.print(f"Continued: {journal.taken} rows are those of {unfinished}.", markup=False)
        missing = [name for name in choice.libraries if not ALL[name].installed()]
        if missing:
            console.print(f"Not installed: {', '.join(missing)}.")
        with OneThread() if single and max_threads() > 1 else nullcontext() as one_thread:
            yield _Run(console, complaints, results, one_thread, journal)


def run_map(
    choice: Choice = MAP,
    *,
    threads: int | None = None,
    seconds: float = MAP_SECONDS,
    limit: float = LIMIT,
    single: bool = True,
    output: Path | None = None,
    picture: Path | None = None,
    unfinished: Path | None = None,
) -> tuple[report.Results, bool]:
    """Measure and show a map; write ``map.json`` and ``map.md`` into `output`, and draw `picture`, if given.

    The parameters and results are those of `run`. If `single`, one thread is measured beside all threads.
    """
    with _begun(choice, threads, seconds, single, unfinished) as begun:
        console, results = begun.console, begun.results
        console.print(maps.LEGEND, "", markup=False)
        with _progress(console) as progress:
            task = progress.add_task("", total=len(choice.cells()))
            for row in begun.rows("rows", choice, seconds, limit, begun.one_thread):
                results.rows.append(row)
                progress.update(task, advance=1, description=f"{row.function}, {session.describe(row.shape)}")
        results.rows.sort(key=lambda row: row.place)
        for one in maps.tables(results.rows):
            for alone in one.singles:
                console.print(map_table(one, alone), "")
        console.print(report.verdict(results.rows), markup=False)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "map.json").write_text(report.as_json(results), encoding="utf-8")
        text = f"# {maps.name(results)}\n\n{maps.markdown(results, 'fastsoftmax bench --map')}\n"
        (output / "map.md").write_text(text, encoding="utf-8")
        console.print(f"Written: map.json and map.md in {output}", markup=False)
    if picture is not None:
        from fastsoftmax.tools.bench import pictures

        pictures.draw_map(results, picture)
        console.print(f"Written: {picture}", markup=False)
    return results, not begun.complaints.disagreements


def run(
    choice: Choice,
    *,
    threads: int | None = None,
    seconds: float = SECONDS,
    limit: float = LIMIT,
    quick: bool = False,
    output: Path | None = None,
    unfinished: Path | None = None,
) -> tuple[report.Results, bool]:
    """Measure, show, and write ``results.json``, ``results.md`` and ``speed.png`` into `output` if it is given.

    Parameters
    ----------
    choice : Choice
        What to measure.
    threads : int, optional
        Threads of every library. The default is the number that ours would use.
    seconds : float
        How long each row is measured.
    limit : float
        Seconds for all rows together. If they would take longer, each row is measured for a shorter time.
    quick : bool
        Whether to leave out one thread, the start-up and some points of the picture.
    output : Path, optional
        A directory.
    unfinished : Path, optional
        A file for finished rows. If this run is stopped, another one with the same file continues it. It is to be
        removed when the results are stored.

    Returns
    -------
    results : Results
        All timings.
    agree : bool
        Whether the results of all libraries agree with ours.
    """
    with _begun(choice, threads, seconds, not quick, unfinished) as begun:
        console, complaints, results = begun.console, begun.complaints, begun.results
        console.print(
            "Median times of ours, ± half the distance of the quartiles; ours relative to the limit, NumPy's pass "
            "over the same memory; the others relative to ours. "
            f"{report.DOUBT}: varies too much, or its threads waited for a processor.\n"
        )
        by_classes, by_rows = session.sweep_shapes() if output is not None else ([], [])
        if quick:
            by_classes, by_rows = by_classes[::3], by_rows[::2]
        repeats = 0 if quick or output is None else STARTUP_REPEATS
        with _progress(console) as progress:
            steps = len(choice.cells()) + 2 * len(by_classes) + 2 * len(by_rows)
            starts = startup.of(choice.libraries)
            task = progress.add_task("", total=steps + repeats * len(starts))
            for row in begun.rows("rows", choice, seconds, limit, begun.one_thread):
                results.rows.append(row)
                progress.update(task, advance=1, description=f"{row.function}, {session.describe(row.shape)}")
            results.rows.sort(key=lambda row: row.place)
            for name, shapes in (("by_classes", by_classes), ("by_rows", by_rows)):
                found: list[Row] = getattr(results, name)
                for swept in session.sweeps(shapes, choice.libraries):
                    for row in begun.rows(name, swept, min(seconds, SWEEP_SECONDS), limit, None):
                        found.append(row)
                        progress.update(task, advance=1, description=f"picture, {session.describe(row.shape)}")
                found.sort(key=lambda row: (row.shape[1], row.shape[0]))
            if repeats:
                progress.update(task, description="start-up")
                results.startups = startup.measure(
                    starts, repeats, lambda: progress.advance(task), complaints.tell
                )
        for function in choice.functions:
            for dtype in choice.dtypes:
                rows = [row for row in results.rows if (row.function, row.dtype) == (function, dtype)]
                if rows:
                    console.print(table(rows), "")
        console.print(report.verdict(results.rows), markup=False)
    if output is not None:
        from fastsoftmax.tools.bench import pictures

        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").write_text(report.as_json(results), encoding="utf-8")
        pictures.draw(results, output / "speed.png")
        text = report.complete(results, "fastsoftmax bench", "speed.png")
        (output / "results.md").write_text(text, encoding="utf-8")
        console.print(f"Written: results.json, results.md and speed.png in {output}", markup=False)
    return results, not complaints.disagreements


def _chosen(option: str, wanted: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The known names that equal or begin with one of the wanted texts; ValueError for a text without any."""
    found: list[str] = []
    for text in wanted:
        exact = [name for name in known if name.lower() == text.lower()]
        alike = [name for name in known if name.lower().startswith(text.lower())]
        if not exact and not alike:
            raise ValueError(f"{option} {text!r} is none of: {'; '.join(known)}")
        found += exact or alike
    return tuple(name for name in known if name in found)


def choice_of(arguments: argparse.Namespace) -> Choice:
    """What the command line asks for; ValueError for names that are unknown."""
    if arguments.map:
        choice = QUICK_MAP if arguments.quick else MAP
    else:
        choice = QUICK if arguments.quick else Choice()
    if arguments.function:
        choice = replace(choice, functions=_chosen("--function", arguments.function, tuple(FUNCTIONS)))
    if arguments.shape:
        choice = replace(choice, shapes=tuple(dict.fromkeys(arguments.shape)))
    if arguments.dtype:
        choice = replace(choice, dtypes=tuple(dict.fromkeys(arguments.dtype)))
    if arguments.library:
        choice = replace(choice, libraries=_chosen("--library", arguments.library, tuple(ALL)))
    if not choice.cells():
        raise ValueError("--function and --shape leave nothing to measure: Jacobians are measured on matrices")
    return choice


def main(arguments: argparse.Namespace) -> int:
    """``fastsoftmax bench``; the exit status. ModuleNotFoundError if a picture is asked for without Matplotlib."""
    try:
        choice = choice_of(arguments)
        if arguments.picture is not None:
            _check_picture(arguments)
    except ValueError as error:
        print(f"fastsoftmax bench: {error}", file=sys.stderr)
        return 2
    if arguments.picture is not None or (arguments.output is not None and not arguments.map):
        from fastsoftmax.tools.bench import pictures  # noqa: F401 - it is missed now, not after minutes
    if arguments.output is not None:
        try:
            arguments.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            print(f"fastsoftmax bench: cannot write to {arguments.output}: {error.strerror}", file=sys.stderr)
            return 2
    limit = QUICK_LIMIT if arguments.quick else math.inf if arguments.seconds else LIMIT
    unfinished = None if arguments.output is None else arguments.output / UNFINISHED
    if arguments.map:
        _, agree = run_map(
            choice,
            threads=arguments.threads,
            seconds=arguments.seconds or (QUICK_SECONDS if arguments.quick else MAP_SECONDS),
            limit=limit,
            single=not arguments.quick,
            output=arguments.output,
            picture=arguments.picture,
            unfinished=unfinished,
        )
    else:
        _, agree = run(
            choice,
            threads=arguments.threads,
            seconds=arguments.seconds or (QUICK_SECONDS if arguments.quick else SECONDS),
            limit=limit,
            quick=arguments.quick,
            output=arguments.output,
            unfinished=unfinished,
        )
    if unfinished is not None:
        unfinished.unlink()
    return 0 if agree else 1


def _check_picture(arguments: argparse.Namespace) -> None:
    """ValueError unless there is a map that can be drawn into the file."""
    path: Path = arguments.picture
    if not arguments.map:
        raise ValueError("--picture draws a map: it needs --map")
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"--picture {path}: the name must end with .svg or .png")
    if not path.parent.is_dir():
        raise ValueError(f"--picture {path}: there is no directory {path.parent}")
