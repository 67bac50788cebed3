"""What the options of every loss mean: weights, reductions, and what a mean divides by."""

from functools import lru_cache
from typing import Any

import numpy as np

from fastsoftmax import kernels
from fastsoftmax._arrays import Array, Problem, inverse_pair, named, real_array

_REDUCTIONS = ("mean", "sum", "none")


def check_reduction(function: str, reduction: Any) -> None:
    """ValueError unless it is one of the three."""
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise ValueError(f"{named(function, 'reduction')} must be one of {_REDUCTIONS}, got {reduction!r}")


def mean_divisor(weight: float) -> float:
    """What a mean divides by: the weight of all rows; nan for 0, since nothing has no mean.

    Rows whose label weighs nothing may still have a loss, by label smoothing: PyTorch's mean of them is nan too.
    """
    return weight if weight != 0 else np.nan


@lru_cache(maxsize=64)
def _inverse(divisor: float, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """1/divisor as a pair; nan for 0, which nothing is divided by but rows that count for nothing.

    Weights may add up to less than the inverse of the greatest number: then it is inf, as where NumPy divides.
    """
    if divisor == 0 or not np.isfinite(divisor):
        return dtype.type(np.nan), dtype.type(0)
    try:
        return inverse_pair(divisor, dtype)
    except OverflowError:
        return dtype.type(np.inf), dtype.type(0)


def gradient_scale(divisor: float, reduction: str, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """What a reduction multiplies the gradients by, as a pair."""
    return _inverse(divisor if reduction == "mean" else 1, dtype)


def weight_array(problem: Problem, name: str, value: Any, shape: tuple[int, ...]) -> Array | None:
    """An array of weights of this shape in the dtype of the computation, or None."""
    if value is None:
        return None
    array = real_array(problem.function, name, value)
    if array.shape != shape:
        raise ValueError(f"{named(problem.function, name)} has shape {array.shape}, expected {shape}")
    return array.astype(problem.dtype)


def ignored_index(function: str, ignore_index: Any) -> int | None:
    """`ignore_index` as an integer, or None; TypeError if it is neither."""
    if ignore_index is None:
        return None
    if isinstance(ignore_index, bool) or not hasattr(ignore_index, "__index__"):
        raise TypeError(f"{named(function, 'ignore_index')} must be an integer or None, got {ignore_index!r}")
    return int(ignore_index)


def total(values: Any) -> float:
    """The sum of all values in float64, taken in the order of memory."""
    flat = np.ravel(values, order="K")
    flat = flat.astype(np.float32) if flat.dtype.char == "e" else flat.view()
    flat.flags.writeable = False
    return float(kernels.reductions.total(flat))


def reduced(problem: Problem, rows: Any, reduction: str, divisor: float) -> Any:
    """The loss as the user wants it, from an array with one number for each row."""
    if reduction == "none":
        return rows
    whole = total(rows)
    with np.errstate(all="ignore"):
        value = whole if reduction == "sum" else np.divide(whole, divisor)
        return problem.result_dtype.type(value)
