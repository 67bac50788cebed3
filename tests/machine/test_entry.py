"""Kernels as Python calls them: their variants, the names of these, and their addresses."""

import child
import numpy as np
import pytest

from fastsoftmax.machine import entry, library
from fastsoftmax.machine.entry import (
    Count,
    Flag,
    Integers,
    Kernel,
    MaybeFloats,
    MaybeTable,
    Number,
    Temperature,
)
from fastsoftmax.runtime import prebuilt

VALUES = {
    "int": (3, np.int64(3)),
    "float": (0.5, np.float32(0.5), np.float64(0.5)),
    "bool": (True, np.True_),
    "none": (None,),
    "tuple 5": ((1.0,) * 5,),
    "floats 1": (np.zeros(2), np.zeros(2).view(np.recarray)),
    "entries 1": (np.zeros(2),),
    "floats 2": (np.zeros((2, 2)),),
    "floats 3": (np.zeros((2, 2, 1)),),
    "doubles 1": (np.zeros(2),),
    "halves 1": (np.zeros(2, np.uint16),),
    "ints 1": (np.zeros(2, np.int64),),
    "bools 1": (np.zeros(2, np.bool_),),
}
"""Arguments of every kind that Python passes."""


def kernel(function, **options):
    made = Kernel(f"tests.{function.__name__}")
    made.define(function, options.get("unless"), options.get("dtypes"))
    return made


def test_every_variant_has_a_name_of_its_own():
    names = [variant.name for variant in library.variants()]
    assert len(set(names)) == len(names) > 100


def test_a_name_leads_back_to_its_variant():
    for variant in library.variants():
        name, dtype, letters = variant.name.rsplit(".", 2)
        assert entry.entry(name).variant(dtype, letters) == variant


def test_every_module_with_kernels_is_listed():
    folder = child.PACKAGE / "kernels"
    found = {path.stem for path in folder.glob("*.py") if "@kernel" in path.read_text()}
    assert found == set(entry.MODULES)
    assert {one.name.partition(".")[0] for one in entry.kernels()} == found


def test_letters():
    """An argument has the letter of its kind, and a parameter takes no two kinds with one letter."""
    kinds = {kind for one in entry.kernels() for parameter in one.parameters for kind in parameter.kinds}
    assert kinds - {"addresses", "sizes", "address"} <= set(VALUES)
    for kind, values in VALUES.items():
        assert {entry._letter_of(type(value)) for value in values} == {entry.letter(kind)}
    for one in entry.kernels():
        for parameter in one.parameters:
            assert len(set(map(entry.letter, parameter.kinds))) == len(parameter.kinds)


def test_variants():
    def function(n: Count, x: MaybeTable, y: MaybeFloats) -> None:
        pass

    names = [variant.name.removeprefix("tests.function.") for variant in kernel(function).variants()]
    assert names == ["f.inn", "d.inn", "f.ina", "d.ina", "f.ian", "d.ian", "f.iaa", "d.iaa"]
    options = {"unless": lambda n, x, y: y and not x, "dtypes": "d"}
    names = [variant.name.removeprefix("tests.function.") for variant in kernel(function, **options).variants()]
    assert names == ["d.inn", "d.ian", "d.iaa"]


def test_dtypes():
    """Those of floats, if there are any."""

    def integers(n: Count, x: Integers, b: Flag) -> None:
        pass

    def number(n: Count, x: Integers, y: Number) -> None:
        pass

    def option(x: Integers, beta: Temperature) -> None:
        pass

    assert [kernel(one).dtypes for one in (integers, number, option)] == ["i", "fd", "fd"]
    assert kernel(option, dtypes="e").dtypes == "e"


def test_the_dtype_is_that_of_the_first_floats():
    """Integers before them do not count, and without floats the name says so."""
    floats = np.zeros(3, np.float32)
    assert Kernel._first_floats((1, np.zeros(2, np.int64), None, floats, np.zeros(3))) == 3
    assert Kernel._first_floats((1, np.zeros(2, np.int64), None)) == 1


