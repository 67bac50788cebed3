"""Draws from logits beside NumPy, PyTorch, JAX and a loop in Numba, and the table of docs/guide/sampling.md.

``python benchmarks/sampling.py`` measures in some two minutes; ``--write`` puts the table into docs/guide. NumPy
is used in three ways: `Generator.choice` for each row with the probabilities of its softmax, sums of the
probabilities in which the uniform number is searched, and the greatest logit plus Gumbel noise (with the filters:
a sort, then the sums). PyTorch's way is `multinomial` of the softmax, after `topk` or a sort if there are filters.
The calls run in turns in one process.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import readme  # noqa: E402

import fastsoftmax as fs  # noqa: E402
from fastsoftmax.arrays.threads import max_threads  # noqa: E402
from fastsoftmax.tools.bench import inputs  # noqa: E402
from fastsoftmax.tools.bench.cases import check  # noqa: E402
from fastsoftmax.tools.bench.inputs import Inputs, Shape  # noqa: E402
from fastsoftmax.tools.bench.libraries import ALL, FILTERS, OURS  # noqa: E402
from fastsoftmax.tools.bench.measure import measure  # noqa: E402
from fastsoftmax.tools.bench.report import caption, duration, machine, spread  # noqa: E402

VOCABULARY = 151_936
ONE, TOP_P, TOP_K_TOP_P = "categorical", "categorical top_p", "categorical top_k, top_p"
MANY, DIFFERENT = "size", "size, replace=False"
TITLES = {
    ONE: "one class",
    TOP_P: f"`top_p={FILTERS['top_p']['top_p']}`",
    TOP_K_TOP_P: "`top_k={top_k}, top_p={top_p}`".format(**FILTERS["top_k, top_p"]),
    MANY: "`size={}`",
    DIFFERENT: "`size={}, replace=False`",
}
CASES: tuple[tuple[str, Shape, int], ...] = (
    (ONE, (1, 10), 1),
    (ONE, (10_000, 1000), 1),
    (ONE, (1_000_000, 10), 1),
    (ONE, (64, VOCABULARY), 1),
    (ONE, (1, VOCABULARY), 1),
    (ONE, (1, 10_000_000), 1),
    (TOP_K_TOP_P, (64, VOCABULARY), 1),
    (TOP_K_TOP_P, (1, VOCABULARY), 1),
    (TOP_P, (64, VOCABULARY), 1),
    (TOP_P, (1, VOCABULARY), 1),
    (MANY, (1, 1000), 1_000_000),
    (MANY, (1, VOCABULARY), 10_000),
    (DIFFERENT, (64, VOCABULARY), 100),
)
"""What is drawn, the shape of the logits, and how many classes of each row."""

CHOICE, SUMS, GUMBEL = "NumPy choice", "NumPy sums", "NumPy Gumbel"
LONGEST_LOOP = 10_000
"""For more rows `Generator.choice`, which is called for each of them, is not measured: it takes a minute."""
PEERS = (CHOICE, SUMS, GUMBEL, "PyTorch", "JAX", "Numba loop")


def _choice(x: Any, count: int, replace: bool) -> Callable[[], Any]:
    rng = np.random.default_rng(0)

    def call() -> Any:
        p = np.exp(x - x.max(1, keepdims=True), dtype=np.float64)
        p /= p.sum(1, keepdims=True)
        return np.array([rng.choice(len(row), count, replace, row) for row in p]).T

    return call


def _sums(x: Any, count: int) -> Callable[[], Any]:
    rng = np.random.default_rng(0)

    def call() -> Any:
        sums = np.cumsum(np.exp(x - x.max(1, keepdims=True)), 1, dtype=np.float64)
        numbers = rng.random((count, len(x))) * sums[:, -1]
        pairs = zip(sums, numbers.T, strict=True)
        return np.array([np.searchsorted(row, u, "right") for row, u in pairs]).T

    return call


def _gumbel(x: Any, count: int) -> Callable[[], Any]:
    rng = np.random.default_rng(0)

    def call() -> Any:
        with np.errstate(divide="ignore"):  # a float32 may be 0
            noisy = x - np.log(rng.standard_exponential(x.shape, x.dtype))
        return noisy.argmax(1)[None] if count == 1 else np.argpartition(-noisy, count, 1)[:, :count].T

    return call


def _torch(x: Any, count: int, replace: bool) -> Callable[[], Any]:
    import torch

    y = torch.from_numpy(x)
    return lambda: torch.multinomial(torch.softmax(y, 1), count, replacement=replace).T.numpy()


def _jax(x: Any, count: int, replace: bool) -> Callable[[], Any]:
    import jax

    draw = partial(jax.random.categorical, axis=-1, shape=(count, len(x)), replace=replace)
    compiled, key, y = jax.jit(draw), jax.random.key(0), jax.device_put(x)
    return lambda: np.asarray(compiled(key, y).block_until_ready())


def calls_of(case: str, shape: Shape, count: int) -> dict[str, Callable[[], Any]]:
    """The call of each library that is installed, and that of `logsumexp`."""
    of_case = Inputs(shape, np.float32)
    x, rng = of_case.logits, np.random.default_rng(0)
    calls: dict[str, Callable[[], Any]] = {"logsumexp": lambda: fs.logsumexp(x)}
    installed = [name for name, library in ALL.items() if library.installed()]
    if count == 1:
        for name in (OURS, "NumPy", "PyTorch", "JAX", "Numba loop"):
            setup = ALL[name].setup(case) if name in installed else None
            if setup is not None:
                calls[SUMS if name == "NumPy" else name] = setup(of_case)
        if case == ONE:
            calls |= {SUMS: _sums(x, 1), GUMBEL: _gumbel(x, 1)}
            if len(x) <= LONGEST_LOOP:
                calls[CHOICE] = _choice(x, 1, True)
        return calls
    replace = case == MANY
    calls[OURS] = lambda: fs.categorical(x, rng=rng, size=count, replace=replace)
    calls[CHOICE] = _choice(x, count, replace)
    calls |= {SUMS: _sums(x, count)} if replace else {GUMBEL: _gumbel(x, count)}
    if "PyTorch" in installed:
        calls["PyTorch"] = _torch(x, count, replace)
    if "JAX" in installed and not (replace and count * x.size > 1 << 26):  # it makes so many random numbers
        calls["JAX"] = _jax(x, count, replace)
    return calls


def _agree(case: str, name: str, ours: Any, theirs: Any) -> None:
    """DisagreementError unless the classes have the same mean; without replacement their order does not matter."""
    if case == DIFFERENT:
        ours, theirs = ours.mean(0, keepdims=True).round().astype(int), theirs.mean(0, keepdims=True)
    check(case, name, np.reshape(ours, -1), np.reshape(theirs, -1), np.float32)


def row(case: str, shape: Shape, count: int, seconds: float) -> str:
    """The line of one case."""
    calls = calls_of(case, shape, count)
    results = {name: call() for name, call in calls.items()}  # the first call may compile
    for name in calls.keys() - {"logsumexp", OURS}:
        _agree(case, name, results[OURS], results[name])
    found = measure(calls, seconds)
    ours = found[OURS].median
    cells = [f"**{duration(ours)}** ± {spread(found[OURS])}"]
    cells.append(f"{ours / found['logsumexp'].median:.2f}" if count == 1 else "")
    cells += [
        f"{duration(found[name].median)} ({found[name].median / ours:.3g} x)" if name in found else ""
        for name in PEERS
    ]
    title = TITLES[case].format(f"{count:_}")
    return f"| {title} | {' x '.join(f'{n:,}' for n in shape)} | " + " | ".join(cells) + " |"


def table(cases: tuple[tuple[str, Shape, int], ...], seconds: float) -> str:
    """One Markdown table: a row for each case, with ratios to ours."""
    head = ("draws", "float32 logits", OURS, "relative to `logsumexp`", *PEERS)
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for case in cases:
        lines.append(row(*case, seconds))
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each row of the table is measured")
    parser.add_argument("--write", action="store_true", help="put the table into docs/guide/sampling.md")
    options = parser.parse_args()
    inputs.prepare(max_threads())
    text = (
        "Median times, ± half the distance of the quartiles, and relative to ours in brackets; "
        f"{caption(machine())}. Made by `python benchmarks/sampling.py --write`.\n\n"
    )
    text += table(CASES, options.seconds)
    print(text)
    if options.write:
        readme.write("sampling", text)


if __name__ == "__main__":
    main()
