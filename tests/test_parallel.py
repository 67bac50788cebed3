"""Threads: how many, who works, and what survives: forks, failures, Ctrl-C, the end of the interpreter."""

import itertools
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import child
import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import _parallel

LARGE = (20_000, 50)


@pytest.fixture
def submissions(monkeypatch):
    """Two threads even on a machine with one processor; the list of what the pool is asked to do."""
    asked = []
    original = _parallel._helpers

    class Pool:
        def __init__(self, pool):
            self.pool = pool

        def submit(self, work):
            asked.append(work)
            return self.pool.submit(work)

    monkeypatch.setattr(_parallel, "_helpers", lambda count: Pool(original(count)))
    monkeypatch.setattr(_parallel, "_quota", lambda: 2)
    monkeypatch.setattr(_parallel.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    return asked


def x_of(shape=LARGE):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


class Recorder:
    """A kernel that notes who ran which rows."""

    def __init__(self, pause=0.0):
        self.calls, self.pause = [], pause

    def __call__(self, start, stop, memory):
        self.calls.append((threading.get_ident(), start, stop))
        time.sleep(self.pause)

    @property
    def threads(self):
        return {thread for thread, _, _ in self.calls}


# --- who works -----------------------------------------------------------------------------------------------


def test_large_arrays_are_shared_and_small_ones_are_not(submissions):
    """The branch that the size of the work decides: proven to run."""
    fs.softmax(x_of((100, 50)))
    assert not submissions
    fs.softmax(x_of())
    assert submissions


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "cross_entropy_with_grad", "softmax_jvp"])
def test_threads_1_is_serial(submissions, name):
    x = x_of()
    second = {"cross_entropy_with_grad": (np.zeros(len(x), int),), "softmax_jvp": (x,)}.get(name, ())
    with fs.threads(1):
        serial = getattr(fs, name)(x, *second)
    assert not submissions
    parallel = getattr(fs, name)(x, *second)
    assert submissions
    for one, two in zip(*((r if isinstance(r, tuple) else (r,)) for r in (serial, parallel)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_several_threads_take_part(submissions):
    """Not only asked for: they run kernels, and the caller is one of them."""
    recorder = Recorder(pause=0.005)
    _parallel.run(recorder, 4096, 4 << 20, lambda: None)
    assert len(recorder.threads) == 2
    assert threading.get_ident() in recorder.threads


@pytest.mark.parametrize("rows", [1, 2, 7, 63, 64, 65, 1000, 12345])
@pytest.mark.parametrize("per_row", [1, 100, 1 << 14, 1 << 22])
def test_every_row_is_computed_once(submissions, rows, per_row):
    recorder = Recorder()
    _parallel.run(recorder, rows, rows * per_row, lambda: None)
    done = sorted((start, stop) for _, start, stop in recorder.calls)
    assert done[0][0] == 0
    assert done[-1][1] == rows
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(done))
    assert all(start < stop for start, stop in done)


def test_no_rows():
    """An empty block is computed as such, or not at all."""
    recorder = Recorder()
    _parallel.run(recorder, 0, 0, lambda: None)
    assert all(start == stop == 0 for _, start, stop in recorder.calls)


def test_every_thread_has_memory_of_its_own(submissions):
    seen = {}
    lock = threading.Lock()

    def kernel(start, stop, memory):
        with lock:
            seen.setdefault(threading.get_ident(), set()).add(id(memory))
        time.sleep(0.002)

    rooms = []
    _parallel.run(kernel, 4096, 4 << 20, lambda: rooms.append([]) or rooms[-1])
    assert len(seen) == len(rooms) == 2
    assert all(len(ids) == 1 for ids in seen.values())
    assert len(set.union(*seen.values())) == 2


def test_many_callers_at_once(submissions):
    """From several Python threads: each gets its own results."""
    arrays = [x_of() + n for n in range(6)]
    expected = [fs.softmax(x) for x in arrays]
    with ThreadPoolExecutor(6) as callers:
        for _ in range(3):
            for actual, right in zip(callers.map(fs.softmax, arrays), expected, strict=True):
                np.testing.assert_array_equal(actual, right)


# --- how many ------------------------------------------------------------------------------------------------


@pytest.fixture
def sixteen(monkeypatch):
    """A machine with 16 processors and no other limit."""
    monkeypatch.setattr(_parallel.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(_parallel, "_quota", lambda: 1 << 20)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    return monkeypatch


def test_threads_nest_and_restore(sixteen):
    assert _parallel.max_threads() == 16
    with fs.threads(8):
        assert _parallel.max_threads() == 8
        with fs.threads(12):
            assert _parallel.max_threads() == 8
        with fs.threads(1):
            assert _parallel.max_threads() == 1
        assert _parallel.max_threads() == 8
    assert _parallel.max_threads() == 16
    with fs.threads(100):
        assert _parallel.max_threads() == 16
    with fs.threads(np.int64(3)):
        assert _parallel.max_threads() == 3


def test_threads_restore_after_an_exception(sixteen):
    with pytest.raises(KeyError), fs.threads(2):
        raise KeyError
    assert _parallel.max_threads() == 16


def test_threads_hold_for_the_caller_only(sixteen):
    """As documented: a limit in one Python thread is none in another."""
    with fs.threads(2), ThreadPoolExecutor(1) as other:
        assert other.submit(_parallel.max_threads).result() == 16
        assert _parallel.max_threads() == 2


@pytest.mark.parametrize(
    ("setting", "expected"), [("3", 3), ("40", 16), ("0", 16), ("", 16), ("many", 16), ("-2", 16)]
)
def test_numba_num_threads(sixteen, setting, expected):
    sixteen.setenv("NUMBA_NUM_THREADS", setting)
    assert _parallel.max_threads() == expected


def test_quota_limits(sixteen):
    sixteen.setattr(_parallel, "_quota", lambda: 3)
    assert _parallel.max_threads() == 3


def test_machines_without_affinity(sixteen):
    sixteen.delattr(_parallel.os, "sched_getaffinity")
    sixteen.setattr(_parallel.os, "cpu_count", lambda: 5)
    assert _parallel.max_threads() == 5
    sixteen.setattr(_parallel.os, "cpu_count", lambda: None)
    assert _parallel.max_threads() == 1


V2, V1 = "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_{}_us"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({V2: "150000 100000\n"}, 2),
        ({V2: "50000 100000\n"}, 1),
        ({V2: "400000 100000\n"}, 4),
        ({V2: "max 100000\n"}, 1 << 20),
        ({V2: "nonsense\n", V1.format("quota"): "250000\n", V1.format("period"): "100000\n"}, 3),
        ({V1.format("quota"): "200000\n", V1.format("period"): "100000\n"}, 2),
        ({V1.format("quota"): "-1\n", V1.format("period"): "100000\n"}, 1 << 20),
        ({V1.format("quota"): "200000\n"}, 1 << 20),
        ({}, 1 << 20),
    ],
)
def test_container_quotas(monkeypatch, tmp_path, files, expected):
    """Numba counts processors, not what the container may use of them."""

    def fake_open(path):
        if path not in files:
            raise FileNotFoundError(path)
        place = tmp_path / "file"
        place.write_text(files[path])
        return place.open()

    monkeypatch.setattr(_parallel, "open", fake_open, raising=False)
    assert _parallel._quota.__wrapped__() == expected


