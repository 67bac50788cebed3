"""The arguments of random draws: uniform numbers, filters and sizes; what kernels take; the errors of rows."""

import math
import operator
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax._vectors import LINE, LISTED, PARTS, STRETCH, STRETCH_TABLE
from fastsoftmax.arrays.blocks import (
    NO_ROOM,
    Array,
    Problem,
    inverse_temperature,
    named,
    number,
    real_array,
)
from fastsoftmax.arrays.threads import max_threads, run
from fastsoftmax.machine.entry import entry

MANY = 16
"""From so many draws from a row on, its terms are kept, with a table of their sums."""
LONGEST_TABLE = 1 << 18
LEAST_PIECE = 1 << 12
SHARED_ROW = 1 << 18
"""Threads share a row of so many classes if there are fewer rows than threads."""
NO_SEGMENTS = np.empty(0, np.int64)

_generators: list[Any] = []  # `numpy.random` is imported when it is first used


def fresh_generator() -> Any:
    """A generator with a seed of the operating system. A process has one, because a seed costs 15 us."""
    if not _generators:
        _generators.append(np.random.default_rng())
    return _generators[0]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_generators.clear)  # else parent and child would draw the same numbers


def generator(function: str, rng: Any) -> Any:
    """`rng` as a generator: itself, or one with this seed, or for None one with a seed of its own."""
    if rng is None:
        return fresh_generator()
    if isinstance(rng, np.random.Generator):
        return rng
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{named(function, 'rng')} must be a numpy.random.Generator, a seed or None, got {rng!r}"
        ) from None


def sizes(function: str, size: Any) -> tuple[int, ...]:
    """`size` as the shape of the draws from one row; None is one draw without an axis."""
    if size is None:
        return ()
    try:
        if isinstance(size, (bool, np.bool_)):
            raise TypeError
        shape = tuple(map(operator.index, size)) if isinstance(size, (tuple, list)) else (operator.index(size),)
    except TypeError:
        raise TypeError(f"{named(function, 'size')} must be an integer or a tuple of them, got {size!r}") from None
    if any(n < 0 for n in shape):
        raise ValueError(f"{named(function, 'size')} must not be negative, got {size!r}")
    return shape


def uniform_numbers(function: str, rng: Any, uniforms: Any, shape: tuple[int, ...]) -> Array:
    """One number in [0, 1) for each draw, of this shape."""
    if uniforms is None:
        drawn: Array = generator(function, rng).random(shape)
        return drawn
    if rng is not None:
        raise ValueError(f"{function}: rng and uniforms exclude each other, got both")
    array = real_array(function, "uniforms", uniforms)
    if array.shape != shape:
        raise ValueError(f"{named(function, 'uniforms')} has shape {array.shape}, expected {shape}")
    numbers = array.astype(np.float64)
    wrong = ~((numbers >= 0) & (numbers < 1))
    if wrong.any():
        at = tuple(map(int, np.argwhere(wrong)[0]))
        raise ValueError(f"{named(function, 'uniforms')}[{_place(at)}] is {numbers[at]}, expected 0 <= u < 1")
    return numbers


def _place(index: tuple[int, ...]) -> str:
    return ", ".join(map(str, index))


def _share(function: str, name: str, value: Any) -> float:
    """A number in (0, 1]; 1 for None."""
    if value is None:
        return 1.0
    share = number(function, name, value, 0.0, inclusive=False)
    if share > 1:
        raise ValueError(f"{named(function, name)} must be at most 1, got {value!r}")
    return share


class Filters(NamedTuple):
    """What `kernels.sampling.sieve` keeps."""

    top_k: int
    """0 for None."""
    levels: Array
    """top_p and T log(min_p): 1 and -inf for None."""

    @property
    def any(self) -> bool:
        """Whether something may be left out."""
        return self.top_k > 0 or self.levels[0] < 1 or self.levels[1] > -math.inf


