"""Linear cross-entropy and its gradients beside PyTorch and JAX: time and peak memory against the classes.

``python benchmarks/linear.py`` measures in some three minutes; ``--write`` stores linear.json and linear.svg, and
puts the table into docs/guide/optimisers.md and the picture into README.md. ``--pages`` makes these again of the
stored numbers. Each library computes each case in a process of its own, on the same arrays, because the peak of
the memory belongs to a process; the memory of the arguments is not counted, that of the results is. Needs Linux.
"""

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import readme  # noqa: E402

import fastsoftmax as fs  # noqa: E402
from fastsoftmax.arrays.threads import max_threads  # noqa: E402
from fastsoftmax.tools.bench.measure import FEWEST_SLOW, MOST  # noqa: E402

ROWS, WIDTH = 1024, 256
CLASSES = (1000, 4096, 16384, 65536, 262144)
CHUNK = 256
"""The rows of a chunk for PyTorch. Its own choice is slower here."""
MADE_BY = "python benchmarks/linear.py --write"
OURS = "fastsoftmax"


def problem(rows: int, width: int, classes: int) -> tuple[Any, Any, Any]:
    """Features, weights and class indices."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((classes, width), np.float32)
    weight *= np.float32(width**-0.5)
    return random.standard_normal((rows, width), np.float32), weight, random.integers(0, classes, rows)


def _ours(features: Any, weight: Any, targets: Any) -> Callable[[], Any]:
    return lambda: fs.linear_cross_entropy_with_grad(features, weight, targets)


def _torch(features: Any, weight: Any, targets: Any, chunk: int | None = None) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(max_threads())
    x, w = (torch.from_numpy(array).requires_grad_() for array in (features, weight))
    labels, options = torch.from_numpy(targets), None
    if chunk is not None:
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk, chunking_method=None)

    def call() -> Any:
        loss = torch.nn.functional.linear_cross_entropy(x, w, labels, options=options)
        loss.backward()
        gradients, x.grad, w.grad = (x.grad, w.grad), None, None
        return loss.item(), gradients

    return call


def _chunked(features: Any, weight: Any, targets: Any) -> Callable[[], Any]:
    return _torch(features, weight, targets, CHUNK)


def _jax(features: Any, weight: Any, targets: Any) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    def loss(x: Any, w: Any, labels: Any) -> Any:
        z = x @ w.T
        return (jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, labels[:, None], 1)[:, 0]).mean()

    both = jax.jit(jax.value_and_grad(loss, (0, 1)))
    arguments = [jnp.asarray(array) for array in (features, weight, targets)]
    return lambda: jax.block_until_ready(both(*arguments))


LIBRARIES: dict[str, tuple[str, Callable[..., Callable[[], Any]]]] = {
    OURS: ("fastsoftmax", _ours),
    "PyTorch, dense": ("torch", _torch),
    "PyTorch, chunked": ("torch", _chunked),
    "JAX": ("jax", _jax),
}
"""{name: the package, and the function that makes the call}."""


def _memory(key: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(library: str, rows: int, width: int, classes: int, seconds: float) -> dict[str, float]:
    """The median time of a call, the peak of the memory over that before it, and the loss."""
    call = LIBRARIES[library][1](*problem(rows, width, classes))
    result = call()  # compiles
    loss = float(result[0])
    del result
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins again
    before = _memory("VmRSS")
    times: list[float] = []
    while len(times) < FEWEST_SLOW or (sum(times) < seconds and len(times) < MOST):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
        if len(times) == 1:
            peak = _memory("VmHWM") - before
    return {"seconds": statistics.median(times), "peak": peak, "loss": loss}


def results(rows: int, width: int, every: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """All cases, each in a process of its own; AssertionError if the losses disagree."""
    from fastsoftmax.tools.bench.report import machine

    found: dict[str, Any] = {"machine": machine(), "rows": rows, "width": width, "cases": {}}
    names = [name for name, (package, _) in LIBRARIES.items() if find_spec(package)]
    for classes in every:
        case: dict[str, Any] = {}
        for name in names:
            one = [str(part) for part in (name, rows, width, classes, seconds)]
            command = [sys.executable, str(HERE / "linear.py"), "--one", *one]
            case[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(classes, name, case[name], file=sys.stderr, flush=True)
            if abs(case[name]["loss"] - case[OURS]["loss"]) > 1e-4 * case[OURS]["loss"]:
                raise AssertionError(f"the loss of {name} disagrees for {classes} classes")
        found["cases"][str(classes)] = case
    return found


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def table(found: dict[str, Any]) -> str:
    """A row for each number of classes: time and peak memory of each library, relative to ours."""
    from fastsoftmax.tools.bench.report import caption, duration

    names = list(next(iter(found["cases"].values())))
    shape = f"{found['rows']:,} rows of {found['width']} float32 features"
    caption_line = (
        f"Loss and both gradients of {shape}: median time (in brackets relative to ours), and peak memory beside "
        f"the arguments. PyTorch's chunks have {CHUNK} rows. {caption(found['machine'])}; made by `{MADE_BY}`.\n"
    )
    lines = [
        caption_line,
        "| classes | " + " | ".join(names) + " |",
        "|---" * (1 + len(names)) + "|",
    ]
    for classes, case in found["cases"].items():
        cells = [f"{int(classes):,}"]
        for name in names:
            took, size = case[name]["seconds"], case[name]["peak"]
            relative = f" ({took / case[OURS]['seconds']:.1f} x)" if name != OURS else ""
            cells.append(f"{duration(took)}{relative}, {_megabytes(size)}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Time and peak memory against the classes, as SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from fastsoftmax.tools.bench import pictures

    colors = dict(zip(LIBRARIES, ("#2f6db5", "#d9622b", "#c9a227", "#8a4fbf"), strict=True))
    with rc_context(pictures.SVG):
        figure = Figure(figsize=(9.6, 4.0), facecolor="white", layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, key, unit in ((left, "seconds", 1.0), (right, "peak", 1e6)):
            axes.set(xscale="log", yscale="log")
            for name in next(iter(found["cases"].values())):
                points = [(int(n), case[name][key] / unit) for n, case in found["cases"].items()]
                axes.plot(*zip(*points, strict=True), "o-", label=name, color=colors[name], markersize=4)
        pictures.style(left, "Loss and gradients", "classes", "seconds")
        pictures.style(right, "Peak memory beside the arguments", "classes", "MB")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
        title = (
            f"linear_cross_entropy_with_grad, {found['rows']:,} x {found['width']} float32: {machine_name(found)}"
        )
        figure.suptitle(title, x=0.01, ha="left", size=11, color=pictures.INK)
        figure.savefig(path, format="svg", metadata={"Date": None})


def machine_name(found: dict[str, Any]) -> str:
    """The processor and the threads."""
    from fastsoftmax.tools.bench.report import processor, threads

    return f"{processor(found['machine'])}, {threads(found['machine'])}"


def picture(found: dict[str, Any]) -> str:
    """What README.md shows."""
    case = found["cases"][max(found["cases"], key=int)]
    ours, parts = case[OURS], []
    for name, one in case.items():
        if name != OURS:
            longer, larger = one["seconds"] / ours["seconds"], one["peak"] / ours["peak"]
            parts.append(f"{name} {longer:.1f} times as long, {larger:.1f} times the memory")
    alternative = f"Time and peak memory of the linear cross-entropy on {machine_name(found)}"
    most = max(map(int, found["cases"]))
    busy = ", busy with other work" if found["machine"].get("load", 0) > 0.5 else ""
    return (
        f"![{alternative}](benchmarks/linear.svg)\n\n`linear_cross_entropy_with_grad` with {most:,} classes takes "
        f"{ours['seconds']:.2f} s and {_megabytes(ours['peak'])}; {'; '.join(parts)}. "
        f"{machine_name(found)}, {found['machine']['date']}{busy}; made by `{MADE_BY}`."
    )


def write(found: dict[str, Any]) -> None:
    """The picture and the pages."""
    draw(found, HERE / "linear.svg")
    readme.write("linear", table(found))
    readme.write("picture of linear", picture(found))


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each case of each library")
    parser.add_argument("--write", action="store_true", help="store the numbers, draw, write the pages")
    parser.add_argument("--pages", action="store_true", help="draw and write the pages from the stored numbers")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    stored = HERE / "linear.json"
    if options.one:
        name, *sizes, seconds = options.one
        print(json.dumps(measure(name, *map(int, sizes), float(seconds))))
        return
    if options.pages:
        write(json.loads(stored.read_text(encoding="utf-8")))
        return
    found = results(options.rows, options.width, tuple(options.classes), options.seconds)
    print(table(found))
    if options.write:
        stored.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        write(found)


if __name__ == "__main__":
    main()
