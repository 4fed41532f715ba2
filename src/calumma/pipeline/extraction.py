"""Import, simplify, lower, extract: the one way from a model to its tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calumma.core.contraction import FLOAT32, Contraction
from calumma.frontend.importer import import_model
from calumma.graph.imported_model import ImportedModel
from calumma.lowering.lowering import LoweredGraph, lower
from calumma.lowering.simplify import simplify
from calumma.target import Target
from calumma.tasks import ModelTasks, extract


@dataclass(frozen=True)
class ExtractedModel:
    """A model as fused kernels, and the distinct ones among them as tasks; nothing is scheduled yet."""

    name: str
    """For people: the file's name without its suffix, or the module's class."""
    model_hash: str
    """SHA-256, in hexadecimal, of structure, weights and shapes of the inputs."""
    graph: LoweredGraph
    parts: ModelTasks
    phases_s: Mapping[str, float]
    """Seconds by phase: import, lower, tasks; without the imports of Python and TVM."""


def extract_tasks(
    model: Any,
    target: Target,
    contraction: Contraction = FLOAT32,
    *,
    example_inputs: Sequence[Any] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    on_phase: Callable[[str], None] = lambda name: None,
) -> ExtractedModel:
    """Import a model, simplify and lower its graph, and extract its tasks.

    Args:
        model: as in `frontend.importer.import_model`, or what that returned.
        target: the CPU to compile for.
        contraction: what convolutions and matrix products read.
        example_inputs, shapes: as in `import_model`.
        on_phase: called with the name of every phase that begins.

    Raises:
        InputError: the model cannot be imported.
    """
    phases_s: dict[str, float] = {}
    start = time.perf_counter()

    def lap(phase: str) -> None:
        nonlocal start
        now = time.perf_counter()
        phases_s[phase] = now - start
        start = now

    on_phase("import")
    if isinstance(model, ImportedModel):
        imported = model
    else:
        imported = import_model(model, example_inputs=example_inputs, shapes=shapes)
    lap("import")
    on_phase("lower")
    graph = lower(simplify(imported.graph), target, contraction)
    lap("lower")
    on_phase("tasks")
    parts = extract(graph.mod, len(graph.inputs))
    lap("tasks")
    return ExtractedModel(imported.name, imported.model_hash, graph, parts, phases_s)
