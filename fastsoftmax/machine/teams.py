"""The functions with which threads share the blocks of a call; `runtime.teams` describes their memory.

``teams.drive``
    ``drive(team, job, room, size, step, stop, seats)`` is what the caller of a kernel runs.
``teams.drive_apart``
    takes the same arguments, and runs the kernel over rows that lie apart, as the team describes them.
``teams.join.py``
    ``join(team, first, patience)`` is what helpers run, as a function of Python (``METH_FASTCALL``). A helper
    looks `first` times for a job, and `patience` times for another one after a job that it worked on.
``teams.meet.py``
    ``meet(team, count, patience)`` is what a caller runs that has woken helpers: it waits until so many are there,
    or for so many looks.
"""

from typing import Any

from llvmlite import binding, ir

from fastsoftmax.machine import apart, status, wrappers
from fastsoftmax.machine.wrappers import DRIVER, I1, I32, I64, JOB, POINTER, WORDS, word
from fastsoftmax.runtime import teams
from fastsoftmax.runtime.prebuilt import PREFIX

NAME = "teams.drive"
"""The name of the object; it exports this function, `APART`, `JOIN` and `MEET`."""
APART = "teams.drive_apart"
JOIN = "teams.join"
MEET = "teams.meet"

ORDER = "seq_cst"


def _load(build: Any, team: Any, place: int) -> Any:
    return build.load_atomic(word(build, team, place), ORDER, 8)


def _store(build: Any, team: Any, place: int, value: Any) -> None:
    build.store_atomic(value, word(build, team, place), ORDER, 8)


def _add(build: Any, team: Any, place: int, value: Any) -> Any:
    """Add to a word; what it was before."""
    return build.atomic_rmw("add", word(build, team, place), value, ORDER)


def _pause(module: Any, build: Any, triple: str) -> None:
    """Tell the processor that this is a loop that waits."""
    name, operands = {
        "x86_64": ("llvm.x86.sse2.pause", []),
        "aarch64": ("llvm.aarch64.hint", [I32(1)]),
    }.get(status.architecture(triple), (None, []))
    if name is not None:
        kind = ir.FunctionType(ir.VoidType(), [one.type for one in operands])
        build.call(module.globals.get(name) or ir.Function(module, kind, name), operands)


def _waiting(module: Any, build: Any, triple: str, patience: Any, done: Any) -> Any:
    """Repeat ``done()`` until it is true, at most `patience` times; whether it was. The builder goes on behind."""
    before = build.block
    loop, after = build.append_basic_block("wait"), build.append_basic_block("waited")
    build.branch(loop)
    build.position_at_end(loop)
    left = build.phi(I64)
    left.add_incoming(patience, before)
    so = done()
    rest = build.sub(left, I64(1))
    left.add_incoming(rest, build.block)
    _pause(module, build, triple)
    build.cbranch(build.or_(so, build.icmp_signed("<=", rest, I64(0))), after, loop)
    build.position_at_end(after)
    return so


def _sides(build: Any, taken: Any) -> tuple[Any, Any]:
    """The blocks taken from the front and from the back."""
    return build.and_(taken, I64(teams.BACK - 1)), build.lshr(taken, I64(teams.BACK.bit_length() - 1))


def _total(build: Any, taken: Any) -> Any:
    """How many blocks have been taken, or more if none is left."""
    return build.add(*_sides(build, taken))


