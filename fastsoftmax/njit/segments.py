"""The functions of ragged rows inside a user's ``@njit`` code; `rows` explains builders.

They raise the errors of the Python functions, except that wrong types raise a TypingError.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core.errors import TypingError

from fastsoftmax._spec import INDPTR, LOGITS, POSITIONS, ROWS, TARGET_LOGITS
from fastsoftmax._vectors import HUGE
from fastsoftmax.arrays.options import smoothed_shares
from fastsoftmax.machine.external import external
from fastsoftmax.njit.arguments import (
    KINDS,
    Call,
    Run,
    absent,
    apart,
    check_ignore_index,
    check_number,
    check_out,
    compiled,
    constant,
    contiguous,
    converter,
    deliver,
    empty,
    exits,
    extent,
    is_ignored,
    kernel_weights,
    literal_reduction,
    merged,
    overlap,
    readable,
    real_array,
    stack,
    usable,
    writable,
)
from fastsoftmax.njit.complaints import NotedIndexError, NotedValueError, complain, refuse
from fastsoftmax.njit.generated import (
    always,
    argument,
    copied,
    longest_step,
    number,
    pair_of_integers,
    require,
    whole_number,
)
from fastsoftmax.njit.huge import over_huge
from fastsoftmax.njit.rows import FIRST, NOWHERE, Built, wanted, widened
from fastsoftmax.njit.weights import divisor_for, reduced_for, scale_for, scaled
from fastsoftmax.njit.written import either

_first_wrong = external("segments.first_wrong", result=True)
_misplaced = external("segments.misplaced")
FLAT = (0,)

# --- types --------------------------------------------------------------------------------------------------


def vector(call: Call, name: str) -> Any:
    """The dtype in which a vector of real numbers is computed."""
    _check_vector(call, name)
    return real_array(call.name, name, call[name])


def _check_vector(call: Call, name: str) -> None:
    argument = call[name]
    if not isinstance(argument, types.Array) or argument.ndim != 1:
        raise TypingError(f"{call.name}: {name} must be an array of one dimension, got {argument}")


def _check_integers(call: Call, name: str) -> None:
    _check_vector(call, name)
    if not isinstance(call[name].dtype, types.Integer):
        raise TypingError(f"{call.name}: {name} has dtype {call[name].dtype}, expected integers")


def _result(call: Call, dtype: Any) -> Run:
    """The compiled ``out, count -> result``, a vector of `count` numbers."""
    out, kind = call["out"], KINDS[dtype]
    if absent(out):
        return merged(lambda out, count: empty((count,), kind))
    _check_vector(call, "out")
    check_out(call.name, out, dtype, 1)
    wrong = f"{call.name}: out has shape ({{}},), expected ({{}},)"

    @compiled
    def given(out: Any, count: int) -> Any:
        if out.size != count:
            complain("formatted", wrong, (out.size, count))
            raise NotedValueError
        return out

    return given


# --- rows ---------------------------------------------------------------------------------------------------


def pointers(call: Call) -> Run:
    """The compiled form of `api.segments._row_pointers`; it always returns a copy."""
    name = call.name

    @merged
    def check(indptr: Any, entries: int) -> Any:
        table = copied(indptr, (indptr.size,), np.int64)
        n = whole_number(_first_wrong(table, entries))
        refuse(n >= 0, NotedValueError, "row_pointer", name, (n, extent(table), entries))
        return table

    return check


@merged
def whole(indptr: Any) -> Any:
    """All segments as one block of work."""
    return pair_of_integers(0, indptr.size - 1)


def _room_for(out: Any) -> Run:
    """`_room`, or a simpler form if the types show that no memory is needed."""
    return argument(0) if absent(out) else _room


@compiled
def _room(nothing: Any, indptr: Any, kind: Any, over: bool) -> Any:
    """Memory for the longest segment if the output lies over v, else `nothing`."""
    if not over:
        return nothing
    longest = 0
    for n in range(indptr.size - 1):
        longest = max(longest, indptr[n + 1] - indptr[n])
    return np.empty(min(longest, HUGE), kind)


def _row_target_for(out: Any) -> tuple[Run, Run]:
    """`_row_target` and `deliver`, or simpler forms if the result is new memory."""
    if absent(out):
        return merged(lambda result, count, kind, source: writable(result, (count,), kind)), always(None)
    return _row_target, deliver


@compiled
def _row_target(result: Any, count: int, kind: Any, source: Any) -> Any:
    """The kernel's output of one number for each segment: not over x, which is read for later segments."""
    if usable(result, kind) and contiguous(result, FLAT) and apart(result, source):
        return writable(result, (count,), kind)
    return empty((count,), kind)


