"""Multinomial logistic regression by scipy.optimize on the linear cross-entropy, beside scikit-learn.

``python benchmarks/regression.py`` fits 100,000 samples of 500 features and 50 classes; ``--samples``,
``--features`` and ``--classes`` make it smaller, ``--write`` puts the table into docs/guide/optimisers.md. All
solvers minimise the mean loss plus |weights|**2 / (2 C samples), without a penalty on the bias, from zeros, until
no entry of the gradient is above the tolerance: scikit-learn's criterion. Each fits in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import readme  # noqa: E402

import fastsoftmax as fs  # noqa: E402

MADE_BY = "python benchmarks/regression.py --write"


def problem(samples: int, features: int, classes: int, dtype: Any) -> tuple[Any, Any]:
    """Features and labels, which are drawn from a model of this kind."""
    random = np.random.default_rng(0)
    x = random.standard_normal((samples, features)).astype(dtype)
    weight = random.normal(0, 3 / features**0.5, (classes, features)).astype(dtype)
    return x, fs.categorical(x @ weight.T, rng=random)


class Regression:
    """The loss with its penalty, its gradient, and products with its Hessian; weights and bias are one vector."""

    def __init__(self, features: Any, labels: Any, classes: int, penalty: float) -> None:
        self.features, self.labels, self.penalty = features, labels, penalty
        self.shape = classes, features.shape[1]
        self.point, self.logits = np.empty(0), np.empty(0)
        self.evaluated, self.greatest = np.empty(0), np.inf

    def split(self, flat: Any) -> tuple[Any, Any]:
        """Weights (K, D) and bias (K,), in the dtype of the features."""
        classes, width = self.shape
        numbers = flat.astype(self.features.dtype, copy=False)
        return numbers[: classes * width].reshape(self.shape), numbers[classes * width :]

    def _joined(self, gradients: Any, flat: Any) -> Any:
        result = np.concatenate([gradients.weight.ravel(), gradients.bias]).astype(np.float64)
        size = gradients.weight.size
        result[:size] += self.penalty * flat[:size]
        return result

    def objective(self, flat: Any) -> tuple[float, Any]:
        """The loss and its gradient."""
        weight, bias = self.split(flat)
        loss, gradients = fs.linear_cross_entropy_with_grad(
            self.features, weight, self.labels, bias, wrt=("weight", "bias")
        )
        size, slope = weight.size, self._joined(gradients, flat)
        self.evaluated, self.greatest = flat.copy(), np.abs(slope).max()
        return float(loss) + self.penalty / 2 * float(flat[:size] @ flat[:size]), slope

    def product(self, flat: Any, along: Any) -> Any:
        """The Hessian times a vector; the logits are kept for further products at the same point."""
        (weight, bias), (tangent, tangent_bias) = self.split(flat), self.split(along)
        if not np.array_equal(flat, self.point):
            self.point, self.logits = flat.copy(), self.features @ weight.T
            self.logits += bias
        operands = self.features, weight, self.labels, tangent, bias, tangent_bias
        return self._joined(fs.linear_cross_entropy_hvp(*operands, logits=self.logits), along)

    def fit(self, method: str, tolerance: float) -> tuple[Any, int]:
        """The solution, and the number of iterations."""
        from scipy.optimize import minimize

        def stop(flat: Any) -> None:
            if self.greatest <= tolerance and np.array_equal(flat, self.evaluated):
                raise StopIteration

        options: dict[str, Any] = {"maxiter": 1000, "xtol": 0.0}  # Newton-CG knows no tolerance of the gradient
        keywords: dict[str, Any] = {"hessp": self.product, "callback": stop}
        if method == "L-BFGS-B":
            options = {"maxiter": 1000, "gtol": tolerance}
            options |= {"ftol": 64 * np.finfo(float).eps, "maxls": 50}  # as in scikit-learn
            keywords = {}
        start = np.zeros(self.shape[0] * (self.shape[1] + 1))
        found = minimize(self.objective, start, jac=True, method=method, options=options, **keywords)
        return found.x, int(found.nit)


def _ours(method: str) -> Callable[..., tuple[Any, int]]:
    return lambda regression, tolerance: regression.fit(method, tolerance)


def _scikit_learn(solver: str) -> Callable[..., tuple[Any, int]]:
    def fit(regression: Regression, tolerance: float) -> tuple[Any, int]:
        from sklearn.linear_model import LogisticRegression

        strength = 1 / (regression.penalty * len(regression.labels))
        model = LogisticRegression(C=strength, tol=tolerance, solver=solver, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a line search that stops at the resolution of the dtype
            model.fit(regression.features, regression.labels)
        return np.concatenate([model.coef_.ravel(), model.intercept_]).astype(np.float64), int(max(model.n_iter_))

    return fit


SOLVERS: dict[str, Callable[..., tuple[Any, int]]] = {
    "fastsoftmax and SciPy's L-BFGS-B": _ours("L-BFGS-B"),
    "fastsoftmax and SciPy's Newton-CG": _ours("Newton-CG"),
    "scikit-learn, lbfgs": _scikit_learn("lbfgs"),
    "scikit-learn, newton-cg": _scikit_learn("newton-cg"),
}


def measure(
    solver: str, sizes: tuple[int, int, int], dtype: str, strength: float, tolerance: float
) -> dict[str, Any]:
    """Seconds, processor time and iterations of a fit; loss and greatest entry of the gradient at its end."""
    samples, features, classes = sizes
    x, labels = problem(samples, features, classes, np.dtype(dtype))
    regression = Regression(x, labels, classes, 1 / (strength * samples))
    small = Regression(x[: 20 * classes], np.arange(20 * classes) % classes, classes, 1.0)
    SOLVERS[solver](small, 0.1)  # imports and kernels
    begin, used = time.perf_counter(), time.process_time()
    flat, iterations = SOLVERS[solver](regression, tolerance)
    seconds, used = time.perf_counter() - begin, time.process_time() - used
    regression.features = x.astype(np.float64)
    loss, gradient = regression.objective(flat)
    greatest = float(np.abs(gradient).max())
    return {"seconds": seconds, "used": used, "iterations": iterations, "loss": loss, "gradient": greatest}


def table(found: dict[str, dict[str, Any]], head: str) -> str:
    """A row for each solver."""
    head_of_table = "| solver | seconds | of processor time | iterations | loss with penalty | greatest gradient |"
    lines = [head + "\n", head_of_table, "|---" * 6 + "|"]
    for name, one in found.items():
        cells = [f"{one['seconds']:.1f}", f"{one['used']:.1f}", str(one["iterations"]), f"{one['loss']:.7f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {one['gradient']:.0e} |")
    return "\n".join(lines)


def main() -> None:
    """Fit with every solver, compare the losses, print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=500)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--strength", type=float, default=1.0, help="C, the inverse of the penalty")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--solver", choices=SOLVERS, help="print the numbers of one solver as JSON")
    parser.add_argument("--write", action="store_true", help="put the table into docs/guide/optimisers.md")
    options = parser.parse_args()
    sizes = options.samples, options.features, options.classes
    if options.solver:
        print(json.dumps(measure(options.solver, sizes, options.dtype, options.strength, options.tolerance)))
        return
    from fastsoftmax.tools.bench.report import caption, machine

    facts = caption(machine())
    found: dict[str, dict[str, Any]] = {}
    shared = [argument for argument in sys.argv[1:] if argument != "--write"]
    for name in SOLVERS:
        command = [sys.executable, str(HERE / "regression.py"), *shared, "--solver", name]
        found[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(name, found[name], file=sys.stderr, flush=True)
    losses = [one["loss"] for one in found.values()]
    if max(losses) - min(losses) > 1e-4 * min(losses):
        raise AssertionError(f"the losses disagree: {losses}")
    samples, features, classes = (f"{n:,}" for n in sizes)
    head = (
        f"{samples} samples, {features} features, {classes} classes, {options.dtype}, C = {options.strength:g}, "
        f"tolerance {options.tolerance:g}. {facts}; made by `{MADE_BY}`."
    )
    text = table(found, head)
    print(text)
    if options.write:
        readme.write("regression", text)


if __name__ == "__main__":
    main()
