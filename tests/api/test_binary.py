"""binary_cross_entropy and binary_focal_loss: oracle, differences, autograd, two classes, layouts, errors."""

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings

import fastsoftmax as fs
from fastsoftmax import _spec
from fastsoftmax._vectors import CHUNK
from fastsoftmax.arrays import binary

GAMMAS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
every_gamma = pytest.mark.parametrize("gamma", GAMMAS)
NAMES = tuple(name for name, entry in _spec.FUNCTIONS.items() if entry.is_elementwise)
every_name = pytest.mark.parametrize("name", NAMES)
WITH_OUT = [name for name in NAMES if name.endswith(("_grad", "_diag"))]


def logits(dtype, seed=0):
    """Logits of all sizes: around 0, where probabilities underflow, and the largest that the contract names."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(0, 1, 60), rng.normal(0, 10, 60), rng.uniform(-120, 120, 60), rng.uniform(-760, 760, 40)]
    special = [0.0, -0.0, 100.0, -100.0, 1e4, -1e4, 1e-30, -1e-9, 41.0, -41.6, 87.0, -88.5]
    return np.concatenate([*parts, special, np.negative(special)]).astype(dtype)


def targets(x, kind, seed=1):
    rng = np.random.default_rng(seed)
    t = rng.random(x.size)
    t = {"hard": t < 0.5, "soft": t, "small": t**8 * 1e-3}[kind]
    return t.astype(x.dtype)


def table(function, x, t, *options):
    """The numbers of an oracle's tuple, one column for each."""
    return oracle.rowwise(lambda z, y: np.array(function(z, y, *options), object), x, t)


def sizes(z, t, weight=1, smoothing=0):
    """The sum of the absolute values of the two terms of the gradient, as the difference of gradients."""
    _, of_both, _ = oracle.binary_cross_entropy(z, t, weight, smoothing)
    _, of_none, _ = oracle.binary_cross_entropy(z, t, 0, smoothing)
    return abs(of_none) + abs(of_none - of_both)


def floats(values):
    return np.array([float(abs(v)) for v in np.ravel(values)]).reshape(np.shape(values))


def positive(values):
    return np.where(values == 0, 1.0, values)


@every_dtype
@pytest.mark.parametrize("kind", ["hard", "soft", "small"])
@pytest.mark.parametrize("options", [(1, 0), (3.7, 0), (1, 0.1), (0.25, 1.0)])
def test_cross_entropy_against_the_oracle(dtype, kind, options, record):
    """3 ulp for targets 0 and 1. Gradients are measured by their terms, because they are 0 somewhere."""
    x = logits(dtype)
    t = targets(x, kind)
    weight, smoothing = float(dtype(options[0])), float(dtype(options[1]))
    given_ = {"reduction": "none", "label_smoothing": smoothing}
    if weight != 1:
        given_["pos_weight"] = weight
    loss, gradient = fs.binary_cross_entropy_with_grad(x, t, **given_)
    curve = fs.binary_cross_entropy_hessian_diag(x, t, **given_)
    np.testing.assert_array_equal(fs.binary_cross_entropy(x, t, **given_), loss)
    np.testing.assert_array_equal(fs.binary_cross_entropy_grad(x, t, **given_), gradient)
    expected = table(oracle.binary_cross_entropy, x, t, weight, smoothing)
    bound = 3 if kind == "hard" and smoothing == 0 else 4
    ulps, place = oracle.worst(loss, expected[:, 0])
    record("binary_cross_entropy", dtype, ulps, bound, f"{options}, {x[place]}, {t[place]}")
    scale = floats(oracle.rowwise(sizes, x, t, weight=weight, smoothing=smoothing))
    ulps, place = oracle.worst(gradient, expected[:, 1], positive(scale))
    record("binary_cross_entropy_grad (eps of its terms)", dtype, ulps, 4, f"{options}, {x[place]}, {t[place]}")
    ulps, place = oracle.worst(curve, expected[:, 2])
    record("binary_cross_entropy_hessian_diag", dtype, ulps, 4, f"{options}, {x[place]}, {t[place]}")


