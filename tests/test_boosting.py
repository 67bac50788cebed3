"""Objectives for gradient boosting: shape, sign and order from plain arrays, and real boosters on real data."""

import copy
import functools
import inspect
import pickle
from types import SimpleNamespace

import numpy as np
import oracle
import pytest

import fastsoftmax as fs
from fastsoftmax import boosting
from fastsoftmax._vectors import CHUNK
from fastsoftmax.arrays import binary, long_rows, losses
from fastsoftmax.kernels import traversal

CURVATURES = {"exact": lambda k: 1.0, "upper": lambda k: 2.0, "scaled": lambda k: k / (k - 1)}
every_curvature = pytest.mark.parametrize("curvature", CURVATURES)
ROUNDS = 40


def dataset(labels, weights=None):
    """The methods of a DMatrix or a Dataset that an objective calls."""
    return SimpleNamespace(get_label=lambda: labels, get_weight=lambda: weights)


def rows(dtype, classes=5, order="C"):
    rng = np.random.default_rng(classes)
    scores = np.asarray(rng.normal(0, 2, (30, classes)).astype(dtype), order=order)
    scores[3, 1] += 30
    labels = rng.integers(0, classes, 30)
    labels[3] = 1
    return scores, labels, rng.uniform(0.5, 2, 30).astype(np.float32)


OBJECTIVES = {
    "xgboost": (boosting.xgboost_objective, np.float32, "C", np.array([])),
    "lightgbm": (boosting.lightgbm_objective, np.float64, "F", None),
}

# --- plain arrays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", OBJECTIVES)
@every_curvature
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 5, 70])
def test_formula(library, curvature, weighted, classes, record):
    """w (p - y) is within 5 ulp, one for the weight; w c p (1 - p) within 8: 3 for each factor, 2 roundings."""
    make, dtype, order, no_weights = OBJECTIVES[library]
    scores, labels, weights = rows(dtype, classes, order)
    weights = weights if weighted else no_weights
    objective = make(classes, curvature=curvature)
    gradient, second = objective(scores, dataset(labels.astype(np.float32), weights))
    exact = oracle.CrossEntropy(
        np.ascontiguousarray(scores), labels, sample_weight=weights if weighted else None, reduction="none"
    )
    assert gradient.shape == second.shape == scores.shape
    assert gradient.dtype == second.dtype == dtype
    record(f"{library}, gradient", dtype, oracle.worst(gradient, exact.gradient)[0], 5)
    factor = oracle.mp.mpf(classes) / (classes - 1) if curvature == "scaled" else CURVATURES[curvature](classes)
    record(f"{library}, curvature", dtype, oracle.worst(second, exact.diagonal * factor)[0], 8)
    plain = boosting.gradient_and_curvature(scores, labels, weights, curvature=curvature)
    np.testing.assert_array_equal(plain[0], gradient)
    np.testing.assert_array_equal(plain[1], second)


@pytest.mark.parametrize("library", OBJECTIVES)
def test_order_in_memory(library):
    """Results have the order in memory of the scores: row by row for XGBoost, class by class for LightGBM."""
    make, dtype, order, no_weights = OBJECTIVES[library]
    scores, labels, _ = rows(dtype, order=order)
    before = scores.copy()
    for array in make()(scores, dataset(labels, no_weights)):
        assert array.flags.c_contiguous == (order == "C")
        assert array.flags.f_contiguous == (order == "F")
        assert np.shares_memory(array.ravel(order=order), array)
    np.testing.assert_array_equal(scores, before)


def test_defaults_are_those_of_the_libraries():
    scores, labels, _ = rows(np.float64)
    for make, curvature in ((boosting.xgboost_objective, "upper"), (boosting.lightgbm_objective, "scaled")):
        expected = boosting.gradient_and_curvature(scores, labels, curvature=curvature)
        for actual, one in zip(make()(scores, dataset(labels)), expected, strict=True):
            np.testing.assert_allclose(actual, one, rtol=0, atol=1e-16)


@pytest.mark.parametrize("library", OBJECTIVES)
@pytest.mark.parametrize("weighted", [False, True])
def test_both_protocols_give_the_same_bits(library, weighted):
    """Called with scores and a container of labels and weights, or with labels, scores and weights."""
    make, dtype, order, no_weights = OBJECTIVES[library]
    scores, labels, weights = rows(dtype, order=order)
    objective = make(5)
    expected = objective(scores, dataset(labels.astype(np.float32), weights if weighted else no_weights))
    if weighted:
        calls = [objective(labels, scores, weights), objective(labels, scores, sample_weight=weights)]
    else:
        calls = [
            objective(labels, scores),
            objective(labels, scores, None),
            objective(labels, scores, np.array([])),
        ]
    for actual in calls:
        for one, two in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(one, two)
            assert one.flags.f_contiguous == (order == "F")


@pytest.mark.parametrize("make", [boosting.xgboost_objective, boosting.lightgbm_objective])
def test_the_signature_is_what_the_libraries_look_for(make):
    """XGBoost looks for the name sample_weight. LightGBM passes no weights to 2 parameters, and groups to 4."""
    parameters = inspect.signature(make()).parameters
    assert len(parameters) == 3
    assert "sample_weight" in parameters


