"""The first steps of a new user, in a fresh virtual environment: seconds from nothing to a tuned model, step by step.

The wheel is built, installed with the exact versions of constraints.txt, and used from an empty folder: compile, tune,
report, load in another process, `torch.compile`. Every step is a process of its own, timed from its start to its end. A
step that fails ends the benchmark with its output and exit status 1.

Installing is bound by the network, or by pip's cache where it holds the packages. `--quick` leaves torch
out, which takes longer than all the rest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import output, suite
from calumma.core.errors import InputError

_LOAD = """
import sys
import numpy as np
import calumma

model = calumma.load(sys.argv[1])
outputs = model.run({spec.name: np.zeros(spec.shape, spec.dtype) for spec in model.inputs})
assert all(np.isfinite(output).all() for output in outputs)
assert "torch" not in sys.modules
"""
_TORCH_COMPILE = """
import warnings
import torch
from calumma.integrations.torch_compile import FallbackWarning

warnings.simplefilter("error", FallbackWarning)  # what falls back to eager agrees with eager
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 32, 3, stride=2, padding=1), torch.nn.BatchNorm2d(32), torch.nn.ReLU(),
    torch.nn.Conv2d(32, 64, 3, padding=1), torch.nn.ReLU(),
    torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 10),
).eval()
x = torch.randn(1, 3, 64, 64)
with torch.no_grad():
    torch.testing.assert_close(torch.compile(model, backend="calumma")(x), model(x), rtol=1e-3, atol=1e-3)
"""


@dataclass(frozen=True)
class Row:
    """One step."""

    step: str
    seconds: float


@dataclass(frozen=True)
class _Step:
    name: str
    """Also the metric's, with `_s` behind it."""
    command: list[str]
    produces: Path | None = None
    """A file that has to be there afterwards."""


class StepFailed(Exception):
    """A step ended with another status than 0, or without what it should have written; the message is its output."""


def steps(folder: Path, model: Path, budget: str, threads: int, *, with_torch: bool) -> list[_Step]:
    """The steps after building the wheel, which lies in `folder`/dist."""
    python = folder / "venv" / "bin" / "python"
    calumma = str(python.with_name("calumma"))
    (wheel,) = (folder / "dist").glob("*.whl")
    untuned, tuned, report = (folder / name for name in ("untuned.so", "tuned.so", "report.html"))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--constraint", str(output.ROOT / "constraints.txt")]
    common = ["--threads", str(threads)]
    torch_steps = [
        _Step("install_torch", [*pip, f"{wheel}[torch]"]),
        _Step("torch_compile", [str(python), "-c", _TORCH_COMPILE]),
    ]
    return [
        _Step("environment", [sys.executable, "-m", "venv", str(folder / "venv")], python),
        _Step("install", [*pip, f"{wheel}[report]"], Path(calumma)),
        _Step("compile", [calumma, "compile", str(model), "-o", str(untuned), *common], untuned),
        _Step("tune", [calumma, "tune", str(model), "-o", str(tuned), "--budget", budget, *common], tuned),
        _Step("report", [calumma, "report", "-o", str(report)], report),
        _Step("load", [str(python), "-c", _LOAD, str(tuned)]),
        *(torch_steps if with_torch else []),
    ]


def run(
    folder: Path, model: Path, budget: str, threads: int, *, with_torch: bool, progress: Callable[[Row], None]
) -> list[Row]:
    """Build the wheel and do every step in `folder`; returns what each took.

    Raises:
        StepFailed: with the step's name and output.
    """
    work = folder / "work"
    work.mkdir()
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")},
        "CALUMMA_DB": str(folder / "records.sqlite"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache" / "pip")),
    }
    rows: list[Row] = []

    def do(step: _Step) -> None:
        rows.append(Row(step.name, _timed(step, work, environment)))
        progress(rows[-1])

    do(_Step("wheel", [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), str(output.ROOT)]))
    for step in steps(folder, model, budget, threads, with_torch=with_torch):
        do(step)
    return rows


def _timed(step: _Step, folder: Path, environment: Mapping[str, str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(
        step.command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise StepFailed(f"step {step.name} ended with status {done.returncode}:\n{done.stdout.strip()}")
    if step.produces is not None and not (step.produces.exists() and step.produces.stat().st_size):
        raise StepFailed(f"step {step.name} has not written {step.produces.name}:\n{done.stdout.strip()}")
    return seconds


def table(rows: list[Row]) -> str:
    """The table to print."""
    return output.markdown(["step", "seconds"], [[row.step, f"{row.seconds:.2f}"] for row in rows])


def metrics(rows: list[Row]) -> dict[str, float]:
    """Seconds by step, and of all of them."""
    seconds = {row.step: row.seconds for row in rows}
    return {**{f"{name}_s": value for name, value in seconds.items()}, "total_s": sum(seconds.values())}


def main() -> int:
    """Run the benchmark; returns 1 if a step failed."""
    parser = output.parser(__doc__.splitlines()[0])
    parser.add_argument("--model", choices=suite.names(), help="of the suite (resnet50, or squeezenet with --quick)")
    parser.add_argument("--budget", help="time for tuning (30s, or 5s with --quick)")
    options = parser.parse_args()
    name = options.model or (suite.QUICK[0] if options.quick else "resnet50")
    budget = options.budget or ("5s" if options.quick else "30s")
    try:
        model = suite.path(name)
        with tempfile.TemporaryDirectory(prefix="calumma-first-steps-") as scratch:
            rows = run(
                Path(scratch),
                model,
                budget,
                options.threads,
                with_torch=not options.quick,
                progress=lambda row: print(f"{row.step}: {row.seconds:.2f} s", flush=True),
            )
    except (StepFailed, InputError) as error:
        print(error, file=sys.stderr)
        return error.exit_status if isinstance(error, InputError) else 1
    print(f"\n{table(rows)}\n\n{name}, {budget} of tuning, {options.threads} threads")
    if options.json:
        rows_json = [asdict(row) for row in rows]
        surroundings = output.environment(options.threads)
        output.write(options.json, metrics(rows), rows_json, surroundings, model=name, budget=budget)
    return 0


if __name__ == "__main__":
    sys.exit(main())
