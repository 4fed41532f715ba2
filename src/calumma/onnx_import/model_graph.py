"""The graph of a checked model: its inputs, its nodes as the rules import them, its outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx

from calumma.core.errors import ModelError
from calumma.extents.run_time_extents import bounded
from calumma.graph.build import check_size
from calumma.graph.nodes import INPUT, Graph, Node
from calumma.onnx_import.element_types import AT_THE_DOOR, door_dtype
from calumma.onnx_import.initializers import Weight
from calumma.onnx_import.onnx_node import Typed
from calumma.onnx_import.scope import Scope, constant_tensor
from calumma.semantics.narrow_floats import narrowed, widened


def model_graph(
    proto: onnx.ModelProto,
    inputs: Collection[str],
    weights: Mapping[str, Weight],
    declared: Mapping[str, tuple[int, ...]],
) -> Graph:
    """Import the nodes of a model.

    Args:
        proto: the model with fixed shapes of its inputs; it holds what ONNX infers of its other tensors.
        inputs: which of its inputs are the caller's; the others are large weights.
        weights: all initialisers.
        declared: shapes that the model declares, where ONNX may infer none.

    Raises:
        ModelError: something is not supported; names the node.
    """
    scope = Scope({entry.domain: entry.version for entry in proto.opset_import}, declared=declared)
    for name, weight in weights.items():
        scope.define(name, constant_tensor(weight.value, weight.element_type, name))
    nodes = []
    for value in proto.graph.input:
        if value.name in inputs:
            nodes.append(_input(value))
            scope.define(value.name, _as_computed(nodes[-1], value.type.tensor_type.elem_type))
    scope.run(proto.graph)
    names = [value.name for value in proto.graph.output]
    return Graph(nodes, [_output(name, scope.get(name)) for name in names], names)


def _input(value: onnx.ValueInfoProto) -> Node:
    tensor = value.type.tensor_type
    dtype = door_dtype(tensor.elem_type)
    shape = tuple(dim.dim_value for dim in tensor.shape.dim)
    check_size(f"input {value.name}", dtype, shape)
    return Node(INPUT, shape=shape, dtype=dtype, name=value.name)


def _as_computed(node: Node, element_type: int) -> Typed:
    if 0 in node.shape:  # its value is known: there is none
        return constant_tensor(np.zeros(node.shape, np.float32), element_type, node.name)
    return Typed(widened(node) if element_type in AT_THE_DOOR else node, element_type)


def _output(name: str, tensor: Typed) -> Node:
    try:
        dtype = door_dtype(tensor.element_type)
    except ModelError as error:
        raise ModelError(f"output {name}: {error}") from error
    if tensor.element_type not in AT_THE_DOOR:
        return tensor.node
    return bounded(narrowed(tensor.node, dtype), tensor.node.extents)
