"""The hot loops as machine code: a test of speed that does not depend on the load of the machine.

The innermost loops of a kernel are found by jumps to their own beginning. Those with a polynomial, which has fused
multiplications, take most of the time: one for the sums of a row and others for the results, for each of the two
walks (see `kernels.traversal`).
"""

import platform
import re

import numpy as np
import pytest
from assembly import assembly, calls, variant_of
from test_kernels import KERNELS, every_dtype, variant

import fastsoftmax as fs
from fastsoftmax.machine.entry import Floats
from fastsoftmax.tools.bench import libraries
from fastsoftmax.tools.bench.inputs import Inputs
from fastsoftmax.tools.bench.measure import measure

POLYNOMIAL = {"float32": 8, "float64": 13}
"""Fused multiplications in exp (reduction, polynomial). A loop with so many has one exp for each vector."""

BUDGET = {"float32": 30, "float64": 36}
"""Vector instructions for each 64 bytes in a hot loop, with AVX-512; the longest has 29 and 34.5."""

HOT_LOOPS = {
    "softmax": 2,
    "log_softmax": 2,
    "logsumexp": 2,
    "softmax_product": 2,
    "cross_entropy": 2,
    "categorical": 2,
}
"""At least so many: how often a row's exponentials are computed, times two walks, less those that LLVM cuts."""

ARITHMETIC = r"v?(?:f?n?m?(?:add|sub)|mul|div|max|min|sqrt)\d*"
PRODUCTS = r"v?(?:fn?m(?:add|sub)|mul|div|max|min|sqrt)\d*"
"""`ARITHMETIC` without additions."""


REGISTERS = {"v3": ("ymm", ("zmm", "xmm")), "v4": ("zmm", ("ymm", "xmm"))}
"""Levels of x86: the widest register, its narrower relatives. Any machine compiles for both."""

every_level = pytest.mark.parametrize("level", REGISTERS)


def body_of(code):
    """The code of the kernel, without the function that converts its arguments from Python."""
    functions = re.findall(r"^\s*\.type\s+(\S+),@function\n(.*?)^\.Lfunc_end", code, re.MULTILINE | re.DOTALL)
    assert any(symbol.strip('"').endswith(".py") for symbol, _ in functions)
    return "\n".join(text for symbol, text in functions if not symbol.strip('"').endswith(".py"))


def innermost_loops(body):
    """The instructions of each loop without jumps in or out."""
    lines = [line.strip() for line in body.splitlines()]
    lines = [line for line in lines if re.match(r"\.LBB\w+:|[a-z]", line)]
    loops, start, label = [], 0, None
    for i, line in enumerate(lines):
        if (match := re.match(r"(\.LBB\w+):", line)) is not None:
            start, label = i + 1, match[1]
        elif (jump := re.match(r"j\w+\s+(\.LBB\w+)", line)) is not None:
            if jump[1] == label:
                loops.append(lines[start : i + 1])
            label = None
    return loops


def count(loop, pattern):
    return sum(bool(re.match(pattern, line)) for line in loop)


def fused(loop, dtype):
    """Packed fused multiplications."""
    return count(loop, rf"vf(?:n?m)(?:add|sub)\d+p{'s' if dtype == np.float32 else 'd'}\s")


def flaws(loop, widest, narrower):
    """Properties that a hot loop should not have."""
    found = []
    if count(loop, rf"{ARITHMETIC}s[sd]\s"):
        found.append("scalar arithmetic")
    if any(re.match(rf"{ARITHMETIC}p[sd]\s.*%{name}", line) for line in loop for name in narrower):
        found.append("narrow vectors")
    if not any(f"%{widest}" in line for line in loop):
        found.append(f"no {widest}")
    if count(loop, r"call"):
        found.append("calls")
    if count(loop, r"v?p?(?:gather|scatter)"):
        found.append("gather or scatter")
    if count(loop, r"vdiv"):
        found.append("divisions")
    if widest == "zmm" and any(re.match(r"v.*\(%rsp\)", line) and "%zmm" in line for line in loop):
        found.append("vectors that do not fit the registers")
    return found


