"""The functions of ragged rows inside a user's own ``@njit`` code.

`register` tells Numba about them. An overload looks at the types when a caller is compiled, and leaves a function
that checks, copies and calls what the Python function calls, on one thread: with the same bits, and the same
errors but for what the types have decided before.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import overload

from fastsoftmax.api import segments as public
from fastsoftmax.kernels import reductions, segments
from fastsoftmax.kernels.simd.values import fma
from fastsoftmax.njit.weights import divisor_for, scaled_for

F = TypeVar("F", bound=Callable[..., Any])
Run = Callable[..., Any]

# A caller's fastmath, error model and forced inlining would else hold for what it calls.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False, "forceinline": False}
_KINDS = {types.float32: np.float32, types.float64: np.float64}
_REDUCTIONS = ("mean", "sum", "none")
HUGE, PIECE, COLUMNS = segments.HUGE, segments.PIECE, segments.COLUMNS


def _compiled(function: F) -> F:
    """A function that callers compile in."""
    return cast(F, njit(**_OPTIONS)(function))


# --- types ---------------------------------------------------------------------------------------------------


def _absent(argument: Any) -> bool:
    return argument is None or isinstance(argument, types.NoneType)


def _vector(function: str, name: str, argument: Any) -> Any:
    """The dtype in which a vector of real numbers is computed."""
    if not isinstance(argument, types.Array) or argument.ndim != 1:
        raise TypingError(f"{function}: {name} must be an array of one dimension, got {argument}")
    if argument.dtype in _KINDS:
        return argument.dtype
    if isinstance(argument.dtype, (types.Integer, types.Boolean)):
        return types.float64
    raise TypingError(
        f"{function}: {name} has dtype {argument.dtype}, expected float32, float64, integers or bools"
    )


def _integers(function: str, name: str, argument: Any) -> None:
    if not isinstance(argument, types.Array) or argument.ndim != 1:
        raise TypingError(f"{function}: {name} must be an array of one dimension, got {argument}")
    if not isinstance(argument.dtype, types.Integer):
        raise TypingError(f"{function}: {name} has dtype {argument.dtype}, expected integers")


def _output(function: str, out: Any, dtype: Any) -> None:
    if _absent(out):
        return
    if not isinstance(out, types.Array) or out.ndim != 1:
        raise TypingError(f"{function}: out must be an array of one dimension, got {out}")
    if out.dtype != dtype:
        raise TypingError(f"{function}: out has dtype {out.dtype}, expected {dtype}")
    if not out.mutable:
        raise TypingError(f"{function}: out is read-only")


def _conversion(kind: Any, argument: Any) -> Run:
    """The compiled ``array -> the same as a contiguous one of this dtype``."""
    if _KINDS.get(argument.dtype) is kind:
        return _compiled(lambda array: np.ascontiguousarray(array))
    return _compiled(lambda array: np.ascontiguousarray(array).astype(kind))


def _delivery(function: str, out: Any) -> tuple[Run, Run]:
    """Two compiled functions: ``(out, count)`` complains, ``(result, out)`` gives the user's result."""
    if _absent(out):
        return _compiled(lambda out, count: None), _compiled(lambda result, out: result)

    @_compiled
    def check(out: Any, count: Any) -> None:
        if out.size != count:
            raise ValueError(f"{function}: out has shape ({out.size},), expected ({count},)")

    @_compiled
    def deliver(result: Any, out: Any) -> Any:
        out[:] = result
        return out

    return check, deliver


# --- compiled into the caller ----------------------------------------------------------------------------------


def _pointers(function: str) -> Run:
    """The compiled `segments._row_pointers`."""

    @_compiled
    def check(indptr: Any, entries: int) -> Any:
        if indptr.size == 0:
            raise ValueError(f"{function}: indptr has shape (0,), expected one dimension and at least one entry")
        if indptr[0] != 0:
            raise ValueError(f"{function}: indptr[0] is {indptr[0]}, expected 0")
        last = indptr.size - 1
        for n in range(last):
            if indptr[n + 1] < indptr[n]:
                raise ValueError(
                    f"{function}: indptr[{n + 1}] is {indptr[n + 1]}, expected at least indptr[{n}], "
                    f"which is {indptr[n]}"
                )
        if indptr[last] != entries:
            raise ValueError(f"{function}: indptr[{last}] is {indptr[last]}, expected {entries}, the length of x")
        return indptr.astype(np.int64)

    return check


@_compiled
def _whole(indptr: Any) -> Any:
    """All segments as one block of work."""
    return np.array([0, indptr.size - 1])


