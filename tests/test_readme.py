"""README.md: its code runs; so do the examples of all docstrings."""

import doctest
import re
from pathlib import Path

import pytest

from fastsoftmax import special
from fastsoftmax.api import activations, derivatives, entropy, losses, segments
from fastsoftmax.arrays import threads
from fastsoftmax.njit import overloads

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks():
    """In order, in one namespace, as a reader would type them; there is at least one."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    overloads.register()  # Numba does that where the package is installed
    namespace = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)


def test_commands():
    """One line each, which .ci/run runs as they stand: the first one ends in the demo, the second in the tests."""
    commands = re.findall(r"^```sh\n(.*?)\n```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert all("\n" not in command for command in commands)
    assert "fastsoftmax demo" in commands[0]
    assert commands[1].endswith("pytest")


def test_links_lead_somewhere():
    """To files of the checkout."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text()):
        assert (README.parent / target).exists(), target


@pytest.mark.parametrize(
    "module",
    [activations, derivatives, entropy, losses, threads, segments, special],
    ids=lambda m: m.__name__,
)
def test_docstring_examples(module):
    """Every public function has one (test_public_api); here they run."""
    failed, tried = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried
    assert not failed
