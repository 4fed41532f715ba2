"""Adaptive exploration: the equations of PPO, learning on a problem with a known optimum, policies on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from calumma.core.errors import InputError
from calumma.core.protocols import Indices
from calumma.core.rng import generator
from calumma.search import History, SearchStats, make_strategy
from calumma.search.policies import Observer, Policy, SharedPolicy, SpacePolicy, load_policy, save_policy
from calumma.search.ppo import (
    Learner,
    PolicyExplorer,
    PpoSettings,
    Rollout,
    _Adam,
    advantages,
    clipped_loss,
    entropy_per_knob,
    masked_log_softmax,
    train_policy,
)
from calumma.testing import ToySpace

SPACE = ToySpace(width=360)
"""`tile_x` has 15 values up to 32 that are valid, beside knobs of 4, 6, 4 and 2."""


def towards(space: ToySpace, tile: int = 8, split: int = 8):
    """A score with one optimum, 0, that falls by 1 with every step of a knob away from it."""
    best = space.encode({"tile_x": tile, "tile_c": 2, "split_k": split, "order": "xck", "unroll": True})

    def score(indices: Indices) -> np.ndarray:
        return -np.abs(indices - best).sum(axis=1).astype(np.float64)

    return score


# -- the equations --------------------------------------------------------------------------------


def test_advantages_are_the_discounted_sums_of_their_definition() -> None:
    rng = np.random.default_rng(0)
    steps, walkers, gamma, trace = 6, 5, 0.9, 0.7
    rewards = rng.normal(size=(steps, walkers)).astype(np.float32)
    values = rng.normal(size=(steps + 1, walkers)).astype(np.float32)
    ended = np.zeros((steps, walkers), dtype=bool)
    ended[2, 1] = ended[0, 2] = ended[5, 3] = True
    expected = np.zeros((steps, walkers))
    for w in range(walkers):
        for t in range(steps):
            stop = next((u for u in range(t, steps) if ended[u, w]), steps - 1)
            for u in range(t, stop + 1):
                delta = rewards[u, w] + gamma * values[u + 1, w] - values[u, w]
                expected[t, w] += (gamma * trace) ** (u - t) * delta
    np.testing.assert_allclose(advantages(rewards, values, ended, gamma, trace), expected, rtol=1e-5, atol=1e-6)


def test_with_lambda_one_an_advantage_is_the_bootstrapped_return_less_the_value() -> None:
    rewards = np.array([[1.0], [2.0], [4.0]], dtype=np.float32)
    values = np.array([[0.5], [0.25], [0.125], [8.0]], dtype=np.float32)
    found = advantages(rewards, values, np.zeros((3, 1), dtype=bool), 0.5, 1.0)
    # 1 + 2/2 + 4/4 + 8/8 - 1/2; 2 + 4/2 + 8/4 - 1/4; 4 + 8/2 - 1/8
    np.testing.assert_allclose(found[:, 0], [3.5, 5.75, 7.875])


def test_the_loss_is_clipped_on_the_side_that_would_profit() -> None:
    ratios = np.array([1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = np.array([2.0, -2.0, 2.0, -2.0, 1.0])
    # clipped: 1.2 * 2; not: 1.5 * -2; not: 0.5 * 2; clipped: 0.8 * -2; inside: 1.1
    expected = -np.mean([2.4, -3.0, 1.0, -1.6, 1.1])
    found = clipped_loss(torch.tensor(ratios).log(), torch.tensor(advantage), 0.2)
    assert float(found) == pytest.approx(expected)


def test_masked_actions_have_no_probability_and_the_others_share_it() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0), 5.0], [1.0, 2.0, 3.0]]])
    allowed = torch.tensor([[[True, True, False], [False, True, False]]])
    log_p = masked_log_softmax(logits, allowed)
    np.testing.assert_allclose(log_p.exp().numpy(), [[[0.25, 0.75, 0.0], [0.0, 1.0, 0.0]]], rtol=1e-6)
    # The second knob cannot move: it does not count.
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert float(entropy_per_knob(log_p, allowed)) == pytest.approx(expected, rel=1e-6)


def test_masked_actions_pass_no_gradient() -> None:
    logits = torch.zeros((1, 2, 3), requires_grad=True)
    allowed = torch.tensor([[[True, True, False], [True, True, True]]])
    log_p = masked_log_softmax(logits, allowed)
    (log_p[0, 0, 1] + entropy_per_knob(log_p, allowed)).backward()
    gradient = logits.grad
    assert gradient is not None and gradient.isfinite().all() and gradient[0, 0, 2] == 0


def _rollout(rng: np.random.Generator, learner: Learner, walking: np.ndarray) -> Rollout:
    """Random walks of the shape of `walking` (T, W) in `SPACE`."""
    observe = Observer(SPACE, learner.policy.shared)
    steps = []
    for walks in walking:
        seen = observe(SPACE.sample(rng, len(walks)))
        actions, log_p, values = learner.act(seen)
        rewards = rng.normal(size=len(walks)).astype(np.float32)
        steps.append((*seen, actions, log_p, values, rewards, walks, np.zeros_like(walks)))
    rollout = Rollout(*(np.stack(arrays) for arrays in zip(*steps, strict=True)))
    return rollout._replace(values=np.concatenate([rollout.values, rollout.values[:1]]))


def test_the_first_minibatch_has_ratios_of_one() -> None:
    """Log-probabilities kept by `act` are those that `update` finds, so nothing is clipped before the policy moves."""
    learner = Learner(SpacePolicy(5, 0), np.random.default_rng(0), PpoSettings(epochs=1, minibatch=1000))
    update = learner.update(_rollout(np.random.default_rng(1), learner, np.ones((4, 16), dtype=bool)))
    assert update.approximate_kl == pytest.approx(0, abs=1e-6) and update.clip_fraction == 0
    assert update.policy_loss == pytest.approx(0, abs=1e-6), "normalised advantages have mean 0"


def test_what_happens_after_the_end_of_a_walk_teaches_nothing() -> None:
    walking = np.ones((4, 16), dtype=bool)
    walking[2:, ::2] = False
    trained = []
    for rubbish in (0.0, 1e3):
        learner = Learner(SpacePolicy(5, 0), np.random.default_rng(0), PpoSettings(minibatch=8))
        rollout = _rollout(np.random.default_rng(1), learner, walking)
        ended = rollout.ended.copy()
        ended[1, ::2] = True
        rewards = rollout.rewards + rubbish * ~walking
        learner.update(rollout._replace(rewards=rewards.astype(np.float32), ended=ended))
        trained.append([parameter.detach().numpy() for parameter in learner.policy.parameters()])
    for one, other in zip(*trained, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_perfect_critic_explains_all_and_a_constant_one_nothing() -> None:
    learner = Learner(SpacePolicy(5, 0), np.random.default_rng(0), PpoSettings(discount=0.0))
    rollout = _rollout(np.random.default_rng(1), learner, np.ones((4, 16), dtype=bool))
    last = rollout.values[-1:]
    perfect = rollout._replace(values=np.concatenate([rollout.rewards, last]))
    constant = rollout._replace(values=np.zeros_like(rollout.values))
    assert learner.update(perfect).explained_variance == pytest.approx(1)
    assert learner.update(constant).explained_variance == pytest.approx(0, abs=1e-6)


def test_the_optimiser_is_adam_with_a_limited_gradient() -> None:
    ours, theirs = SpacePolicy(5, 0).critic, SpacePolicy(5, 0).critic
    adam, reference = _Adam(ours, 1e-2, 0.5), torch.optim.Adam(theirs.parameters(), lr=1e-2)
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 16, 5)).astype(np.float32))
    for batch in points:
        adam.descend(((ours(batch) - batch.sum()) ** 2).mean())
        reference.zero_grad()
        ((theirs(batch) - batch.sum()) ** 2).mean().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# -- learning -------------------------------------------------------------------------------------


def _reached(policy: Policy, space: ToySpace, score, steps: int = 16) -> float:
    """Share of 256 random starts from which the policy comes by the optimum within 16 steps."""
    learner = Learner(policy, np.random.default_rng(1), PpoSettings())
    observe = Observer(space, policy.shared)
    x = space.sample(np.random.default_rng(5), 256)
    reached = np.zeros(len(x), dtype=bool)
    for _ in range(steps):
        actions, _, _ = learner.act(observe(x))
        target = (x + actions - 1).astype(np.int32)
        x = np.where(space.valid(target)[:, None], target, x)
        reached |= score(x) == 0
    return float(reached.mean())


def _trained(policy: Policy, seed: int, explorations: int = 15) -> tuple[Policy, SearchStats]:
    rng = generator(seed, "test")
    explorer = PolicyExplorer(SPACE, rng, policy=policy)
    stats = SearchStats()
    for _ in range(explorations):
        explorer.explore(History(SPACE), towards(SPACE), stats)
    return policy, stats


@pytest.mark.parametrize("make", [lambda: SpacePolicy(5, 0), lambda: _scaled(SPACE)], ids=["published", "shared"])
def test_walkers_learn_the_way_to_the_optimum(make) -> None:
    untrained = make()
    policy, stats = _trained(make(), seed=0)
    assert _reached(untrained, SPACE, towards(SPACE)) < 0.05
    assert _reached(policy, SPACE, towards(SPACE)) > 0.4
    first, last = stats.updates[0], stats.updates[-1]
    assert last.entropy < first.entropy <= math.log(3) and last.episode_return > first.episode_return
    # Every walk's first update sees all walkers, the others those that have not ended yet.
    assert max(update.explained_variance for update in stats.updates[-6:]) > 0.3
    assert all(math.isfinite(value) for update in stats.updates for value in vars(update).values())


def _scaled(*spaces: ToySpace, seed: int = 0) -> SharedPolicy:
    policy = SharedPolicy(seed=seed)
    policy.fit_scale(spaces, np.random.default_rng(seed))
    return policy


def test_same_seed_same_policy_whatever_torch_was_seeded_with() -> None:
    torch.manual_seed(1)
    first, stats = _trained(SpacePolicy(5, 3), seed=7, explorations=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, stats_again = _trained(SpacePolicy(5, 3), seed=7, explorations=3)
    assert stats.updates == stats_again.updates
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state), "the user's own random numbers are left alone"


def test_threads_of_torch_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    inside = []

    def score(indices: Indices) -> np.ndarray:
        inside.append(torch.get_num_threads())
        return towards(SPACE)(indices)

    PolicyExplorer(SPACE, np.random.default_rng(0)).explore(History(SPACE), score, SearchStats())
    assert set(inside) == {1} and torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_exploration_is_valid_distinct_and_scored() -> None:
    rng, stats = np.random.default_rng(0), SearchStats()
    explored = PolicyExplorer(SPACE, rng).explore(History(SPACE), towards(SPACE), stats)
    assert SPACE.valid(explored.indices).all()
    assert len(np.unique(explored.indices, axis=0)) == len(explored.indices) > 128
    np.testing.assert_array_equal(explored.scores, towards(SPACE)(explored.indices))
    assert stats.updates and stats.seconds["policy"] > 0


def test_a_flat_model_teaches_nothing() -> None:
    stats = SearchStats()
    explorer = PolicyExplorer(SPACE, np.random.default_rng(0))
    explored = explorer.explore(History(SPACE), lambda indices: np.ones(len(indices)), stats)
    assert len(explored.indices) > 0 and stats.updates == []


def test_a_space_without_a_choice() -> None:
    class One(ToySpace):
        def _valid(self, indices: Indices) -> np.ndarray:
            return (indices == self.default()).all(axis=1)

    space = One()
    explored = PolicyExplorer(space, np.random.default_rng(0)).explore(History(space), towards(SPACE), SearchStats())
    np.testing.assert_array_equal(explored.indices, [One().default()])


# -- one policy for many spaces, on disk ----------------------------------------------------------


def test_a_policy_of_many_tasks_knows_its_way_in_a_space_it_has_not_seen() -> None:
    spaces = [ToySpace(width=w, extra=e) for w, e in ((24, 0), (60, 2), (180, 1))]
    tasks = [(space, lambda x, s=space: -np.abs(np.log2(s.columns(x)["split_k"] / 8.0))) for space in spaces]
    policy, _ = train_policy(tasks, generator(0, "train"), rounds=6)
    unseen = ToySpace(width=96, extra=3)
    seen = Observer(unseen, True)(unseen.sample(np.random.default_rng(0), 256))
    with torch.no_grad():
        logits, _ = policy(torch.from_numpy(seen.tokens), torch.from_numpy(seen.context))
    move = logits.numpy()[:, 2].argmax(axis=1) - 1  # knob 2 is split_k, 8 is its value 3 of 6
    place = np.rint((seen.tokens[:, 2, 0] + 1) * 2.5)
    assert (move[place < 2] == 1).mean() > 0.9 and (move[place > 4] == -1).mean() > 0.9


def test_a_saved_policy_comes_back_and_starts_a_strategy(tmp_path: Path) -> None:
    policy = _scaled(SPACE, seed=4)
    save_policy(policy, tmp_path / "p.safetensors", {"tasks": 3})
    loaded = load_policy(tmp_path / "p.safetensors")
    seen = Observer(SPACE, True)(SPACE.sample(np.random.default_rng(0), 20))
    tokens, context = torch.from_numpy(seen.tokens), torch.from_numpy(seen.context)
    with torch.no_grad():
        for one, other in zip(policy(tokens, context), loaded(tokens, context), strict=True):
            assert torch.equal(one, other)
    with safetensors.safe_open(tmp_path / "p.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["calumma"])["trained_on"] == {"tasks": 3}
    strategy = make_strategy("rl", SPACE, generator(0, "test"), policy=tmp_path / "p.safetensors")
    for _ in range(3):
        batch = strategy.ask(32)
        assert len(batch) == 32
        strategy.tell(batch, 100 + towards(SPACE)(batch))
    assert strategy.stats.updates


def _save(path: Path, header: dict, **tensors: torch.Tensor) -> None:
    state = {**SharedPolicy().state_dict(), **tensors}
    path.write_bytes(safetensors.torch.save(state, {"calumma": json.dumps(header)}))


GOOD = {"format": "calumma-policy", "version": 1, "hidden": 32}


@pytest.mark.parametrize(
    "header, tensors, reason",
    [
        ({**GOOD, "version": 2}, {}, "calumma-policy version 2"),
        ({**GOOD, "format": "something"}, {}, "something version 1"),
        ({**GOOD, "hidden": 16}, {}, "size mismatch"),
        ({"format": "calumma-policy"}, {}, "version"),
        (GOOD, {"mean": torch.full((256,), torch.nan)}, "not finite"),
        (GOOD, {"another": torch.zeros(1)}, "another"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, header, tensors, reason: str) -> None:
    path = tmp_path / "p.safetensors"
    _save(path, header, **tensors)
    with pytest.raises(
        InputError, match=rf"p\.safetensors cannot be used .*{reason}.*expected calumma-policy"
    ) as error:
        load_policy(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"rubbish", safetensors.torch.save({"a": torch.zeros(1)})])
def test_a_file_that_is_no_policy_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(InputError, match="cannot be used"):
        load_policy(tmp_path / "p")
    with pytest.raises(InputError, match="cannot be used"):
        load_policy(tmp_path / "missing")


def test_without_torch_only_the_learning_strategies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    for module in ("policies", "ppo"):
        monkeypatch.delitem(sys.modules, f"calumma.search.{module}")
    with pytest.raises(InputError, match=r"'rl\+as' learns with torch.*calumma\[torch\]"):
        make_strategy("rl+as", SPACE, generator(0, "test"))
    assert len(make_strategy("sa+as", SPACE, generator(0, "test")).ask(4)) == 4
