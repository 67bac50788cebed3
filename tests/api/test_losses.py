"""cross_entropy and squared_error, with their gradients: against the oracle, and each gradient in other ways."""

import math
import pickle

import cases
import numpy as np
import oracle
import pytest
from functions import skip_unless_fused

import fastsoftmax as fs
from fastsoftmax import _spec
from fastsoftmax._vectors import ON_STACK
from fastsoftmax.arrays import long_rows, losses
from fastsoftmax.arrays.options import LossOptions
from fastsoftmax.machine import entry

every_length = pytest.mark.parametrize("classes", cases.CLASSES)
every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)
INDEX_DTYPES = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)


def floats(values):
    return np.array([float(v) for v in np.ravel(values)]).reshape(np.shape(values))


def sums(values):
    return values.sum(axis=-1, keepdims=True)


# --- cross-entropy of class indices --------------------------------------------------------------------------


@every_dtype
@every_length
def test_cross_entropy_of_labels(dtype, classes, record):
    """Within 4 ulp in every row. Half of the labels are those of the greatest logit, where the loss is tiny."""
    x, y = cases.logits(dtype, classes), cases.labels(cases.logits(dtype, classes))
    loss = fs.cross_entropy(x, y, reduction="none")
    assert loss.dtype == dtype
    ulps, (n,) = oracle.worst(loss, oracle.rowwise(oracle.cross_entropy, x, y))
    record("cross_entropy, row", dtype, ulps, 4, f"K = {classes}, row {n}: {x[n].tolist()[:50]}, label {y[n]}")


@every_dtype
@every_length
def test_gradient_of_labels(dtype, classes, record):
    """Every entry p - y is within 4 ulp, also at the label of a confident row."""
    x, y = cases.logits(dtype, classes), cases.labels(cases.logits(dtype, classes))
    reference = oracle.rowwise(oracle.cross_entropy_grad, x, y)
    gradient = fs.cross_entropy_grad(x, y, reduction="sum")
    assert gradient.dtype == dtype
    ulps, place = oracle.worst(gradient, reference)
    n = place[0]
    detail = f"K = {classes}, entry {place}: {x[n].tolist()[:50]}, label {y[n]}"
    record("cross_entropy_grad, labels", dtype, ulps, 4, detail)
    # the mean divides each entry by N, within the same bound: the weight is a pair and rounds once
    ulps, place = oracle.worst(fs.cross_entropy_grad(x, y), reference / len(x))
    record("cross_entropy_grad, labels, mean", dtype, ulps, 4, f"K = {classes}, entry {place}")


@every_dtype
def test_means_round_once(dtype):
    """1/N is not exact in the dtype. The kernels take it as a pair, so that they round once.

    p = 1/4 and p - 1 = -3/4 are exact, hence every entry is 1/4 or -3/4 over N, rounded once.
    """
    skip_unless_fused(dtype)
    for count in range(1, 300):
        gradient = fs.cross_entropy_grad(np.zeros((count, 4), dtype), np.zeros(count, int))
        expected = np.array([-0.75, 0.25, 0.25, 0.25], np.longdouble) / count
        np.testing.assert_array_equal(gradient, np.tile(expected.astype(dtype), (count, 1)))


@every_dtype
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 56, 57, 100, 1000])
def test_labels_of_classes_that_are_not_last(dtype, classes, record):
    """Rows that lie side by side in memory, where the label's logit is at another place."""
    x, y = cases.logits(dtype, classes), cases.labels(cases.logits(dtype, classes))
    loss, gradient = fs.cross_entropy_with_grad(np.ascontiguousarray(x.T), y, axis=0, reduction="none")
    ulps, (n,) = oracle.worst(loss, oracle.rowwise(oracle.cross_entropy, x, y))
    record("cross_entropy, row, axis 0", dtype, ulps, 4, f"K = {classes}, row {n}")
    ulps, place = oracle.worst(gradient.T, oracle.rowwise(oracle.cross_entropy_grad, x, y))
    record("cross_entropy_grad, labels, axis 0", dtype, ulps, 4, f"K = {classes}, entry {place}")


