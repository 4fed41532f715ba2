"""Casts between element types, those included whose values are held in a wider one.

Floats of 16 bits and fewer are held in float32, integers of 4 and 2 bits in 8. A cast rounds to what its type can hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tvm import tirx

from calumma.core.errors import ModelError
from calumma.expressions import rounding
from calumma.graph.build import cast, mapped
from calumma.graph.nodes import Node
from calumma.semantics.arithmetic import is_float, truncated_float

SMALL_FLOATS = {
    "float8e4m3fn": rounding.E4M3FN,
    "float8e4m3fnuz": rounding.E4M3FNUZ,
    "float8e5m2": rounding.E5M2,
    "float8e5m2fnuz": rounding.E5M2FNUZ,
    "float4e2m1": rounding.E2M1,
}
"""Element type -> what it can hold."""
_POWERS_OF_TWO = "float8e8m0"
_HALF_FLOATS: dict[str, Callable[[tirx.Expr], tirx.Expr]] = {
    "float16": rounding.nearest_float16,
    "bfloat16": rounding.nearest_bfloat16,
}
_SMALL_INTEGERS = ("int4", "uint4", "int2", "uint2")
_WIDE = ("bool", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


def converted(node: Node, target: str, saturate: bool = True, round_mode: str = "up") -> Node:
    """A node's values in another element type, in the type that holds it.

    Args:
        target: "float32", "int64", "bool", ..., "float16", "bfloat16", "float8e4m3fn" and so on, "int4", "uint2".
        saturate: what is too large for a small float becomes its largest number.
        round_mode: of float8e8m0: "up", "down" or "nearest".

    Raises:
        ModelError: there is no such type.
    """
    if target in SMALL_FLOATS:
        form = SMALL_FLOATS[target]
        return mapped(lambda x: rounding.nearest(x, form, saturate), _as_float32(node), "small_float")
    if target == _POWERS_OF_TWO:
        return mapped(lambda x: rounding.power_of_two(x, round_mode, saturate), _as_float32(node), "power_of_two")
    if target in _HALF_FLOATS:
        return mapped(_HALF_FLOATS[target], _as_float32(node), "half_float")
    if target in _SMALL_INTEGERS:
        return _small_integer(node, target)
    if target not in _WIDE:
        raise ModelError(f"there is no cast to {target}; cast to float32, or to int8")
    if is_float(node) and target == "bool":
        return mapped(lambda x: tirx.any(tirx.isnan(x), x != tirx.const(0, str(x.ty))), node, "cast")
    if is_float(node) and not target.startswith("float"):
        return mapped(lambda x: truncated_float(x, target), node, "cast")
    if target == "bool" and node.dtype != "bool":
        return mapped(lambda x: tirx.NE(x, tirx.const(0, str(x.ty))), node, "cast")
    return cast(node, target)


def _as_float32(node: Node) -> Node:
    return cast(node, "float32")


def _small_integer(node: Node, target: str) -> Node:
    """Floats are rounded to nearest, halves away from zero, as ONNX Runtime has it; then the upper bits are cut off."""
    holder = re.sub(r"\d+", "8", target)
    spare = 8 - int(re.sub(r"\D", "", target))
    if is_float(node):
        half, zero = tirx.const(0.5, node.dtype), tirx.const(0, node.dtype)
        node = mapped(lambda x: tirx.trunc(x + tirx.Select(x < zero, zero - half, half)), node, "round")
    node = converted(node, holder)
    bits = tirx.const(spare, holder)
    return mapped(lambda x: (x << bits) >> bits, node, "cut")


def reinterpreted(node: Node, source: str, target: str) -> Node:
    """The bits of a node's values as another element type of the same width.

    Args:
        source: the element type of the values.
        target: that of the result, in the type that holds it.

    Raises:
        ModelError: the widths differ, or a type is of less than 8 bits.
    """
    widths = [1 if name == "bool" else int(re.sub(r"\D", "", name)[:2]) for name in (source, target)]
    known = all(name in (*_WIDE, *_HALF_FLOATS) and name != "bool" for name in (source, target))
    if not known or widths[0] != widths[1]:
        raise ModelError(f"the bits of {source} as {target}; cast to types of the same width from 8 bits on")

    def bits(x: tirx.Expr) -> tirx.Expr:
        if source in _HALF_FLOATS:
            upper = tirx.reinterpret("uint32", x) >> tirx.const(16, "uint32")
            x = tirx.reinterpret("uint16", x.astype("float16")) if source == "float16" else upper.astype("uint16")
        if target == "float16":
            return tirx.reinterpret("float16", x).astype("float32")
        if target == "bfloat16":
            word = tirx.reinterpret("uint16", x).astype("uint32") << tirx.const(16, "uint32")
            return tirx.reinterpret("float32", word)
        return tirx.reinterpret(target, x)

    return mapped(bits, node, "bit_cast")
