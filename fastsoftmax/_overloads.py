"""The public functions inside a user's own ``@njit`` code.

Numba calls `register` before it first compiles anything (``[project.entry-points.numba_extensions]`` in
``pyproject.toml``), so that nobody has to. Importing this file is what registers; all the work is done when a call is
compiled: an overload looks at the types, complains or picks what is needed, and leaves a function that lays out the
arrays at run time and calls the kernel that the Python function calls, on one thread.

Numba knows no keyword-only parameters in compiled code: the signatures of the overloads have them, and decide what a
caller may write; those of their implementations do not. Overloads of further functions go to the end of the file.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from fastsoftmax import _activations, _derivatives, _losses, kernels
from fastsoftmax._jit_arrays import (
    OPTIONS,
    absent,
    broadcasts,
    check_out,
    compiled,
    constant,
    convert,
    converter,
    cover,
    deliver,
    exits,
    hide,
    inverse,
    items,
    layout,
    literal_axes,
    merged,
    readable,
    real_array,
    row_layout,
    same_shape,
    stack,
    straight,
    target,
    transposed,
    working_memory,
    writable,
)
from fastsoftmax.kernels.traversal import COLUMN_LIMIT

KINDS = {types.float32: np.float32, types.float64: np.float64}
REDUCTIONS = ("mean", "sum", "none")
NEAR = 2 * COLUMN_LIMIT
Run = Callable[..., Any]


def register() -> None:
    """Numba's entry point: importing this file has done it."""


def _overload(function: Any) -> Any:
    return overload(function, prefer_literal=True, strict=False, jit_options={**OPTIONS, "parallel": False})


# --- arguments ----------------------------------------------------------------------------------------------


def _number(function: str, name: str, argument: Any) -> None:
    value = constant(argument)
    if not isinstance(value, (int, float, types.Integer, types.Float, types.Boolean)):
        raise TypingError(f"{function}: {name} must be a number, got {argument}")


def _flag(function: str, name: str, argument: Any) -> Any:
    """The value of a flag, or the type of one that is known at run time only."""
    value = constant(argument)
    if not isinstance(value, (bool, types.Boolean)):
        raise TypingError(f"{function}: {name} must be a bool, got {argument}")
    return value


def _beta(function: str, temperature: Any, kind: Any) -> Run:
    """The compiled temperature -> 1/T as a pair, or None where none was given."""
    if isinstance(temperature, float):
        return merged(lambda temperature: None)
    _number(function, "temperature", temperature)
    tiny = float(np.finfo(kind).tiny)
    wrong = f"{function}: temperature must be finite and > 0"
    extreme = f"{function}: temperature is out of the range of {np.dtype(kind)}"

    @compiled
    def beta(temperature: Any) -> Any:
        value = np.float64(temperature)
        if not 0.0 < value < np.inf:
            raise ValueError(wrong)
        pair = inverse(value, kind)
        if not tiny <= pair[0] < np.inf:
            raise ValueError(extreme)
        return pair

    return beta


def _same_ndim(function: str, name: str, argument: Any, x_name: str, x: Any) -> Any:
    """The dtype of a second array with as many dimensions as the first."""
    dtype = real_array(function, name, argument)
    if argument.ndim != x.ndim:
        raise TypingError(f"{function}: {name} has {argument.ndim} dimensions, expected {x.ndim}, as {x_name} has")
    return dtype


def _widened(dtype: Any, operand: Any) -> Any:
    """The dtype of a computation with a second operand: a wider float counts, an integer does not."""
    return types.float64 if operand.dtype == types.float64 else dtype


def _check_where(function: str, where: Any, x: Any) -> None:
    if isinstance(where, types.Array) and where.dtype == types.boolean:
        if where.ndim > x.ndim:
            raise TypingError(f"{function}: where has {where.ndim} dimensions, x has {x.ndim}")
    elif isinstance(where, types.Array):
        raise TypingError(f"{function}: where has dtype {where.dtype}, expected bool")
    elif not isinstance(where, types.Boolean):
        raise TypingError(f"{function}: where must be an array of bools, got {where}")


