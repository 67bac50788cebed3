"""`fastsoftmax.torch`: PyTorch's names, results, derivatives of two orders, and compilation."""

import doctest

import numpy as np
import pytest

import fastsoftmax as fs

torch = pytest.importorskip("torch")
pytest.importorskip("array_api_compat")

import torch.nn.functional as F  # noqa: E402

from fastsoftmax import torch as ours  # noqa: E402

SMOOTH = {
    "softmax": lambda x: ours.softmax(x, 1),
    "softmax, temperature": lambda x: ours.softmax(x, -1, temperature=0.5),
    "log_softmax": lambda x: ours.log_softmax(x, 0),
    "log_softmax, temperature": lambda x: ours.log_softmax(x, 1, temperature=2.0),
    "logsumexp": lambda x: ours.logsumexp(x, 1),
    "logsumexp, several": lambda x: ours.logsumexp(x, (0, 2), keepdim=True),
}
LABELS = torch.tensor([[-100, 1], [2, 3], [0, 0]])
SHARES = torch.from_numpy(np.random.default_rng(1).random((3, 4, 2)))
TARGETS = {"labels": LABELS, "distributions": SHARES}
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)


def logits(shape=(3, 4, 2), dtype=torch.float64):
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 2, shape)).to(dtype)
    return x.requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results(dtype):
    """The bits are those of the function of arrays; PyTorch's results are within its own errors."""
    x = logits(dtype=dtype)
    plain = x.detach()
    assert torch.equal(ours.softmax(x, 1), fs.softmax(plain, 1))
    assert torch.equal(ours.log_softmax(x), fs.log_softmax(plain))
    assert torch.equal(ours.logsumexp(x, (1, 2)), fs.logsumexp(plain, (1, 2)))
    tolerance = {"rtol": 100 * torch.finfo(dtype).eps, "atol": 100 * torch.finfo(dtype).eps}
    torch.testing.assert_close(ours.softmax(x, 1), F.softmax(x, 1), **tolerance)
    torch.testing.assert_close(ours.log_softmax(x, 2), F.log_softmax(x, 2), **tolerance)
    torch.testing.assert_close(ours.logsumexp(x, 0, True), torch.logsumexp(x, 0, True), **tolerance)
    torch.testing.assert_close(ours.cross_entropy(x, LABELS), F.cross_entropy(x, LABELS), **tolerance)


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives(name):
    x = logits()
    assert torch.autograd.gradcheck(SMOOTH[name], (x,))
    assert torch.autograd.gradgradcheck(SMOOTH[name], (x,))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("options", [{}, {"weight": WEIGHT, "label_smoothing": 0.1}])
def test_cross_entropy(reduction, kind, options):
    x, options = logits(), {**options, "reduction": reduction}

    def loss(x):
        return ours.cross_entropy(x, TARGETS[kind], **options)

    expected = F.cross_entropy(x, TARGETS[kind], **options)
    torch.testing.assert_close(loss(x), expected)
    torch.testing.assert_close(loss(x.detach()), expected.detach())
    assert not loss(x.detach()).requires_grad
    (found,) = torch.autograd.grad(loss(x).sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), x)[0])
    assert torch.autograd.gradcheck(loss, (x,))
    assert torch.autograd.gradgradcheck(loss, (x,))


@pytest.mark.parametrize("shape", [(5,), (6, 5), (0, 5)])
def test_other_shapes(shape):
    x = logits(shape)
    labels = torch.ones(shape[:-1], dtype=torch.int64)
    for reduction in ("mean", "sum", "none"):
        found = ours.cross_entropy(x, labels, reduction=reduction)
        torch.testing.assert_close(found, F.cross_entropy(x, labels, reduction=reduction), equal_nan=True)
    torch.testing.assert_close(ours.softmax(x), F.softmax(x, -1))


@pytest.mark.parametrize(
    ("function", "theirs"),
    [(ours.softmax, F.softmax), (ours.log_softmax, F.log_softmax), (ours.logsumexp, torch.logsumexp)],
)
def test_a_number_is_a_row(function, theirs):
    x, y = (torch.tensor(3.0, requires_grad=True) for _ in range(2))
    found, expected = function(x, dim=0), theirs(y, dim=0)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(x.grad, y.grad)
    with pytest.raises(IndexError, match="axis 5 is out of bounds"):
        function(torch.zeros(2, 3), dim=5)


