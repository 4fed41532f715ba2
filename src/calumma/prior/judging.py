"""Judging predictions on workloads, and on CPUs, that a forest has not seen; and when to trust it.

Groups are dealt to folds by network; a workload of no known network is one by itself, together with the same layer on
other CPUs (`Example.layer`). Two questions are asked of each template:

    a CPU of the data   forests trained without a fold predict it; every CPU and number of threads is judged by itself
    a CPU never seen    each CPU is left out in turns, and half of the layers everywhere: forests that saw neither
                        predict that half on that CPU, as they are ("unseen"), and refitted to `MEASURED` configurations
                        of the other half on that CPU ("adapted")

A template's choices are trusted where they beat its default by twice the standard error. For CPUs never seen, the CPUs
are what was sampled: the error is that of a mean over CPUs, each with an error of its own, and on none of them may the
choices have been slower than the defaults. With data of one CPU nothing can be said of others.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calumma.core.rng import generator
from calumma.cost_model.scoring import aligned
from calumma.prior import features, few_shot, training
from calumma.prior.dataset import Group
from calumma.prior.forest import Floats, Forest
from calumma.prior.machines import Machine, place, target_of
from calumma.prior.predictor import Gains, gains_over
from calumma.prior.training import Sample, TrainingSettings
from calumma.prior.weights import Trust

LEAST_GROUPS = 8
"""Workloads of a template, below which it is left to its default."""
MEASURED = 136
"""Configurations that a minute of measuring comes to, over all templates: 2.3 a second, on two cores."""
EACH = 8
"""Of them, those of one workload."""
_FOLDS = 4
_CAUTIONS = (1.0, 2.0, 3.0)
"""Without caution the mean may be a little better, but a wrong guess halves a speed that was fine."""
_LEAST_GAINS = (0.02, 0.05, 0.1, 0.15)
_SURE = 2.0
"""Standard errors by which choosing must be better than the default."""
_MOST_GAIN = 0.2
"""What the choice for one workload can gain or lose at most, as a logarithm: a measurement may be wrong by a factor of
two, and one such default must not speak for all choices."""
_LEAST_JUDGED = 8
"""Configurations of a workload from which on an order can be judged."""


@dataclass(frozen=True)
class Example:
    """A group with its features."""

    group: Group
    names: tuple[str, ...]
    table: Floats
    """(M, columns), of the configurations that worked."""
    target: NDArray[np.float64]
    """(M,) log(latency / bound)."""
    default: Floats
    """(1, columns) of the space's default."""
    default_row: int | None
    """Where the default is among the rows, if it was measured."""

    @property
    def cpu(self) -> str:
        """Fingerprint of its CPU."""
        return self.group.hardware.fingerprint

    @functools.cached_property
    def layer(self) -> str:
        """Its network; without one, what the same layer has in common on all CPUs, whatever their vectors."""
        values = [self.default[0, self.names.index(f"task.{name}")] for name in ("flops", "weight_bytes", "arguments")]
        return self.group.network or " ".join([self.group.template, *(f"{value:.3f}" for value in values)])

    @property
    def comparable(self) -> bool:
        """Whether an order can be judged by it, beside the default."""
        return self.default_row is not None and len(self.target) >= _LEAST_JUDGED

    def sample(self, columns: Sequence[str]) -> Sample:
        """As the training takes it."""
        return Sample(self.group.workload, aligned(self.table, self.names, columns), self.target)


def example(group: Group, machine: Machine) -> Example:
    """Look at a group through today's design space.

    Raises:
        InputError: it does not fit that any more.
    """
    space = group.space()
    view = features.view(group.func, space, target_of(group.hardware), machine.limits[group.threads], group.cache_state)
    worked = np.isfinite(group.latency_s)
    indices = group.encoded(space)[worked]
    default = space.default()
    rows = np.flatnonzero((indices == default).all(axis=1))
    return Example(
        group,
        view.names,
        view.table(indices),
        np.log(group.latency_s[worked] / view.bound_s),
        view.table(default[None, :]),
        int(rows[0]) if len(rows) else None,
    )


class Seen(NamedTuple):
    """What was predicted of a workload that a forest had not seen."""

    gains: Gains
    example: Example


@dataclass(frozen=True)
class Verdict:
    """What a template's forests are worth where they were not trained."""

    trusts: dict[str, Trust]
    """As in `Family.trusts`."""
    spread: float
    level_error: float
    """As in `Family`."""
    metrics: dict[str, Any]


