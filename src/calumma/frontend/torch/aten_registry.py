"""Rules that import ATen operators, by the operator's name and overload.

    @aten_rule("relu.default")
    def relu(node: TorchNode, self: Node) -> Node:
        return operator(relax.op.nn.relu, self)

A rule takes the node, and the operator's arguments by the names that its schema gives them. An argument that a rule
does not take has to have its default value: another one refuses the node.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from calumma.core.errors import InternalError
from calumma.graph.nodes import Node
from calumma.semantics.signal import Complex

Result = Node | Complex | Sequence[Node | None]
"""One node per result; None for one that no model reads."""
AtenRule = Callable[..., Result]
_Rule = TypeVar("_Rule", bound=AtenRule)

_ELSEWHERE = frozenset({"device", "dtype", "implicit", "layout", "memory_format", "non_blocking", "pin_memory"})
"""Arguments that decide nothing but where a result lies, or its type, which torch says of it as well."""

_RULES: dict[str, AtenRule] = {}
_COMPLEX_RULES: dict[str, AtenRule] = {}
_NAMES: dict[AtenRule, frozenset[str]] = {}


def qualified_name(target: Any) -> str:
    """The name under which an operator has its rule ("add.Tensor"): with its overload, and with its namespace where
    that is not ATen's, for what is called alike there need not compute the same ("prims.sum.default")."""
    name = str(getattr(target, "__name__", target))
    namespace = getattr(target, "namespace", "aten")
    return name if namespace == "aten" else f"{namespace}.{name}"


def aten_rule(*names: str) -> Callable[[_Rule], _Rule]:
    """Register a function as the rule of operators, each named with its overload ("add.Tensor")."""

    def register(function: _Rule) -> _Rule:
        for name in names:
            if name in _RULES:
                raise InternalError(f"operator {name}: two rules")
            _RULES[name] = function
        _NAMES[function] = frozenset(inspect.signature(function).parameters)
        return function

    return register


def complex_rule(*names: str) -> Callable[[_Rule], _Rule]:
    """Register a function as the rule of operators where an argument or the result is complex (`signal.Complex`)."""

    def register(function: _Rule) -> _Rule:
        _COMPLEX_RULES.update(dict.fromkeys(names, function))
        parameters = inspect.signature(function).parameters
        _NAMES[function] = frozenset(parameters)
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            taken = frozenset().union(*(_NAMES[_RULES[name]] for name in names))
            _NAMES[function] |= taken
        return function

    return register


def find_complex_rule(name: str) -> AtenRule | None:
    """The rule for an operator on complex numbers, None where there is none."""
    return _COMPLEX_RULES.get(name)


def find_rule(name: str) -> AtenRule | None:
    """The rule for an operator with its overload, None where there is none."""
    return _RULES.get(name)


def taken_arguments(rule: AtenRule) -> frozenset[str]:
    """The names of the arguments that a rule takes."""
    return _NAMES[rule]


def known_operators() -> frozenset[str]:
    """Every operator that has a rule, with its overload."""
    return frozenset(_RULES) | frozenset(_COMPLEX_RULES)


def call(rule: AtenRule, node: Any, arguments: dict[str, tuple[Any, Any]]) -> Result:
    """Call a rule.

    Args:
        node: the `TorchNode`.
        arguments: of the operator: name -> value, default (the value itself where the schema has none).

    Raises:
        ModelError: an argument that the rule does not take differs from its default.
    """
    taken = taken_arguments(rule)
    for name, (value, default) in arguments.items():
        if name not in taken | _ELSEWHERE and not (value is default or value == default or value is None):
            raise node.refused(f"argument {name}={value} is not supported")
    return rule(node, **{name: value for name, (value, _) in arguments.items() if name in taken})
