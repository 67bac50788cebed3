"""The reference: the formulas of the literature in mpmath, as they stand there, row by row.

Nothing of fastsoftmax is imported here. Every function takes one row (a 1-d array of floats, which are exact
numbers), and returns an object array of mpf, or one mpf. 50 digits remain after the cancellations of a formula,
such as 1 - p and lse - max; see `digits`. Of an array and an mpf the array stands first, since an mpf on the left
prints the array before NumPy is asked.

`ulp_error` measures a float result against such numbers.
"""

from functools import cached_property, lru_cache

import mpmath as mp
import numpy as np

DIGITS = 50
MOST_DIGITS = 400  # more digits would only matter for results below the smallest normal number of float64 (1e-308)

mp.mp.dps = DIGITS


def exact(row):
    """The numbers of an array (any shape), exactly, as mpf."""
    array = np.asarray(row)
    flat = [mp.mpf(value) for value in array.ravel().tolist()]
    result = np.empty(len(flat), object)
    result[:] = flat
    return result.reshape(array.shape)


def digits(row, temperature=1.0):
    """Working precision at which 50 digits remain of 1 - p, which is about exp(second greatest - greatest)."""
    ordered = np.sort(np.asarray(row, np.float64))
    gap = (ordered[-1] - ordered[-2]) / temperature if len(ordered) > 1 else 0.0
    return DIGITS + int(min(gap / np.log(10), MOST_DIGITS - DIGITS))


def _exp(values):
    return np.array([mp.exp(value) for value in values], object)


def _log(values):
    return np.array([mp.log(value) for value in values], object)


def _inner(a, b):
    return mp.fdot(a, b)


@lru_cache(maxsize=4096)
def _softmax(content, dtype, temperature):
    row = np.frombuffer(content, dtype)
    with mp.workdps(digits(row, temperature)):
        terms = _exp(exact(row) / mp.mpf(temperature))
        total = mp.fsum(terms)
        return terms / total, mp.log(total)


@lru_cache(maxsize=4096)
def _log_softmax(content, dtype, temperature):
    with mp.workdps(digits(np.frombuffer(content, dtype), temperature)):
        return _log(_softmax(content, dtype, temperature)[0])


def _key(row, temperature):
    row = np.ascontiguousarray(row)
    return row.tobytes(), row.dtype.str, float(temperature)


def softmax(row, temperature=1.0):
    """p_i = exp(z_i/T) / sum_k exp(z_k/T)."""
    return _softmax(*_key(row, temperature))[0]


def logsumexp(row, temperature=1.0):
    """log(sum_k exp(z_k/T))."""
    return _softmax(*_key(row, temperature))[1]


def log_softmax(row, temperature=1.0):
    """log p_i."""
    return _log_softmax(*_key(row, temperature))


def jacobian_of_probs(p, temperature=1.0, rows=None):
    """J_ii = p_i (1 - p_i)/T, J_ij = -p_i p_j/T of mpf probabilities; only the rows i given, if any are."""
    chosen = list(range(len(p)) if rows is None else rows)
    jacobian = -np.multiply.outer(p[chosen], p)
    for n, i in enumerate(chosen):
        jacobian[n, i] = p[i] * (1 - p[i])
    return jacobian / mp.mpf(temperature)


def product_of_probs(p, v, temperature=1.0):
    """(J v)_k = p_k (v_k - sum_j v_j p_j)/T of mpf probabilities and vectors."""
    return p * (v - _inner(v, p)) / mp.mpf(temperature)


def softmax_jacobian(row, temperature=1.0, rows=None):
    """J = (diag(p) - p p^T)/T."""
    with mp.workdps(digits(row, temperature)):
        return jacobian_of_probs(softmax(row, temperature), temperature, rows)


def log_softmax_jacobian(row, temperature=1.0, rows=None):
    """(I - 1 p^T)/T; only the rows i given, if any are."""
    with mp.workdps(digits(row, temperature)):
        p = softmax(row, temperature)
        chosen = range(len(p)) if rows is None else rows
        jacobian = np.array([-p for _ in chosen], object)
        for n, i in enumerate(chosen):
            jacobian[n, i] = 1 - p[i]
        return jacobian / mp.mpf(temperature)


def softmax_product(row, vector, temperature=1.0):
    """(J v)_k = p_k (v_k - sum_j v_j p_j)/T, which is also J^T v."""
    with mp.workdps(digits(row, temperature)):
        return product_of_probs(softmax(row, temperature), exact(vector), temperature)