def judge(
    members: Sequence[Example],
    columns: Sequence[str],
    seed: int,
    settings: TrainingSettings,
    say: Callable[[str], None],
    share: float,
) -> Verdict:
    """Judge a template by workloads and CPUs held out in turns.

    Args:
        members: its examples.
        columns: of the forests.
        seed, settings: of the training.
        say: called with a line about what is going on.
        share: of a minute's measurements, what is the template's.
    """
    template = members[0].group.template
    seen: list[Seen] = []
    ratios: list[NDArray[np.float64]] = []
    levels: list[float] = []
    fold_of = folds([member.layer for member in members], _FOLDS)
    for fold in range(max(fold_of) + 1):
        rest = [member for member, f in zip(members, fold_of, strict=True) if f != fold]
        if not rest:
            continue
        order, level = training.train(columns, [member.sample(columns) for member in rest], seed, settings)
        held_out = [member for member, f in zip(members, fold_of, strict=True) if f == fold]
        for member in held_out:
            table = aligned(member.table, member.names, columns)
            gains = gains_of(order, member)
            latency = level.predict(table).mean(axis=0) + order.predict(table).mean(axis=0)
            levels.append(float(np.median(latency - member.target)))
            if member.default_row is not None:
                ratios.append(_error_ratios(gains, member))
            if member.comparable:
                seen.append(Seen(gains, member))
        say(f"{template}: {len(rest)} workloads learnt, {len(held_out)} held out predicted")
    left_out = cpus_left_out(members, columns, seed, settings, say, share)
    places = sorted({_place(entry) for entry in seen})
    trusts = {name: trust([[entry for entry in seen if _place(entry) == name]]) for name in places}
    trusts |= {kind: trust(list(by_cpu.values()), elsewhere=True) for kind, by_cpu in left_out.items() if by_cpu}
    metrics: dict[str, Any] = {
        "workloads": len(members),
        **summary(judged(entry, trusts[_place(entry)]) for entry in seen),
        "cpus": {
            name: summary(judged(entry, trusts[name]) for entry in seen if _place(entry) == name) for name in places
        },
        **{
            kind: {cpu: summary(judged(entry, trusts[kind]) for entry in entries) for cpu, entries in by_cpu.items()}
            for kind, by_cpu in left_out.items()
        },
    }
    return Verdict(
        trusts,
        spread=max(0.2, float(np.sqrt(np.mean(np.concatenate(ratios) ** 2)))) if ratios else 1.0,
        level_error=max(0.01, float(np.std(levels))) if levels else 1.0,
        metrics=metrics,
    )


def cpus_left_out(
    members: Sequence[Example],
    columns: Sequence[str],
    seed: int,
    settings: TrainingSettings,
    say: Callable[[str], None],
    share: float,
) -> dict[str, dict[str, list[Seen]]]:
    """What forests say of CPUs that they were not trained on: "unseen" and "adapted", each by CPU.

    The layers that are judged took no part on any CPU; arguments as for `judge`. Empty with data of one CPU.
    """
    found: dict[str, dict[str, list[Seen]]] = {"unseen": {}, "adapted": {}}
    halves = folds([member.layer for member in members], 2)
    cpus = sorted({member.cpu for member in members})
    for cpu in cpus if len(cpus) > 1 else ():
        for half in (0, 1):
            dealt = list(zip(members, halves, strict=True))
            elsewhere = [member for member, h in dealt if h != half and member.cpu != cpu]
            support = [member for member, h in dealt if h != half and member.cpu == cpu]
            asked = [member for member, h in dealt if h == half and member.cpu == cpu]
            asked = [member for member in asked if member.comparable]
            if not elsewhere or not asked:
                continue
            order, _ = training.train(columns, [member.sample(columns) for member in elsewhere], seed, settings)
            moved = adapted(order, minute(support, columns, share, seed))
            for kind, forest in (("unseen", order), ("adapted", moved)):
                found[kind].setdefault(cpu, []).extend(Seen(gains_of(forest, member), member) for member in asked)
        name = next(member.group.hardware.mcpu for member in members if member.cpu == cpu)
        say(
            f"{members[0].group.template}: {len(found['unseen'].get(cpu, ()))} workloads of {name} predicted without it"
        )
    return found


def minute(support: Sequence[Example], columns: Sequence[str], share: float, seed: int) -> list[Sample]:
    """A minute's measurements of a template on a CPU: the default and a few random ones of some workloads."""
    found = []
    for member in sorted(support, key=lambda member: member.group.workload)[: max(1, round(share * MEASURED / EACH))]:
        sample = member.sample(columns)
        drawn = generator(seed, "minute", sample.workload).permutation(len(sample.target))
        rows = list(dict.fromkeys([*([] if member.default_row is None else [member.default_row]), *drawn]))[:EACH]
        found.append(replace(sample, table=sample.table[rows], target=sample.target[rows]))
    return found


