"""Weights: taken out of a model, from its own bytes or from files beside it."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calumma.core.errors import ModelError, reason
from calumma.frontend.onnx.graph_fields import assign, captured
from calumma.frontend.onnx.source import Fingerprint, Source

_DETACHED_ELEMENTS = 256
"""Float32 initialisers of at least this many elements go around the converter. What an operator has to know while it is
converted (shapes, axes, scales, bounds) is smaller."""


def detach_weights(source: Source, proto: onnx.ModelProto, fingerprint: Fingerprint) -> dict[str, NDArray[np.float32]]:
    """Take large weights out of the model, which gets inputs of their names; read external data; drop the unread."""
    graph = proto.graph
    weights: dict[str, NDArray[np.float32]] = {}
    read = {value.name for value in graph.output}
    for node in graph.node:
        read.update(node.input, captured(node))
    kept = []
    for tensor in graph.initializer:
        if tensor.name not in read:
            continue
        shape = tuple(tensor.dims)
        if any(size < 0 for size in shape):
            raise ModelError(f"weight {tensor.name} {list(shape)}: damaged (negative dimensions); export it again")
        external = tensor.data_location == TensorProto.EXTERNAL
        array = _read_external(source, tensor) if external else None
        if array is not None:
            fingerprint.add(array)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != _size_bytes(tensor):
            raise ModelError(
                f"weight {tensor.name} {list(shape)}: damaged ({len(tensor.raw_data):,} bytes, expected "
                f"{_size_bytes(tensor):,}); export it again"
            )
        if tensor.data_type == TensorProto.FLOAT and math.prod(shape) >= _DETACHED_ELEMENTS:
            try:
                weights[tensor.name] = (
                    numpy_helper.to_array(tensor) if array is None else array.view(np.float32).reshape(shape)
                )
            except ValueError as error:
                raise ModelError(
                    f"weight {tensor.name} {list(shape)}: damaged ({reason(error)}); export it again"
                ) from error
            graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, shape))
            continue
        if array is not None:
            tensor.raw_data = array.tobytes()
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
        kept.append(tensor)
    assign(graph.initializer, kept)
    return weights


def _size_bytes(tensor: TensorProto) -> int:
    return math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _read_external(source: Source, tensor: TensorProto) -> NDArray[np.uint8]:
    """Read the bytes of a tensor that lie in a file of its own, in the model's folder or below and nowhere else."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    what = f"weight {tensor.name}"
    location = entries.get("location", "")
    if source.path is None:
        raise ModelError(f"{what} lies in the file {location!r}; give the path of the model, not its bytes")
    size_bytes = _size_bytes(tensor)
    try:
        # Where the model is a link, as in a cache of downloads, its data may lie beside the file it leads to.
        folders = (source.path.parent.resolve(), source.path.resolve().parent)
        path = (source.path.parent / location).resolve()
        inside = bool(location) and not os.path.isabs(location) and any(map(path.is_relative_to, folders))
        if not inside or os.pardir in Path(location).parts:
            raise ModelError(f"{what} lies in {location!r}, outside the model's folder; put the file beside the model")
        if not path.exists():
            raise ModelError(f"{what} lies in {str(path)!r}, which does not exist; put the file beside the model")
        if not path.is_file():  # a pipe or a device would be read without end
            raise ModelError(f"{what} lies in {str(path)!r}, which is not a file; put the file beside the model")
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size_bytes))
        held = max(0, min(path.stat().st_size - offset, length))
        if offset < 0 or length != size_bytes or held != size_bytes:
            raise ModelError(
                f"{what}: {str(path)!r} holds {held:,} of its {size_bytes:,} bytes; copy the model and its data again"
            )
        return np.fromfile(path, np.uint8, count=size_bytes, offset=offset)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links is a RuntimeError
        raise ModelError(
            f"{what}: {location!r} cannot be read ({reason(error)}); copy the model and its data again"
        ) from error