@_compiled
def _pieces(indptr: Any) -> Any:
    """The table of pieces of huge segments, as `segments._pieces` makes it; empty if there is no such segment."""
    count = 0
    for n in range(indptr.size - 1):
        length = indptr[n + 1] - indptr[n]
        if length > HUGE:
            count += (length + PIECE - 1) // PIECE
    table = np.empty((count, COLUMNS), np.int64)
    i = 0
    for n in range(indptr.size - 1):
        length = indptr[n + 1] - indptr[n]
        if length > HUGE:
            first, last = i, i + (length + PIECE - 1) // PIECE
            for begin in range(indptr[n], indptr[n + 1], PIECE):
                table[i] = begin, min(begin + PIECE, indptr[n + 1]), first, last, n
                i += 1
    return table


@_compiled
def _statistics(pieces: Any, x: Any) -> Any:
    count = len(pieces)
    maxima, sums = np.empty(count, x.dtype), np.empty(3 * count, x.dtype)
    segments.piece_maxima(0, count, None, pieces.reshape(-1), x, maxima)
    segments.piece_sums(0, count, None, pieces.reshape(-1), maxima, x, sums)
    return maxima, sums


def _inverse(kind: Any) -> Run:
    """The compiled ``divisor -> 1/divisor as a pair``, as `arrays.weights.gradient_scale` has it."""

    @_compiled
    def inverse(divisor: float) -> Any:
        if not np.isfinite(divisor):
            return kind(np.nan), kind(0)
        high = kind(1.0 / divisor)
        if not np.isfinite(high):
            return high, kind(0)
        return high, kind(fma(-np.float64(high), divisor, 1.0) / divisor)

    return inverse


# --- the overloads ---------------------------------------------------------------------------------------------


def _forward(function: str, kernel: Any, piece_kernel: Any) -> Run:
    """softmax or log-softmax."""

    def choose(x: Any, indptr: Any, *, out: Any = None) -> Run:
        dtype = _vector(function, "x", x)
        _integers(function, "indptr", indptr)
        _output(function, out, dtype)
        kind = _KINDS[dtype]
        convert, row_pointers = _conversion(kind, x), _pointers(function)
        check, deliver = _delivery(function, out)

        def run(x: Any, indptr: Any, out: Any = None) -> Any:
            source = convert(x)
            table = row_pointers(indptr, source.size)
            check(out, source.size)
            result = np.empty(source.size, kind)
            kernel(0, 1, None, table, _whole(table), source, result)
            pieces = _pieces(table)
            if len(pieces) > 0:
                maxima, sums = _statistics(pieces, source)
                piece_kernel(0, len(pieces), None, pieces.reshape(-1), maxima, sums, source, result)
            return deliver(result, out)

        return run

    return choose


def _logsumexp(x: Any, indptr: Any, *, out: Any = None) -> Run:
    function = "segment_logsumexp"
    dtype = _vector(function, "x", x)
    _integers(function, "indptr", indptr)
    _output(function, out, dtype)
    kind = _KINDS[dtype]
    convert, row_pointers = _conversion(kind, x), _pointers(function)
    check, deliver = _delivery(function, out)

    def run(x: Any, indptr: Any, out: Any = None) -> Any:
        source = convert(x)
        table = row_pointers(indptr, source.size)
        check(out, table.size - 1)
        rows = np.empty(table.size - 1, kind)
        segments.segment_logsumexp(0, 1, None, table, _whole(table), source, rows)
        pieces = _pieces(table)
        if len(pieces) > 0:
            maxima, sums = _statistics(pieces, source)
            segments.piece_logsumexp(0, len(pieces), None, pieces.reshape(-1), maxima, sums, rows)
        return deliver(rows, out)

    return run


