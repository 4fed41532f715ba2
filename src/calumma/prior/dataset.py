"""Training data: what a database says of how fast configurations are, by workload; in memory and as a small file.

A *group* is one workload on one CPU with one number of threads in one cache state: its configurations compare with one
another and with nothing else. A data set may hold groups of several CPUs; all are of one toolchain.

The file is an .npz of integers with a header in JSON (nothing in it can run). Only knob indices and latencies are
stored: features come from the design space when they are needed, so that the file outlives a change of the features.

    header    JSON text: format, machines (CPU and its limits), toolchain, statuses, groups (position of the machine,
              workload hash, network, template, version, threads, cache state, number of rows, values by knob)
    texts     LZMA over a JSON list: the function of each group
    indices   (sum of rows x knobs,) positions among the values of the knobs, group after group
    latency   (rows,) nanoseconds, median; 0 for a failure
    status    (rows,) position in the header's statuses
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from calumma.core import archives
from calumma.core.errors import InputError
from calumma.core.keys import Key, indices_of, key_of, keys_of
from calumma.core.protocols import Indices, Template
from calumma.core.values import Hardware, KnobValue, MeasureRecord, MeasureResult, Status
from calumma.database.codec import MalformedError, restore_workload
from calumma.measure.timing import given_up
from calumma.operators import design_space
from calumma.prior import machines
from calumma.prior.machines import Machine

NARROW = re.compile(r"\bb?float(?:4|6|8|16)")
"""Names of floats of fewer bits than float32, of which priors know nothing."""
FORMAT = 2
GroupKey = tuple[str, str, int, str]
"""Fingerprint of the CPU, workload hash, threads, cache state."""
CACHE_STATES = ("cold", "warm")
"""Those in which models run: with their weights in memory, or in the last-level cache."""
_LEAST_ROWS = 2
"""Configurations that worked, below which a group says nothing about an order."""
_MOST_TEXT_BYTES = 1 << 30
_COLUMNS = ("latency", "status")


@dataclass(frozen=True)
class Group:
    """What was measured of one workload on one CPU with one number of threads in one cache state."""

    hardware: Hardware
    workload: str
    """Its hash."""
    text: str
    """Its function."""
    network: str
    """Model of the session that measured it, for people; empty if unknown."""
    template: str
    version: int
    threads: int
    cache_state: str
    values: Mapping[str, tuple[KnobValue, ...]]
    """Knob -> its values when this was recorded."""
    indices: Indices
    """(M, knobs) positions among these values."""
    latency_s: NDArray[np.float64]
    """(M,) infinite for a failure."""
    status: tuple[Status, ...]

    @property
    def key(self) -> GroupKey:
        """What tells it from other groups."""
        return self.hardware.fingerprint, self.workload, self.threads, self.cache_state

    @functools.cached_property
    def func(self) -> Any:
        """The unscheduled function, a `tirx.PrimFunc`."""
        return tvm.ir.load_json(self.text)

    def space(self) -> Template:
        """Today's design space of the workload on its CPU."""
        return design_space(self.func, machines.target_of(self.hardware), self.threads)

    def encoded(self, space: Template) -> Indices:
        """The configurations (M, D) in a design space, which may have gained knobs and values since.

        Raises:
            InputError: the space is of another template or version, or lacks a knob or a value.
        """
        if (space.template, space.version) != (self.template, self.version):
            raise InputError(
                f"workload {self.workload} was measured in template {self.template} version {self.version}, today it "
                f"has {space.template} version {space.version}: collect it again"
            )
        positions = {knob.name: d for d, knob in enumerate(space.knobs)}
        result = np.tile(np.array([knob.neutral for knob in space.knobs], np.int32), (len(self.indices), 1))
        for column, (name, values) in enumerate(self.values.items()):
            knob = space.knobs[positions[name]] if name in positions else None
            missing = set(values) - set(knob.values if knob else ())
            if knob is None or missing:
                raise InputError(
                    f"template {self.template} has no {name} = {sorted(map(str, missing))[0]} for workload "
                    f"{self.workload}: collect it again"
                )
            table = np.array([knob.values.index(value) for value in values], np.int32)
            result[:, positions[name]] = table[self.indices[:, column]]
        return space.canonical(result)


