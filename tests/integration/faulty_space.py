"""A design space some of whose configurations crash, hang, lie or eat memory; workers find it by `SPACE_ENTRY`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import Indices
from calumma.core.values import KnobValue
from calumma.space.base import Knob, KnobSpace
from calumma.target import Target
from tests import measure_spaces

SPACE_ENTRY = "tests.integration.faulty_space:design_space"
FAULTS = ("", "invalid", "build_error", "build_memory", "build_crash", "run_crash", "run_hang", "run_memory", "wrong")


class FaultySpace(KnobSpace):
    """`measure_spaces.scale`, with a tile and a fault as knobs."""

    template, version = measure_spaces.TEMPLATE, measure_spaces.VERSION

    def __init__(self, function: Any) -> None:
        super().__init__((Knob("split", (0, 8)), Knob("fault", FAULTS)))
        self._schedules = measure_spaces.ToySpace(function)

    def default(self) -> Indices:
        return np.zeros(2, np.int32)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return ("split", "fault")

    def features(self, indices: Indices) -> NDArray[np.float32]:
        return indices.astype(np.float32)

    def schedule(self, config: Mapping[str, KnobValue]) -> Any:
        return self._schedules.schedule(config)


def design_space(function: Any, target: Target, threads: int) -> FaultySpace:
    return FaultySpace(function)
