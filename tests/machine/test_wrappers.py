"""Arguments and results of machine code, called from Python and from C."""

import ctypes
import gc
import sys

import numpy as np
import pytest
from llvmlite import binding, ir

from fastsoftmax._vectors import CHUNK, SMALL
from fastsoftmax.machine import jit, targets, wrappers
from fastsoftmax.machine.entry import (
    Block,
    Count,
    Doubles,
    Entries,
    Flag,
    Flags,
    Floats,
    Integers,
    Kernel,
    MaybeFloats,
    MaybeIntegers,
    Nothing,
    Number,
    Table,
    Temperature,
)
from fastsoftmax.runtime import prebuilt


def everything(
    n: Count,
    number: Number,
    flag: Flag,
    row: Floats,
    table: Table,
    block: Block,
    integers: Integers,
    flags: Flags,
    beta: Temperature,
    nothing: Nothing,
    maybe: MaybeFloats,
    perhaps: MaybeIntegers,
    out: Floats,
) -> float:
    """Write down what arrives."""
    out[0], out[1], out[2] = n, number, flag
    out[3], out[4], out[5] = row.shape[0], row[0], row[-1]
    out[6], out[7], out[8] = table.shape[0], table.shape[1], table[-1, 0]
    out[9], out[10], out[11] = block.shape[0], block.shape[1], block.shape[2]
    out[12], out[13] = block[-1, 0, -1], block[0, -1, 0]
    out[14], out[15] = integers.shape[0], integers[1]
    out[16], out[17], out[18] = flags.shape[0], flags[0], flags[1]
    if beta is not None:
        out[19], out[20], out[21], out[22], out[23] = beta
    out[24] = -1 if maybe is None else maybe[1]
    out[25] = -1 if perhaps is None else perhaps[0]
    out[26] = nothing is None
    return n + number


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A function of Python for a variant. Its code is not kept, because it is no kernel's."""
    kernel = Kernel("tests.everything")
    kernel.define(everything, None, None)
    known = {}

    def find(dtype, letters):
        variant = kernel.variant(dtype, letters)
        if variant not in known:
            known[variant] = prebuilt.python_function(
                variant.name, jit.address(variant.name, lambda: variant, ".py")
            )
        return known[variant]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield find


def arguments(dtype, present):
    floats = np.arange(1, 31, dtype=dtype)
    return [
        -3,
        dtype(0.1),
        True,
        floats[:4].copy(),
        floats[4:10].reshape(2, 3),
        floats[6:30].reshape(2, 3, 4),
        np.array([5, 1 << 40, 7]),
        np.array([False, True]),
        (0.5, 1.5, 2.5, 3.5, 0.1) if present else None,
        None,
        floats[:2] if present else None,
        np.array([-9]) if present else None,
        np.zeros(27, dtype),
    ]


@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_kind_of_argument_arrives(compiled, dtype, present):
    code = compiled(np.dtype(dtype).char, "isbaaaaatnaaa" if present else "isbaaaaannnna")
    given = arguments(dtype, present)
    result = code(*given)
    assert type(result) is float
    assert result == -3 + float(dtype(0.1))
    tail = [0.5, 1.5, 2.5, 3.5, dtype(0.1), 2, -9, 1] if present else [0] * 5 + [-1, -1, 1]
    expected = [-3, dtype(0.1), 1, 4, 1, 4, 2, 3, 8, 2, 3, 4, 22, 15, 3, dtype(1 << 40), 2, 0, 1, *tail]
    np.testing.assert_array_equal(given[-1], np.array(expected, dtype))


def test_other_types_of_the_same_kind(compiled):
    """Numbers of Python and of NumPy, and a table in the place of a block, whose last dimension is then 1."""
    code, given = compiled("d", "isbaaaaannnna"), arguments(np.float64, False)
    for n, number, flag in (
        (-3, 0.25, False),
        (np.int64(7), np.float32(0.25), np.False_),
        (1 << 40, np.float64(0.25), True),
    ):
        given[0], given[1], given[2] = n, number, flag
        given[5] = np.arange(6.0).reshape(2, 3)
        assert code(*given) == n + 0.25
        assert list(given[-1][:3]) == [n, 0.25, flag]
        assert list(given[-1][9:14]) == [2, 3, 1, 3, 2]


