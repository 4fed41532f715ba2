"""What prior knowledge is worth: `python -m benchmarks.prior`. The weights benchmarked are the weights shipped.

    --part zero-shot   the prior's choices for tasks of networks it has not seen, beside the best of long tunings in
                       --records and all else that is tried (`benchmarks/prior_zero_shot.py`)
    --part compile     whole models without a measurement: latency beside the tuned one, seconds from file to artifact
    --part few-shot    eight cost models after a few measurements, on recordings (`benchmarks/prior_few_shot.py`)
    --part cross-device  a CPU that the prior has not seen, as it is and after a minute of measurements there
                       (`benchmarks/prior_cross_device.py`)
    --part learned     tune three networks, learn, compile a fourth: how much faster it has become
                       (`benchmarks/prior_learned.py`)

Metrics, shares of speed unless said otherwise; all networks are held out whole:
    zero_shot_top1, zero_shot_top8     best known latency over that of the prior's choice, and of its best of eight,
                                       geometric mean over zero_shot_tasks tasks, _low and _high: 95 % interval;
                                       default_top1: of the templates' defaults. _recorded: of recordings, where the
                                       choice is among what was measured before
    zero_shot_NETWORK, default_NETWORK tuned latency over that of the model compiled with the prior, and without one
    rank_s_NETWORK                     seconds to rank the design spaces of all tasks
    compile_s_NETWORK                  seconds from file to artifact, wall-clock, imports included
    compile_speedup_vs_autotvm         seconds of AutoTVM's strategy to the latencies of the prior's choices, task by
                                       task, over compile_s; ResNet-50. _reached: the share of tasks where it got
                                       there, the others count with all their trials
    compile_speedup_vs_autotvm012      1,328 s, of TVM 0.12's AutoTVM for ResNet-18 at 8.7 ms, over compile_s; only
                                       where the compiled model is faster than that
    few_shot_measurement_ratio         measurements to 99 % of xgboost's final throughput, few-shot over xgboost, and
                                       its 95 % interval, _low and _high; _meta-trained: of that model
    few_shot_correlation_MODEL_K       rank correlation after K measurements; few_shot_recall_MODEL_K: top-k recall
    zero_shot_top1, adapted_top1       of cross-device: as of zero-shot, by a prior that never saw this CPU, before and
                                       after --adaptation, for networks held out whole; _data, _data_CPU: among what
                                       the data set has of each CPU, left out in turns with half of the layers
    cross_device_measurement_ratio     as few_shot_measurement_ratio, of a prior that never saw the recordings' CPU,
                                       moved by a minute of measurements; _zero_shot: not moved
    learned_gain, _low, _high          latency of the fourth network before learning over after, and its 95 % interval;
                                       _unshared: learnt without the layers that the three share with the fourth;
                                       _tuned: tuned itself for as long as each of the three, instead
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import corpora, held_out, output, sessions, suite
from benchmarks.commands import calumma
from calumma.core import durations
from calumma.core.errors import InputError
from calumma.peers import Contestant, race
from calumma.prior import library, places, weights
from calumma.prior.weights import Prior

PARTS = ("zero-shot", "compile", "few-shot", "learned", "cross-device")
NETWORKS = ("resnet50", "bert", "resnet18")
SPEEDUP = "resnet50"
AUTOTVM012 = ("resnet18", 1328.0, 8.7e-3)
"""Network, seconds and latency of the AutoTVM of TVM 0.12 on this machine."""
_COMPILE, _PRIOR, _DEFAULT, _TUNED = "compile", "prior", "default", "tuned"
_AUTOTVM_TRIALS = 256
_TEMPLATES = ("conv2d", "depthwise_conv2d", "matmul")
"""Spaces that AutoTVM has templates for."""
Document = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(arguments)
    return output.exit_status(lambda: _run(options))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = output.parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be repeated")
    parser.add_argument("--prior", default="shipped", help="name or file; the shipped one by default")
    parser.add_argument(
        "--records",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="databases of tunings, or folders of such",
    )
    parser.add_argument("--corpora", type=Path, default=corpora.FOLDER, metavar="FOLDER", help="of recordings")
    parser.add_argument("--recorded-only", action="store_true", help="of zero-shot: measure nothing")
    parser.add_argument("--networks", type=output.names, metavar="A,B", help="of zero-shot and compile")
    parser.add_argument("--budget", default="120s", help="for tuning each network of compile")
    parser.add_argument("--teaching", default="60s", metavar="TIME", help="for tuning each network of learned")
    parser.add_argument("--data", type=Path, metavar="FILE", help="of cross-device: a data set. [the prior's]")
    parser.add_argument("--mcpu", metavar="CPU", help="of cross-device: to compile for, by LLVM's name. [this CPU]")
    parser.add_argument("--adaptation", default="60s", metavar="TIME", help="of cross-device: for measuring")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="of few-shot: its curves as a picture (.svg)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of every artifact in a race")
    options = parser.parse_args(arguments)
    options.part = options.part or (["zero-shot", "few-shot"] if options.quick else list(PARTS))
    if options.quick:
        options.recorded_only, options.networks, options.budget, options.rounds = True, suite.QUICK, "10s", 4
        options.teaching = "10s"
    return options


def _run(options: argparse.Namespace) -> int:
    output.check_models(options.networks or (), suite.names(), "--networks")
    prior, path = _prior(options.prior)
    _check_leaks(f"prior {prior.name}", prior.data["workloads"])
    print(f"prior {prior.name}: {prior.data['rows']} configurations of {len(prior.data['workloads'])} workloads")
    surroundings = output.environment(options.threads)
    metrics: dict[str, float] = {}
    rows: list[Document] = []
    parts = {
        "zero-shot": _zero_shot,
        _COMPILE: _compile,
        "few-shot": _few_shot,
        "learned": _learned,
        "cross-device": _cross_device,
    }
    for name in options.part:
        found, table = parts[name](prior, path, options)
        metrics |= found
        rows += table
        print(f"\n{name}:\n{_table(table)}\n")
        for metric, value in found.items():
            print(f"{metric:40} {value:.4g}", flush=True)
        if options.json is not None:
            output.write(
                options.json,
                metrics,
                rows,
                surroundings,
                settings={
                    "parts": options.part,
                    "budget": options.budget,
                    "teaching": options.teaching,
                    "rounds": options.rounds,
                },
                prior={"name": prior.name, "digest": prior.digest, "data": prior.data["digest"]},
            )
    return 0


def _check_leaks(what: str, workloads: Collection[str]) -> None:
    """Raise InputError where something has seen a workload that it is judged by."""
    leaked = set(workloads) & {hash_ for members in held_out.known().values() for hash_ in members}
    if leaked:
        raise InputError(f"{what} has seen {len(leaked)} workloads of the suite: nothing can be shown by it")


def _prior(name: str) -> tuple[Prior, Path]:
    """The prior and its file."""
    if name != "shipped":
        prior = library.find(name)
        return prior, next((e.path for e in library.entries() if e.name == name), Path(name))
    from calumma import tvm_compat

    hardware = tvm_compat.target_for().hardware
    for path in sorted(places.SHIPPED.glob(f"*{weights.SUFFIX}")):
        prior = weights.load(path)
        if any(machine.hardware.fingerprint == hardware.fingerprint for machine in prior.trained_on):
            return prior, path
    raise InputError("no prior is shipped for this machine: learn one (make prior) and name it with --prior")


# -- zero-shot and few-shot -----------------------------------------------------------------------


def _zero_shot(prior: Prior, path: Path, options: argparse.Namespace) -> tuple[dict[str, float], list[Document]]:
    from benchmarks import prior_zero_shot as part
    from calumma import tvm_compat

    tvm_compat.set_threads(options.threads)
    tasks = part.recorded_tasks(options.corpora)
    recorded = part.recorded(prior, tasks)
    if options.recorded_only and not recorded:
        raise InputError(
            f"no task of the suite has {part.LEAST} recorded configurations in {options.corpora}: record corpora "
            "(python -m benchmarks.search --record), or measure without --recorded-only"
        )
    networks = options.networks or part.NETWORKS
    priors = {"prior": prior}
    measured = {} if options.recorded_only else part.live(priors, networks, options.records, options.threads, _status)
    rows = [part.recorded_row(group, recorded[group.key]) for group in tasks.groups if group.key in recorded]
    rows += [part.live_row(entry, "prior", shares["prior"]) for entry, shares in measured.values()]
    shares = [shares["prior"] for _, shares in measured.values()]
    return part.metrics(list(recorded.values()), "_recorded") | part.metrics(shares), rows


def _few_shot(prior: Prior, path: Path, options: argparse.Namespace) -> tuple[dict[str, float], list[Document]]:
    from benchmarks import prior_few_shot as part
    from calumma import tvm_compat

    tvm_compat.set_threads(options.threads)
    tasks = part.opened(prior, path, options.corpora, _status, 100 if options.quick else 1500)
    if not tasks:
        raise InputError(f"no recording in {options.corpora} that prior {prior.name} knows: name another --corpora")
    if options.quick:
        tasks = dict(list(tasks.items())[:1])
    table = part.shots(tasks, _status, 1 if options.quick else part.DRAWS)
    metrics = {}
    for row in table:
        metrics[f"few_shot_correlation_{row['model']}_{row['shots']}"] = row["rank_correlation"]
        metrics[f"few_shot_recall_{row['model']}_{row['shots']}"] = row["top_k_recall"]
    if options.plot is not None:
        part.plot(table, options.plot)
    comparison = part.replayed(tasks, _status, 1 if options.quick else part.SEEDS, 48 if options.quick else part.BUDGET)
    ratio = part.measurement_ratio(comparison)
    metrics |= {
        "few_shot_measurement_ratio": ratio.value,
        "few_shot_measurement_ratio_low": ratio.low,
        "few_shot_measurement_ratio_high": ratio.high,
        "few_shot_measurement_ratio_meta-trained": part.measurement_ratio(comparison, "meta-trained").value,
    }
    for label in comparison.strategies:
        fewer, faster = comparison.fewer("trials", label), comparison.faster(label)
        table.append(
            {
                "part": "few-shot",
                "model": label,
                "shots": "replay",
                "fewer_measurements": fewer.value,
                "fewer_low": fewer.low,
                "fewer_high": fewer.high,
                "throughput": faster.value,
                "never_reached": comparison.missed(label),
            }
        )
    return metrics, table


# -- whole models ---------------------------------------------------------------------------------


def _compile(prior: Prior, path: Path, options: argparse.Namespace) -> tuple[dict[str, float], list[Document]]:
    metrics: dict[str, float] = {}
    rows = []
    for name in options.networks or NETWORKS:
        with tempfile.TemporaryDirectory(prefix="calumma-prior-") as scratch:
            row = _whole(name, path, options, Path(scratch))
        rows.append(row)
        metrics |= {
            f"compile_s_{name}": row["compile_s"],
            f"rank_s_{name}": row["rank_s"],
            f"zero_shot_{name}": row["zero_shot"],
            f"default_{name}": row["default"],
        }
        if row.get("autotvm_s") is not None:
            metrics["compile_speedup_vs_autotvm"] = row["autotvm_s"] / row["compile_s"]
            metrics["compile_speedup_vs_autotvm_reached"] = row["autotvm_reached"]
        network, seconds, latency_s = AUTOTVM012
        if name == network and row["latency_s"][_PRIOR] < latency_s:
            metrics["compile_speedup_vs_autotvm012"] = seconds / row["compile_s"]
    return metrics, rows


def _whole(name: str, prior: Path, options: argparse.Namespace, folder: Path) -> Document:
    """Compile, tune and race one network."""
    _status(f"{name}: compiling")
    model, threads = suite.path(name), ("--threads", options.threads)
    empty = ("--db", folder / "empty.db")
    start = time.perf_counter()
    document = calumma("compile", model, "-o", folder / "prior.so", "--prior", prior, *empty, *threads)
    seconds = time.perf_counter() - start
    calumma("compile", model, "-o", folder / "default.so", "--prior", "none", *empty, *threads)
    _status(f"{name}: tuning, {options.budget}")
    tuning = ("--db", folder / "tuned.db", "--budget", options.budget, "--prior", prior)
    calumma("tune", model, "-o", folder / "tuned.so", *tuning, *threads)
    result = race(
        [Contestant(label, "calumma", str(folder / f"{label}.so")) for label in (_TUNED, _PRIOR, _DEFAULT)],
        suite.inputs(name),
        threads=options.threads,
        rounds=options.rounds,
        progress=_status,
    )
    row: Document = {
        "part": _COMPILE,
        "network": name,
        "compile_s": seconds,
        "rank_s": document["phases_s"]["prior"],
        "phases_s": document["phases_s"],
        "predicted": document["predicted"],
        "tasks": len(document["tasks"]),
        "latency_s": {row.label: row.latency_s.median for row in result.rows if row.latency_s},
        "zero_shot": _share(result, _PRIOR),
        "default": _share(result, _DEFAULT),
    }
    if name == SPEEDUP:
        row |= _autotvm(model, prior, options)
    return row


def _share(result: Any, label: str) -> float:
    """Speed of an artifact as a share of the tuned one's."""
    ratio = result.ratio(_TUNED, label)
    if ratio is None:
        raise InputError(f"{label} or the tuned artifact could not run: {[row.reason for row in result.rows]}")
    return float(ratio.median)