COPIES = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("make", [boosting.xgboost_objective, boosting.lightgbm_objective])
def test_objectives_can_be_pickled_and_copied(make, way):
    """With their arguments, as worker processes, grid searches and saved estimators require."""
    scores, labels, weights = rows(np.float64)
    for arguments, options in (((5,), {"curvature": "exact"}), ((), {}), ((4,), {})):
        objective = make(*arguments, **options)
        again = COPIES[way](objective)
        assert repr(again) == repr(objective)
        if arguments == (4,):
            with pytest.raises(ValueError, match=f"{make.__name__}: scores have shape .* with 4 classes"):
                again(labels, scores)
            continue
        for one, two in zip(again(labels, scores, weights), objective(labels, scores, weights), strict=True):
            np.testing.assert_array_equal(one, two)
    assert repr(make(3, curvature="exact")) == f"{make.__name__}(3, curvature='exact')"


def test_catboost_objective_can_be_pickled_and_copied():
    for way in COPIES.values():
        assert way(boosting.CatBoostMultiClass()).calc_ders_multi([0.0, 0.0], 1.0, 1.0)[0] == [-0.5, 0.5]


def test_sign():
    """A step against the gradient, divided by the curvature, lowers the loss."""
    scores, labels, _ = rows(np.float64)
    for curvature in CURVATURES:
        gradient, second = boosting.gradient_and_curvature(scores, labels, curvature=curvature)
        assert np.all(gradient[np.arange(30), labels] < 0)
        assert np.all(second > 0)
        moved = scores - 0.5 * gradient / np.maximum(second, 1e-6)
        assert fs.cross_entropy(moved, labels) < fs.cross_entropy(scores, labels)


def test_upper_bounds_the_hessian():
    """diag(2 p (1 - p)) - H has no negative eigenvalue; with the exact curvature it has."""
    scores, labels, weights = rows(np.float64)
    hessian = fs.cross_entropy_hessian(scores, labels, sample_weight=weights, reduction="none")
    lowest = {}
    for curvature in CURVATURES:
        second = boosting.gradient_and_curvature(scores, labels, weights, curvature=curvature)[1]
        lowest[curvature] = np.linalg.eigvalsh(second[:, :, None] * np.eye(5) - hessian).min()
    assert lowest["upper"] >= -1e-15
    assert lowest["exact"] < -1e-3


def test_xgboost_curvature_has_a_floor():
    """No curvature is below 1e-16, as in XGBoost, also for certain rows and weights of 0."""
    scores = np.array([[0, -200], [0, 0]], np.float32)
    gradient, second = boosting.xgboost_objective()(scores, dataset(np.zeros(2), np.array([1.0, 0.0])))
    np.testing.assert_array_equal(second, np.full((2, 2), 1e-16, np.float32))
    assert not gradient[1].any()


def test_rows_of_weight_zero_hold_anything():
    scores, labels, weights = rows(np.float64)
    weights[::3] = 0
    expected = boosting.gradient_and_curvature(scores, labels, weights)
    scores[::3] = np.nan
    for actual, one in zip(boosting.gradient_and_curvature(scores, labels, weights), expected, strict=True):
        np.testing.assert_array_equal(actual, one)
        assert not actual[::3].any()


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "u8", "?"])
def test_labels_of_every_dtype(kind):
    scores = rows(np.float64, 2)[0]
    labels = np.arange(30) % 2
    expected = boosting.gradient_and_curvature(scores, labels)
    np.testing.assert_array_equal(boosting.gradient_and_curvature(scores, labels.astype(kind))[0], expected[0])


def test_catboost_wants_minus_the_derivatives(record):
    """The results are lists of Python floats, K and K by K: derivatives of minus the loss, times the weight."""
    scores, labels, weights = rows(np.float64)
    exact = oracle.CrossEntropy(scores, labels, sample_weight=weights, reduction="none")
    objective = boosting.CatBoostMultiClass()
    for n in range(len(scores)):
        first, second = objective.calc_ders_multi(scores[n].tolist(), float(labels[n]), float(weights[n]))
        assert all(type(v) is float for v in first)
        assert all(type(row) is list and type(v) is float for row in second for v in row)
        record("catboost, first", np.float64, oracle.worst(np.array(first), -exact.gradient[n])[0], 5)
        record("catboost, second", np.float64, oracle.worst(np.array(second), -exact.hessian[n])[0], 8)


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [boosting.xgboost_objective, boosting.lightgbm_objective])
def test_errors(make):
    name = make.__name__
    scores, labels, _ = rows(np.float64)
    with pytest.raises(ValueError, match=rf"{name}: curvature must be one of .*'exact'.*, got 'diag'"):
        make(curvature="diag")
    with pytest.raises(ValueError, match=rf"{name}: scores have shape \(30, 5\), expected .* with 4 classes"):
        make(4)(scores, dataset(labels))
    for flat in (scores.ravel(), scores[:, :1]):
        with pytest.raises(ValueError, match=rf"{name}: scores have shape .* at least 2 classes; is num_class"):
            make()(flat, dataset(labels))
    wrong = labels.astype(np.float32)
    for value in (1.5, np.nan, np.inf, -np.inf):
        wrong[7] = value
        with pytest.raises(ValueError, match=rf"{name}: labels\[7\] is {value}, expected a class index"):
            make()(scores, dataset(wrong))
    wrong[7] = 5
    with pytest.raises(IndexError, match=r"targets\[7\] is 5, expected a label from 0 to 4"):
        make()(scores, dataset(wrong))
    with pytest.raises(TypeError, match=rf"{name}: labels have dtype <U1"):
        make()(scores, dataset(["a"] * 30))
    with pytest.raises(ValueError, match=r"sample_weight has shape \(29,\), expected \(30,\)"):
        make()(scores, dataset(labels, np.ones(29)))


