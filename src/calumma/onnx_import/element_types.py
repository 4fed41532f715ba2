"""Element types: how those of ONNX are computed, and those that ONNX infers for a model's tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from onnx import TensorProto, helper

from calumma.core.errors import ModelError

_COMPUTED = {
    **{
        getattr(TensorProto, name): name.lower()
        for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL")
    },
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    **dict.fromkeys((TensorProto.FLOAT16, TensorProto.BFLOAT16), "float32"),
    **{
        getattr(TensorProto, name): "float32"
        for name in ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0", "FLOAT4E2M1")
        if hasattr(TensorProto, name)
    },
    **{
        getattr(TensorProto, f"{sign}INT{bits}"): f"{sign.lower()}int8"
        for sign in ("", "U")
        for bits in (2, 4)
        if hasattr(TensorProto, f"{sign}INT{bits}")
    },
}
"""Element type -> the type that its values are computed in."""

AT_THE_DOOR = {
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
"""Element types that inputs and outputs of a compiled model can have though they are computed in another."""


def computed_dtype(element_type: int) -> str:
    """The type in which values of an element type are computed. Raises ModelError for one that cannot be."""
    if element_type not in _COMPUTED:
        raise ModelError(f"element type {type_name(element_type)} is not supported; export or convert it to float32")
    return _COMPUTED[element_type]


def door_dtype(element_type: int) -> str:
    """The type that an input or output of the compiled model has. Raises ModelError for one that it cannot have."""
    computed = computed_dtype(element_type)
    if element_type in AT_THE_DOOR:
        return AT_THE_DOOR[element_type]
    if str(helper.tensor_dtype_to_np_dtype(element_type)) != computed:
        raise ModelError(
            f"element type {type_name(element_type)} is not supported for inputs and outputs; "
            "convert the model to take and give float32 or int8"
        )
    return computed


def is_supported(element_type: int) -> bool:
    """Whether values of an element type can be computed."""
    return element_type in _COMPUTED


def type_name(element_type: int) -> str:
    """The name of an element type, for messages."""
    try:
        return str(TensorProto.DataType.Name(element_type)).lower()
    except ValueError:
        return f"number {element_type}, which is unknown"


TensorType = tuple[int, tuple[int, ...] | None]
"""Element type and shape; no shape where it is not known."""


def declared_types(graph: onnx.GraphProto) -> Mapping[str, TensorType]:
    """The types that a graph declares."""
    return dict(_types((*graph.input, *graph.value_info, *graph.output)))


def _types(values: tuple[onnx.ValueInfoProto, ...]) -> Iterator[tuple[str, TensorType]]:
    for value in values:
        if not value.type.HasField("tensor_type"):
            continue
        tensor = value.type.tensor_type
        fixed = tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)
        yield value.name, (tensor.elem_type, tuple(dim.dim_value for dim in tensor.shape.dim) if fixed else None)
