"""binary_cross_entropy and binary_focal_loss, with their gradients and second derivatives."""

from typing import Any

from fastsoftmax._vectors import CURVATURE, GRADIENT, LOSS
from fastsoftmax.arrays.binary import BinaryOptions, binary_loss
from fastsoftmax.arrays.options import MEAN, UNSMOOTHED


def binary_cross_entropy(
    logits: Any,
    targets: Any,
    *,
    pos_weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = UNSMOOTHED,
    reduction: str = MEAN,
) -> Any:
    r"""Cross-entropy of expit(logits) against targets from 0 to 1, one for each logit.

    .. math:: L = -w t \log p - (1 - t) \log(1 - p), \qquad p = \frac{1}{1 + e^{-z}}

    Parameters
    ----------
    logits : array_like
        z, of any shape, 0-d included. float32 and float64 are kept; float16 is computed in float32 and returned as
        float16; integers and bools become float64.
    targets : array_like
        t, of the shape of `logits` and any real dtype or bool: numbers from 0 to 1.
    pos_weight : array_like, optional
        w: a factor of the first term, for example the ratio of negative to positive examples. It broadcasts to
        `logits`: a number, or with shape (K,) one number for each column.
    sample_weight : array_like, optional
        A factor for each loss; it broadcasts to `logits`. An entry of weight 0 has loss 0, whatever its logit and
        its target.
    label_smoothing : float, default 0.0
        s, from 0 to 1: t is replaced by (1 - s) t + s/2.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all entries, their sum, or the loss of each. With `sample_weight`, the mean is divided by the
        sum of the weights (nan if that is 0); `pos_weight` does not change the divisor.

    Returns
    -------
    scalar or ndarray
        The loss in nats: a scalar, or with ``reduction="none"`` an array of the shape of `logits`.

    Raises
    ------
    ValueError
        If the shapes do not fit, for a target that is not from 0 to 1 (the message names its place), unless its
        weight is 0, and for an unknown reduction.
    TypeError
        For dtypes that are not real numbers.

    See Also
    --------
    binary_cross_entropy_grad, binary_cross_entropy_with_grad, binary_cross_entropy_hessian_diag,
    binary_focal_loss, softplus

    Notes
    -----
    For t = 0 or 1 the loss is within 3 ulp, also for a logit of 100, where -log(expit(100)) is 0. The arrays are
    read once. What has to be converted (strides, other dtypes, weights that broadcast) is converted in parts.

    PyTorch's ``binary_cross_entropy_with_logits`` is the same, but its mean is divided by the number of entries.
    scikit-learn's ``log_loss`` takes probabilities, and the targets first.

    References
    ----------
    C. M. Bishop, Pattern Recognition and Machine Learning, 2006, section 4.3.2.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.binary_cross_entropy(np.array([0.0, -100.0, 100.0]), np.array([1, 0, 0]), reduction="none")
    array([6.93147181e-01, 3.72007598e-44, 1.00000000e+02])
    """
    options = BinaryOptions(pos_weight, sample_weight, label_smoothing, reduction=reduction)
    return binary_loss("binary_cross_entropy", LOSS, logits, targets, options, None)[0]


def binary_cross_entropy_grad(
    logits: Any,
    targets: Any,
    *,
    pos_weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = UNSMOOTHED,
    reduction: str = MEAN,
    out: Any = None,
) -> Any:
    r"""Gradient of `binary_cross_entropy` with respect to the logits.

    .. math:: \frac{\partial L}{\partial z} = (1 - t) p - w t (1 - p)

    With ``reduction="mean"`` it is divided by the divisor of the mean.

    Parameters
    ----------
    logits, targets, pos_weight, sample_weight, label_smoothing
        As for `binary_cross_entropy`.
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
    ValueError, TypeError
        As `binary_cross_entropy`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    binary_cross_entropy_with_grad : loss and gradient in one pass.

    Notes
    -----
    The gradient is exactly 0 for entries of weight 0. With `out`, the targets are read twice, because they are
    checked first.

    References
    ----------
    C. M. Bishop, Pattern Recognition and Machine Learning, 2006, section 4.3.2.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.binary_cross_entropy_grad(np.array([[0.0, 40.0]]), np.array([[1, 1]]), reduction="sum")
    array([[-5.00000000e-01, -4.24835426e-18]])
    """
    options = BinaryOptions(pos_weight, sample_weight, label_smoothing, reduction=reduction)
    return binary_loss("binary_cross_entropy_grad", GRADIENT, logits, targets, options, out)[1]


