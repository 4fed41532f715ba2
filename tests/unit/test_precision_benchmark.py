"""What `benchmarks.precision` makes of a race."""

from __future__ import annotations

import pytest

from benchmarks import precision
from calumma.peers.race import RaceResult, Row, Spread


def _row(label: str, latency_s: float, difference: float) -> Row:
    return Row(label, latency_s=Spread.of([latency_s]), rounds_s=(latency_s, latency_s), difference=difference)


def _found(difference: float, rivals: float) -> precision.Row:
    rows = (
        _row("calumma-bf16", 2e-3, difference),
        _row("calumma-fp32", 3e-3, 1e-6),
        _row("openvino-bf16", 4e-3, rivals),
        _row("openvino", 6e-3, 1e-6),
    )
    result = RaceResult(threads=2, rows=rows, reference="onnxruntime", output_change=0.5, output_size=1.0)
    return {"model": "net", "error": "", **precision._findings(result)}


def test_speedups_are_theirs_over_ours():
    metrics = precision.metrics([_found(5e-3, 6e-3), {"model": "lost", "error": "calumma compile: exit status 2"}])
    assert metrics == pytest.approx(
        {
            "bf16_speedup_vs_openvino_net": 2.0,
            "bf16_speedup_vs_fp32_net": 1.5,
            "bf16_ms_net": 2.0,
            "bf16_difference_net": 5e-3,
            "openvino_bf16_ms_net": 4.0,
            "openvino_bf16_difference_net": 6e-3,
            "models": 2,
            "models_failed": 1,
            "models_wrong": 0,
        }
    )


@pytest.mark.parametrize(
    ("difference", "rivals", "wrong"), [(1.9e-2, 1e-3, False), (5e-2, 3e-2, False), (7e-2, 3e-2, True)]
)
def test_outputs_are_wrong_where_bfloat16_does_not_explain_them(difference, rivals, wrong):
    assert precision.is_wrong(_found(difference, rivals)) is wrong
