"""`fastsoftmax run` over a file beside copying it in the same blocks, and the memory it takes.

python benchmarks/streaming.py --gigabytes 2 --rounds 5 --directory /tmp
"""

import argparse
import contextlib
import io
import os
import shutil
import statistics
import time
from pathlib import Path

import numpy as np

from fastsoftmax.backends import stream
from fastsoftmax.tools.cli import main as command

CLASSES = 1000


def peak_memory():
    """The peak memory of this process, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def generate(path, gigabytes):
    """A file of logits, block by block."""
    rows = max(1, int(gigabytes * 1e9) // (4 * CLASSES))
    block = 20 * np.random.default_rng(0).random((4000, CLASSES), np.float32)
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, CLASSES)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, len(block)):
            file.write(block[: rows - start])


def copy_by_blocks(source, target):
    """Read and write in the blocks of `fastsoftmax run`."""
    room = memoryview(bytearray(stream.BLOCK_BYTES))
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        while count := reader.readinto(room):
            writer.write(room[:count])


def copy_by_mapping(source, target):
    """np.copyto between mappings, in the same blocks."""
    x = np.load(source, mmap_mode="r")
    y = np.lib.format.open_memmap(target, "w+", x.dtype, x.shape)
    step = max(1, stream.BLOCK_BYTES // (x.itemsize * x.shape[1]))
    for start in range(0, len(x), step):
        np.copyto(y[start : start + step], x[start : start + step])


def seconds(call, target):
    target.unlink(missing_ok=True)
    os.sync()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def softmax(source, target):
    with contextlib.redirect_stderr(io.StringIO()):
        assert command(["run", "softmax", str(source), "-o", str(target), "--force"]) == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path())
    arguments = parser.parse_args()
    source, target = (arguments.directory / f".streaming-{name}.npy" for name in ("in", "out"))
    ways = {
        "fastsoftmax run softmax": lambda: softmax(source, target),
        "copy in the same blocks": lambda: copy_by_blocks(source, target),
        "np.copyto of mappings": lambda: copy_by_mapping(source, target),
        "shutil.copyfile": lambda: shutil.copyfile(source, target),
    }
    try:
        generate(source, arguments.gigabytes)
        ways["fastsoftmax run softmax"]()  # compiles, and brings the file into memory if it fits
        print(f"peak memory {peak_memory() / 1e6:.0f} MB after {source.stat().st_size / 1e9:.2f} GB")
        times = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, call in ways.items():
                times[name].append(seconds(call, target))
        base = statistics.median(times["fastsoftmax run softmax"]) if arguments.rounds else 0.0
        for name, values in times.items():
            if values:
                middle = statistics.median(values)
                spread = f"{min(values):.2f} to {max(values):.2f}"
                print(f"{name:<26} {middle:7.2f} s, {spread}; run: {base / middle:.2f} x")
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
