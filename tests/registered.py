"""Compiled callers for the tests, with the overloads registered also in a mere checkout."""

from numba import njit

import fastsoftmax.njit.overloads  # an installed package has an entry point for that, see njit/test_overloads.py

__all__ = ["fastsoftmax", "njit"]
