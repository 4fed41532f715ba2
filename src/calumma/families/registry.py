"""What there is to know of an operator family, in one value, and the registry that the other rooms ask.

A family brings rules that lower nodes of the graph to tensor expressions, the design space that schedules the functions
they become, and sample layers from which a prior is learnt. `register` makes a family known to lowering, to the workers
that measure, and to the prior.

    calumma.operators.register(Operator("conv1d", rules={"nn.conv1d": rule}, space=Conv1dSpace))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from tvm import tirx

from calumma.core.contraction import Contraction
from calumma.core.extensions import Registry
from calumma.core.protocols import Template
from calumma.families.samples import SampleWriter
from calumma.graph.context import Declined, LoweringContext
from calumma.graph.layouts import ChannelParts, Slots, Value
from calumma.graph.nodes import Graph, Node
from calumma.space import STRUCTURAL_TEMPLATES, blocks, structural_space
from calumma.target import Target

Rule = Callable[[LoweringContext, Node], Value | ChannelParts | Declined]
"""Lowers a node, or says why it does not cover it."""
SpaceFactory = Callable[[tirx.PrimFunc, Target, int], Template]
"""(function, target, threads) -> its design space."""


@dataclass(frozen=True)
class Operator:
    """An operator family."""

    name: str
    """Unique; also the annotation `calumma.operator` of the anchor block that `space` schedules."""
    rules: Mapping[str, Rule] = field(default_factory=dict)
    """Graph operator ("nn.conv2d") -> how it is lowered. Of several families' rules, the youngest is asked first."""
    space: SpaceFactory | None = None
    """Design space of the functions that the rules become; None where a structural template schedules them."""
    structure: Callable[[tirx.PrimFunc], bool] | None = None
    """Whether `space` schedules a function, by what that computes; None where the anchor's name decides."""
    templates: Collection[type[Template]] = ()
    """The classes of the spaces that `space` makes, for their versions."""
    contracts: Callable[[Node, Contraction, int], bool] | None = None
    """(node, contraction, lanes) -> whether the rules have a form of the node for a contraction of a narrow type."""
    moves: Collection[str] = ()
    """Graph operators whose results are elements of what they read: as narrow as that."""
    joins: Collection[str] = ()
    """Graph operators whose result has its channels wherever those that they read have them."""
    orders: Callable[[Graph, Mapping[Node, list[Node]], int, frozenset[str]], Mapping[Node, Slots]] | None = None
    """(graph, users, lanes, `joins` of all families) -> the slots in which to store some values, for their readers."""
    samples: Mapping[str, SampleWriter] = field(default_factory=dict)
    """Family of layers -> how one is written as a small model, for a prior to learn from. Which layers are drawn is the
    prior's own: `prior.sampling.SHARES` and the networks of `prior/published`."""


_FAMILIES: Registry[Operator] = Registry("operator", {})


def register(operator: Operator) -> None:
    """Make an operator family known in this process, and in the workers that it starts.

    Raises:
        InputError: a family has that name already; or the caller is no module that workers could import.
    """
    _FAMILIES.add(operator.name, operator)


def families() -> tuple[Operator, ...]:
    """All operator families, the youngest first."""
    return tuple(reversed(_FAMILIES.values()))


def rules_for(op: str) -> list[Rule]:
    """The rules for a graph operator, in the order in which they are to be asked."""
    return [family.rules[op] for family in families() if op in family.rules]


def moves(op: str) -> bool:
    """Whether an operator's results are elements of what it reads."""
    return any(op in family.moves for family in families())


def sample_writers() -> dict[str, SampleWriter]:
    """Family of layers -> how one is written as a small model."""
    return {layer: writer for family in reversed(families()) for layer, writer in family.samples.items()}


def design_space(func: tirx.PrimFunc, target: Target, threads: int) -> Template:
    """Return the design space of a fused PrimFunc with static shapes.

    That of the family which the anchor block names; else that of a family which knows the structure; else one of the
    structural templates, the last of which schedules anything.

    Args:
        func: the unscheduled function.
        target: the CPU it is compiled for.
        threads: threads the code will run on; the space itself does not depend on it, defaults and features do.
    """
    anchor = blocks.find_anchor(blocks.schedule_of(func))
    family = _FAMILIES.get(anchor[1]) if anchor is not None else None
    if family is not None and family.space is not None and family.structure is None:
        return family.space(func, target, threads)
    for other in families():
        if other.space is not None and other.structure is not None and other.structure(func):
            return other.space(func, target, threads)
    return structural_space(func, target, threads)


def template_versions() -> dict[str, int]:
    """Version of every template of operator families and of structure, by name."""
    templates = (*(template for family in _FAMILIES.values() for template in family.templates), *STRUCTURAL_TEMPLATES)
    return {template.template: template.version for template in templates}
