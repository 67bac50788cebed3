"""LLVM code of kernels, written by a walk through their syntax trees.

Numba compiles each building block for each choice of types on its own: some twenty functions for a kernel, each
read from bytecode, typed, lowered and linked. Here a call of a building block is walked through where it stands,
and the operations on vectors (`lowering`) add their instructions at once. Writing the code takes a tenth of the
time, and LLVM gets a quarter of the instructions.

A branch on what is known when the code is written, as ``y is None``, is decided then: its other side may have
other types, of which Numba would take the common one. A variable that is assigned in another branch or in a loop,
and outlives it, is on the stack meanwhile (`values.Slot`).

Kernels are a small part of Python. What is not in it raises `TranslationError`, and Numba compiles the function.
"""

import ast
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from llvmlite import ir
from numba import types

from fastsoftmax.machine import syntax
from fastsoftmax.machine.lowering import INT32, INT64
from fastsoftmax.machine.syntax import TranslationError, wrong_result
from fastsoftmax.machine.values import Slot, Value, Writer, kind_of

_METHODS = {kind: f"_on_{kind.__name__.lower()}" for kind in vars(ast).values() if isinstance(kind, type)}
"""The names of the methods for kinds of nodes."""


class _Call:
    """A call of a function that is walked through."""

    def __init__(self, function: FunctionType, writer: Writer, arguments: Sequence[Any], named: Any) -> None:
        self._function, self._writer = syntax.function(function), writer
        bound = self._function.signature.bind(*arguments, **named)
        bound.apply_defaults()
        self._names: dict[str, Any] = dict(bound.arguments)
        self._depth = 0
        """How many branches and loops are around the statement."""
        self._left = False
        """Whether the code has gone elsewhere: to the end of the function, or in a loop."""
        self._loops: list[tuple[Any, Any]] = []
        """The blocks behind each loop, and of its next turn."""
        self._result: Any = None
        self._returned: Slot | None = None
        self._exit: Any = None
        """The block behind the call, if it returns from a branch or loop."""

    def run(self) -> Any:
        """Add the code of the function; its result."""
        self._run(self._function.body)
        if self._returned is None:
            return self._result
        if not self._left:
            self._return(None)
        self._build.position_at_end(self._exit)
        return self._writer.load(self._returned)

    @property
    def _build(self) -> Any:
        return self._writer.builder

    def _blocks(self, count: int) -> list[Any]:
        return [self._build.append_basic_block() for _ in range(count)]

    def _unknown(self, node: ast.AST) -> Any:
        raise TranslationError(f"{ast.unparse(node)} in {self._function.name}")

    # --- variables ---

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            found = self._names.get(target.id)
            if isinstance(found, Slot):
                self._writer.store(found, value)
            else:
                self._names[target.id] = value
        elif isinstance(target, ast.Tuple):
            for one, item in zip(target.elts, value, strict=True):
                self._assign(one, item)
        elif isinstance(target, ast.Subscript):
            self._writer.store_item(self._value(target.value), self._value(target.slice), value)
        else:
            self._unknown(target)

    @contextmanager
    def _part(self, node: ast.stmt, end: Any) -> Iterator[None]:
        """A branch or loop, behind which the code goes on in the block `end`."""
        moved = {}
        for name in self._function.outlive[node]:
            if not isinstance(self._names.get(name), Slot):
                moved[name] = Slot()
                if name in self._names:
                    self._writer.store(moved[name], self._names[name])
        self._names.update(moved)
        self._depth += 1
        yield
        self._depth -= 1
        self._build.position_at_end(end)
        for name, slot in moved.items():
            del self._names[name]
            if slot.content is not None:
                self._names[name] = self._writer.load(slot)

    def _inside(self, body: Sequence[ast.stmt], following: Any, *given: tuple[ast.expr, Any]) -> None:
        """The code of a part, which goes on in the block `following`. What is assigned here is known only here.

        `given` are variables that it assigns first, with their values.
        """
        before = dict(self._names)
        for target, value in given:
            self._assign(target, value)
        self._run(body)
        if not self._left:
            self._build.branch(following)
        self._names, self._left = before, False

    # --- statements ---

    def _run(self, body: Sequence[ast.stmt]) -> None:
        for node in body:
            if not self._left:
                getattr(self, _METHODS[type(node)], self._unknown)(node)

    def _on_expr(self, node: ast.Expr) -> None:
        self._value(node.value)

    def _on_assign(self, node: ast.Assign) -> None:
        value = self._value(node.value)
        for target in node.targets:
            self._assign(target, value)

    def _on_annassign(self, node: ast.AnnAssign) -> None:
        self._assign(node.target, self._value(node.value) if node.value else self._unknown(node))

    def _on_augassign(self, node: ast.AugAssign) -> None:
        before = ast.Name(node.target.id, ast.Load()) if isinstance(node.target, ast.Name) else self._unknown(node)
        self._assign(node.target, self._writer.binary(type(node.op), self._value(before), self._value(node.value)))

    def _on_return(self, node: ast.Return) -> None:
        value = None if node.value is None else self._value(node.value)
        if self._depth or self._returned:
            self._return(value)
        self._result, self._left = value, True

    def _return(self, value: Any) -> None:
        if self._returned is None:
            self._returned, (self._exit,) = Slot(), self._blocks(1)
        self._writer.store(self._returned, value)
        self._build.branch(self._exit)

    def _on_break(self, node: ast.Break) -> None:
        self._build.branch(self._loops[-1][0])
        self._left = True

    def _on_continue(self, node: ast.Continue) -> None:
        self._build.branch(self._loops[-1][1])
        self._left = True

    def _on_if(self, node: ast.If) -> None:
        test = self._writer.truth(self._value(node.test))
        if not isinstance(test, Value):
            self._run(node.body if test else node.orelse)
            return
        yes, no, end = self._blocks(3)
        ends = []
        with self._part(node, end):
            self._build.cbranch(test.code, yes, no)
            for block, body in ((yes, node.body), (no, node.orelse)):
                self._build.position_at_end(block)
                self._inside(body, end)
                ends.append(self._build.block.terminator.operands)
        if not any(end in targets for targets in ends):  # both have gone elsewhere
            self._build.unreachable()
            self._left = True

    def _on_while(self, node: ast.While) -> None:
        if node.orelse:
            self._unknown(node)
        head, body, end = self._blocks(3)
        with self._part(node, end):
            self._build.branch(head)
            self._build.position_at_end(head)
            test = self._writer.number(self._value(node.test), types.boolean)
            self._build.cbranch(test, body, end)
            self._build.position_at_end(body)
            self._loop(node, end, head)

    def _on_for(self, node: ast.For) -> None:
        call: Any = node.iter
        target: Any = node.target
        plain = isinstance(target, ast.Name) and isinstance(call, ast.Call) and not node.orelse
        given = self._items(call.args) if plain and self._value(call.func) is range else self._unknown(node)
        start, stop, step = (0, *given, 1) if len(given) == 1 else (*given, 1)[:3]
        first, last, by = (self._writer.number(one, types.int64) for one in (start, stop, step))
        head, body, following, end = self._blocks(4)
        with self._part(node, end):
            before = self._build.block
            self._build.branch(head)
            self._build.position_at_end(head)
            k = self._build.phi(INT64)
            k.add_incoming(first, before)
            self._build.cbranch(self._goes_on(k, last, step), body, end)
            self._build.position_at_end(body)
            self._loop(node, end, following, (target, Value(types.int64, k)))
            self._build.position_at_end(following)
            k.add_incoming(self._build.add(k, by), following)
            self._build.branch(head)

    def _goes_on(self, k: Any, last: Any, step: Any) -> Any:
        """Whether a range with this step has k."""
        if not isinstance(step, Value):
            return self._build.icmp_signed("<" if step > 0 else ">", k, last)
        rises = self._build.icmp_signed(">", step.code, INT64(0))
        below, above = (self._build.icmp_signed(sign, k, last) for sign in ("<", ">"))
        return self._build.select(rises, below, above)

    def _loop(self, node: ast.For | ast.While, end: Any, following: Any, *given: tuple[ast.expr, Any]) -> None:
        self._loops.append((end, following))
        self._inside(node.body, following, *given)
        self._loops.pop()

    # --- expressions ---

    def _value(self, node: ast.expr) -> Any:
        return getattr(self, _METHODS[type(node)], self._unknown)(node)

    def _items(self, nodes: Sequence[ast.expr]) -> list[Any]:
        found: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                found += self._value(node.value)
            else:
                found.append(self._value(node))
        return found

    def _on_constant(self, node: ast.Constant) -> Any:
        return node.value

    def _on_name(self, node: ast.Name) -> Any:
        if node.id not in self._names:
            return self._function.outer(node.id)
        found = self._names[node.id]
        return self._writer.load(found) if isinstance(found, Slot) else found

    def _on_tuple(self, node: ast.Tuple) -> Any:
        return tuple(self._items(node.elts))

    def _on_attribute(self, node: ast.Attribute) -> Any:
        return getattr(self._value(node.value), node.attr)

    def _on_subscript(self, node: ast.Subscript) -> Any:
        return self._writer.load_item(self._value(node.value), self._value(node.slice))

    def _on_slice(self, node: ast.Slice) -> Any:
        return slice(*[one and self._value(one) for one in (node.lower, node.upper, node.step)])

    def _on_unaryop(self, node: ast.UnaryOp) -> Any:
        return self._writer.unary(type(node.op), self._value(node.operand))

    def _on_binop(self, node: ast.BinOp) -> Any:
        return self._writer.binary(type(node.op), self._value(node.left), self._value(node.right))

    def _on_compare(self, node: ast.Compare) -> Any:
        if any(map(_calls, node.comparators[1:])):
            self._unknown(node)  # they must not run if a comparison before them fails
        values = self._items([node.left, *node.comparators])
        parts = list(map(self._writer.compare, map(type, node.ops), values, values[1:]))
        found = parts[0]
        for one in parts[1:]:
            found = self._writer.binary(ast.BitAnd, found, one)
        return found

    def _on_boolop(self, node: ast.BoolOp) -> Any:
        decides = isinstance(node.op, ast.Or)
        # Comparisons with None have no code, and may decide what the operands before them could not.
        for place, one in enumerate(node.values):
            if _is_with_none(one) and self._value(one) == decides:
                if place and kind_of(self._any(node.values[:place], decides)) != types.boolean:
                    self._unknown(node)
                return decides
        return self._any(node.values, decides)

    def _any(self, nodes: Sequence[ast.expr], decides: bool) -> Any:
        """Operands with ``or`` between them, or ``and``: one that is `decides` decides, and no other code runs."""
        first, *others = nodes
        value = self._value(first)
        if not others:
            return value
        test = self._writer.truth(value)
        if not isinstance(test, Value):
            return value if test == decides else self._any(others, decides)
        known = decides if kind_of(value) == types.boolean else value
        parts = (lambda: known, lambda: self._any(others, decides))
        return self._choice(test, *(parts if decides else reversed(parts)))

    def _on_ifexp(self, node: ast.IfExp) -> Any:
        test = self._writer.truth(self._value(node.test))
        if not isinstance(test, Value):
            return self._value(node.body if test else node.orelse)
        return self._choice(test, lambda: self._value(node.body), lambda: self._value(node.orelse))

    def _choice(self, test: Value, *parts: Callable[[], Any]) -> Any:
        """The value of the first part if the test holds, else of the second."""
        slot, (*starts, end) = Slot(), self._blocks(3)
        self._build.cbranch(test.code, *starts)
        for start, part in zip(starts, parts, strict=True):
            self._build.position_at_end(start)
            self._writer.store(slot, part())
            self._build.branch(end)
        self._build.position_at_end(end)
        return self._writer.load(slot)

    def _on_call(self, node: ast.Call) -> Any:
        called, arguments = self._value(node.func), self._items(node.args)
        named = {str(one.arg): self._value(one.value) for one in node.keywords}
        block = getattr(called, "py_func", None)
        if block is not None:
            return _Call(block, self._writer, arguments, named).run()
        operation = getattr(getattr(called, "__wrapped__", None), "operation", None)
        if operation is not None and not named:
            return self._writer.operation(operation, arguments)
        if called in (min, max) and len(arguments) > 1 and not named:
            found = arguments[0]
            for one in arguments[1:]:
                found = self._writer.extreme(called, found, one)
            return found
        if self._writer.is_cast(called) and not named:
            return self._writer.cast(called, *arguments)
        if isinstance(called, type) and hasattr(called, "_fields"):
            return called(*arguments, **named)
        return self._unknown(node)


