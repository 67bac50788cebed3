"""Activations, their derivatives and entropies inside a user's ``@njit`` code, and the memory of all results.

A builder, like `forward`, checks the types of a call and returns a compiled function for them, with the names of
the arguments that it takes: see `overloads`. At run time that function lays out the arrays and calls the same
kernel as the Python function, on one thread.
"""

import math
from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError

from fastsoftmax._spec import LIKE, ROWS
from fastsoftmax.arrays.blocks import split_temperature
from fastsoftmax.njit.arguments import (
    KINDS,
    Call,
    Run,
    absent,
    broadcasts,
    check_number,
    check_out,
    classes_last,
    compiled,
    constant,
    convert,
    converter,
    cover,
    deliver,
    empty,
    exits,
    hide,
    kernel_weights,
    layout,
    literal_axes,
    merged,
    overlap,
    readable,
    real_array,
    room_for,
    row_layout,
    same_shape,
    stack,
    straight,
    target,
    writable,
)
from fastsoftmax.njit.generated import always, argument, copied, inverse, require
from fastsoftmax.njit.written import either

Built = tuple[Run, tuple[str | tuple[str, ...], ...]]

# --- arguments ----------------------------------------------------------------------------------------------


def _flag(call: Call, name: str) -> Any:
    """The value of a flag, or its type if the value is known at run time only; False if there is no such flag."""
    value = constant(call[name]) if name in call else False
    if not isinstance(value, (bool, types.Boolean)):
        raise TypingError(f"{call.name}: {name} must be a bool, got {call[name]}")
    return value


def is_tempered(call: Call) -> bool:
    return "temperature" in call and not isinstance(call["temperature"], float)


def inverse_temperature_of(call: Call, kind: Any) -> Run:
    """The compiled form of `arrays.blocks.inverse_temperature`: None if no temperature was passed."""
    if not is_tempered(call):
        return always(None)
    check_number(call.name, "temperature", call["temperature"])
    wrong = f"{call.name}: temperature must be finite and > 0"
    info = np.finfo(kind)
    least, most = 1 - int(info.maxexp), int(info.nmant) - int(info.minexp)
    split = compiled(split_temperature)

    @compiled
    def beta(temperature: Any) -> Any:
        value = np.float64(temperature)
        if not 0.0 < value < np.inf:
            raise ValueError(wrong)
        fraction, exponent, left = split(value, least, most)
        high, low = inverse(fraction, kind)
        scale = kind(math.ldexp(1.0, -left))
        pre, gain = math.ldexp(1.0, -max(exponent, 0)), math.ldexp(1.0, max(-exponent, 0))
        return kind(pre), kind(gain), high * scale, low * scale, kind(-exponent)

    return beta


def same_ndim(call: Call, name: str) -> Any:
    """The dtype of a second array with as many dimensions as the first."""
    x, dtype = call[call.names[0]], real_array(call.name, name, call[name])
    if call[name].ndim != x.ndim:
        raise TypingError(
            f"{call.name}: {name} has {call[name].ndim} dimensions, expected {x.ndim}, as {call.names[0]} has"
        )
    return dtype


def widened(dtype: Any, operand: Any) -> Any:
    """The dtype of a computation with a second operand: float64 if the operand is float64, else unchanged."""
    return types.float64 if operand.dtype == types.float64 else dtype


def _check_where(call: Call, x: Any) -> None:
    where = call["where"]
    if isinstance(where, types.Array) and where.dtype == types.boolean:
        if where.ndim > x.ndim:
            raise TypingError(f"{call.name}: where has {where.ndim} dimensions, {call.names[0]} has {x.ndim}")
    elif isinstance(where, types.Array):
        raise TypingError(f"{call.name}: where has dtype {where.dtype}, expected bool")
    elif not isinstance(where, types.Boolean):
        raise TypingError(f"{call.name}: where must be an array of bools, got {where}")


def one_axis(call: Call) -> tuple[Any, tuple[int, ...], Any]:
    """The logits, the axis of their classes and the dtype."""
    name = call.names[0]
    x, dtype = call[name], real_array(call.name, name, call[name])
    if x.ndim == 0:
        raise TypingError(f"{call.name}: {name} is 0-d, expected at least one axis of classes")
    return x, literal_axes(call.name, call["axis"], x.ndim, several=False), dtype


