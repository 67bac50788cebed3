"""fastsoftmax.metrics: the same bits however rows are cut and merged, the right numbers, documented errors."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import reduce

import cases
import mpmath as mp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsoftmax as fs
from fastsoftmax import arrays, kernels, metrics
from fastsoftmax._vectors import VALUES
from fastsoftmax.arrays.blocks import SHORT_WAY
from fastsoftmax.metrics import Metrics, RunningLogSumExp, RunningMetrics

every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)


def rows_for(dtype, rows, classes, seed=0):
    """Logits from uniform to certain, labels of which half are right, weights of many sizes."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, classes)) * rng.choice([0, 0.01, 1, 10, 60], (rows, 1))).astype(dtype)
    y = rng.integers(0, classes, rows)
    y[::2] = x[::2].argmax(1)
    return x, y, np.exp(rng.normal(0, 5, rows))


def flat(result):
    """All numbers of a result."""
    numbers = []
    for value in result:
        if isinstance(value, tuple):
            numbers += flat(value)
        else:
            numbers.append(np.array(list(value.values()) if isinstance(value, dict) else value))
    return numbers


def assert_same(a, b):
    """The same bits, NaN included."""
    for one, other in zip(flat(a), flat(b), strict=True):
        np.testing.assert_array_equal(one, other)


def expected(x, y, weights, bins, top_k):
    """The metrics as the literature defines them, in mpmath but for comparisons."""
    w = [mp.mpf(float(one)) for one in weights]
    whole = mp.fsum(w)
    p = [oracle.softmax(row) for row in x]
    confidence = np.array([float(max(row)) for row in p])
    right = x.argmax(1) == y
    rank = (x > x[np.arange(len(y)), y][:, None]).sum(1)

    def mean(values):
        return mp.fdot(w, values) / whole

    spots = np.maximum(np.ceil(confidence * bins) - 1, 0)
    errors = []
    for k in range(bins):
        inside = np.flatnonzero(spots == k)
        errors.append(abs(mp.fsum(w[i] * (int(right[i]) - max(p[i])) for i in inside)))
    return {
        "loss": mean([oracle.cross_entropy(row, label) for row, label in zip(x, y, strict=True)]),
        "accuracy": mean(right.astype(int).tolist()),
        "brier_score": mean([oracle.brier_score(row, label) for row, label in zip(x, y, strict=True)]),
        "entropy": mean([oracle.softmax_entropy(row) for row in x]),
        "calibration_error": mp.fsum(errors) / whole,
        **{f"top {k}": mean((rank < k).astype(int).tolist()) for k in top_k},
    }


@every_dtype
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 10, 64, 65, 300])
def test_against_the_oracle(dtype, weighted, classes, record):
    """Each number of a row is within 8 ulp, so the means of positive numbers are, too."""
    x, y, weights = rows_for(dtype, 60, classes)
    result = (
        RunningMetrics(top_k=(1, 2, 5), bins=7).update(x, y, sample_weight=weights if weighted else None).result()
    )
    given_weights = weights if weighted else np.ones(60)
    wanted = expected(x, y, given_weights, 7, (1, 2, 5))
    found = result._asdict() | {f"top {k}": value for k, value in result.top_k_accuracy.items()}
    eps = np.finfo(dtype).eps
    for name, value in wanted.items():
        error = abs(mp.mpf(found[name]) - value)
        if name == "calibration_error":  # a difference of means that are at most 1
            assert error <= 8 * eps
        else:
            record(f"metrics, {name}", dtype, float(error / (abs(value) or 1) / eps), 8)
    assert result.count == 60
    np.testing.assert_allclose(result.perplexity, np.exp(result.loss), rtol=1e-15)
    np.testing.assert_allclose(result.bins.weight.sum(), given_weights.sum(), rtol=1e-14)
    inside = result.bins.weight > 0
    gaps = abs(result.bins.accuracy - result.bins.confidence)[inside] * result.bins.weight[inside]
    np.testing.assert_allclose(gaps.sum() / result.bins.weight.sum(), result.calibration_error, atol=1e-15)
    np.testing.assert_array_equal(np.isnan(result.bins.accuracy), ~inside)
    np.testing.assert_array_equal(result.bins.edges, np.arange(8) / 7)


