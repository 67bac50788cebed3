"""Read-only arrays of zeros that take no memory, for sizes beyond the memory of the machine."""

import math
import mmap

import numpy as np
import pytest

NORESERVE = 0x4000
"""Linux's flag for mappings without reserved memory, which may be larger than the memory."""


def zeros(shape, dtype):
    """A read-only array of zeros, which the system maps to a single page."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        pytest.skip("needs mmap of POSIX")
    dtype = np.dtype(dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    try:
        memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        pytest.skip(f"no address space for that: {error}")
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass
    return np.frombuffer(memory, dtype).reshape(shape)
