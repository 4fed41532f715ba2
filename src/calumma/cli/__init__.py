"""The command line. Every command is thin: it parses, calls `calumma.api`, prints.

This module owns what all commands share: how an exception becomes one line and an exit status.

    0    done
    1    a fault of calumma: one line, and how to see the traceback
    2    wrong usage or bad input: one line that says what, where, what to do
    130  Ctrl-C, with the best so far saved

Nothing here or in a command module imports TVM, NumPy or torch before the command runs: `--help` answers at once.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import click

from calumma.cli.app import app
from calumma.cli.output import INTERRUPTED, Output
from calumma.core.errors import CalummaError

_OF_THE_PLACE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG}
)
"""What the system says of a place where nothing can be written: not a fault of ours."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (None: the process's own arguments) and return its exit status."""
    output = Output()
    warnings.showwarning = _warn
    atexit.register(gc.freeze)  # a process that ends has nothing to collect, and after a compilation much to look at
    try:
        status = app.main(
            None if arguments is None else list(arguments), prog_name="calumma", standalone_mode=False, obj=output
        )
        sys.stdout.flush()
    except click.Abort:
        return _fail("interrupted", INTERRUPTED)
    except click.ClickException as error:
        return _fail(_usage(error), 2)
    except (BrokenPipeError, SystemExit):
        # The reader (head, less) has enough; click answers that with SystemExit. Python would complain once more when
        # it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the outermost frame: whatever it is becomes one line and a status
        if output.debug:
            traceback.print_exc()
        return _fail(*_explained(error, output.debug))
    return status if isinstance(status, int) else 0


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"calumma: warning: {_one_line(message)}", err=True)


def _explained(error: Exception, debug: bool) -> tuple[str, int]:
    """One line for an error, and the exit status."""
    if isinstance(error, CalummaError) and error.exit_status != 1:
        return _one_line(error), error.exit_status
    if isinstance(error, MemoryError):
        return f"out of memory ({_one_line(error) or 'the system gives no more'}): give smaller shapes with --shape", 2
    if isinstance(error, OSError) and error.errno in _OF_THE_PLACE:
        return f"{error.filename or 'a file'}: {error.strerror}; make room, or choose another place", 2
    hint = "" if debug else " (a fault of calumma; --debug or CALUMMA_DEBUG=1 shows the traceback)"
    return f"{type(error).__name__}: {_one_line(error)}{hint}", 1


def _fail(message: str, status: int) -> int:
    click.echo(f"calumma: error: {message}", err=True)
    return status


def _usage(error: click.ClickException) -> str:
    message = _one_line(error.format_message()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message}; see `{context.command_path} --help`" if context else message


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
