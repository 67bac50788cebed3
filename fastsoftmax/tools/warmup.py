"""Everything compiled into the disk cache ahead of time: ``fastsoftmax warmup``.

A job calls one or more functions that share kernels, in one dtype, with every combination of options for which
Numba compiles code of its own. Jobs run in processes of their own; that they write to one cache at a time is
safe, since a file appears there complete or not at all (see `runtime.cache`).
"""

import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

import fastsoftmax as fs
from fastsoftmax.arrays import long_rows
from fastsoftmax.runtime import cache
from fastsoftmax.tools import info

SHAPES = (((3, 4), -1), ((3, 100), -1), ((2, 3, 16), 1))
"""Shapes and axes: rows in columns, rows along the row, classes before another axis."""

LONG_ROW = (1, long_rows.LONG_ROW + 1)
"""A row that is cut into pieces."""

Calls = Iterator[Callable[[], Any]]


def _arguments(dtype: Any) -> Iterator[tuple[Any, Any, Any, int]]:
    """Logits, another array of their shape, labels, and the axis."""
    for shape, axis in SHAPES:
        x = np.linspace(-1, 1, int(np.prod(shape))).astype(dtype).reshape(shape)
        rows = tuple(n for position, n in enumerate(shape) if position != axis % len(shape))
        yield x, np.exp(x), np.zeros(rows, np.int64), axis


def _activation(function: Any, dtype: Any) -> Calls:
    for x, _, _, axis in _arguments(dtype):
        yield partial(function, x, axis, temperature=2.0)
        yield partial(function, x, axis, where=x < 0.9)
        for _ in range(2):  # the second call of a small array takes the short way
            yield partial(function, x) if axis == -1 else partial(function, x, axis)
    for temperature in (1.0, 2.0):
        yield partial(function, np.zeros(LONG_ROW, dtype), temperature=temperature)


def _logsumexp(dtype: Any) -> Calls:
    for x, _, _, axis in _arguments(dtype):
        yield from 2 * [partial(fs.logsumexp, x, axis)]
    yield partial(fs.logsumexp, np.zeros(LONG_ROW, dtype))


def _weights(labels: Any, dtype: Any) -> Iterator[dict[str, Any]]:
    """Without and with a weight for each row."""
    yield {}
    yield {"sample_weight": np.ones(labels.shape, dtype)}


def _temperatures() -> Iterator[dict[str, Any]]:
    """Logits or probabilities, with and without a temperature."""
    for temperature, given in itertools.product((1.0, 2.0), (False, True)):
        yield {"temperature": temperature, "from_probs": given}


def _products(dtype: Any) -> Calls:
    for x, v, labels, axis in _arguments(dtype):
        for options in _temperatures():
            yield partial(fs.softmax_jvp, x, v, axis, **options)
        over = v.copy()
        yield partial(fs.softmax_vjp, x, over, axis, out=over)
        if axis == -1:  # small arrays take a short way, after the calls above
            for given in (False, True):
                yield partial(fs.softmax_vjp, x, v, from_probs=given)
        for options in _weights(labels, dtype):
            yield partial(fs.cross_entropy_hvp, x, labels, v, axis, **options)
    row = np.zeros(LONG_ROW, dtype)
    for options in _temperatures():
        yield partial(fs.softmax_jvp, row, row, **options)


def _diagonal(dtype: Any) -> Calls:
    for x, _, labels, axis in _arguments(dtype):
        for options in ({"reduction": "sum"}, *_weights(labels, dtype)):  # a mean weighs every row by 1/N
            yield partial(fs.cross_entropy_hessian_diag, x, labels, axis, **options)


def _jacobians(dtype: Any) -> Calls:
    for x, _, labels, axis in _arguments(dtype):
        for options in _temperatures():
            yield partial(fs.softmax_jacobian, x, axis, **options)
        if axis == -1:
            for given in (False, True):
                yield partial(fs.softmax_jacobian, x, from_probs=given)
        for options in _weights(labels, dtype):
            yield partial(fs.cross_entropy_hessian, x, labels, axis, **options)


def _logarithmic(function: Any, dtype: Any, vector: bool) -> Calls:
    for x, v, _, axis in _arguments(dtype):
        for temperature in (1.0, 2.0):
            yield partial(function, *((x, v) if vector else (x,)), axis, temperature=temperature)


def _entropies(dtype: Any) -> Calls:
    for x, _, _, axis in _arguments(dtype):
        for function, temperature in itertools.product(
            (fs.softmax_entropy, fs.softmax_entropy_with_grad), (1.0, 2.0)
        ):
            yield partial(function, x, axis, temperature=temperature)
        yield from 2 * [partial(fs.softmax_entropy, x, axis)]  # the second takes the short way


