"""From a graph of operator nodes to a Relax module of fused PrimFuncs in blocked layout."""
