"""kl_divergence and js_divergence: oracle, finite difference, dense Jacobian, tangents, invariants, edge rows."""

import cases
import hypothesis.strategies as st
import mpmath as mp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

import fastsoftmax as fs
from fastsoftmax._spec import FUNCTIONS
from fastsoftmax.arrays import losses

EPS = float(np.finfo(np.float64).eps)
INF, NAN = np.inf, np.nan
every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)
every_length = pytest.mark.parametrize("classes", cases.CLASSES)
some_lengths = pytest.mark.parametrize("classes", [1, 2, 3, 10, 17, 57, 64, 65, 100])
few_lengths = pytest.mark.parametrize("classes", [1, 2, 3, 17, 100])
both_ways = pytest.mark.parametrize("reverse", [False, True])
every_share = pytest.mark.parametrize("beta", [0.5, 0.1, 0.9])
bound = {True: 4, False: 5}
"""In eps of the sizes below, without and with a temperature, which adds one rounding. The docstring of
`kernels.divergences.divergence` derives the first."""
PAIRS = tuple(
    getattr(fs, name) for name in FUNCTIONS if name.endswith("divergence_with_grad") and "segment" not in name
)
every_pair = pytest.mark.parametrize("function", PAIRS)


def floats(values):
    return np.array([float(v) for v in np.ravel(values)]).reshape(np.shape(values))


def targets(x, seed=0):
    """Target logits for x: unlike x, close to it, equal but for a shift, and with another certain class."""
    rng = np.random.default_rng(seed + x.shape[-1])
    t = 2 * rng.standard_normal(x.shape)
    wide = x.astype(np.float64)
    t[1::5] = wide[1::5] + 1e-2 * t[1::5]
    t[2::5] = wide[2::5] * 0.75 + t[2::5] / 4
    t[3::5] += rng.choice([-37.5, 0.0, 1e3], (len(t[3::5]), 1))
    t[4::5] = wide[4::5, ::-1] + t[4::5]
    return t.astype(x.dtype)


class Sizes:
    """The sizes to which the errors of a pair of rows are relative, from probabilities of the oracle."""

    def __init__(self, x, t, temperature):
        self.temperature = temperature
        p, q = (oracle.rowwise(oracle.softmax, z, temperature=temperature) for z in (x, t))
        with mp.workdps(oracle.MOST_DIGITS):
            self.p, self.q, self.lack_p, self.lack_q = floats(p), floats(q), floats(1 - p), floats(1 - q)
        logs = [floats(oracle.rowwise(oracle.log_softmax, z, temperature=temperature)) for z in (x, t)]
        self.log_p, self.log_q = logs
        self.depth_p, self.depth_q = (
            (z.max(-1, keepdims=True).astype(np.float64) - z) / temperature for z in (x, t)
        )

    def kl(self, reverse):
        """Cross-entropy plus entropy of the distribution that weighs."""
        weigh = self.p if reverse else self.q
        return -np.sum(weigh * (self.log_p + self.log_q), axis=-1)

    def difference(self):
        """The terms of (p - q)/T, or of (1 - q) - (1 - p) where both are above 1/2."""
        certain = (self.p > 0.5) & (self.q > 0.5)
        return np.where(certain, self.lack_p + self.lack_q, self.p + self.q) / self.temperature

    def _about_the_top(self, sizes):
        """p_k (s_k + sum_j p_j s_j)/T with s the size of an entry plus that at the greatest; 0 at a single one."""
        top = self.depth_p == 0
        at_top = np.sum(np.where(top, sizes, 0), axis=-1, keepdims=True) / top.sum(-1, keepdims=True)
        s = np.where(top & (top.sum(-1, keepdims=True) == 1), 0, sizes + at_top)
        return self.p * (s + np.sum(self.p * s, axis=-1, keepdims=True)) / self.temperature

    def reverse_slope(self):
        return self._about_the_top(self.depth_p + self.depth_q)

    def _mixed(self, beta):
        gap = np.abs(self.log_p - self.log_q)
        smaller = np.minimum(self.p, self.q)
        c = np.where(self.p < self.q, 1 - beta, beta)
        return gap, smaller, c, -self.log_p - self.log_q

    def js(self, value, beta):
        """The divergence, and the sum of what is subtracted, with the error of log p - log q."""
        gap, smaller, c, logs = self._mixed(beta)
        return value + np.sum(c * gap * smaller * (1 + logs), axis=-1)

    def js_slope(self, beta):
        log_m = np.logaddexp(np.log(beta) + self.log_q, np.log1p(-beta) + self.log_p)
        _, _, _, logs = self._mixed(beta)
        share = np.exp(np.log(beta) + self.log_q - log_m)
        return (1 - beta) * self._about_the_top(np.abs(self.log_p - log_m) + share * logs)


