"""``python -m fastsoftmax.tools.wheels DIRECTORY``: the wheels of all platforms, built on this machine.

It runs in a checkout, with the extra ``wheels`` (`pip install -e '.[wheels]'`). LLVM makes the objects for every
platform, and ziglang links them. A wheel is the pure one with the libraries of its platform, under another tag.
The same sources and versions of Numba, llvmlite, hatchling and ziglang make the same bytes.
"""

import base64
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

from llvmlite import binding

from fastsoftmax.machine import library, status
from fastsoftmax.runtime import prebuilt
from fastsoftmax.tools import build


class Platform(NamedTuple):
    """What wheels are made for."""

    tag: str
    system: str
    """As `sys.platform` names it."""
    triple: str
    zig: str
    """The triple as zig names it."""


PLATFORMS = (
    Platform(
        "manylinux2014_x86_64.manylinux_2_17_x86_64.musllinux_1_1_x86_64",
        "linux",
        "x86_64-unknown-linux-gnu",
        "x86_64-linux-gnu",
    ),
    Platform(
        "manylinux2014_aarch64.manylinux_2_17_aarch64.musllinux_1_1_aarch64",
        "linux",
        "aarch64-unknown-linux-gnu",
        "aarch64-linux-gnu",
    ),
    Platform("macosx_11_0_arm64", "darwin", "arm64-apple-macosx11.0.0", "aarch64-macos.11.0"),
    Platform("macosx_10_13_x86_64", "darwin", "x86_64-apple-macosx10.13.0", "x86_64-macos.10.13"),
    Platform("win_amd64", "win32", "x86_64-pc-windows-gnu", "x86_64-windows-gnu"),
)


def _levels(platform: Platform) -> tuple[str, ...]:
    return library.LEVELS[status.architecture(platform.triple)]


def libraries(folder: Path) -> dict[str, list[Path]]:
    """Build all libraries in a folder: {tag: libraries and descriptions}."""
    zig = library.zig()
    if zig is None:
        raise RuntimeError("ziglang is not installed: pip install 'fastsoftmax[wheels]'")
    if binding.llvm_version_info[0] < status.WITH_INTRINSICS:
        raise RuntimeError("llvmlite is too old to compile for aarch64: 0.50 or newer is needed")
    goals = {
        f"{platform.zig}-{level}": library.target(level, platform.triple)
        for platform in PLATFORMS
        for level in _levels(platform)
    }
    with build.progress() as advance:
        library.compile_all(goals, folder, build.processes(), advance)
    made: dict[str, list[Path]] = {}
    for platform in PLATFORMS:
        for level in _levels(platform):
            command = [*zig, "-target", platform.zig]
            objects = folder / f"{platform.zig}-{level}"
            output = library.link(command, objects, prebuilt.file_name(level, platform.system), platform.system)
            library.describe(output, level)
            made.setdefault(platform.tag, []).extend((output, output.with_suffix(".json")))
    return made


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def platform_wheel(pure: Path, tag: str, files: list[Path], directory: Path) -> Path:
    """Write the wheel of a platform: the pure wheel with more files in it."""
    output = directory / pure.name.replace("-any.whl", f"-{tag}.whl")
    with zipfile.ZipFile(pure) as source, zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as wheel:
        record: list[str] = []

        def add(name: str, content: bytes) -> None:
            info = zipfile.ZipInfo(name, first.date_time)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, first.external_attr
            wheel.writestr(info, content)
            record.append(f"{name},sha256={_digest(content)},{len(content)}\n")

        first, *_ = source.infolist()
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith(".dist-info/WHEEL"):
                text = content.decode().replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
                tags = "".join(f"Tag: py3-none-{one}\n" for one in tag.split("."))
                content = text.replace("Tag: py3-none-any\n", tags).encode()
            if entry.filename.endswith(".dist-info/RECORD"):
                for path in files:
                    add(f"fastsoftmax/_prebuilt/{path.name}", path.read_bytes())
                record.append(f"{entry.filename},,\n")
                wheel.writestr(entry, "".join(record))
            else:
                add(entry.filename, content)
    return output


def main(directory: str) -> int:
    """Build all wheels; the exit status."""
    start = time.perf_counter()
    goal = Path(directory)
    goal.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fastsoftmax-") as name:
        work = Path(name)
        hatch = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(work)]
        checkout = Path(__file__).parents[2]
        try:
            subprocess.run(hatch, cwd=checkout, env={**os.environ, "FASTSOFTMAX_BUILD": "none"}, check=True)
            made = libraries(work)
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            print(f"no wheels: {error}", file=sys.stderr)
            return 1
        (pure,) = work.glob("*.whl")
        for tag, files in made.items():
            wheel = platform_wheel(pure, tag, files, goal)
            print(f"{wheel.stat().st_size / 1e6:.1f} MB {wheel}")
    print(f"all wheels in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