# --- builders -----------------------------------------------------------------------------------------------


def ragged(call: Call) -> Built:
    """A function of ragged rows."""
    dtype = vector(call, call.names[0])
    _check_integers(call, call.names[1])
    if POSITIONS in call.function.operands:
        return _loss(call, dtype)
    if TARGET_LOGITS in call.function.operands:
        return _divergence(call, dtype)
    if call.function.kernel == "segments.segment_softmax_entropy":
        return _entropy(call, dtype)
    return _forward(call, dtype) if call.function.operands == (LOGITS, INDPTR) else _product(call, dtype)


def same_size(call: Call, name: str) -> Run:
    """The compiled check that an operand has as many elements as x."""
    wrong = f"{call.name}: {name} has shape ({{}},), expected that of x, ({{}},)"

    @merged
    def check(v: Any, x: Any) -> None:
        refuse(v.size != x.size, NotedValueError, "formatted", wrong, (v.size, x.size))

    return check


def _piece_kernel(call: Call) -> str:
    """The name of the kernel of huge segments."""
    return call.function.kernel.replace("segment_", "piece_", 1)


def _forward(call: Call, dtype: Any) -> Built:
    """softmax, log-softmax, log-sum-exp."""
    kind, x = KINDS[dtype], call[call.names[0]]
    kernel, piece_kernel = call.kernel(), _piece_kernel(call)
    row_pointers, result_for, source_for = pointers(call), _result(call, dtype), converter(x, FLAT, dtype)
    target_for, deliver_to = exits(x, FLAT, call["out"])
    count_of = merged(lambda x, table: x.size)
    block_for = merged(lambda result, source: target_for(result, FLAT, source.shape, kind, source, None, None))
    operands: Run = merged(lambda table, x, y: (table, x, x, y))
    if call.function.result == (ROWS,):
        row_target, deliver_to = _row_target_for(call["out"])
        count_of = merged(lambda x, table: table.size - 1)
        block_for = merged(lambda result, source: row_target(result, result.size, kind, source))
        operands = merged(lambda table, x, y: (table, x, y))

    @merged
    def run(x: Any, indptr: Any, out: Any) -> Any:
        table = row_pointers(indptr, x.size)
        result = result_for(out, count_of(x, table))
        source = source_for(x, FLAT, x.shape, kind)
        y = block_for(result, source)
        kernel(0, 1, None, table, whole(table), source, y)
        over_huge(longest_step(table), "pieces", piece_kernel, operands(table, source, y))
        deliver_to(result, FLAT, y)
        return result

    return run, (*call.names, "out")


