"""The public functions for arrays of other libraries in memory: PyTorch, JAX, and whatever speaks DLPack on a CPU.

`call` is used if one of the arguments is such an array. NumPy reads the memory of the arrays where it is, the
function is called again, and its results become arrays of the same kind, in the memory in which they are; JAX
makes a copy of them. `array_api_compat` says of which kind an array is. The results of arrays of a library that it
does not know are NumPy arrays.

PyTorch and JAX have faster ways than DLPack, which are used here: a conversion by DLPack takes 2 to 5 us each way,
and the call of a small array 0.7. A small tensor takes 3 us more than an array of NumPy, with `out` or without,
1.3 of them for PyTorch's conversions; an array of JAX 25 us, 16 of them for ``jax.numpy.asarray`` of the result.
"""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax.arrays.blocks import Array, named
from fastsoftmax.arrays.lazy import is_exchanged
from fastsoftmax.backends.calls import SPECIAL, arguments_of, public

_ON_CPU = (1, 3, 11)
"""DLPack's numbers of devices whose memory a processor reads: its own, and memory pinned for CUDA and ROCm."""


class Kind(NamedTuple):
    """The arrays of one library: how NumPy reads them, and how they are made of NumPy's; `name` is for messages.

    `view` is called with an array and takes little time, because checks would take longer than a conversion. Where
    it raises an error, `read` is called with the names of function and argument and the array: it knows more ways,
    and says what is wrong.
    """

    name: str
    view: Callable[[Any], Array]
    read: Callable[[str, str, Any], Array]
    make: Callable[[Array], Any]
    mutable: bool = True


def _prefix(function: str, key: str) -> str:
    return named(function.removeprefix(SPECIAL), key)


def _refused(function: str, key: str, what: str, advice: str) -> TypeError:
    return TypeError(f"{_prefix(function, key)} is {what}; {advice}")


# --- NumPy, and any library ---------------------------------------------------------------------------------


def _view(value: Any) -> Array:
    """An array by DLPack."""
    if value.__dlpack_device__()[0] not in _ON_CPU:
        raise TypeError
    array: Array = np.from_dlpack(value)
    return array


def _read(function: str, key: str, value: Any) -> Array:
    """The same, with errors that name function and argument."""
    try:
        device = value.__dlpack_device__()[0]
        if device in _ON_CPU:
            array: Array = np.from_dlpack(value)
            return array
    except Exception as error:  # each library has its own for what it cannot export
        raise TypeError(f"{_prefix(function, key)}: {error}") from error
    advice = "copy it to the memory of the processor first"
    raise _refused(function, key, f"on another device (number {device} of DLPack)", advice)


def _view_unknown(value: Any) -> Array:
    """An array as NumPy has always read it, or by DLPack where NumPy knows no other way."""
    return np.asarray(value) if hasattr(value, "__array__") else _view(value)


def _read_unknown(function: str, key: str, value: Any) -> Array:
    """The same, with errors that name function and argument."""
    return np.asarray(value) if hasattr(value, "__array__") else _read(function, key, value)


def _same(value: Any) -> Any:
    return value


def _never(function: str, key: str, value: Any) -> Array:
    """What is not called, because `_same` raises no errors."""
    raise AssertionError


_NUMPY = Kind("numpy.ndarray", _same, _never, _same)
_UNKNOWN = Kind("numpy.ndarray", _view_unknown, _read_unknown, _same)
_ALONE = Kind("", _same, _never, _same)
"""What goes with arrays of any kind: numbers, lists, strings."""


# --- PyTorch ------------------------------------------------------------------------------------------------


def _torch(torch: Any) -> Kind:
    """PyTorch's tensors."""

    def read(function: str, key: str, tensor: Any) -> Array:
        if tensor.requires_grad:
            advice = "call detach() first, because the result does not carry gradients"
            raise _refused(function, key, "a tensor that requires grad", advice)
        if not tensor.is_cpu:
            what = f"a tensor on the device {tensor.device}"
            raise _refused(function, key, what, "call cpu() first")
        if tensor.dtype is torch.bfloat16 and tensor.layout is torch.strided:
            import ml_dtypes

            array: Array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            return array
        try:
            found: Array = tensor.numpy()
        except (RuntimeError, TypeError, ValueError) as error:
            raise TypeError(f"{_prefix(function, key)}: {error}") from error
        return found

    def make(array: Array) -> Any:
        try:
            return torch.from_numpy(array)
        except TypeError:  # bfloat16, which is all that PyTorch has and NumPy has not
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)

    return Kind("torch.Tensor", torch.Tensor.numpy, read, make)


# --- JAX ----------------------------------------------------------------------------------------------------


def _jax(jnp: Any) -> Kind:
    """JAX's arrays."""
    import jax

    def view(array: Any) -> Array:
        if any(device.platform != "cpu" for device in array.devices()):
            raise TypeError
        return np.asarray(array)

    def read(function: str, key: str, array: Any) -> Array:
        if isinstance(array, jax.core.Tracer):
            ways = "jax.pure_callback calls functions of arrays from inside of jit, grad and vmap"
            advice = f"{ways}, and fastsoftmax.jax has operators"
            raise _refused(function, key, "traced by JAX and has no values yet", advice)
        platforms = {device.platform for device in array.devices()}
        if platforms != {"cpu"}:
            advice = "copy it first: jax.device_put(x, jax.devices('cpu')[0])"
            raise _refused(function, key, f"an array on the device {', '.join(sorted(platforms))}", advice)
        return np.asarray(array)

    return Kind("jax.Array", view, read, jnp.asarray, mutable=False)


