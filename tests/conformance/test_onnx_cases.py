"""A third of ONNX's own conformance cases: each is right, or refused by name for a reason that is known."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = 6
EVERY = 3

REFUSED = {
    "sequences or optional values": {
        "ConcatFromSequence",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SplitToSequence",
    },
    "strings or files": {
        "ImageDecoder",
        "RegexFullMatch",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "TfIdfVectorizer",
    },
    "random numbers": {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    },
}
"""Why an operator cannot be compiled -> the operators."""


@pytest.mark.parametrize("part", range(PARTS))
def test_a_third_of_the_cases(part: int, tmp_path: Path) -> None:
    """The parent of the cases' processes is one without threads, which this one is not."""
    answer = tmp_path / "answer.json"
    command = [sys.executable, "-m", "benchmarks.conformance", "--jobs", "1", "--json", str(answer)]
    chosen = ["--every", str(EVERY), "--part", f"{part}/{PARTS}"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *chosen], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert answer.exists(), done.stderr[-2000:]
    rows = json.loads(answer.read_text())["rows"]
    assert len(rows) > 50
    known = set().union(*REFUSED.values())
    for row in rows:
        what = f"{row['name']}: {row['verdict']}: {row['note']}"
        assert row["verdict"] in ("right", "refused"), what
        if row["verdict"] == "refused":
            found = re.fullmatch(r"the model: node \S.*: operator (\w+)\b.+; .+", row["note"])
            assert found is not None, what
            assert found[1] in known, what
