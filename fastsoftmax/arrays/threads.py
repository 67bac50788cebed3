"""How many threads a call uses, and how its rows are divided among them.

Kernels are serial and release the GIL. `run` cuts their rows into blocks. The calling thread and helpers (threads
that wait for work) take blocks in machine code, without the GIL, until none is left (`runtime.teams`). This works
also where Numba's own parallel loops crash or stall: after a fork, with several Python threads at once, beside
OpenMP, if the system starts no thread (the caller does all work then), on a busy machine (where GNU OpenMP spins
for milliseconds), and with Ctrl-C (the caller looks for signals every few milliseconds). The helpers end before a
fork, so that a process with one thread also forks with one thread.

To wake a thread takes 20 to 80 us. So helpers wait in machine code for the next call for `IDLE` seconds before
they sleep: calls that follow each other closely share their work within a microsecond. In a series of short calls
one wakes helpers for those that follow, and waits until they are there. A helper that wakes on the processor of
its caller moves to another one. On a busy machine helpers may come too late, or stop in the middle of a block. If
that happens again and again, none is woken for a while. Calls that run in other threads of the program at the same
time count: all together use as many threads as one alone would.

Rows do not depend on each other, and results do not depend on the blocks: they have the same bits for any number
of threads.
"""

import ctypes
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ContextDecorator
from contextvars import ContextVar
from functools import lru_cache
from itertools import count as numbers_from
from queue import SimpleQueue
from threading import Lock, Thread
from types import BuiltinFunctionType
from typing import Any, Protocol

from fastsoftmax.machine import entry
from fastsoftmax.runtime import teams
from fastsoftmax.runtime.numba_state import chosen_threads

SHARED_WORK = 1 << 14
"""Less work than this is done by the caller alone. The unit is a float32 element of a softmax, about 0.5 ns."""

WAKING_WORK = 1 << 17
"""Less work than this is shared only with helpers that wait for it, or in a series of calls."""

SERIES = 1e-4
"""Calls are a series if so many seconds at most lie between them."""

SERIES_SECONDS = 5e-4
"""How long a series lasts before helpers are woken for short calls. The call that wakes them waits for them, some
300 us at most; so a series loses no more by that than it has taken."""

AWAY = 1e-5
"""How many seconds that call sleeps, twice at most, if no helper comes while it keeps its processor: the system
may have put the helper there. It makes 80 us of it."""

IDLE = 1e-4
"""How many seconds a helper waits for the next call before it sleeps."""

GRANT = 1e-3
"""How many seconds it is relied on that the CPUs of this process are the same; to ask the system takes 2 us."""

LONG_WORK = 1 << 23
"""Helpers are always woken for so much work: it takes milliseconds."""

SHORTEST_PAUSE, LONGEST_PAUSE = 1e-3, 1e-2
"""How long, in seconds, no helper is woken for less work after two did not help; it is doubled each time."""

BLOCK_WORK = 1 << 18
"""The work of a block: enough to hide the cost of taking it, and so little that a call can stop soon."""

AT_ONCE = 16
"""A thread alone does the work of so many blocks without a stop."""

ROW_MULTIPLE = 16
"""Blocks of more rows have a multiple of so many, so that vectors of rows are full."""

GROUP_WORK = 1 << 9
"""What a kernel does once for `ROW_MULTIPLE` rows, or fewer, beside the work of each: some 200 ns."""

MOST_TURNS = 6
"""If there are less than four times `BLOCK_WORK` for each thread, each gets 2 to so many blocks."""

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


def _granted_threads() -> int:
    """The least of this process's CPUs, the CPU quota of its container, and ``NUMBA_NUM_THREADS``."""
    available = min(usable_cpus(), _quota())
    setting = os.environ.get("NUMBA_NUM_THREADS", "")
    return min(available, int(setting)) if setting.isdigit() and int(setting) > 0 else available


def max_threads() -> int:
    """How many threads a call may use now.

    The least of: the CPUs that this process may run on, the CPU quota of its container, ``NUMBA_NUM_THREADS``
    and ``numba.set_num_threads`` if these are set, and the innermost `threads` around the call.
    """
    limit = _limit.get()[0]
    return 1 if limit == 1 else _limited(_granted_threads(), limit)


