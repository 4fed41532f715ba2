"""The live comparison of `python -m benchmarks.search --live`: strategies tune tasks of real models on this machine.

Tasks: of AlexNet, VGG-19 and ResNet-18 each the two convolutions with the most work (calls x operations), in their full
spaces. Strategies: AutoTVM's, its annealing with few measurements, Chameleon, and TVM's MetaSchedule, unmodified:

    metaschedule         `ms.tune_tir` in its own space: evolutionary search, XGBoost, its own builder and runner
    metaschedule-ours    the same search over a sample of our template's schedules, given as a schedule function
                         (our knobs decide how a function is taken apart, so a trace has no decisions that MetaSchedule
                         could mutate: it gets `POOL` drawn schedules as design spaces and ranks those)

Every run is a line of a log when it ends; every trial of ours, as the strategy is told of it, is in a database when its
batch ends. A session that was stopped goes on with the first run that is missing. The order is seeds, tasks,
strategies, the first task of every model before the second of any: what drifts, drifts for all strategies, and a
session that ends early has whole tasks of different models. With `--starts default,random` every strategy of ours runs
from either, one after the other; MetaSchedule has a start of its own and stands in both comparisons. With `--budget` no
run begins after that time.

One measurement of a configuration differs from the next by several percent, more than what is between the best ones,
and most of that is the state of the machine, which is the same for all for some seconds. So whatever could be faster
than the best of a run so far is compared with it, both measured in turns, for every strategy of ours alike
(`Comparing`): these measurements are no trials, but their seconds are part of the run. MetaSchedule has rules of its
own. At the end, task by task, whatever was ever the best of a run is verified and measured again, in turns, with cold
weights, what is close to the best in many turns: the latencies that count are those of that race, whoever measured them
first and how.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import output, sessions, suite
from benchmarks.curves import Improvement, Recorder, Run, RunKey
from benchmarks.sessions import RunLog, WallClock
from calumma import tvm_compat
from calumma.core import durations
from calumma.core.errors import EnvironmentFault, InputError
from calumma.core.protocols import Runner, Template
from calumma.core.rng import generator
from calumma.core.values import Candidate, KnobValue, MeasureRecord, MeasureResult, Status, Workload
from calumma.database import SqlStore
from calumma.measure import LocalRunner
from calumma.operators import design_space
from calumma.search import make_strategy, strategy_names
from calumma.target import Target

MODELS = ("bvlc_alexnet", "vgg19", "resnet18")
TASKS_PER_MODEL = 2
STRATEGIES = ("autotvm", "sa+topk", "chameleon", "chameleon+prior", "metaschedule")
QUICK_STRATEGIES = STRATEGIES[:-1]
"""Without MetaSchedule, which takes minutes for one run."""
METASCHEDULE = {"metaschedule": "own", "metaschedule-ours": "ours"}
"""Name of a strategy -> the space that MetaSchedule searches."""
METASCHEDULE_BATCH = 64
"""Its own default."""
PASSES, FINAL_PASSES, CLOSE = 3, 15, 1.2
"""Of the race at the end: passes over everything, and over what is no more than so many times slower than the best."""
CONTENDERS, MARGINS = 4, (0.4, 0.03, 0.015)
"""Within a run: how many of a batch are compared with the incumbent, and how much slower than it they may be for a
first comparison and for further ones. Of good configurations one measurement in twenty is 10 to 30 % too slow."""
CACHE_STATE = "cold"
TRACED = "metaschedule"
"""Template of candidates that are a trace of MetaSchedule's."""
_TIMEOUT_S = 4 * 3600


@dataclass(frozen=True)
class Task:
    """A workload to tune, by name."""

    name: str
    workload: Workload
    space: Template


class TracedSpace:
    """Schedules that MetaSchedule found, by their traces, for workers to measure."""

    template = TRACED
    version = 1

    def __init__(self, func: Any) -> None:
        self._func = func

    def schedule(self, config: Mapping[str, KnobValue]) -> Any:
        from tvm import s_tir

        schedule = s_tir.Schedule(self._func)
        s_tir.schedule.Trace.apply_json_to_schedule(json.loads(str(config["trace"])), schedule)
        return schedule

    def repacking(self, config: Mapping[str, KnobValue]) -> dict[int, Any]:
        """MetaSchedule takes weights as they are."""
        return {}


