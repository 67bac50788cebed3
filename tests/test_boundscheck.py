"""The kernels with every access to memory checked: tests of layouts and edge rows again, in a process apart."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
TESTS = ["test_edge_rows.py", "test_arrays.py"]


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


def test_the_check_would_notice(tmp_path):
    """An output that is one row short: without the check, the kernel would write behind it."""
    run = _python(tmp_path, str(Path(__file__)))
    assert run.returncode != 0
    assert "IndexError: kernel access outside its array" in run.stderr


if __name__ == "__main__":
    from fastsoftmax.kernels import activations

    logits = np.zeros((4, 60, 1))
    logits.flags.writeable = False
    activations.softmax(0, 4, np.empty(0), logits, np.empty((3, 60, 1)), None)
