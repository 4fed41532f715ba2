"""Which arguments of a function are outputs and which are weights."""

from __future__ import annotations

from tvm import te

from calumma.measure.worker import signature
from tests import measure_spaces as spaces


def test_outputs_are_the_buffers_written_and_weights_the_other_inputs() -> None:
    found = signature(spaces.scale(8))
    assert found.arguments == (((8, 64), "float32"), ((64,), "float32"), ((8, 64), "float32"))
    assert (found.outputs, found.weights) == ((2,), (1,))


def test_a_residual_is_not_a_weight() -> None:
    a, b = te.placeholder((8, 64), name="A"), te.placeholder((8, 64), name="B")
    total = te.compute(a.shape, lambda i, j: a[i, j] + b[i, j], name="C")
    assert signature(te.create_prim_func([a, b, total])).weights == ()


def test_the_function_may_name_its_weights() -> None:
    assert signature(spaces.matmul().with_attr("calumma.weights", [0, 1])).weights == (0, 1)
