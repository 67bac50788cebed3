"""Results of rows with infinities and NaN, empty rows and masked rows. No warning is raised.

Every call runs with all floating-point errors turned into exceptions.
"""

import functions
import numpy as np
import pytest

import fastsoftmax as fs

INF, NAN = np.inf, np.nan
every_dtype = pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
# Rows of these lengths are walked in columns and along the row, with whole vectors and with a part of one.
every_length = pytest.mark.parametrize("classes", [2, 3, 16, 40, 56, 57, 300])


@pytest.fixture(autouse=True)
def strict():
    with np.errstate(all="raise"):
        yield


def row(head, filler, classes, dtype):
    """A row that starts with some numbers and is filled up with another one."""
    return np.array([*head, *[filler] * (classes - len(head))][:classes], dtype)


def among_others(special, function):
    """The results of a special row, and of the normal rows around it in one batch, which must not change.

    Twenty rows: one vector of rows and a part of one, so that the special row shares its vector with normal ones.
    """
    normal = np.round(np.linspace(-2, 2, 20 * len(special)), 3).reshape(20, -1).astype(special.dtype)
    mixed = normal.copy()
    mixed[13] = special
    plain, result = function(normal), function(mixed)
    np.testing.assert_array_equal(np.delete(result, 13, 0), np.delete(plain, 13, 0))
    assert np.all(np.isfinite(plain))
    return result[13]


def softmax_rows(special):
    return [among_others(special, f) for f in (fs.softmax, fs.log_softmax, fs.logsumexp)]


@every_dtype
@every_length
def test_all_minus_inf(dtype, classes):
    p, log_p, lse = softmax_rows(row([], -INF, classes, dtype))
    assert np.all(np.isnan(p))
    assert np.all(np.isnan(log_p))
    assert lse == -INF


@every_dtype
@every_length
def test_one_finite_entry(dtype, classes):
    p, log_p, lse = softmax_rows(row([-INF, 0.0], -INF, classes, dtype))
    np.testing.assert_array_equal(p, row([0, 1], 0, classes, dtype))
    np.testing.assert_array_equal(log_p, row([-INF, 0], -INF, classes, dtype))
    assert lse == 0


@every_dtype
@every_length
def test_some_minus_inf(dtype, classes):
    p, log_p, lse = softmax_rows(row([-INF, 1.0], 1.0, classes, dtype))
    np.testing.assert_allclose(
        np.float64(p), row([0], 1 / (classes - 1), classes, float), rtol=2 * np.finfo(dtype).eps
    )
    assert p[0] == 0
    assert log_p[0] == -INF
    assert lse == pytest.approx(1 + np.log(classes - 1), rel=2 * float(np.finfo(dtype).eps))


@every_dtype
@every_length
@pytest.mark.parametrize("filler", [0.0, -1e4, 1e4, -INF, INF])
def test_plus_inf(dtype, classes, filler):
    """As in SciPy, the whole row is nan; it is not 1 at the infinity."""
    p, log_p, lse = softmax_rows(row([0.0, INF], filler, classes, dtype))
    assert np.all(np.isnan(p))
    assert lse == INF
    finite = row([0.0, INF], filler, classes, dtype) < INF
    assert np.all((log_p[finite] == -INF) | np.isnan(log_p[finite]))
    assert np.all(np.isnan(log_p[~finite]))


@every_dtype
@every_length
@pytest.mark.parametrize("filler", [0.0, -1e4, 1e4, -INF, INF, NAN])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_nan(dtype, classes, filler, place):
    """The whole row is nan, also where a term underflows and where the greatest entry is infinite."""
    special = row([0.0], filler, classes, dtype)
    special[place] = NAN
    p, log_p, lse = softmax_rows(special)
    assert np.all(np.isnan(p))
    assert np.all(np.isnan(log_p))
    assert np.isnan(lse)


