"""ONNX models to graphs, with the weights led around the converter.

TVM's converter sees large weights as inputs: nothing of their size is copied, checked or handed to another process, so
importing takes time by the number of nodes and not by the size of the weights. They become constants of the graph.

onnxslim runs only where a model computes with shapes (`_SHAPE_ARITHMETIC`), in a process of its own and on the model
without its weights. Folding BatchNorm and constants is the work of `simplify`: it takes milliseconds where onnxslim
takes 1 s (ResNet-50) to 30 s (ViT-B/16), and leaves the same operators on every model of the benchmark suite.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, inliner, numpy_helper, version_converter

from calumma import tvm_compat
from calumma.core.errors import ModelError
from calumma.frontend.importer import Clock, ImportedModel, Shapes, reason

_log = logging.getLogger(__name__)

OPSETS = range(7, 22)
"""Opsets of the default domain that can be imported."""

_DETACHED_ELEMENTS = 256
"""Float32 initialisers of at least this many elements go around the converter. What an operator has to know while it is
converted (shapes, axes, scales, bounds) is smaller."""
_SLIM_TIMEOUT_S = 60.0

_ONNX_DOMAINS = ("", "ai.onnx")
_CONTRIB_DOMAIN = "com.microsoft"
_CONTRIB_ONLY = frozenset({"Attention", "BiasGelu", "EmbedLayerNormalization", "FastGelu", "SkipLayerNormalization"})
"""Operators of ONNX Runtime's own domain that the converter knows, and that the ONNX domain does not have."""
_CONTRIB = _CONTRIB_ONLY | {"Gelu"}
_SHAPE_ARITHMETIC = frozenset(
    {"ConstantOfShape", "If", "Loop", "NonZero", "Range", "Scan", "SequenceAt", "SequenceConstruct", "Shape", "Size"}
)
_RENEWED = frozenset({"Resize", "Slice", "TopK", "Upsample"})
"""Operators whose attributes became inputs by opset 11; the converter knows only the later form."""

_FLAWS: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"If", "Loop", "Scan"}),
        "is control flow, which is not supported; export the model with the branch or the number of steps fixed",
    ),
    (
        frozenset({"AllClassNMS", "Compress", "NonMaxSuppression", "NonZero", "Unique"}),
        "gives a shape that depends on values, which is not supported; cut the model off before this node",
    ),
    (
        frozenset({"ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "MatMulInteger16"})
        | {"QLinearConv", "QLinearMatMul", "QuantizeLinear"},
        "is quantised arithmetic, which is not supported; give the float32 model it was made from",
    ),
    (
        frozenset({"GRU", "LSTM", "RNN"}),
        "is recurrent, which is not supported; export the model with the steps unrolled into Gemm and activations",
    ),
)
"""Operators that cannot be compiled right, and what to tell the user."""

_TYPES = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL}) | {
    getattr(TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)
}

_SIGNATURES = {
    b"PK": "a zip archive; a PyTorch checkpoint is loaded with torch and compiled as a module",
    b"version https://git-lfs": "a Git LFS pointer; fetch the model itself with git lfs pull",
    b"\x89HDF": "an HDF5 file; convert it with tf2onnx",
    b"<": "a text document; download the model itself",
}


