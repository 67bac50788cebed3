"""``fastsoftmax run``: a public function over files, larger than memory or not, in blocks of two megabytes.

While one block is computed, the next one is read and the previous one is written; their memory is reused. Files
are read and written, not mapped, so that the process never holds more than its blocks. Only where a block lies in
many short stretches of its file (the orders of two files differ) is a mapping used, and its pages are given back
after every block.

A result is written beside its target, under another name that ends in ``.part``. The results are renamed when all
of them are complete and on the disk; until then an existing target stays as it was. The loss is printed before the
results are renamed. So all results have their names if the exit status is 0, and none has if it is not.
"""

import errno
import inspect
import json
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, islice, product
from pathlib import Path
from typing import Any

import numpy as np

import fastsoftmax
from fastsoftmax import _spec
from fastsoftmax.arrays import binary
from fastsoftmax.arrays.blocks import Array, Problem, real_array, stand_in
from fastsoftmax.arrays.calibration import Rows, TemperatureFit, fitted
from fastsoftmax.arrays.linear import BLOCK_BYTES as BLOCK_BYTES_OF_LOGITS
from fastsoftmax.arrays.linear import (
    ROWS,
    check_targets,
    dtype_of_sums,
    finished,
    logits_of,
    loss_parts,
    returned_dtype,
)
from fastsoftmax.arrays.losses import curvature_rows, loss_rows
from fastsoftmax.arrays.metrics import LabelledRows, labelled_rows
from fastsoftmax.arrays.options import (
    LossOptions,
    check_indices,
    check_kind,
    check_labels,
    known_divisor,
    part_of_divisor,
)
from fastsoftmax.arrays.sampling import Draws
from fastsoftmax.arrays.statistics import kinds
from fastsoftmax.arrays.threads import threads
from fastsoftmax.arrays.weights import (
    SUM,
    Divisor,
    count_divisor,
    joined_divisor,
    joined_loss,
    joined_weights,
    part_of_sum,
    repeated_divisor,
)
from fastsoftmax.backends import files, sequential
from fastsoftmax.backends.files import BROKEN, REFUSED, Box, NpyTarget, RunError, ZarrTarget
from fastsoftmax.backends.sequential import STANDARD, Sequential, Source, StandardOutput
from fastsoftmax.metrics import RunningMetrics

BLOCK_BYTES = 1 << 21
AHEAD = 3  # so many blocks are read ahead, and so many may wait to be written
SCATTERED = 64  # blocks that do not lie in one stretch are so many times as large, so that stretches are longer
TASK_BYTES = 1 << 26  # size of a block for a Dask worker


UNUSABLE = {
    getattr(errno, f"E{name}", None)
    for name in ("NAMETOOLONG", "NOENT", "NOTDIR", "ACCES", "PERM", "ROFS", "LOOP", "INVAL", "ILSEQ", "EXIST")
}
"""Errors that mean that a file cannot have this name or place. Others mean that the disk has no space for it."""


class Terminated(BaseException):
    """A signal asked the process to end."""


def _show(text: str) -> None:
    """Write to standard error. If that is closed or full, the message is lost, and the work goes on."""
    if sys.stderr is not None:  # with file=None, print writes to standard output
        with suppress(OSError, ValueError):
            print(text, end="", file=sys.stderr, flush=True)


def _say(message: str) -> None:
    """Print a message in one line. Unprintable characters of file names are escaped."""
    _show("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message) + "\n")


# --- which functions there are ------------------------------------------------------------------------------


SUMS = {"grad_weight": "weight", "grad_bias": "bias"}
"""Results that are sums over all rows, and the operands with their shapes."""


@dataclass(frozen=True)
class Command:
    """A public function as a command: its entry in the table of functions, and what its signature says."""

    entry: _spec.Function
    operands: tuple[str, ...]
    options: dict[str, Any]

    @classmethod
    def of(cls, entry: _spec.Function) -> "Command":
        parameters = inspect.signature(getattr(fastsoftmax, entry.name)).parameters.values()
        _, *operands = [p.name for p in parameters if p.default is p.empty]
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY or p.default is None}
        for name in ("out", "keepdims", "block_bytes", "uniforms"):
            options.pop(name, None)
        if f"{entry.name}_with_grad" in _spec.FUNCTIONS:
            options["grad"] = None
            if _spec.WEIGHT in entry.operands:
                options |= dict.fromkeys(SUMS)
        if entry.result == (_spec.FIT,):
            options["json"] = False
        # The class indices are targets in all commands, whatever the name of the parameter.
        return cls(entry, tuple("targets" if name == _spec.LABELS else name for name in operands), options)

    @property
    def result(self) -> str:
        return self.entry.result[0] if self.entry.result else ""

    @property
    def targets(self) -> str:
        """The name of the operand with the targets of a loss."""
        return _spec.TARGET_LOGITS if _spec.TARGET_LOGITS in self.operands else "targets"

    @property
    def is_loss(self) -> bool:
        return self.result in (_spec.LOSS, _spec.ENTRIES)

    @property
    def is_table(self) -> bool:
        """Whether there are several numbers for each row: the result is an array with fields."""
        return self.entry.family == "statistics" or (self.entry.of_products and not self.is_loss)

    @property
    def is_draw(self) -> bool:
        return self.result == _spec.CLASSES

    @property
    def has_labels(self) -> bool:
        """Whether its targets are class indices, and never distributions."""
        return self.entry.family in ("statistics", "metrics", "fit")

    @property
    def is_printed(self) -> bool:
        """Whether the result is a table of some numbers, which is printed."""
        return self.entry.family in ("metrics", "fit")

    @property
    def is_fit(self) -> bool:
        """Whether it reads the input several times, each time with a number that follows from the last one."""
        return self.result == _spec.FIT


METRICS = Command(
    _spec.Function("metrics", "", "", "metrics", (_spec.LOGITS, _spec.LABELS), (), "metrics.update"),
    ("targets",),
    {"sample_weight": None, "ignore_index": None, "json": False},
)
"""`fastsoftmax.metrics.RunningMetrics`, which is no function."""
COMMANDS = {entry.command: Command.of(entry) for entry in _spec.FUNCTIONS.values() if entry.command}
COMMANDS[METRICS.entry.name] = METRICS
DEFAULTS: dict[str, Any] = {}
"""Every option of any command with its default; operands have None."""
for _command in COMMANDS.values():
    DEFAULTS |= dict.fromkeys(_command.operands) | _command.options
