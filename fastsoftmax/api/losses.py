"""cross_entropy and squared_error, with their gradients and Hessians."""

from typing import Any

import numpy as np

from fastsoftmax import kernels
from fastsoftmax.arrays import long_rows
from fastsoftmax.arrays.blocks import LAST, SMALL, Array, Problem, is_plain, lie_apart, named, number, real_array
from fastsoftmax.arrays.lazy import is_lazy, lazily
from fastsoftmax.arrays.threads import run
from fastsoftmax.arrays.weights import (
    Divisor,
    check_reduction,
    count_divisor,
    exponent_of,
    gradient_scale,
    ignored_index,
    inverse_of,
    part_of_weight,
    product_of_weights,
    reduced,
    row_losses,
    scaled,
    total,
    weight_array,
    weight_divisor,
)


def _all_below(labels: Array, classes: int) -> bool:
    """Whether all labels are from 0 to classes - 1; a negative one is a large one to a reader without signs."""
    unsigned = labels.dtype.str.replace("i", "u")
    return int(labels.view(unsigned).max()) < classes


def check_kind(problem: Problem, targets: Any, ignore_index: Any) -> bool:
    """Whether the targets are distributions; an error if they are no class indices either."""
    prefix = named(problem.function, "targets")
    if targets.shape == problem.shape:
        if ignore_index is not None:
            raise ValueError(
                f"{named(problem.function, 'ignore_index')} is for class indices, but targets of shape "
                f"{targets.shape} are distributions"
            )
        return True
    if targets.shape != problem.row_shape:
        raise ValueError(
            f"{prefix} has shape {targets.shape}, expected {problem.row_shape} (class indices) or {problem.shape} "
            f"(distributions) for {problem.name} of shape {problem.shape}"
        )
    if targets.dtype.kind not in "iu":
        raise TypeError(
            f"{prefix} of shape {targets.shape} are class indices and have dtype {targets.dtype}, "
            "expected integers"
        )
    ignored_index(problem.function, ignore_index)
    return False


def check_labels(
    function: str, labels: Array, classes: int, ignore_index: Any, origin: tuple[int, ...] = ()
) -> Array | None:
    """Which class indices are ignored, None for none of them; `origin` is where these labels begin among all."""
    ignored: Array | None = None if ignore_index is None else np.equal(labels, int(ignore_index))
    if labels.size and not _all_below(labels, classes):
        wrong = np.less(labels, 0) | np.greater_equal(labels, classes)
        if ignored is not None:
            wrong &= ~ignored
        if wrong.any():
            place = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), labels.shape))
            where = ", ".join(str(i + n) for i, n in zip(place, origin or (0,) * len(place), strict=True))
            prefix = named(function, "targets")
            raise IndexError(f"{prefix}[{where}] is {labels[place]}, expected a label from 0 to {classes - 1}")
    return ignored


def _check_targets(problem: Problem, targets: Any, ignore_index: Any) -> tuple[Array, Array | None]:
    """Class indices or distributions, told apart by their shape; which class indices are ignored."""
    array = real_array(problem.function, "targets", targets)
    if check_kind(problem, array, ignore_index):
        return array, None
    return array, check_labels(problem.function, array, problem.classes, ignore_index)


