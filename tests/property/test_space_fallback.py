"""The fallback schedules any function, and right."""

import numpy as np
import pytest
from tvm import topi

from calumma.operators.rows import space as rows
from calumma.operators.rows.expression import softmax
from calumma.space import fallback
from tests import isas
from tests.prim_funcs import apply, check_space, prim_func

X = np.random.default_rng(0).standard_normal((12, 40)).astype("float32")

CASES = {
    "elementwise": lambda x: topi.maximum(topi.add(x, x), 0.0),
    "two stages": lambda x: softmax(x, -1, isas.lanes()),
    "prefix sum": lambda x: topi.cumsum(x, 1),
    "product": lambda x: topi.matmul(x, x, False, True),
}


@pytest.mark.parametrize("isa", isas.ISAS)
@pytest.mark.parametrize("name", CASES)
def test_every_configuration_is_right(name, isa):
    func = prim_func(CASES[name], X.shape)
    assert fallback.matches(func)
    check_space(fallback.FallbackSpace, func, [X], apply(CASES[name], X), isas.target(isa), n=4)


@pytest.mark.parametrize("isa", isas.ISAS)
def test_a_function_without_blocks_stays_as_it_is(isa):
    positions, updates = np.array([[0, 1, 2], [3, 4, 5]], "int64"), X[:2, :3] + 1
    func = prim_func(
        lambda x, i, u: topi.scatter_elements(x, i, u, axis=0),
        X.shape,
        positions.shape,
        updates.shape,
        dtypes=["float32", "int64", "float32"],
    )
    expected = X.copy()
    expected[positions, np.arange(3)] = updates
    check_space(fallback.FallbackSpace, func, [X, positions, updates], expected, isas.target(isa), n=2)


def test_functions_with_opaque_blocks_are_left_to_the_fallback():
    func = prim_func(CASES["prefix sum"], X.shape)
    assert not rows.matches(func)