def log_softmax_jvp(row, tangent, temperature=1.0):
    """(v - sum_j p_j v_j)/T."""
    with mp.workdps(digits(row, temperature)):
        p, v = softmax(row, temperature), exact(tangent)
        return (v - _inner(p, v)) / mp.mpf(temperature)


def log_softmax_vjp(row, cotangent, temperature=1.0):
    """(g - p sum_j g_j)/T."""
    with mp.workdps(digits(row, temperature)):
        p, g = softmax(row, temperature), exact(cotangent)
        return (g - p * mp.fsum(g)) / mp.mpf(temperature)


def one_hot(label, classes):
    """The distribution that an index target stands for."""
    return np.eye(1, classes, int(label))[0]


def cross_entropy(row, target):
    """L = -sum_j y_j log p_j, with 0 for y_j = 0; the target is an index or a distribution."""
    y = exact(one_hot(target, len(row)) if np.ndim(target) == 0 else target)
    with mp.workdps(digits(row)):
        log_p = log_softmax(row)
        return -sum((y[j] * log_p[j] for j in range(len(y)) if y[j] != 0), mp.mpf(0))


def cross_entropy_grad(row, target):
    """p (sum_j y_j) - y."""
    y = exact(one_hot(target, len(row)) if np.ndim(target) == 0 else target)
    with mp.workdps(digits(row)):
        return softmax(row) * mp.fsum(y) - y


def squared_error(row, target):
    """L = 1/2 sum_k (p_k - t_k)^2."""
    with mp.workdps(digits(row)):
        difference = softmax(row) - exact(target)
        return _inner(difference, difference) / 2


def squared_error_grad(row, target):
    """The VJP of softmax with cotangent p - t."""
    with mp.workdps(digits(row)):
        p = softmax(row)
        d = p - exact(target)
        return p * (d - _inner(d, p))


def _focal(p, q, gamma):
    """-(1 - p)**gamma log p and its first two derivatives with respect to p; q is 1 - p."""
    log_p = mp.log(p)
    if q == 0:
        return mp.mpf(0), None, None
    first = gamma * q ** (gamma - 1) * log_p - q**gamma / p
    second = -gamma * (gamma - 1) * q ** (gamma - 2) * log_p + 2 * gamma * q ** (gamma - 1) / p + q**gamma / p**2
    return -(q**gamma) * log_p, first, second


def focal_loss(row, label, gamma):
    """L = -(1 - p)^gamma log p of the label."""
    with mp.workdps(digits(row)):
        p = softmax(row)
        return _focal(p[label], 1 - p[label], mp.mpf(float(gamma)))[0]


def focal_loss_grad(row, label, gamma):
    """dL/dz_k = L'(p) p ([k = label] - p_k)."""
    with mp.workdps(digits(row)):
        p = softmax(row)
        _, first, _ = _focal(p[label], 1 - p[label], mp.mpf(float(gamma)))
        if first is None:
            return 0 * p
        return _one_hot_minus(p, label) * (first * p[label])


def focal_loss_hessian_diag(row, label, gamma):
    """L''(p) (dp/dz_k)^2 + L'(p) d2p/dz_k^2, with d2p/dz_k^2 = p (([k = label] - p_k)^2 - p_k (1 - p_k))."""
    gap = float(np.max(row)) - float(row[label])  # the terms of a label with a tiny p cancel
    with mp.workdps(digits(row) + int(min(gap / np.log(10), MOST_DIGITS))):
        terms = _exp(exact(row))
        p = terms / mp.fsum(terms)
        _, first, second = _focal(p[label], 1 - p[label], mp.mpf(float(gamma)))
        if first is None:
            return 0 * p
        d = _one_hot_minus(p, label)
        return (d * p[label]) ** 2 * second + (d * d - p * (1 - p)) * (first * p[label])


def focal_loss_hessian_size(row, label, gamma):
    """The sum of the absolute values of the terms of the diagonal, ordered by powers of p_k - [k = label]."""
    with mp.workdps(digits(row)):
        p, gamma = softmax(row), mp.mpf(float(gamma))
        own, q = p[label], 1 - p[label]
        if q == 0:
            return 0 * p
        loss = -mp.log(own)
        slope = q**gamma + gamma * q ** (gamma - 1) * own * loss
        bend = gamma * own * (q ** (gamma - 1) * (2 + loss) + abs(gamma - 1) * q ** (gamma - 2) * own * loss)
        return p * (1 - p) * slope + _one_hot_minus(p, label) ** 2 * bend


