"""Extensions: modules outside of this package that register operators, contractions, targets or strategies.

An installed package names its module as an entry point of the group `calumma.extensions`; others are named in the
environment variable CALUMMA_EXTENSIONS, separated by commas, or simply imported before calumma is used.

Workers import the modules that registered operators, contractions or targets, since what they build and measure may
come from there; strategies stay in the session's process. Workers have no torch: a module that registers something for
them imports torch, if at all, in the functions that need it.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points

from calumma.core.errors import InputError

ENTRY_POINTS = "calumma.extensions"
VARIABLE = "CALUMMA_EXTENSIONS"
_PACKAGE = "calumma"

_modules: dict[str, None] = {}


def note_caller(what: str) -> None:
    """Remember the module that called the function which calls this one; `what` it registers is for the error.

    Raises:
        InputError: that is the main script, which workers cannot import.
    """
    origin = str(sys._getframe(2).f_globals.get("__name__", "__main__"))
    if origin == "__main__":
        raise InputError(
            f"{what} is registered by the main script, which workers do not import; register it in a module of its own"
        )
    if origin.partition(".")[0] != _PACKAGE:
        _modules[origin] = None


def extensions() -> tuple[str, ...]:
    """The modules that registered something so far."""
    return tuple(_modules)


def load(modules: Iterable[str]) -> None:
    """Import modules that register something.

    Raises:
        InputError: one of them cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise InputError(
                f"extension {module} cannot be imported ({type(error).__name__}: {error}); "
                f"repair it, uninstall its package, or take it out of {VARIABLE}"
            ) from error


@functools.cache
def load_installed() -> None:
    """Import, once per process, what installed packages and the environment name; raises InputError as `load`."""
    named = (name.strip() for name in os.environ.get(VARIABLE, "").split(","))
    load([*(entry.module for entry in entry_points(group=ENTRY_POINTS)), *filter(None, named)])
