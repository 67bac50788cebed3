"""Ragged rows: against the oracle, against rows of equal length bit by bit, and cut among threads by elements."""

import json
import math
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import cases
import child
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsoftmax as fs
from fastsoftmax._vectors import COLUMN_LIMIT, COLUMNS, HUGE, PIECE
from fastsoftmax.api import segments
from fastsoftmax.arrays.blocks import UNWEIGHTED
from fastsoftmax.arrays.huge import pieces_of
from fastsoftmax.kernels import segments as compiled
from fastsoftmax.machine.entry import entry

every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)
LENGTHS = (0, 1, 2, 3, 7, 8, 9, 16, 17, 40, COLUMN_LIMIT, COLUMN_LIMIT + 1, 100, 1000)
ELEMENTWISE = ("segment_softmax", "segment_log_softmax")
PRODUCTS = ("segment_softmax_jvp", "segment_softmax_vjp")
LOSSES = ("segment_cross_entropy", "segment_cross_entropy_with_grad")
ENTROPIES = ("segment_softmax_entropy", "segment_softmax_entropy_with_grad")
DIVERGENCES = ("segment_kl_divergence", "segment_kl_divergence_with_grad")
NAMES = (*ELEMENTWISE, "segment_logsumexp", *PRODUCTS, *LOSSES, *ENTROPIES, *DIVERGENCES)
every_name = pytest.mark.parametrize("name", NAMES)


class Ragged:
    """Segments with their operands, and the part of the operands for each segment."""

    def __init__(self, rows, seed=0):
        rng = np.random.default_rng(seed)
        self.lengths = np.array([len(row) for row in rows], int)
        self.indptr = np.concatenate([[0], np.cumsum(self.lengths)])
        self.x = np.concatenate(rows)
        self.v = rng.standard_normal(len(self.x)).astype(self.x.dtype)
        self.targets = np.array([rng.integers(0, max(n, 1)) for n in self.lengths], int)
        for n in range(0, len(rows), 2):
            self.targets[n] = np.argmax(rows[n]) if len(rows[n]) else 0
        self.targets[self.lengths == 0] = -1
        self.x.flags.writeable = False

    def split(self, values):
        return [values[i:j] for i, j in zip(self.indptr, self.indptr[1:], strict=False)]

    def call(self, name, **options):
        """Call a function with these segments. Empty ones are ignored where they would be an error."""
        function = getattr(fs, name)
        if name in LOSSES:
            options = {"ignore_index": -1, "reduction": "none", **options}
            return function(self.x, self.indptr, self.targets, **options)
        if name in DIVERGENCES:
            return function(self.x, self.indptr, self.v, **{"reduction": "none", **options})
        if name in PRODUCTS:
            return function(self.x, self.indptr, self.v, **options)
        return function(self.x, self.indptr, **options)

    def dense(self, name, **options):
        """The same results, segment by segment, from the functions for rows of equal length."""
        plain = getattr(fs, name.removeprefix("segment_"))
        rows = self.split(self.x)
        if name in LOSSES:
            results = [
                plain(row, t, reduction="none", **options) if len(row) else None
                for row, t in zip(rows, self.targets, strict=True)
            ]
            if name == "segment_cross_entropy":
                return np.array([0 if result is None else result for result in results], self.x.dtype)
            losses = np.array([0 if result is None else result[0] for result in results], self.x.dtype)
            return losses, np.concatenate([self.x[:0], *(result[1] for result in results if result is not None)])
        if name in PRODUCTS:
            return np.concatenate([plain(row, v) for row, v in zip(rows, self.split(self.v), strict=True)])
        if name in ENTROPIES + DIVERGENCES:
            pairs = [
                (row, v) if name in DIVERGENCES else (row,)
                for row, v in zip(rows, self.split(self.v), strict=True)
            ]
            results = [
                plain(*pair, **({"reduction": "none", **options} if len(pair) > 1 else {})) for pair in pairs
            ]
            if not name.endswith("grad"):
                return np.array(results, self.x.dtype)
            slopes = [self.x[:0], *(result[1] for result in results)]
            return np.array([result[0] for result in results], self.x.dtype), np.concatenate(slopes)
        results = [plain(row) for row in rows]
        return np.array(results) if name == "segment_logsumexp" else np.concatenate(results)


def equal(actual, expected):
    """Whether arrays have the same bits, apart from those of NaN."""
    for a, b in zip(actual, expected, strict=True) if isinstance(actual, tuple) else [(actual, expected)]:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
        same = np.isnan(b) | (np.signbit(a) == np.signbit(b))
        assert np.all(same)


@lru_cache
def ragged(dtype):
    """Rows of all lengths in random order, from those of `cases`."""
    rows = []
    for length in LENGTHS:
        if length == 0:
            rows += [np.empty(0, dtype)] * 5
        else:
            known = cases.logits(dtype, length)
            rows += list(known[:: 2 if length <= 17 else 4 if length <= 100 else 6])
    order = np.random.default_rng(len(rows)).permutation(len(rows))
    return Ragged([rows[n] for n in order])


