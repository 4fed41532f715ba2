"""The suite's models beside other runtimes, before and after tuning: `python -m benchmarks.models`.

For every model: `calumma compile` with an empty database, `calumma tune` with the budget and a database of its own,
then one race of both artifacts and all peers (`calumma.peers.race`: a process each, in turns, same threads and inputs).
Latencies are compared round by round; ratios are ours over theirs, speedups theirs over ours. A model that fails or
computes something else than ONNX Runtime (`_TOLERANCE`) makes the exit status 1 and is counted in the metrics; a peer
that does is not counted among the best. With --json, every model's result is on disk as soon as it is there, and
--resume goes on from it: a run of --models A,B can be followed by one of C,D. With --mcpu, the peers are held to the
same vectors as far as they can be, and the table says how far. With --untuned-only --against-source PATH, another
source tree takes the place of the peers: `benchmarks.before_after`.

Metrics (those of tuned artifacts are missing after --untuned-only):
    geomean_vs_onnxruntime, worst_vs_onnxruntime, and both with untuned_ before: ratio of latencies
    worst_tuned_vs_untuned: tuned over untuned latency
    geomean_speedup_vs_best, worst_speedup_vs_best: the fastest peer's latency over ours, and both with untuned_ before
    geomean_speedup_vs_PEER: one peer's over ours, of the models that it runs right; also with untuned_ before
    import_s_resnet50: seconds from file to fused tasks, without Python's and TVM's imports
    conv_share_of_peak: ResNet-50's convolutions inside the model: flops / seconds / peak; the flops are those of the
        direct algorithm, of which Winograd's needs a part
    layers_at_90_share: of the time of a model's layers, the share of those that reach 90 % of peak; mean of the models.
        A layer is a kernel whose roofline is arithmetic, not memory, and that takes more than 1 % of its model's time;
        its flops are those of the direct algorithm, so a Winograd convolution that is as fast counts
    layers_below_90: how many layers do not reach 90 %
    worst_default_vs_tuned: default over tuned latency, of the worst task that takes more than 1 % of its model's time
    sum_of_tasks_vs_model: the model's sum of task times over its latency, of the model farthest from 1
    models, models_failed, models_wrong, max_relative_difference: how many, and the worst error of our outputs
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import before_after, output, suite
from benchmarks.commands import calumma
from calumma.core.errors import InputError
from calumma.peers import Contestant, RaceResult, peers, race

TUNED, UNTUNED = "calumma", "calumma-untuned"
"""Labels of our artifacts in a race."""
_OURS = (TUNED, UNTUNED)
_TOLERANCE = 1e-3
_PROFILED = "resnet50"
_WEIGHTY = 0.01
"""Share of its model's time above which a kernel counts as a layer."""
_NEAR_PEAK = 0.9
_WORST = 10
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(arguments)
    return output.exit_status(lambda: _run(options))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = output.parser(__doc__.splitlines()[0])
    parser.add_argument("--models", type=output.names, default=suite.names(), metavar="A,B", help="of the suite")
    parser.add_argument("--budget", default="120s", help="for tuning each model")
    parser.add_argument(
        "--against",
        type=output.names,
        default=("onnxruntime", "openvino", "torch"),
        metavar="A,B",
        help="runtimes, or all",
    )
    parser.add_argument("--mcpu", metavar="CPU", help="compile for this CPU, by LLVM's name")
    parser.add_argument("--rounds", type=int, default=10, help="turns of every runtime")
    parser.add_argument("--databases", type=Path, metavar="FOLDER", help="keep what the tunings measured there")
    parser.add_argument("--untuned-only", action="store_true", help="compile, do not tune")
    parser.add_argument(
        "--against-source",
        type=Path,
        metavar="PATH",
        help="a checkout: race what it compiles instead of the peers; needs --untuned-only",
    )
    parser.add_argument("--resume", action="store_true", help="keep the models that are in the JSON file")
    parser.add_argument("--readme", action="store_true", help="write the table to README.md")
    options = parser.parse_args(arguments)
    if options.resume and options.json is None:
        parser.error("--resume needs --json FILE, the file to go on from")
    if options.against_source is not None and (not options.untuned_only or options.resume or options.readme):
        parser.error("--against-source PATH needs --untuned-only, and goes with neither --resume nor --readme")
    if options.quick:
        options.models, options.budget, options.rounds = suite.QUICK, "10s", 4
    return options


