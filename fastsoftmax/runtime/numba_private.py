"""The door to the private interface of Numba. With `numba_state`, the only module that uses it.

Public is what the manuals of Numba and llvmlite describe: the names in ``numba``, ``numba.types``,
``numba.extending``, ``numba.core.errors`` and ``numba.core.cgutils``; the arguments `context` and `builder` of a
code generator, as far as they make types, constants, tuples and arrays; ``llvmlite.ir`` and ``llvmlite.binding``.
All modules may use that. Everything else can change with any release, and is used only here. There is one function
for each use; its docstring says what happens if Numba lacks the name.

Numba is imported when a function is called, not before: `runtime.cache` has to work without it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from fastsoftmax.runtime import interrupts

# --- compilation and machine code ---------------------------------------------------------------------------


def known_options(**options: Any) -> dict[str, Any]:
    """The options that Numba knows among these undocumented ones of ``njit``; without them code is slower."""
    try:
        from numba.core.cpu import CPUTargetOptions
    except ImportError:
        return {}
    return {name: value for name, value in options.items() if hasattr(CPUTargetOptions, name)}


def load_extensions() -> None:
    """Load what packages add to Numba, which the first compilation does otherwise, while it holds Numba's lock."""
    try:
        from numba.core.entrypoints import init_all

        init_all()
    except ImportError:  # documented above
        pass


def treat_alike(value: Any, function: Any) -> None:
    """Make `value` mean `function` in compiled code; else compiled code cannot use `value`."""
    try:
        from numba.core.registry import cpu_target
        from numba.core.typing.templates import infer_global

        context = cpu_target.typing_context
        context.refresh()
        infer_global(value, context.resolve_value_type(function))
        context.refresh()
        cpu_target.target_context.refresh()
    except (AttributeError, ImportError):  # documented above
        pass


# --- the code generators of intrinsics ----------------------------------------------------------------------

_UNKNOWN = -4
"""A status without a meaning: 0, -1, -2 and -3 have one, and positive ones come with an exception."""


def index_error(context: Any) -> Callable[[Any, str], None] | None:
    """With ``boundscheck``, a function that generates code to raise an IndexError with a message; else None.

    Also None if Numba lacks one of the names: then nothing is checked.
    """
    raises = getattr(getattr(context, "call_conv", None), "return_user_exc", None)
    if raises is None or not getattr(context, "enable_boundscheck", False):
        return None
    return lambda builder, message: raises(builder, IndexError, (message,))


def return_error(context: Any, builder: Any, kind: type[Exception], *arguments: str) -> None:
    """Generate code that raises an exception; without the names, a status that Numba takes for an unknown one."""
    raises = getattr(getattr(context, "call_conv", None), "return_user_exc", None)
    if raises is None:
        builder.ret(builder.function.ftype.return_type(_UNKNOWN))
    else:
        raises(builder, kind, arguments)


def return_raised(context: Any, builder: Any) -> None:
    """Generate code that returns to Python, where an exception is set; without the names, as `return_error`."""
    returns = getattr(getattr(context, "call_conv", None), "return_exc", None)
    if returns is None:
        builder.ret(builder.function.ftype.return_type(_UNKNOWN))
    else:
        returns(builder)


