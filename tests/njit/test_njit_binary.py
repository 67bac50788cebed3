"""Losses of single logits in compiled code: errors, layouts, the place of a wrong target."""

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

import fastsoftmax as fs


@njit
def loss_and_gradient(x, t, w, out):
    return fs.binary_cross_entropy_with_grad(x, t, sample_weight=w, out=out)


@njit
def loss(x, t, s):
    return fs.binary_cross_entropy(x, t, label_smoothing=s)


@njit
def focal(x, t, g, a):
    return fs.binary_focal_loss(x, t, gamma=g, alpha=a)


@njit
def rows(x, y, g):
    return fs.focal_loss(x, y, gamma=g)


@njit
def plain(x, t):
    return fs.binary_cross_entropy(x, t)


X, T = np.zeros((3, 4)), np.full((3, 4), 0.5)


def same_error(call, *arguments):
    """The words of the Python call."""
    with pytest.raises(ValueError, match="expected a number from 0 to 1") as expected:
        call.py_func(*arguments)
    with pytest.raises(ValueError, match="expected a number from 0 to 1") as found:
        call(*arguments)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("wrong", [-0.5, 1.5, np.nan])
def test_targets_are_from_0_to_1(wrong):
    t = T.copy()
    t[1, 2] = wrong
    same_error(plain, X, t)
    same_error(plain, np.asfortranarray(X), t)
    same_error(plain, X[0, 0:1].reshape(()), t[1, 2:3].reshape(()))
    out, weights = np.full((3, 4), 7.0), np.ones((3, 4))
    with pytest.raises(ValueError, match=r"targets\[1, 2\]"):
        loss_and_gradient(X, t, weights, out)
    assert (out == 7).all()
    weights[1, 2] = 0
    value, gradient = loss_and_gradient(X, t, weights, out)
    assert value == np.log(2)
    assert gradient is out or np.shares_memory(gradient, out)
    assert gradient[1, 2] == 0


def test_errors_at_run_time():
    with pytest.raises(ValueError, match="binary_cross_entropy: targets has another shape than logits"):
        plain(X, T[:2])
    with pytest.raises(ValueError, match="binary_cross_entropy: label_smoothing must be from 0 to 1"):
        loss(X, T, 1.5)
    with pytest.raises(ValueError, match="binary_focal_loss: gamma must be finite and >= 0"):
        focal(X, T, -1.0, 0.5)
    with pytest.raises(ValueError, match="binary_focal_loss: alpha must be from 0 to 1"):
        focal(X, T, 1.0, 1.5)
    with pytest.raises(ValueError, match="focal_loss: gamma must be finite and >= 0"):
        rows(X, np.zeros(3, np.int64), np.inf)
    with pytest.raises(ValueError, match="sample_weight does not broadcast to logits"):
        loss_and_gradient(X, T, np.ones((2, 4)), X.copy())


def test_errors_of_types():
    for call, arguments, words in (
        (plain, (X, T[0]), "targets has 1 dimensions, expected 2"),
        (plain, (X * 1j, T), "logits has dtype complex128"),
        (plain, (X, T * 1j), "targets has dtype complex128"),
        (focal, (X, T, "a", None), "gamma must be a number"),
        (focal, (X, T, 1.0, "a"), "alpha must be a number"),
        (loss_and_gradient, (X, T, np.ones((2, 3, 4)), X.copy()), "sample_weight has 3 dimensions"),
        (loss_and_gradient, (X, T, T, np.zeros((3, 4), np.float32)), "out has dtype float32, expected float64"),
    ):
        with pytest.raises(TypingError, match=words):
            call(*arguments)


@pytest.mark.parametrize("turn", [np.ascontiguousarray, np.asfortranarray, lambda x: x[::-1, ::-1], lambda x: x.T])
def test_layouts(turn):
    """The bits of the Python call, for any layout of any array."""
    rng = np.random.default_rng(0)
    x, t, w = rng.normal(0, 3, (30, 30)), rng.random((30, 30)), rng.random((30, 30))
    for one, other, weight in ((turn(x), t, w), (x, turn(t), w), (x, t, turn(w)), (turn(x), turn(t), turn(w))):
        out, expected = np.empty((30, 30)), np.empty((30, 30))
        value, gradient = loss_and_gradient(one, other, weight, out)
        right, slope = loss_and_gradient.py_func(one, other, weight, expected)
        assert value == right
        np.testing.assert_array_equal(gradient, slope)


def test_no_dimensions():
    z, t = np.array(0.7), np.array(1)
    value = plain(z, t)
    assert value == fs.binary_cross_entropy(z, t)


def test_nothing():
    assert np.isnan(plain(X[:0], T[:0]))