def _work_function(module: Any) -> Any:
    """``work(team, job, room, size, most, side)``: take blocks until none is left, at most so many.

    ``side`` is `teams.FRONT` for the caller and `teams.BACK` for helpers.
    """
    kind = ir.FunctionType(ir.VoidType(), [WORDS, I64, POINTER, I64, I64, I64])
    function = ir.Function(module, kind, "work")
    function.linkage = "internal"
    team, job, room, size, most, side = function.args
    build = ir.IRBuilder(function.append_basic_block("entry"))
    step, stop, count = (build.load(word(build, team, place)) for place in (teams.STEP, teams.STOP, teams.COUNT))
    from_end = build.icmp_signed("==", side, I64(teams.BACK))
    code = build.inttoptr(job, JOB.as_pointer())
    loop, block, failed, after, end = map(function.append_basic_block, ("loop", "block", "failed", "after", "end"))
    first = build.block
    build.branch(loop)

    build.position_at_end(loop)
    left = build.phi(I64)
    left.add_incoming(most, first)
    taken = _add(build, team, teams.TAKEN, side)
    build.cbranch(build.icmp_signed(">=", _total(build, taken), count), end, block)

    build.position_at_end(block)
    # There is a block for this thread: the next of its side.
    front, back = _sides(build, taken)
    number = build.select(from_end, build.sub(build.sub(count, I64(1)), back), front)
    start = build.mul(number, step)
    ahead = build.add(start, step)
    limit = build.select(build.icmp_signed("<", ahead, stop), ahead, stop)
    result = build.call(code, [team, start, limit, room, size])
    build.cbranch(build.icmp_signed("==", result, I64(0)), after, failed)

    build.position_at_end(failed)
    _store(build, team, teams.FAILED, I64(1))
    _store(build, team, teams.TAKEN, I64(teams.ALL))
    build.branch(end)

    build.position_at_end(after)
    rest = build.sub(left, I64(1))
    left.add_incoming(rest, after)
    build.cbranch(build.icmp_signed("==", rest, I64(0)), end, loop)

    build.position_at_end(end)
    build.ret_void()
    return function


def _drive(module: Any, triple: str, work: Any) -> Any:
    """The function of the caller: with a step it opens a job; without one it works on the open job."""
    function = ir.Function(module, DRIVER, f"{PREFIX}{NAME}")
    team, job, room, size, step, stop, seats = function.args
    build = ir.IRBuilder(function.append_basic_block("entry"))
    with build.if_then(build.icmp_signed("!=", step, I64(0))):
        for place, value in ((teams.STEP, step), (teams.STOP, stop), (teams.SEATS, seats)):
            build.store(value, word(build, team, place))
        count = build.udiv(build.sub(build.add(stop, step), I64(1)), step)
        build.store(count, word(build, team, teams.COUNT))
        for place in (teams.TAKEN, teams.SEATED, teams.FAILED):
            build.store(I64(0), word(build, team, place))
        _add(build, team, teams.TICKET, I64(1))
        _store(build, team, teams.JOB, job)
        build.ret(I64(teams.UNFINISHED))
    build.call(work, [team, job, room, size, I64(teams.BLOCKS), I64(teams.FRONT)])
    count = build.load(word(build, team, teams.COUNT))
    with build.if_then(build.icmp_signed("<", _total(build, _load(build, team, teams.TAKEN)), count)):
        build.ret(I64(teams.UNFINISHED))
    _store(build, team, teams.JOB, I64(0))

    def alone() -> Any:
        return build.icmp_signed("==", _load(build, team, teams.INSIDE), I64(0))

    so = _waiting(module, build, triple, I64(teams.PATIENCE), alone)
    with build.if_then(build.not_(so), likely=False):
        build.ret(I64(teams.BUSY))
    failed = build.icmp_signed("!=", _load(build, team, teams.FAILED), I64(0))
    build.ret(build.select(failed, I64(teams.ERROR), I64(teams.FINISHED)))
    return function


def _drive_apart(module: Any, drive: Any) -> None:
    """The function of a caller whose rows lie apart: it puts a job between the team and that of the kernel."""
    function = ir.Function(module, DRIVER, f"{PREFIX}{APART}")
    team, job, *others = function.args
    build = ir.IRBuilder(function.append_basic_block("entry"))
    build.store(job, word(build, team, teams.ROW_JOB))
    build.ret(build.call(drive, [team, build.ptrtoint(apart.define(module), I64), *others]))


