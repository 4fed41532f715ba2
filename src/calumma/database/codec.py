"""What a stored record looks like, and the check it passes on its way in and on its way out.

Stored contents are data from somewhere else: nothing in them is believed before its type and range are checked.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from secrets import token_hex
from typing import Any

from calumma.core.errors import InternalError
from calumma.core.values import Candidate, Hardware, MeasureRecord, MeasureResult, Session, Status, Workload

_TEXTS = ("template", "reason", "cache_state", "toolchain", "session", "strategy")
_INTEGERS = ("template_version", "threads", "seed")
_STATUSES = {status.value: status for status in Status}
_HARDWARE_TYPES = {field.name: str if field.name in ("cpu_model", "mcpu") else int for field in fields(Hardware)}
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder()
_KNOB_TYPES = (int, str, bool)
_MIN_INTEGER, _MAX_INTEGER = -(1 << 63), (1 << 63) - 1

RECORD_FIELDS = frozenset(
    ("workload", "hardware", "cores", "config", "status", "latencies_s", "phases_s", "time_s", *_TEXTS, *_INTEGERS)
)


class MalformedError(ValueError):
    """A stored or imported value that breaks the schema; the text says which one and how."""


def record_fields(record: MeasureRecord) -> dict[str, Any]:
    """Return a record as a flat dict of JSON values; workload and hardware by their keys."""
    candidate, result = record.candidate, record.result
    return {
        "workload": candidate.workload.hash,
        "template": candidate.template,
        "template_version": candidate.template_version,
        "config": dict(candidate.config),
        "status": str(result.status),
        # A reason quotes compilers and crashed workers: bytes that are no text must not cost the record.
        "reason": result.reason.encode("utf-8", "backslashreplace").decode(),
        "latencies_s": [float(value) for value in result.latencies_s],
        "phases_s": {str(name): float(value) for name, value in result.phases_s.items()},
        "hardware": fingerprint(record.hardware),
        "cores": record.hardware.cores,
        "threads": record.threads,
        "cache_state": record.cache_state,
        "toolchain": record.toolchain,
        "session": record.session,
        "strategy": record.strategy,
        "seed": record.seed,
        "time_s": float(record.time_s),
    }


def restore_record(values: Mapping[str, Any], workload: Workload, hardware: Hardware) -> MeasureRecord:
    """Build the record that `record_fields` described.

    Args:
        values: all of RECORD_FIELDS, unchecked.
        workload: the one of that hash, checked.
        hardware: the one of that fingerprint and number of cores, checked.

    Raises:
        MalformedError: a value has the wrong type or an impossible value.
    """
    # One hundred thousand records pass here when a history is read: the common case must stay cheap.
    for name in _TEXTS:
        value = values[name]
        if type(value) is not str or not value.isascii():
            _check_text(name, value)
    for name in _INTEGERS:
        value = values[name]
        if type(value) is not int or not _MIN_INTEGER <= value <= _MAX_INTEGER:
            _check_integer(name, value)
    config = values["config"]
    if type(config) is not dict:
        raise MalformedError(f"config is {_shown(config)}, expected an object")
    for name, value in config.items():
        if type(name) is not str or type(value) not in _KNOB_TYPES:
            raise MalformedError(
                f"knob {_shown(name)} of config is {_shown(value)}, expected an integer, text or boolean"
            )
    status = _STATUSES.get(values["status"]) if type(values["status"]) is str else None
    if status is None:
        raise MalformedError(f"status is {_shown(values['status'])}, expected one of {', '.join(_STATUSES)}")
    latencies_s, phases_s = values["latencies_s"], values["phases_s"]
    if type(latencies_s) is not list or not _all_seconds(latencies_s) or 0 in latencies_s:
        raise MalformedError(f"latencies_s is {_shown(latencies_s)}, expected a list of positive seconds")
    if bool(latencies_s) != (status is Status.OK):
        raise MalformedError(
            f"status is {status} with {len(latencies_s)} latencies, expected latencies exactly when ok"
        )
    if type(phases_s) is not dict or not _all_seconds(phases_s.values()):
        raise MalformedError(f"phases_s is {_shown(phases_s)}, expected seconds by phase")
    if not _is_number(values["time_s"]):
        raise MalformedError(f"time_s is {_shown(values['time_s'])}, expected seconds since the epoch")
    return MeasureRecord(
        candidate=Candidate(workload, values["template"], values["template_version"], config),
        result=MeasureResult(status, tuple(map(float, latencies_s)), values["reason"], phases_s),
        hardware=hardware,
        threads=values["threads"],
        cache_state=values["cache_state"],
        toolchain=values["toolchain"],
        session=values["session"],
        strategy=values["strategy"],
        seed=values["seed"],
        time_s=float(values["time_s"]),
    )


def checked(record: MeasureRecord) -> MeasureRecord:
    """Return the record as it will come back from a store, sharing no mutable value with it.

    Raises:
        InternalError: it could not be read back, so it must not be stored.
    """
    workload = record.candidate.workload
    try:
        restore_workload(workload.hash, workload.text)
        _check_hardware(record.hardware)
        return restore_record(record_fields(record), workload, record.hardware)
    except (TypeError, ValueError) as error:
        raise InternalError(
            f"a record of workload {workload.hash}, template {record.candidate.template}, cannot be stored: {error}"
        ) from error


@functools.lru_cache
def fingerprint(hardware: Hardware) -> str:
    """`hardware.fingerprint`, computed once per hardware."""
    return hardware.fingerprint


@functools.lru_cache
def _check_hardware(hardware: Hardware) -> None:
    restore_hardware(asdict(hardware))


def restore_workload(hash_: Any, text: Any) -> Workload:
    """Build a workload from unchecked values. Raises MalformedError."""
    _check_text("hash", hash_)
    _check_text("text", text)
    if not hash_:
        raise MalformedError("hash is empty, expected the structural hash of the workload")
    return Workload(hash_, text)


def restore_hardware(values: Mapping[str, Any]) -> Hardware:
    """Build a hardware description from unchecked values by field name. Raises MalformedError."""
    for name, kind in _HARDWARE_TYPES.items():
        if name not in values:
            raise MalformedError(f"{name} is missing")
        (_check_text if kind is str else _check_integer)(name, values[name])
    return Hardware(**{name: values[name] for name in _HARDWARE_TYPES})


def restore_session(values: Mapping[str, Any]) -> Session:
    """Build a session from unchecked values by field name, its objects as JSON text. Raises MalformedError."""
    for name in ("id", "model", "model_hash"):
        _check_text(name, values[name])
    finished_s, summary = values["finished_s"], values["summary"]
    if not _is_number(values["started_s"]) or not (finished_s is None or _is_number(finished_s)):
        raise MalformedError(
            f"started_s and finished_s are {_shown((values['started_s'], finished_s))}, expected seconds"
        )
    return Session(
        id=values["id"],
        model=values["model"],
        model_hash=values["model_hash"],
        started_s=values["started_s"],
        options=_object("options", values["options"]),
        finished_s=finished_s,
        summary=None if summary is None else _object("summary", summary),
    )


def new_session(model: str, model_hash: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored values of a session that starts now, as `restore_session` takes them."""
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    values = {
        "id": f"{stamp}-{token_hex(4)}",
        "model": model,
        "model_hash": model_hash,
        "started_s": now,
        "options": object_text("options of a session", options),
        "finished_s": None,
        "summary": None,
    }
    try:
        restore_session(values)
    except MalformedError as error:
        raise InternalError(f"a session of model {model!r} cannot be stored: {error}") from error
    return values


