"""Parameter types and the options that commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from calumma.cli.output import STDOUT, Output
from calumma.core.contraction import FLOAT32
from calumma.core.durations import seconds
from calumma.core.errors import InputError
from calumma.core.outputs import FileKind, begins_with, check_output, special_file

Shapes = dict[str, tuple[int, ...]]
Command = TypeVar("Command", bound=Callable[..., Any])


class Duration(click.ParamType):
    """A length of time in seconds: 60, 60s, 1.5m, 1h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            found = seconds(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
        if found == 0:
            self.fail(f"{value!r} is a length of time of zero: give more", param, ctx)
        return found


class Shape(click.ParamType):
    """The shape of one input: NAME=1,3,224,224."""

    name = "name=dims"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        name, _, dims = str(value).rpartition("=")
        if not name or not re.fullmatch(r"\d+(,\d+)*", dims) or 0 in (shape := tuple(map(int, dims.split(",")))):
            self.fail(f"{value!r} is not an input's shape: write NAME=1,3,224,224, every dimension above 0", param, ctx)
        return name, shape


class OutputPath(click.ParamType):
    """A file to be written, refused at once (not after a minute of work) when its folder cannot take it, or when
    something else than a file of this kind would be lost."""

    name = "file"

    def __init__(self, kind: FileKind | None = None, stream: bool = False) -> None:
        """Describe the file.

        Args:
            kind: what is written; only such a file is replaced. Without it, what is replaced is checked elsewhere.
            stream: whether it is written from its beginning to its end, so that a device or a pipe will do.
        """
        self._kind = kind
        self._stream = stream

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if path.is_dir():
            self.fail(f"{value} is a directory: name a file", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"the directory {path.parent} does not exist: create it first", param, ctx)
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            self.fail(f"{value} cannot be written: check its permissions", param, ctx)
        if self._kind is not None and not (self._stream and special_file(path)):
            check_output(path, self._kind)
        return path


JSON_LINES = FileKind("the JSON of a command", begins_with(b'{"event":', b'{"time_s":'))
EXPORTED_RECORDS = FileKind("an export of records", begins_with(b'{"calumma_records":'))
HTML_PAGE = FileKind("an HTML page", begins_with(b"<!doctype html"))

EXISTING_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


def _shapes(ctx: click.Context, param: click.Parameter, pairs: Sequence[tuple[str, tuple[int, ...]]]) -> Shapes | None:
    return dict(pairs) or None


def _json_target(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None and value != STDOUT:
        value = str(OutputPath(JSON_LINES, stream=True).convert(value, param, ctx))
    ctx.ensure_object(Output).json = value


def _set(field: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        # The group and the command both have the option: either one sets it.
        setattr(ctx.ensure_object(Output), field, getattr(ctx.obj, field) or value)

    return callback


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    envvar="CALUMMA_DEBUG",
    callback=_set("debug"),
    help="Show the traceback of an error.",
)


def output_options(command: Command) -> Command:
    """Add --json, --quiet and --debug; their values are in the `Output` that the command receives."""
    for option in (
        debug_option,
        click.option(
            "--quiet",
            "-q",
            is_flag=True,
            expose_value=False,
            callback=_set("quiet"),
            help="Print nothing but errors (and what --json asks for).",
        ),
        click.option(
            "--json",
            metavar="[FILE|-]",
            is_flag=False,
            flag_value=STDOUT,
            expose_value=False,
            callback=_json_target,
            help="Write JSON to FILE, or to stdout in place of the text: one object per line, the result last. "
            "Without FILE, give it last.",
        ),
    ):
        command = option(command)
    return command


def model_options(command: Command) -> Command:
    """Add MODEL and what decides how it is imported and for what: --shape, --threads, --mcpu, --precision."""
    for option in (
        click.option(
            "--precision",
            metavar="NAME",
            default=FLOAT32.name,
            show_default=True,
            help="What convolutions and matrix products read: fp32, bf16, or what an extension registers. "
            "bf16 needs a CPU with AVX512_BF16.",
        ),
        click.option("--mcpu", metavar="CPU", help="CPU to generate code for, by LLVM's name. [this machine's]"),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            metavar="N",
            help="Threads to compile for and run with. [all physical cores]",
        ),
        click.option(
            "--shape",
            "shapes",
            type=Shape(),
            multiple=True,
            callback=_shapes,
            metavar="NAME=1,3,224,224",
            help="Fix the shape of an input; once for every input with open dimensions.",
        ),
        click.argument("model", type=EXISTING_FILE),
    ):
        command = option(command)
    return command


def seed_option(of: str) -> Callable[[Command], Command]:
    """Add --seed, of what `of` names."""
    return click.option(
        "--seed", type=click.IntRange(min=0), metavar="N", default=0, show_default=True, help=f"Seed of {of}."
    )


def artifact_option(command: Command) -> Command:
    """Add -o/--output, the artifact to write."""
    return click.option(
        "--output",
        "-o",
        type=OutputPath(),
        metavar="OUT.so",
        help="The artifact to write. [MODEL's name with .so, here]",
    )(command)


force_option = click.option(
    "--force", is_flag=True, help="Replace OUT.so even if it is not an artifact of calumma; the model never is."
)


def artifact_path(output: Path | None, model: Path) -> Path:
    """The artifact to write: as asked, or named after the model in the working directory."""
    return output or Path(model.with_suffix(".so").name)


database_option = click.option(
    "--db",
    "database",
    metavar="URL|FILE",
    help="Database of records. [the environment's CALUMMA_DB, else a file in your data directory]",
)

tolerance_option = click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="1e-6",
    help="Largest relative error that an algorithm may have by itself; excludes Winograd convolutions at need. "
    "[all algorithms]",
)

cache_option = click.option(
    "--cache/--no-cache",
    default=True,
    help="Whether artifacts of the same model, options and records are kept, and used. [--cache]",
)

prior_option = click.option(
    "--prior",
    default="auto",
    metavar="NAME|none",
    help="Prior to ask, by name or file (see calumma prior list); none for none. [the newest that fits this machine]",
)
