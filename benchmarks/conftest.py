"""Give every library as many threads as ours, before the first of them is imported."""

import importlib.util

from fastsoftmax.arrays.threads import max_threads
from fastsoftmax.tools.bench import inputs

inputs.prepare(max_threads())
collect_ignore = [] if importlib.util.find_spec("pytest_benchmark") else ["test_speed.py"]
