"""From a data set to a prior: one pair of forests per template, judged on workloads and CPUs that it has not seen.

What judging brings (`judging`) are the metrics of the prior and the calibration of its errors, and nothing else: the
forests that are kept are trained on everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calumma.core.errors import InputError
from calumma.core.protocols import Store
from calumma.core.values import COLLECTION
from calumma.prior import judging, library, training, weights
from calumma.prior.dataset import Dataset, from_records
from calumma.prior.judging import LEAST_GROUPS, Example
from calumma.prior.training import TrainingSettings
from calumma.prior.weights import Family, Prior


def gather(
    stores: Iterable[tuple[str, Store]],
    data: str,
    toolchain: str,
    *,
    exclude: Collection[str] = frozenset(),
    say: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Take together what can be learnt from: records of any CPUs, and a data set.

    Args:
        stores: records, and what to call where they come from.
        data: a data set to add, as in `library.data_for`.
        toolchain: of this machine.
        exclude: hashes of workloads to leave out.
        say: called with a line about every part.

    Raises:
        InputError: the data set cannot be used.
    """
    gathered = Dataset((), toolchain, (), {})
    for name, store in stores:
        found = from_records(
            store.records(),
            toolchain=toolchain,
            networks={s.id: s.model for s in store.sessions() if s.options.get("kind") != COLLECTION},
            exclude=exclude,
        )
        say(f"{found.rows} configurations of {len(found.workloads)} workloads in {name}")
        gathered = gathered.merged(found)
    known = library.data_for(data, toolchain)
    if known is not None:
        say(f"{known.rows} configurations of {len(known.workloads)} workloads in the data set {data}")
        gathered = gathered.merged(known.without(exclude))
    return gathered


def examples(dataset: Dataset) -> list[Example]:
    """Look at all groups through today's design spaces.

    Raises:
        InputError: a group does not fit its design space any more.
    """
    machines = {machine.hardware.fingerprint: machine for machine in dataset.machines}
    return [judging.example(group, machines[group.hardware.fingerprint]) for group in dataset.groups]


def learn(
    dataset: Dataset,
    name: str,
    *,
    seed: int = 0,
    settings: TrainingSettings | None = None,
    say: Callable[[str], None] = lambda line: None,
    looked_at: Sequence[Example] | None = None,
) -> Prior:
    """Train a prior.

    Args:
        dataset: what to learn from.
        name: what the prior is called.
        seed: of everything random; the same data and seed give the same weights on the same machine.
        settings: sizes, the defaults if None.
        say: called with a line about what is going on.
        looked_at: the data set's `examples`, where the caller has them.

    Raises:
        InputError: there is too little data.
    """
    settings = settings or TrainingSettings()
    everything = examples(dataset) if looked_at is None else looked_at
    families: dict[str, Family] = {}
    metrics: dict[str, Any] = {}
    for template in sorted({example.group.template for example in everything}):
        members = [example for example in everything if example.group.template == template]
        if len(members) < LEAST_GROUPS:
            say(f"{template}: {len(members)} workloads are too few ({LEAST_GROUPS} are needed): left to its default")
            continue
        columns = columns_of(members)
        verdict = judging.judge(members, columns, seed, settings, say, len(members) / len(everything))
        order, level = training.train(columns, [member.sample(columns) for member in members], seed, settings)
        version = members[0].group.version
        families[template] = Family(
            template, version, order, level, verdict.spread, verdict.level_error, verdict.trusts
        )
        metrics[template] = verdict.metrics
    if not families:
        raise InputError(
            f"nothing to learn from: no template has {LEAST_GROUPS} measured workloads with 2 configurations each; "
            "tune more models, or run calumma collect"
        )
    return Prior(
        name=name,
        created=weights.now(),
        trained_on=dataset.machines,
        toolchain=dataset.toolchain,
        data=_facts(dataset),
        settings={"seed": seed, **asdict(settings)},
        metrics=metrics,
        families=families,
    )


def _facts(dataset: Dataset) -> dict[str, Any]:
    """What a prior says of its data."""
    return {
        "digest": dataset.digest,
        "rows": dataset.rows,
        "workloads": sorted(dataset.workloads),
        "cache_states": sorted({group.cache_state for group in dataset.groups}),
        "networks": sorted({group.network for group in dataset.groups} - {""}),
        "cpus": {
            machine.hardware.fingerprint: {"cpu": machine.label, "rows": part.rows, "workloads": len(part.groups)}
            for machine in dataset.machines
            for part in (dataset.of_cpu(machine.hardware.fingerprint),)
        },
    }


def excluded(path: Path) -> frozenset[str]:
    """Workload hashes of a JSON file: an object of lists, by name of the network.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        networks = json.loads(path.read_text())
        hashes = [hash_ for members in networks.values() for hash_ in members]
        if not all(type(hash_) is str for hash_ in hashes):
            raise ValueError("a hash is no text")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"{path}: no workloads to leave out can be read from it ({error}); expected "
            '{"network": ["hash", ...], ...}'
        ) from error
    return frozenset(hashes)


def columns_of(members: Sequence[Example]) -> tuple[str, ...]:
    """The columns that any of the examples has, in a fixed order."""
    return tuple(sorted({name for example in members for name in example.names}))
