r"""Metrics of rows with labels, and the derivatives of their loss with respect to the temperature, added exactly.

For p = softmax(x) and the label y of a row, with the terms e_k and sums of `traversal.statistics`, S the sum of
all terms, the values of a row are

    loss = -log p_y,  H as in `statistics`,  confidence = max p,
    Brier score = sum_k (p_k - [k = y])**2 = (1 - p_y)**2 + sum_{k != y} p_k**2

and with depths d_k = (m - x_k)/T, p = softmax(x/T) and u = log T

    L = d_y + log(1 + s'),  dL/du = E d - d_y,  d2L/du2 = Var d - dL/du    (E and Var with respect to p)

In 1 - p_y the greatest term is not subtracted from S, and neither are squares that are larger than what remains.

The sums over rows have no rounding errors, so that they do not depend on the order of the rows, on blocks and on
threads. An exact sum is a fixed-point number with all bits of float64, in chunks of 32 bits with room for carries.
It takes a number in three additions. There is a shorter way for many: the values of a slab are added in vectors of
float64, and so are the rounding errors of that sum, the errors of the latter, and so on (TwoSum). If the last
errors are all 0, these few sums are exact together.

References
----------
R. M. Neal, Fast exact summation using small and large superaccumulators, 2015, arXiv:1505.05571.
"""

from typing import Any, NamedTuple

import numpy as np

