"""Huge segments inside a user's ``@njit`` code: Python calls their kernels.

Few callers have such segments, but the calls of half a dozen kernels more would take as long to compile as all the
rest of a function. For a million numbers, a call of Python takes no time.
"""

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastsoftmax._vectors import COLUMNS, HUGE
from fastsoftmax.api.segments import pieces_of
from fastsoftmax.arrays.blocks import NO_ROOM, UNWEIGHTED
from fastsoftmax.arrays.options import smoothed_shares
from fastsoftmax.machine.entry import entry
from fastsoftmax.machine.external import Python, text_address
from fastsoftmax.njit.complaints import numbers_at
from fastsoftmax.runtime.numba_private import return_raised

# --- what Python runs ---------------------------------------------------------------------------------------

_ITEMS: dict[str, Any] = {"f": ctypes.c_float, "d": ctypes.c_double, "i": ctypes.c_int64}


def call(form: str, kernel: str, kinds: str, *numbers: Any) -> None:
    """Call the function of this module that is named `form` with a kernel and arguments.

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
    globals()[form](entry(kernel), *arguments)


def _listed(table: Any, x: Any) -> tuple[int, Any, Any, Any]:
    """How many pieces huge segments have, the table of the pieces, and the statistics over them."""
    pieces: Any = pieces_of(table)
    count = len(pieces) // COLUMNS
    maxima, sums = np.empty(count, x.dtype), np.empty(3 * count, x.dtype)
    entry("segments.piece_maxima")(0, count, None, pieces, x, maxima)
    entry("segments.piece_sums")(0, count, None, pieces, maxima, x, sums)
    return count, pieces, maxima, sums


def pieces(kernel: Any, table: Any, x: Any, *operands: Any) -> None:
    """A kernel over the pieces."""
    count, *listed = _listed(table, x)
    kernel(0, count, None, *listed, *operands)


def product(kernel: Any, table: Any, x: Any, v: Any, y: Any) -> None:
    """The product with the Jacobian."""
    count, listed, maxima, sums = _listed(table, x)
    extents, dots = np.empty(2 * count, x.dtype), np.empty(2 * count, x.dtype)
    entry("segments.piece_extents")(0, count, None, listed, maxima, x, v, extents)
    entry("segments.piece_dots")(0, count, None, listed, maxima, sums, extents, x, v, dots)
    kernel(0, count, None, listed, maxima, sums, extents, x, v, dots, y)


def _each(table: Any) -> Iterator[tuple[int, Callable[[Any], Any], Callable[[Any], Any]]]:
    """The length of each huge segment, and functions from a vector to its block and to its number.

    A vector of size 0 stays empty.
    """
    lengths = np.diff(table)
    for n in np.flatnonzero(lengths > HUGE):

        def block(vector: Any, part: slice = slice(table[n], table[n + 1])) -> Any:
            return vector[part].reshape(1, -1, 1) if vector.size else vector.reshape(0, 0, 0)

        def one(vector: Any, part: slice = slice(n, n + 1)) -> Any:
            return vector[part]

        yield int(lengths[n]), block, one


def smoothed(
    kernel: Any,
    table: Any,
    share: float,
    x: Any,
    labels: Any,
    weights: Any,
    y: Any,
    rows: Any,
    high: float,
    low: float,
) -> None:
    """The cross-entropy with label smoothing."""
    number, room, unweighted = x.dtype.type, NO_ROOM[x.dtype], UNWEIGHTED[x.dtype]
    gain = number(smoothed_shares(share, 1)[1])
    for length, block, one in _each(table):
        base = number(smoothed_shares(share, length)[0])
        shares, slope = (one(labels), unweighted, base, gain), None if y is None else block(y)
        kernel(0, 1, room, block(x), None, *shares, one(weights), slope, one(rows), high, low)


def entropy(kernel: Any, table: Any, x: Any, y: Any, rows: Any) -> None:
    """The entropy."""
    for _, block, one in _each(table):
        kernel(0, 1, NO_ROOM[x.dtype], block(x), None if y is None else block(y), one(rows), None)


def divergence(
    kernel: Any,
    table: Any,
    u: Any,
    w: Any,
    weights: Any,
    y: Any,
    rows: Any,
    reverse: int,
    high: float,
    low: float,
) -> None:
    """The divergence."""
    for _, block, one in _each(table):
        blocks, mixing = (block(u), block(w), one(weights), block(y), one(rows)), (bool(reverse), high, low)
        kernel(0, 1, NO_ROOM[u.dtype], *blocks, *mixing, None, False)


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
