"""What is compared: {function: {library: setup}}, where ``setup(inputs)`` gives the call that is timed.

The cases are part of the package, because ``fastsoftmax bench`` measures them wherever it is installed.
"""

from fastsoftmax.tools.bench.cases import DTYPES, FUNCTIONS, JACOBIAN_SHAPES, SHAPES, cases, check
from fastsoftmax.tools.bench.inputs import Inputs
from fastsoftmax.tools.bench.libraries import NotOfferedError

__all__ = ["DTYPES", "FUNCTIONS", "JACOBIAN_SHAPES", "SHAPES", "Inputs", "NotOfferedError", "cases", "check"]