@every_dtype
@pytest.mark.parametrize("classes", [2, 3, 10, 56, 57, 100, 1000, 50257])
def test_many_labels(dtype, classes, record):
    """Loss and gradient at the label of a million entries, half of them the greatest of their rows."""
    if not oracle.has_wider(dtype):
        pytest.skip("longdouble is no wider than float64 here")
    rng = np.random.default_rng(classes)
    count = 1_000_000 // classes
    spread = 10.0 ** rng.uniform(-3, 2, (count, 1))
    x = (rng.choice([0.0, 1e4, -1e4], (count, 1)) + spread * rng.standard_normal((count, classes))).astype(dtype)
    y = np.where(np.arange(count) % 2, np.argmax(x, axis=-1), rng.integers(0, classes, count))
    loss, gradient = fs.cross_entropy_with_grad(x, y, reduction="none")
    difference, others = oracle.wide_forward(x)
    rows = np.arange(count)
    reference = -difference[rows, y] + np.log1p(others[:, 0])
    error = oracle.wide_error(loss, reference)
    n = error.argmax()
    record("cross_entropy, row", dtype, error[n], 4, f"row {x[n].tolist()[:50]}, label {y[n]}")
    with np.errstate(under="ignore"):
        inside = np.exp(difference[rows, y]) / (1 + others[:, 0]) - 1
    at_label = np.where(y == np.argmax(x, axis=-1), -oracle.wide_remainder(x), inside)
    error = oracle.wide_error(gradient[rows, y], at_label)
    n = error.argmax()
    record("cross_entropy_grad, labels", dtype, error[n], 4, f"row {x[n].tolist()[:50]}, label {y[n]}")


@every_dtype
def test_labels_of_long_rows(dtype, record, monkeypatch):
    """Rows in pieces have the same bounds, with weights and ignored rows, on any number of threads."""
    x = cases.logits(dtype, 1000)[::5].copy()
    x[0, 200:] -= 3000  # pieces beyond the range of exp below the greatest entry
    x[1] = np.linspace(-2000, 2000, 1000)
    y = cases.labels(x)
    monkeypatch.setattr(losses, "_SMALL", {})
    monkeypatch.setattr(long_rows, "LONG_ROW", 300)
    monkeypatch.setattr(long_rows, "PIECE", 128)
    cut, seen = long_rows.long_cross_entropy, []
    monkeypatch.setattr(long_rows, "long_cross_entropy", lambda *a: (seen.append(a), cut(*a)))
    loss, gradient = fs.cross_entropy_with_grad(x, y, reduction="none")
    assert seen
    ulps, (n,) = oracle.worst(loss, oracle.rowwise(oracle.cross_entropy, x, y))
    record("cross_entropy, row, long rows", dtype, ulps, 4, f"row {n}, label {y[n]}")
    ulps, place = oracle.worst(gradient, oracle.rowwise(oracle.cross_entropy_grad, x, y))
    record("cross_entropy_grad, labels, long rows", dtype, ulps, 4, f"entry {place}, label {y[place[0]]}")
    with fs.threads(1):
        np.testing.assert_array_equal(fs.cross_entropy_grad(x, y, reduction="none"), gradient)
    np.testing.assert_array_equal(fs.cross_entropy(x, y, reduction="none"), loss)
    weights = np.where(np.arange(len(y)) % 3, 2.0, 0.0).astype(dtype)  # powers of two: exact
    weighted = fs.cross_entropy_with_grad(x, y, sample_weight=weights, reduction="none")
    np.testing.assert_array_equal(weighted[0], loss * weights)
    lifted = 2 * np.finfo(dtype).tiny  # a weight makes it a normal number
    np.testing.assert_allclose(weighted[1], gradient * weights[:, None], rtol=0, atol=lifted)
    labels = np.where(weights == 0, -1, y)
    mean, slope = fs.cross_entropy_with_grad(x, labels, ignore_index=-1, out=x)
    counted = np.count_nonzero(weights)
    assert mean == pytest.approx(loss[weights > 0].sum(dtype=np.float64) / counted, rel=1e-6)
    assert slope is x
    np.testing.assert_allclose(slope, gradient * (weights[:, None] / 2) / counted, rtol=1e-5, atol=1e-37)


# --- cross-entropy of distributions --------------------------------------------------------------------------


@every_dtype
@every_length
def test_cross_entropy_of_distributions(dtype, classes, record):
    """Within 4.5 ulp: 4 of log p_j and half an ulp of the product y_j (-log p_j).

    No term is negative, and the sum is compensated, so that the sum has the errors of its terms.
    """
    x = cases.logits(dtype, classes)
    y = cases.distributions(x)
    loss = fs.cross_entropy(x, y, reduction="none")
    ulps, (n,) = oracle.worst(loss, oracle.rowwise(oracle.cross_entropy, x, y))
    record("cross_entropy, row, distributions", dtype, ulps, 4.5, f"K = {classes}, row {n}: {x[n].tolist()[:50]}")