def check(record, name, x, t, found, temperature, reverse=False, beta=None, note=""):
    loss, slope = found
    options = {"temperature": temperature, **({"reverse": reverse} if beta is None else {"beta": beta})}
    detail = f"K = {x.shape[1]}, {options}"
    sizes = Sizes(x, t, temperature)
    reference = oracle.rowwise(getattr(oracle, name), x, t, **options)
    size = sizes.kl(reverse) if beta is None else sizes.js(floats(reference), beta)
    most = bound[temperature == 1.0]
    ulps, place = oracle.worst(loss, reference, np.maximum(size, 1e-300))
    record(f"{name}{note} (eps of its terms)", x.dtype, ulps, most, f"{detail}, row {place}")
    assert np.all(loss >= 0)
    reference = oracle.rowwise(getattr(oracle, f"{name}_grad"), x, t, **options)
    if beta is not None:
        size = sizes.js_slope(beta)
    else:
        size = sizes.reverse_slope() if reverse else sizes.difference()
    size = np.where(size == 0, sizes.p * 1e-30, size)  # one class, or equal ones: the oracle's result is 1e-50
    ulps, place = oracle.worst(slope, reference, size)
    way = " reversed" * reverse
    record(f"{name}_grad{way}{note} (eps of its terms)", x.dtype, ulps, most, f"{detail}, entry {place}")


# --- the oracle -------------------------------------------------------------------------------------------------


@every_dtype
@every_length
@both_ways
def test_kl_against_the_oracle(dtype, classes, reverse, record):
    """Within 4 eps of cross-entropy plus entropy, also for almost certain rows."""
    x = cases.logits(dtype, classes)[:: 1 if classes < 64 else 2]
    t = targets(x)
    found = fs.kl_divergence_with_grad(x, t, reverse=reverse, reduction="none")
    assert found[0].dtype == found[1].dtype == dtype
    np.testing.assert_array_equal(fs.kl_divergence(x, t, reverse=reverse, reduction="none"), found[0])
    np.testing.assert_array_equal(fs.kl_divergence_grad(x, t, reverse=reverse, reduction="sum"), found[1])
    check(record, "kl_divergence", x, t, found, 1.0, reverse)


@every_dtype
@some_lengths
@both_ways
@pytest.mark.parametrize("temperature", [0.05, 0.3, 4.0])
def test_kl_with_a_temperature(dtype, classes, reverse, temperature, record):
    x = cases.logits(dtype, classes)[::3]
    t = targets(x)
    options = {"temperature": temperature, "reverse": reverse, "reduction": "none"}
    found = fs.kl_divergence_with_grad(x, t, **options)
    assert np.isfinite(found[1]).all()
    check(record, "kl_divergence", x, t, found, temperature, reverse, note=" with temperature")


@every_dtype
@every_length
def test_js_against_the_oracle(dtype, classes, record):
    x = cases.logits(dtype, classes)[:: 1 if classes < 64 else 3]
    t = targets(x)
    found = fs.js_divergence_with_grad(x, t, reduction="none")
    assert found[0].dtype == found[1].dtype == dtype
    np.testing.assert_array_equal(fs.js_divergence(x, t, reduction="none"), found[0])
    np.testing.assert_array_equal(fs.js_divergence_grad(x, t, reduction="sum"), found[1])
    check(record, "js_divergence", x, t, found, 1.0, beta=0.5)


@every_dtype
@some_lengths
@every_share
@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0])
def test_js_with_options(dtype, classes, beta, temperature, record):
    """beta is rounded to the dtype, so that the oracle gets it rounded."""
    x = cases.logits(dtype, classes)[::4]
    t = targets(x)
    beta = float(dtype(beta))
    found = fs.js_divergence_with_grad(x, t, temperature=temperature, beta=beta, reduction="none")
    assert np.isfinite(found[1]).all()
    check(record, "js_divergence", x, t, found, temperature, beta=beta, note=" with options")


