"""Modules exported, programs decomposed into operators that have a rule, and their weights."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401 - makes NumPy know "bfloat16"
import numpy as np
import torch
from numpy.typing import NDArray

from calumma import tvm_compat
from calumma.core.errors import EnvironmentFault, InputError, ModelError
from calumma.graph.imported_model import Clock, ImportedModel

TORCH_SERIES = "2.13"
"""The release series whose exported programs are tested."""

_TRAINING = frozenset(
    {
        "_native_batch_norm_legit.default",
        "_native_batch_norm_legit_functional.default",
        "native_batch_norm.default",
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
        model: the module or program.
        example_inputs: positional arguments of a module; they fix shapes and types.

    Raises:
        InputError: a module without example inputs, or a program with some.
        ModelError: the module cannot be exported or converted.
        EnvironmentFault: torch of another release series.
    """
    _check_torch()
    tvm_compat.load()
    from calumma.frontend.torch.program_graph import program_graph

    clock = Clock()
    with clock.phase("export"), warnings.catch_warnings():
        # torch.export copies a class of its own that warns when it is looked at.
        warnings.filterwarnings("ignore", r".*LeafSpec.*deprecated", FutureWarning)
        # Recurrent modules hold their weights twice.
        warnings.filterwarnings("ignore", r"The tensor attributes? .*_flat_weights", UserWarning)
        if isinstance(model, torch.export.ExportedProgram):
            if example_inputs is not None:
                raise InputError("example_inputs belong to a torch.nn.Module; an ExportedProgram has its shapes")
            program, name = model, "program"
        else:
            if example_inputs is None:
                raise InputError(f"{type(model).__name__}: a module needs example_inputs, a sequence of its arguments")
            program, name = _export(model, tuple(example_inputs)), type(model).__name__
        program = _decompose(program)
        tensors = _tensors(program)
        model_hash = _hash(program, tensors)
    with clock.phase("graph"):
        graph = program_graph(program, tensors)
    return ImportedModel(graph, name, model_hash, clock.phases_s)


def _check_torch() -> None:
    version = importlib.metadata.version("torch")
    if not version.startswith(f"{TORCH_SERIES}."):
        raise EnvironmentFault(
            f"torch {version} is installed, expected {TORCH_SERIES}.*: pip install 'torch>={TORCH_SERIES},<2.14', "
            "or export the module to ONNX"
        )


def _export(module: torch.nn.Module, example_inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
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
    """Take composite operators apart into those that have a rule, and refuse what cannot be computed right."""
    from calumma.frontend.torch import rules  # noqa: F401 - registers them
    from calumma.frontend.torch.aten_registry import known_operators, qualified_name
    from calumma.frontend.torch.torch_node import computed_dtype, operator_name

    for node in program.graph.nodes:
        value = node.meta.get("val")
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            if not isinstance(tensor, torch.Tensor):
                continue
            if any(not isinstance(size, int) for size in tensor.shape):
                raise _open_shape(node, tensor)
            try:
                computed_dtype(tensor.dtype if tensor.dtype is torch.complex32 else tensor.dtype.to_real())
            except ModelError as error:
                raise ModelError(f"node {node.name}: {error}") from error
    try:
        program = program.run_decompositions(_decompositions())
    except Exception as error:
        raise ModelError(
            f"torch cannot take the model apart into operators of core ATen ({_first_line(error)}); "
            "write it with other torch operators, or export the module to ONNX"
        ) from error
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target.__name__ in _TRAINING:
            raise ModelError(
                f"node {node.name}: operator {operator_name(node)} is of training; "
                "call .eval() on the module before exporting it"
            )
        if (
            node.op != "call_function" or qualified_name(node.target) in known_operators()
        ):  # recurrent ones: with dropout
            continue
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
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


def _open_shape(node: torch.fx.Node, tensor: torch.Tensor) -> ModelError:
    """The error of a size that an exported program leaves open: of an input, or what values decide."""
    flaw = f"node {node.name}: shape {list(tensor.shape)} is not fixed"
    if any(re.search(r"\bu\d", str(size)) for size in tensor.shape):  # torch's names of what values decide
        return ModelError(
            f"{flaw}, it depends on values; give the result a size (torch.nonzero_static, torch.where), "
            "or export the module to ONNX"
        )
    return ModelError(f"{flaw}; export without dynamic_shapes")


def _decompositions() -> dict[Any, Any]:
    """How torch takes operators apart that have no rule: into core ATen operators, and those where it can."""
    from calumma.frontend.torch.aten_registry import known_operators, qualified_name

    table = torch.export.default_decompositions()
    everything = {**torch._decomp.decomposition_table, **table}
    kept = known_operators() | _TRAINING
    return {op: way for op, way in everything.items() if qualified_name(op) not in kept}


def _tensors(program: torch.export.ExportedProgram) -> dict[str, NDArray]:
    """Parameters, buffers and constants by the placeholder that they are handed to; they share the module's memory."""
    kinds = torch.export.graph_signature.InputKind
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind in (kinds.PARAMETER, kinds.BUFFER, kinds.CONSTANT_TENSOR):
            held = program.state_dict.get(spec.target)
            found[spec.arg.name] = _array(program.constants[spec.target] if held is None else held)
    return found


def _array(tensor: torch.Tensor) -> NDArray:
    tensor = tensor.detach().to_dense().cpu()
    if tensor.dtype is torch.bfloat16:  # NumPy knows the type by another package, and torch does not hand it over
        return np.asarray(tensor.contiguous().view(torch.uint16).numpy().view("bfloat16"), order="C")
    return np.asarray(tensor.resolve_neg().numpy(), order="C")


def _hash(program: torch.export.ExportedProgram, tensors: Mapping[str, NDArray]) -> str:
    digest = hashlib.sha256(str(program.graph).encode())
    digest.update(str(program.graph_signature).encode())
    for node in program.graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            digest.update(f"{node.name} {tuple(getattr(value, 'shape', ()))} {getattr(value, 'dtype', value)}".encode())
    for name, array in tensors.items():
        digest.update(name.encode())
        digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()
