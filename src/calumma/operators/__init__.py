"""Operators as tensor expressions: what the design spaces schedule."""

OPERATOR = "calumma.operator"
"""Block annotation that names the anchor operator; it survives fusion."""