@every_dtype
@every_length
def test_gradient_of_distributions(dtype, classes, record):
    """p sum(y) - y: 3 eps of p sum(y) from p, and eps/2 of the result for each of two operations.

    Where p is close to 1, 1 - p has the 3 eps. The error is relative to the smaller of p and 1 - p.
    """
    x = cases.logits(dtype, classes)
    y = cases.distributions(x)
    reference = oracle.rowwise(oracle.cross_entropy_grad, x, y)
    gradient = fs.cross_entropy_grad(x, y, reduction="sum")
    total = sums(y.astype(np.float64))
    p = floats(oracle.rowwise(oracle.softmax, x))
    # above 1/2, 1 - p has few digits as a float, but the result has its size or that of sum(y) - y
    part = np.where(p > 0.5, 1 - p, p) * total
    scale = np.maximum(np.abs(floats(reference)), np.finfo(dtype).tiny) + part
    ulps, place = oracle.worst(gradient, reference, scale)
    n = place[0]
    detail = f"K = {classes}, {place}: {x[n].tolist()[:50]}, targets {y[n].tolist()[:50]}"
    record("cross_entropy_grad, distributions (eps of its terms)", dtype, ulps, 4, detail)


@every_dtype
@every_length
def test_one_hot_distributions_are_labels(dtype, classes, record):
    """p - y is within 4 ulp, as for labels, also if another class ties with the greatest logit."""
    if classes > 1000:
        pytest.skip("the shorter rows cover both walks")
    x, y = cases.logits(dtype, classes), cases.labels(cases.logits(dtype, classes))
    one_hot = np.eye(classes, dtype=np.int8)[y]
    loss, gradient = fs.cross_entropy_with_grad(x, one_hot, reduction="none")
    ulps, (n,) = oracle.worst(loss, oracle.rowwise(oracle.cross_entropy, x, y))
    record("cross_entropy, row, one-hot", dtype, ulps, 4, f"K = {classes}, row {n}: {x[n].tolist()[:50]}, {y[n]}")
    ulps, place = oracle.worst(gradient, oracle.rowwise(oracle.cross_entropy_grad, x, y))
    n = place[0]
    detail = f"K = {classes}, entry {place}: {x[n].tolist()[:50]}, label {y[n]}"
    record("cross_entropy_grad, one-hot", dtype, ulps, 4, detail)


# --- squared error -------------------------------------------------------------------------------------------


def targets_of(x):
    """Targets near the probabilities and far from them, which do not sum to 1."""
    rng = np.random.default_rng(x.shape[-1])
    t = rng.random(x.shape)
    t[::2] = 0.0
    t[::2, 0] = 1.0
    t[1::5] = rng.normal(0, 3, t[1::5].shape)
    return t.astype(x.dtype)


@every_dtype
@every_length
def test_squared_error(dtype, classes, record):
    """1/2 sum d**2, d = p - t: |d| (3 p + |d|/2) from d, (3 p)**2/2 of second order, a rounding of the square."""
    x = cases.logits(dtype, classes)
    x = x[1:] if classes > 1000 else x
    t = targets_of(x)
    loss = fs.squared_error(x, t, reduction="none")
    assert loss.dtype == dtype
    p, wide = floats(oracle.rowwise(oracle.softmax, x)), t.astype(np.float64)
    second_order = 1.5 * np.finfo(dtype).eps * p * p
    scale = np.sum(np.abs(p - wide) * (p + np.abs(p - wide)) + second_order, axis=-1)
    ulps, (n,) = oracle.worst(loss, oracle.rowwise(oracle.squared_error, x, t), scale)
    record("squared_error, row (eps of its terms)", dtype, ulps, 3.5, f"K = {classes}, row {n}")


@every_dtype
@every_length
def test_squared_error_gradient(dtype, classes, record):
    """p (d - p.d): 3 p |d - p.d| from p, 3 p (p + sum(p (|d| + p))) from the p in d, and five roundings."""
    x = cases.logits(dtype, classes)
    x = x[1:] if classes > 1000 else x
    t = targets_of(x)
    reference = oracle.rowwise(oracle.squared_error_grad, x, t)
    p = floats(oracle.rowwise(oracle.softmax, x))
    d = p - t.astype(np.float64)
    scale = np.abs(d - sums(p * d)) + p + sums(p * (np.abs(d) + p))
    scale *= np.maximum(p, np.finfo(dtype).tiny / np.finfo(dtype).eps)
    gradient = fs.squared_error_grad(x, t, reduction="sum")
    assert gradient.dtype == dtype
    ulps, place = oracle.worst(gradient, reference, scale)
    record("squared_error_grad (eps of its terms)", dtype, ulps, 3 + 2.5, f"K = {classes}, entry {place}")
    ulps, place = oracle.worst(fs.squared_error_grad(x, t), reference / len(x), scale / len(x))
    record("squared_error_grad, mean (eps of its terms)", dtype, ulps, 3 + 3, f"K = {classes}, entry {place}")


