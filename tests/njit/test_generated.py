"""The code that `njit.generated` makes, beside NumPy and the functions of Python that it stands for."""

import numpy as np
import pytest
from numba import njit

from fastsoftmax.arrays.blocks import inverse_pair
from fastsoftmax.arrays.weights import inverse_of
from fastsoftmax.njit import generated

KINDS = [np.float32, np.float64]


def unaligned(values):
    """The same numbers at an odd address."""
    memory = np.empty(values.nbytes + 1, np.uint8)
    copy = memory[1:].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


ARRAYS = [
    np.arange(6.0),
    np.arange(12, dtype=np.int32)[::-2],
    np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
    np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
    np.array([True, False, True])[::2],
    np.array(7, np.int16),
    np.zeros((3, 0)),
    unaligned(np.arange(5.0)),
    unaligned(np.arange(6, dtype=np.int64).reshape(2, 3)).T,
    np.broadcast_to(np.arange(3.0), (2, 3)),
]


@pytest.mark.parametrize("number", range(len(ARRAYS)))
def test_copies(number):
    x = ARRAYS[number]

    @njit
    def copy(x):
        return generated.copied(x, x.shape, np.float64)

    @njit
    def flat(x):
        return generated.copied(x, (x.size,), np.int64)

    assert copy(x).tolist() == x.astype(np.float64).tolist()
    assert copy(x).flags.c_contiguous
    assert not np.shares_memory(copy(x), x)
    assert flat(x).tolist() == x.astype(np.int64).reshape(-1).tolist()


@pytest.mark.parametrize(
    "shapes", [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((2, 1, 4), (3, 1)), ((0, 4), (1,)), ((), (2,))]
)
@pytest.mark.parametrize("kind", KINDS)
def test_broadcasting(shapes, kind):
    @njit
    def both(x, y):
        shape = generated.broadcast_shape(x.shape, y.shape, "they differ")
        return generated.broadcast_block(x, shape, kind), generated.broadcast_block(y, shape, kind)

    x, y = (np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape) for shape in shapes)
    for one, expected in zip(both(x, y), np.broadcast_arrays(x, y), strict=True):
        assert one.dtype == kind
        assert one.tolist() == expected.tolist()
        assert one.flags.c_contiguous
    assert np.shares_memory(both(x, x)[0], x) == (kind == np.float32 and x.size > 0)
    if shapes[0] == (3, 4):
        with pytest.raises(ValueError, match="they differ"):
            both(x, np.ones(3, np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_inverses_have_the_bits_of_python(kind):
    @njit(error_model="numpy")
    def pairs(value):
        return generated.inverse(value, kind), generated.gradient_scale(value, kind)

    for value in (1.0, 3.0, 7.0, 1e-3, 2.0**-100, 1e30, 2.0**140, np.pi):
        inverse, scale = pairs(value)
        expected = inverse_pair(value, np.dtype(kind))
        assert inverse == scale == tuple(map(float, expected))
    for value in (np.inf, -np.inf, np.nan):
        np.testing.assert_array_equal(pairs(value)[1], inverse_of(value, np.dtype(kind)))


def test_filled_arrays():
    @njit
    def full(length):
        return generated.filled((2, length), np.float32(0.5))

    assert full(3).tolist() == np.full((2, 3), np.float32(0.5)).tolist()


def test_numbers():
    @njit
    def numbers(table, sums):
        pair = generated.pair_of_integers(table.size, -1)
        return (
            generated.longest_step(table),
            generated.is_any_set(sums, 2, 3),
            generated.whole_number(sums[0]),
            pair[0] + pair[1],
        )

    assert numbers(np.array([0, 2, 2, 9, 10]), np.array([5.0, 1, 0, 4, 4, 0])) == (7, False, 5, 4)
    assert numbers(np.array([0]), np.array([-3.0, 1, 0, 4, 4, 1])) == (0, True, -3, 0)
    assert numbers(np.array([4]), np.array([0.0, 1, np.nan]))[1]


def test_steps_that_a_call_does_not_need():
    nothing, no, half, second = map(generated.always, (None, False, (np.float32(0.5), 2), (3.0, 0.0)))
    last = generated.argument(2)

    @njit
    def steps(x):
        return nothing(x), no(x, x), half(), second(x, 1, 2), last(1, None, x)

    x = np.arange(3.0)
    a, b, c, d, e = steps(x)
    assert (a, b, c, d) == (None, False, (0.5, 2), (3.0, 0.0))
    assert e is x


def test_requirements():
    @njit
    def need(x):
        generated.require(x > 0, "x must be positive")
        return x

    assert need(2) == 2
    with pytest.raises(ValueError, match=r"^x must be positive$"):
        need(0)
