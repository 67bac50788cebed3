"""Finished rows in a file, so that a run that was stopped can be continued.

A line says what is measured, with which settings; then each line is a finished row. A later run takes the rows if
it measures the same sources on the same machine, with the same versions and settings; else it begins again. Lines
that are not whole are passed over: a run can be stopped at any moment.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from fastsoftmax.tools.bench import report
from fastsoftmax.tools.bench.session import Cell, Row

LISTS = ("rows", "by_classes", "by_rows")
"""The lists of `report.Results` whose rows are stored."""


def sources() -> str:
    """A hash of all sources of the package."""
    package = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _subject(run: dict[str, Any]) -> dict[str, Any]:
    """What rows must have in common to stand in one table."""
    return {name: fact for name, fact in run.items() if name not in ("date", "load")}


class Journal:
    """The rows of a run, in a file if there is a path.

    Parameters
    ----------
    path : Path or None
        The file. It is continued if it is about the same, else written anew.
    machine : dict
        The facts of `report.machine`. For a run that is continued, they become those of its beginning, with the
        greatest load of its parts.
    settings : dict
        Whatever else affects the rows, in types of JSON.
    """

    def __init__(self, path: Path | None, machine: dict[str, Any], settings: dict[str, Any]) -> None:
        self.rows: dict[str, dict[Cell, Row]] = {name: {} for name in LISTS}
        self._path = path
        if path is None:
            return
        run = {**machine, "sources": sources(), "settings": settings}
        records = _records(path)
        runs = [record["run"] for record in records if "run" in record]
        if runs and _subject(runs[0]) == _subject(run):
            for record in records:
                if "row" in record:
                    row = report.row_from(record["row"])
                    self.rows[record["list"]][row.cell] = row
            machine["date"] = runs[0]["date"]
            if "load" in machine:
                machine["load"] = max(part["load"] for part in (*runs, run))
        else:
            path.unlink(missing_ok=True)
        self._write({"run": run})

    @property
    def taken(self) -> int:
        """How many rows there are."""
        return sum(map(len, self.rows.values()))

    def add(self, name: str, row: Row) -> None:
        """Store a row of one of the lists."""
        self.rows[name][row.cell] = row
        self._write({"list": name, "row": report.row_facts(row)})

    def _write(self, record: dict[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(record)}\n")  # an earlier line may not be whole


def _records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:  # the run was stopped while it wrote this line, or the line is empty
            continue
    return found
