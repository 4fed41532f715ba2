"""The untuned suite, compiled by this source tree and by another one: `benchmarks.models --against-source PATH`.

Every model is compiled with both trees, each in a process of its own with an empty database. Both artifacts then race
(`calumma.peers.race`: a process each, in turns A B, B A, same inputs and threads), and their outputs are compared.

Metrics:
    after_vs_before: geometric mean over the models of this tree's latency over the other's, medians of paired rounds
    after_vs_before_worst: the highest of these ratios
    bit_equal: models whose outputs are the same bits
    max_relative_difference: max|a-b| / max|b| of the outputs of a model, the worst
    models, models_failed, models_wrong: how many; wrong is a difference above `TOLERANCE`
"""

from __future__ import annotations

import argparse
import functools
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import calumma
from benchmarks import commands, output, suite
from calumma.core.errors import InputError
from calumma.peers import Contestant, RaceResult, race

TOLERANCE = 1e-3
"""Relative difference of outputs above which one of the two trees computes something else."""
_AFTER, _BEFORE = "after", "before"
"""Labels in the race: this source tree, and the other."""
_HERE = Path(calumma.__file__).parents[2]
Row = dict[str, Any]


def run(options: argparse.Namespace, say: Callable[[str, str], None]) -> int:
    """Run the comparison that the options of `benchmarks.models` ask for; returns the exit status.

    Args:
        options: `models`, `against_source`, `rounds`, `threads`, `json`.
        say: is told, for a model, what is being done.

    Raises:
        InputError: no source tree where `against_source` points, or it is this one.
    """
    trees = {_BEFORE: source_tree(options.against_source), _AFTER: _HERE}
    settings = {
        "rounds": options.rounds,
        "threads": options.threads,
        "commits": {label: output.commit(tree) for label, tree in trees.items()},
    }
    surroundings = output.environment(options.threads)
    rows: list[Row] = []
    for name in options.models:
        rows.append(_measure(name, trees, options, functools.partial(say, name)))
        say("", "")
        print(_line(rows[-1]), flush=True)
        if options.json is not None:
            output.write(options.json, metrics(rows), rows, surroundings, settings=settings)
    result = metrics(rows)
    print(f"\n{_table(rows)}\n")
    for metric, value in result.items():
        print(f"{metric:32} {value:.4g}")
    return 1 if result["models_failed"] or result["models_wrong"] else 0


def source_tree(path: Path) -> Path:
    """The root of another checkout. Raises InputError if it holds no calumma, or is the tree that runs."""
    root = path.resolve()
    if not (root / "src" / "calumma" / "__init__.py").is_file():
        raise InputError(f"--against-source {path}: no src/calumma in it: name the root of a checkout of calumma")
    if root == _HERE:
        raise InputError(f"--against-source {path}: this is the source tree that runs: name another one")
    return root


def _measure(name: str, trees: dict[str, Path], options: argparse.Namespace, say: Callable[[str], None]) -> Row:
    """Compile one model with both trees and race the artifacts; a failure is part of the row."""
    row: Row = {"model": name, "error": "", "race": None}
    say("building the model file")
    model = suite.path(name)
    with tempfile.TemporaryDirectory(prefix="calumma-bench-") as scratch:
        artifacts = {label: Path(scratch) / f"{label}.so" for label in trees}
        try:
            for label, tree in trees.items():
                say(f"compiling, {label}")
                database = Path(scratch) / f"{label}.db"
                arguments = [model, "-o", artifacts[label], "--db", database, "--threads", options.threads]
                row[f"compile_{label}"] = commands.calumma("compile", *arguments, source=tree / "src")
        except InputError as failed:
            return row | {"error": str(failed)}
        entries = [Contestant(label, "calumma", str(artifacts[label])) for label in (_AFTER, _BEFORE)]
        result = race(
            entries,
            suite.inputs(name),
            threads=options.threads,
            rounds=options.rounds,
            reference=_BEFORE,
            progress=say,
        )
    return row | compared(result)


def compared(result: RaceResult) -> Row:
    """What the race of both artifacts tells."""
    after, ratio = result.row(_AFTER), result.ratio(_AFTER, _BEFORE)
    return {
        "race": result.as_dict(),
        "error": "; ".join(f"{row.label}: {row.reason}" for row in result.rows if row.reason),
        "latency_s": {row.label: row.latency_s.median for row in result.rows if row.latency_s},
        "ratio": asdict(ratio) if ratio else None,
        "difference": after.difference,
        "bit_equal": after.bit_equal,
    }


def metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Flat metrics of the rows; one that no row can tell is missing."""
    ratios = [row["ratio"]["median"] for row in rows if row.get("ratio")]
    differences = [row["difference"] for row in rows if row.get("difference") is not None]
    found: dict[str, float] = {}
    if ratios:
        found["after_vs_before"] = math.exp(sum(map(math.log, ratios)) / len(ratios))
        found["after_vs_before_worst"] = max(ratios)
    if differences:
        found["max_relative_difference"] = max(differences)
    return found | {
        "bit_equal": sum(bool(row.get("bit_equal")) for row in rows),
        "models": len(rows),
        "models_failed": sum(bool(row["error"]) for row in rows),
        "models_wrong": sum(difference > TOLERANCE for difference in differences),
    }


def _line(row: Row) -> str:
    """What is said of a row as soon as it is there."""
    if row["error"]:
        return f"{row['model']}: FAILED {row['error']}"
    return f"{row['model']}: after / before {row['ratio']['median']:.3f}, outputs {_outputs(row)}"


def _outputs(row: Row) -> str:
    """How the outputs of both artifacts compare, as a cell."""
    if row.get("difference") is None:
        return "n/a"
    return "bit-equal" if row["bit_equal"] else f"{row['difference']:.0e}"


def _table(rows: Sequence[Row]) -> str:
    def milliseconds(row: Row, label: str) -> list[str]:
        found = next(
            (entry["latency_s"] for entry in (row["race"] or {"rows": []})["rows"] if entry["label"] == label), None
        )
        if found is None:
            return ["n/a", ""]
        return [f"{found['median'] * 1e3:.2f}", f"{found['lower'] * 1e3:.2f}-{found['upper'] * 1e3:.2f}"]

    def ratio(row: Row) -> list[str]:
        found = row.get("ratio")
        return [f"{found['median']:.3f}", f"{found['lower']:.3f}-{found['upper']:.3f}"] if found else ["n/a", ""]

    body = [
        [row["model"], *milliseconds(row, _BEFORE), *milliseconds(row, _AFTER), *ratio(row), _outputs(row)]
        for row in rows
    ]
    columns = ["model", "before ms", "quartiles", "after ms", "quartiles", "after / before", "quartiles", "outputs"]
    return output.markdown(columns, body)
