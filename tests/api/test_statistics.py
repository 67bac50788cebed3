"""label_statistics: log-probability, rank, greatest class, entropy and log-sum-exp of each row."""

import cases
import numpy as np
import oracle
import pytest

import fastsoftmax as fs
from fastsoftmax.arrays import statistics

every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)


def expected_rank(x, y, axis):
    return (x > np.take_along_axis(x, np.expand_dims(y, axis), axis)).sum(axis)


@every_dtype
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("classes", [1, 2, 3, 17, 64, 65, 300, 5000])
def test_against_the_oracle(dtype, temperature, classes, record):
    """log p within 4 ulp, the entropy within 6, one more with a temperature; confident rows, ties and shifts."""
    rng = np.random.default_rng(classes)
    x = rng.normal(0, 3, (5, classes)).astype(dtype)
    x[1] += 100
    x[2, 0] += 40
    x[3] = rng.integers(0, 3, classes)
    y = rng.integers(0, classes, 5)
    y[2] = 0
    found = fs.label_statistics(x, y, temperature=temperature)
    more = temperature != 1
    reference = oracle.rowwise(oracle.log_softmax, x, temperature=temperature)[np.arange(5), y]
    record("label_statistics, log_prob", dtype, oracle.worst(found.log_prob, reference)[0], 4 + more)
    reference = oracle.rowwise(oracle.softmax_entropy, x, temperature=temperature)
    record("label_statistics, entropy", dtype, oracle.worst(found.entropy, reference)[0], 6 + more)
    np.testing.assert_array_equal(found.rank, expected_rank(x, y, 1))
    np.testing.assert_array_equal(found.argmax, x.argmax(1))
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(
        found.logsumexp, fs.logsumexp(x.astype(np.float64) / temperature, 1), rtol=2 * eps, atol=4 * eps
    )
    assert found.log_prob.dtype == found.entropy.dtype == found.logsumexp.dtype == dtype
    assert found.rank.dtype == found.argmax.dtype == np.int64


@every_dtype
def test_what_the_other_functions_return(dtype):
    x = np.random.default_rng(0).normal(0, 3, (40, 90)).astype(dtype)
    y = np.random.default_rng(1).integers(0, 90, 40)
    found = fs.label_statistics(x, y)
    np.testing.assert_array_equal(found.logsumexp, fs.logsumexp(x, 1))
    np.testing.assert_allclose(
        -found.log_prob, fs.cross_entropy(x, y, reduction="none"), rtol=4 * np.finfo(dtype).eps
    )


@every_dtype
@pytest.mark.parametrize(
    ("shape", "axis"), [((7,), 0), ((0, 3), 1), ((30, 20), 0), ((4, 11, 9), 1), ((3, 70, 40), 1)]
)
def test_layouts(dtype, shape, axis):
    """Any axis and order, also of numbers in between, with the bits of contiguous rows."""
    x = np.random.default_rng(0).normal(0, 3, shape).astype(dtype)
    rows = shape[:axis] + shape[axis + 1 :]
    y = np.asarray(np.random.default_rng(1).integers(0, shape[axis], rows))
    found = fs.label_statistics(x, y, axis)
    np.testing.assert_array_equal(found.rank, expected_rank(x, y, axis))
    np.testing.assert_array_equal(found.argmax, x.argmax(axis))
    for other in (np.asfortranarray(x), x.astype(x.dtype.newbyteorder()), np.repeat(x, 2, -1)[..., ::2]):
        again = fs.label_statistics(other, y.astype(np.uint8), axis)
        for a, b in zip(found, again, strict=True):
            np.testing.assert_allclose(a, b, rtol=4 * np.finfo(dtype).eps)
            assert np.shape(a) == rows
    with fs.threads(1):
        for a, b in zip(found, fs.label_statistics(x, y, axis), strict=True):
            np.testing.assert_array_equal(a, b)


@every_dtype
@pytest.mark.parametrize("classes", [5, 90])
def test_ties_infinities_and_nan(dtype, classes):
    x = np.zeros((6, classes), dtype)
    x[1, 3] = np.nan
    x[2] = -np.inf
    x[3, 1:] = -np.inf
    x[4, 2] = np.inf
    x[5, 2:] = 1
    y = np.array([4, 0, 0, 0, 0, 1])
    with np.errstate(all="raise"):
        found = fs.label_statistics(x, y)
    np.testing.assert_array_equal(found.rank, [0, classes, 0, 0, 1, classes - 2])
    np.testing.assert_array_equal(found.argmax, [0, 3, 0, 0, 2, 2])
    np.testing.assert_array_equal(found.argmax, x.argmax(1))
    np.testing.assert_array_equal(found.logsumexp, fs.logsumexp(x, 1))
    np.testing.assert_array_equal(np.isnan(found.entropy), [False, True, True, False, True, False])
    assert found.log_prob[3] == found.entropy[3] == 0
    turned = fs.label_statistics(x.T, y, 0)
    np.testing.assert_array_equal(turned.rank, found.rank)
    np.testing.assert_array_equal(turned.argmax, found.argmax)


