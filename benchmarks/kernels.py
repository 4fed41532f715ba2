"""Single layers beside their roofline and other runtimes: `python -m benchmarks.kernels [--mcpu x86-64-v3]`.

Every layer is a model of its own: `calumma compile` with an empty database (nothing is tuned), with `--budget` also
`calumma tune`, the profile of the artifact, then a race of it and others (`calumma.peers.race`: a process each, in
turns, same threads and inputs). A layer's share of its roofline is that of its products (matrix products and
convolutions): the sum of their bounds over the sum of their times, from `calumma run --profile`. What its other
kernels take (softmax, changes of layout that neighbours in a model would share) is a column of its own. A layer that
fails, or whose outputs differ from ONNX Runtime's by more than the suite's tolerance, makes the exit status 1.

Metrics, of the artifact (tuned if there is a budget):
    share_LAYER: of the layer's roofline
    worst_share_FAMILY: the least of the family (dense, attention, depthwise)
    vs_RUNTIME_LAYER: its latency over the runtime's; below 1 we are faster
    geomean_vs_RUNTIME: the same over all layers
"""

from __future__ import annotations

import argparse
import math
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

RIVALS = ("onnxruntime", "openvino")
_PRODUCTS = ("dense", "matmul", "conv2d")
"""What names of kernels that multiply and add have in them."""
QUICK = ("dense_197x768x768", "depthwise_384_14_7x7")


@dataclass(frozen=True)
class Dense:
    """rows x inputs times inputs x outputs, with a bias."""

    family = "dense"
    rows: int
    inputs: int
    outputs: int

    def model(self) -> onnx.ModelProto:
        """The layer as ONNX."""
        g = Graph("dense")
        product = g.op("MatMul", "input", g.normal("weight", (self.inputs, self.outputs), self.inputs**-0.5))
        result = g.op("Add", product, g.normal("bias", (self.outputs,), 1.0))
        return g.model(
            ("input", TensorProto.FLOAT, [1, self.rows, self.inputs]), (result, [1, self.rows, self.outputs])
        )


