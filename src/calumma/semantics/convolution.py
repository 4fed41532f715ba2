"""Convolutions of one to three spatial axes, made of two-dimensional ones, for which there are templates.

    x (N, C, *sizes)    weight (O, C / groups, *kernel)    result (N, O, *outputs)

One spatial axis is the second of two. Three become two when the taps along the first are so many times the channels.
A transposed convolution is a convolution of what lies between zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax, te, tirx

from calumma.graph.build import expression, operator, reshape, transpose
from calumma.graph.nodes import CONSTANT, Node, constant
from calumma.operators import rules_for
from calumma.operators.pooling.expression import AxisWindow

_NONE = AxisWindow(1)
_BY_EXTENSIONS = {
    1: (relax.op.nn.conv1d, "NCW", "OIW"),
    3: (relax.op.nn.conv3d, "NCDHW", "OIDHW"),
}
"""Spatial axes -> the operator that no family of calumma's own lowers, and its layouts."""


def convolution(x: Node, weight: Node, windows: Sequence[AxisWindow], groups: int = 1) -> Node:
    """The convolution of `x`; one window per spatial axis, of which there are one to three.

    One or three axes are computed by convolutions over two; where an extension has rules for `nn.conv1d` or
    `nn.conv3d`, these operators remain.
    """
    if x.dtype != "float32":
        return _direct(x, weight, windows, groups)
    if len(windows) in _BY_EXTENSIONS and rules_for(f"nn.conv{len(windows)}d"):
        function, data_layout, kernel_layout = _BY_EXTENSIONS[len(windows)]
        return operator(
            function,
            x,
            weight,
            strides=[w.stride for w in windows],
            padding=[*(w.before for w in windows), *(w.after for w in windows)],
            dilation=[w.dilation for w in windows],
            groups=groups,
            data_layout=data_layout,
            kernel_layout=kernel_layout,
        )
    if len(windows) == 1:
        return _narrowed(convolution(_widened(x), _widened(weight), (_NONE, *windows), groups))
    if len(windows) == 3:
        return _over_depth(x, weight, windows, groups)
    height, width = windows
    return operator(
        relax.op.nn.conv2d,
        x,
        weight,
        strides=[w.stride for w in windows],
        padding=[height.before, width.before, height.after, width.after],
        dilation=[w.dilation for w in windows],
        groups=groups,
        data_layout="NCHW",
        kernel_layout="OIHW",
    )


def with_bias(x: Node, bias: Node | None) -> Node:
    """`x` (N, C, *sizes) and a bias (C,) added to its channels; None for none."""
    if bias is None:
        return x
    return operator(relax.op.add, x, reshape(bias, (1, *bias.shape, *([1] * (len(x.shape) - 2)))))


def transposed_convolution(
    x: Node, weight: Node, windows: Sequence[AxisWindow], outputs: Sequence[int], groups: int = 1
) -> Node:
    """The transposed convolution of `x`.

    Args:
        weight: (C, O / groups, *kernel).
        windows: one per spatial axis; `before` is cut off from the front of the result.
        outputs: the result's spatial sizes: what is beyond the last tap is zero.
    """
    if len(windows) == 1:
        return _narrowed(
            transposed_convolution(_widened(x), _widened(weight), (_NONE, *windows), (1, *outputs), groups)
        )
    spans = [
        (size - 1) * w.stride + (w.kernel - 1) * w.dilation + 1 for size, w in zip(x.shape[2:], windows, strict=True)
    ]
    after = [span - w.before - out for span, w, out in zip(spans, windows, outputs, strict=True)]
    has_phases = all(
        w.dilation == 1 and 0 <= w.before < w.kernel and -a < w.stride for w, a in zip(windows, after, strict=True)
    )
    if len(windows) == 2 and groups == 1 and has_phases and weight.op == CONSTANT and x.dtype == "float32":
        return operator(
            relax.op.nn.conv2d_transpose,
            x,
            weight,
            strides=[w.stride for w in windows],
            padding=[*(w.before for w in windows), *(max(a, 0) for a in after)],
            output_padding=[max(-a, 0) for a in after],
            data_layout="NCHW",
            kernel_layout="IOHW",
        )
    spread = _between_zeros(x, windows, outputs)
    dense = tuple(AxisWindow(w.kernel, dilation=w.dilation) for w in windows)
    return convolution(spread, _transposed_weight(weight, groups), dense, groups)


