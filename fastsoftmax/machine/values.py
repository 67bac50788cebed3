"""The values that `translate` computes with, and the code of their operators.

What is known when code is written (numbers, None, functions, tuples) is an object of Python. Everything else is a
`Value`. Numbers have the types that Numba gives them: whole numbers are int64, a float of Python is float64, and
float32 with float64 or an integer makes float64.
"""

import ast
import operator
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types

from fastsoftmax.machine.lowering import INT32, INT64, Build, Lanes, Memory, NumbersValue, Operation
from fastsoftmax.machine.syntax import TranslationError
from fastsoftmax.runtime.numba_state import checks_bounds

_BIT = ir.IntType(1)
_OTHER = types.Dummy("an object of Python")
_NUMBERS = {types.boolean, types.int64, types.float32, types.float64}


class Value(NamedTuple):
    """What is computed: its Numba type, and LLVM's value, or `_Numbers` for memory."""

    kind: Any
    code: Any


class Block(NamedTuple):
    """An array: its numbers, and its shape."""

    numbers: Value
    shape: tuple[Any, ...]


class _Numbers(NumbersValue):
    """Memory whose address and size are values of their own, not the fields of a structure."""

    data: Any = None
    size: Any = None

    def __init__(self, build: Build, kind: Memory, data: Any, size: Any) -> None:
        self.build, self.kind, self.data, self.size = build, kind, data, size
        self.element = llvm_type(kind.dtype)
        self.item_bytes = kind.dtype.bitwidth // 8
        self.value = self


@cache
def llvm_type(kind: Any) -> Any:
    """LLVM's type for a Numba type."""
    if isinstance(kind, Lanes):
        return ir.VectorType(llvm_type(kind.dtype), kind.count)
    if isinstance(kind, types.Float):
        return ir.FloatType() if kind.bitwidth == 32 else ir.DoubleType()
    if isinstance(kind, types.Integer):
        return ir.IntType(kind.bitwidth)
    if isinstance(kind, types.Boolean):
        return _BIT
    if isinstance(kind, types.CPointer):
        return llvm_type(kind.dtype).as_pointer()
    if isinstance(kind, Memory):
        return ir.LiteralStructType([llvm_type(kind.dtype).as_pointer(), INT64])
    if kind == types.voidptr:
        return ir.IntType(8).as_pointer()
    raise TranslationError(f"a value of type {kind}")


class _Context:
    """What operations ask of Numba's context."""

    get_value_type = staticmethod(llvm_type)

    @staticmethod
    def cast(builder: Any, value: Any, given: Any, wanted: Any) -> Any:
        """A number of one type as another."""
        goal = llvm_type(wanted)
        if given == wanted:
            return value
        is_signed = isinstance(given, types.Integer) and given.signed
        if isinstance(wanted, types.Float):
            if isinstance(value, ir.Constant):
                return goal(float(value.constant))
            if isinstance(given, types.Float):
                return (builder.fpext if wanted.bitwidth > given.bitwidth else builder.fptrunc)(value, goal)
            return (builder.sitofp if is_signed else builder.uitofp)(value, goal)
        if isinstance(given, types.Float):
            return builder.fptosi(value, goal)
        if value.type.width >= goal.width:
            return value if value.type == goal else builder.trunc(value, goal)
        return (builder.sext if is_signed else builder.zext)(value, goal)


class _Build(Build):
    """As operations use it; memory is `_Numbers`."""

    def memory(self, dtype: Any, data: Any, size: Any) -> Any:
        return _Numbers(self, Memory(dtype), data, size)

    def check(self, outside: Callable[[], Any]) -> None:
        if checks_bounds():
            with self.if_then(outside(), likely=False):
                self.ret(INT32(1))


def kind_of(value: Any) -> Any:
    """The Numba type of a value."""
    if isinstance(value, Value):
        return value.kind
    known = {type(None): types.none, bool: types.boolean, int: types.int64, float: types.float64}
    return known.get(type(value), _OTHER)


def _plain(value: Value) -> Any:
    """A constant integer or truth value as an object of Python; others as they are."""
    found = getattr(value.code, "constant", None)
    if isinstance(value.kind, types.Boolean) and isinstance(found, (bool, int)):
        return bool(found)
    return found if isinstance(value.kind, types.Integer) and isinstance(found, int) else value


@cache
def _common(*kinds: Any) -> Any:
    """The type in which numbers of two types are added or compared."""
    if not set(kinds) <= _NUMBERS:
        raise TranslationError(f"{kinds} are not numbers")
    if types.float64 in kinds or types.float32 in kinds:
        return types.float32 if set(kinds) == {types.float32} else types.float64
    return types.boolean if set(kinds) == {types.boolean} else types.int64


