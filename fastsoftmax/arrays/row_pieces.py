r"""Losses and products of rows whose classes are in several pieces, in addition to `long_rows`.

A piece is a matrix (rows, classes). Beside the summary of `long_rows`, each row has numbers that are needed from
other pieces. They are fields of the same record, and `merge` merges them as well:

target
    The logit of the label; -inf if it is not there.
below, below_low, whole, whole_low
    sum_j share_j (c - x_j) and sum_j share_j as pairs, for the shares of `kernels.losses`. c is the greatest
    logit, so that all terms of the loss, sum_j share_j (m - x_j) + sum(share) log(1 + s'), have one sign: when
    another piece has a greater m, sum(share) (m - c) is added.
entry, others, others_low
    A vector v at the greatest logit, and the sum of its other entries as a pair. `kernels.derivatives` says
    why v is measured from its value at a class with p > 1/2.

So a cross-entropy needs one pass over the logits, and its gradient one more. Products p (v - p.v) need the sum p.v
in between. A z-loss needs the log-sum-exp of the row, which the summary has. If the logits are capped, all of this
is computed from the capped ones, and the derivatives are multiplied by those of the cap (`kernels.capped`).

Probabilities and sums come from kernels. The rest is computed in float64, for some rows at a time, in memory that
a task allocates once: an allocator that gives its memory back at once, as Dask asks for in its worker processes,
has the system map and clear new pages for every large temporary array, which takes longer than the computation.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax.arrays import halves, long_rows
from fastsoftmax.arrays.blocks import Array
from fastsoftmax.arrays.long_rows import Beta, inner, pair_sum
from fastsoftmax.arrays.weights import inverse_of

SLAB = 1 << 15
"""Elements of a piece that are computed at a time, in float64."""

TARGET = ("target",)
SHARES = ("below", "below_low", "whole", "whole_low")
ENTRY = ("entry",)
OTHERS = ("entry", "others", "others_low")


def record_dtype(dtype: Any, names: tuple[str, ...]) -> np.dtype[Any]:
    """The dtype of summaries of pieces of this dtype with the fields of `names`, which are float64."""
    return np.dtype([*long_rows.summary_dtype(dtype).descr, *((name, np.float64) for name in names)])


def _record(summaries: Array, names: tuple[str, ...]) -> Array:
    """The summaries with further fields, which are not set yet."""
    result = np.empty(summaries.shape, record_dtype(summaries.dtype["m"], names))
    _set_summaries(result, summaries)
    return result


def _set_summaries(records: Array, summaries: Array) -> None:
    """Set the summaries in records."""
    for name in long_rows.FIELDS:
        records[name] = summaries[name]


def _cast(array: Array, dtype: Any) -> Array:
    return halves.converted(array, dtype)


def _slabs(shape: tuple[int, int], dtype: Any, count: int) -> Iterator[tuple[slice, Array, list[Array]]]:
    """Some rows at a time, with working memory of their size: one array of a dtype, and `count` of float64.

    Without the latter, kernels do all the work, and more rows at a time save calls.
    """
    rows, classes = shape
    size = SLAB if count else 8 * SLAB
    step = min(max(1, size // max(1, classes)), max(1, rows))
    first, others = np.empty((step, classes), dtype), np.empty((count, step, classes))
    for start in range(0, rows, step):
        length = min(step, rows - start)
        yield slice(start, start + length), first[:length], [other[:length] for other in others]


def _logits(x: Array, dtype: Any, cap: Any, out: Array) -> Array:
    """Some rows of a piece in this dtype, capped in the memory of `out` unless the cap is inf."""
    part = _cast(x, dtype)
    return part if cap == np.inf else long_rows.cap(part, cap, out)


def _falling(x: Array, dtype: Any, cap: Any, out: Array) -> Array:
    """The derivatives of the capped logits with respect to the logits of some rows, in the memory of `out`."""
    out[...] = 1
    long_rows.uncap(_cast(x, dtype), cap, out)
    return out


def capped_summaries(x: Array, dtype: Any, cap: Any) -> Array:
    """The summaries of the capped logits of a piece."""
    result = np.empty(len(x), long_rows.summary_dtype(dtype))
    with np.errstate(all="ignore"):
        for rows, memory, _ in _slabs(x.shape, dtype, 0):
            result[rows] = long_rows.summarize(_logits(x[rows], dtype, cap, memory))
    return result


def merge(parts: Array, beta: Beta = None) -> Array:
    """The records of whole rows, from those of their pieces along the last axis."""
    result, names = long_rows.merge(parts, beta), parts.dtype.names or ()
    with np.errstate(all="ignore"):
        if "target" in names:
            result["target"] = np.fmax.reduce(parts["target"], axis=-1)
        if "below" in names:
            up = _finite(result["m"])[..., None] - _finite(parts["m"])
            more = _product(up, parts["whole"] + parts["whole_low"])
            _set_pair(result, "below", (parts["below"], more), (parts["below_low"], np.zeros_like(more)))
            _set_pair(result, "whole", (parts["whole"],), (parts["whole_low"],))
        if "others" in names:
            leads = np.arange(parts.shape[-1]) == np.argmax(parts["m"], axis=-1)[..., None]
            entries = np.where(leads, 0, parts["entry"])
            _set_pair(result, "others", (parts["others"], entries), (parts["others_low"], np.zeros_like(entries)))
    return result


def _set_pair(result: Array, name: str, high: tuple[Array, ...], low: tuple[Array, ...]) -> None:
    """Set two fields of the records to the sum of pairs along the last axis."""
    result[name], result[f"{name}_low"] = pair_sum(np.concatenate(high, axis=-1), np.concatenate(low, axis=-1))


def _finite(m: Array) -> Array:
    """m in float64, or 0 if it is infinite: c of `below`."""
    return np.where(np.isfinite(m), m, 0).astype(np.float64)


def _product(a: Array, b: Array) -> Array:
    """a * b, but 0 where b is 0."""
    return np.where(b == 0, 0, a * b)


def _greatest(part: Array) -> tuple[Array, Array]:
    """The rows of a part of a piece, and the columns of their greatest entries; none if it has no classes."""
    rows = np.arange(len(part) if part.shape[1] else 0)
    return rows, part.argmax(axis=1) if rows.size else rows


def _certain(part: Array, m: Array, lacking: Array) -> tuple[Array, Array]:
    """The rows and columns of the classes with p > 1/2, from m and 1 - p of the greatest entry of the rows."""
    rows = np.flatnonzero(lacking < 0.5)
    if not rows.size or not part.shape[1]:
        return rows[:0], rows[:0]
    columns = part.argmax(axis=1)[rows]
    here = part[rows, columns] == m[rows]
    return rows[here], columns[here]


def row_weights(factor: Array, divisor: float) -> Array:
    """The factor of the derivatives of each row, 0 if the row does not count."""
    with np.errstate(all="ignore"):
        found: Array = np.where(factor == 0, 0, factor / divisor)
        return found


def _put(result: Array, rows: slice, value: Array, weights: Array) -> None:
    """result = weights value for some rows, 0 where the weight is 0. `value` is overwritten."""
    weights = weights[rows]
    value *= weights[:, None]
    if not weights.all():
        value[weights == 0] = 0
    result[rows] = value


# --- labels -----------------------------------------------------------------------------------------------------


class Labelled(NamedTuple):
    """The weights of rows with labels, their shares, r of `kernels.capped`, and whether shares and r count."""

    factor: Array
    share: Array
    z_loss: Array
    regularized: bool


def labelled_record(x: Array, labels: Array, first: int, dtype: Any, cap: Any = np.inf) -> Array:
    """The records of a piece with `TARGET`; its classes are `first` and those that follow."""
    result = np.empty(len(x), record_dtype(dtype, TARGET))
    result["target"] = -np.inf
    with np.errstate(all="ignore"):
        for rows, memory, _ in _slabs(x.shape, dtype, 0):
            part = _logits(x[rows], dtype, cap, memory)
            _set_summaries(result[rows], long_rows.summarize(part))
            at, columns = long_rows.inside(labels[rows], first, x.shape[1])
            result["target"][rows][at] = part[at, columns]
    return result


def _labelled(records: Array, rows: Labelled, divisor: float) -> tuple[Array, tuple[Any, Any], Any]:
    """What the kernels of labels take of the records and the weights of the rows, and `long_rows.labelled`."""
    dtype, factor = records.dtype["m"], rows.factor
    scale = inverse_of(divisor, dtype)
    with np.errstate(all="ignore"):
        target = records["target"].astype(dtype)
        if not rows.regularized:
            given = long_rows.weighed(records, factor.astype(dtype))
            return given, scale, long_rows.labelled(target, given, scale)
        found = long_rows.label_terms(target, records, rows.share, 0.0, rows.z_loss)
        losses = factor * (_product(found.surprise, rows.share) + _product(found.lse**2, rows.z_loss))
        given = long_rows.weighed(records, _product(found.factor, factor).astype(dtype))
        return given, scale, (losses, _product(found.at_label, row_weights(factor, divisor)).astype(dtype))


def labelled_losses(records: Array, rows: Labelled) -> Array:
    """-factor log p of the label, with the z-loss."""
    losses: Array = _labelled(records, rows, 1.0)[2][0]
    return losses


def labelled_slope(
    x: Array, records: Array, labels: Array, first: int, rows: Labelled, divisor: float, cap: Any = np.inf
) -> Array:
    """factor (C p - share onehot) / divisor of a piece, times the derivatives of the capped logits."""
    given, scale, (_, at_label) = _labelled(records, rows, divisor)
    result = np.empty(x.shape, x.dtype)
    long_rows.slope(_logits(x, x.dtype, cap, result), given, scale, result)
    at, columns = long_rows.inside(labels, first, x.shape[1])
    result[at, columns] = at_label[at]
    if cap != np.inf:
        long_rows.uncap(x, cap, result)
        none = rows.factor == 0
        if rows.regularized:
            none |= (rows.share == 0) & (rows.z_loss == 0)
        result[none] = 0  # whatever the derivatives of the capped logits are
    return result


# --- shares of all classes --------------------------------------------------------------------------------------


class Mix(NamedTuple):
    """share_j = w_j (base + gain y_j); y is the one-hot form of the label, unless the targets are `soft`."""

    base: float
    gain: float
    soft: bool


class Shares(NamedTuple):
    """The targets of the rows of a piece, class indices or distributions, its first class and class weights."""

    targets: Array
    first: int
    class_weight: Array | None
    mix: Mix

    def write(self, rows: slice, out: Array) -> None:
        """The shares of some rows, in float64."""
        base, gain, soft = self.mix
        if soft:
            out[...] = self.targets[rows]
            if gain != 1:
                out *= gain
            if base != 0:
                out += base
        else:
            out[...] = base
            out[long_rows.inside(self.targets[rows], self.first, out.shape[1])] = base + gain
        if self.class_weight is not None:
            out *= self.class_weight


def share_sums(shares: Shares, shape: tuple[int, int]) -> tuple[Array, Array]:
    """The sums of the shares of a piece of this shape, as pairs."""
    sums = np.empty((2, shape[0]))
    with np.errstate(all="ignore"):
        for rows, _, (share, one) in _slabs(shape, np.float64, 2):
            shares.write(rows, share)
            one[...] = 1
            sums[:, rows] = inner(share, one)
    return sums[0], sums[1]


def shares_record(x: Array, shares: Shares, dtype: Any, cap: Any = np.inf) -> Array:
    """The records of a piece with `SHARES`."""
    result = np.empty(len(x), record_dtype(dtype, SHARES))
    with np.errstate(all="ignore"):
        result["whole"], result["whole_low"] = share_sums(shares, x.shape)
        for rows, memory, (share, below) in _slabs(x.shape, dtype, 2):
            part = _logits(x[rows], dtype, cap, memory)
            summaries = long_rows.summarize(part)
            _set_summaries(result[rows], summaries)
            shares.write(rows, share)
            np.subtract(_finite(summaries["m"])[:, None], part, out=below)
            np.copyto(below, 0, where=share == 0)
            result["below"][rows], result["below_low"][rows] = inner(share, below)
    return result


def shares_losses(records: Array, z_loss: Array) -> Array:
    """-sum_j share_j log p_j + z_loss lse**2 of whole rows."""
    m, whole = records["m"], records["whole"] + records["whole_low"]
    with np.errstate(all="ignore"):
        log_rest = long_rows.surprise(m, records)[0].astype(np.float64)  # log(1 + s')
        total: Array = _product(log_rest, whole) + records["below_low"] + records["below"]
        if z_loss.any():
            total += _product(long_rows.log_of_sum(records) ** 2, z_loss)
    return total


class Curve:
    """p, dL/dz and sum(q) + 2 r lse = C of `kernels.capped` for rows with these records, sums of shares and r."""

    def __init__(self, records: Array, whole: Array, z_loss: Array) -> None:
        self.records, self.whole, self.z_loss = records, whole, z_loss
        self.lacking = long_rows.remainder(records).astype(np.float64)
        self.more = np.zeros(len(records))
        with np.errstate(all="ignore"):
            if z_loss.any():
                self.more = _product(2 * long_rows.log_of_sum(records), z_loss)
            self.factor = whole + self.more
        self.flat = (self.factor == 0) & (z_loss == 0)
        """The rows whose second derivatives do not depend on p: it may be NaN there."""

    def probs(self, part: Array, rows: slice, out: Array) -> tuple[Array, Array]:
        """Write p of some rows of a piece, which may be in `out`; returns where p > 1/2, as `_certain` does."""
        certain = _certain(part, self.records["m"][rows], self.lacking[rows])
        long_rows.softmax(part, self.records[rows], out=out)
        return certain

    def none(self, share: Array, rows: slice) -> Any:
        """Where the second derivatives of a capped logit are 0, whatever the logit is."""
        return self.flat[rows, None] & (share == 0)

    def slope(self, probs: Array, share: Array, rows: slice, certain: tuple[Array, Array], out: Array) -> None:
        """Write C p - share, computed from 1 - p where p > 1/2."""
        at, columns = certain
        np.multiply(probs, self.factor[rows, None], out=out)
        out -= share
        above = (self.whole[rows][at] - share[at, columns]) + self.more[rows][at]
        out[at, columns] = above - self.lacking[rows][at] * self.factor[rows][at]


def shares_slope(
    x: Array, records: Array, shares: Shares, z_loss: Array, weights: Array, dtypes: Any, cap: Any = np.inf
) -> Array:
    """weights (C p - share) of a piece, times the derivatives of the capped logits."""
    result = np.empty(x.shape, dtypes[1])
    with np.errstate(all="ignore"):
        curve = Curve(records, records["whole"] + records["whole_low"], z_loss)
        for rows, probs, (slope, share) in _slabs(x.shape, dtypes[0], 2):
            certain = curve.probs(_logits(x[rows], dtypes[0], cap, probs), rows, probs)
            shares.write(rows, share)
            curve.slope(probs, share, rows, certain, slope)
            if cap != np.inf:
                slope *= _falling(x[rows], dtypes[0], cap, probs)
            _put(result, rows, slope, weights)
    return result


# --- products ---------------------------------------------------------------------------------------------------


def entry_record(x: Array, v: Array, dtype: Any, beta: Beta, others: bool, cap: Any = np.inf) -> Array:
    """The records of a piece with `ENTRY`, or `OTHERS`; with a cap, of the capped logits and their tangent."""
    result = np.zeros(len(x), record_dtype(dtype, OTHERS if others else ENTRY))
    with np.errstate(all="ignore"):
        for rows, first, memory in _slabs(x.shape, dtype, 2 if others else 0):
            part = _logits(x[rows], dtype, cap, first)
            summaries = long_rows.summarize(part, beta)
            _set_summaries(result[rows], summaries)
            at = _greatest(part)
            result["entry"][rows][at[0]] = v[rows][at]
            if cap != np.inf and at[0].size:
                there = x[rows][at][:, None]
                result["entry"][rows][at[0]] *= _falling(there, dtype, cap, np.empty(there.shape, dtype))[:, 0]
            if others:
                vector, one = memory
                vector[...] = v[rows]
                vector[at] = 0
                one[...] = 1
                result["others"][rows], result["others_low"][rows] = inner(vector, one)
    return result


class Direction:
    """The vector v of a product with the Jacobian of softmax, or p - v, the difference of a squared error.

    It is measured from `centre`, its value at a class with p > 1/2, or 0. If x holds probabilities, `records` is
    None. `beta` is 1/T as kernels take it, or None. With a `cap`, p and v are those of the capped logits.
    """

    def __init__(
        self,
        x: Array,
        v: Array,
        records: Any,
        dtype: Any,
        beta: Beta = None,
        error: bool = False,
        cap: Any = np.inf,
    ) -> None:
        self.x, self.v, self.records, self.dtype, self.beta, self.error = x, v, records, dtype, beta, error
        self.cap = cap
        if records is None:
            self.centre, self.lacking = np.zeros(len(x)), np.empty(0)
            return
        self.lacking = long_rows.remainder(records).astype(np.float64)
        with np.errstate(all="ignore"):
            there = (1 - records["entry"]) - self.lacking if error else records["entry"]
            self.centre = np.where((self.lacking < 0.5) & np.isfinite(there), there, 0)

    def slabs(self, count: int) -> Iterator[tuple[slice, Array, list[Array]]]:
        """Some rows at a time, their probabilities, and float64 arrays of which the first holds v."""
        for rows, probs, memory in _slabs(self.x.shape, self.dtype, count):
            if not self.error:
                self.write(rows, memory[0], probs)
            part = _logits(self.x[rows], self.dtype, self.cap, probs)
            if self.records is None:
                probs[...] = part
            else:
                long_rows.softmax(part, self.records[rows], self.beta, out=probs)
                if self.error:
                    np.subtract(probs, self.v[rows], out=memory[0])
                    at, columns = _certain(part, self.records["m"][rows], self.lacking[rows])
                    memory[0][at, columns] = self.centre[rows][at]
            yield rows, probs, memory

    def write(self, rows: slice, out: Array, memory: Array) -> None:
        """v of some rows, in float64; `memory` is overwritten."""
        out[...] = self.v[rows]
        if self.cap != np.inf:
            out *= _falling(self.x[rows], self.dtype, self.cap, memory)

    def about(self, rows: slice, mean: tuple[Array, Array], v: Array) -> None:
        """Subtract p.v from the vector of some rows."""
        v -= self.centre[rows, None]
        v -= mean[0][rows, None]
        v -= mean[1][rows, None]

    def sums(self) -> tuple[Array, Array]:
        """sum_j p_j (v_j - centre) of the piece as pairs, and sum_j v_j**2 for an error, else of zeros."""
        means, squares = np.zeros((2, len(self.x))), np.zeros((2, len(self.x)))
        with np.errstate(all="ignore"):
            for rows, probs, (v, p) in self.slabs(2):
                if self.error:
                    squares[:, rows] = inner(v, v)
                v -= self.centre[rows, None]
                p[...] = probs
                means[:, rows] = inner(p, v)
        return means, squares

    def product(
        self, mean: tuple[Array, Array], weights: Any, temperature: float, dtype: Any, times_p: bool
    ) -> Array:
        """weights p (v - p.v) / T from the sums over the whole rows; without p unless `times_p`."""
        result = np.empty(self.x.shape, dtype)
        with np.errstate(all="ignore"):
            for rows, probs, (v,) in self.slabs(1):
                self.about(rows, mean, v)
                if times_p:
                    v *= probs
                if temperature != 1:
                    v /= temperature
                if weights is None:
                    result[rows] = v
                else:
                    _put(result, rows, v, weights)
        return result


def _bend(x: Array, dtype: Any, cap: Any, memory: Array, out: Array) -> None:
    """Multiply by the second derivatives of the capped logits over the first ones, -2 tanh(x/cap)/cap."""
    out *= -2 / float(cap)
    out *= _logits(x, dtype, cap, memory)
    out /= float(cap)


def shares_product(
    direction: Direction,
    mean: tuple[Array, Array],
    shares: Shares,
    whole: Array,
    z_loss: Array,
    weights: Array,
    dtype: Any,
) -> Array:
    """weights times the product of a tangent with the Hessian of `kernels.capped`, from the sums of whole rows."""
    x, kind, cap = direction.x, direction.dtype, direction.cap
    result = np.empty(x.shape, dtype)
    with np.errstate(all="ignore"):
        curve = Curve(direction.records, whole, z_loss)
        shift = _product(direction.centre + mean[0] + mean[1], 2 * z_loss)
        for rows, probs, (value, slope, share) in _slabs(x.shape, kind, 3):
            direction.write(rows, value, probs)
            direction.about(rows, mean, value)
            value[curve.flat[rows]] = 0
            certain = curve.probs(_logits(x[rows], kind, cap, probs), rows, probs)
            probs[curve.flat[rows]] = 0
            value *= curve.factor[rows, None]
            value += shift[rows, None]
            value *= probs
            if cap != np.inf:
                shares.write(rows, share)
                curve.slope(probs, share, rows, certain, slope)
                slope *= direction.v[rows]
                _bend(x[rows], kind, cap, probs, slope)
                value += slope
                value *= _falling(x[rows], kind, cap, probs)
                value[curve.none(share, rows)] = 0
            _put(result, rows, value, weights)
    return result


def log_softmax_vjp(x: Array, v: Array, records: Array, beta: Beta, temperature: float, dtypes: Any) -> Array:
    """(v - p sum(v)) / T of a piece, at a class with p > 1/2 from 1 - p and the other entries of v."""
    result = np.empty(x.shape, dtypes[1])
    lacking = long_rows.remainder(records).astype(np.float64)
    with np.errstate(all="ignore"):
        others = records["others"] + records["others_low"]
        whole = others + records["entry"]
        for rows, probs, (value,) in _slabs(x.shape, dtypes[0], 1):
            part = _cast(x[rows], dtypes[0])
            long_rows.softmax(part, records[rows], beta, out=probs)
            np.multiply(probs, whole[rows, None], out=value)
            np.subtract(v[rows], value, out=value)
            at, columns = _certain(part, records["m"][rows], lacking[rows])
            inside = probs[at, columns] * others[rows][at]
            value[at, columns] = lacking[rows][at] * v[rows][at, columns] - inside
            if temperature != 1:
                value /= temperature
            result[rows] = value
    return result


def variance(x: Array, records: Array, weights: Array, dtypes: Any) -> Array:
    """weights p (1 - p) of a piece."""
    result = np.empty(x.shape, dtypes[1])
    lacking = long_rows.remainder(records).astype(np.float64)
    with np.errstate(all="ignore"):
        for rows, probs, (value,) in _slabs(x.shape, dtypes[0], 1):
            part = _cast(x[rows], dtypes[0])
            long_rows.softmax(part, records[rows], out=probs)
            _others(probs, lacking[rows], _certain(part, records["m"][rows], lacking[rows]), value)
            value *= probs
            _put(result, rows, value, weights)
    return result


def _others(probs: Array, lacking: Array, certain: tuple[Array, Array], out: Array) -> None:
    """Write 1 - p."""
    np.subtract(1.0, probs, out=out, dtype=np.float64)
    out[certain] = lacking[certain[0]]


def shares_variance(
    x: Array,
    records: Array,
    shares: Shares,
    whole: Array,
    z_loss: Array,
    weights: Array,
    dtypes: Any,
    cap: Any,
) -> Array:
    """weights times the diagonal of the Hessian of `kernels.capped`."""
    result = np.empty(x.shape, dtypes[1])
    with np.errstate(all="ignore"):
        curve = Curve(records, whole, z_loss)
        for rows, probs, (value, slope, share) in _slabs(x.shape, dtypes[0], 3):
            certain, none = curve.probs(_logits(x[rows], dtypes[0], cap, probs), rows, probs), None
            probs[curve.flat[rows]] = 0
            if cap != np.inf:
                shares.write(rows, share)
                curve.slope(probs, share, rows, certain, slope)
                none = curve.none(share, rows)
            _others(probs, curve.lacking[rows], certain, value)
            value *= curve.factor[rows, None]
            if z_loss.any():
                np.multiply(probs, 2 * z_loss[rows, None], out=share)
                value += share
            value *= probs
            if cap != np.inf:
                _bend(x[rows], dtypes[0], cap, probs, slope)
                first = _falling(x[rows], dtypes[0], cap, probs)
                value *= first
                value += slope
                value *= first
                value[none] = 0
            _put(result, rows, value, weights)
    return result
