"""A library of kernels is used if it is whole and made of these sources. Else Numba compiles: equal results."""

import hashlib
import json
import os
import shutil
import sys
import zipfile

import child
import pytest

from fastsoftmax.machine import library as building
from fastsoftmax.runtime import prebuilt

LEVEL = prebuilt.level()
NAME = prebuilt.file_name(LEVEL or "v3")

BUILD = """
import sys
from pathlib import Path
from fastsoftmax.machine import library

everything = library.variants()
library.variants = lambda: [one for one in everything if one.name.startswith("activations.logsumexp")]
library.build([sys.argv[1]], Path(sys.argv[2]), 1, lambda *_: None)
"""

# Prints the result, whether a library was used, and the warnings, of which child.run would make errors.
CALL = """
import json, sys, warnings
sys.path[:0] = sys.argv[1:]
import numpy as np

with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import fastsoftmax as fs
    from fastsoftmax.runtime import prebuilt

    x = np.linspace(-1, 1, 300)
    results = [fs.logsumexp(x.reshape(shape)).tolist() for shape in ((3, 100), (100, 3), (1, 300))]
texts = [str(one.message) for one in seen if one.category is RuntimeWarning]
print(json.dumps([results, prebuilt.library() is not None, texts, prebuilt.search().text]))
"""

