"""One door for every kind of model: an ONNX file or its bytes, a torch module, an exported torch program.

imported = import_model("resnet50.onnx", shapes={"data": (1, 3, 224, 224)})
imported = import_model(module, example_inputs=(torch.zeros(1, 3, 224, 224),))
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from calumma.core.errors import InputError
from calumma.graph.imported_model import ImportedModel, Shapes


def import_model(
    model: Any, *, example_inputs: Sequence[Any] | None = None, shapes: Shapes | None = None
) -> ImportedModel:
    """Import a model of any supported kind.

    Args:
        model: path or bytes of an ONNX model, a `torch.nn.Module` or a `torch.export.ExportedProgram`.
        example_inputs: positional arguments of a `torch.nn.Module`: they fix the shapes and types.
        shapes: fixes the open dimensions of an ONNX model.

    Raises:
        ModelError: the model cannot be imported; names node, operator and what to do.
        InputError: an argument that does not belong to this kind of model.
        EnvironmentFault: a torch model, and torch is missing or of another version.
    """
    if isinstance(model, (str, PathLike, bytes, bytearray, memoryview)):
        if example_inputs is not None:
            raise InputError("example_inputs belong to a torch.nn.Module; shapes fix the dimensions of an ONNX model")
        from calumma.onnx_import import import_onnx

        return import_onnx(
            Path(model) if isinstance(model, (str, PathLike)) else bytes(model), shapes, _register_onnx_rules
        )
    # Only a process that has imported torch can hold one of its objects.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, (torch.nn.Module, torch.export.ExportedProgram)):
        if shapes:
            raise InputError("shapes belong to an ONNX model; the shapes of a torch model are those of example_inputs")
        from calumma.frontend.torch import import_torch

        return import_torch(model, example_inputs)
    raise InputError(
        f"a model of type {type(model).__name__} cannot be imported: give the path or the bytes of an ONNX model, "
        "a torch.nn.Module or a torch.export.ExportedProgram"
    )


def _register_onnx_rules() -> None:
    from calumma import onnx_rules  # noqa: F401 - importing the package does it
