"""The door to the private interface of Numba. With `numba_state`, the only module that uses it.

Public is what the manuals of Numba and llvmlite describe: the names in ``numba``, ``numba.types``,
``numba.extending``, ``numba.core.errors`` and ``numba.core.cgutils``; the arguments `context` and `builder` of a
code generator, as far as they make types, constants, tuples and arrays; ``llvmlite.ir`` and ``llvmlite.binding``.
All modules may use that. Everything else can change with any release, and is used only here. There is one function
for each use; its docstring says what happens if Numba lacks the name.

Numba is imported when a function is called, not before: `runtime.cache` has to work without it.
"""

import pickle
from collections.abc import Callable
from typing import Any

# --- compilation and machine code ---------------------------------------------------------------------------


def known_options(**options: Any) -> dict[str, Any]:
    """The options that Numba knows among these undocumented ones of ``njit``; without them code is slower."""
    try:
        from numba.core.cpu import CPUTargetOptions
    except ImportError:
        return {}
    return {name: value for name, value in options.items() if hasattr(CPUTargetOptions, name)}


def machine_code(dispatcher: Any, *arguments: Any) -> Any:
    """The compiled function for arguments of these types; else the dispatcher itself, which is slower.

    The compiled function does not check the types of its arguments.
    """
    try:
        from numba import typeof

        return dispatcher.overloads[tuple(typeof(argument) for argument in arguments)].entry_point
    except Exception:  # documented above
        return dispatcher


def c_address(dispatcher: Any, signature: Any) -> int:
    """The address, which does not change, of the C function for one signature; else NotImplementedError."""
    try:
        dispatcher.compile(signature)
        compiled = dispatcher.overloads[tuple(signature.args)]
        return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name))
    except (AttributeError, KeyError) as error:
        raise NotImplementedError("this release of Numba has no functions for C") from error


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


# --- the disk cache -----------------------------------------------------------------------------------------
# If one of these raises an exception, `KernelCache` compiles in memory.


def keep_in(cache: Any, dispatcher: Any) -> None:
    """Let `dispatcher` look for its machine code in `cache`; else it compiles in every process."""
    if all(hasattr(getattr(dispatcher, "_cache", None), name) for name in ("load_overload", "save_overload")):
        dispatcher._cache = cache


def processor(target_context: Any) -> Any:
    """The processor that is compiled for."""
    return target_context.codegen().magic_tuple()


def compiled_for(result: Any) -> Any:
    """The target context for which a function was compiled."""
    return result.target_context


def to_bytes(result: Any) -> bytes | None:
    """A compiled function as bytes for `from_bytes`; None if another process could not use it."""
    from numba.core.serialize import dumps

    if result.lifted or result.library.has_dynamic_globals:
        return None
    return bytes(dumps(result._reduce()))


def from_bytes(target_context: Any, payload: bytes) -> Any:
    """The compiled function from the bytes that `to_bytes` made."""
    from numba.core.compiler import CompileResult

    return CompileResult._rebuild(target_context, *pickle.loads(payload))


def start_runtime(target_context: Any) -> None:
    """Start the part of Numba that loaded code may call; else all that Numba has registered, which takes 0.3 s."""
    try:
        from numba.core.runtime import rtsys

        start = rtsys.initialize
    except (AttributeError, ImportError):
        target_context.refresh()
    else:
        start(target_context)


# --- the code generators of intrinsics ----------------------------------------------------------------------


def index_error(context: Any) -> Callable[[Any, str], None] | None:
    """With ``boundscheck``, a function that generates code to raise an IndexError with a message; else None.

    Also None if Numba lacks one of the names: then nothing is checked.
    """
    raises = getattr(getattr(context, "call_conv", None), "return_user_exc", None)
    if raises is None or not getattr(context, "enable_boundscheck", False):
        return None
    return lambda builder, message: raises(builder, IndexError, (message,))


def impl_ret_borrowed(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """`value` with one more reference to its memory, as an intrinsic returns it; else it is added directly."""
    try:
        from numba.core.imputils import impl_ret_borrowed as borrowed
    except ImportError:
        if context.enable_nrt:
            context.nrt.incref(builder, kind, value)
        return value
    return borrowed(context, builder, kind, value)


def populate_array(array: Any, **parts: Any) -> None:
    """Set all fields of an array from data, shape, strides, itemsize and meminfo; else field by field."""
    try:
        from numba.np.arrayobj import populate_array as populate
    except ImportError:
        _set_fields(array, **parts)
    else:
        populate(array, **parts)


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
