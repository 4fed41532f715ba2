"""What `import calumma` shows: names, their types for type checkers, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import pytest

import calumma
from calumma.core.values import Budget

HEAVY = {"tvm", "tvm_ffi", "torch", "onnx", "numpy", "scipy", "xgboost", "sqlalchemy", "rich", "click"}


@pytest.mark.processes
def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, calumma; loaded = {HEAVY} & sys.modules.keys(); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.processes
def test_naming_functions_and_loading_an_artifact_need_no_compiler() -> None:
    heavy = HEAVY - {"numpy"}
    code = f"import sys, calumma; calumma.load, calumma.tune, calumma.InferenceSession, calumma.Budget\n\
loaded = {heavy} & sys.modules.keys(); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_name_is_there_and_no_other() -> None:
    assert dir(calumma) == sorted(calumma.__all__)
    for name in calumma.__all__:
        assert getattr(calumma, name) is not None
        assert name == "__version__" or getattr(calumma, name).__doc__, name
    assert calumma.events.SessionStarted is not None
    with pytest.raises(AttributeError, match="module 'calumma' has no attribute 'tunes'"):
        calumma.tunes  # noqa: B018


def test_type_checkers_see_the_annotations() -> None:
    assert (files("calumma") / "py.typed").is_file()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, "budget: seconds is 0.0; give more than 0"),
        (-1.5, "-1.5 is not a length of time"),
        (float("nan"), "nan is not a length of time"),
        (float("inf"), "inf is not a length of time"),
        ("soon", "'soon' is not a length of time"),
        (Budget(trials=0), "budget: trials is 0; give more than 0"),
        (Budget(seconds=float("nan")), "budget: seconds is nan; give more than 0"),
    ],
)
def test_budget_that_makes_no_sense(budget: object, message: str) -> None:
    with pytest.raises(calumma.InputError, match=message):
        calumma.tune("model.onnx", budget=budget)  # type: ignore[arg-type]
