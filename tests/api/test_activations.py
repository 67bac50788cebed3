"""softmax, log_softmax and logsumexp against the oracle: within 3, 4 and 2 ulp, with a temperature 4 and 5."""

import cases
import mpmath as mp
import numpy as np
import oracle
import pytest

import fastsoftmax as fs
from fastsoftmax._vectors import FEW
from fastsoftmax.api import activations
from fastsoftmax.arrays import long_rows
from fastsoftmax.kernels import traversal

TEMPERATURES = (0.1, 0.5, 1.7, 3.0, 100.0)

every_length = pytest.mark.parametrize("classes", cases.CLASSES)
every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)


@every_dtype
@every_length
def test_softmax(dtype, classes, record):
    x = cases.logits(dtype, classes)
    p = fs.softmax(x)
    assert p.dtype == dtype
    ulps, place = oracle.worst(p, oracle.rowwise(oracle.softmax, x))
    record("softmax", dtype, ulps, 3, f"K = {classes}, entry {place}")


@every_dtype
@every_length
def test_log_softmax(dtype, classes, record):
    x = cases.logits(dtype, classes)
    log_p = fs.log_softmax(x)
    assert log_p.dtype == dtype
    ulps, place = oracle.worst(log_p, oracle.rowwise(oracle.log_softmax, x))
    record("log_softmax", dtype, ulps, 4, f"K = {classes}, entry {place}")


def check_logsumexp(x, actual, reference, record, detail):
    """The error is within 2 ulp. Where the greatest entry is negative and cancels, it may be 2 eps max(abs(x))."""
    cancels = x.max(axis=-1) < 0
    if not cancels.all():
        ulps, place = oracle.worst(actual[~cancels], reference[~cancels])
        record("logsumexp", x.dtype, ulps, 2, f"{detail}, row {place} of those >= 0")
    if cancels.any():
        scale = np.abs(x[cancels]).max(axis=-1)
        error = oracle.scaled_error(actual[cancels], reference[cancels], scale)
        # either bound is enough: 2 ulp, or the absolute error
        error = np.minimum(error, oracle.ulp_error(actual[cancels], reference[cancels]))
        record("logsumexp, max < 0 (ulp or eps max|x|)", x.dtype, error.max(), 2, f"{detail}, {error.argmax()}")


@every_dtype
@every_length
def test_logsumexp(dtype, classes, record):
    x = cases.logits(dtype, classes)
    actual = fs.logsumexp(x)
    assert actual.dtype == dtype
    assert actual.shape == x.shape[:1]
    check_logsumexp(x, actual, oracle.rowwise(oracle.logsumexp, x), record, f"K = {classes}")


@every_dtype
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 56, 57, 100, 1000])
def test_classes_that_are_not_last(dtype, classes, record):
    """Rows that lie side by side in memory, of any length. The bounds are the same."""
    x = cases.logits(dtype, classes)
    side_by_side = np.ascontiguousarray(x.T)
    for name, bound in (("softmax", 3), ("log_softmax", 4)):
        actual = getattr(fs, name)(side_by_side, axis=0).T
        ulps, place = oracle.worst(actual, oracle.rowwise(getattr(oracle, name), x))
        record(f"{name}, axis 0", dtype, ulps, bound, f"K = {classes}, entry {place}")
    actual = fs.logsumexp(side_by_side, axis=0)
    check_logsumexp(x, actual, oracle.rowwise(oracle.logsumexp, x), record, f"axis 0, K = {classes}")


@every_dtype
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("classes", [1, 3, 56, 57, 100])
def test_temperature(dtype, temperature, classes, record):
    """1/T is not exact in the dtype. Multiplying by the rounded 1/T would cost |x| u, hundreds of ulps."""
    x = cases.logits(dtype, classes)[::3]
    reference = oracle.rowwise(oracle.softmax, x, temperature=temperature)
    ulps, place = oracle.worst(fs.softmax(x, temperature=temperature), reference)
    record("softmax with temperature", dtype, ulps, 4, f"K = {classes}, T = {temperature}, entry {place}")
    reference = oracle.rowwise(oracle.log_softmax, x, temperature=temperature)
    ulps, place = oracle.worst(fs.log_softmax(x, temperature=temperature), reference)
    record("log_softmax with temperature", dtype, ulps, 5, f"K = {classes}, T = {temperature}, entry {place}")


