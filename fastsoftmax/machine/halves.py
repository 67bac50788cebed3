"""float16 in vectors of 16 numbers: functions that machine code of each processor has under the same names.

Kernels call these functions. Their bodies have integers and float32 only, and are replaced where a processor has
instructions (`targets.object_code`). Without these, LLVM would call functions of a library, number by number. The
instructions set a bit of signalling NaN, NumPy's casts do not: vectors with NaN take the way of the others.

``fastsoftmax.from_float16``
    returns the float32 of these bits, also of denormal numbers and NaN.
``fastsoftmax.to_float16``
    returns the bits of float32 rounded to float16: to nearest, halves to even. NaN keeps the bits that fit.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir

from fastsoftmax.machine.status import architecture

FROM, TO = "fastsoftmax.from_float16", "fastsoftmax.to_float16"
NAMES = (FROM, TO)

LANES = 16
_I16, _I32, _FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()
_SHORTS, _INTS, _SINGLES, _HALVES = (ir.VectorType(kind, LANES) for kind in (_I16, _I32, _FLOAT, ir.HalfType()))
_TYPES = {FROM: ir.FunctionType(_SINGLES, [_SHORTS]), TO: ir.FunctionType(_SHORTS, [_SINGLES])}


def _all(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * LANES)


def _widened(build: Any, halves: Any) -> Any:
    """The exponents of normal numbers are 112 too small as float32, those of inf and NaN 224.

    A denormal number, put behind the exponent of 2**-14, is too large by 2**-14. No operation meets a denormal
    float32, which some processors take a hundred times longer for.
    """
    bits = build.zext(halves, _INTS)
    magnitude = build.shl(build.and_(bits, _all(_INTS, 0x7FFF)), _all(_INTS, 13))
    normal = build.add(magnitude, _all(_INTS, 112 << 23))
    special = build.icmp_unsigned(">=", magnitude, _all(_INTS, 0x7C00 << 13))
    normal = build.select(special, build.add(normal, _all(_INTS, 112 << 23)), normal)
    shifted = build.bitcast(build.add(magnitude, _all(_INTS, 113 << 23)), _SINGLES)
    small = build.bitcast(build.fsub(shifted, _all(_SINGLES, 2.0**-14)), _INTS)
    is_small = build.icmp_unsigned("<", magnitude, _all(_INTS, 0x0400 << 13))
    pattern = build.select(is_small, small, normal)
    sign = build.shl(build.and_(bits, _all(_INTS, 0x8000)), _all(_INTS, 16))
    return build.bitcast(build.or_(pattern, sign), _SINGLES)


def _narrowed(build: Any, value: Any) -> Any:
    bits = build.bitcast(value, _INTS)
    sign = build.lshr(build.and_(bits, _all(_INTS, 0x80000000)), _all(_INTS, 16))
    magnitude = build.and_(bits, _all(_INTS, 0x7FFFFFFF))
    # Normal: change the bias, and round, which may carry into the exponent, up to inf.
    kept = build.lshr(magnitude, _all(_INTS, 13))
    odd = build.and_(kept, _all(_INTS, 1))
    normal = build.lshr(build.add(build.add(magnitude, _all(_INTS, 0xC8000FFF)), odd), _all(_INTS, 13))
    # Denormal: adding 1/2 rounds at the last place of float16.
    small = build.fadd(build.bitcast(magnitude, _SINGLES), _all(_SINGLES, 0.5))
    small = build.sub(build.bitcast(small, _INTS), _all(_INTS, 0x3F000000))
    result = build.select(build.icmp_unsigned("<", magnitude, _all(_INTS, 0x38800000)), small, normal)
    overflows = build.icmp_unsigned(">=", magnitude, _all(_INTS, 0x47800000))
    result = build.select(overflows, _all(_INTS, 0x7C00), result)
    # NaN: without any of its bits it would be inf.
    nan = build.sub(kept, _all(_INTS, (0x7F800000 >> 13) - 0x7C00))
    nan = build.or_(nan, build.zext(build.icmp_unsigned("==", nan, _all(_INTS, 0x7C00)), _INTS))
    invalid = build.icmp_unsigned(">", magnitude, _all(_INTS, 0x7F800000))
    return build.trunc(build.or_(build.select(invalid, nan, result), sign), _SHORTS)


def _unless_nan(build: Any, invalid: Any, instruction: Callable[[], Any], other: Callable[[], Any]) -> None:
    """Return what an instruction gives, unless a lane is NaN."""
    some = build.icmp_unsigned("!=", build.bitcast(invalid, ir.IntType(LANES)), ir.IntType(LANES)(0))
    with build.if_then(some, likely=False):
        build.ret(other())
    build.ret(instruction())


def has_instructions(triple: str, features: str) -> bool:
    """Whether a processor converts vectors of float16 itself."""
    return {"x86_64": "+f16c" in features.split(","), "aarch64": True}.get(architecture(triple), False)


def define(module: Any, name: str, instructions: bool) -> Any:
    """Define the function of this name in a module of `llvmlite.ir`, with instructions or without."""
    function = ir.Function(module, _TYPES[name], name)
    function.attributes.add("alwaysinline")
    build = ir.IRBuilder(function.append_basic_block("entry"))
    (value,) = function.args
    other = _widened if name == FROM else _narrowed
    if not instructions:
        build.ret(other(build, value))
        return function
    if name == FROM:
        magnitude = build.and_(value, _all(_SHORTS, 0x7FFF))
        invalid = build.icmp_unsigned(">", magnitude, _all(_SHORTS, 0x7C00))

        def instruction() -> Any:
            return build.fpext(build.bitcast(value, _HALVES), _SINGLES)
    else:
        invalid = build.fcmp_unordered("uno", value, value)

        def instruction() -> Any:
            return build.bitcast(build.fptrunc(value, _HALVES), _SHORTS)

    _unless_nan(build, invalid, instruction, lambda: other(build, value))
    return function


def called(module: Any, name: str) -> Any:
    """The function of this name in the module of a kernel, without instructions."""
    known = module.globals.get(name)
    if known is not None:
        return known
    found = define(module, name, instructions=False)
    found.linkage = "linkonce_odr"
    return found


def adapt(code: Any, triple: str, features: str) -> None:
    """Give a linked module the functions of the processor that it is compiled for."""
    used = [one.name for one in code.functions if one.name in NAMES]
    if not used:
        return
    module = ir.Module("halves")
    module.triple, module.data_layout = code.triple, code.data_layout
    for name in used:
        define(module, name, has_instructions(triple, features))
    code.link_in(binding.parse_assembly(str(module)))  # a strong definition replaces the linkonce one
    for name in used:
        code.get_function(name).linkage = "internal"
