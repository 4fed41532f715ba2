"""How large rooms, files and functions may be, and that no two modules or classes of the package have one name."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "calumma"
MOST_LINES_OF_A_ROOM = 4000
MOST_LINES_OF_A_FILE = 500
MOST_LINES_OF_A_FUNCTION = 60
REASON = "Long because "
"""How the sentence of a docstring begins that says why the function is longer."""
FOLDERS = ("src", "tests", "benchmarks", "examples")
SHARED_MODULES = {"__init__", "__main__"}
FAMILIES = (PACKAGE / "operators", PACKAGE / "contractions")
ROLES = {"expression", "rule", "sample", "space"}
"""What the modules of an operator family are named by: each family has a folder, and these names in it."""


def _files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _is_long(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    return lines > MOST_LINES_OF_A_FUNCTION and REASON not in (ast.get_docstring(function) or "")


def _is_of_a_family(path: Path) -> bool:
    return path.parent.parent in FAMILIES and path.stem in ROLES


def _of_one_name(places: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_room_is_larger_than_one_can_hold_in_mind() -> None:
    rooms = Counter[str]()
    for path in _files("src/calumma"):
        rooms[path.relative_to(PACKAGE).parts[0]] += _lines(path)
    large = {room: lines for room, lines in rooms.items() if lines > MOST_LINES_OF_A_ROOM}
    assert not large, f"above {MOST_LINES_OF_A_ROOM} lines: {large}"


def test_no_file_is_long() -> None:
    long = {_name(path) for path in _files(*FOLDERS) if _lines(path) > MOST_LINES_OF_A_FILE}
    assert not long, f"above {MOST_LINES_OF_A_FILE} lines: {sorted(long)}"


def test_no_function_is_long_without_a_reason() -> None:
    long = {
        f"{_name(path)}:{function.name}"
        for path in _files(*FOLDERS)
        for function in _functions(path)
        if _is_long(function)
    }
    assert not long, (
        f"above {MOST_LINES_OF_A_FUNCTION} lines, and no sentence {REASON!r} in the docstring: {sorted(long)}"
    )


def test_no_two_modules_have_one_name() -> None:
    """A family's modules are named by their role instead. (A module may have a room's name, as `cli.prior` does.)"""
    places = defaultdict(list)
    for path in _files("src/calumma"):
        if path.stem not in SHARED_MODULES and not _is_of_a_family(path):
            places[path.stem].append(_name(path))
    doubled = _of_one_name(places)
    assert not doubled, doubled


def test_no_two_public_classes_have_one_name() -> None:
    places = defaultdict(list)
    for path in _files("src/calumma"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(_name(path))
    doubled = _of_one_name(places)
    assert not doubled, doubled
