"""What `calumma.api` hands back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calumma.core.values import KnobValue

if TYPE_CHECKING:
    from calumma.artifact import Artifact, Executable, LoweredModel
    from calumma.lowering.lowering import LeftToTvm
    from calumma.pipeline import CompiledModel
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

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TaskRow:
        """The row that `dataclasses.asdict` turned into JSON values."""
        arguments = tuple((tuple(shape), dtype) for shape, dtype in values["arguments"])
        return cls(**{**values, "arguments": arguments})


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
class _Built:
    """A model that has become an artifact."""

    path: Path | None
    """Where the artifact was saved."""
    phases_s: Mapping[str, float]
    """Seconds by what they were spent on, tuning included."""
    import_s: float
    """Seconds from the model file to fused tasks, without imports; 0 where an earlier call's artifact is used."""
    build: Callable[[], CompiledModel] = field(repr=False)
    """Gives machine code and weights in this process; compiles where an earlier call's artifact was used."""

    @functools.cached_property
    def compiled(self) -> CompiledModel:
        """Machine code and weights in this process."""
        return self.build()

    @property
    def executable(self) -> Executable:
        """Machine code and plan."""
        return self.compiled.executable

    @property
    def lowered(self) -> LoweredModel:
        """Scheduled kernels and weights."""
        return self.compiled.lowered

    @property
    def artifact(self) -> Artifact:
        """The model ready to run in this process; needs no C compiler."""
        return self.compiled.artifact

    def save(self, path: Path) -> None:
        """Write the artifact file in one step; where it may be written is for `destination` to say."""
        self.compiled.save(path)


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
    reused: bool = False
    """Whether `path` is the artifact of an earlier call for the same model, options and records."""

    def to_json(self) -> dict[str, Any]:
        """What a later call hands back with the same artifact, as JSON values."""
        names = ("recorded", "prior", "predicted", "note")
        return {"tasks": [asdict(row) for row in self.tasks], **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_json(
        cls, values: Mapping[str, Any], *, path: Path, phases_s: Mapping[str, float], build: Callable[[], CompiledModel]
    ) -> CompileResult:
        """The result of a call that uses the artifact of an earlier one."""
        tasks = tuple(map(TaskRow.from_json, values["tasks"]))
        told = {**values, "tasks": tasks}
        return cls(path=path, phases_s=phases_s, import_s=0.0, build=build, reused=True, **told)


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
        build=lambda: compiled,
        session=tuned.session,
        tasks=tuned.tasks,
        contest=tuned.contest,
        interrupted=tuned.interrupted,
        prior=prior,
        note=note,
    )
