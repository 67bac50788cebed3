"""The driver of losses of logits that are never held: rows of features times the weights of the classes.

The rows go through in blocks with all classes. A block is a product by NumPy's BLAS into the workspace, the loss
and the gradient with respect to these logits in place, and two more products. Where the workspace is too small for
that (`class_blocks`), the classes are cut, too: a first pass over all blocks for the sums over the classes of each
row (`linear_pieces`), and a second one for the gradients, which makes four products. Shapes, dtypes, options and
`block_bytes` alone decide. Rows that do not count are left out before the first product. Products with the Hessian
are in `linear_hessian`.

Sums over the rows of a block are as accurate as BLAS makes them. The blocks are added up in float64 if that takes
little memory, else in the dtype of the computation.

Measured (OpenBLAS, two threads of a Xeon, float32, in units of one ``features @ weight.T``; three products are the
least that loss and gradients can take): 3.0 at (rows, D, K) = (1024, 512, 32768), 3.3 in blocks of 32 MB;
4.0 at (200000, 64, 100), 4.8 in blocks of 512 rows, 4.4 to 5.5 of 16384. OpenBLAS's threads spin for some 100 ms
after a product. The kernel between products on all threads costs 0.2 to 0.7 more than on half of them. In
processor time of one thread of an EPYC with AVX-512: 3.1 at (1024, 512, 16384), 3.3 at (667, 768, 50257), 3.5 at
(50000, 64, 100); the kernel alone 0.05, 0.03 and 0.4.

Cut classes (in brackets: blocks of rows with all classes), in processor time of one thread of an EPYC with
AVX-512, by how many rows of all classes fit into the workspace:

    (rows, D, K)        for      32 rows      48           64           96           128
    (512, 256, 262144)  all      3.46 (4.36)               3.77 (3.33)               3.70 (3.01)
    (512, 64, 262144)   all      3.74 (3.89)               3.79 (3.47)               4.33 (3.06)
    (512, 768, 262144)  all      3.72 (4.42)               3.59 (3.35)               3.64 (2.90)
    (768, 256, 50257)   all      4.31 (5.33)  4.15 (4.44)  4.28 (4.11)  3.93 (3.62)  3.93 (3.40)
                        loss     1.04 (2.29)  1.02 (1.81)  1.02 (1.54)  0.99 (1.31)  1.00 (1.21)
    (512, 64, 100000)   Hessian  3.32 (3.72)  3.43 (3.47)  3.63 (2.49)               3.71 (2.81)
    (512, 256, 100000)  Hessian  5.39 (5.25)  4.77 (4.38)  4.90 (3.77)               4.42 (3.32)

Beside time, blocks of classes gain that the sums are in float64, that all weights are read twice only, and that
the workspace need not hold a row.
"""

import math
import operator
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax.arrays import halves
from fastsoftmax.arrays.blocks import (
    NO_ROOM,
    Array,
    Problem,
    kernel_weights,
    named,
    real_array,
    stand_in,
)
from fastsoftmax.arrays.lazy import backend_for
from fastsoftmax.arrays.linear_pieces import Pieces
from fastsoftmax.arrays.losses import room_for_rows
from fastsoftmax.arrays.options import LossOptions, RowTargets, check_labels, reduced
from fastsoftmax.arrays.statistics import EXACT, LabelStatistics, computed
from fastsoftmax.arrays.threads import max_threads, run, threads
from fastsoftmax.arrays.weights import Divisor
from fastsoftmax.machine.entry import entry

