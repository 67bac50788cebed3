r"""Elementary functions as NumPy ufuncs, and for loops that Numba compiles.

They are made on first use: ``fastsoftmax.exp`` compiles the loops of `exp` for float32 and float64 (or takes them
from the disk cache), hands their addresses to NumPy, and tells Numba how to inline the function.

NumPy makes a ufunc out of C functions by ``PyUFunc_FromFuncAndDataAndSignatureAndIdentity``, which is part of its
public C interface but not of its Python one. ctypes calls it through the table ``_UFUNC_API``, which every
extension module uses. Where NumPy has no such table, or Numba makes no C functions (as under
``NUMBA_DISABLE_JIT=1``), `Plain` replaces the ufunc: it gives the same results, but has no methods of a ufunc.

The loops for float16 are compiled, too. Those for `ml_dtypes.bfloat16` are in Python, around the loop for float32.
They are added when a ufunc is made, if that library has been imported by then.
"""

import ctypes
import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import RLock
from typing import Any

import numpy as np

from fastsoftmax._vectors import BINARY
from fastsoftmax.arrays.blocks import is_masked
from fastsoftmax.machine.entry import entry
from fastsoftmax.runtime.lifetime import keep

DOCS = {
    "exp": r"""
Exponential function, element by element.

.. math:: e^x

Error at most 1.1 ulp. Overflow gives inf with NumPy's warning, underflow goes gradually to 0 without one.

Examples
--------
>>> import fastsoftmax as fs
>>> fs.exp([-1000.0, 0.0, 1.0])
array([0.        , 1.        , 2.71828183])
""",
    "expm1": r"""
Exponential function minus 1, accurate for small arguments.

.. math:: e^x - 1

Error at most 1.6 ulp. Overflow gives inf with NumPy's warning.

Examples
--------
>>> import fastsoftmax as fs
>>> float(fs.expm1(1e-20))
1e-20
""",
    "log": r"""
Natural logarithm.

.. math:: \log x

Error at most 1.5 ulp. 0 gives -inf and negative numbers nan, with NumPy's warnings.

Examples
--------
>>> import fastsoftmax as fs
>>> float(fs.log(10.0))
2.302585092994046
""",
    "log1p": r"""
Natural logarithm of 1 + x, accurate for small arguments.

.. math:: \log(1 + x)

Error at most 1.6 ulp. -1 gives -inf and numbers below it nan, with NumPy's warnings.

Examples
--------
>>> import fastsoftmax as fs
>>> float(fs.log1p(1e-20))
1e-20
""",
    "expit": r"""
Logistic function.

.. math:: \frac{1}{1 + e^{-x}}

Error at most 1.2 ulp, also far below 0. No warnings.

Examples
--------
>>> import fastsoftmax as fs
>>> fs.expit([-40.0, 0.0, 2.0])
array([4.24835426e-18, 5.00000000e-01, 8.80797078e-01])
""",
    "logit": r"""
Inverse of the logistic function.

.. math:: \log \frac{p}{1 - p}

Error at most 1.7 ulp, also around 1/2, where it is 0. 0 gives -inf, 1 inf, numbers outside nan. No warnings.

Examples
--------
>>> import fastsoftmax as fs
>>> fs.logit([0.0, 0.1, 0.5, 1.0])
array([       -inf, -2.19722458,  0.        ,         inf])
""",
    "log_expit": r"""
Logarithm of the logistic function.

.. math:: -\log(1 + e^{-x})

Error at most 1.9 ulp on either side of 0. No warnings.

Examples
--------
>>> import fastsoftmax as fs
>>> fs.log_expit([-1000.0, 0.0, 50.0])
array([-1.00000000e+03, -6.93147181e-01, -1.92874985e-22])
""",
    "softplus": r"""
Smooth maximum of 0 and x.

.. math:: \log(1 + e^x)

Error at most 1.9 ulp on either side of 0. No warnings.

Examples
--------
>>> import fastsoftmax as fs
>>> fs.softplus([-50.0, 0.0, 1000.0])
array([1.92874985e-22, 6.93147181e-01, 1.00000000e+03])
""",
    "logaddexp": r"""
Logarithm of the sum of exponentials of two numbers.

.. math:: \log(e^x + e^y)

Error at most 1.9 ulp where the greater number and what is added to it do not cancel, which they do around -log 2;
there at most eps in absolute terms. ``logaddexp.reduce`` sums along an axis, as `logsumexp` does faster. No
warnings.

Examples
--------
>>> import fastsoftmax as fs
>>> float(fs.logaddexp(-1000.0, -1000.0))
-999.3068528194401
""",
    "xlogy": r"""
x times the logarithm of y, and 0 for x = 0 unless y is nan.

.. math:: x \log y

Error at most 1.6 ulp. No warnings.

Examples
--------
>>> import fastsoftmax as fs
>>> fs.xlogy([0.0, 2.0], [0.0, 3.0])
array([0.        , 2.19722458])
""",
    "entr": r"""
One term of an entropy: 0 for 0, -inf for negative numbers.

.. math:: -x \log x

Error at most 1.6 ulp. No warnings.

Examples
--------
>>> import fastsoftmax as fs
>>> float(fs.entr([0.25, 0.75, 0.0]).sum())
0.5623351446188083
""",
    "tanh": r"""
Hyperbolic tangent.

.. math:: \tanh x

Error at most 1.9 ulp. No warnings.

Examples
--------
>>> import fastsoftmax as fs
>>> fs.tanh([-0.5, 0.0, 30.0])
array([-0.46211716,  0.        ,  1.        ])
""",
    "rel_entr": r"""
One term of a relative entropy: 0 for x = 0 and y >= 0, inf elsewhere outside of x > 0 and y > 0.

.. math:: x \log \frac{x}{y}

Error at most 1.7 ulp, also for x close to y. No warnings.

Examples
--------
>>> from fastsoftmax import special
>>> float(special.rel_entr(1.0, 2.0))
-0.6931471805599453
""",
}

