"""Threads: how many, which rows they compute, and failures. test_hazards tests what a host program may do."""

import asyncio
import contextvars
import copy
import gc
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from recorder import CALLER, FIRST_HELPER, MILLISECOND, Recorder

import fastsoftmax as fs
from fastsoftmax.arrays import binary, losses, threads
from fastsoftmax.runtime import teams

LARGE = (20_000, 50)


class Always:
    """In the place of the pause: helpers are woken for every call."""

    def is_over(self, now):
        return True

    def note(self, helped):
        pass


def _forget_numba(monkeypatch):
    """Drop what limits the number of threads through Numba: another test may have started its threads."""
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.delitem(sys.modules, "numba.np.ufunc.parallel", raising=False)


@pytest.fixture
def submissions(monkeypatch):
    """Allows two threads also with one processor, and lists the numbers of threads of shared calls."""
    shared, threads_for = [], threads._threads_for

    def note(rows, work):
        count = threads_for(rows, work)
        if count > 1:
            shared.append(count)
        return count

    monkeypatch.setattr(threads, "_threads_for", note)
    monkeypatch.setattr(threads, "_pause", Always())
    monkeypatch.setattr(threads, "_teams", [])  # nobody waits there
    monkeypatch.setattr(threads, "_last_grant", (0.0, 1))
    monkeypatch.setattr(threads, "_quota", lambda: 2)
    monkeypatch.setattr(threads, "_leave", lambda processor: True)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    _forget_numba(monkeypatch)
    yield shared
    threads._last_grant = (0.0, 1)


def x_of(shape=LARGE):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def run(recorder, rows, work):
    threads.run(recorder, rows, work, recorder.room, *recorder.arguments)


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


@pytest.mark.parametrize(
    "name", ["binary_cross_entropy_with_grad", "binary_focal_loss", "kl_divergence_with_grad", "js_divergence"]
)
def test_the_short_ways_of_expensive_functions_share_their_work(submissions, monkeypatch, name):
    """Those for arrays of middle size, which are taken from the second call on."""
    x, y = np.random.default_rng(0).random((2, 60, 1000))
    with fs.threads(1):
        for _ in range(2):
            serial = getattr(fs, name)(x, y)
    assert not submissions
    monkeypatch.setattr(threads, "run", None)  # what other ways call
    monkeypatch.setattr(binary, "run", None)
    monkeypatch.setattr(losses, "run", None)
    parallel = getattr(fs, name)(x, y)
    assert submissions
    for one, two in zip(*((r if isinstance(r, tuple) else (r,)) for r in (serial, parallel)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_several_threads_take_part(submissions):
    """Helpers compute rows, and the caller does, too."""
    recorder = Recorder(4096, 20 * MILLISECOND, MILLISECOND)
    run(recorder, 4096, 4 << 20)
    assert submissions == [2]
    assert recorder.threads == {CALLER, FIRST_HELPER}
    assert (recorder.times == 1).all()


@pytest.mark.parametrize("rows", [1, 2, 7, 63, 64, 65, 1000, 12345])
@pytest.mark.parametrize("per_row", [1, 100, 1 << 14, 1 << 22])
@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_every_row_is_computed_once(submissions, monkeypatch, rows, per_row, count):
    monkeypatch.setattr(threads, "_quota", lambda: count)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(count)), raising=False)
    recorder = Recorder(rows)
    run(recorder, rows, rows * per_row)
    assert (recorder.times == 1).all()


def _in_a_series(monkeypatch, lasted=1.0):
    """The next call is one of a series that has lasted so long."""
    monkeypatch.setattr(threads, "_last_call", time.perf_counter() + 100.0)
    monkeypatch.setattr(threads, "_series_start", time.perf_counter() - lasted)


def test_calls_that_follow_each_other_are_shared_from_less_work_on(submissions, monkeypatch):
    """Isolated calls of little work, and short series, are the caller's: it takes as long to wake a helper."""
    monkeypatch.setattr(threads, "_helpers", threads._Helpers())
    work = threads.SHARED_WORK
    for last, lasted, expected in ((-1.0, 1.0, 1), (100.0, 0.0, 1), (100.0, 1.0, 2)):
        _in_a_series(monkeypatch, lasted)
        monkeypatch.setattr(threads, "_last_call", time.perf_counter() + last)
        assert threads._threads_for(100, work) == expected
        assert threads._threads_for(100, threads.WAKING_WORK) == 2
    monkeypatch.setattr(threads, "_last_call", time.perf_counter() - 1.0)
    threads._threads_for(100, work)
    assert time.perf_counter() - threads._series_start < 1.0  # a new series has begun