def traced_space(func: Any, target: Target, threads: int) -> TracedSpace:
    """Entry of a runner's workers for candidates of MetaSchedule's."""
    return TracedSpace(func)


def tasks(target: Target, threads: int) -> list[Task]:
    """The tasks of the comparison, by the rule above, one of every model before the second of any."""
    from calumma.pipeline.extraction import extract_tasks

    by_model = []
    for model in MODELS:
        found = extract_tasks(suite.path(model), target).parts
        spaces = {
            task.workload.hash: design_space(found.functions[task.workload.hash], target, threads)
            for task in found.tasks
            if "conv2d" in task.name and "depthwise" not in task.name
        }
        ranked = sorted(
            (task for task in found.tasks if task.workload.hash in spaces),
            key=lambda task: (-task.weight * task.flops, task.name),
        )
        by_model.append(
            [
                Task(f"{model}/{task.name}", task.workload, spaces[task.workload.hash])
                for task in ranked[:TASKS_PER_MODEL]
            ]
        )
    return list(itertools.chain.from_iterable(zip(*by_model, strict=True)))


def run(options: argparse.Namespace) -> list[Run]:
    """Make the runs that the log lacks, as far as there is time; returns all there are with the latencies of the race.

    Raises:
        InputError: no such strategy or task, or a log of other settings.
    """
    start = time.monotonic()
    budget_s = math.inf if options.budget is None else durations.seconds(options.budget)
    threads = tvm_compat.set_threads(options.threads)
    target = tvm_compat.target_for()
    strategies = options.strategies or (QUICK_STRATEGIES if options.quick else STRATEGIES)
    unknown = {name.removesuffix(sessions.INFORMED) for name in strategies} - {*strategy_names(), *METASCHEDULE}
    if unknown:
        known = ", ".join((*strategy_names(), *METASCHEDULE))
        raise InputError(f"no strategy is called {sorted(unknown)[0]!r}: choose of {known}")
    chosen = _chosen(tasks(target, threads), options)
    settings = {
        "trials": options.trials,
        "batch": options.batch,
        "threads": threads,
        "hardware": target.hardware.fingerprint,
        "toolchain": tvm_compat.toolchain(),
        "policy": None if options.policy is None else options.policy.name,
        "rules": {"compared": (CONTENDERS, MARGINS), "raced": (PASSES, FINAL_PASSES, CLOSE)},
    }
    log = RunLog(options.runs, settings)
    done = {task.name: _finished(task, log) for task in chosen}
    keys = [
        ("own" if strategy in METASCHEDULE else start, task.name, strategy, seed)
        for seed, task, strategy, start in itertools.product(range(options.seeds), chosen, strategies, options.starts)
    ]
    missing = [key for key in dict.fromkeys(keys) if key not in done[key[1]]]
    by_name = {task.name: task for task in chosen}
    left = len(missing)
    with SqlStore.open(options.database) as store:
        for key in missing:
            if time.monotonic() - start >= budget_s:
                print(f"{options.budget} are over, {left} of {len(missing)} runs are left: the same command goes on")
                break
            done[key[1]][key] = _tune(by_name[key[1]], key, options, log, store, target, threads)
            left -= 1
    runs: list[Run] = []
    for task in chosen:
        finished = [done[task.name][key] for key in dict.fromkeys(keys) if key in done[task.name]]
        runs += _raced(task, finished, log, target, threads) if finished else []
    return runs


def _chosen(found: Sequence[Task], options: argparse.Namespace) -> list[Task]:
    names = [task.name for task in found]
    wanted = options.workloads or (names[-1:] if options.quick else names)
    unknown = set(wanted) - set(names)
    if unknown:
        raise InputError(f"no task is called {sorted(unknown)[0]!r}: choose of {', '.join(names)}")
    return [task for task in found if task.name in wanted]


Finished = tuple[Run, list[Candidate]]
"""A run, and what was ever the best in it, in order."""