def _several_axes(call: Call, x: Any) -> tuple[int, ...]:
    """The axes of an activation; a 0-d x is treated as a row of one item."""
    if x.ndim:
        return literal_axes(call.name, call["axis"], x.ndim, several=True)
    axis = constant(call["axis"])
    if axis not in (None, (), -1, 0):
        raise TypingError(f"{call.name}: axis {axis} is out of bounds for array of dimension 0")
    return (0,)


def check_same(function: str, name: str, x_name: str) -> Run:
    """The compiled check that two arrays have the same shape."""
    wrong = f"{function}: {name} has another shape than {x_name}"

    return merged(lambda array, x: require(same_shape(array.shape, x.shape), wrong))


# --- results ------------------------------------------------------------------------------------------------


def _given(function: str, shape_of: Run) -> Run:
    """The compiled ``x, out -> out`` for an `out` of the user, whose shape must be ``shape_of(x)``."""
    wrong = f"{function}: out has another shape than the result"

    @merged
    def given(x: Any, out: Any) -> Any:
        require(same_shape(out.shape, shape_of(x)), wrong)
        return out

    return given


def like(call: Call, x: Any, dtype: Any) -> Run:
    """The compiled ``x, out -> result`` for a result of the shape of x."""
    check_out(call.name, call["out"], dtype, x.ndim)
    kind = KINDS[dtype]
    if not absent(call["out"]):
        return _given(call.name, merged(lambda x: x.shape))
    if x.layout == "F" and x.ndim > 1:
        return compiled(lambda x, out: np.empty(x.shape[::-1], kind).T)
    return merged(lambda x, out: empty(x.shape, kind))


def switched(call: Call, launch: Run) -> Run:
    """`launch` with beta None if no temperature was passed, or if it is 1."""
    return _switched(launch, is_tempered(call), False)


def _switched(launch: Run, tempered: bool, flag: Any) -> Run:
    """`launch` with beta None if T = 1, and with True or None for the flag, so that each has its own kernel."""
    if not isinstance(flag, bool):
        set_, unset = _switched(launch, tempered, True), _switched(launch, tempered, False)

        by_flag = either(set_, unset)
        return merged(lambda n, room, x, v, y, beta, flag, w: by_flag(flag, n, room, x, v, y, beta, flag, w))
    chosen = True if flag else None
    plain = merged(lambda n, room, x, v, y, beta, flag, w: launch(n, room, x, v, y, None, chosen, w))
    if not tempered:
        return plain
    hot = merged(lambda n, room, x, v, y, beta, flag, w: launch(n, room, x, v, y, beta, chosen, w))
    by_beta = either(plain, hot)
    return merged(lambda n, room, x, v, y, beta, flag, w: by_beta(is_one(beta), n, room, x, v, y, beta, flag, w))


@merged
def is_one(beta: Any) -> Any:
    """Whether a temperature is 1, from the numbers of its inverse."""
    return (beta[0] * beta[1] * beta[2] == 1.0) & (beta[3] == 0.0)


def pointwise(
    call: Call,
    x: Any,
    axes: tuple[int, ...],
    dtype: Any,
    launch: Run,
    operand: Any = None,
    last: bool = False,
) -> Run:
    """The compiled function of a result like x. `operand` is the type of a second operand, if there is one."""
    kind = KINDS[dtype]
    lay_out = layout(x, axes, last)
    result_for = like(call, x, dtype)
    source_for = converter(x, axes, dtype)
    second_for = always(None)
    if operand is not None:
        second_for = converter(operand, axes, dtype) if straight(x, axes) else convert
    target, deliver = exits(x, axes, call["out"])
    over = overlap(None if operand is None else call["out"])
    room_of = room_for(x, axes, None if operand is None else call["out"])

    @merged
    def run(x: Any, v: Any, beta: Any, flag: Any, weights: Any, out: Any) -> Any:
        order, shape = lay_out(x)
        result = result_for(x, out)
        source = source_for(x, order, shape, kind)
        second = second_for(v, order, shape, kind)
        y = target(result, order, shape, kind, source, second, None)
        room = room_of(stack(kind, 0), shape, 2, kind, over(y, second))
        launch(shape[0] * shape[2], room, source, second, y, beta, flag, weights)
        deliver(result, order, y)
        return result

    return run