def object_text(what: str, value: Mapping[str, Any]) -> str:
    """Return the canonical JSON of an object. Raises InternalError if `value` is not one."""
    try:
        return json_text(dict(value))
    except (TypeError, ValueError) as error:
        raise InternalError(f"{what} cannot be stored, expected JSON values: {error}") from error


def json_text(value: Any) -> str:
    """Return the canonical JSON of a value. Raises TypeError or ValueError for what JSON cannot hold, NaN included."""
    return _ENCODER.encode(value)


def parse_json(name: str, text: Any) -> Any:
    """Parse JSON text. Raises MalformedError."""
    if type(text) is not str:
        raise MalformedError(f"{name} is {_shown(text)}, expected JSON text")
    text = text.strip()
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{name} is not JSON: {error}") from error
    if end != len(text):
        raise MalformedError(f"{name} is not JSON: more follows after character {end}")
    return value


def _object(name: str, text: Any) -> dict[str, Any]:
    value = parse_json(name, text)
    if type(value) is not dict:
        raise MalformedError(f"{name} is {_shown(value)}, expected an object")
    return value


def _check_text(name: str, value: Any) -> None:
    if type(value) is not str:
        raise MalformedError(f"{name} is {_shown(value)}, expected text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise MalformedError(f"{name} is {_shown(value)}, expected text that UTF-8 can hold") from error


def _check_integer(name: str, value: Any) -> None:
    if type(value) is not int or not _MIN_INTEGER <= value <= _MAX_INTEGER:
        raise MalformedError(f"{name} is {_shown(value)}, expected an integer of 64 bits")


def _all_seconds(values: Iterable[Any]) -> bool:
    return all(type(value) in (int, float) and 0 <= value < math.inf for value in values)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
