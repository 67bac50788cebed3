"""The functions of ragged rows inside @njit: the bits of the Python functions, and their errors."""

import child
import numpy as np
import pytest
from numba import prange
from numba.core.errors import TypingError
from registered import njit
from test_segments import DIVERGENCES, ENTROPIES, NAMES, PRODUCTS, Ragged, call, equal

import fastsoftmax as fs
from fastsoftmax._vectors import HUGE
from fastsoftmax.arrays import huge


@njit
def softmax(x, indptr):
    return fs.segment_softmax(x, indptr)


@njit
def softmax_out(x, indptr, out):
    return fs.segment_softmax(x, indptr, out=out)


@njit
def log_softmax(x, indptr):
    return fs.segment_log_softmax(x, indptr)


@njit
def logsumexp(x, indptr):
    return fs.segment_logsumexp(x, indptr)


@njit
def jvp(x, indptr, tangent):
    return fs.segment_softmax_jvp(x, indptr, tangent)


@njit
def vjp(x, indptr, cotangent):
    return fs.segment_softmax_vjp(x, indptr, cotangent)


@njit
def cross_entropy(x, indptr, targets):
    return fs.segment_cross_entropy(x, indptr, targets, ignore_index=-1, reduction="none")


@njit
def with_grad(x, indptr, targets, weights):
    return fs.segment_cross_entropy_with_grad(x, indptr, targets, sample_weight=weights, ignore_index=-1)


@njit
def smoothed(x, indptr, targets, weights, smoothing):
    return fs.segment_cross_entropy_with_grad(
        x, indptr, targets, sample_weight=weights, ignore_index=-1, label_smoothing=smoothing
    )


@njit
def entropy(x, indptr):
    return fs.segment_softmax_entropy(x, indptr)


@njit
def entropy_with_grad(x, indptr):
    return fs.segment_softmax_entropy_with_grad(x, indptr)


@njit
def divergence(x, indptr, target_logits):
    return fs.segment_kl_divergence(x, indptr, target_logits, reverse=True, reduction="none")


@njit
def divergence_with_grad(x, indptr, target_logits, weights):
    return fs.segment_kl_divergence_with_grad(x, indptr, target_logits, sample_weight=weights)


@njit
def summed(x, indptr, targets):
    return fs.segment_cross_entropy(x, indptr, targets, reduction="sum")


COMPILED = {
    "segment_softmax": softmax,
    "segment_log_softmax": log_softmax,
    "segment_logsumexp": logsumexp,
    "segment_softmax_jvp": jvp,
    "segment_softmax_vjp": vjp,
    "segment_cross_entropy": cross_entropy,
    "segment_cross_entropy_with_grad": with_grad,
    "segment_softmax_entropy": entropy,
    "segment_softmax_entropy_with_grad": entropy_with_grad,
    "segment_kl_divergence": divergence,
    "segment_kl_divergence_with_grad": divergence_with_grad,
}


def problem(dtype, huge=False):
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(0, 9, 300), *rng.integers(0, 90, 40), HUGE + 5 if huge else 3]
    segments = Ragged([(3 * rng.standard_normal(n)).astype(dtype) for n in lengths])
    segments.x = segments.x.copy()
    return segments


def compare(name, segments):
    weights = np.arange(len(segments.lengths)) % 3 / 7
    arguments = [segments.x, segments.indptr]
    options = {}
    if name in PRODUCTS + DIVERGENCES:
        arguments.append(segments.v)
    if "cross_entropy" in name:
        arguments.append(segments.targets)
    if name == "segment_kl_divergence":
        options["reverse"] = True
    if name.endswith("grad") and name not in ENTROPIES:
        arguments.append(weights)
        expected = segments.call(name, sample_weight=weights, reduction="mean")
    else:
        expected = segments.call(name, **options)
    actual = COMPILED[name](*arguments)
    if isinstance(actual, tuple):
        np.testing.assert_array_equal(actual[0], expected[0])
        actual, expected = actual[1], expected[1]
    equal(actual, expected)


