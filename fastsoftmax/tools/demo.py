"""The library's main job on real data: ``fastsoftmax demo``.

Multinomial logistic regression on handwritten digits. With features x_n, labels y_n, weights W and
intercepts b it minimises

    F(W, b) = 1/N sum_n cross_entropy(x_n W + b, y_n) + |W|^2 / (2 C N),

which is scikit-learn's objective divided by C N. The intercepts are not penalised.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from scipy.optimize import OptimizeResult, minimize
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

import fastsoftmax as fs
from fastsoftmax.arrays.blocks import Array
from fastsoftmax.arrays.threads import max_threads
from fastsoftmax.runtime import prebuilt
from fastsoftmax.tools import info
from fastsoftmax.tools.bench.libraries import ALL
from fastsoftmax.tools.bench.measure import Timing, measure

Call = Callable[[], tuple[float, Array]]

CLASSES = 10
INVERSE_PENALTY = 1.0  # scikit-learn's C, at its default
SMALLEST_GRADIENT = 1e-7
"""Both optimisers stop at a gradient of this size. Then the losses are settled to ten digits."""

LEAST_ACCURACY = 0.95
LOSS_TOLERANCE = 1e-4
DIFFERENCE_STEP = 1e-5
DIFFERENCE_TOLERANCE = 1e-7
"""Central differences of a loss of order 1 are good to about step**2 + 1e-16 / step, here 1e-10."""

TIMED_ROWS = 100_000
EPSILONS = 1000.0
"""How far the libraries may disagree, in units of the dtype's epsilon, because of the errors of NumPy's sums."""


class Objective:
    """F as a function of one flat array of weights: the rows of W, then b."""

    def __init__(self, features: Array, labels: Array) -> None:
        self.features = features
        self.labels = labels
        self.penalty = 1.0 / (INVERSE_PENALTY * len(labels))
        self.size = (features.shape[1] + 1) * CLASSES

    def __call__(self, weights: Array) -> tuple[float, Array]:
        """Value and gradient."""
        matrix = weights.reshape(-1, CLASSES)[:-1]
        loss, slope = fs.cross_entropy_with_grad(logits(self.features, weights), self.labels)
        value = float(loss) + 0.5 * self.penalty * float(np.sum(matrix**2))
        gradient = np.vstack([self.features.T @ slope + self.penalty * matrix, slope.sum(axis=0)])
        return value, gradient.ravel()


def logits(features: Array, weights: Array) -> Array:
    """``features W + b``, shape (rows, classes)."""
    table = weights.reshape(-1, CLASSES)
    return np.asarray(features @ table[:-1] + table[-1])


def fit(objective: Objective, advance: Callable[[float, float], object]) -> tuple[Array, OptimizeResult]:
    """Minimise by L-BFGS from zero; `advance` is called with the fraction that is done, and the value there.

    The fraction is one of orders of magnitude of the gradient, because the optimiser stops by its size.
    """
    slopes: list[float] = []

    def evaluate(weights: Array) -> tuple[float, Array]:
        value, gradient = objective(weights)
        slopes.append(float(np.max(np.abs(gradient))))
        return value, gradient

    def report(intermediate_result: OptimizeResult) -> None:
        least = max(min(slopes), SMALLEST_GRADIENT)
        done = math.log(slopes[0] / least) / math.log(slopes[0] / SMALLEST_GRADIENT)
        advance(done, float(intermediate_result.fun))

    found = minimize(
        evaluate,
        np.zeros(objective.size),
        jac=True,
        method="L-BFGS-B",
        callback=report,
        options={"gtol": SMALLEST_GRADIENT, "ftol": 0.0, "maxiter": 5000},
    )
    return np.asarray(found.x), found


def fit_by_sklearn(features: Array, labels: Array) -> float:
    """F at scikit-learn's own fit, computed by scikit-learn."""
    model = LogisticRegression(C=INVERSE_PENALTY, tol=SMALLEST_GRADIENT, max_iter=5000).fit(features, labels)
    loss = float(log_loss(labels, model.predict_proba(features)))
    return loss + float(np.sum(model.coef_**2)) / (2.0 * INVERSE_PENALTY * len(labels))


