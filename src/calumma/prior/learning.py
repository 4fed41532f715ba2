"""From a data set to a prior: one pair of forests per template, judged on workloads that it has not seen.

Groups are dealt to folds by network (a workload of no known network is one by itself); forests trained without a fold
predict it. What comes out are the metrics of the prior and the calibration of its errors, and nothing else: the forests
that are kept are trained on everything.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.protocols import Store
from calumma.core.values import COLLECTION, Hardware
from calumma.cost_model.scoring import aligned
from calumma.prior import features, library, training
from calumma.prior.dataset import Dataset, Group, from_records
from calumma.prior.forest import Floats
from calumma.prior.predictor import Gains, gains_over
from calumma.prior.training import Sample, TrainingSettings
from calumma.prior.weights import NEVER, Family, Prior
from calumma.target import Target
from calumma.tasks.roofline import MachineLimits, machine_limits

_LEAST_GROUPS = 8
"""Workloads of a template, below which it is left to its default."""
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
    def network(self) -> str:
        return self.group.network or self.group.workload


@dataclass(frozen=True)
class Judgement:
    """How well configurations of one workload were ranked, by a model that had not seen it."""

    top1: float
    """Best latency over that of the configuration chosen."""
    top8: float
    """The same for the best of the first eight."""
    default: float | None
    """The same for the template's default; None if it was not measured."""
    correlation: float
    """Spearman's, of predicted and true latencies."""


def gather(
    stores: Iterable[tuple[str, Store]],
    data: str,
    hardware: Hardware,
    toolchain: str,
    *,
    exclude: Collection[str] = frozenset(),
    say: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Take together what can be learnt for a machine.

    Args:
        stores: records, and what to call where they come from.
        data: a data set to add, as in `library.data_for`.
        hardware, toolchain: of the machine.
        exclude: hashes of workloads to leave out.
        say: called with a line about every part.

    Raises:
        InputError: the data set cannot be used.
    """
    gathered = Dataset(hardware, toolchain, (), {})
    for name, store in stores:
        found = from_records(
            store.records(),
            hardware=hardware,
            toolchain=toolchain,
            networks={s.id: s.model for s in store.sessions() if s.options.get("kind") != COLLECTION},
            exclude=exclude,
        )
        say(f"{found.rows} configurations of {len(found.workloads)} workloads in {name}")
        gathered = gathered.merged(found)
    known = library.data_for(data, hardware, toolchain)
    if known is not None:
        say(f"{known.rows} configurations of {len(known.workloads)} workloads in the data set {data}")
        gathered = gathered.merged(known.without(exclude))
    return gathered


def examples(dataset: Dataset) -> list[Example]:
    """Look at all groups through today's design spaces.

    Raises:
        InputError: a group does not fit its design space any more.
    """
    target = tvm_compat.target_of(dataset.hardware)
    limits = limits_of(target, {group.threads for group in dataset.groups})
    return [_example(group, target, limits[group.threads]) for group in dataset.groups]


def limits_of(target: Target, threads: Sequence[int] | set[int]) -> dict[int, MachineLimits]:
    """Threads -> limits of the machine."""
    return {count: machine_limits(target, count) for count in sorted(threads)}


def _example(group: Group, target: Target, limits: MachineLimits) -> Example:
    space = group.space(target)
    view = features.view(group.func, space, limits, group.cache_state)
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


def learn(
    dataset: Dataset,
    name: str,
    *,
    seed: int = 0,
    settings: TrainingSettings | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Prior:
    """Train a prior.

    Args:
        dataset: what to learn from.
        name: what the prior is called.
        seed: of everything random; the same data and seed give the same weights on the same machine.
        settings: sizes, the defaults if None.
        say: called with a line about what is going on.

    Raises:
        InputError: there is too little data.
    """
    settings = settings or TrainingSettings()
    everything = examples(dataset)
    families: dict[str, Family] = {}
    metrics: dict[str, Any] = {}
    for template in sorted({example.group.template for example in everything}):
        members = [example for example in everything if example.group.template == template]
        if len(members) < _LEAST_GROUPS:
            say(f"{template}: {len(members)} workloads are too few ({_LEAST_GROUPS} are needed): left to its default")
            continue
        family, judged = _family(members, seed, settings, say)
        families[template] = family
        metrics[template] = judged
    if not families:
        raise InputError(
            f"nothing to learn from: no template has {_LEAST_GROUPS} measured workloads with 2 configurations each; "
            "tune more models, or run calumma collect"
        )
    return Prior(
        name=name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        hardware=dataset.hardware,
        toolchain=dataset.toolchain,
        limits=limits_of(tvm_compat.target_of(dataset.hardware), {group.threads for group in dataset.groups}),
        data={
            "digest": dataset.digest,
            "rows": dataset.rows,
            "workloads": sorted(dataset.workloads),
            "cache_states": sorted({group.cache_state for group in dataset.groups}),
            "networks": sorted({group.network for group in dataset.groups} - {""}),
        },
        settings={"seed": seed, **asdict(settings)},
        metrics=metrics,
        families=families,
    )


def _family(
    members: Sequence[Example], seed: int, settings: TrainingSettings, say: Callable[[str], None]
) -> tuple[Family, dict[str, Any]]:
    """One template: folds, calibration, and the ensemble of everything."""
    columns = columns_of(members)
    template, version = members[0].group.template, members[0].group.version
    seen: list[tuple[Gains, Example]] = []
    ratios: list[NDArray[np.float64]] = []
    levels: list[float] = []
    fold_of = folds([example.network for example in members], _FOLDS)
    for fold in range(max(fold_of) + 1):
        held_out = [example for example, f in zip(members, fold_of, strict=True) if f == fold]
        rest = [example for example, f in zip(members, fold_of, strict=True) if f != fold]
        if not rest:
            continue
        order, level = training.train(columns, samples(rest, columns), seed, settings)
        for example in held_out:
            table = aligned(example.table, example.names, columns)
            outputs = order.predict(table)
            default = order.predict(aligned(example.default, example.names, columns))
            gains = gains_over(default, outputs)
            latency = level.predict(table).mean(axis=0) + outputs.mean(axis=0)
            levels.append(float(np.median(latency - example.target)))
            if example.default_row is not None:
                ratios.append(_error_ratios(gains, example))
            if len(example.target) >= _LEAST_JUDGED:
                seen.append((gains, example))
        say(f"{template}: {len(rest)} workloads learnt, {len(held_out)} held out predicted")
    spread = max(0.2, float(np.sqrt(np.mean(np.concatenate(ratios) ** 2)))) if ratios else 1.0
    level_error = max(0.01, float(np.std(levels))) if levels else 1.0
    order, level = training.train(columns, samples(members, columns), seed, settings)
    caution, least_gain = _trust(seen)
    family = Family(template, version, order, level, spread, level_error, caution, least_gain)
    judgements = [judged(*entry, caution, least_gain) for entry in seen]
    return family, {"workloads": len(members), **summary(judgements)}


def _trust(seen: Sequence[tuple[Gains, Example]]) -> tuple[float, float]:
    """Caution and least gain with which the choices by predicted gains were best.

    Those that never choose anything but the default, unless choosing was better for certain, which takes at least four
    workloads for which something else was chosen.
    """
    known = [entry for entry in seen if entry[1].default_row is not None]
    best = (_CAUTIONS[0], NEVER)
    lead = 0.0
    for caution in _CAUTIONS:
        for least_gain in _LEAST_GAINS:
            found = [judged(*entry, caution, least_gain) for entry in known]
            gains = np.log([j.top1 / j.default for j in found if j.default is not None])
            if len(gains) < _LEAST_GROUPS:
                continue
            gains = np.clip(gains, -_MOST_GAIN, _MOST_GAIN)
            mean, error = float(gains.mean()), float(gains.std() / np.sqrt(len(gains)))
            if mean > _SURE * error and mean > lead:
                best, lead = (caution, least_gain), mean
    return best


def excluded(path: Path) -> frozenset[str]:
    """Workload hashes of a JSON file: an object of lists, by name of the network.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        networks = json.loads(path.read_text())
        hashes = [hash_ for members in networks.values() for hash_ in members]
        if not all(type(hash_) is str for hash_ in hashes):
            raise ValueError("a hash is no text")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"{path}: no workloads to leave out can be read from it ({error}); expected "
            '{"network": ["hash", ...], ...}'
        ) from error
    return frozenset(hashes)


