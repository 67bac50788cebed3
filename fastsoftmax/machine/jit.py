"""Compilation in this process: for kernels that no library has.

The object code of a variant is kept in the cache directory, from where the next process loads it with llvmlite
alone, in milliseconds.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import binding

from fastsoftmax.machine import targets
from fastsoftmax.runtime import cache as disk
from fastsoftmax.runtime import interrupts, prebuilt


@cache
def _table() -> Any:
    """Python's functions, under the name by which code refers to them."""
    table = (ctypes.c_void_p * len(prebuilt.PYTHON))(*prebuilt.python_table())
    binding.add_symbol(prebuilt.TABLE, ctypes.addressof(table))
    return table


_engines: dict[str, Any] = {}


def object_code(name: str, variant: Callable[[], Any]) -> bytes:
    """The object code of a variant: from the cache directory, else compiled and kept there."""
    target = targets.this_process()
    file = disk.ObjectFile(name, target)
    code = file.load()
    if code is None:
        from fastsoftmax.machine import frontend  # here, because it imports Numba

        module = frontend.module(variant())
        interrupts.check()
        code = targets.object_code(module, target)
        file.save(code)
    return code


def address(name: str, variant: Callable[[], Any], form: str) -> int:
    """The address of the function of a variant with this name; `form` as in `entry.Kernel.address`.

    `variant` is called if the variant has to be compiled.
    """
    engine = _engines.get(name)
    if engine is None:
        _table()
        code = binding.ObjectFileRef.from_data(object_code(name, variant))
        compiler = targets.new_compiler(targets.this_process())
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), compiler)
        engine.add_object_file(code)
        engine.finalize_object()
        _engines[name] = engine
    return int(engine.get_function_address(f"{prebuilt.PREFIX}{name}{form}"))