@dataclass(frozen=True)
class Attention:
    """Softmax(Q K^T) V with Q, K and V from one input, as an encoder's layer splits its heads."""

    family = "attention"
    heads: int
    length: int
    width: int

    def model(self) -> onnx.ModelProto:
        """The layer as ONNX."""
        g = Graph("attention")
        inner = self.heads * self.width

        def head(start: int, perm: list[int]) -> str:
            part = g.op("Slice", "input", *(g.constant([at], "int64") for at in (start, start + inner, 2)))
            return g.op(
                "Transpose", g.op("Reshape", part, g.constant([0, 0, self.heads, self.width], "int64")), perm=perm
            )

        scores = g.op("MatMul", head(0, [0, 2, 1, 3]), head(inner, [0, 2, 3, 1]))
        scaled = g.op("Mul", scores, g.constant(self.width**-0.5, "float32"))
        mixed = g.op("MatMul", g.op("Softmax", scaled, axis=-1), head(2 * inner, [0, 2, 1, 3]))
        result = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.constant([0, 0, inner], "int64"))
        return g.model(("input", TensorProto.FLOAT, [1, self.length, 3 * inner]), (result, [1, self.length, inner]))


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution with a bias: channels, size of the plane, of the window."""

    family = "depthwise"
    channels: int
    size: int
    window: int

    def model(self) -> onnx.ModelProto:
        """The layer as ONNX."""
        g = Graph("depthwise")
        weight = g.normal("weight", (self.channels, 1, self.window, self.window), 1 / self.window)
        bias, pad = g.normal("bias", (self.channels,), 1.0), self.window // 2
        result = g.op("Conv", "input", weight, bias, group=self.channels, pads=[pad] * 4)
        shape = [1, self.channels, self.size, self.size]
        return g.model(("input", TensorProto.FLOAT, shape), (result, shape))


LAYERS: dict[str, Dense | Attention | Depthwise] = {
    **{
        f"dense_{rows}x{inputs}x{outputs}": Dense(rows, inputs, outputs)
        for rows, inputs, outputs in (
            (128, 768, 768),
            (128, 768, 3072),
            (128, 3072, 768),
            (128, 384, 1536),
            (197, 768, 768),
            (197, 768, 3072),
            (197, 3072, 768),
            (3136, 96, 384),
            (784, 192, 768),
            (196, 1536, 384),
            (49, 768, 3072),
            (50, 768, 768),
            (16, 512, 512),
        )
    },
    **{f"attention_{h}_{m}x{d}": Attention(h, m, d) for h, m, d in ((12, 128, 64), (12, 197, 64), (8, 512, 64))},
    **{f"depthwise_{c}_{s}_7x7": Depthwise(c, s, 7) for c, s in ((96, 56), (192, 28), (384, 14), (768, 7))},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(arguments)
    return output.exit_status(lambda: _run(options))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = output.parser(__doc__.splitlines()[0])
    parser.add_argument("--layers", type=output.names, default=tuple(LAYERS), metavar="A,B", help="which")
    parser.add_argument("--against", type=output.names, default=RIVALS, metavar="A,B", help="runtimes")
    parser.add_argument("--mcpu", help="CPU to compile for, by LLVM's name; other runtimes are held to AVX2 with it")
    parser.add_argument("--budget", help="tune each layer for so long as well, such as 20s")
    parser.add_argument("--rounds", type=int, default=10, help="turns of every runtime")
    options = parser.parse_args(arguments)
    if options.quick:
        options.layers, options.rounds = QUICK, 2
    return options


def _run(options: argparse.Namespace) -> int:
    output.check_models(options.layers, tuple(LAYERS), "--layers")
    settings = {"budget": options.budget, "rounds": options.rounds, "mcpu": options.mcpu}
    surroundings = output.environment(options.threads)
    rows: list[Row] = []
    for name in options.layers:
        rows.append(_measure(name, options))
        print(models.line(name, rows[-1]), flush=True)
        if options.json is not None:
            output.write(options.json, metrics(rows), rows, surroundings, settings=settings)
    print(f"\n{_table(rows)}\n")
    for metric, value in metrics(rows).items():
        print(f"{metric:48} {value:.4g}")
    return 1 if any(row["error"] for row in rows) else 0


def _measure(name: str, options: argparse.Namespace) -> Row:
    """Build, profile and race one layer; a failure is part of the row."""
    row: Row = {"model": name, "family": LAYERS[name].family, "error": "", "race": None}
    with tempfile.TemporaryDirectory(prefix="calumma-bench-") as scratch:
        model, artifact = (Path(scratch) / f"{name}.{suffix}" for suffix in ("onnx", "so"))
        onnx.save(LAYERS[name].model(), model)
        common = ["--threads", options.threads, *(["--mcpu", options.mcpu] if options.mcpu else [])]
        command, spend = ("tune", ["--budget", options.budget]) if options.budget else ("compile", [])
        try:
            calumma(command, model, "-o", artifact, "--db", artifact.with_suffix(".db"), *common, *spend)
            kernels = calumma("run", artifact, "--profile", "--threads", options.threads, needs=["kernels"])["kernels"]
        except InputError as error:
            return {**row, "error": str(error)}
        products = [kernel for kernel in kernels if any(word in kernel["kernel"] for word in _PRODUCTS)]
        row["ms"] = sum(kernel["ms"] for kernel in kernels)
        products_ms = sum(kernel["ms"] for kernel in products)
        row["share"] = sum(kernel["ms"] * kernel["roofline"] for kernel in products) / products_ms
        row["others"] = 1 - products_ms / row["ms"]
        inputs = [random_inputs(input_specs(model), seed) for seed in (0, 1)]
        entries = [Contestant(models.UNTUNED, "calumma", str(artifact))]
        result = race(
            [*entries, *peers(options.against, model, mcpu=options.mcpu)],
            inputs,
            threads=options.threads,
            rounds=options.rounds,
        )
    latency = models.ratios(result)["latency_s"]
    ours = latency[models.UNTUNED]
    row.update(latency_s=latency, race=result.as_dict(), error=models.lost(result))
    row["vs"] = {label: ours / other for label, other in latency.items() if other and label != models.UNTUNED}
    return row


def metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Flat metrics of the layers that could be measured."""
    measured = [row for row in rows if "vs" in row]
    found = {f"share_{row['model']}": row["share"] for row in measured}
    for family in dict.fromkeys(row["family"] for row in measured):
        found[f"worst_share_{family}"] = min(row["share"] for row in measured if row["family"] == family)
    for runtime in dict.fromkeys(label for row in measured for label in row["vs"]):
        ratios = {row["model"]: row["vs"][runtime] for row in measured if runtime in row["vs"]}
        found |= {f"vs_{runtime}_{name}": ratio for name, ratio in ratios.items()}
        found[f"geomean_vs_{runtime}"] = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    return found


def _table(rows: Sequence[Row]) -> str:
    labels = list(dict.fromkeys(label for row in rows for label in row.get("vs", {})))
    columns = ["layer", "ms", "others", "of roofline", *(f"over {label}" for label in labels)]
    body = [
        [
            row["model"],
            output.number(row.get("ms"), 1, ".3f"),
            output.number(row.get("others"), 1, ".0%"),
            output.number(row.get("share"), 1, ".0%"),
            *(output.number(row.get("vs", {}).get(label), 1, ".2f") for label in labels),
        ]
        for row in rows
    ]
    return output.markdown(columns, body)


if __name__ == "__main__":
    sys.exit(main())
