r"""The parts of exp, log and log1p, for floats and for vectors of them, with their error bounds.

u is the unit roundoff: 2**-24 in float32, 2**-53 in float64; one ulp of a result in [1, 2) is 2u. The bounds
are in ulps of the result, derived below for machines with and without fused multiply-add, and measured
against mpmath in ``tests/kernels/test_elementary.py``.

=============== ============ =========== =====================================================
function        proven bound measured    remarks
=============== ============ =========== =====================================================
`exp_scaled`    1.1 ulp      1.01, 1.01  results below the smallest normal number are 0
`_log_terms`    1.5 ulp      0.81, 0.80  log(x) as their sum
`_log_terms`    1.6 ulp      0.79, 0.83  log(1 + x), corrected by the rounding error of 1 + x
=============== ============ =========== =====================================================

The polynomials are minimax fits (Remez, relative error), made for this file: the worst approximation error
is 0.065 u (exp, float32), 0.073 u (exp, float64), 0.014 u (log, float32) and 0.014 u (log, float64). The
tests compute these errors from the coefficients below, rounded to the dtype.

References
----------
J.-M. Muller et al., Handbook of Floating-Point Arithmetic, 2nd ed., 2018, doi:10.1007/978-3-319-76526-6
(TwoSum: section 4.3; argument reduction: section 10.2).
W. J. Cody and W. Waite, Software Manual for the Elementary Functions, 1980.
"""

from typing import Any

from fastsoftmax.kernels.jit import inline
from fastsoftmax.kernels.simd.values import (
    absolute,
    filled,
    fma,
    is_single,
    muladd,
    nearest,
    number,
    select_equal,
    select_less,
    shift_to_exponent,
    split_exponent,
    truncate,
)

INF = float("inf")
NAN = float("nan")
LOG2_E = 1.4426950408889634
# ln 2 in two parts. The first has so few bits (14 and 41) that its product with every n that occurs
# (10 and 12 bits) is exact, fused or not; the second is ln 2 minus the first, rounded.
LN2_HIGH_32 = 0.693115234375
LN2_LOW_32 = 3.1946184945309415e-05
LN2_HIGH_64 = 0.693147180559663
LN2_LOW_64 = 2.8235290563031577e-13
# x + MAGIC rounds x to a whole number k, which the low bits of the sum hold.
MAGIC_32 = 12582912.0  # 1.5 * 2**23
MAGIC_64 = 6755399441055744.0  # 1.5 * 2**52
# STEP is the step of the reference of a row (`reference`): a power of two above twice the range of exp, which LIFT
# extends. If the greatest of 2**31 terms is 2**LIFT, their sum is finite.
STEP_32 = 512.0
STEP_64 = 2048.0
LIFT_32 = 96.0
LIFT_64 = 512.0


