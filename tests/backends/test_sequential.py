"""Arrays that `fastsoftmax run` reads or writes from beginning to end: pipes, archives, columns of tables."""

import importlib
import io
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import child
import functions
import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax.backends import files, sequential, stream
from fastsoftmax.metrics import RunningMetrics
from fastsoftmax.tools.cli import main

ROWS, CLASSES = 90, 11


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The working directory is an empty one, and blocks are so small that every file has many."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(stream, "SCATTERED", 1)
    monkeypatch.setattr(files, "LEAST_STRETCH", 1 << 5)
    monkeypatch.setattr(sequential, "BATCH_BYTES", 1 << 9)


def logits(shape=(ROWS, CLASSES), dtype=np.float32):
    return (3 * np.random.default_rng(7).normal(size=shape)).astype(dtype)


def labels(x):
    return functions.labels_for(x.shape, -1, None)


def run(*arguments, status=0):
    assert main(["run", *map(str, arguments)]) == status


def packed(array):
    """The array in the format of .npy files."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def pipe(monkeypatch, capfdbinary):
    """A function that runs a command with bytes on standard input; it returns standard output and error."""

    def call(data, *arguments, status=0):
        source = io.TextIOWrapper(io.BytesIO(data))
        monkeypatch.setattr(sys, "stdin", source)
        run(*arguments, status=status)
        sys.stdout.flush()
        found = capfdbinary.readouterr()
        return found.out, found.err.decode()

    return call


# --- standard input and output --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, ">f8"])
def test_a_pipe(dtype, pipe):
    """Nothing but the result is written to standard output; the summary goes to standard error."""
    x = logits(dtype=dtype)
    out, err = pipe(packed(x), "softmax", "-", "-o", "-")
    expected = fs.softmax(x)
    assert out == packed(expected)
    assert re.fullmatch(r"softmax: .* -> standard output\n", err)


def test_results_of_every_shape_go_to_standard_output(pipe):
    x = logits((6, 7, 5), np.float64)
    out, _ = pipe(packed(x), "logsumexp", "-", "-o", "-", "--axis", 1)
    assert out == packed(np.asarray(fs.logsumexp(x, 1)))
    out, _ = pipe(packed(x), "softmax-jacobian", "-", "-o", "-")
    assert out == packed(fs.softmax_jacobian(x))
    out, _ = pipe(packed(x[:0]), "softmax", "-", "-o", "-")
    assert out == packed(x[:0])
    np.save("y.npy", labels(x))
    out, _ = pipe(
        packed(x),
        *["cross-entropy", "-", "--targets", "y.npy", "--reduction", "none", "-o", "-", "--grad", "g.npy"],
    )
    assert out == packed(fs.cross_entropy(x, labels(x), reduction="none"))
    np.testing.assert_array_equal(np.load("g.npy"), fs.cross_entropy_grad(x, labels(x), reduction="none"))


def test_what_is_printed_of_a_pipe(pipe):
    x = logits(dtype=np.float64)
    np.save("y.npy", labels(x))
    out, _ = pipe(packed(x), "cross-entropy", "-", "--targets", "y.npy")
    assert float(out) == fs.cross_entropy(x, labels(x))
    out, _ = pipe(packed(x), "metrics", "-", "--targets", "y.npy")
    assert f"loss                {RunningMetrics().update(x, labels(x)).result().loss}\n" in out.decode()


def test_more_may_follow_on_standard_input(pipe):
    x = logits()
    out, _ = pipe(packed(x) + b"more", "softmax", "-", "-o", "-")
    assert out == packed(fs.softmax(x))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_comes_through_a_pipe(version, pipe):
    x, file = logits(), io.BytesIO()
    np.lib.format.write_array(file, x, version)
    assert pipe(file.getvalue(), "softmax", "-", "-o", "-")[0] == packed(fs.softmax(x))


SPOILED = {
    "nothing": (b"", "standard input is no array in the format of .npy files"),
    "text": (b"1 2 3\n" * 9, "standard input is no array in the format of .npy files"),
    "header": (packed(np.zeros(3))[:40], "standard input is no valid array .*: its header is cut off"),
    "version": (b"\x93NUMPY\x07\x00" + bytes(20), "its version is none of"),
    "long": (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(20), "its header has 2147483647 bytes"),
    "objects": (b"", "standard input holds pickled Python objects"),
    "complex": (packed(np.zeros((3, 2), complex)), "softmax: x has dtype complex128"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_no_array_is_refused(name, pipe):
    data, words = SPOILED[name]
    if name == "objects":
        file = io.BytesIO()
        np.save(file, np.array([[1, None]], object), allow_pickle=True)
        data = file.getvalue()
    out, err = pipe(data, "softmax", "-", "-o", "p.npy", status=2)
    assert out == b""
    assert re.fullmatch(rf"fastsoftmax run: .*{words}.*\n", err)
    assert os.listdir() == []


def test_a_pipe_that_ends_too_early(pipe):
    data = packed(logits())[:-100]
    _, err = pipe(data, "softmax", "-", "-o", "p.npy", status=3)
    assert (
        err
        == "fastsoftmax run: standard input ends too early: the last 100 bytes are missing; p.npy not written\n"
    )
    assert os.listdir() == []
    _out, err = pipe(data, "softmax", "-", "-o", "-", status=3)
    assert err.endswith("100 bytes are missing; standard output is incomplete\n")


def test_what_does_not_come_from_beginning_to_end_is_refused(pipe):
    x = logits((300, 20))
    for array, axis in ((x, 0), (np.asfortranarray(x), -1)):
        _, err = pipe(packed(array), "softmax", "-", "-o", "p.npy", "--axis", axis, status=2)
        assert "standard input is read from beginning to end, but this run needs it in another order" in err
        np.save("x.npy", array)
        out, err = pipe(b"", "softmax", "x.npy", "-o", "-", "--axis", axis, status=2)
        assert "the classes are the slowest axis" in err
        assert out == b""
    # A Fortran-ordered array whose classes are the fastest axis goes through; so does one that is one block.
    out, _ = pipe(packed(np.asfortranarray(x)), "softmax", "-", "-o", "-", "--axis", 0)
    assert out == packed(fs.softmax(np.asfortranarray(x), 0))
    out, _ = pipe(packed(x[:5]), "softmax", "-", "-o", "-", "--axis", 0)
    assert out == packed(fs.softmax(x[:5], 0))


def test_jacobians_of_a_fortran_ordered_array_of_many_axes(pipe):
    """The blocks come in the order of the input, which is not that of the result."""
    x = np.asfortranarray(logits((3, 40, 50)))
    np.save("x.npy", x)
    _, err = pipe(b"", "softmax-jacobian", "x.npy", "-o", "-", "--axis", 0, status=2)
    assert "it needs the name of a file" in err


def test_terminals_and_closed_streams_are_refused(monkeypatch, capsys):
    np.save("x.npy", logits())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    run("softmax", "x.npy", "-o", "-", status=2)
    assert "standard output is a terminal" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    run("softmax", "-", "-o", "p.npy", status=2)
    assert "standard input is closed" in capsys.readouterr().err

    class Terminal:
        buffer = type("Buffer", (), {"isatty": lambda self: True})()

    monkeypatch.setattr(sys, "stdin", Terminal())
    run("softmax", "-", "-o", "p.npy", status=2)
    assert "standard input is a terminal" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdout", None)
    run("softmax", "x.npy", "-o", "-", status=2)
    assert "standard output is closed" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much of a pipe was read")
@pytest.mark.parametrize("size", [5, 20_000], ids=["header", "block"])
def test_an_interrupt_while_a_pipe_is_waited_for(size):
    """The program at the other end of the pipe sends nothing, and does not end."""
    import fcntl
    import termios

    command = [sys.executable, "-m", "fastsoftmax", "run", "softmax", "-", "-o", "p.npy"]
    environment = dict(os.environ, PYTHONPATH=str(child.PACKAGE.parent))
    environment.pop("COVERAGE_PROCESS_START", None)
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(packed(logits((1000, CLASSES)))[:size])
    process.stdin.flush()
    deadline = time.monotonic() + 60
    unread = bytearray(b"\1\0\0\0")  # a number, which Linux fills in
    while any(unread) and time.monotonic() < deadline:
        fcntl.ioctl(process.stdin, termios.FIONREAD, unread)
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr.read() == b"fastsoftmax run: interrupted; p.npy not written\n"
    process.stdin.close()
    process.stderr.close()
    assert os.listdir() == []


def test_a_reader_that_has_seen_enough():
    """The status is 3, and nothing is said."""
    np.save("x.npy", logits((5000, 100)))
    command = [sys.executable, "-m", "fastsoftmax", "run", "softmax", "x.npy", "-o", "-"]
    environment = dict(os.environ, PYTHONPATH=str(child.PACKAGE.parent))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (3, b"")


def test_the_file_of_the_name_of_standard_input_is_read():
    x = logits()
    Path("-").write_bytes(packed(x))
    run("softmax", "./-", "-o", "p.npy")
    np.testing.assert_array_equal(np.load("p.npy"), fs.softmax(x))


# --- archives -------------------------------------------------------------------------------------------------


def archive(compressed, **arrays):
    (np.savez_compressed if compressed else np.savez)("a.npz", **arrays)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_members_of_archives(compressed, order, capsys):
    x = logits()
    archive(compressed, x=np.asarray(x, order=order), y=labels(x), weights=np.arange(ROWS) % 3)
    flags = ("--targets", "a.npz/y", "--sample-weight", "a.npz/weights", "--grad", "g.npy")
    status = 2 if compressed and order == "F" else 0
    run("cross-entropy", "a.npz/x", *flags, status=status)
    if status:
        assert re.search(r"a\.npz/x is read from beginning to end, .*save it as a \.npy", capsys.readouterr().err)
        return
    expected = fs.cross_entropy_grad(x, labels(x), sample_weight=np.arange(ROWS) % 3)
    np.testing.assert_array_equal(np.load("g.npy"), expected)


@pytest.mark.parametrize("compressed", [False, True])
def test_the_only_member_needs_no_name(compressed):
    x = logits((30, 4, 5))
    archive(compressed, x=x)
    run("softmax", "a.npz", "-o", "p.npy", "--axis", 1)
    np.testing.assert_array_equal(np.load("p.npy"), fs.softmax(x, 1))


def test_a_damaged_archive_is_noticed(capsys):
    """The checksum of a compressed member is compared."""
    x = logits((5000, CLASSES))
    with zipfile.ZipFile("a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=0) as opened:
        opened.writestr("x.npy", packed(x))
    content = bytearray(Path("a.npz").read_bytes())
    content[len(content) // 2] ^= 1
    Path("a.npz").write_bytes(content)
    run("softmax", "a.npz", "-o", "p.npy", status=3)
    assert re.search(r"a\.npz/x cannot be read: Bad CRC-32.*; p\.npy not written", capsys.readouterr().err)
    assert os.listdir() == ["a.npz"]


def test_members_that_are_no_arrays_are_refused(capsys):
    x = logits()
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile("a.npz", "w", compression) as opened:
            opened.writestr("text.txt", "1 2 3")
            opened.writestr("cut.npy", packed(x)[:-5])
        run("softmax", "a.npz/text.txt", "-o", "p.npy", status=2)
        assert re.search(r"a\.npz/text\.txt is no (array|\.npy)", capsys.readouterr().err)
        run("softmax", "a.npz/cut", "-o", "p.npy", status=3 if compression else 2)
        assert re.search(r"a\.npz/cut (is truncated|ends too early)", capsys.readouterr().err)
    assert os.listdir() == ["a.npz"]


def test_a_directory_with_the_name_of_an_archive():
    zarr = pytest.importorskip("zarr")
    x = logits()
    zarr.create_array("a.npz/x.zarr", data=x)
    run("softmax", "a.npz/x.zarr", "-o", "p.npy")
    np.testing.assert_array_equal(np.load("p.npy"), fs.softmax(x))


# --- columns of tables ----------------------------------------------------------------------------------------


def save_table(name, columns, rows=20):
    """Save columns in batches of so many rows."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.table(columns)
    if name.endswith(".parquet"):
        parquet.write_table(table, name, row_group_size=rows)
    else:
        new = pa.ipc.new_stream if "stream" in name else pa.ipc.new_file
        with new(name, table.schema) as writer:
            writer.write_table(table, rows)


