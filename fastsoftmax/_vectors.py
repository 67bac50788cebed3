"""Sizes that kernels and their callers share, in a module that does not import Numba."""

VECTOR_BYTES = 64
"""16 float32 or 8 float64: one cache line, one AVX-512 register, two of AVX2 or four of NEON."""

COLUMN_LIMIT = 64
"""Rows of up to this many contiguous classes are walked in columns (at the limit both walks are equally fast)."""
GROUP_LIMIT = 2048
"""Longer rows are walked one by one, because a group of them would not fit into the cache."""
PAIR_LIMIT = 1024
"""The same limit for two rows side by side, see `kernels.divergences`."""
APART = 1 << 48
"""If the outer size of a block is larger, its rows lie apart: two of them as many numbers as it is larger."""
FEW = 4
"""Up to this many short rows are faster one by one than in the lanes of a vector."""

SMALL = 1 << 13
"""Arrays with so many items at most are computed by the calling thread at once."""
ON_STACK = 256
"""Losses of small arrays with at most so many rows need no memory for the losses of the rows."""

HUGE = 1 << 20
"""Longer segments are cut into pieces. Shorter ones stay in the cache between the passes over them."""
PIECE = 1 << 16
"""The length of these pieces."""
COLUMNS = 5
"""The columns of the table of pieces, see `kernels.segments`."""

STRETCH = 256
"""Rows are cut into stretches of so many classes for random draws, see `kernels.sampling`."""
PARTS = 1024
"""A row is cut into at most so many parts for random draws: one or several stretches each, whose sums are kept."""
STRETCH_TABLE = 288
"""The memory of a stretch in a table for many draws: its terms, and a float64 for each of their vectors."""
LISTED = 160 << 10
"""Filters list at most so many classes: the working memory is then within 4 MB, also for float64."""
LINE = 16
"""The parts of the working memory for random draws begin at multiples of so many numbers."""

CHUNK = 512
"""The losses of single logits are added up in chunks of so many, at fixed places, see `kernels.binary`."""
LOSS, GRADIENT, CURVATURE, DERIVED = 0, 1, 2, 3
"""What the kernels of binary losses compute: loss, also gradient, second derivative, or both derivatives."""

BINARY = ("logaddexp", "xlogy", "rel_entr")
"""The ufuncs of two numbers."""

CAPPED = 1 << 14
"""So many logits of several rows are capped at a time (`kernels.capped`); longer rows one by one."""
CURVE_PARTS = 5
"""The parts of the working memory for second derivatives there, each for so many logits."""

SLAB = 512
"""The metrics of so many rows are computed before they are added (`kernels.metrics`)."""
SUM_WORDS = 72
"""The 64-bit words of an exact sum: its chunks, and the counters behind them."""
CHUNKS = 67
"""A chunk has 32 bits of the sum, and room for carries; the first has the bits from 2**-1075 on."""
ONES, INFINITE, NANS = CHUNKS, CHUNKS + 1, CHUNKS + 2
"""The words with the numbers of ones, of infinities and of NaN that were added."""
COUNT, WEIGHT, VALUES = 0, 1, 2
"""The first exact sums: the rows, their weights, and the first of the values of rows."""
METRICS, DERIVATIVES = 3, 4
"""How many values of a row are added: for metrics, and for the derivatives with respect to the temperature."""
HITS = VALUES + METRICS
"""The sum of the rows whose greatest class is right; behind it those of the top k, and three for each bin."""