def test_errors_of_plain_functions():
    with pytest.raises(ValueError, match="gradient_and_curvature: curvature must be one of"):
        boosting.gradient_and_curvature(np.zeros((1, 2)), [0], curvature=None)
    with pytest.raises(ValueError, match=r"CatBoostMultiClass: labels\[\] is 0.5"):
        boosting.CatBoostMultiClass().calc_ders_multi([0.0, 0.0], 0.5, 1.0)
    with pytest.raises(IndexError, match="is 2, expected a label from 0 to 1"):
        boosting.CatBoostMultiClass().calc_ders_multi([0.0, 0.0], 2.0, 1.0)


# --- real boosters --------------------------------------------------------------------------------------------


@functools.cache
def data(name):
    """Training and test halves of a data set of scikit-learn, with uneven weights for training."""
    datasets = pytest.importorskip("sklearn.datasets")
    features, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    features, labels = features[order].astype(np.float32), labels[order]
    half = len(labels) // 2
    weights = np.random.default_rng(1).uniform(0.5, 2, half)
    return features[:half], labels[:half], weights, features[half:], labels[half:]


def train_xgboost(name, weighted, objective=None, rate=0.2):
    """Raw scores of the test half."""
    xgboost = pytest.importorskip("xgboost")
    features, labels, weights, test, _ = data(name)
    matrix = xgboost.DMatrix(features, label=labels, weight=weights if weighted else None)
    parameters = {
        "num_class": int(labels.max()) + 1,
        "base_score": 0.5,
        "max_depth": 3,
        "eta": rate,
        "nthread": 1,
        "tree_method": "exact",
        "disable_default_eval_metric": True,
    }
    if objective is None:
        parameters["objective"] = "multi:softprob"
    booster = xgboost.train(parameters, matrix, ROUNDS, obj=objective)
    return booster.predict(xgboost.DMatrix(test), output_margin=True)


def train_lightgbm(name, weighted, objective=None, rate=0.1):
    """Raw scores of the test half."""
    lightgbm = pytest.importorskip("lightgbm")
    features, labels, weights, test, _ = data(name)
    parameters = {
        "objective": "multiclass" if objective is None else objective,
        "num_class": int(labels.max()) + 1,
        "boost_from_average": False,
        "num_leaves": 7,
        "learning_rate": rate,
        "num_threads": 1,
        "deterministic": True,
        "verbose": -1,
    }
    matrix = lightgbm.Dataset(features, label=labels, weight=weights if weighted else None)
    return lightgbm.train(parameters, matrix, ROUNDS).predict(test, raw_score=True)


TRAINERS = {
    "xgboost": (train_xgboost, boosting.xgboost_objective, "upper", 0.2),
    "lightgbm": (train_lightgbm, boosting.lightgbm_objective, "scaled", 0.1),
}
every_library = pytest.mark.parametrize("library", TRAINERS)
every_data_set = pytest.mark.parametrize("name", ["wine", "digits"])


@functools.cache
def built_in(library, name, weighted):
    return TRAINERS[library][0](name, weighted)


def quality(scores, labels):
    """Accuracy and log-loss."""
    return np.mean(scores.argmax(-1) == labels), fs.cross_entropy(scores, labels)


@every_library
@every_data_set
@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_booster_as_with_the_built_in_objective(library, name, weighted):
    """Probabilities agree to 1e-5, because the libraries add derivatives in float32."""
    train, make, curvature, _ = TRAINERS[library]
    classes = int(data(name)[4].max()) + 1
    scores = train(name, weighted, make(classes, curvature=curvature))
    expected = built_in(library, name, weighted)
    assert scores.shape == expected.shape == (len(data(name)[4]), classes)
    np.testing.assert_allclose(fs.softmax(scores), fs.softmax(expected), rtol=0, atol=1e-5)
    assert quality(scores, data(name)[4])[0] > 0.9


@every_library
@every_data_set
@every_curvature
def test_every_curvature_trains_as_well(library, name, curvature):
    """A curvature c times as large makes steps 1/c as long, so that the learning rate is multiplied by c.

    Regularisation still differs. Accuracy is within 0.02 and log-loss within 0.1 of the built-in objective's.
    """
    train, make, usual, rate = TRAINERS[library]
    labels = data(name)[4]
    classes = int(labels.max()) + 1
    rate *= CURVATURES[curvature](classes) / CURVATURES[usual](classes)
    accuracy, loss = quality(train(name, False, make(curvature=curvature), rate), labels)
    expected = quality(built_in(library, name, False), labels)
    assert accuracy >= expected[0] - 0.02
    assert loss <= expected[1] + 0.1


def xgboost_classifier(objective, **options):
    """An estimator with the parameters of `train_xgboost`."""
    xgboost = pytest.importorskip("xgboost")
    if objective is not None:
        options["objective"] = objective
    return xgboost.XGBClassifier(
        n_estimators=ROUNDS,
        base_score=0.5,
        max_depth=3,
        learning_rate=0.2,
        n_jobs=1,
        tree_method="exact",
        **options,
    )


