"""The functions through which machine code is called: one for C and compiled Python, one for Python.

A kernel has two or three functions:

``NAME``
    takes an address for each array, and its shape; numbers as they are; the items of a tuple; nothing for None.
    It is the kernel (`translate`), or calls Numba's function, which takes arrays as seven or more values each.
``NAME.py``
    has the form of a function of Python (``METH_FASTCALL``). It reads the fields of the arrays, releases the GIL
    while the kernel runs, and does not check the types of its arguments. With a team behind the arguments of the
    kernel (`runtime.teams`), the first two are the rows of a block and of the call, which helpers share.
``NAME.small.py``
    for some kernels whose blocks have one shape, and of which the last is the output, if there are several: takes
    the arguments behind the working memory, and runs the kernel on all rows if the blocks are small arrays that
    need neither conversion nor layout. It returns whether they are; for a kernel with a result, that result, which
    must not be negative, or -1. In Python, these checks take longer than a kernel. If the kernel takes integers,
    one for each row, then blocks are matrices, and NumPy's dtype of the integers comes behind the other arguments.
    The last vector of floats, one for each row, may then be None for up to `ON_STACK` rows, if nobody needs it.
    Of a kernel of entries, the blocks are arrays of any shape with the entries of one chunk, whose last one, the
    output, may be the first, or None if nothing is written to it.

Those for Python must run on any version of it, so they use nothing but the stable C interface and the fields of
``PyArrayObject`` that NumPy documents. The table `TABLE`, filled by `runtime.prebuilt`, has Python's functions:
an extension without imports can be linked on any machine for any other.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import ir

from fastsoftmax._vectors import CHUNK, ON_STACK, SMALL
from fastsoftmax.machine import halves, status
from fastsoftmax.runtime import teams
from fastsoftmax.runtime.prebuilt import PYTHON, TABLE

I1, I8, I16, I32, I64 = (ir.IntType(width) for width in (1, 8, 16, 32, 64))
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()
POINTER, RESULT = I8.as_pointer(), DOUBLE.as_pointer()
WORDS = I64.as_pointer()
JOB = ir.FunctionType(I64, [WORDS, I64, I64, POINTER, I64])
"""The type of a job, and below of the function that the caller runs: `runtime.teams`."""
DRIVER = ir.FunctionType(I64, [WORDS, I64, POINTER, I64, I64, I64, I64])
# Offsets of the fields of PyArrayObject behind the head of an object.
DATA, NDIM, SHAPE, DTYPE, FLAGS = 0, 8, 16, 40, 48
# Flags of NumPy.
CONTIGUOUS, ALIGNED, WRITEABLE = 0x1, 0x100, 0x400


class Array(NamedTuple):
    """A C-contiguous array of numbers of so many bits."""

    item: Any
    """LLVM's type of the numbers."""
    ndim: int
    entries: bool = False
    """Whether it has the entries of an array of any shape, in C order."""


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


def declare(module: Any, name: str, parameters: Sequence[Parameter], loop: bool) -> Any:
    """The function for C, which has no code yet.

    A loop of a ufunc is called by NumPy alone: it has no argument for a result.
    """
    kind = c_type(parameters)
    return ir.Function(module, ir.FunctionType(I32, kind.args[:-1]) if loop else kind, name)


def call_numba(function: Any, inner: str, parameters: Sequence[Parameter], has_result: bool, loop: bool) -> None:
    """Write the code of the function for C: a call of Numba's function of this name."""
    kinds = [kind for parameter in parameters for kind in _numba(parameter)]
    place = (DOUBLE if has_result else POINTER).as_pointer()
    called = _declare(function.module, I32, [place, POINTER.as_pointer(), *kinds], inner)
    build = ir.IRBuilder(function.append_basic_block())
    values, arguments = list(function.args), []
    for parameter in parameters:
        count = len(_flat(parameter))
        arguments += _for_numba(build, parameter, values[:count])
        values = values[count:]
    written = build.alloca(POINTER) if loop else build.bitcast(values[0], place)
    build.ret(build.call(called, [written, build.alloca(POINTER), *arguments]))