def binary_cross_entropy_with_grad(
    logits: Any,
    targets: Any,
    *,
    pos_weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = UNSMOOTHED,
    reduction: str = MEAN,
    out: Any = None,
) -> tuple[Any, Any]:
    """`binary_cross_entropy` and `binary_cross_entropy_grad` in one pass over the logits.

    Parameters
    ----------
    logits, targets, pos_weight, sample_weight, label_smoothing, reduction
        As for `binary_cross_entropy`.
    out : ndarray, optional
        Where to put the gradient: of its shape and dtype. May be `logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        As `binary_cross_entropy`.
    grad : ndarray
        As `binary_cross_entropy_grad`.

    Raises
    ------
    ValueError, TypeError
        As `binary_cross_entropy_grad`.

    References
    ----------
    C. M. Bishop, Pattern Recognition and Machine Learning, 2006, section 4.3.2.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> loss, grad = fs.binary_cross_entropy_with_grad(np.zeros(2), np.array([0, 1]))
    >>> grad
    array([ 0.25, -0.25])
    """
    options = BinaryOptions(pos_weight, sample_weight, label_smoothing, reduction=reduction)
    both: tuple[Any, Any] = binary_loss("binary_cross_entropy_with_grad", GRADIENT, logits, targets, options, out)
    return both


def binary_cross_entropy_hessian_diag(
    logits: Any,
    targets: Any,
    *,
    pos_weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = UNSMOOTHED,
    reduction: str = MEAN,
    out: Any = None,
) -> Any:
    r"""Second derivative of `binary_cross_entropy` for each logit, the diagonal of its Hessian.

    .. math:: \frac{\partial^2 L}{\partial z^2} = (w t + 1 - t) \, p (1 - p)

    The Hessian has no other entries.

    Parameters
    ----------
    logits, targets, pos_weight, sample_weight, label_smoothing
        As for `binary_cross_entropy`.
    reduction : {"mean", "sum", "none"}, default "mean"
        The reduction of the loss; "sum" and "none" have the same second derivative.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `logits` itself.

    Returns
    -------
    ndarray
        The second derivatives, of the shape of `logits`.

    Raises
    ------
    ValueError, TypeError
        As `binary_cross_entropy`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    binary_cross_entropy_grad

    References
    ----------
    C. M. Bishop, Pattern Recognition and Machine Learning, 2006, section 4.3.2.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.binary_cross_entropy_hessian_diag(np.zeros(2), np.array([0, 1]), reduction="sum")
    array([0.25, 0.25])
    """
    options = BinaryOptions(pos_weight, sample_weight, label_smoothing, reduction=reduction)
    return binary_loss("binary_cross_entropy_hessian_diag", CURVATURE, logits, targets, options, out)[1]


def binary_focal_loss(
    logits: Any,
    targets: Any,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    sample_weight: Any = None,
    reduction: str = MEAN,
) -> Any:
    r"""Focal loss of expit(logits): the binary cross-entropy, with less weight for what is predicted well.

    .. math:: L = \alpha_t (1 - p_t)^\gamma \bigl(-t \log p - (1 - t) \log(1 - p)\bigr), \qquad
        p = \frac{1}{1 + e^{-z}}, \quad p_t = t p + (1 - t) (1 - p), \quad
        \alpha_t = \alpha t + (1 - \alpha) (1 - t)

    Parameters
    ----------
    logits : array_like
        z, of any shape, 0-d included. float32 and float64 are kept; float16 is computed in float32 and returned as
        float16; integers and bools become float64.
    targets : array_like
        t, of the shape of `logits` and any real dtype or bool: numbers from 0 to 1.
    gamma : float, default 2.0
        At least 0. With 0 and without `alpha`, the result is that of `binary_cross_entropy`, to the last bit.
    alpha : float, optional
        From 0 to 1: the weight of t = 1; that of t = 0 is 1 - alpha. None: both weights are 1.
    sample_weight : array_like, optional
        A factor for each loss; it broadcasts to `logits`. An entry of weight 0 has loss 0, whatever its logit and
        its target.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all entries, their sum, or the loss of each. With `sample_weight`, the mean is divided by the
        sum of the weights (nan if that is 0); `alpha` does not change the divisor.

    Returns
    -------
    scalar or ndarray
        The loss: a scalar, or with ``reduction="none"`` an array of the shape of `logits`.

    Raises
    ------
    ValueError
        If the shapes do not fit, for a target that is not from 0 to 1 (the message names its place), unless its
        weight is 0, for a `gamma` or an `alpha` that is out of range, and for an unknown reduction.
    TypeError
        For dtypes that are not real numbers.

    See Also
    --------
    binary_focal_loss_grad, binary_focal_loss_with_grad, binary_focal_loss_hessian_diag, focal_loss

    Notes
    -----
    For targets between 0 and 1 this is the formula of torchvision's ``sigmoid_focal_loss``, whose alpha of -1 is
    None here. The error is within 4 + gamma ulp for targets 0 and 1, and within 4 + 1.5 gamma ulp for others, also
    where p_t is close to 1.

    References
    ----------
    T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, Focal loss for dense object detection, 2017,
    arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.binary_focal_loss(np.array([0.0, 2.0, 20.0]), np.array([1, 1, 1]), alpha=0.25, reduction="none")
    array([4.33216988e-02, 4.50890709e-04, 2.18912768e-27])
    """
    options = BinaryOptions(sample_weight=sample_weight, gamma=gamma, alpha=alpha, reduction=reduction)
    return binary_loss("binary_focal_loss", LOSS, logits, targets, options, None)[0]


