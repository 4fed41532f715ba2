"""Weights: taken out of a model, from its own bytes or from files beside it."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calumma.core.errors import ModelError, reason
from calumma.graph.build import check_size
from calumma.onnx_import.element_types import computed_dtype, is_supported, type_name
from calumma.onnx_import.graph_fields import assign, captured
from calumma.onnx_import.source import Fingerprint, Source

_DETACHED_ELEMENTS = 256
"""Initialisers of at least this many elements are taken out of the model before ONNX infers its types. What an operator
has to know for that (shapes, axes, scales, bounds) is smaller."""


@dataclass(frozen=True)
class Weight:
    """An initialiser."""

    value: NDArray[Any]
    element_type: int
    """`TensorProto.DataType`."""


def detach_weights(source: Source, proto: onnx.ModelProto, fingerprint: Fingerprint) -> dict[str, Weight]:
    """Read all initialisers, from external files too; large ones leave the model, which gets inputs of their names."""
    graph = proto.graph
    weights: dict[str, Weight] = {}
    read = {value.name for value in graph.output}
    for node in graph.node:
        read.update(node.input, captured(node))
    kept = []
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse))
    del graph.sparse_initializer[:]
    for tensor in graph.initializer:
        if tensor.name not in read:
            continue
        shape = tuple(tensor.dims)
        what = f"weight {tensor.name}"
        if any(size < 0 for size in shape):
            raise ModelError(f"{what} {list(shape)}: damaged (negative dimensions); export it again")
        if not is_supported(tensor.data_type):
            raise ModelError(
                f"{what} is {type_name(tensor.data_type)}, which is not supported; export or convert it to float32"
            )
        check_size(what, computed_dtype(tensor.data_type), shape)
        if tensor.data_location == TensorProto.EXTERNAL:
            data = _read_external(source, tensor)
            fingerprint.add(data)
            tensor.raw_data = data.tobytes()
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
        weights[tensor.name] = Weight(tensor_array(tensor), tensor.data_type)
        if math.prod(shape) >= _DETACHED_ELEMENTS:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
        else:
            kept.append(tensor)
    assign(graph.initializer, kept)
    return weights


def tensor_array(tensor: TensorProto) -> NDArray[Any]:
    """The elements of a tensor that lies in the model itself. Raises ModelError for a damaged one."""
    what = f"weight {tensor.name} {list(tensor.dims)}"
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ModelError(f"{what} lies in another file, which only weights of the main graph can; export it again")
    try:
        if tensor.HasField("raw_data") and len(tensor.raw_data) != _size_bytes(tensor):
            raise ModelError(
                f"{what}: damaged ({len(tensor.raw_data):,} bytes, expected {_size_bytes(tensor):,}); export it again"
            )
        return numpy_helper.to_array(tensor)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{what}: damaged ({reason(error)}); export it again") from error


def _dense(sparse: onnx.SparseTensorProto) -> TensorProto:
    """A sparse initialiser as a dense one."""
    shape, name = tuple(sparse.dims), sparse.values.name
    check_size(f"weight {name}", "float32", shape)
    values, indices = tensor_array(sparse.values), tensor_array(sparse.indices)
    dense = np.zeros(shape, values.dtype)
    try:
        dense[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, shape)] = values
    except (IndexError, ValueError) as error:
        raise ModelError(f"weight {name} {list(shape)}: damaged ({reason(error)}); export it again") from error
    return numpy_helper.from_array(dense, name)


def _size_bytes(tensor: TensorProto) -> int:
    bits = re.search(r"INT([24])$|FLOAT4", TensorProto.DataType.Name(tensor.data_type))
    if bits is not None:  # packed, the last byte padded
        return -(-math.prod(tensor.dims) * int(bits[1] or 4) // 8)
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
