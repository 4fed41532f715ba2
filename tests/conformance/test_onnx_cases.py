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
    "computes with sequences": {
        "ConcatFromSequence",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SplitToSequence",
    },
    "computes with optional values": {"Optional", "OptionalGetElement", "OptionalHasElement"},
    "computes with strings or files": {
        "ImageDecoder",
        "RegexFullMatch",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "TfIdfVectorizer",
    },
    "draws random numbers": {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    },
    "of domain ai.onnx.preview is not supported": {"FlexAttention"},
    "of domain ai.onnx.preview.training is not supported": {"Adagrad", "Adam", "Gradient", "Momentum"},
    # The shape of a result follows from such a value, and the model does not declare it.
    "computed at run time": {
        "ConstantOfShape",
        "DFT",
        "Expand",
        "MaxUnpool",
        "Pad",
        "Range",
        "ReduceSum",
        "Resize",
    },
    "of which there is no limit that is known": {"Loop"},
    "drops random elements": {"Dropout"},
    "of floats it wants fmod=1": {"Mod"},  # as ONNX Runtime says
}
"""What a refusal says -> the operators that may be refused for that."""


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
    for row in rows:
        what = f"{row['name']}: {row['verdict']}: {row['note']}"
        assert row["verdict"] in ("right", "refused"), what
        if row["verdict"] == "refused":
            found = re.fullmatch(r"the model: node \S+ operator (\w+)\b.+; .+", row["note"])
            assert found is not None, what
            assert any(found[1] in operators for reason, operators in REFUSED.items() if reason in row["note"]), what
