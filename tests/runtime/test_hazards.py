"""The library in programs that fork, run threads, compile, are interrupted and end.

Every test runs in a new process, which kills itself if it hangs. Each of them fails without the code that it
tests.
"""

import importlib.util
import multiprocessing
import os
import sys
from pathlib import Path

import child
import pytest
import workers

TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

START = f"""
import signal, sys
signal.alarm(400)
sys.path.insert(0, {str(TESTS)!r})
import multiprocessing, os, threading, time
import numpy as np
import workers
from workers import call, forked, work
workers.two_processors()
"""


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """A cache directory with the kernels that all these processes need, which are compiled once here."""
    for name in workers.example()[2]:
        workers.call(name)


LAYERS = ["omp", "workqueue", pytest.param("tbb", marks=pytest.mark.slow)]


def run(code, *arguments, **options):
    options.setdefault("timeout", 420)
    return child.run(START + code, *arguments, **options)


def compiles_in(directory):
    """Options of a process that finds no machine code."""
    return {"FASTSOFTMAX_PREBUILT": 0, "FASTSOFTMAX_CACHE_DIR": directory}


def layer_or_skip(layer):
    if layer != "workqueue" and importlib.util.find_spec(f"numba.np.ufunc.{layer}pool") is None:
        pytest.skip(f"this Numba has no {layer} layer")
    if layer == "tbb" and importlib.util.find_spec("tbb") is None:
        pytest.skip("needs TBB")
    return {"NUMBA_THREADING_LAYER": layer, "LD_LIBRARY_PATH": os.path.join(sys.prefix, "lib")}


# A parallel kernel of the host program, which starts the threads of Numba's layer.
HOST = """
import numba

@numba.njit(parallel=True)
def host(n):
    total = 0.0
    for i in numba.prange(n):
        total += i
    return total

assert host(1000) == 499500
"""

# --- forks ---------------------------------------------------------------------------------------------------

FORKS = """
def grandchild():
    work(0)
    forked(lambda: work(0))

def orphan():
    if os.fork() == 0:
        status = 1
        try:
            os.close(reader)
            while os.getppid() == parent:
                time.sleep(0.01)
            work(0)
            status = 0
        finally:
            os.write(writer, bytes([status]))
            os._exit(status)

for _ in range(2):  # the second time after use
    parent = os.getpid()
    forked(grandchild)
    reader, writer = os.pipe()
    parent = None

    def leave_an_orphan():
        global parent
        parent = os.getpid()
        orphan()

    forked(leave_an_orphan)
    os.close(writer)
    assert os.read(reader, 1) == bytes([0]), "the orphan failed"
    os.close(reader)
    work(0)
print("fine")
"""


@pytest.mark.parametrize("layer", LAYERS)
def test_forks_beside_numbas_threads(layer):
    """Child, grandchild and orphan, before and after first use, in a host that also runs parallel kernels.

    With Numba's parallel loops on omp, the child would be killed or the grandchild would hang.
    """
    assert run(HOST + FORKS, **layer_or_skip(layer)) == "fine\n"


POOLS = """
from concurrent.futures import ProcessPoolExecutor

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    count = int(sys.argv[2])
    for used in (False, True):
        if used:
            work(0)
        if used or sys.argv[1] == "fork":
            with context.Pool(count) as pool:
                assert pool.map(work, range(4)) == list(range(4))
        if not used or sys.argv[1] == "fork":
            with ProcessPoolExecutor(count, mp_context=context) as pool:
                assert list(pool.map(work, range(4))) == list(range(4))
    work(0)
    print("fine")
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_pools_of_processes(method):
    """multiprocessing.Pool and ProcessPoolExecutor, before and after the parent's first use."""
    assert run(POOLS, method, 2 if method == "fork" else 1) == "fine\n"


JOBLIB = """
import joblib

for backend in ("multiprocessing", "threading", "multiprocessing", "loky"):
    done = joblib.Parallel(2, backend=backend)(joblib.delayed(work)(n) for n in range(4))
    assert done == list(range(4)), backend
print("fine")
"""


def test_joblib(tmp_path):
    pytest.importorskip("joblib")
    # the processes of loky import modules by this path
    path = os.pathsep.join([str(child.PACKAGE.parent), str(TESTS)])
    assert run(JOBLIB, PYTHONPATH=path, JOBLIB_TEMP_FOLDER=tmp_path) == "fine\n"


