"""The kernels: compiled functions that read blocks of numbers and write blocks of numbers.

The contract of a kernel
------------------------
``kernel(start, stop, room, *blocks, *options)`` computes rows start .. stop; `room` is its working memory, which
may have size 0 where rows are contiguous. Every block is C-contiguous, in native byte order and aligned, but the
rows of the first block of some kernels may lie apart (the option `apart` of `traversal.traverse`). Inputs are
typed read-only; all floats have one dtype (float32 or float64), except that the uniform numbers of `sampling` are
float64, and that `halves` converts dtypes; shapes agree; outputs are allocated; labels were checked. Weights that
are all 1 may have size 0, at the address of a vector of ones. A kernel never validates, allocates, reshapes or
raises; it holds no GIL and starts no thread. An output may lie at exactly the same place as the first input. It
may lie over a second operand, which some kernels have to be told (`over`).

How they are built
------------------
`simd`
    SIMD vectors as values in Numba code, and the operations on them, written in LLVM.
`elementary`
    The parts of exp and log, and double-word arithmetic, for such vectors and floats, with error bounds.
`traversal`
    The two walks through a block, and the sums over a row that every function needs.
`activations`, `derivatives`, `divergences`, `entropy`, `losses`, `pieces`, `statistics`
    The functions. Each has one building block, and an entry point, which `jit.kernel` makes a kernel.
`focal`
    The focal loss and its derivatives: row factors for the building blocks of the cross-entropy.
`binary`
    Cross-entropy and focal loss of single logits.
`capped`
    The cross-entropy of capped logits, with a z-loss.
`segments`
    The same building blocks over ragged rows.
`sampling`
    Random classes, and the filters of logits that language models use.
`metrics`
    Metrics of rows with labels, and the derivatives of their loss with respect to the temperature, in exact sums.
`reductions`
    Sums over rows, for means and sums of losses.
`halves`
    float16 and bfloat16 as float32, and back.
`scalar`, `loops`
    Functions of single numbers; the inner loops of the ufuncs.
`jit`
    The decorators of kernels and building blocks.

How they are called
-------------------
By their names: `machine.entry.entry` for Python, `machine.external.external` for compiled code. The annotations of
its parameters say what a kernel takes. It has machine code (a *variant*) for each dtype and for each choice of the
arguments that are None. These modules are imported only when a variant has to be compiled, because they import
Numba, which takes longer than importing NumPy.
"""

from importlib import import_module
from types import ModuleType

from fastsoftmax.runtime import fork

_MODULES = frozenset(
    {
        "activations",
        "binary",
        "capped",
        "derivatives",
        "divergences",
        "elementary",
        "entropy",
        "focal",
        "halves",
        "jit",
        "loops",
        "losses",
        "metrics",
        "pieces",
        "reductions",
        "sampling",
        "scalar",
        "segments",
        "simd",
        "statistics",
        "traversal",
    }
)


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        with fork.importing:
            return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
