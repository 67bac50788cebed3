"""The public functions for Dask arrays: lazy, chunk by chunk, with the results of the same arrays in memory.

`call` is used if one of the arguments is a Dask array. Wrong shapes, dtypes and options are refused at once, as
for arrays in memory; nothing is computed until the result is asked for. There are two methods:

whole rows
    No class axis is cut. Each chunk is a call of the in-memory function: every row has the same bits.
rows in pieces
    Otherwise each piece of a row gets a summary, the summaries are merged in a tree, and the results of a piece
    follow from the merged one (`fastsoftmax.arrays.long_rows`). A cross-entropy also needs the logit of the label,
    or a sum over the shares of the classes, which are merged together with the summary
    (`fastsoftmax.arrays.row_pieces`): each chunk of the logits is read once for a cross-entropy, and twice for its
    gradient. The bounds of the in-memory function hold, and no task holds more than one chunk of each array.
    Functions without `pieces` in `fastsoftmax._spec` first bring the classes of a row into one chunk.

Losses of single logits have no rows that could be cut: a task computes the entries of a chunk.

Functions of features and weights take features that are cut over the rows, and weights in memory. Each task has
the logits of its rows only, and sums over the rows are added up in a tree.

Dask's workers already use all processors, so a task does all its work in one thread.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask import delayed

from fastsoftmax._spec import ENTRIES, FUNCTIONS, LIKE, LOSS, ROWS, SQUARE, TANGENT, Function
from fastsoftmax.api import activations, derivatives, entropy, sampling, statistics
from fastsoftmax.arrays import binary, halves, long_rows, row_pieces
from fastsoftmax.arrays.blocks import Array, Problem, inverse_temperature, named, real_array, stand_in
from fastsoftmax.arrays.lazy import check_in_memory
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
from fastsoftmax.arrays.linear_hessian import know, product_parts, returned_dtypes, tangents
from fastsoftmax.arrays.losses import curvature_rows, loss_rows
from fastsoftmax.arrays.metrics import joined as sums_joined
from fastsoftmax.arrays.options import (
    LossOptions,
    RowTargets,
    check_indices,
    check_kind,
    check_labels,
    known_divisor,
    part_of_divisor,
    row_targets,
)
from fastsoftmax.arrays.row_pieces import Direction, Labelled, Mix, Shares
from fastsoftmax.arrays.sampling import Draws, filters_of
from fastsoftmax.arrays.statistics import LabelStatistics, kinds
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
from fastsoftmax.metrics import RunningLogSumExp, RunningMetrics

Lazy = Any  # dask.array.Array, for which Dask has no types

_PAIR = np.dtype([("high", np.float64), ("low", np.float64)])
_DIVISOR = np.dtype([("value", np.float64), ("exponent", np.int64)])
_ERROR = np.dtype([*_PAIR.descr, ("square", np.float64), ("square_low", np.float64)])
_PLAN = np.dtype([("factor", np.float64), ("whole", np.float64), ("z_loss", np.float64)])


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
    problem.mask(stand_in(lazy.shape, lazy.dtype))  # for its errors
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
    return halves.converted(array, dtype)


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
    checked = _checked_labels(labels, function.name, problem.classes, options["ignore_index"], "labels")
    checked = checked.rechunk(tuple(x.chunks[a] for a in rows))
    options |= {"function": function, "axis": place}
    found = _blocks(_in_memory, every, problem.result_dtype, x, every, checked, rows, **options)
    return _statistics_of(found, rows, problem.result_dtype)


def _statistics_of(found: Lazy, rows: tuple[int, ...], dtype: Any) -> LabelStatistics:
    """The `LabelStatistics` of all rows, from those of the tasks."""
    return LabelStatistics(*_items(found, *[(rows, kind) for kind in kinds(dtype)]))


# --- softmax, log_softmax, logsumexp --------------------------------------------------------------------------


def _summarize(x: Array, axes: Any, beta: Any, dtype: Any, cap: Any = np.inf) -> Array:
    matrix = _matrix(x, axes)
    if cap == np.inf:
        return _kept(long_rows.summarize(_cast(matrix, dtype), beta), x.shape, axes)
    return _kept(row_pieces.capped_summaries(matrix, dtype, cap), x.shape, axes)


def _merge(parts: Array, axis: Any, keepdims: bool, beta: Any = None) -> Array:
    return _kept(row_pieces.merge(_matrix(parts, axis), beta), parts.shape, axis)


def _merged(
    task: Any, names: tuple[str, ...], dtype: Any, axes: tuple[int, ...], /, *arrays: Any, **options: Any
) -> Lazy:
    """The merged summary of each row with the fields of `names`, from the results of a task for each piece."""
    kind, grid = row_pieces.record_dtype(dtype, names), dict.fromkeys(axes, 1)
    parts = _blocks(task, arrays[1], kind, *arrays, grid=grid, dtype=dtype, **options)
    return _tree(parts, partial(_merge, beta=options.get("beta")), axes)


def _summaries(x: Lazy, axes: tuple[int, ...], dtype: Any, beta: Any = None, **options: Any) -> Lazy:
    """The merged summary of each row."""
    return _merged(_summarize, (), dtype, axes, x, tuple(range(x.ndim)), axes=axes, beta=beta, **options)


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


def _pairs(kind: Any, numbers: Any, shape: tuple[int, ...], axes: Any) -> Array:
    """Records of numbers of the rows, one array for each field, in the shape of the array with its axes kept."""
    result = np.empty(len(numbers[0]), kind)
    for name, values in zip(kind.names, numbers, strict=True):
        result[name] = values
    return _kept(result, shape, axes)


def _add(parts: Array, axis: Any, keepdims: bool) -> Array:
    """The sums of pairs: each is two fields."""
    matrix, names = _matrix(parts, axis), parts.dtype.names or ()
    with np.errstate(all="ignore"):
        sums = [long_rows.pair_sum(matrix[a], matrix[b]) for a, b in zip(names[::2], names[1::2], strict=True)]
    return _pairs(parts.dtype, [number for pair in sums for number in pair], parts.shape, axis)


def _total(parts: Lazy, axis: int) -> Lazy:
    """The sums of pairs, for each piece, over all pieces of a row."""
    return _tree(parts, _add, (axis,))


def _pair_records(
    x: Array, vector: Array, axis: int, beta: Any, dtype: Any, others: bool, cap: Any = np.inf
) -> Array:
    axes = (axis,)
    found = row_pieces.entry_record(_matrix(x, axes), _matrix(vector, axes), dtype, beta, others, cap)
    return _kept(found, x.shape, axes)


def _direction(
    x: Array, vector: Array, records: Any, axis: int, dtype: Any, beta: Any, error: bool, cap: Any = np.inf
) -> Direction:
    axes = (axis,)
    flat = None if records is None else records.reshape(-1)
    return Direction(_matrix(x, axes), _matrix(vector, axes), flat, dtype, beta, error, cap)


def _mean(
    x: Array,
    vector: Array,
    records: Any,
    axis: int,
    dtype: Any,
    beta: Any = None,
    error: bool = False,
    cap: Any = np.inf,
) -> Array:
    """The part of a piece in p.v, and that of an error in the sum of its squares."""
    mean, squares = _direction(x, vector, records, axis, dtype, beta, error, cap).sums()
    numbers = [*mean, *squares] if error else mean
    return _pairs(_ERROR if error else _PAIR, numbers, x.shape, (axis,))


def _sums(mean: Array) -> tuple[Array, Array]:
    """The sums of rows as a pair of vectors."""
    return mean["high"].reshape(-1), mean["low"].reshape(-1)


def _scaled_product(
    x: Array,
    vector: Array,
    records: Any,
    mean: Array,
    weights: Any,
    axis: int,
    dtypes: Any,
    beta: Any = None,
    temperature: float = 1.0,
    error: bool = False,
    times_p: bool = True,
) -> Array:
    """The product with the Jacobian, times the weight of each row."""
    direction = _direction(x, vector, records, axis, dtypes[0], beta, error)
    return _restored(direction.product(_sums(mean), weights, temperature, dtypes[1], times_p), x.shape, (axis,))


def _log_softmax_vjp(
    x: Array, vector: Array, records: Array, axis: int, dtypes: Any, beta: Any, temperature: float
) -> Array:
    matrices = _matrix(x, (axis,)), _matrix(vector, (axis,))
    found = row_pieces.log_softmax_vjp(*matrices, records.reshape(-1), beta, temperature, dtypes)
    return _restored(found, x.shape, (axis,))


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
    dtypes = problem.dtype, problem.result_dtype
    arrays: tuple[Any, ...] = (x, every, vector, every)
    options: dict[str, Any] = {"axis": place, "beta": beta}
    others = name == "log_softmax_vjp"
    records = None
    if not from_probs:
        names = row_pieces.OTHERS if others else row_pieces.ENTRY
        records = _merged(_pair_records, names, problem.dtype, (place,), *arrays, others=others, **options)
    arrays = (*arrays, records, every)
    result = {"dtypes": dtypes, "temperature": float(temperature), **options}
    if others:
        return _blocks(_log_softmax_vjp, every, problem.result_dtype, *arrays, **result)
    means = _blocks(_mean, every, _PAIR, *arrays, grid={place: 1}, dtype=problem.dtype, **options)
    arrays = (*arrays, _total(means, place), every, None, None)
    result["times_p"] = name != "log_softmax_jvp"
    return _blocks(_scaled_product, every, problem.result_dtype, *arrays, **result)


# --- losses ---------------------------------------------------------------------------------------------------


def _check_labels(
    labels: Array,
    function: str,
    classes: int,
    ignore_index: Any,
    argument: str,
    block_info: Any = None,
) -> Array:
    """The labels, or an IndexError with the position among all of them."""
    origin = tuple(start for start, _ in block_info[0]["array-location"]) if block_info else ()
    check_labels(function, labels, classes, ignore_index, origin, argument)
    return labels


def _checked_labels(labels: Lazy, function: str, classes: int, ignore_index: Any, argument: str) -> Lazy:
    """The labels; computing them raises an IndexError for a wrong one."""
    return labels.map_blocks(
        _check_labels,
        dtype=labels.dtype,
        meta=np.empty((0,) * labels.ndim, labels.dtype),
        function=function,
        classes=classes,
        ignore_index=ignore_index,
        argument=argument,
    )


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
        if not function.pieces:
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
            checked = _checked_labels(targets, name, problem.classes, options.ignore_index, function.second)
            self.targets = checked.rechunk(chunks[:-1])
        self.target_index = self.every if soft else self.rows
        self.labels = None if soft else self.targets
        whole_weight = None if self.class_weight is None else self.class_weight.rechunk(-1)
        self.weights = (whole_weight, self.last, self.sample_weight, self.rows)
        self.divisor = self._divisor(options) if options.is_mean else None

    @property
    def cap(self) -> Any:
        """The cap of the logits as kernels take it, or inf."""
        return np.inf if self.known.regularization is None else self.known.regularization[1]

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
    """The weight of each row, the sum of its shares (`kernels.losses`), and the factor of the z-loss.

    `whole` is the sum of the shares if it is known.
    """
    result = np.ones(next(rows.shape for rows in (labels, sample_weight, whole) if rows is not None), _PLAN)
    if labels is None and sample_weight is None:
        result = result[..., 0]
    x = stand_in((*result.shape, request.classes), request.dtype)
    problem, options = Problem(request.function, x, -1), request.weighted(class_weight, sample_weight)
    given = row_targets(problem, x if labels is None else labels, options, divisor)
    if given.row_weights is not None:
        result["factor"] = given.row_weights
    result["z_loss"] = _z_loss(given)
    if whole is not None:
        result["whole"] = whole["high"][..., 0] + whole["low"][..., 0]
    elif labels is not None:
        given.row_weights = None
        sums = given.totals()
        result["whole"] = 1 if sums is None else sums
    return result


def _z_loss(given: RowTargets) -> float:
    return 0.0 if given.regularization is None else float(given.regularization[0])


def _plan_of(loss: _Loss, whole: Lazy = None) -> Lazy:
    """The `_plan` of all rows; `whole` are the sums of the shares of distributions."""
    rows = loss.rows
    if loss.labels is None and whole is None and loss.sample_weight is None:
        x, row = loss.x, np.array((1.0, 1.0, _z_loss(loss.known)), _PLAN)[()]
        return da.full([x.shape[a] for a in rows], row, chunks=tuple(x.chunks[a] for a in rows), dtype=_PLAN)
    arrays = (loss.labels, rows, whole, loss.every, *loss.weights)
    return loss.blocks(_plan, rows, _PLAN, *arrays, request=loss.request)


def _normal_weights(class_weight: Array, dtype: Any) -> Array:
    """The class weights as in `RowTargets`, where they are not part of the weights of the rows."""
    return normalized(converted(class_weight, dtype))[0]


def _weights(plan: Array, divisor: Divisor | None) -> Array:
    """The factors of the derivatives of the rows of a chunk."""
    return row_pieces.row_weights(plan["factor"].reshape(-1), 1.0 if divisor is None else divisor.value)


def _first(ids: Array) -> int:
    """The first class of a piece."""
    return int(ids[0]) if ids.size else 0


def _of_rows(values: Array, plan: Array, dtype: Any) -> Array:
    """Losses in the shape of the rows, 0 for those that do not count."""
    with np.errstate(all="ignore"):
        return np.where(plan["factor"] == 0, 0, values.reshape(plan.shape)).astype(dtype)


def _indices(targets: Array) -> Array:
    return targets.reshape(-1).astype(np.int64)


def _labelled(plan: Array, regularized: bool) -> Labelled:
    """The numbers of the rows of a plan."""
    factor, share, z_loss = (plan[name].reshape(-1) for name in ("factor", "whole", "z_loss"))
    return Labelled(factor, share, z_loss, regularized)


def _labelled_record(x: Array, targets: Array, ids: Array, cap: Any, dtype: Any) -> Array:
    last = (x.ndim - 1,)
    found = row_pieces.labelled_record(_matrix(x, last), _indices(targets), _first(ids), dtype, cap)
    return _kept(found, x.shape, last)


def _labelled_losses(records: Array, plan: Array, regularized: bool, dtype: Any) -> Array:
    return _of_rows(row_pieces.labelled_losses(records.reshape(-1), _labelled(plan, regularized)), plan, dtype)


def _labelled_slope(
    x: Array,
    targets: Array,
    ids: Array,
    records: Array,
    plan: Array,
    divisor: Divisor | None,
    regularized: bool,
    cap: Any,
    dtypes: Any,
) -> Array:
    matrix = _cast(_matrix(x, (x.ndim - 1,)), dtypes[0])
    rows = _labelled(plan, regularized), 1.0 if divisor is None else divisor.value
    slope = row_pieces.labelled_slope(matrix, records.reshape(-1), _indices(targets), _first(ids), *rows, cap)
    return _cast(slope.reshape(x.shape), dtypes[1])


def _shares(targets: Array, ids: Array, class_weight: Any, mix: Mix) -> Shares:
    """The shares of the classes of a piece, which are `ids`."""
    given = _matrix(targets, (targets.ndim - 1,)) if mix.soft else _indices(targets)
    return Shares(given, _first(ids), class_weight, mix)


def _share_sums(targets: Array, ids: Array, class_weight: Any, mix: Mix) -> Array:
    """The sums of the shares of distributions."""
    last, shares = (targets.ndim - 1,), _shares(targets, ids, class_weight, mix)
    return _pairs(_PAIR, row_pieces.share_sums(shares, shares.targets.shape), targets.shape, last)


def _shares_record(
    x: Array, targets: Array, ids: Array, class_weight: Any, mix: Mix, cap: Any, dtype: Any
) -> Array:
    last, shares = (x.ndim - 1,), _shares(targets, ids, class_weight, mix)
    return _kept(row_pieces.shares_record(_matrix(x, last), shares, dtype, cap), x.shape, last)


def _shares_losses(records: Array, plan: Array, dtype: Any) -> Array:
    found = row_pieces.shares_losses(records.reshape(-1), plan["z_loss"].reshape(-1))
    with np.errstate(all="ignore"):
        values = plan["factor"].reshape(-1) * found
    return _of_rows(values, plan, dtype)


def _shares_slope(
    x: Array,
    targets: Array,
    ids: Array,
    class_weight: Any,
    records: Array,
    plan: Array,
    divisor: Divisor | None,
    mix: Mix,
    cap: Any,
    dtypes: Any,
) -> Array:
    matrix, shares = _matrix(x, (x.ndim - 1,)), _shares(targets, ids, class_weight, mix)
    rows = plan["z_loss"].reshape(-1), _weights(plan, divisor)
    return row_pieces.shares_slope(matrix, records.reshape(-1), shares, *rows, dtypes, cap).reshape(x.shape)


def _error_losses(sums: Array, plan: Array, dtype: Any) -> Array:
    with np.errstate(all="ignore"):
        values = plan["factor"].reshape(-1) * (0.5 * sums["square"] + 0.5 * sums["square_low"]).reshape(-1)
    return _of_rows(values, plan, dtype)


def _weighted_product(
    x: Array,
    vector: Array,
    records: Array,
    mean: Array,
    plan: Array,
    divisor: Divisor | None,
    dtypes: Any,
    error: bool = False,
) -> Array:
    """The gradient of a squared error, or the product of a tangent with the Hessian of a cross-entropy."""
    weights = _weights(plan, divisor)
    with np.errstate(all="ignore"):
        weights = weights if error else plan["whole"].reshape(-1) * weights
    return _scaled_product(x, vector, records, mean, weights, x.ndim - 1, dtypes, error=error)


def _mixed(loss: _Loss) -> tuple[tuple[Any, ...], Mix]:
    """The arrays and the options of `_shares` for a cross-entropy."""
    known, problem, class_weight = loss.known, loss.problem, loss.class_weight
    if known.plain:
        class_weight = None
    elif class_weight is not None and not known.soft and loss.divisor is not None:
        normal = _blocks(_normal_weights, loss.last, problem.dtype, *loss.weights[:2], dtype=problem.dtype)
        class_weight = normal.rechunk(class_weight.chunks)
    ids = da.arange(problem.classes, chunks=(loss.x.chunks[-1],))
    arrays = (loss.targets, loss.target_index, ids, loss.last, class_weight, loss.last)
    return arrays, Mix(float(known.base), float(known.gain), known.soft)


def _cross_entropy(loss: _Loss, gradient: bool) -> tuple[Lazy, Lazy]:
    problem, every, rows = loss.problem, loss.every, loss.rows
    (*arrays, class_weight, last), mix = _mixed(loss)
    options: dict[str, Any] = {"cap": loss.cap}
    tasks: tuple[Any, ...] = (_labelled_record, _labelled_losses, _labelled_slope)
    names: tuple[str, ...] = row_pieces.TARGET
    of_rows: dict[str, Any] = {"regularized": loss.known.regularization is not None}
    if loss.known.soft or loss.known.base != 0:
        tasks, names = (_shares_record, _shares_losses, _shares_slope), row_pieces.SHARES
        arrays += [class_weight, last]
        options["mix"], of_rows = mix, {}
    plan = _plan_of(loss)
    records = _merged(tasks[0], names, problem.dtype, last, loss.x, every, *arrays, **options)
    losses = _blocks(tasks[1], rows, loss.row_dtype, records, every, plan, rows, dtype=loss.row_dtype, **of_rows)
    if not gradient:
        return losses, None
    options |= {"dtypes": (problem.dtype, problem.result_dtype), **of_rows}
    arrays = [loss.x, every, *arrays, records, every, plan, rows]
    return losses, loss.blocks(tasks[2], every, problem.result_dtype, *arrays, **options)


def _means(loss: _Loss, vector: Lazy, error: bool) -> tuple[Any, ...]:
    """The arrays of a product, each followed by its index, but for the plan of the rows."""
    dtype, every, (last,) = loss.problem.dtype, loss.every, loss.last
    arrays: tuple[Any, ...] = (loss.x, every, vector, every)
    records = _merged(
        _pair_records,
        row_pieces.ENTRY,
        dtype,
        loss.last,
        *arrays,
        axis=last,
        beta=None,
        others=False,
        cap=loss.cap,
    )
    arrays = (*arrays, records, every)
    kind, options = _ERROR if error else _PAIR, {"error": error, "cap": loss.cap}
    means = _blocks(_mean, every, kind, *arrays, grid={last: 1}, axis=last, dtype=dtype, **options)
    return (*arrays, _total(means, last), every)


def _squared_error(loss: _Loss, gradient: bool) -> tuple[Lazy, Lazy]:
    every, rows, dtypes = loss.every, loss.rows, (loss.problem.dtype, loss.problem.result_dtype)
    plan, arrays = _plan_of(loss), _means(loss, loss.targets, error=True)
    losses = _blocks(_error_losses, rows, loss.row_dtype, *arrays[-2:], plan, rows, dtype=loss.row_dtype)
    if not gradient:
        return losses, None
    return losses, loss.blocks(_weighted_product, every, dtypes[1], *arrays, plan, rows, dtypes=dtypes, error=True)


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


def _variance(x: Array, records: Array, plan: Array, divisor: Divisor | None, dtypes: Any) -> Array:
    """The diagonal of the Hessian of a cross-entropy."""
    with np.errstate(all="ignore"):
        weights = plan["whole"].reshape(-1) * _weights(plan, divisor)
    found = row_pieces.variance(_matrix(x, (x.ndim - 1,)), records.reshape(-1), weights, dtypes)
    return found.reshape(x.shape)


def _shares_product(
    x: Array,
    vector: Array,
    records: Array,
    mean: Array,
    targets: Array,
    ids: Array,
    class_weight: Any,
    plan: Array,
    divisor: Divisor | None,
    mix: Mix,
    cap: Any,
    dtypes: Any,
) -> Array:
    """The product of a tangent with the Hessian of a cross-entropy with a z-loss or capped logits."""
    direction = _direction(x, vector, records, x.ndim - 1, dtypes[0], None, False, cap)
    shares = _shares(targets, ids, class_weight, mix)
    rows = plan["whole"].reshape(-1), plan["z_loss"].reshape(-1), _weights(plan, divisor)
    return row_pieces.shares_product(direction, _sums(mean), shares, *rows, dtypes[1]).reshape(x.shape)


def _shares_variance(
    x: Array,
    records: Array,
    targets: Array,
    ids: Array,
    class_weight: Any,
    plan: Array,
    divisor: Divisor | None,
    mix: Mix,
    cap: Any,
    dtypes: Any,
) -> Array:
    """The diagonal of the Hessian of a cross-entropy with a z-loss or capped logits."""
    matrix, shares = _matrix(x, (x.ndim - 1,)), _shares(targets, ids, class_weight, mix)
    rows = plan["whole"].reshape(-1), plan["z_loss"].reshape(-1), _weights(plan, divisor)
    return row_pieces.shares_variance(matrix, records.reshape(-1), shares, *rows, dtypes, cap).reshape(x.shape)


def _curvature(
    function: Function, logits: Any, targets: Any, tangent: Any, *, axis: int, out: Any, options: LossOptions
) -> Lazy:
    """cross_entropy_hvp, cross_entropy_hessian_diag or cross_entropy_hessian."""
    loss = _Loss(function, logits, targets, tangent, axis, options)
    _refuse_out(function.name, out)
    problem, every, (last,), tangent = loss.problem, loss.every, loss.last, loss.tangent
    dtype = problem.result_dtype
    if loss.uncut:
        arrays: tuple[Any, ...] = (loss.x, every, loss.targets, loss.target_index, tangent, every, *loss.weights)
        if SQUARE in function.result:
            grid = {last + 1: problem.classes}
            return loss.blocks(_curve, (*every, last + 1), dtype, *arrays, grid=grid, request=loss.request)
        return loss.back(loss.blocks(_curve, every, dtype, *arrays, request=loss.request))
    regularized, whole = loss.known.regularization is not None, None
    if loss.known.soft or regularized:
        shares, mix = _mixed(loss)
    if loss.known.soft:
        whole = _total(_blocks(_share_sums, every, _PAIR, *shares, grid={last: 1}, mix=mix), last)
    plan = _plan_of(loss, whole)
    keywords: dict[str, Any] = {"dtypes": (problem.dtype, dtype)}
    task: Any
    if tangent is None:
        summaries = _summaries(loss.x, loss.last, problem.dtype, cap=loss.cap)
        task, arrays = _variance, (loss.x, every, summaries, every)
    else:
        task, arrays = _weighted_product, _means(loss, tangent, error=False)
    if regularized:
        task, arrays = _shares_variance if tangent is None else _shares_product, (*arrays, *shares)
        keywords |= {"mix": mix, "cap": loss.cap}
    return loss.back(loss.blocks(task, every, dtype, *arrays, plan, loss.rows, **keywords))


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
    losses = found.sum().reshape((1,) * np.ndim(x)) if found.beside is None else found.beside
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


def _check_in_memory(function: str, name: str, value: Any) -> None:
    """TypeError for a Dask array that all tasks would need."""
    if isinstance(value, da.Array):
        raise TypeError(f"{named(function, name)} is a Dask array and has to be in memory; call its compute()")


class _Products:
    """Features (rows, D), cut over the rows, and what belongs to each row; the weights are in memory.

    `linear` is the `Linear` of these shapes and dtypes, without labels and weights of the samples. `arrays` are
    the arguments of the tasks, each followed by its index: those of the rows, of D, and of the classes.
    """

    def __init__(
        self, function: Function, features: Any, weight: Any, targets: Any, bias: Any, options: LossOptions
    ) -> None:
        name = function.name
        _check_in_memory(name, "weight", weight)
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
        self.every, self.of_class = (*self.rows, width), (x.ndim,)
        self.x = x.rechunk({width: -1})
        chunks = self.x.chunks[:-1]
        self.targets = _checked_labels(targets, name, classes, options.ignore_index, "targets").rechunk(chunks)
        class_weight = _like(name, "class_weight", options.class_weight, (classes,), -1)
        self.sample_weight = _like(name, "sample_weight", options.sample_weight, x.shape[:-1], chunks)
        self.weights = (class_weight, self.of_class, self.sample_weight, self.rows)
        bias = None if bias is None else bias.rechunk(-1)
        self.arrays = (self.x, self.every, self.targets, self.rows, bias, self.of_class)
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
    slope = None if parts.features is None else linear.finished(*parts[1:]).features
    return parts.rows.reshape(x.shape[:-1]), slope, *_with_axes(x, parts.weight, parts.bias)


def _with_axes(x: Array, *sums: Any) -> tuple[Any, ...]:
    """Sums over the rows of a chunk of features (or None), with an axis of length 1 for each axis of the rows."""
    return tuple(None if one is None else one.reshape((1,) * (x.ndim - 1) + one.shape) for one in sums)


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


def _hessian_products(
    x: Array,
    targets: Array,
    bias: Any,
    class_weight: Any,
    sample_weight: Any,
    tangent_bias: Any,
    logits: Any,
    divisor: Divisor | None,
    request: _Request,
    weight: Any,
    tangent: Any,
    block_bytes: Any,
) -> tuple[Any, ...]:
    """The products with the Hessian of the rows of a chunk, for weight and bias, as `_with_axes`."""
    weights = request.weighted(class_weight, sample_weight)
    linear = Linear(request.function, x, weight, targets, bias, weights, divisor)
    know(linear, logits)
    return _with_axes(x, *product_parts(linear, tangents(linear, tangent, tangent_bias), block_bytes))


def _linear_product(
    function: Function,
    features: Any,
    weight: Any,
    targets: Any,
    tangent: Any,
    bias: Any,
    tangent_bias: Any,
    logits: Any,
    *,
    axis: int,
    out: Any,
    options: LossOptions,
    block_bytes: Any,
) -> LinearGradients:
    """linear_cross_entropy_hvp."""
    name = function.name
    _check_in_memory(name, "tangent", tangent)
    products = _Products(function, features, weight, targets, bias, options)
    linear, beside = products.linear, None
    if tangent_bias is not None:
        tangent_bias = _array(name, "tangent_bias", tangent_bias).rechunk(-1)
        beside = stand_in(tangent_bias.shape, tangent_bias.dtype)
    along = tangents(linear, tangent, beside)
    shape = (*linear.row_shape, linear.classes)
    logits = _like(name, "logits", logits, shape, (*products.x.chunks[:-1], -1))
    block_rows(name, linear.classes, linear.dtype.itemsize, block_bytes)
    both = _divided_blocks(
        products.divisor,
        _hessian_products,
        products.every,
        linear.dtype,
        *products.arrays,
        *products.weights,
        tangent_bias,
        products.of_class,
        logits,
        (*products.rows, *products.of_class),
        shared={**products.shared, "tangent": delayed(along.weight, traverse=False)},
        request=products.request,
        block_bytes=block_bytes,
    )
    kind, kind_of_bias = returned_dtypes(linear, along)
    of_bias = None if kind_of_bias is None else products.sums(both, 1, (linear.classes,), kind_of_bias)
    return LinearGradients(None, products.sums(both, 0, linear.weight.shape, kind), of_bias)


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
    return _statistics_of(found, rows, linear.result_dtype)


def _linear(function: Function, *operands: Any, **options: Any) -> Any:
    """The functions of features and weights."""
    if TANGENT in function.operands:
        return _linear_product(function, *operands, **options)
    return (_linear_loss if LOSS in function.result else _linear_statistics)(function, *operands, **options)


# --- metrics --------------------------------------------------------------------------------------------------


def _metric_sums(x: Array, labels: Array, weights: Any, metrics: Any, axis: int, ignore_index: Any) -> Array:
    """The exact sums of the rows of a chunk."""
    sums: Array = RunningMetrics(**metrics).update(x, labels, axis, weights, ignore_index)._sums
    return sums.reshape((1,) * labels.ndim + sums.shape)


def _add_sums(parts: Array, axis: Any, keepdims: bool) -> Array:
    tables = parts.reshape(-1, *parts.shape[-2:])
    whole: Array = reduce(sums_joined, tables)
    return whole.reshape((1,) * (parts.ndim - 2) + whole.shape)


def _update_metrics(
    metrics: RunningMetrics, logits: Any, labels: Any, sample_weight: Any, ignore_index: Any, *, axis: int
) -> Array:
    """The exact sums of all rows, which are computed."""
    name = "RunningMetrics.update"
    check_in_memory(name, *[one for one in (logits, labels, sample_weight) if not isinstance(one, da.Array)])
    x = _main(name, "logits", logits, labels)
    problem = _problem(name, x, axis, name="logits")
    (place,) = problem.axes
    labels = _array(name, "labels", labels)
    check_indices(problem, labels, "labels")
    index = LossOptions(ignore_index=ignore_index).ignored_index(name)
    every = tuple(range(x.ndim))
    rows = tuple(a for a in every if a != place)
    if not isinstance(logits, da.Array):
        x = x.rechunk(dict(zip(rows, labels.chunks, strict=True)))
    x = x.rechunk({place: -1})
    chunks = tuple(x.chunks[a] for a in rows)
    weights = _like(name, "sample_weight", sample_weight, problem.row_shape, chunks)
    checked = _checked_labels(labels, name, problem.classes, index, "labels").rechunk(chunks)
    settings = {"top_k": metrics.top_k, "bins": metrics.bins}
    shape = metrics._sums.shape
    table = (x.ndim, x.ndim + 1)
    grid = dict.fromkeys(rows, 1) | dict(zip(table, shape, strict=True))
    options: dict[str, Any] = {"metrics": settings, "axis": place, "ignore_index": index}
    arrays = (x, every, checked, rows, weights, rows)
    sums = _blocks(_metric_sums, (*rows, *table), np.dtype(np.int64), *arrays, grid=grid, **options)
    whole = _tree(sums, _add_sums, tuple(range(len(rows)))) if rows else sums
    return np.asarray(whole.compute()).reshape(shape)


def _update_logsumexp(running: RunningLogSumExp, block: Any, *, axis: int) -> Array:
    """The summaries of the rows of a block of classes, which are computed."""
    name = "RunningLogSumExp.update"
    x = _array(name, "block", block)
    problem = _problem(name, x, axis, name="block")
    running._check(problem, axis)
    return np.asarray(_summaries(x, problem.axes, running._rows.dtype["m"]).compute()).reshape(-1)


_METHODS: dict[str, Callable[..., Any]] = {
    "RunningMetrics.update": _update_metrics,
    "RunningLogSumExp.update": _update_logsumexp,
}

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


def call(name: str, *operands: Any, axis: Any, out: Any = None, **options: Any) -> Any:
    """The public function of this name; losses take their options as `options`, a `LossOptions`.

    For a method of `fastsoftmax.metrics`, what it adds to the sums of its object.
    """
    if name in _METHODS:
        return _METHODS[name](*operands, axis=axis, **options)
    function = FUNCTIONS[name]
    return _FAMILIES[function.family](function, *operands, axis=axis, out=out, **options)
