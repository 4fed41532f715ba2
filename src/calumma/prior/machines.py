"""The CPUs that measurements are from, as numbers that a predictor can learn from.

    cpu.*    log2 of what tells one CPU from another: lanes, vector registers, bytes of L1, L2 and L3, physical cores,
             flops per cycle of one core, clock, and for each level the bytes that all threads read per flop of their
             peak

Code for an older or a baseline CPU counts as a CPU of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from calumma import tvm_compat
from calumma.core.values import Hardware
from calumma.database.codec import MalformedError, restore_hardware
from calumma.target import Target
from calumma.tasks.roofline import MachineLimits, machine_limits, typical_limits

CPU = "cpu."
"""Prefix of the columns that describe the CPU."""


@dataclass(frozen=True)
class Machine:
    """A CPU with what it can do at best."""

    hardware: Hardware
    limits: Mapping[int, MachineLimits]
    """Threads of measurements -> what so many can do."""

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.hardware.cpu_model} ({self.hardware.mcpu}, {self.hardware.fingerprint})"

    def joined(self, other: Machine) -> Machine:
        """The same CPU with the numbers of threads of both; this one's limits where both have some."""
        return Machine(self.hardware, dict(sorted({**other.limits, **self.limits}.items())))


def place(hardware: Hardware, threads: int) -> str:
    """What tells apart the conditions under which a prior is trusted: a CPU and a number of threads."""
    return f"{hardware.fingerprint}-{threads}"


def machine_of(hardware: Hardware, threads: Collection[int]) -> Machine:
    """Describe a CPU: probed where it is this one, else as CPUs of its kind typically are."""
    target = target_of(hardware)
    if tvm_compat.target_for(hardware.mcpu).hardware.fingerprint == hardware.fingerprint:
        return Machine(hardware, {count: machine_limits(target, count) for count in sorted(threads)})
    reason = f"records of {hardware.cpu_model} ({hardware.mcpu}) from another machine do not say what that can do"
    return Machine(hardware, {count: typical_limits(target, count, reason) for count in sorted(threads)})


@functools.lru_cache(maxsize=64)
def target_of(hardware: Hardware) -> Target:
    """The CPU that records were measured on. Raises InputError as `tvm_compat.target_of` does."""
    return tvm_compat.target_of(hardware)


def columns(target: Target, limits: MachineLimits) -> dict[str, float]:
    """The columns of a CPU, by name."""
    quantities = {
        "lanes": target.lanes,
        "registers": target.registers,
        "l1_bytes": target.l1_bytes,
        "l2_bytes": target.l2_bytes,
        "l3_bytes": target.l3_bytes,
        "cores": target.cores,
        "flops_per_cycle": limits.flops_per_cycle,
        "clock_hz": limits.clock_hz,
        "l2_bytes_per_flop": limits.l2_bandwidth / limits.peak_flops,
        "l3_bytes_per_flop": limits.l3_bandwidth / limits.peak_flops,
        "dram_bytes_per_flop": limits.dram_bandwidth / limits.peak_flops,
    }
    return {f"{CPU}{name}": math.log2(max(value, 2.0**-40)) for name, value in quantities.items()}


# -- files ----------------------------------------------------------------------------------------


def plain(machine: Machine) -> dict[str, Any]:
    """A machine as JSON has it."""
    return {"hardware": asdict(machine.hardware), "limits": [asdict(limits) for limits in machine.limits.values()]}


def restore(values: Mapping[str, Any]) -> Machine:
    """Build a machine from unchecked values. Raises MalformedError, KeyError or TypeError."""
    limits = {}
    for entry in values["limits"]:
        found = MachineLimits(**{field.name: entry[field.name] for field in fields(MachineLimits)})
        numbers = (found.peak_flops, found.dram_bandwidth, found.l3_bandwidth, found.l2_bandwidth)
        if not all(
            math.isfinite(number) and number > 0 for number in (*numbers, found.flops_per_cycle, found.clock_hz)
        ):
            raise MalformedError(f"limits of {found.threads} threads are no positive numbers")
        limits[int(found.threads)] = found
    return Machine(restore_hardware(values["hardware"]), limits)
