"""How many threads, and blocks of rows for them.

Kernels are serial and release the GIL. `run` cuts their rows into blocks; the calling thread and helpers, threads
that wait for work, take one after the other until none is left. This survives everything in which Numba's own
parallel loops die or stall: a fork, several Python threads at once, a host that runs OpenMP, a system that grants
no thread (then the caller does it all), a busy machine (where GNU OpenMP spins for milliseconds), Ctrl-C (blocks
take a millisecond). Work is handed over through one queue, which costs 4 us; waking an idle thread is up to the
system. The helpers end before a fork, so that the host still forks as the process with one thread that it was.

No row depends on another, and no kernel on how its rows were cut: results have the same bits for every number
of threads.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator
from contextvars import ContextVar
from functools import lru_cache
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from fastsoftmax.runtime.numba_state import chosen_threads

PARALLEL_WORK = 1 << 17
"""Less work than this (in units of one element of a softmax, about 1 ns) is done by the caller alone."""

BLOCK_WORK = 1 << 18
"""How much work a thread takes at a time: enough to hide the cost of taking, little enough to stop soon."""

ROW_MULTIPLE = 64
"""Blocks are whole multiples of so many rows, so that vectors of rows are full and cache lines not shared."""

RETIREMENT = 0.05
"""How many seconds a fork waits for helpers to end; one that is busy is not waited for any longer."""

UNLIMITED = 1 << 20
CGROUPS = "/sys/fs/cgroup"

_Limit = tuple[int | None, tuple[tuple["_Block", int | None], ...]]
"""The limit in force, and the blocks of `threads` around, each with the limit outside of it."""

_limit: ContextVar[_Limit] = ContextVar("fastsoftmax_threads", default=(None, ()))


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _granted(place: str) -> float:
    """CPUs granted by one cgroup, of version 2 or 1; a large number if it says nothing."""
    try:
        quota, period = _read(f"{place}/cpu.max").split()
    except (OSError, ValueError):
        try:
            quota, period = _read(f"{place}/cpu.cfs_quota_us"), _read(f"{place}/cpu.cfs_period_us")
        except (OSError, ValueError):
            return UNLIMITED
    try:
        granted = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return UNLIMITED
    return granted if granted > 0 else UNLIMITED


@lru_cache(maxsize=1)
def _quota() -> int:
    """CPUs granted by the cgroups of this process, rounded up: the least of its own and of those around it."""
    places = {CGROUPS, f"{CGROUPS}/cpu"}
    try:
        lines = _read("/proc/self/cgroup").splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mounts = [CGROUPS, f"{CGROUPS}/unified"]
        elif "cpu" in controllers.split(","):
            mounts = [f"{CGROUPS}/cpu", f"{CGROUPS}/{controllers}"]
        else:
            continue
        parts = [part for part in path.split("/") if part]
        places.update("/".join([mount, *parts[:depth]]) for mount in mounts for depth in range(len(parts) + 1))
    return max(1, -int(-min(_granted(place) for place in places) // 1))


def max_threads() -> int:
    """How many threads a call may use now.

    The least of: the CPUs that this process may run on, the CPU quota of its container, ``NUMBA_NUM_THREADS``
    and ``numba.set_num_threads`` if these are set, and the innermost `threads` around the call.
    """
    chosen, _ = _limit.get()
    if chosen == 1:
        return 1
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    available = min(available, _quota(), chosen_threads() or UNLIMITED)
    setting = os.environ.get("NUMBA_NUM_THREADS", "")
    if setting.isdigit() and int(setting) > 0:
        available = min(available, int(setting))
    return available if chosen is None else min(available, chosen)


class _Block(ContextDecorator):
    """What `threads` returns: it holds no state of its own, so that one object serves any number of blocks."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __repr__(self) -> str:
        return f"threads({self._n})"

    def _inside(self, around: int | None) -> int:
        """The limit in this block, given the one around it."""
        return self._n if around is None else min(self._n, around)

    def __enter__(self) -> None:
        limit, blocks = _limit.get()
        _limit.set((self._inside(limit), (*blocks, (self, limit))))

    def __exit__(self, *error: object) -> None:
        """Leave the innermost block of this object.

        Blocks in suspended generators may end in any order: those that go on hold without this one. Where the
        context is one in which the block was not entered, as when a generator is closed elsewhere, nothing holds.
        """
        _, blocks = _limit.get()
        places = [place for place, (block, _) in enumerate(blocks) if block is self]
        if not places:
            return
        limit = blocks[places[-1]][1]
        left = list(blocks[: places[-1]])
        for block, _ in blocks[places[-1] + 1 :]:
            left.append((block, limit))
            limit = block._inside(limit)
        _limit.set((limit, tuple(left)))


