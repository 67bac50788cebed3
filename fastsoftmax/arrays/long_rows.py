r"""Softmax of rows whose classes are in several pieces: arrays, tasks or machines. Uses NumPy and kernels only.

Each piece gets a summary (`summarize`), and the summaries of a row are merged, in any order and grouping
(`merge`). The results for each piece (`softmax`, `log_softmax`) and for the row (`logsumexp`, `remainder`) follow
from the merged summary.

A summary is the pair (max, sum) of the online softmax, stored more exactly. The greatest entries are only counted.
The sum of all other terms is two numbers, in units of exp(c) 2**N, where c is a multiple of `STEP` and N a whole
number (`kernels.elementary.reference`). The units of two summaries with the same c differ by a power of two. If
their c are neighbours, they differ by exp(-STEP) as well, which is known to twice the working precision; if the c
lie further apart, one sum is negligible. So the error of a merge is some u**2, however many merges there are, and
the results have the same bounds as for a row in one piece. With a temperature c is any number, and the factor is
computed with an error of at most u, once for each merge of pieces whose c differ.

References
----------
M. Milakov, N. Gimelshein, Online normalizer calculation for softmax, 2018, arXiv:1805.02867.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax.arrays.blocks import NO_ROOM, Array, Box, Parted, Problem, read_only
from fastsoftmax.arrays.parts import run
from fastsoftmax.machine.entry import entry

Beta = tuple[Any, ...] | None

LONG_ROW = 1 << 20
"""Longer rows of one array are cut too, at fixed places, so that several threads can share them."""
PIECE = 1 << 16

FIELDS = ("m", "shift", "bias", "top", "top_low", "ties", "rest", "rest_low")
# By dtype: the distance of references (kernels.elementary), exp(-distance) as (high + low) * 2**exponent, and the
# factor that splits a number into halves whose products are exact.
_STEPS: dict[str, tuple[float, float, float, int, float]] = {
    "f": (512.0, 0.6329392790794373, 2.5509768519782483e-08, -738, 2.0**12 + 1),
    "d": (2048.0, 0.6419604215159698, -3.568337570005182e-17, -2954, 2.0**27 + 1),
}


# ln 2 in two parts; the product of the first and a whole number below 2**20 is exact.
LOG2_E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.6931471803691238, 1.9082149292705877e-10


def summary_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the summaries of pieces of this dtype (float32 or float64)."""
    return np.dtype([(field, dtype) for field in FIELDS])


def _block(matrix: Array) -> tuple[Problem, Any]:
    problem = Problem("piece", matrix, -1)
    return problem, problem.block()


def summarize(matrix: Any, beta: Beta = None) -> Array:
    """One summary for each row of a matrix, or a `Parted`; beta is 1/T as kernels take it, or None."""
    if isinstance(matrix, Parted):  # of contiguous rows
        block, rows, room = matrix, len(matrix), _no_room(matrix)
    else:
        problem, block = _block(matrix)
        rows, room = problem.rows, problem.room(1)
    dtype = block.dtype
    numbers = np.empty((len(FIELDS), rows), dtype)
    run(entry("pieces.summary"), rows, block.size, room, block, numbers, beta)
    result = np.empty(rows, summary_dtype(dtype))
    for field, values in zip(FIELDS, numbers, strict=True):
        result[field] = values
    return result


