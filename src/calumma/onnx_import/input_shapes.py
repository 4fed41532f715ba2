"""Open dimensions of a model's inputs, and the sizes a caller gives them."""

from __future__ import annotations

import onnx

from calumma.core.errors import ModelError
from calumma.graph.imported_model import Shapes
from calumma.onnx_import.element_types import door_dtype
from calumma.onnx_import.graph_fields import subgraphs

_NAMELESS = frozenset({"?", "-1", "None"})
"""What exporters write for any open dimension: no name that ties dimensions together."""

_OF_ONE = frozenset({"Abs", "Cast", "CastLike", "Cos", "Exp", "Identity", "Log", "Neg", "Reciprocal", "Sin", "Sqrt"})
"""Operators whose result has the shape of their first input."""

_OF_TWO = frozenset({"Add", "Div", "Mul", "Sub"})
"""Operators whose result has the shape of both inputs where these are alike, and of one where the other is a scalar."""


def fix_shapes(proto: onnx.ModelProto, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Write fixed dimensions into the model's inputs; a symbol that one input fixes is fixed in all."""
    graph = proto.graph
    for value in graph.input:
        if not value.type.HasField("tensor_type"):
            kind = str(value.type.WhichOneof("value")).removesuffix("_type")
            raise ModelError(f"input {value.name}: a {kind}, expected a tensor; export the model with tensor inputs")
        try:
            door_dtype(value.type.tensor_type.elem_type)
        except ModelError as error:
            raise ModelError(f"input {value.name}: {error}") from error
    unknown = sorted(set(shapes) - {value.name for value in graph.input})
    if unknown:
        listed = ", ".join(_signature(value) for value in graph.input) or "none"
        raise ModelError(f"shape {unknown[0]}: no such input; the inputs are {listed}")
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in _NAMELESS:
                dim.ClearField("dim_param")
    symbols: dict[str, tuple[int, str]] = {}
    for value in graph.input:
        if value.name in shapes:
            _bind(value, tuple(shapes[value.name]), symbols)
    for value in (*graph.input, *graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param][0]
    still_open = [value for value in graph.input if not _is_fixed(value)]
    if still_open:
        raise ModelError(
            f"open dimensions in {', '.join(_signature(value) for value in still_open)}; give "
            + ", ".join(_shape_option(value) for value in still_open)
        )
    return {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in graph.input}


def take_shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes that a model declares for tensors other than its inputs, where they are fixed; they leave the model.

    Exporters write false ones, so that nothing else may depend on them; but they are all there is to know of a result
    whose shape follows from a value that is computed at run time.
    """
    graph = proto.graph
    declared = [value for value in (*graph.value_info, *graph.output) if _is_fixed(value)]
    shapes = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in declared}
    _carry_back(graph, shapes)
    for each in (graph, *subgraphs(graph)):
        del each.value_info[:]
        for value in (*(each.input if each is not graph else ()), *each.output):
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()
    return shapes


def _carry_back(graph: onnx.GraphProto, shapes: dict[str, tuple[int, ...]]) -> None:
    """Add the shapes of what results with a declared shape are computed from element by element."""
    scalars = [value.name for value in graph.input if _is_fixed(value) and not value.type.tensor_type.shape.dim]
    scalars += [tensor.name for tensor in graph.initializer if not tensor.dims]
    alike = dict.fromkeys(scalars, "")  # value -> the one whose shape it has; none of a scalar
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        if _is_scalar(node):
            alike[node.output[0]] = ""
        read = node.input[:1] if node.op_type in _OF_ONE else node.input if node.op_type in _OF_TWO else ()
        sources = {alike.get(name, name) for name in read} - {""}
        if read and len(sources) < 2:
            alike[node.output[0]] = next(iter(sources), "")
    for name, source in alike.items():
        if source and name in shapes:
            shapes.setdefault(source, shapes[name])


def _is_scalar(node: onnx.NodeProto) -> bool:
    """Whether a node is a constant without dimensions."""
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return False
    (held,) = node.attribute
    return held.name in ("value_float", "value_int") or (held.name == "value" and not held.t.dims)


def _bind(value: onnx.ValueInfoProto, shape: tuple[int, ...], symbols: dict[str, tuple[int, str]]) -> None:
    option = f"shape {value.name}={','.join(map(str, shape))}"
    if any(size < 0 for size in shape):
        raise ModelError(f"{option}: no dimension may be negative")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in shape)
    if len(shape) != len(tensor.shape.dim):
        raise ModelError(
            f"{option}: {len(shape)} dimensions, but the input is {_signature(value)} with {len(tensor.shape.dim)}; "
            f"give {_shape_option(value)}"
        )
    for axis, (dim, size) in enumerate(zip(tensor.shape.dim, shape, strict=True)):
        if _is_known(dim) and dim.dim_value not in (0, size):  # some exporters write 0 for an open dimension
            raise ModelError(
                f"{option}: dimension {axis} is fixed to {dim.dim_value} in the model; give {_shape_option(value)}"
            )
        if dim.dim_param:
            bound, by = symbols.setdefault(dim.dim_param, (size, value.name))
            if bound != size:
                raise ModelError(
                    f"{option}: dimension {dim.dim_param} is {bound} in input {by}; give both the same size"
                )
        dim.dim_value = size


def _is_fixed(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(_is_known(dim) for dim in tensor.shape.dim)


def _is_known(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return dim.HasField("dim_value") and dim.dim_value >= 0


def _dims(value: onnx.ValueInfoProto) -> list[str]:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return ["..."]
    return [str(dim.dim_value) if _is_known(dim) else dim.dim_param or "?" for dim in tensor.shape.dim]


def _signature(value: onnx.ValueInfoProto) -> str:
    return f"{value.name}[{','.join(_dims(value))}]"


def _shape_option(value: onnx.ValueInfoProto) -> str:
    return f"shape {value.name}={','.join(size if size.isdecimal() else size.upper() for size in _dims(value))}"
