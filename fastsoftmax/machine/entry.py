"""Kernels as Python calls them: the machine code for the types of the arguments, wherever it comes from.

A kernel has machine code for each dtype, and for each choice of which optional arguments are None (a *variant*).
`Kernel.code` looks for a variant in the library that was made before (`runtime.prebuilt`). If it is not there, the
variant is compiled and kept in the cache directory (`jit`). Numba is imported only then.

The parameters of a kernel are annotated with the names below. An annotation lists the kinds of argument that a
parameter takes; every combination of them is a variant.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from importlib import import_module
from typing import Annotated, Any, NamedTuple, TypeAlias, get_args

import numpy as np

from fastsoftmax.runtime import fork
from fastsoftmax.runtime.numba_state import jit_disabled

Count: TypeAlias = Annotated[Any, "int"]
Number: TypeAlias = Annotated[Any, "float"]
Flag: TypeAlias = Annotated[Any, "bool"]
Room: TypeAlias = Annotated[Any, "floats 1"]
Floats: TypeAlias = Annotated[Any, "floats 1"]
Entries: TypeAlias = Annotated[Any, "entries 1"]
Table: TypeAlias = Annotated[Any, "floats 2"]
Block: TypeAlias = Annotated[Any, "floats 3"]
Integers: TypeAlias = Annotated[Any, "ints 1"]
Doubles: TypeAlias = Annotated[Any, "doubles 1"]
Halves: TypeAlias = Annotated[Any, "halves 1"]
Flags: TypeAlias = Annotated[Any, "bools 1"]
Temperature: TypeAlias = Annotated[Any, "none", "tuple 5"]
Tempered: TypeAlias = Annotated[Any, "tuple 5"]
Nothing: TypeAlias = Annotated[Any, "none"]
MaybeTable: TypeAlias = Annotated[Any, "none", "floats 2"]
MaybeBlock: TypeAlias = Annotated[Any, "none", "floats 3"]
MaybeFloats: TypeAlias = Annotated[Any, "none", "floats 1"]
MaybeIntegers: TypeAlias = Annotated[Any, "none", "ints 1"]
MaybeFlag: TypeAlias = Annotated[Any, "none", "bool"]
Addresses: TypeAlias = Annotated[Any, "addresses"]
Sizes: TypeAlias = Annotated[Any, "sizes"]
Address: TypeAlias = Annotated[Any, "address"]

MODULES = (
    "activations",
    "binary",
    "capped",
    "derivatives",
    "divergences",
    "entropy",
    "focal",
    "halves",
    "losses",
    "loops",
    "metrics",
    "pieces",
    "reductions",
    "sampling",
    "segments",
    "statistics",
)
"""The modules that define kernels."""

_LETTERS = {
    int: "i", np.int64: "i", float: "s", np.float32: "s", np.float64: "s", bool: "b", np.bool_: "b",
    type(None): "n", np.ndarray: "a", tuple: "t",
}  # fmt: skip
_LETTER_OF_KIND = {"int": "i", "float": "s", "bool": "b", "none": "n", "tuple 5": "t"}


def _letter_of(kind: type) -> str:
    """The letter of an argument of this type; an array may be of a subclass, as a memory map is."""
    return _LETTERS.get(kind) or ("a" if issubclass(kind, np.ndarray) else "?")


class Parameter(NamedTuple):
    """A parameter of a kernel: the kinds of argument that it takes."""

    name: str
    kinds: tuple[str, ...]


def letter(kind: str) -> str:
    """The letter of a kind of argument in the name of a variant."""
    return _LETTER_OF_KIND.get(kind, "a")


class Variant(NamedTuple):
    """A kernel for one dtype and one choice of its optional arguments."""

    kernel: "Kernel"
    dtype: str
    """"f" or "d", "i" if the kernel takes no floats, "e" for loops in float16."""
    kinds: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its function in a library, without the prefix."""
        return f"{self.kernel.name}.{self.dtype}.{''.join(map(letter, self.kinds))}"

    @property
    def is_loop(self) -> bool:
        """Whether NumPy calls it, with addresses only."""
        return self.kinds[0] == "addresses"


on_compilation: Callable[[], None] = lambda: None  # noqa: E731
"""It is called before a variant is compiled. The command line sets it, to say what takes seconds."""

_kernels: dict[str, "Kernel"] = {}
_modules: list[Any] = []


def _prebuilt() -> Any:
    """The module with the library. It is imported here, because it takes longer than importing this package."""
    if _modules:  # no lock then: Numba's may be held
        return _modules[0]
    with fork.importing:
        from fastsoftmax.runtime import prebuilt

        prebuilt.library()
    _modules.append(prebuilt)
    return prebuilt


