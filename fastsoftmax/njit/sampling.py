"""Random draws inside a user's ``@njit`` code; `rows` explains builders.

`rng` is a Generator. Without it the numbers come from Numba's own generator, ``numpy.random.random`` of compiled
code, which the operating system seeds.
"""

import math
from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError

from fastsoftmax.arrays.sampling import LONGEST_TABLE, MANY
from fastsoftmax.machine.external import external
from fastsoftmax.njit.arguments import (
    KINDS,
    Call,
    Run,
    absent,
    check_number,
    classes_last,
    compiled,
    constant,
    convert,
    converter,
    deliver,
    empty,
    exits,
    extent,
    hide,
    layout,
    merged,
    product_of,
    readable,
    real_array,
    room_for,
    row_layout,
    same_shape,
    stack,
    target,
    writable,
)
from fastsoftmax.njit.complaints import NotedValueError, complain, refuse
from fastsoftmax.njit.generated import argument, longest_step, quotient_or_zero, stored, whole_number
from fastsoftmax.njit.rows import Built, inverse_temperature_of, is_one, like, masked_for, one_axis
from fastsoftmax.njit.segments import pointers, vector, whole
from fastsoftmax.njit.written import either

_categorical = external("sampling.categorical", result=True)
_draws = external("sampling.draws", result=True)
_room_size = external("sampling.room_size", result=True)
_filter_logits = external("sampling.filter_logits")
FILTERS = ("top_k", "top_p", "min_p")


def _integer(argument: Any) -> bool:
    return isinstance(argument, types.Integer) or (isinstance(argument, int) and not isinstance(argument, bool))


def _filters(call: Call) -> Run:
    """The compiled ``levels, top_k, top_p, min_p, temperature -> top_k`` of `arrays.sampling.filters_of`.

    It writes top_p and T log(min_p) to `levels`.
    """
    name = call.name
    count_given, shares_given = not absent(call["top_k"]), tuple(not absent(call[one]) for one in FILTERS[1:])
    if count_given and not _integer(call["top_k"]):
        raise TypingError(f"{name}: top_k must be an integer, got {call['top_k']}")
    for one, given in zip(FILTERS[1:], shares_given, strict=True):
        if given:
            check_number(name, one, call[one])
    mass_given, least_given = shares_given
    if not (count_given or mass_given or least_given):

        @merged
        def unfiltered(levels: Any, top_k: Any, top_p: Any, min_p: Any, temperature: float) -> int:
            stored(levels, (1.0, -math.inf))
            return 0

        return unfiltered
    few = f"{name}: top_k must be at least 1, got {{}}"
    outside_top_p = f"{name}: top_p must be above 0 and at most 1, got {{}}"
    outside_min_p = outside_top_p.replace("top_p", "min_p")

    @compiled
    def checked(levels: Any, top_k: Any, top_p: Any, min_p: Any, temperature: float) -> int:
        levels[0], levels[1], count = 1.0, -np.inf, 0
        if count_given:
            if top_k < 1:
                complain("formatted", few, (top_k,))
                raise NotedValueError
            count = top_k
        if mass_given:
            if not 0.0 < top_p <= 1.0:
                complain("formatted", outside_top_p, (top_p,))
                raise NotedValueError
            levels[0] = top_p
        if least_given:
            if not 0.0 < min_p <= 1.0:
                complain("formatted", outside_min_p, (min_p,))
                raise NotedValueError
            if min_p < 1.0:
                levels[1] = temperature * math.log(min_p)
            else:
                levels[1] = 0.0
        return count

    return checked


@merged
def _room(classes: int, filtered: bool, replace: bool, tabled: bool, kind: Any, itemsize: int) -> Any:
    """The memory of `arrays.sampling.room_for`."""
    return empty((whole_number(_room_size(classes, filtered, replace, tabled, itemsize)),), kind)


@merged
def _is_tabled(count: int, replace: bool, classes: int) -> bool:
    """`arrays.sampling.Draws.tabled`."""
    return (count >= MANY) & (classes <= LONGEST_TABLE) & replace