def test_a_confident_row_keeps_its_digits():
    """NumPy, SciPy, PyTorch and JAX return 0 here."""
    (value, _) = fs.log_softmax(np.array([0.0, -50.0]))
    assert value == pytest.approx(-1.9287498479639178e-22, rel=1e-15)


# --- many rows: float32 against float64, float64 against longdouble -----------------------------------------


def sweep(x, record):
    """All three functions on rows for which mpmath would take hours."""
    error = oracle.wide_error(fs.softmax(x), oracle.wide_softmax(x))
    place = np.unravel_index(error.argmax(), error.shape)
    record("softmax", x.dtype, error[place], 3, f"row {x[place[0]].tolist()[:100]}, entry {place}")
    error = oracle.wide_error(fs.log_softmax(x), oracle.wide_log_softmax(x))
    place = np.unravel_index(error.argmax(), error.shape)
    record("log_softmax", x.dtype, error[place], 4, f"row {x[place[0]].tolist()[:100]}, entry {place}")
    positive = x[x.max(axis=-1) >= 0]
    _, others = oracle.wide_forward(positive)
    reference = positive.max(axis=-1).astype(others.dtype) + np.log1p(others[:, 0])
    error = oracle.wide_error(fs.logsumexp(positive), reference)
    if error.size:
        row = positive[error.argmax()].tolist()[:100]
        record("logsumexp", x.dtype, error.max(), 2, f"row {row}")


