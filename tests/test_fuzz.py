"""Arbitrary arguments give the right result or a documented error; no crash, no warning, no changed input.

Hypothesis draws function, shape, dtype, layout, contents, second argument and options. In one case out of three an
argument is spoiled, and the call has to raise; otherwise it may not. Results are compared with the textbook
formulas in long double, to some hundred eps: this file looks for wrong rows, wrong axes and wrong options, and the
tests with the oracle for wrong digits. Gradients and Hessians of rows that are whole in their chunks, and over
files in blocks, are compared with those in memory to the bit.
"""

import tempfile
from pathlib import Path
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings

import fastsoftmax as fs
from fastsoftmax import _spec
from fastsoftmax._spec import FUNCTIONS
from fastsoftmax.backends import stream
from fastsoftmax.tools.cli import main

DOCUMENTED = (TypeError, ValueError, IndexError)  # AxisError is both of the latter
DTYPES = ["f8", "f4", "f2", ">f8", ">f4", "i1", "u1", "i4", "i8", "u8", "?"]
LABELS = ["i8", "i4", "i1", "u1", "u2", "u8", ">i4"]
LENGTHS = st.sampled_from([0, 1, 2, 3, 5, 9, 16, 17, 40, 57, 130])
MOST = 20_000
LONG = np.longdouble


def named(*families):
    """The functions of these families; segments have a fuzz of their own."""
    return tuple(name for name, entry in FUNCTIONS.items() if entry.family in families and not entry.is_ragged)


ACTIVATIONS = named("forward")
JACOBIANS, PRODUCTS, ENTROPIES = named("jacobian"), named("product"), named("entropy")
CROSS_ENTROPIES, ROW_LOSSES = named("cross entropy", "curvature"), named("row loss")
LABELLED = tuple(name for name in ROW_LOSSES if _spec.LABELS in FUNCTIONS[name].operands)
DIVERGENCES = named("divergence")
EVERY = ACTIVATIONS + ENTROPIES + JACOBIANS + PRODUCTS + CROSS_ENTROPIES + ROW_LOSSES + DIVERGENCES
SQUARE = tuple(name for name in EVERY if _spec.SQUARE in FUNCTIONS[name].result)


# --- arrays --------------------------------------------------------------------------------------------------


def contents(rng, shape, dtype, kind):
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0 if dtype.kind == "u" else -100, 100, shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    wide = 8.0 if dtype.itemsize == 2 else 1e4
    x = {
        "normal": lambda: rng.normal(0, 3, shape),
        "wide": lambda: rng.uniform(-wide, wide, shape),
        "equal": lambda: np.full(shape, rng.normal()),
        "special": lambda: np.where(
            rng.random(shape) < 0.2, rng.choice([np.nan, np.inf, -np.inf, -0.0], shape), rng.normal(0, 3, shape)
        ),
    }[kind]()
    return x.astype(dtype)


def laid_out(rng, x, layout):
    """The values of `x` in another memory layout."""
    x = np.asarray(x)
    if x.ndim == 0:
        return x
    if layout == "permuted":
        order = rng.permutation(x.ndim)
        return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
    if layout == "strided":
        large = np.zeros([2 * n + 1 for n in x.shape], x.dtype)
        view = large[tuple(slice(1, None, 2) for _ in x.shape)]
        view[...] = x
        return view
    if layout == "reversed":
        turn = (slice(None, None, -1),) * x.ndim
        return x[turn].copy()[turn]
    if layout == "misaligned":
        raw = np.zeros(x.nbytes + 1, np.uint8)
        view = np.frombuffer(raw.data, x.dtype, x.size, 1).reshape(x.shape)
        view[...] = x
        return view
    if layout == "read-only":
        x = x.copy()
        x.flags.writeable = False
        return x
    if layout == "subclass":
        return x.view(Subclass)
    return x


class Subclass(np.ndarray):
    """A user's own array type."""


LAYOUTS = ["plain", "permuted", "strided", "reversed", "misaligned", "read-only", "subclass"]


# --- the right results ---------------------------------------------------------------------------------------


def softmax_of(x, where=None, temperature=1.0):
    """(p, log p, lse) along the last axis, in long double."""
    z = np.asarray(x).astype(LONG) / LONG(temperature)
    if where is not None:
        z = np.where(where, z, -np.inf)
    m = z.max(-1, keepdims=True, initial=-np.inf)
    shift = np.where(np.isfinite(m), m, 0)
    terms = np.exp(z - shift)
    total = terms.sum(-1, keepdims=True)
    log_p = z - shift - np.log(total)
    p = terms / total
    unbounded = np.where(m == np.inf, np.nan, 0)  # the row has neither probabilities nor log-probabilities
    p, log_p = p + unbounded, log_p + unbounded
    lse = (shift + np.log(total))[..., 0]
    if where is not None:
        nothing = ~np.any(where, -1, keepdims=True)
        p = np.where(nothing | ~where, 0, p)
        log_p = np.where(nothing | ~where, -np.inf, log_p)
    return p, log_p, lse


