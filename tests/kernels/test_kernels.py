"""The kernels as machine code and as plain Python: the code is vectorised, and both give the same results."""

import json
import re
from functools import cache
from pathlib import Path

import cases
import child
import functions
import numpy as np
import pytest
from assembly import LEVELS, assembly, calls, multiplications, variant_of
from numba import njit

import fastsoftmax as fs
from fastsoftmax._vectors import SMALL
from fastsoftmax.arrays.blocks import NO_ROOM, UNWEIGHTED
from fastsoftmax.kernels.activations import ActivationOptions, log_softmax_block, softmax_block
from fastsoftmax.kernels.simd.memory import memory, scratch
from fastsoftmax.kernels.simd.values import unless_none
from fastsoftmax.kernels.traversal import COLUMN_LIMIT, TABLE, either, measure, measured, row_at
from fastsoftmax.machine.entry import Floats, Table, entry
from fastsoftmax.machine.frontend import OPTIONS

every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)

KERNELS = {
    "softmax": lambda x: fs.softmax(x, out=np.empty_like(x)),
    "log_softmax": lambda x: fs.log_softmax(x, out=np.empty_like(x)),
    "logsumexp": fs.logsumexp,
    "softmax_product": lambda x: fs.softmax_jvp(x, x),
    "cross_entropy": lambda x: fs.cross_entropy_with_grad(x, np.zeros(len(x), int)),
    "categorical": fs.categorical,
}


MODULES = {"softmax_product": "derivatives", "cross_entropy": "losses", "categorical": "sampling"}


def kernel_of(name):
    return entry(f"{MODULES.get(name, 'activations')}.{name}")


