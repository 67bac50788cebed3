"""Run in a process of its own: call the public functions, and pickle the calls of kernels that they make.

``python record.py FILE``
"""

import pickle
import sys
from collections import Counter
from contextlib import suppress

import functions
import numpy as np
import replay

import fastsoftmax as fs
from fastsoftmax import special
from fastsoftmax.api import ufuncs
from fastsoftmax.machine.entry import _LETTERS, Kernel, entry
from fastsoftmax.metrics import RunningMetrics
from fastsoftmax.runtime.prebuilt import PREFIX

SHAPES = (((1, 3), -1), ((5, 40), -1), ((3, 301), -1), ((40, 7), 0), ((2, 9, 20), 1), ((0, 3), 1))
"""Few rows, columns side by side, along the row, classes before another axis, no rows."""

calls, counts, sizes = {}, Counter(), Counter()
MOST, MOST_BYTES = 50, 1 << 22
"""So many calls of a variant are kept, with so much memory in all; the last one may go beyond."""


def keep(call):
    """Keep the call, unless an equal one or enough of this variant are there."""
    if counts[call.name] >= MOST or sizes[call.name] >= MOST_BYTES:
        return
    packed = call.packed()
    if packed not in calls:
        calls[packed] = call
        counts[call.name] += 1
        sizes[call.name] += len(packed)


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
        labels = functions.labels_for(shape, axis, dtype)
        fs.label_statistics(x, labels, axis)
        fs.label_statistics(x, labels, axis, temperature=0.7)
        call_metrics(x, labels, axis)
        call_second_derivatives(x, labels, axis)
        call_draws(x, axis)
    for count in (5, 1100):
        z, t = numbers(dtype, count), np.linspace(0, 1, count).astype(dtype)
        weights = np.linspace(0.5, 2, count).astype(dtype)
        for ending in ("", "_with_grad", "_hessian_diag"):
            getattr(fs, f"binary_cross_entropy{ending}")(z, t, pos_weight=3.0, sample_weight=weights)
            getattr(fs, f"binary_focal_loss{ending}")(z, t, gamma=1.5, alpha=0.3)
            getattr(fs, f"binary_focal_loss{ending}")(z, t, reduction="none")
    wide = numbers(dtype, (1, 2**20 + 5))
    fs.softmax(wide)
    fs.log_softmax(wide)
    fs.logsumexp(wide)
    fs.softmax_jvp(wide, wide[:, ::-1])
    call_products(dtype)
    for _ in range(2):  # the second time in the short way for plain arrays
        fs.cross_entropy(numbers(dtype, (7000, 10)), np.zeros(7000, np.int64))


def call_second_derivatives(x, labels, axis):
    v = numbers(x.dtype, x.shape, 1)
    for options in ({}, {"z_loss": 0.01, "softcap": 20.0}):
        fs.cross_entropy_hvp(x, labels, v, axis, **options)
        fs.cross_entropy_hessian_diag(x, labels, axis, **options)
        fs.cross_entropy_hessian(x, labels, axis, **options)


def call_draws(x, axis):
    rows = functions.row_shape(x.shape, axis)
    for size, filters in ((None, {}), (40, {}), (None, {"top_p": 0.7}), (None, {"top_k": 2, "min_p": 0.01})):
        shape = rows if size is None else (size, *rows)
        uniforms = np.random.default_rng(2).random(shape)
        fs.categorical(x, axis, uniforms=uniforms, size=size, **filters)
        if filters:
            fs.filter_logits(x, axis, **filters)
    count = min(2, x.shape[axis])
    fs.categorical(x, axis, uniforms=np.full((count, *rows), 0.3), size=count, replace=False)


def call_products(dtype):
    """In blocks of rows, and of classes."""
    features, weight = numbers(dtype, (30, 8)) / 300, numbers(dtype, (700, 8), 1) / 300
    features[~np.isfinite(features)], weight[~np.isfinite(weight)] = 0, 0
    labels = np.arange(30) * 20
    regularized = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0}
    for options in ({}, {"block_bytes": 8000}, {"block_bytes": 8000, **regularized}):
        fs.linear_cross_entropy_with_grad(features, weight, labels, **options)
        fs.linear_cross_entropy_hvp(features, weight, labels, weight, **options)
    fs.linear_softmax_statistics(features, weight, labels)
    fs.linear_softmax_statistics(features, weight, labels, block_bytes=8000)


def call_metrics(x, labels, axis):
    weights = np.linspace(0, 3, labels.size).reshape(labels.shape)
    RunningMetrics().update(x, labels, axis).update(x, labels, axis, weights)
    with suppress(ValueError):  # there may be no minimum
        fs.fit_temperature(x, labels, axis)


def call_segments(dtype):
    for lengths in ((2, 1, 0, 20), (300, 1, 70), (3, 2**20 + 5)):
        indptr = np.cumsum((0, *lengths))
        x, v = numbers(dtype, indptr[-1]), numbers(dtype, indptr[-1], 1)
        fs.segment_softmax(x, indptr)
        fs.segment_log_softmax(x, indptr)
        fs.segment_logsumexp(x, indptr)
        fs.segment_softmax_jvp(x, indptr, v)
        fs.segment_softmax_vjp(x, indptr, v)
        positions = np.where(np.diff(indptr) > 0, 0, -100)
        for smoothing in (0.0, 0.1):
            fs.segment_cross_entropy_with_grad(x, indptr, positions, ignore_index=-100, label_smoothing=smoothing)
        fs.segment_softmax_entropy_with_grad(x, indptr)
        fs.segment_kl_divergence_with_grad(x, indptr, v)
        if all(lengths):
            fs.segment_categorical(x, indptr, uniforms=np.full(len(lengths), 0.3))


def call_loops():
    """The inner loops, which NumPy calls, with strides of one and of two numbers."""
    shorts = {"e": np.float16, "f": np.float32, "d": np.float64}
    for name in ufuncs.DOCS:
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
                keep(replay.Call(PREFIX + loop, regions, [*integers, last]))


def call_halves():
    """The conversions of halves, with every fifth of them."""
    bits = np.arange(0, 1 << 16, 5, dtype=np.uint16)
    wide = np.arange(0, 1 << 32, 317_811, dtype=np.uint32).view(np.float32)
    for kind in ("float16", "bfloat16"):
        entry(f"halves.widen_{kind}")(0, bits.size, None, bits, np.zeros(bits.size, np.float32))
        entry(f"halves.narrow_{kind}")(0, wide.size, None, wide, np.zeros(wide.size, np.uint16))


def main(path):
    Kernel.code = code
    np.seterr(all="ignore")
    with fs.threads(1):
        for dtype in (np.float32, np.float64):
            call_functions(dtype)
            call_segments(dtype)
    call_halves()
    call_loops()
    with open(path, "wb") as file:
        pickle.dump([tuple(one) for one in calls.values()], file)


if __name__ == "__main__":
    main(*sys.argv[1:])
