"""The disk cache saves compiling. If anything is wrong with it, kernels are compiled, and there is no error."""

import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
import threading
import time

import child
import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import kernels
from fastsoftmax.runtime import cache, numba_private

posix = pytest.mark.skipif(os.name != "posix", reason="modes and owners of POSIX")

# Prints how many functions were compiled, how many kernels came from disk, and the result.
CALL = """
import numba.core.event as event
import numpy as np

recorder = event.RecordingListener()
event.register("numba:compile", recorder)
import fastsoftmax as fs
from fastsoftmax import kernels

p = fs.logsumexp(np.arange(6, dtype=np.float32).reshape(2, 3))
kernel = kernels.activations.logsumexp
compiled = sum(e.is_start for _, e in recorder.buffer)
print(compiled, sum(kernel.stats.cache_hits.values()), p.tolist())
"""
EXPECTED = pytest.approx([2.407605964444380, 5.407605964444380], rel=1e-6)
COMPILED, FROM_DISK = (True, False), (False, True)


def parse(output):
    compiled, hits, result = output.split(maxsplit=2)
    assert json.loads(result) == EXPECTED
    return int(compiled) > 0, int(hits) > 0


def call(directory, **options):
    """Run one kernel in a new process: (compiled or not, taken from disk or not)."""
    return parse(child.run(CALL, FASTSOFTMAX_CACHE_DIR=directory, **options))


def files(directory):
    return sorted(directory.iterdir()) if directory.is_dir() else []


# --- from process to process ---------------------------------------------------------------------------------


def test_the_next_process_compiles_nothing(tmp_path):
    directory = tmp_path / "a" / "cache"
    assert call(directory) == COMPILED
    (path,) = files(directory)
    assert path.name.startswith("activations.logsumexp-")
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


def test_a_directory_that_cannot_be(tmp_path):
    """A directory below a file cannot exist: kernels are compiled in memory, without a message."""
    (tmp_path / "file").write_text("in the way")
    assert call(tmp_path / "file" / "cache") == COMPILED
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("changed", ["kernels/simd/values.py", "_vectors.py"])
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
        os.environ, FASTSOFTMAX_CACHE_DIR=str(tmp_path / "cache"), PYTHONPATH=str(child.PACKAGE.parent)
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


# --- one kernel and its file, in this process ----------------------------------------------------------------