def diagonal(d):
    return d[..., :, None] * np.eye(d.shape[-1])


def inner(a, b):
    return (a * b).sum(-1, keepdims=True)


def right_derivative(name, x, v, temperature, from_probs):
    p = np.asarray(x).astype(LONG) if from_probs else softmax_of(x, None, temperature)[0]
    v = None if v is None else np.asarray(v).astype(LONG)
    if name == "softmax_jacobian":
        result = diagonal(p) - p[..., :, None] * p[..., None, :]
    elif name == "log_softmax_jacobian":
        result = np.eye(p.shape[-1]) - np.broadcast_to(p[..., None, :], (*p.shape, p.shape[-1]))
    elif name == "log_softmax_jvp":
        result = v - inner(p, v)
    elif name == "log_softmax_vjp":
        result = v - p * v.sum(-1, keepdims=True)
    else:
        result = p * (v - inner(p, v))
    return result / LONG(temperature)


def capped(x, softcap):
    """The logits c tanh(x/c), and their first and second derivative with respect to x."""
    z = np.asarray(x).astype(LONG)
    if softcap is None:
        return z, LONG(1), LONG(0)
    t = np.tanh(z / LONG(softcap))
    slope = 1 / np.cosh(np.clip(z / LONG(softcap), -5000, 5000)) ** 2
    return LONG(softcap) * t, slope, -2 * t * slope / LONG(softcap)


def chained(derivatives, slope, bend):
    """Derivatives with respect to the logits from those with respect to capped ones; `hvp` has slope v in it."""
    result = {"grad": derivatives["grad"] * slope}
    if "hvp" in derivatives:
        result["hvp"] = derivatives["hvp"] * slope + derivatives["grad"] * bend * derivatives["tangent"]
    if "diag" in derivatives:
        result["diag"] = derivatives["diag"] * slope**2 + derivatives["grad"] * bend
    if "hessian" in derivatives:
        both = np.broadcast_to(slope, derivatives["grad"].shape)
        bent = diagonal(derivatives["grad"] * bend)
        result["hessian"] = derivatives["hessian"] * both[..., :, None] * both[..., None, :] + bent
    return result


def right_z_loss(name, z, slope, bend, v, factor):
    """The losses factor lse**2 of the rows, and their derivatives."""
    p, _, lse = softmax_of(z)
    row = 2 * factor * lse[..., None]
    derivatives = {"grad": row * p}
    if v is not None:
        mean = inner(p, slope * v)
        derivatives |= {"hvp": p * (row * (slope * v - mean) + 2 * factor * mean), "tangent": v}
    if name.endswith("diag"):
        derivatives["diag"] = row * p * (1 - p) + 2 * factor * p**2
    if name.endswith("hessian"):
        outer = p[..., :, None] * p[..., None, :]
        derivatives["hessian"] = row[..., None] * (diagonal(p) - outer) + 2 * factor * outer
    return factor * lse**2, chained(derivatives, slope, bend)


def added(one, other):
    return tuple(map(np.add, one, other)) if isinstance(one, tuple) else one + other


