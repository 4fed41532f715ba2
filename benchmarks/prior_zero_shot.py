"""How good the prior's choices are, for tasks of networks that it has never seen.

Two figures, both as shares of the best known speed of a task:

    recorded   tasks with complete recordings (`benchmarks/corpora.py`): the prior chooses among the configurations that
               were measured, and nothing is measured now
    live       every task that takes more than 1 % of its network's time by the default schedules: the prior chooses
               from the whole design space. Its first eight, the default and the best `KNOWN` of the databases of long
               tunings are measured in turns, with the weights where the network finds them. Those near the front, the
               prior's first choice and the default are measured `PASSES` times; medians count, and the best of all of
               them is the best known. A task of a template that the prior does not know is left to its default, as
               `compile` does, and counts with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import corpora, held_out, suite
from benchmarks.curves import ratio
from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.keys import Key, indices_of, key_of
from calumma.core.protocols import Indices, Template
from calumma.core.values import Candidate, MeasureRecord, Status, Task
from calumma.database import SqlStore
from calumma.measure import LocalRunner, recording
from calumma.pipeline import CompileOptions
from calumma.pipeline.preparation import PreparedModel, prepare
from calumma.prior import dataset
from calumma.prior.dataset import Dataset, Group, GroupKey
from calumma.prior.predictor import Predictor, TaskPredictor
from calumma.prior.weights import Prior

NETWORKS = ("resnet50", "bert", "mobilenet_v2", "resnet18", "squeezenet")
LEAST = 500
"""Configurations after which a recording is complete."""
TOP = 8
KNOWN = 4
"""Configurations of a database that are measured again."""
PASSES = 3
_WEIGHTY = 0.01
"""Share of its network's time above which a task is judged."""
_NEAR = 1.15
"""Times the fastest of the first pass, up to which a configuration stays in the race."""


@dataclass(frozen=True)
class Shares:
    """Shares of the best known speed of one task."""

    first: float
    best_of_8: float
    default: float | None
    configurations: int
    """That the best was looked for among."""


@dataclass(frozen=True)
class NetworkTask:
    """A task of a held-out network and what has to be measured of it."""

    network: str
    task: Task
    space: Template
    cache_state: str
    ranked: Mapping[str, Indices]
    """Prior -> (up to TOP, D) what it would measure first; empty where it does not know the template."""
    chosen: Mapping[str, Key]
    """Prior -> what `compile` takes: its first choice, or the default."""
    known: tuple[Key, ...]
    """Best configurations of the databases, best first."""

    @property
    def default(self) -> Key:
        return key_of(self.space.default())

    def candidate(self, key: Key) -> Candidate:
        """What a runner measures."""
        config = self.space.decode(indices_of(key))
        return Candidate(self.task.workload, self.space.template, self.space.version, config)


def recorded_tasks(folder: Path, least: int = LEAST) -> Dataset:
    """Tasks of the held-out networks that the recordings in a folder know completely."""
    hardware, toolchain = tvm_compat.target_for().hardware, tvm_compat.toolchain()
    names = {hash_ for hashes in held_out.known().values() for hash_ in hashes}
    records: list[MeasureRecord] = []
    for name in corpora.names(folder):
        corpus = recording.load(name, folder)
        if corpus.source.space == "template" and corpus.workload.hash in names:
            records += corpus.records(corpus.space())
    found = dataset.from_records(records, toolchain=toolchain).of_cpu(hardware.fingerprint)
    groups = tuple(group for group in found.groups if np.isfinite(group.latency_s).sum() >= least)
    return replace(found, groups=groups)


def recorded(prior: Prior, tasks: Dataset) -> dict[GroupKey, Shares]:
    """Shares when the prior chooses among what was measured."""
    found = {}
    for group in tasks.groups:
        task = _predictor(prior, group)
        if task is None:
            continue
        space = task.view.space
        worked = np.isfinite(group.latency_s)
        indices, latency_s = group.encoded(space)[worked], group.latency_s[worked]
        predictions = task.predict(indices)
        order = np.argsort(-predictions.score, kind="stable")
        default = np.flatnonzero((indices == space.default()).all(axis=1))
        shares = latency_s.min() / latency_s
        trusted = len(default) == 0 or predictions.score[order[0]] > task.trust.least_gain
        found[group.key] = Shares(
            first=float(shares[order[0]] if trusted else shares[default[0]]),
            best_of_8=float(shares[order[:TOP]].max()),
            default=float(shares[default[0]]) if len(default) else None,
            configurations=len(indices),
        )
    return found


