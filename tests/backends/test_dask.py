"""Dask arrays: lazy, chunk by chunk, with the results of the same arrays in memory; also on clusters."""

import math
import os
import signal
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import child
import families
import functions
import numpy as np
import oracle
import pytest

import fastsoftmax as fs
from fastsoftmax._spec import FUNCTIONS
from fastsoftmax.api import activations
from fastsoftmax.arrays import long_rows, row_pieces, threads
from fastsoftmax.arrays.blocks import Problem
from fastsoftmax.metrics import RunningMetrics

da = pytest.importorskip("dask.array")
dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

SHAPE = (6, 5, 11)
WHOLE = {-1: (4, 2, -1), 1: (4, -1, 3), 0: (-1, 2, 3)}
CUT = {-1: (4, 2, 3), 1: (4, 2, 11), 0: (2, 5, 4)}
"""Chunks that leave the rows along an axis whole, and others that cut them."""


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def logits(dtype=np.float32, shape=SHAPE):
    return (5 * np.random.default_rng(1).normal(size=shape)).astype(dtype)


def compare(lazy, expected, whole, terms=1):
    """Type, shape and numbers agree: to the bit where rows are whole, else within 4 ulp of the exact numbers each.

    Where terms cancel, these are ulps of the largest term.
    """
    assert isinstance(lazy, da.Array)
    expected = np.asarray(expected)
    assert (lazy.shape, lazy.dtype) == (expected.shape, expected.dtype)
    actual = np.asarray(lazy.compute())
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if whole:
        np.testing.assert_array_equal(actual, expected)
    else:
        eps = np.finfo(expected.dtype).eps
        np.testing.assert_allclose(actual, expected, rtol=8 * eps, atol=8 * eps * terms)


# --- rows in pieces -------------------------------------------------------------------------------------------


