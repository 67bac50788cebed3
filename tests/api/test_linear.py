"""linear_cross_entropy: the loss of features @ weight.T + bias without its logits, and its gradients."""

import itertools
import sys
import tracemalloc

import child
import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax.arrays import linear, linear_hessian
from fastsoftmax.arrays.linear import LinearGradients
from fastsoftmax.arrays.linear_hessian import joint_product, row_products
from fastsoftmax.arrays.options import LossOptions

EPS = np.finfo(np.float64).eps
SHAPES = {
    "small": (9, 5, 7),
    "one block": (40, 6, 300),
    "blocks": (100, 8, 70),
    "batch": ((3, 4), 5, 11),
    "many": ((3, 4), 5, 40),
    "wide": (40, 9, 6),
}


def problem(shape, dtype=np.float64, seed=0):
    rows, width, classes = shape
    rng = np.random.default_rng(seed)
    rows = rows if isinstance(rows, tuple) else (rows,)
    features, weight = rng.normal(size=(*rows, width)), rng.normal(size=(classes, width))
    return features.astype(dtype), weight.astype(dtype), rng.integers(0, classes, rows), rng.normal(size=classes)


def dense(features, weight, targets, bias=None, **options):
    """Loss and gradients by the definition, in float64."""
    x, w = (np.asarray(a).astype(np.float64) for a in (features, weight))
    z = x @ w.T if bias is None else x @ w.T + np.asarray(bias).astype(np.float64)
    loss, slope = fs.cross_entropy_with_grad(z, targets, **options)
    flat = slope.reshape(-1, len(w))
    return loss, slope @ w, flat.T @ x.reshape(-1, x.shape[-1]), flat.sum(0)


