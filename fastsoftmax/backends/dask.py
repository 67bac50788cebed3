"""The public functions for Dask arrays: lazy, chunk by chunk, with the results of the same arrays in memory.

`call` is used if one of the arguments is a Dask array. Wrong shapes, dtypes and options are refused at once, as
for arrays in memory; nothing is computed until the result is asked for. There are two methods:

whole rows
    No class axis is cut. Each chunk is a call of the in-memory function: every row has the same bits.
rows in pieces
    Otherwise each piece of a row gets a summary, the summaries are merged in a tree, and the results of a piece
    follow from the merged one (`fastsoftmax.arrays.long_rows`). The bounds of the in-memory function hold, and no
    task holds more than one chunk of each array. Functions without `pieces` in `fastsoftmax._spec`, and losses
    with a z-loss or capped logits, first bring the classes of a row into one chunk.

Losses of single logits have no rows that could be cut: a task computes the entries of a chunk.

Functions of features and weights take features that are cut over the rows, and weights in memory. Each task has
the logits of its rows only, and sums over the rows are added up in a tree.

Dask's workers already use all processors, so a task does all its work in one thread.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask import delayed

from fastsoftmax._spec import ENTRIES, FUNCTIONS, LIKE, LOSS, ROWS, SQUARE, Function
from fastsoftmax.api import activations, derivatives, entropy, sampling, statistics
from fastsoftmax.arrays import binary, long_rows
from fastsoftmax.arrays.blocks import Array, Problem, inverse_temperature, named, real_array, stand_in
from fastsoftmax.arrays.linear import (
    Linear,
    LinearGradients,
    block_rows,
    check_targets,
    loss_parts,
    returned_dtype,
    wanted_gradients,
)
from fastsoftmax.arrays.linear import statistics as statistics_of_products
from fastsoftmax.arrays.losses import curvature_rows, loss_rows
from fastsoftmax.arrays.options import (
    LossOptions,
    RowTargets,
    check_kind,
    check_labels,
    known_divisor,
    part_of_divisor,
    row_targets,
)
from fastsoftmax.arrays.sampling import Draws, filters_of
from fastsoftmax.arrays.statistics import LabelStatistics
from fastsoftmax.arrays.threads import threads
from fastsoftmax.arrays.weights import (
    SUM,
    Divisor,
    converted,
    count_divisor,
    joined,
    joined_divisor,
    joined_loss,
    joined_weights,
    normalized,
    part_of_sum,
    repeated_divisor,
)

Lazy = Any  # dask.array.Array, for which Dask has no types

SLAB = 1 << 18
"""Elements of a piece that are computed at a time, where this needs float64 arrays of that size."""

_PAIR = np.dtype([("high", np.float64), ("low", np.float64)])
_DIVISOR = np.dtype([("value", np.float64), ("exponent", np.int64)])
_CERTAIN = np.dtype([("found", np.float64), ("entry", np.float64), ("lacking", np.float64)])
_PLAN = np.dtype([("factor", np.float64), ("whole", np.float64)])


# --- arguments ----------------------------------------------------------------------------------------------


def _array(function: str, name: str, value: Any, chunks: Any = -1) -> Lazy:
    """An argument as a Dask array of a dtype that the kernels take; an array in memory is cut into `chunks`."""
    if not isinstance(value, da.Array):
        return da.from_array(real_array(function, name, value), chunks=chunks)
    real_array(function, name, np.empty(0, value.dtype))
    return _of_known_size(function, name, value)


def _of_known_size(function: str, name: str, value: Lazy) -> Lazy:
    """The array; ValueError if it has chunks of unknown size."""
    if any(n != n for n in value.shape):
        raise ValueError(
            f"{named(function, name)} has chunks of unknown size; call its compute_chunk_sizes() first"
        )
    return value


def _like(function: str, name: str, value: Any, shape: tuple[int, ...], chunks: Any) -> Lazy:
    """An argument of this shape, cut into these chunks; None stays None."""
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
    return Problem(function, stand_in(x.shape, x.dtype), axis, **options)


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
    problem.masked(stand_in(lazy.shape, lazy.dtype))  # for its errors
    return da.broadcast_to(lazy, x.shape).rechunk(x.chunks)


def _uncut(x: Lazy, axes: tuple[int, ...]) -> bool:
    return all(x.numblocks[axis] == 1 for axis in axes)


# --- tasks --------------------------------------------------------------------------------------------------


def _alone(task: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    with threads(1):
        return task(*arrays, **options)


def _blocks(
    task: Callable[..., Any],
    index: tuple[int, ...],
    kind: Any,
    /,
    *arrays: Any,
    grid: Any = None,
    how: Callable[..., Any] = _alone,
    shared: Any = None,
    **options: Any,
) -> Lazy:
    """``task(*arrays, **options)`` for the chunks of arrays, each followed by its index.

    `grid` has the sizes of the result's chunks along indices where they differ from those of the arrays. `how`
    calls the task. `shared` are options that are results of Dask, the same for all chunks.
    """
    pairs: list[Any] = []
    known: set[int] = set()
    for array, place in zip(arrays[::2], arrays[1::2], strict=True):
        pairs += [array, None if array is None else place]
        known.update(() if array is None else place)
    grid = grid or {}
    return da.blockwise(
        partial(how, task, **options),
        index,
        *pairs,
        token=f"fastsoftmax-{task.__name__.strip('_')}",
        new_axes={i: size for i, size in grid.items() if i not in known},
        adjust_chunks={i: size for i, size in grid.items() if i in known},
        align_arrays=False,
        concatenate=True,
        dtype=kind,
        meta=np.empty((0,) * len(index), kind),
        **(shared or {}),
    )


def _item(results: Any, place: int) -> Any:
    """One of the results of a task, taken out of the lists that Dask makes for a reduced index."""
    while isinstance(results, list):
        (results,) = results
    return results[place]


def _items(both: Lazy, *results: tuple[tuple[int, ...], Any]) -> tuple[Lazy, ...]:
    """The results of tasks that return several, each with its index and dtype; whole rows only.

    A `SUM` has length 1 along the axes of its index.
    """
    every = tuple(range(both.ndim))

    def item(place: int, index: tuple[int, ...], kind: Any) -> Lazy:
        return da.blockwise(
            _item,
            index,
            both,
            every,
            place=place,
            adjust_chunks=dict.fromkeys(index, 1) if kind == SUM else None,
            dtype=kind,
            meta=np.empty((0,) * len(index), kind),
            align_arrays=False,
        )

    return tuple(item(place, *result) for place, result in enumerate(results))


def _same(parts: Array, axis: Any, keepdims: bool) -> Array:
    return parts


def _tree(parts: Lazy, combine: Any, axes: tuple[int, ...]) -> Lazy:
    """Combine the items of all pieces along the axes, which are kept with length 1."""
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
    """The inverse of `_matrix`."""
    order = [a for a in range(len(shape)) if a not in axes] + list(axes)
    return matrix.reshape([shape[a] for a in order]).transpose(np.argsort(order))


def _kept(rows: Array, shape: tuple[int, ...], axes: Any) -> Array:
    """One item for each row, in the shape of the array with its axes of classes reduced to 1."""
    return rows.reshape([1 if a in axes else n for a, n in enumerate(shape)])


def _cast(array: Array, dtype: Any) -> Array:
    with np.errstate(all="ignore"):
        return array.astype(dtype, copy=False)


# --- whole rows -----------------------------------------------------------------------------------------------

_API = {
    "activations": activations,
    "derivatives": derivatives,
    "entropy": entropy,
    "sampling": sampling,
    "statistics": statistics,
}


def _in_memory(*arrays: Any, function: Function, axis: Any, **options: Any) -> Any:
    """The public function, for the rows of a chunk."""
    return getattr(_API[function.module], function.name)(*arrays, axis, **options)


def _masked(x: Array, where: Any, **options: Any) -> Any:
    return _in_memory(x, where=where, **options)


def _whole_rows(
    function: Function, problem: Problem, *arrays: Lazy, task: Any = _in_memory, **options: Any
) -> Any:
    """A function of rows that lie in one chunk each; the arrays have the shape of x."""
    every = tuple(range(len(problem.shape)))
    rows, last = tuple(a for a in every if a not in problem.axes), len(every)
    if options.get("keepdims"):
        rows, options["grid"] = every, dict.fromkeys(problem.axes, 1)
    if SQUARE in function.result:
        options["grid"] = dict.fromkeys((last, last + 1), problem.classes)
    indices = {LIKE: every, ROWS: rows, SQUARE: (*rows, last, last + 1)}
    results = [(indices[result], problem.result_dtype) for result in function.result]
    pairs = [item for array in arrays for item in (array, every)]
    place = problem.axes if function.family == "forward" else problem.axes[0]
    options |= {"function": function, "axis": place}
    if len(results) == 1:
        return _blocks(task, *results[0], *pairs, **options)
    return _items(_blocks(task, every, problem.result_dtype, *pairs, **options), *results)


def _gathered(
    function: Function, x: Any, *, axis: Any, out: Any, temperature: float, from_probs: bool = False
) -> Any:
    """A Jacobian, or the entropy of each row and its gradient: the classes of a row are brought into one chunk."""
    x = _array(function.name, "x", x)
    problem = _problem(function.name, x, axis)
    inverse_temperature(function.name, temperature, problem.dtype)
    _refuse_out(function.name, out)
    x = x.rechunk({problem.axes[0]: -1})
    return _whole_rows(function, problem, x, **_keywords(temperature, from_probs))


def _keywords(temperature: float, from_probs: bool) -> dict[str, Any]:
    """The options of a derivative; not all of them have `from_probs`."""
    return {"temperature": temperature, **({"from_probs": True} if from_probs else {})}


def _statistics(function: Function, x: Any, labels: Any, *, axis: Any, out: Any, **options: Any) -> Any:
    """`label_statistics`: the classes of a row are brought into one chunk."""
    x = _array(function.name, "logits", x)
    problem = _problem(function.name, x, axis, name="logits")
    (place,) = problem.axes
    inverse_temperature(function.name, options["temperature"], problem.dtype)
    labels = _array(function.name, "labels", labels)
    check_kind(problem, labels, LossOptions(ignore_index=options["ignore_index"]))
    x = x.rechunk({place: -1})
    every = tuple(range(x.ndim))
    rows = tuple(a for a in every if a != place)
    checked = labels.map_blocks(
        _check_labels,
        dtype=labels.dtype,
        meta=np.empty((0,) * labels.ndim, labels.dtype),
        function=function.name,
        classes=problem.classes,
        ignore_index=options["ignore_index"],
        argument="labels",
    ).rechunk(tuple(x.chunks[a] for a in rows))
    options |= {"function": function, "axis": place}
    found = _blocks(_in_memory, every, problem.result_dtype, x, every, checked, rows, **options)
    kinds = (problem.result_dtype, np.int64, np.int64, problem.result_dtype, problem.result_dtype)
    return LabelStatistics(*_items(found, *[(rows, np.dtype(kind)) for kind in kinds]))


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
    """x with -inf for masked entries."""
    every = tuple(range(x.ndim))
    dtype = x.dtype if x.dtype.kind == "f" else np.float64
    return x if mask is None else _blocks(_hide, every, dtype, x, every, mask, every)


def _finish(
    x: Array, summaries: Array, where: Any, function: str, axes: Any, beta: Any, hidden: float, dtypes: Any
) -> Array:
    computed, returned = dtypes
    piece = getattr(long_rows, function)(_matrix(_cast(x, computed), axes), summaries.reshape(-1), beta)
    result = _cast(_restored(piece, x.shape, axes), returned)
    if where is not None:
        np.copyto(result, hidden, where=~where)
    return result


def _finish_logsumexp(summaries: Array, shape: Any, dtype: Any) -> Array:
    values = long_rows.logsumexp(summaries.reshape(-1))
    return _cast(values.reshape([summaries.shape[a] for a in shape]), dtype)


def _forward(function: Function, x: Any, *, axis: Any, out: Any, where: Any, **options: Any) -> Lazy:
    """softmax and log_softmax, with `temperature`, and logsumexp, with `keepdims`."""
    x = _main(function.name, "x", x, where)
    problem = _problem(function.name, x, axis, several=True)
    mask = _mask(problem, where, x)
    beta = inverse_temperature(function.name, options.get("temperature", 1.0), problem.dtype)
    _refuse_out(function.name, out)
    axes, every, dtype = problem.axes, tuple(range(x.ndim)), problem.result_dtype
    if _uncut(x, axes):
        return _whole_rows(function, problem, x, mask, task=_masked, **options)
    x = _hidden(x, mask)
    summaries = _summaries(x, axes, problem.dtype, beta)
    if ROWS in function.result:
        index = every if options["keepdims"] else tuple(a for a in every if a not in axes)
        return _blocks(_finish_logsumexp, index, dtype, summaries, every, shape=index, dtype=dtype)
    options = {"function": function.name, "axes": axes, "beta": beta, "dtypes": (problem.dtype, dtype)}
    options["hidden"] = -np.inf if function.name == "log_softmax" else 0.0
    return _blocks(_finish, every, dtype, x, every, summaries, every, mask, every, **options)


# --- derivatives ----------------------------------------------------------------------------------------------


def _pair(high: Array, low: Any, shape: tuple[int, ...], axes: Any) -> Array:
    result = np.empty(high.shape, _PAIR)
    result["high"], result["low"] = high, low
    return _kept(result, shape, axes)


def _sum(values: Array) -> tuple[Array, Array]:
    """The sum along the last axis of float64 numbers as a pair."""
    with np.errstate(all="ignore"):
        return long_rows.pair_sum(values, np.zeros_like(values))


def _certain_piece(probs: Array, vector: Array, axis: int) -> Array:
    """For a piece: the number of classes with p > 1/2 (1 or 0), v of that class, and the sum of the other p.

    `kernels.derivatives` explains why v is measured from its value at such a class.
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
    """The certain class of each row, which is the class with p > 1/2, if there is one."""
    every = tuple(range(vector.ndim))
    parts = _blocks(_certain_piece, every, _CERTAIN, probs, every, vector, every, grid={axis: 1}, axis=axis)
    return _tree(parts, _add_certain, (axis,))


