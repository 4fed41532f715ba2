"""The recordings that strategies are compared on: which tasks, where the files are, what random draws find in them.

What a recording is: `calumma.measure.recording`; how it is made: `calumma.measure.recorder`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import output
from calumma.core.errors import InputError
from calumma.core.rng import generator
from calumma.core.values import Workload
from calumma.measure.recorder import SEED
from calumma.measure.recording import Corpus, RecordedKernel, generated_space, template_space
from calumma.space.alternatives import ALGORITHM, AlternativesSpace
from calumma.space.subspace import SubSpace, part_of
from calumma.target import Target

FOLDER = Path(__file__).resolve().parent / "corpora"
CACHE_STATE = "cold"
SOURCES: dict[str, RecordedKernel] = {
    # Convolutions: 3x3 at 14x14 (direct; Winograd has too few configurations), with stride, 1x1, 1x1 with a residual,
    # 3 input channels.
    "conv3x3": RecordedKernel("resnet18", "fused_conv2d6_add5_relu3", algorithms=("direct",)),
    "conv3x3_stride2": RecordedKernel("resnet18", "fused_conv2d5_add5_relu3"),
    "conv1x1": RecordedKernel("resnet18", "fused_conv2d7_add5"),
    "conv1x1_residual": RecordedKernel("mobilenet_v2", "fused_conv2d14_add15_add17"),
    "conv_first": RecordedKernel("mobilenet_v2", "fused_conv2d_add_maximum_minimum"),
    # MetaSchedule's own space of a convolution, a depthwise convolution, a matrix product.
    "generated_conv1x1": RecordedKernel("resnet18", "fused_conv2d7_add5", "generated"),
    "generated_depthwise": RecordedKernel(
        "mobilenet_v2", "fused_depthwise_conv2d4_add9_maximum5_minimum5", "generated"
    ),
    "generated_dense": RecordedKernel("bert", "fused_dense_add1", "generated"),
    # Where these templates have room enough.
    "dense": RecordedKernel("bert", "fused_dense_add1"),
    "batch_matmul": RecordedKernel("bert", "fused_batch_matmul_divide"),
    "depthwise": RecordedKernel("mobilenet_v2", "fused_depthwise_conv2d4_add9_maximum5_minimum5"),
    "conv3x3_alexnet": RecordedKernel("bvlc_alexnet", "fused_conv2d4_add3_relu3"),
    "generated_batch_matmul": RecordedKernel("bert", "fused_batch_matmul_divide", "generated"),
}
"""By name, the most wanted first: a recording that is stopped has those."""


def names(folder: Path = FOLDER) -> list[str]:
    """Names of the corpora that are recorded, in the order of `SOURCES`, others last."""
    found = [path.stem for path in sorted(folder.glob("[!.]*.npz"))]
    order = list(SOURCES)
    return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))


# -- random draws ---------------------------------------------------------------------------------


def expected_best(throughputs: NDArray[np.float64], n: int) -> float:
    """Expected maximum of `n` distinct random draws, exactly, as a share of the maximum of all.

    Of M sorted values the i-th (from 0) is the maximum with probability C(i, n - 1) / C(M, n).
    """
    ordered = np.sort(throughputs)
    total = len(ordered)
    n = min(n, total)
    # log C(i, n-1) for all i by cumulative sums; C(i, n-1) = 0 for i < n - 1.
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    i = np.arange(n - 1, total)
    log_share = logs[i] - logs[n - 1] - logs[i - (n - 1)] - (logs[total] - logs[n] - logs[total - n])
    return float(np.sum(np.exp(log_share) * ordered[i]) / ordered[-1])


def median_draws(throughputs: NDArray[np.float64], share: float) -> int:
    """Distinct random draws after which one within `share` of the maximum was met in half of all cases."""
    good = int((throughputs >= share * throughputs.max()).sum())
    missing, n = 1.0, 0
    while missing > 0.5:
        missing *= (len(throughputs) - good - n) / (len(throughputs) - n)
        n += 1
    return n


DRAWS = (1, 4, 16, 64, 256)
_COLUMN_NAMES = (
    "corpus",
    "space",
    "configs",
    "failed",
    "best us",
    "default",
    *(f"best of {n}" for n in DRAWS),
    "draws to 95%",
    "to 99%",
    "s/config",
)


def describe(corpora: Sequence[Corpus]) -> str:
    """The table of the corpora with their random-draw curves, shares of the best configuration's throughput."""
    rows = []
    for corpus in corpora:
        throughputs = corpus.throughputs
        best = throughputs.max()
        default = int(np.flatnonzero((corpus.indices == corpus.default).all(axis=1))[0])
        seconds = np.mean([sum(result.phases_s.values()) for result in corpus.results])
        rows.append(
            [
                corpus.name,
                corpus.source.space,
                str(len(throughputs)),
                str(int((throughputs == 0).sum())),
                f"{1e6 / best:.1f}",
                f"{throughputs[default] / best:.0%}",
                *(f"{expected_best(throughputs, n):.1%}" for n in DRAWS),
                str(median_draws(throughputs, 0.95)),
                str(median_draws(throughputs, 0.99)),
                f"{seconds:.3f}",
            ]
        )
    return output.markdown(_COLUMN_NAMES, rows)


# -- parts ----------------------------------------------------------------------------------------


def part(name: str, target: Target, threads: int) -> tuple[Workload, SubSpace]:
    """The workload of a corpus and the part of its space to be measured: always the same for one version of the code.

    Raises:
        InputError: no such corpus, its model has no such task, or its space is too small.
    """
    if name not in SOURCES:
        raise InputError(f"no corpus is called {name!r}: one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    found = _tasks(source.model, target)
    if source.task not in found:
        raise InputError(f"model {source.model} has no task {source.task!r}: one of {', '.join(found)}")
    workload, func = found[source.task]
    make = {"template": template_space, "generated": generated_space}[source.space]
    whole = make(func, target, threads)
    rng = generator(SEED, "corpus", name)
    if not source.algorithms:
        return workload, part_of(whole, rng)
    if not isinstance(whole, AlternativesSpace):
        raise InputError(f"corpus {name} is of some algorithms, here its template {whole.template} has only one")
    start = whole.default_of(source.algorithms[0])
    return workload, part_of(whole, rng, chosen={ALGORITHM: source.algorithms}, default=start)


@functools.cache
def _tasks(model: str, target: Target) -> dict[str, tuple[Workload, Any]]:
    """Workloads and functions of a model of the suite, by name of the fused function."""
    from benchmarks import suite
    from calumma.pipeline.extraction import extract_tasks

    found = extract_tasks(suite.path(model), target).parts
    return {task.name: (task.workload, found.functions[task.workload.hash]) for task in found.tasks}