class RowTargets:
    """What the targets and the options of a cross-entropy come to.

    The share of class j in row n is ``class_weight_j * (base + gain * y_nj)``, and row n counts
    ``row_weights_n`` times: see `kernels.losses`. Without smoothing, the class weights of class indices are put
    into the weights of the rows. `divisor` is what a mean divides by, and its power of two is taken out of the
    weights. It is given where these rows are only some of those of the mean.

    `counted` is what the mean adds up, for class indices and before that: weights times 2**`exponent`, or None if
    every row counts once.
    """

    __slots__ = (
        "array",
        "base",
        "class_weights",
        "counted",
        "divisor",
        "exponent",
        "gain",
        "problem",
        "row_weights",
        "soft",
    )

    def __init__(
        self,
        problem: Problem,
        targets: Any,
        reduction: str,
        options: dict[str, Any],
        divisor: Divisor | None = None,
    ) -> None:
        function = problem.function
        check_reduction(function, reduction)
        self.problem = problem
        self.array, ignored = _check_targets(problem, targets, options.get("ignore_index"))
        self.soft = self.array.ndim == len(problem.shape)
        smoothing = number(function, "label_smoothing", options.get("label_smoothing", 0.0), 0.0, inclusive=True)
        if smoothing > 1:
            raise ValueError(f"{named(function, 'label_smoothing')} must be at most 1, got {smoothing!r}")
        self.base = problem.dtype.type(smoothing / max(problem.classes, 1))
        self.gain = problem.dtype.type(1 - smoothing)
        self.class_weights = weight_array(problem, "class_weight", options.get("class_weight"), (problem.classes,))
        rows = weight_array(problem, "sample_weight", options.get("sample_weight"), problem.row_shape)
        self.counted, self.exponent = rows, 0
        self.row_weights = rows
        self.divisor = count_divisor(problem.rows) if divisor is None else divisor
        if self.soft:
            return
        if ignored is not None and ignored.any():
            rows = np.where(ignored, 0, 1 if rows is None else rows).astype(problem.dtype)
        self.counted, self.exponent = self._count(rows)
        if self.counted is not None and reduction == "mean" and divisor is None:
            counted = self.kernel_rows(self.counted)
            assert counted is not None
            self.divisor = weight_divisor(counted, self.exponent, problem.rows)
        self._put_into_rows(rows, reduction)

    def _count(self, rows: Array | None) -> tuple[Array | None, int]:
        """What the rows count: their weights times those of their labels."""
        if self.class_weights is None or not self.problem.classes:
            return rows, 0
        chosen = np.take(self.class_weights, self.array, mode="clip")
        return (chosen, 0) if rows is None else product_of_weights(chosen, rows)

    def _put_into_rows(self, rows: Array | None, reduction: str) -> None:
        """The weights of rows and classes for a kernel, without the power of two in what a mean divides by."""
        weights, exponent = self.class_weights, self.exponent
        down = self.divisor.exponent if reduction == "mean" else 0
        if self.base == 0:
            counted = self.counted
            if counted is None and exponent != down:  # only other rows of the mean are ignored
                counted = np.ones(self.problem.row_shape, self.problem.dtype)
            self.row_weights = None if counted is None else scaled(counted, exponent - down)
            if weights is not None and reduction == "mean" and np.isnan(self.divisor.value):
                # 0/0, as in PyTorch, for a row whose class weighs 0; but nothing for one that is left out.
                out = False if rows is None else rows == 0
                nothing, nowhere = self.problem.dtype.type(0), self.problem.dtype.type(np.nan)
                self.row_weights = np.where(np.broadcast_to(out, self.problem.row_shape), nothing, nowhere)
            self.class_weights = None
            return
        up = 0
        if weights is not None and reduction == "mean":
            up = exponent_of(weights)
            self.class_weights = scaled(weights, -up)
        if rows is None and up != down:
            rows = np.ones(self.problem.row_shape, self.problem.dtype)
        self.row_weights = None if rows is None else scaled(rows, up - down)

    @property
    def plain(self) -> bool:
        """Whether every row has one class, and nothing but that counts."""
        return not self.soft and self.base == 0

    def kernel_rows(self, array: Array | None) -> Array | None:
        """One number for each row, in the order of the block."""
        return None if array is None else self.problem.per_row(array, self.problem.dtype)

    def totals(self) -> Array | None:
        """The sum of the shares of each row times its weight, which is what the Hessian is multiplied by."""
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
            run(kernels.reductions.share_totals, problem.rows, block.size, problem.room(1), *arguments)
            given = high.result.astype(np.float64) + low.result
        elif problem.classes:
            given = np.take(weights, self.array, mode="clip").astype(np.float64)
        else:
            given = np.zeros(problem.row_shape)
        shares: Array = float(self.base) * total(weights) + float(self.gain) * given
        return shares if self.row_weights is None else shares * self.row_weights

    def factors(self, reduction: str) -> Array | None:
        """What the softmax Jacobian of each row has to be multiplied by, in the order of the block; None for 1."""
        problem = self.problem
        if self.plain and self.row_weights is None:
            if reduction != "mean" or not problem.rows:
                return None
            return np.full(problem.rows, 1 / self.divisor.value, problem.dtype)
        with np.errstate(all="ignore"):
            factors = self.totals()
            assert factors is not None
            if reduction == "mean" and problem.rows:
                factors = np.divide(factors, self.divisor.value, dtype=np.float64)
            if self.row_weights is not None:
                factors = np.where(self.row_weights == 0, 0, factors)
            return self.kernel_rows(factors)


