"""The API reference describes every public name, and every docstring passes numpydoc's checks."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastsoftmax as fs
from fastsoftmax import boosting, metrics, special
from fastsoftmax.api import ufuncs

DOCS = Path(__file__).parents[1] / "docs"
MODULES = {
    "jax": (
        "cross_entropy",
        "kl_divergence",
        "linear_cross_entropy",
        "log_softmax",
        "logsumexp",
        "segment_softmax",
        "softmax",
    ),
    "torch": (
        "cross_entropy",
        "kl_divergence",
        "linear_cross_entropy",
        "log_softmax",
        "logsumexp",
        "segment_softmax",
        "softmax",
    ),
    "sklearn": ("TemperatureScaling",),
}
"""The public names of modules that can only be imported where another library is."""
PUBLIC = {
    *(f"fastsoftmax.{name}" for name in (*fs.__all__, *ufuncs.NAMES)),
    *(f"fastsoftmax.special.{name}" for name in special.__all__),
    *(f"fastsoftmax.boosting.{name}" for name in boosting.__all__),
    *(f"fastsoftmax.metrics.{name}" for name in metrics.__all__),
    *(f"fastsoftmax.{module}.{name}" for module, names in MODULES.items() for name in names),
}
CHECKED = sorted(name for name in PUBLIC if name.rpartition(".")[2] not in ufuncs.DOCS)
for module in MODULES:
    if find_spec(module) is None:
        CHECKED = [name for name in CHECKED if not name.startswith(f"fastsoftmax.{module}.")]


def test_every_public_name_has_its_place(monkeypatch):
    """Every public name is listed once, and nothing else is. The directive of a page stands for its list."""
    monkeypatch.syspath_prepend(str(DOCS))
    import lists

    found = []
    for page in DOCS.glob("*.rst"):
        text = page.read_text()
        assert text.count(".. functions::") == (page.stem in lists.PAGES)
        assert ".. autofunction::" not in text
        assert ".. autoclass::" not in text
        for names in lists.PAGES.get(page.stem, {}).values():
            found += names
    assert sorted(found) == sorted(PUBLIC)


def test_every_page_is_in_the_index():
    index = (DOCS / "reference.rst").read_text()
    pages = {page.stem for page in DOCS.glob("*.rst")} - {"reference"}
    assert pages == set(re.findall(r"^   (\w+)$", index, re.MULTILINE))


def flaws(name, checks):
    """The errors that numpydoc's extension of Sphinx reports. A check that is listed beside "all" is left out."""
    validate = pytest.importorskip("numpydoc.validate").validate
    return [error for error in validate(name)["errors"] if error[0] not in checks]


def checks():
    """`CHECKS` of docs/conf.py, which is not imported here: it needs Sphinx, and replaces the ufuncs."""
    text = (DOCS / "conf.py").read_text()
    return set(re.findall(r'^    "([A-Z]{2}\d\d)",', text, re.MULTILINE))


@pytest.mark.parametrize("name", CHECKED)
def test_docstrings(name):
    assert flaws(name, checks()) == []


@pytest.mark.parametrize("name", ufuncs.DOCS)
def test_docstrings_of_ufuncs(name):
    """They have a first line, the formula and an example."""
    text = ufuncs.DOCS[name].strip()
    assert re.match(r"[A-Za-z].*\.\n\n", text)
    assert ".. math:: " in text
    assert "\n>>> " in text


def undocumented(x):
    return x


def malformed(x, axis):
    """Something without a full stop

    Parameters
    ----------
    y : int
        Not there.
    """


@pytest.mark.parametrize(
    ("function", "expected"), [(undocumented, {"GL08"}), (malformed, {"SS03", "PR01", "PR02", "EX01"})]
)
def test_flaws_are_found(function, expected):
    found = {code for code, _ in flaws(f"{__name__}.{function.__name__}", checks())}
    assert expected <= found
