"""Every public function with one signature, ``call(x, axis, **options)``, which adds a second argument if needed.

The second argument depends only on the shape and dtype of x, so that two calls with equal x are equal calls.
"""

import inspect
from dataclasses import dataclass

import numpy as np
import pytest
from numba import njit

import fastsoftmax as fs
from fastsoftmax import _spec
from fastsoftmax.api import ufuncs
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
MAKERS = {
    _spec.TANGENT: (vector_for,),
    _spec.COTANGENT: (vector_for,),
    _spec.DISTRIBUTIONS: (vector_for,),
    _spec.TARGET_LOGITS: (vector_for,),
    _spec.LABELS: (labels_for,),
    _spec.TARGETS: (labels_for, distributions_for),
}
"""Functions that make the second argument, by its role."""


def _of(*families, result=None):
    """The functions of one result and at most two arguments, with each kind of second argument that they take."""
    found = []
    for entry in _spec.FUNCTIONS.values():
        if entry.family not in families or entry.is_ragged or len(entry.result) > 1:
            continue
        if result is not None and entry.result != (result,):
            continue
        first, *second = inspect.signature(getattr(fs, entry.name)).parameters
        kinds = MAKERS[entry.operands[1]] if len(entry.operands) > 1 else (None,)
        shape = {_spec.LIKE: "x", _spec.LOSS: "rows"}.get(entry.result[0], entry.result[0])
        options = NONE if entry.result == (_spec.LOSS,) else ()
        found += [
            Function(entry.name, first, second[0] if kinds[0] else None, kind, options, shape) for kind in kinds
        ]
    return tuple(found)


ACTIVATIONS = _of("forward")
ENTROPIES = _of("entropy")
JACOBIANS = _of("jacobian")
PRODUCTS = _of("product")
LOSSES = _of("cross entropy", "row loss", "divergence", "focal", result=_spec.LOSS)
GRADIENTS = _of("cross entropy", "row loss", "divergence", "focal", "focal curvature", result=_spec.LIKE)
ALL = ACTIVATIONS + ENTROPIES + JACOBIANS + PRODUCTS + LOSSES + GRADIENTS
SAME_SHAPE = tuple(f for f in ALL if f.result == "x")
WITH_OUT = tuple(f for f in ALL if f.takes_out)
PAIRS = tuple(
    getattr(fs, name)
    for name, entry in _spec.FUNCTIONS.items()
    if entry.result == (_spec.LOSS, _spec.LIKE) and not entry.is_ragged
)
UFUNCS = tuple(ufuncs.DOCS)


def skip_unless_fused(dtype):
    """Skip tests of results that are rounded once on machines without fused multiply-add, which round twice."""

    @njit
    def both(a, b, c):
        return muladd(a, b, c)

    one, eps = dtype(1), np.finfo(dtype).eps
    if both(one + eps, one - eps, -one) == 0:
        pytest.skip("no fused multiply-add on this machine")