# --- what fails ----------------------------------------------------------------------------------------------


def test_no_thread_can_be_started(submissions, monkeypatch):
    """ "RuntimeError: can't start new thread": the caller does it all."""
    x = x_of()
    expected = fs.softmax(x)

    class Pool:
        def submit(self, work):
            submissions.append(work)
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_parallel, "_helpers", lambda count: Pool())
    del submissions[:]
    np.testing.assert_array_equal(fs.softmax(x), expected)
    assert submissions


def test_a_helper_that_starts_although_submit_failed(submissions, monkeypatch):
    """ThreadPoolExecutor queues the work before it fails to start a thread for it; a busy one may take it later.

    Nobody may still be working when the call returns.
    """
    caller, begun, working, late = threading.get_ident(), threading.Event(), [], []

    class Pool:
        def submit(self, work):
            late.append(threading.Thread(target=work))
            late[-1].start()
            assert begun.wait(10)
            raise RuntimeError("can't start new thread")

    def kernel(start, stop, memory):
        working.append(start)
        begun.set()
        time.sleep(0.0 if threading.get_ident() == caller else 0.3)
        working.remove(start)

    monkeypatch.setattr(_parallel, "_helpers", lambda count: Pool())
    _parallel.run(kernel, 4096, 4 << 20, lambda: None)
    left = list(working)
    for thread in late:
        thread.join()
    assert late
    assert not left


