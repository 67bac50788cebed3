"""focal_loss: oracle, finite difference, torch's autograd, the limits of gamma and p, and the cross-entropy."""

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings

import fastsoftmax as fs
from fastsoftmax._vectors import ON_STACK
from fastsoftmax.arrays import losses

GAMMAS = (0.1, 0.5, 1.0, 2.0, 5.0)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
every_gamma = pytest.mark.parametrize("gamma", GAMMAS)


def bound(gamma):
    """4 ulp of the cross-entropy's parts, and gamma times the 1 u of log(1 - p)."""
    return 4 + gamma


def rows(dtype, classes, seed=0):
    """Rows of all spreads, some of them confident in their label, with labels."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(0, spread, (6, classes)) for spread in (0.1, 1.0, 10.0, 100.0)])
    x[0, 0] += 50.0
    x[6, 0] += 15.0
    x[12] *= 100.0
    labels = rng.integers(0, classes, len(x))
    labels[::2] = x[::2].argmax(-1)
    return x.astype(dtype), labels


def floats(values):
    return np.array([float(abs(v)) for v in np.ravel(values)]).reshape(np.shape(values))


@every_dtype
@every_gamma
@pytest.mark.parametrize("classes", [2, 3, 10, 17, 64, 65, 200])
def test_against_the_oracle(dtype, classes, gamma, record):
    """Both walks; labels that are the greatest class by far, by little, and not at all."""
    x, labels = rows(dtype, classes)
    power = float(dtype(gamma))
    loss, gradient = fs.focal_loss_with_grad(x, labels, gamma=power, reduction="none")
    curve = fs.focal_loss_hessian_diag(x, labels, gamma=power, reduction="none")
    np.testing.assert_array_equal(fs.focal_loss(x, labels, gamma=power, reduction="none"), loss)
    np.testing.assert_array_equal(fs.focal_loss_grad(x, labels, gamma=power, reduction="none"), gradient)
    detail = f"K = {classes}, gamma = {gamma}"
    ulps, place = oracle.worst(loss, oracle.rowwise(oracle.focal_loss, x, labels, gamma=power))
    record("focal_loss", dtype, ulps, bound(gamma), f"{detail}, {place}")
    ulps, place = oracle.worst(gradient, oracle.rowwise(oracle.focal_loss_grad, x, labels, gamma=power))
    record("focal_loss_grad", dtype, ulps, bound(gamma), f"{detail}, {place}")
    # The second derivative changes its sign, so that its terms cancel somewhere.
    reference = oracle.rowwise(oracle.focal_loss_hessian_diag, x, labels, gamma=power)
    scale = floats(oracle.rowwise(oracle.focal_loss_hessian_size, x, labels, gamma=power))
    ulps, place = oracle.worst(curve, reference, np.where(scale == 0, 1.0, scale))
    record("focal_loss_hessian_diag (eps of its terms)", dtype, ulps, bound(gamma), f"{detail}, {place}")


@every_gamma
@pytest.mark.parametrize("classes", [2, 5, 70])
def test_derivatives_by_finite_differences(classes, gamma):
    """Central differences of the loss, and of the gradient; their error is about h**2 and eps/h."""
    x = np.random.default_rng(1).normal(0, 2, (8, classes))
    labels = np.random.default_rng(2).integers(0, classes, 8)
    options = {"gamma": gamma, "reduction": "none"}
    h = 1e-5
    gradient = fs.focal_loss_grad(x, labels, **options)
    curve = fs.focal_loss_hessian_diag(x, labels, **options)
    for k in range(classes):
        up, down = x.copy(), x.copy()
        up[:, k] += h
        down[:, k] -= h
        slope = (fs.focal_loss(up, labels, **options) - fs.focal_loss(down, labels, **options)) / (2 * h)
        np.testing.assert_allclose(gradient[:, k], slope, atol=1e-9)
        bend = fs.focal_loss_grad(up, labels, **options) - fs.focal_loss_grad(down, labels, **options)
        np.testing.assert_allclose(curve[:, k], bend[:, k] / (2 * h), atol=1e-8)


@every_dtype
@pytest.mark.parametrize("classes", [1, 3, 64, 300])
@pytest.mark.parametrize("axis", [-1, 0])
def test_gamma_0_is_the_cross_entropy_to_the_bit(dtype, classes, axis):
    rng = np.random.default_rng(3)
    x = rng.normal(0, 5, (50, classes)).astype(dtype)
    labels = rng.integers(-1, classes, 50)
    options = {
        "class_weight": rng.random(classes),
        "sample_weight": rng.random(50) * 1e9,
        "ignore_index": -1,
        "axis": axis,
    }
    x = x if axis == -1 else np.ascontiguousarray(x.T)
    for chosen in ({"axis": axis}, options):
        targets = labels if chosen is options else np.abs(labels) % classes
        for one, other in (
            (fs.focal_loss, fs.cross_entropy),
            (fs.focal_loss_grad, fs.cross_entropy_grad),
            (fs.focal_loss_with_grad, fs.cross_entropy_with_grad),
            (fs.focal_loss_hessian_diag, fs.cross_entropy_hessian_diag),
        ):
            found, expected = one(x, targets, gamma=0, **chosen), other(x, targets, **chosen)
            pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
            for a, b in pairs:
                np.testing.assert_array_equal(a, b)


@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("gamma", [0, 0.0, 2, 0.5, 1e-30, 300.0])
def test_small_calls_have_the_bits_of_other_calls(dtype, reduction, gamma):
    """They take a shorter way from the second call on, also with more rows than it has memory for."""
    options = {"gamma": gamma, "reduction": reduction}
    for count in (1, 7, ON_STACK, ON_STACK + 1):
        x, y = np.random.default_rng(count).normal(0, 3, (count, 3)).astype(dtype), np.arange(count) % 3
        grad, out = np.empty_like(x), np.empty_like(x)
        loss, _ = fs.focal_loss_with_grad(x, y.astype(np.int32), **options, out=grad)
        fs.focal_loss(x, y.astype(np.int32), **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(losses, "loss_rows", None)
            found = fs.focal_loss(x, y, **options)
            assert type(found) is type(loss)
            both = fs.focal_loss_with_grad(x, y, **options)
            assert fs.focal_loss_grad(x, y, **options, out=out) is out
            place = x.copy()
            assert fs.focal_loss_grad(place, y, **options, out=place) is place
        for one in (found, both[0]):
            np.testing.assert_array_equal(one, loss)
        for one in (both[1], out, place):
            np.testing.assert_array_equal(one, grad)


def test_gammas_that_a_dtype_does_not_hold():
    """float32 has 0 for such a gamma, and small calls have the bits of the cross-entropy then, too."""
    x, y = np.random.default_rng(1).normal(0, 3, (4, 5)).astype(np.float32), np.arange(4)
    for _ in range(3):
        assert fs.focal_loss(x, y, gamma=1e-60) == fs.cross_entropy(x, y)
        assert fs.focal_loss(x, y, gamma=2.0) != fs.cross_entropy(x, y)
        with pytest.raises(ValueError, match="gamma must be finite and >= 0, got -1e-60"):
            fs.focal_loss(x, y, gamma=-1e-60)
        with pytest.raises(ValueError, match="gamma must be finite and >= 0, got nan"):
            fs.focal_loss(x, y, gamma=float("nan"))


def test_small_calls_leave_out_alone_if_an_argument_is_wrong():
    x, y, out = np.zeros((3, 4)), np.array([0, 3, 1]), np.full((3, 4), 7.0)
    read_only = out.view()
    read_only.flags.writeable = False
    for _ in range(3):
        fs.focal_loss_grad(x, y)
        with pytest.raises(IndexError, match=r"labels\[2\] is 4, expected a label from 0 to 3"):
            fs.focal_loss_grad(x, np.array([0, 3, 4]), out=out)
        with pytest.raises(ValueError, match="read-only"):
            fs.focal_loss_grad(x, y, out=read_only)
        with pytest.raises(TypeError, match="out has dtype float32, expected float64"):
            fs.focal_loss_grad(x, y, out=np.empty((3, 4), np.float32))
        with pytest.raises(TypeError, match=r"focal_loss: labels of shape \(3,\) are class indices"):
            fs.focal_loss(x, np.zeros(3))
        assert (out == 7).all()


@every_dtype
@pytest.mark.parametrize("gamma", [0, *GAMMAS, 0.01, 100.0])
@pytest.mark.parametrize("classes", [2, 5, 80])
def test_derivatives_are_finite_everywhere(dtype, gamma, classes):
    """For p = 1 the naive formulas have 0**(gamma - 1). Here p is also 0, denormal, and anything between."""
    gaps = np.concatenate([np.linspace(0, 1e4, 60), np.linspace(80, 110, 40), np.linspace(700, 760, 40)])
    x = np.zeros((2 * len(gaps), classes), dtype)
    x[: len(gaps), 0], x[len(gaps) :, 0] = gaps, -gaps
    labels = np.zeros(len(x), np.int64)
    loss, gradient = fs.focal_loss_with_grad(x, labels, gamma=gamma, reduction="none")
    curve = fs.focal_loss_hessian_diag(x, labels, gamma=gamma, reduction="none")
    for result in (loss, gradient, curve):
        assert np.isfinite(result).all()
    assert (loss >= 0).all()
    assert (gradient[:, 0] <= 0).all()
    assert (gradient[:, 1:] >= 0).all()


@pytest.mark.parametrize("classes", [3, 100])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_every_option_agrees_with_torch(classes, gamma):
    """Double precision autograd of the textbook formula; the tolerance is that of its 1 - p."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    x, labels = rng.normal(0, 2, (30, classes)), rng.integers(0, classes, 30)
    class_weight, sample_weight = rng.random(classes) + 0.1, rng.random(30)
    for weights in ((None, None), (class_weight, None), (None, sample_weight), (class_weight, sample_weight)):
        for ignored in (None, int(labels[0])):
            for reduction in ("mean", "sum", "none"):
                z = torch.tensor(x, requires_grad=True)
                log_p = torch.log_softmax(z, -1)[torch.arange(30), torch.tensor(labels)]
                factor = torch.ones(30, dtype=torch.float64)
                if weights[0] is not None:
                    factor = factor * torch.tensor(class_weight)[torch.tensor(labels)]
                if weights[1] is not None:
                    factor = factor * torch.tensor(sample_weight)
                if ignored is not None:
                    factor = factor * torch.tensor(labels != ignored)
                losses = -factor * (1 - log_p.exp()) ** gamma * log_p
                expected = losses if reduction == "none" else losses.sum()
                if reduction == "mean":
                    expected = expected / factor.sum()
                expected.sum().backward()
                loss, gradient = fs.focal_loss_with_grad(
                    x,
                    labels,
                    gamma=gamma,
                    class_weight=weights[0],
                    sample_weight=weights[1],
                    ignore_index=ignored,
                    reduction=reduction,
                )
                np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-12, atol=1e-15)
                np.testing.assert_allclose(gradient, z.grad.numpy(), rtol=1e-10, atol=1e-15)


