"""Batch sizes and threads: default schedules beside other runtimes: `python -m benchmarks.batch`.

For every model, batch size and number of threads: `calumma compile --shape` with an empty database (nothing is tuned),
then a race of the artifact and all peers (`calumma.peers.race`: a process each, in turns, same threads and inputs). The
suite's models have a batch of 1; here it is left open, and every runtime is told the size. A point that fails, or whose
outputs differ from ONNX Runtime's by more than the suite's tolerance, makes the exit status 1. With --json, every point
is on disk as soon as it is there.

Metrics, over all points:
    geomean_vs_onnxruntime, worst_vs_onnxruntime: ratio of latencies, ours over theirs
    geomean_speedup_vs_best, worst_speedup_vs_best: the fastest peer's latency over ours
    max_relative_difference: of our outputs from ONNX Runtime's
    points, points_failed, points_wrong: how many
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import numpy_helper

from benchmarks import models, output, suite
from benchmarks.commands import calumma
from benchmarks.models import Row
from calumma.core.errors import InputError
from calumma.peers import Contestant, input_specs, peers, race, random_inputs

MODELS = tuple(name for name in suite.names() if name != "vit_b_16")
"""All but the one whose class token is a tensor of batch 1."""
_DEFAULT = ("resnet50", "mobilenet_v2", "bert")
_BATCH = "batch"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(arguments)
    return output.exit_status(lambda: _run(options))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = output.parser(__doc__.splitlines()[0])
    parser.add_argument("--models", type=output.names, default=_DEFAULT, metavar="A,B", help="of the suite")
    parser.add_argument("--batches", type=_numbers, default=(1, 8, 32), metavar="N,M", help="batch sizes")
    parser.add_argument("--thread-counts", type=_numbers, metavar="N,M", help="several, in the place of --threads")
    parser.add_argument("--against", type=output.names, default=("onnxruntime", "openvino"), metavar="A,B")
    parser.add_argument("--rounds", type=int, default=10, help="turns of every runtime")
    options = parser.parse_args(arguments)
    options.thread_counts = options.thread_counts or (options.threads,)
    if options.quick:
        options.models, options.batches, options.rounds = suite.QUICK, (1, 4), 2
    return options


def _run(options: argparse.Namespace) -> int:
    output.check_models(options.models, MODELS)
    peers(options.against, None)  # a wrong name is refused before an hour of work
    settings = {"against": list(options.against), "rounds": options.rounds}
    surroundings = output.environment(max(options.thread_counts))
    rows: list[Row] = []
    for name in options.models:
        with tempfile.TemporaryDirectory(prefix="calumma-bench-") as scratch:
            model = Path(scratch) / f"{name}.onnx"
            samples = {spec.name: spec.shape[1:] for spec in input_specs(suite.path(name))}
            onnx.save(with_open_batch(onnx.load(suite.path(name))), model)
            for batch, threads in itertools.product(options.batches, options.thread_counts):
                row = _measure(model, samples, batch, threads, options)
                rows.append(row)
                print(models.line(f"{name}, batch {batch}, {threads} threads", row), flush=True)
                if options.json is not None:
                    output.write(options.json, metrics(rows), rows, surroundings, settings=settings)
    result = metrics(rows)
    print(f"\n{_table(rows)}\n")
    for metric, value in result.items():
        print(f"{metric:32} {value:.4g}")
    return 1 if result["points_failed"] or result["points_wrong"] else 0


def with_open_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed in place: the first dimension of inputs and outputs is left open, and no Reshape fixes it."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for value in (*graph.input, *graph.output):
        if value.name not in constants:
            value.type.tensor_type.shape.dim[0].dim_param = _BATCH
    del graph.value_info[:]
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[0] not in constants:
            tensor = constants[node.input[1]]
            shape = numpy_helper.to_array(tensor).copy()
            shape[0] = 0  # as it comes
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
    return model


def _measure(
    model: Path, samples: Mapping[str, tuple[int, ...]], batch: int, threads: int, options: argparse.Namespace
) -> Row:
    """Compile and race one model with one batch size and number of threads; a failure is part of the row.

    Args:
        model: its file.
        samples: input name -> shape without the batch.
        batch, threads: of this point.
        options: of the command line.
    """
    row: Row = {"model": model.stem, "batch": batch, "threads": threads, "error": "", "race": None}
    shapes = {name: (batch, *sample) for name, sample in samples.items()}
    artifact = model.with_suffix(".so")
    wanted = [f"--shape={name}={','.join(map(str, shape))}" for name, shape in shapes.items()]
    try:
        calumma("compile", model, "-o", artifact, "--db", model.with_name("empty.db"), "--threads", threads, *wanted)
    except InputError as error:
        return {**row, "error": str(error)}
    result = race(
        [Contestant(models.TUNED, "calumma", str(artifact)), *peers(options.against, model)],
        [random_inputs(input_specs(model, shapes), seed) for seed in (0, 1)],
        threads=threads,
        rounds=options.rounds,
    )
    row.update(models.ratios(result), race=result.as_dict())
    row["error"] = models.lost(result)
    row["samples_per_s"] = {label: batch / seconds for label, seconds in row["latency_s"].items()}
    return row


def metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Flat metrics of the points, those of `benchmarks.models` that make sense of them."""
    return {name.replace("models", "points"): value for name, value in models.metrics(rows).items()}


def _table(rows: Sequence[Row]) -> str:
    labels = list(dict.fromkeys(label for row in rows for label in row.get("latency_s", {})))
    columns = ["model", "batch", "threads", *(f"{label} ms" for label in labels)]
    columns += ["ours / ORT", "best peer / ours", "ours samples/s", "difference"]
    body = [
        [
            row["model"],
            str(row["batch"]),
            str(row["threads"]),
            *(output.number(row.get("latency_s", {}).get(label), 1e3, ".2f") for label in labels),
            output.number(row.get("vs_onnxruntime"), 1, ".2f"),
            output.number(row.get("speedup_vs_best"), 1, ".2f"),
            output.number(row.get("samples_per_s", {}).get(models.TUNED), 1, ".0f"),
            output.number(row.get("difference"), 1, ".0e"),
        ]
        for row in rows
    ]
    return output.markdown(columns, body)


def _numbers(text: str) -> tuple[int, ...]:
    found = output.names(text)
    if not found or not all(number.isdecimal() and int(number) for number in found):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers of 1 or more between commas, such as 1,8,32")
    return tuple(map(int, found))


if __name__ == "__main__":
    sys.exit(main())
