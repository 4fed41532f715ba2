"""`calumma run`: an artifact on given or random inputs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calumma.cli.options import EXISTING_FILE, output_options, seed_option
from calumma.cli.output import Output
from calumma.core.contraction import FLOAT32
from calumma.core.errors import InputError
from calumma.core.outputs import FileKind, begins_with, check_output

if TYPE_CHECKING:
    import numpy as np

    from calumma.artifact import Artifact, TensorSpec

    Arrays = dict[str, np.ndarray]

_WARMUP = 3
_ARRAY = FileKind("an array that NumPy saved", begins_with(b"\x93numpy"))


@click.command(short_help="Run an artifact: latency, outputs, time per kernel.")
@click.argument("artifact", type=EXISTING_FILE)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="[NAME=]x.npy",
    help="An input, by name or in the model's order; once per input. [random, from --seed]",
)
@click.option(
    "--output",
    "-o",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Save every output as DIR/NAME.npy.",
)
@click.option("--repeat", type=click.IntRange(min=1), metavar="N", default=20, show_default=True, help="Timed runs.")
@click.option("--profile", is_flag=True, help="Time every kernel on its own.")
@seed_option("random inputs")
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Threads to run with. [what it was compiled for]"
)
@output_options
@click.pass_obj
def run(
    out: Output,
    artifact: Path,
    inputs: tuple[str, ...],
    directory: Path | None,
    repeat: int,
    profile: bool,
    seed: int,
    threads: int | None,
) -> None:
    """Run ARTIFACT and print its latency and a summary of its outputs."""
    import numpy as np

    from calumma import api

    loaded = api.load(artifact, threads=threads)
    files = [] if directory is None else _output_files(directory, loaded, [artifact, *map(_path_of, inputs)])
    feeds = load_inputs(loaded.inputs, inputs, seed)
    for _ in range(_WARMUP):
        outputs = loaded.run(feeds)
    latencies_s = []
    for _ in range(repeat):
        start = time.perf_counter()
        outputs = loaded.run(feeds)
        latencies_s.append(time.perf_counter() - start)
    low, middle, high = (float(q) for q in np.percentile(latencies_s, [25, 50, 75]))
    summary = [_summary(spec.name, array) for spec, array in zip(loaded.outputs, outputs, strict=True)]
    precision = loaded.metadata.get("precision", FLOAT32.name)  # older artifacts are float32 without saying so
    document: dict[str, Any] = {
        "artifact": artifact,
        "precision": precision,
        "latency_s": {"median": middle, "lower": low, "upper": high},
        "latencies_s": latencies_s,
        "outputs": summary,
    }
    out.line(
        f"latency {middle * 1e3:.3f} ms (quartiles {low * 1e3:.3f} - {high * 1e3:.3f}, {repeat} runs), {precision}\n"
    )
    out.table(list(summary[0]), [tuple(row.values()) for row in summary])
    if profile:
        document |= _profile(out, loaded, feeds, repeat)
    if directory is not None:
        _save(directory, files, outputs)
        out.line(f"\noutputs saved in {directory}")
    out.document(document)


def load_inputs(specs: Sequence[TensorSpec], arguments: Sequence[str], seed: int) -> Arrays:
    """Name -> array for every input of an artifact: from .npy files, or drawn from the seed when none is given.

    Raises:
        InputError: a file that is no .npy file, a name the model does not have, too few or too many files.
    """
    names = [spec.name for spec in specs]
    if not arguments:
        from calumma.peers import InputSpec, random_inputs

        return random_inputs([InputSpec(spec.name, spec.shape, spec.dtype) for spec in specs], seed)
    feeds: Arrays = {}
    unnamed = []
    for argument in arguments:
        name, _, path = argument.rpartition("=")
        if name and name not in names:
            raise InputError(f"--input {argument}: the model has no input {name!r}; its inputs are {', '.join(names)}")
        if name:
            feeds[name] = _load_array(path)
        else:
            unnamed.append(argument)
    missing = [name for name in names if name not in feeds]
    if len(unnamed) != len(missing):
        raise InputError(
            f"--input: {len(arguments)} given, the model has {len(names)} inputs ({', '.join(names)}): "
            "give every one, or none for random values"
        )
    feeds.update({name: _load_array(path) for name, path in zip(missing, unnamed, strict=True)})
    return feeds


def _load_array(path: str) -> np.ndarray:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"--input {path}: {error.strerror}: name a file that numpy.save wrote") from error
    except (ValueError, EOFError) as error:  # what NumPy says then is to unpickle the file
        raise InputError(
            f"--input {path}: not a readable .npy file of numbers: write one array with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"--input {path}: an archive of several arrays: write each with numpy.save to a file of its own"
        )
    return array


def _summary(name: str, array: np.ndarray) -> dict[str, Any]:
    numbers = array.astype(float)
    has_values = numbers.size > 0
    return {
        "output": name,
        "shape": "x".join(map(str, array.shape)) or "scalar",
        "dtype": str(array.dtype),
        "min": float(numbers.min()) if has_values else None,
        "max": float(numbers.max()) if has_values else None,
        "mean": float(numbers.mean()) if has_values else None,
    }


def _profile(out: Output, artifact: Artifact, feeds: Arrays, repeat: int) -> dict[str, Any]:
    """Print time per kernel, beside the work the artifact's metadata knows of it; returns it as JSON values."""
    profile = artifact.profile(feeds, repeat)
    tasks = {task["name"]: task for task in artifact.metadata.get("tasks", ())}
    total_s = sum(kernel.seconds for kernel in profile.kernels)
    peak = artifact.metadata.get("peak_flops")
    rows = []
    for kernel in sorted(profile.kernels, key=lambda kernel: kernel.seconds, reverse=True):
        call_s = kernel.seconds / kernel.calls
        task = tasks.get(kernel.kernel, {})
        flops, size_bytes, bound_s = (task.get(key) or None for key in ("flops", "bytes", "bound_s"))
        rows.append(
            {
                "kernel": kernel.kernel,
                "output": kernel.output,
                "calls": kernel.calls,
                "ms": kernel.seconds * 1e3,
                "share": kernel.seconds / total_s,
                "gflop_per_s": flops and flops / call_s / 1e9,
                "gb_per_s": size_bytes and size_bytes / call_s / 1e9,
                "roofline": bound_s and bound_s / call_s,
                "limit": _limit(flops, bound_s, peak),
            }
        )
    out.line()
    out.table(
        ["kernel", "calls", "ms", "share", "GFLOP/s", "GB/s", "roofline", "limit"],
        [
            (
                row["kernel"],
                row["calls"],
                row["ms"],
                f"{row['share']:.1%}",
                row["gflop_per_s"],
                row["gb_per_s"],
                None if row["roofline"] is None else f"{row['roofline']:.0%}",
                row["limit"],
            )
            for row in rows
        ],
    )
    together_s = profile.kernels_s + profile.copies_s
    out.line(
        f"\nkernels {profile.kernels_s * 1e3:.3f} ms + copies of inputs and outputs {profile.copies_s * 1e3:.3f} ms = "
        f"{together_s / profile.latency_s:.1%} of the model's {profile.latency_s * 1e3:.3f} ms, measured in turns"
    )
    return {
        "kernels": rows,
        "profile": {
            "kernels_s": profile.kernels_s,
            "copies_s": profile.copies_s,
            "latency_s": profile.latency_s,
            "agreement": together_s / profile.latency_s,
            "peak_gflop_per_s": peak and peak / 1e9,
        },
    }


