"""exp, log and log1p of the kernels: their error bounds over the whole range, and their machine code.

All functions use these three, so that an error here affects all of them.
"""

import ast
import inspect
import re
from fractions import Fraction

import mpmath as mp
import numpy as np
import oracle
import pytest
from assembly import LEVELS, assembly, calls, multiplications, variant_of
from numba import njit

from fastsoftmax.kernels import elementary
from fastsoftmax.kernels.elementary import (
    INF,
    LOG2_E,
    NAN,
    _log_terms,
    biased,
    exp_scaled,
    two_sum,
)
from fastsoftmax.kernels.jit import inline
from fastsoftmax.kernels.simd.memory import lane_count, load, load_part, memory, store, store_part
from fastsoftmax.kernels.simd.values import (
    is_single,
    nearest,
    number,
    select_equal,
    select_less,
    shift_to_exponent,
    split_exponent,
)
from fastsoftmax.machine.entry import Floats
from fastsoftmax.machine.frontend import OPTIONS

DTYPES = (np.float32, np.float64)
# The proven bounds of the table in `elementary`, which `test_the_documented_bounds` compares with it.
BOUNDS = {"exp": 1.1, "log": 1.5, "log1p": 1.6}
ORACLES = {"exp": mp.exp, "log": mp.log, "log1p": mp.log1p}
WIDE = {"exp": np.exp, "log": np.log, "log1p": np.log1p}


# The functions as sums and products of the building blocks, over their whole range.


@inline
def exp(x):
    """The exponential function, over the whole range: overflow to inf, gradual underflow to 0, nan to nan.

    As `exp_scaled`, but the power of two is applied in two halves, so that a denormal result is rounded
    once, from a value within 1.1 ulp.
    """
    low = number(x, -105.0) if is_single(x) else number(x, -746.0)
    high = number(x, 89.0) if is_single(x) else number(x, 710.0)
    t = select_less(x, low, low, select_less(high, x, high, x))
    n = nearest(t * number(x, LOG2_E))
    half = nearest(n * number(x, 0.5))
    zero = number(x, 0.0)
    e = exp_scaled(t, number(x, -0.0), biased(x, n))
    return (e * shift_to_exponent(biased(x, zero) + half)) * shift_to_exponent(biased(x, zero) + (n - half))


@inline
def log(x):
    """The natural logarithm: log(0) = -inf, log(inf) = inf, nan for negative x and nan."""
    tiny = number(x, 1.1754943508222875e-38) if is_single(x) else number(x, 2.2250738585072014e-308)
    lift = number(x, 16777216.0) if is_single(x) else number(x, 18014398509481984.0)
    lifted = number(x, 24.0) if is_single(x) else number(x, 54.0)
    zero = number(x, 0.0)
    k, m = split_exponent(select_less(x, tiny, x * lift, x))
    a, f, c = _log_terms(k - select_less(x, tiny, lifted, zero), m, zero)
    value = a - (c - f)
    value = select_equal(x, number(x, INF), x, value)
    value = select_less(x, zero, number(x, NAN), value)
    value = select_equal(x, zero, number(x, -INF), value)
    return select_equal(x, x, value, x)


@inline
def log1p(x):
    """``log(1 + x)``, accurate where x is small: the rounding error of 1 + x corrects its logarithm."""
    total, error = two_sum(number(x, 1.0), x)
    k, m = split_exponent(total)
    a, f, c = _log_terms(k, m, error / total)
    value = a - (c - f)
    value = select_equal(x, number(x, INF), x, value)
    value = select_less(x, number(x, -1.0), number(x, NAN), value)
    value = select_equal(x, number(x, -1.0), number(x, -INF), value)
    value = select_equal(x, number(x, 0.0), x, value)
    return select_equal(x, x, value, x)


def vector_form(function):
    """A loop that applies a building block to whole vectors, the last one masked."""

    @njit(**OPTIONS)
    def apply(source: Floats, target: Floats) -> None:
        x, y, size = memory(source), memory(target), source.size
        step = lane_count(x)
        full = size // step * step
        for k in range(0, full, step):
            store(y, k, function(load(x, k)))
        if full < size:
            store_part(y, full, size - full, function(load_part(x, full, size - full, number(x, 0.5))))

    return apply