@every_dtype
def test_denormal_losses_keep_their_digits(dtype):
    """At -100 the float32 loss of target 0 is below the smallest normal number."""
    deepest = 103.0 if dtype is np.float32 else 744.0
    x = np.linspace(-deepest, -deepest + 20, 64).astype(dtype)
    loss = fs.binary_cross_entropy(x, np.zeros_like(x), reduction="none")
    exact = np.exp(x.astype(np.longdouble))
    least = np.finfo(dtype).smallest_subnormal
    assert (np.abs(loss - exact) <= np.maximum(3 * np.finfo(dtype).eps * exact, least)).all()
    assert (loss > 0).all()


@every_dtype
@every_gamma
@pytest.mark.parametrize("kind", ["hard", "soft", "small"])
def test_focal_against_the_oracle(dtype, gamma, kind, record):
    """An error of 1 u of log(1 - p_t) is multiplied by gamma; derivatives are measured by their terms."""
    x = logits(dtype)
    t = targets(x, kind)
    power = float(dtype(gamma))
    alpha = None if gamma else 0.5  # else the kernel of the cross-entropy computes it
    loss, gradient = fs.binary_focal_loss_with_grad(x, t, gamma=power, alpha=alpha, reduction="none")
    curve = fs.binary_focal_loss_hessian_diag(x, t, gamma=power, alpha=alpha, reduction="none")
    np.testing.assert_array_equal(fs.binary_focal_loss(x, t, gamma=power, alpha=alpha, reduction="none"), loss)
    expected = table(oracle.binary_focal_loss, x, t, power, alpha)
    bound = 4 + (1 if kind == "hard" else 1.5) * gamma
    where = f"gamma = {gamma}, {kind}"
    ulps, place = oracle.worst(loss, expected[:, 0])
    record("binary_focal_loss", dtype, ulps, bound, f"{where}, {x[place]}, {t[place]}")
    for name, found, value, size in (("grad", gradient, 1, 3), ("hessian_diag", curve, 2, 4)):
        ulps, place = oracle.worst(found, expected[:, value], positive(floats(expected[:, size])))
        record(
            f"binary_focal_loss_{name} (eps of its terms)", dtype, ulps, bound, f"{where}, {x[place]}, {t[place]}"
        )


@every_name
def test_derivatives_by_finite_differences(name):
    if not name.endswith(("_loss_grad", "_entropy_grad", "_diag")):
        pytest.skip("no derivative")
    below = name.replace("_grad", "") if name.endswith("_grad") else name.replace("_hessian_diag", "_grad")
    rng = np.random.default_rng(2)
    x, t, h = rng.normal(0, 2, 200), rng.random(200), 1e-5
    options = {"reduction": "none"}
    options |= {"gamma": 1.5, "alpha": 0.3} if "focal" in name else {"pos_weight": 2.5, "label_smoothing": 0.1}
    up, down = (getattr(fs, below)(x + step, t, **options) for step in (h, -h))
    np.testing.assert_allclose(getattr(fs, name)(x, t, **options), (up - down) / (2 * h), atol=1e-9)


@every_dtype
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 100.0])
def test_derivatives_are_finite_everywhere(dtype, gamma):
    """u**(gamma - 1) of the naive formulas is infinite where the loss is 0."""
    x = np.concatenate([np.linspace(-1e4, 1e4, 401), np.linspace(-110, 110, 221), [3e38, -3e38]]).astype(dtype)
    for t in (0, 1, 0.5, 1e-30):
        loss, slope = fs.binary_focal_loss_with_grad(x, np.full_like(x, t), gamma=gamma, reduction="none")
        curve = fs.binary_focal_loss_hessian_diag(x, np.full_like(x, t), gamma=gamma, reduction="none")
        for result in (loss, slope, curve):
            assert np.isfinite(result).all()


