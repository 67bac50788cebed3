"""The documented bounds of errors, on rows with large errors, from one class to ten million.

The reference is NumPy in the next wider dtype, which is accurate to 1e-3 ulp here. The tests of the functions
compare with mpmath, and the last test below compares the two references.
"""

import families
import mpmath as mp
import numpy as np
import oracle
import pytest

import fastsoftmax as fs

ELEMENTS = 30_000
DTYPES = (np.float32, np.float64)


def errors(x):
    """Worst error of each function on these rows: {name: (ulps, bound)}."""
    difference, others = oracle.wide_forward(x)
    with np.errstate(under="ignore"):
        probs = np.exp(difference) / (1 + others)
    log_probs = difference - np.log1p(others)
    top = np.argmax(x, axis=-1)
    random = np.random.default_rng(x.shape[1]).integers(0, x.shape[1], len(x))
    found = {
        "softmax": (oracle.wide_error(fs.softmax(x), probs).max(), 3),
        "log_softmax": (oracle.wide_error(fs.log_softmax(x), log_probs).max(), 4),
    }
    for name, labels in (("top", top), ("random", random)):
        loss, grad = fs.cross_entropy_with_grad(x, labels, reduction="none")
        exact_loss = -np.take_along_axis(log_probs, labels[:, None], -1)[:, 0]
        found[f"cross_entropy, {name} label"] = (oracle.wide_error(loss, exact_loss).max(), 4)
        exact_grad = probs.copy()
        rest = np.where(labels == top, -(others / (1 + others))[:, 0], 0.0)
        at = np.take_along_axis(probs, labels[:, None], -1)[:, 0]
        np.put_along_axis(
            exact_grad, labels[:, None], np.where(labels == top, rest, at - 1)[:, None].astype(probs.dtype), -1
        )
        found[f"cross_entropy_grad, {name} label"] = (oracle.wide_error(grad, exact_grad).max(), 4)
    wide = x.astype(oracle.WIDER[x.dtype])
    exact = (wide.max(-1, keepdims=True) + np.log1p(others))[:, 0]
    lse = fs.logsumexp(x)
    ulps = oracle.wide_error(lse, exact)
    allowed = 2 * np.finfo(x.dtype).eps * np.abs(x).max(-1)
    cancels = np.sign(wide.max(-1)) < 0
    ulps = np.where(cancels & (np.abs(lse - exact) <= allowed), 0, ulps)
    found["logsumexp"] = (ulps.max(), 2)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_bounds_hold_on_hard_rows(family, dtype, record):
    if not oracle.has_wider(dtype):
        pytest.skip("longdouble is no wider than float64 here")
    for classes in families.CLASSES:
        x = families.rows(family, classes, dtype, ELEMENTS)
        for name, (ulps, bound) in errors(x).items():
            record(name, dtype, ulps, bound, f"{family}, {classes} classes")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", families.LONG[:2])
def test_bounds_hold_on_long_rows(classes, dtype, record):
    if not oracle.has_wider(dtype):
        pytest.skip("longdouble is no wider than float64 here")
    for family in ("spread 1", "tiny terms after one large"):
        for name, (ulps, bound) in errors(families.rows(family, classes, dtype, classes)).items():
            record(name, dtype, ulps, bound, f"{family}, {classes} classes")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_bounds_hold_on_rows_of_all_lengths(family, dtype, record):
    if not oracle.has_wider(dtype):
        pytest.skip("longdouble is no wider than float64 here")
    for classes in (*families.CLASSES, *families.LONG):
        x = families.rows(family, classes, dtype, max(classes, 2_000_000), seed=1)
        for name, (ulps, bound) in errors(x).items():
            record(name, dtype, ulps, bound, f"{family}, {classes} classes")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 3, 9, 57])
def test_no_search_finds_a_row_beyond_the_bounds(classes, dtype, record):
    """A local search: it keeps the rows on which softmax errs most, changes them a little, and repeats this."""
    if not oracle.has_wider(dtype):
        pytest.skip("longdouble is no wider than float64 here")
    rng = np.random.default_rng(classes)
    x = rng.uniform(-20, 20, (512, classes)).astype(dtype)
    for _ in range(20):
        ulps = oracle.wide_error(fs.softmax(x), oracle.wide_softmax(x)).max(-1)
        best = x[np.argsort(ulps)[-64:]]
        children = np.repeat(best, 7, axis=0)
        children += (children * rng.choice([1e-6, 1e-3, 0.1], (len(children), 1))) * rng.standard_normal(
            children.shape
        ).astype(dtype)
        x = np.concatenate([best, children]).astype(dtype)
    for name, (ulps, bound) in errors(x).items():
        record(name, dtype, ulps, bound, f"searched, {classes} classes")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.07, 0.3, 1.7, 12.0])
