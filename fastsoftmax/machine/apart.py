"""The job of a call whose blocks have rows that lie apart in memory, as `runtime.teams` describes them.

Kernels find row i of a block i rows behind its address. This job calls that of a kernel for some rows at a time.
It moves the address of each block so that the kernel finds a row where it is, or copies some rows into working
memory, where the kernel finds them side by side. Rows that will be needed next are prefetched meanwhile: the
processor reads ahead within a row, but not from one to the next. (softmax of float32 beyond the caches, one thread
of a Zen 4: x[:, :10] of rows of 74 takes 1.7 instead of 2.5 times the time of contiguous rows, x[::2] of rows of
100 takes 1.6 instead of 2.0 times.)
"""

from typing import Any

from llvmlite import ir

from fastsoftmax.machine.wrappers import I32, I64, JOB, POINTER, WORDS, loop, word
from fastsoftmax.runtime import teams

LINE = 64
NEAR = 4096
"""So many bytes of a row are prefetched; then the processor reads ahead by itself."""
FAR = LINE + 16
"""Rows that begin at least so many bytes apart are prefetched; the processor reads ahead where they are closer."""
INTO_L2 = 2


def _least(build: Any, a: Any, b: Any) -> Any:
    return build.select(build.icmp_signed("<", a, b), a, b)


def _prefetch(build: Any, address: Any) -> None:
    name, module = "llvm.prefetch.p0", build.module
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
    function = module.globals.get(name) or ir.Function(module, kind, name)
    build.call(function, [build.inttoptr(address, POINTER), I32(0), I32(INTO_L2), I32(1)])


def _prefetch_row(build: Any, address: Any, size: Any) -> None:
    """Prefetch the lines of so many bytes; without the last of them, rows of 300 float32 took a tenth longer."""
    with loop(build, I64(0), size, I64(LINE)) as at:
        _prefetch(build, build.add(address, at))
    _prefetch(build, build.add(address, build.sub(size, I64(1))))


