"""Kernels in code that Numba compiles: calls of machine code that is there already.

A call finds the function when it first runs, by asking Python for its address (`entry.find`), and keeps it in a
variable of its module. So the user's compiled code names no symbol, which LLVM would have to find when the code is
loaded from Numba's cache (it ends the process if there is none). Code that was cached with another version of this
package works if that version has the same kernel, and raises an ImportError if not.
"""

import inspect
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from fastsoftmax.machine import frontend, wrappers
from fastsoftmax.machine.entry import entry
from fastsoftmax.runtime.numba_private import return_error, return_raised
from fastsoftmax.runtime.prebuilt import PREFIX

_BYTES, _INT32, _INT64 = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)
MODULE = "fastsoftmax.machine.entry"
RAISED = 1
"""In the place of an address, if there is an exception for the caller in Python."""
MOST = 20
"""At least as many as the parameters of any kernel. Numba wants to know their number; we would have to import the
kernel to know it, so those that are left out have a default."""
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
_SIGNATURE = inspect.Signature(
    [
        inspect.Parameter("typingctx", _POSITIONAL),
        *[inspect.Parameter(f"a{k}", _POSITIONAL, default=None) for k in range(MOST)],
    ]
)


def _letter(kind: Any) -> str:
    if isinstance(kind, types.NoneType):
        return "n"
    if isinstance(kind, types.Array):
        return "a"
    if isinstance(kind, types.BaseTuple):
        return "t"
    if isinstance(kind, (types.Boolean, types.BooleanLiteral)):
        return "b"
    return "i" if isinstance(kind, types.Integer) else "s"


def _accepted(kind: Any, dtype: str) -> Any:
    """The type to which Numba converts an argument."""
    if isinstance(kind, (types.Array, types.NoneType)):
        return kind
    if isinstance(kind, types.BaseTuple):
        return types.UniTuple(frontend.FLOATS[dtype], len(kind))
    return {"b": types.boolean, "i": types.int64, "s": frontend.FLOATS.get(dtype)}[_letter(kind)]


def _values(context: Any, builder: Any, kind: Any, value: Any) -> list[Any]:
    """An argument as the function for C takes it."""
    if isinstance(kind, types.NoneType):
        return []
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        return [array.data, *cgutils.unpack_tuple(builder, array.shape, kind.ndim)]
    if isinstance(kind, types.BaseTuple):
        return list(cgutils.unpack_tuple(builder, value, len(kind)))
    return [builder.zext(value, _INT64)] if kind == types.boolean else [value]


def text_address(module: Any, value: str) -> Any:
    """The address of a text for C."""
    content = cgutils.make_bytearray(value.encode() + b"\0")
    return cgutils.global_constant(module, f"fastsoftmax.{value}", content).bitcast(_BYTES)


class Python:
    """Calls of Python's C interface in code that Numba compiles. The GIL is held from `ensure` to `release`."""

    def __init__(self, module: Any, build: Any) -> None:
        self._module, self._build = module, build

    def call(self, name: str, result: Any, *arguments: Any, fixed: int | None = None) -> Any:
        """The result of a C function; with `fixed`, it takes any number of arguments behind so many."""
        kinds = [argument.type for argument in arguments]
        kind = ir.FunctionType(result, kinds[:fixed], var_arg=fixed is not None)
        return self._build.call(cgutils.get_or_insert_function(self._module, kind, name), arguments)

    def ensure(self) -> Any:
        """Take the GIL; what `release` needs."""
        return self.call("PyGILState_Ensure", _INT32)

    def release(self, state: Any) -> None:
        """Give the GIL back."""
        self.call("PyGILState_Release", ir.VoidType(), state)

    def call_function(
        self, module: str, name: str, letters: str, *arguments: Any, found: Any, failed: Any
    ) -> None:
        """Call a function of a module of Python; `letters` are the format of its arguments.

        ``found(result)`` and ``failed()`` generate what follows; `failed` if an exception is set. An exception of
        the import stays set, and neither follows.
        """
        build = self._build
        home = self.call("PyImport_ImportModule", _BYTES, text_address(self._module, module))
        with build.if_then(build.icmp_unsigned("!=", home, _BYTES(None))):
            names = home, text_address(self._module, name), text_address(self._module, letters)
            result = self.call("PyObject_CallMethod", _BYTES, *names, *arguments, fixed=3)
            with build.if_else(build.icmp_unsigned("!=", result, _BYTES(None))) as (returned, raised):
                with returned:
                    found(result)
                    self.call("Py_DecRef", ir.VoidType(), result)
                with raised:
                    failed()
            self.call("Py_DecRef", ir.VoidType(), home)


