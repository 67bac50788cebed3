"""softmax_entropy and its gradient: oracle, finite difference, dense Jacobian, and products along tangents."""

import cases
import numpy as np
import oracle
import pytest

import fastsoftmax as fs
from fastsoftmax.api import entropy

every_length = pytest.mark.parametrize("classes", cases.CLASSES)
every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)
some_lengths = pytest.mark.parametrize("classes", [1, 2, 3, 10, 17, 57, 64, 65, 100])
few_lengths = pytest.mark.parametrize("classes", [1, 2, 3, 17, 100])
bound = {1.0: 4, 0.3: 5, 2.5: 5}  # the docstring of the kernel derives it; a temperature adds one rounding
EPS = float(np.finfo(np.float64).eps)


def floats(values):
    return np.array([float(v) for v in np.ravel(values)]).reshape(np.shape(values))


def check(x, temperature, record, entropy, gradient, name=""):
    detail = f"K = {x.shape[1]}, T = {temperature}"
    reference = oracle.rowwise(oracle.softmax_entropy, x, temperature=temperature)
    ulps, place = oracle.worst(entropy, reference)
    record(f"softmax_entropy{name}", x.dtype, ulps, bound[temperature], f"{detail}, row {place}")
    reference = oracle.rowwise(oracle.softmax_entropy_grad, x, temperature=temperature)
    p = floats(oracle.rowwise(oracle.softmax, x, temperature=temperature))
    depth = (x.max(axis=-1, keepdims=True).astype(np.float64) - x) / temperature
    scale = p * (depth + np.sum(p * depth, axis=-1, keepdims=True)) / temperature
    scale = np.where(scale == 0, p * 1e-30, scale)  # equal entries: the oracle's log p + H is 1e-50, not 0
    ulps, place = oracle.worst(gradient, reference, scale)
    detail = f"{detail}, entry {place}: {x[place[0]].tolist()[:50]}" if place else detail
    record(f"softmax_entropy_with_grad{name} (eps of its terms)", x.dtype, ulps, bound[temperature], detail)


@every_dtype
@every_length
def test_against_the_oracle(dtype, classes, record):
    """Within 4 ulp, also for almost certain rows, where -sum p log p rounds to 0 or keeps a few digits."""
    x = cases.logits(dtype, classes)
    x = x[1:] if classes > 1000 else x  # seconds in the oracle for each row
    entropy, gradient = fs.softmax_entropy_with_grad(x)
    assert entropy.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(fs.softmax_entropy(x), entropy)
    check(x, 1.0, record, entropy, gradient)


@every_dtype
@some_lengths
@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_temperature(dtype, classes, temperature, record):
    x = cases.logits(dtype, classes)[::3]
    entropy, gradient = fs.softmax_entropy_with_grad(x, temperature=temperature)
    np.testing.assert_array_equal(fs.softmax_entropy(x, temperature=temperature), entropy)
    check(x, temperature, record, entropy, gradient, " with temperature")


@every_dtype
@some_lengths
def test_classes_that_are_not_last(dtype, classes, record):
    x = cases.logits(dtype, classes)[::2]
    entropy, gradient = fs.softmax_entropy_with_grad(np.ascontiguousarray(x.T), axis=0)
    check(x, 1.0, record, entropy, gradient.T, ", axis 0")


@every_dtype
@pytest.mark.parametrize("classes", [2, 9, 90])
def test_where_a_probability_is_no_normal_number(dtype, classes, record):
    """p (d - E) may be a normal number where p is not, so that p must not be flushed to 0 before."""
    deepest = -np.log(float(np.finfo(dtype).tiny))
    x = np.zeros((40, classes), dtype)
    x[:, 1:] = -np.linspace(deepest - 10, deepest + 10, 40)[:, None] - np.arange(classes - 1)
    entropy, gradient = fs.softmax_entropy_with_grad(x)
    assert np.sum(fs.softmax(x)[:, 1] == 0) > np.sum(gradient[:, 1] == 0) > 0
    check(x, 1.0, record, entropy, gradient, ", tiny")


@pytest.mark.parametrize("temperature", [1e-30, 1e-12, 1e12, 1e30])
def test_extreme_temperatures(temperature):
    """1/T must not overflow or underflow in the gradient, which is dH/dx = H'(x/T)/T."""
    z = np.array([[0.0, -1.0, -3.0], [2.0, 1.5, 2.0]])
    entropy, gradient = fs.softmax_entropy_with_grad(z)
    scaled = (z.astype(np.longdouble) * temperature).astype(np.float32)
    found, slope = fs.softmax_entropy_with_grad(scaled, temperature=temperature)
    np.testing.assert_allclose(found, entropy, rtol=1e-5)
    np.testing.assert_allclose(slope.astype(np.float64) * temperature, gradient, rtol=1e-5)


# --- the gradient in other ways ------------------------------------------------------------------------------