def merged(parts, order):
    """The summary of the rows, merged in groups of the sizes in `order`."""
    summaries = [long_rows.summarize(part) for part in parts]
    while len(summaries) > 1:
        count = order.integers(2, 4)
        summaries = [
            long_rows.merge(np.stack(summaries[n : n + count], -1)) for n in range(0, len(summaries), count)
        ]
    return summaries[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_rows_in_pieces_keep_the_bounds(family, dtype, record):
    """3 ulp for softmax and 4 for log_softmax, for all cuts of a row and all orders of merging."""
    if not oracle.has_wider(dtype):
        pytest.skip("longdouble is no wider than float64 here")
    rng = np.random.default_rng(3)
    for classes in (2, 57, 1000):
        x = families.rows(family, classes, dtype, 6000)
        parts = np.split(x, np.sort(rng.integers(0, classes + 1, rng.integers(1, 9))), axis=1)
        summary = merged(parts, rng)
        probs = np.concatenate([long_rows.softmax(part, summary) for part in parts], axis=1)
        record("softmax in pieces", dtype, oracle.wide_error(probs, oracle.wide_softmax(x)).max(), 3)
        logs = np.concatenate([long_rows.log_softmax(part, summary) for part in parts], axis=1)
        record("log_softmax in pieces", dtype, oracle.wide_error(logs, oracle.wide_log_softmax(x)).max(), 4)
        lacking = oracle.wide_error(long_rows.remainder(summary), oracle.wide_remainder(x)).max()
        record("remainder in pieces", dtype, lacking, 4)
        greatest = x.astype(oracle.WIDER[x.dtype]).max(-1)
        exact = greatest + np.log1p(oracle.wide_forward(x)[1][:, 0])
        bound = 2 * np.finfo(dtype).eps * np.maximum(np.abs(greatest), np.log(classes))
        assert (np.abs(long_rows.logsumexp(summary) - exact) <= bound).all()


EDGES = {
    "nothing but -inf": [-np.inf] * 6,
    "a piece of -inf": [-np.inf, -np.inf, 1.0, 2.0, 0.0, 1.0],
    "+inf": [0.0, 1.0, np.inf, 2.0, -np.inf, 1.0],
    "two +inf": [np.inf, 1.0, 0.0, 2.0, np.inf, 1.0],
    "NaN": [0.0, 1.0, 2.0, np.nan, 0.0, 1.0],
    "NaN beside -inf": [0.0, 1.0, -np.inf, np.nan, 0.0, 1.0],
    "NaN and +inf": [np.inf, 1.0, 2.0, np.nan, 0.0, 1.0],
    "far apart": [1e30, 0.0, -1e30, 3e3, 1e4, 1e30],
    "across references": [255.9, 256.1, 2047.9, 2048.1, -256.1, 2048.0],
    "ties": [7.0, 7.0, 3.0, 7.0, 7.0, -3.0],
    "largest": [np.finfo(np.float32).max, 0.0, -np.finfo(np.float32).max, 0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_edge_rows_in_pieces(edge, dtype):
    x = np.array([EDGES[edge]], dtype)
    lazy = da.from_array(x, chunks=(1, 2))
    for function in (fs.softmax, fs.log_softmax, fs.logsumexp):
        np.testing.assert_array_max_ulp(function(lazy).compute(), function(x), 1)


def same_in_pieces(x, lazy, function, *others, **options):
    """Compare a function of a lazy array with that of the array in memory, in each of its results."""
    found, expected = function(lazy, *others, **options), function(x, *others, **options)
    eps = 16 * np.finfo(x.dtype).eps
    for one, other in zip(
        *((found, expected) if isinstance(found, tuple) else ([found], [expected])), strict=True
    ):
        np.testing.assert_allclose(one.compute(), other, rtol=4 * eps, atol=eps)


@pytest.mark.parametrize("edge", [edge for edge in EDGES if edge != "largest"])  # overflows in memory, not here
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_and_products_of_edge_rows_in_pieces(edge, dtype):
    """Infinite and NaN results stand where they stand in memory, also for weights and targets of 0."""
    x = np.array([EDGES[edge]], dtype)
    same = partial(same_in_pieces, x, da.from_array(x, chunks=(1, 2)))
    for label in range(6):
        for smoothing in (0, 0.1):
            same(fs.cross_entropy_with_grad, np.array([label]), label_smoothing=smoothing, reduction="none")
    for vector in (np.zeros((1, 6), dtype), np.full((1, 6), 1 / 6, dtype), np.eye(6, dtype=dtype)[3:4]):
        for weight in (np.zeros(1), np.full(1, 3.0)):
            options = {"sample_weight": weight, "reduction": "none"}
            same(fs.cross_entropy_with_grad, vector, **options)
            same(fs.squared_error_with_grad, vector, **options)
            same(fs.cross_entropy_hvp, vector, vector, **options)
            same(fs.cross_entropy_hessian_diag, vector, **options)
        for function in (fs.softmax_jvp, fs.log_softmax_jvp, fs.log_softmax_vjp):
            same(function, vector)


@pytest.mark.parametrize("options", [{"z_loss": 0.1}, {"softcap": 3.0}, {"z_loss": 0.1, "softcap": 30.0}], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_regularized_losses_of_edge_rows_in_pieces(options, dtype):
    """As above, with a z-loss and capped logits, for all edges at once, and for ignored rows."""
    x = np.repeat(np.array([*EDGES.values()], dtype), 6, axis=0)
    rows, options = len(x), {"reduction": "none", **options}
    same = partial(same_in_pieces, x, da.from_array(x, chunks=(rows, 2)))
    tangent, labels = np.tile(np.eye(6, dtype=dtype)[3], (rows, 1)), np.arange(rows) % 6
    for more in ({"ignore_index": 4}, {"label_smoothing": 0.1}):
        same(fs.cross_entropy_with_grad, labels, **options, **more)
    for targets in (tangent, np.full((rows, 6), 1 / 6, dtype), labels):
        for weight in (None, np.arange(rows) % 3):
            given = {"sample_weight": weight, **options}
            same(fs.cross_entropy_with_grad, targets, **given)
            same(fs.cross_entropy_hvp, targets, tangent, **given)
            same(fs.cross_entropy_hessian_diag, targets, **given)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [0, 1, 3, 64, 65, 300])
def test_sums_of_products_of_rows(classes, dtype):
    """Pairs, twice as precise as the dtype, for narrow and wide matrices."""
    rng = np.random.default_rng(classes)
    a, b = rng.normal(size=(2, 37, classes)).astype(dtype)
    high, low = long_rows.inner(a, b)
    exact = [math.fsum(row) for row in (a * b).astype(np.float64)]
    np.testing.assert_allclose(high.astype(np.longdouble) + low, exact, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("call", "reads"),
    [
        (lambda x: fs.cross_entropy(x, np.arange(6)), 1),
        (lambda x: fs.cross_entropy(x, np.arange(6), label_smoothing=0.1), 1),
        (lambda x: fs.cross_entropy_grad(x, np.arange(6)), 2),
        (lambda x: fs.cross_entropy_grad(x, np.ones((6, 300), np.float32)), 2),
        (lambda x: fs.cross_entropy(x, np.arange(6), z_loss=0.1, softcap=5.0), 1),
        (lambda x: fs.cross_entropy_grad(x, np.arange(6), z_loss=0.1, softcap=5.0), 2),
        (lambda x: fs.cross_entropy_hessian_diag(x, np.arange(6), z_loss=0.1, softcap=5.0), 2),
        (lambda x: fs.cross_entropy_hvp(x, np.arange(6), np.ones((6, 300), np.float32), softcap=5.0), 3),
        (lambda x: fs.log_softmax_vjp(x, np.ones((6, 300), np.float32)), 2),
        (lambda x: fs.softmax_vjp(x, np.ones((6, 300), np.float32)), 3),
        (lambda x: fs.squared_error_grad(x, np.ones((6, 300), np.float32)), 3),
    ],
)
def test_each_piece_is_read_once_for_a_loss_and_twice_for_its_gradient(call, reads):
    x = logits(shape=(6, 300))
    lazy = da.from_array(x, chunks=(3, 100))
    result = call(lazy)
    readers = result.dask.dependents[lazy.name]
    if len(readers) == 1 and next(iter(readers)).startswith("transpose"):
        (moved,) = readers
        readers = result.dask.dependents[moved]
    assert len(readers) == reads
    np.testing.assert_allclose(result.compute(), call(x), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["smoothing", "distributions", "class weights", "z-loss", "capped"])
def test_shares_of_rows_in_pieces_keep_the_bounds(kind, record):
    """Losses and gradients of wide pieces, on two threads; float64 in memory is exact to 1e-3 ulp of float32.

    Capped logits are within 3 ulp, and twice such an error of a logit is a relative one of p.
    """
    x = families.rows("spread 10 at -37.7", 400, np.float32, 4000)
    options = {"smoothing": {"label_smoothing": 0.1}, "z-loss": {"z_loss": 0.1}, "capped": {"softcap": 15.0}}.get(
        kind, {}
    )
    targets = np.arange(len(x)) % 400
    if kind == "distributions":
        targets = fs.softmax(x[::-1]).astype(np.float32)
    if kind == "class weights":
        options = {"class_weight": np.linspace(0.1, 3, 400).astype(np.float32), "label_smoothing": 0.2}
    with dask.config.set(scheduler="threads", num_workers=2):
        lazy = da.from_array(x, chunks=(1500, 90))
        loss, slope = dask.compute(*fs.cross_entropy_with_grad(lazy, targets, reduction="none", **options))
    wide = np.float64(targets) if kind == "distributions" else targets
    exact, gradient = fs.cross_entropy_with_grad(x.astype(np.float64), wide, reduction="none", **options)
    record(f"loss of {kind} in pieces", np.float32, oracle.wide_error(loss, exact).max(), 4)
    terms = np.abs(gradient) + fs.softmax(x.astype(np.float64))
    error = np.abs(slope - gradient) / np.spacing(terms.astype(np.float32))
    allowed = 4 + 6 * options.get("softcap", 0)
    record(f"gradient of {kind} in pieces", np.float32, error.max(), allowed)


def test_no_warning_comes_from_the_edges():
    x = np.array([list(row) for row in EDGES.values()])
    with np.errstate(all="raise"):
        fs.softmax(da.from_array(x, chunks=(2, 2))).compute()
        fs.cross_entropy_grad(da.from_array(x, chunks=(2, 2)), np.zeros(len(x), int)).compute()


# --- every function -------------------------------------------------------------------------------------------


def usually(values, few, name=str):
    """Parameters of which only a few are in every run; the others are slow, because they compile more kernels."""
    return [pytest.param(v, id=name(v), marks=[] if name(v) in few else pytest.mark.slow) for v in values]


FEW = ("softmax", "logsumexp", "softmax_jvp", "cross_entropy-labels", "cross_entropy_grad-labels")


@pytest.mark.parametrize("axis", [-1, 1, 0])
@pytest.mark.parametrize("whole", [True, False], ids=["whole rows", "rows in pieces"])
@pytest.mark.parametrize("function", usually(functions.ALL, FEW))
def test_the_numbers_are_those_of_memory(function, whole, axis):
    x = logits()
    lazy = da.from_array(x, chunks=WHOLE[axis] if whole else CUT[axis])
    others = function.other(x, axis)
    result = function.function(lazy, *others, axis=axis, **dict(function.options))
    if function.result == "x":
        # Functions that have no form for pieces bring the classes of a row together.
        kept = FUNCTIONS[function.function.__name__].pieces
        assert result.chunks == (lazy if kept else lazy.rechunk({axis: -1})).chunks
    compare(result, function(x, axis), whole or function.result == "square")
    again = [da.from_array(other, chunks=4) for other in others]
    compare(
        function.function(x, *again, axis=axis, **dict(function.options)), function(x, axis), False
    ) if again else 0


@pytest.mark.parametrize("dtype", usually(["f8", "f2", "i2", ">f4"], ["f2", ">f4"]))
@pytest.mark.parametrize("chunks", [(3, 7), (3, 2)])
def test_dtypes_are_those_of_memory(dtype, chunks):
    x = logits(shape=(5, 7)).astype(dtype)
    lazy = da.from_array(x, chunks=chunks)
    for function in (fs.softmax, fs.logsumexp):
        compare(function(lazy), function(x), chunks[1] == 7)
    compare(fs.cross_entropy(lazy, np.arange(5)), fs.cross_entropy(x, np.arange(5)), False)


@pytest.mark.parametrize("axis", [(0, 2), None, (1, 2)])
def test_several_axes_and_masks(axis):
    x = logits()
    mask = np.random.default_rng(2).random(SHAPE) < 0.6
    mask[0] = False
    for chunks in (WHOLE[-1], CUT[-1], (-1, 2, -1)):
        lazy = da.from_array(x, chunks=chunks)
        for where in (True, mask, da.from_array(mask, chunks=2), mask[0] | mask[1]):
            in_memory = where.compute() if isinstance(where, da.Array) else where
            compare(fs.softmax(lazy, axis, where=where), fs.softmax(x, axis, where=in_memory), False)
            compare(fs.log_softmax(lazy, axis, where=where), fs.log_softmax(x, axis, where=in_memory), False)
            expected = fs.logsumexp(x, axis, where=in_memory, keepdims=True)
            compare(fs.logsumexp(lazy, axis, where=where, keepdims=True), expected, False)


def test_temperature():
    x = logits()
    for chunks in (WHOLE[-1], CUT[-1]):
        lazy = da.from_array(x, chunks=chunks)
        compare(fs.softmax(lazy, temperature=0.3), fs.softmax(x, temperature=0.3), chunks == WHOLE[-1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1e-30, 1e-5, 1e30])
def test_extreme_temperatures_of_rows_in_pieces(temperature, dtype):
    """Also where the terms of one piece are infinitely smaller than those of another."""
    x, v = logits(dtype, (5, 8)), np.eye(5, 8, dtype=dtype)
    lazy = da.from_array(x, chunks=(3, 3))
    for function in (fs.softmax, fs.log_softmax):
        expected = function(x, temperature=temperature)
        np.testing.assert_allclose(function(lazy, temperature=temperature).compute(), expected, rtol=1e-6)
    for function in (fs.softmax_jvp, fs.log_softmax_jvp, fs.log_softmax_vjp):
        expected = function(x, v, temperature=temperature)
        found = function(lazy, v, temperature=temperature).compute()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 / temperature)


def test_pieces_without_classes():
    x, labels = logits(shape=(6, 8)), np.arange(6)
    lazy = da.from_array(x, chunks=(4, (5, 0, 3)))
    eps = 8 * np.finfo(np.float32).eps
    for function, others in (
        (fs.softmax, ()),
        (fs.cross_entropy_grad, (labels,)),
        (fs.cross_entropy_grad, (x,)),
        (fs.squared_error_grad, (x,)),
        (fs.softmax_jvp, (x,)),
        (fs.log_softmax_jvp, (x,)),
        (fs.log_softmax_vjp, (x,)),
        (fs.cross_entropy_hvp, (labels, x)),
        (fs.cross_entropy_hessian_diag, (labels,)),
    ):
        found, expected = function(lazy, *others).compute(), function(x, *others)
        np.testing.assert_allclose(found, expected, rtol=8 * eps, atol=8 * eps)


@pytest.mark.slow
def test_temperature_and_given_probabilities_of_products():
    x, v = logits(), logits()[::-1]
    probs = fs.softmax(x, temperature=0.3)
    for chunks in (WHOLE[-1], CUT[-1]):
        lazy = da.from_array(x, chunks=chunks)
        expected = fs.softmax_jvp(x, v, temperature=0.3)
        compare(fs.softmax_jvp(lazy, v, temperature=0.3), expected, False, np.abs(v).max() / 0.3)
        given = da.from_array(probs, chunks=chunks)
        expected = fs.softmax_vjp(probs, v, from_probs=True)
        compare(fs.softmax_vjp(given, v, from_probs=True), expected, False, np.abs(v).max())


def test_no_dimension_and_one():
    compare(fs.softmax(da.from_array(np.float64(3.0))), np.float64(1.0), True)
    x = logits(shape=(9,))
    for chunks in (9, 4):
        lazy = da.from_array(x, chunks=chunks)
        compare(fs.softmax(lazy), fs.softmax(x), chunks == 9)
        compare(fs.cross_entropy(lazy, 3), fs.cross_entropy(x, 3), False)
        compare(fs.cross_entropy_grad(lazy, 3), fs.cross_entropy_grad(x, 3), False)


# --- options of the losses ------------------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "class weights": {"class_weight": np.linspace(0.2, 3, 11)},
    "sample weights": {"sample_weight": np.arange(30.0).reshape(6, 5) % 4},
    "smoothing": {"label_smoothing": 0.1},
    "all": {
        "class_weight": np.linspace(0.2, 3, 11),
        "sample_weight": np.arange(30.0).reshape(6, 5) % 4,
        "label_smoothing": 0.1,
    },
    "regularized": {"sample_weight": np.arange(30.0).reshape(6, 5) % 4, "z_loss": 1e-3, "softcap": 20.0},
}


@pytest.mark.parametrize("kind", ["labels", "ignored labels", "distributions"])
@pytest.mark.parametrize("options", usually(OPTIONS, ["plain", "all", "regularized"]))
@pytest.mark.parametrize("whole", [True, False], ids=["whole rows", "rows in pieces"])
def test_options_of_the_loss(options, kind, whole):
    x = logits()
    options = dict(OPTIONS[options])
    if kind == "distributions":
        targets = functions.distributions_for(SHAPE, -1, np.float32)
    else:
        targets = functions.labels_for(SHAPE, -1, None)
        if kind == "ignored labels":
            targets = np.where(targets % 3 == 0, -100, targets)
            options["ignore_index"] = -100
            x[targets == -100] = np.nan
    lazy = da.from_array(x, chunks=WHOLE[-1] if whole else CUT[-1])
    for reduction in ("mean", "sum", "none"):
        loss, slope = fs.cross_entropy_with_grad(lazy, targets, reduction=reduction, **options)
        expected = fs.cross_entropy_with_grad(x, targets, reduction=reduction, **options)
        compare(loss, expected[0], whole)
        compare(slope, expected[1], whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labels", "distributions"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("whole", [True, False], ids=["whole rows", "rows in pieces"])
def test_options_of_second_derivatives(options, kind, whole):
    x, tangent = logits(), logits()[::-1]
    options = dict(OPTIONS[options])
    make = functions.labels_for if kind == "labels" else functions.distributions_for
    targets = make(SHAPE, -1, np.float32)
    lazy = da.from_array(x, chunks=WHOLE[-1] if whole else CUT[-1])
    for function, others in (
        (fs.cross_entropy_hvp, (tangent,)),
        (fs.cross_entropy_hessian_diag, ()),
        (fs.cross_entropy_hessian, ()),
    ):
        expected = function(x, targets, *others, **options)
        bits = whole or function is fs.cross_entropy_hessian  # functions that bring the classes of a row together
        compare(function(lazy, targets, *others, **options), expected, bits, 10 * 3)  # tangent, weight


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("whole", [True, False], ids=["whole rows", "rows in pieces"])
def test_weights_of_any_size(dtype, whole):
    """A common factor cancels in a mean, and intermediate results do not overflow or underflow."""
    x = logits(dtype, (30, 11))
    y = np.arange(30) % 11
    rng, limits = np.random.default_rng(2), np.finfo(dtype)
    lazy = da.from_array(x, chunks=(7, -1 if whole else 4))
    for classes, rows in ((limits.smallest_subnormal * 50, 1), (limits.tiny, limits.tiny), (2.0**90, 2.0**90)):
        options = {
            "class_weight": (rng.uniform(0.5, 1, 11) * classes).astype(dtype),
            "sample_weight": (rng.uniform(0.5, 1, 30) * rows).astype(dtype),
        }
        for smoothing in (0.0, 0.1):
            options["label_smoothing"] = smoothing
            loss, slope = fs.cross_entropy_with_grad(lazy, y, **options)
            expected = fs.cross_entropy_with_grad(x, y, **options)
            compare(loss, expected[0], whole)
            compare(slope, expected[1], whole)
            diagonal = fs.cross_entropy_hessian_diag(lazy, y, **options)
            compare(diagonal, fs.cross_entropy_hessian_diag(x, y, **options), whole)
            for regularized in ({"z_loss": 0.1}, {"softcap": 3.0}):
                found = fs.cross_entropy_with_grad(lazy, y, **options, **regularized)
                expected = fs.cross_entropy_with_grad(x, y, **options, **regularized)
                compare(found[0], expected[0], whole)
                if "softcap" in regularized or classes > limits.tiny:  # else the z-loss is infinite
                    compare(found[1], expected[1], whole)
        loss, slope = fs.squared_error_with_grad(lazy, x, sample_weight=options["sample_weight"])
        expected = fs.squared_error_with_grad(x, x, sample_weight=options["sample_weight"])
        compare(loss, expected[0], whole, 100)
        compare(slope, expected[1], whole, 100)


@pytest.mark.parametrize("whole", [True, False], ids=["whole rows", "rows in pieces"])
def test_classes_of_no_weight(whole):
    """A mean over weights of 0 is 0/0, which is known only when all chunks are."""
    x, y = logits(np.float64, (8, 3)), np.array([0, 1, -100, 0, 1, 0, 1, 1])
    x[2] = np.nan
    lazy = da.from_array(x, chunks=(3, -1 if whole else 2))
    for weights in ([0, 0, 1], [0, 1, 1]):
        options = {"class_weight": weights, "ignore_index": -100}
        loss, slope = fs.cross_entropy_with_grad(lazy, y, **options)
        expected = fs.cross_entropy_with_grad(x, y, **options)
        compare(loss, expected[0], False)
        compare(slope, expected[1], False)
        for function in (fs.cross_entropy_hessian_diag, fs.cross_entropy_hessian):
            compare(function(lazy, y, **options), function(x, y, **options), False)


@pytest.mark.parametrize("whole", [True, False], ids=["whole rows", "rows in pieces"])
def test_float16_is_rounded_after_the_reduction(whole):
    x = np.tile(np.array([[15.0, 0.0, 0.0]], np.float16), (60000, 1))
    lazy = da.from_array(x, chunks=(17000, -1 if whole else 2))
    for targets, name in (
        (np.zeros(60000, int), "cross_entropy"),
        (np.tile([1, 0, 0], (60000, 1)), "squared_error"),
    ):
        function = getattr(fs, name)
        expected = np.float16(function(x.astype(np.float32), targets, reduction="sum"))
        compare(function(lazy, targets, reduction="sum"), expected, True)


@pytest.mark.parametrize("whole", usually([True, False], ["False"]))
def test_options_of_the_squared_error(whole):
    x, targets = logits(), functions.vector_for(SHAPE, -1, np.float32)
    lazy = da.from_array(x, chunks=WHOLE[-1] if whole else CUT[-1])
    for weights in (None, OPTIONS["sample weights"]["sample_weight"]):
        for reduction in ("mean", "sum", "none"):
            options = {"sample_weight": weights, "reduction": reduction}
            expected = fs.squared_error_with_grad(x, targets, **options)
            loss, slope = fs.squared_error_with_grad(lazy, targets, **options)
            compare(loss, expected[0], whole)
            compare(slope, expected[1], whole)


def test_large_pieces_are_done_slab_by_slab(monkeypatch):
    """Slabs of one or two rows give the same bits as all rows at once."""
    x, labels = logits(), functions.labels_for(SHAPE, -1, None)
    lazy = da.from_array(x, chunks=CUT[-1])
    calls = (lambda: fs.cross_entropy_with_grad(lazy, labels, label_smoothing=0.1, reduction="none"),)
    calls += (lambda: fs.cross_entropy_with_grad(lazy, labels),)
    calls += (
        lambda: fs.squared_error_with_grad(lazy, x),
        lambda: (fs.softmax_jvp(lazy, x), fs.log_softmax_vjp(lazy, x)),
    )
    calls += (lambda: (fs.log_softmax_jvp(lazy, x), fs.cross_entropy_hessian_diag(lazy, labels)),)
    regularized = {"z_loss": 0.1, "softcap": 20.0}
    calls += (lambda: fs.cross_entropy_with_grad(lazy, labels, reduction="none", **regularized),)
    second = (fs.cross_entropy_hvp, (x,)), (fs.cross_entropy_hessian_diag, ())
    calls += (lambda: tuple(function(lazy, labels, *more, **regularized) for function, more in second),)
    expected = [dask.compute(*call()) for call in calls]
    for slab in (1, 13):
        monkeypatch.setattr(row_pieces, "SLAB", slab)
        assert len(list(row_pieces._slabs((9, 4), x.dtype, 1))) == 9 if slab == 1 else 3
        for call, (loss, slope) in zip(calls, expected, strict=True):
            again = dask.compute(*call())
            np.testing.assert_array_equal(again[0], loss)
            np.testing.assert_array_equal(again[1], slope)


def test_tasks_of_regularized_losses_need_little_memory():
    """At most 2 MB beside a piece of 8 MB and the result."""
    dtype, cap, rows = np.dtype(np.float32), np.float32(5), 2000
    x, v = logits(shape=(rows, 1000)), np.ones((rows, 1000), np.float32)
    labels, weights = np.arange(rows) % 1000, row_pieces.Labelled(*np.ones((3, rows)), True)
    shares = row_pieces.Shares(v, 0, None, row_pieces.Mix(0.0, 1.0, True))
    labelled = row_pieces.labelled_record(x, labels, 0, dtype, cap)
    shared = row_pieces.shares_record(x, shares, dtype, cap)
    entries = row_pieces.entry_record(x, v, dtype, None, False, cap)
    direction = row_pieces.Direction(x, v, entries, dtype, cap=cap)
    sums, ones, dtypes = direction.sums()[0], np.ones(rows), (dtype, dtype)
    for task in (
        lambda: row_pieces.labelled_record(x, labels, 0, dtype, cap),
        lambda: row_pieces.labelled_slope(x, labelled, labels, 0, weights, 1.0, cap),
        lambda: row_pieces.shares_record(x, shares, dtype, cap),
        lambda: row_pieces.shares_slope(x, shared, shares, ones, ones, dtypes, cap),
        lambda: row_pieces.entry_record(x, v, dtype, None, False, cap),
        lambda: row_pieces.shares_product(direction, sums, shares, ones, ones, ones, dtype),
        lambda: row_pieces.capped_summaries(x, dtype, cap),
        lambda: row_pieces.shares_variance(x, labelled, shares, ones, ones, ones, dtypes, cap),
    ):
        tracemalloc.start()
        try:
            result = task()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak - result.nbytes < 2 << 20


def test_a_mean_over_no_row_is_nan():
    lazy = da.from_array(logits(shape=(4, 6)), chunks=(2, 3))
    loss, slope = fs.cross_entropy_with_grad(lazy, np.full(4, -1), ignore_index=-1)
    assert np.isnan(loss.compute())
    assert (slope.compute() == 0).all()
    x, labels, dense = (da.from_array(a) for a in (np.ones((0, 4)), np.zeros(0, int), np.ones((0, 4))))
    for loss, slope in (
        fs.cross_entropy_with_grad(x, labels),
        fs.cross_entropy_with_grad(x, dense),
        fs.squared_error_with_grad(x, dense),
    ):
        assert np.isnan(loss.compute())
        assert slope.compute().shape == (0, 4)


def test_confident_rows_in_pieces(record):
    """Within 4 ulp also where p - 1 and log p cancel."""
    x = families.rows("one dominant class", 60, np.float32, 12000)
    top = np.argmax(x, axis=-1)
    lazy = da.from_array(x, chunks=(50, 7))
    difference, others = oracle.wide_forward(x)
    loss, slope = fs.cross_entropy_with_grad(lazy, top, reduction="none")
    record(
        "cross_entropy in pieces", np.float32, oracle.wide_error(loss.compute(), np.log1p(others)[:, 0]).max(), 4
    )
    exact = np.exp(difference) / (1 + others)
    np.put_along_axis(exact, top[:, None], -(others / (1 + others)), -1)
    record("its gradient in pieces", np.float32, oracle.wide_error(slope.compute(), exact).max(), 4)


# --- losses of single logits ----------------------------------------------------------------------------------

BINARY = ("binary_cross_entropy", "binary_focal_loss")
BINARY_OPTIONS = {
    "binary_cross_entropy": [{}, {"label_smoothing": 0.1, "pos_weight": np.linspace(0.5, 3, 11)}],
    "binary_focal_loss": [{"gamma": 0.0}, {"gamma": 1.5, "alpha": 0.3}],
}
BINARY_WEIGHTS = {
    "none": None,
    "one": 0.7,
    "of a column": np.arange(11.0) % 4,
    "of a row": np.linspace(1, 2, 30).reshape(6, 5, 1),
    "of an entry": np.random.default_rng(4).random(SHAPE),
    "huge": np.full(SHAPE, 1e308),
    "tiny": np.full(11, 1e-300),
    "zero": np.zeros((5, 1)),
}


def binary_targets(shape, dtype=np.float64):
    return np.random.default_rng(sum(shape)).random(shape).astype(dtype)


@pytest.mark.parametrize("ending", ["", "_grad", "_with_grad", "_hessian_diag"])
@pytest.mark.parametrize("weight", usually(BINARY_WEIGHTS, ["none", "of a column", "huge"]))
@pytest.mark.parametrize("name", BINARY)
def test_binary_losses_have_the_bits_of_memory(name, weight, ending):
    """Chunks of any shape; weights keep their shape; the chunks of targets and weights may be others."""
    x, t, weight = logits(np.float64), binary_targets(SHAPE), BINARY_WEIGHTS[weight]
    lazy, function = da.from_array(x, chunks=(4, 2, 3)), getattr(fs, name + ending)
    cut = da.from_array(weight, chunks=2) if isinstance(weight, np.ndarray) else weight
    for options in BINARY_OPTIONS[name]:
        for reduction in ("mean", "sum", "none"):
            options = {**options, "reduction": reduction}
            expected = function(x, t, sample_weight=weight, **options)
            for targets, weights in ((t, weight), (da.from_array(t, chunks=5), cut)):
                found = function(lazy, targets, sample_weight=weights, **options)
                pairs = zip(found, expected, strict=True) if ending == "_with_grad" else [(found, expected)]
                for one, other in pairs:
                    compare(one, other, True)
                    if one.ndim:
                        assert one.chunks == lazy.chunks


@pytest.mark.parametrize("dtype", ["f4", "f2", "i4", ">f8"])
@pytest.mark.parametrize("shape", [(), (7,), (0, 4), (40, 70)])
def test_binary_losses_of_every_dtype_and_shape(shape, dtype):
    x, t = np.asarray(logits(shape=shape)).astype(dtype), binary_targets(shape) < 0.4
    with np.errstate(all="ignore"):
        for name in BINARY:
            for lazy, targets in (
                (da.from_array(x, chunks=3), t),
                (x, da.from_array(t, chunks=(30, 30)[: len(shape)])),
            ):
                found = getattr(fs, f"{name}_with_grad")(lazy, targets, sample_weight=0.5)
                for one, other in zip(
                    found, getattr(fs, f"{name}_with_grad")(x, t, sample_weight=0.5), strict=True
                ):
                    compare(one, other, True)


def test_float16_losses_of_entries_are_rounded_once():
    """As in memory: each loss is rounded if it is returned, and else only their sum."""
    x = da.full(60000, 2.5, chunks=17000, dtype=np.float16)
    compare(
        fs.binary_cross_entropy(x, da.zeros_like(x)), fs.binary_cross_entropy(x.compute(), np.zeros(60000)), True
    )


def test_a_target_out_of_range_is_named_by_its_place_in_all():
    x, t = logits(), binary_targets(SHAPE)
    t[5, 3, 10] = 1.5
    lazy, targets = da.from_array(x, chunks=(4, 2, 3)), da.from_array(t, chunks=(4, 2, 3))
    loss, slope = fs.binary_focal_loss_with_grad(lazy, targets)
    for one in (loss, slope):
        with pytest.raises(
            ValueError, match=r"with_grad: targets\[5, 3, 10\] is 1.5, expected a number from 0 to 1"
        ):
            one.compute()
    weights = np.ones(11)
    weights[10] = 0  # entries of no weight may have any target
    compare(
        fs.binary_cross_entropy(lazy, targets, sample_weight=weights),
        fs.binary_cross_entropy(x, t, sample_weight=weights),
        True,
    )


@pytest.mark.parametrize("name", [name + ending for name in BINARY for ending in ("", "_grad", "_hessian_diag")])
def test_errors_of_binary_losses_come_at_the_call(name):
    """And the words are those of the arrays in memory."""
    function = getattr(fs, name)
    cases = [
        ((X, np.zeros(6)), {}),
        ((X.astype(complex), X), {}),
        ((X, X.astype("U1")), {}),
        ((X, X), {"reduction": "men"}),
        ((X, X), {"sample_weight": da.ones(5)}),
        ((X, X), {"sample_weight": da.ones((1, 4, 6))}),
    ]
    if "focal" in name:
        cases += [((X, X), {"gamma": -1.0}), ((X, X), {"alpha": 2.0})]
    else:
        cases += [((X, X), {"label_smoothing": 2}), ((X, X), {"pos_weight": np.ones(3)})]
    for arguments, options in cases:
        with pytest.raises((TypeError, ValueError)) as lazy:
            function(*arguments, **options)
        computed = dask.compute(*arguments)
        with pytest.raises(lazy.type) as expected:
            function(*computed, **dask.compute(options)[0])
        assert str(lazy.value) == str(expected.value)
    with pytest.raises(ValueError, match=r"logits has chunks of unknown size"):
        function(X[X[:, 0] > 0], X)
    if name.endswith(("_grad", "_hessian_diag")):
        with pytest.raises(TypeError, match=f"{name}: out cannot be used with Dask arrays"):
            function(X, X, out=np.empty((4, 6)))


# --- nothing before it is asked for ---------------------------------------------------------------------------


def explode(block):
    raise RuntimeError("computed")


@pytest.mark.parametrize("chunks", [(2, 6), (2, 3)])
def test_a_call_computes_nothing(chunks):
    x = da.zeros((4, 6), chunks=chunks, dtype=np.float32)
    armed = x.map_blocks(explode, dtype=x.dtype, meta=x._meta)
    labels = da.zeros(4, chunks=2, dtype=int).map_blocks(explode, dtype=int, meta=np.empty(0, int))
    results = [
        fs.softmax(armed),
        fs.log_softmax(armed, where=armed > 0),
        fs.logsumexp(armed),
        fs.softmax_jacobian(armed),
    ]
    results += [fs.softmax_jvp(armed, armed), fs.log_softmax_vjp(armed, armed)]
    weights = {"class_weight": armed[0], "sample_weight": armed[:, 0]}
    results += [*fs.cross_entropy_with_grad(armed, labels, **weights), fs.cross_entropy_hvp(armed, labels, armed)]
    results += [*fs.squared_error_with_grad(armed, armed), fs.cross_entropy(np.zeros((4, 6)), labels)]
    binary = {"pos_weight": armed[0], "sample_weight": armed}
    results += [*fs.binary_cross_entropy_with_grad(armed, armed, **binary), fs.binary_focal_loss(armed, armed)]
    for result in results:
        with pytest.raises(RuntimeError, match="computed"):
            result.compute()


def test_tasks_use_one_thread(monkeypatch):
    """Our helper threads are not used inside Dask's threads."""
    seen = []
    softmax = activations.softmax
    monkeypatch.setattr(
        activations, "softmax", lambda *a, **k: (seen.append(threads.max_threads()), softmax(*a, **k))[1]
    )
    summarize = long_rows.summarize
    monkeypatch.setattr(long_rows, "summarize", lambda *a: (seen.append(threads.max_threads()), summarize(*a))[1])
    with dask.config.set(scheduler="threads", num_workers=2):
        fs.softmax(da.zeros((4, 6), chunks=(2, 6))).compute()
        fs.softmax(da.zeros((4, 6), chunks=(2, 3))).compute()
    assert seen == [1] * 6


def test_dask_is_not_imported_for_others():
    code = """
import sys
import numpy as np
import fastsoftmax as fs
fs.softmax(np.zeros((3, 4)))
fs.cross_entropy(np.zeros((3, 4)), np.zeros(3, int))
print(*sorted({"dask", "distributed", "fastsoftmax.backends.dask"} & set(sys.modules)))
"""
    assert child.run(code) == "\n"


def test_small_calls_do_not_ask(monkeypatch):
    fs.softmax(np.zeros((2, 3)))
    monkeypatch.setattr(activations, "backend_for", lambda *values: pytest.fail("asked"))
    fs.softmax(np.zeros((2, 3)))


# --- errors ---------------------------------------------------------------------------------------------------

X = da.zeros((4, 6), chunks=(2, 3))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: fs.softmax(X, 2), np.exceptions.AxisError, "axis 2"),
        (lambda: fs.softmax(X.astype(complex)), TypeError, "softmax: x has dtype complex128"),
        (lambda: fs.softmax(X, temperature=0), ValueError, "temperature"),
        (lambda: fs.softmax(X, out=np.empty((4, 6))), TypeError, "out cannot be used with Dask arrays"),
        (lambda: fs.softmax(X, where=X), TypeError, "where has dtype float64, expected bool"),
        (lambda: fs.softmax(X, where=np.ones(5, bool)), ValueError, "does not broadcast"),
        (lambda: fs.softmax(X[X[:, 0] > 0]), ValueError, r"unknown size; call its compute_chunk_sizes\(\)"),
        (
            lambda: fs.softmax_jvp(X, X[:2]),
            ValueError,
            r"tangent has shape \(2, 6\), expected that of x, \(4, 6\)",
        ),
        (lambda: fs.cross_entropy(X, np.zeros(3, int)), ValueError, r"expected \(4,\) \(class indices\)"),
        (lambda: fs.cross_entropy(X, np.zeros(4)), TypeError, "expected integers"),
        (lambda: fs.cross_entropy(X, np.zeros(4, int), reduction="men"), ValueError, "reduction must be one of"),
        (lambda: fs.cross_entropy(X, np.zeros(4, int), label_smoothing=2), ValueError, "at most 1"),
        (lambda: fs.cross_entropy(X, np.zeros(4, int), class_weight=[1, 2]), ValueError, "class_weight has shape"),
        (lambda: fs.squared_error(X, X[:3]), ValueError, "targets has shape"),
    ],
)
def test_errors_come_at_the_call(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_label_out_of_range_is_named_by_its_place_in_all():
    labels = da.from_array(np.array([0, 1, 2, 6]), chunks=2)
    for x in (X, X.rechunk((2, 6))):
        loss = fs.cross_entropy(x, labels)
        with pytest.raises(IndexError, match=r"cross_entropy: targets\[3\] is 6, expected a label from 0 to 5"):
            loss.compute()


# --- clusters -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["processes", "threads"])
def cluster(request):
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "memory_limit": 0}
    processes = request.param == "processes"
    with (
        distributed.LocalCluster(processes=processes, **options) as cluster,
        distributed.Client(cluster) as client,
        dask.config.set(scheduler=client),
    ):
        yield client


