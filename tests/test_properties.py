"""Invariants, tested by hypothesis over lengths, scales, dtypes, batches, threads and outputs."""

import functions
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import fastsoftmax as fs

# No deadline: the first call of a function compiles it.
quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
every = pytest.mark.parametrize("function", functions.ALL, ids=str)
dtypes = st.sampled_from([np.float32, np.float64])
EPS = {np.float32: float(np.finfo(np.float32).eps), np.float64: float(np.finfo(np.float64).eps)}


@st.composite
def batches(draw, largest=1e4, least_rows=1, most_rows=40):
    """A matrix of logits. Hypothesis draws a few of them, and seed, scale and offset of the others."""
    dtype = draw(dtypes)
    shape = (draw(st.integers(least_rows, most_rows)), draw(st.integers(1, 130)))
    scale = draw(st.sampled_from([1e-4, 0.1, 1.0, 30.0, 1000.0]))
    offset = draw(st.floats(-largest, largest))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(offset, scale, shape)
    drawn = draw(hnp.arrays(np.float64, st.integers(0, min(6, x.size)), elements=st.floats(-largest, largest)))
    x.reshape(-1)[: drawn.size] = drawn
    return x.astype(dtype)


# --- mathematics ---------------------------------------------------------------------------------------------


@quick
@given(batches())
def test_probabilities(x):
    """They lie between 0 and 1, and sum to 1 within their 3 ulp."""
    p = fs.softmax(x)
    assert np.all((p >= 0) & (p <= 1))
    assert np.abs(p.sum(axis=-1, dtype=np.longdouble) - 1).max() <= 3 * EPS[x.dtype.type]
    assert np.all(fs.log_softmax(x) <= 0)
    assert np.all(fs.cross_entropy(x, np.argmin(x, axis=-1), reduction="none") >= 0)


@quick
@given(batches())
def test_the_three_activations_agree(x):
    """log p = x - lse and p = exp(log p), up to the roundings of the comparison."""
    eps = EPS[x.dtype.type]
    log_p, lse = np.float64(fs.log_softmax(x)), np.float64(fs.logsumexp(x))[:, None]
    size = np.abs(np.float64(x)).max() + np.abs(log_p).max() + 1
    assert np.abs(log_p - (x - lse)).max() <= 4 * eps * size
    with np.errstate(under="ignore"):
        p = np.exp(log_p)
    allowed = p * (3 + 4 * np.abs(log_p)) * eps + np.finfo(x.dtype).tiny
    assert np.all(np.abs(fs.softmax(x) - p) <= allowed)


@quick
@given(batches(largest=100.0), st.integers(-64, 64))
def test_shift_invariance(x, shift):
    """Shifts are exact in the dtype, so that both results are within 3 ulp of the same number."""
    grid = np.float64(2.0**-8)
    x = (np.round(np.float64(x) / grid) * grid).astype(x.dtype)
    moved = (x + x.dtype.type(shift)).astype(x.dtype)
    exact = np.float64(moved) - np.float64(x) == shift
    x, moved = x[exact.all(axis=-1)], moved[exact.all(axis=-1)]
    eps, tiny = EPS[x.dtype.type], np.finfo(x.dtype).tiny
    np.testing.assert_allclose(fs.softmax(moved), fs.softmax(x), rtol=6 * eps, atol=tiny)
    np.testing.assert_allclose(fs.log_softmax(moved), fs.log_softmax(x), rtol=8 * eps, atol=tiny)
    labels = np.argmax(x, axis=-1)
    for actual, expected in zip(
        fs.cross_entropy_with_grad(moved, labels, reduction="none"),
        fs.cross_entropy_with_grad(x, labels, reduction="none"),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, rtol=8 * eps, atol=tiny)


@quick
@given(batches(), st.randoms(use_true_random=False))
def test_permutation_equivariance(x, random):
    """Permuted entries have permuted results, within the bounds of both."""
    order = list(range(x.shape[1]))
    random.shuffle(order)
    eps, tiny = EPS[x.dtype.type], np.finfo(x.dtype).tiny
    shuffled = np.ascontiguousarray(x[:, order])
    np.testing.assert_allclose(fs.softmax(shuffled), fs.softmax(x)[:, order], rtol=6 * eps, atol=tiny)
    np.testing.assert_allclose(fs.log_softmax(shuffled), fs.log_softmax(x)[:, order], rtol=8 * eps, atol=tiny)
    if x.shape[1] <= 20:
        expected = fs.softmax_jacobian(x)[:, order][:, :, order]
        np.testing.assert_allclose(fs.softmax_jacobian(shuffled), expected, rtol=13 * eps, atol=tiny)


@quick
@given(batches(), st.floats(-100, 100))
def test_derivatives_along_a_shift_are_zero(x, size):
    """J 1 = 0 for both; 1^T J = 0 for softmax. Within rounding, because the sum of p is 1 within rounding."""
    ones = np.full_like(x, size)
    eps = EPS[x.dtype.type]
    for function in (fs.softmax_jvp, fs.softmax_vjp, fs.log_softmax_jvp):
        assert np.abs(function(x, ones)).max() <= 6 * eps * abs(size) + np.finfo(x.dtype).tiny
    p = fs.softmax(x)
    np.testing.assert_allclose(
        fs.log_softmax_vjp(x, np.ones_like(x)), 1 - p * np.float64(x.shape[1]), rtol=0, atol=8 * eps * x.shape[1]
    )


