"""The libraries that are compared, with the calls that their users would write.

A library is a class whose methods are named after the functions of `CASES` (with ``_out`` for results into an
array that is given). A method is a setup: it takes `Inputs`, does what a user would do once (wrap arrays,
compile), and returns the call that is timed. A method that a library does not have, or one that raises
`NotOfferedError`, leaves its cell in the tables empty.

Every library gets as many threads as ours. Results into ``out=`` and results in fresh memory are separate cases,
because fresh memory costs more than the computation: the system has to fill its pages with zeros.
"""

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

import fastsoftmax as fs
from fastsoftmax import _spec
from fastsoftmax.tools.bench.inputs import CLASS_AXIS, Inputs, threads

Call = Callable[..., Any]
Setup = Callable[[Inputs], Call]


class NotOfferedError(Exception):
    """The library has no such function for arrays of this shape."""


class Library:
    """One library: its name in the tables, and the modules it needs."""

    name: str
    modules: tuple[str, ...] = ()

    def installed(self) -> bool:
        """Whether its modules can be imported."""
        return all(find_spec(module) is not None for module in self.modules)

    def setup(self, function: str) -> Setup | None:
        """The setup of a function by its name in `cases`, None if the library has none."""
        method: Setup | None = getattr(self, method_name(function), None)
        return method


def method_name(function: str) -> str:
    """``softmax_jvp of probs, out=`` is the method ``softmax_jvp_of_probs_out``."""
    return function.replace(", ", "_").replace(" ", "_").rstrip("=")


def matrix(inputs: Inputs) -> None:
    """For libraries that know matrices only."""
    if len(inputs.shape) != 2:
        raise NotOfferedError


CASES = {
    f"{entry.name}{', ' if variant.startswith('out') else ' ' if variant else ''}{variant}": (entry, variant)
    for entry in _spec.FUNCTIONS.values()
    for variant in entry.bench
}
"""What is timed, with its entry in the table of functions and the variant: ``softmax, out=``."""

_ARRAYS = {
    _spec.LOGITS: "logits",
    _spec.TANGENT: "tangent",
    _spec.COTANGENT: "tangent",
    _spec.TARGETS: "labels",
    _spec.LABELS: "labels",
    _spec.DISTRIBUTIONS: "tangent",
}
"""The attribute of `Inputs` that serves as an operand."""


def _axis(inputs: Inputs) -> dict[str, Any]:
    """The last axis is our default, and naming it is not what a user would do."""
    return {} if len(inputs.shape) == 2 else {"axis": CLASS_AXIS}


class FastSoftmax(Library):
    """Ours: every function of the table, called with what its operands are."""

    name = "fastsoftmax"

    def setup(self, function: str) -> Setup:
        """The call of a public function, or of a variant of it that `_spec.Function.bench` names."""
        return partial(self._call, *CASES[function])

    def _call(self, entry: _spec.Function, variant: str, inputs: Inputs) -> Call:
        options = _axis(inputs)
        operands = [getattr(inputs, _ARRAYS[role]) for role in entry.operands]
        if variant.startswith("of probs"):
            operands[0], options["from_probs"] = inputs.probs, True
        if variant.endswith("out="):
            options["out"] = inputs.jacobian if entry.result == (_spec.SQUARE,) else inputs.out
        return partial(getattr(fs, entry.name), *operands, **options)


