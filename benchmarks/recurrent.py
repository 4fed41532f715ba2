"""Recurrent networks beside ONNX Runtime: `python -m benchmarks.recurrent`.

For every network: `calumma compile` with an empty database (nothing is tuned), with `--budget` also `calumma tune`,
then a race of the artifacts and ONNX Runtime (`calumma.peers.race`: a process each, in turns, same threads and
inputs). The networks are layers as torch exports them, with seeded weights. One that fails, or whose outputs differ
from ONNX Runtime's by more than the suite's tolerance, makes the exit status 1.

Metrics:
    vs_onnxruntime_NETWORK: latency of the artifact, tuned if there is a budget, over ONNX Runtime's; below 1 we are
    faster geomean_vs_onnxruntime, worst_vs_onnxruntime: the same over all networks max_relative_difference: of our
    outputs from ONNX Runtime's models, models_failed, models_wrong: how many
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from benchmarks import models, output
from benchmarks.commands import calumma
from benchmarks.models import Row
from benchmarks.networks import Graph
from calumma.core.errors import InputError
from calumma.peers import Contestant, input_specs, peers, race, random_inputs

_GATES = {"LSTM": 4, "GRU": 3}
_OPTIONS: dict[str, dict[str, int]] = {"LSTM": {}, "GRU": {"linear_before_reset": 1}}
"""What torch's exporter says of a cell."""


@dataclass(frozen=True)
class Network:
    """Layers of one kind, one after another."""

    cell: str
    hidden: int
    """Also the inputs of the first layer."""
    layers: int
    batch: int
    steps: int
    bidirectional: bool = False

    @property
    def directions(self) -> int:
        """Directions of each layer."""
        return 2 if self.bidirectional else 1


NETWORKS = {
    "lstm_512": Network("LSTM", 512, 2, 1, 100),
    "gru_512": Network("GRU", 512, 2, 1, 100),
    "lstm_128": Network("LSTM", 128, 2, 1, 100),
    "lstm_256_both_batch_8": Network("LSTM", 256, 1, 8, 50, bidirectional=True),
}


def network(name: str) -> onnx.ModelProto:
    """A network as ONNX, as torch exports it: a directions axis after each layer, taken out by Squeeze or joined to the
    units by Transpose and Reshape.
    """
    about = NETWORKS[name]
    g = Graph(name)
    x, inputs, directions, hidden = "input", about.hidden, about.directions, about.hidden
    rows, scale = _GATES[about.cell] * hidden, hidden**-0.5
    for layer in range(about.layers):
        weights = [
            g.normal(f"weight_ih_l{layer}", (directions, rows, inputs), scale),
            g.normal(f"weight_hh_l{layer}", (directions, rows, hidden), scale),
            g.normal(f"bias_l{layer}", (directions, 2 * rows), scale),
        ]
        direction = "bidirectional" if about.bidirectional else "forward"
        x = g.op(about.cell, x, *weights, hidden_size=hidden, direction=direction, **_OPTIONS[about.cell])
        if about.bidirectional:
            x = g.op("Reshape", g.op("Transpose", x, perm=[0, 2, 1, 3]), g.constant([0, 0, -1], "int64"))
        else:
            x = g.op("Squeeze", x, g.constant([1], "int64"))
        inputs = directions * hidden
    sequence = [about.steps, about.batch]
    return g.model(("input", TensorProto.FLOAT, [*sequence, hidden]), ("output", [*sequence, inputs]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(arguments)
    return output.exit_status(lambda: _run(options))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = output.parser(__doc__.splitlines()[0])
    parser.add_argument("--models", type=output.names, default=tuple(NETWORKS), metavar="A,B", help="of the networks")
    parser.add_argument("--budget", help="tune each network for so long as well, such as 60s")
    parser.add_argument("--rounds", type=int, default=10, help="turns of every runtime")
    options = parser.parse_args(arguments)
    if options.quick:
        options.models, options.rounds = tuple(NETWORKS)[:2], 2
    return options


def _run(options: argparse.Namespace) -> int:
    output.check_models(options.models, tuple(NETWORKS))
    settings = {"budget": options.budget, "rounds": options.rounds}
    surroundings = output.environment(options.threads)
    rows: list[Row] = []
    for name in options.models:
        rows.append(_measure(name, options))
        print(models.line(name, rows[-1]), flush=True)
        if options.json is not None:
            output.write(options.json, metrics(rows), rows, surroundings, settings=settings)
    result = metrics(rows)
    print(f"\n{_table(rows)}\n")
    for metric, value in result.items():
        print(f"{metric:40} {value:.4g}")
    return 1 if result["models_failed"] or result["models_wrong"] else 0


def _measure(name: str, options: argparse.Namespace) -> Row:
    """Build and race one network; a failure is part of the row."""
    row: Row = {"model": name, "error": "", "race": None}
    with tempfile.TemporaryDirectory(prefix="calumma-bench-") as scratch:
        model = Path(scratch) / f"{name}.onnx"
        onnx.save(network(name), model)
        commands: dict[str, tuple[str, list[str]]] = {models.UNTUNED: ("compile", [])}
        if options.budget:
            commands[models.TUNED] = ("tune", ["--budget", options.budget])
        entries = []
        for label, (command, spend) in commands.items():
            artifact, database = (model.with_name(f"{label}.{suffix}") for suffix in ("so", "db"))
            try:
                calumma(command, model, "-o", artifact, "--db", database, "--threads", options.threads, *spend)
            except InputError as error:
                return {**row, "error": str(error)}
            entries.append(Contestant(label, "calumma", str(artifact)))
        inputs = [random_inputs(input_specs(model), seed) for seed in (0, 1)]
        rivals = peers(("onnxruntime",), model)
        result = race([*entries, *rivals], inputs, threads=options.threads, rounds=options.rounds)
    row.update(models.ratios(result), race=result.as_dict())
    row["error"] = models.lost(result)
    return row


def metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Flat metrics of the networks; one that a row cannot tell is missing."""
    found = {f"vs_onnxruntime_{row['model']}": _ours(row) for row in rows}
    known = {name: value for name, value in found.items() if value is not None}
    together = models.metrics([{**row, "vs_onnxruntime": _ours(row)} for row in rows])
    kept = (
        *("geomean_vs_onnxruntime", "worst_vs_onnxruntime", "max_relative_difference"),
        *("models", "models_failed", "models_wrong"),
    )
    return {**known, **{name: together[name] for name in kept if name in together}}


def _ours(row: Row) -> float | None:
    """Our latency over ONNX Runtime's, of the tuned artifact if there is one."""
    ratio = row.get("vs_onnxruntime")
    return row.get("untuned_vs_onnxruntime") if ratio is None else ratio


def _table(rows: Sequence[Row]) -> str:
    labels = list(dict.fromkeys(label for row in rows for label in row.get("latency_s", {})))
    columns = ["network", *(f"{label} ms" for label in labels), "ours / ORT", "difference"]
    body = [
        [
            row["model"],
            *(output.number(row.get("latency_s", {}).get(label), 1e3, ".2f") for label in labels),
            output.number(_ours(row), 1, ".2f"),
            output.number(row.get("difference"), 1, ".0e"),
        ]
        for row in rows
    ]
    return output.markdown(columns, body)


if __name__ == "__main__":
    sys.exit(main())
