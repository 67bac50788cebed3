"""``fastsoftmax warmup``: compile all kernels into the disk cache ahead of time.

A job calls one or more functions that share kernels, in one dtype, with every combination of options for which
Numba compiles separate code. Each job runs in a process of its own. Several can write to one cache at a time,
since a file gets its name when it is complete (see `runtime.cache`).
"""

import inspect
import itertools
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import fastsoftmax as fs
from fastsoftmax import _spec, kernels, special
from fastsoftmax.api import ufuncs
from fastsoftmax.arrays import long_rows
from fastsoftmax.arrays.threads import usable_cpus
from fastsoftmax.runtime import cache

SHAPES = (((3, 4), -1), ((3, 100), -1), ((2, 3, 16), 1))
"""Shapes and axes: short rows (a vector of rows at a time), longer rows, classes before another axis."""

LONG_ROW = (1, long_rows.LONG_ROW + 1)
"""A row that is cut into pieces."""

Calls = Iterator[Callable[[], Any]]


CHOICES: dict[str, tuple[Any, ...]] = {
    "temperature": (1.0, 2.0),
    "from_probs": (False, True),
    "label_smoothing": (0.0, 0.1),
}
"""Values of the options, the default first; each value has machine code of its own."""


def _combined(function: Any) -> Iterator[dict[str, Any]]:
    """Every combination of the `CHOICES` that a function has. Defaults are left out, as most callers do."""
    taken = {name: CHOICES[name] for name in inspect.signature(function).parameters if name in CHOICES}
    for picks in itertools.product(*(range(len(values)) for values in taken.values())):
        yield {name: taken[name][k] for name, k in zip(taken, picks, strict=True) if k}


def _operands(entry: _spec.Function, targets: str, x: Any, labels: Any) -> tuple[Any, ...]:
    """The arrays that a function is called with; `targets` is the role of those of a loss."""
    roles = [targets if role == _spec.TARGETS else role for role in entry.operands]
    return tuple(x if role == _spec.LOGITS else labels if role == _spec.LABELS else np.exp(x) for role in roles)


def _dense(entry: _spec.Function, targets: str, dtype: Any) -> Calls:
    function = getattr(fs, entry.name)
    for shape, axis in SHAPES:
        x = np.linspace(-1, 1, math.prod(shape)).astype(dtype).reshape(shape)
        rows = tuple(np.delete(shape, axis))
        place = {} if axis == -1 else {"axis": axis}
        operands = _operands(entry, targets, x, np.zeros(rows, np.int64))
        for options in _combined(function):
            yield partial(function, *operands, **place, **options)
    if entry.pieces and targets != _spec.DISTRIBUTIONS:
        x = np.zeros(LONG_ROW, dtype)
        for options in _combined(function):
            yield partial(function, *_operands(entry, targets, x, np.zeros(1, np.int64)), **options)


def _ragged(entry: _spec.Function, dtype: Any) -> Calls:
    """Segments of any length, and one so long that it is cut."""
    function = getattr(fs, entry.name)
    for lengths in ((2, 1, 2), (kernels.segments.HUGE + 1, 1, 1)):
        indptr = np.cumsum((0, *lengths))
        x, positions = np.zeros(indptr[-1], dtype), np.zeros(3, np.int64)
        arrays = {_spec.LOGITS: x, _spec.INDPTR: indptr, _spec.POSITIONS: positions}
        yield partial(function, *[arrays.get(role, x) for role in entry.operands])


def _ufunc(name: str, dtype: Any) -> Calls:
    """The loops of a ufunc are compiled, for all dtypes, when it is first looked up."""
    yield partial(getattr, special if name not in ufuncs.NAMES else fs, name)


class Job(NamedTuple):
    """Calls that compile the same kernels: names of public functions, and for each what makes its calls."""

    names: tuple[str, ...]
    calls: tuple[Callable[[Any], Calls], ...]