def _finished(task: Task, log: RunLog) -> dict[RunKey, Finished]:
    """The runs of a task that the log has."""
    done = {}
    for entry in log.entries:
        if "run" in entry and entry["run"]["workload"] == task.name:
            finished = Run.from_json(entry["run"])
            best = [_restored(task, candidate) for candidate in entry["candidates"]]
            done[finished.key] = finished, best
    return done


def _tune(
    task: Task,
    job: RunKey,
    options: argparse.Namespace,
    log: RunLog,
    store: SqlStore,
    target: Target,
    threads: int,
) -> Finished:
    """Make one run and log it."""
    start, _, strategy, seed = job
    if strategy in METASCHEDULE:
        finished, best = _metaschedule(task, strategy, seed, options, threads)
    else:
        finished, best = _ours(task, start, strategy, seed, options, store, target, threads)
    documents = [{"template": c.template, "version": c.template_version, "config": dict(c.config)} for c in best]
    log.add({"run": finished.to_json(), "candidates": documents, "commit": output.commit()})
    print(
        f"{task.name}, {strategy}, seed {seed}, {start} start: {finished.seconds:.1f} s, {finished.trials} trials, "
        f"{finished.failed} failed, best {1e6 / max(finished.throughput, 1e-9):.1f} us",
        flush=True,
    )
    return finished, best


def _restored(task: Task, document: Mapping[str, Any]) -> Candidate:
    return Candidate(task.workload, document["template"], document["version"], document["config"])


def _ours(
    task: Task,
    start: str,
    strategy: str,
    seed: int,
    options: argparse.Namespace,
    store: SqlStore,
    target: Target,
    threads: int,
) -> Finished:
    best: list[Candidate] = []

    def candidate(config: Mapping[str, KnobValue]) -> Candidate:
        return Candidate(task.workload, task.space.template, task.space.version, config)

    def keep(candidates: Sequence[Candidate], results: Sequence[MeasureResult]) -> None:
        conditions = (target.hardware, threads, CACHE_STATE, tvm_compat.toolchain())
        pairs = zip(candidates, results, strict=True)
        store.append([MeasureRecord(c, r, *conditions, strategy=strategy, seed=seed) for c, r in pairs])

    informed = strategy.endswith(sessions.INFORMED)
    known = sessions.predictor_of(task.workload, task.space, target, threads) if informed else None
    make_strategy(strategy.removesuffix(sessions.INFORMED), task.space, generator(seed))  # loads what it needs
    with LocalRunner(target, threads, cache_state=CACHE_STATE) as runner:
        runner.measure(
            [candidate(task.space.decode(task.space.default()))]
        )  # the workers' start is no matter of search
        finished = sessions.search(
            strategy,
            task.space,
            candidate,
            Comparing(runner),
            WallClock(),
            workload=task.name,
            seed=seed,
            budget=options.trials,
            batch=options.batch,
            policy=options.policy,
            cold_start=start == "random",
            on_improvement=best.append,
            on_batch=keep,
            known=known,
        )
    return finished, best


