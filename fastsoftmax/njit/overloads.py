"""The public functions inside a user's own ``@njit`` code.

Numba calls `register` before it first compiles anything (``[project.entry-points.numba_extensions]`` in
``pyproject.toml``), so that users need not. Importing this file registers every function of `_spec`. When a call
is compiled, the builder of the function's family checks the types and returns a compiled function for them, with
the names of the arguments that it takes, some of them in a tuple.
"""

import inspect
from importlib import import_module
from typing import Any

from numba.extending import overload

from fastsoftmax._spec import FUNCTIONS, Function
from fastsoftmax.machine.frontend import NO_WRAPPERS, OPTIONS
from fastsoftmax.njit import (
    binary,
    losses,
    rows,
    sampling,
    segments,
    statistics,
    ufuncs,  # noqa: F401  # it registers those that are made
)
from fastsoftmax.njit.arguments import Call
from fastsoftmax.njit.written import written
from fastsoftmax.runtime.numba_private import lean_options

BUILDERS = {
    "forward": rows.forward,
    "jacobian": rows.jacobian,
    "product": rows.product,
    "entropy": rows.entropies,
    "cross entropy": losses.cross_entropy,
    "row loss": losses.row_loss,
    "divergence": losses.divergence,
    "curvature": losses.curvature,
    "focal": losses.focal,
    "focal curvature": losses.focal_curvature,
    "binary entropy": binary.binary,
    "binary focal": binary.binary,
    "segments": segments.ragged,
    "draws": sampling.categorical,
    "filters": sampling.filter_logits,
    "ragged draws": sampling.segment_categorical,
    "statistics": statistics.statistics,
}


def register() -> None:
    """Numba's entry point. It does nothing, because importing this file has registered the functions."""


def _written(names: Any, signature: inspect.Signature) -> str:
    """A tuple of arguments as source text, with None for parameters that the function does not have."""
    if isinstance(names, str):
        return names if names in signature.parameters else "None"
    return f"({', '.join([_written(name, signature) for name in names])})"


def _overload(function: Function) -> None:
    """Tell Numba about a function.

    The overload has the public signature, which decides how callers may pass arguments. Its implementation has the
    same parameters, but none is keyword-only, because Numba does not support that in compiled code.
    """
    public = getattr(import_module(f"fastsoftmax.api.{function.module}"), function.name)
    signature = inspect.signature(public)
    defaults = [p.default for p in signature.parameters.values() if p.default is not p.empty]
    build = BUILDERS[function.family]

    def choose(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        built: Any
        built, names = build(Call(function, dict(bound.arguments)))
        run = written(built.py_func)
        # Numba reads the names of parameters from the code object, so the function is made from source text.
        text = f"lambda {', '.join(signature.parameters)}: run{_written(names, signature)}"
        implementation = eval(text, {"run": run, "__name__": __name__})
        implementation.__name__ = implementation.__qualname__ = function.name
        implementation.__defaults__ = tuple(defaults)
        return implementation

    choose.__signature__ = signature  # type: ignore[attr-defined]
    overload(
        public,
        prefer_literal=True,
        strict=False,
        jit_options={**OPTIONS, **NO_WRAPPERS, **lean_options(), "parallel": False},
    )(choose)


for _function in FUNCTIONS.values():
    if _function.is_compiled:
        _overload(_function)
