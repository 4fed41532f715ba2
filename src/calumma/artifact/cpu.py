"""Whether this CPU has the instructions that an artifact may use."""

from __future__ import annotations

import platform
from collections.abc import Iterable

from calumma.core import hardware as host
from calumma.core.errors import ArtifactError


def check(path: object, machine: str, mcpu: str, flags: Iterable[str]) -> None:
    """Raise ArtifactError if code for `machine` with `flags` would die here by an illegal instruction."""
    if machine != platform.machine():
        raise ArtifactError(f"{path}: built for {machine}, this machine is {platform.machine()}; compile it here")
    missing = sorted(set(flags) - host.cpu_flags())
    if missing:
        raise ArtifactError(
            f"{path}: built for {mcpu}, this CPU ({host.cpu_info().get('model name', 'unknown')}) lacks "
            f"{', '.join(missing)}; compile it here, or for both machines with the mcpu of what they have in common"
        )
