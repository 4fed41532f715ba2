"""What a kernel is fed and how its outputs are judged. NumPy only.

The judge is the relative error max|a - b| / max|b|, a the kernel's output and b the unscheduled function's, over all
elements of an output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_dtypes  # noqa: F401 - makes NumPy know "bfloat16"
import numpy as np
from numpy.typing import NDArray

from calumma.core.contraction import contraction_reading
from calumma.core.rng import generator

_TOLERANCE = {"float64": 1e-6, "float16": 1e-2}
"""Largest relative error by dtype of the output where no contraction says it; integers must agree exactly."""

_TINY = float(np.finfo(np.float32).tiny)
_PERIOD = 1_048_573  # prime, so that repeating the values never lines up with a loop of the kernel


def random_array(
    shape: Sequence[int], dtype: str, seed: int, index: int, *, positive: bool = False, magnitude: float = 1.0
) -> NDArray:
    """Return argument `index` of a kernel: uniform in [-1, 1) (or [0.1, 1)) times `magnitude`, integers from 0 to it.

    Integers stay as small as 1 unless a kernel says otherwise, because they may be indices, which must lie inside any
    axis of two elements or more.
    """
    rng = generator(seed, "argument", index)
    size = min(math.prod(shape), _PERIOD)
    values: NDArray
    if dtype.startswith(("float", "bfloat")):
        values = rng.random(size, dtype=np.float32)
        values = np.float32(magnitude) * (0.1 + 0.9 * values if positive else 2 * values - 1)
    else:
        values = rng.integers(0, int(magnitude) + 1, size)
    return np.resize(values.astype(numpy_dtype(dtype)), shape)


def poisoned(shape: Sequence[int], dtype: str) -> NDArray:
    """Return an output buffer full of a value no kernel writes: NaN, or a large odd integer."""
    if dtype.startswith(("float", "bfloat")):
        return np.full(shape, np.nan, dtype=np.float32).astype(numpy_dtype(dtype))
    if dtype == "bool":
        return np.full(shape, 0x55, dtype=np.uint8).view(np.bool_)
    return np.full(shape, np.iinfo(dtype).max - 90, dtype=dtype)


def numpy_dtype(dtype: str) -> np.dtype:
    """NumPy's dtype of TVM's name; those that NumPy lacks come from `ml_dtypes`."""
    return np.dtype(dtype)


def tolerance(dtype: str) -> float:
    """Largest relative error of an output of a type."""
    contraction = contraction_reading(dtype)
    return contraction.tolerance if contraction.read == dtype else _TOLERANCE.get(dtype, 0.0)


def usable(outputs: Sequence[NDArray]) -> bool:
    """Whether reference outputs can tell right from wrong: all finite, and not every element zero."""
    floats = [output.astype(np.float64) for output in outputs]
    return all(np.isfinite(f).all() for f in floats) and any(f.any() for f in floats)


def judge(outputs: Sequence[NDArray], references: Sequence[NDArray], dtypes: Sequence[str]) -> str:
    """Compare a kernel's outputs with the reference's; returns "" or, in one line, what is wrong."""
    for number, (output, reference, dtype) in enumerate(zip(outputs, references, dtypes, strict=True)):
        if dtype == "bool":  # as bytes, or the poison reads as true
            output, reference = output.view(np.uint8), reference.view(np.uint8)
        a, b = output.astype(np.float64), reference.astype(np.float64)
        unwritten = int((~np.isfinite(a)).sum())
        if unwritten:
            return f"output {number}: {unwritten} of {a.size} elements are not finite or were never written"
        scale = max(float(np.abs(b).max(initial=0.0)), _TINY)
        error = float(np.abs(a - b).max(initial=0.0)) / scale
        if error > tolerance(dtype):
            return f"output {number}: relative error {error:.3g}, allowed {tolerance(dtype):g}"
    return ""
