"""Measure every case beside its peers: the table and the picture of README.md, and all of benchmarks/RESULTS.md.

``python benchmarks/report.py --write`` takes twenty minutes, on a machine that does nothing else, and writes
README.md (between its marks), benchmarks/RESULTS.md, results.json and speed.png. Without ``--write`` it only
shows the tables. A part of the cases, a directory of one's own, a number of threads: ``fastsoftmax bench``.
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
LIMIT = 360.0
"""Seconds for the rows; start-up, the picture's lines and the peers' compilers come on top."""


def write(results: report.Results, directory: Path) -> None:
    """Put the results of a run, whose files are in `directory`, into README.md and beside this file."""
    (directory / "results.md").rename(directory / "RESULTS.md")
    (directory / "RESULTS.md").write_text(report.complete(results, MADE_BY, "speed.png"), encoding="utf-8")
    readme.write("speed", report.summary(results, MADE_BY, "benchmarks/RESULTS.md", "benchmarks/speed.png"))


def main() -> int:
    """Measure, show, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="the most that a row of the tables is measured")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all rows together")
    parser.add_argument("--write", action="store_true", help="write README.md, RESULTS.md and speed.png")
    options = parser.parse_args()
    output = HERE if options.write else None
    results, agree = command.run(Choice(), seconds=options.seconds, limit=options.limit, output=output)
    if options.write:
        write(results, HERE)
    return 0 if agree else 1


if __name__ == "__main__":
    raise SystemExit(main())
