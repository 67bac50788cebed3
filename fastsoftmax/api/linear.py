"""The cross-entropy of logits that are never held: features times the weights of many classes."""

from typing import TYPE_CHECKING, Any, overload

from fastsoftmax.arrays.lazy import exchanging
from fastsoftmax.arrays.linear import BLOCK_BYTES, WRT, LinearGradients, loss, statistics
from fastsoftmax.arrays.linear_hessian import hessian_product
from fastsoftmax.arrays.options import MEAN, NO_Z_LOSS, UNSMOOTHED, LossOptions
from fastsoftmax.arrays.statistics import LabelStatistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastsoftmax._types import Arrays, ArrayT, FloatT, Mean, Numbers, Other, Reduction, Rows


if TYPE_CHECKING:

    @overload
    def linear_cross_entropy(
        features: NDArray[FloatT],
        weight: NDArray[FloatT],
        targets: Arrays,
        bias: NDArray[FloatT] | None = None,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Mean = "mean",
        block_bytes: int = BLOCK_BYTES,
    ) -> FloatT: ...

    @overload
    def linear_cross_entropy(
        features: NDArray[FloatT],
        weight: NDArray[FloatT],
        targets: Arrays,
        bias: NDArray[FloatT] | None = None,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Rows,
        block_bytes: int = BLOCK_BYTES,
    ) -> NDArray[FloatT]: ...

    @overload
    def linear_cross_entropy(
        features: ArrayT,
        weight: Arrays,
        targets: Arrays,
        bias: Arrays | None = None,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        block_bytes: int = BLOCK_BYTES,
    ) -> ArrayT: ...

    @overload
    def linear_cross_entropy(
        features: Arrays,
        weight: Arrays,
        targets: Arrays,
        bias: Arrays | None = None,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        block_bytes: int = BLOCK_BYTES,
    ) -> Any: ...