def _limit(flops: float | None, bound_s: float | None, peak_flops: float | None) -> str | None:
    """What the roofline bound of a kernel comes from: arithmetic or memory traffic."""
    if not bound_s or not peak_flops:
        return None
    return "compute" if (flops or 0.0) / peak_flops >= 0.999 * bound_s else "memory"


def _output_files(directory: Path, artifact: Artifact, inputs: Sequence[Path]) -> list[Path]:
    """The file of every output, in order; none of them may be one that is read, or anything but an array.

    Raises:
        InputError: something else would be lost.
    """
    # An ONNX name may hold anything, a file's name may not.
    names = ["".join(c if c.isalnum() or c in "._-" else "_" for c in spec.name) for spec in artifact.outputs]
    files = [directory / f"{name}.npy" for name in names]
    if directory.is_dir():
        for file in files:
            check_output(file, _ARRAY, inputs=inputs)
    return files


def _path_of(argument: str) -> Path:
    """The file in [NAME=]FILE."""
    return Path(argument.rpartition("=")[2])


def _save(directory: Path, files: Sequence[Path], outputs: Sequence[np.ndarray]) -> None:
    import numpy as np

    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, array in zip(files, outputs, strict=True):
            np.save(file, array)
    except OSError as error:
        raise InputError(f"--output {directory}: cannot be written ({error}): give another directory") from error
