"""TVM's converter of exported torch programs, led by us: errors name the node and its operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from calumma.core.errors import ModelError
from calumma.frontend.importer import reason


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


class _Importer(ExportedProgramImporter):
    def create_convert_map(self) -> dict[str, Callable]:
        return {name: _guarded(converter) for name, converter in super().create_convert_map().items()}


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
