r"""The functions of ragged rows: segment n is ``x[indptr[n] : indptr[n + 1]]``, like a row of a CSR matrix.

There are three ways, chosen by the length of the segment alone, so that its bits do not depend on other segments:

lanes
    Up to `COLUMN_LIMIT` elements: a tile holds 16 (or 8) segments, one in each lane, padded with -inf, which adds
    an exact 0 to every sum. To save padding, segments are collected in buckets of about equal length until a tile
    is full, unless neighbours already have about equal lengths. Their order does not matter.
row
    Longer segments: the vectors run along the segment, as along a row of a block.
pieces
    More than `HUGE` elements: the segment is cut into pieces of `PIECE` elements, which threads take one by one.
    Their greatest entries, then their sums, are merged in the order of the pieces. See `piece_maxima`.

The first two use the building blocks of the other functions: a segment of at most `HUGE` elements gets the same
bits as a row of an array. `indptr` and labels were checked, but another thread may have changed them since. So
all values read from them are clipped, and no access leaves its array.

Segments are run in blocks of work, ``bounds[b] .. bounds[b + 1]``, with about equal numbers of elements.

Long rows of arrays are cut by `kernels.pieces` and `arrays.long_rows`. Neither these nor the kernels here can
replace the other. There a piece is read without the others, as the chunks of a Dask array or of a file must be.
Its sums have the unit of its own greatest entry, and `arrays.long_rows.merge` converts them to one unit, in NumPy
and in any order. Here all pieces of a segment are available. Its greatest entry is found first, so that all sums
have one unit and are simply added. This happens in compiled code, because users' compiled functions call these
kernels and cannot call `merge`. The order of the additions differs, and with it the last bits.
"""

from typing import Any, NamedTuple

from fastsoftmax._vectors import COLUMN_LIMIT, COLUMNS, HUGE, PAIR_LIMIT, PIECE
from fastsoftmax.kernels.activations import ActivationOptions, log_softmax_block, logsumexp_block, softmax_block
from fastsoftmax.kernels.derivatives import (
    ProductOptions,
    excess_sum,
    extent,
    power_for,
    product_of_logits,
    row_centre,
    softmax_product_block,
)
from fastsoftmax.kernels.divergences import PAIR_TABLE, DivergenceOptions, divergence_block, divergence_group
from fastsoftmax.kernels.elementary import quotient, reference, two_sum
from fastsoftmax.kernels.entropy import EntropyOptions, entropy_block, parted
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.losses import (
    CrossEntropyOptions,
    Shares,
    SoftOptions,
    cross_entropy_block,
    loss_at,
    scaled_probs,
    scaled_reciprocal,
    slope_at,
    soft_cross_entropy_rows,
)
from fastsoftmax.kernels.simd.memory import (
    after,
    integers,
    lane_count,
    load,
    load_scalar,
    memory,
    scratch,
    size,
    store,
    store_scalar,
)
from fastsoftmax.kernels.simd.reduce import fold_sum, fold_two_sum
from fastsoftmax.kernels.simd.rows import gather_rows, lane_labels, neighbours, row_value, scatter_rows
from fastsoftmax.kernels.simd.values import filled, maximum, number, unless_none
from fastsoftmax.kernels.traversal import (
    TABLE,
    Picks,
    Place,
    RowStatistics,
    add,
    behind,
    clear,
    either,
    highest,
    label_of,
    lane_sums,
    measure,
    measured,
    row_at,
    target_of,
    terms_at,
    tile_statistics,
    top_term,
    two_to_the,
)
from fastsoftmax.machine.entry import Count, Flag, Flags, Floats, Integers, MaybeFloats, Nothing, Number, Room

INF = float("inf")
BUCKETS = 12
TOGETHER = BUCKETS * 16
"""The place of neighbours of about equal length, behind the buckets."""
WAITING = TOGETHER + 16


