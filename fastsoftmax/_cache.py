"""Where compiled code lives between processes.

Numba's own disk cache trusts the time stamp of one source file, so that an edited building block leaves
stale machine code behind, and shares an index file without a lock, so that two processes can pair one
signature with the other's code. This cache keeps one file per function and signature. Its name is a hash of
everything that decides what the code is: all sources in `kernels`, the versions of Python, Numba and
llvmlite, the processor, and Numba's configuration. Its content carries a checksum, it appears under its name
complete or not at all, and a directory that somebody else can write to is not used, because the files are
pickles. Whatever goes wrong here means "compile in memory": never an exception, never wrong code.

Private Numba API is used in this file alone: the ``_cache`` attribute of a dispatcher (see `kernels.jit`) and
``CompileResult._reduce`` and ``_rebuild``. Should a release change them, every lookup misses and every save is
skipped.
"""

import hashlib
import os
import pickle
import stat
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

MAGIC = b"fastsoftmax-1\n"
SUFFIX = ".code"
# Configuration of Numba that decides where or on how many threads code runs, not what it is.
_HARMLESS = {
    "CACHE_DIR",
    "CACHE_LOCATOR_CLASSES",
    "DEBUG_CACHE",
    "NUMBA_DEFAULT_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "THREADING_LAYER",
    "THREADING_LAYER_PRIORITY",
}


def directory() -> Path:
    """Where the files are: $FASTSOFTMAX_CACHE_DIR, or `fastsoftmax` in the user's cache directory."""
    chosen = os.environ.get("FASTSOFTMAX_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base)) / "fastsoftmax"


def size() -> tuple[int, int]:
    """How many files there are, and their bytes in all."""
    files, total = 0, 0
    try:
        for entry in os.scandir(directory()):
            if entry.name.endswith(SUFFIX):
                files, total = files + 1, total + entry.stat().st_size
    except OSError:
        pass
    return files, total


def is_private(path: Path) -> bool:
    """Whether nobody but this user (and root) can put a file there."""
    if os.name != "posix":
        return True
    status = os.stat(path)
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@lru_cache(maxsize=1)
def stamp() -> bytes:
    """A hash of everything but function, signature and processor that decides what the machine code is."""
    import llvmlite
    import numba

    digest = hashlib.sha256()
    package = Path(__file__).parent
    for source in (package / "_cache.py", *sorted(package.joinpath("kernels").rglob("*.py"))):
        digest.update(str(source.relative_to(package)).encode() + b"\0" + source.read_bytes() + b"\0")
    config = {
        name: value
        for name, value in vars(numba.config).items()
        if name.isupper() and name not in _HARMLESS and isinstance(value, (bool, int, float, str, type(None)))
    }
    facts = (sys.version, sys.implementation.cache_tag, numba.__version__, llvmlite.__version__)
    digest.update(repr((facts, sorted(config.items()))).encode())
    return digest.digest()


class KernelCache:
    """The cache of one kernel, in the place of Numba's: ``dispatcher._cache``."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        # The key covers the sources of the kernels: not a closure's cells, not functions of other modules.
        self._covered = function.__closure__ is None and function.__module__.startswith("fastsoftmax.kernels.")
        self._enabled = self._covered

    @property
    def cache_path(self) -> str:
        """The directory, as Numba's caches name it."""
        return str(directory())

    def enable(self) -> None:
        """Read and write files again."""
        self._enabled = self._covered

    def disable(self) -> None:
        """Compile in memory from now on."""
        self._enabled = False

    def flush(self) -> None:
        """Forget the files of this kernel."""
        try:
            for path in directory().glob(f"{self._name}-*{SUFFIX}"):
                path.unlink()
        except OSError:
            pass

    def path(self, signature: Any, target_context: Any) -> Path:
        """The file for one signature on this processor."""
        processor = target_context.codegen().magic_tuple()
        key = hashlib.sha256(stamp() + repr((self._name, str(signature), processor)).encode())
        return directory() / f"{self._name}-{key.hexdigest()[:40]}{SUFFIX}"

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled function, or None if it has to be compiled."""
        if not self._enabled:
            return None
        try:
            from numba.core.compiler import CompileResult

            target_context.refresh()
            path = self.path(signature, target_context)
            if not is_private(path.parent):
                return None
            content = path.read_bytes()
            payload = content[len(MAGIC) + 32 :]
            if content[: len(MAGIC) + 32] != MAGIC + hashlib.sha256(payload).digest():
                return None
            return CompileResult._rebuild(target_context, *pickle.loads(payload))
        except Exception:  # documented above: any failure is a miss
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep a compiled function for the next process."""
        if not self._enabled:
            return
        temporary = None
        try:
            from numba.core.serialize import dumps

            if result.lifted or result.library.has_dynamic_globals:
                return
            path = self.path(signature, result.target_context)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_private(path.parent):
                return
            payload = dumps(result._reduce())
            handle, temporary = tempfile.mkstemp(prefix=path.stem, suffix=".tmp", dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(MAGIC + hashlib.sha256(payload).digest() + payload)
            os.replace(temporary, path)
            temporary = None
        except Exception:  # documented above: a kernel that is not kept is compiled again
            pass
        finally:
            if temporary is not None:
                try:
                    os.unlink(temporary)
                except OSError:
                    pass