def _one_hot_minus(p, label):
    difference = -p
    difference[label] = 1 - p[label]
    return difference


def _logistic(z, t):
    """p, 1 - p, and the cross-entropy -t log p - (1 - t) log(1 - p) with its weights w t and 1 - t."""
    p, q = 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))
    return p, q, (mp.log(1 + mp.exp(-z)), mp.log(1 + mp.exp(z)))


def binary_cross_entropy(z, t, weight=1, smoothing=0):
    """-w t log p - (1 - t) log(1 - p), and its first and second derivative."""
    z, t, weight, smoothing = (mp.mpf(float(value)) for value in (z, t, weight, smoothing))
    with mp.workdps(DIGITS + int(min(abs(z) / 2, MOST_DIGITS))):
        t = t * (1 - smoothing) + smoothing / 2
        p, q, (plus, minus) = _logistic(z, t)
        return (
            weight * t * plus + (1 - t) * minus,
            (1 - t) * p - weight * t * q,
            (weight * t + 1 - t) * p * q,
        )


def binary_focal_loss(z, t, gamma, alpha=None):
    """alpha_t (1 - p_t)^gamma BCE with its first and second derivative, by the product rule.

    Last come the sums of the absolute values of the terms of the derivatives.
    """
    z, t, gamma = (mp.mpf(float(value)) for value in (z, t, gamma))
    with mp.workdps(DIGITS + int(min(abs(z) / 2, MOST_DIGITS))):
        p, q, (plus, minus) = _logistic(z, t)
        factor = mp.mpf(1) if alpha is None else mp.mpf(float(alpha)) * t + (1 - mp.mpf(float(alpha))) * (1 - t)
        wrong, loss = t * q + (1 - t) * p, t * plus + (1 - t) * minus
        slope, turn = (1 - t) * p - t * q, (1 - 2 * t) * p * q  # the derivatives of the loss, and of `wrong`
        power = wrong**gamma
        bend = (1 - 2 * t) * p * q * (q - p)  # the second derivative of `wrong`
        first = [gamma * power / wrong * turn * loss, power * (1 - t) * p, -power * t * q]
        second = [
            gamma * (gamma - 1) * power / wrong**2 * turn**2 * loss,
            gamma * power / wrong * bend * loss,
            2 * gamma * power / wrong * turn * slope,
            power * p * q,
        ]
        sizes = [factor * mp.fsum(abs(term) for term in terms) for terms in (first, second)]
        return factor * power * loss, factor * mp.fsum(first), factor * mp.fsum(second), *sizes


def softmax_entropy(row, temperature=1.0):
    """H = -sum_k p_k log p_k."""
    with mp.workdps(digits(row, temperature)):
        return -_inner(softmax(row, temperature), log_softmax(row, temperature))


def softmax_entropy_grad(row, temperature=1.0):
    """-p_k (log p_k + H)/T."""
    with mp.workdps(digits(row, temperature)):
        p, log_p = softmax(row, temperature), log_softmax(row, temperature)
        return -p * (log_p + softmax_entropy(row, temperature)) / mp.mpf(temperature)


def _two(row, target, temperature):
    """The probabilities and log-probabilities of both rows of logits."""
    return (
        softmax(row, temperature),
        log_softmax(row, temperature),
        softmax(target, temperature),
        log_softmax(target, temperature),
    )


def _mean_log_ratio(p, log_p, log_q):
    """sum_j p_j (log p_j - log q_j), with 0 for p_j = 0."""
    return mp.fsum(p[j] * (log_p[j] - log_q[j]) for j in range(len(p)) if p[j] != 0)


def kl_divergence(row, target, temperature=1.0, reverse=False):
    """KL(q || p) = sum_j q_j (log q_j - log p_j) of p = softmax(row/T), q = softmax(target/T); KL(p || q)."""
    with mp.workdps(max(digits(row, temperature), digits(target, temperature))):
        p, log_p, q, log_q = _two(row, target, temperature)
        return _mean_log_ratio(p, log_p, log_q) if reverse else _mean_log_ratio(q, log_q, log_p)