def right_loss(name, x, targets, v, options):
    """The loss with the classes last. The options mean what they mean in PyTorch."""
    z, slope, bend = capped(x, options.get("softcap"))
    p, log_p, _ = softmax_of(z)
    rows, classes = p.shape[:-1], p.shape[-1]
    reduction = options.get("reduction", "mean")
    weights = np.ones(rows, LONG)
    if options.get("sample_weight") is not None:
        weights = np.asarray(options["sample_weight"]).astype(LONG)
    targets = np.asarray(targets)
    if name in ROW_LOSSES:
        t = np.eye(classes, dtype=LONG)[targets.astype(np.int64)] if name in LABELLED else targets.astype(LONG)
        losses, slope = oracle.ROW_LOSSES[FUNCTIONS[name].loss](np.asarray(x).astype(LONG), p, t)
        losses = weights * losses
        divisor = weights.sum() if options.get("sample_weight") is not None else LONG(losses.size)
        return finish(name, losses, {"grad": slope}, weights, divisor, reduction)
    class_weight = np.ones(classes, LONG)
    if options.get("class_weight") is not None:
        class_weight = np.asarray(options["class_weight"]).astype(LONG)
    divisor = LONG(weights.size)
    if targets.ndim < p.ndim:
        labels = targets.astype(np.int64)
        ignored = np.zeros(rows, bool)
        if options.get("ignore_index") is not None:
            ignored = labels == options["ignore_index"]
        inside = np.where(ignored, 0, labels)
        y = np.eye(classes, dtype=LONG)[inside] if classes else np.zeros(p.shape, LONG)
        weights = np.where(ignored, 0, weights)
        if any(options.get(k) is not None for k in ("class_weight", "sample_weight", "ignore_index")):
            divisor = (weights * (class_weight[inside] if classes else 0)).sum()
        if classes and not options.get("label_smoothing") and not options.get("z_loss") and divisor != 0:
            weights = np.where(class_weight[inside] == 0, 0, weights)  # the row has no influence, but 0/0 is nan
    else:
        y = targets.astype(LONG)
    smoothing = LONG(options.get("label_smoothing", 0.0))
    counted = weights
    if targets.ndim < p.ndim:
        counted = np.where(ignored, 0, np.asarray(options.get("sample_weight", 1)).astype(LONG)) * np.ones(rows)
    shares = class_weight * ((1 - smoothing) * y + smoothing / max(classes, 1))
    wrong = np.isnan(z).any(-1) & ((shares != 0).any(-1) | bool(options.get("z_loss")))
    not_a_number = np.where(wrong, np.nan, 0)  # also if it is the logit of a class without a share
    losses = weights * (np.where(shares == 0, 0, -shares * log_p).sum(-1) + not_a_number)
    whole = shares.sum(-1, keepdims=True)
    derivatives = {"grad": p * whole - shares}
    if v is not None:
        derivatives |= {"hvp": whole * p * (slope * v - inner(p, slope * v)), "tangent": v}
    if name == "cross_entropy_hessian_diag":
        derivatives["diag"] = whole * p * (1 - p)
    if name == "cross_entropy_hessian":
        derivatives["hessian"] = whole[..., None] * (diagonal(p) - p[..., :, None] * p[..., None, :])
    if "grad" not in name and divisor != 0 and not options.get("z_loss"):  # the Hessian without shares is 0
        weights = np.where(whole[..., 0] == 0, 0, weights)
    result = finish(name, losses, chained(derivatives, slope, bend), weights, divisor, reduction)
    if not options.get("z_loss"):
        return result
    losses, derivatives = right_z_loss(name, z, slope, bend, v, LONG(options["z_loss"]))
    losses = np.where(counted == 0, 0, counted * losses)
    return added(result, finish(name, losses, derivatives, counted, divisor, reduction))


def right_divergence(name, x, t, options):
    """The divergence with the classes last, and its gradient."""
    temperature = LONG(options.get("temperature", 1.0))
    (p, log_p, _), (q, log_q, _) = softmax_of(x, None, temperature), softmax_of(t, None, temperature)

    def mean(weigh, values):
        return np.where(weigh == 0, 0, weigh * values).sum(-1)

    beta = LONG(options.get("beta", 0.5))
    if name.startswith("js"):
        log_m = np.logaddexp(np.log(beta) + log_q, np.log1p(-beta) + log_p)
        losses = beta * mean(q, log_q - log_m) + (1 - beta) * mean(p, log_p - log_m)
        slope = (1 - beta) * np.where(p == 0, 0, p * (log_p - log_m - mean(p, log_p - log_m)[..., None]))
    elif options.get("reverse"):
        losses = mean(p, log_p - log_q)
        slope = np.where(p == 0, 0, p * (log_p - log_q - losses[..., None]))
    else:
        losses, slope = mean(q, log_q - log_p), p - q
    if x.shape[-1] == 0:
        losses = np.full_like(losses, np.nan)
    weights = np.ones(losses.shape, LONG)
    if options.get("sample_weight") is not None:
        weights = np.asarray(options["sample_weight"]).astype(LONG)
    divisor = weights.sum() if options.get("sample_weight") is not None else LONG(losses.size)
    losses = np.where(weights == 0, 0, weights * losses)
    return finish(name, losses, {"grad": slope / temperature}, weights, divisor, options.get("reduction", "mean"))


def finish(name, losses, derivatives, weights, divisor, reduction):
    factor = LONG(1)
    if reduction == "mean":
        factor = 1 / divisor if divisor else LONG(np.nan)
    loss = losses if reduction == "none" else losses.sum() * factor

    def scaled(d):
        w = weights.reshape(weights.shape + (1,) * (d.ndim - weights.ndim))
        return np.where(w == 0, 0, d * w * factor)

    if name.endswith("with_grad"):
        return loss, scaled(derivatives["grad"])
    for ending in ("grad", "hvp", "diag", "hessian"):
        if name.endswith(ending):
            return scaled(derivatives[ending])
    return loss


# --- cases ---------------------------------------------------------------------------------------------------


