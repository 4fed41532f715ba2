"""The runtimes that can be compared, each behind the same three steps: load, set inputs, run.

Every one computes in float32 with the given number of threads, tuned for the latency of one request, all graph
optimisations on; whatever else it does is its own default, as a user would get it. Each lives alone in a process
(`calumma.peers.peer_worker`), so a constructor may set process-wide state.
"""

from __future__ import annotations

import importlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Shapes = Mapping[str, Sequence[int]]
"""Input name -> shape with every dimension fixed."""


class Unavailable(Exception):
    """The runtime cannot run this model here; the message is the reason, one line."""


class Runtime(ABC):
    """One loaded model."""

    version: str

    @abstractmethod
    def __init__(self, source: str, shapes: Shapes, threads: int) -> None:
        """Load a model: an artifact for "calumma", an ONNX file, or "module:function" for torch."""

    @abstractmethod
    def set_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Keep the inputs of all following runs: name -> array."""

    @abstractmethod
    def run(self) -> Sequence[np.ndarray]:
        """Compute once; the outputs in the model's order, valid until the next run."""


class Calumma(Runtime):
    """An artifact, loaded as a user loads it."""

    def __init__(self, source: str, shapes: Shapes, threads: int) -> None:
        import calumma
        from calumma import artifact

        self.version = calumma.__version__
        self._artifact = artifact.load(source, threads=threads)

    def set_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        self._inputs = dict(inputs)

    def run(self) -> Sequence[np.ndarray]:
        return self._artifact.run(self._inputs)


class OnnxRuntime(Runtime):
    """ONNX Runtime's CPU provider."""

    def __init__(self, source: str, shapes: Shapes, threads: int) -> None:
        ort = _module("onnxruntime")
        self.version = ort.__version__
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        symbols = self._symbols(shapes)
        if symbols:
            for name, size in symbols.items():
                options.add_free_dimension_override_by_name(name, size)
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def set_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        self._inputs = dict(inputs)

    def run(self) -> Sequence[np.ndarray]:
        return self._session.run(None, self._inputs)

    def _symbols(self, shapes: Shapes) -> dict[str, int]:
        """Sizes of the named dimensions that the model leaves open; not of a name that stands for several ("?")."""
        sizes: dict[str, set[int]] = {}
        for tensor in self._session.get_inputs():
            for dim, size in zip(tensor.shape, shapes[tensor.name], strict=True):
                if isinstance(dim, str):
                    sizes.setdefault(dim, set()).add(int(size))
        return {dim: found.pop() for dim, found in sizes.items() if len(found) == 1}


class OpenVino(Runtime):
    """OpenVINO's CPU plug-in. Its default precision on a CPU with bf16 instructions is bf16: float32 is asked for."""

    precision = "f32"

    def __init__(self, source: str, shapes: Shapes, threads: int) -> None:
        openvino = _module("openvino")
        self.version = openvino.__version__.split("-")[0]
        core = openvino.Core()
        model = core.read_model(source)
        if model.is_dynamic():
            model.reshape({name: list(shape) for name, shape in shapes.items()})
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": self.precision,
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        self._request = compiled.create_infer_request()

    def set_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        self._inputs = dict(inputs)

    def run(self) -> Sequence[np.ndarray]:
        return self._request.infer(self._inputs, share_inputs=True, share_outputs=True).to_tuple()


class OpenVinoNarrow(OpenVino):
    """The same, computing in bfloat16 where it can."""

    precision = "bf16"


class TorchEager(Runtime):
    """The `torch.nn.Module` that a function returns; `source` is "module:function", inputs are positional."""

    def __init__(self, source: str, shapes: Shapes, threads: int) -> None:
        self._torch = _module("torch")
        self.version = self._torch.__version__
        self._torch.set_num_threads(threads)
        module_name, _, function = source.partition(":")
        self._call = getattr(importlib.import_module(module_name), function)().eval()

    def set_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        self._inputs = [self._torch.from_numpy(array) for array in inputs.values()]

    def run(self) -> Sequence[np.ndarray]:
        with self._torch.inference_mode():
            outputs = self._call(*self._inputs)
        return [output.numpy() for output in (outputs if isinstance(outputs, (tuple, list)) else (outputs,))]


class TorchCompiled(TorchEager):
    """The same module under `torch.compile` with the inductor backend."""

    def __init__(self, source: str, shapes: Shapes, threads: int) -> None:
        super().__init__(source, shapes, threads)
        self._call = self._torch.compile(self._call, backend="inductor")


class TorchCalumma(TorchEager):
    """The same module under `torch.compile` with calumma's backend; a model of which it leaves parts to torch fails."""

    def __init__(self, source: str, shapes: Shapes, threads: int) -> None:
        super().__init__(source, shapes, threads)
        warnings.filterwarnings("error", "calumma leaves")
        self._call = self._torch.compile(self._call, backend="calumma", options={"threads": threads})


RUNTIMES: dict[str, type[Runtime]] = {
    "calumma": Calumma,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "openvino-bf16": OpenVinoNarrow,
    "torch-eager": TorchEager,
    "torch-compile": TorchCompiled,
    "torch-calumma": TorchCalumma,
}
"""Runtime name -> class; every constructor takes (source, shapes, threads)."""


def load(runtime: str, source: str, shapes: Shapes, threads: int) -> Runtime:
    """Load a model (an artifact for "calumma", an ONNX file, or "module:function" for torch).

    Raises:
        Unavailable: the runtime is not installed.
    """
    os.environ["TVM_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(threads)
    return RUNTIMES[runtime](source, shapes, threads)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise Unavailable(f"{name} is not installed") from None
