"""The floating-point status: functions that machine code of each architecture has under the same names.

Kernels call these two functions. Their LLVM code is that of the processor on which it is written; code for another
architecture gets that architecture's functions in their place (`targets.object_code`).

``fastsoftmax.read_status``
    returns the exceptions raised so far.
``fastsoftmax.write_status``
    sets them to such a value and those of invalid, division by zero and overflow that are true.

On architectures without an entry in `_BITS` they do nothing.
"""

from typing import Any

from llvmlite import binding, ir

READ, WRITE = "fastsoftmax.read_status", "fastsoftmax.write_status"
NAMES = (READ, WRITE)

_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
_TYPES = {READ: ir.FunctionType(_I32, []), WRITE: ir.FunctionType(ir.VoidType(), [_I32, _I1, _I1, _I1])}
# The bits of invalid, division by zero and overflow.
_BITS = {"x86_64": (1, 4, 8), "aarch64": (1, 2, 4)}
WITH_INTRINSICS = 22
"""This version of LLVM has intrinsics for aarch64. Assembly needs a parser, and llvmlite has only its host's."""


def architecture(triple: str) -> str:
    """The architecture in LLVM's triple, by one name for each."""
    name = triple.partition("-")[0]
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def _x86(module: Any, build: Any, written: Any = None) -> Any:
    room = build.alloca(_I32)
    if written is not None:
        build.store(written, room)
    name = "llvm.x86.sse.stmxcsr" if written is None else "llvm.x86.sse.ldmxcsr"
    kind = ir.FunctionType(ir.VoidType(), [_BYTES])
    build.call(ir.Function(module, kind, name), [build.bitcast(room, _BYTES)])
    return build.load(room)


def _aarch64(module: Any, build: Any, written: Any = None) -> Any:
    operands = [] if written is None else [build.zext(written, _I64)]
    kind = ir.FunctionType(_I64, []) if written is None else ir.FunctionType(ir.VoidType(), [_I64])
    if binding.llvm_version_info[0] >= WITH_INTRINSICS:
        name = f"llvm.aarch64.{'get' if written is None else 'set'}.fpsr"
        code: Any = ir.Function(module, kind, name)
    else:
        binding.initialize_native_asmparser()
        text, constraint = ("mrs $0, fpsr", "=r") if written is None else ("msr fpsr, $0", "r")
        code = ir.InlineAsm(kind, text, f"{constraint},~{{memory}}", side_effect=True)
    result = build.call(code, operands)
    return build.trunc(result, _I32) if written is None else written


def define(module: Any, name: str, triple: str) -> Any:
    """Define the function of this name in a module of `llvmlite.ir`."""
    function = ir.Function(module, _TYPES[name], name)
    build = ir.IRBuilder(function.append_basic_block("entry"))
    machine = architecture(triple)
    access = {"x86_64": _x86, "aarch64": _aarch64}.get(machine)
    if name == READ:
        build.ret(access(module, build) if access else _I32(0))
        return function
    if access:
        status, *raised = function.args
        for one, bit in zip(raised, _BITS[machine], strict=True):
            status = build.or_(status, build.select(one, _I32(bit), _I32(0)))
        access(module, build, status)
    build.ret_void()
    return function


def called(module: Any, name: str) -> Any:
    """The function of this name in the module of a kernel, defined for the processor of this process."""
    known = module.globals.get(name)
    if known is not None:
        return known
    found = define(module, name, binding.get_process_triple())
    found.linkage = "linkonce_odr"
    return found


def adapt(code: Any, triple: str) -> None:
    """Give a linked module the functions of the architecture that it is compiled for."""
    used = [one.name for one in code.functions if one.name in NAMES]
    if not used:
        return
    module = ir.Module("status")
    module.triple, module.data_layout = code.triple, code.data_layout
    for name in used:
        define(module, name, triple)
    code.link_in(binding.parse_assembly(str(module)))  # a strong definition replaces the linkonce one
    for name in used:
        code.get_function(name).linkage = "internal"