def kl_divergence_grad(row, target, temperature=1.0, reverse=False):
    """(p - q)/T; p_k (log p_k - log q_k - KL(p || q))/T."""
    with mp.workdps(max(digits(row, temperature), digits(target, temperature))):
        p, log_p, q, log_q = _two(row, target, temperature)
        if not reverse:
            return (p - q) / mp.mpf(temperature)
        mean = _mean_log_ratio(p, log_p, log_q)
        return np.array(
            [a * (b - c - mean) if a else a for a, b, c in zip(p, log_p, log_q, strict=True)], object
        ) / (mp.mpf(temperature))


def _mixture(p, q, beta):
    """m = beta q + (1 - beta) p, and its logarithm."""
    m = q * mp.mpf(beta) + p * (1 - mp.mpf(beta))
    return _log(m)


def js_divergence(row, target, temperature=1.0, beta=0.5):
    """beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p."""
    with mp.workdps(max(digits(row, temperature), digits(target, temperature))):
        p, log_p, q, log_q = _two(row, target, temperature)
        log_m, b = _mixture(p, q, beta), mp.mpf(beta)
        return b * _mean_log_ratio(q, log_q, log_m) + (1 - b) * _mean_log_ratio(p, log_p, log_m)


def js_divergence_grad(row, target, temperature=1.0, beta=0.5):
    """(1 - beta) p_k (log p_k - log m_k - KL(p || m))/T."""
    with mp.workdps(max(digits(row, temperature), digits(target, temperature))):
        p, log_p, q, _ = _two(row, target, temperature)
        log_m = _mixture(p, q, beta)
        mean = _mean_log_ratio(p, log_p, log_m)
        return p * (log_p - log_m - mean) * (1 - mp.mpf(beta)) / mp.mpf(temperature)


def rowwise(function, rows, *others, **options):
    """`function` of each row and the entries of the other arguments that belong to it, stacked."""
    results = [function(row, *(o[n] for o in others), **options) for n, row in enumerate(rows)]
    stacked = np.empty((len(results), *np.shape(results[0])), object)
    for n, result in enumerate(results):
        stacked[n] = result
    return stacked


# --- measuring ------------------------------------------------------------------------------------------------


def nearest(reference, dtype):
    """mpf numbers rounded to the dtype, and their differences from that, as float64 with 15 digits."""
    flat = np.asarray(reference, object).ravel()
    rounded = np.array([float(value) for value in flat], np.float64)
    with np.errstate(over="ignore"):
        near = rounded.astype(dtype)
    rest = [
        float(value - mp.mpf(float(base))) if np.isfinite(base) else 0.0
        for value, base in zip(flat, near, strict=True)
    ]
    shape = np.shape(reference)
    return near.reshape(shape), np.array(rest, np.float64).reshape(shape)


def ulp_error(actual, reference):
    """How far `actual` is from the exact numbers, in units in the last place of its dtype.

    The unit is that of the correctly rounded number. Results below the smallest normal number may be 0: there an
    absolute error below that number counts as 0, and a larger one as infinite. Where the exact number is infinite,
    the result must be the same infinity.
    """
    actual = np.asarray(actual)
    dtype = actual.dtype
    near, rest = nearest(reference, dtype)
    tiny = np.finfo(dtype).tiny
    with np.errstate(all="ignore"):
        distance = np.abs((actual.astype(np.float64) - near.astype(np.float64)) - rest)
        size = np.abs(near)
        error = distance / np.spacing(size).astype(np.float64)
        small = (size < tiny) | ((size == tiny) & (rest * np.sign(near) < 0))
        error = np.where(small, np.where(distance <= tiny, 0.0, np.inf), error)
        error = np.where(np.isfinite(near), error, np.where(actual == near, 0.0, np.inf))
    return np.where(np.isnan(actual), np.inf, error)


def worst(actual, reference, scale=None):
    """The greatest error in ulps, and its place. With `scale`, in ulps of these numbers."""
    error = ulp_error(actual, reference) if scale is None else scaled_error(actual, reference, scale)
    if error.size == 0:
        return 0.0, ()
    place = np.unravel_index(np.argmax(error), error.shape)
    return float(error[place]), tuple(int(i) for i in place)


