"""The lists of public functions: what each page of the reference describes, and README.md's table.

``python docs/lists.py`` writes the table. When Sphinx builds a page, its directive ``.. functions::`` describes
the functions that `PAGES` lists for it.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import readme

from fastsoftmax import _spec, boosting, metrics, special
from fastsoftmax.api import ufuncs


def _names(group: str) -> list[str]:
    return [function.name for function in _spec.FUNCTIONS.values() if function.group == group]


def _names_in(module: str) -> list[str]:
    """The public names of a module that can only be imported where another library is."""
    tree = ast.parse((ROOT / "fastsoftmax" / f"{module}.py").read_text())
    assigned = (node for node in tree.body if isinstance(node, ast.Assign))
    (names,) = (node.value for node in assigned if ast.unparse(node.targets[0]) == "__all__")
    return list(ast.literal_eval(names))


def _pages() -> dict[str, dict[str, list[str]]]:
    pages: dict[str, dict[str, list[str]]] = {}
    for name, group in _spec.GROUPS.items():
        pages.setdefault(group.page, {})[group.title] = [f"fastsoftmax.{function}" for function in _names(name)]
    return pages | {
        "elementary": {"": [f"fastsoftmax.{name}" for name in ufuncs.NAMES]},
        "special": {"": [f"fastsoftmax.special.{name}" for name in special.__all__]},
        "boosting": {"": [f"fastsoftmax.boosting.{name}" for name in boosting.__all__]},
        "metrics": {"": [f"fastsoftmax.metrics.{name}" for name in metrics.__all__]},
        **{
            module: {"": [f"fastsoftmax.{module}.{name}" for name in _names_in(module)]}
            for module in ("torch", "jax", "sklearn")
        },
        "threads": {"": ["fastsoftmax.threads"]},
    }


PAGES = _pages()
"""{page: {title of a section: names}}"""


def table() -> str:
    """README.md's table of functions."""
    lines = ["| functions | |", "|---|---|"]
    for name, group in _spec.GROUPS.items():
        names = ", ".join(f"`{function}`" for function in _names(name))
        lines.append(f"| {names} | {group.text} |")
    lines.append("| `threads(n)` | at most n threads inside the `with` block |")
    return "\n".join(lines)


if __name__ == "__main__":
    readme.write("functions", table())
