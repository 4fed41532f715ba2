"""Lengths of time as people write them."""

from __future__ import annotations

import math
import re

from calumma.core.errors import InputError

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