@quick
@given(batches(), st.integers(0, 2**32 - 1))
def test_gradients_sum_to_zero(x, seed):
    """Because a shift of all logits of a row does not change the loss."""
    rng = np.random.default_rng(seed)
    labels, targets = rng.integers(0, x.shape[1], len(x)), rng.random(x.shape).astype(x.dtype)
    eps = EPS[x.dtype.type]
    total = np.float64(targets).sum(axis=-1)
    for gradient, size in (
        (fs.cross_entropy_grad(x, labels, reduction="sum"), 1.0),
        (fs.cross_entropy_grad(x, targets, reduction="sum"), total),
        (fs.squared_error_grad(x, targets, reduction="sum"), 2.0),
    ):
        assert np.all(np.abs(gradient.sum(axis=-1, dtype=np.float64)) <= 10 * eps * size)


# --- bits ----------------------------------------------------------------------------------------------------


@every
def test_inputs_are_unchanged(function):
    for shape in ((3,), (20, 3), (3, 60), (4, 5, 6), (2, 33, 17)):
        for axis in range(len(shape)):
            x = np.random.default_rng(1).normal(size=shape)
            others = function.other(x, axis)
            copies = [x.copy(), *(other.copy() for other in others)]
            for array in (x, *others):
                array.flags.writeable = False
            function.function(x, *others, axis=axis, **dict(function.options))
            for array, copy in zip((x, *others), copies, strict=True):
                np.testing.assert_array_equal(array, copy)


@every
@settings(quick, max_examples=15)
@given(data=st.data())
def test_a_row_does_not_know_its_batch(function, data):
    """A single row has the same bits as among other rows, at any place in a vector of rows."""
    x = data.draw(batches(least_rows=2, most_rows=70))
    others = function.other(x)
    options = dict(function.options) or ({"reduction": "sum"} if function in functions.GRADIENTS else {})
    together = function.function(x, *others, **options)
    for n in data.draw(st.sets(st.integers(0, len(x) - 1), min_size=1, max_size=4)):
        alone = function.function(x[n : n + 1], *(other[n : n + 1] for other in others), **options)
        np.testing.assert_array_equal(alone[0], together[n])
        single = function.function(x[n], *(other[n] for other in others), **options)
        np.testing.assert_array_equal(single, together[n])


@every
@settings(quick, max_examples=10)
@given(data=st.data())
def test_a_row_beside_others_does_not_know_them(function, data):
    """The same for rows that lie side by side, where the classes are not the last axis."""
    x = np.ascontiguousarray(data.draw(batches(least_rows=17, most_rows=70)).T)
    others = function.other(x, 0)
    options = dict(function.options) or ({"reduction": "sum"} if function in functions.GRADIENTS else {})
    together = function.function(x, *others, axis=0, **options)
    start = data.draw(st.integers(0, x.shape[1] - 9))
    some = slice(start, start + data.draw(st.integers(9, x.shape[1] - start)))
    part = np.ascontiguousarray(x[:, some])
    rest = [other[some] if other.ndim == 1 else other[:, some] for other in others]
    alone = function.function(part, *rest, axis=0, **options)
    expected = together[:, some] if function.result == "x" else together[some]
    np.testing.assert_array_equal(alone, expected)


@every
@settings(quick, max_examples=5)
@given(data=st.data())
def test_threads_do_not_change_a_bit(function, data):
    """The arrays are large enough for several threads. Each number of threads cuts them into other blocks."""
    classes = data.draw(st.sampled_from([3, 40, 57, 300]))
    dtype = data.draw(dtypes)
    rows = 400_000 // classes // (classes // 4 + 1 if function.result == "square" else 1)
    x = np.random.default_rng(classes).normal(0, 3, (rows, classes)).astype(dtype)
    with fs.threads(1):
        serial = function(x)
    for count in (2, 3, 8):
        with fs.threads(count):
            np.testing.assert_array_equal(function(x), serial)
    x = np.ascontiguousarray(x.T)
    with fs.threads(1):
        serial = function(x, 0)
    with fs.threads(2):
        np.testing.assert_array_equal(function(x, 0), serial)


@pytest.mark.parametrize("function", functions.WITH_OUT, ids=str)
@settings(quick, max_examples=15)
@given(x=batches())
def test_out_does_not_change_a_bit(function, x):
    expected = function(x)
    out = np.full_like(expected, 7)
    function(x, out=out)
    np.testing.assert_array_equal(out, expected)
    if function.result == "x":
        others = function.other(x)
        here = x.copy()
        function.function(here, *others, out=here, **dict(function.options))
        np.testing.assert_array_equal(here, expected)


@every
def test_the_same_call_gives_the_same_bits(function):
    """A call does not depend on scratch memory or state of the call before."""
    small, large = (np.random.default_rng(n).normal(0, 5, (37, n)) for n in (13, 130))
    first = [function(small), function(large)]
    function(np.full((64, 130), np.nan))
    function(np.full((64, 13), np.inf))
    np.testing.assert_array_equal(function(small), first[0])
    np.testing.assert_array_equal(function(large), first[1])
