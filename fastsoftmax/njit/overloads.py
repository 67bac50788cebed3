"""The public functions inside a user's own ``@njit`` code.

Numba calls `register` before it first compiles anything (``[project.entry-points.numba_extensions]`` in
``pyproject.toml``), so that nobody has to. Importing this file is what registers; all the work is done when a call
is compiled: an overload looks at the types, complains or picks what is needed, and leaves a function that lays out
the arrays at run time and calls the kernel that the Python function calls, on one thread.

Numba knows no keyword-only parameters in compiled code: the signatures of the overloads have them, and decide what
a caller may write; those of their implementations do not. Overloads of more functions go to the end of the file.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from fastsoftmax import kernels
from fastsoftmax.api import activations, derivatives, entropy, losses
from fastsoftmax.arrays.blocks import split_temperature
from fastsoftmax.kernels.jit import OPTIONS
from fastsoftmax.kernels.simd.values import if_none
from fastsoftmax.kernels.traversal import COLUMN_LIMIT, FEW
from fastsoftmax.njit import segments
from fastsoftmax.njit.arguments import (
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
from fastsoftmax.njit.weights import (
    divisor_for,
    equal_weights_for,
    exponent_of_for,
    products_for,
    scaled_classes_for,
    scaled_for,
)

KINDS = {types.float32: np.float32, types.float64: np.float64}
REDUCTIONS = ("mean", "sum", "none")
NEAR = 2 * COLUMN_LIMIT
Run = Callable[..., Any]


def register() -> None:
    """Numba's entry point. Importing this file has done its part."""
    segments.register()


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
    """The compiled `arrays.blocks.inverse_temperature`: None where no temperature was given."""
    if isinstance(temperature, float):
        return merged(lambda temperature: None)
    _number(function, "temperature", temperature)
    wrong = f"{function}: temperature must be finite and > 0"
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
        if beta[0] * beta[1] * beta[2] == 1.0 and beta[3] == 0.0:
            launch(rows, room, x, v, y, None, chosen, weights)
        else:
            launch(rows, room, x, v, y, beta, chosen, weights)

    return hot


def _keep(out: Any) -> bool | None:
    """`Output.keep`, before it is known where `out` lies."""
    return True if absent(out) else None


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
        result = result_for((*shape_of_rows(x.shape), classes, classes), out)
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
    kernel, kernel_of_few = getattr(kernels.activations, function), getattr(kernels.few, function)

    @merged
    def launch(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, weights: Any) -> None:
        if rows <= FEW and x.shape[2] == 1 and x.shape[1] <= COLUMN_LIMIT:
            kernel_of_few(rows, x, y, beta)
        else:
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


def _one_item(function: str, hidden: float, x: Any, dtype: Any, where: Any, temperature: Any, out: Any) -> Run:
    """The same of a 0-d array: as a row of one."""
    check_out(function, out, dtype, 0)
    flat = _activation(function, hidden, _flat(x), -1, where, temperature, None)

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
    kernel, kernel_of_few = kernels.activations.logsumexp, kernels.few.logsumexp
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
        if rows <= FEW and shape[2] == 1 and shape[1] <= COLUMN_LIMIT:
            kernel_of_few(rows, source, block)
        else:
            kernel(0, rows, room, source, block)
        return finish(x, result, order, block, out)

    return run


def _overload_activation(function: Any, hidden: float) -> None:
    name = function.__name__

    @_overload(function)
    def choose(x: Any, axis: Any = -1, *, where: Any = None, temperature: Any = 1.0, out: Any = None) -> Run:
        run = _activation(name, hidden, x, axis, where, temperature, out)
        return lambda x, axis=-1, where=None, temperature=1.0, out=None: run(x, where, temperature, out)


_overload_activation(activations.softmax, 0.0)
_overload_activation(activations.log_softmax, -np.inf)


@_overload(activations.logsumexp)
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
    function: str,
    kernel_name: str,
    x: Any,
    name: str,
    v: Any,
    axis: Any,
    temperature: Any,
    from_probs: Any,
    out: Any,
) -> Run:
    dtype = real_array(function, "x", x)
    axes = _one_axis(function, "x", x, axis)
    _same_ndim(function, name, v, "x", x)
    dtype = _widened(dtype, v)
    flag = _flag(function, "from_probs", from_probs)
    beta = _beta(function, temperature, KINDS[dtype])
    check = _check_same(function, name, "x")
    kernel, keep = getattr(kernels.derivatives, kernel_name), _keep(out)

    @merged
    def launch(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, weights: Any) -> None:
        kernel(0, rows, room, x, v, y, if_none(flag, keep), beta, flag, weights)

    @merged
    def logarithmic(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, weights: Any) -> None:
        kernel(0, rows, room, x, v, y, keep, beta)

    launched = logarithmic if function.startswith("log") else launch
    launched = _switched(launched, not isinstance(temperature, float), flag)
    whole = _pointwise(function, x, axes, dtype, out, launched, operand=v)

    @merged
    def run(x: Any, v: Any, temperature: Any, from_probs: Any, out: Any) -> Any:
        check(v, x)
        return whole(x, v, beta(temperature), from_probs, None, out)

    return run


