"""Operations of `kernels.simd`: what they compute when compiled, beside what their Python bodies do.

A driver is a function ``(x, table, out, counts)`` that calls one operation and writes what it gives. `x` has a
dtype of floats and holds inf and NaN in its second vector, `table` holds integers; `out` and `counts` are room for
floats and integers. It runs here, compiled, and in a process of its own without a compiler.
"""

import ast
import inspect
import json
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import child
import numpy as np
from numba import config, njit

from fastsoftmax.kernels import jit, simd

FLOATS, INTEGERS, LINE = 2048, 64, 64
GROUPS = ("values", "memory", "transpose", "reduce", "rows", "ufunc")

PLAIN = """
import json, sys
import numpy as np
sys.path[:0] = sys.argv[1:3]
import simd_bodies
np.seterr(all="ignore")  # infinities meet here, as they do in registers
print(json.dumps(simd_bodies.results(sys.argv[3])))
"""


def module_of(group):
    return import_module(f"{simd.__name__}.{group}")


def operations(group):
    """The names of the operations that a module defines: decorated public functions."""
    tree = ast.parse(inspect.getsource(module_of(group)))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    return [node.name for node in functions if not node.name.startswith("_")]


def aligned(count, dtype, fill):
    """An array that begins on a cache line."""
    room = np.full(count * np.dtype(dtype).itemsize + LINE, 0, np.uint8)
    start = -room.ctypes.data % LINE
    array = room[start : start + count * np.dtype(dtype).itemsize].view(dtype)
    array[:] = fill
    return array


def called(driver, dtype):
    """What a driver leaves in `out` and `counts`."""
    lanes = LINE // np.dtype(dtype).itemsize
    x = aligned(FLOATS, dtype, np.random.default_rng(0).uniform(-4, 4, FLOATS))
    x[lanes : lanes + 3] = np.nan, np.inf, -np.inf
    x[lanes + 4] = x[4]
    table = np.random.default_rng(1).integers(0, 9, INTEGERS)
    out, counts = aligned(FLOATS, dtype, 7), np.full(INTEGERS, 7)
    driver(x, table, out, counts)
    return out.tolist(), counts.tolist()


def results(test_module):
    """What all drivers of a test module leave, compiled unless NUMBA_DISABLE_JIT is set: {"name dtype": lists}."""
    found = {}
    for name, driver in import_module(test_module).DRIVERS.items():
        run = driver if config.DISABLE_JIT else njit(**jit.OPTIONS)(driver)
        for dtype in (np.float32, np.float64):
            found[f"{name} {np.dtype(dtype).name}"] = called(run, dtype)
    return found


@cache
def both(test_module):
    """The results compiled, and those of the Python bodies."""
    here = Path(__file__).parent
    plain = child.run(PLAIN, here.parent, here, test_module, NUMBA_DISABLE_JIT=1)
    return results(test_module), json.loads(plain)


def check(test_module, name, units=0):
    """That an operation gives the numbers of its Python body, to so many eps, and any at all."""
    compiled, plain = both(test_module)
    for dtype in (np.float32, np.float64):
        key = f"{name} {np.dtype(dtype).name}"
        (floats, integers), (expected, counts) = compiled[key], plain[key]
        allowed = units * float(np.finfo(dtype).eps)
        np.testing.assert_allclose(floats, expected, rtol=allowed, atol=allowed)
        np.testing.assert_array_equal(integers, counts)
        assert set(floats) != {7} or set(integers) != {7}, "the driver wrote nothing"


def check_complete(test_module, group, elsewhere=()):
    """That each operation of a group has a driver which calls it, or a test elsewhere in the module."""
    drivers = import_module(test_module).DRIVERS
    assert sorted([*drivers, *elsewhere]) == sorted(operations(group))
    for name, driver in drivers.items():
        seen = inspect.getclosurevars(driver)
        assert getattr(module_of(group), name) in (*seen.globals.values(), *seen.nonlocals.values()), name
    source = Path(sys.modules[test_module].__file__).read_text()
    for name in elsewhere:
        assert f"{name}(" in source, name
