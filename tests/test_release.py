"""What a release consists of: versions, bounds and addresses that agree, and a source distribution that builds."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import fastsoftmax as fs

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text()
OLDEST, BOUND = re.search(r'^dependencies = .*"numba>=([\d.]+),<([\d.]+)"', PROJECT, re.MULTILINE).groups()
SOURCE = re.search(r'^Source = "(.*)"$', PROJECT, re.MULTILINE).group(1)
SITE = re.search(r'^Homepage = "(.*)"$', PROJECT, re.MULTILINE).group(1)


def numbers(version):
    """The minor version, as two numbers."""
    return tuple(map(int, re.match(r"(\d+)\.(\d+)", version).groups()))


def test_the_bound_on_numba_can_rise():
    """It fails with a newer Numba: only the weekly job installs that, and runs the other tests before."""
    installed = metadata.version("numba")
    major, minor = numbers(installed)
    assert (major, minor) < numbers(BOUND), (
        f"Numba {installed} is beyond the bound <{BOUND}. If the other tests pass with it, write "
        f"<{major}.{minor + 1} in pyproject.toml, SUPPORT.md and conda/recipe.yaml."
    )


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("pyproject.toml", f'"numba>={OLDEST},<{BOUND}"', 2),
        ("conda/recipe.yaml", f"numba >={OLDEST},<{BOUND}", 2),
        ("SUPPORT.md", f"| {OLDEST} up to, not including, {BOUND} |", 1),
        ("noxfile.py", f'"numba": "{OLDEST}.0"', 1),
    ],
)
def test_bounds_agree(name, text, count):
    content = (ROOT / name).read_text()
    assert content.count(text) == count


def test_versions_of_python_agree():
    """Those of the classifiers are tested by nox and by the workflow, and are in the table."""
    declared = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert f'requires-python = ">={declared[0]}"' in PROJECT
    listed = "[" + ", ".join(f'"{version}"' for version in declared) + "]"
    assert f"@nox.session(python={listed})" in (ROOT / "noxfile.py").read_text()
    assert f"python: {listed}" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert f"| Python | {declared[0]} to {declared[-1]} |" in (ROOT / "SUPPORT.md").read_text()


def test_addresses_agree():
    """Every address of the project is one of pyproject.toml, or below it."""
    found = 0
    for pattern in ("*.md", "*.cff", ".github/**/*.yml", "conda/*", "docs/*.md"):
        for path in ROOT.glob(pattern):
            for address in re.findall(r"https://[\w.]*github\.(?:com|io)/[^\s)\"']*", path.read_text()):
                if "fastsoftmax" in address:
                    found += 1
                    assert address.startswith((SOURCE, SITE)), (path, address)
    assert found > 4


def test_sections_of_the_changelog():
    """Those of Keep a Changelog, in versions that begin with what is not released."""
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.*?)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE)
    assert versions[0] == ("Unreleased", "")
    assert all(date for _, date in versions[1:])
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for version, _ in versions:
        assert f"\n[{version}]: " in text


@pytest.fixture
def checkout(tmp_path):
    """A copy of what is built, without git."""
    pytest.importorskip("hatchling")
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "_prebuilt")
    shutil.copytree(ROOT / "fastsoftmax", copy / "fastsoftmax", ignore=ignored)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def hatchling(directory, *arguments):
    environment = os.environ | {"FASTSOFTMAX_BUILD": "none"}
    command = [sys.executable, "-m", "hatchling", *arguments]
    return subprocess.run(
        command, cwd=directory, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_the_source_distribution_builds(checkout, tmp_path):
    """A checkout without git makes one, and that makes a wheel with the package and its metadata."""
    hatchling(checkout, "build", "-t", "sdist", "-d", str(tmp_path))
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(tmp_path / "unpacked", filter="data")
    (directory,) = (tmp_path / "unpacked").iterdir()
    hatchling(directory, "build", "-t", "wheel", "-d", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"fastsoftmax-{fs.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
        text = files.read(f"fastsoftmax-{fs.__version__}.dist-info/METADATA").decode()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fastsoftmax").rglob("*.py")}
    assert modules | {"fastsoftmax/py.typed"} <= names
    assert f"Requires-Dist: numba<{BOUND},>={OLDEST}" in text
    assert f"Project-URL: Source, {SOURCE}" in text
    assert "License-Expression: BSD-3-Clause" in text


def test_the_tag_is_the_version(checkout):
    """The workflow writes the version of a tag into the checkout before it builds."""
    workflow = (ROOT / ".github" / "workflows" / "wheels.yml").read_text()
    assert 'python -m hatchling version "${GITHUB_REF_NAME#v}"' in workflow
    hatchling(checkout, "version", "98.7.6rc1")
    assert '\n__version__ = "98.7.6rc1"\n' in (checkout / "fastsoftmax" / "__init__.py").read_text()
    assert hatchling(checkout, "version").strip() == "98.7.6rc1"