def threads(n: int) -> _Block:
    """Use at most `n` threads inside the ``with`` block.

    Holds for calls from this thread (and this asyncio task) only; blocks nest, and none allows more than the
    machine or the block around it. ``threads(1)`` makes every call serial. Results do not depend on it. The object
    can be kept and entered again, also inside itself and in several threads and tasks at once, and it decorates
    functions.

    Parameters
    ----------
    n : int
        The greatest number of threads, at least 1.

    Returns
    -------
    context manager
        On leaving the block, the limit is what it was before.

    Raises
    ------
    ValueError
        If `n` is less than 1.
    TypeError
        If `n` is no integer.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> with fs.threads(1):
    ...     p = fs.softmax(np.zeros(4))
    >>> p
    array([0.25, 0.25, 0.25, 0.25])
    """
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"threads: n must be an integer, got {n!r}")
    if n < 1:
        raise ValueError(f"threads: n must be at least 1, got {n}")
    return _Block(int(n))


class _Crew:
    """All who work on one call: the caller, and the helpers that come in time.

    A helper may come late, when all is done. So it is counted when it begins, and from `dismiss` on nobody begins.
    The locks are bare, because only these are taken and released without a gap for Ctrl-C to fall into.
    """

    __slots__ = ("_dismissed", "_last", "_lock", "_pid", "_take", "_working", "blocks", "error")

    def __init__(self, take: Callable[[], None], blocks: Iterator[int]) -> None:
        self.blocks = blocks
        self.error: BaseException | None = None
        self._take: Callable[[], None] | None = take
        self._lock = Lock()
        self._last = Lock()  # held while a helper works
        self._working = 0
        self._dismissed = False
        self._pid = os.getpid()

    def help(self) -> None:
        """Work until nothing is left: what a helper does."""
        with self._lock:
            take = self._take
            if take is None:
                return
            if not self._working:
                self._last.acquire()
            self._working += 1
        try:
            take()
        except BaseException as error:
            self.error = error
            self.cancel()
        finally:
            with self._lock:
                self._working -= 1
                if not self._working:
                    self._last.release()

    def cancel(self) -> None:
        """Leave nothing to take: whoever works stops after the block at hand."""
        for _ in self.blocks:
            pass

    def dismiss(self) -> None:
        """Return when nobody works any more, also on Ctrl-C, which is raised then."""
        interrupted: KeyboardInterrupt | None = None
        while True:
            try:
                with self._lock:
                    self._take = None
                while self._working:
                    if not self._last.acquire(timeout=1.0) and os.getpid() != self._pid:
                        raise RuntimeError("a fork in the middle of a call: its helpers are not in this process")
                break
            except KeyboardInterrupt as interrupt:
                interrupted = interrupt
        if interrupted is not None:
            raise interrupted