def _product(function: str, name: str, x: Any, indptr: Any, vector: Any, out: Any) -> Run:
    """The body of both products, which differ in the name of an argument."""
    dtype = _vector(function, "x", x)
    _integers(function, "indptr", indptr)
    if _vector(function, name, vector) == types.float64 == vector.dtype:
        dtype = types.float64
    _output(function, out, dtype)
    kind = _KINDS[dtype]
    convert, convert_vector, row_pointers = _conversion(kind, x), _conversion(kind, vector), _pointers(function)
    check, deliver = _delivery(function, out)

    @_compiled
    def run(x: Any, indptr: Any, vector: Any, out: Any) -> Any:
        source = convert(x)
        table = row_pointers(indptr, source.size)
        if vector.size != source.size:
            raise ValueError(
                f"{function}: {name} has shape ({vector.size},), expected that of x, ({source.size},)"
            )
        check(out, source.size)
        second = convert_vector(vector)
        result = np.empty(source.size, kind)
        segments.segment_softmax_product(0, 1, None, table, _whole(table), source, second, result, True)
        pieces = _pieces(table)
        if len(pieces) > 0:
            maxima, sums = _statistics(pieces, source)
            count, flat = len(pieces), pieces.reshape(-1)
            extents, dots = np.empty(2 * count, kind), np.empty(2 * count, kind)
            segments.piece_extents(0, count, None, flat, maxima, source, second, extents)
            segments.piece_dots(0, count, None, flat, maxima, sums, extents, source, second, dots)
            segments.piece_softmax_product(
                0, count, None, flat, maxima, sums, extents, source, second, dots, result
            )
        return deliver(result, out)

    return cast(Run, run)


def _jvp(x: Any, indptr: Any, tangent: Any, *, out: Any = None) -> Run:
    product = _product("segment_softmax_jvp", "tangent", x, indptr, tangent, out)

    def run(x: Any, indptr: Any, tangent: Any, out: Any = None) -> Any:
        return product(x, indptr, tangent, out)

    return run


def _vjp(x: Any, indptr: Any, cotangent: Any, *, out: Any = None) -> Run:
    product = _product("segment_softmax_vjp", "cotangent", x, indptr, cotangent, out)

    def run(x: Any, indptr: Any, cotangent: Any, out: Any = None) -> Any:
        return product(x, indptr, cotangent, out)

    return run


def _row_weights(function: str, kind: Any, sample_weight: Any, ignore_index: Any) -> Run:
    """The compiled ``(targets, sample_weight, ignore_index) -> weights of the segments``, None for 1."""
    if _absent(sample_weight) and _absent(ignore_index):
        return _compiled(lambda targets, sample_weight, ignore_index: None)
    if not _absent(ignore_index) and not isinstance(types.unliteral(ignore_index), types.Integer):
        raise TypingError(f"{function}: ignore_index must be an integer or None, got {ignore_index}")
    given, ignoring = not _absent(sample_weight), not _absent(ignore_index)
    if given:
        _vector(function, "sample_weight", sample_weight)

    @_compiled
    def row_weights(targets: Any, sample_weight: Any, ignore_index: Any) -> Any:
        weights = np.ones(targets.size, kind)
        if given:
            if sample_weight.size != targets.size:
                raise ValueError(
                    f"{function}: sample_weight has shape ({sample_weight.size},), expected ({targets.size},)"
                )
            weights[:] = sample_weight
        if ignoring:
            for n in range(targets.size):
                if targets[n] == ignore_index:
                    weights[n] = 0
        return weights

    return cast(Run, row_weights)


