"""Policies of adaptive exploration: what they see of a configuration, the networks that decide, and their files.

Notation as in `ppo`: N configurations, D knobs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.files import replacing
from calumma.core.protocols import Indices, SearchSpace

Floats = NDArray[np.float32]
_FORMAT = "calumma-policy"
_VERSION = 1
_ACTIONS = 3
_NAME_DIGITS = 16
"""Width of the code of a knob's name."""
_SLOTS = 256
"""Places that features are hashed into by name."""
_SCALE_SAMPLES = 512


class Observation(NamedTuple):
    """What a policy sees of N configurations."""

    tokens: Floats
    """(N, D, K): every knob's place, and for a shared policy its bounds and name."""
    context: Floats
    """(N, C): features hashed by name; C = 0 for the policy of one space."""
    allowed: NDArray[np.bool_]
    """(N, D, 3): which actions stay within bounds."""


class Observer:
    """Turns configurations of one space into observations."""

    def __init__(self, space: SearchSpace, shared: bool) -> None:
        self._space = space
        self._shared = shared
        self._counts = np.array([len(knob.values) for knob in space.knobs], dtype=np.int64)
        if shared:
            sizes = np.log2(self._counts)[:, None] / 4
            codes = np.stack([_code(knob.name) for knob in space.knobs])
            self._static = np.concatenate([sizes, codes], axis=1).astype(np.float32)
            self._hashing = _hashing(space.feature_names)

    def __call__(self, indices: Indices) -> Observation:
        n, d = indices.shape
        place = (2 * indices / np.maximum(self._counts - 1, 1) - 1).astype(np.float32)[..., None]
        allowed = np.stack([indices > 0, np.ones_like(indices, dtype=bool), indices < self._counts - 1], axis=2)
        if not self._shared:
            return Observation(place, np.empty((n, 0), dtype=np.float32), allowed)
        static = np.broadcast_to(self._static, (n, d, self._static.shape[1]))
        tokens = np.concatenate([place, allowed[..., ::2], static], axis=2).astype(np.float32)
        features = self._space.features(indices)
        return Observation(tokens, (np.sign(features) * np.log1p(np.abs(features))) @ self._hashing, allowed)


class SpacePolicy(torch.nn.Module):
    """The published networks, for one space: two hidden layers of 20 for the actor, three for the critic."""

    shared = False

    def __init__(self, n_knobs: int, seed: int) -> None:
        super().__init__()
        with _seeded(seed):
            self.actor = _timid(_layers(n_knobs, 20, 20, _ACTIONS * n_knobs))
            self.critic = _layers(n_knobs, 20, 20, 20, 1)
        self._n_knobs = n_knobs

    def forward(self, tokens: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, D, 1), (N, 0) -> logits (N, D, 3), values (N,)."""
        places = tokens[..., 0]
        return self.actor(places).reshape(-1, self._n_knobs, _ACTIONS), self.critic(places)[:, 0]


class SharedPolicy(torch.nn.Module):
    """One policy for any space: the same small network decides for every knob.

    A knob is known by its name, size and place; all knobs are pooled (Zaheer et al., Deep Sets, 2017), and features are
    hashed by name (Weinberger et al., 2009), so spaces of different knobs and features share what they have in common.
    """

    shared = True

    def __init__(self, hidden: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.hidden = hidden
        with _seeded(seed):
            self.knob = _layers(4 + _NAME_DIGITS, hidden)
            self.task = _layers(_SLOTS, hidden)
            self.actor = _timid(_layers(3 * hidden, hidden, _ACTIONS))
            self.critic = _layers(2 * hidden, hidden, 1)
        self.register_buffer("mean", torch.zeros(_SLOTS))
        self.register_buffer("inverse_deviation", torch.zeros(_SLOTS))

    def forward(self, tokens: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, D, K), (N, C) -> logits (N, D, 3), values (N,)."""
        scaled = ((context - self.mean) * self.inverse_deviation).clamp(-5, 5)
        knobs = torch.tanh(self.knob(tokens))
        summary = torch.cat([knobs.mean(dim=1), torch.tanh(self.task(scaled))], dim=1)
        each = torch.cat([knobs, summary[:, None, :].expand(-1, knobs.shape[1], -1)], dim=2)
        return self.actor(each), self.critic(summary)[:, 0]

    def fit_scale(self, spaces: Sequence[SearchSpace], rng: np.random.Generator) -> None:
        """Set the scale of the features from random configurations of all spaces; a slot that never varies is off."""
        samples = [Observer(space, True)(space.sample(rng, _SCALE_SAMPLES)).context for space in spaces]
        context = np.concatenate(samples)
        deviation = context.std(axis=0)
        inverse = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0.0)
        self.mean.copy_(torch.from_numpy(context.mean(axis=0)))
        self.inverse_deviation.copy_(torch.from_numpy(inverse.astype(np.float32)))


Policy = SpacePolicy | SharedPolicy


def save_policy(policy: SharedPolicy, path: Path, trained_on: Mapping[str, Any]) -> None:
    """Write a policy as safetensors; format, version, sizes and `trained_on` (a JSON object) go into its header."""
    header = {"format": _FORMAT, "version": _VERSION, "hidden": policy.hidden, "trained_on": dict(trained_on)}
    tensors = {name: tensor.contiguous() for name, tensor in policy.state_dict().items()}
    with replacing(path) as out:
        out.write(safetensors.torch.save(tensors, {"calumma": json.dumps(header, sort_keys=True)}))


def load_policy(path: Path) -> SharedPolicy:
    """Read a policy that `save_policy` wrote.

    Raises:
        InputError: the file is missing, is damaged, or holds something else.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["calumma"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        kind = (header["format"], header["version"])
        if kind != (_FORMAT, _VERSION):
            raise ValueError(f"it is {kind[0]} version {kind[1]}")
        policy = SharedPolicy(int(header["hidden"]))
        policy.load_state_dict(tensors)
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("it holds values that are not finite")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as fault:
        reason = " ".join(str(fault).split())[:200]
        raise InputError(
            f"policy {path} cannot be used ({reason}): expected {_FORMAT} version {_VERSION}; train it again, or leave "
            "it out to start from scratch"
        ) from fault
    return policy


def _layers(*widths: int) -> torch.nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[torch.nn.Module] = []
    for i, (width, following) in enumerate(itertools.pairwise(widths)):
        layers += [torch.nn.Linear(width, following)] + ([torch.nn.Tanh()] if i < len(widths) - 2 else [])
    return torch.nn.Sequential(*layers)


def _timid(actor: torch.nn.Sequential) -> torch.nn.Sequential:
    """Make the last layer small, so that a new policy is nearly uniform."""
    with torch.no_grad():
        actor[-1].weight.mul_(0.01)
        actor[-1].bias.zero_()
    return actor


def _code(name: str) -> Floats:
    """A name as `_NAME_DIGITS` signs of +-1, the same in every process."""
    digest = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype=np.uint8)
    return (2.0 * np.unpackbits(digest)[:_NAME_DIGITS] - 1).astype(np.float32)


def _hashing(names: Sequence[str]) -> Floats:
    """(F, slots): every feature goes to the slot of its name, with its name's sign."""
    matrix = np.zeros((len(names), _SLOTS), dtype=np.float32)
    for row, name in enumerate(names):
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[-8:], "little")
        matrix[row, number % _SLOTS] = 1.0 if number >> 63 else -1.0
    return matrix


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Give torch's own generator a seed inside, and its old state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
