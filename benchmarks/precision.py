"""bfloat16 beside OpenVINO's bfloat16, and its accuracy: `python -m benchmarks.precision`.

For every model: `calumma tune` (with --untuned-only: `compile`) with `--precision bf16` and without, then one race of
both artifacts against OpenVINO in bf16 and in float32 (`calumma.peers.race`: a process each, in turns, same threads and
inputs). Outputs are compared with ONNX Runtime's, which are float32, before the softmax where a model gives its logits.
A model that fails makes the exit status 1, and so does one whose outputs are off by more than 2e-2 and by more than
twice what OpenVINO's are in bf16.

Metrics, per model of the suite:
    bf16_speedup_vs_openvino_MODEL: OpenVINO's latency in bf16 over ours
    bf16_speedup_vs_fp32_MODEL: our latency in float32 over ours in bf16
    bf16_ms_MODEL, bf16_difference_MODEL: our latency, and max|a-b| / max|b| of our outputs against float32's
    openvino_bf16_ms_MODEL, openvino_bf16_difference_MODEL: the same of OpenVINO
and over all of them:
    models, models_failed, models_wrong: how many
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import output, suite
from benchmarks.commands import calumma
from calumma.core.errors import InputError
from calumma.peers import Contestant, RaceResult, peers, race

_MODELS = ("resnet50", "vgg19", "bert")
_NARROW, _FULL = "calumma-bf16", "calumma-fp32"
_RIVAL = "openvino-bf16"
_TOLERANCE = 2e-2
"""Of the difference from float32; a model of which bfloat16 makes more is held against what OpenVINO makes of it."""
_AS_RIVAL = 2.0
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(arguments)
    return output.exit_status(lambda: _run(options))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = output.parser(__doc__.splitlines()[0])
    parser.add_argument("--models", type=output.names, default=_MODELS, metavar="A,B", help="of the suite")
    parser.add_argument("--budget", default="120s", help="for tuning each model in each precision")
    parser.add_argument("--rounds", type=int, default=10, help="turns of every runtime")
    parser.add_argument("--untuned-only", action="store_true", help="compile, do not tune")
    options = parser.parse_args(arguments)
    if options.quick:
        options.models, options.untuned_only, options.rounds = suite.QUICK, True, 2
    return options


def _run(options: argparse.Namespace) -> int:
    output.check_models(options.models, suite.names())
    settings = {"budget": None if options.untuned_only else options.budget, "rounds": options.rounds}
    surroundings = output.environment(options.threads)
    rows: list[Row] = []
    for name in options.models:
        rows.append(_measure(name, options))
        print(f"{name}: {rows[-1]['error'] or 'done'}", flush=True)
        if options.json is not None:
            output.write(options.json, metrics(rows), rows, surroundings, settings=settings)
    result = metrics(rows)
    print(f"\n{_table(rows)}\n")
    for metric, value in result.items():
        print(f"{metric:40} {value:.4g}")
    return 1 if result["models_failed"] or result["models_wrong"] else 0


def _measure(name: str, options: argparse.Namespace) -> Row:
    """Build and race one model; a failure is part of the row."""
    row: Row = {"model": name, "error": "", "race": None}
    model = suite.path(name)
    with tempfile.TemporaryDirectory(prefix="calumma-bench-") as scratch:
        entries = []
        for label, precision in ((_NARROW, "bf16"), (_FULL, "fp32")):
            artifact = Path(scratch) / f"{label}.so"
            command, spend = ("compile", ()) if options.untuned_only else ("tune", ("--budget", options.budget))
            common = ["--precision", precision, "--threads", options.threads, "--db", Path(scratch) / f"{label}.db"]
            try:
                calumma(command, model, "-o", artifact, *common, *spend)
            except InputError as error:
                return {**row, "error": str(error)}
            entries.append(Contestant(label, "calumma", str(artifact)))
        entries += peers((_RIVAL, "openvino"), model)
        result = race(entries, suite.inputs(name), threads=options.threads, rounds=options.rounds)
    lost = [f"{entry.label}: {entry.reason}" for entry in result.rows if entry.reason]
    return {**row, **_findings(result), "race": result.as_dict(), "error": "; ".join(lost)}


def _findings(result: RaceResult) -> Row:
    def speedup(other: str) -> float | None:
        ratio = result.ratio(_NARROW, other)
        return 1 / ratio.median if ratio else None

    return {
        "latency_s": {entry.label: entry.latency_s.median for entry in result.rows if entry.latency_s},
        "difference": {entry.label: entry.difference for entry in result.rows if entry.difference is not None},
        "speedup_vs_openvino": speedup(_RIVAL),
        "speedup_vs_fp32": speedup(_FULL),
    }


def is_wrong(row: Row) -> bool:
    """Whether our outputs are farther from float32's than bfloat16 explains."""
    differences = row.get("difference", {})
    if _NARROW not in differences:
        return False
    return bool(differences[_NARROW] > max(_TOLERANCE, _AS_RIVAL * differences.get(_RIVAL, 0.0)))


def metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Flat metrics of the rows; one that a row cannot tell is missing."""
    found: dict[str, float | None] = {}
    for row in rows:
        name, latency_s, difference = row["model"], row.get("latency_s", {}), row.get("difference", {})
        found[f"bf16_speedup_vs_openvino_{name}"] = row.get("speedup_vs_openvino")
        found[f"bf16_speedup_vs_fp32_{name}"] = row.get("speedup_vs_fp32")
        for prefix, label in (("bf16", _NARROW), ("openvino_bf16", _RIVAL)):
            found[f"{prefix}_ms_{name}"] = latency_s[label] * 1e3 if label in latency_s else None
            found[f"{prefix}_difference_{name}"] = difference.get(label)
    counts = {
        "models": len(rows),
        "models_failed": sum(bool(row["error"]) for row in rows),
        "models_wrong": sum(map(is_wrong, rows)),
    }
    return {**{name: value for name, value in found.items() if value is not None}, **counts}


def _table(rows: Sequence[Row]) -> str:
    labels = (_NARROW, _RIVAL, _FULL, "openvino")
    columns = ["model", *(f"{label} ms" for label in labels), "speedup vs OpenVINO bf16", "vs our fp32"]
    columns += ["difference", "OpenVINO's"]
    body = [
        [
            row["model"],
            *(output.number(row.get("latency_s", {}).get(label), 1e3, ".2f") for label in labels),
            output.number(row.get("speedup_vs_openvino"), 1, ".2f"),
            output.number(row.get("speedup_vs_fp32"), 1, ".2f"),
            *(output.number(row.get("difference", {}).get(label), 1, ".1e") for label in (_NARROW, _RIVAL)),
        ]
        for row in rows
    ]
    return output.markdown(columns, body)


if __name__ == "__main__":
    sys.exit(main())
