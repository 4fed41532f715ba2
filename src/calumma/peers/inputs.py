"""Seeded inputs for a model: what its graph asks for, and arrays on which different inputs give different outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calumma.core.errors import InputError, ModelError
from calumma.core.rng import generator

if TYPE_CHECKING:
    import onnx

_PATCH = 32
_GRAIN = 0.25


@dataclass(frozen=True)
class InputSpec:
    """One input tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of the element type."""
    bound: int = 2
    """Exclusive upper bound of an integer input's values: the rows of the table it indexes, if it indexes one."""


def input_specs(
    model: Path | onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[InputSpec, ...]:
    """Read the inputs of an ONNX model, in the graph's order.

    Args:
        model: an ONNX file, or a model in memory.
        shapes: input name -> shape, for inputs with dynamic dimensions.

    Raises:
        ModelError: the file is not an ONNX model.
        InputError: a dimension is dynamic and `shapes` does not fix it, or `shapes` names no input.
    """
    graph = (_read(model) if isinstance(model, Path) else model).graph
    where = str(model) if isinstance(model, Path) else graph.name
    constants = {tensor.name: tensor for tensor in graph.initializer}
    values = [value for value in graph.input if value.name not in constants]
    shapes = dict(shapes or {})
    unknown = set(shapes) - {value.name for value in values}
    if unknown:
        names = ", ".join(value.name for value in values)
        raise InputError(f"--shape {sorted(unknown)[0]}: {where} has no such input; its inputs are {names}")
    bounds = {
        node.input[1]: constants[node.input[0]].dims[0]
        for node in graph.node
        if node.op_type == "Gather" and node.input[0] in constants
    }
    return tuple(_spec(where, value, shapes.get(value.name), bounds.get(value.name, 2)) for value in values)


def random_inputs(specs: Sequence[InputSpec], seed: int) -> dict[str, np.ndarray]:
    """Draw one array per input; the same seed gives the same arrays.

    Floats are patches of 32 x 32 equal values (over the last two axes) with finer noise on top, of unit scale. White
    noise alone would average out in any network that pools, and every input would look the same at its output.
    """
    return {spec.name: _draw(spec, generator(seed, spec.name)) for spec in specs}


def _read(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's error type depends on its implementation
        raise ModelError(f"{path}: not a readable ONNX file ({error}): export the model again") from error


def _spec(where: str, value: onnx.ValueInfoProto, shape: Sequence[int] | None, bound: int) -> InputSpec:
    import onnx

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    if shape is None:
        for axis, dim in enumerate(tensor.shape.dim):
            if dim.dim_value <= 0:
                raise InputError(
                    f"{where}: dimension {axis} ({dim.dim_param or '?'}) of input {value.name} is dynamic: "
                    f"fix it with --shape {value.name}=..."
                )
        shape = [dim.dim_value for dim in tensor.shape.dim]
    return InputSpec(value.name, tuple(int(size) for size in shape), dtype, int(bound))


def _draw(spec: InputSpec, rng: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        return rng.random(spec.shape) < 0.5
    if dtype.kind in "iu":
        return rng.integers(0, spec.bound, spec.shape).astype(dtype)
    if dtype.kind != "f":
        raise InputError(f"input {spec.name} has type {spec.dtype}: only numbers and booleans can be drawn")
    noise = rng.standard_normal(spec.shape)
    if len(spec.shape) < 2:
        return noise.astype(dtype)
    *outer, height, width = spec.shape
    coarse = rng.standard_normal((*outer, -(-height // _PATCH), -(-width // _PATCH)))
    patches = coarse.repeat(_PATCH, axis=-2).repeat(_PATCH, axis=-1)[..., :height, :width]
    return (np.sqrt(1 - _GRAIN**2) * patches + _GRAIN * noise).astype(dtype)
