"""Ensembles of decision trees.

Every row walks every tree as many steps as the deepest leaf lies deep; a leaf leads to itself. A tree's leaves add to
one target or to several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from calumma.core.errors import ModelError
from calumma.expressions import statements
from calumma.graph.build import cast, expression
from calumma.graph.nodes import Node, constant

MODES = ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ")
"""How a feature is compared with a threshold; the number of a comparison is its place here."""
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")


@dataclass
class TreeEnsemble:
    """Trees under construction. A node's number is its place in the lists; a leaf leads to itself."""

    roots: list[int] = field(default_factory=list)
    modes: list[int] = field(default_factory=list)
    features: list[int] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    missing: list[bool] = field(default_factory=list)
    """Whether NaN goes the way of what holds."""
    yes: list[int] = field(default_factory=list)
    no: list[int] = field(default_factory=list)
    leaves: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    """Leaf -> targets and what it adds to them."""

    def add_leaf(self, weights: Sequence[tuple[int, float]]) -> int:
        """Append a leaf; returns its number."""
        number = self._append("LEQ", 0, 0.0, missing=False)
        self.yes[number] = self.no[number] = number
        self.leaves[number] = list(weights)
        return number

    def add_node(self, mode: str, feature: int, threshold: float, *, missing: bool) -> int:
        """Append a comparison, whose two ways are set afterwards; returns its number."""
        return self._append(mode, feature, threshold, missing=missing)

    def _append(self, mode: str, feature: int, threshold: float, *, missing: bool) -> int:
        self.modes.append(MODES.index(mode))
        self.features.append(feature)
        self.thresholds.append(threshold)
        self.missing.append(missing)
        self.yes.append(-1)
        self.no.append(-1)
        return len(self.modes) - 1

    def depth(self) -> int:
        """Steps to the deepest leaf. Raises ModelError where a way leads nowhere or in circles."""
        level, steps = set(self.roots), 0
        while True:
            level = {way for node in level if node not in self.leaves for way in (self.yes[node], self.no[node])}
            if not level:
                return steps
            steps += 1
            if min(level) < 0 or steps > len(self.modes):
                raise ModelError("a tree has a node without children, or one below itself; export the model again")


def tree_scores(x: Node, forest: TreeEnsemble, targets: int, aggregate: str) -> Node:
    """What the leaves that each row reaches add up to.

    Args:
        x: (N, features), float32 or float64.
        targets: how many.
        aggregate: one of AGGREGATES.

    Returns:
        (N, targets).
    """
    rows, features = x.shape
    width = max((len(weights) for weights in forest.leaves.values()), default=1)
    count, trees, depth = len(forest.modes), len(forest.roots), forest.depth()
    if not all(0 <= target < targets for weights in forest.leaves.values() for target, _ in weights):
        raise ModelError(f"a leaf is for a target outside of the {targets} that there are; export the model again")
    if not all(0 <= f < features for n, f in enumerate(forest.features) if n not in forest.leaves):
        raise ModelError(f"a tree reads a feature outside of the {features} that there are; export the model again")
    goal, amount = np.full((count, width), -1, np.int32), np.zeros((count, width), np.float64)
    for leaf, weights in forest.leaves.items():
        for place, (target, weight) in enumerate(weights):
            goal[leaf, place], amount[leaf, place] = target, weight
    integers = np.array([forest.modes, forest.features, forest.missing, forest.yes, forest.no], np.int32)
    tables = integers, np.array(forest.roots, np.int32), goal
    values = np.array(forest.thresholds).astype(x.dtype), amount.astype(x.dtype)
    used = sorted({mode for node, mode in enumerate(forest.modes) if node not in forest.leaves}) or [0]

    def body(x: Any, numbers: Any, roots: Any, goal: Any, thresholds: Any, amount: Any, out: Any) -> None:
        with T.parallel(0, rows) as r:
            with T.serial(0, targets) as t:
                out[r, t] = statements.constant(_START.get(aggregate, 0.0), x.dtype)
            with T.serial(0, trees) as tree:
                node = statements.counter("int32")
                node[0] = _within(roots[tree], count)
                with T.serial(0, depth):
                    value = x[r, _within(numbers[1, node[0]], features)]
                    holds = _holds(numbers[0, node[0]], value, thresholds[node[0]], used)
                    goes = tirx.any(holds, tirx.all(numbers[2, node[0]] != 0, tirx.isnan(value)))
                    node[0] = _within(tirx.Select(goes, numbers[3, node[0]], numbers[4, node[0]]), count)
                with T.serial(0, width) as place:
                    target = _within(goal[node[0], place], targets)
                    changed = _combined(aggregate, out[r, target], amount[node[0], place])
                    out[r, target] = tirx.Select(goal[node[0], place] >= 0, changed, out[r, target])
            if aggregate == "AVERAGE":
                with T.serial(0, targets) as t:
                    out[r, t] = out[r, t] / statements.constant(trees, x.dtype)

    def function(*tensors: te.Tensor) -> te.Tensor:
        return statements.kernel("trees", body, tensors, [((rows, targets), x.dtype)])[0]

    return expression(function, x, *map(constant, (*tables, *values)), name="trees")


_START: Mapping[str, float] = {"MIN": 3.4028234663852886e38, "MAX": -3.4028234663852886e38}


def _within(index: tirx.Expr, size: int) -> tirx.Expr:
    return tirx.max(tirx.min(index, size - 1), 0)


def _combined(aggregate: str, old: tirx.Expr, new: tirx.Expr) -> tirx.Expr:
    if aggregate == "MIN":
        return tirx.min(old, new)
    return tirx.max(old, new) if aggregate == "MAX" else old + new


def _holds(mode: tirx.Expr, value: tirx.Expr, threshold: tirx.Expr, used: Sequence[int]) -> tirx.Expr:
    """Whether a comparison holds, of those that occur."""
    results = {
        "LEQ": value <= threshold,
        "LT": value < threshold,
        "GTE": value >= threshold,
        "GT": value > threshold,
        "EQ": value == threshold,
        "NEQ": value != threshold,
    }
    chosen = results[MODES[used[-1]]]
    for number in used[:-1]:
        chosen = tirx.any(tirx.all(mode == number, results[MODES[number]]), tirx.all(mode != number, chosen))
    return chosen


def as_features(x: Node) -> Node:
    """Rows of features, in a type that trees compare in."""
    return x if x.dtype == "float64" else cast(x, "float32")