@every_dtype
@given(st.data())
@settings(deadline=None, max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck))
def test_two_classes(dtype, data):
    """It is the cross-entropy of the logits (0, z), for labels and for distributions (1 - t, t)."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    spread = data.draw(st.sampled_from([0.1, 1.0, 10.0, 100.0]))
    x = rng.normal(0, spread, data.draw(st.integers(1, 700))).astype(dtype)
    pairs = np.stack([np.zeros_like(x), x], -1)
    labels = rng.integers(0, 2, x.size)
    gamma = data.draw(st.sampled_from(GAMMAS))
    eps = np.finfo(dtype).eps
    loss, slope = fs.binary_cross_entropy_with_grad(x, labels, reduction="none")
    expected, gradient = fs.cross_entropy_with_grad(pairs, labels, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=6 * eps, atol=np.finfo(dtype).tiny)
    np.testing.assert_allclose(slope, gradient[:, 1], rtol=8 * eps, atol=np.finfo(dtype).tiny)
    loss, slope = fs.binary_focal_loss_with_grad(x, labels, gamma=gamma, reduction="none")
    expected, gradient = fs.focal_loss_with_grad(pairs, labels, gamma=gamma, reduction="none")
    rtol = (8 + 2 * gamma) * eps
    np.testing.assert_allclose(loss, expected, rtol=rtol, atol=np.finfo(dtype).tiny)
    np.testing.assert_allclose(slope, gradient[:, 1], rtol=2 * rtol, atol=np.finfo(dtype).tiny)
    t = rng.random(x.size).astype(dtype)
    expected = fs.cross_entropy(pairs, np.stack([1 - t, t], -1), reduction="none")
    np.testing.assert_allclose(fs.binary_cross_entropy(x, t, reduction="none"), expected, rtol=8 * eps)


@every_dtype
@given(st.data())
@settings(deadline=None, max_examples=40, derandomize=True, suppress_health_check=list(HealthCheck))
def test_gamma_0_is_the_cross_entropy_to_the_bit(dtype, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = data.draw(st.sampled_from([(), (1,), (7,), (40, 13), (3, 400, 2)]))
    x, t = rng.normal(0, 4, shape).astype(dtype), rng.random(shape)
    options = {
        "sample_weight": data.draw(st.sampled_from([None, 3.0, rng.random(shape)])),
        "reduction": data.draw(st.sampled_from(["mean", "sum", "none"])),
    }
    for ending in ("", "_grad", "_with_grad", "_hessian_diag"):
        one = getattr(fs, f"binary_focal_loss{ending}")(x, t, gamma=0, **options)
        other = getattr(fs, f"binary_cross_entropy{ending}")(x, t, **options)
        for a, b in (
            zip(np.atleast_1d(*one), np.atleast_1d(*other), strict=True) if "with" in ending else [(one, other)]
        ):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("gamma", [None, 0.0, 0.5, 2.0])
def test_every_option_agrees_with_torch(gamma):
    """Double precision autograd of the functions that PyTorch and torchvision have."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng(5)
    x, t = rng.normal(0, 3, (30, 4)), rng.random((30, 4))
    t[:10] = t[:10] < 0.5
    for weight in (None, rng.random((30, 1)), rng.random((30, 4))):
        for special in (None, 0.3, rng.random(4) + 0.5):
            for reduction in ("mean", "sum", "none"):
                if gamma is not None and np.ndim(special):
                    continue
                z, y = torch.tensor(x, requires_grad=True), torch.tensor(t)
                factor = torch.ones(30, 4, dtype=torch.float64)
                factor = factor if weight is None else factor * torch.tensor(weight)
                plus = None if special is None or gamma is not None else torch.tensor(special, dtype=z.dtype)
                losses = functional.binary_cross_entropy_with_logits(z, y, pos_weight=plus, reduction="none")
                options = {"sample_weight": weight, "reduction": reduction}
                name = "binary_cross_entropy" if gamma is None else "binary_focal_loss"
                if gamma is None:
                    options["pos_weight"] = special
                else:
                    options |= {"gamma": gamma, "alpha": special}
                    p = torch.sigmoid(z)
                    losses = losses * (1 - (p * y + (1 - p) * (1 - y))) ** gamma
                    if special is not None:
                        losses = losses * (special * y + (1 - special) * (1 - y))
                losses = losses * factor
                expected = losses if reduction == "none" else losses.sum()
                if reduction == "mean":
                    expected = expected / factor.sum()
                (slope,) = torch.autograd.grad(expected.sum(), z, create_graph=True)
                (curve,) = torch.autograd.grad(slope.sum(), z)
                loss, gradient = getattr(fs, f"{name}_with_grad")(x, t, **options)
                np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-11, atol=1e-15)
                np.testing.assert_allclose(gradient, slope.detach().numpy(), rtol=1e-9, atol=1e-14)
                second = getattr(fs, f"{name}_hessian_diag")(x, t, **options)
                np.testing.assert_allclose(second, curve.numpy(), rtol=1e-8, atol=1e-13)


# --- weights ----------------------------------------------------------------------------------------------------


