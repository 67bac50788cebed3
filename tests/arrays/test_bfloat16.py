"""`ml_dtypes.bfloat16`: computed in float32, returned as bfloat16, in every function of dense arrays."""

import child
import functions
import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import special
from fastsoftmax.api import ufuncs

bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
every = pytest.mark.parametrize("function", functions.ALL, ids=str)


def logits(shape, seed=0):
    return np.random.default_rng(seed).normal(0, 3, shape).astype(bfloat16)


def bits(value):
    return np.asarray(value).view(np.uint16)


def second(function, x):
    """The second argument as it is for float32, so that both calls have the same one."""
    return tuple(one.astype(bfloat16) if one.dtype == np.float32 else one for one in function.other(x))


@every
@pytest.mark.parametrize("shape", [(7,), (5, 3), (3, 70), (2, 4, 9)])
def test_result_is_that_of_float32_rounded(function, shape):
    x = logits(shape)
    other = second(function, x.astype(np.float32))
    options = dict(function.options)
    found = function.function(x, *other, **options)
    wide = [one.astype(np.float32) if one.dtype == bfloat16 else one for one in other]
    expected = function.function(x.astype(np.float32), *wide, **options)
    assert found.dtype == bfloat16
    np.testing.assert_array_equal(bits(found), bits(expected.astype(bfloat16)))


@every
def test_out(function):
    if not function.takes_out:
        pytest.skip("returns a new array")
    x = logits((4, 6))
    other, options = second(function, x.astype(np.float32)), dict(function.options)
    expected = function.function(x, *other, **options)
    out = np.zeros(expected.shape, bfloat16)
    assert function.function(x, *other, out=out, **options) is out
    np.testing.assert_array_equal(bits(out), bits(expected))
    with pytest.raises(TypeError, match="out has dtype float32, expected bfloat16"):
        function.function(x, *other, out=np.zeros(expected.shape, np.float32), **options)


@pytest.mark.parametrize("view", [lambda x: x.T, lambda x: x[::-1], lambda x: x[:, ::2]])
def test_layouts(view):
    x = view(logits((6, 8)))
    np.testing.assert_array_equal(bits(fs.softmax(x)), bits(fs.softmax(x.copy())))


def test_where_and_temperature():
    x = logits((3, 5))
    x[0, 1] = np.nan
    where = np.isfinite(x.astype(np.float32))
    found = fs.softmax(x, where=where, temperature=0.5)
    expected = fs.softmax(x.astype(np.float32), where=where, temperature=0.5)
    np.testing.assert_array_equal(bits(found), bits(expected.astype(bfloat16)))


@pytest.mark.parametrize("name", ["mean", "sum"])
@pytest.mark.parametrize("regularized", [{}, {"z_loss": 0.01, "softcap": 5.0}])
def test_losses_are_rounded_once(name, regularized):
    x, labels = logits((50, 6)), np.arange(50) % 6
    found, slope = fs.cross_entropy_with_grad(x, labels, reduction=name, **regularized)
    loss, gradient = fs.cross_entropy_with_grad(x.astype(np.float32), labels, reduction=name, **regularized)
    assert type(found) is bfloat16
    assert found == bfloat16(loss)
    np.testing.assert_array_equal(bits(slope), bits(gradient.astype(bfloat16)))


def test_losses_that_are_not_numbers_raise_no_warning():
    """The configuration of the tests makes an error of a warning."""
    x = logits((2, 3))
    assert np.isnan(float(fs.cross_entropy(x, np.zeros(2, int), ignore_index=0)))
    x[:] = -np.inf
    assert np.isnan(float(fs.cross_entropy(x, np.zeros(2, int))))


def test_targets_and_weights():
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    y, weights = np.abs(logits((4, 3))), np.abs(logits((4,)))
    found = fs.cross_entropy(x, y, sample_weight=weights)
    assert found == fs.cross_entropy(x, y.astype(np.float32), sample_weight=weights.astype(np.float32))
    with pytest.raises(TypeError, match="class indices and have dtype bfloat16, expected integers"):
        fs.cross_entropy(x, np.zeros(4, bfloat16))


