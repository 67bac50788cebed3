"""Jacobians and their products, four ways: oracle, finite difference, dense Jacobian, <v, J t> = <J^T v, t>.

Bounds of the products come from a first-order analysis of roundings, in units of eps times the terms of a result.
Each p contributes 3 eps (4 with a temperature), because it is within 3 ulp, and every operation eps/2. Three
operations follow a dot product (subtract its high part, then its low part, multiply), and one more with 1/T.
"""

import cases
import mpmath as mp
import numpy as np
import oracle
import pytest
from functions import skip_unless_fused

import fastsoftmax as fs
from fastsoftmax.api import derivatives
from fastsoftmax.arrays import long_rows

every_length = pytest.mark.parametrize("classes", cases.CLASSES)
every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)
bound = {1.0: 3 + 1.5, 0.3: 4 + 2.0, 2.5: 4 + 2.0}
every_temperature = pytest.mark.parametrize("temperature", bound)


def floats(values):
    return np.array([float(v) for v in np.ravel(values)]).reshape(np.shape(values))


def probabilities(x, temperature=1.0):
    """Probabilities for the scale of errors. They have a floor, because those below normal numbers may be 0."""
    p = floats(oracle.rowwise(oracle.softmax, x, temperature=temperature))
    return np.maximum(p, np.finfo(x.dtype).tiny / np.finfo(x.dtype).eps)


def sums(values):
    return values.sum(axis=-1, keepdims=True)


def some_logits(dtype, classes, temperature):
    """All rows at T = 1, fewer at other temperatures. Of 50257 classes, one row at T = 1 and none at others."""
    x = cases.logits(dtype, classes)
    if classes > 1000:
        x = x[1:]
    if temperature != 1.0:
        if classes > 1000:
            pytest.skip("covered by the shorter rows: the temperature does not depend on the length")
        x = x[::4]
    return x


def check_product(name, actual, reference, scale, temperature, record):
    ulps, place = oracle.worst(actual, reference, scale / temperature)
    detail = f"T = {temperature}, shape {actual.shape}, entry {place}"
    record(f"{name} (eps of its terms)", actual.dtype, ulps, bound[temperature], detail)


# --- products against the oracle -----------------------------------------------------------------------------


@every_dtype
@every_length
@every_temperature
def test_softmax_products(dtype, classes, temperature, record):
    """p (v - p.v)/T: 3 p |v - p.v| from p, 3 p sum(p |v|) from the p of the dot product, and the roundings."""
    x = some_logits(dtype, classes, temperature)
    v = cases.vectors(x)
    reference = oracle.rowwise(oracle.softmax_product, x, v, temperature=temperature)
    p, wide = probabilities(x, temperature), v.astype(np.float64)
    scale = p * (np.abs(wide - sums(p * wide)) + sums(p * np.abs(wide)))
    actual = fs.softmax_jvp(x, v, temperature=temperature)
    assert actual.dtype == dtype
    check_product("softmax_jvp, softmax_vjp", actual, reference, scale, temperature, record)
    np.testing.assert_array_equal(fs.softmax_vjp(x, v, temperature=temperature), actual)


