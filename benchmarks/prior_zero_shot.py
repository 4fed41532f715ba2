"""How good the prior's choices are, for tasks of networks that it has never seen.

A *known task* is one of a held-out network with at least `LEAST` measured configurations: from tuning sessions and
corpora. Two figures for each, both as shares of the best known speed:

    recorded   the prior chooses among the configurations that were measured; nothing is measured now
    live       the prior chooses from the whole design space; its first eight, the default and the eight best known are
               measured in turns, `PASSES` times, with the weights where they were; medians count, and the best of all
               of them is the best known
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import corpora, held_out
from calumma import tvm_compat
from calumma.core.values import Candidate, MeasureRecord, Workload
from calumma.database import SqlStore
from calumma.measure import LocalRunner
from calumma.prior import dataset
from calumma.prior.dataset import Dataset, Group
from calumma.prior.predictor import Predictor, TaskPredictor
from calumma.prior.weights import Prior

LEAST = 500
"""Configurations after which the best of a task counts as known."""
TOP = 8
PASSES = 3
_QUICK_TASKS = 2


@dataclass(frozen=True)
class Shares:
    """Shares of the best known speed of one task."""

    first: float
    best_of_8: float
    default: float | None


def known_tasks(databases: Sequence[Path], folder: Path, least: int = LEAST) -> Dataset:
    """Known tasks of the held-out networks: of tuning sessions in databases, and of the corpora."""
    hardware, toolchain = tvm_compat.hardware_for(), tvm_compat.toolchain()
    names = {hash_: network for network, hashes in held_out.known().items() for hash_ in hashes}
    records: list[MeasureRecord] = []
    for path in databases:
        with SqlStore.open(str(path)) as store:
            records += store.records(hardware=hardware.fingerprint, toolchain=toolchain)
    for name in corpora.names(folder):
        corpus = corpora.load(name, folder)
        if corpus.source.space == "template":
            records += corpus.records(corpus.space())
    networks = {hash_: hash_ for hash_ in names}
    labelled = [r for r in records if r.candidate.workload.hash in names]
    found = dataset.from_records(labelled, hardware=hardware, toolchain=toolchain, networks=networks)
    groups = tuple(group for group in found.groups if np.isfinite(group.latency_s).sum() >= least)
    return Dataset(hardware, toolchain, groups, found.left_out)


def recorded(prior: Prior, tasks: Dataset) -> dict[tuple[str, int, str], Shares]:
    """Shares when the prior chooses among what was measured."""
    found = {}
    for group in tasks.groups:
        task = _predictor(prior, group, tasks)
        if task is None:
            continue
        space = task.view.space
        worked = np.isfinite(group.latency_s)
        indices, latency_s = group.encoded(space)[worked], group.latency_s[worked]
        predictions = task.predict(indices)
        order = np.argsort(-predictions.score, kind="stable")
        default = np.flatnonzero((indices == space.default()).all(axis=1))
        shares = latency_s.min() / latency_s
        trusted = len(default) == 0 or predictions.score[order[0]] > task.family.least_gain
        found[group.key] = Shares(
            first=float(shares[order[0]] if trusted else shares[default[0]]),
            best_of_8=float(shares[order[:TOP]].max()),
            default=float(shares[default[0]]) if len(default) else None,
        )
    return found


def live(
    prior: Prior, tasks: Dataset, say: Callable[[str], None], quick: bool = False
) -> dict[tuple[str, int, str], Shares]:
    """Shares when the prior chooses from the whole space, measured now."""
    found = {}
    groups = tasks.groups[:_QUICK_TASKS] if quick else tasks.groups
    for number, group in enumerate(groups, start=1):
        task = _predictor(prior, group, tasks)
        if task is None:
            continue
        say(f"measuring task {number} of {len(groups)}: {group.template} {group.workload}")
        space = task.view.space
        ranking = task.rank()
        default = space.default()
        first = ranking.indices[0] if ranking.trusted else default
        order = np.argsort(group.latency_s)[:TOP]
        known = group.encoded(space)[order]
        rivals = np.unique(np.concatenate([[first, default], ranking.indices[:TOP], known]), axis=0)
        with LocalRunner(tasks.hardware, group.threads, cache_state=group.cache_state) as runner:
            workload = Workload(group.workload, group.text)
            candidates = [Candidate(workload, space.template, space.version, space.decode(row)) for row in rivals]
            passes = [runner.measure(candidates) for _ in range(PASSES)]
        latency_s = np.array([median(result.latency_s for result in results) for results in zip(*passes, strict=True)])
        shares = latency_s.min() / latency_s

        def share(row: Any, rivals: Any = rivals, shares: Any = shares) -> float:
            return float(shares[(rivals == row).all(axis=1)][0])

        found[group.key] = Shares(share(first), max(map(share, ranking.indices[:TOP])), share(default))
    return found


def metrics(shares: Mapping[Any, Shares], suffix: str = "") -> dict[str, float]:
    """Geometric means over the tasks; none without tasks."""
    if not shares:
        return {}
    found = {
        f"zero_shot_top1{suffix}": _geomean([s.first for s in shares.values()]),
        f"zero_shot_top8{suffix}": _geomean([s.best_of_8 for s in shares.values()]),
    }
    defaults = [s.default for s in shares.values() if s.default is not None]
    return found | ({f"default_top1{suffix}": _geomean(defaults)} if defaults else {})


def rows(tasks: Dataset, **kinds: Mapping[Any, Shares]) -> list[dict[str, Any]]:
    """One row per task."""
    names = {hash_: network for network, hashes in held_out.known().items() for hash_ in hashes}
    table = []
    for group in tasks.groups:
        row: dict[str, Any] = {
            "part": "zero-shot",
            "network": names[group.workload],
            "workload": group.workload,
            "template": group.template,
            "threads": group.threads,
            "cache": group.cache_state,
            "configurations": int(np.isfinite(group.latency_s).sum()),
        }
        for kind, shares in kinds.items():
            own = shares.get(group.key)
            if own is not None:
                row |= {f"{kind}_first": own.first, f"{kind}_best_of_8": own.best_of_8, f"{kind}_default": own.default}
        table.append(row)
    return table


def _predictor(prior: Prior, group: Group, tasks: Dataset) -> TaskPredictor | None:
    if prior.mismatch(tasks.hardware, group.threads):
        return None
    space = group.space(tasks.hardware)
    return Predictor(prior, tasks.hardware, group.threads, group.cache_state).task(group.func, space)


def _geomean(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))
