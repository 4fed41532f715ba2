"""Records to and from the JSON database of TVM's MetaSchedule.

The database is two files of JSON lines. `database_workload.json` holds `[structural hash, serialised module]`;
`database_tuning_record.json` holds `[line of the workload, [trace, seconds, target, arguments]]`, a trace being
`[instructions, decisions]`.

Export writes it with TVM's own writer, so that `JSONDatabase` and `MetaScheduleApplyDatabase` take it. Each trace ends
with an annotation of the root block that names template and configuration: MetaSchedule keeps it, lowering drops it.

Import reads both files as data alone. A workload is known by its hash, compared with the hashes of the caller's own
functions; a module out of the file is never decoded. A trace is taken if it carries the annotation of a configuration
that this version knows, or equals a sketch that MetaSchedule generates here for the same function. Nothing in the files
is applied to a schedule, built or run.
"""

from __future__ import annotations

import functools
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tvm
from tvm import ir, s_tir, tirx
from tvm.s_tir import meta_schedule as ms
from tvm_ffi import structural_equal, structural_hash

from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.protocols import Store, Template
from calumma.core.values import Candidate, MeasureRecord, MeasureResult, Status, Workload
from calumma.database import codec
from calumma.database.codec import MalformedError
from calumma.operators import design_space
from calumma.space.generated import GeneratedSpace
from calumma.target import Target

WORKLOAD_FILE = "database_workload.json"
RECORD_FILE = "database_tuning_record.json"
STRATEGY = "metaschedule"
"""`MeasureRecord.strategy` of imported records."""

_ANNOTATION = "calumma.candidate"
_FAILED_S = 1e10
"""What MetaSchedule stores as the time of a failure."""
_NOT_HERE = "of a function that is not in this model"
_LAYOUT_REWRITE = "meta_schedule.layout_rewrite_preproc"


@dataclass(frozen=True)
class Exported:
    """What became of the records given to `export_database`."""

    count: int
    skipped: Mapping[str, int]
    """Reason -> number of records left out for it."""


@dataclass(frozen=True)
class Imported:
    """What a database had for this model."""

    records: tuple[MeasureRecord, ...]
    """In the order of the file; unverified until calumma has compared their outputs itself."""
    skipped: Mapping[str, int]
    """Reason -> number of records left out for it."""
    damaged: tuple[str, ...]
    """File, line and fault of everything that is no record."""


class _Skip(Exception):
    """A record that cannot be carried over; the text is the reason."""


def export_database(
    records: Iterable[MeasureRecord],
    functions: Mapping[str, tirx.PrimFunc],
    target: Target,
    threads: int,
    folder: Path | str,
) -> Exported:
    """Write measured schedules as a MetaSchedule database.

    MetaSchedule ranks by latency alone: give it records that compare, of one cache state and toolchain.

    Args:
        records: of any workload; those that failed, or gave a wrong output at any time, are left out.
        functions: workload hash -> unscheduled function, as `ModelTasks.functions`.
        target, threads: what the records must have been measured on.
        folder: created if missing; must not hold a database yet.

    Raises:
        InputError: the folder holds a database or cannot be written.
    """
    target_folder = Path(folder)
    for name in (WORKLOAD_FILE, RECORD_FILE):
        if (target_folder / name).exists():
            raise InputError(f"{target_folder / name} exists: choose another folder or remove the database first")
    records = list(records)
    wrong = {record.candidate.key for record in records if record.result.status is Status.WRONG_OUTPUT}
    skipped: Counter[str] = Counter()
    traces = _Traces(functions, target, threads)
    tvm_target = tvm_compat.tvm_target(target, threads)
    count = 0
    try:
        target_folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=target_folder) as unfinished:
            paths = [Path(unfinished) / name for name in (WORKLOAD_FILE, RECORD_FILE)]
            database = ms.database.JSONDatabase(*map(str, paths))
            for record in records:
                candidate = record.candidate
                try:
                    if record.result.status is not Status.OK:
                        raise _Skip(f"status {record.result.status}")
                    if candidate.key in wrong:
                        raise _Skip("gave a wrong output at another time")
                    if (record.hardware.fingerprint, record.threads) != (target.hardware.fingerprint, threads):
                        raise _Skip("measured on other hardware or with other threads")
                    module, trace = traces.of(candidate, record.cache_state, record.toolchain)
                except _Skip as reason:
                    skipped[str(reason)] += 1
                    continue
                workload = database.commit_workload(module)
                arguments = ms.arg_info.ArgInfo.from_prim_func(module["main"])
                latencies = list(record.result.latencies_s)
                database.commit_tuning_record(
                    ms.database.TuningRecord(trace, workload, latencies, tvm_target, arguments)
                )
                count += 1
            for path in paths:
                os.replace(path, target_folder / path.name)
    except OSError as error:
        raise InputError(f"{target_folder} cannot be written ({error}): choose another folder") from error
    return Exported(count, dict(skipped))