ROW_OPTIONS = ("temperature", "from_probs", "top_k", "top_p", "min_p", "size", "replace")
"""The options of functions that are no losses."""
FLAGS = {"replace": "--no-replace", "rng": "--seed"}
"""The options of the command line that have other names than the parameters."""
FILES = (
    "tangent",
    "cotangent",
    "targets",
    "target_logits",
    "class_weight",
    "sample_weight",
    "pos_weight",
    "where",
    "weight",
    "bias",
)


def _flag(name: str) -> str:
    return FLAGS.get(name, "--" + name.replace("_", "-"))


Target = NpyTarget | ZarrTarget | StandardOutput


# --- blocks -------------------------------------------------------------------------------------------------


def boxes(
    shape: tuple[int, ...],
    itemsize: int,
    keep: int | None,
    limit: int,
    fortran: bool = False,
    chunks: tuple[int, ...] | None = None,
) -> tuple[int, ...]:
    """The extent of boxes of about `limit` bytes: the array is cut along its slowest axes, but never along `keep`.

    `keep` is None if there is no such axis. If the array is stored in chunks, the boxes consist of whole chunks.
    """
    sizes = [max(1, n) for n in shape]
    axes = [a for a in range(len(shape)) if a != keep]
    for axis in reversed(axes) if fortran else axes:
        total = math.prod(sizes) * itemsize
        if total <= limit:
            break
        rest = total // sizes[axis]
        count = max(1, limit // rest)
        if chunks is not None:
            count = max(chunks[axis], count // chunks[axis] * chunks[axis])
        sizes[axis] = min(count, sizes[axis])
    return tuple(sizes)


def cover(shape: tuple[int, ...], extent: tuple[int, ...], fortran: bool = False) -> Iterator[Box]:
    """The boxes of this extent that an array consists of, in the order of its memory."""
    ranges = [
        [slice(start, min(start + step, n)) for start in range(0, max(n, 1), step)]
        for n, step in zip(shape, extent, strict=True)
    ]
    if fortran:
        for box in product(*reversed(ranges)):
            yield box[::-1]
    else:
        yield from product(*ranges)


# --- progress -----------------------------------------------------------------------------------------------


class Progress:
    """A progress bar with a rate: rich's if it is installed, else a line. Only on a terminal."""

    def __init__(self, label: str, total: int, begin: float | None = None) -> None:
        self.label, self.total, self.done = label, total, 0
        self.begin = self.waited = time.perf_counter()
        if begin is not None:
            self.waited = begin
        self.rich: Any = None
        self.task: Any = None
        self.shown = 0.0
        self.visible = False
        if sys.stderr is not None:
            with suppress(OSError, ValueError):
                self.visible = sys.stderr.isatty()
        if self.visible:
            try:
                from rich import progress
                from rich.console import Console
            except ModuleNotFoundError:
                return
            columns = (
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.DownloadColumn(),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
            )
            self.rich = progress.Progress(*columns, console=Console(stderr=True), transient=True)
            self.task = self.rich.add_task(label, total=total)
            with suppress(OSError):
                self.rich.start()

    def extend(self, size: int) -> None:
        """There is so much more to do, if what was announced is done."""
        if self.done >= self.total:
            self.total += size
            if self.rich is not None:
                self.rich.update(self.task, total=self.total)

    @property
    def rate(self) -> float:
        return self.done / max(time.perf_counter() - self.begin, 1e-9)

    def advance(self, size: int) -> None:
        self.done += size
        if self.rich is not None:
            with suppress(OSError):
                self.rich.advance(self.task, size)
        elif self.visible and time.perf_counter() - self.shown > 0.2:
            self.shown = time.perf_counter()
            line = f"\r{self.label} {self.done / max(self.total, 1):4.0%} {files.in_words(self.rate)}/s "
            _show(line)

    def stop(self) -> None:
        if self.rich is not None:
            with suppress(OSError):
                self.rich.stop()
        elif self.visible:
            _show("\r" + " " * 60 + "\r")

    def summary(self) -> str:
        """How much was read, and the time and rate since the command began, which is what the user waited."""
        seconds = max(time.perf_counter() - self.waited, 1e-9)
        return f"{files.in_words(self.done)} in {seconds:.1f} s, {files.in_words(self.done / seconds)}/s"


# --- the job ------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """A run whose arguments have been checked: its inputs, its function with options, and its results.

    `problem` is about the logits, which the input holds or, multiplied by the weights, gives. `constants` are
    operands that are the same for all blocks, and `factors` weights in memory that broadcast to the logits.
    """

    name: str
    function: Command
    x: Source
    axis: int | None
    problem: "Problem | Single"
    given: dict[str, Any]
    operands: dict[str, Source] = field(default_factory=dict)
    class_weight: Array | None = None
    constants: dict[str, Array] = field(default_factory=dict)
    factors: dict[str, Array] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    reduction: str = "mean"

    @property
    def python_name(self) -> str:
        return self.function.entry.name

    @property
    def targets_of(self) -> Source | None:
        """The targets of a loss."""
        return self.operands.get(self.function.targets)

    @property
    def nbytes(self) -> int:
        """The size of the input."""
        return math.prod(self.x.shape) * self.x.dtype.itemsize

    @property
    def soft(self) -> bool:
        targets = self.targets_of
        return targets is not None and self.axis is not None and targets.ndim == self.x.ndim

    def arguments(self, operands: dict[str, Any]) -> dict[str, Any]:
        """Operands by the names of the parameters of the public function."""
        return {self.function.entry.second if key == "targets" else key: one for key, one in operands.items()}

    @property
    def wrt(self) -> tuple[str, ...]:
        """The operands of a loss of products whose gradients are written."""
        names = {"grad": "features", **SUMS}
        return tuple(name for key, name in names.items() if key in self.targets)

    def per_row(self, name: str) -> bool:
        """Whether an operand has one number for each row."""
        return self.operands[name].ndim < self.x.ndim

    def loss_options(self, sample_weight: Any) -> LossOptions:
        """The options of a loss, with the weights of the rows that are computed."""
        options = {name: self.given[name] for name in LossOptions._fields[2:] if name in self.given}
        return LossOptions(class_weight=self.class_weight, sample_weight=sample_weight, **options)

    def binary_options(self, weights: dict[str, Any]) -> binary.BinaryOptions:
        """The options of a loss of single logits, with the weights of the entries that are computed."""
        names = binary.BinaryOptions._fields
        numbers = {name: self.given[name] for name in names if name in self.given}
        found = {name: weights.get(name) for name in ("pos_weight", "sample_weight")}
        return binary.BinaryOptions(**(numbers | found))

    def factors_of(self, box: Box) -> dict[str, Array]:
        """The weights in memory for the entries of a box."""
        found = {}
        for name, array in self.factors.items():
            last = box[len(box) - array.ndim :]
            found[name] = array[tuple(s if n > 1 else slice(None) for s, n in zip(last, array.shape, strict=True))]
        return found

    def place(self, box: Box, rows: bool) -> Box:
        return files.rows_of(box, self.axis) if rows else box

    @property
    def more(self) -> tuple[int, ...]:
        """The first axes of draws, with several from each row."""
        return () if self.given["size"] is None else (self.given["size"],)

    def square(self, box: Box) -> Box:
        """The place of the Jacobians of a box in the result."""
        whole = slice(0, self.problem.classes)
        return (*files.rows_of(box, self.axis), whole, whole)


def _choose(arguments: Any) -> tuple[Command, dict[str, Any]]:
    """The function, and the options that it takes; RunError if another option was passed."""
    function = COMMANDS[arguments.function]
    taken = {*function.operands, *function.options}
    given = {}
    for name, default in DEFAULTS.items():
        value = getattr(arguments, name)
        if name in taken:
            given[name] = default if value is None else value
        elif value is not None:
            raise RunError(f"{arguments.function} takes no {_flag(name)}")
    for name in function.operands:
        if given[name] is None:
            raise RunError(f"{arguments.function} needs {_flag(name)} FILE")
    return function, given


def _check_standard_output(arguments: Any, function: Command, given: dict[str, Any]) -> None:
    """RunError if a result cannot go to standard output."""
    if function.is_loss and given["reduction"] != "none":
        raise RunError("the loss is printed on standard output; --grad needs the name of a file")
    if sys.stdout is None:
        raise RunError("standard output is closed")
    if sys.stdout.isatty():
        raise RunError("standard output is a terminal, and a result is no text; redirect it to a file or a pipe")
    if arguments.scheduler is not None:
        raise RunError("with --scheduler, results go to files, and not to standard output")


def _check_names(arguments: Any, function: Command, given: dict[str, Any]) -> dict[str, Path]:
    """The path of each result; RunError if it cannot be written there."""
    results: dict[str, Path] = {}
    if function.is_loss and given["reduction"] != "none" and sys.stdout is None:
        raise RunError("the loss is printed, but standard output is closed")
    if function.is_fit and arguments.scheduler is not None:
        raise RunError(
            f"{arguments.function} takes no --scheduler: each of its passes needs the sums of the last one"
        )
    if function.is_printed:
        if sys.stdout is None:
            raise RunError(f"the result of {arguments.function} is printed, but standard output is closed")
        if arguments.output is not None:
            raise RunError(f"{arguments.function} takes no --output: the result is printed")
        if arguments.input == STANDARD and function.is_fit:
            raise RunError(f"{arguments.function} reads INPUT several times, and standard input can be read once")
    elif function.is_loss:
        if arguments.output is not None and given["reduction"] != "none":
            raise RunError("the loss is printed; with --reduction none, one for each row goes to --output")
        gradients = [given.get(key) for key in ("grad", *SUMS)]
        if given["reduction"] == "none" and arguments.output is None and gradients == [None] * len(gradients):
            raise RunError("--reduction none needs --output FILE")
        if given.get("grad_bias") is not None and given["bias"] is None:
            raise RunError("--grad-bias needs --bias FILE")
    elif arguments.output is None:
        raise RunError(f"{arguments.function} needs --output FILE")
    if arguments.output is not None:
        results["output"] = arguments.output
    results |= {key: given[key] for key in ("grad", *SUMS) if given.get(key) is not None}
    if STANDARD in results.values():
        _check_standard_output(arguments, function, given)
    named = {key: path for key, path in results.items() if path != STANDARD}
    for path in named.values():
        files.check_replaceable(path)
        files.check_suffix(path)
        if files.kind(path) is not None and not arguments.force:
            raise RunError(f"{path} exists; --force overwrites it")
        parent = path.absolute().parent
        if files.kind(parent) != files.DIRECTORY or not os.access(parent, os.W_OK | os.X_OK):
            raise RunError(f"{parent} is no directory that can be written to")
    resolved = {key: files.resolved(path) for key, path in named.items()}
    for place in resolved.values():
        if not os.access(place.parent, os.W_OK | os.X_OK):  # another directory if the path is a link
            raise RunError(f"{place.parent} is no directory that can be written to")
        for part in files.left_behind(place):
            _say(f"fastsoftmax run: {part} is left from a run that was killed; remove it")
    places = results | resolved
    for one, other in combinations(places, 2):
        if places[one] == places[other]:
            raise RunError(f"{_flag(one)} and {_flag(other)} are the same file")
        if places[one] in places[other].parents or places[other] in places[one].parents:
            raise RunError(f"{_flag(one)} and {_flag(other)} lie one inside the other")
    return results


def _check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise RunError(f"{_flag(name)} has shape {shape}, expected {expected}")


def _operand(name: str, path: Path) -> Source:
    """The array of an option."""
    if path == STANDARD:
        raise RunError(f"{_flag(name)} needs the name of a file; only INPUT is read from standard input")
    return sequential.source(path)


def _check_order(job: Job, extent: tuple[int, ...], scheduler: bool) -> None:
    """RunError if an input that is read from beginning to end would have to be read otherwise."""
    for name, array in {"x": job.x, **job.operands}.items():
        if not isinstance(array, Sequential):
            continue
        if scheduler:
            raise RunError(f"--scheduler needs files that workers can read in parts, and not {array.path}")
        size = files.rows_of(extent, job.axis) if name != "x" and job.per_row(name) else extent
        alike = array is job.x or array.ndim < 2 or not (array.fortran or job.x.fortran)
        if not alike or not sequential.in_order(array.shape, size, array.fortran):
            raise RunError(
                f"{array.path} is read from beginning to end, but this run needs it in another order (the classes "
                "are its slowest axis, or its axes are stored in another order); save it as a .npy file"
            )


def _constants(name: str, given: dict[str, Any]) -> dict[str, Array]:
    """The weights and the bias of a loss of products, read into memory."""
    if given.get("weight") is None:
        return {}
    found = {key: _operand(key, given[key])[...] for key in ("weight", "bias") if given[key] is not None}
    return {key: real_array(name, key, value) for key, value in found.items()}


def _job(arguments: Any, function: Command, given: dict[str, Any]) -> Job:
    """The job, checked as far as headers and options allow."""
    name = arguments.function.replace("-", "_")
    if function.entry.is_elementwise:
        return _job_of_entries(arguments, function, given)
    try:
        x = sequential.source(arguments.input)
        constants = _constants(name, given)
        logits = "logits" if function.targets in function.operands else "x"
        block = stand_in(x.shape, x.dtype)
        if constants:
            if arguments.axis not in (None, -1, x.ndim - 1):
                raise RunError(f"{arguments.function} takes no --axis: the last one is multiplied by the weights")
            block, logits = logits_of(name, block, **constants), "features"
        problem = Problem(name, block, -1 if arguments.axis is None else arguments.axis, name=logits)
        (axis,) = problem.axes
        reduction = given.get("reduction", "mean")
        job = Job(arguments.function, function, x, axis, problem, given, reduction=reduction, constants=constants)
        for key in FILES:
            if given.get(key) is None or key in constants:
                continue
            operand = _operand(key, given[key])
            if key == "class_weight":
                _check_shape(key, operand.shape, (problem.classes,))
                job.class_weight = real_array(name, key, operand[...])
                continue
            job.operands[key] = operand
            empty = stand_in(operand.shape, operand.dtype)
            if key == "where":
                problem.mask(empty)
                _check_shape(key, operand.shape, x.shape)
            elif key == "sample_weight":
                real_array(name, key, empty)
                _check_shape(key, operand.shape, problem.row_shape)
            elif key == function.targets and function.has_labels:
                check_indices(problem, real_array(name, key, empty), key)
            elif key == "targets" and constants:
                check_targets(name, real_array(name, key, empty), x.shape)
            elif key == function.targets:
                check_kind(problem, real_array(name, key, empty), job.loss_options(None))
            else:
                problem.operand(key, empty)
        if not function.is_printed:
            _try_options(job)
        if function.is_draw:
            names = ("rng", "size", "replace", "temperature", "top_k", "top_p", "min_p")
            options = {key: given[key] for key in names}
            Draws(name, problem.row_shape, problem.dtype, uniforms=None, **options).check_count(problem.classes)
    except (ValueError, TypeError, OverflowError, OSError) as error:  # AxisError is a ValueError
        raise RunError(files.reason(error)) from None
    return job


@dataclass
class Single:
    """What a job has to know about single logits, which have no classes."""

    dtype: np.dtype[Any]
    result_dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    classes: int = 1


def _job_of_entries(arguments: Any, function: Command, given: dict[str, Any]) -> Job:
    """The job of a loss of single logits. Weights that broadcast to the logits are read into memory."""
    if arguments.axis is not None:
        raise RunError(f"{arguments.function} takes no --axis: its logits have no classes")
    try:
        x = sequential.source(arguments.input)
        problem = Single(np.dtype(np.float64), np.dtype(np.float64), x.shape)
        job = Job(arguments.function, function, x, None, problem, given, reduction=given["reduction"])
        for key in ("targets", "sample_weight", "pos_weight"):
            if given.get(key) is not None:
                operand = _operand(key, given[key])
                if key == "targets" or operand.shape == x.shape:
                    job.operands[key] = operand
                else:
                    job.factors[key] = operand[...]
        empty = {key: stand_in(one.shape, one.dtype) for key, one in job.operands.items()}
        options = job.binary_options(job.factors | empty)
        entries = binary.Entries(
            job.python_name, stand_in(x.shape, x.dtype), empty["targets"], options, Divisor(1.0)
        )
        binary.constants(entries, options)
        problem.dtype, problem.result_dtype = entries.dtype, entries.result_dtype
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise RunError(files.reason(error)) from None
    return job


def _try_options(job: Job) -> None:
    """Let the function itself check the options, by a call with an array without rows."""
    x = np.zeros((0, max(job.problem.classes, 1)), job.problem.dtype)
    operands: dict[str, Any] = {}
    if job.constants:
        x = np.zeros((0, job.x.shape[-1]))
    for key in job.function.operands:
        rows = key == job.function.targets and not job.soft
        operands[key] = np.zeros(0, np.intp) if rows else x
    operands |= job.constants
    options = {
        key: job.given[key] for key in (*ROW_OPTIONS, *LossOptions._fields[2:]) if key in job.function.options
    }
    getattr(fastsoftmax, job.python_name)(x, **job.arguments(operands), **options)


def _standard_output(
    job: Job,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    fortran: bool,
    chunks: tuple[int, ...],
    extent: tuple[int, ...],
) -> StandardOutput:
    """Standard output for a result in these chunks; RunError if they do not come from beginning to end."""
    target = StandardOutput(shape, dtype, fortran)
    cut = sum(size < n for size, n in zip(extent, job.x.shape, strict=True))
    alike = cut <= 1 or job.x.fortran == target.fortran
    if not alike or not sequential.in_order(target.shape, chunks, target.fortran):
        raise RunError(
            "the classes are the slowest axis, so that the result does not come from beginning to end; it needs "
            "the name of a file"
        )
    return target


def _open_targets(job: Job, results: dict[str, Path], extent: tuple[int, ...], stack: ExitStack) -> None:
    """Open the files for the results, under temporary names. `stack` discards them unless they are renamed."""
    problem = job.problem
    dtype = problem.result_dtype
    rows = files.rows_of(tuple(slice(0, n) for n in extent), job.axis)
    for key, path in results.items():
        kind = dtype
        if key == "output" and job.function.result in (_spec.ROWS, _spec.LOSS, _spec.ENTRIES):
            shape, chunks = problem.row_shape, files.extent_of(rows)
            if job.function.is_table:
                kind = np.dtype([*kinds(dtype)._asdict().items()])
        elif job.function.is_draw:
            kind, more = np.dtype(np.int64), job.more
            shape, chunks = (*more, *problem.row_shape), (*more, *files.extent_of(rows))
        elif key == "output" and job.function.result == _spec.SQUARE:
            shape = (*problem.row_shape, problem.classes, problem.classes)
            chunks = (*files.extent_of(rows), problem.classes, problem.classes)
        elif key in SUMS:
            operand = job.constants[SUMS[key]]
            shape, kind = operand.shape, returned_dtype(operand)
            chunks = boxes(shape, kind.itemsize, 1, BLOCK_BYTES)
        else:
            shape, chunks = job.x.shape, extent
        fortran = job.x.fortran and job.function.result not in (_spec.SQUARE, _spec.CLASSES) and key not in SUMS
        try:
            if path == STANDARD:
                target: Target = _standard_output(job, shape, kind, fortran, chunks, extent)
            elif files.is_zarr(path):
                if kind.names is not None:
                    raise RunError(f"{path}: the statistics are an array with fields, which needs a .npy file")
                target = ZarrTarget(path, shape, kind, chunks)
            else:
                target = NpyTarget(path, shape, kind, fortran)
        except OSError as error:
            if error.errno in UNUSABLE:
                raise RunError(f"{path} cannot be written: {files.reason(error)}") from None
            size = files.in_words(math.prod(shape) * kind.itemsize)
            raise RunError(f"{path} needs {size}: {files.reason(error)}", BROKEN) from None
        stack.callback(target.discard)
        job.targets[key] = target


class Rooms:
    """Memory for the blocks that are read ahead, computed and written; it is reused."""

    def __init__(self, sizes: dict[str, int], ahead: int) -> None:
        count = 2 * ahead + 1
        self.free = [{name: np.empty(size, np.uint8) for name, size in sizes.items()} for _ in range(count)]
        self.turn = 0

    def next(self) -> dict[str, Array]:
        self.turn += 1
        return self.free[self.turn % len(self.free)]


def _read(job: Job, box: Box, room: dict[str, Array]) -> dict[str, Array]:
    result = {"x": job.x.read(box, room["x"])}
    for name, operand in job.operands.items():
        result[name] = operand.read(job.place(box, job.per_row(name)), room[name])
    return result


class Local:
    """The job in this process."""

    def __init__(self, job: Job, extent: tuple[int, ...]) -> None:
        self.job = job
        self.extent = extent
        self.ahead = 1 if math.prod(extent) * job.x.dtype.itemsize > BLOCK_BYTES else AHEAD
        self.boxes = list(cover(job.x.shape, extent, job.x.fortran))
        self.totals: list[Array] = []
        self.sums: dict[str, Array] = {}
        self.dtype_kept = job.x.dtype == job.problem.result_dtype and job.x.dtype.isnative
        self.divisor = None if job.targets_of is None else self._divisor(job.targets_of)
        self.seed = np.random.SeedSequence(job.given["rng"]) if job.function.is_draw else None

    def labels(self, targets: Source) -> Iterator[tuple[Box, Array | None]]:
        """The labels of one block after the other, checked; None for distributions."""
        job = self.job
        options = job.loss_options(None)
        for box in cover(job.problem.row_shape, files.rows_of(self.extent, job.axis)):
            labels = None if job.soft else targets[box]
            if labels is not None:
                origin = tuple(s.start for s in box)
                try:
                    check_labels(job.python_name, labels, job.problem.classes, options.ignore_index, origin)
                except IndexError as error:
                    raise RunError(str(error)) from None
            yield box, labels

    def _divisor(self, targets: Source) -> Divisor | None:
        """The divisor of the mean, or None. Labels are checked here, before any logits are read."""
        job, name = self.job, self.job.python_name
        if isinstance(job.problem, Single):
            return self._divisor_of_entries()
        classes, dtype = job.problem.classes, job.problem.dtype
        weights = job.operands.get("sample_weight")
        options = job.loss_options(weights)
        divisor = known_divisor(name, job.soft, options, job.problem.rows)
        parts = []
        for box, labels in self.labels(targets):
            if options.is_mean and divisor is None:
                part = options._replace(sample_weight=None if weights is None else weights[box])
                parts.append(part_of_divisor(name, labels, classes, dtype, part))
        if not options.is_mean:
            return None
        return joined_divisor(np.array(parts, SUM), job.problem.rows) if divisor is None else divisor

    def _divisor_of_entries(self) -> Divisor | None:
        """The divisor of a mean over single logits, or None."""
        job, entries = self.job, math.prod(self.job.x.shape)
        if job.reduction != "mean":
            return None
        if "sample_weight" in job.factors:
            weights = job.factors["sample_weight"]
            return repeated_divisor(binary.sum_of_weights(weights, job.problem.dtype), weights.size, entries)
        if "sample_weight" in job.operands:
            streamed = job.operands["sample_weight"]
            parts = [binary.sum_of_weights(streamed[box], job.problem.dtype) for box in self.boxes]
            return repeated_divisor(joined_weights(np.array(parts, SUM)), entries, entries)
        return count_divisor(entries)

    def _entries(self, box: Box, x: Array, block: dict[str, Array]) -> dict[str, tuple[Box, Array]]:
        """The results of a block of single logits."""
        job = self.job
        name = f"{job.python_name}_with_grad" if "grad" in job.targets else job.python_name
        options = job.binary_options(job.factors_of(box) | block)
        origin = tuple(s.start for s in box)
        entries = binary.Entries(name, x, block["targets"], options, self.divisor, origin)
        found = binary.compute(entries, binary.derivative_order(_spec.FUNCTIONS[name]), options)
        if job.function.is_loss and job.reduction != "none":
            self.totals.append(found.sum())
        arrays = {"output": found.beside if job.function.is_loss else found.slope, "grad": found.slope}
        return {key: (box, np.asarray(arrays[key])) for key in job.targets}

    def _table(self, box: Box, x: Array, block: dict[str, Array]) -> dict[str, tuple[Box, Array]]:
        """The statistics of the rows of a block, as an array with fields."""
        job = self.job
        names = ("temperature", "ignore_index", "softcap")
        options = {key: job.given[key] for key in names if key in job.function.options}
        if not job.constants:
            options["axis"] = job.axis
        found = getattr(fastsoftmax, job.python_name)(x, **job.arguments(block | job.constants), **options)
        return {"output": (job.place(box, True), _as_table(*found, kind=job.targets["output"].dtype))}

    def _draws(self, box: Box, x: Array, block: dict[str, Array]) -> dict[str, tuple[Box, Array]]:
        """Random classes for the rows of a block, by the uniform numbers that they have for an array in memory."""
        job = self.job
        place = (*(slice(0, n) for n in job.more), *job.place(box, True))
        starts, length = files.stretches((*job.more, *job.problem.row_shape), place)
        numbers = np.empty((len(starts), length))
        for one, start in zip(numbers, starts.tolist(), strict=True):
            np.random.Generator(np.random.PCG64(self.seed).advance(start)).random(out=one)
        options = {key: job.given[key] for key in ROW_OPTIONS if key in job.function.options}
        options |= {"axis": job.axis, "uniforms": numbers.reshape(files.extent_of(place)), **block}
        try:
            return {"output": (place, np.asarray(fastsoftmax.categorical(x, **options)))}
        except ValueError as error:
            origin = ", ".join(str(s.start) for s in job.place(box, True))
            raise ValueError(f"{error}; its place is counted from [{origin}]") from None

    def compute(self, box: Box, block: dict[str, Array]) -> dict[str, tuple[Box, Array]]:
        """The results of a block: {target: (place, array)}."""
        job = self.job
        x = block.pop("x")
        given = job.given
        if job.axis is None:
            return self._entries(box, x, block)
        if job.function.is_table:
            return self._table(box, x, block)
        if job.function.is_draw:
            return self._draws(box, x, block)
        if job.function.is_loss:
            return self._loss(box, x, block)
        rows = job.function.result == _spec.ROWS
        if job.function.entry.family in ("curvature", "focal curvature"):
            arrays = job.python_name, x, block["targets"], block.get("tangent")
            loss_options = job.loss_options(block.get("sample_weight"))
            value = curvature_rows(*arrays, job.axis, loss_options, divisor=self.divisor)
        else:
            options = {key: given[key] for key in ROW_OPTIONS if key in job.function.options}
            out = x if self.dtype_kept and ("grad" in job.targets or job.function.result == _spec.LIKE) else None
            name = f"{job.python_name}_with_grad" if "grad" in job.targets else job.python_name
            value = getattr(fastsoftmax, name)(x, axis=job.axis, out=out, **block, **options)
            if "grad" in job.targets:
                value, slope = value
                return {"output": (job.place(box, rows), np.asarray(value)), "grad": (box, slope)}
        place = job.square(box) if job.function.result == _spec.SQUARE else job.place(box, rows)
        return {"output": (place, np.asarray(value))}

    def _loss(self, box: Box, x: Array, block: dict[str, Array]) -> dict[str, tuple[Box, Array]]:
        job = self.job
        gradient = "grad" in job.targets
        options = job.loss_options(block.get("sample_weight"))
        if job.constants:
            rows, slope = self._loss_of_products(x, block["targets"], options)
        else:
            out = x if gradient and self.dtype_kept else None
            arrays = job.python_name, x, block[job.function.targets], job.axis, options, out
            found = loss_rows(*arrays, gradient=gradient, divisor=self.divisor)
            rows, slope = found.rows, found.gradient
        if job.reduction != "none":
            self.totals.append(part_of_sum(rows))
        results = {}
        if "output" in job.targets:
            results["output"] = (files.rows_of(box, job.axis), np.asarray(rows))
        if gradient:
            results["grad"] = (box, slope)
        return results

    def _loss_of_products(self, x: Array, targets: Array, options: LossOptions) -> Any:
        """The losses of the rows of a block of features, and their gradient with respect to the features.

        Those with respect to weight and bias are added to the sums over all rows.
        """
        weight, bias = self.job.constants["weight"], self.job.constants.get("bias")
        wrt = self.job.wrt
        arguments = self.job.python_name, x, weight, targets, bias, options, BLOCK_BYTES_OF_LOGITS, wrt
        linear, parts = loss_parts(*arguments, divisor=self.divisor)
        for key, name in SUMS.items():
            if name in wrt:
                part = getattr(parts, name)
                if key not in self.sums:
                    self.sums[key] = np.zeros(part.shape, dtype_of_sums(part.shape, part.dtype))
                self.sums[key] += part
        kind = linear.result_dtype if self.job.reduction == "none" else linear.dtype
        return parts.rows.astype(kind).reshape(x.shape[:-1]), linear.finished(*parts[1:]).features

    def _finished_sums(self) -> dict[str, tuple[Box, Array]]:
        """The gradients that are sums over all rows, as `compute` returns results."""
        results = {}
        for key, total in self.sums.items():
            operand = self.job.constants[SUMS[key]]
            whole = tuple(slice(0, n) for n in operand.shape)
            results[key] = whole, finished(total, operand.shape, returned_dtype(operand))
        return results

    def loss(self) -> float | None:
        """The loss of the whole file, rounded to its dtype; None if there is one for each row."""
        if not self.job.function.is_loss or self.job.reduction == "none":
            return None
        parts = np.array(self.totals, SUM)
        return float(joined_loss(parts, self.divisor, self.job.problem.result_dtype))

    def text(self) -> str | None:
        """The table of numbers that is printed; None for other functions."""
        return None

    def blocks(self) -> Generator[tuple[Box, dict[str, Array]]]:
        """One block after the other, with the operands; the next ones are read meanwhile."""
        job = self.job
        sizes = {"x": math.prod(self.extent) * job.x.dtype.itemsize}
        rows = math.prod(files.rows_of(self.extent, job.axis))
        for name, operand in job.operands.items():
            sizes[name] = (rows if job.per_row(name) else math.prod(self.extent)) * operand.dtype.itemsize
        rooms = Rooms(sizes, self.ahead)
        waiting = iter(self.boxes)
        upcoming: deque[tuple[Box, Future[dict[str, Array]]]] = deque()
        with ThreadPoolExecutor(1) as reader:
            try:
                for box in islice(waiting, self.ahead):
                    upcoming.append((box, reader.submit(_read, job, box, rooms.next())))
                while upcoming:
                    box, block = upcoming.popleft()
                    yield box, block.result()
                    for following in islice(waiting, 1):
                        upcoming.append((following, reader.submit(_read, job, following, rooms.next())))
            except BaseException:
                if isinstance(job.x, Sequential):
                    job.x.stop()
                reader.shutdown(cancel_futures=True)
                raise

    def size_of(self, box: Box) -> int:
        """How many bytes of the input are in a box."""
        return math.prod(files.extent_of(box)) * self.job.x.dtype.itemsize

    def run(self, progress: Progress) -> None:
        written: deque[Future[None]] = deque()
        with closing(self.blocks()) as blocks, ThreadPoolExecutor(1) as writer:
            try:
                for box, block in blocks:
                    results = self.compute(box, block)
                    if len(written) == self.ahead:
                        written.popleft().result()  # frees the memory for the next block that is read
                    written.append(writer.submit(_write, self.job, results))
                    progress.advance(self.size_of(box))
                for future in written:
                    future.result()
                _write(self.job, self._finished_sums())
            except BaseException:
                writer.shutdown(cancel_futures=True)
                raise


def _as_table(*columns: Array, kind: Any) -> Array:
    """One number for each row in each column, as an array with fields."""
    table = np.empty(np.shape(columns[0]), kind)
    for key, values in zip(table.dtype.names or (), columns, strict=True):
        table[key] = values
    return table


def _printed(table: dict[str, Any], as_json: bool) -> str:
    """A table as JSON, in which infinities and NaN are null, or as lines of text."""
    if as_json:
        return json.dumps(_finite(table), indent=2)
    return "\n".join(f"{name:20}{value}" for name, value in table.items())


def _printed_metrics(metrics: RunningMetrics, as_json: bool) -> str:
    """The metrics of all rows as they are printed."""
    found = metrics.result()
    table = found._asdict() | {"bins": {key: value.tolist() for key, value in found.bins._asdict().items()}}
    if not as_json:
        del table["bins"]
        hits = table.pop("top_k_accuracy")
        table |= {f"top_{k}_accuracy": hit for k, hit in hits.items()}
    return _printed(table, as_json)


class Printed(Local):
    """A result that is a table of some numbers."""

    def _divisor(self, targets: Source) -> None:
        """Check the labels."""
        for _ in self.labels(targets):
            pass


class Fitted(Printed):
    """The temperature with the least loss, in several passes over the file."""

    fit: TemperatureFit

    def run(self, progress: Progress) -> None:
        job, classes = self.job, self.job.problem.classes
        shown = labelled_rows(
            job.python_name, np.zeros((0, classes), job.problem.dtype), np.zeros(0, int), -1, None, None
        )
        rows = Rows(job.python_name, partial(self._rows, progress), shown.dtype)
        self.fit = fitted(rows)

    def _rows(self, progress: Progress) -> Iterator[LabelledRows]:
        """The rows of one block after the other."""
        job = self.job
        progress.extend(job.nbytes)
        assert job.axis is not None
        for box, block in self.blocks():
            weights, index = block.get("sample_weight"), job.given["ignore_index"]
            yield labelled_rows(job.python_name, block["x"], block["targets"], job.axis, weights, index)
            progress.advance(self.size_of(box))

    def text(self) -> str:
        return _printed(self.fit._asdict(), self.job.given["json"])


class Metered(Printed):
    """The metrics of the rows, in this process."""

    def __init__(self, job: Job, extent: tuple[int, ...]) -> None:
        super().__init__(job, extent)
        self.metrics = RunningMetrics()

    def compute(self, box: Box, block: dict[str, Array]) -> dict[str, tuple[Box, Array]]:
        """Add a block; there is nothing to write."""
        job = self.job
        weights, index = block.get("sample_weight"), job.given["ignore_index"]
        assert job.axis is not None
        self.metrics.update(block["x"], block["targets"], job.axis, weights, index)
        return {}

    def text(self) -> str:
        return _printed_metrics(self.metrics, self.job.given["json"])


def _finite(value: Any) -> Any:
    """The same table with None instead of infinities and NaN, for which JSON has no numbers."""
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return value if math.isfinite(value) else None


def _write(job: Job, results: dict[str, tuple[Box, Array]]) -> None:
    for name, (box, block) in results.items():
        job.targets[name].write(box, block)


# --- on a Dask cluster --------------------------------------------------------------------------------------


def _store(block: Array, target: Any, block_info: Any = None) -> Array:
    """Write a block to its place in a target. Runs on a worker."""
    box = tuple(slice(start, stop) for start, stop in block_info[0]["array-location"])
    if block.size:
        target[box] = block
    return np.ones((1,) * block.ndim, bool)


class Distributed:
    """The job on the workers of a Dask scheduler, which see the same files."""

    def __init__(self, job: Job, extent: tuple[int, ...], address: str) -> None:
        try:
            import dask.array
            import distributed
        except ModuleNotFoundError:
            raise RunError("--scheduler needs Dask: pip install 'fastsoftmax[dask]'") from None
        self.job, self.extent, self.da, self.distributed = job, extent, dask.array, distributed
        self.value: float | None = None
        self.metrics = RunningMetrics()
        self.results: Sequence[Any] = ()
        try:
            self.client = distributed.Client(address, timeout=10)
        except (OSError, ValueError) as error:
            raise RunError(f"no Dask scheduler answers at {address}: {error}") from None
        if not self.client.scheduler_info()["workers"]:
            self.client.close()
            raise RunError(f"the Dask scheduler at {address} has no workers: dask worker {address}")

    def _lazy(self, array: Source, extent: tuple[int, ...]) -> Any:
        chunks = tuple(min(n, max(1, size)) or 1 for n, size in zip(extent, array.shape, strict=True))
        meta = np.empty((0,) * array.ndim, array.dtype)
        name = f"fastsoftmax-{array.path.name}-{os.getpid()}-{time.time_ns()}"
        return self.da.from_array(array, chunks=chunks, name=name, meta=meta, inline_array=True)

    def run(self, progress: Progress) -> None:
        job, extent = self.job, self.extent
        rows = files.rows_of(extent, job.axis)
        x = self._lazy(job.x, extent)
        operands = {
            name: self._lazy(operand, rows if job.per_row(name) else extent)
            for name, operand in job.operands.items()
        }
        if job.function is METRICS:
            weights, index = operands.get("sample_weight"), job.given["ignore_index"]
            assert job.axis is not None
            self.metrics.update(x, operands["targets"], job.axis, weights, index)
            progress.advance(job.nbytes)
            return
        skipped = {"grad", *SUMS, *FILES}
        options = {key: job.given[key] for key in job.function.options if key not in skipped}
        if job.class_weight is not None:
            options["class_weight"] = job.class_weight
        if job.axis is not None and not job.constants:
            options["axis"] = job.axis
        name = job.python_name
        if "grad" in job.targets:
            name += "_with_grad"
        arguments = job.arguments(operands | job.constants | job.factors)
        if job.constants and job.function.is_loss:
            loss, gradients = fastsoftmax.linear_cross_entropy_with_grad(x, **arguments, **options, wrt=job.wrt)
            lazy = {"loss": loss, "grad": gradients.features}
            lazy |= {key: getattr(gradients, name) for key, name in SUMS.items()}
        else:
            result = getattr(fastsoftmax, name)(x, **arguments, **options)
            lazy = dict(zip(("loss", "grad"), result, strict=True)) if "grad" in job.targets else {"loss": result}
        if job.function.is_table:
            lazy["loss"] = self._table(lazy["loss"])
        if not job.function.is_loss or job.reduction == "none":
            lazy["output"] = lazy.pop("loss")
        parts = []
        for key, array in lazy.items():
            if key == "loss":
                parts.append(array)
            elif key in job.targets:
                parts.extend(self._stored(array, job.targets[key]).to_delayed().ravel())
        self._wait(parts, progress)
        if "loss" in lazy:
            self.value = float(self.results[0])

    def _table(self, columns: Any) -> Any:
        """The statistics of the rows as an array with fields."""
        kind = self.job.targets["output"].dtype
        meta = np.empty((0,) * columns[0].ndim, kind)
        return self.da.map_blocks(_as_table, *columns, kind=kind, dtype=kind, meta=meta)

    def text(self) -> str | None:
        """The metrics as they are printed; None for other functions."""
        return _printed_metrics(self.metrics, self.job.given["json"]) if self.job.function is METRICS else None

    def _stored(self, array: Any, target: Target) -> Any:
        return array.map_blocks(
            partial(_store, target=target),
            chunks=tuple((1,) * n for n in array.numblocks),
            dtype=bool,
            meta=np.empty((0,) * array.ndim, bool),
        )

    def _wait(self, parts: Sequence[Any], progress: Progress) -> None:
        futures = self.client.compute(list(parts))
        try:
            share = self.job.nbytes // max(len(futures), 1)
            for _ in self.distributed.as_completed(futures):
                progress.advance(share)
            self.results = self.client.gather(futures)
        except BaseException as error:
            self.client.cancel(futures, force=True)
            if isinstance(error, RunError):  # a worker sets the status of a run that did not begin
                raise RunError(str(error), BROKEN) from None
            raise

    def loss(self) -> float | None:
        return self.value


# --- the command --------------------------------------------------------------------------------------------


class Ending:
    """SIGINT, SIGTERM and SIGHUP as exceptions, so that unfinished files are removed.

    A signal that is ignored, as under ``nohup``, stays ignored. While the results are renamed, `held` is set and
    signals are ignored: the run is over a moment later. `done` is set when all results have their names; after
    that, no signal changes the exit status.
    """

    def __init__(self) -> None:
        self.held = self.done = False
        self.before: dict[int, Any] = {}

    def _end(self, number: int, frame: Any) -> None:
        if self.held:
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(number)

    def __enter__(self) -> "Ending":
        if threading.current_thread() is threading.main_thread():  # where Python allows handlers
            numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
            for number in numbers:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.before[number] = signal.signal(number, self._end)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _commit(targets: Sequence[Target], force: bool, ending: Ending) -> None:
    """Give all results their names, or none of them."""
    ending.held = True
    try:
        for target in targets:
            _check_new(target, force)
            target.commit()
        ending.done = True
        for target in targets:
            target.settle()
    except BaseException:
        if not ending.done:
            for target in reversed(targets):
                with suppress(OSError):
                    target.revert()
        raise
    finally:
        ending.held = False


def _check_new(target: Target, force: bool) -> None:
    if isinstance(target, StandardOutput):
        return
    if files.kind(target.path) is not None and not force:
        raise RunError(f"{target.path} came into being meanwhile; --force overwrites it", BROKEN)


def _run(
    arguments: Any, results: dict[str, Path], function: Command, given: dict[str, Any], ending: Ending
) -> None:
    job = _job(arguments, function, given)
    limit = BLOCK_BYTES if arguments.scheduler is None else TASK_BYTES
    if function.result == _spec.SQUARE:
        limit //= max(job.problem.classes, 1)
    if job.x.shape and job.axis == (len(job.x.shape) - 1 if job.x.fortran else 0):
        limit *= SCATTERED
    itemsize = max(job.x.dtype.itemsize, job.problem.dtype.itemsize)
    if job.constants:
        limit = max(limit, ROWS * job.x.shape[-1] * itemsize)
    extent = boxes(job.x.shape, itemsize, job.axis, limit, job.x.fortran, job.x.chunks)
    with ExitStack() as stack:
        _check_order(job, extent, arguments.scheduler is not None)
        stack.callback(job.x.close)
        for operand in job.operands.values():
            stack.callback(operand.close)
        worker: Local | Distributed
        if arguments.scheduler is not None:
            worker = Distributed(job, extent, arguments.scheduler)
            stack.callback(worker.client.close)
        elif function.is_printed:
            worker = Metered(job, extent) if function is METRICS else Fitted(job, extent)
        else:
            worker = Local(job, extent)
        _open_targets(job, results, extent, stack)
        progress = Progress(job.name, job.nbytes, arguments.begin)
        try:
            with threads(arguments.threads or os.cpu_count() or 1):
                worker.run(progress)
        finally:
            progress.stop()
        for target in job.targets.values():
            target.sync()
            _check_new(target, arguments.force)
        loss = worker.loss()
        if loss is not None:
            _print("loss", job.problem.result_dtype.type(loss))
        text = worker.text()
        if text is not None:
            _print("result", text)
        _commit(list(job.targets.values()), arguments.force, ending)
        names = ", ".join("standard output" if path == STANDARD else str(path) for path in results.values())
        _say(f"{job.name}: {progress.summary()}{' -> ' * bool(names)}{names}")


def _print(name: str, value: Any) -> None:
    try:
        print(value, flush=True)
    except (OSError, ValueError) as error:  # OSError: full, or without a reader; ValueError: closed
        raise RunError(f"the {name} cannot be printed: {files.reason(error)}", BROKEN) from None


def _words(error: BaseException) -> tuple[str, int]:
    """The message about an exception that ended the run, and the exit status."""
    if isinstance(error, RunError):
        return str(error), error.status
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, Terminated):
        return "terminated", 128 + int(error.args[0])
    if isinstance(error, OSError):
        return files.reason(error), BROKEN
    if isinstance(error, MemoryError):
        return f"not enough memory{': ' * bool(str(error))}{error}", BROKEN
    if isinstance(error, (ValueError, TypeError, IndexError)):
        return str(error), BROKEN
    return f"{type(error).__name__}: {error}", BROKEN


def run(arguments: Any) -> int:
    """The command with these parsed arguments; its exit status, as `fastsoftmax.tools.cli` explains it."""
    results: dict[str, Path] = {}
    ending = Ending()
    try:
        with ending, np.errstate(all="ignore"):  # inf and nan are results, as in memory
            if arguments.threads is not None and arguments.threads < 1:
                raise RunError(f"--threads must be at least 1, got {arguments.threads}")
            function, given = _choose(arguments)
            try:
                results = _check_names(arguments, function, given)
            except (OSError, ValueError) as error:  # a removed working directory; a null byte in a path
                raise RunError(files.reason(error)) from None
            _run(arguments, results, function, given, ending)
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if not ending.done:
            reason, status = _words(error)
            named = ", ".join(str(path) for path in results.values() if path != STANDARD)
            if isinstance(error, BrokenPipeError) and STANDARD in results.values() and not named:
                return BROKEN  # whoever read the result has seen enough
            if status != REFUSED and named:
                reason += f"; {named} not written"
            if status != REFUSED and STANDARD in results.values():
                reason += "; standard output is incomplete"
            _say(f"fastsoftmax run: {reason}")
            return status
    return 0
