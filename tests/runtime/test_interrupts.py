"""Ctrl-C and other signals while kernels are compiled: none is lost."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import child
import numpy as np
import pytest

from fastsoftmax.runtime import interrupts

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture
def handlers():
    """Put the handlers of these signals back after a test."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)
    time.sleep(0.001)


def test_a_signal_waits_for_the_end_of_the_block(handlers):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = []

    def run():
        with interrupts.held():
            send()
            steps.append("goes on")
        steps.append("not here")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert steps == ["goes on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with interrupts.held():  # it is over
        interrupts.check()


def test_a_signal_waits_for_a_check(handlers):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = []

    def run():
        with interrupts.held():
            interrupts.check()
            send()
            steps.append("goes on")
            interrupts.check()
            steps.append("not here")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert steps == ["goes on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_exception_in_the_block(handlers):
    """Both are seen: one as the context of the other."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(signalled):
        with interrupts.held():
            if signalled:
                send()
            raise ValueError("in the block")

    with pytest.raises(KeyboardInterrupt) as found:
        run(True)
    assert isinstance(found.value.__context__, ValueError)
    with pytest.raises(ValueError, match="in the block"):
        run(False)


def test_handlers_of_the_program(handlers):
    """They are called with the number and a frame, each once, also if one of them raises."""
    calls = []

    def note(number, frame):
        calls.append((number, frame.f_code.co_name))
        if number == signal.SIGTERM:
            raise SystemExit(3)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    for number in numbers:
        signal.signal(number, note)

    def run():
        with interrupts.held():
            for number in numbers:
                send(number)
                send(number)
            assert calls == []
            interrupts.check()

    with pytest.raises(SystemExit, match="3"):
        run()
    assert sorted(calls) == sorted((number, "send") for number in numbers)
    assert all(signal.getsignal(number) is note for number in numbers)


def test_a_handler_that_lets_the_program_go_on(handlers):
    calls = []
    signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    with interrupts.held():
        for count in (1, 2):
            send()
            interrupts.check()
            assert len(calls) == count
    assert len(calls) == 2


def test_ignored_signals_and_those_of_the_system_stay(handlers):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with interrupts.held():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        send()


def test_blocks_inside_of_blocks(handlers):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = []

    def run():
        with interrupts.held():
            with interrupts.held():
                send()
            steps.append("the inner end")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert steps == ["the inner end"]


def test_other_threads_change_nothing(handlers):
    """Python calls handlers in the main thread, whatever another one does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    inside, over = threading.Event(), threading.Event()

    def hold():
        with interrupts.held():
            interrupts.check()
            inside.set()
            over.wait(60)
            interrupts.check()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(60)
    try:
        with pytest.raises(KeyboardInterrupt):
            send()
    finally:
        over.set()
        thread.join()
    assert not interrupts._arrived


def test_a_handler_that_is_set_in_the_block(handlers):
    """It stays, as it would without the block."""

    def other(number, frame):
        pass

    with interrupts.held():
        signal.signal(signal.SIGINT, other)
    assert signal.getsignal(signal.SIGINT) is other


# --- whole programs ------------------------------------------------------------------------------------------

COMPILING = """
import sys
import numpy
from fastsoftmax.machine import entry, library
from fastsoftmax.runtime.prebuilt import PREFIX
print("begun", flush=True)
for variant in library.variants():
    entry.address(PREFIX + variant.name)
"""

TRIES = [pytest.param(k, marks=pytest.mark.slow if k > 2 else ()) for k in range(10)]
ENVIRONMENT = {"FASTSOFTMAX_PREBUILT": "0", "PYTHONPATH": str(child.PACKAGE.parent), "PYTHONFAULTHANDLER": "1"}


def begin(command, tmp_path):
    environment = {**os.environ, **ENVIRONMENT, "FASTSOFTMAX_CACHE_DIR": str(tmp_path / "cache")}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], env=environment, **streams)


def interrupt(process, seconds):
    """The exit status, and what is on standard output and error."""
    time.sleep(seconds)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    try:
        output, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert "Exception ignored" not in errors
    return process.returncode, output, errors


@pytest.mark.parametrize("attempt", TRIES)
def test_ctrl_c_while_kernels_are_compiled(attempt, tmp_path):
    """At drawn moments. A program that only compiles ends with KeyboardInterrupt, whatever the signal hits."""
    process = begin(["-c", COMPILING], tmp_path)
    assert process.stdout.readline() == "begun\n"
    status, _, errors = interrupt(process, random.Random(attempt).uniform(0.2, 5))
    assert status in (-signal.SIGINT, 130)
    assert errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("attempt", TRIES)
def test_ctrl_c_in_the_command_line(attempt, tmp_path):
    """``fastsoftmax run --force`` leaves the result as it was. The zeros of its input take no room on the disk."""
    source, result = tmp_path / "x.npy", tmp_path / "y.npy"
    np.lib.format.open_memmap(source, "w+", np.float32, (20_000_000, 500)).flush()
    result.write_bytes(b"before")
    process = begin(["-m", "fastsoftmax", "run", "logsumexp", str(source), "-o", str(result), "--force"], tmp_path)
    status, output, errors = interrupt(process, random.Random(100 + attempt).uniform(0.2, 5))
    assert status in (-signal.SIGINT, 130)
    assert ("interrupted" if status == 130 else "KeyboardInterrupt") in errors
    assert errors.count("compiling kernels") <= 1
    assert output == ""
    assert result.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.glob("*.npy*")) == ["x.npy", "y.npy"]


IN_COMPILED_CODE = """
import os, signal
import numba, numpy as np
import fastsoftmax as fs
from fastsoftmax.machine import entry

@numba.njit
def softmax(x):
    return fs.softmax(x)

address = entry.address

def interrupted(name):
    os.kill(os.getpid(), signal.SIGINT)
    return address(name)

entry.address = interrupted
for _ in range(2):
    try:
        softmax(np.zeros((2, 3)))
    except KeyboardInterrupt:
        print("interrupted")
entry.address = address
print(softmax(np.zeros((2, 4))).sum())
"""


def test_ctrl_c_while_compiled_code_looks_for_a_kernel():
    """It is no ImportError, and the next call is right."""
    assert child.run(IN_COMPILED_CODE) == "interrupted\ninterrupted\n2.0\n"


def test_the_command_line_says_once_that_it_compiles(tmp_path):
    source = tmp_path / "x.npy"
    np.save(source, np.zeros((3, 4), np.float32))
    for count in (1, 0):
        command = ["-m", "fastsoftmax", "run", "softmax", str(source), "-o", str(tmp_path / "y.npy"), "--force"]
        process = begin(command, tmp_path)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0
        assert errors.count("compiling kernels") == count
