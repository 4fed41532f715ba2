"""A model as a graph of operators, before anything is lowered."""
