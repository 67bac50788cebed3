"""The drivers of the losses: they take a public function's name and arguments, and return its result.

This file has the code that the functions of a family share; `fastsoftmax._spec` says which kernel they have, which
targets they take and what they return. Files and Dask use `loss_rows` and `curvature_rows`, too: each of their
calls gets some of the rows of a mean, and its divisor.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax._spec import FUNCTIONS, LIKE, LOSS, SQUARE
from fastsoftmax._vectors import CAPPED, CURVE_PARTS, ON_STACK, SMALL
from fastsoftmax.arrays import long_rows
from fastsoftmax.arrays.blocks import (
    LAST,
    NO_BLOCK,
    NO_ROOM,
    SHORT_WAY,
    UNWEIGHTED,
    Problem,
    is_plain,
    kernel_weights,
    lie_apart,
)
from fastsoftmax.arrays.lazy import backend_for
from fastsoftmax.arrays.options import (
    MEAN,
    NO_Z_LOSS,
    NONE,
    SUM,
    UNSMOOTHED,
    LossOptions,
    RowTargets,
    reduced,
    row_losses,
    row_targets,
)
from fastsoftmax.arrays.parts import run
from fastsoftmax.arrays.plain import has_rows, run_plain
from fastsoftmax.arrays.threads import run_code
from fastsoftmax.arrays.weights import Divisor, inverse_of, total
from fastsoftmax.machine.entry import entry, remember

CURVATURE = "derivatives.softmax_variance"
"""The kernel for the diagonal of the Hessian of a focal loss with gamma = 0."""

# For small calls with the default options, overhead costs more than the computation: only checks are left.
Small = dict[tuple[np.dtype[Any], bool], tuple[Any, Any, Any, Any]]
_SMALL: Small = {}
_SMALL_FOCAL: Small = {}
_INDEX: np.dtype[Any] = np.dtype(np.int64)
_UNSCALED = (1.0, 0.0)
_LEAST_GAMMA, _MOST_GAMMA = 2.0**-126, 2.0**127


def small_cross_entropy(
    logits: Any,
    targets: Any,
    axis: Any,
    class_weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    z_loss: Any,
    softcap: Any,
    out: Any,
    gradient: bool,
    gamma: float | None = None,
) -> tuple[Any, Any] | None:
    """The loss of a small matrix and its gradient; None for options, and for arrays to convert or refuse.

    It is the focal loss unless `gamma` is None.
    """
    if not (
        axis is LAST
        and (reduction is MEAN or reduction is SUM or reduction is NONE)
        and class_weight is None
        and sample_weight is None
        and ignore_index is None
        and label_smoothing is UNSMOOTHED
        and z_loss is NO_Z_LOSS
        and softcap is None
        and type(logits) is np.ndarray
    ):
        return None
    dtype = logits.dtype
    known = (_SMALL if gamma is None else _SMALL_FOCAL).get((dtype, gradient))
    if known is None:
        return None
    small, code, ones, kind = known
    if not gradient and reduction is not NONE:
        if gamma is None:  # spelled out, since to unpack a tuple takes a seventh of the whole call
            loss = small(logits, targets, ones, None, None, 1.0, 0.0, True, _INDEX)
        else:
            loss = small(logits, targets, ones, None, None, 1.0, 0.0, gamma, True, _INDEX)
        if not loss < 0:
            return kind(loss / len(logits) if reduction is MEAN else loss), None
    if logits.ndim != 2:
        return None
    count, rows, scale, slope = len(logits), None, _UNSCALED, out
    if gradient:
        if out is None:
            slope = np.empty_like(logits)
        if reduction is MEAN and count:
            scale = inverse_of(count, dtype)
    if reduction is NONE or count > ON_STACK:
        rows = np.empty(count, dtype)
    focus = () if gamma is None else (gamma,)
    loss = small(logits, targets, ones, slope, rows, *scale, *focus, True, _INDEX)
    if loss < 0:
        if (
            not logits.size
            or logits.shape[1] > long_rows.LONG_ROW
            or not has_rows(logits)
            or not is_plain(targets, logits.shape[:1], _INDEX)
            or entry("losses.first_outside")(targets, logits.shape[1]) >= 0
            or not (
                out is None
                or (is_plain(out, logits.shape, dtype) and _safe(out, logits) and lie_apart(out, targets))
            )
        ):
            return None
        if rows is None:
            rows = np.empty(count, dtype)
        arguments = (logits, targets, ones, slope, rows, *scale, *map(kind, focus), False)
        run_plain(code, count, dtype, 1 if slope is None else 2, arguments)
        loss = 0.0 if reduction is NONE else total(rows)
    if reduction is NONE:
        return rows, slope
    return kind(loss / count if reduction is MEAN else loss), slope


DIVERGENCE_WORK = {"kl_divergence": 2, "js_divergence": 8}
"""The cost of an element without its gradient, in units of that of a softmax."""
_SMALL_DIVERGENCES: dict[tuple[np.dtype[Any], str, bool], Any] = {}


def small_divergence(
    function: str, logits: Any, target_logits: Any, axis: Any, options: LossOptions, out: Any
) -> tuple[Any, Any] | None:
    """As `small_cross_entropy`, for a divergence, also with a temperature, `reverse` or `beta`."""
    if not (
        axis is LAST and options.reduction is MEAN and options.sample_weight is None and type(logits) is np.ndarray
    ):
        return None
    dtype = logits.dtype
    if (
        dtype not in NO_BLOCK
        or not 0 < logits.size <= SHORT_WAY
        or logits.ndim != 2
        or not logits.flags.carray
        or not is_plain(target_logits, logits.shape, dtype)
    ):
        return None
    mixing, beta = options.divergence(function, dtype) or ((), None)
    kernel = _SMALL_DIVERGENCES.get((dtype, FUNCTIONS[function].loss, beta is None))
    if kernel is None:
        return None
    slope = NO_BLOCK[dtype]
    if out is not None:
        if not (is_plain(out, logits.shape, dtype) and _safe(out, logits) and _safe(out, target_logits)):
            return None
        slope = out
    elif LIKE in FUNCTIONS[function].result:
        slope = np.empty_like(logits)
    count = len(logits)
    rows = np.empty(count, dtype)
    scale = inverse_of(count, dtype)
    room, ones = NO_ROOM[dtype], UNWEIGHTED[dtype]
    arguments = (logits, target_logits, ones, slope, rows, *mixing, *scale, beta)
    if logits.size <= SMALL:
        whole = kernel(0, count, room, *arguments, True)
    else:
        work = (2 if slope.size else 1) * DIVERGENCE_WORK[FUNCTIONS[function].loss] * logits.nbytes // 4
        run_code(kernel, count, work, room, None, (*arguments, False))
        whole = total(rows)
    return dtype.type(whole / count), slope


def _safe(out: Any, operand: Any) -> bool:
    """Whether a kernel may write an output of the same shape while it reads the operand."""
    return out is operand or lie_apart(out, operand)


class RowLosses(NamedTuple):
    """The losses of some rows, as `options.row_losses` returns them, and their gradient if it was requested."""

    problem: Problem
    rows: Any
    gradient: Any
    divisor: Divisor


def room_for_rows(problem: Problem, parts: int) -> Any:
    """The function that allocates the working memory of the kernels of `kernels.capped`: so many parts."""
    return partial(np.empty, parts * max(problem.classes, CAPPED), problem.dtype)


def _cross_entropy(
    given: RowTargets, source: Any, labels: Any, distributions: Any, output: Any, rows: Any, scale: tuple[Any, Any]
) -> None:
    problem, whole = given.problem, tuple[Any, ...]()
    row_weights = kernel_weights(given.kernel_rows(given.row_weights), problem.dtype)
    results = (None if output is None else output.block, rows.block)
    if given.plain and long_rows.is_long(problem):
        long_rows.long_cross_entropy(source, labels, row_weights, *results, scale)
        return
    if given.plain:
        kernel = entry("losses.cross_entropy")
        arguments: tuple[Any, ...] = (source, labels, row_weights, *results, *scale, False)
    else:
        kernel = entry("losses.soft_cross_entropy")
        shares = given.shares(labels)
        arguments, whole = (source, distributions, *shares, row_weights, *results, *scale), shares[1:2]
    if given.regularization is not None:
        kernel, arguments = entry("capped.cross_entropy"), (*arguments, *given.regularization)
        run(kernel, problem.rows, 4 * source.size, room_for_rows(problem, 1), *arguments, whole=whole)
        return
    run(kernel, problem.rows, (1 if output is None else 2) * source.size, problem.room(2), *arguments, whole=whole)
    if given.plain:
        _remember_small(_SMALL, problem, output, kernel, arguments)


def _remember_small(small: Small, problem: Problem, output: Any, kernel: Any, arguments: tuple[Any, ...]) -> None:
    """Put the code of a kernel that has been used into the table for small calls."""
    if problem.direct:
        key = problem.dtype, output is not None
        if key not in small:
            codes = kernel.codes(problem.dtype, 0, 0, NO_ROOM[problem.dtype], *arguments)
            small[key] = *codes, UNWEIGHTED[problem.dtype], problem.dtype.type


def _row_loss(
    given: RowTargets, source: Any, labels: Any, distributions: Any, output: Any, rows: Any, scale: tuple[Any, Any]
) -> None:
    problem = given.problem
    row_weights = kernel_weights(given.kernel_rows(given.row_weights), problem.dtype)
    targets = labels if distributions is None else distributions
    block, over = (None, False) if output is None else (output.block, output.over(targets))
    arguments = source, targets, row_weights, block, rows.block, over, *scale
    kernel = entry(FUNCTIONS[problem.function].kernel)
    run(kernel, problem.rows, 2 * source.size, problem.room(2, over), *arguments)


def _divergence(
    given: RowTargets, source: Any, labels: Any, distributions: Any, output: Any, rows: Any, scale: tuple[Any, Any]
) -> None:
    assert given.divergence is not None
    problem, (mixing, beta) = given.problem, given.divergence
    row_weights = kernel_weights(given.kernel_rows(given.row_weights), problem.dtype)
    block = NO_BLOCK[problem.dtype] if output is None else output.block
    arguments = source, distributions, row_weights, block, rows.block, *mixing, *scale, beta, False
    function = FUNCTIONS[problem.function]
    kernel = entry(function.kernel)
    work = (1 if output is None else 2) * DIVERGENCE_WORK[function.loss] * source.size
    run(kernel, problem.rows, work, problem.room(2), *arguments)
    if problem.direct:
        key = problem.dtype, function.loss, beta is None
        remember(_SMALL_DIVERGENCES, key, kernel, 0, 0, NO_ROOM[problem.dtype], *arguments)


def _focal(
    given: RowTargets, source: Any, labels: Any, distributions: Any, output: Any, rows: Any, scale: tuple[Any, Any]
) -> None:
    problem = given.problem
    if given.gamma == 0:
        _cross_entropy(given, source, labels, distributions, output, rows, scale)
        return
    row_weights = kernel_weights(given.kernel_rows(given.row_weights), problem.dtype)
    block = None if output is None else output.block
    kernel = entry(FUNCTIONS[problem.function].kernel)
    arguments = source, labels, row_weights, block, rows.block, *scale, given.gamma, False
    run(kernel, problem.rows, (1 if output is None else 2) * source.size, problem.room(2), *arguments)
    _remember_small(_SMALL_FOCAL, problem, output, kernel, arguments)


_FAMILIES = {
    "cross entropy": _cross_entropy,
    "row loss": _row_loss,
    "divergence": _divergence,
    "focal": _focal,
}


def loss_rows(
    function: str,
    logits: Any,
    targets: Any,
    axis: Any,
    options: LossOptions,
    out: Any = None,
    *,
    gradient: bool,
    divisor: Divisor | None = None,
) -> RowLosses:
    """The loss of each row, its gradient, and the divisor of the mean.

    A `divisor` is passed if the mean has other rows, too. Losses that will be reduced are in the dtype of the
    computation, and already divided by the power of two of the divisor.
    """
    regularized = options.regularization(function) is not None
    problem = Problem(function, logits, axis, name="logits", last=regularized)
    given = row_targets(problem, targets, options, divisor)
    source = problem.block()
    labels = None if given.soft else problem.per_row(given.array, np.int64)
    distributions = problem.convert(given.array) if given.soft else None
    output = problem.output(out) if gradient else None
    rows = problem.row_output(None)
    scale = options.scale(given.divisor, problem.dtype)
    _FAMILIES[FUNCTIONS[function].family](given, source, labels, distributions, output, rows, scale)
    slope = None if output is None else output.finish()
    return RowLosses(problem, row_losses(rows, options), slope, given.divisor)


def divergence(
    function: str, logits: Any, target_logits: Any, axis: int, options: LossOptions, out: Any = None
) -> Any:
    """`loss` for a divergence, with a short way for small arrays."""
    found = small_divergence(function, logits, target_logits, axis, options, out)
    if found is None:
        return loss(function, logits, target_logits, axis, options, out)
    results = FUNCTIONS[function].result
    return found if len(results) == 2 else found[results[0] == LIKE]


def focal(function: str, logits: Any, labels: Any, axis: int, options: LossOptions, out: Any = None) -> Any:
    """`loss` for a focal loss, with a short way for small arrays."""
    results, gamma, found = FUNCTIONS[function].result, options.gamma, None
    # Both dtypes hold such a gamma as a normal number. With 0, the loss is the cross-entropy.
    if type(gamma) in (float, int) and (_LEAST_GAMMA <= gamma <= _MOST_GAMMA or gamma == 0):
        found = small_cross_entropy(logits, labels, axis, *options[:7], out, LIKE in results, gamma or None)
    if found is None:
        return loss(function, logits, labels, axis, options, out)
    return found if len(results) == 2 else found[results[0] == LIKE]


def loss(function: str, logits: Any, targets: Any, axis: Any, options: LossOptions, out: Any = None) -> Any:
    """The result of the public function of this name: a loss, its gradient, or both."""
    if backend := backend_for(logits, targets, *options):
        return backend(function, logits, targets, axis=axis, out=out, options=options)
    results = FUNCTIONS[function].result
    found = loss_rows(function, logits, targets, axis, options, out, gradient=LIKE in results)
    if LOSS not in results:
        return found.gradient
    value = reduced(found.rows, options, found.divisor, found.problem.result_dtype)
    return (value, found.gradient) if LIKE in results else value


def curvature_rows(
    function: str,
    logits: Any,
    targets: Any,
    tangent: Any,
    axis: Any,
    options: LossOptions,
    out: Any = None,
    divisor: Divisor | None = None,
) -> Any:
    """Second derivatives of the cross-entropy of some rows; `tangent` is None for the functions without one."""
    dense = SQUARE in FUNCTIONS[function].result
    regularized = options.regularization(function) is not None
    problem = Problem(function, logits, axis, name="logits", last=dense or regularized)
    operand = None if tangent is None else problem.operand("tangent", tangent)
    given = row_targets(problem, targets, options, divisor)
    factors = given.factors()
    source = problem.block()
    if regularized:
        return _regularized_curvature(given, source, operand, options, factors, out, dense)
    work, operands, over = source.size, 1, False
    kernel = entry(FUNCTIONS[function].kernel)
    if FUNCTIONS[function].family == "focal curvature":
        output = problem.output(out)
        arguments: tuple[Any, ...] = (source, problem.per_row(given.array, np.int64), factors, output.block)
        arguments = (*arguments, given.gamma)
        if given.gamma == 0:
            kernel, arguments = entry(CURVATURE), (source, output.block, factors)
    elif dense:
        output = problem.output(out, (*problem.row_shape, problem.classes, problem.classes))
        work *= max(1, problem.classes // 4)
        arguments = (source, output.block, None, None, factors)
    elif operand is None:
        output = problem.output(out)
        arguments = source, output.block, factors
    else:
        second = problem.convert(operand)
        output = problem.output(out)
        over = output.over(second)
        arguments = source, second, output.block, over, None, None, factors
        work, operands = 2 * work, 2
    run(kernel, problem.rows, work, problem.room(operands, over), *arguments)
    return output.finish()


def _regularized_curvature(
    given: RowTargets, source: Any, tangent: Any, options: LossOptions, factors: Any, out: Any, dense: bool
) -> Any:
    """`curvature_rows` with a z-loss or capped logits."""
    problem = given.problem
    labels = None if given.soft else problem.per_row(given.array, np.int64)
    distributions = problem.convert(given.array) if given.soft else None
    kernel, work = entry("capped.variance"), 8 * source.size
    operands: tuple[Any, ...] = (source,)
    if tangent is not None:
        kernel, operands = entry("capped.product"), (source, problem.convert(tangent))
    shape = (*problem.row_shape, problem.classes, problem.classes) if dense else None
    output = problem.output(out, shape)
    row_weights = kernel_weights(given.kernel_rows(given.row_weights), problem.dtype)
    shares = given.shares(labels)
    arguments = (*operands, distributions, *shares, row_weights, factors, output.block)
    scale = options.scale(given.divisor, problem.dtype)
    room, regularization = room_for_rows(problem, CURVE_PARTS), given.regularization or ()
    run(kernel, problem.rows, work, room, *arguments, *scale, *regularization, whole=shares[1:2])
    return output.finish()


def curvature(
    function: str, logits: Any, targets: Any, tangent: Any, axis: Any, options: LossOptions, out: Any
) -> Any:
    """cross_entropy_hvp, cross_entropy_hessian_diag, cross_entropy_hessian or focal_loss_hessian_diag."""
    if backend := backend_for(logits, targets, tangent, *options):
        return backend(function, logits, targets, tangent, axis=axis, out=out, options=options)
    return curvature_rows(function, logits, targets, tangent, axis, options, out)


_CURVATURES = {"cross_entropy_grad": "cross_entropy_hessian_diag", "focal_loss_grad": "focal_loss_hessian_diag"}


def derivatives(function: str, logits: Any, targets: Any, options: LossOptions) -> tuple[Any, Any]:
    """The gradient and the diagonal of the Hessian, in one pass, for arrays in memory and the reduction "sum".

    `function` is the function for the gradient, which messages name. The bits are those of the two functions.
    """
    problem = Problem(function, logits, LAST, name="logits")
    given = row_targets(problem, targets, options)
    focal = FUNCTIONS[function].family == "focal"
    if given.soft or (not focal and long_rows.is_long(problem)):  # there is no kernel for both
        found = loss_rows(function, logits, targets, LAST, options, gradient=True)
        return found.gradient, curvature_rows(_CURVATURES[function], logits, targets, None, LAST, options)
    source, labels = problem.block(), problem.per_row(given.array, np.int64)
    row_weights = kernel_weights(given.kernel_rows(given.row_weights), problem.dtype)
    gradient, diagonal = problem.output(None), problem.output(None)
    arguments: tuple[Any, ...] = (source, labels, row_weights, gradient.block, diagonal.block)
    kernel = entry("losses.cross_entropy_derivatives")
    if focal:
        kernel, arguments = entry("focal.focal_derivatives"), (*arguments, given.gamma)
    run(kernel, problem.rows, 3 * source.size, problem.room(2), *arguments)
    return gradient.finish(), diagonal.finish()
