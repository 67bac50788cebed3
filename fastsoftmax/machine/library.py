"""Building the shared library of kernels that `runtime.prebuilt` loads.

The variants of all kernels are compiled by a few processes, each of which takes those of one dtype, because they
share building blocks. Every process writes one object for each variant and target; a linker, which is a program of
its own, makes one library for each target of its objects.
"""

import gc
import hashlib
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llvmlite import binding

from fastsoftmax.machine import frontend, targets
from fastsoftmax.machine.entry import Variant, entry, kernels
from fastsoftmax.runtime import cache, prebuilt

Progress = Callable[[int, int], None]
"""It is called with the number of variants that are done, and the number of all."""

_BASELINE = "+cx16,+popcnt,+sahf,+sse3,+sse4.1,+sse4.2,+ssse3"
_V3 = f"{_BASELINE},+avx,+avx2,+f16c,+fma"
_V4 = f"{_V3},+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl,+evex512,-prefer-256-bit"
FEATURES = {"v3": _V3, "v4": _V4, "aarch64": "+neon,+fp-armv8"}
"""What the code of a library may use of a processor: no more than `prebuilt.level` asks for."""
PROCESSORS = {"v3": "x86-64", "v4": "x86-64", "aarch64": "generic"}


def target(level: str, triple: str) -> targets.Target:
    """The target for a level of `prebuilt.level` and a system."""
    return targets.Target(triple, PROCESSORS[level], FEATURES[level])


def variants() -> list[Variant]:
    """All variants of all kernels, in a fixed order."""
    return sorted((one for kernel in kernels() for one in kernel.variants()), key=lambda one: one.name)


def _shares(count: int) -> list[list[str]]:
    """The names of all variants, divided among `count` processes."""
    by_dtype: dict[str, list[str]] = {}
    for one in variants():
        by_dtype.setdefault("d" if one.dtype == "d" else "f", []).append(one.name)
    pieces = max(1, count // 2)
    found = [names[k::pieces] for names in by_dtype.values() for k in range(pieces)]
    return found if count > 1 else [[name for names in found for name in names]]


def _compile(names: Sequence[str], goals: dict[str, targets.Target], folder: str) -> None:
    """Write the objects of these variants; in a process of its own."""
    gc.disable()  # nothing that is compiled goes away before the process does
    for name in names:
        kernel, dtype, letters = name.rsplit(".", 2)
        code = frontend.module(entry(kernel).variant(dtype, letters)).as_bitcode()
        for level, goal in goals.items():
            made = targets.object_code(binding.parse_bitcode(code), goal)
            (Path(folder) / level / f"{name}.o").write_bytes(made)
        (Path(folder) / f"{name}.done").touch()


def _table(goal: targets.Target) -> bytes:
    """The object that defines the table of Python's functions."""
    kind = f"[{len(prebuilt.PYTHON)} x i64]"
    module = binding.parse_assembly(f"@{prebuilt.TABLE} = global {kind} zeroinitializer, align 8")
    return targets.object_code(module, goal)


def compile_all(goals: dict[str, targets.Target], folder: Path, processes: int, progress: Progress) -> None:
    """Write the objects of all variants for each level in `goals` into a folder of its name."""
    for level, goal in goals.items():
        (folder / level).mkdir()
        (folder / level / "table.o").write_bytes(_table(goal))
    shares = _shares(processes)
    total = sum(map(len, shares))
    # Spawned, not forked: a forked child has copies of locks that other threads may hold.
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_compile, args=(share, goals, str(folder))) for share in shares]
    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            time.sleep(0.1)
            progress(sum(1 for _ in folder.glob("*.done")), total)
            if any(worker.exitcode for worker in workers):
                break
    finally:
        for worker in workers:
            if worker.exitcode:
                _stop(workers)
            worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a process that compiles kernels has failed")
    progress(total, total)


def _stop(workers: Sequence[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        worker.terminate()


def linker() -> list[str] | None:
    """The command of a linker for this system; None if there is none."""
    for name in ("gcc", "cc", "clang"):
        path = shutil.which(name)
        if path is not None:
            return [path]
    try:
        import ziglang  # type: ignore[import-untyped]  # noqa: F401
    except ModuleNotFoundError:
        return None
    return [sys.executable, "-m", "ziglang", "cc"]


def link(command: Sequence[str], objects: Sequence[Path], output: Path) -> None:
    """Make a shared library of objects."""
    with tempfile.NamedTemporaryFile("w", suffix=".list") as names:
        names.write("\n".join(map(str, objects)))
        names.flush()
        flags = ["-shared", "-Wl,--strip-all", "-Wl,--build-id=none"]
        subprocess.run([*command, *flags, "-o", str(output), f"@{names.name}"], check=True, capture_output=True)


def describe(library: Path) -> None:
    """Write the description of a library beside it."""
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    text = json.dumps({"sources": cache.sources(), "library": digest})
    library.with_suffix(".json").write_text(text + "\n")


def build(level: str, folder: Path, processes: int, progress: Progress) -> Path:
    """Make the library of this system for a level; its path, in `folder`."""
    command = linker()
    if command is None:
        raise RuntimeError("there is no linker: none of gcc, cc, clang and the Python package ziglang")
    goal = target(level, binding.get_process_triple())
    with tempfile.TemporaryDirectory(prefix="fastsoftmax-") as work:
        compile_all({level: goal}, Path(work), processes, progress)
        output = Path(work) / prebuilt.file_name(level)
        link(command, sorted((Path(work) / level).glob("*.o")), output)
        describe(output)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for made in (
            output,
            output.with_suffix(".json"),
        ):  # the description last: with it, the library is complete
            shutil.copyfile(made, folder / f"{made.name}.part")
            (folder / f"{made.name}.part").replace(folder / made.name)
    return folder / output.name