@_overload(derivatives.softmax_jacobian)
def _choose_softmax_jacobian(
    x: Any, axis: Any = -1, *, temperature: Any = 1.0, from_probs: Any = False, out: Any = None
) -> Run:
    run = _jacobian("softmax_jacobian", x, axis, temperature, from_probs, out)
    return lambda x, axis=-1, temperature=1.0, from_probs=False, out=None: run(x, temperature, from_probs, out)


@_overload(derivatives.log_softmax_jacobian)
def _choose_log_softmax_jacobian(x: Any, axis: Any = -1, *, temperature: Any = 1.0, out: Any = None) -> Run:
    run = _jacobian("log_softmax_jacobian", x, axis, temperature, False, out)
    return lambda x, axis=-1, temperature=1.0, out=None: run(x, temperature, False, out)


@_overload(derivatives.softmax_jvp)
def _choose_softmax_jvp(
    x: Any, tangent: Any, axis: Any = -1, *, temperature: Any = 1.0, from_probs: Any = False, out: Any = None
) -> Run:
    run = _product("softmax_jvp", "softmax_product", x, "tangent", tangent, axis, temperature, from_probs, out)
    return lambda x, tangent, axis=-1, temperature=1.0, from_probs=False, out=None: run(
        x, tangent, temperature, from_probs, out
    )


@_overload(derivatives.softmax_vjp)
def _choose_softmax_vjp(
    x: Any, cotangent: Any, axis: Any = -1, *, temperature: Any = 1.0, from_probs: Any = False, out: Any = None
) -> Run:
    run = _product("softmax_vjp", "softmax_product", x, "cotangent", cotangent, axis, temperature, from_probs, out)
    return lambda x, cotangent, axis=-1, temperature=1.0, from_probs=False, out=None: run(
        x, cotangent, temperature, from_probs, out
    )


@_overload(derivatives.log_softmax_jvp)
def _choose_log_softmax_jvp(
    x: Any, tangent: Any, axis: Any = -1, *, temperature: Any = 1.0, out: Any = None
) -> Run:
    run = _product("log_softmax_jvp", "log_softmax_jvp", x, "tangent", tangent, axis, temperature, False, out)
    return lambda x, tangent, axis=-1, temperature=1.0, out=None: run(x, tangent, temperature, False, out)


@_overload(derivatives.log_softmax_vjp)
def _choose_log_softmax_vjp(
    x: Any, cotangent: Any, axis: Any = -1, *, temperature: Any = 1.0, out: Any = None
) -> Run:
    run = _product("log_softmax_vjp", "log_softmax_vjp", x, "cotangent", cotangent, axis, temperature, False, out)
    return lambda x, cotangent, axis=-1, temperature=1.0, out=None: run(x, cotangent, temperature, False, out)


# --- losses -------------------------------------------------------------------------------------------------


def _literal_reduction(function: str, reduction: Any) -> str:
    value = constant(reduction)
    if not isinstance(value, str):
        raise TypingError(f"{function}: reduction must be a string literal, got {reduction}")
    if value not in REDUCTIONS:
        raise TypingError(f"{function}: reduction must be one of {REDUCTIONS}, got {value!r}")
    return value


def _per_row(function: str, name: str, argument: Any, x: Any, dtype: Any, convert_to: Any) -> Run:
    """The compiled ``argument, order of rows, number of rows, room for a few -> one number for each row``."""
    rest = x.ndim - 1
    kind = convert_to
    plain_number = isinstance(argument, (types.Integer, types.Float, types.Boolean))
    if rest == 0 and plain_number:

        @compiled
        def one(argument: Any, order: Any, rows: int, few: Any) -> Any:
            few[0] = argument
            return readable(few, (1,), kind)

        return one
    real_array(function, name, argument)
    if argument.ndim != rest:
        raise TypingError(f"{function}: {name} has {argument.ndim} dimensions, expected {rest}")
    if rest == 0:

        @compiled
        def zero_d(argument: Any, order: Any, rows: int, few: Any) -> Any:
            few[0] = argument[()]
            return readable(few, (1,), kind)

        return zero_d
    return merged(lambda argument, order, rows, few: convert(argument, order, (rows,), kind))


def _row_shape_check(function: str, name: str, argument: Any, x: Any, axes: tuple[int, ...]) -> Run:
    """The compiled check that an argument has one item for each row."""
    if absent(argument) or not isinstance(argument, types.Array) or x.ndim == 1:
        return merged(lambda argument, x: None)
    _, shape_of_rows, _ = row_layout(x, axes)
    wrong = f"{function}: {name} does not have the shape of the rows of logits"

    @compiled
    def check(argument: Any, x: Any) -> None:
        if not same_shape(argument.shape, shape_of_rows(x.shape)):
            raise ValueError(wrong)

    return check


