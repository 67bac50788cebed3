"""Put generated text into README.md, between the marks that name it."""

from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def write(name: str, text: str) -> None:
    """Replace what stands between ``<!-- name: begin -->`` and ``<!-- name: end -->``."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    content = README.read_text(encoding="utf-8")
    before, rest = content.split(begin)
    _, after = rest.split(end)
    README.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")