def scalar_form(function):
    """A user's loop over floats with the same building block in it."""

    @njit
    def apply(x, y):
        for k in range(x.size):
            y[k] = function(x[k])

    return apply


FUNCTIONS = {"exp": exp, "log": log, "log1p": log1p}
FORMS = {
    (name, form): build(FUNCTIONS[name])
    for name in BOUNDS
    for form, build in (("vector", vector_form), ("scalar", scalar_form))
}


def evaluate(name, form, x):
    y = np.full_like(x, 123.0)
    FORMS[name, form](x, y)
    return y


def neighbours(centres, dtype, count=8):
    """The numbers of a dtype next to some real numbers, on both sides."""
    bits = np.int32 if dtype == np.float32 else np.int64
    centres = np.asarray(centres, np.float64).astype(dtype)
    steps = np.arange(-count, count + 1, dtype=bits)
    return (centres.view(bits)[:, None] + steps).ravel().view(dtype)


def every_magnitude(dtype, count, rng):
    """Positive numbers of all binades, denormal ones included."""
    bits = np.uint32 if dtype == np.float32 else np.uint64
    top = np.array(np.inf, dtype).view(bits)
    return rng.integers(1, top, count, dtype=bits).view(dtype)


def arguments(name, dtype, count=7000):
    """Finite arguments inside the domain: random ones at every scale, and all the edges."""
    rng = np.random.default_rng(20)
    info = np.finfo(dtype)
    scales = every_magnitude(dtype, count, rng)
    edges = [scales, neighbours([info.tiny, info.smallest_subnormal * 9, 1.0, info.max], dtype)]
    if name == "exp":
        low, high = np.log(float(info.smallest_subnormal)), np.log(float(info.max))
        edges += [-scales, rng.uniform(1.02 * low, 1.02 * high, 2 * count), rng.uniform(-1, 1, count)]
        edges += [neighbours([low, np.log(float(info.tiny)), high, np.log(0.5), np.log(2.0)], dtype, 40)]
        # where n = round(x log2 e) changes, the reduced argument is largest
        edges += [neighbours((np.arange(np.ceil(low), high) + 0.5) * np.log(2.0), dtype, 1)]
    elif name == "log":
        edges += [neighbours(2.0 ** np.arange(-60, 60) * np.sqrt(0.5), dtype, 2)]
        edges += [neighbours([1.0], dtype, 500), rng.uniform(0.5, 2.0, 2 * count)]
    else:
        small = scales[scales < 1]
        edges += [-small, rng.uniform(-1, 3, count), neighbours([np.sqrt(0.5) - 1, np.sqrt(2) - 1], dtype, 50)]
        edges += [neighbours([-1.0], dtype, 400), neighbours(2.0 ** np.arange(-60, 60) - 1, dtype, 1)]
        edges += [rng.uniform(-1, 1, count) * 2.0 ** rng.uniform(-60, 0, count)]
    x = np.concatenate([edge.astype(dtype) for edge in edges])
    inside = {"exp": np.isfinite(x), "log": x > 0, "log1p": x > -1}[name]
    return x[inside & np.isfinite(x)]


@pytest.fixture(scope="module")
def exact_values():
    """mpmath's values at `arguments`, computed once for the vector and the scalar form."""
    known = {}

    def values(name, dtype):
        if (name, dtype) not in known:
            x = arguments(name, dtype)
            known[name, dtype] = x, np.array([ORACLES[name](v) for v in oracle.exact(x)], object)
        return known[name, dtype]

    return values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["vector", "scalar"])
@pytest.mark.parametrize("name", BOUNDS)
def test_error_against_mpmath(name, form, dtype, exact_values, record):
    x, reference = exact_values(name, dtype)
    assert len(x) > 20000
    ulps, (place,) = oracle.worst(evaluate(name, form, x), reference)
    record(f"kernel {name} ({form})", dtype, ulps, BOUNDS[name], f"at {x[place]!r} = {float(x[place]).hex()}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormal_exponentials_are_within_one_denormal(dtype, exact_values):
    """Denormal results, for which there is no bound in ulps."""
    x, reference = exact_values("exp", dtype)
    small = np.array([value < float(np.finfo(dtype).tiny) for value in reference])
    least = float(np.finfo(dtype).smallest_subnormal)
    actual = evaluate("exp", "vector", x[small])
    error = [abs(mp.mpf(float(a)) - r) / least for a, r in zip(actual, reference[small], strict=True)]
    assert len(error) > 100
    assert max(error) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["vector", "scalar"])
