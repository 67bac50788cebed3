"""The notebooks run from top to bottom, without warnings and in time. The stored files are small."""

import importlib.util
import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
SECONDS = 120
"""Processor time, which other programs hardly change (0 on Windows); 10 to 20 once the kernels are compiled."""
BYTES = 150_000


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = load(ROOT / "notebooks" / "execute.py")
every_notebook = pytest.mark.parametrize("path", execute.notebooks(), ids=lambda path: path.stem)


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def flaws(notebook):
    """Warnings, errors and paths of a machine in the stored outputs."""
    found = []
    for output in outputs(notebook):
        if output.output_type == "error":
            found.append(f"error: {output.ename}")
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        if output.get("name") == "stderr" or "Warning" in text:
            found.append(f"warning: {text}")
        found += [f"path: {name}" for name in re.findall(r"/(?:home|tmp|root|usr|work|Users)/\S*", text)]
    return found


@every_notebook
def test_runs(path):
    for module in re.findall(
        r'^ *"(?:import|from) (dask|lightgbm|matplotlib|scipy|sklearn|sympy)\b', path.read_text(), re.M
    ):
        pytest.importorskip(module)
    before = os.times()
    notebook = execute.execute(path)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < SECONDS
    assert flaws(notebook) == []
    kinds = [output.output_type for output in outputs(notebook)]
    stored = [output.output_type for output in outputs(nbformat.read(path, as_version=4))]
    assert kinds.count("display_data") == stored.count("display_data")


@every_notebook
def test_stored_outputs(path):
    """They are of one run from top to bottom, without errors, warnings or paths of a machine, and small."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert flaws(notebook) == []
    assert path.stat().st_size < BYTES
    assert set(notebook.metadata.language_info) == {"name"}


def test_an_error_stops_the_run(tmp_path):
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    path = tmp_path / "broken.ipynb"
    nbformat.write(broken, path)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute.execute(path)


@pytest.mark.parametrize(
    ("name", "text", "flaw"),
    [
        ("stderr", "late", "warning: late"),
        ("stdout", "x.py:1: RuntimeWarning: overflow", "warning: x.py:1: RuntimeWarning: overflow"),
        ("stdout", "in /home/me/x", "path: /home/me/x"),
    ],
)
def test_flaws(name, text, flaw):
    cell = nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("stream", name=name, text=text)])
    assert flaws(nbformat.v4.new_notebook(cells=[cell])) == [flaw]


def test_readme_names_all():
    readme = (ROOT / "README.md").read_text()
    assert len(execute.notebooks()) == 7
    for path in execute.notebooks():
        assert f"](notebooks/{path.name})" in readme
