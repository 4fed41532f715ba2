"""A tuning session over a whole model.

1. What earlier sessions recorded is told to the strategies; the best of it is measured again, because machines drift.
2. Defaults, the biggest tasks first, so that the share of every task in the model's time is known.
3. Small rounds, shared out by expected gain per second, until the budget is spent but for the final check. What a prior
   predicts to be best comes first, then similar tasks' winners and what the strategy proposes.
4. Final check: winners, their closest rivals and the default in alternation; a schedule stays only where it wins.
5. The tuned model against the default one, both whole; the faster one stays.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from calumma._version import __version__
from calumma.core.errors import InputError
from calumma.core.keys import Key, indices_of, key_of
from calumma.core.protocols import Runner, SearchSpace, Store, Template
from calumma.core.rng import generator
from calumma.core.values import Budget, Hardware, KnobValue, MeasureRecord, MeasureResult, Status, Task
from calumma.cost_model import CostModel, GradientBoostedTrees, SharedTrees
from calumma.prior.few_shot import FewShotForest, KnownSpace
from calumma.prior.predictor import TaskPredictor
from calumma.search import StrategyChoice, check_strategy, make_strategy, strategy_name
from calumma.tuner import events
from calumma.tuner.allocation import Allocator
from calumma.tuner.phases import ChargedModel, PhaseClock
from calumma.tuner.result import ModelContest, TaskResult, TuningResult
from calumma.tuner.settings import TuningSettings
from calumma.tuner.state import VERIFIED, TaskState, distance

REMEASURED = "remeasure"
"""What stands for the strategy in the record of a configuration that was measured before: nobody proposed it."""

DEFAULT = "default"
"""The same for a default: the template's own choice."""

PRIOR = "prior"
"""The same for what a prior predicted to be best."""

_TRANSFER = "transfer"


@dataclass(frozen=True)
class _Trial:
    """One configuration on its way to the runner."""

    state: TaskState
    key: Key
    origin: str
    """Who proposed it: a strategy's name, "default", "prior", "transfer" (a similar task's winner) or `REMEASURED`."""


