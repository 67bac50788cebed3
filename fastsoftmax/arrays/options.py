"""The options of a loss, and what follows from them and the targets: for arrays, Dask, files and segments.

The divisor of a mean, the weights of the rows and the shares of the classes are computed here and nowhere else;
`weights` has the arithmetic.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax._spec import DISTRIBUTIONS, FUNCTIONS, LABELS, TARGET_LOGITS, TARGETS
from fastsoftmax.arrays.blocks import (
    UNTEMPERED,
    Array,
    Output,
    Problem,
    inverse_temperature,
    kernel_weights,
    named,
    number,
    real_array,
    stand_in,
)
from fastsoftmax.arrays.parts import run
from fastsoftmax.arrays.weights import (
    Divisor,
    converted,
    count_divisor,
    inverse_of,
    normalized,
    part_of_weight,
    product_of_weights,
    quotient,
    scaled,
    total,
    weight_divisor,
)
from fastsoftmax.machine.entry import entry

REDUCTIONS = MEAN, SUM, NONE = ("mean", "sum", "none")
DIVERGENCES = frozenset(entry.loss for entry in FUNCTIONS.values() if entry.family == "divergence")
# The defaults of the public functions, which a small call recognises by identity, as MEAN.
UNSMOOTHED, NO_Z_LOSS, HALF = 0.0, 0.0, 0.5


class LossOptions(NamedTuple):
    """The options of a loss as the user passed them; an option that a loss does not have keeps its default."""

    class_weight: Any = None
    sample_weight: Any = None
    ignore_index: Any = None
    label_smoothing: float = UNSMOOTHED
    reduction: str = MEAN
    z_loss: float = NO_Z_LOSS
    softcap: Any = None
    temperature: float = UNTEMPERED
    reverse: bool = False
    beta: float = HALF
    gamma: float = 0.0

    @property
    def is_mean(self) -> bool:
        """Whether the loss is a mean. The reduction has to be checked before."""
        return self.reduction == "mean"

    def check_reduction(self, function: str) -> None:
        """ValueError unless the reduction is one of `REDUCTIONS`."""
        if not isinstance(self.reduction, str) or self.reduction not in REDUCTIONS:
            prefix = named(function, "reduction")
            raise ValueError(f"{prefix} must be one of {REDUCTIONS}, got {self.reduction!r}")

    def smoothing(self, function: str) -> float:
        """`label_smoothing` as a float; an error unless it is from 0 to 1."""
        if self.label_smoothing is UNSMOOTHED:
            return UNSMOOTHED
        value = number(function, "label_smoothing", self.label_smoothing, 0.0, inclusive=True)
        if value > 1:
            raise ValueError(f"{named(function, 'label_smoothing')} must be at most 1, got {value!r}")
        return value

    def ignored_index(self, function: str) -> int | None:
        """`ignore_index` as an integer, or None; TypeError if it is neither."""
        index = self.ignore_index
        if index is None:
            return None
        if isinstance(index, bool) or not hasattr(index, "__index__"):
            raise TypeError(f"{named(function, 'ignore_index')} must be an integer or None, got {index!r}")
        return int(index)

    def regularization(self, function: str) -> tuple[float, float] | None:
        """The factor of the z-loss, and the cap of the logits (inf: none); None if there is neither.

        An error unless `z_loss` is at least 0 and `softcap` above 0.
        """
        if self.z_loss is NO_Z_LOSS and self.softcap is None:
            return None
        z_loss, cap = number(function, "z_loss", self.z_loss, 0.0, inclusive=True), math.inf
        if self.softcap is not None:
            cap = number(function, "softcap", self.softcap, 0.0, inclusive=False)
        return None if z_loss == 0 and cap == math.inf else (z_loss, cap)

    def divergence(self, function: str, dtype: np.dtype[Any]) -> tuple[tuple[Any, ...], Any] | None:
        """The options of a divergence as its kernel takes them, and 1/T; None for other losses.

        They are whether it is reversed, or the share of the targets in the mixture and its complement.
        """
        loss = FUNCTIONS[function].loss
        if loss not in DIVERGENCES:
            return None
        beta = inverse_temperature(function, self.temperature, dtype)
        if loss == "kl_divergence":
            return (reversal(function, self.reverse),), beta
        return mixture_shares(function, self.beta, dtype), beta

    def focus(self, function: str) -> float:
        """`gamma` as a float; an error unless it is finite and at least 0."""
        return number(function, "gamma", self.gamma, 0.0, inclusive=True)

    def scale(self, divisor: Divisor, dtype: np.dtype[Any]) -> tuple[Any, Any]:
        """The factor of the gradients that follows from the reduction, as a pair."""
        return inverse_of(divisor.value if self.reduction == "mean" else 1.0, dtype)


def reversal(function: str, reverse: Any) -> bool:
    """`reverse` as a bool; TypeError if it is none."""
    if not isinstance(reverse, (bool, np.bool_)):
        raise TypeError(f"{named(function, 'reverse')} must be a bool, got {reverse!r}")
    return bool(reverse)


def mixture_shares(function: str, beta: Any, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """beta and 1 - beta in a dtype; an error unless `beta` is above 0 and below 1."""
    share = number(function, "beta", beta, 0.0, inclusive=False)
    if share >= 1:
        raise ValueError(f"{named(function, 'beta')} must be below 1, got {beta!r}")
    return dtype.type(share), dtype.type(1 - share)


# --- targets ------------------------------------------------------------------------------------------------


def check_kind(problem: Problem, targets: Any, options: LossOptions) -> bool:
    """Whether the targets of a loss are distributions; an error if the loss does not take such targets.

    `targets` is an array of real numbers, or any object with a shape and a dtype.
    """
    function = FUNCTIONS[problem.function]
    name, role = function.second, function.operands[1]
    if role in (DISTRIBUTIONS, TARGET_LOGITS):
        problem.check_shape(name, targets)
        return True
    if role == TARGETS and targets.shape == problem.shape:
        if options.ignore_index is not None:
            raise ValueError(
                f"{named(problem.function, 'ignore_index')} is for class indices, but targets of shape "
                f"{targets.shape} are distributions"
            )
        return True
    soft = "" if role == LABELS else f" or {problem.shape} (distributions)"
    check_indices(problem, targets, name, soft)
    options.ignored_index(problem.function)
    return False


def check_indices(problem: Problem, targets: Any, name: str, soft: str = "") -> None:
    """An error unless the targets can be class indices, one for each row; `soft` says what else they may be."""
    prefix = named(problem.function, name)
    if targets.shape != problem.row_shape:
        raise ValueError(
            f"{prefix} has shape {targets.shape}, expected {problem.row_shape} (class indices){soft} for "
            f"{problem.name} of shape {problem.shape}"
        )
    if targets.dtype.kind not in "iu":
        raise TypeError(
            f"{prefix} of shape {targets.shape} are class indices and have dtype {targets.dtype}, "
            "expected integers"
        )


def _all_below(labels: Array, classes: int) -> bool:
    """Whether all labels are from 0 to classes - 1; as an unsigned integer, a negative one is large."""
    unsigned = labels.dtype.str.replace("i", "u")
    return int(labels.view(unsigned).max()) < classes


def check_labels(
    function: str,
    labels: Array,
    classes: int,
    ignore_index: Any,
    origin: tuple[int, ...] = (),
    name: str = "targets",
) -> Array | None:
    """Which labels are ignored, or None; IndexError for a wrong one. `origin` is where they begin among all."""
    ignored: Array | None = None if ignore_index is None else np.equal(labels, int(ignore_index))
    if labels.size and not _all_below(labels, classes):
        wrong = np.less(labels, 0) | np.greater_equal(labels, classes)
        if ignored is not None:
            wrong &= ~ignored
        if wrong.any():
            place = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), labels.shape))
            where = ", ".join(str(i + n) for i, n in zip(place, origin or (0,) * len(place), strict=True))
            prefix = named(function, name)
            raise IndexError(f"{prefix}[{where}] is {labels[place]}, expected a label from 0 to {classes - 1}")
    return ignored


def smoothed_shares(smoothing: float, classes: int) -> tuple[float, float]:
    """The share of every class, and the remaining share of the target: base and gain of `RowTargets`.

    Compiled code uses this function, too.
    """
    return smoothing / max(classes, 1), 1.0 - smoothing


def regularized_by(z_loss: Any, cap: Any, exponent: int, kind: Any) -> tuple[Any, Any]:
    """The z-loss times 2**exponent and the cap, in a dtype; a finite cap stays finite and above 0.

    The z-loss becomes inf if weights of the classes are so small that a mean over them overflows.
    """
    limits = np.finfo(kind)
    if cap < np.inf:
        cap = min(max(float(cap), float(limits.tiny)), float(limits.max))
    with np.errstate(all="ignore"):
        return kind(np.ldexp(float(z_loss), exponent)), kind(cap)


def counts_rows(function: str, soft: bool) -> bool:
    """Whether a mean divides by the number of rows, whatever their weights.

    It does for distributions, if the loss also takes class indices; else it divides by the sum of the weights.
    """
    return soft and FUNCTIONS[function].operands[1] == TARGETS


def known_divisor(function: str, soft: bool, options: LossOptions, rows: int) -> Divisor | None:
    """The divisor of a mean over so many rows; None if it depends on weights or labels."""
    weighted = any(value is not None for value in options[:3])
    return None if weighted and not counts_rows(function, soft) else count_divisor(rows)


def spared(rows: Array | None, ignored: Array | None, dtype: np.dtype[Any]) -> Array | None:
    """The weights of the rows, 0 for those that are ignored; None if every row has weight 1."""
    if ignored is None or not ignored.any():
        return rows
    return np.where(ignored, 0, 1 if rows is None else rows).astype(dtype)


def mean_divisor(counted: Array | None, exponent: int, rows: int) -> Divisor:
    """The divisor of a mean of so many rows with the weights `counted` * 2**exponent (None: all are 1)."""
    return count_divisor(rows) if counted is None else weight_divisor(counted, exponent, rows)


class RowTargets:
    """What follows from the targets and the options of a loss: shares of classes, weights of rows, divisor.

    The share of class j in row n is ``class_weight_j * (base + gain * y_nj)``, and the loss of row n is multiplied
    by ``row_weights_n``: see `kernels.losses`. If the targets are `plain`, `row_weights` includes the class
    weights. The weights are divided by the power of two of `divisor`, the divisor of a mean. It is passed if the
    mean has other rows, too.

    The divisor is the sum of `counted` times 2**`exponent`; `counted` is None if every row has weight 1.

    `regularization` is the factor of the z-loss, in the same units as the weights, and the cap of the logits, as
    kernels take them (`regularized_by`); None if there is neither. `divergence` is that of `LossOptions`.

    `gamma` is that of the focal loss, in the dtype of the computation.

    `array` has been checked (`row_targets`), and `ignored` says which of its class indices are ignored.
    """

    __slots__ = (
        "array",
        "base",
        "class_weights",
        "counted",
        "divergence",
        "divisor",
        "exponent",
        "gain",
        "gamma",
        "mean",
        "problem",
        "regularization",
        "row_weights",
        "soft",
    )

    def __init__(
        self,
        problem: Problem,
        array: Array,
        ignored: Array | None,
        options: LossOptions,
        divisor: Divisor | None = None,
    ) -> None:
        self.problem, self.array, self.mean = problem, array, options.is_mean
        self.soft = array.ndim == len(problem.shape)
        base, gain = smoothed_shares(options.smoothing(problem.function), problem.classes)
        self.base, self.gain = problem.dtype.type(base), problem.dtype.type(gain)
        self.class_weights, self.row_weights, self.counted, self.exponent = None, None, None, 0
        self.gamma = problem.dtype.type(options.focus(problem.function))
        self.regularization = options.regularization(problem.function)
        self.divergence = options.divergence(problem.function, problem.dtype)
        if self.regularization is not None:
            self.regularization = regularized_by(*self.regularization, 0, problem.dtype.type)
        if divisor is None and ignored is None and options.class_weight is None and options.sample_weight is None:
            self.divisor = count_divisor(problem.rows)
            return
        self.class_weights = weight_array(problem, "class_weight", options.class_weight, (problem.classes,))
        rows = weight_array(problem, "sample_weight", options.sample_weight, problem.row_shape)
        self.row_weights = rows
        rows_only = counts_rows(problem.function, self.soft)
        if not rows_only:
            rows = spared(rows, ignored, problem.dtype)
            self.counted, self.exponent = self._count(rows)
        if divisor is None:
            counted = self.kernel_rows(self.counted) if self.mean else None
            divisor = mean_divisor(counted, self.exponent, problem.rows)
        self.divisor = divisor
        if not rows_only:
            self._put_into_rows(rows)

    def _count(self, rows: Array | None) -> tuple[Array | None, int]:
        """The weights of the rows times those of their labels, and the exponent of a power of two."""
        if self.class_weights is None or not self.problem.classes:
            return rows, 0
        chosen = np.take(self.class_weights, self.array, mode="clip")
        return (chosen, 0) if rows is None else product_of_weights(chosen, rows)

    def _put_into_rows(self, rows: Array | None) -> None:
        """Set the weights of rows and classes for a kernel, divided by the power of two of the divisor."""
        weights, exponent = self.class_weights, self.exponent
        down = self.divisor.exponent
        if self.plain:
            counted = self.counted
            if counted is None and exponent != down:  # rows are ignored only in other parts of the mean
                counted = np.ones(self.problem.row_shape, self.problem.dtype)
            self.row_weights = None if counted is None else scaled(counted, exponent - down)
            if weights is not None and self.mean and np.isnan(self.divisor.value):
                # 0/0, as in PyTorch, for a row whose class has weight 0; but 0 for a row that is ignored.
                out = False if rows is None else rows == 0
                nothing, nowhere = self.problem.dtype.type(0), self.problem.dtype.type(np.nan)
                self.row_weights = np.where(np.broadcast_to(out, self.problem.row_shape), nothing, nowhere)
            self.class_weights = None
            return
        up = 0
        if weights is not None and self.mean:
            self.class_weights, up = normalized(weights)
            if self.regularization is not None:
                self.regularization = regularized_by(*self.regularization, -up, self.problem.dtype.type)
        if rows is None and up != down:
            rows = np.ones(self.problem.row_shape, self.problem.dtype)
        self.row_weights = None if rows is None else scaled(rows, up - down)

    @property
    def plain(self) -> bool:
        """Whether the targets are class indices, without label smoothing, and the loss is not regularized."""
        return not self.soft and self.base == 0 and self.regularization is None

    def shares(self, labels: Any) -> tuple[Any, ...]:
        """The numbers from which kernels compute the shares of the classes, besides distributions."""
        return labels, kernel_weights(self.class_weights, self.problem.dtype), self.base, self.gain

    def kernel_rows(self, array: Array | None) -> Array | None:
        """One number for each row, in the order of the block."""
        return None if array is None else self.problem.per_row(array, self.problem.dtype)

    def totals(self) -> Array | None:
        """The sum of the shares of each row times its weight: the factor of the Hessian."""
        problem = self.problem
        if self.plain:
            return self.row_weights
        weights = self.class_weights
        if weights is None:
            weights = np.ones(problem.classes, problem.dtype)
        given: Array
        if self.soft:
            high, low = problem.row_output(None), problem.row_output(None)
            block, zero, one = problem.convert(self.array), problem.dtype.type(0), problem.dtype.type(1)
            arguments = block, weights, zero, one, high.block, low.block
            run(
                entry("reductions.share_totals"),
                problem.rows,
                block.size,
                problem.room(1),
                *arguments,
                whole=(weights,),
            )
            given = high.result.astype(np.float64) + low.result
        elif problem.classes:
            given = np.take(weights, self.array, mode="clip").astype(np.float64)
        else:
            given = np.zeros(problem.row_shape)
        shares: Array = float(self.base) * total(weights) + float(self.gain) * given
        return shares if self.row_weights is None else shares * self.row_weights

    def factors(self) -> Array:
        """The factor of the softmax Jacobian of each row, in the order of the block, as kernels take weights."""
        problem = self.problem
        divided = self.mean and problem.rows
        if self.plain and self.row_weights is None:
            factors = np.full(problem.rows, 1 / self.divisor.value, problem.dtype) if divided else None
            return kernel_weights(factors, problem.dtype)
        with np.errstate(all="ignore"):
            factors = self.totals()
            assert factors is not None
            if divided:
                factors = np.divide(factors, self.divisor.value, dtype=np.float64)
            if self.row_weights is not None:
                factors = np.where(self.row_weights == 0, 0, factors)
            return problem.per_row(factors, problem.dtype)


def row_targets(
    problem: Problem, targets: Any, options: LossOptions, divisor: Divisor | None = None
) -> RowTargets:
    """The targets and the options of a loss as `RowTargets`, after all checks."""
    options.check_reduction(problem.function)
    name = FUNCTIONS[problem.function].second
    array, ignored = real_array(problem.function, name, targets), None
    if not check_kind(problem, array, options):
        ignored = check_labels(problem.function, array, problem.classes, options.ignore_index, name=name)
    return RowTargets(problem, array, ignored, options, divisor)


def weight_array(
    problem: Problem, name: str, value: Any, shape: tuple[int, ...], dtype: Any = None
) -> Array | None:
    """An array of weights of this shape in `dtype`, that of the computation if it is None; or None."""
    if value is None:
        return None
    array = real_array(problem.function, name, value)
    if array.shape != shape:
        raise ValueError(f"{named(problem.function, name)} has shape {array.shape}, expected {shape}")
    return converted(array, problem.dtype if dtype is None else dtype)


def part_of_divisor(
    function: str, labels: Array | None, classes: int, dtype: np.dtype[Any], options: LossOptions
) -> Array:
    """The part of some rows in the divisor of a mean, as a `weights.SUM`; rows with distributions have weights."""
    shape = (options.sample_weight if labels is None else labels).shape
    logits = stand_in((*shape, classes), dtype)
    problem = Problem(function, logits, -1, name="logits")
    given = row_targets(problem, logits if labels is None else labels, options._replace(reduction="sum"))
    return part_of_weight(np.ones(shape) if given.counted is None else given.counted, given.exponent)


# --- reductions ---------------------------------------------------------------------------------------------


def row_losses(rows: Output, options: LossOptions) -> Any:
    """The losses of the rows: in the dtype of the result if they are returned, else in that of the computation."""
    return rows.finish() if options.reduction == "none" else rows.result


def reduced(rows: Any, options: LossOptions, divisor: Divisor, dtype: np.dtype[Any]) -> Any:
    """The loss after the reduction, from an array with one number for each row."""
    if options.reduction == "none":
        return rows
    return quotient(total(rows), divisor if options.is_mean else None, dtype)
