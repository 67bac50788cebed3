"""The command line: ``fastsoftmax run``, ``demo``, ``bench``, ``info``, ``warmup``, ``cache``, ``completion``.

A subcommand is a function from the parsed arguments to an exit status, and a few lines in `_parser`. It imports
other modules when it runs, so that ``--help`` is quick and needs no other package. argparse is imported in a
quarter of Click's time (17 ms and 70 ms were measured).

Exit statuses: 0, the work is done; 1, a check failed; 2, the work could not begin (a wrong argument, shape, dtype
or label, a missing, truncated or pickled file, a result that exists); 3, the work broke off (a full disk, a
failing worker); 128 + n, signal n ended it (130: Ctrl-C).

If the status of ``run`` is 0, all results have their names and the loss has been printed. Otherwise no result has
its name. So a full standard output ends a run with 3. A closed one is refused with 2 if a loss is to be printed.
If standard error is closed or full, its messages are lost, and nothing else changes.
"""

import argparse
import difflib
import errno
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastsoftmax import _spec
from fastsoftmax.machine import entry

EXTRAS = {
    "matplotlib": "matplotlib",
    "rich": "rich",
    "shtab": "shtab",
    "scipy": "SciPy",
    "sklearn": "scikit-learn",
}
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
    with suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")


def _whole(text: str, least: int = 0) -> int:
    with suppress(ValueError):
        if (value := int(text)) >= least:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")


def _count(text: str) -> int:
    return _whole(text, 1)


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


GROUPS = {
    "to compute": ("run",),
    "to try and to measure": (
        "demo",
        "bench",
    ),
    "to set up": (
        "info",
        "warmup",
        "cache",
        "completion",
    ),
}
"""{group of commands: commands}."""

HELP = {
    "run": "a function over files of any size, here or on a Dask cluster",
    "demo": "fit handwritten digits with the library, check the result, time it, draw it",
    "bench": "measure the speed beside NumPy, SciPy, scikit-learn, PyTorch, JAX and a plain Numba loop",
    "info": "print versions, processor, threads and cache, for a bug report",
    "warmup": "compile the kernels into the cache directory ahead of time",
    "cache": "show or empty the disk cache of compiled kernels",
    "completion": "print a script that makes a shell complete commands, functions and options",
}
"""{command: what it does}."""

COMMANDS = (*(function.command for function in _spec.FUNCTIONS.values() if function.command), "metrics")
"""What `fastsoftmax run` runs."""