class Comparing:
    """A runner that compares what may be faster than the incumbent with the incumbent, both measured in turns.

    The median ratio of both decides: the machine's state, the same for both, is out of it. What was not compared does
    not take the incumbent's place.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.threads, self.cache_state = runner.threads, runner.cache_state
        self.verify, self.close = runner.verify, runner.close
        self._incumbent: Candidate | None = None
        self._measured_s: list[float] = []
        """The incumbent's measurements; of one that won a comparison without that in its batch, which was lucky."""

    def measure(
        self,
        candidates: Sequence[Candidate],
        best_s: Mapping[str, float] | None = None,
        on_result: Callable[[int, MeasureResult], None] | None = None,
    ) -> list[MeasureResult]:
        """Measure a batch; up to `CONTENDERS` of the fastest of it are compared with the incumbent, as often as
        `MARGINS` allow.

        Latencies are medians of all measurements here, but a new incumbent's is less than any in `best_s`, nobody
        else's is.
        """
        usual_s = {self._incumbent.workload.hash: median(self._measured_s)} if self._incumbent is not None else None
        results = self._runner.measure(candidates, usual_s)
        ranked = [i for i, result in enumerate(results) if result.status is Status.OK]
        ranked.sort(key=lambda i: results[i].latency_s)
        least_s = min((best_s or {}).values(), default=math.inf)
        first = None
        if ranked and self._incumbent is None:
            first = ranked.pop(0)
            self._incumbent, self._measured_s = candidates[first], [results[first].latency_s]
        pairs = self._compare(candidates, results, ranked)
        if first is not None:
            least_s = median(self._measured_s)
            results[first] = replace(results[first], latencies_s=tuple(self._measured_s))
        ratios = {i: _ratio(of_one) for i, of_one in pairs.items()}
        winner = min((i for i in ratios if ratios[i] < 1), key=ratios.__getitem__, default=None)
        for i in ranked:
            latency_s = median([results[i].latency_s, *(other for other, _ in pairs.get(i, ()))])
            latency_s = min(latency_s, math.nextafter(least_s, 0)) if i == winner else max(latency_s, least_s)
            if latency_s != results[i].latency_s:
                results[i] = replace(results[i], latencies_s=(latency_s,))
        if winner is not None:
            self._incumbent, self._measured_s = candidates[winner], [other for other, _ in pairs[winner]]
        for i, result in enumerate(results):
            if on_result is not None:
                on_result(i, result)
        return results

    def _compare(
        self, candidates: Sequence[Candidate], results: list[MeasureResult], ranked: Sequence[int]
    ) -> dict[int, list[tuple[float, float]]]:
        """Position of what was compared -> its latency and the incumbent's, in each round.

        The seconds of all measurements go to the results. What fails now was not compared.
        """
        found: dict[int, list[tuple[float, float]]] = {}
        ratios = {i: results[i].latency_s / median(self._measured_s) for i in ranked[:CONTENDERS]}
        for turn, margin in enumerate(MARGINS):
            entered = [i for i, ratio in ratios.items() if ratio <= 1 + margin]
            if not entered or self._incumbent is None:
                break
            forth = slice(None, None, 1 if turn % 2 == 0 else -1)
            own, *others = self._runner.measure([self._incumbent, *(candidates[i] for i in entered)][forth])[forth]
            for i, result in zip([entered[0], *entered], [own, *others], strict=True):
                spent = {name: s + result.phases_s.get(name, 0.0) for name, s in results[i].phases_s.items()}
                results[i] = replace(results[i], phases_s=spent)
            if own.status is not Status.OK:
                break
            self._measured_s.append(own.latency_s)
            for i, other in zip(entered, others, strict=True):
                if other.status is Status.OK:
                    found.setdefault(i, []).append((other.latency_s, own.latency_s))
                else:
                    found.pop(i, None)
            ratios = {i: _ratio(found[i]) for i in entered if i in found}
        return found


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return median(other / own for other, own in pairs)


def _metaschedule(task: Task, strategy: str, seed: int, options: argparse.Namespace, threads: int) -> Finished:
    """A run of MetaSchedule in a process of its own.

    Raises:
        EnvironmentFault: it ended without a result.
    """
    with tempfile.TemporaryDirectory(prefix="calumma-metaschedule-") as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        order = {
            "workload": task.workload.text,
            "space": METASCHEDULE[strategy],
            "trials": options.trials,
            "batch": METASCHEDULE_BATCH,
            "seed": seed,
            "threads": threads,
        }
        request.write_text(json.dumps(order))
        command = [sys.executable, "-m", "benchmarks.metaschedule_baseline", str(request), str(answer)]
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            status = subprocess.run(
                command, cwd=output.ROOT, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, timeout=_TIMEOUT_S
            ).returncode
        if status or not answer.exists():
            lines = log.read_text(errors="replace").strip().splitlines() or ["nothing said"]
            raise EnvironmentFault(
                f"MetaSchedule on {task.name}, seed {seed}, ended with status {status}: {lines[-1]}; "
                "run the command again, it goes on from here"
            )
        document = json.loads(answer.read_text())
    recorder = Recorder(task.name, strategy, seed, options.trials)
    best = []
    for latency_s, seconds, trace in document["trials"]:
        known = len(recorder.improvements)
        recorder.add(float("inf") if latency_s is None else latency_s, seconds, 0)
        if len(recorder.improvements) > known:
            best.append(Candidate(task.workload, TRACED, TracedSpace.version, {"trace": trace}))
    return replace(recorder.finish(document["seconds"], 0, document["phases_s"]), start="own"), best


