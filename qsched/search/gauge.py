"""The gauge: the direction of the search space that makes the final latents larger or smaller.

Near the identity nearly all of JAQ's gradient lies in one direction, the amplitude of the final
latents: it turns contrast up and down. It can be measured without decoding or scoring an image, by
finite differences of the logarithm of their standard deviation, and a search that knows it spends
its trials on the rest (docs/explanation/search.md).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from qsched.search.box import Array, Box, Vector

STEP = 1 / 16
"""How far a number is moved to either side, as a share of its interval."""

AGREEMENT = 0.5
"""The least share of the prompts' gradients that must be common to them."""

REACH = 0.05
"""The least change of the latents' log standard deviation from one side of the box to the other."""


@dataclass(frozen=True)
class Gauge:
    """A measured direction in the unit box of the numbers that are searched.

    `direction`: of length 1; empty where the signal is weak. `slope`: the change of the latents'
    log standard deviation along it, a side of the box. `agreement`: the length of the prompts' mean
    gradient over the mean of their lengths; 1 where all prompts agree. `images`, `network_calls`:
    what it cost.
    """

    direction: tuple[float, ...]
    slope: float
    agreement: float
    images: int = 0
    network_calls: int = 0

    @property
    def sentence(self) -> str:
        """What was found, for people."""
        found = (
            f"the amplitude of the latents changes by {self.slope:.2f} a side of the box, prompts "
            f"agree by {self.agreement:.0%}"
        )
        cost = f"{self.images} images without decoding, {self.network_calls} network calls"
        if self.direction:
            return f"{found} ({cost})"
        return f"none: {found}; the plain box is searched ({cost})"

    def to_dict(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "direction": list(self.direction),
            "slope": self.slope,
            "agreement": self.agreement,
            "images": self.images,
            "network_calls": self.network_calls,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises ValueError for what is no gauge."""
        try:
            direction = tuple(float(share) for share in stored["direction"])
            slope, agreement = float(stored["slope"]), float(stored["agreement"])
            images, calls = int(stored["images"]), int(stored["network_calls"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a gauge: {error}") from error
        if not all(map(math.isfinite, (*direction, slope, agreement))):
            raise ValueError("a gauge that is not finite")
        if direction and not math.isclose(math.hypot(*direction), 1.0, rel_tol=1e-6):
            raise ValueError("a gauge's direction is not of length 1")
        return cls(direction, slope, agreement, images, calls)


def probes(box: Box) -> list[Vector]:
    """The vectors whose final latents tell: each searched number moved down and up by STEP, as far
    as the box goes."""
    return [box.place(end) for pair in _ends(box) for end in pair]


def measured(box: Box, amplitudes: Array) -> Gauge:
    """The gauge by the log standard deviations of the probes' final latents, (probes, prompts)."""
    widths = np.array([np.sum(up - down) for down, up in _ends(box)])
    by_prompt = (amplitudes[1::2] - amplitudes[::2]) / widths[:, None]
    mean = by_prompt.mean(axis=1)
    slope = float(np.linalg.norm(mean))
    lengths = float(np.linalg.norm(by_prompt, axis=0).mean())
    agreement = slope / lengths if lengths else 0.0
    told = math.isfinite(slope) and slope >= REACH and agreement >= AGREEMENT
    direction = tuple(map(float, mean / slope)) if told else ()
    return Gauge(direction, slope, agreement)


def _ends(box: Box) -> list[tuple[Array, Array]]:
    """For each searched number the two ends that its derivative is taken between."""
    ends = []
    for axis in range(len(box.origin)):
        down, up = box.origin.copy(), box.origin.copy()
        down[axis] = max(0.0, down[axis] - STEP)
        up[axis] = min(1.0, up[axis] + STEP)
        ends.append((down, up))
    return ends
