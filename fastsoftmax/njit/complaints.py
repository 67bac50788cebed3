"""Exceptions of compiled code whose text has values that are known at run time only.

Numba can raise such exceptions, but to compile the code that makes Python objects of the values takes longer than
all the rest of a loss. So compiled code first calls `complain` with the values, for which Python makes the text,
and then raises `NotedValueError` or `NotedIndexError`, whose text that is. `refuse` does both.
"""

import ctypes
import threading
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastsoftmax.machine.external import Python, text_address
from fastsoftmax.runtime.numba_private import return_error

_noted = threading.local()


class _Noted(Exception):  # noqa: N818  # the public part of their names is that of the next class
    """An exception with the text that this thread has noted."""

    def __init__(self, text: str | None = None) -> None:
        super().__init__(getattr(_noted, "text", "") if text is None else text)


class NotedValueError(_Noted, ValueError):
    """A ValueError with such a text."""


class NotedIndexError(_Noted, IndexError):
    """An IndexError with such a text."""


# --- the forms, which Python runs ---------------------------------------------------------------------------


def formatted(text: str, *values: Any) -> None:
    """Note a text with these values."""
    _noted.text = text.format(*values)


def placed(text: str, ndim: int, place: int, *rest: Any) -> None:
    """Note a text about an item of an array, whose number in C order and whose shape come before the values."""
    there = np.unravel_index(place, rest[:ndim]) if ndim else (0,)
    formatted(text, [int(k) for k in there], *rest[ndim:])


def label(text: str, ndim: int, place: int, *rest: Any) -> None:
    """`placed` for a label that is wrong, among the labels at an address; the number of classes comes last."""
    shape, (address, size, classes) = rest[:ndim], rest[ndim:]
    placed(text, ndim, place, *shape, numbers_at(ctypes.c_int64, address, size)[place], classes - 1)


def moved(text: str, ndim: int, place: int, *rest: Any) -> None:
    """`placed` for the shape and the number in another order of the axes, which comes behind the shape."""
    shape, order, values = rest[:ndim], rest[ndim : 2 * ndim], rest[2 * ndim :]
    there = np.unravel_index(place, shape) if ndim else (0,)
    formatted(text, [int(there[order.index(a)]) for a in range(ndim)] or there, *values)


def numbers_at(kind: Any, address: int, size: int) -> Any:
    """The numbers in so many bytes of memory from an address on."""
    return (kind * (size // ctypes.sizeof(kind))).from_address(address)


def share(text: str, itemsize: int, ndim: int, *rest: int) -> None:
    """Note a text about the first target that is no number from 0 to 1 and has no weight 0.

    The targets and their weights, perhaps none, are given by address and size in bytes, behind them the order of
    the axes in which they are counted, and their shape.
    """
    kind = ctypes.c_float if itemsize == 4 else ctypes.c_double
    targets, weights = (np.array(numbers_at(kind, *rest[k : k + 2])) for k in (0, 2))
    wrong = ~((targets >= 0) & (targets <= 1))
    if weights.size:
        wrong &= weights != 0
    at, order = int(np.argmax(wrong)), rest[4 : 4 + ndim]
    shape = [rest[4 + ndim + axis] for axis in order]
    moved(text, ndim, at, *shape, *order, targets[at].item())


def row_pointer(name: str, n: int, address: int, size: int, entries: int) -> None:
    """Note what is wrong with row pointers, given by address and size in bytes."""
    table = numbers_at(ctypes.c_int64, address, size)
    value, previous = (table[n] if size else 0), (table[n - 1] if n else 0)
    if size == 0:
        text = "indptr has shape (0,), expected one dimension and at least one entry"
    elif n == 0 and value != 0:
        text = f"indptr[0] is {value}, expected 0"
    elif n > 0 and value < previous:
        text = f"indptr[{n}] is {value}, expected at least indptr[{n - 1}], which is {previous}"
    else:
        text = f"indptr[{n}] is {value}, expected {entries}, the length of x"
    _noted.text = f"{name}: {text}"


def misplaced(name: str, address: int, size: int, table_address: int, table_size: int) -> None:
    """Note the first position outside of its segment; positions and row pointers come by address and size."""
    labels = np.array(numbers_at(ctypes.c_int64, address, size))
    lengths = np.diff(numbers_at(ctypes.c_int64, table_address, table_size))
    n = int(np.argmax((labels < 0) | (labels >= lengths)))
    segment_label(name, n, int(labels[n]), int(lengths[n]))


def undrawn(text: str, address: int, size: int, rows: int) -> None:
    """Note a text about the first row with a negative class in the draws at an address, of so many bytes."""
    draws = np.array(numbers_at(ctypes.c_int64, address, size)).reshape(-1, rows)
    formatted(text, int(np.argmax((draws < 0).any(axis=0))))


def segment_label(name: str, n: int, label: int, length: int) -> None:
    """Note what is wrong with a position inside a segment."""
    expected = "an ignored one, since segment {0} is empty"
    if length:
        expected = "a position from 0 to {1}, within segment {0} of length {2}"
    _noted.text = f"{name}[{n}] is {label}, expected {expected.format(n, length - 1, length)}"


# --- compiled into the caller -------------------------------------------------------------------------------


def _flat(kind: Any, value: Any, builder: Any) -> list[tuple[Any, Any]]:
    """The types and values of the numbers in a tuple of numbers and tuples."""
    if isinstance(kind, types.BaseTuple):
        values = cgutils.unpack_tuple(builder, value, len(kind))
        return [pair for one, item in zip(kind, values, strict=True) for pair in _flat(one, item, builder)]
    return [(kind, value)]


def _letter(kind: Any) -> str:
    """The letter of a number of this type where C passes numbers to Python."""
    if isinstance(kind, types.Float):
        return "d"
    return "L" if getattr(kind, "signed", True) else "K"


_PASSED = {"d": types.float64, "L": types.int64, "K": types.uint64}


def _complain(context: Any, builder: Any, form: str, text: str, kind: Any, values: Any) -> None:
    """Generate a call of the function of this module that is named `form`; `values` is a tuple of type `kind`."""
    pairs = _flat(kind, values, builder)
    letters = "".join(_letter(one) for one, _ in pairs)
    numbers = [
        context.cast(builder, value, one, _PASSED[letter])
        for letter, (one, value) in zip(letters, pairs, strict=True)
    ]
    python = Python(builder.module, builder)
    state = python.ensure()
    given = text_address(builder.module, text), *numbers
    called = __name__, form, f"s{letters}"
    python.call_function(*called, *given, found=lambda result: None, failed=lambda: None)
    python.call("PyErr_Clear", ir.VoidType())
    python.release(state)


@intrinsic(prefer_literal=True)
def complain(typingctx: Any, form: Any, text: Any, values: Any) -> Any:
    """Call the function of this module that is named `form`, with a text and the numbers in a tuple."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _complain(context, builder, form.literal_value, text.literal_value, values, arguments[2])
        return context.get_dummy_value()

    return types.void(form, text, values), codegen


@intrinsic(prefer_literal=True)
def refuse(typingctx: Any, condition: Any, error: Any, form: Any, text: Any, values: Any) -> Any:
    """`complain`, and raise an exception with the text that was noted, if a condition holds."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        with builder.if_then(arguments[0], likely=False):
            _complain(context, builder, form.literal_value, text.literal_value, values, arguments[4])
            return_error(context, builder, error.exc_class)
        return context.get_dummy_value()

    return types.void(types.boolean, error, form, text, values), codegen
