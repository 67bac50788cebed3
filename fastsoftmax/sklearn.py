"""A scikit-learn estimator on `fastsoftmax.fit_temperature`, for the extra ``sklearn``.

``CalibratedClassifierCV(method="temperature", ensemble=False)`` of scikit-learn fits the same model by a bounded
scalar search, each trial of which computes the loss; here, Newton's method reads the logits five to eight times.
"""

import math
import warnings
from typing import Any

import numpy as np

from fastsoftmax.api.activations import log_softmax, softmax
from fastsoftmax.arrays.calibration import NoMinimumError, fit_temperature

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import cross_val_predict
    from sklearn.utils import column_or_1d, get_tags, indexable
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, has_fit_parameter
except ImportError as error:
    raise ImportError(
        "fastsoftmax.sklearn needs scikit-learn 1.6 or later: pip install 'fastsoftmax[sklearn]'"
    ) from error

__all__ = ["TemperatureScaling"]


def _logits(scores: Any, method: str, classes: int) -> Any:
    """One column for each class, from what the method of a classifier returned."""
    scores = np.asarray(scores)
    if method == "predict_proba":
        scores = np.log(np.maximum(scores, np.finfo(np.result_type(scores, np.float32)).eps))
    elif scores.ndim == 1:  # the logit of the second of two classes
        scores = np.stack([np.zeros_like(scores), scores], axis=1)
    if scores.shape[1:] != (classes,):
        raise ValueError(
            f"TemperatureScaling: {method} of the classifier has shape {scores.shape}, expected one column for "
            f"each of {classes} classes"
        )
    return scores


