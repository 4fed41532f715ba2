"""What a runtime is to a race: three steps (load, set inputs, run), and how its process is held to AVX2."""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

ARTIFACT, ONNX, TORCH = "artifact", "ONNX file", "torch module"
"""What a runtime reads."""


class Unavailable(Exception):
    """The runtime cannot run this model here; the message is the reason, one line."""


@dataclass(frozen=True)
class Job:
    """What a runtime is to load; plain values, which travel to its process as JSON."""

    source: str
    """An artifact, an ONNX file, or "module:function" for torch."""
    shapes: Mapping[str, Sequence[int]]
    """Input name -> shape with every dimension fixed."""
    threads: int
    mcpu: str | None = None
    """The CPU to generate code for, by LLVM's name; None: this machine's."""


@dataclass(frozen=True)
class Hold:
    """How a process is kept from instructions beyond AVX2."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that its libraries read as they are loaded."""
    gap: str = ""
    """What is not held by them, in a few words; empty where all is."""


class Runtime(ABC):
    """One loaded model. It lives alone in a process, so the constructor may set process-wide state."""

    reads: ClassVar[str] = ONNX
    """`ARTIFACT`, `ONNX` or `TORCH`: what `Job.source` is."""
    avx2: ClassVar[Hold] = Hold(gap="it has no switch for instruction sets")
    version: str

    @abstractmethod
    def __init__(self, job: Job) -> None:
        """Load a model, tuned for the latency of one request. Raises Unavailable where that is impossible."""

    @abstractmethod
    def set_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Keep the inputs of all following runs: name -> array."""

    @abstractmethod
    def run(self) -> Sequence[np.ndarray]:
        """Compute once; the outputs in the model's order, valid until the next run."""


def module(name: str, extra: str = "bench") -> Any:
    """Import a runtime's module. Raises Unavailable, with the extra of calumma that brings it, if it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0] and error.name != name:
            raise
        package = name.partition(".")[0]
        raise Unavailable(f'{package} is not installed (pip install "calumma[{extra}]")') from None


def version_of(package: str) -> str:
    """The version of an installed package, by its name in the index."""
    return importlib.metadata.version(package)