def _is_with_none(node: ast.expr) -> bool:
    """Whether this is ``... is None`` or ``... is not None``, without a call."""
    is_one = isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Is, ast.IsNot))
    return is_one and not _calls(node)


def _calls(node: ast.expr) -> bool:
    """Whether an expression has a call. Only calls read and write memory."""
    return any(isinstance(one, ast.Call) for one in ast.walk(node))


def _arguments(writer: Writer, kinds: Sequence[Any], codes: Iterator[Any]) -> Iterator[Any]:
    """The arguments of a kernel, from those of its function for C."""
    for kind in kinds:
        if isinstance(kind, types.NoneType):
            yield None
        elif isinstance(kind, types.UniTuple):
            yield tuple([Value(kind.dtype, next(codes)) for _ in range(kind.count)])
        elif isinstance(kind, types.Array):
            data = next(codes)
            yield writer.block(kind, data, [next(codes) for _ in range(kind.ndim)])
        elif isinstance(kind, types.Boolean):
            yield writer.truth(Value(types.int64, next(codes)))
        else:
            yield writer.pointer(kind, next(codes))


def write(function: FunctionType, kinds: Sequence[Any], code: Any, has_result: bool) -> None:
    """Write the code of a kernel for these types of its arguments into `code`, its function for C.

    `has_result` says whether the last argument is the place of a result. TranslationError if the kernel needs what
    this module does not translate, OSError if its source is not there.
    """
    entry, body = code.append_basic_block(), code.append_basic_block()
    builder = ir.IRBuilder(entry)
    builder.branch(body)
    builder.position_at_end(body)
    writer = Writer(builder)
    try:
        result = _Call(function, writer, [*_arguments(writer, kinds, iter(code.args))], {}).run()
    except (ArithmeticError, AttributeError, LookupError, SyntaxError, TypeError, ValueError) as error:
        raise TranslationError(f"{type(error).__name__}: {error}") from error
    if (result is not None) != has_result:
        raise wrong_result(function.__name__, result)
    if has_result:
        builder.store(writer.number(result, types.float64), code.args[-1])
    builder.ret(INT32(0))