def import_database(
    folder: Path | str,
    functions: Mapping[str, tirx.PrimFunc],
    target: Target,
    threads: int,
    cache_state: str = "hot",
) -> Imported:
    """Read the records that a MetaSchedule database has for these functions.

    Args:
        folder: what `ms.tune_tir`, `ms.relax_integration` or `export_database` wrote.
        functions: workload hash -> unscheduled function of the caller's own model.
        target: this machine; the database knows its CPU only by LLVM's name, so take no other machine's database.
        threads: must be the `num-cores` that the database was made for.
        cache_state: of MetaSchedule's measurements; its runner leaves caches as they are unless told to flush them.

    Raises:
        InputError: one of the two files is missing or cannot be read.
    """
    damaged: list[str] = []
    same_module: dict[str, list[str]] = {}
    for key, func in functions.items():
        same_module.setdefault(_module_hash(func), []).append(key)
    workloads: dict[int, list[str]] = {}
    for number, line in _lines(Path(folder) / WORKLOAD_FILE):
        workloads[number] = []
        try:
            workloads[number] = same_module.get(_workload_hash(line), [])
        except MalformedError as error:
            damaged.append(f"{WORKLOAD_FILE}, line {number + 1}: {error}")
    path = Path(folder) / RECORD_FILE
    reader = _Reader(functions, target, threads, cache_state, path)
    records: list[MeasureRecord] = []
    skipped: Counter[str] = Counter()
    for number, line in _lines(path):
        try:
            index, row = _record_row(line, len(workloads))
            records += reader.records(workloads[index], row)
        except MalformedError as error:
            damaged.append(f"{RECORD_FILE}, line {number + 1}: {error}")
        except _Skip as reason:
            skipped[str(reason)] += 1
    return Imported(tuple(records), dict(skipped), tuple(damaged))


def add_new(store: Store, records: Iterable[MeasureRecord]) -> int:
    """Append the imported records that `store` does not have yet, whenever those were imported; returns how many."""
    records = list(records)
    known = {_identity(r) for r in store.records(workloads={r.candidate.workload.hash for r in records})}
    new = {identity: record for record in records if (identity := _identity(record)) not in known}
    store.append(list(new.values()))
    return len(new)


def _identity(record: MeasureRecord) -> tuple[Any, ...]:
    result = record.result
    return (record.candidate.key, record.hardware.fingerprint, record.threads, record.cache_state, result.latencies_s)


def _module(func: tirx.PrimFunc) -> tvm.IRModule:
    """A workload as MetaSchedule's passes look it up: without what only calumma notes about a function."""
    for attribute in dict(func.attrs or {}):
        if str(attribute).startswith("calumma."):
            func = func.without_attr(attribute)
    return tvm.IRModule({"main": func.with_attr("global_symbol", "main").with_attr("tirx.noalias", True)})


def _module_hash(func: tirx.PrimFunc) -> str:
    return str(structural_hash(_module(func)) & (2**64 - 1))


class _Spaces:
    """The spaces of functions, each made when first asked for."""

    def __init__(self, functions: Mapping[str, tirx.PrimFunc], target: Target, threads: int) -> None:
        self.functions = functions
        self.own = functools.cache(lambda key: design_space(functions[key], target, threads))
        self.generated = functools.cache(lambda key: GeneratedSpace(functions[key], target, threads))

    def of(self, key: str, template: Any, version: Any) -> Template:
        """The space of a function that has this template and version. Raises _Skip if there is none."""
        space: Template = self.generated(key) if template == GeneratedSpace.template else self.own(key)
        if (space.template, space.version) != (template, version):
            raise _Skip(f"of template {template} version {version}, here {space.template} version {space.version}")
        return space


