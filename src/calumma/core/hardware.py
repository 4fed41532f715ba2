"""What the host CPU is: read from the system, once per process."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import platformdirs

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_DEFAULT_CACHES = {"L1": 32 << 10, "L2": 512 << 10, "L3": 8 << 20}


@functools.cache
def cpu_info() -> dict[str, str]:
    """Return the first processor's entry of /proc/cpuinfo, or an empty dict where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in lines}


def cpu_flags() -> frozenset[str]:
    """Names of what the first processor can do, as /proc/cpuinfo has them; some kernels call the line "Features"."""
    info = cpu_info()
    return frozenset((info.get("flags") or info.get("Features", "")).split())


@functools.cache
def physical_cores() -> int:
    """Physical cores this process may use (hyperthreads counted once)."""
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


def limits_file(name: str) -> Path:
    """Where limits that were measured (`tasks.roofline`) are kept, under a name that says of what."""
    return platformdirs.user_cache_path("calumma", appauthor=False) / "roofline" / f"{name}.json"


@functools.cache
def memory_bytes() -> int:
    """Return the machine's main memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def cache_bytes() -> tuple[int, int, int]:
    """Sizes of the L1 data, L2 and L3 caches in bytes; common values where the system does not tell."""
    sizes = dict(_DEFAULT_CACHES)
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    for entry in sorted(_CACHES.glob("index*")):
        try:
            kind = (entry / "type").read_text().strip()
            level = "L" + (entry / "level").read_text().strip()
            text = (entry / "size").read_text().strip()
        except OSError:
            continue
        if kind != "Instruction" and level in sizes:
            sizes[level] = int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)
    return sizes["L1"], sizes["L2"], sizes["L3"]
