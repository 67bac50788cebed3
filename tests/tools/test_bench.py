"""Benchmarks: the cases do what their names say, samples are taken in turns, reports show what was measured."""

import importlib
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import fastsoftmax as fs
from fastsoftmax.arrays.threads import max_threads
from fastsoftmax.tools import info
from fastsoftmax.tools.bench import (
    cases,
    command,
    journal,
    libraries,
    maps,
    measure,
    pictures,
    report,
    session,
    startup,
)
from fastsoftmax.tools.bench.cases import FUNCTIONS, DisagreementError
from fastsoftmax.tools.bench.inputs import Inputs
from fastsoftmax.tools.bench.libraries import ALL, OURS, PEERS, Library
from fastsoftmax.tools.bench.measure import Timing
from fastsoftmax.tools.bench.session import Choice, Complaints, Row
from fastsoftmax.tools.cli import main

ROOT = Path(__file__).parents[2]
QUICK_LIBRARIES = ("NumPy", "SciPy")


@pytest.fixture
def thread_settings(monkeypatch):
    """Restore the environment, which `inputs.prepare` changes."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC", "PJRT_NPROC"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def short(monkeypatch, thread_settings):
    """Samples that take no time; no row is doubtful, whatever other programs do."""
    monkeypatch.setattr(measure, "UNSTEADY", math.inf)
    monkeypatch.setattr(measure, "WAITING", math.inf)
    monkeypatch.setattr(session, "WAITING_SECONDS", math.inf)
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 1e-5)
    monkeypatch.setattr(measure, "SETTLE_SECONDS", 1e-5)
    monkeypatch.setattr(measure, "REST_SECONDS", 1e-5)
    monkeypatch.setattr(session, "SWEEP_CLASSES", (3, 30))
    monkeypatch.setattr(session, "SWEEP_ELEMENTS", 300)
    monkeypatch.setattr(session, "SWEEP_ROWS", (1, 4))
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def forget(message):
    raise AssertionError(f"unexpected complaint: {message}")


# --- cases --------------------------------------------------------------------------------------------------


def agreement(shapes, dtype, names, functions=tuple(FUNCTIONS)):
    """Check that all cases of these libraries agree with ours; returns the number of cases of each library."""
    counted = dict.fromkeys(names, 0)
    for shape in shapes:
        data = Inputs(shape, dtype)
        for function in functions:
            if "jacobian" in function and len(shape) != 2:
                continue
            for library, call in cases.calls(function, data, names):
                if isinstance(call, Exception):
                    raise call
                if library != OURS:
                    counted[library] += 1
    return counted


def test_numpy_and_scipy_agree_with_us():
    counted = agreement([(1, 10), (40, 7), (2, 5, 4, 3)], np.float32, QUICK_LIBRARIES)
    formulas = [name for name in FUNCTIONS if ALL["NumPy"].setup(name)]
    assert len(formulas) >= 14
    assert counted == {"NumPy": 3 * len(formulas) - 2, "SciPy": 21}  # two are Jacobians, of matrices only


@pytest.mark.parametrize(
    ("library", "module", "functions"),
    [("scikit-learn", "sklearn", 7), ("PyTorch", "torch", 27), ("JAX", "jax", 17), ("Optax", "optax", 8)],
)
def test_other_libraries_agree_with_us(library, module, functions, thread_settings):
    pytest.importorskip(module)
    assert agreement([(40, 7)], np.float32, (library,)) == {library: functions}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("library", PEERS)
def test_all_libraries_agree_with_us(library, dtype, thread_settings):
    if not ALL[library].installed():
        pytest.skip(f"{library} is not installed")
    assert agreement([(1, 10), (40, 7), (3, 1000), (2, 5, 4, 3)], dtype, (library,))[library] >= 9


def test_the_loop_that_everybody_writes_agrees_with_us():
    functions = ("softmax", "softmax, out=", "cross_entropy_with_grad")  # three more seconds for each further loop
    assert agreement([(40, 7)], np.float32, ("Numba loop",), functions) == {"Numba loop": 3}


def test_every_function_has_a_yardstick_and_ours():
    for name, setups in cases.cases().items():
        assert next(iter(setups)) == OURS
        assert FUNCTIONS[name].setup(Inputs((3, 4), np.float32))() is not forget
    assert set(cases.cases()["softmax"]) == {library.name for library in ALL.values() if library.installed()}


def test_out_is_written_to_where_the_name_says_so():
    data = Inputs((3, 4), np.float64)
    for name, setups in cases.cases(("NumPy",)).items():
        for library, setup in setups.items():
            results = setup(data)()
            results = results if isinstance(results, tuple) else (results,)
            given = any(np.shares_memory(r, o) for r in results for o in (data.out, data.jacobian))
            assert given == name.endswith("out="), (name, library)


def test_fresh_results_do_not_reuse_memory():
    """If a library returned the same array each time, the cost of new memory would not be timed."""
    data = Inputs((3, 4), np.float64)
    for name, setups in cases.cases(("NumPy", "SciPy")).items():
        if name.endswith("out=") or name == "cross_entropy":
            continue
        for library, setup in setups.items():
            call = setup(data)
            first, second = (r[1] if isinstance(r, tuple) else r for r in (call(), call()))
            assert not np.shares_memory(first, second), (name, library)


def test_libraries_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(ALL["SciPy"], "modules", ("no_such_module",), raising=False)
    assert not ALL["SciPy"].installed()
    assert all("SciPy" not in setups for setups in cases.cases().values())


def test_libraries_may_be_chosen():
    assert set(cases.cases(("SciPy",))["softmax"]) == {OURS, "SciPy"}
    assert set(cases.cases(("SciPy",))["softmax_jvp"]) == {OURS}


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_disagreement_is_seen(dtype):
    x = np.linspace(0, 1, 100, dtype=dtype)
    cases.check("f", "a", x, x * dtype_one(dtype), dtype)
    for wrong in (x + 2e3 * np.finfo(dtype).eps, np.where(x > 0.5, np.nan, x)):
        with pytest.raises(DisagreementError, match="f of a differs from ours by"):
            cases.check("f", "a", x, wrong.astype(dtype), dtype)
    with pytest.raises(DisagreementError, match=r"shape \(99,\), ours \(100,\)"):
        cases.check("f", "a", x, x[1:], dtype)
    with pytest.raises(DisagreementError):
        cases.check("f", "a", (0.0, x), (1.0, x), dtype)


def dtype_one(dtype):
    """1 with an error of the last place."""
    return np.dtype(dtype).type(1) + np.finfo(dtype).eps


def test_small_results_are_compared_at_their_own_size():
    """Probabilities of 10 million classes are about 1e-7, so that an error of 1e-8 must be found."""
    p = np.full(1000, 1e-7)
    with pytest.raises(DisagreementError):
        cases.check("softmax", "a", p, p + 1e-8, np.float64)


class Peer(Library):
    """A library whose softmax does what a test says."""

    name = "Peer"

    def __init__(self, call):
        self.call = call

    def softmax(self, inputs):
        return self.call


def boom():
    raise MemoryError("no room")


@pytest.mark.parametrize(
    ("call", "error"),
    [(boom, MemoryError), (lambda: np.zeros((3, 4)), DisagreementError), (lambda: 1, DisagreementError)],
)
def test_a_failing_peer_is_left_out_with_a_note(monkeypatch, short, call, error):
    monkeypatch.setitem(ALL, "Peer", Peer(call))
    notes = []
    complaints = Complaints(notes.append)
    (found,) = session.rows(
        Choice(("softmax",), ((3, 4),), ("float64",), (OURS, "NumPy", "Peer")), 0.01, 1, complaints
    )
    assert set(found.timings) == {OURS, "NumPy"}
    (note,) = notes
    assert note.startswith(f"softmax, 3 x 4, float64: Peer is left out: {error.__name__}: ")
    assert complaints.disagreements == (notes if error is DisagreementError else [])


def test_results_are_compared_unless_that_is_not_wanted(monkeypatch):
    """The process with one thread does not compare them again. A call that fails is still found."""
    data = Inputs((3, 4), np.float64)
    monkeypatch.setitem(ALL, "Peer", Peer(lambda: np.zeros((3, 4))))
    assert isinstance(dict(cases.calls("softmax", data, ("Peer",)))["Peer"], DisagreementError)
    assert callable(dict(cases.calls("softmax", data, ("Peer",), compared=False))["Peer"])
    monkeypatch.setitem(ALL, "Peer", Peer(boom))
    assert isinstance(dict(cases.calls("softmax", data, ("Peer",), compared=False))["Peer"], MemoryError)


def test_our_own_failure_is_not_hidden(monkeypatch):
    ours = Peer(boom)
    ours.name = OURS
    monkeypatch.setitem(ALL, OURS, ours)
    with pytest.raises(MemoryError):
        list(cases.calls("softmax", Inputs((3, 4), np.float64)))


def test_threads_of_libraries_that_are_not_imported_yet():
    code = (
        "import os; from fastsoftmax.tools.bench import inputs; inputs.prepare(1)\n"
        "import torch; print(torch.get_num_threads(), os.environ['NPROC'])"
    )
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


def test_threads_are_ours_for_everybody():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        with fs.threads(1):
            libraries.PyTorch().softmax(Inputs((3, 4), np.float32))
            assert torch.get_num_threads() == 1
            assert libraries.ScikitLearn()._loss(Inputs((3, 4), np.float32))[1]["n_threads"] == 1
    finally:
        torch.set_num_threads(before)


# --- samples ------------------------------------------------------------------------------------------------


@pytest.mark.timed
def test_measure_finds_what_sleep_takes():
    found = measure.measure({"a": lambda: time.sleep(0.002), "b": lambda: time.sleep(0.006)}, 0.3)
    assert 0.002 <= found["a"].median < 0.005
    assert 0.006 <= found["b"].median < 0.012
    assert all(measure.FEWEST <= timing.samples <= measure.MOST for timing in found.values())


@pytest.mark.timed
def test_libraries_take_turns(short):
    """All libraries are sampled in each round."""
    order = []
    measure.measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.02)
    quarter = len(order) // 4
    assert set(order[quarter : 2 * quarter]) == {"a", "b"}
    assert set(order[2 * quarter : 3 * quarter]) == {"a", "b"}


def test_each_library_has_windows_of_its_own_after_a_rest(monkeypatch):
    """Nothing is called during a rest; each window has calls of one library, more than are timed."""
    order = []
    monkeypatch.setattr(measure.time, "sleep", lambda seconds: order.append(seconds))
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 1e-6)
    monkeypatch.setattr(measure, "SETTLE_SECONDS", 1e-4)
    found = measure.measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.0)
    windows = " ".join(map(str, order)).split(str(measure.REST_SECONDS))[1:]
    assert len(windows) == 2 * measure.FEWEST
    assert (
        sorted("".join({*window.split()}) for window in windows) == ["a"] * measure.FEWEST + ["b"] * measure.FEWEST
    )
    assert all(len(window.split()) > 3 for window in windows)
    assert found["a"].samples == found["b"].samples == measure.FEWEST


@pytest.mark.parametrize(("others", "median", "has_waited"), [(0.0, 8.0, False), (0.9, 8.0, True)])
def test_windows_in_which_threads_waited_do_not_count(others, median, has_waited):
    """Unless there are no others: then the timing says so, if another program had the processors."""
    contender = measure._Contender(lambda: None)
    contender.windows = [([8.0, 8.0], 1.0), ([8.0], 0.8)]
    timing = contender.timing(others)
    assert (timing.median, timing.samples, timing.has_waited) == (median, 3, has_waited)
    contender.windows += [([2.0, 2.0], 0.1), ([2.0], 0.0)]
    timing = contender.timing(others)
    assert (timing.median, timing.samples, timing.has_waited, timing.is_steady) == (2.0, 3, False, True)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="only Linux tells who waits")
def test_waiting_is_seen():
    """Two programs on one processor."""
    code = (
        "import os, subprocess, sys, time\n"
        "os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])\n"
        "from fastsoftmax.tools.bench import measure\n"
        "busy = subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
        "time.sleep(0.5)\n"
        "try: found = measure.measure({'a': lambda: sum(range(100_000))}, 0.5)['a']\n"
        "finally: busy.kill(); busy.wait()\n"
        "print(found.waiting)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) > measure.WAITING / 2


@pytest.mark.timed
def test_the_first_calls_do_not_count(short):
    """The first calls may compile. They are not samples, and the time of a call is measured after them."""
    made = []

    def call():
        made.append(None)
        if len(made) < 2:
            time.sleep(0.12)

    timing = measure.measure({"a": call}, 0.01)["a"]
    assert timing.median < 0.01
    assert len(made) > 3 * timing.samples


@pytest.mark.timed
@pytest.mark.parametrize(("seconds", "count", "samples"), [(0.05, 4, 3), (0.15, 3, 2), (0.25, 2, 2)])
def test_slow_calls_are_made_few_times(seconds, count, samples):
    """No call before the samples of a window. The latest of the calls that show how slow it is counts, too."""
    made = []
    timing = measure.measure({"a": lambda: made.append(time.sleep(seconds))}, 0.01)["a"]
    assert len(made) == count
    assert timing.samples == samples
    assert timing.median > 0.9 * seconds


def test_calls_that_suddenly_wait_do_not_settle_for_long(monkeypatch):
    """A fast call is made thousands of times before its samples, but not if it takes 100 milliseconds there."""
    monkeypatch.setattr(measure, "REST_SECONDS", 0.0)
    contender = measure._Contender(lambda: None)
    made = []
    contender.call = lambda: made.append(time.sleep(0.1))
    contender.count = 1
    assert contender.settle > 1000
    contender.window(0.0)
    assert len(made) == 2  # one of them is the sample


def test_large_shapes_are_measured_first_and_shown_last(short):
    choice = Choice(("softmax", "logsumexp"), ((3, 4), (20, 30)), ("float64",), QUICK_LIBRARIES)
    found = list(session.rows(choice, 0.001, 1, Complaints(forget)))
    assert [row.shape for row in found] == [(20, 30), (20, 30), (3, 4), (3, 4)]
    shown = [(row.function, row.shape) for row in sorted(found, key=lambda row: row.place)]
    assert shown == [(f, s) for f in ("softmax", "logsumexp") for s in ((3, 4), (20, 30))]


def test_timing():
    timing = Timing.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (timing.median, timing.spread, timing.samples) == (3.0, 1 / 3, 5)


@pytest.mark.timed
def test_rows_end_in_time(short, monkeypatch):
    """Without time left, each call still gets the least number of samples."""
    monkeypatch.setattr(measure, "MOST", 10**9)
    choice = Choice(("softmax", "logsumexp"), ((3, 4),), ("float64",), QUICK_LIBRARIES)
    list(session.rows(choice, 0.01, 1, Complaints(forget)))
    start = time.perf_counter()
    found = list(session.rows(choice, 60.0, 0.2, Complaints(forget)))
    assert time.perf_counter() - start < 20
    assert [row.function for row in found] == ["softmax", "logsumexp"]


def test_cells():
    everything = Choice().cells()
    jacobians = [cell for cell in everything if "jacobian" in cell[2]]
    others = [name for name in FUNCTIONS if "jacobian" not in name]
    main = [name for name in others if libraries.CASES[name][0].group in cases.MAIN_GROUPS]
    assert 2 * len(main) > 12 < len(others) - len(main)
    assert (
        len(everything)
        == len(set(everything))
        == 2
        * (
            len(main) * len(cases.SHAPES)
            + (len(others) - len(main)) * len(cases.FEW_SHAPES)
            + 2 * len(cases.JACOBIAN_SHAPES)
        )
    )
    assert set(cases.FEW_SHAPES) < set(cases.SHAPES)
    assert set(cases.MAIN_GROUPS) < set(report.families())
    assert {shape for shape, _, _ in jacobians} == set(cases.JACOBIAN_SHAPES)
    assert Choice(("softmax", "softmax_jacobian"), ((2, 3, 4),), ("float32",)).cells() == [
        ((2, 3, 4), "float32", "softmax")
    ]


def test_inputs():
    data = Inputs((4, 5, 6), np.float32)
    assert data.logits.dtype == data.out.dtype == data.probs.dtype == data.tangent.dtype == np.float32
    assert (data.classes, data.rows, data.row_shape) == (5, 24, (4, 6))
    assert data.labels.shape == (4, 6)
    assert 0 <= data.labels.min() <= data.labels.max() < 5
    np.testing.assert_allclose(data.probs.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(Inputs((4, 5, 6), np.float32).logits, data.logits)
    assert 2 < Inputs((100, 100), np.float64).logits.std() < 4


# --- reports ------------------------------------------------------------------------------------------------


def made_up(function="softmax", shape=(32, 10), dtype="float32", **peers):
    timings = {OURS: Timing(2e-3, 0.05, 9), **{name: Timing(t, 0.1, 9) for name, t in peers.items()}}
    return Row(function, shape, dtype, Timing(1e-3, 0.01, 9), timings)


def made_up_results():
    rows = [
        made_up(NumPy=4e-3, JAX=1e-3),
        made_up(dtype="float64", NumPy=3e-3),
        made_up("softmax_jacobian", (10_000, 100), NumPy=6e-3, SciPy=5e-3),
    ]
    machine = {
        "date": "2020-01-01",
        "processor": "P",
        "system": "S",
        "threads": 2,
        "python": "3",
        "versions": {"numpy": "2"},
    }
    sweep = [
        made_up(f, (10, k), NumPy=t) for f in ("softmax", "softmax, out=") for k, t in ((2, 3e-3), (20, 4e-3))
    ]
    startups = [startup.Startup("NumPy", 0.1, 0.2)]
    return report.Results(machine, rows, sweep, sweep, startups)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (7.3e-7, "0.73 µs"),
        (1e-5, "10.0 µs"),
        (9.994e-3, "9.99 ms"),
        (9.996e-3, "10.0 ms"),
        (0.9996, "1.00 s"),
        (123.0, "123 s"),
    ],
)
def test_durations(seconds, text):
    assert report.duration(seconds) == text


def test_losses_are_told():
    text = report.verdict(made_up_results().rows)
    assert text == (
        "In the median of 3 rows, our time is 0.67 of the best peer's. Behind in 1: softmax 32 x 10 float32 "
        "(JAX 0.50 x)."
    )
    assert report.verdict(made_up_results().rows[1:]) == (
        "In the median of 2 rows, our time is 0.53 of the best peer's."
    )
    assert report.verdict([made_up()]) == "In the median of 1 rows, there is no peer to compare with."


def test_markdown():
    text = report.complete(made_up_results(), "a command")
    assert "2020-01-01, P, S, up to 2 threads for each library, Python 3, numpy 2; made by `a command`" in text
    assert "| shape | fastsoftmax | x.copy() | NumPy | JAX |" in text
    assert "| 32 x 10 | **2.00 ms** ± 5 % | 1.00 ms (2.00) | 4.00 ms (2.00 x) | *1.00 ms (0.50 x)* |" in text
    assert "## softmax, float64" in text
    assert "| NumPy | 100 ms | 200 ms | 300 ms |" in text
    short = report.summary(made_up_results(), "a command", "more.md", "speed.png")
    assert "float64 too, are in [more.md](more.md). In the median of its 3 rows" in short
    assert "rows, our time is 0.67 of the best peer's; rows behind the best peer: 1." in short
    assert "![Time against classes, rows and peers](speed.png)" in short
    assert short.count("| softmax") == 2


def test_a_busy_machine_is_told():
    facts = made_up_results().machine
    assert "busy" not in report.caption(facts)
    assert "S, busy with other work (load 3.2)" in report.caption(facts | {"load": 3.2})
    assert report.machine()["threads"] == max_threads()


def test_json():
    content = json.loads(report.as_json(made_up_results()))
    first = content["rows"][0]
    assert first["timings"][OURS] == {"median": 2e-3, "spread": 0.05, "samples": 9, "waiting": 0.0}
    assert first["ratios"] == {"NumPy": 2.0, "JAX": 0.5}
    assert first["to_yardstick"] == 2.0
    assert len(content["by_classes"]) == 4
    results = with_one_thread()
    assert report.from_json(report.as_json(results)) == results
    assert report.from_json(report.as_json(made_up_results())) == made_up_results()


def test_results_of_earlier_versions_can_be_read():
    content = json.loads(report.as_json(made_up_results()))
    for row in content["rows"]:
        del row["single"]
        for timing in (row["yardstick"], *row["timings"].values()):
            del timing["waiting"]
    assert report.from_json(json.dumps(content)) == made_up_results()


def with_one_thread():
    """Two functions on two shapes, of which one column is behind."""
    rows = []
    for function, shape in (("softmax", (3, 4)), ("softmax", (30, 40)), ("logsumexp", (3, 4))):
        row = made_up(function, shape, NumPy=8e-3, PyTorch=4e-3 if function == "softmax" else 1e-3)
        row.single = {OURS: Timing(3e-3, 0.05, 9), "NumPy": Timing(8e-3, 0.1, 9), "PyTorch": Timing(6e-3, 0.1, 9)}
        rows.append(row)
    machine = made_up_results().machine | {"model": "znver9", "simd": "AVX-512"}
    return report.Results(machine, rows)


def test_one_thread_has_columns():
    """NumPy has none, because it uses one thread anyway."""
    text = report.complete(with_one_thread(), "a command")
    assert "| shape | fastsoftmax | 1 thread | x.copy() | NumPy | PyTorch | 1 thread |" in text
    assert (
        "| 3 x 4 | **2.00 ms** ± 5 % | 3.00 ms ± 5 % | 1.00 ms (2.00) | 8.00 ms (4.00 x) | 4.00 ms (2.00 x) | "
        "6.00 ms (2.00 x) |"
    ) in text
    assert "our time is 0.50 (0.50 with one thread each) of the best peer's" in text
    assert "P (znver9, AVX-512), S, up to 2 threads" in text


def test_the_best_peer_has_to_be_certain():
    row = made_up(NumPy=4e-3, JAX=3e-3)
    assert (row.best_peer(), row.to_best()) == ("JAX", 2 / 3)
    assert row.best_peer(single=True) is None
    row.timings["NumPy"] = Timing(4e-3, 0.9, 9)  # varies, but is not the fastest
    assert row.best_peer() == "JAX"
    row.timings["NumPy"] = Timing(4e-3, 0.1, 9, waiting=0.9)  # may be the fastest in truth
    assert row.best_peer() is None
    row.timings["NumPy"] = Timing(4e-3, 0.1, 9)
    row.timings["JAX"] = Timing(3e-3, 0.9, 9)  # the fastest, and varies
    assert row.best_peer() is None
    row.timings["JAX"] = Timing(3e-3, 0.1, 9)
    row.timings[OURS] = Timing(2e-3, 0.9, 9)
    assert row.best_peer() is None
    assert "Doubtful, because times vary too much or threads waited: softmax 32 x 10 float32 (fastsoftmax)." in (
        report.verdict([row])
    )
    assert "| 32 x 10 | **~2.00 ms** ± 90 % |" in report.complete(
        report.Results(made_up_results().machine, [row]), ""
    )


def test_a_call_that_waits_with_threads_and_not_with_one_is_doubtful():
    """8 ms for everything: a scheduler's artefact. A slow start of threads is none."""
    row = made_up(PyTorch=8e-3)
    row.single = {OURS: Timing(2e-3, 0.05, 9), "PyTorch": Timing(4e-5, 0.1, 9)}
    assert row.has_waited("PyTorch")
    assert not row.has_waited("PyTorch", single=True)
    assert row.best_peer() is None
    assert row.best_peer(single=True) == "PyTorch"
    row.timings["PyTorch"] = Timing(3e-4, 0.1, 9)
    assert not row.has_waited("PyTorch")


