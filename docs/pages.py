"""The pages of the site that are made of other files of the checkout: gallery, benchmarks, changelog and the like.

conf.py calls `write` before Sphinx looks for pages. What it writes is not under version control. Nothing is run or
measured: notebooks are shown with their stored outputs, and the numbers are those of ``benchmarks/``.
"""

import base64
import json
import re
import shutil
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import readme

from fastsoftmax.tools.bench import maps, report
from fastsoftmax.tools.bench.libraries import OURS

FOLDERS = ("gallery", "benchmarks", "project")
"""What `write` writes anew in each build."""
TIMES = "\N{MULTIPLICATION SIGN}"
PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md", "SUPPORT.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
MOVED = {"benchmarks/RESULTS.md": "benchmarks/index.md", "README.md": "index.md"}
MOVED |= {name: f"project/{name.lower()}" for name in PROJECT}
"""Files outside of docs/ that have a page on the site."""


def relinked(text: str, source: Path, page: Path, repository: str) -> str:
    """Text of the file `source` with links that work on `page`: to pages of the site, or to the repository."""

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found.groups("")
        path = (source.parent / target).resolve()
        if not path.exists() or (path.is_relative_to(DOCS) and source == page):
            return found.group()
        name = path.relative_to(ROOT).as_posix()
        if name in MOVED:
            path = DOCS / MOVED[name]
        elif path.parent == ROOT / "notebooks":
            path = DOCS / "gallery" / path.name
        elif not text.startswith("!") and not path.is_relative_to(DOCS):
            return f"{text}({repository}/blob/main/{name}{anchor})"
        return f"{text}({_relative(path, page.parent)}{anchor})"

    return re.sub(r"(!?\[[^\]]*\])\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)", link, text)


def _relative(path: Path, start: Path) -> str:
    up = 0
    while not path.is_relative_to(start):
        start, up = start.parent, up + 1
    return "../" * up + path.relative_to(start).as_posix()


# --- gallery ------------------------------------------------------------------------------------------------


def _pictures(notebook: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, int], bytes]]:
    """The cells with a picture, its size on the page, which is half of its pixels, and the picture."""
    found = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture:
                found.append((cell, output["metadata"].get("image/png", {}), base64.b64decode(picture)))
    return found


def _gallery(folder: Path) -> None:
    """The notebooks with their stored outputs, and an index with a card for each."""
    cards = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        pictures = _pictures(notebook)
        for cell, size, _ in pictures:
            if "width" in size:
                cell["metadata"]["mystnb"] = {"image": {"width": f"{size['width']}px"}}
        (folder / path.name).write_text(json.dumps(notebook), encoding="utf-8")
        (folder / f"{path.stem}.png").write_bytes(max((png for *_, png in pictures), key=len))
        title, _, text = "".join(notebook["cells"][0]["source"]).partition("\n")
        sentence = re.match(r".*?\.(?= |$)", " ".join(text.split()))
        shown = sentence.group() if sentence else ""
        cards.append(
            f":::{{grid-item-card}} {title.removeprefix('# ')}\n:link: {path.stem}\n:link-type: doc\n"
            f":img-top: {path.stem}.png\n:img-alt: A figure of this notebook\n\n{shown}\n:::\n"
        )
    toctree = "\n".join(path.stem for path in sorted(folder.glob("*.ipynb")))
    (folder / "index.md").write_text(
        "# Gallery\n\nNotebooks with figures, which also run as tests. Their files are in `notebooks/` of the "
        "repository.\n\n::::{grid} 1 2 2 2\n:gutter: 3\n:class-container: gallery\n\n"
        + "\n".join(cards)
        + f"::::\n\n```{{toctree}}\n:hidden:\n\n{toctree}\n```\n",
        encoding="utf-8",
    )


# --- benchmarks ---------------------------------------------------------------------------------------------


@cache
def _measured() -> dict[str, tuple[report.Results, str]]:
    """{name of the page: (results, the directory they come from)}."""
    folder = ROOT / "benchmarks"
    files = {"tables": folder / "results.json"}
    for kind in ("families", "maps"):
        files |= {path.stem: path for path in sorted((folder / kind).glob("*.json"))}
    return {
        name: (report.from_json(path.read_text(encoding="utf-8")), path.parent.name)
        for name, path in files.items()
    }


