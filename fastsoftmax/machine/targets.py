"""The processors that machine code is made for, and LLVM's passes.

The same vectors of 64 bytes and the same operations are compiled for every processor, so results do not depend on
it: a processor with shorter vectors takes two or four instructions for one. All have fused multiply-add.
"""

from functools import cache
from typing import Any, NamedTuple

from llvmlite import binding

from fastsoftmax.machine import halves, status
from fastsoftmax.runtime.numba_state import setting


class Target(NamedTuple):
    """What code is made for: a system and its format of objects (LLVM's triple), a processor and its features."""

    triple: str
    processor: str
    features: str
    here: bool = False
    """Whether the code runs in this process, without a linker."""


@cache
def this_process() -> Target:
    """The processor of this process, or the one that Numba's settings name."""
    name, features = setting("CPU_NAME"), setting("CPU_FEATURES")
    if name is None:
        name = binding.get_host_cpu_name()
    if features is None and name.lower() == "generic":
        features = ""  # as Numba has it
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    return Target(binding.get_process_triple(), name, features, here=True)


def new_compiler(target: Target) -> Any:
    """A new compiler of LLVM for a target, for an engine, which will own it."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    found = binding.Target.from_triple(target.triple)
    options = {"cpu": target.processor, "features": target.features, "opt": 3}
    if target.here:
        x86 = target.triple.startswith(("x86", "amd64", "i"))
        return found.create_target_machine(
            **options, reloc="static" if x86 else "default", codemodel="jitdefault", jit=True
        )
    return found.create_target_machine(**options, reloc="pic", codemodel="default")


@cache
def compiler(target: Target) -> Any:
    """LLVM's compiler for a target. No engine may get it: it would destroy it when it ends."""
    return new_compiler(target)


def optimize(module: Any, target: Target) -> None:
    """Run LLVM's passes. Loops are vectors already, so the passes that find vectors have nothing to do."""
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = False
    options.slp_vectorization = False
    builder = binding.create_pass_builder(compiler(target), options)
    builder.getModulePassManager().run(module, builder)


def _prepared(module: Any, target: Target) -> Any:
    """Make a module, which is changed, one of a target, and optimise it."""
    module.triple = target.triple
    module.data_layout = str(compiler(target).target_data)
    status.adapt(module, target.triple)
    halves.adapt(module, target.triple, target.features)
    if "windows" in target.triple:
        for one in (*module.functions, *module.global_variables):
            if not one.is_declaration and one.linkage == binding.Linkage.external:
                one.storage_class = "dllexport"
    optimize(module, target)
    return module


def object_code(module: Any, target: Target) -> bytes:
    """The relocatable object of a module, optimised for a target. The module is changed."""
    return bytes(compiler(target).emit_object(_prepared(module, target)))


def assembly(module: Any, target: Target) -> str:
    """The assembly of the code that `object_code` makes."""
    return str(compiler(target).emit_assembly(_prepared(module, target)))
