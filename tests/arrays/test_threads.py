"""Threads: how many, which rows they compute, and failures. test_hazards tests what a host program may do."""

import asyncio
import contextvars
import copy
import gc
import itertools
import os
import pickle
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax.arrays import threads

LARGE = (20_000, 50)


@pytest.fixture
def submissions(monkeypatch):
    """Allows two threads also on a machine with one processor, and lists the tasks for helpers."""
    asked = []
    ask = threads._Helpers.ask

    def note(helpers, crew, count):
        if count:
            asked.append(crew)
        ask(helpers, crew, count)

    monkeypatch.setattr(threads._Helpers, "ask", note)
    monkeypatch.setattr(threads, "_quota", lambda: 2)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    return asked


def x_of(shape=LARGE):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


class Ready:
    """A function in the place of a kernel, which needs no compilation."""

    def __init__(self, function):
        self.function = function

    def code(self, arguments):
        return self.function


class Recorder:
    """A kernel that records which thread computes which rows."""

    def __init__(self, pause=0.0):
        self.calls, self.pause = [], pause

    def code(self, arguments):
        return self

    def __call__(self, start, stop, memory):
        if stop == 0:
            return  # no rows
        self.calls.append((threading.get_ident(), start, stop))
        time.sleep(self.pause)

    @property
    def threads(self):
        return {thread for thread, _, _ in self.calls}


# --- who works -----------------------------------------------------------------------------------------------


def test_large_arrays_are_shared_and_small_ones_are_not(submissions):
    """The size of the work decides, and both branches run."""
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
    """Helpers compute rows, and the caller does, too."""
    recorder = Recorder(pause=0.005)
    threads.run(recorder, 4096, 4 << 20, lambda: None)
    assert len(recorder.threads) == 2
    assert threading.get_ident() in recorder.threads


@pytest.mark.parametrize("rows", [1, 2, 7, 63, 64, 65, 1000, 12345])
@pytest.mark.parametrize("per_row", [1, 100, 1 << 14, 1 << 22])
def test_every_row_is_computed_once(submissions, rows, per_row):
    recorder = Recorder()
    threads.run(recorder, rows, rows * per_row, lambda: None)
    done = sorted((start, stop) for _, start, stop in recorder.calls)
    assert done[0][0] == 0
    assert done[-1][1] == rows
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(done))
    assert all(start < stop for start, stop in done)


def test_helpers_find_the_kernel_compiled(submissions):
    """The caller asks for its code, once: a helper could wait for a lock that the caller holds."""
    recorder, asked = Recorder(0.002), []

    class Kernel:
        def code(self, arguments):
            asked.append((threading.get_ident(), arguments, len(submissions), len(recorder.calls)))
            return recorder

    threads.run(Kernel(), 4096, 4 << 20, lambda: None)
    assert asked == [(threading.get_ident(), (0, 4096, None), 0, 0)]
    assert len(recorder.threads) == 2


def test_no_rows():
    """A call without rows runs the kernel at most with an empty block."""
    recorder = Recorder()
    threads.run(recorder, 0, 0, lambda: None)
    assert not recorder.calls


def test_every_thread_has_memory_of_its_own(submissions):
    seen = {}
    lock = threading.Lock()

    def kernel(start, stop, memory):
        with lock:
            seen.setdefault(threading.get_ident(), set()).add(id(memory))
        time.sleep(0.002)

    rooms = []
    threads.run(Ready(kernel), 4096, 4 << 20, lambda: rooms.append([]) or rooms[-1])
    assert len(seen) == len(rooms) == 2
    assert all(len(ids) == 1 for ids in seen.values())
    assert len(set.union(*seen.values())) == 2


def test_many_callers_at_once(submissions):
    """Calls from several Python threads get their own results."""
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
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(threads, "_quota", lambda: 1 << 20)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    # Another test of this process may have started Numba's threads and set their number.
    monkeypatch.delitem(sys.modules, "numba.np.ufunc.parallel", raising=False)
    return monkeypatch


def test_threads_nest_and_restore(sixteen):
    assert threads.max_threads() == 16
    with fs.threads(8):
        assert threads.max_threads() == 8
        with fs.threads(12):
            assert threads.max_threads() == 8
        with fs.threads(1):
            assert threads.max_threads() == 1
        assert threads.max_threads() == 8
    assert threads.max_threads() == 16
    with fs.threads(100):
        assert threads.max_threads() == 16
    with fs.threads(np.int64(3)):
        assert threads.max_threads() == 3


