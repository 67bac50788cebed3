"""Products of the Hessian of a linear cross-entropy, in the blocks of `linear`.

Blocks of rows with all classes take three products of matrices: the logits, unless they are given, their tangents,
and the sum over the rows. If too few rows fit, the classes are cut, too. The mean of the tangents of a row then
comes from a first pass over all blocks (`linear_pieces.Curves`), and the result from a second one: five products.
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
    ClassBlocks,
    GradientSums,
    Linear,
    LinearGradients,
    Logits,
    Rows,
    beside_blas,
    block_rows,
    class_blocks,
    finished,
    returned_dtype,
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
