"""The elementary functions inside a user's own compiled code: on numbers, on arrays, and the machine code."""

import platform
import re

import child
import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

import fastsoftmax as fs
from fastsoftmax import _ufuncs, special
from fastsoftmax.kernels.loops import BINARY

DTYPES = (np.float32, np.float64)


def user_loop(function):
    """What a user writes: numbers, one by one."""
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


# Every function in one dtype, and some in both; the others are left to the slow run, for the time they compile.
SOME = [(name, np.float32 if k % 2 else np.float64) for k, name in enumerate(_ufuncs.NAMES)] + [
    ("exp", np.float32),
    ("logaddexp", np.float32),
]
OTHERS = [(name, dtype) for name in _ufuncs.NAMES for dtype in DTYPES if (name, dtype) not in SOME]


@pytest.mark.parametrize(
    ("name", "dtype"), SOME + [pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS]
)
def test_a_loop_over_numbers(name, dtype):
    """The bits are those of the ufunc, and the loop is vectorised: packed arithmetic, no call."""
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
    """np.exp in the same loop calls libm: the reason for all this."""
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
    """Of any layout and number of dimensions, as the ufunc outside."""
    x = np.random.default_rng(6).normal(0, 3, (6, 5, 7))
    read_only = x.copy()
    read_only.flags.writeable = False
    for a in (x, x.T, x[::2, :, ::-1], x[:0], np.array(1.5), read_only, x.astype("f")):
        actual, expected = whole(a), fs.exp(a)
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        assert actual.tolist() == expected.tolist()
    assert whole(np.arange(5)).tolist() == fs.exp(np.arange(5)).tolist()
    assert whole(np.array([True, False])).dtype == np.float64
    assert whole(2) == whole(2.0) == fs.exp(2.0)
    assert whole(True) == fs.exp(1.0)


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


def test_mixed_dtypes():
    """float32 beside anything else becomes float64."""
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
    """The ufunc is made while Numba resolves the name, and is known to it at once."""
    assert child.run(FIRST.format(name=name)) == "True\n"


def test_every_function_is_tested():
    assert {name for name, _ in SOME} == set(_ufuncs.NAMES)
    assert "logaddexp" in BINARY
