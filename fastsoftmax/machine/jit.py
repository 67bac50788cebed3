"""Compilation in this process: for kernels that no library has.

The object code of a variant is kept in the cache directory, from where the next process loads it with llvmlite
alone, in milliseconds.

The only lock that is held for long is Numba's. A lock of our own around it could not be taken in one order: Numba
holds its lock when it asks for a kernel that a user's function calls.
"""

import ctypes
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from llvmlite import binding

from fastsoftmax.machine import targets, teams
from fastsoftmax.runtime import cache as disk
from fastsoftmax.runtime import fork, interrupts, prebuilt
from fastsoftmax.runtime.lifetime import keep
from fastsoftmax.runtime.numba_private import load_extensions
from fastsoftmax.runtime.numba_state import COMPILER

_tables: list[Any] = []
_engines: dict[str, Any] = {}
_made: dict[str, bytes] = {}


def define_table() -> None:
    """Tell LLVM the addresses of Python's functions, under the name by which code refers to them."""
    if not _tables:
        table = (ctypes.c_void_p * len(prebuilt.PYTHON))(*prebuilt.python_table())
        binding.add_symbol(prebuilt.TABLE, ctypes.addressof(table))
        _tables.append(keep(table))  # now others may go on; if several threads get here, all tables live


def object_code(name: str, variant: Callable[[], Any]) -> bytes:
    """The object code of a variant: from the cache directory, else compiled and kept there."""
    file = disk.ObjectFile(name, targets.this_process())
    code = file.load()
    return _compiled(name, file, variant) if code is None else code


def _compiled(name: str, file: disk.ObjectFile, variant: Callable[[], Any]) -> bytes:
    with fork.importing, interrupts.held():
        from fastsoftmax.machine import frontend  # here, because it imports Numba

        # Ours import kernels, which must not be done with the lock of Numba: a fork takes both in this order.
        load_extensions()
        wanted = variant()
    with COMPILER.lock() or nullcontext(), interrupts.held():
        if name not in _made:  # else another thread has compiled it meanwhile
            module = frontend.module(wanted)
            interrupts.check()
            _made[name] = targets.object_code(module, targets.this_process())
            file.save(_made[name])
        return _made[name]


def engine(code: bytes) -> Any:
    """An engine that has loaded object code. It is never freed: another thread may be using it."""
    define_table()
    compiler = targets.new_compiler(targets.this_process())
    made = binding.create_mcjit_compiler(binding.parse_assembly(""), compiler)
    made.add_object_file(binding.ObjectFileRef.from_data(code))
    made.finalize_object()
    return keep(made)


def _function(name: str, code: Callable[[], bytes], function: str) -> int:
    """The address of a function of the object of this name, whose code `code` returns when it is loaded."""
    if name not in _engines:
        _engines.setdefault(name, engine(code()))
    return int(_engines[name].get_function_address(f"{prebuilt.PREFIX}{function}"))


def address(name: str, variant: Callable[[], Any], form: str) -> int:
    """The address of the function of a variant with this name; `form` as in `entry.Kernel.address`.

    `variant` is called if the variant has to be compiled.
    """
    return _function(name, lambda: object_code(name, variant), f"{name}{form}")


def team_address(name: str) -> int:
    """The address of a function of `machine.teams`."""

    def code() -> bytes:
        goal = targets.this_process()
        with COMPILER.lock() or nullcontext(), interrupts.held():
            return targets.object_code(teams.module(goal.triple), goal)

    return _function(teams.NAME, code, name)
