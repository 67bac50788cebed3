"""`arrays.weights` for compiled callers: weights of any size, and the divisor of a mean.

The functions are compiled, or return compiled functions. `kind` is the dtype of the weights.
"""

import math
from typing import Any

import numpy as np

from fastsoftmax.arrays.weights import ROOM, normal_divisor
from fastsoftmax.machine.external import external
from fastsoftmax.njit.arguments import Run, compiled, empty, items, merged, readable, writable
from fastsoftmax.njit.generated import count_or_nan, gradient_scale, number

_total, _normal = external("reductions.total", result=True), compiled(normal_divisor)


@compiled
def _shifted(value: Any, exponent: int, kind: Any) -> Any:
    """value * 2**exponent; the smallest number instead of 0 if that underflows."""
    result = kind(math.ldexp(np.float64(value), exponent))
    return np.nextafter(kind(0), kind(1)) if result == 0.0 and value != 0.0 else result


@compiled
def scaled(few: Any, weights: Any, rows: int, exponent: int, kind: Any) -> Any:
    """weights * 2**exponent, in writable memory: in `few` if they fit."""
    room = items(few, rows, kind)
    for i in range(rows):
        room[i] = _shifted(weights[i], exponent, kind) if exponent else weights[i]
    return room


@compiled
def scaled_classes(classes: Any, exponent: int, kind: Any) -> Any:
    """class weights * 2**exponent, in new memory."""
    room = scaled(empty((0,), kind), classes, classes.size, exponent, kind)
    return writable(room, (room.size,), kind)


@compiled
def equal_weights(few: Any, weights: Any, rows: int, exponent: int, kind: Any) -> Any:
    """The weight 2**exponent for each row, if rows have no weights."""
    room = items(few, rows, kind)
    room[:] = _shifted(kind(1.0), exponent, kind)
    return room


@compiled
def exponent_of(weights: Any) -> int:
    """The compiled form of `arrays.weights.exponent_of`."""
    largest = 0.0
    for i in range(weights.size):
        size = np.float64(abs(weights[i]))
        if not np.isfinite(size):
            return 0
        largest = max(largest, size)
    return math.frexp(largest)[1]


@compiled
def _split_product(a: Any, b: Any, kind: Any) -> Any:
    first, power = math.frexp(np.float64(a))
    second, other = math.frexp(np.float64(b))
    return kind(kind(first) * kind(second)), power + other


@compiled
def products(few: Any, labels: Any, class_weights: Any, samples: Any, kind: Any) -> Any:
    """The products of class and sample weights, and their exponent, as in `arrays.weights.product_of_weights`."""
    room = items(few, labels.size, kind)
    fits = True
    for i in range(labels.size):
        room[i] = 0.0
        if labels[i] >= 0 and samples[i] != 0.0:
            factor = class_weights[labels[i]]
            room[i] = factor * samples[i]
            fits &= factor == 0.0 or np.finfo(kind).tiny <= abs(room[i]) <= np.finfo(kind).max
    exponent = 0
    if not fits:
        found = False
        for i in range(labels.size):
            if labels[i] >= 0 and samples[i] != 0.0:
                product, power = _split_product(class_weights[labels[i]], samples[i], kind)
                if product != 0.0 and np.isfinite(product):
                    exponent = max(exponent, power) if found else power
                    found = True
        for i in range(labels.size):
            if labels[i] >= 0 and samples[i] != 0.0:
                product, power = _split_product(class_weights[labels[i]], samples[i], kind)
                room[i] = _shifted(product, power - exponent, kind)
    return readable(room, (room.size,), kind), exponent


@compiled
def _are_finite(values: Any) -> bool:
    finite = True
    for i in range(values.size):
        finite &= np.isfinite(values[i])
    return finite


@compiled
def _weight_divisor(counted: Any, exponent: int, rows: int, kind: Any) -> Any:
    whole = _total(counted)
    if np.isinf(whole) and _are_finite(counted):
        smaller = scaled(empty((0,), kind), counted, counted.size, -ROOM, kind)
        whole, exponent = _total(readable(smaller, (smaller.size,), kind)), exponent + ROOM
    return _normal(whole, exponent, np.float64(rows))


def divisor_for(counting: bool) -> Run:
    """The compiled ``counted weights, their exponent, rows, kind -> divisor of the mean, its exponent``."""
    if counting:
        return _weight_divisor
    return merged(lambda counted, exponent, rows, kind: (count_or_nan(rows), 0))


def scale_for(mean: bool) -> Run:
    """The compiled ``divisor, kind -> factor of the gradients``, a pair."""
    return gradient_scale if mean else merged(lambda divisor, kind: (kind(1.0), kind(0.0)))


def reduced_for(mean: bool) -> Run:
    """The compiled ``losses of the rows, divisor, kind -> sum or mean``."""
    if mean:
        return merged(
            lambda block, divisor, kind: number(_total(readable(block, (block.size,), kind)) / divisor, kind)
        )
    return merged(lambda block, divisor, kind: number(_total(readable(block, (block.size,), kind)), kind))
