"""SciPy's own tests of the functions in `fastsoftmax.special`, run with ours.

A pytest in a process of its own collects SciPy's test modules and, with this file as a plugin, replaces the names
in them. `LEFT_OUT` lists the tests that are left out, with the reasons. No others are deselected.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastsoftmax import special

HERE = Path(__file__).parent
MODULES = (
    "scipy.special.tests.test_logsumexp",
    "scipy.special.tests.test_logit",
    "scipy.special.tests.test_basic",
)
# The tests of our functions in test_basic, which tests all of scipy.special.
BASIC = re.compile(r"test_(xlogy|entr|rel_entr\w*)$")
LEFT_OUT = {"test_wrap_radians": "of a private helper of SciPy's, which is not replaced"}


class Replaced(SimpleNamespace):
    """scipy.special with our functions in it."""

    def __init__(self, original):
        super().__init__(**{name: getattr(special, name) for name in special.__all__})
        self.original = original

    def __getattr__(self, name):
        return getattr(self.original, name)


def pytest_collection_modifyitems(config, items):
    """Called only in the process below, where this file is a plugin."""
    kept, dropped = [], []
    for item in items:
        name = item.originalname
        ours = item.module.__name__ in MODULES and name not in LEFT_OUT
        if item.module.__name__.endswith("test_basic"):
            ours = ours and BASIC.match(name) is not None
        (kept if ours else dropped).append(item)
    for module in {item.module for item in kept}:
        for name in special.__all__:
            if name in vars(module):
                setattr(module, name, getattr(special, name))
        if "special" in vars(module):
            module.special = Replaced(module.special)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


@pytest.fixture(scope="module")
def outcome():
    pytest.importorskip("scipy.special.tests", reason="this SciPy comes without its tests")
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "--pyargs", *MODULES, "-p", "test_special_scipy", "-v", "-rs"]
    command += ["-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(HERE), "-W", "ignore"]
    environment = {**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": ""}
    environment.pop("SCIPY_ARRAY_API", None)  # arrays of other libraries are not supported
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    return run.returncode, run.stdout + run.stderr


def test_scipys_own_tests_pass(outcome):
    code, report = outcome
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", report)}
    assert code == 0, report
    assert counts.get("failed", 0) == counts.get("error", 0) == 0, report
    assert counts["passed"] >= 400, report


@pytest.mark.parametrize(
    "name",
    [
        "test_logsumexp_b",
        "test_logsumexp_complex_sign",
        "test_gh22601",
        "test_softmax_multi_axes",
        "test_axes",
        "TestLogit::test_float32",
        "TestExpit::test_large",
        "TestLogExpit::test_basic_float64",
        "test_xlogy",
        "test_entr",
        "test_rel_entr_gh_20710_near_zero",
    ],
)
def test_each_function_was_among_them(name, outcome):
    assert re.search(rf"{name}\S* PASSED", outcome[1]), outcome[1]