def _one_axis(function: str, name: str, x: Any, axis: Any) -> tuple[int, ...]:
    if x.ndim == 0:
        raise TypingError(f"{function}: {name} is 0-d, expected at least one axis of classes")
    return literal_axes(function, axis, x.ndim, several=False)


def _several_axes(function: str, x: Any, axis: Any) -> tuple[int, ...]:
    """The axes of an activation, for a 0-d x those of its one item as a row."""
    if x.ndim:
        return literal_axes(function, axis, x.ndim, several=True)
    if constant(axis) not in (None, (), -1, 0):
        raise TypingError(f"{function}: axis {constant(axis)} is out of bounds for array of dimension 0")
    return (0,)


def _check_same(function: str, name: str, x_name: str) -> Run:
    """The compiled check that two arrays have one shape."""
    wrong = f"{function}: {name} has another shape than {x_name}"

    @compiled
    def check(array: Any, x: Any) -> None:
        if not same_shape(array.shape, x.shape):
            raise ValueError(wrong)

    return check


# --- results ------------------------------------------------------------------------------------------------


def _result(function: str, x: Any, dtype: Any, out: Any) -> Run:
    """The compiled ``x, out -> result`` for a result of the shape of x."""
    check_out(function, out, dtype, x.ndim)
    kind = KINDS[dtype]
    if absent(out):
        if x.layout == "F" and x.ndim > 1:
            return compiled(lambda x, out: np.empty(x.shape[::-1], kind).T)
        return merged(lambda x, out: np.empty(x.shape, kind))
    check = _check_same(function, "out", "the result")

    @compiled
    def given(x: Any, out: Any) -> Any:
        check(out, x)
        return out

    return given


def _switched(launch: Run, tempered: bool, flag: Any) -> Run:
    """`launch` with beta None where T = 1, and the flag as a type, True or None: one kernel for each."""
    if not isinstance(flag, bool):
        set_, unset = _switched(launch, tempered, True), _switched(launch, tempered, False)

        @merged
        def flagged(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: bool, weights: Any) -> None:
            if flag:
                set_(rows, room, x, v, y, beta, flag, weights)
            else:
                unset(rows, room, x, v, y, beta, flag, weights)

        return flagged
    chosen = True if flag else None
    if not tempered:

        @merged
        def plain(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, weights: Any) -> None:
            launch(rows, room, x, v, y, None, chosen, weights)

        return plain

    @merged
    def hot(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, weights: Any) -> None:
        if beta[0] == 1.0 and beta[1] == 0.0:
            launch(rows, room, x, v, y, None, chosen, weights)
        else:
            launch(rows, room, x, v, y, beta, chosen, weights)

    return hot


def _pointwise(
    function: str, x: Any, axes: tuple[int, ...], dtype: Any, out: Any, launch: Run, operand: Any = None
) -> Run:
    """A result of the shape of x, from x, perhaps a second operand, and perhaps a weight for each row."""
    kind = KINDS[dtype]
    lay_out = layout(x, axes, last=False)
    result_for = _result(function, x, dtype, out)
    source_for = converter(x, axes, dtype)
    second_for = merged(lambda v, order, shape, kind: None)
    if operand is not None:
        second_for = converter(operand, axes, dtype) if straight(x, axes) else convert
    target, deliver = exits(x, axes, out)

    @merged
    def run(x: Any, v: Any, beta: Any, flag: Any, weights: Any, out: Any) -> Any:
        order, shape = lay_out(x)
        result = result_for(x, out)
        source = source_for(x, order, shape, kind)
        second = second_for(v, order, shape, kind)
        y = target(result, order, shape, kind, source, second, None)
        near = stack(kind, NEAR)
        room = working_memory(near, shape, 2, kind)
        launch(shape[0] * shape[2], room, source, second, y, beta, flag, weights)
        deliver(result, order, y)
        return result

    return run


