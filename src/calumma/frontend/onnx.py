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
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, checker, helper, inliner, numpy_helper, version_converter
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError
from onnx.version_converter import ConvertError

from calumma import tvm_compat
from calumma.core import hardware as host
from calumma.core.errors import ModelError
from calumma.frontend.importer import Clock, ImportedModel, Shapes, check_size, reason

_log = logging.getLogger(__name__)

OPSETS = range(7, 22)
"""Opsets of the default domain that can be imported."""

_DETACHED_ELEMENTS = 256
"""Float32 initialisers of at least this many elements go around the converter. What an operator has to know while it is
converted (shapes, axes, scales, bounds) is smaller."""
_SLIM_TIMEOUT_S = 60.0
_SLIM = """
import resource, runpy, sys
limit, (_, hard) = int(sys.argv.pop(1)), resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
runpy.run_module("onnxslim", run_name="__main__")
"""
"""onnxslim within limits: folding shape arithmetic takes no memory, unless a model is made to."""
_NAMELESS = frozenset({"?", "-1", "None"})
"""What exporters write for any open dimension: no name that ties dimensions together."""
_WORD_CHARACTERS = 100
"""A message quotes names up to this length."""

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
            _check_graph(proto)
            _leave_out_empty_inputs(proto.graph)
            bound = _fix_shapes(proto, shapes or {})
            _check_types(proto)
            weights = _detach_weights(source, proto, fingerprint)
            proto = _modernise(proto)
            _prune(proto)
            with _onnx_step("shapes and types do not agree"):
                _inferred_types(proto)  # checks sizes, which onnxslim would compute with
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
            with _onnx_step("shapes and types do not agree"):
                proto = _expand_functions(proto, supported_operators())
                _check_operators(proto, supported_operators())
                types = _inferred_types(proto)
            mod = convert(proto, _opset(proto), types)
        with clock.phase("graph"):
            graph = _graph(mod, proto, weights)
    return ImportedModel(graph, name, model_hash, clock.phases_s)


@contextlib.contextmanager
def _located(where: str) -> Iterator[None]:
    """Put the name of the model before a message about it, and keep it a short line whatever names the model has."""
    try:
        yield
    except ModelError as error:
        words = (w if len(w) <= _WORD_CHARACTERS else f"{w[:_WORD_CHARACTERS]}..." for w in str(error).split())
        text = "".join(c if c.isprintable() else "?" for c in " ".join(words))  # a name may hold a terminal's commands
        raise ModelError(f"{where}: {text}") from error


@contextlib.contextmanager
def _onnx_step(failure: str) -> Iterator[None]:
    """Translate what ONNX's own library raises; only some of its errors are what they are called."""
    try:
        yield
    except (EncodeError, RuntimeError, ValueError, ConvertError, InferenceError, ValidationError) as error:
        raise ModelError(f"{failure} ({_first_line(error)}); export it again, or with opset 17") from error


def _first_line(error: BaseException) -> str:
    """Where ONNX says what is wrong; the context follows."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# -- reading ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """The bytes of a model, what to call it in messages, and its path: its folder holds its external data."""

    where: str
    data: bytes
    path: Path | None

    @classmethod
    def of(cls, model: str | Path | bytes) -> _Source:
        if isinstance(model, bytes):
            return cls("the model", model, None)
        path = Path(model)
        if path.is_dir():
            raise ModelError(f"{path}: a directory, expected an ONNX file; give the path of the file in it")
        try:
            return cls(str(path), path.read_bytes(), path)
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
    for named in (*proto.opset_import, *proto.graph.node):
        if named.domain == _ONNX_DOMAINS[1]:
            named.domain = ""


def _check_graph(proto: onnx.ModelProto) -> None:
    """Refuse what is no graph (names given twice, never or too late) and nodes that break their operator's schema.

    TVM's converter believes all this: it computes something else, or crashes, where it does not hold.
    """
    graph = proto.graph
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(f"IR version {proto.ir_version}, known are those up to {onnx.IR_VERSION}; update onnx")
    if not all(isinstance(text, str) for text in _texts(proto)):  # what is not UTF-8 comes as bytes
        raise ModelError("a name is not text in UTF-8: damaged; export or download the model again")
    context = checker.C.CheckerContext()
    context.ir_version = proto.ir_version
    context.opset_imports = {entry.domain: entry.version for entry in proto.opset_import}
    given = {""}

    def give(name: str, what: str) -> None:
        if name and name in given:
            raise ModelError(f"{what}: the name {name!r} is given twice; export the model again")
        given.add(name)

    for value in graph.input:
        give(value.name, "input")
    for tensor in graph.initializer:
        give(tensor.name, "weight")
    for node in graph.node:
        what = f"node {node.name or next(iter(node.output), '')}: operator {node.op_type}"
        if not any(node.output):
            raise ModelError(f"{what} gives no result; export the model again")
        if node.domain not in context.opset_imports:
            raise ModelError(f"{what} is of domain {node.domain!r}, of which the model names no opset; export it again")
        absent = next((name for name in node.input if name not in given), None)
        if absent is not None:
            raise ModelError(f"{what} reads {absent!r}, which nothing before it gives; export the model again")
        if not node.domain and onnx.defs.has(node.op_type, _opset(proto), ""):
            try:
                checker.check_node(node, context)
            except ValidationError as error:
                raise ModelError(f"{what} is not valid ({_first_line(error)}); export the model again") from error
            _check_variadic(node, what, onnx.defs.get_schema(node.op_type, _opset(proto), ""))
        for name in node.output:
            give(name, what)
    for value in graph.output:
        if not value.name or value.name not in given:
            raise ModelError(f"output {value.name!r}: nothing gives it; export the model again")


def _check_variadic(node: onnx.NodeProto, what: str, schema: onnx.defs.OpSchema) -> None:
    """Refuse an input left out of a list of inputs: TVM dies of it, and ONNX's own check lets it pass."""
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    listed = schema.inputs and schema.inputs[-1].option == variadic
    if listed and "" in node.input[len(schema.inputs) - 1 :]:
        raise ModelError(f"{what} has an input without a name; export the model again")


