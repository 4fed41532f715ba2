"""Graph rewrites keep what a graph computes: random graphs, and the patterns each rewrite is for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calumma.expressions.windows import Window
from calumma.graph import nodes as names
from calumma.graph.nodes import CONSTANT, INPUT, Graph, Node, constant
from calumma.lowering import simplify
from tests import reference

SHAPE = (2, 6, 3, 4)


def node(op: str, *args: Any, shape: tuple[int, ...] | None = None, **attrs) -> Node:
    return Node(
        op, args=args, attrs=SimpleNamespace(**attrs), shape=args[0].shape if shape is None else shape, dtype="float32"
    )


def data(*shape: int) -> Node:
    return Node(INPUT, shape=shape, dtype="float32", name="x")


def graph(*outputs: Node) -> Graph:
    result = Graph([], list(outputs), [f"y{i}" for i in range(len(outputs))])
    result.inputs = [n for n in result.nodes() if n.op == INPUT]
    return result


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes() if n.op not in (INPUT, CONSTANT)]


def evaluate(graph: Graph) -> list[np.ndarray]:
    """What the graph computes on random inputs, in float64."""
    values: dict[Node, np.ndarray] = {}
    inputs = list(graph.inputs)
    for i, n in enumerate(inputs):
        values[n] = np.random.default_rng(i).standard_normal(n.shape)
    for n in graph.nodes():
        if n.op == CONSTANT:
            values[n] = n.value.astype("float64")
        elif n.op != INPUT:
            values[n] = _apply(n, [tuple(values[x] for x in a) if isinstance(a, tuple) else values[a] for a in n.args])
        assert values[n].shape == n.shape, n.op
    return [values[n] for n in graph.outputs]


def _apply(n: Node, args: list) -> np.ndarray:
    a = n.attrs
    match n.op:
        case "add":
            return args[0] + args[1]
        case "subtract":
            return args[0] - args[1]
        case "multiply":
            return args[0] * args[1]
        case "divide":
            return args[0] / args[1]
        case "power":
            return args[0] ** args[1]
        case "sqrt":
            return np.sqrt(args[0])
        case "nn.relu":
            return np.maximum(args[0], 0)
        case "mean":
            return args[0].mean(tuple(a.axis), keepdims=bool(a.keepdims))
        case "stack":
            return np.stack(args[0])
        case "sum":
            return args[0].sum(tuple(a.axis))
        case "reshape" | "squeeze" | "expand_dims" | "flatten":
            return args[0].reshape(n.shape)
        case "permute_dims":
            return args[0].transpose(a.axes)
        case "concat":
            return np.concatenate(args[0], axis=a.axis)
        case "nn.conv2d":
            window = Window(args[1].shape[2:], (1, 1), (1, 1), getattr(a, "padding", (0, 0, 0, 0)))
            return reference.conv2d(args[0], args[1], window, a.groups).astype("float64")
        case "matmul":
            return args[0] @ args[1]
        case names.MATMUL:
            left, right = (
                x if axes is None else x.transpose(axes)
                for x, axes in zip(args, (a.left_axes, a.right_axes), strict=True)
            )
            return left @ right if a.out_axes is None else (left @ right).transpose(a.out_axes)
        case "nn.conv2d_transpose":
            return transposed_conv2d(args[0], args[1], a.strides, a.padding[:2], n.shape)
        case names.INTERLEAVE:
            y, x = (np.arange(size) + start for size, start in zip(n.shape[2:], a.starts, strict=True))
            (sy, sx), channels = a.strides, np.arange(n.shape[1])[:, None, None]
            planes = (y % sy * sx)[:, None] + x % sx
            return args[0][:, planes * n.shape[1] + channels, (y // sy)[:, None], x // sx]
        case names.CHANNEL_SHUFFLE:
            return args[0][:, a.source]
        case "nn.layer_norm":
            centred = args[0] - args[0].mean(-1, keepdims=True)
            return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + a.epsilon) * args[1] + args[2]
        case _:
            raise AssertionError(f"the test knows no {n.op}")


def transposed_conv2d(data, weight, strides, before, shape):
    """Every input pixel adds its window to the output; (sy, sx) and padding (top, left)."""
    n, _, height, width = data.shape
    kh, kw = weight.shape[2:]
    (sy, sx), (top, left) = strides, before
    spread = np.zeros((n, shape[1], height * sy + kh + shape[2], width * sx + kw + shape[3]))
    for y in range(height):
        for x in range(width):
            window = np.einsum("ni,iokl->nokl", data[:, :, y, x], weight)
            spread[:, :, y * sy : y * sy + kh, x * sx : x * sx + kw] += window
    return spread[:, :, top : top + shape[2], left : left + shape[3]]


def check(built: Graph) -> Graph:
    """Simplify and compare what is computed before and after."""
    before = evaluate(built)
    simplify.simplify(built)
    for a, b in zip(before, evaluate(built), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    return built


# ---- building blocks


def conv(x: Node, groups: int = 1) -> Node:
    channels = x.shape[1]
    return node(
        "nn.conv2d", x, constant(reference.random(channels, channels // groups, 1, 1)), shape=x.shape, groups=groups
    )


def batch_norm(x: Node) -> Node:
    """As importers write it."""
    scale, shift = (constant(reference.random(1, x.shape[1], 1, 1, seed=seed)) for seed in range(2))
    return node("add", node("multiply", x, scale), shift)


def shuffle(x: Node, groups: int) -> Node:
    n, c, h, w = x.shape
    grouped = node("reshape", x, shape=(n, groups, c // groups, h, w))
    swapped = node("permute_dims", grouped, shape=(n, c // groups, groups, h, w), axes=(0, 2, 1, 3, 4))
    return node("reshape", swapped, shape=x.shape)


def layer_norm(x: Node, width: int) -> Node:
    mean = node("mean", x, shape=(*x.shape[:-1], 1), axis=(-1,), keepdims=True)
    centred = node("subtract", x, mean)
    squared = node("power", centred, constant(np.float32(2)))
    variance = node("mean", squared, shape=mean.shape, axis=(len(x.shape) - 1,), keepdims=True)
    root = node("sqrt", node("add", variance, constant(np.float32(1e-5))))
    ratio = node("divide", centred, root)
    scaled = node("multiply", ratio, constant(reference.random(width)))
    return node("add", scaled, constant(reference.random(width, seed=1)))


# ---- patterns


def test_batch_norm_behind_a_convolution_disappears_into_its_weights():
    g = check(graph(node("nn.relu", batch_norm(node("add", conv(data(*SHAPE)), constant(reference.random(6, 1, 1)))))))
    assert ops(g) == ["nn.conv2d", "add", "nn.relu"]


def test_a_convolution_read_twice_keeps_its_weights():
    x = conv(data(*SHAPE))
    g = check(graph(batch_norm(x), node("nn.relu", x)))
    assert "multiply" in ops(g)


@pytest.mark.parametrize("scale", [(6, 1, 1), (1, 6, 1, 1), (1,), ()])
def test_scales_per_channel_fold_into_grouped_convolutions(scale):
    factor = constant(np.asarray(reference.random(*scale) if scale else np.float32(1.5)))
    assert ops(check(graph(node("multiply", conv(data(*SHAPE), groups=3), factor)))) == ["nn.conv2d"]


@pytest.mark.parametrize("scale", [(4,), (3, 4), (6, 3, 1), (2, 1, 1, 1)])
def test_other_scales_stay(scale):
    g = check(graph(node("multiply", conv(data(*SHAPE)), constant(reference.random(*scale)))))
    assert ops(g) == ["nn.conv2d", "multiply"]


def test_constants_are_folded_and_put_right():
    total = node("add", constant(reference.random(6, 1, 1)), constant(reference.random(1, 1)), shape=(6, 1, 1))
    g = check(graph(node("add", total, data(*SHAPE), shape=SHAPE)))
    assert ops(g) == ["add"]
    assert g.outputs[0].args[1].op == CONSTANT


def test_reshapes_are_joined_and_dropped_where_nothing_changes():
    x = node("reshape", node("nn.relu", data(2, 6)), shape=(3, 4))
    y = node("expand_dims", node("reshape", x, shape=(12,)), shape=(1, 12))
    assert ops(check(graph(y))) == ["nn.relu", "reshape"]
    assert ops(check(graph(node("reshape", x, shape=(2, 6))))) == ["nn.relu"]


def test_channel_shuffle_is_recognised():
    g = check(graph(shuffle(data(*SHAPE), 2)))
    assert ops(g) == [names.CHANNEL_SHUFFLE]
    assert list(g.outputs[0].attrs.source) == [0, 3, 1, 4, 2, 5]


def test_a_shuffle_across_batches_is_not_a_channel_shuffle():
    x = data(2, 8, 3, 4)
    grouped = node("reshape", x, shape=(1, 4, 4, 3, 4))
    swapped = node("permute_dims", grouped, axes=(0, 2, 1, 3, 4))
    assert names.CHANNEL_SHUFFLE not in ops(check(graph(node("reshape", swapped, shape=x.shape))))


@settings(max_examples=60)
@given(st.data())
def test_transposed_convolutions_become_interleaved_ones(d: st.DataObject):
    strides, kernel = (d.draw(st.tuples(st.integers(1, 4), st.integers(1, 5))) for _ in range(2))
    before, after = ([d.draw(st.integers(0, k - 1)) for k in kernel] for _ in range(2))
    extra = [d.draw(st.integers(0, s - 1)) for s in strides]
    sizes = [
        (size - 1) * s - b - e + k + more
        for size, s, b, e, k, more in zip((4, 5), strides, before, after, kernel, extra, strict=True)
    ]
    hypothesis.assume(min(sizes) > 0)
    x = data(2, 3, 4, 5)
    outputs = d.draw(st.sampled_from([1, 3, 8, 9, 20]))
    weight = constant(reference.random(3, outputs, *kernel))
    op = node(
        "nn.conv2d_transpose",
        x,
        weight,
        shape=(2, outputs, *sizes),
        strides=strides,
        padding=(*before, *after),
        output_padding=extra,
        dilation=(1, 1),
        groups=1,
        data_layout="NCHW",
        kernel_layout="IOHW",
    )
    assert ops(check(graph(op))) == ["nn.conv2d", names.INTERLEAVE]


@pytest.mark.parametrize("change", [{"groups": 2}, {"dilation": (1, 2)}, {"padding": (3, 0, 0, 0)}])
def test_other_transposed_convolutions_stay(change: dict):
    x, weight = data(1, 4, 4, 4), constant(reference.random(4, 4, 2, 2))
    usual = {"strides": (2, 2), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
    layouts = {"data_layout": "NCHW", "kernel_layout": "IOHW"}
    height = 8 - sum((usual | change)["padding"])
    g = graph(node("nn.conv2d_transpose", x, weight, shape=(1, 4, height, 8), **(usual | change), **layouts))
    simplify.simplify(g)
    assert ops(g) == ["nn.conv2d_transpose"]


def test_layer_norm_is_recognised():
    g = check(graph(layer_norm(data(2, 5, 8), 8)))
    assert ops(g) == ["nn.layer_norm"]


def test_a_ratio_with_scalars_over_an_axis_of_one_is_not_a_layer_norm():
    x, y = data(2, 1), data(2, 1)
    ratio = node("divide", x, node("add", node("multiply", y, y), constant(np.float32(1))))
    scaled = node("multiply", ratio, constant(np.float32(2)))
    assert "nn.layer_norm" not in ops(check(graph(node("add", scaled, constant(np.float32(1))))))


def test_transposes_of_a_product_are_absorbed():
    x, y = data(2, 5, 3, 4), data(2, 5, 3, 4)
    left = node("permute_dims", x, shape=(2, 3, 5, 4), axes=(0, 2, 1, 3))
    right = node("permute_dims", y, shape=(2, 3, 4, 5), axes=(0, 2, 3, 1))
    product = node("matmul", left, right, shape=(2, 3, 5, 5))
    g = check(graph(node("permute_dims", product, shape=(2, 5, 3, 5), axes=(0, 2, 1, 3))))
    assert ops(g) == [names.MATMUL]


def test_transposes_of_products_that_tvm_lowers_are_left():
    """Those in other types than float32."""
    x = data(2, 4, 4)
    product = node("matmul", node("permute_dims", x, axes=(0, 2, 1)), x)
    product.dtype = "float64"
    g = graph(product)
    simplify.simplify(g)
    assert sorted(ops(g)) == ["matmul", "permute_dims"]


def test_a_transposed_operand_read_elsewhere_is_kept_for_the_others():
    x = data(2, 4, 4)
    turned = node("permute_dims", x, axes=(0, 2, 1))
    g = check(graph(node("matmul", turned, x), turned))
    assert sorted(ops(g)) == [names.MATMUL, "permute_dims"]


def test_a_product_that_is_an_output_is_not_written_transposed():
    product = node("matmul", data(2, 4, 4), data(2, 4, 4))
    check(graph(product, node("permute_dims", product, axes=(0, 2, 1))))


# ---- random graphs


@st.composite
def graphs(draw) -> Graph:
    """A few of the patterns above, in any order, with values read more than once."""
    x = data(*SHAPE)
    values = [x]
    for step in range(draw(st.integers(1, 8))):
        source = values[draw(st.integers(0, len(values) - 1))]
        seed = draw(st.integers(0, 3))
        kind = draw(
            st.sampled_from(
                ["conv", "norm", "scale", "shift", "relu", "add", "shuffle", "layer_norm", "matmul", "reshape"]
            )
        )
        shift = constant(reference.random(*draw(st.sampled_from([(6, 1, 1), (4,), (1,), SHAPE])), seed=seed))
        match kind:
            case "conv":
                result = conv(source, draw(st.sampled_from([1, 2, 3])))
            case "norm":
                result = batch_norm(source)
            case "scale":
                result = node("multiply", *draw(st.permutations([source, shift])), shape=SHAPE)
            case "shift":
                result = node("add", *draw(st.permutations([source, shift])), shape=SHAPE)
            case "relu":
                result = node("nn.relu", source)
            case "add":
                result = node("add", source, values[draw(st.integers(0, len(values) - 1))])
            case "shuffle":
                result = shuffle(source, draw(st.sampled_from([1, 2, 3])))
            case "layer_norm":
                result = layer_norm(source, 4)
            case "matmul":
                turned = node("permute_dims", source, shape=(2, 6, 4, 3), axes=(0, 1, 3, 2))
                square = node("matmul", source, turned, shape=(2, 6, 3, 3))
                result = node("matmul", square, source, shape=SHAPE)
            case _:
                result = node("reshape", node("reshape", source, shape=(2, 18, 4)), shape=SHAPE)
        # Keep values near one, whatever the depth.
        values.append(node("multiply", result, constant(np.float32(0.25))) if step % 2 else result)
    chosen = draw(st.lists(st.integers(1, len(values) - 1), min_size=1, max_size=3))
    return graph(*(values[i] for i in chosen))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(graphs())
def test_random_graphs_compute_the_same(built):
    before = evaluate(built)
    simplify.simplify(built)
    for a, b in zip(before, evaluate(built), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * max(1.0, np.abs(a).max()))
