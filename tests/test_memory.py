"""Memory: little is used beside the results, none leaks, failures are clean, and sizes beyond 2**31 work."""

import gc
import resource
import sys
import tracemalloc

import functions
import numpy as np
import pytest
from zeros import zeros

import fastsoftmax as fs
from fastsoftmax.arrays import threads

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures as Linux does")
MEGABYTE = 1 << 20


def peak(call):
    """The greatest number of bytes that NumPy and Python allocated during a call, beyond those before."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("function", functions.WITH_OUT, ids=str)
@pytest.mark.parametrize("shape", [(40_000, 50), (3, 800_000), (2000, 20, 40)], ids=str)
def test_temporary_memory(function, shape):
    """At most one megabyte for each thread, with `out` and contiguous input of 16 MB."""
    axis = 1
    if function.result == "square":
        shape = (shape[0] if shape[1] == 50 else 8, min(shape[1], 700))
    x = np.zeros(shape)
    other = function.other(x, axis)
    out = np.empty(function.shape(shape, axis))
    options = dict(function.options, axis=axis)
    labels = 8 * out.size // shape[axis] if function.make is functions.labels_for else 0
    function.function(x[:1], *(o[:1] for o in other), **options)

    def call():
        function.function(x, *other, out=out, **options)

    call()
    assert peak(call) <= MEGABYTE * threads.max_threads() + labels


@pytest.mark.parametrize("name", ["cross_entropy", "squared_error"])
def test_temporary_memory_of_a_loss(name):
    """One number for each row, and no array of the size of the logits."""
    x = np.zeros((40_000, 50))
    targets = np.zeros(40_000, int) if name == "cross_entropy" else x
    getattr(fs, name)(x[:1], targets[:1])
    assert peak(lambda: getattr(fs, name)(x, targets)) <= MEGABYTE * threads.max_threads() + 16 * 40_000


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@linux
@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_no_growth_over_many_calls(count):
    """Small calls and calls on several threads, right and failing ones."""
    small, large = np.zeros((4, 5)), np.zeros((4000, 50))
    labels = np.zeros(4, int)

    def turn():
        for _ in range(100):
            fs.softmax(small)
            fs.cross_entropy_with_grad(small, labels)
            fs.softmax(small, axis=0)
            with pytest.raises(IndexError):
                fs.cross_entropy(small, labels + 7)
        for _ in range(4):
            fs.softmax(large)

    for _ in range(5):
        turn()
    gc.collect()
    objects, before = len(gc.get_objects()), resident()
    for _ in range(count // 404):
        turn()
    gc.collect()
    assert len(gc.get_objects()) - objects < 100
    assert resident() - before < 4 * MEGABYTE


@linux
@pytest.mark.parametrize("name", ["softmax_jacobian", "log_softmax_jacobian", "cross_entropy_hessian"])
def test_a_result_that_is_too_large(name, monkeypatch):
    """A MemoryError is raised before any computation if the system refuses the memory."""
    x = zeros((1 << 12, 1 << 20), np.float32)
    monkeypatch.setattr(threads, "_helpers", None)  # a kernel that begins would fail in another way
    targets = (np.zeros(1 << 12, int),) if name == "cross_entropy_hessian" else ()
    with pytest.raises(MemoryError, match="allocate"):
        getattr(fs, name)(x, *targets)


# Beyond 2**31: the size of the array, that of one row, and the distance between two entries of one row.
BEYOND = 2**31 + 100


@linux
@pytest.mark.slow
def test_a_row_beyond_2_31():
    """8 GB of zeros that take no memory. There are more than a float32 can count, also in each lane."""
    x = zeros((BEYOND,), np.float32)
    assert fs.logsumexp(x) == pytest.approx(np.log(BEYOND), rel=1e-6)


@linux
@pytest.mark.slow
def test_more_ties_in_a_lane_than_a_float32_counts():
    """In float32, adding 1 to 2**24 changes nothing."""
    x = zeros((2**28 + 2**25,), np.float32)
    assert fs.logsumexp(x) == pytest.approx(np.log(x.size), rel=2e-7)


@linux
@pytest.mark.slow
def test_rows_beyond_2_31():
    x = zeros((BEYOND // 1000 + 1, 1000), np.float32)
    np.testing.assert_allclose(fs.logsumexp(x), np.float32(np.log(1000)), rtol=1e-6)
    labels = np.zeros(len(x), np.int64)
    loss = fs.cross_entropy(x, labels, reduction="none")
    np.testing.assert_allclose(loss, np.float32(np.log(1000)), rtol=1e-6)


@linux
@pytest.mark.slow
def test_columns_beyond_2_31():
    """Entries of one row lie 2**30 apart."""
    x = zeros((3, 1 << 30), np.float32)
    lse = fs.logsumexp(x, axis=0)
    assert lse.min() == lse.max() == pytest.approx(np.log(3), rel=1e-6)


@linux
@pytest.mark.slow
def test_values_beyond_2_31(tmp_path):
    """A sparse file of 8 GB with numbers only at its end, where an offset that wraps around would read zeros."""
    path = tmp_path / "sparse"
    rows, classes = 2**31 // 64 + 8, 64
    with path.open("wb") as file:
        file.truncate(rows * classes * 4)
    x = np.memmap(path, np.float32, "r+", shape=(rows, classes))
    last = np.random.default_rng(0).normal(size=(4, classes)).astype(np.float32)
    x[-4:] = last
    np.testing.assert_array_equal(fs.logsumexp(x)[-4:], fs.logsumexp(last))
    losses = fs.cross_entropy(x, np.arange(rows) % classes, reduction="none")
    np.testing.assert_array_equal(
        losses[-4:], fs.cross_entropy(last, np.arange(rows)[-4:] % classes, reduction="none")
    )
