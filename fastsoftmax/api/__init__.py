"""The public functions: signatures and docstrings by hand, checks, and the short way for small calls."""