@every_dtype
@pytest.mark.parametrize("classes", [4, 90])
def test_what_does_not_count_does_not_leak(dtype, classes):
    rng = np.random.default_rng(6)
    x, labels = rng.normal(0, 2, (6, classes)).astype(dtype), rng.integers(0, classes, 6)
    clean = [fs.focal_loss_with_grad(x[2:], labels[2:]), fs.focal_loss_hessian_diag(x[2:], labels[2:])]
    spoiled, marked = x.copy(), labels.copy()
    spoiled[0], spoiled[1, ::2], spoiled[1, 1] = np.nan, np.inf, np.nan
    marked[:2] = -7
    for options in ({"ignore_index": -7}, {"sample_weight": np.array([0.0, 0, 1, 1, 1, 1])}):
        targets = marked if "ignore_index" in options else labels
        loss, gradient = fs.focal_loss_with_grad(spoiled, targets, **options)
        curve = fs.focal_loss_hessian_diag(spoiled, targets, **options)
        assert loss == clean[0][0]
        np.testing.assert_array_equal(gradient[:2], 0)
        np.testing.assert_array_equal(curve[:2], 0)
        np.testing.assert_array_equal(gradient[2:], clean[0][1])
        np.testing.assert_allclose(curve[2:], clean[1], rtol=4 * np.finfo(dtype).eps)
    assert np.isnan(fs.focal_loss_grad(spoiled, labels)[:2]).all()
    nothing = np.full(6, -7)
    assert np.isnan(fs.focal_loss(spoiled, nothing, ignore_index=-7))
    assert fs.focal_loss(spoiled, nothing, ignore_index=-7, reduction="sum") == 0
    np.testing.assert_array_equal(fs.focal_loss_grad(spoiled, nothing, ignore_index=-7), 0)