def lightgbm_classifier(objective, **options):
    """An estimator with the parameters of `train_lightgbm`."""
    lightgbm = pytest.importorskip("lightgbm")
    return lightgbm.LGBMClassifier(
        objective=objective,
        n_estimators=ROUNDS,
        boost_from_average=False,
        num_leaves=7,
        learning_rate=0.1,
        n_jobs=1,
        deterministic=True,
        verbose=-1,
        **options,
    )


def raw_scores(estimator, features):
    """The raw scores of an estimator."""
    option = "output_margin" if "xgboost" in type(estimator).__module__ else "raw_score"
    return estimator.predict(features, **{option: True})


CLASSIFIERS = {"xgboost": xgboost_classifier, "lightgbm": lightgbm_classifier}


@every_library
@every_data_set
@pytest.mark.parametrize("weighted", [False, True])
def test_the_scikit_learn_classes_train_the_booster_of_train(library, name, weighted):
    """The same bits as `train`; and within 1e-5 of the built-in objective, as above."""
    features, labels, weights, test, test_labels = data(name)
    train, make, *_ = TRAINERS[library]
    classes = int(labels.max()) + 1
    scores = {}
    for key, objective in (("ours", make(classes)), ("theirs", None)):
        estimator = CLASSIFIERS[library](objective)
        estimator.fit(features, labels, sample_weight=weights if weighted else None)
        scores[key] = raw_scores(estimator, test)
    assert scores["ours"].tolist() == train(name, weighted, make(classes)).tolist()
    assert scores["ours"].shape == scores["theirs"].shape
    np.testing.assert_allclose(fs.softmax(scores["ours"]), fs.softmax(scores["theirs"]), rtol=0, atol=1e-5)
    assert quality(scores["ours"], test_labels)[0] > 0.9


@every_library
def test_estimators_can_be_cloned_pickled_and_searched(library):
    """sklearn.base.clone, a pickle before and after fitting, cross-validation in other processes."""
    base = pytest.importorskip("sklearn.base")
    selection = pytest.importorskip("sklearn.model_selection")
    features, labels, weights, test, _ = data("wine")
    estimator = CLASSIFIERS[library](TRAINERS[library][1](3))
    fitted = estimator.fit(features, labels, sample_weight=weights)
    expected = raw_scores(fitted, test).tolist()
    assert raw_scores(pickle.loads(pickle.dumps(fitted)), test).tolist() == expected
    for again in (base.clone(fitted), pickle.loads(pickle.dumps(base.clone(fitted)))):
        assert raw_scores(again.fit(features, labels, sample_weight=weights), test).tolist() == expected
    grid = {"learning_rate": [1e-4, 0.2]}
    search = selection.GridSearchCV(estimator, grid, scoring=loss_of_raw_scores, cv=2)
    assert search.fit(features, labels).best_params_ == {"learning_rate": 0.2}
    found = selection.cross_val_score(estimator, features, labels, scoring=loss_of_raw_scores, cv=2, n_jobs=2)
    assert np.all(found > -1.0)


def loss_of_raw_scores(model, features, labels):
    """Minus the loss, because scikit-learn regards greater scores as better."""
    return -fs.cross_entropy(raw_scores(model, features), labels)


@every_library
def test_cross_validation_of_the_libraries(library):
    """``cv`` passes the container of each fold to the objective. The loss of held-out rows decreases."""
    features, labels, weights, *_ = data("wine")
    objective = TRAINERS[library][1](3)
    folds = {"nfold": 3, "stratified": True, "seed": 0}
    if library == "xgboost":
        xgboost = pytest.importorskip("xgboost")
        matrix = xgboost.DMatrix(features, label=labels, weight=weights)

        def loss(scores, held_out):
            return "loss", float(fs.cross_entropy(scores, held_out.get_label().astype(int)))

        parameters = {"num_class": 3, "nthread": 1, "disable_default_eval_metric": True}
        found = xgboost.cv(parameters, matrix, 20, obj=objective, custom_metric=loss, as_pandas=False, **folds)
        losses = found["test-loss-mean"]
    else:
        lightgbm = pytest.importorskip("lightgbm")
        matrix = lightgbm.Dataset(features, label=labels, weight=weights)
        parameters = {"objective": objective, "num_class": 3, "num_threads": 1, "verbose": -1, "metric": "None"}

        def loss(scores, held_out):
            return "loss", float(fs.cross_entropy(scores, held_out.get_label().astype(int))), False

        losses = lightgbm.cv(parameters, matrix, 20, feval=loss, **folds)["valid loss-mean"]
    assert losses[-1] < 0.5 * losses[0]


def test_xgbclassifier_predicts_probabilities_and_classes():
    """Also with a custom objective, as documented; LGBMClassifier returns raw scores."""
    features, labels, _, test, test_labels = data("wine")
    estimator = xgboost_classifier(boosting.xgboost_objective(3)).fit(features, labels)
    probs = fs.softmax(raw_scores(estimator, test))
    np.testing.assert_allclose(estimator.predict_proba(test), probs, rtol=0, atol=1e-6)
    assert np.mean(estimator.predict(test) == test_labels) > 0.9
    other = lightgbm_classifier(boosting.lightgbm_objective(3)).fit(features, labels)
    with pytest.warns(UserWarning, match="Returning raw scores"):
        np.testing.assert_array_equal(other.predict_proba(test), raw_scores(other, test))


