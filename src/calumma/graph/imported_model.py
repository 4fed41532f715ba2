"""A model as importers hand it on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calumma.graph.nodes import Graph

Shapes = Mapping[str, tuple[int, ...]]
"""Input name -> every dimension of that input."""


@dataclass(frozen=True)
class ImportedModel:
    """A model as a graph of Relax operators, not yet simplified, every shape fixed."""

    graph: Graph
    name: str
    """For people: the file's name without its suffix, or the module's class."""
    model_hash: str
    """SHA-256, in hexadecimal, of everything that decides the graph: structure, weights, shapes of the inputs."""
    phases_s: Mapping[str, float]
    """Seconds by phase: read, graph (ONNX); export, graph (torch)."""


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.phases_s: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.phases_s[name] = time.perf_counter() - start
