"""Error messages name the function, the argument, its value and what is expected. `out` stays unchanged."""

import re

import functions
import numpy as np
import pytest
from functions import labels_for

import fastsoftmax as fs

every = pytest.mark.parametrize("function", functions.ALL, ids=str)
every_with_out = pytest.mark.parametrize("function", functions.WITH_OUT, ids=str)
X = np.linspace(-1, 1, 12).reshape(3, 4)
LABELS = np.array([0, 3, 2])


class raises:
    """As pytest.raises, for a message that starts with "function: argument" and contains all given words."""

    def __init__(self, kind, function, argument, *words):
        self.kind, self.words = kind, (str(function), argument, *words)
        self.start = f"{function}: {argument}"

    def __enter__(self):
        self.context = pytest.raises(self.kind)
        self.info = self.context.__enter__()

    def __exit__(self, *failure):
        suppressed = self.context.__exit__(*failure)
        message = str(self.info.value)
        assert message.startswith(self.start), message
        for word in self.words:
            assert str(word) in message, f"{word!r} is not in: {message}"
        return suppressed


def sentinel(function, x=X, dtype=None):
    return np.full(function.shape(x.shape), 7.0, dtype or x.dtype)


def call_with_out(function, out, *args, **options):
    """Make a call that fails, and check that `out` is unchanged."""
    before = np.array(out, copy=True)
    try:
        function.function(*args, out=out, **options)
    finally:
        np.testing.assert_array_equal(out, before)


# --- dtypes --------------------------------------------------------------------------------------------------

LONG = pytest.mark.skipif(np.dtype("g").itemsize == 8, reason="longdouble is float64 here")
DTYPES = [
    "F",
    "D",
    "G",
    pytest.param("g", marks=LONG),
    "O",
    "U3",
    "S3",
    "M8[s]",
    "m8[s]",
    "V4",
]


def of_dtype(kind, shape=(3, 4)):
    return np.zeros(shape, kind) if kind != "O" else np.full(shape, 1, object)


@every
@pytest.mark.parametrize("kind", DTYPES)
def test_dtypes_of_the_first_argument(function, kind):
    x = of_dtype(kind)
    with raises(TypeError, function.name, function.first, "dtype", x.dtype, "expected", "float32"):
        function.function(x, *function.other(X))


@pytest.mark.parametrize("function", [f for f in functions.ALL if f.second], ids=str)
@pytest.mark.parametrize("kind", DTYPES)
def test_dtypes_of_the_second_argument(function, kind):
    second = of_dtype(kind)
    with raises(TypeError, function.name, function.second, "dtype", second.dtype, "expected"):
        function.function(X, second)


@every
def test_masked_arrays(function):
    """They are refused, because NumPy's functions would ignore the mask."""
    with raises(TypeError, function.name, function.first, "masked", "where="):
        function.function(np.ma.masked_array(X, X > 0), *function.other(X))
    if function.second:
        (second,) = function.other(X)
        with raises(TypeError, function.name, function.second, "masked"):
            function.function(X, np.ma.masked_array(second, second > 0))


@every
def test_ragged_lists(function):
    """NumPy's own error is passed on."""
    with pytest.raises(ValueError, match="inhomogeneous"):
        function.function([[1.0, 2.0], [3.0]], *function.other(X))


@pytest.mark.parametrize("kind", ["f4", "f8", "?", "f2"])
def test_labels_must_be_integers(kind):
    """Labels of floats or bools are refused."""
    for function in (fs.cross_entropy, fs.cross_entropy_grad, fs.cross_entropy_with_grad):
        labels = np.zeros(3, kind)
        with raises(TypeError, function.__name__, "targets", "(3,)", labels.dtype, "integers"):
            function(X, labels)


# --- axes ----------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("axis", [2, -3, 10**6])
def test_axis_out_of_range(function, axis):
    with pytest.raises(np.exceptions.AxisError) as info:
        function.function(X, *function.other(X), axis=axis)
    message = str(info.value)
    assert function.name in message
    assert f"axis {axis} is out of bounds for array of dimension 2" in message


@every
@pytest.mark.parametrize("axis", [1.0, "1", 1j])
def test_axis_must_be_an_integer(function, axis):
    with raises(TypeError, function.name, "axis", "integer", repr(axis)):
        function.function(X, *function.other(X), axis=axis)


@pytest.mark.parametrize("function", [f for f in functions.ALL if f not in functions.ACTIVATIONS], ids=str)
@pytest.mark.parametrize("axis", [None, (0, 1), (1,)])
def test_one_axis_only(function, axis):
    """Jacobians and labels are defined for one axis only."""
    with raises(TypeError, function.name, "axis", "integer", repr(axis)):
        function.function(X, *function.other(X), axis=axis)


