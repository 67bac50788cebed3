r"""Functions of ``torch.nn.functional`` as differentiable operators on tensors in the memory of the processor.

They have PyTorch's names, arguments and defaults, so that changing an import line is enough, and the kernels and
errors of this library. They can be differentiated twice, by the products with Jacobians and Hessians, which keep
their digits; ``softmax``, ``log_softmax`` and ``logsumexp`` any number of times. ``torch.compile`` takes them as
operators, without graph breaks. They need the extra ``torch``.

Tensors on other devices, and derivatives with respect to targets and weights, are a TypeError.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsoftmax.api import activations, derivatives, losses

__all__ = ["cross_entropy", "log_softmax", "logsumexp", "softmax"]

IGNORED = -100
"""PyTorch's default for the class index of rows that do not count."""


def _check(function: str, **tensors: Tensor | None) -> None:
    """TypeError for tensors that the operators do not take."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device.type not in ("cpu", "meta"):
            raise TypeError(f"{function}: {name} is a tensor on the device {tensor.device}; call cpu() first")


def _check_floats(function: str, name: str, tensor: Tensor) -> None:
    _check(function, **{name: tensor})
    if not tensor.is_floating_point():
        raise TypeError(f"{function}: {name} has dtype {tensor.dtype}, expected a dtype of floats")


def _tempered(temperature: float) -> dict[str, Any]:
    """The option, unless it changes nothing: then a small call takes a shorter way."""
    return {} if temperature == 1 else {"temperature": temperature}


def _like(tensor: Tensor) -> Tensor:
    """An empty tensor like the result of a kernel for `tensor`."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


# --- softmax ------------------------------------------------------------------------------------------------


@torch.library.custom_op("fastsoftmax::softmax", mutates_args=(), device_types="cpu")
def _softmax(x: Tensor, dim: int, temperature: float) -> Tensor:
    return activations.softmax(x.detach(), dim, **_tempered(temperature)).contiguous()


@torch.library.custom_op("fastsoftmax::softmax_product", mutates_args=(), device_types="cpu")
def _product(probs: Tensor, vector: Tensor, dim: int, temperature: float) -> Tensor:
    """The product of the Jacobian of the softmax with a vector, from probabilities."""
    options: dict[str, Any] = {"from_probs": True, **_tempered(temperature)}
    return derivatives.softmax_vjp(probs.detach(), vector.detach(), dim, **options).contiguous()


def _keep_probs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)
    _, ctx.dim, ctx.temperature = inputs


def _softmax_backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
    (probs,) = ctx.saved_tensors
    return _product(probs, slope, ctx.dim, ctx.temperature), None, None


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, ctx.dim, ctx.temperature = inputs
    ctx.save_for_backward(first, second)


def _product_backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
    # y_k = p_k (v_k - s)/T with s = sum_j p_j v_j
    probs, vector = ctx.saved_tensors
    mean = (probs * vector).sum(ctx.dim, keepdim=True)
    other = (probs * slope).sum(ctx.dim, keepdim=True)
    with_probs = (slope * (vector - mean) - vector * other) / ctx.temperature
    return with_probs, _product(probs, slope, ctx.dim, ctx.temperature), None, None


_softmax.register_fake(lambda x, dim, temperature: _like(x))
_softmax.register_autograd(_softmax_backward, setup_context=_keep_probs)
_product.register_fake(lambda probs, vector, dim, temperature: _like(probs))
_product.register_autograd(_product_backward, setup_context=_keep_operands)


# --- log_softmax --------------------------------------------------------------------------------------------


@torch.library.custom_op("fastsoftmax::log_softmax", mutates_args=(), device_types="cpu")
def _log_softmax(x: Tensor, dim: int, temperature: float) -> Tensor:
    return activations.log_softmax(x.detach(), dim, **_tempered(temperature)).contiguous()


