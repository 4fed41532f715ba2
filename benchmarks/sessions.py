"""One search from its first question to the end of its budget, on a recording or on hardware; and a log of many."""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from benchmarks import corpora
from benchmarks.curves import Recorder, Run
from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.protocols import Indices, Runner, SearchSpace, Template
from calumma.core.rng import generator
from calumma.core.values import Candidate, Hardware, KnobValue, MeasureRecord, MeasureResult, Workload
from calumma.cost_model import CostModel
from calumma.cost_model.scoring import Features
from calumma.measure import ReplayRunner
from calumma.measure.recording import Corpus, load
from calumma.prior import library
from calumma.prior.few_shot import FewShotForest, KnownSpace
from calumma.prior.predictor import Predictor, TaskPredictor
from calumma.prior.weights import Prior
from calumma.search import make_strategy
from calumma.search.strategy import SearchStrategy
from calumma.search.views import View
from calumma.space.subspace import SubSpace
from calumma.target import Target

BATCH = 8
"""Candidates asked for at once: few, so that every strategy decides itself when to learn and to plan anew. AutoTVM
keeps its plan of 64 over eight questions; adaptive sampling measures as few as eight before it looks again."""
INFORMED = "+prior"
"""Behind a strategy's name: it starts from what other workloads taught (`predictor_of`)."""
BUDGET = 256
QUICK_BUDGET = 64
"""Trials of a run, and of one with `--quick`."""

_PHASE_OF = {"explore": "search", "sampling": "search", "policy": "search", "fit": "model", "score": "model"}
"""Phase of a strategy's own stopwatch -> phase of the benchmark."""


class SessionClock(Protocol):
    """Seconds since a session began."""

    def __call__(self) -> float: ...

    def own(self) -> float:
        """The seconds that a strategy's own work is counted in, from any beginning."""
        ...

    def measuring(self) -> Any:
        """A context in which the runner is at work."""
        ...


class WallClock:
    """The time on the wall."""

    own = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self._start = self.own()

    def __call__(self) -> float:
        return self.own() - self._start

    @contextmanager
    def measuring(self) -> Iterator[None]:
        yield


class ReplayClock:
    """What the recorded measurements took, and what everything else takes now; the look-up itself takes no time.

    What it takes now is the processor's time: a search computes on one thread, and the seconds that it waits for other
    work on the machine are none of its own. Without `overhead` only the recorded seconds count: then the same seed
    gives the same figures everywhere.
    """

    own = staticmethod(time.process_time)

    def __init__(self, runner: ReplayRunner, overhead: bool = True) -> None:
        self._runner = runner
        self._overhead = overhead
        self._own_s = 0.0
        self._since: float | None = self.own()

    def __call__(self) -> float:
        running_s = 0.0 if self._since is None else self.own() - self._since
        return self._runner.charged_s + (self._own_s + running_s if self._overhead else 0.0)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        assert self._since is not None
        self._own_s += self.own() - self._since
        self._since = None
        try:
            yield
        finally:
            self._since = self.own()


class ColdStart(View):
    """A design space whose default is a random configuration: what a search is worth where nobody reasoned first."""

    def __init__(self, space: SearchSpace, rng: np.random.Generator) -> None:
        super().__init__(space)
        self._start = space.sample(rng, 1)[0]

    def default(self) -> Indices:
        return self._start.copy()


