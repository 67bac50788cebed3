"""The functions through which machine code is called: one for C and compiled Python, one for Python.

Numba's function for a kernel takes arrays as seven or more values each. `add` puts two functions around it:

``NAME``
    takes an address for each array, and its shape; numbers as they are; the items of a tuple; nothing for None.
``NAME.py``
    has the form of a function of Python (``METH_FASTCALL``). It reads the fields of the arrays, releases the GIL
    while the kernel runs, and does not check the types of its arguments.

The second one must run on any version of Python, so it uses nothing but the stable C interface and the fields of
``PyArrayObject`` that NumPy documents. It gets Python's functions from the table `TABLE`, which `runtime.prebuilt`
fills: an extension without imports can be linked on any machine for any other.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from llvmlite import binding, ir

from fastsoftmax.machine import status
from fastsoftmax.runtime.prebuilt import PYTHON, TABLE

I1, I8, I32, I64 = (ir.IntType(width) for width in (1, 8, 32, 64))
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()
POINTER, RESULT = I8.as_pointer(), DOUBLE.as_pointer()
# Offsets of the fields of PyArrayObject behind the head of an object.
DATA, NDIM, SHAPE = 0, 8, 16


class Array(NamedTuple):
    """A C-contiguous array of numbers of so many bits."""

    item: Any
    """LLVM's type of the numbers."""
    ndim: int


class Tuple(NamedTuple):
    """A tuple of `length` numbers."""

    item: Any
    length: int


Parameter = Any
"""LLVM's type of a number or an address, an `Array`, a `Tuple`, or None for None."""


def _constant(value: int) -> Any:
    return ir.Constant(I64, value)


def _flat(kind: Parameter) -> list[Any]:
    """The types of a parameter of the C function."""
    if kind is None:
        return []
    if isinstance(kind, Array):
        return [kind.item.as_pointer(), *[I64] * kind.ndim]
    if isinstance(kind, Tuple):
        return [kind.item] * kind.length
    return [I64 if kind == I1 else kind]


def _numba(kind: Parameter) -> list[Any]:
    """The types of a parameter of Numba's function."""
    if kind is None:
        return [POINTER]
    if isinstance(kind, Array):
        return [POINTER, POINTER, I64, I64, kind.item.as_pointer(), *[I64] * (2 * kind.ndim)]
    if isinstance(kind, Tuple):
        return [kind.item] * kind.length
    return [I8 if kind == I1 else kind]


