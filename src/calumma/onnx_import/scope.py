"""The walk over an ONNX graph that imports its nodes, and the names that its sub-graphs read from outside."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calumma.core.errors import ModelError
from calumma.graph.build import named
from calumma.graph.nodes import CONSTANT, INPUT, Node, constant
from calumma.onnx_import import bounded
from calumma.onnx_import.element_types import (
    TensorType,
    computed_dtype,
    declared_types,
    is_supported,
    type_name,
)
from calumma.onnx_import.folding import folded
from calumma.onnx_import.initializers import tensor_array
from calumma.onnx_import.onnx_node import OnnxNode, Typed
from calumma.onnx_import.onnx_registry import find_rule
from calumma.onnx_import.supported import unsupported

_NARROW_FLOATS = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


class Scope:
    """The tensors of a graph, by name, and those of the graphs around it.

    Attributes:
        opsets: domain -> version.
        parent: the scope around this one; None for the model's graph.
        declared: shapes of tensors that the model declares; not to be relied on where ONNX infers one.
    """

    def __init__(
        self,
        opsets: Mapping[str, int],
        parent: Scope | None = None,
        declared: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        self.opsets = opsets
        self.parent = parent
        self.declared = declared
        self._tensors: dict[str, Typed] = {}

    def define(self, name: str, tensor: Typed) -> None:
        """Give a tensor its name."""
        self._tensors[name] = tensor

    def get(self, name: str) -> Typed:
        """The tensor of a name, here or further out. Raises ModelError where there is none."""
        if name in self._tensors:
            return self._tensors[name]
        if self.parent is None:
            raise ModelError(f"{name!r} is read, and nothing before it gives it; export the model again")
        return self.parent.get(name)

    def with_weights(self, graph: onnx.GraphProto) -> Scope:
        """A scope in this one that has the weights of a sub-graph and names for its nodes: the sub-graph can be called
        there any number of times."""
        inner = Scope(self.opsets, self)
        for tensor in graph.initializer:
            inner.define(tensor.name, constant_tensor(tensor_array(tensor), tensor.data_type, tensor.name))
        for node in graph.node:
            node.name = node.name or f"{node.op_type}:{next(iter(node.output), '')}"
        return inner

    def called(self, graph: onnx.GraphProto, inputs: Sequence[Typed]) -> list[Typed]:
        """Import a sub-graph whose weights this scope has in place, with its inputs bound in order; returns its
        outputs."""
        if len(graph.input) != len(inputs):
            raise ModelError(
                f"sub-graph {graph.name} takes {len(graph.input)} inputs, expected {len(inputs)}; export it again"
            )
        inner = Scope(self.opsets, self)
        for value, tensor in zip(graph.input, inputs, strict=True):
            inner.define(value.name, tensor)
        inner.run(graph)
        return [inner.get(value.name) for value in graph.output]

    def subgraph(self, graph: onnx.GraphProto) -> list[Typed]:
        """Import a sub-graph without inputs in place; returns its outputs."""
        return self.with_weights(graph).called(graph, [])

    def run(self, graph: onnx.GraphProto) -> None:
        """Import the nodes of a graph, whose inputs and initialisers are defined.

        Raises:
            ModelError: a node is not supported; names it, its operator, what and what to do.
        """
        types = declared_types(graph)
        for proto in graph.node:
            self._import_node(proto, types)

    def _import_node(self, proto: onnx.NodeProto, types: Mapping[str, TensorType]) -> None:
        version, defaults = _schema(proto.op_type, proto.domain, self.opsets.get(proto.domain, 0))
        inputs = [self.get(name) if name else None for name in proto.input]
        node = OnnxNode(proto, version, inputs, self, types, defaults)
        with named(proto.name):
            values = folded(proto, self.opsets, inputs, types)
            if values is not None:
                for index, (name, value) in enumerate(zip(proto.output, values, strict=True)):
                    if name:
                        self.define(name, constant_tensor(value, node.output_type(index) or None, proto.name))
                return
            results = _results(node)
        for index, name in enumerate(proto.output):
            if not name:
                continue
            result = results[index] if index < len(results) else None
            if result is None:
                raise node.refused(f"output {index} ({name}) is not supported")
            self.define(name, _checked(node, index, result, types.get(name), inputs))


class SubgraphScope(Scope):
    """A scope around a sub-graph that becomes a graph of its own: what it reads from further out, it captures.

    Attributes:
        captured: node outside -> the graph's input that stands for it, in the order of the inputs.
    """

    parent: Scope

    def __init__(self, parent: Scope) -> None:
        super().__init__(parent.opsets, parent)
        self.captured: dict[Node, Node] = {}

    def get(self, name: str) -> Typed:
        return self.capture(self.parent.get(name))

    def capture(self, tensor: Typed) -> Typed:
        """A tensor from outside as the sub-graph reads it: a constant itself, of any other an input."""
        node = tensor.node
        if node.op == CONSTANT:
            return tensor
        if node not in self.captured:
            self.captured[node] = port(node)
            self.captured[node].extents = {axis: self.inside(extent) for axis, extent in node.extents.items()}
        return Typed(self.captured[node], tensor.element_type)

    def inside(self, node: Node) -> Node:
        """An int64 node from outside as the sub-graph reads it."""
        return self.capture(Typed(node, onnx.TensorProto.INT64)).node


def port(like: Node) -> Node:
    """An input of a sub-graph for values like a node's."""
    return Node(INPUT, shape=like.shape, dtype=like.dtype, name=like.name)


