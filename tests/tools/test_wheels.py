"""Wheels: what `hatch_build.py` makes of a checkout, and the wheels of all platforms."""

import base64
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import child
import pytest

from fastsoftmax.machine import library
from fastsoftmax.runtime import prebuilt
from fastsoftmax.tools import build, wheels

CHECKOUT = child.PACKAGE.parent

pytest.importorskip("hatchling", reason="builds wheels with hatchling")
pytestmark = pytest.mark.skipif(
    not (CHECKOUT / "hatch_build.py").is_file(), reason="the package is installed, and not in a checkout"
)

COMPILES = """
import pathlib, sys
choice, directory = sys.argv[1:]
print("1 of 2 kernels", flush=True)
for name in ("v3.so", "v3.json"):
    (pathlib.Path(directory) / name).write_text(f"{choice} {name}")
print("kernels compiled for v3")
"""
FAILS = """
print("no compiled kernels: there is no linker")
raise SystemExit(1)
"""
ABORTS = """
import os
print("1 of 2 kernels", flush=True)
os.abort()
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout."""
    copy = tmp_path / "checkout"
    shutil.copytree(child.PACKAGE, copy / "fastsoftmax", ignore=shutil.ignore_patterns("__pycache__", "_prebuilt"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(CHECKOUT / name, copy)
    return copy


def build_wheel(checkout, kind="wheel", status=0, **variables):
    """Build in a copy: the file, and what was printed."""
    environment = {name: value for name, value in os.environ.items() if name != "FASTSOFTMAX_BUILD"}
    output = checkout.parent / "dist"
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(output)]
    done = subprocess.run(command, cwd=checkout, env=environment | variables, capture_output=True, text=True)
    assert (done.returncode == 0) == (status == 0), done.stderr
    return next(iter(output.glob("*")), None) if output.is_dir() else None, done.stdout + done.stderr


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def check_record(wheel):
    """The list of files in a wheel is complete and right."""
    files = contents(wheel)
    (name,) = (one for one in files if one.endswith(".dist-info/RECORD"))
    lines = [line.rsplit(",", 2) for line in files[name].decode().splitlines()]
    assert sorted(one for one, *_ in lines) == sorted(files)
    for one, digest, size in lines:
        if one != name:
            found = base64.urlsafe_b64encode(hashlib.sha256(files[one]).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={found}", str(len(files[one])))


@pytest.mark.parametrize("choice", [None, "all"])
def test_a_wheel_has_the_library_and_the_tag_of_the_platform(checkout, choice):
    (checkout / "fastsoftmax/tools/build.py").write_text(COMPILES)
    wheel, text = build_wheel(checkout, **({"FASTSOFTMAX_BUILD": choice} if choice else {}))
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl") or "universal2" in platform
    files = contents(wheel)
    assert files["fastsoftmax/_prebuilt/v3.so"] == f"{choice or 'native'} v3.so".encode()
    assert "fastsoftmax/_prebuilt/v3.json" in files
    assert "fastsoftmax: 1 of 2 kernels" in text
    assert text.count("fastsoftmax: kernels compiled for v3") == 1
    assert not (checkout / "fastsoftmax/_prebuilt").exists()
    check_record(wheel)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (FAILS, "there is no linker"),
        (ABORTS, "1 of 2 kernels"),
        ("import numba_is_missing", "ModuleNotFoundError"),
    ],
    ids=["no linker", "aborted", "no Numba"],
)
def test_where_kernels_cannot_be_compiled_the_wheel_is_pure(checkout, code, reason):
    (checkout / "fastsoftmax/tools/build.py").write_text(code)
    wheel, text = build_wheel(checkout)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not any("_prebuilt" in name for name in contents(wheel))
    (line,) = (one for one in text.splitlines() if "fastsoftmax: no compiled kernels: " in one)
    assert reason in line


def test_nothing_is_compiled_if_nobody_wants_it(checkout):
    (checkout / "fastsoftmax/tools/build.py").write_text("raise SystemExit('it was called')")
    wheel, text = build_wheel(checkout, FASTSOFTMAX_BUILD="none")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "no compiled kernels, as FASTSOFTMAX_BUILD says" in text


def test_another_choice_is_an_error(checkout):
    wheel, text = build_wheel(checkout, status=1, FASTSOFTMAX_BUILD="native,none")
    assert wheel is None
    assert "FASTSOFTMAX_BUILD=native,none: not one of native, all, none" in text


@pytest.mark.parametrize(("target", "version"), [("wheel", "editable"), ("sdist", "standard")])
def test_nothing_is_compiled_for_editable_installs_and_sources(tmp_path, target, version):
    found = importlib.util.spec_from_file_location("hatch_build", CHECKOUT / "hatch_build.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    hook = module.CustomBuildHook(str(CHECKOUT), {}, None, None, str(tmp_path), target, None)
    data = {}
    hook.initialize(version, data)
    hook.finalize(version, data, str(tmp_path))
    assert data == {}


def test_a_source_distribution_has_what_a_wheel_needs(checkout):
    (checkout / "fastsoftmax/_prebuilt").mkdir()
    (checkout / "fastsoftmax/_prebuilt/v3.so").write_text("of this machine")
    (checkout / "fastsoftmax/tools/build.py").write_text("raise SystemExit('it was called')")
    archive, _ = build_wheel(checkout, "sdist")
    shutil.unpack_archive(archive, checkout.parent / "unpacked")
    (unpacked,) = (checkout.parent / "unpacked").iterdir()
    assert (unpacked / "hatch_build.py").is_file()
    assert not (unpacked / "fastsoftmax/_prebuilt").exists()
    shutil.rmtree(archive.parent)
    (unpacked / "fastsoftmax/tools/build.py").write_text(COMPILES)
    wheel, _ = build_wheel(unpacked)
    assert "fastsoftmax/_prebuilt/v3.so" in contents(wheel)


def test_levels(monkeypatch):
    for level, every in (("v3", ("v3", "v4")), ("v4", ("v3", "v4")), ("aarch64", ("aarch64",))):
        monkeypatch.setattr(prebuilt, "level", lambda level=level: level)
        assert build.levels("native") == (level,)
        assert build.levels("all") == every
    monkeypatch.setattr(prebuilt, "level", lambda: None)
    with pytest.raises(RuntimeError, match="this processor is none of"):
        build.levels("native")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """An empty cache directory, which is not there yet, and an empty directory for what is built."""
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "built").mkdir()
    return tmp_path / "cache", tmp_path / "built"