def _autotvm(model: Path, prior: Path, options: argparse.Namespace) -> Document:
    """Seconds that AutoTVM's strategy needs to the latencies that the prior's choices have, task by task.

    As AutoTVM would, it tunes convolutions and products alone and begins with a random configuration. A task is left
    as soon as the latency is reached, or after `_AUTOTVM_TRIALS`, which counts as not reached.
    """
    from calumma import tvm_compat
    from calumma.core.values import Candidate
    from calumma.measure import LocalRunner
    from calumma.pipeline import CompileOptions
    from calumma.pipeline.preparation import prepare
    from calumma.prior import zero_shot

    threads = tvm_compat.set_threads(options.threads)
    prepared = prepare(str(model), CompileOptions(threads=threads))
    predictor, _ = zero_shot.predictor_for(prepared, str(prior))
    chosen = {} if predictor is None else zero_shot.choices(prepared, predictor)
    tasks = [task for task in prepared.tasks if prepared.spaces[task.workload.hash].template in _TEMPLATES]
    seconds, trials, reached = 0.0, 0, 0
    with LocalRunner(prepared.target, threads, cache_state=prepared.cache_state) as runner:
        for number, task in enumerate(tasks):
            space = prepared.spaces[task.workload.hash]
            candidate = functools.partial(Candidate, task.workload, space.template, space.version)
            choice = candidate(prepared.config(task.workload.hash, chosen))
            latency_s = median(runner.measure([choice])[0].latency_s for _ in range(3))
            _status(f"AutoTVM's strategy, task {number + 1} of {len(tasks)}")
            run = sessions.search(
                "autotvm",
                space,
                candidate,
                runner,
                sessions.WallClock(),
                workload=task.name,
                seed=0,
                budget=_AUTOTVM_TRIALS,
                cold_start=True,
                enough_s=latency_s,
            )
            seconds += run.seconds
            trials += run.trials
            reached += run.throughput >= 1 / latency_s
    return {"autotvm_s": seconds, "autotvm_trials": trials, "autotvm_reached": reached / len(tasks)}