class _Targets:
    """What the targets and options of a loss come to, as compiled functions: see `losses.RowTargets`.

    ``check(logits, targets, class_weight, sample_weight)`` raises what shapes and labels deserve; `labels`,
    `distributions`, `class_weights` and `samples` make what kernels take (None for what is not there); `count` is
    what rows count for.
    """

    def __init__(
        self,
        function: str,
        x: Any,
        axes: tuple[int, ...],
        dtype: Any,
        targets: Any,
        class_weight: Any,
        sample_weight: Any,
        ignore_index: Any,
        label_smoothing: Any,
    ) -> None:
        kind = KINDS[dtype]
        self.kind = kind
        self.soft = isinstance(targets, types.Array) and targets.ndim == x.ndim
        self.smooth = not isinstance(label_smoothing, float)
        if self.smooth:
            _number(function, "label_smoothing", label_smoothing)
        self._check_types(function, x, targets, ignore_index)
        ignoring = not absent(ignore_index)
        axis = axes[0]
        shapes = _check_same(function, "targets", "logits")
        if not self.soft:
            shapes = _row_shape_check(function, "targets", targets, x, axes)
        samples = _row_shape_check(function, "sample_weight", sample_weight, x, axes)
        weighted = not absent(class_weight)
        if weighted:
            real_array(function, "class_weight", class_weight)
            if class_weight.ndim != 1:
                raise TypingError(f"{function}: class_weight has {class_weight.ndim} dimensions, expected 1")
        wrong = f"{function}: class_weight does not have one item for each class"

        @compiled
        def check_classes(x: Any, class_weight: Any) -> None:
            if class_weight.size != x.shape[axis]:
                raise ValueError(wrong)

        classes = check_classes if weighted else merged(lambda x, class_weight: None)

        @merged
        def check(x: Any, targets: Any, class_weight: Any, sample_weight: Any) -> None:
            shapes(targets, x)
            classes(x, class_weight)
            samples(sample_weight, x)

        self.check = check
        self.class_weights = merged(lambda class_weight: None)
        if weighted:

            @compiled
            def class_weights(class_weight: Any) -> Any:
                block = convert(class_weight, (0,), (class_weight.size,), kind)
                return writable(block, (class_weight.size,), kind)

            self.class_weights = class_weights
        self.samples = merged(lambda sample_weight, order, rows, few: None)
        if not absent(sample_weight):
            self.samples = _per_row(function, "sample_weight", sample_weight, x, dtype, kind)
        self.distributions = merged(lambda targets, order, shape: None)
        self.labels = merged(lambda targets, order, shape, ignore_index, few: None)
        if self.soft:
            fits = converter(targets, axes, dtype) if straight(x, axes) else convert
            self.distributions = merged(lambda targets, order, shape: fits(targets, order, shape, kind))
        else:
            self.labels = _labels(function, x, targets, ignoring)
        self.weighted = weighted
        self.sampled = not absent(sample_weight)
        self.ignoring = ignoring
        self.counting = not self.soft and (weighted or self.sampled or ignoring)
        out_of_range = f"{function}: label_smoothing must be from 0 to 1"

        @compiled
        def shares(label_smoothing: Any, classes: int) -> Any:
            smoothing = np.float64(label_smoothing)
            if not 0.0 <= smoothing <= 1.0:
                raise ValueError(out_of_range)
            return kind(smoothing / max(classes, 1)), kind(1.0 - smoothing)

        self.shares = shares if self.smooth else merged(lambda smoothing, classes: (kind(0.0), kind(1.0)))

    def _check_types(self, function: str, x: Any, targets: Any, ignore_index: Any) -> None:
        index = constant(ignore_index)
        if index is not None and (isinstance(index, bool) or not isinstance(index, (int, types.Integer))):
            raise TypingError(f"{function}: ignore_index must be an integer or None, got {ignore_index}")
        if self.soft:
            real_array(function, "targets", targets)
            if index is not None:
                raise TypingError(f"{function}: ignore_index is for class indices, but targets are distributions")
            return
        if isinstance(targets, types.Integer) and x.ndim == 1:
            return
        real_array(function, "targets", targets)
        if targets.ndim != x.ndim - 1:
            raise TypingError(
                f"{function}: targets has {targets.ndim} dimensions, expected {x.ndim - 1} (class indices) or "
                f"{x.ndim} (distributions)"
            )
        if not isinstance(targets.dtype, types.Integer):
            raise TypingError(
                f"{function}: targets with {targets.ndim} dimensions are class indices and have dtype "
                f"{targets.dtype}, expected integers"
            )

    def _weights(self, with_classes: bool) -> Run:
        """The compiled weight of each row, with or without that of its class; None if all count alike.

        With the exponent of a power of two, as `arrays.weights.product_of_weights` has it.
        """
        if self.soft or not (self.ignoring or self.sampled or (with_classes and self.weighted)):
            return merged(lambda few, labels, class_weights, samples: (samples, 0))
        by_class, by_sample, kind = with_classes and self.weighted, self.sampled, self.kind
        if by_class and by_sample:
            return products_for(kind)

        @compiled
        def of_class(class_weights: Any, samples: Any, label: int, i: int) -> Any:
            return class_weights[label]

        @compiled
        def of_sample(class_weights: Any, samples: Any, label: int, i: int) -> Any:
            return samples[i]

        one = merged(lambda class_weights, samples, label, i: 1.0)
        factor = of_class if by_class else of_sample if by_sample else one

        @compiled
        def weigh(few: Any, labels: Any, class_weights: Any, samples: Any) -> Any:
            room = items(few, labels.size, kind)
            for i in range(labels.size):
                room[i] = 0.0
                if labels[i] >= 0:
                    room[i] = factor(class_weights, samples, labels[i], i)
            return readable(room, (room.size,), kind), 0

        return weigh

    def weighing(self, mean: bool) -> Run:
        """The compiled ``labels, class weights, samples, rows -> what kernels take of them, and the divisor``.

        First comes room for a few numbers, four times; the result is weights of classes, weights of rows that are
        multiplied by those of their classes, weights of rows beside those of classes, and what is left to divide
        by: see `losses.RowTargets`.
        """
        kind, counting = self.kind, self.counting
        counted_of, weights_of = self._weights(with_classes=True), self._weights(with_classes=False)
        divisor_of, scale = divisor_for(counting and mean, kind), scaled_for(kind)
        if not counting:

            @merged
            def unweighted(
                a: Any, b: Any, c: Any, d: Any, labels: Any, classes: Any, samples: Any, rows: int
            ) -> Any:
                value, _ = divisor_of(None, 0, rows)
                return classes, samples, samples, value

            return unweighted
        beside = self.smooth and self.weighted and mean
        largest = exponent_of_for(kind)
        up_of = largest if beside else merged(lambda classes: 0)
        normal = scaled_classes_for(kind) if beside else merged(lambda classes, exponent: classes)
        nowhere = (
            self._left_out() if self.weighted and mean else merged(lambda inside, labels, samples, divisor: None)
        )
        rows_beside = scale if self.sampled or self.ignoring else merged(lambda few, weights, rows, exponent: None)
        if beside and not (self.sampled or self.ignoring):
            rows_beside = equal_weights_for(kind)

        @merged
        def weighted(a: Any, b: Any, c: Any, d: Any, labels: Any, classes: Any, samples: Any, rows: int) -> Any:
            counted, exponent = counted_of(a, labels, classes, samples)
            weights, _ = weights_of(b, labels, classes, samples)
            value, down = divisor_of(counted, exponent, rows)
            up = up_of(classes)
            inside = scale(c, counted, rows, exponent - down)
            nowhere(inside, labels, samples, value)
            return (
                normal(classes, -up),
                readable(inside, (rows,), kind),
                rows_beside(d, weights, rows, up - down),
                value,
            )

        return weighted

    def _left_out(self) -> Run:
        """The compiled 0/0 of a mean over no weight: nan for the rows that have not been left out."""
        kind = self.kind
        counts = merged(lambda samples, i: True)
        if self.sampled:
            counts = compiled(lambda samples, i: samples[i] != 0.0)

        @compiled
        def nowhere(inside: Any, labels: Any, samples: Any, divisor: float) -> None:
            if np.isnan(divisor):
                for i in range(labels.size):
                    inside[i] = kind(np.nan) if labels[i] >= 0 and counts(samples, i) else kind(0.0)

        return nowhere


