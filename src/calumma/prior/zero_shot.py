"""What a prior has to say of a model's tasks before any of them is measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from calumma.core.protocols import SearchSpace
from calumma.core.values import KnobValue
from calumma.cost_model import CostModel
from calumma.pipeline.preparation import Configs, PreparedModel
from calumma.prior import library, places
from calumma.prior.adaptation import Adaptation
from calumma.prior.dataset import NARROW
from calumma.prior.few_shot import FewShotForest, KnownSpace
from calumma.prior.predictor import Predictor, TaskPredictor
from calumma.prior.weights import Prior

FIRST = 4
"""Configurations of a task that a tuning session tries first on a prior's advice."""


def predictor_for(model: PreparedModel, name: str, *, measuring: bool = False) -> tuple[Predictor | None, str]:
    """The prior to ask, or None; and in one line why (empty where it knows this CPU, or none is wanted).

    Args:
        model: what it will be asked about.
        name: of a prior or its file; "auto" for the newest that fits this machine; "none".
        measuring: whether all that it says is measured before it is used.

    Raises:
        InputError: there is no such prior, its file cannot be used, or the one that was named does not fit.
    """
    if name == places.NONE:
        return None, ""
    prior: Prior | None
    if name == library.AUTO:
        prior, note = library.choose(model.hardware, model.threads, measuring=measuring)
    else:
        prior, note = library.find(name), ""
    if prior is None:
        return None, note
    return Predictor(prior, model.target, model.threads, model.cache_state, measuring=measuring), note


def choices(model: PreparedModel, predictor: Predictor, known: Collection[str] = ()) -> Configs:
    """The configuration to use for every task that the prior knows better than the template's default does.

    Args:
        model: its tasks and spaces.
        predictor: the prior.
        known: workloads to leave out, because something of them was measured.
    """
    chosen: dict[str, Mapping[str, KnobValue]] = {}
    for key, func in _float32(model):
        task = None if key in known else predictor.task(func, model.spaces[key])
        ranking = task.rank() if task is not None and task.trusted else None
        if ranking is not None and ranking.trusted:
            chosen[key] = model.spaces[key].decode(ranking.indices[0])
    return chosen


def views(model: PreparedModel, predictor: Predictor) -> dict[str, TaskPredictor]:
    """What the prior has to say of every task that it knows, by workload hash."""
    found = {key: predictor.task(func, model.spaces[key]) for key, func in _float32(model)}
    return {key: task for key, task in found.items() if task is not None}


def guides(
    tasks: Mapping[str, TaskPredictor], adaptation: Adaptation | None
) -> dict[str, tuple[SearchSpace, CostModel]]:
    """What a tuning session's strategies see of the spaces of these tasks, and their cost models, by workload hash: the
    prior's forests, refitted to what is measured of a task, and on a CPU that the prior is moved to of all."""
    return {
        key: (
            KnownSpace(task.view.space, task),
            FewShotForest(task.family.order) if adaptation is None else adaptation.model(key, task),
        )
        for key, task in tasks.items()
    }


def first_candidates(
    tasks: Mapping[str, TaskPredictor], n: int = FIRST
) -> dict[str, Sequence[Mapping[str, KnobValue]]]:
    """The `n` best predicted configurations of every task, best first; the defaults are left out, since they are
    measured anyway."""
    first: dict[str, Sequence[Mapping[str, KnobValue]]] = {}
    for key, task in tasks.items():
        space = task.view.space
        default = space.default()
        rows = [row for row in task.rank().indices[: n + 1] if (row != default).any()]
        first[key] = [space.decode(row) for row in rows[:n]]
    return first


def _float32(model: PreparedModel) -> list[tuple[str, Any]]:
    """The functions that compute with float32 alone, by workload: priors have seen no others."""
    narrow = {task.workload.hash for task in model.tasks if any(NARROW.match(dtype) for _, dtype in task.arguments)}
    return [(key, func) for key, func in model.parts.functions.items() if key not in narrow]
