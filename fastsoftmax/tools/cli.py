"""The command line: ``fastsoftmax demo``, ``run``, ``bench``, ``warmup``, ``info`` and ``cache``.

A subcommand is a function from the parsed arguments to an exit status, and a few lines in `_parser`. It imports
other modules when it runs, so that ``--help`` is quick and needs no other package.

Exit statuses: 0, the work is done; 1, a check failed; 2, the work could not begin (a wrong argument, shape, dtype
or label, a missing, truncated or pickled file, a result that exists); 3, the work broke off (a full disk, a
failing worker); 128 + n, signal n ended it (130: Ctrl-C).

If the status of ``run`` is 0, all results have their names and the loss has been printed. Otherwise no result has
its name. So a full standard output ends a run with 3. A closed one is refused with 2 if a loss is to be printed.
If standard error is closed or full, its messages are lost, and nothing else changes.
"""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastsoftmax import _spec
from fastsoftmax.machine import entry

EXTRAS = {"matplotlib": "matplotlib", "rich": "rich", "scipy": "SciPy", "sklearn": "scikit-learn"}
"""{name by which a package of the extras is imported: name of the package}."""

DTYPES = ("float32", "float64")

BROKEN = 3
"""The exit status of work that broke off."""


def _needs(command: str, error: ModuleNotFoundError) -> int:
    """Name the missing package of a command whose extra has the same name."""
    missing = EXTRAS.get((error.name or "").partition(".")[0])
    if missing is None:
        raise error
    print(f"fastsoftmax {command} needs {missing}: pip install 'fastsoftmax[{command}]'", file=sys.stderr)
    return 2


def _run_demo(arguments: argparse.Namespace) -> int:
    output: Path = arguments.output
    if output.is_dir() or not os.access(output.absolute().parent, os.W_OK | os.X_OK):
        print(f"fastsoftmax demo: cannot write the picture to {output}", file=sys.stderr)
        return 2
    try:
        from fastsoftmax.tools import demo
    except ModuleNotFoundError as error:
        return _needs("demo", error)
    return 0 if demo.run(output) else 1


def _shape(text: str) -> tuple[int, ...]:
    """A shape as it is typed: 1000x10."""
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape such as 1000x10 or 8x21x512x512")
    return shape


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is less than 1")
    return value


def _run_bench(arguments: argparse.Namespace) -> int:
    try:
        from fastsoftmax.tools.bench import command

        return command.main(arguments)
    except ModuleNotFoundError as error:
        return _needs("bench", error)


def _run_warmup(arguments: argparse.Namespace) -> int:
    from fastsoftmax.tools import warmup

    return warmup.main(arguments.jobs)


def _run_run(arguments: argparse.Namespace) -> int:
    from fastsoftmax.backends import stream

    return stream.run(arguments)


def _run_info(arguments: argparse.Namespace) -> int:
    from fastsoftmax.tools import info

    print(info.report())
    return 0


def _run_cache(arguments: argparse.Namespace) -> int:
    from fastsoftmax.runtime import cache

    libraries = sum(status.st_size for _, status in cache.libraries())
    files, size = cache.clear() if arguments.clear else cache.size()
    kernels = f"{files} compiled kernels ({size / 1e6:.1f} MB)"
    if libraries:
        kernels += f" and a library of kernels ({libraries / 1e6:.1f} MB)"
    if not arguments.clear:
        print(f"{kernels} in {cache.directory()}")
        return 0
    print(f"Removed {kernels} from {cache.directory()}")
    left, _ = cache.size()
    if left:
        print(f"fastsoftmax cache: {left} could not be removed", file=sys.stderr)
    return 1 if left else 0


