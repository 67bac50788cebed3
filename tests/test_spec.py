"""The table of functions lists all public functions, and its entries are true."""

import inspect
from importlib import import_module

import pytest

import fastsoftmax as fs
from fastsoftmax import _spec
from fastsoftmax.machine.entry import entry

pytestmark = pytest.mark.smoke

NO_FUNCTION_OF_ARRAYS = {"threads"}


def test_every_public_function_has_one_entry():
    assert set(_spec.FUNCTIONS) == set(fs.__all__) - NO_FUNCTION_OF_ARRAYS


@pytest.mark.parametrize("function", _spec.FUNCTIONS.values(), ids=_spec.FUNCTIONS)
def test_an_entry_is_true(function):
    module = import_module(f"fastsoftmax.api.{function.module}")
    public = getattr(module, function.name)
    assert public is getattr(fs, function.name)
    positional = [p.name for p in inspect.signature(public).parameters.values() if p.default is p.empty]
    assert len(positional) == len(function.operands)
    for name, role in zip(positional, function.operands, strict=True):
        if (
            role in (_spec.LABELS, _spec.DISTRIBUTIONS, _spec.POSITIONS, _spec.PROBABILITIES)
            and name != _spec.LABELS
        ):
            role = _spec.TARGETS
        assert name == ("x" if role == _spec.LOGITS and name != "logits" else role)
    assert list(entry(function.kernel).variants())
    assert function.group in _spec.GROUPS
    assert not function.loss or function.loss in _spec.FUNCTIONS
