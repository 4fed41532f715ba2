"""What every design space promises (`calumma.core.protocols.DesignSpace`), as one reusable check.

A template's own test calls `check_space(space)`; nothing here schedules or lowers anything.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.protocols import DesignSpace, Indices
from calumma.core.values import config_text
from calumma.space.base import Knob, KnobSpace


class ToySpace(KnobSpace):
    """Shaped like the space of a blocked convolution: ordered tiles, unordered reduction orders, invalid corners.

    Args:
        width: what `tile_x` has to divide; it decides how many values that knob has.
        extra: further two-valued knobs, to make the space as large as wanted.
    """

    template = "toy"
    version = 1

    def __init__(self, width: int = 28, extra: int = 0) -> None:
        tiles = tuple(x for x in range(1, width + 1) if width % x == 0)
        super().__init__(
            (
                Knob("tile_x", tiles),
                Knob("tile_c", (1, 2, 4, 8)),
                Knob("split_k", (1, 2, 4, 8, 16, 32)),
                Knob("order", ("xck", "xkc", "cxk", "kxc")),
                Knob("unroll", (False, True), neutral=1),
                *(Knob(f"extra_{i}", (0, 1)) for i in range(extra)),
            )
        )

    def _valid(self, indices: Indices) -> NDArray[np.bool_]:
        columns = self.columns(indices)
        return columns["tile_x"] * columns["tile_c"] <= 32

    def default(self) -> Indices:
        return self.encode({"tile_x": 1, "tile_c": 4, "split_k": 1, "order": "xck", "unroll": False})

    @property
    def feature_names(self) -> tuple[str, ...]:
        orders = tuple(f"order_{name}" for name in self.knobs[3].values)
        extras = tuple(knob.name for knob in self.knobs[5:])
        return ("log_tile_x", "log_tile_c", "log_split_k", "log_accumulators", "unroll", *orders, *extras)

    def features(self, indices: Indices) -> NDArray[np.float32]:
        columns = self.columns(indices)
        x, c, k = (np.log2(columns[name].astype(np.float64)) for name in ("tile_x", "tile_c", "split_k"))
        orders = [columns["order"] == name for name in self.knobs[3].values]
        extras = [columns[knob.name] for knob in self.knobs[5:]]
        return np.stack([x, c, k, x + c, columns["unroll"], *orders, *extras], axis=1).astype(np.float32)

    def schedule(self, config: Any) -> Any:
        raise NotImplementedError("a toy has no code")


def check_space(space: DesignSpace, seed: int = 0, n: int = 64) -> None:
    """Assert everything a design space promises, on `n` sampled configurations."""
    rng = np.random.default_rng(seed)
    d = len(space.knobs)
    counts = np.array([len(knob.values) for knob in space.knobs])
    assert space.template and space.version >= 1
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


def _check_size(space: DesignSpace, rng: np.random.Generator) -> None:
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


def _check_encode_refuses(space: DesignSpace) -> None:
    config = space.decode(space.default())
    with pytest.raises(InputError):
        space.encode({**config, "no such knob": 1})
    with pytest.raises(InputError):
        space.encode({**config, space.knobs[0].name: "no such value"})


@pytest.mark.parametrize(
    "space", [ToySpace(), ToySpace(width=1), ToySpace(width=56, extra=12)], ids=lambda s: str(s.size)
)
def test_toy_space(space: ToySpace) -> None:
    check_space(space)


def test_the_check_notices_a_default_that_is_invalid() -> None:
    class Broken(ToySpace):
        def default(self) -> Indices:
            return self._counts.astype(np.int32) - 1

    with pytest.raises(AssertionError):
        check_space(Broken())


def test_the_check_notices_features_that_depend_on_the_batch() -> None:
    class Broken(ToySpace):
        def features(self, indices: Indices) -> NDArray[np.float32]:
            features = super().features(indices)
            return features - features.mean(axis=0) if len(features) else features

    with pytest.raises(AssertionError):
        check_space(Broken())


def test_a_knob_missing_from_a_config_takes_its_neutral_value() -> None:
    space = ToySpace()
    config = space.decode(space.default())
    del config["unroll"]
    assert space.decode(space.encode(config))["unroll"] is True
