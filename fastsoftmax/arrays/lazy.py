"""Whether an argument is a Dask array, and who takes over then. Dask is imported by those who have such arrays."""

import sys
from importlib import import_module
from typing import Any


def is_lazy(*values: Any) -> bool:
    """Whether any of the values is a Dask array. There is none where nobody has imported Dask."""
    module = sys.modules.get("dask.array")
    if module is None:
        return False
    kind = getattr(module, "Array", ())  # () while another thread is still importing it
    return any(isinstance(value, kind) for value in values)


def lazily(name: str) -> Any:
    """A function of `fastsoftmax.backends.dask`, which stands above the modules that call it."""
    return getattr(import_module("fastsoftmax.backends.dask"), name)
