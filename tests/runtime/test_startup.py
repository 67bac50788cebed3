"""The time of the import and of the first call in a new process."""

import statistics

import child
import pytest

IMPORTED = """
import sys
import numpy
before = set(sys.modules)
import fastsoftmax
print(*sorted(set(sys.modules) - before))
"""

MEASURED = """
import time
import numpy
start = time.process_time()
import fastsoftmax
print(time.process_time() - start)
"""

LOOP = """
import math, numba

@numba.njit(cache=True)
def softmax(x, out):
    for i in range(x.shape[0]):
        row_max = x[i, 0]
        for j in range(x.shape[1]):
            row_max = max(row_max, x[i, j])
        total = x.dtype.type(0)
        for j in range(x.shape[1]):
            out[i, j] = math.exp(x[i, j] - row_max)
            total += out[i, j]
        for j in range(x.shape[1]):
            out[i, j] /= total
"""

FIRST_CALL = """
import sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np
x = np.ones((32, 10), np.float32)
start = time.process_time()
{}
print(time.process_time() - start)
"""
OURS = FIRST_CALL.format("import fastsoftmax as fs; fs.softmax(x)")
BARE = FIRST_CALL.format("import loop; loop.softmax(x, np.empty_like(x))")

LOADED = """
import sys
import numpy as np
import fastsoftmax as fs
fs.softmax(np.ones((32, 10), np.float32))
names = ("fastsoftmax.", "numba", "llvmlite")
print(*sorted(name for name in sys.modules if name.startswith(names)))
"""


def test_import_brings_little():
    """The import loads our modules and few of the standard library: no logging, no fractions, no pool."""
    imported = child.run(IMPORTED).split()
    foreign = [name for name in imported if name.partition(".")[0] not in ("fastsoftmax", "numpy")]
    assert not {"numba", "llvmlite", "scipy", "logging", "concurrent.futures", "fractions", "decimal"} & set(
        foreign
    )
    assert len(foreign) <= 8, foreign
    assert not any(name.startswith("fastsoftmax.kernels.") for name in imported)


@pytest.mark.timed
@pytest.mark.slow
def test_import_takes_ten_milliseconds():
    """Processor time beyond `import numpy`, with bytecode on disk; 30 ms are allowed for busy machines."""
    child.run(MEASURED, PYTHONDONTWRITEBYTECODE=None)
    assert min(float(child.run(MEASURED)) for _ in range(7)) < 0.03


def test_the_first_call_imports_the_kernels_that_it_needs(tmp_path):
    """If it compiles one. If the code is on disk, neither kernels nor Numba are imported."""
    environment = {"FASTSOFTMAX_PREBUILT": 0, "FASTSOFTMAX_CACHE_DIR": tmp_path}
    compiled, found = (child.run(LOADED, **environment).split() for _ in range(2))
    assert {"fastsoftmax.kernels.activations", "numba"} <= set(compiled)
    assert "llvmlite" in found
    assert not [name for name in found if name.startswith(("fastsoftmax.kernels.", "numba"))]
    if "fastsoftmax.njit.overloads" in compiled:  # in an installed package Numba loads the entry point
        return
    assert "fastsoftmax.kernels.derivatives" not in compiled
    assert "fastsoftmax.kernels.losses" not in compiled


@pytest.mark.timed
@pytest.mark.slow
def test_the_first_call_costs_what_that_of_a_bare_kernel_does(tmp_path):
    """Loaded from disk, processor time, in turns: at most 1.5 times as much, also on busy machines."""
    (tmp_path / "loop.py").write_text(LOOP)
    environment = {"FASTSOFTMAX_CACHE_DIR": tmp_path / "cache", "NUMBA_CACHE_DIR": tmp_path / "numba"}
    samples = {OURS: [], BARE: []}
    for repeat in range(6):
        for code, times in samples.items():
            seconds = float(child.run(code, tmp_path, **environment))
            if repeat:  # the first one compiles
                times.append(seconds)
    ours, bare = (statistics.median(times) for times in samples.values())
    assert ours < 1.5 * bare