def live(
    priors: Mapping[str, Prior],
    networks: Sequence[str],
    databases: Sequence[Path],
    threads: int,
    say: Callable[[str], None],
    mcpu: str | None = None,
) -> dict[tuple[str, int, str], tuple[NetworkTask, dict[str, Shares]]]:
    """Shares when priors choose from the whole space, measured now; a task that two networks have counts once.

    Args:
        priors: whose choices are judged, by name.
        networks: of the suite.
        databases: of tunings.
        threads: of the kernels.
        say: called with a line about what is going on.
        mcpu: CPU to compile for, this one by default.

    Raises:
        InputError: a default or choice cannot be measured.
    """
    found: dict[tuple[str, int, str], tuple[NetworkTask, dict[str, Shares]]] = {}
    for network in networks:
        say(f"{network}: importing")
        model = prepare(str(suite.path(network)), CompileOptions(threads=threads, mcpu=mcpu))
        predictors = {
            name: Predictor(prior, model.target, threads, model.cache_state, measuring=True)
            for name, prior in priors.items()
        }
        records = _records(databases, model)
        with LocalRunner(model.target, threads, cache_state=model.cache_state) as runner:
            weighty = _weighty(model, runner)
            for number, task in enumerate(weighty, start=1):
                key = (task.workload.hash, threads, model.cache_state)
                if key in found:
                    continue
                say(f"{network}: measuring task {number} of {len(weighty)}")
                entry = _network_task(network, model, task, predictors, records.get(task.workload.hash, ()))
                found[key] = entry, _measured(entry, runner)
    return found


def _records(databases: Sequence[Path], model: PreparedModel) -> dict[str, list[MeasureRecord]]:
    """What databases know of a model's workloads, measured as they would be now; by workload."""
    found: dict[str, list[MeasureRecord]] = {}
    for path in _files(databases):
        with SqlStore.open(str(path)) as store:
            for record in store.records(
                workloads=list(model.spaces),
                hardware=model.hardware.fingerprint,
                threads=model.threads,
                cache_state=model.cache_state,
                toolchain=tvm_compat.toolchain(),
            ):
                if record.result.status is Status.OK:
                    found.setdefault(record.candidate.workload.hash, []).append(record)
    return found


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Databases: the files themselves, and all in folders.

    Raises:
        InputError: a file does not exist, or a folder has none.
    """
    for path in paths:
        files = sorted(path.glob("*.db")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise InputError(f"--records {path}: there is no database; name files, or a folder of files *.db")
        yield from files


def _weighty(model: PreparedModel, runner: LocalRunner) -> list[Task]:
    """The tasks that take more than `_WEIGHTY` of the model's time with the default schedules."""
    candidates = []
    for task in model.tasks:
        space = model.spaces[task.workload.hash]
        config = model.defaults[task.workload.hash]
        candidates.append(Candidate(task.workload, space.template, space.version, config))
    results = runner.measure(candidates)
    failed = [task.name for task, r in zip(model.tasks, results, strict=True) if r.status is not Status.OK]
    if failed:
        raise InputError(f"{model.name}: the default schedule of {', '.join(failed)} could not be measured")
    spent = [task.weight * result.latency_s for task, result in zip(model.tasks, results, strict=True)]
    return [task for task, s in zip(model.tasks, spent, strict=True) if s > _WEIGHTY * sum(spent)]


def _network_task(
    network: str,
    model: PreparedModel,
    task: Task,
    predictors: Mapping[str, Predictor],
    records: Sequence[MeasureRecord],
) -> NetworkTask:
    space = model.spaces[task.workload.hash]
    latencies: dict[Key, list[float]] = {}
    for record in records:
        candidate = record.candidate
        if (candidate.template, candidate.template_version) != (space.template, space.version):
            continue
        try:
            indices = space.encode(candidate.config)
        except InputError:
            continue  # of a knob value that the space no longer has
        if space.valid(indices[None, :])[0]:
            latencies.setdefault(key_of(indices), []).append(record.result.latency_s)
    known = sorted(latencies, key=lambda key: median(latencies[key]))[:KNOWN]
    default = space.default()
    ranked, chosen = {}, {}
    for name, predictor in predictors.items():
        view = predictor.task(model.parts.functions[task.workload.hash], space)
        if view is None:
            ranked[name], chosen[name] = np.empty((0, len(default)), np.int32), key_of(default)
            continue
        ranking = view.rank()
        ranked[name] = ranking.indices[:TOP]
        chosen[name] = key_of(ranking.indices[0] if ranking.trusted else default)
    return NetworkTask(network, task, space, model.cache_state, ranked, chosen, tuple(known))