def cross_entropy_rows(
    function: str,
    logits: Any,
    targets: Any,
    axis: int,
    reduction: str,
    out: Any,
    gradient: bool,
    options: dict[str, Any],
    divisor: Divisor | None = None,
) -> tuple[Problem, Any, Any, Divisor]:
    """The loss of each row, the gradient (None if it is not asked for), and what a mean divides by.

    A `divisor` is given where these rows are only some of those of the mean. Losses that are to be reduced are in
    the dtype of the computation, and have no power of two of the divisor in them.
    """
    problem = Problem(function, logits, axis, name="logits")
    given = RowTargets(problem, targets, reduction, options, divisor)
    divisor = given.divisor
    source = problem.block()
    row_weights = given.kernel_rows(given.row_weights)
    labels = None if given.soft else problem.per_row(given.array, np.int64)
    distributions = problem.convert(given.array) if given.soft else None
    output = problem.output(out) if gradient else None
    rows = problem.row_output(None)
    results = (None if output is None else output.block, rows.block)
    scale = gradient_scale(divisor, reduction, problem.dtype)
    if given.plain and long_rows.is_long(problem):
        assert labels is not None
        long_rows.long_cross_entropy(source, labels, row_weights, *results, scale)
        slope = None if output is None else output.finish()
        return problem, row_losses(rows, reduction), slope, divisor
    if given.plain:
        kernel = kernels.losses.cross_entropy
        arguments: tuple[Any, ...] = (source, labels, row_weights, *results, *scale)
    else:
        kernel = kernels.losses.soft_cross_entropy
        mix = labels, given.class_weights, given.base, given.gain
        arguments = (source, distributions, *mix, row_weights, *results, *scale)
    run(kernel, problem.rows, 2 * source.size, problem.room(2), *arguments)
    slope = None if output is None else output.finish()
    return problem, row_losses(rows, reduction), slope, divisor


def counted(function: str, labels: Array, classes: int, dtype: np.dtype[Any], options: dict[str, Any]) -> Array:
    """What some rows add to the divisor of a cross-entropy's mean, as a `arrays.weights.SUM`."""
    logits = np.broadcast_to(np.zeros((), dtype), (*labels.shape, classes))  # of which only the shape is needed
    given = RowTargets(Problem(function, logits, -1, name="logits"), labels, "sum", options)
    return part_of_weight(np.ones(labels.shape) if given.counted is None else given.counted, given.exponent)


# Small calls with the default options are made of overhead: what is left of it here are the checks.
UNSMOOTHED = 0.0
MEAN = "mean"
_SMALL: dict[tuple[np.dtype[Any], bool], Any] = {}
_INDEX: np.dtype[Any] = np.dtype(np.int64)


def _small(logits: Any, targets: Any, out: Any, gradient: bool) -> tuple[Any, Any] | None:
    """The mean loss of a small matrix and its gradient, or None: nothing that needs to be converted or refused."""
    if type(logits) is not np.ndarray:
        return None
    kernel = _SMALL.get((logits.dtype, gradient))
    if (
        kernel is None
        or not 0 < logits.size <= SMALL
        or logits.ndim != 2
        or not logits.flags.carray
        or not is_plain(targets, logits.shape[:1], _INDEX)
    ):
        return None
    dtype, count = logits.dtype, len(logits)
    slope = out
    if out is None:
        slope = np.empty_like(logits) if gradient else None
    elif not (
        is_plain(out, logits.shape, dtype)
        and (out is logits or lie_apart(out, logits))
        and lie_apart(out, targets)
    ):
        return None
    rows = np.empty(count, dtype)
    loss = kernel(logits, targets, slope, rows, *inverse_of(count, dtype))
    return None if loss < 0 else (dtype.type(loss / count), slope)