@dataclass
class _Contest:
    """The final check of one task: latency of every rival by pass."""

    state: TaskState
    rivals: list[Key]
    latencies: dict[Key, list[float]]


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
        known: Mapping[str, TaskPredictor] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a session; nothing is measured before `run`.

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
            known: workload hash -> a prior's view of it. Such a task's cost model is the prior's forest, refitted to
                what is measured; it takes the place of the trees that tasks of one template share.
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
        self._runner = runner
        self._store = store
        self._budget = budget
        self._hardware = hardware
        self._toolchain = toolchain
        self._seed = seed
        self._model, self._model_hash = model, model_hash
        self._options = {"strategy": strategy_name(strategy), "seed": seed, **(options or {})}
        self._emit = progress or (lambda event: None)
        self._settings = settings or TuningSettings()
        self._contest = contest
        self._outcome: ModelContest | None = None
        self._clock = clock
        self._phases = PhaseClock(clock)
        guides = self._guides(tasks, known or {})
        self._states = [
            TaskState(
                task,
                space,
                make_strategy(
                    strategy, seen, generator(seed, "search", task.workload.hash), model=ChargedModel(m, self._phases)
                ),
                bounds.get(task.workload.hash),
            )
            for (task, space), (seen, m) in zip(tasks, guides, strict=True)
        ]
        for state in self._states:
            state.first = [key_of(state.space.encode(config)) for config in (first or {}).get(state.hash, ())]
        self._by_hash = {state.hash: state for state in self._states}
        self._allocator = Allocator(self._states, self._settings.near_bound)
        self._session = ""
        self._round = 0
        self._trials = 0
        self._measured_pace_s: float | None = None
        self._round_start_s = 0.0
        self._unreadable = 0
        self._contests: dict[str, _Contest] = {}

    def run(self) -> TuningResult:
        """Spend the budget; Ctrl-C ends it early with the best so far. Whatever was measured is in the store."""
        self._phases.restart()
        interrupted = False
        with self._phases.charge("store"):
            self._session = self._store.start_session(self._model, self._model_hash, self._options)
        try:
            self._recall()
            recalled = sum(len(state.seen) for state in self._states)
            self._emit(events.SessionStarted(self._session, recalled, self._unreadable, self._progress()))
            self._measure_known()
            while shares := self._shares():
                self._search(shares)
            self._final_check()
        except KeyboardInterrupt:
            interrupted = True
        tasks = tuple(self._task_result(state) for state in self._states)
        try:
            if not interrupted:
                self._compare_models(tasks)
        except KeyboardInterrupt:
            interrupted = True
        result = self._result(tasks, interrupted)
        with self._phases.charge("store"):
            self._store.finish_session(self._session, _summary(result, self._states))
        self._emit(events.SessionFinished(result, self._progress()))
        return result

    # Beginning

    def _guides(
        self, tasks: Sequence[tuple[Task, Template]], known: Mapping[str, TaskPredictor]
    ) -> list[tuple[SearchSpace, CostModel]]:
        """What every task's strategy sees of its space, and the cost model of that."""
        shared: dict[tuple[str, int, tuple[str, ...]], SharedTrees] = {}
        guides: list[tuple[SearchSpace, CostModel]] = []
        for task, space in tasks:
            view = known.get(task.workload.hash)
            kind = (space.template, space.version, tuple(space.feature_names))
            if view is not None:
                guides.append((KnownSpace(space, view), FewShotForest(view.family.order)))
            elif self._settings.transfer:
                guides.append((space, shared.setdefault(kind, SharedTrees(self._seed)).member()))
            else:
                guides.append((space, GradientBoostedTrees(self._seed)))
        return guides

    def _recall(self) -> None:
        """Take in what earlier sessions measured on this hardware, and tell the strategies."""
        with self._phases.charge("store"):
            records = self._store.records(
                workloads=list(self._by_hash),
                hardware=self._hardware.fingerprint,
                threads=self._runner.threads,
                cache_state=self._runner.cache_state,
                toolchain=self._toolchain,
            )
        for record in records:
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
                trials.append(_Trial(state, state.ranked()[0], REMEASURED))
            if state.default not in state.seen:
                trials.append(_Trial(state, state.default, DEFAULT))
        share, limit = self._settings.defaults_share, self._budget
        while trials and (limit.seconds is None or self._phases.elapsed_s < share * limit.seconds):
            room = self._room()
            if limit.trials is not None:
                room = min(room, max(1, int(share * limit.trials)) - self._trials)
            batch = trials[: max(0, room)]
            if not batch:
                break
            trials = trials[len(batch) :]
            self._announce(Counter(trial.state.hash for trial in batch))
            self._measure(batch)

    # Rounds

    def _shares(self) -> dict[str, int]:
        """Return the candidates of every task in the next round; empty when the search is over."""
        n = self._room()
        return self._allocator.share_out(n, self._settings.task_share) if n > 0 else {}

    def _room(self) -> int:
        """How many candidates the next round may have: what keeps the workers busy, and what is left pays for."""
        room = self._settings.round_size
        if self._budget.trials is not None:
            room = min(room, self._budget.trials - self._trials)
        if self._budget.seconds is not None:
            left = self._budget.seconds - self._contest_s - self._reserve_s() - self._phases.elapsed_s
            room = min(room, int(left / self._pace_s))
        return max(0, room)

    def _reserve_s(self) -> float:
        """Seconds the final check needs, within its share of the budget."""
        if self._budget.seconds is None:
            return 0.0
        rivals = sum(len(self._rivals(state)) for state in self._states)
        return min(self._settings.final_share * self._budget.seconds, 2 * rivals * self._pace_s)

    @property
    def _contest_s(self) -> float:
        """Seconds kept for the whole models."""
        if self._contest is None or self._budget.seconds is None:
            return 0.0
        return min(self._settings.contest_s, self._settings.contest_share * self._budget.seconds)

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

    def _propose(self, state: TaskState, n: int) -> list[_Trial]:
        """The default if it is still unknown, a prior's advice, a similar task's winner, and the strategy's choice."""
        trials = [_Trial(state, state.default, DEFAULT)] if state.default not in state.seen else []
        while state.first and len(trials) < n:
            key = state.first.pop(0)
            if key not in state.seen and key != state.default:
                trials.append(_Trial(state, key, PRIOR))
        hint = self._hint(state) if len(trials) < n else None
        if hint is not None and hint not in {trial.key for trial in trials}:
            state.hints += 1
            trials.append(_Trial(state, hint, _TRANSFER))
        own = {trial.key for trial in trials}
        while len(trials) < n:
            asked = [key_of(row) for row in state.strategy.ask(n - len(trials))]
            if not asked:
                break
            trials += [_Trial(state, key, state.strategy.name) for key in asked if key not in own]
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
        self._round_start_s = self._phases.elapsed_s
        self._emit(events.RoundStarted(self._round, dict(shares), self._progress()))

    # Measuring

    def _measure(self, trials: Sequence[_Trial]) -> None:
        """Measure, verify what would be a new best, store everything, and let everybody learn from it.

        A result is stored at once, so that a killed session loses only the candidate in hand; one that would be a new
        best is stored when its outputs have been verified.
        """
        records: dict[int, MeasureRecord] = {}

        def keep(i: int, result: MeasureResult) -> None:
            if not self._contends(trials[i], result):
                (records[i],) = self._append([trials[i]], [result])

        best_s = {state.hash: state.best_s for state in self._states if state.best_s is not None}
        results = self._run(trials, best_s, keep)
        self._verify_contenders(trials, results)
        rest = [i for i in range(len(trials)) if i not in records]
        records.update(zip(rest, self._append([trials[i] for i in rest], [results[i] for i in rest]), strict=True))
        for state in dict.fromkeys(trial.state for trial in trials):
            self._learn(state, [(t, r) for t, r in zip(trials, results, strict=True) if t.state is state])
        self._pace(len(trials))
        self._emit(events.TrialsDone(self._round, tuple(records[i] for i in sorted(records)), self._progress()))
        self._round += 1

    def _run(
        self,
        trials: Sequence[_Trial],
        best_s: Mapping[str, float] | None,
        keep: Callable[[int, MeasureResult], None] | None = None,
    ) -> list[MeasureResult]:
        before_s = self._phases.phases_s.get("run", 0.0)
        with self._phases.charge("run"):
            results = self._runner.measure([trial.state.candidate(trial.key) for trial in trials], best_s, keep)
        spent: Counter[str] = Counter()
        for result in results:
            spent.update(result.phases_s)
        self._phases.spread("run", self._phases.phases_s["run"] - before_s, spent)
        return results

    def _verify_contenders(self, trials: Sequence[_Trial], results: list[MeasureResult]) -> None:
        """Verify, task by task, the fastest result that beats the incumbent; one that fails makes room for the next."""
        while True:
            fastest: dict[str, int] = {}
            for i, (trial, result) in enumerate(zip(trials, results, strict=True)):
                if self._contends(trial, result) and (
                    trial.state.hash not in fastest or result.latency_s < results[fastest[trial.state.hash]].latency_s
                ):
                    fastest[trial.state.hash] = i
            pending = [i for i in fastest.values() if trials[i].key not in trials[i].state.verified]
            if not pending:
                return
            for i, verdict in zip(pending, self._verify([trials[i] for i in pending]), strict=True):
                phases_s = {**results[i].phases_s, VERIFIED: sum(verdict.phases_s.values())}
                results[i] = replace(results[i] if verdict.status is Status.OK else verdict, phases_s=phases_s)

    def _contends(self, trial: _Trial, result: MeasureResult) -> bool:
        """Whether a result would be a new best. A default needs no proof: it is what is used without any tuning."""
        if result.status is not Status.OK or trial.key == trial.state.default:
            return False
        best_s = trial.state.best_s
        return best_s is None or result.latency_s < best_s * (1 - self._settings.min_gain)

    def _verify(self, trials: Sequence[_Trial]) -> list[MeasureResult]:
        with self._phases.charge("verify"):
            verdicts = self._runner.verify([trial.state.candidate(trial.key) for trial in trials])
        for trial, verdict in zip(trials, verdicts, strict=True):
            if verdict.status is Status.OK:
                trial.state.verified.add(trial.key)
        return verdicts

    def _append(self, trials: Sequence[_Trial], results: Sequence[MeasureResult]) -> tuple[MeasureRecord, ...]:
        records = tuple(
            MeasureRecord(
                candidate=trial.state.candidate(trial.key),
                result=result,
                hardware=self._hardware,
                threads=self._runner.threads,
                cache_state=self._runner.cache_state,
                toolchain=self._toolchain,
                session=self._session,
                strategy=trial.origin,
                seed=self._seed,
            )
            for trial, result in zip(trials, results, strict=True)
        )
        with self._phases.charge("store"):
            self._store.append(records)
        return records

    def _learn(self, state: TaskState, outcomes: Sequence[tuple[_Trial, MeasureResult]]) -> None:
        """Take in the outcomes of one task."""
        before, before_s = state.best, state.best_s
        for trial, result in outcomes:
            state.note(trial.key, result)
            if trial.origin != REMEASURED:
                self._trials += 1
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

    def _pace(self, candidates: int) -> None:
        """Learn from the round what a candidate costs all told; recent rounds count most."""
        seconds = (self._phases.elapsed_s - self._round_start_s) / candidates
        known = self._measured_pace_s
        self._measured_pace_s = seconds if known is None else 0.7 * known + 0.3 * seconds

    @property
    def _pace_s(self) -> float:
        """Seconds per candidate, all told."""
        return max(self._measured_pace_s or self._settings.candidate_s, 1e-6)

    def _finish(self, state: TaskState, reason: str) -> None:
        if not state.finished:
            state.finished = reason
            self._emit(events.TaskFinished(state.hash, state.task.name, reason))

    # End

    def _final_check(self) -> None:
        """Measure winners, rivals and defaults in alternation, pass by pass, the most doubtful and biggest first."""
        contests = []
        for state in sorted(self._states, key=self._doubt, reverse=True):
            rivals = self._rivals(state)
            if rivals:
                contests.append(_Contest(state, rivals, {rival: [] for rival in rivals}))
        if not contests:
            return
        self._emit(events.FinalCheckStarted(len(contests), self._progress()))
        self._contests = {contest.state.hash: contest for contest in contests}
        for number in range(self._settings.final_passes):
            open_contests = [c for c in contests if number < 2 or self._undecided(c)]
            for group in _groups(open_contests, self._settings.round_size):
                trials = [_Trial(contest.state, rival, REMEASURED) for contest in group for rival in contest.rivals]
                if not self._affordable(len(trials)):
                    return
                self._round_start_s = self._phases.elapsed_s
                results = self._run(trials, None)
                records = self._append(trials, results)
                for trial, result in zip(trials, results, strict=True):
                    self._contests[trial.state.hash].latencies[trial.key].append(result.latency_s)
                self._pace(len(trials))
                self._emit(events.WinnersMeasured(number, records, self._progress()))

    def _rivals(self, state: TaskState) -> list[Key]:
        """The default and the best tuned configurations; none where the default is the best."""
        if state.best is None or state.best == state.default:
            return []
        limit = state.latencies[state.best] * (1 + self._settings.rival_margin)
        close = [k for k in state.ranked() if k not in (state.best, state.default) and state.latencies[k] <= limit]
        default = [state.default] if state.default in state.latencies else []
        rivals = [state.best, *close[: self._settings.rivals - 1], *default]
        return rivals if len(rivals) > 1 else []

    def _affordable(self, n: int) -> bool:
        if self._budget.seconds is None:
            return True
        return self._phases.elapsed_s + n * self._pace_s <= self._budget.seconds - self._contest_s

    def _undecided(self, contest: _Contest) -> bool:
        """Whether the two best rivals, or the best and the default, are closer than the noise."""
        medians = sorted(median(values) for values in contest.latencies.values())
        return medians[1] < medians[0] * (1 + 2 * self._settings.min_gain)

    def _stake(self, state: TaskState) -> float:
        """Seconds of the model's time."""
        return state.task.weight * self._allocator.latency_s(state)

    def _doubt(self, state: TaskState) -> tuple[bool, float]:
        clear = state.default_s is not None and state.best_s is not None and state.best_s < state.default_s / 1.5
        return not clear, self._stake(state)

    def _decide(self, state: TaskState) -> tuple[Key, bool]:
        """Return the configuration to use, and whether the final check decided."""
        contest = self._contests.get(state.hash)
        passes = min((len(values) for values in contest.latencies.values()), default=0) if contest else 0
        if contest and passes:
            values = {key: latencies[:passes] for key, latencies in contest.latencies.items()}
            for key in sorted(contest.rivals, key=lambda key: median(values[key])):
                if key == state.default or np.isinf(median(values[key])):
                    break
                if self._beats(values[key], values.get(state.default)) and self._proven(state, key):
                    return key, True
            return state.default, True
        best, default_s = state.best, state.default_s
        if best is None:
            return state.default, False
        if default_s is None or state.latencies[best] < default_s * (1 - self._settings.unchecked_gain):
            return best, False
        return state.default, False

    def _beats(self, tuned: Sequence[float], default: Sequence[float] | None) -> bool:
        """Whether latencies taken in alternation differ by more than their noise."""
        if default is None:
            return True
        ratios = [t / d for t, d in zip(tuned, default, strict=True)]
        noise = (max(ratios) - min(ratios)) / 2 if all(np.isfinite(ratios)) else 0.0
        return median(ratios) < 1 - max(self._settings.min_gain, noise)

    def _proven(self, state: TaskState, key: Key) -> bool:
        """Whether the outputs are right; a rival that was never the best is verified only if it would win."""
        if key not in state.verified:
            trial = _Trial(state, key, REMEASURED)
            verdict = self._verify([trial])[0]
            if verdict.status is not Status.OK:
                state.note(key, verdict)
                self._append([trial], [verdict])
        return key in state.verified

    def _compare_models(self, tasks: Sequence[TaskResult]) -> None:
        """Run the model with the schedules chosen against the one with defaults, where all of these work."""
        defaults_work = all(state.default_s is not None or state.default not in state.seen for state in self._states)
        if self._contest is None or not defaults_work or not any(task.tuned for task in tasks):
            return
        left = np.inf if self._budget.seconds is None else self._budget.seconds - self._phases.elapsed_s
        seconds = min(self._settings.contest_s, max(left, self._contest_s))
        with self._phases.charge("contest"):
            outcome = self._outcome = self._contest({task.workload: task.config for task in tasks}, seconds)
        self._emit(events.ModelsCompared(outcome.tuned_s, outcome.default_s, outcome.ratio, outcome.tuned_wins))

    def _result(self, tasks: tuple[TaskResult, ...], interrupted: bool) -> TuningResult:
        if self._outcome is not None and not self._outcome.tuned_wins:
            tasks = tuple(self._by_default(task) for task in tasks)
        phases_s = self._phases.phases_s
        seconds = sum(phases_s.values())
        return TuningResult(self._session, tasks, self._trials, seconds, phases_s, interrupted, self._outcome)

    def _by_default(self, task: TaskResult) -> TaskResult:
        state = self._by_hash[task.workload]
        config = state.space.decode(indices_of(state.default))
        return replace(task, config=config, tuned=False, latency_s=task.default_latency_s)

    def _task_result(self, state: TaskState) -> TaskResult:
        key, checked = self._decide(state)
        final = self._contests[state.hash].latencies if checked else {}
        return TaskResult(
            workload=state.hash,
            name=state.task.name,
            weight=state.task.weight,
            template=state.space.template,
            template_version=state.space.version,
            config=state.space.decode(indices_of(key)),
            tuned=key != state.default,
            checked=checked,
            latency_s=median(final[key]) if key in final else state.latencies.get(key),
            default_latency_s=median(final[state.default]) if state.default in final else state.default_s,
            bound_s=state.bound_s,
            trials=state.trials,
            failures=dict(state.failures),
            last_failure=state.last_failure,
        )

    def _progress(self) -> events.SessionProgress:
        seconds_left, trials_left, pace = None, None, self._measured_pace_s
        if self._budget.seconds is not None:
            seconds_left = max(0.0, self._budget.seconds - self._phases.elapsed_s)
        if self._budget.trials is not None:
            trials_left = self._budget.trials - self._trials
        by_trials = trials_left * pace if trials_left is not None and pace is not None else None
        return events.SessionProgress(
            tasks=tuple(state.progress() for state in self._states),
            trials=self._trials,
            elapsed_s=self._phases.elapsed_s,
            seconds_left=seconds_left,
            trials_left=trials_left,
            eta_s=min((eta for eta in (seconds_left, by_trials) if eta is not None), default=None),
            candidates_per_s=1 / pace if pace else None,
        )


