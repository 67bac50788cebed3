"""cross_entropy and squared_error, with their gradients and Hessians."""

from typing import TYPE_CHECKING, Any, overload

from fastsoftmax.arrays.blocks import LAST
from fastsoftmax.arrays.losses import curvature, loss, small_cross_entropy
from fastsoftmax.arrays.options import MEAN, NO_Z_LOSS, UNSMOOTHED, LossOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastsoftmax._types import Arrays, ArrayT, FloatT, Mean, Numbers, Other, Reduction, Rows


if TYPE_CHECKING:

    @overload
    def cross_entropy(
        logits: NDArray[FloatT],
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Mean = "mean",
    ) -> FloatT: ...

    @overload
    def cross_entropy(
        logits: NDArray[FloatT],
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Rows,
    ) -> NDArray[FloatT]: ...

    @overload
    def cross_entropy(
        logits: ArrayT,
        targets: Arrays,
        axis: int | str = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
    ) -> ArrayT: ...

    @overload
    def cross_entropy(
        logits: Numbers,
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Mean = "mean",
    ) -> np.float64: ...

    @overload
    def cross_entropy(
        logits: Numbers | Other,
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
    ) -> Any: ...


def cross_entropy(
    logits: Any,
    targets: Any,
    axis: int | str = LAST,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = UNSMOOTHED,
    z_loss: float = NO_Z_LOSS,
    softcap: float | None = None,
    reduction: str = MEAN,
) -> Any:
    r"""Cross-entropy of softmax(logits) against class indices or distributions.

    .. math:: L_n = -\sum_j y_{nj} \log p_{nj}, \qquad p_n = \mathrm{softmax}(z_n)

    Parameters
    ----------
    logits : array_like
        z, of any shape with at least one axis. float32 and float64 are kept; float16 and ``ml_dtypes.bfloat16``
        are computed in float32 and returned in their dtype; integers and bools become float64.
    targets : array_like
        Class indices of any integer dtype, of the shape of `logits` without `axis`; or a distribution for each
        row, of the shape of `logits` and any real dtype, which need not sum to 1.
    axis : int, default -1
        The axis of the classes.
    class_weight : array_like, optional
        Shape (K,): the weight of each class, a factor of -y_j log p_j. So the loss of a row with a class index is
        multiplied by the weight of its class.
    sample_weight : array_like, optional
        One number for each row, which multiplies its loss. A row of weight 0 has loss 0, whatever its logits.
    ignore_index : int, optional
        Rows with this class index, valid or not, have no influence, whatever their logits. Not for distributions.
    label_smoothing : float, default 0.0
        From 0 to 1: the share of the uniform distribution that is mixed into every target.
    z_loss : float, default 0.0
        The factor of the square of the log-sum-exp of each row, which is added to its loss. `class_weight` does
        not enter this term; `sample_weight` and `reduction` do. Without classes, the square is inf.
    softcap : float, optional
        c: the logits are first replaced by c tanh(logits/c). This makes -c of -inf.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all rows, their sum, or the loss of each row. With class indices and weights, the sum is
        divided by the sum of the weights of the rows that count (nan if that is 0), and a common power of two of
        all weights does not change the mean. With distributions, it is divided by the number of rows.

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
    The loss of a row is within 4 ulp, also for a confident row, whose loss is tiny. A class with target 0 and
    logit -inf adds 0. The logits are read once and nothing of their size is allocated.

    With `softcap`, these bounds hold for the capped logits, which are within 3 ulp and are rounded to the dtype of
    the computation. With `z_loss` or `softcap`, every thread needs memory for one row, or some rows of up to 64 kB
    (float32), and an array whose classes are not last in memory is copied.

    The class axis of a Dask array may be cut into chunks, with all options: each chunk is read once for the loss,
    and once more for the gradient.

    References
    ----------
    C. M. Bishop, Pattern Recognition and Machine Learning, 2006, section 4.3.4.

    Gemma Team, Gemma 2: Improving Open Language Models at a Practical Size, 2024, arXiv:2408.00118 (`softcap`).
    A. Chowdhery et al., PaLM: Scaling Language Modeling with Pathways, 2022, arXiv:2204.02311, section 5
    (`z_loss`).

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
    small = small_cross_entropy(
        logits,
        targets,
        axis,
        class_weight,
        sample_weight,
        ignore_index,
        label_smoothing,
        reduction,
        z_loss,
        softcap,
        None,
        False,
    )
    if small is not None:
        return small[0]
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, reduction, z_loss, softcap)
    return loss("cross_entropy", logits, targets, axis, options)


if TYPE_CHECKING:

    @overload
    def cross_entropy_grad(
        logits: NDArray[FloatT],
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: NDArray[FloatT] | None = None,
    ) -> NDArray[FloatT]: ...

    @overload
    def cross_entropy_grad(
        logits: ArrayT,
        targets: Arrays,
        axis: int | str = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: ArrayT | None = None,
    ) -> ArrayT: ...

    @overload
    def cross_entropy_grad(
        logits: Numbers,
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]: ...

    @overload
    def cross_entropy_grad(
        logits: Other,
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: Any = None,
    ) -> Any: ...


def cross_entropy_grad(
    logits: Any,
    targets: Any,
    axis: int | str = LAST,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = UNSMOOTHED,
    z_loss: float = NO_Z_LOSS,
    softcap: float | None = None,
    reduction: str = MEAN,
    out: Any = None,
) -> Any:
    r"""Gradient of `cross_entropy` with respect to the logits.

    .. math:: \frac{\partial L_n}{\partial z_{ni}} = p_{ni} \sum_j y_{nj} - y_{ni}

    which is p - y for one-hot targets; with ``reduction="mean"`` it is divided by the number of rows.

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap
        As for `cross_entropy`.
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
        As `cross_entropy`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    cross_entropy_with_grad : loss and gradient in one pass.

    Notes
    -----
    The error is within 4 ulp for class indices, also at the target of a confident row: there the gradient is
    computed as minus the sum of the other probabilities, not as p - 1.

    The gradient is exactly 0 in rows that are ignored or have sample weight 0. If the classes of all other rows
    have weight 0, the mean divides by 0, and the gradients and Hessians of those rows are nan, as in PyTorch.

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
    small = small_cross_entropy(
        logits,
        targets,
        axis,
        class_weight,
        sample_weight,
        ignore_index,
        label_smoothing,
        reduction,
        z_loss,
        softcap,
        out,
        True,
    )
    if small is not None:
        return small[1]
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, reduction, z_loss, softcap)
    return loss("cross_entropy_grad", logits, targets, axis, options, out)


