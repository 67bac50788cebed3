"""The options with which Numba compiles kernels, and the functions that compiled callers use.

nogil
    Kernels touch no Python object, so that threads (ours and the host's) can run at the same time.
error_model="numpy"
    x/0 is inf or nan as in NumPy, serial and parallel alike. It also compiles a third faster.
fastmath=False
    fastmath turns the log-sum-exp of a row of -inf into nan and deletes compensated arithmetic. We want only the
    fusion of a product into a sum, which `simd.values.muladd` requests where it is harmless. The option must be
    set, because code compiled for a user's function otherwise inherits that function's fastmath.
forceinline
    Building blocks are small and sit in hot loops, where a call would cost more than the work, so they are always
    inlined. For everything else LLVM decides, whatever options the user's function has.
no_cpython_wrapper, no_cfunc_wrapper
    Wrappers for callers in Python or C take time to compile, so functions without such callers get none.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.ma  # else Numba imports it at its first call, where no lock guards against forks
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
    """A building block: compiled into each kernel that uses it, never alone."""
    return cast(F, njit(**{**OPTIONS, **NO_WRAPPERS, **known_options(forceinline=True)})(function))


def _kept(function: F, **options: Any) -> F:
    """`function` compiled with these options; its machine code is cached on disk."""
    dispatcher = njit(**OPTIONS, **known_options(**options))(function)
    keep_in(KernelCache(function), dispatcher)
    return cast(F, dispatcher)


def kernel(function: F) -> F:
    """An entry point: called from Python, compiled on first use, cached on disk.

    As plain Python (NUMBA_DISABLE_JIT=1) it does not warn of infinities and NaN, as compiled code does not.
    """
    if config.DISABLE_JIT:
        return np.errstate(all="ignore")(function)
    return _kept(function, no_cfunc_wrapper=True)


def loop(function: F) -> F:
    """A loop that C calls at its `numba_private.c_address`, cached on disk like a kernel."""
    return _kept(function, no_cfunc_wrapper=False, no_cpython_wrapper=True)


def remember(table: dict[Any, Any], key: Any, dispatcher: Any, *arguments: Any) -> None:
    """Put the machine code for arguments of these types, which has been used, into ``table[key]``.

    Half the cost of a small call is the dispatcher's check of the types of its arguments. The machine code does
    not check them, so its callers must pass these types. Whether an array is read-only makes no difference.
    """
    if key not in table:
        table[key] = machine_code(dispatcher, *arguments)