def test_threads_restore_after_an_exception(sixteen):
    with pytest.raises(KeyError), fs.threads(2):
        raise KeyError
    assert threads.max_threads() == 16


def test_one_object_serves_any_number_of_blocks(sixteen):
    """Entered again, inside itself, inside others, and after an exception. Each end restores the old limit."""
    two, five = fs.threads(2), fs.threads(5)
    for _ in range(2):
        with five:
            for _ in range(2):
                with two:
                    assert threads.max_threads() == 2
                    with two, five:
                        assert threads.max_threads() == 2
                    assert threads.max_threads() == 2
                assert threads.max_threads() == 5
            with five, pytest.raises(KeyError), two:
                raise KeyError
            assert threads.max_threads() == 5
        assert threads.max_threads() == 16
    assert repr(two) == "threads(2)"
    with pickle.loads(pickle.dumps(two)), copy.deepcopy(five):
        assert threads.max_threads() == 2
    assert threads.max_threads() == 16


def test_one_object_in_several_threads(sixteen):
    """Two threads are inside at the same time, and leave one after the other."""
    two, together = fs.threads(2), threading.Barrier(2)
    gone = threading.Event()

    def visit(first):
        before = threads.max_threads()
        with two, two:
            together.wait(10)
            if not first:
                assert gone.wait(10)
            inside = threads.max_threads()
        after = threads.max_threads()
        gone.set()
        return before, inside, after

    with ThreadPoolExecutor(2) as callers:
        assert list(callers.map(visit, [True, False])) == [(16, 2, 16)] * 2


def test_one_object_in_several_tasks(sixteen):
    """Tasks of asyncio take turns inside, and leave in any order."""
    two = fs.threads(2)

    async def visit(turns):
        seen = [threads.max_threads()]
        with two:
            for _ in range(turns):
                await asyncio.sleep(0)
                seen.append(threads.max_threads())
        await asyncio.sleep(0)
        return [*seen, threads.max_threads()]

    async def everyone():
        return await asyncio.gather(*(visit(turns) for turns in (3, 1, 2)))

    assert asyncio.run(everyone()) == [[16, 2, 2, 2, 16], [16, 2, 16], [16, 2, 2, 16]]


@pytest.mark.parametrize("same", [False, True])
def test_blocks_of_generators_end_in_any_order(sixteen, same):
    """A generator shares the context of its caller. A block that ends early removes only its own limit."""

    def inside(block):
        with block:
            yield threads.max_threads()

    three = fs.threads(3)
    blocks = [fs.threads(8), three, three if same else fs.threads(3), fs.threads(5)]
    generators = [inside(block) for block in blocks]
    assert [next(generator) for generator in generators] == [8, 3, 3, 3]
    limits = []
    for place in (1, 0, 2, 3):
        generators[place].close()
        limits.append(threads.max_threads())
    assert limits == [3, 3, 5, 16]


def test_a_block_that_ends_in_another_context(sixteen):
    """A generator is closed in another context, whose limits stay."""

    def inside():
        with fs.threads(3):
            yield

    generator = inside()
    contextvars.copy_context().run(next, generator)
    assert threads.max_threads() == 16
    with fs.threads(5):
        generator.close()
        assert threads.max_threads() == 5
    assert threads.max_threads() == 16


def test_threads_decorate(sixteen):
    """Also recursive functions."""

    @fs.threads(2)
    def count(depth):
        return [threads.max_threads(), *(count(depth - 1) if depth else [])]

    assert count(2) == [2, 2, 2]
    assert count(0) == [2]
    assert threads.max_threads() == 16


def test_the_number_is_checked_where_it_is_given():
    """It is checked when `threads(n)` is called, not when the block is entered."""
    with pytest.raises(ValueError, match="at least 1"):
        fs.threads(0)
    with pytest.raises(TypeError, match="an integer"):
        fs.threads(1.5)


def test_threads_hold_for_the_caller_only(sixteen):
    """A limit in one Python thread does not hold in another, as documented."""
    with fs.threads(2), ThreadPoolExecutor(1) as other:
        assert other.submit(threads.max_threads).result() == 16
        assert threads.max_threads() == 2


