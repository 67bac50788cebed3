"""Every option of cross_entropy, compared with PyTorch on the whole grid, and with the oracle."""

import itertools
import threading
import time
from collections import defaultdict

import cases
import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings

import fastsoftmax as fs

every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)
EPS = np.finfo(np.float64).eps
INDEX_DTYPES = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
LOSSES = (
    fs.cross_entropy,
    fs.cross_entropy_grad,
    fs.cross_entropy_with_grad,
    fs.cross_entropy_hessian_diag,
    fs.cross_entropy_hessian,
)
by_name = pytest.mark.parametrize("function", LOSSES, ids=lambda f: f.__name__)

# --- (a) PyTorch ----------------------------------------------------------------------------------------------

GRID = {
    "shape": (((13, 7), 1), ((6, 70), 1), ((3, 5, 17), 1), ((2, 60, 9), 1)),
    "dtype": cases.DTYPES,
    "soft": (False, True),
    "weighted": (False, True),
    "smoothing": (0.0, 0.1, 1.0),
    "ignored": (None, 2, -100),
    "reduction": ("mean", "sum", "none"),
}


def grid():
    """All combinations that PyTorch defines: it has no ignore_index for distributions."""
    for values in itertools.product(*GRID.values()):
        case = dict(zip(GRID, values, strict=True))
        if not (case["soft"] and case["ignored"] is not None):
            yield case


def grid_arrays(case):
    """Logits, targets and class weights of one combination."""
    shape, axis = case["shape"]
    rng = np.random.default_rng(sum(shape))
    x = rng.normal(0, 3, shape).astype(case["dtype"])
    weights = rng.uniform(0.2, 2, shape[axis]).astype(case["dtype"]) if case["weighted"] else None
    if case["soft"]:
        y = rng.random(shape) ** 3
        y[rng.random(shape) < 0.3] = 0
        return x, (y / y.sum(axis=axis, keepdims=True)).astype(case["dtype"]), weights
    y = rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :])
    y.ravel()[:2] = 2
    if case["ignored"] is not None:
        y[rng.random(y.shape) < 0.2] = case["ignored"]
    return x, y, weights


def by_torch(torch, case, x, y, weights):
    """Loss and gradient by PyTorch and its autograd."""
    z = torch.tensor(x, requires_grad=True)
    options = {} if case["ignored"] is None else {"ignore_index": case["ignored"]}
    loss = torch.nn.functional.cross_entropy(
        z,
        torch.tensor(y),
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=case["smoothing"],
        reduction=case["reduction"],
        **options,
    )
    loss.sum().backward()
    return loss.detach().numpy(), z.grad.numpy()


def test_the_grid_of_options_agrees_with_torch(record, capsys):
    """Loss and gradient, in eps of the greatest magnitude of either array: 4 + K/5.

    Our errors are at most 2 of that. PyTorch adds the K shares of a row one after the other if the classes are not
    last, which loses up to eps/4 for each. Its measured error reaches the bound at K = 60: 11 (float64, smoothing
    0.1).
    """
    torch = pytest.importorskip("torch")
    worst = defaultdict(float)
    count = 0
    for case in grid():
        x, y, weights = grid_arrays(case)
        options = {
            "axis": case["shape"][1],
            "class_weight": weights,
            "ignore_index": case["ignored"],
            "label_smoothing": case["smoothing"],
            "reduction": case["reduction"],
        }
        loss, gradient = fs.cross_entropy_with_grad(x, y, **options)
        np.testing.assert_array_equal(loss, fs.cross_entropy(x, y, **options))
        np.testing.assert_array_equal(gradient, fs.cross_entropy_grad(x, y, **options))
        eps = np.finfo(case["dtype"]).eps
        for name, actual, expected in zip(
            ("loss", "gradient"), (loss, gradient), by_torch(torch, case, x, y, weights), strict=True
        ):
            assert actual.dtype == expected.dtype == case["dtype"]
            assert actual.shape == expected.shape
            ulps = np.abs(np.float64(actual) - expected).max() / (eps * np.abs(expected).max())
            worst[name, case["dtype"]] = max(worst[name, case["dtype"]], ulps)
            allowed = 4 + x.shape[case["shape"][1]] / 5
            record(f"cross_entropy, {name}, all options, to PyTorch", case["dtype"], ulps, allowed, str(case))
        count += 1
    with capsys.disabled():
        found = ", ".join(f"{name} {np.dtype(d).name} {ulps:.2f}" for (name, d), ulps in worst.items())
        print(f"\n{count} combinations of options against PyTorch {torch.__version__}; worst in eps: {found}")
    assert count == 4 * 2 * 2 * 3 * 3 * (3 + 1)


# --- (b) the oracle -------------------------------------------------------------------------------------------

ORACLE_GRID = list(
    itertools.product(
        (2, 3, 17, 60), (False, True), (False, True), (False, True), (0.0, 0.1, 1.0), ("mean", "sum", "none")
    )
)


