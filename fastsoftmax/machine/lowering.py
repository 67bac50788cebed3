"""Machine code for the operations on vectors: their types, and the decorator that declares them.

The Python body of an operation is its meaning on NumPy arrays, its annotations are its types, and
``@lowered(code)`` attaches the LLVM code. `code` gets a `Build`, which writes LLVM instructions, and the values of
the arguments: a `Memory` as `NumbersValue`, None as None, others as LLVM values.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeAlias, get_args

from llvmlite import ir
from numba import config, types
from numba.core import cgutils, errors
from numba.extending import intrinsic, models, register_model

from fastsoftmax._vectors import VECTOR_BYTES
from fastsoftmax.runtime.numba_private import index_error

INT32, INT64, BYTES = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()


class Lanes(types.Type):  # type: ignore[misc]
    """A SIMD vector of `dtype`, `VECTOR_BYTES` long: in LLVM a vector, in Python an array of `count` numbers."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        self.count = VECTOR_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        element = ir.FloatType() if fe_type.dtype.bitwidth == 32 else ir.DoubleType()
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.count))


class Memory(types.Type):  # type: ignore[misc]
    """The numbers of a C-contiguous array: their address and number, without a reference to the array.

    Numba counts references to arrays that are passed on. In a loop over rows these are calls of its runtime, which
    spill every vector register. The kernel's caller holds the arrays while the kernel runs.
    """

    def __init__(self, dtype: types.Number) -> None:
        self.dtype = dtype
        super().__init__(name=f"Memory({dtype})")


@register_model(Memory)
class _MemoryModel(models.StructModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Memory) -> None:
        super().__init__(dmm, fe_type, [("data", types.CPointer(fe_type.dtype)), ("size", types.intp)])


# --- types: the annotations of an operation --------------------------------------------------------------------


class Kind(NamedTuple):
    """The meaning of an annotation.

    ``takes(offered, first)``: whether a parameter accepts the type `offered` if the first parameter has the type
    `first`. ``gives(*types)``: the type of the result for these types of the parameters.
    """

    takes: Callable[[Any, Any], bool]
    gives: Callable[..., Any]


def _own(takes: Callable[[Any], bool]) -> Any:
    """The kind that does not depend on the first parameter."""
    return Kind(lambda offered, first: takes(offered), lambda first, *_: first)


def _derived(of: Callable[[Any], Any]) -> Any:
    """The kind that follows from the first parameter."""
    return Kind(lambda offered, first: offered == of(first), lambda first, *_: of(first))


def item_of(like: Any) -> Any:
    """The dtype of a memory or a vector; a float type itself."""
    return getattr(like, "dtype", like)


def _takes_item(offered: Any, first: Any) -> bool:
    wanted = item_of(first)
    return offered == wanted or (isinstance(offered, types.Integer) and isinstance(wanted, types.Integer))


def is_floats(kind: Any) -> bool:
    """Whether a type is memory of float32 or float64."""
    return isinstance(kind, Memory) and isinstance(kind.dtype, types.Float)


def is_none(kind: Any) -> bool:
    """Whether an argument of this type is None."""
    return isinstance(kind, types.NoneType)


def lanes_of(like: Any) -> Any:
    """The vector type in which numbers of this dtype are computed: float32 for float16 (uint16 in Numba)."""
    dtype = item_of(like)
    return Lanes(types.float32 if dtype == types.uint16 else dtype)


def common(*args: Any) -> Any:
    """The type of an elementwise result: `Lanes` if any operand is, else the float type; None if neither."""
    if not all(isinstance(a, (Lanes, types.Float)) for a in args) or len({item_of(a) for a in args}) != 1:
        return None
    return next((a for a in args if isinstance(a, Lanes)), args[0])


Numbers: TypeAlias = Annotated[Any, _own(lambda kind: isinstance(kind, Memory))]
Floats: TypeAlias = Annotated[Any, _own(is_floats)]
Halves: TypeAlias = Annotated[Any, _own(lambda kind: is_floats(kind) or kind == Memory(types.uint16))]
Shorts: TypeAlias = Annotated[Any, _own(lambda kind: kind == Memory(types.uint16))]
Integers: TypeAlias = Annotated[Any, _own(lambda kind: kind == Memory(types.int64))]
Value: TypeAlias = Annotated[Any, _own(lambda kind: isinstance(kind, (Lanes, types.Float)))]
AnyVector: TypeAlias = Annotated[Any, _own(lambda kind: isinstance(kind, Lanes))]
Literal: TypeAlias = Annotated[Any, _own(lambda kind: isinstance(kind, types.IntegerLiteral))]
Pointer: TypeAlias = Annotated[Any, _own(lambda kind: isinstance(kind, types.CPointer))]
Address: TypeAlias = Annotated[Any, _own(lambda kind: kind == types.voidptr)]
Item: TypeAlias = Annotated[Any, Kind(_takes_item, lambda first, *_: item_of(first))]
Vector: TypeAlias = Annotated[Any, _derived(lanes_of)]
Same: TypeAlias = Annotated[Any, _derived(lambda first: first)]
_PLAIN = {int: types.intp, float: types.float64, bool: types.boolean, None: types.void}