def impl_ret_borrowed(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """`value` with one more reference to its memory, as an intrinsic returns it; else it is added directly."""
    try:
        from numba.core.imputils import impl_ret_borrowed as borrowed
    except ImportError:
        if context.enable_nrt:
            context.nrt.incref(builder, kind, value)
        return value
    return borrowed(context, builder, kind, value)


def release(context: Any, builder: Any, kind: Any, value: Any) -> None:
    """Generate code that gives a reference to the memory of `value` back; else the memory is never freed."""
    if getattr(context, "enable_nrt", False):
        context.nrt.decref(builder, kind, value)


def compiled_call(typing: Any, dispatcher: Any, kinds: tuple[Any, ...]) -> tuple[Any, Callable[..., Any]]:
    """The signature of a compiled function for these types, and ``context, builder, values -> result`` to call it.

    Else Numba compiles it once more for each caller, with its default options.
    """
    try:
        function = typing.resolve_value_type(dispatcher)
        signature = typing.resolve_function_type(function, kinds, {})
    except AttributeError:  # documented above
        dispatcher.compile(kinds)
        again = next(one for one in dispatcher.nopython_signatures if one.args == kinds)
        return again, lambda context, builder, values: context.compile_internal(
            builder, dispatcher.py_func, again, tuple(values)
        )
    return signature, lambda context, builder, values: context.get_function(function, signature)(builder, values)


def populate_array(array: Any, **parts: Any) -> None:
    """Set all fields of an array from data, shape, strides, itemsize and meminfo; else field by field."""
    try:
        from numba.np.arrayobj import populate_array as populate
    except ImportError:
        _set_fields(array, **parts)
    else:
        populate(array, **parts)


def empty_array(context: Any, builder: Any, kind: Any, shape: Any) -> Any:
    """New memory for an array; else ``numpy.empty``, for which Numba compiles a function of its own."""
    try:
        from numba.np.arrayobj import _empty_nd_impl
    except ImportError:
        return _compiled_empty(context, builder, kind, shape)
    return _empty_nd_impl(context, builder, kind, shape)._getvalue()


def _compiled_empty(context: Any, builder: Any, kind: Any, shape: Any) -> Any:
    import numpy as np
    from numba import types

    number, sizes = np.dtype(str(kind.dtype)).type, types.UniTuple(types.intp, len(shape))
    packed = context.make_tuple(builder, sizes, shape)
    return context.compile_internal(builder, lambda shape: np.empty(shape, number), kind(sizes), (packed,))


def _set_fields(
    array: Any, data: Any, shape: Any, strides: Any, itemsize: Any, meminfo: Any, parent: Any = None
) -> None:
    from llvmlite import ir
    from numba.core import cgutils

    builder, size = array._builder, itemsize.type(1)
    items = cgutils.unpack_tuple(builder, shape) if isinstance(shape, ir.Value) else shape
    for n in items:
        size = builder.mul(size, n, flags=["nsw"])
    array.data, array.itemsize, array.nitems = data, itemsize, size
    array.shape = cgutils.pack_array(builder, items, itemsize.type)
    array.strides = cgutils.pack_array(builder, strides, itemsize.type)
    array.meminfo = cgutils.get_null_value(array.meminfo.type) if meminfo is None else meminfo
    array.parent = cgutils.get_null_value(array.parent.type) if parent is None else parent


# --- code without machine code ------------------------------------------------------------------------------


@cache
def _lean() -> Any:
    """A pipeline for functions that are only ever linked into others; see `lean_options`."""
    from llvmlite import binding
    from numba.core import codegen
    from numba.core.compiler import CompilerBase, DefaultPassBuilder
    from numba.core.compiler_machinery import FunctionPass, register_pass
    from numba.core.typed_passes import IRLegalization, NopythonRewrites
    from numba.core.untyped_passes import InlineClosureLikes

    unused = (InlineClosureLikes, NopythonRewrites)  # kernels have neither inner functions nor array expressions

    class Engineless:
        """The code generator of a library whose functions have no address."""

        def __init__(self, real: Any) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def set_env(self, name: str, env: Any) -> None:
            """Nothing: there is no variable to set."""

    class Library(codegen.JITCodeLibrary):  # type: ignore[misc]
        """LLVM code of one function, neither optimised nor turned into machine code."""

        _shared_module: Any

        @property
        def codegen(self) -> Any:
            return Engineless(self._codegen)

        def _optimize_functions(self, ll_module: Any) -> None:
            ll_module.data_layout = self._codegen._data_layout

        def finalize(self) -> None:
            self._raise_if_finalized()
            for function in self._final_module.functions:
                if not function.is_declaration and function.linkage == binding.Linkage.external:
                    function.linkage = "linkonce_odr"
            for library in self._linking_libraries:
                if hasattr(library, "_reload_init"):  # not before Numba 0.62
                    self._reload_init.update(library._reload_init)
            self._finalize_dynamic_globals()
            self._finalized = True

        def _get_module_for_linking(self) -> Any:
            self._ensure_finalized()
            if self._shared_module is None:
                self._shared_module = linked(self)
            return self._shared_module

        def get_pointer_to_function(self, name: str) -> int:
            return 0

    def needed(library: Any) -> list[Any]:
        """All libraries that one needs, users first: LLVM drops a function that nothing names yet."""
        seen: set[int] = set()
        order: list[Any] = []

        def visit(one: Any) -> None:
            for other in one._linking_libraries:
                if id(other) not in seen:
                    seen.add(id(other))
                    other._ensure_finalized()
                    if isinstance(other, Library):
                        visit(other)
                    order.append(other)

        visit(library)
        return order[::-1]

    def linked(library: Any) -> Any:
        """The module of a library with all that it needs."""
        library._ensure_finalized()
        module = library._final_module.clone()
        for other in needed(library):
            part = other._final_module if isinstance(other, Library) else other._get_module_for_linking()
            module.link_in(part, preserve=True)
        return module

    @register_pass(mutates_CFG=False, analysis_only=False)
    class ChooseLibrary(FunctionPass):  # type: ignore[misc]
        _name = "fastsoftmax_choose_library"

        def __init__(self) -> None:
            FunctionPass.__init__(self)

        def run_pass(self, state: Any) -> bool:
            interrupts.check()
            state.library = Library(state.targetctx.codegen(), state.func_id.func_qualname)
            state.library.enable_object_caching()
            return True

    class Pipeline(CompilerBase):  # type: ignore[misc]
        def define_pipelines(self) -> Any:
            passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
            passes.passes = [one for one in passes.passes if one[0] not in unused]
            place = [one for one, _ in passes.passes].index(IRLegalization)
            passes.passes.insert(place, (ChooseLibrary, "choose library"))
            passes.finalize()
            return [passes]

    return Pipeline, linked


def lean_options() -> dict[str, Any]:
    """Options of ``njit`` for functions that are only ever linked into others.

    Numba optimises every function and makes machine code of it, though only the function that is called in the end
    needs that. With these options, code is linked, optimised and emitted once. Without the names that this uses,
    the options are empty, and compiling takes twice as long.
    """
    try:
        return {"pipeline_class": _lean()[0]}
    except (AttributeError, ImportError):
        return {}


def linked_module(dispatcher: Any, signature: Any) -> tuple[Any, str, Any]:
    """A dispatcher's code for one signature with all that it calls, its function's name, and its return type."""
    dispatcher.compile(signature)
    compiled = dispatcher.overloads[tuple(signature)]
    library = compiled.library
    try:
        module = _lean()[1](library)
    except (AttributeError, ImportError):
        module = library._get_module_for_linking().clone()
    return module, compiled.fndesc.llvm_func_name, compiled.signature.return_type