def _dot(probs: Array, vector: Array, certain: Any, axis: int, plain: bool) -> Array:
    """sum_j p_j (v_j - c) over a piece, where c is v of the certain class; `plain`: sum_j v_j of the others."""
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


def _product(
    function: Function, x: Any, vector: Any, *, axis: int, out: Any, temperature: float, from_probs: bool
) -> Lazy:
    """softmax_jvp, softmax_vjp, log_softmax_jvp or log_softmax_vjp."""
    name, role = function.name, function.operands[1]
    x = _main(name, "x", x, vector)
    problem = _problem(name, x, axis)
    vector = _array(name, role, vector, x.chunks if np.shape(vector) == x.shape else -1)
    problem.operand(role, stand_in(vector.shape, vector.dtype))
    vector = vector.rechunk(x.chunks)
    beta = inverse_temperature(name, temperature, problem.dtype)
    _refuse_out(name, out)
    (place,) = problem.axes
    every = tuple(range(x.ndim))
    if _uncut(x, (place,)):
        return _whole_rows(function, problem, x, vector, **_keywords(temperature, from_probs))
    probs = x if from_probs else _probs(x, place, problem.dtype, beta)
    certain = None if from_probs else _certain(probs, vector, place)
    arrays = (probs, every, vector, every, certain, every)
    plain = name == "log_softmax_vjp"
    dot = _total(_blocks(_dot, every, _PAIR, *arrays, grid={place: 1}, axis=place, plain=plain), place)
    options: dict[str, Any] = {"function": name, "temperature": float(temperature), "dtype": problem.result_dtype}
    needed = (None if name == "log_softmax_jvp" else probs, *arrays[1:])
    return _blocks(_combine, every, problem.result_dtype, *needed, dot, every, **options)