@dataclass(frozen=True)
class Dataset:
    """Groups of one toolchain."""

    machines: tuple[Machine, ...]
    """The CPUs of the groups."""
    toolchain: str
    groups: tuple[Group, ...]
    left_out: Mapping[str, int]
    """Reason -> records that were not taken."""

    @property
    def rows(self) -> int:
        return sum(len(group.latency_s) for group in self.groups)

    @property
    def workloads(self) -> frozenset[str]:
        return frozenset(group.workload for group in self.groups)

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits over all that training uses."""
        digest = hashlib.sha256(json.dumps([self.toolchain, *map(machines.plain, self.machines)]).encode())
        for group in self.groups:
            facts = [*group.key, group.text, group.template, group.version]
            digest.update(json.dumps([*facts, [[name, list(v)] for name, v in group.values.items()]]).encode())
            digest.update(np.ascontiguousarray(group.indices, np.uint16).tobytes())
            digest.update(_nanoseconds(group.latency_s).tobytes())
        return digest.hexdigest()[:16]

    def without(self, workloads: Collection[str]) -> Dataset:
        """The same without some workloads, whatever their threads."""
        return self._kept(lambda group: group.workload not in workloads, "held out")

    def of_cpu(self, fingerprint: str, inside: bool = True) -> Dataset:
        """What there is of one CPU, or all but that."""
        return self._kept(lambda group: (group.hardware.fingerprint == fingerprint) == inside, "other CPU")

    def _kept(self, wanted: Callable[[Group], bool], reason: str) -> Dataset:
        kept = tuple(group for group in self.groups if wanted(group))
        dropped = self.rows - sum(len(group.latency_s) for group in kept)
        present = {group.hardware.fingerprint for group in kept}
        left = tuple(machine for machine in self.machines if machine.hardware.fingerprint in present)
        return Dataset(left, self.toolchain, kept, {**self.left_out, reason: dropped})

    def merged(self, other: Dataset) -> Dataset:
        """Both; of a group that both have, the rows of both, and this one's where they measured the same.

        Raises:
            InputError: they are of different toolchains.
        """
        if self.toolchain != other.toolchain:
            raise InputError(
                f"data of {self.toolchain} and of {other.toolchain} do not go together: learn from one of them"
            )
        joined = {machine.hardware.fingerprint: machine for machine in other.machines}
        for machine in self.machines:
            known = joined.get(machine.hardware.fingerprint, machine)
            joined[machine.hardware.fingerprint] = machine.joined(known)
        groups = {group.key: group for group in other.groups}
        for group in self.groups:
            groups[group.key] = _joined(group, groups[group.key]) if group.key in groups else group
        ordered = tuple(groups[key] for key in sorted(groups))
        left_out = Counter(self.left_out) + Counter(other.left_out)
        return Dataset(tuple(joined[key] for key in sorted(joined)), self.toolchain, ordered, left_out)


def from_records(
    records: Iterable[MeasureRecord],
    *,
    toolchain: str,
    networks: Mapping[str, str] | None = None,
    exclude: Collection[str] = (),
    describe: Callable[[Hardware, Collection[int]], Machine] = machines.machine_of,
) -> Dataset:
    """Make a data set of ordinary records.

    Several measurements of one configuration become their median. What another toolchain or version of a template
    measured is left out, and so are CPUs that this version of LLVM describes in another way, configurations that ever
    computed something wrong, and kernels with narrow types, whose costs features do not tell from float32's.

    Args:
        records: of any workloads, from any CPUs.
        toolchain: of the records to take.
        networks: session -> name of the model that it tuned.
        exclude: hashes of workloads that must not be in it: those of networks that are held out.
        describe: says what so many threads of a CPU can do.
    """
    left_out: Counter[str] = Counter()
    found: dict[GroupKey, list[MeasureRecord]] = {}
    for record in records:
        candidate = record.candidate
        if not _described(record.hardware):
            left_out["unknown CPU"] += 1
        elif record.cache_state not in CACHE_STATES or record.toolchain != toolchain:
            left_out["other cache state or toolchain"] += 1
        elif candidate.workload.hash in exclude:
            left_out["held out"] += 1
        elif NARROW.search(candidate.workload.text):
            left_out["narrow types"] += 1
        else:
            key = record.hardware.fingerprint, candidate.workload.hash, record.threads, record.cache_state
            found.setdefault(key, []).append(record)
    groups = []
    threads: dict[Hardware, set[int]] = {}
    for _, members in sorted(found.items()):
        group = _group(members, networks or {}, left_out)
        if group is not None:
            groups.append(group)
            threads.setdefault(group.hardware, set()).add(group.threads)
    described = [describe(hardware, counts) for hardware, counts in threads.items()]
    return Dataset(tuple(described), toolchain, tuple(groups), dict(left_out))


@functools.lru_cache(maxsize=64)
def _described(hardware: Hardware) -> bool:
    """Whether code for a CPU is today what was measured."""
    try:
        machines.target_of(hardware)
    except InputError:
        return False
    return True


def _group(
    records: Sequence[MeasureRecord],
    networks: Mapping[str, str],
    left_out: Counter[str],
) -> Group | None:
    workload, threads, hardware = records[0].candidate.workload, records[0].threads, records[0].hardware
    space = design_space(tvm.ir.load_json(workload.text), machines.target_of(hardware), threads)
    measured: dict[Key, list[MeasureResult]] = {}
    failures: dict[Key, Status] = {}
    for record in records:
        candidate = record.candidate
        if (candidate.template, candidate.template_version) != (space.template, space.version):
            left_out["other template or version"] += 1
            continue
        try:
            indices = space.encode(candidate.config)
        except InputError:
            left_out["no such configuration today"] += 1
            continue
        if not space.valid(indices[None, :])[0]:
            left_out["no such configuration today"] += 1
            continue
        key = key_of(indices)
        if record.result.status is Status.OK:
            measured.setdefault(key, []).append(record.result)
        elif failures.get(key) is not Status.WRONG_OUTPUT:
            failures[key] = record.result.status
    wrong = {key for key, status in failures.items() if status is Status.WRONG_OUTPUT}
    worked = _latencies({key: results for key, results in measured.items() if key not in wrong}, left_out)
    failed = {key: status for key, status in failures.items() if key not in worked}
    if len(worked) < _LEAST_ROWS:
        left_out["too few of a workload"] += len(worked) + len(failed)
        return None
    keys = [*sorted(worked), *sorted(failed)]
    network = Counter(networks.get(record.session, "") for record in records).most_common(1)[0][0]
    return Group(
        hardware,
        workload.hash,
        workload.text,
        network,
        space.template,
        space.version,
        threads,
        records[0].cache_state,
        {knob.name: tuple(knob.values) for knob in space.knobs},
        np.stack([indices_of(key) for key in keys]),
        np.array([worked.get(key, np.inf) for key in keys]),
        tuple(failed.get(key, Status.OK) for key in keys),
    )


def _latencies(measured: Mapping[Key, Sequence[MeasureResult]], left_out: Counter[str]) -> dict[Key, float]:
    """Latency of every configuration of one group.

    A candidate that is taken for lost is given up after a few repetitions. Mostly it is slow; but while both threads of
    a pool sit on one core, the best has twice its latency for as long. So such a measurement does not count beside one
    that was finished. Alone it does: nine in ten are right, and what is slow has to be learnt, too.
    """
    latencies = {}
    for key, results in measured.items():
        finished = [result.latency_s for result in results if not given_up(result.latencies_s)]
        latencies[key] = median(finished or [result.latency_s for result in results])
        if 0 < len(finished) < len(results):
            left_out["given up too early"] += len(results) - len(finished)
    return latencies


def _joined(first: Group, second: Group) -> Group:
    """Rows of both; the first's where both have one. Groups of different knobs or values: the first alone."""
    if first.values != second.values or first.version != second.version:
        return first
    known = set(keys_of(first.indices))
    new = [i for i, key in enumerate(keys_of(second.indices)) if key not in known]
    return Group(
        first.hardware,
        first.workload,
        first.text,
        first.network or second.network,
        first.template,
        first.version,
        first.threads,
        first.cache_state,
        first.values,
        np.concatenate([first.indices, second.indices[new]]),
        np.concatenate([first.latency_s, second.latency_s[new]]),
        (*first.status, *(second.status[i] for i in new)),
    )


