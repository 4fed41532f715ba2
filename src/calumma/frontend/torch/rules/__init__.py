"""The rules of ATen operators, one module per family; importing this package registers them."""

from calumma.frontend.torch.rules import (
    creation,
    elementwise,
    layers,
    linear_algebra,
    movement,
    ordering,
    recurrent,
    reductions,
    sampling,
    scattering,
    special,
    spectra,
)

__all__ = [
    "creation",
    "elementwise",
    "layers",
    "linear_algebra",
    "movement",
    "ordering",
    "recurrent",
    "reductions",
    "sampling",
    "scattering",
    "special",
    "spectra",
]
