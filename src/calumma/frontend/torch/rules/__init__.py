"""The rules of ATen operators, one module per family; importing this package registers them."""

from calumma.frontend.torch.rules import (
    aten_creation,
    aten_elementwise,
    aten_layers,
    aten_movement,
    aten_reductions,
)

__all__ = [
    "aten_creation",
    "aten_elementwise",
    "aten_layers",
    "aten_movement",
    "aten_reductions",
]
