"""What is handed back of a session and stored with it, and what a stored one says later."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from calumma._version import __version__
from calumma.core.contraction import FLOAT32
from calumma.core.keys import indices_of
from calumma.core.values import Session
from calumma.tuner.final_check import FinalDecision
from calumma.tuner.result import ModelContest, TaskResult, TuningResult
from calumma.tuner.state import TaskState


def task_result(state: TaskState, decision: FinalDecision) -> TaskResult:
    """What was decided for a task, with what a result says of it."""
    return TaskResult(
        workload=state.hash,
        name=state.task.name,
        weight=state.task.weight,
        template=state.space.template,
        template_version=state.space.version,
        config=state.space.decode(indices_of(decision.key)),
        tuned=decision.key != state.default,
        checked=decision.checked,
        latency_s=decision.latency_s,
        default_latency_s=decision.default_latency_s,
        bound_s=state.bound_s,
        trials=state.trials,
        failures=dict(state.failures),
        last_failure=state.last_failure,
    )


def by_default(state: TaskState, task: TaskResult) -> TaskResult:
    """The same task with its default, for a model that is faster without tuning."""
    config = state.space.decode(indices_of(state.default))
    return replace(task, config=config, tuned=False, latency_s=task.default_latency_s)


def summary(result: TuningResult, states: Sequence[TaskState]) -> dict[str, Any]:
    """The result as the JSON object kept with the session, with what a report says about its tasks and this machine."""
    return {
        "trials": result.trials,
        "seconds": result.seconds,
        "phases_s": dict(result.phases_s),
        "interrupted": result.interrupted,
        "latency_s": result.latency_s,
        "default_latency_s": result.default_latency_s,
        "contest": None if result.contest is None else asdict(result.contest),
        "environment": {
            "calumma": __version__,
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "tasks": [
            {
                "workload": task.workload,
                "name": task.name,
                "weight": task.weight,
                "template": task.template,
                "template_version": task.template_version,
                "arguments": [[list(shape), dtype] for shape, dtype in state.task.arguments],
                "flops": state.task.flops,
                "size_bytes": state.task.size_bytes,
                "config": dict(task.config),
                "default_config": state.space.decode(indices_of(state.default)),
                "tuned": task.tuned,
                "checked": task.checked,
                "latency_s": task.latency_s,
                "default_latency_s": task.default_latency_s,
                "bound_s": task.bound_s,
                "trials": task.trials,
                "failures": {str(status): n for status, n in task.failures.items()},
                "finished": state.finished,
            }
            for task, state in zip(result.tasks, states, strict=True)
        ],
    }


def tuned_lost(sessions: Iterable[Session], model_hash: str, options: Mapping[str, Any]) -> bool:
    """Whether a tuned model lost against the default one when it was last tuned in the same way.

    Args:
        sessions: oldest first, as a store returns them.
        model_hash: of the model.
        options: what a session must have been given too; float32 where a session says nothing of the precision.
    """
    for session in reversed(list(sessions)):
        contest = (session.summary or {}).get("contest")
        known = {"precision": FLOAT32.name, **session.options}
        same = all(known.get(name) == value for name, value in options.items())
        if session.model_hash == model_hash and same and contest is not None:
            return not ModelContest(**contest).tuned_wins
    return False
