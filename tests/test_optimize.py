"""Softmax regression on real data by scipy.optimize, with cross_entropy's gradient and Hessian-vector product."""

import numpy as np
import pytest

import fastsoftmax as fs

optimize = pytest.importorskip("scipy.optimize")
datasets = pytest.importorskip("sklearn.datasets")

PENALTY = 1e-3


class SoftmaxRegression:
    """Mean cross-entropy of features @ weights plus PENALTY/2 |weights|**2, a strictly convex function."""

    def __init__(self, features, labels, **options):
        self.features, self.labels, self.options = features, labels, options
        self.shape = (features.shape[1], int(labels.max()) + 1)

    def start(self):
        return np.zeros(self.shape).ravel()

    def logits(self, flat):
        return self.features @ flat.reshape(self.shape)

    def __call__(self, flat):
        """Loss and gradient, in one pass over the logits."""
        loss, slope = fs.cross_entropy_with_grad(self.logits(flat), self.labels, **self.options)
        gradient = (self.features.T @ slope).ravel() + PENALTY * flat
        return float(loss) + PENALTY / 2 * flat @ flat, gradient

    def hessp(self, flat, direction):
        """X^T H (X V) + PENALTY V. No array is larger than the logits."""
        product = fs.cross_entropy_hvp(self.logits(flat), self.labels, self.logits(direction), **self.options)
        return (self.features.T @ product).ravel() + PENALTY * direction


def regression(name, **options):
    """Standardised features and a constant one, for a data set of scikit-learn."""
    features, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    features = (features - features.mean(0)) / np.maximum(features.std(0), 1e-9)
    return SoftmaxRegression(np.column_stack([features, np.ones(len(features))]), labels, **options)


def minimise(problem, method, **options):
    second = {} if method == "L-BFGS-B" else {"hessp": problem.hessp}
    return optimize.minimize(problem, problem.start(), method=method, jac=True, options=options, **second)


def problems():
    digits = datasets.load_digits().target
    weights = {"class_weight": np.linspace(0.5, 2, 10), "label_smoothing": 0.1}
    return [
        pytest.param("wine", {}, id="wine"),
        pytest.param("digits", {}, id="digits"),
        pytest.param("digits", {**weights, "sample_weight": 1.0 + (digits % 3)}, id="digits, every option"),
    ]


@pytest.mark.parametrize(("name", "options"), problems())
def test_newton_methods_need_fewer_iterations(name, options):
    """The optimum of L-BFGS-B, to 1e-8 of the loss, in fewer iterations."""
    problem = regression(name, **options)
    reference = minimise(problem, "L-BFGS-B", maxiter=5000, maxfun=50_000, gtol=1e-8, ftol=1e-15)
    assert reference.success, reference.message
    for method, tolerance in (("trust-ncg", {"gtol": 1e-8}), ("newton-cg", {"xtol": 1e-10})):
        found = minimise(problem, method, **tolerance)
        assert found.success, found.message
        assert found.fun == pytest.approx(reference.fun, rel=1e-8)
        assert np.abs(problem(found.x)[1]).max() <= 1e-6
        assert found.nit < reference.nit, (method, found.nit, reference.nit)
        # strictly convex: a point with gradient g is at most |g|/PENALTY away from the optimum
        np.testing.assert_allclose(found.x, reference.x, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "options"), problems())
def test_derivatives_of_the_regression(name, options):
    """scipy's check of gradient and HVP against finite differences, at a point that is no optimum."""
    problem = regression(name, **options)
    rng = np.random.default_rng(0)
    flat, direction = rng.normal(0, 0.1, (2, problem.start().size))
    step = 1e-5
    ahead, behind = problem(flat + step * direction), problem(flat - step * direction)
    slope = (ahead[0] - behind[0]) / (2 * step)
    assert problem(flat)[1] @ direction == pytest.approx(slope, rel=1e-6)
    curvature = (ahead[1] - behind[1]) / (2 * step)
    np.testing.assert_allclose(problem.hessp(flat, direction), curvature, rtol=0, atol=1e-6)


def test_the_regression_predicts():
    problem = regression("digits")
    found = minimise(problem, "trust-ncg", gtol=1e-6)
    assert np.mean(np.argmax(problem.logits(found.x), axis=-1) == problem.labels) > 0.98
