"""`njit` for the tests. The overloads are registered here, which an installed package does by its entry point."""

from numba import njit

import fastsoftmax.njit.overloads  # an installed package has an entry point for that, see njit/test_overloads.py

__all__ = ["fastsoftmax", "njit"]
