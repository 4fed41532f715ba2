"""Calumma's commands, run as a user would run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calumma.core.errors import InputError

_TIMEOUT_S = 7200
NO_CACHE = {"CALUMMA_CACHE_MB": "0"}
"""What makes a command compile, whatever was compiled before."""


def calumma(
    command: str,
    *arguments: object,
    needs: Sequence[str] = (),
    source: Path | None = None,
    environment: Mapping[str, str] = NO_CACHE,
) -> dict[str, Any]:
    """Run a command in a process of its own; returns its result as JSON.

    Args:
        command, arguments: what follows `calumma` on the command line.
        needs: entries that the result must have.
        source: the folder that holds the package to run; None: the one that this process would import.
        environment: variables for the command alone.

    Raises:
        InputError: it fails or takes too long; the text holds its last line.
    """
    with tempfile.TemporaryDirectory(prefix="calumma-bench-") as scratch:
        report = Path(scratch) / "report.json"
        package = {} if source is None else {"PYTHONPATH": str(source)}
        line = [sys.executable, "-m", "calumma", command, *map(str, arguments), "--quiet", "--json", str(report)]
        try:
            done = subprocess.run(
                line,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=_TIMEOUT_S,
                env={**os.environ, **package, **environment},
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"calumma {command}: not done within {_TIMEOUT_S} s") from None
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"calumma {command}: exit status {done.returncode}: {last}")
        result: dict[str, Any] = json.loads(report.read_text().splitlines()[-1])
    missing = [key for key in needs if result.get(key) is None]
    if missing:
        raise InputError(f"calumma {command}: its JSON has no {missing[0]!r}")
    return result
