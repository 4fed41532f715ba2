"""The check of design spaces passes for one that keeps its promises, and notices one that does not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from calumma.core.protocols import Indices
from calumma.testing import ToySpace, check_space


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
