"""TVM's converter of exported torch programs, led by us: errors name the node and its operator."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from calumma.core.errors import ModelError, reason
from calumma.frontend.indices import within


def operator_name(node: torch.fx.Node) -> str:
    """Name of the operator a node calls, without namespace and overload ("convolution")."""
    return str(node.target.__name__).split(".")[0]


def convert(program: torch.export.ExportedProgram) -> tuple[Any, dict[str, str]]:
    """Convert a program of core ATen operators to a Relax module whose parameters are its inputs, then its weights.

    Returns:
        The module, and the name of the program's node for each Relax variable.

    Raises:
        ModelError: a node cannot be converted; names it and its operator.
    """
    importer = _Importer()
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target.__name__ not in importer.convert_map:
            raise ModelError(
                f"node {node.name}: operator {operator_name(node)} is not supported; "
                "write it with other torch operators, or export the module to ONNX"
            )
    try:
        mod = importer.from_exported_program(
            program,
            keep_params_as_input=True,
            unwrap_unit_return_tuple=True,
            no_bind_return_tuple=False,
            custom_convert_map=None,
        )
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"the program cannot be converted ({reason(error)}); export the module to ONNX") from error
    names: dict[str, str] = {}
    for node, var in importer.env.items():
        if isinstance(var, relax.Var):
            names.setdefault(var.name, node.name)  # later nodes that only hand a value on do not rename it
    return mod, names


def _reduction(operator: Callable) -> Callable:
    def reduce(x: relax.Expr, dims: Sequence[int] = (), keepdim: bool = False) -> relax.Expr:
        return operator(x, list(dims) or None, keepdim)

    return reduce


def _smallest(x: relax.Expr, dim: int, keepdim: bool = False) -> relax.Expr:
    return relax.Tuple([relax.op.min(x, dim, keepdim), relax.op.argmin(x, dim, keepdim)])


def _pad(mode: str) -> Callable:
    def pad(x: relax.Expr, amounts: Sequence[int]) -> relax.Expr:
        width = [0] * (2 * x.ty.ndim)
        for i in range(0, len(amounts), 2):  # torch begins with the last axis
            width[len(width) - i - 2 : len(width) - i] = amounts[i : i + 2]
        return relax.op.nn.pad(x, width, mode)

    return pad


def _indexed(x: relax.Expr, indices: Sequence[relax.Expr | None]) -> relax.Expr:
    """x[..., i, j, ...]: one `take` of the indexed axes laid side by side. TVM's own conversion does not know negative
    indices, takes an outer product where slices come first, and reads foreign memory where an index is outside."""
    sizes = [int(size) for size in x.ty.shape]
    given = {axis: index for axis, index in enumerate(indices) if index is not None}
    axes = list(given)
    rest = [axis for axis in range(len(sizes)) if axis not in axes]
    place, *others = (within(index, sizes[axis]) for axis, index in given.items())
    for axis, other in zip(axes[1:], others, strict=True):
        size = relax.const(sizes[axis], str(given[axis].ty.dtype.dtype))
        place = relax.op.add(relax.op.multiply(place, size), other)
    if len(axes) == 1:
        return relax.op.take(x, place, axes[0])
    count = math.prod(sizes[axis] for axis in axes)
    rows = relax.op.reshape(relax.op.permute_dims(x, [*axes, *rest]), [count, *(sizes[axis] for axis in rest)])
    taken = relax.op.take(rows, place, 0)
    if axes != list(range(axes[0], axes[-1] + 1)):
        return taken  # torch puts the indices' axes first where the indexed ones are apart
    ndim = max(index.ty.ndim for index in given.values())
    slices = [ndim + i for i in range(len(rest))]
    return relax.op.permute_dims(taken, [*slices[: axes[0]], *range(ndim), *slices[axes[0] :]])


def _gathered(x: relax.Expr, dim: int, index: relax.Expr) -> relax.Expr:
    return relax.op.gather_elements(x, within(index, int(x.ty.shape[dim])), dim % x.ty.ndim)


_OPERATORS: dict[str, Callable[..., relax.Expr]] = {
    "amax.default": _reduction(relax.op.max),
    "amin.default": _reduction(relax.op.min),
    "min.dim": _smallest,
    "index.Tensor": _indexed,
    "gather.default": _gathered,
    **{f"reflection_pad{n}d.default": _pad("reflect") for n in (1, 2, 3)},
    **{f"replication_pad{n}d.default": _pad("replicate") for n in (1, 2, 3)},
}
"""Core ATen operators that TVM's converter lacks or does not do right: functions of their arguments."""


class _Importer(ExportedProgramImporter):
    def create_convert_map(self) -> dict[str, Callable]:
        ours = {name: functools.partial(self._emit, operator) for name, operator in _OPERATORS.items()}
        return {name: _guarded(converter) for name, converter in {**super().create_convert_map(), **ours}.items()}

    def _emit(self, operator: Callable[..., relax.Expr], node: torch.fx.Node) -> relax.Var:
        return self.block_builder.emit(operator(*self.retrieve_args(node)))


def _guarded(converter: Callable) -> Callable:
    def convert_node(node: torch.fx.Node, *args: Any) -> Any:
        try:
            return converter(node, *args)
        except Exception as error:
            raise ModelError(
                f"node {node.name}: operator {operator_name(node)} cannot be converted ({reason(error)}); "
                "write it with other torch operators, or export the module to ONNX"
            ) from error

    return convert_node
