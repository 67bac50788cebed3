"""The syntax trees of functions, and which of their variables outlive a branch or a loop."""

import ast
import builtins
import inspect
import textwrap
from collections.abc import Sequence, Set
from functools import cache
from types import FunctionType
from typing import Any


class TranslationError(Exception):
    """Something that `translate` does not translate."""


def wrong_result(name: str, result: object) -> TypeError:
    """The error of a kernel whose annotation is wrong."""
    return TypeError(f"{name} returns {result}, which is not what its annotation says")


def _names(node: ast.AST | None, context: type[ast.expr_context]) -> set[str]:
    if node is None:
        return set()
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, context)}


def _assigned(node: ast.AST) -> set[str]:
    return _names(node, ast.Store)


def _read(node: ast.AST | None) -> set[str]:
    return _names(node, ast.Load)


class Function:
    """The syntax tree of a function. OSError if there is no source, as in some frozen applications."""

    def __init__(self, function: FunctionType) -> None:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        if not isinstance(tree, ast.FunctionDef):
            raise TranslationError(f"{function} is not made by def")
        self.name = function.__name__
        self.body = tree.body
        self.signature = inspect.signature(function)
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        closure = dict(zip(function.__code__.co_freevars, cells, strict=True))
        self._outer = (closure, function.__globals__, vars(builtins))
        self._own = function.__code__.co_varnames
        self.outlive: dict[ast.stmt, list[str]] = {}
        """The variables that are assigned in a branch or loop, and read behind it or in its next turn."""
        self._live_before(self.body, set(), set(), set())

    def outer(self, name: str) -> Any:
        """What a name means that is not a variable of the function."""
        for names in self._outer:
            if name in names and name not in self._own:
                return names[name]
        raise TranslationError(f"{name} in {self.name} has no value")

    def _live_before(
        self, body: Sequence[ast.stmt], after: set[str], behind: set[str], following: set[str]
    ) -> set[str]:
        """The variables that are read from `body` on before they are assigned.

        The sets have those that are read from the end of `body` on, from the end of the loop around it, and from
        its next turn.
        """
        for statement in reversed(body):
            after = self._live(statement, after, behind, following)
        return after

    def _live(self, node: ast.stmt, after: set[str], behind: set[str], following: set[str]) -> set[str]:
        if isinstance(node, ast.Return):
            return _read(node.value)
        if isinstance(node, ast.Break):
            return behind
        if isinstance(node, ast.Continue):
            return following
        if isinstance(node, ast.If):
            self.outlive[node] = sorted(_assigned(node) & after)
            branches = (self._live_before(body, after, behind, following) for body in (node.body, node.orelse))
            return _read(node.test).union(*branches)
        if isinstance(node, ast.While):
            return self._live_of_loop(node, after | _read(node.test), after)
        if isinstance(node, ast.For):
            return self._live_of_loop(node, after, after, _assigned(node.target)) | _read(node.iter)
        read = _read(node) | (_assigned(node.target) if isinstance(node, ast.AugAssign) else set())
        return (after - _assigned(node)) | read

    def _live_of_loop(
        self, node: ast.For | ast.While, head: set[str], behind: set[str], given: Set[str] = frozenset()
    ) -> set[str]:
        """Of a loop whose turns begin with new values of the variables `given`."""
        for _ in range(2):  # then also what the second turn reads of the first
            head = head | (self._live_before(node.body, head, behind, head) - given)
        self.outlive[node] = sorted(_assigned(node) & head)
        return head


@cache
def function(given: FunctionType) -> Function:
    """The syntax tree of a function, which is read once."""
    return Function(given)
