"""The arithmetic of weighted losses: sums, weights of any size, and the divisors of means."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax.arrays import halves
from fastsoftmax.arrays.blocks import Array, inverse_pair
from fastsoftmax.machine.entry import entry

ROOM = 64
"""Weights whose sum overflows are first divided by 2**ROOM: enough for all rows that fit into memory."""


# --- sums ---------------------------------------------------------------------------------------------------

SUM = np.dtype([("high", np.float64), ("low", np.float64), ("exponent", np.int64)])
"""The sum over some of the rows, (high + low) * 2**exponent: a sum of such parts is rounded only once."""


def total(values: Any) -> float:
    """The sum of all values in float64, taken in the order of memory."""
    flat = np.ravel(values, order="K").view()
    flat.flags.writeable = False
    return float(entry("reductions.total")(flat))


def part_of_sum(values: Any, exponent: int = 0) -> Array:
    """The sum of the values of some rows, times 2**exponent, as a `SUM`."""
    high = total(values)
    low = total(np.append(np.ravel(values), -high)) if math.isfinite(high) else 0.0
    return np.array((high, low, exponent), SUM)


def joined(parts: Array) -> Array:
    """The sum of parts, as a `SUM`."""
    counts = parts["high"] != 0
    exponent = int(parts["exponent"][counts].max()) if counts.any() else 0
    with np.errstate(all="ignore"):
        down = parts["exponent"] - exponent
        terms = np.ldexp(np.stack([parts["high"], parts["low"]]), down)
    return part_of_sum(terms, exponent)


_NORMAL = {"f": 126, "d": 1022}
"""By dtype: 2**n and 2**-n are normal numbers for n up to this."""

# --- weights ------------------------------------------------------------------------------------------------


class Divisor(NamedTuple):
    """The divisor of a mean: ``value * 2**exponent``.

    A common factor of the weights cancels in a mean. So they are first multiplied by 2**-exponent, which makes
    them about 1 on average, and the sum is divided by `value`. Then, whatever the size of the weights, neither the
    inverse of their sum nor their products with small losses leave the range of the dtype.
    """

    value: float
    exponent: int = 0


def normal_divisor(whole: float, exponent: int, rows: float) -> tuple[float, int]:
    """The `Divisor` of so many rows whose weights add up to ``whole * 2**exponent``; nan for 0.

    A mean over rows that all have weight 0 is nan, as in PyTorch. Weights of about 1 are not scaled, which saves a
    multiplication. Compiled code uses this function, too.
    """
    if whole == 0.0:
        return math.nan, 0
    if not math.isfinite(whole):
        return whole, 0
    mantissa, power = math.frexp(whole)
    _, size = math.frexp(rows)
    taken = power - size + exponent
    if -2 <= taken <= 2:
        return math.ldexp(whole, exponent), 0
    return math.ldexp(mantissa, size), taken


def count_divisor(rows: int) -> Divisor:
    """The divisor of a mean over rows of weight 1."""
    return Divisor(float(rows) if rows else math.nan)


def weight_divisor(weights: Array, exponent: int, rows: int) -> Divisor:
    """The divisor of a mean over rows whose weights are these times 2**exponent."""
    whole = total(weights)
    if math.isinf(whole) and np.isfinite(weights).all():
        whole, exponent = total(scaled(weights, -ROOM)), exponent + ROOM
    return Divisor(*normal_divisor(whole, exponent, float(rows)))


def part_of_weight(weights: Array, exponent: int) -> Array:
    """The sum of the weights of some rows, times 2**exponent, as a `SUM`."""
    part = part_of_sum(weights, exponent)
    if np.isinf(part["high"]) and np.isfinite(weights).all():
        return part_of_sum(scaled(weights, -ROOM), exponent + ROOM)
    return part


def joined_loss(parts: Array, divisor: Divisor | None, dtype: np.dtype[Any]) -> Any:
    """The sum of losses, or their mean if there is a divisor, from the results of `part_of_sum`."""
    whole = joined(parts)
    return quotient(float(whole["high"] + whole["low"]), divisor, dtype)


def joined_weights(parts: Array) -> Array:
    """The sum of results of `part_of_weight`, as a `SUM`, whose number is finite if all of theirs are."""
    whole = joined(parts)
    if np.isinf(whole["high"]) and np.isfinite(parts["high"]).all():
        smaller = parts.copy()
        smaller["high"], smaller["low"] = np.ldexp(parts["high"], -ROOM), np.ldexp(parts["low"], -ROOM)
        smaller["exponent"] += ROOM
        whole = joined(smaller)
    return whole


def joined_divisor(parts: Array, rows: int) -> Divisor:
    """The divisor of a mean over so many rows, from the results of `part_of_weight`."""
    whole = joined_weights(parts)
    return Divisor(*normal_divisor(float(whole["high"] + whole["low"]), int(whole["exponent"]), float(rows)))


def repeated_divisor(whole: Array, weights: int, entries: int) -> Divisor:
    """The divisor of a mean over entries that share so many weights; `whole` is their sum, as a `SUM`.

    Every weight is used equally often.
    """
    times = entries // max(weights, 1)
    high, low, exponent = float(whole["high"]), float(whole["low"]), int(whole["exponent"])
    if times == 1 or not math.isfinite(high):
        return Divisor(*normal_divisor(high + low, exponent, float(max(weights, 1))))
    down = times.bit_length() if abs(high) > 1 else 0
    (a, b), (c, d) = high.as_integer_ratio(), low.as_integer_ratio()
    value = (a * d + c * b) * times / (b * d << down)  # rounded once
    return Divisor(*normal_divisor(value, exponent + down, float(entries)))


def _filled(array: Array, before: Array) -> Array:
    """`array` with the smallest positive number where a nonzero weight became 0: its row still counts."""
    lost = (array == 0) & (before != 0)
    return np.where(lost, np.nextafter(array.dtype.type(0), array.dtype.type(1)), array) if lost.any() else array


def scaled(weights: Array, exponent: int) -> Array:
    """weights * 2**exponent, in their dtype; only 0 becomes 0."""
    if exponent == 0:
        return weights
    with np.errstate(all="ignore"):
        if abs(exponent) <= _NORMAL[weights.dtype.char]:
            result = weights * weights.dtype.type(math.ldexp(1.0, exponent))
        else:
            result = np.ldexp(weights, exponent)
        return result if exponent > 0 or result.all() else _filled(result, weights)


def product_of_weights(a: Array, b: Array) -> tuple[Array, int]:
    """a * b as numbers and the exponent of a power of two, so that nothing overflows; 0 where b is 0."""
    most, least = _limits(a.dtype)
    with np.errstate(all="ignore"):
        product = a * b
        size = np.abs(product)
        if size.max(initial=0) <= most and (
            size.min(initial=most) >= least or size.min(initial=most, where=(a != 0) & (b != 0)) >= least
        ):
            return product, 0
        (a, power_of_a), (b, power_of_b) = np.frexp(a), np.frexp(b)
        product, power = np.where(b == 0, 0, a * b).astype(a.dtype), power_of_a + power_of_b
        counts = (product != 0) & np.isfinite(product)
        exponent = int(power[counts].max()) if counts.any() else 0
        return _filled(np.ldexp(product, power - exponent), product), exponent


@lru_cache(maxsize=4)
def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    """The greatest number and the smallest normal one."""
    if dtype.name == "bfloat16":  # numbers become bfloat16 without a warning
        return math.inf, 0.0
    return float(np.finfo(dtype).max), float(np.finfo(dtype).tiny)


def exponent_of(weights: Array) -> int:
    """The exponent of the largest weight; 0 if that is 0, infinite or NaN."""
    largest = float(np.abs(weights).max(initial=0))
    return math.frexp(largest)[1] if math.isfinite(largest) else 0


def normalized(weights: Array) -> tuple[Array, int]:
    """Weights divided by a power of two, so that the largest is about 1, and the exponent of this power."""
    exponent = exponent_of(weights)
    return scaled(weights, -exponent), exponent


def converted(weights: Array, dtype: np.dtype[Any]) -> Array:
    """Weights in the dtype of the computation, without a warning where they leave its range."""
    if weights.dtype == dtype:
        return weights.astype(dtype)
    return halves.converted(weights, dtype)


# --- reductions ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def inverse_of(divisor: float, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """1/divisor as a pair; nan if the divisor is 0, infinite or NaN."""
    if divisor == 0 or not math.isfinite(divisor):
        return dtype.type(np.nan), dtype.type(0)
    return inverse_pair(divisor, dtype)


def quotient(whole: float, divisor: Divisor | None, dtype: np.dtype[Any]) -> Any:
    """The sum of losses, or their mean if there is a divisor, rounded once."""
    most, least = _limits(dtype)
    if divisor is None or divisor.value != 0:
        value = whole if divisor is None else whole / divisor.value
        if value == 0 or least <= abs(value) <= most:  # no warning to suppress, which takes 2 us
            return dtype.type(value)
    with np.errstate(all="ignore"):
        return dtype.type(whole if divisor is None else np.divide(whole, divisor.value))
