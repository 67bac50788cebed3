"""An installed wheel computes everything without Numba, which is blocked from import.

It needs only pytest and NumPy, and no other file of the tests: a wheel is tested in an environment of its own, on
the platform that it is for. Where the package holds no library, as in an editable install, nothing is tested.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastsoftmax

LIBRARIES = Path(fastsoftmax.__file__).parent / "_prebuilt"

PROGRAM = """
import importlib.abc, json, math, sys, time


class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "llvmlite"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)


sys.meta_path.insert(0, Blocked())
import numpy as np
import fastsoftmax as fs
from fastsoftmax import _spec, special
from fastsoftmax.api import ufuncs
from fastsoftmax.runtime import prebuilt

times, wrong = {}, []
start = time.perf_counter()
fs.softmax([1.0, 2.0])
times["the first"] = time.perf_counter() - start


def operands(entry, targets, shape, dtype):
    x = np.random.default_rng(0).normal(0, 3, shape).astype(dtype)
    if entry.is_ragged:
        x = x.ravel()
    made = {
        _spec.LOGITS: x,
        _spec.TANGENT: x[..., ::-1].copy(),
        _spec.COTANGENT: x[..., ::-1].copy(),
        _spec.LABELS: np.arange(shape[0]) % shape[1],
        _spec.DISTRIBUTIONS: np.full(shape, 1 / shape[1], dtype),
        _spec.TARGET_LOGITS: x[..., ::-1].copy(),
        _spec.PROBABILITIES: np.linspace(0, 1, x.size).astype(dtype).reshape(x.shape),
        _spec.INDPTR: np.arange(shape[0] + 1) * shape[1],
        _spec.POSITIONS: np.arange(shape[0]) % shape[1],
    }
    return [made[targets if role == _spec.TARGETS else role] for role in entry.operands]


def near(name, result, expected, dtype):
    if not np.allclose(result, expected, rtol=200 * np.finfo(dtype).eps, atol=200 * np.finfo(dtype).eps):
        wrong.append(f"{name} {np.dtype(dtype)}")


for entry in _spec.FUNCTIONS.values():
    if not entry.is_compiled:
        continue
    for dtype in (np.float32, np.float64):
        for shape in ((5, 4), (3, 300), (70, 30)):
            for targets in (_spec.LABELS, _spec.DISTRIBUTIONS) if _spec.TARGETS in entry.operands else ("",):
                arguments = operands(entry, targets, shape, dtype)
                start = time.perf_counter()
                result = getattr(fs, entry.name)(*arguments)
                times.setdefault(entry.name, time.perf_counter() - start)
                for one in result if isinstance(result, tuple) else (result,):
                    if not np.isfinite(one).all():
                        wrong.append(f"{entry.name} {np.dtype(dtype)} {shape}")

for dtype in (np.float32, np.float64):
    for shape in ((5, 4), (3, 300), (1, 2**20 + 3)):
        x = np.random.default_rng(1).normal(0, 3, shape).astype(dtype)
        e = np.exp(x - x.max(1, keepdims=True).astype(float))
        p = e / e.sum(1, keepdims=True)
        near("softmax", fs.softmax(x), p, dtype)
        near("log_softmax", fs.log_softmax(x), np.log(p), dtype)
        near("logsumexp", fs.logsumexp(x), x.max(1) + np.log(e.sum(1)), dtype)
        near("softmax_jvp", fs.softmax_jvp(x, x), p * (x - (p * x).sum(1, keepdims=True)), dtype)
        near("cross_entropy", fs.cross_entropy(x, np.zeros(shape[0], int)), -np.log(p[:, 0]).mean(), dtype)

for name in ufuncs.DOCS:
    for dtype in (np.float16, np.float32, np.float64):
        ufunc = getattr(fs, name, None) or getattr(special, name)
        start = time.perf_counter()
        result = ufunc(*ufunc.nin * [np.linspace(0.1, 0.9, 40).astype(dtype)])
        times.setdefault(name, time.perf_counter() - start)
        if not np.isfinite(result).all():
            wrong.append(f"{name} {np.dtype(dtype)}")
with np.errstate(all="raise"):
    x = np.linspace(0.1, 3, 40)
    near("exp", fs.exp(x), np.exp(x), float)
    near("log", fs.log(x), np.log(x), float)
try:
    with np.errstate(over="raise"):
        fs.exp(np.full(9, 1e4))
    wrong.append("exp does not raise an overflow")
except FloatingPointError:
    pass
print(json.dumps([prebuilt.search().text, wrong, times, sorted({"numba", "llvmlite"} & set(sys.modules))]))
"""


@pytest.mark.skipif(not LIBRARIES.is_dir(), reason="the package was installed without compiled kernels")
def test_everything_without_numba(tmp_path):
    variables = {name: value for name, value in os.environ.items() if not name.startswith("FASTSOFTMAX_")}
    variables["FASTSOFTMAX_CACHE_DIR"] = str(tmp_path)
    variables["PYTHONPATH"] = str(LIBRARIES.parents[1])
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    text, wrong, times, imported = json.loads(done.stdout)
    assert text.startswith(str(LIBRARIES))
    assert not imported
    assert not wrong
    for name, seconds in sorted(times.items(), key=lambda item: -item[1]):
        print(f"{1e3 * seconds:8.2f} ms  {name}")