def _measured(entry: NetworkTask, runner: LocalRunner) -> dict[str, Shares]:
    """Measure a task's rivals in turns; shares by prior."""
    ranked = {name: [key_of(row) for row in rows] for name, rows in entry.ranked.items()}
    judged = list(dict.fromkeys([*entry.chosen.values(), entry.default]))
    rivals = list(dict.fromkeys([*judged, *(key for keys in ranked.values() for key in keys), *entry.known]))
    latencies: dict[Key, list[float]] = {key: [] for key in rivals}

    def measure(keys: Sequence[Key]) -> None:
        for key, result in zip(keys, runner.measure([entry.candidate(key) for key in keys]), strict=True):
            if result.status is Status.OK:
                latencies[key].append(result.latency_s)

    measure(rivals)
    first = {key: values[0] for key, values in latencies.items() if values}
    front = [key for key, value in first.items() if value <= _NEAR * min(first.values())]
    stay = list(dict.fromkeys([*front, *judged]))
    for number in range(1, PASSES):
        measure(stay[number % len(stay) :] + stay[: number % len(stay)])
    if not all(latencies[key] for key in judged):
        raise InputError(f"{entry.network}: a choice or the default of {entry.task.name} could not be measured")
    speeds = {key: 1 / median(values) for key, values in latencies.items() if values}
    best = max(speeds.values())
    shares = {key: speed / best for key, speed in speeds.items()}
    return {
        name: Shares(
            first=shares[entry.chosen[name]],
            best_of_8=max((shares[key] for key in keys if key in shares), default=shares[entry.default]),
            default=shares[entry.default],
            configurations=len(rivals),
        )
        for name, keys in ranked.items()
    }


def metrics(shares: Sequence[Shares], suffix: str = "", name: str = "zero_shot") -> dict[str, float]:
    """Geometric means over the tasks, with the 95 % intervals of what the prior chose; none without tasks."""
    if not shares:
        return {}
    defaults = [s.default for s in shares if s.default is not None]
    return (
        _mean(f"{name}_top1", suffix, [s.first for s in shares])
        | _mean(f"{name}_top8", suffix, [s.best_of_8 for s in shares])
        | ({f"default_top1{suffix}": float(np.exp(np.mean(np.log(defaults))))} if defaults else {})
        | {f"{name}_tasks{suffix}": float(len(shares))}
    )


def _mean(name: str, suffix: str, shares: Sequence[float]) -> dict[str, float]:
    found = ratio({str(i): [share] for i, share in enumerate(shares)}, {str(i): [1.0] for i in range(len(shares))})
    return {f"{name}{suffix}": found.value, f"{name}{suffix}_low": found.low, f"{name}{suffix}_high": found.high}


def recorded_row(group: Group, shares: Shares) -> dict[str, Any]:
    """Row of a recorded task."""
    networks = [network for network, hashes in held_out.known().items() if group.workload in hashes]
    return _row("recorded", networks[0], group.workload, group.template, group.cache_state, shares)


def live_row(entry: NetworkTask, name: str, shares: Shares) -> dict[str, Any]:
    """Row of a task measured now, for one of the priors."""
    row = _row("live", entry.network, entry.task.workload.hash, entry.space.template, entry.cache_state, shares)
    return row | {
        "prior": name,
        "task": entry.task.name,
        "known_to_prior": len(entry.ranked[name]) > 0,
        "default_chosen": entry.chosen[name] == entry.default,
        "from_databases": len(entry.known),
    }


def _row(kind: str, network: str, workload: str, template: str, cache_state: str, shares: Shares) -> dict[str, Any]:
    return {
        "part": "zero-shot",
        "kind": kind,
        "network": network,
        "workload": workload,
        "template": template,
        "cache": cache_state,
        "configurations": shares.configurations,
        "first": shares.first,
        "best_of_8": shares.best_of_8,
        "default": shares.default,
    }


def _predictor(prior: Prior, group: Group) -> TaskPredictor | None:
    if prior.mismatch(group.hardware, group.threads):
        return None
    target = tvm_compat.target_of(group.hardware)
    return Predictor(prior, target, group.threads, group.cache_state).task(group.func, group.space())
