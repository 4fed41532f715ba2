"""Runtimes made for phones, which run on x86 too: ncnn, MNN, LiteRT. Each has a format of its own.

ncnn and MNN convert the ONNX file when they load it, in a folder that is gone afterwards. LiteRT's converters need
TensorFlow and other versions of numpy and onnx than calumma's, so its file is made elsewhere (docs/dependencies.md).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calumma.peers.inputs import InputSpec, input_specs
from calumma.peers.loading import Job, Runtime, Unavailable, module, version_of

_LONG_TO_INT = {"int64": "int32"}
"""Neither has 64-bit integers."""


class Ncnn(Runtime):
    """ncnn, its file made by pnnx, all in float32."""

    def __init__(self, job: Job) -> None:
        ncnn, pnnx = module("ncnn", "peers"), module("pnnx", "peers")
        self.version = version_of("ncnn")
        self._mat = ncnn.Mat
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = job.threads
        options.use_vulkan_compute = options.use_bf16_storage = False
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        specs = input_specs(Path(job.source), job.shapes)
        with tempfile.TemporaryDirectory(prefix="calumma-ncnn-") as folder:
            (Path(folder) / "model.onnx").symlink_to(Path(job.source).resolve())
            shapes = ",".join(_pnnx_type(spec) for spec in specs)
            _convert([pnnx.EXEC_PATH, "model.onnx", f"inputshape={shapes}", "fp16=0"], folder)
            parameters, weights = (str(Path(folder) / f"model.ncnn.{kind}") for kind in ("param", "bin"))
            if not os.path.exists(parameters):
                raise Unavailable("pnnx cannot convert the model")
            if self._net.load_param(parameters) or self._net.load_model(weights):
                raise Unavailable("ncnn does not have all operators that pnnx wrote")

    def set_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        arrays = [_narrow(array) for array in inputs.values()]
        self._inputs = [
            (name, self._mat(array, batch_index=0)) for name, array in zip(self._net.input_names(), arrays, strict=True)
        ]

    def run(self) -> Sequence[np.ndarray]:
        with self._net.create_extractor() as extractor:
            for name, mat in self._inputs:
                extractor.input(name, mat)
            found = [extractor.extract(name) for name in _in_order(self._net.output_names())]
        if any(status for status, _ in found):
            raise Unavailable("ncnn could not compute an output")
        return [mat.numpy(batch_index=0) for _, mat in found]


class Mnn(Runtime):
    """MNN in its highest precision, which is float32."""

    def __init__(self, job: Job) -> None:
        with _silence():
            module("MNN", "peers")
            self._expr, network = module("MNN.expr"), module("MNN.nn")
        self.version = version_of("MNN")
        graph = _graph(job.source)
        with tempfile.TemporaryDirectory(prefix="calumma-mnn-") as folder, _silence():
            file = Path(folder) / "model.mnn"
            # The command `mnnconvert` and MNN.tools install packages and report to a server: this is neither.
            call = "import sys, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"
            options = ["-f", "ONNX", "--modelFile", os.path.abspath(job.source), "--MNNModel", str(file)]
            _convert([sys.executable, "-c", call, *options, "--bizCode", "calumma"], folder)
            if not file.exists():
                raise Unavailable("MNN's converter does not take the model")
            self._manager = network.create_runtime_manager(
                ({"backend": "CPU", "numThread": job.threads, "precision": "high"},)
            )
            self._net = network.load_module_from_file(str(file), *graph, runtime_manager=self._manager)

    def set_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        kinds = {"float32": self._expr.float, "int32": self._expr.int}
        self._arrays = [_narrow(array) for array in inputs.values()]
        self._inputs = [
            self._expr.const(array, list(array.shape), self._expr.NCHW, kinds[array.dtype.name])
            for array in self._arrays
        ]

    def run(self) -> Sequence[np.ndarray]:
        outputs = self._net.onForward(self._inputs)
        return [self._expr.convert(output, self._expr.NCHW).read() for output in outputs]


class LiteRt(Runtime):
    """LiteRT with XNNPACK. It runs MODEL.tflite beside MODEL.onnx, whose images may be stored channels last."""

    def __init__(self, job: Job) -> None:
        interpreter = module("ai_edge_litert.interpreter", "peers")
        self.version = version_of("ai-edge-litert")
        file = Path(job.source).with_suffix(".tflite")
        if not file.exists():
            raise Unavailable(
                f"no {file.name} beside the ONNX file: LiteRT reads no other (onnx2tf makes one, in an own environment)"
            )
        with _silence():
            self._interpreter: Any = interpreter.Interpreter(model_path=str(file), num_threads=job.threads)
            self._interpreter.allocate_tensors()
        self._outputs = [entry["index"] for entry in self._interpreter.get_output_details()]

    def set_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        entries = self._interpreter.get_input_details()
        for entry, array in zip(entries, inputs.values(), strict=True):
            value = array.astype(entry["dtype"])
            if value.shape != tuple(entry["shape"]) and value.ndim == 4:
                value = value.transpose(0, 2, 3, 1)
            self._interpreter.set_tensor(entry["index"], value)

    def run(self) -> Sequence[np.ndarray]:
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]


def _in_order(names: Sequence[str]) -> list[str]:
    """pnnx's "in0", "in1" ... or "out0", "out1" ..., which ncnn lists as its graph has them."""
    return sorted(names, key=lambda name: int(name.lstrip("inout")))


def _pnnx_type(spec: InputSpec) -> str:
    codes = {"float32": "f32", "int64": "i64", "int32": "i32"}
    if spec.dtype not in codes:
        raise Unavailable(f"input {spec.name} has type {spec.dtype}, which pnnx does not take")
    return f"[{','.join(map(str, spec.shape))}]{codes[spec.dtype]}"


def _graph(source: str) -> tuple[list[str], list[str]]:
    """Names of the inputs and of the outputs of an ONNX file."""
    import onnx

    graph = onnx.load(source, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in constants], [value.name for value in graph.output]


def _narrow(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.astype(_LONG_TO_INT.get(array.dtype.name, array.dtype.name)))


def _convert(command: Sequence[str], folder: str) -> None:
    """Run a converter, which may print what it likes. Raises Unavailable with its last line where it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise Unavailable(f"{Path(command[0]).name}: exit status {done.returncode}: {lines[-1]}")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Send what native code prints on stderr (where the process sends stdout as well) nowhere."""
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        yield
    finally:
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)