@pytest.mark.parametrize(
    "name",
    [
        "nonsense",
        "fastsoftmax_0.activations.softmax.f.iiaaan",
        "activations.softmax.f.iiaaan",
        f"{prebuilt.PREFIX}",
        f"{prebuilt.PREFIX}activations.softmax",
        f"{prebuilt.PREFIX}activations.no_such_kernel.f.iiaaan",
        f"{prebuilt.PREFIX}no_such_module.softmax.f.iiaaan",
        f"{prebuilt.PREFIX}jit.kernel.f.iiaaan",
        f"{prebuilt.PREFIX}activations.softmax.f.iiaan",
        f"{prebuilt.PREFIX}activations.softmax.f.iiaaann",
        f"{prebuilt.PREFIX}activations.softmax.f.iiaaas",
        f"{prebuilt.PREFIX}activations.softmax.e.iiaaan",
        f"{prebuilt.PREFIX}activations.softmax.i.iiaaan",
    ],
)
def test_an_unknown_address(name):
    """KeyError, where there is such a kernel with other arguments, too. Compiled code gets 0."""
    with pytest.raises(KeyError):
        entry.address(name)
    assert entry.find(name) == 0


def test_a_known_address():
    variant = next(variant for variant in library.variants() if variant.kernel.name == "activations.softmax")
    found = entry.address(prebuilt.PREFIX + variant.name)
    assert found == entry.find(prebuilt.PREFIX + variant.name) > 1 << 12
    assert found != entry.address(prebuilt.PREFIX + variant.name.replace(".f.", ".d.")) or ".d." in variant.name


FAILED = """
import numpy as np
import fastsoftmax as fs
from fastsoftmax.machine import entry, frontend

def failing(variant):
    raise RuntimeError(variant.name)

module, frontend.module = frontend.module, failing
for k in range(3):
    try:
        fs.logsumexp(np.zeros((2, 3)))
    except RuntimeError as error:
        print(error)
frontend.module = module
np.testing.assert_allclose(fs.logsumexp(np.zeros((2, 3))), np.log(3))
np.testing.assert_allclose(fs.logsumexp(np.zeros((2, 3), "f4")), np.log(3), rtol=1e-6)
"""


def test_a_compilation_that_fails(tmp_path):
    """The next one works."""
    output = child.run(FAILED, FASTSOFTMAX_PREBUILT=0, FASTSOFTMAX_CACHE_DIR=tmp_path)
    assert output.split() == ["activations.logsumexp.d.iiaaa"] * 3


BOUNDS = """
import numpy as np
import fastsoftmax as fs
from fastsoftmax.machine.entry import entry
from fastsoftmax.runtime import prebuilt

assert prebuilt.library() is None
np.testing.assert_allclose(fs.softmax(np.zeros((4, 60))), 1 / 60)
x, room = np.zeros((4, 60, 1)), np.empty(16 * 60)
kernel = entry("activations.softmax")
kernel(0, 4, room, x, np.empty((4, 60, 1)), None)
for form in (kernel, kernel.code((0, 4, room, x, x, None))):
    try:
        form(0, 4, room, x, np.empty((3, 60, 1)), None)
    except IndexError as error:
        print(error)
"""


def test_bounds_are_checked_on_request(tmp_path):
    """With NUMBA_BOUNDSCHECK=1 no library is used, and an access outside of an array is an IndexError."""
    output = child.run(BOUNDS, NUMBA_BOUNDSCHECK=1, FASTSOFTMAX_CACHE_DIR=tmp_path)
    assert output.splitlines() == ["kernel access outside its array"] * 2


ANNOUNCED = """
import sys
import numpy as np
import fastsoftmax as fs
from fastsoftmax.machine import entry
from fastsoftmax.runtime import cache

calls = []
entry.on_compilation = lambda: calls.append(1)
for _ in range(3):
    fs.logsumexp(np.zeros((2, 3)))
assert len(calls) == cache.size()[0] - int(sys.argv[1])
print(cache.size()[0])
"""


def test_a_compilation_is_announced(tmp_path):
    """Code from disk is not."""
    options = {"FASTSOFTMAX_PREBUILT": 0, "FASTSOFTMAX_CACHE_DIR": tmp_path}
    count = child.run(ANNOUNCED, 0, **options)
    assert int(count) > 0
    assert child.run(ANNOUNCED, count, **options) == count
