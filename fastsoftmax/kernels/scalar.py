r"""Elementary functions of one or two numbers, for floats and for vectors of them, with their error bounds.

These are the bodies of the ufuncs. A user's own compiled loop calls them, too. They have no branch, no table and
no call, so that LLVM vectorises the loop around them.

u is the unit roundoff: 2**-24 in float32, 2**-53 in float64; one ulp of a result in [1, 2) is 2u. A relative error
of e u is at most e ulp, and one of the last rounding is 0.5 ulp. Bounds hold for normal results, and for results
below the smallest normal number within one of the smallest denormal. They are derived in the docstrings below, for
machines with and without fused multiply-add, and measured against mpmath in ``tests/api/test_ufuncs.py``.

============ ============ =========== ====================================================================
function     proven bound measured    remarks
============ ============ =========== ====================================================================
`exp`        1.1 ulp      0.97, 0.92
`expm1`      1.6 ulp      0.94, 0.81
`log`        1.5 ulp      0.77, 0.86
`log1p`      1.6 ulp      0.88, 0.83
`expit`      1.2 ulp      0.72, 0.55
`logit`      1.7 ulp      0.81, 0.70
`log_expit`  1.9 ulp      1.01, 1.03
`softplus`   1.9 ulp      0.99, 0.79
`logaddexp`  1.9 ulp      0.95, 1.03  where its two terms do not cancel, else an absolute error of 2 u
`xlogy`      1.6 ulp      0.56, 0.59
`entr`       1.6 ulp      0.94, 0.94
`rel_entr`   1.7 ulp      0.73, 0.75
`tanh`       1.9 ulp      1.00, 0.78
============ ============ =========== ====================================================================

References
----------
J.-M. Muller et al., Handbook of Floating-Point Arithmetic, 2nd ed., 2018, doi:10.1007/978-3-319-76526-6
(TwoSum: section 4.3; argument reduction: section 10.2).
"""

from typing import Any, NamedTuple

from fastsoftmax.kernels.elementary import (
    INF,
    LN2_HIGH_32,
    LN2_HIGH_64,
    LN2_LOW_32,
    LN2_LOW_64,
    LOG2_E,
    MAGIC_32,
    MAGIC_64,
    NAN,
    _square_sum,
    most_power,
    quotient,
    two_product,
    two_sum,
)
from fastsoftmax.kernels.jit import inline
from fastsoftmax.kernels.simd.values import (
    absolute,
    is_single,
    maximum,
    muladd,
    number,
    select_equal,
    select_less,
    shift_to_exponent,
    split_exponent,
    unless_none,
)

FAR = -60.0
"""Below 2**FAR, 1 + e is 1 and log(1 + e) is e, in every dtype."""

__all__ = [
    "entr",
    "exp",
    "expit",
    "expm1",
    "log",
    "log1p",
    "log_expit",
    "logaddexp",
    "logit",
    "rel_entr",
    "softplus",
    "tanh",
    "xlogy",
]


@inline
def _reduce(t: Any) -> Any:
    """The whole number n nearest to t log2(e), and t - n (the high part of ln 2), which is exact."""
    magic = number(t, MAGIC_32) if is_single(t) else number(t, MAGIC_64)
    n = muladd(t, number(t, LOG2_E), magic) - magic
    high = number(t, -LN2_HIGH_32) if is_single(t) else number(t, -LN2_HIGH_64)
    return n, muladd(n, high, t)


@inline
def _low_ln2(t: Any, sign: float) -> Any:
    """The low part of ln 2, with this sign."""
    return number(t, sign * LN2_LOW_32) if is_single(t) else number(t, sign * LN2_LOW_64)


@inline
def _bias(like: Any) -> Any:
    """The constant for which ``shift_to_exponent(k + constant)`` is 2**k for a whole number k."""
    return number(like, MAGIC_32 + 127.0) if is_single(like) else number(like, MAGIC_64 + 1023.0)


@inline
def _halves(n: Any) -> Any:
    """Two powers of two whose product is 2**n, for -150 <= n <= 128 (-1076, 1024): each is a normal number."""
    magic = _bias(n)
    first = muladd(n, number(n, 0.5), magic)
    return shift_to_exponent(first), shift_to_exponent((n - (first - magic)) + magic)