def numbers(lengths, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return Ragged([(3 * rng.standard_normal(n)).astype(dtype) for n in lengths], seed)


def filled(problem):
    """Segments that are not empty, as (number, row)."""
    return [(n, row) for n, row in enumerate(problem.split(problem.x)) if len(row)]


def joined(results):
    return np.concatenate([np.asarray(result, object) for result in results])


# --- against the oracle --------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize(("name", "allowed"), [("softmax", 3), ("log_softmax", 4)])
def test_activations(name, allowed, dtype, record):
    """The bounds are those of rows of equal length."""
    problem = ragged(dtype)
    actual = problem.call(f"segment_{name}")
    assert actual.dtype == dtype
    reference = joined(getattr(oracle, name)(row) for _, row in filled(problem))
    ulps, place = oracle.worst(actual, reference)
    record(f"segment_{name}", dtype, ulps, allowed, f"entry {place}")


@every_dtype
def test_logsumexp(dtype, record):
    """Within 2 ulp, or 2 eps of the greatest entry where it cancels; -inf for empty segments."""
    problem = ragged(dtype)
    actual = problem.call("segment_logsumexp")
    assert actual.shape == problem.lengths.shape
    assert np.all(actual[problem.lengths == 0] == -np.inf)
    rows = filled(problem)
    reference = np.array([oracle.logsumexp(row) for _, row in rows], object)
    values = actual[[n for n, _ in rows]]
    ulps = oracle.ulp_error(values, reference)
    scale = np.array([np.abs(row).max() for _, row in rows])
    cancels = np.array([row.max() < 0 for _, row in rows])
    error = np.where(cancels, np.minimum(ulps, oracle.scaled_error(values, reference, scale)), ulps)
    record("segment_logsumexp", dtype, error.max(), 2, f"{rows[int(error.argmax())]}")


@every_dtype
def test_cross_entropy(dtype, record):
    """Loss and gradient are within 4 ulp, also at the target of a confident segment."""
    problem = ragged(dtype)
    loss, gradient = problem.call("segment_cross_entropy_with_grad")
    rows = filled(problem)
    reference = np.array([oracle.cross_entropy(row, problem.targets[n]) for n, row in rows], object)
    ulps, place = oracle.worst(loss[[n for n, _ in rows]], reference)
    record("segment_cross_entropy, segment", dtype, ulps, 4, f"{place}")
    assert np.all(loss[problem.lengths == 0] == 0)
    reference = joined(oracle.cross_entropy_grad(row, problem.targets[n]) for n, row in rows)
    ulps, place = oracle.worst(gradient, reference)
    record("segment_cross_entropy_with_grad", dtype, ulps, 4, f"{place}")
    mean_loss, mean = problem.call("segment_cross_entropy_with_grad", reduction="mean")
    ulps, place = oracle.worst(mean, reference / len(rows))
    record("segment_cross_entropy_with_grad, mean", dtype, ulps, 4, f"{place}")
    assert mean_loss == pytest.approx(loss.sum(dtype=np.float64) / len(rows), rel=1e-6)
    equal(problem.call("segment_cross_entropy"), loss)


@every_dtype
def test_products(dtype, record):
    """p (v - p.v): 3 eps of |p (v - p.v)| and of p sum(p |v|) from p and the dot, and three roundings."""
    problem = ragged(dtype)
    actual = problem.call("segment_softmax_jvp")
    reference, scale = [], []
    for n, row in filled(problem):
        v = problem.split(problem.v)[n]
        reference.append(oracle.softmax_product(row, v))
        p = np.array([float(value) for value in oracle.softmax(row)])
        p = np.maximum(p, np.finfo(dtype).tiny / np.finfo(dtype).eps)
        wide = v.astype(np.float64)
        scale.append(p * (np.abs(wide - np.sum(p * wide)) + np.sum(p * np.abs(wide))))
    ulps, place = oracle.worst(actual, joined(reference), np.concatenate(scale))
    record("segment_softmax_jvp (eps of its terms)", dtype, ulps, 3 + 1.5, f"entry {place}")
    equal(problem.call("segment_softmax_vjp"), actual)


# --- derivatives: finite difference, dense Jacobian, adjointness -------------------------------------------------

STEP = 6e-6  # eps**(1/3), for which truncation and rounding of a central difference are equal
DERIVED = (3, 0, 1, 17, 2, 60)


def difference(function, x, direction):
    return (function(x + STEP * direction) - function(x - STEP * direction)) / (2 * STEP)


def test_jvp_is_the_finite_difference():
    """h**2/6 times a third derivative, below (2 max |v|)**3, and the rounding of two values within 4 ulp."""
    problem = numbers(DERIVED)
    numeric = difference(lambda z: fs.segment_softmax(z, problem.indptr), problem.x, problem.v)
    atol = STEP**2 * (2 * np.abs(problem.v).max()) ** 3 + 8 * np.finfo(float).eps / STEP
    np.testing.assert_allclose(problem.call("segment_softmax_jvp"), numeric, rtol=0, atol=atol)


def test_vjp_is_the_gradient_of_the_contraction():
    problem = numbers(DERIVED)
    actual = problem.call("segment_softmax_vjp")
    atol = np.abs(problem.v).sum() * (8 * STEP**2 + 8 * np.finfo(float).eps / STEP)
    for k, direction in enumerate(np.eye(len(problem.x))):
        numeric = difference(lambda z: problem.v @ fs.segment_softmax(z, problem.indptr), problem.x, direction)
        assert abs(actual[k] - numeric) <= atol


def test_gradient_is_the_finite_difference():
    """The third derivative of a loss is below 1; its rounding is that of two losses of some 10."""
    problem = numbers(DERIVED)
    weights = np.array([1.0, 3.0, 0.5, 0.0, 2.0, 1.0])
    options = {"sample_weight": weights, "ignore_index": -1}
    for reduction in ("mean", "sum"):
        _, actual = problem.call("segment_cross_entropy_with_grad", reduction=reduction, **options)
        for k, direction in enumerate(np.eye(len(problem.x))):

            def loss(z, reduction=reduction):
                return fs.segment_cross_entropy(z, problem.indptr, problem.targets, reduction=reduction, **options)

            numeric = difference(loss, problem.x, direction)
            assert actual[k] == pytest.approx(numeric, abs=3 * STEP**2 + 100 * np.finfo(float).eps / STEP)


def block_jacobian(problem):
    """The Jacobian of `segment_softmax`: a block for each segment."""
    jacobian = np.zeros((len(problem.x), len(problem.x)))
    for i, j in zip(problem.indptr, problem.indptr[1:], strict=False):
        if i < j:
            jacobian[i:j, i:j] = fs.softmax_jacobian(problem.x[i:j])
    return jacobian


def test_derivatives_are_products_with_the_dense_jacobian():
    """Within the rounding of a sum of at most 60 terms and the bounds of both sides."""
    problem = numbers(DERIVED)
    jacobian = block_jacobian(problem)
    atol = 100 * np.finfo(float).eps * np.abs(problem.v).max()
    np.testing.assert_allclose(problem.call("segment_softmax_jvp"), jacobian @ problem.v, rtol=0, atol=atol)
    np.testing.assert_allclose(problem.call("segment_softmax_vjp"), jacobian.T @ problem.v, rtol=0, atol=atol)
    _, gradient = problem.call("segment_cross_entropy_with_grad")
    one_hot = np.zeros(len(problem.x))
    counted = problem.lengths > 0
    places = (problem.indptr[:-1] + problem.targets)[counted]
    one_hot[places] = 1
    # -log p has the slope -1/p at the target, and J is symmetric
    slope = -one_hot / problem.call("segment_softmax")
    np.testing.assert_allclose(gradient, jacobian.T @ slope, rtol=1e-12, atol=1e-14)


@every_dtype
def test_jvp_and_vjp_are_adjoint(dtype):
    """<g, J t> = <J^T g, t>, up to the errors of the products in eps of their terms (see `test_products`)."""
    problem = ragged(dtype)
    rng = np.random.default_rng(3)
    g, t = (rng.standard_normal(len(problem.x)).astype(dtype) for _ in range(2))
    jt = fs.segment_softmax_jvp(problem.x, problem.indptr, t).astype(np.float64)
    jg = fs.segment_softmax_vjp(problem.x, problem.indptr, g).astype(np.float64)
    p = problem.call("segment_softmax").astype(np.float64)
    terms = p * (np.abs(t).max() + np.abs(g).max()) ** 2 * 2
    assert abs(g @ jt - jg @ t) <= 9 * np.finfo(dtype).eps * terms.sum()


# --- label smoothing, entropies, divergences ---------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("smoothing", [0.1, 1 / 3, 1.0])
def test_label_smoothing(dtype, smoothing, record):
    """Every segment has its own uniform distribution; the bits are those of rows."""
    problem = ragged(dtype)
    assert problem.lengths.max() > COLUMN_LIMIT
    losses, slope = problem.call("segment_cross_entropy_with_grad", label_smoothing=smoothing)
    equal(losses, problem.call("segment_cross_entropy", label_smoothing=smoothing))
    equal((losses, slope), problem.dense("segment_cross_entropy_with_grad", label_smoothing=smoothing))
    rows = [(n, row) for n, row in filled(problem) if len(row) <= 100]
    found = [
        oracle.CrossEntropy(row[None], problem.targets[n : n + 1], label_smoothing=smoothing) for n, row in rows
    ]
    ulps, place = oracle.worst(losses[[n for n, _ in rows]], np.array([one.loss for one in found], object))
    record("segment_cross_entropy, smoothed", dtype, ulps, 5, f"{smoothing}, {place}")
    slopes = joined(problem.split(slope)[n] for n, _ in rows).astype(dtype)
    reference, terms = joined(one.gradient[0] for one in found), joined(one.terms[0] for one in found)
    ulps, place = oracle.worst(slopes, reference, terms.astype(np.float64))
    record("segment_cross_entropy_with_grad, smoothed (eps of its terms)", dtype, ulps, 5, f"{smoothing}, {place}")


def test_smoothed_gradient_is_the_finite_difference():
    problem, step = numbers([3, 1, 20, 80]), 6e-6
    loss, slope = problem.call("segment_cross_entropy_with_grad", label_smoothing=0.2, reduction="mean")
    assert np.isfinite(loss)
    x = problem.x
    for k in range(0, len(x), 7):
        change = 0.0
        for sign in (1, -1):
            problem.x = x.copy()
            problem.x[k] += sign * step
            change += sign * problem.call("segment_cross_entropy", label_smoothing=0.2, reduction="mean")
        assert slope[k] == pytest.approx(change / (2 * step), abs=1e-8)


def test_no_smoothing_is_the_same_kernel():
    problem = ragged(np.float32)
    equal(problem.call(LOSSES[1], label_smoothing=0), problem.call(LOSSES[1]))


def test_smoothed_segments_with_infinities():
    """A share of -inf is an infinite loss, as for rows; segments that do not count have no influence."""
    x, indptr = np.array([0.0, -np.inf, 1.0, np.nan, 3.0, 2.0, 1.0]), [0, 2, 4, 4, 7]
    options = {"ignore_index": -1, "reduction": "none", "label_smoothing": 0.1}
    with np.errstate(all="raise"):
        losses, slope = fs.segment_cross_entropy_with_grad(x, indptr, [0, 1, -1, 2], **options)
        weighted = fs.segment_cross_entropy_with_grad(
            x, indptr, [0, 1, -1, 2], sample_weight=[0, 0, 5, 1], **(options | {"reduction": "mean"})
        )
    assert losses[0] == np.inf
    assert np.isnan(losses[1])
    assert losses[2] == 0
    assert np.isnan(slope[2:4]).all()
    assert weighted[0] == losses[3]
    equal(weighted[1][4:], slope[4:])
    assert not weighted[1][:4].any()


@pytest.mark.parametrize("function", ["segment_softmax_entropy", "segment_kl_divergence"])
def test_losses_of_segments_reduced(function):
    """Weights, means and sums; segments of weight 0 have no influence, be they empty or NaN."""
    x = np.array([0.0, 1.0, np.nan, 2.0, 3.0, 5.0])
    indptr, weight = [0, 2, 3, 3, 6], np.array([2.0, 0.0, 0.0, 1.0])
    if function.endswith("entropy"):
        entropies, slope = fs.segment_softmax_entropy_with_grad(x, indptr)
        np.testing.assert_array_equal(np.isnan(entropies), [0, 1, 1, 0])
        assert np.isnan(slope[2])
        assert np.isfinite(np.delete(slope, 2)).all()
        return
    t = x[::-1].copy()
    t[2:4] = 1.0
    each = fs.segment_kl_divergence(x, indptr, t, reduction="none")
    np.testing.assert_array_equal(np.isnan(each), [0, 1, 1, 0])
    for reduction, divisor in (("mean", 3), ("sum", 1)):
        loss, slope = fs.segment_kl_divergence_with_grad(x, indptr, t, sample_weight=weight, reduction=reduction)
        assert loss == pytest.approx((2 * each[0] + each[3]) / divisor, rel=1e-15)
        p, q = (fs.segment_softmax(a, indptr) for a in (x, t))
        expected = (p - q) * np.repeat(weight, np.diff(indptr)) / divisor
        np.testing.assert_allclose(np.delete(slope, 2), np.delete(expected, 2), rtol=1e-15, atol=1e-16)
        assert slope[2] == 0


def test_outputs_over_the_operands():
    """The gradient may lie over x or over the other logits, also where segments are walked in lanes."""
    problem = numbers([3, 0, 9, 64, 65, 300, *[5] * 40], np.float32)
    expected = problem.call(DIVERGENCES[1], reduction="sum")
    for place in (0, 1):
        pair = [problem.x.copy(), problem.v.copy()]
        found = fs.segment_kl_divergence_with_grad(
            pair[0], problem.indptr, pair[1], reduction="sum", out=pair[place]
        )
        assert found[1] is pair[place]
        equal(found[1], expected[1])
    x = problem.x.copy()
    equal(fs.segment_softmax_entropy_with_grad(x, problem.indptr, out=x)[1], problem.call(ENTROPIES[1])[1])
    rows = problem.x.copy()
    out = rows[: len(problem.lengths)]
    equal(fs.segment_softmax_entropy(rows, problem.indptr, out=out), problem.call(ENTROPIES[0]))


def test_huge_segments_are_rows():
    """Longer ones than `HUGE` are not cut in these functions: they have the bits of a row."""
    problem = numbers([5, HUGE + 3, 0, 70], np.float32)
    one = slice(5, HUGE + 8)
    x, v = problem.x[one], problem.v[one]
    for name, dense in (
        (ENTROPIES[1], fs.softmax_entropy_with_grad(x)),
        (DIVERGENCES[1], fs.kl_divergence_with_grad(x, v)),
    ):
        rows, slope = problem.call(name)
        equal(slope[one], dense[1])
        assert rows[1] == dense[0]
        equal(problem.call(name.removesuffix("_with_grad")), rows)
    losses, slope = problem.call(LOSSES[1], label_smoothing=0.1)
    dense = fs.cross_entropy_with_grad(x, problem.targets[1], label_smoothing=0.1)
    assert losses[1] == dense[0]
    equal(slope[one], dense[1])
    equal(problem.call(LOSSES[0], label_smoothing=0.1), losses)


# --- the same bits in any company ----------------------------------------------------------------------------


@every_dtype
@every_name
def test_bits_are_those_of_rows(name, dtype):
    """The neighbours of a segment do not change its bits, because padding adds exact zeros."""
    problem = ragged(dtype)
    equal(problem.call(name), problem.dense(name))


RAGGED = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 130)), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(lengths=RAGGED, seed=st.integers(0, 1000), bad=st.sampled_from([None, np.nan, np.inf, -np.inf]))
def test_any_lengths(lengths, seed, bad):
    """Segments of any lengths. A NaN affects its own segment only."""
    problem = numbers(lengths, np.float64, seed)
    if bad is not None and len(problem.x):
        x = problem.x.copy()
        x[seed % len(x)] = bad
        problem.x = x
    for name in ("segment_softmax", "segment_logsumexp", "segment_cross_entropy_with_grad"):
        equal(problem.call(name), problem.dense(name))
    equal(
        problem.call("segment_cross_entropy_with_grad", label_smoothing=0.3),
        problem.dense("segment_cross_entropy_with_grad", label_smoothing=0.3),
    )
    equal(problem.call("segment_softmax_entropy_with_grad"), problem.dense("segment_softmax_entropy_with_grad"))
    for reverse in (False, True):
        name = "segment_kl_divergence_with_grad"
        equal(problem.call(name, reverse=reverse), problem.dense(name, reverse=reverse))