def _labels(function: str, x: Any, targets: Any, ignoring: bool) -> Run:
    """The compiled labels of the rows, checked: -1 for those that are ignored."""
    wrong = f"{function}: targets hold a label that is not from 0 to classes - 1"

    @compiled
    def checked(label: Any, classes: int) -> Any:
        if label < 0 or label >= classes:
            raise IndexError(wrong)
        return label

    @compiled
    def checked_or_ignored(label: Any, classes: int, ignore_index: Any) -> Any:
        if label == ignore_index:
            return np.int64(-1)
        return np.int64(checked(label, classes))

    if x.ndim == 1:
        given = merged(lambda targets: targets)
        if isinstance(targets, types.Array):
            given = merged(lambda targets: targets[()])

        @compiled
        def single(targets: Any, order: Any, shape: Any, ignore_index: Any, few: Any) -> Any:
            few[0] = checked(given(targets), shape[1])
            return readable(few, (1,), np.int64)

        @compiled
        def single_or_ignored(targets: Any, order: Any, shape: Any, ignore_index: Any, few: Any) -> Any:
            few[0] = checked_or_ignored(given(targets), shape[1], ignore_index)
            return readable(few, (1,), np.int64)

        return single_or_ignored if ignoring else single

    @compiled
    def all_checked(targets: Any, order: Any, shape: Any, ignore_index: Any, few: Any) -> Any:
        labels = convert(targets, order, (shape[0] * shape[2],), np.int64)
        outside = 0
        for i in range(labels.size):
            outside += labels[i] < 0 or labels[i] >= shape[1]
        if outside:
            raise IndexError(wrong)
        return labels

    @compiled
    def all_checked_or_ignored(targets: Any, order: Any, shape: Any, ignore_index: Any, few: Any) -> Any:
        labels = np.empty(shape[0] * shape[2], np.int64)
        moved = transposed(targets, order)
        for i, place in enumerate(np.ndindex(moved.shape)):
            labels[i] = checked_or_ignored(moved[place], shape[1], ignore_index)
        return readable(labels, (labels.size,), np.int64)

    return all_checked_or_ignored if ignoring else all_checked


def _scale(reduction: str, kind: Any) -> Run:
    """The compiled divisor -> what gradients are multiplied by, as a pair."""
    if reduction != "mean":
        return merged(lambda divisor: (kind(1.0), kind(0.0)))

    @compiled
    def scale(divisor: float) -> Any:
        if not np.isfinite(divisor):
            return kind(np.nan), kind(0.0)
        return inverse(divisor, kind)

    return scale


