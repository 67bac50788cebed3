"""label_statistics: what evaluations ask of each row, in one pass over the logits."""

from typing import TYPE_CHECKING, Any, overload

from fastsoftmax.arrays import statistics
from fastsoftmax.arrays.blocks import UNTEMPERED
from fastsoftmax.arrays.lazy import backend_for
from fastsoftmax.arrays.statistics import LabelStatistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsoftmax._types import Arrays, ArrayT, Numbers, Other


if TYPE_CHECKING:

    @overload
    def label_statistics(
        logits: NDArray[Any] | Numbers | Other,
        labels: Arrays,
        axis: int = -1,
        *,
        temperature: float = 1.0,
        ignore_index: int | None = None,
    ) -> LabelStatistics: ...

    @overload
    def label_statistics(
        logits: ArrayT,
        labels: Arrays,
        axis: int | str = -1,
        *,
        temperature: float = 1.0,
        ignore_index: int | None = None,
    ) -> LabelStatistics: ...


def label_statistics(
    logits: Any,
    labels: Any,
    axis: int | str = -1,
    *,
    temperature: float = UNTEMPERED,
    ignore_index: int | None = None,
) -> LabelStatistics:
    r"""Log-probability and rank of each row's label, greatest class, entropy and log-sum-exp, in one pass.

    .. math:: p_n = \mathrm{softmax}(z_n / T), \qquad \log p_{n y_n}, \qquad \#\{k : z_{nk} > z_{n y_n}\}, \qquad
        \arg\max_k z_{nk}, \qquad -\sum_k p_{nk} \log p_{nk}, \qquad \log \sum_k e^{z_{nk} / T}

    Parameters
    ----------
    logits : array_like
        z, of any shape with at least one axis; dtypes as for `cross_entropy`.
    labels : array_like
        Class indices of any integer dtype, of the shape of `logits` without `axis`.
    axis : int, default -1
        The axis of the classes.
    temperature : float, default 1.0
        T, by which the logits are divided.
    ignore_index : int, optional
        Rows with this label, valid or not, have log-probability 0 and rank -1; their other numbers do not depend
        on the label.

    Returns
    -------
    LabelStatistics
        A named tuple of arrays with one number for each row: ``log_prob``, ``rank`` (int64), ``argmax`` (int64),
        ``entropy`` and ``logsumexp``. The rank is the number of classes whose logit is strictly greater than that
        of the label: 0 for a label that is as great as the greatest, and below k for a hit among the first k.

    Raises
    ------
    ValueError
        If the shapes do not fit, or for a temperature that is not finite and > 0.
    TypeError
        For dtypes that are not real numbers, and labels that are not integers.
    IndexError
        For a label outside of 0 .. K - 1: the message names its value and position.
    numpy.exceptions.AxisError
        For an axis that `logits` does not have.

    See Also
    --------
    cross_entropy, softmax_entropy, logsumexp

    Notes
    -----
    Of equal logits the first counts as the greatest. A row with NaN has the rank K and, as `numpy.argmax`, the
    place of its first NaN; its other numbers are NaN. Without classes the greatest is -1.

    The log-probability is within 4 ulp, the entropy within 6, the log-sum-exp within 2 where it does not cancel.

    A Dask array whose class axis is cut is first brought into chunks of whole rows, so that the results have the
    bits of those in memory.

    References
    ----------
    C. M. Bishop, Pattern Recognition and Machine Learning, 2006, section 4.3.4.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> found = fs.label_statistics(np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), np.array([1, 2]))
    >>> found.rank, found.argmax
    (array([1, 0]), array([0, 0]))
    >>> found.log_prob
    array([-1.40760596, -1.09861229])
    """
    if backend := backend_for(logits, labels):
        options = {"temperature": temperature, "ignore_index": ignore_index}
        found: LabelStatistics = backend("label_statistics", logits, labels, axis=axis, out=None, **options)
        return found
    return statistics.label_statistics("label_statistics", logits, labels, axis, temperature, ignore_index)