@every_dtype
@some_lengths
def test_classes_that_are_not_last(dtype, classes, record):
    x = cases.logits(dtype, classes)[::2]
    t = targets(x)
    for name, beta in (("kl_divergence", None), ("js_divergence", 0.5)):
        function = getattr(fs, f"{name}_with_grad")
        loss, slope = function(np.ascontiguousarray(x.T), np.ascontiguousarray(t.T), axis=0, reduction="none")
        check(record, name, x, t, (loss, slope.T), 1.0, beta=beta, note=", axis 0")


@every_dtype
@both_ways
@pytest.mark.parametrize("classes", [2, 9, 90])
def test_where_a_probability_is_no_normal_number(dtype, classes, reverse, record):
    deepest = -np.log(float(np.finfo(dtype).tiny))
    x = np.zeros((40, classes), dtype)
    x[:, 1:] = -np.linspace(deepest - 10, deepest + 10, 40)[:, None] - np.arange(classes - 1)
    t = x / dtype(1.25)
    found = fs.kl_divergence_with_grad(x, t, reverse=reverse, reduction="none")
    check(record, "kl_divergence", x, t, found, 1.0, reverse, note=", tiny")


@every_dtype
@pytest.mark.parametrize("classes", [2, 64, 65])
def test_both_distributions_almost_certain(dtype, classes, record):
    """1 - p and 1 - q decide about loss and gradient, which p - q does not show."""
    x, t = np.zeros((12, classes), dtype), np.zeros((12, classes), dtype)
    x[:, 1], t[:, 1] = np.linspace(20, 60, 12), np.linspace(45, 25, 12)
    found = fs.kl_divergence_with_grad(x, t, reduction="none")
    check(record, "kl_divergence", x, t, found, 1.0, note=", certain")
    reference = oracle.rowwise(oracle.kl_divergence_grad, x, t)
    ulps, _ = oracle.worst(found[1], reference)
    assert ulps < 8  # the two complements differ by a factor of at least two here, or nearly
    assert np.all(found[1] != 0)


@every_dtype
@every_pair
@pytest.mark.parametrize("temperature", [1e-30, 1e-12, 1e12, 1e30])
def test_extreme_temperatures(dtype, function, temperature):
    """Neither 1/T nor its square overflows or underflows before it meets logits of that size."""
    z, t = np.array([[0.0, -1.0, -3.0], [2.0, 1.5, 2.0]]), np.array([[0.5, -1.5, 0.0], [0.0, 1.5, 2.0]])
    loss, slope = function(z, t, reduction="none")
    x, y = ((a.astype(np.longdouble) * temperature).astype(dtype) for a in (z, t))
    found, gradient = function(x, y, temperature=temperature, reduction="none")
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    np.testing.assert_allclose(gradient.astype(np.float64) * temperature, slope, rtol=1e-5, atol=1e-7)


# --- the gradient in other ways ---------------------------------------------------------------------------------

WAYS = [
    (fs.kl_divergence_with_grad, {}),
    (fs.kl_divergence_with_grad, {"reverse": True}),
    (fs.js_divergence_with_grad, {}),
    (fs.js_divergence_with_grad, {"beta": 0.2}),
]
every_way = pytest.mark.parametrize(("function", "options"), WAYS)


def rows(classes):
    rng = np.random.default_rng(classes)
    return rng.normal(0, 1.5, (5, classes)), rng.normal(0, 1.5, (5, classes))


def slope_of_probs(function, options, x, t, temperature):
    """dL/dp for the loss as a function of p, a constant aside, which the Jacobian maps to 0."""
    p, q = fs.softmax(x, temperature=temperature), fs.softmax(t, temperature=temperature)
    if function is fs.kl_divergence_with_grad:
        return np.log(p) - np.log(q) if options else -q / p
    beta = options.get("beta", 0.5)
    return (1 - beta) * (np.log(p) - np.log(beta * q + (1 - beta) * p))


@few_lengths
@every_way
@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
def test_gradient_is_the_finite_difference(classes, function, options, temperature):
    (x, t), step = rows(classes), 6e-6  # eps**(1/3)
    options = options | {"temperature": temperature, "reduction": "none"}
    _, gradient = function(x, t, **options)
    # truncation h**2/6 times third derivatives (below 2 (spread + 3)/T**3), and the rounding of the losses
    size = 3 + np.log(classes) + 12 / temperature
    atol = step**2 * size / temperature**3 + 8 * EPS * size / step
    for k in range(classes):
        up, down = x.copy(), x.copy()
        up[:, k] += step
        down[:, k] -= step
        change = function(up, t, **options)[0] - function(down, t, **options)[0]
        np.testing.assert_allclose(gradient[:, k], change / (2 * step), rtol=0, atol=atol)