# --- losses ---------------------------------------------------------------------------------------------------


def _check_labels(
    labels: Array,
    function: str,
    classes: int,
    ignore_index: Any,
    argument: str = "targets",
    block_info: Any = None,
) -> Array:
    """The labels, or an IndexError with the position among all of them."""
    origin = tuple(start for start, _ in block_info[0]["array-location"]) if block_info else ()
    check_labels(function, labels, classes, ignore_index, origin, argument)
    return labels


def _divided(task: Callable[..., Any], *arrays: Any, constant: Divisor | None, **options: Any) -> Any:
    """A task whose last argument is the divisor of a mean: the result of an earlier task, or a constant."""
    *arguments, found = arrays
    divisor = constant if found is None else Divisor(float(found["value"]), int(found["exponent"]))
    return _alone(task, *arguments, divisor, **options)


def _divided_blocks(
    divisor: Any, task: Any, index: tuple[int, ...], kind: Any, /, *arrays: Any, **options: Any
) -> Lazy:
    """`_blocks` of a task that takes the divisor as the last of its arrays."""
    lazy = isinstance(divisor, da.Array)
    found, constant = ((divisor, ()), None) if lazy else ((None, None), divisor)
    return _blocks(task, index, kind, *arrays, *found, how=_divided, constant=constant, **options)


def _whole_loss(losses: Lazy, divisor: Any, dtype: Any) -> Lazy:
    """The mean or the sum of the losses of all rows."""
    rows = tuple(range(losses.ndim))
    return _quotient(_blocks(_part_of_sum, rows, SUM, losses, rows, grid=dict.fromkeys(rows, 1)), divisor, dtype)


def _quotient(parts: Lazy, divisor: Any, dtype: Any) -> Lazy:
    """The mean or the sum of losses of which the parts are a `SUM` each."""
    rows = tuple(range(parts.ndim))
    return _divided_blocks(divisor, joined_loss, (), dtype, _joined(parts), rows, dtype=dtype)


def _counted_divisor(request: "_Request", count: int, labels: Lazy, rows: tuple[int, ...], *weights: Any) -> Lazy:
    """The divisor of a mean that depends on labels or weights of the rows."""
    grid = dict.fromkeys(rows, 1)
    found = _blocks(_counted, rows, SUM, labels, rows, *weights, grid=grid, request=request)
    parts = _joined(found, joined_weights)
    return _blocks(_joined_divisor, (), _DIVISOR, parts, rows, rows=count)


class _Request(NamedTuple):
    """The arguments of every task of a loss: its public name, the dtype of the computation, the options."""

    function: str
    classes: int
    dtype: Any
    options: LossOptions

    def weighted(self, class_weight: Any, sample_weight: Any) -> LossOptions:
        """All options, with weights of the rows of a chunk."""
        return self.options._replace(class_weight=class_weight, sample_weight=sample_weight)


