"""What a model is compiled for: one value, checked in one place, handed to every step that needs a part of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calumma import tvm_compat
from calumma.core.contraction import FLOAT32, Contraction, contraction_named, contraction_names
from calumma.core.errors import InputError
from calumma.target import Target


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """How a model is imported, and the machine and the accuracy that it is compiled for.

    Raises:
        InputError: a value that no model could be compiled with; says which and what to give.
    """

    example_inputs: Sequence[Any] | None = field(default=None, compare=False)
    """The tensors that a torch module is called with, in order; their shapes and types become the model's."""
    shapes: Mapping[str, tuple[int, ...]] | None = None
    """Input name -> every dimension, for the inputs of an ONNX model with open dimensions."""
    threads: int | None = None
    """Threads that the model will run on; None takes all physical cores."""
    mcpu: str | None = None
    """LLVM's name of the CPU to compile for; None takes the host."""
    tolerance: float | None = None
    """Largest relative error that an algorithm may have by itself to be considered (`KnobSpace.within`); None takes
    all."""
    precision: str = FLOAT32.name
    """What convolutions and matrix products read, by the name of a contraction (`core.contraction`)."""

    def __post_init__(self) -> None:
        cores = os.cpu_count() or 1
        if self.threads is not None and not (type(self.threads) is int and 1 <= self.threads <= cores):
            raise InputError(f"threads={self.threads!r}: this machine has {cores} logical cores; give 1 to {cores}")
        number = isinstance(self.tolerance, (int, float)) and not isinstance(self.tolerance, bool)
        if self.tolerance is not None and not (number and 0 <= self.tolerance < math.inf):
            raise InputError(
                f"tolerance={self.tolerance!r}: give a relative error of 0 or more, such as 1e-6, or none at all for "
                "no limit"
            )
        if self.precision not in contraction_names():
            self.set_threads()  # before an extension, which may be the one that knows it, imports TVM
        contraction_named(self.precision)

    def set_threads(self) -> int:
        """Give TVM's pool in this process the model's number of threads, and return it.

        To be called before TVM is imported where that is still possible (`tvm_compat.set_threads`); imports it.
        """
        count = tvm_compat.set_threads(self.threads)
        tvm_compat.load()
        return count

    @property
    def contraction(self) -> Contraction:
        """The value of `precision`."""
        return contraction_named(self.precision)

    def target(self) -> Target:
        """Describe the CPU to compile for; loads TVM.

        Raises:
            InputError: LLVM does not know the CPU, or it lacks what the precision needs.
        """
        target, contraction = tvm_compat.target_for(self.mcpu), self.contraction
        if contraction.needs_dot_product and target.dot_product(contraction) is None:
            raise InputError(
                f"precision={self.precision!r}: {target.mcpu} has no {contraction.read} dot product, which it needs; "
                f"use {FLOAT32.name}"
            )
        return target

    def measurable_target(self) -> Target:
        """Describe the CPU to compile for, which has to be one whose code runs on this machine; loads TVM.

        Raises:
            InputError: as for `target`, or this machine lacks some of its instructions.
        """
        target = self.target()
        missing = sorted(set(target.flags) - set(tvm_compat.target_for().flags))
        if missing:
            raise InputError(
                f"mcpu={self.mcpu!r}: this machine lacks {', '.join(missing)}, so nothing can be measured here; use "
                "compile"
            )
        return target
