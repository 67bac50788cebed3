"""The instructions for float16, where processors have them, and the code without."""

import re
from functools import cache

import numpy as np
import pytest
from assembly import LEVELS, assembly
from llvmlite import binding

from fastsoftmax.machine import frontend, halves, jit, library, targets
from fastsoftmax.machine.entry import entry
from fastsoftmax.runtime import prebuilt

INSTRUCTIONS = {
    "widen": {"v3": "vcvtph2ps.*%ymm", "v4": "vcvtph2ps.*%zmm", "aarch64": "fcvtl"},
    "narrow": {"v3": "vcvtps2ph.*%ymm", "v4": "vcvtps2ph.*%zmm", "aarch64": "fcvtn"},
}
LIBRARY = "hf2|h2f|f2h|hfsf|sfhf"
"""What the names of LLVM's helper functions for float16 contain."""


@cache
def variant(name):
    (found,) = entry(f"halves.{name}").variants()
    return found


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_every_level_has_instructions(name, level):
    """No level calls a function that converts number by number."""
    code = assembly(variant(f"{name}_float16"), level)
    assert re.search(rf"^\s*{INSTRUCTIONS[name][level]}", code, re.MULTILINE)
    assert not re.search(LIBRARY, code)


def test_a_call_of_the_library_would_be_noticed():
    """The search finds what LLVM makes of the instruction of its own language, where the processor has none."""
    source = "define float @f(half %x) {\n  %y = fpext half %x to float\n  ret float %y\n}"
    plain = targets.Target(LEVELS["v3"].triple, "x86-64", "")
    assert re.search(LIBRARY, targets.assembly(binding.parse_assembly(source), plain))


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_without_instructions(name):
    """Code for x86-64 without any feature has neither the instruction nor such a call."""
    plain = targets.Target(LEVELS["v3"].triple, "x86-64", "")
    code = targets.assembly(frontend.module(variant(f"{name}_float16")), plain)
    assert not re.search(f"vcvtp[hs]2p[hs]|{LIBRARY}", code)


@pytest.mark.parametrize(
    ("triple", "features", "there"),
    [
        ("x86_64-unknown-linux-gnu", library.FEATURES["v3"], True),
        ("x86_64-apple-macosx", "+avx,-f16c", False),
        ("x86_64-pc-windows-msvc", "", False),
        ("arm64-apple-macosx", "", True),
        ("powerpc64le-unknown-linux-gnu", "+f16c", False),
    ],
)
def test_who_has_instructions(triple, features, there):
    assert halves.has_instructions(triple, features) is there


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_both_give_the_same_bits(name, monkeypatch):
    """The code of this processor with and without instructions, for every half, and numbers of every exponent."""
    if not halves.has_instructions(*targets.this_process()[::2]):
        pytest.skip("this processor has no instructions for float16")
    bits = np.arange(1 << 16, dtype=np.uint16)
    if name == "widen":
        x, y = bits, np.empty(bits.size, np.float32)
    else:
        ends = np.uint32([0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0xFFFF])
        x = (bits.astype(np.uint32)[:, None] << 16 | ends).ravel().view(np.float32)
        y = np.empty(x.size, np.uint16)
    entry(f"halves.{name}_float16")(0, x.size, None, x, y)
    expected = y.copy()
    y[:] = 0
    monkeypatch.setattr(halves, "has_instructions", lambda *_: False)
    engine = jit.engine(targets.object_code(frontend.module(variant(f"{name}_float16")), targets.this_process()))
    function = f"{prebuilt.PREFIX}{variant(f'{name}_float16').name}.py"
    code = prebuilt.python_function(function, engine.get_function_address(function))
    code(0, x.size, None, x, y)
    np.testing.assert_array_equal(y.view(np.uint16), expected.view(np.uint16))