OPENMP = """
a = np.random.default_rng(0).normal(size=(600, 600)).astype(np.float32)
if sys.argv[1] == "torch":
    import torch

    torch.set_num_threads(2)
    (torch.from_numpy(a) @ torch.from_numpy(a)).softmax(-1)
    torch.from_numpy(np.zeros((2000, 2000), np.float32)).exp()
else:
    from sklearn.cluster import KMeans

    KMeans(3, n_init=1, max_iter=3).fit(a)
forked(lambda: work(0))
work(0)
forked(lambda: work(0))
print("fine")
"""


@pytest.mark.parametrize("library", ["sklearn", pytest.param("torch", marks=pytest.mark.slow)])
def test_openmp_in_the_parent(library):
    """The threads of another library do not survive a fork. Ours do not need them."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")
    assert run(OPENMP, library) == "fine\n"


def test_a_fork_finds_one_thread():
    """From Python 3.12 on, forking a process with several threads gives the host a DeprecationWarning."""
    code = """
import warnings
warnings.simplefilter("error")
work(0)
assert workers.threads._helpers._threads
forked(lambda: None)
assert threading.active_count() == 1, threading.enumerate()
work(0)
print("fine")
"""
    assert run(code) == "fine\n"


COMPUTING = """
work(0)
stop = threading.Event()

def compute():
    while not stop.is_set():
        call("softmax")

computing = [threading.Thread(target=compute) for _ in range(2)]
for thread in computing:
    thread.start()
for _ in range(10):
    time.sleep(0.01)
    forked(lambda: work(0))
stop.set()
for thread in computing:
    thread.join()
work(0)
print("fine")
"""


def test_forks_while_others_compute():
    assert run(COMPUTING) == "fine\n"


# `starts` becomes true when the other thread is in the middle of the named operation. A fork at that moment would
# leave a locked lock in the child.
UNDER_WAY = """
what = sys.argv[1]

def other():
    call("logsumexp")

def starts():
    if what != "compiling":
        return what in sys.modules
    locks = sys.modules.get("numba.core.compiler_lock")
    lock = getattr(locks, "global_compiler_lock", None)
    if lock is None:
        return False
    free = lock._lock.acquire(blocking=False)
    if free:
        lock._lock.release()
    return not free

thread = threading.Thread(target=other)
thread.start()
while not starts():
    assert thread.is_alive()
    time.sleep(0.001)
forked(lambda: call("logsumexp"), seconds=100)
thread.join()
print("fine")
"""


def test_forks_while_another_thread_compiles(tmp_path):
    """The child calls the function, too. It must not wait for a lock that only the parent's thread can release."""
    assert run(UNDER_WAY, "compiling", **compiles_in(tmp_path)) == "fine\n"


@pytest.mark.parametrize(
    ("before", "module"),
    [("pass", "numba.core"), ("import fastsoftmax, logging", "numba.core"), ("pass", "numpy.ma")],
)
def test_forks_while_another_thread_imports_numba(before, module, tmp_path):
    """The import of a module holds a lock, which Python does not renew in a child.

    ``logging`` takes its own lock at a fork, and Numba imports ``numpy.ma`` at its first call.
    """
    assert run(f"{before}\n{UNDER_WAY}", module, **compiles_in(tmp_path)) == "fine\n"


def test_a_fork_imports_nothing():
    """A child imports nothing, whether the process had only imported the package or used it."""
    code = """
import fastsoftmax

def check():
    assert set(sys.modules) == before, set(sys.modules) ^ before

before = set(sys.modules)
assert not before & {"numba", "logging"}
forked(check)
call("softmax")
before = set(sys.modules)
forked(check)
print("fine")
"""
    assert run(code) == "fine\n"


PATIENCE = """
import numba
from numba.core.compiler_lock import global_compiler_lock
from fastsoftmax.runtime import fork

fork.PATIENCE = 0.2
call("softmax")
held, over = threading.Event(), threading.Event()

def hold():
    with global_compiler_lock:
        held.set()
        over.wait(100)

thread = threading.Thread(target=hold)
thread.start()
held.wait()
begun = time.monotonic()
forked(lambda: call("logsumexp"), seconds=100)
assert time.monotonic() - begun > 0.2
over.set()
thread.join()
call("logsumexp")
print("fine")
"""


def test_a_fork_does_not_wait_for_ever(tmp_path):
    """A thread that compiles may wait for the fork. The fork goes ahead in time, and the child gets new locks."""
    assert run(PATIENCE, **compiles_in(tmp_path)) == "fine\n"