@pytest.mark.parametrize(
    ("other", "result"),
    [(np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64), (np.int8, bfloat16)],
)
def test_a_wider_tangent_widens_the_result(other, result):
    x, tangent = logits((3, 4)), np.arange(12).reshape(3, 4)
    found = fs.softmax_jvp(x, tangent.astype(other))
    assert found.dtype == result
    computed = np.float64 if result is np.float64 else np.float32
    expected = fs.softmax_jvp(x.astype(computed), tangent.astype(computed)).astype(result)
    np.testing.assert_array_equal(found, expected)
    if np.dtype(other).kind == "f":
        assert fs.softmax_jvp(tangent.astype(other), x).dtype == result


def test_statistics_and_draws():
    x, labels = logits((5, 7)), np.arange(5)
    found, wide = fs.label_statistics(x, labels), fs.label_statistics(x.astype(np.float32), labels)
    for one, expected in zip(found, wide, strict=True):
        assert one.dtype == (bfloat16 if expected.dtype == np.float32 else expected.dtype)
        np.testing.assert_array_equal(one, expected.astype(one.dtype))
    uniforms = np.random.default_rng(1).random(5)
    drawn = fs.categorical(x, uniforms=uniforms, top_k=4)
    np.testing.assert_array_equal(drawn, fs.categorical(x.astype(np.float32), uniforms=uniforms, top_k=4))
    kept = fs.filter_logits(x, top_k=3)
    assert kept.dtype == bfloat16
    np.testing.assert_array_equal(kept[kept > -np.inf], x[kept > -np.inf])


def test_segments():
    x, indptr = logits(9), [0, 2, 2, 9]
    for function in (fs.segment_softmax, fs.segment_log_softmax, fs.segment_logsumexp):
        found, wide = function(x, indptr), function(x.astype(np.float32), indptr)
        assert found.dtype == bfloat16
        np.testing.assert_array_equal(bits(found), bits(wide.astype(bfloat16)))
    loss, slope = fs.segment_cross_entropy_with_grad(x, indptr, [1, 7, 3], ignore_index=7)
    wide = fs.segment_cross_entropy_with_grad(x.astype(np.float32), indptr, [1, 7, 3], ignore_index=7)
    assert loss == wide[0].astype(bfloat16)
    np.testing.assert_array_equal(bits(slope), bits(wide[1].astype(bfloat16)))


@pytest.mark.parametrize("name", functions.UFUNCS)
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[::-2], lambda x: x.reshape(2, -1).T])
def test_ufuncs(name, view):
    """Parts of a large array, strides and two arguments; the result is that of float32, rounded."""
    ufunc = getattr(special if name == "rel_entr" else fs, name)
    rng = np.random.default_rng(1)
    inputs = [view(rng.random(2 * ufuncs.PART + 6).astype(bfloat16)) for _ in range(ufunc.nin)]
    found = ufunc(*inputs)
    assert found.dtype == bfloat16
    expected = ufunc(*(x.astype(np.float32) for x in inputs))
    np.testing.assert_array_equal(bits(found), bits(expected.astype(bfloat16)))
    out = np.empty(found.shape, bfloat16)
    assert ufunc(*inputs, out=out) is out
    np.testing.assert_array_equal(bits(out), bits(found))


def test_ufuncs_of_scipys_names():
    x = logits(100)
    for name in special._KINDS:
        ufunc = getattr(special, name)
        inputs = [np.abs(x)] * ufunc.nin
        expected = ufunc(*(one.astype(np.float32) for one in inputs)).astype(bfloat16)
        np.testing.assert_array_equal(bits(ufunc(*inputs)), bits(expected))


def test_a_reduction_is_computed_step_by_step():
    x = logits(20)
    total = x[0]
    for one in x[1:]:
        total = fs.logaddexp(np.array([total]), np.array([one]))[0]
    assert fs.logaddexp.reduce(x) == total


LATE = """
import fastsoftmax as fs
fs.exp(1.0)
import ml_dtypes, numpy as np
fs.tanh(1.0)
print(fs.exp(np.zeros(1, ml_dtypes.bfloat16)).dtype)
"""


def test_library_that_is_imported_after_a_ufunc_has_been_used():
    """The next ufunc adds the loop."""
    assert child.run(LATE).strip() == "bfloat16"