class _Loss:
    """The arguments of a loss as Dask arrays, checked, with the classes as the last axis.

    `divisor` is that of the mean, a `Divisor` or a Dask array of one; None if there is no mean. `known` is the
    `RowTargets` of the options without weights. `weights` are those of the classes and of the samples, each
    followed by its index, as `_blocks` takes them.
    """

    def __init__(
        self, function: Function, logits: Any, targets: Any, tangent: Any, axis: int, options: LossOptions
    ) -> None:
        name = function.name
        if tangent is not None:
            logits = _main(name, "logits", logits, tangent)
        x = _main(name, "logits", logits, targets)
        problem = _problem(name, x, axis, name="logits")
        (place,) = problem.axes
        if tangent is not None:  # a tangent may widen the dtype in which weights are added
            tangent = _array(name, "tangent", tangent)
            problem.operand("tangent", stand_in(tangent.shape, tangent.dtype))
        in_memory = not isinstance(logits, da.Array) and isinstance(targets, da.Array)
        if in_memory and targets.shape == problem.row_shape:
            x = x.rechunk((*targets.chunks[:place], -1, *targets.chunks[place:]))
        if not function.pieces or options.regularization(name) is not None:
            x = x.rechunk({place: -1})
        options.check_reduction(name)
        self.function, self.problem, self.place = function, problem, place
        targets = _array(name, function.second, targets)
        soft = check_kind(problem, targets, options)
        options_only = options._replace(class_weight=None, sample_weight=None)
        self.request = _Request(name, problem.classes, problem.dtype, options_only)
        self.known = self._without_rows(soft)
        self.x = da.moveaxis(x, place, -1)
        chunks = self.x.chunks
        self.tangent = None if tangent is None else da.moveaxis(tangent, place, -1).rechunk(chunks)
        self.rows = tuple(range(x.ndim - 1))
        self.every, self.last = (*self.rows, x.ndim - 1), (x.ndim - 1,)
        self.class_weight = _like(name, "class_weight", options.class_weight, (problem.classes,), chunks[-1:])
        self.sample_weight = _like(name, "sample_weight", options.sample_weight, problem.row_shape, chunks[:-1])
        if soft:
            self.targets = da.moveaxis(targets, place, -1).rechunk(chunks)
        else:
            checked = targets.map_blocks(
                _check_labels,
                dtype=targets.dtype,
                meta=np.empty((0,) * targets.ndim, targets.dtype),
                function=name,
                classes=problem.classes,
                ignore_index=options.ignore_index,
                argument=function.second,
            )
            self.targets = checked.rechunk(chunks[:-1])
        self.target_index = self.every if soft else self.rows
        self.labels = None if soft else self.targets
        whole_weight = None if self.class_weight is None else self.class_weight.rechunk(-1)
        self.weights = (whole_weight, self.last, self.sample_weight, self.rows)
        self.divisor = self._divisor(options) if options.is_mean else None

    @property
    def uncut(self) -> bool:
        return _uncut(self.x, self.last)

    def _without_rows(self, soft: bool) -> RowTargets:
        """The `RowTargets` of the options, from targets without rows."""
        function, classes, dtype, options = self.request
        problem = Problem(function, np.empty((0, classes), dtype), -1, name="logits")
        return row_targets(problem, np.zeros((0, classes)) if soft else np.zeros(0, np.intp), options)

    def _divisor(self, options: LossOptions) -> Any:
        known = known_divisor(self.function.name, self.known.soft, options, self.problem.rows)
        if known is not None:
            return known
        return _counted_divisor(self.request, self.problem.rows, self.labels, self.rows, *self.weights)

    def blocks(self, task: Any, index: tuple[int, ...], kind: Any, /, *arrays: Any, **options: Any) -> Lazy:
        """`_blocks` of a task that takes the divisor as the last of its arrays."""
        return _divided_blocks(self.divisor, task, index, kind, *arrays, **options)

    @property
    def row_dtype(self) -> Any:
        """The dtype of the losses of the rows. Losses that are reduced are not rounded to float16 first."""
        return self.problem.result_dtype if self.request.options.reduction == "none" else self.problem.dtype

    def finished(self, losses: Lazy, gradient: Lazy) -> Any:
        """The result of the call, from the loss of each row and the gradient."""
        if self.request.options.reduction != "none" and LOSS in self.function.result:
            losses = _whole_loss(losses, self.divisor, self.problem.result_dtype)
        results = [losses if result == LOSS else self.back(gradient) for result in self.function.result]
        return results[0] if len(results) == 1 else tuple(results)

    def back(self, result: Lazy) -> Lazy:
        """`result` with the axis of the classes where the user has it."""
        return da.moveaxis(result, -1, self.place)


def _counted(labels: Any, class_weight: Any, sample_weight: Any, request: _Request) -> Array:
    """The part of a chunk in the divisor of a mean, with a length of 1 along every axis."""
    options = request.weighted(class_weight, sample_weight)
    part = part_of_divisor(request.function, labels, request.classes, request.dtype, options)
    return part.reshape((1,) * (sample_weight if labels is None else labels).ndim)


def _part_of_sum(losses: Array) -> Array:
    return part_of_sum(losses).reshape((1,) * losses.ndim)


def _join(parts: Array, axis: Any, keepdims: bool, join: Any) -> Array:
    whole: Array = join(parts)
    return whole.reshape((1,) * parts.ndim)


def _joined(parts: Lazy, join: Any = joined) -> Lazy:
    """The sum of all parts of a sum over the rows."""
    return _tree(parts, partial(_join, join=join), tuple(range(parts.ndim))) if parts.ndim else parts


def _joined_divisor(parts: Array, rows: int) -> Array:
    return np.array(joined_divisor(parts, rows), _DIVISOR)


def _losses(
    x: Array,
    targets: Array,
    class_weight: Any,
    sample_weight: Any,
    divisor: Divisor | None,
    request: _Request,
    gradient: bool,
) -> Any:
    """The losses of the rows of a chunk, alone or with the gradient."""
    options = request.weighted(class_weight, sample_weight)
    found = loss_rows(request.function, x, targets, -1, options, gradient=gradient, divisor=divisor)
    return (found.rows, found.gradient) if gradient else found.rows


def _loss(function: Function, logits: Any, targets: Any, *, axis: int, out: Any, options: LossOptions) -> Any:
    """A loss of each row, its gradient, or both."""
    loss = _Loss(function, logits, targets, None, axis, options)
    _refuse_out(function.name, out)
    gradient = LIKE in function.result
    if not loss.uncut:
        return loss.finished(*_IN_PIECES[function.loss](loss, gradient))
    every, rows, dtype = loss.every, loss.rows, loss.problem.result_dtype
    arrays = (loss.x, every, loss.targets, loss.target_index, *loss.weights)
    keywords = {"request": loss.request, "gradient": gradient}
    if not gradient:
        return loss.finished(loss.blocks(_losses, rows, loss.row_dtype, *arrays, **keywords), None)
    both = loss.blocks(_losses, every, dtype, *arrays, **keywords)
    return loss.finished(*_items(both, (rows, loss.row_dtype), (every, dtype)))


