"""The public functions for Dask arrays: lazy, chunk by chunk, with the results of the same arrays in memory.

The functions of the API hand a call over to this module when one of its arrays is a Dask array. What a call with
arrays in memory would refuse by shape, dtype or option is refused at once; nothing is computed until somebody asks
for it. There are two ways through:

whole rows
    No class axis is cut. Every chunk is a call of the in-memory function: a row gives the same bits.
rows in pieces
    Otherwise the pieces of each row are summed up, the summaries merged in a tree, and every piece is finished
    from the merged one (`fastsoftmax.arrays.long_rows`): the bounds of the in-memory function hold, and no task
    ever holds more than one chunk of each array. Only entropies, and Jacobians and Hessians, K by K for each row,
    bring their classes together.

Dask's workers have the processors: inside a task everything is done by the thread that runs it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import dask.array as da
import numpy as np

from fastsoftmax.api import activations, derivatives, losses
from fastsoftmax.api.entropy import softmax_entropy, softmax_entropy_with_grad
from fastsoftmax.arrays import long_rows
from fastsoftmax.arrays.blocks import Array, Problem, inverse_temperature, named, real_array
from fastsoftmax.arrays.threads import threads
from fastsoftmax.arrays.weights import (
    SUM,
    Divisor,
    check_reduction,
    converted,
    count_divisor,
    exponent_of,
    joined,
    joined_divisor,
    joined_loss,
    part_of_sum,
    part_of_weight,
    scaled,
)

Lazy = Any  # dask.array.Array, for which Dask has no types

SLAB = 1 << 18
"""Elements of a piece that are done at a time where that takes float64 arrays of its size."""

_PAIR = np.dtype([("high", np.float64), ("low", np.float64)])
_DIVISOR = np.dtype([("value", np.float64), ("exponent", np.int64)])
_CERTAIN = np.dtype([("found", np.float64), ("entry", np.float64), ("lacking", np.float64)])
_PLAN = np.dtype([("factor", np.float64), ("whole", np.float64)])


# --- arguments ----------------------------------------------------------------------------------------------


def _stand_in(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of this shape and dtype that takes no memory: what checks look at."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _array(function: str, name: str, value: Any, chunks: Any = -1) -> Lazy:
    """Any argument as a Dask array of a dtype that the kernels take; what is none yet is cut into `chunks`."""
    if not isinstance(value, da.Array):
        return da.from_array(real_array(function, name, value), chunks=chunks)
    real_array(function, name, np.empty(0, value.dtype))
    if any(n != n for n in value.shape):
        raise ValueError(
            f"{named(function, name)} has chunks of unknown size; call its compute_chunk_sizes() first"
        )
    return value


def _like(function: str, name: str, value: Any, shape: tuple[int, ...], chunks: Any) -> Lazy:
    """An argument of this shape, cut like the others; None stays None."""
    if value is None:
        return None
    given = np.shape(value)
    if given != shape:
        raise ValueError(f"{named(function, name)} has shape {given}, expected {shape}")
    return _array(function, name, value, chunks).rechunk(chunks)


def _main(function: str, name: str, value: Any, other: Any) -> Lazy:
    """The argument that gives shape and chunks; if it is in memory, it is cut like the `other`."""
    if not isinstance(value, da.Array) and isinstance(other, da.Array) and other.shape == np.shape(value):
        return _array(function, name, value, other.chunks)
    return _array(function, name, value)


def _problem(function: str, x: Lazy, axis: Any, **options: Any) -> Problem:
    return Problem(function, _stand_in(x.shape, x.dtype), axis, **options)


def _refuse_out(function: str, out: Any) -> None:
    if out is not None:
        raise TypeError(
            f"{named(function, 'out')} cannot be used with Dask arrays: their results are not there yet"
        )


def _mask(problem: Problem, where: Any, x: Lazy) -> Lazy:
    """The entries that take part, cut like x; None for all."""
    if where is None or where is True:
        return None
    lazy = where if isinstance(where, da.Array) else da.from_array(np.asarray(where), chunks=-1)
    problem.masked(_stand_in(lazy.shape, lazy.dtype))  # for its errors
    return da.broadcast_to(lazy, x.shape).rechunk(x.chunks)


def _uncut(x: Lazy, axes: tuple[int, ...]) -> bool:
    return all(x.numblocks[axis] == 1 for axis in axes)


# --- tasks --------------------------------------------------------------------------------------------------


def _alone(task: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    with threads(1):
        return task(*arrays, **options)


def _blocks(
    task: Callable[..., Any], index: tuple[int, ...], kind: Any, /, *arrays: Any, grid: Any = None, **options: Any
) -> Lazy:
    """``task(*arrays, **options)`` for the chunks of arrays, each followed by its index.

    `grid`: the sizes of the result's chunks along indices where they are others than those of the arrays.
    """
    pairs: list[Any] = []
    known: set[int] = set()
    for array, place in zip(arrays[::2], arrays[1::2], strict=True):
        pairs += [array, None if array is None else place]
        known.update(() if array is None else place)
    grid = grid or {}
    return da.blockwise(
        partial(_alone, task, **options),
        index,
        *pairs,
        token=f"fastsoftmax-{task.__name__.strip('_')}",
        new_axes={i: size for i, size in grid.items() if i not in known},
        adjust_chunks={i: size for i, size in grid.items() if i in known},
        align_arrays=False,
        concatenate=True,
        dtype=kind,
        meta=np.empty((0,) * len(index), kind),
    )


def _same(parts: Array, axis: Any, keepdims: bool) -> Array:
    return parts


def _tree(parts: Lazy, combine: Any, axes: tuple[int, ...]) -> Lazy:
    """One item for each piece combined along the axes, which stay with length 1."""
    return da.reduction(
        parts,
        chunk=_same,
        combine=combine,
        aggregate=combine,
        axis=axes,
        keepdims=True,
        concatenate=True,
        dtype=parts.dtype,
        meta=np.empty((0,) * parts.ndim, parts.dtype),
    )


def _matrix(x: Array, axes: tuple[int, ...]) -> Array:
    """The rows of x along the axes, as a matrix."""
    rest = [a for a in range(x.ndim) if a not in axes]
    moved = x.transpose(*rest, *axes)
    rows = int(np.prod(moved.shape[: len(rest)]))
    return moved.reshape(rows, int(np.prod(moved.shape[len(rest) :])))


def _restored(matrix: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """The way back of `_matrix`."""
    order = [a for a in range(len(shape)) if a not in axes] + list(axes)
    return matrix.reshape([shape[a] for a in order]).transpose(np.argsort(order))


def _kept(rows: Array, shape: tuple[int, ...], axes: Any) -> Array:
    """One item for each row, in the shape of the array with its axes of classes reduced to 1."""
    return rows.reshape([1 if a in axes else n for a, n in enumerate(shape)])


def _cast(array: Array, dtype: Any) -> Array:
    with np.errstate(all="ignore"):
        return array.astype(dtype, copy=False)


# --- softmax, log_softmax, logsumexp --------------------------------------------------------------------------


def _summarize(x: Array, axes: Any, beta: Any, dtype: Any) -> Array:
    return _kept(long_rows.summarize(_matrix(_cast(x, dtype), axes), beta), x.shape, axes)


def _merge(parts: Array, axis: Any, keepdims: bool, beta: Any = None) -> Array:
    return _kept(long_rows.merge(_matrix(parts, axis), beta), parts.shape, axis)


def _summaries(x: Lazy, axes: tuple[int, ...], dtype: Any, beta: Any = None) -> Lazy:
    """The merged summary of each row."""
    every, kind = tuple(range(x.ndim)), long_rows.summary_dtype(dtype)
    options = {"axes": axes, "beta": beta, "dtype": dtype, "grid": dict.fromkeys(axes, 1)}
    return _tree(_blocks(_summarize, every, kind, x, every, **options), partial(_merge, beta=beta), axes)


def _hide(x: Array, where: Array) -> Array:
    return np.where(where, x, np.asarray(-np.inf, x.dtype if x.dtype.kind == "f" else np.float64))


def _hidden(x: Lazy, mask: Lazy) -> Lazy:
    """x with -inf for what takes no part."""
    every = tuple(range(x.ndim))
    dtype = x.dtype if x.dtype.kind == "f" else np.float64
    return x if mask is None else _blocks(_hide, every, dtype, x, every, mask, every)


def _forward(x: Array, where: Any, function: str, axes: Any, temperature: float) -> Any:
    return getattr(activations, function)(x, axes, where=where, temperature=temperature)


def _finish(
    x: Array, summaries: Array, where: Any, function: str, axes: Any, beta: Any, hidden: float, dtypes: Any
) -> Array:
    computed, returned = dtypes
    piece = getattr(long_rows, function)(_matrix(_cast(x, computed), axes), summaries.reshape(-1), beta)
    result = _cast(_restored(piece, x.shape, axes), returned)
    if where is not None:
        np.copyto(result, hidden, where=~where)
    return result


def forward(function: str, x: Any, axis: Any, where: Any, temperature: float, out: Any, hidden: float) -> Lazy:
    """softmax or log_softmax; `hidden` is what masked entries get."""
    x = _main(function, "x", x, where)
    problem = _problem(function, x, axis, several=True)
    mask = _mask(problem, where, x)
    beta = inverse_temperature(function, temperature, problem.dtype)
    _refuse_out(function, out)
    axes, every = problem.axes, tuple(range(x.ndim))
    options: dict[str, Any] = {"function": function, "axes": axes}
    if _uncut(x, axes):
        options |= {"temperature": temperature}
        return _blocks(_forward, every, problem.result_dtype, x, every, mask, every, **options)
    x = _hidden(x, mask)
    summaries = _summaries(x, axes, problem.dtype, beta)
    options |= {"beta": beta, "hidden": hidden, "dtypes": (problem.dtype, problem.result_dtype)}
    return _blocks(_finish, every, problem.result_dtype, x, every, summaries, every, mask, every, **options)


def _logsumexp(x: Array, where: Any, axes: Any, keepdims: bool) -> Any:
    return activations.logsumexp(x, axes, where=where, keepdims=keepdims)


def _finish_logsumexp(summaries: Array, shape: Any, dtype: Any) -> Array:
    values = long_rows.logsumexp(summaries.reshape(-1))
    return _cast(values.reshape([summaries.shape[a] for a in shape]), dtype)


def logsumexp(x: Any, axis: Any, where: Any, keepdims: bool, out: Any) -> Lazy:
    """As `fastsoftmax.logsumexp`."""
    x = _main("logsumexp", "x", x, where)
    problem = _problem("logsumexp", x, axis, several=True)
    mask = _mask(problem, where, x)
    _refuse_out("logsumexp", out)
    axes, every = problem.axes, tuple(range(x.ndim))
    index = every if keepdims else tuple(a for a in every if a not in axes)
    grid = {a: 1 for a in axes if keepdims}
    dtype = problem.result_dtype
    if _uncut(x, axes):
        options = {"axes": axes, "keepdims": keepdims, "grid": grid}
        return _blocks(_logsumexp, index, dtype, x, every, mask, every, **options)
    summaries = _summaries(_hidden(x, mask), axes, problem.dtype)
    return _blocks(_finish_logsumexp, index, dtype, summaries, every, shape=index, dtype=dtype)


# --- derivatives ----------------------------------------------------------------------------------------------


def _derivative(x: Array, function: str, axis: int, options: dict[str, Any]) -> Any:
    return getattr(derivatives, function)(x, axis, **options)


def jacobian(function: str, x: Any, axis: int, temperature: float, from_probs: bool, out: Any) -> Lazy:
    """The Jacobian of each row, for which the classes of a row are brought into one chunk."""
    x = _array(function, "x", x)
    problem = _problem(function, x, axis, last=True)
    inverse_temperature(function, temperature, problem.dtype)
    _refuse_out(function, out)
    (place,) = problem.axes
    options: dict[str, Any] = {"temperature": temperature}
    if from_probs:
        options["from_probs"] = True
    x = x.rechunk({place: -1})
    every = tuple(range(x.ndim))
    index = (*(a for a in every if a != place), x.ndim, x.ndim + 1)
    grid = {x.ndim: problem.classes, x.ndim + 1: problem.classes}
    options = {"function": function, "axis": place, "options": options}
    return _blocks(_derivative, index, problem.result_dtype, x, every, grid=grid, **options)


def _multiply(x: Array, vector: Array, function: str, axis: int, options: dict[str, Any]) -> Any:
    return getattr(derivatives, function)(x, vector, axis, **options)


def _pair(high: Array, low: Any, shape: tuple[int, ...], axes: Any) -> Array:
    result = np.empty(high.shape, _PAIR)
    result["high"], result["low"] = high, low
    return _kept(result, shape, axes)


def _sum(values: Array) -> tuple[Array, Array]:
    """The sum along the last axis of float64 numbers as a pair."""
    with np.errstate(all="ignore"):
        return long_rows.pair_sum(values, np.zeros_like(values))


def _certain_piece(probs: Array, vector: Array, axis: int) -> Array:
    """Of a piece: how many classes have more than half of the probability (1 or 0), v there, the others' share.

    See `kernels.derivatives` for why v is measured from that of such a class.
    """
    at = probs > 0.5
    result = np.empty([1 if a == axis else n for a, n in enumerate(probs.shape)], _CERTAIN)
    with np.errstate(all="ignore"):
        result["found"] = at.sum(axis=axis, keepdims=True)
        result["entry"] = np.where(at, vector, 0).sum(axis=axis, keepdims=True, dtype=np.float64)
        result["lacking"] = np.where(at, 0, probs).sum(axis=axis, keepdims=True, dtype=np.float64)
    return result


def _add_certain(parts: Array, axis: Any, keepdims: bool) -> Array:
    result = np.empty([1 if a in axis else n for a, n in enumerate(parts.shape)], _CERTAIN)
    with np.errstate(all="ignore"):
        for field in _CERTAIN.names or ():
            result[field] = parts[field].sum(axis=tuple(axis), keepdims=True)
    return result


def _certain(probs: Lazy, vector: Lazy, axis: int) -> Lazy:
    """The certain class of each row, if it has one."""
    every = tuple(range(vector.ndim))
    parts = _blocks(_certain_piece, every, _CERTAIN, probs, every, vector, every, grid={axis: 1}, axis=axis)
    return _tree(parts, _add_certain, (axis,))


def _dot(probs: Array, vector: Array, certain: Any, axis: int, plain: bool) -> Array:
    """sum_j p_j (v_j - c) over a piece, c the v of a certain class; `plain`: sum_j v_j of the other classes."""
    values = vector.astype(np.float64)
    with np.errstate(all="ignore"):
        if plain:
            values[probs > 0.5] = 0
        else:
            values = values * probs if certain is None else (values - certain["entry"]) * probs
        return _pair(*_sum(_matrix(values, (axis,))), vector.shape, (axis,))


def _add(parts: Array, axis: Any, keepdims: bool) -> Array:
    pairs = _matrix(parts, axis)
    with np.errstate(all="ignore"):
        high, low = long_rows.pair_sum(pairs["high"], pairs["low"])
    return _pair(high, low, parts.shape, axis)


def _total(parts: Lazy, axis: int) -> Lazy:
    """The sum of pairs, one for each piece, over all pieces of a row."""
    return _tree(parts, _add, (axis,))


def _combine(
    probs: Any, vector: Array, certain: Any, dot: Array, function: str, temperature: float, dtype: Any
) -> Array:
    """The product with the Jacobian, from the sums of `_dot` over the whole row."""
    with np.errstate(all="ignore"):
        values = vector.astype(np.float64)
        if function == "log_softmax_vjp":
            others = dot["high"] + dot["low"]
            inside = values - probs * (others + certain["entry"])
            values = np.where(probs > 0.5, certain["lacking"] * values - probs * others, inside)
        else:
            if certain is not None:
                values = values - certain["entry"]
            values = (values - dot["high"]) - dot["low"]
            if function != "log_softmax_jvp":
                values *= probs
        return _cast(values / temperature, dtype)


def _probs(x: Lazy, axis: int, dtype: Any, beta: Any = None) -> Lazy:
    """softmax of rows in pieces, in the dtype of the computation."""
    every = tuple(range(x.ndim))
    options = {"function": "softmax", "axes": (axis,), "beta": beta, "hidden": 0.0, "dtypes": (dtype, dtype)}
    summaries = _summaries(x, (axis,), dtype, beta)
    return _blocks(_finish, every, dtype, x, every, summaries, every, None, None, **options)


def product(
    function: str, x: Any, name: str, vector: Any, axis: int, temperature: float, out: Any, from_probs: Any = None
) -> Lazy:
    """softmax_jvp, softmax_vjp, log_softmax_jvp or log_softmax_vjp."""
    x = _main(function, "x", x, vector)
    problem = _problem(function, x, axis)
    vector = _array(function, name, vector, x.chunks if np.shape(vector) == x.shape else -1)
    problem.operand(name, _stand_in(vector.shape, vector.dtype))
    vector = vector.rechunk(x.chunks)
    beta = inverse_temperature(function, temperature, problem.dtype)
    _refuse_out(function, out)
    (place,) = problem.axes
    every = tuple(range(x.ndim))
    dtype = problem.result_dtype
    if _uncut(x, (place,)):
        keywords = {"temperature": temperature, **({"from_probs": True} if from_probs else {})}
        options: dict[str, Any] = {"function": function, "axis": place, "options": keywords}
        return _blocks(_multiply, every, dtype, x, every, vector, every, **options)
    probs = x if from_probs else _probs(x, place, problem.dtype, beta)
    certain = None if from_probs else _certain(probs, vector, place)
    arrays = (probs, every, vector, every, certain, every)
    plain = function == "log_softmax_vjp"
    dot = _total(_blocks(_dot, every, _PAIR, *arrays, grid={place: 1}, axis=place, plain=plain), place)
    options = {"function": function, "temperature": float(temperature), "dtype": dtype}
    needed = None if function == "log_softmax_jvp" else probs
    return _blocks(_combine, every, dtype, needed, every, vector, every, certain, every, dot, every, **options)


# --- losses ---------------------------------------------------------------------------------------------------


def _check_labels(labels: Array, function: str, classes: int, ignore_index: Any, block_info: Any = None) -> Array:
    """The labels, or an IndexError with the position among all of them."""
    origin = tuple(start for start, _ in block_info[0]["array-location"]) if block_info else ()
    losses.check_labels(function, labels, classes, ignore_index, origin)
    return labels


class _Loss:
    """The arguments of a loss as Dask arrays, checked, with the classes as the last axis.

    `divisor`: what a mean divides by, a `Divisor` or a Dask array of one; None if there is no mean.
    """

    def __init__(
        self,
        function: str,
        logits: Any,
        targets: Any,
        axis: int,
        reduction: str,
        options: Any,
        tangent: Any = None,
    ) -> None:
        x = _main(function, "logits", logits, targets)
        problem = _problem(function, x, axis, name="logits")
        (place,) = problem.axes
        self.tangent = None
        if tangent is not None:  # which may widen the dtype that weights are added up in
            tangent = _array(function, "tangent", tangent)
            problem.operand("tangent", _stand_in(tangent.shape, tangent.dtype))
        if (
            not isinstance(logits, da.Array)
            and isinstance(targets, da.Array)
            and targets.shape == problem.row_shape
        ):
            x = x.rechunk((*targets.chunks[:place], -1, *targets.chunks[place:]))
        check_reduction(function, reduction)
        self.function, self.problem, self.place, self.reduction = function, problem, place, reduction
        self.is_cross_entropy = function.startswith("cross_entropy")
        targets = _array(function, "targets", targets)
        if self.is_cross_entropy:
            self.soft = losses.check_kind(problem, targets, options["ignore_index"])
            self._check_options(options)
        else:
            problem.target_like("targets", _stand_in(targets.shape, targets.dtype))
            self.soft = True
        self.options = {key: options[key] for key in ("ignore_index", "label_smoothing") if key in options}
        self.x = da.moveaxis(x, place, -1)
        chunks = self.x.chunks
        if tangent is not None:
            self.tangent = da.moveaxis(tangent, place, -1).rechunk(chunks)
        self.rows = tuple(range(x.ndim - 1))
        self.every = (*self.rows, x.ndim - 1)
        self.last = (x.ndim - 1,)
        classes = (problem.classes,)
        self.class_weight = _like(function, "class_weight", options.get("class_weight"), classes, chunks[-1:])
        self.sample_weight = _like(
            function, "sample_weight", options.get("sample_weight"), problem.row_shape, chunks[:-1]
        )
        if self.soft:
            self.targets = da.moveaxis(targets, place, -1).rechunk(chunks)
        else:
            checks = {"classes": problem.classes, "ignore_index": options["ignore_index"]}
            checked = targets.map_blocks(
                _check_labels,
                dtype=targets.dtype,
                meta=np.empty((0,) * targets.ndim, targets.dtype),
                function=function,
                **checks,
            )
            self.targets = checked.rechunk(chunks[:-1])
        self.target_index = self.every if self.soft else self.rows
        self.whole_weight = None if self.class_weight is None else self.class_weight.rechunk(-1)
        self.divisor = self._divisor() if reduction == "mean" else None

    @property
    def uncut(self) -> bool:
        return _uncut(self.x, self.last)

    def _check_options(self, options: dict[str, Any]) -> None:
        """By the in-memory code, on targets without rows."""
        classes = self.problem.classes
        problem = Problem(self.function, np.empty((0, classes), self.problem.dtype), -1, name="logits")
        targets = np.zeros((0, classes)) if self.soft else np.zeros(0, np.intp)
        options = {key: options[key] for key in ("ignore_index", "label_smoothing")}
        losses.RowTargets(problem, targets, self.reduction, options)

    def _divisor(self) -> Any:
        ignored = self.options.get("ignore_index")
        plain = self.class_weight is None and self.sample_weight is None and ignored is None
        if plain or (self.is_cross_entropy and self.soft):
            return count_divisor(self.problem.rows)
        labels = None if self.soft else self.targets
        parts = _blocks(
            _counted,
            self.rows,
            SUM,
            labels,
            self.rows,
            self.whole_weight if self.is_cross_entropy else None,
            self.last,
            self.sample_weight,
            self.rows,
            grid=dict.fromkeys(self.rows, 1),
            function=self.function,
            classes=self.problem.classes,
            dtype=self.problem.dtype,
            options=self.options,
        )
        parts = _joined(parts)
        return _blocks(_joined_divisor, (), _DIVISOR, parts, self.rows, rows=self.problem.rows)

    def divided(self) -> tuple[Any, Any]:
        """The divisor, and its index in `_blocks`: a constant, or a Dask array of no dimension."""
        return (self.divisor, ()) if isinstance(self.divisor, da.Array) else (None, None)

    def constant(self) -> Divisor | None:
        """The divisor if it is known already."""
        return None if isinstance(self.divisor, da.Array) else self.divisor

    @property
    def row_dtype(self) -> Any:
        """The dtype of the losses of the rows: sums of float16 are not made of numbers rounded to it."""
        return self.problem.result_dtype if self.reduction == "none" else self.problem.dtype

    def reduced(self, losses: Lazy) -> Lazy:
        """The loss as the user wants it, from one number for each row."""
        if self.reduction == "none":
            return losses
        kind, grid = SUM, dict.fromkeys(self.rows, 1)
        parts = _joined(_blocks(_part_of_sum, self.rows, kind, losses, self.rows, grid=grid))
        dtype = self.problem.result_dtype
        given = (parts, self.rows, *self.divided())
        return _blocks(_joined_loss, (), dtype, *given, constant=self.constant(), dtype=dtype)

    def back(self, result: Lazy) -> Lazy:
        """With the classes where the user has them."""
        return da.moveaxis(result, -1, self.place)


def _counted(
    labels: Any, class_weight: Any, sample_weight: Any, function: str, classes: int, dtype: Any, options: Any
) -> Array:
    """What the rows of a chunk add to the divisor of a mean, with a length of 1 along every axis."""
    if labels is None:
        part = part_of_weight(converted(sample_weight, dtype))
        return part.reshape((1,) * sample_weight.ndim)
    options = {**options, "class_weight": class_weight, "sample_weight": sample_weight}
    return losses.counted(function, labels, classes, dtype, options).reshape((1,) * labels.ndim)


def _part_of_sum(losses: Array) -> Array:
    return part_of_sum(losses).reshape((1,) * losses.ndim)


def _join(parts: Array, axis: Any, keepdims: bool) -> Array:
    return joined(parts).reshape((1,) * parts.ndim)


def _joined(parts: Lazy) -> Lazy:
    """All parts of a sum over the rows as one."""
    return _tree(parts, _join, tuple(range(parts.ndim))) if parts.ndim else parts


def _joined_divisor(parts: Array, rows: int) -> Array:
    return np.array(joined_divisor(parts, rows), _DIVISOR)


def _known_divisor(divisor: Any, constant: Any) -> Any:
    """The divisor of a mean inside a task: what a task before it has found out, or what was known already."""
    if divisor is None:
        return constant
    return Divisor(float(divisor["value"]), int(divisor["exponent"]))


def _joined_loss(parts: Array, divisor: Any, constant: Any, dtype: Any) -> Any:
    return joined_loss(parts, _known_divisor(divisor, constant), dtype)


def _whole_rows(
    x: Array,
    targets: Array,
    class_weight: Any,
    sample_weight: Any,
    divisor: Any,
    function: str,
    reduction: str,
    gradient: bool,
    constant: Any,
    options: dict[str, Any],
) -> Any:
    """The losses of the rows of a chunk, alone or with the gradient."""
    divisor = _known_divisor(divisor, constant)
    if function.startswith("cross_entropy"):
        options = {**options, "class_weight": class_weight, "sample_weight": sample_weight}
        _, rows, slope, _ = losses.cross_entropy_rows(
            function, x, targets, -1, reduction, None, gradient, options, divisor
        )
    else:
        _, rows, slope, _ = losses.squared_error_rows(
            function, x, targets, -1, sample_weight, reduction, None, gradient, divisor
        )
    return (rows, slope) if gradient else rows


def _item(pairs: Any, place: int) -> Any:
    """One of the two results of `_whole_rows`, out of the lists that Dask hands over for a reduced index."""
    while isinstance(pairs, list):
        (pairs,) = pairs
    return pairs[place]


def loss(
    function: str, logits: Any, targets: Any, axis: int, reduction: str, out: Any, gradient: bool, options: Any
) -> tuple[Lazy, Lazy]:
    """cross_entropy, squared_error and their gradients: the loss and, if it is asked for, the gradient."""
    given = _Loss(function, logits, targets, axis, reduction, options)
    _refuse_out(function, out)
    if not given.uncut:
        return _loss_in_pieces(given, gradient)
    every, rows, dtype = given.every, given.rows, given.problem.result_dtype
    row_dtype = given.row_dtype
    arrays = (
        given.x,
        every,
        given.targets,
        given.target_index,
        given.class_weight,
        given.last,
        given.sample_weight,
        rows,
        *given.divided(),
    )
    keywords = {
        "function": function,
        "reduction": reduction,
        "gradient": gradient,
        "constant": given.constant(),
        "options": given.options,
    }
    if not gradient:
        return given.reduced(_blocks(_whole_rows, rows, row_dtype, *arrays, **keywords)), None
    both = _blocks(_whole_rows, every, dtype, *arrays, **keywords)

    def item(place: int, index: tuple[int, ...], kind: Any) -> Lazy:
        meta = np.empty((0,) * len(index), kind)
        return da.blockwise(_item, index, both, every, place=place, dtype=kind, meta=meta, align_arrays=False)

    losses, slope = item(0, rows, row_dtype), item(1, every, dtype)
    return given.reduced(losses), given.back(slope)


# --- losses of rows in pieces ---------------------------------------------------------------------------------


def _plan(
    labels: Array,
    class_weight: Any,
    sample_weight: Any,
    divisor: Any,
    function: str,
    classes: int,
    dtype: Any,
    reduction: str,
    constant: Any,
    options: Any,
) -> Array:
    """How often each row counts, and the sum of its shares (see `kernels.losses`)."""
    problem = Problem(function, _stand_in((*labels.shape, classes), dtype), -1, name="logits")
    options = {**options, "class_weight": class_weight, "sample_weight": sample_weight}
    given = losses.RowTargets(problem, labels, reduction, options, _known_divisor(divisor, constant))
    result = np.ones(labels.shape, _PLAN)
    if given.row_weights is not None:
        result["factor"] = given.row_weights
    given.row_weights = None
    whole = given.totals()
    if whole is not None:
        result["whole"] = whole
    return result


def _soft_plan(whole: Array, sample_weight: Any, dtype: Any) -> Array:
    result = np.ones(whole.shape[:-1], _PLAN)
    result["whole"] = whole["high"][..., 0] + whole["low"][..., 0]
    if sample_weight is not None:
        result["factor"] = converted(sample_weight, dtype)
    return result


def _normal_weights(class_weight: Array, dtype: Any) -> Array:
    """The weights of classes as `losses.RowTargets` has them beside the weights of the rows."""
    weights = converted(class_weight, dtype)
    return scaled(weights, -exponent_of(weights))


def _shares(targets: Array, ids: Array, class_weight: Any, mix: Any) -> Any:
    """share_j = w_j (base + gain y_j) of a piece, whose classes are `ids`."""
    base, gain, soft, plain = mix
    y = targets if soft else targets[..., None] == ids
    shares = base + gain * y.astype(np.float64)
    return shares if class_weight is None or plain else shares * class_weight.astype(np.float64)


def _share_sum(targets: Array, ids: Array, class_weight: Any, mix: Any) -> Array:
    shares = _shares(targets, ids, class_weight, mix)
    return _pair(*_sum(_matrix(shares, (shares.ndim - 1,))), shares.shape, (shares.ndim - 1,))


def _slabs(x: Array) -> list[slice] | None:
    """Rows that are done at a time, so that temporary float64 arrays stay small; None if x is small itself."""
    if x.size <= SLAB or len(x) == 1 or x.ndim == 1:
        return None
    step = max(1, SLAB * len(x) // x.size)
    return [slice(start, start + step) for start in range(0, len(x), step)]


def _loss_piece(
    x: Array, summaries: Array, targets: Array, ids: Array, class_weight: Any, mix: Any, dtype: Any
) -> Array:
    """-sum_j share_j log p_j over a piece, as a pair."""
    if (slabs := _slabs(x)) is not None:
        parts = [_loss_piece(x[s], summaries[s], targets[s], ids, class_weight, mix, dtype) for s in slabs]
        return np.concatenate(parts)
    last = (x.ndim - 1,)
    matrix = _cast(_matrix(x, last), dtype)
    summaries = summaries.reshape(-1)
    with np.errstate(all="ignore"):
        if mix[-1]:  # one class, which lies in one piece
            labels = targets.reshape(-1).astype(np.int64) - int(ids[0])
            inside = (labels >= 0) & (labels < len(ids))
            entries = np.take_along_axis(matrix, np.where(inside, labels, 0)[:, None], -1)
            terms = np.where(inside[:, None], -long_rows.log_softmax(entries, summaries).astype(np.float64), 0)
        else:
            shares = _matrix(_shares(targets, ids, class_weight, mix), last)
            terms = -shares * long_rows.log_softmax(matrix, summaries)
            terms[shares == 0] = 0
    return _pair(*_sum(terms), x.shape, last)


def _loss_rows(total: Array, plan: Array, dtype: Any) -> Array:
    with np.errstate(all="ignore"):
        value = plan["factor"] * (total["high"] + total["low"])[..., 0]
        return np.where(plan["factor"] == 0, 0, value).astype(dtype)


def _weight(plan: Array, divisor: Any, constant: Any) -> Array:
    """What the derivatives of each row are multiplied by, 0 where it does not count, with an axis of classes."""
    known = _known_divisor(divisor, constant)
    value = 1.0 if known is None else known.value
    with np.errstate(all="ignore"):
        return np.where(plan["factor"] == 0, 0, plan["factor"] / value)[..., None]


def _spared(weight: Array, value: Array, dtype: Any) -> Array:
    with np.errstate(all="ignore"):
        return np.where(weight == 0, 0, weight * value).astype(dtype)


def _known(x: Array, summaries: Array, dtype: Any) -> tuple[Array, Array, Array]:
    """Of a piece: p; where the greatest entry of the row is; 1 - p of that entry."""
    last = (x.ndim - 1,)
    x = _cast(x, dtype)
    probs = long_rows.softmax(_matrix(x, last), summaries.reshape(-1)).reshape(x.shape)
    lacking = long_rows.remainder(summaries.reshape(-1)).reshape(summaries.shape)
    return probs.astype(np.float64), x == summaries["m"], lacking.astype(np.float64)


def _gradient_piece(
    x: Array,
    summaries: Array,
    targets: Array,
    ids: Array,
    class_weight: Any,
    plan: Array,
    divisor: Any,
    constant: Any,
    mix: Any,
    dtypes: Any,
) -> Array:
    """weight (p sum(shares) - share), with 1 - p in place of p where that has the digits."""
    if (slabs := _slabs(x)) is not None:
        result = np.empty(x.shape, dtypes[1])
        for s in slabs:
            given = (ids, class_weight, plan[s], divisor, constant, mix, dtypes)
            result[s] = _gradient_piece(x[s], summaries[s], targets[s], *given)
        return result
    probs, greatest, lacking = _known(x, summaries, dtypes[0])
    shares = _shares(targets, ids, class_weight, mix)
    whole = plan["whole"][..., None]
    with np.errstate(all="ignore"):
        crest = greatest & (lacking < 0.5)
        slope = np.where(crest, (whole - shares) - lacking * whole, probs * whole - shares)
    return _spared(_weight(plan, divisor, constant), slope, dtypes[1])


def _difference(probs: Array, targets: Array, certain: Array) -> Array:
    """d = p - t, as (1 - t) - (1 - p) at a certain class."""
    with np.errstate(all="ignore"):
        return np.where(probs > 0.5, (1.0 - targets) - certain["lacking"], probs.astype(np.float64) - targets)


def _centre(certain: Array) -> Array:
    """The difference at the certain class, from the target there; 0 where there is none."""
    with np.errstate(all="ignore"):
        return np.where(certain["found"] > 0, (1.0 - certain["entry"]) - certain["lacking"], 0)


def _error_piece(probs: Array, targets: Array, certain: Array, square: bool) -> Array:
    """sum_j d_j**2 or sum_j p_j (d_j - c) over a piece, c the d of a certain class."""
    last = (probs.ndim - 1,)
    with np.errstate(all="ignore"):
        difference = _difference(probs, targets, certain)
        terms = difference * difference if square else probs * (difference - _centre(certain))
        return _pair(*_sum(_matrix(terms, last)), probs.shape, last)


def _half(total: Array, plan: Array, dtype: Any) -> Array:
    halved = np.empty_like(total)
    halved["high"], halved["low"] = total["high"] / 2, total["low"] / 2
    return _loss_rows(halved, plan, dtype)


def _error_gradient(
    probs: Array, targets: Array, certain: Array, dot: Array, plan: Array, divisor: Any, constant: Any, dtype: Any
) -> Array:
    """weight p (d - p.d)."""
    with np.errstate(all="ignore"):
        slope = ((_difference(probs, targets, certain) - _centre(certain)) - dot["high"]) - dot["low"]
        return _spared(_weight(plan, divisor, constant), probs * slope, dtype)


def _weight_plan(sample_weight: Array, divisor: Any, constant: Any, dtype: Any) -> Array:
    result = np.ones(sample_weight.shape, _PLAN)
    known = _known_divisor(divisor, constant)
    weights = converted(sample_weight, dtype)
    result["factor"] = weights if known is None else scaled(weights, -known.exponent)
    return result


class _Pieces:
    """What the losses of rows in pieces share: the class numbers of the pieces, the plan of the rows."""

    def __init__(self, loss: _Loss) -> None:
        self.loss = loss
        problem, rows = loss.problem, loss.rows
        self.ids = da.arange(problem.classes, chunks=(loss.x.chunks[-1],))
        divided = {"constant": loss.constant(), "dtype": problem.dtype}
        if not loss.is_cross_entropy and loss.sample_weight is None:
            sizes = tuple(loss.x.shape[a] for a in rows), tuple(loss.x.chunks[a] for a in rows)
            self.plan = da.ones(sizes[0], chunks=sizes[1], dtype=_PLAN)
            return
        if not loss.is_cross_entropy:
            weights = (loss.sample_weight, rows, *loss.divided())
            self.plan = _blocks(_weight_plan, rows, _PLAN, *weights, **divided)
            return
        smoothing = float(loss.options["label_smoothing"])
        base = float(problem.dtype.type(smoothing / max(problem.classes, 1)))
        self.mix = base, float(problem.dtype.type(1 - smoothing)), loss.soft, not loss.soft and base == 0
        class_weight = loss.class_weight
        if class_weight is not None and not loss.soft and base != 0 and loss.divisor is not None:
            whole = loss.whole_weight
            normal = _blocks(_normal_weights, loss.last, problem.dtype, whole, loss.last, dtype=problem.dtype)
            class_weight = normal.rechunk(class_weight.chunks)
        self.shares = (loss.targets, loss.target_index, self.ids, loss.last, class_weight, loss.last)
        if loss.soft:
            one = {loss.last[0]: 1}
            parts = _blocks(_share_sum, loss.every, _PAIR, *self.shares, grid=one, mix=self.mix)
            whole = _total(parts, loss.last[0])
            weights = (whole, loss.every, loss.sample_weight, rows)
            self.plan = _blocks(_soft_plan, rows, _PLAN, *weights, dtype=problem.dtype)
            return
        self.plan = _blocks(
            _plan,
            rows,
            _PLAN,
            loss.targets,
            rows,
            loss.whole_weight,
            loss.last,
            loss.sample_weight,
            rows,
            *loss.divided(),
            function=loss.function,
            classes=problem.classes,
            reduction=loss.reduction,
            options=loss.options,
            **divided,
        )

    def row_sum(self, task: Any, *arrays: Any, **options: Any) -> Lazy:
        """The sum of a task's pairs over the pieces of each row."""
        (last,) = self.loss.last
        return _total(_blocks(task, self.loss.every, _PAIR, *arrays, grid={last: 1}, **options), last)


