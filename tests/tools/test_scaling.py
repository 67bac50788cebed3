"""The simulation of threads in benchmarks/scaling.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import scaling

WAKE = scaling.Wake(5e-6, 5e-5)


@pytest.mark.parametrize("wake", [None, WAKE])
@pytest.mark.parametrize("shape", scaling.SHAPES)
def test_no_more_threads_than_blocks_and_no_miracles(shape, wake):
    """A call is never faster than all threads at work from the first moment, and one thread takes its own time."""
    case = scaling.Case(*shape, shape[0] * shape[1] * 5e-10)
    assert scaling.simulate(case, 1, wake) == case.seconds
    for count in (2, 4, 16):
        assert scaling.simulate(case, count, wake) > case.seconds / count


def test_known_schedules():
    """Two threads share equal blocks; a helper that comes after the end does nothing."""
    large = scaling.Case(1024, 1024, 1e-3)
    two = scaling.simulate(large, 2)
    assert two == pytest.approx(5e-4, rel=0.02)
    late = scaling.Case(2048, 100, 2e-5)
    blocks = -(-2048 // scaling.threads.rows_of_block(2048, 204_800, 2))
    alone = late.seconds + blocks * scaling.TAKE + WAKE.call
    assert scaling.simulate(late, 2, WAKE) == pytest.approx(alone)


def test_helpers_are_not_woken_for_little_work():
    """As in the library; those that wait share it."""
    small = scaling.Case(1000, 100, 5e-5)
    assert scaling.simulate(small, 16, WAKE) == small.seconds
    assert scaling.simulate(small, 16) < small.seconds / 4


def test_memory_limits_large_arrays():
    case = scaling.Case(100_000, 1_000, 0.05)
    assert scaling.speedup(case, 16) == pytest.approx(scaling.BANDWIDTH, rel=0.1)


def test_where_the_curve_bends():
    """By memory, by the least work of a thread, by the blocks, or nowhere."""
    assert scaling.bend(scaling.Case(100_000, 1_000, 0.05)) == (8, "memory")  # 6 / 9 < 0.7 < 6 / 8
    assert scaling.bend(scaling.Case(1000, 100, 5e-5)) == (
        100_000 // (scaling.threads.SHARED_WORK // 2),
        "little work",
    )
    assert scaling.bend(scaling.Case(4, 100_000, 2e-4)) == (2, "blocks")  # three threads take as long as two
    assert scaling.bend(scaling.Case(6400, 80, 3e-4)) == (16, "")


def test_a_wake_up_takes_time():
    """The helper does not work before it is called."""
    wake = scaling.wake_up(20)
    assert 0 < wake.call < 0.1
    assert 0 < wake.arrival < 0.1


def test_the_table_and_the_summary():
    """What was measured is bold, and the simulation beside it; the rest is simulated."""
    case = scaling.Case(10_000, 1_000, 5e-3)
    found = [scaling.Line(case, {2: scaling.Timing(4e-3, 0.1, 9), 4: scaling.Timing(2e-3, 0.1, 9, waiting=0.9)})]
    *_, line = scaling.table(found, WAKE).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["10,000 x 1,000", "5,000 us"]
    assert cells[2] == f"**1.2** ({scaling.speedup(case, 2):.1f})"
    assert cells[3] == f"~**2.5** ({scaling.speedup(case, 4):.1f})"
    assert cells[4:-2] == [f"{scaling.speedup(case, count):.1f}" for count in scaling.SHOWN[2:]]
    assert cells[-2] == "8: memory"
    assert float(cells[-1]) < scaling.BANDWIDTH
    assert "10,000 x 1,000" in scaling.summary(found)
    assert "(bends at 8, memory)" in scaling.summary(found)
