"""What a handful of measurements teach six cost models of a task, on recordings.

    xgboost      boosted trees, from scratch
    network      a network with random weights, trained on the measurements
    fine-tuned   the same network as it was trained on the prior's data set (transfer), then trained on the measurements
    few-shot     the same, adapted in closed form as it was meta-trained to be (`benchmarks/prior_networks.py`)
    attention    attention over knobs, meta-trained and adapted in the same way
    informed     boosted trees from scratch, with the prior's prediction as one more feature

*Shots*: K configurations drawn at random are known; the rank correlation with the others' latencies, and the share of
the others' true best 10 % (64 at most) that is among as many predicted ones (top-k recall), both averaged over draws.
*Replay*: the evolutionary strategy with each model; measurements to 99 % of the final throughput with xgboost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import corpora, sessions
from benchmarks.curves import Comparison, Ratio, Run
from benchmarks.prior_networks import (
    EMPHASIS,
    Attention,
    AttentionSettings,
    Ensemble,
    FewShotModel,
    NetworkSettings,
    train,
    train_attention,
)
from benchmarks.subspace import SubSpace
from calumma import tvm_compat
from calumma.core.protocols import Indices
from calumma.core.values import Candidate, MeasureRecord
from calumma.cost_model import CostModel, GradientBoostedTrees, InformedTrees
from calumma.cost_model.base import Features, Scores
from calumma.measure import ReplayRunner
from calumma.prior import dataset, learning
from calumma.prior.predictor import Predictor, TaskPredictor
from calumma.prior.weights import Prior

SHOTS = (0, 4, 8, 16, 32, 64)
DRAWS = 5
SEEDS = 5
BUDGET = 128
BASELINE = "xgboost"
_RECALL = 64
_STEPS = 150


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


@dataclass(frozen=True)
class Recording:
    """A recorded task, and what was learnt for it."""

    corpus: corpora.Corpus
    space: SubSpace
    task: TaskPredictor
    ensemble: Ensemble
    """Trained on the prior's data set, of which the task is no part."""
    ridge: float
    attention: Attention
    attention_ridge: float

    def models(self, seed: int) -> dict[str, CostModel]:
        """A fresh model of each kind."""
        return {
            BASELINE: GradientBoostedTrees(seed),
            "network": GradientNetwork(self.ensemble, seed, pretrained=False),
            "fine-tuned": GradientNetwork(self.ensemble, seed, pretrained=True),
            "few-shot": FewShotModel(self.ensemble, self.ridge),
            "attention": FewShotModel(self.attention, self.attention_ridge),
            "informed": InformedTrees(seed),
        }

    def features(self, model: str, indices: Indices) -> Features:
        """What a model sees of configurations (N, D)."""
        own = self.space.features(indices)
        if model == BASELINE:
            return own
        outside = self.space.outside(indices)
        if model == "informed":
            return np.concatenate([own, self.task.scores(outside)[:, None].astype(np.float32)], axis=1)
        return self.task.table(outside)


