"""Adaptive exploration: walkers that learn how to move through a design space (Ahn et al., ICLR 2020).

The policy is trained with proximal policy optimisation (Schulman et al., 2017, arXiv 1707.06347) on the predictions of
the cost model; nothing is measured. All walkers step as one batch.

Notation: W walkers, T steps, D knobs, knob d with n_d values, a configuration x (D,).
  observation   2 x_d / (n_d - 1) - 1 of every knob; for a policy of many spaces also names of knobs, and features
  action        a_d in {0, 1, 2}: decrement, stay, increment, for every knob at once; a step beyond a bound is masked
  reward        (1 - gamma) (s(x') - mean) / deviation, s the predicted score of the configuration reached, mean and
                standard deviation those of the starts; a move to an invalid configuration is refused, x' = x
  end           at most a quarter of the knobs moved. It is a limit on walking, not a state of the problem: the value
                of the last configuration is bootstrapped (Pardo et al., 2018)
  advantage     A_t = delta_t + gamma lambda A_{t+1} (0 after the end), delta_t = r_t + gamma V_{t+1} - V_t
  loss          - mean min(r A, clip(r, 1 - eps, 1 + eps) A) + c_v (V - R)^2 / 2 - c_e H,   r = pi(a|x) / pi_old(a|x)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from calumma.core.protocols import Indices, SearchSpace
from calumma.search.history import History
from calumma.search.policies import Floats, Observation, Observer, Policy, SharedPolicy, SpacePolicy
from calumma.search.stats import PolicyUpdate, SearchStats
from calumma.search.strategy import Explored, Score

_FLAT = 1e-9
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class PpoSettings:
    """Walkers, discount, lambda, clip, weights and epochs are those published; walks are shorter, and minibatches and
    steps of the optimiser larger, because the walkers learn from a batch of all of them instead of one by one."""

    walkers: int = 128
    steps: int = 48
    """Most steps of one walk."""
    settled: float = 0.75
    """A walk ends when at least this part of the knobs stays where it is."""
    elites: float = 0.25
    """Part of the walkers that start from the best measured configurations; the others start anywhere."""
    rollout: int = 16
    """Steps between updates of the policy."""
    least_walking: float = 0.1
    """A walk is over when a smaller part of the walkers than this has not ended."""
    learning_rate: float = 3e-3
    discount: float = 0.9
    trace: float = 0.99
    """lambda of the advantages."""
    clip: float = 0.2
    value_weight: float = 1.0
    entropy_weight: float = 0.1
    epochs: int = 3
    minibatch: int = 256
    gradient_norm: float = 0.5


class Rollout(NamedTuple):
    """T steps of W walkers."""

    tokens: Floats
    """(T, W, D, K)"""
    context: Floats
    """(T, W, C)"""
    allowed: NDArray[np.bool_]
    """(T, W, D, 3)"""
    actions: NDArray[np.int64]
    """(T, W, D)"""
    log_probabilities: Floats
    """(T, W): of the actions taken, under the policy that took them."""
    values: Floats
    """(T + 1, W): the critic's, of the configuration before every step and after the last."""
    rewards: Floats
    """(T, W)"""
    walking: NDArray[np.bool_]
    """(T, W): whether the walk had not ended before this step; other entries mean nothing."""
    ended: NDArray[np.bool_]
    """(T, W): whether it ended with this step."""


def advantages(rewards: Floats, values: Floats, ended: NDArray[np.bool_], discount: float, trace: float) -> Floats:
    """Generalised advantage estimates (Schulman et al., 2016): (T, W), (T + 1, W), (T, W) -> (T, W)."""
    estimates = np.zeros_like(rewards)
    later = np.zeros(rewards.shape[1], dtype=rewards.dtype)
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + discount * values[t + 1] - values[t]
        later = delta + discount * trace * np.where(ended[t], 0, later)
        estimates[t] = later
    return estimates