@few_lengths
@every_way
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_gradient_is_a_product_with_the_dense_jacobian(classes, function, options, temperature):
    """dL/dz = J^T dL/dp."""
    x, t = rows(classes)
    jacobian = fs.softmax_jacobian(x, temperature=temperature)
    cotangent = slope_of_probs(function, options, x, t, temperature)
    expected = np.einsum("nij,ni->nj", jacobian, cotangent)
    logs = np.abs(fs.log_softmax(x, temperature=temperature)) + np.abs(fs.log_softmax(t, temperature=temperature))
    sizes = np.abs(cotangent) + logs
    terms = np.einsum("nij,ni->nj", np.abs(jacobian), sizes)
    _, gradient = function(x, t, temperature=temperature, reduction="none", **options)
    assert np.all(np.abs(gradient - expected) <= (20 + classes) * EPS * (terms + 1e-300))


@few_lengths
@every_way
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_gradient_along_a_tangent(classes, function, options, temperature):
    """<dL/dz, v> = <dL/dp, J v>."""
    x, t = rows(classes)
    tangent = np.random.default_rng(9).normal(0, 1, x.shape)
    _, gradient = function(x, t, temperature=temperature, reduction="none", **options)
    change = fs.softmax_jvp(x, tangent, temperature=temperature)
    cotangent = slope_of_probs(function, options, x, t, temperature)
    sizes = np.sum(np.abs(cotangent * change), axis=-1) + np.sum(np.abs(gradient * tangent), axis=-1)
    sizes = sizes + np.abs(cotangent).max() / temperature
    assert np.all(
        np.abs(np.sum(gradient * tangent, axis=-1) - np.sum(cotangent * change, axis=-1))
        <= (40 + classes) * EPS * sizes
    )


def test_the_reversed_gradient_is_a_jvp():
    """p (v - p.v)/T with v = (z - t)/T."""
    x, t = rows(17)
    _, gradient = fs.kl_divergence_with_grad(x, t, temperature=2.0, reverse=True, reduction="none")
    expected = fs.softmax_jvp(x, (x - t) / 2, temperature=2.0)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=20 * EPS)


# --- what holds exactly -----------------------------------------------------------------------------------------

numbers = st.one_of(
    st.floats(-50, 50, width=32),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.sampled_from([0.0, -INF, 1e-30, -0.0]),
)


@st.composite
def two_rows(draw):
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    shape = draw(st.sampled_from([(1, 1), (3, 2), (2, 7), (17, 5), (2, 65), (1, 130)]))
    return tuple(draw(arrays.arrays(dtype, shape, elements=numbers)) for _ in range(2))


def defined(*pair):
    """The rows whose probabilities are defined in both arrays."""
    return np.all([np.isfinite(z.max(-1)) for z in pair], axis=0)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(two_rows(), st.booleans(), st.sampled_from([0.05, 1.0, 3.0]))
def test_kl_is_not_negative(pair, reverse, temperature):
    x, t = pair
    loss, slope = fs.kl_divergence_with_grad(x, t, reverse=reverse, temperature=temperature, reduction="none")
    ok = defined(x, t)
    assert np.all(loss[ok] >= 0)
    assert np.isnan(loss[~ok]).all()
    if not reverse:
        assert np.isfinite(slope[ok]).all()
        np.testing.assert_array_equal(slope[ok][(x[ok] == -INF) & (t[ok] == -INF)], 0)
    infinite = np.any((x if reverse else t) > -INF, -1) & np.any(
        np.where(reverse, (fs.softmax(x, temperature=temperature) > 0) & (t == -INF), False)
        | np.where(reverse, False, (fs.softmax(t, temperature=temperature) > 0) & (x == -INF)),
        -1,
    )
    assert np.all(loss[ok & infinite] == INF)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(two_rows(), st.sampled_from([0.05, 1.0, 3.0]))
def test_equal_logits_have_no_divergence(pair, temperature):
    x, _ = pair
    ok = defined(x)
    for function in PAIRS:
        loss, slope = function(x, x.copy(), temperature=temperature, reduction="none")
        assert not loss[ok].any()
        assert not slope[ok].any()


