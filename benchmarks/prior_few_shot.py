"""What a handful of measurements teach eight cost models of a task, on recordings.

    xgboost       boosted trees, from scratch: the cost model of `tune` where no prior knows the template
    network       a network with random weights, trained on the measurements
    fine-tuned    the same network, trained on the prior's data set before (transfer) and then on the measurements
    meta-trained  the same, adapted in closed form as it was meta-trained to be (`benchmarks/prior_networks.py`)
    attention     attention over knobs, meta-trained and adapted in the same way
    informed      boosted trees from scratch, with the shipped prior's prediction as one more feature
    committee     these trees and a Gaussian process, beside which that prediction has a vote of its own
    few-shot      the shipped prior's forest, its leaves refitted in closed form (`calumma.prior.few_shot`): what `tune`
                  is guided by

*Shots*: K configurations drawn at random are known; the rank correlation with the others' latencies, and the share of
the others' true best 10 % (64 at most) that is among as many predicted ones (top-k recall), both averaged over draws.
*Replay*: the evolutionary strategy with each model; measurements to 99 % of the final throughput with xgboost. All
searches have the same explorer, batch and start, and the default first; only the cost model differs, and with it what
the rest of the first batch is: what the model likes best, which without knowledge is random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks import corpora, sessions
from benchmarks.curves import Comparison, Ratio, Run
from benchmarks.prior_informed import InformedCommittee, InformedTrees
from benchmarks.prior_networks import (
    Attention,
    AttentionSettings,
    Ensemble,
    MetaTrainedModel,
    NetworkSettings,
    embedded,
    train,
    train_attention,
)
from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.keys import keys_of
from calumma.core.protocols import Indices
from calumma.core.values import Candidate, MeasureRecord
from calumma.cost_model import CostModel, GaussianProcess, GradientBoostedTrees
from calumma.cost_model.scoring import Features, Scores
from calumma.cost_model.trees import TreeSettings
from calumma.measure import ReplayRunner
from calumma.measure.recording import Corpus, load
from calumma.prior import dataset, judging, learning
from calumma.prior.few_shot import FewShotForest
from calumma.prior.predictor import Predictor, TaskPredictor
from calumma.prior.training import EMPHASIS
from calumma.prior.weights import Prior
from calumma.search.views import View
from calumma.space.subspace import SubSpace

SHOTS = (0, 4, 8, 16, 32, 64)
DRAWS = 5
SEEDS = 5
BUDGET = 128
BASELINE, SUBJECT = "xgboost", "few-shot"
_RECALL = 64
_STEPS = 100
_WORTH = 16.0
"""Measurements that the prior's vote in the committee is worth, as in `chameleon`."""


