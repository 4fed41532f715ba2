"""The benchmark of compile times: its models are what their names say, and its metrics those of the full sizes."""

from __future__ import annotations

import onnx
import pytest

from benchmarks import compile_time
from benchmarks.compile_time import CASES, Row


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_a_model_of_its_size(name: str) -> None:
    model = CASES[name].write(24)
    onnx.checker.check_model(model, full_check=True)
    counts = [len(model.graph.node), *(len(node.input) for node in model.graph.node)]
    counts += [len(node.output) for node in model.graph.node]
    assert any(24 <= count <= 26 for count in counts), counts


def test_metrics_are_of_full_sizes_and_growth_is_that_of_the_phases() -> None:
    rows = [
        Row(case, size, 1, seconds, {"build": build})
        for case, size, seconds, build in (("a", 5, 2, 1), ("a", 10, 3, 2), ("b", 5, 2, 1), ("b", 10, 5, 4))
    ]
    assert compile_time.metrics(rows) == {"a_s": 3, "b_s": 5, "worst_s": 5, "worst_growth": 4}
