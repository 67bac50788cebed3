"""``fastsoftmax warmup``: afterwards nothing has to be compiled."""

import inspect
import sys
from pathlib import Path

import child
import functions
import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import _spec, kernels
from fastsoftmax.runtime import cache
from fastsoftmax.tools import warmup
from fastsoftmax.tools.cli import main

NOT_COMPILED = {"threads"}
USUAL_CALLS = """
import sys, itertools
import numpy as np
sys.path.insert(0, sys.argv[1])
import functions
import fastsoftmax as fs
from fastsoftmax import special
from fastsoftmax.runtime.cache import KernelCache

compiled = []
KernelCache.save_overload = lambda self, signature, result: compiled.append((self._name, str(signature)))
names, dtypes = sys.argv[2].split(","), sys.argv[3].split(",")
for dtype in dtypes:
    for shape, axis in (((1, 10), -1), ((32, 10), 0), ((5, 300), 1), ((40,), 0), ((2, 3, 20), 1), ((0, 3), 1)):
        x = np.random.default_rng(0).normal(size=shape).astype(dtype)
        for function in functions.ALL:
            if function.name in names:
                for _ in range(2):
                    function(x, axis)
                function(np.asfortranarray(x), axis)
                if function.takes_out:
                    function(x, axis, out=np.empty(function.shape(shape, axis), dtype))
                if "temperature" in function.function.__kwdefaults__:
                    function(x, axis, temperature=0.5)
                if "from_probs" in function.function.__kwdefaults__:
                    function(x, axis, from_probs=True)
        y = np.zeros([n for a, n in enumerate(shape) if a != axis % len(shape)], int)
        rows, classes = np.ones(y.shape), np.ones(shape[axis])
        for name in names:
            if name.startswith("cross_entropy"):
                more = (x,) if name.endswith("hvp") else ()
                for options in ({}, {"sample_weight": rows}, {"class_weight": classes}, {"ignore_index": 0},
                                {"label_smoothing": 0.1}, {"label_smoothing": 0.1, "class_weight": classes}):
                    getattr(fs, name)(x, y, *more, axis, **options)
    row = np.zeros((1, 2**20 + 1), dtype)
    for name in {"softmax", "log_softmax", "logsumexp"} & {*names}:
        getattr(fs, name)(row)
    for indptr in ([0, 2, 2, 5], [0, 2**21 + 9, 2**21 + 10]):
        x, labels = np.zeros(indptr[-1], dtype), np.zeros(len(indptr) - 1, int)
        for name in names:
            if name.startswith("segment_"):
                arrays = (labels,) if "entropy" in name else (x,) if "vp" in name else ()
                options = {"ignore_index": 0} if "entropy" in name else {}
                getattr(fs, name)(x, np.array(indptr), *arrays, **options)
    for name in names:
        if name in functions.UFUNCS:
            x = np.full(3, 0.5, dtype)
            ufunc = getattr(fs, name, None) or getattr(special, name)
            ufunc(*ufunc.nin * [x])
print(compiled)
"""


def test_every_public_function_is_in_a_job():
    named = {name for job in warmup.JOBS.values() for name in job.names}
    assert named == set(fs.__all__) - NOT_COMPILED | set(functions.UFUNCS)


def warm(directory, monkeypatch, functions, dtypes):
    """The kernels that a usual program compiles after a warm-up, which runs as a command."""
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(directory))
    monkeypatch.setenv("PYTHONPATH", str(child.PACKAGE.parent))
    assert main(["warmup", "--functions", *functions, "--dtypes", *dtypes, "--jobs", "2"]) == 0
    here = Path(__file__).parents[1]
    return child.run(USUAL_CALLS, here, ",".join(functions), ",".join(dtypes), FASTSOFTMAX_CACHE_DIR=directory)


