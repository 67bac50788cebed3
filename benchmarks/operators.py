"""The operators for PyTorch and JAX beside these libraries' own functions, and the tables of docs/guide.

Two tables for each library: functions of logits, for several shapes; and a product with a loss of its results, and
ragged rows, which the libraries compute in several steps.

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
PRODUCTS = ((32, 16, 10), (10_000, 64, 100), (1024, 256, 32_768))
SEGMENTS = ((10, 10), (1000, 100), (100_000, 10))
KINDS = ("value", "value and gradients")
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


def torch_product(x: Any, w: Any, labels: Any) -> dict[str, Calls]:
    """linear_cross_entropy and its gradients for features and weights, for each of `KINDS`."""
    import torch
    import torch.nn.functional as theirs

    from fastsoftmax import torch as ours

    targets = torch.from_numpy(labels)

    def dense(x: Any, w: Any, targets: Any) -> Any:
        return theirs.cross_entropy(theirs.linear(x, w), targets)

    return _torch_kinds(ours.linear_cross_entropy, dense, (torch.from_numpy(x), torch.from_numpy(w)), targets)


def torch_segments(x: Any, indptr: Any) -> dict[str, Calls]:
    """segment_softmax, and the gradient of a sum of squares."""
    import torch

    from fastsoftmax import torch as ours

    starts, index = torch.from_numpy(indptr), torch.from_numpy(np.arange(len(indptr) - 1).repeat(np.diff(indptr)))

    def composed(x: Any, starts: Any) -> Any:
        segments = len(starts) - 1
        most = x.new_full((segments,), -torch.inf).scatter_reduce(0, index, x, "amax")
        terms = torch.exp(x - most[index].detach())
        return terms / x.new_zeros(segments).index_add(0, index, terms)[index]

    return _torch_kinds(ours.segment_softmax, composed, (torch.from_numpy(x),), starts)


def _torch_kinds(one: Any, other: Any, arrays: Any, constant: Any) -> dict[str, Calls]:
    import torch

    leaves = [array.clone().requires_grad_() for array in arrays]

    def with_gradients(function: Any) -> Any:
        found = function(*leaves, constant)
        return torch.autograd.grad(found if found.ndim == 0 else found.square().sum(), leaves)

    both = {"ours": one, "theirs": other}
    return {
        KINDS[0]: {name: lambda call=call: call(*arrays, constant) for name, call in both.items()},
        KINDS[1]: {name: lambda call=call: with_gradients(call) for name, call in both.items()},
    }


def jax_product(x: Any, w: Any, labels: Any) -> dict[str, Calls]:
    """The same for JAX."""
    import jax
    import jax.numpy as jnp

    from fastsoftmax import jax as ours

    def dense(x: Any, w: Any, targets: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(x @ w.T), targets[:, None], 1).mean()

    return _jax_kinds(ours.linear_cross_entropy, dense, (x, w), labels)


def jax_segments(x: Any, indptr: Any) -> dict[str, Calls]:
    """The same for JAX."""
    import jax
    import jax.numpy as jnp

    from fastsoftmax import jax as ours

    index, segments = jnp.asarray(np.arange(len(indptr) - 1).repeat(np.diff(indptr))), len(indptr) - 1

    def composed(x: Any, starts: Any) -> Any:
        most = jax.lax.stop_gradient(jax.ops.segment_max(x, index, segments, indices_are_sorted=True))
        terms = jnp.exp(x - most[index])
        return terms / jax.ops.segment_sum(terms, index, segments, indices_are_sorted=True)[index]

    return _jax_kinds(ours.segment_softmax, composed, (x,), indptr)


def _jax_kinds(one: Any, other: Any, arrays: Any, constant: Any) -> dict[str, Calls]:
    import jax
    import jax.numpy as jnp

    given = [jnp.asarray(array) for array in (*arrays, constant)]

    def calls(change: Callable[[Any], Any]) -> Calls:
        compiled = {"ours": jax.jit(change(one)), "theirs": jax.jit(change(other))}
        return {name: lambda call=call: jax.block_until_ready(call(*given)) for name, call in compiled.items()}

    def gradients(function: Any) -> Any:
        def total(*given: Any) -> Any:
            found = function(*given)
            return found if found.ndim == 0 else jnp.square(found).sum()

        return jax.grad(total, tuple(range(len(arrays))))

    return {KINDS[0]: calls(lambda function: function), KINDS[1]: calls(gradients)}


def table(name: str, made: Callable[[Any, Any], dict[str, Calls]], seconds: float, shapes: Any = SHAPES) -> str:
    """One Markdown table: a row for each shape; our time and the ratio of the library's own to it."""
    lines = _head(name, FUNCTIONS)
    random = np.random.default_rng(0)
    for rows, classes in shapes:
        x = random.normal(0, 3, (rows, classes)).astype(np.float32)
        lines.append(_row(f"({rows}, {classes})", made(x, random.integers(0, classes, rows)), seconds))
    return "\n".join(lines)


def composed_table(
    name: str, product: Any, segments: Any, seconds: float, products: Any = PRODUCTS, ragged: Any = SEGMENTS
) -> str:
    """A Markdown table like `table`, for products with a loss and for ragged rows."""
    lines = _head(name, KINDS)
    random = np.random.default_rng(0)
    for rows, features, classes in products:
        x, w = (random.normal(size=(count, features)).astype(np.float32) for count in (rows, classes))
        calls = product(x, w, random.integers(0, classes, rows))
        lines.append(_row(f"linear_cross_entropy, (rows, D, K) = ({rows}, {features}, {classes})", calls, seconds))
    for count, mean in ragged:
        indptr = np.append(0, random.integers(1, 2 * mean, count).cumsum())
        calls = segments(random.normal(0, 3, indptr[-1]).astype(np.float32), indptr)
        lines.append(_row(f"segment_softmax, {count} segments of 1 to {2 * mean - 1}", calls, seconds))
    return "\n".join(lines)


def _head(name: str, columns: tuple[str, ...]) -> list[str]:
    return [f"| {name}, float32 | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]


def _row(title: str, columns: dict[str, Calls], seconds: float) -> str:
    """A row of a table: our times, and how many times longer the other library takes for the same numbers."""
    cells = []
    for calls in columns.values():
        ours, theirs = (np.asarray(_last(call())) for call in calls.values())
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
        found = measure(calls, seconds)
        time, other = found["ours"].median, found["theirs"].median
        cells.append(f"{duration(time)} ({other / time:.1f} x)")
    row = f"| {title} | " + " | ".join(cells) + " |"
    print(row, file=sys.stderr, flush=True)
    return row


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
    for name, title, made, product, segments in (
        ("torch", "PyTorch", torch_calls, torch_product, torch_segments),
        ("jax", "JAX", jax_calls, jax_product, jax_segments),
    ):
        text = (
            f"Medians of our times, and how many times longer {title}'s own function takes; {caption(facts)}. "
            "Made by `python benchmarks/operators.py --write`. In the second table, the other is the loss of the "
            "dense product, and for segments a composition of sums and maxima over indices.\n\n"
        )
        with fs.threads(options.threads):
            text += table(title, made, options.seconds) + "\n\n"
            text += composed_table(title, product, segments, options.seconds)
        print(text, flush=True)
        if options.write:
            readme.write(f"{name} operators", text)


if __name__ == "__main__":
    main()
