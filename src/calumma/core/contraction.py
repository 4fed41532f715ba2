"""Contractions: in which element types convolutions and matrix products read, multiply and add up.

A contraction is a value. Packing, expressions, design spaces and code generation ask it what they need to know; no one
asks for its name. `register_contraction` adds one from outside of the package.
"""

from __future__ import annotations

from dataclasses import dataclass

from calumma.core import extensions
from calumma.core.errors import InputError
from calumma.core.extensions import Registry


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


def _is_float16(dtype: str) -> bool:
    import ml_dtypes

    try:
        return int(ml_dtypes.finfo(dtype).bits) == 16  # type: ignore[no-untyped-call]
    except (TypeError, ValueError):
        return False


FLOAT32 = Contraction("fp32", "float32")
BFLOAT16 = Contraction("bf16", "bfloat16", pack=2, needs_dot_product=True, tolerance=2e-2)

_CONTRACTIONS = Registry("contraction", {contraction.name: contraction for contraction in (FLOAT32, BFLOAT16)})


def contraction_names() -> tuple[str, ...]:
    """The names of all contractions, the default first."""
    return _CONTRACTIONS.names()


def contraction_named(name: str) -> Contraction:
    """The contraction of a name, an extension's included. Raises InputError where there is none."""
    if name not in _CONTRACTIONS.names():
        extensions.load_installed()
    found = _CONTRACTIONS.get(name)
    if found is None:
        raise InputError(f"precision={name!r}: there is no such precision; one of {', '.join(_CONTRACTIONS.names())}")
    return found


def contraction_reading(dtype: str) -> Contraction:
    """The contraction whose operands have an element type; FLOAT32 where none has, as for what does not contract."""
    return next((contraction for contraction in _CONTRACTIONS.values() if contraction.read == dtype), FLOAT32)


def register_contraction(contraction: Contraction) -> None:
    """Make a contraction known in this process, and in the workers that it starts.

    Kernels widen what they read and add up float32: operands are floats of 16 bits that NumPy or ml_dtypes, and LLVM,
    can convert.

    Raises:
        InputError: its name, or the type that it reads, is taken; or its types are others than these.
    """
    if not (contraction.accumulate == FLOAT32.accumulate and _is_float16(contraction.read) and contraction.pack >= 1):
        raise InputError(
            f"contraction {contraction.name!r} reads {contraction.read}, {contraction.pack} packed, and adds up "
            f"{contraction.accumulate}: kernels read floats of 16 bits and add up {FLOAT32.accumulate}"
        )
    for known in _CONTRACTIONS.values():
        if known.read == contraction.read:
            raise InputError(f"contraction {contraction.name!r}: {known.name!r} reads {known.read} already")
    _CONTRACTIONS.add(contraction.name, contraction)
