"""segment_softmax and the other functions of ragged rows in CSR form."""

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from fastsoftmax._spec import FUNCTIONS, LIKE
from fastsoftmax._vectors import HUGE
from fastsoftmax.arrays import halves, huge
from fastsoftmax.arrays.blocks import (
    NO_ROOM,
    WHOLE,
    Array,
    Box,
    Output,
    Parted,
    Problem,
    exact_pair,
    is_masked,
    kernel_weights,
    named,
    real_array,
)
from fastsoftmax.arrays.lazy import exchanging
from fastsoftmax.arrays.options import (
    UNSMOOTHED,
    LossOptions,
    mean_divisor,
    reduced,
    reversal,
    smoothed_shares,
    spared,
    weight_array,
)
from fastsoftmax.arrays.parts import Piece, run_parts
from fastsoftmax.arrays.sampling import Draws
from fastsoftmax.arrays.threads import BLOCK_WORK, run
from fastsoftmax.arrays.weights import Divisor, scaled
from fastsoftmax.machine.entry import entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsoftmax._types import Arrays, ArrayT, FloatT, Mean, Numbers, Other, Reduction, Rows

SEGMENT_WORK = 4
"""The cost of a segment beyond that of its elements, in units of the cost of one element."""

PART = 1 << 16
"""Operands are converted in parts of about so many elements at most, and of whole segments."""

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