def rows(classes):
    return np.random.default_rng(classes).normal(0, 1.5, (5, classes))


@few_lengths
@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
def test_gradient_is_the_finite_difference(classes, temperature):
    x, step = rows(classes), 6e-6  # eps**(1/3)
    _, gradient = fs.softmax_entropy_with_grad(x, temperature=temperature)
    # truncation h**2/6 times third derivatives (below 2 (log K + 3)/T**3), and the rounding of the entropies
    size = 3 + np.log(classes)
    atol = step**2 * size / temperature**3 + 8 * EPS * size / step
    for k in range(classes):
        up, down = x.copy(), x.copy()
        up[:, k] += step
        down[:, k] -= step
        change = fs.softmax_entropy(up, temperature=temperature) - fs.softmax_entropy(
            down, temperature=temperature
        )
        np.testing.assert_allclose(gradient[:, k], change / (2 * step), rtol=0, atol=atol)


@few_lengths
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_gradient_is_a_product_with_the_dense_jacobian(classes, temperature):
    """dH/dx = J^T dH/dp with dH/dp_k = -(log p_k + 1)."""
    x = rows(classes)
    jacobian = fs.softmax_jacobian(x, temperature=temperature)
    cotangent = -(fs.log_softmax(x, temperature=temperature) + 1)
    expected = np.einsum("nij,ni->nj", jacobian, cotangent)
    terms = np.einsum("nij,ni->nj", np.abs(jacobian), np.abs(cotangent)) + np.abs(cotangent).max() / temperature
    _, gradient = fs.softmax_entropy_with_grad(x, temperature=temperature)
    assert np.all(np.abs(gradient - expected) <= (10 + classes) * EPS * terms)


@few_lengths
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_gradient_along_a_tangent(classes, temperature):
    """<dH/dx, t> = <dH/dp, J t>, and the gradient is minus the JVP with the tangent x/T."""
    x = rows(classes)
    tangent = np.random.default_rng(9).normal(0, 1, x.shape)
    _, gradient = fs.softmax_entropy_with_grad(x, temperature=temperature)
    change = fs.softmax_jvp(x, tangent, temperature=temperature)
    cotangent = -(fs.log_softmax(x, temperature=temperature) + 1)
    atol = 60 * EPS * (np.abs(x).max() + np.log(classes) + 1) / temperature**2 * np.abs(tangent).max()
    np.testing.assert_allclose(
        np.sum(gradient * tangent, axis=-1), np.sum(cotangent * change, axis=-1), rtol=0, atol=classes * atol
    )
    along = fs.softmax_jvp(x, x / temperature, temperature=temperature)
    np.testing.assert_allclose(gradient, -along, rtol=0, atol=atol)


# --- what holds exactly --------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("classes", [1, 2, 17, 64, 100])
def test_from_zero_to_log_k(dtype, classes):
    equal, gradient = fs.softmax_entropy_with_grad(np.full((3, classes), 7.25, dtype))
    np.testing.assert_allclose(equal, np.log(classes), rtol=2 * np.finfo(dtype).eps)
    assert not gradient.any()
    certain, gradient = fs.softmax_entropy_with_grad(np.eye(3, classes, dtype=dtype) * dtype(1e4))
    assert np.all((certain == 0) | (np.eye(3, classes).sum(1) == 0))
    assert not gradient.any()


