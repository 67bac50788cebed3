"""Facts about the machine for a bug report: versions, processor, threads, cache."""

import os
import platform
from collections.abc import Mapping
from importlib import metadata

from fastsoftmax import __version__
from fastsoftmax._vectors import VECTOR_BYTES
from fastsoftmax.arrays.threads import max_threads, usable_cpus
from fastsoftmax.runtime import cache, prebuilt

REQUIRED = ("numpy", "numba", "llvmlite")
OPTIONAL = ("scipy", "scikit-learn", "matplotlib", "rich", "torch", "jax", "optax")
REGISTERS = (
    ("avx512f", "AVX-512", 64),
    ("avx2", "AVX2", 32),
    ("avx", "AVX", 32),
    ("neon", "NEON", 16),
    ("sse2", "SSE2", 16),
)
"""LLVM's names of processor features, widest first, with the bytes of their registers."""
LEVELS = {"v4": "AVX-512", "v3": "AVX2", "aarch64": "NEON", None: ""}
"""The vector registers of the levels for which there are libraries of kernels."""


def version(package: str) -> str | None:
    """The version of an installed package, without importing it; None if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The maker's name of the processor if the system tells it, else Python's."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def registers(features: Mapping[str, bool]) -> tuple[str, int]:
    """The widest vector registers among features of a processor, and their bytes; ("", 0) if it has none."""
    return next(((called, width) for feature, called, width in REGISTERS if features.get(feature)), ("", 0))


def _vectors() -> tuple[str, str]:
    """LLVM's name for the processor, and how many of its registers a vector of the kernels takes."""
    try:
        from llvmlite import binding

        name, features = binding.get_host_cpu_name(), binding.get_host_cpu_features()
    except (ImportError, OSError, RuntimeError) as error:
        return "unknown", f"unknown ({type(error).__name__}: {error})"
    called, width = registers(features)
    if not width:
        return name, f"{VECTOR_BYTES} bytes, no vector registers that LLVM knows"
    count = VECTOR_BYTES // width
    return name, f"{VECTOR_BYTES} bytes = {count} {called} register{'s' * (count > 1)}"


def model() -> str:
    """LLVM's name for the processor, such as znver4: what makers' names like "AMD EPYC" leave open."""
    return _vectors()[0]


def simd() -> str:
    """The vector registers that the kernels use: those of the library, or of what they are compiled for."""
    if prebuilt.library() is not None:
        return LEVELS[prebuilt.level()]
    from fastsoftmax.machine import targets

    features = targets.this_process().features.split(",")
    return registers({feature[1:]: feature.startswith("+") for feature in features})[0]


def report() -> str:
    """All facts, one on each line."""
    name, vectors = _vectors()
    files, size = cache.size()
    facts = [("python", f"{platform.python_version()} ({platform.python_implementation()})")]
    facts += [("fastsoftmax", __version__)]
    facts += [(package, version(package) or "not installed") for package in REQUIRED]
    facts += [(package, found) for package in OPTIONAL if (found := version(package))]
    facts += [
        ("system", platform.platform()),
        ("processor", f"{processor()} ({platform.machine()}; LLVM: {name})"),
        ("vectors", vectors),
        ("cpus", f"{os.cpu_count()}, of which {usable_cpus()} usable by this process"),
        ("threads", f"{max_threads()} at most (own pool over serial kernels)"),
        ("library", prebuilt.search().text),
        ("cache", f"{cache.directory()}: {files} files, {size:,} bytes"),
    ]
    facts += [
        (key, value) for key, value in sorted(os.environ.items()) if key.startswith(("FASTSOFTMAX_", "NUMBA_"))
    ]
    width = max(len(key) for key, _ in facts)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in facts)
