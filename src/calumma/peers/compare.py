"""`calumma bench`: an artifact beside the runtimes a user could take instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from calumma.core import hardware
from calumma.core.errors import ArtifactError, InputError
from calumma.peers.inputs import input_specs, random_inputs
from calumma.peers.loading import TORCH
from calumma.peers.race import Contestant, RaceResult, race
from calumma.peers.runtimes import RUNTIMES

_ALONE = (
    "onnxruntime",
    "openvino",
    "openvino-bf16",
    "torch-eager",
    "torch-compile",
    "litert",
    "ncnn",
    "mnn",
    "iree",
)
PEERS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in _ALONE},
    "torch": ("torch-eager", "torch-compile"),
    "all": tuple(name for name in _ALONE if name != "openvino-bf16"),
}
"""What a user may name after --against -> the runtimes it means. All: those that compute in float32."""
_AVX2_BITS = 256


def compare(
    model: Path | None,
    artifact: Path,
    against: Sequence[str] = ("onnxruntime",),
    *,
    threads: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Sequence[Mapping[str, np.ndarray]] | None = None,
    torch_source: str | None = None,
    mcpu: str | None = None,
    rounds: int = 10,
    turn_s: float = 0.25,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> RaceResult:
    """Time an artifact beside other runtimes and compare their outputs with ONNX Runtime's.

    Args:
        model: the ONNX file the artifact was compiled from; None when there is none, which needs `inputs`.
        artifact: what `calumma compile` or `calumma tune` wrote.
        against: names of `PEERS`.
        threads: of every runtime; all physical cores if None.
        shapes: input name -> shape, for a model with dynamic dimensions.
        inputs: what to run on; two seeded random ones if None.
        torch_source: "module:function" that returns the model as a `torch.nn.Module`.
        mcpu: as in `peers`; the artifact is what it is.
        rounds, turn_s, progress: see `race`.
        seed: of the random inputs.

    Raises:
        InputError: an unknown peer, a dynamic dimension left open, no inputs.
        ArtifactError: the artifact itself cannot be run.
    """
    if inputs is None:
        if model is None:
            raise InputError("without an ONNX file the inputs are unknown: give some, or the file")
        specs = input_specs(model, shapes)
        inputs = [random_inputs(specs, seed), random_inputs(specs, seed + 1)]
    entries = [Contestant("calumma", "calumma", str(artifact)), *peers(against, model, torch_source, mcpu)]
    result = race(
        entries,
        inputs,
        threads=threads or hardware.physical_cores(),
        rounds=rounds,
        turn_s=turn_s,
        progress=progress,
    )
    if result.rows[0].reason:
        raise ArtifactError(f"{artifact}: cannot be run: {result.rows[0].reason}")
    return result


def peers(
    against: Sequence[str], model: Path | None, torch_source: str | None = None, mcpu: str | None = None
) -> list[Contestant]:
    """Contestants for the names after --against; ONNX Runtime is always among them, at least as the reference.

    Args:
        against: names of `PEERS`.
        model: the ONNX file, if there is one.
        torch_source: "module:function" that returns the model as a `torch.nn.Module`, if there is one.
        mcpu: the CPU that the artifact is for, by LLVM's name; None: this machine's. Where it has AVX2 and this machine
            has AVX-512, the others are held to AVX2, too, as far as they can be; `Contestant.note` says how far.

    Raises:
        InputError: a name that is none of `PEERS`, or a CPU that LLVM does not know.
    """
    unknown = [name for name in against if name not in PEERS]
    if unknown:
        raise InputError(f"--against {unknown[0]}: no such runtime; known are {', '.join(PEERS)}")
    runtimes = list(dict.fromkeys(runtime for name in against for runtime in PEERS[name]))
    found = [_contestant(runtime, model, torch_source) for runtime in runtimes]
    if "onnxruntime" not in runtimes and model is not None:
        found.append(Contestant("onnxruntime", "onnxruntime", str(model), timed=False))
    return found if mcpu is None else [_as_cpu(contestant, mcpu) for contestant in found]


def _contestant(runtime: str, model: Path | None, torch_source: str | None) -> Contestant:
    if RUNTIMES[runtime].reads == TORCH:
        if torch_source is None:
            return Contestant(runtime, runtime, excluded="runs only a torch module, and the model has no torch source")
        return Contestant(runtime, runtime, torch_source)
    if model is None:
        return Contestant(runtime, runtime, excluded="runs only an ONNX file, and the model has none")
    return Contestant(runtime, runtime, str(model))


def _as_cpu(contestant: Contestant, mcpu: str) -> Contestant:
    """The same, computing with the instructions of a CPU as far as its runtime can be told to."""
    from calumma import tvm_compat

    bits, most = tvm_compat.target_for(mcpu).vector_bits, tvm_compat.target_for().vector_bits
    if bits == most:
        return replace(contestant, mcpu=mcpu)
    if bits != _AVX2_BITS:
        note = f"not held to the vectors of {mcpu}: runtimes are held to those of AVX2 only"
        return replace(contestant, mcpu=mcpu, note=note)
    hold = RUNTIMES[contestant.runtime].avx2
    note = f"not held to AVX2: {hold.gap}" if hold.gap else "held to AVX2"
    return replace(contestant, mcpu=mcpu, environment=hold.environment, note=note)
