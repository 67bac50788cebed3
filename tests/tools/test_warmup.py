"""``fastsoftmax warmup``: afterwards nothing has to be compiled."""

import sys
from pathlib import Path

import child
import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax.runtime import cache
from fastsoftmax.tools import warmup
from fastsoftmax.tools.cli import main

NOT_COMPILED = {"threads"}
CUT = {"softmax", "log_softmax", "logsumexp", "products", "losses of labels", "losses of labels, gradients"}
"""Jobs of which a long row is cut into pieces."""

USUAL_CALLS = """
import sys, itertools
import numpy as np
sys.path.insert(0, sys.argv[1])
import functions
import fastsoftmax as fs
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
print(compiled)
"""


def test_every_public_function_is_in_a_job():
    named = {name for names, _ in warmup.JOBS.values() for name in names}
    assert named == set(fs.__all__) - NOT_COMPILED


def warm(directory, monkeypatch, functions, dtypes):
    """What a usual program has to compile after a warm-up, which is run as its users do."""
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(directory))
    monkeypatch.setenv("PYTHONPATH", str(child.PACKAGE.parent))
    assert main(["warmup", "--functions", *functions, "--dtypes", *dtypes, "--jobs", "2"]) == 0
    here = Path(__file__).parents[1]
    return child.run(USUAL_CALLS, here, ",".join(functions), ",".join(dtypes), FASTSOFTMAX_CACHE_DIR=directory)


def test_nothing_is_compiled_afterwards(tmp_path, monkeypatch, capsys):
    functions = ["softmax", "logsumexp"]
    assert warm(tmp_path / "cache", monkeypatch, functions, ["float32"]).strip() == "[]"
    text = capsys.readouterr().out
    files = len(list((tmp_path / "cache").glob("*.code")))
    assert files >= 3
    assert "1/2 " in text
    assert "2/2 " in text
    assert f"{files} kernels compiled in " in text
    compiled = child.run(
        USUAL_CALLS, Path(__file__).parents[1], "logsumexp", "float32", FASTSOFTMAX_CACHE_DIR=tmp_path / "none"
    )
    assert "logsumexp" in compiled  # without a warm-up it would be seen


@pytest.mark.slow
def test_nothing_at_all_is_compiled_afterwards(tmp_path, monkeypatch):
    functions = sorted(set(fs.__all__) - NOT_COMPILED)
    assert warm(tmp_path / "cache", monkeypatch, functions, ["float32", "float64"]).strip() == "[]"


@pytest.mark.parametrize("job", warmup.JOBS)
def test_jobs_call_what_they_are_for(job):
    """The functions that share a job share its kernels: each kind of call is made for every shape."""
    names, calls = warmup.JOBS[job]
    made = list(calls(np.dtype("float64")))
    assert {call.func.__name__ for call in made} & set(names)
    assert {call.func.__name__ for call in made} <= set(fs.__all__)
    if "segments" not in job:  # which have one
        shapes = {shape for shape, _ in warmup.SHAPES}
        if job in CUT:
            shapes.add(warmup.LONG_ROW)
        assert {np.shape(call.args[0]) for call in made} == shapes


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
    monkeypatch.setitem(warmup.JOBS, "broken", (("broken",), None))
    failures = warmup.run(["broken"], ["float32"], 1)
    (failure,) = failures
    assert failure.startswith("broken, float32: KeyError")  # the other process has no such job


def test_jobs_run_here_too():
    warmup.do("logsumexp", "float32")


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
