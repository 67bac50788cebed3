"""How many threads a call uses, and how its rows are divided among them.

Kernels are serial and release the GIL. `run` cuts their rows into blocks. The calling thread and helpers (threads
that wait for work) take blocks until none is left. This works also where Numba's own parallel loops crash or
stall: after a fork, with several Python threads at once, beside OpenMP, if the system starts no thread (the caller
does all work then), on a busy machine (where GNU OpenMP spins for milliseconds), and with Ctrl-C (a block takes a
millisecond). Work is handed over through one queue, which costs 4 us, besides what the system needs to wake a
thread. The helpers end before a fork, so that a process with one thread also forks with one thread.

Rows do not depend on each other, and results do not depend on the blocks: they have the same bits for any number
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
from typing import Any, Protocol

from fastsoftmax.runtime.numba_state import chosen_threads

PARALLEL_WORK = 1 << 19
"""Less work than this is done by the caller alone. The unit is a float32 element of a softmax, about 0.5 ns.

It takes some 25 us until a helper begins, and as long until the caller knows that it has ended. On two threads
of an AMD EPYC, work of less than 250 us took up to a third longer with a helper than without.
"""

BLOCK_WORK = 1 << 18
"""The work of a block: enough to hide the cost of taking it, and so little that a call can stop soon."""

ROW_MULTIPLE = 64
"""Blocks have a multiple of so many rows, so that vectors of rows are full and threads share no cache line."""

RETIREMENT = 0.05
"""How many seconds a fork waits for helpers to end; it goes on even if one is still busy then."""

UNLIMITED = 1 << 20
CGROUPS = "/sys/fs/cgroup"

_Limit = tuple[int | None, tuple[tuple["_Block", int | None], ...]]
"""The current limit, and the `threads` blocks that are open, each with the limit outside of it."""

_limit: ContextVar[_Limit] = ContextVar("fastsoftmax_threads", default=(None, ()))


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _granted(place: str) -> float:
    """CPUs granted by one cgroup, of version 2 or 1; a large number if it sets no limit."""
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
    """CPUs granted by the cgroups of this process, rounded up: the smallest of its own and of those above it."""
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


def usable_cpus() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def max_threads() -> int:
    """How many threads a call may use now.

    The least of: the CPUs that this process may run on, the CPU quota of its container, ``NUMBA_NUM_THREADS``
    and ``numba.set_num_threads`` if these are set, and the innermost `threads` around the call.
    """
    chosen, _ = _limit.get()
    if chosen == 1:
        return 1
    available = min(usable_cpus(), _quota(), chosen_threads() or UNLIMITED)
    setting = os.environ.get("NUMBA_NUM_THREADS", "")
    if setting.isdigit() and int(setting) > 0:
        available = min(available, int(setting))
    return available if chosen is None else min(available, chosen)


class _Block(ContextDecorator):
    """What `threads` returns. It has no state, so that one object can be entered any number of times."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __repr__(self) -> str:
        return f"threads({self._n})"

    def _inside(self, around: int | None) -> int:
        """The limit in this block, from the limit around it."""
        return self._n if around is None else min(self._n, around)

    def __enter__(self) -> None:
        limit, blocks = _limit.get()
        _limit.set((self._inside(limit), (*blocks, (self, limit))))

    def __exit__(self, *error: object) -> None:
        """Leave the innermost block of this object.

        Blocks in suspended generators may end in any order: the limits of the other blocks are computed again. If
        this context did not enter the block (for example a generator that is closed elsewhere), nothing changes.
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

    The limit holds for calls from this thread (and this asyncio task) only. Blocks can be nested; none allows more
    threads than the machine or the block around it. ``threads(1)`` makes every call serial. Results do not depend
    on the limit. The object can be entered again, also inside itself and in several threads and tasks at once, and
    it can decorate functions.

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
        If `n` is not an integer.

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
    """The threads that work on one call: the caller, and the helpers that start in time.

    A helper may start after all work is done. So it is counted when it starts, and none starts after `dismiss`.
    Plain locks are used, because Ctrl-C cannot interrupt their methods halfway.
    """

    __slots__ = ("_last", "_lock", "_pid", "_take", "_working", "blocks", "error")

    def __init__(self, take: Callable[[], None], blocks: Iterator[int]) -> None:
        self.blocks = blocks
        self.error: BaseException | None = None
        self._take: Callable[[], None] | None = take
        self._lock = Lock()
        self._last = Lock()  # held while a helper works
        self._working = 0
        self._pid = os.getpid()

    def help(self) -> None:
        """Take blocks until none is left. Helpers call this."""
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
        """Remove all remaining blocks, so that every thread stops after its current one."""
        for _ in self.blocks:
            pass

    def dismiss(self) -> None:
        """Wait until no helper works, also after Ctrl-C, which is raised at the end."""
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
    """Threads that wait for a crew to help. Idle ones cost nothing, and none keeps the interpreter running."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Crew | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._retired = False
        self._lock = Lock()

    def _work(self) -> None:
        while (crew := self._queue.get()) is not None:
            crew.help()

    def ask(self, crew: _Crew, count: int) -> None:
        """Ask `count` helpers, or fewer if the system starts no more threads."""
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
        """End the threads after the work that they were asked to do, but do not wait long for that."""
        if not self._lock.acquire(timeout=RETIREMENT):  # a signal handler forks in the middle of `ask`
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
    """Make ``threadpoolctl.threadpool_limits`` limit the calls from its thread, as `threads` does.

    threadpoolctl controls shared libraries, which it finds by their names among those that are loaded. fastsoftmax
    has none, so its controller is registered for one of NumPy's, which is always loaded.
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
    except AttributeError:  # a release before 3.2, which can register no others
        pass


_introduce()


def _before_fork() -> None:
    global _helpers
    former, _helpers = _helpers, _Helpers()
    former.retire()


def _after_fork_in_child() -> None:
    """The other threads do not exist in the child, and one of them may have held the lock."""
    global _helpers
    _helpers = _Helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)


class Kernel(Protocol):
    """What `run` needs of a kernel."""

    def code(self, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        """The function for arguments of these types."""


def _unit(args: tuple[Any, ...]) -> int:
    """The work of an element: 2 in float64, else 1."""
    for one in args:
        dtype = getattr(one, "dtype", None)
        if dtype is not None and dtype.kind == "f":
            return int(dtype.itemsize) // 4
    return 1


def run(kernel: Kernel, rows: int, work: int, room: Callable[[], Any], *args: Any) -> None:
    """Call ``kernel(start, stop, room, *args)`` until all rows are done, on as many threads as pay off.

    If the kernel has to be compiled, the caller does that before helpers are asked: they would wait for the
    compiler's lock, which the caller may hold (if Numba is compiling a function and computes a constant of it).

    Every thread calls `room` once, for working memory of its own.
    """
    _introduce()
    work *= _unit(args)
    memory = room()
    code = kernel.code((0, rows, memory, *args))
    count = 1 if work < PARALLEL_WORK else min(max_threads(), rows, work // (PARALLEL_WORK // 2))
    if count == 1 and work <= 16 * BLOCK_WORK:
        code(0, rows, memory, *args)
        return
    per_row = max(1, work // max(1, rows))
    step = max(1, min(BLOCK_WORK // per_row, rows // (4 * count)))
    if step > ROW_MULTIPLE:
        step -= step % ROW_MULTIPLE
    blocks = iter(range(0, rows, step))  # shared: taking the next one is atomic

    def take(memory: Any) -> None:
        for start in blocks:
            code(start, min(start + step, rows), memory, *args)

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
            crew.error = None  # else a reference cycle keeps the arrays until the next garbage collection
