"""categorical, segment_categorical and filter_logits: the probabilities that the code implies, literal filters.

The class is a monotone function of u. So bisection finds the least u of the 2**53 possible ones that selects a
class behind class k, and the difference of two of them is the probability with which the code draws a class. No
statistics are needed to compare it with the oracle.
"""

import multiprocessing
import os
import sys
import time
from itertools import pairwise

import cases
import child
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsoftmax as fs
from fastsoftmax._vectors import LISTED
from fastsoftmax.api import sampling
from fastsoftmax.arrays import sampling as arguments
from fastsoftmax.arrays import threads

every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)
UNIT = 2.0**-53
LAST = 1 - UNIT
LONG = np.longdouble


def implied(draw, classes):
    """The probability of each class, by bisection: ``draw(u)`` returns a class for each of so many u."""
    low, high = np.zeros(classes, np.int64), np.full(classes, 1 << 53)
    behind = np.arange(classes)
    while (high - low).max() > 0:
        middle = (low + high) // 2
        above = draw(middle.clip(max=(1 << 53) - 1) * UNIT) > behind
        low, high = np.where(above | (low == high), low, middle + 1), np.where(above, middle, high)
    return np.diff(low, prepend=0) * UNIT


def by_rows(x, **options):
    """A row for each u: the kernel for one draw from each row."""
    rows = np.broadcast_to(x, (len(x), len(x))).copy()
    return lambda u: fs.categorical(rows, uniforms=u, **options)


def by_size(x, **options):
    """One row: the kernel for several draws."""
    return lambda u: fs.categorical(x, uniforms=u, size=len(x), **options)


def check(found, p, bound=1e-6):
    """Within `bound`, and three steps of the uniform number, which is 3e-7 at 1e-9."""
    p = np.array([float(value) for value in p])
    excess = np.abs(found - p) - 3 * UNIT
    worst = int(np.argmax(excess / np.maximum(p, UNIT)))
    assert excess[worst] <= bound * p[worst], (worst, found[worst], p[worst])


def stretched(dtype, classes, scale=3.0):
    """Logits whose probabilities span many orders of magnitude."""
    return (scale * np.random.default_rng(classes).standard_normal(classes)).astype(dtype)


@every_dtype
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 17, 64, 65, 100, 255, 256, 257, 600])
@pytest.mark.parametrize("draw", [by_rows, by_size])
def test_probabilities(dtype, classes, draw):
    """Within 2e-6 for every class above 1e-9: terms err by 1e-7, and sums of four of them by as much."""
    x = stretched(dtype, classes)
    check(implied(draw(x), classes), oracle.softmax(x))


def implied_of(x, some, **options):
    """`implied`, for some of the classes only."""
    pairs = np.stack([some - 1, some])
    low, high = np.zeros(pairs.shape, np.int64), np.full(pairs.shape, 1 << 53)
    high[pairs < 0] = 0
    while (high - low).max() > 0:
        middle = (low + high) // 2
        u = middle.clip(max=(1 << 53) - 1) * UNIT
        above = fs.categorical(x, uniforms=u, size=pairs.shape, **options) > pairs
        low, high = np.where(above | (low == high), low, middle + 1), np.where(above, middle, high)
    return np.diff(low, axis=0)[0] * UNIT


@every_dtype
@pytest.mark.parametrize(
    ("classes", "options"),
    [
        (5000, {}),
        (5000, {"temperature": 0.7}),
        *(pytest.param(n, {}, marks=pytest.mark.slow) for n in (151_936, 300_001, 1_300_001)),
    ],
)
def test_probabilities_of_long_rows(dtype, classes, options):
    """Within 2e-6 also in a vocabulary, behind a table of sums, and where parts have several stretches."""
    x = stretched(dtype, classes)
    ends = np.arange(255, classes, 256)
    rng = np.random.default_rng(1)
    some = [np.argsort(x)[[0, 1, -2, -1]], [0, 1, classes - 1], ends[-3:], rng.choice(ends, 15) + 1]
    some = np.unique(np.concatenate([*some, rng.integers(0, classes, 60)])).clip(max=classes - 1)
    p = oracle.softmax(x, options.get("temperature", 1.0))
    check(implied_of(x, some, **options), [p[k] for k in some])


@every_dtype
@pytest.mark.parametrize("classes", [3, 64, 65, 300])
@pytest.mark.parametrize("temperature", [0.3, 2.5, 1e-3, 1e5])
def test_temperature(dtype, classes, temperature):
    x = stretched(dtype, classes)
    check(implied(by_rows(x, temperature=temperature), classes), oracle.softmax(x, temperature))


@every_dtype
@pytest.mark.parametrize("classes", [80, 300])
def test_an_inner_axis(dtype, classes):
    """Rows along an axis that is not the last are walked in columns, whatever their length."""
    x = stretched(dtype, classes)
    columns = np.ascontiguousarray(np.broadcast_to(x[:, None], (classes, classes)))
    check(implied(lambda u: fs.categorical(columns, 0, uniforms=u), classes), oracle.softmax(x))


@every_dtype
@pytest.mark.parametrize("classes", [20, 64, 256, 300, 5000])
@pytest.mark.parametrize("rare", [1e-9, 1e-12, 1e-14])
def test_a_rare_class_behind_a_common_one(dtype, classes, rare):
    """Within 4 steps of u: either edge is rounded in a product with the sum, a quotient, and a product.

    Sums in float32, or in another order than that of the search, draw it thousands of times too often.
    """
    x = np.full(classes, -60.0, dtype)
    end = min(classes, 256) - 1  # the last class of its stretch
    x[0], x[end] = 0.0, np.log(rare)
    found = implied(by_size(x), classes)[end]
    expected = float(np.exp(LONG(x[end])))
    assert abs(found - expected) <= 4 * UNIT + 1e-6 * expected


