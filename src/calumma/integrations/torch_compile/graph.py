"""What a graph of Dynamo's computes, told apart for one set of arguments.

Dynamo hands parameters and buffers in as arguments. They are *folded*: compiled into the region, which then holds for
these tensors with these contents alone. What else is a tensor among the arguments is an *input*. A whole number is a
*size*, and compiled in as well.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from calumma.core.errors import ModelError

_RECORDING = frozenset(
    {
        torch._C._set_grad_enabled,
        torch.autograd.grad_mode._enter_inference_mode,
        torch.autograd.grad_mode._exit_inference_mode,
    }
)
"""What switches recording for autograd on and off: a compiled region records nothing."""

_SOURCES = frozenset({"torch", "_operator", "math", "builtins"})
"""Packages whose functions a text can name: their versions are part of a region's key, those of others are not."""

_LITERALS = (
    *(str, int, float, bool, complex, types.NoneType, types.EllipsisType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)


@dataclass(frozen=True)
class RegionOutput:
    """One tensor that a region computes."""

    dtype: torch.dtype
    stride: tuple[int, ...] | None
    """Elements from one index to the next, as torch would lay it out; None: C-contiguous."""

    @property
    def computed_dtype(self) -> torch.dtype:
        """Of what the region computes: complex numbers are pairs of real ones on a last axis."""
        return self.dtype.to_real()


@dataclass(frozen=True)
class ArgumentView:
    """A result that is a view of an argument: nothing is computed, and a change of one is seen in the other."""

    argument: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    """Elements from the argument's first to the view's."""

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The view of an argument."""
        return tensor.as_strided(self.shape, self.stride, tensor.storage_offset() + self.offset)


class RegionGraph:
    """A graph of Dynamo's, before anything is known of a call's arguments but their kinds."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        """Look at a graph.

        Raises:
            ModelError: calumma cannot compile it, whatever its arguments are; says why.
        """
        self._module = module
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        kinds = [_kind(node) for node in placeholders]
        self.folded = tuple(i for i, kind in enumerate(kinds) if kind == "folded" and placeholders[i].users)
        """Arguments that are parameters and buffers; those that are used, like the inputs."""
        self.inputs = tuple(i for i, kind in enumerate(kinds) if kind == "input" and placeholders[i].users)
        self.sizes = tuple(i for i, kind in enumerate(kinds) if kind == "size")
        values = [_value(node) for node in placeholders]
        self.is_open = bool(self.sizes) or not all(_is_fixed(value) for value in values)
        """Whether Dynamo leaves a size open until a call."""
        (returned,) = next(node for node in module.graph.nodes if node.op == "output").args
        self._computed: list[torch.fx.Node] = []
        self._returned: list[tuple[str, Any]] = []
        for entry in returned:
            view = None if self.is_open else _view(entry, placeholders)
            if not isinstance(entry, torch.fx.Node):
                self._returned.append(("constant", entry))
            elif entry.op == "placeholder":
                self._returned.append(("argument", placeholders.index(entry)))
            elif view is not None:
                self._returned.append(("view", view))
            else:
                if entry not in self._computed:
                    self._computed.append(entry)
                self._returned.append(("computed", self._computed.index(entry)))
        self.outputs = tuple(_output(node, self.is_open) for node in self._computed)
        _check_memory(placeholders, self._computed)

    def bind(self, arguments: Sequence[Any]) -> torch.fx.GraphModule:
        """The graph as a module of its inputs alone, named input_0, input_1, ... in order.

        It owns the folded tensors, and sizes are numbers in it. It returns the tuple of what is computed, complex
        numbers as pairs of real ones.

        Raises:
            ModelError: a node calls something that is not an operator of torch.
        """
        root, graph = torch.nn.Module(), torch.fx.Graph()
        new: dict[torch.fx.Node, Any] = {}
        index = 0
        for node in self._module.graph.nodes:
            if node.op == "placeholder":
                if index in self.inputs:
                    new[node] = graph.placeholder(f"input_{self.inputs.index(index)}")
                elif index in self.folded:
                    new[node] = graph.get_attr(_own(root, f"folded_{self.folded.index(index)}", arguments[index]))
                else:
                    new[node] = arguments[index]
                index += 1
            elif node.op == "get_attr" and isinstance(getattr(self._module, node.target, None), torch.Tensor):
                new[node] = graph.get_attr(_own(root, f"constant_{node.target}", getattr(self._module, node.target)))
            elif node.op == "output":
                graph.output(
                    tuple(
                        _as_pairs(graph, new[computed]) if output.dtype.is_complex else new[computed]
                        for computed, output in zip(self._computed, self.outputs, strict=True)
                    )
                )
            elif node.op not in ("call_function", "call_method"):
                raise ModelError(f"node {node.name}: {node.target} is a module or control flow, expected an operator")
            elif node.target not in _RECORDING:
                new[node] = graph.node_copy(node, new.__getitem__)
        return torch.fx.GraphModule(root, graph, class_name="Region")

    def returned(self, computed: Sequence[torch.Tensor], arguments: Sequence[Any]) -> tuple[Any, ...]:
        """What a call returns, from the tensors computed and the arguments."""

        def result(kind: str, entry: Any) -> Any:
            if kind == "view":
                return entry.of(arguments[entry.argument])
            return {"computed": computed, "argument": arguments}[kind][entry] if kind != "constant" else entry

        return tuple(result(kind, entry) for kind, entry in self._returned)


def lines(bound: torch.fx.GraphModule, inputs: Sequence[torch.Tensor], digests: Mapping[str, str]) -> Iterator[str]:
    """A canonical text of a bound graph: equal texts compute the same function.

    Names that torch gives to nodes are left out, so that the text is that of another process too.

    Args:
        bound: result of `RegionGraph.bind`.
        inputs: of a call, in order.
        digests: name of each folded tensor -> digest of its contents.

    Raises:
        ModelError: a node calls something that is not an operator of torch.
    """
    numbers: dict[torch.fx.Node, str] = {}
    remaining = iter(inputs)
    for node in bound.graph.nodes:
        number = numbers[node] = f"%{len(numbers)}"
        if node.op == "placeholder":
            tensor = next(remaining)
            yield f"{number} input {node.target} {list(tensor.shape)} {tensor.dtype}"
        elif node.op == "get_attr":
            tensor = getattr(bound, node.target)
            yield f"{number} tensor {list(tensor.shape)} {tensor.dtype} {digests[node.target]}"
        else:
            arguments = _text(node.args, node, numbers), _text(node.kwargs, node, numbers)
            yield f"{number} {node.op} {_target(node)} {arguments[0]} {arguments[1]}"


def _kind(node: torch.fx.Node) -> str:
    value = _value(node)
    if isinstance(value, (int, torch.SymInt)):
        return "size"
    if not isinstance(value, torch.Tensor):
        raise ModelError(f"argument {node.name} is of type {type(value).__name__}, expected a tensor or a whole number")
    if value.device.type != "cpu" or value.layout is not torch.strided:
        raise ModelError(f"argument {node.name} is {value.layout} on {value.device}, expected dense memory on the cpu")
    # Dynamo marks buffers as it hands them in; of parameters their type tells.
    marked = (node.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type")
    return "folded" if marked or isinstance(value, torch.nn.Parameter) or node.type is torch.nn.Parameter else "input"


def _value(node: torch.fx.Node) -> Any:
    """What stands for a node's value in Dynamo's trace: a tensor without memory, a number."""
    return node.meta.get("example_value")


def _view(node: Any, placeholders: Sequence[torch.fx.Node]) -> ArgumentView | None:
    """How a node views an argument; None where it does not, or not element by element."""
    value = _value(node) if isinstance(node, torch.fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.requires_grad or value.is_conj() or value.is_neg():
        return None
    for index, placeholder in enumerate(placeholders):
        source = _value(placeholder)
        if not isinstance(source, torch.Tensor) or source.dtype != value.dtype:
            continue
        if source.untyped_storage()._cdata == value.untyped_storage()._cdata:
            offset = int(value.storage_offset()) - int(source.storage_offset())
            return ArgumentView(index, tuple(value.shape), tuple(value.stride()), offset)
    return None


def _is_fixed(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or all(isinstance(size, int) for size in value.shape)


def _output(node: torch.fx.Node, is_open: bool) -> RegionOutput:
    value = _value(node)
    if not isinstance(value, torch.Tensor):
        raise ModelError(f"node {node.name}: it returns a {type(value).__name__}, expected tensors alone")
    if value.requires_grad:
        raise ModelError(
            "gradients are wanted of what it returns, and calumma compiles inference; "
            "call the model under torch.inference_mode() or torch.no_grad()"
        )
    is_dense = torch.ops.aten.is_non_overlapping_and_dense(value)
    return RegionOutput(value.dtype, None if is_open or not is_dense else tuple(value.stride()))


def _as_pairs(graph: torch.fx.Graph, node: torch.fx.Node) -> torch.fx.Node:
    return graph.call_function(torch.view_as_real, (graph.call_function(torch.resolve_conj, (node,)),))


def _check_memory(placeholders: Sequence[torch.fx.Node], computed: Sequence[torch.fx.Node]) -> None:
    """Raise ModelError where a result is a view: a change of one tensor would have to be seen in the other."""
    owners: dict[int, str] = {}
    for node in (*placeholders, *computed):
        value = _value(node)
        if isinstance(value, torch.Tensor):
            memory = value.untyped_storage()._cdata
            if memory in owners and node in computed:
                raise ModelError(
                    f"node {node.name}: it shares memory with {owners[memory]}, and compiled results own theirs; "
                    "return a copy (.clone())"
                )
            owners[memory] = node.name


def _own(root: torch.nn.Module, name: str, tensor: torch.Tensor) -> str:
    """Give a module a tensor without copying it; returns the name."""
    root.register_buffer(name, tensor.detach())
    return name


def _target(node: torch.fx.Node) -> str:
    """A name of what a node calls that means the same in every process."""
    target = node.target
    if isinstance(target, (str, torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(target)
    module = getattr(target, "__module__", None) or "torch"  # functions of torch's C++ part name no module
    name = getattr(target, "__qualname__", "")
    public = getattr(target, "__name__", "")
    if "<" in name and getattr(sys.modules.get(module), public, None) is target:
        name = public  # max_pool2d and its like are closures that torch gives the name of what they are
    if module.split(".")[0] not in _SOURCES or not name or "<" in name:
        raise ModelError(f"node {node.name}: {module}.{name or target} is not an operator of torch")
    return f"{module}.{name}"


def _text(value: Any, node: torch.fx.Node, numbers: Mapping[torch.fx.Node, str]) -> str:
    """An argument of a node; raises ModelError for a kind whose text would not tell all of it."""
    if isinstance(value, torch.fx.Node):
        return numbers[value]
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_text(item, node, numbers) for item in value)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_text(value[key], node, numbers)}' for key in sorted(value))}}}"
    if isinstance(value, slice):
        return f"slice{_text((value.start, value.stop, value.step), node, numbers)}"
    if isinstance(value, _LITERALS):
        return repr(value)
    raise ModelError(f"node {node.name}: an argument is a {type(value).__name__}, expected numbers, names and tensors")
