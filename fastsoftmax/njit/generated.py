"""What a call needs around a kernel, generated as LLVM code: copies, checks and numbers.

These could be functions that Numba compiles. But each of those takes Numba longer than the whole body of this
module takes, and a call of ours needs several. So this is where a user's function gets compiled fast.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from llvmlite import ir
from numba import typeof, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastsoftmax.runtime.numba_private import empty_array, impl_ret_borrowed, populate_array, return_error

_BOOL, _DOUBLE = ir.IntType(1), ir.DoubleType()

# --- steps that a call does not need --------------------------------------------------------------------------

_MOST = 10
"""At least as many as the parameters of the steps. Numba wants to know their number; all have a default."""
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
_STEP = inspect.Signature(
    [
        inspect.Parameter("typingctx", _POSITIONAL),
        *[inspect.Parameter(f"a{k}", _POSITIONAL, default=None) for k in range(_MOST)],
    ]
)


def _step(choose: Any) -> Callable[..., Any]:
    """The compiled function of up to `_MOST` arguments; ``choose(their types)`` is its type and its code."""

    def step(typingctx: Any, *arguments: Any) -> Any:
        given = [kind for kind in arguments if not isinstance(kind, types.Omitted)]
        result, codegen = choose(given)
        return result(*given, *[types.Omitted(None)] * (_MOST - len(given))), codegen

    step.__signature__ = _STEP  # type: ignore[attr-defined]
    made: Callable[..., Any] = intrinsic(step)
    return made


def always(value: Any) -> Callable[..., Any]:
    """The compiled function of any arguments that returns this constant."""
    kind = typeof(value)

    def constant(given: Any) -> Any:
        return kind, lambda context, builder, *_: context.get_constant_generic(builder, kind, value)

    return _step(constant)


@cache
def argument(k: int) -> Callable[..., Any]:
    """The compiled function that returns one of its arguments."""

    def one(given: Any) -> Any:
        kind = given[k]

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return impl_ret_borrowed(context, builder, kind, values[k])

        return kind, codegen

    return _step(one)


# --- numbers ------------------------------------------------------------------------------------------------


@intrinsic
def whole_number(typingctx: Any, value: Any) -> Any:
    """The integer of a float that is one: the result of a kernel that counts."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fptosi(values[0], context.get_value_type(types.intp))

    return types.intp(types.float64), codegen


@intrinsic
def number(typingctx: Any, value: Any, dtype: Any) -> Any:
    """A number or bool in another type, as from ``dtype(value)``."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return context.cast(builder, values[0], value, dtype.dtype)

    return dtype.dtype(value, dtype), codegen


@intrinsic
def count_or_nan(typingctx: Any, count: Any) -> Any:
    """A number of rows as a float64: the divisor of a mean; nan instead of 0."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        is_zero = builder.icmp_signed("==", values[0], values[0].type(0))
        return builder.select(is_zero, ir.Constant(_DOUBLE, float("nan")), builder.sitofp(values[0], _DOUBLE))

    return types.float64(types.intp), codegen