def test_a_call_of_a_series_that_wakes_helpers_waits_for_one(submissions, monkeypatch):
    """So it shares its work at once. Calls of more work go on meanwhile."""
    met, meet = [], threads._Team.meet
    monkeypatch.setattr(threads, "_helpers", threads._Helpers())
    monkeypatch.setattr(threads, "_patience", lambda: 20_000_000)
    monkeypatch.setattr(threads._Team, "meet", lambda team, count: met.append(meet(team, count)))
    _in_a_series(monkeypatch)
    recorder = Recorder(4096, 20 * MILLISECOND, MILLISECOND)
    run(recorder, 4096, threads.SHARED_WORK)
    assert recorder.threads == {CALLER, FIRST_HELPER}
    assert len(met) == 1
    monkeypatch.setattr(threads, "_helpers", threads._Helpers())
    monkeypatch.setattr(threads, "_teams", [])
    run(Recorder(4096), 4096, threads.WAKING_WORK)
    assert len(met) == 1


@pytest.mark.parametrize(("there", "sleeps"), [(2, 0), (1, 1), (0, 2)])
def test_a_caller_that_waits_gives_away_its_processor(monkeypatch, there, sleeps):
    """It first looks for helpers without that, and does not wait for long."""
    team, slept = threads._Team(), []
    team.words[teams.PRESENT] = there

    def sleep(seconds):
        slept.append(seconds)
        team.words[teams.PRESENT] += there

    monkeypatch.setattr(threads, "_patience", lambda: 100)
    monkeypatch.setattr(threads.time, "sleep", sleep)
    team.meet(2)
    assert slept == [threads.AWAY] * sleeps


def test_some_helpers_are_there_and_others_are_coming(submissions, monkeypatch):
    """With one of two, a short call goes on; the second is not woken twice."""
    helpers, asked = threads._Helpers(), []
    monkeypatch.setattr(threads, "_helpers", helpers)
    monkeypatch.setattr(threads, "_quota", lambda: 3)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    monkeypatch.setattr(helpers, "_available", lambda count: asked.append(count) or count)
    monkeypatch.setattr(threads, "_patience", lambda: 100)
    team = threads._Team()
    threads._teams.append(team)
    team.words[teams.PRESENT] = 1
    for _ in range(2):
        run(Recorder(4096), 4096, 2 * threads.SHARED_WORK)
    assert submissions == [3, 3]
    assert asked == [2]
    assert helpers._queue.qsize() == 1


def test_no_helper_is_woken_twice(submissions, monkeypatch):
    """A series of short calls goes on alone while one is on the way; for long work it does not matter."""
    helpers, noted, asked = threads._Helpers(), [], []
    monkeypatch.setattr(threads, "_helpers", helpers)
    monkeypatch.setattr(threads, "_patience", lambda: 100)
    monkeypatch.setattr(helpers, "_available", lambda count: asked.append(count) or count)
    monkeypatch.setattr(threads._pause, "note", noted.append)
    recorder = Recorder(4096)
    for shared in ([2], [2]):
        _in_a_series(monkeypatch)
        run(recorder, 4096, threads.SHARED_WORK)
        assert submissions == shared
    assert asked == [1]
    assert (recorder.times == 2).all()
    run(recorder, 4096, threads.LONG_WORK)
    assert submissions == [2, 2]
    assert noted == [False, False]
    for _ in range(2):
        helpers._queue.get(timeout=1).help()
    _in_a_series(monkeypatch)
    run(recorder, 4096, threads.SHARED_WORK)
    assert submissions == [2, 2, 2]


def test_helpers_wait_for_the_next_call(submissions, monkeypatch):
    """After a call, a helper is there for some time; then it sleeps."""
    monkeypatch.setattr(threads, "_helpers", threads._Helpers())
    monkeypatch.setattr(threads, "_patience", lambda: 20_000_000)
    recorder = Recorder(4096, 20 * MILLISECOND, MILLISECOND)
    run(recorder, 4096, 4 << 20)
    (team,) = threads._teams
    assert team.words[teams.PRESENT] == 1
    asked = []
    monkeypatch.setattr(threads._Helpers, "ask", lambda *given: asked.append(given))
    again = Recorder(4096, 20 * MILLISECOND, MILLISECOND)
    run(again, 4096, 4 << 20)
    assert again.threads == {CALLER, FIRST_HELPER}
    assert not asked  # nobody had to be woken
    deadline = time.monotonic() + 60
    while team.words[teams.PRESENT] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert team.words[teams.PRESENT] == 0