@every_dtype
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("from_probs", [False, True])
def test_products_of_long_rows(dtype, temperature, from_probs, record, monkeypatch):
    """Rows that are cut into pieces have the same bounds, on any number of threads, and in place."""
    x = cases.logits(dtype, 1000)[::7].copy()
    x[0, 200:] -= 3000  # pieces beyond the range of exp below the greatest entry
    x[1] = np.linspace(-2000, 2000, 1000)
    v = cases.vectors(x)
    if from_probs:
        x = fs.softmax(x, temperature=temperature)
    monkeypatch.setattr(derivatives, "_PRODUCTS", cases.Forgetful())
    monkeypatch.setattr(long_rows, "LONG_ROW", 300)
    monkeypatch.setattr(long_rows, "PIECE", 128)
    cut, seen = long_rows.long_product, []
    monkeypatch.setattr(long_rows, "long_product", lambda *a: (seen.append(a), cut(*a)))
    options = {"temperature": temperature, "from_probs": from_probs}
    actual = fs.softmax_jvp(x, v, **options)
    assert seen

    def compute(row, vector):
        if from_probs:
            return oracle.product_of_probs(oracle.exact(row), oracle.exact(vector), temperature)
        return oracle.softmax_product(row, vector, temperature)

    reference = oracle.rowwise(compute, x, v)
    p = x.astype(np.float64) if from_probs else probabilities(x, temperature)
    wide = v.astype(np.float64)
    scale = p * (np.abs(wide - sums(p * wide)) + sums(p * np.abs(wide)))
    scale = np.maximum(scale, np.finfo(dtype).tiny / np.finfo(dtype).eps)
    check_product("softmax_jvp, softmax_vjp, long rows", actual, reference, scale, temperature, record)
    with fs.threads(1):
        np.testing.assert_array_equal(fs.softmax_vjp(x, v, **options), actual)
    for place in (x.copy(), v.copy()):
        given = (place, v) if place[0, 0] == x[0, 0] and np.array_equal(place, x) else (x, place)
        assert fs.softmax_jvp(*given, out=place, **options) is place
        np.testing.assert_array_equal(place, actual)


def test_infinite_vectors_of_long_rows(monkeypatch):
    """No warning, and NaN as for shorter rows."""
    x, v = np.zeros((2, 700)), np.ones((2, 700))
    v[0, 3] = np.inf
    whole = fs.softmax_jvp(x, v)
    monkeypatch.setattr(derivatives, "_PRODUCTS", cases.Forgetful())
    monkeypatch.setattr(long_rows, "LONG_ROW", 300)
    monkeypatch.setattr(long_rows, "PIECE", 128)
    np.testing.assert_array_equal(np.isnan(fs.softmax_jvp(x, v)), np.isnan(whole))


@every_dtype
@every_length
@every_temperature
def test_log_softmax_jvp(dtype, classes, temperature, record):
    """(v - p.v)/T: p contributes 3 sum(p |v|), the subtraction half of |v - p.v|."""
    x = some_logits(dtype, classes, temperature)
    v = cases.vectors(x)
    reference = oracle.rowwise(oracle.log_softmax_jvp, x, v, temperature=temperature)
    p, wide = probabilities(x, temperature), v.astype(np.float64)
    scale = np.abs(wide - sums(p * wide)) + sums(p * np.abs(wide))
    actual = fs.log_softmax_jvp(x, v, temperature=temperature)
    check_product("log_softmax_jvp", actual, reference, scale, temperature, record)


@every_dtype
@every_length
@every_temperature
def test_log_softmax_vjp(dtype, classes, temperature, record):
    """(g - p sum(g))/T: p contributes 3 p |sum(g)|, the subtraction half of the result. sum(g) is compensated."""
    x = some_logits(dtype, classes, temperature)
    g = cases.vectors(x, 1)
    reference = oracle.rowwise(oracle.log_softmax_vjp, x, g, temperature=temperature)
    p, wide = probabilities(x, temperature), g.astype(np.float64)
    total = np.abs(sums(wide)) + classes * np.finfo(dtype).eps * sums(np.abs(wide))
    scale = np.abs(wide - p * sums(wide)) + p * total
    actual = fs.log_softmax_vjp(x, g, temperature=temperature)
    check_product("log_softmax_vjp", actual, reference, scale, temperature, record)