def test_no_reference_is_lost_or_kept(compiled):
    code, given = compiled("d", "isbaaaaatnaaa"), arguments(np.float64, True)
    result = code(*given)
    before = [sys.getrefcount(one) for one in (*given, None, result, code)]
    for _ in range(1000):
        code(*given)
    after = [sys.getrefcount(one) for one in (*given, None, result, code)]
    assert np.abs(np.subtract(after, before)).max() < 100


def test_functions_of_addresses(compiled):
    """They belong to their caller only, have a name, and take no keywords."""
    address = (
        jit.address("tests.everything.d.isbaaaaatnaaa", lambda: None, ".py")
        if compiled("d", "isbaaaaatnaaa")
        else 0
    )
    code = prebuilt.python_function("a.name", address)
    assert code.__name__ == "a.name"
    assert sys.getrefcount(code) == 2
    with pytest.raises(TypeError):
        code(*arguments(np.float64, True)[:-1], out=np.zeros(27))
    del code
    gc.collect()
    again = prebuilt.python_function("a.name", address)
    assert again(*arguments(np.float64, True)) == -3 + 0.1


# --- the form for small arrays --------------------------------------------------------------------------------


def doubled(start: Count, stop: Count, room: Floats, x: Block, y: Block, number: Number) -> None:
    """y = 2 x + number."""
    for row in range(start, stop):
        for k in range(x.shape[1]):
            y[row, k, 0] = 2 * x[row, k, 0] + number


def summed(start: Count, stop: Count, room: Floats, x: Block, v: Block, y: Block) -> None:
    """y = x + v."""
    for row in range(start, stop):
        for k in range(x.shape[1]):
            y[row, k, 0] = x[row, k, 0] + v[row, k, 0]


def entered(
    start: Count, stop: Count, room: Floats, x: Entries, t: Entries, y: Entries, sums: Doubles, number: Number
) -> float:
    """y = x + t + number, unless it has no entries; the sum of x and t."""
    total = 0.0
    for k in range(x.size):
        total += x[k] + t[k]
        if y.size:
            y[k] = x[k] + t[k] + number
    return total + 0 * sums.size + 100 * (stop - start - 1)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The small forms of `doubled`, `summed` and `entered`, for float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        found = []
        for function, letters in ((doubled, "iiaaas"), (summed, "iiaaaa"), (entered, "iiaaaaas")):
            kernel = Kernel(f"tests.{function.__name__}")
            kernel.define(function, None, None, True)
            variant = kernel.variant("d", letters)
            address = jit.address(variant.name, lambda variant=variant: variant, ".small.py")
            found.append(prebuilt.python_function(variant.name, address))
        yield found


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 1), (3, 4), (2, 3, 4), (1,) * 20, (1, SMALL), (SMALL, 1)])
def test_small_arrays(small, shape):
    """Of any number of dimensions. The input may be read-only, and may be the output if there is no other."""
    x = np.arange(float(np.prod(shape))).reshape(shape)
    y = np.full(shape, np.nan)
    x.flags.writeable = False
    assert small[0](x, y, 0.5) is True
    np.testing.assert_array_equal(y, 2 * x + 0.5)
    assert small[0](y, y, 0.5) is True
    np.testing.assert_array_equal(y, 4 * x + 1.5)
    v = np.ones(shape)
    assert small[1](x, v, y) is True
    np.testing.assert_array_equal(y, x + 1)
    assert small[1](x, x, y) is True
    np.testing.assert_array_equal(y, 2 * x)


def misaligned(shape):
    return np.zeros(8 * int(np.prod(shape)) + 1, np.uint8)[1:].view(float).reshape(shape)


class Subclass(np.ndarray):
    """An array of another type."""


