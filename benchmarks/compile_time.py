"""Seconds that models take to compile: ResNet-50, cold and again, and thousands of small operators.

The first is `benchmarks.compile_again`. Every other case is an ONNX model, compiled by `calumma compile` in a process
of its own with an empty database and no cache, at its full size and at half of it: a time that is linear in the number
of nodes doubles.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks import commands, compile_again, output, suite

_NODES, _QUICK_NODES = 3000, 300
_PARTS, _QUICK_PARTS = 300, 60
_RUNGS = 40
_PHASES = ("import", "lower", "tasks", "spaces", "schedule", "build", "save")


@dataclass
class _Writer:
    """An ONNX model under construction."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    values: int = 0

    def input(self, *shape: int) -> str:
        self.inputs.append(helper.make_tensor_value_info(f"input_{len(self.inputs)}", TensorProto.FLOAT, shape))
        return self.inputs[-1].name

    def op(self, kind: str, *operands: str | float | NDArray, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; returns the name of its output, or the names of several."""
        names = []
        for operand in operands:
            if not isinstance(operand, str):
                array = np.float32(operand) if isinstance(operand, float) else operand
                self.weights.append(numpy_helper.from_array(np.asarray(array), f"weight_{len(self.weights)}"))
                operand = self.weights[-1].name
            names.append(operand)
        results = [f"value_{self.values + i}" for i in range(outputs)]
        self.values += outputs
        self.nodes.append(helper.make_node(kind, names, results, **attributes))
        return results[0] if outputs == 1 else results

    def model(self, *outputs: str) -> onnx.ModelProto:
        ends = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "model", self.inputs, ends, self.weights)
        built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        return onnx.shape_inference.infer_shapes(built)


def _repeated(*kinds: str) -> Callable[[int], onnx.ModelProto]:
    def write(nodes: int) -> onnx.ModelProto:
        m = _Writer()
        x = m.input(2, 64)
        for i in range(nodes):
            x = m.op(kinds[i % len(kinds)], x)
        return m.model(x)

    return write


def _mixed(nodes: int) -> onnx.ModelProto:
    m = _Writer()
    x, other = m.input(2, 64), m.input(2, 64)
    for i in range(nodes):
        kind, *more = (("Relu",), ("Add", other), ("Mul", 1 + i % 7 / 100))[i % 3]
        x = m.op(kind, x, *more)
    return m.model(x)


def _moved(nodes: int) -> onnx.ModelProto:
    m = _Writer()
    x = m.input(8, 16)
    for i in range(nodes // 3):
        x = m.op("Reshape", m.op("Relu", x), np.array([16, 8] if i % 2 else [4, 32], np.int64))
        x = m.op("Transpose", x, perm=[1, 0])
    return m.model(x)


def _doubled(nodes: int) -> onnx.ModelProto:
    m = _Writer()
    x = m.input(2, 64)
    for i in range(nodes):
        x = m.op("Mul" if i % 2 else "Add", x, x)
    return m.model(x)


def _doubled_behind_convolution(nodes: int) -> onnx.ModelProto:
    m = _Writer()
    x = m.op("Conv", m.input(1, 32, 8, 8), np.full((32, 32, 1, 1), 0.01, np.float32))
    for i in range(nodes - 1):
        x = m.op("Mul" if i % 2 else "Add", x, x)
    return m.model(x)


def _ladder(nodes: int) -> onnx.ModelProto:
    m = _Writer()
    x = m.input(2, 64)
    for _ in range(nodes // 3):
        x = m.op("Add", m.op("Tanh", x), m.op("Sigmoid", x))
    return m.model(x)


def _residual(nodes: int) -> onnx.ModelProto:
    m = _Writer()
    first = x = m.op("Relu", m.input(2, 64))
    for _ in range(nodes // 2):
        x = m.op("Add", m.op("Abs", x), first)
    return m.model(x)


def _wide(nodes: int) -> onnx.ModelProto:
    m = _Writer()
    x = m.op("Tanh", m.input(2, 64))
    values = [m.op("Mul", x, 1 + i / nodes) for i in range(nodes // 2)]
    while len(values) > 1:
        odd = values[len(values) // 2 * 2 :]
        values = [m.op("Add", a, b) for a, b in zip(values[::2], values[1::2], strict=False)] + odd
    return m.model(values[0])


def _concat(parts: int) -> onnx.ModelProto:
    m = _Writer()
    return m.model(m.op("Concat", *(m.input(2, 8) for _ in range(parts)), axis=1))


def _concat_of_products(parts: int) -> onnx.ModelProto:
    m = _Writer()
    x = m.input(2, 64)
    return m.model(m.op("Concat", *(m.op("Mul", x, float(i + 2)) for i in range(parts)), axis=1))


def _split(parts: int) -> onnx.ModelProto:
    m = _Writer()
    pieces = m.op("Split", m.input(2, 8 * parts), outputs=parts, axis=1, num_outputs=parts)
    return m.model(*(m.op("Relu", piece) for piece in pieces))


def _sum(parts: int) -> onnx.ModelProto:
    m = _Writer()
    return m.model(m.op("Sum", *(m.input(2, 64) for _ in range(parts))))


@dataclass(frozen=True)
class Case:
    """A model that is written at any size."""

    write: Callable[[int], onnx.ModelProto]
    size: int = _NODES
    """Nodes of a chain or graph; parts of an operator."""
    quick_size: int = _QUICK_NODES


CASES = {
    "mixed": Case(_mixed),
    "tanh": Case(_repeated("Tanh")),
    "sigmoid": Case(_repeated("Sigmoid")),
    "erf_gelu": Case(_repeated("Erf", "Gelu")),
    "moved": Case(_moved),
    "doubled": Case(_doubled),
    "doubled_behind_convolution": Case(_doubled_behind_convolution),
    "residual": Case(_residual),
    "wide": Case(_wide),
    "ladder": Case(_ladder, 3 * _RUNGS, 3 * _RUNGS),
    "concat": Case(_concat, _PARTS, _QUICK_PARTS),
    "concat_of_products": Case(_concat_of_products, _PARTS, _QUICK_PARTS),
    "split": Case(_split, _PARTS, _QUICK_PARTS),
    "sum": Case(_sum, _PARTS, _QUICK_PARTS),
}


@dataclass(frozen=True)
class Row:
    """One compilation."""

    case: str
    size: int
    kernels: int
    """Calls of kernels in the model."""
    seconds: float
    """Of the command, from its start to its end."""
    phases_s: dict[str, float]


def measure(case: str, size: int, threads: int, folder: Path) -> Row:
    """Compile a case of a size. Raises InputError if the command fails."""
    model = folder / f"{case}.onnx"
    model.write_bytes(CASES[case].write(size).SerializeToString())
    start = time.perf_counter()
    database = folder / f"{case}-{size}.sqlite"
    options = ("-o", folder / f"{case}-{size}.so", "--db", database, "--threads", threads)
    result = commands.calumma("compile", model, *options, needs=("phases_s", "tasks"))
    seconds = time.perf_counter() - start
    kernels = sum(task["weight"] for task in result["tasks"])
    return Row(case, size, kernels, seconds, {phase: result["phases_s"].get(phase, 0.0) for phase in _PHASES})


def table(rows: list[Row]) -> str:
    """The table to print."""
    cells = [
        [row.case, str(row.size), str(row.kernels), f"{row.seconds:.1f}", *(f"{row.phases_s[p]:.2f}" for p in _PHASES)]
        for row in rows
    ]
    return output.markdown(["case", "size", "kernels", "seconds", *_PHASES], cells)


def metrics(rows: list[Row]) -> dict[str, float]:
    """Seconds of every case at its full size, the worst of them, and the worst growth from half of it."""
    halves, full = rows[::2], rows[1::2]
    growth = [sum(b.phases_s.values()) / sum(a.phases_s.values()) for a, b in zip(halves, full, strict=True)]
    seconds = {f"{row.case}_s": row.seconds for row in full}
    return {**seconds, "worst_s": max(seconds.values()), "worst_growth": max(growth)}


def main() -> int:
    """Run; returns the exit status, 1 if a case cannot be compiled."""
    assert __doc__ is not None
    parser = output.parser(__doc__.splitlines()[0])
    parser.add_argument("--cases", type=output.names, default=tuple(CASES), help="between commas; none for none")
    parser.add_argument("--model", default="resnet50", help="of the suite, to be compiled cold and again")
    parser.add_argument("--runs", type=int, default=5, help="of the model, cold and again each")
    options = parser.parse_args()
    cases = () if options.cases == ("none",) else options.cases
    output.check_models(cases, tuple(CASES), "--cases")
    output.check_models((options.model,), suite.names(), "--model")
    again = compile_again.measure(options.model, 1 if options.quick else options.runs, options.threads)
    print(f"{compile_again.table(again)}\n", flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="calumma-compile-time-") as folder:
        for case in cases:
            full = CASES[case].quick_size if options.quick else CASES[case].size
            for size in (full // 2, full):
                rows.append(measure(case, size, options.threads, Path(folder)))
                print(f"{case}, {size}: {rows[-1].seconds:.1f} s", flush=True)
    result = {**compile_again.metrics(again), **(metrics(rows) if rows else {})}
    if rows:
        print(f"\n{table(rows)}\n\nworst {result['worst_s']:.1f} s; twice the size, {result['worst_growth']:.2f} times")
    if options.json:
        every = [*map(asdict, again), *map(asdict, rows)]
        output.write(options.json, result, every, output.environment(options.threads))
    return 0


if __name__ == "__main__":
    sys.exit(output.exit_status(main))
