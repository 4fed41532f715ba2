"""bfloat16 in tensor expressions and in packed weights.

What contractions read is bfloat16, what they add up float32. Two consecutive elements of the reduction make a *pair*:
packed weights hold, per pair, the two elements of every lane side by side, [.., K / 2, 2 L], which is how the CPU's
dot product takes them (`tvm_compat.dot_product`).

Padded inputs hold the bits, as uint16: TVM would choose between an element and zero in float32.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from calumma.tvm_compat.bfloat16 import nearest

DTYPE = "bfloat16"
BITS = "uint16"


def is_narrow(tensor: te.Tensor) -> bool:
    """Whether the elements are bfloat16."""
    return str(tensor.dtype) == DTYPE


def bits(value: tirx.Expr) -> tirx.Expr:
    """The bits of a bfloat16 value."""
    return tirx.reinterpret(BITS, value)


def widened(value: tirx.Expr) -> tirx.Expr:
    """A value as float32, of which bfloat16 (or the bits of it) is the upper half; one that is float32 as it is."""
    if str(value.ty) == "float32":
        return value
    half = value if str(value.ty) == BITS else bits(value)
    return tirx.reinterpret("float32", half.astype("uint32") << tirx.const(16, "uint32"))


def widen(x: te.Tensor) -> te.Tensor:
    """The same values in float32, exactly."""
    return te.compute(x.shape, lambda *i: widened(x(*i)), name="widen")


def narrow(x: te.Tensor) -> te.Tensor:
    """The nearest values in bfloat16, which has 8 bits of mantissa."""
    return te.compute(x.shape, lambda *i: nearest(x(*i)), name="narrow")


def in_pairs(packed: NDArray[np.float32]) -> NDArray:
    """(.., K, L) float32 -> (.., K / 2, 2 L) bfloat16: pairs of the reduction side by side; K must be even."""
    *lead, k, lanes = packed.shape
    pairs = packed.astype(ml_dtypes.bfloat16).reshape(*lead, k // 2, 2, lanes)
    return np.ascontiguousarray(pairs.swapaxes(-1, -2)).reshape(*lead, k // 2, 2 * lanes)


def out_of_pairs(packed: NDArray) -> NDArray[np.float32]:
    """(.., K / 2, 2 L) bfloat16 -> (.., K, L) float32: the inverse of `in_pairs`, but for the rounding."""
    *lead, pairs, wide = packed.shape
    halves = packed.astype(np.float32).reshape(*lead, pairs, wide // 2, 2)
    return np.ascontiguousarray(halves.swapaxes(-1, -2)).reshape(*lead, 2 * pairs, wide // 2)
