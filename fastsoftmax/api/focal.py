"""focal_loss, with its gradient and the diagonal of its Hessian."""

from typing import Any

from fastsoftmax.arrays.blocks import LAST
from fastsoftmax.arrays.losses import curvature, focal
from fastsoftmax.arrays.options import MEAN, LossOptions


def focal_loss(
    logits: Any,
    labels: Any,
    axis: int = LAST,
    *,
    gamma: float = 2.0,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    reduction: str = MEAN,
) -> Any:
    r"""Focal loss of softmax(logits): a cross-entropy with less weight for rows that are predicted well.

    .. math:: L_n = -(1 - p_n)^\gamma \log p_n, \qquad p_n = \mathrm{softmax}(z_n)_{t_n}

    with the label t of each row.

    Parameters
    ----------
    logits : array_like
        z, of any shape with at least one axis. float32 and float64 are kept; float16 is computed in float32 and
        returned as float16; integers and bools become float64.
    labels : array_like
        Class indices of any integer dtype, of the shape of `logits` without `axis`.
    axis : int, default -1
        The axis of the classes.
    gamma : float, default 2.0
        At least 0. With 0, the result is that of `cross_entropy`, to the last bit.
    class_weight : array_like, optional
        Shape (K,): a factor for the rows of each class, often called alpha.
    sample_weight : array_like, optional
        One number for each row, which multiplies its loss. A row of weight 0 has loss 0, whatever its logits.
    ignore_index : int, optional
        Rows with this label, valid or not, have no influence, whatever their logits.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all rows, their sum, or the loss of each row. With weights, the mean is divided by the sum of
        the weights of the rows that count, as in `cross_entropy`: not by the number of rows, and not by the sum of
        ``(1 - p)**gamma``.

    Returns
    -------
    scalar or ndarray
        The loss: a scalar, or with ``reduction="none"`` an array with one number for each row.

    Raises
    ------
    ValueError
        If the shapes do not fit, for a negative or infinite `gamma`, or for an unknown reduction.
    TypeError
        For dtypes that are not real numbers, and labels that are not integers.
    IndexError
        For a label outside of 0 .. K - 1: the message names its value and position.
    numpy.exceptions.AxisError
        For an axis that `logits` does not have.

    See Also
    --------
    focal_loss_grad, focal_loss_with_grad, focal_loss_hessian_diag, binary_focal_loss, cross_entropy

    Notes
    -----
    1 - p is the sum of the other probabilities where p is close to 1, so that the loss of a confident row keeps
    its digits. The error is within 4 + gamma ulp.

    A Dask array whose class axis is cut is first brought into chunks of whole rows, so that the results have the
    bits of those in memory.

    References
    ----------
    T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, Focal loss for dense object detection, 2017,
    arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> logits = np.log([[0.9, 0.1], [0.5, 0.5]])
    >>> fs.focal_loss(logits, np.array([0, 0]), reduction="none").round(6)
    array([0.001054, 0.173287])
    >>> fs.cross_entropy(logits, np.array([0, 0]), reduction="none").round(6)
    array([0.105361, 0.693147])
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, reduction=reduction, gamma=gamma)
    return focal("focal_loss", logits, labels, axis, options)


def focal_loss_grad(
    logits: Any,
    labels: Any,
    axis: int = LAST,
    *,
    gamma: float = 2.0,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    reduction: str = MEAN,
    out: Any = None,
) -> Any:
    r"""Gradient of `focal_loss` with respect to the logits.

    .. math:: \frac{\partial L_n}{\partial z_{nk}} = F_n (p_{nk} - [k = t_n]), \qquad
        F_n = (1 - p_n)^\gamma - \gamma (1 - p_n)^{\gamma - 1} p_n \log p_n

    Parameters
    ----------
    logits, labels, axis, gamma, class_weight, sample_weight, ignore_index
        As for `focal_loss`.
    reduction : {"mean", "sum", "none"}, default "mean"
        The reduction of the loss; "sum" and "none" have the same gradient.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `logits` itself.

    Returns
    -------
    ndarray
        The gradient, of the shape of `logits`.

    Raises
    ------
    ValueError, TypeError, IndexError, numpy.exceptions.AxisError
        As `focal_loss`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    focal_loss_with_grad : loss and gradient in one pass.

    Notes
    -----
    The gradient is finite for every gamma, also where p is 1: it has no power of 1 - p below gamma. It is exactly
    0 in rows that are ignored or have sample weight 0.

    References
    ----------
    T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, Focal loss for dense object detection, 2017,
    arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.focal_loss_grad(np.zeros((1, 2)), np.array([0])).round(6)
    array([[-0.298287,  0.298287]])
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, reduction=reduction, gamma=gamma)
    return focal("focal_loss_grad", logits, labels, axis, options, out)


def focal_loss_with_grad(
    logits: Any,
    labels: Any,
    axis: int = LAST,
    *,
    gamma: float = 2.0,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    reduction: str = MEAN,
    out: Any = None,
) -> tuple[Any, Any]:
    """`focal_loss` and `focal_loss_grad` in one pass over the logits.

    Parameters
    ----------
    logits, labels, axis, gamma, class_weight, sample_weight, ignore_index, reduction
        As for `focal_loss`.
    out : ndarray, optional
        Where to put the gradient: of its shape and dtype. May be `logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        As `focal_loss`.
    grad : ndarray
        As `focal_loss_grad`.

    Raises
    ------
    ValueError, TypeError, IndexError, numpy.exceptions.AxisError
        As `focal_loss_grad`.

    References
    ----------
    T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, Focal loss for dense object detection, 2017,
    arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> loss, grad = fs.focal_loss_with_grad(np.zeros((1, 2)), np.array([0]))
    >>> round(float(loss), 6)
    0.173287
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, reduction=reduction, gamma=gamma)
    both: tuple[Any, Any] = focal("focal_loss_with_grad", logits, labels, axis, options, out)
    return both


def focal_loss_hessian_diag(
    logits: Any,
    labels: Any,
    axis: int = LAST,
    *,
    gamma: float = 2.0,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    reduction: str = MEAN,
    out: Any = None,
) -> Any:
    r"""Diagonal of the Hessian of `focal_loss` with respect to the logits.

    .. math:: (H_n)_{kk} = F_n p_{nk} (1 - p_{nk}) - F'_n (p_{nk} - [k = t_n])^2

    with the F of `focal_loss_grad` and its derivative F' with respect to log p.

    Parameters
    ----------
    logits, labels, axis, gamma, class_weight, sample_weight, ignore_index
        As for `focal_loss`.
    reduction : {"mean", "sum", "none"}, default "mean"
        The reduction of the loss; "sum" and "none" have the same Hessian.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `logits` itself.

    Returns
    -------
    ndarray
        The diagonal, of the shape of `logits`. For gamma > 0 the loss is not convex: entries may be negative.

    Raises
    ------
    ValueError, TypeError, IndexError, numpy.exceptions.AxisError
        As `focal_loss`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    focal_loss_grad, cross_entropy_hessian_diag

    Notes
    -----
    It is finite for every gamma, also where p is 1.

    References
    ----------
    T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, Focal loss for dense object detection, 2017,
    arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.focal_loss_hessian_diag(np.zeros((1, 2)), np.array([0])).round(6)
    array([[0.399143, 0.399143]])
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, reduction=reduction, gamma=gamma)
    return curvature("focal_loss_hessian_diag", logits, labels, None, axis, options, out)
