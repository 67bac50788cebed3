"""Arbitrary arguments of statistics, draws, segments and products: the right result or a documented error.

As in `test_fuzz`, but each case is made from one seed, because most of their arguments depend on each other. The
results are compared with definitions, or with the functions of whole rows, which `test_fuzz` tests. In one case of
five an argument is spoiled, and the call has to raise.
"""

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from test_fuzz import DOCUMENTED, DTYPES, LABELS, LAYOUTS, LONG, contents, laid_out, relaxed, softmax_of

import fastsoftmax as fs
from fastsoftmax import _spec
from fastsoftmax._spec import FUNCTIONS
from fastsoftmax.arrays.blocks import computed_in

LENGTHS = [1, 2, 3, 5, 9, 16, 17, 40, 65, 130, 700]
STATISTICS = ("label_statistics",)
DRAWS = ("categorical", "filter_logits")
RAGGED = tuple(name for name, entry in FUNCTIONS.items() if entry.is_ragged)
LINEAR = tuple(name for name, entry in FUNCTIONS.items() if entry.of_products)
EPS = {"f": 1.2e-7, "d": 2.3e-16}


def computed(x):
    """The array in the dtype of the computation."""
    x = np.asarray(x)
    return x.astype(computed_in(x.dtype)[1])


def tolerance(x, terms=300):
    """Some eps of the results, which may be float16."""
    returned = computed_in(np.asarray(x).dtype)[0]
    return terms * float(np.finfo(returned).eps)


def anything(rng, shape, dtypes=DTYPES, kind=None):
    """Numbers of any dtype and layout."""
    kind = kind or rng.choice(["normal", "wide", "equal"])
    return laid_out(rng, contents(rng, shape, rng.choice(dtypes), kind), rng.choice(LAYOUTS))


def labels_below(rng, classes, shape, ignored=None):
    """Labels of any dtype that holds them, some of which are `ignored`."""
    labels = rng.integers(0, classes, shape)
    if ignored is not None:
        labels = np.where(rng.random(shape) < 0.3, ignored, labels)
    choices = [dtype for dtype in LABELS if np.array_equal(labels.astype(dtype), labels)]
    return laid_out(rng, labels.astype(rng.choice(choices)), rng.choice(LAYOUTS))


def some(rng, options):
    """Some of the options."""
    return {key: value for key, value in options.items() if rng.random() < 0.4}


def refused(rng, function, arguments, options, others):
    """Whether an argument was spoiled, so that the call raised. `others` are wrong values of options."""
    if rng.random() > 0.2:
        return False
    at = int(rng.integers(len(arguments) + len(others)))
    if at >= len(arguments):
        key, values = list(others.items())[at - len(arguments)]
        options = {**options, key: values[rng.integers(len(values))]}
    else:
        wrong = [np.zeros(np.shape(arguments[at]), "c8"), "a", np.ma.masked_array([1.0])]
        wrong += [np.zeros((2, 3, 4, 5, 6))] if at else []  # logits may have any shape
        arguments = [*arguments[:at], wrong[rng.integers(len(wrong))], *arguments[at + 1 :]]
    with pytest.raises(DOCUMENTED):
        function(*arguments, **options)
    return True


def rows_last(x, axis):
    return np.moveaxis(np.asarray(x), axis, -1)


def problem(rng):
    """Logits, the axis of the classes, the number of classes and the shape of the rows."""
    shape = [int(n) for n in rng.choice([1, 2, 3, 7, 20], rng.integers(0, 3))]
    axis = int(rng.integers(len(shape) + 1))
    shape.insert(axis, int(rng.choice(LENGTHS)))
    return anything(rng, shape), axis, shape[axis], tuple(shape[:axis] + shape[axis + 1 :])


# --- statistics of labels -------------------------------------------------------------------------------------


