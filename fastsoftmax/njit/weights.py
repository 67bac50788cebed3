"""What `arrays.weights` is to Python callers, for compiled ones: weights of any size, and what a mean divides by.

Each function makes the compiled one for a dtype.
"""

import math
from typing import Any

import numpy as np

from fastsoftmax import kernels
from fastsoftmax.arrays.weights import ROOM, normal_divisor
from fastsoftmax.njit.arguments import Run, compiled, items, merged, readable, writable


def shifted_for(kind: Any) -> Run:
    """The compiled ``value, exponent -> value * 2**exponent``; nothing but 0 becomes 0."""
    smallest = np.nextafter(kind(0), kind(1))

    @compiled
    def shifted(value: Any, exponent: int) -> Any:
        result = kind(math.ldexp(np.float64(value), exponent))
        return smallest if result == 0.0 and value != 0.0 else result

    return shifted


def scaled_for(kind: Any) -> Run:
    """The compiled ``room, weights, how many, exponent -> weights * 2**exponent``, as memory to write to."""
    shifted = shifted_for(kind)

    @compiled
    def scaled(few: Any, weights: Any, rows: int, exponent: int) -> Any:
        room = items(few, rows, kind)
        for i in range(rows):
            room[i] = shifted(weights[i], exponent) if exponent else weights[i]
        return room

    return scaled


def scaled_classes_for(kind: Any) -> Run:
    """The same for the weights of classes, in memory of their own."""
    scale = scaled_for(kind)

    @compiled
    def scaled(classes: Any, exponent: int) -> Any:
        room = scale(np.empty(0, kind), classes, classes.size, exponent)
        return writable(room, (room.size,), kind)

    return scaled


def equal_weights_for(kind: Any) -> Run:
    """The compiled weights 2**exponent of rows that have none of their own."""
    shifted = shifted_for(kind)

    @compiled
    def equal(few: Any, weights: Any, rows: int, exponent: int) -> Any:
        room = items(few, rows, kind)
        room[:] = shifted(kind(1.0), exponent)
        return room

    return equal


def exponent_of_for(kind: Any) -> Run:
    """The compiled `arrays.weights.exponent_of`."""

    @compiled
    def exponent_of(weights: Any) -> int:
        largest = 0.0
        for i in range(weights.size):
            size = np.float64(abs(weights[i]))
            if not np.isfinite(size):
                return 0
            largest = max(largest, size)
        return math.frexp(largest)[1]

    return exponent_of


def products_for(kind: Any) -> Run:
    """The compiled products of weights of classes and samples, as `arrays.weights.product_of_weights` has them."""
    least, most, shifted = np.finfo(kind).tiny, np.finfo(kind).max, shifted_for(kind)

    @compiled
    def split(a: Any, b: Any) -> Any:
        first, power = math.frexp(np.float64(a))
        second, other = math.frexp(np.float64(b))
        return kind(kind(first) * kind(second)), power + other

    @compiled
    def products(few: Any, labels: Any, class_weights: Any, samples: Any) -> Any:
        room = items(few, labels.size, kind)
        fits = True
        for i in range(labels.size):
            room[i] = 0.0
            if labels[i] >= 0 and samples[i] != 0.0:
                factor = class_weights[labels[i]]
                room[i] = factor * samples[i]
                fits &= factor == 0.0 or least <= abs(room[i]) <= most
        exponent = 0
        if not fits:
            found = False
            for i in range(labels.size):
                if labels[i] >= 0 and samples[i] != 0.0:
                    product, power = split(class_weights[labels[i]], samples[i])
                    if product != 0.0 and np.isfinite(product):
                        exponent = max(exponent, power) if found else power
                        found = True
            for i in range(labels.size):
                if labels[i] >= 0 and samples[i] != 0.0:
                    product, power = split(class_weights[labels[i]], samples[i])
                    room[i] = shifted(product, power - exponent)
        return readable(room, (room.size,), kind), exponent

    return products


def divisor_for(counting: bool, kind: Any) -> Run:
    """The compiled (what the rows count for, its exponent, how many) -> `arrays.weights.Divisor` of their mean."""
    if not counting:
        return merged(lambda counted, exponent, rows: (np.float64(rows) if rows else np.nan, 0))
    total, normal, shifted = kernels.reductions.total, compiled(normal_divisor), shifted_for(kind)

    @compiled
    def of_weights(counted: Any, exponent: int, rows: int) -> Any:
        whole = total(counted)
        if np.isinf(whole) and np.isfinite(counted).all():
            smaller = np.empty(counted.size, kind)
            for i in range(counted.size):
                smaller[i] = shifted(counted[i], -ROOM)
            whole, exponent = total(readable(smaller, (smaller.size,), kind)), exponent + ROOM
        return normal(whole, exponent, np.float64(rows))

    return of_weights
