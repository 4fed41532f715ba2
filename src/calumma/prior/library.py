"""Where priors lie: shipped with calumma, learnt by the user, and moved to a CPU; which one a machine gets."""

from __future__ import annotations

import datetime
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from calumma.core.errors import InputError
from calumma.core.values import Hardware
from calumma.prior import dataset, features, weights
from calumma.prior.dataset import Dataset
from calumma.prior.machines import place
from calumma.prior.places import NONE, SHIPPED, user_folder
from calumma.prior.weights import SUFFIX, Prior

MOVED = "moved"
_MOVED_FORMAT = f"-v{weights.VERSION}.{features.VERSION}{SUFFIX}"
"""Ends the names of priors that nobody asked for by name: one of another format is left alone."""
AUTO = "auto"
"""What stands for "the newest that fits" where a name is expected."""


def moved_file(hardware: Hardware, threads: int) -> Path:
    """Where the prior lies that measurements moved to a CPU with so many threads, in the format of this version."""
    return user_folder() / MOVED / f"{place(hardware, threads)}{_MOVED_FORMAT}"


@dataclass(frozen=True)
class Entry:
    """One file."""

    path: Path
    origin: str
    """"own", "moved" to a CPU by measurements, or "shipped"."""

    @property
    def name(self) -> str:
        return name_of(self.path)


def entries() -> list[Entry]:
    """All priors by file: the user's, newest first, then those shipped."""
    own = [Entry(path, "own") for path in user_folder().glob(f"[!.]*{SUFFIX}")]
    own += [Entry(path, MOVED) for path in (user_folder() / MOVED).glob(f"[!.]*{_MOVED_FORMAT}")]
    own.sort(key=lambda entry: entry.path.stat().st_mtime, reverse=True)
    return [*own, *(Entry(path, "shipped") for path in sorted(SHIPPED.glob(f"*{SUFFIX}")))]


def name_of(path: Path) -> str:
    """What the prior of a file is called."""
    return path.name.removesuffix(SUFFIX)


def destination(name: str | None) -> Path:
    """The file that a new prior of this name goes to; `name` may be a file too.

    Raises:
        InputError: a name that cannot be one of a file, or that stands for something else.
    """
    if name is None:
        name = f"own-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    if name.endswith(SUFFIX):
        return Path(name)
    if name in (AUTO, NONE) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise InputError(
            f"a prior cannot be called {name!r}: use letters, digits, '.', '_' and '-', or give a {SUFFIX} file"
        )
    return user_folder() / f"{name}{SUFFIX}"


def data_for(name: str, toolchain: str) -> Dataset | None:
    """The data set of a file; or those that are shipped for this toolchain ("shipped"), None if there is none or none
    is wanted ("none").

    Raises:
        InputError: the file cannot be used.
    """
    if name == NONE:
        return None
    if name != "shipped":
        return dataset.load(Path(name))
    found = [data for data in map(dataset.load, sorted(SHIPPED.glob("*.npz"))) if data.toolchain == toolchain]
    return functools.reduce(Dataset.merged, found) if found else None


def find(name: str) -> Prior:
    """Load the prior of a name, the user's before the shipped one; or of a file, if that is what `name` is.

    Raises:
        InputError: there is none, or its file cannot be used.
    """
    found = entries()
    path = next((entry.path for entry in found if entry.name == name), None)
    if path is None and name.endswith(SUFFIX) and Path(name).is_file():
        path = Path(name)
    if path is None:
        known = ", ".join(dict.fromkeys(entry.name for entry in found))
        choice = f"one of {known}, or" if known else "none is installed, give"
        raise InputError(f"prior {name!r}: there is no such prior; {choice} a {SUFFIX} file, or {NONE!r} for no prior")
    return weights.load(path)


def choose(hardware: Hardware, threads: int, *, measuring: bool = False) -> tuple[Prior | None, str]:
    """The newest prior that fits, the user's own before shipped ones; or None. And in one line why, unless it is simply
    one of this CPU.

    One that has seen this CPU with as many threads comes first. Another is used if leaving CPUs out in turns showed
    that it beats the defaults; or in any case where all that it says is measured before it is used (`measuring`).

    Raises:
        InputError: the file of one that comes before it cannot be used.
    """
    others, reasons = [], []
    for entry in entries():
        prior = weights.load(entry.path)
        if prior.limits(hardware, threads) is not None:
            return prior, ""
        reason = prior.mismatch(hardware, threads)
        if measuring or not reason:
            others.append((entry.name, prior))
        seen = any(machine.hardware.fingerprint == hardware.fingerprint for machine in prior.trained_on)
        reasons.append((not seen, f"prior {entry.name}: {reason}"))
    if others:
        name, prior = others[0]
        if measuring:
            return prior, f"prior {name} has not seen this CPU with {threads} threads"
        return prior, (
            f"prior {name} has not seen this CPU; on CPUs left out in turns it beat the defaults of "
            f"{', '.join(prior.beats_defaults)}, where its choices are used"
        )
    # A prior of this machine lacks less than one of another.
    why = min(reasons, key=lambda reason: reason[0])[1] if reasons else "no prior is installed"
    return None, (
        f"{why}; the templates' defaults are used: measure with calumma tune, move a prior here (calumma prior adapt), "
        "or learn one (calumma collect, then calumma learn)"
    )
