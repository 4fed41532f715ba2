"""`calumma bench`: an artifact beside the runtimes a user could take instead."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from calumma.cli.options import EXISTING_FILE, Shapes, model_options, output_options, seed_option
from calumma.cli.output import Output


def _names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


@click.command(short_help="Compare latency and outputs with other runtimes.")
@model_options
@click.option("--artifact", type=EXISTING_FILE, metavar="OUT.so", help="The artifact to race. [compiled now, untuned]")
@click.option(
    "--against",
    default="onnxruntime",
    show_default=True,
    callback=_names,
    metavar="NAME,NAME",
    help="Runtimes to compare with: onnxruntime, openvino, openvino-bf16, torch, litert, ncnn, mnn, iree, or all of "
    "those in float32. One that cannot run shows n/a and why.",
)
@click.option("--torch-source", metavar="MODULE:FUNCTION", help="Function that returns MODEL as a torch.nn.Module.")
@click.option(
    "--rounds", type=click.IntRange(min=1), metavar="N", default=10, show_default=True, help="Turns of every runtime."
)
@seed_option("the random inputs")
@output_options
@click.pass_obj
def bench(
    out: Output,
    model: Path,
    artifact: Path | None,
    against: tuple[str, ...],
    torch_source: str | None,
    rounds: int,
    seed: int,
    shapes: Shapes | None,
    threads: int | None,
    mcpu: str | None,
    precision: str,
) -> None:
    """Time an artifact of MODEL beside other runtimes, and compare their outputs.

    Every runtime has a process of its own and the same threads and inputs; they take turns, one at a time.
    A ratio below 1 means that calumma is faster.
    """
    from calumma import peers

    peers.peers(against, model, torch_source, mcpu)  # a wrong name is known before anything is compiled
    with tempfile.TemporaryDirectory(prefix="calumma-") as scratch:
        if artifact is None:
            from calumma import api

            out.line(f"compiling {model.name} without tuning; --artifact OUT.so races a tuned one")
            artifact = Path(scratch) / "untuned.so"
            api.compile(model, output=artifact, shapes=shapes, threads=threads, mcpu=mcpu, precision=precision)
        result = peers.compare(
            model,
            artifact,
            against,
            threads=threads,
            shapes=shapes,
            torch_source=torch_source,
            mcpu=mcpu,
            rounds=rounds,
            seed=seed,
            progress=out.status,
        )
    out.line(result.table())
    out.document({"model": model, **result.as_dict()})