def _sizes(call: Call) -> tuple[int, Run]:
    """How many axes `size` has, and the compiled ``size, shape of the rows -> shape of the result``."""
    size, name = call["size"], call.name
    if absent(size):
        return 0, argument(1)
    wrong = f"{name}: size must not be negative"
    if _integer(size):

        @compiled
        def of_number(size: Any, shape: Any) -> Any:
            if size < 0:
                raise ValueError(wrong)
            return (np.intp(size), *shape)

        return 1, of_number
    if not isinstance(size, types.UniTuple) or not isinstance(size.dtype, types.Integer):
        raise TypingError(f"{name}: size must be an integer or a tuple of them, got {size}")

    @compiled
    def of_tuple(size: Any, shape: Any) -> Any:
        for n in size:
            if n < 0:
                raise ValueError(wrong)
        return (*size, *shape)

    return len(size), of_tuple


def _numbers(call: Call, ndim: int) -> Run:
    """The compiled ``shape, count, rng, uniforms -> uniform numbers``, flat, in C order of the result."""
    rng, uniforms, name = call["rng"], call["uniforms"], call.name
    if absent(uniforms):
        if absent(rng):

            @compiled
            def of_numba(shape: Any, count: int, rng: Any, uniforms: Any) -> Any:
                numbers = empty((count,), np.float64)
                for i in range(count):
                    numbers[i] = np.random.random()  # noqa: NPY002  # the only one without a Generator
                return numbers

            return of_numba
        if not isinstance(rng, types.NumPyRandomGeneratorType):
            raise TypingError(f"{name}: rng must be a numpy.random.Generator in compiled code, got {rng}")

        @compiled
        def of_generator(shape: Any, count: int, rng: Any, uniforms: Any) -> Any:
            numbers = empty((count,), np.float64)
            for i in range(count):
                numbers[i] = rng.random()
            return numbers

        return of_generator
    if not absent(rng):
        raise TypingError(f"{name}: rng and uniforms exclude each other, got both")
    real_array(name, "uniforms", uniforms)
    if uniforms.ndim != ndim:
        raise TypingError(f"{name}: uniforms has {uniforms.ndim} dimensions, expected {ndim}")
    wrong_shape = f"{name}: uniforms has another shape than the result"
    outside = f"{name}: uniforms has {{}} at place {{}} in C order, expected 0 <= u < 1"

    @compiled
    def given(shape: Any, count: int, rng: Any, uniforms: Any) -> Any:
        if not same_shape(uniforms.shape, shape):
            raise ValueError(wrong_shape)
        numbers = empty((count,), np.float64)
        for i, place in enumerate(np.ndindex(uniforms.shape)):
            numbers[i] = uniforms[place]
            if not 0.0 <= numbers[i] < 1.0:
                complain("formatted", outside, (numbers[i], i))
                raise NotedValueError
        return numbers

    return given


def _launch(call: Call, kernel: Run) -> Run:
    """The compiled ``beta, arguments -> failures``, which calls the kernel with None if T = 1, as Python does."""
    if "temperature" in call and isinstance(call["temperature"], float):
        return merged(lambda beta, given: kernel(given, None))

    plain = merged(lambda beta, given: kernel(given, None))
    by_beta = either(plain, merged(lambda beta, given: kernel(given, beta)))
    return merged(lambda beta, given: by_beta(is_one(beta), beta, given))


@merged
def _draw_plain(given: Any, beta: Any) -> float:
    rows, room, source, numbers, chosen = given
    failures: float = _categorical(0, rows, room, source, numbers, chosen, beta)
    return failures


@merged
def _draw(given: Any, beta: Any) -> float:
    stop, room, table, bounds, source, classes, rows, numbers, chosen, count, replace, tabled, top_k, levels = (
        given
    )
    failures: float = _draws(
        0,
        stop,
        room,
        table,
        bounds,
        source,
        classes,
        rows,
        numbers,
        chosen,
        count,
        1,
        replace,
        tabled,
        top_k,
        levels,
        beta,
    )
    return failures


@merged
def _filter(given: Any, beta: Any) -> None:
    rows, room, source, y, top_k, levels = given
    _filter_logits(0, rows, room, source, y, top_k, levels, beta)