def lists(array):
    """An array as a column of lists of fixed size."""
    pa = pytest.importorskip("pyarrow")
    column = pa.array(array.reshape(-1))
    for n in array.shape[:0:-1]:
        column = pa.FixedSizeListArray.from_arrays(column, n)
    return column


TABLES = ["t.parquet", "file.arrow", "stream.arrow", "t.feather"]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, bool])
def test_columns(name, dtype, capsys):
    x = logits(dtype=dtype)
    save_table(name, {"x": lists(x), "y": labels(x), "s": np.linspace(0, 1, ROWS)})
    flags = ("--targets", f"{name}/y", "--sample-weight", f"{name}/s", "--grad", "g.npy")
    run("cross-entropy", f"{name}/x", *flags)
    loss, slope = fs.cross_entropy_with_grad(x, labels(x), sample_weight=np.linspace(0, 1, ROWS))
    assert capsys.readouterr().out == str(loss) + "\n"
    np.testing.assert_array_equal(np.load("g.npy"), slope)


@pytest.mark.parametrize("name", TABLES)
def test_nested_lists_and_blocks_inside_of_them(name):
    """A row of the table is larger than a block."""
    x = logits((5, 6, 4, 16), np.float64)
    save_table(name, {"x": lists(x)}, rows=2)
    run("softmax", name, "-o", "p.npy")
    np.testing.assert_array_equal(np.load("p.npy"), fs.softmax(x))
    run("softmax", name, "-o", "p.npy", "--axis", 2, "--force")
    np.testing.assert_array_equal(np.load("p.npy"), fs.softmax(x, 2))