class NumPy(Library):
    """The formulas, with few temporary arrays."""

    name = "NumPy"

    def _softmax(self, x: Any, out: Any = None) -> Any:
        y = np.subtract(x, x.max(CLASS_AXIS, keepdims=True), out=out)
        np.exp(y, out=y)
        y /= y.sum(CLASS_AXIS, keepdims=True)
        return y

    def _log_softmax(self, x: Any, out: Any = None) -> Any:
        y = np.subtract(x, x.max(CLASS_AXIS, keepdims=True), out=out)
        y -= np.log(np.exp(y).sum(CLASS_AXIS, keepdims=True))
        return y

    def _product(self, p: Any, v: Any, out: Any = None) -> Any:
        y = np.subtract(v, np.sum(p * v, CLASS_AXIS, keepdims=True), out=out)
        y *= p
        return y

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

    def softmax(self, inputs: Inputs) -> Call:
        return partial(self._softmax, inputs.logits)

    def softmax_out(self, inputs: Inputs) -> Call:
        return partial(self._softmax, inputs.logits, inputs.out)

    def log_softmax(self, inputs: Inputs) -> Call:
        return partial(self._log_softmax, inputs.logits)

    def log_softmax_out(self, inputs: Inputs) -> Call:
        return partial(self._log_softmax, inputs.logits, inputs.out)

    def logsumexp(self, inputs: Inputs) -> Call:
        def call() -> Any:
            m = inputs.logits.max(CLASS_AXIS, keepdims=True)
            total = np.exp(inputs.logits - m).sum(CLASS_AXIS)
            return np.log(total) + m.reshape(total.shape)

        return call

    def softmax_entropy(self, inputs: Inputs) -> Call:
        def call() -> Any:
            log_probs = self._log_softmax(inputs.logits)
            return -(np.exp(log_probs) * log_probs).sum(CLASS_AXIS)

        return call

    def softmax_jvp(self, inputs: Inputs) -> Call:
        return lambda: self._product(self._softmax(inputs.logits), inputs.tangent)

    softmax_vjp = softmax_jvp

    def softmax_jvp_of_probs_out(self, inputs: Inputs) -> Call:
        return partial(self._product, inputs.probs, inputs.tangent, inputs.out)

    def _jacobian(self, x: Any, out: Any = None) -> Any:
        p = self._softmax(x)
        result = np.multiply(-p[:, :, None], p[:, None, :], out=out)
        diagonal = np.einsum("nii->ni", result)
        diagonal += p
        return result

    def softmax_jacobian(self, inputs: Inputs) -> Call:
        return partial(self._jacobian, inputs.logits)

    def softmax_jacobian_out(self, inputs: Inputs) -> Call:
        return partial(self._jacobian, inputs.logits, inputs.jacobian)

    def cross_entropy(self, inputs: Inputs) -> Call:
        return lambda: self._loss(self._log_softmax(inputs.logits), inputs.labels)

    def cross_entropy_with_grad(self, inputs: Inputs) -> Call:
        return partial(self._with_grad, inputs.logits, inputs.labels)

    def cross_entropy_with_grad_out(self, inputs: Inputs) -> Call:
        return partial(self._with_grad, inputs.logits, inputs.labels, inputs.out)


class SciPy(Library):
    """`scipy.special`."""

    name = "SciPy"
    modules = ("scipy",)

    def _function(self, name: str, inputs: Inputs) -> Call:
        import scipy.special

        return partial(getattr(scipy.special, name), inputs.logits, axis=CLASS_AXIS)

    def softmax(self, inputs: Inputs) -> Call:
        return self._function("softmax", inputs)

    def log_softmax(self, inputs: Inputs) -> Call:
        return self._function("log_softmax", inputs)

    def logsumexp(self, inputs: Inputs) -> Call:
        return self._function("logsumexp", inputs)


