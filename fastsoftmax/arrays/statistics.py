"""The driver of `label_statistics`: what is asked of rows of logits whose labels are known."""

from typing import Any, NamedTuple

import numpy as np

from fastsoftmax.arrays import halves
from fastsoftmax.arrays.blocks import (
    LAST,
    NO_ROOM,
    UNTEMPERED,
    Array,
    Problem,
    inverse_temperature,
    is_plain,
    real_array,
)
from fastsoftmax.arrays.options import LossOptions, check_kind, check_labels
from fastsoftmax.arrays.parts import run
from fastsoftmax.arrays.plain import has_rows, run_plain
from fastsoftmax.machine.entry import entry, remember

EXACT = 1 << 24
"""float32 holds all whole numbers up to this. The places of more classes are computed in float64."""


_PLAIN: dict[np.dtype[Any], Any] = {}
"""The machine code for plain arrays that has been used; for small ones, checks cost more than the computation."""
_INDEX: np.dtype[Any] = np.dtype(np.int64)


class LabelStatistics(NamedTuple):
    """The numbers of each row, see `label_statistics`."""

    log_prob: Any
    rank: Any
    argmax: Any
    entropy: Any
    logsumexp: Any


def kinds(dtype: np.dtype[Any]) -> LabelStatistics:
    """The dtype of each number: that of the results, or of an index."""
    return LabelStatistics(dtype, _INDEX, _INDEX, dtype, dtype)


def computed(problem: Problem, source: Array, labels: Array, beta: Any) -> LabelStatistics:
    """The statistics of a block, in the order of its rows, in the dtype of the computation."""
    found = LabelStatistics(*[np.empty(problem.rows, kind) for kind in kinds(problem.dtype)])
    kernel, arguments = entry("statistics.label_statistics"), (source, labels, *found, beta)
    run(kernel, problem.rows, 2 * source.size, problem.room(1), *arguments)
    if beta is None and isinstance(source, np.ndarray):
        remember(_PLAIN, problem.dtype, kernel, 0, 0, NO_ROOM[problem.dtype], *arguments)
    return found


def are_plain(logits: Any, labels: Any) -> bool:
    """Whether they are a matrix that `run_plain` takes, and an int64 within its classes for each row."""
    return (
        type(logits) is np.ndarray
        and logits.dtype in NO_ROOM
        and logits.size > 0
        and logits.ndim == 2
        and logits.shape[1] <= EXACT
        and has_rows(logits)
        and is_plain(labels, logits.shape[:1], _INDEX)
        and entry("losses.first_outside")(labels, logits.shape[1]) < 0
    )


def _plain(logits: Any, labels: Any) -> LabelStatistics | None:
    """The statistics of contiguous rows of a native dtype; None for arrays to convert or refuse."""
    kernel = _PLAIN.get(logits.dtype) if are_plain(logits, labels) else None
    if kernel is None:
        return None
    rows, dtype = len(logits), logits.dtype
    found = LabelStatistics(*[np.empty(rows, kind) for kind in kinds(dtype)])
    run_plain(kernel, rows, dtype, 2, (logits, labels, *found, None))
    return found


def label_statistics(
    function: str, logits: Any, labels: Any, axis: Any, temperature: float, ignore_index: Any
) -> LabelStatistics:
    """The result of the public function."""
    if axis is LAST and temperature is UNTEMPERED and ignore_index is None:
        found = _plain(logits, labels)
        if found is not None:
            return found
    problem = Problem(function, logits, axis, name="logits")
    if problem.classes > EXACT:
        problem.dtype = np.dtype(np.float64)
    beta = inverse_temperature(function, temperature, problem.dtype)
    given = real_array(function, "labels", labels)
    check_kind(problem, given, LossOptions(ignore_index=ignore_index))
    ignored = check_labels(function, given, problem.classes, ignore_index, name="labels")
    source = problem.block()
    found = computed(problem, source, problem.per_row(given, np.int64), beta)
    results = []
    for values in found:
        output = _in_order(problem, values)
        if values.dtype == problem.dtype and values.dtype.kind == "f":
            output = halves.converted(output, problem.result_dtype)
        results.append(output)
    if ignored is not None and ignored.any():
        results[0][ignored], results[1][ignored] = 0, -1
    return LabelStatistics(*[array[()] if array.ndim == 0 else array for array in results])


def _in_order(problem: Problem, values: Array) -> Array:
    """One number for each row, from the order of the block to that of the logits."""
    order = problem.row_order()
    moved = values.reshape([problem.row_shape[a] for a in order])
    return np.ascontiguousarray(moved.transpose(np.argsort(order))).reshape(problem.row_shape)