def import_onnx(model: str | Path | bytes, shapes: Shapes | None = None) -> ImportedModel:
    """Import an ONNX model of opset 7 to 21.

    Args:
        model: path of the file, whose external data lies in or below its folder, or the bytes of one.
        shapes: input name -> every dimension, for inputs with open dimensions.

    Raises:
        ModelError: the file is not a readable ONNX model, a dimension of an input is open, or something in it is not
            supported. One line: what, where, what to do.
    """
    clock = Clock()
    name = "model" if isinstance(model, bytes) else Path(model).stem
    with clock.phase("read"), contextlib.closing(_Fingerprint()) as fingerprint:
        source = _Source.of(model)
        fingerprint.add(source.data)
        proto = _parse(source)
        with _located(source.where):
            _check_opset(proto)
            _lift_constants(proto)
            bound = _fix_shapes(proto, shapes or {})
            _check_types(proto)
            weights = _detach_weights(source, proto, fingerprint)
            proto = _modernise(proto)
            _prune(proto)
        fingerprint.add(repr(sorted(bound.items())).encode())
        model_hash = fingerprint.hexdigest()
    with clock.phase("slim"):
        if _SHAPE_ARITHMETIC.isdisjoint(node.op_type for node in proto.graph.node):
            tvm_compat.load()
        else:
            with ThreadPoolExecutor(1) as background:
                slimmed = background.submit(_slim, proto)
                tvm_compat.load()  # takes its two seconds while onnxslim works
                proto = slimmed.result()
    from calumma.frontend.onnx_converter import convert, supported_operators

    with _located(source.where):
        with clock.phase("convert"):
            proto = _expand_functions(proto, supported_operators())
            _check_operators(proto, supported_operators())
            mod = convert(proto, _opset(proto), _inferred_types(proto))
        with clock.phase("graph"):
            graph = _graph(mod, proto, weights)
    return ImportedModel(graph, name, model_hash, clock.phases_s)


@contextlib.contextmanager
def _located(where: str) -> Any:
    """Put the name of the model before every message about it, and keep it one line whatever names the model has."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{where}: {' '.join(str(error).split())}") from error


# -- reading ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """The bytes of a model, what to call it in messages, and the folder of its external data."""

    where: str
    data: bytes
    folder: Path | None

    @classmethod
    def of(cls, model: str | Path | bytes) -> _Source:
        if isinstance(model, bytes):
            return cls("the model", model, None)
        path = Path(model)
        if path.is_dir():
            raise ModelError(f"{path}: a directory, expected an ONNX file; give the path of the file in it")
        try:
            return cls(str(path), path.read_bytes(), path.parent)
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file; give the path of an ONNX file") from None
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror}); give the path of a readable file") from error


class _Fingerprint:
    """SHA-256 of everything added, in order, computed beside the work of the caller."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)

    def add(self, data: bytes | NDArray) -> None:
        self._thread.submit(self._digest.update, data if isinstance(data, bytes) else data.data)

    def hexdigest(self) -> str:
        return self._thread.submit(self._digest.hexdigest).result()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


def _parse(source: _Source) -> onnx.ModelProto:
    if not source.data:
        raise ModelError(f"{source.where}: empty, expected an ONNX model; export or download it again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(source.data)
        complete = proto.ir_version > 0 and len(proto.opset_import) > 0 and len(proto.graph.output) > 0
    except DecodeError:
        complete = False
    if not complete:
        for signature, kind in _SIGNATURES.items():
            if source.data.lstrip().startswith(signature):
                raise ModelError(f"{source.where}: not an ONNX model but {kind}")
        raise ModelError(
            f"{source.where}: not a complete ONNX model ({len(source.data):,} bytes): "
            "cut off, damaged or another format; export or download it again"
        )
    return proto


def _opset(proto: onnx.ModelProto) -> int:
    return next((int(entry.version) for entry in proto.opset_import if entry.domain in _ONNX_DOMAINS), 0)


def _check_opset(proto: onnx.ModelProto) -> None:
    opset = _opset(proto)
    if opset not in OPSETS:
        raise ModelError(
            f"{f'opset {opset}' if opset else 'no opset of the ONNX domain'}, expected {OPSETS[0]} to {OPSETS[-1]}; "
            "export it with opset 17 or convert it with onnx.version_converter"
        )


def _lift_constants(proto: onnx.ModelProto) -> None:
    """Give constants one form: initialisers that are not inputs as well (IR before 4), instead of Constant nodes."""
    graph = proto.graph
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].type == AttributeProto.TENSOR:
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            nodes.append(node)
    _assign(graph.node, nodes)
    constants = {tensor.name for tensor in graph.initializer}
    empty = {tensor.name for tensor in graph.initializer if 0 in tensor.dims}
    for node in graph.node:
        if node.op_type == "Resize":  # an empty tensor is how exporters leave one of its inputs out
            node.input[:] = ["" if name in empty else name for name in node.input]
    _assign(graph.input, [value for value in graph.input if value.name not in constants])
    proto.ir_version = max(proto.ir_version, 4)


