"""The elementary functions: errors over the whole range, edge values, exceptions, methods of ufuncs."""

import doctest
import pickle
import re
import warnings

import child
import mpmath as mp
import numpy as np
import oracle
import pytest

import fastsoftmax as fs
from fastsoftmax import special
from fastsoftmax.api import ufuncs
from fastsoftmax.kernels import loops, scalar

DTYPES = (np.float32, np.float64)
NAMES = (*ufuncs.NAMES, "rel_entr")
# The proven bounds of the table in `kernels.scalar`, which `test_the_documented_bounds` compares with it.
BOUNDS = {
    "exp": 1.1,
    "expm1": 1.6,
    "log": 1.5,
    "log1p": 1.6,
    "expit": 1.2,
    "logit": 1.7,
    "log_expit": 1.9,
    "softplus": 1.9,
    "logaddexp": 1.9,
    "xlogy": 1.6,
    "entr": 1.6,
    "rel_entr": 1.7,
    "tanh": 1.9,
}
every_name = pytest.mark.parametrize("name", NAMES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def ufunc(name):
    return special.rel_entr if name == "rel_entr" else getattr(fs, name)


ORACLES = {
    "exp": mp.exp,
    "expm1": mp.expm1,
    "log": mp.log,
    "log1p": mp.log1p,
    "expit": lambda x: 1 / (1 + mp.exp(-x)),
    "logit": lambda p: mp.log(p / (1 - p)),
    "log_expit": lambda x: -mp.log1p(mp.exp(-x)),
    "softplus": lambda x: mp.log1p(mp.exp(x)),
    "logaddexp": lambda x, y: mp.log(mp.exp(x) + mp.exp(y)) if abs(x - y) < 50 else logaddexp_far(x, y),
    "xlogy": lambda x, y: x * mp.log(y),
    "entr": lambda x: -x * mp.log(x),
    "rel_entr": lambda x, y: x * mp.log(x / y),
    "tanh": mp.tanh,
}
# The formulas for the next wider dtype, in which their roundings are negligible.
WIDE = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "expit": lambda x: 1 / (1 + np.exp(-x)),
    "logit": lambda p: np.log(p) - np.log1p(-p),
    "log_expit": lambda x: np.where(x < 0, x, 0) - np.log1p(np.exp(-abs(x))),
    "softplus": lambda x: np.where(x > 0, x, 0) + np.log1p(np.exp(-abs(x))),
    "tanh": np.tanh,
    "entr": lambda x: np.where(x < 0, -np.inf, np.where(x == 0, 0, -x * np.log(x))),
}


def logaddexp_far(x, y):
    return max(x, y) + mp.log1p(mp.exp(-abs(x - y)))


def every_magnitude(dtype, count, rng):
    """Positive numbers of all binades, denormal ones included."""
    bits = np.uint32 if dtype == np.float32 else np.uint64
    return rng.integers(1, np.array(np.inf, dtype).view(bits), count, dtype=bits).view(dtype)


