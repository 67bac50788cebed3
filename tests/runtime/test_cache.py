"""The disk cache saves compiling. If anything is wrong with it, kernels are compiled, and there is no error."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import child
import llvmlite
import numpy as np
import pytest

from fastsoftmax.machine import frontend, jit, targets
from fastsoftmax.machine.entry import entry
from fastsoftmax.runtime import cache

posix = pytest.mark.skipif(os.name != "posix", reason="modes and owners of POSIX")

# Prints whether a kernel was compiled, whether one came from disk, and the result. Only a compilation needs Numba.
CALL = """
import sys
import numpy as np
import fastsoftmax as fs
from fastsoftmax.runtime.cache import ObjectFile

found, load = [], ObjectFile.load

def noted(self):
    found.append(load(self))
    return found[-1]

ObjectFile.load = noted
p = fs.logsumexp(np.arange(6, dtype=np.float32).reshape(2, 3))
print(int("numba" in sys.modules), sum(code is not None for code in found), p.tolist())
"""
EXPECTED = pytest.approx([2.407605964444380, 5.407605964444380], rel=1e-6)
COMPILED, FROM_DISK = (True, False), (False, True)


def parse(output):
    compiled, hits, result = output.split(maxsplit=2)
    assert json.loads(result) == EXPECTED
    return int(compiled) > 0, int(hits) > 0


def call(directory, **options):
    """Run one kernel in a new process: (compiled or not, taken from disk or not)."""
    return parse(child.run(CALL, FASTSOFTMAX_CACHE_DIR=directory, FASTSOFTMAX_PREBUILT=0, **options))


def files(directory):
    return sorted(directory.iterdir()) if directory.is_dir() else []


# --- from process to process ---------------------------------------------------------------------------------


def test_the_next_process_compiles_nothing(tmp_path):
    directory = tmp_path / "a" / "cache"
    assert call(directory) == COMPILED
    (path,) = files(directory)
    assert path.name.startswith("activations.logsumexp.f.iiaaa-")
    assert path.suffix == cache.SUFFIX
    before = path.stat().st_mtime_ns
    assert call(directory) == FROM_DISK
    assert files(directory) == [path]
    assert path.stat().st_mtime_ns == before
    # a damaged file is replaced
    path.write_bytes(path.read_bytes()[:-1])
    assert call(directory) == COMPILED
    assert files(directory) == [path]
    assert call(directory) == FROM_DISK
    # the number of threads does not change the code
    assert call(directory, NUMBA_NUM_THREADS=1, NUMBA_THREADING_LAYER="workqueue") == FROM_DISK


STAMP = """
import sys
{}
from fastsoftmax.machine import targets
from fastsoftmax.runtime import cache
print(cache.stamp(), targets.this_process())
assert ("numba" in sys.modules) == {}
"""


@pytest.mark.parametrize("settings", [{}, {"NUMBA_OPT": 1, "NUMBA_BOUNDSCHECK": 1, "NUMBA_CPU_NAME": "generic"}])
def test_files_are_found_whether_numba_is_imported_or_not(settings):
    """Settings are read by Numba if it is imported, else from the environment: both mean the same."""
    before, after = (child.run(STAMP.format(*form), **settings) for form in (("", False), ("import numba", True)))
    assert before == after
    assert (before == child.run(STAMP.format("", False))) == (not settings)


def test_a_directory_that_cannot_be(tmp_path):
    """A directory below a file cannot exist: kernels are compiled in memory, without a message."""
    (tmp_path / "file").write_text("in the way")
    assert call(tmp_path / "file" / "cache") == COMPILED
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("changed", ["kernels/simd/values.py", "machine/wrappers.py", "_vectors.py"])
def test_changed_sources_are_compiled(tmp_path, changed):
    """What the file of a kernel imports: Numba's own cache would not notice."""
    package = shutil.copytree(
        child.PACKAGE, tmp_path / "fastsoftmax", ignore=shutil.ignore_patterns("__pycache__")
    )
    directory = tmp_path / "cache"
    assert call(directory, path=tmp_path) == COMPILED
    assert call(directory, path=tmp_path) == FROM_DISK
    with (package / changed).open("a") as source:
        source.write("\n# a change\n")
    assert call(directory, path=tmp_path) == COMPILED
    assert len(files(directory)) == 2