@inline
def _exp_parts(t: Any, tail: Any) -> Any:
    """``exp(t + tail)`` as (n, factor, factor_low): 2**n times a pair in [0.7, 1.42], to 0.2 u.

    As in `elementary.exp_pair`, the pair contains all rounding errors except those of r**2 P(r).
    """
    n, exact = _reduce(t)
    exact = exact + tail
    r = muladd(n, _low_ln2(t, -1.0), exact)
    r_low = muladd(n, _low_ln2(t, -1.0), exact - r)
    bracket, error = two_sum(r, _square_sum(r) * r)
    factor, rest = two_sum(number(t, 1.0), bracket)
    return n, factor, rest + (error + muladd(r_low, r, r_low))


@inline
def _least(x: Any) -> Any:
    """A number below which exp is 0."""
    return number(x, -105.0) if is_single(x) else number(x, -746.0)


@inline
def greatest(x: Any) -> Any:
    """The greatest number whose exp is finite."""
    return number(x, 88.72283172607422) if is_single(x) else number(x, 709.782712893384)


@inline
def _log_sum(z: Any) -> Any:
    """R(z)/z: log(1 + f) = 2 s + s R(s**2) for s = f/(2 + f); coefficients as in `elementary._log_terms`."""
    if is_single(z):
        p = muladd(number(z, 0.29873073233821793495), z, number(z, 0.3997749558082199234))
        p = muladd(p, z, number(z, 0.66666776717042066146))
    else:
        p = muladd(number(z, 0.14797507887340615643), z, number(z, 0.15313903225620146528))
        p = muladd(p, z, number(z, 0.18183569740789435073))
        p = muladd(p, z, number(z, 0.22222198475963329378))
        p = muladd(p, z, number(z, 0.28571428743262956088))
        p = muladd(p, z, number(z, 0.39999999999411090767))
        p = muladd(p, z, number(z, 0.66666666666667348959))
    return p


@inline
def _log_parts(k: Any, m: Any, low: Any) -> Any:
    r"""f and c of ``log(2**k (m + low)) = k ln2 + (f - c)``, where ln2 is its high part; low is None or a few u.

    f = m - 1 is exact, s = f/(2 + f), log(1 + f) = f - s (f - R(s**2)), with R from `elementary._log_terms`.
    low is multiplied by the derivative 1/(1 + f), which 1 - f + f**2 approximates within 0.05. That is enough:
    where f is not small, low is only a few u of the result; where f is small, the error is f**3.
    """
    f = m - number(m, 1.0)
    s = f / (number(m, 2.0) + f)
    z = s * s
    rest = k * _low_ln2(m, -1.0)
    if low is not None:
        rest = muladd(-low, muladd(f, f - number(m, 1.0), number(m, 1.0)), rest)
    return f, muladd(s, muladd(-z, _log_sum(z), f), rest)


@inline
def _times_ln2(k: Any, rest: Any) -> Any:
    """``k ln2 + rest`` with the high part of ln2, of which the product with k is exact."""
    return muladd(k, number(k, LN2_HIGH_32) if is_single(k) else number(k, LN2_HIGH_64), rest)


@inline
def _log_pair(x: Any, x_low: Any, k_extra: Any) -> Any:
    """``log(x + x_low) + k_extra ln2`` as a pair, to 1.1 u. x is normal, positive and finite.

    x_low is None or a few u of x; unless it is None, x must be below 2**60.
    """
    k, m = split_exponent(x)
    low = unless_none(x_low, x_low)
    if x_low is not None:
        low = x_low * shift_to_exponent(_bias(x) - k)
    f, c = _log_parts(k + k_extra, m, low)
    high, error = two_sum(f, -c)
    high, rest = two_sum(_times_ln2(k + k_extra, number(x, 0.0)), high)
    return high, error + rest


@inline
def _normal(x: Any) -> Any:
    """``x`` and 0; where x is below the smallest normal number, x 2**k and -k."""
    tiny = number(x, 1.1754943508222875e-38) if is_single(x) else number(x, 2.2250738585072014e-308)
    lift = number(x, 16777216.0) if is_single(x) else number(x, 18014398509481984.0)
    k = number(x, -24.0) if is_single(x) else number(x, -54.0)
    return select_less(x, tiny, x * lift, x), select_less(x, tiny, k, number(x, 0.0))


@inline
def _times(x: Any, high: Any, low: Any) -> Any:
    """``x * (high + low)``, rounded once unless it overflows."""
    product, error = two_product(x, high)
    rest = muladd(x, low, error)
    value = select_equal(rest, number(x, 0.0), product, product + rest)  # keeps the sign of a zero
    return select_less(absolute(product), number(x, INF), value, product)