def arguments(name, dtype, count=500):
    """Finite arguments inside the domain: at every scale, and where errors are largest."""
    rng = np.random.default_rng(22)
    scales = every_magnitude(dtype, count, rng)
    reach = 90.0 if dtype == np.float32 else 712.0
    near_one = 1 + rng.uniform(-1, 1, count) * 2.0 ** rng.uniform(-52, 0, count)
    unit = rng.uniform(0, 1, 2 * count)
    if name in ("exp", "expm1", "expit", "log_expit", "softplus", "tanh"):
        breaks = (np.arange(-60, 60) + 0.5) * np.log(2)  # where the reduced argument is largest
        uniform = [rng.uniform(-r, r, count) for r in (1.2 * reach, reach, 40, 3, 0.8)]
        return (np.concatenate([scales, -scales, breaks, *uniform]).astype(dtype),)
    if name in ("log", "entr"):
        return (np.concatenate([scales, near_one, 3 * unit, np.sqrt(2) * near_one]).astype(dtype),)
    if name == "log1p":
        x = np.concatenate([scales, -scales[scales < 1], near_one - 1, 4 * unit - 1, -near_one]).astype(dtype)
        return (x[x > -1],)
    if name == "logit":
        small = scales[scales < 1]
        x = np.concatenate([small, 1 - small, near_one / 2, unit]).astype(dtype)
        return (x[(x > 0) & (x < 1)],)
    with np.errstate(all="ignore"):
        if name == "xlogy":
            x, y = [rng.normal(0, 1, 2 * count), scales], [scales, near_one, scales[::-1]]
        elif name == "rel_entr":
            x, y = [unit, scales * near_one, scales], [unit[::-1], scales, scales[::-1]]
        else:
            close = rng.uniform(-1.5, -0.1, count)
            x = [rng.normal(0, 3, count), scales, -scales, close, 40 * unit]
            y = [
                rng.normal(0, 3, count),
                scales[::-1],
                -scales * near_one,
                close + 0.1 * near_one,
                40 * unit[::-1],
            ]
        pair = np.concatenate(x).astype(dtype), np.concatenate(y).astype(dtype)
    inside = np.isfinite(pair[0]) & np.isfinite(pair[1])
    return pair[0][inside], pair[1][inside]


# --- errors --------------------------------------------------------------------------------------------------


@every_dtype
@every_name
def test_error_against_mpmath(name, dtype, record):
    inputs = arguments(name, dtype)
    assert len(inputs[0]) > 1200
    actual = ufunc(name)(*inputs) if name not in ("exp", "expm1") else quiet(ufunc(name), *inputs)
    exact = [ORACLES[name](*values) for values in zip(*map(oracle.exact, inputs), strict=True)]
    if name == "logaddexp":
        # where the two terms cancel, the bound is an absolute one
        term = [value - max(x, y) for value, x, y in zip(exact, *map(oracle.exact, inputs), strict=True)]
        cancels = np.array([abs(value) < t / 2 for value, t in zip(exact, term, strict=True)])
        assert cancels.sum() > 100
        error = [abs(mp.mpf(float(a)) - e) for a, e in zip(actual[cancels], np.array(exact)[cancels], strict=True)]
        assert max(error) <= np.finfo(dtype).eps
        actual, exact = actual[~cancels], list(np.array(exact)[~cancels])
        inputs = [x[~cancels] for x in inputs]
    ulps, (place,) = oracle.worst(actual, np.array(exact))
    record(f"ufunc {name}", dtype, ulps, BOUNDS[name], f"at {[float(x[place]).hex() for x in inputs]}")


def quiet(function, *args):
    with np.errstate(all="ignore"):
        return function(*args)


def sweep(name, x, record):
    wider = np.longdouble if name == "logit" else np.float64
    reference = quiet(lambda: WIDE[name](x.astype(wider)))
    error = oracle.wide_error(quiet(ufunc(name), x), reference)
    place = int(np.argmax(error))
    record(f"ufunc {name}", x.dtype, error[place], BOUNDS[name], f"at {float(x[place]).hex()}")


@pytest.mark.parametrize("name", WIDE)
def test_every_ten_thousandth_float32(name, record):
    """All of float32, NaNs and what is outside the domain too, in steps of a prime number of bit patterns."""
    sweep(name, np.arange(0, 2**32, 10007, dtype=np.uint64).astype(np.uint32).view(np.float32), record)


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_every_float32(name, record):
    """The bound of float32 by exhaustion."""
    for start in range(0, 2**32, 2**24):
        x = np.arange(start, start + 2**24, dtype=np.uint64).astype(np.uint32).view(np.float32)
        sweep(name, x, record)


def test_the_documented_bounds():
    """In the table of the module, and in the docstring of each ufunc."""
    assert set(BOUNDS) == set(NAMES) == {*loops.UNARY, *loops.BINARY}
    for name, bound in BOUNDS.items():
        assert re.search(rf"^`{name}`\s+{bound} ulp", scalar.__doc__, re.MULTILINE), name
        assert f"Error at most {bound} ulp" in ufuncs.DOCS[name], name


