"""A CPU from outside of the package: Haswell, with cost constants of its own.

A CPU's family is a function from what LLVM and the system say of it to a `Target`. This one takes what holds for every
x86-64 CPU, and replaces what is known better. The figures are samples of what to set, not measurements: Haswell's
multiply-add has a latency of 5 cycles (Zen 5: 4) on two units, so that ten accumulators are the least that hide it, and
its memory is further away.

    PYTHONPATH=. CALUMMA_EXTENSIONS=haswell calumma compile model.onnx -o model.so --mcpu haswell

in this folder, which PYTHONPATH has to name: the command does not look for modules in the current one.
"""

from dataclasses import replace

from calumma.target import Facts, Target, register_target, x86


def describe(facts: Facts) -> Target:
    """What x86-64 CPUs have in common, with a register tile and a memory like Haswell's."""
    target = x86.describe(facts)
    tile = replace(target.costs.tile, accumulators=10, dram_line=14.0)
    return replace(target, costs=replace(target.costs, tile=tile))


register_target("haswell", describe)