@pytest.mark.parametrize("huge", [False, True])
def test_smoothing(huge):
    """The value decides at run time which kernel is called."""
    segments = problem(np.float64, huge)
    weights = np.arange(len(segments.lengths)) % 3 / 7
    for value in (0.0, 0.3):
        found = smoothed(segments.x, segments.indptr, segments.targets, weights, value)
        expected = segments.call(
            "segment_cross_entropy_with_grad", sample_weight=weights, label_smoothing=value, reduction="mean"
        )
        assert found[0] == expected[0]
        equal(found[1], expected[1])
    with pytest.raises(ValueError, match="label_smoothing must be from 0 to 1"):
        smoothed(segments.x, segments.indptr, segments.targets, weights, 1.5)


def test_every_function_is_there():
    assert set(COMPILED) == set(NAMES)


@pytest.mark.parametrize(
    "name", ["segment_softmax", "segment_cross_entropy_with_grad", "segment_kl_divergence_with_grad"]
)
def test_bits(name):
    """The bits agree for segments of all lengths."""
    compare(name, problem(np.float64, huge=True))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_all_bits(name, dtype):
    """As above, for all cases; each compiles for a few seconds."""
    compare(name, problem(dtype))
    compare(name, problem(dtype, huge=True))


@pytest.mark.slow
def test_other_arrays():
    """Integers, strides, unsigned row pointers, mixed floats, out, sums; no segments, and empty ones."""
    segments = problem(np.float64)
    whole = np.round(segments.x).astype(np.int32)
    equal(softmax(whole, segments.indptr), fs.segment_softmax(whole, segments.indptr))
    strided = np.stack([segments.x, segments.x], axis=-1)[:, 0]
    equal(softmax(strided, segments.indptr.astype(np.uint32)), segments.call("segment_softmax"))
    narrow = segments.x.astype(np.float32)
    equal(jvp(narrow, segments.indptr, segments.v), fs.segment_softmax_jvp(narrow, segments.indptr, segments.v))
    assert softmax_out(segments.x, segments.indptr, segments.x.copy()).dtype == np.float64
    out = segments.x.copy()
    softmax_out(out, segments.indptr, out)
    equal(out, segments.call("segment_softmax"))
    equal(softmax(np.empty(0), np.array([0])), np.empty(0))
    equal(logsumexp(np.empty(0), np.array([0, 0])), np.array([-np.inf]))
    indptr, targets = np.array([0, 2, 5]), np.array([1, 2])
    x = np.arange(5.0)
    assert summed(x, indptr, targets) == fs.segment_cross_entropy(x, indptr, targets, reduction="sum")


ALLOCATIONS = """
import numpy as np
from numba.core.runtime import rtsys
from numba import njit
import fastsoftmax as fs
import fastsoftmax.njit.overloads

@njit
def plain(x, indptr, out):
    return fs.segment_softmax(x, indptr)

@njit
def into(x, indptr, out):
    return fs.segment_softmax(x, indptr, out=out)

def count(function, x, out):
    function(x, indptr, out)
    before = rtsys.get_allocation_stats().alloc
    function(x, indptr, out)
    return rtsys.get_allocation_stats().alloc - before

indptr, memory = 10 * np.arange(101), np.zeros(2000)
x, apart, partly = memory[:1000], memory[1000:], memory[3:1003]
print(count(plain, x, apart) - count(into, x, apart), end=" ")
print(count(into, x, x) - count(into, x, apart), end=" ")
print(count(into, x, partly) - count(into, x, apart))
"""


def test_out_is_written_directly():
    """One array less than without `out`, where it lies apart or over x; no fewer where it is over a part of x."""
    assert child.run(ALLOCATIONS, NUMBA_NRT_STATS=1) == "1 0 1\n"


