"""Where object code of kernels is kept between processes.

There is one file for each variant of a kernel (`machine.entry`). Its name is a hash of everything that decides
what the code is: all sources of kernels and compilation, the versions of Numba and llvmlite, the processor, and
Numba's settings. Its content has a checksum, and it gets its name when it is complete. What another user can write
to is not used, because it is code. If there are too many files, the least recently used ones are removed. If
anything fails here, kernels are compiled in memory: there is no exception and no wrong code.
"""

import hashlib
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fastsoftmax.runtime.numba_state import setting

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"fastsoftmax-3\n"
HEADER = len(MAGIC) + hashlib.sha256().digest_size
SUFFIX = ".code"
UNFINISHED = ".code-part"
"""The suffix of a file while it is written; one older than `STALE` was left by a process that has ended."""

LIBRARIES = ("v3", "v4", "aarch64")
"""The names of libraries of kernels without their endings: the levels of `prebuilt.level`."""

LIMIT = 256 << 20
"""How many bytes all files may have: enough for a few hundred kernels in several versions."""

DAY = 86_400.0
STALE = 3600.0
_SETTINGS = {"BOUNDSCHECK": 0, "OPT": 3, "DEBUGINFO_DEFAULT": 0, "FULL_TRACEBACKS": 0}
"""Those of Numba's settings that change code, with their defaults. The processor is part of the target."""


def directory() -> "Path":
    """Where the files are: $FASTSOFTMAX_CACHE_DIR, or `fastsoftmax` in the user's cache directory."""
    from pathlib import Path  # here, because a process that finds a library does not need it

    return Path(directory_name())


def directory_name() -> str:
    """The name of `directory`."""
    chosen = os.environ.get("FASTSOFTMAX_CACHE_DIR")
    if chosen:
        return chosen
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return os.path.join(os.path.expanduser(base), "fastsoftmax")


def size() -> tuple[int, int]:
    """How many files there are, and their bytes in all."""
    files = _files(SUFFIX)
    return len(files), sum(status.st_size for _, status in files)


def libraries() -> list[tuple["Path", os.stat_result]]:
    """The libraries of kernels that ``fastsoftmax warmup`` has put there, and their descriptions."""
    endings = (".so", ".dylib", ".dll", ".json")
    return [one for ending in endings for one in _files(ending) if one[0].stem in LIBRARIES]


def clear() -> tuple[int, int]:
    """Remove all files: how many kernels are gone, and their bytes in all. Libraries go, too."""
    before = size()
    for path, _ in _files(SUFFIX) + _files(UNFINISHED) + libraries():
        with suppress(OSError):
            path.unlink()
    after = size()
    return before[0] - after[0], before[1] - after[1]


def _files(suffix: str) -> list[tuple["Path", os.stat_result]]:
    from pathlib import Path  # here, as above

    found = []
    with suppress(OSError):
        for entry in os.scandir(directory()):
            with suppress(OSError):
                if entry.name.endswith(suffix):
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
    return found


def tidy(newest: "Path") -> None:
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


def is_private(path: "str | Path") -> bool:
    """Whether nobody but this user (and root) can put a file there."""
    return _is_private(os.stat(path))


def checksum(name: str, payload: bytes) -> bytes:
    """The checksum in a file. It covers the name, so that a file under another name counts as damaged."""
    return hashlib.sha256(name.encode() + b"\0" + payload).digest()


def _read(path: "Path") -> bytes | None:
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


def _version(package: str) -> str:
    """The version of a package, which another thread may be importing."""
    loaded = getattr(sys.modules.get(package), "__version__", None)
    if loaded is not None:
        return str(loaded)
    from importlib import metadata  # here, because it takes longer than loading a library of kernels

    return metadata.version(package)


@lru_cache(maxsize=1)
def sources() -> str:
    """A hash of all sources that determine the code of kernels; OSError if they are no files."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    digest = hashlib.sha256()
    names = ["_vectors.py"]
    names += [f"runtime/{name}" for name in ("cache.py", "numba_private.py", "prebuilt.py", "teams.py")]
    for folder in ("kernels", "machine"):
        names += sorted(_sources_in(package, folder), key=lambda name: name.split("/"))
    for name in names:
        with open(os.path.join(package, name), "rb") as file:
            digest.update(name.encode() + b"\0" + file.read() + b"\0")
    return digest.hexdigest()


def _sources_in(package: str, folder: str) -> Iterator[str]:
    """The names of the sources in a folder of the package, with slashes."""
    for entry in os.scandir(os.path.join(package, folder)):
        if entry.is_dir():
            yield from _sources_in(package, f"{folder}/{entry.name}")
        elif entry.name.endswith(".py"):
            yield f"{folder}/{entry.name}"


def _value(name: str, default: int) -> Any:
    """A setting in one form, whether Numba has read it or it comes from the environment."""
    found = setting(name)
    try:
        return default if found in (None, "") else int(found)
    except ValueError:
        return found


@lru_cache(maxsize=1)
def stamp() -> str:
    """What determines the machine code besides kernel, variant and processor."""
    settings = {name: _value(name, default) for name, default in _SETTINGS.items()}
    return repr((sources(), _version("numba"), _version("llvmlite"), sys.byteorder, settings))


class ObjectFile:
    """The object code of one variant for one processor. It is not used if anything is wrong with it."""

    def __init__(self, name: str, target: Any) -> None:
        self._name, self._target = name, target

    def path(self) -> "Path":
        """Where the file is."""
        key = hashlib.sha256(repr((stamp(), self._name, self._target)).encode())
        return directory() / f"{self._name}-{key.hexdigest()[:40]}{SUFFIX}"

    def load(self) -> bytes | None:
        """The object code; None if it has to be compiled."""
        with suppress(OSError, ImportError):  # ImportError: no package of this name
            path = self.path()
            if is_private(path.parent):
                return _read(path)
        return None

    def save(self, code: bytes) -> None:
        """Keep the object code for the next process, if that is possible."""
        import tempfile  # here, as above

        temporary = None
        try:
            path = self.path()
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_private(path.parent):
                return
            handle, temporary = tempfile.mkstemp(prefix=path.stem, suffix=UNFINISHED, dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(MAGIC + checksum(path.name, code) + code)
            os.replace(temporary, path)
            temporary = None
            tidy(path)
        except (OSError, ImportError):  # a kernel that is not kept is compiled again
            pass
        finally:
            if temporary is not None:
                with suppress(OSError):
                    os.unlink(temporary)
