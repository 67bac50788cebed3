"""The library's main job on real data: ``fastsoftmax demo``.

Multinomial logistic regression on handwritten digits. With features x_n, labels y_n, weights W and intercepts b
it minimises

    F(W, b) = 1/N sum_n cross_entropy(x_n W + b, y_n) + |W|^2 / (2 C N),

which is scikit-learn's objective divided by C N; the intercepts are free of the penalty.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from scipy.optimize import OptimizeResult, minimize
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

import fastsoftmax as fs
from fastsoftmax import _info

Array = NDArray[Any]
Call = Callable[[], tuple[float, Array]]

CLASSES = 10
INVERSE_PENALTY = 1.0  # scikit-learn's C, at its default
SMALLEST_GRADIENT = 1e-7
"""Where both optimisers stop: far enough that neither loss moves in its first ten digits."""

LEAST_ACCURACY = 0.95
LOSS_TOLERANCE = 1e-4
DIFFERENCE_STEP = 1e-5
DIFFERENCE_TOLERANCE = 1e-7
"""Central differences of a loss of order 1 are good to about step**2 + 1e-16 / step, here 1e-10."""

TIMED_ROWS = 100_000
SAMPLE_SECONDS = 1e-3


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


def fit(objective: Objective, advance: Callable[[float], object]) -> tuple[Array, OptimizeResult]:
    """Minimise by L-BFGS from zero; `advance` hears how much of the way is done, as a fraction.

    The way is measured in orders of magnitude of the gradient, which is how the optimiser decides to stop.
    """
    largest: list[float] = []

    def evaluate(weights: Array) -> tuple[float, Array]:
        value, gradient = objective(weights)
        largest.append(float(np.max(np.abs(gradient))))
        return value, gradient

    def report(weights: Array) -> None:
        way = math.log(largest[0] / SMALLEST_GRADIENT)
        advance(min(1.0, math.log(largest[0] / max(min(largest), SMALLEST_GRADIENT)) / way))

    found = minimize(
        evaluate,
        np.zeros(objective.size),
        jac=True,
        method="L-BFGS-B",
        callback=report,
        options={"gtol": SMALLEST_GRADIENT, "ftol": 0.0, "maxiter": 5000, "maxfun": 10000, "maxcor": 20},
    )
    advance(1.0)
    return np.asarray(found.x), found


def fit_by_sklearn(features: Array, labels: Array) -> tuple[LogisticRegression, float]:
    """scikit-learn's own fit, and F there, computed by scikit-learn from its own probabilities."""
    model = LogisticRegression(C=INVERSE_PENALTY, tol=SMALLEST_GRADIENT, max_iter=10_000).fit(features, labels)
    loss = float(log_loss(labels, model.predict_proba(features)))
    return model, loss + float(np.sum(model.coef_**2)) / (2.0 * INVERSE_PENALTY * len(labels))


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
    """Mean cross-entropy and its gradient for the same logits by each library, each with a buffer to write to."""
    count = len(labels)
    rows = np.arange(count)

    ours = np.empty_like(scores)
    by_numpy = np.empty_like(scores)
    by_scipy = np.empty_like(scores)

    def with_fastsoftmax() -> tuple[float, Array]:
        loss, _ = fs.cross_entropy_with_grad(scores, labels, out=ours)
        return float(loss), ours

    def with_numpy() -> tuple[float, Array]:
        np.subtract(scores, scores.max(axis=1, keepdims=True), out=by_numpy)
        at_labels = by_numpy[rows, labels]
        np.exp(by_numpy, out=by_numpy)
        sums = by_numpy.sum(axis=1, keepdims=True)
        loss = np.mean(np.log(sums[:, 0]) - at_labels)
        np.divide(by_numpy, sums * count, out=by_numpy)
        by_numpy[rows, labels] -= 1.0 / count
        return float(loss), by_numpy

    def with_scipy() -> tuple[float, Array]:
        log_probs = log_softmax(scores, axis=1)
        loss = -np.mean(log_probs[rows, labels])
        np.exp(log_probs, out=by_scipy)
        by_scipy[rows, labels] -= 1.0
        np.divide(by_scipy, count, out=by_scipy)
        return float(loss), by_scipy

    found: dict[str, Call] = {"fastsoftmax": with_fastsoftmax, "NumPy": with_numpy, "SciPy": with_scipy}
    try:
        from sklearn._loss import HalfMultinomialLoss
    except ImportError:  # a private module, and the only way to scikit-learn's loss alone
        return found

    loss_of = HalfMultinomialLoss(n_classes=CLASSES)
    targets = labels.astype(scores.dtype)
    losses, by_sklearn = np.empty(count, scores.dtype), np.empty_like(scores)

    def with_sklearn() -> tuple[float, Array]:
        loss_of.loss_gradient(
            targets, scores, loss_out=losses, gradient_out=by_sklearn, n_threads=_info.threads()
        )
        np.divide(by_sklearn, count, out=by_sklearn)
        return float(losses.mean()), by_sklearn

    return found | {"scikit-learn": with_sklearn}