def near(actual, expected, tolerance):
    """Whether the errors are within the tolerance, relative to the largest entry."""
    expected = np.asarray(expected)
    actual = np.asarray(actual).astype(np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max(initial=0) <= tolerance * np.abs(expected).max(initial=1e-300)


OPTIONS = {
    "with_bias": (False, True),
    "weighted": (False, True),
    "sampled": (False, True),
    "ignored": (False, True),
    "smoothing": (0.0, 0.1),
    "z_loss": (0.0, 1e-2),
    "softcap": (None, 3.0),
    "reduction": ("mean", "sum", "none"),
}


def grid():
    for values in itertools.product(*OPTIONS.values()):
        yield dict(zip(OPTIONS, values, strict=True))


def arguments(case, shape):
    features, weight, targets, bias = problem(shape)
    rng = np.random.default_rng(1)
    options = {"label_smoothing": case["smoothing"], "reduction": case["reduction"]}
    options |= {"z_loss": case["z_loss"], "softcap": case["softcap"]}
    if case["weighted"]:
        options["class_weight"] = rng.uniform(0.2, 2, len(weight))
    if case["sampled"]:
        options["sample_weight"] = rng.uniform(0.2, 2, targets.shape) * (rng.random(targets.shape) < 0.8)
    if case["ignored"]:
        targets = np.where(rng.random(targets.shape) < 0.3, -100, targets)
        options["ignore_index"] = -100
    return (features, weight, targets), bias if case["with_bias"] else None, options


@pytest.mark.parametrize("shape", SHAPES)
def test_every_option(shape):
    """Loss and gradients with all combinations of options, in blocks of 16 rows, are those of dense logits."""
    shape = SHAPES[shape]
    block_bytes = 16 * shape[2] * 8
    for case in grid():
        operands, bias, options = arguments(case, shape)
        expected = dense(*operands, bias, **options)
        loss, gradients = fs.linear_cross_entropy_with_grad(*operands, bias, block_bytes=block_bytes, **options)
        near(loss, expected[0], 100 * EPS)
        near(gradients.features, expected[1], 100 * EPS)
        near(gradients.weight, expected[2], 100 * EPS)
        if bias is None:
            assert gradients.bias is None
        else:
            near(gradients.bias, expected[3], 100 * EPS)
        assert gradients.weight.flags.c_contiguous
        alone = fs.linear_cross_entropy(*operands, bias, block_bytes=block_bytes, **options)
        np.testing.assert_array_equal(alone, loss)


CUT = {"all rows": ("blocks", 4, 1600), "blocks of rows": ("blocks", 32, 1600), "batch": ("many", 4, 48)}
"""Shapes whose classes are cut: {case: (shape, `FEW_CLASSES`, numbers in the workspace)}."""


@pytest.fixture
def extents(monkeypatch):
    """The rows and classes of the blocks of all calls with cut classes."""
    seen = []
    original = linear._in_blocks_of_classes
    monkeypatch.setattr(linear, "_in_blocks_of_classes", lambda *a: seen.append(a[1]) or original(*a))
    return seen


@pytest.mark.parametrize("case", CUT)
def test_every_option_in_blocks_of_classes(case, monkeypatch, extents):
    """Where the classes are cut, with all combinations of options."""
    name, few, numbers = CUT[case]
    shape, several = SHAPES[name], case == "blocks of rows"
    monkeypatch.setattr(linear, "FEW_CLASSES", few)
    cases = 0
    for options in grid():
        operands, bias, options = arguments(options, shape)
        expected = dense(*operands, bias, **options)
        options["block_bytes"] = 8 * numbers
        loss, gradients = fs.linear_cross_entropy_with_grad(*operands, bias, **options)
        near(loss, expected[0], 200 * EPS)
        near(gradients.features, expected[1], 200 * EPS)
        near(gradients.weight, expected[2], 200 * EPS)
        if bias is None:
            assert gradients.bias is None
        else:
            near(gradients.bias, expected[3], 200 * EPS)
        assert gradients.weight.flags.c_contiguous
        near(fs.linear_cross_entropy(*operands, bias, **options), loss, 200 * EPS)
        cases += 2
    assert len(extents) == cases
    assert all(classes < shape[2] for _, classes in extents)
    assert not several or all(rows <= 50 for rows, _ in extents)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_of_classes_keep_digits(dtype, record, extents):
    """float32 within 1e-7 and 3e-6; losses and gradients of certain rows keep their digits."""
    features, weight, targets, bias = problem((600, 24, 9000), dtype)
    weight, bias, eps = weight / dtype(8), bias.astype(dtype), np.finfo(dtype).eps
    calls = {"": {}, ", smoothed": {"label_smoothing": 0.1}, ", capped": {"softcap": 5.0, "z_loss": 1e-3}}
    for name, options in calls.items():
        loss, gradients = fs.linear_cross_entropy_with_grad(
            features, weight, targets, bias, block_bytes=1 << 20, **options
        )
        expected = dense(features, weight, targets, bias, **options)
        near(loss, expected[0], 1e-7 * eps / np.finfo(np.float32).eps)
        for key, value, reference in zip(gradients._fields, gradients, expected[1:], strict=True):
            near(value, reference, 3e-6 * eps / np.finfo(np.float32).eps)
            error = np.abs(value - reference).max() / np.abs(reference).max() / eps
            record(f"linear_cross_entropy, classes cut{name}, {key} (eps of its largest entry)", dtype, error, 26)
    assert len(extents) == 3
    certain = np.zeros(9000, dtype)
    certain[7] = 60
    options = {"reduction": "none", "block_bytes": 1 << 20}
    rows, gradients = fs.linear_cross_entropy_with_grad(
        np.zeros((300, 2), dtype), np.zeros((9000, 2), dtype), np.full(300, 7), certain, **options
    )
    assert len(extents) == 4
    np.testing.assert_allclose(rows, 8999 * np.exp(-60.0), rtol=4 * eps)
    np.testing.assert_allclose(gradients.bias[7], -300 * 8999 * np.exp(-60.0), rtol=300 * eps)


def test_blocks_of_classes_with_infinities(monkeypatch, extents):
    """Classes that a bias of -inf excludes have probability 0; a row with NaN is NaN, and other rows stay."""
    monkeypatch.setattr(linear, "FEW_CLASSES", 4)
    features, weight, targets, bias = problem(SHAPES["blocks"])
    out = np.arange(70) % 3 == 0
    targets = np.where(out[targets], 1, targets)
    bias[out] = -np.inf
    features[5] = np.nan
    ways = [{}, {"z_loss": 0.1}, {"softcap": 3.0}, {"label_smoothing": 0.1}, {"label_smoothing": 1.0}]
    ways.append({"label_smoothing": 0.1, "class_weight": np.where(out, 0.0, 1.5)})
    for options in ways:
        options |= {"reduction": "none"}
        with np.errstate(all="raise"):
            rows, gradients = fs.linear_cross_entropy_with_grad(
                features, weight, targets, bias, block_bytes=8 * 1600, **options
            )
        z = features @ weight.T + bias
        expected, slope = fs.cross_entropy_with_grad(z, targets, **options)
        np.testing.assert_allclose(rows, expected, rtol=1e-13)
        assert np.isnan(rows[5])
        np.testing.assert_allclose(gradients.features, slope @ weight, rtol=1e-9, atol=1e-13)
    assert len(extents) == len(ways)


@pytest.mark.parametrize("layout", ["float16", "swapped", "strided", "fortran", "reversed"])
def test_layouts_in_blocks_of_classes(layout, monkeypatch, extents):
    """Weights of another dtype or order are converted block by block."""
    monkeypatch.setattr(linear, "FEW_CLASSES", 4)
    monkeypatch.setattr(linear, "WEIGHT_BYTES", 20 * 8 * 8)
    features, weight, targets, bias = problem(SHAPES["blocks"], np.float16 if layout == "float16" else np.float64)
    changes = {
        "float16": lambda w: w,
        "swapped": lambda w: w.astype(">f8"),
        "strided": lambda w: np.repeat(w, 2, 1)[:, ::2],
        "fortran": np.asfortranarray,
        "reversed": lambda w: w[::-1].copy()[::-1],
    }
    itemsize, classes = {"float16": (4, 32), "fortran": (8, 32)}.get(layout, (8, 16))
    expected = dense(features, weight, targets, bias.astype(weight.dtype))
    loss, gradients = fs.linear_cross_entropy_with_grad(
        np.asfortranarray(features),
        changes[layout](weight),
        targets,
        bias.astype(weight.dtype),
        block_bytes=itemsize * 4200,
    )
    tolerance = 1e-3 if layout == "float16" else 1e-13
    near(loss, expected[0], tolerance)
    assert gradients.weight.dtype == weight.dtype
    for value, reference in zip(gradients, expected[1:], strict=True):
        near(value, reference, tolerance)
    assert extents == [(100, classes)]


def test_blocks_of_classes_compute_what_is_asked_for(extents):
    features, weight, targets, bias = problem((300, 8, 2000))
    options = {"block_bytes": 8 * 300 * 400}
    loss, everything = fs.linear_cross_entropy_with_grad(features, weight, targets, bias, **options)
    for names in ((), ("features",), ("weight",), ("bias",)):
        found, gradients = fs.linear_cross_entropy_with_grad(features, weight, targets, bias, wrt=names, **options)
        assert found == pytest.approx(loss, rel=1e-14)
        for name, expected in everything._asdict().items():
            value = getattr(gradients, name)
            assert (value is None) == (name not in names)
            if name in names:
                near(value, expected, 1e-13)
    assert len(extents) == 5
    bias = np.where(np.arange(2000) < 600, 0, -90.0)
    targets %= 600
    _, everything = fs.linear_cross_entropy_with_grad(features, weight, targets, bias, **options)
    _, gradients = fs.linear_cross_entropy_with_grad(features, weight, targets, bias, skip=True, **options)
    assert everything.weight[1800:].any()
    assert not gradients.weight[1800:].any()
    for a, b in zip(gradients, everything, strict=True):
        near(a, b, 1e-13)
    nothing = fs.linear_cross_entropy_with_grad(
        features, weight, targets, bias, sample_weight=np.zeros(300), block_bytes=8
    )
    assert np.isnan(nothing[0])
    assert not any(gradient.any() for gradient in nothing[1])


def test_memory_of_many_classes():
    """A million classes: the workspace, the results, and less than 8 MB."""
    rng = np.random.default_rng(0)
    classes, rows, width = 1_000_000, 600, 4
    features = rng.standard_normal((rows, width), np.float32)
    weight = rng.standard_normal((classes, width), np.float32)
    targets = rng.integers(0, classes, rows)
    for names, results in (((), 0), (("features", "weight"), 4 * (rows + classes) * width)):
        fs.linear_cross_entropy_with_grad(features, weight[:9000], targets % 9000, wrt=names, block_bytes=1 << 20)
        tracemalloc.start()
        fs.linear_cross_entropy_with_grad(features, weight, targets, wrt=names, block_bytes=32 << 20)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < (32 << 20) + results + (8 << 20)


def test_every_option_agrees_with_torch():
    """PyTorch's autograd in float64, from the formula."""
    torch = pytest.importorskip("torch")
    tensor = torch.tensor
    for case in grid():
        (features, weight, targets), bias, options = arguments(case, SHAPES["blocks"])
        x, w = tensor(features, requires_grad=True), tensor(weight, requires_grad=True)
        b = tensor(np.zeros(len(weight)) if bias is None else bias, requires_grad=True)
        z = x @ w.T + b
        if case["softcap"] is not None:
            z = case["softcap"] * torch.tanh(z / case["softcap"])
        counts = torch.ones(len(features), dtype=torch.float64)
        if case["sampled"]:
            counts = tensor(options["sample_weight"])
        counts = torch.where(tensor(targets >= 0), counts, 0.0)
        classes = torch.ones(len(weight), dtype=torch.float64)
        if case["weighted"]:
            classes = tensor(options["class_weight"])
        labels = tensor(np.maximum(targets, 0))
        hot = torch.nn.functional.one_hot(labels, len(weight)).double()
        shares = classes * ((1 - case["smoothing"]) * hot + case["smoothing"] / len(weight))
        lse = torch.logsumexp(z, -1)
        rows = counts * ((shares * (lse[:, None] - z)).sum(-1) + case["z_loss"] * lse**2)
        value = rows.sum() / (counts * classes[labels]).sum() if case["reduction"] == "mean" else rows
        value.sum().backward()
        found, gradients = fs.linear_cross_entropy_with_grad(features, weight, targets, bias, **options)
        whole = value.sum() if case["reduction"] == "sum" else value
        near(found, whole.detach().numpy(), 1e-13)
        for name, leaf in (("features", x), ("weight", w)):
            near(getattr(gradients, name), leaf.grad.numpy(), 1e-13)
        if bias is not None:
            near(gradients.bias, b.grad.numpy(), 1e-13)


def test_derivatives_by_differences():
    features, weight, targets, bias = problem(SHAPES["small"])
    rng = np.random.default_rng(2)
    options = {"z_loss": 0.05, "softcap": 4.0}
    _, gradients = fs.linear_cross_entropy_with_grad(features, weight, targets, bias, **options)
    operands, step = (features, weight, bias), 1e-5
    for place, gradient in enumerate(gradients):
        v = rng.normal(size=gradient.shape)
        moved = [[a + sign * step * v if k == place else a for k, a in enumerate(operands)] for sign in (1, -1)]
        up, down = (fs.linear_cross_entropy(x, w, targets, b, **options) for x, w, b in moved)
        assert (gradient * v).sum() == pytest.approx((up - down) / (2 * step), rel=1e-7)


@pytest.mark.parametrize("names", [(), ("features",), ("weight",), ("bias",), ("weight", "bias"), "weight"])
def test_only_what_is_asked_for(names):
    operands = problem(SHAPES["blocks"])
    loss, everything = fs.linear_cross_entropy_with_grad(*operands)
    found, gradients = fs.linear_cross_entropy_with_grad(*operands, wrt=names)
    assert found == loss
    for name, expected in everything._asdict().items():
        value = getattr(gradients, name)
        if name in names:
            near(value, expected, 10 * EPS)
        else:
            assert value is None


def test_float32_is_accurate(record):
    """The loss within 1e-7, gradients within 3e-6 of their largest entry; 2e-7 for sums of many rows a class."""
    for shape, sums in (((2000, 64, 3000), 3e-6), ((50000, 32, 20), 2e-7)):
        features, weight, targets, bias = problem(shape, np.float32)
        weight *= np.float32(0.1)
        bias = bias.astype(np.float32)
        loss, gradients = fs.linear_cross_entropy_with_grad(features, weight, targets, bias, block_bytes=1 << 21)
        expected = dense(features, weight, targets, bias)
        near(loss, expected[0], 1e-7)
        near(gradients.features, expected[1], 3e-6)
        near(gradients.weight, expected[2], sums)
        near(gradients.bias, expected[3], sums)
        for name, value, reference in zip(("loss", *gradients._fields), (loss, *gradients), expected, strict=True):
            error = np.abs(value - reference).max() / np.abs(reference).max() / np.finfo(np.float32).eps
            record(f"linear_cross_entropy, {name} (eps of its largest entry)", np.float32, error, 26)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision(kind):
    """Computed in float32, and returned in the dtypes of the arguments."""
    kind, eps = (
        (np.float16, 2.0**-10) if kind == "float16" else (pytest.importorskip("ml_dtypes").bfloat16, 2.0**-7)
    )
    features, weight, targets, bias = problem((50, 6, 40), kind)
    loss, gradients = fs.linear_cross_entropy_with_grad(features, weight, targets, bias.astype(kind))
    assert loss.dtype == kind
    expected = dense(features, weight, targets, bias.astype(kind))
    near(loss, expected[0], eps)
    for value, reference in zip(gradients, expected[1:], strict=True):
        assert value.dtype == kind
        near(value, reference, eps)
    mixed = fs.linear_cross_entropy_with_grad(features, weight.astype(np.float64), targets)[1]
    assert mixed.features.dtype == kind
    assert mixed.weight.dtype == np.float64
    rows = fs.linear_cross_entropy(features, weight, targets, reduction="none")
    assert rows.dtype == kind
    assert rows.shape == targets.shape


def test_parts_of_converted_weights(monkeypatch):
    """Weights of another dtype or order are converted part by part."""
    monkeypatch.setattr(linear, "WEIGHT_BYTES", 7 * 8 * 8)
    features, weight, targets, bias = problem(SHAPES["blocks"])
    expected = fs.linear_cross_entropy_with_grad(features, weight, targets, bias)
    for other in (weight.astype(">f8"), np.repeat(weight, 2, 1)[:, ::2], weight[::-1].copy()[::-1]):
        given = linear.Linear("linear_cross_entropy", features, other, targets, None, linear.LossOptions())
        assert len(linear.Weights(given).parts) > 5
        found = fs.linear_cross_entropy_with_grad(features, other, targets, bias)
        near(found[0], expected[0], 10 * EPS)
        for a, b in zip(found[1], expected[1], strict=True):
            near(a, b, 10 * EPS)
    turned = fs.linear_cross_entropy_with_grad(
        np.asfortranarray(features), np.asfortranarray(weight), targets, bias
    )
    near(turned[1].weight, expected[1].weight, 10 * EPS)


@pytest.mark.parametrize("by", ["ignore_index", "sample_weight"])
def test_rows_that_do_not_count_are_left_out(by, monkeypatch):
    """Whatever they hold: they are not multiplied at all, and their gradients are 0."""
    features, weight, targets, bias = problem(SHAPES["blocks"])
    out = np.arange(100) % 10 < 7
    options = {}
    if by == "ignore_index":
        targets[out], options["ignore_index"] = 1000, 1000
    else:
        options["sample_weight"] = np.where(out, 0, 1.5)
    features[out] = np.nan
    seen = []
    original = linear.Logits.of
    monkeypatch.setattr(linear.Logits, "of", lambda self, *a: seen.append(len(a[0])) or original(self, *a))
    loss, gradients = fs.linear_cross_entropy_with_grad(features, weight, targets, bias, **options)
    assert sum(seen) == 30
    expected = fs.linear_cross_entropy_with_grad(features[~out], weight, targets[~out], bias)
    assert loss == pytest.approx(expected[0], rel=1e-14)
    near(gradients.weight, expected[1].weight, 1e-13)
    near(gradients.features[~out], expected[1].features, 1e-13)
    assert not gradients.features[out].any()


def test_nothing_counts():
    features, weight, targets, bias = problem(SHAPES["small"])
    loss, gradients = fs.linear_cross_entropy_with_grad(features, weight, targets, bias, sample_weight=np.zeros(9))
    assert np.isnan(loss)
    assert not any(gradient.any() for gradient in gradients)
    loss, gradients = fs.linear_cross_entropy_with_grad(features[:0], weight, targets[:0], reduction="sum")
    assert loss == 0
    assert gradients.features.shape == (0, 5)
    assert not gradients.weight.any()


def test_skip():
    """Only classes that hardly matter are left out, and only if that is asked for."""
    features, weight, targets, bias = problem((64, 256, 1500), np.float32)
    bias = np.where(np.arange(1500) < 600, 0, -60).astype(np.float32)
    targets %= 600
    _, everything = fs.linear_cross_entropy_with_grad(features, weight, targets, bias)
    _, gradients = fs.linear_cross_entropy_with_grad(features, weight, targets, bias, skip=True)
    assert not gradients.weight[1024:].any()
    assert everything.weight[1024:].any()
    for a, b in zip(gradients, everything, strict=True):
        near(a, np.float64(b), 1e-6)


@pytest.mark.parametrize(("shape", "products"), [("blocks", 1), ("wide", 2)])
def test_the_bias_is_a_column_of_few_features(shape, products, monkeypatch):
    """The sums for weight and bias are one product, or two where there are more features than classes."""
    seen = []
    original = linear._Sum.add
    monkeypatch.setattr(linear._Sum, "add", lambda self, *a: seen.append(self.total.shape) or original(self, *a))
    features, weight, targets, bias = problem(SHAPES[shape])
    _, gradients = fs.linear_cross_entropy_with_grad(features, weight, targets, bias)
    assert len(seen) == products
    expected = dense(features, weight, targets, bias)
    near(gradients.weight, expected[2], 100 * EPS)
    near(gradients.bias, expected[3], 100 * EPS)


def test_a_block_is_decided_by_shapes():
    def extent(rows, width, classes, names=("features", "weight"), block=128 << 20):
        arrays = (np.empty((n, width), np.float32) for n in (rows, classes))
        given = linear.Linear("linear_cross_entropy", *arrays, np.zeros(rows, int), None, linear.LossOptions())
        return linear.class_blocks(given, block, names, linear.FEW_ROWS if names else linear.FEW_ROWS_OF_LOSS)

    assert extent(300, 16, 3_000_000) == (300, 111840)
    assert extent(300, 16, 3_000_000, ()) == (300, 111840)
    assert extent(8192, 256, 131072, ()) is None  # 256 rows fit
    assert extent(8192, 256, 131073, ()) == (4096, 8192)
    assert extent(8192, 256, 524288) is None  # 64 rows fit
    assert extent(8192, 256, 524289) == (4096, 8192)
    assert extent(8192, 256, 131073, block=1 << 20) == (512, 128)
    assert extent(8192, 256, 131073, (), block=1 << 20) == (512, 512)
    assert extent(50, 16, 500_000) is None  # all rows fit
    assert extent(100, 16, 250_000, ()) is None
    assert extent(8192, 256, 512, block=1) is None
    assert extent(8192, 256, 513, block=1) == (2, 16)
    assert extent(8192, 0, 513, ()) is None
    assert extent(8192, 0, 513, (), block=1) == (2, 512)
    rows = linear.block_rows
    assert rows("f", 32768, 4, 128 << 20) == 1024
    assert rows("f", 100, 4, 128 << 20) == linear.ROWS
    assert rows("f", 1 << 30, 4, 128 << 20) == 1
    assert rows("f", 0, 4, 1) == 1


def test_fewer_rows_are_enough_for_gradients(extents):
    """The loss alone is cheaper in blocks of classes where the gradients are cheaper in blocks of rows."""
    features, weight, targets, _ = problem((300, 4, 600))
    block = 8 * 600 * 100
    loss, _ = fs.linear_cross_entropy_with_grad(features, weight, targets, block_bytes=block)
    assert not extents
    assert fs.linear_cross_entropy(features, weight, targets, block_bytes=block) == pytest.approx(loss, rel=1e-14)
    assert len(extents) == 1


def test_memory():
    """The workspace, the results, and little else; the weights in float16 are not converted as a whole."""
    features, weight, targets, _ = problem((4000, 32, 40000), np.float16)
    for names, results in (((), 0), (("features", "weight"), 4000 * 32 * 6 + 40000 * 32 * 10)):
        fs.linear_cross_entropy_with_grad(features[:10], weight, targets[:10], wrt=names, block_bytes=8 << 20)
        tracemalloc.start()
        fs.linear_cross_entropy_with_grad(features, weight, targets, wrt=names, block_bytes=8 << 20)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < (8 << 20) + results + (6 << 20)


def test_memory_maps(tmp_path):
    features, weight, targets, bias = problem(SHAPES["blocks"])
    np.save(tmp_path / "x.npy", features)
    np.save(tmp_path / "w.npy", weight)
    mapped = [np.load(tmp_path / name, mmap_mode="r") for name in ("x.npy", "w.npy")]
    loss, gradients = fs.linear_cross_entropy_with_grad(*mapped, targets, bias)
    expected = fs.linear_cross_entropy_with_grad(features, weight, targets, bias)
    assert loss == expected[0]
    assert type(gradients.weight) is np.ndarray
    np.testing.assert_array_equal(gradients.weight, expected[1].weight)


def test_one_row():
    """Features of one dimension are one row."""
    features, weight, targets, bias = problem(SHAPES["small"])
    loss, gradients = fs.linear_cross_entropy_with_grad(features[0], weight, targets[0], bias)
    assert np.ndim(loss) == 0
    expected = fs.linear_cross_entropy_with_grad(features[:1], weight, targets[:1], bias)
    assert loss == expected[0]
    np.testing.assert_array_equal(gradients.features, expected[1].features[0])
    assert np.ndim(fs.linear_cross_entropy(features[0], weight, targets[0], reduction="none")) == 0


def test_infinities_and_nan():
    """A row with NaN is NaN, without a warning; other rows stay."""
    features, weight, targets, _ = problem(SHAPES["small"])
    clean = fs.linear_cross_entropy(features, weight, targets, reduction="none")
    features[2, 0], features[4, 1] = np.nan, np.inf
    with np.errstate(all="raise"):
        rows = fs.linear_cross_entropy(features, weight, targets, reduction="none")
    others = [0, 1, 3, 5, 6, 7, 8]
    np.testing.assert_allclose(rows[others], clean[others], rtol=1e-14)
    assert np.isnan(rows[2])


def test_errors():
    features, weight, targets, bias = problem(SHAPES["small"])
    call = fs.linear_cross_entropy_with_grad
    name = "linear_cross_entropy_with_grad: "
    for kind, words, operands, options in (
        (ValueError, r"weight has shape \(7, 4\), expected \(K, 5\)", (features, weight[:, :4], targets), {}),
        (ValueError, r"targets has shape \(8,\), expected \(9,\)", (features, weight, targets[:8]), {}),
        (ValueError, r"bias has shape \(6,\), expected \(7,\)", (features, weight, targets, bias[:6]), {}),
        (ValueError, "features is 0-d", (1.0, weight, targets), {}),
        (TypeError, "targets are class indices and have dtype float64", (features, weight, targets * 1.0), {}),
        (TypeError, "features has dtype complex128", (features * 1j, weight, targets), {}),
        (TypeError, "weight is a masked array", (features, np.ma.array(weight), targets), {}),
        (
            IndexError,
            r"targets\[3\] is 7, expected a label from 0 to 6",
            (features, weight, [0, 0, 0, 7] + [0] * 5),
            {},
        ),
        (
            ValueError,
            "wrt may name features, weight, bias, got 'logits'",
            (features, weight, targets),
            {"wrt": ["logits"]},
        ),
        (TypeError, "wrt must be a sequence of names, got None", (features, weight, targets), {"wrt": None}),
        (ValueError, "block_bytes must be at least 1, got 0", (features, weight, targets), {"block_bytes": 0}),
        (TypeError, "block_bytes must be an integer, got 1.5", (features, weight, targets), {"block_bytes": 1.5}),
        (ValueError, "reduction must be one of", (features, weight, targets), {"reduction": "max"}),
        (ValueError, "softcap must be finite and > 0", (features, weight, targets), {"softcap": 0}),
        (ValueError, r"class_weight has shape \(3,\)", (features, weight, targets), {"class_weight": [1, 2, 3]}),
        (ValueError, r"sample_weight has shape \(3,\)", (features, weight, targets), {"sample_weight": [1, 2, 3]}),
        (TypeError, "ignore_index must be an integer", (features, weight, targets), {"ignore_index": 1.5}),
    ):
        with pytest.raises(kind, match=name + words):
            call(*operands, **options)


def test_dask_arrays_are_refused():
    """As weights, and as their tangents."""
    da = pytest.importorskip("dask.array")
    features, weight, targets, _ = problem(SHAPES["small"])
    lazy = da.from_array(weight)
    for operands, name in (((weight, lazy), "tangent"), ((lazy, weight), "weight")):
        with pytest.raises(TypeError, match=f"linear_cross_entropy_hvp: {name} is a Dask array and has to be in"):
            fs.linear_cross_entropy_hvp(features, operands[0], targets, operands[1])
    with pytest.raises(TypeError, match="linear_cross_entropy: weight is a Dask array and has to be in memory"):
        fs.linear_cross_entropy(features, da.from_array(weight), targets)


def test_empty_arrays():
    """Features without numbers have the logits of the bias; without classes there can be no labels."""
    loss = fs.linear_cross_entropy(np.zeros((2, 0)), np.zeros((3, 0)), [0, 1], np.zeros(3))
    assert loss == pytest.approx(np.log(3))
    loss, gradients = fs.linear_cross_entropy_with_grad(
        np.zeros((2, 4)), np.zeros((0, 4)), [-1, -1], ignore_index=-1, reduction="sum"
    )
    assert loss == 0
    assert gradients.weight.shape == (0, 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_statistics(dtype, softcap):
    """Those of the dense logits; nothing of rows that are ignored."""
    features, weight, targets, bias = problem(SHAPES["blocks"], dtype)
    bias = bias.astype(dtype)
    targets[::3] = -1
    features[0] = np.nan
    z = features @ weight.T + bias
    z = z if softcap is None else softcap * np.tanh(z / softcap)
    options = {"ignore_index": -1, "softcap": softcap, "block_bytes": 16 * 70 * dtype().itemsize}
    found = fs.linear_softmax_statistics(features, weight, targets, bias, **options)
    expected = fs.label_statistics(z, targets, ignore_index=-1)
    counts = targets >= 0
    eps = np.finfo(dtype).eps
    for name, value in found._asdict().items():
        reference = getattr(expected, name)
        assert value.dtype == reference.dtype
        np.testing.assert_allclose(value[counts], reference[counts], rtol=50 * eps, atol=50 * eps)
    np.testing.assert_array_equal(found.rank[~counts], -1)
    np.testing.assert_array_equal(found.argmax[~counts], -1)
    assert not found.entropy[~counts].any()
    one = fs.linear_softmax_statistics(features[1], weight, targets[1], bias)
    assert one.rank == found.rank[1] or softcap is not None
    assert np.ndim(one.log_prob) == 0


@pytest.mark.parametrize("shape", ["small", "blocks", "batch", "wide"])
def test_hessian_products(shape):
    """Those of dense logits, with all combinations of options."""
    shape = SHAPES[shape]
    rng = np.random.default_rng(5)
    tangent, tangent_bias = rng.normal(size=shape[:0:-1]), rng.normal(size=shape[2])
    for case in grid():
        (x, w, y), bias, options = arguments(case, shape)
        along = tangent_bias if bias is not None else None
        z = x @ w.T + (0 if bias is None else bias)
        t = x @ tangent.T + (0 if along is None else along)
        u = fs.cross_entropy_hvp(z, y, t, **options).reshape(-1, shape[2])
        found = fs.linear_cross_entropy_hvp(
            x, w, y, tangent, bias, along, block_bytes=32 * shape[2] * 8, **options
        )
        assert found.features is None
        near(found.weight, u.T @ x.reshape(-1, shape[1]), 200 * EPS)
        if bias is None:
            assert found.bias is None
        else:
            near(found.bias, u.sum(0), 200 * EPS)


@pytest.fixture
def extents_of_products(monkeypatch):
    """The rows and classes of the blocks of all products with the Hessian that cut the classes."""
    seen = []
    original = linear_hessian._in_blocks_of_classes
    monkeypatch.setattr(linear_hessian, "_in_blocks_of_classes", lambda *a: seen.append(a[2]) or original(*a))
    return seen


def dense_product(features, weight, targets, tangent, bias=None, along=None, **options):
    """The product with the Hessian by that of dense logits, in float64."""
    x, w, v = (np.asarray(a).astype(np.float64) for a in (features, weight, tangent))
    z = x @ w.T + (0 if bias is None else np.asarray(bias).astype(np.float64))
    t = x @ v.T + (0 if along is None else np.asarray(along).astype(np.float64))
    u = fs.cross_entropy_hvp(z, targets, t, **options).reshape(-1, len(w))
    return u.T @ x.reshape(-1, x.shape[-1]), u.sum(0)


@pytest.mark.parametrize("case", CUT)
def test_hessian_products_in_blocks_of_classes(case, monkeypatch, extents_of_products):
    """Where the classes are cut, with all combinations of options."""
    name, few, numbers = CUT[case]
    shape, several = SHAPES[name], case == "blocks of rows"
    monkeypatch.setattr(linear, "FEW_CLASSES", few)
    rng = np.random.default_rng(5)
    tangent, tangent_bias = rng.normal(size=shape[:0:-1]), rng.normal(size=shape[2])
    cases = 0
    for options in grid():
        (x, w, y), bias, options = arguments(options, shape)
        along = tangent_bias if bias is not None else None
        expected = dense_product(x, w, y, tangent, bias, along, **options)
        found = fs.linear_cross_entropy_hvp(x, w, y, tangent, bias, along, block_bytes=8 * numbers, **options)
        near(found.weight, expected[0], 200 * EPS)
        assert found.weight.flags.c_contiguous
        if bias is None:
            assert found.bias is None
        else:
            near(found.bias, expected[1], 200 * EPS)
        cases += 1
    assert len(extents_of_products) == cases
    assert all(classes < shape[2] for _, classes in extents_of_products)
    assert not several or all(rows <= 25 for rows, _ in extents_of_products)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hessian_products_in_blocks_of_classes_keep_digits(dtype, record, extents_of_products):
    """Also those of a class of probability near 1, whose tangent is near the mean of all."""
    features, weight, targets, bias = problem((300, 24, 9000), dtype)
    weight, bias, eps = weight / dtype(8), bias.astype(dtype), np.finfo(dtype).eps
    rng = np.random.default_rng(7)
    tangent, along = rng.normal(size=weight.shape).astype(dtype), rng.normal(size=9000).astype(dtype)
    for name, options in {"": {}, ", capped": {"softcap": 5.0, "z_loss": 1e-3, "label_smoothing": 0.1}}.items():
        found = fs.linear_cross_entropy_hvp(
            features, weight, targets, tangent, bias, along, block_bytes=1 << 20, **options
        )
        expected = dense_product(features, weight, targets, tangent, bias, along, **options)
        for key, value, reference in zip(("weight", "bias"), found[1:], expected, strict=True):
            error = np.abs(value - reference).max() / np.abs(reference).max() / eps
            name_of_error = f"linear_cross_entropy_hvp, classes cut{name}, {key} (eps of its largest entry)"
            record(name_of_error, dtype, error, 26)
    certain = np.where(np.arange(9000) == 7, 60, 0).astype(dtype)
    nothing = np.zeros((300, 2), dtype), np.zeros((9000, 2), dtype), np.full(300, 7), np.zeros((9000, 2), dtype)
    found = fs.linear_cross_entropy_hvp(*nothing, certain, along, reduction="sum", block_bytes=1 << 20)
    expected = dense_product(*nothing, certain, along, reduction="sum")[1]
    np.testing.assert_allclose(found.bias[7], expected[7], rtol=300 * eps)
    near(found.bias, expected, 30 * eps)
    assert len(extents_of_products) == 3


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}, {"softcap": 3.0}, {"label_smoothing": 0.1}])
def test_hessian_products_in_blocks_of_classes_with_infinities(options, monkeypatch, extents_of_products):
    """Classes that a bias of -inf excludes, also all of a block, have product 0; a row with NaN is NaN."""
    monkeypatch.setattr(linear, "FEW_CLASSES", 4)
    features, weight, targets, bias = problem(SHAPES["blocks"])
    out = (np.arange(70) < 20) | (np.arange(70) % 3 == 0)
    class_weight = np.where(out, 0.0, 1.5)
    targets, bias = np.where(out[targets], 31, targets), np.where(out, -np.inf, bias)
    rng = np.random.default_rng(8)
    tangent, along = rng.normal(size=weight.shape), rng.normal(size=70)
    operands = weight, targets, tangent, bias, along
    options |= {"class_weight": class_weight, "block_bytes": 8 * 1600}
    with np.errstate(all="raise"):
        found = fs.linear_cross_entropy_hvp(features, *operands, **options)
    del options["block_bytes"]
    expected = dense_product(features, *operands, **options)
    near(found.weight, expected[0], 200 * EPS)
    near(found.bias, expected[1], 200 * EPS)
    assert "softcap" in options or not found.bias[out].any()
    assert extents_of_products == [(100, 16)]
    features[5] = np.nan
    found = fs.linear_cross_entropy_hvp(features, *operands, block_bytes=8 * 1600, **options)
    assert np.isnan(found.bias).all()


