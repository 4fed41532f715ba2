"""Rules that import ONNX operators, by domain, name and the version from which they hold.

    @onnx_rule("Relu")
    def relu(node: OnnxNode) -> Node:
        return operator(relax.op.nn.relu, node.input(0))

A rule holds up to the next version for which another one is registered. What a rule does not read of a node's inputs
and attributes refuses the node: see `OnnxNode`.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from calumma.core.errors import InternalError
from calumma.graph.nodes import Node

if TYPE_CHECKING:
    from calumma.onnx_import.onnx_node import OnnxNode

Result = Node | Sequence[Node | None]
"""One node per output, in order; None for one that nobody reads. A single output may come alone."""
OnnxRule = Callable[["OnnxNode"], Result]

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_RULES: dict[tuple[str, str], list[tuple[int, OnnxRule]]] = {}


def onnx_rule(*names: str, since: int = 1, domain: str = "") -> Callable[[OnnxRule], OnnxRule]:
    """Register a function as the rule of operators.

    Args:
        names: operators of `domain`.
        since: the first version of the operator, as its schema counts, that the rule covers.
    """

    def register(function: OnnxRule) -> OnnxRule:
        for name in names:
            versions = _RULES.setdefault((domain, name), [])
            if any(version == since for version, _ in versions):
                raise InternalError(f"operator {name}: two rules from version {since} on")
            bisect.insort(versions, (since, function), key=lambda entry: entry[0])
        return function

    return register


def find_rule(domain: str, name: str, version: int) -> OnnxRule | None:
    """The rule for a version of an operator, None where there is none."""
    held = [function for since, function in _RULES.get((domain, name), ()) if since <= version]
    return held[-1] if held else None


def known_operators() -> frozenset[tuple[str, str]]:
    """Domain and name of every operator that has a rule."""
    return frozenset(_RULES)