def _loss_result(function: str, x: Any, axes: tuple[int, ...], dtype: Any, reduction: str) -> tuple[Run, Run, Run]:
    """Where the losses of the rows go, and what the user gets of them: `_row_result`, or one number."""
    if reduction == "none":
        begin, block_for, finish = _row_result(function, x, axes, dtype, False, None)
        return (
            begin,
            block_for,
            merged(lambda x, result, order, block, divisor: finish(x, result, order, block, None)),
        )
    kind, total = KINDS[dtype], kernels.reductions.total
    mean = reduction == "mean"

    @compiled
    def reduce(block: Any, divisor: float) -> Any:
        value = total(readable(block, (block.size,), kind))
        return kind(value / divisor if mean else value)

    begin = merged(lambda x, out: None)
    block_for = merged(lambda result, order, rows, few, source: items(few, rows, kind))
    return begin, block_for, merged(lambda x, result, order, block, divisor: reduce(block, divisor))


# What a loss function returns: the loss, its gradient, or both.
LOSS, GRADIENT, BOTH = merged(lambda a, b: a), merged(lambda a, b: b), merged(lambda a, b: (a, b))


def _slope(
    function: str, x: Any, axes: tuple[int, ...], dtype: Any, out: Any, wanted: Any
) -> tuple[Run, Run, Run]:
    """Where the gradient goes: nowhere, if only the loss is wanted."""
    if wanted is LOSS:
        nothing = merged(lambda x, out: None)
        return nothing, merged(lambda r, order, shape, kind, a, b, c: None), merged(lambda r, order, block: None)
    return (_result(function, x, dtype, out), *exits(x, axes, out))


def _cross_entropy(
    function: str,
    wanted: Any,
    x: Any,
    targets: Any,
    axis: Any,
    class_weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    out: Any,
) -> Run:
    dtype = real_array(function, "logits", x)
    axes = _one_axis(function, "logits", x, axis)
    how = _literal_reduction(function, reduction)
    kind = KINDS[dtype]
    given = _Targets(function, x, axes, dtype, targets, class_weight, sample_weight, ignore_index, label_smoothing)
    check, shares, labels_of, classes_of = given.check, given.shares, given.labels, given.class_weights
    samples_of, distributions_of = given.samples, given.distributions
    weigh = given.weighing(how == "mean")
    lay_out = layout(x, axes, last=False)
    order_of_rows, _, _ = row_layout(x, axes)
    source_for = converter(x, axes, dtype)
    begin, block_for, finish = _loss_result(function, x, axes, dtype, how)
    slope_for, target_for, deliver_to = _slope(function, x, axes, dtype, out, wanted)
    scale_of = _scale(how, kind)
    plain, mixed = kernels.losses.cross_entropy, kernels.losses.soft_cross_entropy
    plain_of_few = kernels.few.cross_entropy
    soft, smooth = given.soft, given.smooth

    @merged
    def launch_plain(
        rows: Any,
        room: Any,
        x: Any,
        v: Any,
        labels: Any,
        classes: Any,
        base: Any,
        gain: Any,
        counted: Any,
        weights: Any,
        y: Any,
        losses: Any,
        scale: Any,
    ) -> None:
        if rows <= FEW and x.shape[2] == 1 and x.shape[1] <= COLUMN_LIMIT:
            plain_of_few(rows, x, labels, counted, y, losses, scale[0], scale[1])
        else:
            plain(0, rows, room, x, labels, counted, y, losses, scale[0], scale[1])

    @merged
    def launch_mixed(
        rows: Any,
        room: Any,
        x: Any,
        v: Any,
        labels: Any,
        classes: Any,
        base: Any,
        gain: Any,
        counted: Any,
        weights: Any,
        y: Any,
        losses: Any,
        scale: Any,
    ) -> None:
        mixed(0, rows, room, x, v, labels, classes, base, gain, weights, y, losses, scale[0], scale[1])

    @merged
    def launch_either(
        rows: Any,
        room: Any,
        x: Any,
        v: Any,
        labels: Any,
        classes: Any,
        base: Any,
        gain: Any,
        counted: Any,
        weights: Any,
        y: Any,
        losses: Any,
        scale: Any,
    ) -> None:
        if base == 0.0:
            launch_plain(rows, room, x, v, labels, classes, base, gain, counted, weights, y, losses, scale)
        else:
            launch_mixed(rows, room, x, v, labels, classes, base, gain, counted, weights, y, losses, scale)

    launch = launch_mixed if soft else launch_either if smooth else launch_plain

    @merged
    def run(
        x: Any, targets: Any, class_weight: Any, sample_weight: Any, ignore_index: Any, smoothing: Any, out: Any
    ) -> Any:
        check(x, targets, class_weight, sample_weight)
        order, shape = lay_out(x)
        rows = shape[0] * shape[2]
        base, gain = shares(smoothing, shape[1])
        by_row = order_of_rows(order)
        labels = labels_of(targets, by_row, shape, ignore_index, stack(np.int64, 1))
        slope = slope_for(x, out)
        losses = begin(x, None)
        source = source_for(x, order, shape, kind)
        second = distributions_of(targets, order, shape)
        classes = classes_of(class_weight)
        samples = samples_of(sample_weight, by_row, rows, stack(kind, 1))
        a, b, c, d = stack(kind, 1), stack(kind, 1), stack(kind, 1), stack(kind, 1)
        classes, counted, weights, divisor = weigh(a, b, c, d, labels, classes, samples, rows)
        block = block_for(losses, order, rows, stack(kind, 1), source)
        y = target_for(slope, order, shape, kind, source, second, samples)
        near = stack(kind, NEAR)
        room = working_memory(near, shape, 2, kind)
        launch(
            rows, room, source, second, labels, classes, base, gain, counted, weights, y, block, scale_of(divisor)
        )
        deliver_to(slope, order, y)
        return wanted(finish(x, losses, order, block, divisor), slope)

    return run


