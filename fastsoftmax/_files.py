"""Arrays in .npy files and in Zarr directories, read and written box by box, in memory that stays bounded.

A result is written beside its target, under another name that ends in ``.part``, and renamed by `commit`.
"""

import math
import mmap
import os
import shutil
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fastsoftmax._arrays import Array

REFUSED, BROKEN = 2, 3

LEAST_STRETCH = 1 << 10
"""Where a block lies in shorter stretches of its file, a mapping is faster than so many reads."""

Box = tuple[slice, ...]
T = TypeVar("T")


class RunError(Exception):
    """The run is over: why, and with which exit status."""

    def __init__(self, message: str, status: int = REFUSED) -> None:
        super().__init__(message)
        self.status = status


def is_zarr(path: Path) -> bool:
    """Whether a path stands for a Zarr array rather than a .npy file."""
    return path.suffix == ".zarr" or path.is_dir()


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


def rows_of(box: tuple[T, ...], axis: int) -> tuple[T, ...]:
    """A box, or its extent, without the axis of the classes."""
    return box[:axis] + box[axis + 1 :]


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


def _release(mapping: Any) -> None:
    """Give the pages of a mapping back to the system; the file keeps what was written."""
    memory = mapping._mmap
    if isinstance(memory, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        memory.madvise(mmap.MADV_DONTNEED)


class NpyFile:
    """An array in a .npy file. Pickled by its place, so that a worker opens it for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.chunks: tuple[int, ...] | None = None
        self._open()

    def __reduce__(self) -> Any:
        return NpyFile, (self.path,)

    def _open(self) -> None:
        path = self.path
        try:
            with path.open("rb") as file:
                magic = file.read(6)
        except FileNotFoundError:
            raise RunError(f"{path} does not exist") from None
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}") from None
        if magic != b"\x93NUMPY":
            kind = {
                b"PK": "an archive of arrays (.npz); unpack it",
                b"\x80\x02": "a pickle",
                b"\x80\x04": "a pickle",
            }
            raise RunError(f"{path} is {kind.get(magic[:2], 'no .npy file')}")
        try:
            self.mapping = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            if "Python objects" in str(error):
                raise RunError(f"{path} holds pickled Python objects, which are not read") from None
            if "file size" in str(error):
                raise RunError(
                    f"{path} is truncated: {in_words(path.stat().st_size)} are less than its header says"
                ) from None
            raise RunError(f"{path} is no valid .npy file: {error}") from None
        except (OSError, EOFError, SyntaxError) as error:
            raise RunError(f"{path} is no valid .npy file: {error}") from None
        self.shape: tuple[int, ...] = self.mapping.shape
        self.dtype: np.dtype[Any] = self.mapping.dtype
        self.ndim = len(self.shape)
        flags = self.mapping.flags
        self.fortran = bool(flags.f_contiguous and not flags.c_contiguous)
        self.offset = int(getattr(self.mapping, "offset", 0))
        self._file: Any = None

    def __getitem__(self, box: Any) -> Array:
        return np.array(self.mapping[box])

    def read(self, box: Box, room: Array) -> Array:
        """The numbers in a box, in memory at the beginning of `room` (bytes) and in the order of the file."""
        extent = extent_of(box)
        size = math.prod(extent) * self.dtype.itemsize
        target = room[:size].view(self.dtype)
        order = slice(None, None, -1 if self.fortran else 1)
        block = target.reshape(extent[order])
        if self.fortran:
            block = block.T
        starts, length = stretches(self.shape[order], box[order])
        step = length * self.dtype.itemsize
        if step < LEAST_STRETCH < size:
            np.copyto(block, self.mapping[box])
            _release(self.mapping)
            return block
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
        memory = memoryview(room.data)
        for n, start in enumerate((self.offset + starts * self.dtype.itemsize).tolist()):
            self._file.seek(start)
            view = memory[n * step : (n + 1) * step]
            while len(view):
                count = self._file.readinto(view)
                if not count:
                    raise RunError(f"{self.path} became shorter while it was read", BROKEN)
                view = view[count:]
        return block

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class ZarrArray:
    """An array in a Zarr directory."""

    fortran = False

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        if not path.exists():
            raise RunError(f"{self.path} does not exist")
        try:
            self.array = _zarr().open_array(str(self.path), mode="r")
        except RunError:
            raise
        except Exception as error:
            raise RunError(f"{self.path} is no Zarr array: {error}") from None
        self.shape: tuple[int, ...] = tuple(self.array.shape)
        self.dtype: np.dtype[Any] = np.dtype(self.array.dtype)
        self.ndim = len(self.shape)
        self.chunks: tuple[int, ...] | None = tuple(self.array.chunks)

    def __reduce__(self) -> Any:
        return ZarrArray, (self.path,)

    def __getitem__(self, box: Any) -> Array:
        return np.asarray(self.array[box])

    def read(self, box: Box, room: Array) -> Array:
        block = room[: math.prod(extent_of(box)) * self.dtype.itemsize].view(self.dtype).reshape(extent_of(box))
        block[...] = self[box]
        return block

    def close(self) -> None:
        pass


Source = NpyFile | ZarrArray


def source(path: Path) -> Source:
    """The array in a file or directory, opened but not read."""
    return ZarrArray(path) if is_zarr(path) else NpyFile(path)


class NpyTarget:
    """A .npy file that is written beside its name. Pickled without its open file, for workers."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool) -> None:
        self.path, self.shape, self.dtype = path.absolute(), shape, dtype
        self.fortran = fortran and len(shape) > 1
        self.temporary = beside(self.path)
        self.file: Any = self.temporary.open("xb", buffering=0)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": self.fortran, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)
        self.offset = self.file.tell()
        self._reserve(self.offset + math.prod(shape) * dtype.itemsize)
        self.mapping: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "file": None, "mapping": None}

    def _reserve(self, size: int) -> None:
        """All of the space at once: what does not fit is found out before the work, not after."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.file.fileno(), 0, size)
        else:
            self.file.truncate(size)

    def write(self, box: Box, block: Array) -> None:
        order = slice(None, None, -1 if self.fortran else 1)
        starts, length = stretches(self.shape[order], box[order])
        step = length * self.dtype.itemsize
        if not block.size:
            return
        if step < LEAST_STRETCH < block.nbytes:
            self[box] = block
            return
        native = np.ascontiguousarray(block.T if self.fortran else block, self.dtype)
        memory = memoryview(native.reshape(-1).data).cast("B")
        for n, start in enumerate((self.offset + starts * self.dtype.itemsize).tolist()):
            self.file.seek(start)
            view = memory[n * step : (n + 1) * step]
            while len(view):
                view = view[self.file.write(view) :]

    def __setitem__(self, box: Any, block: Array) -> None:
        """By a mapping, which several workers may do at once."""
        if self.mapping is None:
            layout: Any = "F" if self.fortran else "C"
            self.mapping = np.memmap(self.temporary, self.dtype, "r+", self.offset, self.shape, layout)
        self.mapping[box] = block
        _release(self.mapping)

    def discard(self) -> None:
        self.file.close()
        self.temporary.unlink(missing_ok=True)

    def commit(self) -> None:
        self.mapping = None
        self.file.close()
        os.replace(self.temporary, self.path)


class ZarrTarget:
    """A Zarr array that is written beside its name."""

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...] | None
    ) -> None:
        self.path, self.shape, self.dtype = path.absolute(), shape, dtype
        zarr = _zarr()
        self.temporary = beside(self.path)
        self.temporary.mkdir()
        sizes = tuple(max(1, n) for n in (chunks or shape))
        self.array = zarr.open_array(
            str(self.temporary), mode="w", shape=shape, chunks=sizes, dtype=dtype.newbyteorder("=")
        )

    def write(self, box: Box, block: Array) -> None:
        if block.size:
            self.array[box] = block

    __setitem__ = write

    def discard(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)

    def commit(self) -> None:
        if self.path.exists():
            old = self.temporary.with_suffix(".old")
            os.replace(self.path, old)
            os.replace(self.temporary, self.path)
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        else:
            os.replace(self.temporary, self.path)


Target = NpyTarget | ZarrTarget


def beside(path: Path) -> Path:
    """Where a result is written before it gets its name; no other process has this one."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def left_behind(path: Path) -> list[Path]:
    """What runs that were killed have left of this target."""
    found = []
    for part in path.absolute().parent.glob(f".{path.name}.*.part"):
        process = part.name.rsplit(".", 2)[1]
        if process.isdigit():
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                found.append(part)
            except OSError:
                pass
    return found
