"""segment_softmax and the other functions of ragged rows in CSR form."""

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fastsoftmax._spec import FUNCTIONS, LIKE
from fastsoftmax._vectors import COLUMNS, HUGE, PIECE
from fastsoftmax.arrays.blocks import Array, Output, Problem, is_masked, kernel_weights, named, real_array
from fastsoftmax.arrays.lazy import exchanging
from fastsoftmax.arrays.options import LossOptions, mean_divisor, reduced, spared, weight_array
from fastsoftmax.arrays.sampling import Draws
from fastsoftmax.arrays.threads import BLOCK_WORK, run
from fastsoftmax.arrays.weights import scaled
from fastsoftmax.machine.entry import entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsoftmax._types import Arrays, ArrayT, FloatT, Mean, Numbers, Other, Reduction, Rows

SEGMENT_WORK = 4
"""The cost of a segment beyond that of its elements, in units of the cost of one element."""

LEAST_BLOCK = 1 << 14


def _row_pointers(function: str, indptr: Any, entries: int) -> Array:
    """`indptr` as 64-bit integers; an error unless it cuts so many entries into segments."""
    prefix = named(function, "indptr")
    if is_masked(indptr):
        raise TypeError(f"{prefix} is a masked array, expected integers without a mask")
    array = np.asarray(indptr)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{prefix} has shape {array.shape}, expected one dimension and at least one entry")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{prefix} has dtype {array.dtype}, expected integers")
    if array[0] != 0:
        raise ValueError(f"{prefix}[0] is {array[0]}, expected 0")
    falls = np.less(array[1:], array[:-1])
    if falls.any():
        at = int(np.argmax(falls))
        raise ValueError(
            f"{prefix}[{at + 1}] is {array[at + 1]}, expected at least indptr[{at}], which is {array[at]}"
        )
    if array[-1] != entries:
        raise ValueError(f"{prefix}[{array.size - 1}] is {array[-1]}, expected {entries}, the length of x")
    pointers = np.ascontiguousarray(array, np.int64)
    return pointers if pointers.flags.aligned else pointers.copy()


