"""Losses of single logits inside a user's ``@njit`` code; `rows` explains builders.

This does for compiled callers what `arrays.binary` does for Python callers.
"""

from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError

from fastsoftmax._spec import ENTRIES
from fastsoftmax._vectors import CHUNK
from fastsoftmax.arrays.binary import derivative_order
from fastsoftmax.machine.external import external
from fastsoftmax.njit.arguments import (
    KINDS,
    Call,
    Run,
    absent,
    broadcasts,
    check_number,
    compiled,
    convert,
    converter,
    deliver,
    empty,
    extent,
    kernel_weights,
    literal_reduction,
    memory_order,
    merged,
    readable,
    real_array,
    stack,
    straight,
    target,
    writable,
)
from fastsoftmax.njit.complaints import NotedValueError, refuse
from fastsoftmax.njit.generated import always, argument, is_any_set, number
from fastsoftmax.njit.losses import gamma_of
from fastsoftmax.njit.rows import Built, check_same, like, same_ndim, wanted
from fastsoftmax.njit.weights import divisor_for, reduced_for, scale_for, scaled
from fastsoftmax.njit.written import either

OPTIONS = ("pos_weight", "sample_weight", "label_smoothing", "gamma", "alpha")


def _flat(array: Any, dtype: Any, whole: bool) -> Run:
    """The compiled ``array, order -> its entries``: a view if a kernel can use its memory, else a copy.

    `whole` says whether the order is that of the axes.
    """
    kind = KINDS[dtype]
    if array.ndim:
        fits = converter(array, (), dtype) if whole else convert
        return merged(lambda array, order: fits(array, order, (array.size,), kind))

    @compiled
    def one(array: Any, order: Any) -> Any:
        copy = empty((1,), kind)
        copy[0] = array[()]
        return readable(copy, (1,), kind)

    return one


def _weights(call: Call, name: str, x: Any, kind: Any) -> Run:
    """The compiled ``weights, x, order -> one weight for each entry``; None if there are none."""
    given = call[name]
    if absent(given):
        return always(None)
    if isinstance(given, types.Array):
        real_array(call.name, name, given)
        if given.ndim > x.ndim:
            raise TypingError(f"{call.name}: {name} has {given.ndim} dimensions, logits has {x.ndim}")
        fits = broadcasts if given.ndim else always(True)
        item = merged(lambda weights: weights[()])
        if given.ndim:
            return _spread(call, name, fits, kind)
    else:
        check_number(call.name, name, given)
        item = argument(0)

    @compiled
    def repeated(weights: Any, x: Any, order: Any) -> Any:
        every = empty((x.size,), kind)
        every[:] = kind(item(weights))
        return readable(every, (x.size,), kind)

    return repeated


def _spread(call: Call, name: str, fits: Run, kind: Any) -> Run:
    """`_weights` for an array that has dimensions."""
    wrong = f"{call.name}: {name} does not broadcast to logits"

    @compiled
    def spread(weights: Any, x: Any, order: Any) -> Any:
        if not fits(weights, x.shape):
            raise ValueError(wrong)
        return convert(np.broadcast_to(weights, x.shape), order, (x.size,), kind)

    return spread