def square(call: Call, x: Any, axes: tuple[int, ...], dtype: Any, launch: Run) -> Run:
    """The compiled function of a result with a matrix for each row of x."""
    kind, out, axis = KINDS[dtype], call["out"], axes[0]
    lay_out = layout(x, axes, last=True)
    _, shape_of_rows, _ = row_layout(x, axes)
    natural = tuple(range(x.ndim + 1))
    source_for = converter(x, axes, dtype)
    target_for, deliver_to = exits(x, axes, out)
    check_out(call.name, out, dtype, x.ndim + 1)
    shape_of = merged(lambda x: (*shape_of_rows(x.shape), x.shape[axis], x.shape[axis]))
    result_for = _given(call.name, shape_of)
    if absent(out):
        result_for = merged(lambda x, out: empty(shape_of(x), kind))

    @merged
    def run(x: Any, v: Any, beta: Any, flag: Any, weights: Any, out: Any) -> Any:
        order, shape = lay_out(x)
        rows, classes, _ = shape
        result = result_for(x, out)
        source = source_for(x, order, shape, kind)
        y = target_for(result, natural, (rows, classes, classes), kind, source, None, None)
        launch(rows, stack(kind, 0), source, None, y, beta, flag, weights)
        deliver_to(result, natural, y)
        return result

    return run


def row_result(
    function: str, x: Any, axes: tuple[int, ...], dtype: Any, keep: bool, out: Any
) -> tuple[Run, Run, Run]:
    """Memory for one number for each row: make the result, get the kernel's output, and finish the result.

    `dtype` may be that of indices.
    """
    kind = KINDS.get(dtype, np.int64)
    order_of_rows, shape_of_rows, kept_shape = row_layout(x, axes)
    check_out(function, out, dtype, x.ndim if keep else x.ndim - len(axes))
    shape = kept_shape if keep else shape_of_rows
    given = _given(function, compiled(lambda x: shape(x.shape)))
    fresh = merged(lambda x, out: empty(shape_of_rows(x.shape), kind))
    if len(axes) == x.ndim:
        on_stack = compiled(lambda result, order, rows, few, source: few[:rows])
        if not absent(out):
            return given, on_stack, _number_into
        begin, finish = always(None), compiled(lambda x, result, order, block, out: block[0])
        if keep:
            finish = compiled(lambda x, result, order, block, out: np.full(kept_shape(x.shape), block[0]))
        return begin, on_stack, finish

    if absent(out) and not keep and classes_last(x, axes):
        in_new = merged(lambda result, order, rows, few, source: writable(result, (rows,), kind))
        return fresh, in_new, argument(1)

    @compiled
    def in_result(result: Any, order: Any, rows: int, few: Any, source: Any) -> Any:
        return target(result, order_of_rows(order), (rows,), kind, source, None, None)

    @compiled
    def array(x: Any, result: Any, order: Any, block: Any, out: Any) -> Any:
        deliver(result, order_of_rows(order), block)
        return result

    if not keep:
        return fresh if absent(out) else given, in_result, array

    @compiled
    def kept_array(x: Any, result: Any, order: Any, block: Any, out: Any) -> Any:
        return array(x, result, order, block, out).reshape(kept_shape(x.shape))

    if absent(out):
        return fresh, in_result, kept_array

    @compiled
    def fresh_and_checked(x: Any, out: Any) -> Any:
        given(x, out)
        return fresh(x, out)

    @compiled
    def array_into(x: Any, result: Any, order: Any, block: Any, out: Any) -> Any:
        out[...] = kept_array(x, result, order, block, out)
        return out

    return fresh_and_checked, in_result, array_into


@compiled
def _number_into(x: Any, result: Any, order: Any, block: Any, out: Any) -> Any:
    out[...] = block[0]
    return out


# The return value of a function with a gradient: the rows, the gradient, or both.
FIRST, SECOND, BOTH = argument(0), argument(1), merged(lambda a, b: (a, b))


def wanted(call: Call) -> Run:
    """Whether the function returns the rows, their gradient or both."""
    if len(call.function.result) == 2:
        return BOTH
    return SECOND if call.function.result == (LIKE,) else FIRST


# The functions of `slope` if the gradient is not returned.
NOWHERE: tuple[Run, Run, Run] = (
    always(None),
    always(None),
    always(None),
)


def slope(call: Call, x: Any, axes: tuple[int, ...], dtype: Any) -> tuple[Run, Run, Run]:
    """Memory for the gradient: make the result, get the kernel's output, and copy that into the result."""
    return NOWHERE if wanted(call) is FIRST else (like(call, x, dtype), *exits(x, axes, call["out"]))


