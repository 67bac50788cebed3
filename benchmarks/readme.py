"""Put generated text into README.md and the pages of docs/guide, between marks with its name."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

EXCERPTS = {
    "speed": (
        "| softmax | 1,000,000 x 10 |",
        "| softmax_vjp | 10,000 x 1,000 |",
        "| cross_entropy_with_grad | 10,000 x 1,000 |",
    ),
    "accuracy": ("| softmax, float32 |", "| log_softmax, float64 |", "| cross-entropy of a row, float32 |"),
}
"""README.md shows those rows of a table of docs/guide that begin so."""


def pages() -> list[Path]:
    """README.md, and the pages of docs/guide."""
    return [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]


def _parts(name: str) -> tuple[Path, str, str, str]:
    """The page with the marks of this name, and its text before, between and after them."""
    begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
    (page,) = (page for page in pages() if begin in page.read_text(encoding="utf-8"))
    before, rest = page.read_text(encoding="utf-8").split(begin)
    text, after = rest.split(end)
    return page, before + begin, text, end + after


def read(name: str) -> str:
    """The text between ``<!-- name: begin -->`` and ``<!-- name: end -->``."""
    return _parts(name)[2]


def excerpt(name: str) -> str:
    """The caption and the head of a table, and the rows that README.md shows."""
    lines = read(name).splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("|---"))
    return "\n".join([*lines[: head + 1], *(line for line in lines if line.startswith(EXCERPTS[name]))])


def write(name: str, text: str) -> None:
    """Replace the text between the marks of this name, and its excerpt in README.md if there is one."""
    page, before, _, after = _parts(name)
    page.write_text(f"{before}{text.strip()}{after}", encoding="utf-8")
    if name in EXCERPTS:
        write(f"excerpt of {name}", excerpt(name))