def _run(options: argparse.Namespace) -> int:
    output.check_models(options.models, suite.names())
    if options.against_source is not None:
        return before_after.run(options, _status)
    if options.databases is not None:
        options.databases.mkdir(parents=True, exist_ok=True)
    peers(options.against, None, mcpu=options.mcpu)  # a wrong name is refused before an hour of work
    settings = {
        "budget": None if options.untuned_only else options.budget,
        "against": list(options.against),
        "rounds": options.rounds,
        "threads": options.threads,
        "mcpu": options.mcpu,
    }
    surroundings = output.environment(options.threads)
    rows = _kept(options, settings) if options.resume else []
    for name in options.models:
        if name in {row["model"] for row in rows}:
            continue
        row = _measure(name, options)
        rows.append(row)
        print(line(name, row), flush=True)
        if options.json is not None:
            output.write(options.json, metrics(rows), rows, surroundings, settings=settings)
    rows.sort(key=lambda row: suite.names().index(row["model"]))
    result = metrics(rows)
    text = _table(rows)
    print(f"\n{text}\n\n{_peer_table(rows)}\n")
    for note in notes(rows):
        print(note)
    if below := layers_below_90(rows):
        print(f"{_layer_table(below[:_WORST])}\n")
    for metric, value in _all_metrics(rows).items():
        print(f"{metric:32} {output.number(value, 1, '.4g')}")
    if options.json is not None:
        below = layers_below_90(rows)
        output.write(options.json, result, rows, surroundings, settings=settings, layers_below_90=below)
    if options.readme:
        output.replace_section(output.ROOT / "README.md", "results", _summary(text, result, surroundings, settings))
    return 1 if result["models_failed"] or result["models_wrong"] else 0


def _kept(options: argparse.Namespace, settings: dict[str, Any]) -> list[Row]:
    """Rows of the JSON file that need not be measured again, and those of models that are not asked for now."""
    if not options.json.exists():
        return []
    document = output.read(options.json)
    if document.get("settings") != settings:
        raise InputError(
            f"--resume {options.json}: made with {document.get('settings')}, now {settings}: give the same options, "
            "or another file"
        )
    return [row for row in document["rows"] if row["model"] not in options.models or not row["error"]]


def _measure(name: str, options: argparse.Namespace) -> Row:
    """Compile, tune and race one model; a failure is part of the row."""
    say = functools.partial(_status, name)
    row: Row = {"model": name, "mcpu": options.mcpu, "commit": output.commit(), "error": "", "race": None}
    say("building the model file")
    model = suite.path(name)
    with tempfile.TemporaryDirectory(prefix="calumma-bench-") as scratch:
        folder = Path(scratch)
        untuned, tuned = folder / "untuned.so", folder / "tuned.so"
        threads = ["--threads", str(options.threads)]
        common = threads if options.mcpu is None else [*threads, "--mcpu", options.mcpu]
        entries = []
        try:
            say("compiling")
            row["compile"] = calumma("compile", model, "-o", untuned, "--db", folder / "empty.db", *common)
            entries.append(Contestant(UNTUNED, "calumma", str(untuned)))
            if not options.untuned_only:
                say(f"tuning, {options.budget}")
                database = folder / "tuned.db" if options.databases is None else options.databases / f"{name}.db"
                database.unlink(missing_ok=True)  # of an earlier run: nothing is known of a model when it is tuned
                spend = ["--db", database, "--budget", options.budget]
                row["tune"] = calumma("tune", model, "-o", tuned, *spend, *common, needs=["latency_s"])
                entries.insert(0, Contestant(TUNED, "calumma", str(tuned)))
            say("profiling")
            row |= _profiled(tuned if tuned.exists() else untuned, threads)
        except InputError as failed:
            row["error"] = str(failed)
        if entries:
            entries += peers(options.against, model, suite.torch_source(name), options.mcpu)
            result = race(entries, suite.inputs(name), threads=options.threads, rounds=options.rounds, progress=say)
            row.update(ratios(result), race=result.as_dict())
            row["error"] = "; ".join(filter(None, [row["error"], lost(result)]))
    _status("", "")
    return row