class _Traces:
    """Candidates as traces, checked to give the same code again."""

    def __init__(self, functions: Mapping[str, tirx.PrimFunc], target: Target, threads: int) -> None:
        self._spaces = _Spaces(functions, target, threads)
        self._found: dict[str, tuple[tvm.IRModule, Any]] = {}

    def of(self, candidate: Candidate, cache_state: str, toolchain: str) -> tuple[tvm.IRModule, Any]:
        """The workload's module and the trace of a candidate. Raises _Skip."""
        place = f"{candidate.key} {cache_state} {toolchain}"
        if place not in self._found:
            self._found[place] = self._trace(candidate, cache_state, toolchain)
        return self._found[place]

    def _trace(self, candidate: Candidate, cache_state: str, toolchain: str) -> tuple[tvm.IRModule, Any]:
        key = candidate.workload.hash
        if key not in self._spaces.functions:
            raise _Skip(_NOT_HERE)
        space = self._spaces.of(key, candidate.template, candidate.template_version)
        try:
            if space.repacking(candidate.config):
                raise _Skip("of an algorithm that takes its weights in another form")
            sch = space.schedule(candidate.config)
            note = {
                "workload": key,
                "template": space.template,
                "version": space.version,
                "config": dict(candidate.config),
                "cache_state": cache_state,
                "toolchain": toolchain,
            }
            sch.annotate(sch.get_sblock("root"), _ANNOTATION, codec.json_text(note))
            module = _module(self._spaces.functions[key])
            again = s_tir.Schedule(module)
            sch.trace.apply_to_schedule(again, remove_postproc=False)
        except (s_tir.ScheduleError, InputError, ValueError) as error:
            raise _Skip("of a configuration that cannot be scheduled") from error
        if not structural_equal(again.mod["main"].body, sch.mod["main"].body):
            raise _Skip(f"template {space.template} does not leave a complete trace")
        return module, sch.trace


class _Reader:
    """Rows of the record file as records."""

    def __init__(
        self,
        functions: Mapping[str, tirx.PrimFunc],
        target: Target,
        threads: int,
        cache_state: str,
        path: Path,
    ) -> None:
        self._spaces = _Spaces(functions, target, threads)
        self._target = target
        self._threads = threads
        self._cache_state = cache_state
        self._time_s = path.stat().st_mtime
        self._workload = functools.cache(lambda key: Workload(key, str(ir.save_json(functions[key]))))

    def records(self, keys: Sequence[str], row: _Row) -> list[MeasureRecord]:
        """The records of a row for the workloads that are its module: one, unless only calumma tells them apart.

        Raises _Skip.
        """
        note = _annotation(row.instructions)
        if note is not None:
            keys = [key for key in keys if key == note["workload"]]
        if not keys:
            raise _Skip(_NOT_HERE)
        self._check_target(row.target)
        if row.run_s is None or not all(0 < seconds < _FAILED_S for seconds in row.run_s):
            raise _Skip("failed when it was measured")
        return [self._record(key, row, row.run_s, note) for key in keys]

    def _record(
        self, key: str, row: _Row, latencies_s: tuple[float, ...], note: Mapping[str, Any] | None
    ) -> MeasureRecord:
        if note is not None:
            space, config = self._annotated(key, note)
        else:
            space, config = self._sketched(key, row)
        return MeasureRecord(
            candidate=Candidate(self._workload(key), space.template, space.version, config),
            result=MeasureResult(Status.OK, latencies_s),
            hardware=self._target.hardware,
            threads=self._threads,
            cache_state=note["cache_state"] if note else self._cache_state,
            toolchain=note["toolchain"] if note else tvm_compat.toolchain(),
            strategy=STRATEGY,
            time_s=self._time_s,
        )

    def _check_target(self, target: Mapping[str, Any]) -> None:
        found = tuple(target.get(name) for name in ("kind", "mcpu", "num-cores"))
        if found != ("llvm", self._target.mcpu, self._threads):
            described = " ".join(str(part)[:40] for part in found if part is not None)
            raise _Skip(f"for another target ({described} cores)")

    def _annotated(self, key: str, note: Mapping[str, Any]) -> tuple[Template, dict[str, Any]]:
        space = self._spaces.of(key, note["template"], note["version"])
        try:
            indices = space.encode(note["config"])
        except InputError as error:
            raise _Skip("of a configuration this version does not know") from error
        if not space.valid(indices[None, :])[0]:
            raise _Skip("of a configuration this version does not allow")
        return space, space.decode(indices)

    def _sketched(self, key: str, row: _Row) -> tuple[Template, dict[str, Any]]:
        if any(instruction[2] == [_LAYOUT_REWRITE] for instruction in row.instructions):
            raise _Skip("measured with operands repacked outside the function")
        kinds = [instruction[0] for instruction in row.instructions]
        end = kinds.index("EnterPostproc") if "EnterPostproc" in kinds else len(kinds)
        space = self._spaces.generated(key)
        decisions = {position: decision for position, decision in row.decisions.items() if position < end}
        config = space.config_of(row.instructions[:end], decisions)
        if config is None:
            raise _Skip("by a trace that is none of the sketches generated here")
        return space, config


