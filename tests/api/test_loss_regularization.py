"""z_loss and softcap of cross_entropy and its derivatives, alone and with every other option."""

import itertools

import cases
import numpy as np
import oracle
import pytest
from numba import njit

import fastsoftmax as fs
from fastsoftmax.kernels import scalar

every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)
SECOND = (fs.cross_entropy_hessian_diag, fs.cross_entropy_hessian)
GRID = {
    "shape": (((3, 70), 1), ((2, 7, 9), 1)),
    "soft": (False, True),
    "weighted": (False, True),
    "sampled": (False, True),
    "smoothing": (0.0, 0.1),
    "ignored": (None, -100),
    "z_loss": (0.0, 1e-2),
    "softcap": (None, 3.0),
    "reduction": ("mean", "none"),
}


def grid():
    for values in itertools.product(*GRID.values()):
        case = dict(zip(GRID, values, strict=True))
        if (case["z_loss"] or case["softcap"]) and not (case["soft"] and case["ignored"]):
            yield case


def arguments(case):
    """Logits, targets and options of one combination in float64."""
    shape, axis = case["shape"]
    rng = np.random.default_rng(sum(shape))
    x = rng.normal(0, 3, shape)
    rows = shape[:axis] + shape[axis + 1 :]
    options = {
        "label_smoothing": case["smoothing"],
        "reduction": case["reduction"],
        "ignore_index": case["ignored"],
    }
    options |= {"z_loss": case["z_loss"], "softcap": case["softcap"]}
    options["class_weight"] = rng.uniform(0.2, 2, shape[axis]) if case["weighted"] else None
    options["sample_weight"] = rng.uniform(0.2, 2, rows) if case["sampled"] else None
    if case["soft"]:
        return x, rng.random(shape), options
    y = rng.integers(0, shape[axis], rows)
    if case["ignored"] is not None:
        y[rng.random(y.shape) < 0.2] = case["ignored"]
    return x, y, options


def by_torch(torch, x, y, axis, options):
    """The loss, from the formula, with a graph for derivatives."""
    tensor = torch.tensor
    z = x if options["softcap"] is None else options["softcap"] * torch.tanh(x / options["softcap"])
    z, classes = torch.movedim(z, axis, -1), x.shape[axis]
    soft = y.ndim == x.ndim
    counts = torch.ones(z.shape[:-1], dtype=x.dtype)
    if options["sample_weight"] is not None:
        counts = tensor(options["sample_weight"])
    if options["ignore_index"] is not None:
        counts = torch.where(tensor(y == options["ignore_index"]), 0.0, counts)
    labels = None if soft else tensor(np.where(y < 0, 0, y))
    q = torch.movedim(tensor(y), axis, -1) if soft else torch.nn.functional.one_hot(labels, classes).to(x.dtype)
    q = (1 - options["label_smoothing"]) * q + options["label_smoothing"] / classes
    weights = torch.ones(classes, dtype=x.dtype)
    if options["class_weight"] is not None:
        weights = tensor(options["class_weight"])
    lse = torch.logsumexp(z, -1)
    rows = counts * ((weights * q * (lse[..., None] - z)).sum(-1) + options["z_loss"] * lse**2)
    if options["reduction"] == "none":
        return rows
    divisor = 1.0
    if options["reduction"] == "mean":
        divisor = counts.numel() if soft else (counts * weights[labels]).sum()
    return rows.sum() / divisor


def test_all_options_agree_with_torch():
    """Loss, gradient and product with the Hessian in float64, by PyTorch's autograd: within 1e-12.

    Sums of some hundred terms below 100, each within a few eps.
    """
    torch = pytest.importorskip("torch")
    count = 0
    for case in grid():
        x, y, options = arguments(case)
        axis = case["shape"][1]
        a = torch.tensor(x, requires_grad=True)
        expected = by_torch(torch, a, y, axis, options)
        loss, gradient = fs.cross_entropy_with_grad(x, y, axis, **options)
        np.testing.assert_array_equal(loss, fs.cross_entropy(x, y, axis, **options))
        np.testing.assert_array_equal(gradient, fs.cross_entropy_grad(x, y, axis, **options))
        np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-12, atol=1e-12, err_msg=str(case))
        (slope,) = torch.autograd.grad(expected.sum(), a, create_graph=True)
        np.testing.assert_allclose(gradient, slope.detach().numpy(), rtol=1e-12, atol=1e-12, err_msg=str(case))
        v = np.random.default_rng(1).normal(size=x.shape)
        (product,) = torch.autograd.grad((slope * torch.tensor(v)).sum(), a)
        actual = fs.cross_entropy_hvp(x, y, v, axis, **options)
        np.testing.assert_allclose(actual, product.numpy(), rtol=1e-12, atol=1e-12, err_msg=str(case))
        count += 1
    assert count == 2 * 2 * 2 * 2 * 2 * 3 * (2 + 1)