COMMANDS = (*(function.command for function in _spec.FUNCTIONS.values() if function.command), "metrics")
"""What `fastsoftmax run` runs."""


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="a function over files of any size, here or on a Dask cluster",
        description="Run a function over .npy files, or Zarr arrays (extra zarr), in blocks: they may be larger "
        "than memory. The result gets its name when it is complete. A loss is printed, and so are metrics: loss, "
        "perplexity, accuracies, Brier score, calibration error and entropy of logits with labels.",
        usage="fastsoftmax run FUNCTION INPUT [-o OUTPUT] [options]",
    )
    run.add_argument("function", choices=COMMANDS, metavar="FUNCTION", help=", ".join(COMMANDS))
    run.add_argument("input", type=Path, metavar="INPUT", help="logits or features: a .npy file or a Zarr array")
    run.add_argument("-o", "--output", type=Path, metavar="FILE", help="the result, Zarr if it ends in .zarr")
    run.add_argument("--axis", type=int, default=-1, metavar="N", help="the axis of the classes (%(default)s)")
    run.add_argument("--temperature", type=float, metavar="T", help="1 if not given")
    run.add_argument("--top-k", type=int, metavar="K", help="for filter-logits: how many classes are kept")
    run.add_argument("--top-p", type=float, metavar="P", help="for filter-logits: their probability together")
    run.add_argument("--min-p", type=float, metavar="P", help="for filter-logits: relative to the greatest one")
    run.add_argument("--where", type=Path, metavar="FILE", help="bools: which entries take part")
    run.add_argument("--from-probs", action="store_true", default=None, help="INPUT holds probabilities")
    run.add_argument("--tangent", type=Path, metavar="FILE", help="for *-jvp and cross-entropy-hvp")
    run.add_argument("--cotangent", type=Path, metavar="FILE", help="for *-vjp")
    run.add_argument("--targets", type=Path, metavar="FILE", help="class indices, or a distribution for each row")
    run.add_argument(
        "--target-logits", type=Path, metavar="FILE", help="for *-divergence: the logits of the targets"
    )
    run.add_argument("--reverse", action="store_true", default=None, help="for kl-divergence: KL(p || q)")
    run.add_argument("--beta", type=float, metavar="B", help="for js-divergence: the share of the targets (0.5)")
    run.add_argument(
        "--weight", type=Path, metavar="FILE", help="for linear-*: the weights, one row for each class"
    )
    run.add_argument("--bias", type=Path, metavar="FILE", help="for linear-*: one number for each class")
    run.add_argument("--grad", type=Path, metavar="FILE", help="for the gradient with respect to INPUT")
    run.add_argument("--class-weight", type=Path, metavar="FILE", help="one number for each class")
    run.add_argument("--sample-weight", type=Path, metavar="FILE", help="one number for each row")
    run.add_argument("--ignore-index", type=int, metavar="N", help="the class index of rows that do not count")
    run.add_argument("--label-smoothing", type=float, metavar="S", help="from 0 to 1")
    run.add_argument("--z-loss", type=float, metavar="Z", help="the factor of the square of the log-sum-exp")
    run.add_argument("--softcap", type=float, metavar="C", help="replace logits by C tanh(logits/C) first")
    run.add_argument("--json", action="store_true", default=None, help="metrics as JSON, with all bins")
    run.add_argument("--gamma", type=float, metavar="G", help="for focal-loss: 2 if not given")
    run.add_argument("--reduction", choices=("mean", "sum", "none"), help="mean if not given")
    run.add_argument("--threads", type=int, metavar="N", help="at most so many threads")
    run.add_argument("--force", action="store_true", help="overwrite results that exist")
    run.add_argument(
        "--scheduler", metavar="ADDRESS", help="hand the work to this Dask scheduler, whose workers see the files"
    )
    run.set_defaults(run=_run_run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastsoftmax", description="Softmax, cross-entropy and their derivatives for NumPy arrays."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="fit handwritten digits with the library, check the result, time it, draw it",
        description="Fit a multinomial logistic regression to scikit-learn's handwritten digits with the "
        "library's loss and gradient, check the result against scikit-learn and finite differences, time "
        "it against other libraries, and draw some digits with their predicted distributions.",
    )
    demo.add_argument(
        "--output", type=Path, default=Path("digits.png"), metavar="FILE", help="the picture (%(default)s)"
    )
    demo.set_defaults(run=_run_demo)

    bench = commands.add_parser(
        "bench",
        help="measure the speed beside NumPy, SciPy, scikit-learn, PyTorch, JAX, Optax and a plain Numba loop",
        description="Measure the speed of the library beside those that are installed of NumPy, SciPy, "
        "scikit-learn, PyTorch, JAX, Optax and a plain Numba loop, with the same number of threads and, but for "
        "--quick, with one. Every result is compared with ours before it is timed. Names may be shortened to "
        "their beginnings; several may be given.",
    )
    names: Any = {"action": "extend", "nargs": "+", "metavar": "NAME"}
    bench.add_argument("--function", **names, help="functions to measure, such as softmax or 'softmax, out='")
    bench.add_argument(
        "--shape",
        action="extend",
        nargs="+",
        type=_shape,
        metavar="SHAPE",
        help="shapes of the logits, such as 1000x10 or 8x21x512x512 (softmax over axis 1)",
    )
    bench.add_argument("--dtype", action="extend", nargs="+", choices=DTYPES, help="float32, float64 or both")
    bench.add_argument("--library", **names, help="libraries to compare with")
    bench.add_argument("--threads", type=_count, metavar="N", help="threads for every library")
    bench.add_argument("--seconds", type=_positive, metavar="S", help="time for each row of the tables")
    bench.add_argument("--quick", action="store_true", help="a small choice, in less than a minute")
    bench.add_argument(
        "--map",
        action="store_true",
        help="a table of our time relative to the best peer's, for small to middle shapes and six functions",
    )
    bench.add_argument("--picture", type=Path, metavar="FILE", help="draw the map into this file (.svg or .png)")
    bench.add_argument(
        "--output",
        type=Path,
        metavar="DIRECTORY",
        help="write results.json, results.md and speed.png there, after measuring what the picture needs; or "
        "map.json and map.md of a map",
    )
    bench.set_defaults(run=_run_bench)

    warmup = commands.add_parser(
        "warmup",
        help="compile the kernels into the cache directory ahead of time",
        description="Compile all kernels into one library in the cache directory, in parallel processes: for "
        "installations without compiled kernels, such as editable ones, where the first call should not wait. "
        "Without a linker they become one file each. FASTSOFTMAX_CACHE_DIR says where they go.",
    )
    warmup.add_argument("--jobs", type=_count, metavar="N", help="processes (default: one a CPU, at most 8)")
    warmup.set_defaults(run=_run_warmup)
    _add_run(commands)

    info = commands.add_parser(
        "info",
        help="print versions, processor, threads and cache, for a bug report",
        description="Print versions, processor, threads and cache as plain text for a bug report.",
    )
    info.set_defaults(run=_run_info)

    cache = commands.add_parser(
        "cache",
        help="show or empty the disk cache of compiled kernels",
        description="Show or empty the disk cache of compiled kernels. What is removed is compiled again "
        "when it is next needed.",
    )
    action = cache.add_mutually_exclusive_group(required=True)
    action.add_argument("--info", action="store_true", help="print the directory, and how much is in it")
    action.add_argument("--clear", action="store_true", help="remove all compiled kernels")
    cache.set_defaults(run=_run_cache)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit status, as the module's docstring explains it.
    """
    _fill_descriptors()
    try:
        status = _command(arguments)
    except SystemExit as end:  # argparse has printed the help, or what is wrong
        if not _flush() and not end.code:
            return BROKEN
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        status = BROKEN  # a full disk, or a reader of standard output who is gone
        if sys.stderr is not None:
            with suppress(OSError):
                print(f"fastsoftmax: {error.strerror}", file=sys.stderr)
    return status if _flush() else status or BROKEN


def _fill_descriptors() -> None:
    """Open the null device where a standard stream is closed.

    Otherwise a file that is opened later gets the number of that stream, and receives the text that a library
    writes to it.
    """
    with suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)


def _flush() -> bool:
    """Write out the buffers of the standard streams, and return whether standard output could be written.

    Text that cannot be written is dropped. Otherwise Python tries again when it ends, and exits with another
    status.
    """
    taken = True
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            taken = taken and stream is not sys.stdout
            with suppress(OSError, ValueError):
                number, null = stream.fileno(), os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, number)
                os.close(null)
    return taken


def _say_compiling() -> None:
    """Say once in a process what takes seconds."""
    entry.on_compilation = lambda: None
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print("fastsoftmax: compiling kernels, which the next process will find", file=sys.stderr, flush=True)


def _command(arguments: Sequence[str] | None) -> int:
    """As `main`, without the care for the standard streams."""
    entry.on_compilation = _say_compiling
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.version:
        from fastsoftmax import __version__

        print(f"fastsoftmax {__version__}")
        return 0
    if not hasattr(parsed, "run"):
        parser.print_help()
        return 2
    status: int = parsed.run(parsed)
    return status
