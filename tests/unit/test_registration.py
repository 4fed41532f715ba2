"""Operators and templates from outside of the package: entered once, never in place of one that is there."""

from __future__ import annotations

import pytest

from calumma.core.errors import InputError
from tests.prim_funcs import prim_func  # loads TVM with its threads set

# isort: split
from tvm import te

from calumma import tvm_compat
from calumma.core.extensions import extensions, temporary_registrations
from calumma.operators import Operator, design_space, register
from calumma.space import fallback
from calumma.space.blocks import OPERATOR


def test_a_registered_template_is_chosen_by_the_annotation() -> None:
    class Marked(fallback.FallbackSpace):
        template = "marked"

    def twice(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda i: x[i] * 2.0, name="twice", attrs={OPERATOR: "marked"})

    func, target = prim_func(twice, (64,)), tvm_compat.target_for()
    assert design_space(func, target, 2).template == "injective"
    with temporary_registrations():
        register(Operator("marked", space=Marked))
        assert design_space(func, target, 2).template == "marked"
        assert extensions() == (__name__,), "workers import the module that registered it"
    assert design_space(func, target, 2).template == "injective"
    assert extensions() == ()


@pytest.mark.parametrize("operator", ["conv2d", "matmul"])
def test_a_family_is_not_replaced(operator: str) -> None:
    with pytest.raises(InputError, match=f"{operator}.*already"):
        register(Operator(operator, space=fallback.FallbackSpace))
