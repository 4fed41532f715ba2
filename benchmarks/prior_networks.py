"""Networks to compare the shipped trees with: trained on the same data set, with torch; none of them is shipped.

An ensemble of multilayer perceptrons per template sees the predictor's columns. For every group g of configurations i
with targets t_i, predictions p_i and weights w_i ~ (best / latency_i)^2 of sum 1

    loss = mean over g of [ sum w_i ((p_i - p') - (t_i - t'))^2  +  level (p' - t')^2 ],   t' = sum w_i t_i, p' likewise

To be adapted to a new task by a few measurements it is meta-trained: of the rows of a group some are the support, of
which a ridge regression of the last layer is computed in closed form, and the rest the query, whose loss is added; the
gradient goes through the closed form, and its ridge is learnt, too. Support and query are always of one workload.
Bertinetto et al., "Meta-learning with differentiable closed-form solvers", ICLR 2019 (arXiv 1805.08136), with the last
layer's own weights as the mean.

Attention over knobs is meta-trained by the same loss, one network per template. Every column of a configuration is a
token, its value times a learnt vector plus another one, and what is known of the task is one token more. Of what a
small transformer encoder makes of that one, a linear layer predicts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from calumma.cost_model.scoring import Features, Scores
from calumma.prior.features import RELATIVE
from calumma.prior.few_shot import log_latencies
from calumma.prior.training import EMPHASIS, SHARED, Sample

Floats = NDArray[np.float32]
BLOCK = 2048
"""Rows of one pass: what they become stays in the caches."""
_threads = ThreadpoolController()
CLIP = 5.0
"""A column farther from its mean than so many deviations counts as that far: nothing was learnt beyond."""


@dataclass(frozen=True)
class Ensemble:
    """Networks of one shape over the same columns."""

    columns: tuple[str, ...]
    """Names of the F inputs."""
    mean: Floats
    scale: Floats
    """(F,) of the training data."""
    weights: tuple[Floats, ...]
    """Per layer (E, inputs, outputs)."""
    biases: tuple[Floats, ...]
    """Per layer (E, 1, outputs)."""

    @property
    def members(self) -> int:
        return len(self.weights[0])

    @property
    def units(self) -> int:
        """H, of the last hidden layer."""
        return int(self.weights[-1].shape[1])

    def normalised(self, table: Floats) -> Floats:
        """(N, F) raw columns -> (N, F) inputs."""
        return np.clip((table - self.mean) / self.scale, -CLIP, CLIP).astype(np.float32)

    def predict(self, table: Floats) -> Floats:
        """Raw columns (N, F) -> outputs (E, N)."""
        return self.layers(table)[1]

    def layers(self, table: Floats) -> tuple[Floats, Floats]:
        """Raw columns (N, F) -> units of the last hidden layer (E, N, H), and outputs (E, N)."""
        inputs = self.normalised(table)
        # The products are too small to be shared: threads would wait for one another, most of all beside other work.
        with _threads.limit(limits=1):
            blocks = [self._block(inputs[start : start + BLOCK]) for start in range(0, max(1, len(inputs)), BLOCK)]
        hidden, outputs = zip(*blocks, strict=True)
        return np.concatenate(hidden, axis=1), np.concatenate(outputs, axis=1)

    def _block(self, rows: Floats) -> tuple[Floats, Floats]:
        h = rows[None]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = np.maximum(h @ weight + bias, 0)
        outputs = h @ self.weights[-1] + self.biases[-1]
        return h, outputs[:, :, 0]


def normalisation(tables: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Mean and scale (F,) of training tables, every one counting the same; a column that never varies becomes 0."""
    mean = np.mean([table.mean(axis=0) for table in tables], axis=0)
    square = np.mean([((table - mean) ** 2).mean(axis=0) for table in tables], axis=0)
    deviation = np.sqrt(square)
    scale = np.where(deviation > 1e-6, deviation, np.inf)
    return mean.astype(np.float32), scale.astype(np.float32)


