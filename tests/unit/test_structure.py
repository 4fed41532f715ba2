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
SHARED_MODULES = {"__init__", "__main__"}

# What others are changing at this moment. Delete an entry, and in the end these names, when the change is there.
LARGE_ROOMS = {"frontend"}
LONG_FILES = {
    "src/calumma/api.py",
    "src/calumma/frontend/lowering.py",
    "src/calumma/frontend/onnx.py",
    "src/calumma/prior/networks.py",
    "src/calumma/search/ppo.py",
    "src/calumma/space/winograd.py",
    "src/calumma/tuner/session.py",
    "tests/integration/test_artifact.py",
}
LONG_FUNCTIONS = {
    "src/calumma/measure/recorder.py:record",
    "src/calumma/space/subspace.py:part_of",
    "benchmarks/prior_learned.py:learned",
    "benchmarks/prior_networks.py:train",
    "benchmarks/sessions.py:search",
    "src/calumma/api.py:collect",
    "src/calumma/api.py:compile",
    "src/calumma/api.py:learn",
    "src/calumma/api.py:tune",
    "src/calumma/cli/records.py:records",
    "src/calumma/cli/tune.py:tune",
    "src/calumma/tuner/model.py:prepare",
    "src/calumma/tuner/session.py:__init__",
    "tests/integration/test_artifact.py:lowered_model",
    "tests/integration/test_search_benchmark_metaschedule.py:test_its_trials_are_schedules_we_can_measure",
    "tests/metaschedule_tuning.py:tune",
}
MODULES_OF_ONE_NAME = {
    "base",
    "bfloat16",
    "codegen",
    "collect",
    "graph",
    "matmul",
    "memory",
    "options",
    "rows",
    "session",
    "strategy",
    "worker",
}
CLASSES_OF_ONE_NAME = {"Output", "Window"}


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


def _of_one_name(places: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_room_is_larger_than_one_can_hold_in_mind() -> None:
    rooms = Counter[str]()
    for path in _files("src/calumma"):
        rooms[path.relative_to(PACKAGE).parts[0]] += _lines(path)
    large = {room: lines for room, lines in rooms.items() if lines > MOST_LINES_OF_A_ROOM}
    assert large.keys() <= LARGE_ROOMS, f"above {MOST_LINES_OF_A_ROOM} lines: {large}"


def test_no_file_is_long() -> None:
    long = {_name(path) for path in _files("src", "tests", "benchmarks") if _lines(path) > MOST_LINES_OF_A_FILE}
    assert long <= LONG_FILES, f"above {MOST_LINES_OF_A_FILE} lines: {sorted(long - LONG_FILES)}"


def test_no_function_is_long_without_a_reason() -> None:
    long = {
        f"{_name(path)}:{function.name}"
        for path in _files("src", "tests", "benchmarks")
        for function in _functions(path)
        if _is_long(function)
    }
    assert long <= LONG_FUNCTIONS, (
        f"above {MOST_LINES_OF_A_FUNCTION} lines, and no sentence {REASON!r} in the docstring: "
        f"{sorted(long - LONG_FUNCTIONS)}"
    )


def test_no_two_modules_have_one_name() -> None:
    """A command's module is its room's face on the command line, and named after the command that it is."""
    places = defaultdict(list)
    for path in _files("src/calumma"):
        if path.stem not in SHARED_MODULES:
            places[path.stem].append(_name(path))
    doubled = _of_one_name(places)
    assert doubled.keys() <= MODULES_OF_ONE_NAME, doubled


def test_no_two_public_classes_have_one_name() -> None:
    places = defaultdict(list)
    for path in _files("src/calumma"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(_name(path))
    doubled = _of_one_name(places)
    assert doubled.keys() <= CLASSES_OF_ONE_NAME, doubled
