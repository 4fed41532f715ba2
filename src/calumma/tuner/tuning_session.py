"""A tuning session over a whole model.

1. What earlier sessions recorded is told to the strategies; the best of it is measured again, because machines drift.
2. Defaults, the biggest tasks first, so that the share of every task in the model's time is known.
3. Small rounds, shared out by expected gain per second, until the budget is spent but for the final check. What a prior
   predicts to be best comes first, then similar tasks' winners and what the strategy proposes.
4. Final check: winners, their closest rivals and the default in alternation; a schedule stays only where it wins.
5. The tuned model against the default one, both whole; the faster one stays.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from calumma.core.errors import InputError
from calumma.core.keys import Key, indices_of, key_of
from calumma.core.protocols import Runner, SearchSpace, Store, Template
from calumma.core.rng import generator
from calumma.core.values import Budget, Hardware, KnobValue, MeasureRecord, MeasureResult, Status, Task
from calumma.cost_model import CostModel, GradientBoostedTrees, SharedTrees
from calumma.search import StrategyChoice, check_strategy, make_strategy, strategy_name
from calumma.tuner import events, summary
from calumma.tuner.allocation import Allocator
from calumma.tuner.final_check import FinalCheck
from calumma.tuner.phases import ChargedModel, PhaseClock
from calumma.tuner.result import ModelContest, TaskResult, TuningResult
from calumma.tuner.settings import TuningSettings
from calumma.tuner.spending import Spending
from calumma.tuner.state import TaskState, distance
from calumma.tuner.trial_runner import DEFAULT, PRIOR, REMEASURED, TRANSFER, Trial, TrialRunner
from calumma.tuner.verify import Verifier


class TuningSession:
    """Tunes the tasks of one model within one budget. Used once: build it, `run` it."""

    def __init__(
        self,
        tasks: Sequence[tuple[Task, Template]],
        runner: Runner,
        store: Store,
        budget: Budget,
        *,
        hardware: Hardware,
        toolchain: str,
        bounds: Mapping[str, float],
        strategy: StrategyChoice = "evolutionary",
        seed: int = 0,
        model: str = "",
        model_hash: str = "",
        options: Mapping[str, Any] | None = None,
        progress: Callable[[events.Event], None] | None = None,
        settings: TuningSettings | None = None,
        contest: Callable[[Mapping[str, Mapping[str, KnobValue]], float], ModelContest] | None = None,
        first: Mapping[str, Sequence[Mapping[str, KnobValue]]] | None = None,
        known: Mapping[str, tuple[SearchSpace, CostModel]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a session; nothing is measured before `run`. Long because this is the reference of its arguments.

        Args:
            tasks: the distinct workloads of the model, each with its design space.
            runner: measures and verifies; its threads and cache state go into every record. Not closed here.
            store: where records go and come from. Not closed here.
            budget: seconds count from `run`; trials are distinct configurations measured, defaults included.
                Measuring something again (drift, final check) costs seconds but is no trial.
            hardware: of this machine.
            toolchain: versions that decide the generated code.
            bounds: workload hash -> roofline bound of one call in seconds; a task without one is never "near bound".
            strategy: a name, or what makes one for every task; of a single task also the strategy itself.
            seed: decides everything that is random.
            model: its name, for people.
            model_hash: its identity.
            options: what else the user asked for, a JSON object kept with the session beside strategy and seed.
            progress: called with every event, in the caller's thread.
            settings: how the budget is spent.
            contest: runs the whole model with the given schedules (workload hash -> config) against the one with
                defaults, in about the given seconds; without it the tasks alone decide.
            first: workload hash -> configurations to try before the strategy's, in this order.
            known: workload hash -> the space as a prior sees it, and the prior as a cost model of that; in the place of
                the trees that tasks of one template share.
            clock: monotonic seconds.

        Raises:
            InputError: no such strategy, no limit at all in the budget, or one workload given twice.
        """
        if budget.seconds is None and budget.trials is None:
            raise InputError("a tuning session needs a budget: give seconds, trials or both")
        repeated = [h for h, n in Counter(task.workload.hash for task, _ in tasks).items() if n > 1]
        if repeated:
            raise InputError(f"workload {repeated[0]} was given twice: merge equal tasks and add their weights")
        check_strategy(strategy, single=len(tasks) <= 1)
        self._store = store
        self._strategy = strategy
        self._seed = seed
        self._model, self._model_hash = model, model_hash
        self._options = {"strategy": strategy_name(strategy), "seed": seed, **(options or {})}
        self._emit = progress or (lambda event: None)
        self._settings = settings or TuningSettings()
        self._contest = contest
        self._outcome: ModelContest | None = None
        self._phases = PhaseClock(clock)
        self._spending = Spending(budget, self._settings, self._phases, contest=contest is not None)
        self._trials = TrialRunner(runner, store, self._phases, hardware=hardware, toolchain=toolchain, seed=seed)
        self._verifier = Verifier(self._trials, self._settings.min_gain)
        self._states = self._task_states(tasks, bounds, first or {}, known or {})
        self._by_hash = {state.hash: state for state in self._states}
        self._allocator = Allocator(self._states, self._settings.near_bound)
        self._final_check = FinalCheck(
            self._states,
            self._settings,
            self._spending,
            self._trials,
            self._verifier,
            emit=self._emit,
            stake=self._stake,
        )
        self._round = 0
        self._unreadable = 0

    def run(self) -> TuningResult:
        """Spend the budget; Ctrl-C ends it early with the best so far. Whatever was measured is in the store."""
        self._phases.restart()
        interrupted = False
        with self._phases.charge("store"):
            self._trials.session = self._store.start_session(self._model, self._model_hash, self._options)
        try:
            self._recall()
            recalled = sum(len(state.seen) for state in self._states)
            self._emit(
                events.SessionStarted(
                    self._trials.session, recalled, self._unreadable, self._spending.progress(self._states)
                )
            )
            self._measure_known()
            while shares := self._shares():
                self._search(shares)
            self._final_check.run()
        except KeyboardInterrupt:
            interrupted = True
        tasks = tuple(summary.task_result(state, self._final_check.decide(state)) for state in self._states)
        try:
            if not interrupted:
                self._compare_models(tasks)
        except KeyboardInterrupt:
            interrupted = True
        result = self._result(tasks, interrupted)
        with self._phases.charge("store"):
            self._store.finish_session(result.session, summary.summary(result, self._states))
        self._emit(events.SessionFinished(result, self._spending.progress(self._states)))
        return result

    # Beginning

    def _task_states(
        self,
        tasks: Sequence[tuple[Task, Template]],
        bounds: Mapping[str, float],
        first: Mapping[str, Sequence[Mapping[str, KnobValue]]],
        known: Mapping[str, tuple[SearchSpace, CostModel]],
    ) -> list[TaskState]:
        """Every task with a strategy of its own; arguments as for the session."""
        states = []
        for (task, space), (seen, model) in zip(tasks, self._guides(tasks, known), strict=True):
            key = task.workload.hash
            strategy = make_strategy(
                self._strategy, seen, generator(self._seed, "search", key), model=ChargedModel(model, self._phases)
            )
            state = TaskState(task, space, strategy, bounds.get(key))
            state.first = [key_of(space.encode(config)) for config in first.get(key, ())]
            states.append(state)
        return states

    def _guides(
        self, tasks: Sequence[tuple[Task, Template]], known: Mapping[str, tuple[SearchSpace, CostModel]]
    ) -> list[tuple[SearchSpace, CostModel]]:
        """What every task's strategy sees of its space, and the cost model of that."""
        shared: dict[tuple[str, int, tuple[str, ...]], SharedTrees] = {}
        guides: list[tuple[SearchSpace, CostModel]] = []
        for task, space in tasks:
            guide = known.get(task.workload.hash)
            kind = (space.template, space.version, tuple(space.feature_names))
            if guide is not None:
                guides.append(guide)
            elif self._settings.transfer:
                guides.append((space, shared.setdefault(kind, SharedTrees(self._seed)).member()))
            else:
                guides.append((space, GradientBoostedTrees(self._seed)))
        return guides

    def _recall(self) -> None:
        """Take in what earlier sessions measured on this hardware, and tell the strategies."""
        for record in self._trials.recorded(list(self._by_hash)):
            candidate, state = record.candidate, self._by_hash[record.candidate.workload.hash]
            if (candidate.template, candidate.template_version) != (state.space.template, state.space.version):
                continue
            try:
                state.note(key_of(state.space.encode(candidate.config)), record.result)
            except InputError:
                self._unreadable += 1
        with self._phases.charge("search"):
            for state in self._states:
                state.choose_best()
                self._tell(state, sorted(state.seen))

    def _measure_known(self) -> None:
        """Round 0: the defaults not measured yet, and again the best of earlier sessions; the biggest tasks first."""
        trials = []
        for state in sorted(self._states, key=self._stake, reverse=True):
            if state.latencies:
                trials.append(Trial(state, state.ranked()[0], REMEASURED))
            if state.default not in state.seen:
                trials.append(Trial(state, state.default, DEFAULT))
        while trials and (room := self._spending.room_for_defaults(self._final_check.rivals)) > 0:
            batch, trials = trials[:room], trials[room:]
            self._announce(Counter(trial.state.hash for trial in batch))
            self._measure(batch)

    # Rounds

    def _shares(self) -> dict[str, int]:
        """Return the candidates of every task in the next round; empty when the search is over."""
        n = self._spending.room(self._final_check.rivals)
        return self._allocator.share_out(n, self._settings.task_share) if n > 0 else {}

    def _search(self, shares: Mapping[str, int]) -> None:
        self._announce(shares)
        trials = []
        with self._phases.charge("search"):
            for workload, n in shares.items():
                state = self._by_hash[workload]
                proposed = self._propose(state, n)
                if not proposed:
                    self._finish(state, "used up")
                trials += proposed
        if trials:
            self._measure(trials)

    def _propose(self, state: TaskState, n: int) -> list[Trial]:
        """The default if it is still unknown, a prior's advice, a similar task's winner, and the strategy's choice."""
        trials = [Trial(state, state.default, DEFAULT)] if state.default not in state.seen else []
        while state.first and len(trials) < n:
            key = state.first.pop(0)
            if key not in state.seen and key != state.default:
                trials.append(Trial(state, key, PRIOR))
        hint = self._hint(state) if len(trials) < n else None
        if hint is not None and hint not in {trial.key for trial in trials}:
            state.hints += 1
            trials.append(Trial(state, hint, TRANSFER))
        own = {trial.key for trial in trials}
        while len(trials) < n:
            asked = [key_of(row) for row in state.strategy.ask(n - len(trials))]
            if not asked:
                break
            trials += [Trial(state, key, state.strategy.name) for key in asked if key not in own]
        return trials

    def _hint(self, state: TaskState) -> Key | None:
        """The tuned best of the most similar task, as a configuration of this one that was not tried yet."""
        if not self._settings.transfer or state.hints >= self._settings.hints:
            return None
        donors = [
            (distance(state.task, other.task), i, other.candidate(other.best).config)
            for i, other in enumerate(self._states)
            if other is not state
            and other.best is not None
            and other.best != other.default
            and (other.space.template, other.space.version) == (state.space.template, state.space.version)
        ]
        for _, _, config in sorted(donors, key=lambda donor: donor[:2]):
            try:
                indices = state.space.encode(config)
            except InputError:
                continue  # a tile size of the donor's that this task's shape does not have
            key = key_of(indices)
            if key not in state.seen and key != state.default and state.space.valid(indices[None, :])[0]:
                return key
        return None

    def _announce(self, shares: Mapping[str, int]) -> None:
        self._spending.begin_round()
        self._emit(events.RoundStarted(self._round, dict(shares), self._spending.progress(self._states)))

    # Measuring

    def _measure(self, trials: Sequence[Trial]) -> None:
        """Measure, verify what would be a new best, store everything, and let everybody learn from it.

        A result is stored at once, so that a killed session loses only the candidate in hand; one that would be a new
        best is stored when its outputs have been verified.
        """
        records: dict[int, MeasureRecord] = {}

        def keep(i: int, result: MeasureResult) -> None:
            if not self._verifier.contends(trials[i], result):
                (records[i],) = self._trials.append([trials[i]], [result])

        best_s = {state.hash: state.best_s for state in self._states if state.best_s is not None}
        results = self._trials.measure(trials, best_s, keep)
        self._verifier.verify_contenders(trials, results)
        rest = [i for i in range(len(trials)) if i not in records]
        records.update(
            zip(rest, self._trials.append([trials[i] for i in rest], [results[i] for i in rest]), strict=True)
        )
        for state in dict.fromkeys(trial.state for trial in trials):
            self._learn(state, [(t, r) for t, r in zip(trials, results, strict=True) if t.state is state])
        self._spending.end_round(len(trials))
        self._emit(
            events.TrialsDone(
                self._round, tuple(records[i] for i in sorted(records)), self._spending.progress(self._states)
            )
        )
        self._round += 1

    def _learn(self, state: TaskState, outcomes: Sequence[tuple[Trial, MeasureResult]]) -> None:
        """Take in the outcomes of one task."""
        before, before_s = state.best, state.best_s
        for trial, result in outcomes:
            state.note(trial.key, result)
            if trial.origin != REMEASURED:
                self._spending.trials += 1
                state.trials += 1
            if result.status is not Status.OK:
                state.failures[result.status] += 1
                state.last_failure = f"{result.status}: {result.reason}"
        state.choose_best()
        with self._phases.charge("search"):
            self._tell(state, [trial.key for trial, _ in outcomes])
        searched = [result for trial, result in outcomes if trial.origin not in (DEFAULT, REMEASURED)]
        seconds = sum(sum(result.phases_s.values()) for result in searched)
        self._allocator.learn(state, len(searched), before_s, seconds)
        if state.best_s is not None and state.best not in (None, before, state.default):
            config = state.candidate(state.best or state.default).config
            self._emit(events.NewBest(state.hash, state.task.name, state.best_s, before_s, config))
        if state.bound_s and state.best_s and state.bound_s / state.best_s >= self._settings.near_bound:
            self._finish(state, "near bound")
        elif not state.latencies and state.trials >= self._settings.hopeless:
            self._finish(state, f"failing: none of {state.trials} trials worked, the last one: {state.last_failure}")

    def _tell(self, state: TaskState, keys: Sequence[Key]) -> None:
        if keys:
            indices = np.stack([indices_of(key) for key in keys])
            state.strategy.tell(indices, np.array([state.score(key) for key in keys]))

    def _finish(self, state: TaskState, reason: str) -> None:
        if not state.finished:
            state.finished = reason
            self._emit(events.TaskFinished(state.hash, state.task.name, reason))

    # End

    def _stake(self, state: TaskState) -> float:
        """Seconds of the model's time."""
        return state.task.weight * self._allocator.latency_s(state)

    def _compare_models(self, tasks: Sequence[TaskResult]) -> None:
        """Run the model with the schedules chosen against the one with defaults, where all of these work."""
        defaults_work = all(state.default_s is not None or state.default not in state.seen for state in self._states)
        if self._contest is None or not defaults_work or not any(task.tuned for task in tasks):
            return
        seconds = self._spending.seconds_for_contest()
        with self._phases.charge("contest"):
            outcome = self._outcome = self._contest({task.workload: task.config for task in tasks}, seconds)
        self._emit(events.ModelsCompared(outcome.tuned_s, outcome.default_s, outcome.ratio, outcome.tuned_wins))

    def _result(self, tasks: tuple[TaskResult, ...], interrupted: bool) -> TuningResult:
        if self._outcome is not None and not self._outcome.tuned_wins:
            tasks = tuple(summary.by_default(self._by_hash[task.workload], task) for task in tasks)
        phases_s = self._phases.phases_s
        seconds = sum(phases_s.values())
        return TuningResult(
            self._trials.session, tasks, self._spending.trials, seconds, phases_s, interrupted, self._outcome
        )