def adapted(order: Forest, samples: Sequence[Sample]) -> Forest:
    """The forest moved by measurements."""
    tasks = [(sample.table, sample.target) for sample in samples]
    return few_shot.refitted(order, tasks, few_shot.SHARED_RIDGE) if tasks else order


def gains_of(forest: Forest, member: Example) -> Gains:
    """What a forest says of an example's configurations."""
    default, outputs = (
        forest.predict(aligned(table, member.names, forest.columns)) for table in (member.default, member.table)
    )
    return gains_over(default, outputs)


def _place(entry: Seen) -> str:
    return place(entry.example.group.hardware, entry.example.group.threads)


# -- what it is worth -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """How well configurations of one workload were ranked, by a model that had not seen it."""

    top1: float
    """Best latency over that of the configuration chosen."""
    top8: float
    """The same for the best of the first eight."""
    default: float
    """The same for the template's default."""
    correlation: float
    """Spearman's, of predicted and true latencies."""


def trust(cpus: Sequence[Sequence[Seen]], elsewhere: bool = False) -> Trust:
    """Caution and least gain with which the choices by predicted gains were best, over the CPUs.

    Those that never choose anything but the default, unless choosing was better for certain.

    Args:
        cpus: what was predicted on each; each needs `LEAST_GROUPS` workloads.
        elsewhere: whether it is to hold for other CPUs than these, of which there have to be two.
    """
    best, lead = Trust(), 0.0
    if min(map(len, cpus), default=0) < LEAST_GROUPS or (elsewhere and len(cpus) < 2):
        return best
    for caution in _CAUTIONS:
        for least_gain in _LEAST_GAINS:
            tried = Trust(caution, least_gain)
            gains = [np.array([_gain(judged(entry, tried)) for entry in entries]) for entries in cpus]
            means = np.array([values.mean() for values in gains])
            mean, error = float(means.mean()), _error(gains, means)
            if mean > _SURE * error and mean > lead and means.min() >= 0:
                best, lead = tried, mean
    return best


def _error(gains: Sequence[NDArray[np.float64]], means: NDArray[np.float64]) -> float:
    """Standard error of the mean of the CPUs' means: their own errors, and how much they differ."""
    own = float(np.mean([values.var() / len(values) for values in gains]))
    between = float(means.var(ddof=1)) if len(means) > 1 else 0.0
    return float(np.sqrt((own + between) / len(means)))


def _gain(found: Judgement) -> float:
    return float(np.clip(np.log(found.top1 / found.default), -_MOST_GAIN, _MOST_GAIN))


def judged(entry: Seen, trusted: Trust) -> Judgement:
    """What the predicted gains of a comparable example's M configurations are worth."""
    gains, member = entry
    score = gains.score(trusted.caution)
    order = np.argsort(-score, kind="stable")
    shares = np.exp(member.target.min() - member.target)
    default = float(shares[member.default_row])
    return Judgement(
        top1=float(shares[order[0]]) if score[order[0]] > trusted.least_gain else default,
        top8=float(shares[order[:8]].max()),
        default=default,
        correlation=correlation(gains.mean, -member.target),
    )


def correlation(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Spearman's rank correlation; 0 where one of them is constant."""
    if any(np.ptp(values) == 0 for values in (a, b)):
        return 0.0
    x, y = (np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float) for values in (a, b))
    return float(np.corrcoef(x, y)[0, 1])


def summary(judgements: Iterable[Judgement]) -> dict[str, float]:
    """Geometric means of shares, mean of correlations; empty without judgements."""
    found = list(judgements)
    if not found:
        return {}

    def geomean(values: Sequence[float]) -> float:
        return float(np.exp(np.mean(np.log(values))))

    return {
        "judged": len(found),
        "top1": geomean([j.top1 for j in found]),
        "top8": geomean([j.top8 for j in found]),
        "default": geomean([j.default for j in found]),
        "correlation": float(np.mean([j.correlation for j in found])),
    }


def folds(layers: Sequence[str], n: int) -> list[int]:
    """A fold for every group; all of a layer or network in one, and the same whatever else is in the data."""
    order = sorted(set(layers), key=lambda layer: hashlib.sha256(layer.encode()).digest())
    fold = {layer: i % min(n, len(order)) for i, layer in enumerate(order)}
    return [fold[layer] for layer in layers]


def _error_ratios(gains: Gains, member: Example) -> NDArray[np.float64]:
    """Errors of predicted gains of the faster half, over the members' deviation."""
    true = member.target[member.default_row] - member.target
    fast = member.target <= np.median(member.target)
    return np.clip((gains.mean - true)[fast] / (gains.deviation[fast] + 0.01), -5, 5)