def _numbers(call: Call, kind: Any) -> Run:
    """The compiled ``label_smoothing, alpha -> (base, gain), (weights of the classes 1 and 0)``."""
    smoothing, alpha = call["label_smoothing"], call["alpha"]
    if smoothing is not None:
        check_number(call.name, "label_smoothing", smoothing)
    if not absent(alpha):
        check_number(call.name, "alpha", alpha)
    if smoothing is None or isinstance(smoothing, float):
        share = smoothing or 0.0
        if absent(alpha):
            return always(((kind(share / 2), kind(1.0 - share)), (kind(1.0), kind(1.0))))
    wrong_smoothing = f"{call.name}: label_smoothing must be from 0 to 1"
    wrong_alpha = f"{call.name}: alpha must be from 0 to 1"
    smoothing_of = always(0.0) if smoothing is None else compiled(lambda value: np.float64(value))
    alphas = always((1.0, 1.0))
    if not absent(alpha):
        alphas = compiled(lambda value: (np.float64(value), 1.0 - np.float64(value)))

    @compiled
    def numbers(label_smoothing: Any, alpha: Any) -> Any:
        share, (one, zero) = smoothing_of(label_smoothing), alphas(alpha)
        if not 0.0 <= share <= 1.0:
            raise ValueError(wrong_smoothing)
        if not 0.0 <= one <= 1.0:
            raise ValueError(wrong_alpha)
        return (kind(share / 2), kind(1.0 - share)), (kind(one), kind(zero))

    return numbers


def _target_checks(call: Call, x: Any, kind: Any, late: bool) -> tuple[Run, Run]:
    """The compiled checks that targets are from 0 to 1 where their entry has a weight.

    The first is for the targets, before the kernel runs; the second, with `late`, for what the kernel has found.
    """
    place = ", ".join([f"{{0[{i}]}}" for i in range(x.ndim)])
    wrong = f"{call.name}: targets[{place}] is {{1}}, expected a number from 0 to 1"

    itemsize = np.dtype(kind).itemsize

    @merged
    def check_none(found: bool, targets: Any, order: Any, t: Any, weights: Any) -> None:
        values = itemsize, targets.ndim, extent(t), extent(weights), order, targets.shape
        refuse(found, NotedValueError, "share", wrong, values)

    if late:

        @merged
        def check_found(targets: Any, order: Any, t: Any, weights: Any, sums: Any) -> None:
            check_none(is_any_set(sums, 2, 3), targets, order, t, weights)

        return always(None), check_found

    @compiled
    def check(targets: Any, order: Any, t: Any, weights: Any) -> None:
        outside = 0
        for i in range(t.size):
            outside += not (t[i] >= 0.0 and t[i] <= 1.0) and not (weights.size and weights[i] == 0.0)
        check_none(outside > 0, targets, order, t, weights)

    return check, always(None)


def _order_of(x: Any) -> Run:
    """The compiled ``x -> the order of its axes in memory``."""
    natural = tuple(range(x.ndim))
    if x.layout == "C" or x.ndim < 2:
        return merged(lambda x: natural)
    return compiled(lambda x: memory_order(x, natural))


def _output(call: Call, x: Any, dtype: Any, needed: bool, out: Any) -> tuple[Run, Run, Run]:
    """Memory for a result like x: make it, get what the kernel writes, and copy that into the result."""
    kind = KINDS[dtype]
    if not needed:
        return (
            always(None),
            merged(lambda result, order, a, b, c: empty((0,), kind)),
            always(None),
        )
    make = like(call.replaced(out=out), x, dtype)
    if x.ndim and absent(out) and straight(x, ()):
        return make, merged(lambda result, order, a, b, c: writable(result, (a.size,), kind)), always(None)
    if x.ndim:
        return (
            make,
            merged(lambda result, order, a, b, c: target(result, order, (a.size,), kind, a, b, c)),
            deliver,
        )

    @compiled
    def put(result: Any, order: Any, block: Any) -> None:
        result[()] = block[0]

    return make, merged(lambda result, order, a, b, c: empty((1,), kind)), put


