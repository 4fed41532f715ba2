"""The identity of a configuration within its design space: its indices as bytes."""

from __future__ import annotations

import numpy as np

from calumma.core.protocols import Indices

Key = bytes


def key_of(indices: Indices) -> Key:
    """The key of one configuration (D,)."""
    return np.ascontiguousarray(indices, dtype=np.int32).tobytes()


def keys_of(indices: Indices) -> list[Key]:
    """The keys of configurations (N, D)."""
    return [row.tobytes() for row in np.ascontiguousarray(indices, dtype=np.int32)]


def indices_of(key: Key) -> Indices:
    """The configuration (D,) of a key."""
    return np.frombuffer(key, dtype=np.int32)