def _cuts(indptr: Array) -> Array:
    """Where blocks of segments begin and end, so that all blocks have about the same number of elements.

    No segment is divided: a long one makes its block longer, and the next segments go to the next block.
    """
    count = len(indptr) - 1

    def work(n: int) -> int:
        return int(indptr[n]) + SEGMENT_WORK * n

    unit = max(LEAST_BLOCK, min(BLOCK_WORK, work(count) // 16))
    cuts = [0]
    for target in range(unit, work(count), unit):
        cut = bisect_left(range(count), target, cuts[-1], key=work)
        if cut > cuts[-1]:
            cuts.append(cut)
    if count > cuts[-1]:
        cuts.append(count)
    return np.array(cuts, np.int64)


def _pieces(indptr: Array) -> Array | None:
    """The table of pieces of huge segments (see `kernels.segments`), None if there is no such segment."""
    if indptr[-1] <= HUGE:
        return None
    list_pieces = entry("segments.list_pieces")
    table = np.empty(int(list_pieces(indptr, np.empty(0, np.int64))) * COLUMNS, np.int64)
    list_pieces(indptr, table)
    return table if table.size else None


def _no_room() -> None:
    """These kernels need no working memory: their tiles are small and are on the stack."""


def _apart(array: Array, out: Any) -> Array:
    """`array`, or a copy of it if `out` shares its memory."""
    return array.copy() if isinstance(out, np.ndarray) and np.may_share_memory(array, out) else array


class _Segments:
    """One call: its operands, the checked segments, and methods that run kernels over them."""

    __slots__ = ("_sums", "_table", "count", "cuts", "indptr", "problem", "work")

    def __init__(self, function: str, x: Any, indptr: Any, out: Any) -> None:
        array = real_array(function, "x", x)
        if array.ndim != 1:
            raise ValueError(f"{named(function, 'x')} has shape {array.shape}, expected one dimension")
        self.problem = Problem(function, array, 0)
        self.indptr = _apart(_row_pointers(function, indptr, array.size), out)
        self.count = len(self.indptr) - 1
        self.work = array.size + SEGMENT_WORK * self.count
        self.cuts = _cuts(self.indptr)

    def block(self, array: Array) -> Array:
        """An operand as the kernels take it."""
        return self.problem.convert(array).reshape(-1)

    def output(self, out: Any) -> tuple[Output, Array]:
        """Where one number for each element is written: as an `Output`, and as an array for the kernels."""
        output = self.problem.output(out)
        return output, output.block.reshape(-1)

    def row_output(self, out: Any) -> Output:
        """Where one number for each segment is written: never over an input, which later segments still read."""
        output = Output(self.problem, out, (self.count,))
        if any(np.may_share_memory(output.result, array) for array in (self.problem.x, *self.problem.inputs)):
            output.result = np.empty(self.count, self.problem.dtype)
        return output

    def run(self, kernel: Any, work: int, *args: Any, room: Callable[[], Any] = _no_room) -> None:
        """A kernel over all segments that are not huge."""
        if self.count:
            run(kernel, len(self.cuts) - 1, work, room, self.indptr, self.cuts, *args)

    def room(self, over: bool) -> Callable[[], Any]:
        """The working memory of `kernels.segments.segment_softmax_product`; `over`: its output lies over v."""
        longest = int(np.diff(self.indptr).max(initial=0)) if over else 0
        return partial(np.empty, min(longest, HUGE), self.problem.dtype)

    def any_misplaced(self, labels: Array) -> bool:
        """Whether a label lies outside of its segment."""
        found = np.zeros(len(self.cuts) - 1, np.bool_)
        self.run(entry("segments.misplaced"), self.count, labels, found)
        return bool(found.any())

    def huge(self, source: Array) -> bool:
        """Whether there are huge segments; if so, compute the sums over them, which `run_huge` needs."""
        table = _pieces(self.indptr)
        if table is None:
            return False
        self._table = table
        count = len(table) // COLUMNS
        maxima, sums = np.empty(count, self.problem.dtype), np.empty(3 * count, self.problem.dtype)
        self._over_pieces(entry("segments.piece_maxima"), source, maxima)
        self._over_pieces(entry("segments.piece_sums"), maxima, source, sums)
        self._sums = maxima, sums
        return True

    def run_huge(self, kernel: Any, *args: Any) -> None:
        """A kernel over the pieces of the huge segments."""
        self._over_pieces(kernel, *self._sums, *args)

    def product(self, source: Array, vector: Array, target: Array) -> None:
        """The product with the Jacobian, for the huge segments."""
        count = len(self._table) // COLUMNS
        extents, dots = np.empty(2 * count, self.problem.dtype), np.empty(2 * count, self.problem.dtype)
        self._over_pieces(entry("segments.piece_extents"), self._sums[0], source, vector, extents)
        self.run_huge(entry("segments.piece_dots"), extents, source, vector, dots)
        self.run_huge(entry("segments.piece_softmax_product"), extents, source, vector, dots, target)

    def _over_pieces(self, kernel: Any, *args: Any) -> None:
        count = len(self._table) // COLUMNS
        run(kernel, count, 2 * count * PIECE, _no_room, self._table, *args)


def _forward(function: str, x: Any, indptr: Any, out: Any) -> Any:
    """segment_softmax or segment_log_softmax; `function` is that name without ``segment_``."""
    segments = _Segments(f"segment_{function}", x, indptr, out)
    source = segments.block(segments.problem.x)
    output, target = segments.output(out)
    segments.run(entry(f"segments.segment_{function}"), segments.work, source, target)
    if segments.huge(source):
        segments.run_huge(entry(f"segments.piece_{function}"), source, target)
    return output.finish()


def _product(function: str, x: Any, indptr: Any, name: str, vector: Any, out: Any) -> Any:
    segments = _Segments(function, x, indptr, out)
    operand = segments.problem.operand(name, vector)
    source = segments.block(segments.problem.x)
    second = segments.block(operand)
    output, target = segments.output(out)
    kernel, over = entry("segments.segment_softmax_product"), output.over(second)
    segments.run(kernel, 2 * segments.work, source, second, target, over, room=segments.room(over))
    if segments.huge(source):
        segments.product(source, second, target)
    return output.finish()


def _check_targets(
    segments: _Segments, targets: Any, options: LossOptions, out: Any
) -> tuple[Array, Array | None]:
    """Positions inside the segments as the kernels take them, and which of them are ignored."""
    function = segments.problem.function
    array = real_array(function, "targets", targets)
    prefix = named(function, "targets")
    if array.shape != (segments.count,):
        raise ValueError(f"{prefix} has shape {array.shape}, expected {(segments.count,)}: one for each segment")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{prefix} has dtype {array.dtype}, expected integers")
    index = options.ignored_index(function)
    ignored = None if index is None else np.equal(array, index)
    labels = np.ascontiguousarray(array, np.int64)
    labels = _apart(labels if labels.flags.aligned else labels.copy(), out)
    if segments.any_misplaced(labels):
        lengths = np.diff(segments.indptr)
        wrong = np.less(array, 0) | np.greater_equal(array, lengths)
        if ignored is not None:
            wrong &= ~ignored
        if wrong.any():
            at = int(np.argmax(wrong))
            expected = f"a position from 0 to {lengths[at] - 1}, within segment {at} of length {lengths[at]}"
            if lengths[at] == 0:
                expected = f"an ignored one, since segment {at} is empty"
            raise IndexError(f"{prefix}[{at}] is {array[at]}, expected {expected}")
    return labels, ignored


def _cross_entropy(function: str, x: Any, indptr: Any, targets: Any, options: LossOptions, out: Any = None) -> Any:
    """The loss, and the gradient if that is a result of `function`."""
    options.check_reduction(function)
    segments = _Segments(function, x, indptr, out)
    problem, count = segments.problem, segments.count
    labels, ignored = _check_targets(segments, targets, options, out)
    weights = weight_array(problem, "sample_weight", options.sample_weight, (count,))
    weights = spared(weights, ignored, problem.dtype)
    divisor = mean_divisor(weights if options.is_mean else None, 0, count)
    if weights is not None:
        weights = scaled(weights, -divisor.exponent)
    source = segments.block(problem.x)
    output, target = segments.output(out) if LIKE in FUNCTIONS[function].result else (None, None)
    rows = np.empty(count, problem.dtype)
    arguments = (
        source,
        labels,
        kernel_weights(weights, problem.dtype),
        target,
        rows,
        *options.scale(divisor, problem.dtype),
    )
    segments.run(entry("segments.segment_cross_entropy"), 2 * segments.work, *arguments)
    if segments.huge(source):
        segments.run_huge(entry("segments.piece_cross_entropy"), *arguments)
    slope = None if output is None else output.finish()
    if rows.dtype != problem.result_dtype and options.reduction == "none":
        with np.errstate(all="ignore"):
            rows = rows.astype(problem.result_dtype)
    value = reduced(rows, options, divisor, problem.result_dtype)
    return value if output is None else (value, slope)


if TYPE_CHECKING:

    @overload
    def segment_softmax(
        x: NDArray[FloatT], indptr: Arrays, *, out: NDArray[FloatT] | None = None
    ) -> NDArray[FloatT]: ...

    @overload
    def segment_softmax(x: ArrayT, indptr: Arrays, *, out: ArrayT | None = None) -> ArrayT: ...

    @overload
    def segment_softmax(
        x: Numbers, indptr: Arrays, *, out: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]: ...

    @overload
    def segment_softmax(x: Other, indptr: Arrays, *, out: Any = None) -> Any: ...


@exchanging
def segment_softmax(x: Any, indptr: Any, *, out: Any = None) -> Any:
    r"""Softmax of each segment of a vector: of ragged rows in CSR form.

    .. math:: p_i = \frac{\exp(x_i)}{\sum_{k \in s} \exp(x_k)}, \qquad i \in s = [\,\mathrm{indptr}_n,
        \mathrm{indptr}_{n+1})

    Parameters
    ----------
    x : array_like
        Logits, one dimension, the segments one after the other. float32 and float64 are kept; float16 and
        ``ml_dtypes.bfloat16`` are computed in float32 and returned in their dtype; integers and bools become
        float64.
    indptr : array_like of int
        Shape (N + 1,), any integer dtype: segment n is ``x[indptr[n]:indptr[n + 1]]``. It begins with 0, ends with
        ``len(x)`` and never decreases. Segments may be empty.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `x` itself.

    Returns
    -------
    ndarray
        The probabilities, of the shape of `x`. Those of each segment that is not empty sum to 1.

    Raises
    ------
    ValueError
        If `x` or `indptr` is not one-dimensional, for an `indptr` that does not cut `x` into segments (the message
        names the position), and for an unfit `out`.
    TypeError
        For dtypes other than those above, an `indptr` that is not of integers, and masked arrays.

    See Also
    --------
    segment_log_softmax, segment_logsumexp
    segment_softmax_jvp, segment_softmax_vjp : its derivatives.
    softmax : for rows of equal length.

    Notes
    -----
    The error is within 3 ulp, as for `softmax`. A segment that contains NaN or +inf, or only -inf, gives NaN;
    others are not affected. A segment of at most 2**20 elements gives the same bits as `softmax`. Threads share
    the elements evenly, whatever the lengths of the segments.

    The rows of a SciPy matrix in CSR form: ``A.data = fs.segment_softmax(A.data, A.indptr)``.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, Accurately computing the log-sum-exp and softmax functions,
    IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.segment_softmax(np.log([1.0, 3.0, 1.0, 2.0, 2.0]), [0, 2, 2, 5])
    array([0.25, 0.75, 0.2 , 0.4 , 0.4 ])

    Attention over the edges of a graph, as the rows of a sparse matrix:

    >>> import scipy.sparse
    >>> A = scipy.sparse.csr_array(np.array([[0.0, 2.0, 2.0], [5.0, 0.0, 0.0]]))
    >>> A.data = fs.segment_softmax(A.data, A.indptr)
    >>> A.toarray()
    array([[0. , 0.5, 0.5],
           [1. , 0. , 0. ]])
    """
    return _forward("softmax", x, indptr, out)


if TYPE_CHECKING:

    @overload
    def segment_log_softmax(
        x: NDArray[FloatT], indptr: Arrays, *, out: NDArray[FloatT] | None = None
    ) -> NDArray[FloatT]: ...

    @overload
    def segment_log_softmax(x: ArrayT, indptr: Arrays, *, out: ArrayT | None = None) -> ArrayT: ...

    @overload
    def segment_log_softmax(
        x: Numbers, indptr: Arrays, *, out: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]: ...

    @overload
    def segment_log_softmax(x: Other, indptr: Arrays, *, out: Any = None) -> Any: ...


@exchanging
def segment_log_softmax(x: Any, indptr: Any, *, out: Any = None) -> Any:
    r"""Logarithm of the softmax of each segment of a vector.

    .. math:: \log p_i = x_i - \log \sum_{k \in s} \exp(x_k)

    Parameters
    ----------
    x, indptr
        As for `segment_softmax`.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `x` itself.

    Returns
    -------
    ndarray
        The log-probabilities, of the shape of `x`.

    Raises
    ------
    ValueError, TypeError
        As `segment_softmax`.

    See Also
    --------
    segment_softmax, segment_logsumexp

    Notes
    -----
    The error is within 4 ulp, also where the logarithm is close to 0. A segment of one finite element gives 0.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, Accurately computing the log-sum-exp and softmax functions,
    IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.segment_log_softmax(np.array([0.0, -50.0, 7.0]), [0, 2, 3])
    array([-1.92874985e-22, -5.00000000e+01, 0.00000000e+00])
    """
    return _forward("log_softmax", x, indptr, out)


if TYPE_CHECKING:

    @overload
    def segment_logsumexp(
        x: NDArray[FloatT], indptr: Arrays, *, out: NDArray[FloatT] | None = None
    ) -> NDArray[FloatT]: ...

    @overload
    def segment_logsumexp(x: ArrayT, indptr: Arrays, *, out: ArrayT | None = None) -> ArrayT: ...

    @overload
    def segment_logsumexp(x: Numbers | Other, indptr: Arrays, *, out: Any = None) -> Any: ...


@exchanging
def segment_logsumexp(x: Any, indptr: Any, *, out: Any = None) -> Any:
    r"""Logarithm of the sum of exponentials of each segment of a vector.

    .. math:: \mathrm{lse}_n = \log \sum_{k \in s_n} \exp(x_k)

    Parameters
    ----------
    x, indptr
        As for `segment_softmax`.
    out : ndarray, optional
        Where to put the result: shape (N,) and the dtype of the result.

    Returns
    -------
    ndarray
        Shape (N,): one number for each segment, -inf for an empty one.

    Raises
    ------
    ValueError, TypeError
        As `segment_softmax`.

    See Also
    --------
    segment_log_softmax, logsumexp

    Notes
    -----
    The error is within 2 ulp where nothing cancels, as for `logsumexp`. A segment of only -inf gives -inf, one
    that contains +inf gives inf, and one that contains NaN gives NaN.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, Accurately computing the log-sum-exp and softmax functions,
    IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.segment_logsumexp(np.log([1.0, 2.0, 3.0, 4.0]), [0, 3, 3, 4])
    array([1.79175947,       -inf, 1.38629436])
    """
    segments = _Segments("segment_logsumexp", x, indptr, out)
    source = segments.block(segments.problem.x)
    output = segments.row_output(out)
    rows = output.result
    segments.run(entry("segments.segment_logsumexp"), segments.work, source, rows)
    if segments.huge(source):
        segments.run_huge(entry("segments.piece_logsumexp"), rows)
    return output.finish()


if TYPE_CHECKING:

    @overload
    def segment_softmax_jvp(
        x: NDArray[FloatT], indptr: Arrays, tangent: NDArray[FloatT], *, out: NDArray[FloatT] | None = None
    ) -> NDArray[FloatT]: ...

    @overload
    def segment_softmax_jvp(
        x: ArrayT, indptr: Arrays, tangent: Arrays, *, out: ArrayT | None = None
    ) -> ArrayT: ...

    @overload
    def segment_softmax_jvp(x: Arrays, indptr: Arrays, tangent: Arrays, *, out: Any = None) -> Any: ...


@exchanging
def segment_softmax_jvp(x: Any, indptr: Any, tangent: Any, *, out: Any = None) -> Any:
    r"""Jacobian of `segment_softmax` times a tangent.

    .. math:: (J v)_i = p_i \Bigl(v_i - \sum_{j \in s} p_j v_j\Bigr), \qquad i \in s

    Parameters
    ----------
    x, indptr
        As for `segment_softmax`.
    tangent : array_like
        v, of the shape of `x` and any real dtype. A wider float than that of `x` widens the result.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `x` or `tangent` itself.

    Returns
    -------
    ndarray
        The directional derivative, of the shape of `x`.

    Raises
    ------
    ValueError, TypeError
        As `segment_softmax`, and for a tangent of another shape or of no real dtype.

    See Also
    --------
    segment_softmax_vjp, softmax_jvp

    References
    ----------
    J. S. Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990,
    doi:10.1007/978-3-642-76153-9_28.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.segment_softmax_jvp(np.zeros(3), [0, 2, 3], np.array([1.0, 0.0, 5.0]))
    array([ 0.25, -0.25,  0.  ])
    """
    return _product("segment_softmax_jvp", x, indptr, "tangent", tangent, out)


if TYPE_CHECKING:

    @overload
    def segment_softmax_vjp(
        x: NDArray[FloatT], indptr: Arrays, cotangent: NDArray[FloatT], *, out: NDArray[FloatT] | None = None
    ) -> NDArray[FloatT]: ...

    @overload
    def segment_softmax_vjp(
        x: ArrayT, indptr: Arrays, cotangent: Arrays, *, out: ArrayT | None = None
    ) -> ArrayT: ...

    @overload
    def segment_softmax_vjp(x: Arrays, indptr: Arrays, cotangent: Arrays, *, out: Any = None) -> Any: ...


@exchanging
def segment_softmax_vjp(x: Any, indptr: Any, cotangent: Any, *, out: Any = None) -> Any:
    r"""Transposed Jacobian of `segment_softmax` times a cotangent: what backpropagation needs.

    .. math:: (J^\top g)_i = p_i \Bigl(g_i - \sum_{j \in s} p_j g_j\Bigr), \qquad i \in s

    This is the same map as `segment_softmax_jvp`, because J is symmetric.

    Parameters
    ----------
    x, indptr
        As for `segment_softmax`.
    cotangent : array_like
        g, of the shape of `x` and any real dtype. A wider float than that of `x` widens the result.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `x` or `cotangent` itself.

    Returns
    -------
    ndarray
        The gradient of ``sum(g * segment_softmax(x, indptr))``, of the shape of `x`.

    Raises
    ------
    ValueError, TypeError
        As `segment_softmax`, and for a cotangent of another shape or of no real dtype.

    See Also
    --------
    segment_softmax_jvp, softmax_vjp

    References
    ----------
    J. S. Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990,
    doi:10.1007/978-3-642-76153-9_28.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.segment_softmax_vjp(np.zeros(3), [0, 2, 3], np.array([0.0, 4.0, 1.0]))
    array([-1.,  1.,  0.])
    """
    return _product("segment_softmax_vjp", x, indptr, "cotangent", cotangent, out)


if TYPE_CHECKING:

    @overload
    def segment_cross_entropy(
        x: NDArray[FloatT],
        indptr: Arrays,
        targets: Arrays,
        *,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        reduction: Mean = "mean",
    ) -> FloatT: ...

    @overload
    def segment_cross_entropy(
        x: NDArray[FloatT],
        indptr: Arrays,
        targets: Arrays,
        *,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        reduction: Rows,
    ) -> NDArray[FloatT]: ...

    @overload
    def segment_cross_entropy(
        x: ArrayT,
        indptr: Arrays,
        targets: Arrays,
        *,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        reduction: Reduction = "mean",
    ) -> ArrayT: ...

    @overload
    def segment_cross_entropy(
        x: Numbers,
        indptr: Arrays,
        targets: Arrays,
        *,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        reduction: Mean = "mean",
    ) -> np.float64: ...

    @overload
    def segment_cross_entropy(
        x: Numbers | Other,
        indptr: Arrays,
        targets: Arrays,
        *,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        reduction: Reduction = "mean",
    ) -> Any: ...


@exchanging
def segment_cross_entropy(
    x: Any,
    indptr: Any,
    targets: Any,
    *,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Any:
    r"""Cross-entropy of the softmax of each segment of a vector against one position in it.

    .. math:: L_n = -\log p_{\mathrm{indptr}_n + t_n}

    This is the negative log-likelihood of choices from sets of different sizes.

    Parameters
    ----------
    x, indptr
        As for `segment_softmax`.
    targets : array_like of int
        t, shape (N,), any integer dtype: the position of the target inside its segment, from 0 to the length of
        the segment - 1.
    sample_weight : array_like, optional
        Shape (N,): the factor of each loss. A segment of weight 0 has no influence, whatever it contains.
    ignore_index : int, optional
        Segments with this target, valid or not, have no influence, whatever they contain.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all segments that are not ignored (with weights: their weighted mean), the sum, or each loss.

    Returns
    -------
    scalar or ndarray
        The loss in nats: a scalar, or with ``reduction="none"`` an array of shape (N,).

    Raises
    ------
    ValueError
        As `segment_softmax`, for targets or weights of another shape, and for an unknown reduction.
    TypeError
        As `segment_softmax`, and for targets that are not integers.
    IndexError
        For a target outside of its segment; the message names its value and position. Every target of an empty
        segment is outside. A target that is ignored is not checked.

    See Also
    --------
    segment_cross_entropy_with_grad, cross_entropy

    Notes
    -----
    The loss of a segment is within 4 ulp, also of a confident one, whose loss is tiny. There are no weights of
    classes and no label smoothing: a position has another meaning in each segment. If no segment counts, the mean
    is nan and the sum 0.

    References
    ----------
    D. McFadden, Conditional logit analysis of qualitative choice behavior, 1974, in P. Zarembka (ed.), Frontiers
    in Econometrics, section 2. K. E. Train, Discrete Choice Methods with Simulation, 2nd ed., 2009, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> x, indptr = np.log([1.0, 3.0, 1.0, 2.0, 2.0]), [0, 2, 5]
    >>> fs.segment_cross_entropy(x, indptr, [0, 2], reduction="none")
    array([1.38629436, 0.91629073])
    """
    options = LossOptions(sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction)
    return _cross_entropy("segment_cross_entropy", x, indptr, targets, options)


if TYPE_CHECKING:

    @overload
    def segment_cross_entropy_with_grad(
        x: NDArray[FloatT],
        indptr: Arrays,
        targets: Arrays,
        *,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        reduction: Mean = "mean",
        out: NDArray[FloatT] | None = None,
    ) -> tuple[FloatT, NDArray[FloatT]]: ...

    @overload
    def segment_cross_entropy_with_grad(
        x: NDArray[FloatT],
        indptr: Arrays,
        targets: Arrays,
        *,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        reduction: Rows,
        out: NDArray[FloatT] | None = None,
    ) -> tuple[NDArray[FloatT], NDArray[FloatT]]: ...

    @overload
    def segment_cross_entropy_with_grad(
        x: ArrayT,
        indptr: Arrays,
        targets: Arrays,
        *,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        reduction: Reduction = "mean",
        out: ArrayT | None = None,
    ) -> tuple[ArrayT, ArrayT]: ...

    @overload
    def segment_cross_entropy_with_grad(
        x: Numbers | Other,
        indptr: Arrays,
        targets: Arrays,
        *,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        reduction: Reduction = "mean",
        out: Any = None,
    ) -> tuple[Any, Any]: ...


@exchanging
def segment_cross_entropy_with_grad(
    x: Any,
    indptr: Any,
    targets: Any,
    *,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    out: Any = None,
) -> tuple[Any, Any]:
    r"""`segment_cross_entropy` and its gradient with respect to `x`, in one pass over it.

    .. math:: \frac{\partial L_n}{\partial x_i} = p_i - [\, i = \mathrm{indptr}_n + t_n \,], \qquad i \in s_n

    With ``reduction="mean"`` it is divided by the same number as the loss.

    Parameters
    ----------
    x, indptr, targets, sample_weight, ignore_index
        As for `segment_cross_entropy`.
    reduction : {"mean", "sum", "none"}, default "mean"
        As for `segment_cross_entropy`; "sum" and "none" have the same gradient.
    out : ndarray, optional
        Where to put the gradient: of its shape and dtype. May be `x` itself.

    Returns
    -------
    loss : scalar or ndarray
        As `segment_cross_entropy`.
    grad : ndarray
        Of the shape of `x`; exactly 0 in segments that do not count.

    Raises
    ------
    ValueError, TypeError, IndexError
        As `segment_cross_entropy`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    segment_cross_entropy, cross_entropy_with_grad

    Notes
    -----
    Every entry of the gradient is within 4 ulp, also at the target of a confident segment, where p - 1 cancels.

    References
    ----------
    K. E. Train, Discrete Choice Methods with Simulation, 2nd ed., 2009, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> loss, grad = fs.segment_cross_entropy_with_grad(np.zeros(4), [0, 2, 4], [1, 0], reduction="sum")
    >>> round(float(loss), 12), grad
    (1.38629436112, array([ 0.5, -0.5, -0.5,  0.5]))
    """
    options = LossOptions(sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction)
    both: tuple[Any, Any] = _cross_entropy("segment_cross_entropy_with_grad", x, indptr, targets, options, out)
    return both


if TYPE_CHECKING:

    @overload
    def segment_categorical(
        x: NDArray[Any] | Numbers | Other,
        indptr: Arrays,
        *,
        rng: Any = None,
        uniforms: Arrays | None = None,
        size: int | tuple[int, ...] | None = None,
        replace: bool = True,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
    ) -> NDArray[np.int64]: ...

    @overload
    def segment_categorical(
        x: ArrayT,
        indptr: Arrays,
        *,
        rng: Any = None,
        uniforms: Arrays | None = None,
        size: int | tuple[int, ...] | None = None,
        replace: bool = True,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
    ) -> ArrayT: ...


@exchanging
def segment_categorical(
    x: Any,
    indptr: Any,
    *,
    rng: Any = None,
    uniforms: Any = None,
    size: Any = None,
    replace: bool = True,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Any:
    r"""Random positions within each segment of a vector, drawn with the probabilities of its softmax.

    .. math:: \Pr(k) = \frac{\exp(x_{b + k} / T)}{\sum_{j \in s} \exp(x_j / T)}, \qquad
        s = [\,b, \mathrm{indptr}_{n+1}), \quad b = \mathrm{indptr}_n

    Parameters
    ----------
    x, indptr
        As for `segment_softmax`.
    rng, uniforms, size, replace, temperature, top_k, top_p, min_p
        As for `categorical`; each segment is a row.

    Returns
    -------
    ndarray of int64
        Positions, counted from the beginning of the segment, of shape `size` followed by N.

    Raises
    ------
    ValueError, TypeError
        As `segment_softmax` for `x` and `indptr`, and `categorical` for the options. An empty segment has nothing
        to draw: a ValueError that names it.

    See Also
    --------
    categorical : for rows of equal length.
    segment_softmax : the probabilities.

    Notes
    -----
    For the same uniform numbers, the position in a segment is that which `categorical` draws from a row with the
    same logits.

    References
    ----------
    L. Devroye, Non-Uniform Random Variate Generation, 1986, section 2.1 of chapter III (inversion by sequential
    search).

    Examples
    --------
    A random neighbour of each node of a graph, whose edges are the rows of a sparse matrix:

    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> logits, indptr = np.log([1.0, 3.0, 1.0, 2.0, 2.0]), np.array([0, 2, 5])
    >>> position = fs.segment_categorical(logits, indptr, uniforms=[0.5, 0.1])
    >>> position
    array([1, 0])
    >>> neighbours = np.array([4, 7, 0, 1, 2])
    >>> neighbours[indptr[:-1] + position]
    array([7, 0])
    """
    segments = _Segments("segment_categorical", x, indptr, None)
    problem, count = segments.problem, segments.count
    draws = Draws(
        problem.function,
        (count,),
        problem.dtype,
        rng=rng,
        uniforms=uniforms,
        size=size,
        replace=replace,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    )
    numbers, chosen, result = draws.in_order((0,))
    longest = int(np.diff(segments.indptr).max(initial=0))
    room = draws.room(problem.dtype, longest)
    given = draws.arguments(longest, count, 1, numbers, chosen)
    if numbers.size:
        source = segments.block(problem.x)
        segments.run(entry("sampling.draws"), draws.work(segments.work), source, *given, room=room)
    begins = segments.indptr
    return draws.finish(
        result, lambda index: problem.x[begins[index[0]] : begins[index[0] + 1]].astype(np.float64)
    )
