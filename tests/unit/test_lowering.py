"""Layouts and fusion: how many kernels and layout transforms a network has left."""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi
from tvm import ir, tirx

from calumma import tvm_compat
from calumma.core.contraction import contraction_named
from calumma.core.errors import ModelError
from calumma.graph.nodes import INPUT, Graph, Node
from calumma.lowering.lowering import LoweredGraph, lower
from calumma.pipeline.extraction import extract_tasks
from calumma.space.loops import walk
from tests.onnx_models import Model

LANES = 16
MCPUS = {4: "x86-64-v2", 8: "x86-64-v3", 16: "x86-64-v4"}
"""CPUs by lanes; nothing is run here."""


def lowered(model: Model, *outputs: str, lanes: int = LANES, precision: str = "fp32") -> LoweredGraph:
    return extract_tasks(model.bytes(*outputs), tvm_compat.target_for(MCPUS[lanes]), contraction_named(precision)).graph


def kernels(graph: LoweredGraph) -> list[str]:
    return [str(v.name_hint) for v, f in graph.mod.functions_items() if isinstance(f, tirx.PrimFunc)]


def test_bias_residual_and_activation_join_their_convolution():
    m = Model()
    x = m.input(1, 16, 8, 8)
    y = m.op("Relu", m.op("Add", m.batch_norm(m.conv(x, (16, 32)), 32), m.conv(x, (16, 32), 1)))
    graph = lowered(m, m.conv(y, (32, 16)))
    found = kernels(graph)
    assert len(found) == 5
    assert sum("conv2d" in name for name in found) == 3
    assert graph.layout_transforms == 2


def test_the_first_layer_reads_the_image_as_it_is():
    m = Model()
    graph = lowered(m, m.op("GlobalAveragePool", m.op("Relu", m.conv(m.input(1, 3, 8, 8), (3, 32)))))
    assert graph.layout_transforms == 1
    assert any(p.shape == (2, 3, 3, 3, LANES) for p in graph.params)


