"""What type checkers say of the public functions: `test_typing.py` runs mypy and pyright over this file.

Nothing runs it. Each ``type: ignore`` is an error that both have to find: they report those that are not needed.
"""

# ruff: noqa: B018

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import fastsoftmax as fs
from fastsoftmax import special
from fastsoftmax.arrays.linear import LinearGradients
from fastsoftmax.arrays.statistics import LabelStatistics

if TYPE_CHECKING:
    import xarray as xr
    from typing_extensions import assert_type  # which type checkers know by themselves

Half = NDArray[np.float16]
Single = NDArray[np.float32]
Double = NDArray[np.float64]
Labels = NDArray[np.int64]


def dtypes_are_kept(
    half: Half, single: Single, double: Double, integers: Labels, flags: NDArray[np.bool_]
) -> None:
    assert_type(fs.softmax(half), Half)
    assert_type(fs.softmax(single, axis=0, temperature=2.0, where=flags), Single)
    assert_type(fs.softmax(double, axis=(0, 1)), Double)
    assert_type(fs.log_softmax(double, None), Double)
    assert_type(fs.softmax(integers), Double)
    assert_type(fs.softmax(flags), Double)
    assert_type(fs.softmax([1, 2.0]), Double)
    assert_type(fs.softmax([[1, 2], [3, 4]]), Double)
    assert_type(fs.softmax_jvp(single, single), Single)
    assert_type(fs.softmax_vjp(double, double, from_probs=True), Double)
    assert_type(fs.log_softmax_jacobian(single), Single)
    assert_type(fs.softmax_jacobian([1.0, 2.0]), Double)
    assert_type(fs.filter_logits(single, top_k=3), Single)
    assert_type(fs.segment_softmax(single, [0, 2]), Single)
    assert_type(fs.segment_logsumexp(single, integers), Single)
    assert_type(special.softmax(single), Single)
    assert_type(special.log_softmax([1.0]), Double)


def results_in_place(single: Single, double: Double) -> None:
    assert_type(fs.softmax(single, out=single), Single)
    assert_type(fs.softmax([1.0], out=double), Double)
    assert_type(fs.cross_entropy_grad(single, [0], out=single), Single)
    fs.softmax([1.0], out=single)  # type: ignore[arg-type]


def numbers_of_rows(
    vector: np.ndarray[tuple[int], np.dtype[np.float32]],
    matrix: np.ndarray[tuple[int, int], np.dtype[np.float32]],
) -> None:
    """0-d results are scalars. Of arrays whose number of dimensions is not known, they may be."""
    assert_type(fs.logsumexp(vector), np.float32)
    assert_type(fs.logsumexp(matrix), Single)
    assert_type(fs.logsumexp(matrix, axis=None), np.float32)
    assert_type(fs.logsumexp(matrix, axis=(0, 1), keepdims=True), Single)
    assert_type(fs.softmax_entropy(vector), np.float32)
    assert_type(fs.softmax_entropy(matrix), Single)
    assert_type(fs.softmax_entropy_with_grad(vector), tuple[np.float32, Single])
    assert_type(fs.categorical(vector), np.int64)
    assert_type(fs.categorical(vector, size=3), Labels)
    assert_type(fs.categorical(matrix, rng=0), Labels)


def reductions(single: Single, labels: Labels) -> None:
    assert_type(fs.cross_entropy(single, labels), np.float32)
    assert_type(fs.cross_entropy(single, labels, reduction="sum"), np.float32)
    assert_type(fs.cross_entropy(single, labels, reduction="none"), Single)
    assert_type(fs.cross_entropy([[1.0, 2.0]], [0]), np.float64)
    assert_type(fs.cross_entropy_with_grad(single, labels, sample_weight=[1.0]), tuple[np.float32, Single])
    assert_type(fs.cross_entropy_with_grad(single, single, reduction="none"), tuple[Single, Single])
    assert_type(fs.cross_entropy_hvp(single, labels, single), Single)
    assert_type(fs.cross_entropy_hessian(single, labels), Single)
    assert_type(fs.squared_error(single, single), np.float32)
    assert_type(fs.segment_cross_entropy(single, labels, labels), np.float32)
    assert_type(fs.linear_cross_entropy(single, single, labels), np.float32)
    assert_type(fs.linear_cross_entropy_with_grad(single, single, labels), tuple[np.float32, LinearGradients])
    assert_type(fs.linear_cross_entropy_hvp(single, single, labels, single), LinearGradients)
    assert_type(fs.linear_softmax_statistics(single, single, labels), LabelStatistics)
    assert_type(fs.label_statistics(single, labels), LabelStatistics)
    fs.linear_softmax_statistics("features", single, labels)  # type: ignore[arg-type]
    fs.cross_entropy(single, labels, reduction="meen")  # type: ignore[call-overload]
    fs.cross_entropy_with_grad(single, labels, reduction="max")  # type: ignore[call-overload]
    fs.linear_cross_entropy(single, single, labels, reduction="")  # type: ignore[call-overload]


def arrays_of_others(scores: xr.DataArray, labels: xr.DataArray, single: Single) -> None:
    assert_type(fs.softmax(scores, axis="class"), xr.DataArray)
    assert_type(fs.logsumexp(scores, axis=["class", "time"]), xr.DataArray)
    assert_type(fs.cross_entropy(scores, labels, axis="class", reduction="none"), xr.DataArray)
    assert_type(fs.cross_entropy_with_grad(scores, labels, "class"), tuple[xr.DataArray, xr.DataArray])
    assert_type(fs.label_statistics(scores, labels, axis="class"), LabelStatistics)
    fs.softmax(single, axis="class")  # type: ignore[arg-type]


def unknown_types(anything: Any, array: NDArray[Any]) -> None:
    fs.softmax(anything).shape
    fs.softmax(array).shape
    fs.cross_entropy(array, anything)
    fs.logsumexp(array)[0]


def mistakes(single: Single, numbers: NDArray[np.complex128], names: list[str]) -> None:
    fs.softmax("hello")  # type: ignore[arg-type]
    fs.softmax(names)  # type: ignore[arg-type]
    fs.softmax(numbers)  # type: ignore[type-var]
    fs.softmax(None)  # type: ignore[call-overload]
    fs.softmax(single, temperature="hot")  # type: ignore[call-overload]
    fs.softmax(single, 0, None)  # type: ignore[call-overload]
    fs.cross_entropy(single, names)  # type: ignore[arg-type]
    fs.sofmax(single)  # type: ignore[attr-defined]
    special.expti(single)  # type: ignore[attr-defined]


def elementary(single: Single) -> None:
    assert_type(fs.exp, np.ufunc)
    assert_type(special.expit, np.ufunc)