def _loss_in_pieces(loss: _Loss, gradient: bool) -> tuple[Lazy, Lazy]:
    pieces = _Pieces(loss)
    problem, every, rows = loss.problem, loss.every, loss.rows
    dtype, row_dtype = problem.result_dtype, loss.row_dtype
    given = (pieces.plan, rows, *loss.divided())
    slope = None
    if not loss.is_cross_entropy:
        probs = _probs(loss.x, loss.last[0], problem.dtype)
        certain = _certain(probs, loss.targets, loss.last[0])
        pair = (probs, every, loss.targets, every, certain, every)
        total = pieces.row_sum(_error_piece, *pair, square=True)
        losses = _blocks(_half, rows, row_dtype, total, every, pieces.plan, rows, dtype=row_dtype)
        if gradient:
            dot = pieces.row_sum(_error_piece, *pair, square=False)
            options: dict[str, Any] = {"constant": loss.constant(), "dtype": dtype}
            slope = loss.back(_blocks(_error_gradient, every, dtype, *pair, dot, every, *given, **options))
        return loss.reduced(losses), slope
    summaries = _summaries(loss.x, loss.last, problem.dtype)
    arrays = (loss.x, every, summaries, every, *pieces.shares)
    total = pieces.row_sum(_loss_piece, *arrays, mix=pieces.mix, dtype=problem.dtype)
    losses = _blocks(_loss_rows, rows, row_dtype, total, every, pieces.plan, rows, dtype=row_dtype)
    if gradient:
        options = {"constant": loss.constant(), "mix": pieces.mix, "dtypes": (problem.dtype, dtype)}
        slope = loss.back(_blocks(_gradient_piece, every, dtype, *arrays, *given, **options))
    return loss.reduced(losses), slope