# --- edge values and exceptions -----------------------------------------------------------------------------

inf, nan = np.inf, np.nan
POINTS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0, inf, -inf, nan, 1e3, -1e3, 1e30, -1e30, 1e-40, -1e-40)


def edges(dtype):
    info = np.finfo(dtype)
    return np.array([*POINTS, info.max, -info.max, info.smallest_subnormal, -info.smallest_subnormal], dtype)


def peer(name):
    """NumPy's function, or SciPy's."""
    if hasattr(np, name):
        return getattr(np, name)
    special_ = pytest.importorskip("scipy.special")
    return (lambda x: np.logaddexp(0, x)) if name == "softplus" else getattr(special_, name)


def warned(function, *args):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = function(*args)
    return value, sorted({str(warning.message).partition(" enc")[0] for warning in caught} - {"underflow"})


@every_dtype
@every_name
def test_edge_values(name, dtype):
    """Infinities, NaN, denormal numbers, signed zeros and numbers outside the domain, as in NumPy and SciPy."""
    x = edges(dtype)
    inputs = np.meshgrid(x, x) if name in loops.BINARY else (x,)
    expected, actual = quiet(peer(name), *inputs), quiet(ufunc(name), *inputs)
    np.testing.assert_allclose(actual, expected, rtol=4 * np.finfo(dtype).eps, atol=0)
    zero = expected == 0
    np.testing.assert_array_equal(np.signbit(actual[zero]), np.signbit(expected[zero]))


@every_dtype
@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p"])
def test_warnings_are_those_of_numpy(name, dtype):
    """For single numbers, and with the cause of the warning in any lane of a vector."""
    for value in edges(dtype):
        expected, actual = warned(peer(name), value), warned(ufunc(name), value)
        assert actual[1] == expected[1], value
        x = np.full(37, 0.5, dtype)
        x[int(abs(hash(float(value)))) % 37] = value
        assert warned(ufunc(name), x)[1] == expected[1], value
        assert warned(ufunc(name), x[::-1], x[::-1])[1] == expected[1], (value, "in place")
        x[:] = 0.5
        assert warned(ufunc(name), x)[1] == []


@every_dtype
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"exp", "expm1", "log", "log1p"}))
def test_no_warnings(name, dtype):
    """As SciPy's functions. np.logaddexp warns of NaN, ours does not."""
    x = edges(dtype)
    with np.errstate(all="raise"):
        ufunc(name)(*(np.meshgrid(x, x) if name in loops.BINARY else (x,)))


@every_dtype
@every_name
def test_ordinary_numbers_raise_nothing(name, dtype):
    """Vector code also computes numbers that it discards. They must not raise exceptions, for any length."""
    x = np.linspace(0.01, 0.99, 70, dtype=dtype)
    with np.errstate(all="raise"):
        for count in (1, 3, 15, 16, 17, 33, 70):
            for step in (1, 2):
                ufunc(name)(*[x[:count:step]] * ufunc(name).nin)


def test_exceptions_of_before_are_kept():
    """A loop keeps the exceptions that were raised before it, because NumPy looks at the end of a whole call."""
    x = np.ones((3, 5))
    x[0, 0] = 0
    for order in (x, x[::-1]):
        with pytest.warns(RuntimeWarning, match="divide by zero encountered in log"):
            fs.log(order[:, ::2])


# --- what a ufunc can do ------------------------------------------------------------------------------------


@every_name
def test_it_is_a_ufunc(name):
    function = ufunc(name)
    assert isinstance(function, np.ufunc)
    assert function.__name__ == name
    assert function.nin == (2 if name in loops.BINARY else 1)
    assert pickle.loads(pickle.dumps(function)) is function
    assert ufunc(name) is function


