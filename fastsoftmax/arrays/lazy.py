"""Which back end computes a call with arrays of another library; back ends register themselves here.

A library is looked up in `sys.modules` only: whoever has one of its arrays has imported it. Arrays in memory that
speak DLPack are recognised by that method.
"""

import sys
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

Call = Callable[..., Any]
Load = Callable[[], Call]
P = ParamSpec("P")
R = TypeVar("R")

# What needs no back end, so that calls with NumPy's arrays are told apart by one comparison of sets.
_OURS = frozenset(
    {type(None), bool, int, float, complex, str, list, tuple, np.ndarray}
    | {np.dtype(letter).type for letter in "?bBhHiIlLqQefdg"}
)
_loaders: dict[tuple[str, str], Load] = {}
_exchange: list[Load] = []
_exchanged: set[type] = set()  # classes that have been found to speak DLPack


def register(module: str, name: str, load: Load) -> None:
    """Register a back end for calls with arrays of the class `name` of this module.

    `load` returns a function that is called as ``call(function, *operands, **options)``. The first one that has
    been registered gets the calls with arrays of several libraries.
    """
    _loaders[module, name] = cache(load)


def register_exchange(load: Load) -> None:
    """Register the back end for calls with arrays in memory that are exchanged by DLPack."""
    _exchange[:] = [cache(load)]


def is_exchanged(kind: type) -> bool:
    """Whether arrays of this class are exchanged by DLPack; NumPy's own arrays are not."""
    return hasattr(kind, "__dlpack__") and not issubclass(kind, np.ndarray)


def exchange_for(*values: Any) -> Call | None:
    """The back end for a call with these arguments if one of them is exchanged by DLPack, else None."""
    return None if _OURS.issuperset(map(type, values)) else _exchange_of(values)


def _exchange_of(values: tuple[Any, ...]) -> Call | None:
    """`exchange_for`, if some values are not NumPy's or Python's."""
    if not _exchanged.isdisjoint(map(type, values)) or _find_exchanged(values):
        return _exchange[0]()
    return None


def _find_exchanged(values: tuple[Any, ...]) -> bool:
    """Whether there are arrays of classes that have not been seen before."""
    found = {kind for kind in map(type, values) if is_exchanged(kind)}
    _exchanged.update(found)
    return bool(found)


def backend_for(*values: Any) -> Call | None:
    """The back end for a call with these arguments; None if the in-memory functions compute it."""
    if type(values[0]) in _exchanged:  # small calls take this way
        return _exchange[0]()
    if _OURS.issuperset(map(type, values)):
        return None
    if exchange := _exchange_of(values):
        return exchange
    for (module, name), load in _loaders.items():
        if module in sys.modules:
            kind = getattr(sys.modules[module], name, ())  # () while another thread is still importing it
            if any(isinstance(value, kind) for value in values):
                return load()
    return None


def dask_for(*values: Any) -> Call | None:
    """The back end for Dask arrays if one of the values is one, else None."""
    lazy = [value for value in values if _is_of(value, "dask.array", "Array")]
    return backend_for(*lazy) if lazy else None


def check_in_memory(function: str, *arrays: Any) -> None:
    """TypeError for arrays of a back end."""
    for one in arrays:
        if not backend_for(one):
            continue
        if _is_of(one, "dask.array", "Array"):
            raise TypeError(f"{function}: Dask arrays are not supported; pass their chunks of rows one by one")
        if _is_of(one, "xarray", "DataArray"):
            raise TypeError(f"{function}: DataArrays of xarray are not supported; pass their data")
        kind = f"{type(one).__module__.partition('.')[0]}.{type(one).__name__}"
        raise TypeError(f"{function}: arrays of the class {kind} are not supported; pass numpy.asarray(x)")


def _is_of(value: Any, module: str, name: str) -> bool:
    """Whether it is an array of this class of a module, which need not be imported."""
    return isinstance(value, getattr(sys.modules.get(module), name, ()))


def _unlabelled(value: Any) -> Any:
    """The array in a DataArray of xarray; other values as they are."""
    return value.data if _is_of(value, "xarray", "DataArray") else value


def exchanging(function: Callable[P, R]) -> Callable[P, R]:
    """A public function for arrays that are exchanged by DLPack as well, and for the data of DataArrays.

    It is for functions that have no back end for them: those of ragged rows and of products.
    """

    @wraps(function)
    def call(*args: P.args, **keywords: P.kwargs) -> R:
        values = (*args, *keywords.values())
        if _OURS.issuperset(map(type, values)):
            return function(*args, **keywords)
        if backend := _exchange_of(values):
            result: R = backend(function.__name__, *args, **keywords)
            return result
        data: Any = function
        named = {key: _unlabelled(value) for key, value in keywords.items()}
        found: R = data(*map(_unlabelled, args), **named)
        return found

    return call
