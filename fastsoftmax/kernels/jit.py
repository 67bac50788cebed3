"""The options with which Numba compiles, for kernels and for what compiled callers call.

nogil
    Kernels touch no Python object, so that threads (ours and the host's) run beside each other.
error_model="numpy"
    x/0 is inf or nan as in NumPy, serial and parallel alike; also compiles a third faster.
fastmath=False
    fastmath turns the log-sum-exp of a row of -inf into nan and deletes compensated arithmetic. Only the fusion of
    a product into a sum is wanted, and `vector.muladd` asks for it where it is harmless. The option has to be
    given: what is compiled on behalf of a user's function otherwise inherits that function's fastmath.
forceinline
    Building blocks are small and sit in hot loops, where a call would cost more than the work: they are inlined
    in any case. Everything else is inlined where LLVM finds it worthwhile, whatever the user's function says.
no_cpython_wrapper, no_cfunc_wrapper
    What is not called from Python or C needs no function for that, which takes time to compile.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.ma  # Numba does so at its first call, where no lock keeps forks away
from numba import config, njit

from fastsoftmax.runtime.cache import KernelCache
from fastsoftmax.runtime.numba_private import keep_in, known_options, machine_code

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": False,
    **known_options(forceinline=False),
}
NO_WRAPPERS = known_options(no_cpython_wrapper=True, no_cfunc_wrapper=True)


def inline(function: F) -> F:
    """A building block: compiled into each kernel that uses it, never on its own."""
    return cast(F, njit(**{**OPTIONS, **NO_WRAPPERS, **known_options(forceinline=True)})(function))


def _kept(function: F, **options: Any) -> F:
    """`function` compiled with these options; its machine code is kept on disk."""
    dispatcher = njit(**OPTIONS, **known_options(**options))(function)
    keep_in(KernelCache(function), dispatcher)
    return cast(F, dispatcher)


def kernel(function: F) -> F:
    """An entry point: called from Python, compiled on first use, kept on disk.

    As plain Python (NUMBA_DISABLE_JIT=1) it does not warn of infinities and NaN either.
    """
    if config.DISABLE_JIT:
        return np.errstate(all="ignore")(function)
    return _kept(function, no_cfunc_wrapper=True)


def loop(function: F) -> F:
    """A loop that C calls at `numba_private.c_address`. Kept on disk like a kernel."""
    return _kept(function, no_cfunc_wrapper=False, no_cpython_wrapper=True)


def remember(table: dict[Any, Any], key: Any, dispatcher: Any) -> None:
    """Put `dispatcher` into ``table[key]``, and after its first call its machine code, unless the key is there.

    Half of what a small call costs is the dispatcher's search for the types of its arguments. The machine code
    does not look, so that nothing may be passed to it but what has the types of that first call.
    """

    def first(*arguments: Any) -> Any:
        result = dispatcher(*arguments)
        table[key] = machine_code(dispatcher, *arguments)
        return result

    if key not in table:
        table[key] = first