# --- losses of rows in pieces ---------------------------------------------------------------------------------


def _plan(
    labels: Any, whole: Any, class_weight: Any, sample_weight: Any, divisor: Divisor | None, request: _Request
) -> Array:
    """The weight of each row, and the sum of its shares (`kernels.losses`); `whole` is that sum if it is known."""
    result = np.ones(next(rows.shape for rows in (labels, sample_weight, whole) if rows is not None), _PLAN)
    if labels is None and sample_weight is None:
        result = result[..., 0]
    x = stand_in((*result.shape, request.classes), request.dtype)
    problem, options = Problem(request.function, x, -1), request.weighted(class_weight, sample_weight)
    given = row_targets(problem, x if labels is None else labels, options, divisor)
    if given.row_weights is not None:
        result["factor"] = given.row_weights
    if whole is not None:
        result["whole"] = whole["high"][..., 0] + whole["low"][..., 0]
    elif labels is not None:
        given.row_weights = None
        sums = given.totals()
        result["whole"] = 1 if sums is None else sums
    return result


def _plan_of(loss: _Loss, whole: Lazy = None) -> Lazy:
    """The `_plan` of all rows; `whole` are the sums of the shares of distributions."""
    rows = loss.rows
    if loss.labels is None and whole is None and loss.sample_weight is None:
        x = loss.x
        return da.ones([x.shape[a] for a in rows], chunks=tuple(x.chunks[a] for a in rows), dtype=_PLAN)
    arrays = (loss.labels, rows, whole, loss.every, *loss.weights)
    return loss.blocks(_plan, rows, _PLAN, *arrays, request=loss.request)


def _row_sum(loss: _Loss, task: Any, *arrays: Any, **options: Any) -> Lazy:
    """The sum of a task's pairs over the pieces of each row."""
    (last,) = loss.last
    return _total(_blocks(task, loss.every, _PAIR, *arrays, grid={last: 1}, **options), last)


def _normal_weights(class_weight: Array, dtype: Any) -> Array:
    """The class weights as in `RowTargets`, where they are not part of the weights of the rows."""
    return normalized(converted(class_weight, dtype))[0]


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
    """Rows to compute at a time, so that temporary float64 arrays stay small; None if x is small itself."""
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


def _loss_rows(total: Array, plan: Array, dtype: Any, unit: float = 1.0) -> Array:
    """The losses of the rows: their sums times `unit` and the weights of the rows."""
    with np.errstate(all="ignore"):
        value = plan["factor"] * (unit * total["high"] + unit * total["low"])[..., 0]
        return np.where(plan["factor"] == 0, 0, value).astype(dtype)


def _weight(plan: Array, divisor: Divisor | None) -> Array:
    """The factor of the derivatives of each row, 0 if the row does not count, with an axis of classes."""
    value = 1.0 if divisor is None else divisor.value
    with np.errstate(all="ignore"):
        return np.where(plan["factor"] == 0, 0, plan["factor"] / value)[..., None]


def _spared(weight: Array, value: Array, dtype: Any) -> Array:
    with np.errstate(all="ignore"):
        return np.where(weight == 0, 0, weight * value).astype(dtype)


def _known(x: Array, summaries: Array, dtype: Any) -> tuple[Array, Array, Array]:
    """For a piece: p, whether an entry is the greatest of its row, and 1 - p of the greatest entry."""
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
    divisor: Divisor | None,
    mix: Any,
    dtypes: Any,
) -> Array:
    """weight (p sum(shares) - share), computed from 1 - p where p > 1/2."""
    if (slabs := _slabs(x)) is not None:
        result = np.empty(x.shape, dtypes[1])
        for s in slabs:
            given = (ids, class_weight, plan[s], divisor, mix, dtypes)
            result[s] = _gradient_piece(x[s], summaries[s], targets[s], *given)
        return result
    probs, greatest, lacking = _known(x, summaries, dtypes[0])
    shares = _shares(targets, ids, class_weight, mix)
    whole = plan["whole"][..., None]
    with np.errstate(all="ignore"):
        crest = greatest & (lacking < 0.5)
        slope = np.where(crest, (whole - shares) - lacking * whole, probs * whole - shares)
    return _spared(_weight(plan, divisor), slope, dtypes[1])


def _difference(probs: Array, targets: Array, certain: Array) -> Array:
    """d = p - t, computed as (1 - t) - (1 - p) at the certain class."""
    with np.errstate(all="ignore"):
        return np.where(probs > 0.5, (1.0 - targets) - certain["lacking"], probs.astype(np.float64) - targets)


def _centre(certain: Array) -> Array:
    """d at the certain class; 0 if there is none."""
    with np.errstate(all="ignore"):
        return np.where(certain["found"] > 0, (1.0 - certain["entry"]) - certain["lacking"], 0)


def _error_piece(probs: Array, targets: Array, certain: Array, square: bool) -> Array:
    """sum_j d_j**2 or sum_j p_j (d_j - c) over a piece, where c is d of the certain class."""
    last = (probs.ndim - 1,)
    with np.errstate(all="ignore"):
        difference = _difference(probs, targets, certain)
        terms = difference * difference if square else probs * (difference - _centre(certain))
        return _pair(*_sum(_matrix(terms, last)), probs.shape, last)


def _error_gradient(
    probs: Array, targets: Array, certain: Array, dot: Array, plan: Array, divisor: Divisor | None, dtype: Any
) -> Array:
    """weight p (d - p.d)."""
    with np.errstate(all="ignore"):
        slope = ((_difference(probs, targets, certain) - _centre(certain)) - dot["high"]) - dot["low"]
        return _spared(_weight(plan, divisor), probs * slope, dtype)


def _weighed_shares(loss: _Loss) -> tuple[tuple[Any, ...], Any, Lazy]:
    """The arrays and the options of `_shares` for a cross-entropy, and the plan of the rows."""
    known, problem = loss.known, loss.problem
    mix = float(known.base), float(known.gain), known.soft, known.plain
    class_weight = loss.class_weight
    if class_weight is not None and not known.soft and not known.plain and loss.divisor is not None:
        normal = _blocks(_normal_weights, loss.last, problem.dtype, *loss.weights[:2], dtype=problem.dtype)
        class_weight = normal.rechunk(class_weight.chunks)
    ids = da.arange(problem.classes, chunks=(loss.x.chunks[-1],))
    arrays = (loss.targets, loss.target_index, ids, loss.last, class_weight, loss.last)
    whole = _row_sum(loss, _share_sum, *arrays, mix=mix) if known.soft else None
    return arrays, mix, _plan_of(loss, whole)


