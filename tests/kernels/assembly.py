"""The machine code of kernels for each kind of processor that a library can be for, made on any machine."""

import re
from functools import cache
from typing import NamedTuple

import numpy as np
from llvmlite import binding

from fastsoftmax.machine import frontend, library, targets
from fastsoftmax.machine.entry import Kernel


class Level(NamedTuple):
    """A kind of processor, and how its assembly looks."""

    triple: str
    fused: str
    """A packed multiplication, fused or not, of numbers that {} names."""
    single: str
    """The same of one number."""
    kinds: tuple[tuple[str, str], tuple[str, str]]
    """The names of packed and single numbers, for float32 and float64."""
    vector: str
    """A vector register."""


_X86 = ("x86_64-unknown-linux-gnu", r"vf?n?m(?:add|sub|ul)\w*{}\s", r"vf?n?m(?:add|sub|ul)\w*{}\s")
_X86_KINDS = (("ps", "ss"), ("pd", "sd"))
LEVELS = {
    "v3": Level(*_X86, _X86_KINDS, "%ymm"),
    "v4": Level(*_X86, _X86_KINDS, "%zmm"),
    "aarch64": Level(
        "aarch64-unknown-linux-gnu",
        r"fm(?:la|ls|ul)\s+v\d+\.{},",
        r"fn?m(?:add|sub|ul)\s+{}\d+,",
        (("4s", "s"), ("2d", "d")),
        r"v\d+\.",
    ),
}


@cache
def _bitcode(variant):
    return frontend.module(variant).as_bitcode()


@cache
def assembly(variant, level):
    """The assembly of a variant for a level."""
    target = library.target(level, LEVELS[level].triple)
    return targets.assembly(binding.parse_bitcode(_bitcode(variant)), target)


@cache
def variant_of(function, dtype):
    """The variant for a dtype of a function that is annotated as a kernel is, but is none."""
    kernel = Kernel(f"tests.{function.__name__}")
    kernel.define(function, None, None)
    (found,) = (one for one in kernel.variants() if one.dtype == np.dtype(dtype).char)
    return found


def calls(code):
    """Functions of libm, of SVML, or ours that were not inlined, which the code calls."""
    targets = re.findall(r"^\s*(?:callq?|jmpq?|bl?)\s+\*?%?([A-Za-z_]\S*)", code, re.MULTILINE)
    targets += re.findall(r"movabsq\s+\$([A-Za-z_]\S*),", code)
    names = r"_*(svml_)?(expm?1?f?|log1?p?f?|exp2f?|powf?|fmaf?|rintf?|nearbyintf?|truncf?|fmaxf?)(@PLT)?"
    return [target for target in targets if re.fullmatch(names, target)]


def multiplications(code, dtype, level):
    """The numbers of packed and of single multiplications, fused or not, in the code."""
    about = LEVELS[level]
    packed, single = about.kinds[np.dtype(dtype) == np.float64]
    patterns = about.fused.format(packed), about.single.format(single)
    return [len(re.findall(rf"^\s*{pattern}", code, re.MULTILINE)) for pattern in patterns]