def search(
    strategy_name: str,
    space: SearchSpace,
    candidate: Callable[[Mapping[str, KnobValue]], Candidate],
    runner: Runner,
    clock: SessionClock,
    *,
    workload: str,
    seed: int,
    budget: int = BUDGET,
    batch: int = BATCH,
    policy: Path | None = None,
    known: TaskPredictor | Part | None = None,
    model: CostModel | None = None,
    cold_start: bool = False,
    enough_s: float = 0.0,
    on_improvement: Callable[[Candidate], None] | None = None,
    on_batch: Callable[[Sequence[Candidate], Sequence[MeasureResult]], None] | None = None,
) -> Run:
    """Run one strategy to the end of its budget. Long because this is the reference of its arguments.

    Args:
        strategy_name: of `calumma.search.strategy_names()`; with `INFORMED` behind it, it gets the prior; where there
            is none, it is the strategy without one, with the same random numbers.
        space: what is searched.
        candidate: a configuration by knob names -> what the runner takes.
        runner: measures.
        clock: seconds of the session; begins when this is called.
        workload: name for the run, and of the strategy's random numbers together with `seed`.
        seed: of the strategy.
        budget: trials, failures included.
        batch: candidates asked for at once.
        policy: file of a policy to start from, for the strategies that have one.
        known: what a prior knows of the task, for the strategies that ask for it by their names; as in `tune`, they see
            the space by the prior's columns and are guided by its forest, refitted to what is measured.
        model: the cost model that guides, in the place of the strategy's own.
        cold_start: start from a random configuration, the same for all strategies, instead of the space's default.
        enough_s: stop after the batch in which a latency was no longer than this.
        on_improvement: called with every candidate that was better than all before, in order.
        on_batch: called with what was measured, after each batch; its time counts as "other".
    """
    recorder = Recorder(workload, strategy_name, seed, budget)
    if cold_start:
        space = ColdStart(space, generator(seed, "cold start", workload))
    space, strategy = _strategy(strategy_name, space, workload, seed, known, model, policy)
    strategy.stats.use_clock(clock.own)
    spent = {"build": 0.0, "run": 0.0}
    best_s = math.inf
    while recorder.trials < budget and best_s > enough_s:
        rows = strategy.ask(min(batch, budget - recorder.trials))
        if len(rows) == 0:
            break
        asked = [candidate(space.decode(row)) for row in rows]
        steps = strategy.stats.steps

        def note(index: int, result: MeasureResult, asked: list[Candidate] = asked, steps: int = steps) -> None:
            nonlocal best_s
            recorder.add(result.latency_s, clock(), steps)
            if result.latency_s < best_s:
                best_s = result.latency_s
                if on_improvement is not None:
                    on_improvement(asked[index])

        so_far = {asked[0].workload.hash: best_s} if math.isfinite(best_s) else None
        with clock.measuring():
            results = runner.measure(asked, so_far, note)
        for phase in spent:
            spent[phase] += sum(result.phases_s.get(phase, 0.0) for result in results)
        strategy.tell(rows, np.array([1 / result.latency_s for result in results]))
        if on_batch is not None:
            on_batch(asked, results)
    finished = recorder.finish(clock(), strategy.stats.steps, _with_own(spent, strategy.stats.seconds))
    return replace(finished, start="random" if cold_start else "default")


def _strategy(
    strategy_name: str,
    space: SearchSpace,
    workload: str,
    seed: int,
    known: TaskPredictor | Part | None,
    model: CostModel | None,
    policy: Path | None,
) -> tuple[SearchSpace, SearchStrategy]:
    """The strategy that a run is about, and the space as it sees it; arguments as for `search`."""
    name = strategy_name.removesuffix(INFORMED)
    if name == strategy_name:
        known = None
    rng = generator(seed, "search", workload, name if known is None else strategy_name)
    if known is not None:
        space, model = KnownSpace(space, cast("TaskPredictor", known)), FewShotForest(known.family.order)
    return space, make_strategy(name, space, rng, model=model, policy=policy)


def _with_own(spent: Mapping[str, float], own: Mapping[str, float]) -> dict[str, float]:
    """Seconds by phase of the benchmark: those `spent` on candidates, and a strategy's `own` by its stopwatch."""
    phases = dict(spent)
    for phase, own_s in own.items():
        target = _PHASE_OF.get(phase, "search")
        phases[target] = phases.get(target, 0.0) + own_s
    return phases