def _square(function: str, x: Any, axes: tuple[int, ...], dtype: Any, out: Any, launch: Run) -> Run:
    """A matrix for each row of x."""
    kind = KINDS[dtype]
    lay_out = layout(x, axes, last=True)
    _, shape_of_rows, _ = row_layout(x, axes)
    natural = tuple(range(x.ndim + 1))
    check_out(function, out, dtype, x.ndim + 1)
    wrong = f"{function}: out has another shape than the result"

    @compiled
    def made(shape: Any, out: Any) -> Any:
        return np.empty(shape, kind)

    @compiled
    def given(shape: Any, out: Any) -> Any:
        if not same_shape(out.shape, shape):
            raise ValueError(wrong)
        return out

    result_for = made if absent(out) else given

    @merged
    def run(x: Any, v: Any, beta: Any, flag: Any, weights: Any, out: Any) -> Any:
        order, shape = lay_out(x)
        rows, classes, _ = shape
        result = result_for(shape_of_rows(x.shape) + (classes, classes), out)
        source = convert(x, order, shape, kind)
        y = target(result, natural, (rows, classes, classes), kind, source, None, None)
        near = stack(kind, NEAR)
        launch(rows, near, source, None, y, beta, flag, weights)
        deliver(result, natural, y)
        return result

    return run


def _row_result(
    function: str, x: Any, axes: tuple[int, ...], dtype: Any, keep: bool, out: Any
) -> tuple[Run, Run, Run]:
    """Where one number for each row goes: before the kernel, for the kernel, and as the user gets it."""
    kind = KINDS[dtype]
    order_of_rows, shape_of_rows, kept_shape = row_layout(x, axes)
    rest = x.ndim - len(axes)
    check_out(function, out, dtype, x.ndim if keep else rest)
    given = not absent(out)
    wrong = f"{function}: out has another shape than the result"

    @compiled
    def fits(x: Any, out: Any) -> None:
        if not same_shape(out.shape, kept_shape(x.shape) if keep else shape_of_rows(x.shape)):
            raise ValueError(wrong)

    @compiled
    def nothing(x: Any, out: Any) -> Any:
        return None

    @compiled
    def none_but_checked(x: Any, out: Any) -> Any:
        fits(x, out)

    @compiled
    def fresh(x: Any, out: Any) -> Any:
        return np.empty(shape_of_rows(x.shape), kind)

    @compiled
    def fresh_and_checked(x: Any, out: Any) -> Any:
        fits(x, out)
        return np.empty(shape_of_rows(x.shape), kind)

    @compiled
    def taken(x: Any, out: Any) -> Any:
        fits(x, out)
        return out

    @compiled
    def on_stack(result: Any, order: Any, rows: int, few: Any, source: Any) -> Any:
        return few[:rows]

    @compiled
    def in_result(result: Any, order: Any, rows: int, few: Any, source: Any) -> Any:
        return target(result, order_of_rows(order), (rows,), kind, source, None, None)

    @compiled
    def number(x: Any, result: Any, order: Any, block: Any, out: Any) -> Any:
        return block[0]

    @compiled
    def kept_number(x: Any, result: Any, order: Any, block: Any, out: Any) -> Any:
        return np.full(kept_shape(x.shape), block[0])

    @compiled
    def number_into(x: Any, result: Any, order: Any, block: Any, out: Any) -> Any:
        out[...] = block[0]
        return out

    @compiled
    def array(x: Any, result: Any, order: Any, block: Any, out: Any) -> Any:
        deliver(result, order_of_rows(order), block)
        return result

    @compiled
    def kept_array(x: Any, result: Any, order: Any, block: Any, out: Any) -> Any:
        deliver(result, order_of_rows(order), block)
        return result.reshape(kept_shape(x.shape))

    @compiled
    def array_into(x: Any, result: Any, order: Any, block: Any, out: Any) -> Any:
        deliver(result, order_of_rows(order), block)
        out[...] = result.reshape(kept_shape(x.shape))
        return out

    if rest == 0:
        last = number_into if given else kept_number if keep else number
        return none_but_checked if given else nothing, on_stack, last
    if keep:
        return fresh_and_checked if given else fresh, in_result, array_into if given else kept_array
    return taken if given else fresh, in_result, array


