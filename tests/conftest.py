"""Which tests run, and the table of the worst errors that a run has seen."""

import gc
import os
from collections import defaultdict

import hypothesis
import numpy as np
import pytest

from fastsoftmax.arrays import threads
from fastsoftmax.runtime import cache, prebuilt
from fastsoftmax.runtime.numba_state import checks_bounds


def pytest_configure(config):
    """Hypothesis draws the same cases in every run, so that a failure repeats; new ones with ``-m slow``."""
    first = not hasattr(config, "workerinput")  # the process that starts the others
    if first and not config.option.collectonly:
        _build_library()
    if "slow" not in config.option.markexpr:
        hypothesis.settings.register_profile("repeatable", derandomize=True)
        hypothesis.settings.load_profile("repeatable")


def _build_library():
    """Make the library of the kernels under test, unless it is there: else every process would compile kernels.

    It is kept in the cache directory for the next run, with a hash of the sources. Where there is no linker, and
    with ``FASTSOFTMAX_PREBUILT=0`` or ``NUMBA_BOUNDSCHECK``, kernels are compiled when they are called.
    """
    level, unwanted = prebuilt.level(), os.environ.get("FASTSOFTMAX_PREBUILT") == "0" or checks_bounds()
    if level is None or unwanted or prebuilt.library() is not None:
        return
    from fastsoftmax.machine import library

    if library.linker() is None:
        return
    print("building the library of kernels, which takes a minute or two", flush=True)
    library.build((level,), cache.directory(), threads.usable_cpus(), lambda done, total: None)
    prebuilt.library.cache_clear()


def pytest_collection_modifyitems(config, items):
    """Exhaustive sweeps and rare, long cases run with ``-m slow`` only; a reduced form of each is always run.

    A test that compares times is run again if it fails, because other programs may have used the processor.
    """
    for item in items:
        if "timed" in item.keywords:
            item.add_marker(pytest.mark.flaky(reruns=3, reruns_delay=2))
        if isinstance(item, pytest.DoctestItem):  # an example for each public function
            item.add_marker(pytest.mark.smoke)
    if "slow" in config.option.markexpr:
        return
    slow = [item for item in items if "slow" in item.keywords]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if "slow" not in item.keywords]


@pytest.fixture(scope="module", autouse=True)
def _few_objects_to_collect():
    """Keep what there is before a module's tests from the garbage collector, which took a fifth of a run."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def record(request):
    """``record(function, dtype, ulps, bound)``: check an error, and put it into the table of the run."""

    def note(function, dtype, ulps, bound, detail=""):
        entry = [function, np.dtype(dtype).name, float(ulps), float(bound)]
        request.node.user_properties.append(("ulps", entry))
        assert ulps <= bound, f"{function} {np.dtype(dtype).name}: {ulps:.3f} ulp, allowed {bound}; {detail}"

    return note


def pytest_terminal_summary(terminalreporter):
    table = defaultdict(dict)
    bounds = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "call":
                continue
            for key, value in report.user_properties:
                if key == "ulps":
                    function, dtype, ulps, bound = value
                    table[function][dtype] = max(ulps, table[function].get(dtype, 0.0))
                    bounds[function] = max(bound, bounds.get(function, 0.0))
    if not table:
        return
    terminalreporter.section("worst error in ulps, by function and dtype")
    dtypes = sorted({dtype for row in table.values() for dtype in row})
    width = max(map(len, table))
    terminalreporter.write_line(" " * width + "".join(f"{dtype:>10}" for dtype in dtypes) + "   allowed")
    for function in sorted(table):
        cells = "".join(
            f"{table[function][dtype]:10.3f}" if dtype in table[function] else " " * 10 for dtype in dtypes
        )
        terminalreporter.write_line(f"{function:<{width}}{cells}{bounds[function]:10g}")