@pytest.mark.parametrize("layout", ["float16", "swapped", "strided", "fortran"])
def test_layouts_of_tangents_in_blocks_of_classes(layout, monkeypatch, extents_of_products):
    """Tangents of another dtype or order than the weights are converted block by block."""
    monkeypatch.setattr(linear, "FEW_CLASSES", 4)
    monkeypatch.setattr(linear, "WEIGHT_BYTES", 20 * 8 * 8)
    features, weight, targets, _ = problem(SHAPES["blocks"])
    tangent = np.random.default_rng(2).integers(-4, 5, weight.shape) / 2.0
    changed = {
        "float16": tangent.astype(np.float16),
        "swapped": tangent.astype(">f8"),
        "strided": np.repeat(tangent, 2, 1)[:, ::2],
        "fortran": np.asfortranarray(tangent),
    }
    found = fs.linear_cross_entropy_hvp(features, weight, targets, changed[layout], block_bytes=8 * 4200)
    near(found.weight, dense_product(features, weight, targets, tangent)[0], 200 * EPS)
    assert found.weight.dtype == weight.dtype
    assert extents_of_products == [(100, 16)]


def test_memory_of_hessian_products():
    """The workspace, the result, and less than 12 MB."""
    rng = np.random.default_rng(0)
    classes, rows, width = 500_000, 300, 4
    features = rng.standard_normal((rows, width), np.float32)
    weight, tangent = rng.standard_normal((2, classes, width), np.float32)
    targets = rng.integers(0, classes, rows)
    for options in ({}, {"softcap": 30.0}):
        some = features, weight[:9000], targets % 9000, tangent[:9000]
        fs.linear_cross_entropy_hvp(*some, block_bytes=1 << 20, **options)
        tracemalloc.start()
        fs.linear_cross_entropy_hvp(features, weight, targets, tangent, block_bytes=32 << 20, **options)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < (32 << 20) + 4 * classes * width + (12 << 20)


