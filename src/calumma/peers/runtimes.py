"""The runtimes that can be compared, by name: ours, ONNX Runtime, OpenVINO, torch, and those of the extra `peers`.

Every one computes in float32 with the given number of threads, tuned for the latency of one request, all graph
optimisations on; whatever else it does is its own default, as a user would get it.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from calumma.peers.iree import Iree
from calumma.peers.loading import ARTIFACT, TORCH, Hold, Job, Runtime, module
from calumma.peers.mobile import LiteRt, Mnn, Ncnn

_ONEDNN = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


class Calumma(Runtime):
    """An artifact, loaded as a user loads it: what it was compiled for is its own affair."""

    reads = ARTIFACT
    avx2 = Hold()

    def __init__(self, job: Job) -> None:
        import calumma
        from calumma import artifact

        self.version = calumma.__version__
        self._artifact = artifact.load(job.source, threads=job.threads)

    def set_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        self._inputs = dict(inputs)

    def run(self) -> Sequence[np.ndarray]:
        return self._artifact.run(self._inputs)


class OnnxRuntime(Runtime):
    """ONNX Runtime's CPU provider."""

    def __init__(self, job: Job) -> None:
        ort = module("onnxruntime")
        self.version = ort.__version__
        options = ort.SessionOptions()
        options.intra_op_num_threads = job.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        self._session = ort.InferenceSession(job.source, options, providers=["CPUExecutionProvider"])
        symbols = self._symbols(job.shapes)
        if symbols:
            for name, size in symbols.items():
                options.add_free_dimension_override_by_name(name, size)
            self._session = ort.InferenceSession(job.source, options, providers=["CPUExecutionProvider"])

    def set_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        self._inputs = dict(inputs)

    def run(self) -> Sequence[np.ndarray]:
        return self._session.run(None, self._inputs)

    def _symbols(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Sizes of the named dimensions that the model leaves open; not of a name that stands for several ("?")."""
        sizes: dict[str, set[int]] = {}
        for tensor in self._session.get_inputs():
            for dim, size in zip(tensor.shape, shapes[tensor.name], strict=True):
                if isinstance(dim, str):
                    sizes.setdefault(dim, set()).add(int(size))
        return {dim: found.pop() for dim, found in sizes.items() if len(found) == 1}


class OpenVino(Runtime):
    """OpenVINO's CPU plug-in. Its default precision on a CPU with bf16 instructions is bf16: float32 is asked for."""

    # oneDNN's kernels heed the one variable, the plug-in's own the other; MLAS heeds neither.
    avx2 = Hold({**_ONEDNN, "OV_CPU_MAX_ISA": "AVX2"}, gap="MLAS, which computes its products with constant matrices")
    precision = "f32"

    def __init__(self, job: Job) -> None:
        openvino = module("openvino")
        self.version = openvino.__version__.split("-")[0]
        core = openvino.Core()
        model = core.read_model(job.source)
        if model.is_dynamic():
            model.reshape({name: list(shape) for name, shape in job.shapes.items()})
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": self.precision,
                "INFERENCE_NUM_THREADS": job.threads,
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

    reads = TORCH
    avx2 = Hold(
        {
            **_ONEDNN,
            "ATEN_CPU_CAPABILITY": "avx2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",
        }
    )

    def __init__(self, job: Job) -> None:
        self._torch = module("torch", "torch")
        self.version = self._torch.__version__
        self._torch.set_num_threads(job.threads)
        module_name, _, function = job.source.partition(":")
        self._call = getattr(importlib.import_module(module_name), function)().eval()

    def set_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        self._inputs = [self._torch.from_numpy(array) for array in inputs.values()]

    def run(self) -> Sequence[np.ndarray]:
        with self._torch.inference_mode():
            outputs = self._call(*self._inputs)
        return [output.numpy() for output in (outputs if isinstance(outputs, (tuple, list)) else (outputs,))]


class TorchCompiled(TorchEager):
    """The same module under `torch.compile` with the inductor backend."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._call = self._torch.compile(self._call, backend="inductor")


class TorchCalumma(TorchEager):
    """The same module under `torch.compile` with calumma's backend; a model of which it leaves parts to torch fails."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        warnings.filterwarnings("error", "calumma leaves")
        self._call = self._torch.compile(self._call, backend="calumma", options={"threads": job.threads})


RUNTIMES: dict[str, type[Runtime]] = {
    "calumma": Calumma,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "openvino-bf16": OpenVinoNarrow,
    "torch-eager": TorchEager,
    "torch-compile": TorchCompiled,
    "torch-calumma": TorchCalumma,
    "litert": LiteRt,
    "ncnn": Ncnn,
    "mnn": Mnn,
    "iree": Iree,
}
"""Runtime name -> class."""


def load(runtime: str, job: Job) -> Runtime:
    """Load a model. Raises Unavailable where the runtime is not installed, or cannot take the model."""
    os.environ["TVM_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(job.threads)
    return RUNTIMES[runtime](job)