@pytest.mark.parametrize("function", functions.ACTIVATIONS, ids=str)
def test_axis_twice(function):
    with raises(ValueError, function.name, "axis", "twice", "(1, -1)"):
        function.function(X, axis=(1, -1))
    with pytest.raises(np.exceptions.AxisError, match="axis 2 is out of bounds"):
        function.function(X, axis=(0, 2))


@pytest.mark.parametrize("function", [f for f in functions.ALL if f not in functions.ACTIVATIONS], ids=str)
def test_no_axis_at_all(function):
    with pytest.raises(ValueError, match=f"{function.name}.*0-d|{function.name}.*dimension 0"):
        function.function(np.float64(1.0), np.float64(1.0)) if function.second else function.function(1.0)


# --- shapes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", functions.PRODUCTS, ids=str)
@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 1), (4, 3), (3, 4, 1), ()])
def test_vectors_do_not_broadcast(function, shape):
    with raises(ValueError, function.name, function.second, shape, "expected", X.shape):
        call_with_out(function, sentinel(function), X, np.ones(shape))


@pytest.mark.parametrize("shape", [(4,), (1,), (3, 1), (1, 4), (4, 3), (3, 4, 1), ()])
def test_shapes_of_targets(shape):
    for function in (fs.cross_entropy, fs.cross_entropy_grad, fs.cross_entropy_with_grad):
        with raises(ValueError, function.__name__, "targets", shape, "(3,)", "(3, 4)", "indices", "distributions"):
            function(X, np.zeros(shape, int))
    for function in (fs.squared_error, fs.squared_error_grad, fs.squared_error_with_grad):
        with raises(ValueError, function.__name__, "targets", shape, "(3, 4)"):
            function(X, np.zeros(shape))


def test_squared_error_has_no_labels():
    with raises(ValueError, "squared_error", "targets", "(3,)", "expected", "(3, 4)"):
        fs.squared_error(X, LABELS)


# --- labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [-1, 4, 127, -128, 2**31, 2**40, -(2**40), 2**63])
@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy_grad", "cross_entropy_with_grad"])
def test_labels_out_of_range(name, label):
    """-1 would wrap, K read the next row, 2**40 crash: the message has the first one and its position."""
    labels = np.array([3, label, label], np.uint64 if label == 2**63 else np.int64)
    out = np.full(X.shape, 7.0)
    options = {} if name == "cross_entropy" else {"out": out}
    with raises(IndexError, name, "targets[1]", f"is {label},", "0 to 3"):
        getattr(fs, name)(X, labels, **options)
    assert np.all(out == 7.0)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.uint64])
def test_labels_out_of_range_of_every_dtype(kind):
    with raises(IndexError, "cross_entropy", "targets[2]", "is 4,", "0 to 3"):
        fs.cross_entropy(X, np.array([0, 1, 4], kind))


def test_the_position_of_a_label_has_all_its_indices():
    """The first wrong label in C order, also with the classes not last and labels in Fortran order."""
    x = np.zeros((2, 5, 3))
    labels = np.zeros((2, 3), int)
    labels[1, 0] = 5
    labels[0, 2] = -7
    for form in (labels, np.asfortranarray(labels), labels[::-1, ::-1][::-1, ::-1]):
        with raises(IndexError, "cross_entropy", "targets[0, 2]", "is -7,", "0 to 4"):
            fs.cross_entropy(x, form, axis=1)
    with raises(IndexError, "cross_entropy", "targets[]", "is 5,", "0 to 4"):
        fs.cross_entropy(np.zeros(5), 5)


def test_labels_of_no_classes():
    with pytest.raises(IndexError, match=r"cross_entropy: targets\[0\] is 0"):
        fs.cross_entropy(np.zeros((2, 0)), [0, 0])


# --- numbers and words ---------------------------------------------------------------------------------------

TEMPERED = [f for f in functions.ALL if f.name in ("softmax", "log_softmax")]
TEMPERED += [*functions.JACOBIANS, *functions.PRODUCTS]


@pytest.mark.parametrize("function", TEMPERED, ids=str)
def test_temperatures(function):
    for value in (0, 0.0, -1.0, np.nan, np.inf, -np.inf):
        with raises(ValueError, function.name, "temperature", "> 0", repr(value)):
            call_with_out(function, sentinel(function), X, *function.other(X), temperature=value)
    for value in ("hot", "1.0", None, [1.0, 2.0], 1j, np.ones(3)):
        with raises(TypeError, function.name, "temperature", "number"):
            call_with_out(function, sentinel(function), X, *function.other(X), temperature=value)


