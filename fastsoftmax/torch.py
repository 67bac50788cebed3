r"""Functions of ``torch.nn.functional`` as differentiable operators on tensors in the memory of the processor.

`softmax`, `log_softmax`, `logsumexp`, `cross_entropy` and `linear_cross_entropy` have PyTorch's names, arguments
and defaults, so that changing an import line is enough, and the kernels and errors of this library;
`kl_divergence` and `segment_softmax` are this library's. They can be differentiated twice, by the products with
Jacobians and Hessians, which keep their digits; ``softmax``, ``log_softmax``, ``logsumexp`` and
``segment_softmax`` any number of times. Derivatives that there are none of are errors. ``torch.compile`` takes
them as operators, without graph breaks; ``torch.func`` transforms them, and ``vmap`` calls them once for each
element. They need the extra ``torch``.

`softmax`, `log_softmax`, `logsumexp`, `cross_entropy` and `segment_softmax` have derivatives in forward mode, too
(``torch.func.jvp``, ``jacfwd``, ``hessian``, dual numbers), over and under the reverse mode. The forward mode of
the forward mode is an error, and so is the forward mode inside of ``torch.compile``: PyTorch loses tangents there.

Tensors on other devices, and derivatives with respect to targets and weights, are a TypeError.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsoftmax.api import activations, derivatives, divergences, linear, losses, segments
from fastsoftmax.arrays.options import reversal

__all__ = [
    "cross_entropy",
    "kl_divergence",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "segment_softmax",
    "softmax",
]

IGNORED = -100
"""PyTorch's default for the class index of rows that do not count."""
_BLOCK_ROWS = 4096
_BLOCK_BYTES = 32 << 20
"""Second derivatives of a product hold the logits of so many rows at a time, in so many bytes."""


def _check(function: str, **tensors: Tensor | None) -> None:
    """TypeError for tensors that the operators do not take."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device.type not in ("cpu", "meta"):
            raise TypeError(f"{function}: {name} is a tensor on the device {tensor.device}; call cpu() first")


def _check_floats(function: str, name: str, tensor: Tensor) -> None:
    _check(function, **{name: tensor})
    if not tensor.is_floating_point():
        raise TypeError(f"{function}: {name} has dtype {tensor.dtype}, expected a dtype of floats")


def _check_constants(function: str, **tensors: Tensor | None) -> None:
    """TypeError for tensors that the operators do not take, or whose derivatives they have not."""
    _check(function, **tensors)
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise TypeError(f"{function}: {name} requires grad; there is no derivative for it, call detach()")


def _check_alike(function: str, first: str, x: Tensor, **tensors: Tensor | None) -> None:
    """TypeError for tensors that have not the dtype of the first one, which has a dtype of floats."""
    _check_floats(function, first, x)
    for name, tensor in tensors.items():
        if tensor is not None:
            _check_floats(function, name, tensor)
            if tensor.dtype != x.dtype:
                raise TypeError(f"{function}: {name} has dtype {tensor.dtype}, expected {x.dtype} as {first}")


def _tempered(temperature: float) -> dict[str, Any]:
    """The option, unless it changes nothing: then a small call takes a shorter way."""
    return {} if temperature == 1 else {"temperature": temperature}


def _like(tensor: Tensor) -> Tensor:
    """An empty tensor like the result of a kernel for `tensor`."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


# --- operators ----------------------------------------------------------------------------------------------

_Saved = tuple[Tensor | None, ...]
"""The tensors that a derivative reads."""
_LIBRARY = torch.library.Library("fastsoftmax", "DEF")
_PLAIN = (Tensor, torch.nn.Parameter)
"""The classes of tensors that hold their numbers themselves."""


# Private, and there since PyTorch 2.0; without them, every call goes through the dispatcher.
_modes: Any = getattr(torch._C, "_len_torch_dispatch_stack", None)
_transforms: Any = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)


def _watched() -> bool:
    """Whether somebody watches PyTorch's dispatcher: a tracer or a mode."""
    return bool(_modes is None or _transforms is None or _modes() or torch.jit.is_tracing())


def _is_dual(tensor: Tensor) -> bool:
    """Whether a tensor has a tangent of the forward mode."""
    return torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None


def _nested() -> bool:
    """Whether a transform of the forward mode is inside of another one.

    Functions of PyTorch's own that the derivative of a ``Function`` calls lose the tangents of the outer one.
    """
    forward = torch._C._functorch.TransformType.Jvp
    return sum(one.key() == forward for one in torch._C._functorch.get_interpreter_stack() or ()) > 1


def _transformed() -> bool:
    """Whether a transform of ``torch.func`` is active."""
    return _transforms is not None and _transforms() is not None


