"""README.md and the pages of the site: code that runs, links that lead somewhere, tables as they are generated."""

import re
from pathlib import Path

import pytest

from fastsoftmax.njit import overloads

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = {page.name: page for page in (README, *sorted((ROOT / "docs" / "guide").glob("*.md")))}
SITE = (*PAGES.values(), *sorted((ROOT / "docs").glob("*.md")))


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", [page for page in SITE if blocks(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_python_blocks(page):
    """In order, in one namespace, as a reader would type them."""
    overloads.register()  # Numba does that where the package is installed
    namespace = {"__name__": page.stem}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), namespace)


def test_readme_and_guide_have_code():
    assert sum(bool(blocks(page)) for page in PAGES.values()) >= 7
    assert blocks(README)


def test_commands():
    """One line each, which .ci/run runs as they stand: the first one ends in the demo, the second in the tests."""
    commands = re.findall(r"^```sh\n(.*?)\n```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert all("\n" not in command for command in commands)
    commands = [command for command in commands if command.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert commands[0].endswith("fastsoftmax demo")
    assert commands[1].endswith("pytest")


DOCUMENTS = {
    str(page.relative_to(ROOT)): page
    for page in (
        *SITE,
        *(
            ROOT / name
            for name in ("CONTRIBUTING.md", "SUPPORT.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "tests/README.md")
        ),
    )
}
every_document = pytest.mark.parametrize("page", DOCUMENTS.values(), ids=DOCUMENTS)


WRITTEN = {("docs", name) for name in ("gallery", "benchmarks", "project")}


@every_document
def test_links_lead_somewhere(page):
    """To files of the checkout, or to pages that the build of the site writes, which checks those itself (-W)."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        written = (page.parent / target).resolve().relative_to(ROOT).parts[:2] in WRITTEN
        assert written or (page.parent / target).exists(), target


def test_the_map_of_tests_names_files():
    """tests/README.md says which of them to run after a change."""
    names = set(re.findall(r"\btests/[\w/]+\.py", DOCUMENTS["tests/README.md"].read_text()))
    assert len(names) > 20
    for name in names:
        assert (ROOT / name).exists(), name


def test_readme_links_to_every_page():
    text = README.read_text()
    for page in PAGES.values():
        assert page == README or f"]({page.relative_to(ROOT)})" in text


@pytest.fixture
def generated(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import readme

    return readme


@pytest.mark.parametrize("name", ["accuracy", "speed"])
def test_readme_shows_rows_of_the_long_tables(name, generated):
    """Those that benchmarks/readme.py chooses."""
    text = generated.read(f"excerpt of {name}")
    assert text == generated.excerpt(name)
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 2 + 3


def test_readme_has_the_table_of_functions(generated, monkeypatch):
    """As ``python docs/lists.py`` writes it."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import lists

    assert generated.read("functions") == lists.table()


def test_generated_text_stays_between_its_marks(generated, monkeypatch, tmp_path):
    (tmp_path / "docs" / "guide").mkdir(parents=True)
    readme = tmp_path / "README.md"
    page = tmp_path / "docs" / "guide" / "page.md"
    readme.write_text("a\n<!-- excerpt of accuracy: begin -->\nold\n<!-- excerpt of accuracy: end -->\nb\n")
    page.write_text("c\n<!-- accuracy: begin -->\nold\n<!-- accuracy: end -->\nd\n")
    monkeypatch.setattr(generated, "ROOT", tmp_path)
    table = "caption\n\n| | x |\n|---|---|\n| softmax, float32 | 1 |\n| another | 2 |"
    generated.write("accuracy", f"\n{table}\n")
    assert page.read_text() == f"c\n<!-- accuracy: begin -->\n{table}\n<!-- accuracy: end -->\nd\n"
    shown = table.removesuffix("\n| another | 2 |")
    assert readme.read_text() == (
        f"a\n<!-- excerpt of accuracy: begin -->\n{shown}\n<!-- excerpt of accuracy: end -->\nb\n"
    )
    with pytest.raises(ValueError, match="unpack"):
        generated.write("a name that no page has", "")
