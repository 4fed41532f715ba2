"""Graph rewrites before anything is lowered: fold constants and BatchNorm, recover operators that importers took apart.

Each rewrite is a function Graph -> Graph in place; `simplify` runs them in the order that matters.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from calumma.core.errors import ModelError
from calumma.frontend.graph import CONSTANT, TUPLE_ITEM, Graph, Node, constant

CHANNEL_SHUFFLE = "calumma.channel_shuffle"
INTERLEAVE = "calumma.interleave"
"""Phases woven into a finer plane (attrs strides (sy, sx), starts (oy, ox)); C channels from sy * sx * C:
out[n, c, y, x] = in[n, ((y + oy) % sy * sx + (x + ox) % sx) * C + c, (y + oy) // sy, (x + ox) // sx]."""
LRN = "calumma.lrn"
MATMUL = "calumma.matmul"
"""matmul with transposes of operands and result absorbed (attrs left_axes, right_axes, out_axes)."""

_MAX_FOLDED_BYTES = 1 << 30


def simplify(graph: Graph) -> Graph:
    """Run every rewrite."""
    decompose_batch_norm(graph)
    fold_constants(graph)
    put_constants_right(graph)
    replace_stacked_sums(graph)
    remove_identities(graph)
    recover_lrn(graph)
    recover_channel_shuffle(graph)
    replace_transposed_convolutions(graph)
    recover_layer_norm(graph)
    fold_scales(graph)
    join_shifts(graph)
    absorb_transposes(graph)
    return graph


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value.values)


def _axes(axes: Any) -> tuple[int, ...] | None:
    return None if axes is None else tuple(int(a) for a in axes)


_UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "negative": np.negative,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
    "exp": np.exp,
    "log": np.log,
    "abs": np.abs,
    "floor": np.floor,
    "ceil": np.ceil,
    "tanh": np.tanh,
    "nn.relu": lambda x: np.maximum(x, 0),
    "logical_not": np.logical_not,
    "isnan": np.isnan,
    "shape_to_tensor": lambda x: x,
}
_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": lambda a, b: (
        np.divide(a, b) if np.issubdtype(a.dtype, np.floating) else (np.trunc(a / b)).astype(a.dtype)
    ),
    "power": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
}


def _evaluate(node: Node) -> np.ndarray | None:
    """Compute a node of constants with NumPy; None for an operator that is not worth it or not known here."""
    values = [arg.value for arg in node.args if isinstance(arg, Node)]
    if node.op in _UNARY:
        return _UNARY[node.op](values[0])
    if node.op in _BINARY:
        return _BINARY[node.op](values[0], values[1])
    match node.op:
        case "arange":  # start, end, step
            return np.arange(*(arg.value for arg in node.args))
        case "full" if np.prod(node.shape) == 1:
            return np.full(node.shape, values[0])
        case "gather_elements":
            return np.take_along_axis(values[0], values[1], axis=int(node.attrs.axis))
        case "strided_slice":
            axes, begin, end, *rest = ([int(item.value) for item in arg] for arg in node.args[1:5])
            strides = rest[0] if rest else [1] * len(axes)
            ranges = dict(zip(axes, map(slice, begin, end, strides), strict=True))
            return values[0][tuple(ranges.get(axis, slice(None)) for axis in range(values[0].ndim))]
        case "reshape" | "squeeze" | "expand_dims" | "flatten" if node.shape or values[0].size == 1:
            return values[0].reshape(node.shape)
        case "broadcast_to":
            return np.broadcast_to(values[0], node.shape)
        case "permute_dims":
            return np.transpose(values[0], _axes(node.attrs.axes))
        case "astype":
            return values[0].astype(node.dtype)
        case "where":
            return np.where(values[0], values[1], values[2])
        case "concat":
            return np.concatenate([x.value for x in node.args[0]], axis=int(node.attrs.axis or 0))
        case "stack":
            return np.stack([x.value for x in node.args[0]], axis=int(node.attrs.axis or 0))
        case "take" if len(values) == 2 and node.attrs.axis is not None:
            return np.take(values[0], values[1], axis=int(node.attrs.axis))
        case _:
            return None


