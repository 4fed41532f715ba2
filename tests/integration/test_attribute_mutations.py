"""Every attribute of every ONNX operator, changed: a right value or a line that refuses the node, nothing else."""

from __future__ import annotations

from calumma import tvm_compat
from tests import attribute_mutants

EACH = 2
"""Mutants of every attribute, of about 25."""
TOGETHER = 40
"""Mutants in one compilation."""


def test_changed_attributes_are_computed_or_refused() -> None:
    tvm_compat.load()
    mutants = attribute_mutants.sample(attribute_mutants.all_mutants(), EACH)
    judged = [
        verdict
        for start in range(0, len(mutants), TOGETHER)
        for verdict in attribute_mutants.verdicts(mutants[start : start + TOGETHER])
    ]
    flaws = [f"{mutant.name}: {verdict}: {note}" for mutant, verdict, note in judged if verdict in ("wrong", "fault")]
    assert not flaws
    assert sum(verdict == "right" for _, verdict, _ in judged) > len(mutants) // 3
