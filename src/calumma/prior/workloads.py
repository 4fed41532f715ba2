"""Training workloads: layers as the functions that a real model's would become, and the tasks of a user's own models.

A drawn layer is written as a small ONNX model (`families.samples`) and goes the way of all models: importer, graph
passes, lowering, extraction. So its workload has the hash, the template and the features of the real thing. That takes
about 50 ms.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike

from tvm import tirx

from calumma.core.errors import InputError, InternalError
from calumma.core.values import Task
from calumma.families.samples import Layer, LayerModel
from calumma.operators import sample_writers
from calumma.pipeline.extraction import extract_tasks
from calumma.prior.sampling import SHARES, LayerSampler, in_turn
from calumma.target import Target


@dataclass(frozen=True)
class TrainingWorkload:
    """A workload to collect measurements of."""

    task: Task
    function: tirx.PrimFunc
    """The unscheduled function."""
    family: str
    """Of the layer it was drawn as; the name of the model it is from, if it is a user's own."""
    origin: str
    """The layer, or the task's name in the model, for people."""


def drawn_workloads(
    target: Target,
    *,
    seed: int = 0,
    families: Sequence[str] = tuple(SHARES),
    exclude: Collection[str] = (),
    exclude_hashes: Collection[str] = (),
) -> Iterator[TrainingWorkload]:
    """Draw distinct workloads without end, families mixed by their shares; the same ones for the same arguments.

    Args:
        target: the CPU, whose vectors decide the blocked layout.
        seed: decides everything.
        families: those to draw from. What comes of a family does not depend on the others.
        exclude: networks of the table that are held out: their layers take no part in the distribution.
        exclude_hashes: workloads that must not come out, such as all those of held-out networks.

    Raises:
        InputError: a family or a network that does not exist.
    """
    unknown = sorted(set(families) - set(SHARES))
    if unknown or not families:
        raise InputError(f"no family is called {(unknown or [''])[0]!r}: one of {', '.join(SHARES)}")
    sampler = LayerSampler(seed, exclude)

    def draw() -> Iterator[TrainingWorkload]:
        seen = set(exclude_hashes)
        for family, number in in_turn(families):
            workload = realise(sampler.draw(family, number), target)
            if workload.task.workload.hash not in seen:
                seen.add(workload.task.workload.hash)
                yield workload

    return draw()


def model_workloads(
    models: Sequence[str | PathLike[str]], target: Target, *, exclude_hashes: Collection[str] = ()
) -> Iterator[TrainingWorkload]:
    """The distinct tasks of model files, one of each model in turn.

    Raises:
        InputError: a model that cannot be imported; none of them is begun then.
    """
    seen = set(exclude_hashes)
    queues: list[list[TrainingWorkload]] = []
    for model in models:
        extracted = extract_tasks(model, target)
        parts = extracted.parts
        queue = []
        for task in sorted(parts.tasks, key=lambda task: task.weight * task.flops, reverse=True):
            if task.workload.hash not in seen:
                seen.add(task.workload.hash)
                queue.append(TrainingWorkload(task, parts.functions[task.workload.hash], extracted.name, task.name))
        queues.append(queue)
    longest = max(map(len, queues), default=0)
    return (queue[i] for i in range(longest) for queue in queues if i < len(queue))


def realise(layer: Layer, target: Target) -> TrainingWorkload:
    """The workload that a layer becomes.

    Raises:
        InternalError: it did not become a kernel of its own.
    """
    model = LayerModel()
    kernel = sample_writers()[layer.family](model, layer)
    parts = extract_tasks(model.serialised(), target).parts
    # The kernels around it are layout changes, and feeders: of several of one kind, the last one is the layer's.
    found = [task for task in parts.tasks if kernel in _words(task.name)]
    if not found:
        names = ", ".join(task.name for task in parts.tasks)
        raise InternalError(f"layer {layer} gave the kernels {names or 'none'}, expected a {kernel}")
    task = replace(found[-1], weight=1)
    return TrainingWorkload(task, parts.functions[task.workload.hash], layer.family, str(layer))


def _words(name: str) -> str:
    """A fused kernel's name, so that "conv2d" is not found in "depthwise_conv2d"."""
    return name.replace("depthwise_conv2d", "depthwise").replace("global_avg_pool2d", "mean")