# --- activations --------------------------------------------------------------------------------------------


def _launch_forward(call: Call) -> Run:
    """The kernel of a function of x."""
    kernel: Any = call.kernel()
    launch = merged(lambda n, room, x, v, y, beta, flag, weights: kernel(0, n, room, x, y))
    if "temperature" in call:
        launch = merged(lambda n, room, x, v, y, beta, flag, weights: kernel(0, n, room, x, y, beta))
    return _switched(launch, is_tempered(call), False)


def forward(call: Call) -> Built:
    """softmax, log_softmax, logsumexp."""
    name = call.names[0]
    x, dtype = call[name], real_array(call.name, name, call[name])
    axes = _several_axes(call, x)
    of_rows = call.function.result == (ROWS,)
    kept = _flag(call, "keepdims")
    if not isinstance(kept, bool):
        raise TypingError(f"{call.name}: keepdims must be a bool literal, got {call['keepdims']}")
    if x.ndim == 0:
        run = _one_item(call, x, dtype, of_rows)
    elif of_rows:
        run = _forward_rows(call, x, axes, dtype, kept)
    else:
        run = _forward_like(call, x, axes, dtype)
    return run, (name, "where", "temperature", "out")


def _one_item(call: Call, x: Any, dtype: Any, of_rows: bool) -> Run:
    """The function of a 0-d array, which is treated as a row of one item."""
    check_out(call.name, call["out"], dtype, 0)
    row, kind = types.Array(dtype, 1, "C"), KINDS[dtype]
    flat, _ = forward(call.replaced(**{call.names[0]: row}, axis=-1, keepdims=False, out=None))
    item = argument(0) if of_rows else merged(lambda y: y[0])
    scalar = merged(lambda x, where, t, out: item(flat(copied(x, (1,), kind), where, t, None)))
    if absent(call["out"]):
        return scalar
    return merged(lambda x, where, t, out: _item_into(scalar(x, where, t, out), out))


@compiled
def _item_into(value: Any, out: Any) -> Any:
    out[()] = value
    return out


def masked_for(call: Call, x: Any) -> tuple[bool, Run]:
    """Whether there is a mask, and the compiled check that it broadcasts to x."""
    where = call["where"]
    if absent(where) or constant(where) is True:
        return False, always(None)
    _check_where(call, x)
    if not isinstance(where, types.Array):
        return True, always(None)
    wrong = f"{call.name}: where does not broadcast to {call.names[0]}"
    return True, merged(lambda where, x: require(broadcasts(where, x.shape), wrong))


def _forward_like(call: Call, x: Any, axes: tuple[int, ...], dtype: Any) -> Run:
    """softmax or log_softmax."""
    kind = KINDS[dtype]
    beta, launch = inverse_temperature_of(call, kind), _launch_forward(call)
    masked, check = masked_for(call, x)
    if not masked:
        whole = pointwise(call, x, axes, dtype, launch)
        return merged(lambda x, where, t, out: whole(x, None, beta(t), None, None, out))
    room_of = room_for(x, axes, None)
    lay_out = layout(x, axes, last=False)
    result_for = like(call, x, dtype)
    alone = absent(call["out"])
    hidden = -np.inf if call.name.startswith("log") else 0.0

    @merged
    def run(x: Any, where: Any, temperature: Any, out: Any) -> Any:
        pair = beta(temperature)
        check(where, x)
        order, shape = lay_out(x)
        result = result_for(x, out)
        y = target(result, order, shape, kind, None, None, None) if alone else empty(shape, kind)
        hide(y, x, where, order)
        room = room_of(stack(kind, 0), shape, 1, kind, False)
        launch(shape[0] * shape[2], room, readable(y, shape, kind), None, y, pair, None, None)
        cover(y, x.shape, where, order, hidden)
        deliver(result, order, y)
        return result

    return run


