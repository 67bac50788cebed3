"""How calls scale with threads: measured as far as this machine has processors, and simulated beyond.

``python benchmarks/scaling.py`` prints both, after some ten seconds; ``--write`` puts the table into
docs/guide/speed.md, and a summary into README.md. The simulation has the blocks of `fastsoftmax.arrays.threads`
and takes them as the threads do: the caller begins at once, each helper after its wake-up, and whoever is free
takes the next block. The time of a block (its part of a call on one thread) and of a wake-up are measured here;
`BANDWIDTH`, `TAKE` and `HERE` are assumptions.
"""

import argparse
import heapq
import statistics
import sys
import time
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme  # noqa: E402

import fastsoftmax as fs  # noqa: E402
from fastsoftmax.arrays import threads  # noqa: E402
from fastsoftmax.tools.bench.measure import Timing, measure  # noqa: E402
from fastsoftmax.tools.bench.report import DOUBT, caption, machine  # noqa: E402

SHAPES = ((1_000, 100), (10_000, 10), (200, 2_000), (10_000, 1_000), (1_000_000, 10))
MOST = 16
SHOWN = (2, 4, 6, 8, 12, MOST)
"""The numbers of threads that the table shows."""
SECONDS = 0.5
"""How long each number of threads is measured."""
BANDWIDTH = 6.0
"""The memory traffic of a processor with 16 cores, in multiples of what one thread causes: an assumption."""
IN_CACHES = 1 << 22
"""Arrays with more bytes than this come from memory."""
TAKE = 1e-7
"""Seconds to take a block while other threads do, from a counter that all write to: an assumption."""
HERE = 5e-7
"""Seconds until a helper that waits sees the job: an assumption."""
WORTH = 0.7
"""The curve bends where threads do less than this part of what one thread alone does."""


class Wake(NamedTuple):
    """Seconds that the caller needs to wake one helper, and until it works."""

    call: float
    arrival: float


class Case(NamedTuple):
    """A call: how its rows are cut, and its time on one thread."""

    rows: int
    classes: int
    seconds: float


