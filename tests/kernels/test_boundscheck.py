"""Tests of layouts and edge rows with kernels that check every memory access, in a new process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parents[1]
TESTS = ["test_edge_rows.py", "arrays/test_blocks.py"]


def _python(tmp_path, *arguments):
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "FASTSOFTMAX_CACHE_DIR": str(tmp_path / "cache")}
    environment.update(PYTHONPATH=os.pathsep.join([str(HERE.parent), str(HERE)]), PYTEST_ADDOPTS="")
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        pytest.param(TESTS[:1], "float32 and (some_minus or impossible)", id="some edge rows"),
        pytest.param(TESTS, "not float64", id="all of them and layouts", marks=pytest.mark.slow),
    ],
)
def test_no_kernel_leaves_its_arrays(names, chosen, tmp_path):
    paths = [str(HERE / name) for name in names]
    # One dtype is enough: offsets and lengths are the same in both. Kernels with checks take long to compile.
    run = _python(tmp_path, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen, *paths)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


SMALLER_LIMITS = """
import numpy as np
from fastsoftmax.kernels import traversal
traversal.PAST_CACHES = 512
import fastsoftmax as fs
from fastsoftmax import boosting
from fastsoftmax.api import derivatives
from fastsoftmax.arrays import long_rows, losses

derivatives.SMALL = losses.SMALL = 0
long_rows.LONG_ROW, long_rows.PIECE = 300, 128
rng = np.random.default_rng(0)
for classes in (301, 384, 390):
    x = rng.normal(size=(3, classes)).astype("f4")
    gradient = fs.cross_entropy_with_grad(x, np.array([0, 150, classes - 1]), reduction="sum")[1]
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-5)
for inner in (48, 96, 100, 608):
    room = np.empty(5 * 3 * inner + 16, "f4")
    for shift in (0, 3):
        out = room[shift : shift + 15 * inner].reshape(5, 3, inner)
        fs.softmax(rng.normal(size=out.shape).astype("f4"), 1, out=out)
        np.testing.assert_allclose(out.sum(axis=1), 1, atol=1e-6)
    scores = np.asfortranarray(rng.normal(size=(inner, 3)).astype("f4"))
    gradient, diagonal = boosting.gradient_and_curvature(scores, np.arange(inner) % 3)
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-5)
    assert (diagonal > 0).all()
for classes in (65, 70, 2049):
    x, v = rng.normal(size=(2, 17, classes)).astype("f4")
    expected = fs.softmax_jvp(x, v)
    np.testing.assert_array_equal(fs.softmax_jvp(x, v, out=v), expected)
"""


def test_rare_walks(tmp_path):
    """Rows in pieces and results that are written past the caches, with limits that small arrays reach."""
    run = _python(tmp_path, "-c", SMALLER_LIMITS)
    assert run.returncode == 0, run.stderr[-2000:]


def test_the_check_would_notice(tmp_path):
    """The check fails if an output is one row short, behind which the kernel would write."""
    run = _python(tmp_path, str(Path(__file__)))
    assert run.returncode != 0
    assert run.stdout == "inside\n"
    assert "IndexError: kernel access outside its array" in run.stderr


if __name__ == "__main__":
    from fastsoftmax.machine.entry import entry

    softmax, logits, room = entry("activations.softmax"), np.zeros((4, 60, 1)), np.empty(16 * 60)
    softmax(0, 4, room, logits, np.empty((4, 60, 1)), None)
    print("inside")
    softmax(0, 4, room, logits, np.empty((3, 60, 1)), None)
