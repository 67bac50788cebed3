"""What is compared: {function: {library: setup}}, where setup(inputs) gives a callable that returns the result.

A setup does everything that a user would do once (wrapping arrays, compiling) and returns the call that is
timed. Every callable's result is compared with ours before anything is timed. Libraries that are not installed
are left out of the tables, which then say so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastsoftmax as fs

Setup = Callable[["Inputs"], Callable[[], Any]]


@dataclass
class Inputs:
    """The arrays of one case: logits, an output of their shape, labels, a tangent."""

    logits: Any
    out: Any
    labels: Any
    tangent: Any

    @classmethod
    def make(cls, shape: tuple[int, ...], dtype: Any) -> "Inputs":
        """Logits of standard deviation 3, as a trained classifier has them."""
        random = np.random.default_rng(0)
        logits = random.normal(size=shape).astype(dtype) * np.asarray(3, dtype)
        labels = random.integers(0, shape[-1], size=shape[:-1])
        tangent = random.normal(size=shape).astype(dtype)
        return cls(logits, np.zeros_like(logits), labels, tangent)


def _has(*modules: str) -> bool:
    return all(find_spec(module) is not None for module in modules)


def _numpy_softmax(inputs: Inputs) -> Callable[[], Any]:
    x = inputs.logits

    def call() -> Any:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    return call


def _numpy_log_softmax(inputs: Inputs) -> Callable[[], Any]:
    x = inputs.logits

    def call() -> Any:
        shifted = x - x.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    return call


def _numba_softmax(inputs: Inputs) -> Callable[[], Any]:
    """The loop that everybody writes."""
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def softmax(x: Any, out: Any) -> None:
        for i in numba.prange(x.shape[0]):
            row_max = x[i, 0]
            for j in range(x.shape[1]):
                row_max = max(row_max, x[i, j])
            total = x.dtype.type(0)
            for j in range(x.shape[1]):
                out[i, j] = np.exp(x[i, j] - row_max)
                total += out[i, j]
            for j in range(x.shape[1]):
                out[i, j] /= total

    x, out = inputs.logits, np.empty_like(inputs.logits)

    def call() -> Any:
        softmax(x, out)
        return out

    return call


def _ours(function: Callable[..., Any], *names: str, out: bool = False) -> Setup:
    def setup(inputs: Inputs) -> Callable[[], Any]:
        arguments = [getattr(inputs, name) for name in names]
        if out:
            return lambda: function(*arguments, out=inputs.out)
        return lambda: function(*arguments)

    return setup


def _scipy(name: str) -> Setup:
    def setup(inputs: Inputs) -> Callable[[], Any]:
        import scipy.special

        function = getattr(scipy.special, name)
        return lambda: function(inputs.logits, axis=-1)

    return setup


def _sklearn_softmax(inputs: Inputs) -> Callable[[], Any]:
    from sklearn.utils.extmath import softmax

    return lambda: softmax(inputs.logits)


def _torch(name: str, out: bool = False) -> Setup:
    def setup(inputs: Inputs) -> Callable[[], Any]:
        import torch

        x = torch.from_numpy(inputs.logits)
        function = getattr(torch, name)
        if out:
            target = torch.empty_like(x)
            return lambda: function(x, -1, out=target)
        return lambda: function(x, -1)

    return setup


def _torch_cross_entropy(inputs: Inputs) -> Callable[[], Any]:
    import torch

    x, y = torch.from_numpy(inputs.logits), torch.from_numpy(inputs.labels)
    return lambda: torch.nn.functional.cross_entropy(x, y)


def _torch_cross_entropy_with_grad(inputs: Inputs) -> Callable[[], Any]:
    import torch

    x = torch.from_numpy(inputs.logits).requires_grad_()
    y = torch.from_numpy(inputs.labels)

    def call() -> Any:
        x.grad = None
        loss = torch.nn.functional.cross_entropy(x, y)
        loss.backward()
        return loss.detach(), x.grad

    return call


def _jax(build: Callable[[Any], Callable[..., Any]], *names: str) -> Setup:
    def setup(inputs: Inputs) -> Callable[[], Any]:
        import jax

        jax.config.update("jax_enable_x64", True)
        arguments = [jax.device_put(getattr(inputs, name)) for name in names]
        function = jax.jit(build(jax))
        return lambda: jax.block_until_ready(function(*arguments))

    return setup


def _jax_loss(jax: Any) -> Callable[..., Any]:
    def loss(x: Any, y: Any) -> Any:
        chosen = jax.numpy.take_along_axis(x, y[:, None], -1)[:, 0]
        return (jax.nn.logsumexp(x, -1) - chosen).mean()

    return loss


def _sklearn_cross_entropy(gradient: bool) -> Setup:
    def setup(inputs: Inputs) -> Callable[[], Any]:
        from sklearn._loss.loss import HalfMultinomialLoss

        loss = HalfMultinomialLoss(n_classes=inputs.logits.shape[-1])
        y = inputs.labels.astype(inputs.logits.dtype)
        rows = len(y)
        if gradient:

            def both() -> Any:
                value, slope = loss.loss_gradient(y, inputs.logits, n_threads=fs_threads())
                return value.mean(), slope / rows

            return both
        return lambda: loss.loss(y, inputs.logits, n_threads=fs_threads()).mean()

    return setup


def fs_threads() -> int:
    """The number of threads that every library is given."""
    from fastsoftmax._parallel import max_threads

    return max_threads()


def cases() -> dict[str, dict[str, Setup]]:
    """All functions with the libraries that are installed."""
    table: dict[str, dict[str, Setup]] = {
        "softmax": {"fastsoftmax": _ours(fs.softmax, "logits"), "NumPy": _numpy_softmax},
        "softmax, out=": {"fastsoftmax": _ours(fs.softmax, "logits", out=True), "Numba loop": _numba_softmax},
        "log_softmax": {"fastsoftmax": _ours(fs.log_softmax, "logits"), "NumPy": _numpy_log_softmax},
        "logsumexp": {"fastsoftmax": _ours(fs.logsumexp, "logits")},
        "cross_entropy": {"fastsoftmax": _ours(fs.cross_entropy, "logits", "labels")},
        "cross_entropy_with_grad": {"fastsoftmax": _ours(fs.cross_entropy_with_grad, "logits", "labels")},
    }
    if _has("scipy"):
        for name in ("softmax", "log_softmax", "logsumexp"):
            table[name]["SciPy"] = _scipy(name)
    if _has("sklearn"):
        table["softmax"]["scikit-learn"] = _sklearn_softmax
        table["cross_entropy"]["scikit-learn"] = _sklearn_cross_entropy(False)
        table["cross_entropy_with_grad"]["scikit-learn"] = _sklearn_cross_entropy(True)
    if _has("torch"):
        for name in ("softmax", "log_softmax", "logsumexp"):
            table[name]["PyTorch"] = _torch(name)
        table["softmax, out="]["PyTorch"] = _torch("softmax", out=True)
        table["cross_entropy"]["PyTorch"] = _torch_cross_entropy
        table["cross_entropy_with_grad"]["PyTorch"] = _torch_cross_entropy_with_grad
    if _has("jax"):
        table["softmax"]["JAX"] = _jax(lambda jax: jax.nn.softmax, "logits")
        table["softmax, out="]["JAX"] = table["softmax"]["JAX"]
        table["log_softmax"]["JAX"] = _jax(lambda jax: jax.nn.log_softmax, "logits")
        table["logsumexp"]["JAX"] = _jax(lambda jax: lambda x: jax.nn.logsumexp(x, -1), "logits")
        table["cross_entropy"]["JAX"] = _jax(_jax_loss, "logits", "labels")
        table["cross_entropy_with_grad"]["JAX"] = _jax(
            lambda jax: jax.value_and_grad(_jax_loss(jax)), "logits", "labels"
        )
    return table


def yardsticks(inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """NumPy's own speed on the same arrays."""
    return {
        "np.copyto": lambda: np.copyto(inputs.out, inputs.logits),
        "x.copy()": lambda: inputs.logits.copy(),
        "np.sum": lambda: np.sum(inputs.logits),
    }


def agree(ours: Any, theirs: Any, dtype: Any) -> bool:
    """Whether two results (or tuples of them) are the same but for rounding."""
    if isinstance(ours, tuple):
        return all(agree(a, b, dtype) for a, b in zip(ours, theirs, strict=True))
    tolerance = 1e3 * float(np.finfo(dtype).eps)
    return bool(np.allclose(np.asarray(ours), np.asarray(theirs), rtol=tolerance, atol=tolerance))