def weight_gradient(x: Node, gradient: Node, windows: Sequence[AxisWindow], groups: int = 1) -> Node:
    """The gradient of a convolution's weight, (O, C / groups, *kernel).

    Args:
        x: (N, C, *sizes), what the convolution reads.
        gradient: (N, O, *outputs), of its result.
        windows: one per spatial axis.
    """
    outputs = gradient.shape[2:]
    inside, outside = x.shape[1] // groups, gradient.shape[1] // groups

    def function(x: te.Tensor, gradient: te.Tensor) -> te.Tensor:
        source = padded(x, windows, outputs, tirx.const(0, x.dtype))
        n = te.reduce_axis((0, x.shape[0]), "n")
        places = [te.reduce_axis((0, size), "p") for size in outputs]

        def body(o: tirx.Var, c: tirx.Var, *k: tirx.Var) -> tirx.Expr:
            where = [p * w.stride + i * w.dilation for p, i, w in zip(places, k, windows, strict=True)]
            return te.sum(source(n, o // outside * inside + c, *where) * gradient(n, o, *places), axis=[n, *places])

        return te.compute((gradient.shape[1], inside, *(w.kernel for w in windows)), body, name="weight_gradient")

    return expression(function, x, gradient, name="weight_gradient")


def padded(x: te.Tensor, windows: Sequence[AxisWindow], outputs: Sequence[int], value: tirx.Expr) -> te.Tensor:
    """`x` (N, C, *sizes) with `value` around it: exactly what windows with so many outputs read."""
    needs = [(o - 1) * w.stride + (w.kernel - 1) * w.dilation + 1 for o, w in zip(outputs, windows, strict=True)]
    sizes = [int(d) for d in x.shape[2:]]
    if needs == sizes and not any(w.before for w in windows):
        return x

    def body(n: tirx.Var, c: tirx.Var, *position: tirx.Var) -> tirx.Expr:
        where = [p - w.before for p, w in zip(position, windows, strict=True)]
        inside = [tirx.all(p >= 0, p < size) for p, size in zip(where, sizes, strict=True)]
        return tirx.if_then_else(tirx.all(*inside), x(n, c, *where), value)

    return te.compute((*x.shape[:2], *needs), body, name="padded")


def _widened(node: Node) -> Node:
    return reshape(node, (*node.shape[:2], 1, *node.shape[2:]))


def _narrowed(node: Node) -> Node:
    return reshape(node, (*node.shape[:2], *node.shape[3:]))


def _over_depth(x: Node, weight: Node, windows: Sequence[AxisWindow], groups: int) -> Node:
    depth, *plane = windows
    batch, channels, size, *image = x.shape
    slices = depth.outputs(size)

    def stacked(x: te.Tensor) -> te.Tensor:
        def body(s: tirx.Var, c: tirx.Var, *i: tirx.Var) -> tirx.Expr:
            where = s % slices * depth.stride + c % depth.kernel * depth.dilation - depth.before
            value = x(s // slices, c // depth.kernel, tirx.min(tirx.max(where, 0), size - 1), *i)
            return tirx.Select(tirx.all(where >= 0, where < size), value, tirx.const(0, x.dtype))

        return te.compute((batch * slices, channels * depth.kernel, *image), body, name="depth_taps")

    flat = reshape(weight, (weight.shape[0], weight.shape[1] * depth.kernel, *weight.shape[3:]))
    planes = convolution(expression(stacked, x, name="depth_taps"), flat, plane, groups)
    return transpose(reshape(planes, (batch, slices, *planes.shape[1:])), (0, 2, 1, 3, 4))


def _direct(x: Node, weight: Node, windows: Sequence[AxisWindow], groups: int) -> Node:
    """The convolution by its definition, for the types that the templates do not compute in."""
    outputs = [w.outputs(size) for w, size in zip(windows, x.shape[2:], strict=True)]
    inside, outside = weight.shape[1], weight.shape[0] // groups

    def direct(x: te.Tensor, weight: te.Tensor) -> te.Tensor:
        source = padded(x, windows, outputs, tirx.const(0, x.dtype))
        c = te.reduce_axis((0, inside), "c")
        taps = [te.reduce_axis((0, w.kernel), "k") for w in windows]

        def body(n: tirx.Var, o: tirx.Var, *p: tirx.Var) -> tirx.Expr:
            where = [i * w.stride + k * w.dilation for i, k, w in zip(p, taps, windows, strict=True)]
            return te.sum(source(n, o // outside * inside + c, *where) * weight(o, c, *taps), axis=[c, *taps])

        return te.compute((x.shape[0], weight.shape[0], *outputs), body, name="convolution")

    return expression(direct, x, weight, name="convolution")


def _between_zeros(x: Node, windows: Sequence[AxisWindow], outputs: Sequence[int]) -> Node:
    """`x` with stride - 1 zeros between its elements, and as many around as a convolution to `outputs` reads."""
    spans = [(w.kernel - 1) * w.dilation for w in windows]
    starts = [span - w.before for span, w in zip(spans, windows, strict=True)]
    sizes = [out + span for out, span in zip(outputs, spans, strict=True)]

    def spread(x: te.Tensor) -> te.Tensor:
        def body(n: tirx.Var, c: tirx.Var, *position: tirx.Var) -> tirx.Expr:
            index, inside = [], []
            for p, start, w, size in zip(position, starts, windows, x.shape[2:], strict=True):
                where = p - start
                inside += [where >= 0, where % w.stride == 0, where < int(size) * w.stride]
                index.append(tirx.min(tirx.max(where, 0) // w.stride, size - 1))
            return tirx.Select(tirx.all(*inside), x(n, c, *index), tirx.const(0, x.dtype))

        return te.compute((*x.shape[:2], *sizes), body, name="between_zeros")

    return expression(spread, x, name="between_zeros")


def _transposed_weight(weight: Node, groups: int) -> Node:
    """(C, O / groups, *kernel) as (O, C / groups, *kernel), every kernel turned round."""
    inside, outside, *kernel = weight.shape
    if weight.op == CONSTANT:
        value = weight.value.reshape(groups, inside // groups, outside, *kernel).swapaxes(1, 2)
        flipped = np.flip(value.reshape(groups * outside, inside // groups, *kernel), tuple(range(2, 2 + len(kernel))))
        return constant(np.ascontiguousarray(flipped), weight.name)

    def turned(w: te.Tensor) -> te.Tensor:
        def body(o: tirx.Var, c: tirx.Var, *k: tirx.Var) -> tirx.Expr:
            taps = [size - 1 - i for size, i in zip(kernel, k, strict=True)]
            return w(o // outside * (inside // groups) + c, o % outside, *taps)

        return te.compute((groups * outside, inside // groups, *kernel), body, name="turned")

    return expression(turned, weight, name="turned")