def _cuts(indptr: Array, most: int = BLOCK_WORK) -> Array:
    """Where blocks of segments begin and end, so that all blocks have about the same number of elements.

    No segment is divided: a long one makes its block longer, and the next segments go to the next block.
    """
    count = len(indptr) - 1

    def work(n: int) -> int:
        return int(indptr[n]) + SEGMENT_WORK * n

    unit = max(LEAST_BLOCK, min(most, work(count) // 16))
    cuts = [0]
    for target in range(unit, work(count), unit):
        cut = bisect_left(range(count), target, cuts[-1], key=work)
        if cut > cuts[-1]:
            cuts.append(cut)
    if count > cuts[-1]:
        cuts.append(count)
    return np.array(cuts, np.int64)


def _apart(array: Array, out: Any) -> Array:
    """`array`, or a copy of it if `out` shares its memory."""
    return array.copy() if isinstance(out, np.ndarray) and np.may_share_memory(array, out) else array


class _Segments:
    """One call: its operands, the checked segments, and methods that run kernels over them."""

    __slots__ = ("count", "cuts", "elements", "indptr", "problem", "work")

    def __init__(self, function: str, x: Any, indptr: Any, out: Any) -> None:
        array = real_array(function, "x", x)
        if array.ndim != 1:
            raise ValueError(f"{named(function, 'x')} has shape {array.shape}, expected one dimension")
        self.problem = Problem(function, array, 0, parts=False)
        self.elements: list[Any] = []
        """Operands and outputs with one number for each element."""
        self.indptr = _apart(_row_pointers(function, indptr, array.size), out)
        self.count = len(self.indptr) - 1
        self.work = array.size + SEGMENT_WORK * self.count
        self.cuts = _cuts(self.indptr)

    def in_parts(self) -> None:
        """Let operands be converted in parts of whole segments, if none is so long that this takes much memory."""
        self.problem.parts = self.work > WHOLE and int(np.diff(self.indptr).max(initial=0)) <= PART

    def _element(self, block: Any) -> Any:
        if isinstance(block, Parted):
            flat: Any = Parted(block.array, 1, (block.size,), block.dtype, output=block.output)
        else:
            flat = block.reshape(-1)
        self.elements.append(flat)
        return flat

    def block(self, array: Array) -> Any:
        """An operand as the kernels take it: an array of one axis, or a `Parted`."""
        return self._element(self.problem.convert(array))

    def output(self, out: Any) -> tuple[Output, Any]:
        """Where one number for each element is written: as an `Output`, and as the kernels take it."""
        output = self.problem.output(out)
        return output, self._element(output.block)

    def row_output(self, out: Any) -> Output:
        """Where one number for each segment is written: never over an input, which later segments still read."""
        parts, self.problem.parts = self.problem.parts, False
        output = Output(self.problem, out, (self.count,))
        self.problem.parts = parts
        if any(np.may_share_memory(output.result, array) for array in (self.problem.x, *self.problem.inputs)):
            output.result = np.empty(self.count, self.problem.dtype)
        return output

    def run(self, kernel: Any, work: int, *args: Any, room: Callable[[], Any] = huge.no_room) -> None:
        """A kernel over all segments that are not huge."""
        if self.count and Parted in map(type, args):
            self._run_in_parts(kernel, work, args, room)
        elif self.count:
            run(kernel, len(self.cuts) - 1, work, room, self.indptr, self.cuts, *args)

    def _run_in_parts(self, kernel: Any, work: int, args: tuple[Any, ...], room: Callable[[], Any]) -> None:
        """`run` for operands or an output that are converted where the kernel runs."""
        cuts, indptr = _cuts(self.indptr, PART), self.indptr

        def cut(part: int) -> tuple[int, list[Any]]:
            first, last = (int(cut) for cut in cuts[part : part + 2])
            begin, end = int(indptr[first]), int(indptr[last])
            values: list[Any] = [indptr[first : last + 1] - begin, np.array([0, last - first])]
            for one in args:
                if isinstance(one, Parted):
                    values.append(Piece(one, Box(begin, end)))
                elif isinstance(one, np.ndarray) and one.size:
                    by_element = any(one is other for other in self.elements)
                    values.append(one[begin:end] if by_element else one[first:last])
                else:
                    values.append(one)
            return 1, values

        longest = int(np.argmax(np.diff(indptr[cuts])))
        run_parts(kernel, len(cuts) - 1, work, room, cut, (longest,))

    def room(self, over: bool) -> Callable[[], Any]:
        """The working memory of `kernels.segments.segment_softmax_product`; `over`: its output lies over v."""
        longest = int(np.diff(self.indptr).max(initial=0)) if over else 0
        return partial(np.empty, min(longest, HUGE), self.problem.dtype)

    def any_misplaced(self, labels: Array) -> bool:
        """Whether a label lies outside of its segment."""
        found = np.zeros(len(self.cuts) - 1, np.bool_)
        self.run(entry("segments.misplaced"), self.count, labels, found)
        return bool(found.any())

    def run_huge(self, form: Callable[..., None], kernel: str, *args: Any) -> None:
        """A function of `arrays.huge`, for the huge segments."""
        form(run, entry(kernel), self.indptr, *args)


def _forward(function: str, x: Any, indptr: Any, out: Any) -> Any:
    """segment_softmax or segment_log_softmax; `function` is that name without ``segment_``."""
    segments = _Segments(f"segment_{function}", x, indptr, out)
    segments.in_parts()
    source = segments.block(segments.problem.x)
    output, target = segments.output(out)
    segments.run(entry(f"segments.segment_{function}"), segments.work, source, target)
    segments.run_huge(huge.pieces, f"segments.piece_{function}", source, source, target)
    return output.finish()


def _product(function: str, x: Any, indptr: Any, name: str, vector: Any, out: Any) -> Any:
    segments = _Segments(function, x, indptr, out)
    segments.in_parts()
    operand = segments.problem.operand(name, vector)
    source = segments.block(segments.problem.x)
    second = segments.block(operand)
    output, target = segments.output(out)
    kernel, over = entry("segments.segment_softmax_product"), output.over(second)
    segments.run(kernel, 2 * segments.work, source, second, target, over, room=segments.room(over))
    segments.run_huge(huge.product, "segments.piece_softmax_product", source, second, target)
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


class _Loss(NamedTuple):
    """The weights of the segments and the factor of the gradients as kernels take them, and the outputs."""

    weights: Array
    scale: tuple[Any, Any]
    divisor: Divisor
    output: Output | None
    target: Array | None
    rows: Array

    def finished(self, segments: _Segments, options: LossOptions) -> Any:
        """The result of the call, after the kernels have run."""
        result_dtype, rows = segments.problem.result_dtype, self.rows
        slope = None if self.output is None else self.output.finish()
        if rows.dtype != result_dtype and options.reduction == "none":
            rows = halves.converted(rows, result_dtype)
        value = reduced(rows, options, self.divisor, result_dtype)
        return value if self.output is None else (value, slope)


def _loss(segments: _Segments, ignored: Array | None, options: LossOptions, out: Any) -> _Loss:
    """What the kernels of a loss need besides its operands, which have been converted."""
    problem, count = segments.problem, segments.count
    weights = weight_array(problem, "sample_weight", options.sample_weight, (count,))
    weights = spared(weights, ignored, problem.dtype)
    divisor = mean_divisor(weights if options.is_mean else None, 0, count)
    if weights is not None:
        weights = scaled(weights, -divisor.exponent)
    output, target = segments.output(out) if LIKE in FUNCTIONS[problem.function].result else (None, None)
    scale = options.scale(divisor, problem.dtype)
    return _Loss(
        kernel_weights(weights, problem.dtype), scale, divisor, output, target, np.empty(count, problem.dtype)
    )


def _cross_entropy(function: str, x: Any, indptr: Any, targets: Any, options: LossOptions, out: Any = None) -> Any:
    """The loss, and the gradient if that is a result of `function`."""
    options.check_reduction(function)
    smoothing = options.smoothing(function)
    segments = _Segments(function, x, indptr, out)
    segments.in_parts()
    labels, ignored = _check_targets(segments, targets, options, out)
    source = segments.block(segments.problem.x)
    loss = _loss(segments, ignored, options, out)
    if smoothing:
        _smoothed(segments, source, labels, smoothing, loss)
        return loss.finished(segments, options)
    arguments = source, labels, loss.weights, loss.target, loss.rows, *loss.scale
    segments.run(entry("segments.segment_cross_entropy"), 2 * segments.work, *arguments)
    segments.run_huge(huge.pieces, "segments.piece_cross_entropy", source, *arguments)
    return loss.finished(segments, options)


def _smoothed(segments: _Segments, source: Array, labels: Array, smoothing: float, loss: _Loss) -> None:
    """The cross-entropy with label smoothing."""
    dtype = segments.problem.dtype
    _, gain = smoothed_shares(smoothing, 1)
    target = NO_ROOM[dtype] if loss.target is None else loss.target
    numbers = *exact_pair(smoothing, dtype), dtype.type(gain)
    results = target, loss.rows, *loss.scale
    kernel, work = entry("segments.segment_soft_cross_entropy"), 2 * segments.work
    segments.run(kernel, work, source, labels, *numbers, loss.weights, *results)
    given = smoothing, source, labels, loss.weights, loss.target, loss.rows, *loss.scale
    segments.run_huge(huge.smoothed, "losses.soft_cross_entropy", *given)


def _entropy(function: str, x: Any, indptr: Any, out: Any) -> Any:
    """The entropy of each segment, and the gradient if that is a result of `function`."""
    segments = _Segments(function, x, indptr, out)
    segments.in_parts()
    problem, gradient = segments.problem, LIKE in FUNCTIONS[function].result
    source = segments.block(problem.x)
    output, target = segments.output(out) if gradient else (None, NO_ROOM[problem.dtype])
    entropies = segments.row_output(None if gradient else out)
    rows = entropies.result
    segments.run(entry("segments.segment_softmax_entropy"), 2 * segments.work, source, target, rows)
    given = source, target if gradient else None, rows
    segments.run_huge(huge.entropy, "entropy.entropy", *given)
    return entropies.finish() if output is None else (entropies.finish(), output.finish())


def _divergence(
    function: str, x: Any, indptr: Any, target_logits: Any, reverse: Any, options: LossOptions, out: Any = None
) -> Any:
    """The Kullback-Leibler divergence, and the gradient if that is a result of `function`."""
    options.check_reduction(function)
    mixing = (reversal(function, reverse),)
    segments = _Segments(function, x, indptr, out)
    segments.in_parts()
    problem = segments.problem
    array = problem.target_like("target_logits", target_logits)
    source, second = segments.block(problem.x), segments.block(array)
    loss = _loss(segments, None, options, out)
    target = NO_ROOM[problem.dtype] if loss.target is None else loss.target
    arguments = source, second, loss.weights, target, loss.rows, *mixing, *loss.scale
    segments.run(entry("segments.segment_kl_divergence"), 4 * segments.work, *arguments)
    segments.run_huge(huge.divergence, "divergences.kl_divergence", *arguments)
    return loss.finished(segments, options)


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
    segments.in_parts()
    source = segments.block(segments.problem.x)
    output = segments.row_output(out)
    rows = output.result
    segments.run(entry("segments.segment_logsumexp"), segments.work, source, rows)
    segments.run_huge(huge.pieces, "segments.piece_logsumexp", source, rows)
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
    label_smoothing: float = UNSMOOTHED,
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
    label_smoothing : float, default 0.0
        From 0 to 1: the share of the uniform distribution over the elements of a segment that is mixed into its
        target.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all segments that are not ignored (with weights: their weighted mean), the sum, or each loss.

    Returns
    -------
    scalar or ndarray
        The loss in nats: a scalar, or with ``reduction="none"`` an array of shape (N,).

    Raises
    ------
    ValueError
        As `segment_softmax`, for targets or weights of another shape, a smoothing that is not from 0 to 1, and an
        unknown reduction.
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
    The loss of a segment is within 4 ulp (5 with label smoothing), also of a confident one, whose loss is tiny.
    There are no weights of classes: a position has another meaning in each segment. If no segment counts, the mean
    is nan and the sum 0. With label smoothing, a segment that holds -inf has the loss inf.

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
    options = LossOptions(
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
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
    label_smoothing: float = UNSMOOTHED,
    reduction: str = "mean",
    out: Any = None,
) -> tuple[Any, Any]:
    r"""`segment_cross_entropy` and its gradient with respect to `x`, in one pass over it.

    .. math:: \frac{\partial L_n}{\partial x_i} = p_i - [\, i = \mathrm{indptr}_n + t_n \,], \qquad i \in s_n

    With ``reduction="mean"`` it is divided by the same number as the loss. With ``label_smoothing=s``, the bracket
    is multiplied by 1 - s, and s over the length of the segment is subtracted.

    Parameters
    ----------
    x, indptr, targets, sample_weight, ignore_index, label_smoothing
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
    With label smoothing its error is at most 5 eps times the sum of the absolute values of its terms.

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
    options = LossOptions(
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    both: tuple[Any, Any] = _cross_entropy("segment_cross_entropy_with_grad", x, indptr, targets, options, out)
    return both


@exchanging
def segment_softmax_entropy(x: Any, indptr: Any, *, out: Any = None) -> Any:
    r"""Entropy of the softmax of each segment of a vector, in nats.

    .. math:: H_n = -\sum_{i \in s_n} p_i \log p_i

    Parameters
    ----------
    x, indptr
        As for `segment_softmax`.
    out : ndarray, optional
        Where to put the result: shape (N,) and the dtype of the result.

    Returns
    -------
    ndarray
        Shape (N,): one number for each segment, from 0 to the logarithm of its length; NaN for an empty one.

    Raises
    ------
    ValueError, TypeError
        As `segment_softmax`.

    See Also
    --------
    segment_softmax_entropy_with_grad, softmax_entropy

    Notes
    -----
    The error is within 4 ulp, and the bits are those of `softmax_entropy`. Elements of -inf add 0. A segment that
    contains NaN or +inf, or only -inf, gives NaN.

    References
    ----------
    T. M. Cover, J. A. Thomas, Elements of Information Theory, 2nd edition, 2006, section 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.segment_softmax_entropy(np.array([0.0, 0.0, 5.0, 0.0, -50.0]), [0, 2, 3, 5])
    array([6.93147181e-01, 0.00000000e+00, 9.83662422e-21])
    """
    return _entropy("segment_softmax_entropy", x, indptr, out)


@exchanging
def segment_softmax_entropy_with_grad(x: Any, indptr: Any, *, out: Any = None) -> tuple[Any, Any]:
    r"""`segment_softmax_entropy` and its gradient with respect to `x`, in one pass over it.

    .. math:: \frac{\partial H_n}{\partial x_i} = -p_i \, (\log p_i + H_n), \qquad i \in s_n

    Parameters
    ----------
    x, indptr
        As for `segment_softmax`.
    out : ndarray, optional
        Where to put the gradient: of its shape and dtype. May be `x` itself.

    Returns
    -------
    entropy : ndarray
        As `segment_softmax_entropy`.
    grad : ndarray
        The gradient, of the shape of `x`: for each segment that of its own entropy.

    Raises
    ------
    ValueError, TypeError
        As `segment_softmax`; nothing is written to `out` then.

    See Also
    --------
    segment_softmax_entropy, softmax_entropy_with_grad

    Notes
    -----
    Errors and edge cases are those of `softmax_entropy_with_grad`.

    References
    ----------
    R. J. Williams, J. Peng, Function optimization using connectionist reinforcement learning algorithms,
    Connection Science 3(3), 1991, doi:10.1080/09540099108946587.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> entropy, grad = fs.segment_softmax_entropy_with_grad(np.log([1.0, 3.0, 3.0, 1.0]), [0, 2, 4])
    >>> entropy
    array([0.56233514, 0.56233514])
    >>> grad
    array([ 0.2059898, -0.2059898, -0.2059898,  0.2059898])
    """
    both: tuple[Any, Any] = _entropy("segment_softmax_entropy_with_grad", x, indptr, out)
    return both


@exchanging
def segment_kl_divergence(
    x: Any,
    indptr: Any,
    target_logits: Any,
    *,
    reverse: bool = False,
    sample_weight: Any = None,
    reduction: str = "mean",
) -> Any:
    r"""Kullback-Leibler divergence of the softmax of each segment of a vector from that of other logits.

    .. math:: L_n = \mathrm{KL}(q \,\|\, p) = \sum_{i \in s_n} q_i (\log q_i - \log p_i)

    with p and q the softmax of `x` and of `target_logits` in each segment.

    Parameters
    ----------
    x, indptr
        As for `segment_softmax`.
    target_logits : array_like
        The logits of q, of the shape of `x` and any real dtype.
    reverse : bool, default False
        The divergence KL(p || q) instead.
    sample_weight : array_like, optional
        Shape (N,): the factor of each loss. A segment of weight 0 has no influence, whatever it contains.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all segments (with weights: their weighted mean), the sum, or each loss.

    Returns
    -------
    scalar or ndarray
        The loss in nats: a scalar, or with ``reduction="none"`` an array of shape (N,). It is NaN for an empty
        segment, unless that has weight 0.

    Raises
    ------
    ValueError, TypeError
        As `segment_softmax` for `x` and `indptr`, and as `kl_divergence` for the other arguments.

    See Also
    --------
    segment_kl_divergence_with_grad, kl_divergence

    Notes
    -----
    The bits are those of `kl_divergence`, and so are errors and edge cases. With a temperature T, pass x/T and
    target_logits/T.

    References
    ----------
    S. Kullback, R. A. Leibler, On information and sufficiency, Annals of Mathematical Statistics 22(1), 1951,
    doi:10.1214/aoms/1177729694.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> x, t = np.log([0.5, 0.5, 1.0, 1.0]), np.log([0.9, 0.1, 1.0, 1.0])
    >>> fs.segment_kl_divergence(x, [0, 2, 4], t, reduction="none")
    array([0.36806421, 0.        ])
    """
    options = LossOptions(sample_weight=sample_weight, reduction=reduction)
    return _divergence("segment_kl_divergence", x, indptr, target_logits, reverse, options)


@exchanging
def segment_kl_divergence_with_grad(
    x: Any,
    indptr: Any,
    target_logits: Any,
    *,
    reverse: bool = False,
    sample_weight: Any = None,
    reduction: str = "mean",
    out: Any = None,
) -> tuple[Any, Any]:
    r"""`segment_kl_divergence` and its gradient with respect to `x`, in one pass over both arrays.

    .. math:: \frac{\partial L_n}{\partial x_i} = p_i - q_i, \qquad i \in s_n

    With ``reverse=True`` it is p (log p - log q - L). With ``reduction="mean"`` it is divided by the same number
    as the loss.

    Parameters
    ----------
    x, indptr, target_logits, reverse, sample_weight, reduction
        As for `segment_kl_divergence`.
    out : ndarray, optional
        Where to put the gradient: of its shape and dtype. May be `x` or `target_logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        As `segment_kl_divergence`.
    grad : ndarray
        Of the shape of `x`; exactly 0 in segments of weight 0.

    Raises
    ------
    ValueError, TypeError
        As `segment_kl_divergence`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    segment_kl_divergence, kl_divergence_with_grad

    Notes
    -----
    Errors and edge cases are those of `kl_divergence_grad`.

    References
    ----------
    G. Hinton, O. Vinyals, J. Dean, Distilling the knowledge in a neural network, 2015, arXiv:1503.02531, section
    2.1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> x, t = np.log([0.5, 0.5, 1.0]), np.log([0.9, 0.1, 1.0])
    >>> fs.segment_kl_divergence_with_grad(x, [0, 2, 3], t, reduction="sum")[1]
    array([-0.4,  0.4,  0. ])
    """
    options = LossOptions(sample_weight=sample_weight, reduction=reduction)
    both: tuple[Any, Any] = _divergence(
        "segment_kl_divergence_with_grad", x, indptr, target_logits, reverse, options, out
    )
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
