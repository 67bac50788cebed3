"""Products of the Hessian of a linear cross-entropy, in the blocks of `linear`.

Blocks of rows with all classes take three products of matrices: the logits, unless they are given, their tangents,
and the sum over the rows. If too few rows fit, the classes are cut, too. The mean of the tangents of a row then
comes from a first pass over all blocks (`linear_pieces.Curves`), and the result from a second one: five products.

The operators for PyTorch and JAX differentiate with respect to features, too. Their products, with the Hessian
(`joint_product`) and with the gradients of the rows (`row_products`), are in blocks of rows with all classes.
"""

import math
import operator
from copy import copy
from typing import Any

import numpy as np

from fastsoftmax._vectors import CURVE_PARTS
from fastsoftmax.arrays.blocks import NO_ROOM, Array, kernel_weights, named, real_array
from fastsoftmax.arrays.lazy import backend_for
from fastsoftmax.arrays.linear import (
    BLOCK_BYTES,
    ClassBlocks,
    GradientSums,
    Linear,
    LinearGradients,
    Logits,
    Rows,
    beside_blas,
    block_loss,
    block_rows,
    class_blocks,
    finished,
    returned_dtype,
    times_weights,
    wanted_gradients,
)
from fastsoftmax.arrays.linear_pieces import Curves
from fastsoftmax.arrays.losses import room_for_rows
from fastsoftmax.arrays.options import LossOptions
from fastsoftmax.arrays.threads import run
from fastsoftmax.machine.entry import entry

FEW_ROWS = 32
"""The classes are cut if half of the workspace holds fewer rows of all of them than this."""
PRODUCTS = ("weight", "bias")


def hessian_product(
    function: str,
    features: Any,
    weight: Any,
    targets: Any,
    tangent: Any,
    bias: Any,
    tangent_bias: Any,
    logits: Any,
    options: LossOptions,
    block_bytes: Any,
) -> LinearGradients:
    """The product of the Hessian with respect to weight and bias with the tangents of both."""
    operands = features, weight, targets, tangent, bias, tangent_bias, logits
    if backend := backend_for(*operands, *options):
        lazy: LinearGradients = backend(
            function, *operands, axis=-1, out=None, options=options, block_bytes=block_bytes
        )
        return lazy
    linear = Linear(function, features, weight, targets, bias, options)
    know(linear, logits)
    along = tangents(linear, tangent, tangent_bias)
    block_rows(function, linear.classes, linear.dtype.itemsize, block_bytes)
    of_weight, of_bias = product_parts(linear, along, block_bytes)
    kind, kind_of_bias = returned_dtypes(linear, along)
    if of_bias is not None:
        of_bias = finished(of_bias, (linear.classes,), kind_of_bias)
    return LinearGradients(None, finished(of_weight, linear.weight.shape, kind), of_bias)


def know(linear: Linear, logits: Any) -> None:
    """Take the logits, unless they are None, instead of computing them; ValueError if they have another shape."""
    if logits is None:
        return
    array, expected = real_array(linear.function, "logits", logits), (*linear.row_shape, linear.classes)
    if array.shape != expected:
        raise ValueError(f"{named(linear.function, 'logits')} has shape {array.shape}, expected {expected}")
    linear.known = Rows(array)


def tangents(linear: Linear, tangent: Any, tangent_bias: Any) -> Linear:
    """The same features with the tangents as weights and bias; ValueError if these have other shapes."""
    function, along = linear.function, copy(linear)
    along.known = None
    along.weight = real_array(function, "tangent", tangent)
    if along.weight.shape != linear.weight.shape:
        shape = linear.weight.shape
        raise ValueError(f"{named(function, 'tangent')} has shape {along.weight.shape}, expected {shape}")
    along.bias = None if tangent_bias is None else real_array(function, "tangent_bias", tangent_bias)
    if along.bias is not None and along.bias.shape != (linear.classes,):
        prefix = named(function, "tangent_bias")
        raise ValueError(f"{prefix} has shape {along.bias.shape}, expected ({linear.classes},)")
    return along


def returned_dtypes(linear: Linear, along: Linear) -> tuple[Any, Any]:
    """The dtypes of the products for weight and bias; None for the bias if neither it nor its tangent is given."""
    bias = along.bias if linear.bias is None else linear.bias
    return returned_dtype(linear.weight), None if bias is None else returned_dtype(bias)


