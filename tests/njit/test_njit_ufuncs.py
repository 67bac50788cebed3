"""The elementary functions inside a user's own compiled code: on numbers, on arrays, and the machine code."""

import platform
import re

import child
import numpy as np
import pytest
from numba import njit, typeof
from numba.core.errors import TypingError
from numba.np.numpy_support import as_dtype

import fastsoftmax as fs
from fastsoftmax import special
from fastsoftmax._vectors import BINARY
from fastsoftmax.api import ufuncs
from fastsoftmax.njit import ufuncs as inside

DTYPES = (np.float32, np.float64)


def user_loop(function):
    """The loop of a user, number by number."""
    if isinstance(function, np.ufunc) and function.nin == 2:

        @njit
        def loop(x, y, out):
            for i in range(out.size):
                out[i] = function(x[i], y[i])

    else:

        @njit
        def loop(x, out):
            for i in range(out.size):
                out[i] = function(x[i])

    return loop


# Every function in one dtype, and some in both. The others are slow, because they compile more.
SOME = [(name, np.float32 if k % 2 else np.float64) for k, name in enumerate(ufuncs.NAMES)] + [
    ("exp", np.float32),
    ("logaddexp", np.float32),
]
OTHERS = [(name, dtype) for name in ufuncs.NAMES for dtype in DTYPES if (name, dtype) not in SOME]


@pytest.mark.parametrize(
    ("name", "dtype"), SOME + [pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS]
)
def test_a_loop_over_numbers(name, dtype):
    """The results have the bits of the ufunc, and the loop is vectorised: packed arithmetic, no call."""
    function = getattr(fs, name)
    loop = user_loop(function)
    x = np.random.default_rng(5).uniform(0.01, 0.99, 203).astype(dtype)
    inputs, out = [x, x[::-1].copy()][: function.nin], np.empty_like(x)
    loop(*inputs, out)
    assert out.tolist() == function(*inputs).tolist()
    if platform.machine() not in ("x86_64", "AMD64"):
        return
    (code,) = loop.inspect_asm().values()
    kind = "ps" if dtype == np.float32 else "pd"
    assert re.search(rf"\bv(fn?m(add|sub)\d+|mul){kind}\s.*%[yz]mm", code), "no packed arithmetic"
    assert not re.findall(r"\b(?:call\w*|jmp\w*)\s.*\b(?:expm?1?|log1?p?|fma)f?\b", code)
    assert not re.findall(r"movabsq\s+\$(?:expm?1?f?|log(?:1p)?f?|fmaf?),", code)


