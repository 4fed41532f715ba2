"""Learning from use: what the records of three tuned networks are worth to a fourth that nobody has measured.

Somebody deploys networks made for mobile devices. Three of them are tuned and learnt from; MobileNetV2 is compiled
before and after, each time without a measurement of it, by priors that differ in these records alone. The prior that
all begins with has seen none of the four.

Networks of a kind share some layers to the last number, and whoever tuned one of them has measured those. They are
counted, and a third artifact shows what is left without them: its prior was learnt from the same records less every
workload that the fourth network has. A fourth artifact shows what there is to gain: it was tuned itself, for as long as
each of the three.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import onnx
from onnx import TensorProto

from benchmarks import suite
from benchmarks.commands import calumma
from benchmarks.curves import ratio
from benchmarks.networks import Graph
from calumma.core.errors import InputError
from calumma.peers import Contestant, RaceResult, race

PUPIL = "mobilenet_v2"
BEFORE, AFTER, UNSHARED, TUNED = "before", "after", "unshared", "tuned"
"""What becomes of the fourth network with the prior of the start, one that has learnt from all records, one that has
learnt from those of workloads that the fourth network does not have, and by tuning it."""
_GAINS = {AFTER: "learned_gain", UNSHARED: "learned_gain_unshared", TUNED: "learned_gain_tuned"}
RACES, ROUNDS, TURN_S = 12, 6, 0.15
"""A process may have worse pages than another for as long as it runs: many processes, few and short turns of each."""

Stage = tuple[int, int, int, int, int]
"""Expansion, output channels, repeats, stride of the first, kernel."""
_SEPARABLE = ((48, 1), (96, 2), (96, 1), (192, 2), (192, 1), (384, 2), *((384, 1),) * 5, (768, 2), (768, 1))
"""Output channels, stride."""
_MNASNET: tuple[Stage, ...] = (
    (1, 16, 1, 1, 3),
    (3, 24, 3, 2, 3),
    (3, 32, 3, 2, 5),
    (6, 64, 3, 2, 5),
    (6, 72, 2, 1, 3),
    (6, 144, 4, 2, 5),
    (6, 240, 1, 1, 3),
)
_LITE0: tuple[Stage, ...] = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class _Mobile(Graph):
    """A graph of depthwise and 1x1 convolutions on 224 x 224 pixels."""

    def __init__(self, name: str, most: float | None = None) -> None:
        """`most` is where activations are cut off, None where they are not."""
        super().__init__(name)
        self._most = most
        self._layers = 0

    def unit(
        self, x: str, channels: tuple[int, int], kernel: int, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> str:
        """Convolution, batch normalisation and, unless `linear`, activation."""
        name = f"features.{self._layers}"
        self._layers += 1
        x = self.conv(x, f"{name}.conv", channels, kernel, stride=stride, groups=groups)
        x = self.batch_norm(x, f"{name}.norm", channels[1])
        if linear:
            return x
        if self._most is None:
            return self.op("Relu", x)
        return self.op("Clip", x, self.constant(0.0), self.constant(self._most))

    def inverted(self, x: str, inside: int, stages: Sequence[Stage]) -> str:
        """Inverted residuals (Sandler et al. 2018): to more channels, depthwise, back; residual where shapes agree."""
        for expansion, outside, repeats, first_stride, kernel in stages:
            for repeat in range(repeats):
                stride, hidden, y = first_stride if repeat == 0 else 1, inside * expansion, x
                if expansion > 1:
                    y = self.unit(y, (inside, hidden), 1)
                y = self.unit(y, (hidden, hidden), kernel, stride, hidden)
                y = self.unit(y, (hidden, outside), 1, linear=True)
                x = self.op("Add", x, y) if stride == 1 and inside == outside else y
                inside = outside
        return x

    def finished(self, x: str, inside: int) -> onnx.ModelProto:
        """Mean of planes and classifier."""
        self.classifier(x, "classifier", inside)
        return self.model(("input", TensorProto.FLOAT, [1, 3, 224, 224]), ("logits", [1, 1000]))


def mobilenet_v1_075() -> onnx.ModelProto:
    """Howard et al. 2017, width 0.75."""
    g = _Mobile("mobilenet_v1_075", most=6.0)
    x, inside = g.unit("input", (3, 24), 3, 2), 24
    for outside, stride in _SEPARABLE:
        x = g.unit(g.unit(x, (inside, inside), 3, stride, inside), (inside, outside), 1)
        inside = outside
    return g.finished(x, inside)


def mnasnet_075() -> onnx.ModelProto:
    """Tan et al. 2019, B1, width 0.75."""
    return _inverted(_Mobile("mnasnet_075"), 24, _MNASNET)


def efficientnet_lite0() -> onnx.ModelProto:
    """EfficientNet-B0 (Tan & Le 2019) without squeeze and excitation, its activations cut off at 6."""
    return _inverted(_Mobile("efficientnet_lite0", most=6.0), 32, _LITE0)


def _inverted(g: _Mobile, stem: int, stages: Sequence[Stage]) -> onnx.ModelProto:
    x = g.inverted(g.unit("input", (3, stem), 3, 2), stem, stages)
    return g.finished(g.unit(x, (stages[-1][1], 1280), 1), 1280)


TEACHERS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    network.__name__: network for network in (mobilenet_v1_075, mnasnet_075, efficientnet_lite0)
}


def learned(
    prior: Path, teaching: str, threads: int, folder: Path, say: Callable[[str], None], races: int = RACES
) -> tuple[dict[str, float], dict[str, Any]]:
    """Tune three, learn, compile the fourth, and race what was compiled.

    Args:
        prior: file of the prior that all begins with.
        teaching: budget for tuning each of the three.
        threads: of everything.
        folder: for what is made meanwhile.
        say: told what is being done.
        races: how often new processes are started, one for each artifact.

    Returns:
        Metrics, and the row of the table.

    Raises:
        InputError: a command failed, or an artifact could not run.
    """
    records = folder / "records.db"
    tuning = ("--budget", teaching, "--prior", prior, "--threads", threads)
    pupil = _workloads(suite.path(PUPIL), threads)
    taught: set[str] = set()
    for name, network in TEACHERS.items():
        say(f"tuning {name}, {teaching}")
        model = folder / f"{name}.onnx"
        onnx.save(network(), model)
        calumma("tune", model, "-o", folder / f"{name}.so", "--db", records, *tuning)
        taught |= _workloads(model, threads)

    say("learning")
    start = time.perf_counter()
    learnt = calumma("learn", "--db", records, "-o", folder / f"{AFTER}.safetensors")
    seconds = time.perf_counter() - start
    shared = folder / "shared.json"
    shared.write_text(json.dumps({PUPIL: sorted(pupil)}))
    calumma("learn", "--db", records, "--exclude", shared, "-o", folder / f"{UNSHARED}.safetensors")
    priors = {BEFORE: prior, **{label: folder / f"{label}.safetensors" for label in (AFTER, UNSHARED)}}
    chosen = _compiled(priors, threads, folder)
    say(f"tuning {PUPIL}, {teaching}")
    calumma("tune", suite.path(PUPIL), "-o", folder / f"{TUNED}.so", "--db", folder / "own.db", *tuning)

    labels = (*priors, TUNED)
    results = _races({label: folder / f"{label}.so" for label in labels}, threads, races, say)
    row = {
        "part": "learned",
        "teachers": list(TEACHERS),
        "network": PUPIL,
        "configurations": learnt["rows"],
        "learn_s": seconds,
        "tasks": len(pupil),
        "shared": len(pupil & taught),
        "not_default": ", ".join(f"{label} {count}" for label, count in chosen.items()),
        "latency_s": {
            label: median(latency for result in results for latency in result.row(label).rounds_s) for label in labels
        },
    }
    return _gains(results), row


def _workloads(model: Path, threads: int) -> set[str]:
    """Hashes of the workloads of a network."""
    return {task["workload"] for task in calumma("tasks", model, "--threads", threads)["tasks"]}


def _compiled(priors: Mapping[str, Path], threads: int, folder: Path) -> dict[str, int]:
    """Compile the fourth network by each prior; returns for how many tasks it chose something else than the default."""
    chosen = {}
    for label, prior in priors.items():
        arguments = ("--prior", prior, "--db", folder / "empty.db", "--threads", threads)
        done = calumma("compile", suite.path(PUPIL), "-o", folder / f"{label}.so", *arguments)
        chosen[label] = done["predicted"]
    return chosen


def _races(artifacts: Mapping[str, Path], threads: int, races: int, say: Callable[[str], None]) -> list[RaceResult]:
    """Race what the fourth network has become, by label; whose turn comes first changes from race to race."""
    contestants = [Contestant(label, "calumma", str(path)) for label, path in artifacts.items()]
    results = []
    for number in range(races):
        say(f"race {number + 1} of {races}")
        first = number % len(contestants)
        turned = [*contestants[first:], *contestants[:first]]
        results.append(race(turned, suite.inputs(PUPIL), threads=threads, rounds=ROUNDS, turn_s=TURN_S))
    return results


def _gains(results: Sequence[RaceResult]) -> dict[str, float]:
    """How many times faster than before the other artifacts are, with intervals over the races."""
    metrics: dict[str, float] = {}
    for label, metric in _GAINS.items():
        gain = ratio({PUPIL: [_ratio(result, label) for result in results]}, {PUPIL: [1.0]})
        metrics |= {metric: gain.value, f"{metric}_low": gain.low, f"{metric}_high": gain.high}
    return metrics


def _ratio(result: RaceResult, label: str) -> float:
    """Latency before over that of an artifact: the median of rounds, whose two turns are next to each other."""
    found = result.ratio(BEFORE, label)
    if found is None:
        raise InputError(f"{BEFORE} or {label} could not run: {[row.reason for row in result.rows if row.reason]}")
    return found.median