def oracle_rows(dtype, classes):
    """A few rows of every kind: spread, confident, shifted, tied."""
    rng = np.random.default_rng(classes)
    x = rng.normal(0, 2, (9, classes))
    x[1] += 1000
    x[2, 1] += 20
    x[3, 0] += 60
    x[4] = 0
    x[5] = rng.integers(-1, 2, classes)
    x[6] *= 8  # no p is below the smallest normal number, because a factor above 1 would make its error visible
    y = rng.integers(0, classes, 9)
    y[2], y[3], y[6] = 1, 0, np.argmax(x[6])
    return x.astype(dtype), y


def oracle_options(dtype, classes, soft, weighted, sampled, smoothing, reduction):
    """Targets and options of one combination; with sample weights also ignored rows (of indices)."""
    x, y = oracle_rows(dtype, classes)
    rng = np.random.default_rng(classes)
    options = {"label_smoothing": smoothing, "reduction": reduction}
    if weighted:
        options["class_weight"] = rng.uniform(0.1, 3, classes).astype(dtype)
    if sampled:
        options["sample_weight"] = rng.uniform(0.1, 3, 9).astype(dtype)
        options["sample_weight"][7] = 0
        if not soft:
            options["ignore_index"] = int(y[8])
    if soft:
        y = rng.random((9, classes)) * (rng.random((9, classes)) < 0.7)
        y[2], y[3] = np.eye(classes)[1], np.eye(classes)[0]
        y[5] *= 2
        y = y.astype(dtype)
    return x, y, options


def hvp_terms(reference, v):
    """factor p_k (|v_k| + sum_j p_j |v_j|), the scale of the error of the product p_k (v_k - p.v)."""
    p = np.float64(reference.probs)
    size = np.abs(np.float64(v))
    terms = p * (size + np.sum(p * size, axis=-1, keepdims=True)) * np.float64(reference.factors)[:, None]
    return np.maximum(terms, np.finfo(v.dtype).tiny)


@every_dtype
@pytest.mark.parametrize(("classes", "soft", "weighted", "sampled", "smoothing", "reduction"), ORACLE_GRID)
def test_every_option_against_the_oracle(dtype, classes, soft, weighted, sampled, smoothing, reduction, record):
    """Loss, gradient, diagonal, Hessian and HVP of rows of every sort.

    A share has an error of 1.5 eps, from base and gain, their sum, and the product with its weight. The loss has
    6.5 ulp: 4 of log p, these 1.5, and the products with the share and with the weight of the row. A gradient has,
    in eps of its terms, 3 of p, 1.5 of the shares, and four roundings. Diagonal and Hessian have 8: 3 of each of
    two probabilities, their product, and the factor of the row (a sum of shares in float64).
    """
    x, y, options = oracle_options(dtype, classes, soft, weighted, sampled, smoothing, reduction)
    reference = oracle.CrossEntropy(x, y, **options)
    loss, gradient = fs.cross_entropy_with_grad(x, y, **options)
    detail = f"K = {classes}, {options}"
    ulps, _ = oracle.worst(loss, np.asarray(reference.loss, object))
    record("cross_entropy, all options", dtype, ulps, 6.5, detail)
    tiny = np.finfo(dtype).tiny
    scale = np.array([max(float(v), tiny) for v in reference.terms.ravel()]).reshape(x.shape)
    ulps, place = oracle.worst(gradient, reference.gradient, scale)
    record("cross_entropy_grad, all options (eps of its terms)", dtype, ulps, 6.5, f"{detail} {place}")
    ulps, place = oracle.worst(fs.cross_entropy_hessian_diag(x, y, **options), reference.diagonal)
    record("cross_entropy_hessian_diag, all options", dtype, ulps, 8, f"{detail} {place}")
    if classes <= 17:
        ulps, place = oracle.worst(fs.cross_entropy_hessian(x, y, **options), reference.hessian)
        record("cross_entropy_hessian, all options", dtype, ulps, 8, f"{detail} {place}")
        v = cases.vectors(x)
        product = np.einsum("nij,nj->ni", reference.hessian, oracle.exact(v))
        ulps, place = oracle.worst(fs.cross_entropy_hvp(x, y, v, **options), product, hvp_terms(reference, v))
        record("cross_entropy_hvp, all options (eps of its terms)", dtype, ulps, 8, f"{detail} {place}")


