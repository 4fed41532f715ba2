"""An imported model with every kernel's default schedule, run in the test's own process."""

from __future__ import annotations

from calumma import tvm_compat
from calumma.artifact import Artifact, LoweredModel, build
from calumma.core import hardware as host
from calumma.graph.imported_model import ImportedModel
from calumma.testing import require
from calumma.tvm_compat.marks import FIXED
from tests import isas

THREADS = min(2, host.physical_cores())


def compiled(imported: ImportedModel, isa: str = isas.NATIVE) -> Artifact:
    """Simplify, lower, schedule by default and build, for this CPU or a narrower one that it can stand in for."""
    tvm_compat.set_threads(THREADS)
    tvm = tvm_compat.load()
    from calumma.artifact.repacking import repack
    from calumma.operators import design_space
    from calumma.pipeline.extraction import extract_tasks

    target = isas.target(isa)
    require(target)
    lowered = extract_tasks(imported, target).graph
    mod = lowered.mod
    repacking = {}
    for variable, function in list(mod.functions_items()):
        if isinstance(function, tvm.tirx.PrimFunc) and FIXED not in (function.attrs or ()):
            space = design_space(function, target, THREADS)
            config = space.decode(space.default())
            scheduled = space.schedule(config).mod["main"]
            repacking[variable.name_hint] = space.repacking(config)
            mod[variable] = scheduled.with_attr("global_symbol", variable.name_hint)
    model = repack(LoweredModel(mod, lowered.params, lowered.inputs, lowered.outputs), repacking)
    return Artifact.from_executable(build(model, target, THREADS), model.params, {})
