"""Large arrays in any layout or dtype: the same bits, little memory, and Ctrl-C is heard."""

import gc
import sys
import threading
import time
import tracemalloc
import weakref
from functools import partial

import child
import functions
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import fastsoftmax as fs
import fastsoftmax.metrics
from fastsoftmax.arrays import blocks, parts, threads

MEGABYTE = 1 << 20
ROWS, CLASSES = 10_000, 200


def _within(shape, dtype, cut):
    """Part of a larger array, as `cut` takes it from one of double lengths."""
    larger = np.zeros([2 * n for n in shape], dtype)
    return larger[cut(shape)]


def _copied(view, array):
    view[...] = array
    return view


def _misaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    return _copied(memory[1:].view(array.dtype).reshape(array.shape), array)


def _permuted(array):
    order = np.random.default_rng(array.ndim).permutation(array.ndim)
    return np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))


def _cut(cut, array):
    return _copied(_within(array.shape, array.dtype, cut), array)


STRIDED = {
    "every other row": partial(_cut, lambda shape: (slice(None, None, 2), *map(slice, shape[1:]))),
    "part of each row": partial(_cut, lambda shape: tuple(map(slice, shape))),
    "every other class": partial(_cut, lambda shape: (*map(slice, shape[:-1]), slice(None, None, 2))),
    "Fortran order": np.asfortranarray,
    "rows backwards": lambda array: np.ascontiguousarray(array[::-1])[::-1],
    "any order": _permuted,
    "misaligned": _misaligned,
}
"""The same numbers in other layouts, to which results can be written, too."""
LAYOUTS = {
    "contiguous": lambda array: array,
    **STRIDED,
    "byte-swapped": lambda array: array.astype(array.dtype.newbyteorder()),
}
BROADCAST = {
    "broadcast rows": lambda array: np.broadcast_to(array[:1].copy(), array.shape),
    "broadcast classes": lambda array: np.broadcast_to(array[..., :1].copy(), array.shape),
}
"""Layouts of arrays that repeat some of the numbers."""
DTYPES = {
    "float16": lambda array: array.astype(np.float16),
    "int64": lambda array: array.astype(np.int64),
    "int8": lambda array: array.astype(np.int8),
}


class Small:
    """Within a ``with`` block, small arrays are converted in parts, and parts are this small."""

    def __init__(self, size):
        self._size = size

    def __enter__(self):
        self._before = blocks.WHOLE, parts.PART_BYTES
        blocks.WHOLE, parts.PART_BYTES = 4, self._size

    def __exit__(self, *error):
        blocks.WHOLE, parts.PART_BYTES = self._before


@st.composite
def calls(draw, function):
    """Arguments of a function, in drawn layouts, and the layout of `out`."""
    ndim = draw(st.integers(1, 4))
    most = (300, 40, 12, 7)[ndim - 1] if function.result != "square" else 9
    shape = tuple(draw(st.lists(st.integers(1, most), min_size=ndim, max_size=ndim)))
    axis = draw(st.integers(0, ndim - 1))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64, np.int64]))
    x = (3 * np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape)).astype(dtype)
    layout = draw(st.sampled_from(sorted({**LAYOUTS, **BROADCAST})))
    x = {**LAYOUTS, **BROADCAST}[layout](x)
    other = tuple(LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](o) for o in function.other(x, axis) if o.ndim)
    options = dict(function.options, axis=axis)
    if len(other) < len(function.other(x, axis)):
        other = function.other(x, axis)
    if function.name in ("softmax", "log_softmax", "logsumexp") and draw(st.booleans()):
        options["where"] = np.random.default_rng(1).random(draw(st.sampled_from([shape, (1,) * ndim]))) > 0.3
    if function.name.startswith("cross_entropy") and draw(st.booleans()):
        options["class_weight"] = np.random.default_rng(2).random(shape[axis])
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.25]))
        options["z_loss"] = draw(st.sampled_from([0.0, 0.5]))
    return x, other, options, STRIDED[draw(st.sampled_from(sorted(STRIDED)))], draw(st.integers(4, 11))


quick = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("function", functions.ALL, ids=str)
@given(data=st.data())
@quick
def test_parts_do_not_change_a_bit(function, data):
    """The result is that of an array that is converted as a whole, also in `out` and in place of an input."""
    x, other, options, out_layout, size = data.draw(calls(function))
    wanted = function.function(x, *other, **options)
    with Small(1 << size):
        found = function.function(x, *other, **options)
        np.testing.assert_array_equal(found, wanted, strict=True)
        if not (function.takes_out and isinstance(wanted, np.ndarray)):
            return
        out = out_layout(np.zeros_like(wanted, order="C"))
        assert function.function(x, *other, out=out, **options) is out
        np.testing.assert_array_equal(out, wanted)
        if function.result == "x" and x.dtype == wanted.dtype:
            out = out_layout(np.array(x))
            with_order = function.function(out.copy(order="K"), *other, **options)
            function.function(out, *other, out=out, **options)
            np.testing.assert_allclose(out, with_order, rtol=1e-2 if x.dtype == np.float16 else 1e-5, atol=1e-3)


