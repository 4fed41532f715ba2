"""Complex numbers as pairs of real ones, between operators that make them of real numbers and those that end them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import relax, te, tirx

from calumma.core.errors import InternalError
from calumma.frontend import spectra
from calumma.frontend.movement import sliced
from calumma.frontend.spectra import Pair
from calumma.frontend.torch.node import TorchNode
from calumma.frontend.torch.registry import complex_rule, find_rule
from calumma.graph.build import combined, expression, operator, reshape
from calumma.graph.nodes import Node


@complex_rule("_fft_r2c.default")
def real_to_complex(node: TorchNode, self: Node, dim: Sequence[int], normalization: int, onesided: bool) -> Pair:
    axes = [axis % len(self.shape) for axis in dim]
    last = self.shape[axes[-1]]
    pair = spectra.transform_of_real(self, axes[-1], last // 2 + 1 if onesided else last)
    pair = spectra.transform(pair, axes[:-1], forward=True)
    return _normalised(pair, normalization, math.prod(self.shape[axis] for axis in axes))


@complex_rule("_fft_c2c.default")
def complex_to_complex(node: TorchNode, self: Pair, dim: Sequence[int], normalization: int, forward: bool) -> Pair:
    shape = self.real.shape
    axes = [axis % len(shape) for axis in dim]
    pair = spectra.transform(self, axes, forward=forward)
    return _normalised(pair, normalization, math.prod(shape[axis] for axis in axes))


@complex_rule("_fft_c2r.default")
def complex_to_real(node: TorchNode, self: Pair, dim: Sequence[int], normalization: int, last_dim_size: int) -> Node:
    shape = self.real.shape
    axes = [axis % len(shape) for axis in dim]
    pair = spectra.transform(self, axes[:-1], forward=False)
    held = last_dim_size // 2 + 1
    parts = [sliced(x, {axes[-1]: slice(0, held)}) for x in (pair.real, pair.imaginary)]
    count = math.prod(shape[axis] for axis in axes[:-1]) * last_dim_size
    pair = _normalised(Pair(*parts), normalization, count)
    return spectra.transform_to_real(pair, axes[-1], last_dim_size)


def _normalised(pair: Pair, kind: int, count: int) -> Pair:
    return spectra.scaled(pair, spectra.normalisation(kind, count)) if kind else pair


@complex_rule("_to_copy.default")
def to_complex(node: TorchNode, self: Node | Pair) -> Pair:
    return self if isinstance(self, Pair) else spectra.of_real(self)


@complex_rule("complex.default")
def of_parts(node: TorchNode, real: Node, imag: Node) -> Pair:
    return Pair(real, imag)


@complex_rule("view_as_complex.default")
def of_last_axis(node: TorchNode, self: Node) -> Pair:
    axis = len(self.shape) - 1
    parts = [reshape(sliced(self, {axis: slice(i, i + 1)}), self.shape[:-1]) for i in range(2)]
    return Pair(*parts)


@complex_rule("view_as_real.default")
def to_last_axis(node: TorchNode, self: Pair) -> Node:
    def function(real: te.Tensor, imaginary: te.Tensor) -> te.Tensor:
        return te.compute(node.shape, lambda *i: tirx.Select(i[-1] == 0, real(*i[:-1]), imaginary(*i[:-1])))

    return expression(function, self.real, self.imaginary, name="parts")


@complex_rule("_conj.default", "conj_physical.default", "_conj_physical.default")
def conjugate(node: TorchNode, self: Pair) -> Pair:
    return Pair(self.real, operator(relax.op.negative, self.imaginary))


@complex_rule("abs.default")
def magnitude(node: TorchNode, self: Pair) -> Node:
    name = "hypotf" if self.real.dtype == "float32" else "hypot"
    return combined(lambda a, b: tirx.call_pure_extern(str(a.ty), name, a, b), self.real, self.imaginary, name="abs")


@complex_rule("angle.default")
def angle(node: TorchNode, self: Pair) -> Node:
    return combined(tirx.atan2, self.imaginary, self.real, name="angle")


@complex_rule("mul.Tensor")
def product(node: TorchNode, self: Node | Pair, other: Node | Pair) -> Pair:
    if not isinstance(self, (Node, Pair)) or not isinstance(other, (Node, Pair)):
        raise node.refused("complex numbers times a number are not supported")
    left, right = (x if isinstance(x, Pair) else spectra.of_real(x) for x in (self, other))

    def times(a: Node, b: Node) -> Node:
        return operator(relax.op.multiply, a, b)

    real = operator(relax.op.subtract, times(left.real, right.real), times(left.imaginary, right.imaginary))
    return Pair(real, operator(relax.op.add, times(left.real, right.imaginary), times(left.imaginary, right.real)))


_BY_PARTS = (
    *("view.default", "permute.default", "transpose.int", "expand.default", "slice.Tensor", "select.int"),
    *("squeeze.dims", "squeeze.dim", "unsqueeze.default", "alias.default", "clone.default", "constant_pad_nd.default"),
)


@complex_rule(*_BY_PARTS)
def of_each_part(node: TorchNode, self: Pair, **others: Any) -> Pair:
    """What moves elements moves both parts."""
    rule = find_rule(node.overload)
    if rule is None:
        raise InternalError(f"operator {node.overload}: no rule for real numbers")
    if node.op == "constant_pad_nd" and others.get("value"):
        raise node.refused("complex numbers padded with another number than 0 are not supported")
    parts: list[Any] = [rule(node, self=part, **others) for part in (self.real, self.imaginary)]
    return Pair(*parts)