def _overload_cross_entropy(function: Any, wanted: Any) -> None:
    name = function.__name__

    @_overload(function)
    def choose(
        logits: Any,
        targets: Any,
        axis: Any = -1,
        *,
        class_weight: Any = None,
        sample_weight: Any = None,
        ignore_index: Any = None,
        label_smoothing: Any = 0.0,
        reduction: Any = "mean",
        out: Any = None,
    ) -> Run:
        run = _cross_entropy(
            name,
            wanted,
            logits,
            targets,
            axis,
            class_weight,
            sample_weight,
            ignore_index,
            label_smoothing,
            reduction,
            out,
        )

        def call(
            logits: Any,
            targets: Any,
            axis: Any = -1,
            class_weight: Any = None,
            sample_weight: Any = None,
            ignore_index: Any = None,
            label_smoothing: Any = 0.0,
            reduction: Any = "mean",
            out: Any = None,
        ) -> Any:
            return run(logits, targets, class_weight, sample_weight, ignore_index, label_smoothing, out)

        return call


@_overload(losses.cross_entropy)
def _choose_cross_entropy(
    logits: Any,
    targets: Any,
    axis: Any = -1,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: Any = None,
    label_smoothing: Any = 0.0,
    reduction: Any = "mean",
) -> Run:
    run = _cross_entropy(
        "cross_entropy",
        LOSS,
        logits,
        targets,
        axis,
        class_weight,
        sample_weight,
        ignore_index,
        label_smoothing,
        reduction,
        None,
    )

    def call(
        logits: Any,
        targets: Any,
        axis: Any = -1,
        class_weight: Any = None,
        sample_weight: Any = None,
        ignore_index: Any = None,
        label_smoothing: Any = 0.0,
        reduction: Any = "mean",
    ) -> Any:
        return run(logits, targets, class_weight, sample_weight, ignore_index, label_smoothing, None)

    return call


_overload_cross_entropy(losses.cross_entropy_grad, GRADIENT)
_overload_cross_entropy(losses.cross_entropy_with_grad, BOTH)


