"""The bounds of the contract on rows that were made to break them, from one class to ten million.

The reference is NumPy in the next wider dtype, which is right to 1e-3 ulp here; the tests of the functions
compare with mpmath, and the last test below compares the two references.
"""

import families
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
    """Climb: keep the worst rows for softmax, change them a little, keep the worst again."""
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
