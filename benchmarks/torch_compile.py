"""`torch.compile` with calumma's backend beside eager torch and Inductor: `python -m benchmarks.torch_compile`.

For four models: processes that load a checkpoint and compute one result, from an empty cache and again from what the
first one left in it; then a race (`calumma.peers.race`: a process each, in turns, same threads and inputs). Ratios are
calumma's latency over the other's. A model that fails, of which a part is left to torch, or that computes something
else than eager (`_TOLERANCE`) makes the exit status 1.

Metrics:
    geomean_vs_eager, worst_vs_eager, geomean_vs_inductor, worst_vs_inductor: ratio of latencies
    max_relative_difference: of calumma's outputs from eager's
    first_process_s, second_process_s: from the start of a process to its first result, the slowest model's: with an
        empty cache, and with the one it left (median of several processes)
    eager_process_s: the same without torch.compile, the slowest model's
    dynamo_process_s: the same with torch.compile's backend "eager", which compiles nothing: what torch itself takes to
        load its compiler's front end, to trace the model and to run it
    models, models_failed, models_wrong: how many
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from benchmarks import output, suite
from calumma.core.durations import seconds
from calumma.peers import Contestant, race

_MODELS = ("resnet18", "mobilenet_v2", "bert", "vit_b_16")
_OURS, _EAGER, _INDUCTOR = "calumma", "eager", "inductor"
_RUNTIMES = {_OURS: "torch-calumma", _EAGER: "torch-eager", _INDUCTOR: "torch-compile"}
_PROCESSES = ("first_process_s", "second_process_s", "eager_process_s", "dynamo_process_s")
_TOLERANCE = 1e-3
_PROCESS_TIMEOUT_S = 1800
Row = dict[str, Any]

# What a user's program would do, and nothing else: the time of its imports is part of the result.
_PROGRAM = """
import sys
import warnings
import torch
from benchmarks import torch_models

name, checkpoint, backend, budget, threads = sys.argv[1:]
warnings.filterwarnings("error", "calumma leaves")
torch.set_num_threads(int(threads))
saved = torch.load(checkpoint, mmap=True, weights_only=True)
model = torch_models.skeleton(name)
model.load_state_dict(saved["state"], assign=True)
if backend == "calumma":
    model = torch.compile(model, backend=backend, options={"budget": budget, "threads": int(threads)})
elif backend == "dynamo":
    model = torch.compile(model, backend="eager")
elif backend == "inductor":
    model = torch.compile(model)
with torch.inference_mode():
    model(*saved["inputs"])
print("ready", flush=True)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(arguments)
    return output.exit_status(lambda: _run(options))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = output.parser(__doc__.splitlines()[0])
    parser.add_argument("--models", type=output.names, default=_MODELS, metavar="A,B")
    parser.add_argument("--budget", default="0s", help="for tuning each model before it is raced")
    parser.add_argument("--rounds", type=int, default=10, help="turns of every runtime")
    parser.add_argument("--processes", type=int, default=3, help="that start from a filled cache")
    options = parser.parse_args(arguments)
    options.against = (_EAGER, _INDUCTOR)
    if options.quick:
        options.models, options.rounds, options.processes = ("mobilenet_v2",), 4, 1
        options.against = (_EAGER,)  # Inductor's compiler alone takes most of a minute
    return options


def _run(options: argparse.Namespace) -> int:
    output.check_models(options.models, _MODELS)
    settings = {"budget": options.budget, "rounds": options.rounds, "processes": options.processes}
    surroundings = output.environment(options.threads)
    rows = []
    for name in options.models:
        rows.append(_measure(name, options))
        print(_line(rows[-1]), flush=True)
    result = metrics(rows)
    print(f"\n{_table(rows)}\n")
    for metric, value in result.items():
        print(f"{metric:32} {value:.4g}")
    if options.json is not None:
        output.write(options.json, result, rows, surroundings, settings=settings)
    return 1 if result["models_failed"] or result["models_wrong"] else 0


