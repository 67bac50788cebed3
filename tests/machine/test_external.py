"""Kernels in code that Numba compiles: they are found when the code runs, also if that was cached long before."""

import json
import re

import child
import numba
import numpy as np
import pytest
from numba import types
from numba.core.errors import TypingError

import fastsoftmax as fs
from fastsoftmax.machine import entry, library
from fastsoftmax.machine.external import MOST, external

USER = """
import numba
import fastsoftmax as fs

@numba.njit(cache=True)
def softmax(x):
    return fs.softmax(x, axis=1)

@numba.njit(cache=True)
def loss(x, y):
    return fs.cross_entropy_with_grad(x, y)

@numba.njit(cache=True)
def terms(x):
    return fs.exp(x)
"""

CALL = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import fastsoftmax.njit.overloads
from fastsoftmax.machine import entry, external, frontend
{before}
import user

def attempt(function, *arguments):
    try:
        return np.asarray(function(*arguments)[0]).tolist()
    except ImportError as error:
        return str(error)

x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([0, 2])
functions = user.softmax, user.loss, user.terms
found = []
for _ in range(2):
    found = [attempt(user.softmax, x), attempt(user.loss, x, y), attempt(user.terms, x)]
hits = [sum(function.stats.cache_hits.values()) for function in functions]
print(json.dumps([hits, found]))
"""


@pytest.fixture
def call(tmp_path):
    """Call a user's cached functions in a new process: how many came from the cache, and the results."""
    (tmp_path / "user.py").write_text(USER)

    def run(before="", **options):
        code = CALL.replace("{before}", before)
        options = {"NUMBA_CACHE_DIR": tmp_path / "numba", **options}
        return json.loads(child.run(code, tmp_path, **options))

    return run


X, Y = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([0, 2])


def results():
    return [fs.softmax(X)[0].tolist(), float(fs.cross_entropy(X, Y)), fs.exp(X)[0].tolist()]


def test_cached_code_runs_in_the_next_process(call):
    assert call() == [[0, 0, 0], results()]
    assert call() == [[1, 1, 1], results()]


def test_cached_code_works_with_code_from_anywhere(call, tmp_path):
    """It was compiled beside a library, and runs where kernels are compiled or come from the cache directory."""
    assert call() == [[0, 0, 0], results()]
    options = {"FASTSOFTMAX_PREBUILT": 0, "FASTSOFTMAX_CACHE_DIR": tmp_path / "cache"}
    assert call(**options) == [[1, 1, 1], results()]
    assert call("frontend.module = None", **options) == [[1, 1, 1], results()]


def test_cached_code_of_another_version(call):
    """Its kernels have other names: an ImportError that says what to do, in any process, and no abort."""
    first = call('external.PREFIX = "fastsoftmax_0."')
    assert first[0] == [0, 0, 0]
    for found in (first, call()):
        names = ["activations.softmax", "losses.first_outside", "loops.exp"]
        for message, name in zip(found[1], names, strict=True):
            assert "this code was compiled for another version of fastsoftmax" in message
            assert "delete the files that Numba has cached" in message
            assert "kernel fastsoftmax_0." in message
            assert name.partition(".")[2] in message
    assert call()[0] == [1, 1, 1]


def test_a_kernel_that_cannot_be_compiled_any_more(call):
    """As if another version had no such kernel."""
    assert call() == [[0, 0, 0], results()]
    gone = "entry.address = lambda name: {}[name]"
    _, found = call(gone)
    assert all("cannot be compiled here" in message for message in found)
    assert call() == [[1, 1, 1], results()]


THREADS = """
import numpy as np
from numba import njit, prange
import fastsoftmax as fs

@njit(parallel=True)
def rows(x, out):
    for i in prange(x.shape[0]):
        out[i] = fs.logsumexp(x[i])

x, out = np.random.default_rng(0).normal(size=(1000, 9)), np.empty(1000)
rows(x, out)
np.testing.assert_array_equal(out, fs.logsumexp(x))
print("fine")
"""


def test_threads_look_for_a_kernel_at_once():
    """Threads that Numba started, and that Python does not know."""
    assert child.run(THREADS) == "fine\n"


def test_wrong_arguments_are_an_error_of_types():
    total = external("reductions.total", types.float64)

    @numba.njit
    def call(x):
        return total(x)

    assert call(np.arange(4.0)) == 6
    assert call(np.arange(4, dtype=np.float32)) == 6
    with pytest.raises(TypingError, match=r"kernel reductions\.total does not take"):
        call(1.0)
    with pytest.raises(TypingError, match=r"kernel reductions\.total does not take"):
        call((1.0, 2.0))


def test_an_access_outside_is_an_index_error(tmp_path):
    code = """
import numpy as np
from numba import njit
from fastsoftmax.machine.external import external
kernel = external("activations.softmax")

@njit
def call(x, y, room):
    kernel(0, x.shape[0], room, x, y, None)

x, room = np.zeros((4, 60, 1)), np.empty(16 * 60)
call(x, np.empty((4, 60, 1)), room)
print("inside")
try:
    call(x, np.empty((3, 60, 1)), room)
except IndexError as error:
    print(error)
"""
    output = child.run(code, NUMBA_BOUNDSCHECK=1, FASTSOFTMAX_CACHE_DIR=tmp_path)
    assert output == "inside\nkernel access outside its array\n"


def test_no_kernel_has_more_parameters_than_an_intrinsic():
    assert max(len(kernel.parameters) for kernel in entry.kernels()) <= MOST


def test_every_kernel_that_compiled_code_calls_has_the_variant():
    """`external` is asked for kernels by name: all of them exist."""
    names = {variant.kernel.name for variant in library.variants()}
    import fastsoftmax.njit.overloads  # noqa: F401

    assert external.cache_info().currsize > 0
    for path in (child.PACKAGE / "njit").glob("*.py"):
        for name in re.findall(r'external\("([\w.]+)"', path.read_text()):
            assert name in names, path