def test_hessian_products_by_differences():
    """Central differences of the gradient; the Hessian is symmetric."""
    features, weight, targets, bias = problem(SHAPES["blocks"])
    rng = np.random.default_rng(2)
    (u, v), (b, c), step = rng.normal(size=(2, *weight.shape)), rng.normal(size=(2, len(bias))), 1e-5
    options = {"z_loss": 0.02, "softcap": 6.0, "sample_weight": rng.uniform(0.5, 2, 100)}
    found = fs.linear_cross_entropy_hvp(features, weight, targets, v, bias, c, **options)
    up, down = (
        fs.linear_cross_entropy_with_grad(features, weight + s * v, targets, bias + s * c, **options)[1]
        for s in (step, -step)
    )
    near(found.weight, (up.weight - down.weight) / (2 * step), 1e-8)
    near(found.bias, (up.bias - down.bias) / (2 * step), 1e-8)
    other = fs.linear_cross_entropy_hvp(features, weight, targets, u, bias, b, **options)
    forth = (found.weight * u).sum() + (found.bias * b).sum()
    assert forth == pytest.approx((other.weight * v).sum() + (other.bias * c).sum(), rel=1e-10)


@pytest.mark.parametrize("case", ["rows", *CUT])
def test_hessian_products_of_given_logits(case, monkeypatch, extents_of_products):
    """Logits of an earlier call give the same product, and no product of matrices is computed for them."""
    name, few, numbers = CUT.get(case, ("blocks", 4, 100 * 70))
    monkeypatch.setattr(linear, "FEW_CLASSES", few)
    rng = np.random.default_rng(5)
    count = 0
    for options in grid():
        (x, w, y), bias, options = arguments(options, SHAPES[name])
        z = x @ w.T + (0 if bias is None else bias)
        tangent, along = rng.normal(size=w.shape), None if bias is None else rng.normal(size=len(w))
        expected = dense_product(x, w, y, tangent, bias, along, **options)
        options["block_bytes"] = 8 * numbers
        nothing = np.full_like(w, np.nan)
        found = fs.linear_cross_entropy_hvp(x, nothing, y, tangent, bias, along, logits=z, **options)
        near(found.weight, expected[0], 200 * EPS)
        assert bias is None or np.allclose(found.bias, expected[1], rtol=1e-10, atol=1e-13)
        count += 1
    assert len(extents_of_products) == (count if case in CUT else 0)