def gradient_error(objective: Objective, weights: Array) -> float:
    """Greatest difference of the gradient from central differences, relative to its greatest entry."""
    _, gradient = objective(weights)
    differences = np.empty_like(gradient)
    for i in range(weights.size):
        step = np.zeros_like(weights)
        step[i] = DIFFERENCE_STEP
        differences[i] = (objective(weights + step)[0] - objective(weights - step)[0]) / (2 * DIFFERENCE_STEP)
    return float(np.max(np.abs(gradient - differences)) / np.max(np.abs(gradient)))


def contenders(scores: Array, labels: Array) -> dict[str, Call]:
    """Mean cross-entropy and its gradient by each library, each with a buffer of its own to write to."""
    peers: dict[str, Any] = {**ALL}
    rows, count = np.arange(len(labels)), len(labels)
    ours, by_numpy, by_scipy, by_sklearn = (np.empty_like(scores) for _ in range(4))

    def with_scipy() -> tuple[float, Array]:
        log_probs = log_softmax(scores, axis=1)
        loss = -np.mean(log_probs[rows, labels])
        np.exp(log_probs, out=by_scipy)
        by_scipy[rows, labels] -= 1.0
        return float(loss), np.divide(by_scipy, count, out=by_scipy)

    found: dict[str, Call] = {
        "fastsoftmax": partial(fs.cross_entropy_with_grad, scores, labels, out=ours),
        "NumPy": peers["NumPy"].cross_entropy_with_grad(scores, labels, by_numpy),
        "SciPy": with_scipy,
    }
    with suppress(ImportError):  # scikit-learn's loss is private, and may be gone
        found["scikit-learn"] = peers["scikit-learn"].cross_entropy_with_grad(scores, labels, by_sklearn)
    return found


def disagreement(calls: dict[str, Call]) -> float:
    """The greatest difference from the first contender, of the loss or of N times the gradient."""
    (loss, gradient), *others = (call() for call in calls.values())
    rows = len(gradient)
    return max(max(abs(y - loss), rows * float(np.max(np.abs(g - gradient)))) for y, g in others)


