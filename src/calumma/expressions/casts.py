"""Between the wide type that kernels compute in (float32) and the narrow types that contractions read.

A narrow type's elements are widened where they are used, exactly, and rounded to nearest where they are stored. Packed
weights hold, per `pack` consecutive elements of the reduction, those of every lane side by side, [.., K / pack,
pack * L], which is how a dot product takes them.

bfloat16 is the upper half of a float32. TVM computes it in float32 and would choose between an element and zero there
as well, so that padded inputs hold its bits, as uint16.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes  # noqa: F401 - makes NumPy know "bfloat16"
import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from calumma.core.contraction import Contraction, contraction_reading
from calumma.tvm_compat.bfloat16 import nearest

_BFLOAT16 = "bfloat16"
_BITS = "uint16"


def is_narrow(tensor: te.Tensor) -> bool:
    """Whether the elements are of a contraction's narrow type."""
    return contraction_reading(str(tensor.dtype)).is_narrow


def as_stored(value: tirx.Expr) -> tirx.Expr:
    """An element as what a padded copy may hold: the bits of a bfloat16, anything else as it is."""
    return tirx.reinterpret(_BITS, value) if str(value.ty) == _BFLOAT16 else value


def from_stored(value: tirx.Expr, dtype: str) -> tirx.Expr:
    """The inverse of `as_stored`, for elements of type `dtype`."""
    return tirx.reinterpret(_BFLOAT16, value) if dtype == _BFLOAT16 else value


def widened(value: tirx.Expr) -> tirx.Expr:
    """A value, or what `as_stored` made of it, as float32; one that is float32 as it is."""
    if str(value.ty) == "float32":
        return value
    if str(value.ty) not in (_BFLOAT16, _BITS):
        return value.astype("float32")
    return tirx.reinterpret("float32", as_stored(value).astype("uint32") << tirx.const(16, "uint32"))


def widen(x: te.Tensor) -> te.Tensor:
    """The same values in float32, exactly."""
    return te.compute(x.shape, lambda *i: widened(x(*i)), name="widen")


def narrowing(dtype: str) -> Callable[[te.Tensor], te.Tensor]:
    """The function from a float32 tensor to the nearest values in `dtype`."""

    def rounded(value: tirx.Expr) -> tirx.Expr:
        return nearest(value) if dtype == _BFLOAT16 else value.astype(dtype)

    return lambda x: te.compute(x.shape, lambda *i: rounded(x(*i)), name="narrow")


def packed(weight: NDArray[np.float32], contraction: Contraction) -> NDArray:
    """(.., K, L) float32 -> (.., K / pack, pack * L) as the contraction reads it; `pack` must divide K."""
    *lead, k, lanes = weight.shape
    pack = contraction.pack
    parts = weight.astype(np.dtype(contraction.read)).reshape(*lead, k // pack, pack, lanes)
    return np.ascontiguousarray(parts.swapaxes(-1, -2)).reshape(*lead, k // pack, pack * lanes)


def unpacked(weight: NDArray) -> NDArray[np.float32]:
    """(.., K / pack, pack * L) of any contraction -> (.., K, L) float32: the inverse of `packed`, but for rounding."""
    pack = contraction_reading(weight.dtype.name).pack
    *lead, groups, wide = weight.shape
    parts = weight.astype(np.float32).reshape(*lead, groups, wide // pack, pack)
    return np.ascontiguousarray(parts.swapaxes(-1, -2)).reshape(*lead, pack * groups, wide // pack)