@inline
def two_sum(a: Any, b: Any) -> Any:
    """``a + b`` and its exact rounding error, whichever of the two is larger (Knuth)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


@inline
def two_product(a: Any, b: Any) -> Any:
    """``a * b`` and its exact rounding error."""
    product = a * b
    return product, fma(a, b, -product)


@inline
def quotient(a: Any, a_low: Any, b: Any, b_low: Any) -> Any:
    """``(a + a_low) / (b + b_low)`` as a pair, to about 2 u**2."""
    ratio = a / b
    rest = fma(-ratio, b, a) + muladd(-ratio, b_low, a_low)
    return ratio, rest / b


@inline
def quick_quotient(a: Any, a_low: Any, b: Any, b_low: Any) -> Any:
    """`quotient` with one division, to about 4 u**2: for a b whose inverse is a normal number."""
    inverse = number(b, 1.0) / b
    ratio = a * inverse
    rest = fma(-ratio, b, a) + muladd(-ratio, b_low, a_low)
    return ratio, rest * inverse


@inline
def lift_of(like: Any) -> Any:
    """The binary exponent by which the terms of a row are lifted (`reference`)."""
    return number(like, LIFT_32) if is_single(like) else number(like, LIFT_64)


@inline
def most_power(like: Any) -> Any:
    """The greatest n for which 2**n and 2**-n are normal numbers."""
    return number(like, 126.0) if is_single(like) else number(like, 1022.0)


@inline
def biased(like: Any, n: Any) -> Any:
    """The rounding constant with which `exp_scaled` returns ``exp(t) * 2**-n``; n is whole and below 2**20."""
    magic = number(like, MAGIC_32) if is_single(like) else number(like, MAGIC_64)
    bias = number(like, 127.0) if is_single(like) else number(like, 1023.0)
    return (magic + bias) - n


@inline
def centred(value: Any, shift: Any, beta: Any) -> Any:
    r"""``(value - c)/T`` as a pair, for the c of `reference` and the beta of a temperature (None for T = 1).

    beta = (pre, gain, high, low, power): 1/T = pre gain (high + low), where pre <= 1 and gain >= 1 are powers of
    two and pre gain = 2**power, so that nothing overflows or loses digits whatever T is. c is in units of 1/pre.
    The difference is exact for every entry whose term is not 0 (`reference`). It is divided by T afterwards, so
    that the rounding errors are those of a number below 700 (3900), not of value/T.
    """
    if beta is None:
        return value - shift, filled(value, -0.0)
    difference = muladd(value, beta[0], -shift) * beta[1]
    product = difference * beta[2]
    return product, muladd(difference, beta[3], fma(difference, beta[2], -product))


@inline
def below(value: Any, m: Any, beta: Any) -> Any:
    """``(value - m)/T`` to half an ulp, with a temperature to one ulp; -inf stays -inf."""
    if beta is None:
        return value - m
    difference = muladd(value, beta[0], -(m * beta[0])) * beta[1]
    product = difference * beta[2]
    error = muladd(difference, beta[3], fma(difference, beta[2], -product))
    return select_less(absolute(product), number(value, INF), product + error, product)


@inline
def reference(row_max: Any, beta: Any) -> Any:
    r"""The reference of a row with maximum m: c, from which its entries are measured, and the constant for 2**-N.

    A softmax that subtracts m rounds x - m, and exp turns that error of |x - m| u into a relative one: up to
    100 u in float32. Here nothing is rounded. c is m truncated to a multiple of STEP (512 or 2048), more
    than twice the range in which exp(x - m) is not 0, so that x - c is exact for every such x: either c = 0,
    or x is within a factor of two of c (Sterbenz) or beyond it on the same side (then x - c is a multiple of
    the ulp of x, and smaller than x). The difference m - c goes into a power of two, N = round((m - c) log2 e),
    so that the terms exp(x - c) 2**-N are at most sqrt(2). Changing N is exact too. N is lowered by LIFT, so that
    terms are 2**96 (2**512) times larger and do not underflow that much sooner: a weight may lift their
    probabilities above the smallest normal number.

    With a temperature, c is 0 where |m|/T is below STEP, and m elsewhere: for every |m| of at least twice the
    range, x - m is exact by the same argument. (Multiples of T times STEP would have to be rounded.)
    """
    lift = lift_of(row_max)
    zero = number(row_max, 0.0)
    step = number(row_max, STEP_32) if is_single(row_max) else number(row_max, STEP_64)
    if beta is None:
        inverse = number(row_max, 1 / STEP_32) if is_single(row_max) else number(row_max, 1 / STEP_64)
        shift = truncate(row_max * inverse) * step
        n = nearest((row_max - shift) * number(row_max, LOG2_E))
        n = select_equal(row_max, shift, zero, n)  # also for +-inf, whose difference is nan
    else:
        scaled = row_max * beta[0]
        shift = select_less(absolute(scaled * beta[1] * beta[2]), step, zero, scaled)
        n = nearest((scaled - shift) * beta[1] * beta[2] * number(row_max, LOG2_E))
        n = select_equal(scaled, shift, zero, n)
    return shift, biased(row_max, n - lift)


@inline
def _square_sum(r: Any) -> Any:
    """r P(r) in exp(r) = 1 + (r + r (r P(r))), for |r| < 0.35."""
    if is_single(r):
        p = muladd(number(r, 0.0013814320699690491616), r, number(r, 0.0083688510676732644966))
        p = muladd(p, r, number(r, 0.041668401081271447449))
        p = muladd(p, r, number(r, 0.16666519524078858822))
        p = muladd(p, r, number(r, 0.49999993373097571791))
    else:
        p = muladd(number(r, 2.4999858270472850371e-8), r, number(r, 2.7630523467353601672e-7))
        p = muladd(p, r, number(r, 2.7557588421289219252e-6))
        p = muladd(p, r, number(r, 0.000024801492388293635494))
        p = muladd(p, r, number(r, 0.00019841269502740906344))
        p = muladd(p, r, number(r, 0.0013888888944249186531))
        p = muladd(p, r, number(r, 0.0083333333334969236579))
        p = muladd(p, r, number(r, 0.041666666666528103793))
        p = muladd(p, r, number(r, 0.1666666666666640767))
        p = muladd(p, r, number(r, 0.50000000000000108261))
    return p * r


@inline
def exp_parts(t: Any, tail: Any, bias: Any) -> Any:
    r"""The bracket and q of ``exp(t + tail) * 2**-N`` = (1 + bracket) * 2**q; `exp_scaled` puts them together.

    `bias` comes from `biased`. |t| <= 700 (3200) where the power is not below `smallest_power`. `tail` is the
    error of t, as of a rounded product; -0.0, for no error, costs nothing.

    Error: n ln2 is subtracted in two steps, the first exact, the second rounded at |r| < 0.35 by u/4; the
    coefficient errors of ln 2 add n 2**-14 u < u/32. The bracket r + r**2 P(r) is below 0.42, its roundings below
    0.35 u; 1 + bracket, which is in [0.7, 1.42], rounds by 1/2 ulp, together with the scaling, which is exact.
    With 1 + bracket >= 0.7, where one ulp is u: 0.5 + 0.25 + 0.03 + 0.25 + 0.05 (polynomial) < 1.1 ulp.
    """
    q = muladd(t, number(t, LOG2_E), bias)
    n = q - bias
    if is_single(t):
        r = muladd(n, number(t, -LN2_LOW_32), muladd(n, number(t, -LN2_HIGH_32), t) + tail)
    else:
        r = muladd(n, number(t, -LN2_LOW_64), muladd(n, number(t, -LN2_HIGH_64), t) + tail)
    return muladd(_square_sum(r), r, r), q


@inline
def smallest_power(like: Any) -> Any:
    """The q of `exp_parts` for the smallest normal power of two."""
    return number(like, MAGIC_32 + 1.0) if is_single(like) else number(like, MAGIC_64 + 1.0)


@inline
def exp_pair(t: Any, tail: Any, bias: Any) -> Any:
    """`exp_scaled` as a pair, to 0.2 u, for numbers of which a row has one. The result must be a normal number.

    The rounding errors of r, of the bracket and of 1 + bracket go into the second number. Only the error of
    r**2 P(r), which is below 0.08, is left.
    """
    q = muladd(t, number(t, LOG2_E), bias)
    n = q - bias
    if is_single(t):
        exact, low = muladd(n, number(t, -LN2_HIGH_32), t) + tail, number(t, -LN2_LOW_32)
    else:
        exact, low = muladd(n, number(t, -LN2_HIGH_64), t) + tail, number(t, -LN2_LOW_64)
    r = muladd(n, low, exact)
    r_low = muladd(n, low, exact - r)
    bracket, error = two_sum(r, _square_sum(r) * r)
    total, rest = two_sum(number(t, 1.0), bracket)
    rest = rest + (error + muladd(r_low, r, r_low))
    scale = shift_to_exponent(q)
    return total * scale, rest * scale


@inline
def exp_scaled(t: Any, tail: Any, bias: Any) -> Any:
    """``exp(t + tail) * 2**-N``: 0 below the smallest normal number, nan if t is nan. Arguments as `exp_parts`."""
    bracket, q = exp_parts(t, tail, bias)
    scale = shift_to_exponent(q)
    return select_less(q, smallest_power(t), number(t, 0.0), muladd(bracket, scale, scale))


@inline
def _log_terms(k: Any, m: Any, correction: Any) -> Any:
    r"""The terms a, f and c of ``log(2**k m) + correction`` = a - (c - f), for a correction of a few u.

    m in [sqrt(1/2), sqrt(2)); a = k ln2 without the low part of ln2; f = m - 1 is exact, s = f/(2 + f), and
    log(1 + f) = f - (f**2/2 - s (f**2/2 + R(s**2))).

    Error of the sum: f (exact) or k ln2 (its high part exact) plus terms that are below 0.21 of it for k = 0 and
    below 0.25 for k != 0, with relative errors of at most 3 u: 0.5 ulp for the last rounding, 0.75 for the terms,
    0.25 for the sum before: at most 1.5 ulp.
    """
    f = m - number(m, 1.0)
    s = f / (number(m, 2.0) + f)
    z = s * s
    if is_single(m):
        p = muladd(number(m, 0.29873073233821793495), z, number(m, 0.3997749558082199234))
        p = muladd(p, z, number(m, 0.66666776717042066146))
        ln2_high = number(m, LN2_HIGH_32)
        ln2_low = number(m, LN2_LOW_32)
    else:
        p = muladd(number(m, 0.14797507887340615643), z, number(m, 0.15313903225620146528))
        p = muladd(p, z, number(m, 0.18183569740789435073))
        p = muladd(p, z, number(m, 0.22222198475963329378))
        p = muladd(p, z, number(m, 0.28571428743262956088))
        p = muladd(p, z, number(m, 0.39999999999411090767))
        p = muladd(p, z, number(m, 0.66666666666667348959))
        ln2_high = number(m, LN2_HIGH_64)
        ln2_low = number(m, LN2_LOW_64)
    half_square = number(m, 0.5) * f * f
    small = muladd(s, half_square + z * p, muladd(k, ln2_low, correction))
    return k * ln2_high, f, half_square - small


@inline
def quick_log(x: Any, correction: Any) -> Any:
    """``log(x) + correction`` to 1.5 ulp, for a normal, finite x > 0 and a correction of a few u."""
    k, m = split_exponent(x)
    a, f, c = _log_terms(k, m, correction)
    return a - (c - f)


@inline
def log_pair(x: Any, x_low: Any) -> Any:
    """``log(x + x_low)`` as a pair, to 1.1 u, for a normal, finite x > 0 and an x_low of a few ulps of x."""
    k, m = split_exponent(x)
    a, f, c = _log_terms(k, m, x_low / x)
    high, error = two_sum(f, -c)
    high, rest = two_sum(a, high)
    return high, error + rest
