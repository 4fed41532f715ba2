"""constraints-lowest.txt, which the lowest-versions job installs with, says what pyproject.toml allows."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TOOLS = ("docs", "dev")
"""Extras that no user installs: their packages come in the newest version that is allowed."""


def _lowest(requirement: Requirement) -> str:
    """The constraint that holds a requirement at the lowest version it allows."""
    (bound,) = (part.version for part in requirement.specifier if part.operator in (">=", "=="))
    return f"{canonicalize_name(requirement.name)}=={bound}"


def _constraints() -> list[str]:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_direct_dependency_is_held_at_its_lowest_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (packages for extra, packages in project["optional-dependencies"].items() if extra not in TOOLS)
    requirements = map(Requirement, sum(extras, project["dependencies"]))
    assert _constraints() == sorted(map(_lowest, requirements))


def test_the_tested_environment_is_within_the_ranges() -> None:
    """constraints.txt against pyproject.toml, tools included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    for text in sum(project["optional-dependencies"].values(), project["dependencies"]):
        requirement = Requirement(text)
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text}: constraints.txt has {version}"
