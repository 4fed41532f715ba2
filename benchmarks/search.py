"""Search strategies against each other, on recordings and on hardware.

    python -m benchmarks.search --replay [--quick] [--jobs N] [--json FILE]    on recordings, deterministic; with
                                                                               --runs FILE resumable
    python -m benchmarks.search --live [--json FILE]                           on this machine, resumable
    python -m benchmarks.search --record [NAME ...]                            measure the recordings, resumable
    python -m benchmarks.search --curves                                       their random-draw curves

What is compared and how every figure is defined: `benchmarks/curves.py`. What a recording is: `benchmarks/corpora.py`,
`src/calumma/space/subspace.py`. What the live comparison does: `benchmarks/live.py`.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import corpora, curves, output, sessions
from benchmarks.curves import Comparison, Run, RunKey
from benchmarks.sessions import RunLog
from calumma.core.errors import CalummaError, InputError
from calumma.measure import recorder, recording

SUBJECT, BASELINE = "chameleon", "autotvm"
RIVALS = {"autotvm": "autotvm", "topk": "sa+topk", "random": "random", "metaschedule": "metaschedule"}
"""Suffix of a metric's name -> strategy."""
INFORMED = ("sa+topk+prior", "evolutionary+prior", "chameleon+prior")
"""What a replay also compares: strategies that know what measurements of other workloads teach."""
LEVELS = (0.9, 0.95, 0.99, 1.0)
SHARES = (0.1, 0.25, 0.5, 1.0)
TRIALS = (16, 32, 64, 128, 256)
STARTS = ("default", "random")
"""What a search can start from: what the template would use unmeasured, or a random configuration, the same for all.
Published AutoTVM has no reasoned default."""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(arguments)
    try:
        if options.record is not None:
            return _record(options)
        if options.curves:
            print(corpora.describe([recording.load(name, options.corpora) for name in _recorded(options)]))
            return 0
        if options.live:
            from benchmarks import live

            runs = live.run(options)
        else:
            runs = _replay(options)
        return _report(options, runs)
    except CalummaError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("stopped; what is finished is kept", file=sys.stderr)
        return 130


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = output.parser((__doc__ or "").splitlines()[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--replay", action="store_true", help="on recordings")
    mode.add_argument("--live", action="store_true", help="on this machine")
    mode.add_argument("--record", nargs="*", metavar="NAME", help="measure recordings, all that are missing by default")
    mode.add_argument("--curves", action="store_true", help="print the recordings and their random-draw curves")
    parser.add_argument("--strategies", type=_names, metavar="A,B", help="by name; all in a replay")
    parser.add_argument("--workloads", type=_names, metavar="A,B", help="recordings, or live tasks; all by default")
    parser.add_argument("--seeds", type=int, help="how many: 5 in a replay, 3 live")
    parser.add_argument("--trials", type=int, help=f"budget of a run: {sessions.BUDGET}")
    parser.add_argument("--batch", type=int, default=sessions.BATCH, help="candidates asked for at once")
    parser.add_argument("--subject", default=SUBJECT, help="the strategy that the metrics are about")
    parser.add_argument("--baseline", default=BASELINE, help="the strategy that sets the level")
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="the strategies that learn to explore start from it"
    )
    parser.add_argument(
        "--starts",
        type=_names,
        default=STARTS[:1],
        metavar="A,B",
        help=f"where searches begin: {', '.join(STARTS)} configuration; each is reported for itself",
    )
    parser.add_argument("--jobs", type=int, default=1, help="of a replay: runs at the same time")
    parser.add_argument("--no-overhead", action="store_true", help="of a replay: count the recorded seconds alone")
    parser.add_argument("--corpora", type=Path, default=corpora.FOLDER, metavar="FOLDER", help="of the recordings")
    parser.add_argument("--database", type=Path, metavar="FILE", help="SQLite, keeps every measurement made here")
    parser.add_argument("--runs", type=Path, metavar="FILE", help="JSON lines of finished runs; in a replay optional")
    parser.add_argument("--budget", metavar="TIME", help="of --live: no run begins after so long, such as 40m")
    parser.add_argument("--limit", type=int, metavar="N", help="of --record: measure at most N of each, for a trial")
    options = parser.parse_args(arguments)
    for name in ("seeds", "trials", "batch", "jobs", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} {value}: expected at least 1")
    if not options.starts or set(options.starts) - set(STARTS):
        parser.error(f"--starts {','.join(options.starts)}: expected one or both of {', '.join(STARTS)}")
    results = output.ROOT / "results"
    options.database = options.database or results / ("corpora.db" if options.record is not None else "search-live.db")
    if options.live:
        options.runs = options.runs or results / "search-live.jsonl"
    usual = 3 if options.live else 5
    options.seeds = options.seeds or ((1 if options.live else 2) if options.quick else usual)
    options.trials = options.trials or (sessions.QUICK_BUDGET if options.quick else sessions.BUDGET)
    return options


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _recorded(options: argparse.Namespace) -> list[str]:
    """The recordings to use. Raises InputError if there are none."""
    found = corpora.names(options.corpora)
    if options.workloads:
        return list(options.workloads)
    if not found:
        raise InputError(f"no recordings in {options.corpora}: make them with --record, or name another --corpora")
    return found[:2] if options.quick else found


# -- recording ------------------------------------------------------------------------------------


def _record(options: argparse.Namespace) -> int:
    """Measure the recordings one after another; what has too small a space is left out, and said."""
    from calumma import tvm_compat
    from calumma.database import SqlStore
    from calumma.measure import LocalRunner

    threads = tvm_compat.set_threads(options.threads)
    target = tvm_compat.target_for()
    wanted = options.record or [name for name in corpora.SOURCES if name not in corpora.names(options.corpora)]
    parts = {}
    for name in wanted:
        try:
            parts[name] = corpora.part(name, target, threads)
        except InputError as error:
            if options.record:
                raise
            print(f"{name}: left out: {error}")
    total = sum(min(len(space.members), options.limit or len(space.members)) for _, space in parts.values())
    print(f"{len(parts)} recordings, {total} configurations on {threads} threads", flush=True)
    store = SqlStore.open(options.database)
    start, done = time.monotonic(), []
    try:
        for name, (workload, space) in parts.items():
            entry = recording.entry_of(corpora.SOURCES[name])
            settings: dict[str, Any] = {"cache_state": corpora.CACHE_STATE, "build_timeout_s": 30.0}
            with LocalRunner(target, threads, space_entry=entry, **settings) as runner:
                corpus = recorder.record(
                    name,
                    workload,
                    space,
                    runner,
                    store,
                    target,
                    source=corpora.SOURCES[name],
                    limit=options.limit,
                    say=_progress,
                )
            print(file=sys.stderr)
            if corpus is None:
                print(f"{name}: not complete yet: run --record {name} again", flush=True)
                continue
            path = recording.save(corpus, options.corpora)
            done.append(corpus)
            elapsed = time.monotonic() - start
            print(f"{name}: {path} ({path.stat().st_size / 1e3:.0f} kB), {elapsed:.0f} s so far", flush=True)
    finally:
        store.close()
    if done:
        print(corpora.describe(done))
    return 0


def _progress(line: str) -> None:
    """One line that is written over on a terminal, a line each elsewhere."""
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{line:<110}", end=end, file=sys.stderr, flush=True)


# -- replay ---------------------------------------------------------------------------------------


def _replay(options: argparse.Namespace) -> list[Run]:
    """All runs, in the order of workloads, strategies and seeds, whoever finished first."""
    from calumma.search import strategy_names

    names = options.strategies or (*strategy_names(), *INFORMED)
    unknown = {name.removesuffix(sessions.INFORMED) for name in names} - set(strategy_names())
    if unknown:
        raise InputError(f"no strategy is called {sorted(unknown)[0]!r}: choose of {', '.join(strategy_names())}")
    found = _recorded(options)
    print(corpora.describe([recording.load(name, options.corpora) for name in found]), flush=True)
    settings = {
        "folder": options.corpora,
        "budget": options.trials,
        "batch": options.batch,
        "overhead": not options.no_overhead,
        "policy": options.policy,
    }
    kept = {name: str(value) for name, value in settings.items() if name != "folder"}
    log = None if options.runs is None else RunLog(options.runs, kept)
    done = {run.key: run for run in (Run.from_json(entry) for entry in (log.entries if log else ()))}
    wanted = list(itertools.product(options.starts, found, names, range(options.seeds)))
    jobs = [job for job in wanted if job not in done]
    start = time.monotonic()
    for count, run in enumerate(_performed(jobs, settings, options.jobs), start=1):
        done[run.key] = run
        if log is not None:
            log.add(run.to_json())
        left_s = (time.monotonic() - start) / count * (len(jobs) - count)
        _progress(f"{count}/{len(jobs)} runs, {left_s:.0f} s left: {run.workload}, {run.strategy}, seed {run.seed}")
    print(file=sys.stderr)
    return [done[job] for job in wanted]


def _performed(jobs: Sequence[RunKey], settings: Mapping[str, Any], n: int) -> Iterator[Run]:
    """Runs in order, `n` at a time, each in a process that computes on one thread."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        with ProcessPoolExecutor(n, multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(_one, job, settings) for job in jobs]
            try:
                for future in futures:
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _one(job: RunKey, settings: Mapping[str, Any]) -> Run:
    start, corpus, strategy, seed = job
    return sessions.replay(corpus, strategy, seed, cold_start=start == "random", **settings)


# -- report ---------------------------------------------------------------------------------------


def _report(options: argparse.Namespace, runs: Sequence[Run]) -> int:
    """Print a comparison for every start, and write them all; metrics of the second start have its name before them."""
    found: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    documents = []
    for position, start in enumerate(options.starts):
        comparison = Comparison([run for run in runs if run.start in (start, "own")], options.baseline)
        prefix = f"from_{start}_" if position else ""
        of_start = {prefix + name: value for name, value in _metrics(comparison, options).items()}
        _print(comparison, of_start, f"Every search from the {start} configuration.", options.trials)
        found |= of_start
        rows += [{"start": start, **_row(comparison, strategy)} for strategy in comparison.strategies]
        documents += [run.to_json() for run in comparison.runs]
    if set(options.starts) == set(STARTS):
        comparison = _published(runs, options)
        against = {f"published_{name}": value for name, value in _metrics(comparison, options).items()}
        _print(comparison, against, _PUBLISHED.format(base=options.baseline), options.trials)
        found |= against
    if options.json:
        settings = {
            "mode": "live" if options.live else "replay",
            "seeds": options.seeds,
            "trials": options.trials,
            "batch": options.batch,
            "overhead": not options.no_overhead,
            "starts": options.starts,
            "policy": None if options.policy is None else options.policy.name,
            "subject": options.subject,
            "baseline": options.baseline,
            "level": curves.LEVEL,
        }
        surroundings = output.environment(options.threads)
        output.write(options.json, found, rows, surroundings, settings=settings, runs=documents)
    return 0


_PUBLISHED = (
    "Against {base} as published, which has no reasoned default: {base} from the random configuration, the others from "
    "the default. These are whole tuners: part of what they differ by is the default's, which no search has found."
)


def _published(runs: Sequence[Run], options: argparse.Namespace) -> Comparison:
    """The subject, with and without a prior, from the default against the baseline from a random configuration."""
    subjects = options.subject, options.subject + sessions.INFORMED
    starts = {options.baseline: "random", **dict.fromkeys(subjects, "default")}
    return Comparison([run for run in runs if run.start == starts.get(run.strategy)], options.baseline)


def _metrics(comparison: Comparison, options: argparse.Namespace) -> dict[str, float]:
    if options.subject not in comparison.strategies:
        raise InputError(f"no run of {options.subject!r}: name the strategy the metrics are about with --subject")
    rivals = RIVALS | ({} if options.baseline == BASELINE else {options.baseline: options.baseline})
    found = curves.metrics(comparison, options.subject, rivals)
    informed = options.subject + sessions.INFORMED
    if informed in comparison.strategies:
        rivals["topk"] += sessions.INFORMED
        known = curves.metrics(comparison, informed, rivals)
        found |= {f"with_prior_{name}": value for name, value in known.items()}
    return found


def _print(comparison: Comparison, found: Mapping[str, float], title: str, trials: int) -> None:
    rows = [_row(comparison, strategy) for strategy in comparison.strategies]
    base = comparison.baseline
    print(f"\n{title}\n\nTo {curves.LEVEL:.0%} of {base}'s final throughput; {base} over each:\n")
    print(output.markdown(_COLUMNS, [_cells(row) for row in rows]))
    print(f"\nTime to a share of {base}'s final throughput, {base} over each:\n")
    print(output.markdown(["strategy", *(f"to {a:.0%}" for a in LEVELS)], _by_level(comparison)))
    print(f"\nThroughput over {base}'s, after equal trials and equal seconds:\n")
    print(output.markdown(_BUDGETS, _by_budget(comparison, trials)))
    print(f"\nTime to {curves.LEVEL:.0%} by workload, {base} over each:\n")
    print(output.markdown(["workload", *comparison.strategies], _by_workload(comparison)))
    print("\nIn brackets: 95 % intervals. A strategy beats the baseline where the lower end is above 1.\n")
    for name, value in found.items():
        print(f"{name:<44} {value:.3f}")


_COLUMNS = (
    "strategy",
    "time",
    "measurements",
    "steps",
    "throughput",
    "beats",
    "never",
    "build s",
    "run s",
    "search s",
    "model s",
    "other s",
    "overhead",
)
_BUDGETS = ("strategy", *(f"{n} trials" for n in TRIALS), *(f"{share:.0%} of time" for share in SHARES))


def _row(comparison: Comparison, strategy: str) -> dict[str, Any]:
    """Everything about one strategy, as the JSON has it."""
    row: dict[str, Any] = {"strategy": strategy, "runs": len(comparison.of(strategy))}
    ratios = {"time": comparison.fewer("seconds", strategy), "measurements": comparison.fewer("trials", strategy)}
    both = (*comparison.of(strategy), *comparison.of(comparison.baseline))
    if all(run.steps > 0 for run in both):
        ratios["steps"] = comparison.fewer("steps", strategy)
    ratios["throughput"] = comparison.faster(strategy)
    for name, value in ratios.items():
        row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    row["beats"] = ratios["time"].beats
    row["never_reached_share"] = comparison.missed(strategy)
    row |= {f"{phase}_s": seconds for phase, seconds in comparison.phases_s(strategy).items()}
    row["overhead_share"] = comparison.overhead(strategy)
    return row


def _cells(row: Mapping[str, Any]) -> list[str]:
    def interval(name: str) -> str:
        return f"{row[name]:.2f} ({row[f'{name}_low']:.2f}-{row[f'{name}_high']:.2f})" if name in row else "-"

    return [
        row["strategy"],
        *(interval(name) for name in ("time", "measurements", "steps", "throughput")),
        "yes" if row["beats"] else "no",
        f"{row['never_reached_share']:.0%}",
        *(f"{row[f'{phase}_s']:.2f}" for phase in curves.PHASES),
        f"{row['overhead_share']:.1%}",
    ]


def _by_level(comparison: Comparison) -> list[list[str]]:
    return [
        [
            strategy,
            *(
                f"{comparison.fewer('seconds', strategy, level=a)}, {comparison.missed(strategy, a):.0%} never"
                for a in LEVELS
            ),
        ]
        for strategy in comparison.strategies
    ]


def _by_budget(comparison: Comparison, budget: int) -> list[list[str]]:
    return [
        [
            strategy,
            *(f"{comparison.faster(strategy, trials=n).value:.3f}" if n <= budget else "-" for n in TRIALS),
            *(f"{comparison.faster(strategy, share=share).value:.3f}" for share in SHARES),
        ]
        for strategy in comparison.strategies
    ]


def _by_workload(comparison: Comparison) -> list[list[str]]:
    rows = []
    for workload in comparison.final:
        part = Comparison([run for run in comparison.runs if run.workload == workload], comparison.baseline)
        ratios = [
            f"{part.fewer('seconds', s).value:.2f}" if s in part.strategies else "-" for s in comparison.strategies
        ]
        rows.append([workload, *ratios])
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
