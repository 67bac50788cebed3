"""fit_temperature: the minimum by mpmath, few passes, and a clear end where there is no minimum."""

import cases
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsoftmax as fs
from fastsoftmax.arrays import calibration

every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)
NO_MINIMUM = "so that the loss has no minimum: it decreases as the temperature goes to "


def rows_for(dtype, rows, classes, temperature=1.0, seed=0):
    """Logits, and labels drawn from their softmax at a temperature."""
    rng = np.random.default_rng(seed)
    x = (temperature * rng.normal(0, 2, (rows, classes))).astype(dtype)
    y = fs.categorical(x.astype(np.float64), uniforms=rng.random(rows), temperature=temperature)
    return x, y, rng.gamma(1.0, size=rows)


@every_dtype
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("classes", "temperature"), [(2, 1.0), (3, 0.05), (10, 3.0), (70, 1.0), (300, 1e3)])
def test_against_root_finding(dtype, weighted, classes, temperature):
    """The derivative has the error of a row, some ulp, divided by the curvature, which is about 1: 20 eps."""
    x, y, weights = rows_for(dtype, 60, classes, temperature)
    weights = weights if weighted else np.ones(60)
    found = fs.fit_temperature(x, y, sample_weight=weights if weighted else None)
    wanted = float(oracle.best_temperature(x, y, weights, found.temperature))
    eps = np.finfo(dtype).eps
    assert abs(found.temperature / wanted - 1) < 20 * eps
    for loss, at in ((found.loss, found.temperature), (found.loss_before, 1.0)):
        rows = -fs.label_statistics(x.astype(np.float64), y, temperature=at).log_prob
        np.testing.assert_allclose(loss, (rows * weights).sum() / weights.sum(), rtol=8 * eps)
    assert found.loss <= found.loss_before * (1 + 4 * eps)
    assert all(isinstance(one, kind) for one, kind in zip(found, (float, float, float, int), strict=True))


@every_dtype
@pytest.mark.parametrize("temperature", [1e-4, 0.1, 1.0, 2.5, 30.0, 1e4])
def test_few_passes(dtype, temperature):
    """At most 15 where T lies within 1e-4 .. 1e4, and at most 8 for the usual classifier."""
    x, y, _ = rows_for(dtype, 20_000, 10, temperature)
    found = fs.fit_temperature(x, y)
    np.testing.assert_allclose(found.temperature, temperature, rtol=0.05)
    assert found.iterations <= (8 if 0.1 <= temperature <= 10 else 15)


def test_passes_are_counted(monkeypatch):
    passes, original = [], calibration.exact_sums
    monkeypatch.setattr(calibration, "exact_sums", lambda *a: passes.append(1) or original(*a))
    x, y, _ = rows_for(np.float64, 500, 4, 3.0)
    assert fs.fit_temperature(x, y).iterations == len(passes)


@every_dtype
@pytest.mark.parametrize("size", [1e-25, 1e-8, 1e8, 1e25])
def test_logits_of_any_size(dtype, size):
    """T follows the size of the logits, which are multiplied by a power of two, to the same digits."""
    scale = 2.0 ** np.round(np.log2(size))
    x, y, _ = rows_for(dtype, 300, 5)
    plain, scaled = fs.fit_temperature(x, y), fs.fit_temperature(x * dtype(scale), y)
    np.testing.assert_allclose(scaled.temperature / scale, plain.temperature, rtol=20 * np.finfo(dtype).eps)
    np.testing.assert_allclose(scaled.loss, plain.loss, rtol=20 * np.finfo(dtype).eps)
    assert scaled.iterations < 60


@every_dtype
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_it_always_ends_at_the_minimum(dtype, data):
    """For any few rows: the loss is not lower on either side, or there is none."""
    rows, classes = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    values = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, 100.0, -1e4, 1e-3, 17.25])
    x = np.array(data.draw(st.lists(values, min_size=rows * classes, max_size=rows * classes)), dtype)
    x = x.reshape(rows, classes)
    y = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)))
    centred = x.astype(np.float64) - x.mean(1, keepdims=True, dtype=np.float64)
    first = (x == x.max(1, keepdims=True))[np.arange(rows), y].all()
    try:
        found = fs.fit_temperature(x, y)
    except ValueError as error:
        words = str(error)
        found = None
    if found is None:
        assert NO_MINIMUM in words
        assert first if words.endswith("to 0") else centred[np.arange(rows), y].sum() <= 1e-4
        return
    assert found.iterations < 120
    if (x == x[:, :1]).all():
        assert found[:3] == (1.0, found.loss, found.loss)
        return

    def loss(t):
        return -fs.label_statistics(x.astype(np.float64), y, temperature=t).log_prob.mean()

    here = loss(found.temperature)
    np.testing.assert_allclose(found.loss, here, rtol=16 * np.finfo(dtype).eps)
    assert here <= loss(found.temperature * 1.1) + 1e-12
    assert here <= loss(found.temperature / 1.1) + 1e-12


def test_it_ends_though_newton_does_not(monkeypatch):
    """The bracket is halved after some passes, to the same temperature."""
    x, y, _ = rows_for(np.float64, 100, 4, 1e4)
    wanted = fs.fit_temperature(x, y)
    monkeypatch.setattr(calibration, "PATIENCE", 2)
    slow = fs.fit_temperature(x, y)
    np.testing.assert_allclose(slow.temperature, wanted.temperature, rtol=1e-14)
    assert slow.iterations > wanted.iterations