@every_dtype
@pytest.mark.parametrize("classes", [k for k in cases.CLASSES if k <= 1000])
@every_temperature
def test_softmax_products_from_probs(dtype, classes, temperature, record):
    """Given probabilities are exact, so that only the roundings contribute."""
    x = some_logits(dtype, classes, temperature)
    p, v = fs.softmax(x), cases.vectors(x, 2)
    reference = oracle.rowwise(
        lambda row, vector: oracle.product_of_probs(oracle.exact(row), oracle.exact(vector), temperature), p, v
    )
    p64, v64 = p.astype(np.float64), v.astype(np.float64)
    scale = np.maximum(p64, np.finfo(dtype).tiny / np.finfo(dtype).eps)
    scale = scale * (np.abs(v64 - sums(p64 * v64)) + sums(p64 * np.abs(v64))) / temperature
    actual = fs.softmax_jvp(p, v, temperature=temperature, from_probs=True)
    ulps, place = oracle.worst(actual, reference, scale)
    detail = f"T = {temperature}, K = {classes}, entry {place}"
    allowed = 1.5 if temperature == 1 else 2.0
    record("softmax_jvp, softmax_vjp from_probs (eps of its terms)", dtype, ulps, allowed, detail)
    again = fs.softmax_vjp(p, v, temperature=temperature, from_probs=True)
    np.testing.assert_array_equal(again, actual)


@every_dtype
def test_temperatures_round_once(dtype):
    """1/T is not exact in the dtype. p = 1/2 and v - p.v = n are exact, so that n/T may be rounded once only."""
    skip_unless_fused(dtype)
    numbers = np.arange(1, 200, dtype=dtype)
    v = np.stack([2 * numbers, np.zeros_like(numbers)], axis=-1)
    for temperature in (0.1, 0.3, 0.7, 3.0, 7.0, 10.0, 49.0, np.pi):
        actual = fs.log_softmax_jvp(np.zeros_like(v), v, temperature=temperature)
        expected = (numbers.astype(np.longdouble) / np.longdouble(temperature)).astype(dtype)
        np.testing.assert_array_equal(actual[:, 0], expected)
        np.testing.assert_array_equal(actual[:, 1], -expected)


# --- Jacobians against the oracle ----------------------------------------------------------------------------


def jacobian_rows(classes):
    """The rows of the Jacobian that are compared; all of a small one."""
    return list(range(classes)) if classes <= 17 else sorted({0, 1, classes // 2, classes - 2, classes - 1})


def look_at(x, classes):
    """Logits whose Jacobians are compared, and the rows of each that are, with that of the greatest entry."""
    x = x if classes <= 17 else x[::5] if classes <= 100 else x[[1, 8, 9, 12]]
    rows = jacobian_rows(classes)
    return x, [sorted({*rows, int(np.argmax(row))}) for row in x]


def check_jacobian(name, jacobian, x, rows, formula, allowed, record):
    """Errors are relative to the entry, in eps, because nothing cancels, not even in p (1 - p)."""
    for n, row in enumerate(x):
        reference = formula(row, rows[n])
        scale = np.maximum(np.abs(floats(reference)), np.finfo(x.dtype).tiny / np.finfo(x.dtype).eps)
        ulps, place = oracle.worst(jacobian[n][rows[n]], reference, scale)
        record(f"{name} (relative, eps)", x.dtype, ulps, allowed, f"row {row.tolist()[:50]}, {place}")


@every_dtype
@pytest.mark.parametrize("classes", [k for k in cases.CLASSES if k <= 1000])
@every_temperature
def test_softmax_jacobian(dtype, classes, temperature, record):
    """p_i p_j: 3 eps from each p, and a rounding; with a temperature 4 from each, and two more roundings."""
    x, rows = look_at(some_logits(dtype, classes, 1.0), classes)
    x, rows = (x, rows) if temperature == 1 else (x[::3], rows[::3])
    jacobian = fs.softmax_jacobian(x, temperature=temperature)
    assert jacobian.shape == (len(x), classes, classes)
    assert jacobian.dtype == dtype
    np.testing.assert_array_equal(jacobian, jacobian.swapaxes(1, 2) if temperature == 1 else jacobian)
    check_jacobian(
        "softmax_jacobian",
        jacobian,
        x,
        rows,
        lambda row, chosen: oracle.softmax_jacobian(row, temperature, chosen),
        6.5 if temperature == 1 else 9.5,
        record,
    )


@every_dtype
@pytest.mark.parametrize("classes", [k for k in cases.CLASSES if k <= 1000])
@every_temperature
def test_log_softmax_jacobian(dtype, classes, temperature, record):
    """-p_j and 1 - p_i: 3 eps and a rounding for 1 - p; with a temperature 4 eps, and the rounding of 1/T."""
    x, rows = look_at(some_logits(dtype, classes, 1.0), classes)
    x, rows = (x, rows) if temperature == 1 else (x[::3], rows[::3])
    jacobian = fs.log_softmax_jacobian(x, temperature=temperature)
    assert jacobian.shape == (len(x), classes, classes)
    check_jacobian(
        "log_softmax_jacobian",
        jacobian,
        x,
        rows,
        lambda row, chosen: oracle.log_softmax_jacobian(row, temperature, chosen),
        3.5 if temperature == 1 else 5.5,
        record,
    )


@every_dtype
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 17, 56, 57, 100])
@every_temperature
def test_softmax_jacobian_from_probs(dtype, classes, temperature, record):
    """Two roundings, and one more for 1/T. 1 - p of given probabilities is within half an ulp."""
    x, rows = look_at(cases.logits(dtype, classes), classes)
    p = fs.softmax(x)
    jacobian = fs.softmax_jacobian(p, temperature=temperature, from_probs=True)
    check_jacobian(
        "softmax_jacobian from_probs",
        jacobian,
        p,
        rows,
        lambda row, chosen: oracle.jacobian_of_probs(oracle.exact(row), temperature, chosen),
        1.0 if temperature == 1 else 2.0,
        record,
    )