@every_level
@every_dtype
@pytest.mark.parametrize("name", KERNELS)
def test_hot_loops(name, dtype, level):
    """They use the widest vectors, have no calls, gathers, divisions and spills, and stay within their budget.

    One loop may have divisions: that of the logarithms of a tile's rows, which have one for each row.
    """
    widest, narrower = REGISTERS[level]
    kind = np.dtype(dtype).name
    loops = innermost_loops(body_of(assembly(variant(name, dtype), level)))
    long = [loop for loop in loops if fused(loop, dtype) >= POLYNOMIAL[kind] - 1]
    hot = [loop for loop in long if not count(loop, r"vdiv")]
    once = [loop for loop in long if count(loop, r"vdiv")]
    assert len(hot) >= HOT_LOOPS[name]
    assert len(once) <= 1
    for loop in once:
        assert flaws(loop, widest, narrower) == ["divisions"], "\n".join(loop)
    for loop in hot:
        text = "\n".join(loop)
        assert flaws(loop, widest, narrower) == [], text
        if widest == "zmm":
            vectors = fused(loop, dtype) // (POLYNOMIAL[kind] - 1)
            assert count(loop, r"v.*mm") <= BUDGET[kind] * vectors, text


@every_level
@every_dtype
@pytest.mark.parametrize("name", KERNELS)
def test_no_loop_calculates_number_by_number(name, dtype, level):
    """No loop has scalar arithmetic or calls, also not of Numba's reference counting.

    Loops with a division are left out: they compute one number for each row. So are loops that only add scalars:
    the sums over the terms of a row that is computed alone, because there are few of them, and over losses.
    """
    body = body_of(assembly(variant(name, dtype), level))
    for loop in innermost_loops(body):
        text = "\n".join(loop)
        assert count(loop, r"vdivs") or not count(loop, rf"{PRODUCTS}s[sd]\s"), text
        assert not count(loop, r"call"), text
    assert not calls(body)
    assert "NRT_" not in body


def test_a_loop_that_everybody_writes_would_be_noticed():
    """The search finds libm, scalar arithmetic, gathers and narrow vectors in a plain loop."""

    def everybody(x: Floats, y: Floats) -> None:
        for i in range(x.shape[0]):
            y[i] = np.exp(x[i]) / 3

    code = body_of(assembly(variant_of(everybody, np.float32), "v4"))
    found = [flaws(loop, "zmm", ("ymm", "xmm")) for loop in innermost_loops(code)]
    assert any({"calls", "scalar arithmetic", "no zmm"} & set(one) for one in found)


@pytest.mark.parametrize(
    ("line", "flaw"),
    [
        ("vmulss %xmm0, %xmm1, %xmm2", "scalar arithmetic"),
        ("vfnmadd213sd %xmm0, %xmm1, %xmm2", "scalar arithmetic"),
        ("vmulps %ymm0, %ymm1, %ymm2", "narrow vectors"),
        ("callq expf", "calls"),
        ("vgatherdps (%rax,%zmm1), %zmm2 {%k1}", "gather or scatter"),
        ("vscatterqpd %zmm2, (%rax,%zmm1) {%k1}", "gather or scatter"),
        ("vdivps %zmm0, %zmm1, %zmm2", "divisions"),
        ("vmovups %zmm0, 64(%rsp)", "vectors that do not fit the registers"),
    ],
)
def test_flaws(line, flaw):
    fine = ["vmovups (%rax), %zmm0", "vfmadd213ps %zmm0, %zmm1, %zmm2", "incq %rax", "vmovd %xmm3, %ecx"]
    assert flaws(fine, "zmm", ("ymm", "xmm")) == []
    assert flaws([*fine, line], "zmm", ("ymm", "xmm")) == [flaw]
    assert flaws(["incq %rax"], "zmm", ("ymm", "xmm")) == ["no zmm"]


def test_innermost_loops():
    outer, inner = ".LBB0_1:\n\tmovl %eax, %ebx\n", ".LBB0_2: # comment\n\tincq %rax\n\tjne\t.LBB0_2\n"
    code = f"a:\n{outer}{inner}\tjmp\t.LBB0_1\n\tretq\n"
    assert innermost_loops(code) == [["incq %rax", "jne\t.LBB0_2"]]


@pytest.mark.timed
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="measured on x86")
@pytest.mark.parametrize("function", ["softmax, out=", "logsumexp", "cross_entropy_with_grad, out="])
def test_faster_than_numpy(function):
    """One thread each, in turns, with `out`: 2 to 20 times as fast. A scalar loop would be slower than NumPy."""
    data = Inputs((1000, 1000), np.float32)
    calls = {name: libraries.ALL[name].setup(function)(data) for name in ("fastsoftmax", "NumPy")}
    with fs.threads(1):
        for call in calls.values():
            call()
        found = measure(calls, 0.6)
    assert found["NumPy"].median > 1.3 * found["fastsoftmax"].median