NAMES = tuple(name for name in DOCS if name != "rel_entr")
"""The ufuncs in `fastsoftmax`; `rel_entr` is in `fastsoftmax.special` only."""

FLOATS = "efd"
_IDENTITIES = {"logaddexp": -np.inf}
# Places in the table of C functions, fixed since NumPy 1.16.
_FROM_FUNC_AND_DATA = 42
_REGISTER_LOOP = 2
_NO_IDENTITY, _IDENTITY_VALUE = -1, -3
_made: dict[tuple[str, str, str], Any] = {}
_listeners: list[Callable[[str, Any, str], None]] = []
_lock = RLock()
LOOP = "aaaa"  # the letters of the arguments of a loop
_without_bfloat16: list[Any] = []
PART = 1 << 16
"""Loops that NumPy computes take so many elements at a time."""


class Plain:
    """A function of arrays that is called like a ufunc; it is used where a ufunc cannot be made."""

    def __init__(self, name: str, kinds: str) -> None:
        self.__name__ = name
        self.__doc__ = DOCS[name]
        self.nin = 2 if name in BINARY else 1
        self._kinds = kinds

    def __repr__(self) -> str:
        return f"<function {self.__name__!r} in the place of a ufunc>"

    def __call__(self, *inputs: Any, out: Any = None, where: Any = True, dtype: Any = None) -> Any:
        """The function of `inputs`, broadcast against each other."""
        if len(inputs) != self.nin:
            raise TypeError(f"{self.__name__}: expected {self.nin} arguments, got {len(inputs)}")
        if any(map(is_masked, (*inputs, out))):  # a ufunc would keep the mask
            raise TypeError(f"{self.__name__}: got a masked array; pass its data, and where=~mask")
        arrays = [np.asarray(value) for value in inputs]
        wanted = np.result_type(*inputs) if dtype is None else np.dtype(dtype)
        found = next((kind for kind in self._kinds if np.can_cast(wanted, kind)), None)
        if found is None:
            raise TypeError(f"{self.__name__}: no loop for dtype {wanted}")
        computed = np.float64 if found == "d" else np.float32
        blocks = [np.ascontiguousarray(block, computed) for block in np.broadcast_arrays(*arrays)]
        result = np.empty(np.broadcast_shapes(*(array.shape for array in arrays)), computed)
        with np.errstate(all="ignore"):
            entry(f"loops.{self.__name__}")(*(block.reshape(-1) for block in blocks), result.reshape(-1))
            value = result.astype(wanted if wanted.name == "bfloat16" else found)
        if out is None and where is True:
            return value[()]
        target = np.empty_like(value) if out is None else out[0] if isinstance(out, tuple) else out
        np.copyto(target, value, where=where, casting="same_kind")
        return target


def _interface() -> Any:
    """The table of the addresses of NumPy's C functions for ufuncs."""
    try:
        module = importlib.import_module("numpy._core._multiarray_umath")
    except ModuleNotFoundError:  # before NumPy 2
        module = importlib.import_module("numpy.core._multiarray_umath")
    prototype = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    open_capsule = prototype(("PyCapsule_GetPointer", ctypes.pythonapi))
    return ctypes.cast(open_capsule(module._UFUNC_API, None), ctypes.POINTER(ctypes.c_void_p))


def from_loops(
    name: str, doc: str, operands: int, loops: list[tuple[str, int, int | None]], identity: float | None = None
) -> Any:
    """A ufunc made of C loops, each with the dtype of its operands, its address, and the address of its data."""
    functions = (ctypes.c_void_p * len(loops))(*[address for _, address, _ in loops])
    data = (ctypes.c_void_p * len(loops))(*[extra for _, _, extra in loops])
    numbers = bytes(np.dtype(kind).num for kind, _, _ in loops for _ in range(operands))
    types = ctypes.create_string_buffer(numbers, len(numbers))
    texts = name.encode(), doc.strip().encode()
    has = _NO_IDENTITY if identity is None else _IDENTITY_VALUE
    addresses = [ctypes.addressof(block) for block in (functions, data, types)]
    pointer, integer, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    arguments: list[Any] = [pointer, pointer, pointer, *[integer] * 4, text, text, integer, text, ctypes.py_object]
    create = ctypes.PYFUNCTYPE(ctypes.py_object, *arguments)(_interface()[_FROM_FUNC_AND_DATA])
    ufunc = create(*addresses, len(loops), operands - 1, 1, has, *texts, 0, None, identity)
    keep((functions, data, types, texts))
    return ufunc


