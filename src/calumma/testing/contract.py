"""What every design space promises (`calumma.core.protocols.SearchSpace`), as one check."""

from __future__ import annotations

import math

import numpy as np

from calumma.core.errors import InputError
from calumma.core.protocols import SearchSpace
from calumma.core.values import config_text


def check_space(space: SearchSpace, seed: int = 0, n: int = 64) -> None:
    """Assert what every design space promises of its configurations, on `n` sampled ones; nothing is scheduled.

    Raises:
        AssertionError: it does not keep it.
    """
    rng = np.random.default_rng(seed)
    d = len(space.knobs)
    counts = np.array([len(knob.values) for knob in space.knobs])
    assert len({knob.name for knob in space.knobs}) == d
    for knob in space.knobs:
        assert knob.values and len(set(map(repr, knob.values))) == len(knob.values), knob
        assert all(isinstance(value, int | str | bool) for value in knob.values), knob
    _check_size(space, np.random.default_rng(seed))

    sampled = space.sample(rng, n)
    assert sampled.dtype == np.int32 and sampled.shape[1] == d and 1 <= len(sampled) <= n
    assert len(np.unique(sampled, axis=0)) == len(sampled)
    assert space.valid(sampled).all()
    np.testing.assert_array_equal(space.sample(np.random.default_rng(seed), n), sampled)
    assert space.sample(rng, 0).shape == (0, d)

    default = space.default()
    assert default.shape == (d,) and space.valid(default[None, :])[0]
    np.testing.assert_array_equal(space.default(), default)

    for row in [default, *sampled]:
        config = space.decode(row)
        assert list(config) == [knob.name for knob in space.knobs if knob.name in config]
        config_text(config)
        np.testing.assert_array_equal(space.encode(config), row)
    _check_encode_refuses(space)

    np.testing.assert_array_equal(space.canonical(sampled), sampled)
    anywhere = rng.integers(0, counts, size=(n, d)).astype(np.int32)
    canonical = space.canonical(anywhere)
    np.testing.assert_array_equal(space.canonical(canonical), canonical)
    assert not space.valid(anywhere[(canonical != anywhere).any(axis=1)]).any()

    assert not space.valid(np.stack([counts, np.full(d, -1)]).astype(np.int32)).any()
    assert space.valid(np.empty((0, d), dtype=np.int32)).shape == (0,)

    for row in [default, *sampled[:8]]:
        around = space.neighbours(row)
        assert around.shape[1] == d and space.valid(around).all()
        assert (np.abs(around - row).sum(axis=1) == 1).all()
        assert len(np.unique(around, axis=0)) == len(around)

    features = space.features(sampled)
    assert features.dtype == np.float32 and features.shape == (len(sampled), len(space.feature_names))
    assert len(set(space.feature_names)) == len(space.feature_names)
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(space.features(sampled[::-1]), features[::-1])
    np.testing.assert_array_equal(space.features(sampled[:1]), features[:1])
    assert space.features(sampled[:0]).shape == (0, features.shape[1])


def _check_size(space: SearchSpace, rng: np.random.Generator) -> None:
    """The size is the number of canonical index vectors: all of them where no knob depends on another."""
    counts = [len(knob.values) for knob in space.knobs]
    product = math.prod(counts)
    if product <= 1 << 16:
        grid = np.indices(counts).reshape(len(counts), -1).T.astype(np.int32)
        assert space.size == len(np.unique(space.canonical(grid), axis=0))
        return
    anywhere = rng.integers(0, counts, size=(4096, len(counts))).astype(np.int32)
    independent = bool((space.canonical(anywhere) == anywhere).all())
    assert space.size == product if independent else space.size < product


def _check_encode_refuses(space: SearchSpace) -> None:
    config = space.decode(space.default())
    for wrong in ({"no such knob": 1}, {space.knobs[0].name: "no such value"}):
        try:
            space.encode({**config, **wrong})
        except InputError:
            continue
        raise AssertionError(f"encode took {wrong}: expected an InputError")
