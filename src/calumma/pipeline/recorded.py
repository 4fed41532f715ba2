"""The schedules that records of earlier measurements speak for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from calumma.core.errors import InputError
from calumma.core.keys import Key, key_of
from calumma.core.values import KnobValue, MeasureRecord, Status
from calumma.pipeline.preparation import PreparedModel

_CLEAR_GAIN = 0.97
"""A recorded schedule replaces the default only if its latency is at most this share of the recorded default's."""


def recorded_configs(model: PreparedModel, records: Iterable[MeasureRecord]) -> dict[str, Mapping[str, KnobValue]]:
    """The best verified schedules among records of this model's workloads: workload hash -> configuration.

    Records of another hardware, thread count, toolchain or template version must have been left out by the caller
    or are skipped here where they would not fit the space. A schedule is used only if its latency is clearly below the
    default's, where that was recorded too. A record from before some knob existed says nothing of today's default, and
    is used only where that was recorded.
    """
    Place = tuple[str, Key]  # workload hash, configuration
    latencies_s: dict[Place, list[float]] = {}
    verified: set[Place] = set()
    wrong: set[Place] = set()
    configs: dict[Place, Mapping[str, KnobValue]] = {}
    older: set[Place] = set()
    default_known: set[str] = set()
    for record in records:
        candidate = record.candidate
        space = model.spaces.get(candidate.workload.hash)
        if space is None or (candidate.template, candidate.template_version) != (space.template, space.version):
            continue
        try:
            indices = space.encode(candidate.config)
        except InputError:
            continue
        if not space.valid(indices[None, :])[0]:
            continue
        place = (candidate.workload.hash, key_of(indices))
        configs[place] = space.decode(indices)
        if not configs[place].keys() <= candidate.config.keys():
            older.add(place)
        if configs[place] == model.defaults[place[0]]:
            default_known.add(place[0])
        if record.result.status is Status.OK:
            latencies_s.setdefault(place, []).append(record.result.latency_s)
            if "verify" in record.result.phases_s:
                verified.add(place)
        elif record.result.status is Status.WRONG_OUTPUT:
            wrong.add(place)
    best: dict[str, tuple[float, Mapping[str, KnobValue]]] = {}
    default_s: dict[str, float] = {}
    for place, measured_s in latencies_s.items():
        key, latency = place[0], min(measured_s)
        if configs[place] == model.defaults[key]:
            default_s[key] = latency
        elif place in older and key not in default_known:
            continue
        elif place in verified - wrong and latency < best.get(key, (float("inf"),))[0]:
            best[key] = (latency, configs[place])
    return {
        key: config
        for key, (latency, config) in best.items()
        if latency <= _CLEAR_GAIN * default_s.get(key, float("inf"))
    }
