"""Measure errors in ulps beside the peers' and print the table of docs/guide/accuracy.md.

``python benchmarks/accuracy.py`` takes the rows of ``tests/families.py``, on which usual implementations err most,
and the reference of ``tests/oracle.py``; ``--write`` writes the table there, and some of its rows into README.md.
Peers that are not installed are left out.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import families
import oracle
import readme

import fastsoftmax as fs

BOUNDS = {"softmax": 3, "log_softmax": 4, "cross-entropy of a row": 4, "its gradient": 4}
Library = dict[str, Callable[..., Any]]


def _ours() -> Library:
    def loss_and_gradient(x: Any, y: Any) -> Any:
        return fs.cross_entropy_with_grad(x, y, reduction="none")

    return {"softmax": fs.softmax, "log_softmax": fs.log_softmax, "both": loss_and_gradient}


def _scipy() -> Library:
    from scipy import special

    return {
        "softmax": lambda x: special.softmax(x, axis=-1),
        "log_softmax": lambda x: special.log_softmax(x, axis=-1),
    }


def _torch() -> Library:
    import torch

    def loss_and_gradient(x: Any, y: Any) -> Any:
        logits = torch.from_numpy(x).requires_grad_()
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="none")
        loss.sum().backward()
        return loss.detach().numpy(), logits.grad.numpy()

    return {
        "softmax": lambda x: torch.softmax(torch.from_numpy(x), -1).numpy(),
        "log_softmax": lambda x: torch.log_softmax(torch.from_numpy(x), -1).numpy(),
        "both": loss_and_gradient,
    }


def _jax() -> Library:
    import jax

    jax.config.update("jax_enable_x64", True)

    def losses(x: Any, y: Any) -> Any:
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(x, -1), y[:, None], -1)[:, 0]

    gradient = jax.jit(jax.grad(lambda x, y: losses(x, y).sum()))
    return {
        "softmax": lambda x: np.asarray(jax.nn.softmax(x, -1)),
        "log_softmax": lambda x: np.asarray(jax.nn.log_softmax(x, -1)),
        "both": lambda x, y: (np.asarray(losses(x, y)), np.asarray(gradient(x, y))),
    }


PEERS = {"SciPy": ("scipy", _scipy), "PyTorch": ("torch", _torch), "JAX": ("jax", _jax)}


def errors_of(library: Library, x: Any) -> dict[str, Any]:
    """The errors of each function on these rows, labelled with their greatest entry."""
    difference, others = oracle.wide_forward(x)
    with np.errstate(under="ignore"):
        probs = np.exp(difference) / (1 + others)
    log_probs = difference - np.log1p(others)
    top = np.argmax(x, axis=-1)
    found = {
        "softmax": oracle.wide_error(np.asarray(library["softmax"](x)), probs),
        "log_softmax": oracle.wide_error(np.asarray(library["log_softmax"](x)), log_probs),
    }
    if "both" in library:
        loss, gradient = library["both"](x, top)
        slope = probs.copy()
        np.put_along_axis(slope, top[:, None], -others / (1 + others), -1)
        found["cross-entropy of a row"] = oracle.wide_error(loss, np.log1p(others)[:, 0])
        found["its gradient"] = oracle.wide_error(gradient, slope)
    return found


def _ulps(error: float) -> str:
    return f"{error:.2f}" if error < 1 else f"{error:.1f}" if error < 1e4 else f"{error:.0e}"


def table(elements: int) -> str:
    """The Markdown table: the worst over all families and lengths, and the median of their medians."""
    libraries = {"fastsoftmax": _ours()}
    libraries |= {name: make() for name, (module, make) in PEERS.items() if find_spec(module)}
    worst: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    medians: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for dtype in (np.float32, np.float64):
        for family in families.FAMILIES:
            for classes in families.CLASSES:
                x = families.rows(family, classes, dtype, elements)
                for library, functions in libraries.items():
                    with np.errstate(all="ignore"):
                        errors = errors_of(functions, x)
                    for function, ulps in errors.items():
                        cell = (function, np.dtype(dtype).name, library)
                        worst[cell].append(float(ulps.max()))
                        medians[cell].append(float(np.median(ulps)))
        print(np.dtype(dtype).name, "done", file=sys.stderr, flush=True)
    lines = ["| worst error in ulp (typical) | " + " | ".join(libraries) + " | promised |"]
    lines.append("|---" * (len(libraries) + 2) + "|")
    for function, bound in BOUNDS.items():
        for dtype in ("float32", "float64"):
            cells = []
            for library in libraries:
                cell = (function, dtype, library)
                if cell not in worst:
                    cells.append("")
                    continue
                text = _ulps(max(worst[cell]))
                text = f"**{text}**" if library == "fastsoftmax" else text
                cells.append(f"{text} ({_ulps(float(np.median(medians[cell])))})")
            lines.append(f"| {function}, {dtype} | " + " | ".join(cells) + f" | {bound} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=30_000, help="numbers for each family and length")
    parser.add_argument("--write", action="store_true", help="put the table into docs/guide/accuracy.md")
    options = parser.parse_args()
    lengths = f"{families.CLASSES[0]} to {families.CLASSES[-1]} classes"
    made = "made by `python benchmarks/accuracy.py --write`"
    typical = "typical: the median over the sets of rows of each set's median error"
    text = f"{len(families.FAMILIES)} families of rows of {lengths}; {typical}; {made}.\n\n"
    text += table(options.elements)
    print(text)
    if options.write:
        readme.write("accuracy", text)


if __name__ == "__main__":
    main()