def test_the_search_for_vectors_can_fail():
    """np.exp in the same loop calls libm, and the search finds that."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("register names of x86")
    loop = user_loop(np.exp)
    x = np.ones(64)
    loop(x, np.empty_like(x))
    (code,) = loop.inspect_asm().values()
    assert re.findall(r"movabsq\s+\$(?:expm?1?f?|log(?:1p)?f?|fmaf?),", code)


@njit
def whole(x):
    return fs.exp(x)


@njit
def into(x, out):
    return fs.exp(x, out)


@njit
def both(x, y):
    return fs.logaddexp(x, y)


@njit
def both_into(x, y, out):
    return fs.logaddexp(x, y, out=out)


@njit
def special_too(x):
    return special.entr(x) + special.rel_entr(x, 0.5)


def test_whole_arrays():
    """Arrays of any layout and number of dimensions give the results of the ufunc."""
    x = np.random.default_rng(6).normal(0, 3, (6, 5, 7))
    read_only = x.copy()
    read_only.flags.writeable = False
    for a in (x, x.T, x[::2, :, ::-1], x[:0], np.array(1.5), read_only, x.astype("f")):
        actual, expected = whole(a), fs.exp(a)
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        assert actual.tolist() == expected.tolist()
    assert whole(np.arange(5)).tolist() == fs.exp(np.arange(5)).tolist()
    assert whole(2) == whole(2.0) == fs.exp(2.0)
    assert whole(True) == fs.exp(True)


def test_out():
    x = np.random.default_rng(7).normal(0, 3, (4, 6))
    for out in (np.empty((4, 6)), x):
        expected = fs.exp(x).tolist()
        assert into(x, out).tolist() == expected
        assert out.tolist() == expected
    out = np.empty((4, 6))
    assert both_into(x, x[0], out).tolist() == out.tolist() == fs.logaddexp(x, x[0]).tolist()
    with pytest.raises(ValueError, match="out must have the shape of the result"):
        into(x, np.empty((1, 6)))


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
def test_broadcasting(dtype):
    x = np.random.default_rng(8).normal(0, 3, (6, 8)).astype(dtype)
    for a, b in ((x, x), (x, x[:1]), (x[:, :1], x[:, :1].T.copy()), (x, x[0])):
        actual, expected = both(a, b), fs.logaddexp(a, b)
        assert actual.dtype == dtype
        assert actual.tolist() == expected.tolist()
    assert both(x, dtype(2)).tolist() == both(dtype(2), x).tolist() == fs.logaddexp(x, dtype(2)).tolist()
    assert both(dtype(1), dtype(2)) == fs.logaddexp(dtype(1), dtype(2))
    with pytest.raises(ValueError, match="broadcast"):
        both(x, x[:, :3])


# The dtypes of the ufuncs, by NumPy's characters, except float16, which Numba does not have on CPUs.
KINDS = "?bBhHiIlLqQfd"


def returned(function, *arguments):
    """The dtype in which a compiled function returns a number, which Numba turns into a Python float."""
    function(*arguments)
    found = as_dtype(function.overloads[tuple(map(typeof, arguments))].signature.return_type)
    assert type(function(*arguments)) is float
    return found


def held(dtype):
    """The dtype in which compiled code holds a result of the ufunc."""
    return np.float32 if dtype == np.float16 else dtype


def every(kind):
    """All numbers of the small dtypes, some of the others."""
    if kind in "?bB":
        return np.arange(256).astype("u1").view("i1" if kind == "b" else "u1").astype(kind)
    if kind in "fd":
        return np.linspace(-3, 3, 61).astype(kind)
    return np.arange(1000).astype(kind)


def same_bits(actual, expected):
    """Check that the dtype is that of `held`, and that value and sign are those of the ufunc."""
    assert actual.dtype == held(expected.dtype)
    np.testing.assert_array_equal(actual, expected.astype(actual.dtype), strict=True)
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual)[finite], np.signbit(expected)[finite])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["exp", "log_expit"])
def test_numbers_and_arrays_have_the_dtype_and_bits_of_the_ufunc(name, kind):
    """For every dtype: single numbers, an array, and the inferred type of a returned number."""
    function = getattr(fs, name)
    one = njit(lambda x: function(x))
    loop = user_loop(function)
    x = every(kind)
    expected = function(x)
    out = np.empty(x.size, held(expected.dtype))
    loop(x, out)
    same_bits(out, expected)
    same_bits(one(x), expected)
    assert returned(one, x[3]) == held(expected.dtype)
    assert returned(one, x[3]) == held(function(x[3]).dtype)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", [n for n in ufuncs.NAMES if n not in ("exp", "log_expit", *BINARY)])
def test_the_smallest_integers_in_every_function(name):
    """The ufunc returns float16 for them, and compiled code a float32 of the same value."""
    function = getattr(fs, name)
    loop = user_loop(function)
    x = every("b")
    out = np.empty(x.size, np.float32)
    loop(x, out)
    same_bits(out, function(x))


@pytest.mark.parametrize("first", KINDS)
def test_two_arguments_have_the_dtype_of_the_ufunc(first):
    """Each dtype beside each other one."""
    x = np.array([3, 1, 0]).astype(first)
    for second in "?bhilfd":
        y = np.array([2, 7, 0]).astype(second)
        expected = fs.logaddexp(x, y)
        assert returned(both, x[0], y[0]) == held(expected.dtype) == held(fs.logaddexp(x[0], y[0]).dtype)
        assert both(x[0], y[0]) == float(expected[0])


@pytest.mark.parametrize("kinds", ["bb", "?B", "bh", "hf", "fb", "if", "fd"])
def test_two_arrays_have_the_dtype_and_bits_of_the_ufunc(kinds):
    """Two arrays, an array and a number, and broadcast arrays."""
    x, y = np.array([3, 1, 0]).astype(kinds[0]), np.array([2, 7, 0]).astype(kinds[1])
    same_bits(both(x, y), fs.logaddexp(x, y))
    same_bits(both(x[:, None], y), fs.logaddexp(x[:, None], y))
    same_bits(both(x, y[1]), fs.logaddexp(x, y[1:2]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_special_functions_have_their_own_dtypes():
    """SciPy's ufuncs have no float16, or prefer float64. Compiled code has the same dtypes."""

    @njit
    def compute(x, y):
        return special.expit(x), special.entr(x), special.xlogy(x, y), special.rel_entr(x, y)

    for kinds in ("bb", "ff", "fb", "hf", "dd"):
        x, y = np.array([3, 1, 0]).astype(kinds[0]), np.array([2, 7, 1]).astype(kinds[1])
        for actual, expected in zip(compute(x, y), compute.py_func(x, y), strict=True):
            same_bits(actual, expected)


@njit
def rounded(values, out):
    for i in range(values.size):
        out[i] = inside._as_half(values[i])


