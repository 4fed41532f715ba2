"""The example of a strategy from outside of the package: found as an extension, conformant, and good for tuning."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import calumma
from calumma.core import extensions
from calumma.database import MemoryStore
from calumma.search import strategy_names
from calumma.testing.strategy_suite import StrategyConformance
from tests.onnx_models import Model

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "strategy"
MODULE, NAME = "hill_climbing", "hill-climbing"


@pytest.fixture(scope="module", autouse=True)
def extension() -> Iterator[None]:
    """The example named in the environment, and forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch, extensions.temporary_registrations():
        patch.syspath_prepend(EXAMPLE)
        patch.setenv(extensions.VARIABLE, MODULE)
        assert NAME in strategy_names()
        yield
    del sys.modules[MODULE]


class TestHillClimbing(StrategyConformance):
    @pytest.fixture
    def strategy(self) -> str:
        return NAME


def test_a_model_is_tuned_with_it() -> None:
    model = Model()
    x = model.op("Relu", model.conv(model.input(1, 3, 12, 12), (3, 16), 3))
    x = model.op("Flatten", model.op("GlobalAveragePool", x))
    store = MemoryStore()
    budget = calumma.Budget(trials=12)
    result = calumma.tune(
        model.bytes(model.linear(x, (16, 10))), strategy=NAME, budget=budget, threads=2, database=store, prior="none"
    )
    assert sum(task.trials for task in result.tasks) == 12
    (session,) = store.sessions()
    assert session.options["strategy"] == NAME
    assert NAME in {record.strategy for record in store.records()}
