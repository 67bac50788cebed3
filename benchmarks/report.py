"""Measure every case beside its peers: the tables of speed, and all of benchmarks/RESULTS.md.

``python benchmarks/report.py --write`` takes twenty minutes, on a machine that does nothing else. It writes the
tables of docs/guide/speed.md and README.md (between the marks), RESULTS.md, results.json and speed.png. Without
``--write`` it only shows the tables. ``fastsoftmax bench`` can measure a part of the cases, with a chosen number
of threads and into another directory.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import readme  # noqa: E402

from fastsoftmax.tools.bench import command, report  # noqa: E402
from fastsoftmax.tools.bench.session import Choice  # noqa: E402

MADE_BY = "python benchmarks/report.py --write"
FROM_GUIDE = "../../benchmarks"
"""This directory, as docs/guide/speed.md links to it."""
LIMIT = 360.0
"""Seconds for the rows; start-up, the picture's lines and the peers' compilers come on top."""


def write(results: report.Results, directory: Path) -> None:
    """Put the results of a run, whose files are in `directory`, into the pages and beside this file."""
    (directory / "results.md").rename(directory / "RESULTS.md")
    (directory / "RESULTS.md").write_text(report.complete(results, MADE_BY, "speed.png"), encoding="utf-8")
    summary = report.summary(results, MADE_BY, f"{FROM_GUIDE}/RESULTS.md", f"{FROM_GUIDE}/speed.png")
    readme.write("speed", summary)


def main() -> int:
    """Measure, show, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="the most that a row of the tables is measured")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all rows together")
    parser.add_argument("--write", action="store_true", help="write the tables, RESULTS.md and speed.png")
    options = parser.parse_args()
    output = HERE if options.write else None
    results, agree = command.run(Choice(), seconds=options.seconds, limit=options.limit, output=output)
    if options.write:
        write(results, HERE)
    return 0 if agree else 1


if __name__ == "__main__":
    raise SystemExit(main())