def _check_rows(call: Call) -> Run:
    """The compiled check that every row has a class for each draw. It knows the place of a row only."""
    wrong = (
        f"{call.name}: row {{}} of the logits (in C order) holds NaN or +inf, or has fewer classes with a "
        "probability above 0 than are drawn"
    )

    @merged
    def check(failures: float, result: Any, rows: int) -> None:
        refuse(failures > 0.0, NotedValueError, "undrawn", wrong, (extent(result), rows))

    return check


def _replaced(call: Call) -> None:
    if not isinstance(constant(call["replace"]), (bool, types.Boolean)):
        raise TypingError(f"{call.name}: replace must be a bool, got {call['replace']}")


def _drawing(call: Call, kind: Any) -> Run:
    """The compiled function that draws from the rows of a source, which `table` cuts if it has a size; flat."""
    launch, check_rows = _launch(call, _draw), _check_rows(call)
    filtered, itemsize = any(not absent(call[one]) for one in FILTERS), np.dtype(kind).itemsize

    @merged
    def draw(
        stop: int,
        table: Any,
        bounds: Any,
        source: Any,
        classes: int,
        rows: int,
        numbers: Any,
        count: int,
        replace: bool,
        kept: Any,
        levels: Any,
        pair: Any,
    ) -> Any:
        result = empty((numbers.size,), np.int64)
        again = (count == 1) | replace
        tabled = _is_tabled(count, again, classes)
        room = _room(classes, filtered, again, tabled, kind, itemsize)
        given = (
            stop,
            room,
            table,
            bounds,
            source,
            classes,
            rows,
            numbers,
            result,
            count,
            again,
            tabled,
            kept,
            levels,
        )
        check_rows(launch(pair, given), result, rows)
        return result

    return draw


# What a scalar result and an array are made of.
_number = merged(lambda flat, shape: flat[0])
_array = merged(lambda flat, shape: writable(flat, shape, np.int64))


def categorical(call: Call) -> Built:
    """Classes of each row."""
    x, axes, dtype = one_axis(call)
    kind = KINDS[dtype]
    _replaced(call)
    more, shape_for = _sizes(call)
    plain = absent(call["size"]) and all(absent(call[one]) for one in FILTERS)
    beta, filters_for = inverse_temperature_of(call, kind), _filters(call)
    order_of_rows, shape_of_rows, _ = row_layout(x, axes)
    ndim = more + x.ndim - 1
    numbers_for, check_rows = _numbers(call, ndim), _check_rows(call)
    lay_out = layout(x, axes, last=not plain)
    masked, check = masked_for(call, x)
    source_for = converter(x, axes, dtype)
    source_of = merged(lambda x, where, order, shape: source_for(x, order, shape, kind))
    if masked:

        @compiled
        def source_of(x: Any, where: Any, order: Any, shape: Any) -> Any:
            block = empty(shape, kind)
            hide(block, x, where, order)
            return readable(block, shape, kind)

    finish = _array if ndim else _number
    if plain:
        launch, room_of = _launch(call, _draw_plain), room_for(x, axes, None)
        in_place = classes_last(x, axes) or x.ndim < 3

        @merged
        def run_plain(x: Any, rng: Any, uniforms: Any, temperature: Any, where: Any) -> Any:
            pair = beta(temperature)
            check(where, x)
            order, shape = lay_out(x)
            rows = shape[0] * shape[2]
            row_shape = shape_of_rows(x.shape)
            numbers = numbers_for(row_shape, rows, rng, uniforms)
            result = empty((rows,), np.int64)
            source = source_of(x, where, order, shape)
            room = room_of(stack(kind, 0), shape, 1, kind, False)
            if in_place:
                failures = launch(pair, (rows, room, source, numbers, result))
            else:
                ordered = order_of_rows(order)
                whole_numbers = writable(numbers, row_shape, np.float64)
                whole_result = writable(result, row_shape, np.int64)
                moved = convert(whole_numbers, ordered, (rows,), np.float64)
                block = target(whole_result, ordered, (rows,), np.int64, None, None, None)
                failures = launch(pair, (rows, room, source, moved, block))
                deliver(whole_result, ordered, block)
            check_rows(failures, result, rows)
            return finish(result, row_shape)

        return run_plain, ("logits", "rng", "uniforms", "temperature", "where")

    draw, places = _drawing(call, kind), tuple(range(ndim))
    few = f"{call.name}: size is {{}} with replace=False, but there are {{}} classes"

    @compiled
    def check_count(count: int, classes: int, rows: int, replace: bool) -> None:
        if not replace and count > 1 and count > classes and rows > 0:
            complain("formatted", few, (count, classes))
            raise NotedValueError

    @merged
    def run(
        x: Any,
        rng: Any,
        uniforms: Any,
        size: Any,
        replace: Any,
        temperature: Any,
        top_k: Any,
        top_p: Any,
        min_p: Any,
        where: Any,
    ) -> Any:
        pair = beta(temperature)
        levels = stack(np.float64, 1)
        kept = filters_for(levels, top_k, top_p, min_p, temperature)
        check(where, x)
        order, shape = lay_out(x)
        rows, classes = shape[0], shape[1]
        result_shape = shape_for(size, shape_of_rows(x.shape))
        total = product_of(result_shape, places)
        count = quotient_or_zero(total, rows)
        check_count(count, classes, rows, replace)
        numbers = numbers_for(result_shape, total, rng, uniforms)
        source = readable(source_of(x, where, order, shape), (rows * classes,), kind)
        nothing = empty((0,), np.int64)
        result = draw(rows, nothing, nothing, source, classes, rows, numbers, count, replace, kept, levels, pair)
        return finish(result, result_shape)

    return run, ("logits", "rng", "uniforms", "size", "replace", "temperature", *FILTERS, "where")


