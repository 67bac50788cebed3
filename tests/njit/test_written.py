"""Functions whose code Python writes, beside the same functions of Python."""

import operator

import child
import numpy as np
import pytest
from numba import njit

from fastsoftmax.njit.arguments import compiled, empty, merged, readable, stack, writable
from fastsoftmax.njit.generated import always, number, require, stored
from fastsoftmax.njit.written import either, written


def caller(function):
    """A compiled function that calls a written one, and nothing else."""
    run = written(function)
    text = ", ".join(function.__code__.co_varnames[: function.__code__.co_argcount])
    return njit(eval(f"lambda {text}: run({text})", {"run": run}))


INTEGERS = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.and_, operator.or_]
FLOATS = [operator.add, operator.sub, operator.mul, operator.truediv]
COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]
SWAPPED = [operator.sub, operator.mul, operator.truediv, *COMPARISONS]


@pytest.mark.parametrize(
    "pairs",
    [[(7, 3), (3, 7), (5, 5)], [(0.5, 3.0), (2.0, 2.0), (np.nan, 1.0), (1.0, np.nan)]],
    ids=["int", "float"],
)
def test_operators(pairs):
    """Between two values, and between a value and a constant."""
    steps = [*(FLOATS if isinstance(pairs[0][0], float) else INTEGERS), *COMPARISONS]
    constant = pairs[1][1]

    @caller
    def both(a, b):
        return tuple([one(a, b) for one in steps]), tuple([one(a, constant) for one in steps]), -a

    turned = [one for one in steps if one in SWAPPED]

    @caller
    def swapped(a):
        return tuple([one(constant, a) for one in turned])

    for a, b in pairs:
        expected = [one(a, b) for one in steps], [one(a, constant) for one in steps], -a
        np.testing.assert_equal([list(both(a, b)[0]), list(both(a, b)[1]), both(a, b)[2]], list(expected))
        np.testing.assert_equal(list(swapped(a)), [one(constant, a) for one in turned])


def test_floats_keep_their_type():
    @caller
    def third(a, b):
        return a / b, a * 1.0

    one, other = third(np.float32(1), np.float32(3))
    assert one == np.float32(1) / np.float32(3)
    assert other == 1.0


def test_arrays_tuples_and_none():
    @caller
    def take(x, given, nothing):
        (a, b), c = given
        assert nothing is None
        assert (x.ndim, len(x.shape)) == (2, 2)
        return x.shape[:1], x.size, a, b[0], c, x[0], (x.shape[-1], nothing)

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert take(x, ((1, np.array([True, False])), 2.5), None) == ((2,), 6, 1, True, 2.5, 0.0, (3, None))


def test_what_it_calls():
    """Intrinsics, functions that Numba compiles, others that are written, and lambdas inside them."""

    @compiled
    def total(values, shape):
        result = 0.0
        for i in range(shape[0]):
            result += values[i]
        return result

    twice, nothing = merged(lambda value: value * 2), always(None)

    @caller
    def run(x, flag):
        values = stack(np.float64, 1)
        stored(values, (1.5, x.size, flag))
        later = [lambda: twice(total(values, (3,)))]
        return later[0](), nothing(x)

    assert run(np.zeros(4), True) == (13.0, None)


def test_branches():
    """Only one function runs, and its result is returned: a number, an argument, new memory, or tuples of them."""
    wrong = "refused"
    checked = merged(lambda x, n: (require(n > 0, wrong), n, x)[1:])
    fresh = merged(lambda x, n: (n + 1, writable(empty((n * 0 + 2,), np.float64), (2,), np.float64)))
    inner = either(merged(lambda n: n * 10), merged(lambda n: n * 100))
    choose, nested = either(checked, fresh), either(merged(lambda n: inner(n == 5, n)), merged(lambda n: n))

    @caller
    def run(x, n):
        return choose(n != 3, x, n), nested(n > 4, n)

    x = np.arange(2.0)
    (n, y), m = run(x, 5)
    assert (n, y.ctypes.data, m) == (5, x.ctypes.data, 50)
    assert run(x, 6)[1] == 600
    (n, y), m = run(x, 3)
    assert (n, y.size, m) == (4, 2, 3)
    assert not np.shares_memory(x, y)
    with pytest.raises(ValueError, match=wrong):
        run(x, -1)


REFERENCES = """
import numpy as np
from numba import njit
from numba.core.runtime import rtsys
from fastsoftmax.njit.arguments import empty, merged, readable, writable
from fastsoftmax.njit.written import either, written

all_or_one = either(
    merged(lambda x: (x, readable(x, (x.size,), np.float64))), merged(lambda x: (x, readable(x, (1,), np.float64)))
)

def steps(x):
    new, other = empty((x.size,), np.float64), empty((3 * x.size,), np.float64)
    pair = writable(new, (x.size, 1), np.float64), (x, readable(other, (2,), np.float64))
    return pair, all_or_one(x.size > 5, x)

run = written(steps)
function = njit(lambda n: run(np.full(n, 2.0)))
function(7)
before = rtsys.get_allocation_stats()
for size in (7, 2):
    (new, (x, view)), (same, part) = function(size)
    assert new.shape == (size, 1) and view.size == 2
    new[:] = 3.0
    assert x.tolist() == same.tolist() == [2.0] * size and part.tolist() == [2.0] * (size if size > 5 else 1)
    del new, x, view, same, part
after = rtsys.get_allocation_stats()
assert after.alloc - before.alloc == after.free - before.free == 6
assert after.mi_alloc - before.mi_alloc == after.mi_free - before.mi_free == 6
"""


def test_references_are_counted():
    """Nothing is freed too early, and nothing is kept."""
    child.run(REFERENCES, NUMBA_NRT_STATS=1)


def test_a_value_is_not_known_when_the_code_is_written():
    @caller
    def run(x):
        return 1 if x > 0 else 2

    with pytest.raises(Exception, match="not known when the code is written"):
        run(1.0)


def test_constants():
    table = np.arange(3.0)

    @caller
    def run():
        return number(3, np.float32), table[0], readable(table, (1,), np.float64), (1, True, np.float32(0.5), None)

    one, first, view, rest = run()
    assert (one, first, view.tolist(), rest) == (3.0, 0.0, [0.0], (1, True, 0.5, None))