class _Helpers:
    """Threads that wait for crews to help. Idle ones cost nothing, and none keeps the interpreter from ending."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Crew | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._retired = False
        self._lock = Lock()

    def _work(self) -> None:
        while (crew := self._queue.get()) is not None:
            crew.help()

    def ask(self, crew: _Crew, count: int) -> None:
        """Ask `count` helpers, or as many of them as the system grants threads."""
        if len(self._threads) < count:
            with self._lock:
                try:
                    while len(self._threads) < count and not self._retired:
                        thread = Thread(target=self._work, name="fastsoftmax", daemon=True)
                        thread.start()
                        self._threads.append(thread)
                except (RuntimeError, MemoryError):  # none can be started, or the interpreter is shutting down
                    pass
        for _ in range(min(count, len(self._threads))):
            self._queue.put(crew)

    def retire(self) -> None:
        """End the threads when they have done what they were asked, but do not wait long for that."""
        if not self._lock.acquire(timeout=RETIREMENT):  # by a signal handler that forks, in the middle of `ask`
            return
        self._retired = True
        threads, self._threads = self._threads, []
        self._lock.release()
        for _ in threads:
            self._queue.put(None)
        for thread in threads:
            thread.join(RETIREMENT / len(threads))


_helpers = _Helpers()
_known_to_threadpoolctl = False


def _introduce() -> None:
    """Make ``threadpoolctl.threadpool_limits`` hold for calls from its thread, as `threads` does.

    That library controls shared libraries, which it finds by their names among those that are loaded. This one has
    none of its own, so the controller goes by the one of NumPy that is always there.
    """
    global _known_to_threadpoolctl
    library = sys.modules.get("threadpoolctl")
    if library is None or _known_to_threadpoolctl:
        return
    _known_to_threadpoolctl = True

    def set_num_threads(self: Any, num_threads: int) -> None:
        _, blocks = _limit.get()
        _limit.set((max(1, int(num_threads)), blocks))

    members = {
        "user_api": "fastsoftmax",
        "internal_api": "fastsoftmax",
        "filename_prefixes": ("_multiarray_umath",),
        "get_num_threads": lambda self: max_threads(),
        "set_num_threads": set_num_threads,
        "get_version": lambda self: None,
    }
    try:
        library.register(type("FastsoftmaxController", (library.LibController,), members))
    except AttributeError:  # a release before 3.2, which knows its own libraries only
        pass


_introduce()


def _before_fork() -> None:
    global _helpers
    former, _helpers = _helpers, _Helpers()
    former.retire()


def _after_fork_in_child() -> None:
    """Whoever else worked is not here, and may have held the lock."""
    global _helpers
    _helpers = _Helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)


def run(kernel: Callable[..., None], rows: int, work: int, room: Callable[[], Any], *args: Any) -> None:
    """Call ``kernel(start, stop, room, *args)`` until all rows are done, on as many threads as the work is worth.

    Every thread calls `room` once, for memory of its own to work in.
    """
    _introduce()
    count = 1 if work < PARALLEL_WORK else min(max_threads(), rows, work // (PARALLEL_WORK // 2))
    if count == 1 and work <= 16 * BLOCK_WORK:
        kernel(0, rows, room(), *args)
        return
    per_row = max(1, work // max(1, rows))
    step = max(1, min(BLOCK_WORK // per_row, rows // (4 * count)))
    if step > ROW_MULTIPLE:
        step -= step % ROW_MULTIPLE
    blocks = iter(range(0, rows, step))  # shared: taking the next one is atomic

    def take(memory: Any) -> None:
        for start in blocks:
            kernel(start, min(start + step, rows), memory, *args)

    # No rows: compiles the kernel, if need be, before helpers call it. They would wait for the compiler's lock,
    # which the caller may have taken long before (a host that computes a constant while Numba compiles for it).
    memory = room()
    kernel(0, 0, memory, *args)
    crew = _Crew(lambda: take(room()), blocks)
    try:
        _helpers.ask(crew, count - 1)
        take(memory)
    finally:
        try:
            crew.cancel()
        finally:
            crew.dismiss()
    if crew.error is not None:
        try:
            raise crew.error
        finally:
            crew.error = None  # else they would keep each other, and the arrays, until the next garbage collection