def _item_bytes(item: Any) -> int:
    return int(item.width // 8) if isinstance(item, ir.IntType) else 4 if item == FLOAT else 8


def _for_numba(build: Any, kind: Parameter, values: Sequence[Any]) -> list[Any]:
    """The arguments of Numba's function from those of the C function."""
    if kind is None:
        return [POINTER(None)]
    if kind == I1:
        return [build.trunc(values[0], I8)]
    if not isinstance(kind, Array):
        return list(values)
    data, *shape = values
    size = _constant(_item_bytes(kind.item))
    strides, count = [], _constant(1)
    for n in reversed(shape):
        strides.append(build.mul(count, size))
        count = build.mul(count, n)
    return [POINTER(None), POINTER(None), count, size, data, *shape, *reversed(strides)]


def _declare(module: Any, result: Any, arguments: Sequence[Any], name: str) -> Any:
    return ir.Function(module, ir.FunctionType(result, arguments), name)


def c_type(parameters: Sequence[Parameter]) -> Any:
    """The type of the function for C, which returns 0, or another number if the kernel has raised an exception.

    Its last argument is the address of a number, where the kernel writes its result, or 0 if it has none.
    """
    flat = [kind for parameter in parameters for kind in _flat(parameter)]
    return ir.FunctionType(I32, [*flat, RESULT])


def _c_function(
    module: Any, name: str, inner: str, parameters: Sequence[Parameter], result: Any, loop: bool
) -> Any:
    kinds = [kind for parameter in parameters for kind in _numba(parameter)]
    place = (POINTER if result is None else result).as_pointer()
    called = _declare(module, I32, [place, POINTER.as_pointer(), *kinds], inner)
    kind = c_type(parameters)
    if loop:  # as NumPy calls it
        kind = ir.FunctionType(I32, kind.args[:-1])
    function = ir.Function(module, kind, name)
    build = ir.IRBuilder(function.append_basic_block())
    values, arguments = list(function.args), []
    for parameter in parameters:
        count = len(_flat(parameter))
        arguments += _for_numba(build, parameter, values[:count])
        values = values[count:]
    written = build.alloca(POINTER) if loop else build.bitcast(values[0], place)
    build.ret(build.call(called, [written, build.alloca(POINTER), *arguments]))
    return function


class _Python:
    """Calls of Python's functions, through the table."""

    def __init__(self, module: Any, build: Any) -> None:
        self._build = build
        self._table = ir.GlobalVariable(module, ir.ArrayType(POINTER, len(PYTHON)), TABLE)

    def item(self, name: str) -> Any:
        """An entry of the table."""
        return self._build.load(self._build.gep(self._table, [I32(0), I32(PYTHON.index(name))]))

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        """The result of a function of Python."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self._build.call(self._build.bitcast(self.item(name), kind.as_pointer()), arguments)

    def head(self) -> Any:
        """The size of the head of an object."""
        return self._build.ptrtoint(self.item("head"), I64)


def _field(build: Any, base: Any, offset: Any, kind: Any) -> Any:
    return build.load(build.bitcast(build.gep(base, [offset]), kind.as_pointer()))


def _number(build: Any, python: _Python, item: Any, kind: Any) -> Any:
    if isinstance(kind, ir.IntType):
        return python.call("PyNumber_AsSsize_t", I64, item, POINTER(None))
    value = python.call("PyFloat_AsDouble", DOUBLE, item)
    return build.fptrunc(value, FLOAT) if kind == FLOAT else value


def _from_python(build: Any, python: _Python, item: Any, kind: Parameter) -> list[Any]:
    """The arguments of the C function from an object."""
    if kind is None:
        return []
    if kind == I1:
        return [build.zext(python.call("PyObject_IsTrue", I32, item), I64)]
    if isinstance(kind, Tuple):
        items = [python.call("PyTuple_GetItem", POINTER, item, _constant(k)) for k in range(kind.length)]
        return [_number(build, python, one, kind.item) for one in items]
    if not isinstance(kind, Array):
        return [_number(build, python, item, kind)]
    head = python.head()
    data = _field(build, item, build.add(head, _constant(DATA)), kind.item.as_pointer())
    shape = _field(build, item, build.add(head, _constant(SHAPE)), I64.as_pointer())
    ndim = _field(build, item, build.add(head, _constant(NDIM)), I32)
    sizes = [build.load(build.gep(shape, [_constant(k)])) for k in range(kind.ndim)]
    # An array with one dimension less is a block whose last dimension is 1. (Its strides lie behind its shape.)
    sizes[-1] = build.select(build.icmp_signed("<", ndim, I32(kind.ndim)), _constant(1), sizes[-1])
    return [data, *sizes]


def _python_function(module: Any, name: str, called: Any, parameters: Sequence[Parameter], result: Any) -> None:
    function = _declare(module, POINTER, [POINTER, POINTER.as_pointer(), I64], name)
    build = ir.IRBuilder(function.append_basic_block())
    python = _Python(module, build)
    arguments = []
    for k, parameter in enumerate(parameters):
        item = build.load(build.gep(function.args[1], [_constant(k)]))
        arguments += _from_python(build, python, item, parameter)
    place = build.alloca(DOUBLE)
    state = python.call("PyEval_SaveThread", POINTER)
    returned = build.call(called, [*arguments, place])
    python.call("PyEval_RestoreThread", ir.VoidType(), state)
    with build.if_then(build.icmp_signed("!=", returned, I32(0)), likely=False):
        text = bytearray(b"kernel access outside its array\0")
        message = ir.GlobalVariable(module, ir.ArrayType(I8, len(text)), f"{name}.message")
        message.linkage, message.initializer = "internal", ir.Constant(message.value_type, text)
        python.call("PyErr_SetString", ir.VoidType(), python.item("IndexError"), build.bitcast(message, POINTER))
        build.ret(POINTER(None))
    if result is None:
        none = python.item("None")
        python.call("Py_IncRef", ir.VoidType(), none)
        build.ret(none)
        return
    build.ret(python.call("PyFloat_FromDouble", POINTER, build.load(place)))


def add(code: Any, inner: str, name: str, parameters: Sequence[Parameter], result: Any, loop: bool) -> None:
    """Put the functions around Numba's function `inner` into its module `code`, which then exports only them.

    A loop of a ufunc is called by NumPy alone: its function for C has no argument for a result.
    """
    module = ir.Module(name)
    module.triple, module.data_layout = code.triple, code.data_layout
    function = _c_function(module, name, inner, parameters, result, loop)
    exported = {name}
    if not loop:
        exported.add(f"{name}.py")
        _python_function(module, f"{name}.py", function, parameters, result)
    around = binding.parse_assembly(str(module))
    around.verify()
    code.link_in(around)
    code.verify()
    exported.update(status.NAMES)  # `targets.object_code` replaces them
    for one in code.functions:
        if not one.is_declaration and one.name not in exported:
            one.linkage = "internal"
    for variable in code.global_variables:
        if variable.name != TABLE and not variable.is_declaration:
            variable.linkage = "internal"
