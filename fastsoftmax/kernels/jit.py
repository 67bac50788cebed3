"""The decorators of kernels and of their building blocks. `machine.translate` writes their code; Numba can, too.

Building blocks are small and sit in hot loops, where a call would cost more than the work, so they are always
inlined (``forceinline``). For everything else LLVM decides, whatever options the user's function has.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy.ma  # noqa: F401  # else Numba imports it at its first call, where no lock guards against forks
from numba import njit

from fastsoftmax.machine.entry import Kernel, entry
from fastsoftmax.machine.frontend import NO_WRAPPERS, OPTIONS
from fastsoftmax.runtime.numba_private import known_options, lean_options

F = TypeVar("F", bound=Callable[..., Any])

_INLINE = {**OPTIONS, **NO_WRAPPERS, **known_options(forceinline=True), **lean_options()}


def inline(function: F) -> F:
    """A building block: compiled into each kernel that uses it, never alone."""
    return cast(F, njit(**_INLINE)(function))


def kernel(
    function: Any = None,
    *,
    unless: Callable[..., bool] | None = None,
    dtypes: str | None = None,
    small: bool = False,
) -> Any:
    """An entry point. Its parameters are annotated with the types of `machine.entry`.

    unless
        A function with the same parameters, each true if the argument is not None; true for combinations that
        nobody passes.
    dtypes
        The dtypes that it is compiled for, if they do not follow from the annotations.
    small
        Whether it has a form for small arrays, which checks its blocks; see `machine.wrappers`.
    """

    def define(function: Callable[..., Any]) -> Kernel:
        found = entry(f"{function.__module__.rpartition('.')[2]}.{function.__name__}")
        found.define(function, unless, dtypes, small)
        return found

    return define if function is None else define(function)
