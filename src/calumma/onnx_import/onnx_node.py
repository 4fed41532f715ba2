"""An ONNX node as rules read it: what they do not read of it refuses it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, helper

from calumma.core.errors import ModelError
from calumma.graph.nodes import CONSTANT, Node
from calumma.onnx_import.element_types import TensorType, computed_dtype, type_name

if TYPE_CHECKING:
    from calumma.onnx_import.scope import Scope

_REQUIRED = object()


@dataclass(frozen=True)
class Typed:
    """A tensor of the model: the node that computes it, and its element type in the model.

    The node computes in `computed_dtype(element_type)`: float32 for the narrower floats, int8 for int4.
    """

    node: Node
    element_type: int
    """`onnx.TensorProto.DataType`."""


class OnnxNode:
    """A node whose inputs are imported.

    Attributes:
        proto: the node.
        name: unique in its graph.
        op: its operator.
        version: the version of the operator's schema that holds in this model; for a domain without schemas, the
            domain's version.
        scope: names that sub-graphs of the node can read.
    """

    def __init__(
        self,
        proto: onnx.NodeProto,
        version: int,
        inputs: Sequence[Typed | None],
        scope: Scope,
        types: Mapping[str, TensorType],
        defaults: Mapping[str, Any],
    ) -> None:
        self.proto = proto
        self.name = proto.name
        self.op = proto.op_type
        self.version = version
        self.scope = scope
        self._inputs = tuple(inputs)
        self._attributes = {attribute.name: attribute for attribute in proto.attribute}
        self._types = types
        self._defaults = defaults
        self._unread_inputs = {i for i, given in enumerate(inputs) if given is not None}
        self._unread_attributes = set(self._attributes)

    # -- inputs -----------------------------------------------------------------------------------

    def input(self, index: int) -> Node:
        """A required input."""
        node = self.optional(index)
        if node is None:
            raise self.refused(f"input {index} is missing", "export the model again")
        return node

    def optional(self, index: int) -> Node | None:
        """An input, None where it is left out."""
        self._unread_inputs.discard(index)
        given = self._inputs[index] if index < len(self._inputs) else None
        return None if given is None else given.node

    @property
    def operands(self) -> tuple[Node | None, ...]:
        """All inputs, None for those left out; this does not count as reading them."""
        return tuple(None if given is None else given.node for given in self._inputs)

    def with_input(self, index: int, node: Node) -> OnnxNode:
        """The same node with another input; what is read of it is read of this one."""
        changed = copy.copy(self)
        inputs = list(self._inputs)
        inputs[index] = Typed(node, self.input_type(index))
        changed._inputs = tuple(inputs)
        return changed

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[None]:
        """Nothing that is read inside counts as read."""
        inputs, attributes = set(self._unread_inputs), set(self._unread_attributes)
        yield
        self._unread_inputs.update(inputs)
        self._unread_attributes.update(attributes)

    def inputs(self, start: int = 0) -> list[Node]:
        """All inputs from `start` on; none may be left out."""
        return [self.input(index) for index in range(start, len(self._inputs))]

    def typed(self, start: int = 0) -> list[Typed]:
        """All inputs from `start` on, with their element types; none may be left out."""
        return [Typed(self.input(index), self.input_type(index)) for index in range(start, len(self._inputs))]

    def has_input(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self._inputs) and self._inputs[index] is not None

    def is_known(self, index: int) -> bool:
        """Whether the value of an input is known when the model is compiled, or the input is left out."""
        return not self.has_input(index) or self._inputs[index].node.op == CONSTANT  # type: ignore[union-attr]

    def input_type(self, index: int) -> int:
        """The element type of an input in the model, `TensorProto.UNDEFINED` where it is left out."""
        given = self._inputs[index] if index < len(self._inputs) else None
        return onnx.TensorProto.UNDEFINED if given is None else given.element_type

    def constant(self, index: int, what: str) -> NDArray[Any]:
        """The value of a required input that has to be known when the model is compiled.

        Args:
            what: the input's name in a message.
        """
        value = self.optional_constant(index, what)
        if value is None:
            raise self.refused(f"{what} is missing", "export the model again")
        return value

    def optional_constant(self, index: int, what: str) -> NDArray[Any] | None:
        """Likewise of an input that may be left out (None)."""
        node = self.optional(index)
        if node is None:
            return None
        if node.op != CONSTANT:
            raise self.refused(f"{what} is computed at run time", "make it a constant of the model")
        value: NDArray[Any] = node.value
        return value

    def integers(self, index: int, what: str) -> tuple[int, ...] | None:
        """An optional input that holds integers known when the model is compiled."""
        value = self.optional_constant(index, what)
        return None if value is None else tuple(int(item) for item in value.reshape(-1))

    # -- attributes -------------------------------------------------------------------------------

    def attribute(self, name: str, default: Any = _REQUIRED) -> Any:
        """An attribute as a Python value: int, float, str, a tuple of these, an array, or a GraphProto.

        Args:
            default: for an attribute that is neither given nor has a default in the operator's schema.
        """
        self._unread_attributes.discard(name)
        if name in self._attributes:
            return _python_value(self._attributes[name], self)
        if name in self._defaults:
            return self._defaults[name]
        if default is _REQUIRED:
            raise self.refused(f"attribute {name} is missing", "export the model again")
        return default

    def has_attribute(self, name: str) -> bool:
        """Whether an attribute is given."""
        return name in self._attributes

    def ignore(self, *names: str) -> None:
        """Note attributes as read that change nothing for a compiled model."""
        self._unread_attributes.difference_update(names)

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """An attribute that is 0 or 1; what another number means is not the same to all who read it."""
        value = self.attribute(name, default)
        if value not in (0, 1):
            raise self.refused(f"{name} {value}, expected 0 or 1", "export the model again")
        return bool(value)

    def axis(self, rank: int, name: str = "axis", default: Any = _REQUIRED) -> int:
        """An attribute that is an axis of a tensor of this rank, from 0."""
        return self.normalised_axis(int(self.attribute(name, default)), rank, name)

    def normalised_axis(self, axis: int, rank: int, what: str = "axis") -> int:
        """An axis that may count from the end, as one from 0."""
        if not -rank <= axis < max(rank, 1):
            raise self.refused(f"{what} {axis} of a tensor with {rank} dimensions", "export the model again")
        return axis % max(rank, 1)

    # -- outputs ----------------------------------------------------------------------------------

    def wants(self, index: int) -> bool:
        """Whether an output has a name, so that somebody may read it."""
        return index < len(self.proto.output) and bool(self.proto.output[index])

    def output_type(self, index: int = 0) -> int:
        """The element type that ONNX infers for an output, `TensorProto.UNDEFINED` where it cannot."""
        name = self.proto.output[index] if index < len(self.proto.output) else ""
        return self._types[name][0] if name in self._types else onnx.TensorProto.UNDEFINED

    def output_dtype(self, index: int = 0) -> str:
        """The type in which an output is computed."""
        return computed_dtype(self.output_type(index))

    def promised_shape(self, what: str, index: int = 0) -> tuple[int, ...]:
        """The shape of an output that follows from a value which is computed at run time: the model has to declare it.

        Args:
            what: the value, for the message of the refusal where the shape is open.
        """
        name = self.proto.output[index] if index < len(self.proto.output) else ""
        shape = self._types[name][1] if name in self._types else None
        shape = self.scope.declared.get(name) if shape is None else shape
        if shape is None:
            raise self.refused(
                f"{what} is computed at run time, and the shape of the result is open",
                "make it a constant of the model, or declare the shape",
            )
        return shape

    # -- refusals ---------------------------------------------------------------------------------

    def refused(self, flaw: str, remedy: str = "") -> ModelError:
        """The error that says what of this node is not supported, and what to do about it."""
        remedy = remedy or "export it in another form, or cut the model off before this node"
        return ModelError(f"node {self.name}: operator {self.op}: {flaw}; {remedy}")

    def described(self) -> str:
        """What the node is given, for a message: "of float32[2, 3], with axis 1"."""
        inputs = [f"{node.dtype}{list(node.shape)}" for node in self.operands if node is not None]
        plain = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS)
        attributes = [
            f"{name} {attribute.i or attribute.f or [*attribute.ints, *attribute.floats] or 0}"
            for name, attribute in self._attributes.items()
            if attribute.type in plain
        ]
        parts = [f"of {', '.join(inputs) or 'no inputs'}", *([f"with {', '.join(attributes)}"] if attributes else [])]
        return ", ".join(parts)

    def check_all_read(self) -> None:
        """Raise the error of an input or attribute that the rule has not read."""
        for index in sorted(self._unread_inputs):
            raise self.refused(f"input {index} ({self.proto.input[index]}) is not supported")
        for name in sorted(self._unread_attributes):
            raise self.refused(f"attribute {name} is not supported")

    def choice(self, name: str, known: Mapping[str, Callable] | Sequence[str], default: Any = _REQUIRED) -> str:
        """An attribute that is one of some words."""
        value = str(self.attribute(name, default))
        if value not in known:
            raise self.refused(f"{name} {value!r} is not supported, known are {', '.join(known)}")
        return value


def _python_value(attribute: AttributeProto, node: OnnxNode) -> Any:
    kind = attribute.type
    if kind == AttributeProto.TENSOR:
        from calumma.onnx_import.initializers import tensor_array

        return tensor_array(attribute.t)
    if kind in (AttributeProto.GRAPH, AttributeProto.SPARSE_TENSOR):
        return helper.get_attribute_value(attribute)
    try:
        value = helper.get_attribute_value(attribute)
        if kind == AttributeProto.STRING:
            return value.decode()
        if kind == AttributeProto.STRINGS:
            return tuple(item.decode() for item in value)
    except (ValueError, UnicodeDecodeError) as error:
        raise node.refused(f"attribute {attribute.name} cannot be read", "export the model again") from error
    if kind in (AttributeProto.INTS, AttributeProto.FLOATS):
        return tuple(value)
    if kind in (AttributeProto.INT, AttributeProto.FLOAT):
        return value
    raise node.refused(f"attribute {attribute.name} is of type {AttributeProto.AttributeType.Name(kind).lower()}")


def type_names(node: OnnxNode) -> str:
    """The element types of a node's inputs, for messages."""
    return ", ".join(type_name(given.element_type) for given in node._inputs if given is not None)


def as_array(value: Any, dtype: str) -> NDArray[Any]:
    """A sequence of numbers as an array; None as an empty one."""
    return np.asarray(() if value is None else value, dtype)