@intrinsic
def quotient_or_zero(typingctx: Any, number: Any, divisor: Any) -> Any:
    """The quotient of two integers that are not negative; 0 if the divisor is 0."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        number, divisor = values
        zero = divisor.type(0)
        is_zero = builder.icmp_signed("==", divisor, zero)
        quotient = builder.sdiv(number, builder.select(is_zero, divisor.type(1), divisor))
        return builder.select(is_zero, zero, quotient)

    return types.intp(types.intp, types.intp), codegen


def _narrowed(builder: Any, value: Any, kind: Any) -> Any:
    """A float64 in another type of floats."""
    return value if kind == _DOUBLE else builder.fptrunc(value, kind)


def _is_finite(builder: Any, value: Any) -> Any:
    size = builder.call(builder.module.declare_intrinsic("llvm.fabs", [value.type]), [value])
    return builder.fcmp_ordered("<", size, ir.Constant(value.type, float("inf")))


def _inverse(context: Any, builder: Any, value: Any, dtype: Any) -> tuple[Any, Any]:
    """1/value, rounded to `dtype`, and its error; 0 instead of the error if 1/value is not finite."""
    kind, one = context.get_value_type(dtype), ir.Constant(_DOUBLE, 1.0)
    high = _narrowed(builder, builder.fdiv(one, value), kind)
    minus = builder.fneg(high if kind == _DOUBLE else builder.fpext(high, _DOUBLE))
    kinds = ir.FunctionType(_DOUBLE, [_DOUBLE] * 3)
    fma = builder.module.declare_intrinsic("llvm.fma", [_DOUBLE], kinds)
    low = _narrowed(builder, builder.fdiv(builder.call(fma, [minus, value, one]), value), kind)
    return high, builder.select(_is_finite(builder, high), low, ir.Constant(kind, 0.0))


@intrinsic
def inverse(typingctx: Any, value: Any, dtype: Any) -> Any:
    """1/value as a pair, with the bits of `arrays.blocks.inverse_pair`: the remainder of a division is exact."""
    result = types.UniTuple(dtype.dtype, 2)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return context.make_tuple(builder, result, _inverse(context, builder, values[0], dtype.dtype))

    return result(types.float64, dtype), codegen


@intrinsic
def gradient_scale(typingctx: Any, divisor: Any, dtype: Any) -> Any:
    """`inverse` of the divisor of a mean; nan and 0 if the divisor is not finite."""
    result = types.UniTuple(dtype.dtype, 2)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        finite, kind = _is_finite(builder, values[0]), context.get_value_type(dtype.dtype)
        pair = _inverse(context, builder, values[0], dtype.dtype)
        others = ir.Constant(kind, float("nan")), ir.Constant(kind, 0.0)
        chosen = [builder.select(finite, a, b) for a, b in zip(pair, others, strict=True)]
        return context.make_tuple(builder, result, chosen)

    return result(types.float64, dtype), codegen


# --- errors -------------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def require(typingctx: Any, condition: Any, text: Any) -> Any:
    """Raise a ValueError with a text that is known when the call is compiled, unless a condition holds."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        with builder.if_then(builder.not_(values[0]), likely=False):
            return_error(context, builder, ValueError, text.literal_value)
        return context.get_dummy_value()

    return types.none(types.boolean, text), codegen


# --- arrays -------------------------------------------------------------------------------------------------


def load(context: Any, builder: Any, array: Any, address: Any) -> Any:
    """The item at an address in an array of numbers or bools."""
    item = builder.load(builder.bitcast(address, context.get_data_type(array.dtype).as_pointer()))
    if not array.aligned:
        item.align = 1
    return builder.trunc(item, _BOOL) if isinstance(array.dtype, types.Boolean) else item


def _visit(builder: Any, address: Any, shape: Sequence[Any], strides: Sequence[Any], body: Any) -> None:
    """Generate loops over an array, in C order, with ``body(address of an item)`` inside."""
    if not shape:
        body(address)
        return
    with cgutils.for_range(builder, shape[0]) as loop:
        there = builder.gep(address, [builder.mul(loop.index, strides[0])])
        _visit(builder, there, shape[1:], strides[1:], body)


def _copy(
    context: Any,
    builder: Any,
    array: Any,
    struct: Any,
    place: tuple[Sequence[Any], Sequence[Any]],
    data: Any,
    to: Any,
) -> None:
    """Copy an array with the shape and strides in `place` to an address, in C order, as numbers of type `to`."""
    at = cgutils.alloca_once_value(builder, data)

    def put(address: Any) -> None:
        item = load(context, builder, array, address)
        there = builder.load(at)
        builder.store(context.cast(builder, item, array.dtype, to), there)
        builder.store(builder.gep(there, [ir.IntType(64)(1)]), at)

    _visit(builder, builder.bitcast(struct.data, cgutils.voidptr_t), *place, put)