# --- the gradients in other ways -----------------------------------------------------------------------------

STEP = 6e-6  # eps**(1/3), as in test_derivatives
few_lengths = pytest.mark.parametrize("classes", [1, 2, 3, 10, 17, 57, 100])
every_loss = pytest.mark.parametrize("loss", ["labels", "distributions", "squared"])


def problem(loss, classes):
    """Logits, targets, and the pair of functions (loss, gradient) of one kind."""
    rng = np.random.default_rng(classes)
    x = rng.normal(0, 1.5, (5, classes))
    if loss == "labels":
        return x, rng.integers(0, classes, 5), fs.cross_entropy, fs.cross_entropy_grad
    y = rng.random((5, classes))
    if loss == "distributions":
        return x, y, fs.cross_entropy, fs.cross_entropy_grad
    return x, y, fs.squared_error, fs.squared_error_grad


@few_lengths
@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradient_is_the_finite_difference(loss, classes, reduction):
    """One logit at a time. With "none", the gradient is that of each row's own loss, as for the sum."""
    x, y, function, slope = problem(loss, classes)
    gradient = slope(x, y, reduction=reduction)
    weight = classes / 2 if loss == "distributions" else 1.0
    value = np.abs(function(x, y, reduction="none")).max() * (1 if reduction == "none" else len(x))
    # truncation h**2/6 times third cumulants of a unit vector (below 1), and the rounding of the loss
    atol = STEP**2 * weight + 8 * np.finfo(np.float64).eps * value / STEP
    for n in range(len(x)):
        for k in range(classes):
            up, down = x.copy(), x.copy()
            up[n, k] += STEP
            down[n, k] -= STEP
            expected = (function(up, y, reduction=reduction) - function(down, y, reduction=reduction)) / (2 * STEP)
            if reduction == "none":
                assert not np.any(np.delete(expected, n))
                expected = expected[n]
            assert abs(gradient[n, k] - expected) <= atol


@few_lengths
@every_loss
def test_gradient_is_a_product_with_the_dense_jacobian(loss, classes):
    """dL/dz = J^T dL/d(log p) of log-softmax, or J^T (p - t) of softmax."""
    x, y, _, slope = problem(loss, classes)
    eps = np.finfo(np.float64).eps
    if loss == "squared":
        jacobian, cotangent = fs.softmax_jacobian(x), fs.softmax(x) - y
    else:
        jacobian = fs.log_softmax_jacobian(x)
        cotangent = -(np.eye(classes)[y] if loss == "labels" else y)
    expected = np.einsum("nij,ni->nj", jacobian, cotangent)
    terms = np.einsum("nij,ni->nj", np.abs(jacobian), np.abs(cotangent) + np.abs(cotangent).max())
    assert np.all(np.abs(slope(x, y, reduction="sum") - expected) <= (10 + classes) * eps * terms)


@few_lengths
@every_loss
def test_gradient_is_the_vjp(loss, classes):
    """By products in O(K): the VJP of the derivative of the loss; and <g, J t> = <grad, t> for a tangent."""
    x, y, _, slope = problem(loss, classes)
    tangent = np.random.default_rng(9).normal(0, 1, x.shape)
    gradient = slope(x, y, reduction="sum")
    if loss == "squared":
        cotangent = fs.softmax(x) - y
        by_vjp, by_jvp = fs.softmax_vjp(x, cotangent), fs.softmax_jvp(x, tangent)
    else:
        cotangent = -(np.eye(classes)[y] if loss == "labels" else y)
        by_vjp, by_jvp = fs.log_softmax_vjp(x, cotangent), fs.log_softmax_jvp(x, tangent)
    atol = 30 * np.finfo(np.float64).eps * (1 + np.abs(cotangent).sum(axis=-1).max())
    np.testing.assert_allclose(gradient, by_vjp, rtol=0, atol=atol)
    size = np.abs(tangent).sum(axis=-1).max()
    left, right = np.sum(cotangent * by_jvp, axis=-1), np.sum(gradient * tangent, axis=-1)
    np.testing.assert_allclose(left, right, rtol=0, atol=atol * size)


