r"""The two walks of a kernel through a block, and the sums over a row that every function needs.

A block has shape (outer, classes, inner), C-contiguous; its rows run along `classes`. Two walks serve every
shape. Both call the same building block, with whole vectors:

rows
    `classes` is contiguous and longer than `COLUMN_LIMIT`. The vectors run along the row, the last one masked; at
    the end their lanes are folded into one. The work done once for a row (folding, exp of its maximum) is a chain
    of dependent operations and takes longer than 50 classes do. So it is done for 16 (or 8) rows at once, with a
    row in each lane.
columns
    Otherwise every lane is a row. A tile of 16 (or 8) rows is copied into working memory with class k of all its
    rows in vector k: by shuffles where `inner` is 1, in the same order where `inner` is larger. No lanes are
    folded, and a row of three costs little more per element than one of fifty.

So a function is written once, as a building block ``block(x, v, y, place, stats, rows, options)``. `place` is the
`Place` of its numbers in x; `stats` are the `RowStatistics` of its rows, floats or vectors; `v` is a second
operand and `y` the output (both laid out as x is); `rows` is an output with one number for each row; `options`
is a `NamedTuple` that the kernel passes on. Any of v, y and rows may be None.

A block that uses only the exponentials of x gets these instead of x (`probability_of`): the statistics compute
them anyway and store them where y will be. Computing them again took 9 of 22 cycles a vector.

Large results over an inner axis are written past the caches, which takes a tenth less time. Up to `STRIP_LIMIT`
classes, narrow tiles that are prefetched 16 vectors ahead take another fifth less, since memory then works while
we compute. With more classes they are slower than wide tiles: where the inner size is a power of two, as in
images, the lines of all classes fall into the same set of the cache, which holds 12 of them.

Prefetches wait for the same few buffers as the misses of loads and stores. So the next tile is prefetched line
by line while the terms of this one are summed: at once, its prefetches would hold up the loads behind them. Rows
of up to `AHEAD_LIMIT` classes are prefetched one by one, a group ahead, in the pass that does not touch the place
of the result for the first time, and that place is not. Less time than with all prefetches of a tile at once, and
of a row and its result in the last pass (10 million float32, one thread of a Zen 4): softmax of K = 64 a third, of
K = 100 a fifth; log_softmax a third and a quarter; axis 1 of (4, 19, 400, 328) a quarter.

Rows of up to `SECOND_LINES` lines are prefetched into the second cache: beyond the caches, logsumexp of K = 300 to
500 takes a fifth less, cross-entropy two fifths. Where rows lie apart, so is what lies between them, if it is not
longer than a row, because lines that follow each other come twice as fast: logsumexp of every other row takes 1.1
times what contiguous rows take, 1.6 without (K = 100); softmax 1.3, which is the ratio of what memory moves.

These did not help (10 million float32, two threads of a Sapphire Rapids): writing rows past the caches through a
buffer, which made a bare copy a quarter faster and softmax a tenth slower; prefetching rows of more than 256
classes into the first cache, or the next wide tile at once; other sizes of wide tiles; the walk in rows for 49 to
64 classes; two tiles at once, so that the loops of one hide the chain of operations of the other.

The walk depends only on `classes` and `inner`, and rows do not depend on each other: a row gives the same bits in
every batch and on any number of threads.
"""

from typing import Any, NamedTuple

from fastsoftmax._vectors import APART, COLUMN_LIMIT, FEW, GROUP_LIMIT
from fastsoftmax.kernels.elementary import (
    LIFT_32,
    LIFT_64,
    biased,
    centred,
    exp_pair,
    exp_parts,
    exp_scaled,
    lift_of,
    log_pair,
    most_power,
    quick_quotient,
    reference,
    smallest_power,
    two_product,
    two_sum,
)
from fastsoftmax.kernels.jit import inline
from fastsoftmax.kernels.simd.memory import (
    after,
    fence,
    gather,
    lane_count,
    lanes_to_line,
    load,
    load_part,
    load_scalar,
    prefetch,
    prefetch_second,
    prefetch_written,
    scatter,
    scratch,
    size,
    store,
    store_part,
    store_past,
    store_scalar,
)
from fastsoftmax.kernels.simd.reduce import fold_maximum, fold_sum, fold_two_sum
from fastsoftmax.kernels.simd.rows import lane_labels
from fastsoftmax.kernels.simd.transpose import load_dense, load_turned, store_dense, store_turned
from fastsoftmax.kernels.simd.values import (
    absolute,
    broadcast,
    count_equal,
    counted,
    filled,
    fma,
    if_none,
    is_single,
    last_lanes,
    maximum,
    muladd,
    number,
    select_equal,
    select_less,
    select_negative,
    shift_to_exponent,
    split_exponent,
    unless_none,
)

INF = float("inf")
NAN = float("nan")
AHEAD_LIMIT = 256
"""Rows of up to this many classes are prefetched into the first cache."""
SECOND_LINES = 48
"""Rows of up to this many lines are prefetched into the second cache. Longer ones are not: the processor does so
by itself, and our prefetches would slow it down."""
ONE_HOT_LIMIT = 16
"""Up to this many classes, comparing all classes with the label is faster than a look-up for each row."""
TWO_TILES = 2 * COLUMN_LIMIT
STATISTICS = 8
TABLE = 72
"""Vectors of memory for a group: its statistics, three partial sums for each row, and room to transpose them."""
WAVE = 8
"""So many vectors of rows, at most, have their statistics computed before their blocks, see `_traverse_waves`."""
WAVE_STATISTICS = WAVE * STATISTICS
WAVE_VECTORS = 64
"""So many vectors of a tile, at most, if there are several vectors of rows: they stay in the first cache."""
UNIT_32 = 2.0**LIFT_32
UNIT_64 = 2.0**LIFT_64
PAST_CACHES = 1 << 23
"""Results of at least this many numbers are written past the caches where a tile is written in long runs."""
STRIP_LIMIT = 16
"""Up to this many classes, an inner axis is walked in tiles of at most 32 vectors, which are prefetched."""
STRIPS_AHEAD = 16
"""How many vectors ahead along the inner axis these tiles are prefetched: at least a tile's width."""
GREATEST = -1.0
"""The value of a greatest entry in `entries`, where terms are kept."""


class Place(NamedTuple):
    """The place of a building block's numbers."""

    offset: Any
    """Their first offset in x, v and y."""
    length: Any
    """Their number."""
    folded: Any
    """True if they are a single row; None if they are a tile with a row in each lane."""
    row: Any
    """The first offset of the rows' results in `rows`."""
    count: Any
    """How many rows there are."""