def test_map():
    results = with_one_thread()
    (table,) = maps.tables(results.rows)
    assert (table.dtype, table.functions, table.shapes) == (
        "float32",
        ["softmax", "logsumexp"],
        [(3, 4), (30, 40)],
    )
    text = maps.markdown(results, "a command")
    assert "| float32 | softmax | 1 thread | logsumexp | 1 thread |" in text
    assert "| 3 x 4 | 0.50 P | 0.50 P | **2.00 P** | 0.50 P |" in text
    assert "| 30 x 40 | 0.50 P | 0.50 P |  |  |" in text
    assert (
        "In the median cell our time is 0.50 (0.50 with one thread each) of the best peer's; behind in 1 of 3."
        in text
    )
    assert maps.name(results) == "P (znver9, AVX-512), 2 threads"
    results.rows[0].timings["PyTorch"] = Timing(4e-3, 0.1, 9, waiting=1.0)
    assert "| 3 x 4 | ~ | 0.50 P |" in maps.markdown(results, "a command")
    assert "behind in 1 of 3, not counting 1 that cannot be told." in maps.summary(results)
    assert maps.cell(made_up()) == ""
    assert maps.cell(made_up(JAX=1e-5)) == "200 J"
    assert set(maps.LETTERS) == set(PEERS)


