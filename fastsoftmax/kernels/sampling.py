r"""Random classes, drawn with the probabilities of the softmax of a row.

With p = softmax(x/T), terms e_k as in `traversal.term`, c_k = e_0 + ... + e_k, and a uniform number u in [0, 1):

    class k is drawn where c_{k-1} <= u c_{K-1} < c_k

No array of probabilities is made and nothing is sorted. The terms have the dtype of the logits (1.1 ulp each), but
all sums are float64, whatever that dtype is: a class of probability 1e-12 is drawn as often as it should be, also
if it is behind one of probability 1. The uniform number has 53 bits for the same reason.

Rows of up to `COLUMN_LIMIT` classes, and rows along an axis that is not the last, are added class by class. Longer
rows are cut into stretches of `STRETCH` classes, whose sums are made in vectors. The place of u in the sums of the
stretches selects a stretch. There the terms are computed again and added in class order. Sums in vectors and in
class order differ by roundings. If u minus the sum of the stretches before were compared with the latter, the last
classes of the stretch would bear this difference, which a class of tiny probability does not survive. So what is
compared is the *share*: the position of u between the two sums around the stretch, relative to their distance,
times the sum in class order.

A row without a class of positive probability, or with NaN or +inf, gets `NOTHING`.
"""

from typing import Any, NamedTuple

import numpy as np

from fastsoftmax._vectors import COLUMN_LIMIT, LINE, LISTED, PARTS, STRETCH, STRETCH_TABLE
from fastsoftmax.kernels.elementary import centred, exp_scaled, reference
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.simd.memory import (
    after,
    as_doubles,
    as_integers,
    integers,
    lane_count,
    load,
    load_double,
    load_part,
    load_scalar,
    memory,
    scratch,
    size,
    store,
    store_part,
    store_scalar,
)
from fastsoftmax.kernels.simd.reduce import doubled, fold_maximum, fold_sum
from fastsoftmax.kernels.simd.values import (
    absolute,
    broadcast,
    filled,
    is_single,
    lanes_above,
    lowest_bit,
    maximum,
    number,
    select_equal,
    select_less,
)
from fastsoftmax.kernels.traversal import Place, highest, traverse
from fastsoftmax.machine.entry import Block, Count, Doubles, Flag, Floats, Integers, Room, Temperature

INF = float("inf")
NAN = float("nan")
NOTHING = -1
MANY = -2
"""More classes are kept by filters than `LISTED`."""
KEPT = 256
"""The terms of a row of at most so many vectors are kept until its class is drawn."""
BELOW_ONE = 1 - 2.0**-53


class Scale(NamedTuple):
    """What determines the terms of a row: 1/T or None, and the `elementary.reference` of its greatest entry.

    `kept` is None, or says in which classes the terms are not 0.
    """

    beta: Any
    shift: Any
    bias: Any
    kept: Any


class Kept(NamedTuple):
    """The classes of a row that filters keep: those above the least logit, and its equals up to class `last`."""

    least: Any
    last: Any


class Workspace(NamedTuple):
    """Memory for one row."""

    terms: Any
    """The terms of a stretch, or those of the row if there is room for them."""
    vectors: Any
    """In each stretch, the sums of all vectors up to each: of the last stretch looked at, or of all (`tabled`)."""
    parts: Any
    """The sums of the parts."""
    ends: Any
    """The sums of all parts up to each; of a short row, c_k."""
    tabled: Any
    """Whether `vectors` has the sums of all stretches, for many draws; `tabulate` writes them."""


class DrawOptions(NamedTuple):
    """1/T or None, the uniform numbers, the classes that are drawn, and the number of rows that got none."""

    beta: Any
    uniforms: Any
    chosen: Any
    failures: Any
    workspace: Any


@inline
def _some(x: Any, k: int, stop: int, filler: Any) -> Any:
    """The vector from k on, with `filler` in the lanes from `stop` on. Only the last one is masked."""
    if k + lane_count(x) <= stop:
        return load(x, k)
    return load_part(x, k, stop - k, filler)


@inline
def scale_of(x: Any, length: int, beta: Any) -> Scale:
    """The `Scale` of a row."""
    shift, bias = reference(highest(x, 0, length, True), beta)
    return Scale(beta, shift, bias, None)


@inline
def _sifted(x: Any, k: int, count: int, kept: Kept) -> Any:
    """So many logits from k on, -inf for those that are not kept and in the other lanes."""
    low = number(x, -INF)
    value = load_part(x, k, count, low)
    early = load_part(x, k, min(max(kept.last + 1 - k, 0), count), low)
    return select_less(kept.least, value, value, select_equal(early, kept.least, value, low))


@inline
def _logits(x: Any, k: int, kept: Any) -> Any:
    """The vector from k on."""
    if kept is None:
        return load(x, k)
    return _sifted(x, k, lane_count(x), kept)


@inline
def _last_logits(x: Any, k: int, count: int, kept: Any) -> Any:
    """So many logits from k on, and -inf in the other lanes."""
    if kept is None:
        return load_part(x, k, count, number(x, -INF))
    return _sifted(x, k, count, kept)


@inline
def plain_term(value: Any, scale: Scale) -> Any:
    """exp(value/T) in units of the row's reference, 0 below the smallest normal number."""
    t, tail = centred(value, scale.shift, scale.beta)
    return exp_scaled(t, tail, scale.bias)


