"""`arrays.blocks` for compiled callers: it turns any array into a block (outer, classes, inner).

While the caller is compiled, types decide on the dtype, the axes and the options in use. At run time shapes and
strides decide, by the rules of `arrays.blocks.Problem`, so that kernels get the same blocks as from Python and
results agree to the last bit. This code is serial. It allocates results, working memory, and copies of arrays
that are no blocks.

The functions in the first part run while types are inferred; those in the second are compiled into the caller.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from fastsoftmax._spec import Function
from fastsoftmax._vectors import COLUMN_LIMIT, GROUP_LIMIT, VECTOR_BYTES
from fastsoftmax.arrays.blocks import INNER_LIMIT, TILE_BYTES, TILE_CLASSES
from fastsoftmax.arrays.options import REDUCTIONS
from fastsoftmax.kernels.jit import F
from fastsoftmax.machine.external import external
from fastsoftmax.machine.frontend import NO_WRAPPERS, OPTIONS
from fastsoftmax.njit.generated import always, argument, copied, weights_or_none
from fastsoftmax.runtime.numba_private import (
    empty_array,
    impl_ret_borrowed,
    lean_options,
    populate_array,
)

Run = Callable[..., Any]
KINDS = {types.float32: np.float32, types.float64: np.float64}


class Call:
    """A call that is being compiled: its function and the types of its arguments.

    ``call[name]`` is the type of an argument, or the default if it was left out; None if there is no such
    parameter. `names` are the parameters of the operands, in the order of ``function.operands``.
    """

    def __init__(self, function: Function, arguments: dict[str, Any]) -> None:
        self.function = function
        self.name = function.name
        self.arguments = arguments
        self.names = list(arguments)[: len(function.operands)]

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self.arguments

    def name_of(self, role: str) -> str:
        """The parameter of the operand with this role; the role itself if there is none."""
        return dict(zip(self.function.operands, self.names, strict=True)).get(role, role)

    def replaced(self, **arguments: Any) -> "Call":
        """The same call with other arguments."""
        return Call(self.function, self.arguments | arguments)

    def kernel(self, prefix: str = "") -> Any:
        """The kernel of the function; `prefix` selects a variant."""
        module, _, name = self.function.kernel.partition(".")
        return external(f"{module}.{prefix}{name}")


def absent(argument: Any) -> bool:
    """Whether an argument is None or was left out and defaults to None."""
    return argument is None or isinstance(argument, types.NoneType)


def constant(argument: Any) -> Any:
    """The value of a literal or of a default; the type itself if the value is known at run time only."""
    if isinstance(argument, types.Literal):
        return argument.literal_value
    if isinstance(argument, types.NoneType):
        return None
    if isinstance(argument, types.BaseTuple):
        return tuple(constant(item) for item in argument)
    return argument


def real_array(function: str, name: str, argument: Any) -> Any:
    """The dtype in which an array of real numbers is computed."""
    if not isinstance(argument, types.Array):
        raise TypingError(f"{function}: {name} must be an array, got {argument}")
    dtype = argument.dtype
    if dtype in (types.float32, types.float64):
        return dtype
    if isinstance(dtype, (types.Integer, types.Boolean)):
        return types.float64
    raise TypingError(f"{function}: {name} has dtype {dtype}, expected float32, float64, integers or bools")


def check_number(function: str, name: str, argument: Any) -> None:
    """TypingError unless the argument is a number."""
    value = constant(argument)
    if not isinstance(value, (int, float, types.Integer, types.Float, types.Boolean)):
        raise TypingError(f"{function}: {name} must be a number, got {argument}")


def literal_reduction(function: str, reduction: Any) -> str:
    """The value of `reduction`, which must be a string literal and one of `REDUCTIONS`."""
    value = constant(reduction)
    if not isinstance(value, str):
        raise TypingError(f"{function}: reduction must be a string literal, got {reduction}")
    if value not in REDUCTIONS:
        raise TypingError(f"{function}: reduction must be one of {REDUCTIONS}, got {value!r}")
    return value


def check_ignore_index(function: str, ignore_index: Any) -> None:
    """TypingError unless `ignore_index` is an integer or None."""
    index = constant(ignore_index)
    if index is not None and (isinstance(index, bool) or not isinstance(index, (int, types.Integer))):
        raise TypingError(f"{function}: ignore_index must be an integer or None, got {ignore_index}")


def literal_axes(function: str, axis: Any, ndim: int, several: bool) -> tuple[int, ...]:
    """The axis or axes as non-negative positions."""
    value = constant(axis)
    if several and value is None:
        return tuple(range(ndim))
    items = value if several and isinstance(value, tuple) else (value,)
    if any(type(item) is not int for item in items):
        expected = "an integer literal, a tuple of them or None" if several else "an integer literal"
        raise TypingError(f"{function}: axis must be {expected}, got {axis}")
    for item in items:
        if not -ndim <= item < ndim:
            raise TypingError(f"{function}: axis {item} is out of bounds for array of dimension {ndim}")
    axes = tuple(item % ndim for item in items)
    if len(set(axes)) != len(axes):
        raise TypingError(f"{function}: axis {value} names an axis twice")
    return axes


def check_out(function: str, out: Any, dtype: Any, ndim: int) -> None:
    """TypingError unless `out` is absent or a writable array of this dtype and number of dimensions."""
    if absent(out):
        return
    if not isinstance(out, types.Array):
        raise TypingError(f"{function}: out must be an array, got {out}")
    if out.ndim != ndim:
        raise TypingError(f"{function}: out has {out.ndim} dimensions, expected {ndim}")
    if out.dtype != dtype:
        raise TypingError(f"{function}: out has dtype {out.dtype}, expected {dtype}")
    if not out.mutable:
        raise TypingError(f"{function}: out is read-only")


def compiled(function: F) -> F:
    """A function that is compiled into its callers."""
    return cast(F, njit(**OPTIONS, **NO_WRAPPERS, **lean_options())(function))


def merged(function: F) -> F:
    """A function whose statements become part of its caller.

    For functions around a kernel: every separate function between the kernel and the user's would be one more in
    which LLVM optimises the whole kernel again.
    """
    function.is_merged = True  # type: ignore[attr-defined]  # `written` runs such functions itself
    return cast(F, njit(**OPTIONS, inline="always")(function))


def classes_last(x: Any, axes: tuple[int, ...]) -> bool:
    """Whether the type alone shows that a block of x has its classes last (inner = 1)."""
    return len(axes) != 1 or bool(x.layout == "C" and axes[0] == x.ndim - 1)


def layout(x: Any, axes: tuple[int, ...], last: bool) -> Any:
    """The compiled ``x -> (order, (outer, classes, inner))``, by the rules of `arrays.blocks.Problem._lay_out`."""
    ndim = x.ndim
    natural = tuple(range(ndim))
    moved = tuple([a for a in natural if a not in axes]) + axes
    if last or classes_last(x, axes):
        rows = tuple([a for a in natural if a not in axes])
        return merged(lambda x: (moved, (product_of(x.shape, rows), product_of(x.shape, axes), 1)))
    axis, others = axes[0], tuple([a for a in natural if a not in axes])
    in_order = x.layout == "C"

    @compiled
    def lay_out_by_memory(x: Any) -> Any:
        order = natural if in_order else memory_order(x, natural)
        classes, inner, behind = x.shape[axis], 1, False
        for a in order:
            if behind:
                inner *= x.shape[a]
            behind = behind or a == axis
        if inner != 1 and (inner < INNER_LIMIT or classes > TILE_CLASSES):
            order, inner = moved, 1
        return order, (product_of(x.shape, others) // inner, classes, inner)

    return lay_out_by_memory


def row_layout(x: Any, axes: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """The layout of results with one number for each row: three compiled functions.

    ``order -> the order of the result's axes in which the block counts its rows``, ``shape of x -> shape of the
    result``, and the latter with the axes of the classes kept, of length 1.
    """
    rest = tuple([a for a in range(x.ndim) if a not in axes])
    natural = tuple(range(len(rest)))

    shape_of_rows = merged(lambda shape: picked(shape, rest))

    @compiled
    def kept_shape(shape: Any) -> Any:
        result = shape
        for a in axes:
            result = tuple_setitem(result, a, 1)
        return result

    if len(axes) != 1 or x.layout == "C" or len(rest) < 2:
        return merged(lambda order: natural), shape_of_rows, kept_shape
    axis = axes[0]

    @compiled
    def order_of_rows(order: Any) -> Any:
        result = natural
        i = 0
        for a in order:
            if a != axis:
                result = tuple_setitem(result, i, a - 1 if a > axis else a)
                i += 1
        return result

    return order_of_rows, shape_of_rows, kept_shape


def straight(array: Any, axes: tuple[int, ...]) -> bool:
    """Whether the type alone shows that an array is a block: aligned, C-contiguous, with the classes last."""
    last = tuple(range(array.ndim - len(axes), array.ndim))
    return bool(array.layout == "C" and array.aligned and axes == last)


def converter(array: Any, axes: tuple[int, ...], dtype: Any) -> Any:
    """`convert`, or a view if the type shows that the array is a block of this dtype."""
    if straight(array, axes) and array.dtype == dtype:
        return merged(lambda array, order, shape, kind: readable(array, shape, kind))
    return convert


def exits(x: Any, axes: tuple[int, ...], out: Any) -> tuple[Any, Any]:
    """`target` and `deliver`, or simpler forms if the types show that the result is a block."""
    if not straight(x, axes) or not (absent(out) or straight(out, axes)):
        return target, deliver
    if absent(out):
        at_once = merged(lambda result, order, shape, kind, a, b, c: writable(result, shape, kind))
        return at_once, always(None)
    return target_of_block, deliver_block


# --- compiled into the caller -------------------------------------------------------------------------------


@intrinsic
def extent(typingctx: Any, array: Any) -> Any:
    """First address and number of bytes of a contiguous array; zeros for None."""
    result = types.UniTuple(types.intp, 2)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        zero = context.get_constant(types.intp, 0)
        if isinstance(array, types.NoneType):
            return context.make_tuple(builder, result, (zero, zero))
        struct = context.make_array(array)(context, builder, values[0])
        size = builder.mul(struct.nitems, struct.itemsize)
        first = builder.ptrtoint(struct.data, context.get_value_type(types.intp))
        return context.make_tuple(builder, result, (first, size))

    return result(array), codegen


def _view(read_only: bool, array: Any, shape: Any, dtype: Any) -> Any:
    if isinstance(array, types.NoneType):
        return array(array, shape, dtype), lambda context, *_: context.get_dummy_value()
    result = types.Array(dtype.dtype, len(shape), "C", readonly=read_only)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        struct = context.make_array(array)(context, builder, values[0])
        items = cgutils.unpack_tuple(builder, values[1], len(shape))
        strides = [struct.itemsize]
        for item in items[:0:-1]:
            strides.append(builder.mul(strides[-1], item))
        view = context.make_array(result)(context, builder)
        populate_array(
            view,
            data=builder.bitcast(struct.data, view.data.type),
            shape=items,
            strides=strides[: len(items)][::-1],
            itemsize=struct.itemsize,
            meminfo=struct.meminfo,
            parent=struct.parent,
        )
        return impl_ret_borrowed(context, builder, result, view._getvalue())

    return result(array, shape, dtype), codegen


@intrinsic
def writable(typingctx: Any, array: Any, shape: Any, dtype: Any) -> Any:
    """The memory of a contiguous array as a writable, C-contiguous one of this shape and dtype; None for None."""
    return _view(False, array, shape, dtype)


@intrinsic
def readable(typingctx: Any, array: Any, shape: Any, dtype: Any) -> Any:
    """`writable`, but read-only, as kernels take their inputs."""
    return _view(True, array, shape, dtype)


@intrinsic
def transposed(typingctx: Any, array: Any, order: Any) -> Any:
    """``array.transpose(order)``."""
    ndim = array.ndim
    result = array.copy(layout="A")

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        struct = context.make_array(array)(context, builder, values[0])
        places = cgutils.unpack_tuple(builder, values[1], ndim)

        def permuted(packed: Any) -> list[Any]:
            room = cgutils.alloca_once_value(builder, packed)
            zero = ir.IntType(32)(0)
            return [builder.load(builder.gep(room, [zero, place])) for place in places]

        view = context.make_array(result)(context, builder)
        populate_array(
            view,
            data=struct.data,
            shape=permuted(struct.shape),
            strides=permuted(struct.strides),
            itemsize=struct.itemsize,
            meminfo=struct.meminfo,
            parent=struct.parent,
        )
        return impl_ret_borrowed(context, builder, result, view._getvalue())

    return result(array, order), codegen


def _places(kind: Any) -> tuple[int, ...]:
    """The numbers in the type of a tuple of literals."""
    return tuple([item.literal_value for item in kind])


@intrinsic(prefer_literal=True)
def product_of(typingctx: Any, shape: Any, axes: Any) -> Any:
    """The product of the items of a tuple at places that are known when the call is compiled."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        items, product = cgutils.unpack_tuple(builder, values[0]), context.get_constant(types.intp, 1)
        for place in _places(axes):
            product = builder.mul(product, items[place])
        return product

    return types.intp(shape, axes), codegen