@settings(deadline=None, max_examples=200, derandomize=True)
@given(two_rows(), st.sampled_from([0.05, 1.0, 3.0]))
def test_js_is_symmetric_and_bounded(pair, temperature):
    x, t = pair
    there = fs.js_divergence(x, t, temperature=temperature, reduction="none")
    back = fs.js_divergence(t, x, temperature=temperature, reduction="none")
    np.testing.assert_array_equal(there, back)
    ok = defined(x, t)
    eps = np.finfo(x.dtype).eps
    assert np.all((there[ok] >= 0) & (there[ok] <= np.log(2) * (1 + 6 * eps)))
    _, slope = fs.js_divergence_with_grad(x, t, temperature=temperature, reduction="none")
    assert np.isfinite(slope[ok]).all()


@every_dtype
@pytest.mark.parametrize("classes", [2, 17, 100])
def test_shifts_change_little(dtype, classes):
    rng = np.random.default_rng(0)
    x, t = (rng.integers(-1024, 1024, (9, classes)).astype(dtype) / dtype(64) for _ in range(2))
    for function in PAIRS:
        for a, b in zip(function(x, t), function(x + dtype(256), t - dtype(128)), strict=True):
            np.testing.assert_allclose(a, b, rtol=20 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps)


def test_other_functions():
    """KL(q || p) = H(q, p) - H(q); the gradient is that of the cross-entropy; JS by its definition from KL."""
    x, t = rows(17)
    q = fs.softmax(t)
    expected = fs.cross_entropy(x, q, reduction="none") - fs.softmax_entropy(t)
    np.testing.assert_allclose(fs.kl_divergence(x, t, reduction="none"), expected, rtol=0, atol=10 * EPS)
    np.testing.assert_allclose(fs.kl_divergence_grad(x, t), fs.cross_entropy_grad(x, q), rtol=0, atol=2 * EPS)
    mixture = np.log(0.3 * q + 0.7 * fs.softmax(x))
    expected = 0.3 * fs.kl_divergence(mixture, t, reduction="none")
    expected += 0.7 * fs.kl_divergence(mixture, x, reduction="none")
    np.testing.assert_allclose(fs.js_divergence(x, t, beta=0.3, reduction="none"), expected, rtol=100 * EPS)
    small = fs.js_divergence(x, t, beta=1e-9, reduction="none") / 1e-9
    np.testing.assert_allclose(small, fs.kl_divergence(x, t, reduction="none"), rtol=1e-5)
    close_to_one = fs.js_divergence(x, t, beta=1 - 2.0**-30, reduction="none") * 2**30
    np.testing.assert_allclose(close_to_one, fs.kl_divergence(x, t, reverse=True, reduction="none"), rtol=1e-5)


# --- edge rows --------------------------------------------------------------------------------------------------


def row(head, filler, classes, dtype):
    return np.array([*head, *[filler] * (classes - len(head))], dtype)


EDGE_LENGTHS = pytest.mark.parametrize("classes", [3, 16, 57, 70, 300, 1030])