@pytest.mark.parametrize(
    ("setting", "expected"), [("3", 3), ("40", 16), ("0", 16), ("", 16), ("many", 16), ("-2", 16)]
)
def test_numba_num_threads(sixteen, setting, expected):
    sixteen.setenv("NUMBA_NUM_THREADS", setting)
    assert threads.max_threads() == expected


def test_quota_limits(sixteen):
    sixteen.setattr(threads, "_quota", lambda: 3)
    assert threads.max_threads() == 3


def test_numba_set_num_threads(sixteen):
    """It is read only if it was set: reading starts Numba's threads, which makes forks unsafe on GNU OpenMP."""

    class Layer:
        _is_initialized = False
        get_num_threads = None

    def gone():
        raise RuntimeError("Invalid number of threads")

    sixteen.setitem(sys.modules, "numba.np.ufunc.parallel", Layer)
    sixteen.setattr(Layer, "get_num_threads", lambda: pytest.fail("started"))
    assert threads.max_threads() == 16
    sixteen.setattr(Layer, "_is_initialized", True)
    sixteen.setattr(Layer, "get_num_threads", lambda: 3)
    assert threads.max_threads() == 3
    sixteen.setattr(Layer, "get_num_threads", gone)
    assert threads.max_threads() == 16
    sixteen.delattr(Layer, "_is_initialized")
    assert threads.max_threads() == 16
    sixteen.delitem(sys.modules, "numba.np.ufunc.parallel")
    assert threads.max_threads() == 16


def test_threadpoolctl(sixteen):
    """Its limits hold in the thread that sets them, as those of `threads` do."""
    threadpoolctl = pytest.importorskip("threadpoolctl", minversion="3.2")
    threads.run(Recorder(), 0, 0, lambda: None)
    (found,) = (entry for entry in threadpoolctl.threadpool_info() if entry["user_api"] == "fastsoftmax")
    assert found["num_threads"] == 16
    with threadpoolctl.threadpool_limits(3):
        assert threads.max_threads() == 3
        with ThreadPoolExecutor(1) as other:
            assert other.submit(threads.max_threads).result() == 16
        with fs.threads(2), fs.threads(8):
            assert threads.max_threads() == 2
        assert threads.max_threads() == 3
    assert threads.max_threads() == 16
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert threads.max_threads() == 16


def test_threadpoolctl_without_controllers(monkeypatch):
    """Old releases cannot register controllers. There is no error."""
    monkeypatch.setitem(sys.modules, "threadpoolctl", sys)
    monkeypatch.setattr(threads, "_known_to_threadpoolctl", False)
    threads._introduce()


def test_machines_without_affinity(sixteen):
    sixteen.delattr(threads.os, "sched_getaffinity")
    sixteen.setattr(threads.os, "cpu_count", lambda: 5)
    assert threads.max_threads() == 5
    sixteen.setattr(threads.os, "cpu_count", lambda: None)
    assert threads.max_threads() == 1


V2, V1 = "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_{}_us"
OWN = "/proc/self/cgroup"


def nested(path, quota):
    return {f"/sys/fs/cgroup/{path}/cpu.max": f"{quota} 100000\n"}


def nested_v1(mount, path, quota):
    place = f"/sys/fs/cgroup/{mount}/{path}/cpu.cfs_"
    return {f"{place}quota_us": f"{quota}\n", f"{place}period_us": "100000\n"}


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
        ({V2: "200000 0\n"}, 1 << 20),
        # of nested groups the least quota holds
        ({OWN: "0::/a/b\n", **nested("a/b", 300000)}, 3),
        ({OWN: "0::/a/b\n", **nested("a/b", 300000), **nested("a", 200000)}, 2),
        ({OWN: "0::/a/b\n", **nested("a/b", "max"), **nested("a", 150000), V2: "400000 100000\n"}, 2),
        ({OWN: "0::/a/b\n", **nested("a/b/c", 100000)}, 1 << 20),
        ({OWN: "0::/../../elsewhere\n", V2: "400000 100000\n"}, 4),
        ({OWN: "1:name=systemd:/\n0::/s\n", **nested("unified/s", 300000)}, 3),
        ({OWN: "4:cpu,cpuacct:/docker/x\n0::/\n", **nested_v1("cpu,cpuacct", "docker/x", 250000)}, 3),
        ({OWN: "4:cpu:/docker/x\n0::/\n", **nested_v1("cpu", "docker", 250000)}, 3),
        ({OWN: "4:cpuset:/docker/x\n", **nested_v1("cpu", "docker/x", 250000)}, 1 << 20),
        ({OWN: "nonsense\n"}, 1 << 20),
    ],
)
def test_container_quotas(monkeypatch, tmp_path, files, expected):
    """The quota of the container limits the threads. Numba counts the processors of the machine."""

    def fake_open(path):
        if path not in files:
            raise FileNotFoundError(path)
        place = tmp_path / "file"
        place.write_text(files[path])
        return place.open()

    monkeypatch.setattr(threads, "open", fake_open, raising=False)
    assert threads._quota.__wrapped__() == expected