from fastsoftmax._vectors import (
    CHUNKS,
    COUNT,
    DERIVATIVES,
    HITS,
    INFINITE,
    METRICS,
    NANS,
    ONES,
    SLAB,
    SUM_WORDS,
    VALUES,
    WEIGHT,
)
from fastsoftmax.kernels.elementary import below, two_sum
from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.simd.memory import (
    after,
    as_doubles,
    as_integers,
    item_size,
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
from fastsoftmax.kernels.simd.reduce import fold_sum
from fastsoftmax.kernels.simd.rows import lane_labels
from fastsoftmax.kernels.simd.values import (
    absolute,
    any_above,
    broadcast,
    filled,
    is_single,
    maximum,
    minimum,
    muladd,
    number,
    select_equal,
    select_less,
    truncate,
)
from fastsoftmax.kernels.statistics import (
    GROUP_TABLE,
    Found,
    Row,
    clear_group,
    depth_of,
    group_sums,
    mean_of,
    place_in_row,
    places_in_tile,
    tile_sums,
)
from fastsoftmax.kernels.traversal import Picks, log_of_others, term_and_power, total, traverse
from fastsoftmax.machine.entry import Block, Count, Doubles, Integers, Room, Tempered

INF = float("inf")
FRACTION, HIDDEN, LOW = (1 << 52) - 1, 1 << 52, (1 << 32) - 1
"""The bits of a float64 below its exponent, the bit that is not stored, and the bits of a chunk."""
# A row adds one integer to its bin: its confidence in units of 2**-34, and a one in bit ROWS_FROM, which the sum
# of the confidences of a slab does not reach.
FINE, FINE_UNIT = 1.5 * 2.0**18, 2.0**-34
FINE_BITS, ROWS_FROM = ((1023 + 18) << 52) + (1 << 51), 44
"""The bits of FINE, and that of a row."""
# What is below, in confidences greater than LEAST, is a multiple of 2**-78, and its sum over a slab below 2**-26.
LEAST, LOW_FINE, LOW_UNIT = 2.0**-26, 1.5 * 2.0**-26, 2.0**-78
LOW_BITS = ((1023 - 26) << 52) + (1 << 51)
"""The bits of LOW_FINE."""
WHOLE = 1.5 * 2.0**52
"""The low bits of x + WHOLE are the whole number x."""
EVEN, HIGHEST, LOWEST = 1.5 * 2.0**20, 2.0**20, 2.0**-24
"""x + EVEN is a multiple of 2**-32 if 0 <= x < HIGHEST/2. Numbers from LOWEST on are multiples of 2**-76, and the
sum over a slab of what they have below 2**-32 is at most 2**-24."""
# Units of the squares of terms: a square of a term is at most 2**81 (2**961), and their sum finite.
SQUARE_UNIT_32 = 2.0**-56
SQUARE_UNIT_64 = 2.0**-32
# The places of the values of a row in the memory of a slab, behind those that are added.
CONFIDENCE, RANK, GREATEST, FIELDS = METRICS, METRICS + 1, METRICS + 2, METRICS + 3


# --- exact sums -----------------------------------------------------------------------------------------------


@inline
def _increase(sums: Any, at: int, amount: int) -> None:
    store_scalar(sums, at, load_scalar(sums, at) + amount)


@inline
def put(sums: Any, at: int, bits: int) -> None:
    """Add the float64 with these bits to the exact sum that begins at word `at`."""
    exponent, fraction = (bits >> 52) & 2047, bits & FRACTION
    if exponent == 2047:
        _increase(sums, at + (INFINITE if fraction == 0 else NANS), 1)
        return
    if exponent == 0:
        exponent = 1
    else:
        fraction = fraction | HIDDEN
    sign = bits >> 63
    place, shift = at + (exponent >> 5), exponent & 31
    _increase(sums, place, (((fraction << shift) & LOW) ^ sign) - sign)
    _increase(sums, place + 1, (((fraction >> (32 - shift)) & LOW) ^ sign) - sign)
    _increase(sums, place + 2, (((fraction >> 32) >> (32 - shift)) ^ sign) - sign)


@inline
def put_number(sums: Any, at: int, box: Any, value: Any) -> None:
    """Add a float64; `box` is memory for one."""
    store_scalar(box, 0, value)
    put(sums, at, load_scalar(as_integers(box), 0))


@inline
def put_count(sums: Any, at: int, count: Any) -> None:
    """Add a whole number, given as a float."""
    _increase(sums, at + ONES, int(count))


@inline
def settle(sums: Any, first: int, count: int, step: int) -> None:
    """Move the carries of the chunks of `count` sums up by one chunk, which leaves less than 2**33 in each."""
    for k in range(count):
        at = (first + k * step) * SUM_WORDS
        top = at + CHUNKS - 1
        _increase(sums, top, load_scalar(sums, top - 1) >> 32)
        for chunk in range(top - 1, at, -1):
            store_scalar(sums, chunk, (load_scalar(sums, chunk) & LOW) + (load_scalar(sums, chunk - 1) >> 32))
        store_scalar(sums, at, load_scalar(sums, at) & LOW)


@inline
def _put_lanes(sums: Any, at: int, box: Any, vector: Any) -> None:
    """Add all lanes of a vector of float64."""
    store(box, 0, vector)
    for k in range(8):
        put(sums, at, load_scalar(as_integers(box), k))


@inline
def put_slab(sums: Any, at: int, values: Any, count: int, box: Any) -> None:
    """Add the numbers of a slab; `count` is a multiple of 8.

    Numbers of at least `LOWEST`, and zeros, are cut into multiples of 2**-32 and the rest, and both are added in
    vectors: if the sum is below `HIGHEST`, no bit leaves a float64. Others are added in vectors if nothing is lost
    in the sum of the rounding errors of their sum, or in that of its own errors, and so on; else number by number,
    as infinities and NaN are.
    """
    zero, one, even = broadcast(number(box, 0.0)), broadcast(number(box, 1.0)), broadcast(number(box, EVEN))
    high, low, least = zero, zero, one
    for k in range(0, count, 8):
        value = load_double(values, k)
        part = (value + even) - even
        high = high + part
        low = low + (value - part)
        least = minimum(select_equal(value, zero, one, value), least)
    whole = fold_sum(True, high)  # or infinite or NaN
    if whole < HIGHEST and not any_above(-least, number(box, -LOWEST)):
        put_number(sums, at, box, whole)
        put_number(sums, at, box, fold_sum(True, low))
        return
    a, b, lost = zero, zero, zero
    for k in range(0, count, 8):
        a, error = two_sum(a, load_double(values, k))
        b, error = two_sum(b, error)
        lost = lost + absolute(error)
    if fold_sum(True, lost) == 0.0:
        _put_lanes(sums, at, box, a)
        _put_lanes(sums, at, box, b)
        return
    a, b, c, d, lost = zero, zero, zero, zero, zero
    for k in range(0, count, 8):
        a, error = two_sum(a, load_double(values, k))
        b, error = two_sum(b, error)
        c, error = two_sum(c, error)
        d, error = two_sum(d, error)
        lost = lost + absolute(error)
    if fold_sum(True, lost) == 0.0:
        _put_lanes(sums, at, box, a)
        _put_lanes(sums, at, box, b)
        _put_lanes(sums, at, box, c)
        _put_lanes(sums, at, box, d)
        return
    for k in range(count):
        put_number(sums, at, box, np.float64(load_scalar(values, k)))


# --- the rows of a slab ---------------------------------------------------------------------------------------


class Slab(NamedTuple):
    """Rows whose values are added."""

    values: Any
    """Field after field, `SLAB` numbers each."""
    labels: Any
    weights: Any
    """float64, or empty if all weights are 1."""
    first: Any
    count: Any
    box: Any
    """Memory for a vector of float64."""
    spots: Any
    parts: Any
    """Memory for the float64 numbers of a slab."""


@inline
def _counted(slab: Slab, k: int) -> Any:
    """The labels of the rows in a vector; below 0 for rows that do not count, and behind the last row."""
    return lane_labels(slab.values, slab.labels, slab.first + k, min(lane_count(slab.values), slab.count - k))


@inline
def add_values(sums: Any, slab: Slab, fields: int) -> None:
    """Add the number of rows, their weights, and the first fields. Values that do not count become 0.

    With weights, those of the rows that count are in `spots` afterwards, and 0 for the others.
    """
    values, count, box = slab.values, slab.count, slab.box
    step = lane_count(values)
    zero, one = broadcast(number(values, 0.0)), broadcast(number(values, 1.0))
    rows = zero
    for k in range(0, count, step):
        rows = rows + select_less(_counted(slab, k), zero, zero, one)
    whole = fold_sum(True, rows)
    put_count(sums, COUNT * SUM_WORDS, whole)
    padded = (count + step - 1) // step * step
    if int(whole) < padded:
        for k in range(0, count, step):
            label = _counted(slab, k)
            for field in range(fields):
                at = field * SLAB + k
                store(values, at, select_less(label, zero, zero, load(values, at)))
    if size(slab.weights) == 0:
        put_count(sums, WEIGHT * SUM_WORDS, whole)
        for field in range(fields):
            put_slab(sums, (VALUES + field) * SUM_WORDS, after(values, field * SLAB), padded, box)
        return
    nothing = broadcast(number(box, 0.0))
    store(slab.spots, padded - 8, nothing)
    for k in range(0, count, 8):
        lanes = min(8, count - k)
        label = lane_labels(box, slab.labels, slab.first + k, lanes)
        weight = load_part(slab.weights, slab.first + k, lanes, 0.0)
        store(slab.spots, k, select_less(label, nothing, nothing, weight))
    put_slab(sums, WEIGHT * SUM_WORDS, slab.spots, padded, box)
    for field in range(fields):
        add_weighted(sums, (VALUES + field) * SUM_WORDS, slab, field, padded)


@inline
def add_weighted(sums: Any, at: int, slab: Slab, field: int, padded: int) -> None:
    """Add a field times the weights that `add_values` has left."""
    for k in range(0, padded, 8):
        store(slab.parts, k, load(slab.spots, k) * load_double(slab.values, field * SLAB + k))
    put_slab(sums, at, slab.parts, padded, slab.box)


@inline
def _bin_of(confidence: Any, bins: int) -> Any:
    """The bin of a confidence c, as a float64: the k with k < bins c <= k + 1; 0 for NaN."""
    zero, one = filled(confidence, 0.0), filled(confidence, 1.0)
    scaled = maximum(confidence * float(bins), zero)
    k = truncate(scaled)
    return minimum(maximum(select_equal(k, scaled, k - one, k), zero), one * float(bins - 1))


@inline
def mark_hits(slab: Slab) -> None:
    """Put 1 into the place of the greatest class of rows where it is right, else 0.

    Of rows that do not count, the rank becomes inf, and the confidence -1.
    """
    values = slab.values
    zero, one = broadcast(number(values, 0.0)), broadcast(number(values, 1.0))
    never = broadcast(number(values, INF))
    for k in range(0, slab.count, lane_count(values)):
        label = _counted(slab, k)
        rank = select_less(label, zero, never, load(values, RANK * SLAB + k))
        store(values, RANK * SLAB + k, rank)
        right = select_equal(load(values, GREATEST * SLAB + k), label, one, zero)
        store(values, GREATEST * SLAB + k, select_less(rank, never, right, zero))
        at = CONFIDENCE * SLAB + k
        store(values, at, select_less(label, zero, -one, load(values, at)))


@inline
def add_hits(sums: Any, slab: Slab, top_k: Any) -> None:
    """Add the rows whose greatest class, or one of the top k, is right, after `mark_hits`."""
    values, count, step = slab.values, slab.count, lane_count(slab.values)
    zero, one = broadcast(number(values, 0.0)), broadcast(number(values, 1.0))
    padded = (count + step - 1) // step * step
    weighted = size(slab.weights) > 0
    if weighted:
        add_weighted(sums, HITS * SUM_WORDS, slab, GREATEST, padded)
    else:
        hits = zero
        for k in range(0, count, step):
            hits = hits + load(values, GREATEST * SLAB + k)
        put_count(sums, HITS * SUM_WORDS, fold_sum(True, hits))
    for j in range(size(top_k)):
        limit, at = broadcast(number(values, float(load_scalar(top_k, j)))), (HITS + 1 + j) * SUM_WORDS
        hits = zero
        for k in range(0, count, step):
            hit = select_less(load(values, RANK * SLAB + k), limit, one, zero)
            if weighted:
                store(values, k, hit)  # over the first field, which has been added
            hits = hits + hit
        if weighted:
            add_weighted(sums, at, slab, 0, padded)
        else:
            put_count(sums, at, fold_sum(True, hits))


@inline
def _fill_table(table: Any, length: int, slab: Slab, nothing: int) -> None:
    """Add the bits of `parts`, less `nothing`, at the places `spots` of two tables of so many integers.

    Rows take turns with the tables, because an addition waits for the one before at the same place.
    """
    places, amounts, other = as_integers(slab.spots), as_integers(slab.parts), after(table, length)
    for k in range(2 * length):
        store_scalar(table, k, 0)
    last = slab.count - 1
    for i in range(0, last, 2):
        _increase(table, load_scalar(places, i) & LOW, load_scalar(amounts, i) - nothing)
        _increase(other, load_scalar(places, i + 1) & LOW, load_scalar(amounts, i + 1) - nothing)
    if last % 2 == 0:
        _increase(table, load_scalar(places, last) & LOW, load_scalar(amounts, last) - nothing)


@inline
def add_bins(sums: Any, slab: Slab, at: int, bins: int, table: Any) -> None:
    """Add rows, confidences and hits of each bin, without weights, after `mark_hits`.

    `table` is memory for two tables with a place for each bin, one for the rows that do not count, and one for the
    rows of each bin whose greatest class is right. `spots` gets the places of the rows, and `parts` their
    confidences.
    """
    values, box, spots, parts = slab.values, slab.box, slab.spots, slab.parts
    length = 2 * bins + 1
    zero, one, fine = broadcast(number(box, 0.0)), broadcast(number(box, 1.0)), broadcast(number(box, FINE))
    lost = zero
    for k in range(0, slab.count, 8):
        confidence = load_double(values, CONFIDENCE * SLAB + k)
        right = load_double(values, GREATEST * SLAB + k)
        spot = _bin_of(confidence, bins) + select_equal(right, one, zero + float(bins + 1), zero)
        spot = select_less(confidence, zero, zero + float(bins), spot)
        store(spots, k, spot + number(box, WHOLE))
        part = maximum(confidence, zero) + fine
        store(parts, k, part)
        low = select_less(confidence, zero, zero, confidence - (part - fine))
        lost = lost + absolute(low)
    _fill_table(table, length, slab, FINE_BITS - (1 << ROWS_FROM))
    for k in range(bins):
        wrong = load_scalar(table, k) + load_scalar(table, length + k)
        right_rows = load_scalar(table, bins + 1 + k) + load_scalar(table, length + bins + 1 + k)
        found, slot = wrong + right_rows, at + 3 * k * SUM_WORDS
        if found != 0:
            _increase(sums, slot + ONES, found >> ROWS_FROM)
            confidence_of_bin = np.float64(found & ((1 << ROWS_FROM) - 1)) * FINE_UNIT
            put_number(sums, slot + SUM_WORDS, box, confidence_of_bin)
            _increase(sums, slot + 2 * SUM_WORDS + ONES, right_rows >> ROWS_FROM)
    if fold_sum(True, lost) != 0.0:
        _add_lows(sums, slab, at, bins, table)


@inline
def _add_lows(sums: Any, slab: Slab, at: int, bins: int, table: Any) -> None:
    """Add what is below 2**-34 in the confidences, in which `add_bins` has left the places of the rows.

    float32 needs that only where more than 1000 classes are about equal.
    """
    values, box, parts = slab.values, slab.box, slab.parts
    zero, one, fine = broadcast(number(box, 0.0)), broadcast(number(box, 1.0)), broadcast(number(box, FINE))
    length, least, rare = 2 * bins + 1, broadcast(number(box, LEAST)), zero
    for k in range(0, slab.count, 8):
        confidence = load_double(values, CONFIDENCE * SLAB + k)
        low = select_less(least, confidence, confidence - ((confidence + fine) - fine), zero)
        store(parts, k, low + number(box, LOW_FINE))
        rare = rare + select_less(least, confidence, zero, select_less(confidence, zero, zero, one))
    _fill_table(table, length, slab, LOW_BITS)
    for k in range(bins):
        low_sum = load_scalar(table, k) + load_scalar(table, length + k)
        low_sum += load_scalar(table, bins + 1 + k) + load_scalar(table, length + bins + 1 + k)
        put_number(sums, at + (3 * k + 1) * SUM_WORDS, box, np.float64(low_sum) * LOW_UNIT)
    if fold_sum(True, rare) > 0.0:
        for i in range(slab.count):
            one_of_them = np.float64(load_scalar(values, CONFIDENCE * SLAB + i))
            if not (one_of_them < 0.0 or one_of_them > LEAST):
                slot = at + (3 * int(_bin_of(one_of_them, bins)) + 1) * SUM_WORDS
                put_number(sums, slot, box, one_of_them - ((one_of_them + FINE) - FINE))


@inline
def add_weighted_bins(sums: Any, slab: Slab, at: int, bins: int) -> None:
    """`add_bins` with the weights that `add_values` has left."""
    values, box = slab.values, slab.box
    for i in range(slab.count):
        weight = load_scalar(slab.spots, i)
        if weight > 0.0:
            confidence = np.float64(load_scalar(values, CONFIDENCE * SLAB + i))
            slot = at + 3 * int(_bin_of(confidence, bins)) * SUM_WORDS
            put_number(sums, slot, box, weight)
            put_number(sums, slot + SUM_WORDS, box, weight * confidence)
            if load_scalar(values, GREATEST * SLAB + i) > 0.0:
                put_number(sums, slot + 2 * SUM_WORDS, box, weight)


# --- the values of a row --------------------------------------------------------------------------------------


class SlabOptions(NamedTuple):
    """1/T or None, the entries at the labels, memory for `group_sums`, and the number of the slab's first row."""

    beta: Any
    picks: Any
    table: Any
    first: Any


@inline
def _square_unit(like: Any) -> Any:
    return number(like, SQUARE_UNIT_32) if is_single(like) else number(like, SQUARE_UNIT_64)


@inline
def add_square(value: Any, e: Any, q: Any, row: Row, first: Any, second: Any) -> Any:
    """One entry more for `row_sums`: the products are e d and e**2, in units of `_square_unit`**2."""
    part = e * _square_unit(value)
    return muladd(e, depth_of(value, q, row), first), muladd(part, part, second)


@inline
def add_depths(value: Any, e: Any, q: Any, row: Row, first: Any, second: Any) -> Any:
    """One entry more for `row_sums`: the products are e d and e d**2."""
    depth = depth_of(value, q, row)
    product = e * depth
    return first + product, muladd(product, depth, second)


@inline
def _brier(row: Row, known: Any, squares: Any) -> Any:
    """(1 - p_y)**2 + sum_{k != y} p_k**2; `squares` is the sum over all but the greatest entries."""
    m, target, unit, one = row.m, row.target, _square_unit(row.m), number(row.m, 1.0)
    whole, _ = total(known)
    term, _ = term_and_power(target, m, row.beta, row.shift, row.bias)
    top, e = known.top[0] * unit, term * unit
    others = known.ties - one
    lacking = select_equal(target, m, known.rest + others * known.top[0], whole - term) / whole
    squares = squares + select_equal(target, m, others * top * top, known.ties * top * top - e * e)
    scaled = whole * unit
    return muladd(lacking, lacking, squares / scaled / scaled)


@inline
def store_metrics(found: Found, at: int, count: int, rows: Any) -> None:
    """rows = -log p_y, H, Brier score, confidence, and rank of the label, for the first of `FIELDS`.

    A row with NaN has the rank inf. Errors as in `statistics.store_statistics`; the confidence is within 2 ulp.
    """
    one, known = found.row, found.stats
    log_high, log_low = log_of_others(known)
    store_part(rows, at, count, (log_high + log_low) - below(one.target, one.m, None))
    store_part(rows, at + SLAB, count, (log_high + mean_of(found.first, known)) + log_low)
    store_part(rows, at + 2 * SLAB, count, _brier(one, known, found.second[0] + found.second[1]))
    whole, _ = total(known)
    store_part(rows, at + CONFIDENCE * SLAB, count, known.top[0] / whole)
    never = broadcast(number(known.rest, INF))
    store_part(rows, at + RANK * SLAB, count, select_equal(known.rest, known.rest, found.above, never))


@inline
def metrics_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """`store_metrics` and the places of the greatest entries, for the rows of a tile."""
    at = place.row - options.first
    found = tile_sums(x, place, options.beta, options.picks, add_square, broadcast(number(x, 0.0)))
    store_metrics(found, at, place.count, rows)
    store_part(rows, at + GREATEST * SLAB, place.count, places_in_tile(x, place, found))


@inline
def metrics_group(x: Any, first: int, count: int, classes: int, rows: Any, options: Any) -> None:
    """The same for a group of longer rows."""
    at, picks, table, zero = first - options.first, options.picks, options.table, broadcast(number(x, 0.0))
    found = group_sums(x, classes, count, options.beta, picks, add_square, zero, table)
    store_metrics(found, at, count, rows)
    for i in range(count):
        k = place_in_row(x, i, classes, table)
        store_scalar(rows, at + GREATEST * SLAB + i, number(x, float(k)))


@inline
def store_derivatives(found: Found, at: int, count: int, rows: Any) -> None:
    """rows = the loss, E d, d at the label, and Var d, for `DERIVATIVES`."""
    one, known = found.row, found.stats
    log_high, log_low = log_of_others(known)
    depth = -below(one.target, one.m, one.beta)
    store_part(rows, at, count, depth + (log_high + log_low))
    mean, square = mean_of(found.first, known), mean_of(found.second, known)
    store_part(rows, at + SLAB, count, mean)
    store_part(rows, at + 2 * SLAB, count, depth)
    store_part(rows, at + 3 * SLAB, count, maximum(square - mean * mean, broadcast(number(mean, 0.0))))


@inline
def derivatives_block(x: Any, v: Any, y: Any, place: Any, stats: Any, rows: Any, options: Any) -> None:
    """`store_derivatives` for the rows of a tile."""
    found = tile_sums(x, place, options.beta, options.picks, add_depths, broadcast(number(x, 0.0)))
    store_derivatives(found, place.row - options.first, place.count, rows)


@inline
def derivatives_group(x: Any, first: int, count: int, classes: int, rows: Any, options: Any) -> None:
    """The same for a group of longer rows."""
    picks, table, zero = options.picks, options.table, broadcast(number(x, 0.0))
    found = group_sums(x, classes, count, options.beta, picks, add_depths, zero, table)
    store_derivatives(found, first - options.first, count, rows)


@kernel
def update(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    labels: Integers,
    weights: Doubles,
    top_k: Integers,
    bins: Count,
    words: Count,
) -> None:
    """Add the metrics of rows to the exact sums with which `room` begins.

    The sums are those of `COUNT`, `WEIGHT`, the `VALUES` loss, entropy and Brier score, `HITS`, one for each k of
    `top_k`, and rows, confidences and hits of each bin. Behind them, `room` has the table of `add_bins`; the last
    words before word `words` are `spots` and `parts`, and behind it is memory for a slab and tiles. Rows with
    labels below 0 do not count. `weights` may be empty.
    """
    data, space = memory(x), memory(room)
    sums, marks, given, ks = as_integers(space), memory(labels), memory(weights), memory(top_k)
    at = (HITS + 1 + size(ks)) * SUM_WORDS
    slots = HITS + 1 + size(ks) + 3 * bins
    table = after(sums, slots * SUM_WORDS)
    spots = after(as_doubles(space), words - 2 * SLAB)
    parts = after(spots, SLAB)
    values = after(space, words * (8 // item_size(space)))
    tile, box = after(values, FIELDS * SLAB), scratch(given, 1)
    picks, group, shape = Picks(marks, scratch(data, 2)), scratch(data, GROUP_TABLE), x.shape
    clear_group(group, shape[1])
    for first in range(start, stop, SLAB):
        count = min(SLAB, stop - first)
        options = SlabOptions(None, picks, group, first)
        end = first + count
        traverse(
            metrics_block,
            first,
            end,
            shape,
            tile,
            data,
            None,
            None,
            values,
            options,
            given=True,
            picks=picks,
            together=metrics_group,
        )
        slab = Slab(values, marks, given, first, count, box, spots, parts)
        add_values(sums, slab, METRICS)
        mark_hits(slab)
        add_hits(sums, slab, ks)
        if size(given) > 0:
            add_weighted_bins(sums, slab, at, bins)
        else:
            add_bins(sums, slab, at, bins, table)
    if size(given) > 0:
        settle(sums, WEIGHT, slots - WEIGHT, 1)
    else:  # the others are whole numbers
        settle(sums, VALUES, METRICS, 1)
        settle(sums, HITS + 2 + size(ks), bins, 3)


@kernel
def derivatives(
    start: Count,
    stop: Count,
    room: Room,
    x: Block,
    labels: Integers,
    weights: Doubles,
    words: Count,
    beta: Tempered,
) -> None:
    """Add loss, E d, d at the label and Var d of rows to the exact sums with which `room` begins, as `update`."""
    data, space = memory(x), memory(room)
    sums, marks, given = as_integers(space), memory(labels), memory(weights)
    values = after(space, words * (8 // item_size(space)))
    spots = after(as_doubles(space), words - 2 * SLAB)
    parts = after(spots, SLAB)
    tile, box = after(values, DERIVATIVES * SLAB), scratch(given, 1)
    picks, group, shape = Picks(marks, scratch(data, 2)), scratch(data, GROUP_TABLE), x.shape
    clear_group(group, shape[1])
    for first in range(start, stop, SLAB):
        count = min(SLAB, stop - first)
        options = SlabOptions(beta, picks, group, first)
        end = first + count
        traverse(
            derivatives_block,
            first,
            end,
            shape,
            tile,
            data,
            None,
            None,
            values,
            options,
            given=True,
            picks=picks,
            together=derivatives_group,
        )
        add_values(sums, Slab(values, marks, given, first, count, box, spots, parts), DERIVATIVES)
    settle(sums, WEIGHT, 1 + DERIVATIVES, 1)