@every_name
@every_dtype
def test_weights_broadcast(name, dtype):
    """Bits are those of weights written out."""
    function = getattr(fs, name)
    rng = np.random.default_rng(6)
    x, t = rng.normal(0, 3, (700, 3)).astype(dtype), rng.random((700, 3)).astype(dtype)
    for weight in (2.5, [0.5], rng.random(3), rng.random((700, 1)), rng.random((1, 3)) * 1e30):
        every = np.broadcast_to(np.asarray(weight, dtype), x.shape).copy()
        for option in ("sample_weight", "pos_weight"):
            if option == "pos_weight" and "focal" in name:
                continue
            for reduction in ("mean", "none"):
                one = function(x, t, reduction=reduction, **{option: weight})
                other = function(x, t, reduction=reduction, **{option: every})
                for a, b in zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]:
                    np.testing.assert_array_equal(a, b)


@every_name
@every_dtype
def test_entries_of_weight_0_do_not_leak(name, dtype):
    """Neither their logits nor their targets count, whatever they hold."""
    function = getattr(fs, name)
    rng = np.random.default_rng(7)
    x, t = rng.normal(0, 3, 1000).astype(dtype), rng.random(1000).astype(dtype)
    weight = (rng.random(1000) < 0.8).astype(dtype)
    spoiled, wrong = x.copy(), t.copy()
    spoiled[weight == 0] = rng.choice([np.nan, np.inf, -np.inf, 3.0], np.sum(weight == 0))
    wrong[weight == 0] = rng.choice([np.nan, np.inf, -1.0, 0.5], np.sum(weight == 0))
    for reduction in ("mean", "sum", "none"):
        one = function(x, t, sample_weight=weight, reduction=reduction)
        other = function(spoiled, wrong, sample_weight=weight, reduction=reduction)
        for a, b in zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]:
            np.testing.assert_array_equal(a, b)
            if np.ndim(b):
                np.testing.assert_array_equal(b[weight == 0], 0)


def test_a_positive_weight_of_0():
    """Then entries with target 1 count for nothing but in the divisor."""
    x, t = np.array([np.nan, np.inf, 1.0]), np.array([1, 1, 0])
    loss, gradient = fs.binary_cross_entropy_with_grad(x, t, pos_weight=0)
    assert loss == fs.binary_cross_entropy(1.0, 0) / 3
    np.testing.assert_array_equal(gradient[:2], 0)


@every_dtype
def test_means(dtype):
    x, t = np.array([1.0, -2.0], dtype), np.array([1, 1])
    nothing = fs.binary_cross_entropy_with_grad(x, t, sample_weight=[0, 0])
    assert np.isnan(nothing[0])
    np.testing.assert_array_equal(nothing[1], 0)
    assert np.isnan(fs.binary_cross_entropy(x[:0], t[:0]))
    assert fs.binary_cross_entropy(x[:0], t[:0], reduction="sum") == 0
    weights = np.array([1.0, 3.0], dtype)
    plain = fs.binary_cross_entropy_with_grad(x, t, sample_weight=weights)
    for power in (-100, -60, 60, 100):
        scaled = fs.binary_cross_entropy_with_grad(x, t, sample_weight=weights * dtype(2.0) ** power)
        assert scaled[0] == plain[0]
        np.testing.assert_array_equal(scaled[1], plain[1])
    large = np.array([3e38, 3e38], np.float32)
    assert fs.binary_cross_entropy(large, [0, 0]) == np.float32(3e38)


@every_dtype
def test_heavy_weights_keep_tiny_losses(dtype):
    """The power of two of exp(-z) is applied after the weight."""
    info = np.finfo(dtype)
    z = dtype(1.3 * -np.log(float(info.tiny)))
    weight = dtype(float(info.max) * 0.5)
    exact = np.longdouble(weight) * np.exp(-np.longdouble(z))
    for options in ({"sample_weight": weight}, {"pos_weight": weight}):
        loss, slope = fs.binary_cross_entropy_with_grad(z, 1, reduction="sum", **options)
        np.testing.assert_allclose(np.longdouble(loss), exact, rtol=4 * info.eps)
        np.testing.assert_allclose(np.longdouble(slope), -exact, rtol=4 * info.eps)
        curve = fs.binary_cross_entropy_hessian_diag(z, 1, reduction="sum", **options)
        np.testing.assert_allclose(np.longdouble(curve), exact, rtol=4 * info.eps)
    weight, exact = weight / 1024, exact / 1024  # the products with the parts of the derivatives must not overflow
    loss, slope = fs.binary_focal_loss_with_grad(z / 2, 1, gamma=1, reduction="sum", sample_weight=weight)
    np.testing.assert_allclose(np.longdouble(loss), exact, rtol=8 * info.eps)
    np.testing.assert_allclose(np.longdouble(slope), -2 * exact, rtol=8 * info.eps)
    curve = fs.binary_focal_loss_hessian_diag(z / 2, 1, gamma=1, reduction="sum", sample_weight=weight)
    np.testing.assert_allclose(np.longdouble(curve), 4 * exact, rtol=8 * info.eps)