@intrinsic
def copied(typingctx: Any, array: Any, shape: Any, dtype: Any) -> Any:
    """A new C-contiguous array of this shape and dtype, with the items of an array of numbers in C order."""
    result = types.Array(dtype.dtype, len(shape), "C")

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        struct = context.make_array(array)(context, builder, values[0])
        made = empty_array(context, builder, result, cgutils.unpack_tuple(builder, values[1], len(shape)))
        place = tuple(cgutils.unpack_tuple(builder, part, array.ndim) for part in (struct.shape, struct.strides))
        data = context.make_array(result)(context, builder, made).data
        _copy(context, builder, array, struct, place, data, dtype.dtype)
        return made

    return result(array, shape, dtype), codegen


@intrinsic
def broadcast_block(typingctx: Any, array: Any, shape: Any, dtype: Any) -> Any:
    """An array as a read-only, C-contiguous one of this dtype, broadcast to a shape to which it fits.

    It is the array itself, if that is possible, else a copy.
    """
    ndim, behind = len(shape), len(shape) - array.ndim
    result = types.Array(dtype.dtype, ndim, "C", readonly=True)
    is_block = array.layout == "C" and array.aligned and array.dtype == dtype.dtype

    def copy(context: Any, builder: Any, struct: Any, items: Sequence[Any]) -> Any:
        own, steps = (cgutils.unpack_tuple(builder, part, array.ndim) for part in (struct.shape, struct.strides))
        zero = context.get_constant(types.intp, 0)
        strides = [zero] * behind
        for size, step in zip(own, steps, strict=True):
            strides.append(builder.select(builder.icmp_signed("==", size, size.type(1)), zero, step))
        made = empty_array(context, builder, result, items)
        data = context.make_array(result)(context, builder, made).data
        _copy(context, builder, array, struct, (items, strides), data, dtype.dtype)
        return made

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        struct = context.make_array(array)(context, builder, values[0])
        items = cgutils.unpack_tuple(builder, values[1], ndim)
        if not is_block:
            return copy(context, builder, struct, items)
        count = context.get_constant(types.intp, 1)
        for item in items:
            count = builder.mul(count, item)
        found = cgutils.alloca_once(builder, context.get_value_type(result))
        with builder.if_else(builder.icmp_signed("==", count, struct.nitems)) as (whole, part):
            with whole:
                view = _view(context, builder, result, struct, items)
                builder.store(impl_ret_borrowed(context, builder, result, view), found)
            with part:
                builder.store(copy(context, builder, struct, items), found)
        return builder.load(found)

    return result(array, shape, dtype), codegen


def _view(context: Any, builder: Any, result: Any, struct: Any, items: Sequence[Any]) -> Any:
    """The memory of a C-contiguous array as one of another shape."""
    strides = [struct.itemsize]
    for item in items[:0:-1]:
        strides.append(builder.mul(strides[-1], item))
    view = context.make_array(result)(context, builder)
    populate_array(
        view,
        data=builder.bitcast(struct.data, view.data.type),
        shape=list(items),
        strides=strides[: len(items)][::-1],
        itemsize=struct.itemsize,
        meminfo=struct.meminfo,
        parent=struct.parent,
    )
    return view._getvalue()


@intrinsic
def weights_or_none(typingctx: Any, weights: Any, nothing: Any) -> Any:
    """Weights as kernels take them: read-only; of size 0 in the memory of `nothing` instead of None."""
    result = nothing.copy(readonly=True)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        absent = isinstance(weights, types.NoneType)
        struct = context.make_array(nothing if absent else weights)(context, builder, values[int(absent)])
        size = context.get_constant(types.intp, 0)
        if not absent:
            size = cgutils.unpack_tuple(builder, struct.shape, 1)[0]
        view = _view(context, builder, result, struct, [size])
        return impl_ret_borrowed(context, builder, result, view)

    return result(weights, nothing), codegen


@intrinsic(prefer_literal=True)
def broadcast_shape(typingctx: Any, first: Any, second: Any, text: Any) -> Any:
    """The shape to which arrays of two shapes broadcast; a ValueError with this text if there is none."""
    ndim = max(len(first), len(second))
    result = types.UniTuple(types.intp, ndim)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        one, fits = context.get_constant(types.intp, 1), ir.Constant(_BOOL, 1)
        a, b = (cgutils.unpack_tuple(builder, value) for value in values[:2])
        items = []
        for n, m in zip([one] * (ndim - len(a)) + a, [one] * (ndim - len(b)) + b, strict=True):
            is_one, other_is_one = (builder.icmp_signed("==", size, one) for size in (n, m))
            same = builder.or_(builder.icmp_signed("==", n, m), builder.or_(is_one, other_is_one))
            fits = builder.and_(fits, same)
            items.append(builder.select(is_one, m, n))
        with builder.if_then(builder.not_(fits), likely=False):
            return_error(context, builder, ValueError, text.literal_value)
        return context.make_tuple(builder, result, items)

    return result(first, second, text), codegen


