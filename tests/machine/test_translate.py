"""`translate` writes the code that Numba would have compiled: each construct, and every kernel."""

import inspect
import itertools
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
from numba import types

from fastsoftmax.kernels.jit import inline
from fastsoftmax.kernels.simd.memory import (
    lane_count,
    load,
    load_part,
    load_scalar,
    memory,
    scratch,
    size,
    store,
    store_part,
    store_scalar,
)
from fastsoftmax.kernels.simd.reduce import fold_sum
from fastsoftmax.kernels.simd.values import any_above, broadcast, number, unless_none
from fastsoftmax.machine import frontend, jit, library, syntax, targets, translate
from fastsoftmax.machine.entry import Block, Count, Doubles, Flags, Floats, Integers, Kernel, MaybeFloats, Nothing
from fastsoftmax.machine.syntax import TranslationError
from fastsoftmax.runtime import prebuilt


class Pair(NamedTuple):
    first: Any
    second: Any


HALF = np.float64(0.5)
INTEGERS = [0, 1, 2, 3, 7, 8, -1, -2, -3, -7, -8, 63]
REALS = [0.0, -0.0, 1.0, -1.5, 2.75, 1e300, -1e300, np.inf, -np.inf, np.nan]


def arithmetic(start: Count, stop: Count, room: Nothing, whole: Integers, real: Floats, out: Doubles) -> None:
    """Operators of numbers, of all types, beside each other."""
    n, x, y = memory(whole), memory(real), memory(out)
    a, b = load_scalar(n, 0), load_scalar(n, 1)
    u, v = load_scalar(x, 0), load_scalar(x, 1)
    both = Pair(a, b)
    store_scalar(y, 0, float(a + b))
    store_scalar(y, 1, float(a - b * 3))
    store_scalar(y, 2, float(a // b))
    store_scalar(y, 3, float(a % b))
    store_scalar(y, 4, float(a // 4 + (a % 4) * 100))
    store_scalar(y, 5, float((a << 2) + (a >> 1) + (a & b) + (a | b) * 3 + (a ^ b) * 7))
    store_scalar(y, 6, a / 8)
    store_scalar(y, 7, np.float64(u + v))
    store_scalar(y, 8, np.float64(u * v - u))
    store_scalar(y, 9, u * 2.5)  # float64, also if u is float32
    store_scalar(y, 10, np.float64(u) + a)
    store_scalar(y, 11, np.float64(min(u, v)))
    store_scalar(y, 12, np.float64(max(u, v)))
    store_scalar(y, 13, float(min(a, b, 3)) + float(max(a, 2)))
    store_scalar(y, 14, np.float64(-u) + float(-a))
    store_scalar(y, 15, float(int(a < b) + 2 * int(u < v) + 4 * int(u != v) + 8 * int(u >= v) + 16 * int(u == u)))
    store_scalar(y, 16, float(int(0 < a < 8) + 2 * int(not a) + 4 * int((a < 3) & (u > 0))))
    store_scalar(
        y, 17, float(int(a > 0 and b > 0) + 2 * int(a > 0 or b > 0) + 4 * int((a > b and a > 2) or b == 7))
    )
    store_scalar(y, 18, float(both.first if a > b else both[1]))
    store_scalar(y, 19, 2.0**-3 if u > v else -np.float64(v))
    store_scalar(y, 20, float((a > 0) + (b > 0)))
    store_scalar(y, 21, float((5 if a > 0 else a) * (-7 // 2) + -7 % 3))


def control(start: Count, stop: Count, room: Nothing, whole: Integers, real: Floats, out: Doubles) -> None:
    """Branches, loops and variables that outlive them."""
    n, x, y = memory(whole), memory(real), memory(out)
    a, b = load_scalar(n, 0), load_scalar(n, 1)
    last, total, count = -1, 0.0, 0
    for k in range(b, a, 1 if a > b else -1):
        if k == 5:
            continue
        if k < -5:
            break
        last = k
        total += float(k)
        for j in range(0, k, 3):
            if j > 4:
                break
            count += 1
    for j in range(3):
        count += j
    left = a
    while left > 0:
        left -= 2
        if left == 3:
            break
    else_taken = 1
    if a > 2:
        found = Pair(1.0, 2)
    elif a > 0:
        found = Pair(3.0, 4)
        else_taken = 2
    else:
        found = Pair(5.0, b)
    swap, other = a, b
    for _ in range(3):
        swap, other = other, swap + 1
    state = (a, Pair(0.5, b))
    while state[0] < 4:
        state = (state[0] + 1, Pair(state[1].first * 2.0, state[1].second - 1))
    results = (float(last), total, float(count), float(left), found.first, float(found.second), float(else_taken))
    store_scalar(y, 0, results[0] + results[1])
    store_scalar(y, 1, results[2])
    store_scalar(y, 2, results[3])
    store_scalar(y, 3, results[4] + 10.0 * results[5] + 100.0 * results[6])
    store_scalar(y, 4, float(swap * 100 + other))
    store_scalar(y, 5, state[1].first + float(state[0]) + float(state[1].second))
    for k in range(3):
        store_scalar(y, 6 + k, results[k])
    store_scalar(y, 9, _searched(n, size(n), b))
    store_scalar(y, 10, _sign(load_scalar(x, 0)))
    store_scalar(y, 11, _second(None, 4.0) + _second(3, 4.0))


def corners(start: Count, stop: Count, room: Nothing, whole: Integers, real: Floats, out: Doubles) -> None:
    """What is easily another number: the variable of a loop behind it, an operand of ``or``, a negative index."""
    n, x, y = memory(whole), memory(real), memory(out)
    a, b, u = load_scalar(n, 0), load_scalar(n, 1), load_scalar(x, 0)
    last = size = 7
    for _ in range(a & 3):
        for last in range(b & 3):
            store_scalar(y, 0, float(last))
    for size in range(a & 3):  # also the name of a function
        if size == b:
            break
    store_scalar(y, 1, float(last * 10 + size))
    store_scalar(y, 2, float((a or b) + 100 * (a and b) + 10000 * _either(5, a) + (_either(a, 5) << 20)))
    store_scalar(y, 3, float(int((a > 0) < (b > 0)) + 2 * int((a > 0) >= (b > 0))))
    store_scalar(y, 4, float((a, b, 3)[-1 if a > b else 1] * 100 + (a, b)[-2]))
    store_scalar(y, 5, float(a // 0 + a % 0))
    store_scalar(y, 6, np.float64(u * (a > 0)))
    store_scalar(y, 8, 1.0 if _is_stored(y, a, None) else 2.0)
    store_scalar(y, 9, np.float64(min(u, 0.0)) + np.float64(max(-0.0, u)))


@inline
def _either(one: int, other: int) -> int:
    return one or other


@inline
def _is_stored(y: Any, value: int, option: Any) -> bool:
    """The first operand writes, though the second one decides."""
    return _stored(y, value) > 1 and option is not None


@inline
def _stored(y: Any, value: int) -> int:
    store_scalar(y, 7, float(value))
    return value


@inline
def _searched(n: Any, length: int, wanted: int) -> Any:
    """A return from a loop within a branch."""
    if length > 1:
        for k in range(1, length):
            if load_scalar(n, k) == wanted:
                return float(k)
    return -1.0


@inline
def _sign(value: Any) -> float:
    """A return from each branch."""
    if value > 0:
        return 1.0
    if value < 0:
        return -1.0
    return 0.0


@inline
def _second(option: Any, value: float, factor: float = 3.0) -> float:
    """What is known when the code is written: a branch that is decided, a default, None."""
    kept = unless_none(option, value)
    if kept is None or option is None:
        return value * factor
    return kept


def vectors(
    start: Count, stop: Count, room: Nothing, x: Block, weights: MaybeFloats, y: Block, wrong: Flags
) -> None:
    """Vectors, memory in variables, and blocks."""
    data, out = memory(x), memory(y)
    _, classes, inner = x.shape
    step, zero = lane_count(data), number(data, 0.0)
    room_, other = scratch(data, 2), scratch(data, 1)
    spare = room_
    for i in range(start, stop):
        sums, length = broadcast(zero), classes * inner
        full = length // step * step
        for k in range(0, full, step):
            sums = sums + load(data, i * length + k) * number(data, 0.5)
        if full < length:
            sums = sums + load_part(data, i * length + full, length - full, zero)
        spare, other = other, spare
        store(spare, 0, -sums / number(data, 2.0))
        total = fold_sum(True, load(spare, 0))
        if weights is not None:
            total = total * load_scalar(memory(weights), i)
        for k in range(0, length, step):
            store_part(out, i * length + k, min(step, length - k), broadcast(total))
        wrong[i] = any_above(sums, zero)


def found(function, dtype, letters, build):
    """The function for Python of a kernel, whose code `build` makes."""
    kernel = Kernel(f"tests.{function.__name__}")
    kernel.define(function, None, None)
    variant = kernel.variant(dtype, letters)
    engine = jit.engine(targets.object_code(build(variant), targets.this_process()))
    name = f"{prebuilt.PREFIX}{variant.name}.py"
    return prebuilt.python_function(variant.name, engine.get_function_address(name))


def both(function, dtype, letters, monkeypatch):
    """The kernel as `translate` writes it, and as Numba compiles it."""
    with monkeypatch.context() as patch:
        patch.setattr(frontend, "_compiled", None)
        ours = found(function, dtype, letters, frontend.module)
    with monkeypatch.context() as patch:
        patch.setattr(translate, "write", failing)
        theirs = found(function, dtype, letters, frontend.module)
    return ours, theirs


def bits(numbers):
    """Floats as integers, so that -0.0 is not 0.0. All NaN are alike."""
    return np.where(np.isnan(numbers), np.nan, numbers).view(np.uint64)


def failing(*_: Any) -> None:
    raise TranslationError("not here")


@pytest.mark.parametrize("function", [arithmetic, control, corners], ids=lambda one: one.__name__)
@pytest.mark.parametrize("dtype", ["f", "d"])
def test_constructs(function, dtype, monkeypatch):
    ours, theirs = both(function, dtype, "iinaaa", monkeypatch)
    integers, reals = itertools.product(INTEGERS, repeat=2), itertools.cycle(itertools.product(REALS, repeat=2))
    results = set()
    for pair, numbers in zip(integers, reals, strict=False):
        whole = np.array(pair, np.int64)
        with warnings.catch_warnings(action="ignore"):
            real = np.array(numbers, dtype)
        out, expected = np.full(22, np.pi), np.full(22, np.pi)
        ours(0, 1, None, whole, real, out)
        theirs(0, 1, None, whole, real, expected)
        np.testing.assert_array_equal(bits(out), bits(expected), err_msg=f"{pair} {numbers}")
        results.add(out.tobytes())
    assert len(results) > 100


@pytest.mark.parametrize("letters", ["iinanaa", "iinaaaa"])
@pytest.mark.parametrize("dtype", ["f", "d"])
def test_vectors(dtype, letters, monkeypatch):
    ours, theirs = both(vectors, dtype, letters, monkeypatch)
    for shape in [(3, 1, 1), (4, 5, 1), (2, 16, 1), (5, 7, 9), (2, 40, 1)]:
        x = np.random.default_rng(7).standard_normal(shape).astype(dtype)
        weights = None if letters[4] == "n" else np.arange(shape[0]).astype(dtype)
        results = [(np.empty_like(x), np.empty(shape[0], bool)) for _ in range(2)]
        for code, (y, wrong) in zip((ours, theirs), results, strict=True):
            code(0, shape[0], None, x, weights, y, wrong)
        for one, other in zip(*results, strict=True):
            np.testing.assert_array_equal(one, other)
        assert results[0][1].any()


def first_variants():
    """A variant of every kernel."""
    found = {}
    for one in library.variants():
        found.setdefault(one.kernel.name, one)
    return found


def test_every_kernel_is_translated(monkeypatch):
    """Numba compiles none: it would take five times as long."""
    monkeypatch.setattr(frontend, "_compiled", None)
    for variant in first_variants().values():
        frontend.module(variant)


@pytest.mark.slow
def test_every_variant_is_translated(monkeypatch):
    monkeypatch.setattr(frontend, "_compiled", None)
    for variant in library.variants():
        frontend.module(variant)


@pytest.mark.parametrize("source", [None, "another line"])
def test_without_sources_numba_compiles(source, monkeypatch):
    """As in a frozen application, or if a file was edited after its import."""

    def no_source(_: Any) -> str:
        if source is None:
            raise OSError("could not get source code")
        return source

    syntax.function.cache_clear()
    monkeypatch.setattr(inspect, "getsource", no_source)
    code = found(vectors, "d", "iinanaa", frontend.module)
    monkeypatch.undo()
    x, y, wrong = np.arange(6.0).reshape(2, 3, 1), np.empty((2, 3, 1)), np.empty(2, bool)
    code(0, 2, None, x, None, y, wrong)
    np.testing.assert_array_equal(y[:, 0, 0], [-1.5, -6.0])


def _with(start: Count, stop: Count, room: Nothing, x: Floats) -> None:
    with np.errstate(all="ignore"):
        store_scalar(memory(x), 0, number(memory(x), 1.0))


def _two_types(start: Count, stop: Count, room: Nothing, x: Floats) -> None:
    value = 1
    for k in range(start, stop):
        value = load_scalar(memory(x), k)
    store_scalar(memory(x), 0, value)


def _truncated(start: Count, stop: Count, room: Nothing, x: Floats) -> None:
    value = 1
    if start < stop:
        value = 2.5
    store_scalar(memory(x), 0, value * 1.0)


def _rounded(start: Count, stop: Count, room: Nothing, x: Floats) -> None:
    store_scalar(memory(x), 0, number(memory(x), (load_scalar(memory(x), 0) if start < stop else 0.1) * 1.0))


def _unequal(start: Count, stop: Count, room: Nothing, x: Floats) -> None:
    if (start, stop) == (stop, start):
        store_scalar(memory(x), 0, load_scalar(memory(x), 1))


def _is_true(start: Count, stop: Count, room: Nothing, x: Floats) -> None:
    if (start < stop) is True:
        store_scalar(memory(x), 0, load_scalar(memory(x), 1))


def _too_large(start: Count, stop: Count, room: Nothing, x: Floats) -> None:
    large = 1 << 62
    store_scalar(memory(x), 0, load_scalar(memory(x), start + (large * 3 >> 3)))


def _power(start: Count, stop: Count, room: Nothing, x: Floats) -> None:
    two = 2
    store_scalar(memory(x), 0, load_scalar(memory(x), start) * two**-1)


def _constant(start: Count, stop: Count, room: Nothing, x: Floats) -> None:
    store_scalar(memory(x), 0, number(memory(x), start * HALF))


def _eager(start: Count, stop: Count, room: Nothing, x: Floats) -> None:
    if 0 <= start < load_scalar(memory(x), start):
        store_scalar(memory(x), 0, load_scalar(memory(x), 1))


def _mixed(start: Count, stop: Count, room: Nothing, x: Floats) -> None:
    store_scalar(memory(x), 0, number(memory(x), (start, start < stop)[stop] * 1.0))


def _unset(start: Count, stop: Count, room: Nothing, x: Floats) -> None:
    if start < stop:
        value = load_scalar(memory(x), 0)
    store_scalar(memory(x), 1, later + value)  # noqa: F821


def _called(start: Count, stop: Count, room: Nothing, x: Floats) -> None:
    store_scalar(memory(x), start, np.sqrt(load_scalar(memory(x), stop)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_with, "with np.errstate"),
        (_two_types, "a variable that is int64, then float32"),
        (_truncated, "a variable that is int64, then float64"),
        (_rounded, "a variable that is float32, then float64"),
        (_unequal, "are not numbers"),
        (_is_true, "a comparison by is, but not with None"),
        (_too_large, f"{3 << 62} is not an int64"),
        (_power, r"a power of \(int64, int64\)"),
        (_constant, "are not numbers"),
        (_eager, "0 <= start < load_scalar"),
        (_mixed, "an item of"),
        (_unset, "later in _unset has no value"),
        (_called, r"np\.sqrt"),
    ],
)
def test_what_is_not_translated(function, message):
    kernel = Kernel(f"tests.{function.__name__}")
    kernel.define(function, None, None)
    (variant,) = (one for one in kernel.variants() if one.dtype == "f")
    with pytest.raises(TranslationError, match=message):
        frontend._written(variant, tuple(frontend.numba_type(kind, "f") for kind in variant.kinds))


def _returns_nothing(start: Count, stop: Count, room: Nothing, x: Floats) -> float:  # type: ignore[return]
    store_scalar(memory(x), 0, number(memory(x), 1.0))


def test_a_missing_result():
    kernel = Kernel("tests.missing")
    kernel.define(_returns_nothing, None, None)
    (variant,) = (one for one in kernel.variants() if one.dtype == "d")
    kinds = (types.int64, types.int64, types.none, types.Array(types.float64, 1, "C"))
    with pytest.raises(TypeError, match="returns None, which is not what its annotation says"):
        frontend._written(variant, kinds)
