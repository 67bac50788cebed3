"""The private state of Numba and llvmlite in this process: locks, types under inference, threads.

With `numba_private`, the only module that uses what their manuals do not describe. Neither library is imported
here, because one that is not imported yet has no state. If a release lacks a name, there is no lock to take,
nothing to forget, and no number of threads.
"""

import os
import sys
from contextlib import suppress
from threading import RLock
from typing import Any


class LockPlace:
    """Where a lock is stored: a module and a chain of attributes."""

    def __init__(self, module: str, *attributes: str) -> None:
        self._module = module
        self._attributes = attributes

    def _owner(self) -> Any:
        owner: Any = sys.modules.get(self._module)
        for name in self._attributes[:-1]:
            owner = getattr(owner, name, None)
        return owner

    def lock(self) -> Any:
        """The lock, or None."""
        lock = getattr(self._owner(), self._attributes[-1], None)
        return lock if hasattr(lock, "acquire") else None

    def renew(self) -> None:
        """Replace the lock by a new one."""
        setattr(self._owner(), self._attributes[-1], RLock())


COMPILER = LockPlace("numba.core.compiler_lock", "global_compiler_lock", "_lock")
"""Held while Numba compiles."""

LLVM = LockPlace("llvmlite.binding.ffi", "lib", "_lock", "_lock")
"""Held during a call of LLVM."""


def forget_inference() -> None:
    """Forget which signatures are being compiled: Numba refuses to compile one of them a second time."""
    with suppress(Exception):
        stack = sys.modules["numba.core.registry"].cpu_target.typing_context.callstack
        stack._stack.clear()
        stack._lock = RLock()


def chosen_threads() -> int | None:
    """The number of ``numba.set_num_threads``; None before Numba's threads start, since asking starts them."""
    parallel = sys.modules.get("numba.np.ufunc.parallel")
    try:
        if parallel is not None and parallel._is_initialized:
            return int(parallel.get_num_threads())
    except Exception:  # no such names, or threads that a fork has lost
        pass
    return None


def setting(name: str) -> Any:
    """A setting of Numba: what its configuration says if Numba is imported, else the environment variable."""
    config = sys.modules.get("numba.core.config")
    found = getattr(config, name, None)
    return os.environ.get(f"NUMBA_{name}") if found is None else found


def jit_disabled() -> bool:
    """Whether Numba compiles nothing (``NUMBA_DISABLE_JIT``)."""
    return setting("DISABLE_JIT") not in (None, "", "0", 0)


def checks_bounds() -> bool:
    """Whether Numba compiles a check of each access to an array (``NUMBA_BOUNDSCHECK``)."""
    return setting("BOUNDSCHECK") not in (None, "", "0", 0)