@pytest.mark.slow
def test_out_lies_anywhere():
    """Rows over the vector, products over their second operand, gradients."""
    segments = problem(np.float64)
    x, indptr, v, labels = segments.x, segments.indptr, segments.v, segments.targets
    count = len(indptr) - 1
    expected = segments.call("segment_logsumexp")

    @njit
    def rows(x, indptr, out):
        return fs.segment_logsumexp(x, indptr, out=out)

    @njit
    def product(x, indptr, v, out):
        return fs.segment_softmax_vjp(x, indptr, v, out=out)

    @njit
    def loss(x, indptr, labels, out):
        return fs.segment_cross_entropy_with_grad(x, indptr, labels, ignore_index=-1, reduction="sum", out=out)

    for make in (lambda x: np.empty(count), lambda x: np.empty(2 * count)[::2], lambda x: x[:count]):
        copy = x.copy()
        equal(rows(copy, indptr, make(copy)), expected)
    dense = np.arange(5.0), np.array([0, 0, 2, 2, 2, 5])  # as many segments as entries, and out is x itself
    expected = fs.segment_logsumexp(*dense)
    equal(rows(*dense, dense[0]), expected)
    expected = segments.call("segment_softmax_vjp")
    for operand in (x.copy(), v.copy(), np.empty(len(x))):
        source, second = operand if operand[0] == x[0] else x, operand if operand[0] == v[0] else v
        equal(product(source, indptr, second, operand), expected)
    expected = fs.segment_cross_entropy_with_grad(x, indptr, labels, ignore_index=-1, reduction="sum")
    for out in (np.empty(len(x)), x.copy()):
        found = loss(out if out[0] == x[0] else x, indptr, labels, out)
        assert found[0] == expected[0]
        equal(out, expected[1])


@pytest.mark.slow
def test_in_a_parallel_loop():
    """Calls inside a parallel loop use one thread."""

    @njit(parallel=True)
    def many(x, indptr):
        results = np.empty((8, x.size))
        for i in prange(8):
            results[i] = fs.segment_softmax(x * i, indptr)
        return results

    segments = problem(np.float64)
    results = many(segments.x, segments.indptr)
    for i in range(8):
        equal(results[i], fs.segment_softmax(segments.x * i, segments.indptr))


@pytest.mark.parametrize(
    "indptr", [[1, 2, 5], [0, 4, 3, 5], [0, 2, 4], [0, 2, 6], [0, 7, 5]], ids=lambda value: str(value)
)
def test_errors_have_the_same_words(indptr):
    """Errors about values. Those about types are raised when the caller is compiled."""
    with pytest.raises(ValueError, match=r"indptr\[") as expected:
        call("segment_softmax", indptr=np.array(indptr))
    with pytest.raises(ValueError, match=r"indptr\[") as actual:
        softmax(np.arange(5.0), np.array(indptr))
    assert str(actual.value) == str(expected.value)


@pytest.mark.parametrize("targets", [[0, 3], [-2, 0], [7, 0]])
def test_errors_of_targets_have_the_same_words(targets):
    weights = np.ones(2)
    arguments = np.arange(5.0), np.array([0, 2, 5]), np.array(targets)
    with pytest.raises(IndexError, match="targets") as expected:
        fs.segment_cross_entropy_with_grad(*arguments, sample_weight=weights, ignore_index=-1)
    with pytest.raises(IndexError, match="targets") as actual:
        with_grad(*arguments, weights)
    assert str(actual.value) == str(expected.value)


def test_errors_of_types():
    x, indptr = np.arange(5.0), np.array([0, 5])
    with pytest.raises(TypingError, match="segment_softmax: x must be an array of one dimension"):
        softmax(x[:, None], indptr)
    with pytest.raises(TypingError, match="segment_softmax: x has dtype complex128, expected float32"):
        softmax(x + 0j, indptr)
    with pytest.raises(TypingError, match="segment_softmax: indptr has dtype float64, expected integers"):
        softmax(x, x)
    with pytest.raises(TypingError, match="segment_softmax: out has dtype float32, expected float64"):
        softmax_out(x, indptr, x.astype(np.float32))


def test_errors_of_huge_segments_reach_the_caller(monkeypatch):
    """Python calls their kernels: what it raises, also for lack of memory, is raised by the compiled function."""

    def fail(*args):
        raise MemoryError("none left")

    monkeypatch.setattr(huge, "pieces", fail)
    softmax(np.zeros(HUGE), np.array([0, HUGE]))
    with pytest.raises(MemoryError, match="none left"):
        softmax(np.zeros(HUGE + 1), np.array([0, HUGE + 1]))