def _limited(granted: int, limit: int | None) -> int:
    """The least of so many threads, ``numba.set_num_threads`` and the limit of `threads`."""
    chosen = chosen_threads()
    if chosen is not None and chosen < granted:
        granted = chosen
    return granted if limit is None or limit > granted else limit


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


class _Team:
    """The memory through which the threads of one call at a time share its rows; see `runtime.teams`.

    It is never freed, because a helper may be waiting here when the interpreter ends.
    """

    __slots__ = ("_drives", "_meet", "_pid", "address", "join", "words")

    def __init__(self) -> None:
        memory = (ctypes.c_int64 * (teams.WORDS + 8))()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))
        first = -ctypes.addressof(memory) // 8 % 8  # a cache line begins here
        self.words = memoryview(memory).cast("B").cast("q")[first : first + teams.WORDS]
        self.address = ctypes.addressof(memory) + 8 * first
        functions = entry.team()
        self._drives = functions.drive, functions.drive_apart
        self.join, self._meet = functions.join, functions.meet
        self._pid = os.getpid()

    def share(
        self,
        code: Any,
        rows: int,
        step: int,
        rooms: list[Any],
        args: tuple[Any, ...],
        apart: "memoryview[int] | None" = None,
    ) -> bool:
        """Run a kernel's code in blocks of `step` rows, with a helper for each of the `rooms` but the first.

        `apart` describes blocks whose rows lie apart: the words of the team from `AT_ONCE` on. The result says
        whether a helper took part and none was waited for long.
        """
        words, state = self.words, teams.UNFINISHED
        words[teams.DRIVE] = self._drives[apart is not None]  # here, since Ctrl-C may end a call at any point
        if apart is not None:
            words[teams.AT_ONCE : teams.AT_ONCE + len(apart)] = apart
        behind = (rooms[0], *args, self.address, *rooms[1:])
        try:
            state = code(step, rows, *behind)
            while state == teams.UNFINISHED:
                state = code(0, rows, *behind)
        finally:
            if state != teams.FINISHED:
                self._close()
        if words[teams.FAILED]:
            raise IndexError("kernel access outside its array")
        return bool(state == teams.FINISHED and words[teams.SEATED])

    def help(self) -> None:
        """What a helper does that was woken for this team."""
        patience, caller = _patience(), self.words[teams.CALLER]
        beside = caller < 0 or _processor()() != caller or _leave(caller)
        self.join(self.address, patience if beside else 1, patience)

    def meet(self, count: int) -> None:
        """Wait until so many helpers are there, but not for long.

        A helper needs the GIL to come, and short calls one after the other leave it no chance to get it: each
        gives the GIL away and takes it back before a sleeping thread has woken.
        """
        self._meet(self.address, count, _patience())
        for _ in range(2):
            if self.words[teams.PRESENT] >= count:
                break
            time.sleep(AWAY)

    def _close(self) -> None:
        """Drop the blocks that are left, and wait until no helper is inside. Ctrl-C is raised after that."""

        def close() -> None:
            self.words[teams.TAKEN] = teams.ALL
            self.words[teams.JOB] = 0
            time.sleep(0)  # a call of the system: helpers see the above before the words are read again

        _wait(close, lambda: bool(self.words[teams.INSIDE]), self._pid)


def _wait(close: Callable[[], None], occupied: Callable[[], bool], process: int) -> None:
    """Close a job, and wait until no helper is inside. Ctrl-C is raised after that."""
    interrupted: KeyboardInterrupt | None = None
    while True:
        try:
            close()
            while occupied():
                if os.getpid() != process:
                    raise RuntimeError("a fork in the middle of a call: its helpers are not in this process")
                time.sleep(IDLE)
            break
        except KeyboardInterrupt as interrupt:
            interrupted = interrupt
    if interrupted is not None:
        raise interrupted


Task = Callable[[int, Any], None]
"""What is done with a part of a call, which has this number, in working memory of the thread's own."""