def most_threads(case: Case, wake: Wake | None) -> int:
    """How many threads share a call at most; helpers are not woken for a small one."""
    work = case.rows * case.classes
    if wake is not None and work < threads.WAKING_WORK:
        return 1
    return max(1, min(case.rows, work // (threads.SHARED_WORK // 2)))


def comes_from_memory(case: Case) -> bool:
    """Whether both arrays together are too large for the caches."""
    return 8 * case.rows * case.classes > IN_CACHES


def simulate(case: Case, count: int, wake: Wake | None = None) -> float:
    """Seconds of a call on so many threads. Helpers wait for it, or sleep if there are times of a wake-up."""
    count = min(count, most_threads(case, wake))
    if count == 1:
        return case.seconds
    step = threads.rows_of_block(case.rows, case.rows * case.classes, count)
    slowed = max(1.0, count / BANDWIDTH) if comes_from_memory(case) else 1.0
    if wake is None:
        free = [0.0, *[HERE] * (count - 1)]
    else:
        free = [wake.call * (count - 1), *(wake.call * (k - 1) + wake.arrival for k in range(1, count))]
    heapq.heapify(free)
    end = 0.0
    for start in range(0, case.rows, step):
        rows = min(step, case.rows - start)
        now = heapq.heappop(free) + TAKE + case.seconds * rows / case.rows * slowed
        end = max(end, now)
        heapq.heappush(free, now)
    return end


def speedup(case: Case, count: int, wake: Wake | None = None) -> float:
    """How many times as fast as on one thread, simulated."""
    return case.seconds / simulate(case, count, wake)


def bend(case: Case) -> tuple[int, str]:
    """The number of threads up to which each does `WORTH` of what one alone does, and what limits more of them."""
    slow = (count for count in range(2, MOST + 1) if speedup(case, count) < WORTH * count)
    last, shared = next(slow, MOST + 1) - 1, most_threads(case, None)
    if min(last, shared) >= MOST:
        return MOST, ""
    if shared <= last:
        return shared, "little work"
    return last, "memory" if comes_from_memory(case) else "blocks"


def wake_up(repeats: int = 300) -> Wake:
    """The median times of waking a thread that sleeps where the helpers of the library do: at a queue."""
    asked: SimpleQueue[bool] = SimpleQueue()
    answered: SimpleQueue[float] = SimpleQueue()

    def helper() -> None:
        while asked.get():
            answered.put(time.perf_counter())

    thread = Thread(target=helper, daemon=True)
    thread.start()
    found = []
    for _ in range(repeats):
        time.sleep(1e-3)
        begun = time.perf_counter()
        asked.put(True)
        found.append((time.perf_counter() - begun, answered.get() - begun))
    asked.put(False)
    thread.join()
    return Wake(*(statistics.median(times) for times in zip(*found, strict=True)))


def timing(x: np.ndarray, out: np.ndarray, count: int) -> Timing:
    """The time of calls that follow each other on so many threads."""
    with fs.threads(count):
        return measure({"softmax": lambda: fs.softmax(x, out=out)}, SECONDS)["softmax"]


class Line(NamedTuple):
    """A shape: its time on one thread, and those that were measured on several."""

    case: Case
    measured: dict[int, Timing]


def lines() -> list[Line]:
    """Measure all shapes, on as many threads as there are processors."""
    found = []
    for rows, classes in SHAPES:
        x = np.random.default_rng(0).normal(size=(rows, classes)).astype(np.float32)
        out = np.empty_like(x)
        case = Case(rows, classes, timing(x, out, 1).median)
        counts = [count for count in SHOWN if count <= threads.max_threads()]
        found.append(Line(case, {count: timing(x, out, count) for count in counts}))
    return found


def table(found: list[Line], wake: Wake) -> str:
    """A row for each shape: the time on one thread, measured and simulated ratios, and where the curve bends."""
    header = ["softmax, out=, float32", "1 thread", *map(str, SHOWN), "bends at", f"helpers asleep, {MOST}"]
    shown = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(SHOWN) + 1) + "---|---:|"]
    for case, measured in found:
        cells = []
        for count in SHOWN:
            cell = f"{speedup(case, count):.1f}"
            if count in measured:
                several = measured[count]
                cell = f"{'' if several.is_steady else DOUBT}**{case.seconds / several.median:.1f}** ({cell})"
            cells.append(cell)
        last, limit = bend(case)
        bends = f"{last}: {limit}" if limit else f"beyond {MOST}"
        shown.append(
            f"| {case.rows:,} x {case.classes:,} | {1e6 * case.seconds:,.0f} us | {' | '.join(cells)} | {bends} | "
            f"{speedup(case, MOST, wake):.1f} |"
        )
    return "\n".join(shown)


def summary(found: list[Line]) -> str:
    """The simulated speed on `MOST` threads and where the curve bends, for README.md."""
    parts = []
    for case, _ in found:
        last, limit = bend(case)
        bends = f"bends at {last}, {limit}" if limit else "does not bend"
        parts.append(f"{case.rows:,} x {case.classes:,}: {speedup(case, MOST):.1f} ({bends})")
    return (
        f"More threads than the {threads.max_threads()} of this machine are simulated. `softmax(x, out=out)` on "
        f"{MOST} would be so many times as fast as on one: {'; '.join(parts)}. "
        "[More threads](docs/guide/speed.md#more-threads) says what is measured and what is assumed."
    )


def main() -> int:
    """Measure, simulate, print, and write if that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the results into the pages")
    choice = parser.parse_args()
    facts, wake, found = machine(), wake_up(), lines()
    text = (
        f"{table(found, wake)}\n\n{DOUBT}: varies too much, or threads waited for a processor. Measured: to wake "
        f"a helper takes the caller {1e6 * wake.call:.0f} us, and one that slept for a millisecond works after "
        f"{1e6 * wake.arrival:.0f} us. Assumed: memory for {BANDWIDTH:g} threads, {1e9 * TAKE:.0f} ns to "
        f"take a block, {1e9 * HERE:.0f} ns until a helper that waits sees the call. "
        f"{caption(facts)}; made by `python benchmarks/scaling.py --write`."
    )
    print(text, summary(found), sep="\n\n")
    if choice.write:
        readme.write("scaling", text)
        readme.write("threads", summary(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