def _assign(field: Any, values: list[Any]) -> None:
    """Set a repeated field of a message to some of its own values."""
    if len(values) < len(field):
        del field[:]
        field.extend(values)


# -- shapes and types ---------------------------------------------------------------------------------


def _fix_shapes(proto: onnx.ModelProto, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Write fixed dimensions into the model's inputs; a symbol that one input fixes is fixed in all."""
    graph = proto.graph
    for value in graph.input:
        if not value.type.HasField("tensor_type"):
            kind = str(value.type.WhichOneof("value")).removesuffix("_type")
            raise ModelError(f"input {value.name}: a {kind}, expected a tensor; export the model with tensor inputs")
    unknown = sorted(set(shapes) - {value.name for value in graph.input})
    if unknown:
        listed = ", ".join(_signature(value) for value in graph.input) or "none"
        raise ModelError(f"--shape {unknown[0]}: no such input; the inputs are {listed}")
    symbols: dict[str, tuple[int, str]] = {}
    for value in graph.input:
        if value.name in shapes:
            _bind(value, tuple(shapes[value.name]), symbols)
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param][0]
    still_open = [value for value in graph.input if not _is_fixed(value)]
    if still_open:
        raise ModelError(
            f"open dimensions in {', '.join(_signature(value) for value in still_open)}; fix them with "
            + " ".join(_shape_option(value) for value in still_open)
        )
    del graph.value_info[:]
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in graph.input}


def _bind(value: onnx.ValueInfoProto, shape: tuple[int, ...], symbols: dict[str, tuple[int, str]]) -> None:
    option = f"--shape {value.name}={','.join(map(str, shape))}"
    if any(size < 1 for size in shape):
        raise ModelError(f"{option}: every dimension must be at least 1")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in shape)
    if len(shape) != len(tensor.shape.dim):
        raise ModelError(
            f"{option}: {len(shape)} dimensions, but the input is {_signature(value)} with {len(tensor.shape.dim)}; "
            f"give {_shape_option(value)}"
        )
    for axis, (dim, size) in enumerate(zip(tensor.shape.dim, shape, strict=True)):
        if dim.dim_value > 0 and dim.dim_value != size:
            raise ModelError(
                f"{option}: dimension {axis} is fixed to {dim.dim_value} in the model; give {_shape_option(value)}"
            )
        if dim.dim_param:
            bound, by = symbols.setdefault(dim.dim_param, (size, value.name))
            if bound != size:
                raise ModelError(
                    f"{option}: dimension {dim.dim_param} is {bound} in input {by}; give both the same size"
                )
        dim.dim_value = size