class _Crew:
    """The threads of one call whose parts are done in Python, by functions that release the GIL.

    A helper first counts itself as inside and then looks for a seat; the caller first takes the seats away and
    then looks who is inside.
    """

    __slots__ = ("_errors", "_inside", "_next", "_parts", "_pid", "_seats", "_task")

    def __init__(self, parts: int, task: Task, seats: list[Any]) -> None:
        self._parts, self._task, self._seats = parts, task, deque(seats)
        self._next, self._inside, self._errors = numbers_from(), deque[int](), deque[BaseException]()
        self._pid = os.getpid()

    def _work(self, seat: Any) -> None:
        while (part := next(self._next)) < self._parts:
            self._task(part, seat)

    def help(self) -> None:
        """What a helper does that was woken for this crew."""
        self._inside.append(1)
        try:
            try:
                seat = self._seats.pop()
            except IndexError:  # others have taken them, or the job is closed
                return
            self._work(seat)
        except BaseException as error:
            self._errors.append(error)
            self._close()
        finally:
            self._inside.pop()

    def _close(self) -> None:
        self._parts = 0
        self._seats.clear()

    def share(self, seat: Any) -> None:
        """Do parts until none is left, and wait for those of the helpers; an error of one is raised here."""
        try:
            self._work(seat)
        finally:
            try:
                _wait(self._close, lambda: bool(self._inside), self._pid)
            finally:
                del self._task  # its arrays; helpers keep their last job
        if self._errors:
            raise self._errors.pop()


class _Pause:
    """When helpers are woken again after some did not help."""

    def __init__(self) -> None:
        self._failures, self._until = 0, 0.0

    def is_over(self, now: float) -> bool:
        """Whether helpers are woken again."""
        return now >= self._until

    def note(self, helped: bool) -> None:
        """Take note of whether helpers have helped a call; during a pause, it does not count if they have not.

        The system may have stopped those that wait, for a time in which there are many short calls.
        """
        if helped:
            self._failures, self._until = 0, 0.0
        elif self.is_over(now := time.perf_counter()):
            self._failures = min(self._failures + 1, 20)
            if self._failures > 1:
                self._until = now + min(SHORTEST_PAUSE * 2.0 ** (self._failures - 2), LONGEST_PAUSE)


_pause = _Pause()
_teams: list[_Team] = []
"""The teams of no call. The last one is taken first, since helpers may be waiting there."""


@lru_cache(maxsize=1)
def _patience() -> int:
    """How often a helper looks for a job in `IDLE` seconds, measured when it is not interrupted."""
    team, looks, least = _Team(), 200, IDLE
    for _ in range(5):
        begun = time.perf_counter()
        team.join(team.address, looks, looks)
        least = min(least, time.perf_counter() - begun)
    return max(100, min(100_000, int(looks * IDLE / max(least, 1e-7))))


@lru_cache(maxsize=1)
def _processor() -> Callable[[], int]:
    """A function that returns the number of its processor, or -1 where the system does not say."""
    try:
        function: Callable[[], int] = ctypes.PyDLL(None).sched_getcpu
    except (AttributeError, OSError, TypeError):
        return lambda: -1
    return function


def _leave(processor: int) -> bool:
    """Move this thread to another processor that it may run on; whether it could."""
    try:
        allowed = os.sched_getaffinity(0)
        others = allowed - {processor}
        if others:
            os.sched_setaffinity(0, others)
            os.sched_setaffinity(0, allowed)
        return bool(others)
    except (AttributeError, OSError):
        return False