# --- reductions, index dtypes, shapes ------------------------------------------------------------------------


@every_dtype
@every_loss
def test_reductions(dtype, loss):
    """Sum and mean of the rows' losses are rounded once. Gradients of sum and none have the same bits."""
    x, y, function, slope = problem(loss, 17)
    x = x.astype(dtype)
    rows = function(x, y, reduction="none")
    assert rows.shape == (5,)
    assert rows.dtype == dtype
    total = math.fsum(rows)
    for reduction, expected in (("sum", total), ("mean", total / 5)):
        value = function(x, y, reduction=reduction)
        assert type(value) is dtype
        assert value == dtype(expected)
    assert function(x, y) == function(x, y, reduction="mean")
    summed = slope(x, y, reduction="sum")
    np.testing.assert_array_equal(slope(x, y, reduction="none"), summed)
    np.testing.assert_allclose(slope(x, y), summed / 5, rtol=2 * np.finfo(dtype).eps)


@every_dtype
@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_with_grad_is_both(dtype, loss, reduction):
    """One pass gives the same bits as two."""
    for classes in (3, 17, 100):
        x, y, function, slope = problem(loss, classes)
        x = x.astype(dtype)
        both = fs.squared_error_with_grad if loss == "squared" else fs.cross_entropy_with_grad
        value, gradient = both(x, y, reduction=reduction)
        np.testing.assert_array_equal(value, function(x, y, reduction=reduction))
        np.testing.assert_array_equal(gradient, slope(x, y, reduction=reduction))


@pytest.mark.parametrize("kind", INDEX_DTYPES)
def test_every_integer_dtype_indexes(kind):
    x = np.random.default_rng(1).normal(size=(120, 127))
    labels = np.arange(120)
    expected = fs.cross_entropy_with_grad(x, labels, reduction="none")
    actual = fs.cross_entropy_with_grad(x, labels.astype(kind), reduction="none")
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])
    swapped = labels.astype(np.dtype(kind).newbyteorder("S"))
    np.testing.assert_array_equal(fs.cross_entropy(x, swapped, reduction="none"), expected[0])
    as_list = fs.cross_entropy(x, labels.tolist(), reduction="none")
    np.testing.assert_array_equal(as_list, expected[0])


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "u8", "?", ">f4", ">i2"])
def test_every_real_dtype_is_a_distribution(kind):
    """The result has the dtype of the logits, whatever that of the targets is."""
    x = np.random.default_rng(2).normal(size=(6, 5)).astype(np.float32)
    y = np.eye(5)[[0, 1, 2, 3, 4, 0]]
    for function in (fs.cross_entropy_grad, fs.squared_error_grad):
        actual = function(x, y.astype(kind))
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, function(x, y.astype(np.float32)))


def test_float64_targets_of_float32_logits_are_rounded_to_float32():
    """As documented, 0.1 means float32(0.1) beside float32 logits."""
    x, y = np.zeros((1, 3), np.float32), np.array([[0.1, 0.2, 0.7]])
    rounded = y.astype(np.float32)
    np.testing.assert_array_equal(fs.cross_entropy_grad(x, y), fs.cross_entropy_grad(x, rounded))


@every_loss
def test_float16(loss, record):
    """Computed in float32 and rounded once."""
    x, y, function, slope = problem(loss, 33)
    x = x.astype(np.float16)
    single = x.astype(np.float32)
    value, gradient = function(x, y, reduction="none"), slope(x, y, reduction="sum")
    assert value.dtype == gradient.dtype == np.float16
    np.testing.assert_array_equal(value, function(single, y, reduction="none").astype(np.float16))
    np.testing.assert_array_equal(gradient, slope(single, y, reduction="sum").astype(np.float16))
    assert function(x, y).dtype == np.float16


@every_loss
def test_one_row(loss):
    """A 1-d array is one row: the loss of "none" is a scalar."""
    x, y, function, slope = problem(loss, 10)
    value = function(x[0], y[0], reduction="none")
    assert type(value) is np.float64
    assert value == function(x, y, reduction="none")[0] == function(x[0], y[0])
    np.testing.assert_array_equal(slope(x[0], y[0]), slope(x, y, reduction="sum")[0])