@st.composite
def cases(draw, names, dtypes, full):
    """(name, arguments, options, kind, spoiled)."""
    name = draw(st.sampled_from(names))
    spoils = [spoil for spoil in SPOILS if spoil != "labels" or name in CROSS_ENTROPIES + LABELLED]
    spoiled = draw(st.sampled_from([None] * 2 * len(spoils) + spoils))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    limit = 40 if name in SQUARE else MOST
    shape = draw(st.lists(LENGTHS, min_size=1, max_size=4))
    axis = draw(st.integers(0, len(shape) - 1))
    if name in LABELLED:
        shape[axis] = max(shape[axis], 1)  # no label is right where there are no classes
    while np.prod(shape) > MOST or (name in SQUARE and (shape[axis] > limit or np.prod(shape) > 2000)):
        shape[int(np.argmax(shape))] //= 3
    kind = draw(st.sampled_from(["normal", "wide", "equal", "special"]))
    layouts = st.sampled_from(LAYOUTS)
    x = laid_out(rng, contents(rng, shape, draw(st.sampled_from(dtypes)), kind), draw(layouts))
    rows = [n for k, n in enumerate(shape) if k != axis]
    given_axis = axis - len(shape) if draw(st.booleans()) else axis
    options = {} if given_axis == -1 and draw(st.booleans()) else {"axis": given_axis}
    arguments = [x]

    def another(dtype_choices, shape=shape):
        dtype = draw(st.sampled_from(dtype_choices))
        return laid_out(rng, contents(rng, shape, dtype, "normal"), draw(layouts))

    def weights(shape):
        w = rng.random(shape) * (rng.random(shape) < 0.8)
        return laid_out(rng, w.astype(draw(st.sampled_from(["f4", "f8"]))), draw(layouts))

    if name in ACTIVATIONS and draw(st.integers(0, 3)) == 0:
        mask = rng.random(shape) < 0.7
        options["where"] = laid_out(rng, mask, draw(layouts))
    if name == "logsumexp":
        options["keepdims"] = draw(st.booleans())
    elif name in ACTIVATIONS + ENTROPIES + JACOBIANS + PRODUCTS and full and draw(st.booleans()):
        options["temperature"] = draw(st.sampled_from([0.5, 1.0, 2, np.float32(3.0)]))
    if name in ("softmax_jacobian", "softmax_jvp", "softmax_vjp") and full and x.dtype.kind == "f":
        options["from_probs"] = draw(st.booleans())
    if name in LABELLED:
        arguments.append(laid_out(rng, rng.integers(0, max(shape[axis], 1), rows), draw(layouts)))
    elif name in PRODUCTS + ROW_LOSSES + DIVERGENCES:
        arguments.append(another(dtypes))
    if name in DIVERGENCES and full:
        if draw(st.booleans()):
            options["temperature"] = draw(st.sampled_from([0.5, 1.0, 2, np.float32(3.0)]))
        if draw(st.booleans()):
            options |= {"beta": draw(st.sampled_from([0.25, 0.5]))} if name.startswith("js") else {"reverse": True}
    if name in CROSS_ENTROPIES:
        if (spoiled == "labels" or draw(st.booleans())) and shape[axis]:
            labels = rng.integers(0, shape[axis], rows)
            if full and draw(st.booleans()):
                options["ignore_index"] = draw(st.sampled_from([0, -100, 1]))
                if options["ignore_index"] == -100:
                    labels = np.where(rng.random(rows) < 0.3, -100, labels)
            choices = [d for d in LABELS if labels.size == 0 or np.array_equal(labels.astype(d), labels)]
            label_dtype = draw(st.sampled_from(choices))
            arguments.append(laid_out(rng, labels.astype(label_dtype), draw(layouts)))
        else:
            y = rng.random(shape) * (rng.random(shape) < 0.6)
            dtype = draw(st.sampled_from(["f4", "f8", "f2", "i8"]))
            arguments.append(laid_out(rng, y.astype(dtype), draw(layouts)))
        if name.endswith("hvp"):
            arguments.append(another(dtypes))
        if full and draw(st.booleans()):
            options["class_weight"] = weights([shape[axis]])
        if full and draw(st.booleans()):
            options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 1.0]))
        if full and draw(st.booleans()):
            options["z_loss"] = draw(st.sampled_from([0.0, 0.01]))
            options["softcap"] = draw(st.sampled_from([None, 3.0, 30]))
    if name in CROSS_ENTROPIES + ROW_LOSSES + DIVERGENCES:
        if full and draw(st.booleans()):
            options["sample_weight"] = weights(rows)
        options["reduction"] = draw(st.sampled_from(["mean", "sum", "none"]))
        if options["reduction"] == "none" and name in ("cross_entropy_hvp",) and draw(st.booleans()):
            del options["reduction"]
        labelled = arguments[1].ndim < len(shape) or name in ROW_LOSSES + DIVERGENCES
        mean = options.get("reduction", "mean") == "mean"
        if labelled and mean and not options.get("z_loss"):  # whatever weights have in common cancels
            for key in {"class_weight", "sample_weight"} & options.keys():
                options[key] = options[key] * options[key].dtype.type(draw(st.sampled_from([1, 1, 1e-30, 1e30])))
    if spoiled is not None and not SPOILS[spoiled](rng, name, arguments, options):
        spoiled = None
    return name, arguments, options, kind, spoiled