# --- second derivatives ---------------------------------------------------------------------------------------


def _curve(
    x: Array,
    targets: Array,
    tangent: Any,
    class_weight: Any,
    sample_weight: Any,
    divisor: Any,
    function: str,
    reduction: str,
    constant: Any,
    options: dict[str, Any],
) -> Any:
    """Second derivatives of whole rows."""
    options = {**options, "class_weight": class_weight, "sample_weight": sample_weight}
    known = _known_divisor(divisor, constant)
    return losses.curvature_rows(function, x, targets, tangent, -1, reduction, None, options, known)


def _scaled(value: Array, plan: Array, divisor: Any, constant: Any, dtype: Any) -> Array:
    return _spared(plan["whole"][..., None] * _weight(plan, divisor, constant), value, dtype)


def _variance(x: Array, summaries: Array, dtype: Any) -> Any:
    """p (1 - p)."""
    probs, greatest, lacking = _known(x, summaries, dtype)
    with np.errstate(all="ignore"):
        return probs * np.where(greatest, lacking, 1 - probs)


def curvature(
    function: str, logits: Any, targets: Any, tangent: Any, axis: int, reduction: str, out: Any, options: Any
) -> Lazy:
    """cross_entropy_hvp, cross_entropy_hessian_diag or cross_entropy_hessian."""
    dense = function == "cross_entropy_hessian"
    if tangent is not None and not isinstance(logits, da.Array) and isinstance(tangent, da.Array):
        logits = _main(function, "logits", logits, tangent)
    if dense and isinstance(logits, da.Array):
        logits = logits.rechunk({_problem(function, logits, axis, name="logits").axes[0]: -1})
    loss = _Loss(function, logits, targets, axis, reduction, options, tangent)
    _refuse_out(function, out)
    problem, every, rows, tangent = loss.problem, loss.every, loss.rows, loss.tangent
    dtype = problem.result_dtype
    if loss.uncut:
        index = (*rows, *loss.last, loss.last[0] + 1) if dense else every
        arrays = (loss.x, every, loss.targets, loss.target_index, tangent, every, loss.class_weight, loss.last)
        result = _blocks(
            _curve,
            index,
            dtype,
            *arrays,
            loss.sample_weight,
            rows,
            *loss.divided(),
            grid={index[-1]: problem.classes} if dense else None,
            function=function,
            reduction=reduction,
            constant=loss.constant(),
            options=loss.options,
        )
        return result if dense else loss.back(result)
    pieces = _Pieces(loss)
    if tangent is None:
        summaries = _summaries(loss.x, loss.last, problem.dtype)
        value = _blocks(_variance, every, np.float64, loss.x, every, summaries, every, dtype=problem.dtype)
    else:
        probs = _probs(loss.x, loss.last[0], problem.dtype)
        known = (probs, every, tangent, every, _certain(probs, tangent, loss.last[0]), every)
        dot = pieces.row_sum(_dot, *known, axis=loss.last[0], plain=False)
        simple = {"function": "softmax_jvp", "temperature": 1.0, "dtype": np.dtype(np.float64)}
        value = _blocks(_combine, every, np.float64, *known, dot, every, **simple)
    given = (value, every, pieces.plan, rows, *loss.divided())
    return loss.back(_blocks(_scaled, every, dtype, *given, constant=loss.constant(), dtype=dtype))


# --- entropy --------------------------------------------------------------------------------------------------


def _entropies(x: Array, axis: int, temperature: float) -> Any:
    return softmax_entropy(x, axis, temperature=temperature)


def _entropy_gradients(x: Array, axis: int, temperature: float) -> Any:
    return softmax_entropy_with_grad(x, axis, temperature=temperature)[1]


def entropy(function: str, x: Lazy, axis: int, temperature: float, out: Any) -> tuple[Lazy, Lazy]:
    """The entropy of each row and its gradient, for which the classes of a row are brought into one chunk."""
    x = _array(function, "x", x)
    problem = _problem(function, x, axis)
    inverse_temperature(function, temperature, problem.dtype)
    _refuse_out(function, out)
    (place,) = problem.axes
    x = x.rechunk({place: -1})
    every = tuple(range(x.ndim))
    options = {"axis": place, "temperature": temperature}
    rows = tuple(a for a in every if a != place)
    return (
        _blocks(_entropies, rows, problem.result_dtype, x, every, **options),
        _blocks(_entropy_gradients, every, problem.result_dtype, x, every, **options),
    )