class Kernel:
    """A dispatcher that has not run yet, and the signature of a kernel that has."""

    def __init__(self):
        fs.logsumexp(np.zeros((2, 3), np.float32))
        self.function = kernels.activations.logsumexp.py_func
        self.signature = next(s for s in kernels.activations.logsumexp.signatures if "float32" in str(s))
        self.dispatcher = kernels.jit.kernel(self.function)

    def compile(self):
        """Whether the kernel was compiled or loaded from disk."""
        self.dispatcher.compile(self.signature)
        hits, misses = (sum(c.values()) for c in self.dispatcher.stats[1:])
        return misses > 0, hits > 0

    @property
    def cache(self):
        return self.dispatcher._cache

    def load(self):
        """The code that the cache has for the kernel."""
        return self.cache.load_overload(self.signature, self.dispatcher.targetctx)

    def save(self):
        self.cache.save_overload(self.signature, self.dispatcher.overloads[self.signature])


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A directory with one kernel, and that kernel as it was compiled."""
    kernel = Kernel()
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("filled") / "cache"
        patch.setenv("FASTSOFTMAX_CACHE_DIR", str(directory))
        assert kernel.compile() == COMPILED
    return directory, kernel


@pytest.fixture
def directory(filled, tmp_path, monkeypatch):
    """A copy of it to break."""
    path = shutil.copytree(filled[0], tmp_path / "cache")
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(path))
    return path


@pytest.fixture
def compiled(filled):
    return filled[1]


def test_the_file_is_private(filled):
    """Others can at most read the file, in a directory that only its owner can enter."""
    directory, _ = filled
    (path,) = files(directory)
    if os.name == "posix":
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def test_it_is_loaded(directory):
    """An undamaged file is loaded; in the tests below it must not be."""
    assert Kernel().load() is not None
    assert Kernel().compile() == FROM_DISK


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
WRONG = {"no pickle": b"no pickle", "not a kernel": pickle.dumps(None), "fails": b"cno_such_module\nname\n."}


@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_files_are_not_used(directory, damage):
    (path,) = files(directory)
    path.write_bytes(BROKEN[damage](path.read_bytes()))
    assert Kernel().load() is None


@pytest.mark.parametrize("payload", WRONG)
def test_wrong_contents_with_a_right_checksum(directory, payload):
    (path,) = files(directory)
    path.write_bytes(cache.MAGIC + cache.checksum(path.name, WRONG[payload]) + WRONG[payload])
    assert Kernel().load() is None


def test_a_good_file_under_the_name_of_another(directory, compiled):
    """A copied or linked file holds the code of another kernel, and is not used."""
    kernel = Kernel()
    (path,) = files(directory)
    content = path.read_bytes()
    path.rename(path.with_name("other"))
    kernel.cache._name = "activations.another"
    kernel.cache.path(kernel.signature, kernel.dispatcher.targetctx).write_bytes(content)
    assert kernel.load() is None


def test_damaged_files_are_not_unpickled(directory, monkeypatch):
    """Flipped bits can crash an unpickler, so that the checksum is compared first."""
    (path,) = files(directory)
    path.write_bytes(flip(path.read_bytes(), 1000))
    monkeypatch.setattr(numba_private.pickle, "loads", lambda payload: pytest.fail("unpickled"))
    assert Kernel().load() is None


def test_a_file_in_the_place_of_a_directory(directory, compiled):
    (path,) = files(directory)
    path.unlink()
    path.mkdir()
    assert Kernel().load() is None
    compiled.save()
    assert path.is_dir()
    assert files(directory) == [path]


@posix
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_directory_that_others_can_write_to(directory, compiled, mode):
    """The files are pickles, which can run code. So a valid one there is not read, and none is written."""
    directory.chmod(mode)
    assert Kernel().load() is None
    files(directory)[0].unlink()
    compiled.save()
    assert not files(directory)
    directory.chmod(0o700)
    compiled.save()
    assert len(files(directory)) == 1


@posix
def test_a_directory_of_somebody_else(directory, compiled, monkeypatch):
    owner = directory.stat().st_uid
    monkeypatch.setattr(cache.os, "geteuid", lambda: owner + 1)
    assert Kernel().load() is None
    files(directory)[0].unlink()
    compiled.save()
    assert not files(directory)


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can write everywhere")
def test_a_directory_that_is_not_writable(directory, compiled):
    """Read, but not written."""
    directory.chmod(0o500)
    try:
        assert Kernel().load() is not None
        compiled.save()
    finally:
        directory.chmod(0o700)
    assert len(files(directory)) == 1


@posix
@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_a_file_that_others_can_write_to(directory, mode):
    """In a directory that only became private later."""
    (path,) = files(directory)
    path.chmod(mode)
    assert Kernel().load() is None
    path.chmod(0o644)
    assert Kernel().load() is not None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that have a name")
def test_a_pipe_in_the_place_of_a_file(directory):
    """Reading must not wait for a writer of the pipe."""
    (path,) = files(directory)
    path.unlink()
    os.mkfifo(path)
    kernel, loaded = Kernel(), []
    reader = threading.Thread(target=lambda: loaded.append(kernel.load()), daemon=True)
    reader.start()
    reader.join(10)
    assert loaded == [None]


def test_a_directory_that_vanishes(directory, compiled):
    shutil.rmtree(directory)
    assert Kernel().load() is None
    compiled.save()
    assert len(files(directory)) == 1


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
"""


@posix
def test_a_disk_that_is_really_full(tmp_path):
    """The system refuses a write in the middle of the file."""
    output = child.run(FULL + CALL, FASTSOFTMAX_CACHE_DIR=tmp_path / "cache")
    assert parse(output) == COMPILED
    assert not files(tmp_path / "cache")