@every_dtype
@pytest.mark.parametrize("classes", [5, 64, 65, 300, 3000])
def test_the_edges_of_u(dtype, classes):
    """u = 0 skips classes of probability 0, and no u selects one behind the last class of a positive one."""
    x = np.full(classes, -np.inf, dtype)
    x[classes // 3] = x[classes // 2] = 1.0
    for options in ({}, {"size": 1}, {"top_p": 0.9999}):
        u = np.array([0.0, UNIT, 0.25, 0.75, LAST])
        rows = np.tile(x, (5, 1))
        shape = (1, 5) if "size" in options else (5,)
        got = fs.categorical(rows, uniforms=u.reshape(shape), **options)
        first, last = classes // 3, classes // 2
        np.testing.assert_array_equal(got.ravel(), [first, first, first, last, last])
    x[classes // 2 + 1 :] = -2000.0  # a probability that rounds to 0
    assert fs.categorical(x, uniforms=LAST) == classes // 2


@every_dtype
@pytest.mark.parametrize("classes", [7, 64, 65, 1000])
def test_equal_and_subnormal_rows(dtype, classes):
    tiny = np.finfo(dtype).smallest_subnormal
    for value in (0.0, 7.25, -1e4, tiny, np.finfo(dtype).max, np.finfo(dtype).min):
        x = np.full(classes, value, dtype)
        x[::2] -= 0 if abs(value) > 1 else tiny
        check(implied(by_size(x), classes), [1 / classes] * classes)


@every_dtype
def test_a_row_of_more_than_a_million(dtype):
    """Its parts have several stretches."""
    x = stretched(dtype, 1_300_001, 1.0)
    terms = np.exp(x.astype(LONG) - x.max())
    ends = terms.cumsum() / terms.sum()
    u = np.random.default_rng(0).random(300)
    got = fs.categorical(x, uniforms=u, size=300)
    slack = 1e-7
    assert (u < ends[got] + slack).all()
    assert (u >= ends[got] - (terms / terms.sum())[got] - slack).all()
    assert np.mean((u < ends[got]) & (u >= ends[got] - (terms / terms.sum())[got])) > 0.9
    np.testing.assert_array_equal(fs.categorical(np.tile(x, (2, 1)), uniforms=u[:2]), got[:2])
    assert fs.categorical(x, uniforms=0.0) == 0
    assert fs.categorical(x, uniforms=LAST) >= 1_299_900


def logits_of(shape, classes):
    """Logits of one of five distributions."""
    rng = np.random.default_rng(classes)
    if shape == "uniform":
        return np.zeros(classes)
    if shape == "normal":
        return rng.standard_normal(classes)
    if shape == "geometric":
        return -0.05 * np.arange(classes)
    if shape == "power law":
        return -1.2 * np.log(rng.permutation(classes) + 1)
    return np.where(np.arange(classes) == classes // 2, 3 + np.log(classes), 0.0)  # one class has 95 %


SHAPES = ["uniform", "normal", "geometric", "power law", "peak"]
DRAWS = 1_000_000


def draws_of(row, rows):
    """A million draws from a row: of a matrix of `rows` equal rows as often as it takes; by `size` for None."""
    rng = np.random.default_rng(5)
    if rows is None:
        return fs.categorical(row, rng=rng, size=DRAWS)
    x = np.broadcast_to(row, (rows, len(row))).copy()
    return np.concatenate([fs.categorical(x, rng=rng) for _ in range(DRAWS // rows)])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("rows", "classes"),
    [
        (DRAWS, 3),
        (DRAWS, 50),
        (None, 400),
        pytest.param(100_000, 100, marks=pytest.mark.slow),
        pytest.param(1000, 2000, marks=pytest.mark.slow),
    ],
)
def test_chi_square(shape, rows, classes):
    """A million draws are as frequent as they should be (level 1e-6). Classes expected in few draws are joined."""
    stats = pytest.importorskip("scipy.stats")
    row = logits_of(shape, classes).astype(np.float32)
    counts = np.bincount(draws_of(row, rows), minlength=classes)
    p = np.exp(row.astype(LONG))
    expected = (p / p.sum() * DRAWS).astype(np.float64)
    order = np.argsort(expected)
    _, bins = np.unique((expected[order].cumsum() / 500).astype(int), return_inverse=True)
    observed, wanted = np.bincount(bins, counts[order]), np.bincount(bins, expected[order])
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    assert observed.sum() == DRAWS
    assert stats.chi2.sf(statistic, len(observed) - 1) > 1e-6


# --- independence of everything else --------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("classes", [3, 64, 65, 300])
@pytest.mark.parametrize(
    "options", [{}, {"size": 2}, {"top_k": 20}, {"top_p": 0.8}, {"size": 2, "replace": False}], ids=str
)
def test_rows_threads_and_blocks(dtype, classes, options, monkeypatch):
    """A row gets the same class in any batch, on any number of threads and in blocks of any size."""
    rng = np.random.default_rng(1)
    rows = 1 + (1 << 19) // classes
    x = rng.standard_normal((rows, classes)).astype(dtype)
    shape = (2, rows) if "size" in options else (rows,)
    u = rng.random(shape)
    expected = fs.categorical(x, uniforms=u, **options)
    with fs.threads(1):
        np.testing.assert_array_equal(fs.categorical(x, uniforms=u, **options), expected)
    order = rng.permutation(rows)
    again = fs.categorical(x[order], uniforms=u[..., order], **options)
    np.testing.assert_array_equal(again, expected[..., order])
    for n in (0, rows - 1):
        np.testing.assert_array_equal(fs.categorical(x[n], uniforms=u[..., n], **options), expected[..., n])
    monkeypatch.setattr(threads, "BLOCK_WORK", 1 << 12)
    monkeypatch.setattr(threads, "ROW_MULTIPLE", 1)
    np.testing.assert_array_equal(fs.categorical(x, uniforms=u, **options), expected)


@every_dtype
@pytest.mark.parametrize("options", [{}, {"size": 2}, {"size": (30,)}, {"temperature": 0.3}, {"size": 0}], ids=str)
def test_a_row_shared_by_threads(dtype, options, monkeypatch):
    """A long row, if there are fewer rows than threads, has the classes that one thread finds."""
    shared = []
    share = sampling.draw_from_long_row
    monkeypatch.setattr(sampling, "draw_from_long_row", lambda *given: (shared.append(1), share(*given)))
    monkeypatch.setattr(arguments, "max_threads", lambda: 3)
    rng = np.random.default_rng(12)
    for shape in ((arguments.SHARED_ROW,), (1, 262_145), (2, 700_001), (1_300_001, 1)):
        axis = 0 if shape[0] > 9 else 1
        x = (3 * rng.standard_normal(shape)).astype(dtype)
        u = rng.random((*np.atleast_1d(options.get("size", ())).astype(int), *np.delete(shape, axis)))
        got = fs.categorical(x, axis, uniforms=u, **options)
        with monkeypatch.context() as patch:
            patch.setattr(arguments, "SHARED_ROW", 1 << 60)
            with fs.threads(1):
                np.testing.assert_array_equal(fs.categorical(x, axis, uniforms=u, **options), got)
    count = 4 if options == {"size": (30,)} else 5  # so many draws have a table in the shortest row
    assert len(shared) == count
    with monkeypatch.context() as patch:
        patch.setattr(arguments, "max_threads", lambda: 2)
        fs.categorical(np.zeros((2, 300_000), dtype))
        fs.categorical(np.zeros(300_000, dtype), size=2, replace=False)
        fs.categorical(np.zeros((300_000, 2), dtype), 0)
    assert len(shared) == count  # these have something for every thread to do


@every_dtype
def test_a_row_shared_by_threads_has_nothing_to_draw(dtype, monkeypatch):
    monkeypatch.setattr(arguments, "max_threads", lambda: 3)
    x = np.zeros((2, 300_000), dtype)
    for value, words in (
        (np.nan, "holds NaN"),
        (np.inf, r"holds \+inf"),
        (-np.inf, "has no class to draw: all are"),
    ):
        x[1] = value
        with pytest.raises(ValueError, match=rf"the row of logits at \[1\] {words}"):
            fs.categorical(x)
        if value != -np.inf:
            x[1], x[1, 77_777] = 0, value
            with pytest.raises(ValueError, match=rf"the row of logits at \[1\] {words}"):
                fs.categorical(x)
    x[1], x[1, 200_000], x[1, 250_000] = -np.inf, -1e4, -1e4
    u = [[0.0, 0.0], [LAST, LAST]]
    np.testing.assert_array_equal(fs.categorical(x, uniforms=u, size=2)[:, 1], [200_000, 250_000])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.bool_, ">f4"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layouts_and_dtypes(dtype, axis):
    """The class is that of the same values in a C-contiguous array with the classes last."""
    rng = np.random.default_rng(2)
    x = (3 * rng.standard_normal((9, 70, 33))).astype(dtype)
    wide = np.float32 if x.dtype.kind == "f" and x.dtype.itemsize < 8 else np.float64
    for options in ({}, {"size": 3}, {"top_k": 5, "top_p": 0.9, "min_p": 0.01}, {"size": 2, "replace": False}):
        for y in (x, np.asfortranarray(x), x[::-1, ::-1], x.transpose(1, 2, 0), np.broadcast_to(x[:1], x.shape)):
            shape = tuple(n for k, n in enumerate(y.shape) if k != axis)
            u = rng.random((options["size"], *shape) if "size" in options else shape)
            got = fs.categorical(y, axis, uniforms=u, **options)
            assert got.dtype == np.int64
            plain = np.ascontiguousarray(np.moveaxis(y, axis, -1)).astype(wide)
            np.testing.assert_array_equal(got, fs.categorical(plain, uniforms=u, **options))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_shape_axis_and_mask(data):
    """The class of each row is where u falls in its sums in long double; masked classes hold anything."""
    shape = tuple(data.draw(st.lists(st.integers(0, 6), min_size=0, max_size=2)))
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    place = axis % (len(shape) + 1)
    classes = data.draw(st.sampled_from([1, 2, 5, 16, 63, 64, 65, 130, 256, 257, 700]))
    whole = (*shape[:place], classes, *shape[place:])
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = (data.draw(st.sampled_from([0.0, 1.0, 5.0, 100.0])) * rng.standard_normal(whole)).astype(
        data.draw(st.sampled_from([np.float16, np.float32, np.float64]))
    )
    x[rng.random(whole) < 0.2] = -np.inf
    options = {}
    where = np.ones(whole, bool)
    if data.draw(st.booleans()):
        narrow = tuple(data.draw(st.sampled_from([1, n])) for n in whole)
        options["where"] = rng.random(narrow) < data.draw(st.sampled_from([0.1, 0.7, 1.0]))
        where = np.broadcast_to(options["where"], whole)
        x[~where & (rng.random(whole) < 0.5)] = data.draw(st.sampled_from([np.nan, np.inf]))
    if data.draw(st.booleans()):
        options["size"] = tuple(data.draw(st.lists(st.integers(0, 4), max_size=2)))
    size = options.get("size", ())
    u = data.draw(st.sampled_from([0.0, LAST])) if data.draw(st.booleans()) else rng.random()
    u = np.where(rng.random((*size, *shape)) < 0.5, u, rng.random((*size, *shape)))
    rows = np.moveaxis(np.where(where, x, -np.inf), place, -1).astype(LONG)
    empty = np.argwhere((rows == -np.inf).all(-1))
    if len(empty):
        if u.size:
            found = "" if not shape else rf" at \[{', '.join(map(str, empty[0]))}\]"
            with pytest.raises(ValueError, match=rf"the row of logits{found} has no class to draw: all are -inf"):
                fs.categorical(x, axis, uniforms=u, **options)
        return
    got = np.asarray(fs.categorical(x, axis, uniforms=u, **options))
    assert got.shape == (*size, *shape)
    for index in np.ndindex(got.shape):
        row = rows[index[len(size) :]]
        p = np.exp(row - row.max())
        ends = p.cumsum() / p.sum()
        k = got[index]
        assert np.isfinite(row[k])
        assert (ends[k - 1] if k else 0) - 2e-6 <= u[index] <= ends[k] + 2e-6
        if u[index] == 0:
            assert (row[:k] < row.max() - 80).all()  # what lies before has terms that round to 0


def test_inputs_are_not_written_to():
    x = np.random.default_rng(0).standard_normal((5, 300))
    x.flags.writeable = False
    copy = x.copy()
    for options in ({}, {"size": 4, "replace": False}, {"top_k": 3}, {"where": x > 0}):
        fs.categorical(x, **options)
    fs.filter_logits(x, top_p=0.5)
    np.testing.assert_array_equal(x, copy)


@every_dtype
def test_where(dtype):
    """Masked classes are never drawn, whatever they hold."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 90)).astype(dtype)
    mask = rng.random(x.shape) > 0.3
    u = rng.random(40)
    hidden = np.where(mask, x, -np.inf).astype(dtype)
    spoiled = np.where(mask, x, rng.choice([np.nan, np.inf, -np.inf], x.shape)).astype(dtype)
    for options in ({}, {"top_p": 0.5}):
        expected = fs.categorical(hidden, uniforms=u, **options)
        np.testing.assert_array_equal(fs.categorical(spoiled, uniforms=u, where=mask, **options), expected)
    assert (fs.categorical(x, where=mask[0]) < 90).all()
    with pytest.raises(
        ValueError, match=r"categorical: where of shape \(3,\) does not broadcast to logits of shape"
    ):
        fs.categorical(x, where=np.ones(3, bool))


# --- rng ------------------------------------------------------------------------------------------------------


def test_the_numbers_come_in_c_order():
    """One for each draw, from the generator that was passed, which goes on from there."""
    x = np.random.default_rng(0).standard_normal((4, 5, 70))
    for options, shape in (({}, (4, 5)), ({"size": 3}, (3, 4, 5)), ({"size": (2, 1), "top_k": 9}, (2, 1, 4, 5))):
        ours, theirs = np.random.default_rng(7), np.random.default_rng(7)
        got = fs.categorical(x, rng=ours, **options)
        np.testing.assert_array_equal(got, fs.categorical(x, uniforms=theirs.random(shape), **options))
        assert ours.random() == theirs.random()
        seeded = fs.categorical(x, rng=7, **options)
        np.testing.assert_array_equal(got, seeded)
    np.testing.assert_array_equal(
        fs.categorical(x, rng=np.random.PCG64(3)), fs.categorical(x, rng=np.random.default_rng(3))
    )


def test_without_a_generator_every_call_differs():
    x = np.zeros((50, 10))
    assert (fs.categorical(x) != fs.categorical(x)).any()


CHILD = """
import numpy as np
import fastsoftmax as fs
print(fs.categorical(np.zeros((20, 100))).tolist())
"""


def test_processes_differ():
    assert child.run(CHILD) != child.run(CHILD)


def _of_a_child(_):
    return fs.categorical(np.zeros((20, 100))).tolist()


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_children_of_a_fork_differ():
    fs.categorical(np.zeros((20, 100)))  # the generator of this process exists
    with multiprocessing.get_context("fork").Pool(2) as pool:
        a, b = pool.map(_of_a_child, range(2), chunksize=1)
    assert a != b
    assert os.getpid() > 0


def test_small_calls_take_the_same_way():
    """The short way gives the classes of the long one."""
    x = np.random.default_rng(0).standard_normal((3, 12))
    fs.categorical(x)
    assert x.dtype in sampling._SMALL
    for y in (x, x[0]):
        seeds = np.random.default_rng(1), np.random.default_rng(1)
        short, long = fs.categorical(y, rng=seeds[0]), fs.categorical(y, -1, rng=seeds[1], temperature=1)
        np.testing.assert_array_equal(short, long)
        assert type(short) is type(long)
    with pytest.raises(ValueError, match="holds NaN"):
        fs.categorical(np.array([[0.0, np.nan]]))


@every_dtype
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("filters", [{"top_p": 0.8}, {"top_k": 2, "min_p": 0.1}, {"top_p": 1.0}])
def test_small_calls_with_filters_take_the_same_way(dtype, temperature, filters, monkeypatch):
    """The short way gives the classes and the errors of the long one."""
    x = np.random.default_rng(0).standard_normal((300, 12)).astype(dtype)
    options = {"temperature": temperature, **filters}
    fs.categorical(x, size=1, **options)
    assert (x.dtype, temperature == 1) in sampling._SMALL_DRAWS
    wrong = x.copy()
    wrong[7, 3] = np.nan
    for y in (x, x[0]):
        seeds = np.random.default_rng(1), np.random.default_rng(1)
        long = fs.categorical(y, rng=seeds[0], size=1, **options)[0]
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "Draws", None)
            short = fs.categorical(y, rng=seeds[1], **options)
        np.testing.assert_array_equal(short, long)
        assert type(short) is type(long)
    with pytest.raises(ValueError, match=r"the row of logits at \[7\] holds NaN"):
        fs.categorical(wrong, **options)
    for option, error in (({"top_k": 0}, ValueError), ({"top_p": 1.5}, ValueError), ({"min_p": "a"}, TypeError)):
        with pytest.raises(error, match=next(iter(option))):
            fs.categorical(x, **{**options, **option})
    with pytest.raises(ValueError, match="temperature"):
        fs.categorical(x, temperature=0.0, top_k=2)


# --- several draws --------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("classes", [2, 5, 64, 65, 300, 700])
def test_draws_without_replacement(dtype, classes):
    """The second class has the probabilities of what the first has left, exactly; so have later ones."""
    x = stretched(dtype, classes, 2.0)
    order = np.argsort(-x)
    p = np.array([float(value) for value in oracle.softmax(x)])
    ends = p.cumsum()
    for first in {int(order[0]), int(order[len(order) // 2]), classes - 1}:
        u = ends[first] - p[first] / 2

        def second(v, u=u):
            rows = np.broadcast_to(x, (len(v), classes))
            return fs.categorical(rows, uniforms=np.stack([np.full(len(v), u), v]), size=2, replace=False)[1]

        left = np.delete(np.arange(classes), first)
        found = implied(second, classes)
        assert found[first] == 0
        check(found[left], oracle.softmax(x[left]))


@every_dtype
@pytest.mark.parametrize("classes", [1, 5, 64, 65, 300, 3000])
def test_all_classes_without_replacement(dtype, classes):
    """A permutation of the classes, also of such whose terms are lost beside the greatest one."""
    rng = np.random.default_rng(4)
    for scale in (1, 50, 1000):
        x = (scale * rng.standard_normal(classes)).astype(dtype)
        got = fs.categorical(x, rng=rng, size=classes, replace=False)
        np.testing.assert_array_equal(np.sort(got), np.arange(classes))
        if (
            scale == 1000 and classes > 1
        ):  # neighbours differ by so much that only the order of the logits is likely
            assert np.mean(np.diff(x[got]) <= 0) > 0.6


def test_distant_classes_come_in_their_order():
    """Every term but that of the greatest class left is 0 beside it."""
    x = np.array([-5000.0, 0.0, -1000.0, -np.inf, -20000.0])
    for dtype in cases.DTYPES:
        np.testing.assert_array_equal(fs.categorical(x.astype(dtype), size=4, replace=False), [1, 2, 0, 4])


@every_dtype
def test_many_draws_are_those_of_single_ones(dtype):
    rng = np.random.default_rng(6)
    for classes in (10, 64, 300, 5000):
        x, u = rng.standard_normal((3, classes)).astype(dtype), rng.random((40, 3))
        expected = np.array([fs.categorical(x, uniforms=row) for row in u])
        np.testing.assert_array_equal(fs.categorical(x, uniforms=u, size=40), expected)
        shaped = fs.categorical(x, uniforms=u.reshape(5, 8, 3), size=(5, 8))
        np.testing.assert_array_equal(shaped, expected.reshape(5, 8, 3))


@every_dtype
@pytest.mark.parametrize("options", [{}, {"top_k": 70}, {"top_p": 0.9}], ids=str)
def test_draws_in_pieces(dtype, options, monkeypatch):
    """The draws of one row on several threads; a table of its sums; rows that are too long for a table."""
    rng = np.random.default_rng(11)
    for classes in (10, 100, 300, 5000):
        x, u = rng.standard_normal((2, classes)).astype(dtype), rng.random((3000, 2))
        expected = fs.categorical(x, uniforms=u, size=3000, **options)
        with monkeypatch.context() as patch:
            patch.setattr(arguments, "LEAST_PIECE", 100)
            patch.setattr(threads, "SHARED_WORK", 1 << 10)
            patch.setattr(threads, "WAKING_WORK", 1 << 10)
            np.testing.assert_array_equal(fs.categorical(x, uniforms=u, size=3000, **options), expected)
            patch.setattr(arguments, "LONGEST_TABLE", 0)
            np.testing.assert_array_equal(fs.categorical(x, uniforms=u, size=3000, **options), expected)


def test_shapes():
    x = np.zeros((4, 3))
    assert type(fs.categorical(x[0])) is np.int64
    assert fs.categorical(x[0], size=()).shape == ()
    assert fs.categorical(x, size=1).shape == (1, 4)
    assert fs.categorical(x, 0, size=(2, 5)).shape == (2, 5, 3)
    assert fs.categorical(x, size=0).shape == (0, 4)
    assert fs.categorical(np.zeros((0, 3)), size=2).shape == (2, 0)
    assert fs.categorical(np.zeros((0, 3)), size=9, replace=False).shape == (9, 0)
    assert fs.categorical([0, 1, 2], size=np.int16(2)).shape == (2,)


# --- filters --------------------------------------------------------------------------------------------------


def literal(row, top_k=None, top_p=None, min_p=None, temperature=1.0):
    """Which classes the filters keep, by sorting, and how far the mass is from top_p."""
    row = row.astype(LONG)
    kept = np.arange(len(row))
    kept = kept[np.argsort(-row, kind="stable")]
    kept = kept[:top_k]
    margin = 1.0
    if top_p is not None and top_p < 1:
        p = np.exp((row[kept] - row[kept[0]]) / LONG(temperature))
        mass = p.cumsum() / p.sum()
        count = int((mass < top_p).sum()) + 1
        margin = float(np.abs(mass - top_p).min())
        kept = kept[:count]
    if min_p is not None:
        ratio = np.exp((row[kept] - row[kept[0]]) / LONG(temperature))
        kept = kept[ratio >= min_p]
    return np.isin(np.arange(len(row)), kept), margin


FILTERS = [
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 40},
    {"top_k": 10**9},
    {"top_p": 1e-9},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"top_p": 1.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 50, "top_p": 0.9},
    {"top_k": 50, "min_p": 0.3},
    {"top_p": 0.7, "min_p": 0.01},
    {"top_k": 200, "top_p": 0.95, "min_p": 0.02},
    {"top_k": 200, "top_p": 0.95, "min_p": 0.02, "temperature": 0.4},
    {"top_p": 0.8, "temperature": 3.0},
]


@every_dtype
@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 30, 64, 65, 256, 257, 1000, 20000])
def test_filters(dtype, options, classes):
    """Against a literal sort. Where the mass is within 1e-6 of top_p, roundings of the terms decide (float32)."""
    rng = np.random.default_rng(classes)
    for scale in (1.0, 4.0):
        x = (scale * rng.standard_normal((3, classes))).astype(dtype)
        got = fs.filter_logits(x, **options)
        for row, result in zip(x, got, strict=True):
            kept, margin = literal(row, **options)
            if margin > (1e-6 if dtype == np.float32 else 1e-14):
                np.testing.assert_array_equal(result, np.where(kept, row, -np.inf))
        assert (np.isfinite(got).sum(axis=-1) >= 1).all()


@every_dtype
@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_ties(dtype, options):
    """Of equal logits, those with the lowest index are kept."""
    rng = np.random.default_rng(8)
    for classes in (7, 90, 3000):
        x = np.round(rng.standard_normal((4, classes)) * 1.5).astype(dtype)
        got = fs.filter_logits(x, **options)
        for row, result in zip(x, got, strict=True):
            kept, margin = literal(row, **options)
            if margin > (1e-6 if dtype == np.float32 else 1e-14):
                np.testing.assert_array_equal(result, np.where(kept, row, -np.inf))


@every_dtype
def test_equal_logits(dtype):
    for classes in (1, 10, 300, 40_000):
        x = np.full(classes, 2.5, dtype)
        count = (np.isfinite(fs.filter_logits(x, top_p=np.pi / 10))).sum()
        assert count == np.ceil(np.pi / 10 * classes)
        for top_k in (1, classes // 2 + 1):
            kept = np.isfinite(fs.filter_logits(x, top_k=top_k))
            np.testing.assert_array_equal(kept, np.arange(classes) < top_k)
        assert np.isfinite(fs.filter_logits(x, min_p=1.0)).all()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_filters(data):
    classes = data.draw(st.integers(1, 700))
    values = st.one_of(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), st.floats(-30, 30, width=32))
    x = np.array(data.draw(st.lists(values, min_size=classes, max_size=classes)), np.float64)
    x[data.draw(st.integers(0, classes - 1))] = 3.0
    options = {
        "top_k": data.draw(st.one_of(st.none(), st.integers(1, 800))),
        "top_p": data.draw(st.one_of(st.none(), st.floats(1e-3, 1))),
        "min_p": data.draw(st.one_of(st.none(), st.floats(1e-3, 0.999))),
        "temperature": data.draw(st.sampled_from([0.5, 1.0, 2.0])),
    }
    kept, margin = literal(x, **options)
    ratios = np.exp((x - 3.0) / options["temperature"])
    apart = options["min_p"] is None or np.abs(ratios / options["min_p"] - 1).min() > 1e-12
    got = fs.filter_logits(x, **options)
    if margin > 1e-14 and apart:
        np.testing.assert_array_equal(got, np.where(kept, x, -np.inf))
    u = data.draw(st.floats(0, LAST))
    assert np.isfinite(got[fs.categorical(x, uniforms=u, **options)])


@every_dtype
def test_draws_from_filtered_logits(dtype):
    """The filters inside `categorical` are those of `filter_logits`."""
    rng = np.random.default_rng(9)
    for classes in (20, 300, 5000):
        x, u = (2 * rng.standard_normal((30, classes))).astype(dtype), rng.random((3, 30))
        for options in FILTERS:
            got = fs.categorical(x, uniforms=u, size=3, **options)
            filtered = fs.filter_logits(x, **options)
            temperature = options.get("temperature", 1.0)
            expected = fs.categorical(filtered, uniforms=u, size=3, temperature=temperature)
            np.testing.assert_array_equal(got, expected)


LONG_FILTERS = [
    {"top_k": 50},
    {"top_k": 1000, "top_p": 0.5},
    {"top_k": LISTED + 999},
    {"top_k": LISTED + 999, "top_p": 0.99999},
    {"top_k": LISTED + 999, "top_p": 0.5, "min_p": 1e-4},
    {"top_k": 10**6},
    {"top_p": 0.3},
    {"top_p": 1 - 1e-9},
    {"min_p": 1e-9},
    {"min_p": 0.01, "temperature": 0.5},
]
"""Of a row of more classes than are listed: few are kept, or more than are listed."""


def long_row(dtype, classes, ties):
    x = 1.5 * np.random.default_rng(classes).standard_normal(classes)
    x[::7] = -np.inf
    return (np.round(x * 4) / 4 if ties else x).astype(dtype)


@every_dtype
@pytest.mark.parametrize("options", LONG_FILTERS, ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_filters_of_long_rows(dtype, options, ties):
    """Against a literal sort, also into the row itself; the draws are those from the filtered logits.

    The margin is smaller than the roundings only where many classes of tiny probability are kept.
    """
    for classes in (LISTED + 1, 300_001):
        x = long_row(dtype, classes, ties)
        got = fs.filter_logits(x, **options)
        kept, margin = literal(x, **options)
        if margin > (
            1e-6 if dtype == np.float32 else 1e-14
        ):  # else roundings decide about some of the last classes
            np.testing.assert_array_equal(got, np.where(kept, x, -np.inf))
        assert margin > 1e-8 or np.isfinite(got).sum() > LISTED // 2
        assert abs(np.isfinite(got).sum() - np.isfinite(x[kept]).sum()) < 0.01 * classes
        u = np.r_[0, LAST, np.random.default_rng(0).random(30)]
        for size in (2, 32):  # without and with a table
            drawn = fs.categorical(x, uniforms=u[:size], size=size, **options)
            scaled = {"temperature": options.get("temperature", 1.0)}
            expected = fs.categorical(got, uniforms=u[:size], size=size, **scaled)
            assert np.isfinite(got[drawn]).all()
            # A list and a row with -inf are added in another order.
            assert np.count_nonzero(drawn != expected) <= (0 if np.isfinite(got).sum() > LISTED else 2)
        given = {"uniforms": u[:3], "size": 3, "replace": False}
        different = fs.categorical(x, **given, **options)
        assert len(set(different)) == 3
        assert np.isfinite(got[different]).all()
        ragged = fs.segment_categorical(np.r_[x, x[:5]], [0, classes, classes + 5], rng=3, size=2, **options)
        numbers = np.random.default_rng(3).random((2, 2))[:, 0]
        np.testing.assert_array_equal(ragged[:, 0], fs.categorical(x, uniforms=numbers, size=2, **options))
        fs.filter_logits(x, out=x, **options)
        np.testing.assert_array_equal(x, got)


@every_dtype
def test_a_long_row_of_few_values(dtype):
    """Every sample of its logits is full of ties; sorted rows, and rows with a single class above -inf."""
    x = np.zeros(400_000, dtype)
    kept = np.isfinite(fs.filter_logits(x, top_p=0.6))
    np.testing.assert_array_equal(kept, np.arange(x.size) < 240_000)
    np.testing.assert_array_equal(np.isfinite(fs.filter_logits(x, top_k=300_000)), np.arange(x.size) < 300_000)
    assert fs.categorical(x, uniforms=LAST, top_p=0.6) == 239_999
    x[:] = -np.inf
    x[333_333] = 2
    for options in LONG_FILTERS:
        assert np.flatnonzero(np.isfinite(fs.filter_logits(x, **options))) == [333_333]
    x = np.linspace(0, 10, 400_000).astype(dtype)
    for row in (x, x[::-1]):
        np.testing.assert_array_equal(np.isfinite(fs.filter_logits(row, top_k=200_000)), row > np.sort(x)[199_999])


@every_dtype
def test_rows_without_a_softmax(dtype):
    x = np.zeros((5, 300), dtype)
    x[0, 7], x[1, 299], x[2], x[3, 3], x[3, 4] = np.nan, np.inf, -np.inf, np.nan, -np.inf
    x[4, 10:] = -np.inf
    for options in ({"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}, {}):
        got = fs.filter_logits(x, **options)
        assert np.isnan(got[[0, 1, 3]]).all()
        assert (got[2] == -np.inf).all()
        assert 1 <= np.isfinite(got[4]).sum() <= 10
    assert fs.filter_logits(np.zeros((0, 3)), top_k=1).shape == (0, 3)
    assert fs.filter_logits(np.zeros((2, 0)), top_k=1).shape == (2, 0)


def test_filter_logits_into_an_array():
    x = np.random.default_rng(0).standard_normal((6, 7, 90)).astype(np.float32)
    for axis in (0, 1, 2):
        expected = fs.filter_logits(x, axis, top_k=4)
        assert (np.isfinite(expected).sum(axis) == 4).all()
        out = np.empty_like(x)
        assert fs.filter_logits(x, axis, top_k=4, out=out) is out
        np.testing.assert_array_equal(out, expected)
        y = x.copy()
        fs.filter_logits(y, axis, top_k=4, out=y)
        np.testing.assert_array_equal(y, expected)
        strided = np.empty((6, 7, 180), np.float32)[..., ::2]
        fs.filter_logits(x, axis, top_k=4, out=strided)
        np.testing.assert_array_equal(strided, expected)
    half = fs.filter_logits(x.astype(np.float16), top_k=4)
    assert half.dtype == np.float16
    assert fs.filter_logits([1, 5, 3], top_k=2).tolist() == [-np.inf, 5.0, 3.0]
    with pytest.raises(TypeError, match=r"filter_logits: out has dtype float64, expected float32"):
        fs.filter_logits(x, out=np.empty(x.shape))


# --- ragged rows ----------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize(
    "options", [{}, {"size": 3}, {"top_k": 5}, {"top_p": 0.7, "size": 2}, {"temperature": 0.5}], ids=str
)
def test_segments_are_rows(dtype, options):
    rng = np.random.default_rng(10)
    lengths = np.r_[rng.integers(1, 80, 300), 1000, 5000, 1, 270_000]
    indptr = np.r_[0, lengths.cumsum()]
    x = (2 * rng.standard_normal(indptr[-1])).astype(dtype)
    u = rng.random((options["size"], len(lengths)) if "size" in options else len(lengths))
    got = fs.segment_categorical(x, indptr, uniforms=u, **options)
    for n, (begin, end) in enumerate(pairwise(indptr)):
        expected = fs.categorical(x[begin:end], uniforms=u[..., n], **options)
        np.testing.assert_array_equal(got[..., n], expected)
    with fs.threads(1):
        np.testing.assert_array_equal(fs.segment_categorical(x, indptr, uniforms=u, **options), got)


def test_segments_without_replacement():
    x, indptr = np.zeros(9), [0, 3, 9]
    got = fs.segment_categorical(x, indptr, rng=0, size=3, replace=False)
    assert sorted(got[:, 0]) == [0, 1, 2]
    assert len(set(got[:, 1])) == 3
    with pytest.raises(
        ValueError, match=r"size is 4 with replace=False, but the row of logits at \[0\] has fewer"
    ):
        fs.segment_categorical(x, indptr, size=4, replace=False)


def test_segments_with_nothing_to_draw():
    with pytest.raises(
        ValueError, match=r"segment_categorical: the row of logits at \[1\] has no class to draw: it"
    ):
        fs.segment_categorical([1.0, 2.0], [0, 1, 1, 2])
    with pytest.raises(ValueError, match=r"the row of logits at \[2\] holds \+inf"):
        fs.segment_categorical([1.0, 2.0, np.inf], [0, 1, 2, 3])
    assert fs.segment_categorical([], [0]).shape == (0,)


# --- errors ---------------------------------------------------------------------------------------------------

Z = np.zeros((2, 3))
ERRORS = [
    (ValueError, r"the row of logits at \[1\] holds NaN", [[0, 1.0], [0, np.nan]], {}),
    (ValueError, r"the row of logits at \[0\] holds NaN", [[0, np.nan], [0, np.inf]], {"top_k": 1}),
    (ValueError, r"the row of logits holds \+inf", [0, np.inf], {"size": 2}),
    (ValueError, r"the row of logits at \[0, 1\] has no class to draw: all are -inf", [[[0.0], [-np.inf]]], {}),
    (ValueError, r"the row of logits at \[0\] has no class to draw: it is empty", np.zeros((2, 0)), {}),
    (ValueError, r"logits is 0-d", 1.0, {}),
    (np.exceptions.AxisError, r"axis 2 is out of bounds", Z, {"axis": 2}),
    (TypeError, r"logits has dtype complex128", Z + 1j, {}),
    (TypeError, r"logits is a masked array", np.ma.zeros(3), {}),
    (TypeError, r"rng must be a numpy.random.Generator, a seed or None, got 'a'", Z, {"rng": "a"}),
    (TypeError, r"rng must be .*, got 1.5", Z, {"rng": 1.5}),
    (ValueError, r"rng must be .*, got -1", Z, {"rng": -1}),
    (ValueError, r"uniforms has shape \(3,\), expected \(2,\)", Z, {"uniforms": [0.1] * 3}),
    (ValueError, r"uniforms has shape \(2,\), expected \(4, 2\)", Z, {"uniforms": [0.1] * 2, "size": 4}),
    (ValueError, r"uniforms\[1\] is 1.0, expected 0 <= u < 1", Z, {"uniforms": [0.5, 1.0]}),
    (ValueError, r"uniforms\[0\] is -0.5, expected 0 <= u < 1", Z, {"uniforms": [-0.5, 1.0]}),
    (ValueError, r"uniforms\[0\] is nan", Z, {"uniforms": [np.nan, 0.5]}),
    (ValueError, r"rng and uniforms exclude each other", Z, {"uniforms": [0.5, 0.5], "rng": 0}),
    (ValueError, r"size must not be negative, got -1", Z, {"size": -1}),
    (TypeError, r"size must be an integer or a tuple of them, got 1.5", Z, {"size": 1.5}),
    (TypeError, r"replace must be a bool, got 2", Z, {"replace": 2}),
    (ValueError, r"size is 4 with replace=False, but there are 3 classes", Z, {"size": 4, "replace": False}),
    (
        ValueError,
        r"size is 2 with replace=False, but the row of logits at \[0\] has fewer classes .* above 0$",
        [[0, -np.inf]],
        {"size": 2, "replace": False},
    ),
    (
        ValueError,
        r"size is 3 .* has fewer classes .* after the filters",
        Z,
        {"size": 3, "replace": False, "top_k": 2},
    ),
    (ValueError, r"temperature must be finite and > 0, got 0", Z, {"temperature": 0}),
    (ValueError, r"top_k must be at least 1, got 0", Z, {"top_k": 0}),
    (TypeError, r"top_k must be an integer or None, got 1.5", Z, {"top_k": 1.5}),
    (TypeError, r"top_k must be an integer or None, got True", Z, {"top_k": True}),
    (ValueError, r"top_p must be finite and > 0, got 0", Z, {"top_p": 0}),
    (ValueError, r"top_p must be at most 1, got 1.5", Z, {"top_p": 1.5}),
    (ValueError, r"min_p must be finite and > 0, got -0.1", Z, {"min_p": -0.1}),
    (TypeError, r"min_p must be a number, got 'a'", Z, {"min_p": "a"}),
    (TypeError, r"where has dtype float64, expected bool", Z, {"where": Z}),
]


@pytest.mark.parametrize(("kind", "message", "x", "options"), ERRORS, ids=[case[1] for case in ERRORS])
def test_errors(kind, message, x, options):
    with pytest.raises(
        kind, match=r"^categorical: " + message if kind is not np.exceptions.AxisError else message
    ):
        fs.categorical(x, **options)
    filters = {"top_k", "top_p", "min_p", "temperature"}
    if options and set(options) <= filters and "row of" not in message:
        with pytest.raises(kind, match=r"^filter_logits: " + message):
            fs.filter_logits(x, **options)


def test_huge_options():
    x = np.arange(5.0)
    assert fs.categorical(x, top_k=10**30, uniforms=LAST) == 4
    assert fs.categorical(x, temperature=1e-300) == 4
    assert fs.categorical(x, min_p=1e-300, temperature=1e300, uniforms=0.0) == 0


def test_the_memory_of_a_thread():
    """Within 4 MB with filters, without them none. Draws without replacement change a copy of the row."""
    for dtype in map(np.dtype, cases.DTYPES):
        for classes in (1, 151_936, LISTED, LISTED + 1, 1 << 18, 10**7):
            for tabled in (False, classes <= 1 << 18):
                assert arguments.room_for(dtype, classes, filtered=True, tabled=tabled)().nbytes < 4 << 20
            whole = arguments.room_for(dtype, classes, filtered=True, replace=False)().nbytes
            assert whole < (4 << 20) + classes * dtype.itemsize
    assert arguments.room_for(np.dtype(np.float64), 10**7, filtered=False)().size == 0


# --- Dask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize(
    "options", [{}, {"size": 2}, {"size": (2, 3), "top_k": 4}, {"top_p": 0.5, "temperature": 2.0}], ids=str
)
def test_dask(axis, options):
    """The classes of the same array in memory, whatever the chunks."""
    da = pytest.importorskip("dask.array")
    x = np.random.default_rng(0).standard_normal((7, 30, 11))
    lazy = da.from_array(x, chunks=(3, 8, 4))
    drawn = fs.categorical(lazy, axis, rng=3, **options)
    expected = fs.categorical(x, axis, rng=3, **options)
    assert (drawn.shape, drawn.dtype) == (expected.shape, np.int64)
    np.testing.assert_array_equal(drawn.compute(scheduler="synchronous"), expected)
    masked = fs.categorical(lazy, axis, rng=3, where=x > -1, **options).compute(scheduler="synchronous")
    np.testing.assert_array_equal(masked, fs.categorical(x, axis, rng=3, where=x > -1, **options))
    u = np.random.default_rng(1).random(expected.shape)
    given = fs.categorical(x, axis, uniforms=da.from_array(u, chunks=2), **options)
    np.testing.assert_array_equal(
        given.compute(scheduler="synchronous"), fs.categorical(x, axis, uniforms=u, **options)
    )
    filters = {name: value for name, value in options.items() if name != "size"}
    kept = fs.filter_logits(lazy, axis, **filters).compute(scheduler="synchronous")
    np.testing.assert_array_equal(kept, fs.filter_logits(x, axis, **filters))


def test_dask_errors():
    da = pytest.importorskip("dask.array")
    lazy = da.zeros((4, 3), chunks=2)
    with pytest.raises(ValueError, match="categorical: top_k must be at least 1"):
        fs.categorical(lazy, top_k=0)
    with pytest.raises(ValueError, match=r"categorical: uniforms has shape \(3,\), expected \(4,\)"):
        fs.categorical(lazy, uniforms=da.zeros(3))
    with pytest.raises(ValueError, match=r"uniforms\[0\] is 1.0"):
        fs.categorical(lazy, uniforms=da.ones(4, chunks=2)).compute(scheduler="synchronous")
    with pytest.raises(TypeError, match="filter_logits: out cannot be used with Dask arrays"):
        fs.filter_logits(lazy, top_k=1, out=np.empty((4, 3)))


def test_errors_take_numbers_once_or_not_at_all():
    """A call that cannot succeed leaves the generator alone; a row without a class takes its numbers once."""
    generator, twin = np.random.default_rng(3), np.random.default_rng(3)
    with pytest.raises(ValueError, match="size is 4 with replace=False"):
        fs.categorical(np.zeros((2, 3)), rng=generator, size=4, replace=False)
    with pytest.raises(TypeError, match="size must be an integer"):
        fs.categorical(np.zeros((2, 3)), rng=generator, size=True)
    assert generator.bit_generator.state == twin.bit_generator.state
    for _ in range(2):  # the first call remembers the kernel for small arrays
        fs.categorical(np.zeros((2, 3)), rng=generator)
        twin.random(2)
        with pytest.raises(ValueError, match="holds NaN"):
            fs.categorical(np.array([[0, 1.0], [0, np.nan]]), rng=generator)
        twin.random(2)
        assert generator.bit_generator.state == twin.bit_generator.state


# --- speed ----------------------------------------------------------------------------------------------------


def best(call, count):
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.timed
@pytest.mark.parametrize(
    ("shape", "options", "bound"),
    [
        ((10_000, 1000), {}, 1.5),
        ((64, 151_936), {}, 1.5),
        ((1_000_000, 10), {}, 2.5),
        ((64, 151_936), {"top_k": 50, "top_p": 0.9}, 3.0),
        ((64, 151_936), {"top_p": 0.9}, 12.0),
    ],
    ids=str,
)
def test_a_draw_costs_little_more_than_a_logsumexp(shape, options, bound):
    """At most so many times its time; half as much again for other programs on the machine."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    with fs.threads(1):
        ours = best(lambda: fs.categorical(x, rng=rng, **options), 5)
        assert ours < 1.5 * bound * best(lambda: fs.logsumexp(x), 5)


@pytest.mark.timed
def test_a_small_draw():
    """Under 3 us; half as much again for other programs on the machine."""
    x, rng = np.zeros((1, 10), np.float32), np.random.default_rng(0)
    assert best(lambda: [fs.categorical(x, rng=rng) for _ in range(1000)], 9) < 1.5 * 3e-6 * 1000
