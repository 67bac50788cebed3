r"""Rows of logits whose classes come in blocks: the loss from a first pass, the gradient from a second one.

`add` merges the summary of each block into those of the rows, as for any row in pieces (`long_rows`). Together
with the logit z_y at the label they give the loss -log p_y. With label smoothing the loss also needs the sum of
all logits, which is added up as a pair of numbers. For a row of weight w, with shares q_j = c_j (base + gain y_j)
of the classes (c are the class weights) and the factor r of the z-loss (`kernels.capped`):

    L        = w (base (lse sum(c) - sum_j c_j z_j) + gain c_y (lse - z_y) + r lse**2)
    dL/dz_j  = w (C p_j - q_j),  where  C = base sum(c) + gain c_y + 2 r lse
    dL/dz_y  = w (q_y (p_y - 1) + (C - q_y) p_y)

lse is computed in float64. lse - z_y and p_y - 1 come from the kernel that computes them without cancellation. So
the errors are those of the logits, which BLAS has rounded: some eps max_j abs(z_j).
"""

from typing import Any

import numpy as np

from fastsoftmax.arrays import long_rows
from fastsoftmax.arrays.blocks import NO_ROOM, Array, kernel_weights, read_only
from fastsoftmax.arrays.options import RowTargets
from fastsoftmax.arrays.threads import run
from fastsoftmax.arrays.weights import total
from fastsoftmax.machine.entry import entry

OUTER_BYTES = 1 << 19
"""Shares of the classes are subtracted from so many bytes of a block at a time, which stay in the cache."""