def test_a_temperature_costs_one_ulp_at_most(temperature, dtype, record):
    for classes in (2, 10, 57, 333):
        x = families.rows("spread 10 at -37.7", classes, dtype, 4 * classes)
        for name, function, reference, bound in (
            ("softmax, temperature", fs.softmax, oracle.softmax, 4),
            ("log_softmax, temperature", fs.log_softmax, oracle.log_softmax, 5),
        ):
            exact = oracle.rowwise(reference, x, temperature=temperature)
            ulps, place = oracle.worst(function(x, temperature=temperature), exact)
            record(name, dtype, ulps, bound, f"{classes} classes, T = {temperature}, at {place}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_wide_reference_agrees_with_mpmath(dtype):
    for family in families.FAMILIES:
        x = families.rows(family, 57, dtype, 300)
        exact = oracle.rowwise(oracle.log_softmax, x)
        wide = oracle.wide_log_softmax(x)
        near, rest = oracle.nearest(exact, dtype)
        distance = np.abs((wide - near.astype(wide.dtype)) - rest.astype(wide.dtype))
        assert (distance <= 0.002 * np.spacing(np.abs(near)) + np.finfo(dtype).smallest_subnormal).all(), family


# --- temperatures, weights and directions of any size ---------------------------------------------------------


def product_sizes(p, v):
    """p_k sum_j p_j |v_k - v_j|: the sum of the absolute values of the terms of p_k (v_k - sum_j p_j v_j)."""
    return p * np.array([mp.fsum(p * abs(v - v_k)) for v_k in v], object)


def within(actual, exact, size, dtype):
    """The worst error in units of eps times `size`, where `size` is above the smallest normal number."""
    info = np.finfo(dtype)
    worst = 0.0
    for value, right, whole in zip(np.ravel(actual), np.ravel(exact), np.ravel(size), strict=True):
        if abs(right) > float(info.max):
            continue
        error = abs(mp.mpf(float(value)) - right) if np.isfinite(value) else mp.inf
        if error > float(info.tiny):
            worst = max(worst, float(error / (whole * float(info.eps))) if whole else np.inf)
    return worst


def remainders(p):
    """1 - p of each class, as the sum of the other probabilities, which does not cancel."""
    return np.array([mp.fsum(np.delete(p, k)) for k in range(len(p))], object)


TEMPERATURES = (
    1e-300,
    3.7e-200,
    1e-43,
    1.3e-38,
    3.785003825740327e-4,
    0.07,
    2.0,
    3e4,
    1.7e38,
    1e45,
    2.1e200,
    1e300,
)


def logits_for(temperature, dtype, rng):
    """Rows of about the size of T, such rows far from 0, and rows of any size up to the least and the greatest."""
    info = np.finfo(dtype)
    near = float(np.clip(temperature, float(info.smallest_subnormal) * 64, float(info.max) / 1e4))
    rows = [rng.normal(size=5) * near * spread for spread in (0.01, 1.0, 30.0)]
    rows += [rng.normal(size=5) * near + near * far for far in (300.0, -7e3)]
    rows += [rng.normal(size=5) * size for size in (1.0, 1e4, float(info.max) / 8, float(info.tiny) / 8)]
    rows += [14739.696 + rng.normal(size=5) * 1e-3]
    with np.errstate(under="ignore"):
        return [row.astype(dtype) for row in rows]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_any_temperature_and_logits_of_any_size(temperature, dtype, record):
    """Within 4 ulp (log_softmax and entropy 5), also where x/T overflows or underflows in the dtype."""
    rng = np.random.default_rng(7)
    for x in logits_for(temperature, dtype, rng):
        v = rng.normal(size=5).astype(dtype)
        with mp.workdps(oracle.MOST_DIGITS + oracle.DIGITS):
            t = mp.mpf(temperature)
            z = oracle.exact(x) / t
            e = np.array([mp.exp(value - max(z)) for value in z], object)
            p = e / mp.fsum(e)
            lacking, tangent = remainders(p), oracle.exact(v)
            others = mp.fsum(np.delete(e, np.argmax(x)))
            log_p = np.array([value - max(z) - mp.log1p(others) for value in z], object)
            entropy = -mp.fdot(p, log_p)
            pull = np.array([-mp.fdot(p, tangent - v_k) for v_k in tangent], object)
            sizes = product_sizes(p, tangent) / t
            rest = np.array([mp.fsum(np.delete(tangent, k)) for k in range(5)], object)
            room = np.array([mp.fsum(np.delete(abs(tangent), k)) for k in range(5)], object)
            square = -np.multiply.outer(p, p)
            np.fill_diagonal(square, p * lacking)
            found = {
                "softmax": (fs.softmax(x, temperature=temperature), p, p, 4),
                "log_softmax": (fs.log_softmax(x, temperature=temperature), log_p, abs(log_p), 5),
                "softmax_entropy": (fs.softmax_entropy(x, temperature=temperature), [entropy], [entropy], 5),
                "softmax_jvp": (fs.softmax_jvp(x, v, temperature=temperature), p * pull / t, sizes, 4),
                "log_softmax_jvp": (fs.log_softmax_jvp(x, v, temperature=temperature), pull / t, sizes / p, 4),
                "log_softmax_vjp": (
                    fs.log_softmax_vjp(x, v, temperature=temperature),
                    (lacking * tangent - p * rest) / t,
                    (lacking * abs(tangent) + p * room) / t,
                    4,
                ),
                "softmax_jacobian": (
                    fs.softmax_jacobian(x, temperature=temperature),
                    square / t,
                    abs(square / t),
                    4,
                ),
            }
            for name, (actual, exact, size, bound) in found.items():
                error = within(actual, exact, size, dtype)
                record(f"{name}, any temperature (eps)", dtype, error, bound, f"T = {temperature}, x = {x}")
        jacobian = fs.softmax_jacobian(x, temperature=temperature)
        np.testing.assert_array_equal(jacobian, jacobian.T)


def confident_rows(dtype, rng):
    """Rows with one class so far ahead that 1 - p cannot be computed from p, or that the other p underflow."""
    deep = 150.0 if dtype == np.float32 else 1300.0
    for gap in (0.5, 3.0, 40.0, 90.0, deep):
        for classes in (2, 3, 17, 70):
            x = rng.normal(size=classes) - gap
            x[rng.integers(classes)] = 0.3
            yield x.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_confident_rows(dtype, record):
    """Errors relative to the terms, also with weights and directions so large that tiny terms count."""
    rng = np.random.default_rng(11)
    heaviest = 28 if dtype == np.float32 else 130
    for x in confident_rows(dtype, rng):
        classes = len(x)
        label = int(np.argmax(x))
        v = (rng.normal(size=classes) * 10.0 ** rng.uniform(-3, 3) + rng.choice([0.0, 100.0])).astype(dtype)
        weight = dtype(10.0 ** rng.uniform(-heaviest, heaviest))
        one = np.array([weight])
        hot = np.eye(classes)[label].astype(dtype)
        with mp.workdps(2 * oracle.MOST_DIGITS):
            z = oracle.exact(x)
            e = np.array([mp.exp(value - max(z)) for value in z], object)
            p, w = e / mp.fsum(e), mp.mpf(float(weight))
            lacking, tangent = remainders(p), oracle.exact(v)
            pull = np.array([-mp.fdot(p, tangent - v_k) for v_k in tangent], object)
            sizes = product_sizes(p, tangent)
            square = -np.multiply.outer(p, p)
            np.fill_diagonal(square, p * lacking)
            slope = p.copy()
            slope[label] = -lacking[label]
            d = slope
            steep = p * np.array([-mp.fdot(p, d - d_k) for d_k in d], object)
            given = {"sample_weight": one, "reduction": "sum"}
            loss, grad = fs.squared_error_with_grad(x[None], hot[None], **given)
            entropy, entropy_grad = fs.cross_entropy_with_grad(x[None], [label], **given)
            soft, soft_grad = fs.cross_entropy_with_grad(x[None], (hot * weight)[None], reduction="sum")
            surprise = mp.log1p(mp.fsum(np.delete(e, label)))
            hessian = fs.cross_entropy_hessian(x[None], [label], **given)[0]
            found = {
                "softmax_jvp": (fs.softmax_jvp(x, v), p * pull, sizes),
                "softmax_vjp": (fs.softmax_vjp(x, v * dtype(1e28)), p * pull * mp.mpf(float(dtype(1e28))), None),
                "log_softmax_jvp": (fs.log_softmax_jvp(x, v), pull, sizes / p),
                "hvp": (fs.cross_entropy_hvp(x[None], [label], v[None], **given)[0], p * pull * w, sizes * w),
                "hessian": (hessian, square * w, abs(square * w)),
                "hessian_diag": (
                    fs.cross_entropy_hessian_diag(x[None], [label], **given)[0],
                    np.diag(square) * w,
                    np.diag(square) * w,
                ),
                "squared_error": ([loss], [w * mp.fdot(d, d) / 2], [w * mp.fdot(d, d)]),
                "squared_error_grad": (grad[0], steep * w, product_sizes(p, d) * w),
                "cross_entropy": ([entropy], [w * surprise], [w * surprise]),
                "cross_entropy_grad": (entropy_grad[0], slope * w, abs(slope * w)),
                "distribution": ([soft], [w * surprise], [w * surprise]),
                "distribution, grad": (soft_grad[0], slope * w, abs(slope * w)),
            }
            for name, (actual, exact, size) in found.items():
                if size is None:  # the direction is rounded to the dtype first, which changes the terms
                    continue
                error = within(actual, exact, size, dtype)
                record(f"{name}, confident rows (eps)", dtype, error, 4, f"{classes} classes, x = {x[:4]}")
        np.testing.assert_array_equal(hessian, hessian.T)