def _cross_entropy(
    function: str,
    logits: Any,
    targets: Any,
    axis: int,
    reduction: str,
    out: Any,
    gradient: bool,
    options: dict[str, Any],
) -> tuple[Any, Any]:
    """Loss and gradient (None if it is not asked for)."""
    if is_lazy(logits, targets, *options.values()):
        lazy: tuple[Any, Any] = lazily("loss")(function, logits, targets, axis, reduction, out, gradient, options)
        return lazy
    problem, rows, slope, divisor = cross_entropy_rows(
        function, logits, targets, axis, reduction, out, gradient, options
    )
    if problem.x.dtype == problem.dtype:
        kernels.jit.remember(_SMALL, (problem.dtype, gradient), kernels.losses.cross_entropy_small)
    return reduced(problem, rows, reduction, divisor), slope


def curvature_rows(
    function: str,
    logits: Any,
    targets: Any,
    tangent: Any,
    axis: int,
    reduction: str,
    out: Any,
    options: dict[str, Any],
    divisor: Divisor | None = None,
) -> Any:
    """cross_entropy_hvp, cross_entropy_hessian_diag or cross_entropy_hessian.

    A `divisor` is given where these rows are only some of those of the mean.
    """
    dense = function == "cross_entropy_hessian"
    problem = Problem(function, logits, axis, name="logits", last=dense)
    operand = None if tangent is None else problem.operand("tangent", tangent)
    factors = RowTargets(problem, targets, reduction, options, divisor).factors(reduction)
    source = problem.block()
    if dense:
        output = problem.output(out, (*problem.row_shape, problem.classes, problem.classes))
        work = source.size * max(1, problem.classes // 4)
        arguments: tuple[Any, ...] = (source, output.block, None, None, factors)
        run(kernels.derivatives.softmax_jacobian, problem.rows, work, problem.room(1), *arguments)
    elif operand is None:
        output = problem.output(out)
        arguments = source, output.block, factors
        run(kernels.derivatives.softmax_variance, problem.rows, source.size, problem.room(1), *arguments)
    else:
        second = problem.convert(operand)
        output = problem.output(out)
        arguments = source, second, output.block, output.keep(second), None, None, factors
        run(kernels.derivatives.softmax_product, problem.rows, 2 * source.size, problem.room(2), *arguments)
    return output.finish()


def _curvature(
    function: str,
    logits: Any,
    targets: Any,
    tangent: Any,
    axis: int,
    reduction: str,
    out: Any,
    options: dict[str, Any],
) -> Any:
    arrays = function, logits, targets, tangent, axis, reduction, out, options
    if is_lazy(logits, targets, tangent, *options.values()):
        return lazily("curvature")(*arrays)
    return curvature_rows(*arrays)


def squared_error_rows(
    function: str,
    logits: Any,
    targets: Any,
    axis: int,
    sample_weight: Any,
    reduction: str,
    out: Any,
    gradient: bool,
    divisor: Divisor | None = None,
) -> tuple[Problem, Any, Any, Divisor]:
    """As `cross_entropy_rows`."""
    problem = Problem(function, logits, axis, name="logits")
    check_reduction(function, reduction)
    array = problem.target_like("targets", targets)
    weights = weight_array(problem, "sample_weight", sample_weight, problem.row_shape)
    row_weights = None if weights is None else problem.per_row(weights, problem.dtype)
    if row_weights is not None and reduction == "mean":
        divisor = weight_divisor(row_weights, 0, problem.rows) if divisor is None else divisor
        row_weights = scaled(row_weights, -divisor.exponent)
    elif divisor is None:
        divisor = count_divisor(problem.rows)
    source = problem.block()
    second = problem.convert(array)
    output = problem.output(out) if gradient else None
    rows = problem.row_output(None)
    target, keep = (None, None) if output is None else (output.block, output.keep(second))
    scale = gradient_scale(divisor, reduction, problem.dtype)
    arguments = source, second, row_weights, target, rows.block, keep, *scale
    run(kernels.losses.squared_error, problem.rows, 2 * source.size, problem.room(2), *arguments)
    slope = None if output is None else output.finish()
    return problem, row_losses(rows, reduction), slope, divisor


def _squared_error(
    function: str,
    logits: Any,
    targets: Any,
    axis: int,
    sample_weight: Any,
    reduction: str,
    out: Any,
    gradient: bool,
) -> tuple[Any, Any]:
    if is_lazy(logits, targets, sample_weight):
        options = {"sample_weight": sample_weight}
        lazy: tuple[Any, Any] = lazily("loss")(function, logits, targets, axis, reduction, out, gradient, options)
        return lazy
    problem, rows, slope, divisor = squared_error_rows(
        function, logits, targets, axis, sample_weight, reduction, out, gradient
    )
    return reduced(problem, rows, reduction, divisor), slope


def cross_entropy(
    logits: Any,
    targets: Any,
    axis: int = LAST,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = UNSMOOTHED,
    reduction: str = MEAN,
) -> Any:
    r"""Cross-entropy of softmax(logits) against class indices or distributions.

    .. math:: L_n = -\sum_j y_{nj} \log p_{nj}, \qquad p_n = \mathrm{softmax}(z_n)

    Parameters
    ----------
    logits : array_like
        z, of any shape with at least one axis. float32 and float64 are kept; float16 is computed in float32 and
        returned as float16; integers and bools become float64.
    targets : array_like
        Class indices of any integer dtype, of the shape of `logits` without `axis`; or a distribution for each
        row, of the shape of `logits` and any real dtype, which need not sum to 1.
    axis : int, default -1
        The axis of the classes.
    class_weight : array_like, optional
        Shape (K,): what each class counts. Weights -y_j log p_j, so that a row with a class index is multiplied
        by the weight of its class.
    sample_weight : array_like, optional
        One number for each row, which multiplies its loss. A row of weight 0 counts for nothing, whatever it
        holds.
    ignore_index : int, optional
        A class index, valid or not, whose rows count for nothing, whatever they hold. For class indices only.
    label_smoothing : float, default 0.0
        From 0 to 1: the share of the uniform distribution that is mixed into every target.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all rows, their sum, or the loss of each row. With class indices and weights, the mean
        divides by the sum of the weights of the rows that count, and is nan where that is 0; with distributions,
        by the number of rows. Weights that have a power of two in common give the same mean, whatever their size.

    Returns
    -------
    scalar or ndarray
        The loss in nats: a scalar, or with ``reduction="none"`` an array with one number for each row.

    Raises
    ------
    ValueError
        If the shapes do not fit, or for an unknown reduction.
    TypeError
        For dtypes that are not real numbers, and class indices that are not integers.
    IndexError
        For a class index outside of 0 .. K - 1: the message names its value and position.
    numpy.exceptions.AxisError
        For an axis that `logits` does not have.

    See Also
    --------
    cross_entropy_grad, cross_entropy_with_grad

    Notes
    -----
    The loss of a row is within 4 ulp, also for a confident row, whose loss is tiny. A target of 0 against a
    logit of -inf counts 0. The logits are read once and nothing of their size is allocated.

    References
    ----------
    C. M. Bishop, Pattern Recognition and Machine Learning, 2006, section 4.3.4.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> logits = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> round(float(fs.cross_entropy(logits, np.array([0, 2]))), 12)
    0.753109126556
    >>> fs.cross_entropy(logits, np.array([0, 2]), reduction="none")
    array([0.40760596, 1.09861229])
    """
    if (
        axis is LAST
        and reduction is MEAN
        and class_weight is None
        and sample_weight is None
        and ignore_index is None
        and label_smoothing is UNSMOOTHED
    ):
        small = _small(logits, targets, None, False)
        if small is not None:
            return small[0]
    options = {
        "class_weight": class_weight,
        "sample_weight": sample_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
    }
    return _cross_entropy("cross_entropy", logits, targets, axis, reduction, None, False, options)[0]


def cross_entropy_grad(
    logits: Any,
    targets: Any,
    axis: int = LAST,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = UNSMOOTHED,
    reduction: str = MEAN,
    out: Any = None,
) -> Any:
    r"""Gradient of `cross_entropy` with respect to the logits.

    .. math:: \frac{\partial L_n}{\partial z_{ni}} = p_{ni} \sum_j y_{nj} - y_{ni}

    which is p - y for one-hot targets; with ``reduction="mean"`` it is divided by the number of rows.

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, label_smoothing
        As for `cross_entropy`.
    reduction : {"mean", "sum", "none"}, default "mean"
        Of the loss whose gradient is wanted; "sum" and "none" have the same one.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `logits` itself.

    Returns
    -------
    ndarray
        The gradient, of the shape of `logits`.

    Raises
    ------
    ValueError, TypeError, IndexError, numpy.exceptions.AxisError
        As `cross_entropy`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    cross_entropy_with_grad : loss and gradient in one pass.

    Notes
    -----
    Within 4 ulp for class indices, also at the target of a confident row: there it is minus the sum of the other
    probabilities, summed by themselves, and not p - 1.

    Rows that are ignored, and those of sample weight 0, have exactly 0. Where the mean divides by 0 because the
    classes of all other rows weigh 0, these are 0/0, nan, as in PyTorch; so are their Hessians.

    References
    ----------
    C. M. Bishop, Pattern Recognition and Machine Learning, 2006, section 4.3.4.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.cross_entropy_grad(np.array([[0.0, -50.0]]), np.array([0]))
    array([[-1.92874985e-22,  1.92874985e-22]])
    """
    if (
        axis is LAST
        and reduction is MEAN
        and class_weight is None
        and sample_weight is None
        and ignore_index is None
        and label_smoothing is UNSMOOTHED
    ):
        small = _small(logits, targets, out, True)
        if small is not None:
            return small[1]
    options = {
        "class_weight": class_weight,
        "sample_weight": sample_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
    }
    return _cross_entropy("cross_entropy_grad", logits, targets, axis, reduction, out, True, options)[1]


def cross_entropy_with_grad(
    logits: Any,
    targets: Any,
    axis: int = LAST,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = UNSMOOTHED,
    reduction: str = MEAN,
    out: Any = None,
) -> tuple[Any, Any]:
    """`cross_entropy` and `cross_entropy_grad` in one pass over the logits.

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, label_smoothing, reduction
        As for `cross_entropy`.
    out : ndarray, optional
        Where to put the gradient: of its shape and dtype. May be `logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        As `cross_entropy`.
    grad : ndarray
        As `cross_entropy_grad`.

    Raises
    ------
    ValueError, TypeError, IndexError, numpy.exceptions.AxisError
        As `cross_entropy_grad`.

    References
    ----------
    C. M. Bishop, Pattern Recognition and Machine Learning, 2006, section 4.3.4.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> loss, grad = fs.cross_entropy_with_grad(np.zeros((1, 4)), np.array([1]))
    >>> float(loss)
    1.3862943611198906
    >>> grad
    array([[ 0.25, -0.75,  0.25,  0.25]])
    """
    if (
        axis is LAST
        and reduction is MEAN
        and class_weight is None
        and sample_weight is None
        and ignore_index is None
        and label_smoothing is UNSMOOTHED
    ):
        small = _small(logits, targets, out, True)
        if small is not None:
            return small
    options = {
        "class_weight": class_weight,
        "sample_weight": sample_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
    }
    return _cross_entropy("cross_entropy_with_grad", logits, targets, axis, reduction, out, True, options)


def cross_entropy_hvp(
    logits: Any,
    targets: Any,
    tangent: Any,
    axis: int = -1,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: Any = None,
) -> Any:
    r"""Hessian-vector product of `cross_entropy` with respect to the logits.

    .. math:: (H_n v_n)_k = \Bigl(\sum_j y_{nj}\Bigr) p_{nk} \Bigl(v_{nk} - \sum_j p_{nj} v_{nj}\Bigr)

    which is the softmax JVP times the sum of the targets; with ``reduction="mean"`` it is divided by the number of
    rows. The Hessian has no terms between rows, and is positive semi-definite.

    Parameters
    ----------
    logits, targets
        As for `cross_entropy`.
    tangent : array_like
        v, of the shape of `logits`. A wider float dtype than that of `logits` widens the result.
    axis, class_weight, sample_weight, ignore_index, label_smoothing
        As for `cross_entropy`.
    reduction : {"mean", "sum", "none"}, default "mean"
        Of the loss whose Hessian is wanted; "sum" and "none" have the same one.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `logits` or `tangent` itself.

    Returns
    -------
    ndarray
        H v, of the shape of `logits`.

    Raises
    ------
    ValueError, TypeError, IndexError, numpy.exceptions.AxisError
        As `cross_entropy`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    cross_entropy_hessian, cross_entropy_hessian_diag, softmax_jvp

    Notes
    -----
    Written as p_k sum_j p_j (v_k - v_j), times the weight of the row, entry k is within 4 eps of the sum of the
    sizes of these terms, which is 4 ulp where they have one sign: also in a confident row.

    References
    ----------
    D. Boehning, Multinomial logistic regression algorithm, Annals of the Institute of Statistical Mathematics
    44(1), 1992, doi:10.1007/BF00048682.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.cross_entropy_hvp(np.zeros((1, 2)), np.array([0]), np.array([[1.0, 0.0]]))
    array([[ 0.25, -0.25]])
    """
    options = {
        "class_weight": class_weight,
        "sample_weight": sample_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
    }
    return _curvature("cross_entropy_hvp", logits, targets, tangent, axis, reduction, out, options)


def cross_entropy_hessian_diag(
    logits: Any,
    targets: Any,
    axis: int = -1,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: Any = None,
) -> Any:
    r"""Diagonal of the Hessian of `cross_entropy` with respect to the logits.

    .. math:: (H_n)_{kk} = \Bigl(\sum_j y_{nj}\Bigr) p_{nk} (1 - p_{nk})

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, label_smoothing
        As for `cross_entropy`.
    reduction : {"mean", "sum", "none"}, default "mean"
        Of the loss whose Hessian is wanted; "sum" and "none" have the same one.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `logits` itself.

    Returns
    -------
    ndarray
        The diagonal, of the shape of `logits`.

    Raises
    ------
    ValueError, TypeError, IndexError, numpy.exceptions.AxisError
        As `cross_entropy`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    cross_entropy_hvp, cross_entropy_hessian

    Notes
    -----
    Within 4 ulp: at a probability close to 1, 1 - p is the sum of the others.

    References
    ----------
    D. Boehning, Multinomial logistic regression algorithm, Annals of the Institute of Statistical Mathematics
    44(1), 1992, doi:10.1007/BF00048682.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.cross_entropy_hessian_diag(np.zeros((1, 2)), np.array([0]))
    array([[0.25, 0.25]])
    """
    options = {
        "class_weight": class_weight,
        "sample_weight": sample_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
    }
    return _curvature("cross_entropy_hessian_diag", logits, targets, None, axis, reduction, out, options)


def cross_entropy_hessian(
    logits: Any,
    targets: Any,
    axis: int = -1,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: Any = None,
) -> Any:
    r"""Hessian of `cross_entropy` with respect to the logits of each row.

    .. math:: H_n = \Bigl(\sum_j y_{nj}\Bigr) \bigl(\mathrm{diag}(p_n) - p_n p_n^\top\bigr)

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, label_smoothing
        As for `cross_entropy`.
    reduction : {"mean", "sum", "none"}, default "mean"
        Of the loss whose Hessian is wanted; "sum" and "none" have the same one.
    out : ndarray, optional
        Where to put the result: of its shape and dtype.

    Returns
    -------
    ndarray
        Shape of `logits` without `axis`, followed by (K, K). Symmetric and positive semi-definite.

    Raises
    ------
    ValueError, TypeError, IndexError, numpy.exceptions.AxisError
        As `cross_entropy`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    cross_entropy_hvp : products with it in O(K).

    Notes
    -----
    Every entry is within 4 eps of itself, where that is a normal number; each matrix is symmetric to the last bit.

    References
    ----------
    D. Boehning, Multinomial logistic regression algorithm, Annals of the Institute of Statistical Mathematics
    44(1), 1992, doi:10.1007/BF00048682.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.cross_entropy_hessian(np.zeros((1, 2)), np.array([0]))
    array([[[ 0.25, -0.25],
            [-0.25,  0.25]]])
    """
    options = {
        "class_weight": class_weight,
        "sample_weight": sample_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
    }
    return _curvature("cross_entropy_hessian", logits, targets, None, axis, reduction, out, options)


def squared_error(
    logits: Any, targets: Any, axis: int = -1, *, sample_weight: Any = None, reduction: str = "mean"
) -> Any:
    r"""Half the squared distance of softmax(logits) from the targets.

    .. math:: L_n = \frac{1}{2} \sum_k (p_{nk} - t_{nk})^2, \qquad p_n = \mathrm{softmax}(z_n)

    Parameters
    ----------
    logits : array_like
        z, of any shape with at least one axis; dtypes as for `cross_entropy`.
    targets : array_like
        t, of the shape of `logits` and any real dtype.
    axis : int, default -1
        The axis of the classes.
    sample_weight : array_like, optional
        One number for each row, which multiplies its loss. A row of weight 0 counts for nothing, whatever it
        holds.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all rows (with weights: divided by the sum of the weights), their sum, or the loss of each.

    Returns
    -------
    scalar or ndarray
        The loss: a scalar, or with ``reduction="none"`` an array with one number for each row.

    Raises
    ------
    ValueError
        If the shapes differ, or for an unknown reduction.
    TypeError
        For dtypes that are not real numbers.
    numpy.exceptions.AxisError
        For an axis that `logits` does not have.

    See Also
    --------
    squared_error_grad, squared_error_with_grad

    Notes
    -----
    The loss of a row is within 4 eps of sum_k \|d_k\| (p_k + \|t_k\|)/2 with d = p - t, which is 4 ulp where p and
    t have not cancelled. Where p is close to 1, d is (1 - t) - (1 - p), so that a confident row keeps its digits.

    References
    ----------
    G. W. Brier, Verification of forecasts expressed in terms of probability, Monthly Weather Review 78(1),
    1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2 (twice this loss is the Brier score).

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> float(fs.squared_error(np.zeros((1, 2)), np.array([[1.0, 0.0]])))
    0.25
    """
    return _squared_error("squared_error", logits, targets, axis, sample_weight, reduction, None, False)[0]


def squared_error_grad(
    logits: Any,
    targets: Any,
    axis: int = -1,
    *,
    sample_weight: Any = None,
    reduction: str = "mean",
    out: Any = None,
) -> Any:
    r"""Gradient of `squared_error` with respect to the logits.

    .. math::
        \frac{\partial L_n}{\partial z_{nk}} = p_{nk} \Bigl(d_{nk} - \sum_j p_{nj} d_{nj}\Bigr),
        \qquad d_n = p_n - t_n

    Parameters
    ----------
    logits, targets, axis, sample_weight
        As for `squared_error`.
    reduction : {"mean", "sum", "none"}, default "mean"
        Of the loss whose gradient is wanted; "sum" and "none" have the same one.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `logits` itself.

    Returns
    -------
    ndarray
        The gradient, of the shape of `logits`.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `squared_error`, and for an unfit `out`; nothing is written to `out` then.

    Notes
    -----
    Written as p_k sum_j p_j (d_k - d_j) with d = p - t, entry k is within 4 eps of the sum of the sizes of these
    terms, with the d as accurate as in `squared_error`: also in a confident row.

    References
    ----------
    J. S. Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990,
    doi:10.1007/978-3-642-76153-9_28.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.squared_error_grad(np.zeros((1, 2)), np.array([[1.0, 0.0]]))
    array([[-0.25,  0.25]])
    """
    return _squared_error("squared_error_grad", logits, targets, axis, sample_weight, reduction, out, True)[1]


def squared_error_with_grad(
    logits: Any,
    targets: Any,
    axis: int = -1,
    *,
    sample_weight: Any = None,
    reduction: str = "mean",
    out: Any = None,
) -> tuple[Any, Any]:
    """`squared_error` and `squared_error_grad` in one pass over the logits.

    Parameters
    ----------
    logits, targets, axis, sample_weight, reduction
        As for `squared_error`.
    out : ndarray, optional
        Where to put the gradient: of its shape and dtype. May be `logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        As `squared_error`.
    grad : ndarray
        As `squared_error_grad`.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `squared_error_grad`.

    References
    ----------
    J. S. Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990,
    doi:10.1007/978-3-642-76153-9_28.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> loss, grad = fs.squared_error_with_grad(np.zeros((1, 2)), np.array([[1.0, 0.0]]))
    >>> float(loss), grad
    (0.25, array([[-0.25,  0.25]]))
    """
    return _squared_error("squared_error_with_grad", logits, targets, axis, sample_weight, reduction, out, True)