def masked_log_softmax(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (N, D, 3) of the allowed actions; -inf for the others."""
    return torch.log_softmax(logits.masked_fill(~allowed, -torch.inf), dim=2)


def entropy_per_knob(log_probabilities: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Mean entropy in nats over all knobs that have more than one action."""
    terms = log_probabilities.exp() * log_probabilities.masked_fill(~allowed, 0.0)
    free = allowed.sum(dim=2) > 1
    return -terms.sum(dim=2)[free].mean()


def clipped_loss(log_ratio: torch.Tensor, advantage: torch.Tensor, clip: float) -> torch.Tensor:
    """- mean min(r A, clip(r, 1 - eps, 1 + eps) A) over the samples (N,)."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


class _Adam:
    """Adam (Kingma & Ba, 2015) over all parameters as one vector, after the gradient's norm is limited.

    torch's own loads its compiler first, which takes more than a second, and goes through the parameters one by one.
    """

    def __init__(self, policy: torch.nn.Module, learning_rate: float, most_norm: float) -> None:
        parameters = list(policy.parameters())
        self._rate, self._most_norm = learning_rate, most_norm
        self._values = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
        self._gradient, self._mean, self._square = (torch.zeros_like(self._values) for _ in range(3))
        self._steps = 0
        start = 0
        for parameter in parameters:
            part = slice(start, start := start + parameter.numel())
            parameter.data = self._values[part].view_as(parameter)
            parameter.grad = self._gradient[part].view_as(parameter)

    def descend(self, loss: torch.Tensor) -> None:
        """Take one step along the gradient of `loss`."""
        self._gradient.zero_()
        loss.backward()
        gradient = self._gradient * min(1.0, self._most_norm / (float(self._gradient.norm()) + 1e-6))
        self._steps += 1
        self._mean.lerp_(gradient, 1 - _BETA_1)
        self._square.lerp_(gradient**2, 1 - _BETA_2)
        mean = self._mean / (1 - _BETA_1**self._steps)
        square = self._square / (1 - _BETA_2**self._steps)
        with torch.no_grad():
            self._values -= self._rate * mean / (square.sqrt() + _EPSILON)


class Learner:
    """A policy, its optimiser, and the update rule."""

    def __init__(self, policy: Policy, rng: np.random.Generator, settings: PpoSettings) -> None:
        self.policy = policy
        self._rng = rng
        self._settings = settings
        self._optimiser = _Adam(policy, settings.learning_rate, settings.gradient_norm)

    def act(self, seen: Observation) -> tuple[NDArray[np.int64], Floats, Floats]:
        """Draw actions (N, D); returns them with their joint log-probabilities (N,) and the values (N,)."""
        with torch.inference_mode():
            logits, values = self.policy(torch.from_numpy(seen.tokens), torch.from_numpy(seen.context))
            log_p = masked_log_softmax(logits, torch.from_numpy(seen.allowed)).numpy()
        # Gumbel noise: the largest of log p + g is a draw in proportion to p.
        actions = (log_p + self._rng.gumbel(size=log_p.shape)).argmax(axis=2)
        taken = np.take_along_axis(log_p, actions[..., None], axis=2)[..., 0].sum(axis=1)
        return actions, taken, values.numpy()

    def update(self, rollout: Rollout) -> PolicyUpdate:
        """Some epochs of minibatches over the steps of those who were still walking."""
        settings = self._settings
        estimates = advantages(rollout.rewards, rollout.values, rollout.ended, settings.discount, settings.trace)
        walking = rollout.walking
        advantage, value = estimates[walking], rollout.values[:-1][walking]
        target = advantage + value
        spread = target.var()
        explained = float(1 - (target - value).var() / spread) if spread > _FLAT else 0.0
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        data = [
            torch.from_numpy(array)
            for array in (
                rollout.tokens[walking],
                rollout.context[walking],
                rollout.allowed[walking],
                rollout.actions[walking],
                rollout.log_probabilities[walking],
                advantage,
                target,
            )
        ]
        measured = []
        for _ in range(settings.epochs):
            order = self._rng.permutation(len(advantage))
            for start in range(0, len(order), settings.minibatch):
                rows = torch.from_numpy(order[start : start + settings.minibatch])
                measured.append(self._descend(*(tensor[rows] for tensor in data)))
        kl, clipped, entropy, policy_loss, value_loss = np.mean(measured, axis=0).tolist()
        total = float((rollout.rewards * walking).sum(axis=0).mean())
        return PolicyUpdate(kl, clipped, entropy, explained, total, policy_loss, value_loss)

    def _descend(
        self,
        tokens: torch.Tensor,
        context: torch.Tensor,
        allowed: torch.Tensor,
        actions: torch.Tensor,
        old: torch.Tensor,
        advantage: torch.Tensor,
        target: torch.Tensor,
    ) -> list[float]:
        """One gradient step; returns approximate KL, clip fraction, entropy and both losses."""
        settings = self._settings
        logits, values = self.policy(tokens, context)
        log_p = masked_log_softmax(logits, allowed)
        log_ratio = log_p.gather(2, actions[..., None])[..., 0].sum(dim=1) - old
        policy_loss = clipped_loss(log_ratio, advantage, settings.clip)
        value_loss = 0.5 * ((values - target) ** 2).mean()
        entropy = entropy_per_knob(log_p, allowed)
        self._optimiser.descend(policy_loss + settings.value_weight * value_loss - settings.entropy_weight * entropy)
        with torch.no_grad():
            ratio = log_ratio.exp()
            kl = ((ratio - 1) - log_ratio).mean()
            clipped = ((ratio - 1).abs() > settings.clip).float().mean()
            measured = torch.stack([kl, clipped, entropy, policy_loss, value_loss])
        return [float(value) for value in measured]


class PolicyExplorer:
    """Returns every configuration its walkers came by. The policy lives, and learns, as long as the explorer."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        *,
        policy: Policy | None = None,
        learner: Learner | None = None,
        settings: PpoSettings | None = None,
    ) -> None:
        """Walk in one space.

        Args:
            space: the design space.
            rng: source of all randomness.
            policy: where learning starts; by default the published networks from scratch.
            learner: shared with explorers of other spaces, in place of a policy.
            settings: how to walk and learn.
        """
        self._space = space
        self._rng = rng
        self._settings = settings or PpoSettings()
        if learner is None:
            with _one_thread():
                policy = policy or SpacePolicy(len(space.knobs), int(rng.integers(1 << 31)))
                learner = Learner(policy, rng, self._settings)
        self._learner = learner
        self._observe = Observer(space, learner.policy.shared)
        self._counts = np.array([len(knob.values) for knob in space.knobs], dtype=np.int64)
        self._n_movable = max(1, int((self._counts > 1).sum()))

    def explore(self, history: History, score: Score, stats: SearchStats) -> Explored:
        seen: list[tuple[Indices, NDArray[np.float64]]] = []
        with stats.charge("policy"), _one_thread():
            starts = self._starts(history)
            scores = score(starts)
            seen.append((starts, scores))
            if scores.std() > _FLAT * max(1.0, float(np.abs(scores).max())):
                self._walk(starts, scores, score, stats, seen)
        return Explored.distinct(np.concatenate([x for x, _ in seen]), np.concatenate([y for _, y in seen]))

    def _starts(self, history: History) -> Indices:
        """Start configurations (W, D), fewer in a space that has not as many."""
        best = history.best(int(self._settings.elites * self._settings.walkers))
        return np.concatenate([best, self._space.sample(self._rng, self._settings.walkers - len(best))])

    def _walk(
        self,
        x: Indices,
        scores: NDArray[np.float64],
        score: Score,
        stats: SearchStats,
        seen: list[tuple[Indices, NDArray[np.float64]]],
    ) -> None:
        """Walk until nearly all have ended, learning on the way; adds what was visited to `seen`."""
        settings = self._settings
        mean, scale = scores.mean(), (1 - settings.discount) / scores.std()
        walking = np.ones(len(x), dtype=bool)
        done = 0
        while done < settings.steps and walking.mean() >= settings.least_walking:
            steps = []
            for _ in range(min(settings.rollout, settings.steps - done)):
                observation = self._observe(x)
                actions, log_p, values = self._learner.act(observation)
                target = self._space.canonical((x + actions - 1).astype(np.int32))
                valid = self._space.valid(target)
                moved = walking & valid & (target != x).any(axis=1)
                ended = (target != x).sum(axis=1) <= (1 - settings.settled) * self._n_movable
                x, scores = x.copy(), scores.copy()
                x[moved] = target[moved]
                scores[moved] = score(x[moved])
                seen.append((x[moved], scores[moved]))
                rewards = (scale * (scores - mean)).astype(np.float32)
                steps.append((*observation, actions, log_p, values, rewards, walking, ended))
                walking = walking & ~ended
                if not walking.any():
                    break
            done += len(steps)
            last = self._learner.act(self._observe(x))[2]
            rollout = Rollout(*(np.stack(arrays) for arrays in zip(*steps, strict=True)))
            rollout = rollout._replace(values=np.concatenate([rollout.values, last[None, :]]))
            stats.updates.append(self._learner.update(rollout))


def train_policy(
    tasks: Sequence[tuple[SearchSpace, Score]],
    rng: np.random.Generator,
    rounds: int,
    settings: PpoSettings | None = None,
    hidden: int = 32,
) -> tuple[SharedPolicy, list[PolicyUpdate]]:
    """Train one policy over many tasks, in random order every round.

    Args:
        tasks: design spaces, each with the predicted score of its configurations.
        rng: source of all randomness.
        rounds: explorations of every task.
        settings: how to walk and learn.
        hidden: width of the networks.

    Returns:
        The policy, and what its updates did.
    """
    settings = settings or PpoSettings()
    stats = SearchStats()
    with _one_thread():
        policy = SharedPolicy(hidden, int(rng.integers(1 << 31)))
        policy.fit_scale([space for space, _ in tasks], rng)
        learner = Learner(policy, rng, settings)
    explorers = [PolicyExplorer(space, rng, learner=learner, settings=settings) for space, _ in tasks]
    for _ in range(rounds):
        for i in rng.permutation(len(tasks)):
            space, score = tasks[i]
            explorers[i].explore(History(space), score, stats)
    return policy, stats.updates


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch on one thread inside: the networks are too small for more, and the other cores may be measuring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
