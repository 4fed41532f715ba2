"""docs/architecture.md names the rooms that there are, in the order of the layers that import-linter enforces."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _layers() -> list[str]:
    """Rooms from top to bottom, those of one layer in any order."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = (c for c in settings["contracts"] if c["type"] == "layers")
    return [name.strip(" ()") for layer in contract["layers"] for name in layer.split("|")]


def test_the_table_of_rooms_is_the_order_of_the_layers() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.partition("## Rooms")[2].partition("\n## ")[0]
    rooms = [room.removesuffix(".py") for room in re.findall(r"^\| `([\w.]+)` \|", table, flags=re.MULTILINE)]
    assert rooms == _layers()


def test_every_folder_is_a_room() -> None:
    folders = {path.parent.name for path in (ROOT / "src/calumma").glob("*/__init__.py")}
    modules = {path.stem for path in (ROOT / "src/calumma").glob("*.py")} - {"__init__", "__main__", "_version"}
    assert folders | modules == set(_layers())