@inline
def exp(x: Any) -> Any:
    """The exponential function: overflow to inf, gradual underflow to 0, nan to nan.

    Error: r rounds at |r| < 0.35 by u/4, the bracket r + r**2 P(r) < 0.42 by 0.35 u, the last addition by 1/2 ulp;
    with a factor of at least 0.7, where one ulp is u, 1.1 ulp as in `elementary.exp_parts`. The scaling is exact:
    twice the factor times 2**(n - 1). For small x, where that power would not be normal, n is raised by `lift`,
    and the last product, by `lower`, takes the lift back and rounds once.
    """
    small = number(x, -86.0) if is_single(x) else number(x, -707.0)
    lift = number(x, 40.0) if is_single(x) else number(x, 100.0)
    lower = number(x, 2.0**-40) if is_single(x) else number(x, 2.0**-100)
    one, two, zero = number(x, 1.0), number(x, 2.0), number(x, 0.0)
    bias = select_less(x, small, (_bias(x) - one) + lift, _bias(x) - one)
    q = muladd(x, number(x, LOG2_E), bias)
    n = q - bias
    high = number(x, -LN2_HIGH_32) if is_single(x) else number(x, -LN2_HIGH_64)
    r = muladd(n, _low_ln2(x, -1.0), muladd(n, high, x))
    factor = muladd(muladd(_square_sum(r), r, r), two, two)
    value = (factor * shift_to_exponent(q)) * select_less(x, small, lower, one)
    return select_less(greatest(x), x, number(x, INF), select_less(x, _least(x), zero, value))


@inline
def expm1(x: Any) -> Any:
    """``exp(x) - 1``, accurate where x is small.

    It is 2 (S - 1/2 + S (r + r**2 P(r))) with S = 2**(n - 1). S - 1/2, exact below n = 25 (54) and rounded by u/2
    above, and the smaller S r are added exactly, as a pair. The other terms are below 0.2 of the sum, with a
    relative error below 2.5 u: 0.5 ulp for the last rounding, 0.5 for these terms, 0.5 for S - 1/2.
    """
    low = number(x, -18.0) if is_single(x) else number(x, -38.0)  # the result is -1 below
    t = maximum(low, x)
    bias = _bias(x) - number(x, 1.0)
    q = muladd(t, number(x, LOG2_E), bias)
    n = q - bias
    high = number(x, -LN2_HIGH_32) if is_single(x) else number(x, -LN2_HIGH_64)
    exact = muladd(n, high, t)
    r = muladd(n, _low_ln2(x, -1.0), exact)
    r_low = muladd(n, _low_ln2(x, -1.0), exact - r)
    scale = shift_to_exponent(q)
    most = scale - number(x, 0.5)
    product = scale * r
    total = most + product
    error = product - (total - most)
    value = total + muladd(scale, muladd(_square_sum(r), r, r_low), error)
    value = select_less(greatest(x), x, number(x, INF), value + value)
    return select_less(absolute(x), number(x, 2.0**-60), x, value)


@inline
def log(x: Any) -> Any:
    """The natural logarithm: log(0) = -inf, log(inf) = inf, nan for negative x.

    Error: that of `elementary._log_terms`, 1.5 ulp.
    """
    zero = number(x, 0.0)
    lifted, k_extra = _normal(x)
    k, m = split_exponent(lifted)
    k = k + k_extra
    f, c = _log_parts(k, m, None)
    value = select_less(x, number(x, INF), _times_ln2(k, f - c), x)
    value = select_less(x, zero, number(x, NAN), value)
    return select_equal(x, zero, number(x, -INF), value)


@inline
def log1p(x: Any) -> Any:
    """``log(1 + x)``, accurate where x is small: the rounding error of 1 + x corrects its logarithm.

    Error: that of `elementary._log_terms` with a correction, 1.6 ulp.
    """
    one = number(x, 1.0)
    total, error = two_sum(one, x)
    k, m = split_exponent(total)
    most = number(x, 100.0)  # above 2**100 the 1 does not change the result
    low = error * shift_to_exponent(_bias(x) - select_less(k, most, k, most))
    f, c = _log_parts(k, m, low)
    value = select_less(x, number(x, INF), _times_ln2(k, f - c), x)
    value = select_less(absolute(x), number(x, 2.0**-60), x, value)
    value = select_less(x, -one, number(x, NAN), value)
    return select_equal(x, -one, number(x, -INF), value)


