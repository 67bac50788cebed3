"""The operators for PyTorch and JAX beside these libraries' own functions, and the tables of docs/guide.

``python benchmarks/operators.py`` measures; ``--write`` puts the tables into docs/guide/migrating.md. Calls are
eager for PyTorch, and compiled by ``jit`` for JAX. They allocate their results, and run in turns in one process.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme  # noqa: E402

import fastsoftmax as fs  # noqa: E402
from fastsoftmax.arrays.threads import max_threads  # noqa: E402
from fastsoftmax.tools.bench import inputs  # noqa: E402
from fastsoftmax.tools.bench.measure import measure  # noqa: E402
from fastsoftmax.tools.bench.report import caption, duration, machine  # noqa: E402

SHAPES = ((1, 10), (32, 10), (1000, 10), (100_000, 10), (1_000_000, 3), (1000, 1000), (200, 50_257))
FUNCTIONS = ("softmax", "cross_entropy", "cross_entropy and gradient")
Calls = dict[str, Callable[[], Any]]


def torch_calls(x: Any, labels: Any) -> dict[str, Calls]:
    """The calls of both libraries for each of `FUNCTIONS`."""
    import torch
    import torch.nn.functional as theirs

    from fastsoftmax import torch as ours

    logits, leaf, targets = torch.from_numpy(x), torch.from_numpy(x).requires_grad_(), torch.from_numpy(labels)

    def with_gradient(library: Any) -> Any:
        leaf.grad = None
        library.cross_entropy(leaf, targets).backward()
        return leaf.grad

    return {
        "softmax": {
            "ours": lambda: ours.softmax(logits, -1),
            "theirs": lambda: theirs.softmax(logits, -1),
        },
        "cross_entropy": {
            "ours": lambda: ours.cross_entropy(logits, targets),
            "theirs": lambda: theirs.cross_entropy(logits, targets),
        },
        "cross_entropy and gradient": {
            "ours": lambda: with_gradient(ours),
            "theirs": lambda: with_gradient(theirs),
        },
    }


def jax_calls(x: Any, labels: Any) -> dict[str, Calls]:
    """The same for JAX."""
    import jax
    import jax.numpy as jnp

    from fastsoftmax import jax as ours

    logits, targets = jnp.asarray(x), jnp.asarray(labels)

    def loss(x: Any, targets: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(x), targets[:, None], 1).mean()

    def calls(one: Any, other: Any, *arguments: Any) -> Calls:
        compiled = {"ours": jax.jit(one), "theirs": jax.jit(other)}
        return {
            name: lambda function=function: jax.block_until_ready(function(*arguments))
            for name, function in compiled.items()
        }

    return {
        "softmax": calls(ours.softmax, jax.nn.softmax, logits),
        "cross_entropy": calls(ours.cross_entropy, loss, logits, targets),
        "cross_entropy and gradient": calls(
            jax.value_and_grad(ours.cross_entropy), jax.value_and_grad(loss), logits, targets
        ),
    }


def table(name: str, made: Callable[[Any, Any], dict[str, Calls]], seconds: float, shapes: Any = SHAPES) -> str:
    """One Markdown table: a row for each shape; our time and the ratio of the library's own to it."""
    lines = [f"| {name}, float32 | " + " | ".join(FUNCTIONS) + " |", "|---" * (1 + len(FUNCTIONS)) + "|"]
    random = np.random.default_rng(0)
    for rows, classes in shapes:
        x = random.normal(0, 3, (rows, classes)).astype(np.float32)
        cells = []
        for calls in made(x, random.integers(0, classes, rows)).values():
            ours, theirs = (np.asarray(_last(call())) for call in calls.values())
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
            found = measure(calls, seconds)
            time, other = found["ours"].median, found["theirs"].median
            cells.append(f"{duration(time)} ({other / time:.1f} x)")
        lines.append(f"| ({rows}, {classes}) | " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def _last(found: Any) -> Any:
    """The gradient where there is one."""
    return found[-1] if isinstance(found, tuple) else found


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each cell of the tables is measured")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/guide/migrating.md")
    parser.add_argument("--threads", type=int, default=max_threads(), help="for each library")
    options = parser.parse_args()
    inputs.prepare(options.threads)
    facts = {**machine(), "threads": options.threads}
    for name, title, made in (("torch", "PyTorch", torch_calls), ("jax", "JAX", jax_calls)):
        text = (
            f"Medians of our times, and how many times longer {title}'s own function takes; {caption(facts)}. "
            "Made by `python benchmarks/operators.py --write`.\n\n"
        )
        with fs.threads(options.threads):
            text += table(title, made, options.seconds)
        print(text, flush=True)
        if options.write:
            readme.write(f"{name} operators", text)


if __name__ == "__main__":
    main()