# -- files ----------------------------------------------------------------------------------------


def save(dataset: Dataset, path: Path) -> None:
    """Write a data set; an older file is replaced as a whole."""
    statuses = [status.value for status in Status]
    positions = {machine.hardware.fingerprint: i for i, machine in enumerate(dataset.machines)}
    header = {
        "format": FORMAT,
        "machines": [machines.plain(machine) for machine in dataset.machines],
        "toolchain": dataset.toolchain,
        "statuses": statuses,
        "left_out": dict(dataset.left_out),
        "groups": [
            {
                "machine": positions[group.hardware.fingerprint],
                "workload": group.workload,
                "network": group.network,
                "template": group.template,
                "version": group.version,
                "threads": group.threads,
                "cache_state": group.cache_state,
                "rows": len(group.latency_s),
                "values": [[name, list(values)] for name, values in group.values.items()],
            }
            for group in dataset.groups
        ],
    }
    texts = lzma.compress(json.dumps([group.text for group in dataset.groups]).encode(), preset=6)
    outcomes = [np.array([statuses.index(s.value) for s in group.status]) for group in dataset.groups]
    arrays = {
        "texts": np.frombuffer(texts, np.uint8),
        "indices": _concatenated([group.indices.ravel() for group in dataset.groups], np.uint16),
        "latency": _concatenated([_nanoseconds(group.latency_s) for group in dataset.groups], np.uint32),
        "status": _concatenated(outcomes, np.uint8),
    }
    archives.save(path, header, arrays)