def fold_constants(graph: Graph) -> None:
    """Replace operators whose inputs are all constants by their value."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        node.replace_inputs(mapping)
        if node.op == "shape_of":
            mapping[node] = constant(np.array(node.args[0].shape, dtype=np.int64), node.name)
            continue
        if not (node.inputs or node.op == "arange") or not all(source.op == CONSTANT for source in node.inputs):
            continue
        if node.dtype and np.prod(node.shape, dtype=np.int64) * 4 > _MAX_FOLDED_BYTES:
            continue
        try:
            value = _evaluate(node)
        except (ArithmeticError, IndexError, ValueError) as error:
            raise ModelError(
                f"node {node.name}: operator {node.op} of constants cannot be computed ({error})"
            ) from error
        if value is not None and value.shape != node.shape:
            raise ModelError(
                f"node {node.name}: operator {node.op} was imported with shape {node.shape}, its value has "
                f"{value.shape}; write it with other operators"
            )
        if value is not None:
            mapping[node] = constant(np.asarray(value, dtype=node.dtype), node.name)
    graph.replace(mapping)


def decompose_batch_norm(graph: Graph) -> None:
    """BatchNorm at inference is x * scale + shift, with scale = gamma / sqrt(var + eps), per channel."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        if node.op != TUPLE_ITEM or node.args[0].op != "nn.batch_norm" or node.attrs.index != 0:
            continue
        norm = node.args[0]
        data, *rest = norm.args
        if not all(p.op == CONSTANT for p in rest[:4]):
            continue
        gamma, beta, mean, var = (p.value.astype(np.float64) for p in rest[:4])
        scale = gamma / np.sqrt(var + float(norm.attrs.epsilon))
        if not norm.attrs.scale:
            scale = 1 / np.sqrt(var + float(norm.attrs.epsilon))
        shift = (beta if norm.attrs.center else 0) - mean * scale
        spread = [1] * len(node.shape)
        spread[int(norm.attrs.axis)] = -1
        scaled = _binary("multiply", data, constant(scale.reshape(spread).astype(node.dtype)), node)
        mapping[node] = _binary("add", scaled, constant(shift.reshape(spread).astype(node.dtype)), node)
    graph.replace(mapping)


def _binary(op: str, left: Node, right: Node, like: Node) -> Node:
    return Node(op, args=(left, right), shape=like.shape, dtype=like.dtype, name=like.name)


def put_constants_right(graph: Graph) -> None:
    """c + x becomes x + c, and c * x becomes x * c: every rewrite looks for constants on the right."""
    for node in graph.nodes():
        if node.op in ("add", "multiply") and node.args[0].op == CONSTANT and node.args[1].op != CONSTANT:
            node.args = node.args[::-1]


def replace_stacked_sums(graph: Graph) -> None:
    """Importers write ONNX Sum as broadcast + stack + sum; a chain of additions fuses into its producer instead."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        if node.op != "sum" or node.args[0].op != "stack" or _axes(node.attrs.axis) != (0,) or node.attrs.keepdims:
            continue
        stacked = node.args[0]
        if int(stacked.attrs.axis or 0) != 0:
            continue
        total, *others = stacked.args[0]
        for other in others:
            total = _binary("add", total, other, node)
        mapping[node] = total
    graph.replace(mapping)


def remove_identities(graph: Graph) -> None:
    """Drop operators that give their input back, and join reshapes of reshapes."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        node.replace_inputs(mapping)
        if node.op == TUPLE_ITEM and node.args[0].op == "nn.dropout" and node.attrs.index == 0:
            mapping[node] = node.args[0].args[0]
            continue
        if node.op in ("reshape", "squeeze", "expand_dims", "flatten", "broadcast_to", "astype"):
            source = node.args[0]
            if isinstance(source, Node) and source.shape == node.shape and source.dtype == node.dtype:
                mapping[node] = source
                continue
        if node.op in ("squeeze", "expand_dims", "flatten"):
            node.op, node.args, node.attrs, node.call = "reshape", (node.args[0],), None, None
        if node.op == "reshape":
            while node.args[0].op == "reshape":
                node.args = (node.args[0].args[0],)
            if node.args[0].shape == node.shape:
                mapping[node] = node.args[0]
    graph.replace(mapping)