def _finder(module: Any) -> Any:
    """The function ``char *name -> address`` of a module: what `entry.find` returns, or `RAISED` if it raises."""
    name = "fastsoftmax.find"
    known = module.globals.get(name)
    if known is not None:
        return known
    found = ir.Function(module, ir.FunctionType(_INT64, [_BYTES]), name)
    found.linkage = "linkonce_odr"
    build = ir.IRBuilder(found.append_basic_block("entry"))
    python = Python(module, build)
    state = python.ensure()
    answer = cgutils.alloca_once_value(build, _INT64(0))
    python.call_function(
        MODULE,
        "find",
        "s",
        found.args[0],
        found=lambda number: build.store(python.call("PyLong_AsLongLong", _INT64, number), answer),
        failed=lambda: build.store(_INT64(RAISED), answer),
    )
    with build.if_then(build.icmp_unsigned("!=", build.load(answer), _INT64(RAISED))):
        python.call("PyErr_Clear", ir.VoidType())
    python.release(state)
    build.ret(build.load(answer))
    return found


def _function(context: Any, builder: Any, name: str, kind: Any) -> Any:
    """The function of a variant, which is looked up when the code first gets here."""
    module = builder.module
    place_name = f"fastsoftmax.at.{name}"
    place = module.globals.get(place_name)
    if place is None:
        place = ir.GlobalVariable(module, _INT64, place_name)
        place.linkage, place.initializer = "internal", _INT64(0)
    with builder.if_then(builder.icmp_unsigned("==", builder.load(place), _INT64(0)), likely=False):
        found = builder.call(_finder(module), [text_address(module, name)])
        with builder.if_then(builder.icmp_unsigned("==", found, _INT64(0)), likely=False):
            message = (
                f"this code was compiled for another version of fastsoftmax, or its kernel {name} cannot be "
                "compiled here; delete the files that Numba has cached for it"
            )
            return_error(context, builder, ImportError, message)
        with builder.if_then(builder.icmp_unsigned("==", found, _INT64(RAISED)), likely=False):
            return_raised(context, builder)
        builder.store(found, place)
    return builder.inttoptr(builder.load(place), kind.as_pointer())


@cache
def external(name: str, result: bool = False) -> Any:
    """The kernel of this name (as "losses.cross_entropy") for compiled code.

    `result` says whether the caller uses its result, a float.
    """
    kernel = entry(name)

    def call(typingctx: Any, *args: Any) -> Any:
        args = tuple([kind for kind in args if not isinstance(kind, types.Omitted)])
        arrays = [kind.dtype for kind in args if isinstance(kind, types.Array)]
        floats = [kind for kind in arrays if isinstance(kind, types.Float)]
        dtype = ("f" if floats[0] == types.float32 else "d") if floats else "i"
        letters = "".join(map(_letter, args))
        try:
            kernel.address(dtype, letters)  # now, so that it is compiled with its caller if no library has it
        except KeyError:
            raise TypingError(f"kernel {name} does not take {args}") from None
        kinds = [_accepted(kind, dtype) for kind in args]
        full_name = f"{PREFIX}{name}.{dtype}.{letters}"
        returned = types.float64 if result else types.void

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            kind = wrappers.c_type([frontend.parameter(one) for one in kinds])
            flat = [
                one
                for pair in zip(kinds, values[: len(kinds)], strict=True)
                for one in _values(context, builder, *pair)
            ]
            room = cgutils.alloca_once(builder, wrappers.DOUBLE)
            function = _function(context, builder, full_name, kind)
            operands = [builder.bitcast(a, k) if isinstance(k, ir.PointerType) else a
                        for a, k in zip([*flat, room], kind.args, strict=True)]  # fmt: skip
            status = builder.call(function, operands)
            with builder.if_then(builder.icmp_signed("!=", status, _INT32(0)), likely=False):
                return_error(context, builder, IndexError, "kernel access outside its array")
            return builder.load(room) if result else context.get_dummy_value()

        return returned(*kinds, *[types.Omitted(None)] * (MOST - len(kinds))), codegen

    call.__name__ = name.replace(".", "_")
    call.__signature__ = _SIGNATURE  # type: ignore[attr-defined]
    return intrinsic(call)
