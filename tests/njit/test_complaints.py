"""Errors of compiled callers whose text has values of the call."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import njit

import fastsoftmax as fs
from fastsoftmax.njit import complaints


@njit(nogil=True)
def loss(x, y):
    return fs.cross_entropy(x, y)


@njit
def loss_or(x, y, other):
    try:
        value = fs.cross_entropy(x, y)
    except Exception:
        value = other
    return value


def message(x, y):
    with pytest.raises(IndexError) as caught:
        loss(x, y)
    return str(caught.value)


def test_each_thread_has_its_own_text():
    """Functions without the GIL fail at the same time."""
    x, places = np.zeros((50, 4)), range(50)

    def fail(place):
        y = np.zeros(50, int)
        y[place] = 4 + place
        return [message(x, y) for _ in range(20)]

    with ThreadPoolExecutor(8) as others:
        for place, texts in zip(places, others.map(fail, places), strict=True):
            expected = f"cross_entropy: targets[{place}] is {4 + place}, expected a label from 0 to 3"
            assert set(texts) == {expected}


def test_compiled_code_may_catch_it():
    """Then nothing is left of it: later calls and later errors are as if it had not been."""
    x, right, wrong = np.zeros((2, 4)), np.array([0, 1]), np.array([0, -7])
    assert loss_or(x, wrong, 5.0) == 5.0
    assert loss_or(x, right, 5.0) == pytest.approx(np.log(4))
    assert message(x, wrong) == "cross_entropy: targets[1] is -7, expected a label from 0 to 3"


@pytest.mark.parametrize("kind", [complaints.NotedValueError, complaints.NotedIndexError])
def test_they_are_plain_exceptions(kind):
    """They keep their text when they are copied, or sent to another process, where nothing is noted."""
    complaints.formatted("a {} b", 3)
    error = kind()
    complaints.formatted("another")
    for one in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(one) is kind
        assert str(one) == "a 3 b"


def noted(form, *values):
    form(*values)
    return str(complaints.NotedValueError())


def test_places():
    text = "x[{0[0]}, {0[1]}] is {1}"
    assert noted(complaints.placed, text, 2, 7, 3, 4, 0.5) == "x[1, 3] is 0.5"
    assert noted(complaints.placed, "x[{0[0]}] is {1}", 0, 0, 9) == "x[0] is 9"
    assert noted(complaints.moved, text, 2, 7, 4, 3, 1, 0, 0.5) == "x[1, 2] is 0.5"
    assert noted(complaints.moved, "x is {1}", 0, 0, 9) == "x is 9"


def test_a_failure_to_note_leaves_no_error_of_its_own(monkeypatch):
    """The text is missing then, as in code that was cached with another version of the forms."""
    monkeypatch.delattr(complaints, "placed")
    complaints.formatted("")
    assert message(np.zeros((2, 4)), np.array([0, 9])) == ""