@every_dtype
def test_brier_scores_of_confident_rows(dtype):
    """Nothing cancels: 1 - p and the squares of the others keep their digits, down to the least normal number."""
    for gap in (0.5, 5, 15, 30, 40):
        for label in (0, 1):
            x = np.array([[gap, 0, -1, -gap]], dtype)
            found = RunningMetrics().update(x, [label]).result().brier_score
            wanted = oracle.brier_score(x[0], label)
            assert abs(found - wanted) <= max(8 * np.finfo(dtype).eps * wanted, np.finfo(dtype).tiny)


@st.composite
def cuts(draw, rows):
    """Parts of range(rows), in some order, and how they are merged: after each part, into which object it goes."""
    places = sorted(draw(st.lists(st.integers(0, rows), max_size=6)))
    parts = np.split(draw(st.permutations(range(rows))) if draw(st.booleans()) else np.arange(rows), places)
    return draw(st.permutations(parts)), draw(
        st.lists(st.integers(0, 2), min_size=len(parts), max_size=len(parts))
    )


@every_dtype
@pytest.mark.parametrize("classes", [3, 70])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_cuts_and_merges_give_the_same_bits(dtype, classes, data):
    """Rows in any order, blocks of any size (a slab has 512 rows), any axis, objects merged in any order."""
    rows = data.draw(st.sampled_from([1, 40, 1100]))
    x, y, weights = rows_for(dtype, rows, classes, data.draw(st.integers(0, 3)))
    weighted, ignored = data.draw(st.booleans()), data.draw(st.sampled_from([None, 1]))
    parts, places = data.draw(cuts(rows))
    whole = RunningMetrics().update(x, y, -1, weights if weighted else None, ignored)
    found = [RunningMetrics() for _ in range(3)]
    for part, place in zip(parts, places, strict=True):
        part = np.asarray(part, int)
        block, axis = (x[part], 1) if data.draw(st.booleans()) else (np.ascontiguousarray(x[part].T), 0)
        found[place].update(block, y[part], axis, weights[part] if weighted else None, ignored)
    merged = reduce(RunningMetrics.merge, data.draw(st.permutations(found)))
    assert_same(merged.result(), whole.result())


@every_dtype
def test_numbers_of_any_size_are_added_exactly(dtype):
    """Slabs whose losses reach from 1e-300 to 1e6 go number by number; the mean is rounded once."""
    rng = np.random.default_rng(0)
    gaps = np.concatenate([rng.uniform(0, 30, 300), [600.0, 80, 1e6, 0.0], np.full(300, 1e-3)])
    x = np.stack([gaps, np.zeros_like(gaps)], 1).astype(dtype)
    y = rng.integers(0, 2, len(gaps))
    losses = [Fraction(float(-one)) for one in fs.label_statistics(x, y).log_prob]
    assert RunningMetrics().update(x, y).result().loss == float(sum(losses) / len(losses))
    halves = RunningMetrics().update(x[:9], y[:9]).merge(RunningMetrics().update(x[9:], y[9:]))
    assert_same(halves.result(), RunningMetrics().update(x, y).result())


