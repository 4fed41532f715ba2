"""Rewrites of a graph, each a function Graph -> None in place: a pattern, a check that it holds, what replaces it."""