def many_rows(dtype, classes, elements, seed):
    rng = np.random.default_rng(seed)
    count = max(1, elements // classes)
    spread = 10.0 ** rng.uniform(-3, 2, (count, 1))
    offset = rng.choice([0.0, 0.0, 1.0, -1.0, 1e4, -1e4], (count, 1)) * rng.random((count, 1))
    return (offset + spread * rng.standard_normal((count, classes))).astype(dtype)


def needs_wider(dtype):
    if not oracle.has_wider(dtype):
        pytest.skip("longdouble is no wider than float64 here")


@every_dtype
@pytest.mark.parametrize(
    "classes", [2, 3, 10, 56, 57, 100, 1000, 50257, pytest.param(10_000_000, marks=pytest.mark.slow)]
)
def test_many_rows(dtype, classes, record):
    needs_wider(dtype)
    if dtype == np.float64:
        classes = min(classes, 1_000_000)
    sweep(many_rows(dtype, classes, 1_000_000 if dtype == np.float32 else 300_000, 1), record)


@pytest.mark.slow
@every_dtype
@pytest.mark.parametrize("classes", [*cases.CLASSES, 5, 24, 33, 333])
def test_very_many_rows(dtype, classes, record):
    needs_wider(dtype)
    for seed in range(100):
        sweep(many_rows(dtype, classes, 1_000_000, seed), record)


# --- dtypes, scalars -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
def test_float16_is_computed_in_float32(function, record):
    """A float32 within 4 ulp is rounded to float16, which makes half an ulp of float16 and little more."""
    x = np.random.default_rng(3).normal(0, 5, (50, 33)).astype(np.float16)
    actual = getattr(fs, function)(x)
    assert actual.dtype == np.float16
    ulps, place = oracle.worst(actual, oracle.rowwise(getattr(oracle, function), x.astype(np.float32)))
    record(function, np.float16, ulps, 0.51, f"entry {place}")


@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize(
    "kind", [bool, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
)
def test_integers_and_bools_become_float64(function, kind):
    x = np.array([[0, 1, 1], [1, 0, 0]]).astype(kind)
    actual = getattr(fs, function)(x)
    assert actual.dtype == np.float64
    np.testing.assert_array_equal(actual, getattr(fs, function)(x.astype(np.float64)))


@every_dtype
def test_numbers_alone(dtype):
    """A 0-d x is one row of one class (over no axis at all); the result is a NumPy scalar, as SciPy's is."""
    x = np.array(3.0, dtype)
    for function, expected in ((fs.softmax, 1), (fs.log_softmax, 0), (fs.logsumexp, 3)):
        value = function(x, axis=None)
        assert type(value) is dtype
        assert value == expected
        assert function(x, axis=()) == expected
    assert type(fs.logsumexp(np.array([1.0, 2.0], dtype))) is dtype


def test_the_oracle_knows_its_formulas():
    """Probabilities sum to 1 and agree with their logarithms in all 50 digits, also in a confident row."""
    for row in (np.array([1.0, 2.0, 3.0]), np.array([0.0, -200.0]), np.array([1e4, -1e4, 0.5])):
        p = oracle.softmax(row)
        with mp.workdps(oracle.digits(row)):
            assert abs(sum(p) - 1) < mp.mpf(10) ** -49
            for log_p, value in zip(oracle.log_softmax(row), p, strict=True):
                assert abs(log_p - mp.log(value)) <= abs(log_p) * mp.mpf(10) ** -48


# --- long rows, which are cut into pieces ---------------------------------------------------------------------


@pytest.fixture
def short_pieces(monkeypatch):
    """Rows of more than 300 classes are cut into pieces. Yields the pieces that were summed up."""
    seen = []

    def summarize(matrix, beta=None, original=long_rows.summarize):
        seen.append(matrix.shape)
        return original(matrix, beta)

    monkeypatch.setattr(activations, "SMALL", 0)
    for table in ("_SOFTMAX", "_LOG_SOFTMAX"):
        monkeypatch.setattr(activations, table, cases.Forgetful())
    monkeypatch.setattr(long_rows, "LONG_ROW", 300)
    monkeypatch.setattr(long_rows, "PIECE", 128)
    monkeypatch.setattr(long_rows, "summarize", summarize)
    return seen


@every_dtype
@pytest.mark.parametrize("classes", [512, 1000])
def test_long_rows(short_pieces, dtype, classes, record):
    """Rows in pieces have the bounds of other rows, also if the pieces differ much or hold infinities."""
    x = cases.logits(dtype, classes).copy()
    x[0, 200:] -= 3000  # a piece beyond the range of exp below the greatest entry
    x[1, :] = np.linspace(-2000, 2000, classes)  # references of the pieces differ by one step and by more
    x[2, :300] = -np.inf
    p, log_p, lse = fs.softmax(x), fs.log_softmax(x), fs.logsumexp(x)
    full, rest = divmod(classes, 128)
    assert short_pieces[: 1 + (rest > 0)] == [(full, 128), (1, rest)][: 1 + (rest > 0)]
    record("softmax, long rows", dtype, oracle.worst(p, oracle.rowwise(oracle.softmax, x))[0], 3)
    record("log_softmax, long rows", dtype, oracle.worst(log_p, oracle.rowwise(oracle.log_softmax, x))[0], 4)
    check_logsumexp(x, lse, oracle.rowwise(oracle.logsumexp, x), record, f"K = {classes}, in pieces")
    with fs.threads(1):
        np.testing.assert_array_equal(fs.softmax(x), p)
    np.testing.assert_array_equal(fs.softmax(x.T, axis=0).T, p)
    y = x.copy()
    assert fs.softmax(y, out=y) is y
    np.testing.assert_array_equal(y, p)
    tempered = fs.softmax(x, temperature=3.0)
    record(
        "softmax with temperature, long rows",
        dtype,
        oracle.worst(tempered, oracle.rowwise(lambda row: oracle.softmax(row, 3.0), x))[0],
        4,
    )


def test_edges_of_long_rows(short_pieces):
    """NaN, +inf and nothing but -inf in a row of pieces. Other rows are not affected."""
    x = np.random.default_rng(0).normal(size=(4, 700))
    x[0, 650], x[1, 3], x[2] = np.nan, np.inf, -np.inf
    p, log_p, lse = fs.softmax(x), fs.log_softmax(x), fs.logsumexp(x)
    assert short_pieces
    assert np.isnan(p[:3]).all()
    assert np.isnan(log_p[[0, 2]]).all()
    np.testing.assert_array_equal(lse[:3], [np.nan, np.inf, -np.inf])
    assert p[3].sum() == pytest.approx(1)


# --- small calls ----------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("classes", [1, 2, 7, 10, 16, 17, 33, 64])
@pytest.mark.parametrize("function", [fs.softmax, fs.log_softmax])
def test_few_rows_have_the_bits_of_many(function, dtype, classes):
    """For one row, for rows that fill a vector, and for rows that fill a part of one."""
    x = np.random.default_rng(classes).normal(0, 10, (40, classes)).astype(dtype)
    x[3] = x[3, 0]
    x[5, 0], x[6, 0], x[7] = -np.inf, np.nan, -np.inf
    many = function(x, out=np.empty_like(x))
    for rows in (1, FEW, FEW + 1):
        for first in range(0, 36, rows):
            few = function(x[first : first + rows])
            np.testing.assert_array_equal(few, many[first : first + rows])


def test_small_calls_skip_the_lookup(monkeypatch):
    """The first call puts machine code into the table, which the others use."""
    x, table = np.ones((2, 3)), {}
    monkeypatch.setattr(activations, "_SOFTMAX", table)
    found = []
    for _ in range(4):
        np.testing.assert_allclose(fs.softmax(x), np.full((2, 3), 1 / 3))
        found.append(table[x.dtype])
    assert found[0] is found[1] is found[2] is found[3]
    for code in found[0]:
        assert type(code) is type(len)
        assert code.__name__.startswith("activations.softmax")


@every_dtype
@pytest.mark.parametrize("shift", [0, 5])
@pytest.mark.parametrize("inner", [traversal.PAST_CACHES // 16, traversal.PAST_CACHES // 16 + 1])
def test_large_results_over_an_inner_axis(dtype, inner, shift):
    """They are written past the caches in whole cache lines, for any alignment of `out` and of the classes."""
    x = np.random.default_rng(5).normal(size=(4, 4, inner)).astype(dtype)
    room = np.full(x.size + 32, np.nan, dtype)
    out = room[shift : shift + x.size].reshape(x.shape)
    assert fs.softmax(x, axis=1, out=out) is out
    np.testing.assert_array_equal(out[1:3], fs.softmax(x[1:3], axis=1))
    some = np.moveaxis(x, 1, 2)[:, 7::1000]
    np.testing.assert_array_equal(np.moveaxis(out, 1, 2)[:, 7::1000], fs.softmax(some))
    assert np.isnan(room[:shift]).all()
    assert np.isnan(room[shift + x.size :]).all()
    np.testing.assert_array_equal(fs.softmax(x, axis=1, out=x), out)


def test_a_small_temperature_keeps_the_digits_of_large_logits():
    """In float32, x/T of 4e7 has no fractional digits. Differences of x keep all digits."""
    x = np.array([14739.697265625, 14739.6962890625, 14739.6953125], np.float32)
    temperature = 0.0003785003825740327
    right = oracle.softmax(x, temperature=temperature).astype(float)
    np.testing.assert_allclose(fs.softmax(x, temperature=temperature), right, rtol=4 * np.finfo(np.float32).eps)
    np.testing.assert_allclose(right, [0.92463, 0.07006, 0.00531], atol=1e-5)


@pytest.mark.parametrize(
    ("logits", "temperature"),
    [
        (np.array([-4600, 3084, 6288], np.float16), 1e-10),
        (np.array([1.0, 2.0, 3.0]), 1e-300),
        (np.array([1.0, 2.0, 3.0], np.float32), 1e-300),
        (np.array([-3e38, 1e38, 3e38], np.float32), 1e-38),
    ],
)
def test_a_temperature_that_takes_logits_out_of_range(logits, temperature):
    np.testing.assert_array_equal(fs.softmax(logits, temperature=temperature), [0, 0, 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1e-300, 1e-5, 2.0, 1e30, 1e300])
def test_a_logit_of_minus_infinity_with_a_temperature(temperature, dtype):
    x = np.array([0.0, -np.inf, 1.0], dtype)
    rest = fs.log_softmax(x[[0, 2]], temperature=temperature)
    np.testing.assert_array_equal(fs.log_softmax(x, temperature=temperature), [rest[0], -np.inf, rest[1]])
    assert fs.softmax(x, temperature=temperature)[1] == 0