@pytest.mark.parametrize("step", ["Path.mkdir", "tempfile.mkstemp", "os.fdopen", "os.replace"])
def test_a_full_disk(tmp_path, compiled, monkeypatch, step):
    """At whatever step the disk fills up, there is no exception and no unfinished file."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path / "cache"))
    module, name = step.split(".")
    with monkeypatch.context() as patch:
        patch.setattr(getattr(cache, module), name, full)
        compiled.save()
    assert not files(tmp_path / "cache")
    compiled.save()
    assert len(files(tmp_path / "cache")) == 1


def test_another_configuration_is_compiled(directory, monkeypatch):
    """Settings that change the code change the name of its file, and no others do."""
    import numba

    def name():
        cache.stamp.cache_clear()
        kernel = Kernel()
        return kernel.cache.path(kernel.signature, kernel.dispatcher.targetctx).name

    try:
        usual = name()
        assert usual == files(directory)[0].name
        changes = [
            (numba.config, "OPT", 1),
            (numba.config, "BOUNDSCHECK", 1),
            (numba.config, "CPU_NAME", "generic"),
        ]
        changes += [(numba, "__version__", "0.0"), (sys, "version", "3.0"), (np, "__version__", "0.0")]
        for owner, setting, value in changes:
            with monkeypatch.context() as patch:
                patch.setattr(owner, setting, value)
                assert name() != usual, setting
        for setting in ("NUMBA_NUM_THREADS", "THREADING_LAYER"):
            with monkeypatch.context() as patch:
                patch.setattr(numba.config, setting, "other")
                assert name() == usual, setting
    finally:
        cache.stamp.cache_clear()


def test_another_processor_is_compiled_for(directory, monkeypatch):
    """Machines may share a home directory."""
    kernel = Kernel()
    codegen = type(kernel.dispatcher.targetctx.codegen())
    monkeypatch.setattr(codegen, "magic_tuple", lambda self: ("a", "processor", "of another kind"))
    assert kernel.load() is None


def test_signatures_have_files_of_their_own(directory):
    kernel = Kernel()
    fs.logsumexp(np.zeros((2, 3)))
    (double,) = (s for s in kernels.activations.logsumexp.signatures if "float64" in str(s))
    context = kernel.dispatcher.targetctx
    assert kernel.cache.path(double, context) != kernel.cache.path(kernel.signature, context)


@pytest.mark.parametrize("gone", ["_reduce", "_rebuild"])
def test_private_api_that_is_gone(directory, compiled, monkeypatch, gone):
    """With another release of Numba the cache is not used, and everything else works."""
    from numba.core.compiler import CompileResult

    (path,) = files(directory)
    if gone == "_reduce":
        path.unlink()
    monkeypatch.delattr(CompileResult, gone)
    assert Kernel().load() is None
    compiled.save()
    assert files(directory) == ([] if gone == "_reduce" else [path])


def test_serialisation_that_is_gone(directory, compiled, monkeypatch):
    from numba.core import serialize

    files(directory)[0].unlink()
    monkeypatch.delattr(serialize, "dumps")
    compiled.save()
    assert not files(directory)


def test_switched_off(directory, compiled):
    """The cache can be switched off, as Numba's own."""
    kernel = Kernel()
    kernel.cache.disable()
    assert kernel.load() is None
    kernel.cache.enable()
    assert kernel.load() is not None
    assert kernel.cache.cache_path == str(directory)


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


def test_the_size_is_bounded(directory, compiled, monkeypatch):
    """The files that were not used for longest are removed until the rest fits. Files of others stay."""
    (path,) = files(directory)
    size = path.stat().st_size
    old = [put(directory, f"old-{age}{cache.SUFFIX}", 1000, age) for age in (400, 300, 200, 100)]
    other = put(directory, "other", 10_000, 1000)
    monkeypatch.setattr(cache, "LIMIT", size + 2500)
    compiled.save()
    assert files(directory) == sorted([path, old[2], old[3], other])
    monkeypatch.setattr(cache, "LIMIT", 10)
    compiled.save()
    assert files(directory) == sorted([path, other])  # the newest file stays in any case


