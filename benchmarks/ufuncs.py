"""Measure the elementary functions beside NumPy's and SciPy's and print the table of docs/guide.

``python benchmarks/ufuncs.py`` calls the ufuncs on arrays, and runs loops compiled by Numba over the same numbers:
with our functions, and with those that Numba has. All run in one thread and one process, call by call in turns.
Processor time is measured, because a busy machine changes it little; ratios are those of medians. Errors are the
worst in ulps over numbers of all magnitudes and those where errors are largest, against mpmath. ``--write`` puts
the table into docs/guide/elementary.md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np
from numba import njit

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "api"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import oracle  # noqa: E402
import readme  # noqa: E402
import test_ufuncs as known  # noqa: E402

import fastsoftmax as fs  # noqa: E402
from fastsoftmax.api import ufuncs  # noqa: E402
from fastsoftmax.tools.bench.report import caption, machine  # noqa: E402


def peer(name: str) -> tuple[str, Any]:
    """Whose function ours is compared with, and that function."""
    if hasattr(np, name):
        return "NumPy", getattr(np, name)
    from scipy import special

    if name == "softplus":  # SciPy's way to compute it
        return "NumPy", lambda x, out: np.logaddexp(0, x, out=out)
    return "SciPy", getattr(special, name)


# What a user of Numba writes where there is no ufunc for it.
FORMULAS: dict[str, Callable[..., Any]] = {
    "exp": njit(lambda x: np.exp(x)),
    "expm1": njit(lambda x: np.expm1(x)),
    "log": njit(lambda x: np.log(x)),
    "log1p": njit(lambda x: np.log1p(x)),
    "expit": njit(lambda x: 1 / (1 + np.exp(-x))),
    "logit": njit(lambda p: np.log(p) - np.log1p(-p)),
    "log_expit": njit(lambda x: min(x, 0) - np.log1p(np.exp(-abs(x)))),
    "softplus": njit(lambda x: max(x, 0) + np.log1p(np.exp(-abs(x)))),
    "logaddexp": njit(lambda x, y: max(x, y) + np.log1p(np.exp(-abs(x - y)))),
    "xlogy": njit(lambda x, y: x * np.log(y) if x != 0 else 0 * x),
    "tanh": njit(lambda x: np.tanh(x)),
    "entr": njit(lambda x: -x * np.log(x) if x > 0 else 0 * x),
}


def loop(function: Any, operands: int) -> Any:
    """A user's loop over numbers."""
    if operands == 1:

        @njit
        def one(x: Any, out: Any) -> None:
            for i in range(out.size):
                out[i] = function(x[i])

        return one

    @njit
    def two(x: Any, y: Any, out: Any) -> None:
        for i in range(out.size):
            out[i] = function(x[i], y[i])

    return two


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Nanoseconds of ours, and how many times as long theirs takes."""
    times: tuple[list[float], list[float]] = ([], [])
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times[0]) < 7:
        for call, sample in zip((ours, theirs), times, strict=True):
            start = time.thread_time_ns()
            call()
            sample.append(time.thread_time_ns() - start)
    mine, other = map(statistics.median, times)
    return mine, other / mine


def numbers(name: str, dtype: Any, count: int) -> tuple[Any, ...]:
    """Ordinary arguments."""
    rng = np.random.default_rng(0)
    x, p = rng.normal(0, 3, count).astype(dtype), rng.uniform(0.001, 0.999, count).astype(dtype)
    positive = np.abs(x) + dtype(0.01)
    chosen = {"log": (positive,), "log1p": (positive,), "logit": (p,), "entr": (p,), "xlogy": (p, positive)}
    return chosen.get(name, (x, positive) if name == "logaddexp" else (x,))


def worst(name: str, function: Any, dtype: Any) -> float:
    """The greatest error in ulps; of logaddexp where its terms do not cancel."""
    inputs = known.arguments(name, dtype, 400)
    out = np.empty_like(inputs[0])
    with np.errstate(all="ignore"):
        function(*inputs, out=out)
    exact = [known.ORACLES[name](*values) for values in zip(*map(oracle.exact, inputs), strict=True)]
    tiny = mp.mpf(float(np.finfo(dtype).tiny))
    kept = [abs(value) >= tiny for value in exact]
    if name == "logaddexp":
        pairs = zip(exact, *map(oracle.exact, inputs), strict=True)
        kept = [k and abs(v) >= (v - max(x, y)) / 2 for k, (v, x, y) in zip(kept, pairs, strict=True)]
    chosen = np.array(kept)
    return float(oracle.worst(out[chosen], np.array(exact, object)[chosen])[0])


def ulps(value: float) -> str:
    """Three digits are more than enough."""
    return f"{value:.1f}" if value < 1e4 else f"{value:.0e}"


def row(name: str, dtype: Any, count: int, seconds: float) -> str:
    """One row of the table."""
    function, (whose, other) = getattr(fs, name), peer(name)
    x = numbers(name, dtype, count)
    out = np.empty_like(x[0])
    mine, times = ratio(lambda: function(*x, out=out), lambda: other(*x, out=out), seconds)
    inside, outside = loop(function, len(x)), loop(FORMULAS[name], len(x))
    inside(*x, out)
    outside(*x, out)
    _, faster = ratio(lambda: inside(*x, out), lambda: outside(*x, out), seconds)
    own, foreign = ulps(worst(name, function, dtype)), ulps(worst(name, other, dtype))
    speeds = f"{mine / count:.2f} | {whose} | {times:.1f} x"
    return f"| {name} | {np.dtype(dtype)} | {speeds} | {own} | {foreign} | {faster:.1f} x |"


def table(count: int, seconds: float) -> str:
    """One Markdown table, a row for each function and dtype."""
    lines = [
        "| | dtype | ns a number | peer | speed | worst ulp | peer's worst ulp | speed in a Numba loop |",
        "|---" * 8 + "|",
    ]
    for name in ufuncs.NAMES:
        for dtype in (np.float32, np.float64):
            lines.append(row(name, dtype, count, seconds))
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="how many numbers an array holds")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each ratio is measured")
    parser.add_argument("--write", action="store_true", help="put the table into docs/guide/elementary.md")
    options = parser.parse_args()
    made_by = "Made by `python benchmarks/ufuncs.py --write`"
    text = f"Arrays of {options.count}, one thread; {caption(machine())}. {made_by}. Speed:\n"
    text += (
        "how many times as long the peer takes; in a loop, what Numba makes of the formula with np.exp and np.log."
    )
    text += "\n\n"
    text += table(options.count, options.seconds)
    print(text)
    if options.write:
        readme.write("ufuncs", text)


if __name__ == "__main__":
    main()
