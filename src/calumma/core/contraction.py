"""Contractions: in which element types convolutions and matrix products read, multiply and add up.

A contraction is a value. Packing, expressions, design spaces and code generation ask it what they need to know; no one
asks for its name. `register_contraction` adds one from outside of the package.
"""

from __future__ import annotations

from dataclasses import dataclass

from calumma.core import extensions
from calumma.core.errors import InputError


@dataclass(frozen=True)
class Contraction:
    """The number format of convolutions and matrix products with constant weights."""

    name: str
    """What users call it ("bf16")."""
    read: str
    """NumPy's (or ml_dtypes') name of the element type of both operands."""
    accumulate: str = "float32"
    """Element type of sums and results, and of everything that does not contract."""
    pack: int = 1
    """Consecutive elements of the reduction that lie side by side in packed weights, for each lane."""
    needs_dot_product: bool = False
    """Whether a CPU without a dot product of `pack` elements (`target.DotProduct`) is refused, as too slow for it."""
    tolerance: float = 1e-3
    """Largest difference of results stored as `read` by two schedules of one kernel, relative to the largest of them:
    sums come in another order, and what is stored is rounded."""

    @property
    def is_narrow(self) -> bool:
        """Whether operands are of another type than sums, and so are stored and widened."""
        return self.read != self.accumulate

    @property
    def read_bytes(self) -> int:
        """Bytes of one element of an operand."""
        return _bytes_of(self.read)

    @property
    def accumulate_bytes(self) -> int:
        """Bytes of one sum."""
        return _bytes_of(self.accumulate)


def _bytes_of(dtype: str) -> int:
    import ml_dtypes  # noqa: F401 - makes NumPy know "bfloat16"; not needed by those who only name contractions
    import numpy as np

    return np.dtype(dtype).itemsize


FLOAT32 = Contraction("fp32", "float32")
BFLOAT16 = Contraction("bf16", "bfloat16", pack=2, needs_dot_product=True, tolerance=2e-2)

_BY_NAME = {contraction.name: contraction for contraction in (FLOAT32, BFLOAT16)}


def contraction_named(name: str) -> Contraction:
    """The contraction of a name, an extension's included. Raises InputError where there is none."""
    if name not in _BY_NAME:
        extensions.load_installed()
    if name not in _BY_NAME:
        raise InputError(f"precision={name!r}: there is no such precision; one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def contraction_reading(dtype: str) -> Contraction:
    """The contraction whose operands have an element type; FLOAT32 where none has, as for what does not contract."""
    return next((contraction for contraction in _BY_NAME.values() if contraction.read == dtype), FLOAT32)


def narrow_types() -> frozenset[str]:
    """The element types that only contractions read."""
    return frozenset(contraction.read for contraction in _BY_NAME.values() if contraction.is_narrow)


def register_contraction(contraction: Contraction) -> None:
    """Make a contraction known in this process.

    Raises:
        InputError: its name, or the type that it reads, is taken.
    """
    for known in _BY_NAME.values():
        if known.name == contraction.name or known.read == contraction.read:
            raise InputError(f"contraction {contraction.name!r}: {known.name!r} reads {known.read} already")
    extensions.note_caller(f"contraction {contraction.name!r}")
    _BY_NAME[contraction.name] = contraction