class _Operator:
    """An operator of PyTorch's dispatcher with its derivative, and a shorter way to both for plain tensors.

    For an operator in Python, the dispatcher takes 8 us, and 20 if there is a graph of derivatives. Where nobody
    watches it, the function is called without it, or by a ``Function``.

    Parameters
    ----------
    schema : str
        Name, arguments and results in PyTorch's notation.
    compute
        The function for tensors in memory. Its results are contiguous and share no memory with the arguments.
    like
        The same for shapes and dtypes only: empty tensors.
    keep
        Called with `ctx`, `inputs` and `output`; stores there what derivatives read, and returns the tensors that
        they read.
    backward
        Called as ``backward(ctx, *slopes)``; returns the derivatives with respect to the arguments. It consists of
        operators, so that it has derivatives itself.
    jvp, optional
        The same for the forward mode: called as ``jvp(ctx, *tangents)`` with the tangents of the arguments, None
        for zeros; returns those of the results.
    """

    def __init__(
        self,
        schema: str,
        compute: Callable[..., Any],
        like: Callable[..., Any],
        keep: Callable[..., _Saved],
        backward: Callable[..., Any],
        jvp: Callable[..., Any] | None = None,
    ) -> None:
        name = schema.partition("(")[0]
        qualified = f"fastsoftmax::{name}"
        _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(name, compute, "CPU")
        torch.library.register_fake(qualified, like, lib=_LIBRARY)

        def setup(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*keep(ctx, inputs, output))

        torch.library.register_autograd(qualified, backward, setup_context=setup, lib=_LIBRARY)

        def forward(ctx: Any, *args: Any) -> Any:
            output = compute(*args)
            ctx.save_for_backward(*keep(ctx, args, output))
            return output

        def keep_for_both(ctx: Any, inputs: Any, output: Any) -> None:
            tensors = keep(ctx, inputs, output)
            ctx.save_for_backward(*tensors)
            ctx.save_for_forward(*tensors)

        self.name, self.compute, self.jvp = name, compute, jvp
        self.operator = operator = getattr(torch.ops.fastsoftmax, name).default

        def batched(info: Any, dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
            calls = (
                operator(
                    *[one if dim is None else one.select(dim, n) for one, dim in zip(args, dims, strict=True)]
                )
                for n in range(info.batch_size)
            )
            several = [found if isinstance(found, tuple) else (found,) for found in calls]
            stacked = tuple(map(torch.stack, zip(*several, strict=True)))
            return (stacked, (0,) * len(stacked)) if len(stacked) > 1 else (stacked[0], 0)

        torch.library.register_vmap(qualified, batched, lib=_LIBRARY)
        # `transformed` takes 15 us more, has the forward mode, and is what torch.func can look into.
        common = {"backward": staticmethod(backward)}
        self.function: Any = type(name, (torch.autograd.Function,), {**common, "forward": staticmethod(forward)})
        parts = {
            "forward": staticmethod(lambda *args: operator(*args)),
            "setup_context": staticmethod(keep_for_both),
        }
        if jvp is not None:
            parts["jvp"] = staticmethod(jvp)
        self.transformed: Any = type(
            name, (torch.autograd.Function,), {**common, **parts, "generate_vmap_rule": True}
        )

    def __call__(self, *args: Any) -> Any:
        """The results for these arguments, all of them in their order."""
        if torch.compiler.is_compiling():
            if any(isinstance(one, Tensor) and _is_dual(one) for one in args):
                raise NotImplementedError(
                    f"fastsoftmax.torch: {self.name} has no derivatives in forward mode inside of torch.compile"
                )
            return self.operator(*args)
        if _transformed():
            if _nested():
                raise NotImplementedError(
                    f"fastsoftmax.torch: {self.name} has no derivatives in forward mode of derivatives in forward "
                    "mode; use reverse mode for one of them"
                )
            return self.transformed.apply(*args)
        graph, plain = False, not _watched()
        for one in args:
            if isinstance(one, Tensor):
                if _is_dual(one):
                    return self._along(*args)
                graph = graph or one.requires_grad
                plain = plain and type(one) in _PLAIN and one.is_cpu
        if not plain:
            return self.operator(*args)
        return self.function.apply(*args) if graph and torch.is_grad_enabled() else self.compute(*args)

    def _along(self, *args: Any) -> Any:
        """The results with their tangents, if there is a forward mode."""
        if self.jvp is None:
            raise NotImplementedError(
                f"fastsoftmax.torch: {self.name} has no derivatives in forward mode, only in reverse mode"
            )
        return self.transformed.apply(*args)


def _has_graph(*tensors: Tensor | None) -> bool:
    """Whether there will be derivatives with respect to one of these tensors."""
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)


