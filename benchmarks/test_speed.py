"""Every case under pytest-benchmark: ``pytest benchmarks -k 'softmax and 10000x1000 and float32'``.

One group for each function, shape and dtype; the yardstick is in it. Without ``-k`` it takes an hour: the tables
of docs/guide/speed.md and RESULTS.md come from report.py, which has the libraries take turns.
"""

import pytest

from fastsoftmax.tools.bench import startup
from fastsoftmax.tools.bench.cases import DTYPES, FUNCTIONS, cases, check
from fastsoftmax.tools.bench.inputs import Inputs
from fastsoftmax.tools.bench.libraries import NotOfferedError
from fastsoftmax.tools.bench.session import YARDSTICK

CASES = [
    pytest.param(function, shape, dtype, library, id=f"{function}-{'x'.join(map(str, shape))}-{dtype}-{library}")
    for function, setups in cases().items()
    for shape in FUNCTIONS[function].shapes
    for dtype in DTYPES
    for library in (YARDSTICK, *setups)
]
_latest = []


def inputs_for(shape, dtype):
    """The arrays of a case. Those of the latest one are kept, because making them takes seconds."""
    if not _latest or (_latest[0].shape, _latest[0].dtype) != (shape, dtype):
        _latest[:] = [Inputs(shape, dtype)]
    return _latest[0]


@pytest.mark.parametrize(("function", "shape", "dtype", "library"), CASES)
def test_speed(benchmark, function, shape, dtype, library):
    inputs = inputs_for(shape, dtype)
    benchmark.group = f"{function} {'x'.join(map(str, shape))} {dtype}"
    if library == YARDSTICK:
        benchmark(FUNCTIONS[function].setup(inputs))
        return
    setups = cases()[function]
    try:
        call = setups[library](inputs)
        theirs = call()
    except NotOfferedError:
        pytest.skip(f"{library} has no {function} for this shape")
    if isinstance(theirs, tuple):
        theirs = tuple(part.copy() if hasattr(part, "copy") else part for part in theirs)
    elif hasattr(theirs, "copy"):
        theirs = theirs.copy()
    check(function, library, setups["fastsoftmax"](inputs)(), theirs, inputs.dtype)
    benchmark(call)


@pytest.mark.parametrize("name", [name for name, start in startup.STARTS.items() if start.installed()])
def test_start(benchmark, tmp_path, name):
    """A new process: import, compilation or loading, first call."""
    benchmark.group = "start of a process"
    startup.once(name, tmp_path)  # fills the cache of those that have one
    benchmark.pedantic(startup.once, (name, tmp_path), rounds=3)
