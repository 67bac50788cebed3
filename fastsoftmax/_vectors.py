"""The size of a vector of the kernels, where code that must not import Numba finds it."""

VECTOR_BYTES = 64
"""16 float32 or 8 float64: one cache line, one AVX-512 register, two of AVX2 or four of NEON."""