class Python:
    """Calls of Python's functions, through the table."""

    def __init__(self, module: Any, build: Any) -> None:
        self._build = build
        table = module.globals.get(TABLE)
        self._table = table or ir.GlobalVariable(module, ir.ArrayType(POINTER, len(PYTHON)), TABLE)

    def item(self, name: str) -> Any:
        """An entry of the table."""
        return self._build.load(self._build.gep(self._table, [I32(0), I32(PYTHON.index(name))]))

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        """The result of a function of Python."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self._build.call(self._build.bitcast(self.item(name), kind.as_pointer()), arguments)

    def give(self, name: str) -> None:
        """Return an object of the table."""
        found = self.item(name)
        self.call("Py_IncRef", ir.VoidType(), found)
        self._build.ret(found)

    def head(self) -> Any:
        """The size of the head of an object."""
        return self._build.ptrtoint(self.item("head"), I64)


def _field(build: Any, base: Any, offset: Any, kind: Any) -> Any:
    return build.load(build.bitcast(build.gep(base, [offset]), kind.as_pointer()))


def _number(build: Any, python: Python, item: Any, kind: Any) -> Any:
    if isinstance(kind, ir.IntType):
        return python.call("PyNumber_AsSsize_t", I64, item, POINTER(None))
    value = python.call("PyFloat_AsDouble", DOUBLE, item)
    return build.fptrunc(value, FLOAT) if kind == FLOAT else value


def from_python(build: Any, python: Python, item: Any, kind: Parameter) -> list[Any]:
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


def word(build: Any, team: Any, place: int) -> Any:
    """The address of a word of a team."""
    return build.gep(team, [I64(place)])


@contextmanager
def loop(build: Any, start: Any, stop: Any, step: Any) -> Iterator[Any]:
    """Code that is repeated for the numbers below `stop`, from `start` on."""
    before = build.block
    head, body, after = (build.append_basic_block(name) for name in ("loop", "body", "after"))
    build.branch(head)
    build.position_at_end(head)
    k = build.phi(I64)
    k.add_incoming(start, before)
    build.cbranch(build.icmp_signed("<", k, stop), body, after)
    build.position_at_end(body)
    yield k
    k.add_incoming(build.add(k, step), build.block)
    build.branch(head)
    build.position_at_end(after)


def _room(parameters: Sequence[Parameter]) -> int | None:
    """How many arguments of the C function are working memory; None if threads cannot share the kernel's rows.

    The result of a kernel that has one is dropped when its rows are shared.
    """
    if len(parameters) < 3 or not parameters[0] == parameters[1] == I64:
        return None
    if parameters[2] is None:
        return 0
    return 2 if isinstance(parameters[2], Array) and parameters[2].ndim == 1 else None


def _job(module: Any, name: str, called: Any, room: int) -> Any:
    """The function of a job: it calls the C function with the arguments behind `teams.FRAME`."""
    function = ir.Function(module, JOB, f"{name}.job")
    function.linkage = "internal"
    team, start, stop, memory, size = function.args
    build = ir.IRBuilder(function.append_basic_block())
    kinds = called.function_type.args[:-1]
    assert len(kinds) <= teams.MOST_ARGUMENTS
    arguments = [start, stop, *([build.bitcast(memory, kinds[2]), size] if room else [])]
    for k, kind in enumerate(kinds[len(arguments) :]):
        arguments.append(build.load(build.bitcast(word(build, team, teams.FRAME + k), kind.as_pointer())))
    build.ret(build.zext(build.call(called, [*arguments, build.alloca(DOUBLE)]), I64))
    return function


def _store_rooms(build: Any, python: Python, team: Any, items: Any, seats: Any) -> None:
    """Put the working memory of the helpers, which are arrays of Python, into `teams.ROOMS`."""
    with loop(build, I64(0), seats, I64(1)) as k:
        data, size = from_python(build, python, build.load(build.gep(items, [k])), Array(I64, 1))
        at = build.add(build.mul(k, I64(2)), I64(teams.ROOMS))
        build.store(build.ptrtoint(data, I64), build.gep(team, [at]))
        build.store(size, build.gep(team, [build.add(at, I64(1))]))


def _shared(build: Any, python: Python, job: Any, given: Sequence[Any], values: Sequence[Any], room: int) -> Any:
    """Call the driver with the team that stands behind the kernel's arguments, and what it returns.

    Behind the team is the working memory of the helpers. `given` has the address and the number of the objects
    from the team on, `values` the arguments of the C function.
    """
    items, count = given
    address = python.call("PyNumber_AsSsize_t", I64, build.load(items), POINTER(None))
    team = build.inttoptr(address, WORDS)
    for k, value in enumerate(values[2 + room :]):
        build.store(value, build.bitcast(word(build, team, teams.FRAME + k), value.type.as_pointer()))
    seats = build.sub(count, I64(1))
    memory = [POINTER(None), I64(0)]
    if room:
        _store_rooms(build, python, team, build.gep(items, [I64(1)]), seats)
        memory = [build.bitcast(values[2], POINTER), values[3]]
    drive = build.inttoptr(build.load(word(build, team, teams.DRIVE)), DRIVER.as_pointer())
    arguments = [team, build.ptrtoint(job, I64), *memory]
    with build.if_then(build.icmp_signed("!=", values[0], I64(0))):
        # Before the GIL is released, because the system may then run a helper in place of this thread.
        build.call(drive, [*arguments, values[0], values[1], seats])
    state = python.call("PyEval_SaveThread", POINTER)
    done = build.call(drive, [*arguments, I64(0), values[1], seats])
    python.call("PyEval_RestoreThread", ir.VoidType(), state)
    return done


def _fail(module: Any, build: Any, python: Python, name: str) -> None:
    """Raise IndexError."""
    text = bytearray(b"kernel access outside its array\0")
    message = module.globals.get(f"{name}.message")
    if message is None:
        message = ir.GlobalVariable(module, ir.ArrayType(I8, len(text)), f"{name}.message")
        message.linkage, message.initializer = "internal", ir.Constant(message.value_type, text)
    python.call("PyErr_SetString", ir.VoidType(), python.item("IndexError"), build.bitcast(message, POINTER))
    build.ret(POINTER(None))


def _python_function(module: Any, name: str, called: Any, parameters: Sequence[Parameter], result: Any) -> None:
    function = _declare(module, POINTER, [POINTER, POINTER.as_pointer(), I64], name)
    _, items, total = function.args
    build = ir.IRBuilder(function.append_basic_block())
    python = Python(module, build)
    values = []
    for k, parameter in enumerate(parameters):
        values += from_python(build, python, build.load(build.gep(items, [I64(k)])), parameter)
    room, count = _room(parameters), I64(len(parameters))
    if room is not None:
        with build.if_then(build.icmp_signed(">", total, count), likely=False):
            job = _job(module, name, called, room)
            given = build.gep(items, [count]), build.sub(total, count)
            done = _shared(build, python, job, given, values, room)
            with build.if_then(build.icmp_signed("==", done, I64(teams.ERROR)), likely=False):
                _fail(module, build, python, name)
            build.ret(python.call("PyFloat_FromDouble", POINTER, build.sitofp(done, DOUBLE)))
    place = build.alloca(DOUBLE)
    state = python.call("PyEval_SaveThread", POINTER)
    returned = build.call(called, [*values, place])
    python.call("PyEval_RestoreThread", ir.VoidType(), state)
    with build.if_then(build.icmp_signed("!=", returned, I32(0)), likely=False):
        _fail(module, build, python, name)
    if result is None:
        python.give("None")
    else:
        build.ret(python.call("PyFloat_FromDouble", POINTER, build.load(place)))


class _Checks:
    """Conditions, in order, of which the first that does not hold makes a function return False."""

    def __init__(self, build: Any, python: Python) -> None:
        self._build, self._python = build, python
        self._refused = build.append_basic_block("refused")

    def need(self, condition: Any) -> None:
        """Go on only if it holds."""
        held = self._build.append_basic_block("held")
        self._build.cbranch(condition, held, self._refused)
        self._build.position_at_end(held)

    def refuse(self, counted: bool) -> None:
        """The code for the other case: False, or -1 if a result is `counted`."""
        self._build.position_at_end(self._refused)
        if counted:
            self._build.ret(self._python.call("PyFloat_FromDouble", POINTER, DOUBLE(-1.0)))
        else:
            self._python.give("False")


def _small_function(module: Any, name: str, called: Any, parameters: Sequence[Parameter], result: Any) -> None:
    function = _declare(module, POINTER, [POINTER, POINTER.as_pointer(), I64], name)
    items, given = function.args[1:]
    build = ir.IRBuilder(function.append_basic_block())
    python = Python(module, build)
    checks = _Checks(build, python)
    behind, head = parameters[3:], python.head()

    def field(item: Any, offset: int, kind: Any) -> Any:
        return _field(build, item, build.add(head, _constant(offset)), kind)

    are_entries = any(isinstance(one, Array) and one.entries for one in behind)
    are_blocks = [isinstance(one, Array) and (one.ndim == 3 or one.entries) for one in behind]
    are_marks = [isinstance(one, Array) and one == Array(I64, 1) for one in behind]
    vectors = [k for k, one in enumerate(behind) if isinstance(one, Array) and one.ndim == 1 and one.item != I64]
    total = len(behind) + any(are_marks)
    checks.need(build.icmp_signed("==", given, I64(total)))
    objects = [build.load(build.gep(items, [I64(k)])) for k in range(total)]
    blocks, marks = (list(itertools.compress(objects, chosen)) for chosen in (are_blocks, are_marks))
    first, output = blocks[0], blocks[-1] if len(blocks) > 1 else None
    plain = I32(CONTIGUOUS | ALIGNED)
    writeable = I32(CONTIGUOUS | ALIGNED | WRITEABLE)
    if are_entries:  # if the output is None, the first block stands for it in what follows
        missing = build.icmp_unsigned("==", output, python.item("None"))
        output = blocks[-1] = build.select(missing, first, output)
        writeable = build.select(missing, plain, writeable)
    for one in (*blocks, *marks):
        kind = _field(build, one, build.sub(head, I64(8)), POINTER)  # an object's head ends with its type
        checks.need(build.icmp_unsigned("==", kind, python.item("ndarray")))
    dtype, ndim = field(first, DTYPE, POINTER), field(first, NDIM, I32)
    for one in blocks:
        flags = writeable if one is output else plain
        checks.need(build.icmp_signed("==", build.and_(field(one, FLAGS, I32), flags), flags))
        checks.need(build.icmp_unsigned("==", field(one, DTYPE, POINTER), dtype))
        checks.need(build.icmp_signed("==", field(one, NDIM, I32), ndim))
    checks.need(build.icmp_signed("==", ndim, I32(2)) if marks else build.icmp_signed(">", ndim, I32(0)))
    for one in marks:
        checks.need(build.icmp_signed("==", build.and_(field(one, FLAGS, I32), plain), plain))
        checks.need(build.icmp_unsigned("==", field(one, DTYPE, POINTER), objects[-1]))
        checks.need(build.icmp_signed("==", field(one, NDIM, I32), I32(1)))
    shapes = [field(one, SHAPE, WORDS) for one in blocks]

    # All have the same shape, of 1 to SMALL items.
    before, loop, counted = build.block, build.append_basic_block("loop"), build.append_basic_block("counted")
    build.branch(loop)
    build.position_at_end(loop)
    k, product = build.phi(I32), build.phi(I64)
    k.add_incoming(I32(0), before)
    product.add_incoming(I64(1), before)
    at = build.sext(k, I64)
    classes, *others = [build.load(build.gep(shape, [at])) for shape in shapes]
    for other in others:
        checks.need(build.icmp_signed("==", other, classes))
    checks.need(build.icmp_unsigned("<=", build.sub(classes, I64(1)), I64(SMALL - 1)))
    size = build.mul(product, classes)
    checks.need(build.icmp_signed("<=", size, I64(SMALL)))
    following = build.add(k, I32(1))
    k.add_incoming(following, build.block)
    product.add_incoming(size, build.block)
    build.cbranch(build.icmp_signed("<", following, ndim), loop, counted)
    build.position_at_end(counted)
    if are_entries:
        checks.need(build.icmp_signed("<=", size, I64(CHUNK)))

    for one in marks:
        checks.need(build.icmp_signed("==", build.load(field(one, SHAPE, WORDS)), product))

    # The output lies apart from the others. The first of two may be the output.
    reach = build.mul(size, I64(_item_bytes(behind[are_blocks.index(True)].item)))
    others = [(one, reach) for one in blocks[:-1]]
    others += [(one, build.mul(product, I64(8))) for one in marks]
    for one, length in others if output is not None else []:
        place = build.ptrtoint(field(output, DATA, POINTER), I64)
        start = build.ptrtoint(field(one, DATA, POINTER), I64)
        apart = build.or_(
            build.icmp_unsigned("<=", build.add(place, reach), start),
            build.icmp_unsigned("<=", build.add(start, length), place),
        )
        may_be_output = one is first and (len(blocks) == 2 or are_entries)
        if may_be_output:
            apart = build.or_(apart, build.icmp_unsigned("==", one, output))
        checks.need(build.or_(apart, missing) if are_entries else apart)

    rows, remaining = I64(1) if are_entries else product, iter(blocks)
    values: list[Any] = [I64(0), rows, ir.Constant(called.function_type.args[2], None), I64(0)]
    for k, (one, parameter) in enumerate(zip(objects, behind, strict=False)):
        if marks and k == vectors[-1]:
            values += [_memory_of_rows(build, python, checks, one, parameter.item, product), product]
        elif are_blocks[k]:
            block = next(remaining)
            data = build.bitcast(field(block, DATA, POINTER), parameter.item.as_pointer())
            if are_entries:
                values += [data, build.select(missing, I64(0), size) if block is output else size]
            else:
                values += [data, product, classes, I64(1)]
        else:
            values += from_python(build, python, one, parameter)
    answer = build.alloca(DOUBLE)
    returned = build.call(called, [*values, answer])
    with build.if_then(build.icmp_signed("!=", returned, I32(0)), likely=False):
        _fail(module, build, python, name)
    if result is None:
        python.give("True")
    else:
        build.ret(python.call("PyFloat_FromDouble", POINTER, build.load(answer)))
    checks.refuse(counted=result is not None)


def _memory_of_rows(build: Any, python: Python, checks: _Checks, given: Any, item: Any, rows: Any) -> Any:
    """The address of a vector with a number for each row; on the stack if it is None."""
    is_none = build.icmp_unsigned("==", given, python.item("None"))
    checks.need(build.or_(build.not_(is_none), build.icmp_signed("<=", rows, I64(ON_STACK))))
    with build.goto_entry_block():
        stack, place = build.alloca(ir.ArrayType(item, ON_STACK)), build.alloca(item.as_pointer())
    build.store(build.bitcast(stack, item.as_pointer()), place)
    with build.if_then(build.not_(is_none)):
        build.store(_field(build, given, build.add(python.head(), _constant(DATA)), item.as_pointer()), place)
    return build.load(place)


def add(function: Any, parameters: Sequence[Parameter], result: Any, small: bool) -> None:
    """Put the functions for Python around the function for C."""
    _python_function(function.module, f"{function.name}.py", function, parameters, result)
    if small:
        _small_function(function.module, f"{function.name}.small.py", function, parameters, result)


def hide(code: Any, name: str) -> None:
    """Make a module export nothing but the functions of a kernel of this name."""
    replaced = (*status.NAMES, *halves.NAMES)  # by `targets.object_code`
    exported = {name, f"{name}.py", f"{name}.small.py", *replaced}
    for one in code.functions:
        if not one.is_declaration and one.name not in exported:
            one.linkage = "internal"
    for variable in code.global_variables:
        if variable.name != TABLE and not variable.is_declaration:
            variable.linkage = "internal"