@every_name
def test_docstring_examples(name):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    test = doctest.DocTestParser().get_doctest(ufunc(name).__doc__, {}, name, None, None)
    failed, tried = runner.run(test)
    assert tried > 1
    assert not failed
    assert ufuncs.DOCS[name].strip() in ufunc(name).__doc__


@pytest.mark.parametrize("name", ["exp", "expit", "logaddexp"])
@pytest.mark.parametrize("dtype", ["e", "f", "d"])
def test_dtypes(name, dtype):
    x = np.linspace(-3, 3, 40).astype(dtype)
    result = ufunc(name)(*[x] * ufunc(name).nin)
    assert result.dtype == x.dtype
    assert ufunc(name)(*[x.astype(x.dtype.newbyteorder())] * ufunc(name).nin).tobytes() == result.tobytes()


def test_promotion_is_numpys():
    for dtype in "?bBhHiIlL":
        assert fs.exp(np.ones(2, dtype)).dtype == np.exp(np.ones(2, dtype)).dtype, dtype
    assert fs.logaddexp(np.float32(1), 2.0).dtype == np.float32
    assert fs.logaddexp(np.ones(2, "f"), np.ones(2)).dtype == np.float64
    assert fs.exp([1, 2], dtype=np.float32).dtype == np.float32
    with pytest.raises(TypeError, match="not supported for the input types"):
        fs.exp(np.ones(2, complex))
    with pytest.raises(TypeError, match="Cannot cast"):
        fs.exp(np.ones(2), dtype=np.float32, casting="safe")


