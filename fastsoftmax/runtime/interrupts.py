"""Signals that end or interrupt a program, while kernels are compiled.

LLVM calls functions of Python through ctypes, and Numba has destructors. Python prints an exception that is raised
there, as by the handler of Ctrl-C, and goes on. So in a `held` block a signal that arrives calls no handler. They
are called by `check`, from where their exceptions reach the caller, or else at the end of the block.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGBREAK")
_NUMBERS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))

_handlers: dict[int, Any] = {}
"""The handlers that the program has set."""
_arrived: dict[int, Any] = {}
"""Signals that have not been handled, with the frame that they interrupted."""
_holding = False


def _note(number: int, frame: Any) -> None:
    """The handler of a `held` block. If a signal kept it in its place after the block, it calls the program's."""
    if _holding:
        _arrived[number] = frame
    else:
        _handlers[number](number, frame)


def _is_main_thread() -> bool:
    """Whether this is the thread in which Python calls handlers."""
    return threading.current_thread() is threading.main_thread()


def _has_event_loop() -> bool:
    """Whether signals wake an event loop: then handlers do nothing by themselves, and stay as they are."""
    try:
        descriptor = signal.set_wakeup_fd(-1)
    except ValueError:
        return False
    if descriptor != -1:
        signal.set_wakeup_fd(descriptor)
    return descriptor != -1


def check() -> None:
    """Call the handlers of the signals that have arrived in a `held` block."""
    if _arrived and _is_main_thread():
        number, frame = _arrived.popitem()
        try:
            _handlers[number](number, frame)
        finally:
            check()


@contextmanager
def held() -> Iterator[None]:
    """A block in which only `check` calls handlers. Other threads, where none is called, see no change."""
    global _holding
    if _holding or not _is_main_thread() or _has_event_loop():
        yield
        return
    try:
        _holding = True
        with suppress(ValueError):  # an interpreter of its own inside of another has no handlers
            for number in _NUMBERS:
                handler = signal.getsignal(number)
                if callable(handler) and handler is not _note:
                    _handlers[number] = handler
                    signal.signal(number, _note)
        yield
    finally:
        _holding = False
        try:
            check()
        finally:
            for number, handler in _handlers.items():
                if signal.getsignal(number) is _note:
                    signal.signal(number, handler)