def _hint(word: str, names: Iterable[str]) -> str:
    """What may have been meant by a word that is none of these names."""
    close = difflib.get_close_matches(word, list(names), 3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _function(text: str) -> str:
    """The name of a function as `fastsoftmax run` has it."""
    name = text.replace("_", "-")
    if name in COMMANDS:
        return name
    base = name.removesuffix("-grad").removesuffix("-with")
    if base != name and base in COMMANDS:
        raise argparse.ArgumentTypeError(f"there is no {text}; the gradient comes from {base} with --grad FILE")
    hint = _hint(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
    raise argparse.ArgumentTypeError(f"there is no {text}{hint}")


def _path(text: str) -> Path:
    """A path. "-" is standard input or output, "./-" a file of that name."""
    path = Path(text)
    return path.absolute() if str(path) == "-" != text else path


def _wrapped(text: str, indent: int) -> list[str]:
    """A paragraph in lines for the terminal, of which all but the first are indented."""
    width = max(shutil.get_terminal_size().columns - 2, 30)
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent=" " * indent, break_on_hyphens=False)


def _commands() -> str:
    """The commands by their groups, as text for a terminal."""
    lines = []
    for title, names in GROUPS.items():
        lines.append(f"{title}:")
        for name in names:
            lines += _wrapped(f"{name:12}{HELP[name]}", 14)
        lines.append("")
    return "\n".join(lines)


def _functions() -> str:
    """The functions of `fastsoftmax run` by their groups, as text for a terminal."""
    members: dict[str, list[str]] = {}
    for function in _spec.FUNCTIONS.values():
        if function.command:
            members.setdefault(_spec.GROUPS[function.group].title, []).append(function.command)
    members["Metrics"] = ["metrics"]
    lines = ["functions:"]
    for title, names in members.items():
        lines += _wrapped(f"{title}: {', '.join(names)}", 4)
    return "\n".join(lines)


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help=HELP["run"],
        description="Run a function over .npy files in blocks: they may be larger than memory. Other inputs are "
        "members of .npz archives (a.npz/x), Zarr arrays (extra zarr), and columns of Parquet and Arrow files "
        "(a.parquet/x; extra arrow). A result gets its name when it is complete. A loss is printed, and so are "
        "metrics: loss, perplexity, accuracies, Brier score, calibration error and entropy of logits with labels.",
        usage="fastsoftmax run FUNCTION INPUT [-o OUTPUT] [options]",
        epilog=_functions(),
        formatter_class=_Formatter,
    )
    file: Any = {"type": _path, "metavar": "FILE"}
    run.add_argument("function", type=_function, choices=COMMANDS, metavar="FUNCTION", help="its name; see below")
    run.add_argument(
        "input", type=_path, metavar="INPUT", help="a file with logits or features; - for .npy on standard input"
    )

    group = run.add_argument_group("results")
    group.add_argument("-o", "--output", **file, help="the result: .npy or .zarr; - for .npy on standard output")
    group.add_argument("--grad", **file, help="the gradient with respect to INPUT")
    group.add_argument("--grad-weight", **file, help="for linear-cross-entropy: that with respect to --weight")
    group.add_argument("--grad-bias", **file, help="for linear-cross-entropy: that with respect to --bias")
    group.add_argument("--reduction", choices=("mean", "sum", "none"), help="of a loss; mean if not given")
    group.add_argument("--json", action="store_true", default=None, help="metrics as JSON, with all bins")
    group.add_argument("--force", action="store_true", help="overwrite results that exist")

    group = run.add_argument_group("logits")
    group.add_argument("--axis", type=int, metavar="N", help="the axis of the classes; the last if not given")
    group.add_argument("--temperature", type=float, metavar="T", help="1 if not given")
    group.add_argument("--where", **file, help="bools: which entries take part")
    group.add_argument("--from-probs", action="store_true", default=None, help="INPUT holds probabilities")
    group.add_argument("--tangent", **file, help="for *-jvp and cross-entropy-hvp")
    group.add_argument("--cotangent", **file, help="for *-vjp")
    group.add_argument("--softcap", type=float, metavar="C", help="replace logits by C tanh(logits/C) first")
    group.add_argument("--weight", **file, help="for linear-*: the weights, one row for each class")
    group.add_argument("--bias", **file, help="for linear-*: one number for each class")

    group = run.add_argument_group("targets and weights")
    group.add_argument("--targets", **file, help="class indices, or a distribution for each row")
    group.add_argument("--target-logits", **file, help="for *-divergence: the logits of the targets")
    group.add_argument("--pos-weight", **file, help="for binary-cross-entropy: factors of positive targets")
    group.add_argument("--class-weight", **file, help="one number for each class")
    group.add_argument("--sample-weight", **file, help="one number for each row or entry")
    group.add_argument("--ignore-index", type=int, metavar="N", help="the class index of rows that do not count")

    group = run.add_argument_group("losses")
    group.add_argument("--label-smoothing", type=float, metavar="S", help="from 0 to 1")
    group.add_argument("--z-loss", type=float, metavar="Z", help="the factor of the square of the log-sum-exp")
    group.add_argument("--gamma", type=float, metavar="G", help="for focal losses: 2 if not given")
    group.add_argument("--alpha", type=float, metavar="A", help="for binary-focal-loss: the weight of target 1")
    group.add_argument("--reverse", action="store_true", default=None, help="for kl-divergence: KL(p || q)")
    group.add_argument("--beta", type=float, metavar="B", help="for js-divergence: the share of the targets (0.5)")

    group = run.add_argument_group("filters and draws")
    group.add_argument("--top-k", type=int, metavar="K", help="how many classes are kept")
    group.add_argument("--top-p", type=float, metavar="P", help="their probability together")
    group.add_argument("--min-p", type=float, metavar="P", help="relative to the greatest probability")

    group.add_argument("--seed", type=_whole, dest="rng", metavar="N", help="for categorical: of its numbers")
    group.add_argument("--size", type=_whole, metavar="N", help="for categorical: so many draws from each row")
    group.add_argument(
        "--no-replace",
        action="store_false",
        dest="replace",
        default=None,
        help="no class is drawn twice from a row",
    )

    group = run.add_argument_group("where it runs")
    group.add_argument("--threads", type=int, metavar="N", help="at most so many threads")
    group.add_argument(
        "--scheduler", metavar="ADDRESS", help="hand the work to this Dask scheduler, whose workers see the files"
    )
    run.set_defaults(run=_run_run)