def _loss(dtype: Any, gradient: bool, labelled: bool) -> Calls:
    function: Any = fs.cross_entropy_with_grad if gradient else fs.cross_entropy
    for x, v, labels, axis in _arguments(dtype):
        of_classes: tuple[dict[str, Any], ...] = {}, {"class_weight": np.ones(x.shape[axis], dtype)}
        for rows, classes, smoothing in itertools.product(_weights(labels, dtype), of_classes, (0.0, 0.1)):
            options = rows | classes | {"label_smoothing": smoothing}
            yield partial(function, x, labels if labelled else v, axis, **options)
    if labelled:
        yield partial(function, np.zeros(LONG_ROW, dtype), np.zeros(1, np.int64))


def _squared_error(dtype: Any, gradient: bool) -> Calls:
    function: Any = fs.squared_error_with_grad if gradient else fs.squared_error
    for x, v, labels, axis in _arguments(dtype):
        for options in _weights(labels, dtype):
            yield partial(function, x, v, axis, **options)


_SEGMENTS = np.array([0, 2, 2, 5])


def _segments(dtype: Any) -> Calls:
    x = np.arange(5, dtype=dtype)
    for activation in (fs.segment_softmax, fs.segment_log_softmax, fs.segment_logsumexp):
        yield partial(activation, x, _SEGMENTS)
    yield partial(fs.segment_softmax_jvp, x, _SEGMENTS, x)
    yield partial(fs.segment_softmax_vjp, x, _SEGMENTS, x)


def _segment_losses(dtype: Any) -> Calls:
    x, labels = np.arange(5, dtype=dtype), np.array([0, -1, 2])
    for function in (fs.segment_cross_entropy, fs.segment_cross_entropy_with_grad):
        yield partial(function, x, _SEGMENTS, labels, ignore_index=-1)
        yield partial(function, x, np.array([0, 2, 3, 5]), np.array([0, 0, 1]))


_GRADIENTS = ("cross_entropy_with_grad", "cross_entropy_grad")
JOBS: dict[str, tuple[tuple[str, ...], Callable[[Any], Calls]]] = {
    "losses of distributions, gradients": (_GRADIENTS, lambda dtype: _loss(dtype, True, False)),
    "losses of labels, gradients": (_GRADIENTS, lambda dtype: _loss(dtype, True, True)),
    "losses of distributions": (("cross_entropy",), lambda dtype: _loss(dtype, False, False)),
    "losses of labels": (("cross_entropy",), lambda dtype: _loss(dtype, False, True)),
    "products": (("softmax_jvp", "softmax_vjp", "cross_entropy_hvp"), _products),
    "Jacobians": (("softmax_jacobian", "cross_entropy_hessian"), _jacobians),
    "squared errors, gradients": (
        ("squared_error_with_grad", "squared_error_grad"),
        lambda dtype: _squared_error(dtype, True),
    ),
    "squared errors": (("squared_error",), lambda dtype: _squared_error(dtype, False)),
    "entropies": (("softmax_entropy", "softmax_entropy_with_grad"), _entropies),
    "softmax": (("softmax",), lambda dtype: _activation(fs.softmax, dtype)),
    "log_softmax": (("log_softmax",), lambda dtype: _activation(fs.log_softmax, dtype)),
    "logsumexp": (("logsumexp",), _logsumexp),
    "products of log_softmax": (("log_softmax_jvp",), lambda dtype: _logarithmic(fs.log_softmax_jvp, dtype, True)),
    "transposed products of log_softmax": (
        ("log_softmax_vjp",),
        lambda dtype: _logarithmic(fs.log_softmax_vjp, dtype, True),
    ),
    "Jacobians of log_softmax": (
        ("log_softmax_jacobian",),
        lambda dtype: _logarithmic(fs.log_softmax_jacobian, dtype, False),
    ),
    "diagonals": (("cross_entropy_hessian_diag",), _diagonal),
    "segments": (
        (
            "segment_softmax",
            "segment_log_softmax",
            "segment_logsumexp",
            "segment_softmax_jvp",
            "segment_softmax_vjp",
        ),
        _segments,
    ),
    "losses of segments": (("segment_cross_entropy", "segment_cross_entropy_with_grad"), _segment_losses),
}
"""{job: (the public functions that it is for, the calls it makes)}, long ones first."""


def do(job: str, dtype: str) -> None:
    """Make the calls of one job; in a process of its own."""
    for call in JOBS[job][1](np.dtype(dtype)):
        call()
        call()  # which may take other kernels, those for small calls


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """What is called after each job: a bar if rich is there and the output is a terminal, else lines."""
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
        What went wrong, nothing if all is well.
    """
    wanted = None if functions is None else set(functions)
    chosen = [
        (job, dtype)
        for job, (names, _) in JOBS.items()
        if wanted is None or wanted & set(names)
        for dtype in dtypes
    ]
    workers = min(len(chosen), jobs or info.usable_cpus())
    failures = []
    # Spawned, not forked: a fork takes along what threads of this process may have locked.
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
    known = sorted({name for names, _ in JOBS.values() for name in names})
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
