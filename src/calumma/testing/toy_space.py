"""A design space without code, for tests of what searches one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import Indices
from calumma.core.values import Knob, KnobValue
from calumma.space import KnobSpace


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

    def schedule(self, config: Mapping[str, KnobValue]) -> Any:
        raise NotImplementedError("a toy has no code")
