"""Rows on which usual implementations err most: for the accuracy sweep and the table of docs/guide."""

import numpy as np

CLASSES = (1, 2, 3, 5, 8, 17, 31, 56, 57, 64, 100, 333, 1000, 4096, 10_007, 50_257)
LONG = (262_144, 1_000_000, 10_000_000)


def _spread(scale, offset):
    def make(rng, shape):
        return offset + scale * rng.standard_normal(shape)

    return make


def _dominant(rng, shape):
    x = rng.standard_normal(shape)
    x[np.arange(len(x)), rng.integers(0, shape[1], len(x))] += rng.uniform(5, 100, len(x))
    return x + rng.uniform(-1e4, 1e4, (len(x), 1)).round(2)


def _ties(rng, shape):
    return np.broadcast_to(rng.uniform(-1e4, 1e4, (shape[0], 1)), shape).copy()


def _few_values(rng, shape):
    return rng.integers(-2, 3, shape) * rng.uniform(0.1, 20, (shape[0], 1))


def _two_clusters(rng, shape):
    return np.where(rng.random(shape) < 0.5, 0.0, -50.0) + 1e-3 * rng.standard_normal(shape)


def _tiny_after_large(rng, shape):
    x = np.repeat(-rng.uniform(0, 60, (shape[0], 1)), shape[1], axis=1)
    x[:, 0] = 0.0
    return x + rng.uniform(-300, 300, (shape[0], 1))


def _towards_underflow(rng, shape):
    x = -rng.uniform(60, 760, shape)
    x[:, -1] = rng.uniform(-5, 5, len(x))
    return x


def _ramp(rng, shape):
    ends = rng.uniform(0.01, 1e4, (shape[0], 1))
    return np.linspace(-1.0, 1.0, shape[1]) * ends if shape[1] > 1 else ends


def _about_a_step(rng, shape):
    """Greatest entries close to the multiples of `STEP` to which the kernels round, on both sides."""
    step = rng.choice([-4096.0, -2048.0, -256.0, 256.0, 512.0, 2048.0, 8192.0], (shape[0], 1))
    return step + rng.uniform(-120, 2, shape)


FAMILIES = {
    "spread 1e-3": _spread(1e-3, 0.0),
    "spread 1": _spread(1.0, 0.0),
    "spread 1 at 1e4": _spread(1.0, 1e4),
    "spread 10 at -37.7": _spread(10.0, -37.7),
    "spread 1000": _spread(1e3, 0.0),
    "one dominant class": _dominant,
    "all equal": _ties,
    "few values": _few_values,
    "two clusters 50 apart": _two_clusters,
    "tiny terms after one large": _tiny_after_large,
    "results about the smallest number": _towards_underflow,
    "ramp": _ramp,
    "about a step of the reference": _about_a_step,
}


def rows(family, classes, dtype, elements, seed=0):
    """About so many elements of a family, in rows of one length."""
    rng = np.random.default_rng([seed, classes, list(FAMILIES).index(family)])
    shape = (max(1, elements // classes), classes)
    return FAMILIES[family](rng, shape).astype(dtype)
