"""Guards against a cheated metric: how far an image set's looks lie from full precision's.

A search may please its scorers by more light, stronger colours, harder contrast, sharper edges or
one safe picture for every caption (scorers keep rising with guidance long after the images are
over-saturated). `appearance` has the five numbers; the relative shift of each has a limit,
`[validation] limits`.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Self

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

NAMES = ("brightness", "saturation", "contrast", "sharpness", "diversity")


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class Guard:
    """How an image set looks in one respect, beside full precision; `limit` of its relative shift.

    A guard trips when the shift is above its limit and quantization alone had not moved it as far:
    what rounding did to the picture is not held against its calibration.
    """

    name: str
    full_precision: float
    identity: float
    calibrated: float
    limit: float

    @property
    def shift(self) -> float:
        """calibrated / full precision - 1."""
        return self._shift(self.calibrated)

    @property
    def ok(self) -> bool:
        """Whether it did not trip."""
        far = abs(self.shift)
        return far <= self.limit or far <= abs(self._shift(self.identity))

    def _shift(self, value: float) -> float:
        return (value - self.full_precision) / max(abs(self.full_precision), 1e-6)

    def to_dict(self) -> dict[str, Any]:
        """As `report.json` has it."""
        return {
            "name": self.name,
            "full_precision": self.full_precision,
            "identity": self.identity,
            "calibrated": self.calibrated,
            "shift": self.shift,
            "limit": self.limit,
            "ok": self.ok,
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote."""
        return cls(**{field.name: found[field.name] for field in fields(cls)})


def guards(
    full_precision: Mapping[str, float],
    identity: Mapping[str, float],
    calibrated: Mapping[str, float],
    limits: Mapping[str, float],
) -> tuple[Guard, ...]:
    """A guard for each name, from the `Appearance.values` of three image sets."""
    return tuple(
        Guard(name, full_precision[name], identity[name], calibrated[name], limits[name])
        for name in NAMES
    )