def test_dimensions_that_there_are_not():
    """An error, not those that they are counted modulo the number of dimensions."""
    for dims in ((3,), (0, -4)):
        with pytest.raises(IndexError, match="Dimension out of range"):
            ours.logsumexp(logits(), dims)
    with pytest.raises(RuntimeError, match="repeated dim"):
        ours.logsumexp(logits(), (0, -3))


def test_no_dimensions():
    x = logits()
    torch.testing.assert_close(ours.logsumexp(x, ()), x)


@pytest.mark.parametrize("function", [ours.softmax, ours.log_softmax, ours.logsumexp])
def test_infinities(function):
    theirs = getattr(F, function.__name__, torch.logsumexp)
    rows = [[0.0, -np.inf, 1.0], [np.nan, 1.0, 2.0], [-np.inf] * 3]
    x, y = (torch.tensor(rows, requires_grad=True) for _ in range(2))
    torch.testing.assert_close(function(x, -1), theirs(y, -1), equal_nan=True)
    function(x, -1).sum().backward()
    theirs(y, -1).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, equal_nan=True)


def test_all_rows_ignored():
    x, labels = logits((4, 3)), torch.full((4,), -100)
    assert torch.isnan(ours.cross_entropy(x, labels))
    (slope,) = torch.autograd.grad(ours.cross_entropy(x, labels, reduction="sum"), x)
    assert not slope.any()


def test_the_hessian_of_a_confident_row():
    """The reason for kernels in the second derivative: p - p**2 from a rounded p = 1 would be 0."""
    x = torch.tensor([[0.0, -50.0]], dtype=torch.float64, requires_grad=True)
    hessian = torch.autograd.functional.hessian(lambda x: ours.cross_entropy(x, torch.tensor([0])), x)
    assert hessian[0, 0, 0, 0] == pytest.approx(np.exp(-50.0), rel=1e-14)


@pytest.mark.parametrize(
    "view", [lambda x: x.transpose(0, 2), lambda x: x[::2], lambda x: x[:, :1].expand(3, 4, 2)]
)
def test_layouts(view):
    """Gradients of a sum are expanded, results are contiguous."""
    x = view(logits())
    assert ours.softmax(x, 1).is_contiguous()
    torch.testing.assert_close(ours.softmax(x, 1), F.softmax(x, 1))
    (found,) = torch.autograd.grad((ours.log_softmax(x, 1)[..., 0]).sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad(F.log_softmax(x, 1)[..., 0].sum(), x)[0])


def test_compiled_without_graph_breaks():
    def both(x, labels):
        loss = ours.cross_entropy(2 * ours.log_softmax(x, 1), labels)
        return loss + ours.logsumexp(ours.softmax(x, 1), (0, 1)).sum()

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    x = logits()
    assert torch.equal(compiled(x, LABELS), both(x, LABELS))
    (found,) = torch.autograd.grad(compiled(x, LABELS), x)
    assert torch.equal(found, torch.autograd.grad(both(x, LABELS), x)[0])