@intrinsic(prefer_literal=True)
def picked(typingctx: Any, shape: Any, places: Any) -> Any:
    """The tuple of the items of a tuple at places that are known when the call is compiled."""
    result = types.UniTuple(types.intp, len(places))

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        items = cgutils.unpack_tuple(builder, values[0])
        return context.make_tuple(builder, result, [items[place] for place in _places(places)])

    return result(shape, places), codegen


@intrinsic
def empty(typingctx: Any, shape: Any, dtype: Any) -> Any:
    """``numpy.empty`` for a tuple, without the function that Numba would compile for it."""
    result = types.Array(dtype.dtype, len(shape), "C")

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return empty_array(context, builder, result, cgutils.unpack_tuple(builder, values[0], len(shape)))

    return result(shape, dtype), codegen


@intrinsic
def tuple_setitem(typingctx: Any, items: Any, i: Any, value: Any) -> Any:
    """A tuple with another value for item `i`; `i` is not checked."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        room = cgutils.alloca_once_value(builder, values[0])
        builder.store(values[2], builder.gep(room, [values[1].type(0), values[1]], inbounds=True))
        return builder.load(room)

    return items(items, i, items.dtype), codegen


@intrinsic
def usable(typingctx: Any, array: Any, dtype: Any) -> Any:
    """Whether the type of an array allows a kernel to use it without a copy, if it is contiguous."""
    fits = array.dtype == dtype.dtype and array.aligned

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return context.get_constant(types.boolean, fits)

    return types.boolean(array, dtype), codegen


@intrinsic(prefer_literal=True)
def stack(typingctx: Any, dtype: Any, vectors: Any) -> Any:
    """Working memory for `vectors` vectors on the stack; it lives as long as the function that asks for it."""
    result = types.Array(dtype.dtype, 1, "C")
    itemsize = dtype.dtype.bitwidth // 8
    size = vectors.literal_value * VECTOR_BYTES // itemsize

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        element = context.get_data_type(dtype.dtype)
        with builder.goto_entry_block():
            block = builder.alloca(ir.ArrayType(element, size))
        block.align = VECTOR_BYTES
        array = context.make_array(result)(context, builder)
        populate_array(
            array,
            data=builder.bitcast(block, element.as_pointer()),
            shape=[context.get_constant(types.intp, size)],
            strides=[context.get_constant(types.intp, itemsize)],
            itemsize=context.get_constant(types.intp, itemsize),
            meminfo=None,
        )
        return array._getvalue()

    return result(dtype, vectors), codegen


def is_ignored(ignoring: bool) -> Run:
    """The compiled ``label, ignore_index -> whether the row is ignored``; False without an `ignore_index`."""
    if ignoring:
        return merged(lambda label, ignore_index: label == ignore_index)
    return always(False)


@compiled
def contiguous(array: Any, order: Any) -> bool:
    """Whether an array is contiguous if its axes are taken in this order."""
    if array.size == 0:
        return True
    expected = array.itemsize
    for i in range(len(order) - 1, -1, -1):
        n = array.shape[order[i]]
        if n != 1:
            if array.strides[order[i]] != expected:
                return False
            expected *= n
    return True


@compiled
def memory_order(x: Any, natural: Any) -> Any:
    """The order of the axes in which x is contiguous; the natural order if there is none."""
    if contiguous(x, natural):
        return natural
    order = natural
    for i in range(1, len(natural)):  # insertion sort is stable for equal strides
        j = i
        while j > 0 and x.strides[order[j - 1]] < x.strides[order[j]]:
            earlier, later = order[j - 1], order[j]
            order = tuple_setitem(tuple_setitem(order, j - 1, later), j, earlier)
            j -= 1
    return order if contiguous(x, order) else natural


@compiled
def apart(block: Any, other: Any) -> Any:
    """Whether two contiguous arrays share no memory."""
    first, size = extent(block)
    second, other_size = extent(other)
    return first + size <= second or second + other_size <= first


def overlap(out: Any) -> Run:
    """The compiled ``output, operand -> whether a kernel's output may lie over it``: not if there is no `out`."""
    if absent(out):
        return always(False)
    return compiled(lambda block, operand: not apart(block, operand))