@inline
def _stretch(x: Any, first: int, length: int, scale: Scale, terms: Any, at: int) -> float:
    """Store the terms of `length` classes from `first` on, padded with zeros to whole vectors; their sum.

    They are stored in `terms` from `at` on. Four float32 are added before they become float64: an error of 2 u in
    the weight of the whole stretch, as in each term.
    """
    step = lane_count(x)
    full = length // step * step
    wide = length // (4 * step) * (4 * step)
    sums = broadcast(np.float64(0.0))
    for k in range(0, wide, 4 * step):
        a = plain_term(_logits(x, first + k, scale.kept), scale)
        b = plain_term(_logits(x, first + k + step, scale.kept), scale)
        c = plain_term(_logits(x, first + k + 2 * step, scale.kept), scale)
        d = plain_term(_logits(x, first + k + 3 * step, scale.kept), scale)
        store(terms, at + k, a)
        store(terms, at + k + step, b)
        store(terms, at + k + 2 * step, c)
        store(terms, at + k + 3 * step, d)
        sums = sums + doubled((a + b) + (c + d))
    for k in range(wide, full, step):
        e = plain_term(_logits(x, first + k, scale.kept), scale)
        store(terms, at + k, e)
        sums = sums + doubled(e)
    if full < length:
        e = plain_term(_last_logits(x, first + full, length - full, scale.kept), scale)
        store(terms, at + full, e)
        sums = sums + doubled(e)
    total: float = fold_sum(True, sums)
    return total


