"""Numerical methods as functions of graph nodes: special functions, linear algebra, ranks, distances."""