def binary(call: Call) -> Built:
    """A loss of single logits, its gradient, both, or its second derivative."""
    function, name = call.name, call.names[0]
    x, dtype = call[name], real_array(function, name, call[name])
    kind = KINDS[dtype]
    same_ndim(call, call.names[1])
    reduction = literal_reduction(function, call["reduction"])
    mean = reduction == "mean"
    sampled = not absent(call["sample_weight"])
    result = call.function.result
    order_flag = derivative_order(call.function)
    kernel, plain = call.kernel(), external("binary.cross_entropy")
    focus, numbers = gamma_of(call, kind), _numbers(call, kind)
    check_shape, in_order = check_same(function, call.names[1], name), x.layout == "C"
    check_targets, check_found = _target_checks(call, x, kind, late=absent(call["out"]) and not sampled)
    order_of, entries_of = _order_of(x), _flat(x, dtype, in_order)
    targets_of = _flat(call[call.names[1]], dtype, in_order)
    positive_of, samples_of = _weights(call, "pos_weight", x, kind), _weights(call, "sample_weight", x, kind)
    present, divisor_of, scale_of = kernel_weights(kind), divisor_for(sampled and mean), scale_for(mean)
    weigh = argument(0)
    if sampled and mean:
        weigh = merged(lambda s, n, exponent: readable(scaled(stack(kind, 1), s, n, exponent, kind), (n,), kind))
    unreduced = reduction == "none" and ENTRIES in result
    make_losses, losses_for, put_losses = _output(call, x, dtype, unreduced, None)
    make_slope, slope_for, put_slope = _output(call, x, dtype, result != (ENTRIES,), call["out"])
    reduce, returned = reduced_for(mean), wanted(call)
    finish = merged(lambda losses, sums, divisor: number(reduce(sums, divisor, np.float64), kind))
    if unreduced:
        finish = argument(0)
        if x.ndim == 0:
            finish = merged(lambda losses, sums, divisor: losses[()])
    shown = argument(0)
    if x.ndim == 0 and absent(call["out"]) and result != (ENTRIES,):
        shown = merged(lambda slope: slope[()])
    focal, weighed = call["gamma"] is not None, not absent(call["alpha"])

    @merged
    def launch_focal(
        n: int, room: Any, x: Any, t: Any, v: Any, w: Any, losses: Any, y: Any, sums: Any, s: Any
    ) -> None:
        _, (alpha, beta), gamma, scale = s
        kernel(0, n, room, x, t, v, w, losses, y, sums, order_flag, gamma, alpha, beta, scale[0], scale[1], False)

    @merged
    def launch_plain(
        n: int, room: Any, x: Any, t: Any, v: Any, w: Any, losses: Any, y: Any, sums: Any, s: Any
    ) -> None:
        (base, gain), _, _, scale = s
        plain(0, n, room, x, t, v, w, losses, y, sums, order_flag, base, gain, scale[0], scale[1], False)

    by_gamma = either(launch_plain, launch_focal)
    start = launch_plain
    if focal:
        start = launch_focal if weighed else merged(lambda *given: by_gamma(given[-1][2] == 0.0, *given))

    @merged
    def run(x: Any, targets: Any, options: Any, out: Any) -> Any:
        pos_weight, sample_weight, label_smoothing, power, alpha = options
        check_shape(targets, x)
        order = order_of(x)
        source, t = entries_of(x, order), targets_of(targets, order)
        shares, alphas = numbers(label_smoothing, alpha)
        gamma = focus(power)
        positive, samples = present(positive_of(pos_weight, x, order)), samples_of(sample_weight, x, order)
        value, down = divisor_of(samples, 0, source.size, kind)
        weights = present(weigh(samples, source.size, -down))
        check_targets(targets, order, t, weights)
        losses, slope = make_losses(x, None), make_slope(x, out)
        entries, y = losses_for(losses, order, source, t, weights), slope_for(slope, order, source, t, weights)
        chunks = (source.size + CHUNK - 1) // CHUNK
        sums = empty((3 * chunks,), np.float64)
        room = stack(kind, 0)
        scale = scale_of(value, kind)
        start(chunks, room, source, t, positive, weights, entries, y, sums, (shares, alphas, gamma, scale))
        check_found(targets, order, t, weights, sums)
        put_losses(losses, order, entries)
        put_slope(slope, order, y)
        return returned(finish(losses, sums, value), shown(slope))

    return run, (*call.names, OPTIONS, "out")
