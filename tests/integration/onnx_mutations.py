"""Small real models, and thousands of ways to damage them: what the fuzz tests feed to the importer.

A case is a number: the same number gives the same bytes, so that a finding is reproduced by its number alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from tests.onnx_models import Model

_SIZES = (0, 1, -1, 2, 3, 5, 7, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 62, -(1 << 63), (1 << 63) - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-40, 1e38, -1e38, float("inf"), float("-inf"), float("nan"))
_TEXTS = ("", "NOTSET", "SAME_UPPER", "VALID", "reflect", "edge", "linear", "a\nb", "x" * 5000, "ä😀", "../x", "%s{}")
_PLACES = ("/etc/passwd", "../secret.bin", "a/../../secret.bin", "weights.bin", "", ".", "\x00", "a" * 300)


@dataclass(frozen=True)
class Case:
    """A damaged model."""

    number: int
    source: str
    """The model it was made from."""
    mutation: str
    data: bytes


# -- models -------------------------------------------------------------------------------------------


def _convolutions() -> bytes:
    m = Model()
    x = m.op("Relu", m.batch_norm(m.conv(m.input(1, 3, 12, 10), (3, 20), strides=[2, 2]), 20))
    y = m.op("Add", m.conv(m.op("Relu", m.conv(x, (20, 16))), (16, 20), kernel=1), x)
    y = m.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = m.op("Concat", m.conv(y, (20, 8)), m.op("AveragePool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), axis=1)
    y = m.op("Flatten", m.op("GlobalAveragePool", y))
    return m.bytes(m.op("Softmax", m.op("Gemm", y, m.random(10, 28), m.random(10), transB=1)))


def _separable() -> bytes:
    m = Model(opset=13)
    x = m.conv(m.input(1, 24, 6, 7), (24, 24), groups=24)
    x = m.op("Clip", x, np.float32(0), np.float32(6))
    x = m.op("Reshape", m.conv(x, (24, 24), kernel=1, groups=3), np.array([1, 3, 8, 6, 7]))
    x = m.op("Reshape", m.op("Transpose", x, perm=[0, 2, 1, 3, 4]), np.array([1, 24, 6, 7]))
    left, right = m.op("Split", x, np.array([16, 8]), outputs=2, axis=1)
    left = m.op("Mul", left, m.op("Sigmoid", m.op("ReduceMean", left, axes=[2, 3], keepdims=1)))
    right = m.op("Pad", m.op("Slice", right, np.array([1]), np.array([6]), np.array([3])), np.array([0, 0, 0, 1] * 2))
    return m.bytes(m.op("Concat", left, right, axis=1), m.op("LeakyRelu", right, alpha=0.1))


def _attention() -> bytes:
    m = Model()
    x = m.input(2, 6, 32)
    normal = m.op("LayerNormalization", x, m.random(32), m.random(32), axis=-1)
    heads = [
        m.op("Transpose", m.op("Reshape", m.linear(normal, (32, 32)), np.array([2, 6, 4, 8])), perm=perm)
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    ]
    scores = m.op("Softmax", m.op("Div", m.op("MatMul", heads[0], heads[1]), np.float32(8**0.5)), axis=-1)
    mixed = m.op("Transpose", m.op("MatMul", scores, heads[2]), perm=[0, 2, 1, 3])
    x = m.op("Add", x, m.linear(m.op("Reshape", mixed, np.array([2, 6, 32])), (32, 32)))
    wide = m.linear(x, (32, 48))
    gelu = m.op("Mul", wide, m.op("Add", m.op("Erf", m.op("Div", wide, np.float32(2**0.5))), np.float32(1)))
    return m.bytes(m.op("Add", x, m.linear(gelu, (48, 32))))


def _old() -> bytes:
    m = Model(opset=8)
    x = m.op("LRN", m.conv(m.input(1, 3, 9, 9), (3, 16)), size=5, alpha=1e-3, beta=0.75, bias=1.0)
    x = m.op("Upsample", m.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), scales=[1.0, 1.0, 2.0, 2.0])
    x = m.op("Dropout", x, ratio=0.5)
    x = m.op("Sum", x, m.op("Tanh", x), m.op("Abs", x))
    return m.bytes(m.op("Gemm", m.op("Reshape", x, np.array([1, -1])), m.random(1024, 5), m.random(5)))


def _shapes() -> bytes:
    m = Model(opset=14)
    x = m.input(2, 3, 8)
    size = m.op("Gather", m.op("Shape", x), np.array(0), axis=0)
    rows = m.op("Concat", m.op("Unsqueeze", size, np.array([0])), np.array([-1]), axis=0)
    y = m.op("MatMul", m.op("Reshape", x, rows), m.random(24, 12))
    y = m.op("Gather", m.op("CumSum", y, np.array(1)), np.array([0, 3, 11]), axis=1)
    y = m.op("Where", m.op("Less", y, np.float32(0)), m.op("Neg", y), m.op("Sqrt", m.op("Abs", y)))
    return m.bytes(m.op("Expand", m.op("ReduceMax", y, axes=[1]), np.array([2, 4])), m.op("Cast", y, to=6))


def _light(name: str) -> bytes:
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    return (folder / f"light_{name}.onnx").read_bytes()


SOURCES: dict[str, Callable[[], bytes]] = {
    "convolutions": _convolutions,
    "separable": _separable,
    "attention": _attention,
    "old": _old,
    "shapes": _shapes,
}
LIGHT = ("squeezenet", "shufflenet")
"""Published architectures that come with the onnx package; their compilation takes seconds, so few cases use them."""


@functools.cache
def source(name: str) -> bytes:
    """An undamaged model."""
    return _light(name) if name in LIGHT else SOURCES[name]()


# -- mutations of bytes -------------------------------------------------------------------------------


def _flip(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 9))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def _flip_early(data: bytearray, rng: np.random.Generator) -> None:
    """Structure comes first in these files, weights behind it: hit the nodes."""
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(min(len(data), 1500)))] = int(rng.integers(256))


def _truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data))) :]


def _cut(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(len(data)))
    del data[start : start + int(rng.integers(1, 64))]


def _repeat(data: bytearray, rng: np.random.Generator) -> None:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 512))
    data[start:start] = data[start : start + length]


def _overwrite(data: bytearray, rng: np.random.Generator) -> None:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 32))
    data[start : start + length] = rng.bytes(length)


def _long_varint(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(min(len(data), 1500)))
    data[start:start] = b"\xff" * int(rng.integers(1, 10)) + b"\x01"


BYTES = (_flip, _flip_early, _truncate, _cut, _repeat, _overwrite, _long_varint)


# -- mutations of structure ---------------------------------------------------------------------------


def _one(values: Any, rng: np.random.Generator) -> Any:
    return values[int(rng.integers(len(values)))]


def _values(graph: onnx.GraphProto) -> list[str]:
    names = [*(v.name for v in graph.input), *(t.name for t in graph.initializer)]
    return [*names, *(name for node in graph.node for name in node.output)]


def _size(old: int, rng: np.random.Generator) -> int:
    return int(_one(_SIZES, rng)) if rng.random() < 0.5 else old + int(_one((-1, 1, 2, 8), rng))


def _input_dim(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    dims = _one(graph.input, rng).type.tensor_type.shape.dim
    kind = rng.integers(5)
    if kind == 0:
        _one(dims, rng).dim_param = "n"
    elif kind == 1:
        dims.add().dim_value = 1
    elif kind == 2:
        del dims[int(rng.integers(len(dims)))]
    else:
        dim = _one(dims, rng)
        dim.dim_value = _size(dim.dim_value, rng)


def _input_type(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    _one(graph.input, rng).type.tensor_type.elem_type = int(rng.integers(0, 26))


def _weight_dims(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    tensor = _one(graph.initializer, rng)
    kind = rng.integers(4)
    if kind == 0 and len(tensor.dims) > 1:
        tensor.dims[:] = list(tensor.dims)[::-1]
    elif kind == 1:
        tensor.dims.append(1)
    elif len(tensor.dims):
        axis = int(rng.integers(len(tensor.dims)))
        tensor.dims[axis] = _size(tensor.dims[axis], rng)


def _weight_shape(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """Another shape with data to match: only the operators can notice."""
    tensor = _one(graph.initializer, rng)
    shape = [max(1, d + int(_one((-1, 0, 1, 3), rng))) for d in tensor.dims]
    array = rng.standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _weight_type(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    _one(graph.initializer, rng).data_type = int(rng.integers(0, 26))


def _weight_data(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    tensor = _one(graph.initializer, rng)
    kind, raw = rng.integers(3), bytearray(tensor.raw_data)
    if kind == 0:
        tensor.raw_data = bytes(raw[: int(rng.integers(len(raw) + 1))])
    elif kind == 1:
        tensor.raw_data = bytes(raw) + rng.bytes(int(rng.integers(1, 9)))
    else:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if array.size:
            values = _FLOATS if array.dtype.kind == "f" else [v for v in _SIZES if abs(v) < 1 << 62]
            array.reshape(-1)[int(rng.integers(array.size))] = _one(values, rng)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _weight_outside(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    tensor = _one(graph.initializer, rng)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", _one(_PLACES, rng)), ("offset", _one(("0", "-1", "x", str(1 << 62)), rng))):
        tensor.external_data.add(key=key, value=str(value))
    if rng.random() < 0.5:
        tensor.external_data.add(key="length", value=str(_one(_SIZES, rng)))


def _name_twice(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    kind = rng.integers(4)
    if kind == 0:
        _one(graph.initializer, rng).name = _one(_values(graph), rng)
    elif kind == 1:
        _one(graph.node, rng).output[0] = _one(_values(graph), rng)
    elif kind == 2:
        graph.input.add().CopyFrom(_one(graph.input, rng))
    else:
        _one(graph.input, rng).name = _one(_values(graph), rng)


def _attribute(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    nodes = [node for node in graph.node if node.attribute]
    attribute = _one(_one(nodes, rng).attribute, rng)
    kind = rng.integers(6)
    if kind == 0:
        attribute.type = int(_one([t for t in AttributeProto.AttributeType.values() if t != 5], rng))
    elif kind == 1:
        attribute.name = str(_one(("axis", "kernel_shape", "pads", "to", "alpha", "nonsense", ""), rng))
    elif attribute.type == AttributeProto.INT:
        attribute.i = _size(attribute.i, rng)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = float(_one(_FLOATS, rng))
    elif attribute.type == AttributeProto.STRING:
        attribute.s = str(_one(_TEXTS, rng)).encode()
    elif attribute.type == AttributeProto.INTS and attribute.ints:
        if kind == 2:
            del attribute.ints[-1]
        elif kind == 3:
            attribute.ints.append(int(_one(_SIZES, rng)))
        else:
            axis = int(rng.integers(len(attribute.ints)))
            attribute.ints[axis] = _size(attribute.ints[axis], rng)


def _attribute_lost_or_new(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    node = _one(graph.node, rng)
    kind = rng.integers(3)
    if kind == 0 and node.attribute:
        del node.attribute[int(rng.integers(len(node.attribute)))]
    elif kind == 1 and node.attribute:
        node.attribute.add().CopyFrom(_one(node.attribute, rng))
    else:
        names = ("axis", "axes", "kernel_shape", "strides", "dilations", "group", "keepdims", "perm", "to", "mode")
        value = _one(([0], [1, 2], [-1], [2, 2], 0, 1, -1, 3, 1 << 40, "text", 0.5), rng)
        node.attribute.append(helper.make_attribute(str(_one(names, rng)), value))


def _operator(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    _one(graph.node, rng).op_type = str(_one(_operators(), rng))


@functools.cache
def _operators() -> list[str]:
    return sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})


def _domain(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    _one(graph.node, rng).domain = str(_one(("ai.onnx", "com.microsoft", "ai.onnx.ml", "nowhere", "a\nb"), rng))


def _rewire(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """Another input: a value from elsewhere, of a later node (a cycle), or one that does not exist."""
    node = _one([node for node in graph.node if node.input], rng)
    name = _one((*_values(graph), "dangling", "", node.output[0]), rng)
    node.input[int(rng.integers(len(node.input)))] = str(name)


def _inputs(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    node = _one([node for node in graph.node if node.input], rng)
    if rng.random() < 0.5:
        del node.input[int(rng.integers(len(node.input)))]
    else:
        node.input.append(str(_one((*_values(graph), ""), rng)))


def _outputs(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    node = _one(graph.node, rng)
    kind = rng.integers(4)
    if kind == 0:
        del node.output[int(rng.integers(len(node.output)))]
    elif kind == 1:
        node.output.append("one_more")
    elif kind == 2:
        node.output[0] = ""
    else:
        node.output[0] = str(_one(_TEXTS, rng))


def _nodes(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    kind, i = rng.integers(3), int(rng.integers(len(graph.node)))
    if kind == 0:
        del graph.node[i]
    elif kind == 1:
        graph.node.add().CopyFrom(graph.node[i])
    else:
        nodes = [*graph.node]
        j = int(rng.integers(len(nodes)))
        nodes[i], nodes[j] = nodes[j], nodes[i]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _graph_output(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    kind = rng.integers(4)
    if kind == 0:
        graph.output[0].name = "dangling"
    elif kind == 1:
        graph.output.add().name = str(_one(_values(graph), rng))
    elif kind == 2:
        graph.output[0].name = str(_one(_values(graph), rng))
    else:
        graph.output.add().CopyFrom(graph.output[0])


def _names(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """Odd text as the name of something, wherever it is used."""
    old, new = str(_one(_values(graph), rng)), str(_one(_TEXTS, rng))
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = new if value.name == old else value.name
    for node in graph.node:
        node.name = new
        for field in (node.input, node.output):
            field[:] = [new if name == old else name for name in field]


def _activation(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """One more elementwise operator: the model stays valid, and reaches the code that mere damage never does."""
    kinds = ("Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Exp", "Sqrt", "Log", "Reciprocal", "Floor", "Erf", "Softplus")
    i = int(rng.integers(len(graph.node)))
    target = graph.node[i]
    read, name = int(rng.integers(len(target.input))), f"more_{len(graph.node)}"
    node = helper.make_node(str(_one(kinds, rng)), [target.input[read]], [name])
    target.input[read] = name
    graph.node.insert(i, node)


def _bomb(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """An operator in front of the first node whose result is huge, or nearly so."""
    target, shape = graph.node[0], [int(v) for v in rng.choice([2, 1 << 10, 1 << 20, 1 << 33, 1 << 50], 4)]
    kind = rng.integers(4)
    if kind == 0:
        node = helper.make_node("Expand", [target.input[0], "bomb_size"], ["bomb"])
    elif kind == 1:
        node = helper.make_node("Tile", [target.input[0], "bomb_size"], ["bomb"])
    elif kind == 2:
        node = helper.make_node("ConstantOfShape", ["bomb_size"], ["bomb"])
    else:
        node = helper.make_node("Pad", [target.input[0], "bomb_size"], ["bomb"])
        shape = [0, 0, *shape, 0, 0][: 2 * len(graph.input[0].type.tensor_type.shape.dim)]
    size = graph.initializer.add()
    size.CopyFrom(onnx.numpy_helper.from_array(np.array(shape, np.int64), "bomb_size"))
    target.input[0] = "bomb"
    graph.node.insert(0, node)


GRAPH = (
    _input_dim,
    _input_type,
    _weight_dims,
    _weight_shape,
    _weight_type,
    _weight_data,
    _weight_outside,
    _name_twice,
    _attribute,
    _attribute,
    _attribute_lost_or_new,
    _operator,
    _domain,
    _rewire,
    _rewire,
    _inputs,
    _outputs,
    _nodes,
    _graph_output,
    _names,
    _activation,
    _activation,
    _activation,
    _bomb,
)


def _versions(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    kind = rng.integers(4)
    if kind == 0:
        model.opset_import[0].version = int(_one((*range(1, 30), *_SIZES), rng))
    elif kind == 1:
        model.ir_version = int(_one(_SIZES, rng))
    elif kind == 2:
        model.opset_import.add(domain=str(_one(("", "ai.onnx", "nowhere"), rng)), version=int(rng.integers(30)))
    else:
        del model.opset_import[:]


def case(number: int) -> Case:
    """Return the damaged model of a number."""
    rng = np.random.default_rng([20, number])
    name = str(_one(LIGHT if rng.random() < 0.02 else tuple(SOURCES), rng))
    data = source(name)
    if rng.random() < 0.3:
        mutation, raw = _one(BYTES, rng), bytearray(data)
        mutation(raw, rng)
        return Case(number, name, mutation.__name__.strip("_"), bytes(raw))
    model = onnx.ModelProto.FromString(data)
    applied = []
    for _ in range(1 if rng.random() < 0.8 else 3):
        mutation = _versions if rng.random() < 0.04 else _one(GRAPH, rng)
        try:
            mutation(model if mutation is _versions else model.graph, rng)
        except (IndexError, ValueError):
            continue  # an earlier mutation took away what this one needs
        applied.append(mutation.__name__.strip("_"))
    return Case(number, name, "+".join(applied), model.SerializeToString())
