"""The ufuncs inside a user's own compiled code: on numbers, where LLVM vectorises the loop around, and on arrays.

A ufunc made from C is nothing that Numba knows. `register` tells it: on numbers the bodies of `scalar`, inlined
into the user's function, on arrays the kernels of `loops`, so that results have the same bits as outside. Numbers
are float32 or float64; integers and bools become float64, beside a float32 array or number too.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import types
from numba.core import errors
from numba.core.registry import cpu_target
from numba.core.typing.templates import infer_global
from numba.extending import overload, register_jitable

from fastsoftmax.kernels import loops, scalar
from fastsoftmax.kernels.vector import memory

F = TypeVar("F", bound=Callable[..., Any])
# The user's loop decides how it is compiled; these options are for the few lines in between.
_OPTIONS = {"forceinline": True, "nogil": True, "error_model": "numpy"}


def _bare(function: F) -> F:
    """`function` without annotations, which Numba would compare between an overload and its implementation."""
    function.__annotations__ = {}
    return function


def _kind(function: str, name: str, value: Any) -> Any:
    """The float type that an argument is computed in; a typing error for what is no real number."""
    item = value.dtype if isinstance(value, types.Array) else value
    if item in (types.float32, types.float64):
        return item
    if isinstance(item, (types.Integer, types.Boolean)):
        return types.float64
    raise errors.TypingError(
        f"{function}: {name} must be a number or an array of float32, float64, integers or bools, got {value}"
    )


def _check_out(function: str, out: Any, dtype: Any) -> None:
    absent = out is None or isinstance(out, (types.NoneType, types.Omitted))
    if not absent and not (isinstance(out, types.Array) and out.dtype == dtype and out.mutable):
        raise errors.TypingError(f"{function}: out must be a writable array of {dtype}, got {out}")


def _contiguous(value: Any, dtype: Any) -> Any:
    """What makes a C-contiguous array of this dtype out of an argument; of a number, with no dimension."""
    number = np.dtype(str(dtype)).type
    if not isinstance(value, types.Array):
        return register_jitable(lambda x: np.full((), x, number))
    if value.layout == "C":
        return register_jitable((lambda x: x) if value.dtype == dtype else (lambda x: x.astype(number)))
    if value.dtype == dtype:
        return register_jitable(lambda x: x.copy())
    return register_jitable(lambda x: x.copy().astype(number))


def _finish(out: Any) -> Any:
    """What puts a result where the user wants it."""
    if out is None or isinstance(out, (types.NoneType, types.Omitted)):
        return register_jitable(lambda result, out: result)

    @register_jitable
    def assign(result: Any, out: Any) -> Any:
        if out.shape != result.shape:
            raise ValueError("out must have the shape of the result")
        out[...] = result
        return out

    return assign


def _unary_overload(name: str) -> Callable[..., Any]:
    body, kernel = getattr(scalar, name), getattr(loops, name)

    @_bare
    def implement(x: Any, out: Any = None) -> Any:
        dtype = _kind(name, "x", x)
        number = np.dtype(str(dtype)).type
        if not isinstance(x, types.Array):
            return lambda x, out=None: body(number(x))
        _check_out(name, out, dtype)
        contiguous, finish = _contiguous(x, dtype), _finish(out)

        @_bare
        def whole(x: Any, out: Any = None) -> Any:
            source = contiguous(x)
            result = np.empty(source.shape, number)
            kernel(memory(source), memory(result))
            return finish(result, out)

        return whole

    return implement


def _binary_overload(name: str) -> Callable[..., Any]:
    body, kernel = getattr(scalar, name), getattr(loops, name)

    @_bare
    def implement(x: Any, y: Any, out: Any = None) -> Any:
        kinds = {_kind(name, "x", x), _kind(name, "y", y)}
        dtype = types.float32 if kinds == {types.float32} else types.float64
        number = np.dtype(str(dtype)).type
        if not isinstance(x, types.Array) and not isinstance(y, types.Array):
            return lambda x, y, out=None: body(number(x), number(y))
        _check_out(name, out, dtype)
        first, second, finish = _contiguous(x, dtype), _contiguous(y, dtype), _finish(out)
        x_ndim, y_ndim = getattr(x, "ndim", 0), getattr(y, "ndim", 0)

        @_bare
        def beside_one(x: Any, y: Any, out: Any = None) -> Any:
            a, b = first(x), second(y)
            result = np.empty(a.shape if y_ndim == 0 else b.shape, number)
            kernel(memory(a), memory(b), memory(result))
            return finish(result, out)

        @_bare
        def broadcast(x: Any, y: Any, out: Any = None) -> Any:
            a, b = first(x), second(y)
            shape = np.broadcast_shapes(a.shape, b.shape)
            c, d = np.broadcast_to(a, shape).copy(), np.broadcast_to(b, shape).copy()
            kernel(memory(c), memory(d), memory(c))
            return finish(c, out)

        if x_ndim == 0 or y_ndim == 0:
            return beside_one
        return broadcast

    return implement


def register(name: str, ufunc: Any) -> None:
    """Make `ufunc` callable in code that Numba compiles, from now on, also by a function that is being compiled.

    The overload is that of a stand-in: Numba turns a call of a ufunc on arrays into a loop over numbers of its
    own, which LLVM does not vectorise as well as the kernels are.
    """

    def stand_in(*args: Any) -> None:
        raise NotImplementedError

    stand_in.__name__ = stand_in.__qualname__ = name
    implement = _binary_overload(name) if name in loops.BINARY else _unary_overload(name)
    overload(stand_in, jit_options=_OPTIONS)(implement)
    context = cpu_target.typing_context
    context.refresh()
    infer_global(ufunc, context.resolve_value_type(stand_in))
    context.refresh()
    cpu_target.target_context.refresh()