@every_dtype
def test_confident_diagonals(dtype):
    """Where p rounds to 1, 1 - p is the sum of the other probabilities and not 0."""
    x = np.array([0.0, -50.0, -60.0], dtype)
    others = float(np.exp(-50.0) + np.exp(-60.0))
    allowed = 4 * float(np.finfo(dtype).eps)
    assert fs.softmax(x)[0] == 1
    assert float(fs.softmax_jacobian(x)[0, 0]) == pytest.approx(others, rel=allowed)
    assert float(fs.log_softmax_jacobian(x)[0, 0]) == pytest.approx(others, rel=allowed)


# --- finite differences --------------------------------------------------------------------------------------

STEP = 6e-6  # eps**(1/3), for which truncation and rounding of a central difference are equal


def difference(function, x, direction):
    """The directional derivative by a central difference, in float64."""
    return (function(x + STEP * direction) - function(x - STEP * direction)) / (2 * STEP)


def truncation(direction, temperature):
    """The truncation error of `difference`: h**2/6 times a third derivative.

    Third derivatives of log-softmax along v are third cumulants of v. Those of softmax are p times sums of
    cumulants. All are below 6 (max v - min v)**3 / T**3.
    """
    return STEP**2 * (2 * np.abs(direction).max() / temperature) ** 3


def rounding(values):
    """The rounding error of `difference`: its two values are within 4 ulp."""
    return 8 * np.finfo(np.float64).eps * np.abs(values).max() / STEP


def sample(classes, seed=5):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1.5, (6, classes)), rng.normal(0, 1, (6, classes)), rng.normal(0, 1, (6, classes))


few_lengths = pytest.mark.parametrize("classes", [1, 2, 3, 10, 17, 57, 100])
both = pytest.mark.parametrize("name", ["softmax", "log_softmax"])