def binary_focal_loss_grad(
    logits: Any,
    targets: Any,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    sample_weight: Any = None,
    reduction: str = MEAN,
    out: Any = None,
) -> Any:
    r"""Gradient of `binary_focal_loss` with respect to the logits.

    .. math:: \frac{\partial L}{\partial z} = \alpha_t (1 - p_t)^\gamma \Bigl(p - t
        + \gamma (1 - 2 t) \frac{p (1 - p)}{1 - p_t} \mathrm{BCE}\Bigr)

    with the binary cross-entropy BCE. With ``reduction="mean"`` it is divided by the divisor of the mean.

    Parameters
    ----------
    logits, targets, gamma, alpha, sample_weight
        As for `binary_focal_loss`.
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
    ValueError, TypeError
        As `binary_focal_loss`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    binary_focal_loss_with_grad : loss and gradient in one pass.

    Notes
    -----
    The gradient is exactly 0 for entries of weight 0. It is finite for every gamma, also where p_t is 1.

    References
    ----------
    T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, Focal loss for dense object detection, 2017,
    arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.binary_focal_loss_grad(np.zeros(2), np.array([0, 1]), reduction="sum").round(6)
    array([ 0.298287, -0.298287])
    """
    options = BinaryOptions(sample_weight=sample_weight, gamma=gamma, alpha=alpha, reduction=reduction)
    return binary_loss("binary_focal_loss_grad", GRADIENT, logits, targets, options, out)[1]


def binary_focal_loss_with_grad(
    logits: Any,
    targets: Any,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    sample_weight: Any = None,
    reduction: str = MEAN,
    out: Any = None,
) -> tuple[Any, Any]:
    """`binary_focal_loss` and `binary_focal_loss_grad` in one pass over the logits.

    Parameters
    ----------
    logits, targets, gamma, alpha, sample_weight, reduction
        As for `binary_focal_loss`.
    out : ndarray, optional
        Where to put the gradient: of its shape and dtype. May be `logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        As `binary_focal_loss`.
    grad : ndarray
        As `binary_focal_loss_grad`.

    Raises
    ------
    ValueError, TypeError
        As `binary_focal_loss_grad`.

    References
    ----------
    T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, Focal loss for dense object detection, 2017,
    arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> loss, grad = fs.binary_focal_loss_with_grad(np.zeros(2), np.array([0, 1]))
    >>> round(float(loss), 6)
    0.173287
    """
    options = BinaryOptions(sample_weight=sample_weight, gamma=gamma, alpha=alpha, reduction=reduction)
    both: tuple[Any, Any] = binary_loss("binary_focal_loss_with_grad", GRADIENT, logits, targets, options, out)
    return both


def binary_focal_loss_hessian_diag(
    logits: Any,
    targets: Any,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    sample_weight: Any = None,
    reduction: str = MEAN,
    out: Any = None,
) -> Any:
    r"""Second derivative of `binary_focal_loss` for each logit, the diagonal of its Hessian.

    The Hessian has no other entries. For gamma > 0 the loss is not convex, so that entries may be negative.

    Parameters
    ----------
    logits, targets, gamma, alpha, sample_weight
        As for `binary_focal_loss`.
    reduction : {"mean", "sum", "none"}, default "mean"
        The reduction of the loss; "sum" and "none" have the same second derivative.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `logits` itself.

    Returns
    -------
    ndarray
        The second derivatives, of the shape of `logits`.

    Raises
    ------
    ValueError, TypeError
        As `binary_focal_loss`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    binary_focal_loss_grad

    References
    ----------
    T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, Focal loss for dense object detection, 2017,
    arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.binary_focal_loss_hessian_diag(np.zeros(2), np.array([0, 1]), reduction="sum").round(6)
    array([0.399143, 0.399143])
    """
    options = BinaryOptions(sample_weight=sample_weight, gamma=gamma, alpha=alpha, reduction=reduction)
    return binary_loss("binary_focal_loss_hessian_diag", CURVATURE, logits, targets, options, out)[1]