BLOCK_BYTES = 128 << 20
"""The default size of the workspace for logits."""
ROWS = 4096
"""A block has at most so many rows: BLAS gains nothing from more, and a longer sum would lose digits."""
FEW_ROWS, FEW_ROWS_OF_LOSS = 64, 256
"""The classes are cut if the workspace holds fewer rows of all of them: for gradients, and for the loss alone."""
FEW_CLASSES = 512
"""A block has so few rows that it could have so many classes. The workspace holds at least two rows of them."""
SCRATCH_BYTES = 2 << 20
"""The size of a part of the weights' gradient that is added at a time, while it is in the cache.

Parts of 512 kB made the product take 1.2 of its time with 667 rows of 768 features (1.03 with 2 MB).
"""
GROUP_BYTES = 512 << 10
"""The weights of a group of classes that is skipped or not take so much memory."""
WIDE_BYTES = 32 << 20
"""The weights' gradient is added up in float64 if that takes no more than this."""
WEIGHT_BYTES = 4 << 20
"""Weights that have to be converted are converted in parts of this size."""
WRT = ("features", "weight", "bias")


def beside_blas() -> Any:
    """Half of the threads: BLAS's own spin on the other processors for a while after a product."""
    return threads(max(1, max_threads() // 2))


class LinearGradients(NamedTuple):
    """The gradients of a loss of features @ weight.T + bias; None for what was not asked for."""

    features: Any
    weight: Any
    bias: Any


def _computed_in(array: Array) -> Any:
    """The dtype of the computation that an array asks for."""
    return np.float32 if array.dtype.name in ("float16", "float32", "bfloat16") else np.float64


def _resolution(dtype: Any) -> float:
    """The difference of 1 and the next number."""
    return 2.0**-7 if dtype.name == "bfloat16" else float(np.finfo(dtype).eps)


def returned_dtype(array: Array) -> Any:
    """The dtype of results that have the dtype of an argument."""
    return np.dtype(np.float64) if array.dtype.kind in "biu" else array.dtype.newbyteorder("=")


def _is_matrix(array: Array) -> bool:
    """Whether all axes but the last can be merged without a copy."""
    axes = [(n, stride) for n, stride in zip(array.shape[:-1], array.strides, strict=False) if n > 1]
    return array.size == 0 or all(a == n * b for (_, a), (n, b) in pairwise(axes))


def logits_of(function: str, features: Array, weight: Array, bias: Array | None = None) -> Array:
    """A stand-in for the logits, in the dtype of the losses; ValueError if the shapes do not fit.

    For bfloat16 features it is float32.
    """
    if features.ndim == 0:
        raise ValueError(f"{named(function, 'features')} is 0-d, expected at least one axis")
    width = features.shape[-1]
    if weight.ndim != 2 or weight.shape[1] != width:
        raise ValueError(
            f"{named(function, 'weight')} has shape {weight.shape}, expected (K, {width}) for "
            f"features of shape {features.shape}"
        )
    classes = len(weight)
    if bias is not None and bias.shape != (classes,):
        raise ValueError(f"{named(function, 'bias')} has shape {bias.shape}, expected ({classes},)")
    dtype = np.result_type(*(_computed_in(array) for array in (features, weight, bias) if array is not None))
    if dtype == np.float32 and features.dtype.name == "float16":
        dtype = np.dtype(np.float16)
    return stand_in((*features.shape[:-1], classes), dtype)


class LossParts(NamedTuple):
    """The losses of all rows, and the gradients in the dtype of their sums; None for what is not wanted."""

    rows: Array
    features: Any
    weight: Any
    bias: Any


def check_targets(function: str, labels: Array, shape: tuple[int, ...]) -> None:
    """An error unless these are class indices for features of this shape."""
    if labels.shape != shape[:-1]:
        raise ValueError(
            f"{named(function, 'targets')} has shape {labels.shape}, expected {shape[:-1]} (class "
            f"indices) for features of shape {shape}"
        )
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"{named(function, 'targets')} are class indices and have dtype {labels.dtype}, expected integers"
        )


class Rows:
    """The rows of an array of any layout with at least one axis, which are read in blocks."""

    def __init__(self, array: Array) -> None:
        self.array, self.shape = array, array.shape[:-1]
        size = math.prod(self.shape), array.shape[-1]
        self.matrix = array.reshape(size) if _is_matrix(array) else None

    def of(self, where: Any, columns: slice = slice(None)) -> Array:
        """Some rows (a slice or their numbers), and some of their columns."""
        if self.matrix is not None:
            return self.matrix[where, columns]
        rows = np.arange(where.start, where.stop) if isinstance(where, slice) else where
        index: tuple[Any, ...] = (*np.unravel_index(rows, self.shape), columns)
        found: Array = self.array[index]
        return found


class Linear:
    """Features (rows, D), weights (K, D), bias and labels of one call, checked.

    `kept` are the numbers of the rows that count, None if all do. `given` are the `RowTargets` of all rows. A
    `divisor` is passed if the mean has other rows, too. `known` are the logits, if they have been computed before.
    """

    def __init__(
        self,
        function: str,
        features: Any,
        weight: Any,
        targets: Any,
        bias: Any,
        options: LossOptions,
        divisor: Divisor | None = None,
    ) -> None:
        self.function = function
        self.features = real_array(function, "features", features)
        self.weight = real_array(function, "weight", weight)
        self.bias = None if bias is None else real_array(function, "bias", bias)
        logits = logits_of(function, self.features, self.weight, self.bias)
        self.problem = Problem(function, logits, -1, last=True)
        self.row_shape, self.width = self.features.shape[:-1], self.features.shape[-1]
        self.classes, self.dtype, self.result_dtype = len(self.weight), self.problem.dtype, logits.dtype
        if self.features.dtype.name == "bfloat16" and self.dtype == np.float32:
            self.result_dtype = self.features.dtype
        options.check_reduction(function)
        options.regularization(function)
        labels = real_array(function, "targets", targets)
        check_targets(function, labels, self.features.shape)
        options.ignored_index(function)
        ignored = check_labels(function, labels, self.classes, options.ignore_index)
        self.given = RowTargets(self.problem, labels, ignored, options, divisor)
        self.options = options
        self.rows = self.problem.rows
        self.labels = labels.reshape(-1)
        self.row_weights = self.given.kernel_rows(self.given.row_weights)
        self.kept = self._counting(ignored)
        self.source = Rows(self.features)
        self.known: Rows | None = None

    def _counting(self, ignored: Array | None) -> Array | None:
        """The numbers of the rows that count; None if all do."""
        if ignored is None and self.row_weights is None:
            return None
        out = np.zeros(self.rows, bool) if ignored is None else ignored.reshape(-1)
        if self.row_weights is not None:
            out = out | (self.row_weights == 0)
        return np.flatnonzero(~out) if out.any() else None

    @property
    def count(self) -> int:
        """How many rows count."""
        return self.rows if self.kept is None else len(self.kept)

    def rows_of(self, start: int, stop: int) -> Any:
        """The rows start .. stop of those that count, as an index."""
        return slice(start, stop) if self.kept is None else self.kept[start:stop]

    def counting_targets(self) -> tuple[RowTargets, Array, Array | None]:
        """`given`, and the labels and weights (or None) of the rows that count."""
        kept, weights = self.rows_of(0, self.count), self.row_weights
        labels = np.ascontiguousarray(self.labels[kept], np.int64)
        return self.given, labels, None if weights is None else weights[kept]

    def block(self, where: Any) -> Array:
        """The features of some rows, contiguous, in the dtype of the computation."""
        return halves.contiguous(self.source.of(where), self.dtype)

    def finished(self, *parts: Any) -> LinearGradients:
        """The gradients with respect to features, weight and bias (or None) in the shapes and dtypes of these."""
        arrays: tuple[Any, ...] = (self.features, self.weight, self.bias)
        gradients = [
            None if value is None else finished(value, array.shape, returned_dtype(array))
            for value, array in zip(parts, arrays, strict=True)
        ]
        return LinearGradients(*gradients)

    @property
    def converts(self) -> bool:
        """Whether the weights have another dtype or order than BLAS takes."""
        strides, itemsize, aligned = self.weight.strides, self.dtype.itemsize, self.weight.flags.aligned
        return not (self.weight.dtype == self.dtype and aligned and itemsize in strides and min(strides) > 0)

    def part(self, where: slice) -> Array:
        """The weights of some classes, in the dtype of the computation."""
        part = self.weight[where]
        return halves.contiguous(part, self.dtype) if self.converts else part

    def heaviest(self) -> float:
        """The greatest weight of a row times the greatest of a class."""
        given = (self.row_weights, self.given.class_weights)
        return math.prod([float(one.max(initial=0)) for one in given if one is not None])


def block_rows(function: str, classes: int, itemsize: int, block_bytes: Any) -> int:
    """How many rows of logits fit into the workspace: at least one, at most `ROWS`, whole vectors if possible."""
    if isinstance(block_bytes, bool) or not hasattr(block_bytes, "__index__"):
        raise TypeError(f"{named(function, 'block_bytes')} must be an integer, got {block_bytes!r}")
    if operator.index(block_bytes) < 1:
        raise ValueError(f"{named(function, 'block_bytes')} must be at least 1, got {block_bytes!r}")
    return _whole_vectors(max(1, min(ROWS, operator.index(block_bytes) // max(1, classes * itemsize))))


def _whole_vectors(count: int) -> int:
    """The greatest multiple of 16 that is not greater; smaller numbers than 16 as they are."""
    return count // 16 * 16 if count > 16 else count


class Weights:
    """The weights of the classes in the dtype of the computation: whole, or part by part if converted."""

    def __init__(self, linear: Linear) -> None:
        self.part = linear.part
        self.parts: list[slice] = [slice(0, linear.classes)]
        if linear.converts and linear.weight.size:
            step = max(1, WEIGHT_BYTES // (linear.width * linear.dtype.itemsize))
            self.parts = [slice(k, min(k + step, linear.classes)) for k in range(0, linear.classes, step)]


def dtype_of_sums(shape: tuple[int, ...], dtype: Any) -> Any:
    """The dtype in which gradients of blocks of rows are added up."""
    return np.dtype(np.float64) if math.prod(shape) * 8 <= WIDE_BYTES else dtype


class _Sum:
    """A sum of matrices, one for each block of rows, added part by part; `single`: there is one block."""

    def __init__(self, shape: tuple[int, int], dtype: Any, single: bool) -> None:
        self.total = np.zeros(shape, dtype if single else dtype_of_sums(shape, dtype))
        self.empty = self.total.dtype == dtype  # the first block is written there, which is faster than adding it
        step = _whole_vectors(max(1, SCRATCH_BYTES // max(1, shape[1] * dtype.itemsize)))
        self.scratch = None if single else np.empty((min(step, max(shape[0], 1)), shape[1]), dtype)

    def add(self, slopes: Array, features: Array, where: slice) -> None:
        """Add ``slopes[:, where].T @ features`` to the rows `where`."""
        if self.empty or self.scratch is None:
            np.matmul(slopes[:, where].T, features, out=self.total[where])
            return
        step = len(self.scratch)
        for k in range(where.start, where.stop, step):
            stop = min(k + step, where.stop)
            self.total[k:stop] += np.matmul(slopes[:, k:stop].T, features, out=self.scratch[: stop - k])


class GradientSums:
    """The sums of the gradients of weight and bias of some classes, over blocks of rows.

    With fewer features than classes, a column of ones behind them makes the sum for the bias a part of the same
    product. With more, to copy them would take longer than another product, with ones alone.
    """

    def __init__(self, linear: Linear, classes: int, weight: bool, bias: bool, single: bool) -> None:
        width = linear.width
        self.weight, self.bias, self.joined = weight, bias, weight and bias and width < classes
        columns = [width + 1] if self.joined else [width] * weight + [1] * bias
        self.sums = [_Sum((classes, count), linear.dtype, single) for count in columns]

    def add(self, slopes: Array, features: Array, parts: list[slice]) -> None:
        """Add those of a block of rows, for some parts of the classes."""
        factors = [features] if self.weight else []
        if self.bias:
            ones = np.ones((len(features), 1), features.dtype)
            factors = [np.hstack([features, ones])] if self.joined else [*factors, ones]
        for one, factor in zip(self.sums, factors, strict=True):
            for part in parts:
                one.add(slopes, factor, part)
            one.empty = False

    def results(self) -> tuple[Any, Any]:
        """The gradients of weight and bias, None for what is not wanted."""
        totals = [one.total for one in self.sums]
        bias = totals[-1][:, -1].copy() if self.bias else None
        weight = totals[0] if self.weight else None
        return _without_last_column(totals[0]) if self.joined else weight, bias


def _without_last_column(total: Array) -> Array:
    """The matrix without its last column, contiguous, in the same memory."""
    rows, width = total.shape[0], total.shape[1] - 1
    flat = total.reshape(-1)
    for k in range(0, rows, ROWS):
        stop = min(k + ROWS, rows)
        flat[k * width : stop * width] = total[k:stop, :width].ravel()
    return flat[: rows * width].reshape(rows, width)


def finished(array: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """A gradient in the shape and the dtype of its argument."""
    return halves.converted(array, dtype).reshape(shape)


class Logits:
    """The logits of blocks of rows in one workspace, and the kernels that are run over them."""

    def __init__(self, linear: Linear, block_bytes: Any) -> None:
        self.linear, self.weights = linear, Weights(linear)
        step = block_rows(linear.function, linear.classes, linear.dtype.itemsize, block_bytes)
        count = max(linear.count, 1)
        blocks = -(-count // step)  # as equal as can be: BLAS is slow with a few rows
        self.step = min(step, count, -(-count // (16 * blocks)) * 16)
        self.workspace = np.empty((self.step, linear.classes), linear.dtype)
        self.bias = None if linear.bias is None else np.ascontiguousarray(linear.bias, linear.dtype)

    def starts(self) -> range:
        """The first row of each block."""
        return range(0, self.linear.count, self.step)

    def of(self, features: Array, where: Any) -> Array:
        """The logits of the rows `where`, in the workspace."""
        block = self.workspace[: len(features)]
        if self.linear.known is not None:
            block[...] = self.linear.known.of(where)
            return block
        for where in self.weights.parts:
            np.matmul(features, self.weights.part(where).T, out=block[:, where])
        if self.bias is not None:
            np.add(block, self.bias, out=block)
        return block


class ClassBlocks:
    """The logits of blocks of rows and classes, `extent`, in one workspace."""

    def __init__(self, linear: Linear, extent: tuple[int, int]) -> None:
        (step, width), count = extent, linear.count
        self.linear = linear
        self.rows = [slice(start, min(start + step, count)) for start in range(0, count, step)]
        self.classes = [slice(k, min(k + width, linear.classes)) for k in range(0, linear.classes, width)]
        self.size = step * width
        self.workspace = self.spare()

    def spare(self) -> Array:
        """Memory for a block."""
        return np.empty(self.size, self.linear.dtype)

    def features(self, where: slice) -> Array:
        """The features of some of the rows that count."""
        return self.linear.block(self.linear.rows_of(where.start, where.stop))

    def part(self, these: slice) -> Array | None:
        """The weights of some classes; None if the logits are known."""
        return self.linear.part(these) if self.linear.known is None else None

    def of(self, features: Array, part: Array | None, where: slice, these: slice) -> Array:
        """The logits of a block, in the workspace; `part` are the weights of these classes."""
        shape, linear = (len(features), these.stop - these.start), self.linear
        z, bias = self.workspace[: math.prod(shape)].reshape(shape), linear.bias
        if linear.known is not None:
            z[...] = linear.known.of(linear.rows_of(where.start, where.stop), these)
            return z
        assert part is not None
        np.matmul(features, part.T, out=z)
        if bias is not None:
            np.add(z, bias[these].astype(z.dtype), out=z)
        return z


def loss(
    function: str,
    features: Any,
    weight: Any,
    targets: Any,
    bias: Any,
    options: LossOptions,
    block_bytes: Any,
    wrt: Any = (),
    skip: bool = False,
) -> tuple[Any, LinearGradients]:
    """The loss, and the gradients with respect to what `wrt` names."""
    operands = features, weight, targets, bias
    if backend := backend_for(*operands, *options):
        found: tuple[Any, LinearGradients] = backend(
            function, *operands, axis=-1, out=None, options=options, block_bytes=block_bytes, wrt=wrt, skip=skip
        )
        return found
    linear, parts = loss_parts(function, *operands, options, block_bytes, wrt, skip)
    return _reduced(linear, parts.rows), linear.finished(*parts[1:])


def loss_parts(
    function: str,
    features: Any,
    weight: Any,
    targets: Any,
    bias: Any,
    options: LossOptions,
    block_bytes: Any,
    wrt: Any = (),
    skip: bool = False,
    divisor: Divisor | None = None,
) -> tuple[Linear, LossParts]:
    """The losses of rows, and the gradients, before they are rounded to the dtypes of the results.

    A `divisor` is passed if the mean has other rows, too.
    """
    wanted = wanted_gradients(function, wrt, bias)
    linear = Linear(function, features, weight, targets, bias, options, divisor)
    scale = options.scale(linear.given.divisor, linear.dtype)
    least = None
    if skip:
        least = _resolution(returned_dtype(linear.features)) / 16 * abs(float(scale[0])) * linear.heaviest()
    extent = class_blocks(linear, block_bytes, wanted, FEW_ROWS if wanted else FEW_ROWS_OF_LOSS)
    if extent is None:
        return linear, _in_blocks_of_rows(linear, block_bytes, wanted, scale, least)
    return linear, _in_blocks_of_classes(linear, extent, wanted, scale, least)


def _in_blocks_of_rows(
    linear: Linear, block_bytes: Any, wanted: tuple[str, ...], scale: tuple[Any, Any], least: float | None
) -> LossParts:
    """The loss and its gradients from blocks of rows with all classes."""
    logits = Logits(linear, block_bytes)
    dtype, width, rows = linear.dtype, linear.width, np.zeros(linear.rows, linear.dtype)
    slopes = np.zeros((linear.rows, width), dtype) if "features" in wanted else None
    single = linear.count <= logits.step
    sums = GradientSums(linear, linear.classes, "weight" in wanted, "bias" in wanted, single)
    for start in logits.starts():
        where = linear.rows_of(start, min(start + logits.step, linear.count))
        block = linear.block(where)
        with np.errstate(all="ignore"):
            z = logits.of(block, where)
            with beside_blas():
                rows[where] = block_loss(linear, z, where, scale, bool(wanted))
            if wanted:
                parts = _parts(linear, logits.weights.parts, z, least)
                if slopes is not None:
                    slopes[where] = times_weights(logits.weights.part, z, parts, width)
                sums.add(z, block, parts)
    return LossParts(rows, slopes, *sums.results())


def class_blocks(linear: Linear, block_bytes: Any, wanted: tuple[str, ...], few: int) -> tuple[int, int] | None:
    """The rows and classes of a block where the classes are cut; None for blocks of rows with all classes.

    They are cut if a few rows of all of them do not fit into the workspace. A block then has as many rows as
    one of few classes, since the features, and what is known of the rows, are read again for each block of
    classes, the weights only once. It has so many classes that the sums over the rows fit into a quarter of the
    workspace in float64, and converted weights into `WEIGHT_BYTES`.
    """
    itemsize, count = linear.dtype.itemsize, max(linear.count, 1)
    fitting = block_rows(linear.function, linear.classes, itemsize, block_bytes)
    if fitting >= min(few, count) or linear.classes <= FEW_CLASSES:
        return None
    regularization = linear.given.regularization
    room = max(operator.index(block_bytes) // itemsize, 2 * FEW_CLASSES)
    if wanted and regularization is not None and regularization[1] < math.inf:
        room //= 2
    rows = min(ROWS, count, max(1, room // FEW_CLASSES))
    classes = room // rows
    if columns := linear.width * ("weight" in wanted) + ("bias" in wanted):
        classes = min(classes, operator.index(block_bytes) // (32 * columns))
    if linear.converts and linear.width:
        classes = min(classes, WEIGHT_BYTES // (linear.width * itemsize))
    return rows, min(max(classes // 16, 1) * 16, linear.classes)


def _in_blocks_of_classes(
    linear: Linear, extent: tuple[int, int], wanted: tuple[str, ...], scale: tuple[Any, Any], least: float | None
) -> LossParts:
    """The loss from a pass over blocks of classes, and its gradients from a second one."""
    blocks = ClassBlocks(linear, extent)
    dtype, width, kept = linear.dtype, linear.width, linear.rows_of(0, linear.count)
    pieces = Pieces(*linear.counting_targets())
    capped = blocks.spare() if wanted and pieces.cap < math.inf else None
    with np.errstate(all="ignore"):
        for these in blocks.classes:
            part = linear.part(these)
            for where in blocks.rows:
                z = blocks.of(blocks.features(where), part, where, these)
                with beside_blas():
                    pieces.add(pieces.capped(z, z), where, these)
        rows = np.zeros(linear.rows, dtype)
        rows[kept] = pieces.finish(scale)
    if not wanted:
        return LossParts(rows, None, None, None)
    slopes = np.zeros((linear.rows, width), dtype) if "features" in wanted else None
    weight = np.empty(linear.weight.shape, dtype) if "weight" in wanted else None
    bias = np.empty(linear.classes, dtype) if "bias" in wanted else None
    for these in blocks.classes:
        part = linear.part(these)
        sums = GradientSums(linear, len(part), weight is not None, bias is not None, len(blocks.rows) == 1)
        with np.errstate(all="ignore"):
            for where in blocks.rows:
                features = blocks.features(where)
                a = blocks.of(features, part, where, these)
                z = a if capped is None else capped[: a.size].reshape(a.shape)
                with beside_blas():
                    pieces.slope(pieces.capped(a, z), where, these, a)
                groups = _parts(linear, [slice(0, len(part))], z, least)
                if slopes is not None:
                    of_all = linear.rows_of(where.start, where.stop)
                    slopes[of_all] += times_weights(part.__getitem__, z, groups, width)
                sums.add(z, features, groups)
            for whole, found in zip((weight, bias), sums.results(), strict=True):
                if whole is not None:
                    whole[these] = found
    return LossParts(rows, slopes, weight, bias)


def wanted_gradients(function: str, wrt: Any, bias: Any) -> tuple[str, ...]:
    """The names in `wrt`, without the bias if there is none."""
    if not isinstance(wrt, (str, tuple, list, set, frozenset)):
        raise TypeError(f"{named(function, 'wrt')} must be a sequence of names, got {wrt!r}")
    names = (wrt,) if isinstance(wrt, str) else tuple(wrt)
    for name in names:
        if name not in WRT:
            raise ValueError(f"{named(function, 'wrt')} may name {', '.join(WRT)}, got {name!r}")
    return tuple(name for name in names if name != "bias" or bias is not None)


def block_loss(linear: Linear, z: Array, where: Any, scale: tuple[Any, Any], gradient: bool) -> Array:
    """The losses of the rows of a block; their gradient with respect to the logits replaces these."""
    given, dtype, count = linear.given, linear.dtype, len(z)
    rows, block = np.empty(count, dtype), z.reshape(count, linear.classes, 1)
    labels = np.ascontiguousarray(linear.labels[where], np.int64)
    weights = kernel_weights(None if linear.row_weights is None else linear.row_weights[where], dtype)
    results = block if gradient else None, rows
    if given.plain:
        kernel = entry("losses.cross_entropy")
        run(kernel, count, 2 * z.size, lambda: NO_ROOM[dtype], block, labels, weights, *results, *scale, False)
        return rows
    arguments = (block, None, *given.shares(labels), weights, *results, *scale)
    if given.regularization is None:
        run(entry("losses.soft_cross_entropy"), count, 2 * z.size, lambda: NO_ROOM[dtype], *arguments)
    else:
        kernel, room = entry("capped.cross_entropy"), room_for_rows(linear.problem, 1)
        run(kernel, count, 4 * z.size, room, *arguments, *given.regularization)
    return rows


def _parts(linear: Linear, every: list[slice], z: Array, least: float | None) -> list[slice]:
    """The parts of the classes with an entry of the gradient of at least this size; `every` if it is None."""
    if least is None:
        return every
    step = max(1, GROUP_BYTES // max(1, linear.width * linear.dtype.itemsize))
    found = []
    for k in range(0, z.shape[1], step):
        part = z[:, k : k + step]
        if not (part.max(initial=0) < least and part.min(initial=0) > -least):
            found.append(slice(k, min(k + step, z.shape[1])))
    return found


def times_weights(weights: Callable[[slice], Array], z: Array, parts: list[slice], width: int) -> Array:
    """The sum of z[:, part] @ weights(part) over the parts."""
    if len(parts) == 1:
        product: Array = np.matmul(z[:, parts[0]], weights(parts[0]))
        return product
    total = np.zeros((len(z), width), z.dtype)
    for part in parts:
        total += np.matmul(z[:, part], weights(part))
    return total


def _reduced(linear: Linear, rows: Array) -> Any:
    """The loss after the reduction, in the dtype of the result."""
    options, divisor, dtype = linear.options, linear.given.divisor, linear.result_dtype
    if options.reduction == "none":
        value = finished(rows, linear.row_shape, dtype)
        return value[()] if value.ndim == 0 else value
    with np.errstate(all="ignore"):
        return dtype.type(reduced(rows, options, divisor, linear.dtype))


def statistics(
    function: str, features: Any, weight: Any, targets: Any, bias: Any, options: LossOptions, block_bytes: Any
) -> LabelStatistics:
    """The `LabelStatistics` of each row."""
    operands = features, weight, targets, bias
    if backend := backend_for(*operands):
        lazy: LabelStatistics = backend(
            function, *operands, axis=-1, out=None, options=options, block_bytes=block_bytes
        )
        return lazy
    linear = Linear(function, features, weight, targets, bias, options)
    if linear.classes > EXACT:
        linear.dtype = np.dtype(np.float64)
    logits = Logits(linear, block_bytes)
    regularization = linear.given.regularization
    floats = np.zeros((3, linear.rows), linear.dtype)
    whole = np.full((2, linear.rows), -1)
    for start in logits.starts():
        where = linear.rows_of(start, min(start + logits.step, linear.count))
        with np.errstate(all="ignore"):
            z = logits.of(linear.block(where), where)
            if regularization is not None:
                cap = regularization[1]
                np.multiply(np.tanh(np.divide(z, cap, out=z), out=z), cap, out=z)
        problem = Problem(function, z, -1)
        labels = np.ascontiguousarray(linear.labels[where], np.int64)
        with beside_blas():
            found = computed(problem, problem.block(), labels, None)
        whole[:, where] = found.rank, found.argmax
        floats[:, where] = found.log_prob, found.entropy, found.logsumexp
    log_prob, entropy, lse = (finished(row, linear.row_shape, linear.result_dtype) for row in floats)
    rank, argmax = (row.reshape(linear.row_shape) for row in whole)
    results = (log_prob, rank, argmax, entropy, lse)
    return LabelStatistics(*[array[()] if array.ndim == 0 else array for array in results])