def test_layouts_of_given_logits():
    """Any dtype and layout; ignored rows are not read."""
    features, weight, targets, _ = problem(SHAPES["batch"])
    features, weight = np.round(features), np.round(weight)
    targets[1, 2] = -1
    tangent = np.random.default_rng(3).normal(size=weight.shape)
    expected = fs.linear_cross_entropy_hvp(features, weight, targets, tangent, ignore_index=-1)
    z = features @ weight.T
    z[1, 2] = np.nan
    layouts = (
        z.astype(np.float16),
        z.astype(">f4"),
        np.asfortranarray(z),
        z.transpose(1, 0, 2).copy().swapaxes(0, 1),
    )
    for logits in (*layouts, z.tolist()):
        found = fs.linear_cross_entropy_hvp(features, weight, targets, tangent, logits=logits, ignore_index=-1)
        np.testing.assert_array_equal(found.weight, expected.weight)


def test_hessian_products_are_those_of_the_dense_matrix():
    """The sum over the rows of the outer products of their Hessians and x x^T, applied to a vector."""
    features, weight, targets, bias = problem(SHAPES["small"])
    rng = np.random.default_rng(4)
    tangent, along = rng.normal(size=weight.shape), rng.normal(size=len(bias))
    x = np.hstack([features, np.ones((9, 1))])
    for options in ({}, {"z_loss": 0.1, "softcap": 3.0}, {"label_smoothing": 0.1, "reduction": "sum"}):
        rows = fs.cross_entropy_hessian(features @ weight.T + bias, targets, **options)
        dense_matrix = np.einsum("nij,nk,nl->ikjl", rows, x, x).reshape(7 * 6, 7 * 6)
        expected = (dense_matrix @ np.hstack([tangent, along[:, None]]).ravel()).reshape(7, 6)
        found = fs.linear_cross_entropy_hvp(features, weight, targets, tangent, bias, along, **options)
        near(found.weight, expected[:, :-1], 100 * EPS)
        near(found.bias, expected[:, -1], 100 * EPS)