@every_dtype
@every_name
def test_layouts_give_the_same_bits(name, dtype):
    """The result of an element does not depend on stride, order, alignment and place in a vector."""
    function = ufunc(name)
    x = np.random.default_rng(3).uniform(0.05, 0.95, (7, 45)).astype(dtype)
    args = [x, x[:, ::-1]][: function.nin]
    expected = function(*args)
    for i in range(0, 7, 3):
        for j in range(0, 45, 11):
            assert function(*(a[i, j] for a in args)) == expected[i, j]
    for view in (np.s_[::2, ::3], np.s_[::-1, ::-1], np.s_[:, 5:6], np.s_[1:2, 3:]):
        assert function(*(a[view] for a in args)).tolist() == expected[view].tolist()
        assert function(*(a.T[view] for a in args)).tolist() == expected.T[view].tolist()
    raw = np.empty(x.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(dtype).reshape(x.shape)
    misaligned[...] = args[0]
    assert not misaligned.flags.aligned
    assert function(misaligned, *args[1:]).tolist() == expected.tolist()
    copy = x.copy()
    inside = [copy, copy[:, ::-1]][: function.nin]
    assert function(*inside, out=copy) is copy
    assert copy.tolist() == expected.tolist()
    shifted = x.copy()
    function(*[shifted[:, :-1]] * function.nin, out=shifted[:, 1:])
    assert shifted[:, 1:].tolist() == function(*[x[:, :-1]] * function.nin).tolist()


def test_where_and_outer():
    x = np.linspace(-2, 2, 31)
    out = np.full(31, 7.0)
    mask = x > 0.3
    fs.exp(x, out=out, where=mask)
    assert out.tolist() == np.where(mask, fs.exp(x), 7.0).tolist()
    assert fs.logaddexp.outer(x, x).tolist() == fs.logaddexp(x[:, None], x).tolist()


@pytest.mark.parametrize("dtype", ["e", "f", "d"])
def test_reduce_accumulate_at(dtype):
    """They work in the order of the numbers; long sums add vectors of sums."""
    x = np.random.default_rng(4).normal(0, 3, 1003).astype(dtype)
    tolerance = {"rtol": 8 * np.finfo(dtype).eps * (40 if dtype == "e" else 1)}
    exact = np.log(np.sum(np.exp(x.astype(np.float64))))
    np.testing.assert_allclose(fs.logaddexp.reduce(x), exact, **tolerance)
    np.testing.assert_allclose(
        fs.logaddexp.reduce(x, initial=x.dtype.type(20)), np.logaddexp(exact, 20), **tolerance
    )
    table = x[:1000].reshape(20, 50)
    for axis in (0, 1):
        expected = np.log(np.sum(np.exp(table.astype(np.float64)), axis))
        np.testing.assert_allclose(fs.logaddexp.reduce(table, axis), expected, **tolerance)
    assert fs.logaddexp.reduce(x[:0]) == -np.inf
    running = fs.logaddexp.accumulate(x[:50])
    total = x[0]
    for k in range(1, 50):
        total = fs.logaddexp(total, x[k])
        assert running[k] == total
    y, index = x[:10].copy(), [2, 2, 5]
    fs.logaddexp.at(y, index, x[:3])
    expected = x[:10].copy()
    for i, value in zip(index, x[:3], strict=True):
        expected[i] = fs.logaddexp(expected[i], value)
    assert y.tolist() == expected.tolist()
    fs.exp.at(y, [1])
    assert y[1] == fs.exp(x[1])


def test_xlogy_reduces_in_order():
    x = np.linspace(1.1, 1.9, 200)
    total = x[0]
    for value in x[1:]:
        total = fs.xlogy(total, value)
    assert fs.xlogy.reduce(x) == total


@pytest.mark.parametrize("name", ["exp", "log", "expit", "entr"])
def test_every_float16(name):
    """The float32 result, rounded as NumPy rounds it."""
    x = np.arange(2**16, dtype=np.uint16).view(np.float16)
    actual = quiet(ufunc(name), x)
    expected = quiet(lambda: ufunc(name)(x.astype(np.float32)).astype(np.float16))
    np.testing.assert_array_equal(actual, expected)
    number = ~np.isnan(expected)
    assert np.array_equal(np.signbit(actual[number]), np.signbit(expected[number]))
    assert quiet(ufunc(name), x[::-3]).tobytes() == actual[::-3].tobytes()


def test_float16_overflows():
    with pytest.warns(RuntimeWarning, match="overflow"):
        assert fs.exp(np.float16(12)) == inf
    with np.errstate(all="raise"):
        assert np.isfinite(fs.exp(np.float16(11)))
        assert fs.xlogy(np.float16(2), np.float16(3)) == np.float16(2 * np.log(3))


def test_no_machine_code_is_slow_on_small_results():
    """exp of numbers far below the range is 0, without the processor's slow path for denormal numbers."""
    import time

    x = {k: np.full(1 << 16, k, np.float32) for k in (-1.0, -5000.0)}
    out = np.empty(1 << 16, np.float32)
    best = dict.fromkeys(x, 1.0)
    for _ in range(30):
        for k, values in x.items():
            start = time.thread_time()
            fs.exp(values, out=out)
            best[k] = min(best[k], time.thread_time() - start)
    assert best[-5000.0] < 4 * best[-1.0]  # the slow path takes 10 times as long


# --- how they come to be ------------------------------------------------------------------------------------


def test_they_are_made_on_first_use(tmp_path):
    """Numba is imported only if their loops are not on disk."""
    code = (
        "import sys, fastsoftmax as fs, fastsoftmax.special as special\n"
        "print('exp' in dir(fs), 'expit' in dir(special), 'exp' in vars(fs), 'numba' in sys.modules)\n"
        "from fastsoftmax import entr\n"
        "print('numba' in sys.modules, vars(fs)['entr'] is entr)\n"
    )
    options = {"FASTSOFTMAX_PREBUILT": 0, "FASTSOFTMAX_CACHE_DIR": tmp_path}
    for compiled in ("True", "False"):
        assert child.run(code, **options).split() == ["True", "True", "False", "False", compiled, "True"]
    with pytest.raises(AttributeError, match="no attribute 'rel_entr'"):
        _ = fs.rel_entr
    with pytest.raises(AttributeError, match="no attribute 'exp'"):
        _ = special.exp


def test_masked_arrays_keep_their_mask():
    x = np.ma.masked_array([1.0, np.nan, 3.0], [False, True, False])
    for found in (fs.exp(x), fs.logaddexp(x, -np.inf), fs.logaddexp(0.0, x), fs.softplus(x, out=x.copy())):
        assert found.mask.tolist() == [False, True, False]
    np.testing.assert_array_equal(fs.exp(x).compressed(), fs.exp([1.0, 3.0]))


class OnAnotherDevice:
    """An array on a graphics card, as CuPy's."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("implicit conversion to a NumPy array is not allowed; use x.get()")


def test_what_is_not_an_array_of_numbers():
    """A TypeError, before anything is written."""
    sparse, pd = pytest.importorskip("scipy.sparse"), pytest.importorskip("pandas")
    out = np.full((2, 2), 7.0)
    for wrong in (
        OnAnotherDevice(),
        sparse.csr_array(np.eye(2)),
        sparse.coo_matrix(np.eye(2)),
        np.array([["a", "b"]]),
        ["a", "b"],
        pd.Series(["a", "b"]).to_numpy(),
        pd.Series([1, pd.NA], dtype=object).to_numpy(),
    ):
        for call in (fs.exp, fs.expit, lambda x, **out: fs.logaddexp(x, 1.0, **out)):
            for options in ({}, {"out": out}):
                with pytest.raises(TypeError, match=r"not supported for the input types|use x.get\(\)"):
                    call(wrong, **options)
    assert (out == 7).all()
    column = fs.exp(pd.Series([0.0, None], dtype="Float64"))  # pandas calls the ufunc for what is there
    assert column.iloc[0] == 1
    assert column.isna().tolist() == [False, True]


def test_a_stand_in_where_numpy_gives_no_ufunc(monkeypatch):
    def gone():
        raise AttributeError("_UFUNC_API")

    monkeypatch.setattr(ufuncs, "_interface", gone)
    monkeypatch.setattr(ufuncs, "_made", {})
    x = np.linspace(-2, 2, 30).reshape(5, 6)
    for name, args in (("exp", (x,)), ("logaddexp", (x, x[0]))):
        plain, real = ufuncs.make(name), ufunc(name)
        assert isinstance(plain, ufuncs.Plain)
        assert "in the place of a ufunc" in repr(plain)
        assert plain(*args).tolist() == real(*args).tolist()
        assert plain(*args[:1] * plain.nin, dtype="f").dtype == np.float32
        assert plain(*[1.5] * plain.nin) == real(*[1.5] * plain.nin)
        assert plain(*[np.float16(1.5)] * plain.nin).dtype == np.float16
        out, mask = np.zeros((5, 6)), x > 0
        assert plain(*args, out=out, where=mask) is out
        assert out.tolist() == np.where(mask, real(*args), 0).tolist()
        with pytest.raises(TypeError, match=f"{name}: expected {plain.nin} arguments, got 3"):
            plain(x, x, x)
        with pytest.raises(TypeError, match=f"{name}: no loop for dtype complex128"):
            plain(*[1j] * plain.nin)
        with pytest.raises(TypeError, match=f"{name}: got a masked array; pass its data, and where=~mask"):
            plain(*args[:-1], np.ma.masked_array(x, mask))


def test_without_a_compiler():
    """Under NUMBA_DISABLE_JIT the stand-in runs the bodies as plain Python."""
    code = (
        "import numpy as np, fastsoftmax as fs\n"
        "x = np.linspace(-3, 3, 37)\n"
        "print(abs(fs.exp(x) / np.exp(x) - 1).max() < 1e-15)\n"
        "print(abs(fs.logaddexp(x, 0) - np.logaddexp(x, 0)).max() < 1e-15)\n"
        "print(type(fs.exp).__name__)\n"
    )
    assert child.run(code, NUMBA_DISABLE_JIT=1).split() == ["True", "True", "Plain"]