@few_lengths
@both
@every_temperature
def test_jvp_is_the_finite_difference(name, classes, temperature):
    x, tangent, _ = sample(classes)

    def function(z):
        return getattr(fs, name)(z, temperature=temperature)

    actual = getattr(fs, f"{name}_jvp")(x, tangent, temperature=temperature)
    atol = truncation(tangent, temperature) + rounding(function(x))
    np.testing.assert_allclose(actual, difference(function, x, tangent), rtol=0, atol=atol)


@few_lengths
@both
@every_temperature
def test_vjp_is_the_gradient_of_the_contraction(name, classes, temperature):
    """dL/dz of L = sum(g * f(z)), by a finite difference for each logit."""
    x, _, cotangent = sample(classes)

    def terms(z):
        return cotangent * getattr(fs, name)(z, temperature=temperature)

    actual = getattr(fs, f"{name}_vjp")(x, cotangent, temperature=temperature)
    for k in range(classes):
        direction = np.eye(classes)[k]
        expected = difference(lambda z: terms(z).sum(axis=-1), x, direction)
        atol = np.abs(cotangent).sum(axis=-1).max() * truncation(direction, temperature)
        atol += rounding(np.abs(terms(x)).sum(axis=-1))
        np.testing.assert_allclose(actual[:, k], expected, rtol=0, atol=atol)


@few_lengths
@both
@every_temperature
def test_jacobian_columns_are_finite_differences(name, classes, temperature):
    """The order of the indices is tested: [n, i, j] is the derivative of output i with respect to input j."""
    x, _, _ = sample(classes)

    def function(z):
        return getattr(fs, name)(z, temperature=temperature)

    jacobian = getattr(fs, f"{name}_jacobian")(x, temperature=temperature)
    for j in range(classes):
        direction = np.eye(classes)[j]
        atol = truncation(direction, temperature) + rounding(function(x))
        np.testing.assert_allclose(jacobian[:, :, j], difference(function, x, direction), rtol=0, atol=atol)


# --- dense Jacobian, adjointness -----------------------------------------------------------------------------


@few_lengths
@both
@every_temperature
def test_products_are_products_with_the_dense_jacobian(name, classes, temperature):
    """In float64, up to the bounds of both, and the rounding of a sum of K terms."""
    x, tangent, cotangent = sample(classes)
    eps = np.finfo(np.float64).eps
    jacobian = getattr(fs, f"{name}_jacobian")(x, temperature=temperature)
    entries = (10 + classes / 2) * eps * np.abs(jacobian)
    p = fs.softmax(x, temperature=temperature)
    t, g = np.abs(tangent), np.abs(cotangent)
    if name == "softmax":
        jvp_terms, vjp_terms = p * (t + 2 * sums(p * t)), p * (g + 2 * sums(p * g))
    else:
        jvp_terms, vjp_terms = t + 2 * sums(p * t), g + 2 * p * sums(g)
    jvp = getattr(fs, f"{name}_jvp")(x, tangent, temperature=temperature)
    allowed = np.einsum("nij,nj->ni", entries, t) + bound[temperature] * eps * jvp_terms / temperature
    assert np.all(np.abs(jvp - np.einsum("nij,nj->ni", jacobian, tangent)) <= allowed)
    vjp = getattr(fs, f"{name}_vjp")(x, cotangent, temperature=temperature)
    allowed = np.einsum("nij,ni->nj", entries, g) + bound[temperature] * eps * vjp_terms / temperature
    assert np.all(np.abs(vjp - np.einsum("nij,ni->nj", jacobian, cotangent)) <= allowed)