@every_dtype
def test_rows_and_threads_and_layouts_do_not_matter(dtype):
    x, y, weights = rows_for(dtype, 70_000, 10)
    wanted = fs.fit_temperature(x, y, sample_weight=weights)
    order = np.random.default_rng(0).permutation(len(y))
    assert fs.fit_temperature(x[order], y[order], sample_weight=weights[order]) == wanted
    assert fs.fit_temperature(np.ascontiguousarray(x.T), y, 0, sample_weight=weights) == wanted
    assert (
        fs.fit_temperature(x.reshape(700, 100, 10), y.reshape(700, 100), sample_weight=weights.reshape(700, 100))
        == wanted
    )
    with fs.threads(1):
        assert fs.fit_temperature(x, y, sample_weight=weights) == wanted


def test_what_does_not_count():
    x, y, _ = rows_for(np.float64, 60, 4)
    keep = np.arange(60) % 3 > 0
    wanted = fs.fit_temperature(x[keep], y[keep])
    x[~keep] = np.nan
    assert fs.fit_temperature(x, np.where(keep, y, -100), ignore_index=-100) == wanted
    assert fs.fit_temperature(x, y, sample_weight=keep) == wanted
    for arguments in (
        (x, np.full(60, -1), -1),
        (np.zeros((0, 3)), np.zeros(0, int)),
        (np.zeros((2, 0)), [-1, -1]),
    ):
        with pytest.raises(ValueError, match="fit_temperature: there are no rows that count"):
            fs.fit_temperature(*arguments, ignore_index=-1)
    with pytest.raises(ValueError, match="fit_temperature: there are no rows that count"):
        fs.fit_temperature(x, y, sample_weight=np.zeros(60))


@every_dtype
def test_there_may_be_no_minimum(dtype):
    x = np.array([[5, 0, -3], [-1, 1, 0]], dtype)
    for rows in (x, 100 * x, 1e4 * x, 1e-3 * x):
        rows = rows.astype(dtype)
        with pytest.raises(ValueError, match="every label has the greatest logit of its row, " + NO_MINIMUM + "0"):
            fs.fit_temperature(rows, [0, 1])
        with pytest.raises(
            ValueError, match="not agree with the logits better than chance, " + NO_MINIMUM + "infinity"
        ):
            fs.fit_temperature(rows, [2, 0])


@every_dtype
def test_the_loss_may_not_depend_on_the_temperature(dtype):
    constant = fs.fit_temperature(np.repeat(np.array([[3], [-2e4]], dtype), 5, 1), [4, 0])
    assert constant[0] == 1.0
    np.testing.assert_allclose(constant[1:3], np.log(5), rtol=1e-6)
    assert fs.fit_temperature(np.ones((3, 1), dtype), [0, 0, 0])[:3] == (1.0, 0.0, 0.0)
    masked = np.array([[0, -np.inf, 0], [1, 1, 1]], dtype)
    np.testing.assert_allclose(
        fs.fit_temperature(masked, [0, 1])[:2], (1.0, (np.log(2) + np.log(3)) / 2), rtol=1e-6
    )


@every_dtype
def test_infinities_and_nan(dtype):
    x, y, _ = rows_for(dtype, 60, 4)
    wanted = fs.fit_temperature(x, y)
    wider = np.concatenate([x, np.full((60, 1), -np.inf, dtype)], 1)
    np.testing.assert_allclose(fs.fit_temperature(wider, y)[:3], wanted[:3], rtol=4 * np.finfo(dtype).eps)
    for value in (np.nan, np.inf):
        x[3, 1] = value
        with pytest.raises(ValueError, match=r"fit_temperature: logits hold NaN or \+inf"):
            fs.fit_temperature(x, y)
    with pytest.raises(ValueError, match="the loss is infinite: the logit of a label is -inf, or so far"):
        fs.fit_temperature(wider, np.where(np.arange(60) == 5, 4, y))


def test_sizes_beyond_the_range():
    """The difference of the logits, or the temperature, may not be a float64."""
    for dtype, most in ((np.float32, 3e38), (np.float64, 1.7e308)):
        x = np.array([[most, -most], [-most, most], [0, 1]], dtype)
        with pytest.raises(ValueError, match=f"that {np.dtype(dtype)} cannot hold the difference"):
            fs.fit_temperature(x, [1, 1, 1])
    with pytest.raises(ValueError, match="the temperature is beyond the range of float64"):
        fs.fit_temperature([[1e-310, 0], [1e-310, 0], [0, 1e-310]], [0, 0, 0])


def test_errors():
    x, y = np.zeros((2, 3)), [0, 1]
    for kind, words, arguments, options in (
        (ValueError, r"fit_temperature: labels has shape \(1,\), expected \(2,\) \(class indices\)", (x, [0]), {}),
        (TypeError, "fit_temperature: labels .* have dtype float64, expected integers", (x, [0.0, 1.0]), {}),
        (IndexError, r"fit_temperature: labels\[0\] is 3, expected a label from 0 to 2", (x, [3, 0]), {}),
        (np.exceptions.AxisError, "fit_temperature: axis 2 is out of bounds", (x, y, 2), {}),
        (ValueError, "fit_temperature: sample_weight must be finite and >= 0", (x, y), {"sample_weight": [1, -1]}),
        (TypeError, "fit_temperature: ignore_index must be an integer", (x, y), {"ignore_index": "a"}),
    ):
        with pytest.raises(kind, match=words):
            fs.fit_temperature(*arguments, **options)
    da = pytest.importorskip("dask.array")
    with pytest.raises(TypeError, match="fit_temperature: Dask arrays are not supported"):
        fs.fit_temperature(da.zeros((2, 3)), y)