class ScikitLearn(Library):
    """The softmax and the loss that its classifiers use; both for matrices. The loss has no public name."""

    name = "scikit-learn"
    modules = ("sklearn",)

    def softmax(self, inputs: Inputs) -> Call:
        from sklearn.utils.extmath import softmax

        matrix(inputs)
        return partial(softmax, inputs.logits)

    def _loss(self, inputs: Inputs) -> tuple[Any, dict[str, Any]]:
        from sklearn._loss.loss import HalfMultinomialLoss

        matrix(inputs)
        labels = inputs.labels.astype(inputs.dtype)
        arguments = {"y_true": labels, "raw_prediction": inputs.logits, "n_threads": threads()}
        return HalfMultinomialLoss(n_classes=inputs.classes), arguments

    def cross_entropy(self, inputs: Inputs) -> Call:
        loss, arguments = self._loss(inputs)
        return lambda: loss.loss(**arguments).mean()

    def cross_entropy_with_grad(self, inputs: Inputs) -> Call:
        loss, arguments = self._loss(inputs)

        def call() -> Any:
            losses, grad = loss.loss_gradient(**arguments)
            grad /= inputs.rows
            return losses.mean(), grad

        return call

    def cross_entropy_with_grad_out(self, inputs: Inputs) -> Call:
        loss, arguments = self._loss(inputs)
        arguments["loss_out"] = np.empty(inputs.rows, inputs.dtype)
        arguments["gradient_out"] = inputs.out

        def call() -> Any:
            losses, grad = loss.loss_gradient(**arguments)
            grad /= inputs.rows
            return losses.mean(), grad

        return call


class PyTorch(Library):
    """Tensors that share memory with our arrays; derivatives by autograd, Jacobians by their formula."""

    name = "PyTorch"
    modules = ("torch",)

    def _torch(self, inputs: Inputs, *names: str) -> tuple[Any, ...]:
        import torch

        torch.set_num_threads(threads())
        return torch, *(torch.from_numpy(getattr(inputs, name)) for name in names)

    def softmax(self, inputs: Inputs) -> Call:
        torch, x = self._torch(inputs, "logits")
        return partial(torch.softmax, x, CLASS_AXIS)

    def softmax_out(self, inputs: Inputs) -> Call:
        torch, x, out = self._torch(inputs, "logits", "out")
        return partial(torch.softmax, x, CLASS_AXIS, out=out)

    def log_softmax(self, inputs: Inputs) -> Call:
        torch, x = self._torch(inputs, "logits")
        return partial(torch.log_softmax, x, CLASS_AXIS)

    def log_softmax_out(self, inputs: Inputs) -> Call:
        torch, x, out = self._torch(inputs, "logits", "out")
        return partial(torch.log_softmax, x, CLASS_AXIS, out=out)

    def logsumexp(self, inputs: Inputs) -> Call:
        torch, x = self._torch(inputs, "logits")
        return partial(torch.logsumexp, x, CLASS_AXIS)

    def softmax_entropy(self, inputs: Inputs) -> Call:
        torch, x = self._torch(inputs, "logits")

        def call() -> Any:
            log_probs = torch.log_softmax(x, CLASS_AXIS)
            return -(log_probs.exp() * log_probs).sum(CLASS_AXIS)

        return call

    def softmax_jvp(self, inputs: Inputs) -> Call:
        torch, x, v = self._torch(inputs, "logits", "tangent")
        softmax = partial(torch.softmax, dim=CLASS_AXIS)
        return lambda: torch.func.jvp(softmax, (x,), (v,))[1]

    def softmax_vjp(self, inputs: Inputs) -> Call:
        torch, x, g = self._torch(inputs, "logits", "tangent")
        x.requires_grad_()
        return lambda: torch.autograd.grad(torch.softmax(x, CLASS_AXIS), x, g)[0]

    def softmax_jvp_of_probs_out(self, inputs: Inputs) -> Call:
        torch, p, v, out = self._torch(inputs, "probs", "tangent", "out")

        def call() -> Any:
            torch.sub(v, (p * v).sum(CLASS_AXIS, keepdim=True), out=out)
            return out.mul_(p)

        return call

    def softmax_jacobian(self, inputs: Inputs) -> Call:
        torch, x = self._torch(inputs, "logits")

        def call() -> Any:
            p = torch.softmax(x, -1)
            result = -p[:, :, None] * p[:, None, :]
            result.diagonal(dim1=1, dim2=2).add_(p)
            return result

        return call

    def softmax_jacobian_out(self, inputs: Inputs) -> Call:
        torch, x, out = self._torch(inputs, "logits", "jacobian")

        def call() -> Any:
            p = torch.softmax(x, -1)
            torch.mul(-p[:, :, None], p[:, None, :], out=out)
            out.diagonal(dim1=1, dim2=2).add_(p)
            return out

        return call

    def cross_entropy(self, inputs: Inputs) -> Call:
        torch, x, y = self._torch(inputs, "logits", "labels")
        return partial(torch.nn.functional.cross_entropy, x, y)

    def cross_entropy_with_grad(self, inputs: Inputs) -> Call:
        torch, x, y = self._torch(inputs, "logits", "labels")
        x.requires_grad_()

        def call() -> Any:
            x.grad = None
            loss = torch.nn.functional.cross_entropy(x, y)
            loss.backward()
            return loss.detach(), x.grad

        return call