def _jit() -> Any:
    """The module that makes code in this process."""
    from fastsoftmax.runtime import interrupts

    with fork.importing, interrupts.held():
        from fastsoftmax.machine import jit
    return jit


class Kernel:
    """A function that computes blocks of arrays; see the contract in `fastsoftmax.kernels`."""

    def __init__(self, name: str) -> None:
        self.name = name
        """Module and function, as "losses.cross_entropy"."""
        self._function: Callable[..., Any] | None = None
        self._unless: Callable[..., bool] | None = None
        self._dtypes: str | None = None
        self.small = False
        """Whether it has a form for small arrays."""
        self._floats: int | None = None
        self._codes: dict[tuple[Any, ...], Any] = {}

    def __repr__(self) -> str:
        """Its name."""
        return f"<kernel {self.name}>"

    def define(
        self,
        function: Callable[..., Any],
        unless: Callable[..., bool] | None,
        dtypes: str | None,
        small: bool = False,
    ) -> None:
        """Set the function that is compiled, and what `kernels.jit.kernel` was given."""
        self._function, self._unless, self._dtypes, self.small = function, unless, dtypes, small

    @property
    def function(self) -> Callable[..., Any]:
        """The function that is compiled; KeyError if there is none. It imports Numba."""
        module = self.name.rpartition(".")[0]
        if self._function is None and module in MODULES:
            with fork.importing:
                import_module(f"fastsoftmax.kernels.{module}")
        if self._function is None:
            raise KeyError(self.name)
        return self._function

    @cached_property
    def parameters(self) -> list[Parameter]:
        """The parameters, in order."""
        described = inspect.signature(self.function).parameters.values()
        found = [Parameter(one.name, get_args(one.annotation)[1:]) for one in described]
        assert all(one.kinds for one in found), f"{self.name} has a parameter without a kind"
        return found

    @property
    def result(self) -> Any:
        """None, or the type of the result: float."""
        return inspect.signature(self.function).return_annotation

    @property
    def dtypes(self) -> str:
        """The dtypes that it is compiled for."""
        kinds = [kind for parameter in self.parameters for kind in parameter.kinds]
        return self._dtypes or (
            "fd" if any(kind.startswith(("float", "entries", "tuple")) for kind in kinds) else "i"
        )

    def variants(self) -> Iterator[Variant]:
        """All variants."""
        names = [parameter.name for parameter in self.parameters]
        for picks in itertools.product(*(parameter.kinds for parameter in self.parameters)):
            present = {name: kind != "none" for name, kind in zip(names, picks, strict=True)}
            if self._unless is None or not self._unless(**present):
                for dtype in self.dtypes:
                    yield Variant(self, dtype, picks)

    def variant(self, dtype: str, letters: str) -> Variant:
        """The variant with this dtype and these letters; KeyError if the kernel has no such parameters."""
        pairs = zip(self.parameters, letters, strict=False)
        kinds = tuple([kind for parameter, one in pairs for kind in parameter.kinds if letter(kind) == one])
        if not len(kinds) == len(letters) == len(self.parameters) or dtype not in self.dtypes:
            raise KeyError(f"{self.name}.{dtype}.{letters}")
        return Variant(self, dtype, kinds)

    def __call__(self, *arguments: Any) -> Any:
        """Run the code for arguments of these types."""
        return self.code(arguments)(*arguments)

    def code(self, arguments: tuple[Any, ...]) -> Any:
        """The function for arguments of these types, which it does not check: call it only with such."""
        at = self._floats
        if at is None:
            at = self._floats = self._first_floats(arguments)
        key = (arguments[at].dtype, *map(type, arguments))
        return self._codes.get(key) or self._find(key)

    @staticmethod
    def _first_floats(arguments: tuple[Any, ...]) -> int:
        arrays = [k for k, one in enumerate(arguments) if isinstance(one, np.ndarray)]
        return next((k for k in arrays if arguments[k].dtype.kind == "f"), arrays[0])

    def _find(self, key: tuple[Any, ...]) -> Any:
        if jit_disabled():
            code: Any = self._as_python
        else:
            # Arrays of subclasses share one code, so that nothing is kept for their classes.
            kinds = [np.ndarray if issubclass(kind, np.ndarray) else kind for kind in key[1:]]
            key = (key[0], *kinds)
            if key in self._codes:
                return self._codes[key]
            code = self._function_of_python(key[0], kinds, ".py")
        self._codes[key] = code
        return code

    def _function_of_python(self, dtype: np.dtype[Any], kinds: list[type], form: str) -> Any:
        char = dtype.char if dtype.kind == "f" else "i"
        letters = "".join(map(_letter_of, kinds))
        return _prebuilt().python_function(f"{self.name}.{char}.{letters}", self.address(char, letters, form))

    def codes(self, dtype: np.dtype[Any], *arguments: Any) -> "Codes":
        """The forms for arguments of these types; the first block has this dtype."""
        code = self.code(arguments)
        if jit_disabled():
            refused = -1.0 if self.result is float else False
            return Codes(lambda *given: refused, code)
        return Codes(self._function_of_python(dtype, [*map(type, arguments)], ".small.py"), code)

    def address(self, dtype: str, letters: str, form: str = "") -> int:
        """The address of a variant's function for C, or of that for Python with this ending."""
        if jit_disabled():
            raise NotImplementedError("there is no machine code under NUMBA_DISABLE_JIT")
        library = _prebuilt().library()
        name = f"{self.name}.{dtype}.{letters}"
        found: int | None = library and library.address(name + form)
        if found:
            return found

        def wanted() -> Variant:
            on_compilation()
            return self.variant(dtype, letters)

        address: int = _jit().address(name, wanted, form)
        return address

    def _as_python(self, *arguments: Any) -> Any:
        """The function as Python runs it, without a warning of infinities and NaN."""
        blocks = []
        for one, parameter in zip(arguments, self.parameters, strict=True):
            if isinstance(one, np.ndarray) and parameter.kinds[-1] == f"floats {one.ndim + 1}":
                one = one.reshape(*one.shape, 1)
            blocks.append(one)
        with np.errstate(all="ignore"):
            return self.function(*blocks)


