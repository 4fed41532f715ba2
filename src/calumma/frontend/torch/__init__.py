"""torch modules and exported programs to graphs: a rule per operator of core ATen.

`program` exports and decomposes; `program_graph` walks over the nodes; `registry` holds the rules, which lie by family
in `rules/`. What torch says of every result is compared with what the rules make of it.

Nothing here is imported unless somebody hands in a torch model: whoever has one has imported torch.
"""

from calumma.frontend.torch.program import import_torch

__all__ = ["import_torch"]