def _product(call: Call, dtype: Any) -> Built:
    """The product of the Jacobian of each segment, or of its transpose, with a vector."""
    name = call.names[2]
    x, v = call[call.names[0]], call[name]
    vector(call, name)
    dtype = widened(dtype, v)
    kind, kernel, piece_kernel, over = KINDS[dtype], call.kernel(), _piece_kernel(call), overlap(call["out"])
    row_pointers, result_for = pointers(call), _result(call, dtype)
    source_for, second_for = converter(x, FLAT, dtype), converter(v, FLAT, dtype)
    target_for, deliver_to = exits(x, FLAT, call["out"])
    check, room_for = same_size(call, name), _room_for(call["out"])

    @merged
    def run(x: Any, indptr: Any, v: Any, out: Any) -> Any:
        table = row_pointers(indptr, x.size)
        check(v, x)
        result = result_for(out, x.size)
        source, second = source_for(x, FLAT, x.shape, kind), second_for(v, FLAT, x.shape, kind)
        y = target_for(result, FLAT, x.shape, kind, source, second, None)
        covered = over(y, second)
        room = room_for(stack(kind, 0), table, kind, covered)
        kernel(0, 1, room, table, whole(table), source, second, y, covered)
        over_huge(longest_step(table), "product", piece_kernel, (table, source, second, y))
        deliver_to(result, FLAT, y)
        return result

    return run, (*call.names, "out")


def _labels(call: Call, name: str) -> Run:
    """The compiled ``targets, table, ignore_index -> labels``, which checks and copies the labels."""
    shape = f"{call.name}: {name} has shape ({{}},), expected ({{}},): one for each segment"
    named = f"{call.name}: {name}"
    ignored = is_ignored(not absent(call["ignore_index"]))
    kind = call[name].dtype
    if absent(call["ignore_index"]) and (kind.signed or kind.bitwidth < 64):  # an int64 holds each of them

        @merged
        def all_labels(targets: Any, table: Any, ignore_index: Any) -> Any:
            count = table.size - 1
            refuse(targets.size != count, NotedValueError, "formatted", shape, (targets.size, count))
            labels, found = copied(targets, (count,), np.int64), empty((1,), np.bool_)
            _misplaced(0, 1, None, table, whole(table), labels, found)
            refuse(found[0], NotedIndexError, "misplaced", named, (extent(labels), extent(table)))
            return labels

        return all_labels

    @compiled
    def labels_of(targets: Any, table: Any, ignore_index: Any) -> Any:
        count = table.size - 1
        if targets.size != count:
            complain("formatted", shape, (targets.size, count))
            raise NotedValueError
        labels = empty((count,), np.int64)
        for n in range(count):
            labels[n] = targets[n]
            length = table[n + 1] - table[n]
            if not (0 <= labels[n] < length or ignored(targets[n], ignore_index)):
                complain("segment_label", named, (n, targets[n], length))
                raise NotedIndexError
        return labels

    return labels_of


def _weights(call: Call, kind: Any) -> Run:
    """The compiled ``targets, sample_weight, ignore_index -> weights of the segments``; None if all are 1.

    `targets` is an array with one item for each segment.
    """
    given, ignoring = not absent(call["sample_weight"]), not absent(call["ignore_index"])
    if not (given or ignoring):
        return always(None)
    if given:
        vector(call, "sample_weight")
    wrong = f"{call.name}: sample_weight has shape ({{}},), expected ({{}},)"

    @compiled
    def weights_of(targets: Any, sample_weight: Any, ignore_index: Any) -> Any:
        if given and sample_weight.size != targets.size:
            complain("formatted", wrong, (sample_weight.size, targets.size))
            raise NotedValueError
        weights = empty((targets.size,), kind)
        for n in range(targets.size):
            weights[n] = sample_weight[n] if given else 1
            if ignoring and targets[n] == ignore_index:
                weights[n] = 0
        return weights

    return weights_of


class Weighing(NamedTuple):
    """What the losses of segments share: ``divisor``, ``weights`` and ``reduce`` are compiled."""

    given: Run
    divisor: Run
    rescaled: Run
    present: Run
    scale: Run
    reduce: Run


def _weighing(call: Call, kind: Any) -> Weighing:
    reduction = literal_reduction(call.name, call["reduction"])
    mean = reduction == "mean"
    counting = mean and not (absent(call["sample_weight"]) and absent(call["ignore_index"]))
    rescaled = scaled if counting else argument(1)
    reduce = argument(0) if reduction == "none" else reduced_for(mean)
    return Weighing(
        _weights(call, kind), divisor_for(counting), rescaled, kernel_weights(kind), scale_for(mean), reduce
    )


