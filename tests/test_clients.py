"""Other programs that use our functions: scikit-learn's own tests, temperature scaling of a classifier."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import special

HERE = Path(__file__).parent
MODULES = ("sklearn.linear_model.tests.test_logistic", "sklearn.neural_network.tests.test_mlp")
# The tests that run without -m slow: those whose results depend on probabilities.
REDUCED = "predict_proba or predict_3_classes or test_gradient or lbfgs_classification or partial_fit_class"


def softmax(X, copy=True):
    """Replaces ``sklearn.utils.extmath.softmax``."""
    return fs.softmax(X, out=None if copy or X.dtype.char not in "fd" else X)


def inplace_softmax(X):
    """Replaces ``sklearn.neural_network._base.inplace_softmax``."""
    fs.softmax(X, out=X)


def pytest_configure(config):
    """Replace scikit-learn's functions. Called only in the process below, where this file is a plugin."""
    from sklearn.utils import extmath

    base = importlib.import_module("sklearn.neural_network._base")
    original = extmath.softmax
    for name in ("linear_model._logistic", "_loss.loss", "_loss.link", "calibration", "discriminant_analysis"):
        module = importlib.import_module(f"sklearn.{name}")
        assert module.softmax is original
        module.softmax = softmax
    importlib.import_module("sklearn.decomposition._lda").logsumexp = special.logsumexp
    base.ACTIVATIONS["softmax"] = inplace_softmax
    base.inplace_softmax = inplace_softmax
    base.xlogy, base.logistic_sigmoid = special.xlogy, special.expit


def run_scikit_learns(*options):
    """The number of scikit-learn's tests that pass."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "--pyargs", *MODULES, "-p", "test_clients", "-q", *options]
    command += ["-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(HERE), "-W", "ignore"]
    environment = {**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": ""}
    run = subprocess.run(command, capture_output=True, text=True, timeout=3000, env=environment)
    report = run.stdout + run.stderr
    assert run.returncode == 0, report
    return int(re.search(r"(\d+) passed", report).group(1))


def test_some_of_scikit_learns_tests():
    pytest.importorskip("sklearn.linear_model.tests", reason="this scikit-learn comes without its tests")
    assert run_scikit_learns("-k", REDUCED) >= 12


@pytest.mark.slow
def test_all_of_scikit_learns_tests():
    """Of LogisticRegression, and of MLPClassifier and MLPRegressor."""
    pytest.importorskip("sklearn.linear_model.tests", reason="this scikit-learn comes without its tests")
    assert run_scikit_learns() >= 200


def test_temperature_scaling():
    """An overconfident classifier's logits divided by the temperature that minimises the loss on held-out digits.

    C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, On calibration of modern neural networks, arXiv 1706.04599.
    """
    datasets = pytest.importorskip("sklearn.datasets")
    linear_model = pytest.importorskip("sklearn.linear_model")
    optimize = pytest.importorskip("scipy.optimize")
    images, labels = datasets.load_digits(return_X_y=True)
    model = linear_model.LogisticRegression(C=1e4, max_iter=200, tol=1e-2).fit(images[:400], labels[:400])
    logits, targets = model.decision_function(images[400:1100]), labels[400:1100]

    def loss(temperature):
        return fs.cross_entropy(logits / temperature, targets)

    best = optimize.minimize_scalar(loss, bounds=(0.1, 100), method="bounded").x
    assert best > 1.5
    assert loss(best) < 0.9 * loss(1.0)
    # at the minimum the derivative by the temperature, the mean of <p - y, z> over the rows, is 0
    slope = np.mean(np.sum(fs.cross_entropy_grad(logits / best, targets, reduction="sum") * logits, axis=1))
    assert abs(slope) < 1e-3 * np.mean(np.abs(logits).sum(axis=1))
    # the same probabilities by softmax's own temperature
    probs = fs.softmax(logits, temperature=best)
    np.testing.assert_allclose(-np.log(probs[np.arange(700), targets]).mean(), loss(best), rtol=1e-12)

    def calibration_error(p):
        confidence, right = p.max(axis=1), p.argmax(axis=1) == targets
        bins = np.minimum((confidence * 10).astype(int), 9)
        return sum(abs((confidence - right)[bins == k].sum()) for k in range(10)) / len(p)

    assert calibration_error(probs) < calibration_error(fs.softmax(logits))
