"""docs/pages.py: the pages of the site that are made of other files of the checkout."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("rich")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REPOSITORY = "https://example.org/repository"


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import pages

    return pages


@pytest.mark.parametrize(
    ("source", "page", "text", "expected"),
    [
        ("docs/guide/speed.md", None, "[a](../../benchmarks/RESULTS.md)", "[a](../benchmarks/index.md)"),
        ("docs/guide/speed.md", None, "![a](../../benchmarks/speed.png)", "![a](../../benchmarks/speed.png)"),
        ("docs/guide/speed.md", None, "[a](accuracy.md#top)", "[a](accuracy.md#top)"),
        ("docs/guide/speed.md", None, "[a](../../notebooks/3_speed.ipynb)", "[a](../gallery/3_speed.ipynb)"),
        ("docs/guide/speed.md", None, "[a](https://example.org/README.md)", "[a](https://example.org/README.md)"),
        ("docs/guide/speed.md", None, "x[0](1)", "x[0](1)"),
        ("CONTRIBUTING.md", "docs/project/contributing.md", "[a](SECURITY.md)", "[a](security.md)"),
        ("CONTRIBUTING.md", "docs/project/contributing.md", "[a](README.md)", "[a](../index.md)"),
        (
            "CONTRIBUTING.md",
            "docs/project/contributing.md",
            "[a](docs/guide/speed.md#x) [b](tests/README.md#y)",
            f"[a](../guide/speed.md#x) [b]({REPOSITORY}/blob/main/tests/README.md#y)",
        ),
    ],
)
def test_links(pages, source, page, text, expected):
    """They lead to a page of the site if there is one, or to the repository."""
    assert pages.relinked(text, ROOT / source, ROOT / (page or source), REPOSITORY) == expected


def test_gallery(pages, tmp_path):
    """A card with a picture and a sentence for each notebook; figures have half the width of their pixels."""
    pages._gallery(tmp_path)
    index = (tmp_path / "index.md").read_text()
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert len(re.findall(r":img-alt: .*\n\n[A-Z].*\.\n:::", index)) == len(notebooks)
    for path in notebooks:
        assert f":link: {path.stem}\n" in index
        assert (tmp_path / f"{path.stem}.png").read_bytes().startswith(b"\x89PNG")
        notebook = json.loads((tmp_path / path.name).read_text())
        found = pages._pictures(notebook)
        assert found
        for cell, size, png in found:
            width = int.from_bytes(png[16:20], "big")
            assert abs(2 * size["width"] - width) <= 2
            assert cell["metadata"]["mystnb"]["image"]["width"].endswith("px")


def test_benchmarks(pages, tmp_path):
    """A page for each file of numbers, which the index names."""
    pages._benchmarks(tmp_path)
    folders = ("families", "maps")
    names = {"tables", *(path.stem for kind in folders for path in (ROOT / "benchmarks" / kind).glob("*.json"))}
    assert {path.stem for path in tmp_path.glob("*.md")} == names | {"index"}
    index = (tmp_path / "index.md").read_text()
    for name in names:
        assert f"]({name}.md)" in index
        assert (tmp_path / f"{name}.md").read_text().count("\n|---") >= 2
    assert (tmp_path / "overview.svg").read_text().count("<rect") >= 4


def test_benchmarks_of_a_family(pages, tmp_path, monkeypatch):
    """A family that was measured apart has a page of its own."""
    tables, _ = pages._measured()["tables"]
    rows = [row for row in tables.rows if row.function == "softmax_entropy"]
    apart = {"entropy": (pages.report.Results({**tables.machine, "date": "2031-01-01"}, rows), "families")}
    measured = pages._measured() | apart
    monkeypatch.setattr(pages, "_measured", lambda: measured)
    pages._benchmarks(tmp_path)
    text = (tmp_path / "entropy.md").read_text()
    assert text.startswith("# Entropy: ")
    assert "`python benchmarks/report.py --family entropy --write`" in text
    assert text.count("\n## softmax_entropy, float") == 2  # the level below the title: Sphinx warns of others
    assert re.search(r"\(entropy.md\) \| entropy \| 2031-01-01", (tmp_path / "index.md").read_text())


def test_numbers(pages):
    """Those of the first page are those of README.md."""
    numbers = pages.numbers()
    readme = (ROOT / "README.md").read_text()
    medians = [float(number) for number in re.findall(r"In the median cell our time is ([\d.]+)", readme)]
    assert float(numbers["speed"].split()[0]) == pytest.approx(1 / max(medians), rel=0.03)
    memory = re.search(r"PyTorch, dense [\d.]+ times as long, ([\d.]+) times the memory", readme).group(1)
    assert numbers["memory"].split()[0] == memory
    assert f"with {numbers['memory_classes']} classes" in readme
    first = (DOCS / "index.md").read_text()
    assert set(re.findall(r"\{\{ (\w+) \}\}", first)) == set(numbers)
