"""Measure every case beside its peers: the tables of speed, the maps, and all of benchmarks/RESULTS.md.

``python benchmarks/report.py --write`` takes 25 minutes on two processors that do nothing else. It writes
results.json and speed.png. ``python benchmarks/report.py --family binary divergences --write`` measures the
functions of these families on a few shapes, in some minutes, and writes families/NAME.json; the other numbers
stay. The next run of everything replaces them. ``python benchmarks/report.py --map --write`` takes ten minutes,
and writes the map of this machine, maps/NAME.json and maps/NAME.svg; those of other machines stay. All write
docs/guide/speed.md and README.md (between the marks) and RESULTS.md, which ``--pages`` makes again of the
stored numbers. Without ``--write`` the tables are only shown. ``fastsoftmax bench`` can measure a part of the
cases, with a chosen number of threads and into another directory.

With ``--write``, each row is stored in unfinished-KIND.jsonl as soon as it is measured. If the run is stopped, the
same command continues it: it takes the rows of the same sources, machine, versions and settings, and measures the
others. Pages and results are written when all rows are there.
"""

import argparse
import math
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import readme  # noqa: E402

from fastsoftmax.tools.bench import command, maps, pictures, report  # noqa: E402
from fastsoftmax.tools.bench.session import Choice  # noqa: E402

MADE_BY = "python benchmarks/report.py --write"
MAP_MADE_BY = "python benchmarks/report.py --map --write"
FROM_GUIDE = "../../benchmarks"
"""This directory, as docs/guide/speed.md links to it."""
LIMIT = 1200.0
"""Seconds for the rows. Large arrays need most of them, and small ones share the rest. Start-up and the lines of
the picture come on top, with some minutes."""
FAMILY_SHAPES = ((32, 10), (1_000_000, 10), (10_000, 1000))
FAMILY_LIMIT = 150.0
"""As `LIMIT`; for large arrays, the least number of samples takes longer."""


def read(path: Path) -> report.Results:
    """What a run has stored."""
    return report.from_json(path.read_text(encoding="utf-8"))


def stored_maps(directory: Path) -> dict[str, report.Results]:
    """{name of the file: map} of all machines, by the names of the machines."""
    found = {path.stem: read(path) for path in (directory / "maps").glob("*.json")}
    return dict(sorted(found.items(), key=lambda item: maps.name(item[1])))


def write_map(results: report.Results, directory: Path) -> None:
    """Store and draw the map of a machine, in place of an earlier one of the same machine."""
    name = re.sub(r"[^a-z0-9]+", "-", maps.name(results).lower()).strip("-")
    place = directory / "maps"
    place.mkdir(exist_ok=True)
    (place / f"{name}.json").write_text(report.as_json(results), encoding="utf-8")
    pictures.draw_map(results, place / f"{name}.svg")


def stored_families(directory: Path) -> list[report.Results]:
    """The families that were measured after everything, in the order of the table of functions."""
    found = [read(path) for path in (directory / "families").glob("*.json")]
    return sorted(found, key=lambda results: results.rows[0].place)


def write_families(results: report.Results, directory: Path) -> None:
    """Store the rows of each family in a file of its own."""
    place = directory / "families"
    place.mkdir(exist_ok=True)
    for name, functions in report.families().items():
        if rows := [row for row in results.rows if row.function in functions]:
            text = report.as_json(report.Results(results.machine, rows))
            (place / f"{name.replace(' ', '-')}.json").write_text(text, encoding="utf-8")


def shown_maps(directory: Path) -> str:
    """The maps as README.md shows them: a picture of each machine, with a sentence."""
    parts = []
    for stem, results in stored_maps(directory).items():
        name = maps.name(results)
        parts.append(f"{name}, {results.machine['date']}. {maps.summary(results)}\n")
        parts.append(f"![Our time relative to the best peer's on {name}](benchmarks/maps/{stem}.svg)\n")
    if parts:
        parts.append(f"Made by `{MAP_MADE_BY}`. {maps.LEGEND}")
    return "\n".join(parts)


def write_pages(directory: Path) -> None:
    """Write RESULTS.md into a directory with stored results, and parts of README.md and docs/guide/speed.md."""
    results = read(directory / "results.json")
    parts = [report.complete(results, MADE_BY, "speed.png")]
    for found in stored_families(directory):
        title, text = report.family(found, "###")
        parts.append(f"## {title}\n\n{text}\n")
    for stem, found in stored_maps(directory).items():
        picture = f"![Our time relative to the best peer's](maps/{stem}.svg)"
        parts.append(f"## Map: {maps.name(found)}\n\n{picture}\n\n{maps.markdown(found, MAP_MADE_BY)}\n")
    (directory / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")
    summary = report.summary(results, MADE_BY, f"{FROM_GUIDE}/RESULTS.md", f"{FROM_GUIDE}/speed.png")
    readme.write("speed", summary)
    readme.write("maps", shown_maps(directory))


def main() -> int:
    """Measure, show, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, help="the most that a row is measured, for each number of threads"
    )
    parser.add_argument("--limit", type=float, help="seconds for all rows together")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--map", action="store_true", help="measure the map of this machine instead of the tables")
    chosen.add_argument(
        "--family",
        action="extend",
        nargs="+",
        choices=report.families(),
        metavar="FAMILY",
        help=f"measure these families only: {', '.join(report.families())}",
    )
    parser.add_argument("--write", action="store_true", help="store the results, and write the pages")
    parser.add_argument("--pages", action="store_true", help="write the pages of what is stored; measure nothing")
    options = parser.parse_args()
    if options.pages:
        write_pages(HERE)
        return 0
    kind = "map" if options.map else "family" if options.family else "everything"
    unfinished = HERE / f"unfinished-{kind}.jsonl" if options.write else None
    if options.map:
        seconds, limit = options.seconds or command.MAP_SECONDS, options.limit or math.inf
        results, agree = command.run_map(seconds=seconds, limit=limit, unfinished=unfinished)
        if options.write:
            write_map(results, HERE)
    elif options.family:
        wanted = {name for family in options.family for name in report.families()[family]}
        functions = tuple(name for name in Choice().functions if name in wanted)
        seconds, limit = options.seconds or command.SECONDS, options.limit or FAMILY_LIMIT
        choice = Choice(functions, FAMILY_SHAPES)
        results, agree = command.run(choice, seconds=seconds, limit=limit, unfinished=unfinished)
        if options.write:
            write_families(results, HERE)
    else:
        seconds, limit = options.seconds or command.SECONDS, options.limit or LIMIT
        output = HERE if options.write else None
        results, agree = command.run(Choice(), seconds=seconds, limit=limit, output=output, unfinished=unfinished)
        if options.write:
            for path in (HERE / "families").glob("*.json"):
                path.unlink()
    if unfinished is not None:
        unfinished.unlink()
        (HERE / "results.md").unlink(missing_ok=True)
        write_pages(HERE)
    return 0 if agree else 1


if __name__ == "__main__":
    raise SystemExit(main())
