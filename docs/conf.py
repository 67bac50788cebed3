"""The API reference: ``sphinx-build -W -b html docs docs/_build``.

Everything comes out of the docstrings, and the lists of functions out of lists.py. A docstring that is missing
or malformed (`CHECKS`, the tests use them too) is a warning, and ``-W`` makes that an error. Formulas become
MathML, which browsers draw by themselves: neither the build nor the reader needs a network, a font or a script.
"""

import inspect
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock

import latex2mathml.converter
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import lists

import fastsoftmax
from fastsoftmax import special
from fastsoftmax.api import ufuncs

if find_spec("torch") is None:  # it is large, and the docstrings of `fastsoftmax.torch` do not need it
    classes = {name: type(name, (), {}) for name in ("Tensor", "Function")}
    sys.modules["torch"] = MagicMock(Tensor=classes["Tensor"], **{"autograd.Function": classes["Function"]})

if find_spec("jax") is None:
    modules = ("jax", "jax.numpy", "jax.extend", "jax.extend.core", "jax.interpreters")
    sys.modules.update({name: MagicMock() for name in modules})

project = "fastsoftmax"
author = "fastsoftmax developers"
project_copyright = author
version = release = fastsoftmax.__version__
extensions = ["sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_build"]
default_role = "py:obj"
html_theme = "alabaster"
html_theme_options = {"description": "Softmax, cross-entropy and their derivatives for NumPy arrays"}
html_sidebars = {"**": ["about.html", "globaltoc.html", "searchbox.html"]}
html_show_sourcelink = False
html_math_renderer = "mathml"
autodoc_typehints = "none"  # the docstrings say more
numpydoc_show_class_members = False

CHECKS = {
    "all",
    "ES01",  # a first line may say it all
    "PR04",  # "logits, targets: as for cross_entropy" has no types
    "PR08",  # a description may begin with a symbol
    "PR09",  # or end with the formula
    "RT02",  # two results of one kind share a line
    "RT04",
    "SA01",
    "SA03",  # names in See Also need no description
    "SA04",
    "SS05",  # "Softmax of each row", not "compute"
    "YD01",  # a context manager that yields nothing
}
"""All of numpydoc's checks but these."""
numpydoc_validation_checks = CHECKS
UFUNCS = tuple(ufuncs.DOCS)
numpydoc_validation_exclude = {rf"\.{name}$" for name in UFUNCS}  # NumPy documents the arguments of ufuncs


def _described(name):
    """A function with the docstring of a ufunc, for autodoc, because a ufunc is compiled first."""
    if name in ("logaddexp", "xlogy", "rel_entr"):

        def function(x, y, /, out=None, *, where=True, dtype=None):
            pass
    else:

        def function(x, /, out=None, *, where=True, dtype=None):
            pass

    function.__name__ = function.__qualname__ = name
    function.__doc__ = ufuncs.DOCS[name]
    return function


for _name in UFUNCS:
    for _module in (fastsoftmax, special):
        vars(_module)[_name] = _described(_name)


def _inline(translator, node):
    translator.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def _block(translator, node):
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    translator.body.append(latex2mathml.converter.convert(node.astext(), display="block"))
    translator.body.append("</div>")
    raise nodes.SkipNode


class Functions(SphinxDirective):
    """``.. functions::`` describes the functions of the page, in a section for each list of lists.py."""

    def run(self):
        """The nodes of all descriptions."""
        lines = []
        sections = lists.PAGES[self.env.docname]
        for title, names in sections.items():
            if len(sections) > 1:
                lines += [title, "-" * len(title), ""]
            for name in names:
                module, _, short = name.rpartition(".")
                kind = "class" if inspect.isclass(getattr(sys.modules[module], short)) else "function"
                lines += [f".. currentmodule:: {module}", f".. auto{kind}:: {short}", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app):
    """Tell Sphinx how formulas are written and which functions there are."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.add_directive("functions", Functions)