def test_nothing_is_compiled_afterwards(tmp_path, monkeypatch, capsys):
    names = ["softmax", "logsumexp", "expit"]
    assert warm(tmp_path / "cache", monkeypatch, names, ["float32"]).strip() == "[]"
    text = capsys.readouterr().out
    files = len(list((tmp_path / "cache").glob("*.code")))
    assert files >= 3
    assert "1/3 " in text
    assert "3/3 " in text
    assert f"{files} kernels compiled in " in text
    compiled = child.run(
        USUAL_CALLS, Path(__file__).parents[1], "logsumexp", "float32", FASTSOFTMAX_CACHE_DIR=tmp_path / "none"
    )
    assert "logsumexp" in compiled  # without a warm-up it is compiled


@pytest.mark.slow
def test_nothing_at_all_is_compiled_afterwards(tmp_path, monkeypatch):
    names = sorted(set(fs.__all__) - NOT_COMPILED | set(functions.UFUNCS))
    assert warm(tmp_path / "cache", monkeypatch, names, ["float32", "float64"]).strip() == "[]"


@pytest.mark.parametrize("entry", _spec.FUNCTIONS.values(), ids=_spec.FUNCTIONS)
def test_jobs_call_what_they_are_for(entry):
    """A function is called for every shape, and with rows or segments so long that they are cut."""
    calls = [
        call
        for job in warmup.JOBS.values()
        for name, make in zip(job.names, job.calls, strict=True)
        for call in (make(np.dtype("float64")) if name == entry.name else ())
    ]
    assert {call.func for call in calls} == {getattr(fs, entry.name)}
    shapes = {np.shape(call.args[0]) for call in calls}
    if entry.is_ragged:
        assert len(shapes) == 2
        assert max(shapes)[0] > kernels.segments.HUGE
    else:
        assert shapes == {shape for shape, _ in warmup.SHAPES} | ({warmup.LONG_ROW} if entry.pieces else set())


def test_jobs_use_every_option():
    """Every option with machine code of its own is in `CHOICES`; the others only affect a kernel's arguments."""
    parameters = {
        parameter.name
        for entry in _spec.FUNCTIONS.values()
        for parameter in inspect.signature(getattr(fs, entry.name)).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    others = {"out", "keepdims", "where", "class_weight", "sample_weight", "ignore_index", "reduction"}
    assert parameters - set(warmup.CHOICES) == others


def test_an_unknown_function_is_refused(capsys):
    assert main(["warmup", "--functions", "nonsense"]) == 2
    assert "no function 'nonsense'; there are cross_entropy, " in capsys.readouterr().err


def test_a_directory_that_cannot_be_used_is_told(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(warmup, "run", lambda *_: [])
    assert main(["warmup"]) == 1
    assert capsys.readouterr().err.startswith("fastsoftmax warmup: nothing could be kept in ")


def test_what_goes_wrong_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(warmup, "run", lambda *_: ["softmax, float32: MemoryError: full"])
    monkeypatch.setattr(cache, "size", lambda: (1, 10))
    assert main(["warmup"]) == 1
    assert capsys.readouterr().err == "fastsoftmax warmup: softmax, float32: MemoryError: full\n"


def test_a_job_that_fails_does_not_stop_the_others(monkeypatch):
    monkeypatch.setitem(warmup.JOBS, "broken", warmup.Job(("broken",), ()))
    failures = warmup.run(["broken"], ["float32"], 1)
    (failure,) = failures
    assert failure.startswith("broken, float32: KeyError")  # the other process has no such job


def test_jobs_run_here_too():
    warmup.do("activations.logsumexp", "float32")


@pytest.mark.parametrize("terminal", [False, True])
def test_progress(capsys, monkeypatch, terminal):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    else:
        monkeypatch.delenv("FORCE_COLOR", raising=False)
    with warmup._progress(2) as advance:
        advance("first")
        advance("second")
    text = capsys.readouterr().out
    assert "2/2" in text
    assert "second" in text
    assert (text == "1/2 first\n2/2 second\n") == (not terminal)


def test_progress_without_rich(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with warmup._progress(1) as advance:
        advance("first")
    assert capsys.readouterr().out == "1/1 first\n"
