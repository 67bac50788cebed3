"""Compiled callers for the tests, with the overloads registered also in a mere checkout."""

from numba import njit

import fastsoftmax._overloads  # an installed package has an entry point for that, see test_njit.py

__all__ = ["fastsoftmax", "njit"]