@every_dtype
@every_length
@pytest.mark.parametrize("filler", [0.0, -1e4, INF, -INF])
def test_nan_reaches_every_derivative(dtype, classes, filler):
    special = row([1.0, NAN], filler, classes, dtype)
    for function in functions.JACOBIANS + functions.PRODUCTS + functions.GRADIENTS + functions.LOSSES:
        assert np.all(np.isnan(among_others(special, function))), str(function)


@every_dtype
@every_length
def test_undefined_probabilities_have_undefined_derivatives(dtype, classes):
    """With +inf in the row, or nothing but -inf, softmax and everything computed from it is nan."""
    for special in (row([0.0, INF], 0.0, classes, dtype), row([], -INF, classes, dtype)):
        for function in functions.JACOBIANS + functions.PRODUCTS + functions.GRADIENTS:
            result = among_others(special, function)
            assert np.all(np.isnan(result)), (str(function), special[:3], result)


@every_dtype
@every_length
def test_impossible_classes(dtype, classes):
    """A logit of -inf has probability exactly 0, and derivatives of exactly 0."""
    special = row([-INF, 0.0], 0.0, classes, dtype)
    jacobian = among_others(special, fs.softmax_jacobian)
    assert not np.any(jacobian[0])
    assert not np.any(jacobian[:, 0])
    assert np.all(np.isfinite(jacobian))
    log_jacobian = among_others(special, fs.log_softmax_jacobian)
    assert not np.any(log_jacobian[1:, 0])
    assert log_jacobian[0, 0] == 1
    # The gradient p - q of the divergence is -q there: see tests/api/test_divergences.py.
    of_vectors = tuple(
        function
        for function in functions.GRADIENTS
        if function.make is functions.vector_for and function.name != "kl_divergence_grad"
    )
    for function in functions.PRODUCTS[:2] + of_vectors:
        result = among_others(special, function)
        assert result[0] == 0
        assert np.all(np.isfinite(result))


@every_dtype
@every_length
def test_zero_times_inf(dtype, classes):
    """A target of 0 against a logit of -inf adds 0 to the loss; any other target there makes it infinite."""
    logits = row([-INF, 0.0], 0.0, classes, dtype)
    with_zero = row([0.0, 1.0], 0.0, classes, dtype)
    loss, gradient = fs.cross_entropy_with_grad(logits[None], with_zero[None], reduction="none")
    assert loss[0] == pytest.approx(np.log(classes - 1), rel=2 * float(np.finfo(dtype).eps), abs=0)
    assert gradient[0, 0] == 0
    assert np.all(np.isfinite(gradient))
    with_share = row([0.5, 0.5], 0.0, classes, dtype)
    loss, gradient = fs.cross_entropy_with_grad(logits[None], with_share[None], reduction="none")
    assert loss[0] == INF
    assert gradient[0, 0] == -0.5
    assert np.all(np.isfinite(gradient))
    loss, gradient = fs.cross_entropy_with_grad(logits[None], [0], reduction="none")
    assert loss[0] == INF
    assert gradient[0, 0] == -1
    loss, gradient = fs.cross_entropy_with_grad(logits[None], [1], reduction="none")
    assert loss[0] == pytest.approx(np.log(classes - 1), rel=2 * float(np.finfo(dtype).eps), abs=0)
    assert gradient[0, 0] == 0


@every_dtype
def test_one_infinite_loss_among_others(dtype):
    """If one of the rows that share a vector has an infinite loss, the losses of the others stay finite."""
    logits = np.zeros((40, 3), dtype)
    logits[7, 0] = -INF
    targets = np.tile(np.array([0.5, 0.5, 0.0], dtype), (40, 1))
    losses = fs.cross_entropy(logits, targets, reduction="none")
    assert losses[7] == INF
    assert np.all(np.isfinite(np.delete(losses, 7)))
    assert fs.cross_entropy(logits, targets) == INF


@every_dtype
@every_length
def test_targets_of_nothing(dtype, classes):
    """A row of zero targets has loss 0 and gradient 0."""
    logits = np.linspace(-1, 1, classes).astype(dtype)[None]
    loss, gradient = fs.cross_entropy_with_grad(logits, np.zeros_like(logits), reduction="none")
    assert loss[0] == 0
    assert not np.any(gradient)


