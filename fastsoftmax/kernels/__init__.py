"""The kernels: what turns blocks of numbers into blocks of numbers.

The contract of a kernel
------------------------
``kernel(start, stop, room, *blocks, *options)`` computes rows start .. stop, with `room` to work in. Every block
is C-contiguous, native and aligned, inputs are typed read-only, all floats have one dtype (float32 or float64),
shapes agree, outputs are allocated, labels were checked. A kernel never validates, allocates, reshapes or raises;
it holds no GIL and starts no thread. It may write an output over an input that lies at exactly the same place;
over a second operand only where `keep` is None.

How they are built
------------------
`simd`
    SIMD vectors as values in Numba code, and the operations on them. Knows LLVM.
`elementary`
    What exp and log are made of, and double-word arithmetic, for such vectors and floats, with error bounds.
`traversal`
    The two walks through a block, and the sums over a row that everything is made of.
`activations`, `derivatives`, `entropy`, `losses`, `pieces`
    The functions: one building block each, from which `jit.kernel` makes an entry point.
`few`
    The same bits as from the walk in columns, sooner for a few short rows: for compiled callers.
`segments`
    The same blocks over ragged rows.
`reductions`
    Sums over rows: what losses are reduced by.
`scalar`, `loops`, `inside`
    Functions of single numbers; the loops over arrays that ufuncs are made of; ufuncs in code that Numba compiles.
`jit`
    Numba's options and the disk cache.

The modules are imported on first use, because they import Numba, which takes longer than NumPy does.
"""

from importlib import import_module
from types import ModuleType

from fastsoftmax.runtime import fork

_MODULES = frozenset(
    {
        "activations",
        "derivatives",
        "elementary",
        "entropy",
        "few",
        "inside",
        "jit",
        "loops",
        "losses",
        "pieces",
        "reductions",
        "scalar",
        "segments",
        "simd",
        "traversal",
    }
)


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        with fork.importing:
            return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