def check_statistics(rng, name):
    x, axis, classes, rows = problem(rng)
    options = some(rng, {"temperature": rng.choice([0.5, 3.0]), "ignore_index": int(rng.choice([-100, 0]))})
    labels = labels_below(rng, classes, rows, options.get("ignore_index"))
    if refused(rng, fs.label_statistics, [x, labels, axis], options, {"temperature": [0, -1, np.nan, "a"]}):
        return
    found = fs.label_statistics(x, labels, axis, **options)
    z = rows_last(computed(x), axis)
    p, log_p, lse = softmax_of(z, None, options.get("temperature", 1.0))
    wanted = np.asarray(labels, np.int64)
    ignored = wanted == options.get("ignore_index", -(10**6))
    at = np.where(ignored, 0, wanted)[..., None]
    own = np.take_along_axis(z, at, -1)
    np.testing.assert_array_equal(found.rank, np.where(ignored, -1, (z > own).sum(-1)))
    np.testing.assert_array_equal(found.argmax, z.argmax(-1))
    near = {"rtol": tolerance(x), "atol": tolerance(x) * max(1.0, float(np.abs(lse).max(initial=0)))}
    log_prob = np.where(ignored, 0, np.take_along_axis(log_p, at, -1)[..., 0])
    np.testing.assert_allclose(found.log_prob, log_prob, **near)
    np.testing.assert_allclose(found.logsumexp, lse, **near)
    entropy = -np.where(p == 0, 0, p * log_p).sum(-1)
    np.testing.assert_allclose(found.entropy, entropy, rtol=near["rtol"], atol=near["rtol"] * 10)


# --- draws ----------------------------------------------------------------------------------------------------


def kept_by(row, top_k=None, top_p=None, min_p=None, temperature=1.0):
    """Which classes the filters keep, and whether roundings decide about one of them."""
    order = np.argsort(-row, kind="stable")
    ratios = np.exp((row[order] - row[order[0]]) / LONG(temperature))
    ratios, order, close = ratios[:top_k], order[:top_k], False
    if top_p is not None:
        mass = ratios.cumsum() / ratios.sum()
        close |= bool(np.abs(mass - LONG(top_p)).min() < 1e-6)
        count = int((mass < top_p).sum()) + 1
        ratios, order = ratios[:count], order[:count]
    if min_p is not None:
        close |= bool(np.abs(ratios / LONG(min_p) - 1).min() < 1e-5)
        order = order[ratios >= min_p]
    return np.isin(np.arange(len(row)), order), close


def check_draws(rng, name):
    x, axis, _, rows = problem(rng)
    filters = {
        "top_k": int(rng.choice([1, 2, 50])),
        "top_p": rng.choice([0.3, 0.9]),
        "min_p": rng.choice([0.01, 0.5]),
    }
    options = some(rng, {**filters, "temperature": rng.choice([0.5, 3.0])})
    wrong = {"top_k": [0, -1, 1.5], "top_p": [0.0, 1.5, np.nan], "min_p": [-0.1, 1.5], "temperature": [0, np.inf]}
    function, size = getattr(fs, name), None
    if name == "categorical":
        size = [None, 3, (2, 5)][rng.integers(3)]
        shape = () if size is None else np.broadcast_shapes(size)
        uniforms = rng.random((*shape, *rows))
        options |= {"uniforms": laid_out(rng, uniforms, rng.choice(LAYOUTS)), "size": size}
        wrong |= {"uniforms": [uniforms + 1, uniforms[None], "a"], "size": [-1, 1.5, (2, -3)]}
    if refused(rng, function, [x, axis], options, wrong):
        return
    found = np.asarray(function(x, axis, **options))
    z = rows_last(computed(x), axis)
    given = {key: options[key] for key in (*filters, "temperature") if key in options}
    for place in np.ndindex(rows):
        kept, close = kept_by(z[place].astype(LONG), **given)
        if close:
            continue
        if name == "filter_logits":
            np.testing.assert_array_equal(rows_last(found, axis)[place], np.where(kept, z[place], -np.inf))
            continue
        p = softmax_of(z[place], kept, options.get("temperature", 1.0))[0]
        ends = p.cumsum()
        drawn, u = found[(..., *place)].reshape(-1), np.asarray(options["uniforms"])[(..., *place)].reshape(-1)
        slack = 2e-6 if z.dtype == np.float32 else 1e-13
        assert (kept[drawn]).all()
        assert (u <= ends[drawn] + slack).all()
        assert (u >= ends[drawn] - p[drawn] - slack).all()


