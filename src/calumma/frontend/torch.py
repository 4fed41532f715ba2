"""torch modules and exported programs to graphs, with the weights led around the converter as in `onnx`.

Nothing here imports torch by itself: whoever has a module or a program has imported it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calumma import tvm_compat
from calumma.core.errors import EnvironmentFault, InputError, ModelError
from calumma.frontend.importer import Clock, ImportedModel

if TYPE_CHECKING:
    import torch

    from calumma.graph.nodes import Graph

TORCH_SERIES = "2.13"
"""The release series whose exported programs TVM's converter is tested with."""

_TYPES = frozenset({"float32", "float64", "bool"}) | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_TRAINING = frozenset(
    {
        "_native_batch_norm_legit.default",
        "_native_batch_norm_legit_functional.default",
        "native_batch_norm.default",
        "native_dropout.default",
    }
)
"""Core ATen operators whose result is not that of inference. `_native_batch_norm_legit.no_stats` keeps no statistics:
instance normalisation is made of it."""


def import_torch(
    model: torch.nn.Module | torch.export.ExportedProgram, example_inputs: Sequence[Any] | None = None
) -> ImportedModel:
    """Import a torch module for inference, or an exported program.

    A module is exported in evaluation mode whatever mode it is in, and left in the mode it was in.

    Args:
        model: the module or program, with float32 weights.
        example_inputs: positional arguments of a module; they fix shapes and types.

    Raises:
        InputError: a module without example inputs, or a program with some.
        ModelError: the module cannot be exported or converted.
        EnvironmentFault: torch of another release series.
    """
    import torch

    _check_torch()
    tvm_compat.load()
    from calumma.frontend.torch_converter import convert

    clock = Clock()
    with clock.phase("export"), warnings.catch_warnings():
        # torch.export copies a class of its own that warns when it is looked at.
        warnings.filterwarnings("ignore", r".*LeafSpec.*deprecated", FutureWarning)
        if isinstance(model, torch.export.ExportedProgram):
            if example_inputs is not None:
                raise InputError("example_inputs belong to a torch.nn.Module; an ExportedProgram has its shapes")
            program, name = model, "program"
        else:
            if example_inputs is None:
                raise InputError(f"{type(model).__name__}: a module needs example_inputs, a sequence of its arguments")
            program, name = _export(model, tuple(example_inputs)), type(model).__name__
        program = _decompose(program)
        weights = _weights(program)
        model_hash = _hash(program, weights)
    with clock.phase("convert"):
        mod, names = convert(program)
    with clock.phase("graph"):
        graph = _graph(mod, names, weights)
    return ImportedModel(graph, name, model_hash, clock.phases_s)


def _check_torch() -> None:
    version = importlib.metadata.version("torch")
    if not version.startswith(f"{TORCH_SERIES}."):
        raise EnvironmentFault(
            f"torch {version} is installed, expected {TORCH_SERIES}.*: pip install 'torch>={TORCH_SERIES},<2.14', "
            "or export the module to ONNX"
        )


def _export(module: torch.nn.Module, example_inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    import torch

    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        with torch.no_grad():
            return torch.export.export(module, example_inputs)
    except Exception as error:
        raise ModelError(
            f"{type(module).__name__}: torch.export.export fails ({_first_line(error)}); "
            "make the module exportable, or export it to ONNX"
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training


def _first_line(error: BaseException) -> str:
    """torch says what is wrong first, and explains after."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()


def _decompose(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Take composite operators apart into core ATen operators, and refuse what cannot be computed right."""
    import torch

    from calumma.frontend.torch_converter import operator_name

    for node in program.graph.nodes:
        value = node.meta.get("val")
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            if not isinstance(tensor, torch.Tensor):
                continue
            if any(not isinstance(size, int) for size in tensor.shape):
                raise ModelError(
                    f"node {node.name}: shape {list(tensor.shape)} is not fixed; export without dynamic_shapes"
                )
            if str(tensor.dtype).removeprefix("torch.") not in _TYPES:
                raise ModelError(
                    f"node {node.name}: {tensor.dtype} is not supported; give the module in float32 (.float())"
                )
    program = program.run_decompositions()
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target.__name__ in _TRAINING:
            raise ModelError(
                f"node {node.name}: operator {operator_name(node)} is of training; "
                "call .eval() on the module before exporting it"
            )
        if node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ModelError(
                f"node {node.name}: operator {operator_name(node)} draws random numbers, and a compiled model "
                "computes the same at every call; make the numbers an input"
            )
    for spec in program.graph_signature.output_specs:
        if spec.kind is not torch.export.graph_signature.OutputKind.USER_OUTPUT:
            raise ModelError(
                f"the model changes {spec.target} in place, and a compiled model cannot; return the new value instead"
            )
    return program


def _weights(program: torch.export.ExportedProgram) -> dict[str, NDArray]:
    """Parameters by the name of the program's input they are handed to; they share the module's memory."""
    import torch

    kind = torch.export.graph_signature.InputKind.PARAMETER
    return {
        spec.arg.name: _array(program.state_dict[spec.target])
        for spec in program.graph_signature.input_specs
        if spec.kind is kind
    }


def _array(tensor: torch.Tensor) -> NDArray:
    return np.asarray(tensor.detach().to_dense().cpu().numpy(), order="C")


def _hash(program: torch.export.ExportedProgram, weights: Mapping[str, NDArray]) -> str:
    digest = hashlib.sha256(str(program.graph).encode())
    digest.update(str(program.graph_signature).encode())
    for node in program.graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            digest.update(f"{node.name} {tuple(getattr(value, 'shape', ()))} {getattr(value, 'dtype', value)}".encode())
    for array in weights.values():
        digest.update(array.data)
    for name, buffer in sorted({**dict(program.named_buffers()), **program.constants}.items()):
        digest.update(name.encode())
        digest.update(_array(buffer).data)
    return digest.hexdigest()


def _graph(mod: Any, names: Mapping[str, str], weights: Mapping[str, NDArray]) -> Graph:
    """Read the converted module, name its nodes as the program does, and put the weights back as constants."""
    from calumma.frontend.relax_graph import from_relax
    from calumma.graph.nodes import constant

    graph = from_relax(mod, [])
    for node in graph.nodes():
        node.name = names.get(node.name, node.name)
    graph.replace({node: constant(weights[node.name], node.name) for node in graph.inputs if node.name in weights})
    graph.inputs = [node for node in graph.inputs if node.name not in weights]
    return graph
