"""Extensions: modules outside of this package that register operators, contractions, targets or strategies.

An installed package names its module as an entry point of the group `calumma.extensions`; others are named in the
environment variable CALUMMA_EXTENSIONS, separated by commas, or simply imported before calumma is used.

Workers import the modules that registered operators, contractions or targets, since what they build and measure may
come from there; strategies stay in the session's process. Workers have no torch: a module that registers something for
them imports torch, if at all, in the functions that need it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from calumma.core.errors import InputError

ENTRY_POINTS = "calumma.extensions"
VARIABLE = "CALUMMA_EXTENSIONS"
_PACKAGE = "calumma"

Registered = TypeVar("Registered")

_registries: list[Registry[Any]] = []
_modules: dict[str, None] = {}
_failures: list[InputError] = []


class Registry(Generic[Registered]):
    """What is known by name, here and from extensions, in the order of registration."""

    def __init__(self, kind: str, known: Mapping[str, Registered], *, in_workers: bool = True) -> None:
        """
        Args:
            kind: what is registered, for errors ("operator").
            known: what the package itself has.
            in_workers: whether workers need it as well, and so import the modules that register something.
        """
        self.kind = kind
        self._known = dict(known)
        self._in_workers = in_workers
        _registries.append(self)

    def add(self, name: str, value: Registered) -> None:
        """Register a value for the module that called the function which calls this one.

        Raises:
            InputError: the name is taken; or workers need it, and that module is the main script, which they do not
                import.
        """
        if name in self._known:
            raise InputError(f"{self.kind} {name!r} is registered already: change that one, or choose another name")
        origin = str(sys._getframe(2).f_globals.get("__name__", "__main__"))
        if self._in_workers and origin == "__main__":
            raise InputError(
                f"{self.kind} {name!r} is registered by the main script, which workers do not import; register it in "
                "a module of its own"
            )
        self._known[name] = value
        if self._in_workers and origin.partition(".")[0] != _PACKAGE:
            _modules[origin] = None

    def get(self, name: str) -> Registered | None:
        """The value of a name; None where there is none."""
        return self._known.get(name)

    def names(self) -> tuple[str, ...]:
        """All names, the oldest first."""
        return tuple(self._known)

    def values(self) -> tuple[Registered, ...]:
        """All values, the oldest first."""
        return tuple(self._known.values())


@contextmanager
def temporary_registrations() -> Iterator[None]:
    """Look for extensions anew inside, and forget afterwards what was registered: for tests of extensions.

    A module that was imported inside stays imported, and registers nothing when it is imported again.
    """
    known, modules = [(registry, dict(registry._known)) for registry in _registries], dict(_modules)
    _look_anew()
    try:
        yield
    finally:
        for registry, before in known:
            registry._known = before
        _modules.clear()
        _modules.update(modules)
        _look_anew()


def _look_anew() -> None:
    _installed.cache_clear()
    _failures.clear()


def extensions() -> tuple[str, ...]:
    """The modules that registered something which workers need."""
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


def load_installed() -> None:
    """Import, once per process, what installed packages and the environment name.

    Raises:
        InputError: one of them cannot be imported, now or when it was tried before.
    """
    if _failures:  # it may have registered half of what it has, and would fail otherwise now
        raise _failures[0]
    try:
        load(_installed())
    except InputError as failure:
        _failures.append(failure)
        raise


@functools.cache
def _installed() -> tuple[str, ...]:
    named = (name.strip() for name in os.environ.get(VARIABLE, "").split(","))
    return (*(entry.module for entry in entry_points(group=ENTRY_POINTS)), *filter(None, named))


def sources() -> tuple[str, ...]:
    """Name and SHA-256 of the source of every extension in use: what they are decides what is compiled."""
    load_installed()
    found = []
    for name in dict.fromkeys((*_installed(), *_modules)):
        file = getattr(sys.modules.get(name), "__file__", None)
        found.append(f"{name} {hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else 'no file'}")
    return tuple(found)