def _curvature(
    function: str,
    x: Any,
    targets: Any,
    tangent: Any,
    axis: Any,
    class_weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    out: Any,
) -> Run:
    """The Hessian, its diagonal or its product with a tangent: what softmax has, times a factor for each row."""
    dtype = real_array(function, "logits", x)
    axes = _one_axis(function, "logits", x, axis)
    check_tangent = merged(lambda tangent, x: None)
    if function == "cross_entropy_hvp":
        _same_ndim(function, "tangent", tangent, "logits", x)
        dtype = _widened(dtype, tangent)
        check_tangent = _check_same(function, "tangent", "logits")
    how = _literal_reduction(function, reduction)
    kind = KINDS[dtype]
    given = _Targets(function, x, axes, dtype, targets, class_weight, sample_weight, ignore_index, label_smoothing)
    check, shares, labels_of, classes_of = given.check, given.shares, given.labels, given.class_weights
    samples_of, distributions_of = given.samples, given.distributions
    last = function == "cross_entropy_hessian"
    lay_out = layout(x, axes, last)
    order_of_rows, _, _ = row_layout(x, axes)
    total, share_totals = kernels.reductions.total, kernels.reductions.share_totals
    product, variance = kernels.derivatives.softmax_product, kernels.derivatives.softmax_variance
    jacobian, keep = kernels.derivatives.softmax_jacobian, _keep(out)

    @merged
    def launch_product(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, weights: Any) -> None:
        product(0, rows, room, x, v, y, keep, None, None, weights)

    @merged
    def launch_variance(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, weights: Any) -> None:
        variance(0, rows, room, x, y, weights)

    @merged
    def launch_jacobian(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, weights: Any) -> None:
        jacobian(0, rows, room, x, y, None, None, weights)

    if last:
        apply = _square(function, x, axes, dtype, out, launch_jacobian)
    elif function == "cross_entropy_hvp":
        apply = _pointwise(function, x, axes, dtype, out, launch_product, operand=tangent)
    else:
        apply = _pointwise(function, x, axes, dtype, out, launch_variance)
    soft, smooth, mean, weighted = given.soft, given.smooth, how == "mean", given.weighted
    weigh = given.weighing(mean)
    of_rows = not absent(sample_weight) or (not soft and (given.ignoring or (smooth and weighted and mean)))

    def present(values: Any, i: int) -> Any:
        return np.float64(values[i])

    def one(values: Any, i: int) -> Any:
        return 1.0

    counted_at = merged(present if given.counting else one)
    weight_at = merged(present if of_rows else one)
    class_at = merged(present if weighted else one)
    all_classes = merged(lambda class_weights, classes: class_weights)
    if not weighted:
        all_classes = compiled(lambda class_weights, classes: np.ones(classes, kind))

    @compiled
    def reduced(share: float, weight: float, divisor: float) -> Any:
        if weight == 0.0:
            return kind(0.0)
        return kind(share * weight / divisor if mean else share * weight)

    @compiled
    def of_counted(
        factors: Any,
        v: Any,
        shape: Any,
        labels: Any,
        classes: Any,
        base: Any,
        gain: Any,
        counted: Any,
        weights: Any,
        divisor: float,
    ) -> None:
        for i in range(factors.size):
            factors[i] = reduced(1.0, counted_at(counted, i), divisor)

    @compiled
    def of_labels(
        factors: Any,
        v: Any,
        shape: Any,
        labels: Any,
        classes: Any,
        base: Any,
        gain: Any,
        counted: Any,
        weights: Any,
        divisor: float,
    ) -> None:
        if base == 0.0:
            of_counted(factors, v, shape, labels, classes, base, gain, counted, weights, divisor)
            return
        every = all_classes(classes, shape[1])
        base_share = np.float64(base) * total(readable(every, (every.size,), kind))
        for i in range(factors.size):
            share = base_share + np.float64(gain) * class_at(every, max(labels[i], 0))
            factors[i] = reduced(share, weight_at(weights, i), divisor)

    @compiled
    def of_distributions(
        factors: Any,
        v: Any,
        shape: Any,
        labels: Any,
        classes: Any,
        base: Any,
        gain: Any,
        counted: Any,
        weights: Any,
        divisor: float,
    ) -> None:
        every = all_classes(classes, shape[1])
        base_share = np.float64(base) * total(readable(every, (every.size,), kind))
        low = np.empty(factors.size, kind)
        near = stack(kind, NEAR)
        room = working_memory(near, shape, 1, kind)
        share_totals(0, factors.size, room, v, every, kind(0.0), kind(1.0), factors, low)
        for i in range(factors.size):
            share = base_share + np.float64(gain) * (np.float64(factors[i]) + low[i])
            factors[i] = reduced(share, weight_at(weights, i), divisor)

    fill = of_distributions if soft else of_labels if smooth else of_counted

    @merged
    def factors_of(
        few: Any,
        v: Any,
        shape: Any,
        labels: Any,
        classes: Any,
        base: Any,
        gain: Any,
        counted: Any,
        weights: Any,
        divisor: Any,
        rows: Any,
    ) -> Any:
        factors = items(few, rows, kind)
        fill(factors, v, shape, labels, classes, base, gain, counted, weights, divisor)
        return readable(factors, (rows,), kind)

    if not (soft or smooth or given.counting or mean):
        factors_of = merged(
            lambda few, v, shape, labels, classes, base, gain, counted, weights, divisor, rows: None
        )

    @merged
    def run(
        x: Any,
        targets: Any,
        tangent: Any,
        class_weight: Any,
        sample_weight: Any,
        ignore_index: Any,
        smoothing: Any,
        out: Any,
    ) -> Any:
        check_tangent(tangent, x)
        check(x, targets, class_weight, sample_weight)
        order, shape = lay_out(x)
        rows = shape[0] * shape[2]
        base, gain = shares(smoothing, shape[1])
        by_row = order_of_rows(order)
        labels = labels_of(targets, by_row, shape, ignore_index, stack(np.int64, 1))
        second = distributions_of(targets, order, shape)
        classes = classes_of(class_weight)
        samples = samples_of(sample_weight, by_row, rows, stack(kind, 1))
        a, b, c, d = stack(kind, 1), stack(kind, 1), stack(kind, 1), stack(kind, 1)
        classes, counted, weights, divisor = weigh(a, b, c, d, labels, classes, samples, rows)
        factors = factors_of(
            stack(kind, 1), second, shape, labels, classes, base, gain, counted, weights, divisor, rows
        )
        return apply(x, tangent, None, None, factors, out)

    return run


def _overload_curvature(function: Any) -> None:
    name = function.__name__

    @_overload(function)
    def choose(
        logits: Any,
        targets: Any,
        axis: Any = -1,
        *,
        class_weight: Any = None,
        sample_weight: Any = None,
        ignore_index: Any = None,
        label_smoothing: Any = 0.0,
        reduction: Any = "mean",
        out: Any = None,
    ) -> Run:
        run = _curvature(
            name,
            logits,
            targets,
            None,
            axis,
            class_weight,
            sample_weight,
            ignore_index,
            label_smoothing,
            reduction,
            out,
        )

        def call(
            logits: Any,
            targets: Any,
            axis: Any = -1,
            class_weight: Any = None,
            sample_weight: Any = None,
            ignore_index: Any = None,
            label_smoothing: Any = 0.0,
            reduction: Any = "mean",
            out: Any = None,
        ) -> Any:
            return run(logits, targets, None, class_weight, sample_weight, ignore_index, label_smoothing, out)

        return call


_overload_curvature(losses.cross_entropy_hessian)
_overload_curvature(losses.cross_entropy_hessian_diag)


@_overload(losses.cross_entropy_hvp)
def _choose_cross_entropy_hvp(
    logits: Any,
    targets: Any,
    tangent: Any,
    axis: Any = -1,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: Any = None,
    label_smoothing: Any = 0.0,
    reduction: Any = "mean",
    out: Any = None,
) -> Run:
    run = _curvature(
        "cross_entropy_hvp",
        logits,
        targets,
        tangent,
        axis,
        class_weight,
        sample_weight,
        ignore_index,
        label_smoothing,
        reduction,
        out,
    )

    def call(
        logits: Any,
        targets: Any,
        tangent: Any,
        axis: Any = -1,
        class_weight: Any = None,
        sample_weight: Any = None,
        ignore_index: Any = None,
        label_smoothing: Any = 0.0,
        reduction: Any = "mean",
        out: Any = None,
    ) -> Any:
        return run(logits, targets, tangent, class_weight, sample_weight, ignore_index, label_smoothing, out)

    return call