def replay(
    corpus: str,
    strategy: str,
    seed: int,
    *,
    folder: Path = corpora.FOLDER,
    budget: int = BUDGET,
    batch: int = BATCH,
    overhead: bool = True,
    policy: Path | None = None,
    cold_start: bool = False,
) -> Run:
    """Run one strategy on a recording; for the options see `search`."""
    recording, space, records = _opened(corpus, folder)
    runner = ReplayRunner(records)
    known = None
    if strategy.endswith(INFORMED):
        task = predictor_of(
            recording.workload, space.whole, tvm_compat.target_of(recording.hardware), recording.threads
        )
        known = None if task is None else Part(task, space)

    def candidate(config: Mapping[str, KnobValue]) -> Candidate:
        return Candidate(recording.workload, recording.template, recording.version, config)

    make_strategy(strategy.removesuffix(INFORMED), space, generator(seed))  # loads what it needs, torch for one
    clock = ReplayClock(runner, overhead)
    run = search(
        strategy,
        space,
        candidate,
        runner,
        clock,
        workload=corpus,
        seed=seed,
        budget=budget,
        batch=batch,
        policy=policy,
        known=known,
        cold_start=cold_start,
    )
    return run if overhead else _without_overhead(run)


@functools.lru_cache(maxsize=2)
def _opened(name: str, folder: Path) -> tuple[Corpus, SubSpace, list[MeasureRecord]]:
    """A corpus, its space and its records; kept, since many runs need the same."""
    recording = load(name, folder)
    space = recording.space()
    return recording, space, recording.records(space)


class Part:
    """What a prior knows of a recorded part of a design space."""

    def __init__(self, task: TaskPredictor, space: SubSpace) -> None:
        self.family = task.family
        self._task = task
        self._space = space

    def table(self, indices: Indices) -> Features:
        """Configurations (N, D) of the part -> the family's columns (N, C)."""
        return self._task.table(self._space.outside(indices))


def predictor_of(workload: Workload, space: Template, target: Target, threads: int) -> TaskPredictor | None:
    """What the newest prior for this machine knows of a task, as `tune` asks it; None where it knows no such template.

    The shipped one is learnt from measurements of drawn workloads (docs/prior.md), and none of them is of the suite's
    networks, from which all recordings and live tasks are taken.
    """
    prior = _prior(target.hardware, threads)
    if prior is None:
        return None
    func = tvm_compat.load().ir.load_json(workload.text)
    return Predictor(prior, target, threads, corpora.CACHE_STATE, measuring=True).task(func, space)


@functools.lru_cache(maxsize=2)
def _prior(hardware: Hardware, threads: int) -> Prior | None:
    return library.choose(hardware, threads, measuring=True)[0]


def _without_overhead(run: Run) -> Run:
    """The run with nothing but the recorded seconds in its phases."""
    phases = {phase: seconds if phase in ("build", "run") else 0.0 for phase, seconds in run.phases_s.items()}
    return replace(run, phases_s=phases, seconds=phases["build"] + phases["run"])


class RunLog:
    """Finished work as JSON lines, appended and synced one by one: whoever is killed loses at most what was under way.

    The first line says under which settings; work under others is refused. A torn last line is dropped.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open a log, or begin it.

        Raises:
            InputError: the file is no such log, or was begun under other settings.
        """
        self.path = path
        self.entries: list[dict[str, Any]] = []
        wanted = json.loads(json.dumps(dict(settings)))
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        if lines and lines[-1]:  # no newline: killed while it was written
            with path.open("r+b") as stream:
                stream.truncate(sum(len(line) + 1 for line in lines[:-1]))
        complete = lines[:-1]
        if not complete:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write({"settings": wanted})
            return
        try:
            first, *self.entries = [json.loads(line) for line in complete]
            found = first["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not a log of the search benchmark ({error!r}): give another file") from error
        if found != wanted:
            different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            raise InputError(
                f"{path} was begun with {different[0]} {found.get(different[0])!r}, now it is "
                f"{wanted.get(different[0])!r}: give the same options, or another file"
            )

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append one entry; it is on disk when this returns."""
        self._write(entry)
        self.entries.append(dict(entry))

    def _write(self, entry: Mapping[str, Any]) -> None:
        with self.path.open("ab") as stream:
            stream.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