def recover_lrn(graph: Graph) -> None:
    """x / (bias + alpha * avgpool_over_channels(x^2)) ^ beta, as importers write local response normalisation."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        if node.op != "divide" or node.args[1].op != "power":
            continue
        data, power = node.args
        base, beta = power.args
        if base.op != "add" or base.args[0].op != "multiply":
            continue
        scaled, bias = base.args
        mean, alpha = scaled.args
        pool = mean.args[0] if mean.op == "reshape" else mean
        if pool.op != "nn.avg_pool3d" or not pool.attrs.count_include_pad:
            continue
        square = pool.args[0].args[0] if pool.args[0].op == "reshape" else pool.args[0]
        if square.op != "multiply" or square.args[0] is not data or square.args[1] is not data:
            continue
        window, *others = (int(v) for v in pool.attrs.pool_size)
        scalars = [p.value for p in (alpha, beta, bias) if p.op == CONSTANT and p.value.size == 1]
        if len(scalars) != 3 or others != [1, 1] or len(data.shape) != 4:
            continue
        a, b, c = (float(v.reshape(())) for v in scalars)
        attrs = SimpleNamespace(size=window, alpha=a, beta=b, bias=c)
        mapping[node] = Node(LRN, args=(data,), attrs=attrs, shape=node.shape, dtype=node.dtype, name=node.name)
    graph.replace(mapping)


def recover_channel_shuffle(graph: Graph) -> None:
    """reshape (N,g,C/g,H,W), swap axes 1 and 2, reshape back: output channel c reads input channel attrs.source[c]."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        if node.op != "reshape" or len(node.shape) != 4 or node.dtype != "float32" or node.args[0].op != "permute_dims":
            continue
        swap = node.args[0]
        if _axes(swap.attrs.axes) != (0, 2, 1, 3, 4) or swap.args[0].op != "reshape":
            continue
        data = swap.args[0].args[0]
        groups = swap.args[0].shape[1]
        if data.shape != node.shape or (data.shape[0], *data.shape[2:]) != (swap.shape[0], *swap.shape[3:]):
            continue
        source = np.arange(node.shape[1]).reshape(groups, -1).T.reshape(-1)
        mapping[node] = Node(
            CHANNEL_SHUFFLE,
            args=(data,),
            attrs=SimpleNamespace(source=source),
            shape=node.shape,
            dtype=node.dtype,
            name=node.name,
        )
    graph.replace(mapping)


def replace_transposed_convolutions(graph: Graph) -> None:
    """A transposed convolution of stride s as one of stride 1 whose s x s times as many planes are interleaved.

    Output y takes taps k with k = (y + padding) mod s alone: one convolution of ceil(K / s) taps for each remainder.
    Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016 (arXiv 1609.07009).
    """
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        replaced = _interleaved(node) if node.op == "nn.conv2d_transpose" else None
        if replaced is not None:
            mapping[node] = replaced
    graph.replace(mapping)


