"""`label_statistics` inside a user's ``@njit`` code; `rows` explains builders."""

from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError

from fastsoftmax.arrays.statistics import LabelStatistics
from fastsoftmax.machine.external import external
from fastsoftmax.njit.arguments import (
    KINDS,
    Call,
    Run,
    absent,
    check_ignore_index,
    converter,
    empty,
    layout,
    merged,
    picked,
    product_of,
    readable,
    real_array,
    room_for,
    row_layout,
    stack,
    straight,
    writable,
)
from fastsoftmax.njit.generated import copied
from fastsoftmax.njit.losses import labels_of_rows, row_shape_check
from fastsoftmax.njit.rows import Built, inverse_temperature_of, one_axis, row_result, switched


def _check_types(call: Call, name: str, x: Any) -> None:
    """TypingError unless the labels are integers, one for each row."""
    labels = call[name]
    check_ignore_index(call.name, call["ignore_index"])
    if isinstance(labels, types.Integer) and x.ndim == 1:
        return
    real_array(call.name, name, labels)
    if labels.ndim != x.ndim - 1:
        raise TypingError(
            f"{call.name}: {name} has {labels.ndim} dimensions, expected {x.ndim - 1} (class indices)"
        )
    if not isinstance(labels.dtype, types.Integer):
        raise TypingError(
            f"{call.name}: {name} are class indices and have dtype {labels.dtype}, expected integers"
        )


_correct = external("statistics.correct")


def _of_rows(call: Call, x: Any, kind: Any, check: Run, labels_of: Run, launch: Run) -> Built:
    """`statistics` for logits whose type shows contiguous rows: there is nothing to lay out and to convert."""
    rest, beta_of = tuple(range(x.ndim - 1)), inverse_temperature_of(call, kind)
    ndim = len(rest)

    @merged
    def run(x: Any, labels: Any, temperature: Any, ignore_index: Any) -> Any:
        check(labels, x)
        beta = beta_of(temperature)
        rows = product_of(x.shape, rest)
        shape, of_rows = (rows, x.shape[ndim], 1), picked(x.shape, rest)
        marks = labels_of(labels, rest, shape, ignore_index, None)
        source = readable(x, shape, kind)
        log_prob, entropy, lse = empty(of_rows, kind), empty(of_rows, kind), empty(of_rows, kind)
        rank, argmax = empty((rows,), kind), empty((rows,), kind)
        first, fourth = writable(log_prob, (rows,), kind), writable(entropy, (rows,), kind)
        found = first, rank, argmax, fourth, writable(lse, (rows,), kind)
        launch(rows, stack(kind, 0), source, marks, found, beta, None, None)
        _correct(0, rows, None, source, marks, first, rank, argmax, found[4])
        places, greatest = copied(rank, of_rows, np.int64), copied(argmax, of_rows, np.int64)
        return LabelStatistics(log_prob, places, greatest, entropy, lse)

    return run, (*call.names, "temperature", "ignore_index")


def statistics(call: Call) -> Built:
    """The five numbers of each row."""
    x, axes, dtype = one_axis(call)
    name, kind, kernel = call.names[1], KINDS[dtype], call.kernel()
    _check_types(call, name, x)
    ignoring = not absent(call["ignore_index"])
    check = row_shape_check(call.name, name, call[name], x, axes)
    labels_of = labels_of_rows(call.name, name, x, axes, call[name], ignoring)
    order_of_rows, _, _ = row_layout(x, axes)
    beta_of = inverse_temperature_of(call, kind)
    launch = switched(call, merged(lambda n, room, x, v, y, beta, flag, w: kernel(0, n, room, x, v, *y, beta)))
    if x.ndim > 1 and straight(x, axes) and x.dtype == dtype:
        return _of_rows(call, x, kind, check, labels_of, launch)
    lay_out, source_for = layout(x, axes, last=False), converter(x, axes, dtype)
    begin, block_for, finish = row_result(call.name, x, axes, dtype, False, None)
    room_of = room_for(x, axes, None)
    whole: Run = merged(lambda values: values.astype(np.int64))
    if x.ndim == 1:
        whole = merged(lambda value: np.int64(value))

    @merged
    def run(x: Any, labels: Any, temperature: Any, ignore_index: Any) -> Any:
        check(labels, x)
        beta = beta_of(temperature)
        order, shape = lay_out(x)
        rows = shape[0] * shape[2]
        by_row = order_of_rows(order)
        marks = labels_of(labels, by_row, shape, ignore_index, stack(np.int64, 1))
        source = source_for(x, order, shape, kind)
        a, b, c, d, e = begin(x, None), begin(x, None), begin(x, None), begin(x, None), begin(x, None)
        found = (
            block_for(a, order, rows, stack(kind, 1), source),
            block_for(b, order, rows, stack(kind, 1), source),
            block_for(c, order, rows, stack(kind, 1), source),
            block_for(d, order, rows, stack(kind, 1), source),
            block_for(e, order, rows, stack(kind, 1), source),
        )
        room = room_of(stack(kind, 0), shape, 1, kind, False)
        launch(rows, room, source, marks, found, beta, None, None)
        _correct(0, rows, None, source, marks, found[0], found[1], found[2], found[4])
        return LabelStatistics(
            finish(x, a, order, found[0], None),
            whole(finish(x, b, order, found[1], None)),
            whole(finish(x, c, order, found[2], None)),
            finish(x, d, order, found[3], None),
            finish(x, e, order, found[4], None),
        )

    return run, (*call.names, "temperature", "ignore_index")