def test_a_failure_in_a_helper_reaches_the_caller_when_all_have_stopped(submissions, monkeypatch):
    """Memory for a helper's work may be lacking: nobody may write to the result behind the caller's back."""
    monkeypatch.setattr(_parallel, "_quota", lambda: 3)
    monkeypatch.setattr(_parallel.os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    caller, working, failed = threading.get_ident(), [], []

    def room():
        if threading.get_ident() != caller and not failed:
            failed.append(True)
            raise MemoryError("no room")

    def kernel(start, stop, memory):
        working.append(start)
        time.sleep(0.001 if threading.get_ident() == caller else 0.1)
        working.remove(start)

    with pytest.raises(MemoryError, match="no room"):
        _parallel.run(kernel, 4096, 4 << 20, room)
    assert failed
    assert not working


def test_interrupts_leave_everything_usable(submissions):
    """Blocks that nobody has begun are dropped, those under way are waited for, the next call is right."""
    caller, done = threading.get_ident(), []

    def kernel(start, stop, memory):
        time.sleep(0.005)
        if threading.get_ident() == caller and len(done) > 2:
            raise KeyboardInterrupt
        done.append(start)

    with pytest.raises(KeyboardInterrupt):
        _parallel.run(kernel, 40_000, 400 << 20, lambda: None)
    count = len(done)
    assert 2 < count < 200
    time.sleep(0.05)
    assert len(done) == count
    x = x_of()
    with fs.threads(1):
        expected = fs.softmax(x)
    np.testing.assert_array_equal(fs.softmax(x), expected)


INTERRUPT = """
import os, signal, sys, threading, time
import numpy as np
import fastsoftmax as fs

x = np.zeros((2000, 50))
expected = fs.softmax(x)
fs.softmax_jacobian(x[:1])
out = np.empty((100, 700, 700))
logits = np.zeros((100, 700))
fs.softmax_jacobian(logits, out=out)
sent = []

def interrupt():
    time.sleep(0.3)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    while True:
        fs.softmax_jacobian(logits, out=out)
except KeyboardInterrupt:
    print(time.perf_counter() - sent[0])
assert np.array_equal(fs.softmax(x), expected)
assert np.array_equal(fs.softmax_jacobian(logits)[7], fs.softmax_jacobian(logits[7]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c():
    """A real one, in the middle of a loop over half a gigabyte: honoured at once, and everything works after."""
    assert float(child.run(INTERRUPT)) < 1.0


FORK = """
import multiprocessing, os, signal, sys
import numpy as np
import fastsoftmax as fs
from fastsoftmax import _parallel

signal.alarm(100)
_parallel._quota = lambda: 2
os.sched_getaffinity = lambda pid: {0, 1}
x = np.random.default_rng(0).normal(size=(40_000, 50))
expected = fs.softmax(x)
assert _parallel._pool is not None

def work(n):
    assert np.array_equal(fs.softmax(x), expected)
    assert _parallel._pool is not None
    return n

def forked(body):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        body()
        sys.stdout.flush()
        sys.exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status

def child():
    assert _parallel._pool is None
    work(0)

def grandchild():
    work(0)
    forked(child)

if sys.argv[1] == "fork":
    forked(child)
elif sys.argv[1] == "twice":
    forked(grandchild)
else:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(work, range(6)) == list(range(6))
work(0)
print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("way", ["fork", "twice", "pool"])
def test_forks(way):
    """After threads have run: a child, a grandchild and a pool compute with threads of their own, and exit."""
    assert child.run(FORK, way, timeout=120) == "fine\n"


AT_EXIT = """
import atexit
import numpy as np
import fastsoftmax as fs

x = np.random.default_rng(0).normal(size=(40_000, 50))

def late():
    assert np.array_equal(fs.softmax(x), expected)
    print("late")

atexit.register(late)
expected = fs.softmax(x)
"""


def test_at_exit():
    """When the interpreter takes no more work for threads, the caller does it."""
    assert child.run(AT_EXIT) == "late\n"