class _Formatter(argparse.HelpFormatter):
    """Keeps the line breaks of lists of commands and functions, and does not list the commands once more."""

    def add_argument(self, action: argparse.Action) -> None:
        if not isinstance(action, argparse._SubParsersAction):
            super().add_argument(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def _run_completion(arguments: argparse.Namespace) -> int:
    try:
        import shtab
    except ModuleNotFoundError as error:
        return _needs("completion", error)
    parser = _parser()
    for one in (parser, *_subparsers(parser).values()):
        for action in one._actions:
            if action.type in (Path, _path):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))
    return 0


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands by their names."""
    (action,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return dict(action.choices)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastsoftmax",
        description="Softmax, cross-entropy and their derivatives for NumPy arrays. fastsoftmax COMMAND --help "
        "describes a command.",
        usage="fastsoftmax COMMAND [options]",
        epilog=_commands(),
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(prog="fastsoftmax")

    demo = commands.add_parser(
        "demo",
        help=HELP["demo"],
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
        help=HELP["bench"],
        description="Measure the speed of the library beside those that are installed of NumPy, SciPy, "
        "scikit-learn, PyTorch, JAX, Optax and a plain Numba loop, with the same number of threads and, but for "
        "--quick, with one. Every result is compared with ours before it is timed. Names may be shortened to "
        "their beginnings; several may be given.",
        usage="fastsoftmax bench [options]",
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
        "map.json and map.md of a map. A run that was stopped is continued: its rows are in unfinished.jsonl",
    )
    bench.set_defaults(run=_run_bench)

    warmup = commands.add_parser(
        "warmup",
        help=HELP["warmup"],
        description="Compile all kernels into one library in the cache directory, in parallel processes: for "
        "installations without compiled kernels, such as editable ones, where the first call should not wait. "
        "Without a linker they become one file each. FASTSOFTMAX_CACHE_DIR says where they go.",
    )
    warmup.add_argument("--jobs", type=_count, metavar="N", help="processes (default: one a CPU, at most 8)")
    warmup.set_defaults(run=_run_warmup)
    _add_run(commands)

    info = commands.add_parser(
        "info",
        help=HELP["info"],
        description="Print versions, processor, threads and cache as plain text for a bug report.",
    )
    info.set_defaults(run=_run_info)

    cache = commands.add_parser(
        "cache",
        help=HELP["cache"],
        description="Show or empty the disk cache of compiled kernels. What is removed is compiled again "
        "when it is next needed.",
    )
    action = cache.add_mutually_exclusive_group(required=True)
    action.add_argument("--info", action="store_true", help="print the directory, and how much is in it")
    action.add_argument("--clear", action="store_true", help="remove all compiled kernels")
    cache.set_defaults(run=_run_cache)

    completion = commands.add_parser(
        "completion",
        help=HELP["completion"],
        description="Print a script with which a shell completes the words of this command (extra completion). "
        "For bash: fastsoftmax completion bash > ~/.local/share/bash-completion/completions/fastsoftmax",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="bash, zsh or tcsh")
    completion.set_defaults(run=_run_completion)
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
    begin = time.perf_counter()
    _fill_descriptors()
    try:
        status = _command(arguments, begin)
    except SystemExit as end:  # argparse has printed the help, or what is wrong
        if not _flush() and not end.code:
            return BROKEN
        raise
    except KeyboardInterrupt:
        _say("interrupted")
        status = 130
    except MemoryError:
        _say("not enough memory")
        status = BROKEN
    except OSError as error:
        if error.errno != errno.EPIPE:  # a reader of standard output who is gone has seen enough
            name = f"{error.filename}: " if error.filename is not None else ""
            _say(f"{name}{error.strerror or error}")
        status = BROKEN
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


def _say(message: str) -> None:
    """Write a message to standard error; it is lost if that is closed or full."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(f"fastsoftmax: {message}", file=sys.stderr, flush=True)


def _say_compiling() -> None:
    """Say once in a process what takes seconds."""
    entry.on_compilation = lambda: None
    _say("compiling kernels, which the next process will find")


def _spelt(words: Sequence[str]) -> list[str]:
    """The same words with hyphens in the names of options where the user wrote underscores."""
    options = words.index("--") if "--" in words else len(words)
    found = []
    for word in words[:options]:
        name, equals, value = word.partition("=")
        found.append(name.replace("_", "-") + equals + value if name.startswith("--") else word)
    return [*found, *words[options:]]


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments. A wrong name ends the command with a suggestion."""
    parser = _parser()
    words = _spelt(sys.argv[1:] if arguments is None else arguments)
    commands = _subparsers(parser)
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in commands:
        name = command.replace("_", "-")
        hint = f"; did you mean run {name}?" if name in COMMANDS else _hint(command, commands)
        parser.error(f"there is no command {command}{hint or '; there are ' + ', '.join(commands)}")
    parsed, rest = parser.parse_known_args(words)
    if rest:
        used = parser if command is None else commands[command]
        option = next((word.partition("=")[0] for word in rest if word.startswith("-")), "")
        if not option:
            used.error(f"unexpected argument: {rest[0]}")
        used.error(f"there is no option {option}{_hint(option, used._option_string_actions)}")
    return parsed


def _command(arguments: Sequence[str] | None, begin: float) -> int:
    """As `main`, without the care for the standard streams."""
    entry.on_compilation = _say_compiling
    parsed = _parsed(arguments)
    if parsed.version:
        from fastsoftmax import __version__

        print(f"fastsoftmax {__version__}")
        return 0
    if not hasattr(parsed, "run"):
        _parser().print_help()
        return 2
    parsed.begin = begin
    status: int = parsed.run(parsed)
    return status
