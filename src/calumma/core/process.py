"""What this process has used: seconds since it was started, memory at its peak."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

_START_FIELD = 19
"""Of /proc/PID/stat behind the name in parentheses: ticks from the boot of the system to the start of the process."""


def age_s() -> float:
    """Seconds since this process was started, to a tick of the system (10 ms); includes the start of Python."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(fields[_START_FIELD]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)


def peak_memory_bytes() -> int:
    """The most main memory that this process, or one of its children that has ended, had at any time.

    Pages that are shared, as those of libraries and of mapped files, count too.
    """
    kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return kilobytes << 10