def spoil_dtype(rng, name, arguments, options):
    at = rng.integers(len(arguments))
    dtype = rng.choice(["c8", "O", "U3", "M8[s]", "g"])
    arguments[at] = np.zeros(np.shape(arguments[at]), dtype)
    return True


def spoil_mask(rng, name, arguments, options):
    arguments[rng.integers(len(arguments))] = np.ma.masked_array(np.zeros(3), [0, 1, 0])
    return True


def spoil_axis(rng, name, arguments, options):
    options["axis"] = [99, -99, 1.5, "0", 2**70][rng.integers(5)]
    return True


def spoil_labels(rng, name, arguments, options):
    if name not in CROSS_ENTROPIES + LABELLED or arguments[1].ndim == arguments[0].ndim or arguments[1].size == 0:
        return False
    classes = arguments[0].shape[options.get("axis", -1)]
    bad = [-1, classes, 2**40, -(2**62)]
    labels = np.array(arguments[1], np.int64, order="C")
    labels.reshape(-1)[rng.integers(labels.size)] = bad[rng.integers(4)]
    arguments[1] = labels
    options.pop("ignore_index", None)
    return True


def spoil_shape(rng, name, arguments, options):
    if len(arguments) < 2:
        return False
    at = rng.integers(1, len(arguments))
    arguments[at] = np.zeros((*arguments[at].shape, 2, 2, 2), arguments[at].dtype)
    return True


def spoil_option(rng, name, arguments, options):
    if name in CROSS_ENTROPIES + ROW_LOSSES + DIVERGENCES:
        options["reduction"] = ["average", None, 1, np.zeros(2)][rng.integers(4)]
    elif name == "logsumexp":
        options["where"] = [np.ones(3), "yes", np.ones((1, 1, 1, 1, 1, 2), bool)][rng.integers(3)]
    else:
        options["temperature"] = [0.0, -1.0, np.nan, np.inf, "1", None][rng.integers(6)]
    return True


def spoil_out(rng, name, arguments, options):
    if name not in ACTIVATIONS + ENTROPIES + JACOBIANS + PRODUCTS:
        return False
    options["out"] = [[], np.zeros(3, "c16"), np.zeros((7, 7, 7, 7, 7)), 5][rng.integers(4)]
    return True


SPOILS = {
    "dtype": spoil_dtype,
    "mask": spoil_mask,
    "axis": spoil_axis,
    "labels": spoil_labels,
    "shape": spoil_shape,
    "option": spoil_option,
    "out": spoil_out,
}


def arguments_dtype(arguments):
    """The dtype in which the second argument is computed."""
    dtype = arguments[0].dtype
    return {"e": np.float32, "f": np.float32}.get(dtype.char, np.float64)


def expected(name, arguments, options):
    """The right result with the classes last, and the scale of absolute errors."""
    axis = options.get("axis", -1)

    def last(array):
        return np.moveaxis(np.asarray(array), axis, -1)

    x = last(arguments[0])
    scale = max([1.0, *(abs(float(a.max(initial=0))) for a in arguments[1:] if a.dtype.kind in "fiu")])
    with np.errstate(all="ignore"):
        if name in ACTIVATIONS:
            where = options.get("where")
            temperature = options.get("temperature", 1.0)
            p, log_p, lse = softmax_of(x, None if where is None else last(where), temperature)
            if name == "logsumexp":
                scale = float(np.abs(np.asarray(x, LONG)).max(initial=1, where=np.isfinite(x)))
                return (lse[..., None] if options["keepdims"] else lse), scale
            return (p if name == "softmax" else log_p), 1.0
        if name in ENTROPIES:
            temperature = LONG(options.get("temperature", 1.0))
            p, log_p, _ = softmax_of(x, None, temperature)
            entropy = -np.where(p == 0, 0, p * log_p).sum(-1)
            if x.shape[-1] == 0:
                entropy = np.full_like(entropy, np.nan)
            slope = np.where(p == 0, 0, -p * (log_p + entropy[..., None]) / temperature)
            return ((entropy, slope) if name.endswith("grad") else entropy), 40.0 / min(float(temperature), 1.0)
        second = last(arguments[1]) if len(arguments) > 1 and arguments[1].ndim == x.ndim else None
        if name in JACOBIANS + PRODUCTS:
            temperature, from_probs = options.get("temperature", 1.0), options.get("from_probs", False)
            if from_probs:
                scale *= float(np.abs(np.asarray(x, LONG)).max(initial=1, where=np.isfinite(x))) ** 2
            return right_derivative(name, x, second, temperature, from_probs), 40 * scale
        if name in DIVERGENCES:
            wide = float(np.abs(np.asarray(x, LONG)).max(initial=1, where=np.isfinite(x)))
            return right_divergence(name, x, second.astype(arguments_dtype(arguments)), options), 40 * (
                scale + wide
            )
        targets = arguments[1] if second is None else second
        tangent = last(arguments[2]).astype(LONG) if len(arguments) > 2 else None
        if options.get("z_loss"):
            scale *= 1 + float(np.abs(np.asarray(x, LONG)).max(initial=1, where=np.isfinite(x))) ** 2
        return right_loss(name, x, targets, tangent, options), 100 * scale * scale


