"""ONNX Runtime's call convention for an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

from numpy.typing import ArrayLike, NDArray

from calumma.artifact.artifact import load
from calumma.core.errors import ArtifactError
from calumma.core.values import TensorSpec

_ONNX_NAMES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class NodeArg:
    """An input or output, described as `onnxruntime.NodeArg` does."""

    name: str
    shape: list[int]
    type: str
    """"tensor(float)", "tensor(int64)", ..."""


class InferenceSession:
    """Drop-in for `onnxruntime.InferenceSession` on a compiled artifact."""

    def __init__(self, path: str | PathLike[str], threads: int | None = None) -> None:
        """Load the artifact at `path`; arguments and errors as in `load`."""
        self.artifact = load(path, threads)

    def get_inputs(self) -> list[NodeArg]:
        """The model's inputs, in order."""
        return [_node_arg(spec) for spec in self.artifact.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """The model's outputs, in order."""
        return [_node_arg(spec) for spec in self.artifact.outputs]

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, ArrayLike]) -> list[NDArray]:
        """Run the model; returns the outputs named, or all of them for None.

        Raises:
            ArtifactError: an input is wrong, or an output unknown.
        """
        names = [spec.name for spec in self.artifact.outputs]
        for name in output_names or ():
            if name not in names:
                raise ArtifactError(f"the model has no output {name!r}; it has {', '.join(names)}")
        outputs = self.artifact.run(input_feed)
        if output_names is None:
            return outputs
        return [outputs[names.index(name)] for name in output_names]


def _node_arg(spec: TensorSpec) -> NodeArg:
    return NodeArg(spec.name, list(spec.shape), f"tensor({_ONNX_NAMES.get(spec.dtype, spec.dtype)})")
