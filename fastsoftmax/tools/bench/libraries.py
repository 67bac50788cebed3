"""The libraries that are compared, and the code that a user of each would write.

A library is a class with a method for each public function that it has. The method is given the operands, as
arrays of that library, does what a user would do once (compile, ask for gradients), and returns the call that is
timed. A method with a parameter `out` can write into an existing array. Where there is no method, or it raises
`NotOfferedError`, the library's cell in the tables is empty.

Every library may use as many threads as ours. Results into ``out=`` and results in fresh memory are timed
separately, because fresh memory costs more than the computation: the system has to fill its pages with zeros.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastsoftmax as fs
from fastsoftmax import _spec
from fastsoftmax.arrays.threads import max_threads
from fastsoftmax.tools.bench.inputs import CLASS_AXIS, Inputs

Call = Callable[..., Any]
Setup = Callable[[Inputs], Call]

CASES = {
    f"{entry.name}{', ' if variant.startswith('out') else ' ' if variant else ''}{variant}": (entry, variant)
    for entry in _spec.FUNCTIONS.values()
    for variant in entry.bench
}
"""The timed calls, such as ``softmax, out=``, each with its entry in the table of functions and its variant."""

FILTERS = {"top_p": {"top_p": 0.9}, "top_k, top_p": {"top_k": 50, "top_p": 0.9}}
"""The options of the variants with filters."""

_ARRAYS = {
    _spec.LOGITS: "logits",
    _spec.TANGENT: "tangent",
    _spec.COTANGENT: "tangent",
    _spec.TARGETS: "labels",
    _spec.LABELS: "labels",
    _spec.DISTRIBUTIONS: "tangent",
    _spec.TARGET_LOGITS: "tangent",
    _spec.PROBABILITIES: "hits",
}
"""The attribute of `Inputs` that serves as an operand."""


class NotOfferedError(Exception):
    """The library has no such function for arrays of this shape."""


class Library:
    """One library: its name in the tables, and the modules it needs."""

    name: str
    modules: tuple[str, ...] = ()
    matrices_only = False
    has_threads = True
    """Whether some of its functions use more than one thread; if none does, it is measured only once."""

    def installed(self) -> bool:
        """Whether its modules can be imported."""
        return all(find_spec(module) is not None for module in self.modules)

    def wrap(self, array: Any) -> Any:
        """An array as this library takes it."""
        return array

    def setup(self, function: str) -> Setup | None:
        """The setup of a function by its name in `CASES`, None if the library has none."""
        entry, variant = CASES[function]
        method = getattr(self, "product_of_probs" if variant.startswith("of probs") else entry.name, None)
        wanted = "out" if variant.endswith("out=") else "filters" if variant in FILTERS else None
        if method is None or (wanted and wanted not in inspect.signature(method).parameters):
            return None
        return partial(self._call, method, entry, variant)

    def _call(self, method: Call, entry: _spec.Function, variant: str, inputs: Inputs) -> Any:
        if self.matrices_only and len(inputs.shape) != 2:
            raise NotOfferedError
        options = {"filters": FILTERS[variant]} if variant in FILTERS else self._out(entry, variant, inputs)
        return method(*self._operands(entry, variant, inputs), **options)

    def _operands(self, entry: _spec.Function, variant: str, inputs: Inputs) -> list[Any]:
        names = [_ARRAYS[role] for role in entry.operands]
        if variant.startswith("of probs"):
            names[0] = "probs"
        return [self.wrap(getattr(inputs, name)) for name in names]

    def _out(self, entry: _spec.Function, variant: str, inputs: Inputs) -> dict[str, Any]:
        if not variant.endswith("out="):
            return {}
        return {"out": self.wrap(inputs.jacobian if _spec.SQUARE in entry.result else inputs.out)}


class FastSoftmax(Library):
    """Ours: every function of the table."""

    name = "fastsoftmax"

    def setup(self, function: str) -> Setup:
        """The call of a public function, or of a variant of it that `_spec.Function.bench` names."""
        return partial(self._public, *CASES[function])

    def _public(self, entry: _spec.Function, variant: str, inputs: Inputs) -> Call:
        # The last axis is our default, and naming it is not what a user would do.
        usual = len(inputs.shape) == 2 or entry.is_elementwise
        options: dict[str, Any] = {} if usual else {"axis": CLASS_AXIS}
        if variant.startswith("of probs"):
            options["from_probs"] = True
        if _spec.CLASSES in entry.result:
            options["rng"] = np.random.default_rng(0)
        options |= self._out(entry, variant, inputs) | FILTERS.get(variant, {})
        return partial(getattr(fs, entry.name), *self._operands(entry, variant, inputs), **options)


class NumPy(Library):
    """The formulas, with few temporary arrays."""

    name = "NumPy"
    has_threads = False

    def _softmax(self, x: Any, out: Any = None) -> Any:
        y = np.subtract(x, x.max(CLASS_AXIS, keepdims=True), out=out)
        np.exp(y, out=y)
        y /= y.sum(CLASS_AXIS, keepdims=True)
        return y

    def _log_softmax(self, x: Any, out: Any = None) -> Any:
        y = np.subtract(x, x.max(CLASS_AXIS, keepdims=True), out=out)
        y -= np.log(np.exp(y).sum(CLASS_AXIS, keepdims=True))
        return y

    def _logsumexp(self, x: Any) -> Any:
        m = x.max(CLASS_AXIS, keepdims=True)
        total = np.exp(x - m).sum(CLASS_AXIS)
        return np.log(total) + m.reshape(total.shape)

    def _entropy(self, x: Any) -> Any:
        log_probs = self._log_softmax(x)
        return -(np.exp(log_probs) * log_probs).sum(CLASS_AXIS)

    def _product(self, p: Any, v: Any, out: Any = None) -> Any:
        y = np.subtract(v, np.sum(p * v, CLASS_AXIS, keepdims=True), out=out)
        y *= p
        return y

    def _jacobian(self, x: Any, out: Any = None) -> Any:
        p = self._softmax(x)
        result = np.multiply(-p[:, :, None], p[:, None, :], out=out)
        diagonal = np.einsum("nii->ni", result)
        diagonal += p
        return result

    def _loss(self, log_probs: Any, labels: Any) -> Any:
        return -np.take_along_axis(log_probs, np.expand_dims(labels, CLASS_AXIS), CLASS_AXIS).mean()

    def _with_grad(self, x: Any, labels: Any, out: Any = None) -> Any:
        log_probs = self._log_softmax(x, out)
        loss = self._loss(log_probs, labels)
        grad = np.exp(log_probs, out=log_probs)
        place = np.expand_dims(labels, CLASS_AXIS)
        chosen = np.take_along_axis(grad, place, CLASS_AXIS)
        np.put_along_axis(grad, place, chosen - 1, CLASS_AXIS)
        grad /= labels.size
        return loss, grad

    def _focal(self, x: Any, labels: Any) -> Any:
        log_p = np.take_along_axis(self._log_softmax(x), np.expand_dims(labels, CLASS_AXIS), CLASS_AXIS)
        return -((1 - np.exp(log_p)) ** 2 * log_p).mean()

    def _focal_with_grad(self, x: Any, labels: Any, out: Any = None) -> Any:
        log_probs = self._log_softmax(x, out)
        place = np.expand_dims(labels, CLASS_AXIS)
        log_p = np.take_along_axis(log_probs, place, CLASS_AXIS)
        p = np.exp(log_p)
        loss = -((1 - p) ** 2 * log_p).mean()
        grad = np.exp(log_probs, out=log_probs)
        np.put_along_axis(grad, place, p - 1, CLASS_AXIS)
        grad *= ((1 - p) ** 2 - 2 * (1 - p) * p * log_p) / labels.size
        return loss, grad

    def _binary(self, x: Any, t: Any) -> Any:
        return (np.logaddexp(0, x) - t * x).mean()

    def _binary_with_grad(self, x: Any, t: Any, out: Any = None) -> Any:
        loss = self._binary(x, t)
        grad = np.negative(x, out=out)
        np.exp(grad, out=grad)
        grad += 1
        np.reciprocal(grad, out=grad)
        grad -= t
        grad /= x.size
        return loss, grad

    def focal_loss(self, x: Any, labels: Any) -> Call:
        return partial(self._focal, x, labels)

    def focal_loss_with_grad(self, x: Any, labels: Any, out: Any = None) -> Call:
        return partial(self._focal_with_grad, x, labels, out)

    def binary_cross_entropy(self, x: Any, t: Any) -> Call:
        return partial(self._binary, x, t)

    def binary_cross_entropy_with_grad(self, x: Any, t: Any, out: Any = None) -> Call:
        return partial(self._binary_with_grad, x, t, out)

    def softmax(self, x: Any, out: Any = None) -> Call:
        return partial(self._softmax, x, out)

    def log_softmax(self, x: Any, out: Any = None) -> Call:
        return partial(self._log_softmax, x, out)

    def logsumexp(self, x: Any) -> Call:
        return partial(self._logsumexp, x)

    def softmax_entropy(self, x: Any) -> Call:
        return partial(self._entropy, x)

    def softmax_jvp(self, x: Any, v: Any) -> Call:
        return lambda: self._product(self._softmax(x), v)

    softmax_vjp = softmax_jvp

    def product_of_probs(self, p: Any, v: Any, out: Any) -> Call:
        return partial(self._product, p, v, out)

    def softmax_jacobian(self, x: Any, out: Any = None) -> Call:
        return partial(self._jacobian, x, out)

    def cross_entropy(self, x: Any, labels: Any) -> Call:
        return lambda: self._loss(self._log_softmax(x), labels)

    def cross_entropy_with_grad(self, x: Any, labels: Any, out: Any = None) -> Call:
        return partial(self._with_grad, x, labels, out)

    def _mean_log_ratio(self, log_a: Any, log_b: Any) -> Any:
        return (np.exp(log_a) * (log_a - log_b)).sum(CLASS_AXIS).mean()

    def _mixed(self, x: Any, t: Any) -> tuple[Any, Any, Any]:
        log_p, log_q = self._log_softmax(x), self._log_softmax(t)
        log_m = np.logaddexp(log_p, log_q)
        log_m -= log_m.dtype.type(np.log(2))
        loss = (self._mean_log_ratio(log_q, log_m) + self._mean_log_ratio(log_p, log_m)) / 2
        return loss, log_p, log_m

    def kl_divergence(self, x: Any, t: Any) -> Call:
        return lambda: self._mean_log_ratio(self._log_softmax(t), self._log_softmax(x))

    def kl_divergence_with_grad(self, x: Any, t: Any, out: Any = None) -> Call:
        def call() -> Any:
            log_p, log_q = self._log_softmax(x, out), self._log_softmax(t)
            loss = self._mean_log_ratio(log_q, log_p)
            grad = np.exp(log_p, out=log_p)
            grad -= np.exp(log_q)
            grad /= x.size // x.shape[CLASS_AXIS]
            return loss, grad

        return call

    def js_divergence(self, x: Any, t: Any) -> Call:
        return lambda: self._mixed(x, t)[0]

    def js_divergence_with_grad(self, x: Any, t: Any) -> Call:
        def call() -> Any:
            loss, log_p, log_m = self._mixed(x, t)
            p = np.exp(log_p)
            log_p -= log_m
            log_p -= (p * log_p).sum(CLASS_AXIS, keepdims=True)
            p *= log_p
            p /= 2 * (x.size // x.shape[CLASS_AXIS])
            return loss, p

        return call

    def _filtered(self, x: Any, top_p: float, top_k: int | None = None) -> Any:
        ordered = -np.sort(-x, CLASS_AXIS)[:, :top_k]
        probs = self._softmax(ordered)
        kept = (np.cumsum(probs, CLASS_AXIS) - probs < top_p).sum(CLASS_AXIS, keepdims=True)
        least = np.take_along_axis(ordered, kept - 1, CLASS_AXIS)
        return np.where(x < least, -np.inf, x)

    def categorical(self, x: Any, filters: Any = None) -> Call:
        rng = np.random.default_rng(0)

        def call() -> Any:
            sums = np.cumsum(self._softmax(self._filtered(x, **filters) if filters else x), CLASS_AXIS)
            whole = np.take(sums, [-1], CLASS_AXIS)
            return np.argmax(sums > rng.random(whole.shape, x.dtype) * whole, CLASS_AXIS)

        return call


class SciPy(Library):
    """`scipy.special`."""

    name = "SciPy"
    modules = ("scipy",)
    has_threads = False

    def _function(self, name: str, x: Any) -> Call:
        return partial(getattr(import_module("scipy.special"), name), x, axis=CLASS_AXIS)

    def softmax(self, x: Any) -> Call:
        return self._function("softmax", x)

    def log_softmax(self, x: Any) -> Call:
        return self._function("log_softmax", x)

    def logsumexp(self, x: Any) -> Call:
        return self._function("logsumexp", x)

    def kl_divergence(self, x: Any, t: Any) -> Call:
        special = import_module("scipy.special")
        softmax = partial(special.softmax, axis=CLASS_AXIS)
        return lambda: special.rel_entr(softmax(t), softmax(x)).sum(CLASS_AXIS).mean()

    def js_divergence(self, x: Any, t: Any) -> Call:
        special = import_module("scipy.special")
        softmax, rel_entr = partial(special.softmax, axis=CLASS_AXIS), special.rel_entr

        def call() -> Any:
            p, q = softmax(x), softmax(t)
            m = (p + q) / 2
            return (rel_entr(q, m).sum(CLASS_AXIS).mean() + rel_entr(p, m).sum(CLASS_AXIS).mean()) / 2

        return call

    def binary_cross_entropy(self, x: Any, t: Any) -> Call:
        log_expit = import_module("scipy.special").log_expit

        def call() -> Any:
            log_p = log_expit(x)
            return (x - t * x - log_p).mean()

        return call

    def binary_cross_entropy_with_grad(self, x: Any, t: Any) -> Call:
        special = import_module("scipy.special")

        def call() -> Any:
            log_p, p = special.log_expit(x), special.expit(x)
            p -= t
            p /= x.size
            return (x - t * x - log_p).mean(), p

        return call


class ScikitLearn(Library):
    """The softmax and the loss that its classifiers use; both for matrices. The loss has no public name."""

    name = "scikit-learn"
    modules = ("sklearn",)
    matrices_only = True

    def softmax(self, x: Any) -> Call:
        return partial(import_module("sklearn.utils.extmath").softmax, x)

    def _loss(self, x: Any, labels: Any) -> tuple[Any, dict[str, Any]]:
        loss = import_module("sklearn._loss.loss").HalfMultinomialLoss(n_classes=x.shape[1])
        return loss, {"y_true": labels.astype(x.dtype), "raw_prediction": x, "n_threads": max_threads()}

    def cross_entropy(self, x: Any, labels: Any) -> Call:
        loss, arguments = self._loss(x, labels)
        return lambda: loss.loss(**arguments).mean()

    def cross_entropy_with_grad(self, x: Any, labels: Any, out: Any = None) -> Call:
        loss, arguments = self._loss(x, labels)
        if out is not None:
            arguments |= {"loss_out": np.empty(len(x), x.dtype), "gradient_out": out}

        def call() -> Any:
            losses, grad = loss.loss_gradient(**arguments)
            grad /= len(x)
            return losses.mean(), grad

        return call

    def _binary(self, x: Any, t: Any) -> tuple[Any, dict[str, Any]]:
        loss = import_module("sklearn._loss.loss").HalfBinomialLoss()
        return loss, {"y_true": t.reshape(-1), "raw_prediction": x.reshape(-1), "n_threads": max_threads()}

    def binary_cross_entropy(self, x: Any, t: Any) -> Call:
        loss, arguments = self._binary(x, t)
        return lambda: loss.loss(**arguments).mean()

    def binary_cross_entropy_with_grad(self, x: Any, t: Any, out: Any = None) -> Call:
        loss, arguments = self._binary(x, t)
        if out is not None:
            arguments |= {"loss_out": np.empty(x.size, x.dtype), "gradient_out": out.reshape(-1)}

        def call() -> Any:
            losses, grad = loss.loss_gradient(**arguments)
            grad /= x.size
            return losses.mean(), grad.reshape(x.shape)

        return call


class PyTorch(Library):
    """Tensors that share memory with our arrays; derivatives by autograd, Jacobians by their formula."""

    name = "PyTorch"
    modules = ("torch",)

    @property
    def torch(self) -> Any:
        return import_module("torch")

    def wrap(self, array: Any) -> Any:
        self.torch.set_num_threads(max_threads())
        return self.torch.from_numpy(array)

    def softmax(self, x: Any, out: Any = None) -> Call:
        return partial(self.torch.softmax, x, CLASS_AXIS, out=out)

    def log_softmax(self, x: Any, out: Any = None) -> Call:
        return partial(self.torch.log_softmax, x, CLASS_AXIS, out=out)

    def logsumexp(self, x: Any) -> Call:
        return partial(self.torch.logsumexp, x, CLASS_AXIS)

    def softmax_entropy(self, x: Any) -> Call:
        log_softmax = self.torch.log_softmax

        def call() -> Any:
            log_probs = log_softmax(x, CLASS_AXIS)
            return -(log_probs.exp() * log_probs).sum(CLASS_AXIS)

        return call

    def softmax_jvp(self, x: Any, v: Any) -> Call:
        jvp, softmax = self.torch.func.jvp, partial(self.torch.softmax, dim=CLASS_AXIS)
        return lambda: jvp(softmax, (x,), (v,))[1]

    def softmax_vjp(self, x: Any, g: Any) -> Call:
        torch = self.torch
        x.requires_grad_()
        return lambda: torch.autograd.grad(torch.softmax(x, CLASS_AXIS), x, g)[0]

    def product_of_probs(self, p: Any, v: Any, out: Any) -> Call:
        sub = self.torch.sub

        def call() -> Any:
            sub(v, (p * v).sum(CLASS_AXIS, keepdim=True), out=out)
            return out.mul_(p)

        return call

    def softmax_jacobian(self, x: Any, out: Any = None) -> Call:
        torch = self.torch

        def call() -> Any:
            p = torch.softmax(x, -1)
            result = torch.mul(-p[:, :, None], p[:, None, :], out=out)
            result.diagonal(dim1=1, dim2=2).add_(p)
            return result

        return call

    def _focal(self, x: Any, labels: Any) -> Any:
        losses = self.torch.nn.functional.cross_entropy(x, labels, reduction="none")
        return ((1 - (-losses).exp()) ** 2 * losses).mean()

    def focal_loss(self, x: Any, labels: Any) -> Call:
        return partial(self._focal, x, labels)

    def focal_loss_with_grad(self, x: Any, labels: Any) -> Call:
        return self._backward(x, partial(self._focal, x, labels))

    def binary_cross_entropy(self, x: Any, t: Any) -> Call:
        return partial(self.torch.nn.functional.binary_cross_entropy_with_logits, x, t)

    def binary_cross_entropy_with_grad(self, x: Any, t: Any) -> Call:
        return self._backward(x, self.binary_cross_entropy(x, t))

    def _binary_focal(self, x: Any, t: Any) -> Any:
        losses = self.torch.nn.functional.binary_cross_entropy_with_logits(x, t, reduction="none")
        p = self.torch.sigmoid(x)
        return ((p * (1 - t) + (1 - p) * t) ** 2 * losses).mean()

    def binary_focal_loss(self, x: Any, t: Any) -> Call:
        return partial(self._binary_focal, x, t)

    def binary_focal_loss_with_grad(self, x: Any, t: Any) -> Call:
        return self._backward(x, partial(self._binary_focal, x, t))

    def label_statistics(self, x: Any, labels: Any) -> Call:
        place, torch = labels.unsqueeze(CLASS_AXIS), self.torch

        def call() -> Any:
            log_probs = torch.log_softmax(x, CLASS_AXIS)
            log_prob = log_probs.gather(CLASS_AXIS, place).squeeze(CLASS_AXIS)
            rank = (x > x.gather(CLASS_AXIS, place)).sum(CLASS_AXIS)
            entropy = -(log_probs.exp() * log_probs).sum(CLASS_AXIS)
            return log_prob, rank, x.argmax(CLASS_AXIS), entropy, torch.logsumexp(x, CLASS_AXIS)

        return call

    def _backward(self, x: Any, loss_of: Call) -> Call:
        x.requires_grad_()

        def call() -> Any:
            x.grad = None
            loss = loss_of()
            loss.backward()
            return loss.detach(), x.grad

        return call

    def cross_entropy(self, x: Any, labels: Any) -> Call:
        return partial(self.torch.nn.functional.cross_entropy, x, labels)

    def cross_entropy_with_grad(self, x: Any, labels: Any) -> Call:
        return self._backward(x, self.cross_entropy(x, labels))

    def _kl(self, x: Any, t: Any) -> Any:
        log_softmax, rows = self.torch.log_softmax, x.numel() // x.shape[CLASS_AXIS]
        log_p, log_q = log_softmax(x, CLASS_AXIS), log_softmax(t, CLASS_AXIS)
        return self.torch.nn.functional.kl_div(log_p, log_q, reduction="sum", log_target=True) / rows

    def _js(self, x: Any, t: Any) -> Any:
        torch, rows = self.torch, x.numel() // x.shape[CLASS_AXIS]
        log_p, log_q = torch.log_softmax(x, CLASS_AXIS), torch.log_softmax(t, CLASS_AXIS)
        log_m = torch.logaddexp(log_p, log_q) - np.log(2)
        kl_div = partial(torch.nn.functional.kl_div, reduction="sum", log_target=True)
        return (kl_div(log_m, log_q) + kl_div(log_m, log_p)) / (2 * rows)

    def kl_divergence(self, x: Any, t: Any) -> Call:
        return partial(self._kl, x, t)

    def kl_divergence_with_grad(self, x: Any, t: Any) -> Call:
        return self._backward(x, partial(self._kl, x, t))

    def js_divergence(self, x: Any, t: Any) -> Call:
        return partial(self._js, x, t)

    def js_divergence_with_grad(self, x: Any, t: Any) -> Call:
        return self._backward(x, partial(self._js, x, t))

    def categorical(self, x: Any, filters: Any = None) -> Call:
        torch = self.torch
        if x.ndim != 2:
            raise NotOfferedError

        def draw(logits: Any) -> Any:
            return torch.multinomial(torch.softmax(logits, -1), 1)

        def filtered() -> Any:
            top_k = filters.get("top_k", x.shape[1])
            ordered, classes = (
                torch.topk(x, min(top_k, x.shape[1])) if "top_k" in filters else x.sort(descending=True)
            )
            probs = torch.softmax(ordered, -1)
            left_out = probs.cumsum(-1) - probs >= filters["top_p"]
            return classes.gather(-1, draw(ordered.masked_fill(left_out, -torch.inf)))[:, 0]

        return filtered if filters else lambda: draw(x)[:, 0]


class _Traced(Library):
    """Compiled with `jax.jit`; arrays are on its device, and a call waits for its result. It has no ``out=``."""

    @property
    def jax(self) -> Any:
        return import_module("jax")

    def wrap(self, array: Any) -> Any:
        self.jax.config.update("jax_enable_x64", True)
        return self.jax.device_put(array)

    def _jit(self, function: Call, *arguments: Any) -> Call:
        wait, compiled = self.jax.block_until_ready, self.jax.jit(function)
        return lambda: wait(compiled(*arguments))

    def _derived(self, loss: Call, *arguments: Any) -> Call:
        """A loss with its gradient."""
        return self._jit(self.jax.value_and_grad(loss), *arguments)


class Jax(_Traced):
    """What JAX has, and formulas in its functions."""

    name = "JAX"
    modules = ("jax",)

    def softmax(self, x: Any) -> Call:
        return self._jit(partial(self.jax.nn.softmax, axis=CLASS_AXIS), x)

    def log_softmax(self, x: Any) -> Call:
        return self._jit(partial(self.jax.nn.log_softmax, axis=CLASS_AXIS), x)

    def logsumexp(self, x: Any) -> Call:
        return self._jit(partial(self.jax.nn.logsumexp, axis=CLASS_AXIS), x)

    def softmax_entropy(self, x: Any) -> Call:
        def entropy(x: Any) -> Any:
            log_probs = self.jax.nn.log_softmax(x, CLASS_AXIS)
            return -(self.jax.numpy.exp(log_probs) * log_probs).sum(CLASS_AXIS)

        return self._jit(entropy, x)

    def softmax_jvp(self, x: Any, v: Any) -> Call:
        softmax = partial(self.jax.nn.softmax, axis=CLASS_AXIS)
        return self._jit(lambda x, v: self.jax.jvp(softmax, (x,), (v,))[1], x, v)

    def softmax_vjp(self, x: Any, g: Any) -> Call:
        softmax = partial(self.jax.nn.softmax, axis=CLASS_AXIS)
        return self._jit(lambda x, g: self.jax.vjp(softmax, x)[1](g)[0], x, g)

    def softmax_jacobian(self, x: Any) -> Call:
        def jacobian(x: Any) -> Any:
            p = self.jax.nn.softmax(x)
            return p[:, :, None] * (self.jax.numpy.eye(x.shape[1], dtype=x.dtype) - p[:, None, :])

        return self._jit(jacobian, x)

    def _loss(self, x: Any, labels: Any) -> Any:
        place = self.jax.numpy.expand_dims(labels, CLASS_AXIS)
        chosen = self.jax.numpy.take_along_axis(x, place, CLASS_AXIS).squeeze(CLASS_AXIS)
        return (self.jax.nn.logsumexp(x, CLASS_AXIS) - chosen).mean()

    def cross_entropy(self, x: Any, labels: Any) -> Call:
        return self._jit(self._loss, x, labels)

    def cross_entropy_with_grad(self, x: Any, labels: Any) -> Call:
        return self._derived(self._loss, x, labels)

    def _focal(self, x: Any, labels: Any) -> Any:
        place = self.jax.numpy.expand_dims(labels, CLASS_AXIS)
        chosen = self.jax.numpy.take_along_axis(self.jax.nn.log_softmax(x, CLASS_AXIS), place, CLASS_AXIS)
        return -((1 - self.jax.numpy.exp(chosen)) ** 2 * chosen).mean()

    def focal_loss(self, x: Any, labels: Any) -> Call:
        return self._jit(self._focal, x, labels)

    def focal_loss_with_grad(self, x: Any, labels: Any) -> Call:
        return self._derived(self._focal, x, labels)

    def label_statistics(self, x: Any, labels: Any) -> Call:
        def statistics(x: Any, labels: Any) -> Any:
            log_probs, place = (
                self.jax.nn.log_softmax(x, CLASS_AXIS),
                self.jax.numpy.expand_dims(labels, CLASS_AXIS),
            )
            log_prob = self.jax.numpy.take_along_axis(log_probs, place, CLASS_AXIS)
            rank = (x > self.jax.numpy.take_along_axis(x, place, CLASS_AXIS)).sum(CLASS_AXIS)
            entropy = -(self.jax.numpy.exp(log_probs) * log_probs).sum(CLASS_AXIS)
            lse = self.jax.nn.logsumexp(x, CLASS_AXIS)
            return log_prob.squeeze(CLASS_AXIS), rank, x.argmax(CLASS_AXIS), entropy, lse

        return self._jit(statistics, x, labels)

    def _mean_log_ratio(self, log_a: Any, log_b: Any) -> Any:
        return (self.jax.numpy.exp(log_a) * (log_a - log_b)).sum(CLASS_AXIS).mean()

    def _kl(self, x: Any, t: Any) -> Any:
        return self._mean_log_ratio(self.jax.nn.log_softmax(t, CLASS_AXIS), self.jax.nn.log_softmax(x, CLASS_AXIS))

    def _js(self, x: Any, t: Any) -> Any:
        log_p, log_q = self.jax.nn.log_softmax(x, CLASS_AXIS), self.jax.nn.log_softmax(t, CLASS_AXIS)
        log_m = self.jax.numpy.logaddexp(log_p, log_q) - np.log(2)
        return (self._mean_log_ratio(log_q, log_m) + self._mean_log_ratio(log_p, log_m)) / 2

    def kl_divergence(self, x: Any, t: Any) -> Call:
        return self._jit(self._kl, x, t)

    def kl_divergence_with_grad(self, x: Any, t: Any) -> Call:
        return self._derived(self._kl, x, t)

    def js_divergence(self, x: Any, t: Any) -> Call:
        return self._jit(self._js, x, t)

    def js_divergence_with_grad(self, x: Any, t: Any) -> Call:
        return self._derived(self._js, x, t)

    def categorical(self, x: Any) -> Call:
        key, draw = self.jax.random.key(0), partial(self.jax.random.categorical, axis=CLASS_AXIS)
        return self._jit(lambda key, x: draw(key, x), key, x)


class Optax(_Traced):
    """The mean of the losses that it returns for each row or entry."""

    name = "Optax"
    modules = ("jax", "optax")

    @property
    def losses(self) -> Any:
        return import_module("optax").losses

    def _loss(self, x: Any, labels: Any) -> Any:
        return self.losses.softmax_cross_entropy_with_integer_labels(x, labels, axis=CLASS_AXIS).mean()

    def cross_entropy(self, x: Any, labels: Any) -> Call:
        return self._jit(self._loss, x, labels)

    def cross_entropy_with_grad(self, x: Any, labels: Any) -> Call:
        return self._derived(self._loss, x, labels)

    def _binary(self, x: Any, t: Any) -> Any:
        return self.losses.sigmoid_binary_cross_entropy(x, t).mean()

    def binary_cross_entropy(self, x: Any, t: Any) -> Call:
        return self._jit(self._binary, x, t)

    def binary_cross_entropy_with_grad(self, x: Any, t: Any) -> Call:
        return self._derived(self._binary, x, t)

    def _binary_focal(self, x: Any, t: Any) -> Any:
        return self.losses.sigmoid_focal_loss(x, t, gamma=2.0).mean()

    def binary_focal_loss(self, x: Any, t: Any) -> Call:
        return self._jit(self._binary_focal, x, t)

    def binary_focal_loss_with_grad(self, x: Any, t: Any) -> Call:
        return self._derived(self._binary_focal, x, t)

    def _kl(self, x: Any, t: Any) -> Any:
        log_p, log_q = self.jax.nn.log_softmax(x, CLASS_AXIS), self.jax.nn.log_softmax(t, CLASS_AXIS)
        return self.losses.kl_divergence_with_log_targets(log_p, log_q, axis=CLASS_AXIS).mean()

    def kl_divergence(self, x: Any, t: Any) -> Call:
        return self._jit(self._kl, x, t)

    def kl_divergence_with_grad(self, x: Any, t: Any) -> Call:
        return self._derived(self._kl, x, t)


@cache
def _loops() -> dict[str, Any]:
    """Plain loops over matrices, in parallel, with the mathematical functions of libm."""
    import math

    import numba

    jit: Callable[[Call], Call] = numba.njit(parallel=True, fastmath=True)
    prange = numba.prange

    @jit
    def softmax(x: Any, out: Any) -> None:
        for i in prange(x.shape[0]):
            row_max = x[i, 0]
            for j in range(x.shape[1]):
                row_max = max(row_max, x[i, j])
            total = x.dtype.type(0)
            for j in range(x.shape[1]):
                out[i, j] = math.exp(x[i, j] - row_max)
                total += out[i, j]
            for j in range(x.shape[1]):
                out[i, j] /= total

    @jit
    def log_softmax(x: Any, out: Any) -> None:
        for i in prange(x.shape[0]):
            row_max = x[i, 0]
            for j in range(x.shape[1]):
                row_max = max(row_max, x[i, j])
            total = x.dtype.type(0)
            for j in range(x.shape[1]):
                total += math.exp(x[i, j] - row_max)
            lse = row_max + math.log(total)
            for j in range(x.shape[1]):
                out[i, j] = x[i, j] - lse

    @jit
    def logsumexp(x: Any, rows: Any) -> None:
        for i in prange(x.shape[0]):
            row_max = x[i, 0]
            for j in range(x.shape[1]):
                row_max = max(row_max, x[i, j])
            total = x.dtype.type(0)
            for j in range(x.shape[1]):
                total += math.exp(x[i, j] - row_max)
            rows[i] = row_max + math.log(total)

    @jit
    def softmax_product(x: Any, v: Any, out: Any) -> None:
        for i in prange(x.shape[0]):
            row_max = x[i, 0]
            for j in range(x.shape[1]):
                row_max = max(row_max, x[i, j])
            total = x.dtype.type(0)
            dot = x.dtype.type(0)
            for j in range(x.shape[1]):
                out[i, j] = math.exp(x[i, j] - row_max)
                total += out[i, j]
                dot += out[i, j] * v[i, j]
            for j in range(x.shape[1]):
                out[i, j] = out[i, j] / total * (v[i, j] - dot / total)

    @jit
    def product_of_probs(p: Any, v: Any, out: Any) -> None:
        for i in prange(p.shape[0]):
            dot = p.dtype.type(0)
            for j in range(p.shape[1]):
                dot += p[i, j] * v[i, j]
            for j in range(p.shape[1]):
                out[i, j] = p[i, j] * (v[i, j] - dot)

    @jit
    def softmax_jacobian(x: Any, out: Any) -> None:
        for i in prange(x.shape[0]):
            row_max = x[i, 0]
            for j in range(x.shape[1]):
                row_max = max(row_max, x[i, j])
            p = np.empty_like(x[i])
            for j in range(x.shape[1]):
                p[j] = math.exp(x[i, j] - row_max)
            p /= p.sum()
            for j in range(x.shape[1]):
                for k in range(x.shape[1]):
                    out[i, j, k] = -p[j] * p[k]
                out[i, j, j] += p[j]

    @jit
    def cross_entropy(x: Any, labels: Any) -> Any:
        loss = 0.0
        for i in prange(x.shape[0]):
            row_max = x[i, 0]
            for j in range(x.shape[1]):
                row_max = max(row_max, x[i, j])
            total = x.dtype.type(0)
            for j in range(x.shape[1]):
                total += math.exp(x[i, j] - row_max)
            loss += row_max + math.log(total) - x[i, labels[i]]
        return loss / x.shape[0]

    @jit
    def cross_entropy_with_grad(x: Any, labels: Any, out: Any) -> Any:
        loss = 0.0
        for i in prange(x.shape[0]):
            row_max = x[i, 0]
            for j in range(x.shape[1]):
                row_max = max(row_max, x[i, j])
            total = x.dtype.type(0)
            for j in range(x.shape[1]):
                out[i, j] = math.exp(x[i, j] - row_max)
                total += out[i, j]
            loss += row_max + math.log(total) - x[i, labels[i]]
            for j in range(x.shape[1]):
                out[i, j] /= total * x.shape[0]
            out[i, labels[i]] -= 1 / x.dtype.type(x.shape[0])
        return loss / x.shape[0]

    @jit
    def categorical(x: Any, uniforms: Any, classes: Any) -> None:
        for i in prange(x.shape[0]):
            row_max = x[i, 0]
            for j in range(x.shape[1]):
                row_max = max(row_max, x[i, j])
            terms = np.empty_like(x[i])
            total = 0.0
            for j in range(x.shape[1]):
                terms[j] = math.exp(x[i, j] - row_max)
                total += terms[j]
            rest, chosen = uniforms[i] * total, 0
            while chosen < x.shape[1] - 1 and rest >= terms[chosen]:
                rest -= terms[chosen]
                chosen += 1
            classes[i] = chosen

    return {
        "softmax": softmax,
        "log_softmax": log_softmax,
        "logsumexp": logsumexp,
        "softmax_product": softmax_product,
        "product_of_probs": product_of_probs,
        "softmax_jacobian": softmax_jacobian,
        "cross_entropy": cross_entropy,
        "cross_entropy_with_grad": cross_entropy_with_grad,
        "categorical": categorical,
    }


class PlainNumba(Library):
    """Plain loops, for matrices."""

    name = "Numba loop"
    modules = ("numba",)
    matrices_only = True

    def _loop(self, name: str) -> Call:
        numba = import_module("numba")
        numba.set_num_threads(min(max_threads(), numba.config.NUMBA_NUM_THREADS))
        loop: Call = _loops()[name]
        return loop

    def _fill(self, name: str, *sources: Any, out: Any = None, shape: Any = None) -> Call:
        """The call of a loop that fills `out`, or else a new array of the shape of the first source."""
        loop, x = self._loop(name), sources[0]
        shape = x.shape if shape is None else shape

        def call() -> Any:
            result = np.empty(shape, x.dtype) if out is None else out
            loss = loop(*sources, result)
            return result if loss is None else (loss, result)

        return call

    def softmax(self, x: Any, out: Any = None) -> Call:
        return self._fill("softmax", x, out=out)

    def log_softmax(self, x: Any, out: Any = None) -> Call:
        return self._fill("log_softmax", x, out=out)

    def logsumexp(self, x: Any) -> Call:
        return self._fill("logsumexp", x, out=np.empty(len(x), x.dtype))

    def softmax_jvp(self, x: Any, v: Any) -> Call:
        return self._fill("softmax_product", x, v)

    softmax_vjp = softmax_jvp

    def product_of_probs(self, p: Any, v: Any, out: Any) -> Call:
        return self._fill("product_of_probs", p, v, out=out)

    def softmax_jacobian(self, x: Any, out: Any = None) -> Call:
        return self._fill("softmax_jacobian", x, out=out, shape=(*x.shape, x.shape[1]))

    def cross_entropy(self, x: Any, labels: Any) -> Call:
        return partial(self._loop("cross_entropy"), x, labels)

    def cross_entropy_with_grad(self, x: Any, labels: Any, out: Any = None) -> Call:
        return self._fill("cross_entropy_with_grad", x, labels, out=out)

    def categorical(self, x: Any) -> Call:
        loop, rng = self._loop("categorical"), np.random.default_rng(0)

        def call() -> Any:
            classes = np.empty(len(x), np.int64)
            loop(x, rng.random(len(x)), classes)
            return classes

        return call


OURS = FastSoftmax.name
ALL: dict[str, Library] = {
    library.name: library
    for library in (FastSoftmax(), NumPy(), SciPy(), ScikitLearn(), PyTorch(), Jax(), Optax(), PlainNumba())
}
"""All libraries, ours first, in the order of the tables."""
PEERS = tuple(name for name in ALL if name != OURS)