def _in_range(number: Any) -> Any:
    """A constant, unless it is an integer that int64 does not have, where Numba's would overflow."""
    if isinstance(number, int) and not -(2**63) <= number < 2**63:
        raise TranslationError(f"{number} is not an int64")
    return number


_BINARY: dict[Any, tuple[Any, str, str]] = {
    ast.Add: (operator.add, "add", "fadd"),
    ast.Sub: (operator.sub, "sub", "fsub"),
    ast.Mult: (operator.mul, "mul", "fmul"),
    ast.Div: (operator.truediv, "", "fdiv"),
    ast.FloorDiv: (operator.floordiv, "", ""),
    ast.Mod: (operator.mod, "", ""),
    ast.Pow: (operator.pow, "", ""),
    ast.LShift: (operator.lshift, "shl", ""),
    ast.RShift: (operator.rshift, "ashr", ""),
    ast.BitAnd: (operator.and_, "and_", ""),
    ast.BitOr: (operator.or_, "or_", ""),
    ast.BitXor: (operator.xor, "xor", ""),
}
"""Operators: their meaning, and LLVM's instructions for integers and floats."""
_BITWISE = (ast.BitAnd, ast.BitOr, ast.BitXor)
_UNARY: dict[Any, Any] = {ast.USub: operator.neg, ast.Not: operator.not_, ast.Invert: operator.invert}
_COMPARISONS: dict[Any, tuple[Any, str]] = {
    ast.Eq: (operator.eq, "=="),
    ast.NotEq: (operator.ne, "!="),
    ast.Lt: (operator.lt, "<"),
    ast.LtE: (operator.le, "<="),
    ast.Gt: (operator.gt, ">"),
    ast.GtE: (operator.ge, ">="),
}
_CASTS = {
    int: types.int64,
    np.int64: types.int64,
    float: types.float64,
    np.float64: types.float64,
    bool: types.boolean,
}


class _Place(NamedTuple):
    """Where a number of a variable is: its type, and addresses on the stack, two for memory."""

    kind: Any
    addresses: tuple[Any, ...]


class Slot:
    """A variable on the stack, of which LLVM makes registers. Its first value decides what it is."""

    def __init__(self) -> None:
        self.content: Any = None
        """The value, with a `_Place` for each number; None before the first value."""


