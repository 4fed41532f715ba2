"""Ensembles of decision trees, of the domain ai.onnx.ml."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calumma.graph.build import cast
from calumma.graph.nodes import Node
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.onnx_rules.onnx_linear_models import ML, added, chosen_labels, post_transformed, two_sided
from calumma.semantics.movement import sliced
from calumma.semantics.tree_ensembles import AGGREGATES, MODES, TreeEnsemble, as_features, tree_scores

_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


@onnx_rule("TreeEnsembleRegressor", domain=ML)
def regressor(node: OnnxNode) -> Node:
    x = as_features(node.input(0))
    targets = int(node.attribute("n_targets", 1))
    aggregate = node.choice("aggregate_function", AGGREGATES, "SUM")
    forest = _forest(node, "target")
    scores = tree_scores(x, forest, targets, aggregate)
    scores = added(scores, _numbers(node, "base_values"))
    return cast(post_transformed(node, scores), "float32")


@onnx_rule("TreeEnsembleClassifier", domain=ML)
def classifier(node: OnnxNode) -> Sequence[Node | None]:
    """Scores and labels. Of two classes of which one has weights, its score alone decides, as in ONNX Runtime."""
    x = as_features(node.input(0))
    labels = node.attribute("classlabels_int64s", None) or node.attribute("classlabels_strings", None) or ()
    forest = _forest(node, "class")
    base = _numbers(node, "base_values")
    weights = [entry for entries in forest.leaves.values() for entry in entries]
    used = {target for target, _ in weights}
    if len(labels) != 2:
        scores = added(tree_scores(x, forest, max(len(labels), 1), "SUM"), base)
        return [chosen_labels(node, labels, scores, None), cast(post_transformed(node, scores), "float32")]
    if base.size and not (used == {0} and base.size == 1):
        raise node.refused("base_values of two classes are not well defined", "add them to the weights of one tree")
    threshold = 0.5 if all(weight >= 0 for _, weight in weights) else 0.0
    scores = tree_scores(x, forest, 2, "SUM")
    second = sliced(scores, {1: slice(1, 2)})
    if used == {0}:
        second = added(sliced(scores, {1: slice(0, 1)}), base)
        transformed = two_sided(node, second, are_shares=threshold > 0)
    else:
        transformed = post_transformed(node, scores)
    # Of two classes with weights ONNX Runtime does not give labels as the standard defines them.
    chosen = None if len(used) == 2 else chosen_labels(node, labels, second, threshold)
    return [chosen, cast(transformed, "float32")]


def _numbers(node: OnnxNode, name: str) -> NDArray[np.float64]:
    """An attribute of numbers, as floats or as a tensor."""
    tensor = node.attribute(f"{name}_as_tensor", None)
    values = node.attribute(name, None) if tensor is None else tensor.reshape(-1)
    return np.asarray(() if values is None else values, np.float64)


def _forest(node: OnnxNode, kind: str) -> TreeEnsemble:
    """The trees of attributes that name nodes by tree and number.

    Args:
        kind: target or class: what the weights of leaves are for.
    """
    node.ignore("nodes_hitrates", "nodes_hitrates_as_tensor")
    names = list(zip(node.attribute("nodes_treeids"), node.attribute("nodes_nodeids"), strict=True))
    modes, features = node.attribute("nodes_modes"), node.attribute("nodes_featureids")
    thresholds = _numbers(node, "nodes_values")
    missing = node.attribute("nodes_missing_value_tracks_true", None) or (0,) * len(names)
    weights: dict[tuple[int, int], list[tuple[int, float]]] = {}
    columns = (node.attribute(f"{kind}_{column}") for column in ("treeids", "nodeids", "ids"))
    for tree, number, target, weight in zip(*columns, _numbers(node, f"{kind}_weights"), strict=True):
        weights.setdefault((tree, number), []).append((int(target), float(weight)))
    forest, places = TreeEnsemble(), {}
    for name, mode, feature, threshold, tracks in zip(names, modes, features, thresholds, missing, strict=True):
        if mode == "LEAF":
            places[name] = forest.add_leaf(weights.get(name, []))
        else:
            known = mode.removeprefix("BRANCH_")
            if known not in MODES:
                raise node.refused(f"the comparison {mode} is not supported")
            places[name] = forest.add_node(known, int(feature), float(threshold), missing=bool(tracks))
    below: set[tuple[int, int]] = set()
    ways = node.attribute("nodes_truenodeids"), node.attribute("nodes_falsenodeids")
    for name, mode, yes, no in zip(names, modes, *ways, strict=True):
        if mode != "LEAF":
            children = (name[0], yes), (name[0], no)
            below.update(children)
            forest.yes[places[name]], forest.no[places[name]] = (places.get(child, -1) for child in children)
    forest.roots = [places[name] for name in names if name not in below]
    return forest


@onnx_rule("TreeEnsemble", since=5, domain=ML)
def ensemble(node: OnnxNode) -> Node:
    node.ignore("nodes_hitrates")
    x, targets = node.input(0), int(node.attribute("n_targets"))
    aggregate = AGGREGATES[int(node.attribute("aggregate_function"))]
    forest = _listed_forest(node)
    scores = tree_scores(as_features(x), forest, targets, aggregate)
    transform = _TRANSFORMS[int(node.attribute("post_transform"))]
    return cast(post_transformed(node, scores, transform), x.dtype)


def _listed_forest(node: OnnxNode) -> TreeEnsemble:
    """The trees of attributes that list nodes and leaves; a comparison with a set is one with each of its members."""
    modes = node.attribute("nodes_modes").reshape(-1)
    splits, features = node.attribute("nodes_splits").reshape(-1), node.attribute("nodes_featureids")
    missing = node.attribute("nodes_missing_value_tracks_true", None) or (0,) * len(modes)
    members = node.attribute("membership_values", None)
    sets = _member_sets(() if members is None else members.reshape(-1))
    ways = [
        list(zip(node.attribute(f"nodes_{way}nodeids"), node.attribute(f"nodes_{way}leafs"), strict=True))
        for way in ("true", "false")
    ]
    forest = TreeEnsemble()
    first, last = [], []
    for mode, split, feature, tracks in zip(modes, splits, features, missing, strict=True):
        is_set = int(mode) == len(MODES)
        if int(mode) > len(MODES) or (is_set and not sets):
            raise node.refused(f"the comparison {int(mode)} is not supported, or its members are missing")
        values = sets.pop(0) if is_set else [float(split)]
        name = "EQ" if is_set else MODES[int(mode)]
        chain = [forest.add_node(name, int(feature), value, missing=bool(tracks)) for value in values]
        for before, after in itertools.pairwise(chain):
            forest.no[before] = after
        first.append(chain[0])
        last.append(chain)
    weights = zip(node.attribute("leaf_targetids"), node.attribute("leaf_weights").reshape(-1), strict=True)
    leaves = [forest.add_leaf([(int(target), float(weight))]) for target, weight in weights]
    if min(*(index for way in ways for index, _ in way), *node.attribute("tree_roots"), 0) < 0:
        raise node.refused("a node's number is below 0", "export the model again")
    for chain, yes, no in zip(last, *ways, strict=True):
        true, false = ((leaves if is_leaf else first)[index] for index, is_leaf in (yes, no))
        for number in chain:
            forest.yes[number] = true
        forest.no[chain[-1]] = false
    forest.roots = [first[root] for root in node.attribute("tree_roots")]
    return forest


def _member_sets(values: Sequence[float]) -> list[list[float]]:
    """Lists that NaN ends."""
    sets: list[list[float]] = []
    members: list[float] = []
    for value in values:
        if np.isnan(value):
            sets.append(members)
            members = []
        else:
            members.append(float(value))
    return sets
