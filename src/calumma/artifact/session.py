"""ONNX Runtime's call convention for an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from numpy.typing import ArrayLike, NDArray

from calumma.artifact.artifact import Artifact, load
from calumma.core.errors import ArtifactError, InputError
from calumma.core.values import TensorSpec

_ONNX_NAMES = {"float32": "float", "float64": "double"}
_PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class NodeArg:
    """An input or output, described as `onnxruntime.NodeArg` does."""

    name: str
    shape: list[int | None]
    """Numbers, for an artifact is compiled for fixed shapes; None for an axis of an output whose extent every run
    decides anew."""
    type: str
    """"tensor(float)", "tensor(int64)", ...: the element type by ONNX's name."""


class InferenceSession:
    """Takes the place of `onnxruntime.InferenceSession` for a compiled artifact.

        session = calumma.InferenceSession("resnet50.so")
        (scores,) = session.run(None, {"input": x})

    Unlike there, the first argument is an artifact, not an ONNX file; an input that does not fit is an `InputError`
    whatever is wrong with it; and of session and run options the number of threads alone has an effect.
    """

    def __init__(
        self,
        artifact: str | PathLike[str] | Artifact,
        sess_options: Any = None,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """Load an artifact.

        Args:
            artifact: path of a file that `compile` or `tune` wrote, or an artifact loaded already.
            sess_options: an `onnxruntime.SessionOptions`, of which `intra_op_num_threads` is used where it is set and
                `threads` is not given. The rest says how to optimise and schedule a graph, which is done here already.
            providers: ONNX Runtime's names of devices, alone or each with its options, in order of preference; the CPU
                has to be one of them. The options are not used.
            threads: threads a call uses; None takes what the model was built for. Not for a loaded artifact, which has
                its own.

        Raises:
            ArtifactError: as in `load`.
            InputError: no provider is the CPU, threads are given for a loaded artifact, or `sess_options` are none.
        """
        names = [entry if isinstance(entry, str) else entry[0] for entry in providers or [_PROVIDER]]
        if _PROVIDER not in names:
            raise InputError(f"providers={names}: artifacts run on the CPU; name {_PROVIDER} or leave it out")
        if sess_options is not None:
            if not hasattr(sess_options, "intra_op_num_threads"):
                raise InputError(
                    f"sess_options={sess_options!r}: expected onnxruntime.SessionOptions; "
                    "a number of threads is given by name, as in threads=4"
                )
            threads = threads or sess_options.intra_op_num_threads or None  # 0 leaves it to the runtime
        if not isinstance(artifact, Artifact):
            artifact = load(artifact, threads)
        elif threads is not None:
            raise InputError(
                f"threads={threads}: the loaded artifact has its own ({artifact.threads}); give its path instead"
            )
        self.artifact = artifact

    def get_inputs(self) -> list[NodeArg]:
        """The model's inputs, in order."""
        return [_node_arg(spec) for spec in self.artifact.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """The model's outputs, in order."""
        return [_node_arg(spec) for spec in self.artifact.outputs]

    def get_providers(self) -> list[str]:
        """The devices in use, by ONNX Runtime's names: the CPU."""
        return [_PROVIDER]

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, ArrayLike], run_options: Any = None
    ) -> list[NDArray]:
        """Run the model.

        Args:
            output_names: outputs to return, in this order; None or none of them for all.
            input_feed: name -> array for every input, of exactly its shape and type.
            run_options: an `onnxruntime.RunOptions`, without effect: what it sets (logging, memory of single runs) is
                not there.

        Returns:
            One array per output, the caller's own.

        Raises:
            ArtifactError: (an InputError) an input is missing, unknown, or has the wrong shape or type, or an output is
                unknown.
        """
        names = [spec.name for spec in self.artifact.outputs]
        for name in output_names or ():
            if name not in names:
                raise ArtifactError(f"the model has no output {name!r}; it has {', '.join(names)}")
        outputs = self.artifact.run(input_feed)
        return [outputs[names.index(name)] for name in output_names or names]


def _node_arg(spec: TensorSpec) -> NodeArg:
    shape = [None if axis in spec.bounded_axes else extent for axis, extent in enumerate(spec.shape)]
    return NodeArg(spec.name, shape, f"tensor({_ONNX_NAMES.get(spec.dtype, spec.dtype)})")
