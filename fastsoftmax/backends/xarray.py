"""The public functions for xarray's DataArrays: dimensions by name, and results with dimensions and coordinates.

`call` is used if one of the arguments is a DataArray. The function is called again with the data of the arrays,
whatever holds them: those of a Dask array stay lazy. Other DataArrays are brought into the order of the dimensions
of the first one by name; equal dimensions must have equal coordinates.
"""

from collections.abc import Hashable
from typing import Any

import xarray as xr

from fastsoftmax._spec import CLASSES, ENTRIES, FUNCTIONS, LABELS, LIKE, LOSS, ROWS, SQUARE, TARGETS
from fastsoftmax.arrays.blocks import named
from fastsoftmax.backends.calls import arguments_of, public


def call(name: str, *operands: Any, **keywords: Any) -> Any:
    """The result of a public function: DataArrays if the first argument is one, else arrays."""
    given = arguments_of(public(name), operands, keywords)
    first = public(name).first
    if isinstance(given[first], xr.DataArray):
        return _Labelled(name, given, first).result()
    # Names of dimensions mean nothing to an array without them.
    data = {key: one.data if isinstance(one, xr.DataArray) else one for key, one in given.items()}
    return public(name).function(**data)


class _Labelled:
    """One call whose first argument is a DataArray."""

    def __init__(self, name: str, given: dict[str, Any], first: str) -> None:
        self.name, self.given, self.first = name, given, first
        self.x: xr.DataArray = given[first]
        self.axes = self._axes(given.get("axis", public(name).defaults.get("axis", ())))
        self.row_dims = tuple(dim for dim in self.x.dims if dim not in self.axes)

    def _axes(self, axis: Any) -> tuple[Hashable, ...]:
        """The dimensions of the classes; `axis` may have names, positions, or be None for all, () for none."""
        dims = self.x.dims
        if axis is None:
            return dims
        items = axis if isinstance(axis, (tuple, list)) else (axis,)
        for item in items:
            if isinstance(item, str) and item not in dims:
                prefix = named(self.name, "axis")
                raise ValueError(f"{prefix} is {item!r}, expected one of the dimensions {dims} or its position")
        # What is no position is left to the function, which has a message for it.
        places = {i: dim for n, dim in enumerate(dims) for i in (n, n - len(dims))}
        return tuple(item if isinstance(item, str) else places.get(item, item) for item in items)

    def _positions(self) -> Any:
        """The axes as the function takes them."""
        axis = self.given["axis"]
        if axis is None:
            return None
        places = tuple(self.x.dims.index(dim) if dim in self.x.dims else dim for dim in self.axes)
        return places if isinstance(axis, (tuple, list)) else places[0]

    def _dims_of(self, key: str, one: xr.DataArray) -> tuple[Hashable, ...]:
        """The order in which the function expects the dimensions of an argument."""
        parameters = list(public(self.name).defaults)
        roles = FUNCTIONS[self.name].operands
        place = parameters.index(key)
        role = roles[place] if place < len(roles) else ""
        rows = key == "sample_weight" or role == LABELS or (role == TARGETS and one.ndim < self.x.ndim)
        if key == "class_weight":
            expected: tuple[Hashable, ...] = self.axes
        elif key == "uniforms":
            expected = (*self._drawn(), *self.row_dims)
        else:
            expected = self.row_dims if rows else self.x.dims
        if set(one.dims) != set(expected):
            raise ValueError(f"{named(self.name, key)} has the dimensions {one.dims}, expected {expected}")
        return expected

    def _data(self, key: str, one: Any) -> Any:
        """An argument as the function takes it."""
        if key == "axis":
            return self._positions()
        if not isinstance(one, xr.DataArray):
            if key == "out" and one is not None:
                prefix = named(self.name, "out")
                raise TypeError(f"{prefix} must be an xarray.DataArray as {self.first}, got {type(one).__name__}")
            return one
        if key == "out":
            dims = self._dims(FUNCTIONS[self.name].result[-1])
            if set(one.dims) != set(dims):
                raise ValueError(f"{named(self.name, 'out')} has the dimensions {one.dims}, expected {dims}")
            return one.transpose(*dims).data
        if one.ndim == 0:  # a number
            return one.data
        try:
            xr.align(self.x, one, join="exact", copy=False)
        except ValueError as error:
            raise ValueError(
                f"{named(self.name, key)}: its coordinates are not those of {self.first}: {error}"
            ) from error
        if key == "where":
            return one.broadcast_like(self.x).transpose(*self.x.dims).data
        if key in ("pos_weight", "sample_weight") and FUNCTIONS[self.name].is_elementwise:
            return self._spread(key, one)
        return one.transpose(*self._dims_of(key, one)).data

    def _spread(self, key: str, one: xr.DataArray) -> Any:
        """An argument with some of the dimensions, with length 1 along the others."""
        if not set(one.dims) <= set(self.x.dims):
            prefix = named(self.name, key)
            raise ValueError(f"{prefix} has the dimensions {one.dims}, expected some of {self.x.dims}")
        places = tuple(slice(None) if dim in one.dims else None for dim in self.x.dims)
        return one.transpose(*(dim for dim in self.x.dims if dim in one.dims)).data[places]

    def result(self) -> Any:
        """The result of the call, with dimensions and coordinates."""
        data = {key: self._data(key, one) for key, one in self.given.items()}
        out, found = self.given.get("out"), public(self.name).function(**data)
        kinds = FUNCTIONS[self.name].result
        if not isinstance(found, tuple):
            return self._wrapped(found, kinds[0]) if out is None else out
        items = [self._wrapped(one, kind) for one, kind in zip(found, kinds, strict=True)]
        if out is not None:  # that of the gradient, which comes last
            items[-1] = out
        return type(found)(*items) if hasattr(found, "_fields") else tuple(items)

    def _drawn(self) -> tuple[Hashable, ...]:
        """The dimensions of several draws from a row."""
        size = self.given.get("size")
        if size is None:
            return ()
        count = len(size) if isinstance(size, (tuple, list)) else 1
        return ("draw",) if count == 1 else tuple(f"draw_{n}" for n in range(count))

    def _dims(self, kind: str) -> tuple[Hashable, ...]:
        """The dimensions of a result of this kind."""
        if kind == LIKE or (kind == ROWS and self.given.get("keepdims", False)):
            return self.x.dims
        if kind == SQUARE:
            second = f"{self.axes[0]}_2"
            while second in self.x.dims:
                second += "_2"
            return (*self.row_dims, *self.axes, second)
        if kind == CLASSES:
            return (*self._drawn(), *self.row_dims)
        if kind in (ENTRIES, LOSS) and self.given.get("reduction", "mean") != "none":
            return ()
        return self.row_dims

    def _wrapped(self, data: Any, kind: str) -> xr.DataArray:
        """A result with dimensions, and the coordinates of the first argument that have no others."""
        dims = self._dims(kind)
        summed = () if kind in (LIKE, SQUARE) else self.axes
        coords = {
            key: one
            for key, one in self.x.coords.items()
            if set(one.dims) <= set(dims) and not set(one.dims) & set(summed)
        }
        if kind == SQUARE and self.axes[0] in self.x.indexes:
            coords[dims[-1]] = (dims[-1], self.x.coords[self.axes[0]].data)
        return xr.DataArray(data, dims=dims, coords=coords, name=self.x.name)