def _measure(name: str, options: argparse.Namespace) -> Row:
    """Start processes and race the runtimes for one model; a failure is part of the row."""
    import torch

    from benchmarks import torch_models

    row: Row = {"model": name, "error": "", "notes": [], "race": None}
    inputs = suite.inputs(name)
    with tempfile.TemporaryDirectory(prefix="calumma-bench-") as scratch:
        folder = Path(scratch)
        checkpoint, cache = folder / "checkpoint.pt", folder / "cache"
        cache.mkdir()
        (cache / suite.path(name).name).symlink_to(suite.path(name))  # the suite looks there too
        tensors = [torch.from_numpy(array) for array in inputs[0].values()]
        torch.save({"state": getattr(torch_models, name)().state_dict(), "inputs": tensors}, checkpoint)
        surroundings = {
            "CALUMMA_CACHE": str(cache),
            "CALUMMA_DB": str(folder / "records.sqlite"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        }
        kept = {key: os.environ.get(key) for key in surroundings}
        os.environ.update(surroundings)  # for the processes of the race as well
        try:
            row["eager_process_s"] = _start(name, checkpoint, _EAGER, options)
            row["dynamo_process_s"] = _start(name, checkpoint, "dynamo", options)
            if seconds(options.budget) > 0:
                _start(name, checkpoint, _OURS, options, options.budget)
            row["first_process_s"] = _start(name, checkpoint, _OURS, options)
            again = [_start(name, checkpoint, _OURS, options) for _ in range(options.processes)]
            row["second_process_s"] = median(again)
            entries = [
                Contestant(label, runtime, suite.torch_source(name) or "")
                for label, runtime in _RUNTIMES.items()
                if label in (_OURS, *options.against)
            ]
            found = race(entries, inputs, threads=options.threads, rounds=options.rounds, turn_s=0.25)
        except _Failed as error:
            row["error"] = str(error)
            return row
        finally:
            for key, value in kept.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value
    row["race"] = found.as_dict()
    row["notes"] = [f"{entry.label}: n/a, {entry.reason}" for entry in found.rows if entry.reason]
    if found.row(_OURS).reason:
        row["error"] = found.row(_OURS).reason
        return row
    row["latency_s"] = {entry.label: entry.latency_s.median for entry in found.rows if entry.latency_s}
    row["difference"] = found.row(_OURS).difference
    row["wrong"] = row["difference"] is None or row["difference"] > _TOLERANCE
    for label in options.against:
        ratio = found.ratio(_OURS, label)
        row[f"vs_{label}"] = ratio.median if ratio else None
    return row


def _start(name: str, checkpoint: Path, backend: str, options: argparse.Namespace, budget: str = "0s") -> float:
    """Run the program in a process of its own; returns the seconds from its start to its first result."""
    command = [sys.executable, "-c", _PROGRAM, name, str(checkpoint), backend, budget, str(options.threads)]
    with tempfile.TemporaryFile("w+") as complaints:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=output.ROOT, stdout=subprocess.PIPE, stderr=complaints, text=True)
        guard = threading.Timer(_PROCESS_TIMEOUT_S, process.kill)
        guard.start()
        try:
            assert process.stdout is not None
            ready = process.stdout.readline() == "ready\n"
            elapsed_s = time.perf_counter() - start
            process.wait()
        finally:
            guard.cancel()
            process.kill()
            process.communicate()
        if not ready:
            complaints.seek(0)
            last = (complaints.read().strip().splitlines() or [f"exit status {process.returncode}"])[-1]
            raise _Failed(f"{backend}: no result: {last}")
    return elapsed_s


class _Failed(Exception):
    """A process that failed; the message is one line."""


def metrics(rows: Sequence[Row]) -> dict[str, float]:
    """The numbers of the JSON file, from its rows."""
    result: dict[str, float] = {}
    for label in (_EAGER, _INDUCTOR):
        ratios = [row[f"vs_{label}"] for row in rows if row.get(f"vs_{label}") is not None]
        if ratios:
            result[f"geomean_vs_{label}"] = geometric_mean(ratios)
            result[f"worst_vs_{label}"] = max(ratios)
    differences = [row["difference"] for row in rows if row.get("difference") is not None]
    if differences:
        result["max_relative_difference"] = max(differences)
    for name in _PROCESSES:
        values = [row[name] for row in rows if name in row]
        if values:
            result[name] = max(values)
    result["models"] = len(rows)
    result["models_failed"] = sum(bool(row["error"]) for row in rows)
    result["models_wrong"] = sum(row.get("wrong", False) for row in rows)
    return result


def _line(row: Row) -> str:
    parts = [f"{label} {latency_s * 1e3:.2f} ms" for label, latency_s in row.get("latency_s", {}).items()]
    parts += [
        f"{name.removesuffix('_s').replace('_', ' ')} {row[name]:.1f} s" for name in row if name.endswith("process_s")
    ]
    if row.get("wrong"):
        parts.append(f"WRONG: differs from eager by {row['difference']}")
    if row["error"]:
        parts.append(f"FAILED: {row['error']}")
    return f"{row['model']}: {', '.join([*parts, *row['notes']])}"


def _table(rows: Sequence[Row]) -> str:
    columns = [
        "model",
        *(f"{label} ms" for label in _RUNTIMES),
        "calumma / eager",
        "calumma / inductor",
        "difference",
        *(name.replace("_", " ") for name in _PROCESSES),
    ]
    body = [
        [
            row["model"],
            *(output.number(row.get("latency_s", {}).get(label), 1e3, ".2f") for label in _RUNTIMES),
            output.number(row.get(f"vs_{_EAGER}"), 1, ".2f"),
            output.number(row.get(f"vs_{_INDUCTOR}"), 1, ".2f"),
            output.number(row.get("difference"), 1, ".0e"),
            *(output.number(row.get(name), 1, ".1f") for name in _PROCESSES),
        ]
        for row in rows
    ]
    return output.markdown(columns, body)


if __name__ == "__main__":
    sys.exit(main())