def _interleaved(node: Node) -> Node | None:
    """The replacement of a transposed convolution; None for groups, dilations and paddings that it is not made for."""
    a, (data, weight) = node.attrs, node.args[:2]
    if weight.op != CONSTANT or node.dtype != "float32" or (a.data_layout, a.kernel_layout) != ("NCHW", "IOHW"):
        return None
    if int(a.groups) != 1 or any(int(d) != 1 for d in a.dilation):
        return None
    strides, before = (tuple(int(v) for v in values[:2]) for values in (a.strides, a.padding))
    inputs, outputs, *kernel = weight.shape
    taps = [-(-k // s) for k, s in zip(kernel, strides, strict=True)]
    first = [p // s for p, s in zip(before, strides, strict=True)]
    last = [(size - 1 + p) // s for size, p, s in zip(node.shape[2:], before, strides, strict=True)]
    lower = [t - 1 - f for t, f in zip(taps, first, strict=True)]
    upper = [end - (size - 1) for end, size in zip(last, data.shape[2:], strict=True)]
    if min(*lower, *upper) < 0:
        return None
    (sy, sx), (ty, tx) = strides, taps
    split = np.zeros((inputs, outputs, ty * sy, tx * sx), np.float32)
    split[:, :, : kernel[0], : kernel[1]] = weight.value
    split = split.reshape(inputs, outputs, ty, sy, tx, sx)[:, :, ::-1, :, ::-1]
    split = split.transpose(3, 5, 1, 0, 2, 4).reshape(sy * sx * outputs, inputs, ty, tx)
    planes = Node(
        "nn.conv2d",
        args=(data, constant(split)),
        attrs=SimpleNamespace(
            strides=(1, 1),
            padding=(*lower, *upper),
            dilation=(1, 1),
            groups=1,
            data_layout="NCHW",
            kernel_layout="OIHW",
            out_layout="NCHW",
        ),
        shape=(node.shape[0], len(split), *(end - f + 1 for end, f in zip(last, first, strict=True))),
        dtype=node.dtype,
        name=node.name,
    )
    starts = tuple(p % s for p, s in zip(before, strides, strict=True))
    return Node(
        INTERLEAVE,
        args=(planes,),
        attrs=SimpleNamespace(strides=strides, starts=starts),
        shape=node.shape,
        dtype=node.dtype,
        name=node.name,
    )


def recover_layer_norm(graph: Graph) -> None:
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) * gamma + beta over the last axis, as written before opset 17."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        match = _match_layer_norm(node)
        if match is None:
            continue
        data, gamma, beta, epsilon = match
        mapping[node] = Node(
            "nn.layer_norm",
            args=(data, constant(gamma), constant(beta)),
            attrs=SimpleNamespace(axes=(len(data.shape) - 1,), epsilon=epsilon, center=True, scale=True),
            shape=node.shape,
            dtype=node.dtype,
            name=node.name,
        )
    graph.replace(mapping)


def _match_layer_norm(node: Node) -> tuple[Node, np.ndarray, np.ndarray, float] | None:
    def last_mean(x: Node) -> bool:
        rank = len(x.args[0].shape) if x.op == "mean" else 0
        return x.op == "mean" and bool(x.attrs.keepdims) and [a % rank for a in _axes(x.attrs.axis) or ()] == [rank - 1]

    def vector(x: Any, length: int) -> bool:
        return isinstance(x, Node) and x.op == CONSTANT and x.value.shape[-1:] == (length,) == (x.value.size,)

    if node.op != "add" or not isinstance(node.args[0], Node) or node.args[0].op != "multiply":
        return None
    scaled, beta = node.args
    ratio, gamma = scaled.args
    length = node.shape[-1] if node.shape else 0
    if ratio.op != "divide" or not vector(beta, length) or not vector(gamma, length):
        return None
    centred, root = ratio.args
    if centred.op != "subtract" or not last_mean(centred.args[1]) or centred.args[1].args[0] is not centred.args[0]:
        return None
    if root.op != "sqrt" or root.args[0].op != "add" or not last_mean(root.args[0].args[0]):
        return None
    variance, epsilon = root.args[0].args
    square = variance.args[0]
    squared = (square.op == "power" and square.args[0] is centred and _is_scalar(square.args[1], 2.0)) or (
        square.op == "multiply" and square.args[0] is centred and square.args[1] is centred
    )
    if not squared or epsilon.op != CONSTANT or epsilon.value.size != 1:
        return None
    return centred.args[0], gamma.value.reshape(-1), beta.value.reshape(-1), float(epsilon.value.reshape(()))


def _is_scalar(node: Any, value: float) -> bool:
    return (
        isinstance(node, Node)
        and node.op == CONSTANT
        and node.value.size == 1
        and float(node.value.reshape(())) == value
    )


def absorb_transposes(graph: Graph) -> None:
    """Products of two activations read transposed operands and write a transposed result in place, without copies."""
    users = graph.users()
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        if node.op != "matmul" or any(len(n.shape) != len(node.shape) or n.op == CONSTANT for n in node.args):
            continue
        operands, axes = [], []
        for side in node.args:
            transposed = side.op == "permute_dims" and side.attrs.axes is not None
            operands.append(side.args[0] if transposed else side)
            axes.append(_axes(side.attrs.axes) if transposed else None)
        result, out_axes = node, None
        readers = users[node]
        if len(readers) == 1 and readers[0].op == "permute_dims" and readers[0].attrs.axes is not None:
            result, out_axes = readers[0], _axes(readers[0].attrs.axes)
        if axes == [None, None] and out_axes is None:
            continue
        attrs = SimpleNamespace(left_axes=axes[0], right_axes=axes[1], out_axes=out_axes)
        mapping[result] = Node(
            MATMUL, args=tuple(operands), attrs=attrs, shape=result.shape, dtype=node.dtype, name=node.name
        )
    graph.replace(mapping)


def fold_scales(graph: Graph) -> None:
    """conv(x, W) * s, and (conv(x, W) + b) * s, with constant per-channel s and b, become conv(x, W s) (+ b s)."""
    users = graph.users()
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        node.replace_inputs(mapping)
        if node.op != "multiply" or not _per_channel(node.args[1], node.shape):
            continue
        source, scale = node.args
        scale_value = scale.value.reshape(-1)
        bias: Node | None = None
        if source.op == "add" and len(users.get(source, ())) == 1 and _per_channel(source.args[1], source.shape):
            source, bias = source.args
        if source.op != "nn.conv2d" or len(users.get(source, ())) != 1 or source.args[1].op != CONSTANT:
            continue
        weight = source.args[1]
        scaled = weight.value * np.broadcast_to(scale_value, (weight.shape[0],))[:, None, None, None]
        conv = Node(
            source.op,
            args=(source.args[0], constant(scaled.astype(weight.dtype), weight.name)),
            attrs=source.attrs,
            shape=source.shape,
            dtype=source.dtype,
            name=source.name,
        )
        users[conv] = [node]
        if bias is None:
            mapping[node] = conv
        else:
            shifted = constant((bias.value * scale.value).astype(bias.dtype), bias.name)
            mapping[node] = _binary("add", conv, shifted, node)
            users[conv] = [mapping[node]]
        users[mapping[node]] = users.get(node, [])
    graph.replace(mapping)


def join_shifts(graph: Graph) -> None:
    """(x + a) + b with constants a and b becomes x + (a + b): a bias and the shift of a folded BatchNorm."""
    users = graph.users()
    for node in graph.nodes():
        if node.op != "add" or node.args[1].op != CONSTANT:
            continue
        inner, outer_shift = node.args
        if inner.op != "add" or inner.args[1].op != CONSTANT or inner.shape != node.shape or len(users[inner]) != 1:
            continue
        shift = inner.args[1].value + outer_shift.value
        node.args = (inner.args[0], constant(shift, outer_shift.name))


def _per_channel(node: Any, shape: tuple[int, ...]) -> bool:
    """Whether a constant varies along axis 1 of a 4-D tensor at most."""
    if not isinstance(node, Node) or node.op != CONSTANT or len(shape) != 4:
        return False
    padded = (1,) * (4 - node.value.ndim) + node.value.shape
    return len(padded) == 4 and padded[0] == padded[2] == padded[3] == 1 and padded[1] in (1, shape[1])
