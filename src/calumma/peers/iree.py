"""IREE: compiled ahead of time by LLVM for the CPU that is asked for, run on a pool of threads."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from calumma.peers.loading import Hold, Job, Runtime, Unavailable, module, version_of

_OPSET = 17
"""Older models are brought to this one first, as IREE's guide asks for."""
_FLAGS = (
    "--iree-hal-target-device=local",
    "--iree-hal-local-target-device-backends=llvm-cpu",
    "--iree-opt-level=O3",
    "--iree-opt-data-tiling",
    "--iree-llvmcpu-enable-ukernels=all",
    "--iree-llvmcpu-stack-allocation-limit=262144",  # LayerNorm over 512 values needs more than the default of 32 KiB
)


class Iree(Runtime):
    """An ONNX file through IREE's importer and compiler."""

    avx2 = Hold()  # the compiler is told the CPU

    def __init__(self, job: Job) -> None:
        tools = module("iree.compiler.tools.binaries", "peers")
        runtime = module("iree.runtime", "peers")
        self._runtime = runtime
        self.version = version_of("iree-base-runtime")
        with tempfile.TemporaryDirectory(prefix="calumma-iree-") as folder:
            compiled = _compiled(job, Path(folder), tools.find_tool("iree-compile"))
        runtime.flags.parse_flags(f"--task_topology_group_count={job.threads}")
        self._config = runtime.Config("local-task")
        self._context = runtime.SystemContext(config=self._config)
        vm_module = runtime.VmModule.copy_buffer(self._config.vm_instance, compiled)
        self._context.add_vm_module(vm_module)
        entries = [name for name in vm_module.function_names if not name.startswith("__") and "$" not in name]
        self._call = getattr(self._context.modules, vm_module.name)[entries[0]]

    def set_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        self._inputs = [self._runtime.asdevicearray(self._config.device, array) for array in inputs.values()]

    def run(self) -> Sequence[np.ndarray]:
        outputs = self._call(*self._inputs)
        return [output.to_host() for output in (outputs if isinstance(outputs, (tuple, list)) else (outputs,))]


def _compiled(job: Job, folder: Path, compiler: str) -> bytes:
    import onnx
    from onnx import version_converter

    model = onnx.load(job.source)
    symbols = {
        dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim if not dim.dim_value
    }
    if symbols:
        raise Unavailable("the model has open dimensions, which IREE's module would compute with at run time")
    if any(entry.domain == "" and entry.version < _OPSET for entry in model.opset_import):
        model = version_converter.convert_version(model, _OPSET)
    source, mlir, result = folder / "model.onnx", folder / "model.mlir", folder / "model.vmfb"
    onnx.save(onnx.shape_inference.infer_shapes(model), source)
    _run("the importer", [sys.executable, "-m", "iree.compiler.tools.import_onnx", str(source), "-o", str(mlir)])
    cpu = f"--iree-llvmcpu-target-cpu={job.mcpu or 'host'}"
    _run("the compiler", [compiler, str(mlir), "-o", str(result), cpu, *_FLAGS])
    return result.read_bytes()


def _run(what: str, command: Sequence[str]) -> None:
    """Run one of IREE's tools. Raises Unavailable with its first error where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        error = next((line.partition("error: ")[2] for line in lines if "error: " in line), lines[-1])
        raise Unavailable(f"{what} does not take the model: {error}")
