"""A model whose kernels are scheduled and built: what `compile` and `tune` end with."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.artifact import Artifact, Executable, LoweredModel, build, save

if TYPE_CHECKING:
    from collections.abc import Mapping

    from calumma.pipeline.preparation import Configs, PreparedModel


@dataclass(frozen=True, kw_only=True)
class CompiledModel:
    """Machine code and weights of a model, in this process."""

    executable: Executable = field(repr=False)
    lowered: LoweredModel = field(repr=False)

    @functools.cached_property
    def artifact(self) -> Artifact:
        """The model ready to run in this process; needs no C compiler."""
        return Artifact.from_executable(self.executable, self.lowered.params, self.lowered.metadata)

    def save(self, path: Path) -> None:
        """Write the artifact file in one step; where it may be written is for `destination` to say."""
        save(self.executable, self.lowered.params, self.lowered.metadata, path)


def compile_model(
    prepared: PreparedModel,
    configs: Configs,
    latencies_s: Mapping[str, float] | None = None,
    *,
    charged: bool = True,
    cache: bool = True,
) -> CompiledModel:
    """Schedule and build a prepared model.

    Args:
        prepared: the model.
        configs, latencies_s: as for `PreparedModel.lowered`.
        charged: whether the model gets the seconds of the phases "schedule" and "build"; not where the caller charges
            them to a phase of its own.
        cache: as for `artifact.build`.
    """
    phase = prepared.phase if charged else _uncharged
    with phase("schedule"):
        lowered = prepared.lowered(configs, latencies_s)
    with phase("build"):
        executable = build(lowered, prepared.target, prepared.threads, cache=cache)
    return CompiledModel(executable=executable, lowered=lowered)


def _uncharged(name: str) -> AbstractContextManager[None]:
    return nullcontext()
