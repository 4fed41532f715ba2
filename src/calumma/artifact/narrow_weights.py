"""Weights in a file in the narrowest type that holds them exactly: those of a float16 model take two bytes, not four.

Nothing is rounded: a weight is narrowed if every one of its values is one of float16 or bfloat16. In memory they are
what the kernels read. Repacked weights (Winograd's) and folded scales are rarely values of a narrow type, and stay as
they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes  # noqa: F401 - makes NumPy know "bfloat16"
import numpy as np
from numpy.typing import NDArray

from calumma.artifact.plan import Plan, align
from calumma.core import hardware
from calumma.core.errors import ArtifactError

_NARROW = ("float16", "bfloat16")
_LEAST_ELEMENTS = 256
"""A smaller weight is stored as it is."""
_GLANCE = 4096
"""Elements that are looked at first: most models hold no narrow values, and show it at once."""


def narrowest(params: Sequence[NDArray]) -> list[NDArray]:
    """Each array in the narrowest type that holds all its values."""
    with ThreadPoolExecutor(hardware.physical_cores()) as pool:
        return list(pool.map(_narrowest, params))


def _narrowest(array: NDArray) -> NDArray:
    if array.dtype != np.float32 or array.size < _LEAST_ELEMENTS:
        return array
    flat = np.ascontiguousarray(array).reshape(-1)
    for name in _NARROW:
        if _holds(flat[:_GLANCE], name) and _holds(flat, name):
            return flat.astype(np.dtype(name))
    return array


def _holds(values: NDArray, name: str) -> bool:
    """Whether every value, bit by bit, is one of a narrow type."""
    with np.errstate(over="ignore"):
        back = values.astype(np.dtype(name)).astype(np.float32)
    return bool(np.array_equal(back.view(np.uint32), values.view(np.uint32)))


def restored(plan: Plan, types: Sequence[str], section: NDArray[np.uint8], weights: NDArray[np.uint8]) -> None:
    """Fill `weights`, laid out as the plan says, from a file's section.

    Args:
        types: element type of each parameter in the file, in order.

    Raises:
        ArtifactError: the section does not hold these parameters.
    """
    offset = 0
    moves = []
    for index, name in zip(plan.param_slots, types, strict=True):
        slot = plan.slots[index]
        target = weights[slot.offset : slot.offset + slot.size_bytes].view(np.dtype(slot.dtype))
        size = target.size * np.dtype(name).itemsize
        if (name != slot.dtype and name not in _NARROW) or offset + size > len(section):
            raise ArtifactError("damaged: the weights are not those of the plan; compile the model again")
        moves.append((target, section[offset : offset + size].view(np.dtype(name))))
        offset += align(size)

    def move(pair: tuple[NDArray, NDArray]) -> None:
        pair[0][:] = pair[1]

    with ThreadPoolExecutor(hardware.physical_cores()) as pool:
        list(pool.map(move, moves))