@settings(max_examples=40, deadline=None)
@given(lengths=RAGGED, seed=st.integers(0, 1000))
def test_properties(lengths, seed):
    """Probabilities sum to 1, shifts change nothing, the product with ones is 0, inputs are unchanged."""
    problem = numbers(lengths, np.float64, seed)
    before = problem.x.copy(), problem.indptr.copy()
    p = problem.call("segment_softmax")
    eps = np.finfo(float).eps
    for row in problem.split(p):
        assert len(row) == 0 or abs(row.sum() - 1) <= 4 * eps * max(len(row), 4)
    shifts = np.repeat(2.0 ** np.arange(len(lengths)) % 64, problem.lengths)
    whole = np.round(problem.x * 1024) / 1024  # a shift by a whole number is exact then
    shifted = fs.segment_log_softmax(whole + shifts, problem.indptr)
    np.testing.assert_allclose(shifted, fs.segment_log_softmax(whole, problem.indptr), rtol=8 * eps, atol=0)
    ones = fs.segment_softmax_jvp(problem.x, problem.indptr, np.ones_like(problem.x))
    np.testing.assert_allclose(ones, 0, atol=8 * eps)
    np.testing.assert_array_equal(problem.x, before[0])
    np.testing.assert_array_equal(problem.indptr, before[1])


