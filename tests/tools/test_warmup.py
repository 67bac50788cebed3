"""``fastsoftmax warmup``: afterwards nothing has to be compiled."""

import json
import os
import sys

import child
import pytest

from fastsoftmax.machine import library
from fastsoftmax.machine.entry import Kernel
from fastsoftmax.runtime import cache, prebuilt
from fastsoftmax.tools import build, warmup
from fastsoftmax.tools.cli import main

KERNEL = "activations.logsumexp"

# Prints the result, whether a library was used, and whether anything was compiled.
CALL = """
import json, sys
import numpy as np
import fastsoftmax as fs
from fastsoftmax.runtime import prebuilt

result = fs.logsumexp(np.linspace(-1, 1, 6).reshape(2, 3)).tolist()
print(json.dumps([result, prebuilt.library() is not None, "fastsoftmax.machine.frontend" in sys.modules]))
"""
RESULT = pytest.approx([0.55125, 1.75125], abs=1e-5)

needs_library = pytest.mark.skipif(
    prebuilt.level() is None or library.linker() is None, reason="no linker, or no library for this processor"
)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """The cache directory, empty."""
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(child.PACKAGE.parent))
    return tmp_path / "cache"


@pytest.fixture
def few(monkeypatch):
    """A few kernels instead of all."""
    chosen = [one for one in library.variants() if one.kernel.name.startswith(KERNEL) and one.dtype == "d"]
    monkeypatch.setattr(library, "variants", lambda: chosen)
    return chosen


def call(directory):
    result, *rest = json.loads(child.run(CALL, FASTSOFTMAX_CACHE_DIR=directory))
    assert result == RESULT
    return rest


@needs_library
def test_a_library_is_built(directory, few, capsys):
    assert main(["warmup", "--jobs", "1"]) == 0
    path = directory / prebuilt.file_name(prebuilt.level())
    text = capsys.readouterr().out
    assert f"{len(few)} of {len(few)} kernels" in text
    assert f"library of {path.stat().st_size / 1e6:.1f} MB: {path}" in text
    assert sorted(directory.iterdir()) == sorted([path, path.with_suffix(".json")])
    assert call(directory) == [True, False]

    assert main(["cache", "--info"]) == 0
    assert "0 compiled kernels (0.0 MB) and a library of kernels" in capsys.readouterr().out
    (directory / "other.json").write_text("a file of somebody else")
    assert main(["cache", "--clear"]) == 0
    assert [one.name for one in directory.iterdir()] == ["other.json"]


def test_without_a_linker_there_is_a_file_for_each_kernel(directory, few, monkeypatch, capsys):
    monkeypatch.setattr(library, "linker", lambda: None)
    assert main(["warmup", "--jobs", "2"]) == 0
    assert f"{len(few)} kernels (" in capsys.readouterr().out
    assert len(list(directory.glob(f"*{cache.SUFFIX}"))) == len(few)
    assert call(directory) == [False, False]


@pytest.mark.slow
@needs_library
def test_everything(directory):
    """All kernels are in the library, and no other."""
    assert main(["warmup"]) == 0
    opened = prebuilt.Library(directory / prebuilt.file_name(prebuilt.level()))
    variants = library.variants()
    assert all(opened.address(one.name) for one in variants)
    assert all(opened.address(f"{one.name}.py") for one in variants if not one.is_loop)


def test_a_directory_that_cannot_be_used_is_told(directory, capsys):
    directory.write_text("")
    assert main(["warmup"]) == 1
    assert capsys.readouterr().err.startswith("fastsoftmax warmup: ")


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_a_directory_of_others_is_told(directory, capsys):
    directory.mkdir()
    directory.chmod(0o777)
    assert main(["warmup"]) == 1
    assert capsys.readouterr().err == f"fastsoftmax warmup: others can write to {directory}\n"


def test_what_goes_wrong_is_told(directory, monkeypatch, capsys):
    def fail(processes):
        raise RuntimeError("a process that compiles kernels has failed")

    monkeypatch.setattr(warmup, "_library", fail)
    monkeypatch.setattr(warmup, "_objects", fail)
    assert main(["warmup"]) == 1
    assert capsys.readouterr().err == "fastsoftmax warmup: a process that compiles kernels has failed\n"


def test_a_process_that_fails_ends_the_others(directory, few, monkeypatch, tmp_path):
    missing = few[0]._replace(kernel=Kernel("activations.none"))
    monkeypatch.setattr(library, "variants", lambda: [missing, few[0]])
    with pytest.raises(RuntimeError, match="a process that compiles kernels has failed"):
        library.keep_all(2, lambda *_: None)
    assert not directory.exists() or len(list(directory.iterdir())) < 2


@pytest.mark.parametrize("terminal", [False, True])
def test_progress(capsys, monkeypatch, terminal):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    else:
        monkeypatch.delenv("FORCE_COLOR", raising=False)
    with build.progress() as advance:
        for done in range(31):
            advance(done, 30)
    text = capsys.readouterr().out
    lines = [f"{done} of 30 kernels" for done in range(3, 31, 3)]
    assert (text.splitlines() == lines) == (not terminal)
    assert terminal == ("30/30" in text)


def test_progress_without_rich(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with build.progress() as advance:
        advance(1, 1)
    assert capsys.readouterr().out == "1 of 1 kernels\n"
