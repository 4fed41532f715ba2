"""Lengths of time, and budgets made of them, as people write them."""

from __future__ import annotations

import math
import re

from calumma.core.errors import InputError
from calumma.core.values import Budget

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds(value: str | float) -> float:
    """Read a length of time: a number of seconds, or text such as "60", "60s", "1.5m", "1h".

    Raises:
        InputError: it is none, below zero, or infinite.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(\w*)", str(value).strip())
    if not match or match[2] not in _UNITS or not math.isfinite(found := float(match[1]) * _UNITS[match[2]]):
        raise InputError(f"{value!r} is not a length of time: write 60, 60s, 2m or 1h")
    return found


def budget(value: Budget | float | str) -> Budget:
    """Read a budget: limits as they are, or a length of time as in `seconds`.

    Raises:
        InputError: a limit is 0, below it, or infinite.
    """
    limits = value if isinstance(value, Budget) else Budget(seconds=seconds(value))
    for name, limit in (("seconds", limits.seconds), ("trials", limits.trials)):
        if limit is not None and not 0 < limit < math.inf:
            raise InputError(f"budget: {name} is {limit!r}; give more than 0, or a Budget without that limit")
    return limits
