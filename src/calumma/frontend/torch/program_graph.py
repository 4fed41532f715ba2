"""The graph of an exported program: its inputs, its nodes as the rules import them, its outputs."""

from __future__ import annotations

import operator as python_operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calumma.core.errors import ModelError, reason
from calumma.frontend.torch.aten_registry import AtenRule, call, find_complex_rule, find_rule
from calumma.frontend.torch.torch_node import NARROW, TorchNode, computed_dtype
from calumma.graph.build import named
from calumma.graph.nodes import INPUT, Graph, Node, constant
from calumma.semantics.narrow_floats import narrowed, widened
from calumma.semantics.signal import Complex

_ASSERTIONS = frozenset({"_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range_for_size"})
"""Operators without a result that check what holds for fixed shapes."""


def program_graph(program: torch.export.ExportedProgram, tensors: Mapping[str, NDArray[Any]]) -> Graph:
    """Import the nodes of a program.

    Args:
        program: core ATen operators with fixed shapes.
        tensors: parameters, buffers and constants by the name of the placeholder that they are handed to.

    Raises:
        ModelError: something is not supported; names the node.
    """
    values: dict[torch.fx.Node, Any] = {}
    inputs: list[Node] = []
    outputs: list[torch.fx.Node] = []
    for fx in program.graph.nodes:
        with named(fx.name):
            if fx.op == "placeholder":
                values[fx] = _placeholder(fx, tensors, inputs)
            elif fx.op == "call_function":
                values[fx] = _called(fx, values)
            elif fx.op == "output":
                outputs = list(fx.args[0])
            else:
                raise ModelError(f"node {fx.name}: {fx.target} is a module or control flow, expected an operator")
    for index, fx in enumerate(outputs):
        if isinstance(fx, torch.fx.Node) and isinstance(values[fx], Complex):
            raise ModelError(
                f"output {index}: {fx.meta['val'].dtype} is not supported; return real numbers (torch.view_as_real)"
            )
        if not isinstance(fx, torch.fx.Node) or not isinstance(values[fx], Node):
            raise ModelError(f"output {index}: a {type(fx).__name__}, expected a tensor; leave this output out")
    returned = [_at_the_door(fx, values[fx]) for fx in outputs]
    return Graph(inputs, returned, [f"output_{i}" for i in range(len(outputs))])


def _placeholder(fx: torch.fx.Node, tensors: Mapping[str, NDArray[Any]], inputs: list[Node]) -> Any:
    if fx.name in tensors:
        return constant(tensors[fx.name].astype(computed_dtype(fx.meta["val"].dtype), copy=False), fx.name)
    value = fx.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype.is_complex:
        raise ModelError(f"node {fx.name}: {value.dtype} is not supported; hand in real numbers (torch.view_as_real)")
    computed = computed_dtype(value.dtype)
    node = Node(INPUT, shape=tuple(value.shape), dtype=NARROW.get(value.dtype, computed), name=fx.name)
    inputs.append(node)
    if 0 in node.shape:  # its value is known: there is none
        return constant(np.zeros(node.shape, computed), fx.name)
    return widened(node) if value.dtype in NARROW else node


def _called(fx: torch.fx.Node, values: Mapping[torch.fx.Node, Any]) -> Any:
    def read(value: Any) -> Any:
        return torch.fx.node.map_arg(value, values.__getitem__)

    if fx.target is python_operator.getitem:
        source, index = fx.args
        item = values[source][index]
        if item is None:
            raise ModelError(f"node {fx.name}: result {index} of {source} is not supported; leave it out")
        return item
    node = TorchNode(fx)
    if node.op in _ASSERTIONS:
        return None
    rule = _rule(node, fx, values)
    if rule is None:
        raise ModelError(
            f"node {node.name}: operator {node.op} is not supported; "
            "write it with other torch operators, or export the module to ONNX"
        )
    arguments = {}
    for place, argument in enumerate(fx.target._schema.arguments):
        given = place < len(fx.args) or argument.name in fx.kwargs
        value = fx.args[place] if place < len(fx.args) else fx.kwargs.get(argument.name, argument.default_value)
        default = argument.default_value if argument.has_default_value() else value
        arguments[argument.name] = (read(value) if given else value, default)
    try:
        result = call(rule, node, arguments)
    except ModelError as error:
        where = f"node {node.name}: operator {node.op}"
        raise error if str(error).startswith("node ") else ModelError(f"{where}: {error}") from error
    except Exception as error:
        raise node.refused(f"cannot be imported ({reason(error)})") from error
    return _checked(node, result)


def _rule(node: TorchNode, fx: torch.fx.Node, values: Mapping[torch.fx.Node, Any]) -> AtenRule | None:
    """The operator's rule: that for complex numbers where there are some."""
    result = fx.meta.get("val")
    given = any(isinstance(values[source], Complex) for source in fx.all_input_nodes)
    if not given and not (isinstance(result, torch.Tensor) and result.is_complex()):
        return find_rule(node.overload)
    rule = find_complex_rule(node.overload)
    if rule is None:
        raise node.refused("complex numbers are not supported there")
    return rule


def _checked(node: TorchNode, result: Any) -> Any:
    """Compare with what torch says of the results: another type or shape is another function."""
    expected = node.fx.meta.get("val")
    single = isinstance(expected, torch.Tensor)
    pairs = [(result, expected)] if single else list(zip(result, expected, strict=False))
    for found, tensor in pairs:
        if found is None or not isinstance(tensor, torch.Tensor):
            continue
        shape, dtype = tuple(tensor.shape), computed_dtype(tensor.dtype.to_real())
        if isinstance(found, Complex) != tensor.is_complex():
            raise node.refused(f"its result is not {tensor.dtype}")
        if (found.shape, found.dtype) != (shape, dtype):
            raise node.refused(f"its result is {found.dtype}{list(found.shape)}, expected {dtype}{list(shape)}")
    return result


def _at_the_door(fx: torch.fx.Node, node: Node) -> Node:
    dtype = fx.meta["val"].dtype
    if dtype not in NARROW:
        return node
    return narrowed(node, NARROW[dtype])
