"""Operators and templates from outside of the package: entered once, never in place of one that is there."""

from __future__ import annotations

import pytest

from calumma.core.errors import InputError
from tests.prim_funcs import prim_func  # loads TVM with its threads set

# isort: split
from tvm import te

from calumma import tvm_compat
from calumma.frontend import lowering
from calumma.frontend.operators import OPERATOR
from calumma.space import _BY_ANCHOR, design_space, fallback, register


def test_a_registered_template_is_chosen_by_the_annotation() -> None:
    class Marked(fallback.FallbackSpace):
        template = "marked"

    def twice(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda i: x[i] * 2.0, name="twice", attrs={OPERATOR: "marked"})

    func, target = prim_func(twice, (64,)), tvm_compat.target_for()
    assert design_space(func, target, 2).template == "injective"
    register("marked", Marked)
    try:
        assert design_space(func, target, 2).template == "marked"
    finally:
        del _BY_ANCHOR["marked"]


@pytest.mark.parametrize("operator", ["conv2d", "matmul"])
def test_a_template_is_not_replaced(operator: str) -> None:
    with pytest.raises(InputError, match=f"{operator}.*already"):
        register(operator, fallback.FallbackSpace)


def test_a_rule_is_not_replaced() -> None:
    with pytest.raises(InputError, match=r"nn\.conv2d.*already"):
        lowering.register_rule("nn.conv2d", lambda lowering, node: None)
