r"""Objectives for gradient boosting: softmax, binary, multi-label and focal, for XGBoost, LightGBM and CatBoost.

For several classes, each library fits one tree per class and round to the derivatives of the cross-entropy of
softmax(scores). They differ in what they pass to an objective and in what they expect back:

=========== ============================================= ==================================================
library     passes                                        expects back
=========== ============================================= ==================================================
XGBoost     scores (N, K) float32, the DMatrix; its       gradient and curvature, (N, K) each
            scikit-learn classes labels, scores and, by
            name, weights
LightGBM    scores (N, K) float64 column by column, the   gradient and curvature, (N, K) each, which it reads
            Dataset; its scikit-learn classes labels,     column by column
            scores and weights
CatBoost    the K scores of a row, its label and weight   derivatives of *minus* the loss: K, and K by K
=========== ============================================= ==================================================

None of these libraries is imported here. The objectives of XGBoost and LightGBM serve the libraries' ``train`` and
``cv`` and their scikit-learn classes alike, and can be pickled and copied. With p = softmax(scores), one-hot y and
row weight w, the gradient is w (p - y); the curvature is one of

- ``"exact"``: w p (1 - p), the diagonal of the Hessian;
- ``"upper"``: w 2 p (1 - p), as in XGBoost's multi:softprob. As a diagonal matrix it is an upper bound of the
  Hessian, because the absolute values of the off-diagonal entries of a row sum to p (1 - p);
- ``"scaled"``: w K/(K - 1) p (1 - p), as in LightGBM's multiclass. The factor is that of Friedman's LogitBoost.

With ``gamma``, the loss is the focal loss; the diagonal of its Hessian takes the place of p (1 - p). It is
negative for some scores, because this loss is not convex. A booster divides by the curvature of a leaf, so that
smaller ones are replaced by 1e-16.

Objectives for two classes have one score s for each row, and p = 1/(1 + exp(-s)); for multi-label learning, one
for each row and label:

=========== ============================================= ==================================================
library     passes                                        expects back
=========== ============================================= ==================================================
XGBoost     scores (N,) or (N, L) float32, the DMatrix    gradient and curvature, of the shape of the scores
LightGBM    scores (N,) float64, the Dataset; it has no   gradient and curvature, (N,) each
            data sets with several labels
CatBoost    a block of scores, targets and weights (or    pairs of first and second derivatives of *minus*
            None); with several labels, those of a row    the loss; with several labels, L and L by L
=========== ============================================= ==================================================

References
----------
J. H. Friedman, Greedy function approximation: a gradient boosting machine, Annals of Statistics 29(5), 2001,
doi:10.1214/aos/1013203451, section 4.6, algorithm 6.
"""

from typing import Any

import numpy as np

from fastsoftmax.api.losses import cross_entropy_grad, cross_entropy_hessian
from fastsoftmax.arrays.binary import BinaryOptions, binary_derivatives
from fastsoftmax.arrays.blocks import Array, number
from fastsoftmax.arrays.losses import derivatives
from fastsoftmax.arrays.options import LossOptions

__all__ = [
    "CatBoostBinary",
    "CatBoostMultiClass",
    "binary_gradient_and_curvature",
    "gradient_and_curvature",
    "lightgbm_binary_objective",
    "lightgbm_objective",
    "xgboost_binary_objective",
    "xgboost_objective",
]

CURVATURES = ("exact", "upper", "scaled")
LEAST_CURVATURE = 1e-16  # as in XGBoost, which divides by the curvature of a leaf


def _check_curvature(function: str, curvature: Any) -> None:
    if curvature not in CURVATURES:
        raise ValueError(f"{function}: curvature must be one of {CURVATURES}, got {curvature!r}")


def _class_labels(function: str, labels: Any) -> Array:
    """Labels as integers; the boosters keep them as floats."""
    array = np.asarray(labels)
    if array.dtype.kind in "iu":
        return array
    if array.dtype.kind not in "fb":
        raise TypeError(f"{function}: labels have dtype {array.dtype}, expected class indices")
    whole = array.astype(np.float64)
    wrong = ~(np.abs(whole) < 2.0**53) | (whole != np.trunc(whole))
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"{function}: labels[{', '.join(map(str, place))}] is {array[place]}, expected a class index"
        )
    return whole.astype(np.int64)