@dataclass(frozen=True)
class _Row:
    """A tuning record whose form was checked; its contents are still somebody's claim."""

    instructions: list[list[Any]]
    decisions: dict[int, Any]
    run_s: tuple[float, ...] | None
    target: dict[str, Any]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines of a file with their numbers from 0. Raises InputError."""
    try:
        with path.open("rb") as stream:
            yield from enumerate(stream)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): give the folder of a MetaSchedule database") from error


def _parsed(line: bytes) -> Any:
    try:
        return codec.parse_json("the line", line.decode())
    except UnicodeDecodeError as error:
        raise MalformedError(f"not UTF-8: {error}") from error


def _workload_hash(line: bytes) -> str:
    match _parsed(line):
        case [str() as name, str()]:
            return name
    raise MalformedError("expected [hash, module], both text")


def _record_row(line: bytes, n_workloads: int) -> tuple[int, _Row]:
    match _parsed(line):
        case [int() as index, [[list() as instructions, list() as decisions], seconds, dict() as target, _]]:
            pass
        case _:
            raise MalformedError("expected [workload, [[instructions, decisions], seconds, target, arguments]]")
    if type(index) is not int or not 0 <= index < n_workloads:
        raise MalformedError(f"workload {index}, the workload file has {n_workloads}")
    for instruction in instructions:
        match instruction:
            case [str(), list(), list(), list()]:
                continue
        raise MalformedError("an instruction is not [name, inputs, attributes, outputs]")
    by_position: dict[int, Any] = {}
    for entry in decisions:
        match entry:
            case [int() as position, decision] if 0 <= position < len(instructions) and position not in by_position:
                by_position[position] = decision
            case _:
                raise MalformedError("a decision is not [instruction, value], each instruction at most once")
    return index, _Row(instructions, by_position, _seconds(seconds), target)


def _seconds(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    if type(value) is not list or not value or not all(type(second) in (int, float) for second in value):
        raise MalformedError("the seconds are not a list of numbers")
    seconds = tuple(map(float, value))
    if not all(math.isfinite(second) for second in seconds):
        raise MalformedError("the seconds are not finite")
    return seconds


def _annotation(instructions: list[list[Any]]) -> dict[str, Any] | None:
    """What `export_database` noted in a trace; None where it did not write the trace. Raises MalformedError."""
    for name, inputs, attributes, _ in instructions:
        if name == "Annotate" and attributes == [_ANNOTATION]:
            match inputs:
                case [_, str() as quoted]:
                    note = codec.parse_json("the annotation", quoted[1:-1])
                case _:
                    raise MalformedError(f"annotation {_ANNOTATION} holds no text")
            match note:
                case {
                    "workload": str(),
                    "template": str(),
                    "version": int(),
                    "config": dict() as config,
                    "cache_state": "cold" | "warm" | "hot",
                    "toolchain": str(),
                } if all(type(value) in (int, str, bool) for value in config.values()):
                    return dict(note)
            raise MalformedError(
                f"annotation {_ANNOTATION} does not name workload, template, version, config and conditions"
            )
    return None
