"""Samples of calls, each library in time windows of its own, and their medians.

All libraries work in one process, on the same arrays. In each of some rounds they take turns in a random order, so
that a busy moment of the machine affects all of them, and none always comes after the same other one. A turn is a
window of time: first a rest, because threads of the previous library may still be spinning on the other processors
(those of GNU OpenMP and XLA do so for milliseconds); then calls that are not timed, because the caches hold the
data of another library and sleeping threads have to wake up; then samples.

If another program takes a processor, a call with several threads waits for the scheduler: 8 ms for a call of 40
microseconds, time after time, so that no spread tells it. Linux does: it counts how long the threads of a process
were ready but had no processor, and how long processors were busy with other programs. (Neither suffices alone:
threads of JAX also wait for each other.) Windows with waiting do not count if there are enough others.
"""

import gc
import glob
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 2e-3
"""A sample is the mean over as many calls as take this long."""
ROUNDS = 5
"""The windows of each library, if it has enough time; the time of a window is that share of its time."""
REST_SECONDS = 10e-3
"""The rest at the beginning of a window."""
SETTLE_SECONDS = 5e-3
"""How long a call is made before it is timed."""
SLOW_SECONDS = 0.02
"""A call that takes so long is timed without such calls before it, which would take longer than all else."""
VERY_SLOW_SECONDS = 0.1
"""Of a call that takes so long, fewer samples suffice."""
SLOWEST_SECONDS = 0.2
"""If a call takes so long, its first call counts as a sample, too."""
FEWEST, FEWEST_SLOW, MOST = 3, 2, 60
"""The least number of samples of a call, that of a very slow call, and the greatest number."""
UNSTEADY = 0.25
"""A spread that is too wide (see `Timing`)."""
WAITING = 0.25
"""How long threads, added up, may wait for a processor that others use, relative to the time of a window."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: median, and half the distance of the quartiles relative to it.

    `waiting` is how long its threads, added up, waited for processors that other programs used, relative to the
    time that was measured.
    """

    median: float
    spread: float
    samples: int
    waiting: float = 0.0

    @classmethod
    def of(cls, times: list[float], waiting: float = 0.0) -> "Timing":
        """From at least two samples."""
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, (high - low) / 2 / median if median else 0.0, len(times), waiting)

    @property
    def has_waited(self) -> bool:
        """Whether the median may be the scheduler's and not the call's."""
        return self.waiting > WAITING

    @property
    def is_steady(self) -> bool:
        """Whether the spread is narrow, and the threads had processors, so that the median means something."""
        return self.spread <= UNSTEADY and not self.has_waited


def _waited() -> float:
    """Seconds that the threads of this process, added up, were ready but had no processor; 0 if none can tell."""
    total = 0
    for path in glob.glob("/proc/self/task/*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # a thread has ended, or the kernel does not count
            total += int(Path(path).read_text().split()[1])
    return total * 1e-9


def _others() -> float:
    """Seconds that processors were busy with other programs since some point of time; 0 if none can tell."""
    with suppress(OSError, ValueError, IndexError):
        ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        idle = ticks[3] + ticks[4]
        return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK") - time.process_time()
    return 0.0


def _time(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


class _Contender:
    """A call with its samples: a list for each window, with the share of it that threads waited."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.windows: list[tuple[list[float], float]] = []
        start = time.perf_counter()
        # The first call may start threads, so that up to three more calls are made.
        once = latest = _time(call, 1)
        for _ in range(3 if once < SLOWEST_SECONDS else 0):
            latest = _time(call, 1)
            once = min(once, latest)
            if time.perf_counter() - start > 2 * SLOW_SECONDS:
                break
        self.count, self.settle = 1, 0
        self.least = FEWEST if once < VERY_SLOW_SECONDS else FEWEST_SLOW
        if once < SLOW_SECONDS:
            once = max(once, 1e-7)
            self.count, self.settle = math.ceil(SAMPLE_SECONDS / once), math.ceil(SETTLE_SECONDS / once)
        else:
            self.windows.append(([latest], 0.0))
        self.spent = time.perf_counter() - start

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(len(times) for times, _ in self.windows)

    def window(self, seconds: float) -> None:
        """Rest, settle, and take samples for so many seconds: one at least, at most its part of `MOST`."""
        start = time.perf_counter()
        time.sleep(REST_SECONDS)
        # Nothing is between these calls and the samples: threads that wait for more would go to sleep.
        waited, begin = _waited(), time.perf_counter()
        settled = begin + 4 * SETTLE_SECONDS  # a call that waits may take a thousand times as long
        for _ in range(self.settle):
            self.call()
            if time.perf_counter() > settled:
                break
        times: list[float] = []
        while not times or (time.perf_counter() - start < seconds and len(times) < MOST // ROUNDS):
            times.append(_time(self.call, self.count))
        elapsed = time.perf_counter() - begin
        self.windows.append((times, (_waited() - waited) / elapsed))
        self.spent += time.perf_counter() - start

    def timing(self, others: float) -> Timing:
        """Of the windows without waiting if they have enough samples, else of all; `others` limits the waiting."""
        calm = [(times, share) for times, share in self.windows if share <= WAITING]
        if sum(len(times) for times, _ in calm) < self.least:
            calm = self.windows
        waiting = sum(len(times) * share for times, share in calm) / sum(len(times) for times, _ in calm)
        return Timing.of([sample for times, _ in calm for sample in times], min(waiting, others))


def measure(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Timing]:
    """Timings of calls that have been made before, in about so many seconds.

    Each gets an equal share of the time, and at least `FEWEST` samples (`FEWEST_SLOW`, if it is slow) even if that
    takes longer.
    """
    order = random.Random(0)
    contenders = {name: _Contender(call) for name, call in calls.items()}
    share = seconds / max(len(calls), 1)
    begin, busy = time.perf_counter(), _others()
    collecting = gc.isenabled()
    gc.disable()
    try:
        active = list(contenders.values())
        while active:
            order.shuffle(active)
            for contender in active:
                contender.window(share / ROUNDS)
            active = [c for c in active if c.samples < c.least or (c.spent < share and c.samples < MOST)]
    finally:
        if collecting:
            gc.enable()
    others = max(_others() - busy, 0.0) / max(time.perf_counter() - begin, 1e-9)
    return {name: contender.timing(others) for name, contender in contenders.items()}