def _derivatives(
    function: str, scores: Any, labels: Any, weights: Any, curvature: str, gamma: float, classes: int | None
) -> tuple[Array, Array]:
    """Gradient and curvature, (N, K) each, in the dtype and the order in memory of the scores."""
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.shape[1] < 2 or classes not in (None, scores.shape[1]):
        columns = "at least 2" if classes is None else f"{classes}"
        raise ValueError(
            f"{function}: scores have shape {scores.shape}, expected (rows, classes) with {columns} classes; "
            "is num_class among the parameters of the booster?"
        )
    targets = _class_labels(function, labels)
    loss = "focal_loss_grad" if gamma else "cross_entropy_grad"
    options = LossOptions(sample_weight=_given(weights), reduction="sum", gamma=gamma or 0.0)
    gradient, second = derivatives(loss, scores, targets, options)
    if curvature == "upper":
        second *= 2
    elif curvature == "scaled":
        second *= scores.shape[1] / (scores.shape[1] - 1)
    return gradient, second


def _given(weights: Any) -> Any:
    """The weights; None if there are none, for which XGBoost has an empty array."""
    return None if weights is None or np.size(weights) == 0 else weights


def gradient_and_curvature(
    scores: Any, labels: Any, sample_weight: Any = None, *, curvature: str = "exact", gamma: float = 0.0
) -> tuple[Array, Array]:
    r"""Derivatives of the cross-entropy of each row for gradient boosting, from plain arrays.

    .. math:: g_{nk} = w_n (p_{nk} - y_{nk}), \qquad h_{nk} = w_n \, c \, p_{nk} (1 - p_{nk}),
        \qquad p_n = \mathrm{softmax}(s_n)

    with one-hot y, and c = 1, 2 or K/(K - 1).

    Parameters
    ----------
    scores : array_like
        s, of shape (N, K), K at least 2: raw scores, before any softmax.
    labels : array_like
        Shape (N,): class indices from 0 to K - 1, as integers, floats (as in a DMatrix) or bools.
    sample_weight : array_like, optional
        Shape (N,): w. If it is None or an empty array, every w is 1.
    curvature : {"exact", "upper", "scaled"}, default "exact"
        Which c: 1, 2 or K/(K - 1).
    gamma : float, default 0.0
        That of `fastsoftmax.focal_loss`, whose gradient and Hessian diagonal are returned instead if it is not 0.
        Then entries of the curvature may be negative.

    Returns
    -------
    gradient, curvature : ndarray
        Of the shape of `scores`: float32 for float32 scores, float64 for float64 and integers.

    Raises
    ------
    ValueError
        For shapes that do not fit, labels that are not whole numbers, and an unknown curvature.
    TypeError
        For dtypes that are not real numbers.
    IndexError
        For a label outside of 0 .. K - 1. The message names its value and position.

    See Also
    --------
    xgboost_objective, lightgbm_objective, CatBoostMultiClass

    Notes
    -----
    Both come of one pass over the scores, with the bits of the functions for each. They keep their relative
    accuracy where p is close to 1 (see `fastsoftmax.cross_entropy_grad`), so that rows that are already predicted
    well keep their right influence.

    References
    ----------
    J. H. Friedman, Greedy function approximation: a gradient boosting machine, Annals of Statistics 29(5), 2001,
    doi:10.1214/aos/1013203451, section 4.6.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.boosting import gradient_and_curvature
    >>> gradient, curvature = gradient_and_curvature(np.zeros((1, 4)), [1])
    >>> gradient
    array([[ 0.25, -0.75,  0.25,  0.25]])
    >>> curvature
    array([[0.1875, 0.1875, 0.1875, 0.1875]])
    >>> gradient_and_curvature(np.zeros((1, 4)), [1], [2.0], curvature="upper")[1]
    array([[0.75, 0.75, 0.75, 0.75]])
    """
    function = "gradient_and_curvature"
    _check_curvature(function, curvature)
    return _derivatives(function, scores, labels, sample_weight, curvature, gamma, None)


