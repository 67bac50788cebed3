"""The public functions by their names, as back ends call them again with arrays of another kind."""

import inspect
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from fastsoftmax._spec import FUNCTIONS

SPECIAL = "special."
"""What the names of the functions of `fastsoftmax.special` begin with."""


class Public(NamedTuple):
    """A public function and the defaults of its parameters, in their order."""

    function: Any
    defaults: dict[str, Any]


@cache
def public(name: str) -> Public:
    """The public function of this name."""
    if name.startswith(SPECIAL):
        module = "fastsoftmax.special"
    else:
        module = f"fastsoftmax.api.{FUNCTIONS[name].module}"
    function = getattr(import_module(module), name.removeprefix(SPECIAL))
    return Public(function, {key: one.default for key, one in inspect.signature(function).parameters.items()})


def arguments_of(defaults: dict[str, Any], operands: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, without those that are the default of the public function.

    Drivers of a family pass None at the end of `operands` for an operand that the function does not have.
    `keywords` may have the options of a loss as `LossOptions`, and options that functions of the same family have
    and this one has not.
    """
    while operands and operands[-1] is None:
        operands = operands[:-1]
    given = dict(zip(defaults, operands))  # noqa: B905 - the keyword would take 0.2 us
    if "options" in keywords:
        keywords.update(keywords.pop("options")._asdict())
    for key, value in keywords.items():
        if value is not defaults.get(key, value):
            given[key] = value
    return given