# --- segments -------------------------------------------------------------------------------------------------


def check_ragged(rng, name):
    lengths = rng.choice([0, 1, 2, 3, 9, 40, 65, 300], rng.integers(1, 20))
    lengths = lengths if name != "segment_categorical" else np.maximum(lengths, 1)
    indptr = np.concatenate([[0], lengths.cumsum()])
    total, segments = int(indptr[-1]), list(pairwise(indptr))
    entry, function = FUNCTIONS[name], getattr(fs, name)
    x = anything(rng, (total,))
    arguments = [x, laid_out(rng, indptr.astype(rng.choice(["i4", "i8", "u4", ">i8"])), rng.choice(LAYOUTS))]
    options, per_row, wrong = {}, (), {}
    if {_spec.TANGENT, _spec.COTANGENT, _spec.TARGET_LOGITS} & {*entry.operands}:
        arguments.append(anything(rng, (total,), kind="normal"))
    if _spec.POSITIONS in entry.operands:
        positions = np.where(lengths == 0, -7, rng.integers(0, np.maximum(lengths, 1)))
        arguments.append(laid_out(rng, positions.astype(rng.choice(["i4", "i8", "i2"])), rng.choice(LAYOUTS)))
        options = some(rng, {"label_smoothing": 0.1}) | {"ignore_index": -7}
        wrong = {"label_smoothing": [-1, 2, "a"]}
    if entry.result[0] == _spec.LOSS:
        options["reduction"] = "none"
        wrong["reduction"] = ["men", 1]
    if "kl" in name:
        options |= some(rng, {"reverse": True, "sample_weight": rng.random(len(lengths))})
        per_row, wrong["sample_weight"] = ("sample_weight",), [np.ones(len(lengths) + 1), "a"]
    if name == "segment_categorical":
        per_row = ("uniforms",)
        options = {"uniforms": rng.random(len(lengths)), **some(rng, {"top_k": 3, "temperature": 2.0})}
        wrong = {"uniforms": [np.ones(len(lengths)), "a"], "top_k": [0]}
    if refused(rng, function, arguments, options, wrong):
        return
    found = function(*arguments, **options)
    dense = getattr(fs, name.removeprefix("segment_"))
    for n, (first, last) in enumerate(segments):
        operands = [
            np.array(one[first:last]) if np.shape(one) == (total,) and len(one) == total else one[n]
            for one in (arguments[0], *arguments[2:])
        ]
        given = {key: value[n] if key in per_row else value for key, value in options.items()}
        if first == last and (name == "segment_categorical" or len(operands[-1:]) == 0):
            continue
        if _spec.POSITIONS in entry.operands:
            operands[1] = int(arguments[2][n])
        if first == last and "cross_entropy" in name:
            continue
        expected = dense(*operands, **given)
        for kind, one, other in zip(
            entry.result,
            found if isinstance(found, tuple) else (found,),
            expected if isinstance(expected, tuple) else (expected,),
            strict=True,
        ):
            part = one[first:last] if kind == _spec.LIKE else one[n]
            scale = float(np.abs(np.asarray(other)[np.isfinite(other)]).max(initial=1))
            near = {"rtol": tolerance(x), "atol": tolerance(x) * scale}
            np.testing.assert_allclose(np.asarray(part), np.asarray(other), **near)


# --- products -------------------------------------------------------------------------------------------------


