"""Statistics of paired comparisons, in pure numpy: intervals by bootstrap, the chance to lead."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

Values = NDArray[np.float64]


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class Interval:
    """A mean paired difference and its bootstrap confidence interval [low, high]. Raises ValueError
    for what is no finite number."""

    mean: float
    low: float
    high: float

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """Mean and bounds under the names that `report.json` uses."""
        return {"difference": self.mean, "interval": [self.low, self.high]}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote, perhaps among other keys."""
        low, high = found["interval"]
        return cls(found["difference"], low, high)


def paired_interval(
    treated: Sequence[float] | Values,
    control: Sequence[float] | Values,
    groups: Sequence[str],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of treated - control with a percentile bootstrap interval that resamples prompts.

    `treated`, `control`: (N,) values of the same images (same prompt, same seed). `groups`: the
    prompt of each image; images of one prompt are resampled together, because two seeds of a prompt
    are not independent evidence (cluster bootstrap; Efron & Tibshirani 1993, ch. 13). Raises
    ValueError if the lengths differ or fewer than two prompts are given.
    """
    difference = np.asarray(treated, dtype=np.float64) - np.asarray(control, dtype=np.float64)
    if len(difference) != len(groups):
        raise ValueError(f"{len(difference)} differences, {len(groups)} groups")
    _, group_of = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(group_of).astype(np.float64)
    if len(sizes) < 2:
        raise ValueError("a bootstrap over prompts needs at least two prompts")
    sums = np.bincount(group_of, weights=difference)
    draws = np.random.default_rng(seed).integers(len(sizes), size=(resamples, len(sizes)))
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(difference.mean()), float(low), float(high))


def chance_to_lead(differences: Sequence[float] | Values, prompts: int) -> float:
    """The probability that a trial's mean over all `prompts` lies above another's, in [0, 1].

    `differences`: (n,) paired differences to the other trial on a random n of the prompts, n >= 2.
    The mean over a finite population is known but for its unseen part: with the mean d and the
    deviation s of the seen ones, (D - d) / (s sqrt((N - n) / (n N))) is about t-distributed with
    n - 1 degrees of freedom (Cochran 1977, section 2.8). At n = N it is 0 or 1.
    """
    from scipy.special import stdtr

    seen = np.asarray(differences, dtype=np.float64)
    count, mean = len(seen), float(seen.mean())
    error = float(seen.std(ddof=1)) * np.sqrt((prompts - count) / (count * prompts))
    if error == 0.0:
        return float(mean > 0)
    return float(stdtr(count - 1, mean / error))
