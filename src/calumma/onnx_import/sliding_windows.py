"""The sliding windows that ONNX nodes describe: kernel, strides, dilations, and padding in its several forms."""

from __future__ import annotations

from collections.abc import Sequence

from calumma.onnx_import.onnx_node import OnnxNode
from calumma.operators.pooling.expression import AxisWindow

PADDINGS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


def read_windows(node: OnnxNode, sizes: Sequence[int], kernel: Sequence[int] | None = None) -> tuple[AxisWindow, ...]:
    """The windows of a convolution or pooling over axes of these sizes.

    Args:
        kernel: the weights' sizes, with which the attribute has to agree; None where the attribute decides.
    """
    rank = len(sizes)
    kernel = read_kernel(node, rank, kernel)
    strides, dilations = (per_axis(node, name, rank, 1) for name in ("strides", "dilations"))
    if min(*kernel, *strides, *dilations, 1) < 1:
        raise node.refused(f"kernel {kernel}, strides {strides} or dilations {dilations} are below 1")
    before, after = _padding(node, sizes, kernel, strides, dilations)
    windows = tuple(map(AxisWindow, kernel, strides, before, after, dilations))
    for size, window in zip(sizes, windows, strict=True):
        if window.outputs(size) < 1:
            raise node.refused(f"its window {kernel} is larger than its padded input {list(sizes)}")
    return windows


def read_kernel(node: OnnxNode, rank: int, kernel: Sequence[int] | None) -> tuple[int, ...]:
    """The attribute kernel_shape, or the weights' sizes where it is left out."""
    given = tuple(node.attribute("kernel_shape", None) or kernel or ())
    if not 1 <= rank <= 3:
        raise node.refused(f"it has {rank} spatial axes, supported are 1 to 3")
    if len(given) != rank or (kernel is not None and given != tuple(kernel)):
        raise node.refused(f"kernel_shape {list(given)} does not fit its operands", "export the model again")
    return given


def per_axis(node: OnnxNode, name: str, rank: int, default: int) -> tuple[int, ...]:
    """An attribute of one integer per spatial axis."""
    values = tuple(node.attribute(name, None) or [default] * rank)
    if len(values) != rank:
        raise node.refused(f"{name} {list(values)} are not {rank}", "export the model again")
    return values


def read_pads(node: OnnxNode, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The attribute pads: what is before and after each axis."""
    pads = tuple(node.attribute("pads", None) or [0] * (2 * rank))
    if len(pads) != 2 * rank or min(pads) < 0:
        raise node.refused(f"pads {list(pads)} are not {2 * rank} numbers from 0 on", "export the model again")
    return pads[:rank], pads[rank:]


def _padding(
    node: OnnxNode, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    mode = node.choice("auto_pad", PADDINGS, "NOTSET")
    if mode == "NOTSET":
        return read_pads(node, len(sizes))
    node.ignore("pads")
    if mode == "VALID":
        return (0,) * len(sizes), (0,) * len(sizes)
    totals = [
        max((-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size, 0)
        for size, window, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    return distributed(totals, more_after=mode == "SAME_UPPER")


def distributed(totals: Sequence[int], *, more_after: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before and after each axis; what is odd goes to the one side or the other."""
    small, large = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
    return (small, large) if more_after else (large, small)