def check_linear(rng, name):
    rows, width, classes = int(rng.choice([0, 1, 3, 20, 70])), int(rng.choice([1, 2, 9])), int(rng.choice(LENGTHS))
    kinds = ["f8", ">f8", "i4", "i1", "?"]
    features, weight, bias = (
        anything(rng, shape, kinds, "normal") for shape in ((rows, width), (classes, width), (classes,))
    )
    options = some(rng, {"softcap": 4.0, "ignore_index": -100})
    if name != "linear_softmax_statistics":
        options |= some(
            rng,
            {
                "label_smoothing": 0.1,
                "z_loss": 0.01,
                "class_weight": rng.random(classes),
                "sample_weight": rng.random(rows),
                "reduction": rng.choice(["mean", "sum"]),
            },
        )
    labels = labels_below(rng, classes, (rows,), options.get("ignore_index"))
    arguments = [features, weight, labels]
    tangent = anything(rng, (classes, width), kinds, "normal")
    if name.endswith("hvp"):
        arguments.append(tangent)
    has_bias = rng.random() < 0.5
    if has_bias:
        options["bias"] = bias
    wrong = {"softcap": [0, -1, "a"], "bias": [np.zeros(classes + 1)], "block_bytes": [0, "a"]}
    if refused(rng, getattr(fs, name), arguments, options, wrong):
        return
    block = {"block_bytes": int(rng.choice([1, 3000, 1 << 27]))}
    found = getattr(fs, name)(*arguments, **options, **block)
    plain, factors = np.asarray(features).astype(float), np.asarray(weight).astype(float)
    logits = plain @ factors.T + (np.asarray(bias).astype(float) if has_bias else 0)
    given = {key: value for key, value in options.items() if key not in ("bias", "softcap", "ignore_index")}
    caps = {key: options[key] for key in ("softcap",) if key in options}
    ignore = {"ignore_index": options.get("ignore_index")}
    near = {
        "rtol": 1e-9,
        "atol": 1e-9 * max(1.0, float(np.abs(plain).max(initial=1) * np.abs(factors).max()) ** 2),
    }
    if name == "linear_softmax_statistics":
        z = caps["softcap"] * np.tanh(logits / caps["softcap"]) if caps else logits
        expected = fs.label_statistics(z, labels, **ignore)
        counts = np.asarray(labels, np.int64) != options.get("ignore_index", -(10**6))
        for field in ("log_prob", "entropy", "logsumexp"):
            wanted = np.where(counts, getattr(expected, field), 0)
            np.testing.assert_allclose(getattr(found, field), wanted, **near)
        return
    if name.endswith("hvp"):
        step = plain @ np.asarray(tangent).astype(float).T
        product = fs.cross_entropy_hvp(logits, labels, step, **given, **caps, **ignore)
        np.testing.assert_allclose(found.weight, product.T @ plain, **near)
        if has_bias:
            np.testing.assert_allclose(found.bias, product.sum(0), **near)
        return
    loss, slope = fs.cross_entropy_with_grad(logits, labels, **given, **caps, **ignore)
    found_loss, gradients = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    np.testing.assert_allclose(found_loss, loss, **near)
    if gradients is not None:
        np.testing.assert_allclose(gradients.features, slope @ factors, **near)
        np.testing.assert_allclose(gradients.weight, slope.T @ plain, **near)
        if has_bias:
            np.testing.assert_allclose(gradients.bias, slope.sum(0), **near)


# --- cases ----------------------------------------------------------------------------------------------------

CHECKS = {
    **dict.fromkeys(STATISTICS, check_statistics),
    **dict.fromkeys(DRAWS, check_draws),
    **dict.fromkeys(RAGGED, check_ragged),
    **dict.fromkeys(LINEAR, check_linear),
}
seeds = st.integers(0, 2**32 - 1)


def check(name, seed):
    CHECKS[name](np.random.default_rng(seed), name)


@pytest.mark.parametrize("name", CHECKS)
@settings(deadline=None, max_examples=20, derandomize=True, suppress_health_check=relaxed)
@given(seeds)
def test_anything(name, seed):
    """The same cases in every run."""
    check(name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
@settings(deadline=None, max_examples=5000, suppress_health_check=relaxed)
@given(seeds)
def test_anything_at_all(name, seed):
    """Every function, 5,000 cases each."""
    check(name, seed)
