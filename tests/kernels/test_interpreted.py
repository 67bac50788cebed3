"""The kernels as plain Python on NumPy arrays, under NUMBA_DISABLE_JIT=1, as for a debugger."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

HERE = Path(__file__).parents[1]


def test_the_kernels_run_without_a_compiler():
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(HERE.parent), "PYTEST_ADDOPTS": ""}
    command = [sys.executable, str(Path(__file__))]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout == "compared\n"


def main():
    """Compare with the textbook formulas in float64, in rows and in columns, to a few eps of the dtype."""
    import fastsoftmax as fs
    from fastsoftmax.metrics import RunningMetrics

    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        close = {"rtol": 8 * np.finfo(dtype).eps, "atol": 8 * np.finfo(dtype).eps}
        for shape, axis in (((5, 7), -1), ((3, 70), -1), ((2, 9, 20), 1)):
            x = (3 * rng.normal(size=shape)).astype(dtype)
            v = rng.normal(size=shape).astype(dtype)
            labels = rng.integers(0, shape[axis], np.delete(shape, axis))
            terms = np.exp(x.astype(np.float64))
            total = terms.sum(axis, keepdims=True)
            p = terms / total
            one_hot = np.moveaxis(np.eye(shape[axis])[labels], -1, axis)
            np.testing.assert_allclose(fs.softmax(x, axis), p, **close)
            np.testing.assert_allclose(fs.log_softmax(x, axis), np.log(p), **close)
            np.testing.assert_allclose(fs.logsumexp(x, axis), np.log(total).squeeze(axis), **close)
            np.testing.assert_allclose(
                fs.softmax_jvp(x, v, axis),
                p * (v - (p * v).sum(axis, keepdims=True)),
                rtol=1e-4,
                atol=close["atol"],
            )
            loss, grad = fs.cross_entropy_with_grad(x, labels, axis, reduction="sum")
            np.testing.assert_allclose(loss, -(one_hot * np.log(p)).sum(), **close)
            np.testing.assert_allclose(grad, p - one_hot, **close)
            smoothed = 0.9 * one_hot + 0.1 / shape[axis]
            grad = fs.cross_entropy_grad(x, labels, axis, reduction="sum", label_smoothing=0.1)
            np.testing.assert_allclose(grad, p - smoothed, **close)
            q = np.exp(v.astype(np.float64))
            q /= q.sum(axis, keepdims=True)
            loss, grad = fs.kl_divergence_with_grad(x, v, axis, reduction="sum")
            np.testing.assert_allclose(loss, (q * np.log(q / p)).sum(), **close)
            np.testing.assert_allclose(grad, p - q, **close)
            loss = fs.js_divergence(x, v, axis, reduction="sum")
            mixture = (p + q) / 2
            np.testing.assert_allclose(
                loss, (q * np.log(q / mixture) + p * np.log(p / mixture)).sum() / 2, **close
            )
            jacobian = fs.softmax_jacobian(x, axis)
            diagonal = np.moveaxis(np.einsum("...ii->...i", jacobian), -1, axis)
            np.testing.assert_allclose(diagonal, p * (1 - p), **close)
            metrics = RunningMetrics().update(x, labels, axis).result()
            np.testing.assert_allclose(metrics.loss, -(one_hot * np.log(p)).sum() / labels.size, **close)
            np.testing.assert_allclose(metrics.brier_score, ((p - one_hot) ** 2).sum() / labels.size, **close)
            weighted = RunningMetrics().update(x, labels, axis, np.ones(labels.shape)).result()
            assert metrics[:-1] == weighted[:-1]
            classes = shape[axis]
            peaked = 4 * np.eye(classes, dtype=dtype)[[0] * 4]  # three of four labels are right
            fit = fs.fit_temperature(peaked, [0, 0, 0, 1])
            np.testing.assert_allclose(fit.temperature, 4 / np.log(3 * (classes - 1)), rtol=close["rtol"])
            if axis == -1:
                u = rng.random(shape[0])
                drawn = (p.cumsum(-1) <= u[:, None]).sum(-1)
                np.testing.assert_array_equal(fs.categorical(x, uniforms=u), drawn)
                np.testing.assert_array_equal(fs.categorical(x, uniforms=u[None], size=1), drawn[None])
                assert len(set(fs.categorical(x[0], size=4, replace=False, rng=1).tolist())) == 4
                for options, count in (({"top_k": 3}, 3), ({"top_p": 1e-3}, 1), ({"min_p": 1.0}, 1)):
                    assert (np.isfinite(fs.filter_logits(x, **options)).sum(-1) == count).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for classes in (2, 70):
            edges = np.zeros((4, classes))
            edges[0], edges[1, 1:], edges[2, 0], edges[3, 0] = -np.inf, -np.inf, np.inf, np.nan
            assert np.array_equal(fs.logsumexp(edges), [-np.inf, 0, np.inf, np.nan], equal_nan=True)
            assert np.array_equal(np.isnan(fs.softmax(edges)).all(-1), [True, False, True, True])
            fs.cross_entropy_with_grad(edges, [0, 0, 1, 1])
    print("compared")


if __name__ == "__main__":
    main()