@intrinsic
def filled(typingctx: Any, shape: Any, value: Any) -> Any:
    """A new array of a shape, each item of which is a float."""
    result = types.Array(value, len(shape), "C")

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        made = empty_array(context, builder, result, cgutils.unpack_tuple(builder, values[0], len(shape)))
        struct = context.make_array(result)(context, builder, made)
        with cgutils.for_range(builder, struct.nitems) as loop:
            builder.store(values[1], builder.gep(struct.data, [loop.index]))
        return made

    return result(shape, value), codegen


@intrinsic
def stored(typingctx: Any, array: Any, numbers: Any) -> Any:
    """Write the numbers in a tuple to the first places of a contiguous array of floats."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(array)(context, builder, values[0]).data
        for k, (kind, value) in enumerate(zip(numbers, cgutils.unpack_tuple(builder, values[1]), strict=True)):
            item = context.cast(builder, value, kind, array.dtype)
            builder.store(item, builder.gep(data, [ir.IntType(64)(k)]))
        return context.get_dummy_value()

    return types.void(array, numbers), codegen


@intrinsic
def pair_of_integers(typingctx: Any, first: Any, second: Any) -> Any:
    """An array of two int64 on the stack; it lives as long as the function that asks for it."""
    result = types.Array(types.int64, 1, "C")

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = ir.IntType(64)
        with builder.goto_entry_block():
            block = builder.alloca(ir.ArrayType(word, 2))
        data = builder.bitcast(block, word.as_pointer())
        for k, value in enumerate(values):
            builder.store(value, builder.gep(data, [word(k)]))
        array = context.make_array(result)(context, builder)
        shape, strides = [context.get_constant(types.intp, 2)], [context.get_constant(types.intp, 8)]
        itemsize = strides[0]
        populate_array(array, data=data, shape=shape, strides=strides, itemsize=itemsize, meminfo=None)
        return array._getvalue()

    return result(types.int64, types.int64), codegen


@intrinsic
def longest_step(typingctx: Any, table: Any) -> Any:
    """The greatest difference of neighbours in an ascending, contiguous array of int64 that is not empty."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(table)(context, builder, values[0])
        one = data.nitems.type(1)
        longest = cgutils.alloca_once_value(builder, one.type(0))
        with cgutils.for_range(builder, builder.sub(data.nitems, one)) as loop:
            after, before = (
                builder.load(builder.gep(data.data, [k])) for k in (builder.add(loop.index, one), loop.index)
            )
            step, known = builder.sub(after, before), builder.load(longest)
            builder.store(builder.select(builder.icmp_signed(">", step, known), step, known), longest)
        return builder.load(longest)

    return types.intp(table), codegen


@intrinsic(prefer_literal=True)
def is_any_set(typingctx: Any, numbers: Any, first: Any, step: Any) -> Any:
    """Whether an item of a contiguous array of float64 is not 0, from one place on in steps."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        struct = context.make_array(numbers)(context, builder, values[0])
        found = cgutils.alloca_once_value(builder, ir.Constant(_BOOL, 0))
        size = cgutils.unpack_tuple(builder, struct.shape, 1)[0]
        start, by = (context.get_constant(types.intp, one.literal_value) for one in (first, step))
        with cgutils.for_range_slice(builder, start, size, by) as (index, _):
            item = builder.load(builder.gep(struct.data, [index]))
            is_set = builder.fcmp_unordered("!=", item, ir.Constant(_DOUBLE, 0.0))
            builder.store(builder.or_(builder.load(found), is_set), found)
        return builder.load(found)

    return types.boolean(numbers, first, step), codegen