@every_dtype
@EDGE_LENGTHS
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_classes_of_probability_zero(dtype, classes, temperature):
    """One edge of the documentation in each row."""
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(2, 7, classes)).astype(dtype)
    x[1, 1] = t[1, 1] = -INF  # 0 against 0
    t[2, 1] = -INF  # q = 0
    x[3, 1] = -INF  # p = 0
    x[4, 1], t[4, 2] = -INF, -INF
    x[5, 1:], t[5, 1:] = -INF, -INF  # both certain
    x[6, 1:], t[6], t[6, 2] = -INF, -INF, 0.0  # disjoint
    tolerance = 30 * float(np.finfo(dtype).eps) / temperature
    with np.errstate(all="raise"):
        kl, slope = fs.kl_divergence_with_grad(x, t, temperature=temperature, reduction="none")
        back, tilt = fs.kl_divergence_with_grad(x, t, temperature=temperature, reverse=True, reduction="none")
        js, bend = fs.js_divergence_with_grad(x, t, temperature=temperature, reduction="none")
        p, q = fs.softmax(x, temperature=temperature), fs.softmax(t, temperature=temperature)
    np.testing.assert_array_equal(np.isinf(kl), [0, 0, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(np.isinf(back), [0, 0, 1, 0, 1, 0, 1])
    assert kl[5] == back[5] == js[5] == 0
    np.testing.assert_allclose(slope, (p - q) / temperature, rtol=0, atol=tolerance)
    assert np.all(slope[:, 1][[1, 5, 6]] == 0)
    finite = np.isfinite(back)
    assert np.isfinite(tilt[finite]).all()
    np.testing.assert_array_equal(tilt[x == -INF], 0)
    assert np.isnan(tilt[(p > 0) & ~finite[:, None]]).all()  # p (log p/q - inf)
    assert np.isfinite(js).all()
    assert np.isfinite(bend).all()
    np.testing.assert_array_equal(bend[x == -INF], 0)
    assert js[6] == pytest.approx(np.log(2), rel=4 * float(np.finfo(dtype).eps))
    # the class that is missing in both arrays can be left out
    for function in PAIRS:
        shorter = function(
            np.delete(x[1:2], 1, 1), np.delete(t[1:2], 1, 1), temperature=temperature, reduction="none"
        )
        whole = function(x[1:2], t[1:2], temperature=temperature, reduction="none")
        np.testing.assert_allclose(whole[0], shorter[0], rtol=tolerance)
        np.testing.assert_allclose(np.delete(whole[1], 1, 1), shorter[1], rtol=0, atol=tolerance)


@every_dtype
@EDGE_LENGTHS
@every_pair
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}])
@pytest.mark.parametrize("second", [False, True])
def test_rows_without_probabilities(dtype, classes, function, options, second):
    """NaN, +inf or nothing but -inf in one of the arrays makes the row NaN, and no other."""
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(2, 21, classes)).astype(dtype)
    plain = [part.copy() for part in function(x, t, reduction="none", **options)]
    bad = t if second else x
    bad[13, 1], bad[14, 0], bad[15], bad[16, 1], bad[16, 0] = NAN, INF, -INF, INF, -INF
    bad[17], bad[18, :2] = NAN, (NAN, INF)
    x[19] = t[19] = -INF
    bad[13, 2] = (t if bad is x else x)[13, 0] = -INF  # an infinite divergence, without the NaN
    with np.errstate(all="raise"):
        loss, slope = function(x, t, reduction="none", **options)
    assert np.isnan(loss[13:20]).all()
    assert np.isnan(slope[13:20]).any(-1).all()
    others = [*range(13), 20]
    np.testing.assert_array_equal(loss[others], plain[0][others])
    np.testing.assert_array_equal(slope[others], plain[1][others])


@every_pair
def test_nothing(function):
    loss, slope = function(np.zeros((0, 3)), np.zeros((0, 3)), reduction="none")
    assert loss.shape == (0,)
    assert slope.shape == (0, 3)
    assert np.isnan(function(np.zeros((0, 3)), np.zeros((0, 3)))[0])
    loss, slope = function(np.zeros((2, 0)), np.zeros((2, 0)), reduction="none")
    assert np.isnan(loss).all()
    assert slope.shape == (2, 0)


# --- weights and reductions -------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("shape", [(40, 5), (9, 100), (5, 1100)])
def test_reductions_and_weights(function, options, shape):
    rng = np.random.default_rng(3)
    x, t = rng.normal(size=(2, *shape))
    weight = rng.random(shape[0])
    weight[::3] = 0
    each, slopes = function(x, t, reduction="none", **options)
    size = 8 * EPS * (fs.softmax(x) + fs.softmax(t)) * (4 + np.abs(x) + np.abs(t))  # terms that cancel
    for reduction, divisor in (("mean", shape[0]), ("sum", 1)):
        loss, slope = function(x, t, reduction=reduction, **options)
        assert loss == pytest.approx(each.sum() / divisor, rel=1e-14)
        np.testing.assert_allclose(slope, slopes / divisor, rtol=0, atol=size.max() / divisor)
    x[::3], t[3] = NAN, INF  # rows of weight 0 never leak
    for reduction, divisor in (("mean", weight.sum()), ("sum", 1)):
        loss, slope = function(x, t, reduction=reduction, sample_weight=weight, **options)
        assert loss == pytest.approx((weight * each).sum() / divisor, rel=1e-14)
        np.testing.assert_allclose(slope, weight[:, None] * slopes / divisor, rtol=0, atol=size.max() / divisor)
        assert not slope[::3].any()
    rows_, slope = function(x, t, reduction="none", sample_weight=weight, **options)
    np.testing.assert_allclose(rows_, weight * each, rtol=2 * EPS)
    assert not rows_[::3].any()
    loss, slope = function(x, t, sample_weight=np.zeros(shape[0]), **options)
    assert np.isnan(loss)
    assert not slope.any()


