"""Kernels for a few short rows, for compiled callers: they need no working memory.

They compute one row at a time (`traversal.short_statistics`), with the same bits as the walk in columns.
"""

from fastsoftmax.kernels.activations import few_log_softmax, few_logsumexp, few_softmax
from fastsoftmax.kernels.jit import kernel
from fastsoftmax.kernels.losses import CrossEntropyOptions, short_cross_entropy
from fastsoftmax.kernels.simd.memory import memory, scratch
from fastsoftmax.kernels.traversal import Picks
from fastsoftmax.machine.entry import Block, Count, Floats, Integers, MaybeBlock, MaybeFloats, Number, Temperature


@kernel
def softmax(rows: Count, x: Block, y: Block, beta: Temperature) -> None:
    """`activations.softmax` of `rows` rows."""
    few_softmax(rows, x.shape[1], memory(x), memory(y), beta)


@kernel
def log_softmax(rows: Count, x: Block, y: Block, beta: Temperature) -> None:
    """`activations.log_softmax` of `rows` rows."""
    few_log_softmax(rows, x.shape[1], memory(x), memory(y), beta)


@kernel
def logsumexp(rows: Count, x: Block, sums: Floats) -> None:
    """`activations.logsumexp` of `rows` rows."""
    few_logsumexp(rows, x.shape[1], memory(x), memory(sums))


@kernel
def cross_entropy(
    rows: Count,
    x: Block,
    labels: Integers,
    weights: MaybeFloats,
    y: MaybeBlock,
    losses: Floats,
    scale: Number,
    scale_low: Number,
) -> None:
    """`losses.cross_entropy` of `rows` rows."""
    data, grad, results, classes = memory(x), memory(y), memory(losses), x.shape[1]
    picks = Picks(memory(labels), scratch(data, 1))
    options = CrossEntropyOptions(picks, memory(weights), scale, scale_low)
    for row in range(rows):
        short_cross_entropy(data, grad, classes, results, row, options)