@inline
def expit(x: Any) -> Any:
    """The logistic function 1 / (1 + exp(-x)).

    With e = exp(-abs(x)) as a pair to 0.2 u, it is 1/(1 + e) or e/(1 + e), both by `quotient`. The only errors are
    those of e (0.2 u, twice) and of the last rounding (0.5 ulp). The power of two in e is applied last, as two
    factors (`_halves`).
    """
    low, zero, one = _least(x), number(x, 0.0), number(x, 1.0)
    t = -absolute(x)
    n, factor, factor_low = _exp_parts(select_less(t, low, low, t), number(x, -0.0))
    scale = shift_to_exponent(maximum(n, number(x, -60.0)) + _bias(x))  # smaller e do not change 1 + e
    total, error = two_sum(one, factor * scale)
    negative = select_less(x, zero, factor, one)
    negative_low = select_less(x, zero, factor_low, zero)
    ratio, ratio_low = quotient(negative, negative_low, total, muladd(factor_low, scale, error))
    first, second = _halves(select_less(x, zero, select_less(x, low, zero, n), zero))
    return select_less(x, low, zero, ((ratio + ratio_low) * first) * second)


@inline
def logit(p: Any) -> Any:
    """log(p / (1 - p)): -inf for 0, inf for 1, nan outside of [0, 1].

    1 - p and the quotient are pairs to 2 u**2, so that the relative error is small around p = 1/2, too, where the
    result is 0: the error is that of the logarithm, 1.1 u, and a rounding.
    """
    zero, one = number(p, 0.0), number(p, 1.0)
    rest, rest_low = two_sum(one, -p)
    lifted, k = _normal(p)
    ratio, ratio_low = quotient(lifted, zero, rest, rest_low)
    high, low = _log_pair(ratio, ratio_low, k)
    value = high + low
    value = select_less(zero, p, select_less(p, one, value, number(p, NAN)), number(p, NAN))
    value = select_equal(p, zero, number(p, -INF), value)
    return select_equal(p, one, number(p, INF), value)


@inline
def _log1p_exp(t: Any, tail: Any) -> Any:
    """``log(1 + exp(t + tail))`` of t <= 0 as a pair, to 1.4 u."""
    low, zero = _least(t), number(t, 0.0)
    n, factor, factor_low = _exp_parts(select_less(t, low, zero, t), tail)
    # Where the second number could be denormal, 1 + e does not need it.
    tiny = number(t, -90.0) if is_single(t) else number(t, -900.0)
    factor_low = select_less(n, tiny, zero, factor_low)
    first, second = _halves(n)
    e = select_less(t, low, zero, (factor * first) * second)
    e_low = select_less(t, low, zero, (factor_low * first) * second)
    total, error = two_sum(number(t, 1.0), e)
    return _log_pair(total, error + e_low, zero)


