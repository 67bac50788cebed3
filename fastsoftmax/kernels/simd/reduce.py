"""Operations that fold the lanes of a vector into one float.

In the walk in rows, lanes are folded. In the walk in columns every lane is a row: then `folded` is None, and each
operation returns the vector unchanged.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from fastsoftmax.machine.lowering import INT32, AnyVector, Lanes, common, lowered


def _folding(combine: Callable[..., Any]) -> Callable[[Any], Any]:
    """`lowered` for an operation that combines all lanes by `combine`, half of them at a time."""

    def result(folded: Any, *vectors: Any) -> Any:
        if common(*vectors) is None or not isinstance(vectors[0], Lanes):
            return None
        item = vectors[0] if isinstance(folded, types.NoneType) else vectors[0].dtype
        return item if len(vectors) == 1 else types.UniTuple(item, len(vectors))

    def code(build: Any, folded: Any, *vectors: Any) -> Any:
        items: Sequence[Any] = vectors
        if not isinstance(build.signature.args[0], types.NoneType):
            lanes = vectors[0].type.count
            step = lanes // 2
            while step:
                turn = [(i + step) % lanes for i in range(lanes)]
                items = combine(
                    build, items, [build.shuffle(v, ir.Constant(v.type, ir.Undefined), turn) for v in items]
                )
                step //= 2
            items = [build.extract_element(v, INT32(0)) for v in items]
        return items[0] if len(items) == 1 else tuple(items)

    return lowered(code, result)


def _two_sum(build: Any, a: Any, b: Any) -> Any:
    (a_high, a_low), (b_high, b_low) = a, b
    total = build.fadd(a_high, b_high)
    b_part = build.fsub(total, a_high)
    a_error = build.fsub(a_high, build.fsub(total, b_part))
    error = build.fadd(a_error, build.fsub(b_high, b_part))
    return total, build.fadd(build.fadd(a_low, b_low), error)


@_folding(lambda build, a, b: [build.choose(">", a[0], b[0], a[0], b[0])])
def fold_maximum(folded: Any, vector: Any) -> Any:
    """The greatest lane."""
    return vector if folded is None else np.fmax.reduce(vector)


@_folding(lambda build, a, b: [build.fadd(a[0], b[0])])
def fold_sum(folded: Any, vector: Any) -> Any:
    """The sum of all lanes."""
    return vector if folded is None else vector.sum()


@_folding(_two_sum)
def fold_two_sum(folded: Any, high: Any, low: Any) -> Any:
    """The sum of all lanes of ``high + low``, in double-word arithmetic, as a pair."""
    if folded is None:
        return high, low
    exact = high.astype(np.longdouble).sum() + low.astype(np.longdouble).sum()
    total = high.dtype.type(exact)
    return total, high.dtype.type(exact - total)


def _doubled(build: Any, vector: Any) -> Any:
    lanes, half = vector.type.count, build.result.count
    if lanes == half:
        return vector
    parts = [build.shuffle(vector, vector, range(first, first + half)) for first in (0, half)]
    return build.fadd(*[build.fpext(part, build.result) for part in parts])


@lowered(_doubled, lambda vector: Lanes(types.float64))
def doubled(vector: AnyVector) -> Any:
    """The lanes as eight float64; those of float32 are 16, of which lanes k and k + 8 are added."""
    wide = vector.astype(np.float64)
    return wide if len(wide) == 8 else wide[:8] + wide[8:]
