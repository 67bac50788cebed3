"""`fastsoftmax.jax`: results, derivatives of two orders in both modes, compilation and batches."""

import doctest
import importlib.util
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest

import fastsoftmax as fs

jax = pytest.importorskip("jax")
pytest.importorskip("ml_dtypes")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

from fastsoftmax import jax as ours  # noqa: E402

LABELS = np.array([[1, 3], [2, 0], [0, 0]])
INDPTR = np.array([0, 4, 4, 5, 12])
WEIGHT = np.random.default_rng(3).normal(size=(5, 4))
BIAS = np.random.default_rng(4).normal(size=5)
SHARES = np.random.default_rng(1).random((3, 4, 2))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def logits(shape=(3, 4, 2), seed=0, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 2, shape), dtype)


FUNCTIONS = {
    "softmax": lambda x: ours.softmax(x, 1),
    "softmax, temperature": lambda x: ours.softmax(x, temperature=0.5),
    "log_softmax": lambda x: ours.log_softmax(x, 0),
    "log_softmax, temperature": lambda x: ours.log_softmax(x, 1, temperature=2.0),
    "logsumexp": lambda x: ours.logsumexp(x, 1),
    "logsumexp, several": lambda x: ours.logsumexp(x, (0, 2), keepdims=True),
    "cross_entropy": lambda x: ours.cross_entropy(x, LABELS, 1),
    "cross_entropy, ignored": lambda x: ours.cross_entropy(x, LABELS, 1, ignore_index=3, label_smoothing=0.1),
    "cross_entropy, distributions": lambda x: ours.cross_entropy(x, SHARES, 1, reduction="none"),
    "cross_entropy, regularized": lambda x: ours.cross_entropy(
        x, LABELS, 1, z_loss=0.1, softcap=3.0, reduction="sum"
    ),
    "kl_divergence": lambda x: ours.kl_divergence(x, x[::-1] / 2, 1, temperature=2.0),
    "segment_softmax": lambda x: ours.segment_softmax(x.ravel()[:12], INDPTR),
    "linear_cross_entropy": lambda x: ours.linear_cross_entropy(jnp.moveaxis(x, 1, 2), WEIGHT, LABELS, BIAS),
    "linear_cross_entropy, weight": lambda x: ours.linear_cross_entropy(
        WEIGHT, x[:, :, 0], LABELS.ravel()[:5], ignore_index=3, reduction="sum"
    ),
    "linear_cross_entropy, everything": lambda x: ours.linear_cross_entropy(
        x[:2, :, 0], x[:, :, 1], LABELS[0] % 3, x[0, :3, 0], label_smoothing=0.1, z_loss=0.1, softcap=2.0
    ),
    "kl_divergence, reverse": lambda x: ours.kl_divergence(x, x[::-1] / 2, 1, reverse=True, reduction="none"),
}
THEIRS = {
    "softmax": lambda x: jax.nn.softmax(x, 1),
    "softmax, temperature": lambda x: jax.nn.softmax(x / 0.5),
    "log_softmax": lambda x: jax.nn.log_softmax(x, 0),
    "log_softmax, temperature": lambda x: jax.nn.log_softmax(x / 2, 1),
    "logsumexp": lambda x: jax.nn.logsumexp(x, 1),
    "logsumexp, several": lambda x: jax.nn.logsumexp(x, (0, 2), keepdims=True),
    "cross_entropy, distributions": lambda x: -(SHARES * jax.nn.log_softmax(x, 1)).sum(1),
    "segment_softmax": lambda x: jnp.concatenate(
        [jax.nn.softmax(part) for part in jnp.split(x.ravel()[:12], INDPTR[1:-1])]
    ),
}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_results(dtype):
    """The bits are those of the function of arrays."""
    x = logits(dtype=dtype)
    plain = np.asarray(x)
    for found, expected in (
        (ours.softmax(x, 1), fs.softmax(plain, 1)),
        (ours.log_softmax(x), fs.log_softmax(plain)),
        (ours.logsumexp(x, (1, 2)), fs.logsumexp(plain, (1, 2))),
        (ours.cross_entropy(x, LABELS, 1, reduction="none"), fs.cross_entropy(plain, LABELS, 1, reduction="none")),
        (
            ours.kl_divergence(x, x[::-1], 1, reduction="none"),
            fs.kl_divergence(plain, plain[::-1], 1, reduction="none"),
        ),
        (ours.segment_softmax(x.ravel()[:12], INDPTR), fs.segment_softmax(plain.ravel()[:12], INDPTR)),
        (
            ours.linear_cross_entropy(x[..., 0], x[0].T, LABELS[:, 1] % 2, reduction="none"),
            fs.linear_cross_entropy(plain[..., 0], plain[0].T, LABELS[:, 1] % 2, reduction="none"),
        ),
    ):
        assert isinstance(found, jax.Array)
        assert found.dtype == dtype
        np.testing.assert_array_equal(np.asarray(found), expected)