class Ahead(NamedTuple):
    """What is prefetched while the terms of a tile are summed, a line for each class."""

    x: Any
    v: Any
    """The second operand; None if there is none."""
    stride: Any
    """The distance of two classes; if rows lie apart, of two lines of a row."""
    skip: Any
    """How much further than in the next line the next row begins."""
    share: Any
    """2**16 over the lines of a row, rounded up; 1 if rows and what is between them are one stretch, 0 if they do
    not lie apart."""
    more: Any
    """How many lines there are beyond one for each class."""
    others: Any
    """The first of them."""


class RowStatistics(NamedTuple):
    """The sums that determine a row's softmax, in units of the `elementary.reference` of its greatest entry."""

    m: Any
    """The greatest entry."""
    shift: Any
    bias: Any
    """The reference of m."""
    top: Any
    """The term exp(m/T) as a pair."""
    ties: Any
    """How many entries are equal to m."""
    rest: Any
    rest_low: Any
    """The sum of all other terms, as a pair."""
    inverse: Any
    """The `reciprocal` if it was computed for several rows at once, else None."""
    log: Any
    """The same of `log_of_others`."""


class Reciprocal(NamedTuple):
    """1 / (sum of all terms), and the numbers that turn terms into probabilities; see `reciprocal`."""

    scale: Any
    scale_low: Any
    """The reciprocal as a pair, in units of `unit`."""
    unit: Any
    least: Any
    """Terms below `least` become `nothing`."""
    nothing: Any
    m: Any
    highest: Any
    """The greatest entry and its probability."""


class Picks(NamedTuple):
    """Labels, and memory of two vectors for the entries at the labels."""

    labels: Any
    targets: Any


@inline
def row_at(offset: int, length: int, row: int) -> Place:
    """The place of a single row."""
    return Place(offset, length, True, row, 1)


@inline
def _scaled(e: Any, inverse: Any) -> Any:
    """A term times `reciprocal`. The lift by 2**LIFT is removed last, so that no low part is denormal."""
    p = muladd(e, inverse.scale, e * inverse.scale_low) * inverse.unit
    return select_less(e, inverse.least, inverse.nothing, p)


@inline
def probability(value: Any, beta: Any, stats: Any, inverse: Any) -> Any:
    """The probability of an entry."""
    t, tail = centred(value, stats.shift, beta)
    p = _scaled(exp_scaled(t, tail, stats.bias), inverse)
    return select_equal(value, inverse.m, inverse.highest, p)


@inline
def probability_of(e: Any, inverse: Any) -> Any:
    """The probability of an entry, from its kept term e, whose sign is negative for a greatest entry."""
    return select_negative(e, inverse.highest, _scaled(e, inverse))


@inline
def probability_by(value: Any, beta: Any, stats: Any, inverse: Any, keep: Any) -> Any:
    """`probability_of` if terms are kept, else `probability`: the same bits."""
    if keep is None:
        return probability(value, beta, stats, inverse)
    return probability_of(value, inverse)


@inline
def certain(stats: Any) -> Any:
    """The term of the certain class: one whose probability is above 1/2. NaN if there is none."""
    top = stats.top[0]
    others = stats.rest + (stats.ties - number(top, 1.0)) * top
    return select_less(others, top, top, number(top, NAN))


@inline
def crest_of(stats: Any, keep: Any) -> Any:
    """The value in x that marks a `certain` class; NaN, which equals nothing, if there is none."""
    m = stats.m
    return select_equal(certain(stats), stats.top[0], greatest_of(m, keep), number(m, NAN))


@inline
def greatest_of(m: Any, keep: Any) -> Any:
    """The value in x that marks a greatest entry of the row: `GREATEST` if terms are kept, else the logit m."""
    if keep is None:
        return m
    return filled(m, GREATEST)


@inline
def filler(x: Any, keep: Any) -> Any:
    """The value of the lanes behind the end of a row: a logit (-inf) or a kept term (0) that adds nothing."""
    if keep is None:
        return number(x, -INF)
    return number(x, 0.0)


@inline
def entries(x: Any, offset: int, count: Any, keep: Any) -> Any:
    """A vector of logits; or if terms are kept, one of terms, with `GREATEST` for -0.0.

    If `count` is not None, it is the number of entries, and the other lanes get the `filler`.
    """
    value = load(x, offset) if count is None else load_part(x, offset, count, filler(x, keep))
    if keep is None:
        return value
    return select_negative(value, number(value, GREATEST), value)


@inline
def load_last(x: Any, offset: int, length: int, rest: Any) -> Any:
    """The last vector of a row: of its last entries, or if it has fewer, of all of them and `rest` behind them."""
    if length < lane_count(x):
        return load_part(x, offset, length, rest)
    return load(x, offset + length - lane_count(x))


@inline
def store_last(y: Any, offset: int, length: int, value: Any) -> None:
    """The inverse of `load_last`. Unlike a masked store it is fast on every processor."""
    if length < lane_count(y):
        store_part(y, offset, length, value)
    else:
        store(y, offset + length - lane_count(y), value)


@inline
def highest(x: Any, offset: int, length: int, folded: Any) -> Any:
    """The greatest entry of each row, -inf if there is none. NaN is ignored here; the sums become NaN."""
    step = lane_count(x)
    full = length // step * step
    wide = length // (4 * step) * (4 * step)
    m = broadcast(number(x, -INF))
    a, b, c = m, m, m  # four chains, because each maximum waits for the one before
    for k in range(0, wide, 4 * step):
        m = maximum(load(x, offset + k), m)
        a = maximum(load(x, offset + k + step), a)
        b = maximum(load(x, offset + k + 2 * step), b)
        c = maximum(load(x, offset + k + 3 * step), c)
    for k in range(wide, full, step):
        m = maximum(load(x, offset + k), m)
    m = maximum(maximum(a, b), maximum(c, m))
    if full < length:
        m = maximum(load_part(x, offset + full, length - full, number(x, -INF)), m)
    return fold_maximum(folded, m)


@inline
def term(value: Any, m: Any, beta: Any, shift: Any, bias: Any) -> Any:
    """exp(value/T) in units of the row's `reference`: 0 below the smallest number, -0.0 for a greatest entry.

    So a greatest entry adds nothing to a sum of terms, and can be told from a term that is 0.
    """
    return term_and_power(value, m, beta, shift, bias)[0]


@inline
def term_and_power(value: Any, m: Any, beta: Any, shift: Any, bias: Any) -> Any:
    """The `term` of an entry, and the q of `exp_parts`: the term is 0 if that is less than `smallest_power`."""
    t, tail = centred(value, shift, beta)
    bracket, q = exp_parts(t, tail, bias)
    scale = shift_to_exponent(q)
    e = select_less(q, smallest_power(value), number(value, 0.0), muladd(bracket, scale, scale))
    return select_equal(value, m, number(value, -0.0), e), q