def _help(build: Any, team: Any, work: Any) -> Any:
    """Work on the open job, if there is one and a seat is free; whether it was so."""
    helped = build.alloca(I1)
    build.store(I1(0), helped)
    _add(build, team, teams.INSIDE, I64(1))
    job = _load(build, team, teams.JOB)
    with build.if_then(build.icmp_signed("!=", job, I64(0))):
        seat = _add(build, team, teams.SEATED, I64(1))
        with build.if_then(build.icmp_signed("<", seat, build.load(word(build, team, teams.SEATS)))):
            at = build.add(build.mul(seat, I64(2)), I64(teams.ROOMS))
            room = build.inttoptr(build.load(build.gep(team, [at])), POINTER)
            size = build.load(build.gep(team, [build.add(at, I64(1))]))
            build.call(work, [team, job, room, size, I64(-1), I64(teams.BACK)])
            build.store(I1(1), helped)
    _add(build, team, teams.INSIDE, I64(-1))
    return build.load(helped)


def _python_function(module: Any, name: str, count: int) -> Any:
    """A function of Python with so many integers as arguments: a builder, `wrappers.Python`, and the arguments."""
    kind = ir.FunctionType(POINTER, [POINTER, POINTER.as_pointer(), I64])
    function = ir.Function(module, kind, f"{PREFIX}{name}.py")
    build = ir.IRBuilder(function.append_basic_block("entry"))
    python = wrappers.Python(module, build)
    given = [build.load(build.gep(function.args[1], [I64(k)])) for k in range(count)]
    return build, python, [python.call("PyNumber_AsSsize_t", I64, one, POINTER(None)) for one in given]


def _meet(module: Any, triple: str) -> None:
    """The function of a caller that has woken helpers."""
    build, python, (address, count, patience) = _python_function(module, MEET, 3)
    team = build.inttoptr(address, WORDS)
    state = python.call("PyEval_SaveThread", POINTER)
    _waiting(
        module,
        build,
        triple,
        patience,
        lambda: build.icmp_signed(">=", _load(build, team, teams.PRESENT), count),
    )
    python.call("PyEval_RestoreThread", ir.VoidType(), state)
    python.give("None")


def _join(module: Any, triple: str, work: Any) -> None:
    """The function of helpers: work, then wait for further jobs until `patience` looks have found none."""
    build, python, (address, first, patience) = _python_function(module, JOIN, 3)
    team = build.inttoptr(address, WORDS)
    state = python.call("PyEval_SaveThread", POINTER)
    _add(build, team, teams.PRESENT, I64(1))
    seen, looks = build.alloca(I64), build.alloca(I64)
    build.store(I64(0), seen)
    build.store(first, looks)
    loop, after = build.append_basic_block("loop"), build.append_basic_block("after")
    build.branch(loop)

    build.position_at_end(loop)

    def is_new() -> Any:
        new = build.icmp_signed("!=", _load(build, team, teams.TICKET), build.load(seen))
        return build.and_(new, build.icmp_signed("!=", _load(build, team, teams.JOB), I64(0)))

    so = _waiting(module, build, triple, build.load(looks), is_new)
    with build.if_then(so):
        build.store(_load(build, team, teams.TICKET), seen)
        with build.if_then(_help(build, team, work)):
            build.store(patience, looks)
        build.branch(loop)
    build.branch(after)

    build.position_at_end(after)
    _add(build, team, teams.PRESENT, I64(-1))
    python.call("PyEval_RestoreThread", ir.VoidType(), state)
    python.give("None")


def module(triple: str) -> Any:
    """The module with all functions, not optimised."""
    made = ir.Module(NAME)
    made.triple = triple
    work = _work_function(made)
    _drive_apart(made, _drive(made, triple, work))
    _join(made, triple, work)
    _meet(made, triple)
    parsed = binding.parse_assembly(str(made))
    parsed.verify()
    return parsed