@pytest.mark.parametrize("classes", [1, 2, 3, 17, 56, 57, 1000])
@every_dtype
@both
@every_temperature
def test_vjp_is_the_adjoint_of_jvp(name, dtype, classes, temperature):
    """<v, J t> = <J^T v, t> up to the bounds of the two products; the inner products are exact."""
    rng = np.random.default_rng(classes)
    x = rng.normal(0, 3, (3, classes)).astype(dtype)
    tangent, cotangent = (rng.normal(0, 1, (3, classes)).astype(dtype) for _ in range(2))
    jvp = getattr(fs, f"{name}_jvp")(x, tangent, temperature=temperature)
    vjp = getattr(fs, f"{name}_vjp")(x, cotangent, temperature=temperature)
    p = np.float64(fs.softmax(x, temperature=temperature))
    weight = p if name == "softmax" else np.ones_like(p)
    v, t = np.abs(np.float64(cotangent)), np.abs(np.float64(tangent))
    terms = np.sum(weight * v * t, axis=-1) + 2 * np.sum(weight * v, axis=-1) * np.sum(p * t, axis=-1)
    for n in range(3):
        left = mp.fdot(oracle.exact(cotangent[n]), oracle.exact(jvp[n]))
        right = mp.fdot(oracle.exact(vjp[n]), oracle.exact(tangent[n]))
        assert abs(left - right) <= 2 * bound[temperature] * np.finfo(dtype).eps * terms[n] / temperature


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_from_probs_is_the_same_derivative(temperature):
    x, tangent, _ = sample(17)
    p = fs.softmax(x, temperature=temperature)
    for function in (fs.softmax_jvp, fs.softmax_vjp):
        actual = function(p, tangent, temperature=temperature, from_probs=True)
        np.testing.assert_allclose(actual, function(x, tangent, temperature=temperature), rtol=1e-13, atol=1e-16)
    actual = fs.softmax_jacobian(p, temperature=temperature, from_probs=True)
    np.testing.assert_allclose(actual, fs.softmax_jacobian(x, temperature=temperature), rtol=1e-13)


# --- dtypes --------------------------------------------------------------------------------------------------

PRODUCTS = ("softmax_jvp", "softmax_vjp", "log_softmax_jvp", "log_softmax_vjp")


@pytest.mark.parametrize("name", PRODUCTS)
def test_result_dtypes_of_products(name):
    """The result has the wider float dtype of the two. Integers as a second argument do not change it."""
    function = getattr(fs, name)
    table = {
        ("f2", "f2"): "f2",
        ("f4", "f2"): "f4",
        ("f2", "f4"): "f4",
        ("f4", "f8"): "f8",
        ("f8", "f4"): "f8",
        ("i4", "i4"): "f8",
        ("f4", "i8"): "f4",
        ("?", "?"): "f8",
    }
    for (first, second), expected in table.items():
        x, v = np.array([[1, 0, 1]], first), np.array([[0, 1, 1]], second)
        actual = function(x, v)
        assert actual.dtype == np.dtype(expected), (first, second)
        wide = function(x.astype("f8"), v.astype("f8"))
        np.testing.assert_allclose(actual, wide, rtol=0, atol=np.finfo(expected).eps)


@pytest.mark.parametrize("name", ["softmax_jacobian", "log_softmax_jacobian"])
@pytest.mark.parametrize(
    ("kind", "expected"), [("f2", "f2"), ("f4", "f4"), ("f8", "f8"), ("i1", "f8"), ("?", "f8")]
)
def test_result_dtypes_of_jacobians(name, kind, expected):
    x = np.array([[1, 0, 1]], kind)
    actual = getattr(fs, name)(x)
    assert actual.dtype == np.dtype(expected)
    np.testing.assert_allclose(actual, getattr(fs, name)(x.astype("f8")), rtol=0, atol=np.finfo(expected).eps)