def compare(name, actual, right, scale, axis, kind):
    """`axis` is the axis of the classes in the result, None if they are last or absent."""
    actual = np.asarray(actual)
    moved = actual if axis is None else np.moveaxis(actual, axis, -1)
    assert moved.shape == right.shape, (moved.shape, right.shape)
    eps = float(np.finfo(actual.dtype).eps)
    if kind == "special":
        # test_edge_rows tests the results of infinities and NaN; here the other rows have to be right.
        ordinary = np.isfinite(right)
    else:
        ordinary = np.ones(right.shape, bool)
    got, wanted = moved[ordinary].astype(LONG), right[ordinary]
    top = np.finfo(actual.dtype).max
    with np.errstate(all="ignore"):
        near = np.abs(got - wanted) <= 300 * eps * (np.abs(wanted) + scale)
        same = (got == wanted) | (np.isnan(got) & np.isnan(wanted)) | (np.isinf(got) & (np.abs(wanted) >= top / 2))
    wrong = ~(near | same)
    assert not wrong.any(), (name, got[wrong][:3], wanted[wrong][:3])


def check(case):
    name, arguments, options, kind, spoiled = case
    arrays = [*arguments, *(o for o in options.values() if isinstance(o, np.ndarray))]
    before = [a.tobytes() for a in arrays]
    function = getattr(fs, name)
    if spoiled is not None:
        with pytest.raises(DOCUMENTED):
            function(*arguments, **options)
    else:
        actual = function(*arguments, **options)
        right, scale = expected(name, arguments, options)
        axis = options.get("axis", -1)
        loss = FUNCTIONS[name].result == (_spec.LOSS,)
        rows = loss or name in SQUARE or name == "softmax_entropy"
        if isinstance(actual, tuple):
            summed = 1 if name in ENTROPIES else 1 + arguments[0].size
            compare(name, actual[0], np.asarray(right[0]), scale * summed, None, kind)
            actual, right = actual[1], right[1]
        elif loss:
            scale *= 1 + arguments[0].size
        if rows or (name == "logsumexp" and not options["keepdims"]):
            axis = None
        compare(name, actual, np.asarray(right), scale, axis, kind)
    assert [a.tobytes() for a in arrays] == before, "an input has changed"


relaxed = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
FEW = ("softmax", "logsumexp", "softmax_jvp", "cross_entropy_with_grad")


@pytest.mark.parametrize("name", FEW)
@settings(deadline=None, max_examples=150, derandomize=True, suppress_health_check=relaxed)
@given(st.data())
def test_anything(name, data):
    """A few functions in one dtype, to save compilation, and the same cases in every run."""
    check(data.draw(cases((name,), ["f8", ">f8", "i4", "?"], full=False)))


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=6500, suppress_health_check=relaxed)
@given(st.data())
def test_anything_at_all(name, data):
    """Every function, 6,500 cases each."""
    check(data.draw(cases((name,), DTYPES, full=True)))


# --- focal and binary losses ----------------------------------------------------------------------------------

FOCAL, BINARY = named("focal", "focal curvature"), named("binary entropy", "binary focal")
ROUGH = 500


def right_focal(x, labels, gamma):
    """Loss, gradient and diagonal of the Hessian of each row, classes last, in long double."""
    p, log_p, _ = softmax_of(x)
    label = np.eye(p.shape[-1], dtype=bool)[labels]
    own, log_own = p[label].reshape(labels.shape), log_p[label].reshape(labels.shape)
    q = np.where(label, 0, p).sum(-1)
    ratio = np.where(q > 0, -log_own / np.where(q > 0, q, 1), 1)
    slope = q**gamma * (1 + gamma * own * ratio)
    bend = gamma * q ** (gamma + 1) * own * (2 + log_own + (gamma - 1) * own * ratio)
    away = np.where(label, -q[..., None], p)
    share = away / np.where(q > 0, q, 1)[..., None]  # at most 1
    lacking = np.where(label, q[..., None], 1 - p)
    curve = slope[..., None] * p * lacking + bend[..., None] * share**2
    return -(q**gamma) * log_own, slope[..., None] * away, curve