def test_special_values(form, dtype):
    """Infinities, NaN, signed zeros and arguments outside the domain, as C has them."""
    inf, nan = np.inf, np.nan
    huge, least = np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal
    table = {
        "exp": [(inf, inf), (-inf, 0), (nan, nan), (0.0, 1), (-0.0, 1), (huge, inf), (-huge, 0), (least, 1)],
        "log": [(inf, inf), (-inf, nan), (nan, nan), (0.0, -inf), (-0.0, -inf), (1, 0), (-1, nan), (-least, nan)],
        "log1p": [(inf, inf), (-inf, nan), (nan, nan), (0.0, 0.0), (-0.0, -0.0), (-1, -inf), (-2, nan)],
    }
    table["log1p"] += [(least, least), (-least, -least), (-huge, nan)]
    for name, pairs in table.items():
        x, expected = np.array(pairs, dtype).T.copy()
        actual = evaluate(name, form, x)
        np.testing.assert_array_equal(actual, expected, err_msg=name)
        np.testing.assert_array_equal(np.signbit(actual[expected == 0]), np.signbit(expected[expected == 0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BOUNDS)
def test_special_values_do_not_spread_to_other_lanes(name, dtype):
    """A vector holds 16 rows. A special value in one of them must not affect the others."""
    x = np.linspace(0.1, 3.0, 64, dtype=dtype)
    plain = evaluate(name, "vector", x)
    for special in (np.nan, np.inf, -np.inf, 0.0, -5.0, np.finfo(dtype).smallest_subnormal):
        for lane in range(0, 64, 7):
            mixed = x.copy()
            mixed[lane] = special
            actual = np.delete(evaluate(name, "vector", mixed), lane)
            np.testing.assert_array_equal(actual, np.delete(plain, lane))


def sweep(name, form, x, record):
    """Compare with NumPy in the next wider dtype, which is accurate to a thousandth of our ulp."""
    with np.errstate(all="ignore"):
        reference = WIDE[name](x.astype(oracle.WIDER[x.dtype]))
    error = oracle.wide_error(evaluate(name, form, x), reference)
    place = int(np.argmax(error))
    record(f"kernel {name} ({form})", x.dtype, error[place], BOUNDS[name], f"at {float(x[place]).hex()}")


@pytest.mark.parametrize("form", ["vector", "scalar"])
@pytest.mark.parametrize("name", BOUNDS)
def test_every_thousandth_float32(name, form, record):
    """All of float32, NaNs and negative numbers too, in steps of a prime number of bit patterns."""
    sweep(name, form, np.arange(0, 2**32, 1009, dtype=np.uint64).astype(np.uint32).view(np.float32), record)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
def test_every_float32(name, record):
    """The bound holds for every float32."""
    for start in range(0, 2**32, 2**24):
        x = np.arange(start, start + 2**24, dtype=np.uint64).astype(np.uint32).view(np.float32)
        sweep(name, "vector", x, record)


@pytest.mark.skipif(not oracle.has_wider(np.float64), reason="longdouble is no wider than float64 here")
@pytest.mark.parametrize("name", BOUNDS)
def test_many_float64(name, record):
    """A million random float64 where the error is largest, against longdouble."""
    rng = np.random.default_rng(21)
    low, high = {"exp": (-746.0, 710.0), "log": (0.4, 2.5), "log1p": (-0.6, 1.5)}[name]
    sweep(name, "vector", rng.uniform(low, high, 1_000_000), record)


# --- double-word arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_sum_and_two_product_are_exact(dtype):
    """The identities that everything compensated stands on: a + b = s + e and a b = p + e, exactly."""

    @njit
    def both(a, b):
        return elementary.two_sum(a, b), elementary.two_product(a, b)

    rng = np.random.default_rng(2)
    for _ in range(500):
        a, b = (dtype(rng.normal() * 2.0 ** rng.integers(-20, 20)) for _ in range(2))
        (total, error), (product, rest) = both(a, b)
        exact_a, exact_b = Fraction(float(a)), Fraction(float(b))
        assert Fraction(float(total)) + Fraction(float(error)) == exact_a + exact_b
        assert Fraction(float(product)) + Fraction(float(rest)) == exact_a * exact_b
        assert total == a + b
        assert product == a * b


@pytest.mark.parametrize("dtype", DTYPES)
def test_quotients_of_pairs(dtype):
    """Twice the digits of the dtype, less two bits or so."""

    @njit
    def divide(a, a_low, b, b_low):
        return elementary.quotient(a, a_low, b, b_low)

    rng = np.random.default_rng(3)
    unit = Fraction(float(np.finfo(dtype).eps)) / 2
    for _ in range(500):
        a, b = dtype(rng.uniform(0.1, 10)), dtype(rng.uniform(0.1, 10))
        a_low, b_low = (dtype(n * float(unit) * rng.uniform(-1, 1)) for n in (a, b))
        high, low = divide(a, a_low, b, b_low)
        exact = (Fraction(float(a)) + Fraction(float(a_low))) / (Fraction(float(b)) + Fraction(float(b_low)))
        error = abs(Fraction(float(high)) + Fraction(float(low)) - exact) / exact
        assert error <= 8 * unit**2


# --- what the source says about itself -----------------------------------------------------------------------


def coefficients(function, dtype):
    """The coefficients of the polynomial of a building block, highest power first, from its source."""
    tree = ast.parse(inspect.getsource(function.py_func))
    (choice,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Call) and node.test.func.id == "is_single"
    )
    branch = choice.body if dtype == np.float32 else choice.orelse
    found = []
    for statement in branch:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == "p":
            found += [
                node.args[1].value
                for node in ast.walk(statement.value)
                if isinstance(node, ast.Call) and node.func.id == "number"
            ]
    if isinstance(branch[0], ast.Assign) and len(found) > 1:  # the first statement holds the first two
        return [mp.mpf(float(dtype(value))) for value in found]
    raise AssertionError("no polynomial found")


def exp_approximation_error(dtype):
    """The worst relative error of 1 + r + r**2 P(r) on |r| <= ln(2)/2, with exact arithmetic."""
    p = coefficients(elementary._square_sum, dtype)
    worst = mp.mpf(0)
    for r in mp.linspace(-mp.log(2) / 2, mp.log(2) / 2, 4001):
        worst = max(worst, abs((1 + r + r * r * mp.polyval(p, r)) / mp.exp(r) - 1))
    return worst


def log_approximation_error(dtype):
    """The worst relative error of f - (f**2/2 - s (f**2/2 + z p(z))) for 1 + f in [sqrt(1/2), sqrt(2))."""
    p = coefficients(elementary._log_terms, dtype)
    worst = mp.mpf(0)
    for m in mp.linspace(mp.sqrt(0.5), mp.sqrt(2), 4000):
        f = m - 1
        s = f / (2 + f)
        value = f - (f * f / 2 - s * (f * f / 2 + s * s * mp.polyval(p, s * s)))
        worst = max(worst, abs(value / mp.log(m) - 1))
    return worst


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "error"), [("exp", exp_approximation_error), ("log", log_approximation_error)])
def test_the_documented_approximation_errors(name, error, dtype):
    """This finds a wrong digit in a coefficient, even if the ulp bounds still hold."""
    unit = float(np.finfo(dtype).eps) / 2
    documentation = " ".join(elementary.__doc__.split())
    claims = {
        f"{function}, {kind}": float(value)
        for value, function, kind in re.findall(r"([\d.]+) u \((\w+), (\w+)\)", documentation)
    }
    measured = float(error(dtype)) / unit
    assert measured == pytest.approx(claims[f"{name}, {np.dtype(dtype).name}"], abs=0.0011)


def test_the_documented_bounds():
    """The table in the module has the bounds that are tested here."""
    blocks = {"exp": "exp_scaled", "log": "_log_terms", "log1p": "_log_terms"}
    for name, bound in BOUNDS.items():
        assert re.search(rf"^`{blocks[name]}`\s+{bound} ulp", elementary.__doc__, re.MULTILINE), name


# --- machine code --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BOUNDS)
def test_vector_code(name, dtype, level):
    """The machine code of the building blocks is vectorised and has no calls."""
    code = assembly(variant_of(FORMS[name, "vector"].py_func, dtype), level)
    packed, single = multiplications(code, dtype, level)
    assert packed > single, "no packed arithmetic"
    assert re.search(LEVELS[level].vector, code)
    assert not calls(code)
