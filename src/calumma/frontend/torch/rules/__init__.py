"""The rules of ATen operators, one module per family; importing this package registers them."""

from calumma.frontend.torch.rules import (
    aten_creation,
    aten_elementwise,
    aten_gradients,
    aten_layers,
    aten_linear_algebra,
    aten_movement,
    aten_ordering,
    aten_recurrent,
    aten_reductions,
    aten_sampling,
    aten_scattering,
    aten_special,
    aten_spectra,
)

__all__ = [
    "aten_creation",
    "aten_elementwise",
    "aten_gradients",
    "aten_layers",
    "aten_linear_algebra",
    "aten_movement",
    "aten_ordering",
    "aten_recurrent",
    "aten_reductions",
    "aten_sampling",
    "aten_scattering",
    "aten_special",
    "aten_spectra",
]