class Pieces:
    """The sums over the classes of some rows, block by block, and then their losses and gradients.

    `labels` and `row_weights` (or None) are those of the rows, in the order of the rows of the blocks.
    """

    def __init__(self, given: RowTargets, labels: Array, row_weights: Array | None) -> None:
        self.given, self.labels, self.dtype = given, labels, given.problem.dtype
        rows = len(labels)
        self.row_weights = np.ones(rows, self.dtype) if row_weights is None else row_weights
        self.z_loss, self.cap = (0.0, np.inf) if given.regularization is None else given.regularization
        self.logits = np.zeros(rows, self.dtype)
        self.sums = np.zeros(rows) if given.base else None
        self.summaries = np.empty(rows, long_rows.summary_dtype(self.dtype))
        self.given_rows: Array = np.empty(0)
        self.slopes: Array = np.empty(0)
        self.flat: Array = np.empty(0)
        self.scale: tuple[Any, Any] = (1, 0)

    def capped(self, z: Array, result: Array) -> Array:
        """The capped logits of a block, in the memory of `result`, which may be the block itself."""
        return z if self.cap == np.inf else long_rows.cap(z, self.cap, result)

    def add(self, z: Array, rows: slice, classes: slice) -> Array:
        """The first pass over a block of capped logits. The blocks of a row come in the order of the classes.

        Returns the summaries of the block alone.
        """
        part = alone = long_rows.summarize(z)
        if classes.start:
            part = long_rows.merge(np.stack([self.summaries[rows], part], axis=-1))
        self.summaries[rows] = part
        at, columns = self._labelled(rows, classes)
        self.logits[rows.start + at] = z[at, columns]
        if self.sums is not None:
            self.sums[rows] += self._sum(z, classes)
        return alone

    def _labelled(self, rows: slice, classes: slice) -> tuple[Array, Array]:
        """The rows and columns of a block with the labels that lie in it."""
        return long_rows.inside(self.labels[rows], classes.start, classes.stop - classes.start)

    def _weights_of(self, classes: slice) -> Array:
        """The weights of some classes."""
        weights = self.given.class_weights
        return np.ones(classes.stop - classes.start, self.dtype) if weights is None else weights[classes]

    def _sum(self, z: Array, classes: slice) -> Array:
        """sum_j c_j z_j over a block, in float64."""
        weights = self._weights_of(classes)
        high, low = np.empty((2, len(z)), self.dtype)
        arguments = kernel_weights(weights, self.dtype), self.dtype.type(0), self.dtype.type(1), high, low
        block = read_only(z[..., None])
        run(entry("reductions.share_totals"), len(z), z.size, lambda: NO_ROOM[self.dtype], block, *arguments)
        sums = long_rows.rounded(high, low)
        for row in np.flatnonzero(np.isnan(high)):  # 0 * inf is 0 here
            sums[row] = (weights * z[row].astype(np.float64))[weights != 0].sum()
        return sums

    def finish(self, scale: tuple[Any, Any]) -> Array:
        """The losses of the rows, after all blocks have been added; `scale` is the factor of the gradient."""
        given, weights, self.scale = self.given, self.row_weights, scale
        if given.plain:
            self.given_rows = long_rows.weighed(self.summaries, weights)
            losses: Array
            losses, self.slopes = long_rows.labelled(self.logits, self.given_rows, scale)
            return losses
        heavy = weights.astype(np.float64)
        base, gain, z_loss = float(given.base), float(given.gain), float(self.z_loss)
        at_label: Any = 1.0
        whole = float(given.problem.classes)
        if given.class_weights is not None:
            at_label = given.class_weights[self.labels].astype(np.float64)
            whole = total(given.class_weights)
        others = np.zeros_like(heavy)
        if self.sums is not None:
            others = others + base * (whole - at_label)
        found = long_rows.label_terms(self.logits, self.summaries, at_label * (base + gain), others, z_loss)
        lse, losses = found.lse, np.zeros_like(heavy)
        if gain:
            losses += gain * np.where(at_label == 0, 0, at_label * found.surprise)
        if z_loss:
            losses += z_loss * lse * lse
        if self.sums is not None:
            losses += base * (whole * lse - self.sums)
        factor = heavy * (float(scale[0]) + float(scale[1]))
        self.slopes = (factor * found.at_label).astype(self.dtype)
        self.flat = (factor * base).astype(self.dtype)
        self.given_rows = long_rows.weighed(self.summaries, (heavy * found.factor).astype(self.dtype))
        return (heavy * losses).astype(self.dtype)

    def uncapped(self, a: Array, slopes: Array) -> None:
        """Multiply a block by the derivatives of the capped logits with respect to the logits a."""
        if self.cap != np.inf:
            long_rows.uncap(a, self.cap, slopes)

    def slope(self, z: Array, rows: slice, classes: slice, logits: Array) -> None:
        """The second pass: replace a block of capped logits by the gradient with respect to `logits`."""
        self.capped_slope(z, rows, classes)
        self.uncapped(logits, z)

    def capped_slope(self, z: Array, rows: slice, classes: slice) -> None:
        """Replace a block of capped logits by the gradient with respect to these."""
        long_rows.slope(z, read_only(np.ascontiguousarray(self.given_rows[:, rows])), self.scale, z)
        if self.sums is not None:
            weights, flat = self._weights_of(classes), self.flat[rows]
            step = max(1, OUTER_BYTES // max(1, weights.nbytes))
            for k in range(0, len(z), step):
                z[k : k + step] -= np.multiply.outer(flat[k : k + step], weights)
        at, columns = self._labelled(rows, classes)
        z[at, columns] = self.slopes[rows][at]


class Curves(Pieces):
    r"""`Pieces` for products of the Hessian with tangents t of the logits.

    In the notation above, with a = logits, z = cap tanh(a/cap), s = dz/da, the tangents v = s t of the capped
    logits and their mean m = sum_j p_j v_j, the product is (see `kernels.capped`):

        u_k = s_k (p_k (A (v_k - m) + B) + g_k t_k b_k),
        where  A = w C,  B = 2 w r m,  g = dL/dz,  b = (d2z/da2)/s = -2 z/cap**2

    m is kept as the tangent at the greatest logit and the mean of the differences from it. So v_k - m keeps its
    digits at a class of probability near 1.
    """

    def __init__(self, given: RowTargets, labels: Array, row_weights: Array | None) -> None:
        super().__init__(given, labels, row_weights)
        rows = len(labels)
        self.top, self.lse = np.full((2, rows), -np.inf)
        self.pivot, self.mean = np.zeros((2, rows))
        self.curvature, self.shift = np.empty((2, 0), self.dtype)

    def add_tangents(self, z: Array, t: Array, rows: slice, classes: slice) -> None:
        """The first pass over a block of capped logits and their tangents, which it overwrites."""
        at = z.argmax(axis=1)[:, None]
        pivot = np.take_along_axis(t, at, 1)
        part = self.add(z, rows, classes)
        long_rows.softmax(z, part, out=z)
        t -= pivot
        mean, pivot = long_rows.rounded(*long_rows.inner(z, t)), pivot[:, 0].astype(np.float64)
        lse = long_rows.log_of_sum(part)
        both = np.logaddexp(self.lse[rows], lse)
        higher = part["m"] > self.top[rows]
        centre = np.where(higher, pivot, self.pivot[rows])
        total = np.zeros(len(z))
        for share, other, rest in ((self.lse[rows], self.pivot[rows], self.mean[rows]), (lse, pivot, mean)):
            share = np.exp(share - both)
            total += np.where(share == 0, 0, share * (other - centre + rest))
        self.top[rows] = np.where(higher, part["m"], self.top[rows])
        self.lse[rows], self.pivot[rows], self.mean[rows] = both, centre, total

    def finish_tangents(self, scale: tuple[Any, Any]) -> None:
        """The numbers of the rows, after all blocks have been added; `scale` is the factor of the gradient."""
        self.finish(scale)
        factor, z_loss = float(scale[0]) + float(scale[1]), float(self.z_loss)
        self.curvature = (self.given_rows[-1] * factor).astype(self.dtype)
        self.shift = (2 * z_loss * factor * self.row_weights * (self.pivot + self.mean)).astype(self.dtype)
        self.pivot, self.mean = self.pivot.astype(self.dtype), self.mean.astype(self.dtype)

    def product(self, a: Array, z: Array, t: Array, g: Array | None, rows: slice, classes: slice) -> None:
        """The second pass: replace the tangents t of a block of logits a, capped z, by the product.

        z is overwritten. g is memory for a block if the logits are capped.
        """
        if g is not None:
            np.copyto(g, z)
            self.capped_slope(g, rows, classes)
            g *= t
            g *= z
            g *= self.dtype.type(-2 / self.cap**2)
            self.uncapped(a, t)
        long_rows.softmax(z, self.summaries[rows], out=z)
        numbers = [one[rows, None] for one in (self.pivot, self.mean, self.curvature, self.shift)]
        step = max(1, OUTER_BYTES // max(1, t[:1].nbytes))
        for k in range(0, len(t), step):
            some = slice(k, k + step)
            part, (pivot, mean, curvature, shift) = t[some], (one[some] for one in numbers)
            part -= pivot
            part -= mean
            part *= curvature
            part += shift
            part *= z[some]
            if g is not None:
                part += g[some]
        self.uncapped(a, t)