def _slope(call: Call, dtype: Any, x: Any) -> tuple[Run, Run, Run]:
    """Memory for the gradient: make the result, get the kernel's output, and copy that into the result."""
    if wanted(call) is FIRST:
        return NOWHERE
    return (_result(call, dtype), *exits(x, FLAT, call["out"]))


def _or_empty(call: Call, kind: Any) -> Run:
    """The compiled ``output or None -> output``, of size 0 if no gradient is returned."""
    if wanted(call) is FIRST:
        return merged(lambda y: stack(kind, 0))
    return argument(0)


def _loss(call: Call, dtype: Any) -> Built:
    """The cross-entropy with a position within each segment, perhaps with its gradient."""
    kind, name, x = KINDS[dtype], call.names[2], call[call.names[0]]
    _check_integers(call, name)
    check_ignore_index(call.name, call["ignore_index"])
    row_pointers, labels_of, weighing = pointers(call), _labels(call, name), _weighing(call, kind)
    kernel, piece_kernel, source_for = call.kernel(), _piece_kernel(call), converter(x, FLAT, dtype)
    weights_of, divisor_of, rescaled, present, scale_of, reduce = weighing
    result_for, target_for, deliver_to = _slope(call, dtype, x)
    returned = wanted(call)

    @merged
    def plain(
        smoothing: Any, table: Any, source: Any, labels: Any, factors: Any, y: Any, rows: Any, scale: Any
    ) -> None:
        operands = source, labels, factors, y, rows, scale[0], scale[1]
        kernel(0, 1, None, table, whole(table), *operands)
        over_huge(longest_step(table), "pieces", piece_kernel, (table, source, *operands))

    launch = plain
    smoothing = call["label_smoothing"]
    if not isinstance(smoothing, float):
        check_number(call.name, "label_smoothing", smoothing)
        choose = either(plain, _smoothed(call, kind))
        launch = merged(lambda smoothing, *given: choose(smoothing == 0, smoothing, *given))
    check = _smoothing_check(call)

    @merged
    def run(
        x: Any, indptr: Any, targets: Any, sample_weight: Any, ignore_index: Any, smoothing: Any, out: Any
    ) -> Any:
        check(smoothing)
        table = row_pointers(indptr, x.size)
        labels = labels_of(targets, table, ignore_index)
        weights = weights_of(targets, sample_weight, ignore_index)
        result = result_for(out, x.size)
        divisor, exponent = divisor_of(readable(weights, labels.shape, kind), 0, labels.size, kind)
        weights = rescaled(stack(kind, 1), weights, labels.size, -exponent, kind)
        factors, scale = present(weights), scale_of(divisor, kind)
        source, rows = source_for(x, FLAT, x.shape, kind), empty((labels.size,), kind)
        y = target_for(result, FLAT, x.shape, kind, source, None, None)
        launch(smoothing, table, source, labels, factors, y, rows, scale)
        deliver_to(result, FLAT, y)
        return returned(reduce(rows, divisor, kind), result)

    return run, (*call.names, "sample_weight", "ignore_index", "label_smoothing", "out")


def _smoothing_check(call: Call) -> Run:
    """The compiled check of the label smoothing."""
    if isinstance(call["label_smoothing"], float):
        return always(None)
    wrong = f"{call.name}: label_smoothing must be from 0 to 1"

    @merged
    def check(smoothing: Any) -> None:
        share = number(smoothing, np.float64)
        require((share >= 0.0) & (share <= 1.0), wrong)

    return check