@every_library
def test_two_classes_need_num_class(library):
    """Without num_class the classes pass one score for each row, and the message says so. With it they train."""
    features, labels, _, test, test_labels = data("breast_cancer")
    make = TRAINERS[library][1]
    with pytest.raises(ValueError, match="is num_class among the parameters"):
        CLASSIFIERS[library](make(2)).fit(features, labels)
    options = {"num_class": 2} if library == "xgboost" else {"num_class": 2, "metric": "multi_logloss"}
    estimator = CLASSIFIERS[library](make(2), **options).fit(features, labels)
    assert quality(raw_scores(estimator, test), test_labels)[0] > 0.9


@every_library
def test_without_num_class_the_message_says_so(library):
    """The booster then passes one score for each row."""
    features, labels = data("wine")[:2]
    if library == "xgboost":
        xgboost = pytest.importorskip("xgboost")
        with pytest.raises(ValueError, match="num_class"):
            xgboost.train({}, xgboost.DMatrix(features, label=labels), 1, obj=boosting.xgboost_objective())
        return
    lightgbm = pytest.importorskip("lightgbm")
    parameters = {"objective": boosting.lightgbm_objective(), "verbose": -1}
    with pytest.raises(ValueError, match="num_class"):
        lightgbm.train(parameters, lightgbm.Dataset(features, label=labels), 1)


def train_catboost(objective, metric, features, labels, weights, test, **options):
    """Raw scores of the test half, with Newton leaves."""
    catboost = pytest.importorskip("catboost")
    parameters = {
        "loss_function": objective,
        "eval_metric": metric,
        "iterations": 20,
        "depth": 3,
        "learning_rate": 0.2,
        "leaf_estimation_method": "Newton",
        "leaf_estimation_iterations": 1,
        "bootstrap_type": "No",
        "random_strength": 0,
        "boost_from_average": False,
        "random_seed": 0,
        "thread_count": 1,
        "allow_writing_files": False,
        "verbose": False,
    }
    model = catboost.CatBoost({**parameters, **options})
    model.fit(features, labels, sample_weight=weights)
    return np.asarray(model.predict(test, prediction_type="RawFormulaVal"))


@pytest.mark.parametrize("weighted", [False, True])
def test_catboost_trains_as_well(weighted):
    """With the derivatives of MultiClass, it has the same quality on wine."""
    features, labels, weights, test, test_labels = data("wine")
    rest = (features, labels, weights if weighted else None, test)
    theirs = train_catboost("MultiClass", "MultiClass", *rest, classes_count=3)
    ours = train_catboost(boosting.CatBoostMultiClass(), "MultiClass", *rest, classes_count=3)
    np.testing.assert_allclose(fs.softmax(ours), fs.softmax(theirs), rtol=0, atol=1e-5)
    assert quality(ours, test_labels)[0] > 0.85


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("built_in", "options"),
    [("Logloss", {}), ("Focal:focal_alpha=0.25;focal_gamma=2.0", {"gamma": 2.0, "alpha": 0.25})],
    ids=["binary", "focal"],
)
def test_catboost_trains_two_classes_as_well(built_in, options, weighted):
    """CatBoost has a focal loss itself; its formula is the same."""
    features, labels, weights, test, answers = data("breast_cancer")
    rest = ("Logloss", features, labels, weights if weighted else None, test)
    theirs, ours = train_catboost(built_in, *rest), train_catboost(boosting.CatBoostBinary(**options), *rest)
    np.testing.assert_allclose(fs.expit(ours), fs.expit(theirs), rtol=0, atol=1e-5)
    assert np.mean((ours > 0) == answers) > 0.9


@pytest.mark.parametrize("weighted", [False, True])
def test_catboost_trains_several_labels_as_well(weighted):
    catboost = pytest.importorskip("catboost")

    class Objective(boosting.CatBoostBinary, catboost.MultiTargetCustomObjective):
        """As the docstring says."""

    features, labels, weights, test, answers = data("wine")
    several, right = labels[:, None] == np.arange(3), answers[:, None] == np.arange(3)
    rest = ("MultiLogloss", features, several.astype(float), weights if weighted else None, test)
    theirs, ours = train_catboost("MultiLogloss", *rest), train_catboost(Objective(), *rest)
    np.testing.assert_allclose(fs.expit(ours), fs.expit(theirs), rtol=0, atol=1e-5)
    assert np.mean((ours > 0) == right) > 0.9


# --- binary, multi-label and focal objectives ------------------------------------------------------------------

BINARY = {
    "xgboost": (boosting.xgboost_binary_objective, np.float32, np.array([])),
    "lightgbm": (boosting.lightgbm_binary_objective, np.float64, None),
}
FOCAL_BOUND = 10
"""Those of the focal loss with gamma = 2 (6 ulp), the weight, and alpha; measured by the terms of a derivative."""


