"""`make demo`: tune the light ResNet-50 for a minute and race the result against ONNX Runtime."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks import suite


def main() -> int:
    """Run the demo; returns the exit status of the first step that failed, or 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="60s", help="time for tuning (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("results/resnet50.so"), help="the artifact (default: %(default)s)"
    )
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    model, artifact = str(suite.path("resnet50")), str(options.output)
    # Ctrl-C is for the step that runs: it saves its best and ends with 130.
    signal.signal(signal.SIGINT, lambda *_: None)
    status = _calumma("tune", model, "--output", artifact, "--budget", options.budget) or _calumma(
        "bench", model, "--artifact", artifact, "--against", "onnxruntime"
    )
    if not status:
        print(f"\nartifact: {options.output.resolve()}")
    return status


def _calumma(*arguments: str) -> int:
    """Run one command in a process of its own, as a user would."""
    print(f"\n$ calumma {' '.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, "-m", "calumma", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