def fake_build(levels, folder, *_):
    for level in levels:
        (folder / f"{level}.so").write_bytes(bytes(2_000_000))
        (folder / f"{level}.json").write_text(level)
    return [folder / f"{level}.so" for level in levels]


def test_what_was_built_is_told_and_kept(empty_cache, monkeypatch, capsys):
    kept, built = empty_cache
    monkeypatch.setattr(prebuilt, "level", lambda: "v4")
    with monkeypatch.context() as patch:
        patch.setattr(library, "build", fake_build)
        assert build.main("native", str(built)) == 0
    assert capsys.readouterr().out == "kernels compiled for v4 in 0 s (2.0 MB)\n"
    assert sorted(path.name for path in kept.iterdir()) == ["v4.json", "v4.so"]
    assert (kept / "v4.so").read_bytes() == (built / "v4.so").read_bytes()
    monkeypatch.setattr(library, "linker", lambda: None)
    assert build.main("native", str(built)) == 1
    assert capsys.readouterr().out.startswith("no compiled kernels: there is no linker")


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o777, 0o500])
def test_a_cache_directory_that_cannot_be_trusted(empty_cache, monkeypatch, mode):
    """Nothing is kept there if others can write to it, or if it cannot be written to."""
    kept, built = empty_cache
    kept.mkdir()
    kept.chmod(mode)
    monkeypatch.setattr(prebuilt, "level", lambda: "v4")
    monkeypatch.setattr(library, "build", fake_build)
    assert build.main("native", str(built)) == 0
    if mode == 0o777 or os.geteuid():
        assert not any(kept.iterdir())


def test_what_was_built_before_is_taken(tmp_path, monkeypatch, capsys):
    """From the cache directory, for this processor only, and only if it is of the same sources and complete."""
    found = prebuilt.search().library
    if found is None:
        pytest.skip("no library was built for these tests")
    monkeypatch.setattr(library, "build", lambda *_: pytest.fail("built"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        assert build.main("native", str(tmp_path / name)) == 0
        assert "kernels taken from the cache directory for v" in capsys.readouterr().out
        for path in (found.path, found.path.with_suffix(".json")):
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes()
    monkeypatch.setattr(library, "build", fake_build)
    monkeypatch.setenv("FASTSOFTMAX_CACHE_DIR", str(tmp_path / "first"))
    found = tmp_path / "first" / found.path.name
    with found.open("r+b") as file:
        file.write(b"damaged")
    (tmp_path / "third").mkdir()
    assert build.main("native", str(tmp_path / "third")) == 0
    assert "kernels compiled for" in capsys.readouterr().out


def test_the_wheel_of_a_platform(checkout, tmp_path):
    pure, _ = build_wheel(checkout, FASTSOFTMAX_BUILD="none")
    (tmp_path / "v3.so").write_bytes(b"library")
    made = wheels.platform_wheel(pure, "one_1.two_2", [tmp_path / "v3.so"], tmp_path)
    assert made.name == pure.name.replace("-any", "-one_1.two_2")
    before, after = contents(pure), contents(made)
    assert set(after) - set(before) == {"fastsoftmax/_prebuilt/v3.so"}
    changed = {name.rpartition("/")[2] for name in before if before[name] != after[name]}
    assert changed == {"WHEEL", "RECORD"}
    (head,) = (text.decode() for name, text in after.items() if name.endswith("/WHEEL"))
    assert "Root-Is-Purelib: false\nTag: py3-none-one_1\nTag: py3-none-two_2\n" in head
    check_record(made)


@pytest.mark.slow
def test_two_builds_give_the_same_bytes(tmp_path, monkeypatch):
    pytest.importorskip("ziglang", reason="ziglang links for all platforms")
    names = ("activations.logsumexp", "loops.exp", "loops.unary_half_loop")
    chosen = [one for one in library.variants() if one.kernel.name.startswith(names)]
    monkeypatch.setattr(library, "variants", lambda: chosen)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    for k, processes in enumerate((1, 2)):
        monkeypatch.setattr(build, "processes", lambda processes=processes: processes)
        assert wheels.main(str(tmp_path / str(k))) == 0
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / str(k)).iterdir()} for k in (0, 1))
    assert len(first) == len(wheels.PLATFORMS)
    assert first == second
    for platform in wheels.PLATFORMS:
        (wheel,) = (path for path in (tmp_path / "0").iterdir() if path.name.endswith(f"{platform.tag}.whl"))
        check_record(wheel)
        libraries = [name for name in contents(wheel) if name.startswith("fastsoftmax/_prebuilt/")]
        assert len(libraries) == 2 * len(wheels._levels(platform))
