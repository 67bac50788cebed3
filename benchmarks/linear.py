"""Linear cross-entropy and its gradients beside PyTorch and JAX: time and peak memory against the classes.

``python benchmarks/linear.py`` measures in some three minutes; ``--write`` stores linear.json and linear.svg, and
puts the table into docs/guide/optimisers.md and the picture into README.md. ``--pages`` makes these again of the
stored numbers. ``--bounds`` measures the four shapes whose time is promised, in units of one product
``features @ weight.T`` of the same process, beside PyTorch: some minutes on a quiet machine, 9 GB of memory.

Each library computes each case in a process of its own, on the same arrays, because the peak of the memory belongs
to a process; the memory of the arguments is not counted, that of the results is. Needs Linux.
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
from fastsoftmax.arrays.linear import BLOCK_BYTES, block_rows  # noqa: E402
from fastsoftmax.arrays.threads import max_threads  # noqa: E402
from fastsoftmax.tools.bench.measure import FEWEST_SLOW, MOST  # noqa: E402

ROWS, WIDTH = 1024, 256
CLASSES = (1000, 4096, 16384, 65536, 262144)
CHUNK = 256
"""The rows of a chunk for PyTorch. Its own choice is slower here."""
BOUNDS = {
    (1024, 512, 32768): 3.9,
    (4096, 768, 50257): 3.9,
    (8192, 256, 131072): 3.9,
    (200000, 64, 100): 5.0,
}
"""{(rows, width, classes): how many products loss and gradients may take}; three are the least possible."""
PAUSE = 0.2
"""Seconds before each call of `--bounds`: threads of a BLAS spin for some time after a product."""
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


def _chunked_alike(features: Any, weight: Any, targets: Any) -> Callable[[], Any]:
    """Chunks of as many rows as our blocks have."""
    return _torch(features, weight, targets, block_of(weight, features))


def block_of(weight: Any, features: Any) -> int:
    """The rows of a block of logits of the default size."""
    return min(len(features), block_rows("linear_cross_entropy", len(weight), weight.itemsize, BLOCK_BYTES))


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
BOUNDED = {name: LIBRARIES[name] for name in (OURS, "PyTorch, dense", "PyTorch, chunked")}
BOUNDED["PyTorch, chunks as our blocks"] = ("torch", _chunked_alike)


def _memory(key: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(library: str, rows: int, width: int, classes: int, seconds: float) -> dict[str, float]:
    """The median time of a call, the peak of the memory over that before it, and the loss."""
    call = LIBRARIES[library][1](*problem(rows, width, classes))
    loss, before = first_call(call)
    times: list[float] = []
    while len(times) < FEWEST_SLOW or (sum(times) < seconds and len(times) < MOST):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
        if len(times) == 1:
            peak = _memory("VmHWM") - before
    return {"seconds": statistics.median(times), "peak": peak, "loss": loss}


def first_call(call: Callable[[], Any]) -> tuple[float, int]:
    """The loss of a call, which compiles, and the memory in use after it; the peak begins again."""
    loss = float(call()[0])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return loss, _memory("VmRSS")


def _clock(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds and processor time of a call, after a pause."""
    time.sleep(PAUSE)
    begin, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begin, time.process_time() - used


def measure_in_products(library: str, rows: int, width: int, classes: int, repeats: int) -> dict[str, float]:
    """The medians of the time and of the processor time of a call and of a product, which take turns."""
    features, weight, targets = problem(rows, width, classes)
    call = BOUNDED[library][1](features, weight, targets)
    step = block_of(weight, features)

    def product() -> None:
        for start in range(0, rows, step):
            np.matmul(features[start : start + step], weight.T, out=logits[: min(step, rows - start)])

    loss, before = first_call(call)
    times = [_clock(call)]
    peak = _memory("VmHWM") - before
    logits = np.empty((step, classes), np.float32)  # not part of the peak
    product()
    products = [_clock(product)]
    for _ in range(repeats - 1):
        times.append(_clock(call))
        products.append(_clock(product))
    (seconds, used), (product_seconds, product_used) = (np.median(every, axis=0) for every in (times, products))
    found = {"seconds": seconds, "used": used, "product": product_seconds, "product used": product_used}
    return {name: float(value) for name, value in found.items()} | {"peak": peak, "loss": loss}


def bounds(shapes: dict[tuple[int, int, int], float], repeats: int) -> str:
    """A row for each shape: each library in products, and whether ours is within the bound and ahead of others."""
    from fastsoftmax.tools.bench.report import caption, machine

    names = [name for name, (package, _) in BOUNDED.items() if find_spec(package)]
    head = (
        "Loss and gradients in products (in brackets: processor time in that of products), peak memory beside the "
        f"arguments; medians of {repeats} calls. {caption(machine())}.\n"
    )
    lines = [
        head,
        "| rows, features, classes | a product | at most | " + " | ".join(names) + " | |",
        "|---" * (len(names) + 4) + "|",
    ]
    for shape, most in shapes.items():
        case = {name: _in_a_process("--bound", name, *shape, repeats) for name in names}
        check_losses(case, ", ".join(map(str, shape)))
        found = {name: one["seconds"] / one["product"] for name, one in case.items()}
        cells = [", ".join(f"{n:,}" for n in shape), f"{case[OURS]['product']:.3g} s", f"{most}"]
        for name, one in case.items():
            used = one["used"] / one["product used"]
            cells.append(f"{found[name]:.2f} ({used:.2f}), {_megabytes(one['peak'])}")
        ahead = found[OURS] == min(found.values())
        cells.append(("within" if found[OURS] <= most else "above") + (", ahead" if ahead else ", not ahead"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _in_a_process(how: str, *arguments: Any) -> dict[str, float]:
    """What this script prints as JSON when it is called in this way."""
    command = [sys.executable, str(HERE / "linear.py"), how, *map(str, arguments)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(*arguments, found, file=sys.stderr, flush=True)
    return found


def check_losses(case: dict[str, Any], where: str) -> None:
    """AssertionError if the losses of the libraries disagree."""
    for name, one in case.items():
        if abs(one["loss"] - case[OURS]["loss"]) > 1e-4 * case[OURS]["loss"]:
            raise AssertionError(f"the loss of {name} disagrees for {where}")


def results(rows: int, width: int, every: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """All cases, each in a process of its own; AssertionError if the losses disagree."""
    from fastsoftmax.tools.bench.report import machine

    found: dict[str, Any] = {"machine": machine(), "rows": rows, "width": width, "cases": {}}
    names = [name for name, (package, _) in LIBRARIES.items() if find_spec(package)]
    for classes in every:
        case = {name: _in_a_process("--one", name, rows, width, classes, seconds) for name in names}
        check_losses(case, f"{classes} classes")
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
    parser.add_argument("--bounds", action="store_true", help="measure the promised shapes in products, and print")
    parser.add_argument("--repeats", type=int, default=5, help="calls for each case of --bounds")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--bound", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    stored = HERE / "linear.json"
    if options.one:
        name, *sizes, seconds = options.one
        print(json.dumps(measure(name, *map(int, sizes), float(seconds))))
        return
    if options.bound:
        name, *sizes = options.bound
        print(json.dumps(measure_in_products(name, *map(int, sizes))))
        return
    if options.bounds:
        print(bounds(BOUNDS, options.repeats))
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
