"""Calls of kernels that were recorded, to be made again by other machine code on the same bytes.

A call is written as numbers (little-endian): the name; the memory that it reads and writes, as regions; its
arguments in their order. The C calling conventions of Linux pass integers (and addresses) and floats in separate
registers, and what is left when these are used up on the stack, in the order of the arguments. A float32 is the
lower half of a register or of a place on the stack.
"""

import ctypes
import ctypes.util
import platform
import struct
from typing import NamedTuple

import numpy as np

NUMBER, ADDRESS, TABLE, SYMBOL, FLOAT = range(5)
"""Kinds of arguments: a number; an offset in a region; the addresses of all regions; a function's address; the
bits of a float."""


_FLAGS = {"x86_64": (1, 4, 8), "aarch64": (1, 2, 4)}
"""The bits in which C tells that a floating-point exception was raised: invalid, division by zero, overflow."""


class Call(NamedTuple):
    """A call of the function for C of a variant."""

    name: str
    regions: list  # (address modulo 64, content)
    arguments: list  # (kind, number, region or bits, offset)

    def packed(self):
        """The bytes that aarch64.c reads."""

        def text(content):
            return struct.pack("<Q", len(content)) + content

        parts = [text(self.name.encode() + b"\0"), struct.pack("<Q", len(self.regions))]
        parts += [struct.pack("<Q", skew) + text(content) for skew, content in self.regions]
        parts += [struct.pack("<Q", len(self.arguments)), *(struct.pack("<QqQ", *one) for one in self.arguments)]
        return b"".join(parts)


def _float(value, dtype):
    content = np.float32(value).tobytes() + bytes(4) if dtype == "f" else np.float64(value).tobytes()
    return FLOAT, struct.unpack("<q", content)[0], 0


def _spans(arrays):
    """The memory of arrays, with those that overlap in one piece."""
    spans = []
    # An array without numbers may stand for a longer one, of which kernels read the beginning.
    whole = [one if one.size or one.base is None else one.base for one in arrays]
    for begin, end in sorted((one.ctypes.data, one.ctypes.data + one.nbytes) for one in whole if one.size):
        if spans and begin < spans[-1][1]:
            spans[-1][1] = max(end, spans[-1][1])
        else:
            spans.append([begin, end])
    return spans


def recorded(prefix, variant, arguments):
    """The call of a kernel with these arguments of Python, before it is made."""
    arrays = [one for one in arguments if isinstance(one, np.ndarray)]
    spans = _spans(arrays)
    found = []
    for one, kind in zip(arguments, variant.kinds, strict=True):
        if one is None:
            continue
        if isinstance(one, np.ndarray):
            at = one.ctypes.data
            inside = [(k, at - begin) for k, (begin, end) in enumerate(spans) if begin <= at < end]
            found.append((ADDRESS, *inside[0]) if inside else (NUMBER, 64, 0))
            ndim = int(kind[-1])
            found += [(NUMBER, n, 0) for n in (*one.shape, *[1] * (ndim - one.ndim))]
        elif isinstance(one, tuple):
            found += [_float(value, variant.dtype) for value in one]
        elif kind == "float":
            found.append(_float(one, variant.dtype))
        else:
            found.append((NUMBER, int(one), 0))
    regions = [(begin % 64, ctypes.string_at(begin, end - begin)) for begin, end in spans]
    found.append((ADDRESS, len(regions), 0))  # of the result
    regions.append((0, bytes(8)))
    return Call(f"{prefix}{variant.name}", regions, found)


def outcome(call, returned, raised, machine):
    """What a call returns, and the exceptions that it raises if it is a loop of a ufunc: others mean nothing."""
    return returned, [bool(raised & bit) for bit in _FLAGS[machine]] if "_loop." in call.name else []


def replayed(library, call):
    """Make a call with a library that is open: its `outcome`, and the content of all regions afterwards."""
    memory = [ctypes.create_string_buffer(len(content) + 128) for _, content in call.regions]
    places = []
    for room, (skew, content) in zip(memory, call.regions, strict=True):
        places.append((ctypes.addressof(room) + 63) // 64 * 64 + skew)
        ctypes.memmove(places[-1], content, len(content))
    table = (ctypes.c_void_p * len(places))(*places)
    made = {
        NUMBER: lambda number, _: ctypes.c_int64(number),
        ADDRESS: lambda region, offset: ctypes.c_int64(places[region] + offset),
        TABLE: lambda *_: ctypes.c_int64(ctypes.addressof(table)),
        SYMBOL: lambda region, _: ctypes.cast(library[call.regions[region][1][:-1].decode()], ctypes.c_void_p),
        FLOAT: lambda bits, _: ctypes.c_double.from_buffer_copy(struct.pack("<q", bits)),
    }
    values = [made[kind](*rest) for kind, *rest in call.arguments]
    function = library[call.name]
    function.restype = ctypes.c_int32
    maths = ctypes.CDLL(ctypes.util.find_library("m"))
    maths.feclearexcept(0x1F)
    returned = function(*values)
    raised = maths.fetestexcept(0x1F)
    return outcome(call, returned, raised, platform.machine()), [
        ctypes.string_at(at, len(one)) for at, (_, one) in zip(places, call.regions, strict=True)
    ]


def answers(calls, output):
    """The same as `replayed` for every call, from the bytes that aarch64.c writes."""
    found, at = [], 0
    for call in calls:
        returned, raised = struct.unpack_from("<qq", output, at)
        at += 16
        contents = []
        for _, content in call.regions:
            contents.append(output[at : at + len(content)])
            at += len(content)
        found.append((outcome(call, returned, raised, "aarch64"), contents))
    assert at == len(output)
    return found