@exchanging
def linear_cross_entropy(
    features: Any,
    weight: Any,
    targets: Any,
    bias: Any = None,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = UNSMOOTHED,
    z_loss: float = NO_Z_LOSS,
    softcap: float | None = None,
    reduction: str = MEAN,
    block_bytes: int = BLOCK_BYTES,
) -> Any:
    r"""Cross-entropy of the logits features @ weight.T + bias, which are never held all at once.

    .. math:: L_n = -\log p_{n y_n}, \qquad p_n = \mathrm{softmax}(W x_n + b)

    Parameters
    ----------
    features : array_like
        x, of shape (..., D): a vector for each row. float32 and float64 are kept; float16 and
        ``ml_dtypes.bfloat16`` are computed in float32 and returned in their dtype; integers and bools become
        float64.
    weight : array_like
        W, of shape (K, D): a vector for each class. Float dtypes as for `features`; the computation is in float64
        if one of the arrays has it.
    targets : array_like
        Class indices of any integer dtype, of the shape of `features` without the last axis.
    bias : array_like, optional
        b, of shape (K,).
    class_weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap, reduction
        As for `cross_entropy` with class indices. Rows that do not count (ignored, or of weight 0) take no time.
    block_bytes : int, default 128 MiB
        The size of the workspace for logits. It holds whole rows of them, as many as fit; or, if these are fewer
        than 256 (for gradients, 64) and not all, the logits of some classes.

    Returns
    -------
    scalar or ndarray
        The loss in nats: a scalar, or with ``reduction="none"`` an array with one number for each row.

    Raises
    ------
    ValueError
        If the shapes do not fit, for an unknown reduction, and for options out of range.
    TypeError
        For dtypes that are not real numbers, and class indices that are not integers.
    IndexError
        For a class index outside of 0 .. K - 1: the message names its value and position.

    See Also
    --------
    linear_cross_entropy_with_grad, cross_entropy

    Notes
    -----
    Products are computed by NumPy's BLAS, in blocks of rows and of classes. The logits of a block are rounded as
    BLAS rounds them. So the bits of the results, other than those of this library's other functions, depend on the
    number of BLAS's threads, on its version, and on `block_bytes`. The loss is within 1e-7 (relative, float32) for
    logits of some units; where they are larger, their rounding errors grow with them, and so do those of the loss.

    Besides the workspace, memory is needed for some numbers of each row. Arrays of another dtype, memory order or
    on disk (``numpy.memmap``) are read in blocks and never converted as a whole. With Dask arrays, which may be
    cut over the rows, the result is lazy; `weight` has to be in memory.

    References
    ----------
    E. Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024, arXiv:2411.09009.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> features, weight = np.eye(2), np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    >>> round(float(fs.linear_cross_entropy(features, weight, np.array([0, 2]))), 12)
    0.753109126556
    >>> fs.linear_cross_entropy(features, weight, np.array([0, 2]), reduction="none")
    array([0.40760596, 1.09861229])
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, reduction, z_loss, softcap)
    value, _ = loss("linear_cross_entropy", features, weight, targets, bias, options, block_bytes)
    return value


if TYPE_CHECKING:

    @overload
    def linear_cross_entropy_with_grad(
        features: NDArray[FloatT],
        weight: NDArray[FloatT],
        targets: Arrays,
        bias: NDArray[FloatT] | None = None,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Mean = "mean",
        wrt: str | Sequence[str] = WRT,
        skip: bool = False,
        block_bytes: int = BLOCK_BYTES,
    ) -> tuple[FloatT, LinearGradients]: ...

    @overload
    def linear_cross_entropy_with_grad(
        features: NDArray[FloatT],
        weight: NDArray[FloatT],
        targets: Arrays,
        bias: NDArray[FloatT] | None = None,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Rows,
        wrt: str | Sequence[str] = WRT,
        skip: bool = False,
        block_bytes: int = BLOCK_BYTES,
    ) -> tuple[NDArray[FloatT], LinearGradients]: ...

    @overload
    def linear_cross_entropy_with_grad(
        features: ArrayT,
        weight: Arrays,
        targets: Arrays,
        bias: Arrays | None = None,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        wrt: str | Sequence[str] = WRT,
        skip: bool = False,
        block_bytes: int = BLOCK_BYTES,
    ) -> tuple[ArrayT, LinearGradients]: ...

    @overload
    def linear_cross_entropy_with_grad(
        features: Arrays,
        weight: Arrays,
        targets: Arrays,
        bias: Arrays | None = None,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        wrt: str | Sequence[str] = WRT,
        skip: bool = False,
        block_bytes: int = BLOCK_BYTES,
    ) -> tuple[Any, LinearGradients]: ...


@exchanging
def linear_cross_entropy_with_grad(
    features: Any,
    weight: Any,
    targets: Any,
    bias: Any = None,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = UNSMOOTHED,
    z_loss: float = NO_Z_LOSS,
    softcap: float | None = None,
    reduction: str = MEAN,
    wrt: Any = WRT,
    skip: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[Any, LinearGradients]:
    r"""`linear_cross_entropy` and its gradients with respect to features, weight and bias.

    With the gradient G of the loss with respect to the logits (`cross_entropy_grad`):

    .. math:: \frac{\partial L}{\partial X} = G W, \qquad \frac{\partial L}{\partial W} = G^\top X,
        \qquad \frac{\partial L}{\partial b} = G^\top 1

    Parameters
    ----------
    features, weight, targets, bias
        As for `linear_cross_entropy`.
    class_weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap
        As for `cross_entropy` with class indices.
    reduction : {"mean", "sum", "none"}, default "mean"
        The reduction of the loss; "sum" and "none" have the same gradients, which are those of the sum.
    wrt : sequence of {"features", "weight", "bias"}
        The gradients that are computed; each of the first two is a product of matrices.
    skip : bool, default False
        Leave out products with groups of classes whose gradients are all so small that they hardly matter: below a
        sixteenth of the resolution of the dtype of `features` (2**-12 for bfloat16), times the common factor of
        the gradients (1/N of a mean) and the greatest weights of a row and of a class. Every entry of G that is
        left out is below that.
    block_bytes : int, default 128 MiB
        As for `linear_cross_entropy`. If it holds some classes only, the logits are computed twice.

    Returns
    -------
    loss : scalar or ndarray
        As `linear_cross_entropy`.
    gradients : LinearGradients
        A named tuple (features, weight, bias) of arrays with the shapes and dtypes of the arguments; None for what
        was not asked for, and for the bias if there is none.

    Raises
    ------
    ValueError, TypeError, IndexError
        As `linear_cross_entropy`, and for a wrong `wrt`.

    See Also
    --------
    linear_cross_entropy, cross_entropy_with_grad

    Notes
    -----
    Gradients are within 3e-6 of their largest entry (float32), for logits of some units: see
    `linear_cross_entropy`. Those of weights and bias are sums over the rows,
    and within 2e-7 where many rows are added up for each class: if K D is at most four million, blocks of rows are
    added up in float64. The rows of `features` that do not count have gradient 0 and take no time. Bits depend on
    BLAS, as those of `linear_cross_entropy` do.

    BLAS's threads wait for more work by spinning, some 100 ms after each product. So half of the threads
    (`threads`) compute the losses between products, which is faster than all of them.

    References
    ----------
    E. Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024, arXiv:2411.09009.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> loss, gradients = fs.linear_cross_entropy_with_grad(np.ones((1, 1)), np.zeros((4, 1)), np.array([1]))
    >>> float(loss)
    1.3862943611198906
    >>> gradients.weight
    array([[ 0.25],
           [-0.75],
           [ 0.25],
           [ 0.25]])
    >>> gradients.features, gradients.bias
    (array([[0.]]), None)
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, reduction, z_loss, softcap)
    function = "linear_cross_entropy_with_grad"
    return loss(function, features, weight, targets, bias, options, block_bytes, wrt, skip)