@every_loss
def test_no_rows(loss):
    """The sum of nothing is 0 and its mean nan, without a warning, as in PyTorch."""
    x, y, function, slope = problem(loss, 10)
    with np.errstate(all="raise"):
        assert function(x[:0], y[:0], reduction="sum") == 0
        assert np.isnan(function(x[:0], y[:0]))
        assert function(x[:0], y[:0], reduction="none").shape == (0,)
        assert slope(x[:0], y[:0]).shape == (0, 10)


# --- small calls ----------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("classes", [1, 2, 10, 65])
def test_small_calls_have_the_bits_of_others(dtype, classes):
    """Small calls take a shorter way from the second call on, with the same bits."""
    for count in (1, 4, 5, 33):
        x = (np.random.default_rng(classes).normal(size=(count, classes)) * 5).astype(dtype)
        x[0, classes - 1] = -np.inf if classes > 1 else 3
        y = np.arange(count) % classes
        loss, grad = fs.cross_entropy_with_grad(x, y, out=np.empty_like(x))
        for _ in range(3):
            small = fs.cross_entropy_with_grad(x, y)
            assert type(small[0]) is type(loss)
            assert small[0] == fs.cross_entropy(x, y) == loss
            np.testing.assert_array_equal(small[1], grad)
            np.testing.assert_array_equal(fs.cross_entropy_grad(x, y), grad)
    assert (np.dtype(dtype), True) in losses._SMALL


@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_small_calls_take_every_reduction(dtype, reduction):
    """With more rows than the form for small arrays has memory for, too, and in every layout."""
    for count in (1, 7, ON_STACK, ON_STACK + 1):
        x = np.random.default_rng(count).normal(0, 3, (count, 3)).astype(dtype)
        y = np.arange(count) % 3
        grad = np.empty_like(x)
        loss, _ = fs.cross_entropy_with_grad(
            x.astype(dtype, "F"), y.astype(np.int32), reduction=reduction, out=grad
        )
        for labels in (y, np.repeat(y, 2)[::2], pickle.loads(pickle.dumps(y))):
            for logits in (x, x.copy("F"), np.repeat(x, 2, axis=0)[::2]):
                np.testing.assert_array_equal(fs.cross_entropy(logits, labels, reduction=reduction), loss)
                both = fs.cross_entropy_with_grad(logits, labels, reduction=reduction)
                np.testing.assert_array_equal(both[0], loss)
                np.testing.assert_array_equal(both[1], grad)
        place = x.copy()
        assert fs.cross_entropy_grad(place, y, reduction=reduction, out=place) is place
        np.testing.assert_array_equal(place, grad)


@every_dtype
def test_a_small_gradient_may_lie_beside_the_logits(dtype, monkeypatch):
    """Neighbours in memory share none: they take the short way, which others do not."""
    memory, y = np.random.default_rng(4).normal(0, 3, (3, 4, 2)).astype(dtype), np.arange(4) % 2
    expected = fs.cross_entropy_grad(memory[1], y)
    monkeypatch.setattr(losses, "is_plain", None)
    for out in (memory[0], memory[2]):
        for _ in range(2):
            np.testing.assert_array_equal(fs.cross_entropy_grad(memory[1], y, out=out), expected)
    with pytest.raises(TypeError, match="NoneType"):
        fs.cross_entropy_grad(memory[1], y, out=memory.reshape(-1)[1:9].reshape(4, 2))


def test_a_small_gradient_may_lie_over_the_labels():
    x, y = np.random.default_rng(3).normal(0, 3, (4, 2)), np.arange(4) % 2
    expected = fs.cross_entropy_grad(x, y)
    memory = np.empty((4, 2))
    labels = memory.reshape(-1).view(np.int64)[:4]
    for _ in range(3):
        labels[:] = y
        np.testing.assert_array_equal(fs.cross_entropy_grad(x, labels, out=memory), expected)


def test_small_calls_leave_out_alone_if_a_label_is_wrong():
    x, out = np.zeros((3, 4)), np.full((3, 4), 7.0)
    for _ in range(3):
        fs.cross_entropy_grad(x, np.array([0, 3, 1]))
        with pytest.raises(IndexError, match=r"targets\[2\] is 4, expected a label from 0 to 3"):
            fs.cross_entropy_grad(x, np.array([0, 3, 4]), out=out)
        assert (out == 7).all()
        read_only = out.view()
        read_only.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            fs.cross_entropy_grad(x, np.array([0, 3, 1]), out=read_only)