def scaled_error(actual, reference, scale):
    """The error over eps times `scale` (floats): the sum of the absolute values of the terms of a result."""
    actual = np.asarray(actual)
    info = np.finfo(actual.dtype)
    near, rest = nearest(reference, actual.dtype)
    with np.errstate(all="ignore"):
        distance = np.abs((actual.astype(np.float64) - near.astype(np.float64)) - rest)
        error = distance / (float(info.eps) * np.asarray(scale, np.float64))
    error = np.where(distance <= float(info.tiny), 0.0, error)
    return np.where(np.isnan(actual), np.inf, error)


def wide_error(actual, reference):
    """As `ulp_error`, for millions of numbers: the reference has a wider dtype and is accurate to 1e-3 ulp."""
    dtype = actual.dtype
    tiny = np.finfo(dtype).tiny
    with np.errstate(all="ignore"):
        near = reference.astype(dtype)
        distance = np.abs(actual.astype(reference.dtype) - reference)
        error = (distance / np.spacing(np.abs(near)).astype(reference.dtype)).astype(np.float64)
        small = np.abs(reference) < tiny
        error = np.where(small, np.where(distance <= tiny, 0.0, np.inf), error)
        error = np.where(np.isfinite(near), error, np.where(actual == near, 0.0, np.inf))
    return np.where(np.isnan(reference), np.where(np.isnan(actual), 0.0, np.inf), error)


WIDER = {np.dtype(np.float32): np.float64, np.dtype(np.float64): np.longdouble}
"""The wider dtypes for `wide_error`. On some platforms longdouble is no wider than float64; see `has_wider`."""


def has_wider(dtype):
    """Whether this platform has the dtype that `wide_error` needs."""
    return np.finfo(WIDER[np.dtype(dtype)]).nmant >= np.finfo(dtype).nmant + 10


def wide_forward(x):
    """Greatest entry, differences from it, and the sum of all other terms, of rows in the wider dtype."""
    wide = x.astype(WIDER[x.dtype])
    top = np.argmax(wide, axis=-1)[:, None]
    difference = wide - np.take_along_axis(wide, top, -1)
    with np.errstate(under="ignore"):
        terms = np.exp(difference)
    np.put_along_axis(terms, top, 0, -1)
    return difference, np.sum(terms, axis=-1, keepdims=True)


def wide_softmax(x):
    """Softmax for `wide_error`."""
    difference, others = wide_forward(x)
    with np.errstate(under="ignore"):
        return np.exp(difference) / (1 + others)


def wide_log_softmax(x):
    """Log-softmax for `wide_error`: the difference and -log1p have the same sign, so that they do not cancel."""
    difference, others = wide_forward(x)
    return difference - np.log1p(others)


def wide_squared_errors(logits, probs, targets):
    """Half the squared distance of rows of probabilities from their targets, and its gradient."""
    error = probs - targets
    return (error**2).sum(-1) / 2, probs * (error - (probs * error).sum(-1, keepdims=True))


ROW_LOSSES = {"squared_error": wide_squared_errors}
"""Losses in long double: {name: (logits, their softmax, targets or one-hot labels) -> losses, gradient}."""


def wide_remainder(x):
    """1 - p of each row's greatest entry, for `wide_error`."""
    _, others = wide_forward(x)
    return (others / (1 + others))[:, 0]


# --- cross-entropy with options ----------------------------------------------------------------------------------


def shares(target, classes, class_weight=None, label_smoothing=0.0):
    """w_j (base + gain y_j) with base = s/K and gain = 1 - s, for an index or a distribution y."""
    y = exact(one_hot(target, classes) if np.ndim(target) == 0 else target)
    s = mp.mpf(float(label_smoothing))
    mixed = y * (1 - s) + s / classes
    return mixed if class_weight is None else exact(class_weight) * mixed


def regularized(row, share, z_loss=0.0, softcap=None):
    """The loss of one row with a z-loss and capped logits, its gradient and its Hessian.

    L = sum_j share_j (lse - z_j) + r lse**2 with z = c tanh(a/c). By the chain rule, through dz/da = 1 - tanh**2
    and d2z/da2 = -2 tanh (1 - tanh**2)/c.
    """
    with mp.workdps(digits(row)):
        a, r = exact(row), mp.mpf(float(z_loss))
        z, first, second = a, np.full(len(a), mp.mpf(1), object), np.full(len(a), mp.mpf(0), object)
        if softcap is not None:
            c = mp.mpf(float(softcap))
            t = np.array([mp.tanh(value / c) for value in a], object)
            z, first, second = t * c, 1 - t**2, -2 * t * (1 - t**2) / c
        exps = np.array([mp.exp(value) for value in z], object)
        total = mp.fsum(exps)
        p, lse = exps / total, mp.log(total)
        slope = p * (mp.fsum(share) + 2 * r * lse) - share
        jacobian = np.diag(p) - np.outer(p, p)
        hessian = jacobian * (mp.fsum(share) + 2 * r * lse) + np.outer(p, p) * (2 * r)
        loss = mp.fsum(s * (lse - value) for s, value in zip(share, z, strict=True) if s != 0) + r * lse**2
        return loss, first * slope, np.outer(first, first) * hessian + np.diag(second * slope)


