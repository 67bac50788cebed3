"""Functions for the processes of test_hazards, in a module, because spawned processes import them by name."""

import functools
import os
import signal
import sys
import threading
import traceback

import numpy as np

from fastsoftmax.arrays import threads

LARGE = (5_000, 50)
SECONDS = 120
"""How many seconds a child may take. A child in a deadlock would wait for ever."""


def two_processors():
    """Make helper threads start also on a machine with one processor."""
    threads._quota = lambda: 2
    os.sched_getaffinity = lambda pid: {0, 1}
    threads._leave = lambda processor: True


@functools.cache
def example():
    """Logits for more than one thread, labels, a vector, and the results, right to about 1e-12."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=LARGE)
    labels = rng.integers(0, LARGE[1], LARGE[0])
    v = rng.normal(size=LARGE)
    terms = np.exp(x)
    total = terms.sum(-1)
    p = terms / total[:, None]
    onehot = np.eye(LARGE[1])[labels]
    right = {
        "softmax": p,
        "logsumexp": np.log(total),
        "softmax_vjp": p * (v - (p * v).sum(-1, keepdims=True)),
        "cross_entropy": np.mean(np.log(total) - (x * onehot).sum(-1)),
        "cross_entropy_grad": (p - onehot) / len(x),
    }
    second = {"softmax_vjp": (v,), "cross_entropy": (labels,), "cross_entropy_grad": (labels,)}
    return x, second, right


def call(name):
    """Call one function on the example; an AssertionError if the result is wrong."""
    import fastsoftmax as fs

    x, second, right = example()
    actual = getattr(fs, name)(x, *second.get(name, ()))
    assert np.abs(actual - right[name]).max() < 1e-12


def work(n):
    """A task for a pool: check the results, and that helpers are started unless the pool forbids it.

    In a pool of threads, calls that run at the same time share the processors, and none has a helper.
    """
    two_processors()
    call("softmax")
    call("cross_entropy_grad")
    helpers = threads._helpers._threads
    alone = threading.current_thread() is threading.main_thread() and threads.max_threads() > 1
    assert any(thread.is_alive() for thread in helpers) or not alone
    return n


def forked(body, seconds=SECONDS):
    """Run `body` in a forked child; SystemExit if that fails or hangs."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(seconds)
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise SystemExit(f"the child ended with status {status}")