@inline
def _bucket(length: int) -> int:
    """The bucket of a short segment: lengths 0 | 1, 2 | 3, 4 | 5, 6 | 7, 8 | 9 .. 16 | 17 .. 24 | ... | .. 64."""
    return (length + 1) // 2 if length <= 8 else 4 + (length - 1) // 8


@inline
def _inside(value: int, least: int, most: int) -> int:
    return min(max(value, least), most)


@inline
def _longest(lengths: Any, at: int, count: int) -> int:
    longest = 0
    for lane in range(count):
        longest = max(longest, load_scalar(lengths, at + lane))
    return longest


@inline
def _measure_alone(source: Any, length: int, table: Any, terms: Any, exact: Any, given: Any) -> None:
    """The statistics of one segment, unless `given` is not None."""
    if given is None:
        measure(source, 0, length, 1, None, table, terms, exact)


@inline
def walk(
    block: Any,
    options: Any,
    start: int,
    stop: int,
    x: Any,
    v: Any,
    y: Any,
    rows: Any,
    indptr: Any,
    bounds: Any,
    labels: Any = None,
    weights: Any = None,
    rest: Any = None,
    keep: Any = None,
    over: bool = False,
    room: Any = None,
    given: Any = None,
    fill: Any = None,
) -> None:
    """Run `block` over the segments of blocks of work start .. stop, except huge ones.

    `block` is a building block as `traversal` describes it; its options are ``options(labels, targets, weights,
    rest, length)``, where `targets` holds the entries at the labels. `rows` is an output with one number for each
    segment; `labels` and `weights` are inputs with one number for each. `keep` and `over` are those of `traverse`.
    If y lies over v, `room` has memory for the terms of the longest segment that is not huge. y may have size 0;
    then nothing is written there. `given` is that of `traverse`. The lanes of v behind the end of a segment are
    `fill`, or 0 if it is None.
    """
    step = lane_count(x)
    tile = scratch(x, COLUMN_LIMIT)
    other = unless_none(v, scratch(x, COLUMN_LIMIT))
    out = unless_none(y, tile)
    table = scratch(x, TABLE)
    clear(table)
    lane_rows = scratch(x, 1)
    lane_weights = scratch(x, 1)
    chosen = integers(16)
    targets = scratch(x, 1)
    starts, lengths, owners, waiting = integers(WAITING), integers(WAITING), integers(WAITING), integers(BUCKETS)
    for b in range(BUCKETS):
        store_scalar(waiting, b, 0)
    entries, segments = size(x), size(indptr) - 1
    n = _inside(load_scalar(bounds, start), 0, segments)
    last = _inside(load_scalar(bounds, stop), n, segments)
    alone, leftover = 0, 0
    while n < last or leftover < BUCKETS:
        if n < last and alone == 0:
            # A vector of neighbours of about equal length needs no bucket.
            alone = last - n
            if alone < step:
                continue
            shortest, longest = neighbours(x, indptr, n, entries, starts, lengths, TOGETHER)
            alone = step
            if longest > COLUMN_LIMIT or _bucket(longest) != _bucket(shortest):
                continue
            alone = 0
            at, count, owner = TOGETHER, step, n
            n += step
        elif n < last:
            begin = _inside(load_scalar(indptr, n), 0, entries)
            length = _inside(load_scalar(indptr, n + 1), begin, entries) - begin
            if length > COLUMN_LIMIT or (length == 0 and rows is None):
                if COLUMN_LIMIT < length <= HUGE:
                    spare = either(room, x)
                    if over:  # another thread may have changed `indptr` since the memory was made
                        length = min(length, size(spare))
                    terms, source = terms_at(keep, over, spare, y, begin), after(x, begin)
                    if labels is not None:
                        store_scalar(targets, 0, target_of(x, begin, length, labels, n))
                    _measure_alone(source, length, table, terms, v, given)
                    stats = measured(table, 0)
                    settings = options(labels, targets, weights, rest, number(x, float(length)))
                    place = row_at(0, length, n)
                    block(either(terms, source), behind(v, begin), behind(y, begin), place, stats, rows, settings)
                n += 1
                alone -= 1
                continue
            b = _bucket(length)
            at, count = b * step, load_scalar(waiting, b)
            if count < step:
                store_scalar(starts, at + count, begin)
                store_scalar(lengths, at + count, length)
                store_scalar(owners, at + count, n)
                store_scalar(waiting, b, count + 1)
                n += 1
                alone -= 1
                continue
            # The bucket is full. Its numbers have left the store buffer by now, which could not serve a vector
            # load of numbers that were stored one by one.
            store_scalar(waiting, b, 0)
            longest, owner = _longest(lengths, at, count), 0
        else:  # all segments are read: empty the buckets one by one
            count = load_scalar(waiting, leftover)
            at = leftover * step
            leftover += 1
            if count == 0:
                continue
            for lane in range(count, step):
                store_scalar(starts, at + lane, 0)
                store_scalar(lengths, at + lane, 0)
            longest, owner = _longest(lengths, at, count), 0
        for k in range(longest):
            store(tile, k * step, gather_rows(x, starts, lengths, at, k, number(x, -INF)))
        if v is not None:
            for k in range(longest):
                store(other, k * step, gather_rows(v, starts, lengths, at, k, either(fill, number(x, 0.0))))
        if labels is not None:
            for lane in range(count):
                named = owner + lane if at == TOGETHER else load_scalar(owners, at + lane)
                label = label_of(labels, named, load_scalar(lengths, at + lane))
                store_scalar(chosen, lane, label)
                store_scalar(targets, lane, load_scalar(tile, label * step + lane))
        factors = unless_none(weights, lane_weights)
        if weights is not None:
            if size(weights) == 0:
                factors = weights
            elif at == TOGETHER:
                store(lane_weights, 0, load(weights, owner))
            else:
                for lane in range(count):
                    store_scalar(lane_weights, lane, load_scalar(weights, load_scalar(owners, at + lane)))
        block(
            tile,
            other,
            out,
            Place(0, longest * step, None, 0, count),
            tile_statistics(tile, 0, longest * step, None, given, keep, v),
            unless_none(rows, lane_rows),
            options(unless_none(labels, chosen), targets, factors, rest, lane_labels(x, lengths, at, step)),
        )
        if y is not None and size(y) > 0:
            for k in range(longest):
                scatter_rows(y, starts, lengths, at, k, load(out, k * step))
        if rows is not None:
            if at == TOGETHER:
                store(rows, owner, load(lane_rows, 0))
            else:
                for lane in range(count):
                    store_scalar(rows, load_scalar(owners, at + lane), load_scalar(lane_rows, lane))