def test_operators_are_registered_well():
    """PyTorch's own checks of schema, fake tensors, and dispatch under autograd and compilation."""
    x, vector = logits(), logits().detach() + 1
    tensors = x, x.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    for one in tensors:
        torch.library.opcheck(ours._softmax.operator, (one, 1, 2.0))
        torch.library.opcheck(ours._log_softmax.operator, (one, 1, 2.0))
        torch.library.opcheck(ours._logsumexp.operator, (one, 1))
        torch.library.opcheck(ours._product.operator, (ours.softmax(one, 1).detach(), vector, 1, 2.0))
        torch.library.opcheck(ours._log_vjp.operator, (one, vector, 1, 2.0))
        torch.library.opcheck(ours._log_jvp.operator, (one, vector, 1, 2.0))
        for reduction in ("mean", "none"):
            arguments = LABELS, None, -100, reduction, 0.0
            torch.library.opcheck(ours._loss.operator, (one.detach(), *arguments))
            torch.library.opcheck(ours._loss_with_grad.operator, (one, *arguments))
            torch.library.opcheck(ours._loss.operator, (one, *arguments))
            torch.library.opcheck(ours._kl.operator, (one, vector, 1, 2.0, True, reduction))
            torch.library.opcheck(ours._kl_with_grad.operator, (one, vector, 1, 2.0, False, reduction))
    torch.library.opcheck(ours._hvp.operator, (x.detach(), LABELS, vector, None, -100, "mean", 0.0))
    torch.library.opcheck(ours._segments.operator, (logits((12,)), INDPTR))
    torch.library.opcheck(ours._segment_product.operator, (logits((12,)), INDPTR, logits((12,))))
    rows, w, b, labels = product()
    for reduction in ("mean", "none"):
        options = None, -100, reduction, 0.1, 0.0, None
        torch.library.opcheck(ours._linear.operator, (rows, w, labels, b, *options))
    for reduction in ("mean", "sum"):  # that of rows is done in the derivative of the one before
        options = None, -100, reduction, 0.1, 0.0, None
        given = rows, w, labels, b, None, [True, True, True], *options
        torch.library.opcheck(ours._linear_with_grad.operator, given)
        given = rows.detach(), w, labels, b.detach(), None, [False, True, False], *options
        torch.library.opcheck(ours._linear_with_grad.operator, given)
    constant = rows.detach(), w.detach(), labels, b.detach(), None
    tangents = rows.detach(), w.detach(), b.detach()
    for wrt in ([True, True, True], [False, True, False], [True, False, True]):
        torch.library.opcheck(ours._linear_hvp.operator, (*constant, wrt, *tangents, *options))


