"""Our search strategies inside MetaSchedule's tuner, on the design spaces that its own rules generate.

    from calumma.integrations.metaschedule import search_strategy

    ms.tune_tir(mod, target, work_dir, max_trials_global=256, strategy=search_strategy("evolutionary"))

`tune_tir`, `tune_relax` and whatever else makes a `TuneContext` take it where they take "evolutionary". Builder,
runner, database, cost model and task scheduler stay MetaSchedule's; its cost model is trained by the default
callbacks, but asked by nobody: our strategies bring their own.

Every sampling decision of the generated traces is a knob (`calumma.space.generated`); a configuration becomes a
candidate by replaying its trace with these decisions and applying the tuner's own postprocessors, as MetaSchedule's
evolutionary search does with a mutated trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import s_tir, tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from calumma import tvm_compat
from calumma.core.errors import InputError, InternalError
from calumma.core.protocols import Indices, Strategy
from calumma.core.rng import generator
from calumma.search import make_strategy, strategy_names
from calumma.space.generated import GeneratedSpace
from calumma.target import Target

_REFUSALS = 16
"""Rounds in a row without one configuration that can be scheduled before a search gives up."""


def search_strategy(name: str, seed: int = 0) -> Any:
    """Return a `SearchStrategy` of MetaSchedule that proposes as the strategy `name` does.

    Args:
        name: one of `calumma.search.strategy_names()`.
        seed: of its random numbers, together with the task's own random state (`seed=` of `tune_tir`).

    Raises:
        InputError: there is no strategy of that name.
    """
    if name not in strategy_names():
        raise InputError(f"no strategy is called {name!r}: choose one of {', '.join(strategy_names())}")
    return _KnobSearch(name, seed)


class _Search:
    """One task's search: configurations out of a strategy, as schedules; running times back into it."""

    def __init__(self, space: GeneratedSpace, strategy: Strategy, max_trials: int, batch: int) -> None:
        self._space = space
        self._strategy = strategy
        self._left = max_trials
        self._batch = batch
        self._pending: Indices = np.empty((0, len(space.knobs)), dtype=np.int32)

    def propose(self) -> list[s_tir.Schedule]:
        """Schedules to measure, at most a batch; empty when trials or configurations are used up.

        A configuration that cannot be scheduled is told as failed and costs no trial, as in MetaSchedule.
        """
        wanted = min(self._batch, self._left)
        rows: list[Indices] = []
        schedules: list[s_tir.Schedule] = []
        refused = 0
        while len(schedules) < wanted and refused < _REFUSALS:
            asked = self._strategy.ask(wanted - len(schedules))
            if len(asked) == 0:
                break
            before = len(schedules)
            impossible = []
            for row in asked:
                try:
                    schedules.append(self._space.schedule(self._space.decode(row)))
                    rows.append(row)
                except (s_tir.ScheduleError, InputError):
                    impossible.append(row)
            if impossible:
                self._strategy.tell(np.array(impossible), np.zeros(len(impossible)))
            refused = refused + 1 if len(schedules) == before else 0
        self._pending = np.array(rows, dtype=np.int32).reshape(len(rows), len(self._space.knobs))
        self._left -= len(schedules)
        return schedules

    def learn(self, results: Sequence[Any]) -> None:
        """Take in MetaSchedule's results of what was proposed last, in the same order."""
        if len(results) != len(self._pending):
            raise InternalError(
                f"{len(results)} results came back for {len(self._pending)} candidates: expected as many"
            )
        self._strategy.tell(self._pending, np.array([_throughput(result) for result in results]))


def _throughput(result: Any) -> float:
    """Calls per second by the mean of its runs, as MetaSchedule ranks; 0 for a failure."""
    seconds = [float(value) for value in result.run_secs or ()]
    return 0.0 if result.error_msg is not None or not seconds else 1.0 / float(np.mean(seconds))


@derived_object
class _KnobSearch(ms.search_strategy.PySearchStrategy):
    def __init__(self, name: str, seed: int) -> None:
        super().__init__()
        self.name = name
        self.seed = seed
        self.context: Any = None
        self.search: _Search | None = None

    def _initialize_with_tune_context(self, context: Any) -> None:
        self.context = context

    def pre_tuning(
        self,
        max_trials: int,
        num_trials_per_iter: int,
        design_spaces: list[s_tir.Schedule],
        database: Any = None,
        cost_model: Any = None,
    ) -> None:
        if self.search is not None:
            raise InternalError("pre_tuning was called twice: call post_tuning between two tunings")
        context = self.context
        space = _space(context, [schedule.trace for schedule in design_spaces])
        rng = generator(self.seed, "metaschedule", str(context.task_name), int(context.rand_state))
        self.search = _Search(space, make_strategy(self.name, space, rng), max_trials, num_trials_per_iter)

    def post_tuning(self) -> None:
        self.search = None

    def generate_measure_candidates(self) -> list[Any] | None:
        schedules = self._running().propose()
        if not schedules:
            return None
        arguments = ms.arg_info.ArgInfo.from_entry_func(self.context.mod, remove_preproc=True)
        return [ms.search_strategy.MeasureCandidate(schedule, arguments) for schedule in schedules]

    def notify_runner_results(self, measure_candidates: list[Any], results: list[Any]) -> None:
        self._running().learn(results)

    def clone(self) -> Any:
        return _KnobSearch(self.name, self.seed)

    def _running(self) -> _Search:
        if self.search is None:
            raise InternalError("no tuning is under way: call pre_tuning first")
        return self.search


def _space(context: Any, traces: list[Any]) -> GeneratedSpace:
    """The knobs of the tuner's own design space."""
    (func,) = [f for f in context.mod.functions.values() if isinstance(f, tirx.PrimFunc)]
    threads = int(context.target.attrs.get("num-cores", 1))
    postprocs = context.space_generator.postprocs or ()
    return GeneratedSpace(func, _target(context.target), threads, traces=traces, postprocs=postprocs)


def _target(target: Any) -> Target:
    """The CPU of a target; the host for any other target: only the default configuration depends on it."""
    mcpu = target.attrs.get("mcpu")
    return tvm_compat.target_for(str(mcpu) if str(target.kind) == "llvm" and mcpu else None)