class SeenSpace:
    """A recorded space with the features that a model sees."""

    def __init__(self, recording: Recording, model: str) -> None:
        self._recording = recording
        self._model = model
        width = recording.features(model, recording.space.default()[None, :]).shape[1]
        self.feature_names = tuple(map(str, range(width)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recording.space, name)

    def features(self, indices: Indices) -> Features:
        """(N, D) -> (N, F)."""
        return self._recording.features(self._model, indices)


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
    networks: dict[str, tuple[Ensemble, float, Attention, float]] = {}
    found = {}
    for name in corpora.names(folder):
        corpus = corpora.load(name, folder)
        if corpus.source.space != "template" or prior.mismatch(corpus.hardware, corpus.threads):
            continue
        space = corpus.space()
        predictor = Predictor(prior, corpus.hardware, corpus.threads, corpus.cache_state)
        task = predictor.task(tvm.ir.load_json(corpus.workload.text), space.whole)
        if task is None:
            continue
        if corpus.template not in networks:
            say(f"training networks for {corpus.template}")
            groups = tuple(group for group in data.groups if group.template == corpus.template)
            samples = learning.samples(learning.examples(replace(data, groups=groups)), task.family.columns)
            columns = task.family.columns
            networks[corpus.template] = (
                *train(columns, samples, 0, NetworkSettings(steps=steps)),
                *train_attention(columns, samples, 0, AttentionSettings(steps=max(20, steps * 2 // 5))),
            )
        found[name] = Recording(corpus, space, task, *networks[corpus.template])
    return found


def shots(recordings: Mapping[str, Recording], say: Callable[[str], None], draws: int = DRAWS) -> list[dict[str, Any]]:
    """One row per model and number of shots, averaged over recordings and draws."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for name, recording in recordings.items():
        say(f"few shots of {name}")
        members, throughput = recording.space.members, recording.corpus.throughputs
        tables = {label: recording.features(label, members) for label in recording.models(0)}
        for draw in range(draws):
            order = np.random.default_rng([draw, len(members)]).permutation(len(members))
            for k in SHOTS:
                support, query = order[:k], order[k:]
                scale = throughput[support].max() if k else 1.0
                for label, model in recording.models(draw).items():
                    model.fit(tables[label][support], throughput[support] / scale)
                    predicted = model.predict(tables[label][query])
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
    return learning.correlation(predicted, throughput), len(best & chosen) / k


def replayed(
    recordings: Mapping[str, Recording], say: Callable[[str], None], seeds: int = SEEDS, budget: int = BUDGET
) -> Comparison:
    """The evolutionary strategy guided by each of the models, on recordings."""
    runs: list[Run] = []
    for name, recording in recordings.items():
        records = recording.corpus.records(recording.space)
        for label in recording.models(0):
            say(f"replaying {name}, {label}")
            runs += [_replay(name, recording, records, label, seed, budget) for seed in range(seeds)]
    return Comparison(runs, BASELINE)


def _replay(
    name: str, recording: Recording, records: Sequence[MeasureRecord], label: str, seed: int, budget: int
) -> Run:
    corpus = recording.corpus
    runner = ReplayRunner(records)
    run = sessions.search(
        "evolutionary",
        SeenSpace(recording, label),
        lambda config: Candidate(corpus.workload, corpus.template, corpus.version, config),
        runner,
        sessions.ReplayClock(runner),
        workload=name,
        seed=seed,
        budget=budget,
        model=recording.models(seed)[label],
    )
    return replace(run, strategy=label)


def measurement_ratio(comparison: Comparison) -> Ratio:
    """Measurements of the few-shot model over xgboost's, to 99 % of xgboost's final throughput; below 1 it needs
    fewer."""
    fewer = comparison.fewer("trials", "few-shot")
    return Ratio(1 / fewer.value, 1 / fewer.high, 1 / fewer.low)


_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
"""Of Okabe & Ito: told apart by colour-blind readers, too."""
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 300, 220, 46, 30, 70


def plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `shots` as a picture in SVG: rank correlation and top-k recall against measurements, by model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    height = _TOP + _HEIGHT + 48 + 18 * ((len(models) + 2) // 3)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (_LEFT + _WIDTH) + _GAP} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for panel, (quantity, title) in enumerate(
        (("rank_correlation", "rank correlation"), ("top_k_recall", "top-k recall"))
    ):
        left = _LEFT + panel * (_WIDTH + _LEFT + 20)

        def place(k: int, value: float, left: int = left) -> tuple[float, float]:
            return left + _WIDTH * SHOTS.index(k) / (len(SHOTS) - 1), _TOP + _HEIGHT * (1 - max(0.0, value))

        parts.append(f'<text x="{left}" y="{_TOP - 12}" font-weight="bold">{title}</text>')
        for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
            y = place(0, tick)[1]
            parts.append(f'<line x1="{left}" x2="{left + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.1f}</text>')
        parts += [
            f'<text x="{place(k, 0)[0]:.1f}" y="{_TOP + _HEIGHT + 16}" text-anchor="middle">{k}</text>' for k in SHOTS
        ]
        parts.append(
            f'<text x="{left + _WIDTH / 2}" y="{_TOP + _HEIGHT + 34}" text-anchor="middle">measurements</text>'
        )
        for model, colour in zip(models, _COLOURS, strict=True):
            points = [place(row["shots"], row[quantity]) for row in rows if row["model"] == model]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    for number, (model, colour) in enumerate(zip(models, _COLOURS, strict=True)):
        x, y = _LEFT + 220 * (number % 3), _TOP + _HEIGHT + 58 + 18 * (number // 3)
        parts.append(f'<line x1="{x}" x2="{x + 24}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 30}" y="{y}">{model}</text>')
    return "\n".join([*parts, "</svg>", ""])