def right_binary(name, x, t, options):
    """Loss, first and second derivative of each entry, in long double."""
    z, t = np.asarray(x).astype(LONG), np.asarray(t).astype(LONG)
    e = np.exp(-np.abs(z))
    p, q = np.where(z > 0, 1, e) / (1 + e), np.where(z > 0, e, 1) / (1 + e)
    plus, minus = np.log1p(e) + np.where(z > 0, 0, -z), np.log1p(e) + np.where(z > 0, z, 0)
    if "focal" not in name:
        smoothing, weight = (
            options.get("label_smoothing", 0),
            np.asarray(options.get("pos_weight", 1)).astype(LONG),
        )
        t = t * (1 - LONG(smoothing)) + LONG(smoothing) / 2
        both = weight * t + 1 - t
        return weight * t * plus + (1 - t) * minus, (1 - t) * p - weight * t * q, both * p * q
    gamma, alpha = LONG(options.get("gamma", 2.0)), options.get("alpha")
    factor = 1 if alpha is None else LONG(alpha) * t + (1 - LONG(alpha)) * (1 - t)
    wrong, loss, slope = t * q + (1 - t) * p, t * plus + (1 - t) * minus, (1 - t) * p - t * q
    ratio = (1 - 2 * t) * p * q / np.where(wrong > 0, wrong, 1)
    power = factor * wrong**gamma
    first = power * (gamma * ratio * loss + slope)
    terms = gamma * (gamma - 1) * ratio**2 * loss + gamma * ratio * (q - p) * loss + 2 * gamma * ratio * slope
    return power * loss, first, power * (terms + p * q)


def assert_close(name, actual, right, options, weights, terms=0):
    """`actual` against loss, first and second derivative of each row or entry.

    Where terms cancel, the error may be `terms` eps of the greatest result.
    """
    right = [weights.reshape(weights.shape + (1,) * (r.ndim - weights.ndim)) * r for r in right]
    reduction = options["reduction"]
    divisor = weights.sum() if reduction == "mean" else LONG(1)
    loss = right[0] if reduction == "none" else right[0].sum() / divisor
    wanted = {"grad": right[1] / divisor, "diag": right[2] / divisor}.get(name.rpartition("_")[2], loss)
    expected = (loss, right[1] / divisor) if name.endswith("with_grad") else (wanted,)
    for one, other in zip(actual if isinstance(actual, tuple) else (actual,), expected, strict=True):
        assert np.shape(one) == np.shape(other)
        eps = float(np.finfo(np.asarray(one).dtype).eps)
        greatest = float(np.max(np.abs(other), initial=0))
        near = max(ROUGH * eps * max(1.0, greatest) / max(1, np.size(one)), terms * eps * greatest)
        np.testing.assert_allclose(np.asarray(one).astype(LONG), other, rtol=ROUGH * eps, atol=near)


def check_focal_or_binary(name, data, terms=0):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = tuple(data.draw(st.lists(LENGTHS.filter(bool), min_size=1, max_size=3)))
    shape = shape if np.prod(shape) <= MOST else shape[:1]
    dtype = data.draw(st.sampled_from([d for d in DTYPES if d != "f2"]))
    kind = data.draw(st.sampled_from(["normal", "wide", "equal"]))
    x = contents(rng, shape, dtype, kind)
    computed = np.float32 if np.dtype(dtype).itemsize == 4 and np.dtype(dtype).kind == "f" else np.float64
    layouts_ = st.sampled_from(LAYOUTS)
    options = {"reduction": data.draw(st.sampled_from(["mean", "sum", "none"]))}
    binary = name in BINARY
    rows = shape if binary else shape[:-1]
    weights = np.ones(rows, LONG)
    if data.draw(st.booleans()):
        options["sample_weight"] = laid_out(rng, rng.random(rows).astype(computed), data.draw(layouts_))
        weights = np.asarray(options["sample_weight"]).astype(LONG)
    if "focal" in name:
        options["gamma"] = data.draw(st.sampled_from([0, 0.5, 1, 2.0, 5]))
    if binary:
        targets = contents(rng, shape, "?", "") if data.draw(st.booleans()) else rng.random(shape).astype(computed)
        if "focal" in name:
            options["alpha"] = data.draw(st.sampled_from([None, 0.25, 1]))
        else:
            options["pos_weight"] = data.draw(st.sampled_from([1, 2.5, rng.random(shape[-1:]).astype(computed)]))
            options["label_smoothing"] = data.draw(st.sampled_from([0.0, 0.125]))
        wrong = targets.astype(computed) + 2
        right = right_binary(name, x, targets, options)
    else:
        targets = rng.integers(0, shape[-1], rows).astype(data.draw(st.sampled_from(["i8", "u1", ">i4"])))
        wrong = targets.astype(np.int64) - 1000
        right = right_focal(x, targets.astype(np.int64), LONG(options["gamma"]))
    x = laid_out(rng, x, data.draw(layouts_))
    function = getattr(fs, name)
    if data.draw(st.integers(0, 3)) == 0:
        with pytest.raises((ValueError, IndexError)):
            function(x, laid_out(rng, wrong, data.draw(layouts_)), **options)
        return
    targets = laid_out(rng, targets, data.draw(layouts_))
    before = x.tobytes(), targets.tobytes()
    assert_close(name, function(x, targets, **options), right, options, weights, terms)
    assert (x.tobytes(), targets.tobytes()) == before, "an input has changed"