@every_dtype
@pytest.mark.parametrize(("classes", "inner"), [(3, 4), (3, 20), (17, 20), (60, 20), (300, 12)])
@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.1}, {"label_smoothing": 1.0}, {"weighted": True}], ids=str
)
def test_classes_that_are_not_last(dtype, classes, inner, options, record):
    """There the shares of each row are summed in a lane of its own. The bounds are the same."""
    rng = np.random.default_rng(classes + inner)
    x = rng.normal(0, 3, (classes, inner)).astype(dtype)
    y = rng.integers(0, classes, inner)
    options = dict(options)
    if options.pop("weighted", False):
        options["class_weight"] = rng.uniform(0.1, 3, classes).astype(dtype)
        y = (rng.random((classes, inner)) ** 3).astype(dtype)
    reference = oracle.CrossEntropy(np.ascontiguousarray(x.T), y.T, reduction="none", **options)
    loss, gradient = fs.cross_entropy_with_grad(x, y, axis=0, reduction="none", **options)
    ulps, place = oracle.worst(loss, reference.loss)
    record("cross_entropy, all options, axis 0", dtype, ulps, 6.5, f"K = {classes}, {place}")
    ulps, place = oracle.worst(gradient.T, reference.gradient, np.float64(reference.terms))
    record(
        "cross_entropy_grad, all options, axis 0 (eps of its terms)", dtype, ulps, 6.5, f"K = {classes}, {place}"
    )


# --- (c) what PyTorch gets wrong ------------------------------------------------------------------------------

POISON = (np.nan, np.inf, -np.inf)
layouts = pytest.mark.parametrize(("shape", "axis"), [((12, 5), 1), ((12, 70), 1), ((5, 24), 0), ((70, 24), 0)])


def every_result(x, y, axis, **options):
    """Loss, gradient, HVP, diagonal and Hessian."""
    tangent = np.random.default_rng(3).normal(size=x.shape).astype(x.dtype)
    return (
        *fs.cross_entropy_with_grad(x, y, axis, **options),
        fs.cross_entropy(x, y, axis, **options),
        fs.cross_entropy_grad(x, y, axis, **options),
        fs.cross_entropy_hvp(x, y, tangent, axis, **options),
        fs.cross_entropy_hessian_diag(x, y, axis, **options),
        np.moveaxis(fs.cross_entropy_hessian(x, y, axis, **options), 0, axis),
    )


def rows_first(array, axis):
    return np.moveaxis(array, axis, -1)


@every_dtype
@layouts
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("by", ["ignore_index", "sample_weight", "sample_weight of distributions"])
def test_rows_that_do_not_count(dtype, shape, axis, smoothing, reduction, by):
    """The contents of such rows change no bit of any result, and their gradients and Hessians are exactly 0."""
    rng = np.random.default_rng(4)
    x = rng.normal(0, 2, shape).astype(dtype)
    rows, classes = x.size // shape[axis], shape[axis]
    out = np.arange(rows) % 3 == 1
    options = {"label_smoothing": smoothing, "reduction": reduction}
    y = rng.integers(0, classes, rows)
    if by == "ignore_index":
        y[out] = -1
        options["ignore_index"] = -1
    else:
        options["sample_weight"] = np.where(out, 0, rng.uniform(0.5, 2, rows))
    if by == "sample_weight of distributions":
        y = rng.random(shape).astype(dtype)
    clean = every_result(x, y, axis, **options)
    assert all(np.isfinite(result).all() for result in clean)
    dirty = x.copy()
    view = rows_first(dirty, axis)
    view[out, rng.integers(0, classes, out.sum())] = rng.choice(POISON, out.sum())
    view[np.flatnonzero(out)[0]] = np.nan
    view[np.flatnonzero(out)[1]] = -np.inf
    with np.errstate(all="raise"):
        spoiled = every_result(dirty, y, axis, **options)
    for actual, expected in zip(spoiled, clean, strict=True):
        np.testing.assert_array_equal(actual, expected)
    for result in (spoiled[1], spoiled[3], spoiled[4], spoiled[5]):
        assert not rows_first(result, axis)[out].any()
    if by == "sample_weight of distributions":
        rows_first(y, axis)[out] = np.nan
        for actual, expected in zip(every_result(dirty, y, axis, **options)[:4], clean[:4], strict=True):
            np.testing.assert_array_equal(actual, expected)


