"""The kernels as machine code and as plain Python: the code is vectorised, and both give the same results."""

import inspect
import json
import platform
import re
from functools import cache
from pathlib import Path

import cases
import child
import functions
import numpy as np
import pytest
from numba import njit

import fastsoftmax as fs
from fastsoftmax import kernels
from fastsoftmax.arrays.blocks import NO_ROOM, SMALL, UNWEIGHTED
from fastsoftmax.kernels import jit
from fastsoftmax.kernels.activations import ActivationOptions, log_softmax_block, softmax_block
from fastsoftmax.kernels.simd.memory import memory, scratch
from fastsoftmax.kernels.simd.values import unless_none
from fastsoftmax.kernels.traversal import COLUMN_LIMIT, TABLE, either, measure, measured, row_at

X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="register names of x86")
every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)

KERNELS = {
    "softmax": lambda x: fs.softmax(x, out=np.empty_like(x)),
    "log_softmax": lambda x: fs.log_softmax(x, out=np.empty_like(x)),
    "logsumexp": fs.logsumexp,
    "softmax_product": lambda x: fs.softmax_jvp(x, x),
    "cross_entropy": lambda x: fs.cross_entropy_with_grad(x, np.zeros(len(x), int)),
}


def module_of(name):
    return next(m for m in (kernels.activations, kernels.derivatives, kernels.losses) if hasattr(m, name))


ABSENT = {
    "softmax": {"beta"},
    "log_softmax": {"beta"},
    "softmax_product": {"beta", "from_probs"},
}
"""The options that are None in these calls. Other tests may have compiled the kernels for other options."""


def signature_of(name, dtype):
    """The types for which such a call compiles the kernel, with arrays too large for the small calls."""
    KERNELS[name](np.zeros((SMALL, 2), dtype))
    kernel = getattr(module_of(name), name)
    names = list(inspect.signature(kernel.py_func).parameters)
    (signature,) = (
        types
        for types in kernel.signatures
        if np.dtype(dtype).name in str(types)
        and not types[names.index("x")].mutable  # else another test has made a small call by the dispatcher
        and {n for n, kind in zip(names, types, strict=True) if str(kind) == "none"} == ABSENT.get(name, set())
    )
    return signature


@cache
def assembly(name, dtype):
    """The assembly of a kernel. It is compiled here, because code from the disk cache cannot be read."""
    kernel, signature = getattr(module_of(name), name), signature_of(name, dtype)
    fresh = njit(**jit.OPTIONS)(kernel.py_func)
    fresh.compile(signature)
    return fresh.inspect_asm(signature)


def calls(code):
    """Functions of libm (or of SVML) that the code calls."""
    targets = re.findall(r"^\s*(?:callq?|jmpq?)\s+\*?%?(\S+)", code, re.MULTILINE)
    targets += re.findall(r"movabsq\s+\$([A-Za-z_]\S*),", code)
    names = r"_*(svml_)?(expm?1?f?|log1?p?f?|exp2f?|powf?|fmaf?|rintf?|nearbyintf?|truncf?|fmaxf?)\b"
    return [target for target in targets if re.fullmatch(names, target)]


def packed(code, dtype):
    """The numbers of packed and of scalar multiplications and fused additions in the code."""
    kinds = ("ps", "ss") if dtype == np.float32 else ("pd", "sd")
    return [len(re.findall(rf"^\s*vf?n?m(?:add|sub|ul)\w*{kind}\s", code, re.MULTILINE)) for kind in kinds]


@X86
@every_dtype
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_vectors(name, dtype):
    """No work is left to a scalar loop or to a function of libm, which would be ten times slower.

    Some scalar operations remain: those on one number for each row.
    """
    code = assembly(name, dtype)
    vectors, scalars = packed(code, dtype)
    assert re.search("%[yz]mm", code)
    assert vectors > 2 * scalars
    assert not calls(code)


@X86
@every_dtype
@pytest.mark.parametrize(
    ("block", "kept"), [(softmax_block, None), (softmax_block, True), (log_softmax_block, None)]
)
def test_rows_are_read_in_order(block, kept, dtype):
    """The walk along a row has no gather and no scatter. LLVM makes them of indices that might wrap around."""
    options = ActivationOptions(None, kept)

    @njit(**jit.OPTIONS)
    def rows(x, y):
        source, target = memory(x), memory(y)
        classes = x.shape[1]
        table = scratch(source, TABLE)
        terms = unless_none(kept, target)
        measure(source, 0, classes, x.shape[0], None, table, terms)
        for row in range(x.shape[0]):
            stats = measured(table, row)
            place = row_at(row * classes, classes, row)
            block(either(terms, source), None, target, place, stats, None, options)

    x = np.random.default_rng(0).normal(size=(3, 100)).astype(dtype)
    y = np.empty_like(x)
    rows(x, y)
    function = fs.log_softmax if block is log_softmax_block else fs.softmax
    np.testing.assert_array_equal(y, function(x))
    (code,) = rows.inspect_asm().values()
    assert packed(code, dtype)[0] >= 20
    assert not re.search(r"gather|scatter", code)
    assert not calls(code)


def test_libm_would_be_noticed():
    """The search finds a call of libm."""

    @njit
    def slow(x):
        return np.exp(x) + np.log(x)

    slow(np.float32(1.0))
    slow(1.0)
    for code in slow.inspect_asm().values():
        assert len(calls(code)) >= 2


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
        kernels.activations.softmax(0, len(x), room, x, y, None)
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
        assert kernels.losses.cross_entropy(0, count, room, x, targets, ones, y, rows, *scale, True) == -1
        assert {*rows, *y.flat} == {7}
    total = kernels.losses.cross_entropy(0, count, room, x, labels, ones, y, rows, *scale, True)
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
    assert not jit.OPTIONS.get("fastmath")
    assert jit.OPTIONS["error_model"] == "numpy"
    assert jit.OPTIONS["nogil"]
    for path in child.PACKAGE.rglob("*.py"):
        if path.name != "jit.py" and path.parent.name != "bench":  # which holds what others write
            assert not re.search(r"^\s*@(numba\.)?n?jit\b|fastmath=", path.read_text(), re.MULTILINE), path