# --- arrays -----------------------------------------------------------------------------------------------------


def variants(x):
    """The same values in other layouts."""
    large = np.zeros([2 * n for n in x.shape], x.dtype)
    strided = large[tuple(slice(1, None, 2) for _ in x.shape)]
    strided[...] = x
    raw = np.zeros(x.nbytes + 1, np.uint8)
    misaligned = np.frombuffer(raw.data, x.dtype, x.size, 1).reshape(x.shape)
    misaligned[...] = x
    turn = (slice(None, None, -1),) * x.ndim
    frozen = x.copy()
    frozen.flags.writeable = False
    yield from (
        np.asfortranarray(x),
        strided,
        misaligned,
        x[turn].copy()[turn],
        frozen,
        x.astype(x.dtype.newbyteorder()),
    )
    yield np.ascontiguousarray(np.moveaxis(x, 0, -1)).transpose(x.ndim - 1, *range(x.ndim - 1))


@every_name
@every_dtype
@pytest.mark.parametrize("shape", [(5, 7), (37, 3, 41), (1, 9000), (3000, 2)])
def test_layouts(name, dtype, shape):
    """Every layout of either array gives the bits of contiguous ones, and arrays are left as they are."""
    function = getattr(fs, name)
    rng = np.random.default_rng(8)
    x, t, w = rng.normal(0, 3, shape).astype(dtype), rng.random(shape).astype(dtype), rng.random(shape[-1])
    for options in ({}, {"sample_weight": w, "reduction": "none"}):
        expected = function(x, t, **options)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for one, other in ((a, b) for a in (x, *variants(x)) for b in (t, *variants(t))):
            before = one.tobytes(), other.tobytes()
            found = function(one, other, **options)
            for a, b in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype
            assert (one.tobytes(), other.tobytes()) == before


@pytest.mark.parametrize("name", WITH_OUT)
@every_dtype
def test_out(name, dtype):
    """Any layout, in place, over the targets, and shifted over both."""
    function = getattr(fs, name)
    rng = np.random.default_rng(9)
    x, t = rng.normal(0, 3, (90, 31)).astype(dtype), rng.random((90, 31)).astype(dtype)
    result = (lambda found: found[1]) if "with" in name else (lambda found: found)
    expected = result(function(x, t))
    for out in (np.empty_like(x), *(variants(x))):
        if out.flags.writeable and out.dtype == dtype:
            assert result(function(x, t, out=out)) is out
            np.testing.assert_array_equal(out, expected)
    one, other = x.copy(), t.copy()
    np.testing.assert_array_equal(result(function(one, t, out=one)), expected)
    np.testing.assert_array_equal(result(function(x, other, out=other)), expected)
    both = np.zeros((2, 90 * 31 + 5), dtype)
    for first, second, place in ((0, 1, 5), (5, 1, 0), (1, 1, 0), (0, 0, 3)):
        view = [
            row[begin : begin + x.size].reshape(x.shape) for row, begin in zip(both, (first, second), strict=True)
        ]
        view[0][...], view[1][...] = x, t
        target = both[0, place : place + x.size].reshape(x.shape)
        np.testing.assert_array_equal(result(function(*view, out=target)), expected)
    for wrong, kind in (
        (np.empty((90, 30), dtype), ValueError),
        (np.empty((90, 31), np.float16), TypeError),
        (expected.tolist(), TypeError),
    ):
        with pytest.raises(kind, match=f"{name}: out"):
            function(x, t, out=wrong)