@dataclass(frozen=True)
class NetworkSettings:
    """Sizes and steps."""

    members: int = 5
    hidden: tuple[int, ...] = (64, 64)
    steps: int = 1500
    groups: int = 24
    """Groups of one step."""
    rows: int = 32
    """Rows drawn of each of them."""
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    level: float = 0.1
    """Weight of the second term of the loss."""
    supports: tuple[int, ...] = (4, 8, 16)
    """Rows of the support, one of these at each step."""
    adapted: float = 1.0
    """Weight of the loss after adaptation; 0 trains for the prediction without measurements alone."""


@dataclass(frozen=True)
class AttentionSettings:
    """Sizes and steps."""

    width: int = 32
    heads: int = 4
    layers: int = 2
    steps: int = 400
    groups: int = 16
    rows: int = 20
    learning_rate: float = 3e-3


def train(
    columns: Sequence[str], samples: Sequence[Sample], seed: int, settings: NetworkSettings
) -> tuple[Ensemble, float]:
    """Fit an ensemble and the ridge of its adaptation; the same seed gives the same on the same machine.

    Args:
        columns: names of the F columns.
        samples: the groups, at least one.
        seed: of initialisation, bootstrap and order.
        settings: sizes and steps.
    """
    mean, scale = normalisation([sample.table for sample in samples])
    blank = Ensemble(tuple(columns), mean, scale, (), ())
    inputs = [blank.normalised(sample.table) for sample in samples]
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    weights, biases = _layers((len(columns), *settings.hidden, 1), settings.members, generator)
    ridge = torch.zeros(()).requires_grad_(True)  # its logarithm
    optimiser = torch.optim.AdamW(
        [{"params": [*weights, *biases]}, {"params": [ridge], "weight_decay": 0.0}],
        settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, settings.steps)
    credit = torch.tensor(rng.exponential(size=(settings.members, len(samples))), dtype=torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices; and one thread rounds the same way every time
    try:
        for _ in range(settings.steps):
            x, t, chosen = _batch(samples, inputs, rng, settings)
            h = x[None]
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                h = torch.relu(torch.matmul(h, weight) + bias)
            p = (torch.matmul(h, weights[-1]) + biases[-1])[:, :, 0].view(settings.members, len(chosen), -1)
            h = h.view(settings.members, len(chosen), p.shape[2], -1)
            losses = _loss(p, t, settings.level)
            if settings.adapted:
                n = int(rng.choice([s for s in settings.supports if s < settings.rows]))
                after = _adapted(h[:, :, :n], p[:, :, :n], t[:, :n], h[:, :, n:], p[:, :, n:], ridge.exp())
                losses = losses + settings.adapted * _loss(after, t[:, n:], 0.0)
            loss = (losses * credit[:, chosen]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    finally:
        torch.set_num_threads(threads)
    ensemble = Ensemble(
        tuple(columns),
        mean,
        scale,
        tuple(weight.detach().numpy() for weight in weights),
        tuple(bias.detach().numpy() for bias in biases),
    )
    return ensemble, math.exp(ridge.item())


def _layers(
    shape: Sequence[int], members: int, generator: torch.Generator
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights (E, inputs, outputs) and biases (E, 1, outputs) to begin with, for each layer of `shape`."""
    weights, biases = [], []
    for fan_in, fan_out in itertools.pairwise(shape):
        bound = math.sqrt(2.0 / fan_in)
        weights.append((torch.randn((members, fan_in, fan_out), generator=generator) * bound).requires_grad_(True))
        biases.append(torch.zeros((members, 1, fan_out)).requires_grad_(True))
    return weights, biases


def _batch(
    samples: Sequence[Sample], inputs: Sequence[Floats], rng: np.random.Generator, settings: NetworkSettings
) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.int64]]:
    """Rows of some groups: inputs (G R, F), targets (G, R), and which groups (G,)."""
    chosen = rng.choice(len(samples), min(settings.groups, len(samples)), replace=False)
    xs, ts = [], []
    for g in chosen:
        n = len(samples[g].target)
        # Small groups are drawn with replacement: a row that comes twice weighs twice.
        rows = rng.choice(n, settings.rows, replace=n < settings.rows)
        xs.append(inputs[g][rows])
        ts.append(samples[g].target[rows])
    x = torch.from_numpy(np.concatenate(xs))
    return x, torch.tensor(np.stack(ts), dtype=torch.float32), chosen


def _shares(t: torch.Tensor) -> torch.Tensor:
    """Targets (G, R) -> weights w (G, R) of sum 1."""
    w = torch.exp(-EMPHASIS * (t - t.amin(dim=1, keepdim=True)))
    return w / w.sum(dim=1, keepdim=True)


def _loss(p: torch.Tensor, t: torch.Tensor, level: float) -> torch.Tensor:
    """Predictions (E, G, R), targets (G, R) -> loss (E, G)."""
    w = _shares(t)
    off = p - t
    mean = (w * off).sum(dim=-1, keepdim=True)
    return (w * (off - mean) ** 2).sum(dim=-1) + level * mean[..., 0] ** 2


def _adapted(
    h: torch.Tensor, p: torch.Tensor, t: torch.Tensor, query_h: torch.Tensor, query_p: torch.Tensor, ridge: torch.Tensor
) -> torch.Tensor:
    """Predictions (E, G, Q) of the query after adaptation to the support: `few_shot.adapted` in its dual form.

    Args:
        h, p, t: support, units (E, G, S, H), predictions (E, G, S), targets (G, S).
        query_h, query_p: units (E, G, Q, H), predictions (E, G, Q).
        ridge: of the regression.
    """
    share = _shares(t)
    root = torch.exp(-0.5 * EMPHASIS * (t - t.amin(dim=1, keepdim=True)))
    centred = h - (share[None, :, :, None] * h).sum(dim=2, keepdim=True)
    r = t - p
    r = r - (share * r).sum(dim=-1, keepdim=True)
    a = root[None, :, :, None] * centred
    gram = a @ a.transpose(2, 3) + ridge * torch.eye(t.shape[1])
    delta = a.transpose(2, 3) @ torch.linalg.solve(gram, (root * r)[..., None])
    return query_p + (query_h @ delta)[..., 0]


class Attention(torch.nn.Module):
    """Attention over the columns of a configuration, of which the predictor's differences from the default are left
    out: they say nothing new beside the others and the task."""

    members = 1

    def __init__(self, columns: Sequence[str], mean: Floats, scale: Floats, settings: AttentionSettings) -> None:
        super().__init__()
        self._inputs = Ensemble(tuple(columns), mean, scale, (), ())
        self._task = [i for i, name in enumerate(columns) if name.startswith(SHARED)]
        self._own = [i for i, name in enumerate(columns) if not name.startswith(SHARED) and not name.endswith(RELATIVE)]
        self.units = settings.width
        self.value = torch.nn.Parameter(torch.randn(len(self._own), settings.width) * 0.3)
        self.place = torch.nn.Parameter(torch.randn(len(self._own), settings.width) * 0.3)
        self.task = torch.nn.Linear(len(self._task), settings.width)
        layer = torch.nn.TransformerEncoderLayer(
            settings.width, settings.heads, 2 * settings.width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = torch.nn.TransformerEncoder(layer, settings.layers, enable_nested_tensor=False)
        self.last = torch.nn.Linear(settings.width, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised columns (N, F) -> units (N, H) of the task's token, and predictions (N,)."""
        own = x[:, self._own, None] * self.value + self.place
        h = self.encoder(torch.cat([self.task(x[:, self._task])[:, None], own], dim=1))[:, 0]
        return h, self.last(h)[:, 0]

    def normalised(self, table: Floats) -> Floats:
        """(N, F) raw columns -> (N, F) inputs."""
        return self._inputs.normalised(table)

    def layers(self, table: Floats) -> tuple[Floats, Floats]:
        """Raw columns (N, F) -> units (1, N, H) and outputs (1, N), as `Ensemble.layers`."""
        x = torch.from_numpy(self.normalised(table))
        with torch.no_grad():
            parts = [self(x[start : start + BLOCK]) for start in range(0, max(1, len(x)), BLOCK)]
        return tuple(torch.cat(part)[None].numpy() for part in zip(*parts, strict=True))


def train_attention(
    columns: Sequence[str], samples: Sequence[Sample], seed: int, settings: AttentionSettings
) -> tuple[Attention, float]:
    """Fit attention over knobs and the ridge of its adaptation; arguments as for `train`."""
    mean, scale = normalisation([sample.table for sample in samples])
    rng = np.random.default_rng(seed)
    batches = NetworkSettings(groups=settings.groups, rows=settings.rows)
    ridge = torch.zeros(()).requires_grad_(True)  # its logarithm
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Attention(columns, mean, scale, settings)
        inputs = [model.normalised(sample.table) for sample in samples]
        optimiser = torch.optim.AdamW([*model.parameters(), ridge], settings.learning_rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, settings.steps)
        for _ in range(settings.steps):
            x, t, chosen = _batch(samples, inputs, rng, batches)
            h, p = model(x)
            h, p = h.view(1, len(chosen), t.shape[1], -1), p.view(1, len(chosen), -1)
            n = int(rng.choice([support for support in batches.supports if support < settings.rows]))
            after = _adapted(h[:, :, :n], p[:, :, :n], t[:, :n], h[:, :, n:], p[:, :, n:], ridge.exp())
            loss = (_loss(p, t, batches.level) + batches.adapted * _loss(after, t[:, n:], 0.0)).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    finally:
        torch.set_num_threads(threads)
    return model.eval(), math.exp(ridge.item())


def embedded(network: Ensemble | Attention, table: Floats) -> Floats:
    """Raw columns (N, F) -> (N, E (H + 1)): the members' units, then their outputs; all that an adaptation needs."""
    hidden, outputs = network.layers(table)
    return np.concatenate([*hidden, outputs.T], axis=1)


class MetaTrainedModel:
    """A `CostModel` of one task, whose features are `embedded`: a network whose last layer is adapted in closed form.

    Scores are throughputs in any unit; a failure (0) is twice as slow as the worst.
    """

    def __init__(self, members: int, ridge: float) -> None:
        self._members = members
        self._ridge = ridge
        self._delta: Floats | None = None

    def fit(self, features: Features, scores: Scores) -> None:
        """Adapt to everything that is known."""
        if not scores.any():
            return
        self._delta = adapted(*self._layers(features), log_latencies(scores), self._ridge)

    def predict(self, features: Features) -> Scores:
        """(N, E (H + 1)) -> (N,): negative log latencies, up to a constant."""
        hidden, outputs = self._layers(features)
        if self._delta is not None:
            outputs = outputs + (hidden @ self._delta)[:, :, 0]
        return -outputs.mean(axis=0, dtype=np.float64)

    def _layers(self, features: Features) -> tuple[Floats, Floats]:
        """The units (E, N, H) and the outputs (E, N) again."""
        hidden, outputs = features[:, : -self._members], features[:, -self._members :]
        return hidden.reshape(len(features), self._members, -1).transpose(1, 0, 2), outputs.T


def adapted(hidden: Floats, predicted: Floats, y: NDArray[np.float64], ridge: float) -> Floats:
    """Changes (E, H, 1) of the last layers, of units (E, N, H), predictions (E, N) and measured logarithms (N,)."""
    w = np.exp(-EMPHASIS * (y - y.min()))
    share = (w / w.sum())[None, :, None]
    h = hidden - (share * hidden).sum(axis=1, keepdims=True)
    r = (y - predicted)[:, :, None]
    r = r - (share * r).sum(axis=1, keepdims=True)
    weighted = h * (w[None, :, None])
    gram = weighted.transpose(0, 2, 1) @ h + ridge * np.eye(h.shape[2])
    return np.linalg.solve(gram, weighted.transpose(0, 2, 1) @ r).astype(np.float32)
