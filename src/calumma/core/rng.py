"""Random numbers: every component gets its own generator, derived from one seed and the names of who asks."""

from __future__ import annotations

import hashlib

import numpy as np

from calumma.core.errors import InputError


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return the generator of `names` under `seed`.

    Different names give independent streams; the same seed and names give the same stream in every process.

    Raises:
        InputError: a negative seed.
    """
    check_seed(seed)
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest[:16], dtype=np.uint32).tolist()])


def check_seed(seed: int) -> None:
    """Raise InputError for a seed that no generator takes."""
    if seed < 0:
        raise InputError(f"seed={seed}: give a whole number of 0 or more")
