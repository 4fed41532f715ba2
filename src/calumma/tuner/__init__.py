"""Tuning a whole model: budget, allocation of trials to tasks, verification of winners, progress events."""

from calumma.tuner.events import (
    Event,
    FinalCheckStarted,
    NewBest,
    RoundStarted,
    SessionFinished,
    SessionProgress,
    SessionStarted,
    TaskFinished,
    TaskProgress,
    TrialsDone,
)
from calumma.tuner.result import TaskResult, TuningResult
from calumma.tuner.session import REMEASURED, TuningSession
from calumma.tuner.settings import TuningSettings

__all__ = [
    "REMEASURED",
    "Event",
    "FinalCheckStarted",
    "NewBest",
    "RoundStarted",
    "SessionFinished",
    "SessionProgress",
    "SessionStarted",
    "TaskFinished",
    "TaskProgress",
    "TaskResult",
    "TrialsDone",
    "TuningResult",
    "TuningSession",
    "TuningSettings",
]
