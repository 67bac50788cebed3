"""Fresh processes: how long importing, compiling and the first call take. No other table includes compilation.

Every process measures itself, from its first line to its first softmax of (32, 10) float32.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

LOOP = """
import math, numba, numpy as np

@numba.njit{options}
def softmax(x, out):
    for i in range(x.shape[0]):
        row_max = x[i, 0]
        for j in range(x.shape[1]):
            row_max = max(row_max, x[i, j])
        total = x.dtype.type(0)
        for j in range(x.shape[1]):
            out[i, j] = math.exp(x[i, j] - row_max)
            total += out[i, j]
        for j in range(x.shape[1]):
            out[i, j] /= total
"""
NUMPY = "import numpy as np"
ARRAY = "x = np.ones((32, 10), np.float32)"


@dataclass(frozen=True)
class Start:
    """How one library is started: modules it needs, its import, its first call, and whether it finds its cache."""

    modules: tuple[str, ...]
    imports: str
    call: str
    cached: bool | None = None

    def installed(self) -> bool:
        """Whether its modules can be imported."""
        return all(find_spec(module) is not None for module in self.modules)


STARTS: dict[str, Start] = {
    "NumPy": Start((), NUMPY, f"{ARRAY}; e = np.exp(x - x.max(1, keepdims=True)); e / e.sum(1, keepdims=True)"),
    "fastsoftmax, compiling": Start((), "import numpy as np, fastsoftmax as fs", f"{ARRAY}; fs.softmax(x)", False),
    "fastsoftmax, from disk": Start((), "import numpy as np, fastsoftmax as fs", f"{ARRAY}; fs.softmax(x)", True),
    "Numba loop, compiling": Start(
        (), f"{NUMPY}; import loop", f"{ARRAY}; loop.softmax(x, np.empty_like(x))", False
    ),
    "Numba loop, from disk": Start(
        (), f"{NUMPY}; import loop", f"{ARRAY}; loop.softmax(x, np.empty_like(x))", True
    ),
    "SciPy": Start(("scipy",), f"{NUMPY}; import scipy.special", f"{ARRAY}; scipy.special.softmax(x, 1)"),
    "PyTorch": Start(("torch",), "import torch", "torch.softmax(torch.ones(32, 10), 1)"),
    "JAX": Start(("jax",), f"{NUMPY}; import jax", f"{ARRAY}; jax.block_until_ready(jax.jit(jax.nn.softmax)(x))"),
}


def once(name: str, directory: Path) -> tuple[float, float]:
    """Seconds of the import and of the first call in a new process; caches are in `directory`."""
    start = STARTS[name]
    place = directory / ("warm" if start.cached else "cold")
    place.mkdir(exist_ok=True)
    (place / "loop.py").write_text(LOOP.format(options="(cache=True)"), encoding="utf-8")
    if start.cached is False:
        for file in [*place.rglob("*.code"), *place.rglob("*.nb[ic]")]:
            file.unlink()
    code = (
        f"import sys, time; sys.path.insert(0, {str(place)!r}); start = time.perf_counter()\n{start.imports}\n"
        f"imported = time.perf_counter()\n{start.call}\nprint(imported - start, time.perf_counter() - imported)"
    )
    package = Path(__file__).parents[3]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
    variables |= {"FASTSOFTMAX_CACHE_DIR": str(place / "kernels"), "NUMBA_CACHE_DIR": str(place / "numba")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True, timeout=120
    )
    imported, called = map(float, done.stdout.split()[-2:])
    return imported, called


@dataclass(frozen=True)
class Startup:
    """Median seconds of one library."""

    name: str
    imported: float
    called: float


def of(libraries: Sequence[str]) -> list[str]:
    """The starts of those libraries that are chosen and installed; NumPy's is always there, as the yardstick."""
    chosen = {"NumPy", "fastsoftmax", *libraries}
    return [name for name, start in STARTS.items() if name.partition(",")[0] in chosen and start.installed()]


def measure(
    names: Sequence[str], repeats: int, advance: Callable[[], object], complain: Callable[[str], None]
) -> list[Startup]:
    """Medians of some repeats of the starts with these names, in turns."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="fastsoftmax-") as directory:
        for repeat in range(-1, repeats):
            for name in names:
                if repeat < 0 and STARTS[name].cached is not True:  # fills the cache
                    continue
                if name in samples:
                    try:
                        sample = once(name, Path(directory))
                    except (subprocess.SubprocessError, OSError) as error:
                        complain(f"start-up: {name} is left out: {error}")
                        del samples[name]
                    else:
                        if repeat >= 0:
                            samples[name].append(sample)
                if repeat >= 0:
                    advance()
    return [
        Startup(name, *(statistics.median(part) for part in zip(*found, strict=True)))
        for name, found in samples.items()
    ]