if TYPE_CHECKING:

    @overload
    def cross_entropy_with_grad(
        logits: NDArray[FloatT],
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Mean = "mean",
        out: NDArray[FloatT] | None = None,
    ) -> tuple[FloatT, NDArray[FloatT]]: ...

    @overload
    def cross_entropy_with_grad(
        logits: NDArray[FloatT],
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Rows,
        out: NDArray[FloatT] | None = None,
    ) -> tuple[NDArray[FloatT], NDArray[FloatT]]: ...

    @overload
    def cross_entropy_with_grad(
        logits: ArrayT,
        targets: Arrays,
        axis: int | str = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: ArrayT | None = None,
    ) -> tuple[ArrayT, ArrayT]: ...

    @overload
    def cross_entropy_with_grad(
        logits: Numbers | Other,
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: Any = None,
    ) -> tuple[Any, Any]: ...


def cross_entropy_with_grad(
    logits: Any,
    targets: Any,
    axis: int | str = LAST,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = UNSMOOTHED,
    z_loss: float = NO_Z_LOSS,
    softcap: float | None = None,
    reduction: str = MEAN,
    out: Any = None,
) -> tuple[Any, Any]:
    """`cross_entropy` and `cross_entropy_grad` in one pass over the logits.

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap, reduction
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
    both = small_cross_entropy(
        logits,
        targets,
        axis,
        class_weight,
        sample_weight,
        ignore_index,
        label_smoothing,
        reduction,
        z_loss,
        softcap,
        out,
        True,
    )
    if both is None:
        options = LossOptions(
            class_weight, sample_weight, ignore_index, label_smoothing, reduction, z_loss, softcap
        )
        both = loss("cross_entropy_with_grad", logits, targets, axis, options, out)
    return both


if TYPE_CHECKING:

    @overload
    def cross_entropy_hvp(
        logits: NDArray[FloatT],
        targets: Arrays,
        tangent: NDArray[FloatT],
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: NDArray[FloatT] | None = None,
    ) -> NDArray[FloatT]: ...

    @overload
    def cross_entropy_hvp(
        logits: ArrayT,
        targets: Arrays,
        tangent: Arrays,
        axis: int | str = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: ArrayT | None = None,
    ) -> ArrayT: ...

    @overload
    def cross_entropy_hvp(
        logits: Arrays,
        targets: Arrays,
        tangent: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: Any = None,
    ) -> Any: ...


def cross_entropy_hvp(
    logits: Any,
    targets: Any,
    tangent: Any,
    axis: int | str = -1,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = UNSMOOTHED,
    z_loss: float = NO_Z_LOSS,
    softcap: float | None = None,
    reduction: str = MEAN,
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
    axis, class_weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap
        As for `cross_entropy`.
    reduction : {"mean", "sum", "none"}, default "mean"
        The reduction of the loss; "sum" and "none" have the same Hessian.
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
    Entry k is p_k sum_j p_j (v_k - v_j), times the weight of the row. Its error is at most 4 eps times the sum of
    the absolute values of these terms, also in a confident row; that is 4 ulp if all terms have the same sign.

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
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, reduction, z_loss, softcap)
    return curvature("cross_entropy_hvp", logits, targets, tangent, axis, options, out)


if TYPE_CHECKING:

    @overload
    def cross_entropy_hessian_diag(
        logits: NDArray[FloatT],
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: NDArray[FloatT] | None = None,
    ) -> NDArray[FloatT]: ...

    @overload
    def cross_entropy_hessian_diag(
        logits: ArrayT,
        targets: Arrays,
        axis: int | str = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: ArrayT | None = None,
    ) -> ArrayT: ...

    @overload
    def cross_entropy_hessian_diag(
        logits: Numbers,
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]: ...

    @overload
    def cross_entropy_hessian_diag(
        logits: Other,
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: Any = None,
    ) -> Any: ...


def cross_entropy_hessian_diag(
    logits: Any,
    targets: Any,
    axis: int | str = -1,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = UNSMOOTHED,
    z_loss: float = NO_Z_LOSS,
    softcap: float | None = None,
    reduction: str = MEAN,
    out: Any = None,
) -> Any:
    r"""Diagonal of the Hessian of `cross_entropy` with respect to the logits.

    .. math:: (H_n)_{kk} = \Bigl(\sum_j y_{nj}\Bigr) p_{nk} (1 - p_{nk})

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap
        As for `cross_entropy`.
    reduction : {"mean", "sum", "none"}, default "mean"
        The reduction of the loss; "sum" and "none" have the same Hessian.
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
    The error is within 4 ulp: where p is close to 1, 1 - p is computed as the sum of the other probabilities.

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
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, reduction, z_loss, softcap)
    return curvature("cross_entropy_hessian_diag", logits, targets, None, axis, options, out)


