"""Machine code that was made before this process: the library of kernels, and functions made from addresses.

A library holds the code of all kernels for one kind of processor (`level`). It lies in the package (a wheel, or
``pip install .``) or in the cache directory (``fastsoftmax warmup``). A description in JSON beside it has its
level, its hash and that of the sources. It is used only if all three agree, so a damaged file, one of another
version, and sources that were edited all lead to compilation by Numba. There is a warning if a library of these
sources cannot be used. Neither Numba nor llvmlite is imported here.

A library is code that this process runs. It is loaded from the package's own directory, which is as trustworthy as
the package, or from a directory that nobody else can write to.
"""

import ctypes
import hashlib
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy import ndarray

from fastsoftmax.runtime import cache
from fastsoftmax.runtime.lifetime import keep
from fastsoftmax.runtime.numba_state import checks_bounds

if TYPE_CHECKING:
    from pathlib import Path

INTERFACE = 1
"""The version of the names and arguments of exported functions. It is part of the names."""

PREFIX = f"fastsoftmax_{INTERFACE}."
TABLE = "fastsoftmax_python"
PYTHON = (
    "head",
    "None",
    "False",
    "True",
    "ndarray",
    "IndexError",
    "Py_IncRef",
    "PyErr_SetString",
    "PyEval_SaveThread",
    "PyEval_RestoreThread",
    "PyFloat_AsDouble",
    "PyFloat_FromDouble",
    "PyNumber_AsSsize_t",
    "PyObject_IsTrue",
    "PyTuple_GetItem",
)
"""The entries of the table from which exported functions take what they need of Python: `python_table`."""

_FASTCALL = 0x0080  # METH_FASTCALL
_X86_V3 = ("AVX2", "FMA3", "F16C", "POPCNT", "SSE42")
_X86_V4 = ("AVX512F", "AVX512CD", "AVX512BW", "AVX512DQ", "AVX512VL")


class _Method(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def python_table() -> list[int]:
    """The numbers and addresses that `PYTHON` names."""
    functions = [ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value for name in PYTHON[6:]]
    objects = (None, False, True, ndarray, IndexError)
    return [object.__basicsize__, *map(id, objects), *(address or 0 for address in functions)]


def python_function(name: str, address: int) -> Any:
    """The function of Python whose C function is at this address."""
    method = keep(_Method(name.encode(), address, _FASTCALL, None))
    new = ctypes.pythonapi.PyCFunction_NewEx
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
        ctypes.cast(new, ctypes.c_void_p).value or 0
    )
    return make(ctypes.addressof(method), None, None)


def _processor_features() -> dict[str, bool]:
    try:
        from numpy._core._multiarray_umath import __cpu_features__ as features  # type: ignore[import-not-found]
    except ImportError:  # before NumPy 2
        from numpy.core._multiarray_umath import __cpu_features__ as features  # type: ignore[no-redef]
    return dict(features)


@lru_cache(maxsize=1)
def level() -> str | None:
    """The kind of this processor for which a library can be: "v4", "v3" or "aarch64"; None for others."""
    machine = platform.machine().lower()
    if machine in ("arm64", "aarch64"):
        return "aarch64"
    if machine not in ("x86_64", "amd64") or sys.maxsize < 1 << 32:
        return None
    try:
        features = _processor_features()
    except ImportError:
        return None

    def has(names: tuple[str, ...]) -> bool:
        return all(features.get(name, False) for name in names)

    if not has(_X86_V3):
        return None
    return "v4" if has(_X86_V4) or features.get("AVX512_SKX", False) else "v3"


def file_name(name: str, system: str = sys.platform) -> str:
    """The file of the library of this level, for a system as `sys.platform` names it."""
    return name + {"win32": ".dll", "darwin": ".dylib"}.get(system, ".so")