def test_hessian_products_agree_with_torch():
    """PyTorch's second derivatives in float64, from the formula, also where the classes are cut."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    for smoothing, z_loss, cap in itertools.product((0.0, 0.1), (0.0, 1e-2), (None, 3.0)):
        features, weight, targets, bias = problem((60, 8, 600))
        tangent, along = rng.normal(size=weight.shape), rng.normal(size=len(bias))
        x, labels = torch.tensor(features), torch.tensor(targets)

        def mean(w, b, x=x, labels=labels, smoothing=smoothing, z_loss=z_loss, cap=cap):
            z = x @ w.T + b
            z = z if cap is None else cap * torch.tanh(z / cap)
            loss = torch.nn.functional.cross_entropy(z, labels, label_smoothing=smoothing)
            return loss + z_loss * (torch.logsumexp(z, -1) ** 2).mean()

        leaves, vectors = ((torch.tensor(a), torch.tensor(b)) for a, b in ((weight, bias), (tangent, along)))
        _, expected = torch.autograd.functional.hvp(mean, leaves, vectors)
        options = {"label_smoothing": smoothing, "z_loss": z_loss, "softcap": cap}
        for block_bytes in (128 << 20, 8 * 600 * 20):
            found = fs.linear_cross_entropy_hvp(
                features, weight, targets, tangent, bias, along, block_bytes=block_bytes, **options
            )
            near(found.weight, expected[0].numpy(), 1e-13)
            near(found.bias, expected[1].numpy(), 1e-13)


PEAK = """
import ctypes, sys
from pathlib import Path
import numpy as np
import fastsoftmax as fs

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

