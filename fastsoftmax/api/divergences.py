"""kl_divergence and js_divergence, with their gradients."""

from typing import Any

from fastsoftmax.arrays.blocks import LAST, UNTEMPERED
from fastsoftmax.arrays.losses import divergence
from fastsoftmax.arrays.options import HALF, MEAN, LossOptions


def kl_divergence(
    logits: Any,
    target_logits: Any,
    axis: int = LAST,
    *,
    temperature: float = UNTEMPERED,
    reverse: bool = False,
    sample_weight: Any = None,
    reduction: str = MEAN,
) -> Any:
    r"""Kullback-Leibler divergence of softmax(logits) from softmax(target_logits), as in distillation.

    .. math:: L_n = \mathrm{KL}(q_n \,\|\, p_n) = \sum_j q_{nj} (\log q_{nj} - \log p_{nj}), \qquad
        p_n = \mathrm{softmax}(z_n / T), \quad q_n = \mathrm{softmax}(t_n / T)

    Parameters
    ----------
    logits : array_like
        z, of any shape with at least one axis. float32 and float64 are kept; float16 is computed in float32 and
        returned as float16; integers and bools become float64.
    target_logits : array_like
        t, of the shape of `logits` and any real dtype; they are converted to the dtype of the computation.
    axis : int, default -1
        The axis of the classes.
    temperature : float, default 1.0
        T > 0, of both. There is no factor T**2, which some authors multiply the loss by.
    reverse : bool, default False
        The divergence KL(p || q) instead, which has its mean over p.
    sample_weight : array_like, optional
        One number for each row, which multiplies its loss. A row of weight 0 has loss 0, whatever its logits.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all rows (with weights: their weighted mean, nan if the weights add up to 0), their sum, or
        the loss of each row. The mean is what PyTorch calls "batchmean".

    Returns
    -------
    scalar or ndarray
        The loss in nats: a scalar, or with ``reduction="none"`` an array with one number for each row. It is never
        negative.

    Raises
    ------
    ValueError
        If `target_logits` has another shape than `logits`, for weights of another shape, an unknown reduction, and
        a temperature that is not finite and above 0.
    TypeError
        For dtypes that are not real numbers, and a `reverse` that is not a bool.
    numpy.exceptions.AxisError
        For an axis that `logits` does not have.

    See Also
    --------
    kl_divergence_grad, kl_divergence_with_grad
    js_divergence : a symmetric and bounded divergence.
    cross_entropy : for distributions that are given as probabilities.

    Notes
    -----
    The divergence is the cross-entropy of p relative to q, minus the entropy of q. Its error is at most 4 eps (5
    with a temperature) times the sum of these two, so that it is within 4 ulp where they do not cancel. Equal
    logits give exactly 0.

    A class with q_j = 0 adds 0, also if p_j = 0. If q_j > 0 for a class whose logit is -inf, so that p_j = 0, the
    divergence is inf. A row that holds NaN or +inf, in either array, holds nothing but -inf or has no classes,
    gives NaN.

    A Dask array whose class axis is cut is first brought into chunks of whole rows, so that the results have the
    bits of those in memory.

    References
    ----------
    S. Kullback, R. A. Leibler, On information and sufficiency, Annals of Mathematical Statistics 22(1), 1951,
    doi:10.1214/aoms/1177729694. G. Hinton, O. Vinyals, J. Dean, Distilling the knowledge in a neural network,
    2015, arXiv:1503.02531.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> student, teacher = np.log([[0.5, 0.5], [0.5, 0.5]]), np.log([[0.5, 0.5], [0.9, 0.1]])
    >>> fs.kl_divergence(student, teacher, reduction="none")
    array([0.        , 0.36806421])
    >>> fs.kl_divergence(student, teacher, reduction="none", reverse=True)
    array([0.        , 0.51082562])
    """
    options = LossOptions(
        sample_weight=sample_weight, reduction=reduction, temperature=temperature, reverse=reverse
    )
    return divergence("kl_divergence", logits, target_logits, axis, options)