def _cross_entropy(loss: _Loss, gradient: bool) -> tuple[Lazy, Lazy]:
    problem, every, rows = loss.problem, loss.every, loss.rows
    shares, mix, plan = _weighed_shares(loss)
    arrays = (loss.x, every, _summaries(loss.x, loss.last, problem.dtype), every, *shares)
    total = _row_sum(loss, _loss_piece, *arrays, mix=mix, dtype=problem.dtype)
    losses = _blocks(_loss_rows, rows, loss.row_dtype, total, every, plan, rows, dtype=loss.row_dtype)
    if not gradient:
        return losses, None
    options = {"mix": mix, "dtypes": (problem.dtype, problem.result_dtype)}
    return losses, loss.blocks(_gradient_piece, every, problem.result_dtype, *arrays, plan, rows, **options)


def _squared_error(loss: _Loss, gradient: bool) -> tuple[Lazy, Lazy]:
    every, rows, (last,) = loss.every, loss.rows, loss.last
    plan, probs = _plan_of(loss), _probs(loss.x, last, loss.problem.dtype)
    arrays = (probs, every, loss.targets, every, _certain(probs, loss.targets, last), every)
    total = _row_sum(loss, _error_piece, *arrays, square=True)
    losses = _blocks(_loss_rows, rows, loss.row_dtype, total, every, plan, rows, dtype=loss.row_dtype, unit=0.5)
    if not gradient:
        return losses, None
    dot, dtype = _row_sum(loss, _error_piece, *arrays, square=False), loss.problem.result_dtype
    return losses, loss.blocks(_error_gradient, every, dtype, *arrays, dot, every, plan, rows, dtype=dtype)


_IN_PIECES = {"cross_entropy": _cross_entropy, "squared_error": _squared_error}


# --- second derivatives ---------------------------------------------------------------------------------------


def _curve(
    x: Array,
    targets: Array,
    tangent: Any,
    class_weight: Any,
    sample_weight: Any,
    divisor: Divisor | None,
    request: _Request,
) -> Any:
    """Second derivatives of whole rows."""
    options = request.weighted(class_weight, sample_weight)
    return curvature_rows(request.function, x, targets, tangent, -1, options, divisor=divisor)


def _scaled(value: Array, plan: Array, divisor: Divisor | None, dtype: Any) -> Array:
    return _spared(plan["whole"][..., None] * _weight(plan, divisor), value, dtype)


def _variance(x: Array, summaries: Array, dtype: Any) -> Any:
    """p (1 - p)."""
    probs, greatest, lacking = _known(x, summaries, dtype)
    with np.errstate(all="ignore"):
        return probs * np.where(greatest, lacking, 1 - probs)


def _curvature(
    function: Function, logits: Any, targets: Any, tangent: Any, *, axis: int, out: Any, options: LossOptions
) -> Lazy:
    """cross_entropy_hvp, cross_entropy_hessian_diag or cross_entropy_hessian."""
    loss = _Loss(function, logits, targets, tangent, axis, options)
    _refuse_out(function.name, out)
    problem, every, (last,), tangent = loss.problem, loss.every, loss.last, loss.tangent
    dtype = problem.result_dtype
    if loss.uncut:
        arrays = (loss.x, every, loss.targets, loss.target_index, tangent, every, *loss.weights)
        if SQUARE in function.result:
            grid = {last + 1: problem.classes}
            return loss.blocks(_curve, (*every, last + 1), dtype, *arrays, grid=grid, request=loss.request)
        return loss.back(loss.blocks(_curve, every, dtype, *arrays, request=loss.request))
    if tangent is None:
        summaries = _summaries(loss.x, loss.last, problem.dtype)
        value = _blocks(_variance, every, np.float64, loss.x, every, summaries, every, dtype=problem.dtype)
    else:
        probs = _probs(loss.x, last, problem.dtype)
        known = (probs, every, tangent, every, _certain(probs, tangent, last), every)
        dot = _row_sum(loss, _dot, *known, axis=last, plain=False)
        simple: dict[str, Any] = {"function": "softmax_jvp", "temperature": 1.0, "dtype": np.dtype(np.float64)}
        value = _blocks(_combine, every, np.float64, *known, dot, every, **simple)
    plan = _weighed_shares(loss)[2]
    return loss.back(loss.blocks(_scaled, every, dtype, value, every, plan, loss.rows, dtype=dtype))


# --- losses of single logits ----------------------------------------------------------------------------------


def _factors(x: Lazy, weights: Lazy) -> Lazy:
    """Weights that broadcast to the logits, cut as they are; None stays None."""
    if weights is None:
        return None
    cuts = zip(x.chunks[x.ndim - weights.ndim :], weights.shape, strict=True)
    return weights.rechunk(tuple(sizes if n > 1 else (n,) for sizes, n in cuts))


def _sum_of_weights(weights: Array, dtype: Any) -> Array:
    return binary.sum_of_weights(np.asarray(weights), dtype).reshape((1,) * np.ndim(weights))


def _repeated_divisor(whole: Array, weights: int, entries: int) -> Array:
    return np.array(repeated_divisor(whole.reshape(()), weights, entries), _DIVISOR)


def _entry_divisor(x: Lazy, weights: Lazy, dtype: Any) -> Any:
    """The divisor of the mean over all entries."""
    if weights is None:
        return count_divisor(x.size)
    index = tuple(range(weights.ndim))
    parts = _blocks(_sum_of_weights, index, SUM, weights, index, grid=dict.fromkeys(index, 1), dtype=dtype)
    whole, sizes = _joined(parts, joined_weights), {"weights": weights.size, "entries": x.size}
    return _blocks(_repeated_divisor, (), _DIVISOR, whole, index, **sizes)


def _starts(x: Lazy) -> list[Any]:
    """Where the chunks begin along each axis, an array and its index for each."""
    starts = [np.cumsum((0, *sizes[:-1])) for sizes in x.chunks]
    return [item for axis, one in enumerate(starts) for item in (da.from_array(one, chunks=1), (axis,))]


def _entries(
    x: Array, targets: Array, positive: Any, weights: Any, *rest: Any, function: str, options: Any
) -> Any:
    """The losses of the entries of a chunk, or their sum, and a derivative.

    `rest` has the place of the chunk along each axis, and the divisor of the mean.
    """
    *starts, divisor = rest
    options = options._replace(pos_weight=positive, sample_weight=weights)
    origin = tuple(int(start[0]) for start in starts)
    order = binary.derivative_order(FUNCTIONS[function])
    found = binary.compute(binary.Entries(function, x, targets, options, divisor, origin), order, options)
    losses = found.sum().reshape((1,) * np.ndim(x)) if found.losses is None else found.losses
    results = {ENTRIES: losses, LIKE: found.slope}
    return tuple(results[kind] for kind in FUNCTIONS[function].result)