class Library:
    """A shared library of kernels."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._library = ctypes.CDLL(os.path.realpath(name))  # a name alone would be looked for elsewhere
        table = (ctypes.c_void_p * len(PYTHON)).in_dll(self._library, TABLE)
        table[:] = list(python_table())

    @property
    def path(self) -> "Path":
        """The file."""
        from pathlib import Path  # here and not above, because a first call does not need it

        return Path(self.name)

    def address(self, name: str) -> int | None:
        """The address of an exported function; None if the library does not have it."""
        try:
            function = getattr(self._library, PREFIX + name)
        except AttributeError:
            return None
        return ctypes.cast(function, ctypes.c_void_p).value


PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_prebuilt")
"""Where the library of an installation is; its files are as trustworthy as those of the package."""


def describe(level: str, sources: str, library: str) -> str:
    """The description of a library, in JSON: its level, and the hashes of the sources and of its file."""
    return f'{{"level": "{level}", "sources": "{sources}", "library": "{library}"}}\n'


def _places() -> Iterator[str]:
    yield PACKAGE
    directory = cache.directory_name()
    with suppress(OSError):
        if cache.is_private(directory):
            yield directory


def _hash(path: str) -> str:
    """The SHA-256 of a file, read through memory that stays in the cache: all at once takes twice as long."""
    digest, memory = hashlib.sha256(), memoryview(bytearray(1 << 18))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(memory):
            digest.update(memory[:size])
    return digest.hexdigest()


def _opened(place: str, name: str, wanted: str) -> Library:
    """A library of this level; an exception unless it is there, whole, and made of these sources."""
    path, description = os.path.join(place, file_name(name)), os.path.join(place, f"{name}.json")
    if place != PACKAGE and not all(map(cache.is_private, (path, description))):
        raise ValueError("others can write to it")
    with open(description, "rb") as file:
        text = file.read()
    if wanted.encode() not in text:
        _check(text, name, wanted, "")
    digest = _hash(path)
    if text != describe(name, wanted, digest).encode():
        _check(text, name, wanted, digest)
    return Library(path)


def _check(text: bytes, name: str, wanted: str, digest: str) -> None:
    """Raise what is wrong with the description of a library with this hash, in any form of JSON."""
    import json  # here, as above

    description = json.loads(text)
    if description["sources"] != wanted:
        raise _OtherSourcesError
    if description["level"] != name:
        raise ValueError(f"it is for {description['level']}, not {name}")
    if description["library"] != digest:
        raise ValueError("its content is not what was built")


class _OtherSourcesError(Exception):
    """A library that was made of other sources: of another version, or before an edit."""


class Found(NamedTuple):
    """What a search for a library has found."""

    library: Library | None
    text: str
    """The file, or why none is used."""
    is_broken: bool = False
    """Whether a library of these sources is there that cannot be used."""


def search() -> Found:
    """Look for the library of this processor."""
    name = level()
    if name is None:
        return Found(None, "none: there are libraries for x86-64-v3, x86-64-v4 and aarch64 only")
    if os.environ.get("FASTSOFTMAX_PREBUILT") == "0":
        return Found(None, "none: FASTSOFTMAX_PREBUILT=0")
    if checks_bounds():
        return Found(None, "none: NUMBA_BOUNDSCHECK is set")
    try:
        wanted = cache.sources()
    except OSError:  # in a frozen application or a zip file
        return Found(None, "none: the sources are not files")
    stale, broken = [], []
    for place in _places():
        path = os.path.join(place, file_name(name))
        try:
            return Found(_opened(place, name, wanted), f"{path} ({name})")
        except FileNotFoundError:
            pass
        except _OtherSourcesError:
            stale.append(f"{path} was made of other sources")
        except (OSError, ValueError, KeyError, TypeError) as error:
            broken.append(f"{path} cannot be used: {error}")
    reasons = [*broken, *stale]
    return Found(None, f"none{': ' if reasons else ''}{'; '.join(reasons)}", bool(broken))


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The library for this processor; None if there is none, or if ``FASTSOFTMAX_PREBUILT=0``."""
    found = search()
    if found.is_broken:
        text = found.text.removeprefix("none: ")
        warnings.warn(
            f"the library of kernels {text}; kernels are compiled when they are first called, which takes seconds",
            RuntimeWarning,
            stacklevel=2,
        )
    return found.library
