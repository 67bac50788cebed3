"""Any array: every layout gives what the same values in a new C-contiguous array give.

If the classes are the last axis, the results are the same to the bit. Along another axis a kernel adds the terms
of a row in another order, so that the results differ by rounding; `OTHER_WALK` bounds the difference.
"""

import itertools

import functions
import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import _spec

every = pytest.mark.parametrize("function", functions.ALL, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
SHAPES = [(5,), (3, 7), (20, 3), (2, 60), (4, 5, 6), (17, 2, 57), (2, 3, 4, 5)]


def sample(shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(0, 2, shape).astype(dtype)


def along_every_axis(shapes):
    return [(shape, axis) for shape in shapes for axis in range(len(shape))]


class Sub(np.ndarray):
    """A subclass: the result is a plain array."""


class Sequence:
    """A sequence from which NumPy can make an array."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


def spread(x, step):
    """x in every `step`-th element of each axis of a larger array, with other numbers between."""
    big = np.full([n * abs(step) for n in x.shape], 99, x.dtype)
    view = big[tuple(slice(None, None, step) for _ in x.shape)]
    view[...] = x
    return view


def misaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)
    view = raw[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    assert x.itemsize == 1 or not view.flags.aligned
    return view


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "fortran": np.asfortranarray,
    "strided": lambda x: spread(x, 2),
    "reversed": lambda x: spread(x, -1),
    "strided backwards": lambda x: spread(x, -3),
    "misaligned": misaligned,
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder("S")),
    "misaligned, other byte order": lambda x: misaligned(x.astype(x.dtype.newbyteorder("S"))),
    "read-only": read_only,
    "subclass": lambda x: x.view(Sub),
    "list": lambda x: x.tolist(),
    "object with __array__": Sequence,
    "matrix order": lambda x: x.transpose(np.arange(x.ndim)[::-1]).copy().transpose(np.arange(x.ndim)[::-1]),
    "swapped pair": lambda x: np.ascontiguousarray(x.swapaxes(0, -1)).swapaxes(0, -1),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
# Two walks, each within 4.5 eps of its terms (test_derivatives), which are below 4 here.
OTHER_WALK = 40


def same(actual, expected, dtype, ulps=None):
    """Equal to the bit, or within some ulps of the dtype relative to the largest term of each entry."""
    assert type(actual) is type(expected)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if ulps is None:
        np.testing.assert_array_equal(actual, expected)
    else:
        eps = float(np.finfo(dtype).eps)
        np.testing.assert_allclose(actual, expected, rtol=ulps * eps, atol=ulps * eps)


@every
@every_dtype
@every_layout
def test_layouts_of_the_first_argument(function, dtype, layout):
    if layout == "list" and dtype == np.float32:
        dtype = np.float64  # the dtype of an array from a list of Python floats
    for shape, axis in along_every_axis(SHAPES):
        x = sample(shape, dtype)
        moved = np.ascontiguousarray(np.moveaxis(x, axis, -1))
        laid_out = LAYOUTS[layout](x)
        actual = function(laid_out, axis)
        expected = function(x, axis)
        same(actual, expected, dtype, ulps=OTHER_WALK)
        if axis == len(shape) - 1 and layout not in ("fortran", "matrix order", "swapped pair"):
            same(actual, function(moved, -1), dtype)
        assert isinstance(actual, (np.ndarray, np.floating))
        assert type(actual) is not Sub


@pytest.mark.parametrize("function", [f for f in functions.ALL if f.second], ids=str)
@every_layout
def test_layouts_of_the_second_argument(function, layout):
    shapes = [(20, 3), (2, 60), (4, 5, 6)]
    for shape, axis in along_every_axis(shapes):
        x = sample(shape)
        (second,) = function.other(x, axis)
        expected = function(x, axis)
        actual = function.function(x, LAYOUTS[layout](second), axis=axis, **dict(function.options))
        same(actual, expected, np.float64)


@every
@every_dtype
def test_every_axis_is_the_last_axis_moved(function, dtype):
    """Axes are counted from either end. The walk in columns may round differently, hence the tolerance."""
    for shape, axis in along_every_axis(SHAPES):
        x = sample(shape, dtype)
        actual = function(x, axis)
        np.testing.assert_array_equal(actual, function(x, axis - len(shape)))
        assert actual.shape == function.shape(shape, axis)
        moved = np.ascontiguousarray(np.moveaxis(x, axis, -1))
        others = function.other(x, axis)
        if function.second and others[0].ndim == x.ndim:
            others = (np.moveaxis(others[0], axis, -1),)
        expected = function.function(moved, *others, **dict(function.options))
        if function.result == "x":
            expected = np.moveaxis(expected, -1, axis)
        same(actual, expected, dtype, ulps=OTHER_WALK)


@pytest.mark.parametrize("function", functions.ACTIVATIONS, ids=str)
@every_dtype
def test_several_axes(function, dtype):
    """A tuple of axes in any order, all of them, none of them: softmax of the flattened axes."""
    x = sample((3, 4, 5), dtype)
    choices = [axes for n in range(4) for axes in itertools.permutations(range(3), n)]
    for axes in [*choices, None, (-1, 0), [0, 2]]:
        chosen = (0, 1, 2) if axes is None else tuple(a % 3 for a in axes)
        kept = [a for a in range(3) if a not in chosen]
        flat = x.transpose(*kept, *sorted(chosen)).reshape(*[x.shape[a] for a in kept], -1)
        expected = function(flat, -1)
        actual = function(x, axes)
        if function.result == "x":
            expected = expected.reshape(x.transpose(*kept, *sorted(chosen)).shape)
            expected = expected.transpose(np.argsort([*kept, *sorted(chosen)]))
        np.testing.assert_allclose(actual, expected, rtol=8 * np.finfo(dtype).eps)
        assert np.shape(actual) == np.shape(expected)


@every_dtype
def test_keepdims(dtype):
    x = sample((3, 4, 5), dtype)
    for axis in (0, 1, -1, (0, 2), (1,), None, ()):
        kept = fs.logsumexp(x, axis, keepdims=True)
        dropped = fs.logsumexp(x, axis)
        assert kept.ndim == 3
        np.testing.assert_array_equal(kept.reshape(np.shape(dropped)), dropped)
        assert all(n == 1 for n, m in zip(kept.shape, x.shape, strict=True) if n != m)
        out = np.full(kept.shape, 7, dtype)
        assert fs.logsumexp(x, axis, keepdims=True, out=out) is out
        np.testing.assert_array_equal(out, kept)
    np.testing.assert_allclose(np.exp(x - fs.logsumexp(x, 1, keepdims=True)), fs.softmax(x, 1), rtol=1e-5)


@every
def test_broadcast_arrays(function):
    """Strides of 0: many rows or many classes share one place in memory."""
    for x in (
        np.broadcast_to(sample((4,)), (6, 4)),
        np.broadcast_to(sample((6, 1)), (6, 4)),
        np.broadcast_to(1.5, (6, 4)),
    ):
        for axis in (0, 1):
            same(function(x, axis), function(x.copy(), axis), np.float64)


def test_memmaps(tmp_path):
    x = sample((20, 7))
    path = tmp_path / "x"
    x.tofile(path)
    for mode in ("r", "r+", "c"):
        mapped = np.memmap(path, np.float64, mode, shape=x.shape)
        for function in functions.ALL:
            actual = function(mapped)
            assert type(actual) is np.ndarray
            np.testing.assert_array_equal(actual, function(x))
    target = np.memmap(tmp_path / "y", np.float64, "w+", shape=x.shape)
    assert fs.softmax(x, out=target) is target
    np.testing.assert_array_equal(target, fs.softmax(x))


@every
@pytest.mark.parametrize(
    "kind", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i2", ">u8", "f2", ">f2", ">f4"]
)
def test_dtypes(function, kind):
    """Integers, bools, halves and the other byte order in every layout; results are in native order."""
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(kind)
    native = x.dtype.newbyteorder("=")
    wide = {"e": np.float32, "f": np.float32}.get(native.char, np.float64)
    result = native if native.char in "ef" else np.dtype(np.float64)
    for form in (x, np.asfortranarray(x), spread(x.astype("f8"), 2).astype(kind), misaligned(x)):
        for axis in (0, 1):
            actual = function(form, axis)
            assert actual.dtype == result
            assert actual.dtype.isnative
            second = function.other(x, axis)
            expected = function.function(x.astype(wide), *second, axis=axis, **dict(function.options))
            np.testing.assert_array_equal(actual, expected.astype(result))


@every
def test_values_that_only_fit_wide_integers(function):
    """int64 and uint64 beyond 2**53 are rounded to float64 once, as NumPy rounds them."""
    for x in (np.array([[2**63 + 2049, 2**63, 0]], np.uint64), np.array([[-(2**62) - 1, 2**62 + 1, 5]])):
        np.testing.assert_array_equal(function(x), function(x.astype(np.float64)))


@every
def test_zero_dimensional_results_are_scalars(function):
    x = sample((5,))
    result = function(x)
    assert isinstance(result, np.float64 if function.result == "rows" else np.ndarray)
    assert result.shape == function.shape((5,))


# --- out -----------------------------------------------------------------------------------------------------

with_out = pytest.mark.parametrize("function", functions.WITH_OUT, ids=str)
# matrices that fit no vector, tiles and their rest, long rows
OUT_SHAPES = [(5,), (20, 3), (3, 60), (4, 5, 6)]


def layouts_of_out(shape, dtype):
    """Writable arrays of one shape and all layouts, each with a function that checks the memory around it."""
    yield np.full(shape, 7, dtype)
    if shape == ():
        return
    yield np.full(shape, 7, dtype, order="F")
    yield np.full([2 * n for n in shape], 7, dtype)[tuple(slice(None, None, 2) for _ in shape)]
    yield np.full([3 * n for n in shape], 7, dtype)[tuple(slice(None, None, -3) for _ in shape)]
    yield np.full(shape, 7, dtype).view(Sub)
    view = np.zeros(int(np.prod(shape)) * np.dtype(dtype).itemsize + 1, np.uint8)[1:].view(dtype).reshape(shape)
    yield view


@with_out
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_layouts_of_out(function, dtype):
    """The result has the same bits in any `out`, and is that array."""
    for shape, axis in along_every_axis(OUT_SHAPES):
        x = sample(shape, dtype)
        expected = function(x, axis)
        for out in layouts_of_out(np.shape(expected), dtype):
            assert function(x, axis, out=out) is out
            np.testing.assert_array_equal(np.asarray(out), expected)


@with_out
def test_nothing_around_out_is_written(function):
    """Masked and scattered stores write nothing outside of the array."""
    for shape in ((3,), (20, 3), (5, 17), (3, 60), (2, 3, 19), (2, 3, 9)):
        x = sample(shape)
        for axis in range(len(shape)):
            expected = function(x, axis)
            if np.ndim(expected) == 0:
                continue
            room = np.full(np.size(expected) + 128, 7.0)
            out = room[64:-64].reshape(np.shape(expected))
            function(x, axis, out=out)
            np.testing.assert_array_equal(out, expected)
            assert np.all(room[:64] == 7)
            assert np.all(room[-64:] == 7)


@pytest.mark.parametrize("function", functions.SAME_SHAPE, ids=str)
@every_dtype
@pytest.mark.parametrize(
    "shape", [(5,), (20, 3), (40, 17), (3, 60), (2, 1000), (4, 5, 6), (3, 4, 33), (2, 60, 17)], ids=str
)
def test_in_place(function, dtype, shape):
    """out may be x or the second argument."""
    x = sample(shape, dtype)
    for axis in range(len(shape)):
        second = function.other(x, axis)
        expected = function(x, axis)
        here = x.copy()
        assert function.function(here, *second, axis=axis, out=here, **dict(function.options)) is here
        np.testing.assert_array_equal(here, expected)
        if function.second and second[0].shape == x.shape:
            there = second[0].astype(dtype)
            assert function.function(x, there, axis=axis, out=there, **dict(function.options)) is there
            np.testing.assert_array_equal(there, expected)


@pytest.mark.parametrize("function", functions.SAME_SHAPE, ids=str)
def test_overlapping_out(function):
    """`out` overlaps an input in every possible way, but is not the input itself."""
    shifts = (1, 3, 16, 100)
    for shape, shift in itertools.product([(40, 5), (10, 60), (8, 6, 17)], shifts):
        count = int(np.prod(shape))
        for axis in range(len(shape)):
            for direction in (1, -1):
                buffer = np.zeros(count + shift)
                x, out = buffer[:count].reshape(shape), buffer[shift:].reshape(shape)
                if direction < 0:
                    x, out = out, x
                x[...] = sample(shape)
                expected = function(x.copy(), axis)
                assert function(x, axis, out=out) is out
                np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("function", functions.SAME_SHAPE, ids=str)
def test_out_is_a_view_of_the_input(function):
    """Transposed, reversed: the same memory, in another order."""
    for turn in (lambda a: a.T, lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a[::-1, ::-1].T):
        for axis in (0, 1):
            x = sample((30, 30))
            expected = function(x.copy(), axis)
            out = turn(x)
            assert function(x, axis, out=out) is out
            np.testing.assert_array_equal(out, expected)


def test_out_of_a_row_result_inside_the_input():
    for shape in ((40, 5), (40, 1), (10, 60)):
        x = sample(shape)
        expected = fs.logsumexp(x.copy())
        out = x[:, 0]
        assert fs.logsumexp(x, out=out) is out
        np.testing.assert_array_equal(out, expected)
        x = sample(shape)
        flat = x.reshape(-1)[: shape[0]]
        fs.logsumexp(x, out=flat)
        np.testing.assert_array_equal(flat, expected)


def test_out_of_a_jacobian_over_the_input():
    for classes in (1, 5, 60):
        buffer = np.zeros((3, classes, classes))
        x = buffer.reshape(-1)[: 3 * classes].reshape(3, classes)
        x[...] = sample((3, classes))
        expected = fs.softmax_jacobian(x.copy())
        fs.softmax_jacobian(x, out=buffer)
        np.testing.assert_array_equal(buffer, expected)


def test_labels_inside_out():
    """Absurd, but promised: labels that are overwritten by the gradient that they decide."""
    for classes in (3, 60):
        buffer = np.zeros((40, classes))
        labels = buffer.view(np.int64).reshape(-1)[:40]
        labels[...] = np.arange(40) % classes
        x = sample((40, classes))
        expected = fs.cross_entropy_grad(x, labels.copy())
        fs.cross_entropy_grad(x, labels, out=buffer)
        np.testing.assert_array_equal(buffer, expected)


@pytest.mark.parametrize("function", functions.PAIRS, ids=lambda f: f.__name__)
def test_out_of_pairs(function):
    for shape in ((20, 3), (3, 60)):
        x, targets = sample(shape), sample(shape, seed=1)
        if _spec.LABELS in _spec.FUNCTIONS[function.__name__].operands:
            targets = functions.labels_for(shape, -1, x.dtype)
        loss, gradient = function(x, targets)
        out = np.full(shape, 7.0)
        again = function(x, targets, out=out)
        assert again[1] is out
        assert again[0] == loss
        np.testing.assert_array_equal(out, gradient)
        again = function(x, targets, out=x)
        assert again[0] == loss
        np.testing.assert_array_equal(x, gradient)


# --- the small road ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", functions.ACTIVATIONS, ids=str)
@every_dtype
def test_small_calls_give_the_bits_of_the_general_road(function, dtype):
    """Small arrays take a shorter way than large ones and calls with options, with the same bits."""
    for shape in ((1,), (5,), (1, 10), (32, 10), (2, 3, 17), (3, 60)):
        x = sample(shape, dtype)
        plain = function(x)
        for options in (
            {"where": True},
            {"where": np.ones(shape, bool)},
            {"out": np.full(np.shape(plain), 7, dtype)},
        ):
            if options.get("out") is not None and np.ndim(plain) == 0:
                continue
            np.testing.assert_array_equal(function(x, **options), plain)
        np.testing.assert_array_equal(function(x, axis=x.ndim - 1), plain)
        many = np.broadcast_to(x, (20_000 // x.size + 1, *shape))
        np.testing.assert_array_equal(function(many)[0], plain)
        np.testing.assert_array_equal(function(many)[-1], plain)


@pytest.mark.parametrize("from_probs", [False, True])
@pytest.mark.parametrize("name", ["softmax_jvp", "softmax_vjp", "softmax_jacobian"])
@every_dtype
def test_small_derivatives_have_the_bits_of_others(name, from_probs, dtype):
    """From the second call on, small matrices take a shorter way, with the same bits."""
    function = getattr(fs, name)
    for shape in ((1, 10), (5, 1), (32, 10), (40, 17), (3, 100)):
        x = fs.softmax(sample(shape, dtype)) if from_probs else sample(shape, dtype)
        arguments = (x,) if name == "softmax_jacobian" else (x, sample(shape, dtype)[::-1].copy())
        expected = function(*arguments, axis=1, from_probs=from_probs)
        for _ in range(2):
            np.testing.assert_array_equal(function(*arguments, from_probs=from_probs), expected)
        out = np.full_like(expected, 7)
        assert function(*arguments, from_probs=from_probs, out=out) is out
        np.testing.assert_array_equal(out, expected)
        frozen = [a.copy() for a in arguments]
        for a in frozen:
            a.flags.writeable = False
        np.testing.assert_array_equal(function(*frozen, from_probs=from_probs), expected)
        np.testing.assert_array_equal(
            function(*(np.asfortranarray(a) for a in arguments), from_probs=from_probs), expected
        )
        np.testing.assert_array_equal(
            function(*(a.tolist() for a in arguments), from_probs=from_probs).shape, out.shape
        )
        with pytest.raises(ValueError, match="out has shape"):
            function(*arguments, from_probs=from_probs, out=np.empty((2, 3, 4, 5), dtype))
        if len(arguments) == 2:
            with pytest.raises(ValueError, match="shape"):
                function(x, np.ones((7, 7), dtype), from_probs=from_probs)
            memory = np.concatenate([x.ravel(), np.zeros(1, dtype)])  # an out that overlaps, one element later
            overlapping = memory[1:].reshape(shape)
            function(memory[:-1].reshape(shape), arguments[1], from_probs=from_probs, out=overlapping)
            np.testing.assert_array_equal(overlapping, expected)


def test_the_input_of_a_small_call_is_not_the_output():
    x = sample((4, 5))
    before = x.copy()
    for function in functions.ALL:
        result = function(x)
        assert not np.shares_memory(result, x)
        np.testing.assert_array_equal(x, before)