@inline
def _none(labels: Any, targets: Any, weights: Any, rest: Any, length: Any) -> Any:
    """The options of `log_softmax_block`."""
    return ActivationOptions(None, None)


@inline
def _terms(labels: Any, targets: Any, weights: Any, rest: Any, length: Any) -> Any:
    """The options of `softmax_block`, with kept terms."""
    return ActivationOptions(None, True)


@inline
def _plain(labels: Any, targets: Any, weights: Any, rest: Any, length: Any) -> Any:
    """The options of `softmax_product_block`, with kept terms."""
    return ProductOptions(None, None, True, None)


@inline
def _weighed(labels: Any, targets: Any, weights: Any, rest: Any, length: Any) -> Any:
    """The options of `cross_entropy_block`; `rest` is the factor of the gradient as a pair."""
    return CrossEntropyOptions(Picks(labels, targets), weights, rest[0], rest[1], None, None)


class Wanted(NamedTuple):
    """The options of a building block, and whether its gradient is wanted."""

    options: Any
    slope: Any


class Smoothing(NamedTuple):
    """The label smoothing as a pair and its complement, the factor of the gradients as a pair."""

    smoothing: Any
    smoothing_low: Any
    gain: Any
    scale: Any
    scale_low: Any
    slope: Any


@inline
def _smoothed(labels: Any, targets: Any, weights: Any, rest: Any, length: Any) -> Any:
    """The options of `losses.soft_cross_entropy_rows`; `rest` is a `Smoothing`."""
    zero = filled(length, 0.0)
    high, low = quotient(filled(length, rest.smoothing), filled(length, rest.smoothing_low), length, zero)
    shares = Shares(labels, None, high + low, rest.gain, length)
    return Wanted(SoftOptions(shares, weights, rest.scale, rest.scale_low, None), rest.slope)