def _squared_error(
    function: str, wanted: Any, x: Any, targets: Any, axis: Any, sample_weight: Any, reduction: Any, out: Any
) -> Run:
    dtype = real_array(function, "logits", x)
    axes = _one_axis(function, "logits", x, axis)
    how = _literal_reduction(function, reduction)
    kind = KINDS[dtype]
    _same_ndim(function, "targets", targets, "logits", x)
    given = _Targets(function, x, axes, dtype, targets, None, sample_weight, None, 0.0)
    check, samples_of, distributions_of = given.check, given.samples, given.distributions
    lay_out = layout(x, axes, last=False)
    order_of_rows, _, _ = row_layout(x, axes)
    source_for = converter(x, axes, dtype)
    begin, block_for, finish = _loss_result(function, x, axes, dtype, how)
    slope_for, target_for, deliver_to = _slope(function, x, axes, dtype, out, wanted)
    scale_of = _scale(how, kind)
    weighted = given.sampled and how == "mean"
    kernel, divisor_of = kernels.losses.squared_error, divisor_for(weighted, kind)
    scale = scaled_for(kind)
    without = merged(lambda few, samples, rows, exponent: samples)
    if weighted:
        without = merged(
            lambda few, samples, rows, exponent: readable(scale(few, samples, rows, exponent), (rows,), kind)
        )
    keep = None if wanted is LOSS else _keep(out)

    @merged
    def run(x: Any, targets: Any, sample_weight: Any, out: Any) -> Any:
        check(x, targets, None, sample_weight)
        order, shape = lay_out(x)
        rows = shape[0] * shape[2]
        slope = slope_for(x, out)
        losses = begin(x, None)
        source = source_for(x, order, shape, kind)
        second = distributions_of(targets, order, shape)
        samples = samples_of(sample_weight, order_of_rows(order), rows, stack(kind, 1))
        divisor, down = divisor_of(samples, 0, rows)
        samples = without(stack(kind, 1), samples, rows, -down)
        block = block_for(losses, order, rows, stack(kind, 1), source)
        y = target_for(slope, order, shape, kind, source, second, samples)
        near = stack(kind, NEAR)
        room = working_memory(near, shape, 2, kind)
        scale = scale_of(divisor)
        kernel(0, rows, room, source, second, samples, y, block, keep, scale[0], scale[1])
        deliver_to(slope, order, y)
        return wanted(finish(x, losses, order, block, divisor), slope)

    return run


def _overload_squared_error(function: Any, wanted: Any) -> None:
    name = function.__name__

    @_overload(function)
    def choose(
        logits: Any,
        targets: Any,
        axis: Any = -1,
        *,
        sample_weight: Any = None,
        reduction: Any = "mean",
        out: Any = None,
    ) -> Run:
        run = _squared_error(name, wanted, logits, targets, axis, sample_weight, reduction, out)
        return lambda logits, targets, axis=-1, sample_weight=None, reduction="mean", out=None: run(
            logits, targets, sample_weight, out
        )


@_overload(losses.squared_error)
def _choose_squared_error(
    logits: Any, targets: Any, axis: Any = -1, *, sample_weight: Any = None, reduction: Any = "mean"
) -> Run:
    run = _squared_error("squared_error", LOSS, logits, targets, axis, sample_weight, reduction, None)
    return lambda logits, targets, axis=-1, sample_weight=None, reduction="mean": run(
        logits, targets, sample_weight, None
    )


_overload_squared_error(losses.squared_error_grad, GRADIENT)
_overload_squared_error(losses.squared_error_with_grad, BOTH)


# --- entropy ------------------------------------------------------------------------------------------------


def _entropies(function: str, wanted: Any, x: Any, axis: Any, temperature: Any, out: Any) -> Run:
    dtype = real_array(function, "x", x)
    axes = _one_axis(function, "x", x, axis)
    kind = KINDS[dtype]
    beta = _beta(function, temperature, kind)
    lay_out = layout(x, axes, last=False)
    source_for = converter(x, axes, dtype)
    alone = wanted is LOSS
    begin, block_for, finish = _row_result(function, x, axes, dtype, False, out if alone else None)
    slope_for, target_for, deliver_to = _slope(function, x, axes, dtype, out, wanted)
    kernel = kernels.entropy.entropy
    rows_out = merged(lambda out: out) if alone else merged(lambda out: None)

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
        near = stack(kind, NEAR)
        room = working_memory(near, shape, 1, kind)
        kernel(0, rows, room, source, y, block, pair)
        deliver_to(slope, order, y)
        return wanted(finish(x, result, order, block, rows_out(out)), slope)

    return run


def _overload_entropy(function: Any, wanted: Any) -> None:
    name = function.__name__

    @_overload(function)
    def choose(x: Any, axis: Any = -1, *, temperature: Any = 1.0, out: Any = None) -> Run:
        run = _entropies(name, wanted, x, axis, temperature, out)
        return lambda x, axis=-1, temperature=1.0, out=None: run(x, temperature, out)


_overload_entropy(entropy.softmax_entropy, LOSS)
_overload_entropy(entropy.softmax_entropy_with_grad, BOTH)
