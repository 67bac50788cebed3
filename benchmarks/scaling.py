"""How calls scale with threads: measured as far as this machine has processors, and simulated beyond.

``python benchmarks/scaling.py`` prints both; ``--write`` puts the table into docs/guide/speed.md. The simulation
has the blocks of `fastsoftmax.arrays.threads` and takes them as the threads do: the caller begins at once, each
helper after its wake-up, and whoever is free takes the next block. What it assumes is measured here (the time of a
call on one thread, of taking a block, and of a wake-up) or stated (`BANDWIDTH`).
"""

import argparse
import heapq
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme  # noqa: E402

import fastsoftmax as fs  # noqa: E402
from fastsoftmax.arrays import threads  # noqa: E402
from fastsoftmax.tools.bench.measure import measure  # noqa: E402
from fastsoftmax.tools.bench.report import caption, machine  # noqa: E402

SHAPES = ((1_000, 100), (10_000, 10), (200, 2_000), (10_000, 1_000), (1_000_000, 10))
MOST = 16
SECONDS = 0.5
"""How long each number of threads is measured."""
BANDWIDTH = 6.0
"""The memory traffic of a processor with 16 cores, in multiples of what one thread causes: an assumption."""
IN_CACHES = 1 << 22
"""Arrays with more bytes than this come from memory."""
TAKE = 1e-7
"""Seconds to take a block while other threads do, from a counter that all write to."""
WAKE_CALL, WAKE = 5e-6, 5e-5
"""Seconds that the caller needs to wake one helper, and until it works."""
HERE = 5e-7
"""Seconds until a helper that waits sees the job."""


class Case(NamedTuple):
    """A call: how its rows are cut, and its time on one thread."""

    rows: int
    classes: int
    seconds: float


def simulate(case: Case, count: int, waiting: bool) -> float:
    """Seconds of a call on so many threads, where helpers wait for it or sleep."""
    work = case.rows * case.classes
    count = max(1, min(count, case.rows, work // (threads.SHARED_WORK // 2)))
    if count == 1:
        return case.seconds
    step = threads.rows_of_block(case.rows, work, count)
    slowed = max(1.0, count / BANDWIDTH) if 8 * work > IN_CACHES else 1.0
    begins = [HERE] * (count - 1) if waiting else [WAKE_CALL * k + WAKE for k in range(1, count)]
    free = [0.0 if waiting else WAKE_CALL * (count - 1), *begins]
    heapq.heapify(free)
    end = 0.0
    for start in range(0, case.rows, step):
        rows = min(step, case.rows - start)
        now = heapq.heappop(free) + TAKE + case.seconds * rows / case.rows * slowed
        end = max(end, now)
        heapq.heappush(free, now)
    return end


def median(x: np.ndarray, out: np.ndarray, count: int) -> float:
    """The median time of calls that follow each other on so many threads."""
    with fs.threads(count):
        return measure({"softmax": lambda: fs.softmax(x, out=out)}, SECONDS)["softmax"].median


def table() -> str:
    """A row for each shape: the time on one thread, measured and simulated ratios."""
    here = threads.max_threads()
    shown = sorted({2, 4, 8, MOST} | {here} - {1})
    lines = [
        "| softmax, out=, float32 | 1 thread | " + " | ".join(f"{n}" for n in shown) + " | helpers asleep, 16 |",
        "|---|" + "---:|" * (len(shown) + 2),
    ]
    for rows, classes in SHAPES:
        x = np.random.default_rng(0).normal(size=(rows, classes)).astype(np.float32)
        out = np.empty_like(x)
        case = Case(rows, classes, median(x, out, 1))
        cells = []
        for count in shown:
            cell = f"{case.seconds / simulate(case, count, waiting=True):.1f}"
            if count <= here:
                cell = f"**{case.seconds / median(x, out, count):.1f}** ({cell})"
            cells.append(cell)
        asleep = case.seconds / simulate(case, MOST, waiting=False)
        lines.append(
            f"| {rows:,} x {classes:,} | {1e6 * case.seconds:,.0f} us | {' | '.join(cells)} | {asleep:.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, simulate, print, and write if that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/guide/speed.md")
    choice = parser.parse_args()
    text = f"{table()}\n\n{caption(machine())}"
    print(text)
    if choice.write:
        readme.write("scaling", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