class Jax(Library):
    """Compiled with `jax.jit`; arrays are on its device, and a call waits for its result. It has no ``out=``."""

    name = "JAX"
    modules = ("jax",)

    def _jit(self, inputs: Inputs, build: Callable[[ModuleType], Callable[..., Any]], *names: str) -> Call:
        import jax

        jax.config.update("jax_enable_x64", True)
        arguments = [jax.device_put(getattr(inputs, name)) for name in names]
        function = jax.jit(build(jax))
        return lambda: jax.block_until_ready(function(*arguments))

    def softmax(self, inputs: Inputs) -> Call:
        return self._jit(inputs, lambda jax: partial(jax.nn.softmax, axis=CLASS_AXIS), "logits")

    def log_softmax(self, inputs: Inputs) -> Call:
        return self._jit(inputs, lambda jax: partial(jax.nn.log_softmax, axis=CLASS_AXIS), "logits")

    def logsumexp(self, inputs: Inputs) -> Call:
        return self._jit(inputs, lambda jax: partial(jax.nn.logsumexp, axis=CLASS_AXIS), "logits")

    def softmax_entropy(self, inputs: Inputs) -> Call:
        def build(jax: Any) -> Callable[..., Any]:
            def entropy(x: Any) -> Any:
                log_probs = jax.nn.log_softmax(x, CLASS_AXIS)
                return -(jax.numpy.exp(log_probs) * log_probs).sum(CLASS_AXIS)

            return entropy

        return self._jit(inputs, build, "logits")

    def softmax_jvp(self, inputs: Inputs) -> Call:
        def build(jax: Any) -> Callable[..., Any]:
            softmax = partial(jax.nn.softmax, axis=CLASS_AXIS)
            return lambda x, v: jax.jvp(softmax, (x,), (v,))[1]

        return self._jit(inputs, build, "logits", "tangent")

    def softmax_vjp(self, inputs: Inputs) -> Call:
        def build(jax: Any) -> Callable[..., Any]:
            softmax = partial(jax.nn.softmax, axis=CLASS_AXIS)
            return lambda x, g: jax.vjp(softmax, x)[1](g)[0]

        return self._jit(inputs, build, "logits", "tangent")

    def softmax_jacobian(self, inputs: Inputs) -> Call:
        def build(jax: Any) -> Callable[..., Any]:
            def jacobian(x: Any) -> Any:
                p = jax.nn.softmax(x)
                return p[:, :, None] * (jax.numpy.eye(x.shape[1], dtype=x.dtype) - p[:, None, :])

            return jacobian

        return self._jit(inputs, build, "logits")

    @staticmethod
    def _loss(jax: Any) -> Callable[..., Any]:
        def loss(x: Any, y: Any) -> Any:
            place = jax.numpy.expand_dims(y, CLASS_AXIS)
            chosen = jax.numpy.take_along_axis(x, place, CLASS_AXIS).squeeze(CLASS_AXIS)
            return (jax.nn.logsumexp(x, CLASS_AXIS) - chosen).mean()

        return loss

    def cross_entropy(self, inputs: Inputs) -> Call:
        return self._jit(inputs, self._loss, "logits", "labels")

    def cross_entropy_with_grad(self, inputs: Inputs) -> Call:
        return self._jit(inputs, lambda jax: jax.value_and_grad(self._loss(jax)), "logits", "labels")


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

    return {
        "softmax": softmax,
        "log_softmax": log_softmax,
        "logsumexp": logsumexp,
        "softmax_product": softmax_product,
        "product_of_probs": product_of_probs,
        "softmax_jacobian": softmax_jacobian,
        "cross_entropy": cross_entropy,
        "cross_entropy_with_grad": cross_entropy_with_grad,
    }


