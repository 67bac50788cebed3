"""Building the shared library of kernels that `runtime.prebuilt` loads.

The variants of all kernels are compiled by a few processes, which take them in turns. The front end runs once for
each variant. Its code is then optimised for every goal, a level of `prebuilt.level` on one system, and written
into one object each. A linker, which is a program of its own, makes the libraries.

Nothing but memset, memcpy and memmove is taken from the system, so that a library for Linux runs with every C
library. Objects contain no path, time or address: the same sources, Numba and linker make the same bytes.
"""

import gc
import hashlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llvmlite import binding

from fastsoftmax.machine import frontend, jit, targets, teams
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

LEVELS = {"x86_64": ("v3", "v4"), "aarch64": ("aarch64",)}
"""The levels of an architecture."""

_FLAGS = {
    "linux": ("-nostdlib", "-Wl,--strip-all", "-Wl,--build-id=none"),
    "darwin": ("-Wl,-S", "-Wl,-x"),
    "win32": ("-nostdlib", "-s", "-O2", "-ffreestanding", "-fno-sanitize=undefined"),
}
"""The linker's flags for a system as `sys.platform` names it."""

_WINDOWS = r"""
/* What compiled code needs of a C library on Windows, whose libraries cannot be named without their files. */
int DllMainCRTStartup(void *module, unsigned reason, void *reserved) { return 1; }

void *memset(void *to, int value, __SIZE_TYPE__ count) {
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(count) : "a"(value) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, __SIZE_TYPE__ count) {
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(count) : : "memory");
    return to;
}

/* Touch every page of a stack frame of rax bytes; no register changes. */
__asm__(".globl ___chkstk_ms\n"
        "___chkstk_ms:\n"
        "    pushq %rcx\n"
        "    pushq %rax\n"
        "    leaq 24(%rsp), %rcx\n"
        "1:  cmpq $0x1000, %rax\n"
        "    jb 2f\n"
        "    subq $0x1000, %rcx\n"
        "    orq $0, (%rcx)\n"
        "    subq $0x1000, %rax\n"
        "    jmp 1b\n"
        "2:  subq %rax, %rcx\n"
        "    orq $0, (%rcx)\n"
        "    popq %rax\n"
        "    popq %rcx\n"
        "    ret\n");
"""


def target(level: str, triple: str) -> targets.Target:
    """The target for a level of `prebuilt.level` and a system."""
    return targets.Target(triple, PROCESSORS[level], FEATURES[level])


def variants() -> list[Variant]:
    """All variants of all kernels, in a fixed order."""
    return sorted((one for kernel in kernels() for one in kernel.variants()), key=lambda one: one.name)


# --- compiling -----------------------------------------------------------------------------------------------


def _taken(names: Sequence[str], folder: Path) -> Iterator[str]:
    """Those of the variants that no other process has taken."""
    for name in names:
        try:
            (folder / f"{name}.taken").touch(exist_ok=False)
        except FileExistsError:
            continue
        yield name
        (folder / f"{name}.done").touch()


def _named(name: str) -> Variant:
    kernel, dtype, letters = name.rsplit(".", 2)
    return entry(kernel).variant(dtype, letters)


def _compile(names: Sequence[str], folder: Path, goals: dict[str, targets.Target]) -> None:
    """Write the objects of these variants; in a process of its own."""
    gc.disable()  # nothing that is compiled goes away before the process does
    for name in _taken(names, folder):
        code = frontend.module(_named(name))
        copies = [code, *(code.clone() for _ in list(goals)[1:])]  # `object_code` changes a module
        for (goal, made_for), one in zip(goals.items(), copies, strict=True):
            (folder / goal / f"{name}.o").write_bytes(targets.object_code(one, made_for))


def _keep(names: Sequence[str], folder: Path) -> None:
    """Compile these variants into the cache directory; in a process of its own."""
    for name in _taken(names, folder):
        jit.object_code(name, lambda name=name: _named(name))  # type: ignore[misc]


def _table(goal: targets.Target) -> bytes:
    """The object that defines the table of Python's functions."""
    kind = f"[{len(prebuilt.PYTHON)} x i64]"
    module = binding.parse_assembly(f"@{prebuilt.TABLE} = global {kind} zeroinitializer, align 8")
    return targets.object_code(module, goal)