# --- which one it is ----------------------------------------------------------------------------------------

# Arrays of one library have the same kind, whatever their classes are.
_of_class: dict[type, Kind] = dict.fromkeys((type(None), bool, int, float, str, list, tuple), _ALONE)
_of_class[np.ndarray] = _NUMPY


def _look_up(function: str, key: str, value: Any) -> Kind:
    """The kind of an argument of a class that has not been seen before."""
    kind = type(value)
    if not is_exchanged(kind):
        return _NUMPY if hasattr(kind, "__array__") and not issubclass(kind, np.generic) else _ALONE
    found = _UNKNOWN
    if hasattr(kind, "__array_namespace__") or isinstance(value, _tensor()):
        found = _kind_in(_compat(_prefix(function, key), kind), value)
    _of_class[kind] = found
    return found


def _tensor() -> Any:
    """PyTorch's class, () without PyTorch."""
    return getattr(sys.modules.get("torch"), "Tensor", ())


def _compat(prefix: str, kind: type) -> Any:
    """The module `array_api_compat`."""
    try:
        import array_api_compat
    except ImportError as error:
        raise ImportError(
            f"{prefix} is a {kind.__module__}.{kind.__qualname__}: arrays of other libraries need "
            "array-api-compat, which pip install 'fastsoftmax[interchange]' installs; else pass NumPy arrays"
        ) from error
    return array_api_compat


def _kind_in(compat: Any, value: Any) -> Kind:
    if compat.is_torch_array(value):
        return _kind_for(sys.modules["torch"], _torch)
    namespace = compat.array_namespace(value)
    return _kind_for(namespace, _jax if compat.is_jax_array(value) else _standard)


@cache
def _kind_for(namespace: Any, make: Callable[[Any], Kind]) -> Kind:
    return make(namespace)


def _standard(namespace: Any) -> Kind:
    """Arrays of a library that follows the array API standard."""
    return Kind(f"{namespace.__name__}.Array", _view, _read, namespace.from_dlpack)


# --- calls --------------------------------------------------------------------------------------------------


def call(name: str, *operands: Any, **keywords: Any) -> Any:
    """The result of a public function for arrays of one kind: of that kind, too."""
    one = public(name)
    if len(operands) == 1:  # most small calls have one array and no option but `out`: the shortest way
        defaults, out = one.defaults, None
        for key, value in keywords.items():
            if value is not defaults.get(key):
                if key != "out":
                    break
                out = value
        else:
            (value,) = operands
            common = _of_class.get(type(value)) or _look_up(name, one.first, value)
            if out is None or (type(out) is type(value) and common.mutable):
                try:
                    array = common.view(value)
                except Exception:
                    array = common.read(name, one.first, value)
                if out is None:
                    result = one.function(array)
                    if type(result) is np.ndarray:
                        return common.make(result)
                    return _returned(common, result, None, None)
                try:
                    written = common.view(out)
                except Exception:
                    written = common.read(name, "out", out)
                result = one.function(array, out=written)
                return out if result is written else _returned(common, result, written, out)
    given = arguments_of(one, operands, keywords)
    common, first, out = _ALONE, "", None
    for key, value in given.items():
        kind = _of_class.get(type(value)) or _look_up(name, key, value)
        if kind is _ALONE:
            continue
        if common is _ALONE:
            common, first = kind, key
        elif kind is not common and kind.name != common.name:
            pair = f"{first} ({_title(common, given[first])}) and {key} ({_title(kind, value)})"
            raise TypeError(f"{name.removeprefix(SPECIAL)}: {pair} differ; expected arrays of one kind")
        if key == "out":
            out = value
        try:
            given[key] = kind.view(value)
        except Exception:
            given[key] = kind.read(name, key, value)
    if out is not None and not common.mutable:
        raise TypeError(f"{_prefix(name, 'out')} is a {common.name}, which cannot be written to")
    result = one.function(**given)
    if out is None and type(result) is np.ndarray:
        return common.make(result)
    return _returned(common, result, given.get("out"), out)


def _title(kind: Kind, value: Any) -> str:
    """The class of an argument, for messages."""
    one = type(value)
    return f"{one.__module__}.{one.__qualname__}" if kind is _NUMPY else kind.name


def _returned(kind: Kind, result: Any, written: Any, out: Any) -> Any:
    """Results as arrays of this kind; `out` itself for the array that was read from it."""
    if isinstance(result, tuple):
        items = [_returned(kind, item, written, out) for item in result]
        return type(result)(*items) if hasattr(result, "_fields") else tuple(items)
    if result is None:
        return None
    if out is not None and result is written:
        return out
    return result if kind.name == _NUMPY.name else kind.make(np.asarray(result))
