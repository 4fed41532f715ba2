"""A design space seen in another way: by its knobs alone, for one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import DesignSpace, Indices


class View:
    """A design space in whose place stands whatever a subclass defines; the rest is the space's own."""

    def __init__(self, space: DesignSpace) -> None:
        self._space = space

    def __getattr__(self, name: str) -> Any:
        return getattr(self._space, name)


class KnobFeatures(View):
    """A space whose features are the knobs' indices, as AutoTVM's "knob" features are."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(knob.name for knob in self._space.knobs)

    def features(self, indices: Indices) -> NDArray[np.float32]:
        return np.asarray(indices, dtype=np.float32)