class GradientNetwork:
    """The predictor's network, trained by gradient descent on one task's measurements."""

    def __init__(self, ensemble: Ensemble, seed: int, pretrained: bool) -> None:
        self._ensemble = ensemble
        generator = torch.Generator().manual_seed(seed)
        self._weights = [
            torch.tensor(w) if pretrained else torch.randn(w.shape, generator=generator) * (2.0 / w.shape[1]) ** 0.5
            for w in self._ensemble.weights
        ]
        self._biases = [torch.tensor(b) if pretrained else torch.zeros(b.shape) for b in self._ensemble.biases]
        self._fitted = pretrained

    def fit(self, features: Features, scores: Scores) -> None:
        """Train from the same start on everything that is known."""
        worked = scores > 0
        if not worked.any():
            return
        weights = [w.clone().requires_grad_(True) for w in self._weights]
        biases = [b.clone().requires_grad_(True) for b in self._biases]
        x = torch.from_numpy(self._ensemble.normalised(features[worked]))
        y = torch.tensor(-np.log(scores[worked]), dtype=torch.float32)
        share = torch.exp(-EMPHASIS * (y - y.min()))
        share = share / share.sum()
        optimiser = torch.optim.Adam([*weights, *biases], 1e-3)
        for _ in range(_STEPS):
            off = _forward(x, weights, biases) - y
            off = off - (share * off).sum(dim=1, keepdim=True)
            loss = (share * off**2).sum(dim=1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self._trained = ([w.detach() for w in weights], [b.detach() for b in biases])
        self._fitted = True

    def predict(self, features: Features) -> Scores:
        """(N, F) -> (N,)."""
        if not self._fitted:
            return np.zeros(len(features))
        weights, biases = getattr(self, "_trained", (self._weights, self._biases))
        x = torch.from_numpy(self._ensemble.normalised(features))
        with torch.no_grad():
            return -_forward(x, weights, biases).mean(dim=0).numpy().astype(np.float64)


def _forward(x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> torch.Tensor:
    h = x[None]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        h = torch.relu(h @ weight + bias)
    return (h @ weights[-1] + biases[-1])[:, :, 0]


class Contender(NamedTuple):
    """A kind of cost model, for one recording."""

    table: Features
    """(M, F) what it sees of the recording's configurations."""
    model: Callable[[int], CostModel]
    """A fresh one, from a seed."""


@dataclass(frozen=True)
class Recording:
    """A recorded task, and the models that are compared on it, by name."""

    corpus: Corpus
    space: SubSpace
    contenders: Mapping[str, Contender]


class SeenSpace(View):
    """A recorded space with the features that a model sees."""

    def __init__(self, space: SubSpace, table: Features) -> None:
        super().__init__(space)
        self._table = table
        self._row = {key: row for row, key in enumerate(keys_of(space.members))}
        self.feature_names = tuple(map(str, range(table.shape[1])))

    def features(self, indices: Indices) -> Features:
        """(N, D) -> (N, F)."""
        return self._table[[self._row[key] for key in keys_of(indices)]]


class _Networks(NamedTuple):
    """What was trained on the prior's data set for one template."""

    ensemble: Ensemble
    ridge: float
    attention: Attention
    attention_ridge: float


def opened(prior: Prior, path: Path, folder: Path, say: Callable[[str], None], steps: int) -> dict[str, Recording]:
    """The recordings of tasks that the prior knows the template of, with networks trained on the prior's data set.

    Args:
        prior, path: the prior and its file, beside which its data set lies.
        folder: of the recordings.
        say: called with a line about what is going on.
        steps: of the training of the networks.
    """
    tvm = tvm_compat.load()
    data = dataset.load(path.with_suffix(".npz"))
    networks: dict[str, _Networks] = {}
    found = {}
    for name in corpora.names(folder):
        corpus = load(name, folder)
        if corpus.source.space != "template" or prior.mismatch(corpus.hardware, corpus.threads):
            continue
        space = corpus.space()
        predictor = Predictor(prior, tvm_compat.target_of(corpus.hardware), corpus.threads, corpus.cache_state)
        task = predictor.task(tvm.ir.load_json(corpus.workload.text), space.whole)
        if task is None:
            continue
        if corpus.template not in networks:
            say(f"training networks for {corpus.template}")
            groups = tuple(group for group in data.groups if group.template == corpus.template)
            examples = learning.examples(replace(data, groups=groups))
            samples = [example.sample(task.family.columns) for example in examples]
            columns = task.family.columns
            networks[corpus.template] = _Networks(
                *train(columns, samples, 0, NetworkSettings(steps=steps)),
                *train_attention(columns, samples, 0, AttentionSettings(steps=max(20, steps * 4 // 15))),
            )
        found[name] = Recording(corpus, space, _contenders(space, task, networks[corpus.template]))
    return found


def _contenders(space: SubSpace, task: TaskPredictor, networks: _Networks) -> dict[str, Contender]:
    own, outside = space.features(space.members), space.outside(space.members)
    columns = task.table(outside)
    ensemble, ridge, attention, attention_ridge = networks
    advised = np.concatenate([own, task.scores(outside)[:, None].astype(np.float32)], axis=1)
    standings = TreeSettings(standings=True)

    def committee(seed: int) -> CostModel:
        members = (GradientBoostedTrees(seed, standings), GaussianProcess(advised))
        return InformedCommittee(members, advised, _WORTH)

    return {
        BASELINE: Contender(own, GradientBoostedTrees),
        "network": Contender(columns, lambda seed: GradientNetwork(ensemble, seed, pretrained=False)),
        "fine-tuned": Contender(columns, lambda seed: GradientNetwork(ensemble, seed, pretrained=True)),
        "meta-trained": Contender(embedded(ensemble, columns), lambda _: MetaTrainedModel(ensemble.members, ridge)),
        "attention": Contender(
            embedded(attention, columns), lambda _: MetaTrainedModel(attention.members, attention_ridge)
        ),
        "informed": Contender(advised, lambda seed: InformedTrees(seed, standings)),
        "committee": Contender(advised, committee),
        SUBJECT: Contender(columns, lambda _: FewShotForest(task.family.order)),
    }


@threadpool_limits.wrap(limits=1)
def shots(recordings: Mapping[str, Recording], say: Callable[[str], None], draws: int = DRAWS) -> list[dict[str, Any]]:
    """One row per model and number of shots, averaged over recordings and draws."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for name, recording in recordings.items():
        say(f"few shots of {name}")
        throughput = recording.corpus.throughputs
        for draw in range(draws):
            order = np.random.default_rng([draw, len(throughput)]).permutation(len(throughput))
            for k in SHOTS:
                support, query = order[:k], order[k:]
                scale = throughput[support].max() if k else 1.0
                for label, contender in recording.contenders.items():
                    model = contender.model(draw)
                    model.fit(contender.table[support], throughput[support] / (scale or 1.0))
                    predicted = model.predict(contender.table[query])
                    found.setdefault((label, k), []).append(_judged(predicted, throughput[query]))
    return [
        {
            "part": "few-shot",
            "model": label,
            "shots": k,
            "rank_correlation": float(np.mean([correlation for correlation, _ in values])),
            "top_k_recall": float(np.mean([recall for _, recall in values])),
        }
        for (label, k), values in found.items()
    ]


def _judged(predicted: Scores, throughput: NDArray[np.float64]) -> tuple[float, float]:
    k = max(1, min(_RECALL, len(throughput) // 10))
    best = set(np.argsort(-throughput, kind="stable")[:k].tolist())
    chosen = set(np.argsort(-predicted, kind="stable")[:k].tolist()) if np.ptp(predicted) else set()
    return judging.correlation(predicted, throughput), len(best & chosen) / k


@threadpool_limits.wrap(limits=1)  # matrices are too small to be shared, beside other work most of all
def replayed(
    recordings: Mapping[str, Recording], say: Callable[[str], None], seeds: int = SEEDS, budget: int = BUDGET
) -> Comparison:
    """The evolutionary strategy guided by each of the models, on recordings."""
    runs: list[Run] = []
    for name, recording in recordings.items():
        records = recording.corpus.records(recording.space)
        for label in recording.contenders:
            say(f"replaying {name}, {label}")
            runs += [_replay(name, recording, records, label, seed, budget) for seed in range(seeds)]
    return Comparison(runs, BASELINE)


def _replay(
    name: str, recording: Recording, records: Sequence[MeasureRecord], label: str, seed: int, budget: int
) -> Run:
    corpus, contender = recording.corpus, recording.contenders[label]
    runner = ReplayRunner(records)
    run = sessions.search(
        "evolutionary",
        SeenSpace(recording.space, contender.table),
        lambda config: Candidate(corpus.workload, corpus.template, corpus.version, config),
        runner,
        sessions.ReplayClock(runner),
        workload=name,
        seed=seed,
        budget=budget,
        model=contender.model(seed),
    )
    return replace(run, strategy=label)


def measurement_ratio(comparison: Comparison, label: str = SUBJECT) -> Ratio:
    """Measurements with a model over those with xgboost, to 99 % of xgboost's final throughput; below 1 it needs
    fewer."""
    fewer = comparison.fewer("trials", label)
    return Ratio(1 / fewer.value, 1 / fewer.high, 1 / fewer.low)


_COLOURS = ("#999999", "#e69f00", "#f0e442", "#009e73", "#cc79a7", "#56b4e9", "#0072b2", "#d55e00")
"""Of Okabe & Ito: told apart by colour-blind readers, too."""


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows of `shots` into a file: rank correlation and top-k recall against measurements, by model.

    Raises:
        InputError: matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as missing:
        raise InputError(
            f"--plot draws with {missing.name}, which is not installed: pip install 'calumma[bench]'"
        ) from missing
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (quantity, title) in zip(
        panels, (("rank_correlation", "rank correlation"), ("top_k_recall", "top-k recall")), strict=True
    ):
        for model, colour in zip(dict.fromkeys(row["model"] for row in rows), _COLOURS, strict=True):
            values = [row[quantity] for row in rows if row["model"] == model]
            axes.plot(range(len(SHOTS)), values, color=colour, marker="o", markersize=4, label=model)
        axes.set(title=title, xlabel="measurements", xticks=range(len(SHOTS)), xticklabels=SHOTS, ylim=(-0.02, 1))
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    # Text stays text, and the same figures give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "few-shot"}):
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        except (OSError, ValueError) as error:
            raise InputError(f"--plot {path}: cannot be written ({error}): name a file such as few-shot.svg") from error