@every_dtype
def test_nan_and_infinite_targets_stay_in_their_row(dtype):
    logits = np.linspace(-1, 1, 40 * 3).reshape(40, 3).astype(dtype)
    plain = np.full(logits.shape, 0.25, dtype)
    for value in (NAN, INF, -INF):
        mixed = plain.copy()
        mixed[9, 1] = value
        for function in (fs.cross_entropy_with_grad, fs.squared_error_with_grad):
            for result, expected in zip(
                function(logits, mixed, reduction="none"), function(logits, plain, reduction="none"), strict=True
            ):
                assert not np.any(np.isfinite(result[9]) & (np.ndim(result) == 1))
                np.testing.assert_array_equal(np.delete(result, 9, 0), np.delete(expected, 9, 0))


# --- extremes of the range -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_length
def test_the_largest_numbers(dtype, classes):
    """x - max overflows to -inf and 2 x max to inf. The results must not be affected."""
    huge = np.finfo(dtype).max
    p, log_p, lse = softmax_rows(row([huge, -huge], -huge, classes, dtype))
    np.testing.assert_array_equal(p, row([1], 0, classes, dtype))
    assert log_p[0] == 0
    assert np.all(log_p[1:] == -INF)
    assert lse == huge
    p, log_p, lse = softmax_rows(row([], huge, classes, dtype))
    np.testing.assert_allclose(p, 1 / classes, rtol=2 * np.finfo(dtype).eps)
    np.testing.assert_allclose(log_p, -np.log(classes), rtol=2 * np.finfo(dtype).eps)
    assert lse == huge
    p, _, lse = softmax_rows(row([], -huge, classes, dtype))
    np.testing.assert_allclose(p, 1 / classes, rtol=2 * np.finfo(dtype).eps)
    assert lse == -huge


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_length
def test_denormal_logits(dtype, classes):
    """Denormal logits give uniform probabilities, because their differences are negligible."""
    least = np.finfo(dtype).smallest_subnormal
    p, log_p, _ = softmax_rows(row([least, -least], 0.0, classes, dtype))
    np.testing.assert_allclose(p, 1 / classes, rtol=2 * np.finfo(dtype).eps)
    np.testing.assert_allclose(log_p, -np.log(classes), rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_length
def test_terms_that_vanish_one_by_one_do_not_vanish_together(dtype, classes):
    """Each of the other terms is below the smallest normal number, but their sum, 1 - p, is not."""
    gap = -np.log(float(np.finfo(dtype).tiny)) + 0.5
    x = row([gap], 0.0, classes, dtype)
    others = (classes - 1) * np.exp(-np.longdouble(x[0]))
    tiny = np.finfo(dtype).tiny
    if others < 1.01 * tiny:
        assert abs(fs.log_softmax(x)[0] + others) <= tiny
        return
    rel = 4 * float(np.finfo(dtype).eps)
    with np.errstate(under="ignore"):
        assert float(-fs.log_softmax(x)[0] / others) == pytest.approx(1, rel=rel)
        loss, gradient = fs.cross_entropy_with_grad(x[None], [0])
        assert float(loss / others) == pytest.approx(1, rel=rel)
        assert float(-gradient[0, 0] / others) == pytest.approx(1, rel=rel)
        assert float(fs.log_softmax_jacobian(x)[0, 0] / others) == pytest.approx(1, rel=rel)


# --- nothing -------------------------------------------------------------------------------------------------


@every_dtype
def test_no_rows(dtype):
    for function in functions.ALL:
        result = function(np.zeros((0, 5), dtype))
        assert result.shape == function.shape((0, 5))
        assert result.dtype == dtype


@every_dtype
def test_no_classes(dtype):
    """Rows without entries: empty arrays, the log-sum-exp of an empty sum, losses of 0."""
    x = np.zeros((3, 0), dtype)
    for function in (fs.softmax, fs.log_softmax):
        assert function(x).shape == (3, 0)
    np.testing.assert_array_equal(fs.logsumexp(x), np.full(3, -INF, dtype))
    assert fs.logsumexp(x).dtype == dtype
    for function in functions.JACOBIANS:
        assert function(x).shape == (3, 0, 0)
    for function in functions.PRODUCTS:
        assert function(x).shape == (3, 0)
    for function in (fs.cross_entropy_with_grad, fs.squared_error_with_grad):
        loss, gradient = function(x, x, reduction="none")
        np.testing.assert_array_equal(loss, np.zeros(3, dtype))
        assert gradient.shape == (3, 0)


@every_dtype
@pytest.mark.parametrize("shape", [(0,), (0, 0), (2, 0, 3), (2, 3, 0), (0, 3, 2)])
def test_empty_arrays_along_every_axis(dtype, shape):
    x = np.zeros(shape, dtype)
    for axis in range(len(shape)):
        for function in functions.ACTIVATIONS + functions.JACOBIANS + functions.PRODUCTS:
            result = function(x, axis)
            assert result.shape == function.shape(shape, axis), (str(function), axis)
            assert np.all(result == -INF) or result.size == 0
    for axis in (None, (0,), tuple(range(len(shape)))):
        assert fs.softmax(x, axis).shape == shape
        kept = fs.logsumexp(x, axis, keepdims=True)
        assert kept.ndim == len(shape)
        assert np.all(kept == -INF) or kept.size == 0


# --- masks ---------------------------------------------------------------------------------------------------


@every_dtype
@every_length
@pytest.mark.parametrize("junk", [0.0, 1e4, NAN, INF, -INF])
def test_masked_entries_have_no_influence(dtype, classes, junk):
    """The result has the same bits as for a row with -inf in their place."""
    mask = np.arange(40 * classes).reshape(40, classes) % 3 > 0
    mask[5] = False
    x = np.linspace(-3, 3, 40 * classes).reshape(40, classes).astype(dtype)
    filled = np.where(mask, x, dtype(junk))
    hidden = np.where(mask, x, dtype(-INF))
    some = mask.any(axis=-1)
    p, log_p, lse = (f(filled, where=mask) for f in (fs.softmax, fs.log_softmax, fs.logsumexp))
    np.testing.assert_array_equal(p[some], fs.softmax(hidden)[some])
    np.testing.assert_array_equal(log_p[some], fs.log_softmax(hidden)[some])
    np.testing.assert_array_equal(lse, fs.logsumexp(hidden))
    assert np.all(p[~mask] == 0)
    assert np.all(log_p[~mask] == -INF)
    assert np.all(lse[~some] == -INF)
    assert not np.any(np.signbit(p))


@every_dtype
def test_masks_broadcast(dtype):
    x = np.arange(24, dtype=dtype).reshape(2, 3, 4) / 8
    for mask in (np.array([True, False, True, True]), np.array([[True], [False], [True]]), np.True_, np.False_):
        full = np.broadcast_to(mask, x.shape)
        for axis in (-1, 0, (0, 1), None):
            for function in (fs.softmax, fs.log_softmax, fs.logsumexp):
                np.testing.assert_array_equal(function(x, axis, where=mask), function(x, axis, where=full))
    for function in (fs.softmax, fs.log_softmax, fs.logsumexp):
        np.testing.assert_array_equal(function(x, where=True), function(x))
        np.testing.assert_array_equal(function(x, where=None), function(x))


def test_masks_with_out_and_in_place():
    x = np.array([[1.0, NAN, 2.0], [NAN, NAN, NAN]])
    mask = np.isfinite(x)
    expected = fs.softmax(x, where=mask)
    out = np.full_like(x, 7.0)
    assert fs.softmax(x, where=mask, out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert fs.softmax(x, where=mask, out=x) is x
    np.testing.assert_array_equal(x, expected)


def test_masks_of_integers():
    """A masked float is replaced by -inf. Integers have no -inf, and must be converted first."""
    p = fs.softmax(np.array([1, 2, 3]), where=[True, False, True])
    np.testing.assert_array_equal(p, fs.softmax([1.0, -INF, 3.0]))