def product_parts(linear: Linear, along: Linear, block_bytes: Any) -> tuple[Array, Array | None]:
    """The products for weight and bias (or None), before they are rounded to the dtypes of the results.

    With the tangents T = X tangent.T + tangent_bias of the logits and their product U with the Hessians of the
    rows, they are U.T X and the sum of the rows of U.
    """
    with_bias = linear.bias is not None or along.bias is not None
    half = max(1, operator.index(block_bytes) // 2)
    wanted = PRODUCTS if with_bias else PRODUCTS[:1]
    extent, other = (class_blocks(one, half, wanted, FEW_ROWS) for one in (linear, along))
    if extent is not None and other is not None:  # one of the weights may be converted, in smaller parts
        return _in_blocks_of_classes(linear, along, min(extent, other), with_bias)
    return _in_blocks_of_rows(linear, along, half, with_bias)


def _in_blocks_of_rows(linear: Linear, along: Linear, half: int, with_bias: bool) -> tuple[Array, Array | None]:
    """The products from blocks of rows with all classes."""
    logits, directions = Logits(linear, half), Logits(along, half)
    given, dtype = linear.given, linear.dtype
    factors, scale = given.factors(), linear.options.scale(given.divisor, dtype)
    sums = GradientSums(linear, linear.classes, True, with_bias, linear.count <= logits.step)
    for start in logits.starts():
        where = linear.rows_of(start, min(start + logits.step, linear.count))
        block = linear.block(where)
        with np.errstate(all="ignore"):
            z, t = logits.of(block, where), directions.of(block, where)
            heights = kernel_weights(factors[where] if factors.size else None, dtype)
            with beside_blas():
                _curve(linear, z, t, where, heights, scale)
            sums.add(z, block, [slice(0, linear.classes)])
    return sums.results()


def _curve(linear: Linear, z: Array, t: Array, where: Any, factors: Array, scale: tuple[Any, Any]) -> None:
    """Replace the logits of a block by the products of the Hessians of their rows with t."""
    given, dtype, count = linear.given, linear.dtype, len(z)
    block, along = (array.reshape(count, linear.classes, 1) for array in (z, t))
    if given.regularization is None:
        kernel = entry("derivatives.softmax_product")
        run(kernel, count, 2 * z.size, lambda: NO_ROOM[dtype], block, along, block, False, None, None, factors)
        return
    labels = np.ascontiguousarray(linear.labels[where], np.int64)
    weights = kernel_weights(None if linear.row_weights is None else linear.row_weights[where], dtype)
    arguments = (block, along, None, *given.shares(labels), weights, factors, block, *scale, *given.regularization)
    run(entry("capped.product"), count, 8 * z.size, room_for_rows(linear.problem, CURVE_PARTS), *arguments)


def _in_blocks_of_classes(
    linear: Linear, along: Linear, extent: tuple[int, int], with_bias: bool
) -> tuple[Array, Array | None]:
    """The products from a pass over blocks of classes for the sums of the rows, and a second one."""
    blocks, directions = ClassBlocks(linear, extent), ClassBlocks(along, extent)
    curves = Curves(*linear.counting_targets())
    spare = [blocks.spare(), blocks.spare()] if curves.cap < math.inf else []
    with np.errstate(all="ignore"):
        for these in blocks.classes:
            part, part_along = blocks.part(these), directions.part(these)
            for where in blocks.rows:
                features = blocks.features(where)
                a = blocks.of(features, part, where, these)
                t = directions.of(features, part_along, where, these)
                with beside_blas():
                    curves.uncapped(a, t)
                    curves.add_tangents(curves.capped(a, a), t, where, these)
        curves.finish_tangents(linear.options.scale(linear.given.divisor, linear.dtype))
    weight = np.empty(linear.weight.shape, linear.dtype)
    bias = np.empty(linear.classes, linear.dtype) if with_bias else None
    for these in blocks.classes:
        part, part_along, count = blocks.part(these), directions.part(these), these.stop - these.start
        sums = GradientSums(linear, count, True, with_bias, len(blocks.rows) == 1)
        with np.errstate(all="ignore"):
            for where in blocks.rows:
                features = blocks.features(where)
                a = blocks.of(features, part, where, these)
                t = directions.of(features, part_along, where, these)
                z, g = [one[: a.size].reshape(a.shape) for one in spare] or (a, None)
                with beside_blas():
                    curves.product(a, curves.capped(a, z), t, g, where, these)
                sums.add(t, features, [slice(0, count)])
            weight[these], found = sums.results()
            if bias is not None:
                bias[these] = found
    return weight, bias


# --- derivatives with respect to all arguments --------------------------------------------------------------


class _Directions:
    """The tangents of the logits X W.T + b along those of features, weight and bias: dX W.T + X dW.T + db.

    None stands for zeros.
    """

    def __init__(self, linear: Linear, along: LinearGradients, block_bytes: int) -> None:
        of_features, of_weight, of_bias = along
        if of_weight is None and (of_bias is not None or of_features is None):
            of_weight = np.broadcast_to(linear.dtype.type(0), linear.weight.shape)
        self.straight: Logits | None = None
        self.moved: Logits | None = None
        self.weights = None  # the tangents of the weights, if there are any
        if of_weight is not None:
            self.straight = Logits(tangents(linear, of_weight, of_bias), block_bytes)
            self.weights = None if along.weight is None else self.straight.weights
        if of_features is not None:
            moved = copy(linear)
            moved.source, moved.bias = Rows(real_array(linear.function, "tangent of features", of_features)), None
            self.moved = Logits(moved, block_bytes)

    def of(self, features: Array, where: Any) -> tuple[Array, Array | None]:
        """Those of the rows `where`, in the workspace, and the tangents of their features (or None)."""
        if self.moved is None:
            assert self.straight is not None
            return self.straight.of(features, where), None
        rows = self.moved.linear.block(where)
        found = self.moved.of(rows, where)
        if self.straight is not None:
            found += self.straight.of(features, where)
        return found, rows


def joint_product(
    function: str,
    features: Any,
    weight: Any,
    targets: Any,
    bias: Any,
    along: LinearGradients,
    options: LossOptions,
    wrt: Any,
    block_bytes: int = BLOCK_BYTES,
) -> LinearGradients:
    """The product of the Hessian with respect to features, weight and bias with the tangents of these.

    The parts that `wrt` names, None for the others. With the gradients G of the logits X W.T + b, their tangents
    (`_Directions`), and the products U of the Hessians of the rows with these, they are U W + G dW,
    U.T X + G.T dX, and the sum of the rows of U.
    """
    wanted = wanted_gradients(function, wrt, bias)
    linear = Linear(function, features, weight, targets, bias, options)
    logits = Logits(linear, block_bytes // 4)
    directions = _Directions(linear, along, block_bytes // 4)
    dtype, count, classes, given = linear.dtype, linear.count, linear.classes, linear.given
    factors, scale = given.factors(), options.scale(given.divisor, dtype)
    with_x, with_w = "features" in wanted, "weight" in wanted
    turned = directions.weights if with_x else None
    crossed = with_w and along.features is not None
    slopes = np.zeros((linear.rows, linear.width), dtype) if with_x else None
    single, every = count <= logits.step, [slice(0, classes)]
    sums = GradientSums(linear, classes, with_w, "bias" in wanted, single)
    more = GradientSums(linear, classes, crossed, False, single)
    for start in logits.starts():
        where = linear.rows_of(start, min(start + logits.step, count))
        block = linear.block(where)
        with np.errstate(all="ignore"):
            z = logits.of(block, where)
            t, moved = directions.of(block, where)
            g = z.copy() if crossed or turned is not None else None
            heights = kernel_weights(factors[where] if factors.size else None, dtype)
            with beside_blas():
                if g is not None:
                    block_loss(linear, g, where, scale, gradient=True)
                _curve(linear, z, t, where, heights, scale)
            if slopes is not None:
                slopes[where] = times_weights(logits.weights.part, z, logits.weights.parts, linear.width)
                if turned is not None and g is not None:
                    slopes[where] += times_weights(turned.part, g, turned.parts, linear.width)
            sums.add(z, block, every)
            if crossed and g is not None and moved is not None:
                more.add(g, moved, every)
    of_weight, of_bias = sums.results()
    if crossed:
        of_weight = of_weight + more.results()[0]
    return linear.finished(slopes, of_weight, of_bias)


def row_products(
    function: str,
    features: Any,
    weight: Any,
    targets: Any,
    bias: Any,
    along: LinearGradients,
    options: LossOptions,
    block_bytes: int = BLOCK_BYTES,
) -> Array:
    """The derivative of the loss of each row along the tangents of features, weight and bias."""
    linear = Linear(function, features, weight, targets, bias, options)
    logits = Logits(linear, block_bytes // 4)
    directions = _Directions(linear, along, block_bytes // 4)
    rows, scale = np.zeros(linear.rows, linear.dtype), options.scale(linear.given.divisor, linear.dtype)
    for start in logits.starts():
        where = linear.rows_of(start, min(start + logits.step, linear.count))
        block = linear.block(where)
        with np.errstate(all="ignore"):
            g, (t, _) = logits.of(block, where), directions.of(block, where)
            with beside_blas():
                block_loss(linear, g, where, scale, gradient=True)
            rows[where] = np.einsum("nk,nk->n", g, t)
    return rows.reshape(linear.row_shape).astype(linear.result_dtype, copy=False)