def test_no_helper_is_woken_for_a_while_after_two_that_did_not_help(monkeypatch):
    """The pause is doubled up to a limit, and ends when one has helped; long work does not care.

    What happens meanwhile does not count: a helper that the system has stopped misses many short calls.
    """
    now = [100.0]
    monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])
    pause, lengths = threads._Pause(), []
    pause.note(False)
    assert pause.is_over(now[0])
    for _ in range(8):
        for _ in range(5):
            pause.note(False)
        assert not pause.is_over(now[0])
        lengths.append(next(k for k in range(1, 1000) if pause.is_over(now[0] + 1e-3 * k + 1e-9)))
        now[0] += 1.0
        assert pause.is_over(now[0])
    assert lengths == [1, 2, 4, 8, 10, 10, 10, 10]
    pause.note(False)
    assert not pause.is_over(now[0])
    pause.note(True)
    assert pause.is_over(now[0])
    pause.note(False)
    assert pause.is_over(now[0])
    monkeypatch.setattr(threads, "_pause", pause)
    monkeypatch.setattr(threads, "_teams", [])
    monkeypatch.setattr(threads, "_granted_threads", lambda: 2)
    pause.note(False)
    assert threads._threads_for(100, threads.LONG_WORK - 1) == 1
    assert threads._threads_for(100, threads.LONG_WORK) == 2


def test_a_helper_leaves_the_processor_of_its_caller():
    """It may run on all processors again afterwards."""
    where = threads._processor()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(allowed) < 2 or where() < 0:
        pytest.skip("one processor, or a system that does not say which")
    for _ in range(20):
        here = where()
        assert threads._leave(here)
        assert os.sched_getaffinity(0) == allowed
    assert not threads._leave(-1) or os.sched_getaffinity(0) == allowed


def test_helpers_find_the_kernel_compiled(submissions):
    """The caller asks for its code, once: a helper could wait for a lock that the caller holds."""
    recorder = Recorder(4096, 20 * MILLISECOND, MILLISECOND)
    run(recorder, 4096, 4 << 20)
    ((thread, arguments),) = recorder.asked
    assert thread == threading.get_ident()
    assert arguments[:2] == (0, 4096)
    assert len(recorder.threads) == 2


def test_no_rows():
    """A call without rows computes none."""
    recorder = Recorder(4)
    run(recorder, 0, 0)
    run(recorder, 0, 100 << 20)
    assert not recorder.times.any()


def test_every_thread_has_memory_of_its_own(submissions, monkeypatch):
    """Working memory is allocated by the caller; where there is not enough, fewer threads take part."""
    recorder, rooms = Recorder(4096, 20 * MILLISECOND, MILLISECOND), []
    threads.run(recorder, 4096, 4 << 20, lambda: rooms.append(recorder.room()) or rooms[-1], *recorder.arguments)
    assert len(rooms) == 2
    assert all(room[1] > 0 for room in rooms)

    def scarce():
        if len(rooms) == 3:
            raise MemoryError
        rooms.append(recorder.room())
        return rooms[-1]

    recorder = Recorder(4096, 20 * MILLISECOND, MILLISECOND)
    threads.run(recorder, 4096, 4 << 20, scarce, *recorder.arguments)
    assert recorder.threads == {CALLER}
    assert (recorder.times == 1).all()


def test_callers_share_the_threads(submissions, monkeypatch):
    """While another thread of the program is in a large call, there are fewer for this one."""
    assert threads._threads_for(100, 100 << 20) == 2
    monkeypatch.setattr(threads, "_calls", {1})
    assert threads._threads_for(100, 100 << 20) == 1
    monkeypatch.setattr(threads, "_quota", lambda: 16)
    monkeypatch.setattr(threads, "_last_grant", (0.0, 1))
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert threads._threads_for(100, 100 << 20) == 8


def test_without_machine_code(submissions):
    """Functions of Python, which take the place of kernels under NUMBA_DISABLE_JIT, run in blocks."""
    taken = []

    class Kernel:
        def code(self, arguments):
            return lambda start, stop, room: taken.append((threading.get_ident(), start, stop))

    threads.run(Kernel(), 4096, 4 << 20, lambda: None)
    assert {thread for thread, _, _ in taken} == {threading.get_ident()}
    assert [row for _, start, stop in taken for row in range(start, stop)] == list(range(4096))
    assert len(taken) > 1


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
    _forget_numba(monkeypatch)
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


@pytest.mark.parametrize("classes", [3, 10, 64, 100, 1000, 50_257])
def test_blocks_are_even(classes):
    """Two threads have about the same rows, and blocks are neither large nor, without need, parts of a vector."""
    multiple = threads.ROW_MULTIPLE
    for rows in [*range(1, 300), 1000, 2000, 5000, 10_001, 1_000_000]:
        step = threads.rows_of_block(rows, rows * classes, 2)
        assert step >= 1
        assert step <= multiple or step % multiple == 0
        assert step * classes <= max(threads.BLOCK_WORK, classes)
        whole, rest = divmod(rows, step)
        assert whole + (rest > 0) >= min(rows, 3)
        most = whole // 2 * step + (step if whole % 2 else rest)
        assert most <= 0.56 * rows + multiple / 2
    assert threads.rows_of_block(0, threads.SHARED_WORK, 2) == 1


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
    run(Recorder(1), 1, threads.SHARED_WORK)
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
    monkeypatch.setattr(threads, "_teams", [])  # the helper of the first call may still wait in its team
    monkeypatch.setattr(threads.Thread, "start", refuse)
    np.testing.assert_array_equal(fs.softmax(x), expected)
    assert refused
    monkeypatch.undo()
    np.testing.assert_array_equal(fs.softmax(x), expected)