def columns_of(members: Sequence[Example]) -> tuple[str, ...]:
    """The columns that any of the examples has, in a fixed order."""
    return tuple(sorted({name for example in members for name in example.names}))


def samples(members: Sequence[Example], columns: Sequence[str]) -> list[Sample]:
    """Examples as the training takes them."""
    return [
        Sample(example.group.workload, aligned(example.table, example.names, columns), example.target)
        for example in members
    ]


def judged(gains: Gains, example: Example, caution: float, least_gain: float) -> Judgement:
    """What the predicted gains of a workload's M measured configurations are worth."""
    score = gains.score(caution)
    order = np.argsort(-score, kind="stable")
    shares = np.exp(example.target.min() - example.target)
    default = None if example.default_row is None else float(shares[example.default_row])
    first = float(shares[order[0]])
    return Judgement(
        top1=first if default is None or score[order[0]] > least_gain else default,
        top8=float(shares[order[:8]].max()),
        default=default,
        correlation=correlation(gains.mean, -example.target),
    )


def correlation(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Spearman's rank correlation; 0 where one of them is constant."""
    if any(np.ptp(values) == 0 for values in (a, b)):
        return 0.0
    x, y = (np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float) for values in (a, b))
    return float(np.corrcoef(x, y)[0, 1])


def summary(judgements: Sequence[Judgement]) -> dict[str, float]:
    """Geometric means of shares, mean of correlations; empty without judgements."""
    if not judgements:
        return {}
    defaults = [j.default for j in judgements if j.default is not None]

    def geomean(values: Sequence[float]) -> float:
        return float(np.exp(np.mean(np.log(values))))

    found = {
        "judged": len(judgements),
        "top1": geomean([j.top1 for j in judgements]),
        "top8": geomean([j.top8 for j in judgements]),
        "correlation": float(np.mean([j.correlation for j in judgements])),
    }
    return found | ({"default": geomean(defaults)} if defaults else {})


def folds(networks: Sequence[str], n: int) -> list[int]:
    """A fold for every group; all of a network in one, and the same whatever else is in the data."""
    order = sorted(set(networks), key=lambda network: hashlib.sha256(network.encode()).digest())
    fold = {network: i % min(n, len(order)) for i, network in enumerate(order)}
    return [fold[network] for network in networks]


def _error_ratios(gains: Gains, example: Example) -> NDArray[np.float64]:
    """Errors of predicted gains of the faster half, over the members' deviation."""
    true = example.target[example.default_row] - example.target
    fast = example.target <= np.median(example.target)
    return np.clip((gains.mean - true)[fast] / (gains.deviation[fast] + 0.01), -5, 5)