@compiled
def harmless(block: Any, source: Any) -> Any:
    """Whether a kernel may read `source` and write `block`: they share no memory or lie at the same place."""
    if source is None:
        return True
    return apart(block, source) or (extent(block) == extent(source) and block.size == source.size)


@intrinsic
def same_shape(typingctx: Any, a: Any, b: Any) -> Any:
    """Whether two shapes of the same length are equal."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        equal = ir.Constant(ir.IntType(1), 1)
        for one, other in zip(*(cgutils.unpack_tuple(builder, value) for value in values), strict=True):
            equal = builder.and_(equal, builder.icmp_signed("==", one, other))
        return equal

    return types.boolean(a, b), codegen


@compiled
def convert(array: Any, order: Any, shape: Any, dtype: Any) -> Any:
    """An array as a read-only block of this shape: a view if a kernel can use its memory, else a copy."""
    if usable(array, dtype) and contiguous(array, order):
        return readable(array, shape, dtype)
    return readable(copied(transposed(array, order), shape, dtype), shape, dtype)


@compiled
def target(result: Any, order: Any, shape: Any, dtype: Any, source: Any, second: Any, third: Any) -> Any:
    """The block that a kernel writes: the memory of the result if possible, else new memory, for `deliver`.

    The result must be `usable` and contiguous in this order, and `harmless` to the operands.
    """
    if (
        usable(result, dtype)
        and contiguous(result, order)
        and harmless(result, source)
        and harmless(result, second)
        and harmless(result, third)
    ):
        return writable(result, shape, dtype)
    return empty(shape, dtype)


@compiled
def target_of_block(result: Any, order: Any, shape: Any, dtype: Any, source: Any, second: Any, third: Any) -> Any:
    """`target` for a result that is a block."""
    if harmless(result, source) and harmless(result, second) and harmless(result, third):
        return writable(result, shape, dtype)
    return empty(shape, dtype)


@compiled
def deliver_block(result: Any, order: Any, block: Any) -> None:
    """`deliver` for a result that is a block."""
    if extent(result)[0] != extent(block)[0]:
        there = writable(result, (block.size,), result.dtype)
        here = writable(block, (block.size,), result.dtype)
        for i in range(block.size):
            there[i] = here[i]


@compiled
def deliver(result: Any, order: Any, block: Any) -> None:
    """Copy a block into the result, unless it lies there."""
    if extent(result)[0] != extent(block)[0]:
        moved = transposed(result, order)
        flat = writable(block, (block.size,), result.dtype)
        for i, place in enumerate(np.ndindex(moved.shape)):
            moved[place] = flat[i]


def room_for(x: Any, axes: tuple[int, ...], out: Any) -> Run:
    """`working_memory`, or a simpler form if the types show that none is needed."""
    if classes_last(x, axes) and absent(out):
        return argument(0)
    return working_memory


@compiled
def working_memory(nothing: Any, shape: Any, operands: int, dtype: Any, over: bool) -> Any:
    """The memory of `arrays.blocks.Problem.room`, or `nothing` if that has size 0."""
    _, classes, inner = shape
    vector = VECTOR_BYTES // nothing.itemsize
    if inner == 1:
        if over and classes > COLUMN_LIMIT:
            return empty((classes * (vector if classes <= GROUP_LIMIT else 1),), dtype)
        return nothing
    column = max(classes, 1) * vector
    wide = min(TILE_BYTES // (column * nothing.itemsize), (inner + vector - 1) // vector)
    return empty((operands * max(wide, 1) * column,), dtype)


def no_weights(kind: Any) -> Any:
    """Memory that kernels may read where there are no weights."""
    return np.ones(VECTOR_BYTES // np.dtype(kind).itemsize, kind)


def kernel_weights(kind: Any) -> Run:
    """The compiled form of `arrays.blocks.kernel_weights`: ``weights or None -> weights as kernels take them``."""
    nothing = no_weights(kind)
    return merged(lambda weights: weights_or_none(weights, nothing))


@compiled
def items(near: Any, count: int, dtype: Any) -> Any:
    """Memory for `count` items: `near`, on the stack, if they fit."""
    return writable(near, (count,), dtype) if count <= near.size else empty((count,), dtype)


@compiled
def broadcasts(where: Any, shape: Any) -> bool:
    """Whether an array broadcasts to this shape, which has no fewer dimensions."""
    for i in range(where.ndim):
        n = where.shape[where.ndim - 1 - i]
        if n != 1 and n != shape[len(shape) - 1 - i]:
            return False
    return True


@compiled
def hide(block: Any, x: Any, where: Any, order: Any) -> None:
    """Fill a block with x, or with -inf where `where` is false."""
    moved, kept = transposed(x, order), transposed(np.broadcast_to(where, x.shape), order)
    flat = block.reshape(block.size)
    for i, place in enumerate(np.ndindex(moved.shape)):
        flat[i] = moved[place] if kept[place] else -np.inf


@compiled
def cover(block: Any, shape: Any, where: Any, order: Any, value: float) -> None:
    """Write `value` into a block where `where`, broadcast to this shape, is false."""
    kept = transposed(np.broadcast_to(where, shape), order)
    flat = block.reshape(block.size)
    for i, place in enumerate(np.ndindex(kept.shape)):
        if not kept[place]:
            flat[i] = value
