"""Measuring candidates: `LocalRunner` on this machine, `ReplayRunner` from records; each a `core.protocols.Runner`."""

from calumma.measure.local import LocalRunner
from calumma.measure.replay import ReplayRunner

__all__ = ["LocalRunner", "ReplayRunner"]
