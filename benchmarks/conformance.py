"""How many of ONNX's own conformance cases are right, beside ONNX Runtime; and of torch's operators, beside eager.

`python -m benchmarks.conformance` runs every case of `onnx.backend.test` whose inputs and outputs are tensors, and
prints a line for each that is not right, then a table by operator. `--suite torch` runs torch's operator database
through `torch.compile`; `--suite core-aten` lists which operators of core ATen have a rule. `--results FILE` writes the
figures into a page of the documentation, between the marks `<!-- onnx -->` or `<!-- torch -->`. Exit status 1 where a
case is wrong, dies or hangs.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import onnx_cases, output, torch_cases
from benchmarks.onnx_cases import Verdict
from calumma.core.errors import InputError

_FAULTS = ("wrong", "traceback", "crash", "hang")


def main() -> int:
    """Command line."""
    options = output.parser(__doc__ or "")
    options.add_argument("--only", metavar="REGEX", help="cases whose name contains a match")
    options.add_argument("--every", type=int, default=1, metavar="N", help="one case of N")
    options.add_argument("--part", metavar="I/N", help="of those the part I of N, from 0")
    options.add_argument("--jobs", type=int, default=2, help="cases at a time")
    options.add_argument("--suite", choices=("onnx", "torch", "core-aten"), default="onnx", help="whose cases")
    options.add_argument("--samples", type=int, default=3, help="of each of torch's operators")
    options.add_argument("--results", type=Path, metavar="FILE", help="a page with marks to write the figures between")
    args = options.parse_args()
    return {"onnx": _onnx, "torch": _torch, "core-aten": _core_aten}[args.suite](args)


def _onnx(args: argparse.Namespace) -> int:
    cases = [case for case in onnx_cases.all_cases() if re.search(args.only or "", case.name)]
    cases = _part(cases[:: 20 if args.quick else args.every], args.part)
    if not cases:
        raise InputError(f"--only {args.only}: no case has such a name")
    start = time.perf_counter()
    verdicts = []
    for done, verdict in enumerate(onnx_cases.verdicts(cases, args.jobs), start=1):
        verdicts.append(verdict)
        if verdict.verdict != "right":
            mark = "" if verdict.onnxruntime else " (nor is ONNX Runtime)"
            print(f"[{done}/{len(cases)}] {verdict.verdict:9} {verdict.name}{mark}: {verdict.note}", flush=True)
    metrics = _metrics(verdicts, time.perf_counter() - start)
    table = _table(verdicts)
    print(f"\n{table}\n")
    for name, value in metrics.items():
        print(f"{name:24} {value:.4g}")
    _publish(args, metrics, table)
    if args.json:
        output.write(args.json, metrics, [asdict(v) for v in verdicts], output.environment(args.threads))
    return 1 if any(metrics[fault] for fault in _FAULTS) else 0


def _torch(args: argparse.Namespace) -> int:
    chosen = [op for op in torch_cases.operators() if re.search(args.only or "", op.name)]
    chosen = _part(chosen[:: 40 if args.quick else args.every], args.part)
    if not chosen:
        raise InputError(f"--only {args.only}: no operator has such a name")
    start = time.perf_counter()
    found = []
    for done, outcomes in enumerate(torch_cases.outcomes(chosen, args.samples, args.jobs), start=1):
        found += outcomes
        for outcome in outcomes:
            if outcome.verdict != "right":
                where = f"[{done}/{len(chosen)}] {outcome.verdict:14} {outcome.operator}/{outcome.sample}"
                print(f"{where}: {outcome.note}", flush=True)
    judged = [outcome for outcome in found if outcome.verdict not in ("not comparable", "no region")]
    counts = collections.Counter(outcome.verdict for outcome in found)
    by_operator = {name: {o.verdict for o in judged if o.operator == name} for name in {o.operator for o in judged}}
    metrics = {
        "samples": len(judged),
        "op_db_right": counts["right"] / max(len(judged), 1),
        "op_db_operators": len(by_operator),
        "op_db_operators_right": sum(verdicts == {"right"} for verdicts in by_operator.values())
        / max(len(by_operator), 1),
        **{f"op_db_{verdict.replace(' ', '_')}": counts[verdict] for verdict in torch_cases.VERDICTS[1:]},
        "seconds": time.perf_counter() - start,
    }
    for name, value in metrics.items():
        print(f"{name:24} {value:.4g}")
    _publish(args, metrics)
    if args.json:
        output.write(args.json, metrics, [asdict(outcome) for outcome in found], output.environment(args.threads))
    return 1 if any(counts[fault] for fault in ("wrong", "error", "crash", "hang")) else 0


def _core_aten(args: argparse.Namespace) -> int:
    found = [op for op in torch_cases.core_operators() if re.search(args.only or "", op.name)]
    if not found:
        raise InputError(f"--only {args.only}: no operator has such a name")
    for op in found:
        print(f"{op.how:16} {op.name}{': ' if op.reason else ''}{op.reason}")
    counts = collections.Counter(op.how for op in found)
    held = counts["rule"] + counts["decomposed"]
    metrics = {
        "core_aten": len(found),
        **{f"core_aten_{how.replace(' ', '_')}": counts[how] for how in sorted(counts)},
        "core_aten_share": held / len(found),
    }
    for name, value in metrics.items():
        print(f"{name:32} {value:.4g}")
    if args.json:
        output.write(args.json, metrics, [asdict(op) for op in found], output.environment(args.threads))
    return 0


def _part(cases: list[Any], part: str | None) -> list[Any]:
    if part is None:
        return cases
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if found is None or int(found[1]) >= int(found[2]):
        raise InputError(f"--part {part}: expected I/N, with I from 0 and below N")
    return cases[int(found[1]) :: int(found[2])]


def _publish(args: argparse.Namespace, metrics: Mapping[str, float], *tables: str) -> None:
    """Write the figures between the marks of the page that is asked for."""
    if args.results is None:
        return
    surroundings = output.environment(args.threads)
    versions = ", ".join(f"{name} {surroundings['versions'][name]}" for name in ("onnx", "onnxruntime", "torch"))
    figures = output.markdown(["figure", "value"], [[name, f"{value:.4g}"] for name, value in metrics.items()])
    text = f"{surroundings['date'][:10]}, {surroundings['cpu']}, {versions}.\n\n{figures}"
    output.replace_section(args.results, args.suite, "\n\n".join([text, *tables]))


def _metrics(verdicts: Sequence[Verdict], seconds: float) -> dict[str, float]:
    """`right_share` is of the cases that ONNX Runtime gets right; faults are counted over all cases."""
    judged = [verdict for verdict in verdicts if verdict.onnxruntime]
    counts = collections.Counter(verdict.verdict for verdict in verdicts)
    return {
        "cases": len(verdicts),
        "onnxruntime_right": len(judged),
        "right": counts["right"],
        "right_share": sum(v.verdict == "right" for v in judged) / max(len(judged), 1),
        "refused": counts["refused"],
        **{fault: counts[fault] for fault in _FAULTS},
        "seconds": seconds,
    }


def _table(verdicts: Sequence[Verdict]) -> str:
    """The operators of which something is not right."""
    by_operator: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for verdict in verdicts:
        for name in verdict.operators[:1]:
            by_operator[name].update([verdict.verdict, *(["onnxruntime"] if verdict.onnxruntime else [])])
    lines = [
        [
            name,
            str(sum(c[v] for v in onnx_cases.VERDICTS)),
            str(c["onnxruntime"]),
            *(str(c[v]) for v in onnx_cases.VERDICTS),
        ]
        for name, c in sorted(by_operator.items())
        if c["right"] < sum(c[v] for v in onnx_cases.VERDICTS)
    ]
    return output.markdown(["first operator", "cases", "ONNX Runtime", *onnx_cases.VERDICTS], lines)


if __name__ == "__main__":
    sys.exit(output.exit_status(main))
