"""`fastsoftmax.sklearn`: scikit-learn's own checks, the temperature, the limits, and what it says without it."""

import pickle

import child
import numpy as np
import pytest

import fastsoftmax as fs

pytest.importorskip("sklearn", "1.6")

from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, LeaveOneOut, StratifiedKFold, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator

from fastsoftmax.sklearn import TemperatureScaling


def data(classes=3, rows=400, **options):
    options = {"n_informative": 4, "n_features": 6, "flip_y": 0.2, "random_state": 0} | options
    return make_classification(rows, n_classes=classes, **options)


@pytest.mark.filterwarnings("ignore")  # of the classifiers, for the checks' tiny data
@pytest.mark.parametrize("classifier", [RidgeClassifier(), GaussianNB()], ids=lambda c: type(c).__name__)
def test_scikit_learns_checks(classifier):
    """All of them: none is expected to fail. By decision_function, and by predict_proba."""
    found = check_estimator(TemperatureScaling(classifier), on_skip=None)
    assert len(found) > 40
    assert {check["status"] for check in found} <= {"passed", "skipped"}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("names", [False, True])
def test_temperature(classes, names):
    """It is that of the logits predicted in cross-validation, and the classifier is fitted to all rows."""
    X, y = data(classes)
    labels = np.array(["a", "c", "b"])[y] if names else y
    model = TemperatureScaling(LogisticRegression()).fit(X, labels)
    logits = cross_val_predict(LogisticRegression(), X, labels, method="decision_function")
    if classes == 2:
        logits = np.stack([np.zeros(len(X)), logits], axis=1)
    order = np.unique(labels, return_inverse=True)[1]
    assert model.temperature_ == fs.fit_temperature(logits, order).temperature
    plain = LogisticRegression().fit(X, labels)
    scores = plain.decision_function(X)
    if classes == 2:
        scores = np.stack([np.zeros(len(X)), scores], axis=1)
    np.testing.assert_array_equal(model.predict_proba(X), fs.softmax(scores, temperature=model.temperature_))
    np.testing.assert_array_equal(
        model.predict_log_proba(X), fs.log_softmax(scores, temperature=model.temperature_)
    )
    np.testing.assert_array_equal(model.predict(X), plain.predict(X))
    np.testing.assert_array_equal(model.classes_, plain.classes_)
    assert model.score(X, labels) == plain.score(X, labels)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("classifier", [LogisticRegression(), GaussianNB()], ids=lambda c: type(c).__name__)
def test_beside_scikit_learns(classes, classifier):
    """The probabilities are those of its own, within the tolerance of its search."""
    X, y = data(classes)
    weight = np.random.default_rng(1).random(len(X))
    try:
        theirs = CalibratedClassifierCV(classifier, method="temperature", ensemble=False)
        theirs.fit(X, y, sample_weight=weight)
    except ValueError:
        pytest.skip("this scikit-learn has no temperature scaling")
    ours = TemperatureScaling(classifier).fit(X, y, sample_weight=weight)
    # Its search stops at steps of 1e-7, and it takes probabilities plus the roundoff for logits.
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-4, atol=1e-9)


def test_it_calibrates():
    """Naive Bayes counts columns that say the same thing as often as they come."""
    X, y = data(rows=2000, n_features=20, n_redundant=16)
    half = len(X) // 2
    model = TemperatureScaling(GaussianNB()).fit(X[:half], y[:half])
    assert model.temperature_ > 2
    scores = model.estimator_.predict_log_proba(X[half:])
    assert fs.cross_entropy(np.log(model.predict_proba(X[half:])), y[half:]) < fs.cross_entropy(scores, y[half:])


def test_frozen_classifier():
    """It keeps its fit, and the rows are for the temperature alone."""
    X, y = data(rows=600)
    fitted = GaussianNB().fit(X[:300], y[:300])
    model = TemperatureScaling(FrozenEstimator(fitted)).fit(X[300:], y[300:])
    scores = np.log(np.maximum(fitted.predict_proba(X[300:]), np.finfo(float).eps))
    assert model.temperature_ == fs.fit_temperature(scores, y[300:]).temperature


def test_probabilities_of_zero():
    """Neighbours give them, also to the classes of rows."""
    X, y = data()
    assert (KNeighborsClassifier(3).fit(X, y).predict_proba(X) == 0).any()
    model = TemperatureScaling(KNeighborsClassifier(3)).fit(X, y)
    assert model.temperature_ > 1
    assert np.isfinite(model.predict_log_proba(X)).all()


