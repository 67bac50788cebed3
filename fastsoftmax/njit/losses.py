"""Losses, their gradients and second derivatives inside a user's ``@njit`` code; `rows` explains builders.

`_Targets` does for compiled callers what `arrays.options.RowTargets` does for Python callers.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core.errors import TypingError

from fastsoftmax._spec import DISTRIBUTIONS, LABELS, SQUARE, TANGENT, TARGET_LOGITS, TARGETS
from fastsoftmax._vectors import CAPPED, CURVE_PARTS
from fastsoftmax.arrays.options import counts_rows, smoothed_shares
from fastsoftmax.machine.external import external
from fastsoftmax.njit.arguments import (
    KINDS,
    Call,
    Run,
    absent,
    check_ignore_index,
    check_number,
    classes_last,
    compiled,
    constant,
    convert,
    converter,
    empty,
    extent,
    is_ignored,
    items,
    kernel_weights,
    layout,
    literal_reduction,
    merged,
    no_weights,
    overlap,
    product_of,
    readable,
    real_array,
    room_for,
    row_layout,
    same_shape,
    stack,
    straight,
    transposed,
    working_memory,
    writable,
)
from fastsoftmax.njit.complaints import NotedIndexError, complain, refuse
from fastsoftmax.njit.generated import always, argument, filled, inverse, number, require, whole_number
from fastsoftmax.njit.rows import (
    FIRST,
    Built,
    check_same,
    inverse_temperature_of,
    one_axis,
    pointwise,
    row_result,
    same_ndim,
    slope,
    square,
    switched,
    wanted,
    widened,
)
from fastsoftmax.njit.weights import (
    divisor_for,
    equal_weights,
    exponent_of,
    products,
    reduced_for,
    scale_for,
    scaled,
    scaled_classes,
)
from fastsoftmax.njit.written import either

OPTIONS = (
    "class_weight",
    "sample_weight",
    "ignore_index",
    "label_smoothing",
    "z_loss",
    "softcap",
    "temperature",
    "reverse",
    "beta",
    "gamma",
)

SPECIAL = OPTIONS[6:]
"""Options that only some losses have."""


class Terms(NamedTuple):
    """Targets and options as kernels take them.

    The share of class j in row n is ``classes_j * (base + gain * y_nj)``. `weights` are the row weights times the
    class weights of the labels; `beside` are row weights alone. A mean is divided by `divisor`. `regularization`
    are the factor of the z-loss and the cap of the logits, None if there is neither. `mixing` are the options of a
    divergence, and `beta` is 1/T, None without a temperature. `gamma` is that of the focal loss, None for others.
    """

    labels: Any
    distributions: Any
    base: Any
    gain: Any
    classes: Any
    weights: Any
    beside: Any
    divisor: Any
    regularization: Any
    mixing: Any
    beta: Any
    gamma: Any


_first_outside = external("losses.first_outside", result=True)

# --- targets and weights ------------------------------------------------------------------------------------


def _per_row(function: str, name: str, argument: Any, x: Any, kind: Any) -> Run:
    """The compiled ``argument, order of rows, number of rows, memory for one -> one number for each row``."""
    rest = x.ndim - 1
    number = rest == 0 and isinstance(argument, (types.Integer, types.Float, types.Boolean))
    if not number:
        real_array(function, name, argument)
        if argument.ndim != rest:
            raise TypingError(f"{function}: {name} has {argument.ndim} dimensions, expected {rest}")
    if rest:
        return merged(lambda argument, order, rows, few: convert(argument, order, (rows,), kind))
    item = _item(argument)

    @compiled
    def one(argument: Any, order: Any, rows: int, few: Any) -> Any:
        few[0] = item(argument)
        return readable(few, (1,), kind)

    return one


def _item(given: Any) -> Run:
    """The compiled function that returns a scalar, or the item of a 0-d array."""
    if isinstance(given, types.Array):
        return merged(lambda given: given[()])
    return argument(0)


def row_shape_check(function: str, name: str, argument: Any, x: Any, axes: tuple[int, ...]) -> Run:
    """The compiled check that an array has one item for each row."""
    if absent(argument) or not isinstance(argument, types.Array) or x.ndim == 1:
        return always(None)
    _, shape_of_rows, _ = row_layout(x, axes)
    wrong = f"{function}: {name} does not have the shape of the rows of logits"

    return merged(lambda argument, x: require(same_shape(argument.shape, shape_of_rows(x.shape)), wrong))


def labels_of_rows(function: str, name: str, x: Any, axes: tuple[int, ...], targets: Any, ignoring: bool) -> Run:
    """The compiled function that checks and returns the labels of the rows: -1 for ignored rows."""
    ndim = x.ndim - 1
    place = ", ".join([f"{{0[{i}]}}" for i in range(ndim)])
    wrong = f"{function}: {name}[{place}] is {{1}}, expected a label from 0 to {{2}}"
    ignored = is_ignored(ignoring)
    in_memory_order = len(axes) == 1 and classes_last(x, axes)

    if ndim == 0:
        item = _item(targets)

        @compiled
        def single(targets: Any, order: Any, shape: Any, ignore_index: Any, few: Any) -> Any:
            label = item(targets)
            few[0] = label
            if ignored(label, ignore_index):
                few[0] = -1
            elif label < 0 or label >= shape[1]:
                complain("placed", wrong, (0, 0, label, shape[1] - 1))
                raise NotedIndexError
            return readable(few, (1,), np.int64)

        return single

    if in_memory_order and not ignoring and straight(targets, ()) and targets.dtype == types.int64:

        @merged
        def in_order(targets: Any, order: Any, shape: Any, ignore_index: Any, few: Any) -> Any:
            labels = readable(targets, (shape[0] * shape[2],), np.int64)
            place = whole_number(_first_outside(labels, shape[1]))
            found = ndim, place, targets.shape, extent(labels), shape[1]
            refuse(place >= 0, NotedIndexError, "label", wrong, found)
            return labels

        return in_order

    @compiled
    def refuse_first(targets: Any, classes: int, ignore_index: Any) -> None:
        for i, place in enumerate(np.ndindex(targets.shape)):
            label = targets[place]
            if not ignored(label, ignore_index) and (label < 0 or label >= classes):
                complain("placed", wrong, (ndim, i, targets.shape, label, classes - 1))
                raise NotedIndexError

    @compiled
    def checked(targets: Any, order: Any, shape: Any, ignore_index: Any, few: Any) -> Any:
        labels = convert(targets, order, (shape[0] * shape[2],), np.int64)
        outside = 0
        for i in range(labels.size):
            outside += labels[i] < 0 or labels[i] >= shape[1]
        if outside:
            refuse_first(targets, shape[1], ignore_index)
        return labels

    @compiled
    def checked_or_ignored(targets: Any, order: Any, shape: Any, ignore_index: Any, few: Any) -> Any:
        labels = empty((shape[0] * shape[2],), np.int64)
        moved = transposed(targets, order)
        for i, place in enumerate(np.ndindex(moved.shape)):
            label = moved[place]
            labels[i] = label
            if ignored(label, ignore_index):
                labels[i] = -1
            elif label < 0 or label >= shape[1]:
                refuse_first(targets, shape[1], ignore_index)
        return readable(labels, (labels.size,), np.int64)

    return checked_or_ignored if ignoring else checked


class _Targets:
    """The targets and options of a loss that is being compiled; `options` are those of `OPTIONS`.

    ``check(logits, targets, options)`` is compiled and raises the errors of shapes. `terms` returns the compiled
    function that makes `Terms` and raises the errors of labels and smoothing. `are_plain` says whether the types
    show that logits and targets are contiguous rows of the right dtypes, and that there is no option or `out`.
    """

    def __init__(self, call: Call, x: Any, axes: tuple[int, ...], dtype: Any) -> None:
        self.call, self.x, self.axes, self.dtype, self.kind = call, x, axes, dtype, KINDS[dtype]
        self.name = call.names[1]
        self.targets = call[self.name]
        self.soft = isinstance(self.targets, types.Array) and self.targets.ndim == x.ndim
        smoothing = call["label_smoothing"]
        self.smooth = smoothing is not None and not isinstance(smoothing, float)
        if self.smooth:
            check_number(call.name, "label_smoothing", smoothing)
        self.regularized = is_regularized(call)
        self.mixed = self.smooth or self.regularized
        self._check_types()
        self.weighted, self.sampled = not absent(call["class_weight"]), not absent(call["sample_weight"])
        self.ignoring = not absent(call["ignore_index"])
        by_rows = counts_rows(call.name, self.soft)
        self.counting = not by_rows and (self.weighted or self.sampled or self.ignoring)
        self.shapes = row_shape_check(call.name, self.name, self.targets, x, axes)
        self.labels_of = always(None)
        self.distributions_of = always(None)
        if self.soft:
            self.shapes, kind = check_same(call.name, self.name, "logits"), self.kind
            fits = converter(self.targets, axes, dtype) if straight(x, axes) else convert
            self.distributions_of = merged(lambda targets, order, shape: fits(targets, order, shape, kind))
        else:
            self.labels_of = labels_of_rows(call.name, self.name, x, axes, self.targets, self.ignoring)
        self.check = self._checks()
        of_rows, items = (axes, dtype) if self.soft else ((), types.int64)
        self.are_plain = bool(
            not (self.mixed or self.weighted or self.sampled or self.ignoring)
            and absent(call["out"])
            and x.ndim > 1
            and straight(x, axes)
            and x.dtype == dtype
            and straight(self.targets, of_rows)
            and self.targets.dtype == items
        )

    def _check_types(self) -> None:
        function, name, x, targets = self.call.name, self.name, self.x, self.targets
        role, ignore_index = self.call.function.operands[1], self.call["ignore_index"]
        check_ignore_index(function, ignore_index)
        if role in (DISTRIBUTIONS, TARGET_LOGITS):
            same_ndim(self.call, name)
        if self.soft and role != LABELS:
            real_array(function, name, targets)
            if not absent(ignore_index):
                raise TypingError(f"{function}: ignore_index is for class indices, but {name} are distributions")
            return
        if isinstance(targets, types.Integer) and x.ndim == 1:
            return
        real_array(function, name, targets)
        if targets.ndim != x.ndim - 1:
            expected = f"{x.ndim - 1} (class indices)"
            if role == TARGETS:
                expected += f" or {x.ndim} (distributions)"
            raise TypingError(f"{function}: {name} has {targets.ndim} dimensions, expected {expected}")
        if not isinstance(targets.dtype, types.Integer):
            raise TypingError(
                f"{function}: {name} with {targets.ndim} dimensions are class indices and have dtype "
                f"{targets.dtype}, expected integers"
            )

    def _checks(self) -> Run:
        """The compiled checks of shapes."""
        function, x, axes, axis, shapes = self.call.name, self.x, self.axes, self.axes[0], self.shapes
        samples = row_shape_check(function, "sample_weight", self.call["sample_weight"], x, axes)
        given = self.call["class_weight"]
        classes = always(None)
        if self.weighted:
            real_array(function, "class_weight", given)
            if given.ndim != 1:
                raise TypingError(f"{function}: class_weight has {given.ndim} dimensions, expected 1")
            classes = self._class_check(axis)

        @merged
        def check(x: Any, targets: Any, options: Any) -> None:
            shapes(targets, x)
            classes(x, options[0])
            samples(options[1], x)

        return check

    def _class_check(self, axis: int) -> Run:
        wrong = f"{self.call.name}: class_weight does not have one item for each class"

        return merged(lambda x, class_weight: require(class_weight.size == x.shape[axis], wrong))

    def terms(self, mean: bool) -> Run:
        """The compiled ``targets, options, order, shape -> Terms``, with options as in `OPTIONS`."""
        kind, x, axes = self.kind, self.x, self.axes
        order_of_rows, _, _ = row_layout(x, axes)
        shares, weigh, regularize = self._shares(), self._weighing(mean), _regularizing(self.call, kind)
        mix, beta_of = _mixing(self.call, kind), inverse_temperature_of(self.call, kind)
        focus = gamma_of(self.call, kind)
        labels_of, distributions_of = self.labels_of, self.distributions_of
        samples_of = always(None)
        if self.sampled:
            samples_of = _per_row(self.call.name, "sample_weight", self.call["sample_weight"], x, kind)
        classes_of = _class_weights if self.weighted else always(None)
        present = kernel_weights(kind)

        @merged
        def terms(targets: Any, options: Any, order: Any, shape: Any) -> Any:
            class_weight, sample_weight, ignore_index, smoothing, z_loss, softcap = options[:6]
            temperature, reverse, beta, gamma = options[6:]
            rows = shape[0] * shape[2]
            base, gain = shares(smoothing, shape[1])
            by_row = order_of_rows(order)
            labels = labels_of(targets, by_row, shape, ignore_index, stack(np.int64, 1))
            distributions = distributions_of(targets, order, shape)
            samples = samples_of(sample_weight, by_row, rows, stack(kind, 1))
            classes, weights, beside, divisor, up = weigh(labels, classes_of(class_weight, kind), samples, rows)
            classes, weights, beside = present(classes), present(weights), present(beside)
            regularization, mixing = regularize(z_loss, softcap, -up), mix(reverse, beta)
            power, inverse = focus(gamma), beta_of(temperature)
            shared = labels, distributions, base, gain, classes, weights, beside, divisor
            return Terms(*shared, regularization, mixing, inverse, power)

        return terms

    def _shares(self) -> Run:
        """The compiled ``label_smoothing, classes -> base, gain`` for `Terms`."""
        kind = self.kind
        if not self.smooth:
            return always((kind(0.0), kind(1.0)))
        wrong = f"{self.call.name}: label_smoothing must be from 0 to 1"
        split = compiled(smoothed_shares)

        @compiled
        def shares(label_smoothing: Any, classes: int) -> Any:
            smoothing = np.float64(label_smoothing)
            if not 0.0 <= smoothing <= 1.0:
                raise ValueError(wrong)
            base, gain = split(smoothing, classes)
            return kind(base), kind(gain)

        return shares

    def _weights(self, with_classes: bool) -> Run:
        """The compiled weights of the rows, with or without those of the classes; None if there are none.

        They come with the exponent of a power of two, as from `arrays.weights.product_of_weights`.
        """
        by_class, by_sample, kind = with_classes and self.weighted, self.sampled, self.kind
        if self.soft or not (self.ignoring or by_sample or by_class):
            return merged(lambda few, labels, classes, samples: (samples, 0))
        if by_class and by_sample:
            return merged(lambda few, labels, classes, samples: products(few, labels, classes, samples, kind))
        factor = always(1.0)
        if by_class:
            factor = merged(lambda classes, samples, label, i: classes[label])
        elif by_sample:
            factor = merged(lambda classes, samples, label, i: samples[i])

        @compiled
        def weigh(few: Any, labels: Any, classes: Any, samples: Any) -> Any:
            room = items(few, labels.size, kind)
            for i in range(labels.size):
                room[i] = 0.0
                if labels[i] >= 0:
                    room[i] = factor(classes, samples, labels[i], i)
            return readable(room, (room.size,), kind), 0

        return weigh

    def _weighing(self, mean: bool) -> Run:
        """The compiled ``labels, class weights, sample weights, rows -> the weights of `Terms```.

        Last comes the exponent of the power of two by which the class weights were divided.
        """
        kind, divisor_of = self.kind, divisor_for(self.counting and mean)
        if not self.counting:

            @merged
            def unweighted(labels: Any, classes: Any, samples: Any, rows: int) -> Any:
                value, _ = divisor_of(None, 0, rows, kind)
                return classes, samples, samples, value, 0

            return unweighted
        weights_of = self._weights(with_classes=True)
        beside_of = merged(lambda few, labels, classes, samples: (None, 0))
        of_rows, by_class = self.sampled or self.ignoring, self.weighted and mean
        leave_out = _leave_out if by_class else always(None)
        rows_beside = always(None)
        up_of, normal = always(0), argument(0)
        if self.mixed and of_rows:
            beside_of, rows_beside = self._weights(with_classes=False), scaled
        if self.mixed and by_class:
            up_of, normal, rows_beside = exponent_of, scaled_classes, scaled if of_rows else equal_weights

        @merged
        def weighted(labels: Any, classes: Any, samples: Any, rows: int) -> Any:
            counted, exponent = weights_of(stack(kind, 1), labels, classes, samples)
            others, _ = beside_of(stack(kind, 1), labels, classes, samples)
            value, down = divisor_of(counted, exponent, rows, kind)
            up = up_of(classes)
            weights = scaled(stack(kind, 1), counted, rows, exponent - down, kind)
            leave_out(weights, labels, samples, value, kind)
            beside = rows_beside(stack(kind, 1), others, rows, up - down, kind)
            return normal(classes, -up, kind), readable(weights, (rows,), kind), beside, value, up

        return weighted


def is_regularized(call: Call) -> bool:
    """Whether a z-loss or a cap was passed."""
    return not (isinstance(call["z_loss"], (float, type(None))) and absent(call["softcap"]))


def _regularizing(call: Call, kind: Any) -> Run:
    """The compiled ``z_loss, softcap, exponent -> regularization`` of `Terms`."""
    if not is_regularized(call):
        return always(None)
    z_given, cap_given = call["z_loss"], call["softcap"]
    if not isinstance(z_given, float):
        check_number(call.name, "z_loss", z_given)
    if not absent(cap_given):
        check_number(call.name, "softcap", cap_given)
    capped = not absent(cap_given)
    wrong_factor = f"{call.name}: z_loss must be finite and >= 0"
    wrong_cap = f"{call.name}: softcap must be finite and > 0"
    limits = np.finfo(kind)
    tiny, most = float(limits.tiny), float(limits.max)
    cap_of = compiled(lambda softcap: np.float64(softcap)) if capped else always(1.0)

    @compiled
    def regularize(z_loss: Any, softcap: Any, exponent: int) -> Any:
        factor, cap = np.float64(z_loss), cap_of(softcap)
        if not 0.0 <= factor < np.inf:
            raise ValueError(wrong_factor)
        if not 0.0 < cap < np.inf:
            raise ValueError(wrong_cap)
        cap = min(max(cap, tiny), most) if capped else np.inf
        return kind(math.ldexp(factor, exponent)), kind(cap)

    return regularize


def _mixing(call: Call, kind: Any) -> Run:
    """The compiled ``reverse, beta -> mixing`` of `Terms`; None for losses that are no divergences."""
    if "reverse" in call:
        reverse = constant(call["reverse"])
        if not isinstance(reverse, (bool, types.Boolean)):
            raise TypingError(f"{call.name}: reverse must be a bool, got {call['reverse']}")
        return merged(lambda reverse, beta: (reverse, False))
    if "beta" not in call:
        return always(None)
    check_number(call.name, "beta", call["beta"])
    wrong = f"{call.name}: beta must be finite, > 0 and < 1"

    @merged
    def shares(reverse: Any, beta: Any) -> Any:
        share = number(beta, np.float64)
        require((share > 0.0) & (share < 1.0), wrong)
        return number(share, kind), number(1.0 - share, kind)

    return shares


def _special(call: Call, kind: Any) -> Run:
    """The compiled ``options of SPECIAL -> mixing, beta and gamma`` of `Terms`."""
    mix, beta_of, focus = _mixing(call, kind), inverse_temperature_of(call, kind), gamma_of(call, kind)

    @merged
    def special(options: Any) -> Any:
        temperature, reverse, beta, gamma = options
        return mix(reverse, beta), beta_of(temperature), focus(gamma)

    return special


def gamma_of(call: Call, kind: Any) -> Run:
    """The compiled ``gamma -> gamma`` in the dtype `kind`; None for a loss without it."""
    if call["gamma"] is None:
        return always(None)
    check_number(call.name, "gamma", call["gamma"])
    wrong = f"{call.name}: gamma must be finite and >= 0"

    @merged
    def focus(gamma: Any) -> Any:
        value = number(gamma, np.float64)
        require((value >= 0.0) & (value < np.inf), wrong)
        return number(value, kind)

    return focus


@compiled
def _class_weights(class_weight: Any, kind: Any) -> Any:
    """Class weights as kernels take them."""
    return writable(convert(class_weight, (0,), (class_weight.size,), kind), (class_weight.size,), kind)


@compiled
def _leave_out(weights: Any, labels: Any, samples: Any, divisor: float, kind: Any) -> None:
    """Set the row weights to nan if the mean is 0/0, but to 0 in rows that are ignored or have sample weight 0."""
    if np.isnan(divisor):
        for i in range(labels.size):
            weights[i] = kind(np.nan) if labels[i] >= 0 and _counts(samples, i) else kind(0.0)


@compiled
def _counts(samples: Any, i: int) -> Any:
    if samples is None:
        return True
    return samples[i] != 0.0


# --- losses -------------------------------------------------------------------------------------------------


def _loss_result(function: str, x: Any, axes: tuple[int, ...], dtype: Any, reduction: str) -> tuple[Run, Run, Run]:
    """`row_result` for the losses of the rows, or its equivalent for a reduction to one number."""
    if reduction == "none":
        begin, block_for, finish = row_result(function, x, axes, dtype, False, None)
        return begin, block_for, merged(lambda x, result, order, block, _: finish(x, result, order, block, None))
    kind, reduce = KINDS[dtype], reduced_for(reduction == "mean")
    begin = always(None)
    block_for = merged(lambda result, order, rows, few, source: items(few, rows, kind))
    return begin, block_for, merged(lambda x, result, order, block, divisor: reduce(block, divisor, kind))


def _loss(call: Call, x: Any, axes: tuple[int, ...], dtype: Any, given: _Targets, launch: Run, over: Run) -> Built:
    """A loss, its gradient or both; ``launch(rows, room, x, terms, y, losses, scale)`` calls the kernel.

    ``over(y, distributions)`` says whether the kernel needs memory for an output that lies over an operand.
    """
    reduction, kind = literal_reduction(call.name, call["reduction"]), KINDS[dtype]
    if given.are_plain:
        return _plain_loss(call, x, axes, dtype, given, launch)
    check, terms_of = given.check, given.terms(reduction == "mean")
    lay_out = layout(x, axes, given.regularized)
    source_for = converter(x, axes, dtype)
    begin, block_for, finish = _loss_result(call.name, x, axes, dtype, reduction)
    slope_for, target_for, deliver_to = slope(call, x, axes, dtype)
    scale_of, returned = scale_for(reduction == "mean"), wanted(call)
    room_of = room_for(x, axes, call["out"])

    @merged
    def run(x: Any, targets: Any, options: Any, out: Any) -> Any:
        check(x, targets, options)
        order, shape = lay_out(x)
        rows = shape[0] * shape[2]
        terms = terms_of(targets, options, order, shape)
        slope = slope_for(x, out)
        losses = begin(x, None)
        source = source_for(x, order, shape, kind)
        block = block_for(losses, order, rows, stack(kind, 1), source)
        y = target_for(slope, order, shape, kind, source, terms.distributions, terms.weights)
        room = room_of(stack(kind, 0), shape, 2, kind, over(y, terms.distributions))
        launch(rows, room, source, terms, y, block, scale_of(terms.divisor, kind))
        deliver_to(slope, order, y)
        return returned(finish(x, losses, order, block, terms.divisor), slope)

    return run, (*call.names, OPTIONS, "out")


def _plain_loss(call: Call, x: Any, axes: tuple[int, ...], dtype: Any, given: _Targets, launch: Run) -> Built:
    """`_loss` for plain logits and targets: nothing has to be laid out, converted or weighed.

    Numba compiles it in a third of the time.
    """
    reduction, kind, returned = constant(call["reduction"]), KINDS[dtype], wanted(call)
    rest, nothing = tuple(range(x.ndim - 1)), no_weights(kind)
    begin, block_for, finish = _loss_result(call.name, x, axes, dtype, reduction)
    scale_of = always((kind(1.0), kind(0.0)))
    if reduction != "none":
        block_for = merged(lambda result, order, rows, few, source: empty((rows,), kind))
    if reduction == "mean":
        scale_of = merged(lambda rows: inverse(number(rows, np.float64), kind))
    slope_for, target_for, _ = slope(call, x, axes, dtype)
    shapes, labels_of, to = given.shapes, given.labels_of, given.distributions_of
    special, names = always((None, None, None)), tuple([name for name in SPECIAL if name in call])
    if names:
        special, names = _special(call, kind), SPECIAL

    @merged
    def run(x: Any, targets: Any, options: Any, out: Any) -> Any:
        shapes(targets, x)
        rows = product_of(x.shape, rest)
        shape = rows, x.shape[-1], 1
        source = readable(x, shape, kind)
        weights = readable(nothing, (0,), kind)
        labels, distributions = labels_of(targets, None, shape, None, None), to(targets, None, shape)
        mixing, beta, gamma = special(options)
        shares = kind(0.0), kind(1.0)
        terms = Terms(labels, distributions, *shares, weights, weights, weights, None, None, mixing, beta, gamma)
        losses, slope = begin(x, None), slope_for(x, out)
        block = block_for(losses, None, rows, None, source)
        y = target_for(slope, None, shape, kind, None, None, None)
        launch(rows, stack(kind, 0), source, terms, y, block, scale_of(rows))
        return returned(finish(x, losses, None, block, rows), slope)

    return run, (*call.names, names, "out")


@compiled
def _room_for_rows(classes: int, parts: int, kind: Any) -> Any:
    """The working memory of the kernels of `kernels.capped`."""
    return empty((parts * max(classes, CAPPED),), kind)


def _may_be_inert(call: Call) -> bool:
    return is_regularized(call) and absent(call["softcap"])


def _unless_inert(call: Call, build: Any) -> Run:
    """The compiled function of a loss; if its z-loss is 0 and nothing is capped, that of the loss without them."""
    run: Run = build(call)
    if not _may_be_inert(call):
        return run
    plain = build(call.replaced(z_loss=0.0, softcap=None))
    at = OPTIONS.index("z_loss")

    choose = either(plain, run)

    @merged
    def chosen(x: Any, targets: Any, tangent: Any, options: Any, out: Any) -> Any:
        return choose(options[at] == 0, x, targets, tangent, options, out)

    return chosen


def cross_entropy(call: Call) -> Built:
    """The cross-entropy with labels or distributions."""
    if not _may_be_inert(call):
        return _cross_entropy(call)

    def build(call: Call) -> Run:
        run, _ = _cross_entropy(call)
        return merged(lambda x, targets, tangent, options, out: run(x, targets, options, out))

    run = _unless_inert(call, build)
    return merged(lambda x, targets, options, out: run(x, targets, None, options, out)), (
        *call.names,
        OPTIONS,
        "out",
    )


def _cross_entropy(call: Call) -> Built:
    x, axes, dtype = one_axis(call)
    given = _Targets(call, x, axes, dtype)
    plain, mixed, capped = call.kernel(), call.kernel("soft_"), external("capped.cross_entropy")

    @merged
    def launch(rows: int, room: Any, x: Any, terms: Any, y: Any, losses: Any, scale: Any) -> None:
        plain(0, rows, room, x, terms.labels, terms.weights, y, losses, scale[0], scale[1], False)

    @merged
    def launch_mixed(rows: int, room: Any, x: Any, terms: Any, y: Any, losses: Any, scale: Any) -> None:
        to, labels, classes, beside = terms.distributions, terms.labels, terms.classes, terms.beside
        mixed(0, rows, room, x, to, labels, classes, terms.base, terms.gain, beside, y, losses, scale[0], scale[1])

    by_smoothing = either(launch, launch_mixed)

    @merged
    def launch_either(rows: int, room: Any, x: Any, terms: Any, y: Any, losses: Any, scale: Any) -> None:
        by_smoothing(terms.base == 0.0, rows, room, x, terms, y, losses, scale)

    kind = KINDS[dtype]

    @merged
    def launch_capped(rows: int, room: Any, x: Any, terms: Any, y: Any, losses: Any, scale: Any) -> None:
        to, labels, classes, beside = terms.distributions, terms.labels, terms.classes, terms.beside
        z_loss, cap = terms.regularization
        memory = _room_for_rows(x.shape[1], 1, kind)
        base, gain = terms.base, terms.gain
        capped(
            0, rows, memory, x, to, labels, classes, base, gain, beside, y, losses, scale[0], scale[1], z_loss, cap
        )

    chosen = launch_mixed if given.soft else launch_either if given.smooth else launch
    if given.regularized:
        chosen = launch_capped
    return _loss(call, x, axes, dtype, given, chosen, overlap(None))


def row_loss(call: Call) -> Built:
    """A loss whose kernel takes targets, a weight for each row, and the factor of the gradient."""
    x, axes, dtype = one_axis(call)
    given = _Targets(call, x, axes, dtype)
    kernel, over = call.kernel(), overlap(None if wanted(call) is FIRST else call["out"])
    to = merged(lambda terms: terms.distributions) if given.soft else merged(lambda terms: terms.labels)

    @merged
    def launch(rows: int, room: Any, x: Any, terms: Any, y: Any, losses: Any, scale: Any) -> None:
        kernel(0, rows, room, x, to(terms), terms.weights, y, losses, over(y, to(terms)), scale[0], scale[1])

    return _loss(call, x, axes, dtype, given, launch, over)


def divergence(call: Call) -> Built:
    """A divergence of two arrays of logits."""
    x, axes, dtype = one_axis(call)
    given, kind, kernel = _Targets(call, x, axes, dtype), KINDS[dtype], call.kernel()
    slope_of = argument(0)
    if wanted(call) is FIRST:
        slope_of = merged(lambda y: writable(stack(kind, 0), (0, 0, 0), kind))
    chosen = switched(
        call,
        merged(lambda n, room, x, v, y, beta, flag, w: kernel(0, n, room, x, v, w, *y, beta, False)),
    )

    @merged
    def launch_kl(rows: int, room: Any, x: Any, terms: Any, y: Any, losses: Any, scale: Any) -> None:
        results = slope_of(y), losses, terms.mixing[0], scale[0], scale[1]
        chosen(rows, room, x, terms.distributions, results, terms.beta, None, terms.weights)

    @merged
    def launch_js(rows: int, room: Any, x: Any, terms: Any, y: Any, losses: Any, scale: Any) -> None:
        results = slope_of(y), losses, terms.mixing[0], terms.mixing[1], scale[0], scale[1]
        chosen(rows, room, x, terms.distributions, results, terms.beta, None, terms.weights)

    launch = launch_kl if "reverse" in call else launch_js
    return _loss(call, x, axes, dtype, given, launch, overlap(None))


def focal(call: Call) -> Built:
    """The focal loss; with gamma = 0 the cross-entropy."""
    x, axes, dtype = one_axis(call)
    given = _Targets(call, x, axes, dtype)
    kernel, plain = call.kernel(), external("losses.cross_entropy")

    by_gamma = either(
        merged(lambda given, gamma: plain(0, *given, False)),
        merged(lambda given, gamma: kernel(0, *given, gamma, False)),
    )

    @merged
    def launch(rows: int, room: Any, x: Any, terms: Any, y: Any, losses: Any, scale: Any) -> None:
        given = rows, room, x, terms.labels, terms.weights, y, losses, scale[0], scale[1]
        by_gamma(terms.gamma == 0.0, given, terms.gamma)

    return _loss(call, x, axes, dtype, given, launch, overlap(None))


# --- second derivatives -------------------------------------------------------------------------------------


def curvature(call: Call) -> Built:
    """The Hessian, its diagonal or its product with a tangent: that of softmax, times a factor for each row."""
    name = call.name_of(TANGENT)
    return _unless_inert(call, _curvature), (*call.names[:2], name, OPTIONS, "out")


class Curve(NamedTuple):
    """What the kernels of `kernels.capped` take for second derivatives."""

    terms: Any
    factors: Any
    scale: Any


def _curvature(call: Call) -> Run:
    x, axes, dtype = one_axis(call)
    name, kernel, over = call.name_of(TANGENT), call.kernel(), overlap(call["out"])
    tangent = call[name]
    if tangent is not None:
        same_ndim(call, name)
        dtype = widened(dtype, tangent)
    mean = literal_reduction(call.name, call["reduction"]) == "mean"
    given, kind = _Targets(call, x, axes, dtype), KINDS[dtype]
    check_tangent = always(None)
    square_result = call.function.result == (SQUARE,)
    if tangent is not None:
        check_tangent = check_same(call.name, name, call.names[0])
    if given.regularized:
        launch = _launch_capped(kind, tangent is not None)
    elif square_result:
        launch = merged(lambda n, room, x, v, y, beta, flag, w: kernel(0, n, room, x, y, None, None, w))
    elif tangent is None:
        launch = merged(lambda n, room, x, v, y, beta, flag, w: kernel(0, n, room, x, y, w))
    else:
        launch = merged(
            lambda n, room, x, v, y, beta, flag, w: kernel(0, n, room, x, v, y, over(y, v), None, None, w)
        )
    last = square_result or given.regularized
    if square_result:
        apply = square(call, x, axes, dtype, launch)
    else:
        apply = pointwise(call, x, axes, dtype, launch, operand=tangent, last=last)
    if given.are_plain and not given.soft:
        plain_factors = _plain_factors(given, mean)

        @merged
        def run_plain(x: Any, targets: Any, tangent: Any, options: Any, out: Any) -> Any:
            check_tangent(tangent, x)
            _, factors = plain_factors(x, targets)
            return apply(x, tangent, None, None, factors, out)

        return run_plain
    check, terms_of, factors_of = given.check, given.terms(mean), _factors(given, mean)
    lay_out, scale_of = layout(x, axes, last), scale_for(mean)
    weights_of = argument(1)
    if given.regularized:
        weights_of = merged(lambda terms, factors: Curve(terms, factors, scale_of(terms.divisor, kind)))

    @merged
    def run(x: Any, targets: Any, tangent: Any, options: Any, out: Any) -> Any:
        check_tangent(tangent, x)
        check(x, targets, options)
        order, shape = lay_out(x)
        terms = terms_of(targets, options, order, shape)
        factors = factors_of(stack(kind, 1), shape, terms)
        return apply(x, tangent, None, None, weights_of(terms, factors), out)

    return run


def focal_curvature(call: Call) -> Built:
    """The diagonal of the Hessian of the focal loss."""
    x, axes, dtype = one_axis(call)
    kernel, plain = call.kernel(), external("derivatives.softmax_variance")
    mean = literal_reduction(call.name, call["reduction"]) == "mean"
    given, kind = _Targets(call, x, axes, dtype), KINDS[dtype]
    by_gamma = either(
        merged(lambda n, room, x, labels, factors, y, gamma: plain(0, n, room, x, y, factors)),
        merged(lambda n, room, x, labels, factors, y, gamma: kernel(0, n, room, x, labels, factors, y, gamma)),
    )

    @merged
    def launch(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, curve: Any) -> None:
        labels, factors, gamma = curve
        by_gamma(gamma == 0.0, rows, room, x, labels, factors, y, gamma)

    apply = pointwise(call, x, axes, dtype, launch)
    if given.are_plain:
        plain_factors, focus = _plain_factors(given, mean), gamma_of(call, kind)

        @merged
        def run_plain(x: Any, labels: Any, gamma: Any, out: Any) -> Any:
            marks, factors = plain_factors(x, labels)
            return apply(x, None, None, None, (marks, factors, focus(gamma)), out)

        return run_plain, (*call.names, "gamma", "out")
    check, terms_of, factors_of = given.check, given.terms(mean), _factors(given, mean)
    lay_out = layout(x, axes, last=False)

    @merged
    def run(x: Any, labels: Any, options: Any, out: Any) -> Any:
        check(x, labels, options)
        order, shape = lay_out(x)
        terms = terms_of(labels, options, order, shape)
        factors = factors_of(stack(kind, 1), shape, terms)
        return apply(x, None, None, None, (terms.labels, factors, terms.gamma), out)

    return run, (*call.names, OPTIONS, "out")


def _launch_capped(kind: Any, along: bool) -> Run:
    """The kernels of capped logits or with a z-loss: the product with a tangent (`along`), or the other two."""
    product, variance = external("capped.product"), external("capped.variance")

    @merged
    def launch_product(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, curve: Any) -> None:
        terms, factors, scale = curve
        to, labels, classes, beside = terms.distributions, terms.labels, terms.classes, terms.beside
        memory, (z_loss, cap) = _room_for_rows(x.shape[1], CURVE_PARTS, kind), terms.regularization
        base, gain, high, low = terms.base, terms.gain, scale[0], scale[1]
        product(0, rows, memory, x, v, to, labels, classes, base, gain, beside, factors, y, high, low, z_loss, cap)

    @merged
    def launch_variance(rows: int, room: Any, x: Any, v: Any, y: Any, beta: Any, flag: Any, curve: Any) -> None:
        terms, factors, scale = curve
        to, labels, classes, beside = terms.distributions, terms.labels, terms.classes, terms.beside
        memory, (z_loss, cap) = _room_for_rows(x.shape[1], CURVE_PARTS, kind), terms.regularization
        base, gain, high, low = terms.base, terms.gain, scale[0], scale[1]
        variance(0, rows, memory, x, to, labels, classes, base, gain, beside, factors, y, high, low, z_loss, cap)

    return launch_product if along else launch_variance


def _plain_factors(given: _Targets, mean: bool) -> Run:
    """The compiled ``logits, labels -> labels, factor of each row`` for plain ones, which it checks."""
    kind, rest, shapes, labels_of = given.kind, tuple(range(given.x.ndim - 1)), given.shapes, given.labels_of
    present = kernel_weights(kind)
    factors_of = merged(lambda rows: present(None))
    if mean:
        factors_of = merged(lambda rows: present(filled((rows,), number(1.0 / number(rows, np.float64), kind))))

    @merged
    def factors(x: Any, labels: Any) -> Any:
        shapes(labels, x)
        rows = product_of(x.shape, rest)
        return labels_of(labels, None, (rows, x.shape[-1], 1), None, None), factors_of(rows)

    return factors


def _factors(given: _Targets, mean: bool) -> Run:
    """The compiled ``memory for one, shape of the blocks, terms -> factor of each row``."""
    kind, soft, mixed, regularized = given.kind, given.soft, given.mixed, given.regularized
    if not (soft or mixed or given.counting or mean):
        present = kernel_weights(kind)
        return merged(lambda few, shape, terms: present(None))
    total, share_totals = external("reductions.total", result=True), external("reductions.share_totals")
    of_rows = given.sampled or (not soft and (given.ignoring or (mixed and given.weighted and mean)))
    present, one = (lambda values, i: np.float64(values[i])), (lambda values, i: 1.0)
    weight_at, beside_at = merged(present if given.counting else one), merged(present if of_rows else one)
    class_at = merged(present if given.weighted else one)
    all_classes = argument(0)
    if not given.weighted:
        all_classes = compiled(lambda class_weights, classes: np.ones(classes, kind))

    @compiled
    def divided(share: float, weight: float, divisor: float) -> Any:
        if weight == 0.0:
            return kind(0.0)
        return kind(share * weight / divisor if mean else share * weight)

    @compiled
    def of_weights(factors: Any, shape: Any, terms: Any) -> None:
        for i in range(factors.size):
            factors[i] = divided(1.0, weight_at(terms.weights, i), terms.divisor)

    @compiled
    def of_labels(factors: Any, shape: Any, terms: Any) -> None:
        if terms.base == 0.0 and not regularized:
            of_weights(factors, shape, terms)
            return
        every = all_classes(terms.classes, shape[1])
        base = np.float64(terms.base) * total(readable(every, (every.size,), kind))
        for i in range(factors.size):
            share = base + np.float64(terms.gain) * class_at(every, max(terms.labels[i], 0))
            factors[i] = divided(share, beside_at(terms.beside, i), terms.divisor)

    @compiled
    def of_distributions(factors: Any, shape: Any, terms: Any) -> None:
        every = all_classes(terms.classes, shape[1])
        base = np.float64(terms.base) * total(readable(every, (every.size,), kind))
        low = empty((factors.size,), kind)
        room = working_memory(stack(kind, 0), shape, 1, kind, False)
        share_totals(0, factors.size, room, terms.distributions, every, kind(0.0), kind(1.0), factors, low)
        for i in range(factors.size):
            share = base + np.float64(terms.gain) * (np.float64(factors[i]) + low[i])
            factors[i] = divided(share, beside_at(terms.beside, i), terms.divisor)

    fill = of_distributions if soft else of_labels if mixed else of_weights

    @merged
    def factors_of(few: Any, shape: Any, terms: Any) -> Any:
        factors = items(few, shape[0] * shape[2], kind)
        fill(factors, shape, terms)
        return readable(factors, (factors.size,), kind)

    return factors_of
