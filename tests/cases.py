"""Rows for the tests of errors. All functions share them, so that the oracle computes each row once."""

from functools import lru_cache

import numpy as np

DTYPES = (np.float32, np.float64)
CLASSES = (1, 2, 3, 7, 10, 16, 17, 33, 64, 65, 100, 1000, 50257)
OFFSETS = (0.0, 1.0, -37.5, 1e3, 1e4, -1e4)
SPREADS = (1e-3, 0.1, 1.0, 10.0, 100.0)
GAPS = (1.0, 5.0, 17.0, 40.0, 85.0, 300.0, 90.0, 710.0)


def _random_rows(classes, rng):
    for offset in OFFSETS:
        for spread in SPREADS:
            yield offset + spread * rng.standard_normal(classes)


def _confident_rows(classes, rng):
    """Rows with one entry far above the others: 1 - p, log p and p - 1 cancel in textbook formulas."""
    for n, gap in enumerate(GAPS):
        row = OFFSETS[n % len(OFFSETS)] + 0.5 * rng.standard_normal(classes)
        row[rng.integers(classes)] = row.max() + gap
        yield row


def _special_rows(classes, rng):
    yield np.zeros(classes)
    yield np.full(classes, -1e4)
    yield np.linspace(-1e4, 1e4, classes)
    yield np.linspace(50.0, -50.0, classes)
    yield rng.integers(-3, 4, classes).astype(np.float64)
    yield np.where(np.arange(classes) % 2, -1e3, 1e3)


@lru_cache
def logits(dtype, classes):
    """Rows of one length, read-only. Their number is no multiple of a vector's lanes: some stay empty."""
    rng = np.random.default_rng(classes)
    random, confident, special = (
        list(make(classes, rng)) for make in (_random_rows, _confident_rows, _special_rows)
    )
    if classes > 1000:  # a second each in the oracle
        rows = [random[23], confident[2]]
    elif classes > 100:
        rows = random[::4] + confident[::2] + special[:5]
    else:
        rows = random + confident + special + [random[0][::-1]]
    array = np.array(rows).astype(dtype)
    array.flags.writeable = False
    return array


def vectors(x, seed=0):
    """Tangents or cotangents for `x`, of all sizes and both signs; some rows have a large offset."""
    rng = np.random.default_rng(seed + x.shape[-1])
    v = rng.standard_normal(x.shape) * 10.0 ** rng.integers(-2, 3, (len(x), 1))
    v += np.where(rng.random((len(x), 1)) < 0.3, 100.0, 0.0)
    return v.astype(x.dtype)


def labels(x, seed=0):
    """Class indices for `x`. Every other label is that of the greatest entry, where p - 1 cancels."""
    rng = np.random.default_rng(seed + x.shape[-1])
    chosen = rng.integers(0, x.shape[-1], len(x))
    chosen[::2] = np.argmax(x[::2], axis=-1)
    return chosen


def distributions(x, seed=0):
    """Distributions for `x`: dense, sparse, one-hot, and some that do not sum to 1."""
    rng = np.random.default_rng(seed + x.shape[-1])
    y = rng.random(x.shape)
    y[::3] *= rng.random(y[::3].shape) < 0.3
    total = y.sum(-1, keepdims=True)
    y /= np.where(total > 0, total, 1.0)
    y[::4] = np.eye(x.shape[-1])[labels(x, seed)[::4]] if x.shape[-1] <= 1000 else y[::4]
    y[1::5] *= 3.0
    return y.astype(x.dtype)


class Forgetful(dict):
    """A table of kernels that stays empty: every call takes the general way."""

    def __setitem__(self, key, value):
        """Forget it."""