@every_dtype
@pytest.mark.parametrize("place", [kernels.metrics.LOWEST, kernels.metrics.HIGHEST])
@pytest.mark.parametrize("rows", [1, 511, 512])
def test_sums_at_the_ends_of_the_range_that_is_added_at_once(dtype, place, rows):
    """Losses around an end, where the way to add a slab changes: no bit of their sum is lost."""
    rng = np.random.default_rng(rows)
    if place < 1:
        gaps, end = -np.log(place * rng.uniform(2**-9, 2, rows)), -np.log(place)
    else:
        gaps, end = -place / rows * rng.uniform(0.5, 8, rows), -place / rows
    for some in (gaps, np.minimum(gaps, end), np.maximum(gaps, end)):
        x = np.stack([some, np.zeros(rows)], 1).astype(dtype)
        y = np.zeros(rows, int)
        losses = [Fraction(float(-one)) for one in fs.label_statistics(x, y).log_prob]
        found = arrays.metrics.total(RunningMetrics().update(x, y)._sums[VALUES])
        assert found == (sum(losses) * 2**arrays.metrics.LOWEST_BIT, 0)


@every_dtype
def test_weights_of_one_are_no_weights(dtype):
    """Both ways through the kernel add the same exact sums."""
    x, y, _ = rows_for(dtype, 1300, 11)
    plain = RunningMetrics(bins=10).update(x, y, ignore_index=3)
    assert_same(plain.result(), RunningMetrics(bins=10).update(x, y, -1, np.ones(1300, np.int8), 3).result())
    assert_same(
        plain.result(),
        RunningMetrics(bins=10)
        .update(x, y, -1, np.full(1300, 0.25), 3)
        .result()
        ._replace(bins=plain.result().bins),
    )


