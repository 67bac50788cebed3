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
        torch.library.opcheck(ours._softmax, (one, 1, 2.0))
        torch.library.opcheck(ours._log_softmax, (one, 1, 2.0))
        torch.library.opcheck(ours._logsumexp, (one, 1))
        torch.library.opcheck(ours._product, (ours.softmax(one, 1).detach(), vector, 1, 2.0))
        torch.library.opcheck(ours._log_vjp, (one, vector, 1, 2.0))
        for reduction in ("mean", "none"):
            arguments = LABELS, None, -100, reduction, 0.0
            torch.library.opcheck(ours._loss, (one.detach(), *arguments))
            torch.library.opcheck(ours._loss_with_grad, (one, *arguments))
    torch.library.opcheck(ours._hvp, (x.detach(), LABELS, vector, None, -100, "mean", 0.0))


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


def test_examples():
    assert doctest.testmod(ours).failed == 0
