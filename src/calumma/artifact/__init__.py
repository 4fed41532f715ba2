"""Compiled models: memory plan and code generation (`build`), one self-contained file (`save`), running it (`load`).

Building needs all of TVM; loading and running need its runtime library, tvm_ffi and NumPy alone.
"""

from calumma.artifact.artifact import Artifact, KernelTime, Profile, load
from calumma.artifact.building import Executable, build, save
from calumma.artifact.lowered import LoweredModel
from calumma.artifact.session import InferenceSession, NodeArg
from calumma.core.values import TensorSpec

__all__ = [
    "Artifact",
    "Executable",
    "InferenceSession",
    "KernelTime",
    "LoweredModel",
    "NodeArg",
    "Profile",
    "TensorSpec",
    "build",
    "load",
    "save",
]