def test_rounding_to_float16():
    """As NumPy's cast: around every float16 and tie, for denormal numbers, signs, overflow, inf and nan."""
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves[-1] = 65536.0
    ties = (halves[1:] + halves[:-1]) / np.float32(2)
    steps = [x for base in (halves, ties) for x in (base, np.nextafter(base, -1), np.nextafter(base, 1e6))]
    limits = np.float32([0, 1e-45, 1e-40, 1.1754944e-38, 65519.996, 65520, 1e10, 3.4028235e38, np.inf, np.nan])
    x = np.concatenate([*steps, limits]).astype(np.float32)
    x = np.concatenate([x, -x])
    out = np.empty_like(x)
    rounded(x, out)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    same_bits(out, expected)


@pytest.mark.parametrize("kind", ["b", "h", "f"])
def test_out_may_be_wider(kind):
    """A float32 result may be written to a float64 array, as by the ufunc."""
    x = np.array([1, 2, 3]).astype(kind)
    for dtype in (np.float32, np.float64):
        out = np.empty(3, dtype)
        assert into(x, out).tolist() == out.tolist() == fs.exp(x).astype(dtype).tolist()
    with pytest.raises(TypingError, match="exp: out must be a writable array of float32 or float64, got array"):
        into(x, np.empty(3, np.int64))


def test_a_float32_that_python_gets_is_exact():
    """Numba returns Python floats. np.float32 of them is the ufunc's result; an array keeps its dtype."""

    @njit
    def in_an_array(x):
        return np.full((), fs.exp(x))

    x = np.float32(0.7)
    expected = fs.exp(x)
    assert type(whole(x)) is float
    assert np.float32(whole(x)) == expected
    assert in_an_array(x).dtype == expected.dtype == np.float32
    assert in_an_array(x)[()] == expected


def test_mixed_dtypes():
    """float32 beside a wider dtype becomes float64. A Python number is an int64 or a float64 to Numba."""
    x = np.linspace(0, 1, 5, dtype=np.float32)
    assert both(x, x.astype(np.float64)).tolist() == fs.logaddexp(x, x.astype(np.float64)).tolist()
    assert both(x, 1).tolist() == fs.logaddexp(x.astype(np.float64), 1.0).tolist()
    assert both(1, 2) == fs.logaddexp(1.0, 2.0)


def test_special_inside():
    assert special_too(0.25) == special.entr(0.25) + special.rel_entr(0.25, 0.5)


@pytest.mark.parametrize("value", ["text", 1j, None, np.ones(2, np.complex128)])
def test_typing_errors_name_the_argument(value):
    with pytest.raises(TypingError, match="exp: x must be a number or an array of float32, float64, integers"):
        whole(value)


def test_typing_errors_of_the_second_argument_and_of_out():
    with pytest.raises(TypingError, match="logaddexp: y must be a number or an array"):
        both(1.0, "text")
    x = np.ones(3)
    with pytest.raises(TypingError, match="exp: out must be a writable array of float64, got array\\(float32"):
        into(x, np.empty(3, np.float32))


FIRST = """
import sys
import numpy as np
from numba import njit
import fastsoftmax as fs

@njit
def loop(x, out):
    for i in range(x.size):
        out[i] = fs.{name}(x[i]) + softplus(x[i])

from fastsoftmax import softplus
x = np.linspace(0.1, 0.9, 33)
out = np.empty(33)
assert {name!r} not in vars(fs)
loop(x, out)
print(out.tolist() == (fs.{name}(x) + fs.softplus(x)).tolist())
"""


@pytest.mark.parametrize("name", ["exp"])
def test_the_first_use_may_be_inside(name):
    """Then the ufunc is made while Numba resolves its name."""
    assert child.run(FIRST.format(name=name)) == "True\n"


def test_every_function_is_tested():
    assert {name for name, _ in SOME} == set(ufuncs.NAMES)
    assert "logaddexp" in BINARY


STRIDED = """
import numba, numpy as np
import fastsoftmax.njit.overloads
import fastsoftmax as fs

@numba.njit
def one(x):
    return fs.exp(x)

@numba.njit
def two(x, y):
    return fs.xlogy(x, y)

x = np.linspace(0, 1, 4_000_000)[::2]
for _ in range(3):
    np.testing.assert_array_equal(one(x), fs.exp(x))
a, b = np.random.default_rng(0).random((1000, 2000)), np.linspace(1, 2, 2000)
np.testing.assert_array_equal(two(a, b), fs.xlogy(a, b))
"""


def test_copies_live_while_a_kernel_reads_them():
    """A strided argument is copied; memory of this size goes back to the system as soon as nothing holds it."""
    child.run(STRIDED)