rows, width, classes, block = map(int, sys.argv[1:])
rng = np.random.default_rng(0)
features = rng.standard_normal((rows, width), np.float32)
weight, tangent = rng.standard_normal((2, classes, width), np.float32)
targets = rng.integers(0, classes, rows)
calls = (
    lambda *a, **k: fs.linear_cross_entropy(*a, **k),
    lambda *a, **k: fs.linear_cross_entropy_with_grad(*a, **k),
    lambda *a, **k: fs.linear_cross_entropy_hvp(*a, tangent[: len(a[1])], **k),
    lambda *a, **k: fs.linear_softmax_statistics(*a, **k),
)
for call in calls:
    call(features[:64], weight[:2000], targets[:64] % 2000, block_bytes=1 << 20)
for call in calls:
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    call(features, weight, targets, block_bytes=block)
    print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is read from /proc")
@pytest.mark.parametrize(("rows", "classes", "block"), [(1000, 60_000, 32 << 20), (300, 400_000, 32 << 20)])
def test_peak_of_resident_memory(rows, classes, block):
    """All logits would take 240 and 480 MB. The buffers of BLAS count here, some 20 MB for each thread."""
    width = 16
    peaks = [int(line) for line in child.run(PEAK, rows, width, classes, block).split()]
    results = (0, 4 * (rows + classes) * width, 4 * classes * width, 0)
    for peak, result in zip(peaks, results, strict=True):
        assert block // 2 < peak < block + result + (48 << 20)