class TemperatureScaling(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc,unused-ignore]
    r"""A classifier whose probabilities are calibrated by one temperature.

    .. math:: p = \mathrm{softmax}(z / T)

    with the logits z of a classifier. T minimises the mean cross-entropy of logits that were predicted in
    cross-validation, each by a copy of the classifier that had not seen its row. The classifier itself is fitted
    to all rows.

    Parameters
    ----------
    estimator : classifier
        A classifier of scikit-learn's interface, with ``decision_function`` or ``predict_proba``. Of one that is
        fitted already, ``sklearn.frozen.FrozenEstimator(classifier)`` keeps the fit: then the rows given to `fit`
        are for the temperature alone, and should not be those that the classifier has been fitted to.
    cv : int, splitter or iterable, optional
        How the rows are divided, as in ``sklearn.model_selection.cross_val_predict``: by default into five parts
        with equal shares of the classes.
    bounds : (float, float), default (0.01, 100)
        The least and the greatest temperature. If the loss has no minimum between, ``temperature_`` is the bound
        with the lesser loss, and there is a ``ConvergenceWarning``.
    n_jobs : int, optional
        How many processes fit copies of the classifier, as in ``cross_val_predict``.

    Attributes
    ----------
    temperature_ : float
        T. Above 1, the classifier was too sure.
    estimator_ : classifier
        The classifier, fitted to all rows.
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    n_features_in_ : int
        The number of features, if the classifier counts them.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, if the classifier knows them.

    See Also
    --------
    fastsoftmax.fit_temperature, fastsoftmax.metrics.RunningMetrics

    Notes
    -----
    The logits are those of ``decision_function``, and (0, z) if it returns one number z for two classes; of a
    classifier that has no such method, the logarithms of its probabilities, with the roundoff of their dtype in
    the place of smaller ones. scikit-learn takes (-z, z) for two classes, so that its temperature is twice this
    one, with the same probabilities.

    References
    ----------
    C. Guo et al., On calibration of modern neural networks, 2017, arXiv:1706.04599.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from sklearn.metrics import log_loss
    >>> from fastsoftmax.sklearn import TemperatureScaling
    >>> X, y = load_digits(return_X_y=True)
    >>> model = TemperatureScaling(GaussianNB()).fit(X[:1200], y[:1200])
    >>> bool(model.temperature_ > 5)  # the probabilities of naive Bayes are too close to 0 and 1
    True
    >>> loss = log_loss(y[1200:], model.predict_proba(X[1200:]))
    >>> bool(loss < log_loss(y[1200:], model.estimator_.predict_proba(X[1200:])) / 2)
    True
    """

    def __init__(
        self,
        estimator: Any,
        *,
        cv: Any = None,
        bounds: tuple[float, float] = (0.01, 100.0),
        n_jobs: int | None = None,
    ) -> None:
        self.estimator = estimator
        self.cv = cv
        self.bounds = bounds
        self.n_jobs = n_jobs

    @property
    def n_features_in_(self) -> int:
        """The number of features, if the classifier counts them."""
        return self.estimator_.n_features_in_

    @property
    def feature_names_in_(self) -> Any:
        """The names of the features, if the classifier knows them."""
        return self.estimator_.feature_names_in_

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "TemperatureScaling":  # noqa: N803
        """Fit the classifier and the temperature.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            What the classifier takes.
        y : array_like of shape (n_samples,)
            The labels.
        sample_weight : array_like of shape (n_samples,), optional
            Weights of the rows, for the temperature, and for the classifier if its ``fit`` takes them.

        Returns
        -------
        TemperatureScaling
            This object.

        Raises
        ------
        ValueError
            If `bounds` are not two numbers with 0 < low <= high, if the classifier's scores do not have one column
            for each class, and as `fastsoftmax.fit_temperature` and the classifier.
        TypeError
            If the classifier has neither ``decision_function`` nor ``predict_proba``.
        """
        low, high = self._bounds()
        method = self._method(self.estimator)
        check_classification_targets(y)
        X, y = indexable(X, column_or_1d(y, warn=True))  # noqa: N806
        options = {}
        if sample_weight is not None:
            sample_weight = np.asarray(sample_weight, np.float64)
            if has_fit_parameter(self.estimator, "sample_weight"):
                options["sample_weight"] = sample_weight
        scores = cross_val_predict(
            self.estimator, X, y, cv=self.cv, method=method, params=options, n_jobs=self.n_jobs
        )
        fitted = clone(self.estimator).fit(X, y, **options)
        logits = _logits(scores, method, len(fitted.classes_))
        labels = np.searchsorted(fitted.classes_, y)
        self.temperature_ = self._temperature(logits, labels, sample_weight, low, high)
        self.estimator_, self.classes_ = fitted, fitted.classes_
        return self

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        """The probabilities of the classes.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            What the classifier takes.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            softmax(z / T), with the classes in the order of ``classes_``.
        """
        return softmax(self._scores(X), temperature=self.temperature_)

    def predict_log_proba(self, X: Any) -> Any:  # noqa: N803
        """The logarithms of the probabilities, also where these round to 0 or 1.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            What the classifier takes.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            log softmax(z / T), with the classes in the order of ``classes_``.
        """
        return log_softmax(self._scores(X), temperature=self.temperature_)

    def predict(self, X: Any) -> Any:  # noqa: N803
        """The class with the greatest logit, on which the temperature has no influence.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            What the classifier takes.

        Returns
        -------
        ndarray of shape (n_samples,)
            Labels.
        """
        best = self._scores(X).argmax(axis=1)
        return self.classes_[best]

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks an estimator: sparse input is for the classifier to take or to refuse."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = get_tags(self.estimator).input_tags.sparse
        return tags

    def _scores(self, X: Any) -> Any:  # noqa: N803
        check_is_fitted(self)
        method = self._method(self.estimator_)
        return _logits(getattr(self.estimator_, method)(X), method, len(self.classes_))

    def _method(self, estimator: Any) -> str:
        for method in ("decision_function", "predict_proba"):
            if hasattr(estimator, method):
                return method
        raise TypeError(
            f"TemperatureScaling: estimator is {estimator!r}, expected a classifier with decision_function or "
            "predict_proba"
        )

    def _bounds(self) -> tuple[float, float]:
        try:
            low, high = (float(bound) for bound in self.bounds)
        except (TypeError, ValueError):
            low, high = math.nan, math.nan
        if not 0 < low <= high < math.inf:
            raise ValueError(
                f"TemperatureScaling: bounds are {self.bounds!r}, expected two numbers with 0 < low <= high"
            )
        return low, high

    def _temperature(self, logits: Any, labels: Any, sample_weight: Any, low: float, high: float) -> float:
        try:
            found = fit_temperature("TemperatureScaling", logits, labels, -1, sample_weight, None).temperature
        except NoMinimumError as error:
            found = error.limit
        bounded = min(max(found, low), high)
        if bounded != found:
            # As a function of 1/T the loss is convex, so that the nearer bound is the better one.
            warnings.warn(
                f"TemperatureScaling: the loss decreases beyond bounds={self.bounds!r}; the temperature is "
                f"{bounded}",
                ConvergenceWarning,
                stacklevel=3,
            )
        return bounded
