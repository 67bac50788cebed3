"""Elementwise functions over arrays: the inner loops of the ufuncs, and kernels for contiguous arrays.

``function(x, y)`` computes y from x (``function(x, v, y)`` from two arguments). All arrays are contiguous and have
one dtype; x or v may be a single number. ``function_loop`` follows NumPy's protocol for the inner loop of a ufunc,
with any strides. `unary_half_loop` and `binary_half_loop` do so for float16. They call the loop for float32 whose
address they get as NumPy's `data`.

Vectors are computed whole, and a vector's lanes do not depend on each other: an element gives the same bits
at every position and in every form.

Floating-point exceptions are those of the function, not of its computation: `exp` and `expm1` raise overflow,
`log` and `log1p` division by zero and invalid, as in NumPy; the others none, as in SciPy; all of them raise
overflow where a finite result is too large for float16. Underflow is not raised.
"""

from typing import Any

from fastsoftmax.kernels import scalar
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.simd.memory import (
    address,
    after,
    item_size,
    lane_count,
    load,
    memory,
    scratch,
    size,
    store,
)
from fastsoftmax.kernels.simd.reduce import fold_maximum
from fastsoftmax.kernels.simd.ufunc import (
    call_loop,
    float_status,
    item,
    memory_at,
    read,
    set_float_status,
    singles,
    write,
)
from fastsoftmax.kernels.simd.values import (
    absolute,
    broadcast,
    filled,
    lane,
    maximum,
    number,
    select_equal,
    select_less,
)
from fastsoftmax.machine.entry import Address, Addresses, Floats, Sizes

INF = float("inf")
HALF_VECTORS = 16
HALF_LIMIT = 65520.0  # smaller numbers round to a finite float16


# --- exceptions ----------------------------------------------------------------------------------------------


@inline
def _silent(x: Any, value: Any, raised: Any) -> Any:
    """No exceptions at all."""
    return raised


@inline
def _overflowing(x: Any, value: Any, raised: Any) -> Any:
    """Overflow where a finite argument gives inf."""
    # Keep the least argument that overflows instead of a flag: a single masked instruction.
    invalid, divide, least = raised
    smaller = select_less(x, least, x, least)
    return invalid, divide, select_less(scalar.greatest(x), x, smaller, least)


@inline
def _above(edge: Any, x: Any, raised: Any) -> Any:
    """Division by zero where x is at the edge of the domain, invalid where it is below."""
    invalid, divide, overflow = raised
    one, start = number(x, 1.0), number(x, edge)
    return select_less(x, start, one, invalid), select_equal(x, start, one, divide), overflow


@inline
def _positive(x: Any, value: Any, raised: Any) -> Any:
    return _above(0.0, x, raised)


@inline
def _above_minus_one(x: Any, value: Any, raised: Any) -> Any:
    return _above(-1.0, x, raised)


# --- loops ---------------------------------------------------------------------------------------------------


@inline
def _unary(function: Any, watch: Any, x: Any, x_stride: int, y: Any, y_stride: int, count: int) -> Any:
    """y = function(x); returns the exceptions that `watch` found, for each lane."""
    zero = filled(read(x, 0, 0), 0.0)
    raised = (zero, zero, filled(zero, INF))
    while count > 0:
        n = min(lane_count(x), count)
        v = read(x, x_stride, n)
        value = function(v)
        raised = watch(v, value, raised)
        write(y, y_stride, n, value)
        x, y = after(x, n * x_stride), after(y, n * y_stride)
        count -= n
    return raised


@inline
def _binary(
    function: Any, x: Any, x_stride: int, v: Any, v_stride: int, y: Any, y_stride: int, count: int
) -> None:
    """y = function(x, v)."""
    while count > 0:
        n = min(lane_count(x), count)
        write(y, y_stride, n, function(read(x, x_stride, n), read(v, v_stride, n)))
        x, v, y = after(x, n * x_stride), after(v, n * v_stride), after(y, n * y_stride)
        count -= n


@inline
def _side_by_side(function: Any, x: Any, v: Any, y: Any) -> None:
    """y = function(x, v) of contiguous numbers; x or v may be a single number."""
    count = size(y)
    x_stride = 1 if size(x) == count else 0
    v_stride = 1 if size(v) == count else 0
    _binary(function, x, x_stride, v, v_stride, y, 1, count)


