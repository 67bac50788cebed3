"""SciPy's own tests of softmax, log_softmax and logsumexp, run with our functions.

A pytest in a process of its own collects ``scipy.special.tests.test_logsumexp`` and, with this file as a plugin,
replaces the three names in it. The default axis is SciPy's. Tests with weights, signs or complex numbers are
skipped. The number of tests that pass is checked.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastsoftmax as fs

MODULE = "scipy.special.tests.test_logsumexp"


def _beyond(*arrays):
    if any(np.iscomplexobj(array) for array in arrays):
        pytest.skip("complex")


def softmax(x, axis=None):
    _beyond(x)
    return fs.softmax(x, axis)


def log_softmax(x, axis=None):
    _beyond(x)
    return fs.log_softmax(x, axis)


def logsumexp(a, axis=None, b=None, keepdims=False, return_sign=False):
    _beyond(a)
    if b is not None or return_sign:
        pytest.skip("b and return_sign")
    return fs.logsumexp(a, axis, keepdims=keepdims)


def pytest_collection_modifyitems(items):
    """Called only in the process below, where this file is a plugin."""
    for module in {item.module for item in items}:
        if module.__name__ == MODULE:
            module.softmax, module.log_softmax, module.logsumexp = softmax, log_softmax, logsumexp


def test_scipys_own_tests_pass():
    pytest.importorskip("scipy")
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--pyargs",
        MODULE,
        "-p",
        "test_scipy",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-c", os.devnull, "--rootdir", str(here), "-p", "no:randomly", "-W", "ignore"]
    environment = {**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": ""}
    environment.pop("SCIPY_ARRAY_API", None)
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    report = run.stdout + run.stderr
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", report)}
    assert run.returncode == 0, report
    assert counts.get("failed", 0) == counts.get("error", 0) == 0, report
    assert counts["passed"] >= 25, report
