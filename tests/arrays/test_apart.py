"""Rows that are contiguous and lie apart: they are read and written where they are, with the bits of a copy."""

import gc
import inspect
import signal
import threading
import time
import tracemalloc
from functools import partial

import functions
import numpy as np
import pytest
from numba import config

import fastsoftmax as fs
from fastsoftmax.api import activations
from fastsoftmax.arrays import apart, blocks, long_rows, parts, plain, threads
from fastsoftmax.machine import entry

machine_code = pytest.mark.skipif(config.DISABLE_JIT, reason="there is no machine code")
DTYPES = [np.float32, np.float64]


def _filled(view, array):
    view[...] = array
    return view


def _every_other(array):
    return _filled(np.zeros((2 * len(array), *array.shape[1:]), array.dtype)[::2], array)


def _part(array):
    return _filled(np.zeros((*array.shape[:-1], array.shape[-1] + 3), array.dtype)[..., 1:-2], array)


def _backwards(array):
    return _part(array[::-1])[::-1]


def _folded(rows, classes, dtype, cut):
    """Rows along two or three axes that are parts of larger ones, in any order."""
    memory = np.zeros((3, rows // 12 + 2, 9, classes + 1), dtype)
    view = memory[:2, 1:-1, :6, :classes]
    return view if cut else view.transpose(2, 0, 1, 3)


def _on_axes(array, cut):
    view = _folded(*array.shape, array.dtype, cut)
    return _filled(view, array.reshape(view.shape))


LAYOUTS = {
    "every other row": _every_other,
    "part of each row": _part,
    "backwards": _backwards,
    "two axes": partial(_on_axes, cut=True),
    "three axes": partial(_on_axes, cut=False),
}
"""Layouts of a matrix, whose rows may then lie along several axes."""


def _passes_apart(function, seen):
    """Whether a function of a kernel's module, or one of the same module that it names, has ``apart=True``."""
    seen.add(function)
    if "apart=True" in inspect.getsource(function):
        return True
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    blocks_of_code = [getattr(one, "py_func", one) for one in named]
    return any(
        _passes_apart(one, seen)
        for one in blocks_of_code
        if inspect.isfunction(one) and one.__module__ == function.__module__ and one not in seen
    )


def test_the_kernels_that_take_the_distance_of_rows():
    """The list is that of the kernels that ask `traverse` for it."""
    passing = {kernel.name for kernel in entry.kernels() if _passes_apart(kernel.function, set())}
    assert passing == apart.TAKE_DISTANCES


@pytest.fixture
def matrices(monkeypatch):
    """The shapes of the matrices whose rows were taken where they are without any block being made."""
    shapes = []

    def run_matrix(code, work, args, original=apart.run_matrix):
        shapes.append(args[0].shape)
        original(code, work, args)

    monkeypatch.setattr(apart, "run_matrix", run_matrix)
    return shapes


@pytest.fixture
def taken(monkeypatch):
    """How many calls took rows where they are, or did not. Small arrays are not copied as a whole."""
    counts = {True: 0, False: 0}

    def run_matrix(*args, original=apart.run_matrix):
        original(*args)
        counts[True] += 1

    def run(*args, original=apart.run):
        found = original(*args)
        counts[found] += 1
        return found

    monkeypatch.setattr(blocks, "WHOLE", 4)
    monkeypatch.setattr(activations, "SMALL", 4)
    monkeypatch.setattr(plain, "SMALL", 4)
    monkeypatch.setattr(apart, "run", run)
    monkeypatch.setattr(apart, "run_matrix", run_matrix)
    return counts


def _equal(found, wanted):
    found, wanted = (one if isinstance(one, tuple) else (one,) for one in (found, wanted))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


ROWS = [function for function in functions.ALL if not function.name.startswith(("segment", "binary"))]


@machine_code
@pytest.mark.parametrize("function", ROWS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_every_function(function, dtype, taken):
    """Those of contiguous arrays: rows that are copied, or computed where they are, and results in `out`."""
    for classes in (2, 3, 10, 64, 70, 300, 2100) if function.result != "square" else (2, 3, 10, 17):
        x = np.random.default_rng(classes).normal(size=(36, classes)).astype(dtype)
        for name in LAYOUTS:
            view = LAYOUTS[name](x)
            array = np.ascontiguousarray(view)
            wanted = function(array)
            other = tuple(
                LAYOUTS[name](one.reshape(36, -1)) if one.shape == array.shape else one
                for one in function.other(array)
            )
            before = taken[True]
            _equal(function.function(view, *other, **dict(function.options)), wanted)
            assert taken[True] > before, (name, classes)
            if not (function.takes_out and isinstance(wanted, np.ndarray)):
                continue
            memory = np.full([n + 2 for n in wanted.shape], np.pi, wanted.dtype)
            out = memory[tuple(slice(1, n + 1) for n in wanted.shape)]
            assert function.function(view, *other, out=out, **dict(function.options)) is out
            _equal(out, wanted)
            memory[tuple(slice(1, n + 1) for n in wanted.shape)] = np.pi
            assert (memory == np.dtype(dtype).type(np.pi)).all()  # nothing is written beside `out`


def _sparse(array):
    """Parts of rows that are much longer."""
    return _filled(np.zeros((len(array), array.shape[1] + 100), array.dtype)[:, 1:-99], array)


def _labels(x):
    return np.arange(len(x)) % x.shape[1]


@machine_code
@pytest.mark.parametrize(
    ("call", "layout", "classes", "sizes"),
    [
        (fs.softmax, _every_other, 3, "all"),
        (fs.softmax, _every_other, 10, "all"),
        (fs.softmax, _part, 32, "all"),
        (fs.softmax, _part, 33, "all"),
        (fs.softmax, _part, 64, "all"),
        (fs.softmax, _part, 65, "all"),
        (fs.log_softmax, _every_other, 2048, "all"),
        (fs.log_softmax, _every_other, 2049, "none"),  # one row at a time
        (fs.logsumexp, _part, 64, "all"),
        (fs.logsumexp, _sparse, 10, "small"),  # a few numbers of each line
        (fs.logsumexp, _sparse, 32, "all"),
        (fs.softmax_entropy, _sparse, 300, "all"),
        (lambda x: fs.cross_entropy(x, _labels(x)), _every_other, 17, "all"),
        (lambda x: fs.cross_entropy_grad(x, _labels(x)), _every_other, 100, "all"),
        (lambda x: fs.cross_entropy_grad(x, _labels(x)), _every_other, 40, "all"),
        (lambda x: fs.softmax(x, temperature=2.0), _sparse, 100, "all"),
        (lambda x: fs.label_statistics(x, _labels(x)), _part, 10, "none"),
        (lambda x: fs.softmax_jvp(x, x), _part, 100, "none"),
        (fs.softmax, _backwards, 10, "none"),
        (lambda x: fs.softmax(x, out=_part(x)), _part, 10, "none"),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fits", [True, False])
def test_kernels_that_take_the_distance_of_rows(call, layout, classes, sizes, fits, dtype, taken, monkeypatch):
    """They read rows where they are, few of them and more than a tile; others, and other layouts, get copies.

    `sizes` are those of the arrays for which they do so: all, those that fit into a cache, or none.
    """
    asked = []
    if not fits:
        monkeypatch.setattr(apart, "IN_CACHE", 0)

    def takes_distance(*args, original=apart._takes_distance):
        asked.append(original(*args))
        return asked[-1]

    monkeypatch.setattr(apart, "_takes_distance", takes_distance)
    for rows in (2, 3, 5, 37, 300):
        x = np.random.default_rng(rows).normal(size=(rows, classes)).astype(dtype)
        x[0, 0], x[1, -1] = np.nan, -np.inf
        _equal(call(layout(x)), call(x))
    assert len(asked) >= 5
    assert set(asked) == {sizes == "all" or (sizes == "small" and fits)}


@machine_code
@pytest.mark.parametrize("classes", [10, 100, 2100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place(classes, dtype, taken):
    """`out` is x, or the other argument, or neither; and an argument that cannot be written to."""
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(2, 100, classes)).astype(dtype)
    wanted = fs.softmax_jvp(x, v), fs.softmax(x)
    for layout in (_part, _backwards, _every_other):
        out = layout(x)
        fs.softmax(out, out=out)
        _equal(out, wanted[1])
        for place in (0, 1):
            pair = [layout(x), layout(v)]
            fs.softmax_jvp(*pair, out=pair[place])
            _equal(pair[place], wanted[0])
            _equal(pair[1 - place], (x, v)[1 - place])
        out = layout(v)
        fs.softmax_jvp(layout(x), v, out=out)
        _equal(out, wanted[0])
        frozen = layout(x)
        frozen.flags.writeable = False
        _equal(fs.softmax(frozen), wanted[1])
        memory = layout(np.concatenate([x, x[:1]]))
        fs.softmax(memory[:-1], out=memory[1:])
        _equal(memory[1:], wanted[1])
    assert taken[True] >= 12


@machine_code
@pytest.mark.parametrize("classes", [10, 100, 2100])
def test_repeated_and_overlapping_rows(classes, taken):
    """A stride of 0, and rows that have numbers in common."""
    x = np.random.default_rng(0).normal(size=50 + classes).astype(np.float32)
    for view in (
        np.broadcast_to(x[:classes], (40, classes)),
        np.broadcast_to(x[:classes], (5, 8, classes)),
        np.broadcast_to(_part(x[: 4 * (classes // 4)].reshape(4, -1)), (3, 4, classes // 4)),
        np.lib.stride_tricks.sliding_window_view(x, classes),
    ):
        _equal(fs.log_softmax(view), fs.log_softmax(view.copy()))
        _equal(fs.logsumexp(view), fs.logsumexp(view.copy()))
    assert taken == {True: 8, False: 0}


@machine_code
def test_edge_rows(taken):
    """NaN, infinities, equal entries, and rows without any class or no rows."""
    x = np.zeros((6, 70), np.float32)
    x[0, 3], x[1, 5], x[2], x[3, 0], x[4] = np.nan, np.inf, -np.inf, -np.inf, 1e38
    for classes in (10, 70):
        _equal(fs.softmax(_part(x[:, :classes])), fs.softmax(x[:, :classes].copy()))
        _equal(fs.softmax_entropy(_part(x[:, :classes])), fs.softmax_entropy(x[:, :classes].copy()))
    assert taken[True] == 4
    assert fs.softmax(_part(np.zeros((0, 5)))).shape == (0, 5)
    assert fs.softmax(np.zeros((5, 9))[:, 3:3]).shape == (5, 0)


@machine_code
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_size_of_a_row(dtype, taken):
    """Rows are copied by vectors of 4 to 64 bytes, from their first and from their last one on."""
    rng = np.random.default_rng(0)
    for classes in range(1, 140):
        x = rng.normal(size=(37, classes)).astype(dtype)
        wanted = fs.log_softmax(x)
        memory = np.full((37, classes + 2), np.pi, dtype)
        for layout in (_part, _every_other):
            memory[:, 1:-1] = 0
            fs.log_softmax(layout(x), out=memory[:, 1:-1])
            _equal(memory[:, 1:-1].copy(), wanted)
            assert (memory[:, [0, -1]] == dtype(np.pi)).all()
            _equal(fs.log_softmax(layout(x)), wanted)
    assert taken == {True: 4 * 139, False: 0}


PLAIN = {
    "softmax": lambda x, y: fs.softmax(x),
    "softmax, out": lambda x, y: fs.softmax(x, out=np.empty(x.shape, x.dtype)),
    "log_softmax": lambda x, y: fs.log_softmax(x),
    "logsumexp": lambda x, y: fs.logsumexp(x),
    "softmax_entropy": lambda x, y: fs.softmax_entropy(x),
    "cross_entropy": fs.cross_entropy,
    "cross_entropy, rows": lambda x, y: fs.cross_entropy(x, y, reduction="none"),
    "cross_entropy_grad": fs.cross_entropy_grad,
    "cross_entropy_with_grad": fs.cross_entropy_with_grad,
    "label_statistics": fs.label_statistics,
}
"""Calls with default options."""


@machine_code
@pytest.mark.parametrize("call", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_matrices(call, dtype, matrices):
    """The bits of contiguous matrices; also of a matrix that cannot be written to."""
    for classes in (1, 3, 10, 64, 70, 300, 2100):
        rng = np.random.default_rng(classes)
        x = rng.normal(size=(20_000 // classes, classes)).astype(dtype)
        labels = rng.integers(classes, size=len(x))
        wanted = call(x, labels)
        assert not matrices
        for layout in (_part, _every_other):
            view = layout(x)
            _equal(call(view, labels), wanted)
            view.flags.writeable = False
            _equal(call(view, labels), wanted)
        assert matrices == [x.shape] * 4
        matrices.clear()


def test_what_is_no_plain_matrix(matrices):
    """Rows in another order, or with numbers in common, odd addresses, and results that lie over the argument."""
    x = np.random.default_rng(0).normal(size=(400, 30)).astype(np.float32)
    wanted = fs.softmax(x)
    odd = np.zeros(4 * 400 * 40 + 1, np.uint8)[1:].view(np.float32).reshape(400, 40)[:, :30]
    for view in (
        _backwards(x),
        np.broadcast_to(x[3], x.shape),
        np.lib.stride_tricks.sliding_window_view(x.reshape(-1), 30)[:500],
        np.asfortranarray(x),
        np.repeat(x, 2, 1)[:, ::2],
        _filled(odd, x),
        _part(x).reshape(20, 20, 30),
    ):
        result = fs.softmax(view)
        _equal(result, fs.softmax(view.copy()))
        assert result.shape == view.shape
        _equal(fs.logsumexp(view), fs.logsumexp(view.copy()))
    out = _part(x)
    assert fs.softmax(out, out=out) is out
    _equal(out, wanted)
    memory = np.zeros((800, 30), np.float32)
    memory[::2] = x
    _equal(fs.softmax(memory[::2], out=memory[:400]), wanted)
    assert not matrices


def test_what_has_no_rows_in_memory(taken):
    """Classes that lie apart, other dtypes, masks and odd addresses are converted."""
    x = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    odd = _filled(np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape), x)
    many = np.zeros((*[3] * 6, 30), np.float32)[(slice(2),) * 6]
    _equal(fs.softmax(many), fs.softmax(many.copy()))
    for view in (np.repeat(x, 2, 1)[:, ::2], x.astype(">f4")[::2], x.astype(np.float16)[::2], odd):
        _equal(fs.softmax(view), fs.softmax(np.array(view, view.dtype.newbyteorder("="), order="C")))
    kept = x > 0
    _equal(fs.softmax(x[::2], where=kept[::2]), fs.softmax(x[::2].copy(), where=kept[::2].copy()))
    assert taken[True] == 0
    assert taken[False] >= 5


@machine_code
@pytest.mark.parametrize("classes", [10, 700, 5000])
def test_nothing_is_copied(classes):
    """The memory of a call does not grow with its arrays, and stays far below a part's."""
    rows = 4_000_000 // classes
    x = np.zeros((rows, classes + 3), np.float32)[:, :-3]
    labels, out = np.zeros(rows, int), np.empty((rows, classes + 5), np.float32)[:, 5:]
    calls = {
        "softmax": lambda: fs.softmax(x, out=out),
        "logsumexp": lambda: fs.logsumexp(x),
        "cross_entropy_with_grad": lambda: fs.cross_entropy_with_grad(x, labels, out=out),
    }
    with fs.threads(1):
        for name, call in calls.items():
            call()
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            call()
            used = tracemalloc.get_traced_memory()[1] - before
            tracemalloc.stop()
            assert used <= (1 << 19) + 20 * rows, name


@machine_code
@pytest.mark.parametrize("threads_of_call", [1, 2, None])
def test_threads(threads_of_call):
    """The bits do not depend on the number of threads, nor on calls that run at the same time."""
    wide = np.random.default_rng(0).normal(size=(30_000, 53)).astype(np.float32)
    views = [wide[:, :classes] for classes in (10, 50)] + [wide.reshape(-1, 530)[:, :500]]
    wanted = [fs.softmax(view.copy()) for view in views]
    errors = []

    def call():
        try:
            with fs.threads(threads_of_call or threads.max_threads()):
                for _ in range(5):
                    for view, one in zip(views, wanted, strict=True):
                        _equal(fs.softmax(view), one)
                        _equal(fs.softmax(one), fs.softmax(one))
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not errors


@machine_code
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends a signal")
@pytest.mark.parametrize("classes", [10, 700, 5000])
def test_ctrl_c(classes):
    """It is heard in the middle of many GB: rows that have most of their numbers in common."""
    x = np.random.default_rng(0).normal(size=3_000_000 + classes).astype(np.float32)
    view = np.lib.stride_tricks.sliding_window_view(x, classes)
    view = np.broadcast_to(view, (max(1, 700 // classes), *view.shape))
    fs.logsumexp(view[0, :100_000])

    def interrupt(*_):
        sent.append(time.perf_counter())
        raise KeyboardInterrupt

    for _ in range(4):  # other programs may use the processor
        sent = []
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            begun = time.perf_counter()
            with pytest.raises(KeyboardInterrupt):
                fs.logsumexp(view)
            ended = time.perf_counter()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert len(sent) == 1
        if ended - begun < 0.3:
            break
    assert ended - begun < 0.3
    some = view[0, : 4_000_000 // classes]
    with fs.threads(1):
        wanted = fs.logsumexp(some.copy())
    for _ in range(3):
        _equal(fs.logsumexp(some.copy()), wanted)  # the next call is one of contiguous rows
        _equal(fs.logsumexp(some), wanted)


@machine_code
@pytest.mark.parametrize("name", ["every other row", "part of each row", "backwards"])
def test_long_rows(name, taken, monkeypatch):
    """Pieces of a long row are taken where they are: none is converted."""
    monkeypatch.setattr(long_rows, "LONG_ROW", 300)
    monkeypatch.setattr(long_rows, "PIECE", 128)
    monkeypatch.setattr(parts, "run_parts", None)
    x, v = np.random.default_rng(0).normal(size=(2, 4, 1000))
    labels = np.array([0, 5, 999, 128])
    for call in (
        lambda layout: fs.softmax(layout(x), temperature=2.0),
        lambda layout: fs.logsumexp(layout(x)),
        lambda layout: fs.cross_entropy_with_grad(layout(x), labels, reduction="none"),
        lambda layout: fs.softmax_jvp(layout(x), layout(v)),
        lambda layout: fs.cross_entropy_grad(layout(x), labels, out=layout(np.zeros_like(x))),
    ):
        monkeypatch.setattr(blocks, "WHOLE", 1 << 17)
        wanted = call(LAYOUTS[name])
        monkeypatch.setattr(blocks, "WHOLE", 4)
        _equal(call(LAYOUTS[name]), wanted)
