"""Collecting measurements to learn from: exploration-based code sampling over many workloads.

Ryu, Park & Sung, "One-Shot Tuner for Deep Learning Compilers" (CC 2022), section 3.3: configurations drawn at random
are mostly slow, and a predictor that has seen no others cannot tell good ones from very good ones. So a share of every
workload's configurations comes from a short search trajectory, which begins with the template's default; the rest is
random, so that the slow ones are known too.

The best of two dozen single measurements is fast by luck. So once a workload has its configurations, the best few and
the default are measured again, a batch apart, until each has been measured a few times; what comes to the front by
that, too. Their median is what counts (`dataset`).

What is measured becomes ordinary records in the ordinary store. Workloads come in a fixed order and are given a fixed
number of configurations, those of earlier sessions counted: a collection that was killed goes on where it stopped.
Several workloads are open at a time, so that all workers build at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from calumma.core.errors import InputError
from calumma.core.keys import Key, indices_of, key_of
from calumma.core.protocols import Runner, Store, Template
from calumma.core.rng import generator
from calumma.core.values import COLLECTION, Budget, Candidate, MeasureRecord, MeasureResult, Status
from calumma.cost_model import CostModel, SharedTrees
from calumma.operators import design_space
from calumma.prior.workloads import TrainingWorkload
from calumma.search import StrategyChoice, check_strategy, make_strategy
from calumma.target import Target

RUN_TIMEOUT_S = 4.0
"""For timing one candidate: one that takes longer teaches no more than that it is hopeless."""

DEFAULT, RANDOM, FINALIST = "default", "random", "finalist"
"""What stands for the strategy in the record of a template's own choice, of a random configuration, and of one that is
measured again."""

_HOPELESS = 8
"""A workload none of whose first trials worked is given up after this many."""
_TREE_MEMBERS = 24
"""Workloads that share one cost model: enough to guide each other, few enough to be fitted after every round."""
_FIRST_PACE_S = 0.25
"""Seconds per candidate, until they are known."""
_FIRST_BATCH = 8
"""Candidates of the batch that makes them known."""


@dataclass(frozen=True)
class CollectSettings:
    """How much is measured of each workload, and in which order."""

    configs: int = 24
    """Configurations of a workload, those of earlier sessions included."""
    random_share: float = 0.5
    """Part of them that is random; the others are a search trajectory."""
    strategy: StrategyChoice = "evolutionary"
    """Of the trajectory: a name that `make_strategy` knows, or what makes a strategy for every workload."""
    together: int = 8
    """Workloads that are open at a time."""
    turn: int = 4
    """Configurations that one of them gets in a batch."""
    finalists: int = 3
    """Configurations, beside the default, that are measured again once all are known."""
    measurements: int = 3
    """That each of these has then."""
    most_again: int = 12
    """Measurements of a workload beyond the first of each configuration, at most: in a space where all are level, each
    would become a finalist."""

    def __post_init__(self) -> None:
        if min(self.configs, self.together, self.turn, self.measurements) < 1 or not 0 <= self.random_share <= 1:
            raise InputError(
                f"{self.configs} configurations, {self.together} workloads of {self.turn} at a time and "
                f"{self.measurements} measurements must be at least 1, and a random share of {self.random_share} "
                "between 0 and 1"
            )
        check_strategy(self.strategy, single=False)


@dataclass(frozen=True)
class FamilyProgress:
    """What was collected of one family of layers (or of one model)."""

    family: str
    workloads: int
    """Finished ones, those that earlier sessions finished included."""
    trials: int
    """Of this session."""
    failures: int
    """Of these."""


@dataclass(frozen=True)
class CollectProgress:
    """Where a collection stands."""

    families: tuple[FamilyProgress, ...]
    """In the order in which they came."""
    recalled: int
    """Measurements of earlier sessions that counted for the workloads so far."""
    elapsed_s: float
    seconds_left: float | None
    """Of the budget; None without a limit."""
    trials_left: int | None
    """Of the budget; None without a limit."""
    eta_s: float | None
    """Seconds until the budget is spent; None while that is unknown."""
    candidates_per_s: float | None
    """Recent speed; None before the first batch is done."""

    @property
    def workloads(self) -> int:
        """Workloads that are finished."""
        return sum(family.workloads for family in self.families)

    @property
    def trials(self) -> int:
        """Measurements of this session, failures included."""
        return sum(family.trials for family in self.families)

    @property
    def failures(self) -> int:
        """Of these, those that failed."""
        return sum(family.failures for family in self.families)


@dataclass(frozen=True)
class CollectResult:
    """How a collection ended."""

    session: str
    """Its id in the store."""
    progress: CollectProgress
    statuses: Mapping[str, int]
    """Status -> trials of this session."""
    interrupted: bool
    """Ctrl-C ended it."""
    exhausted: bool
    """There is nothing left to measure."""


class _Open:
    """A workload that is being measured."""

    def __init__(
        self, workload: TrainingWorkload, space: Template, settings: CollectSettings, seed: int, model: CostModel
    ) -> None:
        hash_ = workload.task.workload.hash
        self.workload = workload
        self.space = space
        self._settings = settings
        self._strategy = make_strategy(settings.strategy, space, generator(seed, "collect", hash_), model=model)
        self._rng = generator(seed, "collect random", hash_)
        self._default = key_of(space.default())
        self._measured: dict[Key, list[float]] = {}
        self._known: set[Key] = set()
        self.origins: Counter[str] = Counter()
        self._reference_s: float | None = None
        self._used_up = False

    @property
    def finished(self) -> bool:
        """Whether it has all its configurations, or will never have them."""
        hopeless = not self._measured and len(self._known) >= _HOPELESS
        return hopeless or (self._complete and not self._finalists())

    @property
    def best_s(self) -> float | None:
        return min(map(median, self._measured.values()), default=None)

    @property
    def _complete(self) -> bool:
        """Whether there is no configuration left to be measured for the first time."""
        return self._used_up or len(self._known) >= self._settings.configs

    def _finalists(self) -> list[Key]:
        """Configurations that have to be measured again: of the best few and the default, those measured too seldom."""
        again = sum(len(values) - 1 for values in self._measured.values())
        order = sorted(self._measured, key=lambda key: median(self._measured[key]))
        chosen = dict.fromkeys(order[: self._settings.finalists])
        if self._settings.finalists and self._default in self._measured:
            chosen[self._default] = None
        seldom = [key for key in chosen if len(self._measured[key]) < self._settings.measurements]
        return seldom[: max(0, self._settings.most_again - again)]

    def propose(self, n: int) -> list[tuple[Key, str]]:
        """Up to `n` configurations, each with where it comes from: new ones; when there are none, finalists."""
        if not self._complete:
            proposed = self._first_time(min(n, self._settings.configs - len(self._known)))
            self._used_up = not proposed
            if proposed:
                return proposed
        return [(key, FINALIST) for key in self._finalists()[:n]]

    def _first_time(self, n: int) -> list[tuple[Key, str]]:
        """Up to `n` configurations never measured; none is proposed twice."""
        proposed: list[tuple[Key, str]] = []
        if self._default not in self._known:
            proposed.append((self._default, DEFAULT))
        due = round(self._settings.random_share * min(self._settings.configs, len(self._known) + n))
        random = min(max(0, due - self.origins[RANDOM]), n - len(proposed))
        guided = n - len(proposed) - random
        # Before anything is known of it, a search has nothing but random draws either.
        asked = self._strategy.ask(guided) if guided > 0 and self._known else ()
        taken = self._known | {key for key, _ in proposed}
        for row in asked:
            if (key := key_of(row)) not in taken:
                taken.add(key)
                proposed.append((key, self._strategy.name))
        for row in self.space.sample(self._rng, n + len(taken)):
            if len(proposed) >= n:
                break
            if (key := key_of(row)) not in taken:
                taken.add(key)
                proposed.append((key, RANDOM))
        return proposed[:n]

    def candidate(self, key: Key) -> Candidate:
        config = self.space.decode(indices_of(key))
        return Candidate(self.workload.task.workload, self.space.template, self.space.version, config)

    def note(self, key: Key, origin: str, result: MeasureResult) -> None:
        """Take in an outcome."""
        self._known.add(key)
        self.origins[origin] += 1
        if result.status is Status.OK:
            self._measured.setdefault(key, []).append(result.latency_s)
        elif origin == FINALIST:
            self._measured.pop(key, None)  # what fails now and then is no finalist

    def learn(self, keys: list[Key]) -> None:
        """Tell the strategy outcomes that were noted, as throughput relative to the first that is known."""
        latencies = {key: median(values) for key, values in self._measured.items()}
        if self._reference_s is None:
            self._reference_s = latencies.get(self._default, self.best_s)
        if keys:
            scores = [(self._reference_s or 0.0) / latencies[key] if key in latencies else 0.0 for key in keys]
            self._strategy.tell(np.stack([indices_of(key) for key in keys]), np.array(scores))


class Collection:
    """One session of collecting. Used once: build it, `run` it."""

    def __init__(
        self,
        workloads: Iterator[TrainingWorkload],
        runner: Runner,
        store: Store,
        budget: Budget,
        *,
        target: Target,
        toolchain: str,
        settings: CollectSettings | None = None,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        progress: Callable[[CollectProgress], None] = lambda progress: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a session; nothing is measured before `run`.

        Args:
            workloads: what to measure, in this order, with or without an end.
            runner: its threads and cache state go into every record. Not closed here.
            store: where records go, and what is known comes from. Not closed here.
            budget: seconds and trials, whichever comes first; without either it ends with the workloads.
            target: of this machine.
            toolchain: versions that decide the generated code.
            settings: how much of each workload.
            seed: decides which configurations.
            options: what else the user asked for, a JSON object kept with the session.
            progress: called after every batch, in this thread.
            clock: monotonic seconds.
        """
        self._workloads = workloads
        self._runner = runner
        self._store = store
        self._budget = budget
        self._target = target
        self._toolchain = toolchain
        self._settings = settings or CollectSettings()
        self._seed = seed
        self._options = {"kind": COLLECTION, "seed": seed, **(options or {})}
        self._report = progress
        self._clock = clock
        self._start_s = clock()
        self._pace_s: float | None = None
        self._open: list[_Open] = []
        self._exhausted = False
        self._recalled = 0
        self._finished: Counter[str] = Counter()
        self._trials: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._trees: dict[tuple[str, int, tuple[str, ...]], tuple[SharedTrees, int]] = {}
        self._session = ""

    def run(self) -> CollectResult:
        """Spend the budget; Ctrl-C ends it early. Whatever was measured is in the store."""
        self._start_s = self._clock()
        self._session = self._store.start_session("collected workloads", "", self._options)
        interrupted = False
        try:
            while self._refill() and (room := self._room()) > 0:
                self._batch(room)
        except KeyboardInterrupt:
            interrupted = True
        progress = self._progress()
        result = CollectResult(
            self._session, progress, dict(self._statuses), interrupted, self._exhausted and not self._open
        )
        summary = {
            "trials": progress.trials,
            "workloads": progress.workloads,
            "recalled": progress.recalled,
            "seconds": progress.elapsed_s,
            "statuses": dict(self._statuses),
            "interrupted": interrupted,
        }
        self._store.finish_session(self._session, summary)
        return result

    def _refill(self) -> bool:
        """Open workloads until as many are open as should be; whether any are."""
        while len(self._open) < self._settings.together and not self._exhausted:
            if self._budget.seconds is not None and self._clock() - self._start_s > self._budget.seconds:
                break  # past workloads that earlier sessions have finished
            workload = next(self._workloads, None)
            if workload is None:
                self._exhausted = True
                break
            self._trials.setdefault(workload.family, 0)
            opened = self._opened(workload)
            if opened.finished:
                self._finished[workload.family] += 1
                self._report(self._progress())
            else:
                self._open.append(opened)
        return bool(self._open)

    def _opened(self, workload: TrainingWorkload) -> _Open:
        """A workload with what is known of it."""
        space = design_space(workload.function, self._target, self._runner.threads)
        opened = _Open(workload, space, self._settings, self._seed, self._cost_model(space))
        records = self._store.records(
            workloads=[workload.task.workload.hash],
            hardware=self._target.hardware.fingerprint,
            threads=self._runner.threads,
            cache_state=self._runner.cache_state,
            toolchain=self._toolchain,
        )
        known = []
        for record in records:
            candidate = record.candidate
            if (candidate.template, candidate.template_version) != (space.template, space.version):
                continue
            try:
                key = key_of(space.encode(candidate.config))
            except InputError:
                continue  # of a knob value that this space no longer has: it will not be proposed either
            if key not in known:
                known.append(key)
            opened.note(key, record.strategy, record.result)
            self._recalled += 1
        opened.learn(known)
        return opened

    def _cost_model(self, space: Template) -> CostModel:
        kind = space.template, space.version, tuple(space.feature_names)
        trees, members = self._trees.get(kind, (None, _TREE_MEMBERS))
        if trees is None or members >= _TREE_MEMBERS:
            trees, members = SharedTrees(self._seed), 0
        self._trees[kind] = trees, members + 1
        return trees.member()

    def _room(self) -> int:
        """How many candidates the next batch may have."""
        room = _FIRST_BATCH if self._pace_s is None else self._settings.together * self._settings.turn
        if self._budget.trials is not None:
            room = min(room, self._budget.trials - self._trials.total())
        if self._budget.seconds is not None:
            left = self._budget.seconds - (self._clock() - self._start_s)
            room = min(room, int(left / (self._pace_s or _FIRST_PACE_S)))
        return max(0, room)

    def _batch(self, room: int) -> None:
        """Measure a few configurations of every open workload."""
        start_s = self._clock()
        trials: list[tuple[_Open, Key, str]] = []
        for state in self._open:
            turn = min(self._settings.turn, room - len(trials))
            trials += [(state, key, origin) for key, origin in (state.propose(turn) if turn > 0 else ())]
        # A workload that had no turn in a short batch comes first in the next one.
        served = {id(state) for state, _, _ in trials}
        self._open.sort(key=lambda state: id(state) in served)
        if trials:
            self._measure(trials)
            pace_s = (self._clock() - start_s) / len(trials)
            self._pace_s = pace_s if self._pace_s is None else 0.7 * self._pace_s + 0.3 * pace_s
        for state in [state for state in self._open if state.finished]:
            self._open.remove(state)
            self._finished[state.workload.family] += 1
        self._report(self._progress())

    def _measure(self, trials: list[tuple[_Open, Key, str]]) -> None:
        candidates = [state.candidate(key) for state, key, _ in trials]

        def keep(i: int, result: MeasureResult) -> None:
            state, key, origin = trials[i]
            self._store.append([self._record(candidates[i], result, origin)])
            state.note(key, origin, result)
            self._trials[state.workload.family] += 1
            self._statuses[str(result.status)] += 1
            if result.status is not Status.OK:
                self._failures[state.workload.family] += 1

        best_s = {state.workload.task.workload.hash: state.best_s for state, _, _ in trials if state.best_s is not None}
        self._runner.measure(candidates, best_s, keep)
        keys: dict[int, list[Key]] = {}
        for state, key, origin in trials:
            if origin != FINALIST:  # the search of its workload is over
                keys.setdefault(id(state), []).append(key)
        for state in self._open:
            state.learn(keys.get(id(state), []))

    def _record(self, candidate: Candidate, result: MeasureResult, origin: str) -> MeasureRecord:
        return MeasureRecord(
            candidate=candidate,
            result=result,
            hardware=self._target.hardware,
            threads=self._runner.threads,
            cache_state=self._runner.cache_state,
            toolchain=self._toolchain,
            session=self._session,
            strategy=origin,
            seed=self._seed,
        )

    def _progress(self) -> CollectProgress:
        elapsed_s, pace_s = self._clock() - self._start_s, self._pace_s
        seconds_left = None if self._budget.seconds is None else max(0.0, self._budget.seconds - elapsed_s)
        trials_left = None if self._budget.trials is None else self._budget.trials - self._trials.total()
        by_trials = None if trials_left is None or pace_s is None else trials_left * pace_s
        return CollectProgress(
            families=tuple(
                FamilyProgress(family, self._finished[family], self._trials[family], self._failures[family])
                for family in self._trials
            ),
            recalled=self._recalled,
            elapsed_s=elapsed_s,
            seconds_left=seconds_left,
            trials_left=trials_left,
            eta_s=min((eta for eta in (seconds_left, by_trials) if eta is not None), default=None),
            candidates_per_s=1 / pace_s if pace_s else None,
        )