def test_on_a_cluster(cluster):
    x = logits(shape=(40, 30))
    labels = np.random.default_rng(5).integers(0, 30, 40)
    for chunks in ((10, 30), (10, 8)):
        lazy = da.from_array(x, chunks=chunks)
        compare(fs.softmax(lazy), fs.softmax(x), chunks[1] == 30)
        loss, slope = dask.compute(*fs.cross_entropy_with_grad(lazy, labels))
        expected = fs.cross_entropy_with_grad(x, labels)
        np.testing.assert_allclose(loss, expected[0], rtol=4 * np.finfo(np.float32).eps)
        np.testing.assert_allclose(slope, expected[1], atol=1e-7)


def slowly(block, place):
    """A chunk of a data set that takes time to read, and records that it was read."""
    time.sleep(0.15)
    with open(place, "a") as file:
        file.write(f"{os.getpid()}\n")
    return block


KILLED = {
    "softmax": lambda x, labels: (fs.softmax(x),),
    "loss and gradient": fs.cross_entropy_with_grad,
    "metrics": lambda x, labels: RunningMetrics().update(x, labels).result()[:4],
}


@pytest.mark.parametrize(
    "call", ["softmax", *[pytest.param(one, marks=pytest.mark.slow) for one in KILLED if one != "softmax"]]
)
def test_a_killed_worker_costs_time_not_results(call, tmp_path):
    x, labels = logits(shape=(64, 30)), np.arange(64) % 30
    trace = tmp_path / "trace"
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "memory_limit": 0}
    with (
        distributed.LocalCluster(processes=True, **options) as cluster,
        distributed.Client(cluster) as client,
        dask.config.set(scheduler=client),
        ThreadPoolExecutor(1) as pool,
    ):
        workers = set(client.run(os.getpid).values())
        lazy = da.from_array(x, chunks=(4, 10)).map_blocks(slowly, str(trace), dtype=x.dtype, meta=x[:0, :0])
        future = pool.submit(lambda: dask.compute(*KILLED[call](lazy, labels)))
        deadline = time.monotonic() + 60
        while not trace.exists() or len(trace.read_text().splitlines()) < 6:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        victim = int(trace.read_text().splitlines()[0])
        assert victim in workers
        os.kill(victim, signal.SIGKILL)
        results = future.result(timeout=120)
    for result, expected in zip(results, KILLED[call](x, labels), strict=True):
        np.testing.assert_allclose(result, expected, rtol=8 * np.finfo(np.float32).eps, atol=1e-7)
    assert len(trace.read_text().splitlines()) > 48  # some pieces were read twice
    assert len(set(trace.read_text().split())) >= 2