def timing_table(cases: Sequence[tuple[str, dict[str, Timing]]]) -> Table:
    """Median, spread (half the distance of the quartiles) and ratio to ours, for each case and library."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("logits")
    table.add_column("library")
    for heading in ("median", "spread", "ratio"):
        table.add_column(heading, justify="right")
    for case, timings in cases:
        for position, (name, timing) in enumerate(timings.items()):
            table.add_row(
                "" if position else case,
                name,
                f"{1e3 * timing.median:.3f} ms" if timing.median < 1e-3 else f"{1e3 * timing.median:.2f} ms",
                f"{100 * timing.spread:.0f} %",
                f"{timing.median / timings['fastsoftmax'].median:.1f}",
                end_section=position == len(timings) - 1,
                style="bold" if name == "fastsoftmax" else "",
            )
    return table


INK, MUTED, FAINT = "#20242b", "#7a828e", "#c6ccd5"
BLUE, ORANGE, GREEN = "#2f6db5", "#d9622b", "#2a9d74"


def _chosen(labels: Array, probs: Array) -> list[tuple[str, str, Sequence[int]]]:
    """Which digits to draw: a title, a remark and the positions, for each row of the picture."""
    read, confidence = probs.argmax(axis=1), probs.max(axis=1)
    right = read == labels
    typical = []
    for digit in range(CLASSES):
        members = np.flatnonzero(right & (labels == digit))
        if len(members):
            typical.append(int(members[np.argsort(confidence[members])[len(members) // 2]]))
    order = np.argsort(confidence)
    return [
        ("Typical", "of median confidence among the correct ones of each class", typical),
        ("In doubt", "correct, with the least confidence", order[right[order]][:CLASSES].tolist()),
        ("Mistaken", "wrong, with the most confidence", order[~right[order]][::-1][:CLASSES].tolist()),
    ]


def draw(images: Array, labels: Array, probs: Array, path: Path) -> None:
    """Save a picture (PNG) of some digits above the distributions predicted for them."""
    width, left, pitch, side, bars = 15.0, 0.5, 1.42, 1.12, 0.62
    head, group = 1.35, 2.6
    groups = _chosen(labels, probs)
    height = head + group * len(groups)
    figure = Figure(figsize=(width, height), facecolor="white")

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, **{"color": INK, "va": "baseline", **style})

    def panel(x: float, y: float, wide: float, high: float) -> Any:
        axes = figure.add_axes((x / width, 1 - (y + high) / height, wide / width, high / height))
        axes.tick_params(length=0, pad=2, labelsize=6.5, labelcolor=MUTED)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    right = int(np.sum(probs.argmax(axis=1) == labels))
    write(left, 0.58, "Handwritten digits and their predicted distributions", size=21, weight="bold")
    write(left, 0.91, f"{right} of {len(labels)} held-out digits are classified correctly", size=12, color=MUTED)
    meaning = {"predicted, correct": BLUE, "predicted, wrong": ORANGE, "true class": GREEN, "other classes": FAINT}
    figure.legend(
        handles=[Patch(color=color, label=text) for text, color in meaning.items()],
        loc="lower right",
        bbox_to_anchor=((left + pitch * (CLASSES - 1) + side) / width, 1 - 0.97 / height),
        borderpad=0,
        borderaxespad=0,
        columnspacing=1.6,
        fontsize=11,
        frameon=False,
        handleheight=0.8,
        handlelength=0.8,
        labelcolor=INK,
        ncols=len(meaning),
    )
    for row, (title, remark, members) in enumerate(groups):
        top = head + group * row
        write(left, top + 0.2, title, size=13, weight="bold")
        write(left + 1.1, top + 0.2, remark, size=11, color=MUTED)
        for column, i in enumerate(members):
            x, read, label = left + pitch * column, int(probs[i].argmax()), int(labels[i])
            axes = panel(x, top + 0.38, side, side)
            axes.imshow(images[i], cmap="gray_r", vmin=0, vmax=16)
            axes.spines[:].set(visible=True, color=FAINT, linewidth=0.8)
            colors = [FAINT] * CLASSES
            colors[label] = GREEN
            colors[read] = BLUE if read == label else ORANGE
            axes = panel(x, top + 0.38 + side + 0.06, side, bars)
            axes.bar(range(CLASSES), probs[i], color=colors, width=0.8)
            axes.set(ylim=(0, 1), xlim=(-0.6, CLASSES - 0.4), xticks=range(CLASSES))
            axes.axhline(0, color=FAINT, linewidth=0.8)
            axes.text(
                -0.5 if read >= CLASSES // 2 else CLASSES - 0.5,
                0.98,
                f"{read}: {100 * probs[i, read]:.0f} %",
                ha="left" if read >= CLASSES // 2 else "right",
                va="top",
                size=8.5,
                color=colors[read],
                weight="bold",
            )
    FigureCanvasAgg(figure).print_figure(path, dpi=120, format="png")


VERDICTS = {True: "[green]ok[/]", False: "[red]FAILED[/]"}


class Narrator:
    """Prints a line for each step, and remembers whether all checks held."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.all_hold = True

    def say(self, step: str, text: str, holds: bool | None = None) -> None:
        """Print the result of a step, and a verdict if it was a check."""
        line = Table.grid(padding=(0, 1))
        line.add_column(width=9, style="bold")
        line.add_column()
        line.add_row(step, escape(text) if holds is None else f"{escape(text)} [bold]{VERDICTS[holds]}[/]")
        self.console.print(line)

    def check(self, step: str, text: str, holds: bool) -> None:
        """Print the result of a check, and remember whether it holds."""
        self.all_hold = self.all_hold and holds
        self.say(step, text, holds)

    def progress(self, step: str, *, transient: bool = False) -> Progress:
        """A progress bar for a step; a transient one disappears when it is full."""
        columns = (
            TextColumn(f"[bold]{step:<9}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
        )
        hidden = transient and not self.console.is_terminal
        return Progress(*columns, console=self.console, transient=transient, disable=hidden)


def run(output: Path, seconds_each: float = 0.5) -> bool:
    """Fit, check, time and draw, and say what was done.

    Parameters
    ----------
    output : Path
        Where to save the picture (PNG).
    seconds_each : float, default 0.5
        How long the libraries are timed on each of three arrays.

    Returns
    -------
    bool
        Whether all checks held: accuracy, agreement with scikit-learn, gradient, agreement of those timed.
    """
    narrator = Narrator()
    say, check = narrator.say, narrator.check
    narrator.console.print("[bold]Handwritten digits by multinomial logistic regression[/]\n")

    digits = load_digits()
    features, labels = digits.data / 16.0, digits.target
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    objective = Objective(features[train], labels[train])
    say("data", f"{len(labels):,} images of 8 x 8 pixels, {len(train):,} to fit and {len(test)} held out.")

    start = time.perf_counter()
    objective(np.zeros(objective.size))
    seconds = time.perf_counter() - start
    origin = "its kernel was compiled at installation" if prebuilt.library() else "no library has its kernel"
    say("start", f"The first call took {1e3 * seconds:,.0f} ms: {origin}.")

    start = time.perf_counter()
    with narrator.progress("fit") as progress:
        task = progress.add_task("")

        def advance(done: float, loss: float) -> None:
            progress.update(task, completed=100 * done, description=f"loss {loss:.6f}")

        weights, found = fit(objective, advance)
    seconds = time.perf_counter() - start
    say(
        "",
        f"L-BFGS minimised cross-entropy plus an L2 penalty over {objective.size} weights: {found.nit} "
        f"steps, {found.nfev} evaluations of our loss and gradient, {seconds:.2f} s.",
    )

    probs = fs.softmax(logits(features[test], weights))
    accuracy = float(np.mean(probs.argmax(axis=1) == labels[test]))
    check(
        "accuracy",
        f"{100 * accuracy:.1f} % of the {len(test)} held-out digits are classified correctly.",
        accuracy >= LEAST_ACCURACY,
    )

    theirs = fit_by_sklearn(features[train], labels[train])
    distance = abs(found.fun - theirs)
    check(
        "loss",
        f"{found.fun:.9f} at our fit, {theirs:.9f} at that of scikit-learn's LogisticRegression with "
        f"the same penalty: they differ by {distance:.0e}.",
        distance <= LOSS_TOLERANCE,
    )

    error = gradient_error(objective, 0.5 * weights)
    check(
        "gradient",
        f"Halfway to the fit, all {objective.size} entries are within {error:.0e} (relative to the largest) of "
        "central differences.",
        error <= DIFFERENCE_TOLERANCE,
    )

    scores = logits(features[train], weights)
    many, many_labels = np.resize(scores, (TIMED_ROWS, CLASSES)), np.resize(labels[train], TIMED_ROWS)
    cases = [(scores, labels[train]), (many, many_labels), (many.astype(np.float32), many_labels)]
    timed, differences = [], []
    with narrator.progress("timing", transient=True) as progress:
        for values, targets in progress.track(cases, description=""):
            calls = contenders(values, targets)
            differences.append(disagreement(calls) / float(np.finfo(values.dtype).eps))
            timed.append((f"{len(values):,} x {CLASSES} {values.dtype}", measure(calls, seconds_each)))
    check(
        "timing",
        f"Loss and gradient by each library on {info.processor()}, at most {max_threads()} threads: "
        f"medians of samples taken in turns, ratios to ours. The results are within {max(differences):.0f} eps of "
        "ours.",
        max(differences) <= EPSILONS,
    )
    narrator.console.print(Padding(timing_table(timed), (1, 0, 1, 10)))

    draw(digits.images[test], labels[test], probs, output)
    say("picture", f"{output} shows held-out digits with their predicted distributions.")
    return narrator.all_hold
