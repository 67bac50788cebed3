"""The ufuncs inside a user's own compiled code: on numbers, where LLVM vectorises the user's loop, and on arrays.

Numba does not know ufuncs made from C. `register` provides their overloads: for numbers the bodies of `scalar`,
inlined into the user's function; for arrays the kernels of `loops`. Results have the same bits as in Python.

The dtype follows NumPy's rule: the ufunc's loop for exactly these dtypes, else the first loop to which all of them
can be cast safely. So int16 becomes float32 and int32 float64, alone and beside a float32. int8, uint8 and bools
become float16, which Numba does not support on CPUs: here the result is a float32 with the value of that float16.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import types
from numba.core import errors
from numba.extending import overload

from fastsoftmax._vectors import BINARY
from fastsoftmax.api import ufuncs
from fastsoftmax.kernels import scalar
from fastsoftmax.kernels.elementary import INF, MAGIC_32
from fastsoftmax.kernels.jit import inline
from fastsoftmax.kernels.simd.values import (
    absolute,
    maximum,
    number,
    select_equal,
    select_less,
    shift_to_exponent,
    split_exponent,
)
from fastsoftmax.machine.external import external
from fastsoftmax.machine.frontend import NO_WRAPPERS
from fastsoftmax.njit.arguments import empty, merged, readable, same_shape
from fastsoftmax.njit.generated import argument, broadcast_block, broadcast_shape, filled, require
from fastsoftmax.runtime.numba_private import known_options, lean_options, treat_alike

F = TypeVar("F", bound=Callable[..., Any])
_NO_SHAPE = "shape mismatch: objects cannot be broadcast to a single shape"
HALF_LIMIT = 65520.0  # smaller numbers round to a finite float16
# The user's function has its own options; these are for the few lines of the overload.
_OPTIONS = {
    "nogil": True,
    "error_model": "numpy",
    **known_options(forceinline=True),
    **NO_WRAPPERS,
    **lean_options(),
}


def _bare(function: F) -> F:
    """`function` without annotations, because Numba compares those of an overload and its implementation."""
    function.__annotations__ = {}
    return function


def _check_kind(function: str, name: str, value: Any) -> Any:
    """The dtype of an argument; TypingError unless it is a real number or an array of them."""
    item = types.unliteral(value.dtype if isinstance(value, types.Array) else value)
    if item in (types.float32, types.float64) or isinstance(item, (types.Integer, types.Boolean)):
        return np.dtype(str(item))
    raise errors.TypingError(
        f"{function}: {name} must be a number or an array of float32, float64, integers or bools, got {value}"
    )


def _computed(function: str, kinds: str, **arguments: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The float type that a call is computed in, and the function that rounds a number of the result.

    `kinds` are the characters of the ufunc's dtypes, in the order of its loops.
    """
    dtypes = [_check_kind(function, name, value) for name, value in arguments.items()]
    exact = [kind for kind in kinds if all(dtype == kind for dtype in dtypes)]
    kind = next(kind for kind in [*exact, *kinds] if all(np.can_cast(dtype, kind) for dtype in dtypes))
    if kind == "e":
        return types.float32, _as_half
    return (types.float32 if kind == "f" else types.float64), _as_it_is


@inline
def _as_it_is(value: Any) -> Any:
    return value


@inline
def _as_half(x: Any) -> Any:
    """A float32 rounded to the value of a float16: to nearest, halves to even, gradual underflow, overflow to inf.

    Let 2**e be the power of two in abs(x), or 2**-14 for float16's denormal numbers. The last place of the result
    is 2**(e - 10), which is also that of a float32 between 2**(e + 13) and 2**(e + 14). Adding 3/2 2**(e + 13), an
    even number of units, moves abs(x) there, which rounds it.
    """
    zero, one, size = number(x, 0.0), number(x, 1.0), absolute(x)
    k, m = split_exponent(size)
    exponent = maximum(number(x, -14.0), select_less(m, one, k - one, k))
    place = shift_to_exponent(exponent + number(x, MAGIC_32 + 127.0 + 13.0)) * number(x, 1.5)
    value = select_less(size, number(x, HALF_LIMIT), (size + place) - place, number(x, INF))
    value = select_less(x, zero, -value, select_equal(x, zero, x, value))
    return select_equal(x, x, value, x)