@torch.library.custom_op("fastsoftmax::log_softmax_vjp", mutates_args=(), device_types="cpu")
def _log_vjp(x: Tensor, cotangent: Tensor, dim: int, temperature: float) -> Tensor:
    return derivatives.log_softmax_vjp(x.detach(), cotangent.detach(), dim, **_tempered(temperature)).contiguous()


def _keep_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.dim, ctx.temperature = inputs
    ctx.save_for_backward(x)


def _log_softmax_backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
    (x,) = ctx.saved_tensors
    return _log_vjp(x, slope, ctx.dim, ctx.temperature), None, None


def _log_vjp_backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
    # y_k = (g_k - p_k sum_j g_j)/T
    x, cotangent = ctx.saved_tensors
    probs = _softmax(x, ctx.dim, ctx.temperature)
    total = cotangent.sum(ctx.dim, keepdim=True) / ctx.temperature
    with_x = -total * _product(probs, slope, ctx.dim, ctx.temperature)
    with_cotangent = (slope - (probs * slope).sum(ctx.dim, keepdim=True)) / ctx.temperature
    return with_x, with_cotangent, None, None


_log_softmax.register_fake(lambda x, dim, temperature: _like(x))
_log_softmax.register_autograd(_log_softmax_backward, setup_context=_keep_input)
_log_vjp.register_fake(lambda x, cotangent, dim, temperature: _like(x))
_log_vjp.register_autograd(_log_vjp_backward, setup_context=_keep_operands)


# --- logsumexp ----------------------------------------------------------------------------------------------


@torch.library.custom_op("fastsoftmax::logsumexp", mutates_args=(), device_types="cpu")
def _logsumexp(x: Tensor, dim: int) -> Tensor:
    return activations.logsumexp(x.detach(), dim).contiguous()


