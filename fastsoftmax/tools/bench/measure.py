"""Samples of calls, each library in time windows of its own, and their medians.

All libraries work in one process, on the same arrays. In each of some rounds they take turns in a random order, so
that a busy moment of the machine affects all of them, and none always comes after the same other one. A turn is a
window of time: first a rest, because threads of the previous library may still be spinning on the other processors
(those of GNU OpenMP and XLA do so for milliseconds); then calls that are not timed, because the caches hold the
data of another library and sleeping threads have to wake up; then samples.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SAMPLE_SECONDS = 2e-3
"""A sample is the mean over as many calls as take this long."""
ROUNDS = 5
"""The windows of each library, if it has enough time; the time of a window is that share of its time."""
REST_SECONDS = 10e-3
"""The rest at the beginning of a window."""
SETTLE_SECONDS = 5e-3
"""How long a call is made before it is timed."""
SLOW_SECONDS = 0.1
"""A call that takes so long is timed without such calls before it."""
VERY_SLOW_SECONDS = 1.0
"""If a call takes so long, its first call counts as a sample, too."""
FEWEST, FEWEST_SLOW, MOST = 3, 2, 60
"""The least number of samples of a call, that of a slow call, and the greatest number."""
UNSTEADY = 0.25
"""A spread that is too wide (see `Timing`)."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: median, and half the distance of the quartiles relative to it."""

    median: float
    spread: float
    samples: int

    @classmethod
    def of(cls, times: list[float]) -> "Timing":
        """From at least two samples."""
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, (high - low) / 2 / median if median else 0.0, len(times))

    @property
    def is_steady(self) -> bool:
        """Whether the spread is narrow enough for the median to mean something."""
        return self.spread <= UNSTEADY


def _time(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


class _Contender:
    """A call with its samples."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.times: list[float] = []
        start = time.perf_counter()
        # The first call may compile or start threads, so that up to three more calls are made.
        once = latest = _time(call, 1)
        for _ in range(3 if once < VERY_SLOW_SECONDS else 0):
            latest = _time(call, 1)
            once = min(once, latest)
            if time.perf_counter() - start > 2 * SLOW_SECONDS:
                break
        self.count, self.settle = 1, 0
        if once < SLOW_SECONDS:
            once = max(once, 1e-7)
            self.count, self.settle = math.ceil(SAMPLE_SECONDS / once), math.ceil(SETTLE_SECONDS / once)
            self.least = FEWEST
        else:
            self.times.append(latest)
            self.least = FEWEST_SLOW
        self.spent = time.perf_counter() - start

    def window(self, seconds: float) -> None:
        """Rest, settle, and take samples for so many seconds: one at least, at most its part of `MOST`."""
        start = time.perf_counter()
        enough = len(self.times) + max(MOST // ROUNDS, 1)
        time.sleep(REST_SECONDS)
        for _ in range(self.settle):
            self.call()
        while True:
            self.times.append(_time(self.call, self.count))
            if time.perf_counter() - start >= seconds or len(self.times) >= enough:
                break
        self.spent += time.perf_counter() - start


def measure(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Timing]:
    """Timings of calls that have been made before, in about so many seconds.

    Each gets an equal share of the time, and at least `FEWEST` samples (`FEWEST_SLOW`, if it is slow) even if that
    takes longer.
    """
    order = random.Random(0)
    contenders = {name: _Contender(call) for name, call in calls.items()}
    share = seconds / max(len(calls), 1)
    collecting = gc.isenabled()
    gc.disable()
    try:
        active = list(contenders.values())
        while active:
            order.shuffle(active)
            for contender in active:
                contender.window(share / ROUNDS)
            active = [c for c in active if len(c.times) < c.least or (c.spent < share and len(c.times) < MOST)]
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(contender.times) for name, contender in contenders.items()}