@pytest.mark.parametrize("function", TEMPERED[:2], ids=str)
def test_temperatures_that_have_no_inverse_in_the_dtype(function):
    """In float32, 1/T overflows or loses digits. The result is that of float64, rounded, and there is no error."""
    for value in (1e-310, 1e-45, 1e39):
        x = X.astype(np.float32)
        actual = function.function(x, temperature=value)
        with np.errstate(over="ignore"):
            expected = function.function(x.astype(np.float64), temperature=value).astype(np.float32)
        np.testing.assert_allclose(actual, expected, rtol=5 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy_grad", "cross_entropy_with_grad"])
@pytest.mark.parametrize("reduction", ["avg", "MEAN", "", None, 0, ["mean"]])
def test_reductions(name, reduction):
    for function, targets in ((name, LABELS), (name.replace("cross_entropy", "squared_error"), X)):
        with raises(ValueError, function, "reduction", repr(reduction), "mean", "sum", "none"):
            getattr(fs, function)(X, targets, reduction=reduction)


@pytest.mark.parametrize("function", functions.ACTIVATIONS, ids=str)
def test_masks(function):
    for mask in (np.ones((3, 4), int), np.ones((3, 4)), [1, 0, 1, 1], "yes"):
        with raises(TypeError, function.name, "where", np.asarray(mask).dtype, "bool"):
            call_with_out(function, sentinel(function), X, where=mask)
    for shape in ((3,), (4, 3), (2, 3, 4)):
        with raises(ValueError, function.name, "where", shape, "broadcast", X.shape):
            call_with_out(function, sentinel(function), X, where=np.ones(shape, bool))


@pytest.mark.parametrize("count", [0, -1, -(10**9)])
def test_number_of_threads(count):
    with raises(ValueError, "threads", "n", "at least 1", count), fs.threads(count):
        pytest.fail("entered")


@pytest.mark.parametrize("count", [1.0, "2", None, True, [1]])
def test_kind_of_number_of_threads(count):
    with raises(TypeError, "threads", "n", "integer", repr(count)), fs.threads(count):
        pytest.fail("entered")


# --- out -----------------------------------------------------------------------------------------------------


@every_with_out
def test_shape_of_out(function):
    expected = function.shape(X.shape)
    for shape in ((*expected, 1), expected[:-1], tuple(n + 1 for n in expected), (1, *expected)):
        out = np.full(shape, 7.0)
        with raises(ValueError, function.name, "out", shape, "expected", expected):
            call_with_out(function, out, X, *function.other(X))


@every_with_out
@pytest.mark.parametrize("kind", ["f4", "f2", "i8", "D", ">f8"])
def test_dtype_of_out(function, kind):
    """An `out` of another dtype is refused, also one of another byte order."""
    out = np.full(function.shape(X.shape), 7, kind)
    with raises(TypeError, function.name, "out", out.dtype, "expected", "float64"):
        call_with_out(function, out, X, *function.other(X))


@every_with_out
def test_kind_of_out(function):
    masked = np.ma.masked_array(sentinel(function))
    for out, kind in (([0.0], "list"), (1.0, "float"), ("x", "str"), (masked, "Masked"), ((masked,), "tuple")):
        with raises(TypeError, function.name, "out", "ndarray", kind):
            function.function(X, *function.other(X), out=out)


@every_with_out
def test_read_only_out(function):
    out = sentinel(function)
    out.flags.writeable = False
    with raises(ValueError, function.name, "out", "read-only"):
        call_with_out(function, out, X, *function.other(X))
    broadcast = np.broadcast_to(7.0, function.shape(X.shape))
    with raises(ValueError, function.name, "out", "read-only"):
        call_with_out(function, broadcast, X, *function.other(X))


@pytest.mark.parametrize("function", [f for f in functions.GRADIENTS if f.make is labels_for], ids=str)
def test_a_wrong_label_is_found_before_anything_is_written(function):
    """Also if it is the last of many labels, and blocks of rows run on several threads."""
    x = np.zeros((300_000, 3))
    labels = np.zeros(300_000, int)
    labels[-1] = 3
    out = np.full(x.shape, 7.0)
    with raises(IndexError, function.name, f"{function.second}[299999]", "is 3,", "0 to 2"):
        call_with_out(function, out, x, labels)


@pytest.mark.parametrize("function", functions.PAIRS, ids=lambda f: f.__name__)
def test_out_of_pairs(function):
    targets = LABELS if function in (fs.cross_entropy_with_grad, fs.focal_loss_with_grad) else X
    for out, kind in ((np.full((3, 4, 1), 7.0), ValueError), (np.full((3, 4), 7, np.float32), TypeError)):
        with raises(kind, function.__name__, "out", "expected"):
            function(X, targets, out=out)
        assert np.all(out == 7)


def test_messages_begin_with_the_function():
    """A test of the helper `raises`: it fails for a message without the name."""
    assert re.match("softmax: x", "softmax: x has dtype complex64")
    with pytest.raises(AssertionError), raises(ValueError, "softmax", "x"):
        raise ValueError("x is wrong")