@inline
def top_term(m: Any, shift: Any, bias: Any, beta: Any) -> Any:
    """exp(m/T) in units of the row's `reference`, as a pair."""
    t, tail = centred(m, shift, beta)
    return exp_pair(t, tail, bias)


@inline
def _add_two(sums: Any, e: Any, f: Any, exact: Any) -> Any:
    if exact is None:
        return add(sums, e + f)
    return add(add(sums, e), f)


@inline
def _prefetch_class(x: Any, v: Any, offset: int) -> None:
    """Prefetch the line of a class in both operands of `Ahead`."""
    prefetch(x, offset)
    if v is not None:
        prefetch(v, offset)


@inline
def ahead_at(x: Any, v: Any, offset: int, inner: int) -> Ahead:
    """`Ahead` for the lanes from this offset on; v may be None."""
    there = after(x, offset)
    return Ahead(there, behind(v, offset), lane_count(x) if inner == 1 else inner, 0, 0, 0, there)


@inline
def rows_ahead(x: Any, v: Any, offset: int, classes: int, inner: int, stride: int, apart: Any) -> Ahead:
    """`ahead_at` where rows of x may be `stride` apart.

    A tile of a few classes takes less time than memory: not its successor is prefetched, but the tile that follows
    after about twice `COLUMN_LIMIT` classes, and what lies between its rows as in `prefetch_row`. Of rows further
    apart, what has no place among as many lines as classes is prefetched at once.
    """
    step, ahead = lane_count(x), ahead_at(x, v, offset, inner)
    if apart is None:
        return ahead
    if inner > 1 or stride == classes or stride <= step:
        return ahead
    there = after(x, offset + max(2 * COLUMN_LIMIT // max(classes, 1) - 1, 0) * step * stride)
    if classes < stride <= 2 * classes:
        return Ahead(there, ahead.v, step, 0, 1, stride - classes, after(there, classes * step))
    for row in range(step):
        prefetch_second(there, row * stride + classes - 1)
    for row in range(classes, step):
        prefetch_second(there, row * stride)
    lines = max(classes // step, 1)
    return Ahead(there, ahead.v, step, stride - lines * step, (65535 + lines) // lines, 0, there)


@inline
def _prefetch_line(ahead: Ahead, k: int) -> None:
    """Prefetch line k of `Ahead`: row by row, if they lie apart, and into the second cache; see `prefetch_row`."""
    if ahead.share == 0:
        _prefetch_class(ahead.x, ahead.v, k * ahead.stride)
    else:
        prefetch_second(ahead.x, k * ahead.stride + (k * ahead.share >> 16) * ahead.skip)
        if k < ahead.more:
            prefetch_second(ahead.others, k * ahead.stride)


@inline
def prefetch_tile(ahead: Any, classes: int) -> None:
    """Prefetch the lines of all classes at once."""
    for k in range(classes):
        _prefetch_class(ahead.x, ahead.v, k * ahead.stride)


@inline
def lane_sums(
    x: Any,
    offset: int,
    length: int,
    m: Any,
    beta: Any,
    shift: Any,
    bias: Any,
    terms: Any,
    at: int,
    exact: Any,
    ahead: Any = None,
) -> Any:
    """For each lane: how many entries are equal to m, and the sum of the terms of the others as a pair.

    Two terms are added, and their sum to the pair with TwoSum; if `exact` is not None, each term is, for sums
    from which others are subtracted. The terms are stored in `terms` from `at` on, unless it is None; it may be x
    itself. Two lines are prefetched for each two vectors if `ahead` is not None: at once, the prefetches of a tile
    would hold up the loads behind them.
    """
    step = lane_count(x)
    full = length // step * step
    rest = length - full
    last = load_last(x, offset, length, number(x, -INF))  # before a term is stored there
    paired = length // (2 * step) * (2 * step)
    zero = broadcast(number(x, 0.0))
    ties, sums = zero, (zero, zero)
    for k in range(0, paired, 2 * step):
        if ahead is not None:
            _prefetch_line(ahead, k // step)
            _prefetch_line(ahead, k // step + 1)
        value, other = load(x, offset + k), load(x, offset + k + step)
        e, f = term(value, m, beta, shift, bias), term(other, m, beta, shift, bias)
        ties = count_equal(other, m, count_equal(value, m, ties))
        sums = _add_two(sums, e, f, exact)
        if terms is not None:
            store(terms, at + k, e)
            store(terms, at + k + step, f)
    if paired < full:
        if ahead is not None:
            _prefetch_line(ahead, paired // step)
        value = load(x, offset + paired)
        e = term(value, m, beta, shift, bias)
        ties = count_equal(value, m, ties)
        sums = add(sums, e)
        if terms is not None:
            store(terms, at + paired, e)
    if rest > 0:
        e = term(last, m, beta, shift, bias)
        if terms is not None:
            store_last(terms, at, length, e)
        if full > 0:
            last, e = last_lanes(last, rest, number(x, -INF)), last_lanes(e, rest, number(x, 0.0))
        ties = count_equal(last, m, ties)
        sums = add(sums, e)
    return counted(ties), sums[0], sums[1]


@inline
def statistics(
    x: Any, offset: int, length: int, folded: Any, beta: Any, terms: Any, exact: Any, ahead: Any = None
) -> RowStatistics:
    """The `RowStatistics` of each row.

    top is a pair, because all other terms are compared with it. The others are added as in `lane_sums`: the error
    of their sum is that of the terms (1.1 ulp each) and of the sums of two (1/2 ulp each), whatever their number
    and order; with `exact`, that of the terms. The greatest entries are not in that sum, so that it is accurate
    where it is tiny beside them. The terms are stored in `terms`, at the places of their entries, unless it is
    None.
    """
    m = highest(x, offset, length, folded)
    shift, bias = reference(m, beta)
    sums = lane_sums(x, offset, length, m, beta, shift, bias, terms, offset, exact, ahead)
    ties = fold_sum(folded, sums[0])
    high, low = fold_two_sum(folded, sums[1], sums[2])
    rest, rest_low = two_sum(high, low)
    return RowStatistics(m, shift, bias, top_term(m, shift, bias, beta), ties, rest, rest_low, None, None)


@inline
def store_statistics(table: Any, stats: Any) -> None:
    """Store the `statistics` of a vector of rows in `table`."""
    step = lane_count(table)
    store(table, 0, stats.m)
    store(table, step, stats.shift)
    store(table, 2 * step, stats.bias)
    store(table, 3 * step, stats.top[0])
    store(table, 4 * step, stats.top[1])
    store(table, 5 * step, stats.ties)
    store(table, 6 * step, stats.rest)
    store(table, 7 * step, stats.rest_low)


@inline
def stored_statistics(table: Any) -> RowStatistics:
    """What `store_statistics` or `measure` has stored."""
    step = lane_count(table)
    top = load(table, 3 * step), load(table, 4 * step)
    m, shift, bias = load(table, 0), load(table, step), load(table, 2 * step)
    ties, rest, rest_low = load(table, 5 * step), load(table, 6 * step), load(table, 7 * step)
    return RowStatistics(m, shift, bias, top, ties, rest, rest_low, None, None)


@inline
def short_statistics(x: Any, offset: int, length: int, beta: Any, kept: Any) -> Any:
    """The `statistics` of one row of at most `COLUMN_LIMIT` classes, with the bits of the walk in columns.

    In that walk a single row would use one lane. Here its terms fill a vector, and only their sum is computed one
    by one, in the order of that lane. The terms are stored in `kept`, unless it is None.
    """
    m = highest(x, offset, length, True)
    shift, bias = reference(m, beta)
    step = lane_count(x)
    terms = scratch(x, 8)  # COLUMN_LIMIT of the wider dtype
    zero = number(x, 0.0)
    many = broadcast(zero)
    for k in range(0, length, step):
        value = load_part(x, offset + k, min(step, length - k), number(x, -INF))
        many = count_equal(value, m, many)
        e = term(value, m, beta, shift, bias)
        store(terms, k, e)
        if kept is not None:
            store_part(kept, offset + k, min(step, length - k), e)
    high, low = zero, zero
    for k in range(0, length - 1, 2):
        high, low = add((high, low), load_scalar(terms, k) + load_scalar(terms, k + 1))
    if length % 2:
        high, low = add((high, low), load_scalar(terms, length - 1))
    rest, rest_low = two_sum(high, low)
    ties, top = fold_sum(True, counted(many)), top_term(m, shift, bias, beta)
    return RowStatistics(m, shift, bias, top, ties, rest, rest_low, None, None)


@inline
def turned_sum(square: Any, turned: Any) -> Any:
    """The sum of the lanes of each of the vectors of a square, one sum in each lane; `turned` is memory for it."""
    step = lane_count(square)
    load_turned(square, 0, step, step, turned, 0)
    result = load(turned, 0)
    for k in range(step, step * step, step):
        result = result + load(turned, k)
    return result


@inline
def turned_pair(high: Any, low: Any, turned: Any) -> Any:
    """`turned_sum` of pairs."""
    step = lane_count(high)
    result_low = turned_sum(low, turned)
    load_turned(high, 0, step, step, turned, 0)
    result = load(turned, 0)
    for k in range(step, step * step, step):
        result, error = two_sum(result, load(turned, k))
        result_low = result_low + error
    return result, result_low


@inline
def maxima(x: Any, first: int, length: int, count: int, square: Any, turned: Any, stride: Any = None) -> Any:
    """The greatest entries of `count` rows, one in each lane; the rest is memory for two squares.

    The rows are `stride` apart, or consecutive if it is None.
    """
    step, stride = lane_count(x), either(stride, length)
    for i in range(count):
        store(square, i * step, highest(x, first + i * stride, length, None))
    load_turned(square, 0, step, step, turned, 0)
    m = load(turned, 0)
    for k in range(step, step * step, step):
        m = maximum(load(turned, k), m)
    return m


@inline
def prefetch_row(x: Any, begin: int, classes: int, stride: Any = None) -> None:
    """Prefetch a short row; if rows lie `stride` apart, also the beginning of a longer one, and a row's last line.

    Rows apart and those of more than `AHEAD_LIMIT` classes come into the second cache: the first one waits for few
    buffers, which loads need as well. So does what lies between rows, if it is not longer than a row: memory is
    read twice as fast in one stretch as in pieces of a few lines.
    """
    step = lane_count(x)
    most = SECOND_LINES * step
    if stride is not None and stride != classes:
        length = classes
        if classes < stride <= 2 * classes:
            length = stride
        for k in range(begin, begin + min(length, most), step):
            prefetch_second(x, k)
        prefetch_second(x, begin + classes - 1)
    elif classes <= AHEAD_LIMIT:
        for k in range(begin, begin + classes, step):
            prefetch(x, k)
    elif classes <= most:
        for k in range(begin, begin + classes, step):
            prefetch_second(x, k)


@inline
def measure(
    x: Any,
    first: int,
    length: int,
    count: int,
    beta: Any,
    table: Any,
    terms: Any,
    exact: Any,
    stride: Any = None,
) -> None:
    """Store the `statistics` of `count` rows in `table`, one row in each lane, for `measured`.

    The rows are `stride` apart, or consecutive if it is None.

    Their terms are stored in `terms`, where rows are consecutive, unless it is None. Other lanes keep old numbers,
    which are never read: clearing them for each group would be a call of memset on machines with vectors of 32
    bytes.
    """
    step, distance = lane_count(x), either(stride, length)
    square = step * step
    ties = after(table, STATISTICS * step)
    high, low, turned = after(ties, square), after(ties, 2 * square), after(ties, 3 * square)
    m = maxima(x, first, length, count, high, turned, stride)
    shift, bias = reference(m, beta)
    top = top_term(m, shift, bias, beta)
    store(table, 0, m)
    store(table, step, shift)
    store(table, 2 * step, bias)
    store(table, 3 * step, top[0])
    store(table, 4 * step, top[1])
    for i in range(count):
        row = (load_scalar(table, i), load_scalar(table, step + i), load_scalar(table, 2 * step + i))
        at = first + i * distance
        if terms is None:  # else the block does it
            prefetch_row(x, at + count * distance, length, stride)
        sums = lane_sums(x, at, length, row[0], beta, row[1], row[2], terms, first + i * length, exact)
        store(ties, i * step, sums[0])
        store(high, i * step, sums[1])
        store(low, i * step, sums[2])
    store(table, 5 * step, turned_sum(ties, turned))
    rest, rest_low = turned_pair(high, low, turned)
    rest, rest_low = two_sum(rest, rest_low)
    store(table, 6 * step, rest)
    store(table, 7 * step, rest_low)


@inline
def measure_short(x: Any, length: int, count: int, beta: Any, table: Any, terms: Any, stride: int) -> None:
    """`measure` for rows of at most `COLUMN_LIMIT` classes, by `short_statistics`."""
    step = lane_count(x)
    for i in range(count):
        stats = short_statistics(after(x, i * stride), 0, length, beta, behind(terms, i * length))
        m, shift, bias, top, ties, rest, rest_low, _, _ = stats
        store_scalar(table, i, m)
        store_scalar(table, step + i, shift)
        store_scalar(table, 2 * step + i, bias)
        store_scalar(table, 3 * step + i, top[0])
        store_scalar(table, 4 * step + i, top[1])
        store_scalar(table, 5 * step + i, ties)
        store_scalar(table, 6 * step + i, rest)
        store_scalar(table, 7 * step + i, rest_low)


@inline
def measured(table: Any, i: int) -> Any:
    """The `statistics` of row i of the last group of `measure`."""
    step = lane_count(table)
    top = load_scalar(table, 3 * step + i), load_scalar(table, 4 * step + i)
    return RowStatistics(
        load_scalar(table, i),
        load_scalar(table, step + i),
        load_scalar(table, 2 * step + i),
        top,
        load_scalar(table, 5 * step + i),
        load_scalar(table, 6 * step + i),
        load_scalar(table, 7 * step + i),
        None,
        None,
    )


@inline
def prepare(
    x: Any, table: Any, first: int, count: int, rows: Any, options: Any, inverse: Any, log: Any, head: Any
) -> None:
    """Compute for all rows of a group at once what `prepared` returns for each."""
    step = lane_count(table)
    stats = stored_statistics(table)
    m, shift, bias, top, ties, rest, rest_low, _, _ = stats
    logs = log_of_others(stats)
    ready = reciprocal(stats)
    if log is not None:
        store(table, 8 * step, logs[0])
        store(table, 9 * step, logs[1])
    if head is not None:
        given, given_log = unless_none(inverse, ready), unless_none(log, logs)
        known = RowStatistics(m, shift, bias, top, ties, rest, rest_low, given, given_log)
        ready = head(x, known, first, count, rows, options)
    if inverse is not None:
        scale, scale_low, unit, least, nothing, _, most = ready
        store(table, 10 * step, scale)
        store(table, 11 * step, scale_low)
        store(table, 12 * step, unit)
        store(table, 13 * step, least)
        store(table, 14 * step, nothing)
        store(table, 15 * step, most)


@inline
def prepared(table: Any, i: int, inverse: Any, log: Any) -> Any:
    """The `measured` statistics of row i, with what `prepare` has computed."""
    step = lane_count(table)
    m, shift, bias, top, ties, rest, rest_low, _, _ = measured(table, i)
    logs = load_scalar(table, 8 * step + i), load_scalar(table, 9 * step + i)
    scale, scale_low = load_scalar(table, 10 * step + i), load_scalar(table, 11 * step + i)
    unit, least = load_scalar(table, 12 * step + i), load_scalar(table, 13 * step + i)
    nothing, most = load_scalar(table, 14 * step + i), load_scalar(table, 15 * step + i)
    ready = unless_none(inverse, Reciprocal(scale, scale_low, unit, least, nothing, m, most))
    return RowStatistics(m, shift, bias, top, ties, rest, rest_low, ready, unless_none(log, logs))


@inline
def total(stats: Any) -> Any:
    """The sum of all terms as a pair."""
    product, product_low = two_product(stats.ties, stats.top[0])
    high, error = two_sum(stats.rest, product)
    return high, error + (stats.rest_low + muladd(stats.ties, stats.top[1], product_low))


@inline
def _margin(like: Any) -> Any:
    """4 u."""
    return number(like, 2.0**-22) if is_single(like) else number(like, 2.0**-51)


@inline
def bounded(value: Any, least: Any, most: Any) -> Any:
    """`value`, clipped to least .. most."""
    return maximum(-maximum(-value, -most), least)


@inline
def two_to_the(exponent: Any) -> Any:
    """2**exponent, or the nearest power of two that is a normal number."""
    most = most_power(exponent)
    return shift_to_exponent(biased(exponent, number(exponent, 0.0)) + bounded(exponent, -most, most))


@inline
def reciprocal(stats: Any) -> Any:
    """1 / (sum of all terms) as a pair, in units of `unit`, and what else `probability_of` needs.

    `least` is the sum times the smallest normal number, less the 4 u that a term may be too small. A smaller term
    has a probability below the smallest normal number. Its product would take the processor's slow path for
    denormal results, 150 cycles for each; so its probability is `nothing`: 0, or NaN in a row whose sum is NaN.
    """
    return _reciprocal(stats.inverse, stats)


@inline
def _reciprocal(ready: Any, stats: Any) -> Any:
    if ready is not None:
        return ready
    high, low = total(stats)
    lifted = number(high, UNIT_32) if is_single(high) else number(high, UNIT_64)
    inverse = number(high, 1.0) / high
    scale = inverse * lifted
    scale_low = muladd(-scale, low, fma(-scale, high, lifted)) * inverse
    unit = filled(high, 1 / UNIT_32) if is_single(high) else filled(high, 1 / UNIT_64)
    edge = high * shift_to_exponent(smallest_power(high))
    least = muladd(-edge, _margin(high), edge)
    top, top_low = stats.top
    highest = muladd(top, scale, muladd(top, scale_low, top_low * scale)) * unit
    return Reciprocal(scale, scale_low, unit, least, scale * number(high, 0.0), stats.m, highest)


@inline
def others(stats: Any) -> Any:
    """s', the sum of all terms but one of the greatest, divided by the greatest, as a pair."""
    ratio, ratio_low = quick_quotient(stats.rest, stats.rest_low, stats.top[0], stats.top[1])
    high, error = two_sum(stats.ties - number(ratio, 1.0), ratio)
    return high, error + ratio_low


@inline
def terms_of_others(stats: Any) -> Any:
    """The sum of all terms but one of the greatest, as a pair."""
    top, top_low = stats.top
    ties = stats.ties - number(top, 1.0)
    product, error = two_product(ties, top)
    high, low = two_sum(stats.rest, product)
    return high, low + (stats.rest_low + muladd(ties, top_low, error))


@inline
def complement(stats: Any, inverse: Any) -> Any:
    """1 - p of a greatest entry, times the weight in `inverse`: the sum of the others' terms times `inverse`.

    This is accurate where p is close to 1 and the subtraction 1 - p is not.
    """
    high, low = terms_of_others(stats)
    value = muladd(high, inverse.scale, muladd(high, inverse.scale_low, low * inverse.scale)) * inverse.unit
    return select_less(high, inverse.least, inverse.nothing, value)


@inline
def lifted_complement(stats: Any, inverse: Any) -> Any:
    """2**LIFT times `complement`, which is a normal number wherever a term is."""
    high, low = terms_of_others(stats)
    return muladd(high, inverse.scale, muladd(high, inverse.scale_low, low * inverse.scale))


@inline
def exponent_of(value: Any) -> Any:
    """About the binary exponent of |value|, bounded so that 2**-exponent is a normal number."""
    exponent, _ = split_exponent(absolute(value))
    return bounded(exponent, -most_power(value), most_power(value))


@inline
def weighted(inverse: Any, weight: Any, weight_low: Any, power: Any) -> Reciprocal:
    """`reciprocal` times ``(weight + weight_low) * 2**power``; powers of two go into `unit` while it is normal.

    So no entry with a normal result is flushed to 0, down to probabilities of 2**-126-LIFT.
    """
    exponent = exponent_of(weight)
    less = two_to_the(-exponent)
    factor, factor_low = weight * less, weight_low * less
    all_of_it = exponent + power
    into_unit = bounded(all_of_it, lift_of(weight) - most_power(weight), most_power(weight))
    left = two_to_the(all_of_it - into_unit)
    product, error = two_product(inverse.scale, factor)
    low = error + muladd(inverse.scale, factor_low, inverse.scale_low * factor)
    smallest = shift_to_exponent(smallest_power(weight))
    least = maximum(inverse.least / absolute(factor) * two_to_the(-all_of_it), smallest)
    highest = muladd(inverse.highest, factor, inverse.highest * factor_low) * two_to_the(into_unit) * left
    nothing = select_equal(weight, weight, inverse.nothing, weight)  # a NaN weight makes NaN of a p of 0
    unit = inverse.unit * two_to_the(into_unit)
    return Reciprocal(product * left, low * left, unit, least, nothing, inverse.m, highest)


@inline
def spared(weight: Any, value: Any) -> Any:
    """`value`, or 0 where the weight is 0, even if the value is NaN or infinite."""
    zero = number(weight, 0.0)
    return select_equal(weight, zero, zero, value)


@inline
def add(sums: Any, value: Any) -> Any:
    """The running sum (a pair) plus one value."""
    high, error = two_sum(sums[0], value)
    return high, sums[1] + error


@inline
def log_of_others(stats: Any) -> Any:
    """log(1 + s'), the log-sum-exp minus the greatest entry, as a pair with a small relative error."""
    return _log_of_others(stats.log, stats)


@inline
def _log_of_others(ready: Any, stats: Any) -> Any:
    if ready is not None:
        return ready
    high, low = others(stats)
    argument, error = two_sum(number(high, 1.0), high)
    return log_pair(argument, error + low)


@inline
def log_of_sum(stats: Any) -> Any:
    """lse = m + log(1 + s'); m if m is infinite; NaN if the row holds a NaN."""
    m, rest = stats.m, stats.rest
    high, low = log_of_others(stats)
    total, error = two_sum(m, high)
    value = total + (error + low)
    infinite = select_equal(rest, rest, m, rest)
    unbounded = select_equal(m - m, number(m, 0.0), number(m, 0.0), number(m, 1.0))
    return select_equal(unbounded, number(m, 1.0), infinite, value)


@inline
def load_tile(x: Any, tile: Any, first: int, classes: int, inner: int, count: int, stride: Any = None) -> None:
    """Copy class k of `count` rows, the first of them at flat offset `first`, to vector k of `tile`.

    If `stride` is not None, it is the distance of two rows where `inner` is 1. Where `inner` is above 1, `count`
    may be several vectors' worth: then the tile holds one stretch of `classes` vectors after the other, and memory
    is read in longer runs.
    """
    step, distance = lane_count(x), either(stride, classes)
    zero = number(x, 0.0)
    if inner == 1:
        if count < step or classes == 1:
            for k in range(classes):
                store(tile, k * step, gather(x, first + k, distance, count, zero))
        elif 2 * classes <= step and distance == classes:
            load_dense(x, first, classes, tile, 0)
        else:
            for k in range(0, classes, step):
                load_turned(x, first + k, distance, min(step, classes - k), tile, k * step)
        return
    full = count // step
    part = count - full * step
    for k in range(classes):
        source, target = first + k * inner, k * step
        for _ in range(full):
            store(tile, target, load(x, source))
            source += step
            target += classes * step
        if part > 0:
            store(tile, target, load_part(x, source, part, zero))


@inline
def store_tile(tile: Any, y: Any, first: int, classes: int, inner: int, count: int, past: bool) -> None:
    """The inverse of `load_tile`. `past`: write past the caches; then whole vectors must begin on cache lines."""
    step = lane_count(y)
    if inner == 1:
        if count < step or classes == 1:
            for k in range(classes):
                scatter(y, first + k, classes, count, load(tile, k * step))
        elif 2 * classes <= step:
            store_dense(y, first, classes, tile, 0)
        else:
            # From the last classes to the first: what is written too much is overwritten.
            for k in range((classes - 1) // step * step, -1, -step):
                store_turned(y, first + k, classes, min(step, classes - k), tile, k * step)
        return
    full = count // step
    part = count - full * step
    for k in range(classes):
        source, target = k * step, first + k * inner
        for _ in range(full):
            if past:
                store_past(y, target, load(tile, source))
            else:
                store(y, target, load(tile, source))
            source += classes * step
            target += step
        if part > 0:
            store_part(y, target, part, load(tile, source))


@inline
def clear(table: Any) -> None:
    """Fill a table for `measure` with zeros, which `measured` returns if nothing was measured."""
    step = lane_count(table)
    for k in range(TABLE):
        store(table, k * step, broadcast(number(table, 0.0)))


@inline
def label_of(labels: Any, row: int, classes: int) -> Any:
    """The label of a row, read once; 0 if it is out of range, as when it was changed after the caller's check."""
    label = load_scalar(labels, row)
    return label if 0 <= label < classes else 0


@inline
def target_of(x: Any, offset: int, classes: int, labels: Any, row: int) -> Any:
    """The entry of x at the label of a row that begins at `offset`."""
    return load_scalar(x, offset + label_of(labels, row, classes))


@inline
def tile_targets(tile: Any, offset: int, classes: int, labels: Any, row: int, count: int, targets: Any) -> None:
    """Store the entries at the labels of a tile's rows in the vector `targets`."""
    step = lane_count(tile)
    if classes <= ONE_HOT_LIMIT:
        label = lane_labels(tile, labels, row, count)
        index = broadcast(number(tile, 0.0))
        target = index
        for k in range(0, classes * step, step):
            target = select_equal(label, index, load(tile, offset + k), target)
            index = index + number(tile, 1.0)
        store(targets, 0, target)
        return
    for lane in range(count):
        label = label_of(labels, row + lane, classes)
        store_scalar(targets, lane, load_scalar(tile, offset + label * step + lane))


@inline
def either(option: Any, default: Any) -> Any:
    """`option`, or `default` if `option` is None, which its type decides."""
    if option is None:
        return default
    return option


@inline
def tile_statistics(
    tile: Any, offset: int, length: int, beta: Any, given: Any, keep: Any, exact: Any, ahead: Any = None
) -> RowStatistics:
    """The `statistics` of a tile; its terms replace its entries unless `keep` is None.

    They are zeros if `given` is not None: then the block does not use them.
    """
    zero = broadcast(number(tile, 0.0))
    if given is None:
        return statistics(tile, offset, length, None, beta, unless_none(keep, tile), exact, ahead)
    if ahead is not None:
        prefetch_tile(ahead, length // lane_count(tile))
    return RowStatistics(zero, zero, zero, (zero, zero), zero, zero, zero, None, None)


@inline
def tile_memory(room: Any, near: Any) -> Any:
    """`room`, or `near` if it has size 0."""
    if size(room) == 0:
        return near
    return room


@inline
def behind(array: Any, offset: int) -> Any:
    """The memory from an offset on; None if the array is None."""
    if array is None:
        return array
    return after(array, offset)


@inline
def terms_at(keep: Any, over: bool, room: Any, y: Any, offset: int) -> Any:
    """Memory for the terms of the rows that begin at `offset`: that of y, or `room` if y lies over v."""
    if keep is None:
        return keep
    if over:
        return room
    return after(y, offset)


class Plan(NamedTuple):
    """How the walk in columns goes through a block."""

    half: Any
    """Where the second half of the working memory begins."""
    widest: Any
    """Rows of a tile."""
    strip: Any
    """Whether tiles are narrow and prefetched."""
    past: Any
    """Whether results are written past the caches."""


# The parts of `traverse` that do not depend on the building block are functions of their own: Numba compiles them
# once for many kernels.


@inline
def _prepare_group(
    x: Any,
    source: Any,
    first: int,
    count: int,
    classes: int,
    beta: Any,
    given: Any,
    picks: Any,
    table: Any,
    terms: Any,
    few: Any,
    alone: bool,
    exact: Any,
    stride: int,
) -> None:
    """The entries at the labels of a group of rows, and their statistics."""
    if picks is not None:
        for i in range(count):
            target = target_of(x, (first + i) * stride, classes, picks.labels, first + i)
            store_scalar(picks.targets, lane_count(x) + i, target)
    if few is not None and alone:
        measure_short(source, classes, count, beta, table, terms, stride)
    elif given is None:
        measure(source, 0, classes, count, beta, table, terms, exact, stride)


@inline
def distance_of(shape: Any, apart: Any) -> Any:
    """The distance of two rows of x, where `inner` is 1: the classes, unless the shape has it; see `APART`."""
    outer, classes, _ = shape
    if apart is None:
        return classes
    return outer - APART if outer > APART else classes


@inline
def plan_for(tile: Any, v: Any, y: Any, classes: int, inner: int) -> Plan:
    """The `Plan` for blocks of this shape."""
    step = lane_count(tile)
    half = size(tile) if v is None else size(tile) // 2
    strip = inner > 1 and 0 < classes <= STRIP_LIMIT
    widest = step if inner == 1 else half // (max(classes, 1) * step) * step
    if strip:
        widest = min(widest, min(2 * STRIP_LIMIT // classes, STRIPS_AHEAD) * step)
    past = False
    if y is not None:
        past = inner > 1 and inner % step == 0 and size(y) >= PAST_CACHES
    return Plan(half, widest, strip, past)


@inline
def read_tile(
    x: Any,
    v: Any,
    y: Any,
    tile: Any,
    other: Any,
    row: int,
    stop: int,
    classes: int,
    inner: int,
    plan: Plan,
    stride: Any = None,
) -> Any:
    """Copy the next tile into working memory; returns its first offset, its rows, and what `Ahead` begins with.

    The offset is that in v and y, where rows are consecutive. Those of x are `stride` apart unless it is None.
    """
    _, widest, strip, past = plan
    step = lane_count(x)
    within = row % inner
    count = min(widest, stop - row) if inner == 1 else min(widest, min(stop - row, inner - within))
    first = (row - within) * classes + within
    if y is not None and past:
        ahead = lanes_to_line(y, first)
        count = min(count, ahead) if ahead > 0 else count
    beside = (row + count) % inner
    following = (row + count - beside) * classes + beside
    if strip:
        following = first + STRIPS_AHEAD * step
        if within + STRIPS_AHEAD * step >= inner:
            following += (classes - 1) * inner
    if stride is not None and inner == 1:
        following = (row + count) * stride
    load_tile(x, tile, row * stride if stride is not None and inner == 1 else first, classes, inner, count, stride)
    if v is not None:
        load_tile(v, other, first, classes, inner, count)
    if inner == 1 and y is not None:
        for k in range(first, first + classes * step, step):
            prefetch_written(y, k)
    return first, count, following


@inline
def _read_wave(
    x: Any,
    v: Any,
    tile: Any,
    other: Any,
    row: int,
    stop: int,
    classes: int,
    inner: int,
    plan: Plan,
    wave: int,
    stride: int,
) -> Any:
    """`read_tile` for a walk without results of the size of x; of contiguous rows, as many as a wave has."""
    if inner > 1:
        return read_tile(x, v, None, tile, other, row, stop, classes, inner, plan)
    step, first, count = lane_count(x), row * classes, min(wave, stop - row)
    for done in range(0, count, step):
        at, lanes = done * classes, min(step, count - done)
        load_tile(x, after(tile, at), (row + done) * stride, classes, 1, lanes, stride)
        if v is not None:
            load_tile(v, after(other, at), first + at, classes, 1, lanes)
    return first, count, (row + count) * stride


@inline
def _traverse_waves(
    block: Any,
    start: int,
    stop: int,
    shape: Any,
    room: Any,
    x: Any,
    v: Any,
    y: Any,
    rows: Any,
    options: Any,
    beta: Any,
    given: Any,
    picks: Any,
    keep: Any,
    exact: Any,
    apart: Any,
) -> None:
    """The walk in columns of `traverse` for logarithms of sums, without results of the size of x.

    What a row needs once is a chain of dependent operations: its greatest entry and reference before the sums,
    quotient and logarithm after them. So several vectors of short rows pass the first part, the statistics, and
    then the second, the block: the processor works on several chains at once. One thread of a Zen 4, float64, with
    AVX2 and with AVX-512: logsumexp of 3 classes takes 12 and 8 % less time, of 10 classes 12 and 8 %.
    """
    _, classes, inner = shape
    step, stride = lane_count(x), distance_of(shape, apart)
    tile = tile_memory(room, scratch(x, TWO_TILES))
    plan = plan_for(tile, v, None, classes, inner)
    other = unless_none(v, after(tile, plan.half))
    out = unless_none(y, tile)  # None; Numba also compiles this, but does not run it, for kernels with a y
    # `load_tile` writes up to a vector's lanes of classes at once, so that it needs memory behind the last ones.
    wave = max(min(WAVE, min(plan.half // step - step, WAVE_VECTORS) // max(classes, 1)), 1) * step
    stored, targets = scratch(x, WAVE_STATISTICS), scratch(x, WAVE)
    row = start
    while row < stop:
        _, count, following = _read_wave(x, v, tile, other, row, stop, classes, inner, plan, wave, stride)
        for begun in range(0, count, wave):
            end = min(begun + wave, count)
            for done in range(begun, end, step):
                at, slot = done * classes, done - begun
                if picks is not None:
                    lanes = min(step, count - done)
                    tile_targets(tile, at, classes, picks.labels, row + done, lanes, after(targets, slot))
                nearby = following + (done * stride if inner == 1 else done)
                ahead = rows_ahead(x, v, nearby, classes, inner, stride, apart)
                stats = tile_statistics(tile, at, classes * step, beta, given, keep, exact, ahead)
                store_statistics(after(stored, slot * STATISTICS), stats)
            for done in range(begun, end, step):
                slot = done - begun
                if picks is not None:
                    store(picks.targets, 0, load(targets, slot))
                place = Place(done * classes, classes * step, None, row + done, min(step, count - done))
                block(tile, other, out, place, stored_statistics(after(stored, slot * STATISTICS)), rows, options)
        row += count


@inline
def traverse(
    block: Any,
    start: int,
    stop: int,
    shape: Any,
    room: Any,
    x: Any,
    v: Any,
    y: Any,
    rows: Any,
    options: Any,
    beta: Any = None,
    given: Any = None,
    picks: Any = None,
    keep: Any = None,
    few: Any = None,
    over: bool = False,
    inverse: Any = None,
    log: Any = None,
    head: Any = None,
    exact: Any = None,
    together: Any = None,
    second: Any = None,
    apart: Any = None,
) -> None:
    """Run `block` over rows start .. stop, counted through `outer` and `inner`, of blocks of this shape.

    `room` is memory for tiles: a tile of x, and one of v if there is one, each for at least one vector's rows. It
    may have size 0 where `inner` is 1; then the tiles are on the stack. `beta` is 1/T for the statistics. If
    `given` is not None, the block does not use statistics, and they are zeros. `picks` are `Picks` or None; their
    first vector holds the entries at the labels of the block's rows. If `keep` is not None, the block gets the
    terms of its rows, as for `probability_of`, instead of the logits; then `given` must be None. They are kept
    where y will be. If y lies over v, `over` is True, and `room` has memory for the terms of a group of rows of
    more than `COLUMN_LIMIT` classes: as many rows as lanes, or one row of more than `GROUP_LIMIT` classes. If
    `few` is not None, up to `FEW` short rows are computed one by one, which is faster and gives the same bits;
    then v and `given` must be None. If `inverse` (`log`) is not None, the block uses the `reciprocal` (or
    `log_of_others`) of the statistics, which is then computed for a row in each lane. So is what else a row needs
    once, by ``head(x, stats, first, count, rows, options)``, which returns the `Reciprocal` for the block; it is
    not called where the lanes of the block are rows. `exact` is that of `lane_sums`; with v it always holds.
    With `given`, ``together(x, first, count, classes, rows, options)`` may be called instead of `block`, for as
    many longer rows as there are lanes; x begins with the first of them. If `second` is not None, v is
    a second output, which is not read; with `keep`, the block must write y last. If `apart` is not None, the rows
    of x may lie apart, see `distance_of`; there must be no v then, and no `together`.
    """
    _, classes, inner = shape
    step, stride = lane_count(x), distance_of(shape, apart)
    read = if_none(second, v)
    wanted = either(read, exact)
    alone = False
    if few is not None:
        alone = stop - start <= FEW and classes <= COLUMN_LIMIT
    if inner == 1 and (alone or classes > COLUMN_LIMIT):
        table = scratch(x, TABLE)
        clear(table)
        group = step if classes <= GROUP_LIMIT else 1
        if together is not None:
            group = step
        for first in range(start, stop, group):
            count, begin = min(group, stop - first), first * classes
            terms, source = terms_at(keep, over, room, y, begin), after(x, first * stride)
            _prepare_group(
                x, source, first, count, classes, beta, given, picks, table, terms, few, alone, wanted, stride
            )
            if together is not None:
                together(source, first, count, classes, rows, options)
                continue
            prepare(x, table, first, count, rows, options, inverse, log, head)
            for i in range(count):
                row = first + i
                if keep is not None or given is not None:  # else `measure` has done it
                    prefetch_row(x, (row + group) * stride, classes, stride)
                if picks is not None:
                    store_scalar(picks.targets, 0, load_scalar(picks.targets, step + i))
                stats = prepared(table, i, inverse, log)
                place, logits = row_at(i * classes, classes, row), after(source, i * (stride - classes))
                block(either(terms, logits), behind(v, begin), behind(y, begin), place, stats, rows, options)
        return
    if y is None and log is not None:
        _traverse_waves(
            block, start, stop, shape, room, x, v, y, rows, options, beta, given, picks, keep, wanted, apart
        )
        return
    tile = tile_memory(room, scratch(x, TWO_TILES))
    plan = plan_for(tile, v, y, classes, inner)
    other, out = unless_none(v, after(tile, plan.half)), unless_none(y, tile)
    row = start
    while row < stop:
        first, count, following = read_tile(x, read, y, tile, other, row, stop, classes, inner, plan, stride)
        done = 0
        while done < count:
            lanes = min(step, count - done)
            at = done * classes
            if picks is not None:
                tile_targets(tile, at, classes, picks.labels, row + done, lanes, picks.targets)
            ahead = rows_ahead(x, read, following + done, classes, inner, stride, apart)
            stats = tile_statistics(tile, at, classes * step, beta, given, keep, wanted, ahead)
            place = Place(at, classes * step, None, row + done, lanes)
            block(tile, other, out, place, stats, rows, options)
            done += lanes
        if y is not None:
            store_tile(tile, y, first, classes, inner, count, plan.past)
        if second is not None:
            past = plan.past and lanes_to_line(v, first) == 0
            store_tile(other, v, first, classes, inner, count, past)
        row += count
    if plan.past:
        fence()