pytestmark = [
    pytest.mark.skipif(LEVEL is None, reason="there is no library for this processor"),
    pytest.mark.skipif(building.linker() is None, reason="there is no linker"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory with a library of a few kernels."""
    folder = tmp_path_factory.mktemp("made")
    child.run(BUILD, LEVEL, folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The cache directory of all tests, without a library; what one test compiles, the next ones find."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def expected(cache):
    """The results of code that Numba compiles."""
    results, used, texts, text = json.loads(child.run(CALL, FASTSOFTMAX_CACHE_DIR=cache, FASTSOFTMAX_PREBUILT="0"))
    assert (used, texts, text) == (False, [], "none: FASTSOFTMAX_PREBUILT=0")
    return results


@pytest.fixture
def install(tmp_path, made):
    """A copy of the package, with the library."""
    package = tmp_path / "site" / "fastsoftmax"
    shutil.copytree(child.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "_prebuilt"))
    shutil.copytree(made, package / "_prebuilt")
    return package


@pytest.fixture
def call(cache, expected):
    """Call a function: whether a library was used, the warnings, and what `fastsoftmax info` says of it."""

    def run(package, *paths, code=CALL, **variables):
        variables = {"FASTSOFTMAX_CACHE_DIR": cache, **variables}
        results, *rest = json.loads(child.run(code, *paths, path=package.parent, **variables))
        assert results == expected
        return rest

    return run


def change(library, content=None, **description):
    """Put another content into a library, with a description that fits it."""
    path = library / NAME
    if content is not None:
        path.write_bytes(content)
        description["library"] = hashlib.sha256(content).hexdigest()
    described = path.with_suffix(".json")
    described.write_text(json.dumps(json.loads(described.read_text()) | description))


def test_it_is_used(install, call):
    used, texts, text = call(install)
    assert (used, texts) == (True, [])
    assert text == f"{install / '_prebuilt' / NAME} ({LEVEL})"


def test_symbols_are_resolved_at_once(install, call):
    assert call(install, LD_BIND_NOW="1")[:2] == [True, []]


def test_an_install_that_cannot_be_written_to(install, call):
    folders = [install, *(path for path in install.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert call(install)[:2] == [True, []]
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_none_is_there(install, call):
    shutil.rmtree(install / "_prebuilt")
    assert call(install) == [False, [], "none"]


def flipped(content):
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


@pytest.mark.parametrize(
    "damage", [flipped, lambda content: content[:-1], lambda _: b""], ids=["bit", "cut", "empty"]
)
def test_a_damaged_one(install, call, damage):
    path = install / "_prebuilt" / NAME
    path.write_bytes(damage(path.read_bytes()))
    used, (text,), _ = call(install)
    assert not used
    assert f"{path} cannot be used: its content is not what was built" in text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sources": 1', "\0"])
def test_a_damaged_description(install, call, text):
    (install / "_prebuilt" / NAME).with_suffix(".json").write_text(text)
    used, texts, _ = call(install)
    assert not used
    assert len(texts) == 1


def test_one_for_another_level(install, call):
    change(install / "_prebuilt", level="other")
    used, (text,), _ = call(install)
    assert not used
    assert f"it is for other, not {LEVEL}" in text


def foreign(content):
    """An ELF file for a machine that does not exist."""
    return content[:18] + b"\xfe\xca" + content[20:]


@pytest.mark.skipif(sys.platform != "linux", reason="changes an ELF file")
@pytest.mark.parametrize(
    "content", [foreign, lambda content: content[:64], lambda _: b"text"], ids=["foreign", "head", "text"]
)
def test_one_that_the_system_refuses(install, call, content):
    path = install / "_prebuilt" / NAME
    change(install / "_prebuilt", content(path.read_bytes()))
    used, (text,), _ = call(install)
    assert not used
    assert f"{path} cannot be used: " in text


def test_a_directory_from_which_nothing_may_be_executed(install, call):
    refuse = """
import ctypes
class CDLL(ctypes.CDLL):
    def __init__(self, name, *rest, **more):
        if name and "_prebuilt" in name:
            raise OSError(f"{name}: failed to map segment from shared object: Operation not permitted")
        super().__init__(name, *rest, **more)
ctypes.CDLL = CDLL
"""
    used, (text,), _ = call(install, code=refuse + CALL)
    assert not used
    assert "failed to map segment" in text


def test_one_of_other_sources(install, call):
    change(install / "_prebuilt", sources="0" * 64)
    used, texts, text = call(install)
    assert (used, texts) == (False, [])
    assert text.endswith("was made of other sources")


def test_one_in_the_cache_directory(install, call, cache, tmp_path, made):
    shutil.rmtree(install / "_prebuilt")
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    folder.chmod(0o700)
    assert call(install, FASTSOFTMAX_CACHE_DIR=folder)[:2] == [True, []]
    if os.name == "posix":
        folder.chmod(0o777)
        used, texts, _ = json.loads(child.run(CALL, path=install.parent, FASTSOFTMAX_CACHE_DIR=folder))[1:]
        assert (used, texts) == (False, [])


def test_a_good_one_after_a_damaged_one(install, call, cache, tmp_path, made):
    (install / "_prebuilt" / NAME).write_bytes(b"")
    shutil.copytree(made, tmp_path / "cache")
    (tmp_path / "cache").chmod(0o700)
    assert call(install, FASTSOFTMAX_CACHE_DIR=tmp_path / "cache")[:2] == [True, []]


def test_a_zip_file(install, call, tmp_path):
    with zipfile.ZipFile(tmp_path / "site.zip", "w") as archive:
        for path in install.rglob("*"):
            archive.write(path, path.relative_to(install.parent))
    (tmp_path / "empty").mkdir()
    used, texts, text = call(tmp_path / "empty" / "none", tmp_path / "site.zip")
    assert (used, texts, text) == (False, [], "none: the sources are not files")


def test_a_frozen_application(install, call):
    """There is byte code only."""
    child.run("import compileall, sys; compileall.compile_dir(sys.argv[1], quiet=1, legacy=True)", install)
    for path in install.rglob("*.py"):
        path.unlink()
    used, texts, text = call(install)
    assert (used, texts, text) == (False, [], "none: the sources are not files")


def test_a_library_lacks_what_is_not_in_it(made):
    opened = prebuilt.Library(made / NAME)
    for one in building.variants():
        there = one.name.startswith("activations.logsumexp")
        assert bool(opened.address(one.name)) == there
        assert bool(opened.address(f"{one.name}.py")) == there
    assert opened.address("activations.none.d.n") is None


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("suffix", ["", ".json"])
def test_what_others_can_write_to_is_not_used(made, tmp_path, expected, suffix):
    """In the cache directory; that of the package is as trustworthy as the package."""
    for path in made.iterdir():
        shutil.copy(path, tmp_path / path.name)
    path = (tmp_path / NAME).with_suffix(suffix or (tmp_path / NAME).suffix)
    results, used, texts, _ = json.loads(child.run(CALL, FASTSOFTMAX_CACHE_DIR=tmp_path))
    assert (results, used, texts) == (expected, True, [])
    path.chmod(0o666)
    results, used, texts, _ = json.loads(child.run(CALL, FASTSOFTMAX_CACHE_DIR=tmp_path))
    assert (results, used) == (expected, False)
    assert "others can write to it" in texts[0]
