"""ONNX operators that move, pick and place elements, in every version and form: each against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from calumma.core.errors import ModelError
from calumma.frontend.importer import import_model
from tests import isas
from tests.compiled_model import compiled
from tests.integration.test_import_onnx import Zoo

INT_TYPES = ("int8", "uint8", "int32", "int64", "float64", "bool")


def test_shapes_of_every_version() -> None:
    old = Zoo(7)
    x = old.feed(old.random(2, 1, 3, 4))
    old.add("Squeeze", x, axes=[1])
    old.add("Unsqueeze", x, axes=[0, 5])
    old.add("Slice", x, starts=[-3, 1], ends=[99, -1], axes=[3, 2])
    old.add("Pad", x, pads=[0, 0, 1, -1, 0, 0, 0, 2], value=1.5)
    old.add("Split", x, outputs=2, axis=-1, split=[1, 3])
    old.add("Dropout", x, ratio=0.3)
    old.check(isas.NATIVE)

    zoo = Zoo(18)
    x = zoo.feed(zoo.random(2, 1, 3, 4))
    zoo.add("Reshape", x, np.array([0, -1, 1, 2]))
    zoo.add("Reshape", zoo.add("Slice", x, np.array([3]), np.array([3]), np.array([3])), np.array([0, 5]), allowzero=1)
    zoo.add("Flatten", x, axis=4)
    zoo.add("Flatten", x, axis=-2)
    zoo.add("Unsqueeze", x, np.array([-1, 1]))
    zoo.add("Transpose", x)
    zoo.add("Split", x, outputs=2, axis=2, num_outputs=2)
    zoo.add("Split", x, np.array([0, 4, 0]), outputs=3, axis=-1)
    zoo.add("Slice", x, np.array([-1, 9]), np.array([-99, 0]), np.array([3, 2]), np.array([-2, -1]))
    zoo.add("Expand", x, np.array([5, 1, 2, 1, 1, 1]))
    zoo.add("Tile", x, np.array([1, 2, 1, 3]))
    zoo.add("Tile", x, np.array([1, 0, 1, 3]))
    zoo.add("CenterCropPad", x, np.array([7, 2]), axes=[1, -1])
    zoo.add("Concat", x, np.zeros((2, 1, 0, 4), np.float32), x, axis=-2)
    zoo.check(isas.NATIVE)


def test_padding_in_every_mode_and_type() -> None:
    zoo = Zoo(19)
    x = zoo.feed(zoo.random(3, 4))
    for mode in ("reflect", "edge", "wrap"):
        zoo.add("Pad", x, np.array([2, -1, 1, 2]), mode=mode)
    zoo.add("Pad", x, np.array([0, 0, 1, 3]), np.float32(np.inf))
    zoo.add("Pad", x, np.array([1, 2]), zoo.feed(np.array(2.5, np.float32)), np.array([-1]))
    for dtype in INT_TYPES:
        values = zoo.feed(zoo.rng.integers(0, 2 if dtype == "bool" else 100, (2, 3)).astype(dtype))
        zoo.add("Pad", values, np.array([1, 0, 0, 2]), np.array(1, dtype))
    zoo.check(isas.NATIVE)


def test_gathers_and_one_hot() -> None:
    zoo = Zoo(18)
    x = zoo.feed(zoo.random(3, 4, 5))
    for dtype in ("int32", "int64"):
        zoo.add("Gather", x, zoo.feed(np.array([[3, -1], [-4, 0]], dtype)), axis=1)
        zoo.add("Gather", x, np.array(-2, dtype), axis=-1)
        zoo.add("GatherElements", x, zoo.feed(zoo.rng.integers(-4, 4, (2, 7, 5)).astype(dtype)), axis=1)
    zoo.add("GatherND", x, zoo.feed(np.array([[0, -1], [-3, 2]])))
    zoo.add("GatherND", x, zoo.feed(np.array([[-1], [2], [0]])), batch_dims=1)
    index = zoo.feed(np.array([[0, -5, 2], [4, 7, -1]]))
    for axis in (-1, 0, 1):
        zoo.add("OneHot", index, np.array(5), np.array([2, 7]), axis=axis)
    zoo.add("OneHot", zoo.feed(np.array([1.0, -1.0, 9.0], np.float32)), np.array([3.0], np.float32), zoo.random(2))
    zoo.add("Trilu", x, zoo.feed(np.array(-1)), upper=0)
    zoo.add("Trilu", x, np.array(2))
    zoo.add("ReverseSequence", x, zoo.feed(np.array([2, 0, 4])), time_axis=1, batch_axis=0)
    zoo.check(isas.NATIVE)


def test_scatters_with_every_reduction() -> None:
    zoo = Zoo(18)
    x, rows = zoo.feed(zoo.random(4, 5)), zoo.feed(np.array([[0, 2, 0], [-1, -4, 1]]))
    updates, slices = zoo.feed(zoo.random(2, 3)), zoo.feed(zoo.random(3, 5))
    for reduction in ("none", "add", "mul", "max", "min"):
        unique = zoo.feed(np.array([[0, 3, 1], [-1, -4, 1]])) if reduction == "none" else rows
        zoo.add("ScatterElements", x, unique, updates, axis=0, reduction=reduction)
        where = np.array([[1], [3], [-4]] if reduction == "none" else [[1], [1], [-4]])
        zoo.add("ScatterND", x, zoo.feed(where), slices, reduction=reduction)
    zoo.add("ScatterND", zoo.feed(np.arange(6)), zoo.feed(np.array([[0], [-1]])), zoo.feed(np.array([7, 8])))
    zoo.check(isas.NATIVE)


def test_nan_wins_in_scatters_and_foreign_indices_are_clamped() -> None:
    zoo = Zoo(18)
    x = zoo.feed(np.array([1, np.nan, 3], np.float32))
    far = zoo.feed(np.array([-(1 << 60), 1, 1 << 60]))
    for reduction in ("max", "min"):
        zoo.add(
            "ScatterElements",
            x,
            zoo.feed(np.arange(3)),
            zoo.feed(np.array([np.nan, 5, 9], np.float32)),
            reduction=reduction,
        )
    zoo.add("ScatterElements", x, far, zoo.feed(np.array([7, 8, 9], np.float32)))
    zoo.add("Gather", x, far)
    zoo.add("GatherElements", x, far)
    column = zoo.add("Reshape", far, np.array([3, 1]))
    zoo.add("GatherND", x, column)
    zoo.add("ScatterND", x, column, zoo.feed(np.array([7, 8, 9], np.float32)))
    nan = np.nan
    largest, smallest, placed, taken, elements, _, tuples, slices = compiled(
        import_model(zoo.proto().SerializeToString())
    ).run(zoo.feeds)
    np.testing.assert_array_equal(largest, [nan, nan, 9])
    np.testing.assert_array_equal(smallest, [nan, nan, 3])
    for found in (placed, slices):
        np.testing.assert_array_equal(found, [7, 8, 9])
    for found in (taken, elements, tuples):
        np.testing.assert_array_equal(found, [1, nan, 3])


def _of_run_time_values(*, declared: bool) -> Zoo:
    zoo = Zoo(18)
    x = zoo.feed(np.arange(6, dtype=np.float32).reshape(2, 3))
    shapes: list[tuple[int, ...]] = [(3, 2), (4, 6), (2, 2, 3), (4, 3), (3, 6), (2, 4), (3,), (2, 1, 3)]
    zoo.add("Reshape", x, zoo.feed(np.array([-1, 2])))
    zoo.add("Tile", x, zoo.feed(np.array([2, 2])))
    zoo.add("Expand", x, zoo.feed(np.array([2, 1, 1])))
    zoo.add("Pad", x, zoo.feed(np.array([1, 1])), np.float32(3), zoo.feed(np.array([-2])))
    zoo.add("Pad", x, zoo.feed(np.array([1, 1, 0, 2])), mode="reflect")
    zoo.add("OneHot", zoo.feed(np.array([3, -1])), zoo.feed(np.array(4)), np.array([0, 1]))
    zoo.add("Range", zoo.feed(np.array(5)), zoo.feed(np.array(-1)), zoo.feed(np.array(-2)))
    zoo.add("Unsqueeze", x, zoo.feed(np.array([1])))
    if declared:
        zoo.shapes = dict(zip((node.output[0] for node in zoo.nodes), shapes, strict=True))
    return zoo


def test_a_declared_shape_is_that_of_a_result_which_values_decide() -> None:
    _of_run_time_values(declared=True).check(isas.NATIVE)
    with pytest.raises(ModelError, match=r"node Reshape:.* is computed at run time, .* is open; make it a constant"):
        import_model(_of_run_time_values(declared=False).proto().SerializeToString())


def test_split_into_other_than_its_outputs_is_refused() -> None:
    node = helper.make_node("Split", ["x"], ["a", "b"], num_outputs=3)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [6]), ("a", None))
    ]
    proto = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]), ir_version=8)
    with pytest.raises(ModelError, match="operator Split has 2 outputs for 3 parts"):
        import_model(proto.SerializeToString())


@pytest.mark.parametrize(
    ("operator", "operands", "attributes", "flaw"),
    [
        ("Reshape", [np.array([4, 2])], {}, "no shape"),
        ("Transpose", [], {"perm": [0, 0]}, "perm"),
        ("Split", [np.array([1, 1])], {"axis": 1}, "parts"),
        ("Pad", [np.array([0, -4, 0, 0])], {}, "cut off more"),
        ("Gather", [np.array([0])], {"axis": 2}, "axis 2"),
        ("ScatterND", [np.array([[0]]), np.zeros((1, 2), np.float32)], {}, "indices"),
        ("Tile", [np.array([2])], {}, "repeats"),
    ],
)
def test_forms_that_are_none_are_refused(
    operator: str, operands: list[Any], attributes: dict[str, Any], flaw: str
) -> None:
    zoo = Zoo(18)
    outputs = 2 if operator == "Split" else 1
    zoo.add(operator, zoo.feed(zoo.random(2, 3)), *operands, outputs=outputs, **attributes)
    with pytest.raises(ModelError) as error:
        import_model(zoo.proto(infer=False).SerializeToString())
    assert flaw in str(error.value) or "do not agree" in str(error.value)