def _benchmarks(folder: Path) -> None:
    """A page for each run, and an index of them."""
    lines, names = [], []
    for name, (results, folder_name) in _measured().items():
        machine = maps.name(results)
        kind = "Map" if folder_name == "maps" else "Tables"
        if folder_name == "families":
            kind, text = report.family(results, "##")
        elif folder_name == "maps":
            picture = f"![Our time relative to the best peer's](../../benchmarks/maps/{name}.svg)"
            text = f"{picture}\n\n{maps.markdown(results, 'python benchmarks/report.py --map --write')}"
        else:
            text = report.complete(results, "python benchmarks/report.py --write", "../../benchmarks/speed.png")
            text = text.removeprefix("# Speed\n\n")
        (folder / f"{name}.md").write_text(f"# {kind}: {machine}\n\n{text}\n", encoding="utf-8")
        behind = f"{len(report.behind(results.rows))} of {len(results.rows)}"
        typical = report.typical(results.rows)
        shown = "" if typical is None else f"{typical:.2f}"
        lines.append([f"[{machine}]({name}.md)", kind.lower(), results.machine["date"], shown, behind])
        names.append(name)
    header = ["machine", "what", "date", "our time / the best peer's (median)", "behind the best peer"]
    (folder / "overview.svg").write_text(overview(_least_ahead()[1]), encoding="utf-8")
    index = (DOCS / "benchmarks.md.in").read_text(encoding="utf-8")
    index = index.replace("MACHINES", report.markdown(header, lines)).replace("PAGES", "\n".join(names))
    (folder / "index.md").write_text(index, encoding="utf-8")


def overview(results: report.Results) -> str:
    """A picture (SVG) of the median time of each library, relative to ours."""
    ratios: dict[str, list[float]] = {}
    for row in results.rows:
        for library in row.timings:
            if not (row.is_doubtful(library) or row.is_doubtful(OURS)):
                ratios.setdefault(library, []).append(row.ratio(library))
    bars = sorted((statistics.median(found), library) for library, found in ratios.items())
    height, left, width = 34, 110, 310
    longest = max(ratio for ratio, _ in bars)
    parts = []
    for number, (ratio, library) in enumerate(bars):
        top, length = 8 + number * height, width * ratio / longest
        colour = "#2a6db0" if library == OURS else "#b8bec6"
        parts.append(
            f'<text x="{left - 8}" y="{top + 17}" text-anchor="end">{library}</text>'
            f'<rect x="{left}" y="{top}" width="{length:.1f}" height="24" rx="2" fill="{colour}"/>'
            f'<text x="{left + length + 6:.1f}" y="{top + 17}">{ratio:.1f} {TIMES}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 {len(bars) * height + 8}" width="720" '
        f'font-family="sans-serif" font-size="14" fill="#222">{"".join(parts)}</svg>\n'
    )


def _least_ahead() -> tuple[float, report.Results]:
    """The map with the greatest median of our time over the best peer's, and that median."""
    found = [(report.typical(results.rows), results) for results, kind in _measured().values() if kind == "maps"]
    return max(((median, results) for median, results in found if median is not None), key=lambda pair: pair[0])


def numbers() -> dict[str, str]:
    """The numbers of the first page: time (on the machine with the least lead), worst error, memory."""
    typical, results = _least_ahead()
    table = [line.split("|") for line in readme.read("accuracy").splitlines() if "**" in line]
    errors = [[float(cell.split("(")[0].strip(" *")) for cell in line[2:4] if cell.strip()] for line in table]
    linear = json.loads((ROOT / "benchmarks" / "linear.json").read_text(encoding="utf-8"))
    classes = max(linear["cases"], key=int)
    peaks = {library: case["peak"] for library, case in linear["cases"][classes].items()}
    return {
        "speed": f"{1 / typical:.1f} {TIMES}",
        "speed_cases": str(len(results.rows)),
        "speed_machine": maps.name(results),
        "speed_peers": ", ".join(sorted({name for row in results.rows for name in row.timings} - {OURS})),
        "error": f"{max(ours for ours, *_ in errors):.1f} ulp",
        "error_scipy": f"{max(theirs[0] for _, *theirs in errors[:2] if theirs):,.0f}",
        "memory": f"{peaks['PyTorch, dense'] / peaks[OURS]:.1f} {TIMES}",
        "memory_classes": f"{int(classes):,}",
    }


# --- the rest -----------------------------------------------------------------------------------------------


def write(repository: str) -> None:
    """Write all pages."""
    for name in FOLDERS:
        shutil.rmtree(DOCS / name, ignore_errors=True)
        (DOCS / name).mkdir()
    _gallery(DOCS / "gallery")
    _benchmarks(DOCS / "benchmarks")
    for name in PROJECT:
        page = DOCS / MOVED[name]
        page.write_text(relinked((ROOT / name).read_text(encoding="utf-8"), ROOT / name, page, repository))
