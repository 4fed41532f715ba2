"""Records as JSON lines, for moving them between stores and for reading them with other tools.

Each line is an object with one key, the kind of what it holds. A workload or hardware comes once, before the first
record that names it; files may be concatenated.

    {"calumma_records": 1}                                     version of this format, first line
    {"workload": {"hash": ..., "text": ...}}
    {"hardware": {"fingerprint": ..., "cpu_model": ..., ...}}
    {"record": {"workload": HASH, "hardware": FINGERPRINT, "cores": ..., "config": {...}, "status": "ok", ...}}
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from calumma.core.errors import InputError
from calumma.core.protocols import Store
from calumma.core.values import Hardware, MeasureRecord, Workload
from calumma.database import codec
from calumma.database.codec import MalformedError

FORMAT_VERSION = 1


def write_jsonl(records: Iterable[MeasureRecord], stream: IO[str]) -> int:
    """Write records to a text stream; returns how many."""
    written: set[tuple[Any, ...]] = set()

    def write(kind: str, value: Any) -> None:
        stream.write(codec.json_text({kind: value}) + "\n")

    def write_once(kind: str, key: tuple[Any, ...], value: Any) -> None:
        if (kind, *key) not in written:
            written.add((kind, *key))
            write(kind, value)

    write("calumma_records", FORMAT_VERSION)
    count = 0
    for record in records:
        values = codec.record_fields(record)
        write_once("workload", (values["workload"],), asdict(record.candidate.workload))
        machine = {"fingerprint": values["hardware"], **asdict(record.hardware)}
        write_once("hardware", (values["hardware"], values["cores"]), machine)
        write("record", values)
        count += 1
    return count


def export_jsonl(store: Store, file: Path | str) -> int:
    """Write all records of `store` to `file`, replaced as a whole; returns how many.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(file)
    partial = path.with_name(f"{path.name}.{token_hex(4)}.partial")
    records = store.records()
    try:
        with partial.open("x", encoding="utf-8") as stream:
            count = write_jsonl(records, stream)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error}): choose another file") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def import_jsonl(store: Store, file: Path | str) -> int:
    """Add the records of `file` that `store` does not have; returns how many. On an error none is added.

    Raises:
        InputError: the file cannot be read, or a line breaks the format; the line is named.
    """
    path = Path(file)
    reader = _Reader()
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    reader.read(line)
                except MalformedError as error:
                    raise InputError(
                        f"{path}, line {number}: {error}; nothing was imported, correct the line or leave it out"
                    ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): give a file that export wrote") from error
    if not reader.versioned:
        raise InputError(f"{path} holds no records: give a file that export wrote")
    known = {_identity(record) for record in store.records(workloads=reader.workloads)}
    new = {identity: record for record in reader.records if (identity := _identity(record)) not in known}
    store.append(list(new.values()))
    return len(new)


class _Reader:
    """What was read so far; fed line by line."""

    def __init__(self) -> None:
        self.versioned = False
        self.workloads: dict[str, Workload] = {}
        self.hardware: dict[tuple[str, int], Hardware] = {}
        self.records: list[MeasureRecord] = []

    def read(self, line: bytes) -> None:
        """Take in one line. Raises MalformedError."""
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise MalformedError(f"not UTF-8: {error}") from error
        value = codec.parse_json("the line", text)
        if type(value) is not dict or len(value) != 1:
            raise MalformedError('expected one object with one key, such as {"record": ...}')
        ((kind, body),) = value.items()
        if kind == "calumma_records":
            if type(body) is not int or not 1 <= body <= FORMAT_VERSION:
                raise MalformedError(f"format version {body!r}, this calumma reads up to {FORMAT_VERSION}")
            self.versioned = True
            return
        if not self.versioned:
            raise MalformedError(f'expected {{"calumma_records": {FORMAT_VERSION}}} first')
        if type(body) is not dict:
            raise MalformedError(f"the {kind} is not an object")
        match kind:
            case "workload":
                self._read_workload(body)
            case "hardware":
                self._read_hardware(body)
            case "record":
                self._read_record(body)
            case _:
                raise MalformedError(f"unknown kind {kind!r}, expected workload, hardware or record")

    def _read_workload(self, body: dict[str, Any]) -> None:
        workload = codec.restore_workload(body.get("hash"), body.get("text"))
        self.workloads.setdefault(workload.hash, workload)

    def _read_hardware(self, body: dict[str, Any]) -> None:
        hardware = codec.restore_hardware(body)
        if hardware.fingerprint != body.get("fingerprint"):
            raise MalformedError(
                f"fingerprint is {body.get('fingerprint')!r}, its contents give {hardware.fingerprint!r}"
            )
        self.hardware[hardware.fingerprint, hardware.cores] = hardware

    def _read_record(self, body: dict[str, Any]) -> None:
        wrong = codec.RECORD_FIELDS ^ body.keys()
        if wrong:
            raise MalformedError(f"the record lacks, or does not know, {', '.join(sorted(wrong))}")
        try:
            workload = self.workloads[body["workload"]]
            hardware = self.hardware[body["hardware"], body["cores"]]
        except (KeyError, TypeError) as error:
            raise MalformedError("no line before this one holds the record's workload or hardware") from error
        self.records.append(codec.restore_record(body, workload, hardware))


def _identity(record: MeasureRecord) -> str:
    return codec.json_text(codec.record_fields(record))
