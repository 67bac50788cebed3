"""Sizes on which kernels and their callers agree, in a module that does not import Numba."""

VECTOR_BYTES = 64
"""16 float32 or 8 float64: one cache line, one AVX-512 register, two of AVX2 or four of NEON."""
COLUMN_LIMIT = 64
"""Rows of up to this many contiguous classes are walked in columns (at the limit both walks are equally fast)."""
GROUP_LIMIT = 2048
"""Longer rows are walked one by one, because a group of them would not fit into the cache."""