# --- loops that NumPy computes ------------------------------------------------------------------------------

_Sizes = ctypes.POINTER(ctypes.c_ssize_t)
_Loop = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_void_p), _Sizes, _Sizes, ctypes.c_void_p)


class _Operand:
    """Numbers at an address in memory, which `numpy.asarray` makes an array of."""

    def __init__(self, address: int, count: int, step: int, dtype: np.dtype[Any]) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "shape": (count,),
            "strides": (step,),
            "typestr": dtype.str,
        }


def numpy_loop(function: Callable[..., Any], operands: int, dtype: np.dtype[Any]) -> tuple[str, int, int | None]:
    """A ufunc's loop that lets NumPy compute `function`, part by part."""

    def run(args: Any, dimensions: Any, steps: Any, data: Any) -> None:
        count = dimensions[0]
        blocks = (np.asarray(_Operand(args[i], count, steps[i], dtype)) for i in range(operands))
        *inputs, out = (block.view(dtype) for block in blocks)
        # In a reduction the output is an input, too: the numbers are computed one after the other.
        whole = steps[operands - 1] != 0 and not any(
            np.may_share_memory(x, out) and args[i] != args[operands - 1] for i, x in enumerate(inputs)
        )
        with np.errstate(all="ignore"):
            for start in range(0, count, PART if whole else 1):
                part = slice(start, start + PART if whole else start + 1)
                out[part] = function(*(x[part] for x in inputs))

    loop = keep(_Loop(run))
    address = ctypes.cast(loop, ctypes.c_void_p).value
    assert address is not None
    return dtype.char, address, None


def _add_bfloat16(ufunc: Any) -> None:
    """A loop for `ml_dtypes.bfloat16`, which the loop for float32 computes."""
    bfloat16 = sys.modules["ml_dtypes"].bfloat16
    dtype, operands = np.dtype(bfloat16), ufunc.nin + 1

    def through_float32(*inputs: Any) -> Any:
        return ufunc(*(x.astype(np.float32) for x in inputs)).astype(bfloat16)

    _, address, _ = numpy_loop(through_float32, operands, dtype)
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    arguments: list[Any] = [ctypes.py_object, integer, pointer, ctypes.POINTER(integer), pointer]
    register = ctypes.PYFUNCTYPE(integer, *arguments)(_interface()[_REGISTER_LOOP])
    register(ufunc, dtype.num, address, (integer * operands)(*[dtype.num] * operands), None)


def _add_loops_of_others() -> None:
    """The loops for bfloat16, once its library has been imported; NumPy does not know the dtype before."""
    while "ml_dtypes" in sys.modules and _without_bfloat16:
        _add_bfloat16(_without_bfloat16.pop())


# --- ufuncs -------------------------------------------------------------------------------------------------


def _loops(name: str, kinds: str) -> list[tuple[str, int, int | None]]:
    """The compiled loops of a function for these dtypes, in this order."""
    half = f"{'binary' if name in BINARY else 'unary'}_half"
    return [
        (kind, entry(f"loops.{half}_loop").address("e", LOOP), entry(f"loops.{name}_loop").address("f", LOOP))
        if kind == "e"
        else (kind, entry(f"loops.{name}_loop").address(kind, LOOP), None)
        for kind in kinds
    ]


def make(name: str, kinds: str = FLOATS, module: str = "fastsoftmax", more: Any = ()) -> Any:
    """The ufunc of this name, for these dtypes in this order, as an attribute of `module`; made once.

    `more` are loops to append.
    """
    key = (name, kinds, module)
    if key in _made:
        return _made[key]
    try:  # without our lock: a thread that compiles holds Numba's, and may wait for ours
        loops = [*_loops(name, kinds), *more]
    except NotImplementedError:
        loops = None
    with _lock:
        if key not in _made:
            ufunc: Any = Plain(name, kinds)
            if loops is not None:
                with suppress(AttributeError, ImportError, NotImplementedError, ValueError):  # see the docstring
                    operands = 3 if name in BINARY else 2
                    ufunc = from_loops(name, DOCS[name], operands, loops, _IDENTITIES.get(name))
                    _without_bfloat16.append(ufunc)
                    _add_loops_of_others()
            try:
                ufunc.__module__ = module  # where a pickle looks it up
            except AttributeError:  # before NumPy 2.2, where a pickle searches all modules
                pass
            _made[key] = ufunc
            for listener in _listeners:
                listener(name, ufunc, kinds)
        return _made[key]


def tell(listener: Callable[[str, Any, str], None]) -> None:
    """Call ``listener(name, ufunc, kinds)`` for each ufunc that has been made, and for each that will be."""
    with _lock:
        for (name, kinds, _), ufunc in _made.items():
            listener(name, ufunc, kinds)
        _listeners.append(listener)