def measure(calls: dict[str, Call], rounds: Iterable[object]) -> dict[str, list[float]]:
    """Seconds a call, one sample of each contender in every round.

    In turn, because a machine is not equally fast all the time. A sample repeats the call until it lasts a
    millisecond, after one call that is not counted: it wakes threads and brings the data into the caches.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, round(SAMPLE_SECONDS / (time.perf_counter() - start)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in rounds:
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            samples[name].append((time.perf_counter() - start) / repeats[name])
    return samples


def disagreement(calls: dict[str, Call]) -> float:
    """Greatest difference between the first contender and any other, in loss (relative) or gradient (of 1 / N)."""
    (loss, gradient), *others = (call() for call in calls.values())
    scale = len(gradient)
    return max(
        max(abs(other / loss - 1.0), scale * float(np.max(np.abs(gradient - slope)))) for other, slope in others
    )


def timing_table(cases: Sequence[tuple[str, dict[str, list[float]]]]) -> Table:
    """Median, spread (half the distance of the quartiles) and ratio to ours, for each case and library."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("logits")
    table.add_column("library")
    for heading in ("median", "spread", "time / ours"):
        table.add_column(heading, justify="right")
    for case, samples in cases:
        ours = statistics.median(samples["fastsoftmax"])
        for position, (name, times) in enumerate(samples.items()):
            median = statistics.median(times)
            low, _, high = statistics.quantiles(times, n=4)
            table.add_row(
                "" if position else case,
                name,
                f"{1e3 * median:.3f} ms" if median < 1e-3 else f"{1e3 * median:.2f} ms",
                f"{50 * (high - low) / median:.0f} %",
                f"{median / ours:.1f}",
                end_section=position == len(samples) - 1,
                style="bold" if name == "fastsoftmax" else "",
            )
    return table


INK, FAINT, RIGHT, WRONG, WRITTEN = "#22252b", "#c9ced6", "#2f6db5", "#d9622b", "#2f9e77"


def draw(images: Array, labels: Array, probs: Array, path: Path) -> None:
    """Save a picture of some digits above the distributions predicted for them.

    A typical digit of every class, the ten that were read rightly with the least confidence, and the mistakes.
    """
    read = probs.argmax(axis=1)
    confidence = probs.max(axis=1)
    right = read == labels
    typical = []
    for digit in range(CLASSES):
        members = np.flatnonzero(right & (labels == digit))
        typical.append(members[np.argsort(confidence[members])[len(members) // 2]])
    order = np.argsort(confidence)
    doubtful = [i for i in order if right[i]][:CLASSES]
    mistaken = [i for i in order[::-1] if not right[i]][:CLASSES]
    groups = [("Typical", typical), ("Least certain", doubtful), ("Mistaken", mistaken)]

    figure = Figure(figsize=(15, 8.6), facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.text(0.035, 0.945, "Handwritten digits and what the model makes of them", size=21, color=INK, weight="bold")
    summary = f"{right.sum()} of {len(labels)} held-out digits are read rightly.  Bars: predicted probability of 0 to 9, "
    figure.text(0.035, 0.908, summary, size=12, color=INK)
    grid = figure.add_gridspec(
        6, CLASSES, left=0.035, right=0.98, top=0.85, bottom=0.04, hspace=0.0, wspace=0.22, height_ratios=[1, 0.62] * 3
    )
    for row, (title, members) in enumerate(groups):
        for column, i in enumerate(members):
            image = figure.add_subplot(grid[2 * row, column])
            image.imshow(images[i], cmap="gray_r", vmin=0, vmax=16)
            image.set_xticks([])
            image.set_yticks([])
    canvas.print_figure(path, dpi=130, format="png")
