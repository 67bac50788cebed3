"""Measure every case beside its peers and print the tables of the README.

``python benchmarks/report.py`` runs all of it; ``--write`` puts the tables into README.md between the marks.
All libraries run in one process with the same number of threads, interleaved call by call, so that a busy
moment of the machine hits all of them; the tables hold medians.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme  # noqa: E402
from cases import Inputs, agree, cases, fs_threads, yardsticks  # noqa: E402

SHAPES = [(1_000_000, 10), (100_000, 100), (10_000, 1000), (300, 50257)]


def measure(calls: dict[str, Any], seconds: float) -> dict[str, tuple[float, float]]:
    """Median and quartile spread in ms of each call, taken in turns for so many seconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(next(iter(times.values()))) < 7:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    result = {}
    for name, sample in times.items():
        low, median, high = statistics.quantiles(sample, n=4)
        result[name] = (median, high - low)
    return result


def machine() -> str:
    """What the numbers were measured on."""
    versions = []
    for name in ("numpy", "numba", "scipy", "scikit-learn", "torch", "jax"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return (
        f"{date.today()}, {platform.machine()}, {fs_threads()} threads, Python {platform.python_version()}, "
        + ", ".join(versions)
    )


def table(dtype: Any, seconds: float) -> str:
    """One Markdown table: a row for each function and shape, ms and the ratio to ours."""
    libraries = ["NumPy", "SciPy", "scikit-learn", "PyTorch", "JAX", "Numba loop"]
    lines = [
        f"| {np.dtype(dtype)} | shape | np.copyto | fastsoftmax | " + " | ".join(libraries) + " |",
        "|---" * (4 + len(libraries)) + "|",
    ]
    for shape in SHAPES:
        inputs = Inputs.make(shape, dtype)
        for function, setups in cases().items():
            calls = {name: setup(inputs) for name, setup in setups.items()}
            expected = calls["fastsoftmax"]()
            for name, call in calls.items():
                if not agree(expected, call(), dtype):
                    raise AssertionError(f"{function} of {name} disagrees at {shape}")
            calls["np.copyto"] = yardsticks(inputs)["np.copyto"]
            found = measure(calls, seconds)
            ours, spread = found["fastsoftmax"]
            cells = [f"{found['np.copyto'][0]:.1f}", f"**{ours:.1f}** ± {spread / 2:.1f}"]
            cells += [
                f"{found[name][0]:.1f} ({found[name][0] / ours:.1f} x)" if name in found else ""
                for name in libraries
            ]
            lines.append(f"| {function} | {shape[0]} x {shape[1]} | " + " | ".join(cells) + " |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each row of the table is measured")
    parser.add_argument("--dtype", choices=["float32", "float64"], action="append")
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    options = parser.parse_args()
    threads = str(fs_threads())
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    text = f"Median milliseconds; {machine()}. Made by `python benchmarks/report.py --write`.\n"
    for dtype in options.dtype or ["float32", "float64"]:
        text += "\n" + table(np.dtype(dtype), options.seconds) + "\n"
    print(text)
    if options.write:
        readme.write("speed", text)


if __name__ == "__main__":
    main()
