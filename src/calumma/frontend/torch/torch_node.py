"""A node of a torch program as rules see it."""

from __future__ import annotations

from typing import Any

import torch

from calumma.core.errors import ModelError
from calumma.frontend.torch.aten_registry import qualified_name

COMPUTED = {
    **{
        getattr(torch, name): name
        for name in ("float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
    },
    torch.uint64: "uint64",
    torch.float16: "float32",
    torch.bfloat16: "float32",
}
"""Element type -> the type that its values are computed in."""

NARROW = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
"""Element types that inputs and outputs have though they are computed in float32."""


def computed_dtype(dtype: torch.dtype) -> str:
    """The type in which values of an element type are computed. Raises ModelError for one that cannot be."""
    if dtype not in COMPUTED:
        raise ModelError(f"{dtype} is not supported; give the module in float32 (.float())")
    return COMPUTED[dtype]


class TorchNode:
    """A call of an operator whose arguments are imported.

    Attributes:
        fx: the program's node.
        name: its name.
        op: its operator, without namespace and overload ("add").
    """

    def __init__(self, fx: torch.fx.Node) -> None:
        self.fx = fx
        self.name = fx.name
        self.op = operator_name(fx)

    @property
    def overload(self) -> str:
        """The operator with its overload ("add.Tensor"), and its namespace where that is not ATen's."""
        return qualified_name(self.fx.target)

    def result(self, index: int | None = None) -> torch.Tensor:
        """What torch says of the result, or of one of several: a tensor without memory."""
        value = self.fx.meta["val"]
        tensor: torch.Tensor = value if index is None and isinstance(value, torch.Tensor) else value[index or 0]
        return tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first result."""
        return tuple(int(size) for size in self.result().shape)

    @property
    def dtype(self) -> str:
        """The type in which the first result is computed."""
        return computed_dtype(self.result().dtype)

    def promoted_dtype(self, *names: str) -> str:
        """The type in which torch compares or joins some of the operator's arguments."""
        given = [arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in self._arguments(names)]
        dtype = torch.result_type(given[0], given[1]) if len(given) > 1 else given[0].dtype
        return computed_dtype(dtype)

    def _arguments(self, names: tuple[str, ...]) -> list[Any]:
        schema = self.fx.target._schema.arguments
        places = [argument.name for argument in schema]
        args, kwargs = self.fx.args, self.fx.kwargs
        return [kwargs[name] if name in kwargs else args[places.index(name)] for name in names]

    def element_type(self, name: str) -> torch.dtype:
        """The element type of an argument in the program."""
        (argument,) = self._arguments((name,))
        dtype: torch.dtype = argument.meta["val"].dtype
        return dtype

    def refused(self, flaw: str) -> ModelError:
        """The error that says what of this node is not supported, and what to do about it."""
        return ModelError(
            f"node {self.name}: operator {self.op}: {flaw}; "
            "write it with other torch operators, or export the module to ONNX"
        )


def operator_name(node: torch.fx.Node) -> str:
    """Name of the operator a node calls, without namespace and overload ("convolution")."""
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]