class Codes(NamedTuple):
    """The forms of a kernel for plain arrays. They do not check the types of other arguments."""

    small: Callable[..., Any]
    """Takes the arguments behind the working memory. It runs the kernel on all rows and returns True, or returns
    False if the blocks are not small, or have to be converted or refused. The first one must have the right dtype.
    For a kernel with a result it returns that, or -1. `machine.wrappers` says what else it takes.
    """
    code: Callable[..., Any]
    """The form for all arrays, as `Kernel.code` returns it."""


class Team(NamedTuple):
    """The functions with which threads share the rows of a call; see `machine.teams`."""

    drive: int
    """The address of the caller's, which kernels call."""
    drive_apart: int
    """That for rows that lie apart."""
    join: Callable[[int, int, int], None]
    """The helpers', as a function of Python."""
    meet: Callable[[int, int, int], None]
    """That of a caller that has woken them, as a function of Python."""


@cache
def team() -> Team:
    """These functions, from the library or made now."""
    names = ("teams.drive", "teams.drive_apart", "teams.join.py", "teams.meet.py")
    library = _prebuilt().library()
    found = [library and library.address(name) for name in names]
    if not all(found):
        found = [_jit().team_address(name) for name in names]
    drive, drive_apart, *addresses = found
    join, meet = map(_prebuilt().python_function, names[2:], addresses)
    return Team(int(drive or 0), int(drive_apart or 0), join, meet)


def entry(name: str) -> Kernel:
    """The kernel of this name, as "losses.cross_entropy"; its module need not be imported."""
    return _kernels.get(name) or _kernels.setdefault(name, Kernel(name))


def kernels() -> list[Kernel]:
    """All kernels. It imports their modules, and Numba."""
    for module in MODULES:
        with fork.importing:
            import_module(f"fastsoftmax.kernels.{module}")
    return [kernel for kernel in _kernels.values() if kernel._function is not None]


def address(name: str) -> int:
    """The address of a variant's function for C by its full name; KeyError if this version has no such variant."""
    prefix = _prebuilt().PREFIX
    parts = name.removeprefix(prefix).rsplit(".", 2)
    if not name.startswith(prefix) or len(parts) < 3:
        raise KeyError(name)
    kernel, dtype, letters = parts
    return entry(kernel).address(dtype, letters)


def find(name: str) -> int:
    """As `address`, for compiled code: 0 instead of an exception, except for those of Ctrl-C and `sys.exit`."""
    try:
        return address(name)
    except Exception:
        return 0


def remember(table: dict[Any, Any], key: Any, kernel: Kernel, *arguments: Any) -> None:
    """Put the code for arguments of these types, which has been used, into ``table[key]``.

    It does not check the types of its arguments, so its callers must pass these types. An array may have one
    dimension less than the kernel's block: it is a block whose last dimension is 1.
    """
    if key not in table:
        table[key] = kernel.code(arguments)