def _binary_derivatives(
    function: str, scores: Any, targets: Any, weights: Any, pos_weight: Any, gamma: float, alpha: Any
) -> tuple[Array, Array]:
    """Gradient and curvature of binary losses, of the shape of the scores."""
    scores, targets, rows = np.asarray(scores), np.asarray(targets), _given(weights)
    if scores.ndim not in (1, 2):
        raise ValueError(f"{function}: scores have shape {scores.shape}, expected (rows,) or (rows, labels)")
    if targets.shape != scores.shape and targets.size == scores.size:
        targets = targets.reshape(scores.shape)  # XGBoost keeps the labels of a row one after the other
    if rows is not None and np.shape(rows) == scores.shape[:1]:
        rows = np.reshape(rows, (-1, *(1,) * (scores.ndim - 1)))
    focal = gamma or alpha is not None
    loss = "binary_focal_loss_grad" if focal else "binary_cross_entropy_grad"
    options = BinaryOptions(pos_weight, rows, gamma=gamma, alpha=alpha, reduction="sum")
    return binary_derivatives(loss, scores, targets, options)


def _check_binary(function: str, pos_weight: Any, gamma: Any, alpha: Any) -> None:
    if pos_weight is not None and (gamma or alpha is not None):
        raise ValueError(
            f"{function}: pos_weight is for the cross-entropy; alpha weighs the classes of a focal loss"
        )