@every_dtype
@pytest.mark.parametrize("classes", [5, 2000, 40000])
def test_the_number_of_threads_does_not_matter(dtype, classes):
    """Also where many classes are about equal: confidences have bits below those that bins add at once."""
    x, y, _ = rows_for(dtype, max(600000 // classes, 20), classes)
    x[::3] *= 1e-3
    with fs.threads(1):
        alone = RunningMetrics().update(x, y).result()
    assert_same(RunningMetrics().update(x, y).result(), alone)
    cut = RunningMetrics()
    for part in np.array_split(np.arange(len(y)), 7):
        cut.update(x[part], y[part])
    assert_same(cut.result(), alone)


def test_ignored_rows_and_weights_of_0_count_for_nothing():
    x, y, _ = rows_for(np.float64, 50, 4)
    keep = np.arange(50) % 3 > 0
    x[~keep] = np.nan
    wanted = RunningMetrics().update(x[keep], y[keep]).result()
    assert_same(
        RunningMetrics().update(x, np.where(keep, y, 255).astype(np.uint8), -1, None, 255).result(), wanted
    )
    assert_same(RunningMetrics().update(x, y, sample_weight=keep).result(), wanted)
    assert wanted.count == keep.sum()
    nothing = RunningMetrics().update(x, np.full(50, -100), ignore_index=-100).result()
    assert nothing.count == 0
    assert_same(nothing, RunningMetrics().result())
    assert all(np.isnan(v).all() for v in flat(nothing._replace(count=np.nan, bins=nothing.bins[2:])))


@every_dtype
@pytest.mark.parametrize("classes", [4, 90])
@pytest.mark.parametrize("weighted", [False, True])
def test_edge_rows(dtype, classes, weighted):
    x = np.zeros((3, classes), dtype)
    x[0, 0] = -np.inf
    weights = np.ones(3) if weighted else None
    found = RunningMetrics(top_k=3).update(x, [0, 0, 1], sample_weight=weights).result()
    assert found.loss == found.perplexity == np.inf
    assert 0 < found.brier_score < 1
    np.testing.assert_allclose((found.accuracy, found.top_k_accuracy[3]), (1 / 3, 2 / 3), rtol=1e-15)
    for place, value in ((0, np.nan), (2, np.nan), (1, np.inf)):
        wrong = np.zeros((2, classes), dtype)
        wrong[0, place] = value
        found = (
            RunningMetrics().update(wrong, [place, 0], sample_weight=weights[:2] if weighted else None).result()
        )
        bad = (found.loss, found.brier_score, found.entropy, found.calibration_error, found.perplexity)
        assert np.isnan(bad).all()
        right = 1 if value == np.inf else 0.5  # a row with NaN is no hit, wherever its label is
        assert found.accuracy == found.top_k_accuracy[1] == found.top_k_accuracy[5] == right
        assert found.bins.weight.sum() == 2
    negative = RunningMetrics().update(np.full((1, classes), -np.inf, dtype), [0]).result()
    assert np.isnan(negative.loss)


def test_losses_at_the_end_of_the_range():
    """The mean of the greatest float64 is itself, or the one before if a product with a weight was rounded."""
    most = np.finfo(np.float64).max
    x = np.array([[most, 0.0]])
    assert RunningMetrics().update(x, [1]).result().loss == most
    found = [RunningMetrics().update(x, [1], sample_weight=[w]).result().loss for w in np.linspace(0.1, 0.9, 50)]
    assert set(found) <= {np.nextafter(most, 0), most}


def test_ties_and_bins_at_their_edges():
    """Of equal logits the first is the greatest, all are among the top; a bin has its upper edge."""
    found = RunningMetrics(top_k=(1, 2), bins=4).update(np.zeros((4, 4)), [0, 1, 2, 3]).result()
    assert found.accuracy == 0.25
    assert found.top_k_accuracy == {1: 1.0, 2: 1.0}
    np.testing.assert_array_equal(found.bins.weight, [4, 0, 0, 0])
    assert found.calibration_error == 0
    sure = RunningMetrics(bins=4).update(np.array([[0.0, -1000], [0, 0]]), [0, 1]).result()
    np.testing.assert_array_equal(sure.bins.weight, [0, 1, 0, 1])


@pytest.mark.parametrize("shape", [(5, 3, 4), (2, 70, 30), (3, 9, 20), (4, 3, 1), (0, 3, 2)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layouts(shape, axis):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    y = rng.integers(0, max(shape[axis], 1), shape[:axis] + shape[axis + 1 :])
    if not shape[axis]:
        return
    flat_rows = np.moveaxis(x, axis, -1).reshape(-1, shape[axis])
    wanted = RunningMetrics().update(flat_rows, y.ravel()).result()
    x.flags.writeable = False
    for other in (x, np.asfortranarray(x), x.astype(">f8"), np.repeat(x, 2, -1)[..., ::2], x.tolist()):
        if np.shape(other) == shape:
            assert_same(RunningMetrics().update(other, y, axis - 3).result(), wanted)
    half = x.astype(np.float16)
    assert_same(
        RunningMetrics().update(half, y, axis).result(),
        RunningMetrics().update(half.astype(np.float32), y, axis).result(),
    )


def test_one_row_and_rows_of_both_dtypes():
    both = RunningMetrics().update([1.0, 2.0], 1).update(np.float32([[3.0, 1.0]]), [0])
    again = RunningMetrics().update(np.float32([3.0, 1.0]), np.uint8(0)).update([[1.0, 2.0]], [1])
    assert_same(both.result(), again.result())
    assert both.result().count == 2
    assert isinstance(both.result(), Metrics)


def part(seed):
    x, y, weights = rows_for(np.float32, 300, 9, seed)
    return RunningMetrics().update(x, y, sample_weight=weights)


def test_copies_have_sums_of_their_own():
    """An update of few rows adds to the sums where they are; a copy that was made before does not change."""
    one = part(0)
    for copied in (copy.copy, copy.deepcopy, lambda other: pickle.loads(pickle.dumps(other))):
        again, before = copied(one), one.result()
        one.update(np.zeros((3, 4)), [0, 1, 2])
        assert_same(again.result(), before)
        again.update(np.zeros((3, 4)), [0, 1, 2])
        assert_same(again.result(), one.result())


def test_pickles_and_other_processes():
    wanted = reduce(RunningMetrics.merge, map(part, range(4))).result()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(part, range(4)))
    assert_same(reduce(RunningMetrics.merge, found[::-1]).result(), wanted)
    one = part(0)
    again = pickle.loads(pickle.dumps(one))
    again.merge(part(1))
    assert_same(one.result(), part(0).result())
    assert_same(again.result(), part(0).merge(part(1)).result())


def test_dask():
    dask = pytest.importorskip("dask")
    parts = [dask.delayed(part)(seed) for seed in range(4)]
    merge = dask.delayed(RunningMetrics.merge)
    tree = merge(merge(parts[3], parts[1]), merge(parts[0], parts[2]))
    wanted = reduce(RunningMetrics.merge, map(part, range(4))).result()
    assert_same(tree.compute(scheduler="threads").result(), wanted)


def test_merging_carries():
    """Forty merges with itself double the sums forty times: no chunk overflows."""
    many = part(0)
    wanted = many.result()
    for _ in range(40):
        many.merge(many)
    found = many.result()
    assert found.count == 300 * 2**40
    assert_same(found[1:-1], wanted[1:-1])


def test_an_error_adds_nothing(monkeypatch):
    one = part(0)
    wanted = one.result()

    def interrupted(kernel, rows, work, room, *args, whole):
        room()[:] = 1
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(arrays.metrics, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            one.update(np.zeros((3 * SHORT_WAY, 1)), np.zeros(3 * SHORT_WAY, int))
    with pytest.raises(IndexError):
        one.update(np.zeros((2, 3)), [0, 3])
    assert_same(one.result(), wanted)


def test_errors_of_metrics():
    x = np.zeros((2, 3))
    start = "RunningMetrics.update: "
    for kind, words, arguments in (
        (ValueError, start + r"labels has shape \(3,\), expected \(2,\) \(class indices\) for logits", ([0] * 3,)),
        (TypeError, start + "labels of shape .* have dtype float64, expected integers", ([0.0, 1.0],)),
        (IndexError, start + r"labels\[1\] is 3, expected a label from 0 to 2", ([0, 3],)),
        (np.exceptions.AxisError, start + "axis 2 is out of bounds", ([0, 1], 2)),
        (ValueError, start + r"sample_weight has shape \(1,\), expected \(2,\)", ([0, 1], -1, [1])),
        (ValueError, start + "sample_weight must be finite and >= 0", ([0, 1], -1, [1, -1])),
        (ValueError, start + "sample_weight must be finite and >= 0", ([0, 1], -1, [1, np.inf])),
        (ValueError, start + "sample_weight must be finite and >= 0", ([0, 1], -1, [np.nan, 1])),
        (TypeError, start + "ignore_index must be an integer or None", ([0, 1], -1, None, 1.5)),
    ):
        with pytest.raises(kind, match=words):
            RunningMetrics().update(x, *arguments)
    with pytest.raises(TypeError, match=start + "logits has dtype complex128"):
        RunningMetrics().update(x + 1j, [0, 1])
    with pytest.raises(TypeError, match=r"RunningMetrics: top_k must be an integer, got 1\.5"):
        RunningMetrics(top_k=(1.5,))
    with pytest.raises(TypeError, match="RunningMetrics: bins must be an integer, got True"):
        RunningMetrics(bins=True)
    for options in ({"top_k": 0}, {"bins": 0}, {"top_k": 2**31}):
        with pytest.raises(ValueError, match=r"must be from 1 to 2\*\*31 - 1, got"):
            RunningMetrics(**options)
    with pytest.raises(ValueError, match=r"RunningMetrics: top_k \(2, 2\) has a number twice"):
        RunningMetrics(top_k=(2, 2))
    for options, words in (
        ({"top_k": (1,)}, r"top_k is \(1,\), expected \(1, 5\)"),
        ({"bins": 3}, "bins is 3, exp"),
    ):
        with pytest.raises(ValueError, match="RunningMetrics.merge: " + words):
            RunningMetrics().merge(RunningMetrics(**options))
    with pytest.raises(TypeError, match=r"RunningMetrics\.merge: expected RunningMetrics, got dict"):
        RunningMetrics().merge({})


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("chunks", [(3, 5, 4), (7, 9, 6), (2, 4, 1)])
def test_dask_arrays(axis, chunks):
    """The bits of the same rows in memory, added to what is there; the class axis may be cut."""
    da = pytest.importorskip("dask.array")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(7, 9, 6)).astype(np.float32)
    shape = np.delete(x.shape, axis)
    y, weight = rng.integers(0, x.shape[axis], shape), rng.random(shape)
    y[0, 0] = -1
    many, few = da.from_array(x, chunks=chunks), da.from_array(y, chunks=(2, 3))
    cases = (many, few, None), (x, few, None), (many, y, weight), (many, few, da.asarray(weight))
    for logits, labels, weights in cases:
        whole = None if weights is None else weight
        wanted = part(0).update(x, y, axis, whole, -1)
        found = part(0).update(logits, labels, axis, weights, -1)
        assert_same(found.result(), wanted.result())
    running = RunningLogSumExp(shape, np.float32).update(np.ones_like(x), axis)
    wanted = RunningLogSumExp(shape, np.float32).update(np.ones_like(x), axis).update(x, axis).value()
    np.testing.assert_array_max_ulp(running.update(many, axis).value(), wanted, 1)


def test_dask_arrays_of_one_row_and_of_none():
    da = pytest.importorskip("dask.array")
    x = np.array([0.0, 2.0, 1.0])
    cut = da.from_array(x, chunks=2)
    assert_same(RunningMetrics().update(cut, 1).result(), RunningMetrics().update(x, 1).result())
    empty = RunningMetrics().update(da.zeros((0, 3)), da.zeros(0, dtype=int))
    assert empty.result().count == 0
    assert RunningLogSumExp((), float).update(cut).value() == pytest.approx(2.4076059644443806)


def test_errors_of_dask_arrays_add_nothing():
    da = pytest.importorskip("dask.array")
    x, y = da.zeros((4, 3), chunks=(2, 2)), np.array([0, 1, 2, 3])
    one, running = part(0), RunningLogSumExp(4, np.float32)
    wanted = one.result()
    for arguments, kind, words in (
        ((x, y), IndexError, r"RunningMetrics\.update: labels\[3\] is 3"),
        ((x, y[:3]), ValueError, r"RunningMetrics\.update: labels has shape \(3,\)"),
        ((x, y / 1), TypeError, r"RunningMetrics\.update: labels .* dtype float64"),
        ((x, y, 2), np.exceptions.AxisError, r"RunningMetrics\.update: axis 2"),
        (
            (x, y % 3, -1, [1, 1, 1, -1]),
            ValueError,
            r"RunningMetrics\.update: sample_weight must be finite and >= 0",
        ),
        ((x, y % 3, -1, [1, 1]), ValueError, r"RunningMetrics\.update: sample_weight has shape \(2,\)"),
        ((x, y % 3, -1, None, "a"), TypeError, r"RunningMetrics\.update: ignore_index must be an integer"),
        ((x[x[:, 0] > 0], y), ValueError, r"RunningMetrics\.update: logits has chunks of unknown size"),
    ):
        with pytest.raises(kind, match=words):
            one.update(*arguments)
    assert_same(one.result(), wanted)
    for block, kind, words in (
        (x[:3].astype("f"), ValueError, r"RunningLogSumExp\.update: block has shape \(3, 3\)"),
        (x, TypeError, r"RunningLogSumExp\.update: block has dtype float64, which float32 cannot hold"),
    ):
        with pytest.raises(kind, match=words):
            running.update(block)
    assert (running.value() == -np.inf).all()


def test_arrays_of_other_libraries_are_refused_by_their_names():
    xr = pytest.importorskip("xarray")
    da = pytest.importorskip("dask.array")
    x, y = np.zeros((2, 3)), np.zeros(2, int)
    for arguments in ((xr.DataArray(x), y), (x, xr.DataArray(y)), (da.zeros((2, 3)), xr.DataArray(y))):
        with pytest.raises(
            TypeError, match=r"RunningMetrics\.update: DataArrays of xarray are not supported; pass"
        ):
            RunningMetrics().update(*arguments)
    with pytest.raises(TypeError, match=r"RunningLogSumExp\.update: DataArrays of xarray are not supported"):
        RunningLogSumExp(2, float).update(xr.DataArray(x))

    class Exchanged:
        """An array of another library."""

        def __dlpack__(self, **_):
            return x.__dlpack__()

    with pytest.raises(TypeError, match=r"RunningMetrics\.update: arrays of the class \w+\.Exchanged are not"):
        RunningMetrics().update(Exchanged(), y)


def test_what_is_shown():
    assert repr(part(0)) == "<RunningMetrics(top_k=(1, 5), bins=15) of 300 rows>"
    assert repr(RunningLogSumExp((2, 3), "f4")) == "<RunningLogSumExp((2, 3), float32)>"


def test_rows_are_added_in_bounded_memory():
    """The metrics of many rows take no array of the size of the rows."""
    import tracemalloc

    x, y = np.zeros((300_000, 4), np.float32), np.zeros(300_000, int)
    RunningMetrics().update(x, y)
    tracemalloc.start()
    with fs.threads(1):
        RunningMetrics().update(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < y.nbytes + (1 << 20)  # the labels are copied


@pytest.mark.timed
def test_an_update_costs_little_more_than_the_statistics():
    """At most 1.3 times label_statistics; half as much again for other programs on the machine."""
    import time

    x, y, _ = rows_for(np.float32, 200_000, 50)
    running = RunningMetrics()

    def best(call):
        times = []
        for _ in range(7):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    with fs.threads(1):
        running.update(x, y), fs.label_statistics(x, y)
        assert best(lambda: running.update(x, y)) < 1.3 * 1.5 * best(lambda: fs.label_statistics(x, y))


# --- log-sum-exp of classes in blocks -------------------------------------------------------------------------


@every_dtype
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_classes_in_blocks(dtype, data):
    """Within 2 ulp, as logsumexp, however the classes are cut and merged; 2 eps * max |x| where that cancels."""
    classes = data.draw(st.sampled_from([1, 2, 9, 60, 500]))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    x = (rng.normal(size=(4, classes)) * rng.choice([1e-3, 1, 30, 3000], (4, 1))).astype(dtype)
    x += rng.choice([0, 600, -2000], (4, 1)).astype(dtype)
    places = sorted(data.draw(st.lists(st.integers(0, classes), max_size=8)))
    found = [RunningLogSumExp(4, dtype), RunningLogSumExp((4,), dtype)]
    for block in data.draw(st.permutations(np.split(x, places, axis=1))):
        found[data.draw(st.integers(0, 1))].update(block)
    values = found[0].merge(found[1]).value()
    assert values.dtype == dtype
    for row, value in zip(x, values, strict=True):
        wanted = oracle.logsumexp(row)
        eps = mp.mpf(float(np.finfo(dtype).eps))
        cancels = abs(wanted) < abs(row).max() / 2
        assert abs(mp.mpf(float(value)) - wanted) <= 2 * eps * (
            mp.mpf(float(abs(row).max())) if cancels else abs(wanted)
        )


@every_dtype
def test_infinities_and_nan_in_any_block(dtype):
    rows = np.array(
        [[-np.inf] * 4, [np.inf, 0, 0, 0], [0, 0, 0, np.nan], [-np.inf, 1, -np.inf, 1], [0, np.inf, 0, np.nan]]
    )
    x = rows.astype(dtype)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        running = RunningLogSumExp(5, dtype)
        np.testing.assert_array_equal(running.value(), np.full(5, -np.inf, dtype))
        with np.errstate(all="raise"):
            for k in order:
                running.update(x[:, k : k + 1]).update(x[:, :0])
            np.testing.assert_array_equal(running.value(), fs.logsumexp(x, 1))


@pytest.mark.parametrize("limit", [metrics.PART_BYTES, 100])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (30, 20)])
def test_shapes_and_axes_of_blocks(shape, limit, monkeypatch):
    """Also with blocks that are summarized in parts of a few rows and classes."""
    monkeypatch.setattr(metrics, "PART_BYTES", limit)
    rng = np.random.default_rng(0)
    for axis in range(len(shape) + 1):
        x = rng.normal(size=(*shape[:axis], 12, *shape[axis:]))
        running = RunningLogSumExp(shape, np.float64)
        for block in np.split(x, [5, 6], axis=axis):
            running.update(np.asfortranarray(block), axis)
        np.testing.assert_allclose(running.value(), fs.logsumexp(x, axis), rtol=1e-15)
        assert np.shape(running.value()) == shape
    again = pickle.loads(pickle.dumps(running))
    np.testing.assert_array_equal(again.merge(RunningLogSumExp(shape, float)).value(), running.value())


def test_dtypes_of_blocks():
    half = RunningLogSumExp(2, np.float16)
    x = np.float16([[1, 2, 3], [0, 0, 0]])
    np.testing.assert_array_equal(half.update(x).value(), fs.logsumexp(x, 1))
    assert half.value().dtype == np.float16
    np.testing.assert_allclose(
        RunningLogSumExp(2, ">f8").update([[1, 2], [3, 4]]).value(), np.log(np.exp([[1, 2], [3, 4]]).sum(1))
    )
    assert RunningLogSumExp((), "f4").update(np.int8([1])).value() == 1
    for block, kind in ((np.zeros((2, 1)), "float64"), (np.zeros((2, 1), int), "int64")):
        with pytest.raises(
            TypeError, match=rf"RunningLogSumExp.update: block has dtype {kind}, which float32 cannot"
        ):
            RunningLogSumExp(2, "f4").update(block)


def test_errors_of_running_logsumexp():
    for block, axis in ((np.zeros(3), 0), (np.zeros((3, 1)), -1), (np.zeros((2, 3)), 0)):
        with pytest.raises(ValueError, match=r"RunningLogSumExp.update: block has shape .*, expected \(2,\)"):
            RunningLogSumExp(2, float).update(block, axis)
    with pytest.raises(ValueError, match="block is 0-d"):
        RunningLogSumExp((), float).update(1.0)
    with pytest.raises(np.exceptions.AxisError):
        RunningLogSumExp(2, float).update(np.zeros((2, 3)), 2)
    with pytest.raises(TypeError, match="RunningLogSumExp: dtype is int64, expected float16, float32 or float64"):
        RunningLogSumExp(2, int)
    with pytest.raises(TypeError, match="RunningLogSumExp: shape must be an integer or a tuple"):
        RunningLogSumExp(1.5, float)
    with pytest.raises(ValueError, match=r"RunningLogSumExp: shape \(-1,\) has a negative size"):
        RunningLogSumExp(-1, float)
    with pytest.raises(TypeError, match=r"RunningLogSumExp\.merge: expected RunningLogSumExp, got RunningMetrics"):
        RunningLogSumExp(2, float).merge(RunningMetrics())
    for other, words in (
        (RunningLogSumExp(3, float), r"shape is \(3,\)"),
        (RunningLogSumExp(2, "f4"), "dtype is float32"),
    ):
        with pytest.raises(ValueError, match="RunningLogSumExp.merge: " + words):
            RunningLogSumExp(2, float).merge(other)