@pytest.mark.parametrize("library", BINARY)
@pytest.mark.parametrize("options", [{}, {"pos_weight": 3.0}, {"gamma": 2.0}, {"gamma": 2.0, "alpha": 0.25}])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(80,), (40, 3)])
def test_formula_of_binary_objectives(library, options, weighted, shape, record):
    make, dtype, no_weights = BINARY[library]
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(0, 3, shape).astype(dtype), rng.integers(0, 2, shape)
    scores.flat[0], labels.flat[0] = 30, 1
    weights = rng.uniform(0.5, 2, shape[0]).astype(np.float32) if weighted else no_weights
    objective = make(**options)
    gradient, second = objective(scores, dataset(labels.ravel().astype(np.float32), weights))
    assert gradient.shape == second.shape == shape
    assert gradient.dtype == second.dtype == dtype
    factor = weights[:, None] if weighted and len(shape) == 2 else weights if weighted else 1
    factor = oracle.exact(np.broadcast_to(factor, shape)).ravel()
    if "gamma" in options:
        exact = oracle.rowwise(
            lambda z, t: np.array(oracle.binary_focal_loss(z, t, 2.0, options.get("alpha")), object),
            scores.ravel(),
            labels.ravel(),
        )
        sizes, bound = (exact[:, 3] * factor, exact[:, 4] * factor), FOCAL_BOUND
    else:
        exact = oracle.rowwise(
            lambda z, t: np.array(oracle.binary_cross_entropy(z, t, options.get("pos_weight", 1)), object),
            scores.ravel(),
            labels.ravel(),
        )
        sizes, bound = (abs(exact[:, 1] * factor), exact[:, 2] * factor), 5
    expected = exact[:, 1] * factor, exact[:, 2] * factor
    found = gradient.ravel(), second.ravel()
    floored = np.array([float(v) <= boosting.LEAST_CURVATURE for v in expected[1]])
    for k, name in enumerate(("gradient", "curvature")):
        kept = ~floored if k else np.ones(len(floored), bool)
        ulps, _ = oracle.worst(found[k][kept], expected[k][kept], np.array([float(v) for v in sizes[k][kept]]))
        record(f"{library}, {name}, {'focal' if 'gamma' in options else 'binary'}", dtype, ulps, bound)
    if "gamma" in options:
        assert floored.any()
        np.testing.assert_array_equal(second.ravel()[floored], dtype(boosting.LEAST_CURVATURE))
    again = objective(labels, scores, weights if weighted else None)
    for one, other in zip(again, (gradient, second), strict=True):
        np.testing.assert_array_equal(one, other)


SCORES = {
    "row": np.random.default_rng(5).normal(0, 20, 1300),
    "whole chunks": np.random.default_rng(6).normal(0, 20, 2 * CHUNK),
    "columns": np.asfortranarray(np.random.default_rng(7).normal(0, 20, (401, 3))),
    "strided": np.random.default_rng(8).normal(0, 20, (2 * 70_000,))[::2],
    "infinite": np.array([np.inf, -np.inf, np.nan, 1e4, -1e4, 0.0, -0.0, 104.0, -104.0, 750.0]),
    "none": np.empty((0, 3)),
}


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", "i8"])
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_binary_derivatives_have_the_bits_of_the_functions(scores, dtype):
    """Gradient and curvature of one pass are those of `binary_cross_entropy` and `binary_focal_loss`."""
    with np.errstate(all="ignore"):
        scores = scores if dtype == "f8" else scores.astype(dtype, order="K")
    rng = np.random.default_rng(9)
    targets = rng.random(scores.shape)
    targets[rng.random(scores.shape) < 0.5] = 1.0
    rows = rng.random(scores.shape[:1]) * (rng.random(scores.shape[:1]) < 0.7)
    targets[rows == 0] = 7.0  # they do not count
    every = rows.reshape(-1, *(1,) * (scores.ndim - 1))
    for options in ({}, {"pos_weight": 3.0}, {"gamma": 2.0}, {"gamma": 0.3, "alpha": 0.25}, {"alpha": 0.25}):
        name = "binary_focal_loss" if {"gamma", "alpha"} & set(options) else "binary_cross_entropy"
        found = boosting.binary_gradient_and_curvature(scores, targets, rows, **options)
        rest = {"gamma": 0.0, **options} if "focal" in name else options
        for one, kind in zip(found, ("grad", "hessian_diag"), strict=True):
            function = getattr(fs, f"{name}_{kind}")
            other = function(scores, targets, sample_weight=every, reduction="sum", **rest)
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            assert one.strides == other.strides
            np.testing.assert_array_equal(one, other)
            numbers = ~np.isnan(one)
            np.testing.assert_array_equal(np.signbit(one[numbers]), np.signbit(other[numbers]))


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_binary_derivatives_take_one_pass(gamma, monkeypatch):
    runs = []
    run = binary.run
    monkeypatch.setattr(binary, "run", lambda kernel, *rest: (runs.append(kernel), run(kernel, *rest)))
    boosting.xgboost_binary_objective(gamma=gamma)(np.zeros(600), dataset(np.ones(600), None))
    assert [kernel.name for kernel in runs] == ["binary.focal" if gamma else "binary.cross_entropy"]


def assert_same_bits(found, expected):
    """Two arrays with the same dtype, strides, numbers and signs."""
    assert found.dtype == expected.dtype
    assert found.strides == expected.strides
    np.testing.assert_array_equal(found, expected)
    numbers = ~np.isnan(found)
    np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(expected[numbers]))


def edge_scores():
    """Infinities, NaN, rows of -inf, equal scores, and probabilities that are not normal numbers."""
    scores = np.random.default_rng(3).normal(0, 20, (40, 5))
    scores[::9, 2] = np.nan
    scores[1::9, 1] = np.inf
    scores[2::9] = -np.inf
    scores[3::9, 3] = -np.inf
    scores[4::9] = 1.0
    scores[5::9] = [0.0, -95.0, -104.0, -720.0, -745.0]
    return scores


