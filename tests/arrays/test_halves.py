"""float16 and bfloat16 converted by kernels: the bits of NumPy's casts, in any layout."""

from pathlib import Path

import child
import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax.arrays import halves
from fastsoftmax.arrays.blocks import copy_to
from fastsoftmax.machine.entry import entry

ml_dtypes = pytest.importorskip("ml_dtypes")
KINDS = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
every_kind = pytest.mark.parametrize("kind", KINDS)
ALL = np.arange(1 << 16, dtype=np.uint16)


def widened(kind, bits):
    """The bits of float32. Those of NaN, which NumPy's cast changes on some processors, are literal."""
    wide = bits.view(KINDS[kind]).astype(np.float32).view(np.uint32)
    fraction, shift = (0x3FF, 13) if kind == "float16" else (0x7F, 16)
    nan = (bits & 0x8000).astype(np.uint32) << 16 | 0x7F800000 | (bits & fraction).astype(np.uint32) << shift
    return np.where(np.isnan(wide.view(np.float32)), nan, wide)


def narrowed(kind, bits):
    """The bits of a half: as NumPy's cast, which keeps the bits of NaN that fit, or one if none does."""
    with np.errstate(all="ignore"):
        short = bits.view(np.float32).astype(KINDS[kind]).view(np.uint16)
    if kind == "bfloat16":
        return short
    nan = 0x7C00 | (bits >> 13 & 0x3FF)
    nan = (nan + (nan == 0x7C00) | bits >> 16 & 0x8000).astype(np.uint16)
    return np.where(np.isnan(bits.view(np.float32)), nan, short)


def borders(kind):
    """The bits of every half, of the number in the middle of each two, of their neighbours, and of many others."""
    shift = 16 if kind == "bfloat16" else 13
    exact = widened(kind, ALL)
    middle = exact + np.uint32(1 << (shift - 1))
    if kind == "float16":  # denormal numbers are further apart as float32
        finite = np.sort(exact[(ALL & 0x7FFF) < 0x7C00].view(np.float32).astype(np.float64))
        halfway = np.append((finite[1:] + finite[:-1]) / 2, [65520, -65520]).astype(np.float32).view(np.uint32)
        middle = np.concatenate([middle, halfway])
    some = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    near = [one + np.uint32(step) for one in (exact, middle) for step in (0, 1, 0xFFFFFFFF)]
    nan = (np.uint32(0x7F800000) + np.arange(1, 1 << 23, 997, dtype=np.uint32))[:, None] | np.uint32([0, 1 << 31])
    return np.concatenate([*near, some, nan.ravel()])


@every_kind
def test_every_half_is_widened(kind):
    found = np.empty(ALL.size, np.float32)
    entry(f"halves.widen_{kind}")(0, ALL.size, None, ALL, found)
    np.testing.assert_array_equal(found.view(np.uint32), widened(kind, ALL))


@every_kind
def test_float32_is_rounded(kind):
    bits = borders(kind)
    found = np.empty(bits.size, np.uint16)
    entry(f"halves.narrow_{kind}")(0, bits.size, None, bits.view(np.float32), found)
    np.testing.assert_array_equal(found, narrowed(kind, bits))


