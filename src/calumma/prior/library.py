"""Where priors lie: shipped with calumma, and learnt by the user; which one a machine gets."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path

from calumma.core.errors import InputError
from calumma.core.values import Hardware
from calumma.prior import dataset, weights
from calumma.prior.dataset import Dataset
from calumma.prior.places import NONE, SHIPPED, user_folder
from calumma.prior.weights import SUFFIX, Prior

AUTO = "auto"
"""What stands for "the newest that fits" where a name is expected."""


@dataclass(frozen=True)
class Entry:
    """One file."""

    path: Path
    shipped: bool

    @property
    def name(self) -> str:
        return name_of(self.path)


def entries() -> list[Entry]:
    """All priors by file: the user's, newest first, then those shipped."""
    own = sorted(user_folder().glob(f"[!.]*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [*(Entry(path, False) for path in own), *(Entry(path, True) for path in sorted(SHIPPED.glob(f"*{SUFFIX}")))]


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


def data_for(name: str, hardware: Hardware, toolchain: str) -> Dataset | None:
    """The data set of a file; or the shipped one for this machine, None if there is none ("shipped") or none is
    wanted ("none").

    Raises:
        InputError: the file cannot be used.
    """
    if name == NONE:
        return None
    if name != "shipped":
        return dataset.load(Path(name))
    for path in sorted(SHIPPED.glob("*.npz")):
        found = dataset.load(path)
        if (found.hardware.fingerprint, found.toolchain) == (hardware.fingerprint, toolchain):
            return found
    return None


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


def choose(hardware: Hardware, threads: int) -> tuple[Prior | None, str]:
    """The newest prior that fits, the user's own before shipped ones; or None, and why in one line.

    Raises:
        InputError: the file of one that comes before it cannot be used.
    """
    reasons = []
    for entry in entries():
        prior = weights.load(entry.path)
        reason = prior.mismatch(hardware, threads)
        if not reason:
            return prior, ""
        other = prior.hardware.fingerprint != hardware.fingerprint
        reasons.append((other, f"prior {entry.name}: {reason}"))
    # A prior of this machine lacks less than one of another.
    why = min(reasons, key=lambda reason: reason[0])[1] if reasons else "no prior is installed"
    return None, (
        f"{why}; the templates' defaults are used: measure with calumma tune, or learn a prior for this machine "
        "(calumma collect, then calumma learn)"
    )