def _copy_function(module: Any) -> Any:
    """``copy(to, to_step, from, from_step, size, rows, ahead)``: copy rows of `size` bytes, at least 4.

    Rows that lie `ahead` bytes further on are prefetched, unless it is 0. Two vectors that overlap take less than
    a loop over the bytes behind the last whole one.
    """
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 7), "copy")
    function.linkage = "internal"
    to, to_step, source, source_step, size, rows, ahead = function.args
    build = ir.IRBuilder(function.append_basic_block("entry"))
    backwards = build.icmp_signed("<", source_step, I64(0))
    distance = build.select(backwards, build.neg(source_step), source_step)
    is_far = build.and_(build.icmp_signed(">=", distance, I64(FAR)), build.icmp_signed("!=", ahead, I64(0)))
    for width in (LINE, 32, 16, 8, 4):
        kind = ir.VectorType(I32, width // 4).as_pointer()

        def move(target: Any, origin: Any, kind: Any = kind) -> None:
            value = build.load(build.inttoptr(origin, kind), align=1)
            build.store(value, build.inttoptr(target, kind), align=1)

        with build.if_then(build.icmp_signed(">=", size, I64(width))):
            last = build.sub(size, I64(width))
            with loop(build, I64(0), rows, I64(1)) as row:
                target = build.add(to, build.mul(row, to_step))
                origin = build.add(source, build.mul(row, source_step))
                with loop(build, I64(0), last, I64(width)) as at:
                    move(build.add(target, at), build.add(origin, at))
                move(build.add(target, last), build.add(origin, last))
                with build.if_then(is_far):
                    _prefetch_row(build, build.add(origin, ahead), size)
            build.ret_void()
    build.ret_void()
    return function


def _place_function(module: Any) -> Any:
    """``place(block, first, row, left)``: the address of a row of a block, whose first row is at `first`.

    `left` gets how many rows follow in one stride.
    """
    function = ir.Function(module, ir.FunctionType(I64, [WORDS, I64, I64, WORDS]), "place")
    function.linkage = "internal"
    block, address, row, left = function.args
    build = ir.IRBuilder(function.append_basic_block("entry"))
    for level in range(teams.MOST_LEVELS):
        size, stride = (build.load(word(build, block, at + level)) for at in (teams.SIZES, teams.STRIDES))
        with build.if_then(build.icmp_signed("<", row, size)):
            if level == 0:
                build.store(build.sub(size, row), left)
            build.ret(build.add(address, build.mul(row, stride)))
        outside = build.sdiv(row, size)
        within = build.sub(row, build.mul(outside, size))
        if level == 0:
            build.store(build.sub(size, within), left)
        address = build.add(address, build.mul(within, stride))
        row = outside
    build.ret(address)
    return function


def _copied(
    build: Any, block: Any, address: Any, memory: Any, first: Any, stop: Any, left: Any, back: bool
) -> None:
    """Copy rows of a block at `address` into memory, where they lie side by side, or `back`.

    `left` is room for a number.
    """
    copy, place = (build.module.globals[name] for name in ("copy", "place"))
    size, stride = (build.load(word(build, block, at)) for at in (teams.BYTES, teams.STRIDES))
    ahead = build.mul(stride, build.sub(stop, first))
    before, head, after = build.block, build.append_basic_block("run"), build.append_basic_block("copied")
    build.branch(head)
    build.position_at_end(head)
    row = build.phi(I64)
    row.add_incoming(first, before)
    there = build.call(place, [block, address, row, left]), stride
    here = build.add(memory, build.mul(build.sub(row, first), size)), size
    count = _least(build, build.load(left), build.sub(stop, row))
    to, source = (there, here) if back else (here, there)
    build.call(copy, [*to, *source, size, count, I64(0) if back else ahead])
    following = build.add(row, count)
    row.add_incoming(following, build.block)
    build.cbranch(build.icmp_signed("<", following, stop), head, after)
    build.position_at_end(after)


def define(module: Any) -> Any:
    """The job, in the module of `machine.teams`."""
    _copy_function(module)
    place = _place_function(module)
    function = ir.Function(module, JOB, "rows_apart")
    function.linkage = "internal"
    team, start, stop, room, size = function.args
    build = ir.IRBuilder(function.append_basic_block("entry"))
    # Each thread needs arguments of its own. Loads that are atomic do not become a `memcpy`, which no library of
    # kernels has.
    frame, left = build.alloca(I64, teams.MOST_ARGUMENTS), build.alloca(I64)
    with loop(build, I64(0), build.load(word(build, team, teams.ARGUMENTS)), I64(1)) as k:
        argument = build.gep(word(build, team, teams.FRAME), [k])
        build.store(build.load_atomic(argument, "monotonic", 8), build.gep(frame, [k]))
    own = build.gep(frame, [I64(-teams.FRAME)])  # where the job of a kernel looks for its arguments
    job = build.inttoptr(build.load(word(build, team, teams.ROW_JOB)), JOB.as_pointer())
    at_once, blocks = (build.load(word(build, team, at)) for at in (teams.AT_ONCE, teams.BLOCKS_APART))
    own_size = build.select(build.icmp_signed(">", at_once, I64(1)), I64(0), size)
    end = build.mul(blocks, I64(teams.BLOCK_WORDS))
    # Where a cache line begins, so that no vector of the copies lies in two.
    copies = build.and_(build.add(build.ptrtoint(room, I64), I64(LINE - 1)), I64(-LINE))

    def memory_of(block: Any) -> Any:
        return build.add(copies, build.load(word(build, block, teams.COPY)))

    def argument_of(block: Any, arguments: Any) -> Any:
        return build.gep(arguments, [build.load(word(build, block, teams.ARGUMENT))])

    def address_of(block: Any) -> Any:
        return build.load(argument_of(block, word(build, team, teams.FRAME)))

    def is_kind(block: Any, kind: int) -> Any:
        return build.icmp_signed("==", build.load(word(build, block, teams.KIND)), I64(kind))

    with loop(build, start, stop, at_once) as first:
        following = _least(build, build.add(first, at_once), stop)
        with loop(build, I64(0), end, I64(teams.BLOCK_WORDS)) as k:
            block = build.gep(word(build, team, teams.APART), [k])
            argument, source = argument_of(block, frame), address_of(block)
            length = build.load(word(build, block, teams.BYTES))
            back = build.mul(first, length)
            with build.if_else(is_kind(block, teams.IN_PLACE)) as (in_place, copied):
                with in_place:
                    address = build.call(place, [block, source, first, left])
                    build.store(build.sub(address, back), argument)
                    ahead = build.add(address, build.load(word(build, block, teams.STRIDES)))
                    _prefetch_row(build, ahead, _least(build, length, I64(NEAR)))
                with copied:
                    memory = memory_of(block)
                    build.store(build.sub(memory, back), argument)
                    with build.if_then(is_kind(block, teams.READ)):
                        _copied(build, block, source, memory, first, following, left, back=False)
        failed = build.call(job, [own, first, following, room, own_size])
        with build.if_then(build.icmp_signed("!=", failed, I64(0)), likely=False):
            build.ret(failed)
        with loop(build, I64(0), end, I64(teams.BLOCK_WORDS)) as k:
            block = build.gep(word(build, team, teams.APART), [k])
            with build.if_then(is_kind(block, teams.WRITTEN)):
                _copied(build, block, address_of(block), memory_of(block), first, following, left, back=True)
    build.ret(I64(0))
    return function
