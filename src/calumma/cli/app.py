"""The group of commands and `--version`."""

from __future__ import annotations

import importlib.metadata

import click

from calumma._version import __version__
from calumma.cli.bench import bench
from calumma.cli.collect import collect
from calumma.cli.compile import compile_model
from calumma.cli.learn import learn
from calumma.cli.options import debug_option
from calumma.cli.prior import prior
from calumma.cli.records import records
from calumma.cli.report import report
from calumma.cli.run import run
from calumma.cli.tasks import tasks
from calumma.cli.tune import tune

_EPILOG = """\b
Examples:
  calumma tune resnet50.onnx -o resnet50.so --budget 60s
  calumma run resnet50.so --profile
  calumma bench resnet50.onnx --artifact resnet50.so --against onnxruntime
"""


class _InOrder(click.Group):
    """Lists commands in the order in which a user needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(version_text())
        ctx.exit()


def version_text() -> str:
    """Versions of calumma, TVM and its FFI, the CPU and the default number of threads; TVM itself is not loaded."""
    from calumma.core import hardware
    from calumma.tvm_compat import PINS

    def installed(package: str) -> str:
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        return found if found == PINS[package] else f"{found} (calumma needs {PINS[package]})"

    cores = hardware.physical_cores()
    return "\n".join(
        [
            f"calumma  {__version__}",
            f"TVM      {installed('apache-tvm')}",
            f"tvm-ffi  {installed('apache-tvm-ffi')}",
            f"CPU      {hardware.cpu_info().get('model name', 'unknown')}",
            f"threads  {cores} (physical cores)",
        ]
    )


@click.group(
    cls=_InOrder,
    no_args_is_help=False,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print versions and exit.",
)
@debug_option
def app() -> None:
    """Compile and auto-tune neural networks: a model file goes in, a fast module comes out."""


for command in (compile_model, tune, run, bench, tasks, records, collect, learn, prior, report):
    app.add_command(command)