@pytest.mark.parametrize("name", TABLES)
def test_columns_that_are_no_numbers_are_refused(name, capsys):
    pa = pytest.importorskip("pyarrow")
    x = logits()
    ragged = pa.array([[1.0], [2.0, 3.0]] * 45)
    hole = lists(x).to_pylist()
    hole[50] = None
    inner = lists(x).to_pylist()
    inner[50][3] = None
    kind = pa.list_(pa.float32(), CLASSES)
    columns = {"x": lists(x), "ragged": ragged, "text": ["a"] * ROWS}
    save_table(name, columns | {"hole": pa.array(hole, kind), "inner": pa.array(inner, kind)})
    run("softmax", name, "-o", "p.npy", status=2)
    assert f"{name} holds several columns; choose one, such as {name}/x: x, ragged" in capsys.readouterr().err
    run("softmax", f"{name}/z", "-o", "p.npy", status=2)
    assert f"{name} has no column z, but x, ragged, text" in capsys.readouterr().err
    for column in ("ragged", "text"):
        run("softmax", f"{name}/{column}", "-o", "p.npy", status=2)
        assert re.search(rf"{name}/{column} has the type .*, expected numbers or lists", capsys.readouterr().err)
    for column in ("hole", "inner"):
        run("softmax", f"{name}/{column}", "-o", "p.npy", status=3)
        assert f"{name}/{column} has missing values (nulls); p.npy not written" in capsys.readouterr().err
    run("softmax", f"{name}/x", "-o", "p.npy", "--axis", 0, status=2)
    assert "is read from beginning to end" in capsys.readouterr().err
    assert os.listdir() == [name]


