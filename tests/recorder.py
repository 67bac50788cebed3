"""A kernel that records which thread computes which rows, and takes as long as it is told."""

import itertools
import math
import threading
from typing import Any

import numpy as np

from fastsoftmax.machine import frontend, jit, targets
from fastsoftmax.machine.entry import Count, Floats, Kernel, Room
from fastsoftmax.runtime import prebuilt

CALLER, FIRST_HELPER = 0, 1
MILLISECOND = 400_000
"""About so many steps of `record` take a millisecond or more."""
_engines: list[Any] = []


def record(start: Count, stop: Count, room: Room, times: Floats, who: Floats, steps: Floats) -> None:
    """Count each row in `times`, write room[0] into `who`, then take steps[room[0]] steps.

    It fails at rows that were negative in `times`.
    """
    thread = int(room[0])
    for row in range(start, stop):
        if times[row] < 0:
            raise IndexError("a row that fails")
        times[row] += 1
        who[row] = thread
    value = 0.0
    for k in range(int(steps[thread])):
        value = 0.5 * value + math.sqrt(k)
    room[1] = value


def compiled(function: Any) -> Any:
    """The code of a kernel of float64 with no optional arguments, as `arrays.threads.run` takes it."""
    kernel = Kernel(f"recorder.{function.__name__}")
    kernel.define(function, None, None)
    variant = next(one for one in kernel.variants() if one.dtype == "d")
    _engines.append(jit.engine(targets.object_code(frontend.module(variant), targets.this_process())))
    name = f"{prebuilt.PREFIX}{variant.name}.py"
    return prebuilt.python_function(variant.name, _engines[-1].get_function_address(name))


class Recorder:
    """`record` with arrays that say how often each row was computed, and by whom. It stands for a kernel."""

    def __init__(self, rows: int, caller: float = 0, helpers: float = 0) -> None:
        """`caller` and `helpers` are the steps that a block takes there."""
        self.times, self.who = np.zeros(rows), np.full(rows, -1.0)
        self.steps = np.array([caller, *[helpers] * 30], float)
        self.asked: list[Any] = []
        self._numbers = itertools.count()

    def code(self, arguments: tuple[Any, ...]) -> Any:
        """The machine code."""
        self.asked.append((threading.get_ident(), arguments))
        if not _CODE:
            _CODE.append(compiled(record))
        return _CODE[0]

    def room(self) -> Any:
        """Working memory with the number of the thread: `CALLER`, then `FIRST_HELPER` and so on."""
        return np.array([next(self._numbers), 0.0])

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments behind the working memory."""
        return self.times, self.who, self.steps

    @property
    def threads(self) -> set[int]:
        """The threads that took part."""
        return {int(one) for one in self.who if one >= 0}


_CODE: list[Any] = []