def test_weights():
    """Rows of weight 0 do not count; a classifier that takes no weights is fitted without."""
    X, y = data()
    fitted = FrozenEstimator(KNeighborsClassifier(9).fit(X, y))
    weight = np.arange(len(X)) % 2
    model = TemperatureScaling(fitted).fit(X, y, sample_weight=list(weight))
    part = TemperatureScaling(fitted).fit(X[1::2], y[1::2])
    assert model.temperature_ == part.temperature_
    assert TemperatureScaling(KNeighborsClassifier(9)).fit(X, y, weight).temperature_ > 0


def test_no_minimum():
    """Of separable rows, and of logits that do not agree with the labels: one bound and the other."""
    X = np.repeat([[-1.0], [1.0]], 20, axis=0)
    y = np.repeat([0, 1], 20)
    with pytest.warns(ConvergenceWarning, match=r"decreases beyond bounds=\(0\.5, 3\); the temperature is 0\.5"):
        assert TemperatureScaling(LogisticRegression(), bounds=(0.5, 3)).fit(X, y).temperature_ == 0.5
    wrong = FrozenEstimator(LogisticRegression().fit(X, 1 - y))
    with pytest.warns(ConvergenceWarning, match="the temperature is 100"):
        assert TemperatureScaling(wrong).fit(X, y).temperature_ == 100


def test_minimum_beyond_a_bound():
    X, y = data()
    free = TemperatureScaling(GaussianNB()).fit(X, y).temperature_
    with pytest.warns(ConvergenceWarning, match="beyond bounds"):
        model = TemperatureScaling(GaussianNB(), bounds=(2 * free, 3 * free)).fit(X, y)
    assert model.temperature_ == 2 * free


@pytest.mark.parametrize("bounds", [(0, 1), (2, 1), (1, np.inf), (np.nan, 1), 1, (1, 2, 3), ("a", 1), None])
def test_wrong_bounds(bounds):
    with pytest.raises(ValueError, match=r"TemperatureScaling: bounds are .*, expected two numbers with 0 < low"):
        TemperatureScaling(LogisticRegression(), bounds=bounds).fit(*data())


def test_classifier_without_scores():
    class Silent(NearestCentroid):
        decision_function = predict_proba = property()

    with pytest.raises(
        TypeError, match=r"TemperatureScaling: estimator is Silent\(\), expected a classifier with"
    ):
        TemperatureScaling(Silent()).fit(*data())


def test_scores_of_pairs_of_classes():
    """Six pairs of four classes."""
    X, y = data(4)
    classifier = SVC(decision_function_shape="ovo")
    with pytest.raises(
        ValueError, match=r"decision_function of the classifier has shape \(400, 6\), expected one col"
    ):
        TemperatureScaling(classifier).fit(X, y)


def test_probabilities_of_integers():
    class Sure(GaussianNB):
        def predict_proba(self, X):
            return super().predict_proba(X).round().astype(int)

    X, y = data()
    assert TemperatureScaling(Sure()).fit(X, y).temperature_ > 1


def test_features():
    """They are those of the classifier, of the last fit."""
    pd = pytest.importorskip("pandas")
    X, y = data(rows=60)
    model = TemperatureScaling(GaussianNB())
    assert not hasattr(model, "n_features_in_")
    model.fit(pd.DataFrame(X, columns=list("abcdef")), y)
    assert (model.n_features_in_, list(model.feature_names_in_)) == (6, list("abcdef"))
    model.fit(X[:, :4], y)
    assert model.n_features_in_ == 4
    assert not hasattr(model, "feature_names_in_")


def test_before_fit():
    with pytest.raises(NotFittedError):
        TemperatureScaling(LogisticRegression()).predict_proba(np.zeros((1, 6)))


def test_among_scikit_learns_tools():
    """Pipelines, grids, splitters, pickles."""
    X, y = data(rows=90)
    model = make_pipeline(StandardScaler(), TemperatureScaling(LogisticRegression(), cv=StratifiedKFold(3)))
    grid = GridSearchCV(model, {"temperaturescaling__estimator__C": [0.1, 1.0]}, scoring="neg_log_loss", cv=3)
    grid.fit(X, y)
    again = pickle.loads(pickle.dumps(grid))
    np.testing.assert_array_equal(again.predict_proba(X), grid.predict_proba(X))
    assert TemperatureScaling(RidgeClassifier(), cv=LeaveOneOut()).fit(X, y).temperature_ > 0


def test_without_scikit_learn():
    """The package does without, and the module says what is missing."""
    program = """
import sys
sys.modules["sklearn"] = None
import fastsoftmax
try:
    import fastsoftmax.sklearn
except ImportError as error:
    print(error)
"""
    assert child.run(program) == (
        "fastsoftmax.sklearn needs scikit-learn 1.6 or later: pip install 'fastsoftmax[sklearn]'\n"
    )