def test_the_forking_thread_may_be_compiling(tmp_path):
    """A signal handler may fork while its own thread compiles. The fork must not wait for this thread."""
    code = """
import numba
from numba.core.compiler_lock import global_compiler_lock

call("softmax")
begun = time.monotonic()
with global_compiler_lock:
    forked(lambda: call("logsumexp"), seconds=100)
    assert global_compiler_lock.is_locked()
assert not global_compiler_lock._lock._is_owned()
call("logsumexp")
print("fine")
"""
    assert run(code, **compiles_in(tmp_path)) == "fine\n"


TOGETHER = """
import numba
import fastsoftmax as fs

@numba.njit
def softmax(x):
    return fs.softmax(x)

def ours():
    call("softmax"), call("logsumexp")

def hosts():
    np.testing.assert_allclose(softmax(np.zeros((2, 3))), 1 / 3)

threads = [threading.Thread(target=target) for target in (ours, hosts, ours)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("fine")
"""


def test_kernels_and_a_function_of_the_host_are_compiled_at_once(tmp_path):
    """Numba holds its lock when the function asks for a kernel. No other thread may wait for it with a lock."""
    assert run(TOGETHER, **compiles_in(tmp_path)) == "fine\n"


FORK_IN_CALL = """
from recorder import CALLER, FIRST_HELPER, MILLISECOND, Recorder
from fastsoftmax.runtime import teams

workers.two_processors()
forked_already, seen = [], []

def fork_now(*_):
    seen.append([team.words[teams.INSIDE] for team in created])
    forked_already.append(os.fork())

created = []
make = workers.threads._Team.__init__

def noted(team):
    make(team)
    created.append(team)

workers.threads._Team.__init__ = noted
signal.signal(signal.SIGUSR1, fork_now)
recorder = Recorder(4096, 20 * MILLISECOND, 1000 * MILLISECOND)
recorder.code(())  # compiled before the timer starts
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
try:
    workers.threads.run(recorder, 4096, 16 << 20, recorder.room, *recorder.arguments)
except RuntimeError as error:
    assert forked_already == [0] and "fork in the middle" in str(error)
    recorder = Recorder(4096)
    workers.threads.run(recorder, 4096, 16 << 20, recorder.room, *recorder.arguments)
    assert (recorder.times == 1).all()
    os._exit(7)
assert 1 in seen[0], seen  # a helper was inside when the process forked
assert recorder.threads == {CALLER, FIRST_HELPER}
assert (recorder.times == 1).all()
assert forked_already[0] > 0
_, status = os.waitpid(forked_already[0], 0)
assert os.waitstatus_to_exitcode(status) == 7, status
print("fine")
"""


def test_a_fork_in_the_middle_of_a_call():
    """A signal handler forks and returns in parent and child. The call in the child fails, but does not hang."""
    assert run(FORK_IN_CALL) == "fine\n"


# --- threads -------------------------------------------------------------------------------------------------

CROWD = """
names = sys.argv[2:] or sorted(workers.example()[2])
start = threading.Barrier(64)
errors = []
until = time.monotonic() + float(sys.argv[1])
calls = []

def crowd(n):
    try:
        start.wait()
        turn = 0
        while turn < len(names) or time.monotonic() < until:
            call(names[(n + turn) % len(names)])
            turn += 1
        calls.append(turn)
    except BaseException as error:
        errors.append(error)

threads = [threading.Thread(target=crowd, args=(n,)) for n in range(64)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not errors, errors[:3]
assert threading.active_count() <= 2, threading.enumerate()
print(sum(calls), "calls")
"""


@pytest.mark.parametrize("seconds", [0, pytest.param(60, marks=pytest.mark.slow)])
def test_64_threads(seconds):
    """All functions are called at once, also for the first time. There are no more helpers than processors."""
    assert run(CROWD, seconds).endswith("calls\n")


def test_64_threads_compile_at_once(tmp_path):
    """The same without a cache: they compile the same kernels."""
    assert run(CROWD, 0, "logsumexp", **compiles_in(tmp_path)).endswith("calls\n")


NESTED = """
from concurrent.futures import ThreadPoolExecutor

@numba.njit(parallel=True)
def host_calls_us(n):
    done = np.zeros(n)
    for i in numba.prange(n):
        with numba.objmode():
            call("softmax")
        done[i] = 1
    return done.sum()

assert host_calls_us(6) == 6

def in_a_thread(n):
    with ThreadPoolExecutor(2) as inner:
        return sum(inner.map(work, [n, n]))

with ThreadPoolExecutor(4) as outer:
    assert list(outer.map(in_a_thread, range(8))) == [2 * n for n in range(8)]
print("fine")
"""