def _scaled(slope: Tensor, factor: Tensor | None, dim: int, reduction: str) -> Tensor | None:
    """A gradient times the factor of its loss, or those of its rows; None for no factor."""
    if factor is None:
        return None
    return slope * (factor.unsqueeze(dim) if reduction == "none" else factor)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The sum of two derivatives, None for zeros."""
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _constants(*tangents: Tensor | None) -> None:
    """An error for tangents of targets and weights: there are no derivatives with respect to these."""
    if any(one is not None for one in tangents):
        raise NotImplementedError(
            "fastsoftmax.torch: losses have no derivatives with respect to targets and weights"
        )


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> _Saved:
    """What the derivative of a second derivative reads."""
    return ()


def _twice_only(ctx: Any, *slopes: Tensor | None) -> Any:
    """The derivative of a second derivative: an error."""
    raise NotImplementedError("fastsoftmax.torch: losses can be differentiated twice, not three times")


# --- softmax, of rows and of segments -----------------------------------------------------------------------


def _row_sums(values: Tensor, dim: int) -> Tensor:
    return values.sum(dim, keepdim=True)


def _segment_sums(values: Tensor, indptr: Tensor) -> Tensor:
    """The sum of each segment, as often as the segment is long."""
    lengths = indptr.diff().long()
    index = torch.arange(len(lengths)).repeat_interleave(lengths, output_size=len(values))
    return values.new_zeros(len(lengths)).index_add(0, index, values)[index]


def _with_probs(
    probs: Tensor, vector: Tensor, slope: Tensor, sums: Callable[[Tensor, Any], Tensor], rows: Any
) -> Tensor:
    """The derivative of sum_k g_k p_k (v_k - s), s = sum_j p_j v_j, with respect to p; g is `slope`."""
    return slope * (vector - sums(probs * vector, rows)) - vector * sums(probs * slope, rows)


def _compute_softmax(x: Tensor, dim: int, temperature: float) -> Tensor:
    return activations.softmax(x.detach(), dim, **_tempered(temperature)).contiguous()


def _compute_product(probs: Tensor, vector: Tensor, dim: int, temperature: float) -> Tensor:
    """The product of the Jacobian of the softmax with a vector, from probabilities."""
    options: dict[str, Any] = {"from_probs": True, **_tempered(temperature)}
    return derivatives.softmax_vjp(probs.detach(), vector.detach(), dim, **options).contiguous()


def _keep_output(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> _Saved:
    _, ctx.dim, ctx.temperature = inputs
    return (output,)


def _softmax_backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
    (probs,) = ctx.saved_tensors
    return _product(probs, slope, ctx.dim, ctx.temperature), None, None


def _softmax_jvp(ctx: Any, tangent: Tensor, *rest: None) -> Tensor:
    (probs,) = ctx.saved_tensors
    return _product(probs, tangent, ctx.dim, ctx.temperature)


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> _Saved:
    first, second, ctx.dim, ctx.temperature = inputs
    return first, second


def _product_backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
    probs, vector = ctx.saved_tensors
    with_probs = _with_probs(probs, vector, slope, _row_sums, ctx.dim) / ctx.temperature
    return with_probs, _product(probs, slope, ctx.dim, ctx.temperature), None, None


def _along_probs(
    probs: Tensor, vector: Tensor, along: Tensor, sums: Callable[[Tensor, Any], Tensor], rows: Any
) -> Tensor:
    """The derivative of p_k (v_k - s), s = sum_j p_j v_j, along a tangent of p."""
    return along * (vector - sums(probs * vector, rows)) - probs * sums(along * vector, rows)


def _product_jvp(ctx: Any, with_probs: Tensor | None, with_vector: Tensor | None, *rest: None) -> Tensor | None:
    probs, vector = ctx.saved_tensors
    found = None
    if with_probs is not None:
        found = _along_probs(probs, vector, with_probs, _row_sums, ctx.dim) / ctx.temperature
    if with_vector is not None:
        found = _sum(found, _product(probs, with_vector, ctx.dim, ctx.temperature))
    return found


_softmax = _Operator(
    "softmax(Tensor x, int dim, float temperature) -> Tensor",
    _compute_softmax,
    lambda x, dim, temperature: _like(x),
    _keep_output,
    _softmax_backward,
    _softmax_jvp,
)
_product = _Operator(
    "softmax_product(Tensor probs, Tensor vector, int dim, float temperature) -> Tensor",
    _compute_product,
    lambda probs, vector, dim, temperature: _like(probs),
    _keep_operands,
    _product_backward,
    _product_jvp,
)


def _compute_segments(x: Tensor, indptr: Tensor) -> Tensor:
    return segments.segment_softmax(x.detach(), indptr.detach())


def _compute_segment_product(x: Tensor, indptr: Tensor, vector: Tensor) -> Tensor:
    """The product of the Jacobian with a vector, from logits."""
    return segments.segment_softmax_vjp(x.detach(), indptr.detach(), vector.detach())


def _keep_tensors(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> _Saved:
    return inputs


def _segments_backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
    x, indptr = ctx.saved_tensors
    return _segment_product(x, indptr, slope), None


def _segment_product_backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, Tensor]:
    x, indptr, vector = ctx.saved_tensors
    with_probs = _with_probs(_segments(x, indptr), vector, slope, _segment_sums, indptr)
    return _segment_product(x, indptr, with_probs), None, _segment_product(x, indptr, slope)


def _segments_jvp(ctx: Any, tangent: Tensor, *rest: None) -> Tensor:
    x, indptr = ctx.saved_tensors
    return _segment_product(x, indptr, tangent)


def _segment_product_jvp(ctx: Any, with_x: Tensor | None, _: None, with_vector: Tensor | None) -> Tensor | None:
    x, indptr, vector = ctx.saved_tensors
    found = None
    if with_x is not None:
        along = _segment_product(x, indptr, with_x)
        found = _along_probs(_segments(x, indptr), vector, along, _segment_sums, indptr)
    return found if with_vector is None else _sum(found, _segment_product(x, indptr, with_vector))


_segments = _Operator(
    "segment_softmax(Tensor x, Tensor indptr) -> Tensor",
    _compute_segments,
    lambda x, indptr: _like(x),
    _keep_tensors,
    _segments_backward,
    _segments_jvp,
)
_segment_product = _Operator(
    "segment_softmax_product(Tensor x, Tensor indptr, Tensor vector) -> Tensor",
    _compute_segment_product,
    lambda x, indptr, vector: _like(x),
    _keep_tensors,
    _segment_product_backward,
    _segment_product_jvp,
)


# --- log_softmax --------------------------------------------------------------------------------------------


def _compute_log_softmax(x: Tensor, dim: int, temperature: float) -> Tensor:
    return activations.log_softmax(x.detach(), dim, **_tempered(temperature)).contiguous()


def _compute_log_vjp(x: Tensor, cotangent: Tensor, dim: int, temperature: float) -> Tensor:
    return derivatives.log_softmax_vjp(x.detach(), cotangent.detach(), dim, **_tempered(temperature)).contiguous()


def _compute_log_jvp(x: Tensor, tangent: Tensor, dim: int, temperature: float) -> Tensor:
    return derivatives.log_softmax_jvp(x.detach(), tangent.detach(), dim, **_tempered(temperature)).contiguous()


def _keep_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> _Saved:
    x, ctx.dim, ctx.temperature = inputs
    return (x,)


def _log_softmax_backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
    (x,) = ctx.saved_tensors
    return _log_vjp(x, slope, ctx.dim, ctx.temperature), None, None


def _log_softmax_jvp(ctx: Any, tangent: Tensor, *rest: None) -> Tensor:
    (x,) = ctx.saved_tensors
    return _log_jvp(x, tangent, ctx.dim, ctx.temperature)


def _log_vjp_backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
    # y_k = (g_k - p_k sum_j g_j)/T
    x, cotangent = ctx.saved_tensors
    probs = _softmax(x, ctx.dim, ctx.temperature)
    total = _row_sums(cotangent, ctx.dim) / ctx.temperature
    with_x = -total * _product(probs, slope, ctx.dim, ctx.temperature)
    with_cotangent = (slope - _row_sums(probs * slope, ctx.dim)) / ctx.temperature
    return with_x, with_cotangent, None, None


def _log_vjp_jvp(ctx: Any, with_x: Tensor | None, with_cotangent: Tensor | None, *rest: None) -> Tensor | None:
    x, cotangent = ctx.saved_tensors
    found = None
    if with_x is not None:
        along = _product(_softmax(x, ctx.dim, ctx.temperature), with_x, ctx.dim, ctx.temperature)
        found = -along * _row_sums(cotangent, ctx.dim) / ctx.temperature
    if with_cotangent is not None:
        found = _sum(found, _log_vjp(x, with_cotangent, ctx.dim, ctx.temperature))
    return found


def _log_jvp_backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
    # y_k = (v_k - sum_j p_j v_j)/T
    x, vector = ctx.saved_tensors
    moved = _product(_softmax(x, ctx.dim, ctx.temperature), vector, ctx.dim, ctx.temperature)
    with_x = -moved * _row_sums(slope, ctx.dim) / ctx.temperature
    return with_x, _log_vjp(x, slope, ctx.dim, ctx.temperature), None, None


def _log_jvp_jvp(ctx: Any, with_x: Tensor | None, with_vector: Tensor | None, *rest: None) -> Tensor | None:
    x, vector = ctx.saved_tensors
    found = None
    if with_x is not None:
        along = _product(_softmax(x, ctx.dim, ctx.temperature), with_x, ctx.dim, ctx.temperature)
        found = (-_row_sums(along * vector, ctx.dim) / ctx.temperature).expand_as(x)
    if with_vector is not None:
        found = _sum(found, _log_jvp(x, with_vector, ctx.dim, ctx.temperature))
    return found


_log_softmax = _Operator(
    "log_softmax(Tensor x, int dim, float temperature) -> Tensor",
    _compute_log_softmax,
    lambda x, dim, temperature: _like(x),
    _keep_input,
    _log_softmax_backward,
    _log_softmax_jvp,
)
_log_vjp = _Operator(
    "log_softmax_vjp(Tensor x, Tensor cotangent, int dim, float temperature) -> Tensor",
    _compute_log_vjp,
    lambda x, cotangent, dim, temperature: _like(x),
    _keep_operands,
    _log_vjp_backward,
    _log_vjp_jvp,
)
_log_jvp = _Operator(
    "log_softmax_jvp(Tensor x, Tensor tangent, int dim, float temperature) -> Tensor",
    _compute_log_jvp,
    lambda x, tangent, dim, temperature: _like(x),
    _keep_operands,
    _log_jvp_backward,
    _log_jvp_jvp,
)


# --- logsumexp ----------------------------------------------------------------------------------------------


def _compute_logsumexp(x: Tensor, dim: int) -> Tensor:
    return activations.logsumexp(x.detach(), dim).contiguous()


def _keep_logits(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> _Saved:
    x, ctx.dim = inputs
    return (x,)


def _logsumexp_backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return slope.unsqueeze(ctx.dim) * _softmax(x, ctx.dim, 1.0), None


def _logsumexp_jvp(ctx: Any, tangent: Tensor, *rest: None) -> Tensor:
    (x,) = ctx.saved_tensors
    return (_softmax(x, ctx.dim, 1.0) * tangent).sum(ctx.dim)


def _rows(x: Tensor, dim: int) -> list[int]:
    """The shape of one number for each row."""
    return [size for axis, size in enumerate(x.shape) if axis != dim % x.dim()]


def _like_loss(x: Tensor, dim: int, reduction: str) -> Tensor:
    return x.new_empty(_rows(x, dim) if reduction == "none" else [])


_logsumexp = _Operator(
    "logsumexp(Tensor x, int dim) -> Tensor",
    _compute_logsumexp,
    lambda x, dim: _like_loss(x, dim, "none"),
    _keep_logits,
    _logsumexp_backward,
    _logsumexp_jvp,
)


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
    # By NumPy: PyTorch would wake its threads, which spin for a while and are in the way of this library's.
    if ignore_index is not None and (target.detach().numpy() == ignore_index).any():
        options["ignore_index"] = ignore_index
    return options


def _class_dim(x: Tensor) -> int:
    """Where PyTorch has the classes; -1 for matrices, because small calls along the last axis are shorter."""
    return 1 if x.dim() > 2 else -1


def _compute_loss(x: Tensor, target: Tensor, *options: Any) -> Tensor:
    return losses.cross_entropy(
        x.detach(), target.detach(), _class_dim(x), **_options(target, *options)
    ).contiguous()


def _compute_loss_with_grad(x: Tensor, target: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    given = _options(target, *options)
    loss, slope = losses.cross_entropy_with_grad(x.detach(), target.detach(), _class_dim(x), **given)
    return loss.contiguous(), slope.contiguous()


def _compute_hvp(x: Tensor, target: Tensor, tangent: Tensor, *options: Any) -> Tensor:
    given = _options(target, *options)
    return losses.cross_entropy_hvp(
        x.detach(), target.detach(), tangent.detach(), _class_dim(x), **given
    ).contiguous()


def _keep_loss(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> _Saved:
    x, target, weight, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    return x, target, weight


def _loss_backward(ctx: Any, with_loss: Tensor | None) -> tuple[Tensor | None, ...]:
    x, target, weight = ctx.saved_tensors
    _, slope = _loss_with_grad(x, target, weight, *ctx.options)
    return _scaled(slope, with_loss, _class_dim(x), ctx.options[1]), None, None, None, None, None


def _along_slope(slope: Tensor, tangent: Tensor, dim: int, reduction: str) -> Tensor:
    """The derivative of a loss along a tangent, from its gradient."""
    found = slope * tangent
    return found.sum(dim) if reduction == "none" else found.sum()


def _loss_jvp(ctx: Any, tangent: Tensor | None, *rest: Tensor | None) -> Tensor | None:
    _constants(*rest)
    if tangent is None:
        return None
    x, target, weight = ctx.saved_tensors
    _, slope = _loss_with_grad(x, target, weight, *ctx.options)
    return _along_slope(slope, tangent, _class_dim(x), ctx.options[1])


def _keep_slope(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> _Saved:
    x, target, weight, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    return x, target, weight, output[1]


def _slope_backward(ctx: Any, with_loss: Tensor | None, with_slope: Tensor | None) -> tuple[Tensor | None, ...]:
    x, target, weight, slope = ctx.saved_tensors
    found = _scaled(slope, with_loss, _class_dim(x), ctx.options[1])
    if with_slope is not None:
        found = _sum(found, _hvp(x, target, with_slope, weight, *ctx.options))
    return found, None, None, None, None, None


def _slope_jvp(ctx: Any, tangent: Tensor | None, *rest: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    _constants(*rest)
    if tangent is None:
        return None, None
    x, target, weight, slope = ctx.saved_tensors
    along = _along_slope(slope, tangent, _class_dim(x), ctx.options[1])
    return along, _hvp(x, target, tangent, weight, *ctx.options)


def _keep_hvp(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> _Saved:
    x, target, _, weight, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    return x, target, weight


def _hvp_jvp(
    ctx: Any, with_x: Tensor | None, with_target: Tensor | None, tangent: Tensor | None, *rest: Tensor | None
) -> Tensor | None:
    _constants(with_target, *rest)
    if with_x is not None:
        _twice_only(ctx)
    if tangent is None:
        return None
    x, target, weight = ctx.saved_tensors
    return _hvp(x, target, tangent, weight, *ctx.options)


_OPTIONS = "Tensor? weight, int? ignore_index, str reduction, float smoothing"
_loss = _Operator(
    f"cross_entropy(Tensor x, Tensor target, {_OPTIONS}) -> Tensor",
    _compute_loss,
    lambda x, target, weight, ignore_index, reduction, smoothing: _like_loss(x, _class_dim(x), reduction),
    _keep_loss,
    _loss_backward,
    _loss_jvp,
)
_loss_with_grad = _Operator(
    f"cross_entropy_with_grad(Tensor x, Tensor target, {_OPTIONS}) -> (Tensor, Tensor)",
    _compute_loss_with_grad,
    lambda x, target, weight, ignore_index, reduction, smoothing: (
        _like_loss(x, _class_dim(x), reduction),
        _like(x),
    ),
    _keep_slope,
    _slope_backward,
    _slope_jvp,
)
_hvp = _Operator(
    f"cross_entropy_hvp(Tensor x, Tensor target, Tensor tangent, {_OPTIONS}) -> Tensor",
    _compute_hvp,
    lambda x, target, tangent, weight, ignore_index, reduction, smoothing: _like(x),
    _keep_hvp,
    _twice_only,
    _hvp_jvp,
)


# --- kl_divergence ------------------------------------------------------------------------------------------


def _kl_options(temperature: float, reverse: bool, reduction: str) -> dict[str, Any]:
    return {"reverse": reverse, "reduction": reduction, **_tempered(temperature)}


def _compute_kl(x: Tensor, y: Tensor, dim: int, *options: Any) -> Tensor:
    return divergences.kl_divergence(x.detach(), y.detach(), dim, **_kl_options(*options)).contiguous()


def _compute_kl_with_grad(x: Tensor, y: Tensor, dim: int, *options: Any) -> tuple[Tensor, Tensor]:
    given = _kl_options(*options)
    loss, slope = divergences.kl_divergence_with_grad(x.detach(), y.detach(), dim, **given)
    return loss.contiguous(), slope.contiguous()


def _keep_kl(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> _Saved:
    x, y, *ctx.options = inputs
    return x, y


def _kl_slopes(ctx: Any, x: Tensor, y: Tensor, factor: Tensor, slope: Tensor | None) -> Any:
    """The derivatives of the loss with respect to both arrays, which change their parts if `reverse` does."""
    dim, temperature, reverse, reduction = ctx.options
    if slope is None and ctx.needs_input_grad[0]:
        _, slope = _kl_with_grad(x, y, dim, temperature, reverse, reduction)
    other = None
    if ctx.needs_input_grad[1]:
        _, other = _kl_with_grad(y, x, dim, temperature, not reverse, reduction)
    return [None if one is None else _scaled(one, factor, dim, reduction) for one in (slope, other)]


def _kl_backward(ctx: Any, factor: Tensor) -> tuple[Any, ...]:
    x, y = ctx.saved_tensors
    return *_kl_slopes(ctx, x, y, factor, None), None, None, None, None


def _keep_kl_slope(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> _Saved:
    x, y, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    return x, y, output[1]


def _kl_slope_backward(ctx: Any, with_loss: Tensor | None, with_slope: Tensor | None) -> tuple[Any, ...]:
    x, y, slope = ctx.saved_tensors
    dim, temperature, reverse, reduction = ctx.options
    with_x = with_y = None
    if with_loss is not None:
        with_x, with_y = _kl_slopes(ctx, x, y, with_loss, slope)
    if with_slope is not None:
        rows = max(1, x.numel() // max(1, x.shape[dim])) if reduction == "mean" else 1
        weighted = with_slope / (rows * temperature)
        probs = _softmax(x, dim, temperature)
        curved = _product(probs, weighted, dim, temperature)
        if reverse:  # the slope is J_p (x - y)/T
            gap = torch.where(probs == 0, 0, (x - y) / temperature)
            with_probs = _with_probs(probs, gap, weighted, _row_sums, dim)
            with_x = _sum(with_x, curved + _product(probs, with_probs, dim, temperature))
            with_y = _sum(with_y, -curved)
        else:  # it is (p - q)/T
            target = _softmax(y, dim, temperature)
            with_x = _sum(with_x, curved)
            with_y = _sum(with_y, -_product(target, weighted, dim, temperature))
    return with_x, with_y, None, None, None, None


_DIVERGENCE = "Tensor x, Tensor y, int dim, float temperature, bool reverse, str reduction"
_kl = _Operator(
    f"kl_divergence({_DIVERGENCE}) -> Tensor",
    _compute_kl,
    lambda x, y, dim, temperature, reverse, reduction: _like_loss(x, dim, reduction),
    _keep_kl,
    _kl_backward,
)
_kl_with_grad = _Operator(
    f"kl_divergence_with_grad({_DIVERGENCE}) -> (Tensor, Tensor)",
    _compute_kl_with_grad,
    lambda x, y, dim, temperature, reverse, reduction: (_like_loss(x, dim, reduction), _like(x)),
    _keep_kl_slope,
    _kl_slope_backward,
)


# --- linear_cross_entropy -----------------------------------------------------------------------------------


def _linear_options(target: Tensor, *options: Any) -> dict[str, Any]:
    *common, z_loss, softcap = options
    given = _options(target, *common)
    if z_loss != 0:
        given["z_loss"] = z_loss
    if softcap is not None:
        given["softcap"] = softcap
    return given


def _bare(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _compute_linear(x: Tensor, w: Tensor, target: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    given = _linear_options(target, *options)
    arrays = x.detach(), w.detach(), target.detach(), _bare(bias)
    return linear.linear_cross_entropy(*arrays, **given).contiguous()


def _compute_linear_with_grad(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    bias: Tensor | None,
    factors: Tensor | None,
    wrt: list[bool],
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss and the gradients that are asked for; nothing for the others. `factors` are weights of the rows."""
    given = _linear_options(target, *options)
    if factors is not None:
        given["sample_weight"] = factors.detach()
    names = [name for name, wanted in zip(("features", "weight", "bias"), wrt, strict=True) if wanted]
    arrays = x.detach(), w.detach(), target.detach(), _bare(bias)
    loss, slopes = linear.linear_cross_entropy_with_grad(*arrays, wrt=names, **given)
    found = [x.new_empty(0) if slope is None else slope.contiguous() for slope in slopes]
    return loss.contiguous(), found[0], found[1], found[2]