@every_pair
def test_weights_of_any_size(function):
    """A common power of two cancels in a mean."""
    rng = np.random.default_rng(4)
    x, t = rng.normal(size=(2, 6, 9)).astype(np.float32)
    weight = rng.random(6).astype(np.float32)
    expected = function(x, t, sample_weight=weight)
    for power in (-120, 120):
        found = function(x, t, sample_weight=np.ldexp(weight, power))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


# --- arrays -----------------------------------------------------------------------------------------------------


@every_pair
def test_dtypes_and_scalars(function):
    rng = np.random.default_rng(3)
    x, t = rng.normal(0, 2, (2, 50, 33)).astype(np.float16)
    half, single = function(x, t, reduction="none"), function(x.astype("f"), t.astype("f"), reduction="none")
    for a, b in zip(half, single, strict=True):
        assert a.dtype == np.float16
        np.testing.assert_array_equal(a, b.astype(np.float16))
    value, gradient = function([1, 2, 3], [True, False, True])
    assert type(value) is np.float64
    assert gradient.dtype == np.float64
    wide = t.astype(np.float64) + 1e-9
    a, b = function(x.astype("f"), wide), function(x.astype("f"), wide.astype("f"))
    assert a[0].dtype == a[1].dtype == np.float32
    np.testing.assert_array_equal(a[1], b[1])


@every_way
@every_dtype
@pytest.mark.parametrize("shape", [(20, 3), (3, 100), (2, 1100), (4, 5, 20)])
def test_out(function, options, dtype, shape):
    """The gradient may be written over the logits or over the targets."""
    axis = 1
    x, t = np.random.default_rng(4).normal(size=(2, *shape)).astype(dtype)
    loss, gradient = function(x, t, axis, **options)
    for wrong, kind in ((np.full((*shape, 1), 7.0), ValueError), (np.full(shape, 7, np.int64), TypeError)):
        with pytest.raises(kind, match=r"divergence_with_grad: out has .* expected"):
            function(x, t, axis, out=wrong, **options)
        assert np.all(wrong == 7)
    for place in (0, 1):
        pair = [x.copy(), t.copy()]
        again = function(*pair, axis, out=pair[place], **options)
        assert again[1] is pair[place]
        assert again[0] == loss
        np.testing.assert_array_equal(again[1], gradient)
        np.testing.assert_array_equal(pair[1 - place], (x, t)[1 - place])
    memory = np.empty(2 * x.size + 1, dtype)
    view = memory[1 : 1 + x.size].reshape(shape)
    view[...] = x
    over = memory[: x.size].reshape(shape)
    again = function(view, t, axis, out=over, **options)
    np.testing.assert_array_equal(again[1], gradient)