def _results(node: OnnxNode) -> Sequence[Node | None]:
    rule = find_rule(node.proto.domain, node.op, node.version)
    if rule is None:
        raise unsupported(node)
    try:
        result = bounded.imported(node, rule)
    except ModelError as error:
        where = f"node {node.name}: operator {node.op}"
        raise error if str(error).startswith("node ") else ModelError(f"{where}: {error}") from error
    except Exception as error:
        raise node.refused(f"it cannot be computed {node.described()}", "export the model again") from error
    node.check_all_read()
    return (result,) if isinstance(result, Node) else result


def _checked(
    node: OnnxNode, index: int, result: Node, expected: TensorType | None, inputs: Sequence[Typed | None]
) -> Typed:
    """A result with its element type; compared with what ONNX infers: another type or shape is another function."""
    element_type, shape = expected or (onnx.TensorProto.UNDEFINED, None)
    if element_type == onnx.TensorProto.UNDEFINED:
        element_type = _guessed_type(result, inputs)
    if not is_supported(element_type):
        raise node.refused(f"its result is {type_name(element_type)}, which is not supported")
    dtype = computed_dtype(element_type)
    if shape is not None and result.extents and len(shape) == len(result.shape):
        shape = tuple(size if axis in result.extents else shape[axis] for axis, size in enumerate(result.shape))
    if result.dtype != dtype or (shape is not None and result.shape != shape):
        wanted = f"{dtype}{list(shape) if shape is not None else ''}"
        raise node.refused(f"its result {index} is {result.dtype}{list(result.shape)}, expected {wanted}")
    return Typed(result, element_type)


def _guessed_type(result: Node, inputs: Sequence[Typed | None]) -> int:
    if result.dtype == "float32":
        narrow = [given.element_type for given in inputs if given and given.element_type in _NARROW_FLOATS]
        if narrow:
            return int(narrow[0])
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(result.dtype)))


@functools.cache
def _schema(name: str, domain: str, opset: int) -> tuple[int, Mapping[str, Any]]:
    """The version of an operator that an opset holds, and the defaults of its attributes."""
    if not onnx.defs.has(name, opset, domain):
        return opset, {}
    schema = onnx.defs.get_schema(name, opset, domain)
    defaults = {}
    for key, attribute in schema.attributes.items():
        if attribute.default_value.name:
            value = onnx.helper.get_attribute_value(attribute.default_value)
            defaults[key] = value.decode() if isinstance(value, bytes) else _plain(value)
    return int(schema.since_version), defaults


def _plain(value: Any) -> Any:
    if isinstance(value, (int, float)):
        return value
    return tuple(item.decode() if isinstance(item, bytes) else item for item in value)


def constant_tensor(value: NDArray[Any], element_type: int | None, name: str = "") -> Typed:
    """A constant of the model, in the type that it is computed in."""
    if element_type is None:
        element_type = int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
    if not is_supported(element_type):
        raise ModelError(
            f"constant {name}: {type_name(element_type)} is not supported; export or convert it to float32"
        )
    return Typed(constant(np.asarray(value).astype(computed_dtype(element_type), copy=False), name), element_type)
