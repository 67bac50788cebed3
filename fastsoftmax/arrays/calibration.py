"""The driver of `fit_temperature`: Newton's method for the logarithm of the temperature, in a bracket."""

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax._vectors import DERIVATIVES, SUM_WORDS, VALUES, WEIGHT
from fastsoftmax.arrays.blocks import inverse_parts
from fastsoftmax.arrays.metrics import LabelledRows, Total, exact_sums, labelled_rows, ratio, total
from fastsoftmax.arrays.parts import parts

UNIFORM = 2.0**20
"""At so many times the greatest logit, a softmax is uniform but for what derivatives still show."""
STEPS = {"f": 2.0**-14, "d": 2.0**-28}
"""After a step of Newton's method that is smaller, the error is about its square: the roundoff of the dtype."""
LINEAR = 0.7
"""A step that is longer than so much of the one before: the method does not converge yet, steps are doubled."""
LEAST, MOST = math.log(sys.float_info.min), math.log(sys.float_info.max) - 1e-9
"""The logarithms of the temperatures that are tried."""
PATIENCE = 40
"""After so many passes the bracket is halved, which always ends."""


class TemperatureFit(NamedTuple):
    """A fitted temperature, see `fit_temperature`."""

    temperature: float
    loss: float
    loss_before: float
    iterations: int


class NoMinimumError(ValueError):
    """The loss decreases as the temperature goes to `limit`."""

    def __init__(self, message: str, limit: float) -> None:
        super().__init__(message, limit)
        self.limit = limit

    def __str__(self) -> str:
        return str(self.args[0])


class Slope(NamedTuple):
    """The loss at a temperature, and its first two derivatives with respect to log T."""

    loss: float
    first: float
    second: float
    depth: Total
    """The sum of (m - z_y)/T over all rows, for the label y of a row and its greatest logit m."""
    mean: Total
    """The sum of the means of (m - z)/T under softmax(z/T)."""


class Rows:
    """The rows whose temperature is fitted, in one block or in several, and how often they have been passed over.

    `blocks` returns the blocks, from the first one on. `dtype` is that of the computation.
    """

    def __init__(self, function: str, blocks: Callable[[], Iterable[LabelledRows]], dtype: np.dtype[Any]) -> None:
        self.function, self.blocks, self.dtype, self.passes = function, blocks, dtype, 0

    def at(self, temperature: float) -> Slope:
        """The loss and its derivatives, in one pass over the logits; ValueError if the loss is infinite or NaN."""
        self.passes += 1
        table = np.zeros((VALUES + DERIVATIVES, SUM_WORDS), np.int64)
        beta = inverse_parts(temperature, self.dtype)
        for rows in self.blocks():
            table = exact_sums("metrics.derivatives", rows, table, 0, DERIVATIVES, (), beta)
        weight, loss, mean, depth, variance = (total(table[k]) for k in range(WEIGHT, VALUES + DERIVATIVES))
        if not weight.number:
            raise ValueError(f"{self.function}: there are no rows that count")
        if math.isnan(loss.special):
            raise ValueError(
                f"{self.function}: logits hold NaN or +inf, or a row of -inf only, in a row that counts"
            )
        if loss.special:
            raise ValueError(
                f"{self.function}: the loss is infinite: the logit of a label is -inf, or so far below the "
                f"greatest that {self.dtype} cannot hold the difference"
            )
        first = ratio(Total(mean.number - depth.number, 0.0), weight)
        return Slope(ratio(loss, weight), first, ratio(variance, weight) - first, depth, mean)

    def uniform(self) -> Slope:
        """The derivatives in the limit of large temperatures."""
        most = 0.0
        for rows in self.blocks():
            for block in parts(rows.block):
                part = np.abs(block)
                most = max(most, float(part.max(initial=0, where=np.isfinite(part))))
        return self.at(min(UNIFORM * (most or 1.0), sys.float_info.max))


def fit_temperature(
    function: str, logits: Any, labels: Any, axis: int, sample_weight: Any, ignore_index: Any
) -> TemperatureFit:
    """The result of the public function."""
    rows = labelled_rows(function, logits, labels, axis, sample_weight, ignore_index)
    return fitted(Rows(function, lambda: (rows,), rows.dtype))


def fitted(rows: Rows) -> TemperatureFit:
    """The temperature of rows, by Newton's method; ValueError if there is none."""
    function, small = rows.function, STEPS[rows.dtype.char]
    here = rows.at(1.0)
    before = here.loss
    if not here.depth.number:
        if not rows.uniform().mean.number:
            return TemperatureFit(1.0, before, before, rows.passes)
        raise NoMinimumError(
            f"{function}: every label has the greatest logit of its row, so that the loss has no minimum: "
            "it decreases as the temperature goes to 0",
            0.0,
        )
    place, low, high, step, bounded = 0.0, -math.inf, math.inf, 0.0, False
    while True:
        if here.first < 0:
            low = place
        else:
            high = place
        step = _step(here, step)
        if abs(step) <= small and here.second > 0:
            break
        if high == math.inf and not bounded and abs(step) >= 1:
            if rows.uniform().first <= 0:
                raise NoMinimumError(
                    f"{function}: the labels do not agree with the logits better than chance, so that the loss "
                    "has no minimum: it decreases as the temperature goes to infinity",
                    math.inf,
                )
            bounded = True
        if not low < place + step < high or (rows.passes > PATIENCE and math.isfinite(high - low)):
            step = (low + high) / 2 - place
            if abs(step) <= small**2:
                break
        left, place = place, min(max(place + step, LEAST), MOST)
        if place == left:
            limit = math.inf if place > 0 else 0.0
            raise NoMinimumError(f"{function}: the temperature is beyond the range of float64", limit)
        here = rows.at(math.exp(place))
    return TemperatureFit(math.exp(place + step), here.loss + here.first * step / 2, before, rows.passes)


def _step(here: Slope, last: float) -> float:
    """The step of Newton's method; a longer one while the last steps went the same way and were as long."""
    newton = here.second > 0
    step = -here.first / here.second if newton else -math.copysign(1.0, here.first)
    if last * step > 0 and abs(step) > LINEAR * min(abs(last), 1.0):
        step = math.copysign(max(abs(step), 2 * abs(last)), step)
    return step
