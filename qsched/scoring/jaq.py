"""The JAQ objective and the statistics of a comparison. Pure numpy: no model is loaded here.

JAQ (joint alignment-quality, arXiv 2509.01624) is maximised and needs no reference image:

    JAQ = TC + k * IQ,  k = 2

TC is text-image compatibility, IQ image quality, both per image. Raw terms mix scales (a CLIPScore
near 30 beside a CLIP-IQA near 0.7); standardised terms are measured in units of the identity
schedule's spread over the calibration prompts, which makes k comparable between models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsched.errors import ScoreError

Values = NDArray[np.float64]

SMALLEST_SPREAD = 1e-6
"""A term whose spread over the prompts is below this measures nothing and is refused."""


@dataclass(frozen=True)
class Term:
    """One term of the objective: `weight` times the scorer's value (higher is better).

    `log`: the natural logarithm of the value takes its place, as in the `clip-log` preset.
    """

    scorer: str
    weight: float = 1.0
    log: bool = False

    def values(self, scores: Mapping[str, Sequence[float] | Values]) -> Values:
        """The term's values, (N,), before units and weight, from {scorer: (N,)}.

        Raises ScoreError for a score that is missing or not finite, and for one that has no
        logarithm where `log` asks for it: nothing of the kind is ever ranked.
        """
        if self.scorer not in scores:
            raise ScoreError(f"{self.scorer}: no score; the objective needs it", self.scorer)
        values = np.asarray(scores[self.scorer], dtype=np.float64)
        if not np.isfinite(values).all():
            raise ScoreError(
                f"{self.scorer}: a score is not finite; nothing is ranked by it", self.scorer
            )
        if not self.log:
            return values
        if (values <= 0).any():
            raise ScoreError(
                f"{self.scorer}: a score of {values.min():.4g} has no logarithm; the images show "
                "nothing of their captions, or the objective should take the score itself "
                "(preset 'clip', or log = false)",
                self.scorer,
            )
        return np.log(values)


@dataclass(frozen=True)
class Scale:
    """The unit of a term: (value - `centre`) / `spread`, the value being the logarithm if taken."""

    centre: float = 0.0
    spread: float = 1.0


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms. Frozen: `calibrated` returns a new one with its units fixed.

    `scales` holds one Scale a scorer. The plain objective has none and sums raw values; the
    standardised one has to be calibrated on the identity schedule's scores before it can be used.
    """

    terms: tuple[Term, ...]
    standardised: bool = False
    scales: tuple[tuple[str, Scale], ...] = ()

    def calibrated(self, identity: Mapping[str, Sequence[float] | Values]) -> "Objective":
        """The objective in units of the identity schedule's `identity` scores, {scorer: (N,)}.

        A no-op for a plain objective. Raises ScoreError if a term has no spread over the prompts.
        """
        if not self.standardised:
            return self
        scales = []
        for term in self.terms:
            values = term.values(identity)
            spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
            if spread < SMALLEST_SPREAD:
                raise ScoreError(
                    f"{term.scorer}: spread {spread:.2g} over {len(values)} prompts under the "
                    "identity schedule; a standardised term needs prompts that differ: use more "
                    "prompts, or preset = 'plain'"
                )
            scales.append((term.scorer, Scale(float(values.mean()), spread)))
        return Objective(self.terms, True, tuple(scales))

    def values(self, scores: Mapping[str, Sequence[float] | Values]) -> Values:
        """JAQ per image, (N,), from {scorer: (N,)}.

        Raises ScoreError as `Term.values` does, and before a standardised objective has its units.
        """
        scales = dict(self.scales)
        if self.standardised and not scales:
            raise ScoreError("a standardised objective needs the identity schedule's scores first")
        total: Values | float = 0.0
        for term in self.terms:
            scale = scales.get(term.scorer, Scale())
            total = total + term.weight * (term.values(scores) - scale.centre) / scale.spread
        return np.asarray(total, dtype=np.float64)

    def value(self, scores: Mapping[str, Sequence[float] | Values]) -> float:
        """JAQ of an image set: the mean of `values`."""
        return float(self.values(scores).mean())


@dataclass(frozen=True)
class Interval:
    """A mean paired difference and its bootstrap confidence interval [low, high]."""

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
