"""From a model to an artifact: what every way of compiling shares, whoever chooses the schedules.

    CompileOptions          what a model is compiled for, checked
    extraction              import, simplify, lower, extract: the model's tasks
    preparation             those tasks with their spaces and bounds: a `PreparedModel`
    recorded                the schedules that earlier measurements speak for
    compiled                scheduled, built and saved: a `CompiledModel`
    destination             where an artifact may be written

The options, the compiled model and the destination are light; `extraction` and `preparation` load TVM.
"""

from calumma.pipeline.compile_options import CompileOptions
from calumma.pipeline.compiled import CompiledModel

__all__ = ["CompileOptions", "CompiledModel"]
