"""The site: ``sphinx-build -W -b html docs docs/_build``.

The reference comes out of the docstrings, and its lists of functions out of lists.py; the gallery, the benchmarks
and the pages on the project come out of other files of the checkout, by pages.py. A docstring that is missing or
malformed (`CHECKS`, the tests use them too) is a warning, and ``-W`` makes that an error. Formulas become MathML,
which browsers draw by themselves.

The build needs no network. With FASTSOFTMAX_DOCS_ONLINE=1, names of Python, NumPy, SciPy and scikit-learn become
links into their documentation.
"""

import inspect
import os
import re
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
import pages

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
REPOSITORY = re.search(r'^Source = "(.*)"$', (HERE.parent / "pyproject.toml").read_text(), re.MULTILINE).group(1)
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
default_role = "py:obj"
myst_enable_extensions = ["colon_fence", "dollarmath", "substitution"]
myst_heading_anchors = 3
myst_substitutions = pages.numbers()
nb_execution_mode = "off"  # the notebooks hold their outputs, and the tests run them
nb_output_stderr = "remove"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
html_theme = "furo"
pygments_dark_style = "monokai"
html_title = "fastsoftmax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {
    "footer_icons": [{"name": "Source code", "url": REPOSITORY, "html": "Source code", "class": ""}],
}
html_show_sourcelink = False
INVENTORIES = {
    "python": "https://docs.python.org/3",
    "numpy": "https://numpy.org/doc/stable",
    "scipy": "https://docs.scipy.org/doc/scipy",
    "sklearn": "https://scikit-learn.org/stable",
}
if os.environ.get("FASTSOFTMAX_DOCS_ONLINE") == "1":
    intersphinx_mapping = {name: (address, None) for name, address in INVENTORIES.items()}
linkcheck_anchors = False
linkcheck_ignore = [r"https://doi\.org/"]  # publishers turn programs away
linkcheck_retries = 3
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
    function.__module__ = ufuncs.__name__
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


def relink(app, docname, source):
    """Links of the guide to files outside of docs/ lead to their pages, or to the repository."""
    path = Path(app.env.doc2path(docname))
    if path.parent == HERE / "guide":
        source[0] = pages.relinked(source[0], path, path, REPOSITORY)


def setup(app):
    """Tell Sphinx how formulas are written and which functions there are."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.add_directive("functions", Functions)
    app.connect("source-read", relink)


pages.write(REPOSITORY)
