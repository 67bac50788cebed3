"""``fastsoftmax warmup``: compile the kernels ahead of time.

It builds the library of kernels that ``pip install`` builds, into the cache directory. Without a linker, or on a
processor that has no library, it compiles every kernel into a file of its own there.
"""

import sys
import time

from fastsoftmax.machine import library
from fastsoftmax.runtime import cache, prebuilt
from fastsoftmax.tools import build


def _library(processes: int) -> str:
    with build.progress() as advance:
        (made,) = library.build(build.levels("native"), cache.directory(), processes, advance)
    return f"library of {made.stat().st_size / 1e6:.1f} MB: {made}"


def _objects(processes: int) -> str:
    with build.progress() as advance:
        library.keep_all(processes, advance)
    files, size = cache.size()
    if not files:
        raise OSError(f"nothing can be kept in {cache.directory()}")
    return f"{files} kernels ({size / 1e6:.1f} MB) in {cache.directory()}"


def main(jobs: int | None) -> int:
    """``fastsoftmax warmup``; the exit status."""
    work = _library if prebuilt.level() and library.linker() else _objects
    start = time.perf_counter()
    directory = cache.directory()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not cache.is_private(directory):
            raise OSError(f"others can write to {directory}")
        made = work(jobs or build.processes())
    except (OSError, RuntimeError) as error:
        print(f"fastsoftmax warmup: {error}", file=sys.stderr)
        return 1
    print(f"compiled in {time.perf_counter() - start:.0f} s: {made}")
    return 0
