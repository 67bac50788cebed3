"""The two derivations that this library exists for, restated formula by formula.

Each formula is written out with loops over indices, in exact arithmetic where possible, and compared with the
library.
"""

import mpmath as mp
import numpy as np
import oracle
import pytest

import fastsoftmax as fs

pytestmark = pytest.mark.smoke

EPS = float(np.finfo(np.float64).eps)
every_length = pytest.mark.parametrize("classes", [2, 3, 5, 12, 41])


def rows(classes, count=4, seed=0):
    return np.random.default_rng(seed + classes).normal(0, 2, (count, classes))


def derivative(function, z, k):
    """d function / d z_k of mpf numbers, by mpmath's differentiation: exact to 30 digits."""

    def along(value):
        moved = list(z)
        moved[k] = value
        return function(moved)

    return mp.diff(along, z[k])


def softmax(z):
    terms = [mp.exp(value) for value in z]
    return [term / mp.fsum(terms) for term in terms]


def mean_cross_entropy(z_rows, y_rows):
    """C = -1/N sum_n sum_j y_nj log p_nj."""
    total = mp.mpf(0)
    for z, y in zip(z_rows, y_rows, strict=True):
        total -= mp.fsum(y_j * mp.log(p_j) for y_j, p_j in zip(y, softmax(z), strict=True))
    return total / len(z_rows)


# --- 1: the Jacobian of softmax, and a squared error behind it -----------------------------------------------


@every_length
def test_quotient_rule(classes):
    """dp_i/dz_i = p_i (1 - p_i), and dp_i/dz_j = -p_i p_j for j != i."""
    z = rows(classes)[0]
    p = fs.softmax(z)
    jacobian = fs.softmax_jacobian(z)
    for i in range(classes):
        for j in range(classes):
            formula = p[i] * (1 - p[i]) if i == j else -p[i] * p[j]
            assert jacobian[i, j] == pytest.approx(formula, rel=16 * EPS)


def test_quotient_rule_against_differentiation():
    """The same entries from mpmath's numerical derivative of exp(z_i) / sum exp(z_k)."""
    z = rows(3)[0]
    exact = list(oracle.exact(z))
    jacobian = fs.softmax_jacobian(z)
    for i in range(3):
        for j in range(3):
            expected = float(derivative(lambda values, i=i: softmax(values)[i], exact, j))
            assert jacobian[i, j] == pytest.approx(expected, rel=8 * EPS)


@every_length
def test_columns_and_rows_of_the_jacobian_sum_to_zero(classes):
    """sum_i dp_i/dz_j = d(1)/dz_j = 0, and a shift of all logits changes nothing: sum_j dp_i/dz_j = 0."""
    jacobian = fs.softmax_jacobian(rows(classes))
    assert np.abs(jacobian.sum(axis=-1)).max() <= 8 * EPS
    assert np.abs(jacobian.sum(axis=-2)).max() <= 8 * EPS
    np.testing.assert_array_equal(jacobian, np.swapaxes(jacobian, -1, -2))


@every_length
def test_squared_error_cost(classes):
    """C = 1/2 sum_k (y_k - t_k)**2 with y = softmax(z); dC/dy_k = y_k - t_k."""
    z, t = rows(classes), np.random.default_rng(1).random((4, classes))
    y = fs.softmax(z)
    costs = fs.squared_error(z, t, reduction="none")
    for n in range(4):
        assert costs[n] == pytest.approx(sum((y[n, k] - t[n, k]) ** 2 for k in range(classes)) / 2, rel=64 * EPS)


@every_length
def test_backpropagation_through_softmax(classes):
    """dL/dz_k = sum_i dL/dy_i dy_i/dz_k, a sum of K terms for each k, ..."""
    z, upstream = rows(classes), rows(classes, seed=7)
    jacobian = fs.softmax_jacobian(z)
    downstream = fs.softmax_vjp(z, upstream)
    for n in range(4):
        for k in range(classes):
            chain = sum(upstream[n, i] * jacobian[n, i, k] for i in range(classes))
            assert downstream[n, k] == pytest.approx(chain, abs=64 * EPS)


@every_length
def test_backpropagation_in_linear_time(classes):
    """... which collapses to y_k (dL/dy_k - sum_j dL/dy_j y_j): one dot product for all k."""
    z, upstream = rows(classes), rows(classes, seed=7)
    y = fs.softmax(z)
    downstream = fs.softmax_vjp(z, upstream)
    for n in range(4):
        dot = sum(upstream[n, j] * y[n, j] for j in range(classes))
        for k in range(classes):
            assert downstream[n, k] == pytest.approx(y[n, k] * (upstream[n, k] - dot), abs=32 * EPS)
    from_y = fs.softmax_vjp(y, upstream, from_probs=True)
    np.testing.assert_allclose(from_y, downstream, rtol=0, atol=32 * EPS)