@every_dtype
@layouts
def test_the_rows_that_count_are_those_of_a_smaller_problem(dtype, shape, axis):
    """Without the ignored rows, loss and gradient are the same."""
    rng = np.random.default_rng(5)
    x = rng.normal(0, 2, shape).astype(dtype)
    y = rng.integers(0, shape[axis], x.size // shape[axis])
    y[::4] = -100
    kept = np.ascontiguousarray(rows_first(x, axis)[y != -100])
    weights = rng.uniform(0.5, 2, shape[axis])
    loss, gradient = fs.cross_entropy_with_grad(x, y, axis, ignore_index=-100, class_weight=weights)
    expected = fs.cross_entropy_with_grad(kept, y[y != -100], class_weight=weights)
    np.testing.assert_allclose(loss, expected[0], rtol=2 * np.finfo(dtype).eps)
    scale = np.abs(expected[1]).max()
    np.testing.assert_allclose(
        rows_first(gradient, axis)[y != -100], expected[1], rtol=0, atol=2 * np.finfo(dtype).eps * scale
    )


@every_dtype
@layouts
def test_zero_targets_against_minus_infinity(dtype, shape, axis):
    """0 * inf is 0 here, in loss and gradient; without smoothing, also for labels of another class."""
    rng = np.random.default_rng(6)
    x = rng.normal(0, 2, shape).astype(dtype)
    view = rows_first(x, axis)
    view[:, 0] = -np.inf
    view[::2, 3] = -np.inf
    rows, classes = view.shape
    rest = np.delete(view, 0, axis=1)
    y = rng.random((rows, classes)).astype(dtype)
    y[np.isneginf(view)] = 0
    targets = np.moveaxis(y, -1, axis)
    loss, gradient = fs.cross_entropy_with_grad(x, targets, axis, reduction="none")
    assert np.isfinite(loss).all()
    assert np.isfinite(gradient).all()
    assert not rows_first(gradient, axis)[np.isneginf(view)].any()
    rest[np.isneginf(rest)] = -1e4
    expected = fs.cross_entropy_with_grad(np.ascontiguousarray(rest), np.delete(y, 0, axis=1), reduction="none")
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(loss, expected[0], rtol=9 * eps)
    np.testing.assert_allclose(
        np.delete(rows_first(gradient, axis), 0, axis=1), expected[1], rtol=0, atol=8 * eps * y.sum(-1).max()
    )
    labels = np.full(rows, 1)
    weights = np.zeros(classes)
    weights[1:] = 2
    for options in ({}, {"class_weight": weights}):
        loss, gradient = fs.cross_entropy_with_grad(x, labels, axis, reduction="none", **options)
        assert np.isfinite(loss).all()
        assert np.isfinite(gradient).all()
    # smoothing gives the first class a share, which its weight makes 0
    view[::2, 3] = 0
    loss, gradient = fs.cross_entropy_with_grad(x, labels, axis, class_weight=weights, label_smoothing=0.1)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert fs.cross_entropy(x, labels, axis, label_smoothing=0.1) == np.inf


@every_dtype
@pytest.mark.parametrize("classes", [2, 10, 60])
def test_confident_rows(dtype, classes, record):
    """A weight adds one rounding to the 4 ulp of loss and gradient. Smoothing of 0 gives the same bits.

    Losses down to exp(-80), where PyTorch gives 0.
    """
    rng = np.random.default_rng(classes)
    x = rng.normal(0, 0.5, (40, classes))
    y = rng.integers(0, classes, 40)
    x[np.arange(40), y] = x.max(-1) + np.linspace(2, 80, 40)
    x = x.astype(dtype)
    plain = fs.cross_entropy_with_grad(x, y, reduction="none")
    for actual, expected in zip(
        fs.cross_entropy_with_grad(x, y, reduction="none", label_smoothing=0.0), plain, strict=True
    ):
        np.testing.assert_array_equal(actual, expected)
    reference = oracle.CrossEntropy(x, y, reduction="none")
    record("cross_entropy, confident rows", dtype, oracle.worst(plain[0], reference.loss)[0], 4)
    record("cross_entropy_grad, confident rows", dtype, oracle.worst(plain[1], reference.gradient)[0], 4)
    options = {
        "class_weight": rng.uniform(0.5, 2, classes).astype(dtype),
        "sample_weight": rng.uniform(0.5, 2, 40).astype(dtype),
        "reduction": "none",
    }
    reference = oracle.CrossEntropy(x, y, **options)
    loss, gradient = fs.cross_entropy_with_grad(x, y, **options)
    record("cross_entropy, confident rows, weighted", dtype, oracle.worst(loss, reference.loss)[0], 5)
    record("cross_entropy_grad, confident rows, weighted", dtype, oracle.worst(gradient, reference.gradient)[0], 5)
    assert (loss > 0).all()


@every_dtype
@layouts
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_all_rows_ignored(dtype, shape, axis, smoothing):
    """The mean over no rows is nan, the sum is 0, and gradients and Hessians are 0."""
    x = np.full(shape, np.nan, dtype)
    rows = x.size // shape[axis]
    nobody = {"ignore_index": -100}, np.full(rows, -100)
    weightless = {"sample_weight": np.zeros(rows)}, np.zeros(rows, int)
    for options, y in (nobody, weightless):
        with np.errstate(all="raise"):
            mean = every_result(x, y, axis, label_smoothing=smoothing, **options)
            total = every_result(x, y, axis, label_smoothing=smoothing, reduction="sum", **options)
            each = every_result(x, y, axis, label_smoothing=smoothing, reduction="none", **options)
        assert np.isnan(mean[0])
        assert np.isnan(mean[2])
        assert total[0] == total[2] == 0
        assert not each[0].any()
        for result in (mean, total, each):
            for array in (result[1], *result[3:]):
                assert not array.any()


@every_dtype
@pytest.mark.parametrize("spread", [1, 1e5])
def test_labels_of_no_weight_and_smoothing(dtype, spread):
    """If only the classes of the labels have weight 0, the mean divides by 0 and is nan, as in PyTorch.

    This holds also if a probability is 0.
    """
    x, y = (spread * np.random.default_rng(8).normal(size=(4, 3))).astype(dtype), np.ones(4, int)
    options = {"class_weight": [1.0, 0.0, 2.0], "label_smoothing": 0.3}
    loss, gradient = fs.cross_entropy_with_grad(x, y, **options)
    assert np.isnan([loss, fs.cross_entropy(x, y, **options)]).all()
    derivatives = [gradient, fs.cross_entropy_grad(x, y, **options), fs.cross_entropy_hvp(x, y, x, **options)]
    derivatives += [fs.cross_entropy_hessian(x, y, **options), fs.cross_entropy_hessian_diag(x, y, **options)]
    assert all(np.isnan(derivative).all() for derivative in derivatives)
    assert fs.cross_entropy(x, y, reduction="sum", **options) > 0


def test_a_label_of_weight_zero():
    """Rows with a label of weight 0 have no influence, whatever they hold."""
    x = np.random.default_rng(7).normal(size=(6, 3))
    y = np.array([0, 1, 2, 0, 1, 2])
    x[y == 1] = np.nan
    loss, gradient = fs.cross_entropy_with_grad(x, y, class_weight=[1, 0, 2])
    kept = fs.cross_entropy_with_grad(x[y != 1], y[y != 1], class_weight=[1, 0, 2])
    assert loss == kept[0]
    np.testing.assert_array_equal(gradient[y != 1], kept[1])
    assert not gradient[y == 1].any()


SIZES = {
    np.float32: [(1e-45, 1), (1, 1e-42), (1e-30, 1e-30), (1e-40, 1e38), (1e30, 1e30), (3e38, 1)],
    np.float64: [(5e-324, 1), (1, 1e-310), (1e-200, 1e-200), (1e-310, 1e300), (1e200, 1e200), (1, 1e308)],
}


@pytest.mark.parametrize(("dtype", "sizes"), [(dtype, sizes) for dtype in SIZES for sizes in SIZES[dtype]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_of_any_size(dtype, sizes, smoothing, record):
    """A common factor of the weights cancels in a mean, also if their products, sums or inverses leave the range.

    Bounds as in `test_every_option_against_the_oracle`.
    """
    x, y = oracle_rows(dtype, 5)
    rng = np.random.default_rng(11)
    with np.errstate(all="ignore"):
        options = {
            "class_weight": (rng.uniform(0.3, 1, 5) * sizes[0]).astype(dtype),
            "sample_weight": (rng.uniform(0.3, 1, 9) * sizes[1]).astype(dtype),
            "label_smoothing": smoothing,
        }
    options["class_weight"][y[0]] = dtype(sizes[0])
    options["sample_weight"][0] = dtype(sizes[1])
    v = cases.vectors(x)
    with np.errstate(all="raise"):
        loss, gradient = fs.cross_entropy_with_grad(x, y, **options)
        diagonal, hessian = (
            fs.cross_entropy_hessian_diag(x, y, **options),
            fs.cross_entropy_hessian(x, y, **options),
        )
        hvp = fs.cross_entropy_hvp(x, y, v, **options)
    reference = oracle.CrossEntropy(x, y, **options)
    product = np.einsum("nij,nj->ni", reference.hessian, oracle.exact(v))
    tiny = np.finfo(dtype).tiny
    terms = np.array([max(float(t), tiny) for t in reference.terms.ravel()]).reshape(x.shape)
    for name, actual, right, scale, bound in (
        ("cross_entropy, weights of any size", loss, reference.loss, None, 6.5),
        ("cross_entropy_grad, weights of any size (eps of its terms)", gradient, reference.gradient, terms, 6.5),
        ("cross_entropy_hessian_diag, weights of any size", diagonal, reference.diagonal, None, 8),
        ("cross_entropy_hessian, weights of any size", hessian, reference.hessian, None, 8),
        ("cross_entropy_hvp, weights of any size (eps of its terms)", hvp, product, hvp_terms(reference, v), 8),
    ):
        record(name, dtype, oracle.worst(actual, right, scale)[0], bound)


@every_dtype
def test_weights_of_every_size_at_once(dtype):
    """A row of negligible weight adds nothing to the loss, but a NaN in it makes the loss NaN."""
    least, most = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    x, y = np.array([[0.0, 1.0], [2.0, 0.0]], dtype), np.array([0, 1])
    for options in ({"sample_weight": [least, most]}, {"class_weight": [least, most]}):
        loss, gradient = fs.cross_entropy_with_grad(x, y, **options)
        heavy = fs.cross_entropy_with_grad(x[1:], y[1:])
        np.testing.assert_allclose(loss, heavy[0], rtol=4 * np.finfo(dtype).eps)
        np.testing.assert_allclose(gradient[1], heavy[1][0], rtol=4 * np.finfo(dtype).eps)
        assert not gradient[0].any()
        hidden = np.where(np.arange(2)[:, None] == 0, np.nan, x).astype(dtype)
        loss, gradient = fs.cross_entropy_with_grad(hidden, y, **options)
        assert np.isnan(loss)
        assert np.isnan(gradient[0]).all()
        assert np.isfinite(gradient[1]).all()


@every_dtype
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_classes_of_no_weight(dtype, smoothing):
    """With all weights 0, a mean and its derivatives are 0/0 = nan, as in PyTorch; those of ignored rows are 0."""
    x = np.random.default_rng(9).normal(size=(5, 3)).astype(dtype)
    y = np.array([0, 1, -100, 2, 1])
    options = {"class_weight": np.zeros(3), "label_smoothing": smoothing, "ignore_index": -100}
    out = np.array([False, False, True, True, False])
    x[out] = np.nan
    options["sample_weight"] = np.where(np.arange(5) == 3, 0.0, 2.0)
    loss, gradient = fs.cross_entropy_with_grad(x, y, **options)
    assert np.isnan(loss)
    derivatives = [gradient, fs.cross_entropy_hvp(x, y, np.ones_like(x), **options)]
    derivatives += [fs.cross_entropy_hessian(x, y, **options), fs.cross_entropy_hessian_diag(x, y, **options)]
    for derivative in derivatives:
        assert np.isnan(derivative[~out]).all()
        assert not derivative[out].any()
    for reduction in ("sum", "none"):
        loss, gradient = fs.cross_entropy_with_grad(x, y, reduction=reduction, **options)
        assert not np.any(loss)
        assert not gradient.any()


# --- (d) labels and errors ------------------------------------------------------------------------------------


def call(function, x, y, **options):
    if function is fs.cross_entropy_hvp:
        return function(x, y, np.ones_like(x), **options)
    return function(x, y, **options)


@by_name
@pytest.mark.parametrize("kind", INDEX_DTYPES)
def test_wrong_labels_of_every_dtype(function, kind):
    """The message names value and position, in the user's order of axes; nothing is written."""
    x = np.zeros((2, 5, 3))
    info = np.iinfo(kind)
    wrong = {5, 6, int(info.max)} | ({-1, -5, int(info.min)} if info.min < 0 else {2**63, 2**64 - 1} & {info.max})
    if kind is np.uint64:
        wrong |= {2**63, 2**63 + 1, 2**64 - 1}
    for label in sorted(wrong):
        y = np.zeros((2, 3), kind)
        y[1, 2] = label
        message = rf"{function.__name__}: targets\[1, 2\] is {label}, expected a label from 0 to 4"
        for form in (y, np.asfortranarray(y), y.astype(y.dtype.newbyteorder())):
            for ignored in (None, 1, -100 if label != -100 else -99):
                options = {"axis": 1, "ignore_index": ignored}
                if function is not fs.cross_entropy:
                    shape = (2, 3, 5, 5) if function is fs.cross_entropy_hessian else x.shape
                    options["out"] = np.full(shape, 7.0)
                with pytest.raises(IndexError, match=message):
                    function(x, form, **options)
                assert "out" not in options or (options["out"] == 7).all()
        assert fs.cross_entropy(x, y, axis=1, ignore_index=label) == fs.cross_entropy(x[:1], y[:1], axis=1)


def test_ignored_labels_beyond_the_dtype_of_the_targets():
    """An ignore_index beyond the dtype of the labels ignores none: for uint8, -100 is not 156 and 256 is not 0."""
    x = np.random.default_rng(8).normal(size=(4, 200))
    y = np.array([156, 0, 1, 199], np.uint8)
    for ignored in (-100, 256, 2**63, 2**64, -(2**70), np.int64(-100), np.uint64(2**64 - 1)):
        assert fs.cross_entropy(x, y, ignore_index=ignored) == fs.cross_entropy(x, y)
    assert fs.cross_entropy(x, y, ignore_index=np.uint8(156)) == fs.cross_entropy(x[1:], y[1:])
    huge = np.array([2**64 - 1, 3, 4, 5], np.uint64)
    assert fs.cross_entropy(x, huge, ignore_index=2**64 - 1) == fs.cross_entropy(x[1:], huge[1:])
    with pytest.raises(IndexError, match=r"targets\[0\] is 18446744073709551615,"):
        fs.cross_entropy(x, huge, ignore_index=-1)


def test_labels_that_another_thread_changes():
    """For two seconds, labels change between check and use. There is an IndexError or a result, but no crash."""
    x = np.random.default_rng(9).normal(size=(20_000, 10))
    beside = np.ascontiguousarray(x.T)
    y = np.zeros(20_000, np.int64)
    stop = threading.Event()

    def meddle():
        while not stop.is_set():
            y[::7] = 2**62
            y[::11] = -(2**62)
            y[:] = 3

    thread = threading.Thread(target=meddle)
    thread.start()
    outcomes = defaultdict(int)
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for array, axis in ((x, 1), (beside, 0)):
                for smoothing in (0.0, 0.1):
                    try:
                        loss, gradient = fs.cross_entropy_with_grad(array, y, axis, label_smoothing=smoothing)
                    except IndexError:
                        outcomes["error"] += 1
                    else:
                        outcomes["result"] += 1
                        assert np.isfinite(loss)
                        assert np.isfinite(gradient).all()
    finally:
        stop.set()
        thread.join()
    assert outcomes["result"] + outcomes["error"] > 10


X = np.zeros((4, 3))
LABELS = np.array([0, 1, 2, 0])
WRONG = [
    ({"class_weight": np.ones(4)}, ValueError, ["class_weight", "(4,)", "expected (3,)"]),
    ({"class_weight": np.ones((1, 3))}, ValueError, ["class_weight", "(1, 3)", "expected (3,)"]),
    ({"class_weight": 2.0}, ValueError, ["class_weight", "()", "expected (3,)"]),
    ({"class_weight": np.ones(3, complex)}, TypeError, ["class_weight", "complex128"]),
    ({"class_weight": ["a", "b", "c"]}, TypeError, ["class_weight", "dtype"]),
    ({"class_weight": np.ma.masked_array(np.ones(3))}, TypeError, ["class_weight", "masked array"]),
    ({"sample_weight": np.ones(3)}, ValueError, ["sample_weight", "(3,)", "expected (4,)"]),
    ({"sample_weight": np.ones((4, 1))}, ValueError, ["sample_weight", "(4, 1)", "expected (4,)"]),
    ({"sample_weight": np.array([None] * 4)}, TypeError, ["sample_weight", "object"]),
    ({"label_smoothing": -0.1}, ValueError, ["label_smoothing", ">= 0", "-0.1"]),
    ({"label_smoothing": 1.5}, ValueError, ["label_smoothing", "at most 1", "1.5"]),
    ({"label_smoothing": np.nan}, ValueError, ["label_smoothing", "finite", "nan"]),
    ({"label_smoothing": "0.1"}, TypeError, ["label_smoothing", "a number", "'0.1'"]),
    ({"label_smoothing": None}, TypeError, ["label_smoothing", "a number", "None"]),
    ({"ignore_index": 1.0}, TypeError, ["ignore_index", "an integer or None", "1.0"]),
    ({"ignore_index": "1"}, TypeError, ["ignore_index", "an integer or None", "'1'"]),
    ({"ignore_index": True}, TypeError, ["ignore_index", "an integer or None", "True"]),
    ({"reduction": "avg"}, ValueError, ["reduction", "('mean', 'sum', 'none')", "'avg'"]),
    ({"reduction": None}, ValueError, ["reduction", "('mean', 'sum', 'none')", "None"]),
]


@pytest.mark.parametrize("function", [*LOSSES, fs.cross_entropy_hvp], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("options", "error", "words"), WRONG, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_errors_of_options(function, options, error, words):
    with pytest.raises(error) as caught:
        call(function, X, LABELS, **options)
    for word in (f"{function.__name__}: ", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("function", [*LOSSES, fs.cross_entropy_hvp], ids=lambda f: f.__name__)
def test_errors_of_combinations(function):
    message = rf"{function.__name__}: ignore_index is for class indices.*\(4, 3\)"
    with pytest.raises(ValueError, match=message):
        call(function, X, np.ones((4, 3)), ignore_index=-100)
    for reduction in (["mean"], np.array(["mean", "sum"])):
        with pytest.raises((ValueError, TypeError), match="reduction"):
            call(function, X, LABELS, reduction=reduction)


# --- (e) properties -------------------------------------------------------------------------------------------

quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def problems(draw, scale=3.0):
    """Logits, targets, tangent and options of a float64 problem."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, classes = draw(st.integers(1, 12)), draw(st.sampled_from([1, 2, 3, 7, 17, 60]))
    x = rng.normal(draw(st.floats(-100, 100)), scale, (rows, classes))
    options = {
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    if draw(st.booleans()):
        options["class_weight"] = rng.uniform(0.1, 2, classes)
    if draw(st.booleans()):
        options["sample_weight"] = rng.uniform(0.1, 2, rows) * (rng.random(rows) < 0.8)
    soft = draw(st.booleans())
    y = rng.random((rows, classes)) if soft else rng.integers(0, classes, rows)
    if not soft and draw(st.booleans()):
        options["ignore_index"] = draw(st.sampled_from([0, -100]))
    return x, y, rng.normal(0, 1, (rows, classes)), options


def totals(x, y, options):
    """The factor of each row's Hessian: its trace over the sum of p (1 - p)."""
    p = fs.softmax(x)
    spread = np.sum(p * (1 - p), axis=-1)
    trace = np.sum(fs.cross_entropy_hessian_diag(x, y, **options), axis=-1)
    return np.divide(trace, spread, out=np.zeros(len(x)), where=spread > 1e-12)


@quick
@given(problems())
def test_gradients_sum_to_zero(problem):
    """The sum over the classes is 0 within 10 eps of the total of the row, for labels and any options."""
    x, y, _, options = problem
    gradient = fs.cross_entropy_grad(x, y, **options)
    size = np.abs(gradient).sum(axis=-1) + totals(x, y, options)
    assert np.all(np.abs(gradient.sum(axis=-1)) <= 10 * EPS * size)


@quick
@given(problems())
def test_the_hessian_is_symmetric_and_semi_definite(problem):
    """<u, H v> = <v, H u> and <v, H v> >= 0 for the products. The dense Hessian is symmetric to the bit."""
    x, y, v, options = problem
    u = v[::-1] ** 2 - 0.5
    by_v, by_u = (fs.cross_entropy_hvp(x, y, t, **options) for t in (v, u))
    factor = totals(x, y, options) + np.finfo(float).tiny
    size = np.abs(u).max(-1) * np.abs(v).max(-1) * factor
    assert np.all(np.abs(np.sum(u * by_v, axis=-1) - np.sum(v * by_u, axis=-1)) <= 30 * EPS * size)
    assert np.all(np.sum(v * by_v, axis=-1) >= -15 * EPS * np.abs(v).max(-1) ** 2 * factor)
    hessian = fs.cross_entropy_hessian(x, y, **options)
    np.testing.assert_allclose(hessian, np.swapaxes(hessian, -1, -2), rtol=2 * EPS, atol=np.finfo(float).tiny)
    lowest = np.linalg.eigvalsh(hessian)[:, 0]
    assert np.all(lowest >= -20 * EPS * factor)


@quick
@given(problems())
def test_the_dense_hessian_agrees(problem):
    """Its diagonal is `cross_entropy_hessian_diag`, within 8 ulp each. Its product with a vector is the HVP."""
    x, y, v, options = problem
    hessian = fs.cross_entropy_hessian(x, y, **options)
    diagonal = fs.cross_entropy_hessian_diag(x, y, **options)
    tiny = np.finfo(float).tiny
    np.testing.assert_allclose(np.diagonal(hessian, axis1=-2, axis2=-1), diagonal, rtol=16 * EPS, atol=tiny)
    product = np.einsum("nij,nj->ni", hessian, v)
    terms = np.einsum("nij,nj->ni", np.abs(hessian), np.abs(v))
    p = fs.softmax(x)
    terms += p * np.abs(v).max(-1, keepdims=True) * totals(x, y, options)[:, None]
    difference = np.abs(fs.cross_entropy_hvp(x, y, v, **options) - product)
    assert np.all(difference <= (16 + x.shape[1]) * EPS * terms + tiny)


@quick
@given(problems())
def test_the_hvp_is_the_finite_difference_of_the_gradient(problem):
    """Central differences, step eps**(1/3): h**2/6 of third derivatives below 6, and the gradient's rounding."""
    x, y, v, options = problem
    step = 6e-6
    difference = [fs.cross_entropy_grad(x + h * v, y, **options) for h in (step, -step)]
    actual = fs.cross_entropy_hvp(x, y, v, **options)
    size = totals(x, y, options)[:, None]
    cube = np.abs(v).max(-1, keepdims=True) ** 3
    # x + h v is rounded to the spacing of x, which moves the gradient by as much of the row's total
    rounding = (10 + np.abs(x).max(-1, keepdims=True)) * EPS / step
    atol = size * (step**2 * cube + rounding) + EPS
    assert np.all(np.abs((difference[0] - difference[1]) / (2 * step) - actual) <= atol)


@quick
@given(problems())
def test_the_gradient_is_the_finite_difference_of_the_loss(problem):
    """Along the tangent, for the sum of all rows' losses."""
    x, y, v, options = problem
    step = 6e-6

    def total(z):
        return np.sum(fs.cross_entropy(z, y, **options))

    with np.errstate(invalid="ignore"):
        difference = (total(x + step * v) - total(x - step * v)) / (2 * step)
    if np.isnan(difference):  # the mean of no rows
        return
    slope = np.sum(fs.cross_entropy_grad(x, y, **options) * v)
    size = np.sum(totals(x, y, options) * np.abs(v).max(-1) ** 3)
    value = abs(total(x)) + np.sum(totals(x, y, options)) * (1 + np.abs(x).max())
    assert abs(difference - slope) <= step**2 * size + 10 * EPS * value / step