@every_name
def test_dtypes(name):
    function = getattr(fs, name)
    first = lambda found: found[-1] if isinstance(found, tuple) else found  # noqa: E731
    t = np.array([True, False, True])
    for kind, expected in (
        (np.float16, np.float16),
        (np.int8, np.float64),
        (bool, np.float64),
        (np.uint64, np.float64),
    ):
        x = np.array([1, 0, 3]).astype(kind)
        assert first(function(x, t)).dtype == expected
        computed = x.astype(np.float32 if kind is np.float16 else np.float64)
        np.testing.assert_array_equal(
            first(function(x, t, reduction="none")),
            first(function(computed, t, reduction="none")).astype(expected),
        )
    x = np.array([0.5, -1.0, 2.0])
    for kind in (np.int64, np.uint8, np.float16, np.float32, np.float64, ">f8"):
        np.testing.assert_array_equal(first(function(x, t.astype(kind))), first(function(x, t)))
    assert isinstance(first(function(0.5, 1, reduction="none")), np.float64)
    assert first(function(np.float32(0.5), 1)).dtype == np.float32
    assert first(function([[1, 2]], [[0, 1]], reduction="none")).shape == (1, 2)
    for wrong in (np.array([1j]), np.array(["a"]), np.array([None]), np.ma.masked_array([1.0])):
        with pytest.raises(TypeError, match=f"{name}: logits"):
            function(wrong, [1])
        with pytest.raises(TypeError, match=f"{name}: targets"):
            function([1.0], wrong)


@every_name
def test_infinities_and_nan(name):
    """No warning; NaN stays where it is; the loss of an impossible target is inf."""
    function = getattr(fs, name)
    x = np.array([np.inf, -np.inf, np.nan, np.inf, -np.inf, 1.0])
    t = np.array([1, 0, 1, 0, 1, 1])
    found = function(x, t, reduction="none")
    loss, derivative = found if isinstance(found, tuple) else (found, found)
    kind = "loss" if name in ("binary_cross_entropy", "binary_focal_loss") or isinstance(found, tuple) else ""
    assert np.isnan(derivative[2])
    assert np.isfinite(derivative[[0, 1, 5]]).all()
    if kind:
        np.testing.assert_array_equal(loss[[0, 1]], 0)
        np.testing.assert_array_equal(loss[[3, 4]], np.inf)
    if name == "binary_cross_entropy_grad":
        np.testing.assert_array_equal(derivative[[0, 1, 3, 4]], [0, 0, 1, -1])
    if name == "binary_cross_entropy_hessian_diag":
        np.testing.assert_array_equal(derivative[[0, 1, 3, 4]], 0)
    if name == "binary_cross_entropy":
        assert np.isnan(function(x, t))
        assert function(x[3:], t[3:]) == np.inf


@every_name
def test_chunks_and_threads(name):
    """Sizes around a chunk, and any number of threads: an entry has the bits that it has alone."""
    function = getattr(fs, name)
    rng = np.random.default_rng(10)
    x, t = rng.normal(0, 3, 3 * CHUNK + 5).astype(np.float32), rng.random(3 * CHUNK + 5).astype(np.float32)
    whole = function(x, t, reduction="none")
    whole = whole if isinstance(whole, tuple) else (whole,)
    for count in (1, 2, 15, 16, 17, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK):
        found = function(x[5 : 5 + count], t[5 : 5 + count], reduction="none")
        for a, b in zip(found if isinstance(found, tuple) else (found,), whole, strict=True):
            np.testing.assert_array_equal(a, b[5 : 5 + count])
    x, t = rng.normal(0, 3, (1000, 2001)).astype(np.float32), rng.random((1000, 2001)) < 0.5
    for one in (x, x[:, ::-1], np.asfortranarray(x)):
        several = function(one, t)
        with fs.threads(1):
            alone = function(one, t)
        for a, b in (
            zip(np.atleast_1d(several), np.atleast_1d(alone), strict=True)
            if not isinstance(several, tuple)
            else zip(several, alone, strict=True)
        ):
            np.testing.assert_array_equal(a, b)


def test_the_sum_of_many_losses_is_exact():
    """Each chunk is added in twice the precision of float64."""
    x = np.full(3_000_001, -3.0, np.float32)
    x[::2] = 5.0
    losses = fs.binary_cross_entropy(x, np.zeros(x.size, bool), reduction="none").astype(np.longdouble)
    assert fs.binary_cross_entropy(x, np.zeros(x.size, bool), reduction="sum") == np.float32(losses.sum())
    assert fs.binary_cross_entropy(x, np.zeros(x.size, bool)) == np.float32(losses.sum() / x.size)


