"""The LLVM code of kernels, and the options with which Numba compiles their building blocks.

nogil
    Kernels touch no Python object, so that threads (ours and the host's) can run at the same time.
error_model="numpy"
    x/0 is inf or nan as in NumPy, serial and parallel alike. It also compiles a third faster.
fastmath=False
    fastmath turns the log-sum-exp of a row of -inf into nan and deletes compensated arithmetic. We want only the
    fusion of a product into a sum, which `simd.values.muladd` requests where it is harmless. The option must be
    set, because code compiled for a user's function otherwise inherits that function's fastmath.
no_cpython_wrapper, no_cfunc_wrapper
    Wrappers for callers in Python or C take time to compile. Kernels have those of `wrappers`, others none.
"""

from typing import Any

from llvmlite import binding, ir
from numba import njit, types

from fastsoftmax.machine import translate, wrappers
from fastsoftmax.machine.syntax import TranslationError, wrong_result
from fastsoftmax.runtime.numba_private import known_options, lean_options, linked_module
from fastsoftmax.runtime.prebuilt import PREFIX

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": False,
    **known_options(forceinline=False),
}
NO_WRAPPERS = known_options(no_cpython_wrapper=True, no_cfunc_wrapper=True)

FLOATS = {"f": types.float32, "d": types.float64}
ITEMS = {**FLOATS, "e": types.uint16}
_LLVM = {
    types.float32: wrappers.FLOAT,
    types.float64: wrappers.DOUBLE,
    types.uint16: wrappers.I16,
    types.int64: wrappers.I64,
    types.boolean: wrappers.I1,
}


def numba_type(kind: str, dtype: str) -> Any:
    """Numba's type of a kind of argument."""
    name, _, count = kind.partition(" ")
    items = {
        "floats": FLOATS.get(dtype),
        "entries": FLOATS.get(dtype),
        "doubles": types.float64,
        "halves": types.uint16,
        "ints": types.int64,
        "bools": types.boolean,
    }
    if name in items:
        return types.Array(items[name], int(count), "C")
    if name == "tuple":
        return types.UniTuple(FLOATS[dtype], int(count))
    if name == "addresses":
        return types.CPointer(types.CPointer(ITEMS[dtype]))
    if name == "float":
        return FLOATS[dtype]
    plain = {"int": types.int64, "bool": types.boolean, "none": types.none}
    return {**plain, "sizes": types.CPointer(types.intp), "address": types.voidptr}[name]


def parameter(kind: Any) -> wrappers.Parameter:
    """A Numba type as `wrappers` takes it."""
    if isinstance(kind, types.NoneType):
        return None
    if isinstance(kind, types.Array):
        return wrappers.Array(wrappers.I8 if kind.dtype == types.boolean else _LLVM[kind.dtype], kind.ndim)
    if isinstance(kind, types.UniTuple):
        return wrappers.Tuple(_LLVM[kind.dtype], kind.count)
    if isinstance(kind, types.CPointer) or kind == types.voidptr:
        return wrappers.POINTER
    return _LLVM[kind]


def module(variant: Any) -> Any:
    """The LLVM code of a variant, not optimised, with the functions that `wrappers` adds."""
    kinds = tuple(numba_type(kind, variant.dtype) for kind in variant.kinds)
    try:
        text, code = _written(variant, kinds), None
    except (OSError, TranslationError):  # OSError: its source is not there, as in some frozen applications
        text, code = _compiled(variant, kinds)
    made = binding.parse_assembly(str(text))
    if code is not None:
        code.link_in(made)
        made = code
    made.verify()
    wrappers.hide(made, PREFIX + variant.name)
    return made


def _written(variant: Any, kinds: tuple[Any, ...]) -> Any:
    """The code that `translate` writes."""
    text = ir.Module(variant.name)
    function = wrappers.declare(text, PREFIX + variant.name, _parameters(variant, kinds), variant.is_loop)
    translate.write(variant.kernel.function, kinds, function, variant.kernel.result is float)
    _add_wrappers(variant, kinds, function)
    return text


def _compiled(variant: Any, kinds: tuple[Any, ...]) -> tuple[Any, Any]:
    """The code that calls Numba's, and Numba's."""
    dispatcher = njit(**OPTIONS, **NO_WRAPPERS, **lean_options())(variant.kernel.function)
    code, inner, result = linked_module(dispatcher, kinds)
    has_result = variant.kernel.result is float
    if has_result == isinstance(result, types.NoneType):
        raise wrong_result(variant.name, result)
    text = ir.Module(variant.name)
    text.triple, text.data_layout = code.triple, code.data_layout
    parameters = _parameters(variant, kinds)
    function = wrappers.declare(text, PREFIX + variant.name, parameters, variant.is_loop)
    wrappers.call_numba(function, inner, parameters, has_result, variant.is_loop)
    _add_wrappers(variant, kinds, function)
    return text, code


def _parameters(variant: Any, kinds: tuple[Any, ...]) -> list[wrappers.Parameter]:
    """The arguments of a variant as `wrappers` takes them."""
    return [
        parameter(kind)._replace(entries=True) if name.startswith("entries") else parameter(kind)
        for kind, name in zip(kinds, variant.kinds, strict=True)
    ]


def _add_wrappers(variant: Any, kinds: tuple[Any, ...], function: Any) -> None:
    if not variant.is_loop:
        result = wrappers.DOUBLE if variant.kernel.result is float else None
        wrappers.add(function, _parameters(variant, kinds), result, variant.kernel.small)
