"""fit_temperature: the calibration of a classifier by one number."""

from typing import Any

from fastsoftmax.arrays import calibration
from fastsoftmax.arrays.calibration import TemperatureFit


def fit_temperature(
    logits: Any,
    labels: Any,
    axis: int = -1,
    *,
    sample_weight: Any = None,
    ignore_index: int | None = None,
) -> TemperatureFit:
    r"""The temperature that minimises the mean cross-entropy of given logits.

    .. math:: \min_T \; \frac{1}{\sum_n w_n} \sum_n w_n L_n(T), \qquad L_n(T) = -\log p_{n y_n}, \qquad
        p_n = \mathrm{softmax}(z_n / T)

    with the derivatives with respect to :math:`u = \log T`

    .. math:: \frac{\partial L_n}{\partial u} = \frac{z_{n y_n} - \bar z_n}{T}, \qquad
        \frac{\partial^2 L_n}{\partial u^2} = \frac{1}{T^2} \sum_k p_{nk} (z_{nk} - \bar z_n)^2
        - \frac{\partial L_n}{\partial u}, \qquad \bar z_n = \sum_k p_{nk} z_{nk}

    Parameters
    ----------
    logits : array_like
        z, of any shape with at least one axis; dtypes as for `cross_entropy`.
    labels : array_like
        Class indices of any integer dtype, of the shape of `logits` without `axis`.
    axis : int, default -1
        The axis of the classes.
    sample_weight : array_like, optional
        w, finite and not negative, of the shape of `labels`. Rows of weight 0 do not count, whatever they hold.
    ignore_index : int, optional
        Rows with this label, valid or not, do not count.

    Returns
    -------
    TemperatureFit
        A named tuple of numbers: ``temperature``, the mean ``loss`` at it, that at T = 1, ``loss_before``, and
        ``iterations``, how often the logits were read.

    Raises
    ------
    ValueError
        If the shapes do not fit or a weight is negative, infinite or NaN; if no row counts; for NaN and +inf in a
        row that counts, and for a label whose logit is -inf. Also if the loss has no minimum: because every label
        has the greatest logit of its row (the loss decreases as T goes to 0), or because the labels' logits are on
        average no greater than the mean of their rows (it decreases as T goes to infinity).
    TypeError
        For dtypes that are not real numbers, labels that are not integers, and Dask arrays.
    IndexError
        For a label outside of 0 .. K - 1: the message names its value and position.
    numpy.exceptions.AxisError
        For an axis that `logits` does not have.

    See Also
    --------
    cross_entropy, label_statistics, metrics.RunningMetrics

    Notes
    -----
    Newton's method for u begins at T = 1. The sign of the first derivative changes only once, because the loss is
    convex in 1/T: so every pass makes a bracket shorter, and a step that leaves it is replaced by bisection. The
    loss and both derivatives come from one pass over the logits; five to eight are usual. Their sums over the rows
    are exact, so that the result does not depend on the number of threads or the order of the rows.

    It is not available in compiled code (Numba), which would gain nothing.

    If the loss does not depend on T, because there is one class, or all logits of each row are equal, the result
    is T = 1.

    References
    ----------
    C. Guo et al., On calibration of modern neural networks, 2017, arXiv:1706.04599.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> fit = fs.fit_temperature(logits, np.array([0, 0, 1, 1]))
    >>> round(fit.temperature, 6)  # three of four are right: 4/T = log 3
    3.640957
    >>> round(fit.loss, 6), round(fit.loss_before, 6)
    (0.562335, 1.01815)
    """
    return calibration.fit_temperature("fit_temperature", logits, labels, axis, sample_weight, ignore_index)
