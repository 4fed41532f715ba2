"""Tuning a whole model: budget, allocation of trials to tasks, verification of winners, progress events."""

from calumma.tuner.events import (
    Event,
    FinalCheckStarted,
    Listener,
    ModelsCompared,
    NewBest,
    PhaseStarted,
    RoundStarted,
    SessionFinished,
    SessionProgress,
    SessionStarted,
    TaskFinished,
    TaskProgress,
    TrialsDone,
    WinnersMeasured,
    to_json,
)
from calumma.tuner.result import ModelContest, TaskResult, TuningResult
from calumma.tuner.settings import TuningSettings
from calumma.tuner.trial_runner import DEFAULT, PRIOR, REMEASURED

__all__ = [
    "DEFAULT",
    "PRIOR",
    "REMEASURED",
    "Event",
    "FinalCheckStarted",
    "Listener",
    "ModelContest",
    "ModelsCompared",
    "NewBest",
    "PhaseStarted",
    "RoundStarted",
    "SessionFinished",
    "SessionProgress",
    "SessionStarted",
    "TaskFinished",
    "TaskProgress",
    "TaskResult",
    "TrialsDone",
    "TuningResult",
    "TuningSettings",
    "WinnersMeasured",
    "to_json",
]
