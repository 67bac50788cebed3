"""The public functions by their names, as back ends call them again with arrays of another kind."""

import inspect
from functools import cache
from importlib import import_module
from operator import is_
from typing import Any, NamedTuple

from fastsoftmax._spec import FUNCTIONS
from fastsoftmax.arrays.options import LossOptions

SPECIAL = "special."
"""What the names of the functions of `fastsoftmax.special` begin with."""


class Public(NamedTuple):
    """A public function and the defaults of its parameters, in their order."""

    function: Any
    defaults: dict[str, Any]
    options: LossOptions
    """The same as the options of a loss; those that it does not have are there with their usual defaults."""
    first: str
    """The name of the first parameter."""


@cache
def public(name: str) -> Public:
    """The public function of this name."""
    if name.startswith(SPECIAL):
        module = "fastsoftmax.special"
    else:
        module = f"fastsoftmax.api.{FUNCTIONS[name].module}"
    function = getattr(import_module(module), name.removeprefix(SPECIAL))
    defaults = {key: one.default for key, one in inspect.signature(function).parameters.items()}
    options = {key: value for key, value in defaults.items() if key in LossOptions._fields}
    return Public(function, defaults, LossOptions(**options), next(iter(defaults)))


def arguments_of(one: Public, operands: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, without those that are the default of the public function.

    Drivers of a family pass None at the end of `operands` for an operand that the function does not have.
    `keywords` may have the options of a loss as `LossOptions`, and options that functions of the same family have
    and this one has not.
    """
    defaults = one.defaults
    if len(operands) == 1:
        given = {one.first: operands[0]}
    else:
        while operands and operands[-1] is None:
            operands = operands[:-1]
        given = dict(zip(defaults, operands))  # noqa: B905 - the keyword would take 0.2 us
    if "options" in keywords:
        options = keywords.pop("options")
        if not all(map(is_, options, one.options)):
            keywords.update(options._asdict())
    for key, value in keywords.items():
        if value is not defaults.get(key, value):
            given[key] = value
    return given
