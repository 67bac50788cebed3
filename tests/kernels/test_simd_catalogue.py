"""The list of operations in `kernels.simd` is that of its modules."""

import re

import pytest
import simd_bodies

from fastsoftmax.kernels import simd


def catalogue():
    """{group: names} as the docstring of the package has them."""
    found = {}
    for line in simd.__doc__.splitlines():
        if heading := re.match(r"`(\w+)`: ", line):
            group = found.setdefault(heading[1], [])
        elif entry := re.match(r"    (\w+) +\S", line):
            group.append(entry[1])
    return found


def test_the_catalogue_has_all_groups():
    assert tuple(catalogue()) == simd_bodies.GROUPS


@pytest.mark.parametrize("group", simd_bodies.GROUPS)
def test_the_catalogue_has_all_operations(group):
    """In the order of the source, each with a docstring of its own."""
    names = catalogue()[group]
    assert names == simd_bodies.operations(group)
    for name in names:
        assert getattr(simd_bodies.module_of(group), name).__doc__
