"""float16 and bfloat16 as float32, and float32 rounded to them.

Halves are passed as their bits, numbers of 16 bits without a sign: Numba has neither dtype on processors. The bits
are those of NumPy's casts, and of `ml_dtypes` for bfloat16, also for NaN and for denormal numbers. NumPy takes a
hundred times longer for the latter.

Both may share memory: halves that are widened may end where the float32 end, and those that float32 are rounded to
may begin where these begin. A vector is read before it is written, and nothing is written over
numbers that are read later.
"""

from typing import Any

from fastsoftmax.kernels.jit import inline, kernel
from fastsoftmax.kernels.simd.memory import after, lane_count, memory
from fastsoftmax.kernels.simd.ufunc import read, read_bfloat16, write, write_bfloat16
from fastsoftmax.machine.entry import Count, Floats, Halves, Nothing


@inline
def _convert(taken: Any, given: Any, start: int, stop: int, x: Any, y: Any) -> None:
    """Numbers start .. stop of x to y."""
    x, y, count, step = after(x, start), after(y, start), stop - start, lane_count(x)
    while count >= step:
        given(y, 1, step, taken(x, 1, step))
        x, y, count = after(x, step), after(y, step), count - step
    if count > 0:
        given(y, 1, count, taken(x, 1, count))


@kernel(dtypes="f")
def widen_float16(start: Count, stop: Count, room: Nothing, x: Halves, y: Floats) -> None:
    """float16 to float32."""
    _convert(read, write, start, stop, memory(x), memory(y))


@kernel(dtypes="f")
def narrow_float16(start: Count, stop: Count, room: Nothing, x: Floats, y: Halves) -> None:
    """float32 to float16."""
    _convert(read, write, start, stop, memory(x), memory(y))


@kernel(dtypes="f")
def widen_bfloat16(start: Count, stop: Count, room: Nothing, x: Halves, y: Floats) -> None:
    """bfloat16 to float32."""
    _convert(read_bfloat16, write, start, stop, memory(x), memory(y))


@kernel(dtypes="f")
def narrow_bfloat16(start: Count, stop: Count, room: Nothing, x: Floats, y: Halves) -> None:
    """float32 to bfloat16."""
    _convert(read, write_bfloat16, start, stop, memory(x), memory(y))
