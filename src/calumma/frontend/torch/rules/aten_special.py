"""Special functions."""

from __future__ import annotations

import math

from tvm import relax, tirx

from calumma.frontend.torch.aten_registry import aten_rule
from calumma.frontend.torch.torch_node import TorchNode
from calumma.graph.build import cast, combined, mapped, operator, scalar
from calumma.graph.nodes import Node
from calumma.numerics import special_functions as functions

_OF_ONE: dict[str, functions.Scalar] = {
    "digamma": functions.digamma,
    "erfinv": functions.erfinv,
    "erfc": functions.c_function("erfc"),
    "exp2": functions.c_function("exp2"),
    "i0": functions.bessel_i(0, scaled=False),
    "special_ndtri": functions.ndtri,
    "special_erfcx": functions.erfcx,
    "special_log_ndtr": functions.log_ndtr,
    "special_i0e": functions.bessel_i(0, scaled=True),
    "special_i1": functions.bessel_i(1, scaled=False),
    "special_i1e": functions.bessel_i(1, scaled=True),
    "special_modified_bessel_i0": functions.bessel_i(0, scaled=False),
    "special_modified_bessel_i1": functions.bessel_i(1, scaled=False),
    "special_modified_bessel_k0": functions.bessel_k(0, scaled=False),
    "special_modified_bessel_k1": functions.bessel_k(1, scaled=False),
    "special_scaled_modified_bessel_k0": functions.bessel_k(0, scaled=True),
    "special_scaled_modified_bessel_k1": functions.bessel_k(1, scaled=True),
    "special_spherical_bessel_j0": functions.spherical_bessel_j0,
    **{f"special_bessel_{name}": functions.bessel(name) for name in ("j0", "j1", "y0", "y1")},
}


@aten_rule(*(f"{name}.default" for name in _OF_ONE))
def of_one(node: TorchNode, self: Node | None = None, x: Node | None = None) -> Node:
    given = self if self is not None else x
    if given is None:
        raise node.refused("it has no argument")
    return functions.applied(_OF_ONE[node.op], cast(given, node.dtype), node.op)


@aten_rule("polygamma.default")
def polygamma(node: TorchNode, n: int, self: Node) -> Node:
    """Derivatives of the digamma function: (-1) ** (n + 1) n! zeta(n + 1, x)."""
    x = cast(self, node.dtype)
    if n == 0:
        return functions.applied(functions.digamma, x, "digamma")
    value = functions.zeta(scalar(n + 1, "float64"), cast(x, "float64"))
    factor = math.factorial(n) * (-1) ** (n + 1)
    return cast(operator(relax.op.multiply, scalar(factor, "float64"), value), node.dtype)


@aten_rule("special_zeta.default", "special_zeta.other_scalar", "special_zeta.self_scalar")
def zeta(node: TorchNode, self: Node | float, other: Node | float) -> Node:
    return functions.zeta(*(_tensor(side, node.dtype) for side in (self, other)))


@aten_rule("igamma.default", "igammac.default")
def incomplete_gamma(node: TorchNode, self: Node, other: Node) -> Node:
    return functions.incomplete_gamma(self, cast(other, self.dtype), upper=node.op == "igammac")


_POLYNOMIALS = {
    **{f"special_{name.replace('chebyshev', 'chebyshev_polynomial')}": name for name in functions.POLYNOMIALS[:4]},
    **{
        f"special_{kind}_polynomial_{letter}": f"{kind}_{letter}"
        for kind, letter in (("hermite", "h"), ("hermite", "he"), ("laguerre", "l"), ("legendre", "p"))
    },
    **{f"special_shifted_chebyshev_polynomial_{letter}": f"chebyshev_{letter}" for letter in "tuvw"},
}


@aten_rule(*(f"{name}.{kind}" for name in _POLYNOMIALS for kind in ("default", "x_scalar", "n_scalar")))
def polynomial(node: TorchNode, x: Node | float, n: Node | float) -> Node:
    sides = [_tensor(side, node.dtype) for side in (x, n)]
    return functions.orthogonal_polynomial(_POLYNOMIALS[node.op], *sides, shifted="shifted" in node.op)


def _tensor(value: Node | float, dtype: str) -> Node:
    return cast(value, dtype) if isinstance(value, Node) else scalar(value, dtype)


@aten_rule("signbit.default")
def sign_bit(node: TorchNode, self: Node) -> Node:
    """Whether a number is below zero, or the negative zero."""
    if not self.dtype.startswith("float"):
        return operator(relax.op.less, cast(self, "int64"), scalar(0, "int64"))
    word = "int32" if self.dtype == "float32" else "int64"
    return mapped(lambda x: tirx.reinterpret(word, x) < tirx.const(0, word), self, "signbit")


@aten_rule("copysign.Tensor", "copysign.Scalar", "nextafter.default", "hypot.default")
def of_two(node: TorchNode, self: Node, other: Node | float) -> Node:
    """Functions of C's mathematical library."""
    name = node.op + ("f" if node.dtype == "float32" else "")
    sides = [_tensor(side, node.dtype) for side in (self, other)]
    return combined(lambda a, b: tirx.call_pure_extern(node.dtype, name, a, b), *sides, name=node.op)


@aten_rule("angle.default")
def angle(node: TorchNode, self: Node) -> Node:
    """Of a real number: pi below zero, otherwise 0."""
    x = cast(self, node.dtype)

    def function(value: tirx.Expr) -> tirx.Expr:
        pi, zero = tirx.const(math.pi, node.dtype), tirx.const(0, node.dtype)
        return tirx.Select(tirx.isnan(value), value, tirx.Select(value < zero, pi, zero))

    return mapped(function, x, "angle")