class CrossEntropy:
    """The loss of N rows (N, K) with all options, and its derivatives, as object arrays of mpf.

    A row counts `sample_weight` times. An ignored row and a row of weight 0 do not count, whatever they hold. A
    mean over class indices divides by the sum of these weights, times the class weights of the labels; a mean over
    distributions divides by N. `hessian` is `factors` times the Jacobian of softmax at `probs`. `terms` has the
    sum of the absolute values of the terms of each gradient; where p > 1/2, they are those of (total - share_i) -
    (1 - p_i) total.
    """

    def __init__(
        self,
        logits,
        targets,
        *,
        class_weight=None,
        sample_weight=None,
        ignore_index=None,
        label_smoothing=0.0,
        reduction="mean",
    ):
        count, classes = logits.shape
        soft = np.ndim(targets) == 2
        zero = mp.mpf(0)
        self.rows = np.full(count, zero, object)
        self.gradient, self.terms, self.diagonal = (np.full((count, classes), zero, object) for _ in range(3))
        self.probs, self.factors = np.full((count, classes), zero, object), np.full(count, zero, object)
        divisor = mp.mpf(count) if soft else zero
        for n in range(count):
            weight = mp.mpf(1 if sample_weight is None else float(sample_weight[n]))
            if weight == 0 or (not soft and targets[n] == ignore_index):
                continue
            if not soft:
                divisor += weight * mp.mpf(1 if class_weight is None else float(class_weight[targets[n]]))
            self._add(n, logits[n], shares(targets[n], classes, class_weight, label_smoothing), weight)
        self.loss = mp.fsum(self.rows)
        if reduction == "none":
            self.loss = self.rows
        elif reduction == "mean":
            self.loss = self.loss / divisor if divisor else mp.nan
            for name in ("gradient", "terms", "diagonal", "factors"):
                setattr(self, name, getattr(self, name) / divisor if divisor else getattr(self, name))

    def _add(self, n, row, share, weight):
        with mp.workdps(digits(row)):
            p, log_p = softmax(row), log_softmax(row)
            total = mp.fsum(share)
            self.rows[n] = -weight * mp.fsum(s * value for s, value in zip(share, log_p, strict=True) if s != 0)
            self.gradient[n] = (p * total - share) * weight
            near_one = [(total - s) + (1 - q) * total for s, q in zip(share, p, strict=True)]
            self.terms[n] = np.where(p > 0.5, np.array(near_one, object), p * total + share) * weight
            self.probs[n], self.factors[n] = p, weight * total
            self.diagonal[n] = p * (1 - p) * (weight * total)

    @cached_property
    def hessian(self):
        """One matrix for each row. It is computed only if it is used, because it has many numbers."""
        with mp.workdps(MOST_DIGITS):
            return np.array(
                [jacobian_of_probs(p) * f for f, p in zip(self.factors, self.probs, strict=True)], object
            )


def brier_score(row, label):
    """sum_k (p_k - y_k)^2 for the one-hot y of a label."""
    with mp.workdps(digits(row)):
        difference = softmax(row) - exact(one_hot(label, len(row)))
        return _inner(difference, difference)


def temperature_slope(rows, labels, weights, temperature):
    """The derivative with respect to 1/T of the weighted sum of -log p_y, p = softmax(z/T): sum w (E z - z_y)."""
    slopes = []
    for row, label, weight in zip(rows, labels, weights, strict=True):
        z = exact(row)
        terms = _exp(z / temperature)
        slopes.append(mp.mpf(float(weight)) * (_inner(terms, z) / mp.fsum(terms) - z[label]))
    return mp.fsum(slopes)


def best_temperature(rows, labels, weights, near):
    """The root of `temperature_slope` next to a temperature."""
    return mp.findroot(lambda t: temperature_slope(rows, labels, weights, t), near)