# --- divergences, products and segments ---------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("reverse", [False, True])
def test_kl_divergence(reduction, reverse):
    """Both arrays have derivatives, of both orders; PyTorch's own formula has the same."""
    x, y = logits(), (logits().detach().flip(0) / 2).requires_grad_()

    def loss(x, y):
        return ours.kl_divergence(x, y, 1, temperature=2.0, reverse=reverse, reduction=reduction)

    def theirs(x, y):
        p, q = F.log_softmax(x / 2, 1), F.log_softmax(y / 2, 1)
        rows = (
            F.kl_div(q, p, reduction="none", log_target=True)
            if reverse
            else F.kl_div(p, q, reduction="none", log_target=True)
        ).sum(1)
        return rows if reduction == "none" else getattr(rows, reduction)()

    torch.testing.assert_close(loss(x, y), theirs(x, y))
    torch.testing.assert_close(loss(x.detach(), y.detach()), theirs(x, y).detach())
    for one, other in zip(
        torch.autograd.grad(loss(x, y).sum(), (x, y)), torch.autograd.grad(theirs(x, y).sum(), (x, y)), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert torch.autograd.gradcheck(loss, (x, y))
    assert torch.autograd.gradgradcheck(loss, (x, y))
    assert torch.autograd.gradgradcheck(loss, (x, y.detach()))
    assert torch.autograd.gradgradcheck(loss, (x.detach(), y))


def test_kl_divergence_of_masked_classes():
    x = torch.tensor([[0.0, 1.0, -np.inf]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[1.0, 0.0, -np.inf]], dtype=torch.float64)
    for reverse in (False, True):
        loss = ours.kl_divergence(x, y, reverse=reverse)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (curved,) = torch.autograd.grad(slope[0, 0], x)
        assert torch.isfinite(slope).all()
        assert torch.isfinite(curved).all()
        assert curved[0, 0] > 0


def product(rows=(5,), features=3, classes=4):
    rng = np.random.default_rng(2)
    shapes = (*rows, features), (classes, features), (classes,)
    x, w, b = (torch.from_numpy(rng.normal(size=shape)).requires_grad_() for shape in shapes)
    labels = torch.from_numpy(rng.integers(0, classes, rows))
    labels[..., 1] = -100
    return x, w, b, labels


LINEAR = [{}, {"weight": WEIGHT, "label_smoothing": 0.1}, {"z_loss": 0.3, "softcap": 2.0}]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", LINEAR)
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_cross_entropy(reduction, options, with_bias):
    x, w, b, labels = product((2, 3))
    options = {**options, "reduction": reduction}

    def loss(x, w, b=None):
        return ours.linear_cross_entropy(x, w, labels, linear_bias=b, **options)

    arguments = (x, w, b) if with_bias else (x, w)
    assert torch.autograd.gradcheck(loss, arguments)
    if "softcap" not in options:
        z = F.linear(*arguments).flatten(0, 1)
        expected = F.cross_entropy(z, labels.flatten(), **options)
        torch.testing.assert_close(loss(*arguments).flatten(), expected.flatten())
    with torch.no_grad():
        torch.testing.assert_close(loss(*arguments), loss(*[one.detach() for one in arguments]))
    if reduction != "none":
        assert torch.autograd.gradgradcheck(loss, arguments)


def test_linear_hessian_in_blocks(monkeypatch):
    """Blocks of one row; the Hessian of a product has parts that mix features and weights."""
    x, w, b, labels = product()

    def ours_of(x, w, b):
        return ours.linear_cross_entropy(x, w, labels, linear_bias=b)

    def theirs(x, w, b):
        return F.cross_entropy(F.linear(x, w, b), labels)

    for rows in (1, 2, 4096):
        monkeypatch.setattr(ours, "_BLOCK_ROWS", rows)
        found, expected = (torch.autograd.functional.hessian(one, (x, w, b)) for one in (ours_of, theirs))
        for row, other in zip(found, expected, strict=True):
            for one, two in zip(row, other, strict=True):
                torch.testing.assert_close(one, two)


def test_linear_gradients_that_nobody_wants():
    x, w, b, labels = product()
    loss = ours.linear_cross_entropy(x.detach(), w, labels, linear_bias=b.detach())
    (slope,) = torch.autograd.grad(loss, w)
    torch.testing.assert_close(slope, torch.autograd.grad(F.cross_entropy(F.linear(x, w, b), labels), w)[0])


def test_linear_hessian_of_some_arguments(monkeypatch):
    """Only what is wanted is computed: with constant features no gradients of logits."""
    x, w, b, labels = product()
    for features, bias in ((x.detach(), b), (x, b.detach()), (x.detach(), b.detach())):
        wanted = [one for one in (features, w, bias) if one.requires_grad]
        found, expected = (
            torch.autograd.grad(loss, wanted, create_graph=True)
            for loss in (
                ours.linear_cross_entropy(features, w, labels, linear_bias=bias),
                F.cross_entropy(F.linear(features, w, bias), labels),
            )
        )
        with monkeypatch.context() as patched:
            if features is not x:
                patched.setattr(ours.losses, "cross_entropy_grad", None)
            curved = torch.autograd.grad(sum(one.square().sum() for one in found), wanted)
        others = torch.autograd.grad(sum(one.square().sum() for one in expected), wanted)
        for one, two in zip(curved, others, strict=True):
            torch.testing.assert_close(one, two)


def test_linear_rows_that_do_not_count():
    """NaN in a row that is ignored changes no derivative."""
    x, w, _, labels = product()
    with torch.no_grad():
        x[1] = torch.nan
    slopes = torch.autograd.grad(ours.linear_cross_entropy(x, w, labels), (x, w), create_graph=True)
    curved = torch.autograd.grad(sum(slope.square().sum() for slope in slopes), (x, w))
    for one in (*slopes, *curved):
        assert torch.isfinite(one).all()
        assert one.any()


INDPTR = torch.tensor([0, 4, 4, 5, 12])


def test_segment_softmax():
    x = logits((12,))
    parts = [F.softmax(part, 0) for part in x.tensor_split(INDPTR[1:-1])]
    torch.testing.assert_close(ours.segment_softmax(x, INDPTR), torch.cat(parts))
    assert torch.equal(ours.segment_softmax(x, INDPTR), fs.segment_softmax(x.detach(), INDPTR))
    for indptr in (INDPTR, INDPTR.int()):
        assert torch.autograd.gradcheck(lambda x: ours.segment_softmax(x, indptr), (x,))  # noqa: B023
        assert torch.autograd.gradgradcheck(lambda x: ours.segment_softmax(x, indptr), (x,))  # noqa: B023
    (slope,) = torch.autograd.grad(ours.segment_softmax(x, INDPTR).square().sum(), x, create_graph=True)
    (curved,) = torch.autograd.grad(slope.square().sum(), x, create_graph=True)
    assert torch.autograd.grad(curved.square().sum(), x)[0].any()  # any number of times


def test_derivatives_that_there_are_none_of():
    """An error, not zeros."""
    x, w, _, labels = product()
    for loss in (ours.cross_entropy(x, labels % 3), ours.linear_cross_entropy(x, w, labels)):
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (curved,) = torch.autograd.grad(slope.square().sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="differentiated twice, not three times"):
            torch.autograd.grad(curved.sum(), x)
    rows = ours.linear_cross_entropy(x, w, labels, reduction="none")
    (slope,) = torch.autograd.grad(rows.square().sum(), w, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives through the losses of rows"):
        torch.autograd.grad(slope.sum(), w)


# --- the forward mode ---------------------------------------------------------------------------------------

FORWARD = {
    **SMOOTH,
    "cross_entropy": lambda x: ours.cross_entropy(x, LABELS),
    "cross_entropy, rows": lambda x: ours.cross_entropy(x, SHARES, WEIGHT, reduction="none", label_smoothing=0.1),
    "segment_softmax": lambda x: ours.segment_softmax(x.flatten()[:12], INDPTR),
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_mode(name):
    """By dual numbers and transforms, over and under the reverse mode, beside finite differences."""
    x, function = logits(), FORWARD[name]
    assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x,), check_fwd_over_rev=True)
    x = x.detach()
    torch.testing.assert_close(torch.func.jacfwd(function)(x), torch.func.jacrev(function)(x))
    expected = torch.func.jacrev(torch.func.jacrev(function))(x)
    torch.testing.assert_close(torch.func.hessian(function)(x), expected)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacfwd(function))(x), expected)


