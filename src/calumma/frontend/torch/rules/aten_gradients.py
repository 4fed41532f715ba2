"""Gradients, for models whose outputs are some: forces of a potential, saliency of an image.

torch takes most operators of gradients apart into others; these are the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from calumma.frontend.torch.aten_registry import aten_rule
from calumma.frontend.torch.rules.aten_layers import batched, each, windows_of
from calumma.frontend.torch.torch_node import TorchNode
from calumma.graph.build import operator, reshape
from calumma.graph.nodes import Node, constant
from calumma.operators.pooling.expression import AxisWindow
from calumma.semantics import convolution as convolutions
from calumma.semantics import movement, pooling, resampling
from calumma.semantics.reductions import reduced


@aten_rule("convolution_backward.default")
def convolution_gradients(
    node: TorchNode,
    grad_output: Node,
    input: Node,
    weight: Node,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Sequence[Node | None]:
    """With respect to input, weight and bias, each where the mask asks for it.

    `bias_sizes` repeats what the mask says, `output_padding` what the sizes say.
    """
    spatial = len(weight.shape) - 2
    settings = zip(weight.shape[2:], *(each(values, spatial) for values in (stride, padding, dilation)), strict=True)
    windows = [AxisWindow(kernel, s, p, p, d) for kernel, s, p, d in settings]
    of_input = of_weight = of_bias = None
    if output_mask[0] and transposed:
        whole = convolutions.convolution(grad_output, weight, windows, groups)
        of_input = movement.sliced(whole, {axis: slice(0, size) for axis, size in enumerate(input.shape)})
    elif output_mask[0]:
        of_input = convolutions.transposed_convolution(grad_output, weight, windows, input.shape[2:], groups)
    if output_mask[1]:
        read, summed = (grad_output, input) if transposed else (input, grad_output)
        of_weight = convolutions.weight_gradient(read, summed, windows, groups)
    if output_mask[2]:
        of_bias = reduced("sum", grad_output, [0, *range(2, spatial + 2)], False)
    return of_input, of_weight, of_bias


@aten_rule("avg_pool2d_backward.default", "avg_pool3d_backward.default")
def average_pool_gradient(
    node: TorchNode,
    grad_output: Node,
    self: Node,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Node:
    spatial = 2 if "2d" in node.op else 3
    windows = windows_of(kernel_size, stride, padding, (1,), spatial)
    shape = batched(self, spatial).shape
    given = batched(grad_output, spatial)
    counts = pooling.window_counts(windows, shape[2:], given.shape[2:], count_include_pad)
    divisors = counts if divisor_override is None else np.full_like(counts, divisor_override)
    shares = operator(relax.op.divide, given, constant(divisors.astype(given.dtype)))
    return reshape(pooling.window_sum_gradient(shares, windows, shape[2:]), node.shape)


@aten_rule("_adaptive_avg_pool2d_backward.default", "_adaptive_avg_pool3d_backward.default")
def adaptive_average_gradient(node: TorchNode, grad_output: Node, self: Node) -> Node:
    spatial = 2 if "2d" in node.op else 3
    given, shape = batched(grad_output, spatial), batched(self, spatial).shape
    taps = {axis: resampling.even_windows_transposed(shape[axis], given.shape[axis]) for axis in range(2, spatial + 2)}
    return reshape(resampling.weighted(given, taps), node.shape)