def _binary(function: Function, logits: Any, targets: Any, *, axis: Any, out: Any, options: Any) -> Any:
    """A loss of single logits, its gradient, both, or its second derivative."""
    name = function.name
    x = _main(name, "logits", logits, targets)
    every = tuple(range(x.ndim))
    targets = _array(name, "targets", targets, x.chunks if np.shape(targets) == x.shape else -1)
    positive = None if options.pos_weight is None else _array(name, "pos_weight", options.pos_weight)
    weights = None if options.sample_weight is None else _array(name, "sample_weight", options.sample_weight)
    every_array = (x, targets, positive, weights)
    x_, t_, positive_, weights_ = [None if a is None else stand_in(a.shape, a.dtype) for a in every_array]
    checks = options._replace(pos_weight=positive_, sample_weight=weights_)
    checked = binary.Entries(name, x_, t_, checks, Divisor(1.0))
    binary.constants(checked, options)
    _refuse_out(name, out)
    positive, weights = _factors(x, positive), _factors(x, weights)
    divisor = _entry_divisor(x, weights, checked.dtype) if options.reduction == "mean" else None
    arrays = [x, every, targets.rechunk(x.chunks), every]
    for one in (positive, weights):
        arrays += [one, None if one is None else every[x.ndim - one.ndim :]]
    kind, unreduced = checked.result_dtype, options.reduction == "none"
    keywords = {"function": name, "options": options._replace(pos_weight=None, sample_weight=None)}
    both = _divided_blocks(divisor, _entries, every, kind, *arrays, *_starts(x), **keywords)
    kinds = {ENTRIES: kind if unreduced else SUM, LIKE: kind}
    results = list(_items(both, *[(every, kinds[result]) for result in function.result]))
    if kinds[function.result[0]] == SUM:
        results[0] = _quotient(results[0], divisor, kind)
    return results[0] if len(results) == 1 else tuple(results)


# --- random draws ---------------------------------------------------------------------------------------------


def _filtered(function: Function, x: Any, *, axis: Any, out: Any, temperature: Any, **filters: Any) -> Any:
    """filter_logits: the classes of a row are brought into one chunk."""
    x = _array(function.name, "logits", x)
    problem = _problem(function.name, x, axis, name="logits")
    inverse_temperature(function.name, temperature, problem.dtype)
    filters_of(function.name, temperature=temperature, **filters)
    _refuse_out(function.name, out)
    x = x.rechunk({problem.axes[0]: -1})
    return _whole_rows(function, problem, x, temperature=temperature, **filters)


def _drawn(x: Array, numbers: Array, where: Any, function: Function, axis: int, **options: Any) -> Any:
    """The classes of the rows of a chunk, by their uniform numbers."""
    return _in_memory(x, function=function, axis=axis, uniforms=numbers, where=where, **options)


def _draws(
    function: Function,
    x: Any,
    *,
    axis: Any,
    out: Any,
    where: Any,
    rng: Any,
    uniforms: Any,
    size: Any,
    **options: Any,
) -> Lazy:
    """categorical: the classes of a row are brought into one chunk.

    The uniform numbers are drawn at once, in the order of the result, as for an array in memory.
    """
    x = _array(function.name, "logits", x)
    problem = _problem(function.name, x, axis, name="logits")
    lazy = isinstance(uniforms, da.Array)
    checked = stand_in(uniforms.shape, uniforms.dtype) if lazy else uniforms
    draws = Draws(function.name, problem.row_shape, problem.dtype, rng=rng, uniforms=checked, size=size, **options)
    draws.check_count(problem.classes)
    drawn = draws.uniforms()  # of a lazy array, the checks of its shape and dtype
    (last,) = problem.axes
    x = x.rechunk({last: -1})
    every = tuple(range(x.ndim))
    rows = tuple(a for a in every if a != last)
    more = tuple(range(x.ndim, x.ndim + len(draws.shape) - len(rows)))
    chunks = (*draws.shape[: len(more)], *(x.chunks[a] for a in rows))
    numbers = _array(function.name, "uniforms", uniforms if lazy else drawn, chunks).rechunk(chunks)
    options |= {"function": function, "axis": last, "size": size}
    arrays = (x, every, numbers, (*more, *rows), _mask(problem, where, x), every)
    return _blocks(_drawn, (*more, *rows), np.int64, *arrays, **options)


# --- losses of products --------------------------------------------------------------------------------------


class _Products:
    """Features (rows, D), cut over the rows, and what belongs to each row; the weights are in memory.

    `linear` is the `Linear` of these shapes and dtypes, without labels and weights of the samples. `arrays` are
    the arguments of the tasks, each followed by its index: those of the rows, of D, and of the classes.
    """

    def __init__(
        self, function: Function, features: Any, weight: Any, targets: Any, bias: Any, options: LossOptions
    ) -> None:
        name = function.name
        if isinstance(weight, da.Array):
            raise TypeError(f"{named(name, 'weight')} is a Dask array and has to be in memory; call its compute()")
        targets = _array(name, "targets", targets)
        cut = (*targets.chunks, -1) if targets.ndim == np.ndim(features) - 1 else -1
        x = _array(name, "features", features, cut)
        bias = None if bias is None else _array(name, "bias", bias)
        check_targets(name, targets, x.shape)
        options.ignored_index(name)
        only = options._replace(class_weight=None, sample_weight=None)
        self.linear = Linear(
            name,
            stand_in(x.shape, x.dtype),
            weight,
            stand_in(targets.shape, np.int8),
            None if bias is None else stand_in(bias.shape, bias.dtype),
            only._replace(ignore_index=None),
        )
        classes = self.linear.classes
        self.request = _Request(name, classes, self.linear.dtype, only)
        self.rows, width = tuple(range(x.ndim - 1)), x.ndim - 1
        self.every, of_class = (*self.rows, width), (x.ndim,)
        self.x = x.rechunk({width: -1})
        chunks = self.x.chunks[:-1]
        self.targets = targets.map_blocks(
            _check_labels,
            dtype=targets.dtype,
            meta=np.empty((0,) * targets.ndim, targets.dtype),
            function=name,
            classes=classes,
            ignore_index=options.ignore_index,
        ).rechunk(chunks)
        class_weight = _like(name, "class_weight", options.class_weight, (classes,), -1)
        self.sample_weight = _like(name, "sample_weight", options.sample_weight, x.shape[:-1], chunks)
        self.weights = (class_weight, of_class, self.sample_weight, self.rows)
        bias = None if bias is None else bias.rechunk(-1)
        self.arrays = (self.x, self.every, self.targets, self.rows, bias, of_class)
        self.divisor = None
        if options.is_mean:
            count = self.linear.rows
            self.divisor = known_divisor(name, False, options, count) or _counted_divisor(
                self.request, count, self.targets, self.rows, *self.weights
            )
        self.shared = {"weight": delayed(self.linear.weight, traverse=False)}

    def sums(self, both: Lazy, place: int, shape: tuple[int, ...], dtype: Any) -> Lazy:
        """The sum over all chunks of the gradient of this shape, which is one of the results of a task."""
        axes = tuple(range(both.ndim, both.ndim + len(shape)))
        index = (*self.rows, *axes)
        parts = da.blockwise(
            _item,
            index,
            both,
            self.every,
            place=place,
            dtype=self.linear.dtype,
            meta=np.empty((0,) * len(index), self.linear.dtype),
            new_axes=dict(zip(axes, shape, strict=True)),
            adjust_chunks=dict.fromkeys(self.rows, 1),
            align_arrays=False,
        )
        whole = _tree(parts, _add_gradients, self.rows) if self.rows else parts
        return whole.reshape(shape).map_blocks(_cast, dtype, dtype=dtype)