REFUSED = {
    "no array": [[1.0, 2.0, 3.0]],
    "None": None,
    "a number": 2.5,
    "a subclass": np.zeros((1, 3)).view(Subclass),
    "another dtype": np.zeros((1, 3), np.float32),
    "integers of the same size": np.zeros((1, 3), np.int64),
    "another byte order": np.zeros((1, 3), np.dtype(float).newbyteorder()),
    "another shape": np.zeros((1, 4)),
    "fewer dimensions": np.zeros(3),
    "more dimensions": np.zeros((1, 1, 3)),
    "strides": np.zeros((1, 6))[:, ::2],
    "memory in reverse": np.zeros((1, 3))[:, ::-1],
    "misaligned": misaligned((1, 3)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_plain_is_refused(small, case):
    """Nothing is written then. The first block has the right dtype: its caller has looked."""
    one, plain = REFUSED[case], np.ones((1, 3))
    before = np.array(one, copy=True)
    assert small[0](plain, one, 0.0) is False
    assert small[1](plain, plain, one) is False
    assert small[1](plain, one, np.empty((1, 3))) is False
    if getattr(one, "dtype", None) == np.float64:
        assert small[0](one, plain, 0.0) is False
    np.testing.assert_array_equal(np.array(one), before)
    np.testing.assert_array_equal(plain, 1)


def test_other_refusals(small):
    """Read-only outputs, no items, no dimensions, arrays that are not small, and other numbers of arguments."""
    read_only = np.ones((1, 3))
    read_only.flags.writeable = False
    assert small[0](np.zeros((1, 3)), read_only, 0.0) is False
    for shape in ((), (0,), (0, 3), (3, 0), (1, SMALL + 1), (SMALL + 1, 1), (SMALL // 64 + 1, 8, 8)):
        assert small[0](np.zeros(shape), np.zeros(shape), 0.0) is False
    for given in ((), (read_only,), (read_only,) * 4):
        assert small[0](*given) is False


def test_outputs_that_share_memory(small):
    """They are refused, except for an output that is the only input. Neighbours share none."""
    room = np.arange(SMALL * 1.0)
    for shift in (0, 1, 2, 3, 5, 6, 100):
        x, y = room[10:14], room[10 + shift :][:4]
        assert small[0](x, y, 0.0) is (shift >= 4)
        assert small[0](y, x, 0.0) is (shift >= 4)
        assert small[1](np.ones(4), x, y) is (shift >= 4)
        assert small[1](x, np.ones(4), y) is (shift >= 4)
    x = room[:4]
    assert small[1](x, np.ones(4), x) is False


NONE = np.empty(0)


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 1), (3, 4), (2, 3, 4), (1,) * 20, (CHUNK,), (1, CHUNK)])
def test_small_entries(small, shape):
    """Of any shape, as one chunk. The output may be the first input, or None."""
    x = np.arange(float(np.prod(shape))).reshape(shape)
    t, y = x + 1, np.full(shape, np.nan)
    x.flags.writeable = t.flags.writeable = False
    assert small[2](x, t, y, NONE, 0.5) == (2 * x + 1).sum()
    np.testing.assert_array_equal(y, 2 * x + 1.5)
    assert small[2](x, t, None, NONE, 0.5) == (2 * x + 1).sum()
    assert small[2](x, x, None, NONE, 0.5) == 2 * x.sum()
    assert small[2](y, x, y, NONE, 0.5) == (3 * x + 1.5).sum()
    np.testing.assert_array_equal(y, 3 * x + 2)


@pytest.mark.parametrize("case", REFUSED)
def test_entries_that_are_not_plain_are_refused(small, case):
    one, plain = REFUSED[case], np.ones((1, 3))
    before = np.array(one, copy=True)
    assert small[2](plain, one, np.empty((1, 3)), NONE, 0.0) == -1
    assert small[2](plain, one, None, NONE, 0.0) == -1
    if one is not None:
        assert small[2](plain, plain, one, NONE, 0.0) == -1
    if getattr(one, "dtype", None) == np.float64:
        assert small[2](one, plain, None, NONE, 0.0) == -1
    np.testing.assert_array_equal(np.array(one), before)
    np.testing.assert_array_equal(plain, 1)


def test_other_entries_that_are_refused(small):
    """Read-only outputs, no entries, no dimensions, more than a chunk, outputs over the second input or a part."""
    x, read_only = np.zeros(4), np.zeros(4)
    read_only.flags.writeable = False
    assert small[2](x, x, read_only, NONE, 0.0) == -1
    for shape in ((), (0,), (0, 3), (CHUNK + 1,), (CHUNK // 64 + 1, 8, 8)):
        assert small[2](np.zeros(shape), np.zeros(shape), None, NONE, 0.0) == -1
    room = np.arange(30.0)
    for shift in (0, 1, 2, 3, 4, 5):
        x, y = room[10:14], room[10 + shift :][:4]
        apart = shift >= 4
        assert (small[2](x, np.ones(4), y, NONE, 0.0) != -1) is apart
        assert (small[2](np.ones(4), x, y, NONE, 0.0) != -1) is apart
    assert small[2](np.ones(4), x, x, NONE, 0.0) == -1
    assert small[2](x, x, x, NONE, 0.0) == -1
    assert small[2](x, x) == -1


def test_the_small_form_keeps_no_reference(small):
    x, y = np.zeros((1, 3)), np.zeros((1, 3))
    objects = x, y, x.dtype, True, False, None
    before = [sys.getrefcount(one) for one in objects]
    for _ in range(1000):
        small[0](x, y, 0.0)
        small[0](x, y)
        small[2](x, x, y, NONE, 0.0)
        small[2](x, x, None, NONE, 0.0)
    after = [sys.getrefcount(one) for one in objects]
    assert np.abs(np.subtract(after, before)).max() < 100


# --- other results ---------------------------------------------------------------------------------------------


def wrapped(status, result=None, loop=False):
    """A module with the functions around one that returns `status`, and writes `result` unless it is None."""
    module = ir.Module("outer")
    function = wrappers.declare(module, "outer", [wrappers.I64], loop)
    build = ir.IRBuilder(function.append_basic_block())
    if result is not None:
        build.store(wrappers.DOUBLE(result), function.args[-1])
    build.ret(wrappers.I32(status))
    if not loop:
        wrappers.add(function, [wrappers.I64], None if result is None else wrappers.DOUBLE, small=False)
    code = binding.parse_assembly(str(module))
    wrappers.hide(code, "outer")
    return code


def made(status, result=None):
    """An engine with these functions."""
    return jit.engine(targets.object_code(wrapped(status, result), targets.this_process()))


@pytest.mark.parametrize("status", [1, 2, -1, -4])
def test_another_status_than_0(status):
    """In Python it is an exception, in C the result."""
    engine = made(status)
    code = prebuilt.python_function("outer", engine.get_function_address("outer.py"))
    for _ in range(3):
        with pytest.raises(IndexError, match=r"^kernel access outside its array$"):
            code(1)
    plain = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p)
    assert plain(engine.get_function_address("outer"))(1, None) == status


def test_a_result():
    engine = made(0, 0.1)
    found = prebuilt.python_function("outer", engine.get_function_address("outer.py"))(1)
    assert (found, type(found)) == (0.1, float)
    place = ctypes.c_double()
    plain = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p)
    assert plain(engine.get_function_address("outer"))(1, ctypes.addressof(place)) == 0
    assert place.value == 0.1


def test_no_result():
    engine = made(0)
    assert prebuilt.python_function("outer", engine.get_function_address("outer.py"))(1) is None


@pytest.mark.parametrize(("loop", "names"), [(False, {"outer", "outer.py"}), (True, {"outer"})])
def test_only_these_functions_are_exported(loop, names):
    code = wrapped(0, loop=loop)
    exported = {
        one.name for one in code.functions if not one.is_declaration and one.linkage == binding.Linkage.external
    }
    assert exported == names