@pytest.mark.parametrize("name", FOCAL + BINARY)
@settings(deadline=None, max_examples=15, derandomize=True, suppress_health_check=relaxed)
@given(st.data())
def test_focal_and_binary_losses_of_anything(name, data):
    """Any dtype, layout and options; targets that are wrong in one case out of four."""
    check_focal_or_binary(name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOCAL + BINARY)
@settings(deadline=None, max_examples=5000, suppress_health_check=relaxed)
@given(st.data())
def test_focal_and_binary_losses_of_anything_at_all(name, data):
    """Some of so many entries cancel."""
    check_focal_or_binary(name, data, terms=8)


# --- the same bits from chunks and files ---------------------------------------------------------------------

DERIVATIVES = tuple(
    name
    for name in EVERY
    if FUNCTIONS[name].family == "curvature" or FUNCTIONS[name].result == (_spec.LOSS, _spec.LIKE)
)


def chunked(rng, x, axis):
    """x as a Dask array whose rows are whole."""
    import dask.array as da

    sizes = [n if k == axis else int(rng.integers(1, max(n, 1) + 1)) for k, n in enumerate(x.shape)]
    return da.from_array(x, chunks=sizes)


def from_files(name, arguments, options, folder):
    """The derivative by ``fastsoftmax run``, in small blocks."""
    x, others = arguments[0], dict(zip((FUNCTIONS[name].second, "tangent"), arguments[1:], strict=False))
    for key in ("class_weight", "sample_weight"):
        if options.get(key) is not None:
            others[key] = options[key]
    command = ["run", name.removesuffix("_with_grad").replace("_", "-"), str(folder / "x.npy")]
    np.save(folder / "x.npy", x)
    for key, array in others.items():
        np.save(folder / f"{key}.npy", array)
        command += ["--" + key.replace("_", "-"), str(folder / f"{key}.npy")]
    if options.get("reverse"):
        command.append("--reverse")
    numbers = ("label_smoothing", "z_loss", "softcap", "temperature", "beta")
    for key in ("axis", "ignore_index", "reduction", *numbers):
        if options.get(key) is not None:
            command.append(f"--{key.replace('_', '-')}={options[key]}")
    command += ["--grad" if name.endswith("grad") else "--output", str(folder / "y.npy"), "--force"]
    if name.endswith("grad") and options.get("reduction") == "none":
        command += ["--output", str(folder / "rows.npy")]
    assert main(command) == 0
    return np.load(folder / "y.npy")


def check_bits(data, name, dtypes):
    """Memory, Dask and files give the same bits where all walk a row the same way: classes last and in C order."""
    sound = cases((name,), dtypes, full=True).filter(lambda case: case[-1] is None and case[1][0].size)
    _, arguments, options, _, _ = data.draw(sound)
    axis = options.pop("axis", -1)
    wide = arguments[0].ndim
    arguments = [np.array(np.moveaxis(a, axis, -1) if a.ndim == wide else a, order="C") for a in arguments]
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))

    def derivative(*arrays):
        result = getattr(fs, name)(*arrays, **options)
        return result[1] if isinstance(result, tuple) else result

    expected = derivative(*arguments)
    lazy = derivative(chunked(rng, arguments[0], wide - 1), *arguments[1:]).compute()
    assert lazy.dtype == expected.dtype
    np.testing.assert_array_equal(lazy, expected)
    with tempfile.TemporaryDirectory() as folder, patch.object(stream, "BLOCK_BYTES", 1 << 8):
        actual = from_files(name, arguments, options, Path(folder))
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", DERIVATIVES)
@settings(deadline=None, max_examples=30, derandomize=True, suppress_health_check=relaxed)
@given(st.data())
def test_chunks_and_files_have_the_bits_of_memory(name, data):
    pytest.importorskip("dask.array")
    check_bits(data, name, ["f4"])


@pytest.mark.slow
@pytest.mark.parametrize("name", DERIVATIVES)
@settings(deadline=None, max_examples=1500, suppress_health_check=relaxed)
@given(st.data())
def test_chunks_and_files_always_have_the_bits_of_memory(name, data):
    pytest.importorskip("dask.array")
    check_bits(data, name, DTYPES)