@every_dtype
@pytest.mark.parametrize("classes", [2, 17, 70])
@pytest.mark.parametrize(("z_loss", "softcap"), [(1e-2, None), (1.0, None), (0.0, 5.0), (1e-2, 30.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_against_the_oracle(dtype, classes, z_loss, softcap, smoothing, record):
    """Every result within 12 eps of its terms, plus what the rounding of the capped logits makes of them.

    Capped logits are within 3 ulp. An error e of a logit is a relative one of p; so each term of a result errs by
    2 e at most, e <= 3 eps max(abs(z)) <= 3 eps softcap.
    """
    rng = np.random.default_rng(classes)
    x = rng.normal(0, 3, (4, classes)).astype(dtype)
    x[1] += 20
    x[2, 0] += 40
    y = rng.integers(0, classes, 4)
    y[2] = 0
    v = cases.vectors(x)
    options = {"z_loss": z_loss, "softcap": softcap, "label_smoothing": smoothing, "reduction": "none"}
    loss, gradient = fs.cross_entropy_with_grad(x, y, **options)
    hvp = fs.cross_entropy_hvp(x, y, v, **options)
    diagonal, hessian = (function(x, y, **options) for function in SECOND)
    eps = np.finfo(dtype).eps
    allowed = 12 + (0 if softcap is None else 6 * softcap)
    name = f"regularized, cap {softcap}"
    for n, row in enumerate(x):
        share = oracle.shares(y[n], classes, None, smoothing)
        value, slope, matrix = oracle.regularized(row, share, z_loss, softcap)
        matrix, slope = np.float64(matrix), np.float64(slope)
        plain, _, _ = oracle.regularized(row, share, 0.0, softcap)
        scale = float(value) + abs(float(plain)) + (0 if softcap is None else 1)
        record(f"loss, {name}", dtype, abs(float(value) - loss[n]) / (eps * scale), allowed)
        z = np.float64(row) if softcap is None else softcap * np.tanh(np.float64(row) / softcap)
        s = np.ones(classes) if softcap is None else 1 / np.cosh(np.float64(row) / softcap) ** 2
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        lse = z.max() + np.log(np.exp(z - z.max()).sum())
        c = 1 + 2 * z_loss * abs(lse)
        terms = s * (c * p + np.float64(share))
        error = np.abs(gradient[n] - slope) / (eps * np.maximum(terms, np.finfo(dtype).tiny))
        record(f"gradient, {name}", dtype, error.max(), allowed)
        bend = 0 if softcap is None else 2 / softcap
        size = np.outer(s, s) * (c * (np.diag(p) + np.outer(p, p)) + 2 * z_loss * np.outer(p, p))
        size += np.diag(bend * terms)
        size = np.maximum(size, np.finfo(dtype).tiny)
        record(f"Hessian, {name}", dtype, (np.abs(hessian[n] - matrix) / (eps * size)).max(), allowed)
        error = np.abs(diagonal[n] - np.diag(matrix)) / (eps * np.diag(size))
        record(f"diagonal of the Hessian, {name}", dtype, error.max(), allowed)
        np.testing.assert_array_equal(hessian[n], hessian[n].T)
        error = np.abs(hvp[n] - matrix @ np.float64(v[n])) / (eps * (size @ np.abs(np.float64(v[n])) + 1e-30))
        record(f"HVP, {name}", dtype, error.max(), allowed)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("classes", [4, 80])
def test_derivatives_by_differences(softcap, classes):
    """Central differences of the loss and of the gradient; the product is symmetric."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 2, (5, classes)), rng.integers(0, classes, 5)
    u, v = rng.normal(size=(2, *x.shape))
    options = {"z_loss": 0.05, "softcap": softcap, "sample_weight": rng.uniform(0.5, 2, 5)}
    step = 1e-5
    up, down = (fs.cross_entropy_with_grad(x + sign * step * v, y, **options) for sign in (1, -1))
    gradient = fs.cross_entropy_grad(x, y, **options)
    assert (gradient * v).sum() == pytest.approx((up[0] - down[0]) / (2 * step), rel=1e-8)
    product = fs.cross_entropy_hvp(x, y, v, **options)
    np.testing.assert_allclose(product, (up[1] - down[1]) / (2 * step), rtol=1e-6, atol=1e-9)
    assert (u * product).sum() == pytest.approx((v * fs.cross_entropy_hvp(x, y, u, **options)).sum(), rel=1e-12)
    dense = np.einsum("nij,nj->ni", fs.cross_entropy_hessian(x, y, **options), v)
    np.testing.assert_allclose(product, dense, rtol=1e-11, atol=1e-14)


@every_dtype
def test_options_that_do_nothing_change_no_bit(dtype):
    rng = np.random.default_rng(0)
    for shape, axis in (((40, 7), 1), ((5, 300), 1), ((80, 12), 0)):
        x = rng.normal(0, 3, shape).astype(dtype)
        y = rng.integers(0, shape[axis], x.size // shape[axis])
        for smoothing in (0.0, 0.1):
            options = {"label_smoothing": smoothing}
            plain = fs.cross_entropy_with_grad(x, y, axis, **options)
            same = fs.cross_entropy_with_grad(x, y, axis, z_loss=0, softcap=None, **options)
            for a, b in zip(plain, same, strict=True):
                np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(
                fs.cross_entropy_hessian_diag(x, y, axis, **options),
                fs.cross_entropy_hessian_diag(x, y, axis, z_loss=0.0, **options),
            )


@every_dtype
def test_rows_do_not_depend_on_their_batch(dtype):
    """Blocks, threads, `out` and the layout change no bit."""
    rng = np.random.default_rng(0)
    for rows, classes in ((700, 60), (300, 900), (2, 40000)):
        x = rng.normal(0, 9, (rows, classes)).astype(dtype)
        y, v = rng.integers(0, classes, rows), rng.normal(size=x.shape).astype(dtype)
        options = {"z_loss": 1e-3, "softcap": 15.0, "reduction": "none"}
        loss, gradient = fs.cross_entropy_with_grad(x, y, **options)
        product = fs.cross_entropy_hvp(x, y, v, **options)
        with fs.threads(1):
            one = fs.cross_entropy_with_grad(x[1:2], y[1:2], **options)
            np.testing.assert_array_equal(fs.cross_entropy_hvp(x[1:2], y[1:2], v[1:2], **options)[0], product[1])
        assert one[0][0] == loss[1]
        np.testing.assert_array_equal(one[1][0], gradient[1])
        turned = fs.cross_entropy_with_grad(x.T, y, 0, **options)
        np.testing.assert_array_equal(turned[1].T, gradient)
        np.testing.assert_array_equal(fs.cross_entropy_hvp(x, y, v, **options, out=v), product)
        np.testing.assert_array_equal(fs.cross_entropy_grad(x, y, **options, out=x), gradient)


@every_dtype
@pytest.mark.parametrize("by", ["ignore_index", "sample_weight"])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_rows_that_do_not_count(dtype, by, softcap):
    rng = np.random.default_rng(1)
    x, y = rng.normal(0, 3, (6, 9)).astype(dtype), rng.integers(0, 9, 6)
    out = np.arange(6) % 3 == 1
    options = {"z_loss": 0.1, "softcap": softcap}
    if by == "ignore_index":
        y[out], options["ignore_index"] = -1, -1
    else:
        options["sample_weight"] = np.where(out, 0, 1.5)
    dirty = x.copy()
    dirty[out] = [[np.nan], [np.inf]]
    with np.errstate(all="raise"):
        for function in (fs.cross_entropy, fs.cross_entropy_grad, *SECOND):
            clean, spoiled = function(x, y, **options), function(dirty, y, **options)
            np.testing.assert_array_equal(clean, spoiled)
            assert np.ndim(clean) == 0 or not spoiled[out].any()
        assert not fs.cross_entropy_hvp(dirty, y, x, **options)[out].any()
        nobody = {**options, "sample_weight": np.zeros(6)}
        assert np.isnan(fs.cross_entropy(dirty, y, **nobody))
        assert not fs.cross_entropy_grad(dirty, y, **nobody).any()
        assert fs.cross_entropy(dirty, y, **nobody, reduction="sum") == 0


def test_infinities():
    """A capped infinity is the cap, and its derivative is 0. Without a cap, -inf has probability 0. NaN stays."""
    x = np.array([[0.0, -np.inf, 1.0], [0.0, np.inf, 1.0], [np.nan, 0.0, 1.0]])
    y = np.array([0, 0, 1])
    loss, gradient = fs.cross_entropy_with_grad(x, y, softcap=2.0, reduction="none")
    finite = np.where(np.isinf(x), np.sign(x) * 1e6, x)
    expected = fs.cross_entropy_with_grad(finite, y, softcap=2.0, reduction="none")
    np.testing.assert_array_equal(loss, expected[0])
    np.testing.assert_array_equal(gradient, expected[1])
    assert gradient[0, 1] == gradient[1, 1] == 0
    assert np.isnan(loss[2])
    assert np.isnan(gradient[2]).all()
    loss, gradient = fs.cross_entropy_with_grad(x[:1], y[:1], z_loss=0.5)
    shorter = fs.cross_entropy_with_grad(x[:1, ::2], y[:1], z_loss=0.5)
    assert loss == shorter[0]
    np.testing.assert_array_equal(gradient[0, ::2], shorter[1][0])
    assert gradient[0, 1] == 0


# --- edges ------------------------------------------------------------------------------------------------------

HUGE = 1e6
"""A cap that changes the logits below by less than 1e-11 of them."""
EDGES = {
    "targets": ("first", "last", "distribution", "nothing"),
    "sample_weight": (None, "finite rows", "no row"),
    "class_weight": (None, "ones", "not the first", "none"),
    "label_smoothing": (0.0, 0.1),
    "ignore_index": (None, 0),
    "reduction": ("mean", "sum", "none"),
}


def edge_rows(dtype, classes):
    """A finite row, rows with NaN, inf and -inf at the first or last class, and rows of nothing else."""
    rows = [np.linspace(-1, 1, classes)]
    if classes:
        for value in (np.nan, np.inf, -np.inf):
            for place in (0, classes - 1, slice(None)):
                rows.append(rows[0].copy())
                rows[-1][place] = value
    return np.array(rows, dtype).reshape(len(rows), classes)


def edge_cases(dtype, classes):
    """Logits, targets and options: every combination that is allowed."""
    rows = edge_rows(dtype, classes)
    for x in (rows, rows[:0]):
        for values in itertools.product(*EDGES.values()):
            case = dict(zip(EDGES, values, strict=True))
            labelled = case["targets"] in ("first", "last")
            if (labelled and len(x) and not classes) or (not labelled and case["ignore_index"] is not None):
                continue
            if labelled:
                y = np.full(len(x), classes - 1 if case["targets"] == "last" and classes else 0)
            else:
                y = np.full(x.shape, 0.5 if case["targets"] == "distribution" else 0.0, dtype)
                y[:, :1] = 0
            options = {name: case[name] for name in ("label_smoothing", "ignore_index", "reduction")}
            if case["sample_weight"] is not None:
                counted = np.isfinite(x).all(1) & (case["sample_weight"] == "finite rows")
                options["sample_weight"] = counted.astype(dtype)
            if case["class_weight"] is not None:
                options["class_weight"] = np.full(classes, case["class_weight"] != "none", dtype)
                if case["class_weight"] == "not the first":
                    options["class_weight"][:1] = 0
            yield case, x, y, options


def results_of(x, y, options):
    """All results of the family, by the names of the functions."""
    v = np.linspace(0.5, 1.5, x.size).reshape(x.shape).astype(x.dtype)
    loss, gradient = fs.cross_entropy_with_grad(x, y, **options)
    np.testing.assert_array_equal(loss, fs.cross_entropy(x, y, **options))
    np.testing.assert_array_equal(gradient, fs.cross_entropy_grad(x, y, **options))
    diagonal, hessian = (function(x, y, **options) for function in SECOND)
    return {
        "loss": loss,
        "gradient": gradient,
        "hvp": fs.cross_entropy_hvp(x, y, v, **options),
        "diagonal": diagonal,
        "Hessian": hessian,
    }


def slopes_of_infinities(name, result, infinite):
    """The derivatives without a cap, times the slope of the cap, which is 0 at an infinity."""
    result = result.copy()
    if name in ("gradient", "diagonal", "hvp"):
        result[infinite & ~np.isnan(result)] = 0
    elif name == "Hessian":
        apart = infinite[:, :, None] | infinite[:, None, :]
        result[apart & ~np.isnan(result)] = 0
    return result


@every_dtype
@pytest.mark.parametrize("classes", [0, 1, 3, 70])
def test_a_huge_cap_changes_no_edge(dtype, classes):
    """NaN and numbers are where they are without a cap, whose infinities are +-softcap."""
    count = 0
    for case, x, y, options in edge_cases(dtype, classes):
        infinite = np.isinf(x)
        plain = results_of(np.where(infinite, np.sign(x) * dtype(HUGE), x), y, options)
        for name, actual in results_of(x, y, {**options, "softcap": HUGE}).items():
            expected = plain[name]
            if name == "hvp":  # the slope of the cap multiplies the tangent, too
                v = np.linspace(0.5, 1.5, x.size).reshape(x.shape).astype(dtype)
                v[infinite] = 0
                replaced = np.where(infinite, np.sign(x) * dtype(HUGE), x)
                expected = fs.cross_entropy_hvp(replaced, y, v, **options)
            if name != "loss":
                expected = slopes_of_infinities(name, expected, infinite)
            near = 1e-4 if dtype == np.float32 else 1e-10
            np.testing.assert_allclose(actual, expected, rtol=near, atol=near, err_msg=f"{name}, {case}")
        count += 1
    assert count > 100


@every_dtype
@pytest.mark.parametrize("classes", [1, 3, 70])
def test_a_tiny_z_loss_changes_no_edge(dtype, classes):
    """Where a class has a share: the square of the log-sum-exp also counts in rows without one."""
    count = 0
    tiny = {"z_loss": float(np.finfo(dtype).tiny)}
    for case, x, y, options in edge_cases(dtype, classes):
        shares = case["class_weight"] in (None, "ones") and case["targets"] != "nothing"
        if not shares or (case["targets"] == "distribution" and classes == 1):
            continue
        plain = results_of(x, y, options)
        for name, actual in results_of(x, y, {**options, **tiny}).items():
            near = 1e-6 if dtype == np.float32 else 1e-14
            np.testing.assert_allclose(actual, plain[name], rtol=near, atol=near, err_msg=f"{name}, {case}")
        count += 1
    assert count > 100


def test_z_loss_of_rows_without_shares():
    """The log-sum-exp of nothing is -inf; one of NaN is NaN, whatever the weight of the class."""
    assert fs.cross_entropy(np.empty((2, 0)), np.empty((2, 0)), z_loss=0.1) == np.inf
    weightless = {"class_weight": np.zeros(2), "reduction": "none"}
    x = np.array([[np.nan, 0.0], [0.0, 0.0]])
    loss = fs.cross_entropy(x, np.array([0, 0]), z_loss=0.5, **weightless)
    np.testing.assert_allclose(loss, [np.nan, np.log(2) ** 2 / 2], rtol=1e-15)
    assert not fs.cross_entropy(x, np.array([0, 0]), softcap=2.0, **weightless).any()


def test_shares_that_cancel_bend():
    """The Hessian of a capped row has the curvature of the cap also if the shares of its classes add up to 0."""
    x, q = np.array([[0.3, -0.2, 0.9]]), np.array([[0.5, -0.75, 0.25]])
    diagonal, hessian = (function(x, q, softcap=1.5, reduction="sum") for function in SECOND)
    t = np.tanh(x / 1.5)
    expected = -q * (-2 * t * (1 - t**2) / 1.5)
    np.testing.assert_allclose(diagonal, expected, rtol=1e-13)
    np.testing.assert_allclose(hessian[0], np.diag(expected[0]), rtol=1e-13, atol=1e-16)
    product = fs.cross_entropy_hvp(x, q, x, softcap=1.5, reduction="sum")
    np.testing.assert_allclose(product, expected * x, rtol=1e-13)


@njit
def compiled_edges(x, y, v, c, cap):
    loss, gradient = fs.cross_entropy_with_grad(x, y, class_weight=c, softcap=cap, reduction="none")
    product = fs.cross_entropy_hvp(x, y, v, class_weight=c, softcap=cap, reduction="none")
    diagonal = fs.cross_entropy_hessian_diag(x, y, class_weight=c, softcap=cap, reduction="none")
    return loss, gradient, product, diagonal


@pytest.mark.parametrize("soft", [False, True])
def test_edges_in_compiled_code(soft):
    """The same NaN and numbers as from Python."""
    for classes in (0, 3) if soft else (3,):
        x = edge_rows(np.float64, classes)
        y = np.zeros(x.shape) if soft else np.arange(len(x)) % 2
        c, options = np.ones(classes), {"softcap": HUGE, "reduction": "none"}
        c[:1] = 0
        v = np.ones(x.shape)
        expected = (
            *fs.cross_entropy_with_grad(x, y, class_weight=c, **options),
            fs.cross_entropy_hvp(x, y, v, class_weight=c, **options),
            fs.cross_entropy_hessian_diag(x, y, class_weight=c, **options),
        )
        for one, other in zip(compiled_edges(x, y, v, c, HUGE), expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_edges_in_dask_arrays(soft, reduction):
    """The same NaN and numbers as in memory, with rows in chunks; and with classes in chunks."""
    da = pytest.importorskip("dask.array")
    x = edge_rows(np.float64, 3)
    y = np.zeros(x.shape) if soft else np.arange(len(x)) % 2
    options = {"softcap": HUGE, "reduction": reduction, "class_weight": np.array([0.0, 1.0, 2.0])}
    options["sample_weight"] = np.where(np.isnan(x).any(1) & (np.arange(len(x)) % 2 == 1), 0.0, 1.0)
    for chunks in ((4, 3), (4, 2)):
        lazy, v = da.from_array(x, chunks=chunks), np.ones(x.shape)
        loss, gradient = fs.cross_entropy_with_grad(lazy, y, **options)
        expected = fs.cross_entropy_with_grad(x, y, **options)
        np.testing.assert_allclose(loss.compute(), expected[0], rtol=1e-14)
        np.testing.assert_allclose(gradient.compute(), expected[1], rtol=1e-14)
        product = fs.cross_entropy_hvp(lazy, y, v, **options).compute()
        np.testing.assert_allclose(product, fs.cross_entropy_hvp(x, y, v, **options), rtol=1e-14)
        for function in SECOND:
            np.testing.assert_allclose(
                function(lazy, y, **options).compute(), function(x, y, **options), rtol=1e-14
            )


@every_dtype
def test_extreme_caps(dtype):
    """A cap far above the logits changes them by no more than their rounding; one far below makes them 0."""
    x = np.random.default_rng(0).normal(0, 3, (4, 5)).astype(dtype)
    y = np.zeros(4, int)
    for cap in (1e30, 1e300):
        found = fs.cross_entropy_with_grad(x, y, softcap=cap)
        for a, b in zip(found, fs.cross_entropy_with_grad(x, y), strict=True):
            np.testing.assert_allclose(a, b, rtol=40 * np.finfo(dtype).eps)
    loss, gradient = fs.cross_entropy_with_grad(x, y, softcap=1e-300)
    assert loss == pytest.approx(np.log(5))
    assert not gradient.any()


def test_errors():
    x, y = np.zeros((2, 3)), np.zeros(2, int)
    for options, kind, words in (
        ({"z_loss": -1}, ValueError, "cross_entropy_grad: z_loss must be finite and >= 0, got -1"),
        ({"z_loss": np.nan}, ValueError, "z_loss must be finite"),
        ({"z_loss": "a"}, TypeError, "cross_entropy_grad: z_loss must be a number"),
        ({"softcap": 0}, ValueError, "cross_entropy_grad: softcap must be finite and > 0, got 0"),
        ({"softcap": np.inf}, ValueError, "softcap must be finite"),
        ({"softcap": [1]}, TypeError, "softcap must be a number"),
    ):
        out = np.full(x.shape, 7.0)
        with pytest.raises(kind, match=words):
            fs.cross_entropy_grad(x, y, **options, out=out)
        assert (out == 7).all()


def test_half_precision():
    x = np.random.default_rng(0).normal(0, 3, (4, 5)).astype(np.float16)
    y = np.zeros(4, int)
    half = fs.cross_entropy_with_grad(x, y, z_loss=1e-2, softcap=5)
    single = fs.cross_entropy_with_grad(x.astype(np.float32), y, z_loss=1e-2, softcap=5)
    for a, b in zip(half, single, strict=True):
        assert a.dtype == np.float16
        np.testing.assert_array_equal(a, b.astype(np.float16))


@every_dtype
def test_the_slope_of_tanh(dtype, record):
    """1 - tanh**2 within 4 ulp, also where it is tiny."""
    reach = 40 if dtype == np.float32 else 340
    x = np.random.default_rng(0).uniform(-reach, reach, 4000).astype(dtype)
    x[:1000] /= 50
    found = np.empty_like(x)

    @njit
    def compute(x, found):
        for i in range(x.size):
            found[i] = scalar.sech_squared(x[i], dtype(0))

    compute(x, found)
    with oracle.mp.workdps(50):
        reference = np.array([1 / oracle.mp.cosh(oracle.mp.mpf(float(value))) ** 2 for value in x], object)
    record("1 - tanh**2", dtype, oracle.worst(found, reference)[0], 4)
