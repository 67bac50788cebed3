r"""Metrics and log-sum-exp of data that comes in pieces: batches of an evaluation, files, workers, vocabularies.

`RunningMetrics` is told the logits and labels of one block of rows after the other, and returns the metrics of all
of them. `RunningLogSumExp` is told one block of classes after the other. Neither keeps the logits. Both can be
pickled, and merged with others of their kind, which saw other blocks.

The metrics are the same to the last bit however the rows are cut into blocks, in whatever order the blocks come,
and however the parts are merged. The sums over rows have no rounding errors, so that each metric is rounded only
once, from the numbers of the rows.
"""

import math
import operator
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax._vectors import COUNT, HITS, METRICS, ONES, SUM_WORDS, VALUES, WEIGHT
from fastsoftmax.arrays import halves, long_rows
from fastsoftmax.arrays.blocks import Array, Problem
from fastsoftmax.arrays.lazy import check_in_memory, dask_for
from fastsoftmax.arrays.metrics import (
    LOWEST_BIT,
    Rooms,
    Total,
    exact_sums,
    joined,
    labelled_rows,
    mean,
    ratio,
    total,
)

__all__ = ["Metrics", "ReliabilityBins", "RunningLogSumExp", "RunningMetrics"]

FIELDS = METRICS + 3
"""The values of a row for which the kernel needs memory."""
PART_BYTES = 1 << 20
"""Blocks of classes are summarized in parts of about this size."""


class ReliabilityBins(NamedTuple):
    """The bins of a reliability diagram: arrays with one number for each bin, but for the edges.

    Parameters
    ----------
    edges : numpy.ndarray
        The ends of the bins, from 0 to 1: one more than there are bins. Bin k has the rows whose confidence, the
        probability of their greatest class, is above ``edges[k]`` and at most ``edges[k + 1]``.
    weight : numpy.ndarray
        The sum of the weights of the rows; without weights, the number of rows.
    confidence : numpy.ndarray
        The mean confidence; NaN if the bin is empty.
    accuracy : numpy.ndarray
        The share of the rows whose greatest class is the label; NaN if the bin is empty.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.metrics import RunningMetrics
    >>> metrics = RunningMetrics(bins=2).update(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))
    >>> metrics.result().bins.accuracy
    array([nan, 0.5])
    """

    edges: Array
    weight: Array
    confidence: Array
    accuracy: Array


class Metrics(NamedTuple):
    """The metrics of all rows so far, as `RunningMetrics.result` returns them.

    Parameters
    ----------
    count : int
        The number of rows that count.
    loss : float
        The mean cross-entropy, -log p of the label.
    perplexity : float
        exp(loss).
    accuracy : float
        The share of the rows whose greatest class (of equal ones, the first) is the label.
    top_k_accuracy : dict
        For each k, the share of the rows with fewer than k classes whose logit is greater than that of the label.
    brier_score : float
        The mean of the squared distance of the probabilities from the one-hot label, from 0 to 2.
    calibration_error : float
        The expected calibration error: the mean of the difference of accuracy and mean confidence of the bins,
        without its sign, weighted by their rows.
    entropy : float
        The mean entropy of the probabilities.
    bins : ReliabilityBins
        The bins of a reliability diagram.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.metrics import RunningMetrics
    >>> RunningMetrics(top_k=2).update(np.zeros((4, 4)), np.arange(4)).result().brier_score
    0.75
    """

    count: int  # type: ignore[assignment]  # a method of tuples
    loss: float
    perplexity: float
    accuracy: float
    top_k_accuracy: dict[int, float]
    brier_score: float
    calibration_error: float
    entropy: float
    bins: ReliabilityBins