def test_order_of_segments():
    """Reordered segments have reordered results."""
    problem = numbers([5, 0, 70, 3, 3, 12, 1, 60, 2] * 5, np.float32)
    order = np.random.default_rng(0).permutation(len(problem.lengths))
    rows = problem.split(problem.x)
    other = Ragged([rows[n] for n in order])
    expected = problem.split(problem.call("segment_softmax"))
    equal(other.call("segment_softmax"), np.concatenate([expected[n] for n in order]))


# --- threads and balance -------------------------------------------------------------------------------------


def uneven():
    """A few hundred thousand elements: short segments, long ones, empty ones."""
    rng = np.random.default_rng(0)
    lengths = rng.choice([0, 1, 3, 3, 3, 20, 55, 400], 12_000)
    lengths[100] = 200_000
    return numbers(lengths, np.float32)


@every_name
def test_any_number_of_threads(name):
    problem = uneven()
    with fs.threads(1):
        expected = problem.call(name)
    equal(problem.call(name), expected)


@every_name
@pytest.mark.parametrize("cut", ["everywhere", "nowhere", "at random"])
def test_any_cuts(name, cut, monkeypatch):
    """The results do not depend on where the work is cut."""
    problem = numbers([3] * 50 + [0, 70, 1, 56, 57, 9, 30] * 20, np.float32)
    expected = problem.call(name)
    count = len(problem.lengths)
    cuts = {
        "everywhere": range(count + 1),
        "nowhere": [0, count],
        "at random": [0, *np.flatnonzero(np.random.default_rng(1).random(count - 1) < 0.1) + 1, count],
    }[cut]
    monkeypatch.setattr(segments, "_cuts", lambda indptr: np.array(cuts, np.int64))
    equal(problem.call(name), expected)


def worked(indptr, cuts):
    """The work of each block, in elements and a share for each segment."""
    return np.diff(indptr[cuts] + segments.SEGMENT_WORK * cuts)


@pytest.mark.parametrize("place", [0, 250_000, 500_000])
def test_work_is_cut_by_elements(place):
    """One segment of ten million among half a million of three: blocks hold as many elements, not segments.

    Cut by segments, a block of the large one would have seven times the work of all others together.
    """
    lengths = np.full(500_001, 3)
    lengths[place] = 10_000_000
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    cuts = segments._cuts(indptr)
    assert cuts[0] == 0
    assert cuts[-1] == len(lengths)
    assert np.all(np.diff(cuts) > 0)
    work = worked(indptr, cuts)
    unit = segments.BLOCK_WORK
    others = np.delete(work, np.searchsorted(cuts, place, "right") - 1)
    assert len(others) >= 10
    assert others.max() <= unit + 7
    assert np.sort(others)[2] >= unit // 2
    # and the large one is in pieces of one size, which threads take like blocks
    table = pieces_of(indptr).reshape(-1, COLUMNS)
    sizes = table[:, 1] - table[:, 0]
    assert sizes.sum() == 10_000_000
    assert np.all(sizes[:-1] == PIECE)
    assert np.all(table[:, 4] == place)


def test_segments_without_elements_are_work_too():
    """A million empty segments are also cut into blocks, because each of them costs time."""
    indptr = np.zeros(1_000_001, np.int64)
    work = worked(indptr, segments._cuts(indptr))
    assert len(work) >= 4
    assert work.max() <= 2 * work.min() + segments.BLOCK_WORK // 2


