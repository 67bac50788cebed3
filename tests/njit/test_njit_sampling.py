"""Random draws inside a user's ``@njit`` code; `test_overloads` compares the classes of whole arrays."""

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

import fastsoftmax as fs


@njit
def from_generator(x, rng):
    return fs.categorical(x, rng=rng)


@njit
def several(x, rng, count):
    return fs.categorical(x, rng=rng, size=(count, 2), top_k=3)


@njit
def from_numba(x):
    return fs.categorical(x)


def test_a_generator_gives_the_classes_of_the_function():
    """Numba takes the same numbers from it, one for each draw."""
    x = np.random.default_rng(0).standard_normal((6, 70))
    ours, theirs = np.random.default_rng(3), np.random.default_rng(3)
    np.testing.assert_array_equal(from_generator(x, ours), fs.categorical(x, rng=theirs))
    np.testing.assert_array_equal(several(x, ours, 4), fs.categorical(x, rng=theirs, size=(4, 2), top_k=3))
    assert from_generator(x[0], ours) == fs.categorical(x[0], rng=theirs)
    assert ours.random() == theirs.random()


def test_without_a_generator_every_call_differs():
    x = np.zeros((50, 10))
    assert (from_numba(x) != from_numba(x)).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_segments(dtype):
    @njit
    def call(x, indptr, u):
        return fs.segment_categorical(x, indptr, uniforms=u, size=3, replace=False, temperature=0.5, top_k=9)

    x, indptr = np.random.default_rng(1).standard_normal(400).astype(dtype), np.array([0, 3, 40, 400])
    u = np.random.default_rng(2).random((3, 3))
    np.testing.assert_array_equal(call(x, indptr, u), call.py_func(x, indptr, u))


@pytest.mark.parametrize("size", [2, 20])
def test_filters_of_long_rows(size):
    """The working memory is that of the function, also for rows of more classes than are listed."""

    @njit
    def call(x, u, size, top_p, replace):
        return fs.categorical(x, uniforms=u, size=size, top_p=top_p, replace=replace)

    x, u = np.random.default_rng(1).standard_normal(200_000), np.random.default_rng(2).random(size)
    for top_p, replace in ((0.9, True), (1 - 1e-9, True), (1 - 1e-9, False)):
        given = x, u, size, top_p, replace
        np.testing.assert_array_equal(call(*given), call.py_func(*given))


def test_errors_of_values():
    @njit
    def call(x, u, top_k, top_p, size, replace):
        return fs.categorical(x, uniforms=u, top_k=top_k, top_p=top_p, size=size, replace=replace)

    x, u = np.zeros((2, 3)), np.full((2, 2), 0.5)
    good = (x, u, 3, 0.9, 2, True)
    np.testing.assert_array_equal(call(*good), call.py_func(*good))
    bad = np.array([[0.0, 1.0, 2.0], [0.0, np.nan, 1.0]])
    for place, value, words in (
        (0, bad, r"categorical: row 1 of the logits \(in C order\) holds NaN or \+inf, or has fewer"),
        (1, u + 0.5, r"categorical: uniforms has 1.0 at place 0 in C order, expected 0 <= u < 1"),
        (1, u[:1], "categorical: uniforms has another shape than the result"),
        (2, 0, "categorical: top_k must be at least 1, got 0"),
        (3, 1.5, "categorical: top_p must be above 0 and at most 1, got 1.5"),
        (4, -1, "categorical: size must not be negative"),
    ):
        with pytest.raises(ValueError, match=words):
            call(*good[:place], value, *good[place + 1 :])
    with pytest.raises(ValueError, match="size is 4 with replace=False, but there are 3 classes"):
        call(x, np.full((4, 2), 0.5), 3, 0.9, 4, False)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: fs.categorical(x, rng=3), "rng must be a numpy.random.Generator in compiled code"),
        (lambda x: fs.categorical(x, size=1.5), "size must be an integer or a tuple of them"),
        (lambda x: fs.categorical(x, uniforms=x), "uniforms has 2 dimensions, expected 1"),
        (lambda x: fs.categorical(x, replace=1), "replace must be a bool"),
        (lambda x: fs.categorical(x, top_k=1.5), "top_k must be an integer"),
        (lambda x: fs.filter_logits(x, top_p=(1,)), "top_p must be a number"),
    ],
    ids=range(6),
)
def test_errors_of_types(call, words):
    with pytest.raises(TypingError, match=words):
        njit(call)(np.zeros((2, 3)))