class _Helpers:
    """Threads that wait for a team to help. Idle ones cost nothing, and none keeps the interpreter running."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Team | _Crew | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._retired = False
        self._lock = Lock()

    def _work(self) -> None:
        _patience()
        while (job := self._queue.get()) is not None:
            job.help()

    def _available(self, count: int) -> int:
        """How many helpers there are, up to `count`; threads are started for those who are missing."""
        if len(self._threads) < count:
            with self._lock:
                try:
                    while len(self._threads) < count and not self._retired:
                        thread = Thread(target=self._work, name="fastsoftmax", daemon=True)
                        thread.start()
                        self._threads.append(thread)
                except (RuntimeError, MemoryError):  # none can be started, or the interpreter is shutting down
                    pass
        return min(count, len(self._threads))

    def call(self, crew: _Crew, count: int) -> None:
        """Wake so many helpers, or fewer if no thread can be started."""
        for _ in range(self._available(count)):
            self._queue.put(crew)

    def are_coming(self) -> bool:
        """Whether some were woken that have not begun."""
        return self._queue.qsize() > 0

    def ask(self, team: _Team, count: int) -> bool:
        """Wake helpers until `count` are there, or fewer if no thread can be started; whether one was woken."""
        asleep = self._available(count) - team.words[teams.PRESENT]
        if asleep > 0:
            team.words[teams.CALLER] = _processor()()
            for _ in range(asleep):
                self._queue.put(team)
        return asleep > 0

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
    """The other threads do not exist in the child, and one of them may have held the lock, or been in a team."""
    global _helpers
    _helpers = _Helpers()
    _teams.clear()
    _calls.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)


class Kernel(Protocol):
    """What `run` needs of a kernel."""

    def code(self, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        """The function for arguments of these types."""


def unit(args: tuple[Any, ...]) -> int:
    """The work of an element: 2 in float64, else 1."""
    for one in args:
        dtype = getattr(one, "dtype", None)
        if dtype is not None and dtype.kind == "f":
            return int(dtype.itemsize) // 4
    return 1


_calls: set[object] = set()
"""An item for each call that runs now and is large enough to be shared."""
_last_call = 0.0
"""When the last of them ended."""
_series_start = 0.0
"""When the first of those began that have followed each other closely."""
_last_grant = (0.0, 1)
"""What `_granted_threads` returned last, and when."""


def is_undivided(work: int) -> bool:
    """Whether so much work is done in one piece, by a call that may use the calling thread only."""
    return _limit.get()[0] == 1 and work <= AT_ONCE * BLOCK_WORK


def _threads_for(rows: int, work: int) -> int:
    """How many threads a call of so much work uses, while others may be running."""
    global _last_grant, _series_start
    limit = _limit.get()[0]
    if limit == 1:
        return 1
    now = time.perf_counter()
    if now - _last_call > SERIES:
        _series_start = now
    try:
        waiting = _teams[-1].words[teams.PRESENT] > 0
    except IndexError:
        waiting = False
    if not (waiting or work >= LONG_WORK):
        pays = work >= WAKING_WORK or (now - _series_start >= SERIES_SECONDS and not _helpers.are_coming())
        if not (pays and _pause.is_over(now)):
            return 1
    when, granted = _last_grant
    if now - when > GRANT:
        granted = _granted_threads()
        _last_grant = now, granted
    count = _limited(granted, limit)
    if _calls:
        count //= 1 + len(_calls)
    # The usual case; the calls of min and max take a tenth of the way to a shared call.
    if 2 <= count <= rows and count * SHARED_WORK <= 2 * work and count <= teams.MOST_SEATS:
        return count
    return max(1, min(count, rows, 2 * work // SHARED_WORK, teams.MOST_SEATS + 1))


def run(kernel: Kernel, rows: int, work: int, room: Callable[[], Any], *args: Any) -> None:
    """Call ``kernel(start, stop, room, *args)`` until all rows are done, on as many threads as pay off.

    If the kernel has to be compiled, the caller does that before helpers are asked: they would wait for the
    compiler's lock, which the caller may hold (if Numba is compiling a function and computes a constant of it).

    `room` returns working memory of its own for each thread.
    """
    memory = room()
    run_code(kernel.code((0, rows, memory, *args)), rows, work * unit(args), memory, room, args)


def run_code(
    code: Callable[..., Any],
    rows: int,
    work: int,
    memory: Any,
    room: Callable[[], Any] | None,
    args: tuple[Any, ...],
    apart: "memoryview[int] | None" = None,
) -> None:
    """`run` for a kernel's code; `memory` is the caller's working memory, and float64 counts twice in `work`.

    Without a `room`, the memory has size 0, and serves all threads. Rows that lie apart, as `apart` describes them
    for `_Team.share`, are always run in blocks.
    """
    global _last_call
    if work < SHARED_WORK and apart is None:
        code(0, rows, memory, *args)
        return
    _introduce()
    count, call = _threads_for(rows, work), object()
    try:
        _calls.add(call)
        if count == 1 and work <= AT_ONCE * BLOCK_WORK and apart is None:
            code(0, rows, memory, *args)
        else:
            _run_in_blocks(code, rows, work, [memory] if count == 1 else _rooms(memory, room, count), args, apart)
    finally:
        _calls.discard(call)
        _last_call = time.perf_counter()


def share(parts: int, work: int, seat: Callable[[], Any], task: Task) -> None:
    """Call ``task(part, memory)`` for all parts, on as many threads as pay off.

    `seat` returns working memory of its own for each thread. `task` is a function of Python, which should release
    the GIL most of the time.
    """
    global _last_call
    memory = seat()
    if parts == 1:
        task(0, memory)
        return
    _introduce()
    call = object()
    count = _threads_for(parts, work)
    try:
        _calls.add(call)
        memories = _rooms(memory, seat, count)
        crew = _Crew(parts, task, memories[1:])
        if len(memories) > 1:
            _helpers.call(crew, len(memories) - 1)
        crew.share(memory)
    finally:
        _calls.discard(call)
        _last_call = time.perf_counter()


def _rooms(memory: Any, room: Callable[[], Any] | None, count: int) -> list[Any]:
    """Working memory for so many threads, or for fewer if there is not enough."""
    if room is None:
        return [memory] * count
    found = [memory]
    try:
        while len(found) < count:
            found.append(room())
    except MemoryError:
        pass
    return found


def rows_of_block(rows: int, work: int, count: int) -> int:
    """How many rows a block has if so many threads share a call."""
    return _rows_of_block(rows, work, count, BLOCK_WORK)


@lru_cache(maxsize=256)
def _rows_of_block(rows: int, work: int, count: int, block_work: int) -> int:
    most = max(block_work * rows // work, 1)
    if most < rows // (4 * count):
        return most - most % ROW_MULTIPLE if most > ROW_MULTIPLE else most
    # There are only a few blocks: the thread with most rows decides when the call ends, and a helper may come late
    # by part of a block, for which a quarter of one is added.
    least, chosen, each = math.inf, 1, work / max(rows, 1)
    for turns in range(MOST_TURNS, 1, -1):
        step = -(-rows // (turns * count)) or 1
        groups = -(-step // ROW_MULTIPLE)
        if groups > 1:
            step = groups * ROW_MULTIPLE
        if step > most:
            break
        whole, rest = divmod(rows, step)
        share = whole // count * step + (step if whole % count else rest)
        cost = (share + step / 4) * (each + groups * GROUP_WORK / step)
        if cost < least:
            least, chosen = cost, step
    return chosen


def _wake(team: _Team, count: int, work: int) -> None:
    """Wake helpers until so many are there. A short call waits for them, and wakes none while some are coming."""
    short = work < WAKING_WORK
    if not (short and _helpers.are_coming()) and _helpers.ask(team, count) and short:
        team.meet(count)


def _run_in_blocks(
    code: Any,
    rows: int,
    work: int,
    rooms: list[Any],
    args: tuple[Any, ...],
    apart: "memoryview[int] | None" = None,
) -> None:
    count = len(rooms)
    step = rows_of_block(rows, work, count)
    if not isinstance(code, BuiltinFunctionType):  # a function of Python, under NUMBA_DISABLE_JIT
        for start in range(0, rows, step):
            code(start, min(start + step, rows), rooms[0], *args)
        return
    try:
        team = _teams.pop()
    except IndexError:
        team = _Team()
    words = team.words
    try:
        if count > 1 and words[teams.PRESENT] < count - 1:
            _wake(team, count - 1, work)
        helped = team.share(code, rows, step, rooms, args, apart)
        if count > 1:
            _pause.note(helped)
    finally:
        if not words[teams.INSIDE]:  # else helpers did not survive a fork
            _teams.append(team)