# --- what fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_no_thread_can_be_started(submissions, monkeypatch, error):
    """If starting fails with "RuntimeError: can't start new thread", the caller computes all rows."""
    x = x_of()
    expected = fs.softmax(x)

    def refuse(thread):
        refused.append(thread)
        raise error

    refused = []
    monkeypatch.setattr(threads, "_helpers", threads._Helpers())
    monkeypatch.setattr(threads.Thread, "start", refuse)
    np.testing.assert_array_equal(fs.softmax(x), expected)
    assert refused
    monkeypatch.undo()
    np.testing.assert_array_equal(fs.softmax(x), expected)


def test_nobody_works_when_the_call_returns(submissions):
    """The caller waits until the helpers have finished their blocks."""
    caller, working, helped = threading.get_ident(), [], []

    def kernel(start, stop, memory):
        working.append(start)
        if threading.get_ident() == caller:
            time.sleep(0.01)
        else:
            helped.append(start)
            time.sleep(0.3)
        working.remove(start)

    threads.run(Ready(kernel), 4096, 4 << 20, lambda: None)
    assert helped
    assert not working


def test_a_helper_that_comes_late(submissions, monkeypatch):
    """A helper that was busy with another call finds its task done, and touches no array."""
    rooms, late = [], []
    monkeypatch.setattr(threads._Helpers, "ask", lambda helpers, crew, count: late.append(crew))
    threads.run(Recorder(), 4096, 4 << 20, lambda: rooms.append(None))
    (crew,) = late
    crew.help()
    assert len(rooms) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_idle_helpers_keep_no_array(submissions, fails):
    """The arrays of a call are freed when its caller deletes them, without garbage collection."""
    x = x_of()
    kept, caller, failed = weakref.ref(x), threading.get_ident(), []

    def kernel(start, stop, memory, x):
        time.sleep(0.005)
        if fails and threading.get_ident() != caller:
            failed.append(start)
            raise MemoryError

    gc.disable()
    try:
        with pytest.raises(MemoryError) if fails else nullcontext():
            threads.run(Ready(kernel), 4096, 4 << 20, lambda: None, x)
        assert len(failed) == fails
        del submissions[:], x, kernel
        deadline = time.monotonic() + 10
        while kept() is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert kept() is None
    finally:
        gc.enable()


def test_helpers_serve_the_next_call(submissions):
    """The same helper thread serves all calls."""
    recorder = Recorder(pause=0.002)
    for _ in range(5):
        threads.run(recorder, 4096, 4 << 20, lambda: None)
    assert len(recorder.threads) == 2
    assert sum(thread.name == "fastsoftmax" for thread in threading.enumerate()) <= max(1, (os.cpu_count() or 1))


def test_a_failure_in_a_helper_reaches_the_caller_when_all_have_stopped(submissions, monkeypatch):
    """A helper may fail for lack of memory. No helper may write to the result after the call has raised."""
    monkeypatch.setattr(threads, "_quota", lambda: 3)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
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
        threads.run(Ready(kernel), 4096, 4 << 20, room)
    assert failed
    assert not working


def test_interrupts_leave_everything_usable(submissions):
    """After an interrupt, blocks that have begun are finished, others are dropped, and the next call is right."""
    caller, done = threading.get_ident(), []

    def kernel(start, stop, memory):
        time.sleep(0.005)
        if threading.get_ident() == caller and len(done) > 2:
            raise KeyboardInterrupt
        done.append(start)

    with pytest.raises(KeyboardInterrupt):
        threads.run(Ready(kernel), 40_000, 400 << 20, lambda: None)
    count = len(done)
    assert 2 < count < 200
    time.sleep(0.05)
    assert len(done) == count
    x = x_of()
    with fs.threads(1):
        expected = fs.softmax(x)
    np.testing.assert_array_equal(fs.softmax(x), expected)