def binary_gradient_and_curvature(
    scores: Any,
    targets: Any,
    sample_weight: Any = None,
    *,
    pos_weight: Any = None,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> tuple[Array, Array]:
    r"""Derivatives of binary losses for gradient boosting, from plain arrays.

    .. math:: g = w (p - t), \qquad h = w \, p (1 - p), \qquad p = \frac{1}{1 + e^{-s}}

    or those of `fastsoftmax.binary_cross_entropy` and `fastsoftmax.binary_focal_loss` with their options.

    Parameters
    ----------
    scores : array_like
        s, of shape (N,), or (N, L) for L labels: raw scores, before any logistic function.
    targets : array_like
        t, from 0 to 1: of the shape of `scores`, or as many numbers in C order.
    sample_weight : array_like, optional
        w: one number for each row, or of the shape of `scores`. If it is None or an empty array, every w is 1.
    pos_weight : float or array_like, optional
        A factor of the loss where t = 1: a number, or one for each label. XGBoost and LightGBM call it
        scale_pos_weight.
    gamma : float, default 0.0
        That of the focal loss.
    alpha : float, optional
        The weight of t = 1 in the focal loss; that of t = 0 is 1 - alpha.

    Returns
    -------
    gradient, curvature : ndarray
        Of the shape of `scores`: float32 for float32 scores, float64 for float64 and integers. The curvature of a
        focal loss may be negative.

    Raises
    ------
    ValueError
        For shapes that do not fit, targets that are not from 0 to 1, and `pos_weight` for a focal loss.
    TypeError
        For dtypes that are not real numbers.

    See Also
    --------
    xgboost_binary_objective, lightgbm_binary_objective, CatBoostBinary

    Notes
    -----
    Both come of one pass over the arrays, with the bits of the functions for each.

    References
    ----------
    T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, Focal loss for dense object detection, 2017,
    arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.boosting import binary_gradient_and_curvature
    >>> binary_gradient_and_curvature(np.zeros(2), [0, 1])
    (array([ 0.5, -0.5]), array([0.25, 0.25]))
    >>> binary_gradient_and_curvature(np.zeros((1, 2)), [[0, 1]], [2.0], pos_weight=3.0)[0]
    array([[ 1., -3.]])
    """
    function = "binary_gradient_and_curvature"
    _check_binary(function, pos_weight, gamma, alpha)
    return _binary_derivatives(function, scores, targets, sample_weight, pos_weight, gamma, alpha)


class _Objective:
    """What the functions for XGBoost and LightGBM return: one callable for two protocols.

    ``train`` passes the scores and a container of labels and weights. The scikit-learn classes pass labels and
    scores. XGBoost's classes add ``sample_weight`` as a keyword if there are weights. LightGBM's classes pass as
    many arguments as the signature has parameters: with 3 parameters the labels, the scores and the weights.
    """

    def __init__(self, function: str, least: float) -> None:
        self._function = function
        self._least = least  # smaller curvatures are replaced by this one

    def _of(self, scores: Any, labels: Any, weights: Any) -> tuple[Array, Array]:
        """Gradient and curvature."""
        raise NotImplementedError

    def __call__(
        self, scores_or_labels: Any, data_or_scores: Any, sample_weight: Any = None
    ) -> tuple[Array, Array]:
        if hasattr(data_or_scores, "get_label"):
            scores, data = scores_or_labels, data_or_scores
            labels, weights = data.get_label(), data.get_weight()
        else:
            labels, scores, weights = scores_or_labels, data_or_scores, sample_weight
        gradient, second = self._of(scores, labels, weights)
        if self._least > 0.0:
            np.maximum(second, second.dtype.type(self._least), out=second)
        return gradient, second


class _Softmax(_Objective):
    """The objectives for several classes."""

    def __init__(self, function: str, num_class: int | None, curvature: str, gamma: float, least: float) -> None:
        _check_curvature(function, curvature)
        self._gamma = number(function, "gamma", gamma, 0.0, inclusive=True)
        super().__init__(function, LEAST_CURVATURE if self._gamma else least)
        self._num_class = num_class
        self._curvature = curvature

    def __repr__(self) -> str:
        focal = f", gamma={self._gamma!r}" if self._gamma else ""
        return f"{self._function}({self._num_class}, curvature={self._curvature!r}{focal})"

    def _of(self, scores: Any, labels: Any, weights: Any) -> tuple[Array, Array]:
        options = self._curvature, self._gamma, self._num_class
        return _derivatives(self._function, scores, labels, weights, *options)


class _Binary(_Objective):
    """The objectives with one score for each row and label."""

    def __init__(self, function: str, pos_weight: Any, gamma: float, alpha: Any, least: float) -> None:
        self._gamma = number(function, "gamma", gamma, 0.0, inclusive=True)
        _check_binary(function, pos_weight, self._gamma, alpha)
        super().__init__(function, LEAST_CURVATURE if self._gamma else least)
        self._pos_weight = pos_weight
        self._alpha = alpha

    def __repr__(self) -> str:
        options = f"pos_weight={self._pos_weight!r}, gamma={self._gamma!r}, alpha={self._alpha!r}"
        return f"{self._function}({options})"

    def _of(self, scores: Any, labels: Any, weights: Any) -> tuple[Array, Array]:
        options = self._pos_weight, self._gamma, self._alpha
        return _binary_derivatives(self._function, scores, labels, weights, *options)


def xgboost_objective(num_class: int | None = None, *, curvature: str = "upper", gamma: float = 0.0) -> _Objective:
    r"""Softmax objective for ``xgboost.train(params, dtrain, obj=...)`` and ``XGBClassifier(objective=...)``.

    Parameters
    ----------
    num_class : int, optional
        K, which is then checked. `train` needs it too: ``params["num_class"]``. XGBClassifier counts the classes.
    curvature : {"exact", "upper", "scaled"}, default "upper"
        As for `gradient_and_curvature`; "upper" is that of XGBoost's multi:softprob. As there, a curvature below
        1e-16 is replaced by 1e-16.
    gamma : float, default 0.0
        That of `fastsoftmax.focal_loss`.

    Returns
    -------
    callable
        ``objective(predt, dtrain) -> (grad, hess)``: raw scores of shape (N, K); labels and weights are those of
        the DMatrix. ``objective(y_true, y_pred, sample_weight=None) -> (grad, hess)`` in the scikit-learn classes.
        Both results have shape (N, K), as XGBoost requires since 2.1. The callable can be pickled and copied.

    Raises
    ------
    ValueError
        For an unknown curvature and a negative gamma; when called, as `gradient_and_curvature`.

    Notes
    -----
    The predictions of a booster with a custom objective are raw scores. `fastsoftmax.softmax` over the last axis
    gives the probabilities; XGBClassifier computes them itself. For two classes it uses one score for each row,
    unless ``num_class=2`` is among its parameters. With the default curvature and the same ``base_score`` the
    trees are those of multi:softprob, up to rounding.

    References
    ----------
    T. Chen, C. Guestrin, XGBoost: a scalable tree boosting system, 2016, doi:10.1145/2939672.2939785;
    J. H. Friedman, Annals of Statistics 29(5), 2001, doi:10.1214/aos/1013203451.

    Examples
    --------
    ``xgboost.train({"num_class": 3}, dtrain, 50, obj=xgboost_objective(3))`` calls it so:

    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from fastsoftmax.boosting import xgboost_objective
    >>> matrix = SimpleNamespace(get_label=lambda: np.array([1.0]), get_weight=lambda: np.array([]))
    >>> objective = xgboost_objective(2)
    >>> objective(np.zeros((1, 2), np.float32), matrix)
    (array([[ 0.5, -0.5]], dtype=float32), array([[0.5, 0.5]], dtype=float32))
    """
    return _Softmax("xgboost_objective", num_class, curvature, gamma, LEAST_CURVATURE)


def xgboost_binary_objective(
    *, pos_weight: float | None = None, gamma: float = 0.0, alpha: float | None = None
) -> _Objective:
    r"""Binary, multi-label or focal objective for XGBoost.

    Parameters
    ----------
    pos_weight, gamma, alpha
        As for `binary_gradient_and_curvature`.

    Returns
    -------
    callable
        ``objective(predt, dtrain) -> (grad, hess)`` for ``xgboost.train(params, dtrain, obj=...)``: raw scores of
        shape (N,), or (N, L) if the DMatrix has L labels for each row. ``objective(y_true, y_pred,
        sample_weight=None)`` for the scikit-learn classes. Results have the shape of the scores. As in XGBoost, a
        curvature below 1e-16 is replaced by 1e-16. The callable can be pickled and copied.

    Raises
    ------
    ValueError
        For a negative gamma, and `pos_weight` for a focal loss; when called, as `binary_gradient_and_curvature`.

    Notes
    -----
    Predictions are raw scores; `fastsoftmax.expit` gives the probabilities. Without gamma and alpha, the trees are
    those of binary:logistic, up to rounding, if the boosters begin at the same score: ``base_score`` is a score
    here, and a probability there, so that 0.0 here is 0.5 there. `pos_weight` is its scale_pos_weight.

    References
    ----------
    T. Chen, C. Guestrin, XGBoost: a scalable tree boosting system, 2016, doi:10.1145/2939672.2939785;
    T.-Y. Lin et al., Focal loss for dense object detection, 2017, arXiv:1708.02002.

    Examples
    --------
    ``xgboost.train({}, dtrain, 50, obj=xgboost_binary_objective())`` calls it so:

    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from fastsoftmax.boosting import xgboost_binary_objective
    >>> matrix = SimpleNamespace(get_label=lambda: np.array([1.0]), get_weight=lambda: np.array([]))
    >>> xgboost_binary_objective()(np.zeros(1, np.float32), matrix)
    (array([-0.5], dtype=float32), array([0.25], dtype=float32))
    """
    return _Binary("xgboost_binary_objective", pos_weight, gamma, alpha, LEAST_CURVATURE)


def lightgbm_objective(
    num_class: int | None = None, *, curvature: str = "scaled", gamma: float = 0.0
) -> _Objective:
    r"""Softmax objective for ``lightgbm.train({"objective": ...}, ...)`` and ``LGBMClassifier(objective=...)``.

    Parameters
    ----------
    num_class : int, optional
        K, which is then checked. `train` needs it too: ``params["num_class"]``. LGBMClassifier counts the classes.
    curvature : {"exact", "upper", "scaled"}, default "scaled"
        As for `gradient_and_curvature`; "scaled" is that of LightGBM's multiclass.
    gamma : float, default 0.0
        That of `fastsoftmax.focal_loss`. Then a curvature below 1e-16 is replaced by 1e-16.

    Returns
    -------
    callable
        ``objective(preds, train_data) -> (grad, hess)``: raw scores of shape (N, K); labels and weights are those
        of the Dataset. ``objective(y_true, y_pred, weight) -> (grad, hess)`` in the scikit-learn classes. Both
        results have shape (N, K), as LightGBM requires since 4.0. The callable can be pickled and copied.

    Raises
    ------
    ValueError
        For an unknown curvature and a negative gamma; when called, as `gradient_and_curvature`.

    Notes
    -----
    LightGBM keeps scores and derivatives in memory class by class. The scores are read without a copy, and the
    results have the same order in memory, so that LightGBM needs no copy either.

    The predictions of a booster with a custom objective are raw scores, also those of `predict` and
    `predict_proba` of LGBMClassifier. `fastsoftmax.softmax` over the last axis gives the probabilities. For two
    classes LGBMClassifier uses one score for each row, unless ``num_class=2`` and ``metric="multi_logloss"`` are
    among its parameters. With the default curvature and ``boost_from_average=False`` the trees are those of
    multiclass, up to rounding.

    References
    ----------
    G. Ke et al., LightGBM: a highly efficient gradient boosting decision tree, NeurIPS 30, 2017;
    J. H. Friedman, Annals of Statistics 29(5), 2001, doi:10.1214/aos/1013203451.

    Examples
    --------
    ``lightgbm.train({"objective": lightgbm_objective(3), "num_class": 3}, dataset, 50)`` calls it so:

    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from fastsoftmax.boosting import lightgbm_objective
    >>> dataset = SimpleNamespace(get_label=lambda: np.array([1.0]), get_weight=lambda: None)
    >>> objective = lightgbm_objective(2)
    >>> objective(np.zeros((1, 2)), dataset)
    (array([[ 0.5, -0.5]]), array([[0.5, 0.5]]))
    """
    return _Softmax("lightgbm_objective", num_class, curvature, gamma, 0.0)


def lightgbm_binary_objective(
    *, pos_weight: float | None = None, gamma: float = 0.0, alpha: float | None = None
) -> _Objective:
    r"""Binary or focal objective for LightGBM.

    Parameters
    ----------
    pos_weight, gamma, alpha
        As for `binary_gradient_and_curvature`.

    Returns
    -------
    callable
        ``objective(preds, train_data) -> (grad, hess)`` for ``lightgbm.train({"objective": ...}, ...)``: raw
        scores of shape (N,). ``objective(y_true, y_pred, weight)`` for the scikit-learn classes. Results have the
        shape of the scores. With gamma, a curvature below 1e-16 is replaced by 1e-16. The callable can be pickled
        and copied.

    Raises
    ------
    ValueError
        For a negative gamma, and `pos_weight` for a focal loss; when called, as `binary_gradient_and_curvature`.

    Notes
    -----
    Predictions are raw scores; `fastsoftmax.expit` gives the probabilities. With ``boost_from_average=False``,
    without gamma and alpha, the trees are those of binary, up to rounding; `pos_weight` is its scale_pos_weight.

    References
    ----------
    G. Ke et al., LightGBM: a highly efficient gradient boosting decision tree, NeurIPS 30, 2017;
    T.-Y. Lin et al., Focal loss for dense object detection, 2017, arXiv:1708.02002.

    Examples
    --------
    ``lightgbm.train({"objective": lightgbm_binary_objective()}, dataset, 50)`` calls it so:

    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from fastsoftmax.boosting import lightgbm_binary_objective
    >>> dataset = SimpleNamespace(get_label=lambda: np.array([1.0]), get_weight=lambda: None)
    >>> lightgbm_binary_objective()(np.zeros(1), dataset)
    (array([-0.5]), array([0.25]))
    """
    return _Binary("lightgbm_binary_objective", pos_weight, gamma, alpha, 0.0)


class CatBoostMultiClass:
    r"""Softmax objective for CatBoost, as ``loss_function=CatBoostMultiClass()``.

    CatBoost calls `calc_ders_multi` for each row. It maximises, so that it expects the derivatives of minus the
    loss, and the second derivatives as a full matrix.

    .. math:: d_k = w (y_k - p_k), \qquad D_{jk} = w (p_j p_k - [j = k] \, p_j)

    Notes
    -----
    CatBoost also needs ``eval_metric="MultiClass"``, because it cannot report a custom loss. Predictions of type
    "RawFormulaVal" are the scores, and `fastsoftmax.softmax` of them gives the probabilities. CatBoost makes a
    Python call for each row and round, which is slow: use this class for small data and for comparison.

    References
    ----------
    L. Prokhorenkova et al., CatBoost: unbiased boosting with categorical features, NeurIPS 31, 2018,
    arXiv:1706.09516; J. H. Friedman, Annals of Statistics 29(5), 2001, doi:10.1214/aos/1013203451.

    Examples
    --------
    >>> from fastsoftmax.boosting import CatBoostMultiClass
    >>> first, second = CatBoostMultiClass().calc_ders_multi([0.0, 0.0], 1.0, 1.0)
    >>> first
    [-0.5, 0.5]
    >>> second
    [[-0.25, 0.25], [0.25, -0.25]]
    """

    no_jit = True  # else CatBoost tries to compile the method, and warns for each row that it cannot

    def calc_ders_multi(
        self, approxes: Any, target: float, weight: float
    ) -> tuple[list[float], list[list[float]]]:
        """First and second derivatives of minus the loss of one row.

        Parameters
        ----------
        approxes : sequence of float
            The K scores.
        target : float
            The class index.
        weight : float
            The weight of the row.

        Returns
        -------
        first : list of K floats
            w (y - p).
        second : list of K lists of K floats
            w (p p^T - diag(p)).

        Raises
        ------
        ValueError, IndexError
            For a target that is no whole number, or outside of 0 .. K - 1.
        """
        scores = _floats(approxes)
        label = _class_labels("CatBoostMultiClass", target)
        first = cross_entropy_grad(scores, label, sample_weight=weight, reduction="sum")
        second = cross_entropy_hessian(scores, label, sample_weight=weight, reduction="sum")
        return (-first).tolist(), (-second).tolist()


class CatBoostBinary:
    r"""Binary, multi-label or focal objective for CatBoost, as ``loss_function=CatBoostBinary()``.

    CatBoost maximises, so that it expects the derivatives of minus the loss. It calls `calc_ders_range` for blocks
    of rows; for several labels, `calc_ders_multi` for each row.

    Parameters
    ----------
    pos_weight, gamma, alpha
        As for `binary_gradient_and_curvature`. A curvature of the focal loss below 1e-16 is replaced by 1e-16.

    Raises
    ------
    ValueError
        For a negative gamma, and `pos_weight` for a focal loss.

    Notes
    -----
    CatBoost also needs ``eval_metric="Logloss"`` ("MultiLogloss" for several labels), because it cannot report a
    custom loss. It recognises objectives for several labels by their class: derive yours from this one and from
    ``catboost.MultiTargetCustomObjective``. Predictions of type "RawFormulaVal" are the scores.

    References
    ----------
    L. Prokhorenkova et al., CatBoost: unbiased boosting with categorical features, NeurIPS 31, 2018,
    arXiv:1706.09516; T.-Y. Lin et al., Focal loss for dense object detection, 2017, arXiv:1708.02002.

    Examples
    --------
    >>> from fastsoftmax.boosting import CatBoostBinary
    >>> CatBoostBinary().calc_ders_range([0.0, 0.0], [0.0, 1.0], None)
    [(-0.5, -0.25), (0.5, -0.25)]
    """

    no_jit = True  # as in `CatBoostMultiClass`

    def __init__(self, *, pos_weight: float | None = None, gamma: float = 0.0, alpha: float | None = None) -> None:
        self._objective = _Binary("CatBoostBinary", pos_weight, gamma, alpha, 0.0)

    def calc_ders_range(self, approxes: Any, targets: Any, weights: Any) -> list[tuple[float, float]]:
        """First and second derivatives of minus the loss of each row.

        Parameters
        ----------
        approxes, targets : sequence of float
            The scores and the targets.
        weights : sequence of float or None
            The weights of the rows.

        Returns
        -------
        list of pairs of floats
            w (t - p) and -w p (1 - p), or those of the focal loss.

        Raises
        ------
        ValueError
            For a target that is not from 0 to 1.
        """
        rows = None if weights is None else _floats(weights)
        first, second = self._objective(_floats(targets), _floats(approxes), rows)
        return list(zip((-first).tolist(), (-second).tolist(), strict=True))

    def calc_ders_multi(self, approxes: Any, targets: Any, weight: float) -> tuple[list[float], list[list[float]]]:
        """First and second derivatives of minus the loss of one row with several labels.

        Parameters
        ----------
        approxes, targets : sequence of L floats
            The scores and the targets.
        weight : float
            The weight of the row.

        Returns
        -------
        first : list of L floats
        second : list of L lists of L floats
            A diagonal matrix.

        Raises
        ------
        ValueError
            For a target that is not from 0 to 1.
        """
        scores = _floats(approxes)
        first, second = self._objective(_floats(targets), scores, np.full(scores.size, float(weight)))
        return (-first).tolist(), np.diag(-second).tolist()


def _floats(values: Any) -> Array:
    """A sequence of CatBoost as an array."""
    return np.array([float(value) for value in values])
