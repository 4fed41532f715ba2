"""The interfaces between rooms. Each has at least two implementations and one conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calumma.core.values import Candidate, Knob, KnobValue, MeasureRecord, MeasureResult, Repacking, Session

Indices = NDArray[np.int32]
"""Configurations as knob indices: (n_knobs,) for one, (n_configs, n_knobs) for many."""


class SearchSpace(Protocol):
    """The configurations of a design space as vectors of indices, one per knob: what searches and cost models see."""

    @property
    def knobs(self) -> tuple[Knob, ...]: ...

    @property
    def size(self) -> int:
        """Number of canonical index vectors, valid or not."""
        ...

    def encode(self, config: Mapping[str, KnobValue]) -> Indices:
        """Knob values by name -> indices (n_knobs,); a missing knob takes its neutral value. Raises InputError."""
        ...

    def decode(self, indices: Indices) -> dict[str, KnobValue]:
        """Indices (n_knobs,) -> knob values by name, in the order of the knobs.

        A knob that means nothing beside the others may be left out.
        """
        ...

    def valid(self, indices: Indices) -> NDArray[np.bool_]:
        """(n_configs, n_knobs) -> (n_configs,): whether each configuration can be scheduled."""
        ...

    def canonical(self, indices: Indices) -> Indices:
        """(n_configs, n_knobs) -> the same, every knob that means nothing beside the others at its first value.

        Only canonical configurations are valid. Most spaces have no such knobs; one with several algorithms has.
        """
        ...

    def sample(self, rng: np.random.Generator, n: int) -> Indices:
        """Return up to `n` distinct valid configurations (m, n_knobs), m < n only when the space has no more."""
        ...

    def neighbours(self, indices: Indices) -> Indices:
        """All valid configurations one knob step from (n_knobs,), as (m, n_knobs)."""
        ...

    def default(self) -> Indices:
        """The configuration (n_knobs,) to use without any measurement."""
        ...

    def features(self, indices: Indices) -> NDArray[np.float32]:
        """(n_configs, n_knobs) -> (n_configs, n_features), vectorised; columns named by `feature_names`."""
        ...

    @property
    def feature_names(self) -> tuple[str, ...]: ...


class Template(SearchSpace, Protocol):
    """All the ways a template can schedule one workload: what workers, the pipeline and the prior need besides.

    `calumma.space.KnobSpace` answers all of it but validity, default, features and schedule.
    """

    template: str
    version: int
    """Grows when an old configuration would mean different code."""
    error: float
    """About the largest error of the algorithm by itself, relative to the largest output; 0 where it computes as the
    workload says."""

    def schedule(self, config: Mapping[str, KnobValue]) -> Any:
        """Apply a configuration; returns a `tvm.s_tir.Schedule`. Raises ScheduleError from TVM if it cannot."""
        ...

    def repacking(self, config: Mapping[str, KnobValue]) -> Mapping[int, Repacking]:
        """Weights, by position of the argument, that `schedule(config)` takes in another form than the workload."""
        ...

    def default_in_model(self) -> Indices:
        """The configuration (n_knobs,) to use in a model without any measurement; mostly `default`."""
        ...

    def grid(self, fixed: Collection[str] = ()) -> Indices:
        """Every valid configuration (m, n_knobs) whose `fixed` knobs are at their first value, whatever the size."""
        ...

    def within(self, tolerance: float) -> Template:
        """The same without algorithms whose `error` exceeds a tolerance; the plain one always stays."""
        ...

    def costs(self, flops: float, weight_bytes: float) -> tuple[tuple[float, float], ...]:
        """Operations and bytes of weights of the workload, by each algorithm that there is for it."""
        ...

    def estimate(self, indices: Indices) -> NDArray[np.float64]:
        """Relative times (n_configs,), above 0, by the template's own reasoning; all 1 where it does not reason."""
        ...


class Strategy(Protocol):
    """Proposes what to measure next in one design space (ask), and learns from what came out (tell)."""

    name: str

    def ask(self, n: int) -> Indices:
        """Return up to `n` distinct valid configurations never asked or told before; empty once all are used up."""
        ...

    def tell(self, indices: Indices, scores: NDArray[np.float64]) -> None:
        """Report outcomes: scores (n,) are throughputs in no particular unit, higher is better, 0 = failed."""
        ...


class Runner(Protocol):
    """Measures candidates. Failures are results, never exceptions."""

    cache_state: str
    threads: int

    def measure(
        self,
        candidates: Sequence[Candidate],
        best_s: Mapping[str, float] | None = None,
        on_result: Callable[[int, MeasureResult], None] | None = None,
    ) -> list[MeasureResult]:
        """Measure a batch; one result per candidate, in order.

        Args:
            candidates: any number, of any workloads.
            best_s: workload hash -> latency in seconds of the best so far; a candidate clearly slower stops early.
            on_result: called with a candidate's position and its result as soon as that is known, so that it can be
                kept before the next one runs; the seconds by phase may still be corrected at the end of the batch.
        """
        ...

    def verify(self, candidates: Sequence[Candidate]) -> list[MeasureResult]:
        """Compare each candidate's outputs with its unscheduled function's, on random inputs.

        The status is OK or WRONG_OUTPUT, or how the candidate failed to run at all.
        """
        ...

    def close(self) -> None:
        """End all workers. Idempotent."""
        ...


class Store(Protocol):
    """Append-only records and tuning sessions."""

    def append(self, records: Sequence[MeasureRecord]) -> None:
        """Store records durably: once this returns, a killed process loses none of them."""
        ...

    def records(
        self,
        *,
        workloads: Iterable[str] | None = None,
        hardware: str | None = None,
        threads: int | None = None,
        cache_state: str | None = None,
        toolchain: str | None = None,
        session: str | None = None,
    ) -> list[MeasureRecord]:
        """Return the records that match every given filter (workload hash, hardware fingerprint...), oldest first."""
        ...

    def start_session(self, model: str, model_hash: str, options: Mapping[str, Any]) -> str:
        """Store the start of a tuning session; returns its id. `options` is a JSON object."""
        ...

    def finish_session(self, session: str, summary: Mapping[str, Any]) -> None:
        """Store the end of a session, once. Raises DatabaseError if there is none of that id or it is finished."""
        ...

    def sessions(self) -> list[Session]:
        """Return all sessions, oldest first."""
        ...

    def close(self) -> None:
        """Release the store; it cannot be used afterwards. Idempotent."""
        ...