# --- softmax, log_softmax, logsumexp ------------------------------------------------------------------------


def _flat(x: Any) -> Any:
    """The type of a 0-d array as a row of one."""
    return types.Array(x.dtype, 1, "C", readonly=not x.mutable, aligned=x.aligned)


def _activation(function: str, hidden: float, x: Any, axis: Any, where: Any, temperature: Any, out: Any) -> Run:
    """softmax or log_softmax; `hidden` is what masked entries get."""
    dtype = real_array(function, "x", x)
    axes = _several_axes(function, x, axis)
    kind = KINDS[dtype]
    beta = _beta(function, temperature, kind)
    kernel = getattr(kernels.activations, function)

    @merged
    def launch(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, weights: Any) -> None:
        kernel(0, rows, room, x, y, beta)

    launched = _switched(launch, not isinstance(temperature, float), False)
    if x.ndim == 0:
        return _one_item(function, hidden, x, dtype, where, temperature, out)
    if absent(where) or constant(where) is True:
        whole = _pointwise(function, x, axes, dtype, out, launched)

        @merged
        def run(x: Any, where: Any, temperature: Any, out: Any) -> Any:
            return whole(x, None, beta(temperature), None, None, out)

        return run
    _check_where(function, where, x)
    lay_out = layout(x, axes, last=False)
    result_for = _result(function, x, dtype, out)
    shapeless = not isinstance(where, types.Array)
    wrong = f"{function}: where does not broadcast to x"
    alone = absent(out)

    @merged
    def masked(x: Any, where: Any, temperature: Any, out: Any) -> Any:
        pair = beta(temperature)
        if not (shapeless or broadcasts(where, x.shape)):
            raise ValueError(wrong)
        order, shape = lay_out(x)
        result = result_for(x, out)
        y = target(result, order, shape, kind, None, None, None) if alone else np.empty(shape, kind)
        hide(y, x, where, order)
        near = stack(kind, NEAR)
        room = working_memory(near, shape, 1, kind)
        launched(shape[0] * shape[2], room, readable(y, shape, kind), None, y, pair, None, None)
        cover(y, x.shape, where, order, hidden)
        deliver(result, order, y)
        return result

    return masked


def _one_item(
    function: str, hidden: float, x: Any, dtype: Any, where: Any, temperature: Any, out: Any
) -> Run:
    """The same of a 0-d array: as a row of one."""
    check_out(function, out, dtype, 0)
    flat = _activation(function, hidden, _flat(x), -1, where, temperature, None)
    kind = KINDS[dtype]
    own = x.dtype

    @merged
    def scalar(x: Any, where: Any, temperature: Any, out: Any) -> Any:
        return flat(np.full(1, x[()]), where, temperature, None)[0]

    @merged
    def given(x: Any, where: Any, temperature: Any, out: Any) -> Any:
        out[()] = flat(np.full(1, x[()]), where, temperature, None)[0]
        return out

    return scalar if absent(out) else given