def kl_divergence_grad(
    logits: Any,
    target_logits: Any,
    axis: int = LAST,
    *,
    temperature: float = UNTEMPERED,
    reverse: bool = False,
    sample_weight: Any = None,
    reduction: str = MEAN,
    out: Any = None,
) -> Any:
    r"""Gradient of `kl_divergence` with respect to the logits.

    .. math:: \frac{\partial\, \mathrm{KL}(q_n \,\|\, p_n)}{\partial z_{nk}} = \frac{p_{nk} - q_{nk}}{T}, \qquad
        \frac{\partial\, \mathrm{KL}(p_n \,\|\, q_n)}{\partial z_{nk}} =
        \frac{p_{nk}}{T} \Bigl(\log \frac{p_{nk}}{q_{nk}} - \mathrm{KL}(p_n \,\|\, q_n)\Bigr)

    The second is that with ``reverse=True``; with ``reduction="mean"`` they are divided by the number of rows or
    the sum of their weights.

    Parameters
    ----------
    logits, target_logits, axis, temperature, reverse, sample_weight
        As for `kl_divergence`.
    reduction : {"mean", "sum", "none"}, default "mean"
        The reduction of the loss; "sum" and "none" have the same gradient.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `logits` or `target_logits` itself.

    Returns
    -------
    ndarray
        The gradient, of the shape of `logits`; exactly 0 in rows of weight 0.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `kl_divergence`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    kl_divergence_with_grad : loss and gradient in one pass.

    Notes
    -----
    The error of p - q is at most 4 eps (5 with a temperature) times p + q, over T. Where both are above 1/2, it is
    computed as (1 - q) - (1 - p), with an error relative to the sum of these two.

    The error of the other gradient is at most 4 eps (5 with a temperature) times p_k (s_k + S)/T. Here s_k is a
    sum of distances of logits from the greatest one of their row, over T: of the logit and the target logit of
    class k, and of the target logit at the greatest logit. It is 0 at the greatest logit if there is only one. S
    is the mean of s over p.

    The first gradient is finite, p - q, also where the divergence is inf. In a row whose reversed divergence is
    inf, the second one is undefined: it is NaN where p_k > 0.

    References
    ----------
    G. Hinton, O. Vinyals, J. Dean, Distilling the knowledge in a neural network, 2015, arXiv:1503.02531, section
    2.1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> student, teacher = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    >>> fs.kl_divergence_grad(student, teacher)
    array([[-0.4,  0.4]])
    """
    options = LossOptions(
        sample_weight=sample_weight, reduction=reduction, temperature=temperature, reverse=reverse
    )
    return divergence("kl_divergence_grad", logits, target_logits, axis, options, out)


def kl_divergence_with_grad(
    logits: Any,
    target_logits: Any,
    axis: int = LAST,
    *,
    temperature: float = UNTEMPERED,
    reverse: bool = False,
    sample_weight: Any = None,
    reduction: str = MEAN,
    out: Any = None,
) -> tuple[Any, Any]:
    """`kl_divergence` and `kl_divergence_grad` in one pass over both arrays.

    Parameters
    ----------
    logits, target_logits, axis, temperature, reverse, sample_weight, reduction
        As for `kl_divergence`.
    out : ndarray, optional
        Where to put the gradient: of its shape and dtype. May be `logits` or `target_logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        As `kl_divergence`.
    grad : ndarray
        As `kl_divergence_grad`.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `kl_divergence_grad`.

    References
    ----------
    G. Hinton, O. Vinyals, J. Dean, Distilling the knowledge in a neural network, 2015, arXiv:1503.02531, section
    2.1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> loss, grad = fs.kl_divergence_with_grad(np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]]), temperature=2.0)
    >>> round(float(loss), 12), grad
    (0.130812035941, array([[-0.125,  0.125]]))
    """
    options = LossOptions(
        sample_weight=sample_weight, reduction=reduction, temperature=temperature, reverse=reverse
    )
    both: tuple[Any, Any] = divergence("kl_divergence_with_grad", logits, target_logits, axis, options, out)
    return both