def _keep_logits(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.dim = inputs
    ctx.save_for_backward(x)


def _logsumexp_backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return slope.unsqueeze(ctx.dim) * _softmax(x, ctx.dim, 1.0), None


_logsumexp.register_fake(lambda x, dim: x.new_empty(_rows(x, dim)))
_logsumexp.register_autograd(_logsumexp_backward, setup_context=_keep_logits)


def _rows(x: Tensor, dim: int) -> list[int]:
    """The shape of one number for each row."""
    return [size for axis, size in enumerate(x.shape) if axis != dim % x.dim()]


# --- cross_entropy ------------------------------------------------------------------------------------------


def _options(
    target: Tensor, weight: Tensor | None, ignore_index: int | None, reduction: str, smoothing: float
) -> dict[str, Any]:
    """The options of a loss as the functions of this library have them, without those that change nothing."""
    options: dict[str, Any] = {} if reduction == "mean" else {"reduction": reduction}
    if weight is not None:
        options["class_weight"] = weight.detach()
    if smoothing != 0:
        options["label_smoothing"] = smoothing
    if ignore_index is not None and bool((target == ignore_index).any()):
        options["ignore_index"] = ignore_index
    return options


def _class_dim(x: Tensor) -> int:
    """Where PyTorch has the classes; -1 for matrices, because small calls along the last axis are shorter."""
    return 1 if x.dim() > 2 else -1


@torch.library.custom_op("fastsoftmax::cross_entropy", mutates_args=(), device_types="cpu")
def _loss(
    x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int | None, reduction: str, smoothing: float
) -> Tensor:
    options = _options(target, weight, ignore_index, reduction, smoothing)
    return losses.cross_entropy(x.detach(), target.detach(), _class_dim(x), **options).contiguous()


@torch.library.custom_op("fastsoftmax::cross_entropy_with_grad", mutates_args=(), device_types="cpu")
def _loss_with_grad(
    x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int | None, reduction: str, smoothing: float
) -> tuple[Tensor, Tensor]:
    options = _options(target, weight, ignore_index, reduction, smoothing)
    found = losses.cross_entropy_with_grad(x.detach(), target.detach(), _class_dim(x), **options)
    return found[0].contiguous(), found[1].contiguous()


@torch.library.custom_op("fastsoftmax::cross_entropy_hvp", mutates_args=(), device_types="cpu")
def _hvp(
    x: Tensor,
    target: Tensor,
    tangent: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    reduction: str,
    smoothing: float,
) -> Tensor:
    options = _options(target, weight, ignore_index, reduction, smoothing)
    found = losses.cross_entropy_hvp(x.detach(), target.detach(), tangent.detach(), _class_dim(x), **options)
    return found.contiguous()


def _like_loss(x: Tensor, reduction: str) -> Tensor:
    return x.new_empty(_rows(x, _class_dim(x)) if reduction == "none" else [])


def _keep_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, target, weight, ctx.ignore_index, ctx.reduction, ctx.smoothing = inputs
    ctx.save_for_backward(x, target, weight, output[1])
    ctx.set_materialize_grads(False)


def _loss_backward(ctx: Any, with_loss: Tensor | None, with_slope: Tensor | None) -> tuple[Tensor | None, ...]:
    x, target, weight, slope = ctx.saved_tensors
    found = None
    if with_loss is not None:
        found = slope * (with_loss.unsqueeze(_class_dim(x)) if ctx.reduction == "none" else with_loss)
    if with_slope is not None:
        curved = _hvp(x, target, with_slope, weight, ctx.ignore_index, ctx.reduction, ctx.smoothing)
        found = curved if found is None else found + curved
    return found, None, None, None, None, None


_loss.register_fake(lambda x, target, weight, ignore_index, reduction, smoothing: _like_loss(x, reduction))
_loss_with_grad.register_fake(
    lambda x, target, weight, ignore_index, reduction, smoothing: (_like_loss(x, reduction), _like(x))
)
_loss_with_grad.register_autograd(_loss_backward, setup_context=_keep_loss)
_hvp.register_fake(lambda x, target, tangent, weight, ignore_index, reduction, smoothing: _like(x))


# --- the functions ------------------------------------------------------------------------------------------


def softmax(input: Tensor, dim: int = -1, *, temperature: float = 1.0) -> Tensor:  # noqa: A002 - PyTorch's name
    r"""Softmax of each row, as ``torch.nn.functional.softmax``.

    .. math:: p_i = \frac{\exp(x_i / T)}{\sum_k \exp(x_k / T)}

    Parameters
    ----------
    input : Tensor
        Logits, a tensor of floats in the memory of the processor.
    dim : int, default -1
        The dimension of the classes.
    temperature : float, default 1.0
        T > 0.

    Returns
    -------
    Tensor
        The probabilities, of the shape and dtype of `input`.

    See Also
    --------
    fastsoftmax.softmax : its errors, error bounds and edge cases.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import softmax
    >>> x = torch.tensor([0.0, 0.0], requires_grad=True)
    >>> softmax(x)[0].backward()
    >>> x.grad
    tensor([ 0.2500, -0.2500])
    """
    _check_floats("softmax", "input", input)
    if input.dim() == 0:
        return softmax(input.reshape(1), dim, temperature=temperature).reshape(())
    return _softmax(input, dim, float(temperature))


def log_softmax(input: Tensor, dim: int = -1, *, temperature: float = 1.0) -> Tensor:  # noqa: A002
    r"""Logarithm of the softmax of each row, as ``torch.nn.functional.log_softmax``.

    .. math:: \log p_i = \frac{x_i}{T} - \log \sum_k \exp(x_k / T)

    Parameters
    ----------
    input : Tensor
        Logits, a tensor of floats in the memory of the processor.
    dim : int, default -1
        The dimension of the classes.
    temperature : float, default 1.0
        T > 0.

    Returns
    -------
    Tensor
        The log-probabilities, of the shape and dtype of `input`.

    See Also
    --------
    fastsoftmax.log_softmax : its errors, error bounds and edge cases.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import log_softmax
    >>> float(log_softmax(torch.tensor([0.0, -50.0], dtype=torch.float64))[0])
    -1.9287498479639178e-22
    """
    _check_floats("log_softmax", "input", input)
    if input.dim() == 0:
        return log_softmax(input.reshape(1), dim, temperature=temperature).reshape(())
    return _log_softmax(input, dim, float(temperature))


def logsumexp(input: Tensor, dim: int | Sequence[int] = -1, keepdim: bool = False) -> Tensor:  # noqa: A002
    r"""Logarithm of the sum of exponentials, as ``torch.logsumexp``.

    .. math:: \mathrm{lse}(x) = \log \sum_k \exp(x_k)

    Parameters
    ----------
    input : Tensor
        A tensor of floats in the memory of the processor.
    dim : int or sequence of int, default -1
        The dimensions that are summed over.
    keepdim : bool, default False
        Whether these dimensions stay, with size 1.

    Returns
    -------
    Tensor
        One number for each row.

    See Also
    --------
    fastsoftmax.logsumexp : its errors, error bounds and edge cases.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import logsumexp
    >>> logsumexp(torch.tensor([[0.0, -1000.0]]), dim=(0, 1))
    tensor(0.)
    """
    _check_floats("logsumexp", "input", input)
    if input.dim() == 0:
        return logsumexp(input.reshape(1), dim).reshape(())
    if isinstance(dim, int):
        return _kept(_logsumexp(input, dim), (dim,), input.dim(), keepdim)
    dims = tuple(axis % input.dim() for axis in dim)
    rest = [axis for axis in range(input.dim()) if axis not in dims]
    rows = input.permute(*rest, *dims).flatten(len(rest)) if dims else input.unsqueeze(-1)
    return _kept(_logsumexp(rows, -1), dims, input.dim(), keepdim)


def _kept(rows: Tensor, dims: tuple[int, ...], ndim: int, keepdim: bool) -> Tensor:
    """One number for each row, with the dimensions of the classes if they are to stay."""
    for dim in sorted(axis % ndim for axis in dims) if keepdim else ():
        rows = rows.unsqueeze(dim)
    return rows


def cross_entropy(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = IGNORED,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross-entropy of logits against class indices or distributions, as ``torch.nn.functional.cross_entropy``.

    .. math:: L_n = -\sum_j y_{nj} \log p_{nj}, \qquad p_n = \mathrm{softmax}(z_n)

    Parameters
    ----------
    input : Tensor
        Logits, a tensor of floats in the memory of the processor, of shape (C,), (N, C) or (N, C, ...).
    target : Tensor
        Class indices, of the shape of `input` without C; or distributions, of the shape of `input`.
    weight : Tensor, optional
        The weight of each class.
    ignore_index : int, default -100
        The class index of rows that do not count.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all rows, their sum, or the loss of each row.
    label_smoothing : float, default 0.0
        The share of the uniform distribution that is mixed into every target.

    Returns
    -------
    Tensor
        The loss, of the dtype of `input`. If `input` requires grad, loss and gradient are computed in one pass.

    See Also
    --------
    fastsoftmax.cross_entropy : its errors, error bounds and edge cases.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import cross_entropy
    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    >>> loss = cross_entropy(logits, torch.tensor([0, 2]))
    >>> loss.backward()
    >>> logits.grad[1]
    tensor([ 0.1667,  0.1667, -0.3333])
    """
    _check_floats("cross_entropy", "input", input)
    _check("cross_entropy", target=target, weight=weight)
    for name, tensor in (("target", target), ("weight", weight)):
        if tensor is not None and tensor.requires_grad:
            raise TypeError(f"cross_entropy: {name} requires grad; there is no derivative for it, call detach()")
    index = None if target.is_floating_point() else ignore_index
    arguments = input, target, weight, index, reduction, float(label_smoothing)
    if input.requires_grad and torch.is_grad_enabled():
        loss, _ = _loss_with_grad(*arguments)
        return loss
    return _loss(*arguments)