@pytest.mark.parametrize("layout", ["strided", "float16", "broadcast weights", "out"])
def test_temporary_memory(layout):
    """Whatever has to be converted is converted in parts: at most 4 MB for each thread."""
    import tracemalloc

    x = np.zeros((2000, 2000), np.float32)
    options = {"sample_weight": np.ones((2000, 1))} if layout == "broadcast weights" else {}
    if layout == "strided":
        x = x[::2, ::2]
    if layout == "float16":
        x = x.astype(np.float16)
    t = np.zeros(x.shape, np.uint8)
    out = np.empty((x.shape[1], x.shape[0]), x.dtype).T if layout == "out" else np.empty(x.shape, x.dtype)
    with fs.threads(1):
        fs.binary_cross_entropy_with_grad(x, t, out=out, **options)
        tracemalloc.start()
        fs.binary_cross_entropy_with_grad(x, t, out=out, **options)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 << 20


# --- errors -----------------------------------------------------------------------------------------------------


@every_name
@pytest.mark.parametrize("wrong", [-1e-9, 1.0000001, np.nan, np.inf])
def test_targets_are_from_0_to_1(name, wrong):
    """Before anything is written; the place is that of the user's array in any layout."""
    function = getattr(fs, name)
    x, t = np.zeros((700, 3)), np.zeros((700, 3))
    t[600, 1], t[600, 2] = wrong, 7
    for one in (x, np.asfortranarray(x)):
        with pytest.raises(ValueError, match=rf"{name}: targets\[600, .\] is .*, expected a number from 0 to 1"):
            function(one, t)
    with pytest.raises(ValueError, match=rf"{name}: targets\[600, 1\] is"):
        function(x, t)
    if name in WITH_OUT:
        out = np.full((700, 3), 5.0)
        with pytest.raises(ValueError, match=rf"{name}: targets\[600, 1\]"):
            function(x, t, out=out)
        assert (out == 5).all()
    with pytest.raises(ValueError, match=rf"{name}: targets\[2\] is -1"):
        function(np.zeros(3), [0, 1, -1])


@every_name
def test_errors(name):
    function = getattr(fs, name)
    x, t = np.zeros((2, 3)), np.zeros((2, 3))
    cases = [
        ((x, t[0]), {}, ValueError, r"targets has shape \(3,\), expected that of logits, \(2, 3\)"),
        ((x, t), {"reduction": "avg"}, ValueError, "reduction must be one of"),
        ((x, t), {"sample_weight": np.ones(2)}, ValueError, r"sample_weight of shape \(2,\) does not broadcast"),
        ((x, t), {"sample_weight": np.ones((4, 2, 3))}, ValueError, "sample_weight of shape"),
        ((x, t), {"sample_weight": "a"}, TypeError, "sample_weight has dtype"),
    ]
    if "focal" in name:
        cases += [
            ((x, t), {"gamma": -0.1}, ValueError, "gamma must be finite and >= 0"),
            ((x, t), {"alpha": 1.5}, ValueError, "alpha must be at most 1"),
            ((x, t), {"alpha": -1}, ValueError, "alpha must be finite and >= 0"),
            ((x, t), {"alpha": "a"}, TypeError, "alpha must be a number"),
        ]
    else:
        cases += [
            ((x, t), {"label_smoothing": 1.1}, ValueError, "label_smoothing must be at most 1"),
            ((x, t), {"pos_weight": np.ones(2)}, ValueError, "pos_weight of shape"),
        ]
    for arguments, options, kind, words in cases:
        with pytest.raises(kind, match=f"{name}: {words}"):
            function(*arguments, **options)