if TYPE_CHECKING:

    @overload
    def cross_entropy_hessian(
        logits: NDArray[FloatT],
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: NDArray[FloatT] | None = None,
    ) -> NDArray[FloatT]: ...

    @overload
    def cross_entropy_hessian(
        logits: ArrayT,
        targets: Arrays,
        axis: int | str = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: ArrayT | None = None,
    ) -> ArrayT: ...

    @overload
    def cross_entropy_hessian(
        logits: Numbers,
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]: ...

    @overload
    def cross_entropy_hessian(
        logits: Other,
        targets: Arrays,
        axis: int = -1,
        *,
        class_weight: Arrays | None = None,
        sample_weight: Arrays | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        out: Any = None,
    ) -> Any: ...


def cross_entropy_hessian(
    logits: Any,
    targets: Any,
    axis: int | str = -1,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = UNSMOOTHED,
    z_loss: float = NO_Z_LOSS,
    softcap: float | None = None,
    reduction: str = MEAN,
    out: Any = None,
) -> Any:
    r"""Hessian of `cross_entropy` with respect to the logits of each row.

    .. math:: H_n = \Bigl(\sum_j y_{nj}\Bigr) \bigl(\mathrm{diag}(p_n) - p_n p_n^\top\bigr)

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap
        As for `cross_entropy`.
    reduction : {"mean", "sum", "none"}, default "mean"
        The reduction of the loss; "sum" and "none" have the same Hessian.
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
    Each entry that is a normal number has a relative error of at most 4 eps; the matrices are exactly symmetric.

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
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, reduction, z_loss, softcap)
    return curvature("cross_entropy_hessian", logits, targets, None, axis, options, out)


if TYPE_CHECKING:

    @overload
    def squared_error(
        logits: NDArray[FloatT],
        targets: Arrays,
        axis: int = -1,
        *,
        sample_weight: Arrays | None = None,
        reduction: Mean = "mean",
    ) -> FloatT: ...

    @overload
    def squared_error(
        logits: NDArray[FloatT],
        targets: Arrays,
        axis: int = -1,
        *,
        sample_weight: Arrays | None = None,
        reduction: Rows,
    ) -> NDArray[FloatT]: ...

    @overload
    def squared_error(
        logits: ArrayT,
        targets: Arrays,
        axis: int | str = -1,
        *,
        sample_weight: Arrays | None = None,
        reduction: Reduction = "mean",
    ) -> ArrayT: ...

    @overload
    def squared_error(
        logits: Numbers,
        targets: Arrays,
        axis: int = -1,
        *,
        sample_weight: Arrays | None = None,
        reduction: Mean = "mean",
    ) -> np.float64: ...

    @overload
    def squared_error(
        logits: Numbers | Other,
        targets: Arrays,
        axis: int = -1,
        *,
        sample_weight: Arrays | None = None,
        reduction: Reduction = "mean",
    ) -> Any: ...


def squared_error(
    logits: Any, targets: Any, axis: int | str = -1, *, sample_weight: Any = None, reduction: str = "mean"
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
        One number for each row, which multiplies its loss. A row of weight 0 has loss 0, whatever its logits.
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
    The error of a loss is at most 4 eps times sum_k \|d_k\| (p_k + \|t_k\|)/2 with d = p - t, which is 4 ulp where
    p and t do not cancel. Where p is close to 1, d is computed as (1 - t) - (1 - p), from an accurate 1 - p.

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
    options = LossOptions(sample_weight=sample_weight, reduction=reduction)
    return loss("squared_error", logits, targets, axis, options)


if TYPE_CHECKING:

    @overload
    def squared_error_grad(
        logits: NDArray[FloatT],
        targets: Arrays,
        axis: int = -1,
        *,
        sample_weight: Arrays | None = None,
        reduction: Reduction = "mean",
        out: NDArray[FloatT] | None = None,
    ) -> NDArray[FloatT]: ...

    @overload
    def squared_error_grad(
        logits: ArrayT,
        targets: Arrays,
        axis: int | str = -1,
        *,
        sample_weight: Arrays | None = None,
        reduction: Reduction = "mean",
        out: ArrayT | None = None,
    ) -> ArrayT: ...

    @overload
    def squared_error_grad(
        logits: Numbers,
        targets: Arrays,
        axis: int = -1,
        *,
        sample_weight: Arrays | None = None,
        reduction: Reduction = "mean",
        out: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]: ...

    @overload
    def squared_error_grad(
        logits: Other,
        targets: Arrays,
        axis: int = -1,
        *,
        sample_weight: Arrays | None = None,
        reduction: Reduction = "mean",
        out: Any = None,
    ) -> Any: ...


def squared_error_grad(
    logits: Any,
    targets: Any,
    axis: int | str = -1,
    *,
    sample_weight: Any = None,
    reduction: str = MEAN,
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
        The reduction of the loss; "sum" and "none" have the same gradient.
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
    Entry k is p_k sum_j p_j (d_k - d_j) with d = p - t, computed as in `squared_error`. Its error is at most 4 eps
    times the sum of the absolute values of these terms, also in a confident row.

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
    options = LossOptions(sample_weight=sample_weight, reduction=reduction)
    return loss("squared_error_grad", logits, targets, axis, options, out)


if TYPE_CHECKING:

    @overload
    def squared_error_with_grad(
        logits: NDArray[FloatT],
        targets: Arrays,
        axis: int = -1,
        *,
        sample_weight: Arrays | None = None,
        reduction: Mean = "mean",
        out: NDArray[FloatT] | None = None,
    ) -> tuple[FloatT, NDArray[FloatT]]: ...

    @overload
    def squared_error_with_grad(
        logits: NDArray[FloatT],
        targets: Arrays,
        axis: int = -1,
        *,
        sample_weight: Arrays | None = None,
        reduction: Rows,
        out: NDArray[FloatT] | None = None,
    ) -> tuple[NDArray[FloatT], NDArray[FloatT]]: ...

    @overload
    def squared_error_with_grad(
        logits: ArrayT,
        targets: Arrays,
        axis: int | str = -1,
        *,
        sample_weight: Arrays | None = None,
        reduction: Reduction = "mean",
        out: ArrayT | None = None,
    ) -> tuple[ArrayT, ArrayT]: ...

    @overload
    def squared_error_with_grad(
        logits: Numbers | Other,
        targets: Arrays,
        axis: int = -1,
        *,
        sample_weight: Arrays | None = None,
        reduction: Reduction = "mean",
        out: Any = None,
    ) -> tuple[Any, Any]: ...


def squared_error_with_grad(
    logits: Any,
    targets: Any,
    axis: int | str = -1,
    *,
    sample_weight: Any = None,
    reduction: str = MEAN,
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
    options = LossOptions(sample_weight=sample_weight, reduction=reduction)
    both: tuple[Any, Any] = loss("squared_error_with_grad", logits, targets, axis, options, out)
    return both
