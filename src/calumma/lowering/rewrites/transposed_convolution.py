"""Transposed convolutions as convolutions of phases, interleaved."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from calumma.graph.nodes import CONSTANT, INTERLEAVE, Graph, Node, constant


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