BLOCKS = {
    **{
        f"rows {k}": np.random.default_rng(k).normal(0, 9, (45, k))
        for k in (2, 3, 8, 10, 16, 17, 64, 65, 300, 2100)
    },
    **{
        f"columns {k}": np.asfortranarray(np.random.default_rng(k).normal(0, 9, (203, k)))
        for k in (2, 7, 16, 17, 64, 65, 300)
    },
    "strided": np.random.default_rng(1).normal(0, 9, (300, 1000))[:, ::2],
    "apart": np.random.default_rng(2).normal(0, 9, (300, 1000))[:, 5:900],
    "many": np.random.default_rng(2).normal(0, 9, (30_000, 5)),
    "edges": edge_scores(),
    "columns of edges": np.asfortranarray(edge_scores()),
    "none": np.empty((0, 3)),
}


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", "i8"])
@pytest.mark.parametrize("scores", BLOCKS.values(), ids=BLOCKS)
def test_derivatives_have_the_bits_of_the_functions(scores, dtype):
    """Gradient and curvature of one pass are those of `cross_entropy` and `focal_loss`, in every layout."""
    with np.errstate(all="ignore"):
        scores = scores if dtype == "f8" else scores.astype(dtype, order="K")
    rng = np.random.default_rng(9)
    labels = rng.integers(0, scores.shape[1], len(scores))
    weights = np.exp(rng.normal(0, 15, len(scores))).astype(np.float32)
    weights[::4] = 0
    weights[1:2], weights[2:3] = np.inf, -2.0
    for gamma in (0.0, 0.5, 2.0):
        for given in (None, weights):
            found = boosting.gradient_and_curvature(scores, labels, given, gamma=gamma)
            name = "focal_loss" if gamma else "cross_entropy"
            options = {"gamma": gamma} if gamma else {}
            for one, kind in zip(found, ("grad", "hessian_diag"), strict=True):
                function = getattr(fs, f"{name}_{kind}")
                assert_same_bits(one, function(scores, labels, sample_weight=given, reduction="sum", **options))


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_derivatives_take_one_pass(gamma, monkeypatch):
    runs = []
    run = losses.run
    monkeypatch.setattr(losses, "run", lambda kernel, *rest: (runs.append(kernel), run(kernel, *rest)))
    boosting.xgboost_objective(gamma=gamma)(np.zeros((60, 3)), dataset(np.ones(60), None))
    expected = "focal.focal_derivatives" if gamma else "losses.cross_entropy_derivatives"
    assert [kernel.name for kernel in runs] == [expected]


def test_derivatives_of_columns_past_the_caches(monkeypatch):
    """Large results of columns are written past the caches; they need not begin at the same place in a line."""
    scores = np.asfortranarray(np.random.default_rng(4).normal(0, 9, (1 << 20, 9)).astype(np.float32))
    labels = np.arange(len(scores)) % 9
    found = boosting.gradient_and_curvature(scores, labels)
    assert scores.size >= traversal.PAST_CACHES
    for one, kind in zip(found, ("grad", "hessian_diag"), strict=True):
        assert_same_bits(one, getattr(fs, f"cross_entropy_{kind}")(scores, labels, reduction="sum"))


def test_derivatives_of_rows_that_are_cut(monkeypatch):
    """Very long rows have the bits of the functions, too."""
    monkeypatch.setattr(long_rows, "LONG_ROW", 300)
    scores, labels = np.random.default_rng(5).normal(0, 9, (3, 1001)), [7, 900, 1000]
    found = boosting.gradient_and_curvature(scores, labels)
    for one, kind in zip(found, ("grad", "hessian_diag"), strict=True):
        assert_same_bits(one, getattr(fs, f"cross_entropy_{kind}")(scores, labels, reduction="sum"))


@pytest.mark.parametrize("make", [boosting.xgboost_objective, boosting.lightgbm_objective])
def test_focal_objectives_of_several_classes(make):
    """The derivatives of focal_loss, with the factor of the curvature, and its floor."""
    scores, labels, weights = rows(np.float64)
    gradient, second = make(5, gamma=1.5, curvature="exact")(scores, dataset(labels, weights))
    options = {"gamma": 1.5, "sample_weight": weights, "reduction": "sum"}
    np.testing.assert_array_equal(gradient, fs.focal_loss_grad(scores, labels, **options))
    curve = fs.focal_loss_hessian_diag(scores, labels, **options)
    assert (curve < 0).any()
    np.testing.assert_array_equal(second, np.maximum(curve, boosting.LEAST_CURVATURE))
    plain = boosting.gradient_and_curvature(scores, labels, weights, gamma=1.5, curvature="upper")
    np.testing.assert_array_equal(plain[1], 2 * curve)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("make", [boosting.xgboost_binary_objective, boosting.lightgbm_binary_objective])