def _whole(name: str, value: Any) -> int:
    """`value` as an integer of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"RunningMetrics: {name} must be an integer, got {value!r}")
    number = operator.index(value)
    if not 1 <= number < 2**31:
        raise ValueError(f"RunningMetrics: {name} must be from 1 to 2**31 - 1, got {number}")
    return number


class RunningMetrics:
    """Loss, accuracies and calibration of logits that come in blocks of rows.

    Parameters
    ----------
    top_k : int or sequence of int, default (1, 5)
        For which k the top-k accuracy is computed.
    bins : int, default 15
        How many bins of equal width the reliability diagram and the calibration error have.

    Raises
    ------
    TypeError
        If `top_k` or `bins` are not integers.
    ValueError
        If one of them is less than 1, or a k is there twice.

    See Also
    --------
    fastsoftmax.label_statistics : the numbers of each row.
    fastsoftmax.fit_temperature : calibration.

    Notes
    -----
    The numbers of a row (loss, entropy, Brier score, confidence) have the dtype of its logits, and are within some
    ulp. Their sums are exact. So the result depends on nothing but the rows: not on blocks, order, threads and
    memory layout, nor on how parts were merged.

    A row with NaN makes loss, Brier score, entropy and calibration error NaN, and is no hit. A label with the
    logit -inf makes the loss inf. Products of weights and losses beyond the range of float64 count as inf.

    An object may be used by one thread at a time. Threads and processes get one each, which are merged at the end.

    References
    ----------
    M. P. Naeini, G. F. Cooper, M. Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning,
    2015, doi:10.1609/aaai.v29i1.9602 (expected calibration error).
    G. W. Brier, Verification of forecasts expressed in terms of probability, 1950,
    doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.metrics import RunningMetrics
    >>> rng = np.random.default_rng(0)
    >>> metrics = RunningMetrics()
    >>> for _ in range(3):
    ...     _ = metrics.update(rng.normal(size=(100, 10)), rng.integers(0, 10, 100))
    >>> found = metrics.result()
    >>> found.count, round(found.accuracy, 3), round(found.loss, 3)
    (300, 0.087, 2.729)
    """

    def __init__(self, *, top_k: Any = (1, 5), bins: int = 15) -> None:
        ks = [top_k] if np.ndim(top_k) == 0 else list(top_k)
        self.top_k = tuple(_whole("top_k", k) for k in ks)
        if len(set(self.top_k)) != len(self.top_k):
            raise ValueError(f"RunningMetrics: top_k {self.top_k} has a number twice")
        self._limits = np.array(self.top_k, np.int64)
        self.bins = _whole("bins", bins)
        self._put_sums(np.zeros((self._slot_of_bins + 3 * self.bins, SUM_WORDS), np.int64))

    def _put_sums(self, sums: Array) -> None:
        """Keep these sums where the kernel adds to them."""
        self._rooms = Rooms(sums, self._spare, FIELDS)
        self._sums = self._rooms.table

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles keep: sums of their own."""
        return {**self.__dict__, "_rooms": None, "_sums": self._sums.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take that."""
        self.__dict__.update(state)
        self._put_sums(self._sums)

    def __repr__(self) -> str:
        """The settings, and how many rows there were."""
        rows = int(self._sums[COUNT, ONES])
        return f"<RunningMetrics(top_k={self.top_k}, bins={self.bins}) of {rows} rows>"

    @property
    def _slot_of_bins(self) -> int:
        """The first exact sum of the bins."""
        return HITS + 1 + len(self.top_k)

    @property
    def _spare(self) -> int:
        """The words of the table of `kernels.metrics.add_bins`."""
        return 2 * (2 * self.bins + 1)

    def update(
        self, logits: Any, labels: Any, axis: int = -1, sample_weight: Any = None, ignore_index: int | None = None
    ) -> "RunningMetrics":
        """Add a block of rows.

        Parameters
        ----------
        logits : array_like
            Of any shape with at least one axis; dtypes as for `fastsoftmax.cross_entropy`.
        labels : array_like
            Class indices of any integer dtype, of the shape of `logits` without `axis`.
        axis : int, default -1
            The axis of the classes.
        sample_weight : array_like, optional
            The weights of the rows, finite and not negative, of the shape of `labels`. Rows of weight 0 do not
            count, whatever they hold.
        ignore_index : int, optional
            Rows with this label, valid or not, do not count.

        Returns
        -------
        RunningMetrics
            The same object.

        Raises
        ------
        ValueError
            If the shapes do not fit, or a weight is negative, infinite or NaN.
        TypeError
            For dtypes that are not real numbers, and labels that are not integers.
        IndexError
            For a label outside of 0 .. K - 1: the message names its value and position.

        Notes
        -----
        If there is an error, or Ctrl-C, nothing has been added.

        Dask arrays are computed at once, by Dask's scheduler: each chunk of rows on a worker, with the same bits.
        If the axis of the classes is cut, the classes of a row are brought together first.
        """
        if lazy := dask_for(logits, labels, sample_weight):
            arguments = logits, labels, sample_weight, ignore_index
            self._sums[:] = joined(self._sums, lazy("RunningMetrics.update", self, *arguments, axis=axis))
            return self
        rows = labelled_rows("RunningMetrics.update", logits, labels, axis, sample_weight, ignore_index)
        before = self._limits, self.bins
        if not self._rooms.add("metrics.update", rows, before):
            self._sums[:] = exact_sums("metrics.update", rows, self._sums, self._spare, FIELDS, before)
        return self

    def merge(self, other: "RunningMetrics") -> "RunningMetrics":
        """Add all rows of another object, which stays as it is.

        Parameters
        ----------
        other : RunningMetrics
            With the same `top_k` and `bins`.

        Returns
        -------
        RunningMetrics
            The same object.

        Raises
        ------
        TypeError
            If `other` is something else.
        ValueError
            If its `top_k` or `bins` differ.
        """
        if not isinstance(other, RunningMetrics):
            raise TypeError(f"RunningMetrics.merge: expected RunningMetrics, got {type(other).__name__}")
        for name in ("top_k", "bins"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(f"RunningMetrics.merge: {name} is {theirs}, expected {ours}")
        self._sums[:] = joined(self._sums, other._sums)
        return self

    def result(self) -> Metrics:
        """The metrics of all rows so far; NaN if there are none.

        Returns
        -------
        Metrics
            A named tuple of numbers, with the bins of a reliability diagram.
        """
        sums = self._sums
        loss, entropy, brier = (mean(sums, VALUES + k) for k in range(METRICS))
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(loss))
        hits = {k: mean(sums, HITS + 1 + j) for j, k in enumerate(self.top_k)}
        weight = total(sums[WEIGHT])
        parts = [
            [total(words) for words in three] for three in sums[self._slot_of_bins :].reshape(-1, 3, SUM_WORDS)
        ]
        wrong = Total(sum(abs(b.number - c.number) for _, b, c in parts), sum(b.special for _, b, _ in parts))
        one = Total(1 << LOWEST_BIT, 0.0)
        bins = ReliabilityBins(
            np.arange(self.bins + 1) / self.bins,
            np.array([ratio(a, one) for a, _, _ in parts]),
            np.array([ratio(b, a) for a, b, _ in parts]),
            np.array([ratio(c, a) for a, _, c in parts]),
        )
        return Metrics(
            int(sums[COUNT, ONES]),
            loss,
            perplexity,
            mean(sums, HITS),
            hits,
            brier,
            ratio(wrong, weight),
            entropy,
            bins,
        )


class RunningLogSumExp:
    r"""The log-sum-exp of rows whose classes come in blocks.

    .. math:: \log \sum_k e^{x_k}

    Parameters
    ----------
    shape : int or tuple of int
        The shape of the rows: that of the blocks without the axis of the classes.
    dtype : data-type
        float16, float32 or float64: the dtype of the result.

    Raises
    ------
    TypeError
        For other dtypes, and shapes that are not integers.
    ValueError
        For a negative size.

    See Also
    --------
    fastsoftmax.logsumexp : of classes that are all there.

    Notes
    -----
    Each row is kept as eight numbers of the dtype (float32 for float16): its greatest logit, and the sum of the
    other terms in twice the precision. So the result is as accurate as that of `fastsoftmax.logsumexp`, within 2
    ulp where it does not cancel, however many blocks there are. A row with NaN is NaN, one with +inf is inf, and
    one without classes, or with only -inf, is -inf.

    References
    ----------
    M. Milakov, N. Gimelshein, Online normalizer calculation for softmax, 2018, arXiv:1805.02867.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.metrics import RunningLogSumExp
    >>> x = np.arange(12.0).reshape(2, 6)
    >>> running = RunningLogSumExp(2, np.float64)
    >>> for block in (x[:, :4], x[:, 4:]):
    ...     _ = running.update(block)
    >>> running.value()
    array([ 5.45619332, 11.45619332])
    """

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("=")
        if self.dtype.char not in "efd":
            raise TypeError(f"RunningLogSumExp: dtype is {self.dtype}, expected float16, float32 or float64")
        try:
            self.shape = tuple(operator.index(n) for n in ([shape] if np.ndim(shape) == 0 else shape))
        except TypeError:
            raise TypeError(
                f"RunningLogSumExp: shape must be an integer or a tuple of them, got {shape!r}"
            ) from None
        if min(self.shape, default=0) < 0:
            raise ValueError(f"RunningLogSumExp: shape {self.shape} has a negative size")
        nothing = np.empty((1, 0), Problem("RunningLogSumExp", np.empty(1, self.dtype), -1).dtype)
        self._rows = np.repeat(long_rows.summarize(nothing), math.prod(self.shape))

    def __repr__(self) -> str:
        """The shape and the dtype."""
        return f"<RunningLogSumExp({self.shape}, {self.dtype})>"

    def update(self, block: Any, axis: int = -1) -> "RunningLogSumExp":
        """Add a block of classes.

        Parameters
        ----------
        block : array_like
            Logits of the shape of the rows, with an axis of any size for the classes. Its dtype must be one that
            NumPy converts to that of this object without a loss.
        axis : int, default -1
            The axis of the classes in `block`.

        Returns
        -------
        RunningLogSumExp
            The same object.

        Raises
        ------
        ValueError
            If the shape does not fit.
        TypeError
            If the dtype does not fit.
        numpy.exceptions.AxisError
            For an axis that `block` does not have.

        Notes
        -----
        If there is an error, or Ctrl-C, nothing has been added.

        A Dask array is computed at once, by Dask's scheduler, and its chunks may cut the classes.
        """
        function = "RunningLogSumExp.update"
        if lazy := dask_for(block):
            found = lazy(function, self, block, axis=axis)
            self._rows = long_rows.merge(np.stack([self._rows, found], axis=-1))
            return self
        check_in_memory(function, block)
        problem = Problem(function, block, axis, name="block")
        self._check(problem, axis)
        moved = np.moveaxis(problem.x, problem.axes[0], -1)
        moved = moved[None] if moved.ndim == 1 else moved
        rows, kind = self._rows.copy(), self._rows.dtype["m"]
        inner = math.prod(moved.shape[1:-1])
        width = max(1, min(problem.classes, PART_BYTES // kind.itemsize))
        step = max(1, PART_BYTES // (max(inner, 1) * max(width, len(long_rows.FIELDS)) * kind.itemsize))
        for start, begin in product(range(0, len(moved), step), range(0, problem.classes, width)):
            part = moved[start : start + step, ..., begin : begin + width]
            here = slice(start * inner, (start + len(part)) * inner)
            matrix = halves.contiguous(part, kind).reshape(len(part) * inner, part.shape[-1])
            rows[here] = long_rows.merge(np.stack([rows[here], long_rows.summarize(matrix)], axis=-1))
        self._rows = rows
        return self

    def _check(self, problem: Problem, axis: int) -> None:
        """An error unless a block has the shape of the rows and a dtype that fits."""
        function, dtype = problem.function, problem.x.dtype
        if problem.row_shape != self.shape:
            raise ValueError(
                f"{function}: block has shape {problem.shape}, expected {self.shape} and an axis of "
                f"classes at {axis}"
            )
        if not np.can_cast(dtype, self.dtype, "safe"):
            raise TypeError(
                f"{function}: block has dtype {dtype}, which {self.dtype} cannot hold; convert it, or "
                f"use RunningLogSumExp(shape, {np.result_type(dtype, self.dtype)})"
            )

    def merge(self, other: "RunningLogSumExp") -> "RunningLogSumExp":
        """Add all classes of another object, which stays as it is.

        Parameters
        ----------
        other : RunningLogSumExp
            With the same shape and dtype.

        Returns
        -------
        RunningLogSumExp
            The same object.

        Raises
        ------
        TypeError
            If `other` is something else.
        ValueError
            If its shape or dtype differ.
        """
        if not isinstance(other, RunningLogSumExp):
            raise TypeError(f"RunningLogSumExp.merge: expected RunningLogSumExp, got {type(other).__name__}")
        for name in ("shape", "dtype"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(f"RunningLogSumExp.merge: {name} is {theirs}, expected {ours}")
        self._rows = long_rows.merge(np.stack([self._rows, other._rows], axis=-1))
        return self

    def value(self) -> Any:
        """The log-sum-exp of all classes so far.

        Returns
        -------
        numpy.ndarray or numpy.floating
            Of the shape of the rows; a scalar if that is ().
        """
        with np.errstate(all="ignore"):
            values = long_rows.logsumexp(self._rows).astype(self.dtype).reshape(self.shape)
        return values[()] if values.ndim == 0 else values
