"""What C code points to and does not own: it must live as long as the process.

To hold it in a module is not enough. When the interpreter ends, it clears the modules, and what they held is still
used then: a built-in function reads its definition when it is freed.
"""

import ctypes
from typing import TypeVar

T = TypeVar("T")


def keep(value: T) -> T:
    """The object, which is never freed."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
    return value
