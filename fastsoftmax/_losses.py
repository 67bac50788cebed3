"""cross_entropy and squared_error, with their gradients."""

from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from fastsoftmax import kernels
from fastsoftmax._arrays import Array, Problem, as_pair, named, real_array
from fastsoftmax._parallel import run

_REDUCTIONS = ("mean", "sum", "none")


def _check_reduction(function: str, reduction: Any) -> None:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{named(function, 'reduction')} must be one of {_REDUCTIONS}, got {reduction!r}")


def _all_below(labels: Array, classes: int) -> bool:
    """Whether all labels are from 0 to classes - 1; a negative one is a large one to a reader without signs."""
    unsigned = labels.dtype.str.replace("i", "u")
    return int(labels.view(unsigned).max()) < classes


@lru_cache(maxsize=64)
def _share(rows: int, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """1/rows as a pair."""
    return as_pair(Fraction(1, max(rows, 1)), dtype)


def _check_targets(problem: Problem, targets: Any) -> Array:
    """Class indices or distributions, told apart by their number of dimensions."""
    array = real_array(problem.function, "targets", targets)
    prefix = named(problem.function, "targets")
    if array.shape == problem.shape:
        return array
    if array.shape != problem.row_shape:
        raise ValueError(
            f"{prefix} has shape {array.shape}, expected {problem.row_shape} (class indices) or {problem.shape} "
            f"(distributions) for {problem.name} of shape {problem.shape}"
        )
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{prefix} of shape {array.shape} are class indices and have dtype {array.dtype}, expected integers"
        )
    if array.size and not _all_below(array, problem.classes):
        wrong = (array < 0) | (array >= problem.classes)
        place = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), array.shape))
        where = ", ".join(map(str, place))
        raise IndexError(f"{prefix}[{where}] is {array[place]}, expected a label from 0 to {problem.classes - 1}")
    return array


def _reduce(problem: Problem, rows: Any, reduction: str) -> Any:
    """The loss as the user wants it, from an array with one number for each row."""
    if reduction == "none":
        return rows
    total = np.sum(rows, dtype=np.float64)
    with np.errstate(all="ignore"):
        value = total if reduction == "sum" else np.divide(total, problem.rows)
        return problem.result_dtype.type(value)


def _loss(
    function: str, logits: Any, targets: Any, axis: int, reduction: str, out: Any, gradient: bool
) -> tuple[Any, Any]:
    """Loss and gradient (None if it is not asked for) of any of the functions below."""
    problem = Problem(function, logits, axis, name="logits")
    _check_reduction(function, reduction)
    if function.startswith("squared"):
        array = problem.target_like("targets", targets)
        kernel = kernels.losses.squared_error
    else:
        array = _check_targets(problem, targets)
        soft = array.ndim == len(problem.shape)
        kernel = kernels.losses.soft_cross_entropy if soft else kernels.losses.cross_entropy
    source = problem.block()
    if array.ndim == len(problem.shape):
        second = problem.convert(array)
    else:
        second = problem.per_row(array, np.int64)
    output = problem.output(out) if gradient else None
    rows = problem.row_output(None)
    weight, weight_low = _share(problem.rows if reduction == "mean" else 1, problem.dtype)
    block = None if output is None else output.block
    room = problem.room(2)
    arguments = source, second, block, rows.block, weight, weight_low
    run(kernel, problem.rows, 2 * source.size, room, *arguments)
    slope = None if output is None else output.finish()
    return _reduce(problem, rows.finish(), reduction), slope


def cross_entropy(logits: Any, targets: Any, axis: int = -1, *, reduction: str = "mean") -> Any:
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
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all rows, their sum, or the loss of each row.

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
    return _loss("cross_entropy", logits, targets, axis, reduction, None, gradient=False)[0]


def cross_entropy_grad(
    logits: Any, targets: Any, axis: int = -1, *, reduction: str = "mean", out: Any = None
) -> Any:
    r"""Gradient of `cross_entropy` with respect to the logits.

    .. math:: \frac{\partial L_n}{\partial z_{ni}} = p_{ni} \sum_j y_{nj} - y_{ni}

    which is p - y for one-hot targets; with ``reduction="mean"`` it is divided by the number of rows.

    Parameters
    ----------
    logits, targets, axis
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
    return _loss("cross_entropy_grad", logits, targets, axis, reduction, out, gradient=True)[1]


def cross_entropy_with_grad(
    logits: Any, targets: Any, axis: int = -1, *, reduction: str = "mean", out: Any = None
) -> tuple[Any, Any]:
    """`cross_entropy` and `cross_entropy_grad` in one pass over the logits.

    Parameters
    ----------
    logits, targets, axis, reduction
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
    return _loss("cross_entropy_with_grad", logits, targets, axis, reduction, out, gradient=True)


def squared_error(logits: Any, targets: Any, axis: int = -1, *, reduction: str = "mean") -> Any:
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
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all rows, their sum, or the loss of each row.

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
    return _loss("squared_error", logits, targets, axis, reduction, None, gradient=False)[0]


def squared_error_grad(
    logits: Any, targets: Any, axis: int = -1, *, reduction: str = "mean", out: Any = None
) -> Any:
    r"""Gradient of `squared_error` with respect to the logits.

    .. math::
        \frac{\partial L_n}{\partial z_{nk}} = p_{nk} \Bigl(d_{nk} - \sum_j p_{nj} d_{nj}\Bigr),
        \qquad d_n = p_n - t_n

    Parameters
    ----------
    logits, targets, axis
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
    return _loss("squared_error_grad", logits, targets, axis, reduction, out, gradient=True)[1]


def squared_error_with_grad(
    logits: Any, targets: Any, axis: int = -1, *, reduction: str = "mean", out: Any = None
) -> tuple[Any, Any]:
    """`squared_error` and `squared_error_grad` in one pass over the logits.

    Parameters
    ----------
    logits, targets, axis, reduction
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
    return _loss("squared_error_with_grad", logits, targets, axis, reduction, out, gradient=True)
