"""A design space seen through other features: a prior's opinion beside its own, or its knobs alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import DesignSpace, Indices
from calumma.cost_model import TreePrior

PRIOR = "prior"
"""Name of the feature that is a prior's opinion."""


class InformedSpace:
    """A space one of whose features, the last, is a prior's opinion of the configuration."""

    def __init__(self, space: DesignSpace, prior: TreePrior) -> None:
        self._space = space
        self._prior = prior

    def __getattr__(self, name: str) -> Any:
        return getattr(self._space, name)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return (*self._space.feature_names, PRIOR)

    def features(self, indices: Indices) -> NDArray[np.float32]:
        own = self._space.features(indices)
        opinion = self._prior.predict(self._space.feature_names, own)
        return np.concatenate([own, opinion[:, None].astype(np.float32)], axis=1)


class KnobFeatures:
    """A space whose features are the knobs' indices, as AutoTVM's "knob" features are."""

    def __init__(self, space: DesignSpace) -> None:
        self._space = space

    def __getattr__(self, name: str) -> Any:
        return getattr(self._space, name)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(knob.name for knob in self._space.knobs)

    def features(self, indices: Indices) -> NDArray[np.float32]:
        return np.asarray(indices, dtype=np.float32)