def test_blocks_are_what_threads_take(monkeypatch):
    """The kernels get these blocks: the segments of each call have about the same number of elements."""
    taken = []
    kernel = entry("segments.segment_softmax")

    def watched(start, stop, room, indptr, cuts, *args):
        taken.append(int(indptr[cuts[stop]] - indptr[cuts[start]]))
        code(start, stop, room, indptr, cuts, *args)

    lengths = np.full(300_000, 3)
    lengths[1000] = 900_000  # long, not huge: one block of its own size
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    x = np.random.default_rng(0).normal(size=indptr[-1]).astype(np.float32)
    expected = fs.segment_softmax(x, indptr)
    (code,) = [code for (dtype, *_), code in kernel._codes.items() if dtype == x.dtype]
    monkeypatch.setattr(entry("segments.segment_softmax"), "code", lambda arguments: watched)
    with fs.threads(2):
        equal(fs.segment_softmax(x, indptr), expected)
    if len(taken) == 1:
        pytest.skip("one processor: the caller does it all in one call")
    assert sum(taken) == len(x)
    assert sorted(taken)[-1] < 900_000 + segments.BLOCK_WORK
    assert sorted(taken)[-2] <= segments.BLOCK_WORK


# --- the walks -----------------------------------------------------------------------------------------------


def test_lengths_on_both_sides_of_every_walk_are_tested():
    assert {0, COLUMN_LIMIT, COLUMN_LIMIT + 1} <= set(LENGTHS)
    buckets = {compiled._bucket.py_func(length) for length in range(COLUMN_LIMIT + 1)}
    assert buckets == set(range(compiled.BUCKETS))


@pytest.fixture(scope="module")
def huge():
    """Segments beyond `HUGE`, which are cut into pieces, between others. They have two greatest entries."""
    limit = HUGE
    rng = np.random.default_rng(0)
    rows = [rng.normal(0, 2, n).astype(np.float32) for n in (5, limit + 37, 0, 60, limit, 3, limit + 100_000, 1)]
    rows[1][[7, 200_000]] = 15.0
    return Ragged(rows)


def wide(problem, n):
    """log-sum-exp, log-probabilities and probabilities of segment n in float64, and its entries."""
    row = problem.split(problem.x)[n].astype(np.float64)
    difference, others = oracle.wide_forward(problem.split(problem.x)[n][None])
    log_p = (difference - np.log1p(others))[0]
    return row.max() + np.log1p(others[0, 0]), log_p, np.exp(difference[0]) / (1 + others[0, 0])


def test_pieces_activations(huge, record):
    """A segment in pieces has the same bounds. float64 is accurate to 1e-3 ulp of float32."""
    results = {name: huge.split(huge.call(name)) for name in ELEMENTWISE}
    lse = huge.call("segment_logsumexp")
    for n in (1, 4, 6):
        expected, log_p, p = wide(huge, n)
        record("segment_softmax", np.float32, oracle.wide_error(results["segment_softmax"][n], p).max(), 3)
        record(
            "segment_log_softmax", np.float32, oracle.wide_error(results["segment_log_softmax"][n], log_p).max(), 4
        )
        record("segment_logsumexp", np.float32, oracle.wide_error(lse[n : n + 1], np.array([expected])).max(), 2)
    for n in (0, 3, 4, 5, 7):
        equal(results["segment_softmax"][n], fs.softmax(huge.split(huge.x)[n]))


def test_pieces_products(huge, record):
    product = huge.split(huge.call("segment_softmax_jvp"))
    for n in (1, 6):
        _, _, p = wide(huge, n)
        v = huge.split(huge.v)[n].astype(np.float64)
        dot = math.fsum(p * v)
        scale = np.maximum(p * (np.abs(v - dot) + np.sum(p * np.abs(v))), 1e-30)
        error = np.abs(product[n] - p * (v - dot)) / scale / np.finfo(np.float32).eps
        record("segment_softmax_jvp (eps of its terms)", np.float32, error.max(), 4.5)


@pytest.mark.parametrize("target", ["greatest", "another"])
def test_pieces_cross_entropy(huge, target, record):
    """The target is in one piece and the greatest entries are in others."""
    targets = huge.targets.copy()
    targets[1] = 200_000 if target == "greatest" else 900_123
    loss, gradient = fs.segment_cross_entropy_with_grad(
        huge.x, huge.indptr, targets, ignore_index=-1, reduction="none"
    )
    only = fs.segment_cross_entropy(huge.x, huge.indptr, targets, ignore_index=-1, reduction="none")
    equal(only, loss)
    for n in (1, 6):
        _, log_p, p = wide(huge, n)
        t = targets[n]
        record(
            "segment_cross_entropy, segment",
            np.float32,
            oracle.wide_error(loss[n : n + 1], -log_p[t : t + 1])[0],
            4,
        )
        p[t] = np.expm1(log_p[t])
        error = oracle.wide_error(huge.split(gradient)[n], p).max()
        record("segment_cross_entropy_with_grad", np.float32, error, 4)