@every_way
def test_layouts(function, options):
    x, t = np.random.default_rng(5).normal(size=(2, 6, 70))
    expected = function(x, t, **options)
    strided, backwards = np.zeros((12, 140)), t[:, ::-1].copy()[:, ::-1]
    strided[::2, ::2] = x
    frozen = t.copy()
    frozen.flags.writeable = False
    pairs = [(strided[::2, ::2], t), (x, backwards), (x.astype(">f8"), np.asfortranarray(t)), (x.tolist(), frozen)]
    for pair in pairs:
        for a, b in zip(function(*pair, **options), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    three = function(x.reshape(2, 3, 70), t.reshape(2, 3, 70), **options)
    assert three[0] == expected[0]
    one = function(x[0], np.broadcast_to(t[0], (70,)), **options)
    np.testing.assert_array_equal(one[1], function(x[:1], t[:1], **options)[1][0])


@every_way
@every_dtype
@few_lengths
def test_small_calls(function, options, dtype, classes, monkeypatch):
    """Small calls take a shorter way, with the same bits, with and without a temperature."""
    rng = np.random.default_rng(classes)
    x, t = rng.normal(0, 5, (2, 20, classes)).astype(dtype)
    name = function.__name__.removesuffix("_with_grad")
    for more in ({}, {"temperature": 2.5}, {"temperature": 1}):
        given = options | more
        for _ in range(2):
            long = function(x[None], t[None], **given), function(x[None], t[None], **given)
        with monkeypatch.context() as patch:
            patch.setattr(losses, "run", None)
            loss, slope = function(x, t, **given)
            out = np.empty_like(x)
            assert getattr(fs, f"{name}_grad")(x, t, out=out, **given) is out
            assert getattr(fs, name)(x, t, **given) == loss
        assert loss == long[0][0]
        assert type(loss) is dtype
        np.testing.assert_array_equal(slope, long[0][1][0])
        np.testing.assert_array_equal(out, slope)


def test_rows_of_any_place_have_the_same_bits():
    """In groups, in batches of any size, on any number of threads."""
    rng = np.random.default_rng(6)
    for classes in (10, 64, 65, 300, 1024, 1025):
        x, t = rng.normal(0, 3, (2, 1000 if classes < 100 else 150, classes)).astype(np.float32)
        for function, options in WAYS:
            loss, slope = function(x, t, reduction="none", **options)
            for some in (slice(3, 4), slice(5, 22), slice(100, None)):
                part = function(x[some], t[some], reduction="none", **options)
                np.testing.assert_array_equal(part[0], loss[some])
                np.testing.assert_array_equal(part[1], slope[some])
            with fs.threads(1):
                alone = function(x, t, reduction="none", **options)
            np.testing.assert_array_equal(alone[1], slope)


@pytest.mark.parametrize("chunks", [(2, -1), (2, 4)])
@every_way
def test_dask_arrays(function, options, chunks):
    """Results are lazy and have the same bits. Classes in several chunks are brought together."""
    da = pytest.importorskip("dask.array")
    x, t = np.random.default_rng(5).normal(size=(2, 7, 9)).astype(np.float32)
    weight = np.random.default_rng(6).random(7)
    options = options | {"temperature": 2.0, "sample_weight": weight}
    expected = function(x, t, **options)
    for pair in ((x, t), (da.from_array(x, chunks=chunks), t), (x, da.from_array(t, chunks=chunks))):
        lazy = [a if isinstance(a, da.Array) else da.from_array(a, chunks=(3, 5)) for a in pair]
        loss, slope = function(*lazy, **options)
        assert isinstance(loss, da.Array)
        assert (slope.shape, slope.dtype, loss.dtype) == (x.shape, np.float32, np.float32)
        np.testing.assert_array_equal(slope.compute(scheduler="synchronous"), expected[1])
        assert loss.compute(scheduler="synchronous") == expected[0]
    lazy = da.from_array(x, chunks=chunks)
    with pytest.raises(TypeError, match="out cannot be used with Dask arrays"):
        function(lazy, t, out=np.empty_like(x), **options)
    with pytest.raises(ValueError, match="temperature must be finite and > 0"):
        function(lazy, t, temperature=0.0)


# --- errors -----------------------------------------------------------------------------------------------------

X, T = np.zeros((2, 3)), np.ones((2, 3))


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if FUNCTIONS[n].family == "divergence"])
def test_errors_name_function_and_argument(name):
    function, cases_ = getattr(fs, name), []
    cases_ += [((X.astype(complex), T), {}, TypeError, "logits has dtype complex128")]
    cases_ += [((X, T.astype(complex)), {}, TypeError, "target_logits has dtype complex128")]
    cases_ += [
        ((X, T[:1]), {}, ValueError, r"target_logits has shape \(1, 3\), expected that of logits, \(2, 3\)")
    ]
    cases_ += [((X, T[0]), {}, ValueError, r"target_logits has shape \(3,\), expected")]
    cases_ += [((X, np.ma.masked_array(T)), {}, TypeError, "target_logits is a masked array")]
    cases_ += [((X, T), {"temperature": 0.0}, ValueError, "temperature must be finite and > 0, got 0")]
    cases_ += [((X, T), {"temperature": "hot"}, TypeError, "temperature must be a number")]
    cases_ += [((X, T), {"reduction": "average"}, ValueError, "reduction must be one of")]
    cases_ += [
        ((X, T), {"sample_weight": np.ones(3)}, ValueError, r"sample_weight has shape \(3,\), expected \(2,\)")
    ]
    cases_ += [((X[0, 0], T[0, 0]), {}, ValueError, "logits is 0-d")]
    if name.startswith("kl"):
        cases_ += [((X, T), {"reverse": 1}, TypeError, "reverse must be a bool, got 1")]
    else:
        cases_ += [((X, T), {"beta": b}, ValueError, "beta must be") for b in (0, 1, -0.5, 1.5, NAN)]
        cases_ += [((X, T), {"beta": None}, TypeError, "beta must be a number")]
    for _ in range(2):  # the second time, the short way of small calls is there
        for arguments, options, kind, words in cases_:
            with pytest.raises(kind, match=f"^{name}: {words}"):
                function(*arguments, **options)
        function(X, T)
    with pytest.raises(np.exceptions.AxisError, match=name):
        function(X, T, 2)
