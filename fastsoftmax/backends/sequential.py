"""Arrays that are read from beginning to end, and the one result that is written so.

They are standard input and output, compressed members of .npz archives, and columns of Parquet and Arrow files.

A path may lead into a file: ``a.npz/x`` is the member x of the archive a.npz, and ``a.parquet/x`` the column x. An
uncompressed member is read as a .npy file is.
"""

import io
import math
import os
import select
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastsoftmax.arrays.blocks import Array
from fastsoftmax.backends import files
from fastsoftmax.backends.files import BROKEN, LONGEST_HEADER, Box, NpyFile, RunError, ZarrArray

STANDARD = Path("-")
"""Standard input or output."""

ARCHIVES = (".npz",)
TABLES = (".parquet", ".pq")
ARROW = (".arrow", ".feather", ".ipc")

SKIPPED = 1 << 20
"""So many bytes are read and thrown away at a time."""
TURN = 0.1
"""So many seconds standard input is waited for at a time."""
BATCH_BYTES = 1 << 20
"""About so many bytes of a column of a Parquet file are decoded at a time."""


def in_order(shape: tuple[int, ...], extent: tuple[int, ...], fortran: bool) -> bool:
    """Whether boxes of this extent, one after the other, are the array from beginning to end."""
    if fortran:
        shape, extent = shape[::-1], extent[::-1]
    cut = [axis for axis, (size, n) in enumerate(zip(extent, shape, strict=True)) if size < n]
    return not cut or all(size == 1 for size in extent[: cut[-1]])


class Sequential:
    """An array that is read from beginning to end. To read an earlier place again, it is opened again."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran = False
    chunks: tuple[int, ...] | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, box: Any) -> Array:
        if box is Ellipsis:
            box = tuple(slice(0, n) for n in self.shape)
        room = np.empty(math.prod(files.extent_of(box)) * self.dtype.itemsize, np.uint8)
        return self.read(box, room)

    def read(self, box: Box, room: Array) -> Array:
        """The numbers in a box, at the beginning of `room` (an array of bytes), in the order of the file."""
        raise NotImplementedError

    def stop(self) -> None:
        """End a call of `read` in another thread that waits for what does not come."""

    def close(self) -> None:
        """Close the file."""


class _NpyStream(Sequential):
    """An array in the format of .npy files that comes from a stream."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start()

    def _open(self) -> BinaryIO:
        """The stream, at its beginning."""
        raise NotImplementedError

    def _take(self, count: int) -> bytes:
        """So many bytes, or fewer if the stream ends."""
        found = b""
        while len(found) < count and (part := self._stream.read(count - len(found))):
            found += part
        return found

    def _start(self) -> None:
        with ExitStack() as failed:
            try:
                self._stream = self._open()
                failed.callback(self.close)
                start = self._take(10)
                if start[:6] != files.MAGIC:
                    raise RunError(f"{self.path} is no array in the format of .npy files")
                if start[6:7] != b"\x01":
                    start += self._take(2)
                length = int.from_bytes(start[8:], "little")
                start += self._take(min(length, LONGEST_HEADER))
                self.shape, self.fortran, self.dtype, _ = files.header(start)
            except ValueError as error:
                raise RunError(f"{self.path} is no valid array in the format of .npy files: {error}") from None
            except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
                raise RunError(f"{self.path} cannot be read: {files.reason(error)}") from None
            files.check_objects(self.path, self.dtype)
            failed.pop_all()
        self._place, self._size = 0, math.prod(self.shape) * self.dtype.itemsize

    def _fill(self, start: int, view: memoryview) -> None:
        """The bytes from `start` on."""
        if start < self._place:
            self.close()
            self._start()
        try:
            while self._place < start:
                self._place += self._count(len(self._stream.read(min(SKIPPED, start - self._place))))
            while len(view):
                count = self._count(self._stream.readinto(view))  # type: ignore[attr-defined]
                self._place += count
                view = view[count:]
            if self._place == self._size:
                self._stream.read(1)  # at the end of a member of an archive, its checksum is compared
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise RunError(f"{self.path} cannot be read: {files.reason(error)}", BROKEN) from None

    def _count(self, count: int) -> int:
        if not count:
            missing = files.in_words(self._size - self._place)
            raise RunError(f"{self.path} ends too early: the last {missing} are missing", BROKEN)
        return count

    def read(self, box: Box, room: Array) -> Array:
        return files.filled(self, box, room, files.places(self, box), self._fill)

    def close(self) -> None:
        self._stream.close()


