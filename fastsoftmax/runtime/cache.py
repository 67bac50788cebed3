"""Where compiled code is kept between processes.

Numba's own disk cache trusts the time stamp of one source file, so that an edited building block leaves
stale machine code behind, and shares an index file without a lock, so that two processes can pair one
signature with the other's code. This cache keeps one file per function and signature. Its name is a hash of
everything that decides what the code is: all sources in `kernels`, the versions of Python, NumPy, Numba and
llvmlite, the processor, and Numba's configuration. Its content has a checksum, and it gets its name when it is
complete. What another user can write to is not used, because the files are pickles. If there are too many, the
least recently used ones are removed. If anything fails here, kernels are compiled in memory: there is no exception
and no wrong code.

Numba calls `KernelCache`, which reads and writes compiled functions by means of `numba_private`. If a release
changes what that uses, every lookup misses and every save is skipped.
"""

import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastsoftmax.runtime import numba_private

MAGIC = b"fastsoftmax-2\n"
HEADER = len(MAGIC) + hashlib.sha256().digest_size
KERNELS = "fastsoftmax.kernels."
SUFFIX = ".code"
UNFINISHED = ".code-part"
"""The suffix of a file while it is written; one older than `STALE` was left by a process that has ended."""

LIMIT = 256 << 20
"""How many bytes all files may have: enough for a few hundred kernels in several versions."""

DAY = 86_400.0
STALE = 3600.0
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
    files = _files(SUFFIX)
    return len(files), sum(status.st_size for _, status in files)


def clear() -> tuple[int, int]:
    """Remove all files: how many are gone, and their bytes in all."""
    before = size()
    for path, _ in _files(SUFFIX) + _files(UNFINISHED):
        with suppress(OSError):
            path.unlink()
    after = size()
    return before[0] - after[0], before[1] - after[1]


def _files(suffix: str) -> list[tuple[Path, os.stat_result]]:
    found = []
    with suppress(OSError):
        for entry in os.scandir(directory()):
            with suppress(OSError):
                if entry.name.endswith(suffix):
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
    return found


def tidy(newest: Path) -> None:
    """Remove the oldest files beyond `LIMIT`, but not `newest`, and files that ended processes have left."""
    now = time.time()
    for path, status in _files(UNFINISHED):
        if now - status.st_mtime > STALE:
            with suppress(OSError):
                path.unlink()
    files = sorted(_files(SUFFIX), key=lambda file: file[1].st_mtime)
    excess = sum(status.st_size for _, status in files) - LIMIT
    for path, status in files:
        if excess <= 0:
            return
        if path != newest:
            excess -= status.st_size
            with suppress(OSError):
                path.unlink()


def _is_private(status: os.stat_result) -> bool:
    if os.name != "posix":
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def is_private(path: Path) -> bool:
    """Whether nobody but this user (and root) can put a file there."""
    return _is_private(os.stat(path))


def checksum(name: str, payload: bytes) -> bytes:
    """The checksum in a file. It covers the name, so that a file under another name counts as damaged."""
    return hashlib.sha256(name.encode() + b"\0" + payload).digest()


def _read(path: Path) -> bytes | None:
    """What was saved under this name, or None if the file is damaged or not private."""
    # O_NONBLOCK: if it is a pipe, do not wait for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or not _is_private(status):
            return None
        content = file.read()
        payload = content[HEADER:]
        if content[:HEADER] != MAGIC + checksum(path.name, payload):
            return None
        if time.time() - status.st_mtime > DAY:
            with suppress(OSError):
                os.utime(path)  # used today, so others are removed first
    return payload


@lru_cache(maxsize=1)
def stamp() -> bytes:
    """A hash of all that determines the machine code, except function, signature and processor."""
    import llvmlite
    import numba
    import numpy as np

    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    runtime = (package / "runtime" / name for name in ("cache.py", "numba_private.py"))
    for source in (*runtime, package / "_vectors.py", *sorted(package.joinpath("kernels").rglob("*.py"))):
        digest.update(str(source.relative_to(package)).encode() + b"\0" + source.read_bytes() + b"\0")
    config = {
        name: value
        for name, value in vars(numba.config).items()
        if name.isupper() and name not in _HARMLESS and isinstance(value, (bool, int, float, str, type(None)))
    }
    versions = (sys.version, np.__version__, numba.__version__, llvmlite.__version__)
    facts = (*versions, sys.implementation.cache_tag)
    digest.update(repr((facts, sorted(config.items()))).encode())
    return digest.digest()


def _bound(function: Callable[..., Any]) -> list[str] | None:
    """What the cells of a closure hold, by name or value; None unless it is constants and functions of kernels."""
    names = []
    for cell in function.__closure__ or ():
        value = cell.cell_contents
        python = getattr(value, "py_func", value)
        if getattr(python, "__closure__", 0) is None and python.__module__.startswith(KERNELS):
            names.append(f"{python.__module__}.{python.__qualname__}")
        elif isinstance(value, (bool, int, float, str)):
            names.append(repr(value))
        else:
            return None
    return names


class KernelCache:
    """The cache of one kernel; it replaces Numba's, ``dispatcher._cache``."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        # The key covers the sources of the kernels, not functions of other modules.
        self._bound = _bound(function)
        self._covered = self._bound is not None and function.__module__.startswith(KERNELS)
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
        for path, _ in _files(SUFFIX):
            if path.name.startswith(f"{self._name}-"):
                with suppress(OSError):
                    path.unlink()

    def path(self, signature: Any, target_context: Any) -> Path:
        """The file for one signature on this processor."""
        processor = numba_private.processor(target_context)
        key = hashlib.sha256(stamp() + repr((self._name, self._bound, str(signature), processor)).encode())
        return directory() / f"{self._name}-{key.hexdigest()[:40]}{SUFFIX}"

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled function, or None if it has to be compiled."""
        if not self._enabled:
            return None
        try:
            numba_private.start_runtime(target_context)
            path = self.path(signature, target_context)
            if not is_private(path.parent):
                return None
            payload = _read(path)
            if payload is None:
                return None
            return numba_private.from_bytes(target_context, payload)
        except Exception:  # documented above: any failure is a miss
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep a compiled function for the next process."""
        if not self._enabled:
            return
        temporary = None
        try:
            path = self.path(signature, numba_private.compiled_for(result))
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_private(path.parent):
                return
            payload = numba_private.to_bytes(result)
            if payload is None:
                return
            handle, temporary = tempfile.mkstemp(prefix=path.stem, suffix=UNFINISHED, dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(MAGIC + checksum(path.name, payload) + payload)
            os.replace(temporary, path)
            temporary = None
            tidy(path)
        except Exception:  # documented above: a kernel that is not kept is compiled again
            pass
        finally:
            if temporary is not None:
                with suppress(OSError):
                    os.unlink(temporary)