def _compute_linear_hvp(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    bias: Tensor | None,
    factors: Tensor | None,
    wrt: list[bool],
    along_x: Tensor | None,
    along_w: Tensor | None,
    along_bias: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The product of the Hessian with respect to features, weight and bias with the tangents of these.

    The parts that are asked for; nothing for the others.

    With the gradients G of the logits X W^T + b and the products U of their Hessians with the tangents of the
    logits, dX W^T + X dW^T + db, it is U W + G dW, U^T X + G^T dX, and the sum of the rows of U.
    """
    weight, ignored, reduction, *rest = options
    w, labels, shift = w.detach(), target.detach().reshape(-1), _bare(bias)
    rows = x.detach().reshape(-1, w.shape[1])
    along = None if along_x is None else along_x.detach().reshape(rows.shape)
    given = _linear_options(labels, weight, None, "sum", *rest)
    with_x, with_w, with_bias = (
        torch.zeros_like(one) if wanted else one.new_empty(0)
        for one, wanted in zip((rows, w, w[:, 0] if bias is None else bias.detach()), wrt, strict=True)
    )
    counted = torch.arange(len(labels)) if ignored is None else (labels != ignored).nonzero()[:, 0]
    step = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // max(1, len(w) * w.element_size())))
    for where in counted.split(step):
        block, part = rows[where], labels[where]
        own = given if factors is None else {**given, "sample_weight": factors.detach().reshape(-1)[where]}
        logits = torch.nn.functional.linear(block, w, shift)
        tangent = torch.zeros_like(logits)
        if along is not None:
            tangent += along[where] @ w.T
        if along_w is not None:
            tangent += block @ along_w.detach().T
        if along_bias is not None:
            tangent += along_bias.detach()
        curved = losses.cross_entropy_hvp(logits, part, tangent, **own)
        # What mixes features and weight.
        mixed = (wrt[0] and along_w is not None) or (wrt[1] and along is not None)
        slope: Any = losses.cross_entropy_grad(logits, part, **own) if mixed else None
        if wrt[0]:
            with_x[where] = curved @ w
            if along_w is not None:
                with_x[where] += slope @ along_w.detach()
        if wrt[1]:
            with_w += curved.T @ block
            if along is not None:
                with_w += slope.T @ along[where]
        if wrt[2]:
            with_bias += curved.sum(0)
    if reduction == "mean":
        total = len(counted) if weight is None else float(weight.detach()[labels[counted]].sum())
        for one in (with_x, with_w, with_bias):
            one /= total if total else 1
    return with_x.reshape(x.shape) if wrt[0] else with_x, with_w, with_bias


def _like_linear(x: Tensor, w: Tensor, bias: Tensor | None, wrt: Sequence[bool]) -> list[Tensor]:
    """Empty tensors like the gradients that are asked for."""
    found = zip((x, w, bias), wrt, strict=True)
    return [x.new_empty(0) if one is None or not wanted else _like(one) for one, wanted in found]


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> _Saved:
    x, w, target, bias, weight, *ctx.options = inputs
    return x, w, target, bias, weight


def _linear_backward(ctx: Any, with_loss: Tensor) -> tuple[Any, ...]:
    x, w, target, bias, weight = ctx.saved_tensors
    ignored, reduction, *rest = ctx.options
    wrt = [ctx.needs_input_grad[n] for n in (0, 1, 3)]
    # One number is a factor of the gradients; many are weights of the rows, of which the gradients are sums.
    one, many, kind = (None, with_loss, "sum") if reduction == "none" else (with_loss, None, reduction)
    _, *slopes = _linear_with_grad(x, w, target, bias, many, wrt, weight, ignored, kind, *rest)
    found = [
        None if not wanted else slope if one is None else slope * one
        for slope, wanted in zip(slopes, wrt, strict=True)
    ]
    return found[0], found[1], None, found[2], *[None] * 6


def _keep_linear_slopes(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> _Saved:
    x, w, target, bias, factors, ctx.wrt, weight, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    return x, w, target, bias, factors, weight, *output[1:]


def _linear_slopes_backward(ctx: Any, with_loss: Tensor | None, *tangents: Tensor | None) -> tuple[Any, ...]:
    x, w, target, bias, factors, weight, *slopes = ctx.saved_tensors
    if ctx.needs_input_grad[4]:
        raise NotImplementedError(
            "fastsoftmax.torch: linear_cross_entropy has no second derivatives through the losses of rows "
            '(reduction="none"); use reduction "mean" or "sum"'
        )
    wrt = [ctx.needs_input_grad[n] for n in (0, 1, 3)]
    found: list[Tensor | None] = [None, None, None]
    if with_loss is not None:
        found = [slope * with_loss if wanted else None for slope, wanted in zip(slopes, wrt, strict=True)]
    along = [one if wanted else None for one, wanted in zip(tangents, ctx.wrt, strict=True)]
    if any(one is not None for one in along):
        curved = _linear_hvp(x, w, target, bias, factors, wrt, *along, weight, *ctx.options)
        found = [_sum(one, more) if wanted else None for one, more, wanted in zip(found, curved, wrt, strict=True)]
    return found[0], found[1], None, found[2], *[None] * 8


_LINEAR = f"{_OPTIONS}, float z_loss, float? softcap"
_PRODUCT = "Tensor x, Tensor w, Tensor target, Tensor? bias"
_linear = _Operator(
    f"linear_cross_entropy({_PRODUCT}, {_LINEAR}) -> Tensor",
    _compute_linear,
    lambda x, w, target, bias, weight, ignored, reduction, *rest: _like_loss(x, -1, reduction),
    _keep_linear,
    _linear_backward,
)
_linear_with_grad = _Operator(
    f"linear_cross_entropy_with_grad({_PRODUCT}, Tensor? factors, bool[] wrt, {_LINEAR})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _compute_linear_with_grad,
    lambda x, w, target, bias, factors, wrt, weight, ignored, reduction, *rest: (
        _like_loss(x, -1, reduction),
        *_like_linear(x, w, bias, wrt),
    ),
    _keep_linear_slopes,
    _linear_slopes_backward,
)
_linear_hvp = _Operator(
    f"linear_cross_entropy_hvp({_PRODUCT}, Tensor? factors, bool[] wrt, Tensor? along_x, Tensor? along_w,"
    f" Tensor? along_bias, {_LINEAR}) -> (Tensor, Tensor, Tensor)",
    _compute_linear_hvp,
    lambda x, w, target, bias, factors, wrt, *rest: tuple(_like_linear(x, w, bias, wrt)),
    _keep_nothing,
    _twice_only,
)


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
    dims = tuple(dim)
    last = tuple(range(-len(dims), 0))
    rows = input.movedim(dims, last).flatten(-len(dims)) if dims else input.unsqueeze(-1)
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
    _check_constants("cross_entropy", target=target, weight=weight)
    index = None if target.is_floating_point() else ignore_index
    arguments = input, target, weight, index, reduction, float(label_smoothing)
    return _loss_with_grad(*arguments)[0] if _has_graph(input) else _loss(*arguments)


def kl_divergence(
    input: Tensor,  # noqa: A002
    target: Tensor,
    dim: int = -1,
    *,
    temperature: float = 1.0,
    reverse: bool = False,
    reduction: str = "mean",
) -> Tensor:
    r"""Kullback-Leibler divergence of two arrays of logits, the loss of distillation.

    .. math:: L_n = \sum_j q_{nj} (\log q_{nj} - \log p_{nj}), \qquad p_n = \mathrm{softmax}(z_n / T),
        \quad q_n = \mathrm{softmax}(t_n / T)

    Parameters
    ----------
    input : Tensor
        Logits z, a tensor of floats in the memory of the processor.
    target : Tensor
        Logits t of the target, of the shape and dtype of `input`. It may require grad, too.
    dim : int, default -1
        The dimension of the classes.
    temperature : float, default 1.0
        T > 0.
    reverse : bool, default False
        KL(p || q) instead of KL(q || p).
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all rows, their sum, or the divergence of each row.

    Returns
    -------
    Tensor
        The divergence, of the dtype of `input`. If `input` requires grad, it and its gradient are computed in one
        pass.

    See Also
    --------
    fastsoftmax.kl_divergence : its errors, error bounds and edge cases.

    Notes
    -----
    ``torch.nn.functional.kl_div`` takes log-probabilities and probabilities, and its mean is over entries; this
    one with "mean" is its "batchmean" for matrices.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import kl_divergence
    >>> student = torch.tensor([[1.0, 0.0]], requires_grad=True)
    >>> kl_divergence(student, torch.tensor([[0.0, 0.0]])).backward()
    >>> student.grad
    tensor([[ 0.2311, -0.2311]])
    """
    function = "kl_divergence"
    _check_alike(function, "input", input, target=target)
    if input.dim() == 0:
        raise ValueError(f"{function}: input has no dimensions, expected at least one")
    arguments = input, target, dim, float(temperature), reversal(function, reverse), reduction
    return _kl_with_grad(*arguments)[0] if _has_graph(input) else _kl(*arguments)


def linear_cross_entropy(
    input: Tensor,  # noqa: A002
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    r"""Cross-entropy of the logits of a linear layer, which are never held all at once.

    .. math:: L_n = -\log p_{n y_n}, \qquad p_n = \mathrm{softmax}(W x_n + b)

    Parameters
    ----------
    input : Tensor
        Features x, a tensor of floats in the memory of the processor, of shape (..., D).
    linear_weight : Tensor
        W, of shape (K, D) and the dtype of `input`.
    target : Tensor
        Class indices, of the shape of `input` without D.
    linear_bias : Tensor, optional
        b, of shape (K,) and the dtype of `input`.
    weight : Tensor, optional
        The weight of each class.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all rows, their sum, or the loss of each row.
    ignore_index : int, default -100
        The class index of rows that do not count.
    label_smoothing : float, default 0.0
        The share of the uniform distribution that is mixed into every target.
    z_loss : float, default 0.0
        The multiple of the squared log-sum-exp that is added to the loss of each row.
    softcap : float, optional
        c > 0: the logits are c tanh(logits / c).

    Returns
    -------
    Tensor
        The loss, of the dtype of `input`. If an argument requires grad, loss and gradients are computed together;
        with ``reduction="none"``, which needs the slopes of the losses first, one after the other.

    See Also
    --------
    fastsoftmax.linear_cross_entropy : its errors, error bounds and edge cases.

    Notes
    -----
    There are derivatives with respect to features, weight and bias, and second derivatives of mean and sum.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import linear_cross_entropy
    >>> weight = torch.zeros(3, 2, requires_grad=True)
    >>> loss = linear_cross_entropy(torch.ones(4, 2), weight, torch.tensor([0, 1, 2, 2]))
    >>> loss.backward()
    >>> weight.grad[2]
    tensor([-0.1667, -0.1667])
    """
    function = "linear_cross_entropy"
    _check_alike(function, "input", input, linear_weight=linear_weight, linear_bias=linear_bias)
    _check_constants(function, target=target, weight=weight)
    cap = None if softcap is None else float(softcap)
    options = weight, ignore_index, reduction, float(label_smoothing), float(z_loss), cap
    arrays = input, linear_weight, target, linear_bias
    if reduction == "none" or not _has_graph(input, linear_weight, linear_bias):
        return _linear(*arrays, *options)
    wrt = [_has_graph(one) for one in (input, linear_weight, linear_bias)]
    return _linear_with_grad(*arrays, None, wrt, *options)[0]


def segment_softmax(input: Tensor, indptr: Tensor) -> Tensor:  # noqa: A002
    r"""Softmax of each segment of a vector, for rows of unequal length in CSR form.

    .. math:: p_i = \frac{\exp(x_i)}{\sum_{k=r_n}^{r_{n+1}-1} \exp(x_k)}, \qquad r_n \le i < r_{n+1}

    Parameters
    ----------
    input : Tensor
        Logits, a vector of floats in the memory of the processor: the rows one after the other.
    indptr : Tensor
        r, the integers at which the segments begin, and the length of `input` at the end.

    Returns
    -------
    Tensor
        The probabilities, of the shape and dtype of `input`.

    See Also
    --------
    fastsoftmax.segment_softmax : its errors, error bounds and edge cases.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import segment_softmax
    >>> segment_softmax(torch.zeros(6), torch.tensor([0, 4, 6]))
    tensor([0.2500, 0.2500, 0.2500, 0.2500, 0.5000, 0.5000])
    """
    _check_floats("segment_softmax", "input", input)
    _check("segment_softmax", indptr=indptr)
    return _segments(input, indptr)