@pytest.mark.parametrize("name", sorted(STRIDED))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_overlaps_the_input(name, dtype):
    """A result that lies over rows which are read later, in any layout."""
    x = np.random.default_rng(0).normal(size=(60, 30)).astype(dtype)
    wanted = fs.softmax(x)
    memory = STRIDED[name](np.concatenate([x, np.zeros((1, 30), dtype)]))
    with Small(1 << 8):
        fs.softmax(memory[:-1], out=memory[1:])
    np.testing.assert_array_equal(memory[1:], wanted)


@pytest.mark.parametrize("name", sorted({**LAYOUTS, **BROADCAST, **DTYPES}))
@pytest.mark.parametrize("size", [300, 1 << 20])
def test_long_rows(name, size, monkeypatch):
    """Rows that are cut into pieces, of a matrix and of an array whose classes have several axes."""
    monkeypatch.setattr(fs.arrays.long_rows, "LONG_ROW", 300)
    monkeypatch.setattr(fs.arrays.long_rows, "PIECE", 128)
    x = {**LAYOUTS, **BROADCAST, **DTYPES}[name](3 * np.random.default_rng(0).normal(size=(4, 20, 50)))
    labels, v = np.array([0, 5, 999, 128]), np.random.default_rng(1).normal(size=(4, 1000))
    flat = x.reshape(4, 1000)
    kept = np.random.default_rng(2).random((4, 20, 50)) > 0.3
    cases = [
        partial(fs.softmax, x, axis=(1, 2)),
        partial(fs.log_softmax, x, axis=None, temperature=2.0),
        partial(fs.softmax, x, axis=(1, 2), where=kept),
        partial(fs.logsumexp, x, axis=(1, 2)),
        partial(fs.cross_entropy_grad, flat, labels),
        partial(fs.cross_entropy, flat, labels, reduction="none"),
        partial(fs.softmax_jvp, flat, np.asfortranarray(v)),
    ]
    for case in cases:
        wanted = case()
        with Small(size):
            np.testing.assert_array_equal(case(), wanted, strict=True)


def _cases(x, layout):
    """Calls of functions with labels, targets, masks and random numbers."""
    labels = np.arange(len(x)) % x.shape[1]
    y = layout(np.broadcast_to(np.arange(x.shape[1], dtype=np.float32) / x.shape[1], x.shape))
    kept = np.broadcast_to(np.arange(x.shape[1]) % 7 > 0, x.shape)
    return {
        "softmax": lambda: fs.softmax(x),
        "softmax of a mask": lambda: fs.softmax(x, where=kept),
        "softmax along rows": lambda: fs.softmax(x, axis=0),
        "softmax of all": lambda: fs.softmax(x, axis=None),
        "logsumexp": lambda: fs.logsumexp(x),
        "logsumexp of a mask": lambda: fs.logsumexp(x, where=kept),
        "softmax_jvp": lambda: fs.softmax_jvp(x, y),
        "softmax_jacobian": lambda: fs.softmax_jacobian(x[:, :9]),
        "softmax_entropy_with_grad": lambda: fs.softmax_entropy_with_grad(x),
        "cross_entropy": lambda: fs.cross_entropy(x, labels),
        "cross_entropy_grad": lambda: fs.cross_entropy_grad(x, labels, label_smoothing=0.1),
        "cross_entropy_grad of distributions": lambda: fs.cross_entropy_grad(x, y, z_loss=0.1),
        "cross_entropy_hvp": lambda: fs.cross_entropy_hvp(x, labels, y),
        "cross_entropy_hessian_diag": lambda: fs.cross_entropy_hessian_diag(x, y),
        "squared_error_with_grad": lambda: fs.squared_error_with_grad(x, y),
        "kl_divergence_with_grad": lambda: fs.kl_divergence_with_grad(x, y),
        "focal_loss_with_grad": lambda: fs.focal_loss_with_grad(x, labels),
        "binary_cross_entropy_with_grad": lambda: fs.binary_cross_entropy_with_grad(x, y),
        "label_statistics": lambda: fs.label_statistics(x, labels),
        "filter_logits": lambda: fs.filter_logits(x, top_k=3),
        "categorical": lambda: fs.categorical(x, rng=0),
        "categorical of a mask": lambda: fs.categorical(x, rng=0, size=2, top_k=9, where=kept),
        "fit_temperature": lambda: fs.fit_temperature(x, np.where(np.arange(len(x)) % 3, labels, 0)),
        "RunningMetrics": lambda: fs.metrics.RunningMetrics().update(x, labels)._sums,
    }