@inline
def softplus(x: Any) -> Any:
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-abs(x))).

    Both terms are >= 0 and are added as pairs: the error is 1.4 u of the logarithm and a rounding.
    """
    zero = number(x, 0.0)
    high, low = _log1p_exp(-absolute(x), number(x, -0.0))
    total, error = two_sum(select_less(zero, x, x, zero), high)
    value = select_equal(x, number(x, INF), x, total + (error + low))
    return select_equal(x, x, value, x)


@inline
def log_expit(x: Any) -> Any:
    """log(1 / (1 + exp(-x))) = -softplus(-x), with the same error."""
    return -softplus(-x)


@inline
def logaddexp(x: Any, y: Any) -> Any:
    """log(exp(x) + exp(y)) = max(x, y) + log(1 + exp(-abs(x - y))).

    The difference is a pair, so that exp does not magnify its rounding. The error is 1.4 u of the logarithm and a
    rounding where the two terms have one sign or one of them is at least twice the other. Where they cancel,
    around max(x, y) = -log(2), the absolute error is at most 1.4 u log(2) and a rounding.
    """
    zero = number(x, 0.0)
    larger = select_less(x, y, y, x)
    smaller = select_less(x, y, x, y)
    difference, tail = two_sum(smaller, -larger)
    high, rest = _log1p_exp(difference, select_less(difference, _least(x), zero, tail))
    total, error = two_sum(larger, high)
    value = total + (error + rest)
    # The difference of infinities is nan. There the result is the larger one, unless an argument is nan.
    value = select_equal(absolute(larger), number(x, INF), larger, value)
    value = select_equal(smaller, number(x, -INF), larger + zero, value)
    return select_equal(x, x, select_equal(y, y, value, y), x)


@inline
def xlogy(x: Any, y: Any) -> Any:
    """x log(y), and 0 for x = 0 unless y is nan.

    The logarithm is a pair to 1.1 u, and it is not rounded before the product.
    """
    zero = number(x, 0.0)
    lifted, k = _normal(y)
    high, low = _log_pair(lifted, None, k)
    value = _times(x, high, low)
    value = select_equal(y, number(x, INF), x * y, value)
    value = select_less(zero, y, value, select_equal(y, zero, x * number(x, -INF), number(x, NAN)))
    value = select_equal(x, zero, zero, value)
    return select_equal(y, y, value, y)


@inline
def entr(x: Any) -> Any:
    """-x log(x): 0 for 0, -inf for negative x."""
    zero = number(x, 0.0)
    return select_less(x, zero, number(x, -INF), select_equal(x, zero, zero, -xlogy(x, x)))


@inline
def rel_entr(x: Any, y: Any) -> Any:
    """x log(x / y) of positive x and y, 0 for x = 0 and y >= 0, else inf.

    Mantissas are divided as pairs, exponents are subtracted: no quotient overflows, and where x is close to y, the
    result has a small relative error. The error is that of `logit` and of a product.
    """
    zero, infinity = number(x, 0.0), number(x, INF)
    x_lifted, x_extra = _normal(x)
    y_lifted, y_extra = _normal(y)
    x_k, x_m = split_exponent(x_lifted)
    y_k, y_m = split_exponent(y_lifted)
    ratio, ratio_low = quotient(x_m, zero, y_m, zero)
    high, low = _log_pair(ratio, ratio_low, (x_k - y_k) + (x_extra - y_extra))
    value = _times(x, high, low)
    value = select_equal(x, infinity, select_equal(y, infinity, number(x, NAN), infinity), value)
    value = select_less(x, infinity, select_equal(y, infinity, -infinity, value), value)
    value = select_less(zero, x, select_less(zero, y, value, infinity), infinity)
    value = select_equal(x, zero, select_less(y, zero, infinity, zero), value)
    return select_equal(x, x, select_equal(y, y, value, y), x)


class Logistic(NamedTuple):
    """What functions of the logit z need of e = exp(-abs(z)); see `logistic`."""

    n: Any
    factor: Any
    """e = 2**n factor, also where that is no normal number."""
    e: Any
    """e where n >= `FAR`; below, a number that 1 + e does not change with."""
    total: Any
    """1 + e."""
    log: Any
    log_low: Any
    """log(1 + e) as a pair; where n < `FAR` it is e."""


@inline
def _deepest(x: Any) -> Any:
    """A number below which exp, times any finite number, is 0."""
    return number(x, -174.0) if is_single(x) else number(x, -1416.0)


@inline
def exp_scaled_down(t: Any, tail: Any) -> Any:
    """``exp(t + tail)`` of t <= 0 as n, a factor and its low part, for `times_power`; 0 where no product needs it.

    The pair has an error of 0.2 u. The products with all finite numbers are 0 where the factor is 0.
    """
    low, zero = _deepest(t), number(t, 0.0)
    n, factor, factor_low = _exp_parts(select_less(t, low, low, t), select_less(t, low, zero, tail))
    return n, select_less(t, low, zero, factor), select_less(t, low, zero, factor_low)


@inline
def times_power(value: Any, n: Any) -> Any:
    """``value * 2**n`` for n <= 0, rounded once unless `value` is tiny."""
    least, magic = -(most_power(value) + most_power(value)), _bias(n)
    bounded = maximum(n, least)
    half = muladd(bounded, number(n, 0.5), magic)
    rest = shift_to_exponent((bounded - (half - magic)) + magic)
    return select_less(n, least, number(value, 0.0), (value * shift_to_exponent(half)) * rest)


@inline
def logistic(z: Any) -> Logistic:
    """The parts of functions of z made of e = exp(-abs(z)): e is within 1 u, the logarithm within 1.4 u."""
    n, factor, factor_low = exp_scaled_down(-absolute(z), number(z, -0.0))
    scale = shift_to_exponent(maximum(n, number(z, FAR)) + _bias(z))
    e = factor * scale
    total, error = two_sum(number(z, 1.0), e)
    high, low = _log_pair(total, muladd(factor_low, scale, error), number(z, 0.0))
    return Logistic(n, factor, e, total, high, low)


@inline
def quick_logistic(z: Any) -> Logistic:
    """`logistic` without pairs, in two thirds of the time: e within 1.1 ulp, the logarithm within 2.7 ulp.

    The errors of the logarithm are that of e, of which it keeps the part e/((1 + e) log(1 + e)) <= 1, and the 1.6
    ulp of `log1p`.
    """
    low, zero, one = _deepest(z), number(z, 0.0), number(z, 1.0)
    t = -absolute(z)
    n, exact = _reduce(select_less(t, low, low, t))
    r = muladd(n, _low_ln2(z, -1.0), exact)
    factor = select_less(t, low, zero, muladd(_square_sum(r), r, r) + one)
    e = factor * shift_to_exponent(maximum(n, number(z, FAR)) + _bias(z))
    total = one + e
    k, m = split_exponent(total)
    f, c = _log_parts(k, m, (e - (total - one)) * shift_to_exponent(_bias(z) - k))
    return Logistic(n, factor, e, total, _times_ln2(k, f - c), zero)


@inline
def log_as_pair(x: Any, x_low: Any) -> Any:
    """``log(x + x_low)`` of a finite x > 0 as a pair, to 1.1 u; x_low is a few u of x, and 0 if x is denormal."""
    lifted, k = _normal(x)
    return _log_pair(lifted, select_equal(k, number(x, 0.0), x_low, number(x, 0.0)), k)


@inline
def power_scaled_down(high: Any, low: Any, gamma: Any) -> Any:
    """``exp(gamma (high + low))`` for high <= 0 and gamma >= 0, as n and a factor: `exp_scaled_down`.

    An absolute error of the logarithm is multiplied by gamma; the error of the power itself is 0.7 u.
    """
    edge = number(high, -1048576.0)  # no factor but 1 is left below, and infinities would make NaN
    bounded = select_less(high, edge, edge, high)
    product, error = two_product(bounded, gamma)
    n, factor, factor_low = exp_scaled_down(product, muladd(low, gamma, error))
    return n, factor + factor_low


@inline
def tanh(x: Any) -> Any:
    """The hyperbolic tangent, with the error of `tanh_of`."""
    return tanh_of(x, number(x, -0.0))


@inline
def tanh_of(x: Any, tail: Any) -> Any:
    """``tanh(x + tail)`` for a tail of a few u of x; the result is x itself below 2**-60.

    It is (1 - e)/(1 + e) with the sign of x, where e = exp(-2 abs(x)) is a pair whose error is 0.2 u of e for a
    large abs(x), and 0.2 u of 1 - e for a small one (`_exp_parts`). A relative error of 1 - e becomes one of at
    most twice its size, because 1 + e changes by as much the other way. So the error is 0.5 u and the last
    rounding; with the errors of a pair added up without TwoSum, at most 1.9 ulp.
    """
    low = number(x, -20.0) if is_single(x) else number(x, -40.0)  # the result is 1 below
    zero, size_ = number(x, 0.0), absolute(x)
    tail = select_less(x, zero, tail, -tail)
    n, factor, factor_low = _exp_parts(maximum(low, -(size_ + size_)), tail + tail)
    scale = shift_to_exponent(n + _bias(x))
    most, error = two_sum(number(x, 1.0), -(factor * scale))
    rest = muladd(-factor_low, scale, error)
    total, error = two_sum(number(x, 2.0), -most)
    ratio, ratio_low = quotient(most, rest, total, error - rest)
    value = ratio + ratio_low
    value = select_less(x, zero, -value, value)
    return select_less(size_, number(x, 2.0**-60), x, value)


@inline
def sech_squared(x: Any, tail: Any) -> Any:
    """``1 - tanh(x + tail)**2`` for a tail of a few u of x, accurate where it is small: 4 e/(1 + e)**2.

    e = exp(-2 abs(x)) within 0.7 u, the sum, its inverse and three products 0.5 ulp each: at most 4 ulp.
    """
    low, zero = _least(x), number(x, 0.0)
    size_ = absolute(x)
    tail = select_less(x, zero, tail, -tail)
    t = -(size_ + size_)
    n, factor, factor_low = _exp_parts(select_less(t, low, low, t), tail + tail)
    scale = shift_to_exponent(maximum(n, number(x, -60.0)) + _bias(x))
    inverse = number(x, 1.0) / muladd(factor, scale, number(x, 1.0))
    first, second = _halves(n + number(x, 2.0))
    value = (((factor + factor_low) * inverse) * inverse) * first * second
    return select_less(t, low, zero, value)