@every_kind
@pytest.mark.parametrize("widens", [True, False])
def test_any_number_of_them_in_place(kind, widens):
    """Only numbers start .. stop are written; both may share memory."""
    kernel = entry(f"halves.{'widen' if widens else 'narrow'}_{kind}")
    x = np.random.default_rng(1).normal(size=80).astype(KINDS[kind]).view(np.uint16)
    for count in range(70):
        for start in (0, count // 3):
            block = np.full(80, 7, np.float32)
            bits = np.full(80, 7, np.uint16)
            if widens:
                kernel(start, count, None, x, block)
                expected, found = np.full(80, 7, np.float32), block
                expected[start:count] = widened(kind, x)[start:count].view(np.float32)
            else:
                kernel(start, count, None, widened(kind, x).view(np.float32), bits)
                expected, found = np.full(80, 7, np.uint16), bits
                expected[start:count] = x[start:count]
            np.testing.assert_array_equal(found, expected)
        block = np.zeros(count, np.float32)
        inside = halves.bits_within(block, last=widens)
        if widens:
            inside[:] = x[:count]
            halves.widen(inside, KINDS[kind], block)
            np.testing.assert_array_equal(block.view(np.uint32), widened(kind, x)[:count])
        else:
            block[:] = widened(kind, x)[:count].view(np.float32)
            halves.narrow(block, KINDS[kind], inside)
            np.testing.assert_array_equal(inside, x[:count])


LAYOUTS = {
    "contiguous": lambda shape, dtype: np.zeros(shape, dtype),
    "transposed": lambda shape, dtype: np.zeros(shape[::-1], dtype).T,
    "part": lambda shape, dtype: np.zeros([n + 3 for n in shape], dtype)[tuple(slice(1, n + 1) for n in shape)],
    "backwards": lambda shape, dtype: np.zeros(shape, dtype)[::-1, :, ::-1],
    "misaligned": lambda shape, dtype: (
        np.zeros(int(np.prod(shape)) * dtype.itemsize + 1, np.uint8)[1:].view(dtype).reshape(shape)
    ),
}


@every_kind
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("least", [1, 1 << 30])
def test_copies_in_any_layout(kind, layout, least, monkeypatch):
    """By kernels and by NumPy."""
    monkeypatch.setattr(halves, "LEAST", least)
    shape, dtype = (5, 6, 7), KINDS[kind]
    numbers = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    source, target = LAYOUTS[layout](shape, dtype), LAYOUTS[layout](shape, dtype)
    source[...] = numbers
    with np.errstate(all="raise"):
        for found in (halves.converted(source, np.float32), halves.contiguous(source, np.float32)):
            np.testing.assert_array_equal(found, source.astype(np.float32))
        assert halves.contiguous(source, np.float32).flags.c_contiguous
        wide = LAYOUTS[layout](shape, np.dtype(np.float32))
        halves.copy(wide, source)
        np.testing.assert_array_equal(wide, source.astype(np.float32))
        copy_to(target, numbers)
        np.testing.assert_array_equal(target, source)
        wide[...] = numbers
        np.testing.assert_array_equal(halves.converted(wide, dtype), source)
        np.testing.assert_array_equal(numbers, wide)


def test_byte_order(monkeypatch):
    monkeypatch.setattr(halves, "LEAST", 1)
    swapped = np.linspace(-3, 3, 40, dtype=np.float16).reshape(5, 8).astype(np.dtype(np.float16).newbyteorder())
    for x in (swapped, swapped.T):
        np.testing.assert_array_equal(halves.contiguous(x, np.float32), x.astype(np.float32))


def test_other_dtypes_are_cast_by_numpy():
    x = np.linspace(-3, 3, 2 * halves.LEAST)
    np.testing.assert_array_equal(halves.converted(x, np.float16), x.astype(np.float16))
    half = x.astype(np.float16)
    assert halves.converted(half, np.float16) is half
    np.testing.assert_array_equal(halves.contiguous(half, np.float64), half.astype(np.float64))


def shapes():
    """Small arrays, those that are converted as a whole, in parts, and in parts of an inner axis."""
    return [
        ((3, 10), -1),
        ((700, 90), -1),
        ((300, 700), -1),
        ((20, 30, 400), 1),
        ((40, 5000), 0),
        ((7, 9, 40, 60), 2),
    ]


@every_kind
@pytest.mark.parametrize(("shape", "axis"), shapes())
@pytest.mark.parametrize("scale", [1, 12])
def test_results_are_those_of_float32_rounded(kind, shape, axis, scale):
    """Probabilities of large logits are denormal in float16."""
    wide = np.random.default_rng(3).normal(0, scale, shape).astype(KINDS[kind]).astype(np.float32)
    x = wide.astype(KINDS[kind])
    labels = np.random.default_rng(4).integers(0, shape[axis], np.delete(shape, axis))
    where = np.random.default_rng(5).random(shape) < 0.9
    calls = [
        lambda x: fs.softmax(x, axis),
        lambda x: fs.softmax(x, axis, where=where),
        lambda x: fs.logsumexp(x, axis),
        lambda x: fs.softmax(x, axis, out=np.empty(x.shape, x.dtype)),
        lambda x: fs.softmax(x, axis, out=np.empty(x.shape[::-1], x.dtype).T),
        lambda x: fs.cross_entropy(x, labels, axis, reduction="none"),
        lambda x: fs.cross_entropy_with_grad(x, labels, axis)[1],
    ]
    for call in calls:
        expected = np.ascontiguousarray(call(wide)).view(np.uint32).ravel()
        found = call(x)
        assert found.dtype == KINDS[kind]
        bits = np.ascontiguousarray(found).view(np.uint16).ravel()
        np.testing.assert_array_equal(bits, narrowed(kind, expected))


def test_kernels_convert_large_arrays(monkeypatch):
    """They do, and NumPy's casts do not."""
    used = []
    for name in ("widen", "narrow"):
        function = getattr(halves, name)
        monkeypatch.setattr(
            halves, name, lambda *given, name=name, function=function: (used.append(name), function(*given))
        )
    x = np.zeros((300, 700), np.float16)
    for one in (x, x[:100], x.T, x.astype(np.dtype(np.float16).newbyteorder())):
        used.clear()
        fs.softmax(one)
        assert set(used) == {"widen", "narrow"}
    used.clear()
    fs.softmax(x[:1, :10])
    assert not used


BODIES = """
import sys
sys.path[:0] = sys.argv[1:]
import numpy as np
import test_halves as tests
from fastsoftmax.machine.entry import entry
np.seterr(all="ignore")
for kind in tests.KINDS:
    found = np.empty(1 << 16, np.float32)
    entry(f"halves.widen_{kind}")(0, 1 << 16, None, tests.ALL, found)
    assert np.array_equal(found[:0x7c00], tests.widened(kind, tests.ALL).view(np.float32)[:0x7c00])
    bits = tests.borders(kind)[::37]
    x, found = bits.view(np.float32), np.empty(bits.size, np.uint16)
    entry(f"halves.narrow_{kind}")(0, bits.size, None, x, found)
    numbers = ~np.isnan(x)
    assert np.array_equal(found[numbers], tests.narrowed(kind, bits)[numbers])
    assert np.isnan(found.view(tests.KINDS[kind])[~numbers].astype(np.float32)).all()
print("same")
"""


def test_they_run_as_python():
    here = Path(__file__).parent
    assert child.run(BODIES, here, here.parent, NUMBA_DISABLE_JIT="1").strip() == "same"