class _Patient(io.RawIOBase):
    """A file descriptor, such as that of a pipe, that is waited for in turns, so that a wait can be ended."""

    def __init__(self, number: int) -> None:
        self.number, self.ended = number, False

    def readinto(self, view: Any) -> int:
        while not select.select([self.number], [], [], TURN)[0]:
            if self.ended:
                return 0
        return os.readv(self.number, [view])


class StandardInput(_NpyStream):
    """An array in the format of .npy files on standard input, which can be read once."""

    def __init__(self) -> None:
        super().__init__(Path("standard input"))

    def stop(self) -> None:
        if isinstance(self._stream, _Patient):
            self._stream.ended = True

    def _open(self) -> BinaryIO:
        stream = getattr(sys.stdin, "buffer", None)
        if stream is None:
            raise RunError("standard input is closed")
        if stream.isatty():
            raise RunError("standard input is a terminal, and no array in the format of .npy files")
        if hasattr(os, "readv"):  # systems where pipes can be waited for
            with suppress(OSError):  # a stream without a descriptor
                return _Patient(stream.fileno())  # type: ignore[return-value]
        return stream  # type: ignore[no-any-return]

    def close(self) -> None:
        """Standard input stays open."""


class _Compressed(_NpyStream):
    """A compressed member of a .npz archive."""

    def __init__(self, archive: Path, member: str, path: Path) -> None:
        self.archive, self.member = archive, member
        super().__init__(path)

    def _open(self) -> BinaryIO:
        with zipfile.ZipFile(self.archive) as opened:  # its file is closed with the member
            return opened.open(self.member)  # type: ignore[return-value]


_BEFORE = 30
"""So many bytes stand before the name and the data of a member of an archive."""


def _member(archive: Path, name: str) -> Sequential | NpyFile:
    """A member of a .npz archive: the one of this name, or without a name the only one."""
    files.open_regular(archive).close()
    try:
        with zipfile.ZipFile(archive) as opened:
            members = {info.filename.removesuffix(".npy"): info for info in opened.infolist()}
            name = _named(archive, name, list(members), "array")
            info = members[name]
            opened.open(info).close()  # compares the entry of the directory with that before the data
        with open(archive, "rb") as file:
            file.seek(info.header_offset)
            before = file.read(_BEFORE)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise RunError(f"{archive} is no valid archive: {files.reason(error)}") from None
    path = archive / name
    if info.compress_type != zipfile.ZIP_STORED:
        return _Compressed(archive, info.filename, path)
    lengths = (int.from_bytes(before[at : at + 2], "little") for at in (26, 28))  # of its name and its notes
    begin = info.header_offset + _BEFORE + sum(lengths)
    return NpyFile(archive, begin, begin + info.file_size, path)


def _named(path: Path, name: str, names: list[str], kind: str) -> str:
    """`name` if it is one of the names in a file, or the only one of them."""
    listed = ", ".join(names) or "nothing"
    if name and name not in names:
        raise RunError(f"{path} has no {kind} {name}, but {listed}")
    if not name and len(names) != 1:
        first = names[0] if names else "NAME"
        raise RunError(f"{path} holds several {kind}s; choose one, such as {path / first}: {listed}")
    return name or names[0]


# --- columns ------------------------------------------------------------------------------------------------


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
        import pyarrow.ipc
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise RunError("Parquet and Arrow files need pyarrow: pip install 'fastsoftmax[arrow]'") from None
    return pa


