"""float16 models beside their float32 twins and beside ONNX Runtime on the same file.

The suite's ResNet-50 and BERT are converted by ONNX Runtime's own converter, inputs and outputs included. Both are
compiled, or tuned, and raced in alternation. Outputs are compared with those of the float32 model in ONNX Runtime:
what is left are the rounded weights, and the rounded results of whoever rounds them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import output, suite
from benchmarks.commands import calumma
from calumma.peers import Contestant, max_relative_difference, peers, race

MODELS = ("resnet50", "bert")
_OURS, _TWIN, _PEER = "float16", "float32", "onnxruntime"


def main() -> int:
    """Command line."""
    options = output.parser(__doc__ or "")
    options.add_argument("--models", type=output.names, default=MODELS, metavar="A,B", help="models of the suite")
    options.add_argument("--budget", default="0", help="of tuning each; 0 compiles only")
    options.add_argument("--rounds", type=int, default=10, help="turns of each runtime in a race")
    args = options.parse_args()
    if args.quick:
        args.models, args.rounds = ("squeezenet",), 4
    output.check_models(args.models, suite.names())
    rows = [_measured(name, args) for name in args.models]
    columns = ["model", "ms", "/ float32 twin", "/ ONNX Runtime", "difference", "of ONNX Runtime", "file MB", "twin MB"]
    print(output.markdown(columns, [_cells(row) for row in rows]))
    metrics = {f"{row['model']}_{key}": row[key] for row in rows for key in ("half_vs_float32", "half_vs_onnxruntime")}
    for metric, value in metrics.items():
        print(f"{metric:36} {value:.4g}")
    if args.json:
        output.write(args.json, metrics, rows, output.environment(args.threads))
    return 0


def half_model(name: str, path: Path) -> None:
    """Write the float16 form of a model of the suite."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(suite.path(name)), keep_io_types=False), path)


def _measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="calumma-bench-") as scratch:
        folder = Path(scratch)
        half, ours, twin = folder / "half.onnx", folder / "half.so", folder / "float.so"
        half_model(name, half)
        for model, file in ((half, ours), (suite.path(name), twin)):
            common = [model, "-o", file, "--threads", args.threads, "--db", folder / f"{file.stem}.db"]
            calumma("compile", *common) if args.budget == "0" else calumma("tune", *common, "--budget", args.budget)
        inputs = suite.inputs(name)
        halves = [{key: _halved(value) for key, value in feeds.items()} for feeds in inputs]
        entries = [Contestant(_OURS, "calumma", str(ours)), *peers(("onnxruntime",), half)]
        against_peer = race(entries, halves, threads=args.threads, rounds=args.rounds)
        latency_s = {row.label: row.latency_s.median for row in against_peer.rows if row.latency_s}
        twins = _twins(ours, twin, halves[0], inputs[0], args)
        exact = _outputs(suite.path(name), inputs[0], args)
        return {
            "model": name,
            "latency_s": latency_s[_OURS],
            "half_vs_onnxruntime": latency_s[_OURS] / latency_s[_PEER],
            "half_vs_float32": twins,
            "difference": max_relative_difference(_outputs(ours, halves[0], args), exact),
            "onnxruntime_difference": max_relative_difference(_outputs(half, halves[0], args), exact),
            "file_mb": ours.stat().st_size / 1e6,
            "twin_mb": twin.stat().st_size / 1e6,
        }


def _twins(
    ours: Path, twin: Path, halves: Mapping[str, np.ndarray], floats: Mapping[str, np.ndarray], args: argparse.Namespace
) -> float:
    """Latency over that of the float32 twin, median of alternating turns; each has inputs of its own type."""
    import calumma as package

    runs = [(package.load(ours, args.threads), halves), (package.load(twin, args.threads), floats)]
    times: list[list[float]] = [[], []]
    for turn in range(args.rounds * 4):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            artifact, feeds = runs[which]
            for _ in range(5):
                start = time.perf_counter()
                artifact.run(feeds)
                times[which].append(time.perf_counter() - start)
    return float(np.median(times[0]) / np.median(times[1]))


def _outputs(source: Path, feeds: Mapping[str, np.ndarray], args: argparse.Namespace) -> Sequence[np.ndarray]:
    if source.suffix == ".so":
        import calumma as package

        return package.load(source, args.threads).run(feeds)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    found: Sequence[np.ndarray] = session.run(None, dict(feeds))
    return found


def _halved(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16) if value.dtype == np.float32 else value


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["model"],
        f"{row['latency_s'] * 1e3:.3g}",
        f"{row['half_vs_float32']:.3f}",
        f"{row['half_vs_onnxruntime']:.3f}",
        f"{row['difference']:.1e}",
        f"{row['onnxruntime_difference']:.1e}",
        f"{row['file_mb']:.1f}",
        f"{row['twin_mb']:.1f}",
    ]


if __name__ == "__main__":
    sys.exit(output.exit_status(main))
