"""Run in a process of its own: call the public functions, and pickle the calls of kernels that they make.

``python record.py FILE KERNEL...``: of the kernels whose names begin so; of all if none is given.
"""

import pickle
import sys
from contextlib import suppress

import functions
import numpy as np
import replay

import fastsoftmax as fs
from fastsoftmax import special
from fastsoftmax.api import ufuncs
from fastsoftmax.machine.entry import _LETTERS, Kernel
from fastsoftmax.metrics import RunningMetrics
from fastsoftmax.runtime.prebuilt import PREFIX

SHAPES = (((1, 3), -1), ((5, 40), -1), ((3, 301), -1), ((40, 7), 0), ((2, 9, 20), 1), ((0, 3), 1))
"""Few rows, columns side by side, along the row, classes before another axis, no rows."""

calls = {}


def keep(call):
    """Keep the call, unless an equal one is there."""
    calls.setdefault(call.packed(), call)


def code(kernel, arguments, original=Kernel.code):
    """As `Kernel.code`, of a function that keeps its calls."""
    found = original(kernel, arguments)
    floats = next((one.dtype.char for one in arguments if getattr(one, "dtype", None) in ("f", "d")), "i")
    variant = kernel.variant(floats, "".join(_LETTERS[type(one)] for one in arguments))

    def called(*arguments):
        keep(replay.recorded(PREFIX, variant, arguments))
        return found(*arguments)

    return called


def numbers(dtype, shape, seed=0):
    """Numbers of many magnitudes, with some that are special."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=shape) * rng.choice([0.01, 1, 30, 300], size=shape)).astype(dtype)
    x.ravel()[::61], x.ravel()[1::61] = -np.inf, 0
    return x


def call_functions(dtype):
    for shape, axis in SHAPES:
        x = numbers(dtype, shape)
        for function in functions.ALL:
            options = function.function.__kwdefaults__ or {}
            function(x, axis)
            if "temperature" in options:
                function(x, axis, temperature=0.7)
            if "from_probs" in options:
                function(np.abs(x), axis, from_probs=True)
            if "label_smoothing" in options:
                rows = np.linspace(0.5, 2, len(x.take(0, axis).ravel())).astype(dtype)
                weights = {"sample_weight": rows.reshape(functions.row_shape(shape, axis))}
                function(x, axis, label_smoothing=0.1, class_weight=np.linspace(1, 2, shape[axis]), **weights)
            if "softcap" in options:
                function(x, axis, z_loss=0.01, softcap=20.0)
        fs.label_statistics(x, functions.labels_for(shape, axis, dtype), axis)
        fs.label_statistics(x, functions.labels_for(shape, axis, dtype), axis, temperature=0.7)
        call_metrics(x, functions.labels_for(shape, axis, dtype), axis)
    for count in (5, 1100):
        z, t = numbers(dtype, count), np.linspace(0, 1, count).astype(dtype)
        weights = np.linspace(0.5, 2, count).astype(dtype)
        for ending in ("", "_with_grad", "_hessian_diag"):
            getattr(fs, f"binary_cross_entropy{ending}")(z, t, pos_weight=3.0, sample_weight=weights)
            getattr(fs, f"binary_focal_loss{ending}")(z, t, gamma=1.5, alpha=0.3)
            getattr(fs, f"binary_focal_loss{ending}")(z, t, reduction="none")
    wide = numbers(dtype, (1, 2**20 + 5))
    fs.softmax(wide)
    fs.logsumexp(wide)


def call_metrics(x, labels, axis):
    weights = np.linspace(0, 3, labels.size).reshape(labels.shape)
    RunningMetrics().update(x, labels, axis).update(x, labels, axis, weights)
    with suppress(ValueError):  # there may be no minimum
        fs.fit_temperature(x, labels, axis)


def call_segments(dtype):
    for lengths in ((2, 1, 0, 20), (300, 1, 70)):
        indptr = np.cumsum((0, *lengths))
        x, v = numbers(dtype, indptr[-1]), numbers(dtype, indptr[-1], 1)
        fs.segment_softmax(x, indptr)
        fs.segment_log_softmax(x, indptr)
        fs.segment_logsumexp(x, indptr)
        fs.segment_softmax_jvp(x, indptr, v)
        fs.segment_cross_entropy_with_grad(x, indptr, np.where(np.diff(indptr) > 0, 0, -100), ignore_index=-100)


def call_loops():
    """The inner loops, which NumPy calls, with strides of one and of two numbers."""
    shorts = {"e": np.float16, "f": np.float32, "d": np.float64}
    for name in ufuncs.NAMES:
        operands = getattr(fs, name, None) or getattr(special, name)
        for kind, dtype in shorts.items():
            for step in (1, 2):
                count, size = 67, np.dtype(dtype).itemsize
                arrays = [numbers(dtype, count * step, k) for k in range(operands.nin)]
                arrays.append(np.zeros(count * step, dtype))
                regions = [(0, one.tobytes()) for one in arrays]
                table = len(regions)
                regions.append((0, np.array([count]).tobytes()))
                regions.append((0, np.full(len(arrays), size * step).tobytes()))
                integers = [(replay.TABLE, 0, 0), (replay.ADDRESS, table, 0), (replay.ADDRESS, table + 1, 0)]
                loop, last = f"loops.{name}_loop.{kind}.aaaa", (replay.NUMBER, 0, 0)
                if kind == "e":
                    loop = f"loops.{'unary' if operands.nin == 1 else 'binary'}_half_loop.e.aaaa"
                    regions.append((0, f"{PREFIX}loops.{name}_loop.f.aaaa".encode() + b"\0"))
                    last = (replay.SYMBOL, len(regions) - 1, 0)
                keep(replay.Call(PREFIX + loop, regions, [*integers, last], []))


def main(path, *kernels):
    Kernel.code = code
    np.seterr(all="ignore")
    with fs.threads(1):
        for dtype in (np.float32, np.float64):
            call_functions(dtype)
            call_segments(dtype)
    call_loops()
    chosen = [one for one in calls.values() if not kernels or one.name[len(PREFIX) :].startswith(kernels)]
    with open(path, "wb") as file:
        pickle.dump([tuple(one) for one in chosen], file)


if __name__ == "__main__":
    main(*sys.argv[1:])