def _groups(contests: Iterable[_Contest], size: int) -> list[list[_Contest]]:
    """Pack contests, in order, into groups of about `size` rivals."""
    groups: list[list[_Contest]] = [[]]
    for contest in contests:
        if groups[-1] and sum(len(c.rivals) for c in groups[-1]) + len(contest.rivals) > size:
            groups.append([])
        groups[-1].append(contest)
    return [group for group in groups if group]


def _summary(result: TuningResult, states: Sequence[TaskState]) -> dict[str, Any]:
    """The result as the JSON object kept with the session, with what a report says about its tasks and this machine."""
    return {
        "trials": result.trials,
        "seconds": result.seconds,
        "phases_s": dict(result.phases_s),
        "interrupted": result.interrupted,
        "latency_s": result.latency_s,
        "default_latency_s": result.default_latency_s,
        "contest": None if result.contest is None else asdict(result.contest),
        "environment": {
            "calumma": __version__,
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "tasks": [
            {
                "workload": task.workload,
                "name": task.name,
                "weight": task.weight,
                "template": task.template,
                "template_version": task.template_version,
                "arguments": [[list(shape), dtype] for shape, dtype in state.task.arguments],
                "flops": state.task.flops,
                "size_bytes": state.task.size_bytes,
                "config": dict(task.config),
                "default_config": state.space.decode(indices_of(state.default)),
                "tuned": task.tuned,
                "checked": task.checked,
                "latency_s": task.latency_s,
                "default_latency_s": task.default_latency_s,
                "bound_s": task.bound_s,
                "trials": task.trials,
                "failures": {str(status): n for status, n in task.failures.items()},
                "finished": state.finished,
            }
            for task, state in zip(result.tasks, states, strict=True)
        ],
    }
