"""Arrays in .npy files and in Zarr directories, read and written box by box, in memory that stays bounded.

A result is written beside its target, under another name that ends in ``.part``, and renamed by `commit`. Before
that, `sync` waits until the disk has it: after a power cut, the name leads to the old file or to the whole new
one. Only regular files are read, and only regular files and Zarr arrays are replaced: a device, FIFO or socket
never is.
"""

import errno
import hashlib
import json
import math
import mmap
import os
import shutil
import stat
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from fastsoftmax.arrays.blocks import Array

REFUSED, BROKEN = 2, 3

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000
"""A header may have this many bytes; NumPy writes about a hundred."""

LONGEST_NAME = 200
"""Temporary names have a hash for file names of more bytes than this; file systems allow about 255."""

SUFFIXES = (".npy", ".zarr")
"""What the names of results end with."""

LEAST_STRETCH = 1 << 10
"""If a block lies in stretches of its file that are shorter than this, a mapping is faster than many reads."""

Box = tuple[slice, ...]
T = TypeVar("T")


class RunError(Exception):
    """The reason why a run ends, and its exit status."""

    def __init__(self, message: str, status: int = REFUSED) -> None:
        super().__init__(message, status)  # pickle needs both, when a worker raises it
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


# --- what a path leads to -------------------------------------------------------------------------------------

_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
REGULAR, DIRECTORY = _KINDS[stat.S_IFREG], _KINDS[stat.S_IFDIR]


def reason(error: Exception) -> str:
    """Why an operation failed, in the system's words."""
    return getattr(error, "strerror", None) or str(error)


