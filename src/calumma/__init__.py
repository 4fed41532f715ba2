"""Compile and auto-tune neural networks with Apache TVM.

    import calumma

    calumma.tune("model.onnx", output="model.so", budget=60)     # measure, keep what wins
    outputs = calumma.load("model.so")(x)                        # NumPy arrays in and out

What is named here is imported on first use, so that `import calumma` itself costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from calumma._version import __version__

if TYPE_CHECKING:
    from calumma.api import InferenceSession, compile, load, tune
    from calumma.core.errors import CalummaError, InputError
    from calumma.core.values import Budget
    from calumma.tuner import events

__all__ = [
    "Budget",
    "CalummaError",
    "InferenceSession",
    "InputError",
    "__version__",
    "compile",
    "events",
    "load",
    "tune",
]

_MODULES = {"Budget": "calumma.core.values", "CalummaError": "calumma.core.errors", "InputError": "calumma.core.errors"}


def __getattr__(name: str) -> Any:
    if name == "events":
        return importlib.import_module("calumma.tuner.events")
    if name not in __all__:
        raise AttributeError(f"module 'calumma' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "calumma.api")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
