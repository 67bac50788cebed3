"""Exact sums over rows with labels: the driver of metrics, and of derivatives with respect to the temperature."""

import math
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType
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
from fastsoftmax.arrays.blocks import (
    LAST,
    NO_ROOM,
    SHORT_WAY,
    Array,
    Problem,
    named,
    on_lines,
    read_only,
    real_array,
)
from fastsoftmax.arrays.lazy import check_in_memory
from fastsoftmax.arrays.options import LossOptions, check_indices, check_labels, weight_array
from fastsoftmax.arrays.parts import run
from fastsoftmax.arrays.statistics import EXACT, are_plain
from fastsoftmax.arrays.threads import is_undivided
from fastsoftmax.machine.entry import entry

LOWEST_BIT = 1075
"""The unit of exact sums is 2**-LOWEST_BIT."""
WORD_BYTES = 8
NO_WEIGHTS = read_only(np.empty(0))


class LabelledRows(NamedTuple):
    """Logits as a block, and the labels and weights of its rows, as kernels take them."""

    dtype: np.dtype[Any]
    """That of the computation."""
    size: int
    """How many rows there are."""
    room: Callable[[], Any]
    """It allocates the working memory of a kernel for tiles."""
    block: Any
    labels: Array
    """-1 for rows that do not count: they are ignored, or have weight 0."""
    weights: Array


def _plain(logits: Any, labels: Any) -> LabelledRows | None:
    """Contiguous rows of a native dtype, which all count; None for arrays to convert or refuse."""
    if not are_plain(logits, labels) or not logits.flags.c_contiguous:
        return None
    rows, dtype = len(logits), logits.dtype
    return LabelledRows(dtype, rows, partial(NO_ROOM.get, dtype), logits[:, :, None], labels, NO_WEIGHTS)


def labelled_rows(
    function: str, logits: Any, labels: Any, axis: int, sample_weight: Any, ignore_index: Any
) -> LabelledRows:
    """The arguments of a call after all checks."""
    if axis is LAST and sample_weight is None and ignore_index is None:
        found = _plain(logits, labels)
        if found is not None:
            return found
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
    block, labels_of_rows = problem.block(), problem.per_row(marks, np.int64)
    return LabelledRows(problem.dtype, problem.rows, problem.room(1), block, labels_of_rows, ordered)


def words_before(size: int, spare: int) -> int:
    """How many words of the working memory of a kernel come before its slab, which begins on a cache line.

    They are sums of `size` words, `spare` words behind them, and two float64 for each row of a slab.
    """
    return -(-(size + spare + 2 * SLAB) // WORD_BYTES) * WORD_BYTES


class Rooms:
    """A table of exact sums at the beginning of the working memory of the kernel that adds to them."""

    def __init__(self, sums: Array, spare: int, fields: int) -> None:
        self.words = words_before(sums.size, spare)
        memory = on_lines(self.words + fields * SLAB, np.dtype(np.float64))
        self.table: Array = memory[: sums.size].view(np.int64).reshape(sums.shape)
        self.table[:] = sums
        self._of = {
            dtype: memory.view(dtype)[: self.words * (WORD_BYTES // dtype.itemsize) + fields * SLAB]
            for dtype in NO_ROOM
        }

    def add(self, kernel: str, rows: LabelledRows, before: tuple[Any, ...]) -> bool:
        """Add rows as `exact_sums` does, if they are so few that the calling thread computes them at once.

        Nothing can interrupt it then. Else False is returned.
        """
        block = rows.block
        if not isinstance(block, np.ndarray):
            return False
        few = block.size <= SHORT_WAY or is_undivided(2 * block.nbytes // 4)
        if not few or rows.room().size:
            return False
        arguments = 0, rows.size, self._of[rows.dtype], block, rows.labels, rows.weights, *before, self.words
        code = entry(kernel).code(arguments)
        if not isinstance(code, BuiltinFunctionType):  # a function of Python, under NUMBA_DISABLE_JIT
            return False
        code(*arguments)
        return True


def exact_sums(
    kernel: str, rows: LabelledRows, sums: Array, spare: int, fields: int, before: tuple[Any, ...], *options: Any
) -> Array:
    """A table of exact sums, one in each row, with the values of rows added by a kernel of `kernels.metrics`.

    The kernel is called with `before`, the number of words before its slab, and `options`. It needs `spare` words
    behind the sums, and memory for `fields` of a slab.
    """
    items = WORD_BYTES // rows.dtype.itemsize
    words = words_before(sums.size, spare)
    length = words * items + fields * SLAB + rows.room().size
    tables: list[Array] = []

    def room() -> Array:
        """Working memory: the first begins with the sums so far, the others with 0."""
        memory = on_lines(length, rows.dtype)
        table = memory[: sums.size * items].view(np.int64)
        table[:] = 0 if tables else sums.reshape(-1)
        tables.append(table)
        return memory

    arguments = rows.block, rows.labels, rows.weights, *before, words, *options
    run(entry(kernel), rows.size, 2 * rows.block.size, room, *arguments, whole=before[:1])
    whole: Array = tables[0] if len(tables) == 1 else np.add.reduce(tables)
    return whole.reshape(sums.shape)


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