@pytest.mark.parametrize("layer", ["omp", pytest.param("tbb", marks=pytest.mark.slow)])
def test_inside_the_hosts_parallel_code(layer):
    """Calls from a parallel kernel of the host, and from nested thread pools."""
    assert run(HOST + NESTED, **layer_or_skip(layer)) == "fine\n"


def test_beside_a_parallel_kernel_on_workqueue():
    """Workqueue aborts the process if two threads enter it. We never do, so that the host may use it."""
    code = """
stop = threading.Event()

def ours():
    while not stop.is_set():
        call("softmax")

threads = [threading.Thread(target=ours) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(300):
    host(10_000)
stop.set()
for thread in threads:
    thread.join()
print("fine")
"""
    assert run(HOST + code, **layer_or_skip("workqueue")) == "fine\n"


def test_nothing_global_is_set():
    """Numba's threads, the environment and signal handlers are unchanged; Numba's layer is not started."""
    code = """
import numba
before = dict(os.environ), signal.getsignal(signal.SIGINT), numba.config.NUMBA_NUM_THREADS, np.geterr()
work(0)
import fastsoftmax as fs
with fs.threads(1):
    call("softmax")
after = dict(os.environ), signal.getsignal(signal.SIGINT), numba.config.NUMBA_NUM_THREADS, np.geterr()
assert before == after
parallel = sys.modules.get("numba.np.ufunc.parallel")
assert parallel is None or not parallel._is_initialized
print("fine")
"""
    assert run(code) == "fine\n"


# --- the end -------------------------------------------------------------------------------------------------


def test_the_interpreter_ends_while_threads_compute():
    """The process ends while daemon threads of the host and our helpers compute."""
    code = """
def compute():
    while True:
        call("softmax")

for _ in range(4):
    threading.Thread(target=compute, daemon=True).start()
work(0)
time.sleep(0.2)
print("fine")
"""
    assert run(code) == "fine\n"


def test_the_interpreter_does_not_wait_for_helpers():
    code = """
import atexit
work(0)
atexit.register(lambda: (work(0), print("late")))
"""
    assert run(code) == "late\n"


# Read-only zeros that take no memory, because the system maps one page of zeros everywhere.
INTERRUPT = """
import fastsoftmax as fs
from zeros import zeros

x = zeros((40_000_000, 500), np.float32)
call("softmax")
fs.logsumexp(x[:2])
begun = time.perf_counter()
fs.logsumexp(x[:200_000])
print((time.perf_counter() - begun) * len(x) / 200_000)  # seconds that the whole would take
sent = []

def interrupt():
    time.sleep(0.5)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    fs.logsumexp(x)
except KeyboardInterrupt:
    print(time.perf_counter() - sent[0])
used = time.process_time()
time.sleep(0.3)
print(time.process_time() - used)
call("softmax")
print(len(threading.enumerate()))
"""


@pytest.mark.timed
def test_ctrl_c_in_a_long_call():
    """The call ends at once, no thread goes on computing, and the next call is right.

    Blocks take about a millisecond. More than 0.2 s are allowed, because the machine may be busy.
    """
    whole, delay, busy, threads = map(float, run(INTERRUPT).split())
    assert whole > 2
    assert delay < 0.5
    assert busy < 0.1
    assert threads <= 2


# --- labels that change --------------------------------------------------------------------------------------


def test_labels_that_change_after_they_were_checked():
    """Another thread changes labels after the check. A kernel that did not check again would write anywhere."""
    code = """
import fastsoftmax as fs
from fastsoftmax.arrays import losses

rng = np.random.default_rng(0)
x = rng.normal(size=(5_000, 50))
run = losses.run

def just_before(*args, **options):
    labels[::2] = bad
    run(*args, **options)

run_plain = losses.run_plain

def just_before_plain(*args):
    labels[::2] = bad
    run_plain(*args)

losses.run, losses.run_plain = just_before, just_before_plain
for bad in (1 << 40, -(1 << 40), 50, -1):
    for options in ({}, {"label_smoothing": 0.1}, {"ignore_index": -7}):
        labels = np.zeros(5_000, np.int64)
        grad = fs.cross_entropy_grad(x, labels, **options)
        assert labels[0] == bad and np.isfinite(grad).all()
        assert grad[1, 0] < 0 < grad[1, 1]
print("fine")
"""
    assert run(code) == "fine\n"
