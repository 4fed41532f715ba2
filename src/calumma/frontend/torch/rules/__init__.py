"""The rules of ATen operators, one module per family; importing this package registers them."""

from calumma.frontend.torch.rules import creation, elementwise, layers, movement, reductions

__all__ = ["creation", "elementwise", "layers", "movement", "reductions"]
