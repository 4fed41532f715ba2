"""A prior moved to a CPU that it has not seen, by the first measurements there.

All tasks of a template share one refit of its forest (`few_shot.refitted`): what was measured of one says how the CPU
differs from those of the prior, and so something of all others. In a tuning session that happens as measurements come
in, each task's own refit on top of it; what has become of the forests at the end is kept for the next model.

Whether the moved forests are trusted with choices of their own is known before: the same was done in turns with each
CPU that the prior was trained on (`judging`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from calumma.cost_model.scoring import Features, Scores
from calumma.prior import learning, library, weights
from calumma.prior.dataset import Dataset
from calumma.prior.few_shot import MOST, SHARED_RIDGE, FewShotForest, Floats64, log_latencies, refitted
from calumma.prior.forest import Forest
from calumma.prior.judging import MEASURED
from calumma.prior.machines import Machine, place
from calumma.prior.predictor import Predictor, TaskPredictor
from calumma.prior.weights import ADAPTED, UNSEEN, Prior

_FIRST = 8
"""Measurements of a template before its forest is refitted; later whenever they have doubled."""
_ENOUGH = MEASURED // 2
"""Measurements from which on a session's are kept, and trusted like those that were judged: half of what these had."""
Tasks = Sequence[tuple[Features, Floats64]]
"""Columns of each task's configurations, and the logarithms of their latencies up to a constant."""


def moved(prior: Prior, machine: Machine, measured: Mapping[str, Tasks], workloads: Sequence[str]) -> Prior:
    """The prior after measurements on a CPU, by template.

    Args:
        prior: what is moved.
        machine: the CPU, with one number of threads.
        measured: template -> tasks.
        workloads: their hashes.
    """
    (threads,) = machine.limits
    here = place(machine.hardware, threads)
    rows = sum(len(y) for tasks in measured.values() for _, y in tasks)
    rows += prior.moved_rows if prior.has_moved(machine.hardware, threads) else 0
    families = dict(prior.families)
    for template, tasks in measured.items():
        family = families[template]
        trusts = {**family.trusts, here: family.trust(ADAPTED if rows >= _ENOUGH else UNSEEN)}
        families[template] = replace(family, order=refitted(family.order, tasks, SHARED_RIDGE), trusts=trusts)
    return replace(
        prior,
        name=library.name_of(library.moved_file(machine.hardware, threads)),
        created=weights.now(),
        families=families,
        data={**prior.data, "workloads": sorted({*prior.data["workloads"], *workloads})},
        moved_to=(machine,),
        moved_rows=rows,
    )


def by_records(prior: Prior, data: Dataset, threads: int) -> Prior | None:
    """The prior moved by what is known of one CPU; None where that is nothing of its templates.

    Raises:
        InputError: the data do not fit today's design spaces.
    """
    found = [entry for entry in learning.examples(data) if entry.group.threads == threads]
    measured: dict[str, list[tuple[Features, Floats64]]] = {}
    for entry in found:
        family = prior.families.get(entry.group.template)
        if family is not None and family.version == entry.group.version:
            sample = entry.sample(family.columns)
            measured.setdefault(family.template, []).append((sample.table, sample.target))
    if not measured:
        return None
    (machine,) = data.machines
    here = Machine(machine.hardware, {threads: machine.limits[threads]})
    return moved(prior, here, measured, [entry.group.workload for entry in found])


def keep(prior: Prior) -> Path:
    """Store a moved prior where `compile` and `tune` find it; returns the file."""
    (machine,) = prior.moved_to
    (threads,) = machine.limits
    path = library.moved_file(machine.hardware, threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.save(prior, path)
    return path


class Adaptation:
    """What one session measures of the tasks that a prior knows the templates of, on a CPU that it is moved to."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._measured: dict[str, dict[str, tuple[Features, Floats64]]] = {}
        self._forests: dict[str, Forest] = {}
        self._fitted: dict[str, int] = {}

    @property
    def base(self) -> str:
        """Name of the prior that is moved."""
        return self._predictor.prior.name

    def model(self, workload: str, task: TaskPredictor) -> FewShotForest:
        """The cost model of a task, by its hash: refitted to the others' measurements as well."""
        return _Member(self, workload, task)

    def forest(self, template: str, default: Forest) -> Forest:
        """What has become of a template's forest."""
        return self._forests.get(template, default)

    def note(self, workload: str, task: TaskPredictor, features: Features, scores: Scores) -> None:
        """Take in all that is known of a task: columns, and throughputs in any unit."""
        template = task.family.template
        worked = scores > 0
        tasks = self._measured.setdefault(template, {})
        tasks[workload] = features[worked], log_latencies(scores[worked])
        rows = sum(len(y) for _, y in tasks.values())
        if rows >= max(_FIRST, 2 * self._fitted.get(template, 0)):
            self._fitted[template] = rows
            self._forests[template] = refitted(task.family.order, list(tasks.values()), SHARED_RIDGE)

    def prior(self) -> Prior | None:
        """The prior as the measurements have moved it; None if there were too few."""
        measured = {template: list(tasks.values()) for template, tasks in self._measured.items()}
        base, hardware, threads = self._predictor.prior, self._predictor.target.hardware, self._predictor.threads
        workloads = sorted(workload for tasks in self._measured.values() for workload in tasks)
        found = moved(base, Machine(hardware, {threads: self._predictor.limits}), measured, workloads)
        return found if found.moved_rows >= _ENOUGH else None


def begin(predictor: Predictor | None) -> Adaptation | None:
    """What a tuning session moves: a prior that never saw this CPU, or of which little is known on it yet."""
    if predictor is None:
        return None
    prior, hardware, threads = predictor.prior, predictor.target.hardware, predictor.threads
    little = prior.has_moved(hardware, threads) and prior.moved_rows < MOST
    return Adaptation(predictor) if not predictor.seen or little else None


def finish(adaptation: Adaptation | None, note: str) -> str:
    """Keep what a session has moved, if that is enough; returns the note with what became of it."""
    found = None if adaptation is None else adaptation.prior()
    if adaptation is None or found is None:
        return note
    return f"{note or f'prior {adaptation.base}'}; {found.moved_rows} measurements have moved it: {keep(found)}"


class _Member(FewShotForest):
    """The model of one of the tasks."""

    def __init__(self, adaptation: Adaptation, workload: str, task: TaskPredictor) -> None:
        super().__init__(task.family.order)
        self._adaptation = adaptation
        self._workload = workload
        self._task = task

    def fit(self, features: Features, scores: Scores) -> None:
        if scores.any():
            self._adaptation.note(self._workload, self._task, features, scores)
        self._base()
        super().fit(features, scores)

    def predict(self, features: Features) -> Scores:
        if self._refitted is self._forest:  # nothing of its own is known
            self._base()
        return super().predict(features)

    def _base(self) -> None:
        self._forest = self._refitted = self._adaptation.forest(self._task.family.template, self._task.family.order)