def js_divergence(
    logits: Any,
    target_logits: Any,
    axis: int = LAST,
    *,
    temperature: float = UNTEMPERED,
    beta: float = HALF,
    sample_weight: Any = None,
    reduction: str = MEAN,
) -> Any:
    r"""Jensen-Shannon divergence of softmax(logits) and softmax(target_logits).

    .. math:: L_n = \beta\, \mathrm{KL}(q_n \,\|\, m_n) + (1 - \beta)\, \mathrm{KL}(p_n \,\|\, m_n), \qquad
        m_n = \beta q_n + (1 - \beta) p_n

    with p = softmax(logits/T) and q = softmax(target_logits/T).

    Parameters
    ----------
    logits, target_logits, axis, temperature
        As for `kl_divergence`.
    beta : float, default 0.5
        The share of q in the mixture m, above 0 and below 1. For small ones, the divergence is about beta KL(q ||
        p), for those close to 1 about (1 - beta) KL(p || q).
    sample_weight, reduction
        As for `kl_divergence`.

    Returns
    -------
    scalar or ndarray
        The loss in nats: a scalar, or with ``reduction="none"`` an array with one number for each row, from 0 to
        log 2 (for ``beta=0.5``).

    Raises
    ------
    ValueError
        As `kl_divergence`, and for a `beta` that is not above 0 and below 1.
    TypeError, numpy.exceptions.AxisError
        As `kl_divergence`.

    See Also
    --------
    js_divergence_grad, js_divergence_with_grad
    kl_divergence

    Notes
    -----
    The divergence is a sum over classes of terms that are not negative. Its error is at most 4 eps (5 with a
    temperature) times the divergence plus the sum over classes of

    .. math:: c_j \, |\log p_j - \log q_j| \, \min(p_j, q_j) \, (1 + |\log p_j| + |\log q_j|)

    where c is the share of the smaller of p and q in m. Equal logits give exactly 0, and for ``beta=0.5`` the
    divergence is symmetric.

    Classes of probability 0, in one distribution or in both, are no exception: the divergence and its gradient are
    always finite. A row that holds NaN or +inf, in either array, holds nothing but -inf or has no classes, gives
    NaN.

    A Dask array whose class axis is cut is first brought into chunks of whole rows, so that the results have the
    bits of those in memory.

    References
    ----------
    J. Lin, Divergence measures based on the Shannon entropy, IEEE Transactions on Information Theory 37(1), 1991,
    doi:10.1109/18.61115. R. Agarwal et al., On-policy distillation of language models: learning from
    self-generated mistakes, 2024, arXiv:2306.13649, section 2 (`beta`).

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.js_divergence([[0.0, 0.0], [0.0, -np.inf]], [[5.0, 5.0], [-np.inf, 0.0]], reduction="none")
    array([0.        , 0.69314718])
    """
    options = LossOptions(sample_weight=sample_weight, reduction=reduction, temperature=temperature, beta=beta)
    return divergence("js_divergence", logits, target_logits, axis, options)


def js_divergence_grad(
    logits: Any,
    target_logits: Any,
    axis: int = LAST,
    *,
    temperature: float = UNTEMPERED,
    beta: float = HALF,
    sample_weight: Any = None,
    reduction: str = MEAN,
    out: Any = None,
) -> Any:
    r"""Gradient of `js_divergence` with respect to the logits.

    .. math:: \frac{\partial L_n}{\partial z_{nk}} = \frac{1 - \beta}{T}\, p_{nk}
        \Bigl(\log \frac{p_{nk}}{m_{nk}} - \mathrm{KL}(p_n \,\|\, m_n)\Bigr)

    With ``reduction="mean"`` it is divided by the number of rows or the sum of their weights.

    Parameters
    ----------
    logits, target_logits, axis, temperature, beta, sample_weight
        As for `js_divergence`.
    reduction : {"mean", "sum", "none"}, default "mean"
        The reduction of the loss; "sum" and "none" have the same gradient.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `logits` or `target_logits` itself.

    Returns
    -------
    ndarray
        The gradient, of the shape of `logits`; exactly 0 in rows of weight 0.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `js_divergence`, and for an unfit `out`; nothing is written to `out` then.

    See Also
    --------
    js_divergence_with_grad : loss and gradient in one pass.

    Notes
    -----
    The gradient at a logit of -inf is 0. Where log(p_k/m_k) is close to its mean, the two terms cancel; their
    logarithms have the errors of `kl_divergence`'s.

    References
    ----------
    J. Lin, Divergence measures based on the Shannon entropy, IEEE Transactions on Information Theory 37(1), 1991,
    doi:10.1109/18.61115.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> fs.js_divergence_grad(np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])).round(6)
    array([[-0.105912,  0.105912]])
    """
    options = LossOptions(sample_weight=sample_weight, reduction=reduction, temperature=temperature, beta=beta)
    return divergence("js_divergence_grad", logits, target_logits, axis, options, out)


def js_divergence_with_grad(
    logits: Any,
    target_logits: Any,
    axis: int = LAST,
    *,
    temperature: float = UNTEMPERED,
    beta: float = HALF,
    sample_weight: Any = None,
    reduction: str = MEAN,
    out: Any = None,
) -> tuple[Any, Any]:
    """`js_divergence` and `js_divergence_grad` in one call.

    Parameters
    ----------
    logits, target_logits, axis, temperature, beta, sample_weight, reduction
        As for `js_divergence`.
    out : ndarray, optional
        Where to put the gradient: of its shape and dtype. May be `logits` or `target_logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        As `js_divergence`.
    grad : ndarray
        As `js_divergence_grad`.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `js_divergence_grad`.

    References
    ----------
    J. Lin, Divergence measures based on the Shannon entropy, IEEE Transactions on Information Theory 37(1), 1991,
    doi:10.1109/18.61115.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> loss, grad = fs.js_divergence_with_grad(np.zeros((1, 2)), np.zeros((1, 2)))
    >>> float(loss), grad
    (0.0, array([[0., 0.]]))
    """
    options = LossOptions(sample_weight=sample_weight, reduction=reduction, temperature=temperature, beta=beta)
    both: tuple[Any, Any] = divergence("js_divergence_with_grad", logits, target_logits, axis, options, out)
    return both