@pytest.mark.parametrize(
    "function",
    [
        fs.softmax_jvp,
        fs.softmax_vjp,
        fs.log_softmax_jvp,
        fs.log_softmax_vjp,
        lambda x, v, out: fs.cross_entropy_hvp(x, np.zeros(len(x), int), v, out=out),
        lambda x, v, out: fs.squared_error_grad(x, v, out=out),
    ],
    ids=["softmax_jvp", "softmax_vjp", "log_softmax_jvp", "log_softmax_vjp", "hvp", "squared_error_grad"],
)
@pytest.mark.parametrize("shape", [(20, 10), (40, 100), (3, 3000)])
def test_the_result_over_an_operand(function, shape):
    """The result may be written over x, over v, and over a part of either."""
    rng = np.random.default_rng(3)
    x, v = 3 * rng.normal(size=shape), rng.normal(size=shape)
    expected = function(x, v, out=np.empty(shape))
    for place in (0, 1):
        operands = [x.copy(), v.copy()]
        np.testing.assert_array_equal(function(*operands, out=operands[place]), expected)
    rows = len(x)
    long = np.concatenate([x, v])
    np.testing.assert_array_equal(function(long[:rows], v, out=long[1 : rows + 1]), expected)
    long = np.concatenate([v, x])
    np.testing.assert_array_equal(function(x, long[:rows], out=long[1 : rows + 1]), expected)


def test_a_certain_class_keeps_its_slope():
    """v_k - sum_j p_j v_j is 1 - p here, which cannot be computed from p, because p rounds to 1."""
    small = np.exp(-40.0)
    x, v = np.array([0.0, -40.0]), np.array([1.0, 0.0])
    for product in (fs.softmax_jvp, fs.softmax_vjp, fs.log_softmax_vjp):
        np.testing.assert_allclose(product(x, v), [small, -small], rtol=1e-15)
    np.testing.assert_allclose(fs.log_softmax_jvp(x, v), [small, -1.0], rtol=1e-15)


def test_a_large_cotangent_lifts_a_probability_that_is_no_normal_number():
    x, g = np.array([0, -90], np.float32), np.array([0, 1e30], np.float32)
    right = 1e30 * np.exp(-90.0)
    np.testing.assert_allclose(fs.softmax_vjp(x, g), [-right, right], rtol=5e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 0.3, 1e20])
def test_jacobians_with_a_temperature_are_symmetric(temperature, dtype):
    x = (np.random.default_rng(0).normal(size=(20, 9)) * temperature * 20).astype(dtype)
    jacobian = fs.softmax_jacobian(x, temperature=temperature)
    assert np.isfinite(jacobian).all()
    np.testing.assert_array_equal(jacobian, jacobian.swapaxes(-1, -2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [3, 70])
def test_directions_of_any_size(classes, dtype):
    """Products are linear in the direction: a power of two is a factor of the product, beside any other rows."""
    rng = np.random.default_rng(classes)
    x, v = (rng.normal(size=(40, classes)).astype(dtype) for _ in range(2))
    x[::3, 0] += 20
    info = np.finfo(dtype)
    powers = [info.minexp // 2, -40, 0, 17, 22, 60, info.maxexp - 6]
    scales = np.ldexp(dtype(1), rng.choice(powers, (40, 1)).astype(np.int32)).astype(dtype)
    for function in (fs.softmax_jvp, fs.log_softmax_jvp, fs.log_softmax_vjp):
        for scale in (scales, *np.ldexp(dtype(1), powers)):
            actual, right = function(x, v * scale), function(x, v) * scale
            small = np.abs(right) < info.tiny * 16
            np.testing.assert_array_equal(np.where(small, 0, actual), np.where(small, 0, right))


@pytest.mark.parametrize("flag", [np.True_, 1])
def test_a_flag_that_is_only_like_true(monkeypatch, flag):
    """The kernel for probabilities is not kept for later calls with logits."""
    monkeypatch.setattr(derivatives, "_JACOBIANS", {})
    x = np.random.default_rng(0).normal(size=(4, 3))
    expected = fs.softmax_jacobian(x[None])[0]
    monkeypatch.setattr(derivatives, "_JACOBIANS", {})
    np.testing.assert_allclose(fs.softmax_jacobian(fs.softmax(x), from_probs=flag), expected)
    for _ in range(2):
        np.testing.assert_array_equal(fs.softmax_jacobian(x), expected)
