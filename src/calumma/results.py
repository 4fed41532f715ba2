"""What `calumma.api` hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.core.values import KnobValue
from calumma.pipeline import CompiledModel

if TYPE_CHECKING:
    from calumma.lowering.lowering import LeftToTvm
    from calumma.pipeline.preparation import PreparedModel
    from calumma.prior.weights import Prior
    from calumma.tuner import ModelContest, TaskResult
    from calumma.tuner.result import TuningResult


@dataclass(frozen=True)
class TaskRow:
    """One task of a model, before anything is measured."""

    name: str
    workload: str
    anchor: str
    """Template of its design space."""
    arguments: tuple[tuple[tuple[int, ...], str], ...]
    """Shape and dtype of every argument, outputs last."""
    weight: int
    """Calls per run of the model."""
    gflop: float
    """Of one call."""
    megabytes: float
    """Inputs and outputs of one call, each counted once."""
    intensity: float
    """flops per byte."""
    bound_ms: float
    """Roofline bound of one call."""
    space_size: int
    knobs: Mapping[str, int]
    """Knob -> number of its values."""
    default: Mapping[str, KnobValue]


@dataclass(frozen=True)
class TaskListing:
    """What would be tuned."""

    rows: tuple[TaskRow, ...]
    layout_transforms: int
    """Kernels left that only change the layout of an activation."""
    peak_gflop_per_s: float
    left_to_tvm: tuple[LeftToTvm, ...]
    """Operators that no rule of calumma covers, with the reasons."""
    machine: str
    """How the probed peak agrees with flops per cycle x clock, one line."""
    import_s: float
    phases_s: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class _Built(CompiledModel):
    """A model that has become an artifact."""

    path: Path | None
    """Where the artifact was saved."""
    phases_s: Mapping[str, float]
    """Seconds by what they were spent on, tuning included."""
    import_s: float
    """Seconds from the model file to fused tasks, without imports."""


@dataclass(frozen=True, kw_only=True)
class CompileResult(_Built):
    """A compiled model."""

    tasks: tuple[TaskRow, ...]
    recorded: int
    """Tasks whose schedule comes from the database."""
    prior: str | None = None
    """Name of the prior that was asked about the others; None if there was none."""
    predicted: int = 0
    """Tasks whose schedule comes from the prior instead of the defaults."""
    note: str = ""
    """Why no prior was asked, or why one that never saw this CPU was; one line, empty if there is nothing to say."""


@dataclass(frozen=True, kw_only=True)
class TuneResult(_Built):
    """A tuned and compiled model."""

    session: str
    """Id of the tuning session in the database."""
    tasks: tuple[TaskResult, ...]
    contest: ModelContest | None
    """How the tuned model did against the default one; the faster one is the result."""
    interrupted: bool
    """Ctrl-C ended the session; the artifact holds the best so far."""
    prior: str | None = None
    """Name of the prior whose best predictions were tried first; None if there was none."""
    note: str = ""
    """Why there was none, or what became of one that never saw this CPU; one line, empty if there is nothing to say."""


@dataclass(frozen=True, kw_only=True)
class LearnResult:
    """A prior and what it was learnt from."""

    prior: Prior = field(repr=False)
    path: Path
    """Where it was saved."""
    rows: int
    """Configurations learnt from."""
    workloads: int
    left_out: Mapping[str, int]
    """Reason -> records that were not learnt from."""
    seconds: float


def task_rows(prepared: PreparedModel) -> tuple[TaskRow, ...]:
    """The tasks of a model, in order."""
    rows = []
    for task in prepared.tasks:
        space = prepared.spaces[task.workload.hash]
        rows.append(
            TaskRow(
                name=task.name,
                workload=task.workload.hash,
                anchor=task.anchor,
                arguments=task.arguments,
                weight=task.weight,
                gflop=task.flops / 1e9,
                megabytes=task.size_bytes / 1e6,
                intensity=task.intensity,
                bound_ms=prepared.bounds[task.workload.hash] * 1e3,
                space_size=space.size,
                knobs={knob.name: len(knob.values) for knob in space.knobs},
                default=prepared.defaults[task.workload.hash],
            )
        )
    return tuple(rows)


def tune_result(
    prepared: PreparedModel,
    compiled: CompiledModel,
    tuned: TuningResult,
    *,
    path: Path | None,
    prior: str | None,
    note: str,
) -> TuneResult:
    """What tuning a model ended with; path, prior and note as in `TuneResult`."""
    return TuneResult(
        path=path,
        phases_s={**prepared.phases_s, **{f"tune.{name}": seconds for name, seconds in tuned.phases_s.items()}},
        import_s=prepared.import_s,
        executable=compiled.executable,
        lowered=compiled.lowered,
        session=tuned.session,
        tasks=tuned.tasks,
        contest=tuned.contest,
        interrupted=tuned.interrupted,
        prior=prior,
        note=note,
    )