def test_nobody_works_when_the_call_returns(submissions):
    """The caller waits until the helpers have finished their blocks, also if that takes long."""
    recorder = Recorder(4096, 20 * MILLISECOND, 300 * MILLISECOND)
    run(recorder, 4096, 4 << 20)
    assert recorder.threads == {CALLER, FIRST_HELPER}
    assert (recorder.times == 1).all()
    assert not any(team.words[teams.INSIDE] for team in threads._teams)


def test_a_helper_that_comes_late(submissions, monkeypatch):
    """A helper that was busy with another call finds its job closed, and touches nothing."""
    monkeypatch.setattr(threads._Helpers, "ask", lambda helpers, team, count: True)
    recorder = Recorder(4096)
    run(recorder, 4096, 4 << 20)
    (team,) = threads._teams
    before = list(team.words)
    team.join(team.address, 100, 100)
    assert list(team.words) == before
    assert recorder.threads == {CALLER}


def test_idle_helpers_keep_no_array(submissions):
    """The arrays of a call are freed when its caller deletes them, without garbage collection."""
    recorder = Recorder(4096, 20 * MILLISECOND, MILLISECOND)
    kept = weakref.ref(recorder.times)
    gc.disable()
    try:
        run(recorder, 4096, 4 << 20)
        del recorder
        assert kept() is None
    finally:
        gc.enable()


def test_helpers_serve_the_next_call(submissions, monkeypatch):
    """The same helper serves all calls."""
    monkeypatch.setattr(threads, "_helpers", threads._Helpers())
    for _ in range(5):
        recorder = Recorder(4096, 20 * MILLISECOND, MILLISECOND)
        run(recorder, 4096, 4 << 20)
        assert recorder.threads == {CALLER, FIRST_HELPER}
    assert len(threads._helpers._threads) == 1


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_failure_reaches_the_caller_when_all_have_stopped(submissions, where):
    """No helper may write to the result after the call has raised. The next call is right."""
    recorder = Recorder(4096, MILLISECOND, 20 * MILLISECOND)
    recorder.times[0 if where == "first" else -1] = -1
    with pytest.raises(IndexError, match="kernel access outside its array"):
        run(recorder, 4096, 4 << 20)
    done = recorder.times.copy()
    assert done.max() <= 1
    assert (done == 0).any()
    time.sleep(0.1)
    np.testing.assert_array_equal(recorder.times, done)
    recorder = Recorder(4096)
    run(recorder, 4096, 4 << 20)
    assert (recorder.times == 1).all()


def interrupted(recorder, work, after=(0.05,)):
    """Run a call while another thread interrupts the main one."""

    def interrupt():
        for pause in after:
            time.sleep(pause)
            signal.raise_signal(signal.SIGINT) if os.name == "nt" else os.kill(os.getpid(), signal.SIGINT)

    run(Recorder(16), 16, 1)  # now it is compiled
    other = threading.Thread(target=interrupt)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(recorder, len(recorder.times), work)
    finally:
        while other.is_alive():
            try:
                other.join()
            except KeyboardInterrupt:
                pass


def test_interrupts_leave_everything_usable(submissions):
    """After an interrupt, blocks that have begun are finished, others are dropped, and the next call is right."""
    recorder = Recorder(40_000, MILLISECOND, MILLISECOND)
    interrupted(recorder, 4000 * threads.BLOCK_WORK)
    done = recorder.times.copy()
    assert done.max() == 1
    assert 0 < done.sum() < len(done)
    time.sleep(0.05)
    np.testing.assert_array_equal(recorder.times, done)
    x = x_of()
    with fs.threads(1):
        expected = fs.softmax(x)
    np.testing.assert_array_equal(fs.softmax(x), expected)


def test_an_interrupt_while_the_caller_waits(submissions):
    """Interrupts are held until the helper has finished its block."""
    recorder = Recorder(4096, 20 * MILLISECOND, 600 * MILLISECOND)
    interrupted(recorder, 4 << 20, (0.1, 0.9))
    assert recorder.threads == {CALLER, FIRST_HELPER}
    assert (recorder.times == 1).all()
    assert not any(team.words[teams.INSIDE] for team in threads._teams)