def _check_out(function: str, out: Any, dtype: Any) -> None:
    """TypingError unless `out` is None or a writable array of `dtype` or of float64."""
    absent = out is None or isinstance(out, (types.NoneType, types.Omitted))
    wider = (dtype, types.float64)
    if not absent and not (isinstance(out, types.Array) and out.dtype in wider and out.mutable):
        expected = " or ".join(dict.fromkeys(map(str, wider)))
        raise errors.TypingError(f"{function}: out must be a writable array of {expected}, got {out}")


def _block(value: Any, dtype: Any) -> Any:
    """The compiled ``argument, shape -> read-only, C-contiguous array of this dtype``, broadcast to the shape.

    Numbers and 0-d arrays become one item, which kernels take beside arrays of any size.
    """
    kind = np.dtype(str(dtype)).type
    if not isinstance(value, types.Array):
        return merged(lambda value, shape: filled((), kind(value)))
    if value.ndim == 0:
        return merged(lambda value, shape: broadcast_block(value, (), kind))
    return merged(lambda value, shape: broadcast_block(value, shape, kind))


def _flat(number: Any) -> Any:
    """The function that returns a C-contiguous array as a vector, which keeps its memory alive."""
    return merged(lambda array: readable(array, (array.size,), number))


def _finish(out: Any, rounded: Any) -> Any:
    """The function that rounds a new C-contiguous result and returns it, or copies it to `out`."""

    @merged
    def round_all(result: Any) -> Any:
        items = result.reshape(-1)
        for i in range(items.size):
            items[i] = rounded(items[i])
        return result

    prepare = round_all if rounded is _as_half else argument(0)
    if out is None or isinstance(out, (types.NoneType, types.Omitted)):
        return merged(lambda result, out: prepare(result))

    @merged
    def assign(result: Any, out: Any) -> Any:
        require(same_shape(out.shape, result.shape), "out must have the shape of the result")
        out[...] = prepare(result)
        return out

    return assign


def _unary_overload(name: str, kinds: str) -> Callable[..., Any]:
    body, kernel = getattr(scalar, name), external(f"loops.{name}")

    @_bare
    def implement(x: Any, out: Any = None) -> Any:
        dtype, rounded = _computed(name, kinds, x=x)
        number = np.dtype(str(dtype)).type
        if not isinstance(x, types.Array):
            return lambda x, out=None: rounded(body(number(x)))
        _check_out(name, out, dtype)
        block, finish, flat = _block(x, dtype), _finish(out, rounded), _flat(number)

        @_bare
        def whole(x: Any, out: Any = None) -> Any:
            result = empty(x.shape, number)
            kernel(flat(block(x, x.shape)), flat(result))
            return finish(result, out)

        return whole

    return implement


def _binary_overload(name: str, kinds: str) -> Callable[..., Any]:
    body, kernel = getattr(scalar, name), external(f"loops.{name}")

    @_bare
    def implement(x: Any, y: Any, out: Any = None) -> Any:
        dtype, rounded = _computed(name, kinds, x=x, y=y)
        number = np.dtype(str(dtype)).type
        if not isinstance(x, types.Array) and not isinstance(y, types.Array):
            return lambda x, y, out=None: rounded(body(number(x), number(y)))
        _check_out(name, out, dtype)
        first, second, finish, flat = _block(x, dtype), _block(y, dtype), _finish(out, rounded), _flat(number)
        x_shape, y_shape = (
            merged((lambda value: value.shape) if isinstance(value, types.Array) else (lambda value: ()))
            for value in (x, y)
        )

        @_bare
        def whole(x: Any, y: Any, out: Any = None) -> Any:
            shape = broadcast_shape(x_shape(x), y_shape(y), _NO_SHAPE)
            result = empty(shape, number)
            kernel(flat(first(x, shape)), flat(second(y, shape)), flat(result))
            return finish(result, out)

        return whole

    return implement


def register(name: str, ufunc: Any, kinds: str) -> None:
    """Make `ufunc` callable in code that Numba compiles from now on, also in functions that are being compiled.

    `kinds` are the characters of its dtypes, in the order of its loops. The overload is for a stand-in, because
    Numba turns a call of a ufunc on arrays into its own loop over numbers, which LLVM vectorises less well than
    the kernels.
    """

    def stand_in(*args: Any) -> None:
        raise NotImplementedError

    stand_in.__name__ = stand_in.__qualname__ = name
    make = _binary_overload if name in BINARY else _unary_overload
    overload(stand_in, jit_options=_OPTIONS)(make(name, kinds))
    treat_alike(ufunc, stand_in)


ufuncs.tell(register)
