"""A fork waits until nobody is in the middle of compiling.

A forked child has one thread and a copy of all locks. If another thread was compiling during the fork, or
importing Numba, its lock stays locked in the child for ever, and the tables of Numba and LLVM that it guards are
half changed. New locks alone would let the child use those tables. So the forking thread takes the locks first, as
POSIX advises and Python's ``logging`` does. It waits until the current compilation ends, usually a second or two.
After `PATIENCE` the fork goes ahead without the locks, because the compiling thread may itself be waiting for the
fork. The child then gets new locks: it may fail, but it does not wait for a thread that it does not have.

``logging`` takes its own lock before a fork, and takes it before this module does if it was imported later. A
thread that imports Numba needs that lock for a moment, so it is released while this module waits for that thread.
"""

import os
import sys
import time
from threading import RLock, get_ident
from typing import Any

from fastsoftmax.runtime.numba_state import COMPILER, LLVM, LockPlace, forget_inference

PATIENCE = 30.0
"""How many seconds a fork waits for other threads to finish compiling."""

importing = RLock()
"""Held while kernels, and with them Numba, are imported."""

# In the order in which a thread that compiles takes them.
_PLACES = (LockPlace(__name__, "importing"), COMPILER, LLVM)
_held: dict[int, list[tuple[LockPlace, Any]]] = {}


def _lent_by_logging() -> Any:
    """The lock of ``logging``, released, if it was taken for this fork before our turn; else None."""
    try:
        lock: Any = sys.modules["logging"]._lock
        lock.release()
    except (KeyError, AttributeError, RuntimeError):  # not imported, another release, or not ours
        return None
    return lock


def before() -> None:
    """Take all locks that become free in time."""
    deadline = time.monotonic() + PATIENCE
    held = _held[get_ident()] = []
    logging_lock = _lent_by_logging()
    for place in _PLACES:
        lock = place.lock()
        if lock is not None and lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            held.append((place, lock))
    if logging_lock is not None:
        logging_lock.acquire(timeout=max(0.0, deadline - time.monotonic()))


def after_in_parent() -> None:
    """Release the locks that were taken."""
    for _, lock in reversed(_held.pop(get_ident(), [])):
        lock.release()


def after_in_child() -> None:
    """Release the locks that were taken, and replace the others: their owners do not exist in the child."""
    held = _held.pop(get_ident(), [])
    _held.clear()
    for _, lock in reversed(held):
        lock.release()
    kept = [place for place, _ in held]
    for place in _PLACES:
        if place not in kept and place.lock() is not None:
            place.renew()
            forget_inference()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)
