"""mypy and pyright agree with the types in `expectations.py`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import child
import pytest

FILE = Path(__file__).with_name("expectations.py")


def run(directory, *command):
    environment = {**os.environ, "PYTHONPATH": str(child.PACKAGE.parent), "MYPYPATH": str(child.PACKAGE.parent)}
    options = {"capture_output": True, "text": True, "timeout": 600, "env": environment, "cwd": directory}
    return subprocess.run([sys.executable, "-m", *command], **options)


RIGHT = "assert_type(fs.softmax(half), Half)", 'fs.softmax("hello")  # type: ignore[arg-type]'
WRONG = "assert_type(fs.softmax(half), Single)", 'fs.softmax("hello")'


@pytest.fixture
def mistaken(tmp_path):
    """The file with a wrong expectation and an error that it does not expect, and the lines of these."""
    lines = FILE.read_text().splitlines()
    places = [next(i for i, line in enumerate(lines) if line.strip() == right) for right in RIGHT]
    for i, wrong in zip(places, WRONG, strict=True):
        lines[i] = f"    {wrong}"
    path = tmp_path / "mistaken.py"
    path.write_text("\n".join(lines) + "\n")
    return path, {i + 1 for i in places}


def mypy(path, directory):
    """The lines with errors."""
    pytest.importorskip("mypy")
    options = ["--strict", "--config-file=", "--cache-dir", str(directory / "cache")]
    done = run(directory, "mypy", *options, str(path))
    return {
        int(line.split(":")[1])
        for line in done.stdout.splitlines()
        if f"{path.name}:" in line and "error:" in line
    }


def pyright(path, directory):
    """The lines with errors."""
    pytest.importorskip("pyright")
    settings = {"reportUnnecessaryTypeIgnoreComment": "error"}
    settings["extraPaths"] = [str(child.PACKAGE.parent)]
    (directory / "pyrightconfig.json").write_text(json.dumps(settings))
    shutil.copy(path, directory / "checked.py")
    done = run(directory, "pyright", "--outputjson", "--pythonpath", sys.executable, "checked.py", "-p", ".")
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright cannot run here: {done.stderr[-200:]}")
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == 1
    return {one["range"]["start"]["line"] + 1 for one in found["generalDiagnostics"] if one["severity"] == "error"}


def test_mypy(tmp_path):
    assert not mypy(FILE, tmp_path)


def test_mypy_finds_mistakes(mistaken, tmp_path):
    path, lines = mistaken
    assert mypy(path, tmp_path) == lines


def test_pyright(tmp_path):
    assert not pyright(FILE, tmp_path)


def test_pyright_finds_mistakes(mistaken, tmp_path):
    path, lines = mistaken
    assert pyright(path, tmp_path) == lines
