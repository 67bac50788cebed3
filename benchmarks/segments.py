"""The functions of ragged rows beside the ways to do without them, and the table of docs/guide.

``python benchmarks/segments.py`` measures; ``--write`` puts the table into docs/guide/ragged.md. The peers:
NumPy's `reduceat`, `torch.sparse.softmax` on the same numbers as a sparse matrix (made beforehand), and a plain
loop in Numba, on all threads. All allocate the result. They run in turns in one process.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numba
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme  # noqa: E402

import fastsoftmax as fs  # noqa: E402
from fastsoftmax.arrays.threads import max_threads  # noqa: E402
from fastsoftmax.tools.bench import inputs  # noqa: E402
from fastsoftmax.tools.bench.cases import DisagreementError, check  # noqa: E402
from fastsoftmax.tools.bench.measure import measure  # noqa: E402
from fastsoftmax.tools.bench.report import caption, machine  # noqa: E402

LIBRARIES = ("NumPy reduceat", "torch.sparse.softmax", "Numba loop")


def lengths() -> Iterator[tuple[str, Any]]:
    """The cases: about 3 million elements each, and 13 million where one segment has 10 of them."""
    random = np.random.default_rng(0)
    yield "1M of 3", np.full(1_000_000, 3)
    yield "200k of 1 to 30", random.integers(1, 31, 200_000)
    yield "30k, geometric, mean 100", random.geometric(0.01, 30_000)
    yield "3000 of 1000", np.full(3000, 1000)
    mixed = np.full(1_000_001, 3)
    mixed[500_000] = 10_000_000
    yield "1M of 3 and one of 10M", mixed


def _numpy(x: Any, indptr: Any, targets: Any) -> dict[str, Callable[[], Any]]:
    starts, sizes = indptr[:-1], np.diff(indptr)

    def terms() -> tuple[Any, Any, Any]:
        top = np.maximum.reduceat(x, starts)
        e = np.exp(x - np.repeat(top, sizes))
        return top, e, np.add.reduceat(e, starts)

    def softmax() -> Any:
        _, e, total = terms()
        return e / np.repeat(total, sizes)

    def logsumexp() -> Any:
        top, _, total = terms()
        return top + np.log(total)

    def cross_entropy_with_grad() -> tuple[Any, Any]:
        top, e, total = terms()
        places = starts + targets
        loss = np.mean(top + np.log(total) - x[places])
        grad = e / np.repeat(total, sizes)
        grad[places] -= 1
        grad /= x.dtype.type(len(sizes))
        return loss, grad

    return {
        "segment_softmax": softmax,
        "segment_logsumexp": logsumexp,
        "segment_cross_entropy_with_grad": cross_entropy_with_grad,
    }


@numba.njit(parallel=True)
def _loop_softmax(x: Any, indptr: Any, out: Any) -> None:
    for n in numba.prange(indptr.size - 1):
        top = -np.inf
        for j in range(indptr[n], indptr[n + 1]):
            top = max(top, x[j])
        total = x.dtype.type(0)
        for j in range(indptr[n], indptr[n + 1]):
            out[j] = np.exp(x[j] - x.dtype.type(top))
            total += out[j]
        for j in range(indptr[n], indptr[n + 1]):
            out[j] /= total


@numba.njit(parallel=True)
def _loop_logsumexp(x: Any, indptr: Any, out: Any) -> None:
    for n in numba.prange(indptr.size - 1):
        top = -np.inf
        for j in range(indptr[n], indptr[n + 1]):
            top = max(top, x[j])
        total = x.dtype.type(0)
        for j in range(indptr[n], indptr[n + 1]):
            total += np.exp(x[j] - x.dtype.type(top))
        out[n] = x.dtype.type(top) + np.log(total)


@numba.njit(parallel=True)
def _loop_cross_entropy(x: Any, indptr: Any, targets: Any, losses: Any, grad: Any) -> None:
    inverse = x.dtype.type(1.0 / targets.size)
    for n in numba.prange(indptr.size - 1):
        top = -np.inf
        for j in range(indptr[n], indptr[n + 1]):
            top = max(top, x[j])
        total = x.dtype.type(0)
        for j in range(indptr[n], indptr[n + 1]):
            grad[j] = np.exp(x[j] - x.dtype.type(top))
            total += grad[j]
        place = indptr[n] + targets[n]
        losses[n] = x.dtype.type(top) + np.log(total) - x[place]
        for j in range(indptr[n], indptr[n + 1]):
            grad[j] = grad[j] / total * inverse
        grad[place] -= inverse


def _loops(x: Any, indptr: Any, targets: Any) -> dict[str, Callable[[], Any]]:
    def softmax() -> Any:
        out = np.empty_like(x)
        _loop_softmax(x, indptr, out)
        return out

    def logsumexp() -> Any:
        out = np.empty(len(indptr) - 1, x.dtype)
        _loop_logsumexp(x, indptr, out)
        return out

    def cross_entropy_with_grad() -> tuple[Any, Any]:
        losses, grad = np.empty(len(indptr) - 1, x.dtype), np.empty_like(x)
        _loop_cross_entropy(x, indptr, targets, losses, grad)
        return np.mean(losses), grad

    return {
        "segment_softmax": softmax,
        "segment_logsumexp": logsumexp,
        "segment_cross_entropy_with_grad": cross_entropy_with_grad,
    }


def _torch_softmax(x: Any, indptr: Any) -> Callable[[], Any]:
    import torch

    sizes = np.diff(indptr)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    columns = np.arange(len(x)) - np.repeat(indptr[:-1], sizes)
    indices = torch.from_numpy(np.stack([rows, columns]))
    shape = (len(sizes), int(sizes.max()))
    values = torch.from_numpy(x)
    matrix = torch.sparse_coo_tensor(indices, values, shape, is_coalesced=True, check_invariants=False)
    return lambda: torch.sparse.softmax(matrix, 1)._values().numpy()


def _calls(function: str, x: Any, indptr: Any, targets: Any) -> dict[str, Callable[[], Any]]:
    ours = getattr(fs, function)
    arguments = (x, indptr, targets) if "cross_entropy" in function else (x, indptr)
    calls = {
        "fastsoftmax": lambda: ours(*arguments),
        "NumPy reduceat": _numpy(x, indptr, targets)[function],
        "Numba loop": _loops(x, indptr, targets)[function],
    }
    if function == "segment_softmax" and find_spec("torch"):
        calls["torch.sparse.softmax"] = _torch_softmax(x, indptr)
    return calls


def _close(ours: Any, theirs: Any, dtype: Any) -> bool:
    """As `check`, with more tolerance: a float32 sum of ten million terms has three digits at best."""
    if isinstance(ours, tuple):
        return all(_close(a, b, dtype) for a, b in zip(ours, theirs, strict=True))
    try:
        check("segments", "the peer", ours, theirs, dtype)
    except DisagreementError:
        return bool(np.allclose(ours, theirs, rtol=0.2, atol=1e-5))
    return True


def table(dtype: Any, seconds: float) -> str:
    """One Markdown table: a row for each function and case, ms and the ratio to ours."""
    lines = [
        f"| {np.dtype(dtype)} | segments | fastsoftmax | " + " | ".join(LIBRARIES) + " |",
        "|---" * (3 + len(LIBRARIES)) + "|",
    ]
    random = np.random.default_rng(1)
    for case, sizes in lengths():
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        x = random.normal(0, 3, indptr[-1]).astype(dtype)
        targets = random.integers(0, sizes)
        for function in ("segment_softmax", "segment_logsumexp", "segment_cross_entropy_with_grad"):
            calls = _calls(function, x, indptr, targets)
            expected = calls["fastsoftmax"]()
            for name, call in calls.items():
                if not _close(expected, call(), dtype):
                    raise AssertionError(f"{function} of {name} disagrees for {case}")
            found = measure(calls, seconds)
            ours = found["fastsoftmax"].median
            cells = [f"**{1e3 * ours:.1f}** ± {1e3 * ours * found['fastsoftmax'].spread:.1f}"]
            times = [found[name].median if name in found else None for name in LIBRARIES]
            cells += ["" if time is None else f"{1e3 * time:.1f} ({time / ours:.1f} x)" for time in times]
            lines.append(f"| `{function}` | {case} | " + " | ".join(cells) + " |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each row of the table is measured")
    parser.add_argument("--dtype", choices=["float32", "float64"], action="append")
    parser.add_argument("--write", action="store_true", help="put the table into docs/guide/ragged.md")
    options = parser.parse_args()
    inputs.prepare(max_threads())
    text = f"Median milliseconds; {caption(machine())}. Made by `python benchmarks/segments.py --write`.\n"
    for dtype in options.dtype or ["float32", "float64"]:
        text += "\n" + table(np.dtype(dtype), options.seconds) + "\n"
    print(text)
    if options.write:
        readme.write("segments", text)


if __name__ == "__main__":
    main()