def test_map_is_drawn(tmp_path):
    """The same numbers give the same file, with a text in each cell; PNG is the other format."""
    results = with_one_thread()
    for name in ("a.svg", "b.svg", "c.png"):
        pictures.draw_map(results, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert text.count("0.50 P") == 5
    assert text.count("2.00 P") == 1
    for word in (
        "P (znver9, AVX-512), 2 threads",
        "float32, 1 thread",
        "float32, 2 threads",
        "30 x 40",
        "logsumexp",
    ):
        assert word in text
    for row in results.rows:
        row.timings["PyTorch"] = Timing(4e-3, 0.1, 9)
    pictures.draw_map(results, tmp_path / "ahead.png")
    behind, ahead = (imread(tmp_path / name)[..., :3] for name in ("c.png", "ahead.png"))
    red = [np.sum(pixels[..., 0] - pixels[..., 2] > 0.2) for pixels in (behind, ahead)]
    assert red[0] > 2 * red[1]  # the cell that is behind, and the scale of colours


def test_picture(tmp_path):
    """The picture has three panels with our colour in each, and is small enough for a README."""
    path = tmp_path / "speed.png"
    pictures.draw(made_up_results(), path)
    pixels = imread(path)[..., :3]
    assert pixels.shape[1] > 2 * pixels.shape[0] > 600
    assert path.stat().st_size < 100_000
    ours = np.array([0x2F, 0x6D, 0xB5]) / 255
    for panel in np.array_split(pixels[: int(0.85 * len(pixels))], 3, axis=1):
        assert np.mean(np.all(np.abs(panel - ours) < 0.04, axis=-1)) > 1e-4
    pictures.draw(report.Results({}, made_up_results().rows), path)
    assert imread(path).shape[1] < pixels.shape[1] / 2


def test_bars_are_of_the_largest_group():
    rows = [made_up(NumPy=1e-3), made_up(shape=(3, 4), NumPy=1e-3), made_up("logsumexp", (3, 4), NumPy=1e-3)]
    assert pictures.bar_rows(report.Results({}, rows)) == rows[1:]
    assert pictures.bar_rows(report.Results({}, [made_up()])) == []


# --- the command --------------------------------------------------------------------------------------------


def test_bench(capsys, tmp_path, short):
    output = tmp_path / "new"
    arguments = ["bench", "--function", "softmax", "--shape", "3x4", "20x30", "--dtype", "float32"]
    arguments += ["--library", "numpy", "scipy", "--seconds", "0.01", "--threads", "1", "--quick"]
    assert main([*arguments, "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    assert "1 thread for each library" in words
    assert "softmax, float32; limit: x.copy() shape ours ± limit NumPy SciPy" in words
    assert "softmax, out=, float32" not in words
    assert "In the median of 2 rows, our time is" in words
    content = json.loads((output / "results.json").read_text())
    assert [row["shape"] for row in content["rows"]] == [[3, 4], [20, 30]]
    assert all(set(row["timings"]) == {OURS, "NumPy", "SciPy"} for row in content["rows"])
    assert all(t["median"] > 0 for row in content["rows"] for t in row["timings"].values())
    assert content["machine"]["threads"] == 1
    assert (output / "results.md").read_text().startswith("# Speed")
    assert imread(output / "speed.png").size


def test_bench_map(capsys, tmp_path, short):
    arguments = ["bench", "--map", "--function", "softmax", "logsumexp", "--shape", "3x4", "20x30"]
    arguments += ["--library", "numpy", "scipy", "--seconds", "0.01", "--threads", "1"]
    arguments += ["--output", str(tmp_path / "new"), "--picture", str(tmp_path / "map.svg")]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "In the median of 8 rows" in " ".join(text.split())
    results = report.from_json((tmp_path / "new" / "map.json").read_text())
    assert len(results.rows) == 2 * 2 * 2
    assert {(row.shape, row.dtype) for row in results.rows} == {
        (s, d) for s in ((3, 4), (20, 30)) for d in cases.DTYPES
    }
    assert results.machine["model"] == info.model()
    assert results.machine["simd"] in {*info.LEVELS.values(), *(called for _, called, _ in info.REGISTERS)}
    assert "| float64 | softmax | logsumexp |" in (tmp_path / "new" / "map.md").read_text()
    assert (tmp_path / "map.svg").read_text().count("float") == 2


@pytest.mark.skipif(max_threads() < 2, reason="needs two processors")
def test_one_thread_is_measured_in_another_process(thread_settings):
    """JAX is not in that process before its number of threads is set."""
    names = [name for name in ("NumPy", "JAX") if ALL[name].installed()]
    choice = Choice(("softmax",), ((30, 40),), ("float32",), (OURS, *names))
    with session.OneThread() as one_thread:
        (found,) = session.rows(choice, 0.02, 60, Complaints(forget), one_thread)
        assert one_thread._pool.submit(os.getenv, "NPROC").result() == "1"
        assert one_thread._pool.submit(os.getpid).result() != os.getpid()
    assert set(found.single) == {OURS, *names}
    assert found.single["NumPy"] == found.timings["NumPy"]  # is not measured twice
    assert found.single[OURS] != found.timings[OURS]


@pytest.mark.skipif(max_threads() < 2, reason="needs two processors")
def test_calls_that_failed_with_one_thread_are_left_out_there(thread_settings):
    """As PyTorch's here, which was never made in that process."""
    notes = []
    with session.OneThread() as one_thread:
        preparing = one_thread.prepare("softmax", Inputs((30, 40), np.float32), (OURS, "NumPy"))
        assert preparing.result() == notes
        assert set(one_thread.timings((OURS, "PyTorch"), 0.02)) == {OURS}


# --- runs that are stopped ----------------------------------------------------------------------------------

THREE = Choice(("softmax", "softmax, out=", "logsumexp"), ((3, 4),), ("float32",), (OURS, "NumPy"))


@pytest.fixture
def stopping(monkeypatch, short):
    """Make-believe measurements: a list of the functions that were measured, and how many may be until a stop."""
    measured, left = [], [math.inf]

    def row(function, inputs, libraries, seconds, complaints, one_thread):
        if len(measured) >= left[0]:
            raise KeyboardInterrupt
        measured.append(function)
        return made_up(function, inputs.shape, inputs.dtype.name, NumPy=1e-3 * len(measured))

    monkeypatch.setattr(session, "row", row)
    monkeypatch.setattr(report, "machine", lambda: dict(made_up_results().machine))
    return measured, left


def stopped(stopping, path, until, **settings):
    """A run that is stopped after so many rows."""
    measured, left = stopping
    measured.clear()
    left[0] = until
    with pytest.raises(KeyboardInterrupt):
        command.run(THREE, **{"quick": True, "seconds": 0.1, "unfinished": path} | settings)
    left[0] = math.inf
    measured.clear()


def test_a_run_that_was_stopped_is_continued(tmp_path, capsys, stopping):
    """Rows are taken as they were measured; the lines of the picture, too."""
    path = tmp_path / "unfinished.jsonl"
    stopped(stopping, path, 2)
    with path.open("a") as file:
        file.write('{"list": "rows", "row": {"function": "logsum')  # as if killed while it wrote
    capsys.readouterr()
    results, agree = command.run(THREE, quick=True, seconds=0.1, output=tmp_path / "new", unfinished=path)
    assert agree
    assert "Continued: 2 rows are those of" in capsys.readouterr().out
    assert sum("run" in record for record in journal._records(path)) == 2
    assert stopping[0] == ["logsumexp", *2 * ["softmax", "softmax, out="]]
    assert [row.function for row in results.rows] == list(THREE.functions)
    assert [row.timings["NumPy"].median for row in results.rows] == [1e-3, 2e-3, 1e-3]
    stopping[0].clear()
    again, _ = command.run(THREE, quick=True, seconds=0.1, output=tmp_path / "again", unfinished=path)
    assert stopping[0] == []
    assert again == results
    assert (tmp_path / "again" / "results.json").read_text() == (tmp_path / "new" / "results.json").read_text()


@pytest.mark.parametrize("change", ["seconds", "libraries", "versions", "processor", "sources"])
def test_rows_of_another_run_are_not_taken(tmp_path, monkeypatch, stopping, change):
    """Other sources, another machine, other versions or settings: all is measured, and the file begins again."""
    path, choice, seconds = tmp_path / "unfinished.jsonl", THREE, 0.1
    stopped(stopping, path, 2)
    if change == "seconds":
        seconds = 0.2
    elif change == "libraries":
        choice = Choice(THREE.functions, THREE.shapes, THREE.dtypes, (OURS,))
    elif change == "sources":
        monkeypatch.setattr(journal, "sources", lambda: "others")
    else:
        machine = report.machine() | {change: {"numpy": "1"}}
        monkeypatch.setattr(report, "machine", lambda: dict(machine))
    command.run(choice, quick=True, seconds=seconds, unfinished=path)
    assert stopping[0] == list(THREE.functions)
    assert path.read_text().count('"list": "rows"') == 3
    assert path.read_text().count('"run"') == 1


def test_a_continued_run_tells_the_load_of_all_its_parts(tmp_path, monkeypatch, stopping):
    """And the date of its beginning."""
    path, facts = tmp_path / "unfinished.jsonl", made_up_results().machine
    for date, load in (("2020-01-01", 0.1), ("2020-01-02", 3.0), ("2020-01-03", 0.2)):
        monkeypatch.setattr(report, "machine", lambda date=date, load=load: {**facts, "date": date, "load": load})
        stopped(stopping, path, 0)
    results, _ = command.run(THREE, quick=True, seconds=0.1, unfinished=path)
    assert (results.machine["date"], results.machine["load"]) == ("2020-01-01", 3.0)


def test_wrong_results_are_found_again_by_a_continued_run(tmp_path, monkeypatch, short):
    monkeypatch.setattr(ALL["NumPy"], "softmax", lambda x, out=None: lambda: np.zeros((3, 4)), raising=False)
    path = tmp_path / "unfinished.jsonl"
    for _ in range(2):
        _, agree = command.run(THREE, quick=True, seconds=0.01, unfinished=path)
        assert not agree
    assert path.read_text().count('"function": "logsumexp"') == 1
    assert path.read_text().count('"function": "softmax"') == 0


def test_rows_that_are_left_have_their_part_of_the_limit(stopping, monkeypatch):
    shares = []
    take = session.row

    def row(function, inputs, libraries, seconds, *more):
        shares.append(seconds)
        return take(function, inputs, libraries, seconds, *more)

    monkeypatch.setattr(session, "row", row)
    stored = {((3, 4), "float32", "softmax"): made_up()}
    found = list(session.rows(THREE, 1e9, 3e6, Complaints(forget), stored=stored))
    assert found[0] is next(iter(stored.values()))
    assert stopping[0] == ["softmax, out=", "logsumexp"]
    assert shares == pytest.approx([1e6, 2e6], rel=1e-3)


def test_a_stopped_run_writes_no_page(tmp_path, monkeypatch, script, stopping):
    """README.md, RESULTS.md and the stored results change when everything is measured."""
    copied_pages(tmp_path, monkeypatch, script)
    script.write_pages(tmp_path)
    monkeypatch.setattr(script, "Choice", lambda: THREE)
    monkeypatch.setattr(startup, "of", lambda names: [])
    names = ("README.md", "RESULTS.md", "results.json", "docs/guide/speed.md")
    before = [(tmp_path / name).read_text() for name in names]
    measured, left = stopping
    for until in (2, 4):
        left[0] = until
        monkeypatch.setattr(sys, "argv", ["report.py", "--write"])
        with pytest.raises(KeyboardInterrupt):
            script.main()
        assert [(tmp_path / name).read_text() for name in names] == before
        assert (tmp_path / "unfinished-everything.jsonl").exists()
    left[0] = math.inf
    assert script.main() == 0
    assert measured[:3] == list(THREE.functions)
    assert len(measured) == 3 + 2 * 4
    assert not list(tmp_path.glob("unfinished*"))
    assert len(script.read(tmp_path / "results.json").rows) == 3
    after = [(tmp_path / name).read_text() for name in names]
    assert all(a != b for a, b in zip(after[1:], before[1:], strict=True))


def test_the_map_has_the_middle_sizes():
    assert len(set(cases.MAP_SHAPES)) == len(cases.MAP_SHAPES) == 18
    assert list(cases.MAP_SHAPES) == sorted(cases.MAP_SHAPES, key=math.prod)
    assert {
        (1, 3),
        (300, 100),
        (1000, 100),
        (5000, 33),
        (200, 2000),
        (32, 1000),
        (200_000, 3),
        (40, 50_257),
    } <= set(cases.MAP_SHAPES)
    assert len(command.MAP.cells()) == 18 * 6 * 2
    assert len(command.QUICK_MAP.cells()) <= 24


def test_a_peer_that_disagrees_makes_the_status_1(capsys, monkeypatch, short):
    monkeypatch.setattr(ALL["NumPy"], "softmax", lambda inputs: lambda: np.zeros(inputs.shape), raising=False)
    arguments = ["bench", "--function", "softmax", "--shape", "3x4", "--dtype", "float32", "--seconds", "0.01"]
    assert main([*arguments, "--library", "numpy"]) == 1
    assert "NumPy is left out: DisagreementError" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--function", "nonsense"], "--function 'nonsense' is none of: softmax;"),
        (["--library", "nonsense"], "--library 'nonsense' is none of: fastsoftmax; NumPy;"),
        (["--function", "softmax_jac", "--shape", "2x3x4"], "leave nothing to measure"),
        (["--output", str(ROOT / "README.md")], "cannot write to"),
        (["--picture", "map.svg"], "--picture draws a map: it needs --map"),
        (["--map", "--picture", "map.jpg"], "--picture map.jpg: the name must end with .svg or .png"),
        (["--map", "--picture", "no-such-place/map.svg"], "there is no directory no-such-place"),
    ],
)
def test_bench_refuses(capsys, arguments, words):
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("fastsoftmax bench: ")
    assert words in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "arguments", [["--shape", "10"], ["--shape", "ax3"], ["--seconds", "0"], ["--threads", "0"]]
)
def test_bench_refuses_what_is_no_number(capsys, arguments):
    with pytest.raises(SystemExit) as status:
        main(["bench", *arguments])
    assert status.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_names_may_be_shortened():
    known = ("softmax", "softmax, out=", "logsumexp")
    assert command._chosen("--function", ["softmax"], known) == ("softmax",)
    assert command._chosen("--function", ["softmax,", "LOG"], known) == ("softmax, out=", "logsumexp")
    assert command._chosen("--function", ["s"], known) == ("softmax", "softmax, out=")


