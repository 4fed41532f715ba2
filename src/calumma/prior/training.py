"""Training of the predictor: torch is needed here, and only here.

For every group g of configurations i, with log latencies t_i, predictions p_i and weights w_i (sum 1 in a group):

    w_i ~ (best / latency_i)^2                    the fast ones are what has to be told apart
    t'  = sum w_i t_i,  p' = sum w_i p_i
    loss = mean over g of [ sum w_i ((p_i - p') - (t_i - t'))^2  +  level (p' - t')^2 ]

The first term is the order within a workload, the second how fast the workload is as a whole. t is the logarithm of
latency over roofline bound: what is left to learn is how far a schedule stays behind the machine.

The same networks are what the few-shot cost model adapts (`few_shot`), so they learn to be adapted, too: of the rows of
a group some are the support, of which the adaptation is computed, and the rest the query, whose loss (the first term)
is added. Support and query are always of one workload. The gradient goes through the closed form of the adaptation, and
its ridge is learnt with the weights.

All members of the ensemble are trained at once, as one batched network, each from its own initialisation and with its
own random weights of the groups (Bayesian bootstrap): where they disagree, little is known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from calumma.prior.few_shot import EMPHASIS
from calumma.prior.mlp import Ensemble, Floats, normalisation


@dataclass(frozen=True)
class Sample:
    """One group as arrays."""

    workload: str
    table: Floats
    """(M, F) raw columns."""
    target: NDArray[np.float64]
    """(M,) log(latency / bound)."""


@dataclass(frozen=True)
class TrainingSettings:
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


def train(
    columns: Sequence[str], samples: Sequence[Sample], seed: int, settings: TrainingSettings
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
    shape = (len(columns), *settings.hidden, 1)
    weights, biases = [], []
    for fan_in, fan_out in itertools.pairwise(shape):
        bound = math.sqrt(2.0 / fan_in)
        weights.append(
            (torch.randn((settings.members, fan_in, fan_out), generator=generator) * bound).requires_grad_(True)
        )
        biases.append(torch.zeros((settings.members, 1, fan_out)).requires_grad_(True))
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


def _batch(
    samples: Sequence[Sample], inputs: Sequence[Floats], rng: np.random.Generator, settings: TrainingSettings
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
