"""Running code in a new process, to test what a process does only once, or what could end it."""

import os
import subprocess
import sys
from pathlib import Path

import fastsoftmax

PACKAGE = Path(fastsoftmax.__file__).parent


def run(code, *arguments, timeout=240, path=PACKAGE.parent, **environment):
    """The output of `code`. If it fails or hangs, an AssertionError with its output.

    The child imports the package from `path` and treats warnings as errors, apart from Python's own about forks.
    A variable whose value is None is removed from the environment.
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