def test_what_is_used_is_kept(directory, compiled, monkeypatch):
    """The time of a file is that of its last use, to the day, so that reading writes at most once a day."""
    (path,) = files(directory)
    for days, kept in ((0.9, True), (1.1, False)):
        then = time.time() - days * 86_400
        os.utime(path, (then, then))
        assert Kernel().load() is not None
        assert (path.stat().st_mtime == pytest.approx(then, abs=1)) == kept


def test_files_that_were_never_finished(directory, compiled):
    """Files of a process that was killed while it wrote are removed; those that are being written stay."""
    (path,) = files(directory)
    put(directory, f"dead{cache.UNFINISHED}", 10, 2 * cache.STALE)
    alive = put(directory, f"alive{cache.UNFINISHED}", 10, 1)
    compiled.save()
    assert files(directory) == sorted([alive, path])


def test_tidying_up_that_fails(directory, compiled, monkeypatch):
    """Another process may remove a file first, or removing it may be forbidden. Neither is an error."""
    put(directory, f"dead{cache.UNFINISHED}", 10, 2 * cache.STALE)
    put(directory, f"old{cache.SUFFIX}", 10, 100)
    monkeypatch.setattr(cache, "LIMIT", 10)

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(cache.Path, "unlink", refuse)
    compiled.save()
    assert len(files(directory)) == 3
    assert cache.clear() == (0, 0)


def test_clear(directory):
    put(directory, f"dead{cache.UNFINISHED}", 10, 0)
    other = put(directory, "other", 10, 0)
    files_before, bytes_before = cache.size()
    assert files_before == 1
    assert cache.clear() == (1, bytes_before)
    assert files(directory) == [other]


def test_flush_forgets_one_kernel(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path))
    for name in ("activations.softmax-1", "activations.softmax-2", "activations.logsumexp-1"):
        (tmp_path / f"{name}{cache.SUFFIX}").touch()
    kernels.activations.softmax._cache.flush()
    assert [path.name for path in files(tmp_path)] == [f"activations.logsumexp-1{cache.SUFFIX}"]


def test_closures_are_not_kept(monkeypatch, tmp_path):
    """Two closures may differ in what they hold, which is in no source file and so not in the key."""
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path))
    results = []
    for factor in (2.0, 3.0):

        @kernels.jit.kernel
        def scale(x, factor=factor):
            return x * factor

        results.append(scale(np.float64(1.0)))

        @kernels.jit.kernel
        def closure(x):
            return x * factor  # noqa: B023, called before the next turn

        results.append(closure(np.float64(1.0)))
    assert results == [2.0, 2.0, 3.0, 3.0]
    assert not files(tmp_path)


def test_closures_over_kernels_and_numbers_are_kept_apart(monkeypatch, tmp_path):
    """The sources cover what is in their cells, so that its names and values in the key are enough."""
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path))
    scalar = kernels.scalar

    def call(function, factor):
        def chosen(x):
            return function(x) * factor

        chosen.__module__, chosen.__qualname__ = "fastsoftmax.kernels.loops", "chosen"
        return kernels.jit.kernel(chosen)(np.float64(0.5))

    choices = [(scalar.exp, 1.0), (scalar.expm1, 1.0), (scalar.exp, 2.0)]
    expected = [np.exp(0.5), np.expm1(0.5), 2 * np.exp(0.5)]
    for _ in range(2):
        np.testing.assert_allclose([call(*choice) for choice in choices], expected, rtol=1e-15)
        assert len(files(tmp_path)) == 3
    call(kernels.jit.inline(lambda x: x), 1.0)  # a function of this file
    call(scalar.exp, np.float32(1.0))  # a value of another kind
    assert len(files(tmp_path)) == 3


def test_numba_without_our_attribute(monkeypatch):
    """A dispatcher that has no `_cache` is used as it is."""
    from fastsoftmax.kernels import jit

    class Dispatcher:
        __slots__ = ("function",)

        def __init__(self, function):
            self.function = function

    monkeypatch.setattr(jit, "njit", lambda **options: Dispatcher)
    assert isinstance(jit.kernel(jit.remember), Dispatcher)