def lost(result: RaceResult) -> str:
    """What became of artifacts of ours that could not run or be judged; empty where all could."""
    reasons = [f"{entry.label}: {entry.reason}" for entry in result.rows if entry.label in _OURS and entry.reason]
    if result.reference is None:
        reasons.append("onnxruntime could not run: no outputs to compare with")
    return "; ".join(reasons)


def ratios(result: RaceResult) -> Row:
    """What the metrics are made of."""
    ours = [row for row in result.rows if row.label in _OURS]
    rivals = [row for row in result.rows if row not in ours and row.latency_s]
    right = [row.label for row in rivals if row.difference is None or row.difference <= _TOLERANCE]
    differences = [row.difference for row in ours if row.difference is not None]
    found: Row = {
        "output_change": result.output_change,
        "difference": max(differences, default=None),
        "wrong": any(difference > _TOLERANCE for difference in differences),
        "latency_s": {row.label: row.latency_s.median for row in result.rows if row.latency_s},
    }

    def ratio(label: str, other: str) -> float | None:
        labels = {row.label for row in result.rows}
        spread = result.ratio(label, other) if {label, other} <= labels else None
        return spread.median if spread else None

    found["vs_onnxruntime"] = ratio(TUNED, "onnxruntime")
    found["untuned_vs_onnxruntime"] = ratio(UNTUNED, "onnxruntime")
    found["tuned_vs_untuned"] = ratio(TUNED, UNTUNED)
    found["wrong_peers"] = [row.label for row in rivals if row.label not in right]
    found["speedups"] = {
        own.label: {label: 1 / value for label in right if (value := ratio(own.label, label)) is not None}
        for own in ours
    }
    best = {label: min(speedups.values(), default=None) for label, speedups in found["speedups"].items()}
    found["speedup_vs_best"] = best[ours[0].label]
    found["untuned_speedup_vs_best"] = best.get(UNTUNED)
    return found


def metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Flat metrics of the rows; one that no row can tell is missing."""
    return {name: value for name, value in _all_metrics(rows).items() if value is not None}


def _all_metrics(rows: Sequence[Row]) -> dict[str, float | None]:
    def over(reduce: Callable[[list[float]], float], key: str) -> float | None:
        values = [row[key] for row in rows if row.get(key) is not None]
        return reduce(values) if values else None

    return {
        "geomean_vs_onnxruntime": over(_geomean, "vs_onnxruntime"),
        "worst_vs_onnxruntime": over(max, "vs_onnxruntime"),
        "untuned_geomean_vs_onnxruntime": over(_geomean, "untuned_vs_onnxruntime"),
        "untuned_worst_vs_onnxruntime": over(max, "untuned_vs_onnxruntime"),
        "worst_tuned_vs_untuned": over(max, "tuned_vs_untuned"),
        "geomean_speedup_vs_best": over(_geomean, "speedup_vs_best"),
        "worst_speedup_vs_best": over(min, "speedup_vs_best"),
        "untuned_geomean_speedup_vs_best": over(_geomean, "untuned_speedup_vs_best"),
        "untuned_worst_speedup_vs_best": over(min, "untuned_speedup_vs_best"),
        **_by_peer(rows),
        "max_relative_difference": over(max, "difference"),
        "conv_share_of_peak": next((r.get("conv_share_of_peak") for r in rows if r["model"] == _PROFILED), None),
        "layers_at_90_share": over(mean, "layers_at_90_share"),
        "layers_below_90": len(layers_below_90(rows)) if any("layers" in row for row in rows) else None,
        "import_s_resnet50": next((_import_s(row) for row in rows if row["model"] == _PROFILED), None),
        "sum_of_tasks_vs_model": _farthest_from_1(
            row["tune"]["latency_s"] / row["latency_s"][TUNED]
            for row in rows
            if row.get("tune") and TUNED in row.get("latency_s", {})
        ),
        "worst_default_vs_tuned": max((r for row in rows for r in _default_ratios(row)), default=None),
        "models": len(rows),
        "models_failed": sum(bool(row["error"]) for row in rows),
        "models_wrong": sum(bool(row.get("wrong")) for row in rows),
    }


def _by_peer(rows: Sequence[Row]) -> dict[str, float | None]:
    """Geometric means of the speedups over each peer."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for label, speedups in row.get("speedups", {}).items():
            for peer, speedup in speedups.items():
                metric = f"{'' if label == TUNED else 'untuned_'}geomean_speedup_vs_{peer}"
                found.setdefault(metric, []).append(speedup)
    return {metric: _geomean(values) for metric, values in found.items()}


