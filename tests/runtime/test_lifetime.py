"""What C code points to lives until the very end of a process."""

import child

# `sys` is cleared after all other modules. There are so many functions that memory which was freed before is gone.
FUNCTIONS = """
import sys
from fastsoftmax.machine.entry import entry
from fastsoftmax.runtime import prebuilt
address = entry("activations.softmax").address("d", "iiaaan", ".py")
sys.kept = [prebuilt.python_function(f"f{k}", address) for k in range(50_000)]
"""


def test_functions_are_freed_after_the_modules():
    child.run(FUNCTIONS)
