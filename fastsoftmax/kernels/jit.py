"""The only place with Numba options.

nogil
    Kernels touch no Python object, so that threads (ours and the host's) run beside each other.
error_model="numpy"
    x/0 is inf or nan as in NumPy, serial and parallel alike; also compiles a third faster.
forceinline
    Building blocks are small and sit in hot loops: a call there would cost more than the work.
fastmath
    Never. It turns the log-sum-exp of a row of -inf into nan and deletes compensated arithmetic. The one
    liberty that we want, fusing a product into a sum, is asked for where it is harmless (`muladd`).
    It has to be said: what is compiled on behalf of a user's function otherwise inherits that one's fastmath.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.ma  # Numba does so at its first call, where no lock keeps forks away
from numba import config, njit, typeof

from fastsoftmax.runtime.cache import KernelCache

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "no_cfunc_wrapper": True,
    "fastmath": False,
    "forceinline": False,
}
_BLOCK_OPTIONS: dict[str, Any] = {"forceinline": True, "no_cpython_wrapper": True}


def inline(function: F) -> F:
    """A building block: compiled into each kernel that uses it, never on its own."""
    return cast(F, njit(**{**_OPTIONS, **_BLOCK_OPTIONS})(function))


def kernel(function: F) -> F:
    """An entry point: called from Python, compiled on first use, kept on disk.

    As plain Python (NUMBA_DISABLE_JIT=1) it does not warn of infinities and NaN either.
    """
    if config.DISABLE_JIT:
        return np.errstate(all="ignore")(function)
    dispatcher = njit(**_OPTIONS)(function)
    if hasattr(dispatcher, "_cache"):
        dispatcher._cache = KernelCache(function)
    return cast(F, dispatcher)


def loop(function: F) -> F:
    """A loop that C calls: `entry_point` is its address. Kept on disk like a kernel."""
    dispatcher = njit(**{**_OPTIONS, "no_cfunc_wrapper": False, "no_cpython_wrapper": True})(function)
    if hasattr(dispatcher, "_cache"):
        dispatcher._cache = KernelCache(function)
    return cast(F, dispatcher)


def entry_point(dispatcher: Any, signature: Any) -> int:
    """Where the machine code of a `loop` for one signature lies, as C calls it; it stays for good."""
    dispatcher.compile(signature)
    compiled = dispatcher.overloads[tuple(signature.args)]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name))


def machine_code(dispatcher: Any, *arguments: Any) -> Any:
    """What `dispatcher` calls for arguments of these types: it takes those, and whatever else as if it were those.

    Half of what a small call costs is the dispatcher's search for the types. Where a release of Numba keeps the
    code elsewhere, the dispatcher itself.
    """
    try:
        return dispatcher.overloads[tuple(typeof(argument) for argument in arguments)].entry_point
    except Exception:  # documented above
        return dispatcher


def remember(table: dict[Any, Any], key: Any, dispatcher: Any) -> None:
    """From now on ``table[key]`` is `dispatcher`, and after its first call its `machine_code`, unless it is there.

    So nothing may be passed to it but what has the types of that call.
    """

    def first(*arguments: Any) -> Any:
        result = dispatcher(*arguments)
        table[key] = machine_code(dispatcher, *arguments)
        return result

    if key not in table:
        table[key] = first