def test_pieces_in_place_and_serial(huge):
    """In place and with one thread, the results have the same bits."""
    for name in ("segment_softmax", "segment_cross_entropy_with_grad"):
        expected = huge.call(name)
        copy = Ragged([row.copy() for row in huge.split(huge.x)])
        copy.x = huge.x.copy()
        with fs.threads(1):
            equal(copy.call(name, out=copy.x), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pieces_edge_rows(huge, bad):
    """Edge rows as those of equal length: one special entry in one piece, or nothing but -inf."""
    copy = Ragged([row.copy() for row in huge.split(huge.x)])
    copy.x = huge.x.copy()
    i, j = copy.indptr[6:8]
    copy.x[slice(i, j) if bad == -np.inf else i + 999_999] = bad
    rows = copy.split(copy.x)
    for name in (*ELEMENTWISE, "segment_logsumexp"):
        actual, expected = copy.call(name), huge.call(name)
        dense = getattr(fs, name.removeprefix("segment_"))(rows[6])
        if name == "segment_logsumexp":
            equal(actual[6:7], np.array([dense]))
            equal(np.delete(actual, 6), np.delete(expected, 6))
        else:
            equal(copy.split(actual)[6], dense)
            equal(actual[: copy.indptr[6]], expected[: copy.indptr[6]])


def test_pieces_of_weightless_segments(huge):
    """A segment in pieces of weight 0 has no influence, also if it holds a NaN."""
    x = huge.x.copy()
    x[huge.indptr[6] + 70_000] = np.nan
    weights = np.ones(len(huge.lengths), np.float32)
    weights[6] = 0
    loss, gradient = fs.segment_cross_entropy_with_grad(
        x, huge.indptr, huge.targets, ignore_index=-1, sample_weight=weights, reduction="none"
    )
    assert loss[6] == 0
    assert np.all(huge.split(gradient)[6] == 0)
    equal(huge.split(gradient)[1], huge.split(huge.call("segment_cross_entropy_with_grad")[1])[1])


# --- empty, edge rows, options -------------------------------------------------------------------------------


@every_dtype
@every_name
@pytest.mark.parametrize("indptr", [[0], [0, 0], [0, 0, 0, 0]])
def test_nothing(name, indptr, dtype):
    problem = Ragged([np.empty(0, dtype)] * max(len(indptr) - 1, 1))
    problem.indptr = np.array(indptr)
    problem.targets = problem.targets[: len(indptr) - 1]
    result = problem.call(name)
    if name == "segment_logsumexp":
        equal(result, np.full(len(indptr) - 1, -np.inf, dtype))
    elif name in LOSSES:
        losses = result[0] if isinstance(result, tuple) else result
        equal(losses, np.zeros(len(indptr) - 1, dtype))
    elif name in ENTROPIES + DIVERGENCES:
        rows, slope = result if isinstance(result, tuple) else (result, np.empty(0, dtype))
        equal(rows, np.full(len(indptr) - 1, np.nan, dtype))
        equal(slope, np.empty(0, dtype))
    else:
        equal(result, np.empty(0, dtype))


@every_dtype
def test_segments_of_one(dtype):
    x = np.array([3.0, -1e4, 0.0], dtype)
    indptr = np.arange(4)
    equal(fs.segment_softmax(x, indptr), np.ones(3, dtype))
    equal(fs.segment_log_softmax(x, indptr), np.zeros(3, dtype))
    equal(fs.segment_logsumexp(x, indptr), x)
    equal(fs.segment_softmax_jvp(x, indptr, x), np.zeros(3, dtype))
    loss, gradient = fs.segment_cross_entropy_with_grad(x, indptr, np.zeros(3, int))
    assert loss == 0
    assert not gradient.any()


def test_edge_rows():
    """No entry affects another segment, and no warning is raised."""
    inf, nan = np.inf, np.nan
    x = np.array([-inf, -inf, -inf, 0.0, inf, 0.0, nan, 1.0, 2.0, 2.0])
    indptr = [0, 2, 4, 6, 8, 10]
    equal(fs.segment_softmax(x, indptr), np.array([nan, nan, 0, 1, nan, nan, nan, nan, 0.5, 0.5]))
    equal(fs.segment_logsumexp(x, indptr), np.array([-inf, 0, inf, nan, 2 + np.log(2)]))
    equal(fs.segment_log_softmax(x, indptr)[2:4], np.array([-inf, 0.0]))


def test_weights_and_ignored_segments():
    """As the options of `cross_entropy`. Segments without influence may hold anything."""
    problem = numbers([4, 4, 4, 4, 4])
    weights = np.array([1.0, 0.5, 0.0, 2.0, 3.0])
    targets = np.array([0, 3, 2, 1, 9])
    x = problem.x.copy()
    x[8:12] = np.nan  # weight 0
    x[16:] = np.inf  # ignored
    for reduction in ("mean", "sum", "none"):
        options = {"sample_weight": weights, "ignore_index": 9, "reduction": reduction}
        loss, gradient = fs.segment_cross_entropy_with_grad(x, problem.indptr, targets, **options)
        expected, slope = fs.cross_entropy_with_grad(x.reshape(5, 4), targets, **options)
        equal(np.asarray(loss), np.asarray(expected))
        equal(gradient, slope.reshape(-1))
    none = fs.segment_cross_entropy(x, problem.indptr, np.full(5, 9), ignore_index=9)
    assert np.isnan(none)
    assert fs.segment_cross_entropy(x, problem.indptr, np.full(5, 9), ignore_index=9, reduction="sum") == 0


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", ">i4", "i4", "u4", "u8", "i8"])
def test_every_integer_dtype(kind):
    """Of row pointers and of targets."""
    problem = numbers([3, 0, 5, 2])
    expected = problem.call("segment_cross_entropy", sample_weight=[1, 0, 1, 1])
    targets = np.where(problem.targets < 0, 99, problem.targets).astype(kind)
    actual = fs.segment_cross_entropy(
        problem.x, problem.indptr.astype(kind), targets, ignore_index=99, reduction="none"
    )
    equal(actual, expected)


# --- arrays --------------------------------------------------------------------------------------------------


def test_dtypes():
    """float16 is computed in float32; integers and bools become float64; lists are arrays."""
    indptr = [0, 2, 5]
    half = np.array([0.5, 1.0, 2.0, -1.0, 0.0], np.float16)
    for name in (*ELEMENTWISE, "segment_logsumexp"):
        function = getattr(fs, name)
        equal(function(half, indptr), function(half.astype(np.float32), indptr).astype(np.float16))
        whole = np.array([1, 0, 1, 1, 0])
        equal(function(whole, indptr), function(whole.astype(np.float64), indptr))
        equal(function(whole.astype(bool), indptr), function(whole.astype(np.float64), indptr))
        equal(function(whole.tolist(), indptr), function(whole.astype(np.float64), indptr))
    loss, gradient = fs.segment_cross_entropy_with_grad(half, indptr, [0, 1], reduction="none")
    assert loss.dtype == gradient.dtype == np.float16
    assert fs.segment_cross_entropy(half, indptr, [0, 1]).dtype == np.float16
    wider = fs.segment_softmax_jvp(half.astype(np.float32), indptr, np.ones(5))
    assert wider.dtype == np.float64


def test_layouts(tmp_path):
    problem = numbers([3, 0, 60, 9])
    expected = problem.call("segment_softmax_vjp")
    strided = np.stack([problem.x, problem.x], axis=-1)[:, 0]
    swapped = problem.x.astype(problem.x.dtype.newbyteorder())
    backwards = problem.x[::-1].copy()[::-1]
    packed = np.zeros(len(problem.x), [("a", "i1"), ("x", "f8")])
    packed["x"] = problem.x
    np.save(tmp_path / "x.npy", problem.x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for x in (strided, swapped, backwards, packed["x"], mapped):
        equal(fs.segment_softmax_vjp(x, problem.indptr, problem.v), expected)
    pointers = np.stack([problem.indptr, problem.indptr])[:, ::-1][0][::-1]
    equal(fs.segment_softmax_vjp(problem.x, pointers, problem.v[::-1].copy()[::-1]), expected)


def test_out():
    """The result, also in place, over an operand, or where they overlap."""
    problem = numbers([3, 0, 60, 9, 1, 1, 1])
    for name in (*ELEMENTWISE, *PRODUCTS):
        expected = problem.call(name)
        out = np.full_like(expected, 7)
        assert problem.call(name, out=out) is out
        equal(out, expected)
        for shift in (0, 1, 5):
            memory = np.concatenate([problem.x, np.zeros(shift)])
            other = Ragged(problem.split(problem.x))
            other.x, other.v = memory[: len(problem.x)], problem.v
            equal(other.call(name, out=memory[shift:]), expected)
    for lengths in ([3, 0, 60, 9, 1, 1, 1], [65, 3, 700], [300_000]):
        large = numbers(lengths)
        for place in ("x", "v"):
            other = Ragged(large.split(large.x))
            other.x, other.v = large.x.copy(), large.v.copy()
            equal(other.call("segment_softmax_jvp", out=getattr(other, place)), large.call("segment_softmax_jvp"))
    wrong = np.zeros(2 * len(problem.x))[::2]
    equal(problem.call("segment_softmax", out=wrong), problem.call("segment_softmax"))


def test_out_of_logsumexp():
    """Results may overlap the input. They must not overwrite entries that are still to be read."""
    rng = np.random.default_rng(0)
    lengths = rng.permutation(np.repeat([2, 0], 40))
    x = rng.normal(size=80)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    expected = fs.segment_logsumexp(x, indptr)
    assert np.isinf(expected).sum() == 40
    assert fs.segment_logsumexp(x, indptr, out=x) is x
    equal(x, expected)


def test_out_over_the_row_pointers():
    """An `out` may also overlap the row pointers."""
    problem = numbers([1, 2, 0, 3])
    memory = np.concatenate([problem.indptr, [0]])
    out = memory.view(np.float64)
    equal(fs.segment_softmax(problem.x, memory[:5], out=out), problem.call("segment_softmax"))
    memory = np.concatenate([np.maximum(problem.targets, 0), [0, 0]])
    _, gradient = fs.segment_cross_entropy_with_grad(
        problem.x[:6], problem.indptr[[0, 1, 2, 4]], memory[:3], out=memory.view(np.float64), reduction="sum"
    )
    rows = problem.indptr[[0, 1, 2, 4]]
    targets = np.maximum(problem.targets, 0)[:3]
    equal(gradient, fs.segment_cross_entropy_with_grad(problem.x, rows, targets, reduction="sum")[1])


# --- errors by their words -----------------------------------------------------------------------------------

X = np.arange(5.0)


def call(name, x=X, indptr=(0, 2, 5), targets=(0, 1), **options):
    extra = (targets,) if name in LOSSES else (x,) if name in PRODUCTS + DIVERGENCES else ()
    return getattr(fs, name)(x, indptr, *extra, **options)


@every_name
@pytest.mark.parametrize(
    ("indptr", "kind", "words"),
    [
        ([[0, 5]], ValueError, "indptr has shape (1, 2), expected one dimension and at least one entry"),
        ([], ValueError, "indptr has shape (0,), expected one dimension and at least one entry"),
        (5, ValueError, "indptr has shape (), expected one dimension"),
        ([0.0, 2.0, 5.0], TypeError, "indptr has dtype float64, expected integers"),
        ([False, True], TypeError, "indptr has dtype bool, expected integers"),
        ([1, 2, 5], ValueError, "indptr[0] is 1, expected 0"),
        ([0, 4, 3, 5], ValueError, "indptr[2] is 3, expected at least indptr[1], which is 4"),
        ([0, 2, 4], ValueError, "indptr[2] is 4, expected 5, the length of x"),
        ([0, 2, 6], ValueError, "indptr[2] is 6, expected 5, the length of x"),
        ([0, 7, 5], ValueError, "indptr[2] is 5, expected at least indptr[1], which is 7"),
        (
            np.array([0, 2**63 + 1, 5], np.uint64),
            ValueError,
            "expected at least indptr[1], which is 9223372036854775809",
        ),
        (np.array([0, -1, 5], np.int8), ValueError, "indptr[1] is -1, expected at least indptr[0], which is 0"),
        (np.ma.masked_array([0, 5], [0, 1]), TypeError, "indptr is a masked array"),
    ],
)
def test_row_pointers(name, indptr, kind, words):
    with pytest.raises(kind, match=f"^{name}: .*{re.escape(words)}"):
        call(name, indptr=indptr)


@every_name
def test_errors_of_x(name):
    with pytest.raises(ValueError, match=rf"^{name}: x has shape \(5, 1\), expected one dimension"):
        call(name, x=X[:, None])
    with pytest.raises(TypeError, match=rf"^{name}: x has dtype complex128, expected float16"):
        call(name, x=X + 0j)
    with pytest.raises(TypeError, match=rf"^{name}: x is a masked array"):
        call(name, x=np.ma.masked_array(X, X > 1))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (LOSSES[0], DIVERGENCES[0])])
