"""Small ONNX models written line by line, and what ONNX Runtime makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_FLOAT = TensorProto.FLOAT


@dataclass
class Model:
    """An ONNX model under construction; values are named by strings, weights are drawn from one seed."""

    opset: int = 17
    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    weights: dict[str, NDArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def input(self, *shape: int) -> str:
        """A float32 input."""
        name = f"input_{len(self.inputs)}"
        self.inputs[name] = shape
        return name

    def random(self, *shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        return (scale * self._rng.standard_normal(shape)).astype(np.float32)

    def op(self, kind: str, *operands: str | NDArray | np.generic, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node over values and arrays; returns its output's name, or a list of `outputs` names."""
        names = []
        for operand in operands:
            if not isinstance(operand, str):
                name = f"weight_{len(self.weights)}"
                self.weights[name] = np.asarray(operand)
                operand = name
            names.append(operand)
        results = [f"{kind.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, results, **attributes))
        return results[0] if outputs == 1 else results

    def conv(
        self,
        x: str,
        channels: tuple[int, int],
        kernel: int = 3,
        *,
        groups: int = 1,
        bias: bool = True,
        **attributes: Any,
    ) -> str:
        """A convolution from and to `channels`, "same" padding unless `pads` says otherwise, outputs of unit scale."""
        fan_in = channels[0] // groups
        weight = self.random(channels[1], fan_in, kernel, kernel, scale=(fan_in * kernel * kernel) ** -0.5)
        shift = [self.random(channels[1])] if bias else []
        attributes.setdefault("pads", [kernel // 2] * 4)
        return self.op("Conv", x, weight, *shift, group=groups, **attributes)

    def linear(self, x: str, columns: tuple[int, int]) -> str:
        """x @ W + b over the last axis."""
        product = self.op("MatMul", x, self.random(*columns, scale=columns[0] ** -0.5))
        return self.op("Add", product, self.random(columns[1]))

    def batch_norm(self, x: str, channels: int) -> str:
        gamma, variance = np.abs(self.random(channels)) + 0.5, np.abs(self.random(channels)) + 0.5
        return self.op("BatchNormalization", x, gamma, self.random(channels), self.random(channels), variance)

    def bytes(self, *outputs: str) -> bytes:
        """The finished model."""
        graph = helper.make_graph(
            self.nodes,
            "model",
            [helper.make_tensor_value_info(name, _FLOAT, shape) for name, shape in self.inputs.items()],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return onnx.shape_inference.infer_shapes(proto).SerializeToString()

    def feeds(self, seed: int = 0) -> dict[str, NDArray[np.float32]]:
        """Random inputs."""
        rng = np.random.default_rng([seed, 1])
        return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in self.inputs.items()}


def reference(model: bytes, feeds: dict[str, NDArray]) -> list[NDArray]:
    """ONNX Runtime's outputs."""
    import onnxruntime  # starts a thread, and some users of these models fork

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def assert_close(ours: list[NDArray], theirs: list[NDArray], tolerance: float = 1e-4) -> None:
    """max |a - b| <= tolerance * max |b|, output by output; shapes and types are equal."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.isfinite(a).all()
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()