def _no_room(block: Any) -> Any:
    """Working memory for contiguous rows."""
    return partial(NO_ROOM.get, block.dtype)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """``a + b`` and its rounding error, exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: Array, b: Any, splitter: float) -> tuple[Array, Array]:
    """``a * b`` and its rounding error, exactly (Dekker)."""
    product = a * b
    halves = []
    for value in (a, b):
        scaled = value * value.dtype.type(splitter)
        high = scaled - (scaled - value)
        halves.append((high, value - high))
    (a_high, a_low), (b_high, b_low) = halves
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def pair_sum(high: Array, low: Array) -> tuple[Array, Array]:
    """The sum along the last axis as a pair, with an error of some u**2 times the sum of the absolute values."""
    while high.shape[-1] > 1:
        half = high.shape[-1] // 2
        total, error = two_sum(high[..., :half], high[..., half : 2 * half])
        error += low[..., :half] + low[..., half : 2 * half]
        if high.shape[-1] % 2:
            total = np.concatenate([total, high[..., -1:]], axis=-1)
            error = np.concatenate([error, low[..., -1:]], axis=-1)
        high, low = total, error
    if high.shape[-1] == 0:
        nothing = np.zeros(high.shape[:-1], high.dtype)
        return nothing, nothing
    high, low = high[..., 0], low[..., 0]
    return high, np.where(np.isfinite(high), low, 0)  # inf stays inf, though its error is nan


def _whole(part: Array, splitter: float) -> tuple[Array, Array]:
    """The sum of all terms of each piece, including the greatest, as a pair."""
    product, error = two_product(part["ties"], part["top"], splitter)
    high, rest = two_sum(part["rest"], product)
    return high, rest + (part["rest_low"] + (part["ties"] * part["top_low"] + error))


def _between(lead: Array, parts: Array, beta: tuple[Any, ...]) -> tuple[Array, Array, Array]:
    """exp((c - c of the lead)/T) of every piece as (high + low) * 2**exponent, to about 2**-52."""
    _, gain, high, low, _ = (float(number) for number in beta)
    difference = (parts["shift"].astype(np.float64) - lead["shift"].astype(np.float64)) * gain
    t, t_low = two_product(difference, np.full(1, high), 2.0**27 + 1)
    t = np.clip(np.where(np.isfinite(t), t, 0), -1e4, 1e4)
    n = np.rint(t * LOG2_E)
    r = (t - n * LN2_HIGH) - n * LN2_LOW
    t_low = np.where(np.abs(t_low) < 1, t_low, 0) + difference * low
    t_low = np.where(np.abs(t) < 1e4, t_low, 0)  # else the factor is 0, but the correction may be huge
    factor = np.exp(r) * (1 + np.where(np.isfinite(t_low), t_low, 0))
    rounded = factor.astype(parts["m"].dtype)
    return rounded, (factor - rounded).astype(rounded.dtype), n


def merge(parts: Array, beta: Beta = None) -> Array:
    """The summaries of whole rows, from those of their pieces along the last axis."""
    dtype = parts.dtype["m"]
    step, apart, apart_low, power_apart, splitter = _STEPS[dtype.char]
    lead = np.take_along_axis(parts, np.argmax(parts["m"], axis=-1)[..., None], -1)
    result: Array = lead[..., 0].copy()
    with np.errstate(all="ignore"):
        greatest = parts["m"] == lead["m"]
        high, low = _whole(parts, splitter)
        empty = parts["m"] == -np.inf  # only -inf: no terms, except NaN, which is in rest
        high = np.where(empty, parts["rest"], high)
        low = np.where(empty, parts["rest_low"], low)
        powers = np.where(np.isfinite(parts["bias"]), lead["bias"] - parts["bias"], 0)
        near = lead["shift"] == parts["shift"]
        if beta is None:
            next_to = np.abs(lead["shift"] - parts["shift"]) == dtype.type(step)
            factor, factor_low = np.full(1, apart, dtype), np.full(1, apart_low, dtype)
            exponent = np.full(1, power_apart)
        else:
            next_to = ~near
            factor, factor_low, exponent = _between(lead, parts, beta)
        product, error = two_product(high, factor, splitter)
        error += high * factor_low + low * factor
        powers = np.where(next_to, powers + exponent, powers).astype(np.int32)
        nothing = high * 0  # or NaN
        high = np.where(near, high, np.where(next_to, product, nothing))
        low = np.where(near, low, np.where(next_to, error, nothing))
        high, low = np.ldexp(high, powers), np.ldexp(low, powers)
        high = np.where(greatest | empty, parts["rest"], high)
        low = np.where(greatest | empty, parts["rest_low"], low)
        result["ties"] = np.where(greatest, parts["ties"], 0).sum(axis=-1)
        high, low = pair_sum(high, low)
        result["rest"], result["rest_low"] = two_sum(high, low)
    return result


def _given(summaries: Array) -> Array:
    return read_only(np.stack([summaries[field] for field in ("m", "ties", "rest", "rest_low")]))


def _finished(kernel: str, matrix: Array, summaries: Array, beta: Beta, out: Array | None = None) -> Array:
    problem, x = _block(matrix)
    output = problem.output(out)
    compiled = entry(f"pieces.{kernel}")
    given = _given(summaries)
    run(compiled, problem.rows, x.size, problem.room(1), x, output.block, given, beta)
    result: Array = output.finish()
    return result


def softmax(matrix: Array, summaries: Array, beta: Beta = None, out: Array | None = None) -> Array:
    """Probabilities of one piece (rows, classes), from the merged summary of each row."""
    return _finished("softmax", matrix, summaries, beta, out)


def log_softmax(matrix: Array, summaries: Array, beta: Beta = None) -> Array:
    """Log-probabilities of one piece (rows, classes), from the merged summary of each row."""
    return _finished("log_softmax", matrix, summaries, beta)


def logsumexp(summaries: Array) -> Array:
    """The log-sum-exp of each row, from its merged summary."""
    problem, m = _block(np.ascontiguousarray(summaries["m"])[:, None])
    rows = np.empty((2, problem.rows), problem.dtype)
    run(entry("pieces.totals"), problem.rows, problem.rows, problem.room(1), m, rows, _given(summaries))
    values: Array = rows[0]
    return values


def log_of_sum(summaries: Array) -> Array:
    """The log-sum-exp of each row in float64, from its merged summary."""
    with np.errstate(all="ignore"):
        top, rest = (summaries[name] + summaries[f"{name}_low"].astype(np.float64) for name in ("top", "rest"))
        value = summaries["m"] + np.log(summaries["ties"] + rest / top)
        rounded = logsumexp(summaries)
        result: Array = np.where(np.isfinite(rounded), value, rounded)
        return result


def remainder(summaries: Array) -> Array:
    """1 - p of the greatest entry of each row, accurate where p is close to 1; with a temperature, too."""
    with np.errstate(all="ignore"):
        top, ties, rest, rest_low = (summaries[name].astype(np.float64) for name in ("top", *FIELDS[5:]))
        top += summaries["top_low"]
        others = (ties - 1) * top + (rest + rest_low)
        return (others / (others + top)).astype(summaries.dtype["m"])


def inner(a: Array, b: Array) -> tuple[Array, Array]:
    """sum_j a_j b_j of the rows of contiguous matrices (rows, classes) of one dtype, as a pair."""
    problem, x = _block(a)
    sums = np.empty((2, problem.rows), problem.dtype)
    given = read_only(np.empty((1, problem.rows), problem.dtype))  # only its width is used
    run(entry("pieces.dots"), problem.rows, 2 * x.size, problem.room(2), x, b[..., None], sums, given, None, True)
    return sums[0], sums[1]


# --- capped logits ----------------------------------------------------------------------------------------------


def cap(matrix: Array, softcap: Any, out: Array | None = None) -> Array:
    """softcap tanh(x/softcap) for a matrix x in the order of its rows; `out` may be the matrix itself."""
    problem = Problem("piece", matrix, -1, last=True)
    x, output = problem.block(), problem.output(out)
    run(entry("capped.cap"), problem.rows, 2 * x.size, _no_room(x), x, output.block, softcap)
    result: Array = output.finish()
    return result


def uncap(matrix: Array, softcap: Any, slopes: Array) -> None:
    """Replace derivatives with respect to the capped logits, contiguous, by those with respect to the logits."""
    problem = Problem("piece", matrix, -1, last=True)
    x = problem.block()
    run(entry("capped.uncapped_slope"), problem.rows, 2 * x.size, _no_room(x), x, slopes[..., None], softcap)


# --- losses of class indices ------------------------------------------------------------------------------------


def inside(labels: Array, first: int, classes: int) -> tuple[Array, Array]:
    """The rows whose labels, int64, are among so many classes from `first` on, and which of these they are."""
    columns = labels - first
    at = np.flatnonzero((columns >= 0) & (columns < classes))
    return at, columns[at]


def weighed(summaries: Array, weights: Array) -> Array:
    """The merged summaries of rows and their weights, as the kernels of the loss take them."""
    return read_only(np.concatenate([_given(summaries), weights[None]]))


def labelled(logits: Array, given: Array, scale: tuple[Any, Any]) -> Array:
    """The losses of rows, and the gradients at their labels, from the logits there; shape (2, rows)."""
    problem, target = _block(np.ascontiguousarray(logits)[:, None])
    rows = np.empty((2, problem.rows), problem.dtype)
    run(entry("pieces.labelled"), problem.rows, problem.rows, problem.room(1), target, rows, given, *scale)
    return rows


def surprise(logits: Array, summaries: Array) -> Array:
    """-log p and p - 1 of an entry of each row, from its logit and the merged summaries; shape (2, rows)."""
    dtype = logits.dtype
    return labelled(logits, weighed(summaries, np.ones_like(logits)), (dtype.type(1), dtype.type(0)))


class LabelTerms(NamedTuple):
    """Numbers of rows with a label and a z-loss, in the notation of `linear_pieces`.

    -log p_y, lse, the gradient (q_y (p_y - 1) + (C - q_y) p_y) at the label, and C.
    """

    surprise: Array
    lse: Array
    at_label: Array
    factor: Array


def label_terms(logits: Array, summaries: Array, share: Any, others: Any, z_loss: Any) -> LabelTerms:
    """The `LabelTerms` of rows: q_y is `share`, the other shares have the sum `others`, r is `z_loss`."""
    excess, lacking = surprise(logits, summaries)
    below, lse = lacking.astype(np.float64), log_of_sum(summaries)
    if np.any(z_loss):
        others = others + np.where(z_loss == 0, 0, 2 * z_loss * lse)
    return LabelTerms(excess, lse, share * below + others * (1 + below), share + others)


def slope(matrix: Array, given: Array, scale: tuple[Any, Any], out: Array | None = None) -> Array:
    """The gradient of the loss beside the labels, for one piece (rows, classes); `out` may be the piece itself."""
    problem, x = _block(matrix)
    output = problem.output(out)
    run(entry("pieces.gradient"), problem.rows, 2 * x.size, problem.room(1), x, output.block, given, *scale)
    result: Array = output.finish()
    return result


def rounded(high: Array, low: Array) -> Array:
    """Pairs as numbers in float64; inf stays inf, though its low part may be nan."""
    value: Array = high.astype(np.float64)
    np.add(value, low, out=value, where=np.isfinite(value))
    return value


# --- long rows of one array -----------------------------------------------------------------------------------


def _part(block: Any, start: int, count: int, unit: int) -> Any:
    """Entries of a block (rows, classes, 1) from `start` on, in one row, as a matrix (count, unit) or `Parted`."""
    if not isinstance(block, Parted):
        row = block.reshape(-1)
    elif block.apart is None:
        return block.cut(start, count, unit)
    else:
        number, start = divmod(start, block.shape[1])
        row = block.row(number)
    return row[start : start + count * unit].reshape(count, unit)


def _cut(block: Any, row: int) -> list[Any]:
    """A row as matrices of its pieces: those of the full length, and what remains."""
    classes = block.shape[1]
    full, rest = divmod(classes, PIECE)
    cuts = ((row * classes, full, PIECE), (row * classes + full * PIECE, 1, rest))
    return [_part(block, *cut) for cut in cuts if cut[1] and cut[2]]


def _entry(block: Any, row: int, place: int) -> Array:
    """One entry of a block (rows, classes, 1), as an array of size 1."""
    one = _part(block, row * block.shape[1] + place, 1, 1)
    return (one.read(Box(0, 1)) if isinstance(one, Parted) else one).reshape(1)


def _set_entry(block: Any, row: int, place: int, value: Any) -> None:
    """Set one entry of a block (rows, classes, 1)."""
    one = _part(block, row * block.shape[1] + place, 1, 1)
    if isinstance(one, Parted):
        one.write(Box(0, 1), np.full((1, 1, 1), value, block.dtype))
    else:
        one[...] = value


def _summary(block: Any, row: int, beta: Beta) -> Array:
    return merge(np.concatenate([summarize(part, beta) for part in _cut(block, row)])[None], beta)


def _over_pieces(kernel: Any, blocks: list[Any], row: int, given: Array, *options: Any, results: int = 0) -> Array:
    """Run a kernel over the pieces of a row of blocks; `given` has the numbers of the whole row for each.

    Returns so many `results` for each piece, with shape (results, pieces), if the kernel has any.
    """
    found = []
    for parts in zip(*(_cut(one, row) for one in blocks), strict=True):
        block, *others = [part if isinstance(part, Parted) else part[..., None] for part in parts]
        count = len(block)
        every = read_only(np.ascontiguousarray(np.broadcast_to(given, (len(given), count))))
        found.append(np.empty((results, count), block.dtype))
        if results:
            others.append(found[-1])
        run(kernel, count, block.size * len(others), _no_room(block), block, *others, every, *options)
    return np.concatenate(found, axis=1)


def is_long(problem: Problem) -> bool:
    """Whether its rows are cut, by the functions below."""
    return problem.inner == 1 and problem.classes > LONG_ROW


# The blocks of the following functions are arrays of shape (rows, classes, 1), or `Parted`.


def long_forward(function: str, x: Any, y: Any, beta: Beta) -> None:
    """`softmax` or `log_softmax` of the rows of a block into y, which may be x itself."""
    kernel = entry(f"pieces.{function}")
    for i in range(len(x)):
        _over_pieces(kernel, [x, y], i, _given(_summary(x, i, beta)), beta)


def long_cross_entropy(x: Any, labels: Array, weights: Array, y: Any, rows: Array, scale: tuple[Any, Any]) -> None:
    """`kernels.losses.cross_entropy` of the rows of a block; y may be x itself, or None."""
    for i in range(len(x)):
        place = min(max(int(labels[i]), 0), x.shape[1] - 1)  # checked, but another thread may have changed them
        weight = np.full(1, weights[i] if weights.size else 1, x.dtype)
        given = weighed(_summary(x, i, None), weight)
        found = labelled(_entry(x, i, place), given, scale)
        if y is not None:
            _over_pieces(entry("pieces.gradient"), [x, y], i, given, *scale)
            _set_entry(y, i, place, found[1, 0])
        rows[i] = found[0, 0]


def long_product(x: Any, v: Any, y: Any, beta: Beta, from_probs: Any) -> None:
    """`kernels.derivatives.softmax_product` of the rows of blocks; y may be x or v itself."""
    for i in range(len(x)):
        given = np.zeros((8, 1), x.dtype)
        if from_probs is None:
            given[:4] = _given(_summary(x, i, beta))
            extents = _over_pieces(entry("pieces.extents"), [x, v], i, given, results=2)
            with np.errstate(all="ignore"):
                given[4:6, 0] = np.fmax.reduce(extents, axis=1)
        beta_of_terms = beta if from_probs is None else None
        sums = _over_pieces(entry("pieces.dots"), [x, v], i, given, beta_of_terms, from_probs, results=2)
        with np.errstate(all="ignore"):
            high, low = two_sum(*pair_sum(*sums))
        given[6:, 0] = high, low
        _over_pieces(entry("pieces.softmax_product"), [x, v, y], i, given, beta, from_probs)


def long_logsumexp(x: Any, rows: Array) -> None:
    """The log-sum-exp of the rows of a block."""
    for i in range(len(x)):
        rows[i] = logsumexp(_summary(x, i, None))[0]
