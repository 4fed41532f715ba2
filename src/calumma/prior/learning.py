"""From a data set to a prior: one ensemble per template, judged on workloads that it has not seen.

Groups are dealt to folds by network (a workload of no known network is one by itself); an ensemble trained without a
fold predicts it. What comes out is kept in three places: the metrics of the prior, the calibration of its errors, and
nowhere else: the ensemble that is kept is trained on everything.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.values import Hardware
from calumma.prior import features, predictor
from calumma.prior.dataset import Dataset, Group
from calumma.prior.mlp import Floats
from calumma.prior.weights import Family, Prior
from calumma.tasks.roofline import MachineLimits, machine_limits

_LEAST_GROUPS = 8
"""Workloads of a template, below which it is left to its default."""
_FOLDS = 4
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


def examples(dataset: Dataset) -> list[Example]:
    """Look at all groups through today's design spaces.

    Raises:
        InputError: a group does not fit its design space any more.
    """
    limits = limits_of(dataset.hardware, {group.threads for group in dataset.groups})
    return [_example(group, dataset.hardware, limits[group.threads]) for group in dataset.groups]


def limits_of(hardware: Hardware, threads: Sequence[int] | set[int]) -> dict[int, MachineLimits]:
    """Threads -> limits of the machine."""
    return {count: machine_limits(hardware, count) for count in sorted(threads)}


def _example(group: Group, hardware: Hardware, limits: MachineLimits) -> Example:
    space = group.space(hardware)
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
    settings: Any = None,
    say: Callable[[str], None] = lambda line: None,
) -> Prior:
    """Train a prior.

    Args:
        dataset: what to learn from.
        name: what the prior is called.
        seed: of everything random; the same data and seed give the same weights on the same machine.
        settings: `training.TrainingSettings`, the defaults if None.
        say: called with a line about what is going on.

    Raises:
        InputError: torch is missing, or there is too little data.
    """
    training = load_training()
    settings = settings or training.TrainingSettings()
    everything = examples(dataset)
    families: dict[str, Family] = {}
    metrics: dict[str, Any] = {}
    for template in sorted({example.group.template for example in everything}):
        members = [example for example in everything if example.group.template == template]
        if len(members) < _LEAST_GROUPS:
            say(f"{template}: {len(members)} workloads are too few ({_LEAST_GROUPS} are needed): left to its default")
            continue
        family, judged = _family(members, seed, settings, training, say)
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
        limits=limits_of(dataset.hardware, {group.threads for group in dataset.groups}),
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
    members: Sequence[Example], seed: int, settings: Any, training: Any, say: Callable[[str], None]
) -> tuple[Family, dict[str, Any]]:
    """One template: folds, calibration, and the ensemble of everything."""
    columns = columns_of(members)
    template, version = members[0].group.template, members[0].group.version
    judgements: list[Judgement] = []
    ratios: list[NDArray[np.float64]] = []
    levels: list[float] = []
    fold_of = folds([example.network for example in members], _FOLDS)
    for fold in range(max(fold_of) + 1):
        held_out = [example for example, f in zip(members, fold_of, strict=True) if f == fold]
        rest = [example for example, f in zip(members, fold_of, strict=True) if f != fold]
        ensemble, ridge = training.train(columns, samples(rest, columns, training), seed, settings)
        trial = Family(template, version, ensemble, 1.0, 1.0, ridge)
        for example in held_out:
            outputs = ensemble.predict(features.aligned(example.table, example.names, columns))
            default = ensemble.predict(features.aligned(example.default, example.names, columns))
            levels.append(float(np.median(outputs.mean(axis=0) - example.target)))
            if example.default_row is not None:
                ratios.append(_error_ratios(outputs, default, example))
            if len(example.target) >= _LEAST_JUDGED:
                judgements.append(judge(trial, example))
        say(f"{template}: {len(rest)} workloads learnt, {len(held_out)} held out predicted")
    spread = max(0.2, float(np.sqrt(np.mean(np.concatenate(ratios) ** 2)))) if ratios else 1.0
    level_error = max(0.01, float(np.std(levels)))
    ensemble, ridge = training.train(columns, samples(members, columns, training), seed, settings)
    family = Family(template, version, ensemble, spread, level_error, ridge)
    return family, {"workloads": len(members), **summary(judgements)}


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


def samples(members: Sequence[Example], columns: Sequence[str], training: Any) -> list[Any]:
    """Examples as the training takes them."""
    return [
        training.Sample(example.group.workload, features.aligned(example.table, example.names, columns), example.target)
        for example in members
    ]


def judge(family: Family, example: Example) -> Judgement:
    """Rank the measured configurations of a workload by a family's score."""
    columns = family.ensemble.columns
    outputs = family.ensemble.predict(features.aligned(example.table, example.names, columns))
    default = family.ensemble.predict(features.aligned(example.default, example.names, columns))
    gains = default - outputs
    score = gains.mean(axis=0) - predictor.CAUTION * family.spread * gains.std(axis=0)
    return judged(score, example)


def judged(score: NDArray[np.floating[Any]], example: Example) -> Judgement:
    """What an order (higher score first) of the rows of a workload is worth."""
    order = np.argsort(-score, kind="stable")
    best = example.target.min()
    shares = np.exp(best - example.target)
    return Judgement(
        top1=float(shares[order[0]]),
        top8=float(shares[order[:8]].max()),
        default=None if example.default_row is None else float(shares[example.default_row]),
        correlation=correlation(-score, example.target),
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


def _error_ratios(outputs: Floats, default: Floats, example: Example) -> NDArray[np.float64]:
    """Errors of predicted gains of the faster half, over the members' deviation."""
    gains = default - outputs
    true = example.target[example.default_row] - example.target
    error = gains.mean(axis=0) - true
    fast = example.target <= np.median(example.target)
    return np.clip(error[fast] / (gains.std(axis=0)[fast] + 0.01), -5, 5)


def load_training() -> Any:
    """The module that trains, which needs torch. Raises InputError if that is missing."""
    try:
        from calumma.prior import training
    except ModuleNotFoundError as missing:
        raise InputError(
            f"learning a prior needs torch, and {missing.name} is not installed: pip install 'calumma[torch]'"
        ) from missing
    return training