def test_small_calls_check_their_labels():
    x = np.zeros((3, 4))
    for _ in range(3):
        assert fs.cross_entropy(x, np.array([0, 3, 1])) == pytest.approx(np.log(4))
        for wrong in (4, -1, 2**40, -(2**63)):
            with pytest.raises(IndexError, match=r"targets\[1\] is -?\d+, expected a label from 0 to 3"):
                fs.cross_entropy(x, np.array([0, wrong, 1]))


@every_dtype
def test_equal_weights_of_any_size_cancel(dtype):
    """The mean has the bits of that without weights, also if the sum of the weights or its inverse overflows."""
    rng = np.random.default_rng(5)
    x, t, y = rng.normal(0, 3, (5, 7)).astype(dtype), rng.random((5, 7)).astype(dtype), np.arange(5)
    tiny = np.finfo(dtype).smallest_subnormal
    for weight in (tiny, 64 * tiny, np.finfo(dtype).tiny, 2.0**-20, 2.0 ** (np.finfo(dtype).maxexp - 1)):
        weights = np.full(5, weight, dtype)
        for loss, targets in ((fs.cross_entropy_with_grad, y), (fs.squared_error_with_grad, t)):
            for actual, expected in zip(loss(x, targets, sample_weight=weights), loss(x, targets), strict=True):
                np.testing.assert_array_equal(actual, expected)


@every_loss
def test_float16_is_rounded_after_the_reduction(loss):
    """Sums and means are computed in float32: rows that overflow float16 and many small ones are not lost."""
    rng = np.random.default_rng(3)
    x = np.where(np.arange(40000) % 2, 7, -7)[:, None] * np.array([1, -1, 0], np.float16)
    x = (x + rng.normal(0, 0.1, x.shape)).astype(np.float16)
    single = x.astype(np.float32)
    right = np.where(np.arange(40000) % 2, 0, 1)
    y = right if loss == "labels" else np.eye(3, dtype=np.float16)[right]
    name = "squared_error" if loss == "squared" else "cross_entropy"
    function, both = getattr(fs, name), getattr(fs, f"{name}_with_grad")
    weight = np.where(np.arange(40000) == 7, 3e5, 1e-3)
    for options in ({}, {"sample_weight": weight}, {"sample_weight": np.full(40000, 6e-8, np.float16)}):
        for reduction in ("mean", "sum"):
            expected = both(single, y, reduction=reduction, **options)
            actual = both(x, y, reduction=reduction, **options)
            assert actual[0] == function(x, y, reduction=reduction, **options) == np.float16(expected[0])
            assert actual[0].dtype == np.float16
            np.testing.assert_array_equal(actual[1], expected[1].astype(np.float16))


def test_float16_losses_that_only_rows_overflow():
    x = np.array([[0, 1000.0]], np.float16)
    assert fs.cross_entropy(x, [0], class_weight=[100.0, 1.0]) == 1000
    many = np.tile(np.array([[16.0, 0.0]], np.float16), (60000, 1))
    expected = 60000 * np.log1p(np.exp(-16.0))
    assert fs.cross_entropy(many, np.zeros(60000, int), reduction="sum") == np.float16(expected)


def test_the_squared_error_of_a_confident_row():
    """(1 - p)**2 and p (d - p.d) with the digits of 1 - p."""
    loss, gradient = fs.squared_error_with_grad(np.array([[0.0, -40.0]]), np.array([[1.0, 0.0]]))
    small = np.exp(-40.0)
    assert loss == pytest.approx(small**2, rel=1e-15)
    np.testing.assert_allclose(gradient, [[-2 * small**2, 2 * small**2]], rtol=1e-15)


def test_a_heavy_target_lifts_a_probability_that_is_no_normal_number():
    logits, right = np.array([[0, -90.0]], np.float32), 1e30 * np.exp(-90.0)
    targets = np.array([[1e30, 0]], np.float32)
    loss, gradient = fs.cross_entropy_with_grad(logits, targets, reduction="sum")
    np.testing.assert_allclose(gradient, [[-right, right]], rtol=5e-7)
    assert loss == pytest.approx(right, rel=5e-7)
    options = {"sample_weight": np.array([1e30]), "reduction": "sum"}
    loss, gradient = fs.cross_entropy_with_grad(logits, [0], **options)
    np.testing.assert_allclose(gradient, [[-right, right]], rtol=5e-7)
    assert loss == pytest.approx(right, rel=5e-7)
    hessian = fs.cross_entropy_hessian(logits, [0], **options)
    np.testing.assert_allclose(hessian, [[[right, -right], [-right, right]]], rtol=5e-7)
    np.testing.assert_allclose(fs.cross_entropy_hessian_diag(logits, [0], **options), [[right, right]], rtol=5e-7)
    tangent = np.array([[1, 0]], np.float32)
    np.testing.assert_allclose(fs.cross_entropy_hvp(logits, [0], tangent, **options), [[right, -right]], rtol=5e-7)