@pytest.mark.parametrize("count", [4, pytest.param(32, marks=pytest.mark.slow)])
def test_processes_that_start_together(tmp_path, count):
    """All compile and write the same file. Their results and the file are right."""
    variables = dict(
        os.environ,
        FASTSOFTMAX_CACHE_DIR=str(tmp_path / "cache"),
        FASTSOFTMAX_PREBUILT="0",
        PYTHONPATH=str(child.PACKAGE.parent),
    )
    running = [
        subprocess.Popen([sys.executable, "-c", CALL], env=variables, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for process in running:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0
        parse(output)
    assert len(files(tmp_path / "cache")) == 1
    assert call(tmp_path / "cache") == FROM_DISK


# --- one file, in this process -------------------------------------------------------------------------------

NAME = "activations.logsumexp.f.iiaaa"
CODE = bytes(range(256)) * 16


def kept(name=NAME, target=None):
    return cache.ObjectFile(name, target or targets.this_process())


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A directory with one file, to break."""
    path = tmp_path / "a" / "cache"
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(path))
    kept().save(CODE)
    return path


def test_the_file_is_private(directory):
    """Others can at most read the file, in a directory that only its owner can enter."""
    (path,) = files(directory)
    if os.name == "posix":
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def test_it_is_loaded(directory):
    """An undamaged file is loaded; in the tests below it must not be."""
    assert kept().load() == CODE


def flip(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


BROKEN = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "header only": lambda content: content[: cache.HEADER],
    "longer": lambda content: content + b"\0",
    "a bit of the code": lambda content: flip(content, len(content) // 2),
    "the last bit": lambda content: flip(content, len(content) - 1),
    "a bit of the checksum": lambda content: flip(content, len(cache.MAGIC) + 5),
    "another format": lambda content: content.replace(b"fastsoftmax-", b"fastsoftmax+", 1),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_files_are_not_used(directory, damage):
    (path,) = files(directory)
    path.write_bytes(BROKEN[damage](path.read_bytes()))
    assert kept().load() is None


def test_a_good_file_under_the_name_of_another(directory):
    """A copied or linked file holds the code of another kernel, and is not used."""
    (path,) = files(directory)
    other = kept("activations.another.f.iiaaa")
    other.path().write_bytes(path.read_bytes())
    assert other.load() is None
    assert kept().load() == CODE


def test_damaged_files_are_not_given_to_llvm(directory, monkeypatch):
    """Flipped bits can crash it, or run: the kernel is compiled, and its file replaced."""
    (path,) = files(directory)
    path.write_bytes(flip(path.read_bytes(), 1000))
    monkeypatch.setattr(jit, "_made", {})
    monkeypatch.setattr(frontend, "module", lambda variant: variant)
    monkeypatch.setattr(targets, "object_code", lambda module, target: b"compiled " + module)
    assert jit.object_code(NAME, lambda: b"again") == b"compiled again"
    assert kept().load() == b"compiled again"


def test_a_file_in_the_place_of_a_directory(directory):
    (path,) = files(directory)
    path.unlink()
    path.mkdir()
    assert kept().load() is None
    kept().save(CODE)
    assert path.is_dir()
    assert files(directory) == [path]


@posix
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_directory_that_others_can_write_to(directory, mode):
    """The files are code. So a valid one there is not read, and none is written."""
    directory.chmod(mode)
    assert kept().load() is None
    files(directory)[0].unlink()
    kept().save(CODE)
    assert not files(directory)
    directory.chmod(0o700)
    kept().save(CODE)
    assert len(files(directory)) == 1


@posix
def test_a_directory_of_somebody_else(directory, monkeypatch):
    owner = directory.stat().st_uid
    monkeypatch.setattr(cache.os, "geteuid", lambda: owner + 1)
    assert kept().load() is None
    files(directory)[0].unlink()
    kept().save(CODE)
    assert not files(directory)


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can write everywhere")
def test_a_directory_that_is_not_writable(directory):
    """Read, but not written."""
    directory.chmod(0o500)
    try:
        assert kept().load() is not None
        kept().save(CODE)
    finally:
        directory.chmod(0o700)
    assert len(files(directory)) == 1


@posix
@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_a_file_that_others_can_write_to(directory, mode):
    """In a directory that only became private later."""
    (path,) = files(directory)
    path.chmod(mode)
    assert kept().load() is None
    path.chmod(0o644)
    assert kept().load() is not None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that have a name")
def test_a_pipe_in_the_place_of_a_file(directory):
    """Reading must not wait for a writer of the pipe."""
    (path,) = files(directory)
    path.unlink()
    os.mkfifo(path)
    loaded = []
    reader = threading.Thread(target=lambda: loaded.append(kept().load()), daemon=True)
    reader.start()
    reader.join(10)
    assert loaded == [None]


def test_a_directory_that_vanishes(directory):
    shutil.rmtree(directory)
    assert kept().load() is None
    kept().save(CODE)
    assert len(files(directory)) == 1


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
"""


@posix
def test_a_disk_that_is_really_full(tmp_path):
    """The system refuses a write in the middle of the file."""
    output = child.run(FULL + CALL, FASTSOFTMAX_CACHE_DIR=tmp_path / "cache", FASTSOFTMAX_PREBUILT=0)
    assert parse(output) == COMPILED
    assert not files(tmp_path / "cache")


@pytest.mark.parametrize("step", ["Path.mkdir", "tempfile.mkstemp", "os.fdopen", "os.replace"])
def test_a_full_disk(tmp_path, monkeypatch, step):
    """At whatever step the disk fills up, there is no exception and no unfinished file."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path / "cache"))
    owner, name = step.split(".")
    with monkeypatch.context() as patch:
        patch.setattr({"Path": Path, "tempfile": tempfile, "os": os}[owner], name, full)
        kept().save(CODE)
    assert not files(tmp_path / "cache")
    kept().save(CODE)
    assert len(files(tmp_path / "cache")) == 1


def test_another_configuration_is_compiled(directory, monkeypatch):
    """Settings that change the code change the name of its file, and no others do."""
    import numba

    def name():
        for known in (cache.stamp, targets.this_process):
            known.cache_clear()
        return kept().path().name

    try:
        usual = name()
        assert usual == files(directory)[0].name
        changes = [
            (numba.config, "OPT", 1),
            (numba.config, "BOUNDSCHECK", 1),
            (numba.config, "CPU_NAME", "generic"),
            (numba.config, "CPU_FEATURES", "+avx2"),
            (numba, "__version__", "0.0"),
            (llvmlite, "__version__", "0.0"),
            (sys, "byteorder", "middle"),
        ]
        for owner, setting, value in changes:
            with monkeypatch.context() as patch:
                patch.setattr(owner, setting, value)
                assert name() != usual, setting
                assert kept().load() is None
        others = [
            (numba.config, "NUMBA_NUM_THREADS", 7),
            (numba.config, "THREADING_LAYER", "other"),
            (sys, "version", "3.0"),
            (np, "__version__", "0.0"),
        ]
        for owner, setting, value in others:
            with monkeypatch.context() as patch:
                patch.setattr(owner, setting, value)
                assert name() == usual, setting
    finally:
        name()


def test_another_processor_is_compiled_for(directory):
    """Machines may share a home directory."""
    target = targets.this_process()
    for change in ({"triple": "other"}, {"processor": "other"}, {"features": "+other"}, {"here": False}):
        assert kept(target=target._replace(**change)).load() is None
    assert kept(target=target).load() == CODE


def test_variants_have_files_of_their_own(directory):
    names = [variant.name for variant in entry("losses.soft_cross_entropy").variants()]
    assert len(names) > 4
    assert len({kept(name).path() for name in names}) == len(names)


# --- where it is -----------------------------------------------------------------------------------------


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path))
    assert cache.directory() == tmp_path
    monkeypatch.delenv("FASTSOFTMAX_CACHE_DIR")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    for platform, expected in (
        ("linux", "/xdg/fastsoftmax"),
        ("darwin", "/home/somebody/Library/Caches/fastsoftmax"),
        ("win32", "/local/fastsoftmax"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        assert cache.directory().as_posix() == expected
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.directory().as_posix() == "/home/somebody/.cache/fastsoftmax"


def test_size(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path))
    assert cache.size() == (0, 0)
    (tmp_path / f"a{cache.SUFFIX}").write_bytes(b"123")
    (tmp_path / f"b{cache.SUFFIX}").write_bytes(b"4567")
    (tmp_path / "unrelated").write_bytes(b"89")
    assert cache.size() == (2, 7)
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path / "nowhere"))
    assert cache.size() == (0, 0)


# --- how much there is --------------------------------------------------------------------------------------


def put(directory, name, size, age):
    path = directory / name
    path.write_bytes(bytes(size))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_the_size_is_bounded(directory, monkeypatch):
    """The files that were not used for longest are removed until the rest fits. Files of others stay."""
    (path,) = files(directory)
    size = path.stat().st_size
    old = [put(directory, f"old-{age}{cache.SUFFIX}", 1000, age) for age in (400, 300, 200, 100)]
    other = put(directory, "other", 10_000, 1000)
    monkeypatch.setattr(cache, "LIMIT", size + 2500)
    kept().save(CODE)
    assert files(directory) == sorted([path, old[2], old[3], other])
    monkeypatch.setattr(cache, "LIMIT", 10)
    kept().save(CODE)
    assert files(directory) == sorted([path, other])  # the newest file stays in any case


def test_what_is_used_is_kept(directory, monkeypatch):
    """The time of a file is that of its last use, to the day, so that reading writes at most once a day."""
    (path,) = files(directory)
    for days, same in ((0.9, True), (1.1, False)):
        then = time.time() - days * 86_400
        os.utime(path, (then, then))
        assert kept().load() is not None
        assert (path.stat().st_mtime == pytest.approx(then, abs=1)) == same


def test_files_that_were_never_finished(directory):
    """Files of a process that was killed while it wrote are removed; those that are being written stay."""
    (path,) = files(directory)
    put(directory, f"dead{cache.UNFINISHED}", 10, 2 * cache.STALE)
    alive = put(directory, f"alive{cache.UNFINISHED}", 10, 1)
    kept().save(CODE)
    assert files(directory) == sorted([alive, path])


def test_tidying_up_that_fails(directory, monkeypatch):
    """Another process may remove a file first, or removing it may be forbidden. Neither is an error."""
    put(directory, f"dead{cache.UNFINISHED}", 10, 2 * cache.STALE)
    put(directory, f"old{cache.SUFFIX}", 10, 100)
    monkeypatch.setattr(cache, "LIMIT", 10)

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(Path, "unlink", refuse)
    kept().save(CODE)
    assert len(files(directory)) == 3
    assert cache.clear() == (0, 0)


def test_clear(directory):
    put(directory, f"dead{cache.UNFINISHED}", 10, 0)
    other = put(directory, "other", 10, 0)
    files_before, bytes_before = cache.size()
    assert files_before == 1
    assert cache.clear() == (1, bytes_before)
    assert files(directory) == [other]