def test_binary_objectives_can_be_pickled_and_copied(make, way):
    objective = make(gamma=2.0, alpha=0.25)
    again = COPIES[way](objective)
    assert repr(again) == repr(objective) == f"{make.__name__}(pos_weight=None, gamma=2.0, alpha=0.25)"
    assert list(inspect.signature(objective).parameters)[2] == "sample_weight"
    for one, other in zip(again([0, 1], np.zeros(2)), objective([0, 1], np.zeros(2)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_catboost_binary():
    """Minus the derivatives: pairs for rows, a diagonal matrix for the labels of a row."""
    scores, labels, weights = [0.5, -2.0, 30.0], [1.0, 0.0, 1.0], [1.0, 2.0, 0.5]
    for options in ({}, {"pos_weight": 2.0}, {"gamma": 2.0, "alpha": 0.25}):
        objective = pickle.loads(pickle.dumps(boosting.CatBoostBinary(**options)))
        gradient, second = boosting.binary_gradient_and_curvature(scores, labels, weights, **options)
        if "gamma" in options:
            second = np.maximum(second, boosting.LEAST_CURVATURE)
        expected = list(zip((-gradient).tolist(), (-second).tolist(), strict=True))
        assert objective.calc_ders_range(scores, labels, weights) == expected
        first, matrix = objective.calc_ders_multi(scores, labels, 2.0)
        gradient, second = boosting.binary_gradient_and_curvature(scores, labels, [2.0] * 3, **options)
        assert first == (-gradient).tolist()
        if "gamma" not in options:
            assert matrix == np.diag(-second).tolist()
    assert len(boosting.CatBoostBinary().calc_ders_range(scores, labels, None)) == 3


def test_errors_of_binary_objectives():
    for make in (boosting.xgboost_binary_objective, boosting.lightgbm_binary_objective, boosting.CatBoostBinary):
        name = make.__name__
        with pytest.raises(ValueError, match=f"{name}: gamma must be finite and >= 0"):
            make(gamma=-1)
        with pytest.raises(ValueError, match=f"{name}: pos_weight is for the cross-entropy"):
            make(pos_weight=2.0, gamma=1.0)
    with pytest.raises(ValueError, match=r"scores have shape \(2, 2, 2\), expected \(rows,\) or \(rows, labels\)"):
        boosting.binary_gradient_and_curvature(np.zeros((2, 2, 2)), np.zeros(8))
    with pytest.raises(ValueError, match=r"targets\[1\] is 2.0, expected a number from 0 to 1"):
        boosting.xgboost_binary_objective()(np.zeros(2), dataset(np.array([1.0, 2.0])))
    with pytest.raises(ValueError, match="xgboost_objective: gamma must be finite and >= 0"):
        boosting.xgboost_objective(3, gamma=np.nan)


def train_binary(library, objective, weighted, **options):
    """Raw scores of the test half of the breast cancer data."""
    module = pytest.importorskip(library)
    features, labels, weights, test, _ = data("breast_cancer")
    weights = weights if weighted else None
    if library == "xgboost":
        matrix = module.DMatrix(features, label=labels, weight=weights)
        start = 0.5 if objective is None else 0.0  # a probability for the built-in objective, else a score
        parameters = {"base_score": start, "max_depth": 3, "nthread": 1, "tree_method": "exact"}
        parameters |= {"disable_default_eval_metric": True, **options}
        if objective is None:
            parameters["objective"] = "binary:logistic"
        booster = module.train(parameters, matrix, ROUNDS, obj=objective)
        return booster.predict(module.DMatrix(test), output_margin=True)
    parameters = {"objective": "binary" if objective is None else objective, "boost_from_average": False}
    parameters |= {"num_leaves": 7, "num_threads": 1, "deterministic": True, "verbose": -1, **options}
    matrix = module.Dataset(features, label=labels, weight=weights)
    return module.train(parameters, matrix, ROUNDS).predict(test, raw_score=True)


@pytest.mark.parametrize("library", BINARY)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pos_weight", [None, 2.5])
def test_the_same_booster_as_with_the_built_in_binary_objective(library, weighted, pos_weight):
    """Probabilities agree to 1e-5, because the libraries add derivatives in float32."""
    options = {} if pos_weight is None else {"scale_pos_weight": pos_weight}
    expected = train_binary(library, None, weighted, **options)
    scores = train_binary(library, BINARY[library][0](pos_weight=pos_weight), weighted)
    np.testing.assert_allclose(fs.expit(scores), fs.expit(expected), rtol=0, atol=1e-5)
    assert np.mean((scores > 0) == data("breast_cancer")[4]) > 0.9


@pytest.mark.parametrize("library", BINARY)
def test_focal_objectives_train(library):
    scores = train_binary(library, BINARY[library][0](gamma=2.0, alpha=0.25), False)
    assert np.mean((scores > 0) == data("breast_cancer")[4]) > 0.88


def test_xgboost_trains_several_labels():
    """The labels of a row in one matrix; each is learnt as alone."""
    xgboost = pytest.importorskip("xgboost")
    features, labels, _, test, answers = data("wine")
    several, right = labels[:, None] == np.arange(3), answers[:, None] == np.arange(3)
    parameters = {"base_score": 0.0, "max_depth": 3, "nthread": 1, "disable_default_eval_metric": True}
    objective = boosting.xgboost_binary_objective()
    matrix = xgboost.DMatrix(features, label=several.astype(np.float32))
    together = xgboost.train(parameters, matrix, ROUNDS, obj=objective).predict(
        xgboost.DMatrix(test), output_margin=True
    )
    assert together.shape == right.shape
    assert np.mean((together > 0) == right) > 0.9
    parameters |= {"base_score": 0.5, "objective": "binary:logistic"}
    built_in_ = xgboost.train(parameters, matrix, ROUNDS)
    expected = built_in_.predict(xgboost.DMatrix(test), output_margin=True)
    np.testing.assert_allclose(fs.expit(together), fs.expit(expected), rtol=0, atol=1e-5)
