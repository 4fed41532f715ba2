"""From a model file or module to a graph of operator nodes."""