def test_a_classifier_behind_global_pooling_needs_no_transform():
    m = Model()
    pooled = m.op("Flatten", m.op("GlobalAveragePool", m.conv(m.input(1, 3, 8, 8), (3, 32))))
    assert lowered(m, m.linear(pooled, (32, 10))).layout_transforms == 0


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_holes_of_joined_tensors_meet_zero_weights(lanes):
    """Concatenation leaves the parts' holes in the middle; the next convolution's weights are zero there."""
    m = Model()
    x = m.input(1, 3, 8, 8)
    joined = m.op("Concat", m.conv(x, (3, 17)), m.conv(x, (3, 20)), axis=1)
    graph = lowered(m, m.conv(joined, (37, 24), bias=False), lanes=lanes)
    assert graph.layout_transforms == 1
    blocks = -(-17 // lanes) + -(-20 // lanes)
    (packed,) = (p for p in graph.params if p.ndim == 6)
    assert packed.shape[1] == blocks
    by_slot = np.abs(packed).sum((0, 2, 3, 5)).reshape(-1)
    held = np.zeros(blocks * lanes, bool)
    held[:17] = True
    second = -(-17 // lanes) * lanes
    held[second : second + 20] = True
    np.testing.assert_array_equal(by_slot > 0, held)


def test_a_shuffle_before_a_depthwise_convolution_costs_nothing():
    m = Model()
    x = m.conv(m.input(1, 3, 6, 6), (3, 32))
    grouped = m.op("Reshape", x, np.array([1, 2, 16, 6, 6]))
    shuffled = m.op("Reshape", m.op("Transpose", grouped, perm=[0, 2, 1, 3, 4]), np.array([1, 32, 6, 6]))
    y = m.conv(m.conv(shuffled, (32, 32), groups=32), (32, 32), 1)
    assert lowered(m, m.op("GlobalAveragePool", y)).layout_transforms == 1


def shuffle(m: Model, x: str, groups: int, channels: int, size: int) -> str:
    x = m.op("Reshape", x, np.array([1, groups, channels // groups, size, size]))
    return m.op("Reshape", m.op("Transpose", x, perm=[0, 2, 1, 3, 4]), np.array([1, channels, size, size]))


def test_units_of_shufflenet_copy_nothing_but_a_concatenation():
    """1x1 in groups, shuffle, depthwise, 1x1 in groups, residual: what the residual joins is put in order once."""
    m = Model()

    def branch(x: str, channels: int, stride: int) -> str:
        y = shuffle(m, m.op("Relu", m.conv(x, (channels, 136), 1, groups=4)), 4, 136, 8)
        y = m.conv(y, (136, 136), groups=136, strides=[stride, stride])
        return m.conv(y, (136, 136), 1, groups=4)

    x = m.conv(m.input(1, 3, 8, 8), (3, 136))
    pooled = m.op("AveragePool", m.conv(m.input(1, 3, 8, 8), (3, 24)), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    x = m.op("Relu", m.op("Concat", m.conv(x, (136, 112), 1), pooled, axis=1))
    for _ in range(2):
        x = m.op("Relu", m.op("Add", branch(x, 136, 1), x))
    graph = lowered(m, m.op("GlobalAveragePool", x))
    assert graph.layout_transforms == 2  # before the first unit, and at the output
    found = kernels(graph)
    assert sum("block" in name for name in found) == 2
    assert any("relu" in name and "block" in name for name in found)


def test_units_of_shufflenet_v2_copy_only_the_half_that_they_keep():
    m = Model()
    x = m.conv(m.input(1, 3, 8, 8), (3, 116))
    for _ in range(2):
        left, right = m.op("Split", x, np.array([58, 58]), outputs=2, axis=1)
        right = m.conv(m.conv(m.conv(right, (58, 58), 1), (58, 58), groups=58), (58, 58), 1)
        x = shuffle(m, m.op("Concat", left, right, axis=1), 2, 116, 8)
    graph = lowered(m, m.op("GlobalAveragePool", x))
    assert graph.layout_transforms == 3  # one per unit, and at the output
    assert sum("block" in name for name in kernels(graph)) == 2  # both units' is the same kernel


def test_a_slice_that_others_than_convolutions_read_leaves_no_holes():
    m = Model()
    x = m.conv(m.input(1, 3, 8, 8), (3, 64))
    part = m.op("Slice", x, np.array([-40]), np.array([-8]), np.array([1]))
    graph = lowered(m, m.op("Relu", part), m.conv(part, (32, 16), 1, bias=False))
    (packed,) = (p for p in graph.params if p.ndim == 6)
    assert packed.shape == (1, 2, 1, 1, LANES, LANES)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_groups_multiply_by_no_zeros(lanes):
    m = Model()
    graph = lowered(m, m.conv(m.input(1, 136, 4, 4), (136, 272), 1, groups=4, bias=False), lanes=lanes)
    (packed,) = (p for p in graph.params if p.ndim == 6)
    assert packed.shape[1] * packed.shape[4] == 34
    assert np.count_nonzero(packed) == 272 * 34


def test_division_by_a_constant_keeps_the_blocked_layout():
    """Hard swish as older exporters write it, over channels that no block divides."""
    m = Model()
    x = m.conv(m.input(1, 3, 8, 8), (3, 24))
    gate = m.op("Clip", m.op("Add", x, np.float32(3)), np.float32(0), np.float32(6))
    y = m.op("Div", m.op("Mul", x, gate), np.float32(6))
    assert lowered(m, m.conv(y, (24, 16), 1)).layout_transforms == 1


def test_equal_weights_are_stored_once():
    m = Model()
    x = m.conv(m.input(1, 3, 8, 8), (3, 16))
    weight = m.random(16, 16, 3, 3)
    m.weights["shared"] = weight
    for _ in range(3):
        x = m.op("Conv", x, "shared", pads=[1] * 4)
    graph = lowered(m, x)
    assert sum(p.size == weight.size for p in graph.params) == 1


def test_names_shapes_and_types_are_the_models():
    m = Model()
    x, y = m.input(1, 16, 8, 8), m.input(4)
    first, second = m.conv(x, (16, 24)), m.op("Exp", y)
    graph = lowered(m, first, second)
    assert [(s.name, s.shape, s.dtype) for s in graph.inputs] == [(x, (1, 16, 8, 8), "float32"), (y, (4,), "float32")]
    assert [(s.name, s.shape) for s in graph.outputs] == [(first, (1, 24, 8, 8)), (second, (4,))]
    assert len(graph.mod["main"].params) == 2 + len(graph.params)


def test_an_operator_without_any_lowering_is_named():
    x = Node(INPUT, shape=(2, 3), dtype="float32", name="x")
    unknown = Node("calumma.unknown", args=(x,), shape=(2, 3), dtype="float32", name="odd_one")
    with pytest.raises(ModelError, match=r"odd_one.*calumma\.unknown"):
        lower(Graph([x], [unknown], ["y"]), tvm_compat.target_for(MCPUS[LANES]))


# -- bfloat16 ------------------------------------------------------------------------------------------


def test_a_value_is_rounded_once_for_all_contractions_that_read_it():
    m = Model()
    x = m.input(1, 12, 32)
    first, second = (m.op("Softmax", m.linear(x, (32, 32)), axis=axis) for axis in (1, 2))
    names = kernels(lowered(m, m.op("Add", first, second), precision="bf16"))
    assert [name for name in names if "narrow" in name] == ["narrow"]


def test_bfloat16_is_loaded_and_stored_but_never_computed_in():
    """TVM would widen, compute and round again by a cast that writes its operand out twice."""
    m = Model()
    x = m.op("Relu", m.conv(m.input(2, 3, 16, 16), (3, 20)))
    y = m.op("MaxPool", m.conv(x, (20, 24)), kernel_shape=[2, 2], strides=[2, 2])
    up = m.op("Resize", y, np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32), mode="nearest")
    joined = m.op("Concat", up, x, m.input(2, 5, 16, 16), axis=1)
    moved = m.op("Transpose", m.op("Reshape", joined, np.array([2, 49, 256])), perm=[0, 2, 1])
    graph = lowered(m, m.conv(joined, (49, 16)), m.linear(m.op("Softmax", moved, axis=1), (49, 8)), precision="bf16")
    stores: list[tirx.BufferStore] = []
    for _, func in graph.mod.functions_items():
        if isinstance(func, tirx.PrimFunc):
            tvm_ffi.structural_walk(func.body, (tirx.BufferStore, stores.append))
    narrow = [value for store in stores for value in walk(store.value) if str(getattr(value, "ty", "")) == "bfloat16"]
    kinds = {type(value) if not isinstance(value, ir.Call) else value.op.name for value in narrow}
    assert kinds == {ir.TensorLoad, "tirx.reinterpret"}
