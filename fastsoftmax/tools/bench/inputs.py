"""The arrays of a case, and the threads of libraries that are not imported yet."""

import math
import os
from functools import cached_property
from typing import Any

import numpy as np

from fastsoftmax.arrays.blocks import Array

Shape = tuple[int, ...]

CLASS_AXIS = 1
"""The axis of the classes in every shape: the last one of a matrix, the channels of (N, C, H, W)."""

SPREAD = 3.0
"""The standard deviation of the logits, about that of a trained classifier."""


class Inputs:
    """The arrays of a case. Each is made when it is first used, and is the same in every process."""

    def __init__(self, shape: Shape, dtype: Any) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.classes = shape[CLASS_AXIS]
        self.rows = math.prod(shape) // self.classes
        self.row_shape = (*shape[:CLASS_AXIS], *shape[CLASS_AXIS + 1 :])

    def _normal(self, seed: int) -> Array:
        draw: Any = np.random.default_rng(seed).standard_normal
        return np.asarray(draw(self.shape, self.dtype))

    @cached_property
    def logits(self) -> Array:
        """Normal with standard deviation `SPREAD`."""
        values = self._normal(0)
        values *= SPREAD
        return values

    @cached_property
    def probs(self) -> Array:
        """Their softmax, by NumPy."""
        p: Array = self.logits - self.logits.max(CLASS_AXIS, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(CLASS_AXIS, keepdims=True)
        return p

    @cached_property
    def tangent(self) -> Array:
        """Of the shape of the logits, also used as cotangent."""
        return self._normal(1)

    @cached_property
    def labels(self) -> Array:
        """A class for each row, as int64, which PyTorch requires."""
        return np.random.default_rng(2).integers(0, self.classes, self.row_shape)

    @cached_property
    def hits(self) -> Array:
        """0 or 1 for each logit, in the dtype of the logits: the targets of binary losses."""
        return (np.random.default_rng(3).random(self.shape) < 0.3).astype(self.dtype)

    @cached_property
    def out(self) -> Array:
        """Of the shape of the logits; its pages are in memory."""
        return np.full(self.shape, 0.5, self.dtype)

    @cached_property
    def jacobian(self) -> Array:
        """Of the shape of the Jacobian of a matrix of logits; its pages are in memory."""
        return np.full((self.rows, self.classes, self.classes), 0.5, self.dtype)


def prepare(threads: int) -> None:
    """Tell libraries that are not imported yet how many threads they may use; see `libraries` for the others."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC", "PJRT_NPROC"):
        os.environ[name] = str(threads)