def _raced(task: Task, done: Sequence[Finished], log: RunLog, target: Target, threads: int) -> list[Run]:
    """The runs with every latency replaced by that of one race; who failed there is as slow as what was best before."""
    candidates = {candidate.key: candidate for _, best in done for candidate in best}
    wanted = set(candidates)
    latencies: dict[str, float] = {}
    for entry in log.entries:
        # A race compares only what took part in it: one that lacks a candidate is of no use.
        if "race" in entry and entry["race"]["workload"] == task.name and wanted <= entry["race"]["latencies"].keys():
            latencies = {key: entry["race"]["latencies"][key] for key in wanted}
    if not latencies:
        latencies = race(list(candidates.values()), target, threads)
        log.add({"race": {"workload": task.name, "latencies": latencies}})
    return [with_latencies(finished, [latencies[candidate.key] for candidate in best]) for finished, best in done]


def race(candidates: Sequence[Candidate], target: Target, threads: int) -> dict[str, float]:
    """Measure candidates in turns, every second pass in reverse; key -> latency, 0 for one that failed.

    One that computes something else than its unscheduled function has failed, too. Of `PASSES` over all the median
    counts. What is then close to the best goes on for `FINAL_PASSES`, which decide the order and the distances among
    the close: the median over the passes of its latency over the median of that pass, so that what changes from pass to
    pass is out of it.
    """
    passes: dict[str, list[float]] = {candidate.key: [] for candidate in candidates}
    start = functools.partial(LocalRunner, target, threads, cache_state=CACHE_STATE)
    with start() as ours, start(space_entry="benchmarks.live:traced_space") as theirs:
        parts = [
            (ours, [candidate for candidate in candidates if candidate.template != TRACED]),
            (theirs, [candidate for candidate in candidates if candidate.template == TRACED]),
        ]
        right = [(runner, _verified(runner, part)) for runner, part in parts]
        _pass_over(right, PASSES, passes)
        latencies = {key: median(found) for key, found in passes.items() if found and math.isfinite(median(found))}
        limit_s = CLOSE * min(latencies.values(), default=0.0)
        close = [(runner, [c for c in part if latencies.get(c.key, math.inf) <= limit_s]) for runner, part in right]
        finals: dict[str, list[float]] = {candidate.key: [] for _, part in close for candidate in part}
        _pass_over(close, FINAL_PASSES, finals)
    whole = [found for found in zip(*finals.values(), strict=True) if all(math.isfinite(own) for own in found)]
    if whole:
        usual_s = median(latencies[key] for key in finals)
        for position, key in enumerate(finals):
            latencies[key] = usual_s * median(found[position] / median(found) for found in whole)
    return {candidate.key: latencies.get(candidate.key, 0.0) for candidate in candidates}


def _pass_over(parts: Sequence[tuple[Runner, Sequence[Candidate]]], n: int, found: Mapping[str, list[float]]) -> None:
    """Measure all candidates `n` times, every second time in reverse; latencies by key, infinite for a failure."""
    for turn in range(n):
        for runner, part in parts if turn % 2 == 0 else parts[::-1]:
            order = part if turn % 2 == 0 else part[::-1]
            for candidate, result in zip(order, runner.measure(order), strict=True):
                found[candidate.key].append(result.latency_s)


def _verified(runner: Runner, candidates: Sequence[Candidate]) -> list[Candidate]:
    verdicts = runner.verify(candidates)
    return [c for c, verdict in zip(candidates, verdicts, strict=True) if verdict.status is not Status.WRONG_OUTPUT]


def with_latencies(finished: Run, latencies_s: Sequence[float]) -> Run:
    """The run with its improvements measured again, 0 for one that failed; what turns out to be none is left out."""
    kept: list[Improvement] = []
    for found, latency_s in zip(finished.improvements, latencies_s, strict=True):
        if latency_s > 0 and (not kept or latency_s < kept[-1].latency_s):
            kept.append(replace(found, latency_s=latency_s))
    return replace(finished, improvements=tuple(kept))