class Column(Sequential):
    """A column of a Parquet or Arrow file: numbers, or lists of fixed size, which may be nested."""

    def __init__(self, file: Path, name: str) -> None:
        files.open_regular(file).close()
        self._arrow = _pyarrow()
        self.file = file
        try:
            schema, rows = self._look()
            self.name = _named(file, name, list(schema.names), "column")
            if schema.names.count(self.name) > 1:
                raise RunError(f"{file} has several columns {self.name}")
            kind = schema.field(self.name).type
        except (OSError, self._arrow.ArrowException) as error:
            raise RunError(f"{file} cannot be read: {files.reason(error)}") from None
        self.path = file / self.name
        inner = []
        while self._arrow.types.is_fixed_size_list(kind):
            inner.append(int(kind.list_size))
            kind = kind.value_type
        if not (self._arrow.types.is_boolean(kind) or self._arrow.types.is_primitive(kind)):
            raise RunError(f"{self.path} has the type {kind}, expected numbers or lists of fixed size of them")
        self.shape, self.dtype = (rows, *inner), np.dtype(kind.to_pandas_dtype())
        self._restart()

    def _is_parquet(self) -> bool:
        return self.file.suffix in TABLES

    def _parquet(self) -> Any:
        """The file, read in parts: the pages of a column are not loaded together."""
        return self._arrow.parquet.ParquetFile(str(self.file), buffer_size=BATCH_BYTES, pre_buffer=False)

    def _look(self) -> tuple[Any, int]:
        """The schema, and the number of rows."""
        if self._is_parquet():
            with self._parquet() as opened:
                return opened.schema_arrow, opened.metadata.num_rows
        with self._arrow.memory_map(str(self.file)) as memory:
            schema, batches = self._ipc(memory)
            return schema, sum(batch.num_rows for batch in batches)

    def _ipc(self, stream: Any) -> tuple[Any, Iterator[Any]]:
        """Schema and batches of an Arrow file, or of an Arrow stream that was saved as a file."""
        try:
            opened = self._arrow.ipc.open_file(stream)
        except self._arrow.ArrowInvalid:
            stream.seek(0)
            opened = self._arrow.ipc.open_stream(stream)
            return opened.schema, iter(opened)
        return opened.schema, (opened.get_batch(n) for n in range(opened.num_record_batches))

    def _columns(self) -> Iterator[Any]:
        """The column, one batch after the other."""
        if self._is_parquet():
            row = max(1, math.prod(self.shape[1:]) * self.dtype.itemsize)
            with self._parquet() as opened:
                for batch in opened.iter_batches(max(1, BATCH_BYTES // row), columns=[self.name]):
                    yield batch.column(self.name)
            return
        with self._arrow.OSFile(str(self.file)) as stream:
            for batch in self._ipc(stream)[1]:
                yield batch.column(self.name)

    def _values(self) -> Iterator[Array]:
        """The numbers of one batch after the other."""
        for column in self._columns():
            rows = len(column)
            while True:
                if column.null_count:
                    raise RunError(f"{self.path} has missing values (nulls)", BROKEN)
                if not self._arrow.types.is_fixed_size_list(column.type):
                    break
                column = column.flatten()
            yield column.to_numpy(zero_copy_only=False).reshape(rows, *self.shape[1:])

    def _restart(self) -> None:
        self._batches = self._values()
        self._begin, self._part = 0, self._empty()

    def _empty(self) -> Array:
        return np.empty((0, *self.shape[1:]), self.dtype)

    def read(self, box: Box, room: Array) -> Array:
        block = files.room_of(box, self.dtype, room)
        start, stop = box[0].start, box[0].stop
        if start < self._begin:
            self._restart()
        begin = start
        while begin < stop:
            end = self._begin + len(self._part)
            if begin < end:
                upto = min(stop, end)
                part = self._part[begin - self._begin : upto - self._begin]
                block[begin - start : upto - start] = part[(slice(None), *box[1:])]
                begin = upto
                continue
            try:
                self._part, self._begin = next(self._batches), end
            except StopIteration:
                raise RunError(f"{self.path} became shorter while it was read", BROKEN) from None
            except (OSError, self._arrow.ArrowException) as error:
                raise RunError(f"{self.path} cannot be read: {files.reason(error)}", BROKEN) from None
        return block

    def close(self) -> None:
        self._batches, self._part = iter(()), self._empty()


Source = NpyFile | ZarrArray | Sequential


def source(path: Path) -> Source:
    """The array that a path leads to, opened but not read."""
    if path == STANDARD:
        return StandardInput()
    for file in (path, *path.parents):
        if file.suffix in ARCHIVES + TABLES + ARROW and (file == path or files.kind(file) == files.REGULAR):
            if files.kind(file) == files.DIRECTORY:
                break
            name = path.relative_to(file).as_posix() if file != path else ""
            return _member(file, name) if file.suffix in ARCHIVES else Column(file, name)
    return files.source(path)


# --- standard output ----------------------------------------------------------------------------------------


class StandardOutput:
    """A result in the format of .npy files that goes to standard output, block by block, from its beginning."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool) -> None:
        self.shape, self.dtype = shape, dtype
        self.fortran = fortran and len(shape) > 1
        self._stream = sys.stdout.buffer
        self._begun = False

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            files.write_header(self._stream, self.shape, self.dtype, self.fortran)

    def write(self, box: Box, block: Array) -> None:
        """Write the next block."""
        self._begin()
        self._stream.write(files.bytes_of(block, self.dtype, self.fortran))

    def sync(self) -> None:
        """Write what waits in buffers, and the header of a result without blocks."""
        self._begin()
        self._stream.flush()

    def commit(self) -> None:
        """There is no name to give."""

    revert = settle = discard = commit