def test_errors_of_tangents():
    features, weight, targets, bias = problem(SHAPES["small"])
    for operands, words in (
        ((weight[1:],), r"tangent has shape \(6, 5\), expected \(7, 5\)"),
        ((weight, bias, bias[1:]), r"tangent_bias has shape \(6,\), expected \(7,\)"),
    ):
        with pytest.raises(ValueError, match="linear_cross_entropy_hvp: " + words):
            fs.linear_cross_entropy_hvp(features, weight, targets, *operands)
    with pytest.raises(
        ValueError, match=r"linear_cross_entropy_hvp: logits has shape \(9, 6\), expected \(9, 7\)"
    ):
        fs.linear_cross_entropy_hvp(features, weight, targets, weight, logits=np.zeros((9, 6)))
    with pytest.raises(TypeError, match="linear_cross_entropy_hvp: logits has dtype complex128"):
        fs.linear_cross_entropy_hvp(features, weight, targets, weight, logits=np.zeros((9, 7), complex))


def test_axes_that_cannot_be_merged_are_read_in_blocks():
    """Transposed batches: the bits of a copy, without making one."""
    features = np.random.default_rng(0).normal(size=(7, 5, 6)).astype(np.float32).transpose(1, 0, 2)
    weight, targets = (
        np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32),
        np.arange(35).reshape(5, 7) % 9,
    )
    for options in ({}, {"ignore_index": 3}):
        expected = fs.linear_cross_entropy_with_grad(
            np.ascontiguousarray(features), weight, targets, block_bytes=400, **options
        )
        found = fs.linear_cross_entropy_with_grad(features, weight, targets, block_bytes=400, **options)
        assert found[0] == expected[0]
        np.testing.assert_array_equal(found[1].features, expected[1].features)
        np.testing.assert_array_equal(found[1].weight, expected[1].weight)


@pytest.mark.parametrize("weights", [{"sample_weight": np.full(64, 1e-9)}, {"class_weight": np.full(50, 1e-9)}])
def test_small_weights_skip_nothing_more(weights):
    """What is skipped is measured by the greatest weight, not by 1."""
    rng = np.random.default_rng(0)
    features, weight = rng.normal(size=(64, 16)).astype("f4"), rng.normal(size=(50, 16)).astype("f4")
    targets = rng.integers(0, 50, 64)
    results = [
        fs.linear_cross_entropy_with_grad(features, weight, targets, reduction="sum", skip=skip, **weights)
        for skip in (False, True)
    ]
    np.testing.assert_allclose(results[1][1].weight, results[0][1].weight, rtol=1e-5, atol=1e-14)


JOINT = list(itertools.product((False, True), repeat=3))


@pytest.mark.parametrize("block_bytes", [4, 4 * 8 * 7 * 3, 128 << 20])
@pytest.mark.parametrize("options", [{}, {"ignore_index": 2}, {"z_loss": 0.1, "softcap": 3.0, "reduction": "sum"}])
def test_products_with_respect_to_all_arguments(block_bytes, options):
    """Of the Hessian and of the gradients of rows, for each choice of tangents, by central differences.

    Blocks of one row, of three, and a single one; the rows that do not count hold NaN.
    """
    shape, step = SHAPES["small"], 1e-5
    features, weight, targets, bias = problem(shape)
    rng = np.random.default_rng(8)
    features[targets == options.get("ignore_index")] = np.nan
    place = features, weight, bias
    tangents = [rng.normal(size=one.shape) for one in place]
    given = LossOptions(**options)
    for moved in JOINT:
        along = LinearGradients(*[one if moves else None for one, moves in zip(tangents, moved, strict=True)])

        def at(size, along=along):
            x, w, b = (p if t is None else p + size * t for p, t in zip(place, along, strict=True))
            return fs.linear_cross_entropy_with_grad(x, w, targets, b, **options)[1], fs.linear_cross_entropy(
                x, w, targets, b, **{**options, "reduction": "none"}
            )

        (up, rows_up), (down, rows_down) = at(step), at(-step)
        arrays = "linear_cross_entropy", features, weight, targets, bias, along
        found = joint_product(*arrays, given, linear.WRT, block_bytes)
        for one, high, low in zip(found, up, down, strict=True):
            near(one, (high - low) / (2 * step), 1e-8 if any(moved) else 0.0)
        rows = row_products(*arrays, given._replace(reduction="none"), block_bytes)
        near(rows, (rows_up - rows_down) / (2 * step), 1e-8 if any(moved) else 0.0)
        for wrt in JOINT:
            names = [name for name, wanted in zip(linear.WRT, wrt, strict=True) if wanted]
            some = joint_product(*arrays, given, names, block_bytes)
            for one, whole, wanted in zip(some, found, wrt, strict=True):
                assert (one is not None) == wanted
                assert one is None or np.allclose(one, whole, rtol=1e-13, atol=1e-15)


def test_products_of_other_dtypes_and_orders():
    """Converted in parts, and returned in the dtypes of the arguments."""
    features, weight, targets, bias = problem(SHAPES["batch"])
    tangents = LinearGradients(features[::-1], np.asfortranarray(weight[::-1]), bias[::-1])
    wide = joint_product(
        "linear_cross_entropy", features, weight, targets, bias, tangents, LossOptions(), linear.WRT
    )
    small = [one.astype(np.float32) for one in (features, weight, bias)]
    kinds = LinearGradients(
        tangents[0].astype(">f4"), tangents[1].astype(np.float32), tangents[2].astype(np.float16)
    )
    arrays = small[0], np.asfortranarray(small[1]), targets, small[2]
    found = joint_product("linear_cross_entropy", *arrays, kinds, LossOptions(), linear.WRT)
    for one, expected in zip(found, wide, strict=True):
        assert one.dtype == np.float32
        near(one, expected, 1e-3)
    rows = row_products("linear_cross_entropy", *arrays, kinds, LossOptions(reduction="none"))
    assert (rows.dtype, rows.shape) == (np.float32, (3, 4))


def test_memory_of_joint_products():
    """The workspace, and some multiples of the arguments: never all logits."""
    features, weight, targets, bias = problem((4000, 4, 2000), np.float32)
    along = LinearGradients(features, weight, bias.astype(np.float32))
    arrays = "linear_cross_entropy", features, weight, targets, bias.astype(np.float32), along
    joint_product(*arrays, LossOptions(), linear.WRT, 1 << 20)
    tracemalloc.start()
    joint_product(*arrays, LossOptions(), linear.WRT, 1 << 20)
    row_products(*arrays, LossOptions(reduction="none"), 1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 << 20  # the logits take 32 MB
