"""The API reference: ``sphinx-build -W -b html docs docs/_build``.

Everything comes out of the docstrings. A docstring that is missing or malformed (`CHECKS`, the tests use them too)
is a warning, and ``-W`` makes that an error. Formulas become MathML, which browsers draw by themselves: neither
the build nor the reader needs a network, a font or a script.
"""

import sys
from pathlib import Path

import latex2mathml.converter
from docutils import nodes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fastsoftmax
from fastsoftmax import special
from fastsoftmax.api import ufuncs

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
    "PR04",  # "logits, targets: as for cross_entropy" repeats no types
    "PR08",  # a description may begin with a symbol
    "PR09",  # or end with the formula
    "RT02",  # two results of one kind share a line
    "RT04",
    "SA01",
    "SA03",  # what a name in See Also is for, its own first line says
    "SA04",
    "SS05",  # "Softmax of each row", not "compute"
    "YD01",  # a context manager that yields nothing
}
"""All of numpydoc's checks but these."""
numpydoc_validation_checks = CHECKS
UFUNCS = tuple(ufuncs.DOCS)
numpydoc_validation_exclude = {rf"\.{name}$" for name in UFUNCS}  # NumPy's arguments are NumPy's to document


def _described(name):
    """What autodoc sees in the place of a ufunc, for which it would wait until it is compiled."""
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


def setup(app):
    """Tell Sphinx how formulas are written."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