def filters_of(function: str, top_k: Any, top_p: Any, min_p: Any, temperature: Any) -> Filters:
    """The filters after all checks; `temperature` was checked."""
    count = 0
    if top_k is not None:
        try:
            if isinstance(top_k, (bool, np.bool_)):
                raise TypeError
            count = operator.index(top_k)
        except TypeError:
            raise TypeError(f"{named(function, 'top_k')} must be an integer or None, got {top_k!r}") from None
        if count < 1:
            raise ValueError(f"{named(function, 'top_k')} must be at least 1, got {top_k!r}")
    least = -math.inf if min_p is None else 0.0
    share = _share(function, "min_p", min_p)
    if share < 1:
        least = float(temperature) * math.log(share)
    return Filters(min(count, 1 << 62), np.array([_share(function, "top_p", top_p), least]))


def room_for(
    dtype: np.dtype[Any], classes: int, filtered: bool, replace: bool = True, tabled: bool = False
) -> Callable[[], Any]:
    """A function that allocates the working memory of one thread: that of `kernels.sampling.draws`.

    It is within 4 MB, except for draws without replacement, which change a copy of the row: it adds what a row has
    over `LISTED` classes if there are filters.
    """
    whole, listed = (-(-count // LINE) * LINE for count in (classes, min(classes, LISTED)))
    table = STRETCH_TABLE * -(-(min(classes, LISTED) if filtered else classes) // STRETCH) if tabled else 0
    size = table if replace else whole
    if filtered:
        rest = max(table, listed + min(-(-classes // STRETCH), PARTS))
        size = (listed if replace else whole) + listed * (8 // dtype.itemsize) + rest
    return partial(np.empty, size, dtype) if size else partial(NO_ROOM.get, dtype)


def draw_arguments(
    classes: int,
    rows: int,
    numbers: Array,
    chosen: Array,
    filters: Filters,
    beta: Any,
    count: int = 1,
    pieces: int = 1,
    replace: bool = True,
    tabled: bool = False,
) -> tuple[Any, ...]:
    """The arguments of `kernels.sampling.draws` behind x; by default one draw from each row."""
    return (classes, rows, numbers, chosen, count, pieces, replace, tabled, filters.top_k, filters.levels, beta)


def draws_work(elements: int, count: int, filters: Filters) -> int:
    """How much work so many draws from rows with so many elements are."""
    return (10 if filters.any else 2) * elements + 50 * count


def draw_from_long_row(row: Array, numbers: Array, chosen: Array, beta: Any) -> None:
    """Classes of a contiguous row of more than `SHARED_ROW` classes, one for each number, on all threads.

    They are those of `kernels.sampling.categorical`, and negative for a row without a class to draw.
    """
    room = partial(NO_ROOM.get, row.dtype)
    greatest, weights = np.empty(PARTS, row.dtype), np.empty(PARTS)
    run(entry("sampling.heights"), PARTS, row.size // 4, room, row, greatest)
    run(entry("sampling.sums"), PARTS, row.size, room, row, greatest, weights, beta)
    work = numbers.size * (50 + row.size // PARTS)
    run(entry("sampling.picks"), numbers.size, work, room, row, greatest, weights, numbers, chosen, beta)


class Draws:
    """The arguments of a function that draws classes, after all checks.

    `plain` says that one class is drawn from each row, without a filter.

    Parameters
    ----------
    function
        The public function, for error messages.
    row_shape
        The shape of the rows.
    dtype
        The dtype of the computation.
    """

    __slots__ = ("_given", "beta", "count", "filters", "function", "plain", "replace", "row_shape", "shape")

    def __init__(
        self,
        function: str,
        row_shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        rng: Any,
        uniforms: Any,
        size: Any,
        replace: Any,
        temperature: Any,
        top_k: Any,
        top_p: Any,
        min_p: Any,
    ) -> None:
        self.function = function
        self.row_shape = row_shape
        self.beta = inverse_temperature(function, temperature, dtype)
        self.filters = filters_of(function, top_k, top_p, min_p, temperature)
        shape = sizes(function, size)
        self.count: int = math.prod(shape)
        self.shape = (*shape, *row_shape)
        self.plain = size is None and top_k is None and top_p is None and min_p is None
        if not isinstance(replace, (bool, np.bool_)):
            raise TypeError(f"{named(function, 'replace')} must be a bool, got {replace!r}")
        self.replace = bool(replace) or self.count == 1
        self._given = rng, uniforms

    def uniforms(self) -> Array:
        """The uniform numbers. They are drawn here, when nothing but the logits can be wrong any more."""
        return uniform_numbers(self.function, *self._given, self.shape)

    def check_count(self, classes: int) -> None:
        """ValueError if more different classes are wanted than there are."""
        if not self.replace and self.count > classes and 0 not in self.row_shape:
            raise ValueError(
                f"{named(self.function, 'size')} is {self.count} with replace=False, "
                f"but there are {classes} classes"
            )

    def in_order(self, order: tuple[int, ...]) -> tuple[Array, Array, Array]:
        """Uniform numbers and memory for the classes, both flat, with rows in this order; and the result."""
        axes = (0, *[1 + a for a in order])
        shape = (self.count, *self.row_shape)
        numbers = np.ascontiguousarray(self.uniforms().reshape(shape).transpose(axes))
        chosen = np.empty(numbers.shape, np.int64)
        return numbers.reshape(-1), chosen.reshape(-1), chosen.transpose(np.argsort(axes)).reshape(self.shape)

    def pieces(self, classes: int) -> int:
        """In how many pieces the draws from a row are done; each computes the sums of the row for itself."""
        return max(1, self.count // max(LEAST_PIECE, classes // 4)) if self.replace else 1

    def tabled(self, classes: int) -> bool:
        """Whether there is a table of the sums of a row."""
        return self.replace and self.count >= MANY and classes <= LONGEST_TABLE

    def shares_rows(self, problem: Problem) -> bool:
        """Whether threads share each row of a block, by `draw_from_long_row`."""
        classes = problem.classes
        if classes < SHARED_ROW or problem.inner != 1 or not self.replace or self.filters.any:
            return False
        return not self.tabled(classes) and 0 < problem.rows < max_threads()

    def room(self, dtype: np.dtype[Any], classes: int) -> Callable[[], Any]:
        """`room_for` these draws."""
        return room_for(dtype, classes, self.filters.any, self.replace, self.tabled(classes))

    def arguments(self, classes: int, rows: int, pieces: int, numbers: Array, chosen: Array) -> tuple[Any, ...]:
        """`draw_arguments` for these draws."""
        how = self.count, pieces, self.replace, self.tabled(classes)
        return draw_arguments(classes, rows, numbers, chosen, self.filters, self.beta, *how)

    def work(self, elements: int) -> int:
        """How much work it is, for `arrays.threads.run`."""
        return draws_work(elements, math.prod(self.shape), self.filters)

    def finish(self, result: Array, row_of: Callable[[tuple[int, ...]], Array]) -> Any:
        """The result, a scalar if it is 0-d; ValueError for the first row without enough classes.

        ``row_of(index)`` is the row with this index.
        """
        if result.size and result.min() < 0:
            rows = result.reshape(self.count, -1).min(axis=0).reshape(self.row_shape)
            at = tuple(map(int, np.argwhere(rows < 0)[0]))
            raise ValueError(f"{self.function}: {self._reason(row_of(at), at)}")
        return result[()] if result.ndim == 0 else result

    def _reason(self, row: Array, at: tuple[int, ...]) -> str:
        """What is wrong with a row."""
        place = f"the row of logits at [{_place(at)}]" if at else "the row of logits"
        if np.isnan(row).any():
            return f"{place} holds NaN"
        if np.isposinf(row).any():
            return f"{place} holds +inf"
        if not np.isfinite(row).any():
            return f"{place} has no class to draw: {'all are -inf' if row.size else 'it is empty'}"
        left = f"size is {self.count} with replace=False"
        kept = " after the filters" if self.filters.any else ""
        return f"{left}, but {place} has fewer classes with a probability above 0{kept}"


def row_at(problem: Problem, index: tuple[int, ...]) -> Array:
    """The row of a problem with this index."""
    row: Array = np.moveaxis(problem.x, problem.axes[0], -1)[index].astype(np.float64)
    if problem.kept is not None:
        row[~np.moveaxis(problem.kept, problem.axes[0], -1)[index]] = -np.inf
    return row