@inline
def _diverging(labels: Any, targets: Any, weights: Any, rest: Any, length: Any) -> Any:
    """The options of `divergences.divergence_block`; `rest`: the factor of the gradient, `reverse`, the slope."""
    return Wanted(DivergenceOptions(None, weights, rest[0], rest[1], rest[2], None), rest[3])


@inline
def _entropic(labels: Any, targets: Any, weights: Any, rest: Any, length: Any) -> Any:
    """The options of `entropy.entropy_block`; `rest` are those of the temperature 1, and the slope."""
    return Wanted(EntropyOptions(None, rest[0], rest[1]), rest[2])


@inline
def _slope(y: Any, wanted: Any) -> Any:
    """y, or memory of size 0 if no gradient is wanted."""
    return after(y, 0 if wanted else size(y))


@inline
def smoothed_segment(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """`losses.soft_cross_entropy_rows` of segments."""
    soft_cross_entropy_rows(x, None, _slope(y, options.slope), place, stats, rows, options.options)


@inline
def entropy_segment(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """`entropy.entropy_block` of segments."""
    entropy_block(x, None, _slope(y, options.slope), place, stats, rows, options.options)


@inline
def divergence_segment(u: Any, w: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """The divergence of segments, with the bits of rows."""
    _divergence_of(place.folded, u, w, _slope(y, options.slope), place, rows, options.options)


@inline
def _divergence_of(folded: Any, u: Any, w: Any, y: Any, place: Any, rows: Any, options: Any) -> None:
    if folded is not None:  # the type decides
        _divergence_of_row(u, w, y, place, rows, options)
    else:
        divergence_block(u, w, y, place, rows, options)


@inline
def _divergence_of_row(u: Any, w: Any, y: Any, place: Any, rows: Any, options: Any) -> None:
    if place.length <= PAIR_LIMIT:
        divergence_group(u, w, y, 0, place.length, place.row, 1, rows, scratch(u, PAIR_TABLE), options)
    else:
        divergence_block(u, w, y, place, rows, options)


@kernel
def segment_softmax(
    start: Count, stop: Count, room: Nothing, indptr: Integers, bounds: Integers, x: Floats, y: Floats
) -> None:
    """y = softmax of every segment."""
    data, table, cuts = memory(x), memory(indptr), memory(bounds)
    result = memory(y)
    walk(softmax_block, _terms, start, stop, data, None, result, None, table, cuts, keep=True)


@kernel
def segment_log_softmax(
    start: Count, stop: Count, room: Nothing, indptr: Integers, bounds: Integers, x: Floats, y: Floats
) -> None:
    """y = log-softmax of every segment."""
    data, table, cuts = memory(x), memory(indptr), memory(bounds)
    walk(log_softmax_block, _none, start, stop, data, None, memory(y), None, table, cuts)


@kernel
def segment_logsumexp(
    start: Count, stop: Count, room: Nothing, indptr: Integers, bounds: Integers, x: Floats, rows: Floats
) -> None:
    """rows = log-sum-exp of every segment, -inf for an empty one."""
    data, table, cuts = memory(x), memory(indptr), memory(bounds)
    walk(logsumexp_block, _none, start, stop, data, None, None, memory(rows), table, cuts)


@kernel
def segment_softmax_product(
    start: Count,
    stop: Count,
    room: Room,
    indptr: Integers,
    bounds: Integers,
    x: Floats,
    v: Floats,
    y: Floats,
    over: Flag,
) -> None:
    """y = p (v - p.v) of every segment: J v, and J^T v. `over` and `room` are those of `walk`."""
    data, table, cuts = memory(x), memory(indptr), memory(bounds)
    vector, result, near = memory(v), memory(y), memory(room)
    block = softmax_product_block
    walk(block, _plain, start, stop, data, vector, result, None, table, cuts, keep=True, over=over, room=near)


@kernel
def segment_cross_entropy(
    start: Count,
    stop: Count,
    room: Nothing,
    indptr: Integers,
    bounds: Integers,
    x: Floats,
    labels: Integers,
    weights: Floats,
    y: MaybeFloats,
    rows: Floats,
    scale: Number,
    scale_low: Number,
) -> None:
    """rows = -weights log p[label]; y, unless None, = scale weights (p - onehot(label))."""
    data, table, cuts = memory(x), memory(indptr), memory(bounds)
    targets, factors, grad, results = memory(labels), memory(weights), memory(y), memory(rows)
    rest = (scale, scale_low)
    walk(
        cross_entropy_block,
        _weighed,
        start,
        stop,
        data,
        None,
        grad,
        results,
        table,
        cuts,
        labels=targets,
        weights=factors,
        rest=rest,
        keep=grad,
    )


@kernel
def segment_soft_cross_entropy(
    start: Count,
    stop: Count,
    room: Nothing,
    indptr: Integers,
    bounds: Integers,
    x: Floats,
    labels: Integers,
    smoothing: Number,
    smoothing_low: Number,
    gain: Number,
    weights: Floats,
    y: Floats,
    rows: Floats,
    scale: Number,
    scale_low: Number,
) -> None:
    """`segment_cross_entropy` with label smoothing; y has size 0 if no gradient is wanted.

    The share of a class in the target is smoothing/length, and that of the label `gain` more.
    """
    data, table, cuts = memory(x), memory(indptr), memory(bounds)
    targets, factors, grad, results = memory(labels), memory(weights), memory(y), memory(rows)
    rest = Smoothing(smoothing, smoothing_low, gain, scale, scale_low, size(grad) > 0)
    walk(
        smoothed_segment,
        _smoothed,
        start,
        stop,
        data,
        None,
        grad,
        results,
        table,
        cuts,
        labels=targets,
        weights=factors,
        rest=rest,
    )


@kernel
def segment_kl_divergence(
    start: Count,
    stop: Count,
    room: Nothing,
    indptr: Integers,
    bounds: Integers,
    x: Floats,
    targets: Floats,
    weights: Floats,
    y: Floats,
    rows: Floats,
    reverse: Flag,
    scale: Number,
    scale_low: Number,
) -> None:
    """rows = weights KL(q || p) of every segment, as `divergences.kl_divergence`; y likewise."""
    u, w, table, cuts = memory(targets), memory(x), memory(indptr), memory(bounds)
    if reverse:
        u, w = w, u
    factors, grad, results = memory(weights), memory(y), memory(rows)
    rest = (scale, scale_low, reverse, size(grad) > 0)
    walk(
        divergence_segment,
        _diverging,
        start,
        stop,
        u,
        w,
        grad,
        results,
        table,
        cuts,
        weights=factors,
        rest=rest,
        given=True,
        fill=number(u, -INF),
    )


@kernel
def segment_softmax_entropy(
    start: Count,
    stop: Count,
    room: Nothing,
    indptr: Integers,
    bounds: Integers,
    x: Floats,
    y: Floats,
    rows: Floats,
) -> None:
    """rows = entropy of every segment; y = its gradient, unless it has size 0."""
    data, table, cuts = memory(x), memory(indptr), memory(bounds)
    grad, results = memory(y), memory(rows)
    power, inner = parted(data, None)
    rest = (power, inner, size(grad) > 0)
    walk(entropy_segment, _entropic, start, stop, data, None, grad, results, table, cuts, rest=rest)


@kernel
def misplaced(
    start: Count, stop: Count, room: Nothing, indptr: Integers, bounds: Integers, labels: Integers, found: Flags
) -> None:
    """found[b] = whether a label of block b lies outside of its segment."""
    table, cuts, targets = memory(indptr), memory(bounds), memory(labels)
    for b in range(start, stop):
        wrong = 0
        for n in range(load_scalar(cuts, b), load_scalar(cuts, b + 1)):
            label, length = load_scalar(targets, n), load_scalar(table, n + 1) - load_scalar(table, n)
            wrong |= (label < 0) | (label >= length)
        found[b] = wrong != 0


# --- pieces of huge segments ----------------------------------------------------------------------------------
#
# The table of pieces has a row for each piece: its begin and end in x, the first piece of its segment and the one
# behind the last, and the number of the segment. `start` and `stop` of these kernels count pieces. The passes over
# x are `piece_maxima`, `piece_sums`, for a product also `piece_extents` and `piece_dots`, and the one that writes.
# Each needs the results of the passes before for all pieces of a segment.


@kernel
def first_wrong(indptr: Integers, entries: Count) -> float:
    """The place of the first error in the row pointers of x with so many entries; -1 if there is none."""
    table = memory(indptr)
    last = size(table) - 1
    if last < 0 or load_scalar(table, 0) != 0:
        return 0.0
    for n in range(last):
        if load_scalar(table, n + 1) < load_scalar(table, n):
            return float(n + 1)
    return float(last) if load_scalar(table, last) != entries else -1.0


@kernel
def list_pieces(indptr: Integers, pieces: Integers) -> float:
    """Write the table of the pieces of huge segments, unless it has size 0; returns how many pieces there are."""
    table, rows = memory(indptr), memory(pieces)
    count = 0
    for n in range(size(table) - 1):
        begin, end = load_scalar(table, n), load_scalar(table, n + 1)
        if end - begin > HUGE:
            first, last = count, count + (end - begin + PIECE - 1) // PIECE
            for at in range(begin, end, PIECE):
                if size(rows) > 0:
                    place = count * COLUMNS
                    store_scalar(rows, place, at)
                    store_scalar(rows, place + 1, min(at + PIECE, end))
                    store_scalar(rows, place + 2, first)
                    store_scalar(rows, place + 3, last)
                    store_scalar(rows, place + 4, n)
                count += 1
    return float(count)


@inline
def _piece(pieces: Any, i: int) -> Any:
    """Begin and length of piece i, first piece of its segment and the one behind the last, and the segment."""
    at = i * COLUMNS
    begin = load_scalar(pieces, at)
    return (
        begin,
        load_scalar(pieces, at + 1) - begin,
        load_scalar(pieces, at + 2),
        load_scalar(pieces, at + 3),
        load_scalar(pieces, at + 4),
    )


@inline
def _greatest(maxima: Any, first: int, end: int) -> Any:
    m = number(maxima, -INF)
    for i in range(first, end):
        m = maximum(load_scalar(maxima, i), m)
    return m


@inline
def _put_together(maxima: Any, sums: Any, first: int, end: int) -> RowStatistics:
    """`traversal.statistics` of the whole segment, from the `maxima` and `sums` of its pieces."""
    m = _greatest(maxima, first, end)
    shift, bias = reference(m, None)
    zero = number(maxima, 0.0)
    ties = zero
    total = (zero, zero)
    low = zero
    for i in range(first, end):
        ties = ties + load_scalar(sums, 3 * i)
        total = add(total, load_scalar(sums, 3 * i + 1))
        low = low + load_scalar(sums, 3 * i + 2)
    rest, rest_low = two_sum(total[0], total[1] + low)
    return RowStatistics(m, shift, bias, top_term(m, shift, bias, None), ties, rest, rest_low, None, None)


@kernel
def piece_maxima(start: Count, stop: Count, room: Nothing, pieces: Integers, x: Floats, maxima: Floats) -> None:
    """maxima = the greatest entry of every piece; NaN is ignored."""
    data, table, out = memory(x), memory(pieces), memory(maxima)
    for i in range(start, stop):
        begin, length, _, _, _ = _piece(table, i)
        store_scalar(out, i, highest(data, begin, length, True))


@kernel
def piece_sums(
    start: Count, stop: Count, room: Nothing, pieces: Integers, maxima: Floats, x: Floats, sums: Floats
) -> None:
    """sums = the parts of `ties`, `rest` and `rest_low` of its segment that come from each piece."""
    data, table, tops, out = memory(x), memory(pieces), memory(maxima), memory(sums)
    for i in range(start, stop):
        begin, length, first, end, _ = _piece(table, i)
        m = _greatest(tops, first, end)
        shift, bias = reference(m, None)
        state = lane_sums(data, begin, length, m, None, shift, bias, None, 0, True)
        high, low = fold_two_sum(True, state[1], state[2])
        store_scalar(out, 3 * i, fold_sum(True, state[0]))
        store_scalar(out, 3 * i + 1, high)
        store_scalar(out, 3 * i + 2, low)


@kernel
def piece_softmax(
    start: Count, stop: Count, room: Nothing, pieces: Integers, maxima: Floats, sums: Floats, x: Floats, y: Floats
) -> None:
    """y = softmax; errors as in `activations.softmax_block`, because the sums of the pieces are added as pairs."""
    data, table, tops, parts, out = memory(x), memory(pieces), memory(maxima), memory(sums), memory(y)
    for i in range(start, stop):
        begin, length, first, end, _ = _piece(table, i)
        stats = _put_together(tops, parts, first, end)
        softmax_block(data, None, out, row_at(begin, length, 0), stats, None, ActivationOptions(None, None))


@kernel
def piece_log_softmax(
    start: Count, stop: Count, room: Nothing, pieces: Integers, maxima: Floats, sums: Floats, x: Floats, y: Floats
) -> None:
    """y = log-softmax."""
    data, table, tops, parts, out = memory(x), memory(pieces), memory(maxima), memory(sums), memory(y)
    for i in range(start, stop):
        begin, length, first, end, _ = _piece(table, i)
        stats = _put_together(tops, parts, first, end)
        log_softmax_block(data, None, out, row_at(begin, length, 0), stats, None, ActivationOptions(None, None))


@kernel
def piece_logsumexp(
    start: Count, stop: Count, room: Nothing, pieces: Integers, maxima: Floats, sums: Floats, rows: Floats
) -> None:
    """rows = log-sum-exp of every huge segment, written with its first piece."""
    table, tops, parts, out = memory(pieces), memory(maxima), memory(sums), memory(rows)
    for i in range(start, stop):
        begin, length, first, end, segment = _piece(table, i)
        if i == first:
            stats = _put_together(tops, parts, first, end)
            logsumexp_block(tops, None, None, row_at(begin, length, segment), stats, out, None)


@kernel
def piece_extents(
    start: Count,
    stop: Count,
    room: Nothing,
    pieces: Integers,
    maxima: Floats,
    x: Floats,
    v: Floats,
    extents: Floats,
) -> None:
    """extents = max |v| of every piece, and v at a greatest entry of its segment (-inf if the piece has none)."""
    data, vector, table = memory(x), memory(v), memory(pieces)
    tops, out = memory(maxima), memory(extents)
    for i in range(start, stop):
        begin, length, first, end, _ = _piece(table, i)
        bound, pivot = extent(data, vector, row_at(begin, length, 0), _greatest(tops, first, end), None)
        store_scalar(out, 2 * i, bound)
        store_scalar(out, 2 * i + 1, pivot)


@inline
def _extent(extents: Any, first: int, end: int) -> Any:
    """v at a greatest entry of the whole segment, and the power of the units of its sums."""
    bound, pivot = number(extents, 0.0), number(extents, -INF)
    for i in range(first, end):
        bound = maximum(load_scalar(extents, 2 * i), bound)
        pivot = maximum(load_scalar(extents, 2 * i + 1), pivot)
    return pivot, power_for(bound)


@kernel
def piece_dots(
    start: Count,
    stop: Count,
    room: Nothing,
    pieces: Integers,
    maxima: Floats,
    sums: Floats,
    extents: Floats,
    x: Floats,
    v: Floats,
    dots: Floats,
) -> None:
    """dots = the part of each piece in `derivatives.excess_sum` of its segment, as pairs."""
    data, vector, table = memory(x), memory(v), memory(pieces)
    tops, parts, ranges, out = memory(maxima), memory(sums), memory(extents), memory(dots)
    for i in range(start, stop):
        begin, length, first, end, _ = _piece(table, i)
        stats = _put_together(tops, parts, first, end)
        _, power = _extent(ranges, first, end)
        place, unit = row_at(begin, length, 0), two_to_the(-power)
        (high, low), _, _, _ = excess_sum(data, vector, place, stats, None, None, None, None, unit)
        store_scalar(out, 2 * i, high)
        store_scalar(out, 2 * i + 1, low)


@kernel
def piece_softmax_product(
    start: Count,
    stop: Count,
    room: Nothing,
    pieces: Integers,
    maxima: Floats,
    sums: Floats,
    extents: Floats,
    x: Floats,
    v: Floats,
    dots: Floats,
    y: Floats,
) -> None:
    """y = p (v - p.v)."""
    data, vector, table, out = memory(x), memory(v), memory(pieces), memory(y)
    tops, parts, ranges, products = memory(maxima), memory(sums), memory(extents), memory(dots)
    for i in range(start, stop):
        begin, length, first, end, _ = _piece(table, i)
        stats = _put_together(tops, parts, first, end)
        zero, one = number(data, 0.0), number(data, 1.0)
        total = (zero, zero)
        low = zero
        for j in range(first, end):
            total = add(total, load_scalar(products, 2 * j))
            low = low + load_scalar(products, 2 * j + 1)
        pivot, power = _extent(ranges, first, end)
        centre, place = row_centre(pivot, power, (total[0], total[1] + low), stats), row_at(begin, length, 0)
        product_of_logits(data, vector, out, place, stats, None, None, None, centre, one, (one, zero))


@kernel
def piece_cross_entropy(
    start: Count,
    stop: Count,
    room: Nothing,
    pieces: Integers,
    maxima: Floats,
    sums: Floats,
    x: Floats,
    labels: Integers,
    weights: Floats,
    y: MaybeFloats,
    rows: Floats,
    scale: Number,
    scale_low: Number,
) -> None:
    """rows = -weights log p[label], written with the piece that holds the label; y as `segment_cross_entropy`."""
    data, targets, factors, table = memory(x), memory(labels), memory(weights), memory(pieces)
    tops, parts, out, losses = memory(maxima), memory(sums), memory(y), memory(rows)
    for i in range(start, stop):
        begin, length, first, end, segment = _piece(table, i)
        stats = _put_together(tops, parts, first, end)
        weight = row_value(data, True, factors, segment, 1)
        origin = load_scalar(table, first * COLUMNS)
        entries = load_scalar(table, (end - 1) * COLUMNS + 1) - origin
        labelled = origin + label_of(targets, segment, entries)
        here = begin <= labelled < begin + length
        target = number(data, 0.0)
        if here:
            target = load_scalar(data, labelled)
            store_scalar(losses, segment, loss_at(target, stats, weight, factors))
        if y is not None:
            inverse = scaled_reciprocal(stats, weight, scale, scale_low)
            scaled_probs(data, out, begin, length, stats, inverse, weight, None)
            if here:
                store_scalar(out, labelled, slope_at(data, target, stats, weight, scale, scale_low))
