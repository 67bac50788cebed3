"""The simulation of threads in benchmarks/scaling.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import scaling


@pytest.mark.parametrize("waiting", [True, False])
@pytest.mark.parametrize("shape", scaling.SHAPES)
def test_no_more_threads_than_blocks_and_no_miracles(shape, waiting):
    """A call is never faster than all threads at work from the first moment, and one thread takes its own time."""
    case = scaling.Case(*shape, shape[0] * shape[1] * 5e-10)
    assert scaling.simulate(case, 1, waiting) == case.seconds
    for count in (2, 4, 16):
        assert scaling.simulate(case, count, waiting) > case.seconds / count


def test_known_schedules():
    """Two threads share equal blocks; a helper that comes after the end does nothing."""
    large = scaling.Case(1024, 1024, 1e-3)
    two = scaling.simulate(large, 2, waiting=True)
    assert two == pytest.approx(5e-4, rel=0.02)
    late = scaling.Case(320, 100, 2e-5)
    blocks = -(-320 // scaling.threads.rows_of_block(320, 32_000, 2))
    alone = late.seconds + blocks * scaling.TAKE + scaling.WAKE_CALL
    assert scaling.simulate(late, 2, waiting=False) == pytest.approx(alone)


def test_memory_limits_large_arrays():
    case = scaling.Case(100_000, 1_000, 0.05)
    assert case.seconds / scaling.simulate(case, 16, waiting=True) == pytest.approx(scaling.BANDWIDTH, rel=0.1)
