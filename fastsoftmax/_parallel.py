"""How many threads, and blocks of rows for them.

Kernels are serial and release the GIL. `run` cuts their rows into blocks; the calling thread and the threads
of a pool take one after the other until none is left. Compared with Numba's own parallel loops this starts
some 60 us slower and is as fast on arrays that are worth it; in return it survives everything in which these
die: a fork, several Python threads at once, a host that runs OpenMP, a system that grants no thread (then the
caller does it all), Ctrl-C (blocks take milliseconds).

No row depends on another, and no kernel on how its rows were cut: results have the same bits for every number
of threads.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from threading import Condition, Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

PARALLEL_WORK = 1 << 17
"""Less work than this (in units of one element of a softmax, about 1 ns) is done by the caller alone."""

BLOCK_WORK = 1 << 18
"""How much work a thread takes at a time: enough to hide the cost of taking, little enough to stop soon."""

ROW_MULTIPLE = 64
"""Blocks are whole multiples of so many rows, so that vectors of rows are full and cache lines not shared."""

_limit: ContextVar[int | None] = ContextVar("fastsoftmax_threads", default=None)
_lock = Lock()
_pool: "ThreadPoolExecutor | None" = None
_pool_size = 0


@lru_cache(maxsize=1)
def _quota() -> int:
    """CPUs granted by the cgroup (v2 or v1) of this process, rounded up; a large number if unlimited."""
    unlimited = 1 << 20
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        try:
            with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as file:
                quota = file.read().strip()
            with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
                period = file.read().strip()
        except OSError:
            return unlimited
    try:
        granted = int(quota) / int(period)
    except ValueError:  # "max"
        return unlimited
    return max(1, -int(-granted // 1)) if granted > 0 else unlimited


def max_threads() -> int:
    """How many threads a call may use now.

    The least of: the CPUs that this process may run on, the CPU quota of its container, ``NUMBA_NUM_THREADS``
    if that is set, and the innermost `threads` around the call.
    """
    chosen = _limit.get()
    if chosen == 1:
        return 1
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    available = min(available, _quota())
    setting = os.environ.get("NUMBA_NUM_THREADS", "")
    if setting.isdigit() and int(setting) > 0:
        available = min(available, int(setting))
    return available if chosen is None else min(available, chosen)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Use at most `n` threads inside the ``with`` block.

    Holds for calls from this thread (and this asyncio task) only; blocks nest, and none allows more than the
    machine or the block around it. ``threads(1)`` makes every call serial. Results do not depend on it.

    Parameters
    ----------
    n : int
        The greatest number of threads, at least 1.

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
    outer = _limit.get()
    token = _limit.set(int(n) if outer is None else min(int(n), outer))
    try:
        yield
    finally:
        _limit.reset(token)


def _helpers(count: int) -> "ThreadPoolExecutor":
    """A pool of at least `count` threads; idle ones cost nothing."""
    global _pool, _pool_size
    # Not above: with the logging that it brings it would be most of what importing this package costs. At the end
    # of the interpreter it raises RuntimeError, as starting a thread does.
    from concurrent.futures import ThreadPoolExecutor

    with _lock:
        if _pool is None or _pool_size < count:
            _pool = ThreadPoolExecutor(count, thread_name_prefix="fastsoftmax")
            _pool_size = count
        return _pool


def _forget_pool() -> None:
    """In a forked child: its parent's threads are not there."""
    global _pool, _pool_size, _lock
    _lock = Lock()
    _pool = None
    _pool_size = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def run(kernel: Callable[..., None], rows: int, work: int, room: Callable[[], Any], *args: Any) -> None:
    """Call ``kernel(start, stop, room, *args)`` until all rows are done, on as many threads as the work is worth.

    Every thread calls `room` once, for memory of its own to work in.
    """
    count = 1 if work < PARALLEL_WORK else min(max_threads(), rows, work // (PARALLEL_WORK // 2))
    if count == 1 and work <= 16 * BLOCK_WORK:
        kernel(0, rows, room(), *args)
        return
    per_row = max(1, work // max(1, rows))
    step = max(1, min(BLOCK_WORK // per_row, rows // (4 * count)))
    if step > ROW_MULTIPLE:
        step -= step % ROW_MULTIPLE
    blocks = iter(range(0, rows, step))  # shared: taking the next one is atomic

    def take() -> None:
        memory = room()
        for start in blocks:
            kernel(start, min(start + step, rows), memory, *args)

    crew = _Crew()

    def help_out() -> None:
        if crew.enter():
            try:
                take()
            except BaseException as error:
                crew.error = error
                _drain(blocks)
            finally:
                crew.leave()

    try:
        try:
            for _ in range(count - 1):
                _helpers(count - 1).submit(help_out)
        except RuntimeError:  # no thread can be started, or the interpreter is shutting down
            pass
        take()
    finally:
        _drain(blocks)
        crew.dismiss()
    if crew.error is not None:
        raise crew.error


def _drain(blocks: Iterator[int]) -> None:
    """Leave nothing to take: whoever works stops after the block at hand."""
    for _ in blocks:
        pass


class _Crew:
    """The helpers of one call.

    A helper may start late, even one whose submission failed (its work was queued, and a thread that had been busy
    takes it). So it is counted when it begins, and from `dismiss` on nobody begins.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._changed = Condition()
        self._working = 0
        self._dismissed = False

    def enter(self) -> bool:
        """Whether there is still something to help with."""
        with self._changed:
            if not self._dismissed:
                self._working += 1
            return not self._dismissed

    def leave(self) -> None:
        """The end of a helper's work."""
        with self._changed:
            self._working -= 1
            self._changed.notify_all()

    def dismiss(self) -> None:
        """Return when nobody works any more, also on Ctrl-C, which is raised then."""
        interrupted: KeyboardInterrupt | None = None
        while True:
            try:
                with self._changed:
                    self._dismissed = True
                    while self._working:
                        self._changed.wait()
                break
            except KeyboardInterrupt as interrupt:
                interrupted = interrupt
        if interrupted is not None:
            raise interrupted