def _smoothed(call: Call, kind: Any) -> Run:
    """The compiled form of `api.segments._smoothed`."""
    kernel = external("segments.segment_soft_cross_entropy")
    split, slope_of = compiled(smoothed_shares), _or_empty(call, kind)

    @merged
    def mixed(
        smoothing: Any, table: Any, source: Any, labels: Any, factors: Any, y: Any, rows: Any, scale: Any
    ) -> None:
        share = number(smoothing, np.float64)
        high = number(share, kind)
        shares = high, number(share - number(high, np.float64), kind), number(split(share, 1)[1], kind)
        results = rows, scale[0], scale[1]
        kernel(0, 1, None, table, whole(table), source, labels, *shares, factors, slope_of(y), *results)
        operands = share, source, labels, factors, y, *results
        over_huge(longest_step(table), "smoothed", "losses.soft_cross_entropy", (table, *operands))

    return mixed


def _entropy(call: Call, dtype: Any) -> Built:
    """The entropy of each segment, perhaps with its gradient."""
    kind, x = KINDS[dtype], call[call.names[0]]
    kernel, returned = call.kernel(), wanted(call)
    row_pointers, source_for, slope_of = pointers(call), converter(x, FLAT, dtype), _or_empty(call, kind)
    result_for, target_for, deliver_to = _slope(call, dtype, x)
    rows_for = merged(lambda out, count: empty((count,), kind))
    row_target, deliver_rows = _row_target_for(call["out"] if returned is FIRST else None)
    if returned is FIRST:
        rows_for = _result(call, dtype)

    @merged
    def run(x: Any, indptr: Any, out: Any) -> Any:
        table = row_pointers(indptr, x.size)
        result, entropies = result_for(out, x.size), rows_for(out, table.size - 1)
        source = source_for(x, FLAT, x.shape, kind)
        rows = row_target(entropies, entropies.size, kind, source)
        y = target_for(result, FLAT, x.shape, kind, source, None, None)
        kernel(0, 1, None, table, whole(table), source, slope_of(y), rows)
        over_huge(longest_step(table), "entropy", "entropy.entropy", (table, source, y, rows))
        deliver_to(result, FLAT, y)
        deliver_rows(entropies, FLAT, rows)
        return returned(entropies, result)

    return run, (*call.names, "out")


def _divergence(call: Call, dtype: Any) -> Built:
    """The divergence of each segment, perhaps with its gradient."""
    kind, name, x = KINDS[dtype], call.names[2], call[call.names[0]]
    vector(call, name)
    if not isinstance(constant(call["reverse"]), (bool, types.Boolean)):
        raise TypingError(f"{call.name}: reverse must be a bool, got {call['reverse']}")
    kernel, returned = call.kernel(), wanted(call)
    row_pointers, weighing, slope_of = pointers(call), _weighing(call, kind), _or_empty(call, kind)
    source_for, second_for = converter(x, FLAT, dtype), converter(call[name], FLAT, dtype)
    weights_of, divisor_of, rescaled, present, scale_of, reduce = weighing
    result_for, target_for, deliver_to = _slope(call, dtype, x)
    check = same_size(call, name)

    @merged
    def run(x: Any, indptr: Any, target_logits: Any, reverse: Any, sample_weight: Any, out: Any) -> Any:
        table = row_pointers(indptr, x.size)
        check(target_logits, x)
        count = table.size - 1
        weights = weights_of(readable(table, (count,), np.int64), sample_weight, None)
        result = result_for(out, x.size)
        divisor, exponent = divisor_of(readable(weights, (count,), kind), 0, count, kind)
        weights = rescaled(stack(kind, 1), weights, count, -exponent, kind)
        factors, scale = present(weights), scale_of(divisor, kind)
        source, second = source_for(x, FLAT, x.shape, kind), second_for(target_logits, FLAT, x.shape, kind)
        rows = empty((count,), kind)
        y = target_for(result, FLAT, x.shape, kind, source, second, None)
        operands = source, second, factors, slope_of(y), rows, reverse, scale[0], scale[1]
        kernel(0, 1, None, table, whole(table), *operands)
        over_huge(longest_step(table), "divergence", "divergences.kl_divergence", (table, *operands))
        deliver_to(result, FLAT, y)
        return returned(reduce(rows, divisor, kind), result)

    return run, (*call.names, "reverse", "sample_weight", "out")
