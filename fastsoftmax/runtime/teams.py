"""The memory through which the threads of one call share its blocks, without the GIL.

It is an array of 64-bit words. The caller writes a job there: the address of a function that runs one kernel with
the arguments behind `FRAME`. While the job is open, helpers may enter it. Every thread takes blocks, the caller
from the first row on and helpers from the last row down: if the next call has the same arrays, a thread finds its
rows in its cache. When no block is left, the caller closes the job and waits until no helper is inside.

A helper first counts itself in `INSIDE` and then looks whether the job is open; the caller first closes the job
and then looks at `INSIDE`. Both are sequentially consistent, so either the helper sees that the job is closed, or
the caller sees the helper. Nothing of a job is read by who is not inside an open one.

A cache line takes up to 170 ns from one processor to another (AMD EPYC). So words that one thread reads together
lie together, and those that several threads write lie in cache lines of their own.
"""

JOB = 0
"""The function of the open job, or 0: ``job(team, start, stop, room, size)`` returns 0 unless the kernel fails."""
TICKET = 1
"""The number of jobs so far, by which a helper knows a new one."""
STEP, STOP = 2, 3
"""The rows of a block, and of the whole call."""
COUNT = 4
"""How many blocks there are."""
SEATS = 5
"""How many helpers may work; each has working memory of its own, in `ROOMS`."""
ROOMS = 6
"""The address and the size of the working memory of each seat."""
MOST_SEATS = 125
"""More threads do not share a call."""
TAKEN = ROOMS + 2 * MOST_SEATS
"""The blocks that have been taken: `FRONT` for each of the caller, from the first one on, and `BACK` for each of
helpers, from the last one down."""
FRONT, BACK = 1, 1 << 32
ALL = BACK >> 1
"""So many taken blocks are more than there are; more can be added."""
INSIDE = TAKEN + 8
"""How many helpers are inside the job."""
SEATED, FAILED = INSIDE + 1, INSIDE + 2
"""How many helpers have asked for a seat, and whether a kernel has failed."""
PRESENT = INSIDE + 8
"""How many helpers work here, or wait for the next job."""
DRIVE = PRESENT + 8
"""The address of the function that the caller runs."""
CALLER = DRIVE + 1
"""The processor on which the caller ran when it woke helpers, or -1."""
FRAME = DRIVE + 8
MOST_ARGUMENTS = 96
"""So many words are there for the arguments of a kernel; `wrappers` checks that they are enough."""

ROW_JOB = FRAME + MOST_ARGUMENTS
"""For blocks whose rows lie apart: the function that runs the kernel; that of the open job calls it."""
AT_ONCE = ROW_JOB + 1
"""How many rows it computes at a time. If it is more than one, the working memory is for copies of these rows."""
ARGUMENTS, BLOCKS_APART = ROW_JOB + 2, ROW_JOB + 3
"""How many words the kernel's arguments have; how many such blocks there are, with `BLOCK_WORDS` words each."""
APART = ROW_JOB + 4
"""The words of the blocks."""
MOST_APART = 8
"""More blocks are not described."""
ARGUMENT, KIND, BYTES, COPY = range(4)
"""Of a block: which word of the arguments is the address of its first row; `IN_PLACE`, `READ` or `WRITTEN`; the
bytes of a row; and where the copies of its rows are, in bytes from the first line of the working memory on."""
MOST_LEVELS = 4
SIZES, STRIDES = 4, 4 + MOST_LEVELS
"""The axes along which rows lie, the last one first: their sizes, but for the first axis, and strides. What is not
needed of the sizes is `ENDLESS`."""
BLOCK_WORDS = STRIDES + MOST_LEVELS
ENDLESS = 1 << 62
IN_PLACE, READ, WRITTEN = 0, 1, 2
"""A kernel finds the rows of a block where they are, one at a time; or it reads or writes a copy of some rows."""
WORDS = APART + MOST_APART * BLOCK_WORDS

BLOCKS = 64
"""The caller returns to Python after so many blocks, so that signals are handled."""
PATIENCE = 4000
"""How often the caller looks whether helpers are still inside, before it sleeps in Python; some 100 us."""

FINISHED, UNFINISHED, BUSY, ERROR = 0, 1, 2, 3
"""What the caller gets: all is done; rows are left; helpers are still inside; a kernel has failed."""