def test_a_label_with_probability_0():
    """p log p is 0 there, so that the gradient is that of the cross-entropy: all weight on the label."""
    x = np.array([[-np.inf, 0.0, 0.0]])
    loss, gradient = fs.focal_loss_with_grad(x, [0], gamma=2.0)
    assert loss == np.inf
    np.testing.assert_allclose(gradient, [[-1, 0.5, 0.5]])
    np.testing.assert_allclose(fs.focal_loss_hessian_diag(x, [0]), [[0, 0.25, 0.25]], atol=1e-16)


@every_dtype
def test_heavy_weights_keep_tiny_losses(dtype):
    """A weight lifts what is below the smallest normal number: q**gamma L is multiplied before it is flushed."""
    gap = float(dtype(0.55 * -np.log(float(np.finfo(dtype).tiny))))
    heavy = float(np.finfo(dtype).max) ** 0.5
    x = np.array([[gap, 0.0]], dtype)
    loss, gradient = fs.focal_loss_with_grad(x, [0], gamma=1.0, sample_weight=[heavy], reduction="sum")
    q = np.exp(np.longdouble(-gap)) / (1 + np.exp(np.longdouble(-gap)))
    expected = np.longdouble(heavy) * q * -np.log1p(-q)
    np.testing.assert_allclose(np.longdouble(loss), expected, rtol=20 * np.finfo(dtype).eps)
    np.testing.assert_allclose(
        gradient.astype(np.longdouble), [[-2 * expected, 2 * expected]], rtol=20 * np.finfo(dtype).eps
    )