@inline
def part_length(length: int) -> int:
    """The length of the parts of a row of `length` classes."""
    return STRETCH * max(1, (length + STRETCH * PARTS - 1) // (STRETCH * PARTS))


@inline
def _keeps(space: Workspace, length: int) -> bool:
    """Whether the terms of a row of this length are kept."""
    kept: bool = length <= size(space.terms)
    return kept


@inline
def _part(x: Any, first: int, length: int, scale: Scale, space: Workspace, keep: bool) -> float:
    """The sum of the terms of a part. `keep`: whether they are stored at their places."""
    total = 0.0
    for k in range(first, first + length, STRETCH):
        at = k if keep else 0
        total += _stretch(x, k, min(STRETCH, first + length - k), scale, space.terms, at)
    return total


@inline
def survey(x: Any, length: int, scale: Scale, space: Workspace) -> float:
    """Write the sums of a row of `length` classes to `space`; returns the sum of all."""
    total = 0.0
    if length <= COLUMN_LIMIT:
        _stretch(x, 0, length, scale, space.terms, 0)
        for k in range(length):
            total += np.float64(load_scalar(space.terms, k))
            store_scalar(space.ends, k, total)
        return total
    width, keep = part_length(length), _keeps(space, length)
    for part in range((length + width - 1) // width):
        first = part * width
        value = _part(x, first, min(width, length - first), scale, space, keep)
        total += value
        store_scalar(space.parts, part, value)
        store_scalar(space.ends, part, total)
    return total


@inline
def _first_above(ends: Any, count: int, bound: float) -> int:
    """The first of `count` increasing numbers that is above `bound`; the last one must be."""
    first = 0
    while count > 1:  # without a branch that depends on a number: it would be mispredicted half of the time
        half = count // 2
        first += half * int(load_scalar(ends, first + half - 1) <= bound)
        count -= half
    return first


@inline
def _add_vectors(terms: Any, length: int, ends: Any) -> None:
    """Store the sums of all vectors of a stretch up to each."""
    step = lane_count(terms)
    total = 0.0
    for vector in range((length + step - 1) // step):
        total += fold_sum(True, doubled(load(terms, vector * step)))
        store_scalar(ends, vector, total)


@inline
def tabulate(length: int, space: Workspace) -> None:
    """Fill the table of a row whose terms are kept."""
    step = lane_count(space.terms)
    for k in range(0, length, STRETCH):
        _add_vectors(after(space.terms, k), min(STRETCH, length - k), after(space.vectors, k // step))


@inline
def _within(terms: Any, length: int, share: float, ends: Any) -> int:
    """The class of a stretch that lies at `share`, from 0 to 1, of the sum of its terms, after `_add_vectors`."""
    step = lane_count(terms)
    count = (length + step - 1) // step
    bound = load_scalar(ends, count - 1) * min(share, BELOW_ONE)
    vector = _first_above(ends, count, bound)
    rest = bound - load_scalar(ends, vector - 1) if vector > 0 else bound
    so_far = 0.0
    found: int = vector * step
    for k in range(vector * step, vector * step + step):
        value = np.float64(load_scalar(terms, k))
        so_far += value
        if value > 0.0:
            found = k
            if rest < so_far:
                break
    return found


@inline
def pick(x: Any, length: int, scale: Scale, space: Workspace, total: float, u: float) -> int:
    """The class at u times the sum of all terms, after `survey`."""
    bound = min(u, BELOW_ONE) * total
    if length <= COLUMN_LIMIT:
        short: int = _first_above(space.ends, length, bound)
        return short
    width = part_length(length)
    part = _first_above(space.ends, (length + width - 1) // width, bound)
    before = load_scalar(space.ends, part - 1) if part > 0 else 0.0
    share = (bound - before) / (load_scalar(space.ends, part) - before)
    first = part * width
    stop = min(first + width, length)
    if _keeps(space, length):
        terms, ends = after(space.terms, first), space.vectors
        if space.tabled:
            ends = after(ends, first // lane_count(x))
        else:
            _add_vectors(terms, stop - first, ends)
        return first + _within(terms, stop - first, share, ends)
    at, weight, rest = first, 0.0, share * load_scalar(space.parts, part)
    for k in range(first, stop, STRETCH):
        value = _stretch(x, k, min(STRETCH, stop - k), scale, space.terms, 0)
        if value > 0.0:
            at, weight = k, value
            if rest < value:
                break
            rest -= value
    if width > STRETCH:
        share = rest / weight
        _stretch(x, at, min(STRETCH, stop - at), scale, space.terms, 0)
    _add_vectors(space.terms, min(STRETCH, stop - at), space.vectors)
    return at + _within(space.terms, min(STRETCH, stop - at), share, space.vectors)


@inline
def is_drawable(total: float) -> bool:
    """Whether a row with this sum of terms has a class to draw: no NaN, no +inf."""
    drawable: bool = 0.0 < total < INF
    return drawable


@inline
def workspace(x: Any, doubles: Any) -> Workspace:
    """A `Workspace` on the stack."""
    vectors, parts, ends = scratch(doubles, 4), scratch(doubles, 128), scratch(doubles, 128)
    return Workspace(scratch(x, KEPT), vectors, parts, ends, False)


@inline
def with_table(space: Workspace, room: Any, length: int) -> Workspace:
    """The same workspace with a table in `room`, for rows of up to `length` classes, with one stretch a part."""
    count = (length + STRETCH - 1) // STRETCH * STRETCH
    terms = after(room, 0)
    return Workspace(terms, as_doubles(after(room, count)), space.parts, space.ends, True)


@inline
def _draw_from_row(x: Any, place: Place, options: DrawOptions) -> None:
    """A class of one row."""
    row, space = after(x, place.offset), options.workspace
    scale = scale_of(row, place.length, options.beta)
    total = survey(row, place.length, scale, space)
    found = NOTHING
    if is_drawable(total):
        found = pick(row, place.length, scale, space, total, load_scalar(options.uniforms, place.row))
    else:
        store_scalar(options.failures, 0, load_scalar(options.failures, 0) + 1)
    store_scalar(options.chosen, place.row, found)


@inline
def _draw_from_columns(x: Any, place: Place, options: DrawOptions) -> None:
    """A class of each row of a tile, whose terms replace its entries."""
    offset, length, _, row, count = place
    step = lane_count(x)
    shift, bias = reference(highest(x, offset, length, None), options.beta)
    scale = Scale(options.beta, shift, bias, None)
    for k in range(offset, offset + length, step):
        store(x, k, plain_term(load(x, k), scale))
    results = options.workspace.ends
    zero = broadcast(np.float64(0.0))
    for lane in range(0, count, 8):
        lanes = min(8, count - lane)
        total = zero
        for k in range(offset + lane, offset + length, step):
            total = total + load_double(x, k)
        bound = load_part(options.uniforms, row + lane, lanes, 0.0) * total
        passed, so_far = zero, zero
        for k in range(offset + lane, offset + length, step):
            so_far = so_far + load_double(x, k)
            passed = select_less(bound, so_far, passed, passed + 1.0)
        store(results, 0, select_less(zero, total, passed, filled(zero, NOTHING)))
        for i in range(lanes):
            found = int(load_scalar(results, i))
            if found < 0:
                store_scalar(options.failures, 0, load_scalar(options.failures, 0) + 1)
            store_scalar(options.chosen, row + lane + i, found)


@inline
def draw_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """A class of each row. The statistics of `traverse` are not used."""
    if place.folded is None:
        _draw_from_columns(x, place, options)
    else:
        _draw_from_row(x, place, options)


@kernel
def categorical(
    start: Count, stop: Count, room: Room, x: Block, uniforms: Doubles, chosen: Integers, beta: Temperature
) -> float:
    """chosen = a class of each row, by its number in `uniforms`; returns how many rows got `NOTHING`."""
    data, numbers, tile = memory(x), memory(uniforms), memory(room)
    failures = integers(1)
    store_scalar(failures, 0, 0)
    options = DrawOptions(beta, numbers, memory(chosen), failures, workspace(data, numbers))
    traverse(draw_block, start, stop, x.shape, tile, data, None, None, None, options, given=True)
    return float(load_scalar(failures, 0))


# --- a long row on several threads ----------------------------------------------------------------------------
#
# `heights`, `sums` and `picks` do together what `categorical` does for a row of more than `KEPT` vectors: the same
# sums, in the same order. Threads share the parts of the row, and then the draws.


@kernel
def heights(start: Count, stop: Count, room: Room, x: Floats, found: Floats) -> None:
    """found[p] = the greatest logit of part p of the row x; -inf if it has fewer parts."""
    data, result = memory(x), memory(found)
    length = size(data)
    width = part_length(length)
    for part in range(start, stop):
        first = min(part * width, length)
        store_scalar(result, part, highest(after(data, first), 0, min(width, length - first), True))


@kernel
def sums(
    start: Count, stop: Count, room: Room, x: Floats, greatest: Floats, found: Doubles, beta: Temperature
) -> None:
    """found[p] = the sum of the terms of part p of the row x, 0 if it has fewer parts; `greatest` by `heights`."""
    data, result = memory(x), memory(found)
    length = size(data)
    width, scale = part_length(length), scale_of(memory(greatest), PARTS, beta)
    space = workspace(data, result)
    for part in range(start, stop):
        first = min(part * width, length)
        store_scalar(result, part, _part(data, first, min(width, length - first), scale, space, False))


@kernel
def picks(
    start: Count,
    stop: Count,
    room: Room,
    x: Floats,
    greatest: Floats,
    weights: Doubles,
    uniforms: Doubles,
    chosen: Integers,
    beta: Temperature,
) -> None:
    """chosen[d] = the class of the row x at uniforms[d], or `NOTHING`; `weights` by `sums`."""
    data, parts, numbers, result = memory(x), memory(weights), memory(uniforms), memory(chosen)
    scale = scale_of(memory(greatest), PARTS, beta)
    space = workspace(data, numbers)
    total = 0.0
    for part in range(PARTS):
        value = load_scalar(parts, part)
        total += value
        store_scalar(space.parts, part, value)
        store_scalar(space.ends, part, total)
    for draw in range(start, stop):
        found = NOTHING
        if is_drawable(total):
            found = pick(data, size(data), scale, space, total, load_scalar(numbers, draw))
        store_scalar(result, draw, found)


# --- filters --------------------------------------------------------------------------------------------------
#
# Every filter keeps the classes above some logit, and the first few of those that are equal to it: a `Cut`. The
# cuts of top_k and top_p are found by selection, as in quickselect: the numbers are compared with one of them,
# their count or their mass on either side says on which side the cut is, and the others are dropped.
#
# The numbers are moved for that, and the classes that are kept are listed, in memory for `LISTED` of them. In a
# longer row the cut is first sought without moving anything, by comparisons with the whole row, until so few
# numbers are left. If more classes are kept, they are not listed: the row is read through the cut (`Kept`).

SAMPLE, LARGE_SAMPLE = 32, 128
"""So many numbers, evenly spaced, are sorted to choose the one that all are compared with."""
CROWD = 4096
"""From so many numbers on, the sample is large, and the choice is moved by `MARGIN`, about twice the standard
error, so that the cut is on the smaller side."""
MARGIN = 8


class Cut(NamedTuple):
    """What a filter keeps."""

    least: Any
    """The least logit."""
    ties: Any
    """How many of the classes with this logit are kept, in class order."""


class Shelf(NamedTuple):
    """Working memory for a row with filters."""

    values: Any
    """The logits of the classes that are kept, in class order; or a row that is changed."""
    classes: Any
    """These classes."""
    loose: Any
    """Logits among which a cut is sought."""
    maxima: Any
    """The greatest logit of each part."""


@inline
def whole_lines(count: int) -> int:
    """`count` rounded up to a multiple of `LINE`: whole vectors."""
    return (count + LINE - 1) // LINE * LINE


@inline
def shelf(room: Any, length: int, changed: bool) -> Shelf:
    """The parts of `room` for a row of `length` classes, `changed` or not; see `arrays.sampling.room_for`."""
    count = whole_lines(min(length, LISTED))
    classes = after(room, whole_lines(length) if changed else count)
    rest = after(classes, 2 * count if is_single(number(room, 0.0)) else count)
    return Shelf(room, as_integers(classes), rest, after(rest, count))


@inline
def _maxima(x: Any, length: int, maxima: Any) -> Any:
    """Store the greatest logit of each part of a row; the greatest of all, NaN if there is a NaN."""
    step, width = lane_count(x), part_length(length)
    zero = broadcast(number(x, 0.0))
    top, strange = broadcast(number(x, -INF)), zero
    for first in range(0, length, width):
        here = broadcast(number(x, -INF))
        stop = min(first + width, length)
        for k in range(first, stop, step):
            value = _some(x, k, stop, number(x, -INF))
            here = maximum(value, here)
            strange = select_equal(value, value, strange, value)
        store_scalar(maxima, first // width, fold_maximum(True, here))
        top = maximum(here, top)
    return fold_maximum(True, top) + fold_sum(True, strange)


@inline
def _copy(x: Any, length: int, y: Any) -> None:
    """y = x, whose last vector is filled up with NaN; y has whole cache lines."""
    step = lane_count(x)
    for k in range(0, length, step):
        store(y, k, _some(x, k, length, number(x, NAN)))


@inline
def _weight(value: Any, scale: Scale, by_mass: bool) -> Any:
    """What a logit counts: its term, or 1."""
    if by_mass:
        return plain_term(value, scale)
    return filled(value, 1.0)


@inline
def _below(value: Any, limit: Any, amount: Any) -> Any:
    """The amount where a logit is below the limit, else 0. None is no limit."""
    if limit is None:
        return amount
    return select_less(value, limit, amount, filled(value, 0.0))


@inline
def _weigh(x: Any, length: int, pivot: Any, limit: Any, scale: Scale, by_mass: bool) -> Any:
    """The weight of all logits above the pivot and below the limit, and how many are equal to the pivot.

    If there is a limit, also how many lie between.
    """
    step = lane_count(x)
    zero, one = number(x, 0.0), number(x, 1.0)
    above, between, equal = broadcast(np.float64(0.0)), 0.0, 0.0
    for first in range(0, length, step << 20):  # a float32 cannot count beyond 2**24
        same, inside = broadcast(zero), broadcast(zero)
        stop = min(first + (step << 20), length)
        for k in range(first, stop, step):
            value = _some(x, k, stop, number(x, NAN))
            weight = _below(value, limit, _weight(value, scale, by_mass))
            above = above + doubled(select_less(pivot, value, weight, zero))
            same = select_equal(value, pivot, same + one, same)
            if limit is not None:
                inside = select_less(pivot, value, inside + _below(value, limit, filled(value, 1.0)), inside)
        equal += np.float64(fold_sum(True, same))
        between += np.float64(fold_sum(True, inside))
    return fold_sum(True, above), equal, between


@inline
def _is_dense(hits: int) -> bool:
    """Whether more than three bits are set: then a loop over all lanes without a branch is the faster one."""
    for _ in range(3):
        hits &= hits - 1
    return hits > 0


@inline
def _append(x: Any, k: int, hits: int, y: Any, count: int) -> int:
    """Append to y, which holds `count` numbers, those of x from k on whose bits are set; the new count."""
    while hits != 0:
        store_scalar(y, count, load_scalar(x, k + lowest_bit(hits)))
        count += 1
        hits &= hits - 1
    return count


@inline
def _select(x: Any, length: int, pivot: Any, greater: bool, y: Any, count: int) -> int:
    """Append to y, which holds `count` numbers, the logits above (else below) the pivot; y may be x."""
    step = lane_count(x)
    zero, one = number(x, 0.0), number(x, 1.0)
    for k in range(0, length, step):
        value = _some(x, k, length, number(x, NAN))
        if greater:
            found = select_less(pivot, value, broadcast(one), zero)
        else:
            found = select_less(value, pivot, broadcast(one), zero)
        hits = lanes_above(found, zero)
        if _is_dense(hits) and k + step <= length:
            for i in range(step):
                store_scalar(y, count, load_scalar(x, k + i))
                count += (hits >> i) & 1
            continue
        count = _append(x, k, hits, y, count)
    return count


@inline
def _insert(sample: Any, count: int, value: Any) -> None:
    """Insert a logit into a sample of so many, the greatest first."""
    j = count
    while j > 0 and load_scalar(sample, j - 1) < value:
        store_scalar(sample, j, load_scalar(sample, j - 1))
        j -= 1
    store_scalar(sample, j, value)


@inline
def _with_share(
    sample: Any, count: int, share: float, whole: float, margin: int, scale: Scale, by_mass: bool
) -> Any:
    """The logit of a sample with about this share of its weight above it, moved by a margin to the cut's side."""
    so_far, at = 0.0, 0
    for i in range(count - 1):
        so_far += np.float64(_weight(load_scalar(sample, i), scale, by_mass))
        if so_far >= share * whole:
            break
        at = i + 1
    if margin > 0:
        at = min(at + margin, count - 1) if 2 * at < count else max(at - margin, 0)
    return load_scalar(sample, at)


@inline
def _pivot(x: Any, length: int, share: float, scale: Scale, by_mass: bool, sample: Any) -> Any:
    """One of the logits, with about this share of the weight above it."""
    count = min(length, SAMPLE if length < CROWD else LARGE_SAMPLE)
    whole = 0.0
    for i in range(count):
        value = load_scalar(x, i * length // count)
        whole += np.float64(_weight(value, scale, by_mass))
        _insert(sample, i, value)
    margin = MARGIN if length >= CROWD else 0
    return _with_share(sample, count, share, whole, margin, scale, by_mass)


@inline
def _pivot_between(
    x: Any, length: int, low: Any, high: Any, members: int, share: float, scale: Scale, by_mass: bool, sample: Any
) -> Any:
    """`_pivot` of those logits of a row that lie between two (there are so many); `low` if there is none."""
    stride, count, whole = 2 * max(members // LARGE_SAMPLE, 1), 0, 0.0
    while count == 0 and stride > 1:
        stride //= 2
        for k in range(0, length, stride):
            value = load_scalar(x, k)
            if low < value < high and count < 2 * LARGE_SAMPLE:
                whole += np.float64(_weight(value, scale, by_mass))
                _insert(sample, count, value)
                count += 1
    if count == 0:
        return low
    return _with_share(sample, count, share, whole, min(MARGIN, count // 4), scale, by_mass)


@inline
def _cut(x: Any, length: int, needed: float, whole: float, scale: Scale, by_mass: bool, space: Workspace) -> Cut:
    """The smallest set of greatest logits with the weight `needed`, of `whole`. It overwrites x."""
    least, ties = number(x, -INF), 0
    while length > 0:
        pivot = _pivot(x, length, needed / whole, scale, by_mass, space.terms)
        above, equal, _ = _weigh(x, length, pivot, None, scale, by_mass)
        if needed <= above:
            length, whole = _select(x, length, pivot, True, x, 0), above
            continue
        each = np.float64(_weight(pivot, scale, by_mass))
        if each > 0.0:
            share = min((needed - above) / each, equal)
            least, ties = pivot, max(int(share) + int(share > np.float64(int(share))), 1)
        above += each * equal
        if needed <= above:
            break
        length = _select(x, length, pivot, False, x, 0)
        needed -= above
        whole = max(whole - above, needed)  # roundings must not make what is left smaller than what is needed
    return Cut(least, ties)


@inline
def _gather(x: Any, length: int, low: Any, high: Any, y: Any) -> int:
    """Write the logits between two, at most `LISTED`, to y; returns their number."""
    step = lane_count(x)
    zero, one = number(x, 0.0), broadcast(number(x, 1.0))
    count = 0
    for k in range(0, length, step):
        value = _some(x, k, length, number(x, NAN))
        hits = lanes_above(select_less(low, value, _below(value, high, one), zero), zero)
        if count > LISTED - step:  # another thread has changed the row
            break
        count = _append(x, k, hits, y, count)
    return count


@inline
def _cut_above(
    x: Any,
    length: int,
    low: Any,
    needed: float,
    whole: float,
    members: float,
    scale: Scale,
    by_mass: bool,
    near: Shelf,
    space: Workspace,
) -> Cut:
    """`_cut` of a long row that is not overwritten, among its logits above `low`: their weight and number."""
    high = number(x, INF)
    least, ties = low, 0
    while members > LISTED - lane_count(x):
        share = needed / whole
        pivot = _pivot_between(x, length, low, high, int(members), share, scale, by_mass, space.terms)
        if not low < pivot:  # another thread has changed the row
            break
        above, equal, between = _weigh(x, length, pivot, high, scale, by_mass)
        if needed <= above:
            low, whole, members = pivot, above, between
            continue
        each = np.float64(_weight(pivot, scale, by_mass))
        if each > 0.0:
            part = min((needed - above) / each, equal)
            least, ties = pivot, max(int(part) + int(part > np.float64(int(part))), 1)
        above += each * equal
        if needed <= above:
            return Cut(least, ties)
        high, members = pivot, members - between - equal
        needed -= above
        whole = max(whole - above, needed)
    found = _gather(x, length, low, high, near.loose)
    cut = _cut(near.loose, found, needed, whole, scale, by_mass, space)
    if cut.ties == 0:
        return Cut(least, ties)
    return cut


@inline
def _top(x: Any, length: int, count: int, scale: Scale, near: Shelf, space: Workspace) -> Cut:
    """The cut that keeps the `count` greatest classes.

    If there are more parts than classes wanted, the `count`-th of their maxima is a bound of the cut, and at most
    count - 1 parts have anything above it.
    """
    width = part_length(length)
    parts = (length + width - 1) // width
    bound = number(x, -INF)
    if parts > count:
        _copy(near.maxima, parts, near.loose)
        bound = _cut(near.loose, parts, float(count), float(parts), scale, False, space).least
        found = 0
        for k in range(parts):
            if load_scalar(near.maxima, k) > bound:
                first = k * width
                if found > LISTED - width:
                    found = MANY
                    break
                found = _select(after(x, first), min(width, length - first), bound, True, near.loose, found)
        if found >= count:
            return _cut(near.loose, found, float(count), float(found), scale, False, space)
        if found != MANY:
            return Cut(bound, count - found)
    elif length <= LISTED:
        _copy(x, length, near.loose)
        return _cut(near.loose, length, float(count), float(length), scale, False, space)
    whole, _, members = _weigh(x, length, bound, number(x, INF), scale, False)
    return _cut_above(x, length, bound, float(count), whole, members, scale, False, near, space)


@inline
def _mass_of(x: Any, length: int, share: float, top: Cut, scale: Scale, near: Shelf, space: Workspace) -> Cut:
    """The cut of a long row that keeps a share of the mass of what another cut keeps."""
    whole, _, members = _weigh(x, length, top.least, number(x, INF), scale, True)
    each = np.float64(plain_term(top.least, scale)) if top.ties > 0 else 0.0
    needed = share * (whole + top.ties * each)
    if needed > whole:
        part = min((needed - whole) / each, float(top.ties))
        return Cut(top.least, max(int(part) + int(part > np.float64(int(part))), 1))
    return _cut_above(x, length, top.least, needed, whole, members, scale, True, near, space)


@inline
def _keep(x: Any, length: int, cut: Cut, near: Shelf, listed: bool) -> int:
    """List the classes that a cut keeps; returns their number, or `MANY`. x is a row, or the list (`listed`)."""
    step, width = lane_count(x), part_length(length)
    zero, one = number(x, 0.0), broadcast(number(x, 1.0))
    least, ties = cut
    count = 0
    for first in range(0, length, width):
        if not listed and load_scalar(near.maxima, first // width) < least:
            continue
        if count > LISTED - width:
            return MANY
        stop = min(first + width, length)
        for k in range(first, stop, step):
            value = _some(x, k, stop, number(x, NAN))
            same = select_equal(value, least, one, zero)
            hits = lanes_above(select_less(least, value, one, same), zero)
            if _is_dense(hits) and lanes_above(same, zero) == 0 and k + step <= stop:
                for i in range(k, k + step):
                    store_scalar(near.values, count, load_scalar(x, i))
                    store_scalar(near.classes, count, load_scalar(near.classes, i) if listed else i)
                    count += (hits >> (i - k)) & 1
                continue
            while hits != 0:
                i = k + lowest_bit(hits)
                item = load_scalar(x, i)
                store_scalar(near.values, count, item)
                store_scalar(near.classes, count, load_scalar(near.classes, i) if listed else i)
                tie = int(item == least)
                count += int(tie == 0 or ties > 0)
                ties -= tie
                hits &= hits - 1
    return count


@inline
def _rounded_up(x: Any, value: float) -> Any:
    """The smallest number of the dtype of x that is not below `value`, or one close to it."""
    near = number(x, value)
    if np.float64(near) < value:
        gap = absolute(near) * (number(x, 1.5 * 2.0**-24) if is_single(near) else number(x, 1.5 * 2.0**-53))
        tiny = number(x, 1.1754943508222875e-38) if is_single(near) else number(x, 2.2250738585072014e-308)
        return near + maximum(gap, tiny)
    return near


@inline
def _last_tie(x: Any, length: int, cut: Cut) -> int:
    """The last class that equals the least logit of a cut and is kept; -1 if there is none."""
    zero, one = number(x, 0.0), broadcast(number(x, 1.0))
    left, last = cut.ties, -1
    for k in range(0, length, lane_count(x)):
        value = _some(x, k, length, number(x, NAN))
        hits = lanes_above(select_equal(value, cut.least, one, zero), zero)
        while hits != 0 and left > 0:
            last = k + lowest_bit(hits)
            left -= 1
            hits &= hits - 1
    return last


@inline
def sieve(x: Any, length: int, beta: Any, top_k: int, filters: Any, near: Shelf, space: Workspace) -> Any:
    """List the classes of a row that the filters keep.

    Returns their number, `NOTHING` if the row has no softmax, or `MANY`; and in the last case what is kept.
    `top_k` is 0 for none; `filters` are top_p (1 for none) and T log(min_p) (-inf for none).
    """
    m = _maxima(x, length, near.maxima)
    low = number(x, -INF)
    if not -INF < m < INF:
        return NOTHING, Kept(low, -1)
    shift, bias = reference(m, beta)
    scale = Scale(beta, shift, bias, None)
    cut, row, count, listed = Cut(low, 0), x, length, False
    if 0 < top_k < length:
        cut = _top(x, length, top_k, scale, near, space)
        count = _keep(x, length, cut, near, False)
        listed = count != MANY
        if listed:
            cut, row = Cut(low, 0), near.values
        else:
            count = length
    top_p = load_scalar(filters, 0)
    if top_p < 1.0:
        if count <= LISTED:
            whole, _, _ = _weigh(row, count, low, None, scale, True)
            _copy(row, count, near.loose)
            cut = _cut(near.loose, count, top_p * whole, whole, scale, True, space)
        else:
            cut = _mass_of(x, length, top_p, cut, scale, near, space)
    floor = _rounded_up(x, np.float64(m) + load_scalar(filters, 1))
    if floor > cut.least:
        cut = Cut(floor, count)
    count = _keep(row, count, cut, near, listed)
    if count == MANY:
        return count, Kept(cut.least, _last_tie(x, length, cut))
    return count, Kept(low, -1)


@kernel
def filter_logits(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    y: Block,
    top_k: Count,
    filters: Doubles,
    beta: Temperature,
) -> None:
    """y = x where the filters keep a class, else -inf; NaN in a row with NaN or +inf."""
    data, result, given = memory(x), memory(y), memory(filters)
    classes = x.shape[1]
    near, space = shelf(memory(room), classes, False), workspace(data, given)
    step = lane_count(data)
    for row in range(start, stop):
        source, target = after(data, row * classes), after(result, row * classes)
        count, kept = sieve(source, classes, beta, top_k, given, near, space)
        rest = number(data, -INF)
        if count == MANY:
            for k in range(0, classes, step):
                store_part(target, k, min(step, classes - k), _sifted(source, k, min(step, classes - k), kept))
            continue
        if count == NOTHING:
            m = highest(source, 0, classes, True)
            for k in range(classes):
                value = load_scalar(source, k)
                rest = rest if value == m and m < INF else number(data, INF) - number(data, INF)
        for k in range(0, classes, step):
            store_part(target, k, min(step, classes - k), broadcast(rest))
        for k in range(count):
            store_scalar(target, load_scalar(near.classes, k), load_scalar(near.values, k))


# --- several draws from a row ---------------------------------------------------------------------------------


class Request(NamedTuple):
    """What is drawn from each row."""

    beta: Any
    """1/T or None."""
    replace: Any
    """Whether a class may be drawn again."""
    top_k: Any
    filters: Any
    """As for `sieve`."""
    uniforms: Any
    chosen: Any
    """The uniform numbers and the classes: those of one draw lie side by side, one for each of `rows`."""
    rows: Any
    first: Any
    stop: Any
    """Which of the draws, when those of a row are done in several pieces."""


@inline
def _lift_lost(x: Any, total: float) -> bool:
    """Whether the terms that are left are so small that others, which may count by now, were set to 0."""
    if is_single(number(x, 0.0)):
        return total < 2.0**-60
    return total < 2.0**-950


@inline
def _remove(x: Any, length: int, k: int, scale: Scale, space: Workspace) -> float:
    """Remove class k from a row and from its sums; returns the sum of all."""
    store_scalar(x, k, number(x, -INF))
    if length <= COLUMN_LIMIT:
        return survey(x, length, scale, space)
    width = part_length(length)
    part = k // width
    first = part * width
    keep = _keeps(space, length)
    store_scalar(space.parts, part, _part(x, first, min(width, length - first), scale, space, keep))
    total = load_scalar(space.ends, part - 1) if part > 0 else 0.0
    for i in range(part, (length + width - 1) // width):
        total += load_scalar(space.parts, i)
        store_scalar(space.ends, i, total)
    return total


@inline
def _is_filtered(top_k: int, filters: Any) -> bool:
    """Whether filters may leave a class out."""
    return top_k > 0 or load_scalar(filters, 0) < 1.0 or load_scalar(filters, 1) > -INF


@inline
def _draw_again(
    x: Any, length: int, row: int, scale: Scale, request: Request, classes: Any, listed: bool, space: Workspace
) -> int:
    """Draw the classes of a row with replacement; returns where it ended. They are in `classes` if `listed`."""
    total = survey(x, length, scale, space)
    if not is_drawable(total):
        return int(request.first)
    if space.tabled and length > COLUMN_LIMIT:
        tabulate(length, space)
    for draw in range(request.first, request.stop):
        place = draw * request.rows + row
        found = pick(x, length, scale, space, total, load_scalar(request.uniforms, place))
        store_scalar(request.chosen, place, load_scalar(classes, found) if listed else found)
    return int(request.stop)


@inline
def _draw_different(
    x: Any, length: int, row: int, request: Request, classes: Any, listed: bool, space: Workspace
) -> int:
    """As `_draw_again`, without replacement. It overwrites x."""
    drawn: int = request.first
    scale = scale_of(x, length, request.beta)
    total = survey(x, length, scale, space)
    while drawn < request.stop and is_drawable(total):
        place = drawn * request.rows + row
        found = pick(x, length, scale, space, total, load_scalar(request.uniforms, place))
        store_scalar(request.chosen, place, load_scalar(classes, found) if listed else found)
        drawn += 1
        if drawn < request.stop:
            total = _remove(x, length, found, scale, space)
            if _lift_lost(x, total):
                scale = scale_of(x, length, request.beta)
                total = survey(x, length, scale, space)
    return drawn


@inline
def _draw(
    x: Any, length: int, row: int, request: Request, near: Shelf, space: Workspace, tabled: Workspace
) -> bool:
    """Draw the classes of one row; false if there are not so many. `tabled` may have a table."""
    data, count, drawn = x, length, request.first
    listed = _is_filtered(request.top_k, request.filters)
    if listed:
        count, kept = sieve(x, length, request.beta, request.top_k, request.filters, near, space)
        data = near.values
        if count == MANY:
            listed = False
            if request.replace:
                plain = scale_of(x, length, request.beta)
                scale = Scale(request.beta, plain.shift, plain.bias, kept)
                drawn = _draw_again(x, length, row, scale, request, near.classes, listed, space)
            else:
                count = length
                for k in range(0, length, lane_count(x)):
                    store(data, k, _sifted(x, k, min(lane_count(x), length - k), kept))
    elif not request.replace:
        _copy(x, length, near.values)
        data = near.values
    if count > 0 and request.replace:
        scale_of_data = scale_of(data, count, request.beta)
        drawn = _draw_again(data, count, row, scale_of_data, request, near.classes, listed, tabled)
    elif count > 0:
        drawn = _draw_different(data, count, row, request, near.classes, listed, space)
    for k in range(drawn, request.stop):
        store_scalar(request.chosen, k * request.rows + row, NOTHING)
    complete: bool = drawn == request.stop
    return complete


@kernel
def draws(
    start: Count,
    stop: Count,
    room: Room,
    indptr: Integers,
    bounds: Integers,
    x: Floats,
    classes: Count,
    rows: Count,
    uniforms: Doubles,
    chosen: Integers,
    count: Count,
    pieces: Count,
    replace: Flag,
    tabled: Flag,
    top_k: Count,
    filters: Doubles,
    beta: Temperature,
) -> float:
    """chosen[d * rows + n] = the class of draw d from row n; returns how many rows have fewer classes.

    If `indptr` has a size, rows are segments of at most `classes` classes, and start .. stop blocks of them, as in
    `segments`. Else all rows have `classes` classes, and start .. stop count pieces of their draws.
    `room` has memory for `shelf` if there are filters, or for a row if `replace` is False; and for a table
    (`with_table`) if `tabled`, in place of the last parts of the shelf. See `arrays.sampling.room_for`.
    """
    data, numbers, table, cuts = memory(x), memory(uniforms), memory(indptr), memory(bounds)
    ragged = size(table) > 0
    spare = memory(room)
    levels, result = memory(filters), memory(chosen)
    near, filtered = shelf(spare, classes, not replace), _is_filtered(top_k, levels)
    space = workspace(data, numbers)
    with_sums = space
    if tabled:
        with_sums = with_table(
            space, near.loose if filtered else spare, min(classes, LISTED) if filtered else classes
        )
    first = max(load_scalar(cuts, start), 0) if ragged else start
    last = min(load_scalar(cuts, stop), rows) if ragged else stop
    failures = 0
    for piece in range(first, last):
        row, part = piece // pieces, piece % pieces
        begin, end = part * count // pieces, (part + 1) * count // pieces
        request = Request(beta, replace, top_k, levels, numbers, result, rows, begin, end)
        at, length = row * classes, classes
        if ragged:  # another thread may have changed `indptr` since it was checked
            at = min(max(load_scalar(table, row), 0), size(data))
            length = min(max(load_scalar(table, row + 1) - at, 0), min(classes, size(data) - at))
        if not _draw(after(data, at), length, row, request, near, space, with_sums):
            failures += 1
    return float(failures)


@kernel
def room_size(classes: Count, filtered: Flag, replace: Flag, tabled: Flag, itemsize: Count) -> float:
    """The size of the working memory of `arrays.sampling.room_for`, for compiled callers."""
    few = min(classes, LISTED)
    whole, listed = (classes + LINE - 1) // LINE * LINE, (few + LINE - 1) // LINE * LINE
    table = STRETCH_TABLE * (((few if filtered else classes) + STRETCH - 1) // STRETCH) if tabled else 0
    size = table if replace else whole
    if filtered:
        rest = max(table, listed + min((classes + STRETCH - 1) // STRETCH, PARTS))
        size = (listed if replace else whole) + listed * (8 // itemsize) + rest
    return float(size)