def test_errors_of_out(name):
    """And nothing is written."""
    shape = (2,) if name in ("segment_logsumexp", "segment_softmax_entropy") else (5,)
    for out, kind, words in (
        (np.zeros(7), ValueError, f"out has shape (7,), expected {shape}"),
        (np.zeros(shape, np.float32), TypeError, "out has dtype float32, expected float64"),
        ([0.0] * 5, TypeError, "out must be a numpy.ndarray, got list"),
    ):
        with pytest.raises(kind, match=f"^{name}: {re.escape(words)}"):
            call(name, out=out)
    out = np.full(shape, 7.0)
    with pytest.raises(ValueError, match="indptr"):
        call(name, indptr=[0, 9], out=out)
    np.testing.assert_array_equal(out, 7.0)


@pytest.mark.parametrize("name", PRODUCTS)
def test_errors_of_vectors(name):
    argument = "cotangent" if name.endswith("vjp") else "tangent"
    with pytest.raises(ValueError, match=rf"^{name}: {argument} has shape \(4,\), expected that of x, \(5,\)"):
        getattr(fs, name)(X, [0, 5], X[:4])


@pytest.mark.parametrize("name", DIVERGENCES)
def test_errors_of_divergences(name):
    function = getattr(fs, name)
    with pytest.raises(ValueError, match=rf"^{name}: target_logits has shape \(4,\), expected that of x, \(5,\)"):
        function(X, [0, 5], X[:4])
    with pytest.raises(TypeError, match=rf"^{name}: target_logits has dtype complex128"):
        function(X, [0, 5], X + 0j)
    with pytest.raises(TypeError, match=rf"^{name}: reverse must be a bool, got None"):
        function(X, [0, 5], X, reverse=None)
    with pytest.raises(ValueError, match=rf"^{name}: reduction must be one of"):
        function(X, [0, 5], X, reduction="max")
    with pytest.raises(ValueError, match=rf"^{name}: sample_weight has shape \(2,\), expected \(1,\)"):
        function(X, [0, 5], X, sample_weight=[1, 2])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("targets", "kind", "words"),
    [
        ([0, 3], IndexError, "targets[1] is 3, expected a position from 0 to 2, within segment 1 of length 3"),
        ([-1, 0], IndexError, "targets[0] is -1, expected a position from 0 to 1"),
        ([2**62, 0], IndexError, f"targets[0] is {2**62}, expected"),
        (np.array([0, 2**64 - 1], np.uint64), IndexError, f"targets[1] is {2**64 - 1}, expected"),
        ([0], ValueError, "targets has shape (1,), expected (2,): one for each segment"),
        ([0.0, 1.0], TypeError, "targets has dtype float64, expected integers"),
        ([True, False], TypeError, "targets has dtype bool, expected integers"),
    ],
)
def test_errors_of_targets(name, targets, kind, words):
    with pytest.raises(kind, match=f"^{name}: {re.escape(words)}"):
        call(name, targets=targets)