def _typer(function: Callable[..., Any], result: Callable[..., Any] | None) -> Callable[..., Any]:
    """The function from types of arguments to an operation's Numba signature; None if it does not take them."""
    described = inspect.signature(function)
    annotations = [one.annotation for one in described.parameters.values()]

    def typer(*args: Any) -> Any:
        wanted: list[Any] = []
        for annotation, offered in zip(annotations, args, strict=True):
            if annotation in _PLAIN:
                wanted.append(_PLAIN[annotation])
            elif annotation is Any:
                wanted.append(offered)
            elif get_args(annotation)[1].takes(offered, args[0]):
                wanted.append(item_of(args[0]) if annotation is Item else offered)
            else:
                return None
        annotation = described.return_annotation
        if result is not None:
            given = result(*args)
        else:
            given = _PLAIN[annotation] if annotation in _PLAIN else get_args(annotation)[1].gives(*wanted)
        return None if given is None else given(*wanted)

    return typer


class Operation(NamedTuple):
    """What `lowered` knows of an operation, for who writes its code without Numba."""

    typer: Callable[..., Any]
    """The signature for types of arguments."""
    code: Callable[..., Any]
    literals: frozenset[int]
    """The places of the arguments whose values belong to their types."""


def _literals(function: Callable[..., Any]) -> frozenset[int]:
    parameters = inspect.signature(function).parameters.values()
    return frozenset(k for k, one in enumerate(parameters) if one.annotation == Literal)


def lowered(code: Callable[..., Any], result: Callable[..., Any] | None = None) -> Callable[[Any], Any]:
    """Compile the decorated function by `code`; its Python body is its meaning.

    `result`, in place of the annotation, computes the result's type from the arguments' types; None rejects them.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        if config.DISABLE_JIT:
            return function
        typer = _typer(function, result)

        def typed(typingctx: Any, *args: Any) -> Any:
            signature = typer(*args)
            if signature is None:
                raise errors.TypingError(f"{function.__name__} does not take ({', '.join(map(str, args))})")

            def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                return Build(context, builder, signature).run(code, values)

            return signature, codegen

        typed.operation = Operation(typer, code, _literals(function))  # type: ignore[attr-defined]
        context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(function).parameters.values()
        typed.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
        typed.__name__ = function.__name__
        typed.__module__ = function.__module__
        typed.__doc__ = function.__doc__
        return intrinsic(prefer_literal=True)(typed)

    return decorate


def elementwise(code: Callable[..., Any]) -> Callable[[Any], Any]:
    """`lowered` for an operation on each lane; a float beside a vector is copied to each lane."""
    return lowered(lambda build, *values: code(build, *build.alike(values)), common)


# --- LLVM code -------------------------------------------------------------------------------------------------


@cache
def vector_of(element: Any, lanes: int) -> Any:
    """LLVM's vector type of `lanes` elements."""
    return ir.VectorType(element, lanes)


_constants: dict[tuple[str, str], Any] = {}
"""The constant vectors so far: each is written many times, and LLVM's text of one is kept with it."""


def vector_constant(element: Any, values: Sequence[Any]) -> Any:
    """A constant vector."""
    key = str(element), repr(values)  # not the values: -0.0 and 0.0 are equal
    found = _constants.get(key)
    if found is None:
        numbers = {repr(value): ir.Constant(element, value) for value in values}
        items = [numbers[repr(value)] for value in values]
        found = _constants[key] = ir.Constant(vector_of(element, len(items)), items)
    return found


def _suffix(kind: Any) -> str:
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{_suffix(kind.element)}"
    if isinstance(kind, ir.IntType):
        return f"i{kind.width}"
    return "f32" if isinstance(kind, ir.FloatType) else "f64"


def element_bits(kind: Any) -> int:
    """The bits of a number, or of each number of a vector."""
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    return (
        int(element.width) if isinstance(element, ir.IntType) else 32 if isinstance(element, ir.FloatType) else 64
    )