@cache
def variant(name, dtype):
    """The variant that such a call uses, with arrays too large for the small calls."""
    kernel = kernel_of(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_codes", {})  # other tests may have called it with other options
        KERNELS[name](np.zeros((SMALL, 2), dtype)[::-1])  # in an order that needs the general way
        (code,) = kernel._codes.values()
    (found,) = (one for one in kernel.variants() if one.name == code.__name__)
    return found


every_level = pytest.mark.parametrize("level", LEVELS)


@every_level
@every_dtype
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_vectors(name, dtype, level):
    """No work is left to a scalar loop or to a function of libm, which would be ten times slower.

    Some scalar operations remain: those on one number for each row.
    """
    code = assembly(variant(name, dtype), level)
    vectors, scalars = multiplications(code, dtype, level)
    assert re.search(LEVELS[level].vector, code)
    assert vectors > 2 * scalars
    assert not calls(code)


@every_dtype
@pytest.mark.parametrize(
    ("block", "kept"), [(softmax_block, None), (softmax_block, True), (log_softmax_block, None)]
)
def test_rows_are_read_in_order(block, kept, dtype):
    """The walk along a row has no gather and no scatter. LLVM makes them of indices that might wrap around."""
    options = ActivationOptions(None, kept)

    def rows(x: Table, y: Table) -> None:
        source, target = memory(x), memory(y)
        classes = x.shape[1]
        table = scratch(source, TABLE)
        terms = unless_none(kept, target)
        measure(source, 0, classes, x.shape[0], None, table, terms, None)
        for row in range(x.shape[0]):
            stats = measured(table, row)
            place = row_at(row * classes, classes, row)
            block(either(terms, source), None, target, place, stats, None, options)

    x = np.random.default_rng(0).normal(size=(3, 100)).astype(dtype)
    y = np.empty_like(x)
    njit(**OPTIONS)(rows)(x, y)
    function = fs.log_softmax if block is log_softmax_block else fs.softmax
    np.testing.assert_array_equal(y, function(x))
    for level in LEVELS:
        code = assembly(variant_of(rows, dtype), level)
        assert multiplications(code, dtype, level)[0] >= 20
        assert not re.search(r"gather|scatter", code)
        assert not calls(code)


@every_level
@every_dtype
def test_libm_would_be_noticed(dtype, level):
    """The search finds a call of libm, and single numbers."""

    def slow(x: Floats) -> None:
        x[0] = np.exp(x[0]) * np.log(x[0])

    code = assembly(variant_of(slow, dtype), level)
    assert len(calls(code)) >= 2
    assert multiplications(code, dtype, level)[1]


def test_both_walks_are_tested():
    """The accuracy tests have rows of the length at which the walk changes, and of one more."""
    assert COLUMN_LIMIT in cases.CLASSES
    assert COLUMN_LIMIT + 1 in cases.CLASSES


@every_dtype
def test_both_walks_are_walked(dtype):
    """Rows up to COLUMN_LIMIT are walked in columns, longer ones along the row. Only columns use `room`."""
    used = []
    for classes in (COLUMN_LIMIT, COLUMN_LIMIT + 1):
        x = np.random.default_rng(1).normal(0, 1, (40, classes, 1)).astype(dtype)
        x.flags.writeable = False
        y, room = np.empty_like(x), np.full(16 * classes, 7, dtype)
        entry("activations.softmax")(0, len(x), room, x, y, None)
        np.testing.assert_array_equal(y[..., 0], fs.softmax(x[..., 0]))
        used.append(bool((room != 7).any()))
    assert used == [True, False]


@every_dtype
@pytest.mark.parametrize("count", [3, 20])
def test_small_calls_of_the_cross_entropy(count, dtype):
    """With `summed` the kernel returns the sum of the losses, or -1 for a wrong label; then it writes nothing."""
    x = np.random.default_rng(2).normal(size=(count, 10, 1)).astype(dtype)
    x.flags.writeable = False
    labels, room, ones = np.arange(count) % 10, NO_ROOM[x.dtype], UNWEIGHTED[x.dtype]
    labels.flags.writeable = False
    y, rows, scale = np.full_like(x, 7), np.full(count, 7, dtype), (dtype(1), dtype(0))
    for wrong in (10, -1):
        targets = np.where(labels == 2, wrong, labels)
        targets.flags.writeable = False
        assert entry("losses.cross_entropy")(0, count, room, x, targets, ones, y, rows, *scale, True) == -1
        assert {*rows, *y.flat} == {7}
    total = entry("losses.cross_entropy")(0, count, room, x, labels, ones, y, rows, *scale, True)
    loss, gradient = fs.cross_entropy_with_grad(x[..., 0], labels, reduction="none")
    np.testing.assert_array_equal(rows, loss)
    np.testing.assert_array_equal(y[..., 0], gradient)
    assert total == pytest.approx(loss.sum(dtype=np.float64))


# --- plain Python --------------------------------------------------------------------------------------------

PLAIN = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import functions

np.seterr(all="ignore")  # infinities meet here, as they do in registers
results = []
for function in functions.ALL:
    for dtype in (np.float32, np.float64):
        for shape, axis in (((19, 3), 1), ((2, 60), 1), ((3, 17), 0)):
            x = np.random.default_rng(0).normal(size=shape).astype(dtype)
            results.append(function(x, axis).tolist())
print(json.dumps(results))
"""


def test_python_bodies_mean_the_same():
    """The Python body of every operation, run by NUMBA_DISABLE_JIT=1, gives the results of its machine code."""
    plain = json.loads(child.run(PLAIN, Path(__file__).parents[1], NUMBA_DISABLE_JIT=1))
    for function in functions.ALL:
        for dtype in (np.float32, np.float64):
            for shape, axis in (((19, 3), 1), ((2, 60), 1), ((3, 17), 0)):
                x = np.random.default_rng(0).normal(size=shape).astype(dtype)
                allowed = 20 * float(np.finfo(dtype).eps)
                np.testing.assert_allclose(plain.pop(0), function(x, axis), rtol=allowed, atol=allowed)
    assert not plain


def test_numba_options():
    """None of them may turn a nan into a number or drop a compensation; all of them are in one place."""
    assert not OPTIONS.get("fastmath")
    assert OPTIONS["error_model"] == "numpy"
    assert OPTIONS["nogil"]
    for path in child.PACKAGE.rglob("*.py"):
        if path.name != "frontend.py" and path.parent.name != "bench":  # which holds what others write
            assert not re.search(r"^\s*@(numba\.)?n?jit\b|fastmath=", path.read_text(), re.MULTILINE), path
