"""What a prior is worth on a CPU that it has not seen, and after a minute of measurements there.

Of a data set of several CPUs each is left out in turns, and with it half of the layers on all CPUs, so that neither the
CPU nor the layer was seen. When the prior is trusted was chosen before, on the CPUs left in (`calumma.prior.judging`).

    data set      the prior's choice among what was measured of each workload of the other half, as it is and moved by
                  `judging.MEASURED` configurations of the half that is not judged
    recordings    measurements that the evolutionary strategy needs, on recordings of networks held out whole: guided by
                  the prior as it is and moved, over those with trees from scratch (`benchmarks/prior_few_shot.py`)
    live          this CPU, or --mcpu: a prior that is learnt without it chooses for the tasks of networks held out
                  whole, then measures drawn workloads for a minute, and chooses again; all choices are measured in
                  turns (`benchmarks/prior_zero_shot.py`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import corpora, held_out, prior_few_shot, suite
from benchmarks import prior_zero_shot as zero_shot
from benchmarks.curves import Ratio
from benchmarks.prior_few_shot import BASELINE, Contender, Recording
from benchmarks.prior_zero_shot import Shares
from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.values import Budget
from calumma.cost_model import GradientBoostedTrees
from calumma.database import MemoryStore
from calumma.measure.recording import load
from calumma.pipeline import CompileOptions
from calumma.prior import adaptation, campaign, dataset, judging, learning
from calumma.prior.dataset import Dataset
from calumma.prior.few_shot import FewShotForest
from calumma.prior.judging import Example, Judgement, Seen
from calumma.prior.machines import Machine, place
from calumma.prior.predictor import Predictor, TaskPredictor
from calumma.prior.training import TrainingSettings
from calumma.prior.weights import ADAPTED, UNSEEN, Prior

QUICK = TrainingSettings(members=3, trees=20)
ZERO_SHOT, MOVED = "zero_shot", "adapted"
"""The prior as it is, and after a minute."""
Say = Callable[[str], None]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Without:
    """Priors of all CPUs but one, without half of the layers."""

    machine: Machine
    """The CPU left out."""
    base: Prior
    moved: Prior
    asked: Sequence[Example]
    """Workloads of the CPU that are judged."""


def left_out(data: Dataset, say: Say, settings: TrainingSettings | None = None) -> list[Without]:
    """Leave out each CPU of a data set in turns, with each half of the layers.

    Raises:
        InputError: the data are of one CPU, or too few.
    """
    if len(data.machines) < 2:
        raise InputError(
            "the data set is of one CPU and says nothing of others: collect on another, or for another instruction set "
            "(calumma collect --mcpu), and learn from both with --save-data"
        )
    say("looking at the data set")
    looked = learning.examples(data)
    halves = judging.folds([example.layer for example in looked], 2)
    found = []
    for machine in data.machines:
        cpu = machine.hardware.fingerprint
        for half in (0, 1):
            dealt = list(zip(looked, halves, strict=True))
            train = [e for e, h in dealt if h != half and e.cpu != cpu]
            support = [e for e, h in dealt if h != half and e.cpu == cpu]
            subset = replace(data.of_cpu(cpu, inside=False), groups=tuple(e.group for e in train))
            label = f"without {machine.hardware.mcpu}, half {half + 1}"
            say(f"learning {label}")
            base = learning.learn(subset, label, settings=settings, looked_at=train)
            asked = [e for e, h in dealt if h == half and e.cpu == cpu and e.comparable]
            asked = [e for e in asked if e.group.template in base.families]
            found.append(Without(machine, base, _moved(base, machine, support), asked))
    return found


def _moved(base: Prior, machine: Machine, support: Sequence[Example]) -> Prior:
    """A prior after a minute on a CPU, its measurements shared out as workloads are drawn."""
    measured = {}
    for template, family in base.families.items():
        members = [e for e in support if e.group.template == template]
        if members:
            samples = judging.minute(members, family.columns, len(members) / len(support), seed=0)
            measured[template] = [(sample.table, sample.target) for sample in samples]
    (threads,) = {e.group.threads for e in support}
    here = Machine(machine.hardware, {threads: machine.limits[threads]})
    return adaptation.moved(base, here, measured, [e.group.workload for e in support])


def on_the_data(priors: Sequence[Without]) -> tuple[dict[str, float], Rows]:
    """Shares of the best known speed of each workload, by CPU and over all; a row for each CPU and template."""
    shares: dict[tuple[str, str], list[Shares]] = {}
    judgements: dict[tuple[str, str, str], list[Judgement]] = {}
    for without in priors:
        cpu = without.machine.hardware.mcpu
        for example in without.asked:
            trusted = {ZERO_SHOT: UNSEEN, MOVED: place(example.group.hardware, example.group.threads)}
            for kind, prior in ((ZERO_SHOT, without.base), (MOVED, without.moved)):
                family = prior.families[example.group.template]
                seen = Seen(judging.gains_of(family.order, example), example)
                found = judging.judged(seen, family.trust(trusted[kind]))
                share = Shares(found.top1, found.top8, found.default, len(example.target))
                shares.setdefault((kind, cpu), []).append(share)
                judgements.setdefault((kind, cpu, example.group.template), []).append(found)
    metrics: dict[str, float] = {}
    for (kind, cpu), found_shares in shares.items():
        metrics |= zero_shot.metrics(found_shares, f"_data_{cpu}", kind)
        together = [found for (k, c, _), entries in judgements.items() if (k, c) == (kind, cpu) for found in entries]
        metrics[f"cross_device_correlation_{kind}_{cpu}"] = judging.summary(together)["correlation"]
    for kind in (ZERO_SHOT, MOVED):
        of_all = [share for (k, _), values in shares.items() if k == kind for share in values]
        metrics |= zero_shot.metrics(of_all, "_data", kind)
    rows: Rows = [
        {"part": "cross-device", "kind": kind, "cpu": cpu, "template": template, **judging.summary(found)}
        for (kind, cpu, template), found in judgements.items()
    ]
    return metrics, rows


def measurement_ratios(priors: Sequence[Without], folder: Path, say: Say, *, quick: bool) -> dict[str, float]:
    """Measurements to 99 % of the throughput with trees from scratch, over those; below 1 a prior needs fewer. Empty
    without recordings of a CPU in the data."""
    recordings: dict[str, Recording] = {}
    for name in corpora.names(folder):
        corpus = load(name, folder)
        without = next((w for w in priors if w.machine.hardware.fingerprint == corpus.hardware.fingerprint), None)
        if without is None or corpus.source.space != "template" or (quick and recordings):
            continue
        space = corpus.space()
        outside = space.outside(space.members)
        contenders = {BASELINE: Contender(space.features(space.members), GradientBoostedTrees)}
        for kind, prior in ((ZERO_SHOT, without.base), (MOVED, without.moved)):
            target = tvm_compat.target_of(corpus.hardware)
            predictor = Predictor(prior, target, corpus.threads, corpus.cache_state, measuring=True)
            task = predictor.task(tvm_compat.load().ir.load_json(corpus.workload.text), space.whole)
            if task is not None:
                contenders[kind] = _contender(task, outside)
        if len(contenders) == 3:
            recordings[name] = Recording(corpus, space, contenders)
    if not recordings:
        return {}
    seeds, budget = (1, 48) if quick else (prior_few_shot.SEEDS, prior_few_shot.BUDGET)
    comparison = prior_few_shot.replayed(recordings, say, seeds, budget)
    metrics = {"cross_device_recordings": float(len(recordings))}
    for kind, suffix in ((MOVED, ""), (ZERO_SHOT, "_zero_shot")):
        metrics |= _interval(
            f"cross_device_measurement_ratio{suffix}", prior_few_shot.measurement_ratio(comparison, kind)
        )
    return metrics


def _contender(task: TaskPredictor, outside: Any) -> Contender:
    return Contender(task.table(outside), lambda _: FewShotForest(task.family.order))


def _interval(name: str, found: Ratio) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def live(
    data: Dataset,
    networks: Sequence[str],
    databases: Sequence[Path],
    threads: int,
    mcpu: str | None,
    budget: Budget,
    say: Say,
    settings: TrainingSettings | None = None,
) -> tuple[dict[str, float], Rows]:
    """Choices for networks held out whole on this CPU, by a prior that never saw it, before and after a minute.

    Args:
        data: of several CPUs; what it has of this one is left out.
        networks: of the suite.
        databases: of tunings, for the best that is known.
        threads: of the kernels.
        mcpu: CPU to compile for; this one by default.
        budget: of the adaptation.
        say: called with a line about what is going on.
        settings: of the training.
    """
    options = CompileOptions(threads=threads, mcpu=mcpu)
    hardware = options.measurable_target().hardware
    rest = data.of_cpu(hardware.fingerprint, inside=False)
    say(f"learning without {hardware.mcpu}")
    base = learning.learn(rest, f"without {hardware.mcpu}", settings=settings)
    store = MemoryStore()
    files = tuple(str(suite.path(name)) for name in suite.names())
    wanted = campaign.Wanted(exclude=tuple(held_out.published()), exclude_models=files)
    say(f"measuring drawn workloads for {budget.seconds:.0f} s")
    collected = campaign.collect(
        wanted, options, store, budget, campaign.BRIEF, 0, campaign.COLD, lambda progress: None
    )
    measured = dataset.from_records(store.records(), toolchain=tvm_compat.toolchain())
    moved = adaptation.by_records(base, measured, threads)
    if moved is None:
        raise InputError("nothing was measured that the prior knows the templates of: give a longer --adaptation")
    priors: Mapping[str, Prior] = {ZERO_SHOT: base, MOVED: moved}
    found = zero_shot.live(priors, networks, databases, threads, say, mcpu)
    rows = [
        zero_shot.live_row(entry, kind, by_prior[kind]) | {"cpu": hardware.mcpu}
        for entry, by_prior in found.values()
        for kind in priors
    ]
    metrics = {"adaptation_trials": float(collected.progress.trials), "adaptation_rows": float(moved.moved_rows)}
    for kind in priors:
        metrics |= zero_shot.metrics([by_prior[kind] for _, by_prior in found.values()], name=kind)
    trusted = {
        ZERO_SHOT: base.beats_defaults,
        MOVED: [name for name, family in base.families.items() if family.trust(ADAPTED).any],
    }
    return metrics | {f"{kind}_trusted_templates": float(len(names)) for kind, names in trusted.items()}, rows