def test_problem_needs_no_memory():
    """The checks use a stand-in with the shape of a large array."""
    assert Problem("softmax", np.broadcast_to(np.zeros(()), (10**9, 10**5)), -1).rows == 10**9


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_confident_rows_in_pieces_keep_their_digits(dtype):
    """1 - p is accurate also where p rounds to 1 and the classes are in several chunks."""
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(6, 12)) - 40).astype(dtype)
    x[np.arange(6), rng.integers(0, 12, 6)] = 1
    v, targets = rng.normal(size=x.shape).astype(dtype), np.eye(12, dtype=dtype)[x.argmax(1)]
    cut, direction = da.from_array(x, chunks=(3, 5)), da.from_array(v, chunks=(3, 5))
    eps = 16 * np.finfo(dtype).eps
    for function in (fs.softmax_jvp, fs.softmax_vjp, fs.log_softmax_jvp, fs.log_softmax_vjp):
        for options in ({}, {"temperature": 0.9}):
            np.testing.assert_allclose(
                function(cut, direction, **options).compute(), function(x, v, **options), rtol=50 * eps
            )
    goal = da.from_array(targets, chunks=(3, 5))
    for actual, expected in zip(
        fs.squared_error_with_grad(cut, goal), fs.squared_error_with_grad(x, targets), strict=True
    ):
        np.testing.assert_allclose(actual.compute(), expected, rtol=50 * eps)
    labels = x.argmax(1)
    np.testing.assert_allclose(
        fs.cross_entropy_hvp(cut, labels, direction).compute(), fs.cross_entropy_hvp(x, labels, v), rtol=50 * eps
    )