@every_dtype
@pytest.mark.parametrize("classes", [2, 17, 100])
def test_shifts_change_nothing(dtype, classes):
    """The bits are the same, because x + c is exact here."""
    x = np.random.default_rng(0).integers(-1024, 1024, (9, classes)).astype(dtype) / dtype(64)
    for a, b in zip(fs.softmax_entropy_with_grad(x), fs.softmax_entropy_with_grad(x + dtype(256)), strict=True):
        np.testing.assert_allclose(a, b, rtol=20 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("classes", [3, 100])
def test_cross_entropy_with_itself(classes):
    """H(p) = -sum_j y_j log p_j for y = p."""
    x = rows(classes)
    expected = fs.cross_entropy(x, fs.softmax(x), reduction="none")
    np.testing.assert_allclose(fs.softmax_entropy(x), expected, rtol=10 * EPS)


# --- edge rows, dtypes, out ------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("classes", [3, 16, 57, 300])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_edge_rows(dtype, classes, temperature):
    """Entries of -inf add 0. NaN, +inf or nothing but -inf make the entropy of this row NaN, and no other."""
    x = np.random.default_rng(1).normal(size=(9, classes)).astype(dtype)
    plain = [part.copy() for part in fs.softmax_entropy_with_grad(x, temperature=temperature)]
    x[1, 1], x[2, 0], x[3] = np.nan, np.inf, -np.inf
    x[5, 2], x[6, 1:] = -np.inf, -np.inf
    with np.errstate(all="raise"):
        entropy, gradient = fs.softmax_entropy_with_grad(x, temperature=temperature)
        shorter = fs.softmax_entropy_with_grad(np.delete(x[5], 2), temperature=temperature)
    assert np.isnan(entropy[1:4]).all()
    assert np.isnan(gradient[1:4]).all()
    others = [0, 4, 7, 8]
    np.testing.assert_array_equal(entropy[others], plain[0][others])
    np.testing.assert_array_equal(gradient[others], plain[1][others])
    assert gradient[5, 2] == 0
    tolerance = 20 * float(np.finfo(dtype).eps)
    assert entropy[5] == pytest.approx(float(shorter[0]), rel=tolerance)
    np.testing.assert_allclose(np.delete(gradient[5], 2), shorter[1], rtol=tolerance, atol=tolerance)
    assert entropy[6] == 0
    assert not gradient[6].any()


def test_nothing():
    """No rows, and rows without classes, whose entropy is NaN as that of rows of -inf."""
    assert fs.softmax_entropy(np.zeros((0, 3))).shape == (0,)
    assert np.isnan(fs.softmax_entropy(np.zeros((2, 0)))).all()
    assert fs.softmax_entropy_with_grad(np.zeros((2, 0)))[1].shape == (2, 0)


def test_dtypes_and_scalars():
    x = np.random.default_rng(3).normal(0, 2, (50, 33)).astype(np.float16)
    half, single = fs.softmax_entropy_with_grad(x), fs.softmax_entropy_with_grad(x.astype(np.float32))
    for a, b in zip(half, single, strict=True):
        assert a.dtype == np.float16
        np.testing.assert_array_equal(a, b.astype(np.float16))
    value, gradient = fs.softmax_entropy_with_grad([1, 2, 3])
    assert type(value) is np.float64
    assert gradient.dtype == np.float64


@pytest.mark.parametrize("shape", [(20, 3), (3, 100)])
def test_out(shape):
    x = np.random.default_rng(4).normal(size=shape)
    entropy, gradient = fs.softmax_entropy_with_grad(x)
    rows_out = np.empty(shape[0])
    assert fs.softmax_entropy(x, out=rows_out) is rows_out
    np.testing.assert_array_equal(rows_out, entropy)
    for wrong, kind in ((np.full((*shape, 1), 7.0), ValueError), (np.full(shape, 7, np.float32), TypeError)):
        with pytest.raises(kind, match=r"softmax_entropy_with_grad: out has .* expected"):
            fs.softmax_entropy_with_grad(x, out=wrong)
        assert np.all(wrong == 7)
    again = fs.softmax_entropy_with_grad(x, out=x)
    assert again[1] is x
    np.testing.assert_array_equal(again[0], entropy)
    np.testing.assert_array_equal(x, gradient)


def test_errors_name_the_function():
    with pytest.raises(TypeError, match=r"softmax_entropy_with_grad: x has dtype complex128"):
        fs.softmax_entropy_with_grad(np.zeros(3, complex))
    with pytest.raises(ValueError, match=r"softmax_entropy_with_grad: temperature must be finite and > 0, got 0"):
        fs.softmax_entropy_with_grad(np.zeros(3), temperature=0)


@pytest.mark.parametrize("chunks", [(2, -1), (2, 4)])
def test_dask_arrays(chunks):
    """Results are lazy and have the same bits. Classes in several chunks are brought together."""
    da = pytest.importorskip("dask.array")
    x = np.random.default_rng(5).normal(size=(7, 9)).astype(np.float32)
    lazy = da.from_array(x, chunks=chunks)
    entropy, gradient = fs.softmax_entropy_with_grad(lazy, temperature=2.0)
    expected = fs.softmax_entropy_with_grad(x, temperature=2.0)
    for a, b in zip((entropy, gradient), expected, strict=True):
        assert isinstance(a, da.Array)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(a.compute(scheduler="synchronous"), b)
    alone = fs.softmax_entropy(lazy, 0).compute(scheduler="synchronous")
    np.testing.assert_array_equal(alone, fs.softmax_entropy(x, 0))
    with pytest.raises(TypeError, match="softmax_entropy: out cannot be used with Dask arrays"):
        fs.softmax_entropy(lazy, out=np.empty(7, np.float32))


@every_dtype
@few_lengths
def test_small_calls(dtype, classes, monkeypatch):
    """Small calls take a shorter way, with the same bits, for any number of axes."""
    x = np.random.default_rng(classes).normal(0, 5, (2, 20, classes)).astype(dtype)
    x[0, 3, 0], x[0, 4, 0] = np.nan, -np.inf
    long = fs.softmax_entropy(x, out=np.empty(x.shape[:-1], dtype))
    fs.softmax_entropy(x)
    monkeypatch.setattr(entropy, "run", None)
    np.testing.assert_array_equal(fs.softmax_entropy(x), long)
    np.testing.assert_array_equal(fs.softmax_entropy(x[0, 3:5]), long[0, 3:5])