@pytest.mark.parametrize("name", LOSSES)
def test_errors_of_options(name):
    with pytest.raises(IndexError, match=r"targets\[1\] is 0, expected an ignored one, since segment 1 is empty"):
        call(name, indptr=[0, 5, 5], targets=[0, 0])
    with pytest.raises(IndexError, match=r"targets\[1\] is 3"):
        call(name, targets=[7, 3], ignore_index=7)
    with pytest.raises(ValueError, match=rf"^{name}: reduction must be one of .* got 'max'"):
        call(name, reduction="max")
    with pytest.raises(ValueError, match=rf"^{name}: sample_weight has shape \(3,\), expected \(2,\)"):
        call(name, sample_weight=[1, 1, 1])
    with pytest.raises(TypeError, match=rf"^{name}: ignore_index must be an integer or None, got 1.5"):
        call(name, ignore_index=1.5)
    for smoothing in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match=rf"^{name}: label_smoothing must be"):
            call(name, label_smoothing=smoothing)
    with pytest.raises(TypeError, match=rf"^{name}: label_smoothing must be a number"):
        call(name, label_smoothing="much")


# --- safety --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-(2**62), -1, 3, 60, 2**62])
def test_kernels_survive_what_changes_under_them(wrong):
    """If another thread changes labels and row pointers after the check, no memory outside is touched."""
    guard = 64
    memory = np.full(300 + 2 * guard, 3.0)
    x = memory[guard:-guard]
    y, rows, ones = memory.copy(), np.zeros(100), UNWEIGHTED[memory.dtype]
    cuts = np.array([0, 50, 100], np.int64)
    for indptr in (np.arange(0, 301, 3), np.concatenate([np.arange(0, 200, 2), [300]])):
        for place in (1, 40, 100):
            torn, labels = indptr.copy(), np.zeros(100, np.int64)
            torn[place] = wrong
            labels[place - 1] = wrong
            x.flags.writeable = False
            target = y[guard:-guard]
            arguments = torn, cuts, x, labels, ones, target, rows, 1.0, 0.0
            entry("segments.segment_cross_entropy")(0, 2, None, *arguments)
            np.testing.assert_array_equal(y[:guard], 3.0)
            np.testing.assert_array_equal(y[-guard:], 3.0)


PLAIN = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import fastsoftmax as fs
from fastsoftmax.api import segments
from fastsoftmax.arrays import huge
from fastsoftmax.kernels import segments as compiled
segments.HUGE = huge.HUGE = compiled.HUGE = 130
huge.PIECE = 50

np.seterr(all="ignore")  # infinities meet here, as they do in registers
results = []
for dtype in (np.float32, np.float64):
    indptr = np.concatenate([[0], np.cumsum([3, 0, 60, 1, 2, 140, 3] + 20 * [3] + [9, 4, 200])])
    x = np.random.default_rng(0).normal(size=indptr[-1]).astype(dtype)
    targets = np.where(np.diff(indptr) > 0, 0, -1)
    weights = np.arange(len(targets)) % 3
    results.append(fs.segment_softmax(x, indptr).tolist())
    results.append(fs.segment_log_softmax(x, indptr).tolist())
    results.append(fs.segment_logsumexp(x, indptr).tolist())
    results.append(fs.segment_softmax_jvp(x, indptr, x[::-1]).tolist())
    loss, grad = fs.segment_cross_entropy_with_grad(x, indptr, targets, ignore_index=-1, sample_weight=weights)
    results.append([float(loss), *grad.tolist()])
print(json.dumps(results))
"""


def test_python_bodies_mean_the_same():
    """The Python bodies and the compiled code agree; pieces are small, to keep this quick."""
    environment = {"NUMBA_DISABLE_JIT": 1}
    plain = json.loads(child.run(PLAIN, Path(__file__).parents[1], **environment))
    for dtype in (np.float32, np.float64):
        indptr = np.concatenate([[0], np.cumsum([3, 0, 60, 1, 2, 140, 3] + 20 * [3] + [9, 4, 200])])
        x = np.random.default_rng(0).normal(size=indptr[-1]).astype(dtype)
        targets = np.where(np.diff(indptr) > 0, 0, -1)
        options = {"ignore_index": -1, "sample_weight": np.arange(len(targets)) % 3}
        loss, grad = fs.segment_cross_entropy_with_grad(x, indptr, targets, **options)
        allowed = 20 * float(np.finfo(dtype).eps)
        for expected in (
            fs.segment_softmax(x, indptr),
            fs.segment_log_softmax(x, indptr),
            fs.segment_logsumexp(x, indptr),
            fs.segment_softmax_jvp(x, indptr, x[::-1]),
            [loss, *grad],
        ):
            np.testing.assert_allclose(plain.pop(0), expected, rtol=allowed, atol=allowed)
    assert not plain


@pytest.mark.slow
def test_no_kernel_leaves_its_arrays(tmp_path):
    """Run with bounds checks, which look at every lane of a gather and a scatter."""
    environment = {
        **os.environ,
        "NUMBA_BOUNDSCHECK": "1",
        "FASTSOFTMAX_CACHE_DIR": str(tmp_path),
        "PYTEST_ADDOPTS": "",
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(child.PACKAGE.parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-3000:]


OUTSIDE = """
import numpy as np
from fastsoftmax.machine.entry import entry

x, cuts = np.zeros(48), np.array([0, 16])
kernel = entry("segments.segment_softmax")
kernel(0, 1, None, np.arange(0, 49, 3), cuts, x, np.empty(48))
print("inside")
kernel(0, 1, None, np.arange(0, 49, 3), cuts, x, np.empty(47))
"""


def test_the_check_would_notice(tmp_path):
    """The check fails for an output that is one element short."""
    with pytest.raises(AssertionError, match=r"(?s)inside.*IndexError: kernel access outside its array"):
        child.run(OUTSIDE, NUMBA_BOUNDSCHECK=1, FASTSOFTMAX_CACHE_DIR=tmp_path)