class Build:
    """LLVM's instructions (those of the builder, by their names) and helpers for vectors."""

    def __init__(self, context: Any, builder: Any, signature: Any) -> None:
        self.context, self.builder, self.signature = context, builder, signature

    def __getattr__(self, name: str) -> Any:
        """An instruction of the builder."""
        return getattr(self.builder, name)

    def run(self, code: Callable[..., Any], values: Sequence[Any]) -> Any:
        """The value that `code` computes from the values of the arguments."""
        kinds = self.signature.args
        result = code(self, *(self._argument(kind, value) for kind, value in zip(kinds, values, strict=True)))
        if self.signature.return_type in (types.void, types.none):
            return self.context.get_dummy_value()
        if isinstance(result, tuple):
            return self.context.make_tuple(self.builder, self.signature.return_type, result)
        return result.value if isinstance(result, NumbersValue) else result

    def _argument(self, kind: Any, value: Any) -> Any:
        if is_none(kind):
            return None
        return NumbersValue(self, kind, value) if isinstance(kind, Memory) else value

    @property
    def result(self) -> Any:
        """LLVM's type of the result."""
        return self.context.get_value_type(self.signature.return_type)

    def splat(self, scalar: Any, count: int) -> Any:
        """The vector with `scalar` in each of `count` lanes."""
        vector = vector_of(scalar.type, count)
        if isinstance(scalar, ir.Constant):
            return vector_constant(scalar.type, [scalar.constant] * count)
        undefined = ir.Constant(vector, ir.Undefined)
        return self.shuffle(self.insert_element(undefined, scalar, INT32(0)), undefined, [0] * count)

    def alike(self, values: Sequence[Any]) -> Sequence[Any]:
        """The operands, with floats as vectors if any operand is a vector."""
        counts = [value.type.count for value in values if isinstance(value.type, ir.VectorType)]
        if not counts:
            return values
        return [v if isinstance(v.type, ir.VectorType) else self.splat(v, counts[0]) for v in values]

    def constant(self, kind: Any, value: float) -> Any:
        """`value` as an LLVM constant, in every lane if `kind` is a vector."""
        if isinstance(kind, ir.VectorType):
            return vector_constant(kind.element, [value] * kind.count)
        return ir.Constant(kind, value)

    def iota(self, kind: Any, lanes: int, step: int = 1) -> Any:
        """The vector 0, step, 2 step, ..."""
        return vector_constant(kind, [step * lane for lane in range(lanes)])

    def shuffle(self, a: Any, b: Any, picks: Sequence[int]) -> Any:
        """The vector of these lanes of a (0 to n - 1) and b (n to 2 n - 1)."""
        return self.shuffle_vector(a, b, vector_constant(INT32, list(picks)))

    def integer(self, value: Any) -> Any:
        """The bits of a float, or of a vector of floats, as integers of the same width."""
        bits = ir.IntType(element_bits(value.type))
        vector = isinstance(value.type, ir.VectorType)
        return self.bitcast(value, vector_of(bits, value.type.count) if vector else bits)

    def first_lanes(self, count: Any, lanes: int) -> Any:
        """The mask of the first `count` lanes."""
        return self.icmp_signed("<", self.iota(count.type, lanes), self.splat(count, lanes))

    def choose(self, comparison: str, a: Any, b: Any, x: Any, y: Any) -> Any:
        """x where the ordered comparison of a and b holds, else y."""
        return self.select(self.fcmp_ordered(comparison, a, b), x, y)

    def call_named(self, name: str, result: Any, operands: Sequence[Any]) -> Any:
        """A call of the LLVM intrinsic of this full name."""
        kind = ir.FunctionType(result, [operand.type for operand in operands])
        return self.call(cgutils.get_or_insert_function(self.module, kind, f"llvm.{name}"), operands)

    def call_on(self, name: str, *operands: Any) -> Any:
        """A call of the LLVM intrinsic `name`, overloaded on the type of its first operand."""
        kind = operands[0].type
        return self.call_named(f"{name}.{_suffix(kind)}", kind, operands)

    def masked(self, name: str, pointers: Any, mask: Any, value: Any) -> Any:
        """A masked load or gather, with `value` in the other lanes, or a masked store or scatter of `value`.

        Gathers and scatters take a vector of pointers.
        """
        kind, align = value.type, INT32(element_bits(value.type) // 8)
        behind = f"v{kind.count}p0" if isinstance(pointers.type, ir.VectorType) else "p0"
        full_name = f"masked.{name}.{_suffix(kind)}.{behind}"
        if name in ("load", "gather"):
            return self.call_named(full_name, kind, (pointers, align, mask, value))
        return self.call_named(full_name, ir.VoidType(), (value, pointers, align, mask))

    def memory(self, dtype: Any, data: Any, size: Any) -> Any:
        """Memory as a value, from its address and size."""
        value = ir.Constant(self.context.get_value_type(Memory(dtype)), ir.Undefined)
        value = self.insert_value(self.insert_value(value, data, 0), size, 1)
        return NumbersValue(self, Memory(dtype), value)

    def room(self, dtype: Any, size: int) -> Any:
        """Uninitialised memory for `size` numbers on the stack of the function that gets the operation inlined."""
        element = self.context.get_value_type(dtype)
        with self.goto_entry_block():  # not cgutils.alloca_once, which fills the room with zeros
            block = self.alloca(ir.ArrayType(element, size))
        block.align = VECTOR_BYTES
        return self.memory(dtype, self.bitcast(block, element.as_pointer()), INT64(size))

    def check(self, outside: Callable[[], Any]) -> None:
        """Raise an IndexError where `outside` holds, if Numba's bounds checking is on."""
        raises = index_error(self.context)
        if raises is not None:
            with self.if_then(outside(), likely=False):
                raises(self.builder, "kernel access outside its array")


class NumbersValue:
    """A `Memory` argument in LLVM code, which is read and written by offset.

    Offsets are checked where Numba's bounds checking is on.
    """

    def __init__(self, build: Build, kind: Memory, value: Any) -> None:
        self.build, self.kind, self.value = build, kind, value
        self.element = build.context.get_value_type(kind.dtype)
        self.item_bytes = kind.dtype.bitwidth // 8

    @property
    def lanes(self) -> int:
        """How many of the numbers a vector holds."""
        return int(lanes_of(self.kind).count)

    @property
    def vector(self) -> Any:
        """LLVM's vector type of such numbers."""
        return vector_of(self.element, self.lanes)

    @property
    def data(self) -> Any:
        """The address of the first number."""
        return self.build.extract_value(self.value, 0)

    @property
    def size(self) -> Any:
        """How many numbers there are."""
        return self.build.extract_value(self.value, 1)

    def unchecked(self, offset: Any) -> Any:
        """The address of number `offset`, which may lie outside of the memory."""
        return self.build.gep(self.data, [offset])

    def pointer(self, offset: Any, count: Any) -> Any:
        """The address of number `offset`; it and `count` - 1 behind must lie inside."""
        build = self.build
        build.check(
            lambda: build.or_(
                build.icmp_signed("<", offset, offset.type(0)),
                build.icmp_signed(">", build.add(offset, count), self.size),
            )
        )
        return self.unchecked(offset)

    def number(self, offset: Any) -> Any:
        """The address of one number."""
        return self.pointer(offset, offset.type(1))

    def vectors(self, offset: Any, count: Any, kind: Any) -> Any:
        """The address of number `offset` as a pointer to vectors of this kind."""
        return self.build.bitcast(self.pointer(offset, count), kind.as_pointer())

    def load(self, offset: Any, kind: Any = None) -> Any:
        """The vector from `offset` on."""
        kind = kind or self.vector
        pointer = self.vectors(offset, offset.type(kind.count), kind)
        return self.build.load(pointer, align=self.item_bytes)

    def store(self, offset: Any, value: Any, align: int | None = None) -> Any:
        """Write a vector from `offset` on."""
        pointer = self.vectors(offset, offset.type(value.type.count), value.type)
        return self.build.store(value, pointer, align=align or self.item_bytes)

    def load_part(self, offset: Any, count: Any, filler: Any) -> Any:
        """`count` lanes from `offset` on, and the other lanes from `filler`."""
        pointer = self.vectors(offset, count, filler.type)
        return self.build.masked("load", pointer, self.build.first_lanes(count, filler.type.count), filler)

    def store_part(self, offset: Any, count: Any, value: Any) -> None:
        """Write the first `count` lanes from `offset` on."""
        pointer = self.vectors(offset, count, value.type)
        self.build.masked("store", pointer, self.build.first_lanes(count, value.type.count), value)

    def strided(self, offset: Any, stride: Any, count: Any) -> tuple[Any, Any]:
        """The addresses ``offset + lane * stride`` of the first `count` lanes, and the mask of these lanes."""
        build, one = self.build, count.type(1)
        last = build.add(build.mul(build.sub(count, one), stride), one)
        base = self.pointer(offset, last)
        steps = build.mul(build.iota(stride.type, self.lanes, self.item_bytes), build.splat(stride, self.lanes))
        address = build.splat(build.ptrtoint(base, stride.type), self.lanes)
        pointers = build.inttoptr(build.add(address, steps), vector_of(base.type, self.lanes))
        return pointers, build.first_lanes(count, self.lanes)