class PlainNumba(Library):
    """Plain loops, for matrices."""

    name = "Numba loop"
    modules = ("numba",)

    def _loop(self, name: str, inputs: Inputs) -> Any:
        import numba

        matrix(inputs)
        numba.set_num_threads(min(threads(), numba.config.NUMBA_NUM_THREADS))
        return _loops()[name]

    def _fill(self, name: str, inputs: Inputs, *sources: Any, result: Any = None) -> Call:
        """A call of a loop that fills an array: `result`, or without one, a fresh one like the logits."""
        loop = self._loop(name, inputs)

        def call() -> Any:
            out = np.empty_like(inputs.logits) if result is None else result
            loop(*sources, out)
            return out

        return call

    def softmax(self, inputs: Inputs) -> Call:
        return self._fill("softmax", inputs, inputs.logits)

    def softmax_out(self, inputs: Inputs) -> Call:
        return self._fill("softmax", inputs, inputs.logits, result=inputs.out)

    def log_softmax(self, inputs: Inputs) -> Call:
        return self._fill("log_softmax", inputs, inputs.logits)

    def log_softmax_out(self, inputs: Inputs) -> Call:
        return self._fill("log_softmax", inputs, inputs.logits, result=inputs.out)

    def logsumexp(self, inputs: Inputs) -> Call:
        return self._fill("logsumexp", inputs, inputs.logits, result=np.empty(inputs.rows, inputs.dtype))

    def softmax_jvp(self, inputs: Inputs) -> Call:
        return self._fill("softmax_product", inputs, inputs.logits, inputs.tangent)

    softmax_vjp = softmax_jvp

    def softmax_jvp_of_probs_out(self, inputs: Inputs) -> Call:
        return self._fill("product_of_probs", inputs, inputs.probs, inputs.tangent, result=inputs.out)

    def softmax_jacobian(self, inputs: Inputs) -> Call:
        loop, shape = self._loop("softmax_jacobian", inputs), (inputs.rows, inputs.classes, inputs.classes)

        def call() -> Any:
            out = np.empty(shape, inputs.dtype)
            loop(inputs.logits, out)
            return out

        return call

    def softmax_jacobian_out(self, inputs: Inputs) -> Call:
        return self._fill("softmax_jacobian", inputs, inputs.logits, result=inputs.jacobian)

    def cross_entropy(self, inputs: Inputs) -> Call:
        return partial(self._loop("cross_entropy", inputs), inputs.logits, inputs.labels)

    def cross_entropy_with_grad(self, inputs: Inputs) -> Call:
        loop = self._loop("cross_entropy_with_grad", inputs)

        def call() -> Any:
            out = np.empty_like(inputs.logits)
            return loop(inputs.logits, inputs.labels, out), out

        return call

    def cross_entropy_with_grad_out(self, inputs: Inputs) -> Call:
        loop = self._loop("cross_entropy_with_grad", inputs)
        return lambda: (loop(inputs.logits, inputs.labels, inputs.out), inputs.out)


OURS = FastSoftmax.name
ALL: dict[str, Library] = {
    library.name: library
    for library in (FastSoftmax(), NumPy(), SciPy(), ScikitLearn(), PyTorch(), Jax(), PlainNumba())
}
"""Ours first, in the order of the tables."""
PEERS = tuple(name for name in ALL if name != OURS)