def _learned(prior: Prior, path: Path, options: argparse.Namespace) -> tuple[dict[str, float], list[Document]]:
    from benchmarks import prior_learned as part

    with tempfile.TemporaryDirectory(prefix="calumma-learned-") as scratch:
        races = 2 if options.quick else part.RACES
        metrics, row = part.learned(path, options.teaching, options.threads, Path(scratch), _status, races)
    return metrics, [row]


def _cross_device(prior: Prior, path: Path, options: argparse.Namespace) -> tuple[dict[str, float], list[Document]]:
    from benchmarks import prior_cross_device as part
    from benchmarks import prior_zero_shot
    from calumma import tvm_compat
    from calumma.prior import dataset

    tvm_compat.set_threads(options.threads)
    data = dataset.load(options.data or path.with_suffix(".npz"))
    _check_leaks("the data set", data.workloads)
    settings = part.QUICK if options.quick else None
    priors = part.left_out(data, _status, settings)
    metrics, rows = part.on_the_data(priors)
    metrics |= part.measurement_ratios(priors, options.corpora, _status, quick=options.quick)
    if not options.recorded_only:
        networks = options.networks or prior_zero_shot.NETWORKS
        budget = durations.budget(options.adaptation)
        found, table = part.live(
            data, networks, options.records, options.threads, options.mcpu, budget, _status, settings
        )
        metrics, rows = metrics | found, [*rows, *table]
    return metrics, rows


def _table(rows: Sequence[Document]) -> str:
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("part", "phases_s")]
    return output.markdown(columns, [[_cell(row.get(key)) for key in columns] for row in rows])


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {1e3 * part:.3f} ms" for key, part in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def _status(line: str, *_: object) -> None:
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{line:<110}".rstrip() if end == "\n" else f"{line:<110}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
