"""The size of the kernels' vectors, in a module that does not import Numba."""

VECTOR_BYTES = 64
"""16 float32 or 8 float64: one cache line, one AVX-512 register, two of AVX2 or four of NEON."""