def test_ignored_rows():
    x = np.random.default_rng(0).normal(size=(4, 3))
    x[2] = np.nan
    found = fs.label_statistics(x, [0, -100, -100, 2], ignore_index=-100)
    plain = fs.label_statistics(x, [0, 0, 0, 2])
    np.testing.assert_array_equal(found.log_prob, np.where([0, 1, 1, 0], 0, plain.log_prob))
    np.testing.assert_array_equal(found.rank, np.where([0, 1, 1, 0], -1, plain.rank))
    np.testing.assert_array_equal(found.entropy, plain.entropy)
    np.testing.assert_array_equal(found.argmax, plain.argmax)


def test_one_row_and_other_dtypes():
    found = fs.label_statistics([1, 3, 2], 2)
    assert (found.rank, found.argmax) == (1, 1)
    assert found.log_prob.dtype == np.float64
    assert np.ndim(found.log_prob) == 0
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float16)
    half, single = fs.label_statistics(x, [0, 1, 2, 0]), fs.label_statistics(x.astype(np.float32), [0, 1, 2, 0])
    np.testing.assert_array_equal(half.entropy, single.entropy.astype(np.float16))
    assert half.log_prob.dtype == np.float16
    empty = fs.label_statistics(np.zeros((2, 0)), [-1, -1], ignore_index=-1)
    np.testing.assert_array_equal(empty.argmax, [-1, -1])


def test_dask():
    da = pytest.importorskip("dask.array")
    x, y = np.random.default_rng(0).normal(size=(9, 5, 7)), np.random.default_rng(1).integers(0, 5, (9, 7))
    expected = fs.label_statistics(x, y, 1, temperature=2.0)
    for chunks in ((4, 5, 3), (9, 2, 7)):
        found = fs.label_statistics(da.from_array(x, chunks=chunks), y, 1, temperature=2.0)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a.compute(scheduler="synchronous"), b)
            assert a.dtype == b.dtype
    wrong = fs.label_statistics(da.from_array(x, chunks=(4, 5, 7)), y + 1, 1)
    with pytest.raises(IndexError, match=r"label_statistics: labels\[.* is 5, expected a label from 0 to 4"):
        wrong.rank.compute(scheduler="synchronous")


def test_errors():
    x = np.zeros((2, 3))
    for kind, words, labels, options in (
        (
            ValueError,
            r"label_statistics: labels has shape \(3,\), expected \(2,\) \(class indices\)",
            [0, 0, 0],
            {},
        ),
        (TypeError, "label_statistics: labels of shape .* have dtype float64, expected integers", [0.0, 1.0], {}),
        (IndexError, r"label_statistics: labels\[1\] is 3, expected a label from 0 to 2", [0, 3], {}),
        (ValueError, "label_statistics: temperature must be finite and > 0, got 0", [0, 1], {"temperature": 0}),
        (TypeError, "label_statistics: ignore_index must be an integer", [0, 1], {"ignore_index": "a"}),
    ):
        with pytest.raises(kind, match=words):
            fs.label_statistics(x, labels, **options)
    with pytest.raises(np.exceptions.AxisError):
        fs.label_statistics(x, [0, 1], 2)


@every_dtype
@pytest.mark.parametrize("shape", [(1, 1), (1, 10), (40, 7), (5, 64), (30, 65), (3, 3000), (3000, 40)])
def test_plain_arrays_take_a_short_way(dtype, shape, monkeypatch):
    """With the bits of the general way, which takes what is not plain, and raises the errors."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(0, 3, shape).astype(dtype), rng.integers(0, shape[1], shape[0])
    x[-1, -1] = np.nan
    expected = fs.label_statistics(x, y.astype(np.int32))
    fs.label_statistics(x, y)
    with pytest.raises(IndexError, match=rf"label_statistics: labels\[0\] is {shape[1]}"):
        fs.label_statistics(x, y + shape[1] - y[0])
    monkeypatch.setattr(statistics, "Problem", lambda *a, **k: pytest.fail("not the short way"))
    found = fs.label_statistics(x, y)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