class Writer:
    """The code of values and of variables."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self._signatures: dict[Any, Any] = {}

    # --- numbers ---

    def number(self, value: Any, kind: Any) -> Any:
        """LLVM's value of a number as a type."""
        if isinstance(kind, types.Boolean):
            value = self.truth(value)
        if isinstance(value, Value):
            return _Context.cast(self.builder, value.code, value.kind, kind)
        if not isinstance(value, (bool, int, float)):
            raise TranslationError(f"{value} as {kind}")
        return llvm_type(kind)(float(value) if isinstance(kind, types.Float) else _in_range(int(value)))

    def truth(self, value: Any) -> Any:
        """Whether a value is true: a bool, or a `Value` of that type."""
        if not isinstance(value, Value):
            return bool(value)
        return value if isinstance(value.kind, types.Boolean) else self.compare(ast.NotEq, value, 0)

    def cast(self, kind: Any, value: Any) -> Any:
        """The result of a type of numbers when it is called."""
        wanted = _CASTS[kind]
        if not isinstance(value, Value):
            return kind(value) if kind is bool else float(value) if wanted == types.float64 else int(value)
        if kind is bool:
            return self.truth(value)
        if kind is float and isinstance(value.kind, types.Float):  # Numba keeps float32
            return value
        return Value(wanted, self.number(value, wanted))

    def is_cast(self, called: Any) -> bool:
        """Whether `cast` knows a type."""
        return isinstance(called, type) and called in _CASTS

    def unary(self, sign: Any, a: Any) -> Any:
        """The value of an operand with an operator before it."""
        if not isinstance(a, Value):
            return _UNARY[sign](a)
        if sign is ast.Not:
            return Value(types.boolean, self.builder.not_(self.truth(a).code))
        if sign is ast.USub and isinstance(a.kind, (Lanes, types.Float)):
            return Value(a.kind, self.builder.fneg(a.code))
        if sign is ast.USub and isinstance(a.kind, types.Integer):
            return Value(a.kind, self.builder.neg(a.code))
        raise TranslationError(f"{sign.__name__} of {a.kind}")

    def binary(self, sign: Any, a: Any, b: Any) -> Any:
        """The value of two operands with an operator between them."""
        if sign not in _BINARY:
            raise TranslationError(sign.__name__)
        meaning, whole, real = _BINARY[sign]
        kinds = (kind_of(a), kind_of(b))
        if not isinstance(a, Value) and not isinstance(b, Value):
            if sign is ast.Pow and types.float64 not in kinds:  # Numba's is an integer
                raise TranslationError(f"a power of {kinds}")
            return _in_range(meaning(a, b))
        lanes = next((kind for kind in kinds if isinstance(kind, Lanes)), None)
        if lanes is not None:
            if not real or any(kind not in (lanes, lanes.dtype) for kind in kinds):
                raise TranslationError(f"{sign.__name__} of {kinds}")
            numbers = [self.number(one, kind) for one, kind in zip((a, b), kinds, strict=True)]
            build = self._build(None)
            return Value(lanes, getattr(build, real)(*build.alike(numbers)))
        kind = _common(*kinds)
        if sign is ast.Div and not isinstance(kind, types.Float):
            kind = types.float64
        if isinstance(kind, types.Boolean) and sign not in _BITWISE:
            kind = types.int64
        one, other = self.number(a, kind), self.number(b, kind)
        if sign in (ast.FloorDiv, ast.Mod) and isinstance(kind, types.Integer):
            return Value(kind, self._divide(sign, one, other))
        instruction = real if isinstance(kind, types.Float) else whole
        if not instruction:
            raise TranslationError(f"{sign.__name__} of {kinds}")
        return Value(kind, getattr(self.builder, instruction)(one, other))

    def _divide(self, sign: Any, a: Any, b: Any) -> Any:
        """A quotient rounded down, or the remainder, which has the sign of b; 0 if b is 0."""
        build, zero, by_zero = self.builder, INT64(0), None
        if not isinstance(b, ir.Constant) or b.constant == 0:
            by_zero = build.icmp_signed("==", b, zero)
            b = build.select(by_zero, INT64(1), b)
        quotient, rest = build.sdiv(a, b), build.srem(a, b)
        differ = build.icmp_signed("<", build.xor(rest, b), zero)
        down = build.and_(build.icmp_signed("!=", rest, zero), differ)
        if sign is ast.FloorDiv:
            found = build.sub(quotient, build.zext(down, INT64))
        else:
            found = build.add(rest, build.select(down, b, zero))
        return found if by_zero is None else build.select(by_zero, zero, found)

    def compare(self, sign: Any, a: Any, b: Any) -> Any:
        """Whether a comparison holds."""
        if sign in (ast.Is, ast.IsNot):
            if a is not None and b is not None:
                raise TranslationError("a comparison by is, but not with None")
            return (a is b) == (sign is ast.Is)
        meaning, name = _COMPARISONS[sign]
        kind = _common(kind_of(a), kind_of(b))
        if not isinstance(a, Value) and not isinstance(b, Value):
            return meaning(a, b)
        method = "icmp_unsigned" if isinstance(kind, types.Boolean) else "icmp_signed"
        if isinstance(kind, types.Float):
            method = "fcmp_unordered" if name == "!=" else "fcmp_ordered"
        numbers = (self.number(a, kind), self.number(b, kind))
        return Value(types.boolean, getattr(self.builder, method)(name, *numbers))

    def extreme(self, called: Any, a: Any, b: Any) -> Any:
        """The result of `min` or `max`."""
        test = self.compare(ast.Lt if called is min else ast.Gt, b, a)
        kind = _common(kind_of(a), kind_of(b))
        if not isinstance(test, Value):
            found = b if test else a
            return float(found) if kind == types.float64 else found
        return Value(kind, self.builder.select(test.code, self.number(b, kind), self.number(a, kind)))

    # --- variables on the stack ---

    def store(self, slot: Slot, value: Any) -> None:
        """Give a variable a value."""
        if slot.content is None:
            slot.content = (self._places(value),)
        self._store(slot.content[0], value)

    def load(self, slot: Slot) -> Any:
        """The value of a variable."""
        if slot.content is None:
            raise TranslationError("a variable that has no value")
        return self._load(slot.content[0])

    def _place(self, kind: Any) -> Any:
        with self.builder.goto_entry_block():
            return self.builder.alloca(kind)

    def _places(self, value: Any) -> Any:
        if isinstance(value, tuple) and not isinstance(value, Value):
            return _like(value, [self._places(one) for one in value])
        kind = kind_of(value)
        if isinstance(kind, Memory):
            return _Place(kind, (self._place(llvm_type(kind.dtype).as_pointer()), self._place(INT64)))
        if isinstance(value, Value) or isinstance(kind, (types.Number, types.Boolean)):
            return _Place(kind, (self._place(llvm_type(kind)),))
        return value

    def _store(self, content: Any, value: Any) -> None:
        if isinstance(content, _Place):
            kind = kind_of(value)
            widens = isinstance(value, (int, float)) and _common(kind, content.kind) == content.kind
            if kind != content.kind and not widens:
                raise TranslationError(f"a variable that is {content.kind}, then {kind}")
            numbers = value.code if isinstance(value, Value) else self.number(value, content.kind)
            parts = (numbers.data, numbers.size) if isinstance(kind, Memory) else (numbers,)
            for part, address in zip(parts, content.addresses, strict=True):
                self.builder.store(part, address)
        elif isinstance(content, tuple) and isinstance(value, tuple):
            for part, one in zip(content, value, strict=True):
                self._store(part, one)
        elif content is not value:
            raise TranslationError(f"a variable that is {content}, then {value}")

    def _load(self, content: Any) -> Any:
        if isinstance(content, _Place):
            codes = [self.builder.load(address) for address in content.addresses]
            if isinstance(content.kind, Memory):
                return Value(content.kind, _Numbers(self._build(None), content.kind, *codes))
            return Value(content.kind, codes[0])
        if isinstance(content, tuple):
            return _like(content, [self._load(one) for one in content])
        return content

    # --- items ---

    def load_item(self, whole: Any, k: Any) -> Any:
        """An item of a tuple."""
        if isinstance(whole, (Value, Block)):
            raise TranslationError("an item of an array")
        if not isinstance(k, Value):
            return whole[k]
        kind, *others = {kind_of(one) for one in whole}
        if others:
            raise TranslationError(f"an item of {[kind, *others]}")
        k, found = self._from_start(k, len(whole)), self.number(whole[0], kind)
        for place, item in enumerate(whole[1:], 1):
            found = self.builder.select(self.compare(ast.Eq, k, place).code, self.number(item, kind), found)
        return Value(kind, found)

    def _from_start(self, k: Any, size: Any) -> Value:
        """An index that counts from the end if it is negative."""
        is_behind = self.number(self.compare(ast.Lt, k, 0), types.boolean)
        found, behind = (self.number(one, types.int64) for one in (k, self.binary(ast.Add, k, size)))
        return Value(types.int64, self.builder.select(is_behind, behind, found))

    def store_item(self, whole: Any, k: Any, value: Any) -> None:
        """Write an item of an array of truth values."""
        numbers = whole.numbers.code
        if numbers.element != ir.IntType(8):
            raise TranslationError("an assignment to an item")
        address = numbers.number(self._from_start(k, Value(types.int64, numbers.size)).code)
        self.builder.store(self.number(self.truth(value), types.uint8), address)

    # --- operations on vectors ---

    def _build(self, signature: Any) -> _Build:
        return _Build(_Context, self.builder, signature)

    def block(self, kind: Any, data: Any, shape: list[Any]) -> Block:
        """An array argument, from its address and shape."""
        dtype = types.uint8 if kind.dtype == types.boolean else kind.dtype
        size = shape[0]
        for n in shape[1:]:
            size = self.builder.mul(size, n)
        numbers = Value(Memory(dtype), _Numbers(self._build(None), Memory(dtype), data, size))
        return Block(numbers, tuple([Value(types.int64, n) for n in shape]))

    def pointer(self, kind: Any, code: Any) -> Value:
        """An address as an address of this type."""
        return Value(kind, self.builder.bitcast(code, llvm_type(kind)))

    def operation(self, operation: Operation, arguments: list[Any]) -> Any:
        """The result of an operation that `lowering.lowered` has made."""
        arguments = [one.numbers if isinstance(one, Block) else one for one in arguments]
        kinds = [
            types.literal(one) if k in operation.literals and isinstance(one, int) else kind_of(one)
            for k, one in enumerate(arguments)
        ]
        key = (operation, *kinds)
        if key not in self._signatures:
            self._signatures[key] = operation.typer(*kinds)
        signature = self._signatures[key]
        if signature is None:
            raise TranslationError(f"an operation on {kinds}")
        build = self._build(signature)
        result = operation.code(build, *map(self._operand, arguments, signature.args))
        return self._result(build, signature.return_type, result)

    def _operand(self, value: Any, kind: Any) -> Any:
        if isinstance(kind, (types.Float, types.Integer, types.Boolean)):
            return self.number(value, kind)
        return value.code if isinstance(value, Value) else value

    def _result(self, build: _Build, kind: Any, result: Any) -> Any:
        if kind in (types.void, types.none):
            return None
        if kind is _OTHER:
            return result
        if isinstance(kind, types.UniTuple):
            return tuple([Value(kind.dtype, one) for one in result])
        if isinstance(kind, Memory) and not isinstance(result, _Numbers):
            result = _Numbers(build, kind, *[self.builder.extract_value(result, k) for k in range(2)])
        return _plain(Value(kind, result))


def _like(content: tuple[Any, ...], items: list[Any]) -> Any:
    """A tuple of the same class with these items."""
    return type(content)(*items) if hasattr(content, "_fields") else tuple(items)
