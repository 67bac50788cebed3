"""Every public function under one face: ``call(x, axis, **options)``, with a second argument where it takes one.

The second argument depends on the shape of x alone, so that two calls with equal x are equal calls.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from numba import njit

import fastsoftmax as fs
from fastsoftmax.kernels.simd.values import muladd


def row_shape(shape, axis):
    return tuple(n for k, n in enumerate(shape) if k != axis % len(shape))


def vector_for(shape, axis, dtype):
    """A tangent, cotangent or squared-error target."""
    return np.random.default_rng(sum(shape)).normal(0, 1, shape).astype(dtype)


def labels_for(shape, axis, dtype):
    rng = np.random.default_rng(sum(shape))
    return rng.integers(0, max(shape[axis], 1), row_shape(shape, axis))


def distributions_for(shape, axis, dtype):
    y = np.random.default_rng(sum(shape)).random(shape)
    return (y * (y > 0.3)).astype(dtype)


@dataclass(frozen=True)
class Function:
    """One public function, with one kind of second argument."""

    name: str
    first: str
    second: str | None
    make: object
    options: tuple = ()
    result: str = "x"

    @property
    def function(self):
        return getattr(fs, self.name)

    @property
    def takes_out(self):
        return not (self.result == "rows" and self.second)

    def __str__(self):
        return (
            f"{self.name}-{self.make.__name__[:-4]}" if self.make in (labels_for, distributions_for) else self.name
        )

    def other(self, x, axis=-1):
        """The second argument for x."""
        if self.make is None:
            return ()
        kind = x.dtype if x.dtype.char in "efd" else np.dtype(np.float64)
        return (self.make(x.shape, axis, kind.newbyteorder("=")),)

    def shape(self, shape, axis=-1):
        """The shape of the result."""
        if self.result == "x":
            return tuple(shape)
        rest = row_shape(shape, axis)
        return rest if self.result == "rows" else (*rest, shape[axis], shape[axis])

    def __call__(self, x, axis=-1, **options):
        x_shape = np.asarray(x)
        return self.function(x, *self.other(x_shape, axis), axis=axis, **dict(self.options), **options)


NONE = (("reduction", "none"),)
ACTIVATIONS = (
    Function("softmax", "x", None, None),
    Function("log_softmax", "x", None, None),
    Function("logsumexp", "x", None, None, result="rows"),
)
ENTROPIES = (Function("softmax_entropy", "x", None, None, result="rows"),)
JACOBIANS = (
    Function("softmax_jacobian", "x", None, None, result="square"),
    Function("log_softmax_jacobian", "x", None, None, result="square"),
)
PRODUCTS = (
    Function("softmax_jvp", "x", "tangent", vector_for),
    Function("softmax_vjp", "x", "cotangent", vector_for),
    Function("log_softmax_jvp", "x", "tangent", vector_for),
    Function("log_softmax_vjp", "x", "cotangent", vector_for),
)
LOSSES = (
    Function("cross_entropy", "logits", "targets", labels_for, NONE, "rows"),
    Function("cross_entropy", "logits", "targets", distributions_for, NONE, "rows"),
    Function("squared_error", "logits", "targets", vector_for, NONE, "rows"),
)
GRADIENTS = (
    Function("cross_entropy_grad", "logits", "targets", labels_for),
    Function("cross_entropy_grad", "logits", "targets", distributions_for),
    Function("squared_error_grad", "logits", "targets", vector_for),
)
ALL = ACTIVATIONS + ENTROPIES + JACOBIANS + PRODUCTS + LOSSES + GRADIENTS
SAME_SHAPE = tuple(f for f in ALL if f.result == "x")
WITH_OUT = tuple(f for f in ALL if f.takes_out)
PAIRS = (fs.cross_entropy_with_grad, fs.squared_error_with_grad)


def skip_unless_fused(dtype):
    """For tests of results that are rounded once: a machine without fused multiply-add rounds once more."""

    @njit
    def both(a, b, c):
        return muladd(a, b, c)

    one, eps = dtype(1), np.finfo(dtype).eps
    if both(one + eps, one - eps, -one) == 0:
        pytest.skip("no fused multiply-add on this machine")
