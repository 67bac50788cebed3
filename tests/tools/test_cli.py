"""The command line: its output, exit statuses and files."""

import contextlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

import fastsoftmax as fs
from fastsoftmax.arrays.threads import usable_cpus
from fastsoftmax.tools import cli, demo, info
from fastsoftmax.tools.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache directory with two kernels and another file."""
    directory = tmp_path / "cache"
    directory.mkdir()
    (directory / "a.code").write_bytes(b"x" * 10)
    (directory / "b.code").write_bytes(b"x" * 20)
    (directory / "notes.txt").write_text("mine")
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(directory))
    return directory


@pytest.fixture
def quick(monkeypatch):
    """Smaller arrays for the timings of the demo, and no environment variables about colours."""
    monkeypatch.setattr(demo, "TIMED_ROWS", 2000)
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def missing(monkeypatch, *modules):
    """Make imports of these modules fail as if they were not installed, also for the demo."""
    for name in list(sys.modules):
        if name.split(".")[0] in modules or name == "fastsoftmax.tools.demo":
            monkeypatch.delitem(sys.modules, name)
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr(sys.modules["fastsoftmax.tools"], "demo")


# --- info ---------------------------------------------------------------------------------------------------


def facts(text):
    return dict(re.split(r"  +", line, maxsplit=1) for line in text.strip().splitlines())


def test_info_tells_versions_machine_threads_and_cache(capsys, cache, monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert main(["info"]) == 0
    found = facts(capsys.readouterr().out)
    import llvmlite
    import numba

    assert found["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert found["fastsoftmax"] == fs.__version__
    assert found["numpy"] == np.__version__
    assert found["numba"] == numba.__version__
    assert found["llvmlite"] == llvmlite.__version__
    assert found["vectors"].startswith("64 bytes")
    assert found["cpus"].endswith(f"{usable_cpus()} usable by this process")
    assert found["threads"].startswith("1 at most")
    assert found["cache"] == f"{cache}: 2 files, 30 bytes"
    assert found["NUMBA_NUM_THREADS"] == "1"
    assert found["FASTSOFTMAX_CACHE_DIR"] == str(cache)
    assert {"system", "processor"} <= found.keys()


def test_info_says_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(info, "REQUIRED", ("no-such-package",))
    monkeypatch.setattr(info, "OPTIONAL", ("no-such-peer",))
    found = facts(info.report())
    assert found["no-such-package"] == "not installed"
    assert "no-such-peer" not in found


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"sse2": True, "avx": True, "avx512f": True}, "64 bytes = 1 AVX-512 register"),
        ({"sse2": True, "avx": True, "avx512f": False}, "64 bytes = 2 AVX registers"),
        ({"sse2": True}, "64 bytes = 4 SSE2 registers"),
        ({"neon": True}, "64 bytes = 4 NEON registers"),
        ({}, "64 bytes, no vector registers that LLVM knows"),
    ],
)
def test_info_tells_what_a_vector_is_on_the_processor(monkeypatch, features, expected):
    from llvmlite import binding

    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: features)
    assert facts(info.report())["vectors"] == expected


def test_info_states_the_vector_size_of_the_kernels():
    from numba import types

    from fastsoftmax.machine.lowering import Lanes

    for dtype in (types.float32, types.float64):
        assert Lanes(dtype).count * dtype.bitwidth == 8 * info.VECTOR_BYTES


def test_info_works_without_llvmlite(monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    assert facts(info.report())["vectors"].startswith("unknown (ModuleNotFoundError")


def test_info_works_without_proc_and_affinity(monkeypatch):
    import builtins
    import os

    def no_proc(path, *args, **kwargs):
        raise FileNotFoundError(path)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", no_proc)
        assert info.processor()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cpus() == os.cpu_count()


# --- cache --------------------------------------------------------------------------------------------------


def test_cache_info(capsys, cache):
    assert main(["cache", "--info"]) == 0
    assert capsys.readouterr().out == f"2 compiled kernels (0.0 MB) in {cache}\n"


def test_cache_clear_removes_kernels_and_nothing_else(capsys, cache):
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == f"Removed 2 compiled kernels (0.0 MB) from {cache}\n"
    assert [path.name for path in cache.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("action", ["--info", "--clear"])
def test_cache_without_a_directory(capsys, tmp_path, monkeypatch, action):
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path / "none"))
    assert main(["cache", action]) == 0
    assert "0 compiled kernels" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


# --- demo ---------------------------------------------------------------------------------------------------


def test_demo(capsys, tmp_path, quick):
    picture = tmp_path / "digits.png"
    assert main(["demo", "--output", str(picture)]) == 0

    text = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in text)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count(" ok") == 4
    assert "FAILED" not in text
    words = " ".join(text.split())
    assert "100% loss 0.2159" in words
    assert float(re.search(r"accuracy ([\d.]+) %", words)[1]) >= 95
    assert float(re.search(r"they differ by (\S+)\. ok", words)[1]) <= 1e-4
    assert float(re.search(r"within (\S+) \(relative to the largest\) of central differences", words)[1]) <= 1e-7
    for case in ("1,437 x 10 float64", "2,000 x 10 float64", "2,000 x 10 float32"):
        assert re.search(rf"{case} +fastsoftmax +[\d.]+ ms +\d+ % +1\.0 *\n", text)
    for library in ("NumPy", "SciPy", "scikit-learn"):
        assert len(re.findall(rf"{library} +[\d.]+ ms +\d+ % +[\d.]+ *\n", text)) == 3

    pixels = imread(picture)[..., :3]
    height, width, _ = pixels.shape
    assert 800 <= height <= width <= 4000
    for color in (demo.BLUE, demo.ORANGE, demo.GREEN, demo.FAINT):
        share = np.mean(np.all(np.abs(pixels - to_rgb(color)) < 0.01, axis=-1))
        assert 1e-4 < share < 0.1, color
    assert 0.5 < np.mean(np.all(pixels == 1, axis=-1)) < 0.95


def test_demo_tells_which_checks_failed(capsys, tmp_path, monkeypatch, quick):
    limits = {"LEAST_ACCURACY": 1.0, "LOSS_TOLERANCE": -1.0, "DIFFERENCE_TOLERANCE": 0.0, "EPSILONS": 0.0}
    for name, value in limits.items():
        monkeypatch.setattr(demo, name, value)
    assert not demo.run(tmp_path / "digits.png", 0.05)
    text = capsys.readouterr().out
    failed = [
        part.splitlines()[0].split()[0] for part in re.split(r"^(?=\w)", text, flags=re.M) if "FAILED" in part
    ]
    assert failed == ["accuracy", "loss", "gradient", "timing"]
    assert " ok" not in text


def test_one_failed_check_is_enough(capsys):
    narrator = demo.Narrator()
    narrator.check("first", "holds.", True)
    assert narrator.all_hold
    narrator.check("second", "does not.", False)
    narrator.check("third", "holds.", True)
    assert not narrator.all_hold
    narrator.say("path", "[bold]/[/x].png")  # text in brackets that is no markup is printed unchanged
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["first holds. ok", "second does not. FAILED", "third holds. ok", "path [bold]/[/x].png"]


def test_demo_returns_1_if_a_check_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "run", lambda output: False)
    assert main(["demo", "--output", str(tmp_path / "digits.png")]) == 1


def test_demo_gradient_check_sees_a_wrong_gradient():
    rng = np.random.default_rng(0)
    right = demo.Objective(rng.normal(size=(50, 4)), rng.integers(0, 10, 50))
    weights = rng.normal(size=right.size)

    class Wrong(demo.Objective):
        def __call__(self, weights):
            value, gradient = super().__call__(weights)
            return value, gradient + 1e-6 * (np.arange(gradient.size) == 7)

    assert demo.gradient_error(right, weights) < 1e-9
    assert demo.gradient_error(Wrong(right.features, right.labels), weights) > demo.DIFFERENCE_TOLERANCE


def test_demo_agreement_check_sees_a_wrong_contender():
    gradient = np.zeros((4, 10))
    right, shifted = (1.0, gradient), (1.0, gradient + 1e-3)
    assert demo.disagreement({"a": lambda: right, "b": lambda: right}) == 0
    assert demo.disagreement({"a": lambda: right, "b": lambda: shifted}) == pytest.approx(4e-3)
    assert demo.disagreement({"a": lambda: right, "b": lambda: (1.5, gradient)}) == 0.5


def test_demo_goes_without_the_private_loss_of_sklearn(monkeypatch):
    scores, labels = np.zeros((3, 10)), np.arange(3)
    assert [*demo.contenders(scores, labels)] == ["fastsoftmax", "NumPy", "SciPy", "scikit-learn"]
    monkeypatch.setitem(sys.modules, "sklearn._loss.loss", None)
    assert [*demo.contenders(scores, labels)] == ["fastsoftmax", "NumPy", "SciPy"]


def test_demo_picture_of_a_model_without_mistakes_or_a_class(tmp_path):
    labels = np.array([3, 3, 4])
    demo.draw(np.zeros((3, 8, 8)), labels, np.eye(10)[labels], tmp_path / "digits.png")
    assert imread(tmp_path / "digits.png").shape[0] > 800


@pytest.mark.parametrize(
    ("module", "package"),
    [("sklearn", "scikit-learn"), ("scipy", "SciPy"), ("matplotlib", "matplotlib"), ("rich", "rich")],
)
def test_demo_names_the_extra_that_is_missing(capsys, tmp_path, monkeypatch, module, package):
    missing(monkeypatch, module)
    assert main(["demo", "--output", str(tmp_path / "digits.png")]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"fastsoftmax demo needs {package}: pip install 'fastsoftmax[demo]'\n"
    assert captured.out == ""


def test_demo_does_not_hide_another_missing_module(tmp_path, monkeypatch):
    missing(monkeypatch, "math")
    with pytest.raises(ModuleNotFoundError, match="math"):
        main(["demo", "--output", str(tmp_path / "digits.png")])


@pytest.mark.parametrize("place", [".", "none/digits.png"])
def test_demo_asks_for_a_place_for_the_picture_first(capsys, tmp_path, place):
    assert main(["demo", "--output", str(tmp_path / place)]) == 2
    assert capsys.readouterr().err == f"fastsoftmax demo: cannot write the picture to {tmp_path / place}\n"


# --- the rest -----------------------------------------------------------------------------------------------


def test_without_a_command_the_help_is_printed(capsys):
    assert main([]) == 2
    text = capsys.readouterr().out
    assert all(command in text for command in ("demo", "info", "cache"))


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["no-such-command"])
    assert exit_.value.code == 2
    assert "no-such-command" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "bench", "warmup", "run", "info", "cache", "completion"])
@pytest.mark.parametrize("columns", [80, 200])
def test_help_fits_the_terminal(command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    for arguments in ([], ["--help"], [command, "--help"]):
        with contextlib.suppress(SystemExit):
            main(arguments)
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= columns
    assert command != "run" or all(name in text for name in cli.COMMANDS)


def test_the_help_of_run_is_in_groups(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    groups = re.findall(r"^(\w[\w ]*):\n", capsys.readouterr().out, flags=re.M)
    assert groups[2:] == [
        "results",
        "logits",
        "targets and weights",
        "losses",
        "filters and draws",
        "where it runs",
        "functions",
    ]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "fastsoftmax: interrupted\n"),
        (PermissionError(13, "Permission denied", "/there"), 3, "fastsoftmax: /there: Permission denied\n"),
        (OSError(28, "No space left on device"), 3, "fastsoftmax: No space left on device\n"),
        (BrokenPipeError(32, "Broken pipe"), 3, ""),
        (MemoryError(), 3, "fastsoftmax: not enough memory\n"),
    ],
)
def test_what_breaks_a_command_off_is_said_without_a_traceback(error, status, words, monkeypatch, capsys):
    def report():
        raise error

    monkeypatch.setattr(info, "report", report)
    assert main(["info"]) == status
    assert capsys.readouterr().err == words


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
@pytest.mark.parametrize("command", [["run", "--help"], ["info"], ["--version"]])
def test_a_reader_who_is_gone_is_not_complained_about(command):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "fastsoftmax", *command]
    done = subprocess.run(words, env=environment, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 3 or "--help" in command  # argparse does not notice


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("warmup --jobs x", "'x' is no whole number from 1 on"),
        ("warmup --jobs 0", "'0' is no whole number from 1 on"),
        ("run categorical x.npy --seed -1", "'-1' is no whole number from 0 on"),
        ("bench --seconds nan", "'nan' is not a positive number"),
        ("bench --seconds x", "'x' is not a positive number"),
    ],
)
def test_wrong_numbers_are_refused_in_plain_words(words, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words.split())
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals of POSIX")
@pytest.mark.parametrize("no_color", [False, True])
def test_colours_on_a_terminal_can_be_turned_off(no_color, tmp_path):
    import pty

    np.save(tmp_path / "x.npy", np.zeros((1000, 10)))
    environment = dict(os.environ, PYTHONPATH=str(ROOT), TERM="xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        environment.pop(name, None)
    if no_color:
        environment["NO_COLOR"] = "1"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "fastsoftmax", "run", "softmax", "x.npy", "-o", "p.npy"]
    child = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=theirs)
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal is an error on Linux
        while part := os.read(ours, 1 << 16):
            text += part
    os.close(ours)
    assert child.wait(60) == 0
    assert b"softmax" in text
    assert bool(re.search(rb"\x1b\[[0-9;]*[39][0-7]m", text)) is not no_color


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("cross-entropy", "label-smoothing", "warmup", "reduction"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fastsoftmax ca", ["cache"]),
        ("fastsoftmax run kl-", ["kl-divergence"]),
        ("fastsoftmax run softmax x.npy --lab", ["--label-smoothing"]),
        ("fastsoftmax run softmax x.npy --reduction n", ["none"]),
        ("fastsoftmax run softmax x.n", ["x.npy"]),
        ("fastsoftmax run softmax x.npy -o y.n", ["y.npy"]),
    ],
)
def test_bash_completes_commands_functions_options_and_files(line, expected, capsys, tmp_path):
    pytest.importorskip("shtab")
    main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    for name in ("x.npy", "y.npy"):
        (tmp_path / name).touch()
    code = (
        f"source ./script; COMP_WORDS=({line}); COMP_CWORD=$(({len(line.split())} - 1)); COMP_LINE='{line}'; "
        "$(complete -p fastsoftmax | sed 's/.*-F \\([^ ]*\\).*/\\1/'); printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert [word.strip() for word in done.stdout.splitlines()] == expected, done.stderr


def test_completion_is_an_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    words = "fastsoftmax completion needs shtab: pip install 'fastsoftmax[completion]'\n"
    assert capsys.readouterr().err == words


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastsoftmax {fs.__version__}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["--version"], ["info"], ["cache", "--info"]])
def test_a_full_standard_output_is_no_success(command, unbuffered, tmp_path):
    """The status is 3, not 0 or Python's 120, and there is no traceback."""
    environment = dict(
        os.environ, PYTHONPATH=str(ROOT), PYTHONUNBUFFERED=unbuffered, FASTSOFTMAX_CACHE_DIR=str(tmp_path)
    )
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "fastsoftmax", *command]
        done = subprocess.run(words, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3
    assert done.stderr in ("", "fastsoftmax: No space left on device\n")


@pytest.mark.skipif(os.name == "nt", reason="closes descriptors in a shell of POSIX")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(closed, tmp_path):
    """Otherwise text for standard output or error could be written into the file."""
    code = (
        "from fastsoftmax.tools import cli\n"
        "cli.main(['cache', '--info'])\n"
        f"open({str(tmp_path / 'number')!r}, 'w').write(str(open(__import__('os').devnull).fileno()))"
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT), FASTSOFTMAX_CACHE_DIR=str(tmp_path))
    subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", code], env=environment, check=True)
    assert int((tmp_path / "number").read_text()) > 2


def test_python_m(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fastsoftmax", "--version"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("fastsoftmax", run_name="__main__")
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"fastsoftmax {fs.__version__}\n"


def test_the_command_line_imports_neither_numba_nor_the_extras():
    code = (
        "import sys; from fastsoftmax.tools.cli import main; main(['--version'])\n"
        "print(*sorted({'numba', 'llvmlite', 'scipy', 'sklearn', 'matplotlib', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"fastsoftmax {fs.__version__}\n\n"