# --- losses of products ---------------------------------------------------------------------------------------


def linear_problem(dtype=np.float64):
    rng = np.random.default_rng(3)
    features, weight = rng.normal(size=(4, 25, 8)).astype(dtype), rng.normal(size=(70, 8)).astype(dtype)
    targets = rng.integers(0, 70, (4, 25))
    return features, weight, targets, rng.normal(size=70).astype(dtype)


LINEAR = {
    "plain": {},
    "weights": {"class_weight": np.linspace(0.2, 2, 70), "sample_weight": np.linspace(0, 1, 100).reshape(4, 25)},
    "sum": {"label_smoothing": 0.1, "class_weight": np.linspace(0, 2, 70), "reduction": "sum"},
    "mean of the rest": {"ignore_index": 0, "z_loss": 0.1, "softcap": 3.0},
    "rows": {"ignore_index": 0, "reduction": "none"},
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("case", LINEAR)
def test_linear_cross_entropy(case, dtype):
    """The losses and gradients in memory; features and labels have different chunks, and D is cut."""
    features, weight, targets, bias = linear_problem(dtype)
    options = dict(LINEAR[case])
    expected = fs.linear_cross_entropy_with_grad(features, weight, targets, bias, **options)
    lazy = da.from_array(features, chunks=(3, 10, 5))
    if "sample_weight" in options:
        options["sample_weight"] = da.from_array(options["sample_weight"], chunks=7)
    operands = lazy, weight, da.from_array(targets, chunks=(2, 25)), da.from_array(bias, chunks=30)
    loss, gradients = fs.linear_cross_entropy_with_grad(*operands, **options)
    assert all(isinstance(array, da.Array) for array in (loss, *gradients))
    assert gradients.features.chunks == ((3, 1), (10, 10, 5), (8,))
    eps = np.finfo(dtype).eps
    found = dask.compute(loss, *gradients, fs.linear_cross_entropy(*operands, **options))
    for value, lazy_one, reference in zip(
        found, (loss, *gradients, loss), (expected[0], *expected[1], expected[0]), strict=True
    ):
        reference = np.asarray(reference)
        assert value.dtype == lazy_one.dtype == reference.dtype
        assert value.shape == lazy_one.shape == reference.shape
        np.testing.assert_allclose(value, reference, rtol=20 * eps, atol=20 * eps * np.abs(reference).max())


def test_linear_cross_entropy_of_arrays_in_memory_with_lazy_labels():
    """The chunks are those of the labels; only what `wrt` names is computed."""
    features, weight, targets, bias = linear_problem()
    loss, gradients = fs.linear_cross_entropy_with_grad(
        features, weight, da.from_array(targets, chunks=(4, 9)), bias, wrt="weight"
    )
    assert (gradients.features, gradients.bias) == (None, None)
    expected = fs.linear_cross_entropy_with_grad(features, weight, targets, bias)
    assert float(loss.compute()) == pytest.approx(expected[0], rel=1e-14)
    np.testing.assert_allclose(gradients.weight.compute(), expected[1].weight, rtol=1e-12, atol=1e-15)
    one = fs.linear_cross_entropy_with_grad(da.from_array(features[0, 0]), weight, targets[0, 0])
    first = fs.linear_cross_entropy_with_grad(features[0, 0], weight, targets[0, 0])
    assert float(one[0].compute()) == first[0]
    np.testing.assert_array_equal(one[1].weight.compute(), first[1].weight)


def test_linear_softmax_statistics():
    features, weight, targets, bias = linear_problem()
    options = {"ignore_index": 5, "softcap": 4.0}
    expected = fs.linear_softmax_statistics(features, weight, targets, bias, **options)
    lazy = da.from_array(features, chunks=(1, 10, 8))
    found = dask.compute(*fs.linear_softmax_statistics(lazy, weight, targets, bias, **options))
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == reference.dtype
        np.testing.assert_allclose(value, reference, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("case", LINEAR)
def test_linear_cross_entropy_hvp(case, dtype):
    """The products in memory; features, labels and weights of samples have different chunks."""
    features, weight, targets, bias = linear_problem(dtype)
    rng = np.random.default_rng(9)
    tangent, along = rng.normal(size=weight.shape).astype(dtype), rng.normal(size=70).astype(dtype)
    options = dict(LINEAR[case])
    expected = fs.linear_cross_entropy_hvp(features, weight, targets, tangent, bias, along, **options)
    if "sample_weight" in options:
        options["sample_weight"] = da.from_array(options["sample_weight"], chunks=7)
    lazy = da.from_array(features, chunks=(3, 10, 5)), weight, da.from_array(targets, chunks=(2, 25)), tangent
    for biases in ((bias, along), (da.from_array(bias, chunks=30), da.from_array(along, chunks=9))):
        found = fs.linear_cross_entropy_hvp(*lazy, *biases, **options)
        assert found.features is None
        eps = np.finfo(dtype).eps
        for value, reference in zip(dask.compute(*found[1:]), expected[1:], strict=True):
            assert value.dtype == reference.dtype
            np.testing.assert_allclose(value, reference, rtol=20 * eps, atol=20 * eps * np.abs(reference).max())
    z = features @ weight.T + bias
    for logits in (z, da.from_array(z, chunks=(2, 25, 30))):
        found = fs.linear_cross_entropy_hvp(*lazy, bias, along, logits=logits, **options)
        value, reference = found.weight.compute(), expected.weight
        np.testing.assert_allclose(value, reference, rtol=20 * eps, atol=20 * eps * np.abs(reference).max())
    without = fs.linear_cross_entropy_hvp(*lazy, **options)
    assert without.bias is None
    reference = fs.linear_cross_entropy_hvp(features, weight, targets, tangent, **LINEAR[case]).weight
    np.testing.assert_allclose(without.weight.compute(), reference, atol=20 * eps * np.abs(reference).max())


def test_errors_of_linear_cross_entropy_hvp():
    features, weight, targets, bias = linear_problem()
    lazy = da.from_array(features, chunks=(2, 10, 8))
    for kind, words, operands, options in (
        (ValueError, r"tangent has shape \(69, 8\), expected \(70, 8\)", (weight[1:],), {}),
        (ValueError, r"tangent_bias has shape \(69,\)", (weight, bias, da.from_array(bias[1:])), {}),
        (TypeError, "tangent is a Dask array and has to be in memory", (da.from_array(weight),), {}),
        (ValueError, r"logits has shape \(70,\), expected \(4, 25, 70\)", (weight,), {"logits": np.ones(70)}),
        (ValueError, "block_bytes must be at least 1", (weight,), {"block_bytes": 0}),
        (ValueError, "reduction must be one of", (weight,), {"reduction": "max"}),
    ):
        with pytest.raises(kind, match="linear_cross_entropy_hvp: " + words):
            fs.linear_cross_entropy_hvp(lazy, weight, targets, *operands, **options)


def test_errors_of_linear_cross_entropy():
    """Wrong arguments are refused at once, a wrong label when it is read, with its position among all."""
    features, weight, targets, bias = linear_problem()
    lazy = da.from_array(features, chunks=(2, 10, 8))
    for kind, words, operands, options in (
        (ValueError, r"weight has shape \(70, 7\), expected \(K, 8\)", (weight[:, 1:], targets), {}),
        (ValueError, r"targets has shape \(3, 25\), expected \(4, 25\)", (weight, targets[1:]), {}),
        (TypeError, "targets are class indices and have dtype float64", (weight, targets / 1), {}),
        (ValueError, r"bias has shape \(69,\)", (weight, targets, bias[1:]), {}),
        (ValueError, r"sample_weight has shape \(4,\)", (weight, targets), {"sample_weight": np.ones(4)}),
        (ValueError, r"class_weight has shape \(4,\)", (weight, targets), {"class_weight": np.ones(4)}),
        (ValueError, "block_bytes must be at least 1", (weight, targets), {"block_bytes": 0}),
        (ValueError, "reduction must be one of", (weight, targets), {"reduction": "max"}),
        (ValueError, "wrt may name", (weight, targets), {"wrt": "logits"}),
    ):
        with pytest.raises(kind, match="linear_cross_entropy_with_grad: " + words):
            fs.linear_cross_entropy_with_grad(lazy, *operands, **options)
    with pytest.raises(ValueError, match="features has chunks of unknown size"):
        fs.linear_cross_entropy(lazy[lazy[:, 0, 0] > 0], weight, targets)
    targets[3, 20] = 70
    loss = fs.linear_cross_entropy(lazy, weight, targets)
    with pytest.raises(IndexError, match=r"targets\[3, 20\] is 70"):
        loss.compute()
