"""Who takes over where an argument is an array of another library: back ends register themselves here.

A library is asked for in `sys.modules` only: those who have its arrays have imported it.
"""

import sys
from collections.abc import Callable
from typing import Any

Call = Callable[..., Any]

_loaders: dict[str, Callable[[], Call]] = {}


def register(module: str, load: Callable[[], Call]) -> None:
    """Let what `load` returns take over the calls with arrays of the class ``Array`` of this module.

    It is called as ``call(public name, *operands, axis=axis, out=out, **options)``.
    """
    _loaders[module] = load


def backend_for(*values: Any) -> Call | None:
    """What takes over a call with these arguments; None if they are for this library's own code."""
    for name, load in _loaders.items():
        module = sys.modules.get(name)
        if module is not None:
            kind = getattr(module, "Array", ())  # () while another thread is still importing it
            if any(isinstance(value, kind) for value in values):
                return load()
    return None