def _texts(proto: onnx.ModelProto) -> Iterator[str]:
    """Everything in a model that names something."""
    graph = proto.graph
    yield from (entry.domain for entry in proto.opset_import)
    yield from (named.name for named in (*graph.input, *graph.output, *graph.initializer))
    yield from (dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim)
    for node in graph.node:
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


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
    _assign(graph.input, [value for value in graph.input if value.name not in constants])
    proto.ir_version = max(proto.ir_version, 4)


def _leave_out_empty_inputs(graph: onnx.GraphProto) -> None:
    """An empty tensor is how exporters leave an input of Resize out."""
    empty = {tensor.name for tensor in graph.initializer if 0 in tensor.dims}
    for node in graph.node:
        if node.op_type == "Resize":
            node.input[:] = ["" if name in empty else name for name in node.input]


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
        raise ModelError(f"shape {unknown[0]}: no such input; the inputs are {listed}")
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in _NAMELESS:
                dim.ClearField("dim_param")
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
            f"open dimensions in {', '.join(_signature(value) for value in still_open)}; give "
            + ", ".join(_shape_option(value) for value in still_open)
        )
    del graph.value_info[:]
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in graph.input}


def _bind(value: onnx.ValueInfoProto, shape: tuple[int, ...], symbols: dict[str, tuple[int, str]]) -> None:
    option = f"shape {value.name}={','.join(map(str, shape))}"
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
    return f"shape {value.name}={','.join(size if size.isdecimal() else size.upper() for size in _dims(value))}"


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
    """Take large weights out of the model, which gets inputs of their names; read external data; drop the unread."""
    graph = proto.graph
    weights: dict[str, NDArray[np.float32]] = {}
    read = {value.name for value in graph.output}
    for node in graph.node:
        read.update(node.input, _captured(node))
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
    _assign(graph.initializer, kept)
    return weights


def _size_bytes(tensor: TensorProto) -> int:
    return math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _read_external(source: _Source, tensor: TensorProto) -> NDArray[np.uint8]:
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


# -- rewriting ----------------------------------------------------------------------------------------


def _modernise(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inline the model's own functions, and bring it to opset 11 where the converter does not know an older form."""
    with _onnx_step("cannot be converted to opset 11"):
        if proto.functions:
            proto = inliner.inline_local_functions(proto)
        if _opset(proto) < 11 and not _RENEWED.isdisjoint(node.op_type for node in proto.graph.node):
            proto = version_converter.convert_version(proto, 11)
            for node in proto.graph.node:
                if node.op_type == "Resize":
                    _keep_old_coordinates(node)
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
            command = [sys.executable, "-c", _SLIM, str(host.memory_bytes()), str(before), str(after)]
            subprocess.run(command, check=True, capture_output=True, timeout=_SLIM_TIMEOUT_S, stdin=subprocess.DEVNULL)
            slimmed = onnx.load(after)
        except subprocess.CalledProcessError as error:
            lines = error.stderr.decode(errors="replace").strip().splitlines()
            _log.warning("onnxslim failed, the model is taken as it is: %s", lines[-1] if lines else error)
            return proto
        except subprocess.TimeoutExpired:
            _log.warning("onnxslim failed, the model is taken as it is: it took longer than %g s", _SLIM_TIMEOUT_S)
            return proto
        except (OSError, DecodeError, EncodeError, ValueError) as error:
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
    graph = onnx.shape_inference.infer_shapes(proto, check_type=True).graph
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
            check_size(value.name, *types[value.name])
    return {node.name: types[node.output[0]] for node in proto.graph.node if node.output and node.output[0] in types}


def _graph(mod: Any, proto: onnx.ModelProto, weights: Mapping[str, NDArray[np.float32]]) -> Any:
    """Read the converted module and put the detached weights back as constants."""
    from calumma.frontend.relax_graph import from_relax
    from calumma.graph.nodes import constant

    graph = from_relax(mod, [value.name for value in proto.graph.output])
    graph.replace({node: constant(weights[node.name], node.name) for node in graph.inputs if node.name in weights})
    graph.inputs = [node for node in graph.inputs if node.name not in weights]
    return graph
