"""Operators as tensor expressions: what the design spaces schedule."""