def segment_categorical(call: Call) -> Built:
    """Positions in each segment."""
    name = call.names[0]
    x, dtype = call[name], vector(call, name)
    kind = KINDS[dtype]
    _replaced(call)
    more, shape_for = _sizes(call)
    beta, filters_for = inverse_temperature_of(call, kind), _filters(call)
    numbers_for, draw = _numbers(call, more + 1), _drawing(call, kind)
    row_pointers, source_for = pointers(call), converter(x, (0,), dtype)
    places = tuple(range(more + 1))

    @merged
    def run(
        x: Any,
        indptr: Any,
        rng: Any,
        uniforms: Any,
        size: Any,
        replace: Any,
        temperature: Any,
        top_k: Any,
        top_p: Any,
        min_p: Any,
    ) -> Any:
        pair = beta(temperature)
        levels = stack(np.float64, 1)
        kept = filters_for(levels, top_k, top_p, min_p, temperature)
        table = row_pointers(indptr, x.size)
        rows, longest = table.size - 1, longest_step(table)
        result_shape = shape_for(size, (rows,))
        total = product_of(result_shape, places)
        count = quotient_or_zero(total, rows)
        numbers = numbers_for(result_shape, total, rng, uniforms)
        source = source_for(x, (0,), x.shape, kind)
        result = draw(1, table, whole(table), source, longest, rows, numbers, count, replace, kept, levels, pair)
        return writable(result, result_shape, np.int64)

    return run, (*call.names, "rng", "uniforms", "size", "replace", "temperature", *FILTERS)


def filter_logits(call: Call) -> Built:
    """The logits that the filters keep."""
    x, axes, dtype = one_axis(call)
    kind = KINDS[dtype]
    beta, filters_for = inverse_temperature_of(call, kind), _filters(call)
    lay_out = layout(x, axes, last=True)
    result_for, source_for = like(call, x, dtype), converter(x, axes, dtype)
    target_for, deliver_to = exits(x, axes, call["out"])
    launch, itemsize = _launch(call, _filter), np.dtype(kind).itemsize

    @merged
    def run(x: Any, top_k: Any, top_p: Any, min_p: Any, temperature: Any, out: Any) -> Any:
        pair = beta(temperature)
        levels = stack(np.float64, 1)
        kept = filters_for(levels, top_k, top_p, min_p, temperature)
        order, shape = lay_out(x)
        result = result_for(x, out)
        source = source_for(x, order, shape, kind)
        y = target_for(result, order, shape, kind, source, None, None)
        room = _room(shape[1], True, True, False, kind, itemsize)
        launch(pair, (shape[0], room, source, y, kept, levels))
        deliver_to(result, order, y)
        return result

    return run, ("logits", *FILTERS, "temperature", "out")