def load(path: Path) -> Dataset:
    """Read a data set.

    Raises:
        InputError: there is no such file, it is damaged, or of another format.
    """
    return archives.load(path, FORMAT, _restored, "restore the data set, or collect again")


def _restored(header: Mapping[str, Any], arrays: archives.Arrays) -> Dataset:
    """Build a data set from unchecked contents. Raises what `archives.load` expects."""
    for name, kind in (("indices", np.uint16), ("latency", np.uint32), ("status", np.uint8), ("texts", np.uint8)):
        if arrays[name].dtype != kind or arrays[name].ndim != 1:
            raise MalformedError(f"{name} is {arrays[name].dtype} of {arrays[name].ndim} dimensions")
    plain = lzma.LZMADecompressor(memlimit=_MOST_TEXT_BYTES).decompress(arrays["texts"].tobytes(), _MOST_TEXT_BYTES)
    texts = json.loads(plain)
    statuses = [Status(text) for text in header["statuses"]]
    if len(texts) != len(header["groups"]):
        raise MalformedError(f"{len(texts)} functions for {len(header['groups'])} groups")
    known = tuple(map(machines.restore, header["machines"]))
    groups = []
    row = place = 0
    for entry, text in zip(header["groups"], texts, strict=True):
        values = {str(name): tuple(kept) for name, kept in entry["values"]}
        if not all(type(value) in (int, str, bool) for kept in values.values() for value in kept):
            raise MalformedError("a knob's value is no integer, text or boolean")
        rows = int(entry["rows"])
        indices = arrays["indices"][place : place + rows * len(values)].reshape(rows, len(values)).astype(np.int32)
        latency, status = (arrays[name][row : row + rows] for name in _COLUMNS)
        if rows < 1 or len(status) != rows or (indices >= [len(kept) for kept in values.values()]).any():
            raise MalformedError("a group without rows, or with rows that are missing or outside of its values")
        if ((latency == 0) == (status == statuses.index(Status.OK))).any():
            raise MalformedError("a configuration that failed and has a latency, or worked and has none")
        workload = restore_workload(entry["workload"], text)
        machine = known[_position(entry["machine"], len(known))]
        if int(entry["threads"]) not in machine.limits:
            raise MalformedError(f"nothing says what {entry['threads']} threads of {machine.label} can do")
        groups.append(
            Group(
                machine.hardware,
                workload.hash,
                workload.text,
                str(entry["network"]),
                str(entry["template"]),
                int(entry["version"]),
                int(entry["threads"]),
                str(entry["cache_state"]),
                values,
                indices,
                np.where(latency > 0, latency / 1e9, np.inf),
                tuple(statuses[int(s)] for s in status),
            )
        )
        row, place = row + rows, place + rows * len(values)
    if row != len(arrays["latency"]) or row != len(arrays["status"]) or place != len(arrays["indices"]):
        raise MalformedError("more rows than the groups have")
    left_out = {str(reason): int(count) for reason, count in header["left_out"].items()}
    return Dataset(known, str(header["toolchain"]), tuple(groups), left_out)


def _position(value: Any, count: int) -> int:
    if type(value) is not int or not 0 <= value < count:
        raise MalformedError(f"a group is of machine {value!r}, of {count}")
    return value


def _nanoseconds(latency_s: NDArray[np.float64]) -> NDArray[np.uint32]:
    worked = np.isfinite(latency_s)
    return np.where(worked, np.clip(np.rint(np.where(worked, latency_s, 0) * 1e9), 1, 2**32 - 1), 0).astype(np.uint32)


def _concatenated(parts: Sequence[NDArray], kind: type) -> NDArray:
    return np.concatenate([np.asarray(part, kind) for part in parts]) if parts else np.empty(0, kind)
