"""Complex numbers as pairs of real ones, between operators that make them of real numbers and those that end them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax, tirx

from calumma.core.errors import InternalError
from calumma.frontend.torch.aten_registry import complex_rule, find_rule
from calumma.frontend.torch.torch_node import TorchNode, computed_dtype
from calumma.graph.build import cast, combined, operator, reshape
from calumma.graph.nodes import Node, constant
from calumma.semantics import activations, signal
from calumma.semantics.products import scaled
from calumma.semantics.signal import Complex


@complex_rule("_fft_r2c.default")
def real_to_complex(node: TorchNode, self: Node, dim: Sequence[int], normalization: int, onesided: bool) -> Complex:
    *others, last = (axis % len(self.shape) for axis in dim)
    parts = signal.fourier(reshape(self, (*self.shape, 1)), last, self.shape[last], onesided=onesided)
    count = math.prod(self.shape[axis] for axis in (*others, last))
    return Complex(_scaled(_transformed(parts, others, forward=True), _factor(normalization, count)))


@complex_rule("_fft_c2c.default")
def complex_to_complex(
    node: TorchNode, self: Complex, dim: Sequence[int], normalization: int, forward: bool
) -> Complex:
    axes = [axis % len(self.shape) for axis in dim]
    count = math.prod(self.shape[axis] for axis in axes)
    factor = _factor(normalization, count) * (1 if forward else count)
    return Complex(_scaled(_transformed(self.parts, axes, forward=forward), factor))


@complex_rule("_fft_c2r.default")
def complex_to_real(node: TorchNode, self: Complex, dim: Sequence[int], normalization: int, last_dim_size: int) -> Node:
    *others, last = (axis % len(self.shape) for axis in dim)
    spectrum = Complex(_transformed(self.parts, others, forward=False))
    result = signal.fourier_to_real(spectrum, last, last_dim_size)
    count = math.prod(self.shape[axis] for axis in others) * last_dim_size
    return _scaled(result, _factor(normalization, count) * count)


def _transformed(parts: Node, axes: Sequence[int], *, forward: bool) -> Node:
    """Transforms along axes; inverse ones are divided by the numbers of their points."""
    for axis in axes:
        parts = signal.fourier(parts, axis, parts.shape[axis], inverse=not forward)
    return parts


def _factor(kind: int, count: int) -> float:
    """What a transform of so many points is multiplied by, by torch's number."""
    return (1.0, 1 / math.sqrt(count), 1 / count)[kind]


def _scaled(x: Node, factor: float) -> Node:
    return x if abs(factor - 1) < 1e-12 else scaled(x, factor)


@complex_rule("_to_copy.default")
def to_complex(node: TorchNode, self: Node | Complex) -> Complex:
    given = self if isinstance(self, Complex) else Complex.of(self)
    return Complex(cast(given.parts, computed_dtype(node.result().dtype.to_real())))


@complex_rule("complex.default")
def of_parts(node: TorchNode, real: Node, imag: Node) -> Complex:
    return Complex.of(real, imag)


@complex_rule("polar.default")
def of_magnitude_and_angle(node: TorchNode, abs: Node, angle: Node) -> Complex:
    functions = (activations.trigonometric(name) for name in ("cos", "sin"))
    return Complex.of(*(operator(relax.op.multiply, abs, function(angle)) for function in functions))


@complex_rule("view_as_complex.default")
def of_last_axis(node: TorchNode, self: Node) -> Complex:
    return Complex(self)


@complex_rule("view_as_real.default")
def to_last_axis(node: TorchNode, self: Complex) -> Node:
    return self.parts


@complex_rule("_conj.default", "conj_physical.default", "_conj_physical.default")
def conjugate(node: TorchNode, self: Complex) -> Complex:
    return Complex(operator(relax.op.multiply, self.parts, constant(np.array([1, -1], self.dtype))))


@complex_rule("abs.default")
def magnitude(node: TorchNode, self: Complex) -> Node:
    name = "hypotf" if self.dtype == "float32" else "hypot"
    return combined(lambda a, b: tirx.call_pure_extern(str(a.ty), name, a, b), self.real, self.imaginary, name="abs")


@complex_rule("angle.default")
def angle(node: TorchNode, self: Complex) -> Node:
    return combined(tirx.atan2, self.imaginary, self.real, name="angle")


@complex_rule("mul.Tensor")
def product(node: TorchNode, self: Node | Complex, other: Node | Complex) -> Complex:
    if not isinstance(self, (Node, Complex)) or not isinstance(other, (Node, Complex)):
        raise node.refused("complex numbers times a number are not supported")
    left, right = (x if isinstance(x, Complex) else Complex.of(x) for x in (self, other))

    def times(a: Node, b: Node) -> Node:
        return operator(relax.op.multiply, a, b)

    real = operator(relax.op.subtract, times(left.real, right.real), times(left.imaginary, right.imaginary))
    return Complex.of(
        real, operator(relax.op.add, times(left.real, right.imaginary), times(left.imaginary, right.real))
    )


_BY_PARTS = (
    *("view.default", "permute.default", "transpose.int", "expand.default", "slice.Tensor", "select.int"),
    *("squeeze.dims", "squeeze.dim", "unsqueeze.default", "alias.default", "clone.default", "constant_pad_nd.default"),
)


@complex_rule(*_BY_PARTS)
def of_each_part(node: TorchNode, self: Complex, **others: Any) -> Complex:
    """What moves elements moves both parts."""
    rule = find_rule(node.overload)
    if rule is None:
        raise InternalError(f"operator {node.overload}: no rule for real numbers")
    if node.op == "constant_pad_nd" and others.get("value"):
        raise node.refused("complex numbers padded with another number than 0 are not supported")
    parts: list[Any] = [rule(node, self=part, **others) for part in (self.real, self.imaginary)]
    return Complex.of(*parts)
