"""Running code in a process of its own: for what a process does once, or dies of."""

import os
import subprocess
import sys
from pathlib import Path

import fastsoftmax

PACKAGE = Path(fastsoftmax.__file__).parent


def run(code, *arguments, timeout=240, path=PACKAGE.parent, **environment):
    """What `code` prints; an AssertionError with all its output if it fails or hangs.

    The child imports the package from `path` and treats warnings as errors, apart from Python's own about forks.
    A variable that is None is taken out of the environment.
    """
    variables = dict(os.environ, PYTHONPATH=str(path), PYTHONDONTWRITEBYTECODE="1")
    for name in ("PYTHONWARNINGS", "NUMBA_NUM_THREADS", "COVERAGE_PROCESS_START"):
        variables.pop(name, None)
    for name, value in environment.items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = str(value)
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code, *map(str, arguments)]
    try:
        done = subprocess.run(command, cwd=path, env=variables, timeout=timeout, capture_output=True, text=True)
    except subprocess.TimeoutExpired as hang:
        raise AssertionError(f"still running after {timeout} s: {hang.stdout!r} {hang.stderr!r}") from None
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