def _add_gradients(parts: Array, axis: Any, keepdims: bool) -> Array:
    with np.errstate(all="ignore"):
        total: Array = parts.sum(axis=axis, keepdims=True)
    return total


def _linear_losses(
    x: Array,
    targets: Array,
    bias: Any,
    class_weight: Any,
    sample_weight: Any,
    divisor: Divisor | None,
    request: _Request,
    weight: Any,
    **options: Any,
) -> tuple[Any, ...]:
    """The losses of the rows of a chunk and the gradients, those of weight and bias with an axis for each of x."""
    weights = request.weighted(class_weight, sample_weight)
    linear, parts = loss_parts(request.function, x, weight, targets, bias, weights, divisor=divisor, **options)
    results = [parts.rows.reshape(x.shape[:-1]), parts.features, parts.weight, parts.bias]
    if parts.features is not None:
        results[1] = linear.finished(parts).features
    for place in (2, 3):
        if results[place] is not None:
            results[place] = results[place].reshape((1,) * (x.ndim - 1) + results[place].shape)
    return tuple(results)


def _linear_loss(
    function: Function,
    features: Any,
    weight: Any,
    targets: Any,
    bias: Any,
    *,
    axis: int,
    out: Any,
    options: LossOptions,
    block_bytes: Any,
    wrt: Any,
    skip: bool,
) -> tuple[Lazy, LinearGradients]:
    """The linear cross-entropy and the gradients with respect to what `wrt` names."""
    products = _Products(function, features, weight, targets, bias, options)
    linear, rows = products.linear, products.rows
    block_rows(function.name, linear.classes, linear.dtype.itemsize, block_bytes)
    wanted = wanted_gradients(function.name, wrt, bias)
    both = _divided_blocks(
        products.divisor,
        _linear_losses,
        products.every,
        linear.result_dtype,
        *products.arrays,
        *products.weights,
        shared=products.shared,
        request=products.request,
        block_bytes=block_bytes,
        wrt=wanted,
        skip=skip,
    )
    kinds = [returned_dtype(array) for array in (linear.features, linear.weight, linear.bias) if array is not None]
    losses, *slope = _items(both, (rows, linear.dtype), (products.every, kinds[0]))
    gradients: dict[str, Any] = dict.fromkeys(LinearGradients._fields)
    if "features" in wanted:
        (gradients["features"],) = slope
    if "weight" in wanted:
        gradients["weight"] = products.sums(both, 2, linear.weight.shape, kinds[1])
    if "bias" in wanted:
        gradients["bias"] = products.sums(both, 3, (linear.classes,), kinds[2])
    if options.reduction == "none":
        losses = losses.map_blocks(_cast, linear.result_dtype, dtype=linear.result_dtype)
    else:
        losses = _whole_loss(losses, products.divisor, linear.result_dtype)
    return losses, LinearGradients(**gradients)


def _statistics_of_products(
    x: Array, targets: Array, bias: Any, function: str, weight: Any, **options: Any
) -> Any:
    return statistics_of_products(function, x, weight, targets, bias, **options)


def _linear_statistics(
    function: Function,
    features: Any,
    weight: Any,
    targets: Any,
    bias: Any,
    *,
    axis: int,
    out: Any,
    options: LossOptions,
    block_bytes: Any,
) -> LabelStatistics:
    """linear_softmax_statistics."""
    products = _Products(function, features, weight, targets, bias, options)
    linear, rows = products.linear, products.rows
    block_rows(function.name, linear.classes, linear.dtype.itemsize, block_bytes)
    found = _blocks(
        _statistics_of_products,
        products.every,
        linear.result_dtype,
        *products.arrays,
        shared=products.shared,
        function=function.name,
        options=options,
        block_bytes=block_bytes,
    )
    kinds = (linear.result_dtype, np.int64, np.int64, linear.result_dtype, linear.result_dtype)
    return LabelStatistics(*_items(found, *[(rows, np.dtype(kind)) for kind in kinds]))


def _linear(function: Function, *operands: Any, **options: Any) -> Any:
    """The functions of features and weights."""
    return (_linear_loss if LOSS in function.result else _linear_statistics)(function, *operands, **options)


# --- the way in -----------------------------------------------------------------------------------------------

_FAMILIES: dict[str, Callable[..., Any]] = {
    "forward": _forward,
    "jacobian": _gathered,
    "product": _product,
    "entropy": _gathered,
    "statistics": _statistics,
    "cross entropy": _loss,
    "row loss": _loss,
    "divergence": _loss,
    "focal": _loss,
    "focal curvature": _curvature,
    "binary entropy": _binary,
    "binary focal": _binary,
    "curvature": _curvature,
    "draws": _draws,
    "filters": _filtered,
    "linear": _linear,
}


def call(name: str, *operands: Any, axis: Any, out: Any, **options: Any) -> Any:
    """The public function of this name; losses take their options as `options`, a `LossOptions`."""
    function = FUNCTIONS[name]
    return _FAMILIES[function.family](function, *operands, axis=axis, out=out, **options)