def _in_processes(work: Any, folder: Path, processes: int, progress: Progress, *arguments: Any) -> None:
    """Call ``work(names, folder, *arguments)`` with all variants in some processes."""
    names = [one.name for one in variants()]
    total = len(names)
    # Spawned, not forked: a forked child has copies of locks that other threads may hold.
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(names, folder, *arguments)) for _ in range(processes)]
    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            time.sleep(0.1)
            progress(sum(1 for _ in folder.glob("*.done")), total)
            if any(worker.exitcode for worker in workers):
                break
    finally:  # those that are still at work are not needed: one has failed, or an exception is on its way
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a process that compiles kernels has failed")
    progress(total, total)


def compile_all(goals: dict[str, targets.Target], folder: Path, processes: int, progress: Progress) -> None:
    """Write the objects of all variants for each of `goals` into a folder of its name."""
    for name, goal in goals.items():
        (folder / name).mkdir()
        (folder / name / "table.o").write_bytes(_table(goal))
        code = targets.object_code(teams.module(goal.triple), goal)
        (folder / name / f"{teams.NAME}.o").write_bytes(code)
    _in_processes(_compile, folder, processes, progress, goals)


def keep_all(processes: int, progress: Progress) -> None:
    """Compile all variants into the cache directory, a file for each: what serves where there is no linker."""
    with tempfile.TemporaryDirectory(prefix="fastsoftmax-") as work:
        _in_processes(_keep, Path(work), processes, progress)


# --- linking -------------------------------------------------------------------------------------------------


def zig() -> list[str] | None:
    """The command of the linker in the Python package ziglang, which links for any system."""
    return [sys.executable, "-m", "ziglang", "cc"] if find_spec("ziglang") else None


def linker() -> list[str] | None:
    """The command of a linker for this system; None if there is none."""
    names = () if sys.platform == "win32" else ("gcc", "cc", "clang")
    found = next(filter(None, map(shutil.which, names)), None)
    return [found] if found else zig()


def link(command: Sequence[str], folder: Path, output: str, system: str = sys.platform) -> Path:
    """Make a shared library of the objects in a folder, there."""
    inputs = sorted(path.name for path in folder.glob("*.o"))
    if system == "win32":
        (folder / "windows.c").write_text(_WINDOWS)
        inputs.append("windows.c")
    (folder / "inputs").write_text("\n".join(inputs))
    name = (f"-Wl,-install_name,{output}",) if system == "darwin" else ()
    whole = [*command, "-shared", *_FLAGS[system], *name, "-o", output, "@inputs"]
    done = subprocess.run(whole, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode:
        first = next(iter(done.stderr.splitlines()), f"status {done.returncode}")
        raise RuntimeError(f"the linker {command[0]} says: {first}")
    content = (folder / output).read_bytes()
    exported = [prebuilt.PREFIX + path.stem for path in folder.glob("*.o") if path.name != "table.o"]
    for one in (prebuilt.TABLE, *exported):
        if f"{one}\0".encode() not in content:
            raise RuntimeError(f"the linker {command[0]} does not export {one}")
    return folder / output


def describe(library: Path, level: str) -> None:
    """Write the description of a library beside it."""
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    library.with_suffix(".json").write_text(prebuilt.describe(level, cache.sources(), digest))


def build(levels: Sequence[str], folder: Path, processes: int, progress: Progress) -> list[Path]:
    """Make the libraries of this system for some levels; their paths, in `folder`."""
    command = linker()
    if command is None:
        raise RuntimeError("there is no linker: none of gcc, cc, clang and the Python package ziglang")
    triple = binding.get_process_triple()
    if sys.platform == "win32":
        triple = triple.replace("msvc", "gnu")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fastsoftmax-") as name:
        work = Path(name)
        compile_all({level: target(level, triple) for level in levels}, work, processes, progress)
        return [place(_linked(command, work / level, level), folder) for level in levels]


def _linked(command: Sequence[str], objects: Path, level: str) -> Path:
    """Link objects, and describe the library."""
    output = link(command, objects, prebuilt.file_name(level))
    describe(output, level)
    return output


def place(library: Path, folder: Path) -> Path:
    """Put a library and its description into a folder, where old ones may be in use."""
    for made in (library, library.with_suffix(".json")):  # the description last: with it, the library is complete
        part = folder / f"{made.name}.{os.getpid()}{cache.UNFINISHED}"
        shutil.copyfile(made, part)
        part.chmod(0o644)  # whatever the umask says: a library that others can write to is not used
        part.replace(folder / made.name)
    return folder / library.name