@pytest.mark.parametrize("name", TABLES)
def test_files_that_are_no_tables_are_refused(name, capsys):
    pytest.importorskip("pyarrow")
    Path(name).write_text("1 2 3")
    run("softmax", name, "-o", "p.npy", status=2)
    assert re.search(rf"{name} cannot be read: .*", capsys.readouterr().err)
    os.remove(name)
    run("softmax", f"{name}", "-o", "p.npy", status=2)
    assert f"{name} does not exist" in capsys.readouterr().err


def test_arrow_is_an_extra(monkeypatch, capsys):
    Path("t.parquet").write_text("1 2 3")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    run("softmax", "t.parquet", "-o", "p.npy", status=2)
    words = "fastsoftmax run: Parquet and Arrow files need pyarrow: pip install 'fastsoftmax[arrow]'\n"
    assert capsys.readouterr().err == words


def test_pipes_and_columns_are_not_for_workers(capsys, monkeypatch):
    """Workers read parts of a file in any order."""
    pytest.importorskip("distributed")
    archive(True, x=logits())
    run("softmax", "a.npz", "-o", "p.npy", "--scheduler", "tcp://127.0.0.1:9", status=2)
    assert "--scheduler needs files that workers can read in parts, and not" in capsys.readouterr().err


MEMORY = """
import os, sys
os.chdir(sys.argv.pop())
from fastsoftmax.tools.cli import main
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
assert main(["run", "logsumexp", "small" + sys.argv[1], "-o", "y.npy", "--force"]) == 0
before = peak()
assert main(["run", "logsumexp", "large" + sys.argv[1], "-o", "y.npy", "--force"]) == 0
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".arrow"])
def test_memory_does_not_grow_with_the_file(suffix):
    """A file of 160 MB, in Parquet one group of rows, needs less than 100 MB more than a small one."""
    if suffix != ".npz":
        importlib.import_module("pyarrow") if importlib.util.find_spec("pyarrow") else pytest.skip("no pyarrow")
    for name, rows in (("small", 100), ("large", 100_000)):
        x = np.zeros((rows, 400), np.float32)
        x += np.arange(rows, dtype=np.float32)[:, None]
        if suffix == ".npz":
            np.savez_compressed(f"{name}.npz", x=x)
        else:
            save_table(f"{name}{suffix}", {"x": lists(x)}, rows=1000 if suffix == ".arrow" else rows)
    grown = int(child.run(MEMORY, suffix, os.getcwd()))
    assert grown < 100_000


# --- what is on the disk before a name appears ----------------------------------------------------------------


@pytest.fixture
def recorded(monkeypatch):
    """The calls of `os.fsync` and `os.replace`, with the names of files."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def sync(number):
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{number}")))
        fsync(number)

    def rename(source, target):
        calls.append(("replace", os.path.abspath(source)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    return calls


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")


@needs_proc
def test_a_result_is_on_the_disk_before_it_has_its_name(recorded, tmp_path):
    np.save("x.npy", logits())
    np.save("y.npy", labels(logits()))
    flags = ["--targets", "y.npy", "--reduction", "none", "-o", "p.npy", "--grad", "g.npy"]
    run("cross-entropy", "x.npy", *flags)
    here, parts = str(tmp_path), [str(tmp_path / f".{name}.npy.{os.getpid()}.part") for name in "pg"]
    before = [("fsync", parts[0]), ("fsync", here), ("fsync", parts[1]), ("fsync", here)]
    after = [("replace", parts[0]), ("fsync", here), ("replace", parts[1]), ("fsync", here)]
    assert recorded == before + after


@needs_proc
def test_all_chunks_of_a_zarr_array_are_on_the_disk_before_it_has_its_name(recorded, tmp_path):
    pytest.importorskip("zarr")
    np.save("x.npy", logits())
    run("softmax", "x.npy", "-o", "p.zarr")
    part = str(tmp_path / f".p.zarr.{os.getpid()}.part")
    place = recorded.index(("replace", part))
    synced = [name for _, name in recorded[:place]]
    written = [
        os.path.join(part, os.path.relpath(place, "p.zarr"), name)
        for place, _, names in os.walk("p.zarr")
        for name in names
    ]
    assert len(written) > 3
    assert {os.path.normpath(name) for name in written} < set(synced)
    assert synced[-2:] == [part, str(tmp_path)]
    assert recorded[place + 1 :] == [("fsync", str(tmp_path))]


def test_a_disk_that_fails_leaves_nothing(monkeypatch, capsys):
    np.save("x.npy", logits())
    Path("p.npy").write_text("mine")

    def fails(number):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    run("softmax", "x.npy", "-o", "p.npy", "--force", status=3)
    assert capsys.readouterr().err == "fastsoftmax run: Input/output error; p.npy not written\n"
    assert Path("p.npy").read_text() == "mine"
    assert sorted(os.listdir()) == ["p.npy", "x.npy"]


def test_a_file_system_that_cannot_sync_directories(monkeypatch):
    np.save("x.npy", logits())
    fsync = os.fsync

    def files_only(number):
        if os.path.isdir(f"/proc/self/fd/{number}"):
            raise OSError(22, "Invalid argument")
        fsync(number)

    monkeypatch.setattr(os, "fsync", files_only)
    run("softmax", "x.npy", "-o", "p.npy")
    np.testing.assert_array_equal(np.load("p.npy"), fs.softmax(logits()))


def test_the_system_sees_that_order(tmp_path):
    """The calls of the kernel, by strace where it can run."""
    try:
        subprocess.run(["strace", "-o", "trial", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no strace, or it may not trace")
    np.save("x.npy", logits())
    command = [sys.executable, "-m", "fastsoftmax", "run", "softmax", "x.npy", "-o", "p.npy"]
    trace = ["strace", "-f", "-y", "-e", "trace=fsync,rename,renameat,renameat2", "-o", "trace", *command]
    environment = dict(os.environ, PYTHONPATH=str(child.PACKAGE.parent))
    subprocess.run(trace, env=environment, check=True, timeout=120, capture_output=True)
    calls = [re.search(r"\b(fsync|rename\w*)\((.*)", line) for line in Path("trace").read_text().splitlines()]
    found = [(call[1][:6], call[2]) for call in calls if call and str(tmp_path) in call[2]]
    assert [name for name, _ in found] == ["fsync", "fsync", "rename", "fsync"]
    assert ".part>" in found[0][1]
    assert f"{tmp_path.name}>" in found[1][1]
