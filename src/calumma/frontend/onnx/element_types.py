"""Element types: those that can be compiled, and those that ONNX infers for every node."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from calumma.core.errors import ModelError
from calumma.frontend.importer import check_size

_TYPES = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL}) | {
    getattr(TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)
}


def check_types(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    for value in graph.input:
        _check_type(f"input {value.name}", value.type.tensor_type.elem_type)
    readers = {name: node for node in graph.node for name in node.input}
    for tensor in graph.initializer:
        reader = readers.get(tensor.name)
        if reader is not None:
            _check_type(
                f"node {reader.name or reader.output[0]} ({reader.op_type}): weight {tensor.name}", tensor.data_type
            )
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                _check_type(f"node {node.name or node.output[0]} (Cast): its result", attribute.i)


def _check_type(what: str, element_type: int) -> None:
    if element_type not in _TYPES:
        try:
            name = TensorProto.DataType.Name(element_type).lower()
        except ValueError:
            name = f"of the unknown element type {element_type}"
        raise ModelError(f"{what} is {name}, which is not supported; export or convert the model to float32")


def inferred_types(proto: onnx.ModelProto) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type of each node's first output, where ONNX can tell it without computing."""
    graph = onnx.shape_inference.infer_shapes(proto, check_type=True).graph
    types = {}
    for value in (*graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if (
            tensor.elem_type in _TYPES
            and tensor.HasField("shape")
            and all(d.HasField("dim_value") for d in tensor.shape.dim)
        ):
            dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            types[value.name] = dtype, tuple(dim.dim_value for dim in tensor.shape.dim)
            check_size(value.name, *types[value.name])
    return {node.name: types[node.output[0]] for node in proto.graph.node if node.output and node.output[0] in types}