NAMES = sorted(_cases(np.zeros((2, 9), np.float32), lambda array: array))


def _arrays(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.fixture(scope="module")
def logits():
    """Logits of 8 MB in float32, which a fit of the temperature accepts."""
    x = np.random.default_rng(0).normal(size=(ROWS, CLASSES))
    x[:, 0] += 1
    return np.clip(3 * x, -100, 100).astype(np.float32)


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("name", ["every other row", "Fortran order", "byte-swapped", "float16", "broadcast rows"])
def test_temporary_memory_and_bits(logits, case, name):
    """At most 4 MB for a thread, and some numbers for each row; the bits are those of a converted copy."""
    layout = {**LAYOUTS, **DTYPES, **BROADCAST}[name]
    x = layout(logits)
    with fs.threads(1):
        call = _cases(x, layout if name in LAYOUTS else lambda array: array)[case]
        if case == "fit_temperature" and name in BROADCAST:
            pytest.skip("the labels do not agree with logits that repeat")
        call()
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        found = call()
        used = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        used -= sum(a.nbytes for a in _arrays(found) if isinstance(a, np.ndarray))
        assert used <= 4 * MEGABYTE + 100 * ROWS
        if name != "Fortran order":  # there the kernel runs along the rows in memory
            as_floats = np.array(x, x.dtype.newbyteorder("="), order="C")
            for one, other in zip(
                _arrays(found), _arrays(_cases(as_floats, np.ascontiguousarray)[case]()), strict=True
            ):
                np.testing.assert_array_equal(one, other)


SEGMENTS = {
    "segment_log_softmax": lambda x, v, indptr: fs.segment_log_softmax(x, indptr),
    "segment_softmax_jvp": lambda x, v, indptr: fs.segment_softmax_jvp(x, indptr, v),
    "segment_logsumexp": lambda x, v, indptr: fs.segment_logsumexp(x, indptr),
    "segment_cross_entropy": lambda x, v, indptr: fs.segment_cross_entropy(
        x, indptr, np.diff(indptr) - 1, ignore_index=-1, label_smoothing=0.1
    ),
    "segment_softmax_entropy_with_grad": lambda x, v, indptr: fs.segment_softmax_entropy_with_grad(x, indptr),
    "segment_kl_divergence_with_grad": lambda x, v, indptr: fs.segment_kl_divergence_with_grad(x, indptr, v),
}


@pytest.mark.parametrize("case", SEGMENTS)
@pytest.mark.parametrize("name", ["every other class", "byte-swapped", "float16", "int8", "broadcast classes"])
def test_segments(case, name):
    """Parts of whole segments, some of them empty: memory and bits as for rows."""
    lengths = np.random.default_rng(0).integers(0, 1000, 4000)
    lengths[::100], lengths[7] = 0, 60_000
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    layout = {**LAYOUTS, **DTYPES, **BROADCAST}[name]
    x = layout(np.random.default_rng(1).normal(size=indptr[-1]).astype(np.float32))
    v = np.linspace(0, 1, x.size, dtype=np.float32)
    with fs.threads(1):
        SEGMENTS[case](x, v, indptr)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        found = SEGMENTS[case](x, v, indptr)
        used = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
    used -= sum(a.nbytes for a in _arrays(found) if isinstance(a, np.ndarray))
    assert used <= 4 * MEGABYTE + 100 * len(lengths)
    converted = np.array(x, x.dtype.newbyteorder("="), order="C")
    for one, other in zip(_arrays(found), _arrays(SEGMENTS[case](converted, v, indptr)), strict=True):
        np.testing.assert_array_equal(one, other)


CHILD = """
import os, resource, signal, sys, threading, time
import numpy as np
import fastsoftmax as fs
import fastsoftmax.metrics

name, rows, classes = sys.argv[1], int(sys.argv[2]), 700
row = np.random.default_rng(0).normal(size=classes).astype(np.float32)
x = {
    "broadcast rows": lambda: np.broadcast_to(row, (rows, classes)),
    "broadcast classes": lambda: np.broadcast_to(np.zeros((rows, 1), np.float32), (rows, classes)),
    "float16": lambda: np.broadcast_to(row.astype(np.float16), (rows, classes)),
    "byte-swapped": lambda: np.broadcast_to(row.astype(">f4"), (rows, classes)),
    "int8": lambda: np.broadcast_to(row.astype(np.int8), (rows, classes)),
    "every other class": lambda: np.broadcast_to(np.repeat(row, 2)[::2], (rows, classes)),
    "columns": lambda: np.broadcast_to(row[:, None], (classes, rows)).T,
}[name]()
labels, kept = np.zeros(rows, int), np.broadcast_to(row > 0, x.shape)
some = slice(0, 2000)
calls = {
    "cross_entropy": lambda s: fs.cross_entropy(x[s], labels[s]),
    "logsumexp": lambda s: fs.logsumexp(x[s], where=kept[s]),
    "squared_error": lambda s: fs.squared_error(x[s], x[s]),
    "binary_cross_entropy": lambda s: fs.binary_cross_entropy(x[s], kept[s]),
    "categorical": lambda s: fs.categorical(x[s], size=2),
    "RunningMetrics": lambda s: fs.metrics.RunningMetrics().update(x[s], labels[s]),
}
for call in calls.values():
    call(some)

def send():
    time.sleep(0.1)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

for function in sys.argv[3:]:
    sent = []
    other = threading.Thread(target=send)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    other.start()
    try:
        calls[function](slice(None))
        print("finished", 0)
    except KeyboardInterrupt:
        heard = time.perf_counter() - sent[0]
        print(heard, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    other.join()
"""
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures as Linux does")


@linux
@pytest.mark.parametrize(
    "name",
    ["broadcast rows", "broadcast classes", "float16", "byte-swapped", "int8", "every other class", "columns"],
)
def test_ctrl_c_and_resident_memory(name):
    """Ctrl-C in the middle of 8 GB of float32, which are nowhere in memory.

    It is heard within the time of a part for each thread. The bound is larger because other programs may use the
    processor; a copy of the whole array takes several seconds, in which Ctrl-C was not heard.
    """
    called = [
        "cross_entropy",
        "logsumexp",
        "squared_error",
        "binary_cross_entropy",
        "categorical",
        "RunningMetrics",
    ]
    lines = child.run(CHILD, name, 3_000_000, *called).splitlines()
    assert len(lines) == len(called)
    for function, line in zip(called, lines, strict=True):
        heard, megabytes = line.split()
        assert float(heard) < 1, (function, line)
        assert float(megabytes) < 200, (function, line)  # some numbers for each of 3 million rows


# --- parts that threads share ---------------------------------------------------------------------------------


def test_every_part_is_done_once():
    """Also if there are more parts than threads, and with working memory of its own for each thread."""
    done, seats, lock = [], [], threading.Lock()

    def seat():
        with lock:
            seats.append(object())
        return seats[-1]

    def task(part, memory):
        time.sleep(1e-4)
        done.append((part, memory, threading.get_ident()))

    for _ in range(5):
        done.clear()
        threads.share(100, 1 << 30, seat, task)
        assert sorted(part for part, *_ in done) == list(range(100))
        assert len({(memory, who) for _, memory, who in done}) == len({memory for _, memory, _ in done})


@pytest.mark.parametrize("error", [ZeroDivisionError, MemoryError, IndexError])
def test_an_error_of_a_helper_is_raised(error):
    """By the caller, after all have stopped; the next call is right."""
    caller, raised, done = threading.get_ident(), threading.Event(), []

    def task(part, memory):
        if threading.get_ident() != caller:
            raised.set()
            raise error("a part")
        raised.wait(10)
        done.append(part)

    if threads.max_threads() < 2:
        pytest.skip("needs two threads")
    with pytest.raises(error, match="a part"):
        threads.share(50, 1 << 30, lambda: None, task)
    assert len(done) < 49
    found = []
    threads.share(50, 1 << 30, lambda: None, lambda part, memory: found.append(part))
    assert sorted(found) == list(range(50))


def test_helpers_keep_no_array():
    """After a call nothing refers to its arrays, though helpers wait with their last job."""
    memory = np.zeros(100)
    kept = weakref.ref(memory)

    def task(part, seat, memory=memory):
        time.sleep(1e-4)

    threads.share(50, 1 << 30, lambda: None, task)
    del task, memory
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize(
    ("outer", "classes", "inner", "items"), [(7, 5, 1, 11), (3, 4, 100, 64), (1, 70, 33, 1), (9, 2, 8, 40)]
)
def test_boxes_are_a_partition(outer, classes, inner, items):
    """Every row is in one part; along an inner axis, no part has a single row."""
    seen = np.zeros((outer, inner), int)
    for box in parts.boxes(outer, classes, inner, items):
        if box.end:
            assert box.last == box.first + 1
            assert box.end - box.begin >= 8
            seen[box.first, box.begin : box.end] += 1
        else:
            seen[box.first : box.last] += 1
    assert (seen == 1).all()