def _loss(
    function: str,
    gradient: bool,
    x: Any,
    indptr: Any,
    targets: Any,
    sample_weight: Any,
    ignore_index: Any,
    reduction: Any,
    out: Any,
) -> Run:
    """The body of the losses; without a gradient the second result is None."""
    dtype = _vector(function, "x", x)
    _integers(function, "indptr", indptr)
    _integers(function, "targets", targets)
    _output(function, out, dtype)
    how = getattr(reduction, "literal_value", reduction)
    if how not in _REDUCTIONS:
        raise TypingError(f"{function}: reduction must be one of {_REDUCTIONS}, as a literal, got {reduction}")
    kind = _KINDS[dtype]
    convert, row_pointers, inverse = _conversion(kind, x), _pointers(function), _inverse(kind)
    row_weights = _row_weights(function, kind, sample_weight, ignore_index)
    weighted = not (_absent(sample_weight) and _absent(ignore_index))
    ignored: Run = _compiled(lambda target, ignore_index: target == ignore_index)
    if _absent(ignore_index):
        ignored = _compiled(lambda target, ignore_index: False)
    check, deliver = _delivery(function, out)

    @_compiled
    def check_targets(targets: Any, table: Any, ignore_index: Any) -> Any:
        count = table.size - 1
        if targets.size != count:
            raise ValueError(
                f"{function}: targets has shape ({targets.size},), expected ({count},): one for each segment"
            )
        labels = targets.astype(np.int64)
        for n in range(count):
            length = table[n + 1] - table[n]
            if not 0 <= labels[n] < length:
                if ignored(targets[n], ignore_index):
                    continue
                if length == 0:
                    raise IndexError(
                        f"{function}: targets[{n}] is {targets[n]}, expected an ignored one, since segment {n} "
                        "is empty"
                    )
                raise IndexError(
                    f"{function}: targets[{n}] is {targets[n]}, expected a position from 0 to {length - 1}, "
                    f"within segment {n} of length {length}"
                )
        return labels

    divisor_of, scale = divisor_for(weighted and how == "mean", kind), scaled_for(kind)
    without: Run = _compiled(lambda weights, exponent: weights)
    if weighted and how == "mean":
        without = _compiled(lambda weights, exponent: scale(weights[:0], weights, weights.size, exponent))

    reduce: Run
    if how == "none":
        reduce = _compiled(lambda rows, divisor: rows)
    elif how == "sum":
        reduce = _compiled(lambda rows, divisor: kind(reductions.total(rows)))
    else:
        reduce = _compiled(lambda rows, divisor: kind(reductions.total(rows) / divisor))
    make: Run = _compiled(lambda source: np.empty(source.size, kind))
    finish = deliver
    if not gradient:
        make, finish = _compiled(lambda source: None), _compiled(lambda result, out: None)

    @_compiled
    def run(x: Any, indptr: Any, targets: Any, sample_weight: Any, ignore_index: Any, out: Any) -> Any:
        source = convert(x)
        table = row_pointers(indptr, source.size)
        labels = check_targets(targets, table, ignore_index)
        weights = row_weights(targets, sample_weight, ignore_index)
        check(out, source.size)
        whole, exponent = divisor_of(weights, 0, labels.size)
        weights = without(weights, -exponent)
        scale, scale_low = inverse(whole if how == "mean" else 1.0)
        result, rows = make(source), np.empty(labels.size, kind)
        segments.segment_cross_entropy(
            0, 1, None, table, _whole(table), source, labels, weights, result, rows, scale, scale_low
        )
        pieces = _pieces(table)
        if len(pieces) > 0:
            maxima, sums = _statistics(pieces, source)
            segments.piece_cross_entropy(
                0,
                len(pieces),
                None,
                pieces.reshape(-1),
                maxima,
                sums,
                source,
                labels,
                weights,
                result,
                rows,
                scale,
                scale_low,
            )
        return reduce(rows, whole), finish(result, out)

    return cast(Run, run)


def _cross_entropy(
    x: Any,
    indptr: Any,
    targets: Any,
    *,
    sample_weight: Any = None,
    ignore_index: Any = None,
    reduction: Any = "mean",
) -> Run:
    function = "segment_cross_entropy"
    loss = _loss(function, False, x, indptr, targets, sample_weight, ignore_index, reduction, None)

    def run(
        x: Any,
        indptr: Any,
        targets: Any,
        sample_weight: Any = None,
        ignore_index: Any = None,
        reduction: Any = "mean",
    ) -> Any:
        return loss(x, indptr, targets, sample_weight, ignore_index, None)[0]

    return run


def _cross_entropy_with_grad(
    x: Any,
    indptr: Any,
    targets: Any,
    *,
    sample_weight: Any = None,
    ignore_index: Any = None,
    reduction: Any = "mean",
    out: Any = None,
) -> Run:
    function = "segment_cross_entropy_with_grad"
    loss = _loss(function, True, x, indptr, targets, sample_weight, ignore_index, reduction, out)

    def run(
        x: Any,
        indptr: Any,
        targets: Any,
        sample_weight: Any = None,
        ignore_index: Any = None,
        reduction: Any = "mean",
        out: Any = None,
    ) -> Any:
        return loss(x, indptr, targets, sample_weight, ignore_index, out)

    return run


@lru_cache(maxsize=1)
def register() -> None:
    """Tell Numba about the functions of this file; once is enough, and more does no harm."""
    softmax = _forward("segment_softmax", segments.segment_softmax, segments.piece_softmax)
    log_softmax = _forward("segment_log_softmax", segments.segment_log_softmax, segments.piece_log_softmax)
    for function, choose in (
        (public.segment_softmax, softmax),
        (public.segment_log_softmax, log_softmax),
        (public.segment_logsumexp, _logsumexp),
        (public.segment_softmax_jvp, _jvp),
        (public.segment_softmax_vjp, _vjp),
        (public.segment_cross_entropy, _cross_entropy),
        (public.segment_cross_entropy_with_grad, _cross_entropy_with_grad),
    ):
        options = {**_OPTIONS, "parallel": False}
        overload(function, prefer_literal=True, strict=False, jit_options=options)(choose)
