"""Building the library of kernels for this machine, for `hatch_build.py` and ``fastsoftmax warmup``.

``python -m fastsoftmax.tools.build native|all DIRECTORY`` writes the library for this processor, or those for all
levels of this architecture, and their descriptions into a directory. It prints its progress, and as the last line
what it did. What it builds is also kept in the cache directory, from where the next environment takes it.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fastsoftmax.arrays.threads import usable_cpus
from fastsoftmax.machine import library
from fastsoftmax.machine.library import Progress
from fastsoftmax.runtime import cache, prebuilt

MOST_PROCESSES = 8
"""Each compiles the building blocks that others compile, too, and needs up to 2 GB."""

STEPS = 10
"""How many lines tell the progress where there is no terminal."""


@contextmanager
def progress() -> Iterator[Progress]:
    """A function that shows how much is done: a bar, or some lines without rich or a terminal."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:
        terminal = False
    else:
        console = Console(highlight=False)
        terminal = console.is_terminal
    if terminal:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("kernels"), TimeElapsedColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    shown = 0

    def line(done: int, total: int) -> None:
        nonlocal shown
        if done * STEPS // total > shown:
            shown = done * STEPS // total
            print(f"{done} of {total} kernels", flush=True)

    yield line


def processes() -> int:
    """How many processes compile if nobody says."""
    return min(usable_cpus(), MOST_PROCESSES)


def levels(choice: str) -> Sequence[str]:
    """The levels to build: that of this processor ("native"), or those of its architecture ("all")."""
    native = prebuilt.level()
    if native is None:
        raise RuntimeError("this processor is none of x86-64-v3, x86-64-v4 and aarch64")
    architecture = next(found for found in library.LEVELS.values() if native in found)
    return (native,) if choice == "native" else architecture


def _kept(choice: str, directory: Path) -> list[Path]:
    """The library of this processor, if one of the same sources has been built before."""
    found = prebuilt.search().library if choice == "native" else None
    return [] if found is None else [library.place(found.path, directory)]


def _keep(made: Sequence[Path]) -> None:
    """Keep libraries in the cache directory, unless others can write there, or it cannot be written to."""
    with suppress(OSError):
        cache.directory().mkdir(mode=0o700, parents=True, exist_ok=True)
        if cache.is_private(cache.directory()):
            for one in made:
                library.place(one, cache.directory())


def main(choice: str, directory: str) -> int:
    """Build; the exit status."""
    start = time.perf_counter()
    try:
        made, done = _kept(choice, Path(directory)), "taken from the cache directory"
        if not made:
            with progress() as advance:
                made, done = library.build(levels(choice), Path(directory), processes(), advance), "compiled"
            _keep(made)
    except (RuntimeError, OSError) as error:
        print(f"no compiled kernels: {error}")
        return 1
    size = sum(path.stat().st_size for path in made)
    names = " and ".join(path.stem for path in made)
    print(f"kernels {done} for {names} in {time.perf_counter() - start:.0f} s ({size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
