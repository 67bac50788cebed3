"""Which back end computes a call with arrays of another library; back ends register themselves here.

A library is looked up in `sys.modules` only: whoever has one of its arrays has imported it.
"""

import sys
from collections.abc import Callable
from typing import Any

Call = Callable[..., Any]

_loaders: dict[str, Callable[[], Call]] = {}


def register(module: str, load: Callable[[], Call]) -> None:
    """Register a back end for calls with arrays of the class ``Array`` of this module.

    `load` returns a function that is called as ``call(name, *operands, axis=axis, out=out, **options)``.
    """
    _loaders[module] = load


def backend_for(*values: Any) -> Call | None:
    """The back end for a call with these arguments; None if the in-memory functions compute it."""
    for name, load in _loaders.items():
        module = sys.modules.get(name)
        if module is not None:
            kind = getattr(module, "Array", ())  # () while another thread is still importing it
            if any(isinstance(value, kind) for value in values):
                return load()
    return None


def check_in_memory(function: str, *arrays: Any) -> None:
    """TypeError for arrays of a back end."""
    if backend_for(*arrays):
        raise TypeError(f"{function}: Dask arrays are not supported; pass their chunks of rows one by one")
