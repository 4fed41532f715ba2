"""Training of the predictor: boosted trees (Chen & Guestrin, 2016) on groups of configurations.

For every group g of configurations i, with t_i = log(latency / roofline bound) and weights of sum 1 in a group

    w_i ~ (best / latency_i)^2                     the fast ones are what has to be told apart

the trees of a member regress t_i - sum w_i t_i: the order within a workload is all that they have to explain. How fast
a workload is as a whole, sum w_i t_i, is a regression of its own on the columns that describe task and CPU.

Every member is trained on groups drawn with replacement (bagging), whole groups, so that where members disagree little
is known of such workloads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.cost_model.boosting import xgboost
from calumma.prior.forest import Floats, Forest
from calumma.prior.machines import CPU

SHARED = ("task.", CPU)
"""Prefixes of the columns that all configurations of a task share."""
EMPHASIS = 2.0
"""Exponent of the weights of fast configurations."""


@dataclass(frozen=True)
class Sample:
    """One group as arrays."""

    workload: str
    table: Floats
    """(M, F) columns."""
    target: NDArray[np.float64]
    """(M,) log(latency / bound)."""


@dataclass(frozen=True)
class TrainingSettings:
    """Size of the forests. Compared on held-out workloads in docs/results/prior.md."""

    members: int = 6
    trees: int = 50
    depth: int = 5
    learning_rate: float = 0.12
    rows: float = 0.7
    """Share of the rows that a tree sees."""
    columns: float = 0.5
    """Share of the columns that a split may choose from."""
    least_child_weight: float = 1.0
    emphasis: float = EMPHASIS
    level_trees: int = 60
    level_depth: int = 3


def train(
    columns: Sequence[str], samples: Sequence[Sample], seed: int, settings: TrainingSettings
) -> tuple[Forest, Forest]:
    """Fit what tells configurations of a workload apart, and how fast a workload is as a whole.

    The same samples and seed give the same forests.

    Args:
        columns: names of the F columns.
        samples: the groups, at least one.
        seed: of bagging and sampling.
        settings: sizes.
    """
    rng = np.random.default_rng(seed)
    shares = [_shares(sample.target, settings.emphasis) for sample in samples]
    levels = np.array([share @ sample.target for share, sample in zip(shares, samples, strict=True)])
    members, level_members = [], []
    for member in range(settings.members):
        drawn = rng.integers(0, len(samples), len(samples))
        table = np.concatenate([samples[g].table for g in drawn])
        target = np.concatenate([samples[g].target - levels[g] for g in drawn])
        weight = np.concatenate([shares[g] for g in drawn])
        own = seed + member
        members.append(_boosted(table, target, weight, own, settings, settings.trees, settings.depth))
        task = _task_columns(columns, np.stack([samples[g].table[0] for g in drawn]))
        even = np.ones(len(drawn))
        level_members.append(
            _boosted(task, levels[drawn], even, own, settings, settings.level_trees, settings.level_depth)
        )
    return _forest(columns, members, settings.depth), _forest(columns, level_members, settings.level_depth)


def _shares(target: NDArray[np.float64], emphasis: float) -> NDArray[np.float64]:
    """w (M,), of sum 1."""
    weight = np.exp(-emphasis * (target - target.min()))
    return weight / weight.sum()


def _task_columns(columns: Sequence[str], table: Floats) -> Floats:
    """The same table with all columns blank that tell a task's configurations apart."""
    return np.where([name.startswith(SHARED) for name in columns], table, np.float32(0)).astype(np.float32)


def _boosted(
    table: Floats,
    target: NDArray[np.float64],
    weight: NDArray[np.float64],
    seed: int,
    settings: TrainingSettings,
    trees: int,
    depth: int,
) -> Any:
    parameters = {
        "objective": "reg:squarederror",
        "base_score": float(weight @ target / weight.sum()),
        "max_depth": depth,
        "eta": settings.learning_rate,
        "subsample": settings.rows,
        "colsample_bynode": settings.columns,
        "min_child_weight": settings.least_child_weight,
        "tree_method": "hist",
        "nthread": 1,
        "seed": seed,
        "verbosity": 0,
    }
    data = xgboost().DMatrix(table, target, weight=weight / weight.mean(), nthread=1)
    return xgboost().train(parameters, data, num_boost_round=trees)


def _forest(columns: Sequence[str], boosters: Sequence[Any], depth: int) -> Forest:
    """The trees of boosters as arrays."""
    members = [_arrays(json.loads(booster.save_raw("json")), depth) for booster in boosters]
    features, thresholds, leaves = (np.stack(parts) for parts in zip(*members, strict=True))
    return Forest(tuple(columns), features, thresholds, leaves)


def _arrays(model: Any, depth: int) -> tuple[NDArray[np.int32], Floats, Floats]:
    """Features, thresholds and leaves of one booster, the base score spread over the trees."""
    learner = model["learner"]
    trees = learner["gradient_booster"]["model"]["trees"]
    base = learner["learner_model_param"]["base_score"]
    base_score = float(json.loads(base)[0] if base.startswith("[") else base)
    inner = 2**depth - 1
    features = np.zeros((len(trees), inner), np.int32)
    thresholds = np.full((len(trees), inner), np.inf, np.float32)
    leaves = np.zeros((len(trees), inner + 1), np.float32)
    for number, tree in enumerate(trees):
        left, right = tree["left_children"], tree["right_children"]
        pending = [(0, 0)]
        while pending:
            node, place = pending.pop()
            if left[node] >= 0:
                features[number, place] = tree["split_indices"][node]
                thresholds[number, place] = tree["split_conditions"][node]
                pending += [(left[node], 2 * place + 1), (right[node], 2 * place + 2)]
                continue
            while place < inner:  # a leaf above the last level: nobody goes right
                place = 2 * place + 1
            leaves[number, place - inner] = tree["split_conditions"][node]
    leaves += np.float32(base_score / len(trees))
    return features, thresholds, leaves