def test_quick_is_quick():
    """Each row takes a second at most, and compilation in addition."""
    assert len(command.QUICK.cells()) <= 12
    assert command.QUICK_LIMIT <= 15
    assert max(math.prod(shape) for shape, _, _ in command.QUICK.cells()) <= 1_000_000


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("rich", []), ("matplotlib", ["--output", "."]), ("matplotlib", ["--map", "--picture", "map.svg"])],
)
def test_bench_names_the_extra_that_is_missing(capsys, monkeypatch, module, arguments):
    without(monkeypatch, module)
    assert main(["bench", *arguments]) == 2
    assert capsys.readouterr().err == f"fastsoftmax bench needs {module}: pip install 'fastsoftmax[bench]'\n"


def without(monkeypatch, *modules):
    """Make the import of these modules fail, also for modules of the benchmarks that were imported before."""
    for name in list(sys.modules):
        if name.split(".")[0] in modules or name.startswith("fastsoftmax.tools.bench."):
            monkeypatch.delitem(sys.modules, name)
    package = sys.modules["fastsoftmax.tools.bench"]
    for name in (
        "command",
        "pictures",
        "maps",
        "journal",
        "report",
        "session",
        "startup",
        "measure",
        "libraries",
        "cases",
        "inputs",
    ):
        monkeypatch.delattr(package, name)
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_bench_needs_no_peer_and_no_picture():
    """In a process where no other library can be imported."""
    code = (
        "import sys\n"
        "for name in ('scipy', 'sklearn', 'torch', 'jax', 'matplotlib', 'PIL'): sys.modules[name] = None\n"
        "from fastsoftmax.tools import cli\n"
        "raise SystemExit(cli.main(sys.argv[1:]))"
    )
    arguments = ["bench", "--function", "softmax", "--shape", "3x4", "--dtype", "float32", "--seconds", "0.01"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--threads", "1", "--library", "numpy"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Not installed" not in done.stdout  # of what was asked for
    assert "NumPy" in done.stdout


# --- start-up and report.py ---------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["Numba loop", pytest.param("fastsoftmax", marks=pytest.mark.slow)])
def test_startup(library, tmp_path):
    """The first number is the time of the import, the second that of the call, with or without compilation."""

    def compiled(name, directory):
        imported, called = startup.once(name, tmp_path)
        assert 0 < imported < 60
        assert 0 < called < 60
        files = [*(tmp_path / directory).rglob("*.code"), *(tmp_path / directory).rglob("*.nbc")]
        return {(file.name, file.stat().st_mtime_ns) for file in files}

    assert not compiled("NumPy", "cold")
    once = compiled(f"{library}, from disk", "warm")
    assert once
    assert compiled(f"{library}, from disk", "warm") == once
    again = compiled(f"{library}, compiling", "cold")
    assert again
    assert not again & compiled(f"{library}, compiling", "cold")


def test_startup_leaves_out_what_fails(monkeypatch):
    starts = {
        "NumPy": startup.STARTS["NumPy"],
        "broken": startup.Start((), "import numpy", "raise SystemExit(3)"),
        "absent": startup.Start(("no_such_module",), "", ""),
    }
    monkeypatch.setattr(startup, "STARTS", starts)
    notes, steps = [], []
    names = startup.of(("broken", "absent"))
    assert names == ["NumPy", "broken"]
    (found,) = startup.measure(names, 1, lambda: steps.append(1), notes.append)
    assert found.name == "NumPy"
    assert len(steps) == 2
    assert len(notes) == 1
    assert notes[0].startswith("start-up: broken is left out")


@pytest.fixture
def script(monkeypatch):
    """benchmarks/report.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "report", raising=False)
    import report as script

    return script


def test_report_writes_readme_and_results(tmp_path, monkeypatch, script):
    """With made-up numbers, and into copies of the pages. Each machine keeps its map."""
    copied_pages(tmp_path, monkeypatch, script)
    before = (tmp_path / "README.md").read_text()
    ours, other = with_one_thread(), with_one_thread()
    other.machine["processor"] = "A"
    for results in (ours, other, other):
        script.write_map(results, tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", "--pages"])
    assert script.main() == 0
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        f"{name}-znver9-avx-512-2-threads.{kind}" for name in "ap" for kind in ("json", "svg")
    ]
    everything = (tmp_path / "RESULTS.md").read_text()
    assert everything.startswith("# Speed")
    titles = [line for line in everything.splitlines() if line.startswith("## Map")]
    assert titles == [f"## Map: {name} (znver9, AVX-512), 2 threads" for name in "AP"]
    for page in (tmp_path / "README.md", tmp_path / "docs" / "guide" / "speed.md"):
        assert "made by `python benchmarks/report.py --write`" in page.read_text()
        assert page.read_text().count("speed: begin") == 1
    assert "[RESULTS.md](../../benchmarks/RESULTS.md)" in (tmp_path / "docs" / "guide" / "speed.md").read_text()
    after = (tmp_path / "README.md").read_text()
    assert after != before
    assert after.count("(benchmarks/maps/") == 2


def copied_pages(tmp_path, monkeypatch, script):
    """Let the script write into copies of the pages."""
    import readme

    (tmp_path / "docs" / "guide").mkdir(parents=True)
    for page in readme.pages():
        (tmp_path / page.relative_to(ROOT)).write_text(page.read_text())
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(script, "HERE", tmp_path)
    (tmp_path / "results.json").write_text(report.as_json(made_up_results()))


def test_families_are_measured_apart(tmp_path, monkeypatch, script):
    """Their tables come beside those of the others, until all functions are measured again."""
    copied_pages(tmp_path, monkeypatch, script)
    asked, machine = [], {**made_up_results().machine, "date": "2031-01-01"}

    def run(choice, *, seconds, limit, output=None, unfinished=None):
        asked.append(choice)
        if unfinished is not None:
            unfinished.touch()
        rows = [made_up(function) for function in choice.functions]
        if output is not None:
            (output / "results.json").write_text(report.as_json(report.Results(machine, rows)))
        return report.Results(machine, rows), True

    monkeypatch.setattr(script.command, "run", run)
    monkeypatch.setattr(sys, "argv", ["report.py", "--family", "focal loss", "binary"])
    assert script.main() == 0
    assert not (tmp_path / "families").exists()
    monkeypatch.setattr(sys, "argv", ["report.py", "--family", "focal loss", "binary", "--write"])
    assert script.main() == 0
    assert asked[-1].functions == report.families()["focal loss"] + report.families()["binary"]
    assert asked[-1].shapes == script.FAMILY_SHAPES
    assert sorted(path.name for path in (tmp_path / "families").iterdir()) == ["binary.json", "focal-loss.json"]
    stored = script.stored_families(tmp_path)
    assert [report.family_of(found) for found in stored] == ["focal loss", "binary"]
    assert (tmp_path / "results.json").read_text() == report.as_json(made_up_results())
    everything = (tmp_path / "RESULTS.md").read_text()
    titles = [line for line in everything.splitlines() if line.startswith("## ")]
    assert titles[-2:] == ["## Focal loss", "## Binary losses"]
    assert "### binary_focal_loss_with_grad, float32" in everything
    assert "made by `python benchmarks/report.py --family 'focal loss' --write`" in everything
    assert everything.count("2031-01-01") == 2
    monkeypatch.setattr(sys, "argv", ["report.py", "--write"])
    assert script.main() == 0
    assert not list((tmp_path / "families").iterdir())
    assert "### " not in (tmp_path / "RESULTS.md").read_text()


def test_every_timed_function_is_in_a_family():
    assert sorted(name for names in report.families().values() for name in names) == sorted(cases.FUNCTIONS)
    for name, functions in report.families().items():
        assert report.family_of(report.Results({}, [made_up(functions[0])])) == name


def test_readme_shows_the_maps_that_are_stored(script):
    import readme

    shown = readme.read("maps")
    assert shown.strip() == script.shown_maps(ROOT / "benchmarks").strip()
    for link in re.findall(r"\]\((benchmarks/maps/.*?)\)", shown):
        assert (ROOT / link).exists()


def imported(name, monkeypatch):
    """A script of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


def test_linear_cross_entropy_beside_peers(tmp_path, monkeypatch):
    """Each library in a process of its own; the pages and the picture come from the stored numbers."""
    pytest.importorskip("matplotlib")
    script = imported("linear", monkeypatch)
    import readme

    if sys.platform == "linux":
        monkeypatch.setattr(script, "LIBRARIES", {script.OURS: script.LIBRARIES[script.OURS]})
        found = script.results(64, 8, (50, 3000), 0.01)
        assert list(found["cases"]) == ["50", "3000"]
        ours = found["cases"]["3000"][script.OURS]
        assert ours["seconds"] > 0
        assert 3000 * 8 * 4 < ours["peak"] < 30e6
        assert ours["loss"] == pytest.approx(np.log(3000), rel=0.2)
    case = {
        name: {"seconds": 2.0 + n, "peak": 1e8 * (1 + n), "loss": 1.0}
        for n, name in enumerate(("JAX", script.OURS))
    }
    made_up = {"machine": made_up_results().machine, "rows": 9, "width": 8, "cases": {"10": case, "2000": case}}
    (tmp_path / "docs" / "guide").mkdir(parents=True)
    for page in readme.pages():
        (tmp_path / page.relative_to(ROOT)).write_text(page.read_text())
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(script, "HERE", tmp_path)
    monkeypatch.setattr(script, "LIBRARIES", dict.fromkeys(("JAX", script.OURS, "a", "b")))
    (tmp_path / "linear.json").write_text(json.dumps(made_up))
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["linear.py", "--pages"])
        script.main()
        pictures_made = (tmp_path / "linear.svg").read_text()
    assert "Peak memory beside the arguments" in pictures_made
    script.draw(made_up, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == pictures_made
    page = (tmp_path / "docs" / "guide" / "optimisers.md").read_text()
    assert "| 2,000 | 2.00 s (0.7 x), 100 MB | 3.00 s, 200 MB |" in page
    shown = (tmp_path / "README.md").read_text()
    assert "with 2,000 classes takes 3.00 s and 200 MB; JAX 0.7 times as long, 0.5 times the memory." in shown
    assert "(benchmarks/linear.svg)" in shown


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is read from /proc")
def test_bounds_of_linear_cross_entropy(monkeypatch):
    """Each library in products of the same process; losses that disagree are an error."""
    script = imported("linear", monkeypatch)
    monkeypatch.setattr(script, "PAUSE", 0.0)
    monkeypatch.setattr(script, "BOUNDED", {script.OURS: script.LIBRARIES[script.OURS]})
    for most, verdict in ((1e9, "within, ahead"), (1e-9, "above, ahead")):
        text = script.bounds({(600, 8, 3000): most}, 2)
        assert text.splitlines()[-1].startswith("| 600, 8, 3,000 | ")
        assert f" MB | {verdict} |" in text
    found = script.measure_in_products(script.OURS, 600, 8, 3000, 2)
    assert found["seconds"] > 0
    assert found["product"] > 0
    assert 0 < found["peak"] < 60e6
    with pytest.raises(AssertionError, match="the loss of other disagrees for 600"):
        script.check_losses({script.OURS: found, "other": found | {"loss": 1.0}}, "600")


def test_readme_shows_the_stored_linear_cross_entropy(monkeypatch):
    script = imported("linear", monkeypatch)
    import readme

    stored = json.loads((ROOT / "benchmarks" / "linear.json").read_text())
    assert readme.read("linear").strip() == script.table(stored).strip()
    assert readme.read("picture of linear").strip() == script.picture(stored).strip()
    assert (ROOT / "benchmarks" / "linear.svg").exists()


def test_multinomial_regression_beside_scikit_learn(monkeypatch):
    """Every solver finds the same loss, and ours the products of the Hessian that differences give."""
    pytest.importorskip("sklearn")
    pytest.importorskip("scipy")
    script = imported("regression", monkeypatch)
    found = {name: script.measure(name, (600, 8, 5), "float64", 1.0, 1e-4) for name in script.SOLVERS}
    for one in found.values():
        assert one["gradient"] <= 1e-4
        assert one["iterations"] > 2
        assert one["loss"] == pytest.approx(found["scikit-learn, lbfgs"]["loss"], rel=1e-5)
    assert script.table(found, "a caption").count("\n| ") == 5
    x, labels = script.problem(200, 6, 4, np.float64)
    regression = script.Regression(x, labels, 4, 0.1)
    flat, along = np.random.default_rng(2).normal(size=(2, 28))
    up, down = (regression.objective(flat + step * along) for step in (1e-5, -1e-5))
    np.testing.assert_allclose(regression.product(flat, along), (up[1] - down[1]) / 2e-5, rtol=1e-7, atol=1e-9)
    assert (up[0] - down[0]) / 2e-5 == pytest.approx(regression.objective(flat)[1] @ along, rel=1e-8)


def test_draws_beside_the_peers(monkeypatch):
    """Every case on few rows: the classes of all libraries have the same mean, or there is an error."""
    script = imported("sampling", monkeypatch)
    small = tuple((case, (40, min(shape[1], 90)), min(count, 60)) for case, shape, count in script.CASES[3:])
    lines = script.table(small, 0.01).splitlines()
    assert len(lines) == 2 + len(small)
    assert all(line.count("|") == 5 + len(script.PEERS) for line in lines)
    for line, (case, _, count) in zip(lines[2:], small, strict=True):
        assert line.startswith(f"| {script.TITLES[case].format(count)} | 40 x ")
        cells = dict(zip(script.PEERS, line.split("|")[5:], strict=False))
        assert " x)" in cells[script.GUMBEL if case == script.DIFFERENT else script.SUMS]
    one = script.calls_of(script.ONE, (50, 8), 1)
    with pytest.raises(DisagreementError, match="another mean"):
        script._agree(script.ONE, "a", one[script.OURS](), np.zeros(50, int))


def test_benchmarks_directory_shows_the_cases(monkeypatch):
    """benchmarks/test_speed.py, as pytest would import it."""
    pytest.importorskip("pytest_benchmark")
    code = "import sys; sys.path.insert(0, 'benchmarks'); import test_speed; print(len(test_speed.CASES))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= len(Choice().cells()) * 3


def test_a_disturbed_row_is_measured_again(monkeypatch):
    """It is measured again once. A call that stays unsteady is reported with its spread."""
    spreads = [0.9, 0.2, 0.9, 0.9]
    taken = []

    def measured(contenders, seconds):
        taken.append(seconds)
        spread = spreads.pop(0)
        return {name: Timing(1.0 + len(taken), spread, 3) for name in contenders}

    monkeypatch.setattr(session, "measure", measured)
    inputs = Inputs((3, 4), "float64")
    assert session.row("softmax", inputs, ("NumPy",), 0.1, Complaints(forget)).ours == Timing(3.0, 0.2, 3)
    assert session.row("softmax", inputs, ("NumPy",), 0.1, Complaints(forget)).ours == Timing(5.0, 0.9, 3)


@pytest.mark.parametrize(
    "script",
    [
        "accuracy",
        "cluster",
        "linear",
        "operators",
        "regression",
        "report",
        "sampling",
        "scaling",
        "segments",
        "streaming",
        "ufuncs",
    ],
)
def test_scripts_start(script):
    """The scripts that make the tables find all modules that they import."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{script}.py"
    environment = {**os.environ, "PYTHONPATH": str(path.parents[1])}
    command = [sys.executable, str(path), "--help"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("usage: ")
