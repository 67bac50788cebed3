"""The type of an array's numbers in compiled code."""

from typing import Any

from numba import types
from numba.extending import models, register_model


class Memory(types.Type):  # type: ignore[misc]
    """The numbers of a C-contiguous array: their address and number, without a reference to the array.

    Numba counts references to arrays that are passed on. In a loop over rows these are calls of its runtime, which
    spill every vector register. The kernel's caller holds the arrays while the kernel runs.
    """

    def __init__(self, dtype: types.Number) -> None:
        self.dtype = dtype
        super().__init__(name=f"Memory({dtype})")


@register_model(Memory)
class _MemoryModel(models.StructModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Memory) -> None:
        super().__init__(dmm, fe_type, [("data", types.CPointer(fe_type.dtype)), ("size", types.intp)])
