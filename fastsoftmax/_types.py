"""The types of the public functions, for type checkers and editors; nothing imports them when the code runs.

The signatures are overloaded by the kind of the first argument: NumPy arrays of floats give arrays of the same
dtype, integers, bools and lists give float64, and arrays of other libraries give arrays of the same kind. A string
is none of these.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Axes = int | Sequence[int] | None
Dims = Axes | str | Sequence[str]
"""`Axes`, or the names of dimensions of a DataArray."""
Mean = Literal["mean", "sum"]
Rows = Literal["none"]
Reduction = Literal["mean", "sum", "none"]


class Tensor(Protocol):
    """A tensor of PyTorch."""

    requires_grad: bool

    def detach(self) -> Any:
        """The tensor without its graph."""


class JaxArray(Protocol):
    """An array of JAX."""

    @property
    def addressable_shards(self) -> Any:
        """The parts of the array on the devices of this process."""


class DataArray(Protocol):
    """A DataArray of xarray."""

    @property
    def dims(self) -> tuple[Hashable, ...]:
        """The names of the dimensions."""

    @property
    def coords(self) -> Any:
        """The coordinates."""


class DaskArray(Protocol):
    """An array of Dask."""

    @property
    def chunksize(self) -> Any:
        """The shape of the largest chunk."""


class Column(Protocol):
    """A column or table of pandas."""

    @property
    def iloc(self) -> Any:
        """The entries by position."""


FloatT = TypeVar("FloatT", bound=np.float16 | np.float32 | np.float64)
ArrayT = TypeVar("ArrayT", bound=Tensor | JaxArray | DataArray | DaskArray)
Vector = np.ndarray[tuple[int], np.dtype[FloatT]]

Numbers = (
    NDArray[np.integer[Any] | np.bool_]
    | Sequence[float]
    | Sequence[Sequence[float]]
    | Sequence[Sequence[Sequence[float]]]
)
"""Integers, bools and lists, which become float64."""
Number = float | np.floating[Any] | np.integer[Any] | np.bool_
Other = Column | Number | Sequence[NDArray[Any]]
"""What is read as an array whose dtype is not known to the type checker."""
Arrays = NDArray[Any] | Numbers | Other | Tensor | JaxArray | DataArray | DaskArray
"""Any array, as an argument that has no influence on the dtype of the result."""