def _logsumexp(x: Any, axis: Any, where: Any, keepdims: Any, out: Any) -> Run:
    dtype = real_array("logsumexp", "x", x)
    axes = _several_axes("logsumexp", x, axis)
    keep = _flag("logsumexp", "keepdims", keepdims)
    if not isinstance(keep, bool):
        raise TypingError(f"logsumexp: keepdims must be a bool literal, got {keepdims}")
    kind = KINDS[dtype]
    if x.ndim == 0:
        check_out("logsumexp", out, dtype, 0)
        flat = _logsumexp(_flat(x), -1, where, False, None)
        alone = absent(out)

        @merged
        def scalar(x: Any, where: Any, out: Any) -> Any:
            return flat(np.full(1, x[()]), where, None)

        @merged
        def into(x: Any, where: Any, out: Any) -> Any:
            out[()] = flat(np.full(1, x[()]), where, None)
            return out

        return scalar if alone else into
    kernel = kernels.activations.logsumexp
    lay_out = layout(x, axes, last=False)
    shapeless = not isinstance(where, types.Array)
    if absent(where) or constant(where) is True:

        source_for = converter(x, axes, dtype)

        @merged
        def source_of(x: Any, where: Any, order: Any, shape: Any) -> Any:
            return source_for(x, order, shape, kind)

    else:
        _check_where("logsumexp", where, x)

        @compiled
        def source_of(x: Any, where: Any, order: Any, shape: Any) -> Any:
            if not (shapeless or broadcasts(where, x.shape)):
                raise ValueError("logsumexp: where does not broadcast to x")
            block = np.empty(shape, kind)
            hide(block, x, where, order)
            return readable(block, shape, kind)

    begin, block_for, finish = _row_result("logsumexp", x, axes, dtype, keep, out)

    @merged
    def run(x: Any, where: Any, out: Any) -> Any:
        order, shape = lay_out(x)
        rows = shape[0] * shape[2]
        result = begin(x, out)
        source = source_of(x, where, order, shape)
        few = stack(kind, 1)
        block = block_for(result, order, rows, few, source)
        near = stack(kind, NEAR)
        room = working_memory(near, shape, 1, kind)
        kernel(0, rows, room, source, block)
        return finish(x, result, order, block, out)

    return run


def _overload_activation(function: Any, hidden: float) -> None:
    name = function.__name__

    @_overload(function)
    def choose(
        x: Any, axis: Any = -1, *, where: Any = None, temperature: Any = 1.0, out: Any = None
    ) -> Run:
        run = _activation(name, hidden, x, axis, where, temperature, out)
        return lambda x, axis=-1, where=None, temperature=1.0, out=None: run(x, where, temperature, out)


_overload_activation(_activations.softmax, 0.0)
_overload_activation(_activations.log_softmax, -np.inf)


@_overload(_activations.logsumexp)
def _choose_logsumexp(x: Any, axis: Any = -1, *, where: Any = None, keepdims: Any = False, out: Any = None) -> Run:
    run = _logsumexp(x, axis, where, keepdims, out)
    return lambda x, axis=-1, where=None, keepdims=False, out=None: run(x, where, out)


# --- derivatives --------------------------------------------------------------------------------------------


def _jacobian(function: str, x: Any, axis: Any, temperature: Any, from_probs: Any, out: Any) -> Run:
    dtype = real_array(function, "x", x)
    axes = _one_axis(function, "x", x, axis)
    flag = _flag(function, "from_probs", from_probs)
    beta = _beta(function, temperature, KINDS[dtype])
    kernel = getattr(kernels.derivatives, function)

    @merged
    def launch(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, weights: Any) -> None:
        kernel(0, rows, room, x, y, beta, flag, weights)

    @merged
    def logarithmic(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, weights: Any) -> None:
        kernel(0, rows, room, x, y, beta)

    launched = logarithmic if function.startswith("log") else launch
    launched = _switched(launched, not isinstance(temperature, float), flag)
    square = _square(function, x, axes, dtype, out, launched)

    @merged
    def run(x: Any, temperature: Any, from_probs: Any, out: Any) -> Any:
        return square(x, None, beta(temperature), from_probs, None, out)

    return run