def _default_ratios(row: Row) -> list[float]:
    """Default over tuned latency of every task that takes more than 1 % of its model's time."""
    tasks = [
        task for task in (row.get("tune") or {}).get("tasks", []) if task["latency_s"] and task["default_latency_s"]
    ]
    total_s = sum(task["weight"] * task["latency_s"] for task in tasks)
    weighty = [task for task in tasks if task["weight"] * task["default_latency_s"] > 0.01 * total_s]
    return [task["default_latency_s"] / task["latency_s"] for task in weighty]


def _import_s(row: Row) -> float | None:
    return row["compile"].get("import_s") if row.get("compile") else None


def _geomean(values: Iterable[float]) -> float:
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def _farthest_from_1(values: Iterable[float]) -> float | None:
    return max(values, key=lambda value: abs(math.log(value)) if value > 0 else math.inf, default=None)


def _profiled(artifact: Path, common: Sequence[str]) -> Row:
    """What the profile of an artifact tells: its layers' shares of peak."""
    profile = calumma("run", artifact, "--profile", *common, needs=["kernels", "profile"])
    return layers(profile["kernels"], profile["profile"]["peak_gflop_per_s"])


def layers(kernels: Sequence[Row], peak_gflop_per_s: float) -> Row:
    """The layers of a model and what the metrics are made of; kernels are rows of `calumma run --profile`."""
    found = [
        {key: kernel[key] for key in ("kernel", "output", "calls", "ms", "share")}
        | {"of_peak": kernel["gflop_per_s"] / peak_gflop_per_s}
        for kernel in kernels
        if kernel["limit"] == "compute" and kernel["share"] > _WEIGHTY
    ]
    row: Row = {"layers": found}
    total_ms = sum(layer["ms"] for layer in found)
    if total_ms:
        near_ms = sum(layer["ms"] for layer in found if layer["of_peak"] >= _NEAR_PEAK)
        row["layers_at_90_share"] = near_ms / total_ms
    convolutions = [kernel for kernel in kernels if "conv2d" in kernel["kernel"]]
    seconds = sum(kernel["ms"] for kernel in convolutions) / 1e3
    if seconds:
        gflop = sum(kernel["gflop_per_s"] * kernel["ms"] / 1e3 for kernel in convolutions)
        row["conv_share_of_peak"] = gflop / seconds / peak_gflop_per_s
    return row


def layers_below_90(rows: Iterable[Row]) -> list[Row]:
    """Layers of all models that do not reach 90 % of peak, farthest first."""
    found = [
        {"model": row["model"], **layer}
        for row in rows
        for layer in row.get("layers", ())
        if layer["of_peak"] < _NEAR_PEAK
    ]
    return sorted(found, key=lambda layer: layer["of_peak"])


def _layer_table(below: Iterable[Row]) -> str:
    body = [
        [
            layer["model"],
            layer["kernel"],
            "x".join(map(str, layer["output"])),
            str(layer["calls"]),
            format(layer["ms"] / layer["calls"] * 1e3, ".0f"),
            format(layer["share"], ".1%"),
            format(layer["of_peak"], ".0%"),
        ]
        for layer in below
    ]
    return output.markdown(
        ["model", "layer below 90 %", "output", "calls", "us a call", "share of time", "of peak"], body
    )