if TYPE_CHECKING:

    @overload
    def linear_cross_entropy_hvp(
        features: NDArray[Any] | Numbers | Other,
        weight: Arrays,
        targets: Arrays,
        tangent: Arrays,
        bias: Arrays | None = None,
        tangent_bias: Arrays | None = None,
        *,
        logits: Arrays | None = None,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        block_bytes: int = BLOCK_BYTES,
    ) -> LinearGradients: ...

    @overload
    def linear_cross_entropy_hvp(
        features: ArrayT,
        weight: Arrays,
        targets: Arrays,
        tangent: Arrays,
        bias: Arrays | None = None,
        tangent_bias: Arrays | None = None,
        *,
        logits: Arrays | None = None,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        block_bytes: int = BLOCK_BYTES,
    ) -> LinearGradients: ...


@exchanging
def linear_cross_entropy_hvp(
    features: Any,
    weight: Any,
    targets: Any,
    tangent: Any,
    bias: Any = None,
    tangent_bias: Any = None,
    *,
    logits: Any = None,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = UNSMOOTHED,
    z_loss: float = NO_Z_LOSS,
    softcap: float | None = None,
    reduction: str = MEAN,
    block_bytes: int = BLOCK_BYTES,
) -> LinearGradients:
    r"""Hessian-vector product of `linear_cross_entropy` with respect to weight and bias.

    With the tangents t = V x + c of the logits of a row and the Hessian H of its loss (`cross_entropy_hvp`):

    .. math:: u_n = H_n (V x_n + c), \qquad \sum_n u_n x_n^\top, \qquad \sum_n u_n

    Parameters
    ----------
    features, weight, targets
        As for `linear_cross_entropy`.
    tangent : array_like
        V, of the shape of `weight`. The tangents are converted to the dtype that the other arrays ask for.
    bias, tangent_bias : array_like, optional
        b and c, of shape (K,). None stands for zeros.
    logits : array_like, optional
        ``features @ weight.T + bias``, of shape (..., K), if you have them: they are read instead of being
        computed again, which saves a product of matrices. Newton's method calls the function many times with the
        same weights. They are converted as the tangents are.
    class_weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap
        As for `cross_entropy` with class indices.
    reduction : {"mean", "sum", "none"}, default "mean"
        The reduction of the loss; "sum" and "none" have the same Hessian.
    block_bytes : int, default 128 MiB
        The size of the workspace, half of it for logits and half for their tangents. Each half holds whole rows,
        as many as fit; or, if these are fewer than 32 and not all, the numbers of some classes.

    Returns
    -------
    LinearGradients
        A named tuple (None, weight, bias): the product, in the shapes and dtypes of the arguments; None for the
        bias if neither `bias` nor `tangent_bias` is passed.

    Raises
    ------
    ValueError, TypeError, IndexError
        As `linear_cross_entropy`, and for tangents or logits of another shape.

    See Also
    --------
    linear_cross_entropy_with_grad, cross_entropy_hvp

    Notes
    -----
    It takes three products of matrices, or five if the workspace holds some classes only; with `logits`, two or
    three. Newton's method with conjugate gradients needs no more of the Hessian. With Dask arrays, which may be
    cut over the rows, the result is lazy; `weight` and `tangent` have to be in memory.

    References
    ----------
    D. Boehning, Multinomial logistic regression algorithm, Annals of the Institute of Statistical Mathematics
    44(1), 1992, doi:10.1007/BF00048682.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> weight, tangent = np.zeros((2, 1)), np.array([[1.0], [0.0]])
    >>> features, targets = np.ones((1, 1)), np.array([0])
    >>> fs.linear_cross_entropy_hvp(features, weight, targets, tangent).weight
    array([[ 0.25],
           [-0.25]])
    >>> fs.linear_cross_entropy_hvp(features, weight, targets, tangent, logits=features @ weight.T).weight
    array([[ 0.25],
           [-0.25]])
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, reduction, z_loss, softcap)
    arguments = (features, weight, targets, tangent, bias, tangent_bias, logits, options, block_bytes)
    return hessian_product("linear_cross_entropy_hvp", *arguments)


if TYPE_CHECKING:

    @overload
    def linear_softmax_statistics(
        features: NDArray[Any] | Numbers | Other,
        weight: Arrays,
        targets: Arrays,
        bias: Arrays | None = None,
        *,
        ignore_index: int | None = None,
        softcap: float | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> LabelStatistics: ...

    @overload
    def linear_softmax_statistics(
        features: ArrayT,
        weight: Arrays,
        targets: Arrays,
        bias: Arrays | None = None,
        *,
        ignore_index: int | None = None,
        softcap: float | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> LabelStatistics: ...


@exchanging
def linear_softmax_statistics(
    features: Any,
    weight: Any,
    targets: Any,
    bias: Any = None,
    *,
    ignore_index: int | None = None,
    softcap: float | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> LabelStatistics:
    r"""`label_statistics` of the logits features @ weight.T + bias, which are never held all at once.

    .. math:: p_n = \mathrm{softmax}(W x_n + b), \qquad \log p_{n y_n}, \qquad
        \#\{k : z_{nk} > z_{n y_n}\}, \qquad \arg\max_k z_{nk}, \qquad -\sum_k p_{nk} \log p_{nk}, \qquad
        \log \sum_k e^{z_{nk}}

    Parameters
    ----------
    features, weight, targets, bias
        As for `linear_cross_entropy`.
    ignore_index : int, optional
        Rows with this class index take no time: their log-probability, entropy and log-sum-exp are 0, their rank
        and greatest class -1.
    softcap : float, optional
        c: the logits are first replaced by c tanh(logits/c).
    block_bytes : int, default 128 MiB
        The size of the workspace for logits, which holds the logits of at least one row.

    Returns
    -------
    LabelStatistics
        A named tuple of arrays with one number for each row: ``log_prob``, ``rank`` (the number of classes whose
        logit is strictly greater than that of the label), ``argmax``, ``entropy`` and ``logsumexp``.

    Raises
    ------
    ValueError, TypeError, IndexError
        As `linear_cross_entropy`.

    See Also
    --------
    label_statistics, linear_cross_entropy

    Notes
    -----
    The logits are rounded as BLAS rounds them, so that the order of nearly equal ones may depend on the number of
    its threads and on `block_bytes`.

    References
    ----------
    E. Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024, arXiv:2411.09009.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> weight = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    >>> found = fs.linear_softmax_statistics(np.eye(2), weight, np.array([1, 2]))
    >>> found.rank, found.argmax
    (array([1, 0]), array([0, 0]))
    >>> found.log_prob
    array([-1.40760596, -1.09861229])
    """
    options = LossOptions(ignore_index=ignore_index, softcap=softcap)
    return statistics("linear_softmax_statistics", features, weight, targets, bias, options, block_bytes)