@every_length
def test_gradient_of_the_squared_error(classes):
    """dC/dz_k = y_k ((y_k - t_k) - sum_j (y_j - t_j) y_j), over N rows divided by N."""
    z, t = rows(classes), np.random.default_rng(2).random((4, classes))
    y = fs.softmax(z)
    gradient = fs.squared_error_grad(z, t)
    for n in range(4):
        dot = sum((y[n, j] - t[n, j]) * y[n, j] for j in range(classes))
        for k in range(classes):
            formula = y[n, k] * ((y[n, k] - t[n, k]) - dot) / 4
            assert gradient[n, k] == pytest.approx(formula, abs=32 * EPS)


def test_gradient_of_the_squared_error_against_differentiation():
    z, t = rows(3)[0], np.array([0.2, -1.0, 3.0])
    exact, targets = list(oracle.exact(z)), list(oracle.exact(t))

    def cost(values):
        return mp.fsum((y - s) ** 2 for y, s in zip(softmax(values), targets, strict=True)) / 2

    gradient = fs.squared_error_grad(z, t)
    for k in range(3):
        assert gradient[k] == pytest.approx(float(derivative(cost, exact, k)), abs=16 * EPS)


# --- 2: the mean cross-entropy of N samples, and its gradient with respect to the logits ---------------------


@every_length
def test_mean_cross_entropy(classes):
    """C = -1/N sum_n sum_j y_nj log p_nj, for any y; for one-hot rows -1/N sum_n log p_n,label."""
    z, y = rows(classes), np.random.default_rng(3).random((4, classes))
    expected = float(mean_cross_entropy(oracle.exact(z), oracle.exact(y)))
    assert fs.cross_entropy(z, y) == pytest.approx(expected, rel=8 * EPS)
    labels = np.arange(4) % classes
    log_p = fs.log_softmax(z)
    assert fs.cross_entropy(z, labels) == pytest.approx(
        -sum(log_p[n, labels[n]] for n in range(4)) / 4, rel=8 * EPS
    )
    assert fs.cross_entropy(z, labels) == pytest.approx(fs.cross_entropy(z, np.eye(classes)[labels]), rel=8 * EPS)


@every_length
def test_chain_of_the_cross_entropy(classes):
    """dL/dp_i = -y_i/p_i, through dp_i/dz_k: -sum_{i != k} y_i/p_i (-p_i p_k) - y_k/p_k p_k (1 - p_k)."""
    z, y = rows(classes), np.random.default_rng(4).random((4, classes))
    p = fs.softmax(z)
    gradient = fs.cross_entropy_grad(z, y, reduction="sum")
    for n in range(4):
        for k in range(classes):
            others = sum(y[n, i] / p[n, i] * p[n, i] * p[n, k] for i in range(classes) if i != k)
            chain = others - y[n, k] / p[n, k] * p[n, k] * (1 - p[n, k])
            assert gradient[n, k] == pytest.approx(chain, abs=64 * EPS * y[n].sum())
    # the same as backpropagation of -y/p
    np.testing.assert_allclose(gradient, fs.softmax_vjp(z, -y / p), rtol=0, atol=64 * EPS * classes)


@every_length
def test_the_gradient_collapses(classes):
    """... = p_k sum_i y_i - y_k for any y; the mean divides by N."""
    z, y = rows(classes), np.random.default_rng(5).random((4, classes))
    p = fs.softmax(z)
    gradient = fs.cross_entropy_grad(z, y)
    for n in range(4):
        for k in range(classes):
            formula = (p[n, k] * sum(y[n]) - y[n, k]) / 4
            assert gradient[n, k] == pytest.approx(formula, abs=8 * EPS * classes)


@every_length
def test_one_hot_gradient_is_p_minus_y(classes):
    """sum_i y_i = 1 leaves p - y."""
    z, labels = rows(classes), np.arange(4) % classes
    formula = fs.softmax(z) - np.eye(classes)[labels]
    for targets in (labels, np.eye(classes)[labels]):
        gradient = fs.cross_entropy_grad(z, targets, reduction="sum")
        np.testing.assert_allclose(gradient, formula, rtol=0, atol=4 * EPS)
        assert np.abs(gradient.sum(axis=-1)).max() <= 8 * EPS


def test_the_gradient_against_differentiation():
    """The mean over three rows is differentiated numerically with respect to every logit of every row."""
    z, y = rows(3, count=3), np.random.default_rng(6).random((3, 3))
    exact, targets = oracle.exact(z), oracle.exact(y)
    gradient = fs.cross_entropy_grad(z, y)
    for n in range(3):
        for k in range(3):

            def cost(values, n=n):
                return mean_cross_entropy([*exact[:n], values, *exact[n + 1 :]], targets)

            expected = float(derivative(cost, list(exact[n]), k))
            assert gradient[n, k] == pytest.approx(expected, abs=8 * EPS)
