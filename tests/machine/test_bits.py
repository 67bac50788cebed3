"""The same bits on every processor: recorded calls of kernels, made again by the libraries of all levels.

The libraries are built here for Linux, which takes minutes: these tests run with ``-m slow`` only.
"""

import ctypes
import os
import pickle
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import child
import numpy as np
import pytest
import replay

from fastsoftmax.api import ufuncs
from fastsoftmax.machine import library
from fastsoftmax.runtime import prebuilt

HERE = Path(__file__).parent
TRIPLES = {
    "v3": "x86_64-unknown-linux-gnu",
    "v4": "x86_64-unknown-linux-gnu",
    "aarch64": "aarch64-unknown-linux-gnu",
}
FOR_COMPILED_CODE = {f"loops.{name}" for name in ufuncs.DOCS} | {"segments.first_wrong"}
"""Kernels that only compiled code calls; the functions of ufuncs are compared as parts of their loops."""

BUILD = """
import sys
from pathlib import Path
from fastsoftmax.machine import library

if __name__ == "__main__":
    work, triples = Path(sys.argv[1]), dict(zip(sys.argv[2::2], sys.argv[3::2]))
    goals = {level: library.target(level, triple) for level, triple in triples.items()}
    library.compile_all(goals, work, 2, lambda *_: None)
    for level, triple in triples.items():
        command = [*library.zig(), "-target", triple.replace("-unknown", "")]
        library.describe(library.link(command, work / level, f"{level}.so", "linux"), level)
"""

BY_NUMBA = """
import sys
from pathlib import Path
from fastsoftmax.machine import frontend, library, translate

def write(*_):
    raise frontend.TranslationError

def here(work, folder, processes, progress, goals):
    work([one.name for one in library.variants()], folder, goals)

translate.write, library._in_processes = write, here
work, level, triple = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
library.compile_all({level: library.target(level, triple)}, work, 1, lambda *_: None)
command = [*library.zig(), "-target", triple.replace("-unknown", "")]
library.link(command, work / level, f"{level}.so", "linux")
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="loads libraries for Linux"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with x86-64"),
]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """The paths of the libraries of all levels."""
    pytest.importorskip("ziglang", reason="ziglang links for other processors")
    work = tmp_path_factory.mktemp("libraries")
    child.run(BUILD, work, *[text for pair in TRIPLES.items() for text in pair], timeout=3600)
    return {level: work / level / f"{level}.so" for level in TRIPLES}


@pytest.fixture(scope="module")
def calls(libraries):
    """Calls of kernels by the public functions."""
    level = prebuilt.level()
    if level not in ("v3", "v4"):
        pytest.skip("this processor has no AVX2")
    folder = libraries[level].parent
    folder.chmod(0o700)
    path = folder / "calls"
    variables = {
        **os.environ,
        "FASTSOFTMAX_CACHE_DIR": str(folder),
        "PYTHONPATH": f"{HERE}:{HERE.parent}:{child.PACKAGE.parent}",
    }
    command = [sys.executable, str(HERE / "record.py"), str(path)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    found = [replay.Call(*one) for one in pickle.loads(path.read_bytes())]
    dtypes = {one.name.rsplit(".", 2)[1] for one in found}
    assert dtypes >= {"e", "f", "d"}
    names = {one.name.rsplit(".", 2)[0] for one in library.variants()}
    kernels = {one.name.removeprefix(prebuilt.PREFIX).rsplit(".", 2)[0] for one in found}
    assert kernels == names - FOR_COMPILED_CODE
    return found


def different(calls, ours, theirs):
    """The kernels for which the results differ. The sign of NaN is that of the processor: all NaN are equal."""

    def plain(call, result):
        outcome, contents = result
        dtype = np.dtype(
            {"f": np.float32, "d": np.float64, "e": np.uint16}.get(call.name.rsplit(".", 2)[1], np.int64)
        )
        arrays = [np.frombuffer(one, dtype).copy() for one in contents if len(one) % dtype.itemsize == 0]
        for one in arrays:
            if dtype.kind == "f":
                one[np.isnan(one)] = np.nan
        return outcome, [one.tobytes() for one in arrays]

    triples = zip(calls, ours, theirs, strict=True)
    return sorted({call.name for call, one, other in triples if plain(call, one) != plain(call, other)})


def x86(path, calls):
    library = ctypes.CDLL(str(path))
    return [replay.replayed(library, call) for call in calls]


def test_they_compute(libraries, calls):
    """A call changes its memory: the comparisons below compare results."""
    results = x86(libraries["v3"], calls)
    changed = [
        [content for _, content in call.regions] != after for call, (_, after) in zip(calls, results, strict=True)
    ]
    assert sum(changed) > 0.8 * len(calls)
    assert all(returned == 0 for (returned, _), _ in results)
    raised = {tuple(flags) for (_, flags), _ in results}
    assert len(raised) > 3  # none, and each exception


def test_v3_and_v4_give_the_same_bits(libraries, calls):
    if prebuilt.level() != "v4":
        pytest.skip("this processor has no AVX-512")
    assert not different(calls, x86(libraries["v3"], calls), x86(libraries["v4"], calls))


def test_numba_gives_the_same_bits(libraries, calls, tmp_path):
    """Where it compiles the kernels, and `translate` does not write them."""
    child.run(BY_NUMBA, tmp_path, "v3", TRIPLES["v3"], timeout=3600)
    assert not different(calls, x86(libraries["v3"], calls), x86(tmp_path / "v3" / "v3.so", calls))


def test_aarch64_gives_the_same_bits(libraries, calls):
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("qemu-user is not installed")
    folder = libraries["aarch64"].parent
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static", "-O1"]
    program = folder / "aarch64"
    subprocess.run([*compiler, "-o", str(program), str(HERE / "aarch64.c")], check=True, capture_output=True)
    packed = b"".join(call.packed() for call in calls)
    command = [emulator, str(program), str(libraries["aarch64"])]
    done = subprocess.run(command, input=packed, capture_output=True, timeout=3600)
    assert done.returncode == 0, done.stderr.decode()
    assert not different(calls, x86(libraries["v3"], calls), replay.answers(calls, done.stdout))
