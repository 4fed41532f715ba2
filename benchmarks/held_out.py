"""Workloads that a prior to be shipped must not see: all of the suite's networks.

    python -m benchmarks.held_out     writes benchmarks/held_out.json anew

The networks are held out whole: a workload that one of them shares with other networks is held out too. The hashes are
those of 8 and of 16 lanes (AVX2 and AVX-512), of which the shipped prior has data.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import suite
from calumma.core.files import replacing

FILE = Path(__file__).resolve().parent / "held_out.json"
MCPUS = ("x86-64-v3", "x86-64-v4")
_PUBLISHED = {"whisper_encoder": "whisper_tiny"}
"""What the table of published networks calls a network of the suite, where the names differ."""


def workloads(name: str) -> list[str]:
    """Hashes of a suite model's workloads, in order."""
    from calumma import tvm_compat
    from calumma.pipeline.extraction import extract_tasks

    targets = map(tvm_compat.target_for, MCPUS)
    return sorted(
        {task.workload.hash for target in targets for task in extract_tasks(suite.path(name), target).parts.tasks}
    )


def known() -> dict[str, list[str]]:
    """Name of the network -> hashes, as the file has them."""
    found: dict[str, list[str]] = json.loads(FILE.read_text())
    return found


def published() -> list[str]:
    """Names under which the table of published networks has the suite's: what `calumma collect --exclude` takes."""
    from calumma.prior.networks import networks

    return [found for name in suite.names() if (found := _PUBLISHED.get(name, name)) in networks()]


def main() -> int:
    """Write the file; returns the exit status."""
    found = {name: workloads(name) for name in suite.names()}
    with replacing(FILE) as out:
        out.write((json.dumps(found, indent=1) + "\n").encode())
    print(f"{sum(map(len, found.values()))} workloads of {len(found)} networks in {FILE.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
