"""Exact sums over rows with labels: the driver of metrics, and of derivatives with respect to the temperature."""

import math
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax._vectors import (
    CHUNKS,
    COLUMN_LIMIT,
    INFINITE,
    NANS,
    ONES,
    SLAB,
    WEIGHT,
)
from fastsoftmax.arrays.blocks import Array, Problem, named, on_lines, read_only, real_array
from fastsoftmax.arrays.lazy import check_in_memory
from fastsoftmax.arrays.options import LossOptions, check_indices, check_labels, weight_array
from fastsoftmax.arrays.parts import run
from fastsoftmax.arrays.statistics import EXACT
from fastsoftmax.machine.entry import entry

LOWEST_BIT = 1075
"""The unit of exact sums is 2**-LOWEST_BIT."""
WORD_BYTES = 8
NO_WEIGHTS = read_only(np.empty(0))


class LabelledRows(NamedTuple):
    """Logits as a block, and the labels and weights of its rows, as kernels take them."""

    problem: Problem
    block: Any
    labels: Array
    """-1 for rows that do not count: they are ignored, or have weight 0."""
    weights: Array


def labelled_rows(
    function: str, logits: Any, labels: Any, axis: int, sample_weight: Any, ignore_index: Any
) -> LabelledRows:
    """The arguments of a call after all checks."""
    check_in_memory(function, logits, labels, sample_weight)
    problem = Problem(function, logits, axis, name="logits")
    if problem.inner != 1 and problem.classes > COLUMN_LIMIT:
        # The walk in columns adds so many classes in another order than the walk along the row. Rows must have the
        # same bits however they are cut, so all go along the row.
        problem = Problem(function, logits, axis, name="logits", last=True)
    if problem.classes > EXACT:
        problem.dtype = np.dtype(np.float64)
    given = real_array(function, "labels", labels)
    check_indices(problem, given, "labels")
    index = LossOptions(ignore_index=ignore_index).ignored_index(function)
    skipped = check_labels(function, given, problem.classes, index, name="labels")
    weights = weight_array(problem, "sample_weight", sample_weight, problem.row_shape, np.dtype(np.float64))
    if weights is not None:
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(f"{named(function, 'sample_weight')} must be finite and >= 0")
        nothing = weights == 0
        skipped = nothing if skipped is None else skipped | nothing
    marks = given.astype(np.int64)
    if skipped is not None:
        marks[skipped] = -1
    ordered = NO_WEIGHTS if weights is None else problem.per_row(weights, np.float64)
    return LabelledRows(problem, problem.block(), problem.per_row(marks, np.int64), ordered)


def exact_sums(
    kernel: str, rows: LabelledRows, sums: Array, spare: int, fields: int, before: tuple[Any, ...], *options: Any
) -> Array:
    """A table of exact sums, one in each row, with the values of rows added by a kernel of `kernels.metrics`.

    The kernel is called with `before`, the number of words before its slab, and `options`. It needs `spare` words
    behind the sums, and memory for `fields` of a slab.
    """
    problem = rows.problem
    items = WORD_BYTES // problem.dtype.itemsize
    words = -(-(sums.size + spare) // WORD_BYTES) * WORD_BYTES
    length = words * items + fields * SLAB + problem.room(1)().size
    tables: list[Array] = []

    def room() -> Array:
        """Working memory: the first begins with the sums so far, the others with 0."""
        memory = on_lines(length, problem.dtype)
        table = memory[: sums.size * items].view(np.int64)
        table[:] = 0 if tables else sums.reshape(-1)
        tables.append(table)
        return memory

    arguments = rows.block, rows.labels, rows.weights, *before, words, *options
    run(entry(kernel), problem.rows, 2 * rows.block.size, room, *arguments, whole=before[:1])
    whole: Array = np.add.reduce(tables).reshape(sums.shape)
    return whole


def joined(a: Array, b: Array) -> Array:
    """The sums of both tables; the carries are moved up, as by `kernels.metrics.settle`."""
    table = a + b
    chunks = table[:, :CHUNKS]
    carries = chunks[:, :-1] >> 32
    chunks[:, :-1] &= 2**32 - 1
    chunks[:, 1:] += carries
    return table


class Total(NamedTuple):
    """An exact sum: a whole number of 2**-`LOWEST_BIT`, unless infinities or NaN were added."""

    number: int
    special: float
    """inf or nan if one was added, else 0."""


def total(words: Array) -> Total:
    """The value of an exact sum."""
    number = int(words[ONES]) << LOWEST_BIT
    for k in range(CHUNKS):
        number += int(words[k]) << (32 * k)
    return Total(number, math.nan if words[NANS] else math.inf if words[INFINITE] else 0.0)


def ratio(whole: Total, divisor: Total) -> float:
    """The quotient of two sums, rounded once; nan if the divisor is 0."""
    if whole.special or not divisor.number:
        return whole.special if whole.special else math.nan
    return whole.number / divisor.number


def mean(table: Array, slot: int) -> float:
    """A sum, divided by the sum of the weights of all rows."""
    return ratio(total(table[slot]), total(table[WEIGHT]))