def _jobs() -> dict[str, Job]:
    """All jobs. Functions of one kernel are in one job, so that no two processes compile the same."""
    jobs: dict[str, Job] = {}

    def add(job: str, name: str, calls: Callable[[Any], Calls]) -> None:
        known = jobs.get(job, Job((), ()))
        jobs[job] = Job((*known.names, name), (*known.calls, calls))

    for entry in _spec.FUNCTIONS.values():
        if entry.is_ragged:
            add(entry.kernel, entry.name, partial(_ragged, entry))
            continue
        either = _spec.TARGETS in entry.operands
        for targets in (_spec.LABELS, _spec.DISTRIBUTIONS) if either else ("",):
            parts = [entry.kernel]
            if entry.family == "cross entropy":
                parts += [targets, "gradient" if _spec.LIKE in entry.result else "loss"]
            add(", ".join(parts), entry.name, partial(_dense, entry, targets))
    for name in ufuncs.DOCS:
        add(name, name, partial(_ufunc, name))
    return jobs


JOBS = _jobs()
"""{job: the public functions that it is for, and the calls that it makes}."""


def do(job: str, dtype: str) -> None:
    """Make the calls of one job; in a process of its own."""
    for calls in JOBS[job].calls:
        for call in calls(np.dtype(dtype)):
            call()


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A function to call after each job; it shows a bar, or lines without rich or a terminal."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:
        terminal = False
    else:
        console = Console(highlight=False)
        terminal = console.is_terminal
    if terminal:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=total)
            yield lambda text: bar.update(task, advance=1, description=text)
        return
    done = itertools.count(1)
    yield lambda text: print(f"{next(done)}/{total} {text}", flush=True)


def run(functions: Iterable[str] | None, dtypes: Sequence[str], jobs: int | None = None) -> list[str]:
    """Do the jobs of these functions (None: of all) in these dtypes.

    Returns
    -------
    list of str
        The errors; empty if there are none.
    """
    wanted = None if functions is None else set(functions)
    chosen = [
        (name, dtype)
        for name, job in JOBS.items()
        if wanted is None or wanted & set(job.names)
        for dtype in (dtypes[:1] if name in ufuncs.DOCS else dtypes)  # one job of a ufunc compiles all dtypes
    ]
    workers = min(len(chosen), jobs or usable_cpus())
    failures = []
    # Spawned, not forked: a forked child has copies of locks that other threads may hold.
    context = multiprocessing.get_context("spawn")
    with _progress(len(chosen)) as advance, ProcessPoolExecutor(workers, mp_context=context) as pool:
        pending = {pool.submit(do, *item): ", ".join(item) for item in chosen}
        for future in as_completed(pending):
            try:
                future.result()
            except BrokenProcessPool as error:
                failures.append(str(error))
                break
            except Exception as error:
                failures.append(f"{pending[future]}: {type(error).__name__}: {error}")
            advance(pending[future])
    return failures


def main(functions: Sequence[str] | None, dtypes: Sequence[str], jobs: int | None) -> int:
    """``fastsoftmax warmup``; the exit status."""
    known = sorted({name for job in JOBS.values() for name in job.names})
    unknown = [name for name in functions or () if name not in known]
    if unknown:
        print(f"fastsoftmax warmup: no function {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    before, _ = cache.size()
    start = time.perf_counter()
    failures = run(functions, tuple(dict.fromkeys(dtypes)), jobs)
    seconds = time.perf_counter() - start
    files, size = cache.size()
    for failure in failures:
        print(f"fastsoftmax warmup: {failure}", file=sys.stderr)
    if not files:
        print(f"fastsoftmax warmup: nothing could be kept in {cache.directory()}", file=sys.stderr)
        return 1
    print(
        f"{files - before} kernels compiled in {seconds:.0f} s; now {files} ({size / 1e6:.1f} MB) in "
        f"{cache.directory()}"
    )
    return 1 if failures else 0