def _product(
    function: str, kernel_name: str, x: Any, name: str, v: Any, axis: Any, temperature: Any, from_probs: Any, out: Any
) -> Run:
    dtype = real_array(function, "x", x)
    axes = _one_axis(function, "x", x, axis)
    _same_ndim(function, name, v, "x", x)
    dtype = _widened(dtype, v)
    flag = _flag(function, "from_probs", from_probs)
    beta = _beta(function, temperature, KINDS[dtype])
    check = _check_same(function, name, "x")
    kernel = getattr(kernels.derivatives, kernel_name)

    @merged
    def launch(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, weights: Any) -> None:
        kernel(0, rows, room, x, v, y, beta, flag, weights)

    @merged
    def logarithmic(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, weights: Any) -> None:
        kernel(0, rows, room, x, v, y, beta)

    launched = logarithmic if function.startswith("log") else launch
    launched = _switched(launched, not isinstance(temperature, float), flag)
    whole = _pointwise(function, x, axes, dtype, out, launched, operand=v)

    @merged
    def run(x: Any, v: Any, temperature: Any, from_probs: Any, out: Any) -> Any:
        check(v, x)
        return whole(x, v, beta(temperature), from_probs, None, out)

    return run


@_overload(_derivatives.softmax_jacobian)
def _choose_softmax_jacobian(
    x: Any, axis: Any = -1, *, temperature: Any = 1.0, from_probs: Any = False, out: Any = None
) -> Run:
    run = _jacobian("softmax_jacobian", x, axis, temperature, from_probs, out)
    return lambda x, axis=-1, temperature=1.0, from_probs=False, out=None: run(x, temperature, from_probs, out)


@_overload(_derivatives.log_softmax_jacobian)
def _choose_log_softmax_jacobian(x: Any, axis: Any = -1, *, temperature: Any = 1.0, out: Any = None) -> Run:
    run = _jacobian("log_softmax_jacobian", x, axis, temperature, False, out)
    return lambda x, axis=-1, temperature=1.0, out=None: run(x, temperature, False, out)


@_overload(_derivatives.softmax_jvp)
def _choose_softmax_jvp(
    x: Any, tangent: Any, axis: Any = -1, *, temperature: Any = 1.0, from_probs: Any = False, out: Any = None
) -> Run:
    run = _product("softmax_jvp", "softmax_product", x, "tangent", tangent, axis, temperature, from_probs, out)
    return lambda x, tangent, axis=-1, temperature=1.0, from_probs=False, out=None: run(
        x, tangent, temperature, from_probs, out
    )


@_overload(_derivatives.softmax_vjp)
def _choose_softmax_vjp(
    x: Any, cotangent: Any, axis: Any = -1, *, temperature: Any = 1.0, from_probs: Any = False, out: Any = None
) -> Run:
    run = _product("softmax_vjp", "softmax_product", x, "cotangent", cotangent, axis, temperature, from_probs, out)
    return lambda x, cotangent, axis=-1, temperature=1.0, from_probs=False, out=None: run(
        x, cotangent, temperature, from_probs, out
    )


@_overload(_derivatives.log_softmax_jvp)
def _choose_log_softmax_jvp(
    x: Any, tangent: Any, axis: Any = -1, *, temperature: Any = 1.0, out: Any = None
) -> Run:
    run = _product("log_softmax_jvp", "log_softmax_jvp", x, "tangent", tangent, axis, temperature, False, out)
    return lambda x, tangent, axis=-1, temperature=1.0, out=None: run(x, tangent, temperature, False, out)


@_overload(_derivatives.log_softmax_vjp)
def _choose_log_softmax_vjp(
    x: Any, cotangent: Any, axis: Any = -1, *, temperature: Any = 1.0, out: Any = None
) -> Run:
    run = _product("log_softmax_vjp", "log_softmax_vjp", x, "cotangent", cotangent, axis, temperature, False, out)
    return lambda x, cotangent, axis=-1, temperature=1.0, out=None: run(x, cotangent, temperature, False, out)