def _forward_rows(call: Call, x: Any, axes: tuple[int, ...], dtype: Any, kept: bool) -> Run:
    """logsumexp."""
    kind = KINDS[dtype]
    beta, launch = inverse_temperature_of(call, kind), _launch_forward(call)
    room_of = room_for(x, axes, None)
    lay_out = layout(x, axes, last=False)
    masked, check = masked_for(call, x)
    source_for = converter(x, axes, dtype)
    source_of = merged(lambda x, where, order, shape: source_for(x, order, shape, kind))
    if masked:

        @compiled
        def source_of(x: Any, where: Any, order: Any, shape: Any) -> Any:
            block = empty(shape, kind)
            hide(block, x, where, order)
            return readable(block, shape, kind)

    begin, block_for, finish = row_result(call.name, x, axes, dtype, kept, call["out"])

    @merged
    def run(x: Any, where: Any, temperature: Any, out: Any) -> Any:
        pair = beta(temperature)
        order, shape = lay_out(x)
        rows = shape[0] * shape[2]
        result = begin(x, out)
        check(where, x)
        source = source_of(x, where, order, shape)
        few = stack(kind, 1)
        block = block_for(result, order, rows, few, source)
        room = room_of(stack(kind, 0), shape, 1, kind, False)
        launch(rows, room, source, None, block, pair, None, None)
        return finish(x, result, order, block, out)

    return run


# --- derivatives --------------------------------------------------------------------------------------------


def jacobian(call: Call) -> Built:
    """The Jacobian of each row."""
    x, axes, dtype = one_axis(call)
    kernel, flag, present = call.kernel(), _flag(call, "from_probs"), kernel_weights(KINDS[dtype])
    beta = inverse_temperature_of(call, KINDS[dtype])
    launch = merged(lambda n, room, x, v, y, beta, flag, w: kernel(0, n, room, x, y, beta))
    if "from_probs" in call:
        launch = merged(lambda n, room, x, v, y, beta, flag, w: kernel(0, n, room, x, y, beta, flag, present(w)))
    whole = square(call, x, axes, dtype, _switched(launch, is_tempered(call), flag))
    run = merged(lambda x, temperature, from_probs, out: whole(x, None, beta(temperature), from_probs, None, out))
    return run, (*call.names, "temperature", "from_probs", "out")


def product(call: Call) -> Built:
    """The product of the Jacobian of each row, or of its transpose, with a vector."""
    x, axes, dtype = one_axis(call)
    name = call.names[1]
    v = call[name]
    same_ndim(call, name)
    dtype = widened(dtype, v)
    flag = _flag(call, "from_probs")
    beta = inverse_temperature_of(call, KINDS[dtype])
    check = check_same(call.name, name, call.names[0])
    kernel, over, present = call.kernel(), overlap(call["out"]), kernel_weights(KINDS[dtype])
    launch = merged(lambda n, room, x, v, y, beta, flag, w: kernel(0, n, room, x, v, y, over(y, v), beta))
    if "from_probs" in call:
        launch = merged(
            lambda n, room, x, v, y, beta, flag, w: kernel(0, n, room, x, v, y, over(y, v), beta, flag, present(w))
        )
    whole = pointwise(call, x, axes, dtype, _switched(launch, is_tempered(call), flag), operand=v)

    @merged
    def run(x: Any, v: Any, temperature: Any, from_probs: Any, out: Any) -> Any:
        check(v, x)
        return whole(x, v, beta(temperature), from_probs, None, out)

    return run, (*call.names, "temperature", "from_probs", "out")


# --- entropy ------------------------------------------------------------------------------------------------


def entropies(call: Call) -> Built:
    """The entropy of each row, perhaps with its gradient."""
    x, axes, dtype = one_axis(call)
    kind = KINDS[dtype]
    beta, kernel = inverse_temperature_of(call, kind), call.kernel()
    room_of = room_for(x, axes, None)
    lay_out = layout(x, axes, last=False)
    source_for = converter(x, axes, dtype)
    returned = wanted(call)
    rows_out = argument(0) if returned is FIRST else always(None)
    out = call["out"] if returned is FIRST else None
    begin, block_for, finish = row_result(call.name, x, axes, dtype, False, out)
    slope_for, target_for, deliver_to = slope(call, x, axes, dtype)

    @merged
    def run(x: Any, temperature: Any, out: Any) -> Any:
        pair = beta(temperature)
        order, shape = lay_out(x)
        rows = shape[0] * shape[2]
        slope = slope_for(x, out)
        result = begin(x, rows_out(out))
        source = source_for(x, order, shape, kind)
        few = stack(kind, 1)
        block = block_for(result, order, rows, few, source)
        y = target_for(slope, order, shape, kind, source, None, None)
        room = room_of(stack(kind, 0), shape, 1, kind, False)
        kernel(0, rows, room, source, y, block, pair)
        deliver_to(slope, order, y)
        return returned(finish(x, result, order, block, rows_out(out)), slope)

    return run, (*call.names, "temperature", "out")
