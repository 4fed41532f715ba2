"""What a handful of measurements teach four cost models of a task, on recordings.

    xgboost      boosted trees, from scratch
    network      the predictor's network with random weights, trained on the measurements
    fine-tuned   the same network as it was trained on other workloads (transfer), then trained on the measurements
    few-shot     the same, adapted in closed form (`calumma.prior.few_shot`)

*Shots*: K configurations drawn at random are known; the rank correlation with the others' latencies, and the share of
the others' true best 10 % (64 at most) that is among as many predicted ones (top-k recall), both averaged over draws.
*Replay*: the evolutionary strategy with each model; measurements to 99 % of the final throughput with xgboost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import corpora, sessions
from benchmarks.curves import Comparison, Ratio, Run
from calumma import tvm_compat
from calumma.core.values import Candidate
from calumma.cost_model import CostModel, GradientBoostedTrees
from calumma.cost_model.base import Features, Scores
from calumma.measure import ReplayRunner
from calumma.prior import learning
from calumma.prior.few_shot import EMPHASIS, FewShotModel
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

    def __init__(self, task: TaskPredictor, seed: int, pretrained: bool) -> None:
        self._task = task
        self._seed = seed
        self._ensemble = task.family.ensemble
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
        x = torch.from_numpy(self._ensemble.normalised(self._task.table(features[worked])))
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
        x = torch.from_numpy(self._ensemble.normalised(self._task.table(features)))
        with torch.no_grad():
            return -_forward(x, weights, biases).mean(dim=0).numpy().astype(np.float64)


def _forward(x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> torch.Tensor:
    h = x[None]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        h = torch.relu(h @ weight + bias)
    return (h @ weights[-1] + biases[-1])[:, :, 0]


def models(task: TaskPredictor, seed: int) -> dict[str, CostModel]:
    """A fresh model of each kind."""
    return {
        BASELINE: GradientBoostedTrees(seed),
        "network": GradientNetwork(task, seed, pretrained=False),
        "fine-tuned": GradientNetwork(task, seed, pretrained=True),
        "few-shot": FewShotModel(task),
    }


def opened(prior: Prior, folder: Path) -> dict[str, tuple[corpora.Corpus, Any, TaskPredictor]]:
    """The recordings of tasks that the prior knows the template of."""
    tvm = tvm_compat.load()
    found = {}
    for name in corpora.names(folder):
        corpus = corpora.load(name, folder)
        if corpus.source.space != "template" or prior.mismatch(corpus.hardware, corpus.threads):
            continue
        space = corpus.space()
        predictor = Predictor(prior, corpus.hardware, corpus.threads, corpus.cache_state)
        task = predictor.task(tvm.ir.load_json(corpus.workload.text), space.whole)
        if task is not None:
            found[name] = (corpus, space, task)
    return found


def shots(
    tasks: Mapping[str, tuple[corpora.Corpus, Any, TaskPredictor]], say: Callable[[str], None], draws: int = DRAWS
) -> list[dict[str, Any]]:
    """One row per model and number of shots, averaged over recordings and draws."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for name, (corpus, space, task) in tasks.items():
        say(f"few shots of {name}")
        table = space.features(space.members)
        throughput = corpus.throughputs
        for draw in range(draws):
            order = np.random.default_rng([draw, len(table)]).permutation(len(table))
            for k in SHOTS:
                support, query = order[:k], order[k:]
                scale = throughput[support].max() if k else 1.0
                for label, model in models(task, draw).items():
                    model.fit(table[support], throughput[support] / scale)
                    predicted = model.predict(table[query])
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
    tasks: Mapping[str, tuple[corpora.Corpus, Any, TaskPredictor]],
    say: Callable[[str], None],
    seeds: int = SEEDS,
    budget: int = BUDGET,
) -> Comparison:
    """The evolutionary strategy guided by each of the models, on recordings."""
    runs: list[Run] = []
    for name, (corpus, space, task) in tasks.items():
        records = corpus.records(space)
        for label in models(task, 0):
            say(f"replaying {name}, {label}")
            runs += [
                _replay(name, corpus, space, records, label, models(task, seed)[label], seed, budget)
                for seed in range(seeds)
            ]
    return Comparison(runs, BASELINE)


def _replay(
    name: str, corpus: corpora.Corpus, space: Any, records: Any, label: str, model: CostModel, seed: int, budget: int
) -> Run:
    runner = ReplayRunner(records)
    clock = sessions.ReplayClock(runner)
    run = sessions.search(
        "evolutionary",
        space,
        lambda config: Candidate(corpus.workload, corpus.template, corpus.version, config),
        runner,
        clock,
        workload=name,
        seed=seed,
        budget=budget,
        model=model,
    )
    return replace(run, strategy=label)


def measurement_ratio(comparison: Comparison) -> Ratio:
    """Measurements of the few-shot model over xgboost's, to 99 % of xgboost's final throughput; below 1 it needs
    fewer."""
    fewer = comparison.fewer("trials", "few-shot")
    return Ratio(1 / fewer.value, 1 / fewer.high, 1 / fewer.low)
