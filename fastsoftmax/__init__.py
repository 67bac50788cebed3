"""Softmax and all that is differentiated through it, for NumPy arrays: fast, and accurate to a few ulp."""

import typing as _typing
from typing import Any as _Any

from numpy import ufunc as _ufunc

from fastsoftmax.api import ufuncs as _ufuncs
from fastsoftmax.api.activations import log_softmax, logsumexp, softmax
from fastsoftmax.api.binary import (
    binary_cross_entropy,
    binary_cross_entropy_grad,
    binary_cross_entropy_hessian_diag,
    binary_cross_entropy_with_grad,
    binary_focal_loss,
    binary_focal_loss_grad,
    binary_focal_loss_hessian_diag,
    binary_focal_loss_with_grad,
)
from fastsoftmax.api.calibration import fit_temperature
from fastsoftmax.api.derivatives import (
    log_softmax_jacobian,
    log_softmax_jvp,
    log_softmax_vjp,
    softmax_jacobian,
    softmax_jvp,
    softmax_vjp,
)
from fastsoftmax.api.divergences import (
    js_divergence,
    js_divergence_grad,
    js_divergence_with_grad,
    kl_divergence,
    kl_divergence_grad,
    kl_divergence_with_grad,
)
from fastsoftmax.api.entropy import softmax_entropy, softmax_entropy_with_grad
from fastsoftmax.api.focal import (
    focal_loss,
    focal_loss_grad,
    focal_loss_hessian_diag,
    focal_loss_with_grad,
)
from fastsoftmax.api.linear import (
    linear_cross_entropy,
    linear_cross_entropy_hvp,
    linear_cross_entropy_with_grad,
    linear_softmax_statistics,
)
from fastsoftmax.api.losses import (
    cross_entropy,
    cross_entropy_grad,
    cross_entropy_hessian,
    cross_entropy_hessian_diag,
    cross_entropy_hvp,
    cross_entropy_with_grad,
    squared_error,
    squared_error_grad,
    squared_error_with_grad,
)
from fastsoftmax.api.sampling import categorical, filter_logits
from fastsoftmax.api.segments import (
    segment_categorical,
    segment_cross_entropy,
    segment_cross_entropy_with_grad,
    segment_kl_divergence,
    segment_kl_divergence_with_grad,
    segment_log_softmax,
    segment_logsumexp,
    segment_softmax,
    segment_softmax_entropy,
    segment_softmax_entropy_with_grad,
    segment_softmax_jvp,
    segment_softmax_vjp,
)
from fastsoftmax.api.statistics import label_statistics
from fastsoftmax.arrays.lazy import register as _register
from fastsoftmax.arrays.lazy import register_exchange as _register_exchange
from fastsoftmax.arrays.threads import threads

__version__ = "0.1.0"

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_grad",
    "binary_cross_entropy_hessian_diag",
    "binary_cross_entropy_with_grad",
    "binary_focal_loss",
    "binary_focal_loss_grad",
    "binary_focal_loss_hessian_diag",
    "binary_focal_loss_with_grad",
    "categorical",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_hessian",
    "cross_entropy_hessian_diag",
    "cross_entropy_hvp",
    "cross_entropy_with_grad",
    "filter_logits",
    "fit_temperature",
    "focal_loss",
    "focal_loss_grad",
    "focal_loss_hessian_diag",
    "focal_loss_with_grad",
    "js_divergence",
    "js_divergence_grad",
    "js_divergence_with_grad",
    "kl_divergence",
    "kl_divergence_grad",
    "kl_divergence_with_grad",
    "label_statistics",
    "linear_cross_entropy",
    "linear_cross_entropy_hvp",
    "linear_cross_entropy_with_grad",
    "linear_softmax_statistics",
    "log_softmax",
    "log_softmax_jacobian",
    "log_softmax_jvp",
    "log_softmax_vjp",
    "logsumexp",
    "segment_categorical",
    "segment_cross_entropy",
    "segment_cross_entropy_with_grad",
    "segment_kl_divergence",
    "segment_kl_divergence_with_grad",
    "segment_log_softmax",
    "segment_logsumexp",
    "segment_softmax",
    "segment_softmax_entropy",
    "segment_softmax_entropy_with_grad",
    "segment_softmax_jvp",
    "segment_softmax_vjp",
    "softmax",
    "softmax_entropy",
    "softmax_entropy_with_grad",
    "softmax_jacobian",
    "softmax_jvp",
    "softmax_vjp",
    "squared_error",
    "squared_error_grad",
    "squared_error_with_grad",
    "threads",
]


# Back ends are imported by those who have such arrays, and so their libraries.
def _xarray() -> _Any:
    from fastsoftmax.backends import xarray

    return xarray.call


def _dask() -> _Any:
    from fastsoftmax.backends import dask

    return dask.call


def _interchange() -> _Any:
    from fastsoftmax.backends import interchange

    return interchange.call


_register("xarray", "DataArray", _xarray)
_register("dask.array", "Array", _dask)
_register_exchange(_interchange)


# The ufuncs are made on first use, and not in __all__: a star import would compile every one of them.
entr: _ufunc
exp: _ufunc
expit: _ufunc
expm1: _ufunc
log: _ufunc
log1p: _ufunc
log_expit: _ufunc
logaddexp: _ufunc
logit: _ufunc
softplus: _ufunc
tanh: _ufunc
xlogy: _ufunc


if not _typing.TYPE_CHECKING:  # else a type checker would take every name for one of ours

    def __getattr__(name: str) -> _Any:
        if name in _ufuncs.NAMES:
            return globals().setdefault(name, _ufuncs.make(name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ufuncs.NAMES})
