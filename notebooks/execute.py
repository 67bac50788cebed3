"""Run the notebooks from top to bottom and store what they show: ``python notebooks/execute.py [NOTEBOOK ...]``.

Each gets a Python of its own, started at the root of the checkout, so that it imports this fastsoftmax. Stored are
the outputs, but neither times of execution nor versions, which would differ from run to run for nothing.
"""

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parent
CELL_SECONDS = 600
"""After so long a cell hangs: a patient limit, since other work on the machine counts."""


def notebooks() -> list[Path]:
    """All of them, in the order in which to read them."""
    return sorted(FOLDER.glob("*.ipynb"))


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        startup_timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER.parent)}},
    )
    client.execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Pictures with a palette of colours, which a figure does not need more of: half the size."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" not in output.get("data", {}):
                continue
            picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
            shrunk = io.BytesIO()
            picture.convert("RGB").quantize(96).save(shrunk, "PNG", optimize=True)
            output.data["image/png"] = base64.b64encode(shrunk.getvalue()).decode()


def main() -> None:
    """Execute and store those that are named, or all."""
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else notebooks():
        notebook = execute(path)
        shrink(notebook)
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        print(path.name)


if __name__ == "__main__":
    main()