def line(name: str, row: Row) -> str:
    """What is said of a row as soon as it is there."""
    parts = [f"{label} {seconds * 1e3:.2f} ms" for label, seconds in row.get("latency_s", {}).items()]
    if row.get("difference") is not None:
        parts.append(f"difference {row['difference']:.1e}{' WRONG' if row['wrong'] else ''}")
    if row["error"]:
        parts.append(f"FAILED {row['error']}")
    return f"{name}: {', '.join(parts)}"


def _table(rows: Sequence[Row]) -> str:
    labels = list(dict.fromkeys(entry["label"] for row in rows for entry in (row["race"] or {"rows": []})["rows"]))
    body = [
        [
            row["model"],
            *(output.number(row.get("latency_s", {}).get(label), 1e3, ".2f") for label in labels),
            output.number(row.get("untuned_vs_onnxruntime"), 1, ".2f"),
            output.number(row.get("vs_onnxruntime"), 1, ".2f"),
            output.number(row.get("speedup_vs_best"), 1, ".2f"),
            output.number(row.get("difference"), 1, ".0e"),
        ]
        for row in rows
    ]
    columns = [
        "model",
        *(f"{label} ms" for label in labels),
        "untuned / ORT",
        "tuned / ORT",
        "best peer / ours",
        "difference",
    ]
    return output.markdown(columns, body)


def _peer_table(rows: Sequence[Row]) -> str:
    """Every peer's latency over ours, untuned and tuned."""
    found = [(row, row["speedups"]) for row in rows if row.get("speedups")]
    names = dict.fromkeys(peer for _, speedups in found for of_peer in speedups.values() for peer in of_peer)

    def cell(speedups: Row, peer: str) -> str:
        return " / ".join(
            output.number(speedups[label].get(peer), 1, ".2f") for label in (UNTUNED, TUNED) if label in speedups
        )

    body = [[row["model"], *(cell(speedups, peer) for peer in names)] for row, speedups in found]
    return output.markdown(["its latency / ours: untuned / tuned", *names], body)


def notes(rows: Iterable[Row]) -> list[str]:
    """What a reader of the table has to know: peers that could not run or are wrong, and how they are held."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for entry in (row["race"] or {"rows": []})["rows"]:
            if text := entry["reason"] or entry["note"]:
                found.setdefault(f"{entry['label']}: {text}", []).append(row["model"])
        for label in row.get("wrong_peers", ()):
            found.setdefault(f"{label}: wrong outputs, not counted", []).append(row["model"])
    return [f"{text} ({', '.join(models)})" for text, models in found.items()]


def _summary(table: str, result: dict[str, float], surroundings: dict[str, Any], settings: dict[str, Any]) -> str:
    """The README's section."""
    budget = f"{settings['budget']} of tuning each" if settings["budget"] else "untuned"
    ratios = {
        "tuned": ("geomean_vs_onnxruntime", "worst_vs_onnxruntime"),
        "untuned": ("untuned_geomean_vs_onnxruntime", "untuned_worst_vs_onnxruntime"),
    }
    means = [
        f"{kind} {result[mean]:.2f} (worst {result[worst]:.2f})"
        for kind, (mean, worst) in ratios.items()
        if mean in result
    ]
    versions = surroundings["versions"]
    names = ", ".join(f"{name} {versions[name]}" for name in ("onnxruntime", "openvino", "torch") if versions[name])
    code = f", code for {settings['mcpu']}" if settings["mcpu"] else ""
    machine = f"{surroundings['cpu']}{code}, {surroundings['threads']} threads"
    return (
        f"{table}\n\n{machine}, {budget}, {surroundings['date'][:10]}; {names}.\n"
        f"Geometric mean of the latency over ONNX Runtime's: {'; '.join(means)}."
    )


def _status(name: str, text: str) -> None:
    """Show on a terminal what is going on, in one line that is overwritten."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{name} {text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
