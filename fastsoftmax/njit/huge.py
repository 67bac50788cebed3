"""Huge segments inside a user's ``@njit`` code: Python calls their kernels.

Few callers have such segments, but the calls of half a dozen kernels more would take as long to compile as all the
rest of a function. For a million numbers, a call of Python takes no time.
"""

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastsoftmax._vectors import HUGE
from fastsoftmax.arrays import huge
from fastsoftmax.machine.entry import entry
from fastsoftmax.machine.external import Python, text_address
from fastsoftmax.njit.complaints import numbers_at
from fastsoftmax.runtime.numba_private import return_raised

# --- what Python runs ---------------------------------------------------------------------------------------

_ITEMS: dict[str, Any] = {"f": ctypes.c_float, "d": ctypes.c_double, "i": ctypes.c_int64}


def call(form: str, kernel: str, kinds: str, *numbers: Any) -> None:
    """Call the function of `arrays.huge` that is named `form` with a kernel and arguments.

    Each letter of `kinds` is an argument: an array of float32, float64 or int64, whose address and size are in
    `numbers`, a number (``s``), or None (``n``).
    """
    rest = iter(numbers)
    arguments: list[Any] = []
    for kind in kinds:
        if kind in _ITEMS:
            address, size, item = next(rest), next(rest), _ITEMS[kind]
            arguments.append(np.asarray(numbers_at(item, address, size * ctypes.sizeof(item))))
        else:
            arguments.append(next(rest) if kind == "s" else None)
    getattr(huge, form)(huge.alone, entry(kernel), *arguments)


# --- compiled into the caller -------------------------------------------------------------------------------

_LETTERS = {types.float32: "f", types.float64: "d", types.int64: "i"}


@intrinsic(prefer_literal=True)
def over_huge(typingctx: Any, longest: Any, form: Any, kernel: Any, arguments: Any) -> Any:
    """`call` with a form, the name of a kernel and the arguments, if the longest segment is a huge one."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        with builder.if_then(builder.icmp_signed(">", values[0], ir.IntType(64)(HUGE)), likely=False):
            kinds, letters, numbers = "", "", []
            for kind, value in zip(arguments, cgutils.unpack_tuple(builder, values[3]), strict=True):
                if isinstance(kind, types.NoneType):
                    kinds += "n"
                elif isinstance(kind, types.Array):
                    array = context.make_array(kind)(context, builder, value)
                    kinds, letters = kinds + _LETTERS[kind.dtype], letters + "LL"
                    numbers += [builder.ptrtoint(array.data, ir.IntType(64)), array.nitems]
                else:
                    passed, letter = (types.float64, "d") if isinstance(kind, types.Float) else (types.int64, "L")
                    kinds, letters = f"{kinds}s", letters + letter
                    numbers.append(context.cast(builder, value, kind, passed))
            python, done = Python(builder.module, builder), cgutils.alloca_once_value(builder, ir.IntType(1)(0))
            state = python.ensure()
            names = form.literal_value, kernel.literal_value, kinds
            texts = [text_address(builder.module, name) for name in names]
            python.call_function(
                __name__,
                "call",
                f"sss{letters}",
                *texts,
                *numbers,
                found=lambda result: builder.store(ir.IntType(1)(1), done),
                failed=lambda: None,
            )
            python.release(state)
            with builder.if_then(builder.not_(builder.load(done)), likely=False):
                return_raised(context, builder)
        return context.get_dummy_value()

    return types.void(types.intp, form, kernel, arguments), codegen