@given(st.data())
@settings(deadline=None, max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_row_is_independent_of_all_others(data):
    """Shift invariance in exact shifts, permutations of rows and of classes, and one row alone."""
    classes = data.draw(st.sampled_from([2, 5, 17, 64, 65, 130]))
    count = data.draw(st.integers(1, 40))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(0, 4, (count, classes)), rng.integers(0, classes, count)
    gamma = data.draw(st.sampled_from(GAMMAS))
    loss, gradient = fs.focal_loss_with_grad(x, labels, gamma=gamma, reduction="none")
    curve = fs.focal_loss_hessian_diag(x, labels, gamma=gamma, reduction="none")
    row = data.draw(st.integers(0, count - 1))
    alone = fs.focal_loss_with_grad(x[row], labels[row], gamma=gamma, reduction="none")
    assert alone[0] == loss[row]
    np.testing.assert_array_equal(alone[1], gradient[row])
    np.testing.assert_array_equal(
        fs.focal_loss_hessian_diag(x[row], labels[row], gamma=gamma, reduction="none"), curve[row]
    )
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-13)


def test_threads_and_long_rows_give_the_same_bits():
    rng = np.random.default_rng(8)
    for shape in ((30000, 40), (300, 4000)):
        x, labels = rng.normal(0, 3, shape).astype(np.float32), rng.integers(0, shape[1], shape[0])
        loss, gradient = fs.focal_loss_with_grad(x, labels)
        curve = fs.focal_loss_hessian_diag(x, labels)
        with fs.threads(1):
            again, slope = fs.focal_loss_with_grad(x, labels)
            assert loss == again
            np.testing.assert_array_equal(gradient, slope)
            np.testing.assert_array_equal(curve, fs.focal_loss_hessian_diag(x, labels))


def test_dask():
    da = pytest.importorskip("dask.array")
    rng = np.random.default_rng(9)
    x, labels = rng.normal(0, 3, (40, 12)), rng.integers(-1, 12, 40)
    weights = rng.random(40)
    options = {"gamma": 1.5, "sample_weight": weights, "ignore_index": -1}
    for chunks in ((7, 12), (7, 5)):
        lazy = da.from_array(x, chunks=chunks), da.from_array(labels, chunks=11)
        found = fs.focal_loss_with_grad(*lazy, **options)
        expected = fs.focal_loss_with_grad(x, labels, **options)
        assert found[0].compute(scheduler="synchronous") == expected[0]
        np.testing.assert_array_equal(found[1].compute(scheduler="synchronous"), expected[1])
        curve = fs.focal_loss_hessian_diag(*lazy, **options).compute(scheduler="synchronous")
        np.testing.assert_array_equal(curve, fs.focal_loss_hessian_diag(x, labels, **options))
    wrong = da.from_array(np.where(np.arange(40) == 3, 99, 0), chunks=10)
    lazy = fs.focal_loss(da.from_array(x, chunks=(10, 12)), wrong)
    with pytest.raises(IndexError, match=r"focal_loss: labels\[3\] is 99"):
        lazy.compute(scheduler="synchronous")


def test_errors():
    x, labels = np.zeros((3, 4)), np.array([0, 1, 2])
    for gamma, kind in ((-1, ValueError), (np.inf, ValueError), (np.nan, ValueError), ("2", TypeError)):
        out = np.full((3, 4), 7.0)
        with pytest.raises(kind, match="focal_loss_grad: gamma must be"):
            fs.focal_loss_grad(x, labels, gamma=gamma, out=out)
        assert (out == 7).all()
    with pytest.raises(
        TypeError, match=r"focal_loss: labels of shape \(3,\) are class indices and have dtype float64"
    ):
        fs.focal_loss(x, labels * 1.0)
    with pytest.raises(
        ValueError, match=r"focal_loss: labels has shape \(3, 4\), expected \(3,\) \(class indices\)"
    ):
        fs.focal_loss(x, x)
    with pytest.raises(
        IndexError, match=r"focal_loss_hessian_diag: labels\[1\] is 4, expected a label from 0 to 3"
    ):
        fs.focal_loss_hessian_diag(x, [0, 4, 0])
