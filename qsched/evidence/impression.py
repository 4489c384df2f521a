"""Whether a few images look like images at all, before any budget is spent on them. No torch.

A wrong guidance, size, scheduler or dtype rarely raises anything: it draws fog, noise or glaring
colours, or pictures that have nothing to do with their captions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

FOG, GLARE, NOISE = 0.05, 0.6, 0.45
"""Of images in [0, 1]: photographs have a contrast near 0.2, a saturation near 0.2 and a sharpness
below 0.2; independent pixels a sharpness of 0.5 and more."""

ORDERS = 0.1
"""The share of other orders of the captions that may fit as well: 2 of 23 for four captions."""


@dataclass(frozen=True)
class Alignment:
    """How well images fit their own captions, by a scorer that reads captions.

    `own`: the mean score with their own captions; `shuffled`: with those of the others. `as_good`:
    which share of all other orders of the captions fits as well, in [0, 1].
    """

    scorer: str
    own: float
    shuffled: float
    as_good: float

    @classmethod
    def of(cls, scorer: str, scores: Sequence[Sequence[float]]) -> "Alignment":
        """`scores[i][j]`: of image i with caption j; two of each or more."""
        count = len(scores)
        sums = [
            sum(scores[image][caption] for image, caption in enumerate(order))
            for order in permutations(range(count))
        ]
        others = [row[j] for i, row in enumerate(scores) for j in range(count) if i != j]
        as_good = sum(total >= sums[0] for total in sums[1:])
        return cls(scorer, sums[0] / count, sum(others) / len(others), as_good / (len(sums) - 1))


@dataclass(frozen=True)
class Impression:
    """What one network's images look like: means over the images, and their fit to the captions.

    `alignment`: None where no scorer of the study reads captions, or none can be had.
    """

    contrast: float
    saturation: float
    sharpness: float
    alignment: Alignment | None

    @property
    def doubts(self) -> list[str]:
        """Why these may be no images, one short line each; none if they look like some."""
        found = []
        if self.contrast < FOG:
            found.append(f"nearly one grey: contrast {self.contrast:.3f}, below {FOG}")
        if self.saturation > GLARE:
            found.append(f"glaring colours: saturation {self.saturation:.2f}, above {GLARE}")
        if self.sharpness > NOISE:
            found.append(f"noise: sharpness {self.sharpness:.2f}, above {NOISE}")
        fit = self.alignment
        if fit and fit.as_good > ORDERS:
            found.append(
                f"nothing to do with their captions: {fit.as_good:.0%} of the other orders of the "
                f"captions fit as well, by {fit.scorer}"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"doubts": self.doubts}