def kind(path: Path) -> str | None:
    """What a path leads to, in words, or None if there is nothing. RunError if no file can have this path."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # a name that is too long, a loop of links; a null byte
        raise RunError(f"{path} cannot be used: {reason(error)}") from None
    return _KINDS.get(stat.S_IFMT(mode), "no regular file")


def _is_zarr_array(path: Path) -> bool:
    """Whether a directory is a Zarr array. A group is not replaced, because it may hold other arrays."""
    if kind(path / ".zarray") == REGULAR:
        return True
    if kind(path / "zarr.json") != REGULAR:
        return False
    try:
        return bool(json.loads((path / "zarr.json").read_bytes())["node_type"] == "array")
    except Exception:  # no JSON, or no Zarr metadata
        return False


def check_replaceable(path: Path, status: int = REFUSED) -> None:
    """RunError if a path leads to anything but a regular file, a Zarr array or nothing."""
    found = kind(path)
    if found is None:
        if path.is_symlink():
            raise RunError(f"{path} is a symbolic link that leads nowhere", status)
    elif found == DIRECTORY:
        if not _is_zarr_array(path):
            raise RunError(f"{path} is a directory and no Zarr array", status)
    elif found != REGULAR:
        raise RunError(f"{path} is {found}; only regular files and Zarr arrays are replaced", status)


def check_suffix(path: Path) -> None:
    """RunError for the name of a result that says that it is something else."""
    if path.suffix not in SUFFIXES:
        raise RunError(f"{path}: a result is a .npy file or a .zarr array, and its name has to end so")


def resolved(path: Path) -> Path:
    """The absolute path without links and dots.

    If the name of a result is a link, the link stays, and the file that it leads to is replaced.
    """
    try:
        place = Path(os.path.realpath(path))
        if path.exists() and not (place.exists() and path.samefile(place)):  # a deleted file in /dev/fd
            raise RunError(f"{path} is a link that cannot be followed")
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be used: {reason(error)}") from None
    return place


def _without_waiting(path: str, flags: int) -> int:
    """An opener that does not wait for the other end of a FIFO."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened to be read without a buffer; RunError for anything else."""
    found = kind(path)
    if found is None:
        raise RunError(f"{path} does not exist")
    try:
        if found == REGULAR:
            file = open(path, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file
            file.close()  # another file has taken its place since `kind` looked
            found = "no regular file"
    except OSError as error:
        raise RunError(f"{path} cannot be read: {reason(error)}") from None
    raise RunError(f"{path} is {found}; arrays are read from regular files")


def is_zarr(path: Path) -> bool:
    """Whether a path stands for a Zarr array rather than a .npy file."""
    return path.suffix == ".zarr" or kind(path) == DIRECTORY


def _zarr() -> Any:
    try:
        import zarr
    except ModuleNotFoundError:
        raise RunError("Zarr arrays need zarr: pip install 'fastsoftmax[zarr]'") from None
    return zarr


def in_words(size: float) -> str:
    """A number of bytes as people write it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def check_objects(path: Path, dtype: np.dtype[Any]) -> None:
    """RunError for an array whose entries are pickles."""
    if dtype.hasobject:
        raise RunError(f"{path} holds pickled Python objects, which are not read")


def rows_of(box: tuple[T, ...], axis: int | None) -> tuple[T, ...]:
    """A box, or its extent, without the axis of the classes, if there is one."""
    return box if axis is None else box[:axis] + box[axis + 1 :]


def extent_of(box: Box) -> tuple[int, ...]:
    """The shape of a box."""
    return tuple(s.stop - s.start for s in box)


def stretches(shape: tuple[int, ...], box: Box) -> tuple[Array, int]:
    """Where a box lies in a C-contiguous array of this shape: where its stretches begin, and their length."""
    length, axis = 1, len(shape)
    while axis:
        axis -= 1
        length *= box[axis].stop - box[axis].start
        if box[axis].stop - box[axis].start != shape[axis]:
            break
    starts = np.zeros(1, np.int64)
    for n, part in zip(shape[:axis], box[:axis], strict=True):
        starts = (starts[:, None] * n + np.arange(part.start, part.stop)).reshape(-1)
    for n, part in zip(shape[axis:], box[axis:], strict=True):
        starts = starts * n + part.start
    return starts, length


def room_of(box: Box, dtype: np.dtype[Any], room: Array, fortran: bool = False) -> Array:
    """The beginning of an array of bytes as an array for the numbers in a box."""
    extent = extent_of(box)
    target = room[: math.prod(extent) * dtype.itemsize].view(dtype)
    return target.reshape(extent[::-1]).T if fortran else target.reshape(extent)


def places(array: Any, box: Box) -> tuple[Array, int]:
    """Where the bytes of a box lie in an array in either order: where their stretches begin, and their length."""
    order = slice(None, None, -1 if array.fortran else 1)
    starts, length = stretches(array.shape[order], box[order])
    return starts * array.dtype.itemsize, length * array.dtype.itemsize


def filled(
    array: Any, box: Box, room: Array, found: tuple[Array, int], fill: Callable[[int, memoryview], None]
) -> Array:
    """The numbers in a box, whose `places` were found, at the beginning of `room`; `fill` reads a stretch."""
    (starts, step), memory = found, memoryview(room.data)
    for n, start in enumerate(starts.tolist()):
        fill(start, memory[n * step : (n + 1) * step])
    return room_of(box, array.dtype, room, array.fortran)


def bytes_of(block: Array, dtype: np.dtype[Any], fortran: bool) -> memoryview:
    """The bytes of a block, in the order of a file."""
    native = np.ascontiguousarray(block.T if fortran else block, dtype)
    return memoryview(native.reshape(-1).view(np.uint8).data)


def write_header(file: Any, shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool) -> None:
    """Write the header of a .npy file."""
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": fortran, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)


def _release(mapping: Any) -> None:
    """Give the pages of a mapping back to the system; the file keeps what was written."""
    memory = mapping._mmap
    if isinstance(memory, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        memory.madvise(mmap.MADV_DONTNEED)


def header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, dtype and length of the header of a .npy file; ValueError with a readable message."""
    version = tuple(start[6:8])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError("its version is none of 1.0, 2.0 and 3.0")
    first = 10 if version == (1, 0) else 12
    length = int.from_bytes(start[8:first], "little")
    if length > LONGEST_HEADER:
        raise ValueError(f"its header has {length} bytes, more than {LONGEST_HEADER}")
    if len(start) < first + length:
        raise ValueError("its header is cut off")
    stream = BytesIO(start[8 : first + length])
    read = np.lib.format.read_array_header_1_0 if first == 10 else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for headers by Python 2, and for deprecated dtypes
            # Version 3.0 differs from 2.0 in the names of fields, and arrays with fields are refused in any case.
            shape, fortran, dtype = read(stream)
        shape = tuple(int(n) for n in shape)
    except Exception as error:  # NumPy parses the header as a Python literal, which may raise many exceptions
        raise ValueError(f"its header cannot be understood ({type(error).__name__})") from None
    if min(shape, default=0) < 0:
        raise ValueError(f"its header says shape {shape}")
    return shape, fortran, dtype, first + length


_OPENING = threading.Lock()


class _Pickled:
    """Pickled without open files: a worker opens them when it reads. A scheduler may have no access to them."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _opened = ("mapping", "_file", "array")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in self._opened}

    def _open(self) -> None:
        raise NotImplementedError

    def _open_again(self) -> None:
        """Open the file in the process that has loaded the pickle."""
        with _OPENING:  # several threads of a worker share this object
            if not any(name in self.__dict__ for name in self._opened):
                before = self.__getstate__()
                self._open()
                if self.__getstate__() != before:
                    raise RunError(f"{self.path} changed while it was read", BROKEN)


class NpyFile(_Pickled):
    """An array in a .npy file, or in another file that has such a file inside, from `begin` to `limit`.

    `path` is what messages call it.
    """

    def __init__(self, file: Path, begin: int = 0, limit: int | None = None, path: Path | None = None) -> None:
        self.place, self.begin, self.limit = file.absolute(), begin, limit
        self.path = self.place if path is None else path.absolute()
        self.chunks: tuple[int, ...] | None = None
        self._open()

    def _open(self) -> None:
        path = self.path
        with open_regular(self.place) as file:
            try:
                file.seek(self.begin)
                start = file.read(LONGEST_HEADER + 12)
                size = os.fstat(file.fileno()).st_size
                if self.limit is not None:
                    size = min(size, self.limit)
            except OSError as error:
                raise RunError(f"{path} cannot be read: {reason(error)}") from None
            if start[:6] != MAGIC:
                kinds = {
                    b"PK": "an archive of arrays; its name has to end in .npz",
                    b"\x80\x02": "a pickle",
                    b"\x80\x04": "a pickle",
                }
                raise RunError(f"{path} is {kinds.get(start[:2], 'no .npy file')}")
            try:
                shape, fortran, dtype, length = header(start)
            except ValueError as error:
                raise RunError(f"{path} is no valid .npy file: {error}") from None
            check_objects(path, dtype)
            offset = self.begin + length
            if offset + math.prod(shape) * dtype.itemsize > size:
                raise RunError(f"{path} is truncated: {in_words(size - self.begin)} are less than its header says")
            try:
                with np.errstate(all="ignore"):
                    self.mapping: Any = np.memmap(file, dtype, "r", offset, shape, "F" if fortran else "C")
            except Exception as error:  # more dimensions than NumPy has, or no room for a mapping
                raise RunError(f"{path} cannot be mapped into memory: {reason(error)}") from None
        self.shape: tuple[int, ...] = self.mapping.shape
        self.dtype: np.dtype[Any] = self.mapping.dtype
        self.ndim = len(self.shape)
        flags = self.mapping.flags
        self.fortran = bool(flags.f_contiguous and not flags.c_contiguous)
        self.offset = offset
        self.end = offset + math.prod(shape) * dtype.itemsize
        self._file: Any = None

    def _check_size(self) -> None:
        """RunError if the file has become shorter. To read the lost pages of a mapping would kill the process."""
        memory = self.mapping._mmap
        if isinstance(memory, mmap.mmap) and memory.size() < self.end:
            raise RunError(f"{self.path} became shorter while it was read", BROKEN)

    def __getitem__(self, box: Any) -> Array:
        self._open_again()
        self._check_size()
        return np.array(self.mapping[box])

    def read(self, box: Box, room: Array) -> Array:
        """The numbers in a box, at the beginning of `room` (an array of bytes), in the order of the file."""
        found = places(self, box)
        if found[1] < LEAST_STRETCH < math.prod(extent_of(box)) * self.dtype.itemsize:
            self._check_size()
            block = room_of(box, self.dtype, room, self.fortran)
            np.copyto(block, self.mapping[box])
            _release(self.mapping)
            return block
        return filled(self, box, room, found, self._fill)

    def _fill(self, start: int, view: memoryview) -> None:
        """The bytes from `start` on."""
        if self._file is None:
            self._file = open_regular(self.place)
        self._file.seek(self.offset + start)
        while len(view):
            count = self._file.readinto(view)
            if not count:
                raise RunError(f"{self.path} became shorter while it was read", BROKEN)
            view = view[count:]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class ZarrArray(_Pickled):
    """An array in a Zarr directory."""

    fortran = False

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._open()

    def _open(self) -> None:
        path = self.path
        found = kind(path)
        if found is None:
            raise RunError(f"{self.path} does not exist")
        if found != DIRECTORY and found != REGULAR:  # zarr itself refuses a regular file
            raise RunError(f"{self.path} is {found} and no Zarr array")
        for name in ("zarr.json", ".zarray", ".zattrs"):
            if found == DIRECTORY and kind(path / name) not in (None, REGULAR):  # zarr would wait for a FIFO
                raise RunError(f"{self.path} is no Zarr array: {name} is no regular file")
        try:
            self.array = _zarr().open_array(str(self.path), mode="r")
            self.shape: tuple[int, ...] = tuple(self.array.shape)
            self.dtype: np.dtype[Any] = np.dtype(self.array.dtype)
            self.chunks: tuple[int, ...] | None = tuple(self.array.chunks)
        except RunError:
            raise
        except Exception as error:
            raise RunError(f"{self.path} is no Zarr array: {error}") from None
        self.ndim = len(self.shape)

    def __getitem__(self, box: Any) -> Array:
        self._open_again()
        return np.asarray(self.array[box])

    def read(self, box: Box, room: Array) -> Array:
        block = room_of(box, self.dtype, room)
        block[...] = self[box]
        return block

    def close(self) -> None:
        pass


def source(path: Path) -> NpyFile | ZarrArray:
    """The array in a file or directory, opened but not read."""
    return ZarrArray(path) if is_zarr(path) else NpyFile(path)


class _Replacement:
    """A result that is written under a temporary name, and renamed when it is complete."""

    def __init__(self, path: Path) -> None:
        self.path = resolved(path)
        self.temporary = beside(self.path)
        self.former: Path | None = None
        self.stands = False

    def sync(self) -> None:
        """Wait until the complete result is on the disk, under its temporary name."""
        raise NotImplementedError

    def commit(self) -> None:
        """Give the result its name. An existing file is kept under another name until `settle`."""
        check_replaceable(self.path, BROKEN)
        if kind(self.path) is not None:
            former = self.temporary.with_suffix(".old")
            try:  # a second name for the existing file, so that the first name always has a file
                os.link(self.path, former)
            except OSError:  # a directory, or a file system without links
                os.rename(self.path, former)
            self.former = former
        os.replace(self.temporary, self.path)
        self.stands = True
        _sync_directory(self.path.parent)

    def revert(self) -> None:
        """Restore the file that had the name before `commit`."""
        if self.stands:
            _remove(self.path)
            self.stands = False
        if self.former is not None:
            os.replace(self.former, self.path)
            _remove(self.former)  # if the result did not get its name, the existing file has both names
            self.former = None

    def settle(self) -> None:
        """Remove the file that had the name before."""
        if self.former is not None:
            _remove(self.former)
            self.former = None


def _remove(path: Path) -> None:
    """Remove a file or directory; failures are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk, where the system can do that."""
    if os.name == "nt":  # directories cannot be opened there
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has no such operation
            raise
    finally:
        os.close(number)


class NpyTarget(_Replacement):
    """A .npy file that is written under a temporary name. Pickled without its open file, for workers."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool) -> None:
        super().__init__(path)
        self.shape, self.dtype = shape, dtype
        self.fortran = fortran and len(shape) > 1
        self.mapping: Any = None
        self.file: Any = self.temporary.open("xb", buffering=0)
        try:
            write_header(self.file, shape, dtype, self.fortran)
            self.offset = self.file.tell()
            self._reserve(self.offset + math.prod(shape) * dtype.itemsize)
        except BaseException:
            self.discard()
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "file": None, "mapping": None}

    def _reserve(self, size: int) -> None:
        """Allocate all of the space, so that a full disk is noticed before the computation."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.file.fileno(), 0, size)
        else:
            self.file.truncate(size)

    def write(self, box: Box, block: Array) -> None:
        if not block.size:
            return
        starts, step = places(self, box)
        if step < LEAST_STRETCH < block.nbytes:
            self[box] = block
            return
        memory = bytes_of(block, self.dtype, self.fortran)
        for n, start in enumerate((self.offset + starts).tolist()):
            self.file.seek(start)
            view = memory[n * step : (n + 1) * step]
            while len(view):
                view = view[self.file.write(view) :]

    def __setitem__(self, box: Any, block: Array) -> None:
        """Write through a mapping, which several workers may do at the same time."""
        if self.mapping is None:
            layout: Any = "F" if self.fortran else "C"
            self.mapping = np.memmap(self.temporary, self.dtype, "r+", self.offset, self.shape, layout)
        self.mapping[box] = block
        _release(self.mapping)

    def discard(self) -> None:
        self.file.close()
        self.temporary.unlink(missing_ok=True)

    def sync(self) -> None:
        if isinstance(getattr(self.mapping, "_mmap", None), mmap.mmap):
            self.mapping._mmap.flush()  # on Linux, fsync would be enough
        os.fsync(self.file.fileno())
        _sync_directory(self.path.parent)

    def commit(self) -> None:
        self.mapping = None
        self.file.close()
        super().commit()


class ZarrTarget(_Replacement):
    """A Zarr array that is written under a temporary name."""

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...] | None
    ) -> None:
        super().__init__(path)
        self.shape, self.dtype = shape, dtype
        zarr = _zarr()
        self.temporary.mkdir()
        sizes = tuple(max(1, n) for n in (chunks or shape))
        try:
            self.array = zarr.open_array(
                str(self.temporary), mode="w", shape=shape, chunks=sizes, dtype=dtype.newbyteorder("=")
            )
        except BaseException:
            self.discard()
            raise

    def write(self, box: Box, block: Array) -> None:
        if block.size:
            self.array[box] = block

    __setitem__ = write

    def sync(self) -> None:
        for place, _, names in os.walk(self.temporary, topdown=False):
            for name in names:
                with open(Path(place, name), "r+b") as file:
                    os.fsync(file.fileno())
            _sync_directory(Path(place))
        _sync_directory(self.path.parent)

    def discard(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)


Target = NpyTarget | ZarrTarget


def _stem(path: Path) -> str:
    """The beginning of the temporary names of a target. A long name is replaced by its hash."""
    name = path.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}."


def beside(path: Path) -> Path:
    """The temporary path of a result. It has the number of the process in it, so that no other process uses it."""
    return path.with_name(f"{_stem(path)}{os.getpid()}.part")


def left_behind(path: Path) -> list[Path]:
    """The temporary files of this target that killed runs have left."""
    found = []
    stem, place = _stem(path), path.absolute().parent
    try:
        entries = sorted(os.listdir(place))
    except OSError:  # a directory that may be written to, but not listed
        return []
    for name in entries:
        process = name.removeprefix(stem).removesuffix(".part")
        if name == f"{stem}{process}.part" and process.isascii() and process.isdigit():
            try:
                os.kill(int(process), 0)
            except (ProcessLookupError, OverflowError):  # OverflowError: no process has such a number
                found.append(place / name)
            except OSError:
                pass
    return found
