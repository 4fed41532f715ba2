"""A design space seen through other features: its knobs alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import DesignSpace, Indices


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
