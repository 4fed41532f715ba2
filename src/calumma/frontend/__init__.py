"""From a model file or module to a Relax module of fused PrimFuncs in blocked layout."""
