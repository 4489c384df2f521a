"""The backend `simulated`: weights and activations are rounded and calculated with in floating
point, so that any width runs on any device. No torch; `rounding` has the layers."""

from typing import TYPE_CHECKING

from qsched.quantization.backend import Backend
from qsched.quantization.schemes import FULL, WIDTHS, Scheme

if TYPE_CHECKING:
    from qsched.quantization.rounding import Rounding


class Simulated(Backend):
    """Integers of any two widths, in groups of any size or a scale for each output channel."""

    description = "rounds and calculates in floating point: any width, no speed"
    schemes = tuple(
        Scheme.of_bits(weights, activations)
        for weights in WIDTHS
        for activations in WIDTHS
        if (weights, activations) != (FULL, FULL)
    )
    simulates = True

    @property
    def listed(self) -> str:
        """Those that are of use, without all widths by name."""
        return "w2 to w8, w2a2 to w8a8"

    def group_size(self, scheme: Scheme, asked: int | None) -> int | None:
        """Any; by default a scale for each channel."""
        return asked

    def converter(self, group_size: int | None) -> "Rounding":
        """See `rounding`."""
        from qsched.quantization.rounding import Rounding

        return Rounding(group_size)