def _is_fixed(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(dim.dim_value > 0 for dim in tensor.shape.dim)


def _dims(value: onnx.ValueInfoProto) -> list[str]:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return ["..."]
    return [str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?" for dim in tensor.shape.dim]


def _signature(value: onnx.ValueInfoProto) -> str:
    return f"{value.name}[{','.join(_dims(value))}]"


def _shape_option(value: onnx.ValueInfoProto) -> str:
    return f"--shape {value.name}={','.join(size if size.isdecimal() else size.upper() for size in _dims(value))}"


def _check_types(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    for value in graph.input:
        _check_type(f"input {value.name}", value.type.tensor_type.elem_type)
    readers = {name: node for node in graph.node for name in node.input}
    for tensor in graph.initializer:
        reader = readers.get(tensor.name)
        if reader is not None:
            _check_type(
                f"node {reader.name or reader.output[0]} ({reader.op_type}): weight {tensor.name}", tensor.data_type
            )
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                _check_type(f"node {node.name or node.output[0]} (Cast): its result", attribute.i)


def _check_type(what: str, element_type: int) -> None:
    if element_type not in _TYPES:
        try:
            name = TensorProto.DataType.Name(element_type).lower()
        except ValueError:
            name = f"of the unknown element type {element_type}"
        raise ModelError(f"{what} is {name}, which is not supported; export or convert the model to float32")


# -- weights ------------------------------------------------------------------------------------------


def _detach_weights(
    source: _Source, proto: onnx.ModelProto, fingerprint: _Fingerprint
) -> dict[str, NDArray[np.float32]]:
    """Take large weights out of the model, which gets inputs of their names, and read external data."""
    graph = proto.graph
    weights: dict[str, NDArray[np.float32]] = {}
    kept = []
    for tensor in graph.initializer:
        shape = tuple(tensor.dims)
        external = tensor.data_location == TensorProto.EXTERNAL
        array = _read_external(source, tensor) if external else None
        if array is not None:
            fingerprint.add(array)
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
    _assign(graph.initializer, kept)
    return weights


def _read_external(source: _Source, tensor: TensorProto) -> NDArray[np.uint8]:
    """Read the bytes of a tensor that lie in a file of its own."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    what = f"weight {tensor.name}"
    location = entries.get("location", "")
    if source.folder is None:
        raise ModelError(f"{what} lies in the file {location!r}; give the path of the model, not its bytes")
    relative = os.path.normpath(location)
    if not location or os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
        raise ModelError(f"{what} lies in {location!r}, outside the model's folder; put the file beside the model")
    size_bytes = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    path = source.folder / relative
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size_bytes))
        data = np.fromfile(path, np.uint8, count=length, offset=offset)
    except FileNotFoundError:
        raise ModelError(f"{what} lies in {str(path)!r}, which does not exist; put the file beside the model") from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{what}: {str(path)!r} cannot be read ({reason(error)}); copy the model and its data again"
        ) from error
    if len(data) != size_bytes:
        raise ModelError(
            f"{what}: {str(path)!r} holds {len(data):,} of its {size_bytes:,} bytes; copy the model and its data again"
        )
    return data


# -- rewriting ----------------------------------------------------------------------------------------


def _modernise(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inline the model's own functions, and bring it to opset 11 where the converter does not know an older form."""
    try:
        if proto.functions:
            proto = inliner.inline_local_functions(proto)
        if _opset(proto) < 11 and not _RENEWED.isdisjoint(node.op_type for node in proto.graph.node):
            proto = version_converter.convert_version(proto, 11)
            for node in proto.graph.node:
                if node.op_type == "Resize":
                    _keep_old_coordinates(node)
    except (EncodeError, RuntimeError, ValueError) as error:
        raise ModelError(f"cannot be converted to opset 11 ({reason(error)}); export it with opset 17") from error
    return proto


def _keep_old_coordinates(node: onnx.NodeProto) -> None:
    """Write out the coordinates of Resize before opset 11: the version converter leaves them to the new defaults."""
    given = {attribute.name for attribute in node.attribute}
    for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
        if name not in given:
            node.attribute.append(helper.make_attribute(name, value))


def _prune(proto: onnx.ModelProto) -> None:
    """Drop nodes that no output needs, and give every other one a name of its own."""
    graph = proto.graph
    needed = {value.name for value in graph.output}
    nodes = []
    names: set[str] = set()
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input, _captured(node))
            if not node.name or node.name in names:
                node.name = f"{node.name or node.op_type}:{node.output[0]}"
            names.add(node.name)
            nodes.append(node)
    _assign(graph.node, nodes[::-1])


def _captured(node: onnx.NodeProto) -> set[str]:
    """Names that the branches of a control flow node may take from outside."""
    names: set[str] = set()
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            for inner in attribute.g.node:
                names.update(inner.input, _captured(inner))
            names.update(value.name for value in attribute.g.output)
    return names


def _slim(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Fold shape arithmetic with onnxslim in a process of its own; the model as it is where that does not work."""
    with tempfile.TemporaryDirectory(prefix="calumma-slim-") as folder:
        before, after = Path(folder, "model.onnx"), Path(folder, "slim.onnx")
        try:
            before.write_bytes(proto.SerializeToString())
            command = [sys.executable, "-m", "onnxslim", str(before), str(after)]
            subprocess.run(command, check=True, capture_output=True, timeout=_SLIM_TIMEOUT_S, stdin=subprocess.DEVNULL)
            slimmed = onnx.load(after)
        except subprocess.CalledProcessError as error:
            lines = error.stderr.decode(errors="replace").strip().splitlines()
            _log.warning("onnxslim failed, the model is taken as it is: %s", lines[-1] if lines else error)
            return proto
        except (subprocess.TimeoutExpired, OSError, DecodeError, EncodeError, ValueError) as error:
            _log.warning("onnxslim failed, the model is taken as it is: %s", reason(error))
            return proto
    for field in ("input", "output"):
        old, new = ({value.name for value in getattr(p.graph, field)} for p in (proto, slimmed))
        if old != new:
            _log.warning(
                "onnxslim changed the model's %ss (%s), the model is taken as it is", field, sorted(old ^ new)[0]
            )
            return proto
    _prune(slimmed)
    return slimmed


# -- conversion ---------------------------------------------------------------------------------------


def _expand_functions(proto: onnx.ModelProto, supported: frozenset[str]) -> onnx.ModelProto:
    """Replace operators that the converter does not know by the ONNX standard's own definition, where it has one."""
    refused = frozenset().union(*(operators for operators, _ in _FLAWS))
    names = {n.op_type for n in proto.graph.node if n.domain in _ONNX_DOMAINS} - supported - refused
    opset = _opset(proto)
    standard = {schema.name for schema in onnx.defs.get_all_schemas()} if names else set()
    defined = [name for name in sorted(names & standard) if _has_definition(name, opset)]
    if not defined:
        return proto
    expanded = inliner.inline_selected_functions(proto, [("", name) for name in defined], inline_schema_functions=True)
    _prune(expanded)
    return expanded


def _has_definition(operator: str, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _check_operators(proto: onnx.ModelProto, supported: frozenset[str]) -> None:
    for node in proto.graph.node:
        for operators, flaw in _FLAWS:
            if node.op_type in operators:
                raise ModelError(f"node {node.name}: operator {node.op_type} {flaw}")
        if node.domain in _ONNX_DOMAINS:
            known = node.op_type == "Constant" or node.op_type in supported - _CONTRIB_ONLY
        else:
            known = node.domain == _CONTRIB_DOMAIN and node.op_type in _CONTRIB
        if not known:
            domain = "" if node.domain in _ONNX_DOMAINS else f" of domain {node.domain}"
            raise ModelError(
                f"node {node.name}: operator {node.op_type}{domain} is not supported; "
                "replace it by other ONNX operators before exporting, or cut the model off before this node"
            )


def _inferred_types(proto: onnx.ModelProto) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type of each node's first output, where ONNX can tell it without computing."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    types = {}
    for value in (*graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if (
            tensor.elem_type in _TYPES
            and tensor.HasField("shape")
            and all(d.HasField("dim_value") for d in tensor.shape.dim)
        ):
            dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            types[value.name] = dtype, tuple(dim.dim_value for dim in tensor.shape.dim)
    return {node.name: types[node.output[0]] for node in proto.graph.node if node.output and node.output[0] in types}


def _graph(mod: Any, proto: onnx.ModelProto, weights: Mapping[str, NDArray[np.float32]]) -> Any:
    """Read the converted module and put the detached weights back as constants."""
    from calumma.frontend.graph import constant, from_relax

    graph = from_relax(mod, [value.name for value in proto.graph.output])
    graph.replace({node: constant(weights[node.name], node.name) for node in graph.inputs if node.name in weights})
    graph.inputs = [node for node in graph.inputs if node.name not in weights]
    return graph