@inline
def _in_order(
    function: Any, x: Any, x_stride: int, v: Any, v_stride: int, y: Any, y_stride: int, count: int
) -> None:
    """y = function(x, v) one by one, for a y that is read again as x or v: in reductions and accumulations."""
    for _ in range(count):
        value = function(lane(read(x, x_stride, 1), 0), lane(read(v, v_stride, 1), 0))
        write(y, y_stride, 1, broadcast(value))
        x, v, y = after(x, x_stride), after(v, v_stride), after(y, y_stride)


@inline
def _apart(x: Any, x_stride: int, y: Any, y_stride: int, count: int) -> Any:
    """Whether y can be written in vectors while x is read: they do not overlap, or lie at the same place."""
    begin, end = address(x), address(y)
    if begin == end and x_stride == y_stride:
        return y_stride != 0
    bytes_ = item_size(x)
    x_last, y_last = begin + (count - 1) * x_stride * bytes_, end + (count - 1) * y_stride * bytes_
    return min(begin, x_last) >= max(end, y_last) + bytes_ or max(begin, x_last) + bytes_ <= min(end, y_last)


# --- NumPy's protocol for ufuncs -----------------------------------------------------------------------------


@inline
def _unary_loop(function: Any, watch: Any, args: Any, dimensions: Any, steps: Any) -> None:
    status = float_status()
    x, y = memory_at(item(args, 0)), memory_at(item(args, 1))
    bytes_ = item_size(x)
    raised = _unary(function, watch, x, item(steps, 0) // bytes_, y, item(steps, 1) // bytes_, item(dimensions, 0))
    invalid, divide, least = raised
    set_float_status(
        status, fold_maximum(True, invalid) > 0, fold_maximum(True, divide) > 0, fold_maximum(True, -least) > -INF
    )


@inline
def _binary_loop(function: Any, associative: bool, args: Any, dimensions: Any, steps: Any) -> None:
    status = float_status()
    x, v, y = memory_at(item(args, 0)), memory_at(item(args, 1)), memory_at(item(args, 2))
    bytes_, count = item_size(x), item(dimensions, 0)
    x_stride, v_stride, y_stride = item(steps, 0) // bytes_, item(steps, 1) // bytes_, item(steps, 2) // bytes_
    if _apart(x, x_stride, y, y_stride, count) and _apart(v, v_stride, y, y_stride, count):
        _binary(function, x, x_stride, v, v_stride, y, y_stride, count)
    else:
        if associative and address(x) == address(y) and x_stride == 0 and y_stride == 0:
            # A reduction: each lane reduces a part of v, and the lanes are combined at the end.
            step = lane_count(x)
            if count >= 4 * step:
                total = read(v, v_stride, step)
                v, count = after(v, step * v_stride), count - step
                while count >= step:
                    total = function(total, read(v, v_stride, step))
                    v, count = after(v, step * v_stride), count - step
                value = lane(read(y, 0, 1), 0)
                for k in range(step):
                    value = function(value, lane(total, k))
                write(y, 0, 1, broadcast(value))
        _in_order(function, x, x_stride, v, v_stride, y, y_stride, count)
    set_float_status(status, False, False, False)


@inline
def _widen(x: Any, x_stride: int, wide: Any, count: int) -> None:
    """float16 to contiguous float32; whole vectors are written."""
    for k in range(0, count, lane_count(wide)):
        store(wide, k, read(after(x, k * x_stride), x_stride, min(lane_count(wide), count - k)))


@inline
def _narrow(wide: Any, y: Any, y_stride: int, count: int, greatest: Any) -> Any:
    """float32 to float16; returns the greatest finite magnitude so far."""
    for k in range(0, count, lane_count(wide)):
        value = load(wide, k)
        size_ = absolute(value)
        greatest = maximum(select_less(size_, number(wide, INF), size_, number(wide, 0.0)), greatest)
        write(after(y, k * y_stride), y_stride, min(lane_count(wide), count - k), value)
    return greatest


@kernel(dtypes="e")
def unary_half_loop(args: Addresses, dimensions: Sizes, steps: Sizes, function: Address) -> None:
    """y = function(x) in float16, called by NumPy."""
    x, y = memory_at(item(args, 0)), memory_at(item(args, 1))
    x_stride, y_stride, count = item(steps, 0) // 2, item(steps, 1) // 2, item(dimensions, 0)
    wide = scratch(singles(x), HALF_VECTORS)
    greatest = filled(load(wide, 0), 0.0)
    while count > 0:
        n = min(HALF_VECTORS * lane_count(wide), count)
        _widen(x, x_stride, wide, n)
        call_loop(function, n, wide, 1, None, 0, wide, 1)
        greatest = _narrow(wide, y, y_stride, n, greatest)
        x, y, count = after(x, n * x_stride), after(y, n * y_stride), count - n
    set_float_status(float_status(), False, False, fold_maximum(True, greatest) >= HALF_LIMIT)


@kernel(dtypes="e")
def binary_half_loop(args: Addresses, dimensions: Sizes, steps: Sizes, function: Address) -> None:
    """y = function(x, v) in float16, called by NumPy."""
    x, v, y = memory_at(item(args, 0)), memory_at(item(args, 1)), memory_at(item(args, 2))
    x_stride, v_stride, y_stride = item(steps, 0) // 2, item(steps, 1) // 2, item(steps, 2) // 2
    count = item(dimensions, 0)
    wide = scratch(singles(x), HALF_VECTORS)
    other = scratch(singles(x), HALF_VECTORS)
    greatest = filled(load(wide, 0), 0.0)
    if address(x) == address(y) and x_stride == 0 and y_stride == 0:
        _widen(x, 0, wide, 1)
        while count > 0:
            n = min(HALF_VECTORS * lane_count(wide), count)
            _widen(v, v_stride, other, n)
            call_loop(function, n, wide, 0, other, 1, wide, 0)
            v, count = after(v, n * v_stride), count - n
        greatest = _narrow(wide, y, 0, 1, greatest)
    apart = _apart(x, x_stride, y, y_stride, count) and _apart(v, v_stride, y, y_stride, count)
    while count > 0:
        n = min(HALF_VECTORS * lane_count(wide), count) if apart else 1
        _widen(x, x_stride, wide, n)
        _widen(v, v_stride, other, n)
        call_loop(function, n, wide, 1, other, 1, wide, 1)
        greatest = _narrow(wide, y, y_stride, n, greatest)
        x, v, y, count = after(x, n * x_stride), after(v, n * v_stride), after(y, n * y_stride), count - n
    set_float_status(float_status(), False, False, fold_maximum(True, greatest) >= HALF_LIMIT)


# --- the functions -------------------------------------------------------------------------------------------

UNARY = {
    "exp": _overflowing,
    "expm1": _overflowing,
    "log": _positive,
    "log1p": _above_minus_one,
    **dict.fromkeys(("expit", "logit", "log_expit", "softplus", "entr", "tanh"), _silent),
}
"""The functions of one number, with the exceptions that their ufuncs raise."""

BINARY = {"logaddexp": True, "xlogy": False, "rel_entr": False}
"""The functions of two numbers, and whether they are associative."""


def _define(name: str, arguments: str, contiguous: Any, called: Any) -> None:
    """Define the two forms of a function under their names, which are those of the kernels."""
    for form, ending in ((contiguous, ""), (called, "_loop")):
        form.__name__ = form.__qualname__ = f"{name}{ending}"
        form.__doc__ = f"y = {name}({arguments}){', called by NumPy' if ending else ''}."
        globals()[form.__name__] = kernel(form, dtypes="fd")


def _define_unary(name: str, watch: Any) -> None:
    function = getattr(scalar, name)

    def contiguous(x: Floats, y: Floats) -> None:
        _unary(function, _silent, memory(x), 1, memory(y), 1, size(memory(y)))

    def called(args: Addresses, dimensions: Sizes, steps: Sizes, data: Address) -> None:
        _unary_loop(function, watch, args, dimensions, steps)

    _define(name, "x", contiguous, called)


def _define_binary(name: str, associative: bool) -> None:
    function = getattr(scalar, name)

    def contiguous(x: Floats, v: Floats, y: Floats) -> None:
        _side_by_side(function, memory(x), memory(v), memory(y))

    def called(args: Addresses, dimensions: Sizes, steps: Sizes, data: Address) -> None:
        _binary_loop(function, associative, args, dimensions, steps)

    _define(name, "x, v", contiguous, called)


for _name, _watch in UNARY.items():
    _define_unary(_name, _watch)
for _name, _associative in BINARY.items():
    _define_binary(_name, _associative)