# --- a loss that the table of functions is told of ------------------------------------------------------------


def distance_kernel(start, stop, room, x, labels, weights, y, rows, over, scale, scale_low):
    """Half the squared distance of the logits from the one-hot label, as plain Python."""
    _, classes, inner = x.shape
    for row in range(start, stop):
        outer, place = divmod(row, inner)
        weight = weights[row] if weights.size else 1
        difference = x[outer, :, place] - (np.arange(classes) == labels[row])
        rows[row] = weight * (difference @ difference) / 2
        if y is not None:
            y[outer, :, place] = weight * difference * (scale + scale_low)


@pytest.fixture
def distance(monkeypatch):
    """Loss and gradient of a loss that consists of an entry in the table and a kernel."""
    for function in _spec._loss("distance", "squared error", "row loss", _spec.LABELS, pieces=False):
        monkeypatch.setitem(_spec.FUNCTIONS, function.name, function)
    kernel = entry.Kernel("losses.distance")
    kernel.code = lambda arguments: distance_kernel
    monkeypatch.setitem(entry._kernels, kernel.name, kernel)

    def both(logits, labels, axis, **options):
        given = logits, labels, axis, LossOptions(**options)
        loss, gradient = losses.loss("distance_with_grad", *given)
        np.testing.assert_array_equal(losses.loss("distance", *given), loss)
        np.testing.assert_array_equal(losses.loss("distance_grad", *given), gradient)
        return loss, gradient

    return both


X = np.random.default_rng(5).normal(size=(6, 9, 12))
IGNORED = -7


def labelled(axis):
    rng = np.random.default_rng(6)
    shape = np.delete(X.shape, axis)
    labels = np.where(rng.random(shape) < 0.2, IGNORED, rng.integers(0, X.shape[axis], shape))
    return labels, rng.integers(0, 4, shape) / 4


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_loss_is_an_entry_and_a_kernel(distance, axis, reduction):
    labels, weights = labelled(axis)
    loss, gradient = distance(X, labels, axis, sample_weight=weights, ignore_index=IGNORED, reduction=reduction)
    weights = np.where(labels == IGNORED, 0, weights)
    moved = np.moveaxis(X, axis, -1)
    difference = moved - (np.arange(X.shape[axis]) == labels[..., None])
    rows, divisor = weights * (difference**2).sum(-1) / 2, weights.sum() if reduction == "mean" else 1
    expected = rows if reduction == "none" else rows.sum() / divisor
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    slope = np.moveaxis(weights[..., None] * difference / divisor, -1, axis)
    np.testing.assert_allclose(gradient, slope, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("chunks", [(3, 9, 12), (3, 4, 5)], ids=["whole rows", "cut rows"])
@pytest.mark.parametrize("axis", [1, -1])
def test_such_a_loss_takes_dask_arrays(distance, axis, chunks):
    """Its kernel needs whole rows, so that classes are brought into one chunk."""
    da = pytest.importorskip("dask.array")
    labels, weights = labelled(axis)
    options = {"sample_weight": weights, "ignore_index": IGNORED}
    loss, gradient = losses.loss(
        "distance_with_grad", da.from_array(X, chunks=chunks), labels, axis, LossOptions(**options)
    )
    expected, slope = distance(X, labels, axis, **options)
    assert gradient.numblocks[axis] == 1
    assert float(loss) == pytest.approx(float(expected), rel=1e-14)
    np.testing.assert_allclose(gradient, slope, rtol=1e-13)


def test_a_loss_for_labels_takes_no_distributions(distance):
    with pytest.raises(
        ValueError, match=r"targets has shape \(6, 9, 12\), expected \(6, 9\) \(class indices\) for"
    ):
        distance(X, X, -1)
    with pytest.raises(TypeError, match=r"are class indices and have dtype float64, expected integers"):
        distance(X, X[..., 0], -1)
    with pytest.raises(IndexError, match=r"targets\[0, 0\] is 12, expected a label from 0 to 11"):
        distance(X, np.full((6, 9), 12), -1)