def test_forward_mode_keeps_digits():
    """The bits are those of the kernel: p - p**2 from a rounded p = 1 would be 0."""
    x, along = torch.tensor([0.0, -50.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    for function in (ours.softmax, ours.log_softmax):
        found = torch.func.jvp(function, (x,), (along,))
        assert torch.equal(found[0], getattr(fs, function.__name__)(x))
        assert torch.equal(found[1], getattr(fs, f"{function.__name__}_jvp")(x, along))
        assert 0 < -found[1][0] < 1e-20


def test_forward_mode_that_there_is_none_of():
    """Errors: without them, tangents would be lost without a word."""
    x = logits().detach()
    for function in FORWARD.values():
        with pytest.raises(
            NotImplementedError, match="no derivatives in forward mode of derivatives in forward mode"
        ):
            torch.func.jacfwd(torch.func.jacfwd(function))(x)
    compiled = torch.compile(
        lambda x: torch.func.jvp(ours.softmax, (x,), (x,)), backend="aot_eager", fullgraph=True
    )
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"forward mode inside of torch\.compile"):
        compiled(x)
    with pytest.raises(NotImplementedError, match="differentiated twice, not three times"):
        torch.func.jacfwd(torch.func.jacrev(torch.func.jacrev(FORWARD["cross_entropy"])))(x)
    rows, w, _, labels = (one.detach() for one in product())
    with torch.autograd.forward_ad.dual_level():
        make_dual = torch.autograd.forward_ad.make_dual
        for name, call in (
            ("kl_divergence", lambda: ours.kl_divergence(make_dual(x, x), x)),
            ("linear_cross_entropy", lambda: ours.linear_cross_entropy(rows, make_dual(w, w), labels)),
        ):
            with pytest.raises(NotImplementedError, match=f"{name} has no derivatives in forward mode"):
                call()
        with pytest.raises(NotImplementedError, match="no derivatives with respect to targets and weights"):
            ours.cross_entropy(x, make_dual(SHARES, SHARES))


# --- who calls ----------------------------------------------------------------------------------------------


def every(x):
    """All functions, for a matrix of 4 columns."""
    labels = torch.arange(len(x)) % 3
    return (
        ours.softmax(x)[:, 0].sum()
        + ours.log_softmax(x)[:, 1].sum()
        + ours.logsumexp(x).sum()
        + ours.cross_entropy(x, labels)
        + ours.kl_divergence(x, x.detach().flip(0))
        + ours.linear_cross_entropy(x, x.detach()[:3].clone(), labels)
        + ours.segment_softmax(x.flatten(), torch.arange(len(x) + 1) * 4)[0]
    )


def test_every_function_compiled():
    x = logits((3, 4))
    compiled = torch.compile(every, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), every(x))
    (found,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(found, torch.autograd.grad(every(x), x)[0])


def test_transforms():
    """`torch.func` transforms what autograd differentiates."""
    x = logits((3, 4)).detach()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(every(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(every)(x), expected)
    hessian = torch.func.jacrev(torch.func.grad(lambda x: ours.logsumexp(x)))(x[0])
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(lambda x: torch.logsumexp(x, 0), x[0]))


def test_watched():
    """Modes and subclasses see operators."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Watch():
        ours.softmax(torch.zeros(2))
    assert "fastsoftmax.softmax.default" in seen
    assert ours.softmax(torch.zeros(2, 3, device="meta")).shape == (2, 3)
    assert ours.cross_entropy(torch.zeros(2, 3, device="meta"), torch.zeros(2, device="meta").long()).shape == ()
    with torch.inference_mode():
        assert torch.equal(ours.softmax(torch.zeros(2)), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("name", ["_modes", "_transforms"])
def test_without_the_private_functions(monkeypatch, name):
    """Every call goes through the dispatcher, which has the function that was registered."""
    x = torch.zeros(2)

    def refuse(*args):
        raise AssertionError("the short way")

    monkeypatch.setattr(ours._softmax, "compute", refuse)
    with pytest.raises(AssertionError, match="the short way"):
        ours.softmax(x)
    monkeypatch.setattr(ours, name, None)
    assert torch.equal(ours.softmax(x), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("graph", [False, True])
def test_the_short_way_has_the_bits_of_the_operators(monkeypatch, graph):
    x = logits((3, 4)).detach().requires_grad_(graph)

    def found():
        loss = every(x)
        return (loss, *torch.autograd.grad(loss, x)) if graph else (loss,)

    short, calls = found(), []
    monkeypatch.setattr(ours, "_watched", lambda: calls.append(1) or True)
    for one, other in zip(short, found(), strict=True):
        assert torch.equal(one, other)
    assert len(calls) > 6


def test_errors():
    x = logits()
    with pytest.raises(TypeError, match=r"softmax: input has dtype torch.int64, expected a dtype of floats"):
        ours.softmax(torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeError, match="cross_entropy: target requires grad; there is no derivative"):
        ours.cross_entropy(x, SHARES.clone().requires_grad_())
    with pytest.raises(TypeError, match="cross_entropy: weight requires grad; there is no derivative"):
        ours.cross_entropy(x, LABELS, WEIGHT.clone().requires_grad_())
    with pytest.raises(IndexError, match=r"targets\[0, 0\] is 4"):
        ours.cross_entropy(x, torch.full((3, 2), 4))
    with pytest.raises(ValueError, match="reduction must be one of"):
        ours.cross_entropy(x, LABELS, reduction="meen")
    with pytest.raises(TypeError, match=r"kl_divergence: target has dtype torch.float32, expected torch.float64"):
        ours.kl_divergence(x, x.float())
    with pytest.raises(ValueError, match="kl_divergence: input has no dimensions"):
        ours.kl_divergence(torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(TypeError, match="kl_divergence: reverse must be a bool, got 'mean'"):
        ours.kl_divergence(x, x, reverse="mean")
    rows, w, b, labels = product()
    with pytest.raises(TypeError, match=r"linear_cross_entropy: linear_bias has dtype torch.float32"):
        ours.linear_cross_entropy(rows, w, labels, linear_bias=b.float())
    with pytest.raises(ValueError, match=r"targets has shape \(4,\), expected \(5,\)"):
        ours.linear_cross_entropy(rows, w, labels[1:])
    with pytest.raises(ValueError, match="segment_softmax: indptr"):
        ours.segment_softmax(torch.zeros(3), torch.tensor([0, 2]))


def test_examples():
    assert doctest.testmod(ours).failed == 0
