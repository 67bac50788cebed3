"""A few short rows: what the walk in columns gives, to the bit, where most of its lanes would stay empty.

A single row of ten in the walk in columns keeps one lane of sixteen busy. Here the terms of a row fill the lanes
of one vector, and only their sum is taken one after the other, in the order and with the compensation that each
lane has there (`traversal._add_term`). Every other step is one rounding of the same numbers in either form.
"""

from typing import Any

from fastsoftmax.kernels.activations import _log_term
from fastsoftmax.kernels.elementary import exp_pair, reference, two_sum
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.losses import _label
from fastsoftmax.kernels.traversal import (
    highest,
    log_of_others,
    probability,
    reciprocal,
    remainder,
    spared,
    tempered,
    term,
    weighted,
)
from fastsoftmax.kernels.vector import (
    broadcast,
    fold_sum,
    lane_count,
    load_part,
    load_scalar,
    memory,
    muladd,
    number,
    row_value,
    scratch,
    select_equal,
    store,
    store_part,
    store_scalar,
)

INF = float("inf")
FEW = 4
"""So many rows take less time here than one vector of rows takes in columns."""


@inline
def short_statistics(x: Any, offset: int, length: int, beta: Any) -> Any:
    """`traversal.statistics` of a row of at most `COLUMN_LIMIT` classes."""
    m = highest(x, offset, length, True)
    top_scaled, top_tail = tempered(m, beta)
    shift, bias = reference(top_scaled)
    zero, one = number(x, 0.0), number(x, 1.0)
    terms = scratch(x, 8)
    step = lane_count(x)
    ties = broadcast(zero)
    for k in range(0, length, step):
        value = load_part(x, offset + k, min(step, length - k), number(x, -INF))
        ties = ties + select_equal(value, m, one, zero)
        store(terms, k, select_equal(value, m, zero, term(value, beta, shift, bias)))
    high = low = zero
    for k in range(length):
        high, error = two_sum(high, load_scalar(terms, k))
        low = low + error
    rest, rest_low = two_sum(high, low)
    return m, shift, bias, exp_pair(top_scaled - shift, top_tail, bias), fold_sum(True, ties), rest, rest_low


@kernel
def softmax(rows: int, x: Any, y: Any, beta: Any) -> None:
    """`activations.softmax` of so many rows."""
    source, result = memory(x), memory(y)
    classes, step = x.shape[1], lane_count(source)
    for row in range(rows):
        at = row * classes
        m, shift, bias, top, ties, rest, rest_low = short_statistics(source, at, classes, beta)
        inverse = reciprocal(m, top, ties, rest, rest_low)
        for k in range(0, classes, step):
            lanes = min(step, classes - k)
            value = load_part(source, at + k, lanes, number(source, -INF))
            store_part(result, at + k, lanes, probability(value, beta, shift, bias, inverse))


@kernel
def log_softmax(rows: int, x: Any, y: Any, beta: Any) -> None:
    """`activations.log_softmax` of so many rows."""
    source, result = memory(x), memory(y)
    classes, step = x.shape[1], lane_count(source)
    for row in range(rows):
        at = row * classes
        m, _, _, top, ties, rest, rest_low = short_statistics(source, at, classes, beta)
        high, low = log_of_others(top, ties, rest, rest_low)
        top_scaled, top_tail = tempered(m, beta)
        for k in range(0, classes, step):
            lanes = min(step, classes - k)
            value = load_part(source, at + k, lanes, number(source, -INF))
            store_part(result, at + k, lanes, _log_term(value, beta, top_scaled, top_tail, high + low))


@kernel
def logsumexp(rows: int, x: Any, sums: Any) -> None:
    """`activations.logsumexp` of so many rows."""
    source, result = memory(x), memory(sums)
    classes = x.shape[1]
    for row in range(rows):
        m, _, _, top, ties, rest, rest_low = short_statistics(source, row * classes, classes, None)
        high, low = log_of_others(top, ties, rest, rest_low)
        total, error = two_sum(m, high)
        infinite = select_equal(rest, rest, m, rest)
        bounded = select_equal(m - m, number(source, 0.0), total + (error + low), infinite)
        store_scalar(result, row, bounded)


@kernel
def cross_entropy(
    rows: int, x: Any, labels: Any, weights: Any, y: Any, losses: Any, scale: Any, scale_low: Any
) -> None:
    """`losses.cross_entropy` of so many rows."""
    source, result, sums = memory(x), memory(y), memory(losses)
    classes, step = x.shape[1], lane_count(source)
    one = number(source, 1.0)
    for row in range(rows):
        at = row * classes
        m, shift, bias, top, ties, rest, rest_low = short_statistics(source, at, classes, None)
        label = _label(memory(labels), row, classes)
        target = load_scalar(source, at + label)
        weight = row_value(source, True, memory(weights), row, 1)
        high, low = log_of_others(top, ties, rest, rest_low)
        store_scalar(sums, row, spared(weight, weight * ((m - target) + (high + low))))
        if y is not None:
            plain = reciprocal(m, top, ties, rest, rest_low)
            factor, factor_low = weight * scale, weight * scale_low
            inverse = weighted(plain, factor, factor_low)
            inside = probability(target, None, shift, bias, plain) - one
            slope = select_equal(target, m, -remainder(top, ties, rest, rest_low), inside)
            slope = spared(weight, muladd(slope, factor, slope * factor_low))
            for k in range(0, classes, step):
                lanes = min(step, classes - k)
                value = load_part(source, at + k, lanes, number(source, -INF))
                p = probability(value, None, shift, bias, inverse)
                store_part(result, at + k, lanes, spared(weight, p))
            store_scalar(result, at + label, slope)