@pytest.mark.parametrize("options", [{}, {"ignore_index": 3}, {"label_smoothing": 0.1, "ignore_index": 0}])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(options, reduction):
    x = logits()
    expected = fs.cross_entropy_with_grad(np.asarray(x), LABELS, 1, reduction=reduction, **options)

    def loss(x):
        found = ours.cross_entropy(x, LABELS, 1, reduction=reduction, **options)
        return found.sum(), found

    (_, found), slope = jax.value_and_grad(loss, has_aux=True)(x)
    np.testing.assert_allclose(found, expected[0], rtol=1e-14)
    np.testing.assert_allclose(slope, expected[1], rtol=1e-14, atol=1e-17)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives(name):
    """Of two orders, in both modes, beside finite differences."""
    check_grads(FUNCTIONS[name], (logits(),), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", THEIRS)
def test_derivatives_of_jax(name):
    x = logits()
    for transform in (
        lambda f: f,
        jax.jacrev,
        jax.jacfwd,
        jax.hessian,
        lambda f: jax.jit(jax.jacrev(jax.jacrev(f))),
    ):
        found, expected = (transform(function)(x) for function in (FUNCTIONS[name], THEIRS[name]))
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled(name):
    x = logits()
    function = FUNCTIONS[name]
    np.testing.assert_allclose(jax.jit(function)(x), function(x), rtol=1e-14)  # XLA adds up in another order
    slope = jax.grad(lambda x: function(x).sum())
    np.testing.assert_allclose(jax.jit(slope)(x), slope(x), rtol=1e-14)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_batches(name):
    """Of results and of gradients, along any axis; batches of batches."""
    batch = jnp.stack([logits(seed=seed) for seed in range(3)])
    function = FUNCTIONS[name]
    for place, one in ((3, function), (2, jax.grad(lambda x: function(x).sum()))):
        expected = jnp.stack([one(x) for x in batch])
        moved = jnp.moveaxis(batch, 0, place)
        np.testing.assert_allclose(jax.vmap(one, in_axes=place)(moved), expected, rtol=1e-14)
        nested = jax.jit(jax.vmap(jax.vmap(one)))(jnp.stack([batch, batch]))
        np.testing.assert_allclose(nested[1], expected, rtol=1e-14)


LINEAR = {
    "plain": {},
    "ignored": {"ignore_index": 3, "label_smoothing": 0.1},
    "regularized": {"z_loss": 0.3, "softcap": 2.0},
}


def linear_arguments():
    rng = np.random.default_rng(2)
    return tuple(jnp.asarray(rng.normal(size=shape)) for shape in ((3, 2, 4), (5, 4), (5,)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("block_bytes", [4, 1 << 20])
def test_linear_cross_entropy(name, reduction, block_bytes, monkeypatch):
    """Value, gradients and Hessian, with all parts that mix arguments, are those of the dense logits."""
    for one in ("joint_product", "row_products"):  # blocks of one row, and a single one
        monkeypatch.setattr(ours, one, partial(getattr(ours, one), block_bytes=block_bytes))
    options, arguments = {**LINEAR[name], "reduction": reduction}, linear_arguments()
    factors = jnp.asarray(np.random.default_rng(5).normal(size=(3, 2)))

    def loss(x, w, b):
        return (factors * ours.linear_cross_entropy(x, w, LABELS, b, **options)).sum()

    def dense(x, w, b):
        return (factors * ours.cross_entropy(x @ w.T + b, LABELS, **options)).sum()

    for transform in (lambda f: f, lambda f: jax.grad(f, (0, 1, 2)), lambda f: jax.hessian(f, (0, 1, 2))):
        for found, expected in zip(
            jax.tree.leaves(transform(loss)(*arguments)),
            jax.tree.leaves(transform(dense)(*arguments)),
            strict=True,
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_linear_cross_entropy_of_some_arguments():
    """Derivatives with respect to some of them, without a bias, of both orders and in all modes."""
    x, w, b = linear_arguments()
    for function, argument in (
        (lambda b: ours.linear_cross_entropy(x, w, LABELS, b), b),
        (lambda w: ours.linear_cross_entropy(x, w, LABELS), w),
        (lambda x: ours.linear_cross_entropy(x, w, LABELS, b), x),
        (lambda x: ours.linear_cross_entropy(x, w, LABELS, reduction="sum"), x),
    ):
        check_grads(function, (argument,), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)
    rows = partial(ours.linear_cross_entropy, targets=LABELS, reduction="none")
    check_grads(rows, (x, w), order=1, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)
    check_grads(rows, (x, w), order=2, modes=("rev",), atol=1e-5, rtol=1e-5)
    with pytest.raises(NotImplementedError, match="no derivatives in forward mode of derivatives in forward mode"):
        jax.jacfwd(jax.jacfwd(rows))(x, w)
    with pytest.raises(NotImplementedError, match="differentiated twice, not three times"):
        jax.jacfwd(jax.hessian(lambda x: ours.linear_cross_entropy(x, w, LABELS)))(x)


def test_linear_rows_that_do_not_count():
    """NaN in a row that is ignored changes no derivative; nor is there one if all rows are ignored."""
    x, w, _ = linear_arguments()
    x = x.at[0, 1].set(jnp.nan)  # its label is 3
    loss = partial(ours.linear_cross_entropy, targets=LABELS, ignore_index=3)
    slopes = jax.grad(loss, (0, 1))(x, w)
    for one in (*slopes, *jax.tree.leaves(jax.hessian(loss, (0, 1))(x, w))):
        assert jnp.isfinite(one).all()
        assert one.any()
    value, slope = jax.value_and_grad(ours.linear_cross_entropy)(x, w, jnp.zeros_like(LABELS), ignore_index=0)
    assert jnp.isnan(value)
    assert not slope.any()


def test_linear_dtypes():
    """One dtype for all, of which the gradients have their own parts."""
    x, w, b = linear_arguments()
    x = x.astype(jnp.bfloat16)
    loss, slopes = jax.value_and_grad(ours.linear_cross_entropy, (0, 1))(x, w.astype(jnp.float32), LABELS)
    assert (loss.dtype, slopes[0].dtype, slopes[1].dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    small = [one.astype(jnp.bfloat16) for one in (x, w, b)]
    wide = [one.astype(jnp.float32) for one in small]
    found, expected = (
        jax.hessian(lambda w: ours.linear_cross_entropy(x, w, LABELS, b))(w)  # noqa: B023
        for x, w, b in (small, wide)
    )
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))


def test_labels_in_batches():
    x = logits((4, 5))
    labels = jnp.arange(4)
    expected = ours.cross_entropy(x, labels, reduction="none")
    np.testing.assert_array_equal(jax.vmap(ours.cross_entropy)(x, labels), expected)
    features, weight, _ = linear_arguments()
    of_rows = jax.vmap(ours.linear_cross_entropy, (0, None, 0))(features, weight, LABELS)
    expected = [ours.linear_cross_entropy(one, weight, row) for one, row in zip(features, LABELS, strict=True)]
    np.testing.assert_array_equal(of_rows, expected)
    rows = jax.vmap(lambda label: ours.cross_entropy(x[0], label))(labels)
    np.testing.assert_array_equal(rows, [ours.cross_entropy(x[0], label) for label in labels])


def test_the_hessian_of_a_confident_row():
    """The reason for kernels in the second derivative: p - p**2 from a rounded p = 1 would be 0."""
    hessian = jax.hessian(lambda x: ours.cross_entropy(x, 0))(jnp.array([0.0, -50.0]))
    assert hessian[0, 0] == pytest.approx(np.exp(-50.0), rel=1e-14)


def test_dtypes_follow_jax():
    with jax.enable_x64(False):
        for x in (np.zeros(3), [0, 1], np.arange(3)):
            assert ours.softmax(x).dtype == jnp.float32
        assert ours.cross_entropy(np.zeros((2, 3)), np.zeros(2, np.int64)).dtype == jnp.float32
    assert ours.softmax([0, 1]).dtype == jnp.float64


@pytest.mark.parametrize("shape", [(0, 3), (3, 1), (1, 70000)])
def test_shapes(shape):
    x = logits(shape, dtype=np.float32)
    np.testing.assert_array_equal(ours.softmax(x), fs.softmax(np.asarray(x)))
    labels = jnp.zeros(shape[:-1], jnp.int32)
    found = ours.cross_entropy(x, labels, reduction="sum")
    np.testing.assert_allclose(
        found, fs.cross_entropy(np.asarray(x), np.asarray(labels), reduction="sum"), rtol=1e-6
    )


def test_derivatives_without_rows():
    x, w, labels = jnp.zeros((0, 3)), jnp.ones((4, 3)), jnp.zeros(0, jnp.int32)
    assert jax.grad(ours.cross_entropy)(x, labels).shape == (0, 3)
    for reduction in ("mean", "sum", "none"):

        def loss(x, w):
            return ours.linear_cross_entropy(x, w, labels, reduction=reduction).sum()  # noqa: B023

        slopes = jax.grad(loss, (0, 1))(x, w)
        assert [one.shape for one in slopes] == [(0, 3), (4, 3)]
        assert not slopes[1].any()
        assert not jax.hessian(loss, 1)(x, w).any()
    empty = jax.grad(lambda x: ours.segment_softmax(x, jnp.array([0, 0])).sum())(jnp.zeros(0))
    assert empty.shape == (0,)


def test_integers_have_no_tangents():
    """A derivative along float0, JAX's dtype of tangents of integers, is zero."""
    indptr = jnp.array([0, 2, 3])
    along = np.zeros(3, jax.dtypes.float0)
    found, moved = jax.jvp(lambda i: ours.segment_softmax(jnp.zeros(3), i), (indptr,), (along,))
    assert found.tolist() == [0.5, 0.5, 1]
    assert not moved.any()


def test_axes():
    """None and several axes of arrays with and without elements, as for arrays."""
    for shape in ((2, 3, 4), (0, 3, 4)):
        x = logits(shape)
        for axis in ((), (1, 2), [0], range(1, 3)):
            found = ours.logsumexp(x, axis, keepdims=True)
            np.testing.assert_array_equal(found, fs.logsumexp(np.asarray(x), tuple(axis), keepdims=True))
    np.testing.assert_array_equal(ours.logsumexp(x[:0].sum()), 0)
    with pytest.raises(ValueError, match=r"logsumexp: axis \(0, -3\) names an axis twice"):
        ours.logsumexp(x, (0, -3))
    with pytest.raises(np.exceptions.AxisError, match="logsumexp: axis 3 is out of bounds"):
        ours.logsumexp(x, (0, 3))


def test_infinities():
    rows = jnp.array([[0.0, -jnp.inf, 1.0], [jnp.nan, 1.0, 2.0], [-jnp.inf] * 3])
    for function in (ours.softmax, ours.log_softmax, ours.logsumexp):
        np.testing.assert_array_equal(jax.jit(function)(rows), getattr(fs, function.__name__)(np.asarray(rows)))
    for reverse in (False, True):
        x, y = jnp.array([0.0, 1.0, -jnp.inf]), jnp.array([1.0, 0.0, -jnp.inf])
        hessian = jax.hessian(lambda x: ours.kl_divergence(x, y, reverse=reverse))(x)  # noqa: B023
        assert np.isfinite(hessian).all()
        assert hessian[0, 0] > 0


def test_derivatives_that_there_are_none_of():
    x = logits((2, 3))

    def loss(x):
        return ours.cross_entropy(x, jnp.array([0, 1]))

    with pytest.raises(NotImplementedError, match="differentiated twice, not three times"):
        jax.jacfwd(jax.hessian(loss))(x)
    with pytest.raises(NotImplementedError, match="no derivative with respect to its targets"):
        jax.grad(lambda y: ours.cross_entropy(x, y))(jnp.ones((2, 3)))
    thrice = jax.jit(jax.jacrev(jax.jacfwd(jax.jacrev(lambda x: ours.segment_softmax(x, jnp.array([0, 3]))))))
    expected = jax.jacfwd(jax.hessian(jax.nn.softmax))(x[0])
    np.testing.assert_allclose(thrice(x[0]), expected, rtol=1e-10, atol=1e-14)
    third = jax.jacfwd(jax.hessian(ours.logsumexp))(x[0])
    np.testing.assert_allclose(third, jax.jacfwd(jax.hessian(jax.nn.logsumexp))(x[0]), rtol=1e-10, atol=1e-14)


def test_errors():
    x = logits((2, 3))
    with pytest.raises(TypeError, match=r"softmax: x has dtype complex128"):
        ours.softmax(x + 1j)
    with pytest.raises(np.exceptions.AxisError, match="axis 2 is out of bounds"):
        ours.softmax(x, 2)
    with pytest.raises(ValueError, match="softmax: temperature"):
        ours.softmax(x, temperature=-1.0)
    with pytest.raises(ValueError, match="cross_entropy: reduction must be one of"):
        ours.cross_entropy(x, jnp.array([0, 1]), reduction="meen")
    with pytest.raises(ValueError, match=r"cross_entropy: targets has shape \(3,\), expected \(2,\)"):
        ours.cross_entropy(x, jnp.array([0, 1, 2]))
    with pytest.raises(ValueError, match="kl_divergence: target_logits has shape"):
        ours.kl_divergence(x, x[0])
    with pytest.raises(TypeError, match="kl_divergence: reverse must be a bool, got 'mean'"):
        ours.kl_divergence(x, x, reverse="mean")
    w = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"linear_cross_entropy: weight has shape \(2, 4\), expected \(K, 3\)"):
        ours.linear_cross_entropy(x, jnp.ones((2, 4)), jnp.array([0, 1]))
    with pytest.raises(ValueError, match=r"linear_cross_entropy: bias has shape \(3,\), expected \(4,\)"):
        ours.linear_cross_entropy(x, w, jnp.array([0, 1]), jnp.ones(3))
    with pytest.raises(ValueError, match=r"linear_cross_entropy: targets has shape \(3,\), expected \(2,\)"):
        ours.linear_cross_entropy(x, w, jnp.array([0, 1, 2]))
    with pytest.raises(TypeError, match="linear_cross_entropy: targets are class indices and have dtype float"):
        ours.linear_cross_entropy(x, w, jnp.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="linear_cross_entropy: reduction must be one of"):
        ours.linear_cross_entropy(x, w, jnp.array([0, 1]), reduction="meen")
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"IndexError: linear_cross_entropy.*targets\[1\] is 7"):
        jax.block_until_ready(ours.linear_cross_entropy(x, w, jnp.array([0, 7])))
    with pytest.raises(ValueError, match=r"segment_softmax: x has shape \(2, 3\), expected one dimension"):
        ours.segment_softmax(x, jnp.array([0, 3]))
    with pytest.raises(TypeError, match="segment_softmax: indptr has dtype float64, expected integers"):
        ours.segment_softmax(x[0], jnp.array([0.0, 3.0]))
    with pytest.raises(jax.errors.JaxRuntimeError, match="ValueError: segment_softmax: indptr"):
        jax.block_until_ready(ours.segment_softmax(x[0], jnp.array([0, 2])))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"IndexError: cross_entropy.*targets\[1\] is 7"):
        jax.block_until_ready(jax.jit(ours.cross_entropy)(x, jnp.array([0, 7])))


def test_from_several_threads():
    x = logits((50, 30))
    function = jax.jit(jax.grad(lambda x: ours.cross_entropy(x, jnp.zeros(50, jnp.int32))))
    expected, found = function(x), []

    def work():
        with jax.enable_x64(True):  # it holds for one thread
            for _ in range(20):
                found.append(function(x))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    for one in found:
        np.testing.assert_array_equal(one, expected)


def test_without_jax(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    spec = importlib.util.spec_from_file_location("again", ours.__file__)
    with pytest.raises(ImportError, match=r"fastsoftmax.jax needs JAX, which pip install 'fastsoftmax\[jax\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_exit_with_calls_under_way():
    """The interpreter waits for XLA, and XLA for the interpreter's lock."""
    program = "import jax, jax.numpy as jnp; from fastsoftmax.jax import softmax\n"
    program += "kept = [jax.jit(softmax)(jnp.zeros((20000, 500))) for _ in range(5)]"
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr


def test_examples():
    with jax.enable_x64(False):
        assert doctest.testmod(ours).failed == 0
