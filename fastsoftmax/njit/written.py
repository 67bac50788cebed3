"""Functions around a kernel that Python writes as LLVM code.

Numba takes one to two milliseconds for each statement of a function that it compiles: to copy it into its caller,
to infer its types, to lower it. The functions that call kernels have dozens of statements, and nearly all are
calls of functions that generate code (`generated`, `arguments`, `machine.external`). So Python runs such a
function once, with a stand-in for each argument, and each call adds its code to the user's function.

Such a function has no loops, and branches by `either` only: Python would run them when the code is
written. What needs them is compiled by Numba, and called.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial, partialmethod
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple

from numba import typeof, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastsoftmax.njit.generated import load, require
from fastsoftmax.runtime.numba_private import compiled_call, impl_ret_borrowed, release

Generate = Callable[[Any, Any, Sequence[Any]], Any]
"""``context, builder, operands -> value``, which adds code. The value has a reference to its memory of its own."""


class Value:
    """A stand-in for a value: its type is known, and how it is computed."""

    __hash__ = None  # type: ignore[assignment]  # == compares in compiled code

    def __init__(self, record: "_Record", kind: Any, place: int, owned: bool) -> None:
        self._record, self.kind, self.place, self.owned = record, kind, place, owned

    def __bool__(self) -> bool:
        raise TypeError("this value is not known when the code is written")

    @property
    def ndim(self) -> int:
        return int(self.kind.ndim)

    @property
    def shape(self) -> Any:
        return self._record.add(types.UniTuple(types.intp, self.ndim), self._field("shape"), [self])

    @property
    def size(self) -> Any:
        return self._record.add(types.intp, self._field("nitems"), [self])

    def _field(self, name: str) -> Generate:
        return lambda context, builder, values: getattr(
            context.make_array(self.kind)(context, builder, values[0]), name
        )

    def __len__(self) -> int:
        return len(self.kind)

    def __iter__(self) -> Iterator[Any]:
        return iter([self[k] for k in range(len(self))])

    def __getitem__(self, k: Any) -> Any:
        """An item or a part of a tuple; the first item of an array."""
        if isinstance(self.kind, types.Array):
            return self._record.add(self.kind.dtype, self._first_item, [self])
        if isinstance(k, slice):
            return tuple([self[n] for n in range(len(self))[k]])
        return self._record.add(self.kind[k], partial(_item, k), [self])

    def _first_item(self, context: Any, builder: Any, values: Sequence[Any]) -> Any:
        array = context.make_array(self.kind)(context, builder, values[0])
        return load(context, builder, self.kind, array.data)

    def _with(self, name: str, other: Any, swapped: bool = False) -> Any:
        pair = [self._record.value(one) for one in ((other, self) if swapped else (self, other))]
        one, two = (types.unliteral(value.kind) for value in pair)
        real = isinstance(one, types.Float) or isinstance(two, types.Float)
        common = one if one == two else types.float64 if real else types.intp
        floats = "fcmp_unordered" if name == "!=" else "fcmp_ordered"
        method, result = (floats if real else "icmp_signed"), types.boolean
        if name in _ARITHMETIC:
            method, result = _ARITHMETIC[name][real], common

        def generate(context: Any, builder: Any, values: Sequence[Any]) -> Any:
            numbers = _cast(context, builder, pair, values, [common, common])
            generate_one = getattr(builder, method)
            return generate_one(*numbers) if name in _ARITHMETIC else generate_one(name, *numbers)

        return self._record.add(result, generate, pair)

    __add__ = partialmethod(_with, "+")
    __sub__ = partialmethod(_with, "-")
    __rsub__ = partialmethod(_with, "-", swapped=True)
    __mul__ = __rmul__ = partialmethod(_with, "*")
    __floordiv__ = partialmethod(_with, "//")  # of integers that are not negative
    __truediv__ = partialmethod(_with, "/")  # of floats
    __rtruediv__ = partialmethod(_with, "/", swapped=True)
    __and__ = partialmethod(_with, "&")
    __or__ = partialmethod(_with, "|")
    __eq__ = partialmethod(_with, "==")
    __ne__ = partialmethod(_with, "!=")
    __lt__ = partialmethod(_with, "<")
    __le__ = partialmethod(_with, "<=")
    __gt__ = partialmethod(_with, ">")
    __ge__ = partialmethod(_with, ">=")

    def __neg__(self) -> Any:
        return 0 - self


_ARITHMETIC = {
    "+": ("add", "fadd"),
    "-": ("sub", "fsub"),
    "*": ("mul", "fmul"),
    "//": ("sdiv", ""),
    "/": ("", "fdiv"),
    "&": ("and_", ""),
    "|": ("or_", ""),
}


class _Record:
    """The steps of a function that is being written, in the order in which they run."""

    def __init__(self, typing: Any) -> None:
        self.typing = typing
        self.steps: list[tuple[Value, Generate, Sequence[Value]]] = []
        self._count = 0

    def new(self, kind: Any, owned: bool = False) -> Value:
        """A value that is not in a step yet."""
        self._count += 1
        return Value(self, kind, self._count, owned and _is_counted(kind))

    def add(self, kind: Any, generate: Generate, operands: Sequence[Value], owned: bool = False) -> Any:
        """The value of a new step; None if its type says that it is None.

        An `owned` one has a reference to its memory. Others have that of operands, which are kept to the end.
        """
        value = self.new(kind, owned)
        self.steps.append((value, generate, operands))
        return None if isinstance(kind, types.NoneType) else value

    def value(self, given: Any) -> Value:
        """A value, a constant of Python, or a tuple of them, as a value."""
        if isinstance(given, Value):
            return given
        if isinstance(given, tuple):
            return self._tuple(given)
        kind = types.literal(given) if isinstance(given, (bool, int, str)) else typeof(given)
        value = self.new(kind)
        self.steps.append((value, partial(_constant, kind, given), []))
        return value

    def _tuple(self, given: tuple[Any, ...]) -> Value:
        items = [self.value(item) for item in given]
        kind = types.BaseTuple.from_types(tuple([item.kind for item in items]), type(given))

        def make(context: Any, builder: Any, values: Sequence[Any]) -> Any:
            return context.make_tuple(builder, kind, _cast(context, builder, items, values, kind))

        made: Value = self.add(kind, make, items)
        return made

    def call(self, definition: Callable[..., Any], *arguments: Any) -> Any:
        """A call of an intrinsic, which has this definition."""
        operands = [self.value(argument) for argument in arguments]
        signature, codegen = definition(self.typing, *[operand.kind for operand in operands])

        def generate(context: Any, builder: Any, values: Sequence[Any]) -> Any:
            cast = _cast(context, builder, operands, values, signature.args)
            return codegen(context, builder, signature, cast)

        return self.add(signature.return_type, generate, operands, owned=True)

    def call_compiled(self, dispatcher: Any, *arguments: Any) -> Any:
        """A call of a function that Numba compiles."""
        operands = [self.value(argument) for argument in arguments]
        kinds = tuple([_widened(operand.kind) for operand in operands])
        signature, call = compiled_call(self.typing, dispatcher, kinds)

        def generate(context: Any, builder: Any, values: Sequence[Any]) -> Any:
            return call(context, builder, _cast(context, builder, operands, values, signature.args))

        return self.add(signature.return_type, generate, operands, owned=True)

    def branch(self, chosen: "_Either", condition: Any, *arguments: Any) -> Any:
        """The result of one of two functions."""
        outer, parts, results = self.steps, [], []
        for function in chosen:
            self.steps = []
            results.append(self.value(_stand_in(self, function)(*arguments)))
            parts.append(self.steps)
        self.steps = outer
        kind, test = _widened(results[0].kind), self.value(condition)
        inside = {value.place for part in parts for value, _, _ in part}
        used = [one for part in parts for _, _, operands in part for one in operands] + results
        outside = list({one.place: one for one in used if one.place not in inside}.values())

        def generate(context: Any, builder: Any, values: Sequence[Any]) -> Any:
            room = cgutils.alloca_once(builder, context.get_value_type(kind))
            with builder.if_else(values[0]) as branches:
                for branch, part, result in zip(branches, parts, results, strict=True):
                    with branch:
                        known = {one.place: value for one, value in zip(outside, values[1:], strict=True)}
                        builder.store(_write(context, builder, part, known, result, kind), room)
            return builder.load(room)

        return self.add(kind, generate, [test, *outside], owned=True)


def _constant(kind: Any, given: Any, context: Any, builder: Any, values: Sequence[Any]) -> Any:
    """A constant; a dummy for texts, classes and None, which exist when the code is written only."""
    if isinstance(kind, (types.Number, types.Boolean, types.BooleanLiteral, types.Array)):
        return context.get_constant_generic(builder, types.unliteral(kind), given)
    return context.get_dummy_value()


def _item(k: int, context: Any, builder: Any, values: Sequence[Any]) -> Any:
    """An item of the tuple that is the only operand."""
    return cgutils.unpack_tuple(builder, values[0])[k]


def _cast(context: Any, builder: Any, operands: Any, values: Any, kinds: Any) -> list[Any]:
    """The values of operands in other types; `kinds` may have more than there are values."""
    return [
        context.cast(builder, value, operand.kind, kind)
        for operand, value, kind in zip(operands, values, kinds, strict=False)
    ]


def _widened(kind: Any) -> Any:
    """The type of a value without what is known about it: integers, not literals, and tuples of one type."""
    if isinstance(kind, (types.UniTuple, types.Tuple)):
        return types.BaseTuple.from_types(tuple([_widened(item) for item in kind]))
    return types.unliteral(kind)


def _is_counted(kind: Any) -> bool:
    """Whether values of a type have memory whose references are counted."""
    if isinstance(kind, types.BaseTuple):
        return any(map(_is_counted, kind))
    return isinstance(kind, types.Array)


def _write(context: Any, builder: Any, steps: Any, known: dict[int, Any], result: Value, kind: Any) -> Any:
    """Add the code of some steps, and release what they own, except the result, which is returned as this type."""
    for value, generate, operands in steps:
        known[value.place] = generate(context, builder, [known[operand.place] for operand in operands])
    returned = context.cast(builder, known[result.place], result.kind, kind)
    kept = result.owned and any(value is result for value, _, _ in steps)
    if not kept:
        returned = impl_ret_borrowed(context, builder, kind, returned)
    for value, _, _ in steps:
        if value.owned and not (kept and value is result):
            release(context, builder, value.kind, known[value.place])
    return returned


class _Either(NamedTuple):
    first: Any
    second: Any


def either(first: Any, second: Any) -> Any:
    """The function ``condition, arguments...``, which calls `first` if the condition holds, else `second`."""
    return _Either(first, second)


def _names(code: CodeType) -> set[str]:
    """The names that a function and those inside it use."""
    names = set(code.co_names)
    for one in code.co_consts:
        if isinstance(one, CodeType):
            names |= _names(one)
    return names


_INTRINSIC = type(require)


def _stand_in(record: _Record, given: Any) -> Any:
    """What a function that is being written calls instead of a function for compiled code."""
    if isinstance(given, _INTRINSIC):
        return partial(record.call, given.__wrapped__)
    if isinstance(given, _Either):
        return partial(record.branch, given)
    function = getattr(given, "py_func", None)
    if function is None:
        return given
    if hasattr(function, "is_merged"):
        return partial(_run, record, function)
    return partial(record.call_compiled, given)


def _run(record: _Record, function: Any, *arguments: Any) -> Any:
    """Run a function with stand-ins instead of the functions for compiled code that it names."""
    names = _names(function.__code__) & function.__globals__.keys()
    home = {**function.__globals__, **{name: _stand_in(record, function.__globals__[name]) for name in names}}
    cells = tuple([CellType(_stand_in(record, cell.cell_contents)) for cell in function.__closure__ or ()])
    code, name, defaults = function.__code__, function.__name__, function.__defaults__
    return FunctionType(code, home, name, defaults, cells)(*arguments)


def written(function: Any) -> Any:
    """A function for compiled code whose code Python writes."""

    def define(typingctx: Any, *given: Any) -> Any:
        record = _Record(typingctx)
        arguments = [record.new(kind) for kind in given]
        taken = [None if isinstance(one.kind, types.NoneType) else one for one in arguments]
        result = record.value(_run(record, function, *taken))
        kind = _widened(result.kind)

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            known = {one.place: value for one, value in zip(arguments, values, strict=True)}
            return _write(context, builder, record.steps, known, result, kind)

        return kind(*given), codegen

    first = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    own = inspect.signature(function).parameters.values()
    define.__signature__ = inspect.Signature([first, *own])  # type: ignore[attr-defined]
    return intrinsic(define)
