"""The processors that code is made for."""

import struct

import child
import pytest
from llvmlite import binding

from fastsoftmax.machine import library, targets
from fastsoftmax.runtime import prebuilt

ADD = """
define <16 x float> @f(<16 x float>* %p, <16 x float> %y) {
  %x = load <16 x float>, <16 x float>* %p
  %s = fadd <16 x float> %x, %y
  ret <16 x float> %s
}
"""
SYSTEMS = {
    "x86_64-unknown-linux-gnu": ("v3", b"\x7fELF", 62),
    "aarch64-unknown-linux-gnu": ("aarch64", b"\x7fELF", 183),
    "x86_64-apple-macosx": ("v4", b"\xcf\xfa\xed\xfe", 0x01000007),
    "arm64-apple-macosx": ("aarch64", b"\xcf\xfa\xed\xfe", 0x0100000C),
    "x86_64-pc-windows-msvc": ("v3", b"", 0x8664),
}


def code(target):
    return targets.object_code(binding.parse_assembly(ADD), target)


@pytest.mark.parametrize("triple", SYSTEMS)
def test_objects_for_other_systems(triple):
    """Any machine makes them, and always the same bytes."""
    level, magic, machine = SYSTEMS[triple]
    made = code(library.target(level, triple))
    assert made.startswith(magic)
    form, offset = ("<H", 18) if magic == b"\x7fELF" else ("<I", 4) if magic else ("<H", 0)
    assert struct.unpack_from(form, made, offset) == (machine,)
    assert made == code(library.target(level, triple))


@pytest.mark.parametrize(("level", "register"), [("v3", "%ymm"), ("v4", "%zmm")])
def test_registers(level, register):
    """A vector of 64 bytes is one register of v4, and two of v3."""
    found = targets.assembly(binding.parse_assembly(ADD), library.target(level, "x86_64-unknown-linux-gnu"))
    assert found.count("vaddps") == (1 if level == "v4" else 2)
    assert register in found
    assert ("%zmm" in found) == (level == "v4")


def test_features_are_those_that_the_level_asks_for():
    """A library must not contain an instruction that `prebuilt.level` does not look for."""
    names = {"FMA3": "fma", "SSE42": "sse4.2"}
    for level, asked in (("v3", prebuilt._X86_V3), ("v4", (*prebuilt._X86_V3, *prebuilt._X86_V4))):
        known = {names.get(name, name.lower()) for name in asked}
        # Every processor with AVX2 has these, too.
        known |= {"avx", "sse3", "ssse3", "sse4.1", "cx16", "sahf"}
        used = {feature[1:] for feature in library.FEATURES[level].split(",") if feature[0] == "+"}
        assert used - known <= {"evex512"}  # the name of 64-byte registers in AVX-512


def test_the_processor_of_this_process():
    found = targets.this_process()
    assert found.here
    assert found.triple == binding.get_process_triple()
    if child.os.environ.get("NUMBA_CPU_NAME") is None:
        assert found.processor == binding.get_host_cpu_name()


def test_the_processor_that_settings_name():
    code = "from fastsoftmax.machine import targets; print(targets.this_process()[1:3])"
    options = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2"}
    for before in ("", "import numba; "):
        assert child.run(before + code, **options) == "('haswell', '+avx2')\n"


def test_an_engine_has_a_compiler_of_its_own():
    """An engine destroys its compiler with itself; the one that `object_code` uses stays."""
    target = targets.this_process()
    before = code(target)
    for _ in range(3):
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), targets.new_compiler(target))
        engine.close()
        assert code(target) == before