@every_name
@every_dtype
@pytest.mark.parametrize("shape", [(), (1,), (5, 7), (CHUNK,), (3, CHUNK), (65_536,), (65_537,)])
def test_small_calls_give_the_bits_of_the_general_way(name, dtype, shape, monkeypatch):
    """Also the errors; and the short way is taken for plain arrays up to a limit."""
    function = getattr(fs, name)
    rng = np.random.default_rng(11)
    x, t = np.asarray(rng.normal(0, 3, shape), dtype), np.asarray(rng.random(shape), dtype)
    function(x, t)
    found = [function(x, t)]
    if "focal" in name:
        found += [function(x, t, gamma=0.0), function(x, t, gamma=1e-60)]
    with pytest.raises(ValueError, match="expected a number from 0 to 1"):
        function(x, t + dtype(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binary, "Entries", None)
        if x.size <= 65_536:
            function(x, t)
        else:
            with pytest.raises(TypeError, match="NoneType"):
                function(x, t)
    monkeypatch.setattr(binary, "_SMALL", {})
    expected = [function(x, t)]
    if "focal" in name:
        monkeypatch.setattr(binary, "_SMALL", {})
        expected.append(function(x, t, gamma=0.0))
        monkeypatch.setattr(binary, "_SMALL", {})
        expected.append(function(x, t, gamma=1e-60))
    for one, other in zip(found, expected, strict=True):
        pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
        for a, b in pairs:
            np.testing.assert_array_equal(a, b)
            assert type(a) is type(b)


@pytest.mark.parametrize("name", WITH_OUT)
@every_dtype
@pytest.mark.parametrize("shape", [(1,), (5, 7), (2, 3, 4), (CHUNK,), (CHUNK + 1,), (3, CHUNK)])
def test_small_calls_with_out(name, dtype, shape):
    """They take the short way, too, of which one chunk needs no array for its sums."""
    function, rng = getattr(fs, name), np.random.default_rng(13)
    x, t = np.asarray(rng.normal(0, 3, shape), dtype), np.asarray(rng.random(shape), dtype)
    expected = function(x, t)
    out, place = np.empty_like(x), x.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binary, "Entries", None)
        if x.size <= CHUNK:
            patch.setattr(binary, "is_plain", None)
        found = function(x, t, out=out), function(place, t, out=place)
    for one, array in zip(found, (out, place), strict=True):
        pairs = zip(one, expected, strict=True) if isinstance(one, tuple) else [(one, expected)]
        for a, b in pairs:
            np.testing.assert_array_equal(a, b)
        assert (one[1] if isinstance(one, tuple) else one) is array


@pytest.mark.parametrize("name", WITH_OUT)
@pytest.mark.parametrize("count", [6, CHUNK + 1])
def test_small_calls_leave_out_alone_if_an_argument_is_wrong(name, count):
    function = getattr(fs, name)
    x, t, out = np.zeros(count), np.full(count, 0.5), np.full(count, 7.0)
    read_only = out.view()
    read_only.flags.writeable = False
    for _ in range(3):
        function(x, t)
        for wrong in (1.5, -1e-9, np.nan, np.inf):
            targets = t.copy()
            targets[count - 1] = wrong
            with pytest.raises(ValueError, match=rf"targets\[{count - 1}\] is .*, expected a number from 0 to 1"):
                function(x, targets, out=out)
        for one, error, words in (
            (read_only, ValueError, "out is read-only"),
            (out[1:], ValueError, "out has shape"),
            (out.reshape(1, -1), ValueError, "out has shape"),
            (out.astype(np.float32), TypeError, "out has dtype float32"),
            (out.tolist(), TypeError, "out must be a numpy.ndarray, got list"),
        ):
            with pytest.raises(error, match=words):
                function(x, t, out=one)
        assert (out == 7).all()


@pytest.mark.parametrize("name", WITH_OUT)
def test_small_outputs_that_share_memory(name):
    """With logits or targets, at the same place and beside it."""
    function, rng = getattr(fs, name), np.random.default_rng(17)
    x, t = rng.normal(0, 3, 9), rng.random(9)

    def slope(found):
        return found[1] if isinstance(found, tuple) else found

    expected = slope(function(x, t))
    for source in range(2):
        for shift in (0, 1, 8, 9):
            memory = np.zeros(18)
            given = [x.copy(), t.copy()]
            view, out = memory[:9], memory[shift:][:9]
            view[:], given[source] = given[source], view
            np.testing.assert_array_equal(slope(function(*given, out=out)), expected)
            np.testing.assert_array_equal(out, expected)
    strided = np.empty(18)[::2]
    np.testing.assert_array_equal(slope(function(x, t, out=strided)), expected)


def test_what_is_converted_is_as_documented():
    """The branch for arrays that a kernel takes as they are does not allocate parts."""
    x, t = np.zeros(40_000, np.float32), np.zeros(40_000, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binary, "_run_converting", None)
        fs.binary_cross_entropy_grad(x, t)
        with pytest.raises(TypeError, match="NoneType"):
            fs.binary_cross_entropy_grad(x, t.astype(np.float64))
